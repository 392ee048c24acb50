"""Models that a comparison keeps, and what analyses find of them, on disk and summed up."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from losslab import metrics
from losslab.analysis.analyse import Subject, request
from losslab.errors import InputError
from losslab.experiment import findings, records, runner
from losslab.experiment.runner import Analysed, run
from losslab.experiment.summary import load_planned, summarize_folder
from test_runner import blobs, comparison, make_task, outcomes

pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = [request("margins"), request("calibration"), request("dynamics"), request("ood")]


@pytest.fixture(params=["together", "apart"])
def way(request, monkeypatch):
    """Both ways to train: as one computation, and run by run."""
    if request.param == "apart":
        monkeypatch.setattr(runner, "pays", lambda task, runs: False)
    return request.param


def analysed(folder, **changes):
    return comparison(folder, seeds=range(3), analyses=ASKED, **changes)


def test_every_run_is_analysed_and_keeps_its_numbers(way, tmp_path):
    """Oracle: the same comparison without analyses, bit for bit; margins from the records' own
    arrays. Break: an analysis that disturbs training, or is made of another run's model."""
    told = []
    run(analysed(tmp_path / "with"), told.append)
    run(comparison(tmp_path / "without", seeds=range(3)))
    assert outcomes(tmp_path / "with") == outcomes(tmp_path / "without")
    names = [event.analysis for event in told if isinstance(event, Analysed)]
    assert sorted(names) == sorted([asked.name for asked in ASKED] * 9)
    for record in records.load_all(tmp_path / "with"):
        found = findings.load_findings(tmp_path / "with", record["run_id"])
        assert set(found) == {str(asked) for asked in ASKED}
        examples = records.load_examples(tmp_path / "with", record["run_id"])
        values = found["margins"]["values"]
        assert values["logits.mean"] == pytest.approx(examples["margin"].mean(), rel=1e-5)
        assert values["log_odds.mean"] == pytest.approx(examples["log_odds"].mean(), rel=1e-5)
        assert found["dynamics"]["values"]["test.accuracy"] == pytest.approx(
            record["results"]["last"]["test"]["accuracy"]
        )


def test_kept_models_are_the_runs_own(way, tmp_path):
    """Oracle: the record's accuracy and log-odds. Break: weights of another epoch or run."""
    run(comparison(tmp_path, seeds=range(2), keep_models=True))
    task = make_task()
    for record in records.load_all(tmp_path):
        model, trace = findings.load_model(tmp_path, record["run_id"], task)
        inputs, target = task.test.tensors
        with torch.no_grad():
            logits = model(inputs)
        examples = records.load_examples(tmp_path, record["run_id"])
        odds = metrics.log_odds(logits, target).numpy()
        np.testing.assert_allclose(odds, examples["log_odds"], rtol=1e-4, atol=1e-5)
        assert trace is None


def test_analyses_can_be_asked_for_later(way, tmp_path):
    """Break: runs made again though their models are there; or not made again where they are not,
    and with other numbers."""
    run(comparison(tmp_path / "kept", seeds=range(3), keep_models=True))
    run(comparison(tmp_path / "lost", seeds=range(3)))
    before = outcomes(tmp_path / "lost")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "kept" / "runs").glob("*.json")}
    quick = ASKED[:2]
    for folder in ("kept", "lost"):
        run(comparison(tmp_path / folder, seeds=range(3), analyses=quick))
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert outcomes(tmp_path / "lost") == before
    summary = summarize_folder(tmp_path / "lost")["analyses"]
    other = summarize_folder(tmp_path / "kept")["analyses"]
    assert set(summary) == {"margins", "calibration"}
    for name, entry in summary["calibration"]["values"].items():
        assert entry["table"] == other["calibration"]["values"][name]["table"]


def test_values_are_compared_seed_by_seed(tmp_path):
    """Oracle: scipy's paired t test on the findings themselves. Break: seeds paired wrongly, a
    smaller-is-better value judged the wrong way round, descriptive values judged."""
    run(analysed(tmp_path))
    _, planned = load_planned(tmp_path)
    by = {
        (record["loss"]["label"], record["seed"]): findings.load_findings(
            tmp_path, record["run_id"]
        )
        for record in planned
    }
    summary = summarize_folder(tmp_path)["analyses"]
    for asked, value in (
        ("calibration", "nll"),
        ("margins", "logits.mean"),
        ("ood(out=noise)", "auroc.min_energy"),
    ):
        key = asked if asked in summary else asked.partition("(")[0]
        entry = summary[key]["values"][value]
        one, base = (
            np.array([by[label, seed][key]["values"][value] for seed in range(3)])
            for label in ("el", "ce")
        )
        truth = stats.ttest_rel(one, base)
        found = entry["comparisons"]["el"]
        assert found["mean"] == pytest.approx((one - base).mean())
        assert found["p_value"] == pytest.approx(truth.pvalue)
        assert found["low"] < found["mean"] < found["high"]
        if found["verdict"] in ("better", "worse"):
            assert (found["verdict"] == "better") == ((found["mean"] > 0) == entry["better"])
        assert (found["verdict"] == "descriptive") == (entry["better"] is None)
        assert entry["table"]["ce"]["mean"] == pytest.approx(base.mean())
    assert json.dumps(summary, allow_nan=False)


def test_diverged_runs_are_not_analysed(tmp_path):
    """Break: an analysis of a model whose weights are NaN, which would stop the comparison."""
    losses = [("ce", "cross_entropy"), ("wild", "1e30*cross_entropy")]
    run(comparison(tmp_path, losses=losses, seeds=range(3), analyses=ASKED[:1]))
    summary = summarize_folder(tmp_path)
    assert set(summary["diverged"]) == {"wild"}
    assert summary["analyses"]["margins"]["runs"] == {"ce": 3, "wild": 0}
    run(comparison(tmp_path, losses=losses, seeds=range(3), analyses=ASKED[:1]))  # nothing to do


def test_a_subject_asks_its_model_once():
    """Break: every analysis running the model over the data anew."""
    calls = []

    class Counting(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return x

    data = torch.randn(6, 3), torch.arange(6) % 3
    subject = Subject(Counting(), nn.CrossEntropyLoss(), data, data, data)
    assert subject.outputs("test")[0] is subject.outputs("test")[0]
    assert calls == [6]
    with pytest.raises(InputError, match="train, validation or test"):
        subject.outputs("training")


class TestWeights:
    def model(self):
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    @pytest.mark.parametrize("form", ["bare", "model", "state_dict"])
    def test_forms(self, form, tmp_path):
        """Oracle: the weights that were saved."""
        saved = self.model()
        state = saved.state_dict()
        torch.save(state if form == "bare" else {form: state}, tmp_path / "w.pt")
        loaded = findings.weights_into(self.model(), tmp_path / "w.pt")
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, state[name])

    def test_of_another_model(self, tmp_path):
        torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "w.pt")
        with pytest.raises(InputError, match=r"weights of another model: it lacks 0\.bias"):
            findings.weights_into(self.model(), tmp_path / "w.pt")
        wide = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
        torch.save(wide.state_dict(), tmp_path / "w.pt")
        with pytest.raises(InputError, match=r"0.weight is \(9, 4\) there, \(5, 4\)"):
            findings.weights_into(self.model(), tmp_path / "w.pt")

    def test_that_cannot_be_read(self, tmp_path):
        """Break: a pickle that runs code when it is loaded, or a traceback."""
        (tmp_path / "text.pt").write_text("no weights")
        torch.save(nn.Linear(2, 2), tmp_path / "module.pt")  # a whole module: code
        torch.save({"epoch": 3}, tmp_path / "other.pt")
        for name in ("text", "module"):
            with pytest.raises(InputError, match="cannot be read as weights"):
                findings.weights_into(self.model(), tmp_path / f"{name}.pt")
        with pytest.raises(InputError, match=r"Expected .* to hold weights by name"):
            findings.weights_into(self.model(), tmp_path / "other.pt")


def test_a_damaged_model_is_named(tmp_path):
    run(comparison(tmp_path, seeds=range(2), keep_models=True))
    broken = next((tmp_path / "models").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{broken.name} cannot be read as weights"):
        run(comparison(tmp_path, seeds=range(2), analyses=ASKED[:1]))


def test_noise_is_of_the_inputs_own_kind_and_hangs_on_the_seed():
    """Break: noise outside the inputs' range or dtype, or other noise for another loss."""
    from losslab.analysis.from_logits import _others

    images = torch.randint(0, 256, (8, 1, 3, 3), dtype=torch.uint8), torch.zeros(8).long()
    subject = Subject(nn.Flatten(), nn.CrossEntropyLoss(), images, images, images, seed=4)
    noise, _ = _others(subject, "noise", 5)
    again, _ = _others(subject, "noise", 5)
    assert noise.dtype == torch.uint8 and noise.shape == (5, 1, 3, 3) and torch.equal(noise, again)
    assert noise.min() >= images[0].min() and noise.max() <= images[0].max()
    with pytest.raises(InputError, match="give the subject data_by_name"):
        _others(subject, "fashion-mnist", None)
    subject.data_by_name = lambda name: blobs(4, 0)
    with pytest.raises(InputError, match=r"as the model's own, \(1, 3, 3\) uint8"):
        _others(subject, "blobs", None)

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
from losslab.experiment.events import Analysed
from losslab.experiment.runner import run
from losslab.experiment.summary import load_planned, summarize_folder
from losslab.report import write_report
from losslab.report.folder import read_folder
from losslab.report.notices import notices
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


class TestFailures:
    """An analysis that fails, as `representation` does where no nn.Linear makes the logits."""

    ASKED = (request("margins"), request("representation"), request("energies"))

    @pytest.fixture
    def stubborn(self, monkeypatch):
        """Representation fails for one loss, and is not known to beforehand."""
        honest = findings.analyse

        def stubborn(subject, asked):
            if asked.name == "representation" and "encouraging" in subject.criterion.spec:
                raise InputError("representation: no such layer")
            return honest(subject, asked)

        monkeypatch.setattr(findings, "analyse", stubborn)
        return honest

    def test_leaves_the_others_alone(self, way, stubborn, tmp_path):
        """Oracle: the same comparison without it. Break: runs or analyses that are lost, values
        of a failed one, a failure that is told nowhere."""
        told = []
        losses = [("ce", "cross_entropy"), ("el", "encouraging")]
        asked = dict(losses=losses, seeds=range(3))
        run(comparison(tmp_path / "all", analyses=self.ASKED, **asked), told.append)
        run(comparison(tmp_path / "two", analyses=self.ASKED[::2], **asked))
        summary, truth = (summarize_folder(tmp_path / name) for name in ("all", "two"))
        assert outcomes(tmp_path / "all") == outcomes(tmp_path / "two")
        entry = summary["analyses"].pop("representation")
        assert summary["analyses"] == truth["analyses"]
        assert entry["runs"] == {"ce": 3, "el": 0} and entry["failed"] == {"el": [0, 1, 2]}
        reason = "representation: no such layer"
        assert entry["flags"] == {
            "el": [{"seed": s, "text": "not measured: no such layer"} for s in range(3)]
        }
        failed = [event for event in told if isinstance(event, Analysed) and event.reason]
        assert [(one.label, one.reason) for one in failed] == [("el", reason)] * 3
        for record in load_planned(tmp_path / "all")[1]:
            lost = record["loss"]["label"] == "el"
            found = findings.load_findings(tmp_path / "all", record["run_id"])
            assert ("representation" in found) is not lost and {"margins", "energies"} <= set(found)

    def test_is_asked_again(self, stubborn, monkeypatch, tmp_path):
        """Oracle: the same comparison where nothing fails. Break: a failure for ever, or runs
        that are trained again for it."""
        asked = dict(losses=[("ce", "cross_entropy"), ("el", "encouraging")], seeds=range(3))
        again = comparison(tmp_path, analyses=self.ASKED, **asked)
        run(again)
        stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*.json")}
        monkeypatch.setattr(findings, "analyse", stubborn)
        summary = run(again)
        entry = summary["analyses"]["representation"]
        assert "failed" not in entry and entry["runs"] == {"ce": 3, "el": 3} and not entry["flags"]
        assert {p: p.stat().st_mtime_ns for p in stamps} == stamps

    def test_on_every_run_still_has_its_place_in_the_report(self, monkeypatch, tmp_path):
        """Break: a report that cannot be drawn of a request without a single value."""

        def fails(subject, asked):
            raise InputError(f"{asked.name}: no <layer>")

        monkeypatch.setattr(findings, "analyse", fails)
        summary = run(comparison(tmp_path, analyses=self.ASKED[:2], seeds=range(3)))
        for name in ("margins", "representation"):
            entry = summary["analyses"][name]
            assert entry["values"] == {} and set(entry["failed"]) == set(entry["runs"])
        page = write_report(tmp_path).read_text(encoding="utf-8")
        assert "not measured: no &lt;layer&gt;" in page


def test_a_folder_is_read_once_to_be_summed_up(monkeypatch, tmp_path):
    """Oracle: a count of the files that are opened. Break: findings read anew for the values, the
    claims and the report."""
    run(comparison(tmp_path, seeds=range(3), analyses=ASKED[:2]))
    honest, opened = records.read_json, []

    def counted(path, remedy):
        opened.append(path)
        return honest(path, remedy)

    monkeypatch.setattr(records, "read_json", counted)
    files = sorted((tmp_path / "findings").iterdir())
    for read in (summarize_folder, read_folder):
        opened.clear()
        read(tmp_path)
        assert sorted(path for path in opened if path.parent.name == "findings") == files
    folder, summary = read_folder(tmp_path), summarize_folder(tmp_path)
    assert read_folder(tmp_path, summary).summary is summary
    assert folder.summary["analyses"] == summary["analyses"]
    some = folder.records[0]["run_id"]
    assert folder.findings[some] == findings.load_findings(tmp_path, some)


def test_the_pages_pictures_are_files_too(tmp_path):
    """Oracle: the pictures of the page, counted. Break: one that is on the page alone, or analyses
    of one name whose files overwrite each other."""
    asked = [request("margins"), request("ood(far)"), request("ood(near)")]
    by_name = {"far": blobs(20, 5), "near": blobs(20, 6)}.__getitem__
    run(comparison(tmp_path, seeds=[0], analyses=asked, data_by_name=by_name))
    page = write_report(tmp_path, figures=True)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = {name.removesuffix(".png") for name in names if name.endswith(".png")}
    assert len(stems) == page.read_text().count('<div class="paper wide">') >= 5
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg")}
    assert any(stem.startswith("analysis-ood-2") for stem in stems)
    assert any(stem.startswith("analysis-ood-3") for stem in stems)


def test_models_that_learn_nothing_are_told(tmp_path):
    """Oracle: a rate of nothing, so that every model answers one class; one that learns beside it.
    Break: "no worthwhile difference" between models that learned nothing, without a word."""
    still = make_task(
        model=lambda: OneAnswer(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-12), epochs=1
    )
    run(comparison(tmp_path / "still", task=still))
    run(comparison(tmp_path / "moving"))
    still, moving = (
        [n.text for n in notices(read_folder(tmp_path / name)) if n.kind == "nothing learned"]
        for name in ("still", "moving")
    )
    assert len(still) == 1 and still[0].startswith("ce, el, mix: every model answers one")
    assert moving == []


class OneAnswer(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        nn.init.zeros_(self.weight)
        self.bias.data = torch.tensor([1.0, 0.0, 0.0])

"""``losslab analyse``, ``compare --analyse`` and ``reproduce`` of a comparison, as a person meets
them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from losslab.experiment.tasks import TaskOptions, build_task

TWO = ["--loss", "cross_entropy", "--loss", "encouraging(log_end=1)", "--seeds", "3"]
QUICK = ["--task", "digits", "--epochs", "3", "--quiet"]


@pytest.fixture
def compared(command, tmp_path):
    """A folder of finished runs with their models."""
    status, _, err = command("compare", *QUICK, *TWO, "--keep-models", "--out", "mine")
    assert status == 0, err
    return tmp_path / "mine"


def test_compare_and_analyse_say_the_same(command, compared, tmp_path):
    """Oracle: the other way to ask. Break: an analysis of another epoch, loss or data."""
    asked = ["--analyse", "margins", "--analyse", "calibration"]
    status, out, err = command("compare", *QUICK, *TWO, *asked, "--out", "other", "--json")
    assert status == 0, err
    status, later, err = command("analyse", compared, *asked, "--json")
    assert status == 0, err
    assert json.loads(later) == json.loads(out)["analyses"]
    status, text, _ = command("analyse", compared, *asked)
    assert status == 0 and "margins" in text and "ECE" in text
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "What the losses did to the models" in page


def test_one_run_of_a_folder(command, compared):
    record = sorted((compared / "runs").glob("*.json"))[0].stem
    status, out, err = command("analyse", compared, "-a", "margins", "--run", record[:9], "--json")
    assert status == 0, err
    assert sum(json.loads(out)["margins"]["runs"].values()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-a", "margin"], "Unknown analysis 'margin'. Did you mean 'margins'"),
        (["-a", "robustness(epsilons=[-1])"], "robustness: Expected every one of epsilons"),
        (["--task", "digits"], "--task has no meaning here"),
        (["--run", "zzz"], "no finished run begins with 'zzz'"),
        (["--run", ""], "Expected the beginning of a run_id, but got an empty text"),
    ],
)
def test_mistakes_with_a_folder(command, compared, arguments, message):
    """Oracle: the message, and that nothing was measured. Break: all runs analysed where the name
    of one came empty."""
    status, _, err = command("analyse", compared, *arguments)
    assert status == 2 and message in err and "Traceback" not in err
    assert not (compared / "findings").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("ood(fashion-mnist)", "fashion-mnist is read from its four idx files"),
        ("ood(nosuchtask)", "task 'nosuchtask': no such task, file or folder"),
        ("dynamics", "train it by losslab compare --analyse dynamics"),
        ("representation(layer=nosuch)", "Expected the output layer to be one of"),
    ],
)
def test_an_analysis_that_fails_leaves_the_others_alone(
    command, compared, tmp_path, asked, message
):
    """Oracle: the same command without it. Break: values that are measured but not shown or
    stored, a failure that is told of nowhere, or an exit status of 0."""
    status, alone, err = command("analyse", compared, "-a", "margins", "-a", "energies", "--json")
    assert status == 0, err
    names = ["-a", "margins", "-a", asked, "-a", "energies"]
    status, out, err = command("analyse", compared, *names, "--json")
    assert status == 3 and "Traceback" not in err
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (
        len(told) == 1
        and " not measured: " in told[0]
        and message in told[0]
        and told[0].endswith("(6 of 6 runs)")
    )
    found = json.loads(out)
    failed = found.pop(next(name for name in found if name.startswith(asked.partition("(")[0])))
    assert found == json.loads(alone)
    assert failed["values"] == {} and sum(map(len, failed["failed"].values())) == 6
    status, out, _ = command("analyse", compared, *names)
    assert status == 3 and "warning: " in out and "not measured: " in out and "logits · mean" in out
    assert "not measured" in (compared / "report.html").read_text(encoding="utf-8")


def test_a_fault_in_one_analysis_hides_nothing_that_was_found(command, compared, monkeypatch):
    """Break: a traceback in place of what the analyses before it found."""
    from losslab.experiment import findings

    honest = findings.analyse

    def faulty(subject, asked):
        if asked.name == "energies":
            raise RuntimeError("a bug")
        return honest(subject, asked)

    monkeypatch.setattr(findings, "analyse", faulty)
    with pytest.raises(RuntimeError, match="a bug"):
        command("analyse", compared, "-a", "margins", "-a", "energies")
    assert "What the losses did" in (compared / "report.html").read_text(encoding="utf-8")


def test_models_that_were_not_kept(command, tmp_path):
    """Break: a traceback, or numbers of a model that was never trained."""
    command("compare", *QUICK, *TWO, "--out", "bare")
    status, _, err = command("analyse", tmp_path / "bare", "-a", "margins")
    assert status == 2 and "repeat its command with --keep-models" in err


def test_data_that_have_changed(command, tmp_path):
    """Break: a model measured on data it is not of."""
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=80)
    frame = pd.DataFrame({"x": kind + rng.normal(0, 0.5, 80), "kind": kind})
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = ["--task", "t.csv", "--target", "kind", "--epochs", "2", "--quiet", "--keep-models"]
    assert command("compare", *table, *TWO, "--out", "mine")[0] == 0
    assert command("analyse", "mine", "-a", "margins")[0] == 0
    frame.assign(x=frame["x"].to_numpy()[::-1]).to_csv(tmp_path / "t.csv", index=False)
    status, _, err = command("analyse", "mine", "-a", "energies")
    assert status == 2 and "Expected the data that mine was made from" in err


def test_a_model_of_ones_own(command, tmp_path):
    """Oracle: the run that the weights are of. Break: weights of one model in another."""
    task = build_task("digits", TaskOptions())
    torch.manual_seed(0)
    model = task.model()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    asked = ["-a", "margins", "-a", "ood", "-a", "robustness(epsilons=[0.1], box=none, steps=3)"]
    status, out, err = command("analyse", "w.pt", "--task", "digits", *asked, "--json")
    assert status == 0, err
    inputs, target = task.test.tensors
    model.eval()
    with torch.no_grad():
        z = model(inputs)
    others = z.clone()
    others[torch.arange(len(z)), target] = -torch.inf
    margin = (z[torch.arange(len(z)), target] - others.amax(1)).double().mean().item()
    assert json.loads(out)["margins"]["values"]["logits.mean"] == pytest.approx(margin, rel=1e-5)
    status, text, err = command("analyse", "w.pt", "--task", "digits", *asked, "--out", "found")
    assert status == 0, err
    assert (tmp_path / "found" / "report.html").exists() and "margins" in text


@pytest.mark.parametrize("asked", ["dynamics", "ood(nosuchtask)", "representation(layer=nosuch)"])
def test_an_analysis_of_weights_that_fails_leaves_the_others_alone(command, tmp_path, asked):
    """Oracle: the same command without it. Break: findings that are lost, or no word of it."""
    torch.manual_seed(0)
    torch.save(build_task("digits", TaskOptions()).model().state_dict(), tmp_path / "w.pt")
    given = ["w.pt", "--task", "digits", "--json"]
    _, alone, _ = command("analyse", *given, "-a", "margins")
    status, out, err = command("analyse", *given, "-a", asked, "-a", "margins", "--out", "found")
    assert status == 3 and "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("error: ")]
    found = json.loads(out)
    (failed,) = (found.pop(name) for name in list(found) if name != "margins")
    assert found == json.loads(alone)
    assert failed["values"] == {} and failed["flags"][0].startswith("not measured: ")
    assert "not measured" in (tmp_path / "found" / "report.html").read_text(encoding="utf-8")
    status, out, _ = command("analyse", *given[:3], "-a", asked, "-a", "margins")
    assert status == 3 and "warning: not measured: " in out and "logits · mean" in out


def test_findings_of_weights_are_json(command, tmp_path):
    """Oracle: a reader that knows no NaN, and a class that never occurs. Break: a row of NaN."""
    code = """
from losslab.experiment.tasks import TaskOptions, build_task
from dataclasses import replace
from torch.utils.data import TensorDataset

def task():
    whole = build_task("digits", TaskOptions())
    x, y = whole.test.tensors
    return replace(whole, test=TensorDataset(x[y != 3], y[y != 3]))
"""
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    torch.save(build_task("digits", TaskOptions()).model().state_dict(), tmp_path / "w.pt")
    status, out, err = command("analyse", "w.pt", "--task", "mine.py", "-a", "energies", "--json")
    assert status == 0, err

    def refuse(constant):
        raise AssertionError(constant)

    (found,) = json.loads(out, parse_constant=refuse).values()
    assert found["details"]["counts"][3] == 0 and set(found["details"]["table"][3]) == {None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.pt"], "there is no nothing.pt"),
        (["w.pt"], "name its data and model by --task"),
        (["w.pt", "--task", "digits", "--model", "linear"], "the weights of another model"),
        (["w.pt", "--task", "digits", "--run", "a"], "--run has no meaning here"),
        (["w.pt", "--task", "digit"], "Did you mean 'digits'"),
    ],
)
def test_mistakes_with_weights(command, tmp_path, arguments, message):
    torch.save(build_task("digits", TaskOptions()).model().state_dict(), tmp_path / "w.pt")
    status, _, err = command("analyse", *arguments)
    assert status == 2 and message in err and "Traceback" not in err


RECIPE = """\
name = "mine"
title = "A small one"
source = "Nobody 2026, table 1"
seeds = [0, 1, 2]
analyses = ["margins"]
task = { name = "digits", epochs = 3 }

[losses]
"CE" = "cross_entropy"
"EL" = "encouraging(log_end=1)"

[[claims]]
text = "EL has <larger> margins"
loss = "EL"
value = "margins/logits.median"
expected = "larger"
published = { "CE" = 15, "EL" = 50 }
"""


def test_reproduce_a_comparison(command, tmp_path):
    """Oracle: the summary. Break: a claim that is not told of, or a mark that is not the
    summary's."""
    (tmp_path / "mine.toml").write_text(RECIPE, encoding="utf-8")
    status, out, err = command("reproduce", "mine.toml", "--quiet", "--set", "task.epochs=4")
    assert status == 0, err
    folder = tmp_path / "losslab-runs" / "mine"
    claim = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["claims"][0]
    assert f"{claim['mark']}: EL has <larger> margins" in out
    assert "paper: CE 15, EL 50" in out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "EL has &lt;larger&gt; margins" in page and "Nobody 2026, table 1" in page
    again = command("report", folder)
    assert again[0] == 0 and claim["mark"] in again[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.toml", "--size", "full"], "has no sizes"),
        (["digits-study"], "has no published figures"),
        (["ba-t4", "--size", "full"], "--size is for recipes of one task"),
        (["zh-t4", "--size", "ful"], "Did you mean 'full'"),
        (["zh-t4"], "mnist is read from its four idx files"),
        (["zh-t40"], "no recipe 'zh-t40'"),
        (["mine.toml", "--set", "task.epoch=4"], "Did you mean 'epochs'"),
        (["mine.toml", "--set", "task.name=digts"], "mine.toml with --set task.name: task 'digts'"),
    ],
)
def test_mistakes_with_recipes(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.delenv("LOSSLAB_DATA", raising=False)
    (tmp_path / "mine.toml").write_text(RECIPE, encoding="utf-8")
    status, _, err = command("reproduce", *arguments)
    assert status == 2 and message in err and "Traceback" not in err


def test_other_data_are_looked_for_before_training(command, tmp_path):
    """Break: a mistake that shows only after the first run."""
    status, _, err = command("compare", *QUICK, *TWO, "-a", "ood(nonexist)", "--out", "mine")
    assert status == 2 and "task 'nonexist'" in err
    assert not (tmp_path / "mine").exists()


def test_robustness_needs_no_box_of_standardised_inputs(command):
    """Oracle: digits' inputs, which are standardised. Break: the box of images for all."""
    asked = "robustness(epsilons=[0.1], epsilons_l2=[0.5], steps=2, examples=30)"
    status, out, err = command("compare", *QUICK, *TWO, "-a", asked, "--out", "mine", "--json")
    assert status == 0, err
    (found,) = json.loads(out)["analyses"].values()
    assert 0 <= found["values"]["worst.linf.0.1"]["table"]["cross_entropy"]["mean"] <= 1


def test_options_that_cannot_be_are_told_before_training(command, tmp_path):
    """Break: a comparison that trains and then fails; a failure without an exit status."""
    for asked, message in (
        ("robustness(epsilons=[-1])", "every one of epsilons to be a finite number above 0"),
        ("curvature(loss=nosuch)", "Unknown loss 'nosuch'"),
        ("gradients(split=nosuch)", "split to be one of train, validation, test"),
        ("representation(layer=nosuch)", "the output layer to be one of"),
    ):
        status, _, err = command("compare", *QUICK, *TWO, "-a", asked, "--out", "mine")
        assert status == 2 and message in err and "Traceback" not in err
        assert not (tmp_path / "mine").exists()


def test_compare_tells_of_an_analysis_that_failed(command, monkeypatch, tmp_path):
    """Oracle: the summary. Break: runs or other analyses lost for it, or an exit status of 0."""
    from losslab.errors import InputError
    from losslab.experiment import findings

    honest = findings.analyse

    def fails(subject, asked):
        if asked.name == "energies":
            raise InputError("energies: none today")
        return honest(subject, asked)

    monkeypatch.setattr(findings, "analyse", fails)
    loud = [option for option in QUICK if option != "--quiet"]
    status, _, err = command(
        "compare", *loud, *TWO, "-a", "margins", "-a", "energies", "--out", "mine"
    )
    assert status == 3 and err.count("warning: cross_entropy, seed 0: energies: none today") == 1
    assert err.splitlines()[-1] == "error: energies not measured: none today (6 of 6 runs)"
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["analyses"]["margins"]["runs"].values()) == {3}
    assert summary["missing"] == summary["diverged"] == {}

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
        (["-a", "ood(fashion-mnist)"], "fashion-mnist is read from its four idx files"),
        (["-a", "dynamics"], "train it by losslab compare --analyse dynamics"),
        (["-a", "robustness(epsilons=[-1])"], "robustness: "),
        (["--task", "digits"], "--task has no meaning here"),
        (["--run", "zzz"], "no finished run begins with 'zzz'"),
    ],
)
def test_mistakes_with_a_folder(command, compared, arguments, message):
    status, _, err = command("analyse", compared, *arguments)
    assert status == 2 and message in err and "Traceback" not in err


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

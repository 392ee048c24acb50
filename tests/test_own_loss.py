"""A loss from the user's own file, in comparisons, reports, analyses and cards."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F

import losslab
from losslab.errors import InputError
from losslab.experiment import Comparison, make_plan, own_loss, records
from losslab.experiment.store import Store
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.losses.modules import OddsLoss
from losslab.report.charts import shapes

FILE = """
import torch
import torch.nn.functional as F

def late(a):
    return F.softplus(3.0 - a)

def through_p(a):
    return -torch.log(torch.sigmoid(a)) * torch.sigmoid(-a)

def total(a):
    return F.softplus(-a)[:1]

def breaks(a):
    return a.no_such()

def of_both(logits, target):
    return F.cross_entropy(logits, target)

class Smooth(torch.nn.Module):
    def __init__(self, label_smoothing=0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits, target):
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

def bare():
    return torch.nn.CrossEntropyLoss()

def nothing():
    pass

def of_three(a, b, c):
    return a

NUMBER = 3

def detached(a):
    return F.softplus(-a.detach())

def rows(logits, target):
    return F.cross_entropy(logits, target, reduction="none")

class Needs(torch.nn.Module):
    def __init__(self, k):
        super().__init__()

made = torch.nn.CrossEntropyLoss()
upper = str.upper

def learned():
    return torch.nn.Linear(2, 2)

def shifted(a, shift):
    return F.softplus(shift - a)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    return value.detach(), *torch.autograd.grad(1.7 * value, logits)


@pytest.mark.parametrize(
    ("name", "options", "same"),
    [
        ("late", {}, OddsLoss(lambda a: F.softplus(3.0 - a))),
        (
            "late",
            {"label_smoothing": 0.2},
            OddsLoss(lambda a: F.softplus(3.0 - a), label_smoothing=0.2),
        ),
        ("of_both", {}, torch.nn.CrossEntropyLoss()),
        ("Smooth", {}, torch.nn.CrossEntropyLoss()),
        ("Smooth", {"label_smoothing": 0.2}, torch.nn.CrossEntropyLoss(label_smoothing=0.2)),
        ("bare", {}, torch.nn.CrossEntropyLoss()),
    ],
)
def test_what_a_file_may_hold(file, name, options, same):
    """Oracle: the same loss made here, in value and gradient. Break: an option that is dropped."""
    torch.manual_seed(0)
    logits, target = torch.randn(7, 4), torch.randint(4, (7,))
    made = own_loss.own_loss(f"mine.py:{name}", **options)
    for ours, theirs in zip(
        gradient(made(), logits, target), gradient(same, logits, target), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert made() is not made()


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("mine.py", {}, "which loss of this file? Write mine.py:NAME"),
        ("none.py:late", {}, "none.py: no such file. Expected a Python file where late is"),
        ("mine.py:lat", {}, "there is none. Did you mean 'late'?"),
        ("mine.py:NUMBER", {}, "a class of loss modules; it is int"),
        ("mine.py:nothing", {}, "expected nothing() to return a loss module"),
        ("mine.py:of_three", {}, "a class of loss modules; it needs 3 arguments"),
        ("mine.py:through_p", {}, "the slope of through_p is NaN at the log-odds -10000"),
        ("mine.py:total", {}, "total must return a tensor with one number for each"),
        ("mine.py:detached", {}, "no gradient comes through detached"),
        ("mine.py:rows", {}, "rows must return one number for a batch"),
        ("mine.py:Needs", {}, "expected the class Needs to need no arguments; it needs 1"),
        ("mine.py:made", {}, "it is a module made already"),
        ("mine.py:learned", {}, "learned has parameters to be learned"),
        ("mine.py:Smoth", {}, "Did you mean 'Smooth'? It defines late, through_p,"),
        ("mine.py:shifted", {}, "needs two arguments, so it was called with logits and target"),
        ("torn.py:late", {}, "torn.py, line 1: "),
        ("mine.py:breaks", {}, "mine.py, line 15: AttributeError"),
        ("mine.py:of_both", {"label_smoothing": 0.1}, "of_both takes no label_smoothing"),
        ("mine.py:bare", {"label_smoothing": 0.1}, "label_smoothing=0.1 cannot reach it"),
    ],
)
def test_mistakes(file, place, options, message):
    """Oracle: one mistake each, told in one line."""
    file.with_name("torn.py").write_text("def late(a:")
    with pytest.raises(InputError) as caught:
        own_loss.own_loss(place, **options)
    told = str(caught.value)
    assert message in told and "\n" not in told and told.count("torn.py") < 2


def test_what_reads_like_a_file():
    """Oracle: by eye. Break: a spec taken for a file, or the other way round."""
    for text in ("mine.py:late", "a/b c/mine.py:late", " mine.py ", "../mine.py:"):
        assert own_loss.is_own_loss(text), text
    for text in ("focal", "ce:focal", "mixed(focus=0.3)", "label:mine.py:late", "py:focal"):
        assert not own_loss.is_own_loss(text), text


@pytest.mark.parametrize(
    "text",
    ["mine:late", "notes.txt:late", "mine.py::late", "mine.py:late + focal", "mine.py:late(k=2)"],
)
def test_what_nearly_reads_like_a_file(command, file, text):
    """Oracle: by eye. Break: a word on specs alone, to a person who meant a file."""
    file.with_name("notes.txt").write_text(FILE)
    for asked in (
        ["explain", text],
        ["compare", "--task", "digits", "--loss", "focal", "--loss", text],
    ):
        status, _, err = command(*asked)
        assert status == 2 and "[LABEL:]FILE.py:NAME for one of your own" in err, err


def test_a_label_named_as_a_file_is_a_label(command, file):
    """Oracle: the card's heading. Break: every label of a file's name taken for a near miss."""
    status, out, err = command("explain", "--no-figure", "mine: focal", "own:mine.py:late")
    assert status == 0, err
    headings = [line for line in out.splitlines() if line and line[0] != " "]
    assert headings == ["mine: focal", "own: mine.py:late"]
    status, _, err = command("explain", "--no-figure", "own:focal", "own:mine.py:late")
    assert status == 2 and "Two of own, own have one name" in err


def test_an_edited_file_makes_new_runs(file):
    """Oracle: run_ids. Break: an identity without the file's content, or with the path to it."""

    def runs(place="mine.py:late"):
        losses = [("ce", "cross_entropy"), ("mine", own_loss.own_loss(place))]
        comparison = Comparison(build_task("digits", TaskOptions()), losses, "runs", [0])
        return list(make_plan(comparison).runs)

    before, same = runs(), runs(str(file) + ":late")
    assert before == same
    file.write_text(FILE.replace("3.0", "2.0"))
    after = runs()
    assert after[0] == before[0] and after[1] != before[1]


def test_two_unnamed_losses_in_sums_are_two_losses():
    """Oracle: run_ids of two sums whose own parts differ. Break: both named ``custom + …``."""
    ce = losslab.loss("cross_entropy")
    parts = [OddsLoss(torch.sigmoid), OddsLoss(lambda a: torch.relu(1 - a))]
    losses = [(f"own {n}", lambda part=part: part + ce) for n, part in enumerate(parts)]
    plan = make_plan(Comparison(build_task("digits", TaskOptions()), losses, "runs", [0]))
    assert len(plan.runs) == 2


def test_compared_drawn_and_analysed(command, file, tmp_path):
    """From the command to the report and a later analysis; with two workers as with one.

    Oracle: the runs of the same ψ handed over in Python.
    """
    asked = ["compare", "--task", "digits", "--epochs", 2, "--seeds", 2, "--keep-models"]
    asked += ["--loss", "cross_entropy", "--loss", "mine.py:late", "--loss", "s:mine.py:Smooth"]
    status, out, err = command(*asked, "--out", "one", "--quiet")
    assert status == 0, err
    assert "late" in out and "s " in out
    assert command(*asked, "--out", "two", "--quiet", "--workers", 2)[0] == 0
    runs = {
        folder: {r["run_id"]: r["curves"] for r in records.load_all(tmp_path / folder)}
        for folder in ("one", "two")
    }
    assert runs["one"].keys() == runs["two"].keys() and len(runs["one"]) == 6
    comparison = records.load_comparison(tmp_path / "one")
    specs = {arm["label"]: arm["spec"] for arm in comparison["losses"]}
    curves, failed = shapes(specs, own_loss.places_of(comparison))
    assert failed == ["s"]  # no function of p alone
    a = torch.logit(torch.from_numpy(curves["late"][0]))
    torch.testing.assert_close(torch.from_numpy(curves["late"][1]), F.softplus(3.0 - a))
    analyse = ["analyse", "one", "--analyse", "gradients"]
    assert command(*analyse)[0] == 0
    file.write_text(FILE + "# edited\n")
    status, _, err = command("analyse", "one", "--analyse", "margins")
    assert status == 2 and "mine.py:late as it was" in err
    assert shapes(specs, own_loss.places_of(comparison))[1] == ["late", "s"]


def test_explained(command, file):
    """Oracle: the gradient volume of the card by the trapezoid rule."""
    status, out, _ = command("explain", "mine.py:late", "cross_entropy", "--json", "--no-figure")
    assert status == 0
    mine, theirs = json.loads(out)
    assert mine["spec"] == "mine.py:late" and theirs["spec"] == "cross_entropy"
    a = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    volume = torch.trapezoid(torch.sigmoid(3 - a) * torch.sigmoid(a) * torch.sigmoid(-a), a)
    assert mine["volume"] == pytest.approx(float(volume), rel=1e-4)
    status, _, err = command("explain", "mine.py:of_both")
    assert status == 2 and "mine.py:of_both: expected a ψ(a) or a losslab module" in err


def test_the_example_in_the_documentation_runs(tmp_path, monkeypatch):
    """Oracle: the indented code of the module's docstring, run as a file."""
    code = own_loss.__doc__.split("my_loss.py:late\n")[1].split("\nThe file's")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_loss.py").write_text(textwrap.dedent(code))
    loss = own_loss.own_loss("my_loss.py:late")()
    expected = F.softplus(torch.tensor(3.0))
    torch.testing.assert_close(loss(torch.zeros(1, 2), torch.tensor([0])), expected)


COMPARISON = """
name = "own"
title = "With a loss of one's own"
seeds = [0, 1]
analyses = ["gradients"]

[task]
name = "digits"
epochs = 2

[losses]
CE = "cross_entropy"
Mine = "mine.py:Smooth"

[[claims]]
text = "It improves CE"
loss = "Mine"
value = "accuracy"
expected = "larger"
"""


@pytest.mark.parametrize("executor", ["here", "processes"])
def test_in_a_study(command, file, tmp_path, executor):
    """Oracle: a ψ that equals the file's, under a spec. Breaks: its rates mixed up, another loss
    in the worker, an edited file taken for the same runs."""
    file.write_text(FILE.replace("F.softplus(3.0 - a)", "torch.sigmoid(-a)"))  # 1 − p
    asked = ["study", "digits-study", "--out", "runs", "--executor", executor, "--quiet"]
    for change in (
        'data.sets=["iris", "wine"]',
        "training.epochs=2",
        "models.hidden=",
        'losses."F=0-0.5"=',
        "losses.encouraging=",
        "losses.Mine=mine.py:late",
    ):
        asked += ["--set", change]
    status, _, err = command(*asked)
    assert status == 0, err
    runs = {(r["dataset"], r["loss"], r["lr"], r["seed"]): r for r in Store("runs").runs()}
    assert len(runs) == 2 * 3 * 2 * 2
    for (dataset, loss, rate, seed), run in runs.items():
        if loss == "Mine":
            same, other = (runs[dataset, label, rate, seed] for label in ("EL", "CE"))
            assert run["last.test.nll"] == pytest.approx(same["last.test.nll"], rel=1e-5)
            assert run["last.test.nll"] != pytest.approx(other["last.test.nll"], rel=1e-3)
        assert run["spec"].startswith("custom(mine.py:late, ") == (loss == "Mine")
    file.write_text(FILE)
    assert command(*asked)[0] == 0
    assert len(list(Store("runs").runs())) == 32  # the other losses' are kept


def test_in_a_recipe(command, file, tmp_path):
    """Oracle: the same comparison by options, run by run. Break: a file looked for elsewhere than
    beside the recipe, or, of --set, elsewhere than here."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mine.py").write_text(FILE)
    (tmp_path / "in" / "own.toml").write_text(COMPARISON)
    status, _, err = command("reproduce", "in/own.toml", "--out", "one", "--quiet")
    assert status == 0, err
    table = 'losses={CE = "cross_entropy", Mine = "in/mine.py:late"}'
    other = ["--set", table, "--set", "losses.Both=mine.py:of_both"]
    assert command("reproduce", "in/own.toml", "--out", "two", "--quiet", *other)[0] == 0
    asked = ["compare", "--task", "digits", "--epochs", 2, "--seeds", 2]
    asked += ["--quiet", "--out", "three"]
    for loss in ("CE:cross_entropy", "Mine:mine.py:Smooth", "L:mine.py:late", "B:mine.py:of_both"):
        asked += ["--loss", loss]
    assert command(*asked)[0] == 0
    one, two, three = (
        {r["run_id"] for r in records.load_all(tmp_path / folder)}
        for folder in ("one", "two", "three")
    )
    assert one | two == three and len(one) == 4 and len(two) == 6
    assert len(list((tmp_path / "one" / "findings").iterdir())) == 4
    (tmp_path / "in" / "own.toml").write_text(COMPARISON.replace("Smooth", "Smoth"))
    status, _, err = command("reproduce", "in/own.toml", "--out", "one")
    assert status == 2 and "in/own.toml, line 13: in/mine.py: expected Smoth to be" in err, err

"""The command line as a person meets it: what it prints, what it refuses, what it leaves."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PROJECT = Path(__file__).parent.parent
TWO_LOSSES = ["--loss", "cross_entropy", "--loss", "encouraging"]


@pytest.fixture
def losslab(command):
    """`command`, under the name that a person types."""
    return command


@pytest.fixture
def table(tmp_path):
    """Two informative numeric columns, one categorical, three classes: quickly learned."""
    rng = np.random.default_rng(0)
    species = rng.integers(3, size=240)
    frame = pd.DataFrame(
        {
            "length": species + rng.normal(0, 0.3, 240),
            "width": -species + rng.normal(0, 0.3, 240),
            "colour": np.where(rng.random(240) < 0.5, "red", "blue"),
            "species": np.array(["a", "b", "c"])[species],
        }
    )
    frame.to_csv(tmp_path / "flowers.csv", index=False)
    return tmp_path / "flowers.csv"


def compare(losslab, table, *more, losses=TWO_LOSSES):
    return losslab(
        "compare", "--task", table, "--target", "species", "--epochs", 2, "--quiet", *losses, *more
    )


def test_help_of_every_verb_has_an_example(losslab):
    """A verb without an example in its help fails."""
    status, out, _ = losslab("--help")
    assert status == 0
    verbs = re.findall(r"^│ (\w+) ", out, re.M)
    assert set(verbs) >= {"compare", "report", "losses", "explain", "tasks"}
    for verb in ("compare", "report", "losses", "explain", "tasks"):
        status, out, _ = losslab(verb, "--help")
        assert status == 0
        assert f"losslab {verb}" in out


def test_losses_lists_the_catalogue(losslab):
    """Oracle: the catalogue. A row that is not shown fails."""
    from losslab import CATALOG

    rows = json.loads(losslab("losses", "--json")[1])
    assert [row["name"] for row in rows] == list(CATALOG)
    out = losslab("losses")[1]
    assert all(name[:20] in out for name in CATALOG)


def test_explain_prints_the_card_and_draws(losslab, tmp_path):
    """Oracle: facts by hand about the mixed loss at F = 0.3 (β = 2.5): V = ½ + 2.5/6."""
    status, out, _ = losslab("explain", "mixed(focus=0.3)", "--out", "curves.png")
    assert status == 0
    assert "peaks  at p = 0.3" in out
    assert "V = 0.9167, 1.833 × that of cross-entropy" in out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (card,) = json.loads(losslab("explain", "expectation", "--no-figure", "--json")[1])
    assert card["bounded"]
    assert not card["convex"]
    assert card["volume"] == pytest.approx(1 / 6, abs=1e-6)


def test_compare_prints_verdicts_and_leaves_a_folder(losslab, table, tmp_path):
    """The main job on a made table: verdicts on stdout, records, summary and page in the folder."""
    status, out, err = compare(losslab, table, "--seeds", 3, "--out", "runs")
    assert (status, err) == (0, "")
    assert "encouraging" in out
    assert "baseline" in out
    assert "Report: runs/report.html" in out
    assert "coarse: One test example is" in out  # more than the margin of half a point
    assert len(list((tmp_path / "runs" / "runs").glob("*.json"))) == 6
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert summary["command"].startswith("losslab compare --task")
    assert summary["seeds"] == [0, 1, 2]
    assert "<html" in (tmp_path / "runs" / "report.html").read_text()


def test_same_command_resumes_and_report_redraws(losslab, table, tmp_path):
    """Nothing is trained twice (file times), and report rebuilds the page byte for byte."""
    compare(losslab, table, "--seeds", 2, "--out", "runs")
    records = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "runs").glob("*.json")}
    page = (tmp_path / "runs" / "report.html").read_bytes()
    assert losslab("report", "runs")[0] == 0
    assert (tmp_path / "runs" / "report.html").read_bytes() == page
    compare(losslab, table, "--seeds", 3, "--out", "runs")
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / "runs").glob("*.json")}
    assert len(after) == 6
    assert all(after[p] == t for p, t in records.items())


def test_default_folder_is_the_same_for_the_same_task(losslab, table, tmp_path):
    """More losses join the runs already there; another setting goes elsewhere."""
    compare(losslab, table, "--seeds", 1)
    compare(losslab, table, "--seeds", 1, "--loss", "focal")
    compare(losslab, table, "--seeds", 1, "--lr", 0.002)
    folders = sorted((tmp_path / "losslab-runs").iterdir(), key=lambda p: p.stat().st_mtime)
    assert [len(list((f / "runs").glob("*.json"))) for f in folders] == [3, 2]
    err = compare(losslab, table, "--seeds", 1)[2]  # fewer losses than the folder holds
    assert "also holds runs of focal that are in neither" in err
    named = re.search(r"the report before this one had more runs; (.*) brings it back", err)[1]
    assert shlex.split(named)[-2:] == ["--loss", "focal"]
    assert "brings it back" not in compare(losslab, table, "--seeds", 1)[2]  # the same once more


def test_unequal_classes_point_to_balanced_accuracy(losslab, tmp_path):
    """Oracle: the counts in the note. Equal classes, and another metric, are not told of it."""
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1], [180, 40])
    frame = pd.DataFrame({"size": kinds + rng.normal(0, 0.3, 220), "kind": kinds})
    frame.to_csv(tmp_path / "kinds.csv", index=False)
    asked = ["compare", "--task", tmp_path / "kinds.csv", "--target", "kind", "--epochs", 1]
    asked += [*TWO_LOSSES, "--seeds", 1]
    notes = losslab(*asked)[2]
    fewest, most = re.search(r"unequal, (\d+) to (\d+) training examples", notes).groups()
    assert int(most) > 4 * int(fewest) and 20 < int(fewest) < 40
    assert "unequal" not in losslab(*asked, "--metric", "balanced_accuracy")[2]
    assert "unequal" not in losslab(*asked, "--quiet")[2]
    frame.groupby("kind").head(40).to_csv(tmp_path / "kinds.csv", index=False)
    assert "unequal" not in losslab(*asked)[2]


def test_json_mode_prints_only_json(losslab, table):
    """Scripts read stdout: it must parse whole, with nothing on stderr."""
    status, out, err = compare(losslab, table, "--seeds", 3, "--json", "--matched-gradient")
    assert (status, err) == (0, "")
    summary = json.loads(out)
    verdict = summary["comparisons"]["last"]["accuracy"]["encouraging"]["verdict"]
    assert verdict in ("better", "worse", "no worthwhile difference", "cannot tell")
    assert any("matched" in label for label in summary["table"]["last"])


def test_two_seeds_refuse_a_verdict(losslab, table):
    """Oracle: the rule, three seeds at least."""
    summary = json.loads(compare(losslab, table, "--seeds", 2, "--json")[1])
    assert summary["comparisons"]["last"]["accuracy"]["encouraging"]["verdict"] == "refused"


def test_diverged_runs_exit_with_3(losslab, table):
    """A learning rate of 1e30 diverges: kept, named on stderr and in the table, status 3."""
    status, out, err = losslab("compare", "--task", table, "--target", "species", "--epochs", 2,
                               "--lr", "1e30", "--seeds", 3, *TWO_LOSSES)  # fmt: skip
    assert status == 3
    assert "diverged" in err
    assert "diverged" in out
    assert "refused" in out  # nothing is equal about two losses that both come to nothing


BAD = [
    (["--loss", "cross_entropy", "--loss", "encouragin"], "Did you mean 'encouraging'?"),
    (["--loss", "cross_entropy", "--loss", "focal(gama=1)"], "Did you mean 'gamma'?"),
    (["--loss", "cross_entropy", "--loss", "focal(gamma=-1)"], r"must be in \[0, ∞\); got -1"),
    (["--loss", "cross_entropy", "--loss", "el"], "'encouraging' or 'expectation'"),
    (["--loss", "cross_entropy", "--loss", "cross_entropy +"], "Cannot read the loss spec"),
    (["--loss", "cross_entropy"], "at least one loss to compare"),
    (["--loss", "cross_entropy", "--loss", "ce"], "give each loss a label of its own"),
    ([*TWO_LOSSES, "--seeds", "many"], "how many seeds"),
    ([*TWO_LOSSES, "--metric", "acuracy"], "Did you mean 'accuracy'?"),
    ([*TWO_LOSSES, "--select", "best"], "selection"),
    ([*TWO_LOSSES, "--margin", "0"], "margin"),
    ([*TWO_LOSSES, "--device", "cuda:77"], "--device cpu"),
    ([*TWO_LOSSES, "--epochs", "0"], "epochs must be a whole number"),
    ([*TWO_LOSSES, "--label-smoothing", "2"], r"in \[0, 1\]; got 2"),
    ([*TWO_LOSSES, "--model", "transformer"], "has no model 'transformer'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_arguments(losslab, table, arguments, message):
    """One line that says what to do, status 2, no traceback, and nothing written."""
    status, out, err = losslab("compare", "--task", table, "--target", "species", *arguments)
    assert status == 2
    assert out == ""
    assert re.search(message, err), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not Path("losslab-runs").exists()


OWN_TASKS = """
import torch
from torch.utils.data import TensorDataset

def make(train, inputs=None):
    inputs = torch.zeros(8, 2) if inputs is None else inputs
    split = TensorDataset(inputs, torch.tensor(train))
    whole = TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
    return dict(name="own", train=split, validation=whole, test=whole, num_classes=3, epochs=1,
                batch_size=4, model=lambda: torch.nn.Linear(2, 3),
                optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))

def too_high():
    return make([0, 3, 2, 1, 0, 1, 2, 0])

def absent():
    return make([0, 1, 0, 1, 0, 1, 1, 0])

def nan():
    inputs = torch.zeros(8, 2)
    inputs[5, 1] = float("nan")
    return make([0, 1, 2, 1, 0, 1, 2, 0], inputs)
"""


def test_bad_tasks(losslab, table, tmp_path):
    """Missing, unknown and damaged data: one line each."""
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.py").write_text("def task():\n    return 1 / 0\n")
    (tmp_path / "own.py").write_text(OWN_TASKS)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    for task, more, message in [
        ("digit", [], "Did you mean 'digits'?"),
        ("nowhere.csv", ["--target", "y"], "nowhere.csv"),
        ("empty.csv", ["--target", "y"], "empty"),
        (table, [], "target"),
        (table, ["--target", "specis"], "Did you mean 'species'?"),
        ("mnist", ["--data-dir", "elsewhere"], "elsewhere"),
        ("mnist", ["--data-dir", "."], "idx1-ubyte.gz"),
        ("broken.py", [], "division by zero"),
        ("missing.py", [], "missing.py"),
        ("own.py:too_high", [], "got 3 at example 1"),
        ("own.py:absent", [], "class 2"),
        ("own.py:nan", [], "1 of 8 examples"),
    ]:
        status, _, err = losslab("compare", "--task", task, *more, *TWO_LOSSES)
        assert status == 2, (task, err)
        assert message in err, (task, err)
        assert err.count("\n") == 1, err


def test_report_of_a_folder_that_is_none(losslab):
    status, _, err = losslab("report", "nowhere")
    assert status == 2
    assert "to be the folder of a comparison" in err


def start(table, out, *, seeds=6, epochs=4):
    """The same comparison in a process of its own."""
    command = [sys.executable, "-m", "losslab", "compare", "--task", str(table), "--target",
               "species", "--epochs", str(epochs), "--seeds", str(seeds), "--out", str(out),
               *TWO_LOSSES]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process):
    """(status, stderr) once it has ended."""
    _, err = process.communicate(timeout=90)
    return process.returncode, err


def results(folder):
    """What every run found, without what a clock says."""
    found = {}
    for path in (folder / "runs").glob("*.json"):
        record = json.loads(path.read_text())
        found[path.name] = {k: record[k] for k in ("curves", "results", "status", "seed")}
    return found


def wait_for_records(folder, count, process):
    deadline = time.monotonic() + 60
    while len(list((folder / "runs").glob("*.json"))) < count:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_interruption_loses_no_finished_run(table, tmp_path, how):
    """Oracle: the uninterrupted comparison. Stopped after two runs and started again, the same
    command ends with the same numbers."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert finish(start(table, straight))[0] == 0
    process = start(table, broken)
    wait_for_records(broken, 2, process)
    os.kill(process.pid, how)
    status, err = finish(process)
    if how == signal.SIGINT:
        assert status == 130
        assert "The same command goes on from there" in err
        assert "Traceback" not in err
    finished = len(results(broken))
    status, err = finish(start(table, broken))
    assert status == 0
    assert f"{finished} already finished" in err
    assert results(broken) == results(straight)


def test_installed_wheel(tmp_path):
    """The wheel alone, not the source tree: page template, stub and marker must be inside."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path,
         PROJECT],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        check=True,
    )
    assert (site / "losslab" / "py.typed").exists()
    assert (site / "losslab" / "losses" / "api.pyi").exists()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def losslab(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "losslab", *arguments],
            env=environment, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip

    where = subprocess.run(
        [sys.executable, "-c", "import losslab; print(losslab.__file__)"],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site))
    done = losslab("compare", "--task", "digits", "--epochs", "2", "--seeds", "3", "--out", "runs",
                   *TWO_LOSSES)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "report.html").stat().st_size > 50_000
    # the tests of this file that need no process of their own, again, with the wheel's code
    again = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", PROJECT / "pyproject.toml", "-p", "no:cacheprovider",
         __file__, "-k", "bad or help or explain or diverged or report"],
        env={**environment, "LOSSLAB_EXPECTED_AT": str(site)}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout
    assert " passed" in again.stdout

"""Studies: every run once whatever happens, the rate chosen on validation, the report."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import losslab
from losslab.cli import main
from losslab.errors import InputError
from losslab.experiment import train
from losslab.experiment.executors import Here, executor_named
from losslab.experiment.recipe import read_recipe
from losslab.experiment.store import Store
from losslab.experiment.study import plan_study, run_study
from losslab.experiment.study_summary import (
    by_rate,
    chosen_run,
    planned_runs,
    scores_of,
    summarize_study,
)
from losslab.report.study_page import write_study_report
from losslab.report.study_table import study_tables

RECIPE = """
name = "small"
title = "A small study"
seeds = [0, 1]

[data]
kind = "sklearn"
sets = ["iris", "wine"]

[models]
linear = { hidden = [] }
hidden = { hidden = [5] }

[training]
epochs = 3
batch_size = 32
optimizer = "sgd"
momentum = 0.9
rates = [0.1, 0.01]

[losses]
CE = "cross_entropy"
mixed = "mixed(focus=phases(0, 0.5))"
focal = "focal"

[statistics]
metric = "accuracy"
baseline = "CE"
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """The folder of a finished study."""
    folder = tmp_path_factory.mktemp("study") / "done"
    run_study(read_recipe(recipe), folder, Here())
    return folder


TIMES = ("seconds", "finished")


def numbers(folder):
    """Everything of the finished runs but the times, by run."""
    runs = {
        r["run_id"]: {k: v for k, v in r.items() if k not in TIMES} for r in Store(folder).runs()
    }
    curves = {run_id: Store(folder).detail(run_id)["curves"] for run_id in runs}
    return runs, curves


def test_every_run_is_made_and_is_the_run_that_train_makes(recipe, done):
    """Oracle: `train`, one run at a time. Break: a rate, loss or seed stored under another's name,
    a selection or split under another's."""
    study = read_recipe(recipe)
    runs = Store(done).runs()
    assert len(runs) == len({r["run_id"] for r in runs}) == 2 * 2 * 3 * 2 * 2
    for run in runs[::5]:
        own = train(
            study.task(run["dataset"], run["model"]),
            losslab.loss(study.losses[run["loss"]]),
            run["seed"],
            lr_scale=run["lr"] / 0.1,
        )
        for selection, result in own.results.items():
            assert run[f"{selection}.epoch"] == result["epoch"]
            for split in ("validation", "test"):
                for metric, value in result[split].items():
                    assert run[f"{selection}.{split}.{metric}"] == pytest.approx(value, abs=1e-4)
        curves = Store(done).detail(run["run_id"])["curves"]
        assert curves["train_loss"] == pytest.approx(own.curves["train_loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["processes", "ray"])
@pytest.mark.filterwarnings("ignore")
def test_executors_give_the_same_numbers(name, recipe, done, tmp_path):
    """Oracle: the study made here, to the last bit. Break: threads or order that show."""
    if name == "ray":
        pytest.importorskip("ray")
    with executor_named(name, workers=2) as executor:
        run_study(read_recipe(recipe), tmp_path, executor)
    assert numbers(tmp_path) == numbers(done)


def test_what_is_finished_is_not_made_again(recipe, done, tmp_path):
    """Break: a second run of the same, or one left out, as a study grows."""
    study = read_recipe(recipe)
    told = []
    run_study(study.changed({"losses.focal": None, "seeds": [1]}), tmp_path, Here())
    run_study(study, tmp_path, Here(), on_progress=told.append)
    assert (told[0].done, told[0].total) == (16, 48) and told[-1].done == 48
    assert sum(len(progress.cell.runs) for progress in told[1:]) == 32
    assert numbers(tmp_path) == numbers(done)
    told.clear()
    run_study(study, tmp_path, Here(), on_progress=told.append)
    assert [(p.done, p.cell) for p in told] == [(48, None)]


def test_parts_share_a_study(recipe, done, tmp_path):
    """Break: a cell that belongs to no part, or to two."""
    study = read_recipe(recipe)
    for k in (2, 1, 3):
        run_study(study, tmp_path, Here(), part=(k, 3))
    assert numbers(tmp_path) == numbers(done)
    assert len(list((tmp_path / "runs").glob("*.jsonl"))) == 3


def command(recipe, folder, *more):
    return [sys.executable, "-m", "losslab", "study", str(recipe), "--out", str(folder), *more]


def test_killed_at_random_instants_it_goes_on_to_the_same_numbers(recipe, done, tmp_path):
    """Oracle: the study that nobody killed. Break: a run lost, doubled or changed by kill -9."""
    dice = random.Random(7)
    for _ in range(6):
        child = subprocess.Popen(
            command(recipe, tmp_path, "--workers", "1", "--quiet"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(dice.uniform(1.5, 9))
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if (tmp_path / "runs").exists():
            found = [run["run_id"] for run in Store(tmp_path).runs()]
            assert len(found) == len(set(found))
    run_study(read_recipe(recipe), tmp_path, Here())
    assert numbers(tmp_path) == numbers(done)


def test_interrupted_it_says_what_is_kept(recipe, tmp_path):
    """Break: a traceback, or a status that says done."""
    child = subprocess.Popen(
        command(recipe, tmp_path, "--executor", "here", "--set", "training.epochs=4000"),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "study.json").exists():
        time.sleep(0.05)
    time.sleep(1.5)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in errors
    begun = r"before any of the 48 runs was finished\. The same command starts them again"
    kept = rf"with \d+ of 48 runs finished; they are kept in {re.escape(str(tmp_path))}\."
    assert re.search(rf"Stopped ({begun}|{kept})", errors), errors


def test_the_rate_is_chosen_on_validation_alone():
    """Oracle: by hand. Break: the test split looked at, ties broken at random, a diverged run."""
    recipe = {"selection": {"epoch": "last", "rate": "accuracy"}}

    def run(lr, accuracy, nll, status="finished"):
        return {
            "lr": lr,
            "status": status,
            "last.validation.accuracy": accuracy,
            "last.validation.nll": nll,
            "last.test.accuracy": 1 - (accuracy or 0),
        }

    def chosen(*runs, by="accuracy"):
        return chosen_run(runs, recipe | {"selection": {"epoch": "last", "rate": by}})["lr"]

    assert chosen(run(1, 0.8, 0.5), run(2, 0.9, 0.9)) == 2
    assert chosen(run(1, 0.9, 0.5), run(2, 0.9, 0.4)) == 2
    assert chosen(run(1, 0.9, 0.4), run(2, 0.9, 0.4)) == 1
    assert chosen(run(1, 0.8, 0.5), run(2, 0.9, 0.9), by="nll") == 1
    assert chosen(run(1, None, None, "diverged"), run(2, 0.1, 9.0)) == 2


def test_scores_are_the_test_results_of_the_chosen_runs(done):
    """Oracle: the store through pandas. Break: axes exchanged, a seed or data set in another's
    place."""
    plan, runs = planned_runs(done)
    scores, used, lacking = scores_of(plan, by_rate(plan, runs, "hidden"), "hidden")
    assert (used, lacking) == (["iris", "wine"], []) and np.shape(scores) == (2, 2, 3)
    frame = Store(done).frame()
    frame = frame[frame.model == "hidden"]
    for d, dataset in enumerate(used):
        for s in (0, 1):
            for m, loss in enumerate(("CE", "mixed", "focal")):
                own = frame[(frame.dataset == dataset) & (frame.seed == s) & (frame.loss == loss)]
                order = [
                    "validation_selected.validation.accuracy",
                    "validation_selected.validation.nll",
                ]
                best = own.sort_values(order, ascending=[False, True]).iloc[0]
                assert scores[d][s][m] == best["validation_selected.test.accuracy"]


def test_a_diverged_run_counts_as_the_commonest_class_and_a_missing_one_leaves_its_set_out(done):
    """Break: a diverged run averaged away, a data set with half of its runs."""
    plan, runs = planned_runs(done)
    broken = []
    for run in runs:
        hit = run["dataset"] == "iris" and run["model"] == "linear" and run["loss"] == "focal"
        broken.append(run | {"status": "diverged"} if hit else run)
    scores, _, _ = scores_of(plan, by_rate(plan, broken, "linear"), "linear")
    chance = next(r["chance"] for r in runs if r["dataset"] == "iris")
    assert [row[2] for row in scores[0]] == [chance, chance]
    fewer = [run for run in runs if run != runs[0]]
    name, model = runs[0]["dataset"], runs[0]["model"]
    assert scores_of(plan, by_rate(plan, fewer, model), model)[2] == [name]


def test_summary_tables_and_page(done, tmp_path):
    """Oracle: the scores. Break: a loss's numbers in another's row, a page that loads something,
    figures that are missing."""
    summary = summarize_study(done)
    json.dumps(summary, allow_nan=False)
    plan, runs = planned_runs(done)
    means = np.mean(scores_of(plan, by_rate(plan, runs, "linear"), "linear")[0], axis=(0, 1))
    table = summary["models"]["linear"]["across"]["table"]
    assert [table[m]["mean"] for m in ("CE", "mixed", "focal")] == pytest.approx(list(means))
    counts = summary["models"]["linear"]["rates"]["CE"]
    assert sum(counts.values()) == 4 and set(counts) == {"0.1", "0.01"}
    shown = study_tables(summary)[0]
    assert [row[0] for row in shown.rows] == ["CE", "mixed", "focal"]
    assert shown.rows[2][7] == f"{100 * means[2]:.2f}"
    page = write_study_report(summary, tmp_path).read_text()
    names = set(re.findall(r"https?://[^/\"]+", page))  # of XML's vocabularies, which nobody loads
    assert names <= {"http://www.w3.org"}
    assert page.count('role="img"') == 2 * 3 * 2  # models, figures, widths
    assert (tmp_path / "figures" / "hidden" / "profile.png").exists()


def test_a_published_table_stands_beside_ours(recipe, tmp_path, done):
    """Break: the paper's numbers in another model's table, or under another loss."""
    summary = summarize_study(done)
    published = {"linear": {"focal": {"wins": 7, "improvement": -0.25, "mean_rank": 2.5}}}
    summary["recipe"] = summary["recipe"] | {"published": {"models": published}}
    linear, hidden = study_tables(summary)
    assert linear.rows[2][-3:] == ("−0.25", "7", "2.50") and linear.rows[1][-3:] == ("–", "–", "–")
    assert len(hidden.rows[0]) == len(linear.rows[0]) - 3


@pytest.fixture
def losslab_command(monkeypatch, capsys, tmp_path):
    """``losslab ARGUMENTS`` in this process: status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["losslab", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    handler = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, handler)


def test_command_line(recipe, done, tmp_path, losslab_command):
    """Break: a status, a file or a sentence that a user waits for."""
    here = ("--out", done, "--executor", "here")
    status, output, errors = losslab_command("study", recipe, *here)
    assert status == 0 and "48 runs, 48 already finished" in errors
    assert "Model hidden" in output and "report.html" in output
    assert json.loads((done / "summary.json").read_text())["runs"]["finished"] == 48
    status, output, _ = losslab_command("report", done)
    assert status == 0 and "Model linear" in output
    _, output, _ = losslab_command("study", recipe, *here, "--json")
    assert json.loads(output)["name"] == "small"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("study", "no-such"), "no recipe 'no-such'"),
        (("study", "digits-study", "--part", "3/2"), "--part must be K/N"),
        (("study", "digits-study", "--executor", "slurm"), "unknown executor 'slurm'"),
        (("study", "digits-study", "--set", "training.epochs=0"), "epochs"),
        (("reproduce", "digits-study"), "no published figures"),
        (("report", "."), "to be the folder of a comparison"),
    ],
)
def test_bad_input_is_one_line(arguments, words, losslab_command):
    """Break: a traceback, or a mistake that is run."""
    status, _, errors = losslab_command(*arguments)
    assert status == 2 and words in errors and errors.count("\n") == 1


def test_a_folder_of_something_else(tmp_path):
    """Break: a traceback."""
    with pytest.raises(InputError, match="not the folder of a study"):
        summarize_study(tmp_path)


@pytest.mark.skipif(
    not (Path(os.environ.get("LOSSLAB_DATA", "../shared/data")) / "uci121").exists(),
    reason="LOSSLAB_DATA has no uci121",
)
def test_the_papers_study_has_all_its_runs():
    """Oracle: 120 sets, 2 models, 6 losses, 3 rates, 2 seeds. Break: a set or a loss left out, or
    two that have become one."""
    data = Path(os.environ.get("LOSSLAB_DATA", "../shared/data"))
    cells, plan = plan_study(read_recipe("ba-t4", data_dir=data))
    assert len(cells) == 240 and len({r for c in plan["cells"] for r in c["runs"]}) == 8640

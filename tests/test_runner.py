"""Comparisons that survive being killed, and the records and summaries they leave."""

from __future__ import annotations

import builtins
import json
import math
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import losslab
from losslab.errors import InputError
from losslab.experiment import environment, maker, records, runner
from losslab.experiment.events import (
    EpochDone,
    RunFinished,
    RunStarted,
    Started,
    TogetherEpochDone,
    TogetherStarted,
)
from losslab.experiment.plan import Comparison, make_plan
from losslab.experiment.records import SELECTIONS
from losslab.experiment.runner import Interrupted, run
from losslab.experiment.summary import load_planned, summarize, summarize_folder
from losslab.experiment.task import Task
from losslab.metrics import METRICS

FEATURES, CLASSES = 4, 3
LOSSES = [("ce", "cross_entropy"), ("el", "encouraging"), ("mix", "mixed(focus=0.3)")]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_at_a_time(monkeypatch):
    """As where the model is large."""
    monkeypatch.setattr(runner, "pays", lambda task, runs: False)


def blobs(rows: int, seed: int, classes: int = CLASSES) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(rows) % classes
    centres = torch.eye(CLASSES, FEATURES)
    return TensorDataset(centres[target] + torch.randn(rows, FEATURES, generator=generator), target)


def make_task(**changes) -> Task:
    settings = {
        "name": "blobs",
        "train": blobs(48, 1),
        "validation": blobs(24, 2),
        "test": blobs(30, 3),
        "num_classes": CLASSES,
        "model": lambda: nn.Linear(FEATURES, CLASSES),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1),
        "epochs": 3,
        "batch_size": 16,
    }
    return Task(**(settings | changes))


def comparison(folder: Path, **changes) -> Comparison:
    settings = {"task": make_task(), "losses": LOSSES, "out": folder, "seeds": range(4)}
    return Comparison(**(settings | changes))


def outcomes(folder: Path) -> dict[str, str]:
    """Everything in the records but the times, and the examples' bytes, by run."""
    found = {}
    for record in records.load_all(folder):
        kept = {k: v for k, v in record.items() if k not in ("timing", "environment")}
        examples = records.load_examples(folder, record["run_id"])
        arrays = {k: v.tobytes().hex() for k, v in examples.items()}
        found[record["run_id"]] = json.dumps([kept, arrays], sort_keys=True)
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    run(comparison(folder))
    return folder


# ---- killed at any instant -------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes():
    """Processes that start in milliseconds, because torch is imported once for them all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "pytest", "losslab.experiment.runner", "losslab.experiment.statistics"]
    )
    return context


def compare_in_child(folder: Path, die_at: int | None = None, epochs: int = 3) -> None:
    """Run the comparison; at the ``die_at``-th opening, flush or renaming, die as kill -9 would."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly(operation):
        return lambda *arguments: (step(), operation(*arguments))[1]

    def open_and_die(path, mode="r", *arguments, really=open, **options):
        file = really(path, mode, *arguments, **options)
        if mode == "wb":  # an emptied file is left behind
            step()
        return file

    if die_at is not None:
        os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
        builtins.open = open_and_die
    try:
        run(comparison(folder, task=make_task(epochs=epochs)))
    except Interrupted as interrupted:
        os._exit(100 + interrupted.done)


def assert_sound(folder: Path) -> None:
    """Whatever is there is whole: every record reads, and its examples with it."""
    for record in records.load_all(folder):
        assert len(records.load_examples(folder, record["run_id"])["margin"]) == 30


def test_killed_at_each_step_of_writing_it_resumes_to_the_same_results(
    tmp_path, processes, uninterrupted
):
    """Oracle: the uninterrupted comparison. It dies at its k-th opening, flush or renaming.

    A record written in place, or before its examples, or a lock that outlives its holder fails it.
    """
    folder = tmp_path / "run"
    for die_at in range(1, 14):  # four for comparison.json, eight for a run
        child = processes.Process(target=compare_in_child, args=(folder, die_at), daemon=True)
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        assert_sound(folder)
    run(comparison(folder))
    assert outcomes(folder) == outcomes(uninterrupted)
    assert not list(folder.rglob("*.tmp"))


def test_killed_at_random_instants_it_resumes_to_the_same_results(tmp_path, processes):
    """Oracle: the same comparison made in one go. The instants vary from test run to test run."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run(comparison(whole, task=make_task(epochs=15)))
    killed = 0
    for _ in range(4):
        child = processes.Process(target=compare_in_child, args=(folder, None, 15), daemon=True)
        child.start()
        while child.is_alive() and not (folder / "comparison.json").exists():
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.3))
        child.kill()
        child.join(60)
        killed += child.exitcode == -signal.SIGKILL
        assert_sound(folder)
    assert killed >= 1
    summary = run(comparison(folder, task=make_task(epochs=15)))
    assert outcomes(folder) == outcomes(whole)
    assert summary == json.loads((whole / "summary.json").read_bytes())


def test_a_real_interrupt_keeps_what_is_finished(tmp_path, processes):
    """Oracle: SIGINT once two records are there; the exit status counts the finished runs."""
    folder = tmp_path / "run"
    child = processes.Process(target=compare_in_child, args=(folder, None, 60), daemon=True)
    child.start()
    while child.is_alive() and len(list(folder.glob("runs/*.json"))) < 2:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGINT)
    child.join(60)
    finished = len(records.load_all(folder))
    assert child.exitcode == 100 + finished and 2 <= finished < 12
    assert not (folder / "summary.json").exists()


def hold_the_lock(folder: Path, ready) -> None:
    with records.working_in(folder):
        ready.set()
        time.sleep(600)


def test_two_processes_do_not_share_a_folder_and_a_killed_one_lets_go(tmp_path, processes):
    """Oracle: a process that holds the folder until it is killed."""
    folder = tmp_path / "run"
    ready = processes.Event()
    child = processes.Process(target=hold_the_lock, args=(folder, ready), daemon=True)
    child.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match=rf"process \(number {child.pid}\) is at work in .*run"):
        run(comparison(folder))
    assert not (folder / "comparison.json").exists()
    child.kill()
    child.join(60)
    assert (folder / ".lock").exists()
    run(comparison(folder, seeds=[0]))
    assert len(records.load_all(folder)) == 3


# ---- order, resuming, events -----------------------------------------------------------------


def test_runs_go_seed_by_seed_and_interrupted_pairs_are_complete(one_at_a_time, tmp_path):
    """Oracle: Ctrl-C in the fifth run of twelve: seed 0 is whole, seed 1 has begun."""
    events = []

    def note(event):
        events.append(event)
        if isinstance(event, EpochDone) and event.number == 5:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="4 of 12 runs finished") as caught:
        run(comparison(tmp_path), note)
    assert (caught.value.done, caught.value.total) == (4, 12)
    kept = [(r["seed"], r["loss"]["label"]) for r in records.load_all(tmp_path)]
    assert kept == [(0, "ce"), (0, "el"), (0, "mix"), (1, "ce")]
    summary = summarize_folder(tmp_path)
    assert summary["missing"] == {"ce": [2, 3], "el": [1, 2, 3], "mix": [1, 2, 3]}
    assert summary["comparisons"]["last"]["accuracy"]["el"]["n"] == 1

    again = []
    run(comparison(tmp_path), again.append)
    assert again[0] == Started(tmp_path, 12, 4, {})
    started = [(e.seed, e.label) for e in again if isinstance(e, RunStarted)]
    assert started[:3] == [(1, "el"), (1, "mix"), (2, "ce")] and len(started) == 8


def test_events_tell_of_every_run_and_epoch(tmp_path):
    """Oracle: 2 losses × 1 seed × 3 epochs, counted; the time left ends at zero."""
    events = []
    run(comparison(tmp_path, losses=LOSSES[:2], seeds=[7]), events.append)
    kinds = [type(event) for event in events]
    one = [RunStarted, EpochDone, EpochDone, EpochDone, RunFinished]
    assert kinds == [Started, *one, *one]
    assert [e.measured.epoch for e in events if isinstance(e, EpochDone)] == [1, 2, 3] * 2
    assert {(e.number, e.label, e.seed, e.total) for e in events[1:]} == {
        (1, "ce", 7, 2),
        (2, "el", 7, 2),
    }
    left = [e.seconds_left for e in events if isinstance(e, EpochDone | RunFinished)]
    assert all(x > 0 for x in left[:-2]) and left[-1] == 0
    last = records.load_all(tmp_path)[-1]["results"]["last"]["test"]["accuracy"]
    assert events[-1].test_accuracy == last and events[-1].status == "finished"


def test_finished_runs_are_not_made_again(one_at_a_time, tmp_path, monkeypatch):
    """Oracle: counting calls of train. An unstable run_id, or one made from labels, fails it."""
    calls = []

    def counted(task, criterion, seed, **options):
        calls.append((criterion.spec, seed))
        return train(task, criterion, seed, **options)

    train = maker.train
    monkeypatch.setattr(maker, "train", counted)
    run(comparison(tmp_path, losses=LOSSES[:2], seeds=[0, 1]))
    first = outcomes(tmp_path)
    assert len(calls) == 4
    calls.clear()
    summary = run(comparison(tmp_path, losses=LOSSES[:2], seeds=[0, 1]))
    assert calls == [] and summary == json.loads((tmp_path / "summary.json").read_bytes())

    run(comparison(tmp_path, losses=[("plain", "cross_entropy"), *LOSSES[1:]], seeds=[1, 2]))
    assert sorted(calls) == [
        ("cross_entropy", 2),
        ("encouraging", 2),
        ("mixed(focus=0.3)", 1),
        ("mixed(focus=0.3)", 2),
    ]
    assert outcomes(tmp_path).items() >= first.items()
    stored, planned = load_planned(tmp_path)  # the new plan's runs under the new labels only
    assert stored["seeds"] == [1, 2]
    assert [(r["seed"], r["loss"]["label"]) for r in planned] == [
        (seed, label) for seed in (1, 2) for label in ("plain", "el", "mix")
    ]

    calls.clear()
    (gone,) = [r for r in planned if (r["seed"], r["loss"]["label"]) == (2, "el")]
    (tmp_path / "runs" / f"{gone['run_id']}.json").unlink()
    run(comparison(tmp_path, seeds=[1, 2]))
    assert calls == [("encouraging", 2)]


def test_trained_together_or_one_at_a_time_the_results_are_the_same(tmp_path, monkeypatch):
    """Oracle: the runs one at a time. Break: a run of the stack stored under another's name."""
    events: list = []
    together = run(comparison(tmp_path / "a", seeds=range(3)), events.append)
    assert isinstance(events[0], Started) and events[0].together > 1
    monkeypatch.setattr(runner, "pays", lambda task, runs: False)
    run(comparison(tmp_path / "b", seeds=range(3)))
    ours, theirs = (records.load_all(tmp_path / name) for name in "ab")
    assert [r["run_id"] for r in ours] == [r["run_id"] for r in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["timing"]["together"] > 1 == other["timing"]["together"]
        assert mine["curves"]["train_loss"] == pytest.approx(other["curves"]["train_loss"])
        assert mine["results"]["last"]["test"] == pytest.approx(
            other["results"]["last"]["test"], rel=1e-4
        )
    assert together["table"].keys() == {"last", "validation_selected", "best_on_test"}


def test_events_of_runs_trained_together(tmp_path, monkeypatch):
    """Break: an epoch or a run that is not told, or a group that splits a seed's pair."""
    monkeypatch.setattr(runner, "MOST_TOGETHER", 4)
    events: list = []
    run(comparison(tmp_path, seeds=range(3)), events.append)
    losses = len(LOSSES)
    size = 4 // losses * losses
    starts = [e for e in events if isinstance(e, TogetherStarted)]
    assert [e.runs for e in starts] == [size] * (3 * losses // size) + [
        r for r in [3 * losses % size] if r
    ]
    epochs = [e for e in events if isinstance(e, TogetherEpochDone)]
    assert [e.epoch for e in epochs] == list(range(1, starts[0].epochs + 1)) * len(starts)
    finished = [e.number for e in events if isinstance(e, RunFinished)]
    assert finished == list(range(1, 3 * losses + 1))


def test_what_cannot_be_trained_together_says_why(tmp_path):
    """Break: dropout in a stack, or silence about it."""
    events: list = []
    task = make_task(model=lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.Dropout()))
    run(comparison(tmp_path, task=task, seeds=range(3)), events.append)
    assert events[0].together == 1 and "random numbers" in events[0].apart


def test_one_loss_under_two_labels_is_run_once_and_differs_by_nothing(tmp_path):
    """Oracle: A/A: the paired differences are exactly zero and there are three runs, not six."""
    twice = [("a", "cross_entropy"), ("b", "cross_entropy")]
    summary = run(comparison(tmp_path, losses=twice, seeds=range(3)))
    assert len(records.load_all(tmp_path)) == 3
    answer = summary["comparisons"]["last"]["accuracy"]["b"]
    assert (answer["n"], answer["mean"], answer["sd"]) == (3, 0.0, 0.0)
    assert answer["verdict"] not in ("better", "worse")  # ties in accuracy prove no equality,
    nll = summary["comparisons"]["last"]["nll"]["b"]
    assert nll["verdict"] == "no worthwhile difference"  # ties in NLL do


def test_the_run_id_depends_on_what_decides_the_numbers_and_on_nothing_else(tmp_path):
    """Oracle: two lists of changes. An identity that misses one would mix up different runs."""

    def ids(**changes):
        return set(make_plan(comparison(tmp_path, seeds=[0], **changes)).runs)

    reference = ids()
    assert reference == ids() and len(reference) == 3
    for same in (
        {"losses": [(label.upper(), spec) for label, spec in LOSSES]},
        {"out": tmp_path / "elsewhere"},
        {"metric": "nll"},
        {"selection": "best_on_test"},
        {"margin": 0.1},
        {"command": "losslab compare"},
    ):
        assert ids(**same) == reference
    seen = set(reference)
    for other in (
        {"task": make_task(epochs=4)},
        {"task": make_task(batch_size=8)},
        {"task": make_task(name="other")},
        {"task": make_task(train=blobs(48, 9))},
        {"task": make_task(test=blobs(30, 9))},
        {"task": make_task(model=lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES)))},
        {"task": make_task(optimizer=lambda p: torch.optim.SGD(p, lr=0.2))},
        {"loss_options": {"label_smoothing": 0.1}},
    ):
        different = ids(**other)
        assert not different & seen
        seen |= different
    assert not set(make_plan(comparison(tmp_path, seeds=[1])).runs) & seen


def test_another_task_or_setting_needs_another_folder(tmp_path):
    """Oracle: the message names what differs; a folder without runs may still change its mind."""
    run(comparison(tmp_path, seeds=[0]))
    with pytest.raises(InputError, match=r"another epochs \(settings\): 3 there, 9 now"):
        run(comparison(tmp_path, seeds=[0], task=make_task(epochs=9)))
    with pytest.raises(InputError, match=r"another sha256 \(task\)"):
        run(comparison(tmp_path, seeds=[0], task=make_task(train=blobs(48, 9))))
    assert len(records.load_all(tmp_path)) == 3
    for path in (tmp_path / "runs").iterdir():
        path.unlink()
    run(comparison(tmp_path, seeds=[0], task=make_task(epochs=9)))
    assert {r["settings"]["epochs"] for r in records.load_all(tmp_path)} == {9}


def test_a_summary_that_no_longer_fits_does_not_outlive_an_interruption(one_at_a_time, tmp_path):
    """Oracle: after two seeds, a third is interrupted: the old summary is gone, not misleading."""
    run(comparison(tmp_path, seeds=[0, 1]))

    def interrupt(event):
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="6 of 9"):
        run(comparison(tmp_path, seeds=[0, 1, 2]), interrupt)
    assert not (tmp_path / "summary.json").exists()
    assert records.load_comparison(tmp_path)["seeds"] == [0, 1, 2]


def test_a_users_own_loss_goes_through_the_comparison(tmp_path):
    """Oracle: the label stands in the spec where the module has no name of its own."""
    own = losslab.OddsLoss(lambda a: torch.relu(1 - a))
    summary = run(comparison(tmp_path, losses=[LOSSES[0], ("hinge", lambda: own)], seeds=[0]))
    assert [r["loss"]["spec"] for r in records.load_all(tmp_path)] == [
        "cross_entropy",
        "custom(hinge)",
    ]
    assert summary["table"]["last"]["hinge"]["accuracy"]["n"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": LOSSES[:1]}, "at least one loss to compare with it, but got .'ce'."),
        ({"losses": [*LOSSES, LOSSES[0]]}, "each loss label once, but got 'ce' again"),
        ({"losses": [LOSSES[0], ("x", "encuraging")]}, "Did you mean 'encouraging'"),
        ({"seeds": []}, "seeds to be whole numbers"),
        ({"seeds": [1, 1]}, "each seed once, but got 1 again"),
        ({"seeds": [-1]}, "seeds to be whole numbers of at least 0"),
        ({"seeds": [0.5]}, "seeds to be whole numbers"),
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"metric": "margin"}, "metric to be one of accuracy, balanced_accuracy, nll, brier, ece"),
        ({"selection": "first"}, "selection to be one of last, validation_selected"),
        ({"margin": 0.0}, "margin to be a finite number above 0"),
        ({"margin": math.nan}, "half a point of accuracy is 0.005"),
    ],
)
def test_bad_comparisons_are_refused_before_anything_is_written(tmp_path, changes, message):
    """Oracle: the message, and an empty folder."""
    with pytest.raises(InputError, match=message):
        run(comparison(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


# ---- controls, divergence, chance ------------------------------------------------------------


def test_the_matched_gradient_control_is_the_baseline_at_the_ratio_of_volumes(tmp_path):
    """Oracle: V = ½ for CE, ½ + 1/6·β for mixed (∫p(1−p) = 1/6), so 1 + β/3 with β = 1/(1−2F)."""
    summary = run(comparison(tmp_path, losses=LOSSES[::2], seeds=[0, 1], matched_gradient=True))
    label = "ce, lr matched to mix"
    assert summary["controls"] == {"mix": label}
    by = {(r["loss"]["label"], r["seed"]): r for r in records.load_all(tmp_path)}
    assert len(by) == 6
    control = by[label, 0]["loss"]
    assert (control["role"], control["control_for"], control["spec"]) == (
        "control",
        "mix",
        "cross_entropy",
    )
    scale = control["lr_scale"]
    assert scale == pytest.approx(1 + 1 / (1 - 0.6) / 3, rel=1e-5)
    assert by[label, 0]["curves"]["lr"] == pytest.approx([0.1 * scale] * 3)
    assert by["ce", 0]["curves"]["lr"] == [0.1] * 3
    assert by[label, 0]["results"] != by["ce", 0]["results"]
    accuracy = {k: r["results"]["last"]["test"]["accuracy"] for k, r in by.items()}
    against = summary["against_control"]["last"]["accuracy"]["mix"]
    assert against["mean"] == pytest.approx(
        statistics.fmean(accuracy["mix", s] - accuracy[label, s] for s in (0, 1))
    )
    assert set(summary["comparisons"]["last"]["accuracy"]) == {"mix", label}


def test_the_control_of_a_scheduled_loss_follows_its_schedule(tmp_path):
    """Oracle: focus 0, ½ from the middle: β = 1 (ratio 4/3), then no CE, V = 1/6 (ratio ⅓)."""
    losses = [LOSSES[0], ("phased", "mixed(focus=phases(0, 0.5))")]
    plan = make_plan(
        comparison(tmp_path, losses=losses, task=make_task(epochs=4), matched_gradient=True)
    )
    control = plan.configuration["losses"][2]
    assert control["lr_scale"] == pytest.approx((4 / 3, 4 / 3, 1 / 3, 1 / 3), rel=1e-5)
    (arm,) = {arm.label: arm for arm, _ in plan.runs.values() if arm.role == "control"}.values()
    steps = [arm.scale_at(step / 12) for step in range(12)]  # three batches an epoch
    assert steps == [control["lr_scale"][step // 3] for step in range(12)]
    assert arm.scale_at(1.0) == control["lr_scale"][-1]
    for epochs in range(1, 61):  # 28/49 * 49, say, is a little under 28
        arm = replace(arm, lr_scale=tuple(map(float, range(epochs))))
        assert [arm.scale_at(7 * e / (7 * epochs)) for e in range(epochs)] == list(range(epochs))


def test_a_loss_without_a_gradient_volume_is_skipped_with_the_reason(tmp_path):
    """Oracle: a softmax-wide loss is no ψ(a), so it has no V; as the baseline it skips them all."""
    odd = ("mse", "mean_squared_error")
    plan = make_plan(comparison(tmp_path, losses=[*LOSSES[:2], odd], matched_gradient=True))
    assert (
        "mse is not known as a function of p alone" in plan.configuration["skipped_controls"]["mse"]
    )
    assert [a["control_for"] for a in plan.configuration["losses"]] == [None] * 3 + ["el"]
    plan = make_plan(comparison(tmp_path, losses=[odd, *LOSSES[:2]], matched_gradient=True))
    assert set(plan.configuration["skipped_controls"]) == {"ce", "el"}
    assert all("mse is not known" in why for why in plan.configuration["skipped_controls"].values())


class Exploding(nn.CrossEntropyLoss):
    spec = "exploding"
    calls = 0

    def forward(self, logits, target):
        self.calls += 1
        return super().forward(logits, target) * (math.nan if self.calls > 5 else 1)


def test_a_diverged_run_is_kept_marked_and_not_averaged_away(one_at_a_time, tmp_path):
    """Oracle: class 1 is commonest in training (24 of 48) and 6 of 30 in the test set."""
    train_targets = torch.tensor([1] * 24 + [0] * 12 + [2] * 12)
    test_targets = torch.tensor([0] * 12 + [1] * 6 + [2] * 12)
    task = make_task(
        train=TensorDataset(blobs(48, 1).tensors[0], train_targets),
        test=TensorDataset(blobs(30, 3).tensors[0], test_targets),
    )
    events = []
    summary = run(
        comparison(
            tmp_path, task=task, losses=[LOSSES[0], ("boom", Exploding), LOSSES[1]], seeds=range(3)
        ),
        events.append,
    )
    broken = [r for r in records.load_all(tmp_path) if r["loss"]["label"] == "boom"]
    assert [r["status"] for r in broken] == ["diverged"] * 3
    assert broken[0]["reason"] == "the training loss became nan in epoch 2, step 3 of 3"
    assert broken[0]["curves"]["epoch"] == [1] and broken[0]["margin_histogram"] is None
    assert set(broken[0]["results"]) == set(SELECTIONS) and not any(broken[0]["results"].values())
    assert [e.status for e in events if isinstance(e, RunFinished)][:3] == [
        "finished",
        "diverged",
        "finished",
    ]
    assert summary["diverged"] == {"boom": [0, 1, 2]} and summary["missing"] == {}
    assert summary["diverged_count_as"] == {"accuracy": 0.2, "balanced_accuracy": 1 / 3}
    table = summary["table"]["validation_selected"]["boom"]
    assert table["accuracy"] == {"mean": pytest.approx(0.2), "sd": 0.0, "n": 3}
    assert table["nll"] == {"mean": None, "sd": None, "n": 0}
    baseline = summary["table"]["last"]["ce"]["accuracy"]["mean"]
    answer = summary["comparisons"]["last"]["accuracy"]["boom"]
    assert answer["n"] == 3 and answer["mean"] == pytest.approx(0.2 - baseline)
    nll = summary["comparisons"]["last"]["nll"]["boom"]
    assert (nll["n"], nll["left_out"], nll["verdict"]) == (0, [0, 1, 2], "refused")
    assert summary["comparisons"]["last"]["nll"]["el"]["n"] == 3
    assert len(list((tmp_path / "runs").glob("*.npz"))) == 6
    assert (
        run(
            comparison(
                tmp_path,
                task=task,
                losses=[LOSSES[0], ("boom", Exploding), LOSSES[1]],
                seeds=range(3),
            ),
            events.append,
        )
        == summary
    )  # nor is it made again
    assert events[-1] == Started(tmp_path, 9, 9, {})


def test_chance_is_found_for_datasets_that_are_not_tensors(tmp_path):
    """Oracle: the same data as tensors."""

    class Plain(Dataset):
        def __init__(self, base):
            self.base = base

        def __len__(self):
            return len(self.base)

        def __getitem__(self, index):
            return self.base[index]

    task = make_task(train=blobs(48, 1), test=blobs(31, 3))
    plain = make_task(train=Plain(blobs(48, 1)), test=Plain(blobs(31, 3)))
    of_tensors, of_items = (
        make_plan(comparison(tmp_path, task=t)).configuration for t in (task, plain)
    )
    assert of_items["chance"] == of_tensors["chance"]
    assert of_tensors["chance"] == {
        "class": 0,
        "accuracy": 11 / 31,
        "balanced_accuracy": pytest.approx(1 / 3),
    }
    assert of_items["resolution"] == of_tensors["resolution"]
    assert of_tensors["resolution"] == {"accuracy": 1 / 31, "balanced_accuracy": 1 / 33}


# ---- the summary -----------------------------------------------------------------------------


def synthetic(values: dict[str, list[float | None]], **changes):
    """A configuration with its records, every metric of every selection from ``values``.

    ``values[label][seed]`` is the last epoch's number; the other selections add 1 and 2. None makes
    the run missing and NaN makes it diverged.
    """
    labels = list(values)
    stored = {
        "task": {"name": "t"}, "baseline": labels[0], "metric": "accuracy", "selection": "last",
        "margin": 0.02, "seeds": list(range(len(values[labels[0]]))), "command": "c",
        "skipped_controls": {},
        "losses": [{"label": x, "role": "loss", "control_for": None} for x in labels],
        "chance": {"accuracy": 0.1, "balanced_accuracy": 0.05, "class": 0},
        "resolution": {"accuracy": 0.01, "balanced_accuracy": 0.01},
    }  # fmt: skip
    planned = []
    for label, numbers in values.items():
        for seed, number in enumerate(numbers):
            if number is None:
                continue
            lost = math.isnan(number)
            results = {
                selection: None
                if lost
                else {"epoch": 1, "test": {metric: number + extra for metric in METRICS}}
                for extra, selection in enumerate(SELECTIONS)
            }
            planned.append(
                {
                    "loss": {"label": label},
                    "seed": seed,
                    "status": "diverged" if lost else "finished",
                    "results": results,
                }
            )
    return {**stored, **changes}, planned


def test_differences_are_oriented_so_that_larger_is_better():
    """Oracle: the loss's numbers are 0.3 above the baseline's in all metrics and selections."""
    base = [0.50, 0.52, 0.55, 0.51]
    stored, planned = synthetic(
        {"ce": base, "el": [x + 0.3 + 0.001 * i for i, x in enumerate(base)]}
    )
    summary = summarize(stored, planned)
    for selection in SELECTIONS:
        for metric in METRICS:
            answer = summary["comparisons"][selection][metric]["el"]
            sign = -1 if metric in ("nll", "brier", "ece") else 1
            assert answer["mean"] == pytest.approx(sign * 0.3015)
            expected = "better" if sign > 0 else "worse"
            assert answer["verdict"] == (
                "descriptive" if metric in ("margin", "energy") else expected
            )
            assert (answer["n"], answer["left_out"]) == (4, [])
    text = summary["comparisons"]["last"]["margin"]["el"]["sentence"]
    assert "+0.30" in text and "neither better nor worse" in text


def test_pairs_are_made_by_seed_and_missing_ones_left_out():
    """Oracle: pairing by position instead of seed would give other differences than 0.1 and 0.3."""
    stored, planned = synthetic(
        {"ce": [0.1, 0.2, None, 0.4, 0.5], "el": [0.2, None, 0.9, 0.7, None]}
    )
    random.Random(0).shuffle(planned)
    summary = summarize(stored, planned)
    answer = summary["comparisons"]["last"]["accuracy"]["el"]
    assert answer["n"] == 2 and answer["mean"] == pytest.approx(0.2)
    assert answer["sd"] == pytest.approx(statistics.stdev([0.1, 0.3]))
    assert summary["missing"] == {"ce": [2], "el": [1, 4]} and summary["diverged"] == {}
    assert summary["table"]["best_on_test"]["ce"]["nll"] == {
        "mean": pytest.approx(2.3),
        "sd": pytest.approx(statistics.stdev([1, 2, 4, 5]) / 10),
        "n": 4,
    }


def test_a_diverged_run_counts_as_chance_in_accuracies_only():
    """Oracle: chance is 0.1 and 0.05; the baseline's own divergence in seed 3 counts likewise."""
    nan = math.nan
    stored, planned = synthetic({"ce": [0.5, 0.5, 0.5, nan], "el": [0.6, nan, 0.6, 0.6]})
    summary = summarize(stored, planned)
    for metric, chance in (("accuracy", 0.1), ("balanced_accuracy", 0.05)):
        for extra, selection in enumerate(SELECTIONS):
            answer = summary["comparisons"][selection][metric]["el"]
            each = [0.1, chance - (0.5 + extra), 0.1, 0.6 + extra - chance]
            assert answer["mean"] == pytest.approx(statistics.fmean(each))
            assert answer["left_out"] == []
    for metric in ("nll", "brier", "ece", "margin", "energy"):
        answer = summary["comparisons"]["last"][metric]["el"]
        assert (answer["n"], answer["left_out"]) == (2, [1, 3])
    assert summary["diverged"] == {"ce": [3], "el": [1]}


def test_margins_units_and_resolution_reach_the_verdicts():
    """Oracle: a 1-point gain is worthwhile at a margin of 0.2 points but not at 2 points.

    Three equal gains of one test example would have no spread without the metric's resolution.
    """
    values = {"ce": [0.5, 0.6, 0.7, 0.55], "el": [0.51, 0.61, 0.711, 0.56]}
    wide = summarize(*synthetic(values, margin=0.02, resolution={}))
    narrow = summarize(*synthetic(values, margin=0.002, resolution={}))
    of = [s["comparisons"]["last"]["accuracy"]["el"] for s in (wide, narrow)]
    assert [answer["verdict"] for answer in of] == ["no worthwhile difference", "better"]
    assert "+1.0" in of[0]["sentence"] and "points" in of[0]["sentence"]
    assert wide["margins"] == {
        "accuracy": 0.02,
        "balanced_accuracy": 0.005,
        "nll": 0.01,
        "brier": 0.005,
        "ece": 0.005,
    }
    coarse = summarize(*synthetic(values, margin=0.002))["comparisons"]["last"]["accuracy"]["el"]
    assert coarse["verdict"] == "cannot tell" and coarse["detectable"] > of[1]["detectable"]
    nll = summarize(*synthetic(values, metric="nll", margin=0.5))
    assert nll["margins"]["nll"] == 0.5 and nll["margins"]["accuracy"] == 0.005


def test_controls_are_a_family_of_their_own():
    """Oracle: the corrected p-value of one loss is not doubled by its control."""
    values = {"ce": [0.50, 0.51, 0.52, 0.53], "el": [0.52, 0.52, 0.54, 0.54]}
    alone = summarize(*synthetic(values))
    stored, planned = synthetic({**values, "control": [0.51, 0.52, 0.53, 0.55]})
    stored["losses"][2] |= {"role": "control", "control_for": "el"}
    summary = summarize(stored, planned)
    one, other = (s["comparisons"]["last"]["accuracy"]["el"] for s in (alone, summary))
    assert one == other and 0 < one["p_adjusted"] == one["p_value"] < 0.1
    assert summary["comparisons"]["last"]["accuracy"]["control"]["mean"] == pytest.approx(0.0125)
    against = summary["against_control"]["last"]["accuracy"]["el"]
    assert against["mean"] == pytest.approx(0.0025)


# ---- records ---------------------------------------------------------------------------------


def test_the_record_has_the_documented_shape(uninterrupted):
    """Oracle: the record in docs/design.md, key by key."""
    record = records.load_all(uninterrupted)[1]
    assert set(record) == {
        "schema", "run_id", "status", "reason", "loss", "seed", "task", "settings", "curves",
        "results", "margin_histogram", "reliability", "timing", "environment",
    }  # fmt: skip
    assert record["schema"] == 1 and record["status"] == "finished" and record["reason"] is None
    assert record["loss"] == {
        "label": "el", "spec": "encouraging", "role": "loss", "control_for": None, "lr_scale": 1.0
    }  # fmt: skip
    assert (record["task"]["name"], record["task"]["num_classes"]) == ("blobs", 3)
    assert record["settings"] == {
        "epochs": 3, "batch_size": 16, "device": "cpu", "loss_options": {}
    }  # fmt: skip
    assert set(record["curves"]) == {"epoch", "lr", "train_loss", "validation", "test"}
    assert all(len(record["curves"]["test"][name]) == 3 for name in ("accuracy", "nll"))
    for selection in SELECTIONS:
        kept = record["results"][selection]
        assert set(kept) == {"epoch", "validation", "test"}
        assert set(kept["validation"]) == set(kept["test"]) == set(METRICS)
    assert set(record["margin_histogram"]) == {"edges", "counts"}
    assert set(record["reliability"]) == {"edges", "counts", "confidence", "accuracy"}
    assert record["timing"]["started"] <= record["timing"]["finished"]
    assert 0 < record["timing"]["seconds"] < 60
    examples = records.load_examples(uninterrupted, record["run_id"])
    assert {k: (v.dtype.name, v.shape) for k, v in examples.items()} == {
        "log_odds": ("float32", (30,)), "margin": ("float32", (30,)), "correct": ("bool", (30,))
    }  # fmt: skip
    accuracy = record["results"]["last"]["test"]["accuracy"]
    assert examples["correct"].mean() == pytest.approx(accuracy)
    text = (uninterrupted / "runs" / f"{record['run_id']}.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert None in record["reliability"]["accuracy"]  # an empty bin


def test_comparison_json_is_there_before_the_first_run(tmp_path):
    """Oracle: looking at the folder when the first run starts."""
    seen = []

    def look(event):
        if isinstance(event, RunStarted) and event.number == 1:
            seen.append(json.loads((tmp_path / "comparison.json").read_bytes()))

    run(comparison(tmp_path, seeds=[0], command="losslab compare --task blobs"), look)
    assert seen[0]["baseline"] == "ce" and seen[0]["seeds"] == [0]
    assert seen[0]["command"] == "losslab compare --task blobs"
    assert {label: len(ids) for label, ids in seen[0]["runs"].items()} == dict(LOSSES) | {
        label: 1 for label, _ in LOSSES
    }


def damaged_folder(uninterrupted: Path, tmp_path: Path, damage) -> tuple[Path, Path]:
    folder = tmp_path / "run"
    (folder / "runs").mkdir(parents=True)
    for path in uninterrupted.rglob("*.*"):
        if path.is_file():
            (folder / path.relative_to(uninterrupted)).write_bytes(path.read_bytes())
    victim = sorted((folder / "runs").glob("*.json"))[5]
    damage(victim)
    return folder, victim


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:700]), "is damaged"),
        (lambda p: p.write_bytes(b""), "is damaged"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "is damaged"),
        (lambda p: p.write_text("[1, 2]"), "not a JSON object"),
        (lambda p: p.write_text("{}"), "schema None instead of 1"),
        (lambda p: p.write_text('{"schema": 1, "seed": 0}'), "no curves, loss, results, run_id"),
        (lambda p: p.write_text(p.read_text().replace('"finished"', '"half"')), "status 'half'"),
        (lambda p: p.write_text(p.read_text().replace(p.stem, "0" * 16)), "not its name"),
    ],
)
def test_a_damaged_record_is_named_with_what_to_do(uninterrupted, tmp_path, damage, message):
    """Oracle: the message; following its advice repeats that run alone, with the same numbers."""
    folder, victim = damaged_folder(uninterrupted, tmp_path, damage)
    for act in (records.load_all, summarize_folder, lambda f: run(comparison(f))):
        with pytest.raises(InputError, match=message) as caught:
            act(folder)
        assert str(victim) in str(caught.value)
        assert "delete this file and repeat the command" in str(caught.value)
    victim.unlink()
    events = []
    run(comparison(folder), events.append)
    assert sum(isinstance(event, RunFinished) for event in events) == 1
    assert outcomes(folder) == outcomes(uninterrupted)


def test_every_damaged_record_is_named_at_once(uninterrupted, tmp_path):
    """Oracle: two damaged files, two names in one message."""
    folder, victim = damaged_folder(uninterrupted, tmp_path, lambda p: p.write_text("{"))
    other = sorted((folder / "runs").glob("*.json"))[0]
    other.write_text("")
    with pytest.raises(InputError) as caught:
        records.load_all(folder)
    assert victim.name in str(caught.value) and other.name in str(caught.value)


def test_leftovers_of_a_kill_are_passed_over_and_cleared_away(uninterrupted, tmp_path):
    """Oracle: half a record and half its examples under temporary names."""
    folder, victim = damaged_folder(uninterrupted, tmp_path, lambda p: None)
    half = [victim.with_name(victim.name + ".tmp"), victim.with_name(victim.stem + ".npz.tmp")]
    for path in half:
        path.write_bytes(b"{")
    assert len(records.load_all(folder)) == 12
    run(comparison(folder))
    assert not any(path.exists() for path in half)
    assert outcomes(folder) == outcomes(uninterrupted)


def test_missing_or_damaged_examples_are_named(uninterrupted, tmp_path):
    """Oracle: the message, for a file that is gone and one that is cut short."""
    folder, victim = damaged_folder(uninterrupted, tmp_path, lambda p: None)
    path = victim.with_suffix(".npz")
    for spoil in (lambda: path.write_bytes(path.read_bytes()[:40]), path.unlink):
        spoil()
        with pytest.raises(InputError, match=f"{path.name} to hold the examples") as caught:
            records.load_examples(folder, victim.stem)
        assert victim.name in str(caught.value)


@pytest.mark.parametrize("read", [records.load_all, summarize_folder, load_planned])
def test_a_folder_without_a_comparison_is_named(tmp_path, read):
    """Oracle: the message."""
    with pytest.raises(InputError, match=r"to be the folder of a comparison, but it has no"):
        read(tmp_path)


def test_a_damaged_configuration_is_named(uninterrupted, tmp_path):
    """Oracle: the message; deleting it loses no run."""
    folder, _ = damaged_folder(uninterrupted, tmp_path, lambda p: None)
    (folder / "comparison.json").write_text("{")
    with pytest.raises(InputError, match=r"comparison\.json is damaged.*finished runs are kept"):
        run(comparison(folder))
    (folder / "comparison.json").unlink()
    events = []
    run(comparison(folder), events.append)
    assert [type(event) for event in events] == [Started]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    """Oracle: the message, for a file where the folder should be."""
    (tmp_path / "file").write_text("here")
    with pytest.raises(InputError, match=r"write in the folder .*file.*choose another one"):
        run(comparison(tmp_path / "file"))


def test_numbers_that_are_not_finite_are_stored_as_null(tmp_path):
    """Oracle: strict JSON parsing; tuples, numpy and nested values on the way."""
    value = {
        "a": math.nan, "b": [math.inf, 1.5], "c": (np.float32(2), np.int64(3)),
        "d": {1: np.array([1.0, -np.inf])}, "e": np.bool_(True), "f": None, "g": "NaN",
    }  # fmt: skip
    records.write_json(tmp_path / "x.json", value)

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse) == {
        "a": None, "b": [None, 1.5], "c": [2.0, 3], "d": {"1": [1.0, None]}, "e": True, "f": None,
        "g": "NaN",
    }  # fmt: skip


def test_run_ids_do_not_depend_on_order_or_on_the_python_type():
    """Oracle: sha256 of the canonical spelling, worked out with the standard library here."""
    import hashlib

    expected = hashlib.sha256(b'{"a":[1,2.5],"b":"\\u03c8"}').hexdigest()[:16]
    assert records.run_id({"b": "ψ", "a": (1, 2.5)}) == expected
    assert records.run_id({"a": [np.int64(1), 2.5], "b": "ψ"}) == expected
    assert records.run_id({"a": [1, 2.5], "b": "φ"}) != expected


# ---- environment and real data ---------------------------------------------------------------


def test_git_state_of_a_repository_and_of_none(tmp_path, monkeypatch):
    """Oracle: a repository made here: clean, then with a changed file; and no repository."""

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=repository, check=True,
                              capture_output=True, text=True)  # fmt: skip
        return done.stdout.strip()

    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert environment.git_state(repository) is None
    git("init")
    assert environment.git_state(repository) is None  # no commit yet
    (repository / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    state = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert environment.git_state(repository) == state
    (repository / "untracked").write_text("x")
    assert environment.git_state(repository) == state
    (repository / "file").write_text("two")
    assert environment.git_state(repository) == {**state, "dirty": True}
    monkeypatch.chdir(repository)
    assert environment.describe_environment()["git"]["dirty"] is True
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_state(repository) is None  # no git program


def test_the_environment_names_versions_and_threads(tmp_path):
    """Oracle: the modules' own versions."""
    found = environment.describe_environment()
    assert found["torch"] == torch.__version__ and found["numpy"] == np.__version__
    assert found["threads"] == 1 and found["device"] == "cpu"
    assert found["python"].count(".") == 2 and found["cpu"]
    json.dumps(found, allow_nan=False)
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nmodel name\t: Imaginary 9000\n")
    assert environment.processor_name(info) == "Imaginary 9000"
    assert environment.package_version("no-such-package-here") is None


def test_the_main_job_on_real_digits(tmp_path):
    """Oracle: a linear model on scikit-learn's digits is right for well over 85 % in two epochs."""
    from losslab.experiment.tasks.digits import build_digits
    from losslab.experiment.tasks.options import TaskOptions

    task = build_digits(TaskOptions(model="linear", epochs=2))
    summary = run(
        comparison(tmp_path, task=task, losses=LOSSES[:2], seeds=range(3), matched_gradient=True)
    )
    assert summary["diverged"] == summary["missing"] == {}
    for label in ("ce", "el", "ce, lr matched to el"):
        assert 0.85 < summary["table"]["last"][label]["accuracy"]["mean"] < 1
    answers = summary["comparisons"]["last"]["accuracy"]
    assert all(answer["n"] == 3 and answer["verdict"] != "refused" for answer in answers.values())
    assert (
        json.loads((tmp_path / "summary.json").read_bytes())["comparisons"]["last"]["accuracy"]
        == answers
    )

"""Comparisons in which every seed draws a split of its own, as papers' random splits do."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

import losslab
from losslab import metrics
from losslab.experiment.findings import load_findings, load_model
from losslab.experiment.plan import Comparison, make_plan, yardsticks
from losslab.experiment.records import load_all
from losslab.experiment.runner import run
from losslab.experiment.task import Task, tensors_of
from losslab.experiment.tasks.build import build_task
from losslab.experiment.tasks.options import TaskOptions
from losslab.experiment.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = (0, 3, 5)
LOSSES = [("CE", "cross_entropy"), ("EL", "encouraging"), ("CE again", "cross_entropy")]


@cache
def task_of(seed: int) -> Task:
    return build_task("digits", TaskOptions(epochs=1, model="linear", split_seed=seed))


def comparison(out, **changes) -> Comparison:
    settings = {"seeds": SEEDS, "task_of": task_of}
    return Comparison(task_of(SEEDS[0]), LOSSES, out, **(settings | changes))


def test_every_seed_has_its_own_split_and_all_losses_of_a_seed_the_same(tmp_path):
    """Oracle: `train` on the seed's own task. Runs on another seed's split fail, also those that
    are trained as one computation."""
    summary = run(comparison(tmp_path))
    by_run = {(r["loss"]["label"], r["seed"]): r for r in load_all(tmp_path)}
    assert len(by_run) == 2 * len(SEEDS)
    for (label, seed), record in by_run.items():
        alone = train(task_of(seed), losslab.loss(dict(LOSSES)[label]), seed)
        found = record["results"]["last"]["test"]
        assert found == pytest.approx(alone.results["last"]["test"], rel=1e-3, abs=1e-3)
        assert record["task"]["sha256"] == task_of(seed).description["sha256"]
    assert len({r["task"]["sha256"] for r in by_run.values()}) == len(SEEDS)
    assert summary["comparisons"]["last"]["accuracy"]["EL"]["n"] == len(SEEDS)


def test_what_the_splits_share_is_the_configurations(tmp_path):
    """By hand: the fingerprint varies, the model does not; chance and resolution are means."""
    configuration = make_plan(comparison(tmp_path)).configuration
    assert configuration["task"]["resampled"] and "sha256" not in configuration["task"]
    assert configuration["task"]["model"] == task_of(0).description["model"]
    each = [yardsticks(task_of(seed)) for seed in SEEDS]
    mean = sum(one["chance"]["accuracy"] for one in each) / len(each)
    assert configuration["chance"]["accuracy"] == pytest.approx(mean)
    same = make_plan(comparison(tmp_path, task_of=None)).configuration
    assert "resampled" not in same["task"] and "sha256" in same["task"]


def test_a_resampled_comparison_goes_on_where_it_stopped(tmp_path):
    """Oracle: the records of the first time. A run of another split in place of the lost one, or
    finished runs made again, fail."""
    run(comparison(tmp_path, seeds=SEEDS[:1]))
    first = run(comparison(tmp_path))
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs").glob("*.json")}
    lost = sorted(before)[0]
    (tmp_path / "runs" / lost).unlink()
    again = run(comparison(tmp_path))
    after = {path.name: path.read_bytes() for path in (tmp_path / "runs").glob("*.json")}
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != lost)
    assert again["table"]["last"]["EL"]["accuracy"]["mean"] == pytest.approx(
        first["table"]["last"]["EL"]["accuracy"]["mean"], rel=1e-3
    )
    more = run(comparison(tmp_path, seeds=(*SEEDS, 8)))
    assert more["comparisons"]["last"]["accuracy"]["EL"]["n"] == 4


def test_splits_do_differ():
    """The oracle's own footing: other seeds hold out other examples."""
    held_out = [tensors_of(task_of(seed).test)[0] for seed in SEEDS]
    assert not torch.equal(held_out[0], held_out[1])


def test_from_the_command_line_to_an_analysis(command, tmp_path):
    """The whole way: splits of their own, a long tail, counts=train, models analysed later. Oracle:
    the seeds' tasks. A model asked on another seed's test examples has another margin."""
    folder = tmp_path / "found"
    status, told, _ = command(
        *("compare", "--task", "digits", "--model", "linear", "--epochs", "1", "--seeds", "3"),
        *("--resample", "--imbalance", "10", "--keep-models", "--out", str(folder), "--json"),
        *("--loss", "cross_entropy", "--loss", "logit_adjustment(cross_entropy, counts=train)"),
        *("--metric", "accuracy_many"),
    )
    summary = json.loads(told)
    assert status == 0
    label = "logit_adjustment(cross_entropy, counts=train)"
    assert summary["comparisons"]["last"]["accuracy_many"][label]["n"] == 3
    assert summary["task"]["resampled"]
    command("analyse", str(folder), "-a", "margins", "--json")
    options = TaskOptions(epochs=1, model="linear", imbalance=10)
    for record in load_all(folder):
        task = build_task("digits", replace(options, split_seed=record["seed"]))
        model, _ = load_model(folder, record["run_id"], task)
        margins = metrics.margin(model(tensors_of(task.test)[0]).detach(), tensors_of(task.test)[1])
        found = load_findings(folder, record["run_id"])["margins"]["values"]["logits.mean"]
        assert found == pytest.approx(margins.mean().item(), rel=1e-5)
        assert record["results"]["last"]["test"]["margin"] == pytest.approx(found, rel=1e-4)

"""A study from start to end: the runs that its folder lacks, then its statistics.

A *cell* is all runs of one data set and one model: an executor hands cells out, the runs of a cell
are trained as one where they can be, and come back together. They are on disk before the next cell
is looked at. The same study in the same folder goes on where it stopped, also with more losses,
rates, seeds or data sets.

    FOLDER/study.json     the recipe as run, and the cells with what decides their numbers
    FOLDER/runs/          the finished runs, and
    FOLDER/details/       their curves, see docs/store.md
    FOLDER/summary.json   the statistics, when all cells are done
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from losslab.experiment import records
from losslab.experiment.batched import Member, train_together, why_not
from losslab.experiment.environment import describe_environment
from losslab.experiment.executors import Executor
from losslab.experiment.plan import yardsticks
from losslab.experiment.recipe import Study
from losslab.experiment.store import Store
from losslab.experiment.train import train
from losslab.experiment.watch import TrainingResult

DIGITS = 7  # of a number in the curves


@dataclass(frozen=True)
class Cell:
    """The runs of one data set and one model that are still to be made, by run_id."""

    study: Study
    dataset: str
    model: str
    examples: int
    runs: dict[str, tuple[str, float, int]]  # label, rate, seed


@dataclass(frozen=True)
class CellDone:
    """A cell's runs, as the store takes them; ``apart`` says why they were not trained as one."""

    dataset: str
    model: str
    runs: list[dict[str, Any]]
    details: list[dict[str, Any]]
    apart: str | None


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` runs are on disk; ``work`` is the share of the training done."""

    done: int
    total: int
    work: float
    cell: CellDone | None = None


def run_study(
    study: Study,
    folder: str | Path,
    executor: Executor,
    *,
    part: tuple[int, int] = (1, 1),
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Make the runs that ``folder`` lacks; what the study then is, as `study.json` holds it.

    Args:
        study: What is run, from `read_recipe`.
        folder: Where it goes; that of the same study is continued.
        executor: Where its cells run.
        part: ``(k, n)`` takes every n-th cell from the k-th on: n such processes share the work.
        on_progress: Called at the beginning and after each cell.

    Raises:
        InputError: If the data or the recipe are not right, or the folder is another study's.
        KeyboardInterrupt: As it comes; every finished cell is on disk.
    """
    tell = on_progress or (lambda progress: None)
    folder = Path(folder)
    with Store(folder) as store:
        planned, plan = plan_study(study)
        records.write_json(folder / "study.json", plan)
        mine = planned[part[0] - 1 :: part[1]]
        finished = store.finished()
        cells = [_without(cell, finished) for cell in mine]
        total = sum(len(cell.runs) for cell in mine)
        left = sum(len(cell.runs) for cell in cells)
        work = sum(_work(cell) for cell in mine)
        todo = sum(_work(cell) for cell in cells)
        tell(Progress(total - left, total, 1 - todo / work))
        cells = sorted((cell for cell in cells if cell.runs), key=_work, reverse=True)
        sizes = {(cell.dataset, cell.model): _work(cell) for cell in cells}
        for done in executor.run(make_cell, cells):
            store.append(done.runs, done.details)
            left -= len(done.runs)
            todo -= sizes[done.dataset, done.model]
            tell(Progress(total - left, total, 1 - todo / work, done))
    return plan


def plan_study(study: Study) -> tuple[list[Cell], dict[str, Any]]:
    """Every cell with all of its runs, and the study as `study.json` holds it; trains nothing."""
    cells, kept = [], []
    for dataset in study.datasets():
        for model in study.models:
            identity = study.identity(dataset, model)
            runs = {
                records.run_id({**identity, "spec": spec, "lr": rate, "seed": seed}): (
                    label,
                    rate,
                    seed,
                )
                for label, spec in study.losses.items()
                for rate in study.rates
                for seed in study.seeds
            }
            cell = Cell(study, dataset, model, study.examples(dataset), runs)
            cells.append(cell)
            kept.append({"dataset": dataset, "model": model, "runs": list(runs)})
    plan = {
        "schema": records.SCHEMA,
        "name": study.name,
        "title": study.title,
        "recipe": study.settings,
        "cells": kept,
    }
    return cells, plan


def make_cell(cell: Cell) -> CellDone:
    """Train a cell's runs; on one thread, so that its numbers are the same wherever it runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        study, task = cell.study, cell.study.task(cell.dataset, cell.model)
        members = [
            Member(study.loss(label), seed, rate / study.rates[0])
            for label, rate, seed in cell.runs.values()
        ]
        apart = why_not(task, members)
        if apart is None:
            results = train_together(task, members)
        else:
            results = [train(task, m.criterion, m.seed, lr_scale=m.lr_scale) for m in members]
        chance = yardsticks(task)["chance"]["accuracy"]
        shared: dict[str, Any] = {"study": study.name, "dataset": cell.dataset, "model": cell.model}
        environment = describe_environment()
        shared |= {"backend": environment["backend"], "together": apart is None, "chance": chance}
        runs, details = [], []
        for (run_id, (label, rate, seed)), result in zip(cell.runs.items(), results, strict=True):
            own = {"loss": label, "spec": study.losses[label], "lr": rate, "seed": seed}
            runs.append({"run_id": run_id, **shared, **own, **_flat(result)})
            curves = _rounded(result.curves)
            details.append({"run_id": run_id, "curves": curves, "environment": environment})
        return CellDone(cell.dataset, cell.model, runs, details, apart)
    finally:
        torch.set_num_threads(threads)


def _flat(result: TrainingResult) -> dict[str, Any]:
    """A result as columns: ``SELECTION.SPLIT.METRIC``."""
    columns: dict[str, Any] = {
        "status": result.status,
        "reason": result.reason,
        "epochs": len(result.curves["epoch"]),
        "seconds": round(result.seconds, 4),
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    for selection in records.SELECTIONS:
        found = result.results[selection]
        if found is not None:
            columns[f"{selection}.epoch"] = found["epoch"]
            for split in ("validation", "test"):
                for metric, value in found[split].items():
                    columns[f"{selection}.{split}.{metric}"] = value
    return columns


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _without(cell: Cell, finished: set[str]) -> Cell:
    runs = {run_id: run for run_id, run in cell.runs.items() if run_id not in finished}
    return Cell(cell.study, cell.dataset, cell.model, cell.examples, runs)


def _work(cell: Cell) -> float:
    """About how long a cell takes: its steps, a little more for more runs at once."""
    return cell.examples * (1 + len(cell.runs) / 50) if cell.runs else 0.0

"""A comparison from start to end: losses × seeds, in an order and a form that survive interruption.

Runs go seed by seed, and within a seed loss by loss, so that wherever a comparison stops, the pairs
it has are complete. A finished run is on disk before the next begins; the same comparison in the
same folder goes on where it stopped, after Ctrl-C as after kill -9.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from losslab.errors import InputError
from losslab.experiment import records
from losslab.experiment.environment import describe_environment
from losslab.experiment.plan import Comparison, Plan, make_plan
from losslab.experiment.summary import summarize_folder
from losslab.experiment.train import train
from losslab.experiment.watch import Epoch


@dataclass(frozen=True)
class Started:
    """The comparison begins: ``done`` of its ``total`` runs were finished earlier."""

    folder: Path
    total: int
    done: int
    skipped_controls: Mapping[str, str]


@dataclass(frozen=True)
class RunStarted:
    """Run ``number`` of ``total`` begins."""

    number: int
    total: int
    label: str
    seed: int
    epochs: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch of run ``number`` is over; ``seconds_left`` is for the whole comparison."""

    number: int
    total: int
    label: str
    seed: int
    measured: Epoch
    seconds_left: float


@dataclass(frozen=True)
class RunFinished:
    """Run ``number`` is on disk; ``test_accuracy`` is the last epoch's, None if it diverged."""

    number: int
    total: int
    label: str
    seed: int
    status: str
    reason: str | None
    test_accuracy: float | None
    seconds: float
    seconds_left: float


Event = Started | RunStarted | EpochDone | RunFinished


class Interrupted(Exception):
    """Ctrl-C: ``done`` of ``total`` runs are finished and kept; the same call goes on there."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"interrupted with {done} of {total} runs finished; they are kept")
        self.done, self.total = done, total


def run(comparison: Comparison, on_event: Callable[[Event], None] | None = None) -> dict[str, Any]:
    """Make the runs that the folder lacks, then write and return the summary.

    Raises:
        InputError: If the folder is in use, damaged, or that of a different comparison.
        Interrupted: On Ctrl-C; everything finished stays.
    """
    tell = on_event or (lambda event: None)
    folder = Path(comparison.out)
    plan = make_plan(comparison)
    with records.working_in(folder):
        _refuse_other_comparison(folder, plan.configuration)
        records.write_json(folder / "comparison.json", plan.configuration)
        done = {run for run in plan.runs if records.find_record(folder, run) is not None}
        skipped = plan.configuration["skipped_controls"]
        tell(Started(folder, len(plan.runs), len(done), skipped))
        if len(done) < len(plan.runs):
            (folder / "summary.json").unlink(missing_ok=True)  # it would not be of these runs
            try:
                _make_runs(comparison, plan, folder, done, tell)
            except KeyboardInterrupt:
                finished = [run for run in plan.runs if records.find_record(folder, run)]
                raise Interrupted(len(finished), len(plan.runs)) from None
        summary = summarize_folder(folder)
        records.write_json(folder / "summary.json", summary)
    return summary


def _make_runs(
    comparison: Comparison,
    plan: Plan,
    folder: Path,
    done: set[str],
    tell: Callable[[Event], None],
) -> None:
    """Make the runs that are not in ``done``."""
    clock = _Clock(plan.task.epochs, len(plan.runs) - len(done))
    shared = {
        "schema": records.SCHEMA,
        "task": plan.configuration["task"],
        "settings": plan.configuration["settings"],
        "environment": describe_environment(comparison.device),
    }
    todo = [run for run in plan.runs if run not in done]
    for number, run in enumerate(todo, start=len(done) + 1):
        arm, seed = plan.runs[run]
        at = (number, len(plan.runs), arm.label, seed)
        tell(RunStarted(*at, plan.task.epochs))

        def report(measured: Epoch, at: tuple[int, int, str, int] = at) -> None:
            tell(EpochDone(*at, measured, clock.after_epoch()))

        started = _now()
        result = train(
            plan.task,
            arm.make(),
            seed,
            lr_scale=arm.scale_at,
            device=comparison.device,
            progress_callback=report,
        )
        timing = {"started": started, "finished": _now(), "seconds": result.seconds}
        own = {"run_id": run, "loss": arm.described(), "seed": seed, "timing": timing}
        records.write_record(folder, {**shared, **own, **result.recorded()}, result.examples)
        left = clock.after_run()
        tell(RunFinished(*at, result.status, result.reason, result.accuracy, result.seconds, left))


def _refuse_other_comparison(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Runs of two tasks or two settings do not belong into one folder."""
    before = records.load_comparison(folder)
    if before is None or not any((folder / "runs").glob("*.json")):
        return
    new = records.jsonable(configuration)
    for part in ("task", "settings"):
        old = before.get(part) or {}
        for key in sorted({*old, *new[part]}):
            if old.get(key) != new[part].get(key):
                raise InputError(
                    f"The folder {folder} holds a comparison with another {key} ({part}): "
                    f"{_short(old.get(key))} there, {_short(new[part].get(key))} now. Choose "
                    "another folder, or delete this one."
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


class _Clock:
    """Guesses the time left from the epochs done since it was made."""

    def __init__(self, epochs: int, runs: int) -> None:
        self.epochs, self.total = epochs, epochs * runs
        self.done = self.runs_done = 0
        self.begun = time.perf_counter()

    def after_epoch(self) -> float:
        self.done += 1
        return self._left()

    def after_run(self) -> float:
        self.runs_done += 1
        self.done = self.runs_done * self.epochs  # a diverged run leaves epochs out
        return self._left()

    def _left(self) -> float:
        return (time.perf_counter() - self.begun) / self.done * (self.total - self.done)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

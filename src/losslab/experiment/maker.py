"""The runs of a comparison, made: trained, written down, analysed, and told of."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from losslab.analysis.analyse import ANALYSES
from losslab.experiment import findings, records
from losslab.experiment.batched import Member, train_together
from losslab.experiment.checkpoint import Checkpoint
from losslab.experiment.environment import describe_environment
from losslab.experiment.events import (
    Analysed,
    EpochDone,
    Event,
    RunFinished,
    RunStarted,
    TogetherEpochDone,
    TogetherStarted,
)
from losslab.experiment.plan import Comparison, Plan
from losslab.experiment.train import train
from losslab.experiment.watch import Epoch, TrainingResult


class Clock:
    """Guesses the time left from the epochs done since it was made."""

    def __init__(self, epochs: int, runs: int) -> None:
        self.epochs, self.total = epochs, epochs * runs
        self.done: Counter[int] = Counter()
        self.begun = time.perf_counter()

    def after_epoch(self, *numbers: int) -> float:
        """Seconds left when the runs of these numbers have done one more epoch."""
        self.done.update(numbers)
        return self._left()

    def after_run(self, number: int) -> float:
        self.done[number] = self.epochs  # a diverged run leaves epochs out
        return self._left()

    def _left(self) -> float:
        done = self.done.total()
        return (time.perf_counter() - self.begun) / done * (self.total - done)


@dataclass(frozen=True)
class Maker:
    """Makes runs of ``plan`` in ``folder``, and tells of them.

    Args:
        first: Whether this process is the one that writes and tells, of several that train.
    """

    comparison: Comparison
    plan: Plan
    folder: Path
    tell: Callable[[Event], None]
    clock: Clock
    first: bool = True

    def alone(self, number: int, run: str) -> None:
        """Make the run, which is number ``number`` of all."""
        arm, seed = self.plan.runs[run]
        at = (number, len(self.plan.runs), arm.label, seed)
        self.tell(RunStarted(*at, self.plan.task.epochs))

        def report(measured: Epoch) -> None:
            self.tell(EpochDone(*at, measured, self.clock.after_epoch(number)))

        started = _now()
        result = train(
            self.plan.tasks[seed],
            arm.make(),
            seed,
            lr_scale=arm.scale_at,
            device=self.comparison.device,
            progress_callback=report,
            training=self.comparison.training,
            follow=self._followed,
            checkpoint=_checkpoint(self.folder, run, self.comparison.training.checkpoint_every),
        )
        if self.first:
            self._write(number, run, started, result, 1)

    def together(self, first: int, runs: Sequence[str]) -> None:
        """Make the runs as one computation; they are number ``first`` of all, and those after."""
        total, epochs, count = len(self.plan.runs), self.plan.task.epochs, len(runs)
        self.tell(TogetherStarted(first, total, count, epochs))
        told = 0

        def report(_: int, measured: Epoch) -> None:
            nonlocal told
            if measured.epoch > told:
                told = measured.epoch
                left = self.clock.after_epoch(*range(first, first + count))
                self.tell(TogetherEpochDone(first, total, count, told, epochs, left))

        started = _now()
        members = members_of(self.plan, runs)
        results = train_together(
            self.plan.tasks[members[0].seed],
            members,
            device=self.comparison.device,
            progress_callback=report,
            follow=self._followed,
        )
        for number, (run, result) in enumerate(zip(runs, results, strict=True), start=first):
            self._write(number, run, started, result, count)

    def analyse(self, runs: Iterable[str]) -> None:
        """Answer what is asked of finished runs and not yet known."""
        for run in runs:
            lacking = findings.missing(self.folder, run, self.comparison.analyses)
            if lacking and findings.has_model(self.folder, run):
                arm, seed = self.plan.runs[run]
                subject = findings.subject_of(
                    self.plan.tasks[seed],
                    arm.make(),
                    *findings.load_model(self.folder, run, self.plan.tasks[seed]),
                    seed=seed,
                    device=self.comparison.device,
                    data_by_name=self.comparison.data_by_name,
                )
                for name, reason in findings.analyse_run(self.folder, run, subject, lacking):
                    self.tell(Analysed(len(self.plan.runs), arm.label, seed, name, reason))

    @property
    def _followed(self) -> tuple[str, ...]:
        """The splits whose examples are followed over the epochs, for analyses that need that."""
        need = any(ANALYSES[request.name].trace for request in self.comparison.analyses)
        return ("train", "test") if need else ()

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """What all records of the comparison say alike."""
        return {
            "schema": records.SCHEMA,
            "settings": self.plan.configuration["settings"],
            "environment": describe_environment(self.comparison.device),
        }

    def _write(
        self, number: int, run: str, started: str, result: TrainingResult, together: int
    ) -> None:
        """Put a finished run on disk, and say so."""
        arm, seed = self.plan.runs[run]
        task = self.plan.tasks[seed]
        timing = {"started": started, "finished": _now(), "seconds": result.seconds}
        own = {
            "run_id": run,
            "task": {**task.description, "name": task.name, "num_classes": task.num_classes},
            "loss": arm.described(),
            "seed": seed,
            "timing": {**timing, "together": together},
        }
        keep = self.comparison.keep_models or self.comparison.analyses
        if keep and result.status == "finished":
            findings.keep_model(self.folder, run, result)
        record = {**self._shared, **own, **result.recorded()}
        records.write_record(self.folder, record, result.examples)
        forget_checkpoint(self.folder, run)
        at = (number, len(self.plan.runs), arm.label, seed)
        left = self.clock.after_run(number)
        said = (result.status, result.reason, result.accuracy, result.seconds)
        self.tell(RunFinished(*at, *said, left))
        self.analyse([run])


def members_of(plan: Plan, runs: Iterable[str]) -> list[Member]:
    """The runs as `train_together` takes them."""
    pairs = [plan.runs[run] for run in runs]
    return [Member(arm.make(), seed, arm.scale) for arm, seed in pairs]


def forget_checkpoint(folder: Path, run: str) -> None:
    """Delete a run's checkpoint. Their folder stays: a run beside it may be writing one there."""
    _checkpoint(folder, run, math.inf).remove()


def _checkpoint(folder: Path, run: str, every: float) -> Checkpoint:
    return Checkpoint(folder / "checkpoints" / f"{run}.ckpt", every)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

"""The measurement: case by case memory first, then rounds in which everyone is timed once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import torch

from losslab.bench.cases import Case, Inputs
from losslab.bench.clock import Turn, calls_for, one_round
from losslab.bench.contestants import contestants
from losslab.bench.fitting import refuse_what_does_not_fit
from losslab.bench.machine import backend_of, describe_machine
from losslab.bench.memory import peak_bytes
from losslab.bench.result import Column, Measured, Result, Settings
from losslab.bench.step import noting_failure, step_of, using

LEAST_ROUNDS, MOST_ROUNDS = 5, 101


@dataclass(frozen=True)
class Preparing:
    """``label`` is called for the first time on case ``number`` of ``total``."""

    number: int
    total: int
    case: Case
    label: str


@dataclass(frozen=True)
class RoundDone:
    """``done`` rounds are over, of ``of`` if that is known; ``seconds_left`` for all cases."""

    number: int
    total: int
    case: Case
    done: int
    of: int | None
    seconds_left: float | None


@dataclass(frozen=True)
class CaseDone:
    """Case ``number`` of ``total`` is measured, or skipped."""

    number: int
    total: int
    case: Case
    rounds: int
    skipped: str | None


Event = Preparing | RoundDone | CaseDone


def run(settings: Settings, on_event: Callable[[Event], None] | None = None) -> Result:
    """Measure; Ctrl-C ends it with the whole rounds there are and ``interrupted`` set.

    Raises:
        InputError: for a loss that does not exist.
    """
    device = torch.device(settings.device)
    result = Result(settings, describe_machine(device), _now())
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        with on_device:
            _Run(result, device, on_event or (lambda event: None)).all_cases()
    except KeyboardInterrupt:
        result.interrupted = True
    result.finished = _now()
    return result


class _Run:
    """The cases one after another; each is in the result before it is measured, so that what there
    is stays when Ctrl-C comes."""

    def __init__(self, result: Result, device: torch.device, tell: Callable[[Event], None]) -> None:
        self.result, self.settings = result, result.settings
        self.device, self.tell = device, tell
        self.pace = _Pace(self.settings)

    def all_cases(self) -> None:
        total = len(self.settings.cases)
        for number, case in enumerate(self.settings.cases, start=1):
            self.at = (number, total, case)
            self.pace.begin_case(total - number + 1)
            column = self._new_column(case)
            self._measure(column)
            column.skipped = column.baseline.failed
            self.tell(CaseDone(*self.at, column.rounds, column.skipped))

    def _new_column(self, case: Case) -> Column:
        s = self.settings
        everyone = contestants(case, s.losses, s.rivals, s.backends, s.label_smoothing, self.device)
        column = Column(
            case,
            [Measured(one, one.unavailable) for one in everyone],
            ", ".join(s.backends) or backend_of(case, self.device),
        )
        self.result.columns.append(column)
        return column

    def _measure(self, column: Column) -> None:
        refuse_what_does_not_fit(column, self.device, self.settings.backward)
        if column.baseline.failed is not None:
            return
        inputs = column.case.inputs(self.device)
        for row in column.sound:
            self.tell(Preparing(*self.at, row.contestant.label))
            self._prepare(row, inputs)
            inputs.forget_gradients()
        if column.baseline.failed is None:
            self._rounds(column, inputs)

    def _prepare(self, row: Measured, inputs: Inputs) -> None:
        """Warm up, measure the peak, find how many calls a measurement needs."""
        step = step_of(row.contestant.steps, inputs, self.settings.backward)
        with noting_failure(row):
            step()
            inputs.forget_gradients()
            row.peak = peak_bytes(step, self.device)
            row.gradient_bytes = inputs.gradient_bytes
            row.calls = calls_for(step, self.device)

    def _rounds(self, column: Column, inputs: Inputs) -> None:
        turns = []
        for row in column.sound:
            step = step_of(row.contestant.steps, inputs, self.settings.backward)
            turns.append(Turn(step, row.calls, partial(using, row.contestant.backend)))
        rng = random.Random(0)
        while not self.pace.enough(column.rounds):
            begun = time.monotonic()
            seconds = one_round(turns, self.device, rng)
            for row, value in zip(column.sound, seconds, strict=True):
                row.seconds.append(value)
            left = self.pace.seconds_left(column.rounds, time.monotonic() - begun)
            self.tell(RoundDone(*self.at, column.rounds, self.settings.repeats, left))


class _Pace:
    """When a case has had its rounds: as many as asked for, or its share of the time left."""

    def __init__(self, settings: Settings) -> None:
        self.repeats = settings.repeats
        self.until = self.end = time.monotonic() + settings.seconds

    def begin_case(self, cases_left: int) -> None:
        now = time.monotonic()
        self.until = now + max(0.0, self.end - now) / cases_left

    def enough(self, done: int) -> bool:
        if self.repeats is not None:
            return done >= self.repeats
        if done < LEAST_ROUNDS:
            return False
        return done >= MOST_ROUNDS or time.monotonic() >= self.until

    def seconds_left(self, done: int, round_seconds: float) -> float | None:
        """For all cases; None where their number of rounds is given, not their time."""
        if self.repeats is not None:
            return None
        return max(self.end - time.monotonic(), (LEAST_ROUNDS - done) * round_seconds, 0.0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

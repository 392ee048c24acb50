"""What a comparison tells of itself while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from losslab.experiment.watch import Epoch


@dataclass(frozen=True)
class Started:
    """The comparison begins: ``done`` of its ``total`` runs were finished earlier.

    ``together``: so many runs at once are trained as one computation, 1 if each by itself; then
    ``apart`` says why where that could have paid. ``workers`` processes make runs side by side.
    """

    folder: Path
    total: int
    done: int
    skipped_controls: Mapping[str, str]
    together: int = 1
    apart: str | None = None
    workers: int = 1


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
class TogetherStarted:
    """``runs`` runs, from number ``number`` of ``total`` on, begin as one computation."""

    number: int
    total: int
    runs: int
    epochs: int


@dataclass(frozen=True)
class TogetherEpochDone:
    """All of them have done an epoch."""

    number: int
    total: int
    runs: int
    epoch: int
    epochs: int
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


@dataclass(frozen=True)
class Analysed:
    """An analysis of a finished run is on disk, or has failed: ``reason`` says why."""

    total: int
    label: str
    seed: int
    analysis: str
    reason: str | None = None


Event = (
    Started | RunStarted | EpochDone | TogetherStarted | TogetherEpochDone | RunFinished | Analysed
)

"""What was asked for and what was measured, as it comes in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from losslab.bench.cases import Case
from losslab.bench.contestants import DEFAULT_LOSSES, Contestant


@dataclass(frozen=True)
class Settings:
    """What to measure, and for how long: ``repeats`` rounds, or ``seconds`` for all cases.

    Every loss is measured on each of ``backends``; without any, on losslab's own choice.
    """

    cases: tuple[Case, ...]
    losses: tuple[str, ...] = DEFAULT_LOSSES
    rivals: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    backward: bool = True
    repeats: int | None = None
    seconds: float = 60.0
    device: str = "cpu"


@dataclass
class Measured:
    """One contestant on one case: seconds a call in each round, peak bytes above the inputs."""

    contestant: Contestant
    failed: str | None = None
    calls: int = 1
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    gradient_bytes: int = 0


@dataclass
class Column:
    """One case, the baseline first.

    ``backend`` is what losslab computed on; ``skipped`` says why nothing was measured.
    """

    case: Case
    rows: list[Measured]
    backend: str
    skipped: str | None = None

    @property
    def baseline(self) -> Measured:
        return self.rows[0]

    @property
    def rounds(self) -> int:
        return len(self.baseline.seconds)

    @property
    def sound(self) -> list[Measured]:
        return [row for row in self.rows if row.failed is None]


@dataclass
class Result:
    """All that was measured, also when Ctrl-C came before the end."""

    settings: Settings
    environment: dict[str, Any]
    started: str
    finished: str = ""
    columns: list[Column] = field(default_factory=list)
    interrupted: bool = False

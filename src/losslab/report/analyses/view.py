"""One request's findings as its figures see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from losslab.report.analyses import pool
from losslab.report.analyses.dots import Spots
from losslab.report.analyses.pool import Findings
from losslab.report.charts import Chart, make_chart
from losslab.report.style import Looks


@dataclass(frozen=True)
class View:
    """What one analysis found of every run.

    Args:
        name: The beginning of its charts' names, which become ids of the page.
        findings: By label, the baseline (or the only model) first.
        looks: How each label looks.
        specs: By label the loss that it was trained with, as far as known.
        masked: Labels whose gradients are suspected to be masked.
    """

    name: str
    findings: Findings
    looks: Looks
    specs: Mapping[str, str] = field(default_factory=dict)
    masked: tuple[str, ...] = ()

    @property
    def single(self) -> bool:
        """Whether it is about one model alone."""
        return len(self.looks) == 1

    @property
    def runs(self) -> str:
        """Who is averaged over, for captions: empty where nothing is."""
        most = max(map(len, self.findings.values()))
        return "averaged over the seeds" if most > 1 else ""

    @property
    def over_runs(self) -> str:
        """The same, to stand at the end of a part of a sentence."""
        return f", {self.runs}" if self.runs else ""

    def by_stage(self, names: Mapping[str, str], scale: float) -> dict[str, dict[str, Spots]]:
        """By label and stage the numbers of the runs; ``names`` has each stage's value."""
        rows: dict[str, dict[str, Spots]] = {}
        for stage, name in names.items():
            for label, numbers in pool.values(self.findings, name).items():
                rows.setdefault(label, {})[stage] = Spots([scale * x for x in numbers])
        return rows

    def chart(
        self, name: str, title: str, caption: str, draw: Callable[[float], Figure], *, seen: str
    ) -> Chart:
        """A chart of this request; ``seen`` tells what it shows to who does not see it."""
        return make_chart(f"{self.name}-{name}", title, caption, draw, seen=seen)


def sentence(*parts: str) -> str:
    """The parts that are not empty, as one sentence."""
    return "; ".join(part for part in parts if part) + "."

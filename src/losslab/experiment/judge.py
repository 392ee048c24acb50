"""Any number that runs have, loss against loss: paired by seed, oriented, weighed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Yardstick:
    """How differences of one number are judged; see `losslab.analysis.analyse.Quantity`.

    ``better`` None: they are only described. ``resolution``: the number's smallest step.
    """

    better: bool | None
    unit: str
    margin: float
    resolution: float = 0.0


class Judge:
    """Pairs and weighs the runs by one number; ``values[label][seed]`` is None where it has none.

    Args:
        yardstick: How differences are judged.
        values: The number of every loss and seed.
        diverged: Of the label and seed of every diverged run.
    """

    def __init__(
        self,
        yardstick: Yardstick,
        values: Mapping[str, Mapping[int, float | None]],
        diverged: Set[tuple[str, int]],
    ) -> None:
        self.yardstick, self.values, self.diverged = yardstick, values, diverged

    def compare(self, pairs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """For each label and what it is compared with: the comparison, ready for JSON."""
        from losslab.experiment.statistics import compare_paired

        if not pairs:
            return {}
        paired = {label: self._pair(label, other) for label, other in pairs.items()}
        by = self.yardstick
        answers = compare_paired(
            {label: list(differences.values()) for label, (differences, _) in paired.items()},
            margin=by.margin,
            resolution=by.resolution,
            unit=by.unit,
            scale=100.0 if by.unit == "points" else 1.0,
        )
        answered = {}
        for label, answer in answers.items():
            entry = {**answer.as_dict(), "left_out": paired[label][1]}
            if by.better is None:
                entry |= _descriptive(entry)
            answered[label] = entry
        return answered

    def _pair(self, label: str, other: str) -> tuple[dict[int, float], list[int]]:
        """Oriented differences by seed, and the seeds whose runs have no such number."""
        differences, left_out = {}, []
        sign = -1.0 if self.yardstick.better is False else 1.0
        for seed, value in self.values[label].items():
            if seed not in self.values[other]:
                continue
            reference = self.values[other][seed]
            both = all((which, seed) in self.diverged for which in (label, other))
            if value is None or reference is None or both:
                left_out.append(seed)
            else:
                differences[seed] = sign * (value - reference)
        return differences, left_out


def _descriptive(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a comparison that would judge, replaced by ones that only describe."""
    if entry["verdict"] == "refused":
        return {}
    shown = "no number" if entry["mean"] is None else f"{entry['mean']:+.2f}"
    return {
        "p_equivalence": None,
        "needed": None,
        "verdict": "descriptive",
        "sentence": f"descriptive: {shown} on average; larger is neither better nor worse",
    }


def mean_and_sd(values: Mapping[int, float | None]) -> dict[str, Any]:
    there = [value for value in values.values() if value is not None]
    return {
        "mean": statistics.fmean(there) if there else None,
        "sd": statistics.stdev(there) if len(there) > 1 else None,
        "n": len(there),
    }

"""What analyses found of the runs of one loss, brought together as the arrays that figures draw.

Findings of an older losslab may lack a detail: what cannot be read is left out, run by run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losslab.report.numbers import finite

Array = NDArray[np.float64]
Json = Mapping[str, Any]
Findings = Mapping[str, Sequence[Json]]
"""By label, what one analysis found of each run: ``values`` and ``details``."""


def at(finding: Json, *keys: str) -> Any:
    """The detail at the end of a path, or None where it is not there (or is empty)."""
    found: Any = finding.get("details")
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if found not in ((), [], {}) else None


def each(findings: Findings, *keys: str) -> dict[str, list[Any]]:
    """By label the detail at the end of a path, of the runs that have it; labels without: none."""
    found = {label: [at(run, *keys) for run in runs] for label, runs in findings.items()}
    there = {label: [one for one in of if one is not None] for label, of in found.items()}
    return {label: of for label, of in there.items() if of}


def values(findings: Findings, name: str) -> dict[str, list[float]]:
    """By label a value of the runs that have it; labels without any are left out."""
    found = {label: [finite(run["values"].get(name)) for run in runs] for label, runs in
             findings.items()}  # fmt: skip
    there = {label: [x for x in of if x is not None] for label, of in found.items()}
    return {label: of for label, of in there.items() if of}


def mean(numbers: Sequence[float]) -> float:
    """The mean of at least one number."""
    return float(np.mean(numbers))


def interval(numbers: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean over seeds; None of fewer than two."""
    from scipy.stats import t

    if len(numbers) < 2:
        return None
    half = t.ppf(0.975, len(numbers) - 1) * np.std(numbers, ddof=1) / np.sqrt(len(numbers))
    return mean(numbers) - float(half), mean(numbers) + float(half)


# --- energies -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassEnergies:
    """For each class, over its own examples: the energy of that class and of the others."""

    true: Array
    mean: Array
    lowest: Array
    highest: Array


def class_energies(tables: Sequence[Any]) -> ClassEnergies | None:
    """Of tables (true class × class) of several runs, averaged; NaN where a class is absent."""
    arrays = [np.array(table, dtype=np.float64) for table in tables]
    square = [a for a in arrays if a.ndim == 2 and a.shape == (len(a), len(a)) and len(a) > 1]
    same = [a for a in square if a.shape == square[0].shape]
    if not same:
        return None
    table = np.mean(same, axis=0)
    others = table[~np.eye(len(table), dtype=bool)].reshape(len(table), -1)
    return ClassEnergies(table.diagonal(), others.mean(1), others.min(1), others.max(1))


# --- gradients ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bands:
    """Shares of the examples and of the gradient in each band of confidence, over the runs."""

    examples: Array
    gradient: Array
    sd: Array | None
    mean: float


def bands(counts: Sequence[Any], shares: Sequence[Json]) -> Bands:
    """Counts of examples and what one loss makes of them, of as many runs."""
    examples = [np.array(run, dtype=np.float64) / max(sum(run), 1) for run in counts]
    gradient = np.array([run["shares"] for run in shares], dtype=np.float64)
    sd = gradient.std(axis=0, ddof=1) if len(gradient) > 1 else None
    means = [float(run["mean"]) for run in shares]
    return Bands(np.mean(examples, axis=0), gradient.mean(axis=0), sd, mean(means))


# --- curves ---------------------------------------------------------------------------------------


def stacked(runs: Sequence[Sequence[Any]], first: int) -> tuple[Array, Array]:
    """Epochs from ``first`` and values (runs × epochs); NaN where a run ended or had no number."""
    length = max(map(len, runs))
    table = np.full((len(runs), length), np.nan)
    for row, run in zip(table, runs, strict=True):
        row[: len(run)] = [np.nan if finite(x) is None else x for x in run]
    return np.arange(first, first + length, dtype=np.float64), table


@dataclass(frozen=True)
class Curve:
    """Accuracy over ε, a mean over the runs; at 0 without an attack."""

    epsilon: Array
    accuracy: Array


def curve(points: Sequence[Mapping[float, float]], clean: Sequence[float]) -> Curve:
    """By run, the accuracy at each ε; at 0 the mean of ``clean``, if there is any."""
    radii = sorted({radius for run in points for radius in run})
    means = [mean([run[radius] for run in points if radius in run]) for radius in radii]
    start = ([0.0], [mean(clean)]) if clean else ([], [])
    return Curve(np.array([*start[0], *radii]), np.array([*start[1], *means]))

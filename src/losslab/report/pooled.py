"""Records to the arrays that figures draw: paired differences, curves, pooled histograms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losslab.experiment.summary import SMALLER_IS_BETTER
from losslab.report.figures import Curves, Histogram, Reliability
from losslab.report.folder import Json
from losslab.report.histograms import below, density, span
from losslab.report.numbers import finite

Array = NDArray[np.float64]


def result(record: Mapping[str, Any], selection: str, name: str) -> float | None:
    """One metric of one run on the test set, or None where it has none (it diverged)."""
    chosen = record["results"].get(selection) or {}
    return finite(chosen.get("test", {}).get(name))


def paired_differences(
    candidate: Iterable[Json],
    baseline: Iterable[Json],
    *,
    selection: str,
    name: str,
    diverged_count_as: Mapping[str, float],
) -> tuple[dict[int, float], dict[int, float]]:
    """Candidate minus baseline for the seeds both have, turned so that larger is better.

    Two dictionaries by seed: the sound pairs, and those of which a run diverged. A diverged run
    takes part with what it counts for, where the metric has such a number; the rule is the
    summary's.
    """
    sign = -1.0 if name in SMALLER_IS_BETTER else 1.0

    def counted(record: Json) -> float | None:
        if record["status"] == "diverged":
            return diverged_count_as.get(name)
        return result(record, selection, name)

    reference = {record["seed"]: record for record in baseline}
    sound: dict[int, float] = {}
    diverged: dict[int, float] = {}
    for record in candidate:
        other = reference.get(record["seed"])
        if other is None:
            continue
        values = counted(record), counted(other)
        if values[0] is not None and values[1] is not None:
            both = {record["status"], other["status"]} == {"finished"}
            (sound if both else diverged)[record["seed"]] = sign * (values[0] - values[1])
    return sound, diverged


_PANELS = (
    ("validation accuracy, %", ("validation", "accuracy"), 100.0, False),
    ("validation NLL, nats", ("validation", "nll"), 1.0, True),
    ("training loss (each its own)", ("train_loss",), 1.0, False),
)


def learning_curves(runs: Mapping[str, Sequence[Json]]) -> list[Curves]:
    """The panels of learning curves that the records hold, each label's runs as seeds × epochs."""
    panels = []
    for title, keys, scale, log in _PANELS:
        stacked = {label: _stacked(records, keys, scale) for label, records in runs.items()}
        kept = {label: pair for label, pair in stacked.items() if np.isfinite(pair[1]).any()}
        if kept:
            panels.append(Curves(title, kept, log))
    return panels


def _stacked(records: Sequence[Json], keys: Sequence[str], scale: float) -> tuple[Array, Array]:
    found: list[dict[float, float]] = []
    for record in records:
        values: Any = record["curves"]
        for key in keys:
            values = values[key]
        pairs = zip(record["curves"]["epoch"], values, strict=True)
        found.append({epoch: scale * y for epoch, x in pairs if (y := finite(x)) is not None})
    grid = sorted({epoch for run in found for epoch in run})
    table = [[run.get(epoch, np.nan) for epoch in grid] for run in found]
    return (
        np.array(grid, dtype=np.float64),
        np.array(table, dtype=np.float64).reshape(len(found), len(grid)),
    )


BINS = 50


def pooled_margins(records: Sequence[Json]) -> Histogram | None:
    """The margins of all seeds in one density.

    `BINS` bins over the central 99.8 % of all margins, so that a few distant examples do not
    squeeze the rest. The density counts those too: it integrates to 0.998.
    """
    share = below([record["margin_histogram"] for record in records])
    if share is None:
        return None
    edges = np.linspace(*span(share), BINS + 1)
    right = [x for record in records if (x := result(record, "last", "accuracy")) is not None]
    return Histogram(edges, density(share, edges), 1.0 - float(np.mean(right)) if right else None)


def pooled_reliability(records: Sequence[Json]) -> Reliability | None:
    """The reliability diagram over all seeds' test examples, empty bins left out."""
    tables = [_summable(record["reliability"]) for record in records if record["reliability"]]
    if not tables:
        return None
    counts, confidence, accuracy = np.sum(tables, axis=0)
    filled = counts > 0
    eces = [x for record in records if (x := result(record, "last", "ece")) is not None]
    return Reliability(
        confidence[filled] / counts[filled],
        accuracy[filled] / counts[filled],
        counts[filled] / counts.sum(),
        f"ECE {100 * np.mean(eces):.2f} %" if eces else "",
    )


def _summable(stored: Mapping[str, Any]) -> Array:
    """Counts, summed confidence and summed accuracy of each bin: what adds up over seeds."""
    counts = np.array(stored["counts"], dtype=np.float64)
    means = [np.array(stored[key], dtype=np.float64) for key in ("confidence", "accuracy")]
    return np.stack([counts, *(np.nan_to_num(mean) * counts for mean in means)])

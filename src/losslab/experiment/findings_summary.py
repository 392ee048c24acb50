"""What the analyses of all runs say together: each value paired by seed, as the metrics are.

A run that was not analysed (it diverged, or the comparison was interrupted) is left out of its
pair. Differences are loss − baseline, whichever way is better (the verdict says it); of values of
which neither way is, they are described, not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from losslab.analysis.analyse import ANALYSES
from losslab.experiment.findings import load_findings
from losslab.experiment.judge import Judge, Yardstick, mean_and_sd

Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by label and seed


def summarize_findings(
    folder: Path, comparison: Mapping[str, Any], planned: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """By request ``values``, each with table and comparisons, and ``flags``; ready for JSON."""
    labels = [arm["label"] for arm in comparison["losses"]]
    by_request: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for record in planned:
        for request, finding in load_findings(folder, record["run_id"]).items():
            found = by_request.setdefault(request, {label: {} for label in labels})
            found[record["loss"]["label"]][record["seed"]] = finding
    return {
        request: _summarized(comparison, found)
        for request, found in by_request.items()
        if any(finding["name"] in ANALYSES for of in found.values() for finding in of.values())
    }


def _summarized(comparison: Mapping[str, Any], found: Found) -> dict[str, Any]:
    one = next(finding for of in found.values() for finding in of.values())
    names = dict.fromkeys(n for of in found.values() for f in of.values() for n in f["values"])
    return {
        "name": one["name"],
        "options": one["options"],
        "runs": {label: len(of) for label, of in found.items()},
        "values": {name: _value(comparison, found, one["name"], name) for name in names},
        "flags": {label: flags for label, of in found.items() if (flags := _flags(of))},
    }


def _value(comparison: Mapping[str, Any], found: Found, analysis: str, name: str) -> dict[str, Any]:
    quantity = ANALYSES[analysis].quantity(name)
    values = {
        label: {seed: finding["values"].get(name) for seed, finding in of.items()}
        for label, of in found.items()
    }
    judge = Judge(Yardstick(quantity.better, quantity.unit, quantity.margin), values, frozenset())
    baseline = comparison["baseline"]
    controls = [arm["label"] for arm in comparison["losses"] if arm["control_for"]]
    losses = [label for label in values if label not in controls and label != baseline]
    return {
        "better": quantity.better,
        "unit": quantity.unit,
        "margin": quantity.margin,
        "table": {label: mean_and_sd(of) for label, of in values.items()},
        "comparisons": {
            label: _as_it_is(entry, quantity.better)
            for pairs in (dict.fromkeys(losses, baseline), dict.fromkeys(controls, baseline))
            for label, entry in judge.compare(pairs).items()
        },
    }


def _as_it_is(entry: Mapping[str, Any], better: bool | None) -> dict[str, Any]:
    """The comparison with its difference not turned: plus is more, be that better or worse."""
    if better is not False:
        return dict(entry)
    turned = {"mean": "mean", "low": "high", "high": "low"}
    raw = {to: None if entry[of] is None else -entry[of] for to, of in turned.items()}
    return {**entry, **raw}


def _flags(of: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every seed's warnings, in order."""
    return [{"seed": seed, "text": text} for seed, f in sorted(of.items()) for text in f["flags"]]

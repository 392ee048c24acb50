"""What the analyses of all runs say together: each value paired by seed, as the metrics are.

A run that was not analysed (it diverged, or the comparison was interrupted) is left out of its
pair; one that an analysis failed on has a flag in its place. Differences are loss − baseline,
whichever way is better (the verdict says it); of values of which neither way is, they are
described, not judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from losslab.analysis.analyse import ANALYSES
from losslab.experiment.findings import Known, load_all, not_measured
from losslab.experiment.judge import Judge, Yardstick, mean_and_sd

Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by label and seed


def summarize_findings(
    folder: Path,
    comparison: Mapping[str, Any],
    planned: Sequence[Mapping[str, Any]],
    known: Mapping[str, Known] | None = None,
) -> dict[str, dict[str, Any]]:
    """By request ``values``, each with table and comparisons, and ``flags``; ready for JSON.

    ``failed`` has the seeds of the runs that a request could not be answered for, by label.

    ``known`` is what is known of the runs, by run_id, where it has been read already.
    """
    known = load_all(folder, planned) if known is None else known
    labels = [arm["label"] for arm in comparison["losses"]]
    found: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    failed: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for record in planned:
        of_run = known[record["run_id"]]
        for where, entries in ((found, of_run.findings), (failed, of_run.failed)):
            for request, entry in entries.items():
                by_label = where.setdefault(request, {label: {} for label in labels})
                by_label[record["loss"]["label"]][record["seed"]] = entry
    nothing: Found = {label: {} for label in labels}
    summarized = {
        request: _summarized(comparison, found.get(request, nothing), failed.get(request, nothing))
        for request in dict.fromkeys((*found, *failed))
    }
    return {request: entry for request, entry in summarized.items() if entry is not None}


def _summarized(
    comparison: Mapping[str, Any], found: Found, failed: Found
) -> dict[str, Any] | None:
    """One request; None for an analysis that there is no more."""
    one = next(entry for by in (found, failed) for of in by.values() for entry in of.values())
    if one["name"] not in ANALYSES:
        return None
    names = dict.fromkeys(n for of in found.values() for f in of.values() for n in f["values"])
    lost = {label: sorted(of) for label, of in failed.items() if of}
    flags = {label: _flags(found[label], failed[label]) for label in found}
    return {
        "name": one["name"],
        "options": one["options"],
        "runs": {label: len(of) for label, of in found.items()},
        "values": {name: _value(comparison, found, one["name"], name) for name in names},
        "flags": {label: told for label, told in flags.items() if told},
        **({"failed": lost} if lost else {}),
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
    told = [
        quantity.told_of(f["details"]) for of in found.values() for f in of.values() if quantity.of
    ]
    return {
        "better": quantity.better,
        "unit": quantity.unit,
        "margin": quantity.margin,
        **({"of": ", ".join(dict.fromkeys(told))} if told else {}),
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


def _flags(
    found: Mapping[int, Mapping[str, Any]], failed: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Every seed's warnings, in order, and why there is nothing of a seed."""
    told = [(seed, text) for seed, one in found.items() for text in one["flags"]]
    told += [(seed, not_measured(one["name"], one["reason"])) for seed, one in failed.items()]
    return [{"seed": seed, "text": text} for seed, text in sorted(told, key=lambda pair: pair[0])]

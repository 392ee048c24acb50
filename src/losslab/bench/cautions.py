"""What speaks against trusting a measurement, and what was left out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WIDE = 0.2
"""Quartiles farther apart than this part of their median are called wide."""


def cautions(measured: Mapping[str, Any]) -> list[dict[str, str]]:
    """``{"kind": "warning" | "skipped" | "note", "text": …}`` for people, most important first."""
    found = [*_busy(measured["environment"]), *_wide(measured["cases"])]
    notes = [{"kind": kind, "text": text} for kind, text in found]
    return notes + [{"kind": "skipped", "text": text} for text in _skipped(measured["cases"])]


def _busy(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    load, cores = environment["load_average"], environment["cores"]
    if load is not None and cores and load > cores:
        yield (
            "warning",
            f"the machine was busy: load {load:.2f} on {cores} cores at the start. Ratios suffer "
            "less than times, but measure again when it is quiet.",
        )


def _wide(cases: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """One line for all: how many, and the widest."""
    widths = {}
    for case in cases:
        for row in case["results"]:
            if row["ratio"] is not None and row["role"] != "baseline":
                ratio = row["ratio"]
                width = (ratio["high"] - ratio["low"]) / ratio["median"]
                widths[f"{row['label']} at {case['title']} {case['dtype']}"] = width
    wide = {name: width for name, width in widths.items() if width > WIDE}
    if wide:
        name = max(wide, key=lambda name: wide[name])
        yield (
            "warning",
            f"{len(wide)} of {len(widths)} ratios spread widely: their quartiles lie more than "
            f"{WIDE:.0%} apart, most for {name} ({wide[name]:.0%}). Measure again on a quiet "
            "machine, or with more --repeats or --seconds.",
        )


def _skipped(cases: list[dict[str, Any]]) -> Iterator[str]:
    for case in cases:
        where = f"{case['title']} {case['dtype']}"
        if case["skipped"] is not None:
            yield f"{where}: {case['baseline']} {_joined(case['skipped'])}"
            continue
        for row in case["results"]:
            if row["failed"] is not None:
                yield f"{row['label']} at {where}: {row['failed']}"


def _joined(reason: str) -> str:
    return reason if reason.startswith("needs") else f"failed: {reason}"

"""A result as one JSON document: settings, environment, every round, and what they come to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from losslab.bench.cautions import cautions
from losslab.bench.clock import ratios, spread
from losslab.bench.result import Column, Measured, Result

SCHEMA = 1


def document(result: Result, command: str = "") -> dict[str, Any]:
    """What ``bench.json`` holds; the table and the figure are drawn from it."""
    settings = asdict(result.settings)
    del settings["cases"]
    made = {
        "schema": SCHEMA,
        "command": command,
        "started": result.started,
        "finished": result.finished,
        "interrupted": result.interrupted,
        "settings": settings,
        "environment": result.environment,
        "cases": [_case(column) for column in result.columns],
    }
    return {**made, "cautions": cautions(made)}


def _case(column: Column) -> dict[str, Any]:
    case, baseline = column.case, column.baseline
    return {
        "title": case.title,
        "rows": case.rows,
        "classes": case.classes,
        "features": case.features,
        "dtype": case.dtype,
        "logits_bytes": case.logits_bytes,
        "backend": column.backend,
        "baseline": baseline.contestant.label,
        "rounds": column.rounds,
        "skipped": column.skipped,
        "results": [_row(row, baseline, column) for row in column.rows],
    }


def _row(row: Measured, baseline: Measured, column: Column) -> dict[str, Any]:
    """One contestant. Peak memory is above the inputs; ``in_logits`` leaves out the gradients of a
    linear layer, which everyone must hold, but not that of the logits."""
    time = ratio = memory = None
    if row.seconds:
        time = spread(row.seconds)._asdict()
        ratio = spread(ratios(row.seconds, baseline.seconds))._asdict()
    if row.peak is not None:
        counted = row.peak - (0 if column.case.features is None else row.gradient_bytes)
        memory = {
            "peak_bytes": row.peak,
            "gradient_bytes": row.gradient_bytes,
            "counted_bytes": counted,
            "in_logits": counted / column.case.logits_bytes,
        }
    return {
        "label": row.contestant.label,
        "role": row.contestant.role,
        "spec": row.contestant.spec,
        "backend": row.contestant.backend,
        "failed": row.failed,
        "calls_a_round": row.calls,
        "seconds": row.seconds,
        "time": time,
        "ratio": ratio,
        "memory": memory,
    }

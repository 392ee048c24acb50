"""What an analysis of one trained model comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """The outcome of one analysis, ready for JSON.

    Args:
        values: Single numbers by dotted name (``"auroc.min_energy"``), to be compared between
            losses seed by seed. What could not be measured is absent, never NaN.
        details: What the pictures are drawn from: lists, tables, histograms.
        flags: Warnings that a reader must see beside the numbers, one sentence each.
    """

    values: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

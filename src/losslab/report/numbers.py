"""How the numbers of a comparison are written: units, signs, digits, and what stands for "none".

Records keep fractions (accuracy 0.974); people read percent (97.40 %) and, for differences,
percentage points. Every table, figure and sentence of the report takes its format from here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from losslab.metrics import catalog

NONE = "–"
"""Stands where there is no number (no run finished, or it was not finite)."""


@dataclass(frozen=True)
class Metric:
    """How one metric is named, scaled and read."""

    name: str
    title: str
    unit: str
    difference_unit: str
    scale: float
    digits: int
    larger_is_better: bool | None

    @property
    def direction(self) -> str:
        """Which way is good, in words."""
        if self.larger_is_better is None:
            return "neither way is better"
        return "higher is better" if self.larger_is_better else "lower is better"

    @property
    def short_unit(self) -> str:
        """The unit of a difference, short enough for a table: ``pp`` for percentage points."""
        return "pp" if self.difference_unit == "percentage points" else self.difference_unit

    @property
    def heading(self) -> str:
        """Title with its unit: ``Accuracy, %``."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


_WRITTEN = {
    "share": ("%", "percentage points", 100.0, 2),
    "nats": ("nats", "nats", 1.0, 4),
    "logits": ("logits", "logits", 1.0, 2),
}


def shown(row: catalog.Metric) -> Metric:
    """How a metric of the catalogue, or of a task, is written."""
    fine = "", "", 1.0, 4 if row.margin < 0.1 else 2
    return Metric(row.name, row.title, *_WRITTEN.get(row.unit, fine), row.better)


METRICS = {name: shown(row) for name, row in catalog.METRICS.items()}

SELECTIONS = {
    "last": "Last epoch",
    "validation_selected": "Validation-selected",
    "best_on_test": "Best on test (optimistic)",
}


def metrics_of(summary: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of a comparison, by name: everybody's, and its task's own."""
    own = (catalog.Metric(**row) for row in summary.get("metrics", ()))
    return {**METRICS, **{row.name: shown(row) for row in own}}


def metric(name: str, summary: Mapping[str, Any] | None = None) -> Metric:
    """The metric of that name; an unknown one is shown as it is, larger taken as better."""
    known = metrics_of(summary or {}).get(name)
    return known or Metric(name, name.replace("_", " "), "", "", 1.0, 4, True)


def finite(value: Any) -> float | None:
    """The value as a finite float, or None (null, NaN, infinite, or not a number)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _minus(text: str) -> str:
    return text.replace("-", "−")


_NUMBER_IN_PROSE = re.compile(r"(?<![^\s\[])-?\d[\d.]*(?:e-?\d+)?")


def with_minus(sentence: str) -> str:
    """A sentence with true minus signs before its numbers; hyphens and names stay.

    Example:
        >>> with_minus("f(a=-1) on 2026-11-22: -0.79 to [-2, +2.09], p = 1e-07")
        'f(a=-1) on 2026-11-22: −0.79 to [−2, +2.09], p = 1e−7'
    """
    return _NUMBER_IN_PROSE.sub(lambda number: _minus(number[0]).replace("e−0", "e−"), sentence)


def aligned(values: Sequence[Any], sign: str = "") -> list[str]:
    """Numbers that belong together, with as many decimals (or the same power of ten) each.

    The largest has three significant digits or all those before its point. ``sign`` is ``+`` where
    plus is to be written too; a zero never has a sign.

    Example:
        >>> aligned([0.025, 0.00318]), aligned([-7.39e-5, -3.58e-7], "+"), aligned([None, 1113])
        (['0.0250', '0.0032'], ['−7.39e−5', '−0.04e−5'], ['–', '1113'])
    """
    known = [finite(value) for value in values]
    power = leading_power(known)
    small_or_huge = power is not None and not -3 < power < 6
    scale, end = (10.0**power, _minus(f"e{power}")) if power and small_or_huge else (1.0, "")
    digits = 2 if end else max(2 - (power or 0), 0)
    return [
        NONE if x is None else "0" if end and not x else _signed(x / scale, digits, sign) + end
        for x in known
    ]


def fixed(values: Sequence[Any], digits: int, sign: str = "") -> list[str]:
    """Numbers with so many decimals each; ``sign`` as for `aligned`."""
    known = [finite(value) for value in values]
    return [NONE if x is None else _signed(x, digits, sign) for x in known]


def leading_power(values: Sequence[float | None]) -> int | None:
    """The power of ten of the first of three digits of the largest; None of nothing but zeros."""
    largest = max((abs(x) for x in values if x is not None), default=0.0)
    return int(f"{largest:.2e}".partition("e")[2]) if largest else None


def _signed(number: float, digits: int, sign: str) -> str:
    """``+0.53`` or ``−0.10``; ``0.00`` without a sign."""
    text = f"{number:{sign}.{digits}f}"
    return _minus(text.lstrip("+-") if float(text) == 0 else text)


def value_text(row: Metric, value: Any) -> str:
    """A value in the metric's unit, without the unit: ``97.40``."""
    number = finite(value)
    return NONE if number is None else _signed(number * row.scale, row.digits, "")


def mean_sd_text(row: Metric, entry: Mapping[str, Any] | None) -> str:
    """``97.40 ± 0.31`` (unbroken after ±); the mean alone for a single run."""
    if not entry or finite(entry.get("mean")) is None:
        return NONE
    mean = value_text(row, entry["mean"])
    spread = finite(entry.get("sd"))
    has_spread = spread is not None and entry.get("n", 2) > 1
    return f"{mean} ±\u00a0{value_text(row, spread)}" if has_spread else mean


def difference_text(row: Metric, value: Any) -> str:
    """A signed difference in the metric's unit: ``+0.53`` or ``−0.10``; a plain ``0.00`` for 0."""
    number = finite(value)
    return NONE if number is None else _signed(number * row.scale, row.digits, "+")


def interval_text(row: Metric, low: Any, high: Any) -> str:
    """``[+0.21, +0.85]``, or the dash when either end is missing."""
    if finite(low) is None or finite(high) is None:
        return NONE
    return f"[{difference_text(row, low)}, {difference_text(row, high)}]"


def size_text(row: Metric, value: Any) -> str:
    """A size without a sign (a margin, a detectable difference): ``0.50``."""
    number = finite(value)
    return NONE if number is None else value_text(row, abs(number))


def p_text(value: Any) -> str:
    """A p-value: three digits, and never a false zero."""
    number = finite(value)
    if number is None:
        return NONE
    return "<0.001" if number < 0.001 else f"{number:.3f}"


def share_text(value: Any) -> str:
    """A probability in percent: ``93 %``; away from 0 and 100 unless it is exactly that."""
    number = finite(value)
    if number is None:
        return NONE
    if 0 < number < 0.01:
        return "<1 %"
    if 0.99 < number < 1:
        return ">99 %"
    return f"{100 * number:.0f} %"


def seconds_text(value: Any) -> str:
    """A duration: ``8.4 s``, ``3 min 05 s``, ``2 h 07 min``."""
    number = finite(value)
    if number is None:
        return NONE
    if number < 59.95:
        return f"{number:.1f} s"
    minutes, seconds = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(number / 60), 60)
    return f"{hours} h {minutes:02d} min"


def listing(items: Any) -> str:
    """``1, 2, 3``: any few things in one line."""
    return ", ".join(str(item) for item in items)

"""The forest plot: every seed's paired difference, their mean, its interval, and the margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from losslab.report.marks import spread
from losslab.report.panels import WIDE
from losslab.report.style import INK, Looks, Style, look, shortened, wrapped

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot, in the units it is drawn in.

    ``differences`` has a number for each sound seed, ``diverged`` one for each seed of which a run
    diverged; ``note`` is the text at the line's end.
    """

    label: str
    differences: Sequence[float]
    mean: float | None
    low: float | None
    high: float | None
    note: str = ""
    diverged: Sequence[float] = ()


def forest(
    rows: Sequence[ForestRow],
    *,
    margin: float,
    xlabel: str,
    looks: Looks,
    width: float = WIDE,
) -> Figure:
    """Paired differences: a dot a seed, the mean with its interval, zero, and the ±margin band."""
    narrow = width < 5
    with look():
        height = 1.0 + (0.8 if narrow else 0.48) * len(rows)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.axvspan(-margin, margin, color="#eceff2", zorder=0, label="margin")
        axes.axvline(0.0, color=INK, linewidth=1.0, zorder=1, label="zero")
        axes.set_xlim(_frame(rows, margin))
        for i, row in enumerate(rows):
            _draw_seeds(axes, i, row, looks[row.label])
            _draw_mean(axes, i, row, looks[row.label])
            _write(axes, i, row, narrow)
        axes.set_ylim(len(rows) - 0.4, -0.7 if narrow else -0.6)
        names = [wrapped(row.label, 28) for row in rows]
        axes.set_yticks(range(len(rows)), [""] * len(rows) if narrow else names)
        axes.tick_params(axis="y", length=0, pad=10)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9))
        axes.set_xlabel(xlabel)
    return figure


def _frame(rows: Sequence[ForestRow], margin: float) -> tuple[float, float]:
    """Room for everything but diverged runs: one of them outweighs all other differences."""
    ends = [-margin, 0.0, margin]
    for row in rows:
        ends.extend(row.differences)
        if not row.diverged:
            ends.extend(end for end in (row.mean, row.low, row.high) if end is not None)
    room = 0.06 * (max(ends) - min(ends))
    return min(ends) - room, max(ends) + room


def _draw_seeds(axes: Axes, i: int, row: ForestRow, style: Style) -> None:
    values = np.array([*row.differences, *row.diverged], dtype=np.float64)
    heights = spread(i, len(values))
    sound = len(row.differences)
    paint: dict[str, Any] = {"color": style.color, "alpha": 0.55, "zorder": 2, "linestyle": "none"}
    dots: dict[str, Any] = {"marker": "o", "markersize": 3.6, "markeredgewidth": 0}
    axes.plot(values[:sound], heights[:sound], label=f"seeds-{i}", **dots, **paint)
    if row.diverged:
        crosses: Mapping[str, Any] = {"marker": "x", "markersize": 4.5, "clip_on": False}
        shown = np.clip(values[sound:], *axes.get_xlim())
        axes.plot(shown, heights[sound:], label=f"diverged-{i}", **crosses, **paint)


def _draw_mean(axes: Axes, i: int, row: ForestRow, style: Style) -> None:
    if row.low is not None and row.high is not None:
        bar: dict[str, Any] = {"linewidth": 2.2, "solid_capstyle": "butt", "zorder": 3}
        axes.plot([row.low, row.high], [i, i], color=style.color, label=f"interval-{i}", **bar)
    if row.mean is None:
        return
    low, high = axes.get_xlim()
    beyond = "<" if row.mean < low else ">" if row.mean > high else None
    axes.plot(
        [min(max(row.mean, low), high)],
        [i],
        marker=beyond or style.marker,
        markersize=7.5,
        color=style.color,
        markerfacecolor=style.face,
        clip_on=False,
        zorder=4,
        label=f"mean-{i}",
    )


def _write(axes: Axes, i: int, row: ForestRow, narrow: bool) -> None:
    """Beside the line what it found; where it is narrow, above it whose line it is, and that."""
    at = axes.get_yaxis_transform()
    if narrow:
        paper = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.6}
        text = f"{shortened(row.label, 52)}\n{row.note}".rstrip()
        axes.text(0.0, i - 0.17, text, transform=at, fontsize=8, va="bottom", bbox=paper)
    elif row.note:
        axes.text(1.01, i, row.note, transform=at, fontsize=8.5, va="center")

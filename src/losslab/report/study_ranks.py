"""The critical-difference diagram (Demšar, 2006): mean ranks on an axis, bars join equals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import offset_copy

from losslab.errors import InputError
from losslab.report.panels import WIDE
from losslab.report.style import INK, Looks, Style, look, styles, wrapped

_BAR, _ROW, _LINE = 0.12, 0.24, 0.15
"""Inches: from bar to bar, from name to name, and for a name's second line."""
_LIFT = 40
"""Points from the axis up to the critical difference."""


def critical_difference(
    mean_ranks: Mapping[str, float],
    groups: Sequence[Sequence[str]],
    *,
    looks: Looks | None = None,
    difference: float | None = None,
    xlabel: str = "mean rank",
    note: str = "",
    width: float = WIDE,
) -> Figure:
    """Methods at their mean ranks, the best on the left; a bar joins each group of equals.

    Args:
        mean_ranks: by method, 1 is the best.
        groups: methods not significantly different, each group in order of rank.
        difference: Nemenyi's critical difference, drawn to scale where there is one.
        note: what the bars mean, written below.
    """
    if len(mean_ranks) < 2:
        raise InputError(f"expected two methods or more to rank, got {len(mean_ranks)}.")
    looks = looks or styles(list(mean_ranks))
    order = sorted(mean_ranks, key=lambda method: mean_ranks[method])
    low, high = _frame(list(mean_ranks.values()), difference)
    levels = _levels([(mean_ranks[group[0]], mean_ranks[group[-1]]) for group in groups])
    names = {method: wrapped(method, 30 if width > 5 else 13) for method in order}
    first = 0.28 + _BAR * (max(levels, default=-1) + 1)
    rows = _rows(order, names, first)
    depth = max(rows.values()) + 0.2
    above = 0.75 + (0.25 if difference else 0)
    with look():
        figure = Figure(figsize=(width, depth + above + 0.25), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlim(low, high)
        axes.set_ylim(depth, 0)
        _draw_scale(axes, xlabel, high - low, width)
        for i, method in enumerate(order):
            left = i < math.ceil(len(order) / 2)
            text = f"{mean_ranks[method]:.2f}"
            name = f"{names[method]}  {text}" if left else f"{text}  {names[method]}"
            _draw_method(axes, method, name, mean_ranks[method], rows[method], left, looks[method])
        for group, level in zip(groups, levels, strict=True):
            ends = mean_ranks[group[0]], mean_ranks[group[-1]]
            _draw_bar(axes, ends, 0.16 + _BAR * level, 0.004 * (high - low))
        if difference:
            _draw_difference(figure, axes, difference)
        if note:
            figure.supxlabel(note if width > 5 else note.replace(" (", "\n("), fontsize=8)
    return figure


def _frame(values: list[float], difference: float | None) -> tuple[float, float]:
    """Whole ranks around all of them, with room for the critical difference."""
    low, high = math.floor(min(values)), math.ceil(max(values))
    return low, max(high, low + 1, low + math.ceil(difference or 0))


def _levels(spans: Sequence[tuple[float, float]]) -> list[int]:
    """A height for each bar, the first that is free, so that no two bars touch."""
    ends: list[float] = []
    found = []
    for start, end in spans:
        level = next((i for i, last in enumerate(ends) if last < start), len(ends))
        ends[level : level + 1] = [end]
        found.append(level)
    return found


def _rows(order: Sequence[str], names: Mapping[str, str], first: float) -> dict[str, float]:
    """Heights of the names: outermost on top, so that no line crosses a name's line."""
    half = math.ceil(len(order) / 2)
    rows: dict[str, float] = {}
    for side in (order[:half], order[half:][::-1]):
        at = first
        for method in side:
            lines = names[method].count("\n")
            rows[method] = at + lines * _LINE / 2
            at += _ROW + lines * _LINE
    return rows


def _draw_scale(axes: Axes, xlabel: str, span: float, width: float) -> None:
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(f"{xlabel} (left is better)" if width > 5 else xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(8 if width > 5 else 4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks([])
    axes.grid(False)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "top")


def _draw_method(
    axes: Axes, method: str, name: str, rank: float, row: float, left: bool, style: Style
) -> None:
    low, high = axes.get_xlim()
    end = low if left else high
    elbow: dict[str, Any] = {"linewidth": 1.1, "solid_capstyle": "butt", "clip_on": False}
    axes.plot([rank, rank, end], [0, row, row], color=style.color, label=f"line {method}", **elbow)
    axes.plot(
        [rank],
        [0],
        marker=style.marker,
        markersize=5.5,
        color=style.color,
        markerfacecolor=style.face,
        clip_on=False,
        zorder=4,
        label=f"rank {method}",
    )
    axes.annotate(
        name,
        (end, row),
        (-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=8.5,
        annotation_clip=False,
    )


def _draw_bar(axes: Axes, ends: tuple[float, float], at: float, overhang: float) -> None:
    span = [min(ends) - overhang, max(ends) + overhang]
    bar: dict[str, Any] = {"linewidth": 3.4, "solid_capstyle": "butt", "zorder": 3}
    axes.plot(span, [at, at], color=INK, label="group", clip_on=False, **bar)


def _draw_difference(figure: Figure, axes: Axes, difference: float) -> None:
    """The critical difference to scale, above the axis's label."""
    low = axes.get_xlim()[0]
    lifted = offset_copy(axes.get_xaxis_transform(), figure, y=_LIFT, units="points")
    line: dict[str, Any] = {"color": INK, "linewidth": 1.4, "clip_on": False}
    axes.plot([low, low + difference], [1, 1], marker="|", markersize=7, label="difference",
              transform=lifted, **line)  # fmt: skip
    axes.annotate(f"critical difference {difference:.2f}", (low + difference, 1), (6, 0),
                  xycoords=lifted, textcoords="offset points", va="center", fontsize=8,
                  annotation_clip=False)  # fmt: skip

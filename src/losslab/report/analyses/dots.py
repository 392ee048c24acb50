"""Figures of single numbers, a row a loss: every seed's dot and their mean, in panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from losslab.report.marks import PowersOfTen, spread
from losslab.report.panels import WIDE, Panels, make_panels
from losslab.report.style import GREY, INK, Looks, Style, look, shortened, wrapped


@dataclass(frozen=True)
class Spots:
    """The numbers of the runs of one loss, at least one, and an interval if there is one."""

    values: Sequence[float]
    interval: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))


@dataclass(frozen=True)
class DotPanel:
    """One quantity of every loss. ``limits`` are the axis's ends, if they are given."""

    title: str
    rows: Mapping[str, Spots]
    limits: tuple[float, float] | None = None


def dots(
    panels: Sequence[DotPanel],
    labels: Sequence[str],
    *,
    looks: Looks,
    width: float = WIDE,
    xlabel: str = "",
    logarithmic: bool = False,
) -> Figure:
    """A panel a quantity, a row a loss: small dots are seeds, the mark their mean.

    ``logarithmic`` allows a logarithmic scale, which is taken where the numbers are positive and
    span more than a factor of ten.
    """
    with look():
        made = _rows(len(panels), labels, width)
        for axes, panel in zip(made.axes, panels, strict=True):
            if logarithmic:
                _scale(axes, [x for spots in panel.rows.values() for x in spots.values])
            for i, label in enumerate(labels):
                if label in panel.rows:
                    _spots(axes, i, label, panel.rows[label], looks[label])
            axes.set_title(panel.title)
            if panel.limits is not None:
                low, high = panel.limits
                axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
                axes.set_xticks([low, 0.5 * (low + high), high])
        for axes in made.bottom if xlabel else ():
            axes.set_xlabel(xlabel)
        _name_rows(made, labels, width)
    return made.figure


def _rows(count: int, labels: Sequence[str], width: float, extra: float = 0.0) -> Panels:
    each = 0.48 if width < 5 else 0.3
    made = make_panels(count, width, least=2.5, height=0.85 + each * len(labels) + extra)
    made.figure.set_layout_engine("constrained", w_pad=0.1)
    for axes in made.axes:
        axes.set_ylim(len(labels) - 0.45, -0.8 if width < 5 else -0.55)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(9 // made.columns, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.08)
    return made


def _name_rows(made: Panels, labels: Sequence[str], width: float) -> None:
    """The losses' names: beside the first panels, or above each row where it is narrow."""
    for axes in made.axes:
        beside = axes in made.left and width >= 5
        names = [wrapped(label, 22) for label in labels] if beside else [""] * len(labels)
        axes.set_yticks(range(len(labels)), names)
        if width < 5:
            at = axes.get_yaxis_transform()
            for i, label in enumerate(labels):
                text = shortened(label, 40)
                axes.text(0.0, i - 0.25, text, transform=at, fontsize=8, va="bottom")


def _spots(axes: Axes, i: int, label: str, spots: Spots, style: Style) -> None:
    paint: dict[str, Any] = {"color": style.color, "linestyle": "none"}
    small: dict[str, Any] = {"marker": "o", "markersize": 3.4, "markeredgewidth": 0, "alpha": 0.5}
    if len(spots.values) > 1:
        heights = spread(i, len(spots.values))
        axes.plot(spots.values, heights, label=f"seeds/{label}", **small, **paint)
    if spots.interval is not None:
        bar: dict[str, Any] = {"linewidth": 2.0, "solid_capstyle": "butt", "color": style.color}
        axes.plot(spots.interval, [i, i], label=f"interval/{label}", **bar)
    large: dict[str, Any] = {"marker": style.marker, "markersize": 7, "markerfacecolor": style.face}
    axes.plot([spots.mean], [i], label=f"mean/{label}", zorder=3, **large, **paint)


def _scale(axes: Axes, numbers: Sequence[float]) -> None:
    if min(numbers) <= 0 or max(numbers) <= 10 * min(numbers):
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=4))
    axes.xaxis.set_major_formatter(PowersOfTen())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)


@dataclass(frozen=True)
class StepPanel:
    """One quantity of every loss, at several stages: ``rows[label][stage]``."""

    title: str
    rows: Mapping[str, Mapping[str, Spots]]


_SIGNS = (("o", False), ("s", True), ("D", False))


def steps(
    panels: Sequence[StepPanel],
    labels: Sequence[str],
    stages: Sequence[str],
    *,
    looks: Looks,
    width: float = WIDE,
) -> Figure:
    """A row a loss with a mark for each stage, such as before and after, at most three."""
    with look():
        made = _rows(len(panels), labels, width, extra=0.25)
        for axes, panel in zip(made.axes, panels, strict=True):
            for i, label in enumerate(labels):
                if label in panel.rows:
                    _steps(axes, i, label, panel.rows[label], stages, looks[label].color)
            axes.set_title(panel.title)
        _name_rows(made, labels, width)
        made.figure.legend(
            [_sign(k, INK) for k in range(len(stages))],
            list(stages),
            loc="outside upper left",
            ncols=min(len(stages), max(1, int(width / 1.8))),
        )
    return made.figure


def _steps(
    axes: Axes,
    i: int,
    label: str,
    of: Mapping[str, Spots],
    stages: Sequence[str],
    color: str,
) -> None:
    means = [spots.mean for spots in of.values()]
    axes.plot([min(means), max(means)], [i, i], color=GREY, linewidth=1.4, zorder=1)
    for k, stage in enumerate(stages):
        if stage in of:
            sign = _sign(k, color)
            sign.set(xdata=[of[stage].mean], ydata=[i], label=f"{stage}/{label}", zorder=3)
            axes.add_line(sign)
            if len(of[stage].values) > 1:
                paint: dict[str, Any] = {"color": color, "alpha": 0.4, "markeredgewidth": 0}
                x, y = of[stage].values, spread(i, len(of[stage].values))
                marks: dict[str, Any] = {
                    "marker": _SIGNS[k][0],
                    "markersize": 3,
                    "linestyle": "none",
                }
                axes.plot(x, y, label=f"{stage} seeds/{label}", **marks, **paint)
    axes.autoscale_view()


def _sign(k: int, color: str) -> Line2D:
    marker, full = _SIGNS[k]
    face = color if full else "white"
    return Line2D(
        [],
        [],
        linestyle="none",
        marker=marker,
        markersize=6.5,
        color=color,
        markerfacecolor=face,
        markeredgewidth=1.4,
    )

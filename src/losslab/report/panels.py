"""Panels on a grid that folds to the width it is given, and one legend above them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from losslab.report.style import Looks, shortened

WIDE, NARROW = 8.0, 3.7
"""Inches: a page beside its margins, and a telephone."""


@dataclass(frozen=True)
class Panels:
    """A figure and its axes, row by row."""

    figure: Figure
    axes: list[Axes]
    columns: int

    @property
    def bottom(self) -> list[Axes]:
        """The panels with nothing below them."""
        return self.axes[-self.columns :]

    @property
    def left(self) -> list[Axes]:
        """The first panel of each row."""
        return self.axes[:: self.columns]

    def share(self) -> None:
        """One scale for all panels, written at the outer ones only."""
        for axes in self.axes[1:]:
            axes.sharex(self.axes[0])
            axes.sharey(self.axes[0])
        for axes in self.axes:
            axes.tick_params(labelbottom=axes in self.bottom, labelleft=axes in self.left)


def make_panels(
    count: int, width: float, *, least: float, height: float, legend: Sequence[str] = ()
) -> Panels:
    """``count`` panels in as many columns, three at most, as leave each ``least`` inches."""
    rows = math.ceil(count / max(1, min(3, int(width / least))))
    columns = math.ceil(count / rows)
    lines = math.ceil(len(legend) / _legend_columns(legend, width)) if legend else 0
    figure = Figure(figsize=(width, rows * height + 0.2 * lines), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return Panels(figure, axes, columns)


def add_legend(figure: Figure, labels: Sequence[str], looks: Looks, width: float) -> None:
    """One key for all panels, above them."""
    handles = [
        Line2D(
            [],
            [],
            linewidth=1.8,
            marker=looks[label].marker,
            markersize=5,
            markerfacecolor=looks[label].face,
            **looks[label].line(),
        )
        for label in labels
    ]
    # Named afterwards: before matplotlib 3.10 a legend refuses labels that start with "_".
    legend = figure.legend(
        handles,
        [" "] * len(labels),
        loc="outside upper left",
        ncols=_legend_columns(labels, width),
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(shortened(label))


def _legend_columns(labels: Sequence[str], width: float) -> int:
    longest = max(len(shortened(label)) for label in labels)
    return max(1, min(len(labels), int(width / (0.085 * longest + 0.65))))

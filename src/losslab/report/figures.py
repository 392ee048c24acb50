"""The report's figures: numbers in, matplotlib figures out; nothing is read from disk.

Every function takes ``width`` in inches: a narrow figure folds its panels below one another, which
is how the report fits a telephone. Looks come from `losslab.report.style.styles`, so a loss looks
the same in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from losslab.report.forest import ForestRow, forest
from losslab.report.marks import filled, marked_line, outlined, without_scale
from losslab.report.panels import NARROW, WIDE, add_legend, make_panels
from losslab.report.style import AXIS, BASELINE_STYLE, INK, Looks, Style, look, styles, wrapped

__all__ = [
    "NARROW",
    "WIDE",
    "Curves",
    "ForestRow",
    "Histogram",
    "Reliability",
    "forest",
    "learning_curves",
    "loss_shapes",
    "margin_histograms",
    "mean_and_sd",
    "reliability_diagrams",
    "styles",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """One panel of learning curves: for each label, (epochs, values of shape seeds × epochs).

    ``log`` allows a logarithmic scale, which is taken where the values span much; bands end at
    ``bounds``, beyond which there are no values.
    """

    title: str
    runs: Mapping[str, tuple[Array, Array]]
    log: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True)
class Histogram:
    """Pooled density of the margins between ``edges``, and the share of wrong predictions."""

    edges: Array
    density: Array
    wrong: float | None


@dataclass(frozen=True)
class Reliability:
    """Mean confidence, accuracy and share of the examples in each filled bin, and a remark."""

    confidence: Array
    accuracy: Array
    share: Array
    note: str = ""


def learning_curves(panels: Sequence[Curves], *, looks: Looks, width: float = WIDE) -> Figure:
    """One panel a quantity: the mean over seeds with a band of ± one standard deviation."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.runs))
    with look():
        made = make_panels(len(panels), width, least=2.5, height=2.6, legend=labels)
        for axes, panel in zip(made.axes, panels, strict=True):
            axes.set_title(panel.title)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            for label, (epochs, values) in panel.runs.items():
                _draw_curve(axes, label, epochs, values, looks[label], panel)
            _fit_to_late(axes, panel)
        add_legend(made.figure, labels, looks, width)
    return made.figure


def mean_and_sd(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation over seeds (rows) at each epoch, without what is not finite."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    mean = np.where(finite, values, 0.0).sum(axis=0) / np.where(count > 0, count, np.nan)
    squares = np.where(finite, values - mean, 0.0) ** 2
    sd = np.sqrt(squares.sum(axis=0) / np.where(count > 1, count - 1, np.nan))
    return mean, sd


def _draw_curve(
    axes: Axes, label: str, epochs: Array, values: Array, style: Style, panel: Curves
) -> None:
    mean, sd = mean_and_sd(values)
    marked_line(axes, label, epochs, mean, style, markevery=len(epochs) // 6 + 1)
    if np.isfinite(sd).any():
        band: dict[str, Any] = {
            "alpha": 0.15 if len(panel.runs) < 7 else 0.07,
            "linewidth": 0,
            "label": label,
        }
        low, high = (np.clip(end, *panel.bounds) for end in (mean - sd, mean + sd))
        axes.fill_between(epochs, low, high, color=style.color, **band)


def _fit_to_late(axes: Axes, panel: Curves) -> None:
    """Frames the last two thirds of training: the first epochs would flatten all that follows."""
    ends: list[float] = []
    for epochs, values in panel.runs.values():
        mean, sd = mean_and_sd(values)
        late = epochs >= epochs.min() + (epochs.max() - epochs.min()) / 3
        spread = np.nan_to_num(sd)[late]
        ends += [*np.clip(np.r_[mean[late] - spread, mean[late] + spread], *panel.bounds)]
    ends = [end for end in ends if math.isfinite(end)]
    if panel.log and min(ends) > 0 and max(ends) > 20 * min(ends):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # no mathtext
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{panel.title} (log scale)")
        axes.set_ylim(min(ends) / 1.2, max(ends) * 1.2)
    elif max(ends) > min(ends):
        room = 0.05 * (max(ends) - min(ends))
        axes.set_ylim(min(ends) - room, max(ends) + room)


def margin_histograms(
    histograms: Mapping[str, Histogram], *, baseline: str, looks: Looks, width: float = WIDE
) -> Figure:
    """One panel a loss: how far right answers win and wrong ones lose, the baseline as outline."""
    with look():
        made = make_panels(len(histograms), width, least=2.5, height=2.0)
        made.share()
        for axes, (label, histogram) in zip(made.axes, histograms.items(), strict=True):
            filled(axes, "histogram", histogram.density, histogram.edges, looks[label].color)
            other = histograms.get(baseline)
            if other is not None and label != baseline:
                outlined(axes, "baseline", other.density, other.edges, BASELINE_STYLE.color)
            axes.axvline(0.0, color=INK, linewidth=1.0)
            wrong = "" if histogram.wrong is None else f"{100 * histogram.wrong:.2f} % wrong"
            axes.set_title(f"{wrapped(label, 26)}\n{wrong}".rstrip())
            without_scale(axes)
        for axes in made.bottom:
            axes.set_xlabel("margin, logits")
    return made.figure


def reliability_diagrams(
    reliabilities: Mapping[str, Reliability],
    *,
    scaled: Mapping[str, Reliability] | None = None,
    looks: Looks,
    width: float = WIDE,
) -> Figure:
    """One panel a loss: accuracy against confidence; on the diagonal, they agree.

    ``scaled`` has the same after temperature scaling, drawn hollow and dashed.
    """
    with look():
        made = make_panels(len(reliabilities), width, least=2.5, height=2.75)
        made.share()
        for axes, (label, bins) in zip(made.axes, reliabilities.items(), strict=True):
            color, after = looks[label].color, (scaled or {}).get(label)
            axes.plot([0, 1], [0, 1], color=AXIS, linewidth=0.9, label="diagonal")
            _draw_bins(axes, "bins", bins, color, color)
            note = bins.note
            if after is not None:
                _draw_bins(axes, "scaled", after, color, "white")
                note = f"{note} → {after.note.removeprefix('ECE ')}"
            axes.set_title(f"{wrapped(label, 26)}\n{note}".rstrip())
            axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.05), aspect="equal")
            axes.set_xticks([0, 0.5, 1])
            axes.set_yticks([0, 0.5, 1])
        for axes in made.bottom:
            axes.set_xlabel("confidence")
        for axes in made.left:
            axes.set_ylabel("accuracy")
    return made.figure


def _draw_bins(axes: Axes, name: str, bins: Reliability, color: str, face: str) -> None:
    x, y = bins.confidence, bins.accuracy
    dashed = (0, (4, 2)) if face == "white" else "solid"
    axes.plot(x, y, linewidth=1.0, alpha=0.6, color=color, linestyle=dashed, label=name)
    dots: dict[str, Any] = {"facecolor": face, "edgecolor": color, "alpha": 0.8, "zorder": 3}
    axes.scatter(x, y, 13 + 120 * bins.share, **dots)


def loss_shapes(
    curves: Mapping[str, tuple[Any, Any, Any]],
    *,
    looks: Looks | None = None,
    width: float = WIDE,
) -> Figure:
    """Two panels for (p, loss, slope) of each label: the loss and |∂L/∂z_y| against p.

    Example:
        >>> p = [0.25, 0.5, 0.75]
        >>> figure = loss_shapes({"expectation": (p, [0.75, 0.5, 0.25], [0.1875, 0.25, 0.1875])})
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['probability p of the true class', 'probability p of the true class']
    """
    looks = looks or styles(list(curves))
    with look():
        made = make_panels(2, width, least=3.5, height=3.0, legend=list(curves))
        left, right = made.axes
        for label, (p, loss, slope) in curves.items():
            for axes, values in ((left, loss), (right, slope)):
                _draw_shape(axes, label, np.asarray(p), np.asarray(values), looks[label])
        left.set_title("loss, nats")
        right.set_title("size of its slope, |∂L/∂z_y|")
        for axes in (left, right):
            axes.set_xlabel("probability p of the true class")
            axes.set_xlim(0, 1)
        right.set_ylim(bottom=0)
        add_legend(made.figure, list(curves), looks, width)
    return made.figure


def _draw_shape(axes: Axes, label: str, p: Array, values: Array, style: Style) -> None:
    every = max(len(p) // 8, 1)
    marked_line(axes, label, p, values, style, markevery=(every // 2, every))

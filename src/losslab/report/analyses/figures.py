"""The figures of analyses over examples: numbers in, matplotlib figures out.

They follow `losslab.report.figures`: the width decides how panels fold, looks make a loss the same
everywhere, and each artist is named, so that what was drawn can be read back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from losslab.report.analyses.pool import Array, Bands, ClassEnergies, Curve
from losslab.report.histograms import Below
from losslab.report.marks import filled, marked_line, outlined, without_scale
from losslab.report.numbers import aligned
from losslab.report.panels import WIDE, Panels, add_legend, make_panels
from losslab.report.style import GREY, INK, Looks, Style, look, wrapped

MANY = 20
"""Classes beyond which they are drawn as a profile and no longer one by one."""


@dataclass(frozen=True)
class Cumulated:
    """One panel of shares below x, by label."""

    title: str
    xlabel: str
    lines: Mapping[str, Below]


def cumulated(panels: Sequence[Cumulated], *, looks: Looks, width: float = WIDE) -> Figure:
    """What share of the examples lies below x, one line a loss, zero marked."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    with look():
        made = make_panels(len(panels), width, least=3.5, height=2.9, legend=labels)
        for axes, panel in zip(made.axes, panels, strict=True):
            axes.axvline(0.0, color=INK, linewidth=1.0, label="zero")
            for i, (label, share) in enumerate(panel.lines.items()):
                every = max(len(share.x) // 6, 1)  # neighbouring losses have markers elsewhere
                at = ((i * every // 5) % every, every)
                y = 100 * share.share
                marked_line(axes, label, share.x, y, looks[label], markevery=at)
            ends = next(iter(panel.lines.values())).x[[0, -1]]
            axes.set(xlim=(ends[0], ends[1]), ylim=(-1, 101), xlabel=panel.xlabel)
            axes.set_title(panel.title)
        for axes in made.left:
            axes.set_ylabel("examples below, %")
        add_legend(made.figure, labels, looks, width)
    return made.figure


def class_energies(
    panels: Mapping[str, ClassEnergies], *, looks: Looks, width: float = WIDE
) -> Figure:
    """One panel a loss: the true class's energy under the range of the others, class by class."""
    with look():
        made = make_panels(len(panels), width, least=2.5, height=2.4)
        made.share()
        for axes, (label, found) in zip(made.axes, panels.items(), strict=True):
            draw = _class_by_class if len(found.true) <= MANY else _profile
            draw(axes, found, looks[label])
            axes.set_title(wrapped(label, 26))
        many = len(next(iter(panels.values())).true) > MANY
        for axes in made.bottom:
            axes.set_xlabel("classes, by their gap" if many else "true class")
        for axes in made.left:
            axes.set_ylabel("energy, −logit")
    return made.figure


def _class_by_class(axes: Axes, found: ClassEnergies, style: Style) -> None:
    x = np.arange(len(found.true), dtype=np.float64)
    axes.vlines(x, found.lowest, found.highest, color=GREY, linewidth=4, label="others")
    axes.plot(x, found.mean, linestyle="none", marker="_", color=INK, label="others, mean")
    _true(axes, x, found.true, style, linestyle="none", markersize=5)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.grid(False, axis="x")


def _profile(axes: Axes, found: ClassEnergies, style: Style) -> None:
    order = np.argsort(found.lowest - found.true, kind="stable")
    x = np.arange(len(order), dtype=np.float64)
    axes.fill_between(
        x, found.lowest[order], found.highest[order], color=GREY, linewidth=0, label="others"
    )
    axes.plot(x, found.mean[order], color=INK, linewidth=1, label="others, mean")
    _true(axes, x, found.true[order], style, linewidth=1.8, linestyle="solid", marker="")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _true(axes: Axes, x: Array, y: Array, style: Style, **how: Any) -> None:
    look = {**style.line(), "markerfacecolor": style.face, "marker": style.marker, **how}
    axes.plot(x, y, label="true class", **look)


def gradient_bands(
    panels: Mapping[str, Bands], edges: Sequence[float], *, looks: Looks, width: float = WIDE
) -> Figure:
    """One panel a loss: the share of the examples (grey) and of its gradient in each band of p."""
    with look():
        made = make_panels(len(panels), width, least=2.5, height=2.4)
        made.share()
        for axes, (label, found) in zip(made.axes, panels.items(), strict=True):
            x = np.arange(len(found.examples), dtype=np.float64)
            axes.bar(x - 0.21, 100 * found.examples, 0.4, color=GREY, label="examples")
            paint: dict[str, Any] = {"color": looks[label].color, "label": "gradient"}
            axes.bar(x + 0.21, 100 * found.gradient, 0.4, **paint)
            if found.sd is not None:
                _whiskers(axes, x + 0.21, 100 * found.gradient, 100 * found.sd)
            axes.set_title(f"{wrapped(label, 26)}\nmean |∂L/∂z_y| {aligned([found.mean])[0]}")
            _name_bands(axes, edges)
        _name_shares(made)
    return made.figure


def _whiskers(axes: Axes, x: Array, y: Array, sd: Array) -> None:
    low, high = np.clip(y - sd, 0, None), np.clip(y + sd, None, 100)
    axes.vlines(x, low, high, color=INK, linewidth=1, label="sd")


def _name_shares(made: Panels) -> None:
    """Percent upwards, and what both axes say."""
    made.axes[0].set_ylim(0, 102)
    for axes in made.bottom:
        axes.set_xlabel("p of the true class")
    for axes in made.left:
        axes.set_ylabel("share, %")


def _name_bands(axes: Axes, edges: Sequence[float]) -> None:
    """The edges of the bands as ticks between the bars."""
    places = np.arange(len(edges)) - 0.5
    names = [f"{edge:g}".removeprefix("0") or "0" for edge in edges]
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=7.5)
    axes.set_xlim(-0.6, len(edges) - 1.4)
    axes.grid(False, axis="x")


@dataclass(frozen=True)
class Attention:
    """Shares of the examples in each band of p, and of the gradient under each of some losses."""

    examples: Array
    lines: Mapping[str, Array]


def gradient_lines(
    panels: Mapping[str, Attention],
    edges: Sequence[float],
    *,
    looks: Looks,
    width: float = WIDE,
) -> Figure:
    """One panel a model: what share of the gradient each band of p would carry, a line a loss."""
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel.lines))
    with look():
        made = make_panels(len(panels), width, least=2.5, height=2.7, legend=labels)
        made.share()
        for axes, (model, found) in zip(made.axes, panels.items(), strict=True):
            x = np.arange(len(found.examples))
            axes.bar(x, 100 * found.examples, 0.9, color="#e3e7eb", label="examples")
            # the baseline last, on top
            for label, shares in reversed(list(found.lines.items())):
                marked_line(axes, label, x, 100 * shares, looks[label])
            if len(panels) > 1:
                axes.set_title(wrapped(f"trained with {model}", 28))
            _name_bands(axes, edges)
        _name_shares(made)
        add_legend(made.figure, labels, looks, width)
    return made.figure


@dataclass(frozen=True)
class InAndOut:
    """Densities of one score, of test examples and of others, and a remark."""

    edges: Array
    inside: Array
    outside: Array
    note: str = ""


def in_and_out(
    panels: Mapping[str, InAndOut], xlabel: str, *, looks: Looks, width: float = WIDE
) -> Figure:
    """One panel a loss: the score of test examples (filled) and of others (dark outline)."""
    with look():
        made = make_panels(len(panels), width, least=2.5, height=2.0)
        for axes, (label, found) in zip(made.axes, panels.items(), strict=True):
            filled(axes, "in", found.inside, found.edges, looks[label].color)
            outlined(axes, "out", found.outside, found.edges, INK)
            axes.set_title(f"{wrapped(label, 26)}\n{found.note}".rstrip())
            axes.xaxis.set_major_locator(MaxNLocator(4))
            without_scale(axes)
        for axes in made.bottom:
            axes.set_xlabel(xlabel)
    return made.figure


@dataclass(frozen=True)
class Attacks:
    """One panel of accuracy over ε: by label and name of what is attacked, a curve."""

    title: str
    curves: Mapping[tuple[str, str], Curve]


def attacks(
    panels: Sequence[Attacks], xlabel: str = "ε", *, looks: Looks, width: float = WIDE
) -> Figure:
    """Accuracy against ε, one panel an attack, one colour and marker a loss.

    Attacks on cross-entropy are dashed, all others solid.
    """
    labels = list(dict.fromkeys(label for panel in panels for label, _ in panel.curves))
    solid = {label: replace(looks[label], dash=(0, ())) for label in labels}
    with look():
        made = make_panels(len(panels), width, least=2.5, height=2.5, legend=labels)
        for axes, panel in zip(made.axes, panels, strict=True):
            for (label, objective), curve in panel.curves.items():
                style = solid[label]
                usual = objective == "cross_entropy"
                dashed: dict[str, Any] = {
                    "linestyle": (0, (4, 2)),
                    "markersize": 3.5,
                    "markerfacecolor": "white",
                }
                more = dashed if usual else {"linestyle": "solid"}
                name = f"{label}/{objective}"
                marked_line(axes, name, curve.epsilon, 100 * curve.accuracy, style, **more)
            axes.set_title(panel.title)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.set_ylim(-2, 102)
            axes.set_xlim(left=0)
            axes.set_xlabel(xlabel if axes in made.bottom else "ε")
        for axes in made.left:
            axes.set_ylabel("accuracy, %")
        add_legend(made.figure, labels, solid, width)
    return made.figure

"""A benchmark as a figure: time ratio with quartiles and peak memory, size by size."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from losslab.errors import InputError
from losslab.report.bench_table import (
    duration,
    groups,
    machine_line,
    ratio_text,
    what_is_timed,
)
from losslab.report.panels import WIDE
from losslab.report.style import AXIS, INK, Looks, Style, look, styles, wrapped

_STEPS = (1.0, 2.0, 5.0)
_ROW = 0.19  # inches
_PAPER: Any = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}


@dataclass(frozen=True)
class _Line:
    """A contestant on a case, at its height in rows from the top."""

    at: float
    row: Mapping[str, Any]


def bench_figure(document: Mapping[str, Any], width: float = WIDE) -> Figure:
    """One line a loss and size: median ratio and quartiles on a log scale, line at 1; beside it the
    peak memory in units of the logits.

    Raises:
        InputError: if nothing was measured.
    """
    cases = [case for group in groups(document["cases"]) for case in group]
    if not cases:
        raise InputError("There is nothing to draw: no case of this benchmark was measured.")
    lines, headings, end = _arranged(cases)
    labels = {line.row["label"]: line.row["role"] == "baseline" for line in lines}
    looks = styles(sorted(labels, key=lambda label: not labels[label]))
    with look():
        figure = Figure(figsize=(width, _ROW * end + 1.3), layout="constrained")
        times, memory = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        _draw_times(times, lines, looks)
        _draw_memory(memory, lines, looks)
        times.set_title(f"{what_is_timed(document['settings'])}: time, ratio to the baseline")
        memory.set_xlabel(f"above {_counted(cases)},\nin units of the logits")
        for axes in (times, memory):
            for at in headings.values():
                axes.axhline(at + 0.6, color=AXIS, linewidth=0.6, label="rule")
            axes.grid(False, axis="y")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        _name_lines(times, lines, headings)
        times.set_ylim(end - 0.4, -0.7)
        figure.supxlabel(_machine(document), fontsize=7, x=0.01, ha="left")
    return figure


def _arranged(
    cases: Sequence[Mapping[str, Any]],
) -> tuple[list[_Line], dict[str, float], float]:
    """Every line's and heading's height, and where they end."""
    lines, headings, at = [], {}, 0.0
    for case in cases:
        headings[f"{case['title']}, {case['dtype']}, {case['rounds']} rounds"] = at
        at += 1.3
        for row in case["results"]:
            if row["ratio"] is not None:
                lines.append(_Line(at, row))
                at += 1
        at += 0.45
    return lines, headings, at


def _counted(cases: Sequence[Mapping[str, Any]]) -> str:
    linear = {case["features"] is not None for case in cases}
    if linear == {True, False}:
        return "the inputs"
    return "inputs and gradients" if linear == {True} else "the logits"


def _machine(document: Mapping[str, Any]) -> str:
    smoothing = document["settings"]["label_smoothing"]
    more = f", label smoothing {smoothing:g}" if smoothing else ""
    backends = dict.fromkeys(case["backend"] for case in document["cases"])
    line = f"{machine_line(document['environment'])}, losslab's backend {', '.join(backends)}{more}"
    return "\n".join(textwrap.wrap(line, 150))


def _name_lines(axes: Axes, lines: Sequence[_Line], headings: Mapping[str, float]) -> None:
    axes.set_yticks([line.at for line in lines])
    axes.set_yticklabels([wrapped(line.row["label"], 36) for line in lines])
    at_left: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "ha": "left",
        "va": "center",
    }
    for heading, at in headings.items():
        axes.text(0.005, at, heading, weight="bold", fontsize=8.5, bbox=_PAPER, **at_left)


def _draw_times(axes: Axes, lines: Sequence[_Line], looks: Looks) -> None:
    axes.set_xscale("log")
    low = min(line.row["ratio"]["low"] for line in lines)
    high = max(line.row["ratio"]["high"] for line in lines)
    axes.set_xlim(min(low / 1.15, 0.8), max(high * 1.15, 1.25))
    axes.axvline(1.0, color=INK, linewidth=1.0, zorder=1, label="one")
    for line in lines:
        ratio, style = line.row["ratio"], looks[line.row["label"]]
        if line.row["role"] != "baseline":
            whisker = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
            axes.errorbar(ratio["median"], line.at, xerr=whisker, color=style.color, capsize=3.2,
                          elinewidth=1.3, capthick=1.3, label="quartiles")  # fmt: skip
        _mark(axes, ratio["median"], line.at, style)
        note = f"{ratio_text(ratio['median'])} · {duration(line.row['time']['median'])}"
        axes.text(1.01, line.at, note, transform=axes.get_yaxis_transform(), fontsize=7.5,
                  va="center")  # fmt: skip
    axes.xaxis.set_major_locator(FixedLocator(_ticks(*axes.get_xlim())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("median and quartiles of the rounds (log scale; left is faster)")


def _draw_memory(axes: Axes, lines: Sequence[_Line], looks: Looks) -> None:
    known = [line for line in lines if line.row["memory"] is not None]
    most = max((line.row["memory"]["in_logits"] for line in known), default=1.0)
    axes.set_xlim(0, 1.3 * max(most, 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for line in known:
        value, style = line.row["memory"]["in_logits"], looks[line.row["label"]]
        axes.plot([0, value], [line.at] * 2, color=style.color, linewidth=1.3, alpha=0.6)
        _mark(axes, value, line.at, style)
        axes.annotate(f"{value:.2f}", (value, line.at), (6, 0), textcoords="offset points",
                      va="center", fontsize=7.5)  # fmt: skip
    axes.set_title("Peak memory")


def _mark(axes: Axes, x: float, y: float, style: Style) -> None:
    axes.plot([x], [y], marker=style.marker, markersize=4.6, color=style.color, zorder=3,
              clip_on=False, linestyle="none", label="mark")  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every power of ten between the ends; powers of ten alone where that is many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = _STEPS if len(powers) < 5 else _STEPS[:1]
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in ticks if low <= tick <= high]

"""The figures of a study over data sets: ranks, profiles and mean improvements.

Numbers in, matplotlib figures out, as in `losslab.report.figures`; `save_study_figures` draws all
of them from the summary that `losslab.experiment.across.summarize_across` makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from losslab.errors import InputError
from losslab.experiment.across_profiles import share_at_least, share_at_most
from losslab.report.forest import ForestRow, forest
from losslab.report.numbers import Metric, difference_text, interval_text, metric
from losslab.report.panels import NARROW, WIDE, add_legend, make_panels
from losslab.report.study_ranks import critical_difference
from losslab.report.style import Looks, Style, look, styles
from losslab.report.svg import save_figure
from losslab.report.verdicts import verdict

_ACCURACY = metric("accuracy")
__all__ = [
    "NARROW",
    "WIDE",
    "critical_difference",
    "improvement_forest",
    "performance_profile",
    "save_study_figures",
    "study_figures",
]


def performance_profile(
    ratios: Mapping[str, ArrayLike],
    *,
    kind: str = "accuracy",
    looks: Looks | None = None,
    width: float = WIDE,
) -> Figure:
    """A curve a method: on how many data sets it is how close to the best. Higher is better.

    ``ratios`` has each method's ratios to the best, one a data set (`across_profiles`); ``kind`` is
    ``accuracy`` (at most 1) or ``cost`` (at least 1). The frame shows where methods part: it ends
    where the middle method has 97 % of its data sets behind it, and each at least half of its own.
    """
    values = {label: np.sort(np.asarray(r, dtype=np.float64)) for label, r in ratios.items()}
    if kind not in ("accuracy", "cost") or not values:
        raise InputError(
            "expected the ratios of at least one method, of kind 'accuracy' or 'cost', "
            f"got {len(values)} methods and {kind!r}."
        )
    looks = looks or styles(list(values))
    with look():
        made = make_panels(1, width, least=3.0, height=3.3, legend=list(values))
        (axes,) = made.axes
        largest = max(r[np.isfinite(r)].max(initial=1.0) for r in values.values())
        for label, r in values.items():
            if kind == "accuracy":
                x = np.unique(np.r_[0.0, r, 1.0])
                line = _line(label, looks[label], marked=len(x) - 1)
                axes.step(x, 100 * share_at_least(r, x), where="pre", **line)
            else:
                x = np.unique(np.r_[1.0, r[np.isfinite(r)], 2 * largest])
                line = _line(label, looks[label], marked=0)
                axes.step(x, 100 * share_at_most(r, x), where="post", **line)
        axes.set_ylim(0, 103)
        axes.set_ylabel("data sets, %")
        if kind == "accuracy":
            _frame_accuracies(axes, values)
        else:
            _frame_costs(axes, values)
        add_legend(made.figure, list(values), looks, width)
    return made.figure


def _line(label: str, style: Style, marked: int) -> dict[str, Any]:
    """A profile's line, with its marker at one point: at 1, where it is the share of wins."""
    return {
        "linewidth": 1.7,
        "marker": style.marker,
        "markersize": 5.5,
        "markevery": [marked],
        "markerfacecolor": style.face,
        "label": label,
        **style.line(),
    }


def _frame_accuracies(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    low = float(np.median([np.quantile(r, 0.03) for r in values.values()]))
    halves = min(float(np.median(r)) for r in values.values())
    room = max(1 - low, 1.05 * (1 - halves), 0.01)
    axes.set_xlim(1 - room, 1 + 0.015 * room)
    axes.set_xlabel("at least this share of the best score (at 1: wins)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _frame_costs(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    finite = [r[np.isfinite(r)] for r in values.values()]
    high = max(1.01, float(np.median([np.quantile(r, 0.97) for r in finite if r.size])))
    high = max(high, *(float(np.median(r)) for r in finite if r.size))
    if high > 10:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(high**-0.015, high)
    else:
        axes.set_xlim(1 - 0.015 * (high - 1), high)
    axes.set_xlabel("at most this multiple of the lowest cost (at 1: wins)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def improvement_forest(
    improvements: Mapping[str, Mapping[str, Any]],
    *,
    margin: float,
    row: Metric,
    looks: Looks,
    width: float = WIDE,
) -> Figure:
    """Mean improvement over data sets of each method, with its intervals and its verdict.

    The thick bar is the interval over data sets, the thin line the one over data sets and seeds
    (if there is one), the grey band the margin. ``improvements`` is the summary's
    ``mean_improvements``.
    """
    rows = [_forest_row(label, entry, row) for label, entry in improvements.items()]
    if not rows:
        raise InputError("expected the improvement of at least one method, got none.")
    unit = f", {row.difference_unit}" if row.difference_unit else ""
    full = f"mean change in test {row.title.lower()}{unit} (right is better)"
    xlabel = f"mean change{unit}" if width < 5 else full
    figure = forest(rows, margin=row.scale * margin, xlabel=xlabel, looks=looks, width=width)
    (axes,) = figure.axes
    with look():
        for i, (label, entry) in enumerate(improvements.items()):
            ends = [entry["both_low"], entry["both_high"]]
            if None not in ends:
                _make_room(axes, [row.scale * end for end in ends])
                thin: dict[str, Any] = {"linewidth": 0.9, "zorder": 2.5, "label": f"both-{i}"}
                axes.plot([row.scale * end for end in ends], [i, i],
                          color=looks[label].color, **thin)  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(5 if width < 5 else 9, steps=[1, 2, 5, 10]))
    return figure


def _make_room(axes: Axes, ends: Sequence[float]) -> None:
    low, high = axes.get_xlim()
    room = 0.03 * (max(high, *ends) - min(low, *ends))
    axes.set_xlim(min(low, min(ends) - room), max(high, max(ends) + room))


def _forest_row(label: str, entry: Mapping[str, Any], row: Metric) -> ForestRow:
    mean, low, high = (
        None if entry[name] is None else row.scale * entry[name] for name in ("mean", "low", "high")
    )
    word = verdict(entry["verdict"])
    note = "  ".join(
        (
            difference_text(row, entry["mean"]),
            interval_text(row, entry["low"], entry["high"]),
            f"{word.symbol} {word.word}",
        )
    )
    return ForestRow(label, (), mean, low, high, note=note)


def looks_of(summary: Mapping[str, Any]) -> dict[str, Style]:
    """How each method of a summary looks, the baseline first."""
    baseline = summary["baseline"]
    return styles([baseline, *(m for m in summary["methods"] if m != baseline)])


def study_figures(
    summary: Mapping[str, Any], row: Metric = _ACCURACY, width: float = WIDE
) -> dict[str, Figure]:
    """The figures of a summary by file name; ``row`` is the metric that its scores are of.

    ``ranks-conover`` and ``ranks-nemenyi`` (critical-difference diagrams), ``profile`` (where the
    scores allow ratios) and ``improvements``.
    """
    table, alpha = summary["table"], summary["alpha"]
    looks = looks_of(summary)
    labels = list(looks)
    mean_ranks = {method: row["mean_rank"] for method, row in table.items()}
    sets = f"mean rank over {len(summary['datasets'])} data sets"
    drawn = {
        "ranks-conover": critical_difference(
            mean_ranks,
            summary["conover"]["groups"],
            looks=looks,
            xlabel=sets,
            note=_conover_note(summary["conover"]["allowed"], alpha),
            width=width,
        ),
        "ranks-nemenyi": critical_difference(
            mean_ranks,
            summary["nemenyi"]["groups"],
            looks=looks,
            difference=summary["nemenyi"]["critical_difference"],
            xlabel=sets,
            note=f"A bar joins methods that cannot be told apart (Nemenyi, α = {alpha:g}).",
            width=width,
        ),
        "improvements": improvement_forest(
            summary["mean_improvements"],
            margin=summary["margin"],
            row=row,
            looks=looks,
            width=width,
        ),
    }
    if summary["profile"]:
        ratios = {
            method: [np.inf if r is None else r for r in summary["profile"]["ratios"][method]]
            for method in labels
        }
        kind = summary["profile"]["kind"]
        drawn["profile"] = performance_profile(ratios, kind=kind, looks=looks, width=width)
    return drawn


def _conover_note(allowed: bool, alpha: float) -> str:
    if not allowed:
        return f"Friedman's test finds no difference between the methods (α = {alpha:g})."
    test = f"Conover, Benjamini–Hochberg, α = {alpha:g}"
    return f"A bar joins methods that cannot be told apart ({test})."


def save_study_figures(
    summary: Mapping[str, Any], folder: str | Path, row: Metric = _ACCURACY
) -> list[Path]:
    """Draws the figures of a summary into ``folder``, each as PNG and as SVG; returns the files.

    The same summary gives the same files.
    """
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for stem, figure in study_figures(summary, row).items():
        written += save_figure(figure, where / stem)
    return written

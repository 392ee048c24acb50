"""The report's figures, drawn from a run folder with their captions: for desk and for phone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from losslab.errors import InputError
from losslab.experiment.own_loss import places_of, remade
from losslab.report import figures, pooled
from losslab.report.folder import RunFolder
from losslab.report.numbers import (
    NONE,
    SELECTIONS,
    difference_text,
    finite,
    interval_text,
    listing,
    metric,
)
from losslab.report.style import Looks
from losslab.report.svg import inline_svg


@dataclass(frozen=True)
class Chart:
    """One figure of the page, drawn for wide and for narrow screens, and how to read it.

    A chart without drawings says in its ``note`` why it has none. ``draw`` makes its figure for a
    width, for files beside the page.
    """

    name: str
    title: str
    caption: str
    wide: Markup | None = None
    narrow: Markup | None = None
    note: str = ""
    draw: Callable[[float], Figure] | None = None


def make_chart(
    name: str,
    title: str,
    caption: str,
    draw: Callable[[float], Figure],
    *,
    seen: str,
    note: str = "",
) -> Chart:
    """Draws a chart for both widths; ``seen`` is what a reader who does not see it is told."""
    wide, narrow = (
        Markup(inline_svg(draw(width), name=f"{name}-{kind}", title=seen))
        for kind, width in (("wide", figures.WIDE), ("narrow", figures.NARROW))
    )
    return Chart(name, title, caption, wide, narrow, note, draw)


def all_charts(folder: RunFolder, looks: Looks) -> list[Chart]:
    """The figures after the verdicts' own, in the page's order; what has no data is left out."""
    drawn = (
        learning_curves(folder, looks),
        margin_histograms(folder, looks),
        reliability_diagrams(folder, looks),
        loss_shapes(folder, looks),
    )
    return [chart for chart in drawn if chart is not None]


def forest(
    folder: RunFolder, looks: Looks, labels: Sequence[str], *, name: str = "paired"
) -> Chart | None:
    """Each seed's difference to the baseline, with the mean and interval of the summary."""
    row = metric(folder.metric, folder.summary)
    rows = [_forest_row(folder, label) for label in labels]
    rows = [line for line in rows if line.differences or line.diverged]
    if not rows:
        return None
    turned = " (turned round, so that right is better)" if row.larger_is_better is False else ""
    cross = "; a cross is a seed of which a run diverged, at the edge if it lies beyond the frame"
    caption = (
        f"Each dot is one seed's difference to {folder.baseline} at the "
        f"{SELECTIONS[folder.selection].lower()}{turned}, the large mark their mean and the bar "
        "its 95 % interval, not corrected for the number of losses as the verdicts are: right of "
        "the zero line is better, and the grey band is the margin, inside which a difference is "
        f"not worthwhile{cross if any(line.diverged for line in rows) else ''}."
    )
    seen = "; ".join(f"{line.label} {line.note}" for line in rows)
    xlabel = f"change in test {row.title.lower()}, {row.difference_unit}".rstrip(", ")

    def draw(width: float) -> Figure:
        text = xlabel if width == figures.NARROW else f"{xlabel} (right is better)"
        margin = row.scale * float(folder.summary["margin"])
        return figures.forest(rows, margin=margin, xlabel=text, looks=looks, width=width)

    return make_chart(name, "Paired differences", caption, draw, seen=f"Forest plot: {seen}")


def _forest_row(folder: RunFolder, label: str) -> figures.ForestRow:
    row, entry = metric(folder.metric, folder.summary), folder.comparisons[label]
    sound, diverged = pooled.paired_differences(
        folder.of(label, None),
        folder.of(folder.baseline, None),
        selection=folder.selection,
        name=folder.metric,
        diverged_count_as=folder.summary["diverged_count_as"],
    )
    mean, low, high = (_scaled(entry[key], row.scale) for key in ("mean", "low", "high"))
    texts = (difference_text(row, entry["mean"]), interval_text(row, entry["low"], entry["high"]))
    return figures.ForestRow(
        label,
        [row.scale * x for x in sound.values()],
        mean,
        low,
        high,
        note="  ".join(text for text in texts if text != NONE),
        diverged=[row.scale * x for x in diverged.values()],
    )


def _scaled(value: Any, scale: float) -> float | None:
    number = finite(value)
    return None if number is None else scale * number


def learning_curves(folder: RunFolder, looks: Looks) -> Chart | None:
    """Validation accuracy, validation NLL and training loss over the epochs."""
    panels = pooled.learning_curves({label: folder.of(label) for label in folder.losses})
    if not panels:
        return None
    return make_chart(
        "curves",
        "Learning curves",
        "Lines are means over the finished seeds, bands the mean ± one standard deviation; a "
        "training loss can be compared with itself only, since every loss has its own zero and "
        "scale; frames fit the last two thirds of training.",
        lambda width: figures.learning_curves(panels, looks=looks, width=width),
        seen=f"Line charts over the epochs: {listing(panel.title for panel in panels)}",
    )


def margin_histograms(folder: RunFolder, looks: Looks) -> Chart | None:
    """The pooled margins of every loss on the test set."""
    pairs = ((label, pooled.pooled_margins(folder.of(label))) for label in folder.losses)
    histograms = {label: histogram for label, histogram in pairs if histogram is not None}
    if not histograms:
        return None
    return make_chart(
        "margins",
        "Margins on the test set",
        "How far the true class's logit is above the best other one, at the last epoch, all seeds "
        "together, without the outermost thousandth on either side: left of the line predictions "
        f"are wrong; the dark outline is {folder.baseline}.",
        lambda width: figures.margin_histograms(
            histograms, baseline=folder.baseline, looks=looks, width=width
        ),
        seen=f"Histograms of the margins of {listing(histograms)}",
    )


def reliability_diagrams(folder: RunFolder, looks: Looks) -> Chart | None:
    """The pooled reliability diagram of every loss."""
    pairs = ((label, pooled.pooled_reliability(folder.of(label))) for label in folder.losses)
    bins = {label: reliability for label, reliability in pairs if reliability is not None}
    if not bins:
        return None
    return make_chart(
        "reliability",
        "Reliability",
        "Accuracy against confidence on the test set at the last epoch, all seeds together: below "
        "the diagonal the model is surer than it is right; large dots are many examples, the "
        "smallest a handful, whose ups and downs are noise.",
        lambda width: figures.reliability_diagrams(bins, looks=looks, width=width),
        seen="Reliability: " + "; ".join(f"{label}, {part.note}" for label, part in bins.items()),
    )


def loss_shapes(folder: RunFolder, looks: Looks) -> Chart:
    """What each loss asks for: its value and its slope against the probability p."""
    specs = {label: folder.arms[label]["spec"] for label in folder.losses}
    curves, failed = shapes(specs, places_of(folder.configuration))
    note = f"Not drawn, since no curve over p describes it: {listing(failed)}." if failed else ""
    title = "The losses' shapes"
    caption = (
        "Each loss, and how hard it pulls on the true class's logit, for an example whose true "
        "class has probability p: a loss that still pulls near p = 1 keeps learning from examples "
        "that are already right."
    )
    if not curves:
        return Chart("shapes", title, caption, note=note)
    return make_chart(
        "shapes",
        title,
        caption,
        lambda width: figures.loss_shapes(curves, looks=looks, width=width),
        seen=f"Line charts of the loss and of its slope against p, for {listing(curves)}",
        note=note,
    )


def shapes(
    specs: Mapping[str, str], places: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict[str, tuple[Any, Any, Any]], list[str]]:
    """(p, loss, |slope|) of each label whose spec has such curves, and the labels without.

    ``places`` has the files of the user's own losses, by spec.
    """
    import torch

    from losslab.losses import explain

    p = torch.linspace(0.01, 0.995, 198, dtype=torch.float64)
    curves: dict[str, tuple[Any, Any, Any]] = {}
    failed: list[str] = []
    for label, spec in specs.items():
        try:
            module = remade(spec, places)
            loss, slope = explain.curves(module, p)
        except (InputError, TypeError):  # made in Python, its file edited, or none of single rows
            failed.append(label)
        else:
            curves[label] = (p.numpy(), loss.numpy(), slope.numpy())
    return curves, failed

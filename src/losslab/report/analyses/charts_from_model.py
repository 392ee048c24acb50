"""The figures of analyses of the model: robustness, gap, features, dynamics, curvature."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from losslab.report import figures
from losslab.report.analyses import pool
from losslab.report.analyses.dots import DotPanel, Spots, StepPanel, dots, steps
from losslab.report.analyses.figures import Attacks, attacks
from losslab.report.analyses.view import View, sentence
from losslab.report.analyses.words import title, word
from losslab.report.charts import Chart
from losslab.report.numbers import listing


def robustness(view: View) -> Iterator[Chart]:
    """Accuracy over ε: attack by attack, and under all of them."""
    clean = pool.values(view.findings, "accuracy.clean")
    panels = [*_by_attack(view, clean), *_by_norm(view, clean)]
    if not panels:
        return
    boxes = pool.each(view.findings, "box")
    unit = "of the box’s width" if boxes else "in the inputs’ own unit"
    caption = sentence(
        "The share of the examples that stay right when each number of an input (L∞), or the input "
        f"as a whole (L2), is changed by up to ε, {unit}",
        view.runs,
        "solid and large marks for attacks on the log-odds and for searches without gradients, "
        "dashed and hollow for the usual attacks on cross-entropy: a dashed line above its solid "
        "one means that the usual attack went astray",
    )
    if view.masked:
        caption += (
            f" Gradient masking is suspected for {listing(view.masked)} (see the warnings): of "
            "such a model the lowest curve is at best an upper bound of what it withstands."
        )
    yield view.chart(
        "robustness",
        "Accuracy under attack",
        caption,
        lambda width: attacks(panels, f"ε, {unit}", looks=view.looks, width=width),
        seen=f"Accuracy against ε under {listing(panel.title for panel in panels)}",
    )


def _by_attack(view: View, clean: Mapping[str, list[float]]) -> Iterator[Attacks]:
    points: dict[str, dict[tuple[str, str], list[dict[float, float]]]] = {}
    for label, of in pool.each(view.findings, "curves").items():
        for one in (one for curves in of for one in curves):
            key = label, one["objective"] or ""
            run = {point["epsilon"]: point["accuracy"] for point in one["points"]}
            points.setdefault(one["attack"], {}).setdefault(key, []).append(run)
    for attack, of_attack in points.items():
        curves = {k: pool.curve(runs, clean.get(k[0], [])) for k, runs in of_attack.items()}
        yield Attacks(word(attack), curves)


def _by_norm(view: View, clean: Mapping[str, list[float]]) -> Iterator[Attacks]:
    for norm in ("linf", "l2"):
        curves = {
            (label, ""): pool.curve(
                [dict(zip(one["epsilon"], one["accuracy"], strict=True)) for one in of],
                clean.get(label, []),
            )
            for label, of in pool.each(view.findings, "worst", norm).items()
        }
        if curves:
            yield Attacks(f"all attacks together, {word(norm)}", curves)


def generalisation(view: View) -> Iterator[Chart]:
    """Train beside test."""
    panels = []
    for name, heading, scale in (("accuracy", "accuracy, %", 100.0), ("nll", "NLL, nats", 1.0)):
        rows = view.by_stage({stage: f"{stage}.{name}" for stage in ("train", "test")}, scale)
        if rows:
            panels.append(StepPanel(heading, rows))
    if panels:
        labels = list(view.findings)
        yield view.chart(
            "generalisation",
            "Training and test examples",
            sentence(
                "Accuracy and NLL on the training examples (hollow) and on the test examples "
                "(filled): the longer the grey line, the larger the gap",
                "small dots are seeds, large marks their means" if view.runs else "",
            ),
            lambda width: steps(panels, labels, ("train", "test"), looks=view.looks, width=width),
            seen=f"Training and test numbers of {listing(labels)}",
        )


def representation(view: View) -> Iterator[Chart]:
    """Accuracy of the model as it was, with a new output layer, of a linear probe."""
    stages = {
        "as trained": "retrained.accuracy_before",
        "output layer retrained": "retrained.accuracy",
        "linear probe": "probe.accuracy",
    }
    rows = view.by_stage(stages, 100.0)
    if not rows:
        return
    labels = list(view.findings)
    yield view.chart(
        "representation",
        "What the features are worth",
        sentence(
            "Test accuracy of the model as trained (hollow dot), with its features frozen and the "
            "output layer learned anew by cross-entropy (filled square), and of a logistic "
            "regression on the same features (hollow diamond)",
            "small signs are seeds, large ones their means" if view.runs else "",
        )
        + " If a loss improves the representation, its squares and diamonds lie further right, not "
        "only its dots.",
        lambda width: steps(
            [StepPanel("test accuracy, %", rows)],
            labels,
            list(stages),
            looks=view.looks,
            width=width,
        ),
        seen=f"Accuracy as trained, with a new output layer, and of a probe, of {listing(labels)}",
    )


def dynamics(view: View) -> Iterator[Chart]:
    """Cohorts, accuracy over the epochs, and what was learned and forgotten."""
    yield from _cohorts(view)
    yield from _over_epochs(
        view,
        "accuracy",
        [("accuracy", "accuracy, %", 100.0, (0.0, 100.0))],
        "Accuracy over the epochs",
        "On the training examples, without augmentation, and on the test examples",
    )
    yield from _over_epochs(
        view,
        "events",
        [(name, f"examples {name}", 1.0, (0.0, math.inf)) for name in ("learned", "forgotten")],
        "Learned and forgotten",
        "How many examples went from wrong to right (learned) and from right to wrong (forgotten) "
        "since the epoch before",
    )


def _cohorts(view: View) -> Iterator[Chart]:
    panels = []
    for split in ("train", "test"):
        parts = pool.each(view.findings, "splits", split)
        told = next((one for of in parts.values() for one in of if one.get("cohorts")), None)
        if told is None:
            continue
        threshold = next(iter(next(iter(pool.each(view.findings, "threshold").values()), [])), None)
        limit = "the threshold" if threshold is None else f"{threshold:g}"
        above, below = f"p ≥ {limit}", f"p < {limit}"
        names = {
            "right": f"{split}: right",
            "wrong_above": f"{split}: wrong, {above}",
            "wrong_below": f"{split}: wrong, {below}",
        }
        for cohort, name in names.items():
            rows = {k: spots for k, of in parts.items() if (spots := _share(of, cohort))}
            if rows:
                after = f"{name}\nafter epoch {told['epoch']}"
                panels.append(DotPanel(after, rows, limits=(0, 100)))
    if not panels:
        return
    labels = list(view.findings)
    yield view.chart(
        "cohorts",
        "What became of the examples",
        sentence(
            "Examples by how they stood after that epoch, p being the probability of their class: "
            "the share of them, in percent, that is right in the end",
            *_bars(panels),
        )
        + " A loss that leaves hopeless examples behind lies to the left in the panels of those "
        "that were wrong with a low p.",
        lambda width: dots(
            panels, labels, xlabel="right in the end, %", looks=view.looks, width=width
        ),
        seen=f"Shares right in the end: {listing(p.title.partition(chr(10))[0] for p in panels)}",
    )


def _bars(panels: Iterable[DotPanel]) -> Iterator[str]:
    """What the bars are: of a single run that has such examples, another interval."""
    counts = {len(spots.values) > 1 for panel in panels for spots in panel.rows.values()}
    if True in counts:
        yield "dots are seeds, the large mark their mean and the bar the 95 % interval of the mean"
    if False in counts:
        alone = "of a single run it" if True in counts else "the bar"
        yield f"{alone} is Wilson’s 95 % interval for examples drawn at random"


def _share(of: list[Any], cohort: str) -> Spots | None:
    """Percent right in the end, of each run that had such examples."""
    found = [one["cohorts"].get(cohort) for one in of if one.get("cohorts")]
    found = [one for one in found if one and one["share"] is not None]
    if not found:
        return None
    shares = [100 * one["share"] for one in found]
    ends = pool.interval(shares)
    if ends is None:
        ends = 100 * found[0]["low"], 100 * found[0]["high"]
    return Spots(shares, (max(ends[0], 0.0), min(ends[1], 100.0)))


def _over_epochs(
    view: View,
    name: str,
    quantities: Iterable[tuple[str, str, float, tuple[float, float]]],
    heading: str,
    caption: str,
) -> Iterator[Chart]:
    panels = []
    for key, unit, scale, bounds in quantities:
        for split in ("train", "test"):
            stored = pool.each(view.findings, "splits", split, key)
            first = 1 if key == "accuracy" else 2
            runs = {label: pool.stacked(of, first) for label, of in stored.items()}
            if runs:
                scaled = {label: (epochs, scale * table) for label, (epochs, table) in runs.items()}
                panels.append(figures.Curves(f"{split}: {unit}", scaled, bounds=bounds))
    if panels:
        yield view.chart(
            name,
            heading,
            sentence(
                caption,
                "lines are means over the seeds, bands ± one standard deviation"
                if view.runs
                else "",
                "frames fit the last two thirds of training",
            ),
            lambda width: figures.learning_curves(panels, looks=view.looks, width=width),
            seen=f"Line charts over the epochs: {listing(panel.title for panel in panels)}",
        )


_CURVATURE = (
    "hessian.trace",
    "hessian.top",
    "noise.trace",
    "escaping.trace",
    "escaping.matched",
    "escaping.alignment",
)


def curvature(view: View) -> Iterator[Chart]:
    """A panel a quantity, a row a loss."""
    found = {name: pool.values(view.findings, name) for name in _CURVATURE}
    panels = [
        DotPanel(title("curvature", name), {label: Spots(x) for label, x in of.items()})
        for name, of in found.items()
        if of
    ]
    if not panels or (view.single and not view.runs):  # one dot a panel: the table says it all
        return
    labels = list(view.findings)
    yield view.chart(
        "curvature",
        "Curvature and noise at the weights",
        sentence(
            "H is the Hessian of the training loss, Σ the covariance of a mini-batch gradient and "
            "Tr(HΣ) how fast that noise drives the weights out of the minimum",
            "dots are seeds, large marks their means" if view.runs else "",
            "scales are logarithmic where numbers span more than a factor of ten",
        )
        + " Every loss is measured in its own unit: multiplied by c, a loss has c times the "
        "curvature and c³ times Tr(HΣ). Between losses compare only Tr(HΣ) at V = ½, that of the "
        "loss scaled to cross-entropy’s gradient volume, and P·Tr(HΣ)/(Tr H·Tr Σ), P being the "
        "number of weights, which is 1 for isotropic noise.",
        lambda width: dots(panels, labels, looks=view.looks, width=width, logarithmic=True),
        seen=f"Dot plots of {listing(panel.title for panel in panels)}, for {listing(labels)}",
    )

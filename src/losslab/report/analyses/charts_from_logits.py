"""The figures of analyses of the logits: margins, energies, gradients, calibration, OOD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from losslab.errors import InputError
from losslab.report.analyses import figures, pool
from losslab.report.analyses.view import View, sentence
from losslab.report.charts import Chart
from losslab.report.figures import reliability_diagrams
from losslab.report.histograms import below, density, resampled, span
from losslab.report.numbers import listing
from losslab.report.pooled import pooled_reliability
from losslab.report.style import Looks, styles

SCORES = {  # title and axis
    "min_energy": ("Lowest energy", "−max z"),
    "max_probability": ("Largest probability", "log(1 − max p)"),
    "free_energy": ("Free energy", "−log Σ exp z"),
}


def margins(view: View) -> Iterator[Chart]:
    """Shares of the examples below each margin."""
    panels = []
    for name, title in (("logits", "in logits"), ("log_odds", "in log-odds")):
        stored = pool.each(view.findings, name, "histogram")
        shares = {k: found for k, of in stored.items() if (found := below(of))}
        if shares:
            low, high = span(*shares.values())
            lines = {k: resampled(share, low, high) for k, share in shares.items()}
            panels.append(figures.Cumulated(f"margin {title}", f"margin {title}", lines))
    if panels:
        yield view.chart(
            "margins",
            "Distribution of the margins",
            f"The share of the examples whose margin is below x{view.over_runs}"
            ": the further right a curve, the wider the margins; where it crosses the line at 0 "
            "is the share that is wrong (in log-odds: whose true class has p below ½). A loss that "
            "rewards margins widens them by its very definition.",
            lambda width: figures.cumulated(panels, looks=view.looks, width=width),
            seen=f"Cumulated margins of {listing(panels[0].lines)}",
        )


def energies(view: View) -> Iterator[Chart]:
    """The true class's energy beside the others', class by class."""
    tables = pool.each(view.findings, "table")
    found = {k: one for k, of in tables.items() if (one := pool.class_energies(of))}
    if not found:
        return
    many = len(next(iter(found.values())).true) > figures.MANY
    marks = (
        "The coloured line is the energy of the true class, the grey band reaches from the lowest "
        "to the highest of the other classes and the dark line is their mean; each panel's classes "
        "stand in the order of their own gap"
        if many
        else "Over the examples of each class: the coloured mark is the energy of that class, the "
        "grey bar reaches from the lowest to the highest of the other classes, the dash is their "
        "mean"
    )
    yield view.chart(
        "energies",
        "Energies, class by class",
        sentence(f"Energy is −logit{view.over_runs}. {marks}")[:-1]
        + ": the deeper below the bar, the sharper the energy (figure 5 of Zhao et al. 2022).",
        lambda width: figures.class_energies(found, looks=view.looks, width=width),
        seen=f"Energies of the true class and of the others, for {listing(found)}",
    )


def gradients(view: View) -> Iterator[Chart]:
    """Which bands of confidence carry the gradient: each loss's own, and any loss's."""
    edges = next(iter(next(iter(pool.each(view.findings, "edges").values()), [])), None)
    if edges is None:
        return
    own = {
        label: pool.bands([c for c, _ in both], [s for _, s in both])
        for label, runs in view.findings.items()
        if (both := _counts_and_shares(runs, "own", edges))
    }
    if own:
        yield view.chart(
            "gradients-own",
            "Which examples carry the gradient",
            "Examples by the probability p that the model gives their true class; grey, the share "
            "of the examples in each band, coloured, the share of the loss's own gradient "
            f"|∂L/∂z_y| that they carry{view.over_runs}"
            f"{' (line: ± one standard deviation)' if view.runs else ''}. A loss that still "
            "learns from what is right has colour on the far right.",
            lambda width: figures.gradient_bands(own, edges, looks=view.looks, width=width),
            seen="Share of the gradient from the most certain band: "
            + "; ".join(f"{k} {100 * v.gradient[-1]:.1f} %" for k, v in own.items()),
        )
    yield from _under_other_losses(view, edges)


def _under_other_losses(view: View, edges: list[float]) -> Iterator[Chart]:
    """What every loss would attend to in each label's models, as far as it was measured."""
    panels = {}
    for label, runs in view.findings.items():
        names = dict.fromkeys(name for run in runs for name in pool.at(run, "by_loss") or ())
        found = {
            shown: pool.bands([c for c, _ in both], [s for _, s in both])
            for name, shown in _named(names, label, view.specs).items()
            if (both := _counts_and_shares(runs, name, edges))
        }
        if found.keys() - {label}:
            ordered = sorted(found, key=lambda shown: [*view.findings, shown].index(shown))
            lines = {shown: found[shown].gradient for shown in ordered}
            panels[label] = figures.Attention(found[ordered[0]].examples, lines)
    if not panels:
        return
    losses = dict.fromkeys(name for panel in panels.values() for name in panel.lines)
    first = next(iter(panels))
    whose = f"the models trained with {first if len(panels) < 2 else 'each loss (a panel each)'}"
    same = "The model is" if view.single else "In a panel the models are"
    yield view.chart(
        "gradients-under",
        "What each loss would attend to",
        f"Where the gradient would come from in {'this model' if view.single else whose}, had each "
        "of these losses been put in the place of its own at the end of training"
        f"{view.over_runs}; bars are the share of the examples. {same} "
        f"the same, so the lines differ by the losses alone.{_lacking(panels)}",
        lambda width: figures.gradient_lines(
            panels, edges, looks=_looks(losses, view.looks), width=width
        ),
        seen="Share of the gradient from the most certain band: "
        + "; ".join(f"{model}: {_last(panel)}" for model, panel in panels.items()),
    )


def _last(panel: figures.Attention) -> str:
    return listing(f"{label} {100 * shares[-1]:.1f} %" for label, shares in panel.lines.items())


def _lacking(panels: Mapping[str, figures.Attention]) -> str:
    """How to measure what is missing: a loss of the comparison under the models of another."""
    lacking = [label for label in panels if any(label not in p.lines for p in panels.values())]
    if not lacking:
        return ""
    return (
        f" The models of the other losses were not asked about {listing(lacking)}: "
        "gradients(under=[…]) asks about the losses that it is given."
    )


def _counts_and_shares(runs: Any, name: str, edges: list[float]) -> list[tuple[Any, Any]]:
    """Of the runs that have both, in the same bands."""
    both = [(pool.at(run, "counts"), pool.at(run, "by_loss", name), run) for run in runs]
    return [
        (counts, shares)
        for counts, shares, run in both
        if counts and shares and pool.at(run, "edges") == edges
    ]


def _named(names: Iterable[str], own: str, specs: Mapping[str, str]) -> dict[str, str]:
    """By the names of the findings, the labels to show: a loss of the comparison by its own."""
    labels = {canonical(spec): label for label, spec in specs.items()}
    named: dict[str, str] = {}
    for name in names:
        label = own if name == "own" else labels.get(canonical(name), name)
        if label not in named.values():
            named[name] = label
    return named


def canonical(spec: str) -> str:
    """A spec written in the one way, with all its numbers; as it is if it is none."""
    import losslab

    try:
        return str(losslab.loss(spec).spec)
    except (InputError, TypeError):
        return spec


def _looks(labels: Mapping[str, Any], looks: Looks) -> Looks:
    """The page's looks, and further ones for losses that only this figure has."""
    more = [label for label in labels if label not in looks]
    return {**styles([*looks, *more]), **looks}


def calibration(view: View) -> Iterator[Chart]:
    """Reliability before and after temperature scaling."""
    before, scaled = (
        {
            label: bins
            for label, runs in view.findings.items()
            if (bins := pooled_reliability(_as_records(runs, detail, ece)))
        }
        for detail, ece in (("reliability", "ece"), ("reliability_scaled", "scaled.ece"))
    )
    if before:
        yield view.chart(
            "calibration",
            "Reliability, before and after temperature scaling",
            "Accuracy against confidence on the test set"
            + (", all seeds together" if view.runs else "")
            + ": below the diagonal the model is surer than it is right; filled dots are the model "
            "as it is, hollow ones after its logits were divided by the temperature that fits the "
            "validation examples best; large dots are many examples.",
            lambda width: reliability_diagrams(
                before, scaled=scaled, looks=view.looks, width=width
            ),
            seen="Reliability: "
            + "; ".join(
                f"{label}, {bins.note}"
                + (f", scaled {scaled[label].note}" if label in scaled else "")
                for label, bins in before.items()
            ),
        )


def _as_records(runs: Any, detail: str, ece: str) -> list[dict[str, Any]]:
    """Runs in the form in which records have their reliability."""
    return [
        {
            "reliability": stored,
            "results": {"last": {"test": {"ece": run["values"].get(ece)}}},
        }
        for run in runs
        if (stored := pool.at(run, detail)) and {"counts", "confidence", "accuracy"} <= set(stored)
    ]


def ood(view: View) -> Iterator[Chart]:
    """Every score's histograms, of test examples and of others."""
    outs = dict.fromkeys(name for of in pool.each(view.findings, "out").values() for one in of
                         for name in one)  # fmt: skip
    for place, out in enumerate(outs):
        prefix = f"{out}." if len(outs) > 1 else ""
        for score, (title, xlabel) in SCORES.items():
            panels = {
                label: panel
                for label, runs in view.findings.items()
                if (panel := _in_and_out(label, runs, out, score, prefix))
            }
            if panels:
                heading = f"{title}: test examples and {out}"
                yield _ood_chart(view, panels, f"ood-{place}-{score}", heading, out, xlabel)


def _ood_chart(
    view: View,
    panels: Mapping[str, figures.InAndOut],
    name: str,
    heading: str,
    out: str,
    xlabel: str,
) -> Chart:
    return view.chart(
        name,
        heading,
        f"Filled, the test examples; outlined, {out}{view.over_runs}. Each panel has its own "
        "scale, without the outermost thousandth on either side: larger should be out, and the "
        "less the two overlap, the better they are told apart (AUROC: 50 % is chance, 100 % "
        "perfect).",
        lambda width: figures.in_and_out(panels, xlabel, looks=view.looks, width=width),
        seen=f"Histograms of {xlabel}: "
        + "; ".join(f"{label}, {panel.note}" for label, panel in panels.items()),
    )


def _in_and_out(
    label: str, runs: Any, out: str, score: str, prefix: str
) -> figures.InAndOut | None:
    stored = pool.each({label: runs}, "out", out, "histograms", score).get(label, [])
    inside, outside = (below(stored, counts=which) for which in ("in", "out"))
    if inside is None or outside is None:
        return None
    edges = np.linspace(*span(inside, outside), 41)
    auroc = pool.values({label: runs}, f"{prefix}auroc.{score}").get(label)
    note = f"AUROC {100 * pool.mean(auroc):.1f} %" if auroc else ""
    return figures.InAndOut(edges, density(inside, edges), density(outside, edges), note)

"""The figures of the analyses of outputs: margins, energies, gradients, calibration, OOD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from losslab.errors import InputError
from losslab.report import analysis_figures as figures
from losslab.report import analysis_pool as pool
from losslab.report.analysis_dots import Spots, StepPanel, steps
from losslab.report.analysis_view import View, sentence
from losslab.report.charts import Chart
from losslab.report.numbers import listing
from losslab.report.pooled import pooled_reliability
from losslab.report.style import Looks, styles

SCORES = {
    "min_energy": "lowest energy, −max z",
    "max_probability": "log(1 − max p)",
    "free_energy": "free energy, −log Σ exp z",
}


def margins(view: View) -> Iterator[Chart]:
    """Shares of the examples below each margin."""
    panels = []
    for name, title in (("logits", "in logits"), ("log_odds", "in log-odds")):
        stored = pool.each(view.findings, name, "histogram")
        shares = {k: found for k, of in stored.items() if (found := pool.below(of))}
        if shares:
            low, high = pool.span(*shares.values())
            lines = {k: pool.resampled(share, low, high) for k, share in shares.items()}
            panels.append(figures.Cumulated(f"margin {title}", f"margin {title}", lines))
    if panels:
        yield view.chart(
            "margins",
            "Margins",
            "The share of the examples whose margin is below x"
            + (f", {view.runs}" if view.runs else "")
            + ": the further right a curve, the wider the margins; where it crosses the line at 0 "
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
        sentence(f"Energy is −logit{', ' + view.runs if view.runs else ''}. {marks}")[:-1]
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
            f"|∂L/∂z_y| that they carry{', ' + view.runs if view.runs else ''}"
            f"{' (line: ± one standard deviation)' if view.runs else ''}. A loss that still "
            "learns from what is right has colour on the far right.",
            lambda width: figures.gradient_bands(own, edges, looks=view.looks, width=width),
            seen="Share of the gradient from the most certain band: "
            + "; ".join(f"{k} {100 * v.gradient[-1]:.1f} %" for k, v in own.items()),
        )
    yield from _under_other_losses(view, edges)


def _under_other_losses(view: View, edges: list[float]) -> Iterator[Chart]:
    """What every loss would attend to in the first label's models."""
    first, runs = next(iter(view.findings.items()))
    stored = pool.each({first: runs}, "by_loss").get(first, [])
    found = {}
    for name in dict.fromkeys(name for run in stored for name in run):
        if both := _counts_and_shares(runs, name, edges):
            found[name] = pool.bands([c for c, _ in both], [s for _, s in both])
    if not found:
        return
    names = _named(found, first, view.specs)
    lines = {label: found[name].gradient for name, label in names.items()}
    whose = "this model" if view.single else f"the models trained with {first}"
    yield view.chart(
        "gradients-under",
        "What each loss would attend to",
        f"Where the gradient would come from in {whose}, had each of these losses been put in the "
        f"place of its own at the end of training{', ' + view.runs if view.runs else ''}; bars are "
        "the share of the examples. The models are the same, so the lines differ by the losses "
        "alone.",
        lambda width: figures.gradient_lines(
            next(iter(found.values())).examples,
            lines,
            edges,
            looks=_looks(lines, view.looks),
            width=width,
        ),
        seen="Share of the gradient from the most certain band: "
        + "; ".join(f"{label} {100 * shares[-1]:.1f} %" for label, shares in lines.items()),
    )


def _counts_and_shares(runs: Any, name: str, edges: list[float]) -> list[tuple[Any, Any]]:
    """Of the runs that have both, in the same bands."""
    both = [(pool.at(run, "counts"), pool.at(run, "by_loss", name), run) for run in runs]
    return [
        (counts, shares)
        for counts, shares, run in both
        if counts and shares and pool.at(run, "edges") == edges
    ]


def _named(found: Mapping[str, Any], first: str, specs: Mapping[str, str]) -> dict[str, str]:
    """By the names of the findings, the labels to show: a loss of the comparison by its own."""
    labels = {canonical(spec): label for label, spec in specs.items()}
    named: dict[str, str] = {}
    for name in found:
        label = first if name == "own" else labels.get(canonical(name), name)
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
    panels = {}
    for label, runs in view.findings.items():
        before = pooled_reliability(_as_records(runs, "reliability", "ece"))
        if before is not None:
            after = pooled_reliability(_as_records(runs, "reliability_scaled", "scaled.ece"))
            panels[label] = figures.Scaled(before, after)
    if panels:
        yield view.chart(
            "calibration",
            "Reliability, before and after temperature scaling",
            "Accuracy against confidence on the test set"
            + (", all seeds together" if view.runs else "")
            + ": below the diagonal the model is surer than it is right; filled dots are the model "
            "as it is, hollow ones after its logits were divided by the temperature that fits the "
            "validation examples best; large dots are many examples.",
            lambda width: figures.reliability(panels, looks=view.looks, width=width),
            seen="Reliability: "
            + "; ".join(
                f"{label}, {p.before.note}{', scaled ' + p.after.note if p.after else ''}"
                for label, p in panels.items()
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
        for score, xlabel in SCORES.items():
            panels = {
                label: panel
                for label, runs in view.findings.items()
                if (panel := _in_and_out(view, label, runs, out, score, prefix))
            }
            if panels:
                yield _ood_chart(view, panels, f"ood-{place}-{score}", out, xlabel)


def _ood_chart(
    view: View, panels: Mapping[str, figures.InAndOut], name: str, out: str, xlabel: str
) -> Chart:
    return view.chart(
        name,
        f"{xlabel.partition(',')[0].capitalize() if xlabel[0] != 'l' else xlabel}: "
        f"test examples and {out}",
        f"Filled, the test examples; outlined, {out}{'; ' + view.runs if view.runs else ''}. Each "
        "panel has its own scale, without the outermost thousandth on either side: larger should "
        "be out, and the less the two overlap, the better they are told apart (AUROC: 50 % is "
        "chance, 100 % perfect).",
        lambda width: figures.in_and_out(panels, xlabel, looks=view.looks, width=width),
        seen=f"Histograms of {xlabel}: "
        + "; ".join(f"{label}, {panel.note}" for label, panel in panels.items()),
    )


def _in_and_out(
    view: View, label: str, runs: Any, out: str, score: str, prefix: str
) -> figures.InAndOut | None:
    stored = pool.each({label: runs}, "out", out, "histograms", score).get(label, [])
    inside, outside = (pool.below(stored, counts=which) for which in ("in", "out"))
    if inside is None or outside is None:
        return None
    edges = np.linspace(*pool.span(inside, outside), 41)
    auroc = pool.values({label: runs}, f"{prefix}auroc.{score}").get(label)
    note = f"AUROC {100 * pool.mean(auroc):.1f} %" if auroc else ""
    return figures.InAndOut(edges, pool.density(inside, edges), pool.density(outside, edges), note)


def generalisation(view: View) -> Iterator[Chart]:
    """Train beside test."""
    panels = []
    for name, title, scale in (("accuracy", "accuracy, %", 100.0), ("nll", "NLL, nats", 1.0)):
        rows = spots_by_stage(
            view, {stage: f"{stage}.{name}" for stage in ("train", "test")}, scale
        )
        if rows:
            panels.append(StepPanel(title, rows))
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


def spots_by_stage(
    view: View, names: Mapping[str, str], scale: float
) -> dict[str, dict[str, Spots]]:
    """By label and stage the numbers of the runs; ``names`` has each stage's value."""
    rows: dict[str, dict[str, Spots]] = {}
    for stage, name in names.items():
        for label, numbers in pool.values(view.findings, name).items():
            rows.setdefault(label, {})[stage] = Spots([scale * x for x in numbers])
    return rows

"""What analyses found, in the terminal, on a comparison's page and on a single model's.

Most findings are made up here, with numbers small enough to check by hand.
"""

from __future__ import annotations

import doctest
import importlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

import losslab
from losslab.analysis.analyse import ANALYSES, analyse, request
from losslab.analysis.dynamics import dynamics
from losslab.analysis.finding import Finding
from losslab.analysis.subject import Subject
from losslab.experiment import records
from losslab.report import (
    charts,
    figures,
    print_findings,
    print_one_model,
    print_table,
    write_findings,
    write_report,
)
from losslab.report.analyses import sections as sections_of
from losslab.report.analyses import view as views
from losslab.report.analyses import words
from losslab.report.analyses.charts import CHARTS
from losslab.report.analyses.flags import folded
from losslab.report.analyses.sections import sections
from losslab.report.analyses.view import View
from losslab.report.charts import Chart
from losslab.report.folder import read_folder
from losslab.report.notices import notices
from losslab.report.style import styles
from test_report import Page, artist, fake_folder, run_id

# --- made-up findings, in the shapes that losslab.analysis gives them -----------------------------

BANDS = (0.0, 0.5, 0.9, 1.0)
ROBUSTNESS = "robustness(epsilons=[0.1, 0.3])"
REQUESTS = (
    "margins",
    "energies",
    "gradients",
    "calibration",
    "generalisation",
    "ood(out=noise)",
    ROBUSTNESS,
    "representation",
    "curvature",
    "dynamics",
)
MASKED = "gradient masking suspected: PGD leaves {} % right, but {} % on log_odds"


def made_up(asked: str, rng: np.random.Generator, gain: float, classes: int = 4) -> dict[str, Any]:
    """A finding of that request: random numbers, better by ``gain``."""
    name = asked.partition("(")[0]
    values, details, *flags = _MAKERS[name](rng, gain, classes)
    found = {"name": name, "options": {}, "values": values, "details": details, "flags": flags}
    return records.jsonable({**found, "seconds": 0.1})


def _histogram(x: np.ndarray, edges: Any = 30) -> dict[str, Any]:
    counts, edges = np.histogram(x, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _margins(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    x = rng.normal(5 + 100 * gain, 3, 300)
    values = {
        f"{unit}.{name}": float(number)
        for unit in ("logits", "log_odds")
        for name, number in (
            ("mean", x.mean()),
            ("median", np.median(x)),
            ("negative", (x < 0).mean()),
        )
    }
    return values, {unit: {"histogram": _histogram(x)} for unit in ("logits", "log_odds")}


def _energies(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    table = rng.normal(0, 1, (classes, classes)) - 5 * np.eye(classes)
    table[-1] = np.nan if classes == 3 else table[-1]
    return {"true": -5.0 - gain, "lowest_other": -1.0, "gap": 4.0 + gain}, {"table": table.tolist()}


def _gradients(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    shares = rng.dirichlet(np.ones(3), 3)
    by_loss = {
        name: {"counts": [1, 2, 7], "shares": share.tolist(), "mean": 0.1 + gain}
        for name, share in zip(("own", "cross_entropy", "focal"), shares, strict=True)
    }
    details = {"edges": list(BANDS), "counts": [1, 2, 7], "by_loss": by_loss}
    return {"mean": 0.1 + gain, "right": float(shares[0, 1:].sum())}, details


def _calibration(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    names = ("ece", "adaptive_ece", "brier", "nll", "scaled.ece", "scaled.nll", "temperature")
    values = {name: float(abs(rng.normal(0.1, 0.01))) for name in names}
    diagram = {
        "edges": [0, 0.5, 1],
        "counts": [0, 50],
        "confidence": [np.nan, 0.9],
        "accuracy": [np.nan, 0.8 + gain],
    }
    return values, {"reliability": diagram, "reliability_scaled": diagram}


def _generalisation(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    test = float(rng.normal(0.9 + gain, 0.001))
    return {
        "train.accuracy": 1.0,
        "test.accuracy": test,
        "gap.accuracy": 1 - test,
        "train.nll": 1e-6 * (1 + gain),
        "test.nll": 0.3 - gain,
        "gap.nll": 0.3 - gain,
    }, {}


def _ood(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    scores = ("min_energy", "max_probability", "free_energy")
    values = {
        f"{measure}.{score}": float(rng.normal(0.8 + gain, 0.01))
        for measure in ("auroc", "fpr95", "aupr_in", "aupr_out")
        for score in scores
    }
    edges = np.linspace(-10, 0, 21)
    inside, outside = (_histogram(rng.normal(at, 1, 200), edges)["counts"] for at in (-7, -3))
    stored = {"edges": edges.tolist(), "in": inside, "out": outside}
    return values, {"out": {"noise": {"histograms": dict.fromkeys(scores, stored)}}}


def _robustness(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    values, curves = {"accuracy.clean": 0.95 + gain}, []
    for objective, lost in (("cross_entropy", 1.0), ("log_odds", 2.0)):
        points = [{"epsilon": e, "accuracy": 0.9 - lost * e + gain} for e in (0.1, 0.3)]
        curves.append({"attack": "pgd_linf", "norm": "linf", "objective": objective} |
                      {"points": points})  # fmt: skip
        values |= {f"accuracy.pgd_linf.{objective}.{p['epsilon']:g}": p["accuracy"] for p in points}
    worst = {"epsilon": [0.1, 0.3], "accuracy": [0.7 + gain, 0.3 + gain]}
    values |= {"worst.linf.0.1": 0.7 + gain, "worst.linf.0.3": 0.3 + gain}
    values["zero_gradient.cross_entropy"] = 0.25
    flags = [MASKED.format(60.0 + round(rng.random(), 2), 30)] if gain > 0 else []
    return values, {"curves": curves, "worst": {"linf": worst}, "box": [0, 1]}, *flags


def _representation(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    return {
        "retrained.accuracy_before": 0.9 + gain,
        "retrained.accuracy": float(rng.normal(0.91, 0.01)),
        "retrained.nll": 0.3,
        "probe.accuracy": float(rng.normal(0.92, 0.01)),
    }, {}


def _curvature(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    names = ("hessian.trace", "hessian.top", "noise.trace", "escaping.trace", "escaping.matched")
    return {name: float(rng.lognormal(-4, 2)) for name in names} | {"gradient_norm": 0.1}, {}


def _dynamics(rng: np.random.Generator, gain: float, classes: int) -> tuple[Any, ...]:
    trace = {}
    for split in ("train", "test"):
        log_odds = np.cumsum(rng.normal(0.5 + 10 * gain, 1.5, (5, 80)), axis=0)
        trace[split] = {"log_odds": log_odds, "correct": log_odds > 0}
    found = dynamics(trace)
    return found.values, found.details, *found.flags


_MAKERS: dict[str, Callable[[np.random.Generator, float, int], tuple[Any, ...]]] = {
    "margins": _margins,
    "energies": _energies,
    "gradients": _gradients,
    "calibration": _calibration,
    "generalisation": _generalisation,
    "ood": _ood,
    "robustness": _robustness,
    "representation": _representation,
    "curvature": _curvature,
    "dynamics": _dynamics,
}


def analysed(
    folder: Path,
    losses: Mapping[str, float],
    seeds: int,
    requests: Sequence[str] = REQUESTS,
    *,
    without: Mapping[str, Sequence[int]] | None = None,
    classes: int = 4,
    **options: Any,
) -> Path:
    """A run folder whose runs have made-up findings, but for the seeds ``without``."""
    fake_folder(folder, losses, seeds=seeds, summary=False, **options)
    for label, gain in losses.items():
        for seed in range(seeds):
            if seed in (without or {}).get(label, ()):
                continue
            rng = np.random.default_rng([seed, *label.encode()])
            found = {asked: made_up(asked, rng, gain, classes) for asked in requests}
            write_found(folder, label, seed, found)
    return folder


def write_found(folder: Path, label: str, seed: int, found: Mapping[str, Any]) -> None:
    run = run_id(label, seed)
    content = {"schema": 1, "run_id": run, "findings": found}
    records.write_json(folder / "findings" / f"{run}.json", content)


EVIL = "<b>$x$ & [red]_y</b>"
LOSSES = {"cross_entropy": 0.0, "encouraging": 0.01, EVIL: -0.01}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three losses on three seeds, one run not analysed, every analysis made up."""
    path = tmp_path_factory.mktemp("full") / "f"
    return analysed(path, LOSSES, 3, without={EVIL: [2]})


@pytest.fixture(scope="module")
def page(full: Path) -> Page:
    """The page with some of the figures: rendering takes its time."""
    some = {name: CHARTS[name] for name in ("margins", "representation", "robustness")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections_of, "CHARTS", some)
        patch.setattr(charts, "all_charts", lambda *_: [])
        patch.setattr(charts, "forest", lambda *_, **__: None)
        return Page(write_report(full))


@pytest.mark.parametrize("losses", [5, 14])
def test_nothing_is_cut_off_on_paper(tmp_path: Path, browser: Any, losses: int) -> None:
    """Oracle: the widths that Chromium lays out on A4 with margins of a centimetre. Fails when a
    table is wider than the page, or something stays folded or asks for a click."""
    gains = {"cross_entropy": 0.0, **{f"mixed(focus=0.{k})": k / 1000 for k in range(1, losses)}}
    folder = analysed(tmp_path / "runs", gains, 3, ("calibration", "margins"))
    tab = browser.new_page(viewport={"width": 718, "height": 1000})
    tab.goto(write_report(folder).as_uri())
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    boxes = tab.locator(".scroll")
    wide = "all => all.filter(b => b.scrollWidth > b.clientWidth + 1).map(b => b.innerText)"
    assert boxes.count() > 5 and boxes.evaluate_all(wide) == []
    assert tab.locator("table.values").count() and tab.locator("details:not([open])").count() == 0
    assert not any(box.is_visible() for box in tab.locator(".save, .copy, nav").all())
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("details[open]").count() == 0
    tab.close()


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not rendered."""

    def sketch(name: str, title: str, caption: str, make: Any, *, seen: str) -> Chart:
        make(figures.WIDE)
        return Chart(name, title, caption, Markup(seen), Markup(seen))

    monkeypatch.setattr(views, "make_chart", sketch)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections without figures, which take their time."""
    monkeypatch.setattr(sections_of, "CHARTS", {})


# --- the page of a comparison ---------------------------------------------------------------------


def test_the_page_is_well_formed_and_asks_for_nothing(page: Page) -> None:
    """Oracle: Python's parser with a strict stack (in `Page`), the ids, and addresses.

    Fails when a request's name or a loss's label breaks out of its place, two figures share an id,
    or a link of the navigation points nowhere.
    """
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and not any(re.search(r"\s", name) for name in ids)
    wanted = set(re.findall(r"url\(#([^)]+)\)", page.source))
    for _, attributes in page.tags:
        wanted |= set(attributes.get("aria-labelledby", "").split())
        wanted |= {attributes["href"][1:]} if attributes.get("href", "")[:1] == "#" else set()
    assert wanted <= set(ids) and {"analyses", "analysis-1", "analysis-10-values"} <= wanted
    assert "://" not in page.source and "@import" not in page.source
    assert "<b>" not in page.source and EVIL in page.text


@pytest.mark.usefixtures("undrawn")
def test_every_value_of_the_summary_stands_in_a_table(full: Path, page: Page) -> None:
    """Oracle: summary.json. Fails when a mean, sd, difference, interval or verdict is another's,
    a loss's column is swapped, or a value is lost."""
    folder = read_folder(full)
    looks = styles(folder.labels)
    made = {one.request: one for one in sections(folder, looks)}
    assert set(made) == set(REQUESTS) == set(folder.summary["analyses"])
    for asked, entry in folder.summary["analyses"].items():
        table = made[asked].everything or made[asked].headline
        assert sorted(row.value.name for row in table.rows) == sorted(entry["values"])
        assert table.labels == folder.labels == tuple(LOSSES)
        for row in table.rows:
            value = entry["values"][row.value.name]
            scale = 100 if value["unit"] == "points" else 1
            for label, cell in zip(table.labels, row.cells, strict=True):
                there = value["table"][label]
                near = pytest.approx(scale * there["mean"], rel=6e-3, abs=6e-3)
                assert number(cell.text.partition(" ±")[0]) == near
                if label == "cross_entropy":
                    assert cell.verdict is None
                    continue
                compared = value["comparisons"][label]
                assert cell.verdict is not None and cell.verdict.word == compared["verdict"]
                near = pytest.approx(scale * compared["mean"], rel=6e-3, abs=6e-3)
                assert number(cell.difference) == near
                assert (cell.interval == "") == (compared["low"] is None)
                assert cell.count == ("2 of 3 seeds" if label == EVIL else "")
                shown = f"{cell.verdict.symbol} {cell.difference} {cell.interval}"
                assert " ".join(shown.split()) in page.text
    test_accuracy = folder.summary["analyses"]["generalisation"]["values"]["test.accuracy"]
    mean = 100 * test_accuracy["comparisons"]["encouraging"]["mean"]
    assert f"▲ +{mean:.2f} [+" in page.text


def number(text: str) -> float:
    return float(text.replace("−", "-"))


@pytest.mark.usefixtures("undrawn")
def test_a_column_sorts_by_how_clear_a_difference_is(full: Path) -> None:
    """Oracle: mean / half-width from the summary, by hand. Fails when columns of different units
    sort by size, or a value without an interval gets a place."""
    folder = read_folder(full)
    (made,) = (s for s in sections(folder, styles(folder.labels)) if s.request == "generalisation")
    row = next(row for row in made.headline.rows if row.value.name == "test.accuracy")
    of = folder.summary["analyses"]["generalisation"]["values"]["test.accuracy"]["comparisons"]
    entry = of["encouraging"]
    expected = entry["mean"] / (0.5 * (entry["high"] - entry["low"]))
    assert row.cells[1].order == pytest.approx(expected, rel=1e-12) and expected > 1


def test_warnings_come_before_the_numbers_and_the_page_says_that_there_are_some(
    page: Page,
) -> None:
    """Oracle: what was made up: three seeds of encouraging with different numbers, and one run
    left out. Fails when a flag is shown three times, under its table, or not at the top."""
    section = page.text[page.text.index("Robustness " + ROBUSTNESS) :]
    assert section.count("gradient masking suspected") == 1
    told = "Warning. encouraging, seeds 0, 1, 2: gradient masking suspected: PGD leaves 60."
    assert told in section and "(numbers of seed 0)" in section
    assert section.index("Warning.") < section.index("Values of robustness")
    assert "Gradient masking is suspected for encouraging (see the warnings)" in section
    top = page.text[: page.text.index("How to read this")]
    assert f"Analyses. {ROBUSTNESS} (1)" in top
    assert f"Not analysed. margins, energies, gradients, {', '.join(REQUESTS[3:])} looked" in top
    assert f"only 2 of 3 runs of {EVIL};" in top


@pytest.mark.usefixtures("sketched")
def test_every_analysis_has_its_figures(full: Path) -> None:
    """Oracle: the list of figures that are asked for. Fails when one is lost, or has no caption or
    no alternative text."""
    folder = read_folder(full)
    made = [chart for one in sections(folder, styles(folder.labels)) for chart in one.charts]
    assert [chart.name for chart in made] == [
        "analysis-1-margins", "analysis-2-energies", "analysis-3-gradients-own",
        "analysis-3-gradients-under", "analysis-4-calibration", "analysis-5-generalisation",
        "analysis-6-ood-0-min_energy", "analysis-6-ood-0-max_probability",
        "analysis-6-ood-0-free_energy", "analysis-7-robustness", "analysis-8-representation",
        "analysis-9-curvature", "analysis-10-cohorts", "analysis-10-accuracy",
        "analysis-10-events",
    ]  # fmt: skip
    for chart in made:
        assert chart.caption.endswith(".") and len(chart.caption) > 60
        assert chart.wide and chart.title


def test_the_pages_figures_can_be_read_without_seeing_them(page: Page) -> None:
    """Oracle: HTML's own rules. Fails when a figure lacks its caption, a width or its text."""
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.source, flags=re.DOTALL)
    pictures = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(captions) == len(page.all("figure")) == 3 and len(pictures) == 6
    assert f"Cumulated margins of cross_entropy, encouraging, {EVIL}" in [
        svg["aria-label"] for svg in pictures
    ]


def test_a_folder_without_findings_has_no_such_section(tmp_path: Path) -> None:
    """Oracle: nothing. Fails when an empty heading is left behind (see test_report.py too)."""
    folder = read_folder(fake_folder(tmp_path / "f", {"a": 0.0, "b": 0.01}, seeds=1))
    assert sections(folder, styles(folder.labels)) == []


@pytest.mark.usefixtures("sketched")
def test_one_seed_and_a_loss_that_diverged(tmp_path: Path) -> None:
    """Oracle: a summary of one pair. Fails on a crash where there is no spread, no interval, and
    no finding of a loss at all."""
    folder = read_folder(
        analysed(
            tmp_path / "f",
            {"ce": 0.0, "b": 0.01, "lost": 0.0},
            1,
            ["generalisation", "dynamics"],
            without={"lost": [0]},
            diverged={"lost": [0]},
        )
    )
    first, second = sections(folder, styles(folder.labels))
    cells = {row.value.name: row.cells for row in first.headline.rows}["test.accuracy"]
    assert [cell.verdict.word for cell in cells if cell.verdict] == ["refused"]
    assert cells[1].interval == "" and cells[2].text == "–" and cells[2].count == ""
    assert "seeds" not in first.charts[0].caption and len(second.charts) == 3
    assert "Wilson" in second.charts[0].caption
    assert not [notice for notice in notices(folder) if notice.kind == "not analysed"]


# --- what is drawn --------------------------------------------------------------------------------


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Figure]]:
    """The figures of one analysis by name, from findings by label, at a width."""
    drawn: dict[str, Figure] = {}
    wanted = [figures.WIDE]

    def collect(name: str, title: str, caption: str, make: Any, *, seen: str) -> Chart:
        drawn[name.removeprefix("x-")] = make(wanted[0])
        return Chart(name, title, caption, Markup(""), Markup(""))

    def run(
        analysis: str, found: Mapping[str, Any], width: float = figures.WIDE, **options: Any
    ) -> dict[str, Figure]:
        drawn.clear()
        wanted[0] = width
        view = View("x", found, styles(list(found)), **options)
        assert len(list(CHARTS[analysis](view))) == len(drawn)
        return drawn

    monkeypatch.setattr(views, "make_chart", collect)
    return run


def run_of(details: Any = None, **values: float) -> dict[str, Any]:
    named = {name.replace("__", "."): x for name, x in values.items()}
    return {"values": named, "details": details or {}}


def test_margins_are_cumulated_and_every_seed_counts_the_same(draw: Any) -> None:
    """Oracle: by hand: below 0 lie 1 of 4 and 20 of 40, so 37.5 %. Fails when counts are pooled
    instead of shares, a density is drawn, or zero is not marked."""
    one = {"edges": [-1, 0, 1], "counts": [1, 3]}
    two = {"edges": [-2, 0, 2], "counts": [20, 20]}
    both = [run_of({"logits": {"histogram": h}, "log_odds": {"histogram": h}}) for h in (one, two)]
    figure = draw("margins", {"a": both, "b": both[:1]})["margins"]
    line = artist(figure, "a")
    x, y = line.get_xdata(), line.get_ydata()
    assert np.interp([0.0, 0.5], x, y) == pytest.approx([37.5, 62.5], abs=0.2)
    assert np.interp(0.0, artist(figure, "b").get_xdata(), artist(figure, "b").get_ydata()) == (
        pytest.approx(25, abs=0.2)
    )
    assert artist(figure, "zero", 1).get_xdata() == [0.0, 0.0]
    assert x[0] == pytest.approx(-1.992, abs=1e-9)  # a thousandth lies below
    assert [axes.get_xlabel() for axes in figure.axes] == ["margin in logits", "margin in log-odds"]


def test_energies_show_the_true_class_under_the_range_of_the_others(draw: Any) -> None:
    """Oracle: by hand, two seeds averaged. Fails when rows and columns are swapped, or the true
    class counts among the others."""
    tables = [[[-4, 0, 2], [1, -6, 3], [5, 7, -2]], [[-6, 2, 4], [1, -8, 5], [5, 9, -4]]]
    found = {"a": [run_of({"table": table}) for table in tables]}
    figure = draw("energies", found)["energies"]
    assert artist(figure, "true class").get_ydata().tolist() == [-5, -7, -3]
    assert artist(figure, "others, mean").get_ydata().tolist() == [2, 2.5, 6.5]
    bars = [segment.tolist() for segment in artist(figure, "others").get_segments()]
    assert bars == [[[0, 1], [0, 3]], [[1, 1], [1, 4]], [[2, 5], [2, 8]]]


def test_energies_of_a_hundred_classes_are_a_profile(draw: Any) -> None:
    """Oracle: gaps made here. Fails when a hundred bars are drawn, or the profile is not in the
    order of the gaps. A class without examples (null) is no obstacle."""
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, (100, 100)) - np.diag(rng.uniform(5, 50, 100))
    stored = table.tolist()
    stored[7] = [None] * 100
    figure = draw("energies", {"a": [run_of({"table": stored})]})["energies"]
    drawn = artist(figure, "true class").get_ydata()
    others = np.where(np.eye(100, dtype=bool), np.inf, table).min(axis=1)
    gaps = np.delete(others - table.diagonal(), 7)
    expected = np.delete(table.diagonal(), 7)[np.argsort(gaps)]
    assert drawn[:99] == pytest.approx(expected, abs=1e-12) and np.isnan(drawn[99])
    assert artist(figure, "others").get_paths()
    figure.draw_without_rendering()


def test_gradients_show_shares_of_examples_and_of_the_gradient(draw: Any) -> None:
    """Oracle: by hand. Fails when grey and colour are swapped, another loss's shares are drawn as
    its own, or the lines are not those of the baseline's models."""

    def run(counts: list[int], own: list[float], other: list[float]) -> dict[str, Any]:
        by_loss = {
            "own": {"shares": own, "mean": 0.2},
            "focal": {"shares": other, "mean": 0.1},
            "cross_entropy": {"shares": own, "mean": 0.2},
        }
        return run_of({"edges": list(BANDS), "counts": counts, "by_loss": by_loss})

    found = {
        "ce": [run([1, 1, 8], [0.7, 0.2, 0.1], [0.9, 0.1, 0.0]),
               run([3, 3, 4], [0.5, 0.4, 0.1], [0.7, 0.2, 0.1])],
        "mine": [run([0, 0, 10], [0.0, 0.0, 1.0], [0.0, 0.5, 0.5])],
    }  # fmt: skip
    specs = {"ce": "cross_entropy", "mine": "focal(gamma=2)"}
    drawn = draw("gradients", found, specs=specs)
    own = drawn["gradients-own"]
    heights = {
        bars.get_label(): [bar.get_height() for bar in bars] for bars in own.axes[0].containers
    }
    assert heights["examples"] == pytest.approx([20, 20, 60], abs=1e-9)
    assert heights["gradient"] == pytest.approx([60, 30, 10], abs=1e-9)
    sd = 100 * np.std([0.7, 0.5], ddof=1)
    whisker = artist(own, "sd").get_segments()[0]
    assert whisker[:, 1] == pytest.approx([60 - sd, 60 + sd], abs=1e-9)
    assert own.axes[1].containers[1][2].get_height() == pytest.approx(100)
    assert [tick.get_text() for tick in own.axes[1].get_xticklabels()] == ["0", ".5", ".9", "1"]
    under = drawn["gradients-under"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in under.axes[0].lines}
    # cross_entropy is the baseline's own, and focal is what "mine" was trained with
    assert lines == {
        "ce": pytest.approx([60, 30, 10], abs=1e-9),
        "mine": pytest.approx([80, 15, 5], abs=1e-9),
    }
    # the second panel is of the models trained with "mine"
    lines = {line.get_label(): line.get_ydata().tolist() for line in under.axes[1].lines}
    assert lines == {"ce": pytest.approx([0, 0, 100]), "mine": pytest.approx([0, 0, 100])}
    titles = [axes.get_title(loc="left") for axes in under.axes]
    assert titles == ["trained with ce", "trained with mine"]


def test_what_the_gradients_were_not_asked_about_is_said() -> None:
    """Oracle: by hand. Fails when a loss of the comparison that is missing in some models is drawn
    as if it were not, or passed over in silence."""

    def run(**by_loss: list[float]) -> dict[str, Any]:
        stored = {name: {"shares": shares, "mean": 0.1} for name, shares in by_loss.items()}
        return run_of({"edges": [0, 0.5, 1], "counts": [1, 1], "by_loss": stored})

    found = {
        "ce": [run(own=[1, 0], cross_entropy=[1, 0], focal=[0.8, 0.2])],
        "mine": [run(own=[0, 1], cross_entropy=[0.5, 0.5], focal=[0.6, 0.4])],
    }
    specs = {"ce": "cross_entropy", "mine": "encouraging(log_end=0.3)"}
    view = View("x", found, styles(list(found)), specs)
    under = list(CHARTS["gradients"](view))[1]
    assert under.name == "x-gradients-under"
    assert "The models of the other losses were not asked about mine:" in under.caption
    told = "ce: ce 0.0 %, focal 20.0 %; mine: ce 50.0 %, mine 100.0 %, focal 40.0 %"
    assert told in (under.wide or "")
    whole = View("x", {"ce": found["ce"]}, styles(["ce"]), specs)
    alone = list(CHARTS["gradients"](whole))[1]
    assert "not asked" not in alone.caption and "The model is the same" in alone.caption


def test_reliability_is_drawn_before_and_after(draw: Any) -> None:
    """Oracle: the numbers given. Fails when before and after are swapped."""

    def diagram(accuracy: float) -> dict[str, Any]:
        return {"edges": [0, 0.5, 1], "counts": [0, 10], "confidence": [None, 0.9],
                "accuracy": [None, accuracy]}  # fmt: skip

    details = {"reliability": diagram(0.6), "reliability_scaled": diagram(0.88)}
    values = {"ece": 0.3, "scaled__ece": 0.02}
    figure = draw("calibration", {"a": [run_of(details, **values)]})["calibration"]
    assert artist(figure, "bins").get_xydata().tolist() == [[0.9, 0.6]]
    assert artist(figure, "scaled").get_xydata().tolist() == [[0.9, pytest.approx(0.88)]]
    assert figure.axes[0].get_title(loc="left") == "a\nECE 30.00 % → 2.00 %"
    (alone,) = draw("calibration", {"a": [run_of({"reliability": diagram(0.6)})]}).values()
    assert not [a for a in alone.axes[0].get_children() if a.get_label() == "scaled"]


def test_ood_histograms_are_densities_of_in_and_out(draw: Any) -> None:
    """Oracle: densities by hand, bin by bin. Fails when in and out are swapped, counts are drawn
    and not densities, or a panel has another score's AUROC."""
    stored = {"edges": [-4, -3, -2, -1, 0], "in": [3, 1, 0, 0], "out": [0, 0, 5, 5]}
    scores = ("min_energy", "max_probability", "free_energy")
    details = {"out": {"noise": {"histograms": dict.fromkeys(scores, stored)}}}
    values = {f"auroc__{score}": 0.9 + 0.01 * i for i, score in enumerate(scores)}
    drawn = draw("ood", {"a": [run_of(details, **values)] * 2})
    assert list(drawn) == [f"ood-0-{score}" for score in scores]
    figure = drawn["ood-0-max_probability"]
    assert figure.axes[0].get_title(loc="left") == "a\nAUROC 91.0 %"
    inside, outside = (artist(figure, name).get_data() for name in ("in", "out"))
    assert inside.edges.tolist() == outside.edges.tolist()
    expected = {-4: (0.75, 0), -3: (0.25, 0), -2: (0, 0.5), -1: (0, 0.5)}
    for low, (of_in, of_out) in expected.items():
        within = (inside.edges[:-1] >= low) & (inside.edges[1:] <= low + 1)
        assert within.sum() >= 8
        assert inside.values[within] == pytest.approx(of_in, abs=1e-9)
        assert outside.values[within] == pytest.approx(of_out, abs=1e-9)


def test_ood_of_two_sets_takes_each_ones_own_numbers(draw: Any) -> None:
    """Oracle: the names of values with several sets. Fails when the sets' AUROC are mixed up."""
    stored = {"edges": [0, 1, 2], "in": [3, 1], "out": [1, 3]}
    out = {name: {"histograms": {"min_energy": stored}} for name in ("kmnist", "noise")}
    values = {"kmnist.auroc.min_energy": 0.6, "noise.auroc.min_energy": 0.7}
    drawn = draw("ood", {"a": [{"values": values, "details": {"out": out}}]})
    titles = [figure.axes[0].get_title(loc="left") for figure in drawn.values()]
    assert titles == ["a\nAUROC 60.0 %", "a\nAUROC 70.0 %"]


def test_robustness_draws_cross_entropy_dashed_and_log_odds_solid(draw: Any) -> None:
    """Oracle: the numbers given, seeds averaged, clean accuracy at 0. Fails when the objectives'
    curves are swapped or drawn alike, or the worst case is lost."""
    rng = np.random.default_rng(0)
    runs = [made_up(ROBUSTNESS, rng, gain) for gain in (0.0, 0.02)]
    figure = draw("robustness", {"a": runs})["robustness"]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["PGD L∞", "all attacks together, L∞"]
    usual, odds = artist(figure, "a/cross_entropy"), artist(figure, "a/log_odds")
    assert usual.get_xdata().tolist() == [0, 0.1, 0.3]
    assert usual.get_ydata() == pytest.approx([96, 81, 61], abs=1e-9)
    assert odds.get_ydata() == pytest.approx([96, 71, 31], abs=1e-9)
    assert usual.get_linestyle() == "--" and odds.get_linestyle() == "-"
    assert [axes.get_xlabel() for axes in figure.axes] == ["ε, of the box’s width"] * 2
    figure = draw("robustness", {"a": [{**run, "details": run["details"] | {"box": None}}
                                       for run in runs]})["robustness"]  # fmt: skip
    assert figure.axes[1].get_xlabel() == "ε, in the inputs’ own unit"
    assert artist(figure, "a/", 1).get_ydata() == pytest.approx([96, 71, 31], abs=1e-9)


def test_representation_has_a_mark_for_each_stage(draw: Any) -> None:
    """Oracle: means of the values given. Fails when stages are swapped or losses' rows mixed."""
    values = {"retrained__accuracy_before": 0.9, "retrained__accuracy": 0.8, "probe__accuracy": 0.7}
    more = {"retrained__accuracy_before": 0.92, "retrained__accuracy": 0.84}
    found = {"a": [run_of(**values)], "b": [run_of(**more), run_of(**values)]}
    figure = draw("representation", found)["representation"]
    places = {
        name: artist(figure, name).get_xydata()[0].tolist()
        for name in ("as trained/a", "output layer retrained/b", "linear probe/b")
    }
    assert places == {
        "as trained/a": [pytest.approx(90), 0],
        "output layer retrained/b": [pytest.approx(82), 1],
        "linear probe/b": [pytest.approx(70), 1],
    }
    seeds = artist(figure, "output layer retrained seeds/b").get_xdata()
    assert sorted(seeds) == pytest.approx([80, 84])


def test_cohorts_have_students_interval_over_seeds_and_wilsons_of_one(draw: Any) -> None:
    """Oracle: scipy's t interval of the shares; the interval that the run itself gives. Fails when
    examples of several seeds are pooled as if they were others."""
    from scipy import stats

    def run(share: float) -> dict[str, Any]:
        cohort = {"examples": 50, "right": 5, "share": share, "low": 0.04, "high": 0.21}
        empty = {"examples": 0, "right": 0, "share": None, "low": None, "high": None}
        split = {"epoch": 3, "cohorts": {"right": empty, "wrong_below": cohort}}
        return run_of({"threshold": 0.2, "splits": {"test": split}})

    found = {"a": [run(0.1), run(0.2), run(0.15)], "b": [run(0.1)]}
    figure = draw("dynamics", found)["cohorts"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "test: wrong, p < 0.2\nafter epoch 3"
    ]
    low, high = stats.t.interval(0.95, 2, 15, stats.sem([10, 20, 15]))
    assert artist(figure, "interval/a").get_xdata() == pytest.approx([max(low, 0), high])
    assert artist(figure, "mean/a").get_xydata()[0] == pytest.approx([15, 0])
    assert sorted(artist(figure, "seeds/a").get_xdata()) == pytest.approx([10, 15, 20])
    assert artist(figure, "interval/b").get_xdata() == pytest.approx([4, 21])
    assert [axes.get_xlabel() for axes in figure.axes] == ["right in the end, %"]


def test_dynamics_draws_accuracy_and_events_at_their_epochs(draw: Any) -> None:
    """Oracle: the trace's own counts. Fails when events are shifted by an epoch, splits swapped,
    or runs of different lengths refused."""
    split = {"accuracy": [0.5, 0.7, 0.8], "learned": [4, 2], "forgotten": [1, 0]}
    short = {"accuracy": [0.3, 0.5], "learned": [2], "forgotten": [1]}
    found = {"a": [run_of({"splits": {"test": split}}), run_of({"splits": {"test": short}})]}
    drawn = draw("dynamics", found)
    accuracy, events = drawn["accuracy"], drawn["events"]
    line = next(a for a in accuracy.axes[0].lines if a.get_label() == "a")
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata() == pytest.approx([40, 60, 80])
    titles = [axes.get_title(loc="left") for axes in events.axes]
    assert titles == ["test: examples learned", "test: examples forgotten"]
    line = next(a for a in events.axes[0].lines if a.get_label() == "a")
    assert line.get_xydata().tolist() == [[2, 3], [3, 2]]


def test_curvature_is_logarithmic_where_it_spans_much(draw: Any) -> None:
    """Oracle: 1e-6 beside 1, 2 beside 3, −1 beside 1. Fails when a negative number is lost on a
    logarithmic scale, or a narrow range is."""

    def run(x: float, y: float, z: float) -> dict[str, Any]:
        return run_of(hessian__trace=x, hessian__top=y, escaping__trace=z)

    figure = draw("curvature", {"a": [run(1e-6, 2, -1)], "b": [run(1, 3, 1000)]})["curvature"]
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear", "linear"]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Tr H", "H, largest eigenvalue", "Tr(HΣ)"]
    assert artist(figure, "mean/b", 2).get_xydata().tolist() == [[1000, 1]]
    figure.draw_without_rendering()
    ticks = {tick.get_text() for tick in figure.axes[0].get_xticklabels()}
    assert {"10⁻⁶", "10⁰"} <= ticks and all(tick.startswith("10") for tick in ticks)


def test_generalisation_draws_train_and_test(draw: Any) -> None:
    """Oracle: the numbers given. Fails when train and test are swapped."""
    values = {"train__accuracy": 1.0, "test__accuracy": 0.9, "train__nll": 0.1, "test__nll": 0.4}
    figure = draw("generalisation", {"a": [run_of(**values)]})["generalisation"]
    assert artist(figure, "train/a").get_xdata() == [100]
    assert artist(figure, "test/a").get_xdata() == [90]
    assert artist(figure, "test/a", 1).get_xdata() == [0.4]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["accuracy, %", "NLL, nats"]


@pytest.mark.parametrize("analysis", ANALYSES)
def test_what_an_older_folder_lacks_is_left_out(analysis: str, draw: Any) -> None:
    """Oracle: every detail taken away in turn, down to the second level. Fails when a figure then
    crashes, or is drawn of nothing."""
    asked = next(text for text in REQUESTS if text.partition("(")[0] == analysis)
    whole = made_up(asked, np.random.default_rng(1), 0.01)
    figures_of_all = set(draw(analysis, {"a": [whole] * 2, "b": [whole] * 2}))
    assert figures_of_all
    for path in _paths(whole["details"]):
        less = json.loads(json.dumps(whole))
        inner = less["details"]
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        assert set(draw(analysis, {"a": [less]})) <= figures_of_all
        assert set(draw(analysis, {"a": [less], "b": [whole]})) <= figures_of_all
    assert draw(analysis, {"a": [{"values": {}, "details": {}}], "b": [run_of()]}) == {}


def _paths(details: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, inner in details.items():
        yield (key,)
        if isinstance(inner, Mapping):
            yield from ((key, name) for name in inner)


@pytest.mark.parametrize("width", [figures.WIDE, figures.NARROW])
def test_eight_losses_and_twenty_seeds_fit(width: float, draw: Any) -> None:
    """Oracle: counting panels and rows. Fails when a loss is dropped, or a figure cannot be laid
    out (matplotlib warns, and warnings are errors)."""
    labels = ["cross_entropy", *(f"a_long_name_of_a_loss(number=0.{i}, more=1)" for i in range(7))]
    rng = np.random.default_rng(0)
    for asked in ("gradients", "curvature"):
        many = {
            label: [made_up(asked, rng, 0.001 * i, classes=30) for _ in range(20)]
            for i, label in enumerate(labels)
        }
        for name, figure in draw(asked, many, width).items():
            figure.draw_without_rendering()
            if name == "gradients-own":
                assert len(figure.axes) == 8
            if name == "curvature":
                means = [a for a in figure.axes[0].lines if a.get_label().startswith("mean/")]
                assert len(means) == 8


# --- words ----------------------------------------------------------------------------------------


def test_warnings_are_folded_over_seeds_and_losses() -> None:
    """Oracle: by hand. Fails when two warnings of one seed are made one, numbers of one seed are
    shown as everybody's, or another wording is swallowed."""
    told = {
        "a": [{"seed": s, "text": f"{n} % left"} for s, n in ((0, 3), (1, 4), (2, 3))],
        "b": [{"seed": s, "text": "3 % left"} for s in range(3)],
        "c": [{"seed": 0, "text": "at 0.1 masked"}, {"seed": 0, "text": "at 0.3 masked"},
              {"seed": 4, "text": "at 0.1 masked"}],
        "d": [{"seed": s, "text": "not converged."} for s in (0, 1, 2, 3, 7)],
    }  # fmt: skip
    lines = [f"{flag.whose}: {flag.sentence}" for flag in folded(told)]
    assert lines == [
        "a, b, seeds 0, 1, 2: 3 % left (numbers of a, seed 0)",
        "c, seeds 0, 4: at 0.1 masked",
        "c, seed 0: at 0.3 masked",
        "d, seeds 0–3, 7: not converged.",
    ]
    assert folded({}) == []


def test_numbers_keep_their_digits_whatever_their_size() -> None:
    """Oracle: by hand. Fails when a small number is shown as 0.0000, or a share not in percent."""

    def shown(*sizes: float, unit: str = "", of: float | None = None) -> str:
        how = words.written("x", "y", unit, None, sizes)
        return how.text(sizes[0] if of is None else of)

    assert shown(0.974, unit="points") == "97.40"
    assert shown(12.345) == "12.35" or shown(12.345) == "12.34"
    assert shown(0.12345, unit="nats") in ("0.1235", "0.1234")
    assert shown(1234.6) == "1235"
    assert shown(3.2e-7) == "3.20e−7"
    assert shown(5.0, 3.2e-7) == "5.00" and shown(5.0, 3.2e-7, of=-3.21e-7) == "−3.21e−7"
    assert shown(2.5e9) == "2.50e9"
    # each of a row's numbers with the decimals that the smallest of its means needs
    assert [shown(-15.63, -106.29, -9.146, of=x) for x in (-15.63, -106.29, -9.146)] == [
        "−15.63", "−106.29", "−9.15"
    ]  # fmt: skip
    assert shown(0.0) == "0.00" and shown(1.0, of=float("nan")) == "–"
    how = words.written("x", "y", "points", True, [0.5])
    assert how.change(0.0123, -0.01, 0.02) == ("+1.23", "[−1.00, +2.00]")
    assert how.change(-1e-6, None, 1) == ("0.00", "") and how.change(None, None, None)[0] == "–"
    assert how.mean_sd({"mean": 0.5, "sd": 0.01, "n": 3}) == "50.00 ±\u00a01.00"
    assert how.mean_sd({"mean": 0.5, "sd": None, "n": 1}) == "50.00"
    tiny = words.written("x", "y", "", None, [1e-7])
    assert tiny.change(-2e-8, -2.4e-7, 2e-7) == ("−0.20e−7", "[−2.40e−7, +2.00e−7]")
    assert tiny.change(0.0, None, None) == ("0.00", "")
    assert tiny.mean_sd({"mean": 4.28e-4, "sd": 8.74e-6}) == "4.28e−4 ±\u00a00.09e−4"


def test_an_analysis_that_is_not_known_here_keeps_its_table(tmp_path: Path) -> None:
    """Oracle: the summary. Fails when findings of another losslab break the page, or go first."""
    folder = read_folder(analysed(tmp_path / "f", {"a": 0, "b": 0.01}, 2, ["gradients", "margins"]))
    folder.summary["analyses"]["gradients"]["name"] = "future"
    known, unknown = sections(folder, styles(folder.labels))
    assert (known.analysis, unknown.analysis, unknown.about) == ("margins", "future", "")
    assert len(unknown.headline.rows) == 2 and unknown.charts == ()


@pytest.mark.usefixtures("undrawn")
def test_several_warnings_of_the_same_runs_stand_in_one_box(tmp_path: Path) -> None:
    """Oracle: by hand. Fails when a warning is lost, or put under another loss's name."""
    folder = fake_folder(tmp_path / "f", {"ce": 0.0, "b": 0.01}, seeds=2, summary=False)
    for label, texts in (("ce", ["one left"]), ("b", ["p = 1e-16", "one left", "masked"])):
        for seed in (0, 1):
            one = made_up("margins", np.random.default_rng(seed), 0.0)
            write_found(folder, label, seed, {"margins": {**one, "flags": texts}})
    read = read_folder(folder)
    (section,) = sections(read, styles(read.labels))
    told = [(notice.text, notice.points) for notice in section.notices]
    assert told == [
        ("ce, b, seeds 0, 1: one left", ()),
        ("b, seeds 0, 1:", ("p = 1e−16", "masked")),
    ]
    page = Page(write_report(folder))
    assert "<ul><li>p = 1e−16</li><li>masked</li></ul>" in page.source


def test_every_analysis_is_described_for_a_page() -> None:
    """Oracle: the catalogue. Fails when an analysis has no description, or one that talks about
    the command line."""
    for name in ANALYSES:
        told = words.about(name)
        assert len(told) > 20 and told[0].isupper() and told.endswith(".")
        assert "losslab" not in told and "(fashion" not in told
    assert words.about("unknown") == ""


def test_headlines_are_few_and_there(full: Path) -> None:
    """Oracle: the names that findings have. Fails when a headline names a value that does not
    exist any more (an analysis was changed), or there are too many."""
    for asked in REQUESTS:
        found = made_up(asked, np.random.default_rng(0), 0.01)
        chosen = words.headline(found["name"], found["values"])
        assert 2 <= len(chosen) <= 6 and set(chosen) <= set(found["values"])
        assert len(set(chosen)) == len(chosen)
    radii = [f"worst.linf.{e}" for e in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)]
    chosen = words.headline("robustness", ["accuracy.clean", *radii, "worst.l2.1"])
    assert chosen == ["accuracy.clean", radii[0], radii[2], radii[5], "worst.l2.1"]
    assert words.headline("unknown", list("abcdefgh")) == list("abcdef")


@pytest.mark.parametrize("name", ["words", "flags", "terminal"])
def test_examples_in_docstrings_are_true(name: str) -> None:
    """Oracle: Python itself. Fails when an example shows something else than the code does."""
    result = doctest.testmod(importlib.import_module(f"losslab.report.analyses.{name}"))
    assert result.failed == 0 and result.attempted >= 1


# --- the terminal ---------------------------------------------------------------------------------


def printed(show: Callable[[Console], None], width: int = 80, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(Console(file=stream, width=width))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_the_terminal_says_the_headlines_and_every_warning(full: Path) -> None:
    """Oracle: the summary, and 80. Fails when a number is cut or another loss's, a warning is lost,
    or a line is too long."""
    summary = read_folder(full).summary
    found = summary["analyses"]
    text = printed(lambda c: print_findings(found, "cross_entropy", c, report=full / "r.html"))
    body, _, path = text.rstrip("\n").rpartition("\n")
    assert path == f"All values and pictures: {full / 'r.html'}"
    assert max(map(len, body.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in body.splitlines()]
    for asked, entry in found.items():
        assert asked in lines
        for name in words.headline(entry["name"], entry["values"]):
            value = entry["values"][name]
            how = words.written_entry(entry["name"], name, value)
            at = lines.index(
                " ".join(f"{how.heading} {how.mean_sd(value['table']['cross_entropy'])}".split()),
                lines.index(asked),
            )
            for place, label in enumerate(("encouraging", EVIL), 1):
                one = value["comparisons"][label]
                end = " ".join(how.change(one["mean"], one["low"], one["high"])).rstrip()
                assert lines[at + place].startswith(f"{label} ")
                assert lines[at + place].endswith(f" {end}")
    joined = " ".join(lines)
    assert "warning: encouraging, seeds 0, 1, 2: gradient masking suspected" in joined
    assert f"runs looked at: cross_entropy 3, encouraging 3, {EVIL} 2; pairs" in joined
    assert "▲ better" in joined and "· descriptive" in joined


def test_one_loss_stands_beside_the_baseline(tmp_path: Path) -> None:
    """Oracle: one line a value. Fails when two losses take the lines of many."""
    folder = analysed(tmp_path / "f", {"ce": 0.0, "b": 0.01}, 3, ["generalisation"])
    found = read_folder(folder).summary["analyses"]
    text = printed(lambda c: print_findings(found, "ce", c, report=folder))
    (line,) = [line for line in text.splitlines() if line.startswith("test · accuracy")]
    assert re.search(r"test · accuracy, % +\d\d\.\d\d ±\s\d.\d\d +▲ \+\d\.\d\d \[\+", line)
    assert len(text.splitlines()) == 1 + 1 + 6 + 2 + 1


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_or_ascii_terminal_cuts_nothing(full: Path, width: int) -> None:
    """Oracle: the width and the encoder. Fails on a cut number or a UnicodeEncodeError."""
    found = read_folder(full).summary["analyses"]
    entry = found["generalisation"]["values"]["test.accuracy"]["comparisons"]["encouraging"]
    for encoding, sign in (("utf-8", "▲"), ("ascii", "+")):
        text = printed(
            lambda c: print_findings(found, "cross_entropy", c, report=full), width, encoding
        )
        body = text[: text.index("All values and pictures")]
        assert max(map(len, body.splitlines())) <= width
        assert f"{sign} +{100 * entry['mean']:.2f}" in text
        assert "?" not in text.split("generalisation")[1].split("ood")[0].replace("? ", "")


def test_the_comparisons_own_table_shows_them_too(full: Path) -> None:
    """Oracle: the summary. Fails when compare keeps quiet about what it was asked to analyse."""
    summary = read_folder(full).summary
    text = printed(lambda c: print_table(summary, c, report=full / "r.html"))
    assert "warning: encouraging, seeds 0, 1, 2: gradient masking" in " ".join(text.split())
    assert text.index("test · accuracy, %") < text.index("Report: ")
    assert text.rstrip().endswith(f"Report: {full / 'r.html'}")


# --- a single model -------------------------------------------------------------------------------


def test_one_model_is_written_and_printed(tmp_path: Path) -> None:
    """Oracle: the findings themselves, the strict parser, and a second writing. Fails when a value
    or a flag is lost, a name becomes markup, or a comparison is pretended."""
    rng = np.random.default_rng(0)
    found = {}
    for asked in ("generalisation", ROBUSTNESS, "curvature"):
        one = made_up(asked, rng, 0.01)
        found[asked] = Finding(one["values"], one["details"], tuple(one["flags"]))
    file = tmp_path / f"{EVIL.replace('/', '')}.pt"
    page = write_findings(found, file, tmp_path / "deep" / "out")
    assert page == tmp_path / "deep" / "out" / "report.html"
    stored = json.loads((page.parent / "findings.json").read_text())
    assert list(stored["findings"]) == list(found)
    for asked, finding in found.items():
        assert stored["findings"][asked]["values"] == finding.values
    shown = Page(page)
    assert "<b>" not in shown.source and file.name in shown.text
    assert "Warning. gradient masking suspected" in shown.text
    assert "Gradient masking is suspected for" in shown.text
    accuracy = found["generalisation"].values["test.accuracy"]
    assert f"test · accuracy, % ↑test.accuracy {100 * accuracy:.2f}" in shown.text
    assert "against" not in shown.text and "baseline" not in shown.text
    assert len(shown.all("figure")) == 2  # curvature is one dot a panel: left to its table
    before = page.read_bytes()
    assert write_findings(found, file, page.parent).read_bytes() == before

    text = printed(lambda c: print_one_model(found, c, report=page))
    body = text[: text.index("All values and pictures")]
    assert max(map(len, body.splitlines())) <= 80
    assert re.search(rf"test · accuracy, % +{100 * accuracy:.2f}\n", text)
    assert "warning: gradient masking suspected" in text
    assert "All values" not in printed(lambda c: print_one_model(found, c, report=None))


def test_a_trained_model_from_logits_to_figures(draw: Any) -> None:
    """Oracle: the accuracy of the model, counted here. Fails when the shapes that the analyses
    give and those that the report reads have come apart."""
    torch.manual_seed(0)
    inputs, target = torch.rand(90, 4), torch.arange(90) % 3
    inputs[:, :3] += 0.6 * nn.functional.one_hot(target, 3)
    inputs = inputs / inputs.max()
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    criterion = losslab.loss("encouraging")
    trace: dict[str, list[Any]] = {"log_odds": [], "correct": []}
    for _ in range(6):
        optimizer.zero_grad()
        criterion(model(inputs), target).backward()
        optimizer.step()
        logits = model(inputs).detach()
        trace["log_odds"].append(losslab.metrics.log_odds(logits, target))
        trace["correct"].append(logits.argmax(1) == target)
    both = {name: torch.stack(rows) for name, rows in trace.items()}
    data = inputs, target
    subject = Subject(model, criterion, data, data, data, trace={"train": both, "test": both})
    asked = [
        *("margins", "energies", "gradients", "calibration", "generalisation", "ood", "dynamics"),
        "robustness(epsilons=[0.1, 0.3], epsilons_l2=[0.5], steps=3, examples=20)",
        "representation(epochs=2)",
        "curvature(examples=30, probes=10)",
    ]
    requests = [request(text) for text in asked]
    found = {str(one): analyse(subject, one) for one in requests}
    accuracy = (model(inputs).argmax(1) == target).float().mean().item()
    text = printed(lambda c: print_one_model(found, c, report=None), 120)
    assert re.search(rf"test · accuracy, % +{100 * accuracy:.2f}\n", text)
    pictures = {}
    for asked_for, finding in found.items():
        name = asked_for.partition("(")[0]
        stored = {"values": finding.values, "details": records.jsonable(finding.details)}
        pictures[name] = list(draw(name, {"a": [stored]}))
        chosen = words.headline(name, finding.values)
        # a model as good as this has empty cohorts, which have no share
        named = {pattern for pattern, _ in words._HEADLINES[name] if "*" not in pattern}
        lacking = {name for name in named - set(chosen) if "wrong" not in name}
        assert not lacking, "headlines that the analysis does not give"
    assert pictures == {
        "margins": ["margins"],
        "energies": ["energies"],
        "gradients": ["gradients-own", "gradients-under"],
        "calibration": ["calibration"],
        "generalisation": ["generalisation"],
        "ood": ["ood-0-min_energy", "ood-0-max_probability", "ood-0-free_energy"],
        "dynamics": ["cohorts", "accuracy", "events"],
        "robustness": ["robustness"],
        "representation": ["representation"],
        "curvature": [],
    }


def test_what_a_value_is_of_stands_beside_its_name() -> None:
    """Break: gradient noise without the batch size that it is for."""
    found = {
        "curvature": Finding({"noise.trace": 0.5, "hessian.trace": 2.0}, {"batch_size": 32}, ())
    }
    text = printed(lambda c: print_one_model(found, c, report=None), 120)
    assert "Tr Σ (batches of 32)" in text and "Tr H  " in text
    entry = {"unit": "", "better": None, "table": {"CE": {"mean": 0.5}}, "of": "batches of 8"}
    heading = words.written_entry("curvature", "noise.trace", entry).heading
    assert heading == "Tr Σ (batches of 8)"

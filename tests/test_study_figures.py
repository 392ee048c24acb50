"""The figures of a study: what is drawn where, without overlaps, and the files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from losslab.errors import InputError
from losslab.experiment.across import summarize_across
from losslab.experiment.across_ranks import wins
from losslab.report import study_figures
from losslab.report.numbers import metric
from losslab.report.study_figures import NARROW, WIDE, improvement_forest, performance_profile
from losslab.report.study_page import write_study_report
from losslab.report.study_ranks import critical_difference
from losslab.report.style import styles
from test_report import Page

METHODS = ["CE", "CE+EL F=0", "CE+EL F=0, 0.5", "CE+EL F=0–0.5", "EL", "focal"]
LONG = [
    "cross_entropy",
    "encouraging(log_end=0.75)",
    "mixed(encouraging, halve=0.5, extra=1)",
    "normalized_cross_entropy",
    "label_smoothing(0.1)",
    "asymmetric_focal(gamma=1,2)",
]


def artists(figure: Figure, label: str) -> list[Any]:
    """The artists of that name in the only panel, in the order drawn."""
    return [a for a in figure.axes[0].get_children() if a.get_label() == label]


def artist(figure: Figure, label: str) -> Any:
    (found,) = artists(figure, label)
    return found


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    rng = np.random.default_rng(4)
    base = rng.beta(7, 2, (40, 1, 1)) + rng.normal(0, 0.01, (40, 2, 1))
    p = base + np.array([0, 0.001, 0.004, 0.006, -0.01, -0.006]) + rng.normal(0, 0.004, (40, 2, 6))
    return np.round(np.clip(p, 0, 1) * 200) / 200


@pytest.fixture(scope="module")
def summary(scores: np.ndarray) -> dict[str, Any]:
    return summarize_across(scores, METHODS, "CE", 0.005, resamples=500, scale=100)


# Critical difference ----------------------------------------------------------------------------


def test_ranks_elbows_and_bars_are_where_the_numbers_say() -> None:
    """Oracle: the numbers given. Fails when a mark, a bar's ends or the order is wrong."""
    ranks = {"a": 3.4, "b": 1.5, "c": 2.1, "d": 2.2}
    looks = styles(list(ranks))
    figure = critical_difference(
        ranks, [["b", "c", "d"], ["d", "a"]], looks=looks, difference=0.7, note="why"
    )
    axes = figure.axes[0]
    assert axes.get_xlim() == (1, 4)  # the best rank on the left
    for method, rank in ranks.items():
        mark = artist(figure, f"rank {method}")
        assert mark.get_xydata().tolist() == [[rank, 0]]
        assert (mark.get_marker(), mark.get_color()) == (looks[method].marker, looks[method].color)
        x = artist(figure, f"line {method}").get_xdata().tolist()
        assert x == [rank, rank, 1 if method in "bc" else 4]  # the better half on the left
    rows = {method: artist(figure, f"line {method}").get_ydata()[1] for method in ranks}
    assert rows["b"] < rows["c"] and rows["a"] < rows["d"]  # outermost on top: no lines cross
    first, second = artists(figure, "group")
    over = 0.004 * 3
    assert first.get_xdata() == pytest.approx([1.5 - over, 2.2 + over])
    assert second.get_xdata() == pytest.approx([2.2 - over, 3.4 + over])
    assert first.get_ydata()[0] != second.get_ydata()[0]  # they share d, so not one height
    low, high = artist(figure, "difference").get_xdata()
    assert high - low == pytest.approx(0.7)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["b  1.50", "c  2.10", "2.20  d", "3.40  a", "critical difference 0.70"]
    assert figure.get_supxlabel() == "why"


def test_bars_that_do_not_touch_share_a_height() -> None:
    """By hand: the first and third bar are apart, the second meets both."""
    ranks = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    figure = critical_difference(ranks, [["a", "b"], ["b", "c"], ["c", "d"]])
    heights = [bar.get_ydata()[0] for bar in artists(figure, "group")]
    assert heights[0] == heights[2] < heights[1]


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("names", [METHODS, LONG])
@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_nothing_in_the_diagram_overlaps_or_leaves_it(names, width, spread) -> None:
    """Oracle: the renderer's boxes of all texts. Fails when names overlap, or are cut off."""
    ranks = {name: 2.5 + spread * i / 3 for i, name in enumerate(names)}
    drawn = critical_difference(
        ranks, [names[:3], names[2:]], difference=1.23, xlabel="mean rank over 120 data sets",
        note="A bar joins methods that cannot be told apart (Nemenyi, α = 0.05).", width=width,
    )  # fmt: skip
    FigureCanvasAgg(drawn).draw()
    axes = drawn.axes[0]
    texts = [*axes.texts, axes.xaxis.label, *drawn.texts]
    assert len(texts) == len(names) + 3  # the difference, the axis's label and the note
    boxes = [text.get_window_extent() for text in texts]
    whole = drawn.bbox
    for text, box in zip(texts, boxes, strict=True):
        assert box.x0 >= 0 and box.x1 <= whole.x1, text.get_text()
        assert box.y0 >= 0 and box.y1 <= whole.y1, text.get_text()
    for (a, one), (b, other) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not one.overlaps(other), (a.get_text(), b.get_text())
    bars = [bar.get_ydata()[0] for bar in artists(drawn, "group")]
    rows = [artist(drawn, f"line {name}").get_ydata()[1] for name in names]
    assert max(bars) + 0.05 < min(rows)  # no bar runs through a name's line
    assert axes.get_window_extent().width > 0.2 * whole.width


# Profiles ---------------------------------------------------------------------------------------


def test_profile_of_accuracies_steps_at_the_ratios() -> None:
    """By hand: shares that reach τ. Fails when a step is on its other side, or runs downhill."""
    figure = performance_profile({"a": [1.0, 0.8, 1.0, 0.9], "b": [0.7, 1.0, 0.7, 1.0]})
    line = artist(figure, "a")
    assert line.get_drawstyle() == "steps-pre"  # the height at a ratio holds up to it
    assert line.get_xdata().tolist() == [0.0, 0.8, 0.9, 1.0]
    assert line.get_ydata() == pytest.approx([100, 100, 75, 50])
    assert artist(figure, "b").get_ydata() == pytest.approx([100, 100, 50])
    assert line.get_markevery() == [3]  # the share of wins, at 1
    low, high = figure.axes[0].get_xlim()
    assert 0.7 <= low < 0.8 and 1.0 < high < 1.02
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_profile_of_costs_steps_at_the_ratios() -> None:
    """By hand: shares within τ; a cost that is infinite is never within."""
    figure = performance_profile({"a": [1.0, 3.0, 1.0, np.inf], "b": [1.5, 1.0, 2.0, 1.0]},
                                 kind="cost")  # fmt: skip
    line = artist(figure, "a")
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xdata().tolist() == [1.0, 3.0, 6.0]  # to beyond the frame
    assert line.get_ydata() == pytest.approx([50, 75, 75])
    assert artist(figure, "b").get_ydata() == pytest.approx([50, 75, 100, 100])
    assert figure.axes[0].get_xlim()[1] < 6


def test_a_profile_of_few_data_sets_shows_every_method():
    """Oracle: by hand. Break: a frame that ends before the worst method has begun."""
    figure = performance_profile({"a": [1.0] * 3, "b": [0.99] * 3, "c": [0.9, 0.95, 0.96]})
    low, _ = figure.axes[0].get_xlim()
    assert 0.9 < low < 0.95
    figure = performance_profile({"a": [1.0] * 3, "b": [1.1] * 3, "c": [3, 2, 4.0]}, kind="cost")
    assert 3 <= figure.axes[0].get_xlim()[1] < 4


def test_profile_of_far_costs_is_on_a_logarithmic_scale() -> None:
    """Law: Dolan and Moré's log scale where costs span more than a factor of ten."""
    figure = performance_profile({"a": [1.0, 200.0], "b": [50.0, 1.0]}, kind="cost")
    assert figure.axes[0].get_xscale() == "log"
    near = performance_profile({"a": [1.0, 2.0], "b": [5.0, 1.0]}, kind="cost")
    assert near.axes[0].get_xscale() == "linear"


def test_profile_ends_at_the_wins(scores, summary) -> None:
    """Oracle: `wins` of the same scores. Fails when methods or scales are exchanged."""
    figure = study_figures.study_figures(summary)["profile"]
    expected = wins(scores.mean(axis=1))
    for method, count in zip(METHODS, expected, strict=True):
        assert artist(figure, method).get_ydata()[-1] == pytest.approx(100 * count / 40)


# Improvements -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_improvements_are_drawn_in_the_metrics_unit(summary, width) -> None:
    """Oracle: the summary, in points. Fails when an interval, a verdict or the margin is wrong."""
    looks = styles(METHODS)
    found = summary["mean_improvements"]
    figure = improvement_forest(
        found, margin=0.005, row=metric("accuracy"), looks=looks, width=width
    )
    for i, (method, entry) in enumerate(found.items()):
        assert artist(figure, f"mean-{i}").get_xdata() == pytest.approx([100 * entry["mean"]])
        ends = [100 * entry["low"], 100 * entry["high"]]
        assert artist(figure, f"interval-{i}").get_xdata() == pytest.approx(ends)
        ends = [100 * entry["both_low"], 100 * entry["both_high"]]
        thin = artist(figure, f"both-{i}")
        assert thin.get_xdata() == pytest.approx(ends)
        assert thin.get_color() == looks[method].color
        assert thin.get_linewidth() < artist(figure, f"interval-{i}").get_linewidth()
    band = artist(figure, "margin")
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.5, 1.0))
    texts = [text.get_text() for text in figure.axes[0].texts]
    for method, entry in found.items():
        (text,) = [t for t in texts if f"{100 * entry['mean']:+.2f}".replace("-", "−") in t]
        assert text.endswith(entry["verdict"])
        assert width == WIDE or text.startswith(method)
    unit = "percentage points"
    assert unit in figure.axes[0].get_xlabel()


def test_improvements_without_seeds_have_no_thin_line(scores) -> None:
    """Law: what the summary does not know is not drawn."""
    flat = summarize_across(scores[:, 0], METHODS, "CE", 0.005, resamples=500)
    figure = study_figures.study_figures(flat)["improvements"]
    assert not artists(figure, "both-0") and artists(figure, "interval-0")


# All of them ------------------------------------------------------------------------------------


def test_figures_show_the_summarys_groups(summary) -> None:
    """Oracle: the summary's groups and difference. Fails when the two tests are exchanged."""
    drawn = study_figures.study_figures(summary)
    assert list(drawn) == ["ranks-conover", "ranks-nemenyi", "improvements", "profile"]
    ranks = {m: row["mean_rank"] for m, row in summary["table"].items()}
    assert summary["conover"]["groups"] != summary["nemenyi"]["groups"]
    for name in ("conover", "nemenyi"):
        bars = [bar.get_xdata() for bar in artists(drawn[f"ranks-{name}"], "group")]
        groups = summary[name]["groups"]
        assert len(bars) == len(groups)
        for bar, group in zip(bars, groups, strict=True):
            assert bar == pytest.approx([ranks[group[0]], ranks[group[-1]]], abs=0.05)
    assert not artists(drawn["ranks-conover"], "difference")
    low, high = artist(drawn["ranks-nemenyi"], "difference").get_xdata()
    assert high - low == pytest.approx(summary["nemenyi"]["critical_difference"])


def test_a_silent_friedman_test_and_missing_ratios_are_respected() -> None:
    """Law: no difference found is said; both signs have no profile, infinite ratios no step."""
    rng = np.random.default_rng(0)
    flat = summarize_across(rng.normal(size=(8, 3)), ["a", "b", "c"], "a", 0.1, resamples=200)
    drawn = study_figures.study_figures(flat, metric("margin"))
    assert "profile" not in drawn
    assert "finds no difference" in drawn["ranks-conover"].get_supxlabel()
    costs = summarize_across(-np.array([[0.0, 1.0]] * 7), ["a", "b"], "a", 0.1, resamples=200)
    figure = study_figures.study_figures(costs, metric("nll"))["profile"]
    assert artist(figure, "b").get_ydata().tolist() == [0, 0]


def test_files_are_pictures_and_the_same_every_time(summary, tmp_path: Path) -> None:
    """Oracle: PIL and an XML parser. Fails when a file is missing, empty, or carries a date.

    The user's matplotlib settings are as before.
    """
    before = dict(mpl.rcParams)
    written = study_figures.save_study_figures(summary, tmp_path / "one")
    again = study_figures.save_study_figures(summary, tmp_path / "two")
    assert dict(mpl.rcParams) == before
    assert sorted(path.name for path in written) == sorted(
        f"{name}.{kind}"
        for name in ("ranks-conover", "ranks-nemenyi", "improvements", "profile")
        for kind in ("png", "svg")
    )
    for one, two in zip(written, again, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
        if one.suffix == ".png":
            with Image.open(one) as image:
                assert image.width == round(160 * WIDE)
                assert len(np.unique(np.asarray(image.convert("L")))) > 20
        else:
            root = ElementTree.parse(one).getroot()
            assert root.tag.endswith("svg")
            assert not list(root.iter("{http://www.w3.org/2000/svg}text"))  # outlines: no fonts


def test_the_page_is_like_the_other_pages(summary, tmp_path: Path) -> None:
    """Oracle: the strict parser of test_report.py, the ids, and the numbers. Fails when an element
    is left open, an id is used twice, a table cannot be reached by keyboard, the page asks for
    something, or a figure has no narrow form."""
    model = {"across": summary, "missing": ["iris"], "diverged": {}, "rates": {"CE": {"0.1": 3}}}
    empty = {"across": None, "missing": [], "diverged": {"EL": 2}, "rates": {}}
    whole = {
        "title": "A <study>",
        "metric": "accuracy",
        "runs": {"finished": 3, "planned": 4},
        "recipe": {"differs": ["fewer sets"], "statistics": {"baseline": "CE"}},
        "models": {"a model": model, "none": empty},
    }
    written = write_study_report(whole, tmp_path)
    page = Page(written)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and not any(" " in name for name in ids)
    wanted = {tag["href"][1:] for tag in page.all("a")}
    wanted |= {tag["aria-labelledby"] for _, tag in page.tags if "aria-labelledby" in tag}
    assert wanted <= set(ids)
    boxes = [tag for _, tag in page.tags if tag.get("class") == "scroll"]
    assert len(boxes) == 2 and all(box["tabindex"] == "0" for box in boxes)
    pictures = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(pictures) == 2 * 3 and len(page.all("figure")) == 3
    assert "://" not in page.source and "<study>" not in page.source
    assert "A <study>" in page.text and "3 of 4 runs finished" in page.text
    assert "1 data sets left out, runs are missing: iris" in page.text
    assert "too few finished data sets for statistics" in page.text
    (entry,) = [summary["mean_improvements"]["EL"]]
    assert f"{100 * entry['mean']:+.2f} [".replace("-", "−") in page.text
    assert "-0." not in page.text  # minus signs, no hyphens
    assert page.row("CE", "Results: Model a model")[1] == "baseline"
    before = written.read_bytes()
    assert write_study_report(whole, tmp_path).read_bytes() == before


def test_a_studys_table_sorts_by_a_click(summary, tmp_path: Path, browser) -> None:
    """Oracle: Python's sorted. Fails when a heading is no button, or a minus sign is no number."""
    model = {"across": summary, "missing": [], "diverged": {}, "rates": {}}
    whole = {
        "title": "A study",
        "metric": "accuracy",
        "runs": {"finished": 4, "planned": 4},
        "recipe": {"statistics": {"baseline": "CE"}},
        "models": {"a model": model},
    }
    tab = browser.new_page()
    tab.goto(write_study_report(whole, tmp_path).as_uri())
    table = tab.locator("table.study")
    for number, heading in ((5, "Wins"), (7, "Mean rank"), (8, "Accuracy")):
        button = table.get_by_role("button", name=heading)
        for reverse in (False, True):
            button.click()
            found = table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()
            values = [float(text.split()[0].replace("−", "-")) for text in found]
            assert values == sorted(values, reverse=reverse) and len(set(values)) > 1
    tab.close()


def test_the_frame_holds_the_thin_intervals_too(summary) -> None:
    """Oracle: the numbers. Fails when an interval over seeds and data sets is cut at the frame."""
    found = {"EL": {**summary["mean_improvements"]["EL"], "both_low": -0.3, "both_high": 0.2}}
    looks = styles(METHODS)
    figure = improvement_forest(found, margin=0.005, row=metric("accuracy"), looks=looks)
    low, high = figure.axes[0].get_xlim()
    assert low < -30 and high > 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: critical_difference({"a": 1.0}, []), "two methods or more"),
        (lambda: performance_profile({}), "at least one method"),
        (lambda: performance_profile({"a": [1.0]}, kind="time"), "'time'"),
        (
            lambda: improvement_forest({}, margin=0.1, row=metric("nll"), looks={}),
            "at least one method",
        ),
    ],
)
def test_nothing_to_draw_is_said(call, message) -> None:
    """A user's mistake raises InputError, not matplotlib's IndexError."""
    with pytest.raises(InputError) as raised:
        call()
    assert message in str(raised.value)

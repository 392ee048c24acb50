"""The report of a comparison, drawn from run folders that are made here with known numbers."""

from __future__ import annotations

import doctest
import hashlib
import html.parser
import importlib
import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from losslab.errors import InputError
from losslab.experiment import records
from losslab.experiment.summary import summarize_folder
from losslab.report import charts, figures, numbers, page, pooled, print_table, write_report
from losslab.report.folder import read_folder
from losslab.report.notices import notices
from losslab.report.style import shortened, styles, wrapped
from losslab.report.svg import inline_svg, swatch
from losslab.report.verdicts import what_changed_most

METRICS = ("accuracy", "balanced_accuracy", "nll", "brier", "ece", "margin", "energy")
EPOCHS = 30
SELECTIONS = ("last", "validation_selected", "best_on_test")
FIVE = {
    "cross_entropy": 0.0,
    "encouraging": 0.009,
    "mixed(focus=0.3)": 0.002,
    "focal(gamma=2)": -0.012,
    "cross_entropy + 0.5*expectation": 0.0015,
}
ENVIRONMENT = {
    "losslab": "0.1.0",
    "torch": "2.13.0",
    "python": "3.11.9",
    "platform": "Linux",
    "device": "cpu",
    "threads": 1,
    "git": {"commit": "0f3c" * 10, "dirty": False},
}


# --- a run folder with invented, realistic numbers ------------------------------------------------


def fake_record(label: str, seed: int, gain: float, *, diverged: bool = False) -> dict[str, Any]:
    """One run's record: a learning curve that settles at 96 % plus ``gain``, paired by seed."""
    shared, own = np.random.default_rng(seed), np.random.default_rng([seed, *label.encode()])
    epoch = np.arange(1, EPOCHS + 1)
    top = 0.96 + gain + 0.003 * shared.standard_normal() + 0.0015 * own.standard_normal()
    approach = 1 - 0.6 * np.exp(-epoch / 3)
    scores = {}
    for split in ("validation", "test"):
        accuracy = np.round((top * approach + 0.002 * own.standard_normal(EPOCHS)) * 500) / 500
        nll = 2.2 * np.exp(-epoch / 4) + 0.15 - gain + 0.003 * own.standard_normal(EPOCHS)
        scores[split] = {"accuracy": accuracy.tolist(), "nll": nll.tolist()}
    noise = 0.001 * own.standard_normal(5)
    picked = {
        "last": EPOCHS - 1,
        "validation_selected": int(np.argmax(scores["validation"]["accuracy"])),
        "best_on_test": int(np.argmax(scores["test"]["accuracy"])),
    }

    def evaluated(split: str, at: int) -> dict[str, float]:
        accuracy, nll = (scores[split][name][at] for name in ("accuracy", "nll"))
        rest = (0.06 - gain, 0.02 + gain, 9 + 400 * gain, -12 - 400 * gain)
        values = (accuracy, accuracy, nll, *rest) + np.r_[0, noise[:1], 0, noise[1:]]
        return dict(zip(METRICS, values.tolist(), strict=True))

    margins = own.normal(9 + 400 * gain, 5, 500)
    counts, edges = np.histogram(margins, 50)
    filled = np.r_[np.zeros(4), np.arange(1, 12) ** 2]
    confidence = np.where(filled > 0, np.linspace(1 / 30, 1 - 1 / 30, 15), np.nan)
    record = {
        "schema": 1,
        "run_id": run_id(label, seed),
        "status": "finished",
        "reason": None,
        "loss": {"label": label, "spec": label, "role": "loss", "control_for": None, "lr_scale": 1},
        "seed": seed,
        "task": {"name": "digits", "num_classes": 10},
        "settings": {"epochs": EPOCHS, "batch_size": 64},
        "curves": {
            "epoch": epoch.tolist(),
            "lr": [0.1] * EPOCHS,
            "train_loss": (2.0 * np.exp(-epoch / 3) - 20 * gain).tolist(),
            **scores,
        },
        "results": {
            selection: {
                "epoch": at + 1,
                "validation": evaluated("validation", at),
                "test": evaluated("test", at),
            }
            for selection, at in picked.items()
        },
        "margin_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "reliability": {
            "edges": np.linspace(0, 1, 16).tolist(),
            "counts": filled.astype(int).tolist(),
            "confidence": confidence.tolist(),
            "accuracy": (confidence - 0.03 + 4 * gain).tolist(),
        },
        "timing": {
            "started": f"2026-11-20T10:{seed:02d}:00.000+00:00",
            "finished": f"2026-11-20T10:{seed:02d}:08.000+00:00",
            "seconds": 8.0,
        },
        "environment": ENVIRONMENT,
    }
    if diverged:
        cut = {k: v[:3] for k, v in record["curves"].items() if isinstance(v, list)}
        short = {k: {m: x[:3] for m, x in v.items()} for k, v in scores.items()}
        record |= {
            "status": "diverged",
            "reason": "the training loss became NaN in epoch 4",
            "curves": {**cut, **short},
            "results": dict.fromkeys(SELECTIONS),
            "margin_histogram": None,
            "reliability": None,
        }
    return records.jsonable(record)


def run_id(label: str, seed: int) -> str:
    return hashlib.sha256(f"{label}/{seed}".encode()).hexdigest()[:16]


def fake_folder(
    path: Path,
    losses: Mapping[str, float] = FIVE,
    *,
    seeds: int = 10,
    diverged: Mapping[str, Sequence[int]] | None = None,
    missing: Mapping[str, Sequence[int]] | None = None,
    controls: Mapping[str, str] | None = None,
    summary: bool = True,
    **configuration: Any,
) -> Path:
    """Writes a run folder: ``losses`` maps each label to its true gain, the baseline first."""
    (path / "runs").mkdir(parents=True)
    gains = {**losses, **dict.fromkeys(controls or {}, 0.004)}
    arms = [
        {
            "label": label,
            "spec": "cross_entropy" if label in (controls or {}) else label,
            "role": "control" if label in (controls or {}) else "loss",
            "control_for": (controls or {}).get(label),
            "lr_scale": 0.62 if label in (controls or {}) else 1.0,
        }
        for label in gains
    ]
    content = {
        "schema": 1,
        "task": {"name": "digits", "num_classes": 10, "source": "scikit-learn"},
        "settings": {"epochs": EPOCHS, "batch_size": 64},
        "baseline": next(iter(losses)),
        "losses": arms,
        "seeds": list(range(seeds)),
        "metric": "accuracy",
        "selection": "last",
        "margin": 0.005,
        "skipped_controls": {},
        "command": f"losslab compare --task digits --seeds {seeds}",
        "chance": {"class": 0, "accuracy": 0.1, "balanced_accuracy": 0.1},
        "resolution": {"accuracy": 1 / 500, "balanced_accuracy": 1 / 500},
        "runs": {label: [run_id(label, seed) for seed in range(seeds)] for label in gains},
        **configuration,
    }
    (path / "comparison.json").write_text(json.dumps(content))
    for label, gain in gains.items():
        for seed in range(seeds):
            if seed not in (missing or {}).get(label, ()):
                failed = seed in (diverged or {}).get(label, ())
                record = fake_record(label, seed, gain, diverged=failed)
                (path / "runs" / f"{record['run_id']}.json").write_text(json.dumps(record))
    if summary:
        (path / "summary.json").write_text(json.dumps(summarize_folder(path)))
    return path


# --- reading the page -----------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """A strict reader: every element closed in order, every id, link, text and table kept."""

    VOID = ("meta", "link", "br", "wbr")
    INLINE = ("span", "em", "strong", "small", "code", "a")

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.pieces: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(self.source)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attributes}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        if tag not in self.INLINE:
            self.pieces.append(" ")

    def handle_data(self, data: str) -> None:
        if "style" in self.open or "script" in self.open:
            return
        self.pieces.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        """What a reader sees, with single spaces."""
        return " ".join("".join(self.pieces).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, label: str, after: str) -> list[str]:
        """The first table row of a loss after the table whose caption starts so."""
        start = self.text_of_captions().index(after)
        found = [row for row in self.rows_of(start) if row[0].split()[0] == label]
        return [" ".join(cell.split()) for cell in found[0]]

    def text_of_captions(self) -> list[str]:
        return [m.group(1) for m in re.finditer(r"<caption[^>]*>([^<]*)</caption>", self.source)]

    def rows_of(self, table: int) -> list[list[str]]:
        """The rows of the n-th table that has a caption."""
        parts = self.source.split("<caption")[1:]
        before = sum(part.count("<tr") for part in parts[:table])
        first = self.source.split("<caption")[0].count("<tr")
        return self.rows[first + before : first + before + parts[table].count("<tr")]


DIVERGED, MISSING = {"focal(gamma=2)": [1, 4]}, {"mixed(focus=0.3)": [5]}
CONTROL = "cross_entropy, lr matched to encouraging"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five losses on six seeds with everything that can go wrong in a finished comparison."""
    return fake_folder(
        tmp_path_factory.mktemp("full") / "runs of mine",
        seeds=6,
        diverged=DIVERGED,
        missing=MISSING,
        controls={CONTROL: "encouraging"},
        skipped_controls={"focal(gamma=2)": "no matched-gradient control: V is not finite"},
    )


@pytest.fixture(scope="module")
def shown(full: Path) -> Page:
    return Page(write_report(full))


def raw(folder: Path, label: str, selection: str = "last", name: str = "accuracy") -> np.ndarray:
    """A metric by seed straight from the files: NaN where the run is missing or diverged."""
    seeds = json.loads((folder / "comparison.json").read_text())["seeds"]
    values = np.full(len(seeds), np.nan)
    for seed in seeds:
        file = folder / "runs" / f"{run_id(label, seed)}.json"
        results = json.loads(file.read_text())["results"] if file.exists() else {}
        if results.get(selection):
            values[seed] = results[selection]["test"][name]
    return values


# --- the page -------------------------------------------------------------------------------------


def test_page_is_well_formed_and_its_references_resolve(shown: Page) -> None:
    """Oracle: Python's HTML parser with a strict stack (in `Page`), and the ids it met.

    Fails when an element is left open, an id is used twice (two figures with matplotlib's own
    ids), or a link, clip path or label points nowhere.
    """
    ids = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and not any(re.search(r"\s", name) for name in ids)
    wanted = set(re.findall(r"url\(#([^)]+)\)", shown.source))
    for _, attributes in shown.tags:
        wanted |= set(attributes.get("aria-labelledby", "").split())
        wanted |= {attributes["href"][1:]} if attributes.get("href", "")[:1] == "#" else set()
    assert len(wanted) > 50 and wanted <= set(ids)
    assert "analyses" not in ids  # nothing was analysed


def test_what_scrolls_can_be_reached_and_says_so(shown: Page) -> None:
    """Oracle: ARIA's rules for a scrolling region, and the style sheet. Fails when a table can be
    scrolled by a mouse alone, has no name, or is cut off without a sign."""
    boxes = [tag for _, tag in shown.tags if tag.get("class") == "scroll"]
    assert len(boxes) == 1 + 7 + 1 + 1 + 1 + 3
    for box in boxes:
        assert (box["tabindex"], box["role"]) == ("0", "region") and box["aria-labelledby"]
    tables = len(shown.all("table"))
    assert tables == len(boxes)
    assert re.search(
        r"\.scroll \{[^}]*overflow-x: auto[^}]*var\(--shade\)[^}]*scroll", shown.source
    )
    assert ".scroll.more caption::after" in shown.source
    assert 'classList.toggle("more"' in shown.source


def test_page_asks_for_nothing_from_elsewhere(shown: Page) -> None:
    """Oracle: the attributes and style rules that make a browser load something.

    Fails when a script, style sheet, font, image or namespace brings an address with it.
    """
    for tag, attributes in shown.tags:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(key, "#")[:1] == "#" or attributes[key] == "data:,", (tag, key)
        assert not any(key.startswith("on") for key in attributes)
    assert "://" not in shown.source and "@import" not in shown.source
    assert "url(" not in re.sub(r"url\(#[^)]+\)", "", shown.source)
    assert len(shown.source.encode()) < 1_500_000


def test_every_verdict_is_on_the_page_and_the_largest_change_first(full: Path, shown: Page) -> None:
    """Oracle: summary.json, and means computed here from the raw records.

    Fails when a loss, its sentence, its word, its p or its mean difference is not shown, when a
    difference is not in percentage points, or when the order is another.
    """
    compared = json.loads((full / "summary.json").read_text())["comparisons"]["last"]["accuracy"]
    baseline = raw(full, "cross_entropy")
    assert set(compared) == {*FIVE, CONTROL} - {"cross_entropy"}
    for label in FIVE:
        if label == "cross_entropy":
            continue
        entry = compared[label]
        assert f"{entry['verdict']} {label} {numbers.with_minus(entry['sentence'])}" in shown.text
        values = raw(full, label)
        values[DIVERGED.get(label, [])] = 0.1
        mean = 100 * np.nanmean(values - baseline)
        assert abs(mean) > 0.01
        assert f"{mean:+.2f} pp 95 % [".replace("-", "−") in shown.text
        assert f"corrected p {numbers.p_text(entry['p_adjusted'])} P(improvement)" in shown.text
    sentences = [compared[label]["sentence"] for label in read_folder(full).ordered]
    places = [shown.text.index(numbers.with_minus(sentence)) for sentence in sentences]
    assert places == sorted(places) and len(places) == 4
    groups = [compared[k]["verdict"] in ("better", "worse") for k in read_folder(full).ordered]
    assert groups == sorted(groups, reverse=True) and 0 < sum(groups) < 4


def test_reading_order_is_by_what_changed_most() -> None:
    """Oracle: by hand. Fails when noise outranks an established change, or small outranks large."""
    verdicts = {
        "a": ("refused", 9.0), "b": ("cannot tell", 5.0), "c": ("better", 0.1),
        "d": ("worse", -0.2), "e": ("no worthwhile difference", -0.01), "f": ("refused", None),
    }  # fmt: skip
    compared = {key: {"verdict": word, "mean": mean} for key, (word, mean) in verdicts.items()}
    assert what_changed_most(compared) == ["d", "c", "b", "e", "a", "f"]


def test_every_warning_stands_before_the_figures(full: Path, shown: Page) -> None:
    """Oracle: what `full` was made with. Fails when a warning is lost or sinks below figures."""
    above = shown.text[: shown.text.index("Paired differences")]
    assert (
        "focal(gamma=2): 2 of 6 runs (seeds 1, 4) diverged (the training loss became NaN" in above
    )
    assert "counts for 10.00 % accuracy" in above
    assert "1 of 36 runs are not finished: seed 5 of mixed(focus=0.3)" in above
    assert "focal(gamma=2): no matched-gradient control: V is not finite" in above
    assert shown.source.index('id="warnings"') < shown.source.index("<figure")


def test_results_stand_side_by_side_and_the_best_on_test_is_called_optimistic(
    full: Path, shown: Page
) -> None:
    """Oracle: numpy over the raw records. Fails on a swapped column, a wrong mean or wrong sd."""
    captions = shown.text_of_captions()
    assert captions[:2] == [
        "Accuracy, % (higher is better)",
        "Balanced accuracy, % (higher is better)",
    ]
    # each metric; then the other metrics' changes, the runs, and three lists of pairs
    assert len(captions) == 7 + 2 + 3
    assert [" ".join(cell.split()) for cell in shown.rows_of(0)[0]] == [
        "Loss", "Last epoch", "Validation-selected", "Best on test (optimistic)"
    ]  # fmt: skip
    expected = ["encouraging"]
    for selection in SELECTIONS:
        values = 100 * raw(full, "encouraging", selection)
        expected.append(f"{values.mean():.2f} ± {values.std(ddof=1):.2f}")
    assert shown.row("encouraging", captions[0]) == expected
    nll = raw(full, "focal(gamma=2)", name="nll")
    cell = shown.row("focal(gamma=2)", "NLL, nats (lower is better)")[1]
    assert cell == f"{np.nanmean(nll):.4f} ± {np.nanstd(nll, ddof=1):.4f}4 of 6 seeds"


def test_every_figure_has_a_caption_and_an_alternative_text(shown: Page) -> None:
    """Oracle: HTML's own rules. Fails when a figure cannot be read without seeing it."""
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown.source, flags=re.DOTALL)
    pictures = [svg for svg in shown.all("svg") if svg.get("role") == "img"]
    assert len(shown.all("figure")) == len(captions) == 6
    assert len(pictures) == 2 * 6 and all(svg["aria-label"] for svg in pictures)
    assert all(caption.rstrip().endswith(".") for caption in captions)
    assert (
        "Forest plot: " in pictures[0]["aria-label"]
        and "encouraging +" in pictures[0]["aria-label"]
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three losses on five seeds; every run finished."""
    losses = {"cross_entropy": 0.0, "encouraging": 0.02, "focal": -0.03}
    return fake_folder(tmp_path_factory.mktemp("plain") / "f", losses, seeds=5)


def test_what_else_changed_most(plain: Path) -> None:
    """Oracle: scipy's t-interval on the raw records. Fails when a clear change is left out, one
    that is not is listed, the order is not by how clear, or before and after are swapped."""
    from scipy import stats

    source = Page(write_report(plain)).source
    table = source.partition('<table class="left moved sortable">')[2].partition("</table>")[0]
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", table, re.S)
    texts = [re.sub(r"<[^>]+>", " ", row).replace("\N{MINUS SIGN}", "-") for row in rows]
    compared = summarize_folder(plain)["comparisons"]["last"]
    expected = {}
    for name in ("balanced_accuracy", "nll", "brier", "ece"):
        for label in ("encouraging", "focal"):
            ours, base = raw(plain, label, name=name), raw(plain, "cross_entropy", name=name)
            difference = ours - base
            half = stats.sem(difference) * stats.t.ppf(0.975, 4)
            if compared[name][label]["verdict"] in ("better", "worse"):
                key = abs(difference.mean()) / half
                expected[key] = (label, name, base.mean(), ours.mean(), difference.mean())
    assert 3 <= len(expected) == len(rows)
    titles = {
        "balanced_accuracy": "Balanced accuracy",
        "nll": "NLL",
        "brier": "Brier",
        "ece": "ECE",
    }
    for text, key in zip(texts, sorted(expected, reverse=True), strict=True):
        label, name, *numbers_of = expected[key]
        assert text.split()[0] == label and titles[name] in text
        scale = 1 if name in ("nll", "brier") else 100
        found = [float(x) for x in re.findall(r"[-+]?\d+\.\d+(?=\s|$)", text)]
        shown_numbers = found[0], found[2], found[4]
        assert shown_numbers == pytest.approx([scale * x for x in numbers_of], abs=0.0051)


def test_every_metric_is_explained() -> None:
    """Oracle: the metrics that there are. Fails when one has no explanation on the page."""
    from losslab.experiment.tasks.detection.average_precision import METRICS as AP
    from losslab.experiment.tasks.text.translation import METRIC as BLEU
    from losslab.metrics.catalog import METRICS, MORE
    from losslab.metrics.shots import shot_metrics
    from losslab.report.meanings import meaning

    every = [*METRICS.values(), *MORE.values(), *AP, BLEU, *shot_metrics([500, 50, 5])]
    assert len(every) > 15 and all(meaning(metric.name) for metric in every)


def test_explanations_are_one_click_away(plain: Path, browser: Any) -> None:
    """Oracle: what Chromium shows before and after the click. Fails when the words are missing, or
    stand there unasked."""
    tab = browser.new_page()
    tab.goto(write_report(plain).as_uri())
    words = tab.get_by_text("a confident mistake costs most")
    assert not words.is_visible()
    tab.get_by_text("What is NLL?").click()
    assert words.is_visible()
    tab.close()


def column(table: Any, number: int) -> list[str]:
    """A column of a table in the browser, from above."""
    return table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_a_table_sorts_by_a_click_on_its_heading(full: Path, browser: Any) -> None:
    """Oracle: Python's sorted, on what is read in the browser; what has no number stays at the
    bottom. Fails when nothing happens, numbers are sorted as texts, or a second click repeats."""
    tab = browser.new_page()
    tab.goto(write_report(full).as_uri())
    table = tab.locator("table.sortable", has=tab.locator("#other-metrics"))
    heading = table.get_by_role("button", name="NLL")
    at = 1 + [b.inner_text() for b in table.get_by_role("button").all()].index(heading.inner_text())

    def numbers() -> list[float]:
        found = [re.search(r"[+−][\d.]+", text) for text in column(table, at)]
        return [float(m[0].replace("−", "-")) if m else math.nan for m in found]

    before = [x for x in numbers() if not math.isnan(x)]
    assert len(set(before)) > 2 and before != sorted(before)
    heading.click()
    assert numbers()[: len(before)] == sorted(before)
    heading.click()
    assert numbers()[: len(before)] == sorted(before, reverse=True)
    assert heading.locator("xpath=..").get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="Loss").click()
    names = table.locator("tbody th").evaluate_all("all => all.map(th => th.dataset.value)")
    assert names == sorted(names) and len(names) == len(set(names)) > 3
    tab.close()


def test_what_changed_most_sorts_by_loss(full: Path, browser: Any) -> None:
    """Oracle: Python's sorted. Fails when the table has no values to sort by."""
    tab = browser.new_page()
    tab.goto(write_report(full).as_uri())
    table = tab.locator("table.moved")
    for number, name in ((1, "Loss"), (2, "What")):
        table.get_by_role("button", name=name).click()
        texts = [text.split("\n")[-1].strip() for text in column(table, number)]
        assert texts == sorted(texts) and len(set(texts)) > 1
    tab.close()


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_figures_are_saved_from_the_page(
    plain: Path, browser: Any, tmp_path: Path, kind: str, width: int
) -> None:
    """Oracle: the saved file, read by other programs: as wide as the figure is seen, and not
    empty. Fails when the button does nothing, or saves the drawing for the other width."""
    tab = browser.new_page(viewport={"width": width, "height": 800})
    tab.goto(write_report(plain).as_uri())
    figure = tab.locator("figure").first
    seen = next(box for box in figure.locator("svg").all() if box.is_visible()).bounding_box()
    with tab.expect_download() as download:
        figure.get_by_role("button", name=kind.upper()).click()
    assert download.value.suggested_filename == f"paired.{kind}"
    path = tmp_path / "saved"
    download.value.save_as(path)
    if kind == "svg":
        root = xml.etree.ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(root.get("width", "0")) == pytest.approx(seen["width"], abs=1)
        assert "percentage points" in path.read_text() or width == 400
    else:
        image = np.asarray(Image.open(path).convert("L"))
        assert image.shape[1] == pytest.approx(3 * seen["width"], abs=3)
        assert image.min() < 100 and image[:5].min() > 250
    tab.close()


def test_the_forest_on_the_page_shows_the_records_differences(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: candidate − baseline in points from the raw records, diverged runs at 10 %.

    Fails when the sides are swapped, a seed is paired with another, or dots and mean disagree.
    """
    drawn: list[figures.ForestRow] = []
    keep = figures.forest
    monkeypatch.setattr(
        figures, "forest", lambda rows, **rest: drawn.extend(rows) or keep(rows, **rest)
    )
    read = read_folder(full)
    assert charts.forest(read, styles(read.labels, read.controls), list(FIVE)[1:]) is not None
    for row in drawn[:4]:
        points = 100 * (raw(full, row.label) - raw(full, "cross_entropy"))
        at_chance = 10 - 100 * raw(full, "cross_entropy")[DIVERGED.get(row.label, [])]
        assert row.differences == pytest.approx(points[np.isfinite(points)].tolist(), abs=1e-9)
        assert row.diverged == pytest.approx(at_chance.tolist(), abs=1e-9)
        assert row.mean == pytest.approx(np.mean([*row.differences, *row.diverged]), abs=1e-9)


def test_controls_have_a_section_with_the_loss_against_its_control(full: Path, shown: Page) -> None:
    """Oracle: the raw records. Fails when the third comparison is not loss − control."""
    between = np.mean(raw(full, "encouraging") - raw(full, CONTROL))
    (row,) = page.controls(read_folder(full))
    assert (row.label, row.control, row.lr_scale) == ("encouraging", CONTROL, "× 0.62")
    assert row.between.value == pytest.approx(between, abs=1e-12)
    assert row.of_control.value == pytest.approx(
        np.mean(raw(full, CONTROL) - raw(full, "cross_entropy")), abs=1e-12
    )
    assert f"{row.between.difference} pp {row.between.interval}" in shown.text
    assert CONTROL not in [card.label for card in page.cards(read_folder(full))]


def test_every_run_and_setting_is_there_and_the_command_can_be_copied(
    full: Path, shown: Page
) -> None:
    """Oracle: the files. Fails when a diverged run is hidden, or the command is not as given."""
    runs = page.per_seed(read_folder(full)).rows
    assert len(runs) == 36 - 1
    assert sum("diverged: the training loss" in cells[1].text for _, cells in runs) == 2
    assert all(record["run_id"] in shown.text for record in read_folder(full).records)
    assert shown.all("details") and not any("open" in details for details in shown.all("details"))
    for text in ("settings.batch_size 64", "torch 2.13.0", "git.commit 0f3c", "all runs together"):
        assert text in shown.text
    assert "<code>losslab compare --task digits --seeds 6</code></pre>" in shown.source


EVIL = {
    "<script>alert(1)</script>": 0.0,
    '_x $a_b$ & "q" onload=alert(2)': 0.01,
    "[red]\u635f\u5931[/red] ]]> --> </title></style>": -0.01,
}


COMMAND = "losslab compare --loss '</pre><script>alert(3)</script>'"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single seed, and labels that mean something to HTML, matplotlib and rich."""
    return fake_folder(tmp_path_factory.mktemp("odd") / "f", EVIL, seeds=1, command=COMMAND)


@pytest.fixture(scope="module")
def odd_page(odd: Path) -> Page:
    return Page(write_report(odd))


def test_what_users_write_stays_text(odd_page: Page) -> None:
    """Oracle: the parser's elements. Fails when a label becomes markup, mathtext or a warning.

    (Warnings are errors here: a leading underscore in a legend and a letter that the font lacks
    both warn in matplotlib.)
    """
    assert [len(odd_page.all(tag)) for tag in ("script", "style", "title")] == [1, 1, 1]
    for text in (*EVIL, COMMAND):
        assert " ".join(text.split()) in odd_page.text
    drawn = re.findall(r"<text [^>]*>([^<]*)</text>", odd_page.source)
    # both legends and the narrow forest, not mathtext
    assert drawn.count('_x $a_b$ &amp; "q" onload=alert(2)') == 3
    assert "Not drawn, since no curve over p describes it" in odd_page.text


def test_one_seed_gets_a_report_but_no_verdict(odd: Path, odd_page: Page) -> None:
    """Oracle: the rule of three seeds. Fails when a single seed is judged, or breaks the page."""
    assert "Verdicts: 2 refused." in odd_page.text
    assert ": 1 seed, and a verdict needs at least 3." in odd_page.text
    assert odd_page.text.count("corrected p – P(improvement) –") == 2
    first = f"{100 * raw(odd, next(iter(EVIL)))[0]:.2f}"
    assert odd_page.rows_of(0)[1][1] == first


@pytest.fixture(scope="module")
def hopeless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loss that always diverges, drawn once."""
    folder = fake_folder(
        tmp_path_factory.mktemp("hopeless") / "f",
        {"cross_entropy": 0.0, "expectation": 0.0},
        seeds=3,
        controls={"ce at another rate": "expectation"},
        diverged={"expectation": range(3)},
    )
    write_report(folder)
    return folder


def test_a_loss_that_always_diverges_is_worse_and_said_so(hopeless: Path) -> None:
    """Oracle: the rule that it counts for 10 %. Fails when it vanishes or breaks the figures."""
    shown = Page(hopeless / "report.html")
    assert "expectation: every run (seeds 0, 1, 2) diverged" in shown.text
    mean = 10 - 100 * raw(hopeless, "cross_entropy").mean()
    assert f"worse expectation worse: −{-mean:.2f} points" in shown.text
    assert shown.row("expectation", "NLL, nats (lower is better)")[1:] == ["–", "–", "–"]
    sound, diverged = pooled.paired_differences(
        *(read_folder(hopeless).of(label, None) for label in ("expectation", "cross_entropy")),
        selection="last",
        name="accuracy",
        diverged_count_as={"accuracy": 0.1},
    )
    assert sound == {}
    assert list(diverged.values()) == pytest.approx(0.1 - raw(hopeless, "cross_entropy"), abs=1e-12)


def test_same_folder_gives_the_same_bytes(hopeless: Path, tmp_path: Path) -> None:
    """Oracle: the page itself, drawn again by a process with other hashes, without the summary.

    Fails when a date, an address, a set's order or matplotlib's random ids get in, or when the
    summary made anew from the runs says something else than the stored one.
    """
    again = tmp_path / "deep" / "again.html"
    copy = shutil.copytree(hopeless, tmp_path / "elsewhere")
    (copy / "summary.json").unlink()
    script = "import sys, losslab.report as r; r.write_report(sys.argv[1], out=sys.argv[2])"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run(
        [sys.executable, "-c", script, str(copy), str(again)], env=environment, check=True
    )
    assert again.read_bytes() == (hopeless / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("finished", "missing"),
    [
        (0, "seeds 0, 1, 2, 3 of every loss"),
        (1, "seeds 1, 2, 3 of cross_entropy; seeds 0, 1, 2, 3 of expectation"),
    ],
)
def test_an_interrupted_folder_gives_a_report_of_what_is_there(
    tmp_path: Path, finished: int, missing: str
) -> None:
    """Oracle: the runs left standing of 2 × 4. Fails on a crash, or on silence about the rest."""
    losses = {"cross_entropy": 0.0, "expectation": 0.01}
    folder = fake_folder(tmp_path / "f", losses, seeds=4, summary=False)
    for name in [run_id(label, seed) for seed in range(4) for label in losses][finished:]:
        (folder / "runs" / f"{name}.json").unlink()
    (folder / "runs" / "0123.json.tmp").write_text('{"half": ')
    shown = Page(write_report(folder))
    assert f"{8 - finished} of 8 runs are not finished: {missing}. " in shown.text
    assert "Verdicts: 1 refused." in shown.text and f"Every run ({finished})" in shown.text
    assert not (folder / "summary.json").exists()


def test_twelve_losses_fit_and_look_different(tmp_path: Path) -> None:
    """Oracle: counting. Fails when a loss is dropped, two look alike, or the page grows large."""
    gains = [0.0, 0.004, -0.002]
    losses = {f"mixed(focus=0.{i:02d})": gains[i % 3] for i in range(12)}
    folder = fake_folder(tmp_path / "f", losses, seeds=3)
    shown = Page(write_report(folder))
    assert len(shown.source.encode()) < 3_000_000
    assert len(re.findall(r'<li class="card ', shown.source)) == 11
    for label in losses:
        # the tables, and titles or legends of learning curves, margins, reliability, shapes, twice
        assert shown.text.count(label) >= 7 + 2 * 4
    looks = styles(list(losses))
    assert len({(look.color, look.dash) for look in looks.values()}) == 12
    assert len({swatch(look) for look in looks.values()}) == 12
    assert len({look.marker for look in looks.values()}) == 12


# --- the folder -----------------------------------------------------------------------------------


def test_a_summary_of_other_runs_is_not_believed(tmp_path: Path) -> None:
    """Oracle: the number of pairs in runs/. Fails when a stale summary.json is shown as it is."""
    losses = {"cross_entropy": 0.0, "expectation": 0.01}
    folder = fake_folder(tmp_path / "f", losses, seeds=4, missing={"expectation": [3]})
    assert read_folder(folder).comparisons["expectation"]["n"] == 3
    record = fake_record("expectation", 3, 0.01)
    (folder / "runs" / f"{record['run_id']}.json").write_text(json.dumps(record))
    assert read_folder(folder).comparisons["expectation"]["n"] == 4


def test_the_stored_summary_is_used_where_it_is_of_these_runs(tmp_path: Path) -> None:
    """Oracle: a mark left in summary.json. Fails when verdicts are silently made anew."""
    folder = fake_folder(tmp_path / "f", {"cross_entropy": 0.0, "expectation": 0.01}, seeds=3)
    summary = json.loads((folder / "summary.json").read_text())
    summary["comparisons"]["last"]["accuracy"]["expectation"]["sentence"] = "as stored"
    (folder / "summary.json").write_text(json.dumps(summary))
    assert [card.sentence for card in page.cards(read_folder(folder))] == ["as stored"]


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    """Oracle: the contract for bad input. Fails when the message does not name the remedy."""
    with pytest.raises(InputError, match=r"losslab compare"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    """Oracle: the contract for bad input. Fails on a traceback of json, or without a remedy."""
    folder = fake_folder(tmp_path / "f", {"cross_entropy": 0.0, "expectation": 0.01}, seeds=1)
    (folder / "summary.json").write_text('{"schema": 1,')
    with pytest.raises(InputError, match=r"summary\.json.*delete this file"):
        write_report(folder)


def test_smaller_is_better_is_turned_round(tmp_path: Path) -> None:
    """Oracle: baseline − candidate from the raw records. Fails when the sign is not turned."""
    losses = {"cross_entropy": 0.0, "expectation": 0.02}
    folder = fake_folder(tmp_path / "f", losses, seeds=3, metric="nll", margin=0.01)
    expected = raw(folder, "cross_entropy", name="nll") - raw(folder, "expectation", name="nll")
    assert expected.mean() > 0
    read = read_folder(folder)
    sound, _ = pooled.paired_differences(
        read.of("expectation"),
        read.of("cross_entropy"),
        selection="last",
        name="nll",
        diverged_count_as={},
    )
    assert list(sound.values()) == pytest.approx(expected, abs=1e-12)
    (card,) = page.cards(read)
    assert card.change.difference == f"+{expected.mean():.4f}" and card.change.unit == "nats"
    assert page.results(read)[0].caption == "NLL, nats (lower is better)"


def test_verdicts_on_the_best_test_epoch_are_called_optimistic(tmp_path: Path) -> None:
    """Oracle: the rule of the evidence. Fails when selection on the test set passes in silence."""
    losses = {"cross_entropy": 0.0, "expectation": 0.01}
    folder = fake_folder(tmp_path / "f", losses, seeds=3, selection="best_on_test")
    assert [notice.kind for notice in notices(read_folder(folder))] == ["optimistic"]


def test_runs_from_different_machines_are_remarked_on(tmp_path: Path) -> None:
    """Oracle: one record changed by hand. Fails when a comparison hides that its runs are mixed."""
    folder = fake_folder(tmp_path / "f", {"cross_entropy": 0.0, "expectation": 0.01}, seeds=3)
    assert notices(read_folder(folder)) == []
    file = folder / "runs" / f"{run_id('expectation', 2)}.json"
    record = json.loads(file.read_text())
    record["environment"] |= {"torch": "2.12.0", "git": None}
    file.write_text(json.dumps(record))
    (notice,) = notices(read_folder(folder))
    assert "torch (2.12.0, 2.13.0); git commit (0f3c0f3c0f, None)" in notice.text


# --- pooling --------------------------------------------------------------------------------------


def test_curves_are_stacked_by_seed_and_epoch(full: Path) -> None:
    """Oracle: the records' own lists. Fails on a transposed, unscaled or unsorted table."""
    read = read_folder(full)
    accuracy, nll, training = pooled.learning_curves(
        {label: read.of(label) for label in ("cross_entropy", "focal(gamma=2)")}
    )
    epochs, values = accuracy.runs["focal(gamma=2)"]
    of = read.of("focal(gamma=2)")
    assert [record["seed"] for record in of] == [0, 2, 3, 5]
    assert epochs.tolist() == list(range(1, EPOCHS + 1))
    assert values == pytest.approx(
        100 * np.array([record["curves"]["validation"]["accuracy"] for record in of]), abs=1e-12
    )
    assert training.runs["cross_entropy"][1][2].tolist() == pytest.approx(
        read.of("cross_entropy")[2]["curves"]["train_loss"], abs=1e-12
    )
    assert nll.log and not accuracy.log


def test_margins_are_pooled_over_unequal_bins() -> None:
    """Oracle: two uniform runs, so the pooled density is known: 1/16 on [0, 4), 3/16 on [4, 8).

    Fails when counts are added bin by bin although the edges differ, or the tails are not cut.
    """
    runs = [
        {"margin_histogram": {"edges": edges, "counts": [25, 25]}, "results": {"last": None}}
        for edges in ([0.0, 4.0, 8.0], [4.0, 6.0, 8.0])
    ]
    histogram = pooled.pooled_margins(runs)
    assert histogram is not None and histogram.wrong is None
    assert histogram.edges[[0, -1]] == pytest.approx([0.001 * 16, 8 - 0.001 * 16 / 3], abs=1e-12)
    middle = (histogram.edges[1:] + histogram.edges[:-1]) / 2
    clear = np.abs(middle - 4) > 0.2
    expected = np.where(middle < 4, 1 / 16, 3 / 16)
    assert histogram.density[clear] == pytest.approx(expected[clear], abs=1e-12)
    assert (histogram.density * np.diff(histogram.edges)).sum() == pytest.approx(0.998, abs=1e-12)
    assert pooled.pooled_margins([]) is None


def test_wrong_predictions_are_counted_from_accuracy(full: Path) -> None:
    """Oracle: 1 − mean accuracy. Fails when the share comes from the bin around zero."""
    histogram = pooled.pooled_margins(read_folder(full).of("encouraging"))
    assert histogram is not None
    assert histogram.wrong == pytest.approx(1 - raw(full, "encouraging").mean(), abs=1e-12)


def test_reliability_is_pooled_by_counts() -> None:
    """Oracle: by hand, (10·0.5 + 30·0.7)/40 = 0.65. Fails when bins are averaged without counts."""
    runs = [
        {
            "reliability": {"counts": [n, 0, m], "confidence": [c, None, 0.9], "accuracy": a},
            "results": {"last": {"test": {"ece": e}}},
        }
        for n, m, c, a, e in (
            (10, 10, 0.5, [0.4, None, 1.0], 0.01),
            (30, 0, 0.7, [0.8, None, None], 0.03),
        )
    ]
    bins = pooled.pooled_reliability(runs)
    assert bins is not None and bins.note == "ECE 2.00 %"
    assert bins.confidence == pytest.approx([0.65, 0.9], abs=1e-12)
    assert bins.accuracy == pytest.approx([(4 + 24) / 40, 1.0], abs=1e-12)
    assert bins.share == pytest.approx([0.8, 0.2], abs=1e-12)
    assert pooled.pooled_reliability([]) is None


# --- figures --------------------------------------------------------------------------------------


def artist(figure: Figure, label: str, panel: int = 0) -> Any:
    """The one artist of that name in a panel."""
    (found,) = [a for a in figure.axes[panel].get_children() if a.get_label() == label]
    return found


@pytest.mark.parametrize("width", [figures.WIDE, figures.NARROW])
def test_forest_draws_seeds_means_intervals_and_margin(width: float) -> None:
    """Oracle: the numbers given. Fails when a dot, mean, interval, band or note is elsewhere."""
    rows = [
        figures.ForestRow("b", [0.1, 0.4, 0.7], 0.4, -0.3, 1.1, "+0.40"),
        figures.ForestRow("c", [-0.2], -30.0, -90.0, 30.0, "−30.00", diverged=[-86.0, -85.0]),
        figures.ForestRow("d", [0.5], 0.5, None, None),
    ]
    looks = styles(["a", "b", "c", "d"])
    figure = figures.forest(rows, margin=0.25, xlabel="points", looks=looks, width=width)
    assert artist(figure, "seeds-0").get_xdata().tolist() == [0.1, 0.4, 0.7]
    assert artist(figure, "mean-0").get_xydata().tolist() == [[0.4, 0.0]]
    assert artist(figure, "interval-0").get_xydata().tolist() == [[-0.3, 0.0], [1.1, 0.0]]
    assert artist(figure, "zero").get_xdata() == [0.0, 0.0]
    band = artist(figure, "margin")
    assert (band.get_x(), band.get_width()) == (-0.25, 0.5)
    assert artist(figure, "mean-0").get_marker() == looks["b"].marker
    assert artist(figure, "mean-2").get_xydata().tolist() == [[0.5, 2.0]]
    # the diverged runs lie at the edge, and do not stretch the frame
    low, high = figure.axes[0].get_xlim()
    assert -1 < low < -0.3 and 1.1 < high < 2
    assert artist(figure, "diverged-1").get_xdata().tolist() == [low, low]
    assert artist(figure, "mean-1").get_xdata() == [low]
    assert artist(figure, "mean-1").get_marker() == "<"
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "+0.40" in texts and "−30.00" in texts
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == (["b", "c", "d"] if width == figures.WIDE else [""] * 3)


LONG = [f"mixed_with_a_long_name(focus=0.{i}) + 0.5*encouraging" for i in range(8)]


@pytest.mark.parametrize("labels", [["focal"], LONG])
@pytest.mark.parametrize("seeds", [1, 20])
def test_no_words_overlap_in_a_narrow_forest(labels: list[str], seeds: int) -> None:
    """Oracle: the renderer's boxes. Fails when a loss's words lie over another's, over a seed's
    dot or an interval, or leave the picture."""
    rng = np.random.default_rng(0)
    rows = []
    for label in labels:
        differences = rng.normal(0, 1, seeds)
        low, high = differences.mean() - 1, differences.mean() + 1
        note = f"{differences.mean():+.2f}  [{low:+.2f}, {high:+.2f}]  ≈ no worthwhile difference"
        rows.append(figures.ForestRow(label, differences, differences.mean(), low, high, note))
    looks = styles(["ce", *labels])
    figure = figures.forest(rows, margin=0.5, xlabel="points", looks=looks, width=figures.NARROW)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(labels)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    for one, other in itertools.combinations([*boxes, axes.xaxis.label.get_window_extent()], 2):
        assert not one.overlaps(other)
    for line in axes.lines:
        if line.get_label() != "zero":
            for x, y in axes.transData.transform(line.get_xydata()):
                assert not any(box.contains(x, y) for box in boxes), line.get_label()


def test_learning_curves_draw_mean_and_band() -> None:
    """Oracle: numpy's mean and std(ddof=1). Fails on another spread, axis or treatment of NaN."""
    epochs = np.arange(1.0, 7.0)
    values = np.array([[1, 2, 3, 4, 5, 6], [3, 2, 5, 4, 7, 8], [2, 2, np.nan, 7, 6, 7]], float)
    panel = figures.Curves("accuracy", {"a": (epochs, values), "_b": (epochs, values[:1])})
    looks = styles(["a", "_b"])
    figure = figures.learning_curves([panel], looks=looks)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    mean, sd = np.nanmean(values, axis=0), np.nanstd(values, axis=0, ddof=1)
    assert lines["a"].get_xdata().tolist() == epochs.tolist()
    assert lines["a"].get_ydata() == pytest.approx(mean, abs=1e-12)
    assert lines["_b"].get_ydata() == pytest.approx(values[0], abs=1e-12)
    (band,) = figure.axes[0].collections  # none for a single seed
    corners = {tuple(np.round(corner, 9)) for corner in band.get_paths()[0].vertices}
    for x, m, s in zip(epochs, mean, sd, strict=True):
        assert {(x, round(m - s, 9)), (x, round(m + s, 9))} <= corners
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "_b"]
    low, high = figure.axes[0].get_ylim()  # the frame is that of epochs 3 to 6
    late = slice(2, None)
    assert low < (mean - sd)[late].min() and high > (mean + sd)[late].max()
    assert low > 1.0


def test_a_log_scale_is_labelled_with_plain_numbers() -> None:
    """Oracle: by hand, 0.1 and 1. Fails on matplotlib's own labels, raw mathtext in our style."""
    epochs = np.arange(1.0, 7.0)
    panel = figures.Curves("NLL", {"a": (epochs, np.geomspace(3, 0.02, 6)[None])}, log=True)
    figure = figures.learning_curves([panel], looks=styles(["a"]))
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    labels = {tick.label1.get_text() for tick in axis.get_major_ticks() + axis.get_minor_ticks()}
    assert figure.axes[0].get_yscale() == "log"
    assert {"0.1"} <= labels <= {"", "0.001", "0.01", "0.1", "1", "10"}


def test_margin_histograms_draw_densities_with_the_baseline_as_outline() -> None:
    """Oracle: the numbers given. Fails when a panel shows another loss, or compares with itself."""
    edges = np.array([-1.0, 0.0, 1.0])
    given = {
        "a": figures.Histogram(edges, np.array([0.25, 0.75]), 0.25),
        "b": figures.Histogram(edges + 1, np.array([0.5, 0.5]), None),
    }
    figure = figures.margin_histograms(given, baseline="a", looks=styles(["a", "b"]))
    for panel, histogram in enumerate(given.values()):
        drawn = artist(figure, "histogram", panel).get_data()
        assert drawn.values.tolist() == histogram.density.tolist()
        assert drawn.edges.tolist() == histogram.edges.tolist()
    assert artist(figure, "baseline", 1).get_data().values.tolist() == [0.25, 0.75]
    assert not [a for a in figure.axes[0].get_children() if a.get_label() == "baseline"]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["a\n25.00 % wrong", "b"]


def test_reliability_diagrams_draw_accuracy_against_confidence() -> None:
    """Oracle: the numbers given. Fails when the axes are swapped or dots do not grow with share."""
    bins = figures.Reliability(np.array([0.3, 0.9]), np.array([0.2, 0.95]), np.array([0.1, 0.9]))
    figure = figures.reliability_diagrams({"a": bins}, looks=styles(["a"]))
    assert artist(figure, "bins").get_xydata().tolist() == [[0.3, 0.2], [0.9, 0.95]]
    (dots,) = figure.axes[0].collections
    assert dots.get_offsets().tolist() == [[0.3, 0.2], [0.9, 0.95]]
    small, large = dots.get_sizes()
    assert large > 3 * small
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("confidence", "accuracy")


@pytest.mark.parametrize(("width", "columns"), [(figures.WIDE, 2), (figures.NARROW, 1)])
def test_loss_shapes_draw_loss_and_slope(width: float, columns: int) -> None:
    """Oracle: −log p and 1 − p. Fails when panels are swapped, or do not fold on a phone."""
    p = np.linspace(0.05, 0.95, 19)
    curves = {"ce": (p, -np.log(p), 1 - p), "expectation": (p, 1 - p, p * (1 - p))}
    figure = figures.loss_shapes(curves, width=width)
    for panel, (of_ce, of_expectation) in enumerate([(-np.log(p), 1 - p), (1 - p, p * (1 - p))]):
        assert artist(figure, "ce", panel).get_xdata().tolist() == p.tolist()
        assert artist(figure, "ce", panel).get_ydata().tolist() == of_ce.tolist()
        assert artist(figure, "expectation", panel).get_ydata().tolist() == of_expectation.tolist()
    assert figure.axes[0].get_subplotspec().get_gridspec().ncols == columns
    assert artist(figure, "ce", 0).get_color() == artist(figure, "ce", 1).get_color()


def test_shapes_of_the_real_losses_are_drawn(full: Path) -> None:
    """Oracle: −log p and 1 − p for cross-entropy. Fails when a spec's curve is not its own."""
    from losslab.report.charts import shapes

    curves, failed = shapes({"ce": "cross_entropy", "mine": "custom(mine)", "e": "expectation"})
    assert failed == ["mine"] and list(curves) == ["ce", "e"]
    p, loss, slope = curves["ce"]
    assert loss == pytest.approx(-np.log(p), abs=1e-12)
    assert slope == pytest.approx(1 - p, abs=1e-12)


def test_figures_leave_no_trace_and_share_a_page() -> None:
    """Oracle: matplotlib's settings before and after, and the ids of two fragments.

    Fails when drawing changes the user's own figures, or two fragments' clip paths mix.
    """
    before = dict(mpl.rcParams)
    p = np.linspace(0.1, 0.9, 9)
    fragments = [
        inline_svg(figures.loss_shapes({"ce": (p, p, p)}), name=name, title='a "b" <c>')
        for name in ("one", "two")
    ]
    assert dict(mpl.rcParams) == before
    ids = [set(re.findall(r'\bid="([^"]+)"', fragment)) for fragment in fragments]
    assert ids[0] and not ids[0] & ids[1]
    assert fragments[0].replace("one-", "two-") == fragments[1]
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in fragments[0]


def test_styles_are_the_same_for_a_loss_and_its_control_but_for_the_filling() -> None:
    """Oracle: the design. Fails when the baseline is not plain, or a control is like its loss."""
    looks = styles(["ce", "a", "b", "ce for a"], {"ce for a": "a"})
    assert looks["ce"].marker == "o" and looks["ce"].dash == (0, ())
    assert looks["ce for a"].color == looks["a"].color and looks["ce for a"].face == "white"
    assert looks["ce for a"].dash != looks["a"].dash


# --- numbers and names ----------------------------------------------------------------------------


def test_numbers_are_written_without_false_zeros() -> None:
    """Oracle: by hand. Fails when p = 0 is claimed, −0.00 is shown, or null becomes a number."""
    accuracy, nll = numbers.metric("accuracy"), numbers.metric("nll")
    assert [numbers.p_text(p) for p in (0.0004, 0.001, 0.0496, 1.0, None)] == [
        "<0.001", "0.001", "0.050", "1.000", "–"
    ]  # fmt: skip
    assert numbers.difference_text(accuracy, -0.00532) == "−0.53"
    assert numbers.difference_text(accuracy, -0.00001) == "0.00"
    assert numbers.difference_text(nll, 0.01234) == "+0.0123"
    assert numbers.interval_text(accuracy, -0.001, 0.002) == "[−0.10, +0.20]"
    assert numbers.interval_text(accuracy, None, 0.002) == "–"
    assert numbers.mean_sd_text(accuracy, {"mean": 0.5, "sd": None, "n": 1}) == "50.00"
    assert numbers.mean_sd_text(nll, {"mean": None, "sd": None, "n": 0}) == "–"
    assert [numbers.share_text(x) for x in (0.0, 0.004, 0.5, 0.996, 1.0)] == [
        "0 %", "<1 %", "50 %", ">99 %", "100 %"
    ]  # fmt: skip
    assert [numbers.seconds_text(x) for x in (8.04, 59.96, 185, 3599.7, 7630)] == [
        "8.0 s", "1 min 00 s", "3 min 05 s", "1 h 00 min", "2 h 07 min"
    ]  # fmt: skip
    assert numbers.finite(float("inf")) is None and numbers.finite(True) is None


def test_numbers_that_belong_together_have_equally_many_decimals() -> None:
    """Oracle: by hand. Fails when a column mixes 0.00853 and 1.46, or 1e−5 and 0.0001; when a
    minus is a hyphen, or a zero has a sign."""
    aligned = numbers.aligned
    assert aligned([1.46, 0.00853]) == ["1.46", "0.01"]
    assert aligned([1113.2, 213.4]) == ["1113", "213"]
    assert aligned([6.99e-13, 1.08e-12]) == ["0.70e−12", "1.08e−12"]
    assert aligned([-4.28e-4, -6.45e-4, -2.1e-5], "+") == ["−4.28e−4", "−6.45e−4", "−0.21e−4"]
    assert aligned([0.012, 0.0, -0.00001], "+") == ["+0.0120", "0.0000", "0.0000"]
    assert aligned([1e-9, 0.0, None, float("nan")]) == ["1.00e−9", "0", "–", "–"]
    assert aligned([2.5e9]) == ["2.50e9"] and aligned([0.0]) == ["0.00"] and aligned([]) == []
    assert aligned([9.996]) == ["10.0"]
    assert numbers.fixed([-0.001, -1, None], 2, "+") == ["0.00", "−1.00", "–"]
    sentence = "encouraging(log_end=-1), seeds 0-3: -0.79 to +2.09 in [-1, 2], p = 1e-07"
    expected = "encouraging(log_end=-1), seeds 0-3: −0.79 to +2.09 in [−1, 2], p = 1e−7"
    assert numbers.with_minus(sentence) == expected


@pytest.mark.parametrize("name", ["numbers", "marks"])
def test_examples_in_docstrings_are_true(name: str) -> None:
    """Oracle: Python itself. Fails when an example shows something else than the code does."""
    result = doctest.testmod(importlib.import_module(f"losslab.report.{name}"))
    assert result.failed == 0 and result.attempted >= 1


def test_long_labels_keep_both_ends() -> None:
    """Oracle: the limit, and the ends that tell `eps=0` from `eps=1`. Fails when either is lost."""
    label = "encouraging(log_end=0.75, eps=0.00001) + 0.5*expectation"
    assert shortened(label, 20) == "encouragin…pectation" and len(shortened(label, 20)) == 20
    assert shortened("focal", 20) == "focal"
    first, second = wrapped("halted_focal(gamma=2, threshold=0.5)", 26).split("\n")
    assert (first, second) == ("halted_focal(gamma=2,", "threshold=0.5)")
    assert all(len(line) <= 12 for line in wrapped("x" * 50, 12).split("\n"))


# --- the terminal ---------------------------------------------------------------------------------


def printed(folder: Path, *, width: int = 80, encoding: str = "utf-8", **options: Any) -> str:
    """What `print_table` writes for a folder's summary, through a stream of that encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, **options)
    print_table(read_folder(folder).summary, console, report=folder / "report.html")
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_terminal_table_says_it_all_in_80_columns(full: Path) -> None:
    """Oracle: the summary, and 80. Fails when a number is cut, a line long or a warning lost."""
    text = printed(full)
    body, _, path = text.rstrip("\n").rpartition("\n")
    assert max(map(len, body.splitlines())) <= 80
    assert path == f"Report: {full / 'report.html'}"
    assert "\x1b" not in text and "…" not in text and "─" not in text
    joined = " ".join(text.split())
    summary = read_folder(full).summary
    for label, entry in summary["comparisons"]["last"]["accuracy"].items():
        assert label.split()[0].split("(")[0] in text
        accuracy = numbers.metric("accuracy")
        assert numbers.difference_text(accuracy, entry["mean"]) in text
        assert numbers.interval_text(accuracy, entry["low"], entry["high"]) in text
        assert numbers.p_text(entry["p_adjusted"]) in text
        mean = numbers.mean_sd_text(accuracy, summary["table"]["last"][label]["accuracy"])
        assert " ".join(mean.split()) in joined
    assert "▲ better" in text and "? cannot tell" in text
    for warning in ("2 of 6 runs (seeds 1, 4) diverged", "seed 5 of mixed", "V is not finite"):
        assert warning in joined


def test_terminal_says_what_else_changed(full: Path) -> None:
    """Oracle: the summary's verdicts in the other metrics. Fails when a worse one is kept quiet, or
    the headline metric, a description or an undecided one is listed."""
    summary = read_folder(full).summary
    by_metric = summary["comparisons"]["last"]
    joined = " ".join(printed(full).partition("Other metrics:")[2].split())
    told = 0
    for name, entries in by_metric.items():
        for label, entry in entries.items():
            decided = name != "accuracy" and entry["verdict"] in ("better", "worse")
            phrase = f"{numbers.metric(name).title} {entry['verdict']} ("
            mean = summary["table"]["last"][label][name]
            after = numbers.mean_sd_text(numbers.metric(name), mean)
            assert (f"to {' '.join(after.split())}" in joined and phrase in joined) or not decided
            told += decided
    assert told > 0
    assert "Accuracy better" not in joined and "cannot tell (" not in joined


def test_terminal_table_has_colour_on_a_terminal_only(full: Path) -> None:
    """Oracle: the escape character. Fails when a pipe gets colours or a terminal gets none."""
    assert "\x1b[1;32m▲ better" in printed(full, force_terminal=True, color_system="standard")


@pytest.mark.parametrize("width", [40, 60])
def test_terminal_table_leaves_columns_out_rather_than_cut_numbers(full: Path, width: int) -> None:
    """Oracle: every interval in full. Fails when a narrow terminal cuts numbers."""
    text = printed(full, width=width)
    body = text[: text.index("Report: ")]
    assert max(map(len, body.splitlines())) <= width
    table = body.partition("Other metrics:")[0]
    assert "±" not in table and ("(corr.)" in table) == (width == 60)
    for entry in read_folder(full).comparisons.values():
        accuracy = numbers.metric("accuracy")
        assert numbers.interval_text(accuracy, entry["low"], entry["high"]) in text


def test_terminal_table_in_ascii_and_with_labels_that_look_like_markup(tmp_path: Path) -> None:
    """Oracle: the encoder, and the label itself. Fails on UnicodeEncodeError or eaten brackets."""
    folder = fake_folder(tmp_path / "f", {"cross_entropy": 0.0, "[red]x[/red]": 0.02}, seeds=3)
    text = printed(folder, encoding="ascii")
    assert "[red]x[/red]" in text and "+ better" in text and "+-" in text

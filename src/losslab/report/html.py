"""The report: one HTML file that opens anywhere, loads nothing, drawn from the run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from losslab.experiment.records import write_atomically
from losslab.report import charts, page
from losslab.report.analyses.sections import sections
from losslab.report.claims import claim_rows
from losslab.report.folder import RunFolder, read_folder
from losslab.report.moved import SHOWN, most_moved
from losslab.report.notices import notices
from losslab.report.numbers import NONE, SELECTIONS
from losslab.report.panels import WIDE
from losslab.report.style import Style, styles
from losslab.report.svg import save_figure
from losslab.report.template import fill, swatches
from losslab.report.verdicts import VERDICTS


def write_report(folder: Path, *, out: Path | None = None, figures: bool = False) -> Path:
    """Draws the report of a run folder and returns where it lies.

    The page depends on the folder alone: the same folder gives the same bytes, whenever and however
    often it is drawn. A folder whose comparison was interrupted gives a report of what is there.

    Args:
        folder: The folder that ``losslab compare`` wrote.
        out: The file to write; ``FOLDER/report.html`` if not given.
        figures: Also draw ``figures/NAME.png`` and ``.svg`` beside it, one for each picture.

    Raises:
        InputError: If the folder holds no comparison, or a file of it is damaged.

    Example:
        >>> write_report(Path("losslab-runs/digits"))  # doctest: +SKIP
        PosixPath('losslab-runs/digits/report.html')
    """
    target = Path(folder) / "report.html" if out is None else Path(out)
    read = read_folder(Path(folder))
    drawings = _drawings(read, styles(read.labels, read.controls))
    page = fill("report.html", **_words(read), **drawings)
    write_atomically(target, page.encode())
    if figures:
        _save(_charts(drawings), target.with_name("figures"))
    return target


def _charts(drawings: Mapping[str, Any]) -> list[charts.Chart]:
    """All pictures of the page; those of an analysis bear its name: ``analysis-ood-0-energy``."""
    made = [drawings["forest"], *drawings["charts"], drawings["controls_chart"]]
    requests = Counter(section.analysis for section in drawings["analyses"])
    for place, section in enumerate(drawings["analyses"], 1):
        own = section.analysis
        stem = f"analysis-{own}" if requests[own] == 1 else f"analysis-{own}-{place}"
        for chart in section.charts:
            rest = chart.name.removeprefix(f"{section.name}-")
            rest = rest.removeprefix(own) if rest.startswith(own) else f"-{rest}"
            made.append(replace(chart, name=stem + rest))
    return [chart for chart in made if chart is not None]


def _save(drawn: Iterable[charts.Chart], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for chart in drawn:
        if chart.draw is not None:
            save_figure(chart.draw(WIDE), folder / chart.name)


def _words(folder: RunFolder) -> dict[str, Any]:
    cards = page.cards(folder)
    return {
        "folder": folder,
        "baseline": folder.baseline,
        "control_labels": tuple(folder.controls),
        "dash": NONE,
        "title": page.title(folder),
        "headline": page.headline(cards),
        "facts": page.facts(folder),
        "cards": cards,
        "claims": claim_rows(folder.summary),
        "recipe": folder.configuration.get("recipe") or {},
        "notices": notices(folder),
        "margin": page.margin_text(folder),
        "results": page.results(folder),
        "selection": SELECTIONS[folder.selection].lower(),
        "legend": VERDICTS.values(),
        "other_metrics": page.other_metrics(folder),
        "controls": page.controls(folder),
        "per_seed": page.per_seed(folder),
        "configuration": page.configuration(folder),
        "environment": page.environment(folder),
        "timings": page.timings(folder),
        "command": str(folder.summary.get("command") or ""),
    }


def _drawings(folder: RunFolder, looks: dict[str, Style]) -> dict[str, Any]:
    pairs = [label for control, of in folder.controls.items() for label in (of, control)]
    analysed = sections(folder, looks)
    moved = most_moved(folder, analysed)
    return {
        "swatches": swatches(looks),
        "forest": charts.forest(folder, looks, folder.ordered),
        "charts": charts.all_charts(folder, looks),
        "controls_chart": charts.forest(folder, looks, pairs, name="paired-controls"),
        "analyses": analysed,
        "moved": moved[:SHOWN],
        "moved_count": len(moved),
    }

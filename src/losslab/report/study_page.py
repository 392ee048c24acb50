"""A study's report: one HTML file with tables and figures, and the figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from losslab.experiment.records import write_atomically
from losslab.report.study_figures import save_study_figures
from losslab.report.study_table import study_tables

CAPTIONS = {
    "improvements": "Mean improvement over the data sets, with its intervals.",
    "ranks-conover": "Mean ranks; the best is on the left.",
    "profile": "On how many data sets each loss comes how close to the best.",
}


def write_study_report(summary: Mapping[str, Any], folder: str | Path) -> Path:
    """Draws ``FOLDER/report.html`` and ``FOLDER/figures/MODEL/*.png, *.svg``; returns the page.

    The same summary gives the same files.

    Args:
        summary: What `summarize_study` returned.
        folder: The study's folder.

    Example:
        >>> write_study_report(summarize_study(folder), folder)  # doctest: +SKIP
        PosixPath('losslab-studies/digits-study/report.html')
    """
    figures = {
        model: _figures(found["across"], Path(folder) / "figures" / model, summary["metric"])
        for model, found in summary["models"].items()
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = resources.files("losslab.report").joinpath("study.html").read_text(encoding="utf-8")
    recipe = {"source": "", "differs": [], **summary["recipe"]}
    page = environment.from_string(source).render(
        summary={**summary, "recipe": recipe},
        tables=study_tables(summary),
        figures=figures,
        rates={model: found["rates"] for model, found in summary["models"].items()},
        baseline=recipe["statistics"]["baseline"],
    )
    target = Path(folder) / "report.html"
    write_atomically(target, page.encode())
    return target


def _figures(
    across: Mapping[str, Any] | None, folder: Path, metric: str
) -> list[tuple[str, str, Markup]]:
    """Name, caption and drawing of each figure of a model."""
    if across is None:
        return []
    written = {path.stem: path for path in save_study_figures(across, folder, metric)}
    return [
        (name, caption, _inline(folder / f"{name}.svg", f"{folder.name}-{name}"))
        for name, caption in CAPTIONS.items()
        if name in written
    ]


def _inline(path: Path, prefix: str) -> Markup:
    """An SVG file for use inside a page: without metadata, its ids made its own."""
    svg = path.read_text(encoding="utf-8")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    return Markup(re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg))

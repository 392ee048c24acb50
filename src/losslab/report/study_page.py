"""A study's report: one HTML file with tables and figures, and the figures as files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from losslab.experiment.records import write_atomically
from losslab.report.charts import Chart, make_chart
from losslab.report.numbers import Metric, listing, metric
from losslab.report.panels import NARROW, WIDE
from losslab.report.study_figures import looks_of, save_study_figures, study_figures
from losslab.report.study_table import study_tables
from losslab.report.template import fill, swatches

_CHARTS = {  # title and caption
    "improvements": (
        "Mean changes",
        "Mean change over the data sets: the thick bar is its 95 % interval over data sets, the "
        "thin line that over data sets and seeds (if there is one), the grey band the margin; "
        "right is better.",
    ),
    "ranks-conover": (
        "Mean ranks",
        "Mean ranks over the data sets, the best on the left; a bar joins losses that are not told "
        "apart.",
    ),
    "profile": (
        "How close to the best",
        "On how many data sets each loss comes how close to the best one; higher is better.",
    ),
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
    recipe = {"source": "", "differs": [], **summary["recipe"]}
    acrosses = [found["across"] for found in summary["models"].values() if found["across"]]
    models, row = [], metric(summary["metric"], summary)
    for place, table in enumerate(study_tables(summary), 1):
        found, name = summary["models"][table.model], f"model-{place}"
        if found["across"]:
            save_study_figures(found["across"], Path(folder) / "figures" / table.model, row)
        models.append(
            {
                "name": name,
                "table": table,
                "charts": _charts(found["across"], name, table.heading, row),
                "rates": _rates(found["rates"]),
            }
        )
    page = fill(
        "study.html",
        title=summary["title"],
        runs=summary["runs"],
        recipe=recipe,
        models=models,
        baseline=recipe["statistics"]["baseline"],
        swatches=swatches(looks_of(acrosses[0])) if acrosses else {},
        control_labels=(),
    )
    target = Path(folder) / "report.html"
    write_atomically(target, page.encode())
    return target


def _charts(across: Mapping[str, Any] | None, name: str, heading: str, row: Metric) -> list[Chart]:
    if across is None:
        return []
    drawn = {width: study_figures(across, row, width) for width in (WIDE, NARROW)}

    def chart(key: str) -> Chart:
        title, caption = _CHARTS[key]
        seen = f"{title} of {listing(across['methods'])}: {heading}"
        return make_chart(
            f"{name}-{key}", title, caption, lambda width: drawn[width][key], seen=seen
        )

    return [chart(key) for key in _CHARTS if key in drawn[WIDE]]


def _rates(rates: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str]]:
    """By loss, how often each learning rate was chosen."""
    return [
        (label, listing(f"{rate}: {count}×" for rate, count in counts.items()))
        for label, counts in rates.items()
    ]

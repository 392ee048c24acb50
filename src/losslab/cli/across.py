"""``losslab across``: several comparisons of the same losses, taken together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def across(
    folders: Annotated[list[Path], typer.Argument(help="Folders of comparisons, two or more.")],
    metric: Annotated[
        str | None, typer.Option(help="One metric for all; default each comparison's own")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Largest mean difference not worth having, in the metric's unit"),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the page, the figures and summary.json")
    ] = Path("losslab-across"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, only")
    ] = False,
) -> None:
    """Take comparisons of the same losses on several tasks together: does it hold beyond one task?

    Shows wins, mean ranks, how close each loss comes to the best (Dolan and Moré's profile), and
    the mean change over the tasks with its verdict, which needs six tasks or more.

    Examples:

        losslab across losslab-runs/ba-f2-cola-small losslab-runs/ba-f2-sst2-small
        losslab across losslab-runs/* --metric accuracy --out all
    """
    from rich.console import Console

    from losslab.errors import InputError
    from losslab.experiment import records
    from losslab.experiment.across_folders import summarize_folders
    from losslab.report.study_page import write_study_report
    from losslab.report.study_table import print_study

    if margin is not None and not margin > 0:
        raise InputError(f"--margin must be a number above 0; got {margin:g}.")
    summary = summarize_folders(folders, metric, margin)
    out.mkdir(parents=True, exist_ok=True)
    records.write_json(out / "summary.json", summary)
    page = write_study_report(summary, out)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        print_study(summary, Console(), written=[page])

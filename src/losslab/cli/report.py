"""``losslab report``: redraw everything from a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison or a study.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the page; default FOLDER/report.html")
    ] = None,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures",
            help="Also draw every picture as PNG and SVG, in figures beside the page (a study "
            "always does)",
        ),
    ] = False,
) -> None:
    """Redraw the tables and the HTML report of a comparison or a study, finished or not.

    Examples:

        losslab report losslab-runs/digits-1a2b3c4d
        losslab report losslab-runs/digits-1a2b3c4d --figures
        losslab report losslab-studies/ba-t4
    """
    from rich.console import Console

    from losslab.experiment import records
    from losslab.experiment.summary import summarize_folder
    from losslab.report import print_table, write_report

    if (folder / "study.json").exists() and out is None:
        from losslab.cli.study import finish

        finish(folder, as_json=False)
        return
    summary = summarize_folder(folder)
    records.write_json(folder / "summary.json", summary)
    print_table(summary, Console(), report=write_report(folder, out=out, figures=figures))

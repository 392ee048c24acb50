"""``losslab report``: redraw everything from a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the page; default FOLDER/report.html")
    ] = None,
) -> None:
    """Redraw the table and the HTML report of a comparison, finished or not, from its records.

    Example:

        losslab report losslab-runs/digits-1a2b3c4d
    """
    from rich.console import Console

    from losslab.errors import InputError
    from losslab.experiment import records
    from losslab.experiment.summary import summarize_folder
    from losslab.report import print_table, write_report

    if records.load_comparison(folder) is None:
        raise InputError(
            f"{folder} is not the folder of a comparison: expected a comparison.json in it. "
            "Folders are written by losslab compare, by default below losslab-runs/."
        )
    summary = summarize_folder(folder)
    records.write_json(folder / "summary.json", summary)
    print_table(summary, Console(), report=write_report(folder, out=out))

"""The verbs of ``losslab``."""

from __future__ import annotations

from typing import Annotated

import typer

from losslab.cli.across import across
from losslab.cli.analyse import analyse
from losslab.cli.atlas import atlas
from losslab.cli.bench import bench
from losslab.cli.compare import compare
from losslab.cli.explain import explain
from losslab.cli.losses import losses
from losslab.cli.recipes import recipes
from losslab.cli.report import report
from losslab.cli.reproduce import reproduce
from losslab.cli.runs import runs
from losslab.cli.study import study
from losslab.cli.tasks import tasks

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Classification losses, and an honest test of whether they help your model.\n\n"
    "Start with: [bold]losslab compare --task digits --loss cross_entropy --loss encouraging"
    "[/bold]",
)
VERBS = (compare, analyse, study, reproduce, across, report, losses, explain, atlas, bench, tasks)
for verb in VERBS:
    app.command()(verb)
app.add_typer(recipes)
app.add_typer(runs, name="runs")


def _version(asked: bool) -> None:
    if asked:
        import torch

        import losslab

        typer.echo(f"losslab {losslab.__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def losslab_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print versions and exit."
        ),
    ] = False,
) -> None:
    pass

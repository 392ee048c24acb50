"""``losslab study``: many data sets by one recipe."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from losslab.experiment.recipe import Study
    from losslab.experiment.study import Progress

_WHERE = "Where it runs"
_OUTPUT = "Output"
_SECONDS_BETWEEN_LINES = 15

Recipe = Annotated[str, typer.Argument(help="A recipe's name (losslab recipes), or a TOML file.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the study, new or to go on with; default losslab-studies/NAME",
        rich_help_panel=_OUTPUT,
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with the data; default the variable LOSSLAB_DATA")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE changes the recipe, such as training.epochs=5"),
]
ExecutorName = Annotated[
    str,
    typer.Option(
        help="here, processes (of this machine) or ray", rich_help_panel=_WHERE, metavar="NAME"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Cells at once, or runs of a recipe of one task (at most 4 unless told); default "
        "one a core",
        rich_help_panel=_WHERE,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="Of a running Ray cluster: auto, or ray://…", rich_help_panel=_WHERE),
]
Part = Annotated[
    str,
    typer.Option(
        help="K/N runs every N-th cell from the K-th on: N such commands share a study",
        rich_help_panel=_WHERE,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress", rich_help_panel=_OUTPUT)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON, only", rich_help_panel=_OUTPUT)
]


def study(
    recipe: Recipe,
    data_dir: DataDir = None,
    changes: Set = None,
    out: Out = None,
    executor: ExecutorName = "processes",
    workers: Workers = None,
    address: Address = None,
    part: Part = "1/1",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe's data sets, models, losses, learning rates and seeds; then the statistics.

    All runs of a data set and a model are trained together, as one computation. What is finished
    is on disk; the same command goes on after Ctrl-C or a kill, also with more losses or seeds.

    Examples:

        losslab study digits-study
        losslab study ba-t4 --data-dir data --workers 2
        losslab study ba-t4 --data-dir data --set training.epochs=5 --set "seeds=[0]" --out quick
        losslab study my-study.toml --executor ray --address auto

    Exit status: 0 done, 2 bad input, 3 done but runs diverged, 130 interrupted.
    """
    from losslab.experiment.recipe import read_recipe

    chosen = changed(read_recipe(recipe, data_dir=data_dir), changes)
    run_recipe(chosen, out, executor, workers, address, part, quiet, as_json)


def changed(chosen: Study, changes: list[str] | None) -> Study:
    from losslab.experiment.recipe_text import read_changes

    return chosen.changed(read_changes(changes)) if changes else chosen


def run_recipe(
    chosen: Study,
    out: Path | None,
    executor: str,
    workers: int | None,
    address: str | None,
    part: str,
    quiet: bool,
    as_json: bool,
) -> None:
    from losslab.cli.progress import stopped
    from losslab.experiment.executors import executor_named
    from losslab.experiment.study import run_study

    folder = out or Path("losslab-studies") / chosen.name
    share = _part(part)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    watch = _Watch(quiet or as_json, folder)
    try:
        with executor_named(executor, workers=workers, address=address) as where, watch:
            run_study(chosen, folder, where, part=share, on_progress=watch)
    except KeyboardInterrupt:
        print(stopped(watch.done, watch.total, folder), file=sys.stderr)
        raise typer.Exit(130) from None
    summary = finish(folder, as_json)
    if any(found["diverged"] for found in summary["models"].values()):
        raise typer.Exit(3)


def finish(folder: Path, as_json: bool) -> dict[str, Any]:
    """Sum a study's folder up, draw its report, and print one or the other."""
    from rich.console import Console

    from losslab.experiment import records
    from losslab.experiment.study_summary import summarize_study
    from losslab.report.study_page import write_study_report
    from losslab.report.study_table import print_study

    summary = summarize_study(folder)
    records.write_json(folder / "summary.json", summary)
    page = write_study_report(summary, folder)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        print_study(summary, Console(), written=[page])
    return summary


def _part(text: str) -> tuple[int, int]:
    from losslab.errors import InputError

    k, slash, n = text.partition("/")
    if slash and k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n):
        return int(k), int(n)
    raise InputError(f"--part must be K/N with 1 <= K <= N, such as 2/4; got {text!r}.")


class _Watch:
    """A bar over the work of a study on standard error, with the time left; or a line at times."""

    def __init__(self, silent: bool, folder: Path) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.console, self.silent, self.folder = Console(stderr=True), silent, folder
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=silent or not self.console.is_terminal,
        )
        self.done = self.total = 0
        self.begun: tuple[float, float] | None = None
        self.spoke = time.monotonic()

    def __enter__(self) -> _Watch:
        self.bar.start()
        self.task = self.bar.add_task("study", total=1.0, note="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        self.done, self.total = progress.done, progress.total
        if self.begun is None:
            self.begun = time.monotonic(), progress.work
            known = f", {progress.done} already finished" if progress.done else ""
            self._say(f"{progress.total} runs{known}, in {self.folder}")
        note = f"{progress.done} of {progress.total} runs{self._left(progress.work)}"
        self.bar.update(self.task, completed=progress.work, note=note)
        if progress.cell is not None and progress.cell.apart is not None:
            cell = progress.cell
            self._say(f"note: {cell.dataset}, {cell.model}: trained one at a time: {cell.apart}")
        late = time.monotonic() - self.spoke > _SECONDS_BETWEEN_LINES
        if not self.console.is_terminal and (late or progress.done == progress.total):
            self._say(note)

    def _left(self, work: float) -> str:
        assert self.begun is not None
        seconds, before = time.monotonic() - self.begun[0], self.begun[1]
        if work <= before:
            return ""
        left = seconds / (work - before) * (1 - work)
        return f", {left:.0f} s left" if left < 90 else f", {left / 60:.0f} min left"

    def _say(self, line: str) -> None:
        self.spoke = time.monotonic()
        if not self.silent:
            self.console.print(line, markup=False, soft_wrap=True)

"""``losslab reproduce``: a paper's table or figure made again, beside what was published."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from losslab.cli.study import (
    Address,
    AsJson,
    DataDir,
    ExecutorName,
    Out,
    Part,
    Quiet,
    Recipe,
    Set,
    Workers,
)

_COMPARISON = "Recipes of one task"
MOST_WORKERS = 4  # unless told: each holds a model, data and a library of its own


def reproduce(
    recipe: Recipe,
    data_dir: DataDir = None,
    changes: Set = None,
    out: Out = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="small (minutes on a CPU) or full (as in the paper)", rich_help_panel=_COMPARISON
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps", rich_help_panel=_COMPARISON)
    ] = "cpu",
    executor: ExecutorName = "processes",
    workers: Workers = None,
    address: Address = None,
    part: Part = "1/1",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run the recipe of a paper's table or figure, and show its figures beside the published ones.

    Each claim of the paper is marked reproduced, contradicted or not shown at this size.

    Examples:

        losslab reproduce zh-t4 --data-dir data
        losslab reproduce zh-t4 --data-dir data --size full --device cuda
        losslab reproduce ba-t4 --data-dir data

    Exit status: 0 done, 2 bad input, 3 done but runs diverged or an analysis failed, 130
    interrupted.
    """
    from losslab.errors import InputError
    from losslab.experiment.executors import executor_named
    from losslab.experiment.recipe import kind_of, read_recipe, recipe_file, recipe_names

    if kind_of(recipe_file(recipe)) == "comparison":
        if executor == "ray" or address is not None or part != "1/1":
            raise InputError(
                f"--executor ray, --address and --part are for recipes of many data sets; {recipe} "
                "has one task. Its runs go side by side by --workers, on this machine."
            )
        if executor_named(executor, workers=workers).workers == 1:
            workers = 1
        _compare(recipe, data_dir, changes, out, size, device, workers, quiet, as_json)
        return
    for option, given in (("--size", size), ("--device", None if device == "cpu" else device)):
        if given is not None:
            raise InputError(f"{option} is for recipes of one task; {recipe} has many data sets.")
    from losslab.cli.study import changed, run_recipe

    chosen = read_recipe(recipe, data_dir=data_dir)
    if chosen.published is None:
        known = [n for n in recipe_names("study") if read_recipe(n).published is not None]
        raise InputError(
            f"the recipe {chosen.name!r} has no published figures to reproduce; run it with "
            f"losslab study. Recipes that have: {', '.join([*known, *recipe_names('comparison')])}."
        )
    run_recipe(changed(chosen, changes), out, executor, workers, address, part, quiet, as_json)


def _compare(
    recipe: str,
    data_dir: Path | None,
    changes: list[str] | None,
    out: Path | None,
    size: str | None,
    device: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    import torch

    from losslab.cli.compare import carry_out, check_device, fitting_threads
    from losslab.experiment.comparison_recipe import read_comparison
    from losslab.experiment.executors import cores
    from losslab.experiment.launch import processes
    from losslab.experiment.recipe_text import read_changes

    chosen = read_comparison(
        recipe, size=size, data_dir=data_dir, changes=read_changes(changes or [])
    )
    check_device(device)
    name = "-".join(part for part in (chosen.name, chosen.size) if part)
    comparison = chosen.comparison(
        out or Path("losslab-runs") / name,
        device=device,
        command=shlex.join(["losslab", *sys.argv[1:]]),
    )
    torch.set_num_threads(fitting_threads(comparison.task))
    alone = device != "cpu" or processes() > 1
    fitting = 1 if alone else min(cores(), MOST_WORKERS)
    carry_out(comparison, workers or fitting, quiet, as_json)

"""``losslab recipes``: the recipes that come with losslab, to run as they are or to change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

recipes = typer.Typer(
    name="recipes",
    help="List the recipes that come with losslab; show one, or copy it to change it.\n\n"
    "Examples:\n\n"
    "    losslab recipes\n\n"
    "    losslab recipes copy ba-t4 mine.toml",
)


@recipes.callback(invoke_without_command=True)
def _list(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    from losslab.experiment.recipe import recipe_names

    for name, title in recipe_names().items():
        typer.echo(f"{name:<16} {title}")


@recipes.command()
def show(
    name: Annotated[str, typer.Argument(help="A recipe that `losslab recipes` lists.")],
) -> None:
    """Print a recipe.

    Example:

        losslab recipes show ba-t4
    """
    from losslab.experiment.recipe import recipe_toml

    typer.echo(recipe_toml(name), nl=False)


@recipes.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A recipe that `losslab recipes` lists.")],
    file: Annotated[
        Path | None, typer.Argument(help="Where to write it; default NAME.toml in this folder.")
    ] = None,
) -> None:
    """Copy a recipe to a file of your own, to change it; an existing file is never replaced.

    Example:

        losslab recipes copy ba-t4 mine.toml
    """
    from losslab.errors import InputError
    from losslab.experiment.recipe import recipe_names, recipe_toml

    text = recipe_toml(name)
    target = file if file is not None else Path(f"{name}.toml")
    if target.suffix != ".toml":
        raise InputError(f"{target}: a recipe's file ends in .toml; name it {target.name}.toml.")
    try:
        with target.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise InputError(
            f"{target} exists already and is left as it is. Name another file: "
            f"losslab recipes copy {name} FILE."
        ) from None
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}).") from None
    verb = "study" if name in recipe_names("study") else "reproduce"
    typer.echo(f"{target}: edit it, then run: losslab {verb} {target}")

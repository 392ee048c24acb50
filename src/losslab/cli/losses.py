"""``losslab losses``: the catalogue as a table; and how commands read a LOSS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def losses(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List every loss: formula, parameters with their domains, aliases; --json adds the source.

    Examples:

        losslab losses
        losslab losses --json | python -m json.tool
    """
    from losslab.losses.catalog import ROWS

    if as_json:
        rows = [
            {
                "name": row.name,
                "formula": row.formula,
                "parameters": [
                    {"name": p.name, "default": p.default, "domain": p.domain, "meaning": p.meaning}
                    for p in row.parameters
                ],
                "aliases": list(row.aliases),
                "module": row.module_name,
                "function": row.function_name,
                "source": row.source,
            }
            for row in ROWS
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    _print_table()


def _print_table() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from losslab.losses.catalog import ROWS

    table = Table(box=box.SIMPLE, show_lines=False, pad_edge=False)
    table.add_column("Loss", style="bold", no_wrap=True)
    table.add_column("Formula, p = probability of the true class", overflow="fold")
    table.add_column("Parameters", overflow="fold")
    table.add_column("Also called", overflow="fold")
    for row in ROWS:
        parameters = [f"{p.shown} in {p.domain}" for p in row.parameters]
        table.add_row(row.name, row.formula, "\n".join(parameters), ", ".join(row.aliases))
    console = Console()
    console.print(table)
    console.print(
        "Sums and multiples are losses too: 'cross_entropy + 0.5*expectation'. Wrappers: "
        "one_vs_rest(LOSS), complement_objective(LOSS), smoothed(LOSS, amount=0.1), "
        "additive_margin(LOSS, …), ldam(LOSS, counts=[…]), "
        "logit_adjustment(LOSS, counts=[…]), reweighted(LOSS, counts=[…], start=0.8). "
        "Schedules stand for values: "
        "mixed(focus=phases(0, 0.1, 0.2, 0.3, 0.4, 0.5)), encouraging(rho=deferred(1, 0.5)). "
        "More on one: losslab explain 'encouraging(log_end=0.5)'",
        highlight=False,
        markup=False,
    )


def label_and_loss(text: str) -> tuple[str, str]:
    """``LABEL:LOSS`` or ``LOSS``, whose label is ``""``; LOSS is a spec or ``FILE.py:NAME``.

    Raises:
        InputError: What looks like a file's loss and is none, or no loss of this name.
    """
    from losslab.errors import InputError
    from losslab.experiment.own_loss import is_own_loss
    from losslab.experiment.plan import canonical_spec

    label, colon, loss = text.partition(":")
    if not colon or is_own_loss(text):
        label, loss = "", text
    if is_own_loss(loss):
        return label.strip(), loss.strip()
    if ":" in loss or ".py" in text:
        raise InputError(_near_miss(text))
    try:
        canonical_spec(loss)
    except InputError:
        if Path(label).is_file() or Path(f"{label}.py").is_file():
            raise InputError(_near_miss(text)) from None
        raise
    return label.strip(), loss


def _near_miss(text: str) -> str:
    return (
        f"Cannot read {text!r} as a loss. Expected [LABEL:]SPEC, or [LABEL:]FILE.py:NAME for "
        "one of your own; to add to that or give it parameters, write a function in the file."
    )

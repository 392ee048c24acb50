"""``losslab tasks``: what can be compared on."""

from __future__ import annotations

import typer


def tasks() -> None:
    """List the tasks that losslab compare knows.

    Example:

        losslab tasks
    """
    from losslab.experiment.tasks import task_names

    for name, line in task_names().items():
        typer.echo(f"{name:<16} {line}")

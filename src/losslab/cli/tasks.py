"""``losslab tasks``: what can be compared on."""

from __future__ import annotations

import typer


def tasks() -> None:
    """List the tasks that losslab compare knows.

    Example:

        losslab tasks
    """
    from losslab.experiment.tasks import model_names, task_names

    models = model_names()
    for name, line in task_names().items():
        typer.echo(f"{name:<18} {line}")
        if name in models:
            typer.echo(f"{'':<18}   --model: {', '.join(models[name])}")

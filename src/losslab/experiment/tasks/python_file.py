"""A task from a user's own Python file.

The file holds a function that returns a `losslab.experiment.task.Task`, or a dictionary with its
fields. It is called ``task`` unless the name after a colon says otherwise, and takes nothing, or
the `TaskOptions` as its one argument:

    # my_task.py; run: losslab compare --task my_task.py --loss cross_entropy --loss encouraging
    import torch
    from torch.utils.data import TensorDataset

    from losslab.experiment.task import Task


    def task():
        generator = torch.Generator().manual_seed(0)  # the data: the same for every run
        inputs = torch.randn(600, 2, generator=generator)
        targets = (inputs.prod(dim=1) > 0).long()  # two classes, like a chessboard of four fields
        return Task(
            name="quadrants",
            train=TensorDataset(inputs[:400], targets[:400]),
            validation=TensorDataset(inputs[400:500], targets[400:500]),
            test=TensorDataset(inputs[500:], targets[500:]),
            num_classes=2,
            model=lambda: torch.nn.Sequential(
                torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
            ),
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
            epochs=10,
            batch_size=32,
        )

The file's own folder is on Python's path, so it may import its neighbours. What goes wrong inside
it is told in one line with the file and line where it happened. The sha256 of the file is part of
the task's description, so an edited file makes new runs; an edited neighbour does not.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from losslab.errors import InputError, nearest
from losslab.experiment.python_file import function_of, guarded, kind, required
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import with_description
from losslab.experiment.tasks.options import TaskOptions

_PLACE = re.compile(r"(?P<file>.+\.py)(?::(?P<function>\w+))?")
_OVERRIDES = ("epochs", "batch_size")  # options that can be set on any task
_DEFAULTS = TaskOptions()


def is_python_file(name: str) -> bool:
    """Whether the name reads like ``FILE.py`` or ``FILE.py:FUNCTION``."""
    return _PLACE.fullmatch(name) is not None


def build_from_file(place: str, options: TaskOptions) -> Task:
    """The task that a user's ``FILE.py[:FUNCTION]`` returns.

    ``epochs`` and ``batch_size`` are set on the returned task; other options reach only a function
    that takes them.
    """
    match = _PLACE.fullmatch(place)
    assert match is not None
    path, name = Path(match["file"]), match["function"] or "task"
    function = function_of(path, name, "a function that returns a losslab Task")
    takes_options = _takes_options(path, name, function)
    if not takes_options:
        _refuse_unheard(path, name, options)
    returned = guarded(path, lambda: function(options) if takes_options else function())
    task = guarded(path, lambda: _as_task(path, name, returned))
    changes = {key: getattr(options, key) for key in _OVERRIDES if getattr(options, key)}
    facts = {
        "source": f"{path.name}:{name}",
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "split": {"rule": "the file's own", "seed": options.split_seed},
    }
    return guarded(path, lambda: with_description(replace(task, **changes), facts))


def _takes_options(path: Path, name: str, function: Callable) -> bool:
    parameters = list(inspect.signature(function).parameters.values())
    needed = required(parameters)
    if len(needed) > 1 or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise InputError(
            f"{path}: {name}() must take nothing or the task options as one argument; "
            f"it needs {', '.join(p.name for p in needed)}."
        )
    return bool(needed) or (bool(parameters) and parameters[0].name == "options")


def _refuse_unheard(path: Path, name: str, options: TaskOptions) -> None:
    for option in fields(options):
        value = getattr(options, option.name)
        if option.name not in _OVERRIDES and value != getattr(_DEFAULTS, option.name):
            raise InputError(
                f"{path}: {name}() takes no argument, so {option.name}={value!r} cannot reach it. "
                f"Leave it out, or write def {name}(options): and use options.{option.name}."
            )


def _as_task(path: Path, name: str, returned: Any) -> Task:
    if isinstance(returned, Task):
        return returned
    if not isinstance(returned, Mapping):
        raise InputError(
            f"{path}: {name}() must return a losslab Task or a dictionary with its fields; "
            f"got {kind(returned)}."
            + (" Does it lack a return statement?" if returned is None else "")
        )
    known = [f.name for f in fields(Task)]
    needed = [f.name for f in fields(Task) if f.default is f.default_factory is MISSING]
    unknown = [str(key) for key in returned if key not in known]
    if unknown:
        raise InputError(
            f"{path}: {name}() returned a dictionary with the unknown field {unknown[0]!r}."
            f"{nearest(unknown[0], known)} Fields: {', '.join(known)}."
        )
    missing = [key for key in needed if key not in returned]
    if missing:
        raise InputError(
            f"{path}: {name}() returned a dictionary without {', '.join(missing)}. "
            f"Needed: {', '.join(needed)}."
        )
    return Task(**returned)

"""What can be told to fail before any model is trained: asked of the task, not of a trained model.

What is wrong with an option by itself, `losslab.analysis.options` tells as soon as it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from losslab.analysis.analyse import refuse_other_rows
from losslab.analysis.classifier import Data, tensors
from losslab.analysis.features import output_layer
from losslab.analysis.from_logits import NOISE, refuse_other_form
from losslab.analysis.from_model import limits_for
from losslab.analysis.request import Request
from losslab.analysis.robustness import check_inputs
from losslab.errors import InputError
from losslab.experiment.task import Task

DataByName = Callable[[str], Data] | None
_FEW = 8  # examples on which an untrained model shows what its layers are


def refuse_unready(requests: Sequence[Request], task: Task, data_by_name: DataByName) -> None:
    """Raise `InputError` for what can be told to fail before any model is trained.

    The global random generator stays where it is.
    """
    with torch.random.fork_rng(devices=[]):
        for asked in requests:
            refuse_other_rows(asked, task.reading)
            check = _CHECKS.get(asked.name)
            if check is None:
                continue
            try:
                check(asked.options, task, data_by_name)
            except InputError as error:
                raise InputError(f"{asked.name}: {error}") from None


def _ood(options: Mapping[str, Any], task: Task, data_by_name: DataByName) -> None:
    """The other data are there, and of the form that the model takes."""
    out = options.get("out", NOISE)
    for name in [out] if isinstance(out, str) else out:
        if name != NOISE and data_by_name is not None:
            refuse_other_form(name, tensors(data_by_name(name), 1)[0], tensors(task.test, 1)[0])


def _representation(options: Mapping[str, Any], task: Task, _: DataByName) -> None:
    """The model has an output layer, or has the one that was named."""
    output_layer(task.model(), tensors(task.train, _FEW), options.get("layer"))


def _robustness(options: Mapping[str, Any], task: Task, _: DataByName) -> None:
    """The attacks that were named can be made on such inputs, and the box holds them."""
    inputs = tensors(task.test, None if "box" in options else 1)[0]
    attacks = options.get("attacks", ())
    names = [attacks] if isinstance(attacks, str) else attacks
    check_inputs(inputs, limits_for(options.get("box", "auto"), inputs), names)


def _dynamics(options: Mapping[str, Any], task: Task, _: DataByName) -> None:
    """The epoch of the cohorts comes before the last."""
    epoch = options.get("epoch")
    if epoch is not None and epoch >= task.epochs:
        raise InputError(
            f"Expected epoch to lie before the last of the training's {task.epochs}, but got "
            f"{epoch}."
        )


_CHECKS: dict[str, Callable[[Mapping[str, Any], Task, DataByName], None]] = {
    "ood": _ood,
    "representation": _representation,
    "robustness": _robustness,
    "dynamics": _dynamics,
}

"""A loss from a user's own Python file: ``FILE.py:NAME`` where a spec would stand.

``NAME`` is a function ψ of the true class's log-odds, a function of (logits, target), or what makes
a loss module when it is called without arguments, such as its class:

    # my_loss.py; run: losslab compare --task digits --loss cross_entropy --loss my_loss.py:late
    import torch.nn.functional as F


    def late(a):
        return F.softplus(3.0 - a)

The file's sha256 is part of the loss's name in the records, so an edited file makes new runs; an
edited neighbour that it imports does not.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import losslab
from losslab.errors import InputError
from losslab.experiment.python_file import function_of, guarded, kind, required
from losslab.losses.explain import value_and_slope

_PLACE = re.compile(r"(?P<file>[^:]+\.py)(?::(?P<name>\w*))?")
_WANTED = "a function ψ(a), a function of (logits, target), or a class of loss modules"


def is_own_loss(text: str) -> bool:
    """Whether the text reads like ``FILE.py:NAME``, and not like a spec."""
    return _PLACE.fullmatch(text.strip()) is not None


@dataclass(frozen=True)
class OwnLoss:
    """Makes a loss of the user's, and names it and its file's content in the records."""

    spec: str
    make: Callable[[], nn.Module]

    def __call__(self) -> nn.Module:
        return self.make()


def own_loss(place: str, **options: Any) -> OwnLoss:
    """What makes the loss of a user's ``FILE.py:NAME``, tried once.

    Args:
        options: As of `losslab.loss`, such as ``label_smoothing``; a ψ takes them all, and a class
            or function those that it names.

    Raises:
        InputError: No such file or name, something else than a loss, an option that would be
            ignored, or a ψ with a NaN among its values and slopes.
    """
    match = _PLACE.fullmatch(place.strip())
    assert match is not None
    path, name = Path(match["file"]), match["name"]
    if not name:
        raise InputError(f"{path}: which loss of this file? Write {path}:NAME: {_WANTED}.")
    made = function_of(path, name, _WANTED)
    make = _maker(path, name, made, options)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return OwnLoss(f"custom({path.name}:{name}, {digest})", make)


def remade(spec: str, places: Mapping[str, str], **options: Any) -> nn.Module:
    """The loss of a record again: of its file, if ``places`` has one for this spec.

    Raises:
        InputError: As `own_loss`, and if the file is another now than ``spec`` says.
    """
    if spec not in places:
        return losslab.loss(spec, **options)
    place = places[spec]
    found = own_loss(place, **options)
    if found.spec != spec:
        raise InputError(
            f"Expected {place} as it was when the runs were made, but it was edited since; restore "
            "it, or repeat the comparison: its runs are made again."
        )
    return found()


def places_of(comparison: Mapping[str, Any]) -> dict[str, str]:
    """By spec, where the losses of a comparison lie that came from files of the user's."""
    return (comparison.get("source") or {}).get("own_losses", {})


def _maker(
    path: Path, name: str, made: Callable[..., Any], options: dict[str, Any]
) -> Callable[[], nn.Module]:
    if isinstance(made, nn.Module):
        raise InputError(
            f"{path}: expected {name} to be {_WANTED}, since each run makes its own; it is a "
            "module made already. Write a function without arguments that returns it."
        )
    parameters = list(guarded(path, lambda: inspect.signature(made)).parameters.values())
    needed = len(required(parameters))
    if inspect.isclass(made) or not needed:
        return _maker_of_modules(path, name, made, parameters, options)
    if needed == 1:
        guarded(path, lambda: _try_psi(name, made))
        return lambda: losslab.OddsLoss(made, **options)
    if needed == 2:
        _refuse_unheard(path, name, [], options)
        guarded(path, lambda: _try_function(name, made))
        return lambda: _Written(made)
    raise InputError(f"{path}: expected {name} to be {_WANTED}; it needs {needed} arguments.")


def _maker_of_modules(
    path: Path,
    name: str,
    made: Callable[..., Any],
    parameters: list[inspect.Parameter],
    options: dict[str, Any],
) -> Callable[[], nn.Module]:
    if needed := len(required(parameters)):
        raise InputError(
            f"{path}: expected the class {name} to need no arguments; it needs {needed}. Give them "
            "defaults, or write a function without arguments that makes it."
        )
    _refuse_unheard(path, name, parameters, options)
    module = guarded(path, lambda: made(**options))
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{path}: expected {name}() to return a loss module, such as losslab.OddsLoss(psi); "
            f"it returns {kind(module)}."
        )
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise InputError(
            f"{path}: {name} has parameters to be learned, but a comparison trains the model's "
            "alone; they would stay as they begin. Make them a part of the model, in a task.py."
        )
    return lambda: made(**options)


def _refuse_unheard(
    path: Path, name: str, parameters: list[inspect.Parameter], options: dict[str, Any]
) -> None:
    heard = {p.name for p in parameters}
    for option, value in options.items():
        if option not in heard and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise InputError(
                f"{path}: {name} takes no {option}, so {option}={value!r} cannot reach it. Leave "
                "it out, or write a function ψ(a), or a class that takes it."
            )


class _Written(nn.Module):
    """A function of logits and target as a module."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.function(input, target)


def _try_function(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A function of logits and target on four examples."""
    logits = torch.tensor([[2.0, 1.0, -1.0]] * 4, requires_grad=True)
    try:
        returned = function(logits, torch.tensor([0, 1, 2, 0]))
    except Exception as error:
        error.add_note(
            f"{name} needs two arguments, so it was called with logits and target; one of log-odds "
            "needs one, and defaults for all others."
        )
        raise
    if not isinstance(returned, Tensor) or returned.dim() or not returned.requires_grad:
        raise InputError(
            f"{name} must return one number for a batch of logits and target, such as a mean, made "
            "with PyTorch's operations."
        )


def _try_psi(name: str, psi: Callable[[Tensor], Tensor]) -> None:
    """ψ on the log-odds that a training meets, the extremes included."""
    a = torch.tensor([-1e4, -100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0, 1e4])
    returned = psi(a.clone().requires_grad_())
    if isinstance(returned, Tensor) and not returned.requires_grad:
        raise InputError(f"no gradient comes through {name}; write it with PyTorch's operations.")
    if not isinstance(returned, Tensor) or returned.shape not in (a.shape, ()):
        raise InputError(f"{name} must return a tensor with one number for each of its log-odds.")
    for what, numbers in zip(("value", "slope"), value_and_slope(psi, a), strict=True):
        if numbers.isnan().any():
            raise InputError(
                f"the {what} of {name} is NaN at the log-odds {float(a[numbers.isnan()][0]):g}; "
                "write it with softplus, sigmoid and logsigmoid of a, not of p."
            )

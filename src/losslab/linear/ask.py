"""What is asked for beyond the loss, and whether tensors fit together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from losslab.errors import InputError
from losslab.linear.terms import Term
from losslab.logodds.plain import being_transformed


@dataclass(frozen=True)
class Ask:
    """z = softcap·tanh(scale·(h Wᵀ + b)/softcap), and what to do with it."""

    softcap: float | None = None
    scale: float = 1.0
    z_loss: float = 0.0
    chunk_rows: int | None = None
    return_rows: bool = False

    def __post_init__(self) -> None:
        if self.softcap is not None:
            _check_number("softcap", self.softcap, zero=False)
        _check_number("logit_scale", self.scale, zero=False)
        _check_number("z_loss", self.z_loss, zero=True)
        rows = self.chunk_rows
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
            raise InputError(f"chunk_rows must be a positive whole number; got {rows!r}.")

    @property
    def factor(self) -> float:
        """Of h Wᵀ + b where log-odds are taken: a softcap wants the product divided by it."""
        return self.scale / (1.0 if self.softcap is None else self.softcap)

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """All of them, by differentiable operations."""
        z = F.linear(hidden, weight, bias)
        return self.capped(z if self.scale == 1 else z * self.scale)

    def capped(self, z: Tensor) -> Tensor:
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


def _check_number(name: str, value: object, *, zero: bool) -> None:
    if isinstance(value, (int, float)) and (0 < value < math.inf or (zero and value == 0)):
        return
    hint = ""
    if isinstance(value, Tensor) and name == "logit_scale":
        hint = " Multiply the input (and the bias) by a learnt scale instead."
    kind = "zero or a positive number" if zero else "a positive number"
    raise InputError(f"{name} must be {kind}; got {value!r}.{hint}")


def check(
    terms: list[Term], input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None
) -> None:
    """Raise where shapes, dtypes or devices do not fit together."""
    if weight.dim() != 2 or input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise InputError(
            "input must be (N, D) or (…, D) and linear_weight (V, D) with the same D; got input "
            f"{tuple(input.shape)} and linear_weight {tuple(weight.shape)}."
        )
    classes = weight.shape[0]
    if classes == 0 or (bias is not None and bias.shape != (classes,)):
        raise InputError(
            "linear_weight must hold at least one class, and linear_bias one number a class; got "
            f"linear_weight {tuple(weight.shape)} and linear_bias "
            f"{None if bias is None else tuple(bias.shape)}."
        )
    _check_target(input, target, classes)
    tensors = [input, weight] if bias is None else [input, weight, bias]
    for x in [*tensors[1:], target]:
        if x.device != input.device:
            raise InputError(
                "input, linear_weight, linear_bias and target must be on one device; got "
                f"{input.device} and {x.device}."
            )
    mixed = any(x.dtype != input.dtype for x in tensors)
    if not all(x.is_floating_point() for x in tensors) or (
        mixed and not torch.is_autocast_enabled(input.device.type)
    ):
        raise InputError(
            "input, linear_weight and linear_bias must be floating point, and of one dtype "
            f"outside autocast; got {', '.join(str(x.dtype) for x in tensors)}."
        )
    for term in terms:
        w = term.options["weight"]
        if w is not None and w.shape != (classes,):
            raise InputError(
                f"weight must hold one number a class, shape ({classes},); got {tuple(w.shape)}. "
                "The layer's own weight is linear_weight."
            )


def _check_target(input: Tensor, target: Tensor, classes: int) -> None:
    if target.is_complex() or target.dtype == torch.bool:
        raise InputError(f"target must hold integer class indices; got {target.dtype}.")
    soft = target.is_floating_point()
    expected = (*input.shape[:-1], classes) if soft else tuple(input.shape[:-1])
    if target.shape != expected:
        kind = "probabilities" if soft else "class indices"
        raise InputError(
            f"a target of {kind} must have the shape {expected} beside an input of shape "
            f"{tuple(input.shape)}; got {tuple(target.shape)}."
        )


def needs_plain(*tensors: Tensor | None) -> bool:
    """Whether a transform, forward-mode AD or a tensor subclass wants ordinary operations."""
    if being_transformed():
        return True
    return any(
        type(x) not in (Tensor, nn.Parameter)
        or x.device.type == "meta"
        or forward_ad.unpack_dual(x).tangent is not None
        for x in tensors
        if x is not None
    )


def as_under_autocast(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in the dtype that ``F.linear`` would compute in."""
    device = input.device.type
    if not torch.is_autocast_enabled(device):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else x.to(dtype)

    return cast(input), cast(weight), None if bias is None else cast(bias)


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Dtypes have been chosen: nothing below is cast again."""
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield

"""The native kernel as PyTorch operators, for programs that torch.compile or export have traced.

Eagerly the autograd function of ``kernel.py`` is called instead: it costs a third of the overhead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from losslab.logodds import native, plain

# Written out: PyTorch before 2.5 cannot read annotations that are strings.
_STATISTICS = "(Tensor logits, Tensor target) -> (Tensor, Tensor, Tensor)"
_GRADIENT = "(Tensor logits, Tensor target, Tensor shift, Tensor total, Tensor grad) -> Tensor"


@torch.library.custom_op(
    "losslab::log_odds", mutates_args=(), device_types="cpu", schema=_STATISTICS
)
def _statistics(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return native.statistics(*_walkable(logits, target))


@_statistics.register_fake
def _(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    one = torch.empty_like(target, dtype=torch.float32, memory_format=torch.contiguous_format)
    return one, torch.empty_like(one), torch.empty_like(one)


@torch.library.custom_op(
    "losslab::log_odds_gradient", mutates_args=(), device_types="cpu", schema=_GRADIENT
)
def _gradient(logits: Tensor, target: Tensor, shift: Tensor, total: Tensor, grad: Tensor) -> Tensor:
    logits, target = _walkable(logits, target)
    return native.gradient(logits, target, shift, total, grad).contiguous()


@_gradient.register_fake
def _(logits: Tensor, target: Tensor, shift: Tensor, total: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _walkable(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A compiler may hand over other strides than it was traced with."""
    return (logits if native.layout(logits) else logits.contiguous()), target


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
    if grad is None:
        return None, None
    if torch.is_grad_enabled():
        logits, target = ctx.saved_tensors[:2]
        return plain.gradient(logits, target, grad), None
    return _gradient(*ctx.saved_tensors, grad), None


_statistics.register_autograd(_backward, setup_context=_save)


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Differentiable log-odds of validated ``logits`` (N, C, …) and ``target`` (N, …)."""
    return _statistics(logits, target)[0]

"""What a fast way to compute log-odds must offer, and the one autograd function on top of it.

A kernel keeps two numbers a row for the backward pass, m = max_{j≠y} z_j (clamped to the finite
range) and s = Σ_{j≠y} exp(z_j − m); the gradient is then one pass over the logits.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from losslab.logodds import native, plain


class Kernel(Protocol):
    """Two passes over logits (N, C, …) with targets (N, …) already known to lie in [0, C)."""

    name: str

    def statistics(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(a, m, s) in float32 or wider, each of the target's shape."""

    def gradient(
        self,
        logits: Tensor,
        target: Tensor,
        shift: Tensor,
        total: Tensor,
        grad: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """g·(e_y − q) in the logits' dtype; ``out`` may be the logits themselves."""


class _LogOdds(torch.autograd.Function):
    """Log-odds by a kernel; second derivatives and forward mode by differentiable operations."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, logits: Tensor, target: Tensor) -> Tensor:
        log_odds, shift, total = kernel.statistics(logits, target)
        ctx.kernel = kernel
        ctx.save_for_backward(logits, target, shift, total)
        ctx.save_for_forward(logits, target)
        return log_odds

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        logits, target, shift, total = ctx.saved_tensors
        if plain.wants_plain(grad):
            return None, plain.gradient(logits, target, grad), None
        return None, ctx.kernel.gradient(logits, target, shift, total, grad), None

    @staticmethod
    def jvp(ctx: Any, _: Any, tangent: Tensor, __: Any) -> Tensor:
        logits, target = ctx.saved_tensors
        ones = torch.ones_like(target, dtype=tangent.dtype)
        unit = plain.gradient(logits, target, ones)
        return (unit * tangent).sum(1).to(plain.compute_dtype(logits.dtype))


class _AllLogOdds(torch.autograd.Function):
    """Every class's log-odds of (N, C) rows by the native kernel."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        log_odds, rankings = native.all_statistics(logits)
        ctx.save_for_backward(logits, rankings)
        ctx.save_for_forward(logits)
        return log_odds

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        logits, rankings = ctx.saved_tensors
        if plain.wants_plain(grad):
            with torch.enable_grad():
                every = plain.all_log_odds(logits)
            return torch.autograd.grad(every, logits, grad, create_graph=True)[0]
        return native.all_gradient(logits, rankings, grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        return torch.func.jvp(plain.all_log_odds, (logits,), (tangent,))[1]


def all_log_odds(logits: Tensor) -> Tensor:
    """Differentiable log-odds of every class of (N, C) rows that the native kernel takes."""
    return _AllLogOdds.apply(logits)


def log_odds(kernel: Kernel, logits: Tensor, target: Tensor) -> Tensor:
    """Differentiable log-odds of validated ``logits`` (N, C, …) and ``target`` (N, …)."""
    return _LogOdds.apply(kernel, logits, target)

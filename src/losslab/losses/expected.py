"""Σ_k share_k ψ(a_k) of each row, for label smoothing and soft targets, as one autograd node.

Nothing of size (N, C) is kept but the gradient: the backward pass computes the log-odds again. A ψ
with a native program is run class by class in the processor's cache; any other in pieces of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from losslab.logodds import native
from losslab.logodds.eager import row_pieces
from losslab.logodds.native import Shares
from losslab.logodds.plain import promote, wants_plain
from losslab.losses.fused import AutogradOdds, Odds, TorchOdds
from losslab.losses.program import NativeOdds, native_odds

Psi = Callable[[Tensor], Tensor]


class _ExpectedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        shares: Shares,
        odds: Odds,
        otherwise: Psi,
        factor: float | None,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.odds, ctx.otherwise, ctx.factor = odds, otherwise, factor
        if isinstance(odds, NativeOdds):
            losses, rankings = native.expected_value(odds.value_program, logits, shares)
        else:
            losses, rankings = _value_by_pieces(odds, logits, shares), None
        ctx.save_for_backward(logits, rankings, *shares)
        ctx.save_for_forward(logits)
        if factor is not None:
            losses = losses.sum().mul_(factor)
        return losses if losses.dtype == dtype else losses.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, rankings, *shares = ctx.saved_tensors
        if wants_plain(grad):
            with torch.enable_grad():
                losses = ctx.otherwise(logits)
            result = torch.autograd.grad(losses, logits, grad, create_graph=True)[0]
            return result, *[None] * 5
        factor = 1.0 if ctx.factor is None else ctx.factor
        if isinstance(ctx.odds, NativeOdds):
            found = native.expected_gradient(
                ctx.odds.slope_program, logits, Shares(*shares), rankings, grad, factor
            )
        else:
            found = _gradient_by_pieces(ctx.odds, logits, Shares(*shares), grad * factor)
        return found, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (logits,) = ctx.saved_tensors
        return torch.func.jvp(ctx.otherwise, (logits,), (tangent,))[1]


def expected_loss(
    logits: Tensor,
    shares: Shares,
    psi: Psi,
    slope: Psi | None,
    key: Any,
    otherwise: Psi,
    factor: float | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """The (N,) losses of logits that the native kernel takes, or ``factor`` times their sum.

    ``otherwise(logits)`` is the same by differentiable operations; None where only they will do.
    """
    odds: Odds | None = native_odds(key, psi)
    if odds is None and slope is None and learns(psi, logits):
        return None
    if odds is None:
        odds = TorchOdds(psi, slope) if slope else AutogradOdds(psi)
    return _ExpectedLoss.apply(logits, shares, odds, otherwise, factor, dtype)


def learns(psi: Psi, logits: Tensor) -> bool:
    """Whether a ψ has parameters of its own that want a gradient."""
    with torch.enable_grad():
        return psi(promote(logits.detach()[:1, :1])).requires_grad


def _value_by_pieces(odds: TorchOdds, logits: Tensor, shares: Shares) -> Tensor:
    result = torch.empty(logits.shape[0])
    for rows in row_pieces(logits):
        share = _dense(shares, rows, logits)
        losses = odds.value(native.all_statistics(logits[rows])[0], "none")
        result[rows] = _counted(losses.mul(share), share).sum(1)
    return result


def _gradient_by_pieces(odds: TorchOdds, logits: Tensor, shares: Shares, grad: Tensor) -> Tensor:
    grad = grad.expand(logits.shape[0]).unsqueeze(1)
    out = torch.empty(logits.shape, dtype=logits.dtype)
    for rows in row_pieces(logits):
        share = _dense(shares, rows, logits)
        a, rankings = native.all_statistics(logits[rows])
        upstream = _counted(odds.slope(a).mul_(share), share).mul_(grad[rows])
        out[rows] = native.all_gradient(logits[rows], rankings, upstream)
    return out


def _dense(shares: Shares, rows: slice, logits: Tensor) -> Tensor:
    """What ``shares`` says of some rows, written out."""
    every, target, own = shares
    every = every.expand(logits.shape)[rows]
    if target is None or own is None:
        return every
    classes, index = logits.shape[1], target[rows].unsqueeze(1)
    ignored = (index < 0) | (index >= classes)
    index = index.masked_fill(ignored, 0)
    return every.scatter_add(1, index, own.expand(classes)[index]).masked_fill(ignored, 0)


def _counted(values: Tensor, share: Tensor) -> Tensor:
    """``values``, in which even an infinite loss of a class without a share counts as nothing."""
    return values.masked_fill_(share == 0, 0)

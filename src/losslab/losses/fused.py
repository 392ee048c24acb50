"""A whole loss as one autograd node, where ψ' is written out.

On small batches the time of a loss is the number of PyTorch operations it records. This node
computes log-odds, ψ and the mean without recording any, and in the backward pass ψ' and the
gradient. Second derivatives and forward mode go through the differentiable formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from losslab.logodds import native, plain
from losslab.logodds.kernel import Kernel
from losslab.losses.program import NativeOdds, native_odds

Psi = Callable[[Tensor], Tensor]


class TorchOdds:
    """ψ and ψ' run by PyTorch."""

    def __init__(self, psi: Psi, slope: Psi) -> None:
        self._psi, self._slope = psi, slope

    def value(self, a: Tensor, reduction: str) -> Tensor:
        return reduced(self._psi(a), reduction)

    def upstream(self, a: Tensor, grad: Tensor, reduction: str) -> Tensor:
        if reduction == "mean":
            grad = grad / a.numel()
        return self.slope(a).mul_(grad)

    def slope(self, a: Tensor) -> Tensor:
        return self._slope(a)


class AutogradOdds(TorchOdds):
    """ψ of which only the values are known."""

    def __init__(self, psi: Psi) -> None:
        super().__init__(psi, self._by_autograd)

    def _by_autograd(self, a: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = a.detach().requires_grad_()
            losses = self._psi(leaf)
            if not losses.requires_grad:  # a constant
                return torch.zeros_like(a)
            return torch.autograd.grad(losses.sum(), leaf)[0]


Odds = TorchOdds | NativeOdds
# Log-odds up to which a native program beats PyTorch's operations, which use all threads.
_FEW = 1 << 16


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        kernel: Kernel,
        psi: Psi,
        odds: Odds,
        reduction: str,
        dtype: torch.dtype,
    ) -> Tensor:
        a, shift, total = kernel.statistics(logits, target)
        ctx.kernel, ctx.psi, ctx.odds, ctx.reduction = kernel, psi, odds, reduction
        ctx.save_for_backward(logits, target, a, shift, total)
        ctx.save_for_forward(logits, target)
        value = odds.value(a, reduction)
        return value if value.dtype == dtype else value.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, a, shift, total = ctx.saved_tensors
        if plain.wants_plain(grad):
            with torch.enable_grad():
                loss = _differentiable(ctx, logits, target)
            (result,) = torch.autograd.grad(loss, logits, grad.to(loss.dtype), create_graph=True)
            return result, *[None] * 6
        upstream = ctx.odds.upstream(a, grad, ctx.reduction)
        return ctx.kernel.gradient(logits, target, shift, total, upstream), *[None] * 6

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        logits, target = ctx.saved_tensors
        a = plain.log_odds(logits, target)
        slope = ctx.odds.upstream(a, torch.ones_like(a), "none")
        return reduced((plain.gradient(logits, target, slope) * tangent).sum(1), ctx.reduction)


def fused_loss(
    logits: Tensor,
    target: Tensor,
    kernel: Kernel,
    psi: Psi,
    slope: Psi | None,
    key: Any,
    reduction: str,
    dtype: torch.dtype,
) -> Tensor | None:
    """Reduced ψ(a) of validated logits (N, C, …) and targets (N, …) in range, in ``dtype``.

    ``key`` is (ψ, ψ', arguments) where those are fixed, so that they may be compiled once. None
    where ψ' is known in no other way than by autograd.
    """
    odds: Odds | None = None
    if kernel is native and target.numel() <= _FEW:
        odds = native_odds(key, psi)
    if odds is None and slope is not None:
        odds = TorchOdds(psi, slope)
    if odds is None:
        return None
    return _FusedLoss.apply(logits, target, kernel, psi, odds, reduction, dtype)


def reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _differentiable(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
    return reduced(ctx.psi(plain.log_odds(logits, target)), ctx.reduction)

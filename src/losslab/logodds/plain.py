"""Log-odds as a chain of ordinary differentiable operations.

Every transform of PyTorch understands it, and ``torch.compile`` fuses it; run eagerly it would hold
several (N, C) buffers, so a kernel is used there instead. The row's top competitor m is taken from
everything before it is exponentiated, and m and log s are never added, so nothing cancels and
nothing overflows. m is clamped to the finite range first (``finite``): with that, infinite
competitors need no special case.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Log-odds by differentiable operations alone; ``logits`` (N, C, …), ``target`` (N, …)."""
    z = promote(logits)
    _, top, weights = _competitors(z, target)
    total = weights.sum(1)
    gap = z.gather(1, target.unsqueeze(1)).squeeze(1) - top.squeeze(1)
    alone = total == 0
    log_total = total.masked_fill(alone, 1).log()
    return torch.where(alone, gap.detach(), gap - log_total)


def all_log_odds(logits: Tensor) -> Tensor:
    """Every class's log-odds by differentiable operations; ``logits`` (N, C, …)."""
    z = promote(logits)
    if z.shape[1] == 0 or z.shape[0] == 0:
        return z.clone()
    # Every class but the top one has p ≤ 1/2, where log p − log(1 − p) loses nothing.
    top = z.detach().argmax(1, keepdim=True)
    is_top = torch.zeros_like(z, dtype=torch.bool).scatter(1, top, True)
    log_p = torch.log_softmax(z, 1)
    below = log_p.masked_fill(is_top, -torch.inf)
    a = log_p - torch.log1p(-below.exp())
    return torch.where(is_top, log_odds(z, top.squeeze(1)).unsqueeze(1), a)


def gradient(logits: Tensor, target: Tensor, grad: Tensor) -> Tensor:
    """g·(e_y − q) as operations that can be differentiated again."""
    is_target, _, weights = _competitors(promote(logits), target)
    total = weights.sum(1, keepdim=True)
    alone = total == 0
    q = weights / total.masked_fill(alone, 1)
    return (grad.unsqueeze(1).masked_fill(alone, 0) * (is_target.to(q.dtype) - q)).to(logits.dtype)


def _competitors(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the target is, the top of the others, and exp(z_j − m), 0 at the target."""
    is_target = _class_index(z) == target.unsqueeze(1)
    others = z.masked_fill(is_target, -torch.inf)
    top = others.detach().amax(1, keepdim=True)
    return is_target, top, weight(others, finite(top))


def weight(z: Tensor, shift: Tensor) -> Tensor:
    """exp(z − m) for a finite m ≥ z, and 1 for z = +inf.

    Not by ``clamp``: the top competitor lies at its bound in every row, where the slope of clamp is
    1 up to PyTorch 2.13 and 0 from 2.14 on.
    """
    gap = z - shift
    return gap.masked_fill(gap > 0, 0).exp()


def finite(x: Tensor) -> Tensor:
    """Infinities replaced by the largest finite numbers; NaN stays NaN."""
    limits = torch.finfo(x.dtype)
    return x.clamp(limits.min, limits.max)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half types, as ``cross_entropy`` does inside; otherwise unchanged."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def promote(x: Tensor) -> Tensor:
    """``x`` in the dtype that it is computed in."""
    return x.to(compute_dtype(x.dtype))


def being_transformed() -> bool:
    """Whether torch.compile, torch.func, a tracer or a dispatch mode works on the caller."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def wants_plain(*grads: Tensor | None) -> bool:
    """Whether a gradient will be differentiated, or is a batch of them (is_grads_batched).

    Asked in a backward pass: no kernel can do either.
    """
    if torch.is_grad_enabled() or being_transformed():
        return True
    batched = torch._C._functorch.is_legacy_batchedtensor
    return any(g is not None and batched(g) for g in grads)


def _class_index(logits: Tensor) -> Tensor:
    """0 … C−1 along dimension 1, shaped to broadcast against ``logits``."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    return classes.view(1, -1, *[1] * (logits.dim() - 2))

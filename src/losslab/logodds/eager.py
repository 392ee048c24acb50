"""Log-odds in plain PyTorch: two ways to the same numbers.

``composite`` is a chain of ordinary differentiable operations. Every transform of PyTorch
understands it, and ``torch.compile`` fuses it; run eagerly it would hold several (N, C) buffers.

``chunked`` is an autograd function that walks the rows in pieces that stay in the processor's
cache and keeps only two numbers a row for the backward pass, m = max_{j≠y} z_j and
s = Σ_{j≠y} exp(z_j − m). Its only (N, C) allocation is the gradient itself, which is why it beats
``F.cross_entropy`` in time and memory. Where a second derivative is asked for, it hands over to the
differentiable formula; under torch.compile and torch.func ``composite`` is chosen instead.

Both shift by m before anything is exponentiated and never add m and log s, so nothing cancels and
nothing overflows. m is clamped to the finite range first (``_finite``): with that, infinite
competitors need no special case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Elements in one piece of rows: 1 MB of float32 stays in a core's L2 cache. Other devices take much
# larger pieces, since there each operation costs a launch and only memory is to be bounded.
_CPU_PIECE = 1 << 18
_DEVICE_PIECE = 1 << 26


def composite(logits: Tensor, target: Tensor) -> Tensor:
    """Log-odds by differentiable operations alone; ``logits`` (N, C, …), ``target`` (N, …)."""
    z = promote(logits)
    _, top, weights = _competitors(z, target)
    total = weights.sum(1)
    gap = z.gather(1, target.unsqueeze(1)).squeeze(1) - top.squeeze(1)
    alone = total == 0
    log_total = total.masked_fill(alone, 1).log()
    return torch.where(alone, gap.detach(), gap - log_total)


def _competitors(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the target is, the top of the others, and exp(z_j − m), 0 at the target."""
    is_target = _class_index(z) == target.unsqueeze(1)
    others = z.masked_fill(is_target, -torch.inf)
    top = others.detach().amax(1, keepdim=True)
    # clamp: only +inf − max would exceed 0, and counts as one there; its slope at 0 is 1
    return is_target, top, (others - _finite(top)).clamp(max=0).exp()


class _ChunkedLogOdds(torch.autograd.Function):
    """Log-odds whose backward pass needs m and s of each row, and the logits again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        index = target.unsqueeze(1)
        pieces = _pieces(logits)
        if len(pieces) == 1:
            top, shift, total = _statistics(promote(logits).scatter(1, index, -torch.inf))
        else:
            top, shift, total = _statistics_by_piece(logits, index, pieces)
        ctx.save_for_backward(logits, target, shift, total)
        ctx.save_for_forward(logits, target)
        # no competitor: top = −inf and log 0 = −inf, so the log-odds are +inf (or NaN) by itself
        return logits.gather(1, index).sub(top).sub_(total.log()).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, target, shift, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_gradient(logits, target, grad), None
        return _gradient(logits, target, shift, total, grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        logits, target = ctx.saved_tensors
        unit = _differentiable_gradient(
            logits, target, torch.ones_like(target, dtype=tangent.dtype)
        )
        return (unit * tangent).sum(1).to(_compute_dtype(logits.dtype))


def chunked(logits: Tensor, target: Tensor) -> Tensor:
    """Log-odds in cache-sized pieces; ``logits`` (N, C, …), ``target`` (N, …)."""
    return _ChunkedLogOdds.apply(logits, target)


def _gradient(logits: Tensor, target: Tensor, shift: Tensor, total: Tensor, grad: Tensor) -> Tensor:
    """g·(e_y − q) written piece by piece into one new tensor of the logits' dtype."""
    alone = total == 0  # no competitor: a is +inf and stays there
    index, grad = target.unsqueeze(1), grad.unsqueeze(1).masked_fill(alone, 0)
    scale = grad / -total.masked_fill(alone, 1)
    same = logits.dtype == shift.dtype
    pieces = _pieces(logits)
    if same and len(pieces) == 1:
        q = (logits - shift).clamp_(max=0).exp_()
        return q.mul_(scale).scatter_(1, index, grad)
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if not same:
        buffer = logits.new_empty((pieces[0].stop, *logits.shape[1:]), dtype=shift.dtype)
    for rows in pieces:
        piece = result[rows] if same else buffer[: rows.stop - rows.start]
        torch.sub(logits[rows], shift[rows], out=piece)
        piece.clamp_(max=0).exp_().mul_(scale[rows]).scatter_(1, index[rows], grad[rows])
        if not same:
            result[rows] = piece
    return result


def _statistics(others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Top, the finite shift m, and s of each row of ``others``, which is overwritten."""
    top = others.amax(1, keepdim=True)
    shift = _finite(top)
    return top, shift, others.sub_(shift).clamp_(max=0).exp_().sum(1, keepdim=True)


def _statistics_by_piece(logits: Tensor, index: Tensor, pieces: list[slice]) -> tuple[Tensor, ...]:
    """The same, through one buffer of a piece's size."""
    dtype = _compute_dtype(logits.dtype)
    results = tuple(logits.new_empty(index.shape, dtype=dtype) for _ in range(3))
    buffer = logits.new_empty((pieces[0].stop, *logits.shape[1:]), dtype=dtype)
    for rows in pieces:
        others = buffer[: rows.stop - rows.start].copy_(logits[rows])
        found = _statistics(others.scatter_(1, index[rows], -torch.inf))
        for result, value in zip(results, found, strict=True):
            result[rows] = value
    return results


def _differentiable_gradient(logits: Tensor, target: Tensor, grad: Tensor) -> Tensor:
    """g·(e_y − q) as operations that can be differentiated again."""
    is_target, _, weights = _competitors(promote(logits), target)
    total = weights.sum(1, keepdim=True)
    alone = total == 0
    q = weights / total.masked_fill(alone, 1)
    return (grad.unsqueeze(1).masked_fill(alone, 0) * (is_target.to(q.dtype) - q)).to(logits.dtype)


def _finite(x: Tensor) -> Tensor:
    """Infinities replaced by the largest finite numbers; NaN stays NaN."""
    limits = torch.finfo(x.dtype)
    return x.clamp(limits.min, limits.max)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half types, as ``cross_entropy`` does inside; otherwise unchanged."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def promote(x: Tensor) -> Tensor:
    """``x`` in the dtype that it is computed in."""
    return x.to(_compute_dtype(x.dtype))


def _class_index(logits: Tensor) -> Tensor:
    """0 … C−1 along dimension 1, shaped to broadcast against ``logits``."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    return classes.view(1, -1, *[1] * (logits.dim() - 2))


def _pieces(logits: Tensor) -> list[slice]:
    """Runs of rows, each about one piece long; at least one, possibly empty."""
    n = logits.shape[0]
    piece = _CPU_PIECE if logits.device.type == "cpu" else _DEVICE_PIECE
    step = max(1, piece * n // max(1, logits.numel()))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)] or [slice(0, 0)]


def target_span(target: Tensor) -> tuple[int, int] | None:
    """(min, max) of the targets where a look is free: plain CPU tensors outside transforms."""
    if target.device.type != "cpu" or type(target) is not Tensor or target.numel() == 0:
        return None
    if being_transformed():
        return None
    low, high = torch.aminmax(target)
    return int(low), int(high)


def being_transformed() -> bool:
    """Whether torch.compile traces or torch.func transforms the caller."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()

"""The kernel in plain PyTorch, for every device: rows in pieces that stay in the processor's cache.

Its only (N, C) allocation is the gradient itself, which is why it beats ``F.cross_entropy`` in time
and memory on large batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losslab.logodds.plain import compute_dtype, finite, promote

# Elements in one piece of rows: 1 MB of float32 stays in a core's L2 cache. Other devices take much
# larger pieces, since there each operation costs a launch and only memory is to be bounded.
_CPU_PIECE = 1 << 18
_DEVICE_PIECE = 1 << 26

name = "eager"


def statistics(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a, m, s) of each row."""
    index = target.unsqueeze(1)
    pieces = row_pieces(logits)
    if len(pieces) == 1:
        top, shift, total = _statistics(promote(logits).scatter(1, index, -torch.inf))
    else:
        top, shift, total = _statistics_by_piece(logits, index, pieces)
    # no competitor: top = −inf and log 0 = −inf, so the log-odds are +inf (or NaN) by itself
    log_odds = logits.gather(1, index).sub(top).sub_(total.log())
    return log_odds.squeeze(1), shift.squeeze(1), total.squeeze(1)


def gradient(
    logits: Tensor,
    target: Tensor,
    shift: Tensor,
    total: Tensor,
    grad: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """g·(e_y − q) written piece by piece into one tensor of the logits' dtype."""
    alone = total == 0  # no competitor: a is +inf and stays there
    grad = grad.masked_fill(alone, 0).unsqueeze(1)
    scale = grad / -total.masked_fill(alone, 1).unsqueeze(1)
    index, shift = target.unsqueeze(1), shift.unsqueeze(1)
    same = logits.dtype == shift.dtype
    pieces = row_pieces(logits)
    if same and len(pieces) == 1 and out is None:
        q = (logits - shift).clamp_(max=0).exp_()
        return q.mul_(scale).scatter_(1, index, grad)
    if out is None:
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if not same:
        buffer = logits.new_empty((pieces[0].stop, *logits.shape[1:]), dtype=shift.dtype)
    for rows in pieces:
        piece = out[rows] if same else buffer[: rows.stop - rows.start]
        torch.sub(logits[rows], shift[rows], out=piece)
        piece.clamp_(max=0).exp_().mul_(scale[rows]).scatter_(1, index[rows], grad[rows])
        if not same:
            out[rows] = piece
    return out


def _statistics(others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Top, the finite shift m, and s of each row of ``others``, which is overwritten."""
    top = others.amax(1, keepdim=True)
    shift = finite(top)
    return top, shift, others.sub_(shift).clamp_(max=0).exp_().sum(1, keepdim=True)


def _statistics_by_piece(logits: Tensor, index: Tensor, pieces: list[slice]) -> tuple[Tensor, ...]:
    """The same, through one buffer of a piece's size."""
    dtype = compute_dtype(logits.dtype)
    results = tuple(logits.new_empty(index.shape, dtype=dtype) for _ in range(3))
    buffer = logits.new_empty((pieces[0].stop, *logits.shape[1:]), dtype=dtype)
    for rows in pieces:
        others = buffer[: rows.stop - rows.start].copy_(logits[rows])
        found = _statistics(others.scatter_(1, index[rows], -torch.inf))
        for result, value in zip(results, found, strict=True):
            result[rows] = value
    return results


def row_pieces(logits: Tensor) -> list[slice]:
    """Runs of rows, each about one piece long; at least one, possibly empty."""
    n = logits.shape[0]
    piece = _CPU_PIECE if logits.device.type == "cpu" else _DEVICE_PIECE
    step = max(1, piece * n // max(1, logits.numel()))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)] or [slice(0, 0)]

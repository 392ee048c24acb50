"""The definition in float64, by the book: slow, obvious, and what all else is held to."""

from __future__ import annotations

import torch
from torch import Tensor


def target_log_odds_reference(logits: Tensor, target: Tensor) -> Tensor:
    """a_i = z_iy − log Σ_{j≠y} exp z_ij in float64, one row at a time.

    ``logits`` is (N, C), ``target`` (N,) class indices. Not differentiable, never fast.
    """
    rows = logits.detach().to(torch.float64)
    result = torch.empty(rows.shape[0], dtype=torch.float64)
    for i, (row, y) in enumerate(zip(rows, target.tolist(), strict=True)):
        others = torch.cat([row[:y], row[y + 1 :]])
        if others.numel() == 0:  # one class only: nothing to lose against
            result[i] = torch.inf if not row[y].isnan() else torch.nan
            continue
        top = others.max()
        if top.isinf():  # all -inf, or a +inf among them: the shift would make NaN
            result[i] = row[y] - top
        else:
            result[i] = (row[y] - top) - (others - top).exp().sum().log()
    return result

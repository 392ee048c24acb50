"""Rows of tokens of different lengths, padded to one: computed without most of the padding."""

from __future__ import annotations

import torch
from torch import Tensor


def lengths_of(kept: Tensor) -> Tensor:
    """How far each row of ``kept`` ``(rows, length)`` reaches: its last true position, plus one.

    A row of nothing but padding has length 1.

    Example:
        >>> lengths_of(torch.tensor([[True, False, True, False], [False] * 4]))
        tensor([3, 1])
    """
    positions = torch.arange(1, kept.shape[1] + 1, device=kept.device)
    return (kept * positions).amax(1).clamp_min(1)


def trimmed(rows: Tensor, lengths: Tensor) -> Tensor:
    """Rows ``(n, …, length)`` without the end that is padding in all of them."""
    return rows[..., : int(lengths.max())]

"""Random changes to a batch of images that leave the class alone."""

from __future__ import annotations

import torch
from torch import Tensor


def flip_and_shift(inputs: Tensor, generator: torch.Generator, reach: int = 4) -> Tensor:
    """Each image mirrored left-right with probability 1/2 and shifted by up to ``reach`` pixels.

    The usual flip and padded crop. Pixels that a shift brings in repeat the edge. Flips and shifts
    come from ``generator`` alone, the same number of draws for every batch of a size, so that runs
    with equal generators see equal images whatever their loss.

    Args:
        inputs: Images ``(batch, channels, height, width)`` of any dtype and device.
        generator: A CPU generator.
        reach: Largest shift along each axis, in pixels.

    Returns:
        Images of the same shape, dtype and device.
    """
    batch, _, height, width = inputs.shape
    shifts = torch.randint(-reach, reach + 1, (2, batch, 1), generator=generator)
    mirrored = torch.rand((batch, 1), generator=generator) < 0.5
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)
    columns = torch.where(mirrored, width - 1 - columns, columns)
    rows, columns = rows.to(inputs.device), columns.to(inputs.device)
    examples = torch.arange(batch, device=inputs.device)
    picked = inputs[examples[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # from (batch, height, width, channels)

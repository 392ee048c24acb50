"""Random changes to a batch of images that leave the class alone.

All randomness comes from the generator that is given, the same number of draws for every batch of a
size, so that runs with equal generators see equal images whatever their loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def flip_and_shift(inputs: Tensor, generator: torch.Generator, reach: int = 4) -> Tensor:
    """Each image mirrored left-right with probability 1/2 and shifted by up to ``reach`` pixels.

    Pixels that a shift brings in repeat the edge.

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
    return _picked(inputs, rows, columns)


def crop_and_flip(inputs: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image cut at random out of itself in a black frame, mirrored with probability 1/2.

    What He et al. (2016) and nearly everyone since do to CIFAR: ``padding`` pixels of zeros on each
    side, a random crop of the old size, a random left-right flip.

    Args:
        inputs: Images ``(batch, channels, height, width)`` of any dtype and device, black being 0.
        generator: A CPU generator.
        padding: Width of the border, in pixels.

    Returns:
        Images of the same shape, dtype and device.
    """
    batch, _, height, width = inputs.shape
    corners = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator)
    mirrored = torch.rand((batch, 1), generator=generator) < 0.5
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(mirrored, width - 1 - columns, columns)
    bordered = pad(inputs, (padding, padding, padding, padding))
    return _picked(bordered, torch.arange(height) + corners[0], columns + corners[1])


def _picked(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of each image the pixels at its own ``rows`` (batch, height) and ``columns`` (batch, width).

    The pixels lie channels-last in memory, as the convolutions of the built-in models like them.
    """
    rows, columns = rows.to(images.device), columns.to(images.device)
    examples = torch.arange(len(images), device=images.device)
    picked = images[examples[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # from (batch, height, width, channels)

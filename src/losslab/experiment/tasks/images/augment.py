"""Random changes to a batch of images that leave the class alone.

All randomness comes from the generator that is given, the same number of draws for every batch of a
size, so that runs with equal generators see equal images whatever their loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from losslab.errors import InputError, nearest

Change = Callable[[Tensor, torch.Generator], Tensor]
TRIES = 10  # for a rectangle that fits into the image


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


def rotate(inputs: Tensor, generator: torch.Generator, degrees: float = 15.0) -> Tensor:
    """Each image turned about its middle by an angle in ±``degrees``; what comes in is black.

    Pixels are picked, not mixed, as torchvision's RandomRotation does unless told otherwise.
    """
    angles = (torch.rand(len(inputs), generator=generator) * 2 - 1) * math.radians(degrees)
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros(len(inputs))
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).reshape(-1, 2, 3)
    grid = affine_grid(matrix.to(inputs.device), list(inputs.shape), align_corners=False)
    turned = grid_sample(inputs.float(), grid, "nearest", "zeros", align_corners=False)
    return turned.to(inputs.dtype)


def erase(
    inputs: Tensor,
    generator: torch.Generator,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: float = 0.3,
) -> Tensor:
    """Random Erasing (Zhong et al. 2017): a rectangle of some images filled with noise in 0 … 255.

    Args:
        inputs: Images ``(batch, channels, height, width)`` of pixels in 0 … 255.
        generator: A CPU generator.
        probability: Of an image to be touched.
        area: Smallest and largest share of the image, theirs for CIFAR.
        aspect: Least height over width; the greatest is its inverse.
    """
    batch, _, height, width = inputs.shape
    draw = partial(torch.rand, generator=generator)
    shares = area[0] + (area[1] - area[0]) * draw(TRIES, batch)
    aspects = aspect + (1 / aspect - aspect) * draw(TRIES, batch)
    heights = (shares * height * width * aspects).sqrt().round()
    widths = (shares * height * width / aspects).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(0), torch.arange(batch)  # of the rectangles that fit
    tall, wide = heights[first], widths[first]
    touched = (draw(batch) < probability) & fits.any(0)
    top = (draw(batch) * (height - tall + 1)).floor()
    left = (draw(batch) * (width - wide + 1)).floor()
    noise = torch.randint(0, 256, inputs.shape, generator=generator)
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None]) & touched[:, None]
    inside_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None].to(inputs.device)
    return torch.where(inside, noise.to(inputs), inputs)


def jitter(inputs: Tensor, generator: torch.Generator, reach: float = 0.4) -> Tensor:
    """Brightness, contrast and saturation of each image times a number in 1 ± ``reach``, in turn.

    Args:
        inputs: RGB images ``(batch, 3, height, width)`` of pixels in 0 … 255.
        generator: A CPU generator.
        reach: How far each of the three factors strays from 1.
    """
    factors = 1 + reach * (2 * torch.rand((3, len(inputs), 1, 1, 1), generator=generator) - 1)
    brightness, contrast, saturation = factors.to(inputs.device)
    images = (inputs.float() * brightness).clamp(0, 255)
    images = _towards(grey(images).mean((1, 2, 3), keepdim=True), images, contrast)
    images = _towards(grey(images), images, saturation)
    return images if inputs.is_floating_point() else images.round().to(inputs.dtype)


def grey(images: Tensor) -> Tensor:
    """The brightness of each pixel ``(batch, 1, height, width)``, as the eye weighs colours."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    return (images * weights.reshape(3, 1, 1)).sum(1, keepdim=True)


def _towards(plain: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    return (plain + factor * (images - plain)).clamp(0, 255)


CHANGES: dict[str, Change] = {
    "crop-flip": crop_and_flip,
    "shift-flip": flip_and_shift,
    "rotation": rotate,
    "jitter": jitter,
    "erasing": erase,
}


def in_turn(inputs: Tensor, generator: torch.Generator, changes: Sequence[str]) -> Tensor:
    """Some of `CHANGES`, one after the other."""
    for name in changes:
        inputs = CHANGES[name](inputs, generator)
    return inputs


def chosen(names: Sequence[str] | None, default: Change) -> Change | None:
    """The changes of these names; ``default`` where None was said, nothing where no names were."""
    if names is None:
        return default
    for name in names:
        if name not in CHANGES:
            raise InputError(
                f"augment: there is no {name!r}.{nearest(str(name), CHANGES)} "
                f"Known: {', '.join(CHANGES)}."
            )
    return partial(in_turn, changes=tuple(names)) if names else None

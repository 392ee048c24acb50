"""Pictures of discs, squares and triangles on noise, with their boxes: a detection set from a seed.

Colour, size and place say nothing of the class, so a detector has to look at the outline.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from losslab.experiment.tasks.detection.boxes import Objects

NAMES = ("disc", "square", "triangle")
MOST = 4  # objects in a picture
SMALLEST, LARGEST = 10, 28  # pixels, in a picture of 64


def make_shapes(count: int, size: int, seed: int) -> tuple[Tensor, list[Objects]]:
    """Images uint8 ``(count, 3, size, size)``, and the one to four objects in each.

    The same seed makes the same pictures; a larger count begins with those of a smaller one.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = [_picture(size, generator) for _ in range(count)]
    return torch.stack([image for image, _ in pictures]), [objects for _, objects in pictures]


def _picture(size: int, generator: torch.Generator) -> tuple[Tensor, Objects]:
    """Noise, and on it as many shapes of those that were drawn as have room."""
    shade = _between(40, 216, generator)
    image = shade + 20 * torch.randn(3, size, size, generator=generator)
    wanted = int(_between(1, MOST + 1, generator))
    boxes: list[list[float]] = []
    labels: list[int] = []
    for _ in range(wanted):
        label = int(_between(0, len(NAMES), generator))
        side = round(_between(SMALLEST, LARGEST + 1, generator) * size / 64)
        left = int(_between(0, size - side + 1, generator))
        top = int(_between(0, size - side + 1, generator))
        colour = 255 * torch.rand(3, generator=generator)
        box = [float(edge) for edge in (left, top, left + side, top + side)]
        if any(_near(box, other) for other in boxes):
            continue
        contrast = torch.where((colour - shade).abs() < 60, (colour + 128) % 256, colour)
        inside = _outline(label, side)
        place = image[:, top : top + side, left : left + side]
        place[:, inside] = contrast[:, None] + 10 * torch.randn(
            3, int(inside.sum()), generator=generator
        )
        boxes.append(box)
        labels.append(label)
    found = torch.tensor(labels)
    objects = Objects(torch.tensor(boxes), found, torch.zeros(len(labels), dtype=torch.bool))
    return image.clamp(0, 255).to(torch.uint8), objects


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _near(box: list[float], other: list[float]) -> bool:
    """Whether the boxes share a pixel."""
    apart = box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
    return not apart


def _outline(label: int, side: int) -> Tensor:
    """Which pixels of a square the shape covers; it touches all four sides."""
    middle = torch.arange(side) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    if NAMES[label] == "disc":
        return (x - side / 2) ** 2 + (y - side / 2) ** 2 <= (side / 2) ** 2
    if NAMES[label] == "square":
        return torch.ones(side, side, dtype=torch.bool)
    return (x - side / 2).abs() <= (math.floor(side / 2) + 0.5) * (y + 0.5) / side

"""Boxes: anchors, which object each of them stands for, what is regressed, and suppression.

A box is ``(x1, y1, x2, y2)`` in pixels. Everything is as in torchvision's RetinaNet, so that its
networks fit, but needs nothing of it: images here have one size, and so all have the same anchors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

RATIOS = (0.5, 1.0, 2.0)  # height / width
OCTAVES = 3  # anchor sizes between one level and the next
BACKGROUND, IGNORED = -1, -2
_FOREGROUND, _BACKGROUND = 0.5, 0.4  # overlap from which, and below which, an anchor is one
_WIDEST = math.log(1000 / 16)  # a box is at most so many times its anchor, as a logarithm


@dataclass(frozen=True)
class Objects:
    """What is to be found in one image.

    Args:
        boxes: ``(M, 4)`` in pixels.
        labels: ``(M,)`` class numbers.
        crowd: ``(M,)`` whether the box holds many of its class; finding one there is neither right
            nor wrong.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor


def anchors(size: int, strides: Sequence[int], scale: float) -> Tensor:
    """The anchors of an image, ``(A, 4)``: by level, row, column, ratio and size.

    Args:
        size: Side of the image.
        strides: Pixels from one cell of a level's grid to the next.
        scale: Side of a level's smallest anchors over its stride; 4 in RetinaNet.

    Example:
        >>> anchors(640, (8, 16, 32, 64, 128), 4).shape
        torch.Size([76725, 4])
    """
    return torch.cat([_level(size, stride, scale * stride) for stride in strides])


def _level(size: int, stride: int, smallest: float) -> Tensor:
    sides = torch.tensor([float(int(smallest * 2 ** (k / OCTAVES))) for k in range(OCTAVES)])
    tall = torch.tensor(RATIOS).sqrt()
    heights, widths = (tall[:, None] * sides).flatten(), (sides / tall[:, None]).flatten()
    cell = (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()
    places = torch.arange(math.ceil(size / stride)) * float(stride)
    y, x = torch.meshgrid(places, places, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (corners + cell).reshape(-1, 4)


def overlaps(left: Tensor, right: Tensor) -> Tensor:
    """Intersection over union of every pair, ``(L, R)``."""
    low = torch.maximum(left[:, None, :2], right[:, :2])
    high = torch.minimum(left[:, None, 2:], right[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    return shared / (area(left)[:, None] + area(right) - shared)


def area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)


def matched(boxes: Tensor, places: Tensor) -> Tensor:
    """The number of the box that each anchor stands for, `BACKGROUND` or `IGNORED`.

    An anchor stands for the box it overlaps most if that is at least 0.5, and for none below 0.4;
    between them it is ignored. The anchors that overlap a box more than all others do stand for
    what they overlap most, however little that is, so that no object goes without. Only a box that
    lies outside of the image, as in faulty annotations, may have none; in torchvision all anchors
    without an object stand for it.
    """
    if not len(boxes):
        return torch.full((len(places),), BACKGROUND)
    shared = overlaps(boxes, places)
    most, number = shared.max(dim=0)
    chosen = torch.where(most >= _FOREGROUND, number, IGNORED)
    chosen[most < _BACKGROUND] = BACKGROUND
    best = shared.amax(dim=1, keepdim=True)
    best_of_a_box = ((shared == best) & (best > 0)).any(dim=0)
    return torch.where(best_of_a_box, number, chosen)


def encoded(boxes: Tensor, places: Tensor) -> Tensor:
    """Boxes as seen from their anchors: shift of the centre in sides, logarithm of the sides."""
    centre, sides = _centre_and_sides(boxes)
    origin, unit = _centre_and_sides(places)
    return torch.cat([(centre - origin) / unit, (sides / unit).log()], dim=-1)


def decoded(offsets: Tensor, places: Tensor) -> Tensor:
    """The boxes again; the inverse of `encoded`."""
    origin, unit = _centre_and_sides(places)
    centre = origin + offsets[..., :2] * unit
    half = unit * offsets[..., 2:].clamp(max=_WIDEST).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def _centre_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def anchor_targets(boxes: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """What each anchor should answer, ``(A, 5)``: its class and its box as `encoded`.

    In place of a class it says `BACKGROUND` or `IGNORED`; the box is zeros then.
    """
    target = torch.zeros(len(places), 5)
    number = matched(boxes, places)
    here = number >= 0
    target[:, 0] = number
    if len(boxes):
        target[here, 0] = labels[number[here]].float()
        target[here, 1:] = encoded(boxes[number[here]], places[here])
    return target


def suppressed(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Which boxes to keep, best first: none that overlaps a kept one by more than ``overlap``."""
    order = scores.argsort(descending=True, stable=True)
    hidden_by = (overlaps(boxes[order], boxes[order]) > overlap).cpu().numpy()
    gone = numpy.zeros(len(order), dtype=bool)
    kept = []
    for place in range(len(order)):
        if not gone[place]:
            kept.append(place)
            gone |= hidden_by[place]
    return order[kept]

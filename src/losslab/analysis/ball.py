"""What an input may be changed to: no further than ε, and inside the box, to the last bit."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from torch import Tensor

from losslab.errors import InputError, nearest

NORMS = ("linf", "l2")
Limits = tuple[float, float]
Box = Limits | str | None
_ENDS = ("low", "high")
_SLACK = 1e-5  # of the box's width: the rounding of a normalisation in float32
_HAIR = 1 - 1e-12  # so that the sum of squares in a norm does not round to beyond the ball


class Ball:
    """The ball of radius ε around each of some inputs, cut by the box.

    Args:
        norm: ``"linf"`` or ``"l2"``.
        epsilon: In units of the box's width; in the inputs' units if there is no box.
        inputs: (N, …) floats, or uint8.
        box: See `read_box`.

    Raises:
        InputError: If an input lies outside the box, by more than a rounding.
    """

    def __init__(self, norm: str, epsilon: float, inputs: Tensor, box: Box) -> None:
        self.norm, self.limits = norm, limits_of(box, inputs)
        self.clean = as_floats(inputs)
        check_inside(self.clean, self.limits)
        # Changes are computed in float64, so that no step is lost to rounding.
        self.wide = torch.float32 if inputs.device.type == "mps" else torch.float64
        self.centre = self.clean.to(self.wide)
        self.width = 1.0 if self.limits is None else self.limits[1] - self.limits[0]
        self.radius = epsilon * self.width
        self.low = self.high = torch.empty(0)
        if self.limits is not None:
            middle = self.clean.new_tensor(0.5 * sum(self.limits))
            ends = torch.tensor(self.limits, dtype=self.wide, device=inputs.device)
            low, high = _rounded_towards(middle, ends, (ends - middle).abs())
            # An input that a rounding has put beyond an end may stay where it is.
            self.low, self.high = self.clean.clamp(max=low), self.clean.clamp(min=high)

    def only(self, rows: Tensor) -> Ball:
        """The balls around some of the inputs."""
        chosen = copy(self)
        for name in ("clean", "centre") if self.limits is None else ("clean", "centre", *_ENDS):
            setattr(chosen, name, getattr(self, name)[rows])
        return chosen

    def random(self, generator: torch.Generator) -> Tensor:
        """A uniformly random point of each ball, brought into the box."""
        shape = self.clean.shape
        draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        if self.norm == "linf":
            change = torch.rand(shape, **draw) * 2 - 1
        else:
            change = torch.randn(shape, **draw)
            share = torch.rand(shape[0], **draw) ** (1 / shape[1:].numel())
            change *= column(share / length(change), change)
        return self.place(self.radius * change.to(self.centre))

    def step(self, at: Tensor, uphill: Tensor, size: float, floor: float) -> Tensor:
        """From ``at`` a step of length ``size`` uphill."""
        uphill = uphill.to(self.wide)
        if self.norm == "linf":
            direction = uphill.sign()
        else:
            peak = uphill.abs().flatten(1).amax(1)
            peak = torch.where(peak == 0, 1, peak)
            uphill = uphill / column(peak, uphill)  # its length is 0 or at least 1
            direction = uphill / column((length(uphill) + floor / peak).clamp(min=1), uphill)
        return self.place(at.to(self.wide) - self.centre + size * direction)

    def place(self, change: Tensor) -> Tensor:
        """The inputs with as much of the ``change`` as they may have."""
        if self.norm == "linf":
            change = change.clamp(-self.radius, self.radius)
        else:
            far, most = length(change), _HAIR * self.radius
            change = change * column(torch.where(far > most, most / far, 1), change)
        placed = _rounded_towards(self.clean, self.centre + change, change.abs())
        return placed if self.limits is None else placed.clamp(self.low, self.high)


def _rounded_towards(centre: Tensor, values: Tensor, most: Tensor) -> Tensor:
    """``values`` in the dtype of ``centre``, no further from it than ``most``."""
    near = values.to(centre.dtype)
    beyond = (near.to(values.dtype) - centre.to(values.dtype)).abs() > most
    return torch.where(beyond, torch.nextafter(near, centre), near)


def length(change: Tensor) -> Tensor:
    """The L2 norm of every example."""
    return change.flatten(1).norm(dim=1)


def column(numbers: Tensor, like: Tensor) -> Tensor:
    """One number an example, to be multiplied with ``like``."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def as_floats(inputs: Tensor) -> Tensor:
    """Inputs that can be changed a little.

    Raises:
        InputError: For integers other than uint8, and for half precision.
    """
    if inputs.dtype == torch.uint8 and inputs.ndim > 1:
        return inputs.float()
    if inputs.dtype not in (torch.float32, torch.float64) or inputs.ndim < 2:
        raise InputError(
            "Expected inputs of shape (examples, …) in float32, float64 or uint8, which can be "
            f"changed a little, but got {inputs.dtype} of shape {tuple(inputs.shape)}; attack what "
            "the model computes from them (an embedding) instead, in float32."
        )
    return inputs


def read_box(box: Any) -> Box:
    """A box in the one way of writing it: ``(low, high)``, what an input's numbers may be;
    ``"image"``, (0, 255) for uint8 and (0, 1) for floats; or None (also ``"none"``), any number.
    """
    if box is None or box == "none":
        return None
    if isinstance(box, str):
        return one_of("box", box, ("image", "none"))
    ends = tuple(box) if isinstance(box, (tuple, list)) else ()
    if len(ends) != 2 or not all(isinstance(end, (int, float)) for end in ends):
        raise InputError(f"Expected box to be (low, high), 'image' or None, but got {box!r}.")
    if not -math.inf < ends[0] < ends[1] < math.inf:
        raise InputError(
            f"Expected box to be two finite numbers, the lower first, but got {box!r}; None means "
            "that an input may be any number."
        )
    return float(ends[0]), float(ends[1])


def limits_of(box: Box, inputs: Tensor) -> Limits | None:
    """The two ends of the box for these inputs, as they came."""
    box = read_box(box)
    if isinstance(box, str):
        return (0.0, 255.0) if inputs.dtype == torch.uint8 else (0.0, 1.0)
    return box


def check_inside(inputs: Tensor, limits: Limits | None) -> None:
    """Raise `InputError` for inputs that are not finite, or outside by more than a rounding."""
    broken = int((~inputs.isfinite()).sum())
    if broken:
        raise InputError(f"Expected finite inputs, but {broken} of their numbers are not.")
    if limits is None:
        return
    low, high = limits
    slack = _SLACK * (high - low)
    outside = ((inputs < low - slack) | (inputs > high + slack)).flatten(1).any(1)
    if outside.any():
        raise InputError(
            f"Expected inputs inside the box [{low:g}, {high:g}], but {int(outside.sum())} of "
            f"{len(inputs)} are not: they lie in [{inputs.min():g}, {inputs.max():g}]. Set box to "
            "what an input's numbers may be, or to None if they may be any."
        )


def positive(name: str, value: Any) -> None:
    """Raise `InputError` unless ``value`` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"Expected {name} to be a finite number above 0, but got {value!r}.")


def one_of(name: str, value: Any, known: Any) -> str:
    """``value``, if it is one of the ``known`` names."""
    if value not in known:
        raise InputError(
            f"Expected {name} to be one of {', '.join(known)}, but got {value!r}."
            f"{nearest(str(value), known)}"
        )
    return str(value)

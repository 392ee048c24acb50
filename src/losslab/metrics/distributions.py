"""How numbers are spread: quantiles, a summary, a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.metrics.checks import finite_values, whole

LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


class Distribution(NamedTuple):
    """One number an example, summed up in plain numbers.

    Args:
        examples: How many.
        mean: Their mean.
        share_negative: The share that lies below 0; an exact 0 is not negative.
        levels: Which quantiles are given: 0 is the smallest value, 0.5 the median, 1 the largest.
        quantiles: Their values, interpolated linearly between neighbours (NumPy's default).
    """

    examples: int
    mean: float
    share_negative: float
    levels: tuple[float, ...]
    quantiles: tuple[float, ...]


class Histogram(NamedTuple):
    """Counts in bins of equal width; a value on an inner edge belongs to the bin below."""

    edges: Tensor
    counts: Tensor


def distribution(values: Tensor, levels: Sequence[float] = LEVELS) -> Distribution:
    """Sum up one number an example, such as `margin` or `log_odds`.

    Raises:
        InputError: For an empty tensor, numbers that are not finite, levels outside [0, 1].

    Example:
        >>> found = distribution(torch.tensor([-1.0, 0.0, 4.0]), levels=[0.5])
        >>> found.mean, found.quantiles
        (1.0, (0.0,))
    """
    values = finite_values(values, "values").detach()
    levels = tuple(float(level) for level in levels)
    if not all(0 <= level <= 1 for level in levels):
        raise InputError(f"Expected the levels of quantiles to lie in [0, 1], but got {levels}.")
    at = torch.tensor(levels, dtype=torch.float64).to(values) * (len(values) - 1)
    low = at.floor().long()
    return Distribution(
        len(values),
        values.mean().item(),
        int((values < 0).sum()) / len(values),
        levels,
        tuple(_between(values.sort().values, low, at - low).tolist()),
    )


def equal_masses(values: Tensor, bins: int) -> Tensor:
    """The edges ``(…, bins + 1)`` of bins that hold equal shares of ``values`` ``(…, N)``."""
    # i (N − 1)/bins in whole numbers, so that an edge that is one of the values is exactly it
    steps = torch.arange(bins + 1, device=values.device) * (values.shape[-1] - 1)
    low = steps.div(bins, rounding_mode="floor")
    return _between(values.sort(dim=-1).values, low, (steps % bins).to(values) / bins)


def histogram(values: Tensor, bins: int = 50, *, beside: Tensor | None = None) -> Histogram:
    """Count ``values`` in bins of equal width over their range.

    Args:
        values: ``(N,)``, finite.
        bins: How many.
        beside: Numbers that are shown in the same picture: the bins cover theirs too.
    """
    values = finite_values(values, "values").detach()
    whole(bins, "bins")
    spread = values if beside is None else torch.cat([values, finite_values(beside, "beside")])
    low, high = (edge.item() for edge in spread.aminmax())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, bins + 1, dtype=values.dtype, device=values.device)
    counts = torch.bincount(torch.bucketize(values, edges[1:-1]), minlength=bins)
    return Histogram(edges, counts)


def _between(ordered: Tensor, low: Tensor, part: Tensor) -> Tensor:
    """The values ``part`` of the way from place ``low`` to the next."""
    high = (low + 1).clamp(max=ordered.shape[-1] - 1)
    return torch.lerp(ordered[..., low], ordered[..., high], part)

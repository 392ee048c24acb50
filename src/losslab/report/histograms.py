"""Histograms of several runs brought together: shares below x, and densities.

Every run has bins of its own, over its own range; counts are taken to lie evenly inside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Stored = Mapping[str, Any] | None
"""``edges`` and ``counts``; what lacks them, or has nothing to count, is passed over."""

_TAIL = 0.001
_POINTS = 161


@dataclass(frozen=True)
class Below:
    """The share of the examples below x, each run counting the same."""

    x: Array
    share: Array


def below(
    histograms: Sequence[Mapping[str, Any] | None], *, counts: str = "counts"
) -> Below | None:
    """The cumulated histograms of several runs, averaged; None where there are none."""
    parts = list(_sound(histograms, counts))
    if not parts:
        return None
    fine = np.unique(np.concatenate([edges for edges, _ in parts]))
    shares = [np.interp(fine, edges, cumulated) for edges, cumulated in parts]
    return Below(fine, np.mean(shares, axis=0))


def span(*shares: Below) -> tuple[float, float]:
    """From where to where all but the outermost thousandth lies, of each."""
    ends = [np.interp([_TAIL, 1 - _TAIL], one.share, one.x) for one in shares]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def resampled(share: Below, low: float, high: float) -> Below:
    """The same between two ends, at evenly spaced points."""
    x = np.linspace(low, high, _POINTS)
    return Below(x, np.interp(x, share.x, share.share))


def density(share: Below, edges: Array) -> Array:
    """The density between the edges."""
    return np.diff(np.interp(edges, share.x, share.share)) / np.diff(edges)


def _sound(
    histograms: Sequence[Mapping[str, Any] | None], counts: str
) -> Iterator[tuple[Array, Array]]:
    for stored in histograms:
        if not isinstance(stored, Mapping) or not {"edges", counts} <= stored.keys():
            continue
        edges = np.array(stored["edges"], dtype=np.float64)
        cumulated = np.cumsum(np.array([0.0, *stored[counts]], dtype=np.float64))
        rising = np.isfinite(edges).all() and (np.diff(edges) > 0).all()
        if rising and len(edges) == len(cumulated) and cumulated[-1] > 0:
            yield edges, cumulated / cumulated[-1]

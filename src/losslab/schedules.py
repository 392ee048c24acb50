"""Schedules: the fraction of training done, in [0, 1], to a value.

A schedule stands where a loss's parameter stands, ``MixedLoss(focus=phases(0, 0.5))``, and the
training loop calls ``loss.set_progress(step / total_steps)``. The value lives in a buffer of the
module, so changing it recompiles nothing and ``state_dict`` carries it. In a spec string they are
written the same: ``mixed(focus=phases(0, 0.1, 0.2, 0.3, 0.4, 0.5))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from losslab.errors import InputError

__all__ = ["Schedule", "deferred", "deferred_weights", "phases", "ramp", "switch"]


class Schedule:
    """A value that depends on the fraction of training done; subclass and define ``__call__``."""

    def __call__(self, progress: float) -> float:
        raise NotImplementedError

    def values(self) -> Sequence[float]:
        """Values that must lie in the parameter's domain; the extremes are enough."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class _Phases(Schedule):
    levels: tuple[float, ...]

    def __call__(self, progress: float) -> float:
        return self.levels[min(int(_fraction(progress) * len(self.levels)), len(self.levels) - 1)]

    def values(self) -> Sequence[float]:
        return self.levels

    def __repr__(self) -> str:
        return f"phases({', '.join(f'{v:g}' for v in self.levels)})"


@dataclass(frozen=True, repr=False)
class _Switch(Schedule):
    before: float
    after: float
    at: float

    def __call__(self, progress: float) -> float:
        return self.after if _fraction(progress) >= self.at else self.before

    def values(self) -> Sequence[float]:
        return (self.before, self.after)

    def __repr__(self) -> str:
        return f"switch({self.before:g}, {self.after:g}, at={self.at:g})"


@dataclass(frozen=True, repr=False)
class _Ramp(Schedule):
    start: float
    end: float
    begin: float
    finish: float

    def __call__(self, progress: float) -> float:
        done = (_fraction(progress) - self.begin) / (self.finish - self.begin)
        return self.start + (self.end - self.start) * min(max(done, 0.0), 1.0)

    def values(self) -> Sequence[float]:
        return (self.start, self.end)

    def __repr__(self) -> str:
        return f"ramp({self.start:g}, {self.end:g}, begin={self.begin:g}, finish={self.finish:g})"


def phases(*values: float) -> Schedule:
    """Equal parts of training, one value each.

    ``phases(0, 0.1, 0.2, 0.3, 0.4, 0.5)`` is the gradual focus of Battash et al. ("F=0-0.5").

    Example:
        >>> from losslab.schedules import phases
        >>> [phases(0, 0.25, 0.5)(t) for t in (0.0, 0.5, 1.0)]
        [0.0, 0.25, 0.5]
    """
    if not values:
        raise InputError("phases needs at least one value, such as phases(0, 0.5); got none.")
    return _Phases(tuple(float(v) for v in values))


def switch(before: float, after: float, at: float = 0.95) -> Schedule:
    """One value until the fraction ``at`` of training is done, another from there on.

    ``switch(0, 0.5)`` is the focus schedule "F=0,0.5" of Battash et al., which drops the
    cross-entropy for the last 5 % of training.
    """
    return _Switch(float(before), float(after), _unit("switch", "at", at))


def deferred(value: float, start: float) -> Schedule:
    """0 until the fraction ``start`` of training is done, then ``value``: a bonus that joins late.

    Zhao et al. start the bonus late on graphs: their code at epoch 25 on PROTEINS, 130 on NCI1.
    """
    return _Switch(0.0, float(value), _unit("deferred", "start", start))


def ramp(start: float, end: float, begin: float = 0.0, finish: float = 1.0) -> Schedule:
    """A warm-up: linear from ``start`` to ``end`` between fractions ``begin`` and ``finish``."""
    begin, finish = _unit("ramp", "begin", begin), _unit("ramp", "finish", finish)
    if begin >= finish:
        raise InputError(f"ramp: begin must lie before finish; got {begin:g} and {finish:g}.")
    return _Ramp(float(start), float(end), begin, finish)


class deferred_weights:
    """Class weights that are all 1 until the fraction ``start`` of training, then ``weights``.

    Deferred re-weighting (Cao et al. 2019): pass it as a loss's ``weight``, with ``weights`` from
    :func:`losslab.class_weights`; the paper switches at epoch 160 of 200 (``start=0.8``), Zhao et
    al. at 180 of 200 (``start=0.9``).
    """

    def __init__(self, weights: Tensor | Sequence[float], start: float = 0.9) -> None:
        self.weights = torch.as_tensor(weights, dtype=torch.get_default_dtype())
        self.start = _unit("deferred_weights", "start", start)

    def __call__(self, progress: float) -> Tensor:
        late = _fraction(progress) >= self.start
        return self.weights.clone() if late else torch.ones_like(self.weights)


def _fraction(progress: float) -> float:
    if not 0 <= progress <= 1:
        raise InputError(
            f"progress is the fraction of training done, in [0, 1]; got {progress:g}. "
            "Pass step / total_steps."
        )
    return progress


def _unit(function: str, name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"{function}: {name} must lie in [0, 1]; got {value:g}.")
    return float(value)

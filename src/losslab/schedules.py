"""Schedules: the fraction of training done, in [0, 1], to a value.

A schedule stands where a loss's parameter stands, ``MixedLoss(focus=phases(0, 0.5))``, and the
training loop calls ``loss.set_progress(step / total_steps)``; without that call the value stays as
it starts. It lives in a buffer of the module, so changing it recompiles nothing and ``state_dict``
carries it. In a spec string schedules are written the same:
``mixed(focus=phases(0, 0.1, 0.2, 0.3, 0.4, 0.5))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from losslab.errors import InputError

__all__ = ["Schedule", "deferred", "deferred_weights", "phases", "ramp", "switch"]


def exact(value: float) -> str:
    """The shortest text that reads back as the same number: ``2``, ``0.1``, ``1281167``."""
    return repr(float(value)).removesuffix(".0")


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
        # the slack lets step/total reach the next part where rounding leaves it just short
        part = int(_fraction(progress) * len(self.levels) + 1e-9)
        return self.levels[min(part, len(self.levels) - 1)]

    def values(self) -> Sequence[float]:
        return self.levels

    def __repr__(self) -> str:
        return f"phases({', '.join(exact(v) for v in self.levels)})"


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
        return f"switch({exact(self.before)}, {exact(self.after)}, at={exact(self.at)})"


@dataclass(frozen=True, repr=False)
class _Ramp(Schedule):
    start: float
    end: float
    begin: float
    finish: float

    def __call__(self, progress: float) -> float:
        done = (_fraction(progress) - self.begin) / (self.finish - self.begin)
        done = min(max(done, 0.0), 1.0)
        value = self.start * (1 - done) + self.end * done
        return min(max(value, min(self.start, self.end)), max(self.start, self.end))

    def values(self) -> Sequence[float]:
        return (self.start, self.end)

    def __repr__(self) -> str:
        ends = f"{exact(self.start)}, {exact(self.end)}"
        return f"ramp({ends}, begin={exact(self.begin)}, finish={exact(self.finish)})"


def phases(*values: float) -> Schedule:
    """Equal parts of training, one value each; the loss moves on by its ``set_progress``.

    ``phases(0, 0.1, 0.2, 0.3, 0.4, 0.5)`` is the gradual focus of Battash et al. ("F=0-0.5").

    Args:
        values: the value of each part, in order.

    Example:
        >>> from losslab.schedules import phases
        >>> [phases(0, 0.25, 0.5)(t) for t in (0.0, 0.5, 1.0)]
        [0.0, 0.25, 0.5]
    """
    if not values:
        raise InputError("phases needs at least one value, such as phases(0, 0.5); got none.")
    return _Phases(tuple(_value("phases", v) for v in values))


def switch(before: float, after: float, at: float = 0.95) -> Schedule:
    """One value until the fraction ``at`` of training is done, another from there on.

    ``switch(0, 0.5)`` is the focus schedule "F=0,0.5" of Battash et al., which drops the
    cross-entropy for the last 5 % of training.

    Args:
        before, after: the two values.
        at: fraction of training from which ``after`` holds.

    Example:
        >>> from losslab.schedules import switch
        >>> [switch(0, 0.5)(t) for t in (0.94, 0.95)]
        [0.0, 0.5]
    """
    return _Switch(_value("switch", before), _value("switch", after), _unit("switch", "at", at))


def deferred(value: float, start: float) -> Schedule:
    """0 until the fraction ``start`` of training is done, then ``value``: a bonus that joins late.

    Zhao et al. start the bonus late on graphs: their code at epoch 25 on PROTEINS, 130 on NCI1.

    Args:
        value: the value from ``start`` on.
        start: fraction of training from which it holds.

    Example:
        >>> import losslab
        >>> loss = losslab.EncouragingLoss(rho=losslab.deferred(1, start=0.5))
        >>> loss.set_progress(0.5)
        >>> float(loss.rho)
        1.0
    """
    return _Switch(0.0, _value("deferred", value), _unit("deferred", "start", start))


def ramp(start: float, end: float, begin: float = 0.0, finish: float = 1.0) -> Schedule:
    """A warm-up: linear from ``start`` to ``end`` between fractions ``begin`` and ``finish``.

    Args:
        start, end: the values before ``begin`` and after ``finish``.
        begin, finish: fractions of training, ``begin`` < ``finish``.

    Example:
        >>> from losslab.schedules import ramp
        >>> [ramp(0, 1, finish=0.5)(t) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0]
    """
    begin, finish = _unit("ramp", "begin", begin), _unit("ramp", "finish", finish)
    if begin >= finish:
        raise InputError(f"ramp: begin must lie before finish; got {begin:g} and {finish:g}.")
    return _Ramp(_value("ramp", start), _value("ramp", end), begin, finish)


class deferred_weights:
    """Class weights that are all 1 until the fraction ``start`` of training, then ``weights``.

    Deferred re-weighting (Cao et al. 2019): pass it as a loss's ``weight``, with ``weights`` from
    :func:`losslab.class_weights`; the paper switches at epoch 160 of 200 (``start=0.8``), Zhao et
    al. at 180 of 200 (``start=0.9``).

    Args:
        weights: (C,) class weights.
        start: fraction of training from which they hold.

    Example:
        >>> import losslab
        >>> later = losslab.deferred_weights(losslab.class_weights([90, 10]), start=0.8)
        >>> loss = losslab.CrossEntropyLoss(weight=later)
        >>> loss.set_progress(0.8)
        >>> loss.weight
        tensor([0.2000, 1.8000])
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


def _value(function: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{function}: values must be finite numbers; got {value!r}.")
    return float(value)


def _unit(function: str, name: str, value: float) -> float:
    number = _value(function, value)
    if not 0 <= number <= 1:
        raise InputError(f"{function}: {name} must lie in [0, 1]; got {number:g}.")
    return number

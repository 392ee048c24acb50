"""The controls of a loss: where each of its parameters can be put."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from losslab.losses.catalog import Parameter, Row

Stop = float | bool | None

# Parameters that say the same thing in two ways are shown in turns: a loss twice in the list.
_WAYS = {"mixed": (("focus",), ("alpha", "beta"))}

# Where the domain alone would make a poor slider: the first and the last stop, and the step.
_SPANS = {
    ("mixed", "alpha"): (0.0, 3.0, 0.05),
    ("mixed", "beta"): (0.0, 5.0, 0.05),
    ("encouraging_power", "gamma"): (0.1, 5.0, 0.1),
    ("halted_focal", "threshold"): (0.0, 1.0, 0.02),
    ("tamed_cross_entropy", "alpha"): (0.0, 3.0, 0.05),
    ("exponential", "cap"): (0.0, 30.0, 1.0),
}
_STEPS = {"rho": (0.0, 3.0, 0.05), "bonus_start": (0.05, 0.95, 0.05)}
_POWERS_OF_TEN = {"eps": (0.0, 1e-7, 1e-5, 1e-3)}
_STARTS = {"log_end": 0.75, "focus": 0.3, "alpha": 1.0, "beta": 1.0}  # where leaving it out is None
_LENGTH = 5.0  # of a slider whose domain has no end


@dataclass(frozen=True)
class Control:
    """A parameter on the page: its stops, and where it stands at first."""

    parameter: Parameter
    stops: tuple[Stop, ...]
    start: Stop


def ways_of(row: Row) -> tuple[tuple[str, ...], ...]:
    """The parameters shown together; most losses have one way."""
    return _WAYS.get(row.name, (tuple(p.name for p in row.parameters),))


def controls_of(row: Row, way: tuple[str, ...], also: dict[str, list[Stop]]) -> list[Control]:
    """The controls of one way; ``also`` holds values that must be among the stops."""
    parameters = [p for p in row.parameters if p.name in way]
    return [_control(row, p, also.get(p.name, [])) for p in parameters]


def _control(row: Row, parameter: Parameter, also: list[Stop]) -> Control:
    start = _STARTS.get(parameter.name) if parameter.default is None else parameter.default
    stops = {*_stops(row, parameter), *(value for value in also if value is not None)}
    if start is not None:
        stops.add(start)
    ordered: tuple[Stop, ...] = tuple(sorted(stops))
    return Control(parameter, ordered if start is not None else (None, *ordered), start)


def _stops(row: Row, parameter: Parameter) -> tuple[Any, ...]:
    if isinstance(parameter.default, bool):
        return (False, True)
    if parameter.name in _POWERS_OF_TEN:
        return _POWERS_OF_TEN[parameter.name]
    span = _SPANS.get((row.name, parameter.name)) or _STEPS.get(parameter.name)
    return _span(*(span or _domain(parameter)), parameter)


def _domain(parameter: Parameter) -> tuple[float, float, float]:
    """The whole domain in a hundred steps or, where it has no end, a piece of it in tenths."""
    low, high = parameter.low, parameter.high
    if math.isfinite(low) and math.isfinite(high):
        return low, high, (high - low) / 100
    low = low if math.isfinite(low) else -_LENGTH
    return low, low + _LENGTH if low >= 0 else _LENGTH, 0.1


def _span(low: float, high: float, step: float, parameter: Parameter) -> tuple[float, ...]:
    stops = [round(low + step * k, 10) for k in range(round((high - low) / step) + 1)]
    first = 1 if parameter.open_low and stops[0] <= parameter.low else 0
    last = len(stops) - (1 if parameter.open_high and stops[-1] >= parameter.high else 0)
    return tuple(stops[first:last])

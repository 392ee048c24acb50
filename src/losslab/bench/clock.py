"""Seconds a call takes: enough calls in a row that the clock's resolution does not matter."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from statistics import quantiles
from typing import NamedTuple

import torch

Call = Callable[[], None]

LEAST_SECONDS = 5e-3
"""A measurement lasts at least so long, which is 10⁴ to 10⁵ times what the clock resolves."""
_MOST_CALLS = 100_000


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Median and quartiles, interpolated linearly.

    Example:
        >>> spread([4.0, 1.0, 3.0, 2.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0)
    """
    if len(values) == 1:
        return Spread(*values * 3)
    low, median, high = quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratios(values: list[float], baseline: list[float]) -> list[float]:
    """Each round's ratio to the baseline in the same round: what slows both cancels."""
    return [value / base for value, base in zip(values, baseline, strict=True)]


def seconds_of(call: Call, count: int, device: torch.device) -> float:
    """Seconds that ``count`` calls take together."""
    if device.type == "cuda":
        return _cuda_seconds(call, count)
    begun = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - begun


def _cuda_seconds(call: Call, count: int) -> float:
    """By the device's own clock, from an idle device until the last kernel is done."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def calls_for(call: Call, device: torch.device, least: float = LEAST_SECONDS) -> int:
    """How many calls in a row take ``least`` seconds, found by trying."""
    count = 1
    while (seconds := seconds_of(call, count, device)) < least and count < _MOST_CALLS:
        wanted = count * least / max(seconds, least / 100)
        count = min(max(round(1.1 * wanted), 2 * count), _MOST_CALLS)
    return count


@dataclass(frozen=True)
class Turn:
    """Who is timed in a round: so many calls in a row, with ``around`` them what they need."""

    call: Call
    calls: int
    around: Callable[[], AbstractContextManager[None]]


def one_round(turns: Sequence[Turn], device: torch.device, rng: random.Random) -> list[float]:
    """Seconds a call of everyone, one after another in a new order."""
    seconds = [0.0] * len(turns)
    with _no_garbage_collection():
        for i in rng.sample(range(len(turns)), len(turns)):
            turn = turns[i]
            with turn.around():
                seconds[i] = seconds_of(turn.call, turn.calls, device) / turn.calls
    return seconds


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection would fall on whoever happens to be measured."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

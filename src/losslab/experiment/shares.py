"""How a batch is divided, so that the parts' gradients add up to the batch's.

A mean loss over n examples is the sum over parts of n_part/n times the part's mean. With class
weights, or a class that is ignored, a mean divides by the weights that it used instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.inputs import length, taken
from losslab.reading import Objective, Reading


def divided(rows: int, parts: int) -> list[slice]:
    """``rows`` in up to ``parts`` parts of nearly one size.

    None has a single row if the whole has more, since batch normalisation fails on one.

    Example:
        >>> divided(7, 3), divided(3, 2)
        ([slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)], [slice(0, 3, None)])
    """
    parts = max(1, min(parts, rows // 2))
    size, longer = divmod(rows, parts)
    starts = [number * size + min(number, longer) for number in range(parts + 1)]
    return [slice(*ends) for ends in pairwise(starts)]


def shares(
    target: Any, objective: Objective, reading: Reading, ranks: int, rank: int, pieces: int
) -> list[tuple[slice, float]]:
    """The rows that ``rank`` computes, in ``pieces``, and how much the loss of each counts.

    A rank for which there are no rows takes some of another's, which then count nothing: the
    ranks must go through the model together.
    """
    of_ranks = divided(length(target), ranks)
    if rank >= len(of_ranks):
        return [(of_ranks[0], 0.0)]
    mine = of_ranks[rank]
    rows = [
        slice(mine.start + piece.start, mine.start + piece.stop)
        for piece in divided(mine.stop - mine.start, pieces)
    ]
    divisor = _divisor(objective)

    def size(part: Any) -> float | None:
        own = reading.size(part)
        return divisor(reading.labels(part)) if own is None and divisor is not None else own

    whole = size(target)
    if whole is None:
        return [(piece, 1.0) for piece in rows]
    parts = [size(taken(target, piece)) or 0.0 for piece in rows]
    return [
        (piece, part / whole if whole else math.nan)
        for piece, part in zip(rows, parts, strict=True)
    ]


def _divisor(objective: Objective) -> Callable[[Tensor], float] | None:
    """What the loss divides by, as a function of the labels; None where it is a sum."""
    kinds = [_options(part) for part in getattr(objective, "modules", list)() if _is_loss(part)]
    if not kinds:
        return len
    weight, ignored, reduction = kinds[0]
    if not all(_same(kinds[0], kind) for kind in kinds[1:]):
        raise InputError(
            "Expected the terms of a loss to share weight, ignore_index and reduction, since its "
            "batches are computed in parts whose losses must add up, but they differ; give all "
            "the same, or use one process and accumulate=1."
        )
    if reduction == "sum":
        return None

    def divisor(target: Tensor) -> float:
        used = target[target != ignored]
        return len(used) if weight is None else float(weight[used].double().sum())

    return divisor


def _is_loss(part: nn.Module) -> bool:
    """Whether it has the options of ``nn.CrossEntropyLoss``, as ours and PyTorch's losses do."""
    return all(hasattr(part, name) for name in ("weight", "ignore_index", "reduction"))


def _options(part: Any) -> tuple[Tensor | None, int, str]:
    return part.weight, part.ignore_index, part.reduction


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    weights = one[0], other[0]
    if any(weight is None for weight in weights):
        equal = weights[0] is weights[1]
    else:
        equal = torch.equal(*weights)
    return equal and one[1:] == other[1:]

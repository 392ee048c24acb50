"""What a model is given: a tensor, or tensors in tuples, lists and mappings, or a batch of graphs.

Everything here goes through such a structure and changes the tensors in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from losslab.errors import InputError


def moved(value: Any, device: str | torch.device) -> Any:
    """``value`` with every tensor on ``device``; what is no tensor and cannot move stays."""
    return _changed(value, lambda part: part.to(device) if hasattr(part, "to") else part)


def taken(value: Any, rows: slice) -> Any:
    """Those examples of a batch.

    Raises:
        InputError: Of a batch that is not made of tensors, one row an example.
    """

    def part(whole: Any) -> Any:
        if isinstance(whole, Tensor):
            return whole[rows]
        raise InputError(
            f"Expected a batch made of tensors, to divide it, but it holds a "
            f"{type(whole).__name__}; use one process and accumulate=1."
        )

    return _changed(value, part)


def length(value: Any) -> int:
    """How many examples a batch has: the length of the first tensor in it."""
    found: list[int] = []
    _changed(value, lambda part: found.append(len(part)) if isinstance(part, Tensor) else None)
    if not found:
        raise InputError("Expected a batch to hold a tensor, but it holds none.")
    return found[0]


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _changed(part, change) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_changed(part, change) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_changed(part, change) for part in value)
    return change(value)

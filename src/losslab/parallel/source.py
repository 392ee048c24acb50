"""Where a rank's logits (N, C_local, …) come from: they are given, or made again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor


class Source(Protocol):
    """Logits and, in the backward pass, a place for their gradient."""

    ties: bool  # whether it matters which of equal logits comes first

    def by_rows(self) -> Iterator[tuple[slice, Tensor]]:
        """All of this rank's classes of some rows, after the other."""

    def by_classes(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows of some of this rank's classes, after the other."""

    def room(self, logits: Tensor) -> Tensor | None:
        """Where the gradient of the logits just made may be written; None for a new tensor."""

    def take(self, classes: slice, gradient: Tensor) -> None:
        """The gradient of the logits of some classes, which may be overwritten."""

    def gradients(self) -> tuple[Tensor | None, ...]:
        """The gradients of what the logits are made of, once all classes are taken."""


Make = Callable[..., Source]  # from the tensors that may need a gradient


class Given:
    """Logits that are there."""

    ties = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.gradient: Tensor | None = None

    def by_rows(self) -> Iterator[tuple[slice, Tensor]]:
        yield slice(0, len(self.logits)), self.logits

    def by_classes(self) -> Iterator[tuple[slice, Tensor]]:
        yield slice(0, self.logits.shape[1]), self.logits

    def room(self, logits: Tensor) -> Tensor | None:
        return None

    def take(self, classes: slice, gradient: Tensor) -> None:
        self.gradient = gradient

    def gradients(self) -> tuple[Tensor | None, ...]:
        return (self.gradient,)

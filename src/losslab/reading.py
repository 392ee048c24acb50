"""How what a model returns for a batch is learned from and measured.

Most models answer an example with one row of logits. A language model answers every token, a
detector every anchor; a `Reading` turns such answers into rows, so that the loss, the metrics and
all that is said of a run are the same for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from losslab.errors import InputError

Objective = Callable[[Tensor, Tensor], Tensor]
"""A loss: logits ``(rows, classes)`` and labels ``(rows,)`` in, a number out."""


class Reading:
    """One row of logits an example: ``model(inputs)`` is ``(examples, classes)``.

    Give a task a subclass where that is not so. ``labels`` and ``logits`` must agree: as many rows,
    in the same order.
    """

    def labels(self, target: Any) -> Tensor:
        """The class numbers ``(rows,)`` that a batch's targets hold."""
        return target

    def logits(self, output: Any, target: Any) -> Tensor:
        """The logits ``(rows, classes)`` of those rows, from what the model returned."""
        return output

    def loss(self, criterion: Objective, output: Any, target: Any) -> Tensor:
        """The loss of a batch, a tensor without dimensions."""
        return criterion(self.logits(output, target), self.labels(target))

    def described(self) -> str:
        """What decides a run's numbers, for its record."""
        return type(self).__name__

    def size(self, target: Any) -> float | None:
        """What `loss` divides by, where it is not what the criterion's reduction says.

        With it a batch can be computed in parts, whose losses must add up to the batch's.
        """
        return None


class TokenReading(Reading):
    """A row of logits for every token: ``(examples, length, classes)`` with targets
    ``(examples, length)``.

    Tokens whose target is ``ignore_index`` (padding, a prompt) are no rows: neither learned from
    nor measured. A mean is over the tokens of the batch, as in PyTorch's ``cross_entropy``.
    """

    def __init__(self, ignore_index: int = -100) -> None:
        self.ignore_index = ignore_index

    def described(self) -> str:
        return f"tokens, ignore_index={self.ignore_index}"

    def labels(self, target: Tensor) -> Tensor:
        return target[target != self.ignore_index]

    def logits(self, output: Tensor, target: Tensor) -> Tensor:
        if output.shape[:-1] != target.shape:
            raise InputError(
                "Expected the model to return logits of shape (examples, length, classes) for "
                f"targets of shape {tuple(target.shape)}, but got {tuple(output.shape)}."
            )
        return output[target != self.ignore_index]

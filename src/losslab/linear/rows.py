"""What the logits of each row said: gathered on the way, without gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from losslab.linear.odds import Statistics
from losslab.logodds.plain import compute_dtype


class LinearRows(NamedTuple):
    """What the logits of each row said, without gradient; each field has the target's shape.

    Math: with z the row's logits and y its class: margin z_y − max_{j≠y} z_j, log-odds
        z_y − log Σ_{j≠y} exp z_j, logsumexp log Σ_j exp z_j.

    Args:
        used: False for rows of the ``ignore_index``, whose numbers below are NaN.
        correct: Whether the largest logit is the target's; of equal ones the first counts.
        margin, log_odds, logsumexp: float32 or wider. For probability targets the class is the
            most probable one.

    Example:
        >>> import torch, losslab
        >>> hidden, weight = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> loss, rows = losslab.linear_loss(
        ...     hidden, weight, torch.tensor([0, 0]), return_rows=True
        ... )
        >>> rows.margin
        tensor([ 2., -1.])
    """

    used: Tensor
    correct: Tensor
    margin: Tensor
    log_odds: Tensor
    logsumexp: Tensor


class Seen:
    """The statistics of all rows that count, filled in some rows at a time."""

    def __init__(self, count: int, like: Tensor, *, correct: bool) -> None:
        numbers = [like.new_empty(count, dtype=compute_dtype(like.dtype)) for _ in range(4)]
        self.statistics = Statistics(*numbers)
        self.correct = like.new_empty(count, dtype=torch.bool) if correct else None

    def put_logits(self, at: slice, z: Tensor, target: Tensor, found: Statistics) -> None:
        """The rows ``at``, from their logits as the loss sees them."""
        margin = found.margin if self.correct is not None else None
        self.put(at, found, margin, lambda tied: z[tied], target)

    def put(
        self,
        at: slice,
        found: Statistics,
        margin: Tensor | None,
        logits: Callable[[Tensor], Tensor],
        target: Tensor,
    ) -> None:
        """The rows ``at``; ``logits(rows)`` are looked at where two classes tie for the top."""
        for all_rows, value in zip(self.statistics, found, strict=True):
            all_rows[at] = value
        if self.correct is not None and margin is not None:
            right = margin > 0
            tied = (margin == 0).nonzero().squeeze(1)
            if len(tied):
                right[tied] = logits(tied).argmax(1) == target[tied]
            self.correct[at] = right

    def rows(self, keep: Tensor | None, shape: torch.Size) -> LinearRows:
        """The result for all rows, of which ``keep`` were used (None: all)."""
        assert self.correct is not None
        found = self.statistics
        values = [torch.ones_like(self.correct), self.correct]
        values += [found.margin, found.log_odds, found.logsumexp]
        if keep is not None:
            values = [_spread(v, keep, math.prod(shape)) for v in values]
        return LinearRows(*(v.reshape(shape) for v in values))


def rows_of(
    found: Statistics, correct: Tensor, used: Tensor | None, shape: torch.Size
) -> LinearRows:
    """The result from the statistics of all rows, those not used among them."""
    used = torch.ones_like(correct) if used is None else used
    numbers = (found.margin, found.log_odds, found.logsumexp)
    values = [x.detach().masked_fill(~used, torch.nan) for x in numbers]
    return LinearRows(*(x.reshape(shape) for x in (used, correct & used, *values)))


def _spread(values: Tensor, keep: Tensor, count: int) -> Tensor:
    missing = torch.nan if values.is_floating_point() else False
    return values.new_full((count,), missing).index_copy_(0, keep, values)

"""The formula on all logits, by differentiable operations: what PyTorch's transforms get."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from losslab.linear.ask import Ask
from losslab.linear.odds import Statistics
from losslab.linear.rows import rows_of
from losslab.linear.terms import Term, is_mean, used_rows
from losslab.logodds import plain
from losslab.losses.psi import times


def plain_loss(
    terms: list[Term], ask: Ask, input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None
) -> Any:
    """``linear_loss`` with all logits at once."""
    shape, classes = input.shape[:-1], weight.shape[0]
    z = plain.promote(ask.logits(input, weight, bias).reshape(math.prod(shape), classes))
    target = target.reshape(-1, classes) if target.is_floating_point() else target.reshape(-1)
    used = used_rows(terms, target)
    parts = [(term.factor, term.loss(z, target)) for term in terms]
    # a factor of 1 is left out: in forward mode it would make a scalar's tangent float64
    losses = torch.stack([x if c == 1 else times(c, x) for c, x in parts]).sum(0)
    if ask.z_loss:
        losses = losses + z_loss(terms, ask, torch.logsumexp(z, 1), used, losses.dim() == 0)
    losses = losses.reshape(shape) if losses.dim() else losses
    if not ask.return_rows:
        return losses
    return losses, rows_of(*_look(z.detach(), target, used), used, shape)


def z_loss(terms: list[Term], ask: Ask, lse: Tensor, used: Tensor | None, scalar: bool) -> Tensor:
    """The extra term from the log-sum-exp of all rows."""
    squares = lse.square() if used is None else torch.where(used, lse, 0).square()
    if not scalar:
        return ask.z_loss * squares
    if not is_mean(terms):
        return ask.z_loss * squares.sum()
    count = max(1, len(squares)) if used is None else used.sum().clamp(min=1)
    return ask.z_loss * squares.sum() / count


def _look(z: Tensor, target: Tensor, used: Tensor | None) -> tuple[Statistics, Tensor]:
    """Statistics of each row and whether it is right."""
    target = target.argmax(1) if target.is_floating_point() else target
    target = target if used is None else target.masked_fill(~used, 0)
    index = target.long().unsqueeze(1)
    others = z.scatter(1, index, -torch.inf)
    own, shift = z.gather(1, index).squeeze(1), plain.finite(others.amax(1))
    total = (others - shift.unsqueeze(1)).clamp(max=0).exp().sum(1)
    found = Statistics(plain.log_odds(z, index.squeeze(1)), shift, total, own)
    return found, (z.argmax(1) == index.squeeze(1)) & ~found.margin.isnan()

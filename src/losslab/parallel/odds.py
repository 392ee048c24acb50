"""The true class's log-odds from logits whose classes are spread over ranks.

Each rank looks at its own logits once: m_r = max_{j≠y} z_j, s_r = Σ_{j≠y} exp(z_j − m_r), where
only the rank that holds class y leaves it out. Two exchanges of a few numbers a row make
m = max m_r and s = Σ s_r exp(m_r − m) of them, and z_y. The gradient is then local: α·e_y − β·q
with q_j = exp(z_j − m)/s, two numbers a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from losslab.logodds import eager, select
from losslab.logodds.kernel import Kernel
from losslab.logodds.plain import compute_dtype, finite, promote, weight
from losslab.parallel import checks, exchange
from losslab.parallel.source import Make, Source
from losslab.parallel.split import ClassSplit


class Facts(NamedTuple):
    """What all ranks know of each row; the first two can be differentiated."""

    log_odds: Tensor  # of the target
    logsumexp: Tensor  # of all classes
    margin: Tensor  # z_y − max of the others
    correct: Tensor  # no other logit is larger, nor, where it matters, equal and before z_y


def row_facts(make: Make, split: ClassSplit, target: Tensor, *tensors: Tensor | None) -> Facts:
    """Alike on all ranks; each rank gets the gradients of its own ``tensors``."""
    return Facts(*_LogOdds.apply(make, split, target, *tensors))


class _LogOdds(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, make: Make, split: ClassSplit, target: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        source = make(*tensors)
        found = [_look(z, target[i], split, source.ties) for i, z in source.by_rows()]
        own, total, *tops = (torch.cat(x) for x in zip(*found, strict=True))
        sent = torch.stack(tops).nan_to_num(torch.finfo(own.dtype).min)
        shift, *before = checks.largest(sent, target, split).unbind()
        total, own = checks.total([total * (tops[0] - shift).exp(), own], target, split)
        top, log_total = largest_other(shift, total), total.log()
        margin = own - top
        correct = margin > 0
        if before:
            correct |= (margin == 0) & (own > before[0])
        ctx.make, ctx.split = make, split
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(margin, correct)
        log_odds = margin - log_total
        ctx.save_for_backward(target, log_odds, shift, total, *tensors)
        return log_odds, torch.logaddexp(own, top + log_total), margin, correct

    @staticmethod
    def backward(
        ctx: Any, for_odds: Tensor | None, for_logsumexp: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        exchange.refuse_second_derivative()
        target, log_odds, shift, total, *tensors = ctx.saved_tensors
        at, away = _coefficients(log_odds, total, for_odds, for_logsumexp)
        source: Source = ctx.make(*tensors)
        for classes, z in source.by_classes():
            index, owned = ctx.split.some(classes).locate(target)
            out = source.room(z)
            gradient = _gradient(z, index, owned, shift, total, at, away, out)
            source.take(classes, gradient)
        return None, None, None, *source.gradients()


def _coefficients(
    log_odds: Tensor, total: Tensor, for_odds: Tensor | None, for_logsumexp: Tensor | None
) -> tuple[Tensor, Tensor]:
    """α and β of the gradient α·e_y − β·q: ∂a = e_y − q, ∂logsumexp = p·e_y + (1 − p)·q."""
    at = torch.zeros_like(log_odds) if for_odds is None else for_odds.masked_fill(total == 0, 0)
    if for_logsumexp is None:
        return at, at
    p, wrong = torch.sigmoid(log_odds), torch.sigmoid(-log_odds)
    return at + for_logsumexp * p, at - for_logsumexp * wrong


def kernel_for(logits: Tensor, target: Tensor) -> Kernel:
    """The kernel that looks at local logits."""
    return select.kernel_for(logits, target) or eager


def _look(z: Tensor, target: Tensor, split: ClassSplit, ties: bool) -> tuple[Tensor, ...]:
    """z_y, or 0 where y is elsewhere; s; m; and with ``ties`` the largest logit before y.

    The kernel leaves one class out of every row; where that is not the target, it goes back in.
    """
    if z.shape[1] == 0:
        nothing = torch.zeros_like(target, dtype=compute_dtype(z.dtype))
        lowest = nothing + torch.finfo(nothing.dtype).min
        return nothing, nothing, lowest, *[lowest] * ties
    index, owned = split.locate(target)
    _, top, total = kernel_for(z, index).statistics(z, index)
    at_index = promote(z.gather(1, index.unsqueeze(1)).squeeze(1))
    top_of_all = torch.maximum(top, finite(at_index))
    all_total = total * (top - top_of_all).exp() + weight(at_index, top_of_all)
    facts = (
        at_index.masked_fill(~owned, 0),
        torch.where(owned, total, all_total),
        torch.where(owned, top, top_of_all),
    )
    if not ties:
        return facts
    after = split.columns(z) >= target.unsqueeze(1)
    return *facts, promote(z.masked_fill(after, -torch.inf).amax(1))


def _gradient(
    z: Tensor,
    index: Tensor,
    owned: Tensor,
    shift: Tensor,
    total: Tensor,
    at: Tensor,
    away: Tensor,
    out: Tensor | None,
) -> Tensor:
    """α·e_y − β·q of local logits; the kernel's value at ``index`` is replaced."""
    if z.shape[1] == 0:
        return torch.empty_like(z)
    q = weight(promote(z.gather(1, index.unsqueeze(1)).squeeze(1)), shift)
    q = q / total.masked_fill(total == 0, 1)
    at_index = torch.where(owned, at, -away.masked_fill(total == 0, 0) * q)
    result = kernel_for(z, index).gradient(z, index, shift, total, away, out)
    return _put(result, index, at_index)


def _put(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Write one value a row at a class; ``scatter_`` would copy all of a half tensor to do so."""
    rows, *places = (
        torch.arange(n, device=x.device).view([-1 if i == j else 1 for j in range(index.dim())])
        for i, n in enumerate(index.shape)
    )
    return x.index_put_((rows, index, *places), values.to(x.dtype))


def largest_other(shift: Tensor, total: Tensor) -> Tensor:
    """The largest logit but one's own from m, which is clamped to the finite range, and s."""
    top = shift.masked_fill(shift == torch.finfo(shift.dtype).max, torch.inf)
    return top.masked_fill(total == 0, -torch.inf)

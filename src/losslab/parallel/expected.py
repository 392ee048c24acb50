"""The expected loss Σ_k t_k ψ(a_k) of split classes, for label smoothing and probability targets.

Only the top class of a row can have p > ½. From its log-odds a⁺, m = max and s = Σ exp(z_j − m)
over the others, every other class follows without cancellation: log q_k = (z_k − m) − log s,
log p_k = log q_k + log σ(−a⁺), a_k = log p_k − log(1 − p_k).

With h_k = t_k ψ'(a_k)/(1 − p_k), H = Σ h_k over all but the top class and G = t⁺ψ'(a⁺), the
gradient is t_j ψ'(a_j) − p_j (H − h_j) − q_j G, and G − p⁺H at the top class: H and G are summed
over the ranks together with the loss, so the backward pass exchanges nothing and makes one pass.
The gradient of the true class's own log-odds has the same form, with t = e_y and ψ' = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losslab.errors import InputError
from losslab.linear.odds import value_and_slope
from losslab.logodds.eager import row_pieces
from losslab.logodds.plain import compute_dtype, finite, promote, weight
from losslab.losses.expected import learns
from losslab.losses.psi import times
from losslab.losses.reduction import OddsRows, _calm, _elementwise
from losslab.parallel import checks, exchange
from losslab.parallel.odds import Facts, kernel_for, largest_other
from losslab.parallel.source import Make, Source
from losslab.parallel.split import ClassSplit


class Rows(NamedTuple):
    """What all ranks know of a run of rows, and where its top class is."""

    shift: Tensor  # m, the second largest logit
    total: Tensor  # s
    odds: Tensor  # a⁺
    top: Tensor  # the top class, or −1 if another rank has it

    def some(self, rows: slice) -> Rows:
        return Rows(*(x[rows] for x in self))


class Upstream(NamedTuple):
    """A row's upstream gradients and what the sums over the ranks make of them."""

    grad: Tensor  # of the expected loss
    others: Tensor  # H, and
    top: Tensor  # G, both times their upstream gradients
    target: Tensor
    at_target: Tensor  # what the target's log-odds add to t_k ψ'(a_k) there,
    h_at_target: Tensor  # and to h_k

    def some(self, rows: slice) -> Upstream:
        return Upstream(*(x[rows] for x in self))


def expected_loss(
    make: Make,
    split: ClassSplit,
    psi: OddsRows,
    share: Tensor,
    target: Tensor | None,
    *tensors: Tensor | None,
) -> tuple[Tensor, Tensor, Facts | None]:
    """Σ_k t_k ψ(a_k) of each row, its logsumexp, and the facts of the target if there is one.

    Alike on all ranks. ``share`` holds this rank's t_k, of each row or in one row for all.
    """
    if share.requires_grad or learns(psi.psi, share):
        raise InputError(
            "with label smoothing or probability targets, split classes differentiate the loss by "
            "the logits only; got a target, weight or psi that requires a gradient too. Detach it, "
            "or use class-index targets without label smoothing."
        )
    losses, logsumexp, *facts = _Expected.apply(make, split, psi, share, target, *tensors)
    if target is None:
        return losses, logsumexp, None
    log_odds, margin, correct = facts
    return losses, logsumexp, Facts(log_odds, logsumexp, margin, correct)


class _Expected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        make: Make,
        split: ClassSplit,
        psi: OddsRows,
        share: Tensor,
        target: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        source = make(*tensors)
        rows, first, own, is_top = _survey(source, split, target)
        second = largest_other(rows.shift, rows.total)
        logsumexp = torch.logaddexp(first, second + rows.total.log())
        facts: tuple[Tensor, ...] = ()
        if target is not None:
            facts = _facts(rows, first, second, own, is_top)
            ctx.mark_non_differentiable(*facts[1:])
        slopes = any(ctx.needs_input_grad)
        parts: list[Tensor] = []
        for i, z in source.by_rows():
            parts += _sums(z, rows.some(i), psi, _of(share, i), split, slopes)
        doing = "sum up the expected loss of each row"
        losses, *sums = exchange.total(torch.cat(parts, 1), split.group, doing).unbind()
        if slopes:
            ctx.make, ctx.split, ctx.psi = make, split, psi
            of_target = (target, facts[0], is_top) if facts else (None, None, None)
            ctx.save_for_backward(share, *of_target, *sums, *rows, *tensors)
        return losses, logsumexp, *facts

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, for_logsumexp: Tensor, for_odds: Tensor | None = None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        exchange.refuse_second_derivative()
        share, target, log_odds, is_top, others, top, *rest = ctx.saved_tensors
        rows, tensors = Rows(*rest[:4]), rest[4:]
        others, top = others * grad - for_logsumexp, top * grad  # ∂logsumexp = p
        own = beyond = torch.zeros_like(grad)
        if target is not None:
            own = for_odds.masked_fill(is_top & (rows.total == 0), 0)  # type: ignore[union-attr]
            beyond = (own / torch.sigmoid(-log_odds)).masked_fill(is_top, 0)
            others, top = others + beyond, top + own.masked_fill(~is_top, 0)
        target = rows.top if target is None else target
        upstream = Upstream(grad, others, top, target, own, beyond)
        source: Source = ctx.make(*tensors)
        for i, z in source.by_classes():
            some, t = ctx.split.some(i), share[:, i]
            source.take(i, _gradient(z, rows, ctx.psi, t, some, upstream, source.room(z)))
        return None, None, None, None, None, *source.gradients()


def _survey(
    source: Source, split: ClassSplit, target: Tensor | None
) -> tuple[Rows, Tensor, Tensor, Tensor]:
    """One pass for the two largest logits and the sum under the largest, then two exchanges.

    Also returns the largest logit, and of a target its logit and whether it is the top class.
    """
    found = [_look(z, None if target is None else target[i], split) for i, z in source.by_rows()]
    place, first, second, rest, own = (torch.cat(x) for x in zip(*found, strict=True))
    firsts, seconds = checks.gathered(torch.stack([first, second]), target, split).unbind(1)
    owner = firsts.argmax(0)  # of equal ones the first
    ranks = torch.arange(split.ranks, device=owner.device).view(-1, *[1] * first.dim())
    shift = torch.where(ranks == owner, seconds, finite(firsts)).amax(0)
    here = owner == split.rank
    top = torch.where(here, place, -1)
    rest = rest * (second - shift).exp() + weight(first, shift).masked_fill(here, 0)
    if target is None:
        total = exchange.total(rest, split.group, checks.SUMMING)
        is_top = rest
    else:
        mine = (target == top).to(rest.dtype)
        total, own, is_top = checks.total([rest, own, mine], target, split)
    first = firsts.amax(0)
    odds = (first - largest_other(shift, total)) - total.log()
    return Rows(shift, total, odds, top), first, own, is_top > 0


def _look(z: Tensor, target: Tensor | None, split: ClassSplit) -> tuple[Tensor, ...]:
    """The class of the largest logit, it, the next one clamped, Σ exp(z_j − next) without it; and
    z_y, or 0 where y is elsewhere."""
    if z.shape[1] == 0:
        nothing = z.new_zeros(z.shape[:1] + z.shape[2:], dtype=compute_dtype(z.dtype))
        lowest = nothing + torch.finfo(nothing.dtype).min
        return nothing.long(), nothing - torch.inf, lowest, nothing, nothing
    place = z.argmax(1)
    first = promote(z.gather(1, place.unsqueeze(1)).squeeze(1))
    _, second, rest = kernel_for(z, place).statistics(z, place)
    own = torch.zeros_like(first)
    if target is not None:
        index, owned = split.locate(target)
        own = promote(z.gather(1, index.unsqueeze(1)).squeeze(1)).masked_fill(~owned, 0)
    return place + split.start, first, second, rest, own


def _facts(
    rows: Rows, first: Tensor, second: Tensor, own: Tensor, is_top: Tensor
) -> tuple[Tensor, ...]:
    """Log-odds of the target, its margin, and whether it is right."""
    _, _, log_odds = _below(own, rows.shift, rows.total, rows.odds)
    margin = own - torch.where(is_top, second, first)
    return torch.where(is_top, rows.odds, log_odds), margin, is_top & ~margin.isnan()


def _below(
    z: Tensor, shift: Tensor, total: Tensor, top_odds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q beside the top class, p, and the log-odds of any class but the top one."""
    log_q = (z - shift).sub_(total.masked_fill(total == 0, 1).log())
    q = log_q.exp()
    p = q * torch.sigmoid(-top_odds)
    return q, p, log_q.add_(logsigmoid(-top_odds)).sub_(torch.log1p(-p))


class _Classes:
    """Every class of a piece of rows: log-odds a, probabilities p, and q beside the top class.

    At the top class p and q mean nothing, and what is made of them is overwritten.
    """

    def __init__(self, logits: Tensor, rows: Rows, split: ClassSplit) -> None:
        shift, total, self.top_odds, top = (x.unsqueeze(1) for x in rows)
        self.alone = total == 0
        self.place, self.here = split.locate(top)
        self.q, self.p, a = _below(promote(logits), shift, total, self.top_odds)
        self.a = self.with_top(a, self.top_odds)

    def with_top(self, x: Tensor, value: Tensor | float) -> Tensor:
        """``x``, overwritten at the top class where that is among these."""
        if x.shape[1] == 0:
            return x
        there = x.gather(1, self.place)
        value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
        return x.scatter_(1, self.place, torch.where(self.here, value, there))

    def at_top(self, x: Tensor) -> Tensor:
        """(rows, 1, …) ``x`` of the top class, 0 where that is not among these."""
        if x.shape[1] == 0:
            return torch.zeros_like(self.top_odds)
        return x.gather(1, self.place).masked_fill(~self.here, 0)

    def losses(self, psi: OddsRows, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t_k ψ(a_k), t_k ψ'(a_k), and h_k = t_k ψ'(a_k)/(1 − p_k) with 0 for the top class."""
        losses, slope = value_and_slope(psi, self.calm(share))
        slope = times(share, slope)
        slope = self.with_top(slope, self.at_top(slope).masked_fill(self.alone, 0))
        h = self.with_top(slope / (1 - self.p), 0.0)
        return times(share, losses), slope, h

    def calm(self, share: Tensor) -> Tensor:
        return _calm(self.a, share == 0)

    def gradient(self, slopes: Tensor, h: Tensor, others: Tensor, top: Tensor) -> Tensor:
        """Of Σ_k t_k ψ(a_k) by the logits; ``slopes`` are t_k ψ'(a_k)."""
        others, top = others.unsqueeze(1), top.unsqueeze(1)
        result = slopes.sub_((others - h).mul_(self.p)).sub_(self.q * top)
        return self.with_top(result, top - torch.sigmoid(self.top_odds) * others)


def _sums(
    z: Tensor, rows: Rows, psi: OddsRows, share: Tensor, split: ClassSplit, slopes: bool
) -> Iterator[Tensor]:
    """This rank's part of the loss, and with ``slopes`` of H and G, for a few rows at a time."""
    for j in row_pieces(z):
        classes, t = _Classes(z[j], rows.some(j), split), _of(share, j)
        if slopes:
            losses, slope, h = classes.losses(psi, t)
            yield torch.stack([losses.sum(1), h.sum(1), classes.at_top(slope).squeeze(1)])
        else:
            losses = _elementwise(psi.psi, classes.calm(t))
            yield times(t, losses).sum(1).unsqueeze(0)


def _gradient(
    z: Tensor,
    rows: Rows,
    psi: OddsRows,
    share: Tensor,
    split: ClassSplit,
    upstream: Upstream,
    room: Tensor | None,
) -> Tensor:
    """Of the expected loss, the logsumexp and the target's log-odds by the local logits."""
    out = torch.empty_like(z) if room is None else room
    for j in row_pieces(z):
        classes, up = _Classes(z[j], rows.some(j), split), upstream.some(j)
        _, slopes, h = classes.losses(psi, _of(share, j))
        slopes, h = slopes.mul_(up.grad.unsqueeze(1)), h.mul_(up.grad.unsqueeze(1))
        if z.shape[1] > 0:
            place, here = split.locate(up.target)
            for x, value in ((slopes, up.at_target), (h, up.h_at_target)):
                value = value.masked_fill(~here, 0).to(x.dtype)
                x.scatter_add_(1, place.unsqueeze(1), value.unsqueeze(1))
        out[j] = classes.gradient(slopes, h, up.others, up.top)
    return out


def _of(share: Tensor, rows: slice) -> Tensor:
    """The share of a run of rows; one row may stand for all."""
    return share if share.shape[0] == 1 else share[rows]

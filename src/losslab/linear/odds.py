"""From logits to log-odds and ψ, and the gradient of the logits in the logits' own memory.

∂a/∂z = e_y − q and ∂lse/∂z = p_y·e_y + (1 − p_y)·q, so a row with upstream gradients g of its
log-odds and c of its log-sum-exp has g + c·p_y at the target and −(g − c·(1 − p_y))·q elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losslab.linear.layer import pieces
from losslab.logodds import eager, select
from losslab.logodds.plain import promote
from losslab.losses import reduction as r


class Statistics(NamedTuple):
    """One pass over logits (n, V): each (n,), float32 or wider."""

    log_odds: Tensor
    shift: Tensor  # max of the others, clamped to the finite range
    total: Tensor  # Σ_{j≠y} exp(z_j − shift)
    own: Tensor  # z_y

    @property
    def top(self) -> Tensor:
        """max of the others, infinite again where it was."""
        limits = torch.finfo(self.shift.dtype)
        top = self.shift.masked_fill(self.shift == limits.max, torch.inf)
        return top.masked_fill(top == limits.min, -torch.inf)

    @property
    def margin(self) -> Tensor:
        return self.own - self.top

    @property
    def logsumexp(self) -> Tensor:
        return torch.logaddexp(self.own, self.top + self.total.log())


class Upstream(NamedTuple):
    """What multiplies the two parts of a row's gradient; ``at_target`` None is ``of_others``."""

    of_others: Tensor
    at_target: Tensor | None = None

    @staticmethod
    def of(log_odds: Tensor, total: Tensor, grad: Tensor, grad_lse: Tensor | None) -> Upstream:
        if grad_lse is None:
            return Upstream(grad)
        grad = grad.masked_fill(total == 0, 0)  # no competitor: a is +inf and stays there
        at_target = grad + grad_lse * torch.sigmoid(log_odds)
        return Upstream(grad - grad_lse * torch.sigmoid(-log_odds), at_target)


def statistics(z: Tensor, target: Tensor) -> Statistics:
    own = z.gather(1, target.unsqueeze(1)).squeeze(1)
    found = (select.kernel_for(z, target) or eager).statistics(z, target)
    return Statistics(*found, own.to(found[0].dtype))


def cap_(z: Tensor, softcap: float | None) -> Tensor:
    """softcap·tanh(z) in place, rounded once, for logits that were divided by it."""
    if softcap is not None:
        for rows in pieces(*z.shape):
            piece = z[rows]
            capped = promote(piece).tanh_().mul_(softcap)
            if capped is not piece:
                piece.copy_(capped)
    return z


def value_and_slope(rows: r.OddsRows, a: Tensor) -> tuple[Tensor, Tensor]:
    """ψ(a) and ψ'(a)."""
    if rows.slope is not None:
        return r._elementwise(rows.psi, a), rows.slope(a)
    with torch.enable_grad():
        leaf = a.detach().requires_grad_()
        losses = r._elementwise(rows.psi, leaf)
    if not losses.requires_grad:  # a constant
        return losses, torch.zeros_like(a)
    (slope,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses))
    return losses.detach(), slope


def gradient_(
    z: Tensor,
    target: Tensor,
    found: Statistics,
    upstream: Upstream,
    softcap: float | None,
    inside: Tensor | None = None,
) -> None:
    """Overwrite logits (n, V) by their gradient.

    Where ``inside`` is False the row's target is none of these classes, and its ``target`` is 0.
    """
    for rows in [slice(None)] if softcap is None else pieces(*z.shape):
        piece = z[rows]
        slope = None if softcap is None else _slope_of_cap(piece, softcap)
        part = Upstream(*(None if x is None else x[rows] for x in upstream))  # type: ignore[arg-type]
        within = None if inside is None else inside[rows]
        _gradient_(piece, target[rows], found.shift[rows], found.total[rows], part, within)
        if slope is not None:
            piece.mul_(slope)


def _slope_of_cap(z: Tensor, softcap: float) -> Tensor:
    """1 − (z/softcap)², in float32 or wider: near the cap little of it is left."""
    return (promote(z) / softcap).square_().neg_().add_(1)


def _gradient_(
    z: Tensor,
    target: Tensor,
    shift: Tensor,
    total: Tensor,
    upstream: Upstream,
    inside: Tensor | None,
) -> None:
    kernel = select.kernel_for(z, target) or eager
    of_others, at_target = upstream
    if inside is not None:  # the kernel writes the target's gradient into class 0 of these rows
        q = (z[:, 0] - shift).clamp_(max=0).exp_().div_(total)
        first = (-of_others * q).masked_fill_(total == 0, 0).to(z.dtype)
    kernel.gradient(z, target, shift, total, of_others, out=z)
    if inside is not None:
        z[:, 0] = torch.where(inside, z[:, 0], first)
    if at_target is not None:
        index = target.unsqueeze(1)
        value = at_target.to(z.dtype).unsqueeze(1)
        if inside is not None:
            value = torch.where(inside.unsqueeze(1), value, z.gather(1, index))
        z.scatter_(1, index, value)

"""One call: the rows that count, and what some rows of logits contribute to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.linear import odds
from losslab.linear.ask import Ask
from losslab.linear.layer import Layer, chunk_rows, pieces
from losslab.linear.rows import Seen
from losslab.linear.terms import Term, is_mean, psi_of, used_rows
from losslab.logodds import check_range
from losslab.logodds.plain import compute_dtype, promote
from losslab.logodds.select import target_span
from losslab.losses import reduction as r
from losslab.losses.psi import times


@dataclass
class Job:
    """A row's *share* is what it adds to the loss: all weights and the mean's divisor are in it."""

    terms: list[Term]
    psi: r.OddsRows | None  # where the loss is a function of the log-odds of class indices
    ask: Ask
    target: Tensor  # of the rows that count
    keep: Tensor | None  # their positions among all rows; None for all of them
    divisors: list[Tensor | float]
    z_factor: float  # of each row's squared log-sum-exp
    chunk: int  # rows of logits held at a time
    seen: Seen | None

    @staticmethod
    def of(terms: list[Term], ask: Ask, weight: Tensor, target: Tensor) -> Job:
        """For the ``target`` of all rows: (N,) indices or (N, V) probabilities."""
        used, keep = used_rows(terms, target), None
        if used is not None:
            target = target.long()
            if not bool(used.all()):
                keep = used.nonzero().squeeze(1)
                target = target[keep]
            for term in terms:  # what another term ignores must be in range for this one
                check_range(target_span(target[term.counts(target)]), weight.shape[0])
        count, psi = len(target), psi_of(terms, target)
        return Job(
            terms=terms,
            psi=psi,
            ask=ask,
            target=target,
            keep=keep,
            divisors=[term.divisor(target) for term in terms],
            z_factor=ask.z_loss / (max(1, count) if is_mean(terms) else 1),
            chunk=ask.chunk_rows or chunk_rows(count, weight, 6 if psi else 8),
            seen=Seen(count, weight, correct=True) if ask.return_rows else None,
        )

    @property
    def watched(self) -> list[Tensor]:
        """Tensors that a backward pass reads again: saved, so that autograd sees them changed."""
        weights = [term.options["weight"] for term in self.terms]
        return [self.target, *(w for w in weights if w is not None)]

    @property
    def is_empty_mean(self) -> bool:
        """No row counts, and PyTorch's mean is NaN then."""
        return len(self.target) == 0 and any(
            isinstance(d, float) and math.isnan(d) for d in self.divisors
        )

    def learns(self, weight: Tensor) -> bool:
        """Whether ψ or the class weights need a gradient themselves; other losses must not."""
        if not torch.is_grad_enabled() or len(self.target) == 0:
            return False
        probe = weight.new_zeros((1, len(weight)), dtype=compute_dtype(weight.dtype))
        if self.psi is not None:
            given = self.terms[0].options["weight"]
            learnt = given is not None and given.requires_grad
            return learnt or r._elementwise(self.psi.psi, probe[:, 0]).requires_grad
        if self.any_shares(probe, slice(0, 1)).requires_grad:
            raise InputError(
                "this loss holds tensors that need a gradient (a parameter, a weight or a target), "
                "which only a psi of class indices may here. Detach them, or call the loss on the "
                "logits, loss(F.linear(hidden, weight, bias), target)."
            )
        return False

    def sweep(self, layer: Layer) -> Iterator[tuple[slice, Tensor, Tensor]]:
        return layer.sweep(self.chunk, self.ask.factor if self.psi else self.ask.scale)

    def look(self, z: Tensor, at: slice) -> odds.Statistics:
        """Statistics of some rows of logits, noted down where rows were asked for."""
        target = self.target[at]
        target = target.argmax(1) if target.is_floating_point() else target
        statistics = odds.statistics(z, target)
        if self.seen is not None:
            self.seen.put_logits(at, z, target, statistics)
        return statistics

    def odds_losses(self, log_odds: Tensor, lse: Tensor) -> Tensor:
        """Shares of all rows from their log-odds, by differentiable operations."""
        assert self.psi is not None
        losses = r._elementwise(self.psi.psi, log_odds)
        shares = times(self._row_factor(slice(None), losses.dtype), losses)
        return shares + self.z_factor * lse.square() if self.z_factor else shares

    def odds_shares_(self, z: Tensor, at: slice) -> Tensor:
        """ψ's shares of some rows; the logits become the gradient of their sum."""
        assert self.psi is not None
        found = self.look(odds.cap_(z, self.ask.softcap), at)
        losses, slope = odds.value_and_slope(self.psi, found.log_odds)
        factor, scale = self._row_factor(at, losses.dtype), self.ask.scale
        shares, grad_lse = times(factor, losses), None
        if self.z_factor:
            lse = found.logsumexp
            shares = shares + self.z_factor * lse.square()
            grad_lse = 2 * scale * self.z_factor * lse
        grad = scale * factor * slope
        upstream = odds.Upstream.of(found.log_odds, found.total, grad, grad_lse)
        odds.gradient_(z, self.target[at], found, upstream, self.ask.softcap)
        return shares

    def any_shares_(self, z: Tensor, at: slice, grad: Tensor | None) -> Tensor:
        """Any loss's shares of some rows; the logits become the gradient of Σ grad·share."""
        shares = z.new_empty(len(z), dtype=compute_dtype(z.dtype))
        size = max(1 << 15, min(1 << 18, z.numel() // 16))
        for piece in pieces(len(z), z.shape[1], size):
            rows = slice(at.start + piece.start, at.start + piece.stop)
            leaf = z[piece].detach().requires_grad_(grad is not None)
            with torch.set_grad_enabled(grad is not None):
                logits = self.ask.capped(promote(leaf))
                part = self.any_shares(logits, rows)
            if self.seen is not None:
                self.look(logits.detach(), rows)
            shares[piece] = part.detach()
            if grad is None:
                continue
            if part.requires_grad:
                (slope,) = torch.autograd.grad(part, leaf, grad[piece] * self.ask.scale)
                z[piece] = slope
            else:  # a constant
                z[piece] = 0
        return shares

    def any_shares(self, logits: Tensor, at: slice) -> Tensor:
        """Any loss's shares of some rows, from their logits as the loss sees them."""
        target, shares = self.target[at], logits.new_zeros(())
        for term, divisor in zip(self.terms, self.divisors, strict=True):
            shares = (
                shares + times(term.factor, term.loss(logits, target, reduction="none")) / divisor
            )
        if self.z_factor:
            shares = shares + self.z_factor * torch.logsumexp(logits, 1).square()
        return shares

    def _row_factor(self, at: slice, dtype: torch.dtype) -> Tensor | float:
        """What the loss of each of some rows is multiplied by."""
        (term,), (divisor,) = self.terms, self.divisors
        weight = term.options["weight"]
        if weight is None:
            return term.factor / divisor
        return weight.to(dtype)[self.target[at]] * (term.factor / divisor)

"""Log-odds of a linear layer as PyTorch operators, for programs that torch.compile has traced.

The operators sweep over rows and classes as the eager code does, so a compiled program does not
hold the logits either; ψ and the mean are left to the compiler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from losslab.linear import log_odds
from losslab.linear.ask import Ask, as_under_autocast
from losslab.linear.layer import Layer, chunk_rows
from losslab.linear.odds import Statistics
from losslab.linear.plain import z_loss
from losslab.linear.rows import rows_of
from losslab.linear.terms import Term, psi_of, used_rows
from losslab.logodds import check_range
from losslab.logodds.plain import compute_dtype
from losslab.logodds.select import target_span
from losslab.losses import reduction as r
from losslab.losses.psi import times

_SKIP = -(1 << 62)  # the target of a row that does not count
# Written out: PyTorch before 2.5 cannot read annotations that are strings.
_NUMBERS = "float? softcap, float scale, int chunk"
_LOG_ODDS = (
    f"(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, {_NUMBERS}) -> (Tensor, Tensor)"
)
_GRADIENT = (
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor numbers, Tensor grad, "
    f"{_NUMBERS}, bool[] needs) -> Tensor[]"
)


def takes(terms: list[Term], target: Tensor, *tensors: Tensor | None) -> bool:
    """Whether a compiler, and nothing else, is at work on a ψ of plain tensors."""
    return (
        torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and psi_of(terms, target) is not None
        and all(x is None or type(x) in (Tensor, nn.Parameter) for x in (target, *tensors))
    )


def linear_loss(
    terms: list[Term], ask: Ask, input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None
) -> Any:
    """A ψ-loss whose log-odds come from the operator; they are 0 in rows that do not count."""
    input, weight, bias = as_under_autocast(input, weight, bias)
    (term,), psi = terms, psi_of(terms, target)
    shape, target = input.shape[:-1], target.reshape(-1).long()
    hidden, used = input.reshape(math.prod(shape), input.shape[-1]), used_rows(terms, target)
    assert psi is not None and used is not None
    goal, chunk = torch.where(used, target, _SKIP), ask.chunk_rows or 0
    numbers, correct = _log_odds(hidden, weight, bias, goal, ask.softcap, float(ask.scale), chunk)
    *statistics, lse = numbers.unbind()
    found = Statistics(*statistics)
    rows = _Given(psi.psi, found.log_odds, len(weight))
    stand_in = found.own.detach().new_zeros(()).expand(len(target), 1)
    losses = r.classification_loss(stand_in, target, rows, **term.options)
    losses = losses if term.factor == 1 else times(term.factor, losses)
    if ask.z_loss:
        losses = losses + z_loss(terms, ask, lse, used, losses.dim() == 0)
    losses = losses.reshape(shape) if losses.dim() else losses
    return (losses, rows_of(found, correct, used, shape)) if ask.return_rows else losses


@dataclass(frozen=True)
class _Given(r.Rows):
    """ψ of log-odds that are there."""

    psi: r.Psi
    log_odds: Tensor
    classes: int

    def hard(self, logits: Tensor, target: Tensor, ignored: Tensor | None = None) -> Tensor:
        return r._elementwise(self.psi, self.log_odds)

    def num_classes(self, logits: Tensor) -> int:
        return self.classes


@torch.library.custom_op("losslab::linear_log_odds", mutates_args=(), schema=_LOG_ODDS)
def _log_odds(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None,
    scale: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """(5, N) statistics and log-sum-exp, and whether each row is right."""
    layer, kept = _kept(hidden, weight, bias, target)
    check_range(target_span(kept), len(weight))
    chunk = chunk or chunk_rows(layer.count, weight, 6)
    seen = log_odds.by_rows(layer, kept, Ask(softcap, scale), chunk, correct=True)
    assert seen.correct is not None
    numbers = torch.stack((*seen.statistics, seen.statistics.logsumexp))
    if layer.keep is None:
        return numbers, seen.correct
    correct = seen.correct.new_zeros(len(target)).index_copy_(0, layer.keep, seen.correct)
    return numbers.new_zeros(5, len(target)).index_copy_(1, layer.keep, numbers), correct


@_log_odds.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None,
    scale: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    numbers = weight.new_empty((5, len(target)), dtype=compute_dtype(weight.dtype))
    return numbers, torch.empty_like(target, dtype=torch.bool)


@torch.library.custom_op("losslab::linear_log_odds_gradient", mutates_args=(), schema=_GRADIENT)
def _gradient(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    numbers: Tensor,
    grad: Tensor,
    softcap: float | None,
    scale: float,
    chunk: int,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients that are needed of hidden, weight and bias."""
    layer, kept = _kept(hidden, weight, bias, target)
    if layer.keep is not None:
        numbers, grad = numbers[:, layer.keep], grad[:, layer.keep]
    found = Statistics(*numbers[:4])
    chunk = chunk or chunk_rows(layer.count, weight, 6)
    every = (needs[0], needs[1], needs[2])
    results = log_odds.by_classes(
        layer, kept, Ask(softcap, scale), chunk, found, grad[0], grad[4], every
    )
    return [x for x in results if x is not None]


@_gradient.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    numbers: Tensor,
    grad: Tensor,
    softcap: float | None,
    scale: float,
    chunk: int,
    needs: list[bool],
) -> list[Tensor]:
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x, need in zip((hidden, weight, bias), needs, strict=True)
        if need and x is not None
    ]


def _kept(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Layer, Tensor]:
    """The layer and the targets of the rows that count."""
    used = target != _SKIP
    keep = None if bool(used.all()) else used.nonzero().squeeze(1)
    return Layer(hidden, weight, bias, keep), target if keep is None else target[keep]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, softcap, scale, chunk = inputs
    ctx.numbers = (softcap, scale, chunk)
    ctx.save_for_backward(*tensors, output[0])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:3])
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "a compiled linear_loss has no second derivatives: call it outside torch.compile."
        )
    results = iter(_gradient(*ctx.saved_tensors, grad, *ctx.numbers, needs))
    return *(next(results) if need else None for need in needs), *(None,) * 4


_log_odds.register_autograd(_backward, setup_context=_save)

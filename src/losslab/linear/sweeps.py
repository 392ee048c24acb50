"""The three ways through the rows, each one autograd node; all give the same result.

- ``Total``, a mean or sum in float32 or float64: the gradients are computed on the way forward,
  three matrix products in all, and the backward pass only scales them.
- ``Odds``, any ψ(a) otherwise: half types, ``reduction="none"``, a ψ with parameters. Forward the
  log-odds; backward the logits once more, some classes at a time: four products. The weight's
  gradient is written once, so half types need no float32 sum of its size, and the upstream gradient
  (a gradient scaler's factor) is known before anything is rounded.
- ``EachRow``, the same for losses that need more of a row than its log-odds, by rows.

Second derivatives are those of the plain formula, with all logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from losslab.linear import odds
from losslab.linear.ask import without_autocast
from losslab.linear.job import Job
from losslab.linear.layer import Gradients, Layer
from losslab.linear.log_odds import by_classes, by_rows, is_tiled
from losslab.logodds import plain
from losslab.logodds.plain import wants_plain

Grads = tuple[Tensor | None, ...]

# Whether the graph in its backward pass will be used again; older versions cannot tell.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def linear_loss(
    job: Job, hidden: Tensor, weight: Tensor, bias: Tensor | None, scalar: bool
) -> Tensor:
    """The reduced loss, or the losses of the rows that count."""
    tensors = (hidden, weight, bias)
    learns = job.learns(weight)
    recorded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    wide = weight.dtype in (torch.float32, torch.float64)
    if recorded and scalar and wide and not learns and not (job.psi and is_tiled(weight)):
        total = Total.apply(job, *tensors)
    else:
        if job.psi is not None:
            losses = job.odds_losses(*Odds.apply(job, *tensors))
        else:
            losses = EachRow.apply(job, *tensors)
        if not scalar:
            return losses
        total = losses.sum()
    return total + torch.nan if job.is_empty_mean else total


class Total(torch.autograd.Function):
    """Σ of the rows' shares in the loss."""

    @staticmethod
    def forward(ctx: Any, job: Job, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = Layer(hidden, weight, bias, job.keep)
        gradients = Gradients(layer, ctx.needs_input_grad[1:], by_rows=True)
        total = weight.new_zeros(())
        for at, inputs, z in job.sweep(layer):
            if job.psi is not None:
                shares = job.odds_shares_(z, at)
            else:
                shares = job.any_shares_(z, at, weight.new_ones(len(z)))
            total += shares.sum()
            gradients.add_rows(at, inputs, z)
        ctx.job = job
        ctx.save_for_backward(hidden, weight, bias, *gradients.results(), *job.watched)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Grads:
        tensors, gradients = ctx.saved_tensors[:3], ctx.saved_tensors[3:6]
        if wants_plain(grad):
            return None, *_plain_gradients(ctx, tensors, _total, grad)
        return None, *(None if x is None else _scaled(x, grad) for x in gradients)


def _scaled(saved: Tensor, grad: Tensor) -> Tensor:
    """grad·saved; in place, or ``saved`` itself, only where the graph is not used again."""
    if _keeps_graph():
        return saved * grad
    if grad.device.type == "cpu" and grad == 1:
        return saved
    return saved.mul_(grad)


class Odds(torch.autograd.Function):
    """(n,) log-odds and log-sum-exp of the rows that count."""

    @staticmethod
    def forward(
        ctx: Any, job: Job, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layer = Layer(hidden, weight, bias, job.keep)
        seen = by_rows(layer, job.target, job.ask, job.chunk, correct=job.seen is not None)
        job.seen = seen if job.seen is not None else None
        ctx.job = job
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, *seen.statistics, *job.watched)
        return seen.statistics.log_odds.clone(), seen.statistics.logsumexp

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> Grads:
        job, tensors, found = ctx.job, ctx.saved_tensors[:3], ctx.saved_tensors[3:7]
        if grad is None and grad_lse is None:
            return None, None, None, None
        if wants_plain(grad, grad_lse):
            return None, *_plain_gradients(ctx, tensors, _log_odds, grad, grad_lse)
        hidden, weight, bias = tensors
        return None, *by_classes(
            Layer(hidden, weight, bias, job.keep), job.target, job.ask, job.chunk,
            odds.Statistics(*found), grad, grad_lse, ctx.needs_input_grad[1:],
        )  # fmt: skip


class EachRow(torch.autograd.Function):
    """(n,) shares in the loss of the rows that count."""

    @staticmethod
    def forward(ctx: Any, job: Job, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shares = weight.new_empty(len(job.target), dtype=plain.compute_dtype(weight.dtype))
        for at, _, z in job.sweep(Layer(hidden, weight, bias, job.keep)):
            shares[at] = job.any_shares_(z, at, None)
        ctx.job = job
        ctx.save_for_backward(hidden, weight, bias, *job.watched)
        return shares

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Grads:
        hidden, weight, bias = ctx.saved_tensors[:3]
        if wants_plain(grad):
            return None, *_plain_gradients(ctx, (hidden, weight, bias), _shares, grad)
        layer = Layer(hidden, weight, bias, ctx.job.keep)
        gradients = Gradients(layer, ctx.needs_input_grad[1:], by_rows=True)
        with without_autocast(grad.device):
            for at, inputs, z in ctx.job.sweep(layer):
                ctx.job.any_shares_(z, at, grad[at])
                gradients.add_rows(at, inputs, z)
            return None, *gradients.results()


def _plain_gradients(
    ctx: Any,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    formula: Callable[[Job, Tensor], tuple[Tensor, ...]],
    *grads: Tensor | None,
) -> Grads:
    """Gradients of hidden, weight and bias by operations that can be differentiated again."""
    needs, (hidden, weight, bias) = ctx.needs_input_grad[1:], tensors
    inputs = Layer(hidden, weight, bias, ctx.job.keep)
    with torch.enable_grad():
        outputs = formula(ctx.job, ctx.job.ask.logits(inputs.inputs(), weight, bias))
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
    pairs = [(o, g) for o, g in pairs if o.requires_grad]
    if not pairs:
        return None, None, None
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs],
            [x for x, need in zip(tensors, needs, strict=True) if need and x is not None],
            [g.to(o.dtype) for o, g in pairs],
            create_graph=True,  # a batch of gradients needs operations without kernels
        )
    )
    results = [next(found) if need else None for need in needs]
    if torch.is_grad_enabled():
        return tuple(results)
    return tuple(None if x is None else x.clone() for x in results)  # without their graph


def _shares(job: Job, z: Tensor) -> tuple[Tensor, ...]:
    return (job.any_shares(plain.promote(z), slice(None)),)


def _total(job: Job, z: Tensor) -> tuple[Tensor, ...]:
    return (_shares(job, z)[0].sum(),)


def _log_odds(job: Job, z: Tensor) -> tuple[Tensor, ...]:
    return plain.log_odds(z, job.target), torch.logsumexp(plain.promote(z), 1)

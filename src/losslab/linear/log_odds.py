"""Log-odds of a linear layer by rows, and their gradient by classes.

In chunks, by the device's own matrix product and the kernel for dense logits; or, where the backend
``triton`` was asked for, by Triton's tiled product, which never writes the logits. The latter has
run in Triton's interpreter only, so nobody gets it unasked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.linear import odds
from losslab.linear.ask import Ask
from losslab.linear.layer import Gradients, Layer
from losslab.linear.rows import Seen
from losslab.logodds import select, triton_linear


def is_tiled(weight: Tensor) -> bool:
    """Whether Triton's linear kernels were asked for; raises where they cannot serve."""
    if not select.asked_for("triton"):
        return False
    reason = triton_linear.unavailable(weight, weight)
    if reason:
        raise InputError(
            f"the backend 'triton' was asked for (LOSSLAB_BACKEND or set_backend), but: {reason}."
        )
    return True


def by_rows(layer: Layer, target: Tensor, ask: Ask, chunk: int, *, correct: bool) -> Seen:
    """Statistics of all rows' logits, ``chunk`` rows at a time."""
    if is_tiled(layer.weight):
        return _by_tiles(layer, target, ask, correct=correct)
    seen = Seen(layer.count, layer.weight, correct=correct)
    for at, _, product in layer.sweep(chunk, ask.factor):
        z = odds.cap_(product, ask.softcap)
        seen.put_logits(at, z, target[at], odds.statistics(z, target[at]))
    return seen


def by_classes(
    layer: Layer,
    target: Tensor,
    ask: Ask,
    chunk: int,
    found: odds.Statistics,
    grad: Tensor | None,
    grad_lse: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """The layer's gradients from those of log-odds and log-sum-exp.

    The logits are made once more, of all rows and some classes at a time, two thirds as many logits
    as before. Each part of the weight's gradient is then one product, written once.
    """
    if is_tiled(layer.weight):
        return _tiled_gradients(layer, target, ask, found, grad, grad_lse, needs)
    rows, classes = layer.count, len(layer.weight)
    gradients = Gradients(layer, needs, by_rows=False)
    grad = torch.zeros_like(found.log_odds) if grad is None else grad * ask.scale
    grad_lse = None if grad_lse is None else grad_lse * ask.scale
    upstream = odds.Upstream.of(found.log_odds, found.total, grad, grad_lse)
    width = max(1, min(classes, 2 * chunk * classes // max(1, 3 * rows)))
    buffer, inputs = layer.weight.new_empty(rows * width), layer.inputs()
    for start in range(0, classes if rows else 0, width):
        at = slice(start, min(start + width, classes))
        out = buffer[: rows * (at.stop - start)].view(rows, -1)
        z = odds.cap_(layer.product(inputs, at, ask.factor, out), ask.softcap)
        inside = (target >= start) & (target < at.stop)
        local = torch.where(inside, target - start, 0)
        odds.gradient_(z, local, found, upstream, ask.softcap, inside)
        gradients.add_classes(at, inputs, z)
    return gradients.results()


def _by_tiles(layer: Layer, target: Tensor, ask: Ask, *, correct: bool) -> Seen:
    inputs = layer.inputs()
    found = triton_linear.linear_statistics(
        inputs, layer.weight, target, layer.bias, ask.scale, ask.softcap
    )
    seen = Seen(layer.count, layer.weight, correct=correct)
    own = odds.Statistics(found.log_odds, found.shift, found.total, found.target_logit)
    seen.put(slice(None), own, found.margin, lambda tied: _logits(layer, inputs[tied], ask), target)
    return seen


def _logits(layer: Layer, inputs: Tensor, ask: Ask) -> Tensor:
    return ask.logits(inputs, layer.weight, layer.bias)


def _tiled_gradients(
    layer: Layer,
    target: Tensor,
    ask: Ask,
    found: odds.Statistics,
    grad: Tensor | None,
    grad_lse: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    hidden, *others = triton_linear.linear_gradient(
        layer.inputs(), layer.weight, target, found.log_odds, found.shift, found.total,
        torch.zeros_like(found.log_odds) if grad is None else grad,
        grad_lse, layer.bias, ask.scale, ask.softcap, needs=needs,
    )  # fmt: skip
    if hidden is not None and layer.keep is not None:
        every = hidden.new_zeros(layer.hidden.shape)
        hidden = every.index_copy_(0, layer.keep, hidden)
    return hidden, *others

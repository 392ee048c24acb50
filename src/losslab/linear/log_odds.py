"""Log-odds of a linear layer by rows, and their gradient by classes."""

from __future__ import annotations

import torch
from torch import Tensor

from losslab.linear import odds
from losslab.linear.ask import Ask
from losslab.linear.layer import Gradients, Layer
from losslab.linear.rows import Seen


def by_rows(layer: Layer, target: Tensor, ask: Ask, chunk: int, *, correct: bool) -> Seen:
    """Statistics of all rows' logits, ``chunk`` rows at a time."""
    seen = Seen(layer.count, layer.weight, correct=correct)
    for at, _, product in layer.sweep(chunk, ask.factor):
        z = odds.cap_(product, ask.softcap)
        seen.put(at, z, target[at], odds.statistics(z, target[at]))
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

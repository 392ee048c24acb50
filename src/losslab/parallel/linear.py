"""The last layer split over ranks, and any ψ, without ever holding a rank's (N, C_local) logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.linear.ask import Ask, as_under_autocast, without_autocast
from losslab.linear.layer import Gradients, Layer
from losslab.linear.plain import z_loss as squared_logsumexp
from losslab.linear.rows import LinearRows
from losslab.linear.terms import LossLike, Term, as_loss, is_scalar, used_rows
from losslab.parallel import exchange, mesh
from losslab.parallel.loss import read, split_rows_of, stand_in, sum_of_terms, terms_to_split
from losslab.parallel.odds import Facts
from losslab.parallel.split import ClassSplit
from losslab.parallel.untraced import untraced

# Logits held at a time, at most: 16 MB of float32 on a CPU.
_CPU_CHUNK = 1 << 22
_DEVICE_CHUNK = 1 << 26


class Product:
    """c·tanh(s·(h Wᵀ + b)/c), some rows or some classes at a time, in one buffer.

    The backward pass goes by classes: each part of the weight's gradient is written once, so half
    types need no float32 sum of its size.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, ask: Ask) -> None:
        self.layer = Layer(hidden, weight, bias, None)
        self.ask = ask
        self.ties = ask.return_rows
        self.chunk = ask.chunk_rows or _chunk(len(hidden), weight)
        self.slope: Tensor | None = None
        self.sums: Gradients | None = None

    def by_rows(self) -> Iterator[tuple[slice, Tensor]]:
        n, classes = len(self.layer.hidden), len(self.layer.weight)
        buffer = self.layer.weight.new_empty(min(self.chunk, n), classes)
        for start in range(0, max(n, 1), self.chunk):
            at = slice(start, min(start + self.chunk, n))
            inputs = self.layer.inputs(at)
            yield at, self._logits(inputs, slice(0, classes), buffer[: len(inputs)])

    def by_classes(self) -> Iterator[tuple[slice, Tensor]]:
        n, classes = len(self.layer.hidden), len(self.layer.weight)
        width = max(1, min(classes, self.chunk * classes // max(1, n)))
        buffer = self.layer.weight.new_empty(n * width)
        for start in range(0, classes, width):
            at = slice(start, min(start + width, classes))
            z = buffer[: n * (at.stop - start)].view(n, at.stop - start)
            yield at, self._logits(self.layer.hidden, at, z)

    def _logits(self, inputs: Tensor, classes: slice, out: Tensor) -> Tensor:
        softcap = self.ask.softcap
        if softcap is None:
            return self.layer.product(inputs, classes, self.ask.scale, out)
        z = self.layer.product(inputs, classes, self.ask.scale / softcap, out)
        return z.tanh_().mul_(softcap)

    def room(self, logits: Tensor) -> Tensor:
        """The logits' own place, once the slope of the softcap is taken from them."""
        if self.ask.softcap is not None:
            self.slope = (logits / self.ask.softcap).square_().neg_().add_(1)
        return logits

    def take(self, classes: slice, gradient: Tensor) -> None:
        if self.slope is not None:
            gradient.mul_(self.slope)
        if self.ask.scale != 1:
            gradient.mul_(self.ask.scale)
        self._sums().add_classes(classes, self.layer.hidden, gradient)

    def _sums(self) -> Gradients:
        if self.sums is None:
            of = (self.layer.hidden, self.layer.weight, self.layer.bias)
            needs = tuple(x is not None and x.requires_grad for x in of)
            self.sums = Gradients(self.layer, needs, by_rows=False)  # type: ignore[arg-type]
        return self.sums

    def gradients(self) -> tuple[Tensor | None, ...]:
        return self._sums().results()


def _chunk(rows: int, weight: Tensor) -> int:
    """An eighth of the rows, if these are 64 and if their logits are not too many to hold."""
    most = _CPU_CHUNK if weight.device.type == "cpu" else _DEVICE_CHUNK
    return max(1, min(max(64, -(-rows // 8)), most // max(1, len(weight))))


@untraced
def linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    loss: LossLike = "cross_entropy",
    *,
    split: ClassSplit | None = None,
    linear_bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    chunk_rows: int | None = None,
    return_rows: bool = False,
    **options: Any,
) -> Any:
    """:func:`losslab.linear_loss` of a layer whose classes are split over ranks.

    Math: the loss of z = c·tanh(s·(h Wᵀ + b)/c), s = ``logit_scale``, c = ``softcap``, over the
        classes of all ranks, plus ``z_loss``·(log Σ_j exp z_j)² a row.

    The logits of this rank are made for a few rows at a time, and in the backward pass again for a
    few classes. Every rank gets the gradients of its own weight and bias, and the same gradient of
    ``input``, summed over the ranks: the one large exchange, of the size of ``input``.

    Args:
        input: (N, D) or (…, D), the hidden states h, the same on every rank.
        linear_weight: (C_local, D), the rows of this rank's classes; or a DTensor sharded along
            them.
        target: (N,) or (…) indices among all classes, the same on every rank; or probabilities
            of this rank's classes, (…, C_local).
        loss: a spec, a losslab loss with its own options, or a ψ; see :func:`split_loss`.
        split: which classes are here; not needed for a DTensor.
        linear_bias: (C_local,), those of this rank's classes.
        softcap, logit_scale, z_loss, chunk_rows: see :func:`losslab.linear_loss`.
        return_rows: also return a :class:`losslab.LinearRows`, alike on all ranks: whether
            each row is right, its margin, its log-odds and its log-sum-exp. Class indices only.
        options: ``weight`` (of all classes), ``ignore_index``, ``reduction``, ``label_smoothing``,
            ``zero_if_empty``, where ``loss`` is a spec or a ψ.

    Returns:
        A scalar, or with ``reduction="none"`` the losses in the shape of the rows. With
        ``return_rows`` the pair of it and the rows' facts.

    Raises: as :func:`split_loss`.

    Example:
        >>> import torch
        >>> from losslab import parallel
        >>> hidden, layer = torch.randn(8, 3), torch.nn.Linear(3, 5)
        >>> target, split = torch.randint(5, (8,)), parallel.ClassSplit.even(5)  # one process
        >>> parallel.linear_loss(hidden, layer.weight, target, "focal", split=split).shape
        torch.Size([])
    """
    ask = Ask(softcap, logit_scale, z_loss, chunk_rows, return_rows)
    terms = terms_to_split(as_loss(loss, options))
    scalar = is_scalar(terms)
    split, weight = _shard(linear_weight, split)
    hidden, target, bias = _whole(input), mesh.local(target), mesh.local(linear_bias)
    _check(hidden, weight, target, bias, terms, return_rows)
    hidden, weight, bias = as_under_autocast(hidden, weight, bias)
    shape = hidden.shape[:-1]
    flat = exchange.sum_gradient(hidden, split.group).reshape(math.prod(shape), hidden.shape[-1])
    rows = target.reshape(len(flat), *([split.size] if target.is_floating_point() else []))
    wide = torch.promote_types(flat.dtype, torch.float32)
    soft = target.is_floating_point()
    like = stand_in(flat, rows.shape if soft else (len(flat), 1), dtype=wide)
    every = split_rows_of(terms, split, partial(Product, ask=ask), (flat, weight, bias))
    with without_autocast(flat.device):
        losses = sum_of_terms(terms, every, like, rows)
        if z_loss:
            used, lse = used_rows(terms, rows), every[0].logsumexp
            losses = losses + squared_logsumexp(terms, ask, lse, used, scalar)
    losses = losses if scalar else losses.reshape(shape)
    if not torch.is_autocast_enabled(flat.device.type):
        losses = losses.to(weight.dtype)
    if not return_rows:
        return losses
    assert every[0].facts is not None
    return losses, _rows(every[0].facts, used_rows(terms, rows), shape)


def _rows(facts: Facts, used: Tensor | None, shape: torch.Size) -> LinearRows:
    """The facts of the rows that are used; NaN for the others."""
    correct = facts.correct
    used = torch.ones_like(correct) if used is None else used
    every = (facts.margin, facts.log_odds, facts.logsumexp)
    numbers = (x.detach().masked_fill(~used, torch.nan) for x in every)
    return LinearRows(*(x.reshape(shape) for x in (used, correct & used, *numbers)))


def _shard(weight: Tensor, split: ClassSplit | None) -> tuple[ClassSplit, Tensor]:
    share = read(weight, split, class_dim=0, name="linear_weight")
    if share.split is None or share.others or (mesh.is_dtensor(weight) and mesh.dims(weight) > 1):
        raise InputError(
            "a linear_weight given as a DTensor must be sharded along its classes, dimension 0, on "
            f"a mesh of one dimension; got {mesh.describe(weight)}. For a weight with all classes "
            "use losslab.linear_loss; on larger meshes give weight.to_local() and split=."
        )
    return share.split, share.local


def _whole(hidden: Tensor) -> Tensor:
    """The hidden states, where a DTensor has them whole on every rank."""
    if mesh.is_dtensor(hidden) and not mesh.is_whole(hidden):
        raise InputError(
            "input given as a DTensor must be replicated, since every rank needs all of it; got "
            f"{mesh.describe(hidden)}."
        )
    return mesh.local(hidden)


def _check(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    terms: list[Term],
    return_rows: bool,
) -> None:
    soft, rows = target.is_floating_point(), tuple(hidden.shape[:-1])
    if (
        weight.dim() != 2
        or hidden.dim() < 1
        or hidden.shape[-1] != weight.shape[1]
        or target.shape != (*rows, *([len(weight)] if soft else []))
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        raise InputError(
            "input must be (N, D) or (…, D), linear_weight (C_local, D), linear_bias (C_local,), "
            "and target (N,) or (…) class indices, or (…, C_local) probabilities; got input "
            f"{tuple(hidden.shape)}, linear_weight {tuple(weight.shape)}, linear_bias "
            f"{None if bias is None else tuple(bias.shape)}, target {tuple(target.shape)}."
        )
    tensors = [hidden, weight] if bias is None else [hidden, weight, bias]
    narrow = torch.is_autocast_enabled(hidden.device.type)
    if len({x.dtype for x in tensors}) > 1 and not narrow:
        raise InputError(
            "input, linear_weight and linear_bias must be of one dtype outside autocast; got "
            f"{', '.join(str(x.dtype) for x in tensors)}."
        )
    if return_rows and (soft or len({term.options["ignore_index"] for term in terms}) > 1):
        raise InputError(
            "return_rows goes with class indices, and with terms that ignore the same rows."
        )

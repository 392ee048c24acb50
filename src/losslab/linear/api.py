"""``linear_loss`` beside ``F.linear_cross_entropy``, and the output layer that owns its loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from losslab.linear import operator, sweeps
from losslab.linear.ask import Ask, as_under_autocast, check, needs_plain, without_autocast
from losslab.linear.job import Job
from losslab.linear.plain import plain_loss
from losslab.linear.terms import LossLike, Term, as_loss, is_scalar, terms_given, terms_of


def linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    loss: LossLike = "cross_entropy",
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str | None = None,
    label_smoothing: float | None = None,
    zero_if_empty: bool | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    chunk_rows: int | None = None,
    return_rows: bool = False,
) -> Any:
    """``loss(F.linear(input, linear_weight, linear_bias), target)`` without holding the logits.

    Math: the loss of z = c·tanh(s·(h Wᵀ + b)/c), s = ``logit_scale``, c = ``softcap`` (or
        z = s·(h Wᵀ + b) without one), plus ``z_loss``·(log Σ_j exp z_j)² a row.

    The names are those of ``F.linear_cross_entropy``. docs/linear.md says what is computed when,
    and what that costs.

    Args:
        input: (N, D), (B, T, D) or (…, D), the hidden states h.
        linear_weight: (V, D), the layer's weight W, as in ``nn.Linear``.
        target: class indices of the input's shape without D; or probabilities, (…, V).
        loss: a spec, a losslab loss with its own options, or a ψ.
        linear_bias: (V,), the layer's bias b.
        weight, ignore_index, reduction, label_smoothing, zero_if_empty: options of the loss, as in
            ``F.cross_entropy``; ``weight`` is one number a class. None is their usual default. A
            losslab module has its own, and giving both is an error.
        softcap: bound c > 0 of the logits.
        logit_scale: factor s > 0 of the logits, bias included.
        z_loss: ≥ 0. The term is added to the loss of each row that is not ignored, and averaged
            over those rows (or summed) whatever the class weights.
        chunk_rows: rows whose logits are held at a time; chosen by size unless given.
        return_rows: also return a :class:`LinearRows`: whether each row is right, its margin, its
            log-odds and its log-sum-exp, from the same pass.

    Returns:
        A scalar, or with ``reduction="none"`` the target's shape; float32 or wider, never rounded
        to a half type. With ``return_rows`` the pair of it and a :class:`LinearRows`.

    Raises:
        InputError: shapes, dtypes or options that do not fit.
        IndexError: a class index outside [0, V) (on the CPU; accelerators assert on the device).

    Example:
        >>> import torch, losslab
        >>> hidden, layer = torch.randn(8, 16), torch.nn.Linear(16, 100)
        >>> target = torch.randint(100, (8,))
        >>> loss = losslab.linear_loss(
        ...     hidden, layer.weight, target, "encouraging", linear_bias=layer.bias
        ... )
        >>> loss.backward()
    """
    options = {
        "weight": weight,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "zero_if_empty": zero_if_empty,
    }
    given = {name: value for name, value in options.items() if value is not None}
    terms = terms_given(loss, given, input.device)
    ask = Ask(softcap, logit_scale, z_loss, chunk_rows, return_rows)
    return _loss(terms, ask, input, linear_weight, target, linear_bias)


class LinearLoss(nn.Module):
    """An output layer that owns its loss: ``nn.Linear`` and any loss, without holding the logits.

    Its parameters are named as those of ``nn.Linear``, so a layer's state can be loaded, and the
    weight can be tied to an embedding: ``head.weight = embedding.weight``.

    Args:
        in_features: D.
        num_classes: V.
        loss: a spec, a losslab loss with its own options, or a ψ.
        bias: whether the layer has one.
        softcap, logit_scale, z_loss, chunk_rows: see :func:`linear_loss`.
        device, dtype: of the parameters.
        options: ``weight`` (of the classes), ``ignore_index``, ``reduction``,
            ``label_smoothing``, ``zero_if_empty``, where ``loss`` is a spec or a ψ.

    Shape: hidden (…, D) and target (…) class indices, or (…, V) probabilities; returns what
    :func:`linear_loss` returns.

    Example:
        >>> import torch, losslab
        >>> head = losslab.LinearLoss(16, 100, "encouraging", label_smoothing=0.1)
        >>> hidden, target = torch.randn(8, 16), torch.randint(100, (8,))
        >>> head(hidden, target).shape, head.logits(hidden).shape
        (torch.Size([]), torch.Size([8, 100]))
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: LossLike = "cross_entropy",
        *,
        bias: bool = True,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        z_loss: float = 0.0,
        chunk_rows: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.loss = as_loss(loss, options)
        is_scalar(terms_of(self.loss))  # refuses now what could not be computed
        self._ask = Ask(softcap, logit_scale, z_loss, chunk_rows)
        empty = torch.empty(num_classes, in_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(empty)
        self.register_parameter(
            "bias", nn.Parameter(empty.new_empty(num_classes)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as ``nn.Linear`` does."""
        bound = 1 / math.sqrt(max(1, self.weight.shape[1]))
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    @property
    def spec(self) -> str:
        """The loss's spec."""
        return self.loss.spec

    def set_progress(self, progress: float) -> None:
        """Move every schedule of the loss to the fraction of training done, in [0, 1]."""
        self.loss.set_progress(progress)

    def forward(self, hidden: Tensor, target: Tensor, *, return_rows: bool = False) -> Any:
        """The loss; with ``return_rows`` the pair of it and a :class:`LinearRows`."""
        ask = replace(self._ask, return_rows=True) if return_rows else self._ask
        return _loss(terms_of(self.loss), ask, hidden, self.weight, target, self.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, V) logits, scaled and capped as the loss sees them, for inference."""
        return self._ask.logits(hidden, self.weight, self.bias)

    def extra_repr(self) -> str:
        classes, features = self.weight.shape
        return f"{features}, {classes}, bias={self.bias is not None}"


def _loss(
    terms: list[Term],
    ask: Ask,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
) -> Any:
    scalar = is_scalar(terms)
    check(terms, input, weight, target, bias)
    if needs_plain(input, weight, target, bias):
        if operator.takes(terms, target, input, weight, bias):
            return operator.linear_loss(terms, ask, input, weight, target, bias)
        return plain_loss(terms, ask, input, weight, target, bias)
    input, weight, bias = as_under_autocast(input, weight, bias)
    shape, classes = input.shape[:-1], weight.shape[0]
    hidden = input.reshape(math.prod(shape), input.shape[-1])
    rows = target.reshape(len(hidden), *([classes] if target.is_floating_point() else []))
    job = Job.of(terms, ask, weight, rows)
    with without_autocast(input.device):
        losses = sweeps.linear_loss(job, hidden, weight, bias, scalar)
    if not scalar:
        if job.keep is not None:
            losses = losses.new_zeros(len(hidden)).index_copy(0, job.keep, losses)
        losses = losses.reshape(shape)
    if job.seen is None:
        return losses
    seen, job.seen = job.seen, None
    return losses, seen.rows(job.keep, shape)

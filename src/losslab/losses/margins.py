"""Changes to the logits, made before any ψ: margins, priors; and weights for rare classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.losses.modules import ClassificationLoss, Step, _Loss, _terms
from losslab.schedules import Schedule, deferred_weights, exact

Counts = Sequence[float] | Tensor


class AdjustedLoss(_Loss):
    """A loss on changed logits: ``loss(change(logits, target), target)``.

    Args:
        change: :class:`AdditiveMargin`, :class:`LDAMMargin`, :class:`LogitAdjustment`, or any
            module called with (logits, target) that returns logits.
        loss: any loss.

    Shape: those of the loss; (N, C, …) logits and class-index targets.

    Example:
        >>> import torch, losslab
        >>> loss = losslab.AdjustedLoss(
        ...     losslab.LogitAdjustment(counts=[90, 10]), losslab.EncouragingLoss()
        ... )
        >>> loss(torch.randn(4, 2), torch.tensor([0, 0, 0, 1])).shape
        torch.Size([])
    """

    def __init__(self, change: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.change = change
        self.loss = loss

    @property
    def spec(self) -> str:  # type: ignore[override]
        inner = getattr(self.loss, "spec", "custom")
        return f"{getattr(self.change, 'name', 'adjusted')}({inner}, {self.change.extra_repr()})"

    @property
    def steps(self) -> tuple[Step, ...]:
        """The loss's own steps, each on the changed logits."""
        inner = getattr(self.loss, "steps", ())
        if len(inner) < 2:
            return (self,)
        # modules, so that a loop that divides batches finds the options of the loss in them
        return tuple(AdjustedLoss(self.change, step) for step in inner)

    def set_progress(self, progress: float) -> None:
        for part in (self.change, self.loss):
            advance = getattr(part, "set_progress", None)
            if advance is not None:
                advance(progress)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.change(input, target), target)


class AdditiveMargin(nn.Module):
    """Additive margin: the true class's cosine must win by ``margin``.

    Math: s·(z − m·e_y), on logits that are cosines (:class:`CosineLinear`).

    Args:
        margin: m ≥ 0.
        scale: s > 0.

    Shape: logits (C,), (N, C) or (N, C, d1, …) and class-index target; returns changed logits.

    Example:
        >>> import torch, losslab
        >>> change = losslab.AdditiveMargin(margin=0.5, scale=2)
        >>> change(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor([[1., 0.]])

    Source: Wang et al. 2018 (AM-Softmax), equation 6.
    """

    name = "additive_margin"

    def __init__(self, margin: float = 0.35, scale: float = 30.0) -> None:
        super().__init__()
        self.margin = _at_least("additive_margin", "margin", margin, 0)
        self.scale = _positive("additive_margin", "scale", scale)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.scale * (logits - self.margin * _true_class(self.name, logits, target))

    def extra_repr(self) -> str:
        return f"margin={exact(self.margin)}, scale={exact(self.scale)}"


class LDAMMargin(nn.Module):
    """Label-distribution-aware margin: rarer classes must win by more.

    Math: s·(z − Δ_y·e_y) with Δ_j ∝ n_j^(−1/4), the largest being ``max_margin``.

    Args:
        counts: training examples of each class.
        max_margin: margin of the rarest class.
        scale: s > 0; the paper uses 30 on cosine logits (:class:`CosineLinear`).

    Shape: logits (C,), (N, C) or (N, C, d1, …) and class-index target; returns changed logits.

    Example:
        >>> import torch, losslab
        >>> change = losslab.LDAMMargin(counts=[16, 1], max_margin=0.5, scale=1)
        >>> change(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor([[0.7500, 0.0000]])

    Source: Cao et al. 2019, equation 13 and their code.
    """

    name = "ldam"
    margins: Tensor

    def __init__(self, counts: Counts, max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__()
        n = _counts("ldam", counts)
        margins = n.pow(-0.25)
        self.max_margin = _at_least("ldam", "max_margin", max_margin, 0)
        self.scale = _positive("ldam", "scale", scale)
        margins = margins * (self.max_margin / margins.max())
        self.register_buffer("margins", margins.to(torch.get_default_dtype()))
        self.counts = n.tolist()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        one_hot = _true_class(self.name, logits, target)
        return self.scale * (logits - one_hot * _along_classes(self.name, self.margins, logits))

    def extra_repr(self) -> str:
        counts = _list(self.counts)
        return f"counts={counts}, max_margin={exact(self.max_margin)}, scale={exact(self.scale)}"


class LogitAdjustment(nn.Module):
    """Logit adjustment: adds the classes' log prior, so that the bare logits suit balanced data.

    Math: z + τ·log π with π_j = n_j/Σn.

    Args:
        counts: training examples of each class (any multiple of the prior).
        tau: τ ≥ 0.

    Shape: logits (C,), (N, C) or (N, C, d1, …) and class-index target; returns changed logits.

    Example:
        >>> import torch, losslab
        >>> change = losslab.LogitAdjustment(counts=[50, 50])
        >>> change(torch.zeros(1, 2), torch.tensor([0]))
        tensor([[-0.6931, -0.6931]])

    Source: Menon et al. 2021, equation 10.
    """

    name = "logit_adjustment"
    offset: Tensor

    def __init__(self, counts: Counts, tau: float = 1.0) -> None:
        super().__init__()
        n = _counts("logit_adjustment", counts)
        self.tau = _at_least("logit_adjustment", "tau", tau, 0)
        offset = self.tau * (n / n.sum()).log()
        self.register_buffer("offset", offset.to(torch.get_default_dtype()))
        self.counts = n.tolist()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits + _along_classes(self.name, self.offset, logits)

    def extra_repr(self) -> str:
        return f"counts={_list(self.counts)}, tau={exact(self.tau)}"


class ReweightedLoss(_Loss):
    """A loss with class weights made from counts, from the start or later, as a spec can name it.

    Math: that of ``loss`` with ``weight=class_weights(counts, method, beta=beta)`` from the
    fraction ``start`` of training on, and with no weights before.

    Args:
        loss: a loss or a sum of losses; a copy of it is kept.
        counts: training examples of each class. In `losslab compare` write ``counts=train``.
        method: ``"effective_number"`` or ``"inverse_frequency"``; see :func:`class_weights`.
        beta: of the effective number.
        start: fraction of training; above 0 this is deferred re-weighting.

    Elsewhere the option ``weight``, with :class:`losslab.deferred_weights`, does the same. For LDAM
    with it write ``ldam(reweighted(cross_entropy, …), …)``.

    Example:
        >>> import losslab
        >>> loss = losslab.loss("reweighted(encouraging, counts=[90, 10], start=0.8)")
        >>> loss.set_progress(0.9)
        >>> loss.loss.weight
        tensor([0.2007, 1.7993])

    Source: Cui et al. 2019, equation 2; Cao et al. 2019 (start 0.8); Zhao et al. 2022, table 3
    (start 0.9).
    """

    def __init__(
        self,
        loss: _Loss,
        *,
        counts: Counts,
        method: str = "effective_number",
        beta: float = 0.9999,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        if not all(isinstance(part, ClassificationLoss) for _, part in _terms(loss)):
            raise InputError(
                "reweighted takes a loss or a sum of losses, such as EncouragingLoss(); got "
                f"{getattr(loss, 'spec', repr(loss))}. Put reweighted inside the other wrapper."
            )
        self.counts = _counts("reweighted", counts).tolist()
        self.method, self.beta, self.start = method, float(beta), float(start)
        later = deferred_weights(class_weights(counts, method, beta=beta), start)
        self.loss = copy.deepcopy(loss)
        for _, part in _terms(self.loss):
            part.reweight(later)

    @property
    def spec(self) -> str:  # type: ignore[override]
        return (
            f"reweighted({self.loss.spec}, counts={_list(self.counts)}, method={self.method}, "
            f"beta={exact(self.beta)}, start={exact(self.start)})"
        )

    def set_progress(self, progress: float) -> None:
        self.loss.set_progress(progress)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.loss(input, target)


class CosineLinear(nn.Module):
    """Output layer whose logits are the cosines between features and class vectors.

    Math: z_j = cos θ_j = x·w_j / (‖x‖‖w_j‖).

    Args:
        in_features: dimension of x.
        out_features: number of classes.

    Shape: features (*, D); returns logits (*, C) in [−1, 1], for :class:`AdditiveMargin` and
    :class:`LDAMMargin`.

    Example:
        >>> import torch, losslab
        >>> losslab.CosineLinear(16, 5)(torch.randn(8, 16)).shape
        torch.Size([8, 5])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        normalize = nn.functional.normalize
        return nn.functional.linear(normalize(input, dim=-1), normalize(self.weight, dim=-1))


class LargeMarginLinear(nn.Module):
    """Output layer of large-margin softmax: the angle to the true class counts m-fold.

    Math: z_j = ‖w_j‖‖x‖ cos θ_j, and for the true class ‖w_y‖‖x‖ φ(θ_y) with
        φ(θ) = (−1)^k cos(mθ) − 2k on θ ∈ [kπ/m, (k+1)π/m]; blended as (λ cos θ + φ(θ))/(1 + λ).

    Args:
        in_features: dimension of x.
        out_features: number of classes.
        margin: m, a whole number from 1 to 4; 1 is an ordinary layer without bias.
        annealing: λ ≥ 0, a number or a schedule; training usually starts large and ends near 0.

    Shape: features (N, D) and, while training, target (N,); returns logits (N, C) for any ψ.
    Without a target the logits are the plain ones, for prediction.

    Example:
        >>> import torch, losslab
        >>> layer = losslab.LargeMarginLinear(16, 5, margin=2)
        >>> layer(torch.randn(8, 16), torch.randint(5, (8,))).shape
        torch.Size([8, 5])

    Source: Liu et al. 2016, equations 4–8.
    """

    annealing: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        margin: int = 2,
        annealing: float | Schedule = 0.0,
    ) -> None:
        super().__init__()
        if isinstance(margin, bool) or margin not in (1, 2, 3, 4):
            raise InputError(f"large margin: margin must be 1, 2, 3 or 4; got {margin!r}.")
        self.margin = int(margin)
        self._schedule = annealing if isinstance(annealing, Schedule) else None
        start = annealing(0.0) if isinstance(annealing, Schedule) else annealing
        _at_least("large margin", "annealing", start, 0)
        self.register_buffer("annealing", torch.tensor(float(start)))
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def set_progress(self, progress: float) -> None:
        """Move the annealing schedule to the fraction of training done."""
        if self._schedule is not None:
            self.annealing.fill_(self._schedule(progress))

    def forward(self, input: Tensor, target: Tensor | None = None) -> Tensor:
        logits = nn.functional.linear(input, self.weight)
        if target is None or self.margin == 1:
            return logits
        if target.is_floating_point():
            raise _needs_indices("large margin", target)
        classes = self.weight.shape[0]
        inside = (target >= 0) & (target < classes)  # others are rows to ignore: logits unchanged
        index = target.masked_fill(~inside, 0).unsqueeze(1)
        lengths = input.norm(dim=1) * self.weight.norm(dim=1)[index.squeeze(1)]
        cosine = logits.gather(1, index).squeeze(1) / lengths.clamp(min=1e-12)
        widened = lengths * self._phi(cosine.clamp(-1, 1))
        plain = lengths * cosine
        blended = (self.annealing * plain + widened) / (1 + self.annealing)
        blended = torch.where(inside, blended, plain)
        return logits.scatter(1, index, blended.unsqueeze(1).to(logits.dtype))

    def _phi(self, c: Tensor) -> Tensor:
        """φ(θ) from c = cos θ, by the multiple-angle formulas."""
        multiple = {2: 2 * c**2 - 1, 3: 4 * c**3 - 3 * c, 4: 8 * c**4 - 8 * c**2 + 1}[self.margin]
        edges = [math.cos(j * math.pi / self.margin) for j in range(1, self.margin)]
        k = torch.stack([(c <= edge).to(c.dtype) for edge in edges]).sum(0)
        return (1 - 2 * (k % 2)) * multiple - 2 * k

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, margin={self.margin}"


def class_weights(
    counts: Counts, method: str = "inverse_frequency", *, beta: float = 0.9999
) -> Tensor:
    """Class weights for imbalanced data, to pass as any loss's ``weight``.

    Math: ``"inverse_frequency"``: w_j ∝ 1/n_j. ``"effective_number"``: w_j ∝ (1 − β)/(1 − β^n_j).
        Both are scaled to sum to the number of classes.

    Args:
        counts: training examples of each class, all positive.
        method: ``"inverse_frequency"`` or ``"effective_number"``.
        beta: β in [0, 1) of the effective number; 0 weighs all classes alike.

    Returns:
        (C,) float tensor.

    Example:
        >>> import losslab
        >>> losslab.class_weights([90, 10])
        tensor([0.2000, 1.8000])

    Source: Cui et al. 2019, equation 2 (effective number).
    """
    n = _counts("class_weights", counts)
    if method == "inverse_frequency":
        weights = 1 / n
    elif method == "effective_number":
        if not 0 <= beta < 1:
            raise InputError(f"class_weights: beta must be in [0, 1); got {beta:g}.")
        # (1 − β^n) as −expm1(n log β), exact for β near 1
        weights = 1 / -torch.expm1(n * math.log(beta)) if beta > 0 else torch.ones_like(n)
    else:
        raise InputError(
            f"class_weights: method must be 'inverse_frequency' or 'effective_number'; "
            f"got {method!r}."
        )
    return (weights * (len(weights) / weights.sum())).to(torch.get_default_dtype())


def _true_class(name: str, logits: Tensor, target: Tensor) -> Tensor:
    """One-hot of class-index targets; rows with a target outside [0, C) (ignored) are zero."""
    if target.is_floating_point():
        raise _needs_indices(name, target)
    dim = 0 if logits.dim() == 1 else 1
    shape = [1] * logits.dim()
    shape[dim] = -1
    classes = torch.arange(logits.shape[dim], device=logits.device).view(shape)
    return (classes == target.unsqueeze(dim)).to(logits.dtype)


def _needs_indices(name: str, target: Tensor) -> InputError:
    return InputError(
        f"{name} needs class-index targets: a margin belongs to one true class. "
        f"Got probability targets of shape {tuple(target.shape)}."
    )


def _along_classes(name: str, values: Tensor, logits: Tensor) -> Tensor:
    dim = 0 if logits.dim() == 1 else 1
    if logits.shape[dim] != len(values):
        raise InputError(
            f"{name} was given the counts of {len(values)} classes, but the logits have "
            f"{logits.shape[dim]} classes; got logits of shape {tuple(logits.shape)}."
        )
    return values.to(logits.dtype).view([-1 if i == dim else 1 for i in range(logits.dim())])


def _counts(name: str, counts: Any) -> Tensor:
    try:
        n = torch.as_tensor(counts, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{name}: counts must be a list of numbers, one a class; got {counts!r}."
        ) from None
    bad = [i for i, value in enumerate(n.tolist()) if not value > 0 or math.isinf(value)]
    if len(n) < 2 or bad:
        which = f"class {bad[0]} has {n[bad[0]]:g}" if bad else f"there are {len(n)} counts"
        raise InputError(
            f"{name}: counts must hold the positive number of training examples of each of at "
            f"least two classes; {which}."
        )
    return n


def _at_least(name: str, parameter: str, value: float, low: float) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value) and value >= low):
        raise InputError(f"{name}: {parameter} must be at least {low:g}; got {value!r}.")
    return float(value)


def _positive(name: str, parameter: str, value: float) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise InputError(f"{name}: {parameter} must be positive; got {value!r}.")
    return float(value)


def _list(values: Sequence[float]) -> str:
    return "[" + ", ".join(exact(v) for v in values) + "]"

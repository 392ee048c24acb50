"""From one loss a row to what ``F.cross_entropy`` would return: targets, weights, means.

A loss is given as *rows*: ``hard(logits, target)`` is the loss of each row for its class index,
``soft(logits)`` the loss of each row for every class, had that class been the true one. Soft
targets t then mean Σ_k t_k·L_k, the expected loss when the label is drawn from t, and label
smoothing is the soft target (1 − ε)·e_y + ε/C, exactly as PyTorch defines them for cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from losslab import logodds
from losslab.errors import InputError, nearest
from losslab.logodds.native import Shares
from losslab.logodds.plain import being_transformed, compute_dtype, promote
from losslab.logodds.select import (
    all_in_range,
    count_ignored,
    kernel_for,
    log_odds,
    takes_all,
    target_span,
)
from losslab.losses.expected import expected_loss
from losslab.losses.fused import fused_loss
from losslab.losses.psi import times

Psi = Callable[[Tensor], Tensor]
REDUCTIONS = ("none", "mean", "sum")
# The options all losses share: default, type, meaning.
OPTIONS: dict[str, tuple[Any, str, str]] = {
    "weight": (
        None,
        "Tensor | None",
        "(C,) class weights; a mean divides by the sum of those used.",
    ),
    "ignore_index": (-100, "int", "class index of rows to skip; class-index targets only."),
    "reduction": ("mean", "str", '``"none"``, ``"mean"`` or ``"sum"``.'),
    "label_smoothing": (0.0, "float", "ε in [0, 1]; the target becomes (1 − ε)·e_y + ε/C."),
    "zero_if_empty": (False, "bool", "a mean over no rows is 0 instead of PyTorch's NaN."),
}
BINARY_OPTIONS: dict[str, tuple[Any, str, str]] = {
    "weight": (None, "Tensor | None", "rescales every element; broadcast against the input."),
    "pos_weight": (None, "Tensor | None", "weight of positives, one a class; broadcast likewise."),
    "reduction": ("mean", "str", '``"none"``, ``"mean"`` or ``"sum"`` over all elements.'),
}


def split_options(
    keywords: Mapping[str, Any], names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments as (options of the reduction, parameters of the loss)."""
    options = {name: keywords[name] for name in names if name in keywords}
    return options, {k: v for k, v in keywords.items() if k not in options}


class Rows:
    """How a loss looks at rows of logits (N, C, …); the results are float32 or wider."""

    def hard(self, logits: Tensor, target: Tensor, ignored: Tensor | None = None) -> Tensor:
        """(N, …) losses for class indices; rows marked ``ignored`` may hold anything finite."""
        raise NotImplementedError

    def soft(self, logits: Tensor, unused: Tensor | None = None) -> Tensor:
        """(N, C, …) losses for every class; entries marked ``unused`` will be multiplied by 0."""
        raise NotImplementedError

    def expected(self, logits: Tensor, share: Tensor) -> Tensor:
        """(N, …) Σ_k share_k L_k; ``share`` (N, C, …), or broadcast against it."""
        return times(share, self.soft(logits, share == 0)).sum(1)

    def num_classes(self, logits: Tensor) -> int:
        return logits.shape[1]


@dataclass(frozen=True)
class OddsRows(Rows):
    """ψ of the log-odds: the rows of nearly every loss; ``slope`` is ψ' where it is written out."""

    psi: Psi
    slope: Psi | None = None
    key: Any = None  # (ψ, ψ', arguments as pairs) of a catalogue loss with fixed numbers

    def hard(self, logits: Tensor, target: Tensor, ignored: Tensor | None = None) -> Tensor:
        return _elementwise(self.psi, quiet(log_odds(logits, target), ignored))

    def soft(self, logits: Tensor, unused: Tensor | None = None) -> Tensor:
        return _elementwise(self.psi, _calm(logodds.all_log_odds(logits), unused))


@dataclass(frozen=True)
class OneVsRestRows(Rows):
    """One sigmoid a class: ψ(z_k) for the true class and ψ(−z_k) for each other, summed."""

    psi: Psi
    mean: bool = False

    def hard(self, logits: Tensor, target: Tensor, ignored: Tensor | None = None) -> Tensor:
        z = promote(logits)
        index = target.unsqueeze(1)
        signed = z.neg().scatter(1, index, z.gather(1, index))
        every = None if ignored is None else ignored.unsqueeze(1)
        return self._over_classes(_elementwise(self.psi, quiet(signed, every)))

    def soft(self, logits: Tensor, unused: Tensor | None = None) -> Tensor:
        z = promote(logits)
        absent = _elementwise(self.psi, -z)
        losses = self.psi(_calm(z, unused)) + sum_of_others(absent)
        return losses / z.shape[1] if self.mean else losses

    def _over_classes(self, losses: Tensor) -> Tensor:
        return losses.mean(1) if self.mean else losses.sum(1)


def classification_loss(
    input: Tensor,
    target: Tensor,
    rows: Rows,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    zero_if_empty: bool = False,
) -> Tensor:
    """Reduce ``rows`` with the semantics of ``F.cross_entropy``; see :func:`losslab.odds_loss`."""
    check_reduction(reduction)
    check_label_smoothing(label_smoothing)
    loss, options = None, (ignore_index, reduction, label_smoothing, zero_if_empty)
    if isinstance(rows, OddsRows):
        if label_smoothing or target.is_floating_point():
            loss = _fused_expected(input, target, rows, weight, *options)
        elif weight is None:
            loss = _fused(input, target, rows, ignore_index, reduction)
    if loss is None:
        loss = _composed(input, target, rows, weight, *options)
    return loss


def _composed(
    input: Tensor,
    target: Tensor,
    rows: Rows,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    zero_if_empty: bool,
) -> Tensor:
    """Any case, by differentiable operations; what is wrong with the arguments is said here."""
    if input.dim() == 0 or not input.is_floating_point():
        raise InputError(
            "input must hold floating point logits of shape (C,), (N, C) or (N, C, d1, …); "
            f"got {str(input.dtype).removeprefix('torch.')} of shape {tuple(input.shape)}."
        )
    classes = rows.num_classes(input if input.dim() > 1 else input.unsqueeze(0))
    if weight is not None and weight.shape != (classes,):
        raise InputError(
            f"weight must hold one number a class, shape ({classes},); got {tuple(weight.shape)}."
        )
    count: Tensor | int
    if target.is_floating_point() and target.shape != input.shape:
        raise InputError(
            f"target must hold class indices, or probabilities of the input's shape "
            f"{tuple(input.shape)}; got {str(target.dtype).removeprefix('torch.')} of shape "
            f"{tuple(target.shape)}."
        )
    if target.is_floating_point():
        if ignore_index >= 0:
            raise InputError(
                "ignore_index works with class-index targets only; for probability targets give "
                f"the rows a weight of zero instead. Got ignore_index={ignore_index}."
            )
        losses, count = _probability_target(input, target, rows, weight, label_smoothing)
    else:
        losses, count = _index_target(input, target, rows, weight, ignore_index, label_smoothing)
    if reduction == "sum":
        losses = losses.sum()
    elif reduction == "mean":
        losses = _mean(losses.sum(), count, zero_if_empty)
    return _narrow(losses, input)


def _fused(
    input: Tensor, target: Tensor, rows: OddsRows, ignore_index: int, reduction: str
) -> Tensor | None:
    """The plain case as one autograd node; None where there is more to do, or to complain of."""
    if (
        input.dim() < 2
        or not input.is_floating_point()
        or input.device != target.device
        or input.shape[:1] + input.shape[2:] != target.shape
        or not all_in_range(target, input.shape[1], ignore_index)
    ):
        return None
    kernel = kernel_for(input, target)
    if kernel is None:
        return None
    dtype = _result_dtype(compute_dtype(input.dtype), input)
    return fused_loss(input, target, kernel, rows.psi, rows.slope, rows.key, reduction, dtype)


def _fused_expected(
    input: Tensor,
    target: Tensor,
    rows: OddsRows,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    zero_if_empty: bool,
) -> Tensor | None:
    """Label smoothing and soft targets as one autograd node; None as for ``_fused``."""
    z, flat = _as_matrix(input), target
    if z is None or not takes_all(z) or not _plain_weight(weight, z.shape[1]):
        return None
    if target.is_floating_point():
        matrix = _as_matrix(target) if target.shape == input.shape else None
        if matrix is None or ignore_index >= 0 or target.requires_grad:
            return None
        flat = matrix
        found = _soft_shares(flat, weight, label_smoothing)
    else:
        if target.shape != input.shape[:1] + input.shape[2:]:
            return None
        flat = target.reshape(-1)
        found = _hard_shares(flat, z.shape[1], weight, ignore_index, label_smoothing)
    if found is None:
        return None
    shares, count = found
    factor = None
    if reduction != "none":
        count = count or (1.0 if zero_if_empty else 0.0)
        mean = 1 / count if count else math.inf  # 0 times it is PyTorch's NaN
        factor = mean if reduction == "mean" else 1.0
    options = ignore_index, reduction, label_smoothing, zero_if_empty
    loss = expected_loss(
        z,
        shares,
        rows.psi,
        rows.slope,
        rows.key,
        lambda z: _composed(z, flat, rows, weight, *options),
        factor,
        _result_dtype(torch.float32, input),
    )
    if loss is None or loss.dim() == 0 or input.dim() == 2:
        return loss
    return loss.view(input.shape[:1] + input.shape[2:])


def _as_matrix(x: Tensor) -> Tensor | None:
    """(N, C, …) as rows (N·…, C) whose classes lie side by side; None where there are none."""
    if x.dim() < 2 or not x.numel() or not x.is_floating_point() or being_transformed():
        return None
    if x.dim() > 2:
        x = x.movedim(1, -1).reshape(-1, x.shape[1])
    return x if x.stride(1) == 1 else x.contiguous()


def _plain_weight(weight: Tensor | None, classes: int) -> bool:
    if weight is None:
        return True
    return weight.shape == (classes,) and not weight.requires_grad and weight.device.type == "cpu"


def _hard_shares(
    target: Tensor, classes: int, weight: Tensor | None, ignore_index: int, smoothing: float
) -> tuple[Shares, float] | None:
    """Shares of smoothed class indices (n,), and what a mean divides by."""
    found = count_ignored(target, classes, ignore_index)
    if found is None:
        return None
    if found and 0 <= ignore_index < classes:
        target = target.masked_fill(target == ignore_index, -1)
    count: float = len(target) - found
    if weight is None:
        own, every = torch.tensor([1 - smoothing]), torch.tensor([[smoothing / classes]])
    else:
        weight = weight.to(torch.float32).contiguous()
        own, every = weight * (1 - smoothing), (weight * (smoothing / classes)).unsqueeze(0)
        count = float(weight[target[(target >= 0) & (target < classes)]].sum())
    return Shares(every, target.contiguous(), own), count


def _soft_shares(
    target: Tensor, weight: Tensor | None, smoothing: float
) -> tuple[Shares, float] | None:
    """Shares of probabilities (n, C), and the number of rows."""
    if target.dtype == torch.float64 or type(target) is not Tensor or target.device.type != "cpu":
        return None
    share = target.to(torch.float32)
    if smoothing:
        share = share * (1 - smoothing) + smoothing / share.shape[1]
    if weight is not None:
        share = share * weight.to(torch.float32)
    return Shares(share), len(share)


def _index_target(
    input: Tensor,
    target: Tensor,
    rows: Rows,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor | int]:
    """Losses of shape ``target`` and what a mean divides by."""
    logits, target, unbatched = logodds.check(input, target)
    if label_smoothing > 0:
        logits = promote(logits)  # once, so that both parts' gradients meet in float32
    target, ignored = _without_ignored(target, ignore_index, rows.num_classes(logits))
    count: Tensor | int
    losses = rows.hard(logits, target, ignored)
    if weight is not None:
        weight = weight.to(losses.dtype)
        used = quiet(weight[target], ignored)
        losses, count = times(used, losses), used.sum()
    elif ignored is None:
        count = losses.numel()
    else:
        count = (~ignored).sum()
    if label_smoothing > 0:
        share = _uniform(logits, rows.num_classes(logits), weight)
        every = rows.expected(logits, share)
        losses = times(1 - label_smoothing, losses) + label_smoothing * every
    losses = quiet(losses, ignored)
    return (losses.squeeze(0) if unbatched else losses), count


def _probability_target(
    input: Tensor, target: Tensor, rows: Rows, weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, int]:
    """Σ_k w_k t_k L_k and the number of rows."""
    if input.dim() == 1:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
        losses, count = _probability_target(input, target, rows, weight, label_smoothing)
        return losses.squeeze(0), count
    target = promote(target)
    if label_smoothing > 0:
        target = target * (1 - label_smoothing) + label_smoothing / rows.num_classes(target)
    if weight is not None:
        target = target * _per_class(weight.to(target.dtype), target)
    losses = rows.expected(input, target)
    return losses, losses.numel()


def _mean(total: Tensor, count: Tensor | int, zero_if_empty: bool) -> Tensor:
    if isinstance(count, int):
        return total / (count or (1 if zero_if_empty else math.nan))
    return total / (count.masked_fill(count == 0, 1) if zero_if_empty else count)


def binary_loss(
    input: Tensor,
    target: Tensor,
    psi: Psi,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """t·pos_weight·ψ(z) + (1 − t)·ψ(−z) for each output, reduced as ``BCEWithLogitsLoss`` does."""
    check_reduction(reduction)
    if target.shape != input.shape or not input.is_floating_point():
        raise InputError(
            "input must hold floating point logits and target numbers in [0, 1] of the same shape; "
            f"got {str(input.dtype).removeprefix('torch.')} {tuple(input.shape)} "
            f"and {tuple(target.shape)}."
        )
    z = promote(input)
    target = target.to(z.dtype)
    positive = target if pos_weight is None else target * pos_weight.to(z.dtype)
    losses = times(positive, _elementwise(psi, _calm(z, target == 0)))
    losses = losses + times(1 - target, psi(-_calm(z, target == 1)))
    if weight is not None:
        losses = times(weight.to(z.dtype), losses)
    if reduction != "none":
        losses = losses.mean() if reduction == "mean" else losses.sum()
    return _narrow(losses, input)


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise InputError(
            f"reduction must be 'none', 'mean' or 'sum'; got {reduction!r}."
            + nearest(str(reduction), REDUCTIONS)
        )


def check_label_smoothing(label_smoothing: float) -> None:
    if not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing must be a number in [0, 1]; got {label_smoothing!r}.")


def sum_of_others(x: Tensor) -> Tensor:
    """Σ_{j≠k} x_j for every class k, without taking x_k from a total that it may dominate."""
    nothing = torch.zeros_like(x[:, :1])
    before = torch.cat([nothing, x[:, :-1].cumsum(1)], 1)
    after = torch.cat([x[:, 1:].flip(1).cumsum(1).flip(1), nothing], 1)
    return before + after


def _elementwise(psi: Psi, a: Tensor) -> Tensor:
    """ψ(a), once it is clear that there is one number for each log-odds."""
    losses = psi(a)
    if not isinstance(losses, Tensor) or losses.shape != a.shape:
        came = f"one of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else repr(losses)
        raise InputError(
            f"psi must return a tensor of its argument's shape, {tuple(a.shape)}; got {came}. "
            "Write it elementwise, such as `lambda a: torch.relu(1 - a)`."
        )
    return losses


def quiet(x: Tensor, ignored: Tensor | None) -> Tensor:
    """``x`` with 0 in the ignored places."""
    return x if ignored is None else x.masked_fill(ignored, 0)


def _without_ignored(
    target: Tensor, ignore_index: int, classes: int
) -> tuple[Tensor, Tensor | None]:
    """Targets in range, and the mask of rows to skip; None where a look shows there are none."""
    if all_in_range(target, classes, ignore_index):
        return target, None
    span, ignored = target_span(target), None
    if span is None or span[0] <= ignore_index <= span[1]:
        ignored = target == ignore_index
        target = target.masked_fill(ignored, 0)
        span = target_span(target)
    logodds.check_range(span, classes)
    return target, ignored


def _calm(a: Tensor, unused: Tensor | None) -> Tensor:
    """Infinite log-odds that no target looks at become 0, so that 0·∞ never arises."""
    return a if unused is None else a.masked_fill(unused & a.isinf(), 0)


def _uniform(logits: Tensor, classes: int, weight: Tensor | None) -> Tensor:
    """w_k/C of every class, shaped to broadcast against ``logits``."""
    weight = logits.new_ones(classes) if weight is None else weight.to(logits.dtype)
    return _per_class(weight / classes, logits)


def _per_class(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _narrow(losses: Tensor, input: Tensor) -> Tensor:
    return losses.to(_result_dtype(losses.dtype, input))


def _result_dtype(computed: torch.dtype, input: Tensor) -> torch.dtype:
    """A half input's own dtype, except under autocast, where losses stay float32."""
    if computed == input.dtype or torch.is_autocast_enabled(input.device.type):
        return computed
    return input.dtype

"""The one operation under every loss: the true class's log-odds.

a = z_y − log Σ_{j≠y} exp z_j = logit p(y | x)
"""

from __future__ import annotations

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.logodds import select
from losslab.logodds.reference import target_log_odds_reference
from losslab.logodds.select import all_in_range, log_odds, target_span

__all__ = ["all_log_odds", "target_log_odds", "target_log_odds_reference"]


def target_log_odds(logits: Tensor, target: Tensor) -> Tensor:
    r"""Log-odds of the true class, exact to the dtype's rounding.

    Math:
        a = z_y − log Σ_{j≠y} exp z_j, in nats, so that p(y|x) = σ(a) and 1 − p(y|x) = σ(−a).
        ∂a/∂z = e_y − q with q the softmax over the classes j ≠ y; it sums to zero.

    Nothing cancels: at gaps of ±200 and magnitudes of 1e4 the result is as exact as its dtype,
    where ``log p − log(1 − p)`` has long become infinite.

    Args:
        logits: (C,), (N, C) or (N, C, d1, …) floating point, classes at dimension 1. Half types are
            computed, and returned, in float32.
        target: (), (N,) or (N, d1, …) class indices in [0, C).

    Returns:
        Log-odds of the shape of ``target``.

    Corner cases: one class only, or all others −inf: +inf with gradient 0. Target −inf, or another
    class +inf: −inf. NaN in a row: NaN.

    Raises:
        InputError: shapes or dtypes that do not fit.
        IndexError: a class index outside [0, C) (on the CPU; accelerators assert on the device).

    Example:
        >>> import torch, losslab
        >>> losslab.target_log_odds(torch.tensor([[200.0, 0.0]]), torch.tensor([0]))
        tensor([200.])

    Source: the identity behind Zhao et al. 2022, equations 6–9.
    """
    logits, target, unbatched = check(logits, target)
    if not all_in_range(target, logits.shape[1], -1):
        check_range(target_span(target), logits.shape[1])
    result = log_odds(logits, target)
    return result.squeeze(0) if unbatched else result


def all_log_odds(logits: Tensor) -> Tensor:
    """Log-odds of every class, a_k = z_k − log Σ_{j≠k} exp z_j, as exact as for one class.

    Args:
        logits: (C,), (N, C) or (N, C, d1, …), classes at dimension 1 (0 when unbatched).

    Returns:
        A tensor of the same shape (float32 for half types).

    Example:
        >>> import torch, losslab
        >>> losslab.all_log_odds(torch.tensor([[200.0, 0.0]]))
        tensor([[ 200., -200.]])
    """
    if not logits.is_floating_point() or logits.dim() == 0:
        raise InputError(
            "logits must be a floating point tensor with a class dimension; "
            f"got {_describe(logits)}."
        )
    if logits.dim() == 1:
        return all_log_odds(logits.unsqueeze(0)).squeeze(0)
    return select.all_log_odds(logits)


def check(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Validated ``(logits, target, unbatched)`` with a batch dimension and int64 targets."""
    if not logits.is_floating_point():
        raise InputError(f"logits must be floating point; got {_describe(logits)}.")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise InputError(f"target must hold integer class indices; got {_describe(target)}.")
    unbatched = logits.dim() == 1
    if unbatched:
        logits, target = logits.unsqueeze(0), target.unsqueeze(0)
    expected = (*logits.shape[:1], *logits.shape[2:])
    if logits.dim() < 2 or logits.shape[1] == 0 or target.shape != expected:
        raise InputError(
            "logits must be (C,), (N, C) or (N, C, d1, …) with at least one class, and target the "
            f"same without C; got logits {tuple(logits.shape)} and target {tuple(target.shape)}."
        )
    if target.device != logits.device:
        raise InputError(
            f"logits and target must be on one device; got {logits.device} and {target.device}."
        )
    return logits, target.long(), unbatched


def check_range(span: tuple[int, int] | None, classes: int) -> None:
    """Raise as ``F.cross_entropy`` does on the CPU; accelerators assert inside ``gather``."""
    if span is not None and (span[0] < 0 or span[1] >= classes):
        bad = span[0] if span[0] < 0 else span[1]
        raise IndexError(
            f"Target {bad} is out of bounds: class indices must lie in [0, {classes - 1}] for "
            f"logits with {classes} classes (dimension 1). Mark rows to skip with ignore_index."
        )


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"

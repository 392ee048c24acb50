"""Margins, and which examples carry the gradient: questions to the true class's log-odds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.losses import spec
from losslab.metrics.checks import finite, finite_values
from losslab.metrics.distributions import Distribution, distribution
from losslab.metrics.scores import log_odds as example_log_odds
from losslab.metrics.scores import margin

Psi = Callable[[Tensor], Tensor]
BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)


class Margins(NamedTuple):
    """How far the examples are from the decision.

    Args:
        logits: Of z_y − max_{j≠y} z_j; negative where the prediction is wrong.
        log_odds: Of a = z_y − logsumexp_{j≠y} z_j; negative where p(y) is below ½.
    """

    logits: Distribution
    log_odds: Distribution


class GradientShares(NamedTuple):
    """Which examples carry the gradient, by the probability p of their true class.

    Args:
        edges: ``(B + 1,)`` of the bands of p; a p on an inner edge belongs to the band below.
        counts: ``(B,)`` examples in each band.
        shares: ``(B,)`` of the sum of |∂L/∂z_y| over all examples; they add up to 1, or are all 0
            where no example has any gradient (``mean`` is 0).
        mean: |∂L/∂z_y| averaged over the examples.
    """

    edges: Tensor
    counts: Tensor
    shares: Tensor
    mean: Tensor


def margins(logits: Tensor, target: Tensor) -> Margins:
    """Distributions of the margin in logits and in log-odds.

    Raises:
        InputError: For logits that are not finite, or have one class only.

    Example:
        >>> found = margins(torch.tensor([[4.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 0]))
        >>> found.logits.mean, found.log_odds.share_negative
        (1.0, 0.5)
    """
    logits, target = finite(logits, target, classes=2)
    return Margins(
        distribution(margin(logits, target)), distribution(example_log_odds(logits, target))
    )


def gradient_shares(
    log_odds: Tensor, loss: nn.Module | str | Psi, *, edges: Sequence[float] = BANDS
) -> GradientShares:
    """How much of the gradient each band of confidence carries under a loss.

    For a loss ψ(a) the gradient of the true class's logit is ψ'(a), and the whole gradient is a
    multiple of it; so log-odds stored from one training tell what any other loss would have
    attended to at that moment.

    Args:
        log_odds: ``(N,)`` of the true classes, in any floating-point dtype, as run records and
            :func:`losslab.metrics.log_odds` have them.
        loss: A losslab module, a spec such as ``"focal(gamma=2)"``, or ψ itself. A schedule stands
            where ``set_progress`` left it.
        edges: Of the bands of p, from 0 to 1. They are compared as log-odds, in float64, so that
            bands close to 1 are told apart.

    Raises:
        InputError: For a loss that is not a function of the log-odds alone, log-odds that are not
            finite, edges that do not go from 0 up to 1.

    Example:
        >>> a = torch.tensor([-3.0, 0.0, 3.0])
        >>> gradient_shares(a, "cross_entropy", edges=[0, 0.5, 1]).shares
        tensor([0.9684, 0.0316], dtype=torch.float64)
        >>> gradient_shares(a, lambda a: -a, edges=[0, 0.5, 1]).shares
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """
    a = finite_values(log_odds, "log_odds").detach()
    limits = checked_edges(edges).to(a)
    size = _slope(psi_of(loss), a).abs()
    peak = size.max()
    size = size / peak if peak > 0 else size  # a sum that cannot overflow
    band = torch.bucketize(a, torch.logit(limits[1:-1]))
    counts = torch.bincount(band, minlength=len(limits) - 1)
    sums = a.new_zeros(len(counts)).index_add(0, band, size)
    shares = sums / sums.sum() if peak > 0 else sums
    return GradientShares(limits, counts, shares, peak * size.mean())


def psi_of(loss: nn.Module | str | Psi) -> Psi:
    """ψ of a loss that is ψ(a) and nothing else, or an `InputError` that says why it is not."""
    if type(loss) is nn.CrossEntropyLoss and loss.weight is None and not loss.label_smoothing:
        loss = "cross_entropy"
    if isinstance(loss, str):
        loss = spec.loss(loss)
    if not isinstance(loss, nn.Module):
        if not callable(loss):
            raise InputError(
                "Expected a losslab module, a spec such as 'focal(gamma=2)' or a function of "
                f"log-odds, but got {loss!r}."
            )
        return _told_plainly(loss)
    name = getattr(loss, "spec", type(loss).__name__)
    reason = _not_only_odds(loss)
    if reason:
        raise InputError(
            f"{name} is not a function of the true class's log-odds alone: {reason}. The share of "
            "the gradient cannot be told from log-odds; give a loss that is ψ(a), without weights "
            "and label smoothing."
        )
    psi: Psi = loss.psi  # type: ignore[assignment]
    return psi


def checked_edges(edges: Sequence[float]) -> Tensor:
    """Edges of bands of p as a tensor: rising from 0 to 1."""
    try:
        limits = torch.tensor([float(edge) for edge in edges], dtype=torch.float64)
    except (TypeError, ValueError):
        limits = torch.empty(0)
    if len(limits) < 2 or limits[0] != 0 or limits[-1] != 1 or not bool((limits.diff() > 0).all()):
        raise InputError(
            "Expected the edges of the bands of p to rise from 0 to 1, such as (0, 0.5, 1), but "
            f"got {edges!r}."
        )
    return limits


def _told_plainly(psi: Psi) -> Psi:
    """A function of the user's; what it raises is told as bad input."""

    def told(a: Tensor) -> Tensor:
        try:
            return psi(a)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                "Expected ψ to be a function of one tensor of log-odds, made of PyTorch's "
                f"operations, such as lambda a: torch.nn.functional.softplus(-a); but on {len(a)} "
                f"log-odds it fails: {reason}"
            ) from error

    return told


def _not_only_odds(loss: nn.Module) -> str | None:
    if len(getattr(loss, "steps", ())) > 1:
        return "it alternates with a step on the other classes"
    if getattr(loss, "psi", None) is None:
        return "it looks at more of the logits than that, or is no losslab loss"
    for part in loss.modules():
        for weight in ("weight", "pos_weight"):
            if getattr(part, weight, None) is not None:
                return f"its {weight} differs from class to class"
        if getattr(part, "label_smoothing", 0) > 0:
            return "its label smoothing pulls at the other classes too"
    return None


def _slope(psi: Psi, a: Tensor) -> Tensor:
    """ψ'(a) in float64, by differentiation."""
    with torch.inference_mode(False), torch.enable_grad():
        a = a.clone().requires_grad_()
        value = psi(a)
        if not isinstance(value, Tensor) or value.shape != a.shape:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"Expected ψ to return a tensor of its argument's shape, {tuple(a.shape)}, but got "
                f"{came}."
            )
        if not value.requires_grad:  # a constant
            return torch.zeros_like(a)
        (slope,) = torch.autograd.grad(value.sum(), a, materialize_grads=True)
    broken = ~slope.isfinite()
    if broken.any():
        raise InputError(
            f"Expected a finite gradient for every example, but the loss's slope at log-odds "
            f"{a[broken][0].item():g} is {slope[broken][0].item()}."
        )
    return slope

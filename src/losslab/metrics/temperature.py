"""Temperature scaling: one number, fitted on validation data, that softens or sharpens a model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.metrics.checks import finite
from losslab.metrics.scores import of_true_class

_STEPS = 4000  # halving a bracket as wide as float64 takes 2100
_TOLERANCE = 1e-12
_FLATTEST = 1e-6  # a largest difference of logits / T below which nothing is told apart


@torch.no_grad()
def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The T > 0 that minimises the NLL of ``softmax(logits / T)``; fit it on validation data.

    Math:
        NLL is convex in β = 1/T with the slope g(β) = mean(Σ_k p_k z_k − z_y), p = softmax(βz). Its
        root is found by Newton's method inside a bracket, in float64, to 12 digits; the same input
        gives the same number.

    A finite T exists where some but not all of the information is there: at least one example is
    wrong, and the logits of the true classes are on average above the rows' means. Otherwise the
    best T is 0 (every example is right, so ever more confidence is ever better) or infinite (the
    logits say nothing about the target, or point away from it). Both are refused.

    Args:
        logits: ``(N, C)`` of validation examples; train examples make a model look underconfident.
        target: ``(N,)`` class numbers. Classes that do not occur are no trouble.

    Returns:
        T. Above 1: the model is overconfident. Use it as ``softmax(logits / T)``.

    Raises:
        InputError: For logits that are not finite, or where no T in (0, ∞) is best.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> fit_temperature(logits, torch.tensor([0, 0, 0, 1]))  # 4/T = log 3
        3.6409569065073493

    Source: Guo et al. 2017, section 4.2.
    """
    logits, target = finite(logits, target)
    away = logits - of_true_class(logits, target)[:, None]  # z_k − z_y
    scale = away.abs().max().item()
    says_something = scale > 0 and away.mean().item() < 0
    if says_something and not (away > 0).any():
        raise InputError(
            f"Expected at least one wrong prediction among the {len(logits)} examples, but the "
            "true class's logit is the largest in all of them, so the best temperature is 0: fit "
            "it on more validation examples, or on data that the model was not trained on."
        )
    beta = _root(away / scale, scale) if says_something else 0.0
    if beta < _FLATTEST:
        raise InputError(
            "Expected logits that say something about the target, but on average the true class's "
            "logit is not above the others, so the best temperature is infinite; check that the "
            "rows of logits and target belong together."
        )
    if math.isinf(beta):
        raise InputError(
            "Expected a best temperature that float64 can hold, but the wrong predictions are "
            "wrong by next to nothing, so it is 0; fit it on more validation examples."
        )
    return scale / beta


def _root(away: Tensor, beta: float) -> float:
    """The β > 0 where the NLL's slope changes sign, from a first guess; inf where float64 ends."""
    low, high = 0.0, math.inf
    for _ in range(_STEPS):
        slope, curvature = _slope_and_curvature(away, beta)
        if slope < 0:
            low = beta
        elif slope > 0:
            high = beta
        else:
            break
        step = beta - slope / curvature if curvature > 0 else math.inf
        if abs(step - beta) <= _TOLERANCE * beta:
            return step
        if not low < step < high:
            step = 2 * low if high == math.inf else (low + high) / 2
        if not low < step < high:  # neighbours in float64, or the end of it
            return step
        beta = step
    return beta


def _slope_and_curvature(away: Tensor, beta: float) -> tuple[float, float]:
    """The first two derivatives of the mean NLL by β."""
    p = (beta * away).softmax(dim=1)
    mean = (p * away).sum(dim=1)
    variance = (p * (away - mean[:, None]).square()).sum(dim=1)
    return mean.mean().item(), variance.mean().item()

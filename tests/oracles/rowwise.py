"""Losses that need more of a row of logits than the true class's log-odds."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arithmetic import real, sigmoid, softplus
from .logodds import all_log_odds, complement_softmax, row_log_odds

Array = NDArray[np.float64]


def brier(row: ArrayLike, target: int, mirror: bool = False) -> float:
    """Σ_j (y_j − p_j)² on softmax; the mirror adds −Σ_j (y_j p_j)² + ((1−y_j)(1−p_j))² (ZH 5.5).

    The official code averages over the classes instead of summing: divide by K for that.
    """
    odds = all_log_odds(np.asarray(row)[None, :])[0]
    total = 0.0
    for j, a in enumerate(odds):
        p, rest = real(sigmoid(float(a))), real(sigmoid(-float(a)))
        error, hit = (rest, p) if j == target else (p, rest)  # |y − p| and its mirror image
        total += error**2 - (hit**2 if mirror else 0.0)
    return total


def sigmoid_squared_error(row: ArrayLike, target: int, mirror: bool = False) -> float:
    """Σ_j (y_j − σ(z_j))², every output a sigmoid of its own; the mirror as in `brier`."""
    total = 0.0
    for j, z in enumerate(np.asarray(row, dtype=float)):
        a = float(z) if j == target else -float(z)
        total += real(sigmoid(-a)) ** 2 - (real(sigmoid(a)) ** 2 if mirror else 0.0)
    return total


def complement_entropy_row(row: ArrayLike, target: int) -> float:
    """Σ_{j≠y} q_j log q_j of one row, not normalised: minus BA 6, so that it is minimised."""
    total = 0.0
    for j, q in enumerate(complement_softmax(row, target)):
        if j != target and q != 0:  # 0 log 0 = 0
            total += q * math.log(q)
    return total


def complement_objective(logits: ArrayLike, target: ArrayLike) -> float:
    """What the second step of complement-objective training minimises, as its paper normalises it.

    The mean over the batch of Σ_{j≠y} q_j log q_j, divided by K − 1. (The published code divides by
    K instead.)
    """
    rows = np.asarray(logits)
    labels = np.asarray(target)
    total = 0.0
    for n in range(rows.shape[0]):
        total += complement_entropy_row(rows[n], int(labels[n]))
    return total / rows.shape[0] / (rows.shape[1] - 1)


def maximum_probability_cross_entropy(row: ArrayLike, target: int) -> float:
    """−(max_j p_j − p_y) log p_y (BA 7); 0 where the target is on top.

    The difference is p_max (1 − exp(z_y − z_max)), which does not cancel.
    """
    logits = np.asarray(row, dtype=float)
    top = int(np.argmax(logits))
    if np.isnan(logits).any():
        return float("nan")
    gap = float(logits[target] - logits[top])
    if gap == 0:
        return 0.0
    lead = real(sigmoid(row_log_odds(logits, top))) * -math.expm1(gap)
    return lead * real(softplus(-row_log_odds(logits, target)))


def class_centres(classes: int, dimensions: int, norm: float = 1.0) -> Array:
    """Vectors of one norm, pairwise cosine −1/(K − 1), built one coordinate at a time (Pang 2018).

    Centre k gets the coordinates j < k that put its cosine with each earlier centre right, and a
    last one that makes its length 1. Needs at least K − 1 dimensions.
    """
    centres = np.zeros((classes, max(dimensions, classes)))
    centres[0, 0] = 1
    for k in range(1, classes):
        for j in range(k):
            already = math.fsum(centres[k, i] * centres[j, i] for i in range(j))
            centres[k, j] = (-1 / (classes - 1) - already) / centres[j, j]
        rest = 1 - math.fsum(centres[k, i] ** 2 for i in range(k))
        centres[k, k] = math.sqrt(max(rest, 0.0)) if k < classes - 1 else 0.0
    return norm * centres[:, :dimensions]


def max_mahalanobis_centre(features: ArrayLike, target: int, centres: ArrayLike) -> float:
    """½ ‖feature − μ_y‖² of one row (BA 5, where the square is missing)."""
    total = 0.0
    for f, mu in zip(np.asarray(features), np.asarray(centres)[target], strict=True):
        total += (float(f) - float(mu)) ** 2
    return total / 2

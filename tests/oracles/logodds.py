"""The true class's log-odds a = z_y − log Σ_{j≠y} exp(z_j), with its first two derivatives.

Sums run over the other classes one by one, shifted by their largest logit, in numpy's longdouble
(80 bits on x86), and are rounded to float64 once at the end.

Corner cases:

- one class only, or every other class at −inf: a = +inf, gradient 0;
- the target at −inf: a = −inf; another class at +inf: a = −inf;
- a NaN anywhere in the row: NaN;
- what has no limit (target and all others at −inf; target and another class at +inf): NaN.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def largest_other(row: Sequence[np.longdouble], target: int) -> np.longdouble:
    """max_{j≠y} z_j; −inf when there is no other class."""
    largest = np.longdouble("-inf")
    for j, logit in enumerate(row):
        if j != target and logit > largest:
            largest = logit
    return largest


def row_log_odds(row: ArrayLike, target: int) -> float:
    """a for one row of logits."""
    logits = list(np.asarray(row, dtype=np.longdouble))
    if any(np.isnan(logit) for logit in logits):
        return float("nan")
    shift = largest_other(logits, target)
    with np.errstate(invalid="ignore"):  # inf − inf is NaN, and meant
        if np.isinf(shift):
            return float(logits[target] - shift)
        total = np.longdouble(0)
        for j, logit in enumerate(logits):
            if j != target:
                total += np.exp(logit - shift)
        return float((logits[target] - shift) - np.log(total))


def target_log_odds(logits: ArrayLike, target: ArrayLike) -> Array:
    """a of the target class for each row; logits (N, C), target (N,)."""
    rows = np.asarray(logits)
    labels = np.asarray(target)
    return np.array([row_log_odds(rows[n], int(labels[n])) for n in range(len(rows))], dtype=float)


def all_log_odds(logits: ArrayLike) -> Array:
    """a_k of every class k in turn as the target; (N, C) -> (N, C)."""
    rows = np.asarray(logits)
    odds = np.empty(rows.shape)
    for n in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            odds[n, k] = row_log_odds(rows[n], k)
    return odds


def complement_softmax(row: ArrayLike, target: int) -> Array:
    """q, the softmax over the classes other than the target, with q_y = 0.

    All zero when no other class has a finite or infinite weight; one-hot when a single other class
    is at +inf; NaN when several are, or when the row holds a NaN.
    """
    logits = list(np.asarray(row, dtype=np.longdouble))
    q = np.zeros(len(logits), dtype=np.longdouble)
    if any(np.isnan(logit) for logit in logits):
        return np.full(len(logits), np.nan)
    shift = largest_other(logits, target)
    if shift == -np.inf:
        return q.astype(float)
    if shift == np.inf:
        at_infinity = [j for j, z in enumerate(logits) if j != target and z == np.inf]
        if len(at_infinity) > 1:
            return np.full(len(logits), np.nan)
        q[at_infinity[0]] = 1
        return q.astype(float)
    for j, logit in enumerate(logits):
        if j != target:
            q[j] = np.exp(logit - shift)
    return (q / q.sum()).astype(float)


def log_odds_gradient(row: ArrayLike, target: int) -> Array:
    """∂a/∂z = e_y − q; all zero where no other class can win (a = +inf for good)."""
    q = complement_softmax(row, target)
    if not q.any():
        return q
    unit = np.zeros(len(q))
    unit[target] = 1
    return unit - q


def loss_gradient(row: ArrayLike, target: int, slope: float) -> Array:
    """∂ψ(a)/∂z = ψ'(a) (e_y − q), with slope = ψ'(a)."""
    return slope * log_odds_gradient(row, target)


def loss_hessian(row: ArrayLike, target: int, slope: float, curvature: float) -> Array:
    """∂²ψ(a)/∂z² = ψ''(a) u uᵀ − ψ'(a) (diag q − q qᵀ), u = e_y − q."""
    q = complement_softmax(row, target)
    u = log_odds_gradient(row, target)
    hessian = np.empty((len(q), len(q)))
    for i in range(len(q)):
        for j in range(len(q)):
            spread = (q[i] if i == j else 0.0) - q[i] * q[j]
            hessian[i, j] = curvature * u[i] * u[j] - slope * spread
    return hessian


def soft_target_gradient(row: ArrayLike, weights: ArrayLike, slopes: ArrayLike) -> Array:
    """∂/∂z of Σ_k t_k ψ(a_k): the sum over k of t_k ψ'(a_k) (e_k − q⁽ᵏ⁾), class by class."""
    gradient = np.zeros(len(np.asarray(row)))
    for k, (t, slope) in enumerate(zip(np.asarray(weights), np.asarray(slopes), strict=True)):
        if t != 0:
            gradient += t * slope * log_odds_gradient(row, k)
    return gradient

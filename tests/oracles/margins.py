"""Changes made to the logits before any loss sees them, and class weights."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def cosine(feature: Array, direction: Array) -> float:
    """cos θ between two vectors."""
    return float(feature @ direction) / (norm(feature) * norm(direction))


def norm(vector: Array) -> float:
    """Euclidean length."""
    return math.sqrt(math.fsum(x * x for x in vector))


def large_margin_angle(theta: float, margin: int) -> float:
    """(−1)^k cos(mθ) − 2k on θ ∈ [kπ/m, (k+1)π/m] (Liu et al. 2016, eq. 6)."""
    k = min(int(theta * margin / math.pi), margin - 1)  # θ = π belongs to the last piece
    return (-1) ** k * math.cos(margin * theta) - 2 * k


def large_margin_logits(
    features: ArrayLike, weights: ArrayLike, target: ArrayLike, margin: int, annealing: float = 0.0
) -> Array:
    """Logits x·w_j, the target's replaced by (λ‖w‖‖x‖ cos θ + ‖w‖‖x‖ ψ(θ)) / (1 + λ).

    features (N, D), weights (K, D), target (N,); no bias, as in the paper.
    """
    x = np.asarray(features, dtype=float)
    w = np.asarray(weights, dtype=float)
    labels = np.asarray(target)
    logits = np.empty((len(x), len(w)))
    for n in range(len(x)):
        for j in range(len(w)):
            logits[n, j] = float(x[n] @ w[j])
            if j == labels[n]:
                size = norm(w[j]) * norm(x[n])
                theta = math.acos(max(-1.0, min(1.0, cosine(x[n], w[j]))))
                angle = large_margin_angle(theta, margin)
                logits[n, j] = (annealing * size * math.cos(theta) + size * angle) / (1 + annealing)
    return logits


def additive_margin_logits(
    features: ArrayLike,
    weights: ArrayLike,
    target: ArrayLike,
    margin: float = 0.35,
    scale: float = 30.0,
) -> Array:
    """s (cos θ_j − m [j = y]) (Wang et al. 2018, AM-softmax)."""
    x = np.asarray(features, dtype=float)
    w = np.asarray(weights, dtype=float)
    labels = np.asarray(target)
    logits = np.empty((len(x), len(w)))
    for n in range(len(x)):
        for j in range(len(w)):
            logits[n, j] = scale * (cosine(x[n], w[j]) - (margin if j == labels[n] else 0.0))
    return logits


def ldam_margins(counts: ArrayLike, max_margin: float = 0.5) -> Array:
    """Δ_j = C / n_j^(1/4), with C such that the largest (the rarest class's) is `max_margin`."""
    raw = [1 / float(n) ** 0.25 for n in np.asarray(counts)]
    return np.array([max_margin * r / max(raw) for r in raw])


def ldam_logits(
    logits: ArrayLike,
    target: ArrayLike,
    counts: ArrayLike,
    max_margin: float = 0.5,
    scale: float = 30.0,
) -> Array:
    """s (z_j − Δ_j [j = y]) (Cao et al. 2019; there z is a cosine)."""
    z = np.asarray(logits, dtype=float)
    labels = np.asarray(target)
    margins = ldam_margins(counts, max_margin)
    changed = np.empty_like(z)
    for n in range(z.shape[0]):
        for j in range(z.shape[1]):
            changed[n, j] = scale * (z[n, j] - (margins[j] if j == labels[n] else 0.0))
    return changed


def adjusted_logits(logits: ArrayLike, priors: ArrayLike, tau: float = 1.0) -> Array:
    """z_j + τ log π_j, π normalised to sum to 1 (Menon et al. 2021, eq. 10)."""
    pi = np.asarray(priors, dtype=float)
    return np.asarray(logits, dtype=float) + tau * np.log(pi / pi.sum())


def inverse_frequency_weights(counts: ArrayLike) -> Array:
    """w_k ∝ 1/n_k, summing to the number of classes."""
    raw = [1 / float(n) for n in np.asarray(counts)]
    return np.array([len(raw) * r / math.fsum(raw) for r in raw])


def effective_number_weights(counts: ArrayLike, beta: float = 0.9999) -> Array:
    """w_k ∝ (1 − β)/(1 − β^n_k), summing to the number of classes (Cui et al. 2019).

    1 − β^n is taken as −expm1(n log1p(β − 1)), the same without cancellation for β near 1.
    """
    raw = []
    for n in np.asarray(counts):
        effective = 1.0 if beta == 0 else -math.expm1(float(n) * math.log1p(beta - 1))
        raw.append((1 - beta) / effective)
    return np.array([len(raw) * r / math.fsum(raw) for r in raw])

"""What PyTorch does around a loss, for any scalar loss ψ of the log-odds.

`classification_loss` is F.cross_entropy with −log p_k replaced by ψ(a_k); `binary_loss` is
F.binary_cross_entropy_with_logits with −log σ(±z) replaced by ψ(±z). With ψ = cross-entropy they
are PyTorch's functions, which the tests of this package check.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .logodds import row_log_odds

Psi = Callable[[float], float]


def classification_loss(
    psi: Psi,
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    all_ignored: float = float("nan"),
) -> Any:
    """Softmax side: logits (C,), (N, C) or (N, C, d1, …); target class indices or probabilities.

    A target of floats is probabilities, in the shape of the logits; otherwise class indices.

    - Class index: (1−ε) w_y ψ(a_y) + ε/C Σ_k w_k ψ(a_k); 0 where ignored; the mean divides by the
      sum of w_y over what is not ignored (`all_ignored` when nothing is left).
    - Probabilities: Σ_k t'_k w_k ψ(a_k), t' = (1−ε) t + ε/C; the mean divides by the number of
      positions, whatever the weights. Nothing can be ignored.
    """
    z = np.asarray(logits, dtype=float)
    t = np.asarray(target)
    soft = np.issubdtype(t.dtype, np.floating)
    classes = z.shape[0] if z.ndim == 1 else z.shape[1]
    w = np.ones(classes) if weight is None else np.asarray(weight, dtype=float)
    rows = z if z.ndim == 1 else np.moveaxis(z, 1, -1)  # classes last
    goals = np.moveaxis(t, 1, -1) if soft and z.ndim > 1 else t
    places = rows.shape[:-1]

    losses = np.zeros(places)
    used = 0.0
    for place in np.ndindex(places):
        if soft:
            losses[place] = _soft_row(psi, rows[place], goals[place], w, label_smoothing)
            used += 1
        elif int(goals[place]) != ignore_index:
            label = int(goals[place])
            losses[place] = _index_row(psi, rows[place], label, w, label_smoothing)
            used += w[label]
    if reduction == "none":
        return losses[()]
    if reduction == "sum":
        return losses.sum()
    return _quotient(losses.sum(), used, all_ignored)


def _index_row(psi: Psi, row: Any, label: int, w: Any, smoothing: float) -> float:
    loss = w[label] * psi(row_log_odds(row, label))
    if smoothing == 0:
        return loss
    everything = sum(w[k] * psi(row_log_odds(row, k)) for k in range(len(row)))
    return (1 - smoothing) * loss + smoothing / len(row) * everything


def _soft_row(psi: Psi, row: Any, goal: Any, w: Any, smoothing: float) -> float:
    total = 0.0
    for k in range(len(row)):
        t = (1 - smoothing) * goal[k] + smoothing / len(row)
        total += t * w[k] * psi(row_log_odds(row, k))
    return total


def _quotient(total: float, used: float, when_nothing: float) -> float:
    return when_nothing if used == 0 else total / used


def binary_loss(
    psi: Psi,
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
) -> Any:
    """Sigmoid side: (t · pos_weight · ψ(z) + (1 − t) · ψ(−z)) · weight, any shape.

    `weight` and `pos_weight` broadcast to the logits; the mean divides by the number of elements.
    """
    z = np.asarray(logits, dtype=float)
    t = np.asarray(target, dtype=float)
    w = np.broadcast_to(1.0 if weight is None else np.asarray(weight, dtype=float), z.shape)
    pos = np.broadcast_to(
        1.0 if pos_weight is None else np.asarray(pos_weight, dtype=float), z.shape
    )
    losses = np.empty(z.shape)
    for i in np.ndindex(z.shape):
        for_one = t[i] * pos[i] * psi(float(z[i]))
        for_zero = (1 - t[i]) * psi(-float(z[i]))
        losses[i] = w[i] * (for_one + for_zero)
    if reduction == "none":
        return losses[()]
    return losses.sum() if reduction == "sum" else _quotient(losses.sum(), losses.size, np.nan)


def one_vs_rest_losses(
    psi: Psi, logits: ArrayLike, target: ArrayLike, pos_weight: ArrayLike | None = None
) -> Any:
    """A sigmoid per class, summed over the classes: ψ(z_y) + Σ_{j≠y} ψ(−z_j); (N, C), (N,) -> (N,).

    `pos_weight` (C,) multiplies the ψ(z_y) of its class.
    """
    z = np.asarray(logits, dtype=float)
    labels = np.asarray(target)
    one_hot = np.zeros(z.shape)
    for n in range(z.shape[0]):
        one_hot[n, int(labels[n])] = 1
    return binary_loss(psi, z, one_hot, pos_weight=pos_weight, reduction="none").sum(axis=1)

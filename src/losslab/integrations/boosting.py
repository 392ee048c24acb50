"""Any loss as the objective of gradient boosting: LightGBM and XGBoost.

    objective = BoostingObjective("encouraging", num_classes=3)

    lightgbm.LGBMClassifier(objective=objective)            # scikit-learn's interface of either
    xgboost.XGBClassifier(objective=objective)
    lightgbm.train({"objective": objective.lightgbm, "num_class": 3}, data)
    xgboost.train({"num_class": 3}, data, obj=objective.xgboost)

Boosting fits each tree to the loss's gradient g and second derivative h by the raw scores z, row by
row. Both are exact here, by automatic differentiation in float64: for ψ(a), with q the softmax over
the other classes, ∂²L/∂z_y² = ψ″(a) and ∂²L/∂z_k² = ψ″(a) q_k² − ψ′(a) q_k (1 − q_k).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from losslab.errors import InputError
from losslab.integrations.criterion import Loss, summed
from losslab.losses.modules import is_scheduled

Array = NDArray[np.float64]
LEAST = 1e-6


class BoostingObjective:
    """A loss as a custom objective: ``objective(y_true, raw[, weight]) -> (gradient, hessian)``.

    Args:
        loss: A spec (``"focal(gamma=2)"``), a ψ of your own (log-odds -> loss), or a loss module
            with ``reduction="sum"``.
        num_classes: 2 means one raw score a row, f = the log-odds of class 1, as both libraries
            have it for two classes; more means one score a class.
        exact: Pass the second derivative on as it is. A leaf's value is −Σg/Σh, so where a loss is
            not convex (every bounded one somewhere) or is straight (the encouraging loss where it
            pulls alike) that sends a leaf the wrong way, or to infinity. Otherwise h is at least
            |g| times the h/|g| of cross-entropy at these scores, p for the true class and 1 − p_k
            for the others, so that no leaf steps further than cross-entropy's would. For
            cross-entropy the two are the same.
        least: Smallest second derivative passed on in any case.

    Labels are class numbers 0 … num_classes − 1. With a custom objective ``XGBClassifier`` still
    predicts classes and probabilities; ``LGBMClassifier`` and the boosters of both libraries'
    ``train`` predict raw scores, of which `probabilities` makes probabilities.

    Raises:
        InputError: If the loss has several steps or a schedule (an objective is not told how far
            the training is), or labels or scores are not of this form.

    Example:
        >>> objective = BoostingObjective("cross_entropy", num_classes=2)
        >>> gradient, hessian = objective([0, 1], [0.0, 0.0])
        >>> gradient.tolist(), hessian.tolist()                # p − y and p (1 − p)
        ([0.5, -0.5], [0.25, 0.25])

    What differs from the libraries' own objectives: for several classes LightGBM multiplies the
    second derivative of its log loss by K/(K − 1), XGBoost by 2; here it is the derivative itself.
    """

    def __init__(
        self,
        loss: Loss,
        num_classes: int,
        *,
        exact: bool = False,
        least: float = LEAST,
    ) -> None:
        if type(num_classes) is not int or num_classes < 2:
            raise InputError(
                f"Expected num_classes to be a whole number of at least 2, but got {num_classes!r}."
            )
        if not least > 0:
            raise InputError(f"Expected least to be above 0, but got {least!r}.")
        self.loss, self.num_classes = summed(loss).double(), num_classes
        if is_scheduled(self.loss):
            raise InputError(
                "Expected a loss without a schedule, since boosting does not tell an objective how "
                f"far the training is, but got {loss!r}."
            )
        self.exact, self.least = exact, least

    def __call__(
        self, y_true: ArrayLike, raw: ArrayLike, weight: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Gradient and second derivative, in the shape of ``raw``.

        Args:
            y_true: ``(rows,)`` class numbers.
            raw: ``(rows,)`` for two classes, else ``(rows, num_classes)``; XGBoost and LightGBM
                also pass the latter.
            weight: ``(rows,)``, or None.
        """
        scores = np.asarray(raw, dtype=np.float64)
        target = _labels(y_true, self.num_classes)
        expected = (len(target),) if self.num_classes == 2 else (len(target), self.num_classes)
        if scores.shape != expected:
            raise InputError(
                f"Expected raw scores of shape {expected} for {self.num_classes} classes, but got "
                f"{scores.shape}."
            )
        gradient, hessian = self._derivatives(torch.from_numpy(scores), torch.from_numpy(target))
        if not self.exact:
            hessian = np.maximum(hessian, np.abs(gradient) * self._ratio(scores, target))
        if weight is not None:
            rows = np.asarray(weight, dtype=np.float64)
            rows = rows if scores.ndim == 1 else rows[:, None]
            gradient, hessian = gradient * rows, hessian * rows
        return gradient, np.maximum(hessian, self.least)

    def lightgbm(self, raw: ArrayLike, data: Any) -> tuple[Array, Array]:
        """The form that ``lightgbm.train`` calls: ``(raw, Dataset)``."""
        return self(data.get_label(), raw, data.get_weight())

    def xgboost(self, raw: ArrayLike, data: Any) -> tuple[Array, Array]:
        """The form that ``xgboost.train`` calls: ``(raw, DMatrix)``."""
        weight = data.get_weight()
        return self(data.get_label(), raw, weight if len(weight) else None)

    def probabilities(self, raw: ArrayLike) -> Array:
        """``(rows, num_classes)`` from raw scores."""
        scores = torch.from_numpy(np.asarray(raw, dtype=np.float64))
        logits = _two(scores) if self.num_classes == 2 else scores
        return np.asarray(logits.softmax(dim=-1))

    def _ratio(self, scores: Array, target: NDArray[np.int64]) -> Array:
        """Cross-entropy's second derivative over the size of its first."""
        p = self.probabilities(scores)
        rows = np.arange(len(target))
        if scores.ndim == 1:
            return np.asarray(p[rows, target])
        ratio = 1 - p
        ratio[rows, target] = p[rows, target]
        return ratio

    def _derivatives(self, scores: Tensor, target: Tensor) -> tuple[Array, Array]:
        with torch.enable_grad():
            z = scores.clone().requires_grad_()
            value = self.loss(_two(z) if z.dim() == 1 else z, target)
            (gradient,) = torch.autograd.grad(value, z, create_graph=True)
            columns = [gradient] if z.dim() == 1 else list(gradient.unbind(dim=1))
            seconds = []
            for k, column in enumerate(columns):  # a row's scores meet in no other row
                if not column.requires_grad:  # a slope that hangs on nothing
                    seconds.append(torch.zeros_like(column))
                    continue
                (second,) = torch.autograd.grad(column.sum(), z, retain_graph=True)
                seconds.append(second if z.dim() == 1 else second[:, k])
        hessian = seconds[0] if z.dim() == 1 else torch.stack(seconds, dim=1)
        return gradient.detach().numpy(), hessian.detach().numpy()


def _two(scores: Tensor) -> Tensor:
    """Logits of two classes whose log-odds is the score."""
    return torch.stack([torch.zeros_like(scores), scores], dim=-1)


def _labels(y_true: ArrayLike, classes: int) -> NDArray[np.int64]:
    labels = np.asarray(y_true)
    numbers = labels.astype(np.int64)
    if (
        labels.ndim != 1
        or (numbers != labels).any()
        or not (len(numbers) and numbers.min() >= 0 and numbers.max() < classes)
    ):
        raise InputError(
            f"Expected labels to be whole numbers in 0 … {classes - 1}, one a row, but got shape "
            f"{labels.shape}"
            + (f" with values in [{labels.min()}, {labels.max()}]." if labels.size else ".")
        )
    return numbers

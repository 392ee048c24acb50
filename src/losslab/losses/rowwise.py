"""The few losses that need more of a row than its log-odds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.logodds import all_log_odds
from losslab.logodds.plain import promote
from losslab.logodds.select import log_odds
from losslab.losses import slopes
from losslab.losses.psi import cross_entropy, expectation
from losslab.losses.reduction import OddsRows, Psi, Rows, check_reduction, quiet, sum_of_others


@dataclass(frozen=True)
class SquaredErrorRows(Rows):
    """Squared error of softmax outputs, the Brier score; with the mirror bonus.

    Math: Σ_k (y_k − p_k)²; with ``mirror`` less Σ_k (y_k p_k)² + ((1 − y_k)(1 − p_k))², which makes
        4(1 − p) − C: the expectation loss, rescaled.
    Slope: bounded; −2p(1 − p)² − … for two classes −4p(1 − p)², with ``mirror`` −4p(1 − p).
    """

    mirror: bool = False

    def hard(self, logits: Tensor, target: Tensor, ignored: Tensor | None = None) -> Tensor:
        logits = promote(logits)  # once, so that both parts' gradients meet in float32
        wrong = expectation(quiet(log_odds(logits, target), ignored))
        if self.mirror:
            return 4 * wrong - logits.shape[1]
        others = torch.softmax(logits, 1).scatter(1, target.unsqueeze(1), 0)
        return wrong.square() + others.square().sum(1)

    def soft(self, logits: Tensor, unused: Tensor | None = None) -> Tensor:
        logits = promote(logits)
        wrong = expectation(all_log_odds(logits))
        if self.mirror:
            return 4 * wrong - logits.shape[1]
        return wrong.square() + sum_of_others(torch.softmax(logits, 1).square())


def _twice_wrong(a: Tensor) -> Tensor:
    return 2 * expectation(a)


def _slope_of_twice_wrong(a: Tensor) -> Tensor:
    return 2 * slopes.expectation(a)


@dataclass(frozen=True)
class AbsoluteErrorRows(OddsRows):
    """Absolute error of softmax outputs, twice the expectation loss.

    Math: Σ_k |y_k − p_k| = 2(1 − p).
    Slope: ψ'(a) = −2p(1 − p).
    """

    psi: Psi = _twice_wrong
    slope: Psi | None = _slope_of_twice_wrong


@dataclass(frozen=True)
class MaximumProbabilityRows(Rows):
    """Maximum-probability cross-entropy: cross-entropy scaled by the lead of the top class.

    Math: (max_j p_j − p_y)·(−log p_y). It is 0 with gradient 0 wherever the true class leads, and
        near 0 at an even guess over many classes: Battash et al. could not make it converge.
    Slope: not a function of p alone.
    """

    def hard(self, logits: Tensor, target: Tensor, ignored: Tensor | None = None) -> Tensor:
        z = promote(logits)
        a = quiet(log_odds(z, target), ignored)
        lead = self._lead(z, z.gather(1, target.unsqueeze(1))).squeeze(1)
        return self._scaled(cross_entropy(a), lead)

    def soft(self, logits: Tensor, unused: Tensor | None = None) -> Tensor:
        z = promote(logits)
        return self._scaled(-torch.log_softmax(z, 1), self._lead(z, z))

    def _lead(self, z: Tensor, own: Tensor) -> Tensor:
        """max_j p_j − p_k as p_max·(1 − exp(z_k − z_max)), which does not cancel."""
        p_max = torch.softmax(z, 1).amax(1, keepdim=True)
        return -p_max * torch.expm1(own - z.amax(1, keepdim=True))

    def _scaled(self, nll: Tensor, lead: Tensor) -> Tensor:
        """lead·nll; infinite with slope 0, not ∞·0, where −log p is infinite."""
        hopeless = nll.isinf()
        return (lead * nll.masked_fill(hopeless, 0)).masked_fill(hopeless, math.inf)


@dataclass(frozen=True)
class ComplementEntropyRows(Rows):
    """Complement entropy, the second objective of complement objective training (COT).

    Math: Σ_{j≠y} q_j log q_j/(C − 1) with q the softmax over the classes j ≠ y: minimising it
        flattens the wrong classes. It says nothing of the true class, so COT alternates a step on
        it with a step on cross-entropy; this module does both when it lists two ``steps``.
    Slope: ∂/∂z_y is 0.
    """

    def hard(self, logits: Tensor, target: Tensor, ignored: Tensor | None = None) -> Tensor:
        z = promote(logits)
        classes = z.shape[1]
        if classes < 3:
            return (z.masked_fill(z.isinf(), 0) * 0).sum(1)  # no two wrong classes to flatten
        index = target.unsqueeze(1)
        log_q = torch.log_softmax(z.scatter(1, index, -math.inf), 1).scatter(1, index, 0)
        log_q = log_q.masked_fill(log_q == -math.inf, 0)
        q = log_q.exp().scatter(1, index, 0)
        return (q * log_q).sum(1) / (classes - 1)

    def soft(self, logits: Tensor, unused: Tensor | None = None) -> Tensor:
        raise InputError(
            "complement_entropy needs class-index targets without label smoothing: the complement "
            "of a soft target is not defined. Use another loss, or label_smoothing=0."
        )


def mahalanobis_centers(num_classes: int, dim: int, scale: float = 10.0) -> Tensor:
    """Max-Mahalanobis centres: C vectors of norm ``scale``, as far apart as they can be.

    Math: μ_iᵀμ_j = −scale²/(C − 1) for i ≠ j, the vertices of a regular simplex.

    Args:
        num_classes: C ≥ 2.
        dim: features' dimension, at least C − 1.

    Returns:
        (C, dim) float tensor.

    Example:
        >>> import losslab
        >>> losslab.mahalanobis_centers(2, 1, scale=3)
        tensor([[ 3.],
                [-3.]])

    Source: Pang et al. 2018, algorithm 1; used in equation 5 of Battash et al.
    """
    if num_classes < 2 or dim < num_classes - 1:
        raise InputError(
            f"{num_classes} centres need num_classes ≥ 2 and dim ≥ num_classes − 1; got dim={dim}."
        )
    centers = torch.zeros(num_classes, dim, dtype=torch.float64)
    centers[0, 0] = 1
    for i in range(1, num_classes):
        for j in range(i):
            dot = float(centers[i] @ centers[j])
            centers[i, j] = -(1 / (num_classes - 1) + dot) / centers[j, j]
        if i < dim:
            centers[i, i] = (1 - centers[i].square().sum()).clamp(min=0).sqrt()
    return (scale * centers).to(torch.get_default_dtype())


def max_mahalanobis_center_loss(
    features: Tensor, target: Tensor, centers: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """Squared distance of the features to the fixed centre of their class.

    Math: ½‖f − μ_y‖².

    Args:
        features: (N, D).
        target: (N,) class indices.
        centers: (C, D), from :func:`losslab.mahalanobis_centers`.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> import torch, losslab
        >>> centers = losslab.mahalanobis_centers(3, 2)
        >>> losslab.max_mahalanobis_center_loss(centers, torch.arange(3), centers)
        tensor(0.)

    Source: Pang et al. 2020; equation 5 of Battash et al., printed there without the square.
    """
    check_reduction(reduction)
    own = nn.functional.embedding(target, centers)  # refuses negative classes
    losses = (features - own).square().sum(1) / 2
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


class MaxMahalanobisCenterLoss(nn.Module):
    """Squared distance of the features to the fixed centre of their class.

    Math: ½‖f − μ_y‖², averaged over the batch. There is no output layer: predict with
    :meth:`logits`, the negative squared distances.

    Args:
        num_classes: C.
        num_features: dimension of f, at least C − 1.
        scale: norm of the centres.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Shape: features (N, D), target (N,) class indices; returns a scalar or (N,).

    Example:
        >>> import torch, losslab
        >>> loss = losslab.MaxMahalanobisCenterLoss(10, 64)
        >>> loss(torch.randn(8, 64), torch.randint(10, (8,))).shape
        torch.Size([])

    Source: Pang et al. 2020; equation 5 of Battash et al., printed there without the square.
    """

    centers: Tensor

    def __init__(
        self, num_classes: int, num_features: int, *, scale: float = 10.0, reduction: str = "mean"
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction
        self.register_buffer("centers", mahalanobis_centers(num_classes, num_features, scale))

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        return max_mahalanobis_center_loss(features, target, self.centers, reduction=self.reduction)

    def logits(self, features: Tensor) -> Tensor:
        """(N, C) scores whose argmax is the nearest centre: −½‖f − μ_k‖²."""
        return -torch.cdist(features, self.centers).square() / 2

"""What a classifier's logits are worth: functions of ``(logits, target)``, computed in float64.

``logits`` has one row an example and one column a class, ``(N, C)``; ``target`` holds the true
classes, ``(N,)`` whole numbers in ``[0, C)``. Whatever the dtype that comes in, the arithmetic is
done in float64 (float32 where a device has no float64), because a well-trained model's
probabilities differ from 1 by less than float32 can say.

==================== ============================================== =============
name                 what it is                                     better
==================== ============================================== =============
`accuracy`           share of examples whose largest logit is right larger
`balanced_accuracy`  mean over the classes of their recall          larger
`nll`                mean of −log p(true class), in nats            smaller
`brier`              Σ over classes of (p − truth)², mean over rows smaller, in [0, 2]
`ece`                |accuracy − confidence|, averaged over bins    smaller
`margin`             z_y − the largest other logit                  descriptive
`energy`             −z_y, the conditional energy of the true class descriptive
==================== ============================================== =============
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.logodds import target_log_odds

METRICS = ("accuracy", "balanced_accuracy", "nll", "brier", "ece", "margin", "energy")
BINS = 15


class Reliability(NamedTuple):
    """Confidence against accuracy, bin by bin; an empty bin has NaN for both means."""

    edges: Tensor
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


def evaluate(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Every metric of `METRICS` at once, as plain numbers; margin and energy are means.

    Example:
        >>> scores = evaluate(torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 0]))
        >>> scores["accuracy"], scores["margin"]
        (0.5, 0.0)
    """
    logits, target = _checked(logits, target)
    values = torch.stack(
        [
            accuracy(logits, target),
            balanced_accuracy(logits, target),
            nll(logits, target),
            brier(logits, target),
            ece(logits, target),
            margin(logits, target).mean(),
            energy(logits, target).mean(),
        ]
    )
    return dict(zip(METRICS, values.tolist(), strict=True))


def correct(logits: Tensor, target: Tensor) -> Tensor:
    """Whether each example's largest logit is its true class's: ``(N,)`` bool.

    A tie goes to the first of the equal classes; a row with a NaN predicts nothing and is wrong.
    """
    logits, target = _checked(logits, target)
    top, predicted = logits.max(dim=1)
    return (predicted == target) & ~top.isnan()


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of the examples that are right, in [0, 1]."""
    hits = correct(logits, target)
    return hits.sum().to(_wide(logits)) / hits.numel()


def balanced_accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the classes that occur in ``target`` of the share of their examples that are right.

    Constant guessing scores 1/C here however unbalanced the classes are.
    """
    logits, target = _checked(logits, target)
    classes = logits.shape[1]
    total = torch.bincount(target, minlength=classes)
    right = torch.bincount(target[correct(logits, target)], minlength=classes)
    present = total > 0
    return (right[present].to(logits.dtype) / total[present]).mean()


def nll(logits: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of the true class, −log softmax(z)_y, in nats."""
    logits, target = _checked(logits, target)
    return -_of_true_class(logits.log_softmax(dim=1), target).mean()


def brier(logits: Tensor, target: Tensor) -> Tensor:
    """Brier score: squared distance of the probabilities from the truth, in [0, 2].

    Summed over the classes and averaged over the rows, as Brier defined it in 1950. For two classes
    this is twice the score that counts one class only (scikit-learn's ``brier_score_loss``).
    """
    logits, target = _checked(logits, target)
    truth = torch.nn.functional.one_hot(target, logits.shape[1])
    return (logits.softmax(dim=1) - truth).square().sum(dim=1).mean()


def ece(logits: Tensor, target: Tensor, bins: int = BINS) -> Tensor:
    """Expected calibration error of the predicted class's probability, in [0, 1].

    The confidences are put into ``bins`` equal-width bins (0, 1/bins], …, and the gaps between a
    bin's accuracy and its mean confidence are averaged, weighted by how many examples fell in it
    (Guo et al. 2017, equation 3).
    """
    table = reliability(logits, target, bins)
    gap = (table.accuracy - table.confidence).abs()
    gap = torch.where(table.counts > 0, gap, 0.0)  # an empty bin weighs nothing
    return (gap * table.counts).sum() / table.counts.sum()


def reliability(logits: Tensor, target: Tensor, bins: int = BINS) -> Reliability:
    """A reliability diagram in numbers: count, mean confidence and accuracy of each bin."""
    logits, target = _checked(logits, target)
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise InputError(f"Expected bins to be a whole number of at least 1, but got {bins!r}.")
    confidence = logits.softmax(dim=1).amax(dim=1)
    edges = torch.linspace(0, 1, bins + 1, dtype=logits.dtype, device=logits.device)
    place = torch.bucketize(confidence, edges[1:-1])  # lower edge < confidence <= upper edge
    counts = torch.bincount(place, minlength=bins)
    sums = torch.stack([confidence, correct(logits, target).to(logits.dtype)])
    means = torch.zeros(2, bins, dtype=logits.dtype, device=logits.device)
    means = means.index_add(1, place, sums) / counts
    return Reliability(edges, counts, means[0], means[1])


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, z_y minus the largest other logit: positive where the prediction is right.

    With a single class there is no other logit, and the margin is +inf.
    """
    logits, target = _checked(logits, target)
    others = logits.scatter(1, target[:, None], -torch.inf)
    return _of_true_class(logits, target) - others.amax(dim=1)


def energy(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, the conditional energy of the true class, −z_y (Zhao et al. 2022, section 4)."""
    logits, target = _checked(logits, target)
    return -_of_true_class(logits, target)


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, the true class's log-odds a = z_y − logsumexp of the others = logit p(y)."""
    return target_log_odds(*_checked(logits, target))


def _of_true_class(values: Tensor, target: Tensor) -> Tensor:
    return values.gather(1, target[:, None]).squeeze(1)


def _wide(tensor: Tensor) -> torch.dtype:
    """float64, but float32 on devices that have nothing wider."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _checked(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same logits in float64 and the same target as int64, or an `InputError`."""
    if logits.ndim != 2 or not logits.is_floating_point():
        raise InputError(
            "Expected logits of shape (examples, classes) in a floating-point dtype, but got "
            f"{tuple(logits.shape)} {logits.dtype}."
        )
    if target.shape != logits.shape[:1]:
        raise InputError(
            f"Expected one target a row of the logits, shape ({len(logits)},), but got "
            f"{tuple(target.shape)}; pass class numbers, not probabilities."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise InputError(
            f"Expected target to hold class numbers, but got {target.dtype}; use target.long()."
        )
    if logits.numel() == 0:
        raise InputError(
            f"Expected at least one example and one class, but got logits of shape "
            f"{tuple(logits.shape)}: a metric of nothing is not defined."
        )
    low, high = (int(value) for value in target.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise InputError(
            f"Expected every target in [0, {logits.shape[1] - 1}], but they lie in [{low}, {high}];"
            " leave out rows to be ignored (such as -100) before measuring."
        )
    return logits.to(_wide(logits)), target.long()

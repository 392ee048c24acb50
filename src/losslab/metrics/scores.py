"""Accuracy, NLL, Brier score, margin, energy and log-odds: the scores that every run records.

A NaN among the logits makes its row wrong in `correct`, `accuracy` and `balanced_accuracy`, and the
other scores NaN; −inf rules a class out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from losslab.logodds import target_log_odds
from losslab.metrics.checks import checked, wide


def correct(logits: Tensor, target: Tensor) -> Tensor:
    """Whether each example's largest logit is its true class's: ``(N,)`` bool.

    A tie goes to the first of the equal classes; a row with a NaN predicts nothing and is wrong.
    """
    return predicted(logits, target) == target


def predicted(logits: Tensor, target: Tensor) -> Tensor:
    """Each example's class with the largest logit, the first of equal ones; −1 where one is NaN."""
    top, place = checked(logits, target)[0].max(dim=1)
    return place.where(~top.isnan(), -1)


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of the examples that are right, in [0, 1]."""
    return share_right(correct(logits, target))


def share_right(hits: Tensor) -> Tensor:
    """`accuracy` from what `correct` says of each example."""
    return hits.sum().to(wide(hits)) / hits.numel()


def balanced_accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the classes that occur in ``target`` of the share of their examples that are right.

    Constant guessing scores 1/C here however unbalanced the classes are.
    """
    return mean_recall(correct(logits, target), target.long())


def mean_recall(hits: Tensor, target: Tensor) -> Tensor:
    """`balanced_accuracy` from what `correct` says of each example."""
    total = torch.bincount(target)
    right = torch.bincount(target[hits], minlength=len(total))
    present = total > 0
    return (right[present].to(wide(hits)) / total[present]).mean()


def nll(logits: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of the true class, −log softmax(z)_y, in nats."""
    return example_nll(logits, target).mean()


def example_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, −log softmax(z)_y in nats."""
    logits, target = checked(logits, target)
    return -of_true_class(logits.log_softmax(dim=1), target)


def brier(logits: Tensor, target: Tensor) -> Tensor:
    """Brier score: squared distance of the probabilities from the truth, in [0, 2].

    Summed over the classes and averaged over the rows, as Brier defined it in 1950. For two classes
    this is twice the score that counts one class only (scikit-learn's ``brier_score_loss``).
    """
    return example_brier(logits, target).mean()


def example_brier(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, Σ over the classes of (p − truth)²."""
    logits, target = checked(logits, target)
    truth = torch.nn.functional.one_hot(target, logits.shape[1])
    return (logits.softmax(dim=1) - truth).square().sum(dim=1)


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, z_y minus the largest other logit: positive where the prediction is right.

    With a single class there is no other logit, and the margin is +inf.
    """
    logits, target = checked(logits, target)
    return of_true_class(logits, target) - largest_other(logits, target)


def energy(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, the conditional energy of the true class, −z_y (Zhao et al. 2022, section 4)."""
    logits, target = checked(logits, target)
    return -of_true_class(logits, target)


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, the true class's log-odds a = z_y − logsumexp of the others = logit p(y)."""
    return target_log_odds(*checked(logits, target))


def of_true_class(values: Tensor, target: Tensor) -> Tensor:
    """The column of each row's true class, ``(N,)``."""
    return values.gather(1, target[:, None]).squeeze(1)


def largest_other(logits: Tensor, target: Tensor) -> Tensor:
    """The largest logit of each row but the true class's; −inf where there is no other."""
    return logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)

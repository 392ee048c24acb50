"""Telling examples of the training distribution from others by the logits alone.

Every score is larger the more an example looks out of distribution (OOD). `auroc`, `fpr_at_tpr`,
`aupr_in` and `aupr_out` judge any such score, a user's own as well: numbers for examples of the
distribution (in) and for others (out).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from losslab.errors import InputError
from losslab.logodds import target_log_odds
from losslab.metrics.checks import check_tensor, choice, finite_logits, finite_values
from losslab.metrics.distributions import Histogram, histogram

SCORES = ("min_energy", "max_probability", "free_energy")
MEASURES = ("auroc", "fpr95", "aupr_in", "aupr_out")


def min_energy(logits: Tensor) -> Tensor:
    """Per example, the lowest conditional energy min_y E(y|x) = −max_y z_y (Zhao et al. 2022)."""
    return -finite_logits(logits).amax(dim=1)


def max_probability(logits: Tensor) -> Tensor:
    """Per example, log(1 − max p): the "maximum softmax probability" of Hendrycks & Gimpel 2017.

    The logarithm keeps the order of 1 − max p, and so every measure, but does not saturate: with
    margins of 40 and more 1 − max p is 0 for all, and with margins of 800 even its exact value.

    Example:
        >>> max_probability(torch.tensor([[100.0, 0.0], [1000.0, 0.0]]))
        tensor([ -100., -1000.], dtype=torch.float64)
    """
    logits = finite_logits(logits)
    return F.logsigmoid(-target_log_odds(logits, logits.argmax(dim=1)))


def free_energy(logits: Tensor) -> Tensor:
    """Per example, −log Σ_y exp z_y (Liu et al. 2020, at temperature 1)."""
    return -finite_logits(logits).logsumexp(dim=1)


def auroc(in_scores: Tensor, out_scores: Tensor) -> Tensor:
    """The chance that an OOD example scores above one of the distribution, a tie counting half.

    1 is perfect, ½ is chance, below ½ the score points the wrong way. It does not matter which of
    the two is called positive.

    Raises:
        InputError: For an empty set or scores that are not finite.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])).item()
        0.875
    """
    inside, outside = _pair(in_scores, out_scores)
    inside = inside.sort().values
    below = torch.searchsorted(inside, outside).sum()
    not_above = torch.searchsorted(inside, outside, right=True).sum()
    return (below + not_above).to(inside) / (2 * len(inside) * len(outside))


def fpr_at_tpr(
    in_scores: Tensor, out_scores: Tensor, tpr: float = 0.95, *, positive: str = "in"
) -> Tensor:
    """The share of the negatives that are let through where a share ``tpr`` of the positives is.

    Smaller is better. The threshold is the strictest that lets at least the share ``tpr`` of the
    positives through; whoever scores the same as the threshold passes too, as in scikit-learn's
    ``roc_curve`` without interpolation.

    Args:
        in_scores: ``(N,)`` larger = more out of distribution.
        out_scores: ``(M,)``.
        tpr: The true-positive rate, in (0, 1].
        positive: ``"in"`` (default): how many OOD examples pass as in-distribution where 95 % of
            the in-distribution examples do, the FPR95 of Liang et al. 2018 (ODIN) and of Liu et al.
            2020, against whom Zhao et al. 2022 compare. ``"out"``: how many in-distribution
            examples raise the alarm where 95 % of the OOD examples do (Hendrycks et al. 2019).

    Raises:
        InputError: For an empty set, scores that are not finite, or a rate outside (0, 1].

    Example:
        >>> inside, outside = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0])
        >>> fpr_at_tpr(inside, outside).item(), fpr_at_tpr(inside, outside, tpr=0.75).item()
        (0.5, 0.0)
    """
    choice(positive, "positive", ("in", "out"))
    if not 0 < tpr <= 1:
        raise InputError(f"Expected tpr to lie in (0, 1], but got {tpr!r}.")
    inside, outside = _pair(in_scores, out_scores)
    passing, others = (inside, outside) if positive == "in" else (-outside, -inside)
    threshold = passing.sort().values[_fewest(tpr, len(passing)) - 1]
    return (others <= threshold).sum().to(others) / len(others)


def aupr_in(in_scores: Tensor, out_scores: Tensor) -> Tensor:
    """Average precision of finding the in-distribution examples, by the lowest scores first.

    Larger is better; chance is their share of all the examples, so compare only where the two sets
    have the same sizes. Examples of equal score count together (scikit-learn's
    ``average_precision_score``).
    """
    inside, outside = _pair(in_scores, out_scores)
    return _average_precision(-inside, -outside)


def aupr_out(in_scores: Tensor, out_scores: Tensor) -> Tensor:
    """Average precision of finding the OOD examples, by the highest scores first; see `aupr_in`."""
    inside, outside = _pair(in_scores, out_scores)
    return _average_precision(outside, inside)


def scores(logits: Tensor) -> dict[str, Tensor]:
    """Every score of `SCORES`, one number an example."""
    return {
        "min_energy": min_energy(logits),
        "max_probability": max_probability(logits),
        "free_energy": free_energy(logits),
    }


def detect(in_logits: Tensor, out_logits: Tensor) -> dict[str, float]:
    """Every score under every measure, by ``"MEASURE.SCORE"``, as plain numbers.

    Args:
        in_logits: ``(N, C)`` of test examples from the training distribution.
        out_logits: ``(M, C)`` of the same model on other examples.

    Returns:
        ``"auroc.min_energy"`` and so on: each of ``auroc``, ``fpr95`` (`fpr_at_tpr` at 0.95 with
        in-distribution as positive), ``aupr_in`` and ``aupr_out``, of each of `SCORES`.

    Raises:
        InputError: For an empty set, logits that are not finite, or another number of classes.

    Example:
        >>> found = detect(torch.tensor([[9.0, 0.0], [0.0, 8.0]]), torch.tensor([[1.0, 0.5]]))
        >>> found["auroc.min_energy"], found["fpr95.min_energy"]
        (1.0, 0.0)
    """
    inside, outside = _scores_of_both(in_logits, out_logits)
    return judged(inside, outside)


def judged(inside: dict[str, Tensor], outside: dict[str, Tensor]) -> dict[str, float]:
    """`detect` from the scores of both sets, by name."""
    found = {}
    for measure, of in zip(MEASURES, (auroc, fpr_at_tpr, aupr_in, aupr_out), strict=True):
        for name in SCORES:
            found[f"{measure}.{name}"] = of(inside[name], outside[name]).item()
    return found


def histograms(
    in_logits: Tensor, out_logits: Tensor, bins: int = 50
) -> dict[str, tuple[Histogram, Histogram]]:
    """For each of `SCORES` the histograms of both sets, ``(in, out)``, over the same edges."""
    inside, outside = _scores_of_both(in_logits, out_logits)
    return {
        name: (
            histogram(inside[name], bins, beside=outside[name]),
            histogram(outside[name], bins, beside=inside[name]),
        )
        for name in SCORES
    }


def _scores_of_both(
    in_logits: Tensor, out_logits: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    for name, logits in (("in_logits", in_logits), ("out_logits", out_logits)):
        check_tensor(logits, name, "shape (examples, classes)")
    if in_logits.ndim == out_logits.ndim == 2:
        refuse_one_sided(len(in_logits), len(out_logits))
    if in_logits.shape[1:] != out_logits.shape[1:]:
        raise InputError(
            "Expected the logits of one model on both sets, but they have "
            f"{tuple(in_logits.shape)} and {tuple(out_logits.shape)} (examples, classes)."
        )
    return scores(in_logits), scores(out_logits)


def refuse_one_sided(inside: int, outside: int) -> None:
    """Raise `InputError` where one of the two sets has no examples."""
    if inside and outside:
        return
    if not inside and not outside:
        raise InputError(
            "Expected at least one example in the distribution and one outside it, but got neither."
        )
    lacking, other = ("in", "outside") if not inside else ("outside", "in")
    raise InputError(
        f"Expected at least one example {lacking} the distribution, but got none, only "
        f"{inside or outside} {other} it; telling the two apart needs both."
    )


def _pair(in_scores: Tensor, out_scores: Tensor) -> tuple[Tensor, Tensor]:
    for name, values in (("in_scores", in_scores), ("out_scores", out_scores)):
        check_tensor(values, name, "one number an example, (N,)")
    if in_scores.ndim == out_scores.ndim == 1:
        refuse_one_sided(len(in_scores), len(out_scores))
    return finite_values(in_scores, "in_scores"), finite_values(out_scores, "out_scores")


def _fewest(share: float, count: int) -> int:
    """The smallest k with k/count ≥ share, as floats compare."""
    k = max(1, math.ceil(share * count))
    return k - 1 if k > 1 and (k - 1) / count >= share else k


def _average_precision(positive: Tensor, negative: Tensor) -> Tensor:
    """Σ over thresholds, highest first, of (recall gained) × precision."""
    thresholds = positive.unique(sorted=True)
    hits = len(positive) - torch.searchsorted(positive.sort().values, thresholds)
    alarms = len(negative) - torch.searchsorted(negative.sort().values, thresholds)
    gained = hits.diff(append=hits.new_zeros(1)).neg()
    precision = hits.to(positive) / (hits + alarms)
    return (gained * precision).sum() / len(positive)

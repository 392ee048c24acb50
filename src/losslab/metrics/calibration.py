"""Whether a model's probabilities mean what they say, and one number that mends them.

Confidence is the probability of the predicted class. Bins are ``"width"``, of equal width over
[0, 1] (Guo et al. 2017), or ``"mass"``, of equal counts: their edges are the quantiles of what is
binned, interpolated linearly, as in scikit-learn's ``calibration_curve(strategy="quantile")``. In
both a value on an edge belongs to the bin below, equal values share a bin, and empty bins weigh
nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losslab.metrics.checks import checked, choice, finite, whole
from losslab.metrics.distributions import equal_masses
from losslab.metrics.scores import correct

BINS = 15
BINNINGS = ("width", "mass")
NORMS = ("l1", "l2", "max")


class Reliability(NamedTuple):
    """Confidence against accuracy, bin by bin; an empty bin has NaN for both means."""

    edges: Tensor
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor


class BrierDecomposition(NamedTuple):
    """The Brier score and its parts; see `brier_decomposition`.

    brier = reliability − resolution + uncertainty + within_variance − within_covariance
    """

    brier: Tensor
    reliability: Tensor
    resolution: Tensor
    uncertainty: Tensor
    within_variance: Tensor
    within_covariance: Tensor


def confidence(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, the probability of the predicted class, max p."""
    return checked(logits, target)[0].softmax(dim=1).amax(dim=1)


def reliability(
    logits: Tensor, target: Tensor, bins: int = BINS, *, binning: str = "width"
) -> Reliability:
    """A reliability diagram in numbers: count, mean confidence and accuracy of each bin."""
    check_bins(bins, binning)
    if binning == "mass":  # NaN has no place in an order
        logits, target = finite(logits, target)
    return diagram(confidence(logits, target), correct(logits, target), bins, binning)


def diagram(
    confidence: Tensor, hits: Tensor, bins: int = BINS, binning: str = "width"
) -> Reliability:
    """`reliability` from each example's `confidence` and whether it is `correct`."""
    edges, place = _bins(confidence[None], bins, binning)
    values = torch.stack([confidence, hits.to(confidence)])
    counts, means = _bin_means(values, place.expand_as(values), bins)
    return Reliability(edges[0], counts[0], means[0], means[1])


def ece(logits: Tensor, target: Tensor, bins: int = BINS) -> Tensor:
    """Expected calibration error of the predicted class's probability, in [0, 1].

    The confidences are put into ``bins`` equal-width bins (0, 1/bins], …, and the gaps between a
    bin's accuracy and its mean confidence are averaged, weighted by how many examples fell in it
    (Guo et al. 2017, equation 3).
    """
    return gap(reliability(logits, target, bins))


def calibration_error(
    logits: Tensor,
    target: Tensor,
    bins: int = BINS,
    *,
    binning: str = "width",
    norm: str = "l1",
) -> Tensor:
    """The gaps between accuracy and mean confidence of the bins, put together by a norm.

    Args:
        logits: ``(N, C)``.
        target: ``(N,)`` class numbers.
        bins: How many.
        binning: ``"width"``, or ``"mass"``, the adaptive calibration error of the top class.
        norm: With n_b of the N examples in bin b, ``"l1"`` is Σ n_b/N |gap_b| (with equal widths
            `ece`), ``"l2"`` √(Σ n_b/N gap_b²), ``"max"`` the largest |gap_b| of a bin that is not
            empty.

    Raises:
        InputError: For logits that are not finite, or an unknown binning or norm.

    Example:
        >>> logits = torch.tensor([[4.0, 1.0], [1.0, 3.0]]).log()  # confidence 0.8 and 0.75
        >>> calibration_error(logits, torch.tensor([0, 0]), bins=2, norm="max").round(decimals=6)
        tensor(0.2750, dtype=torch.float64)
    """
    choice(norm, "norm", NORMS)
    logits, target = finite(logits, target)
    return gap(reliability(logits, target, bins, binning=binning), norm)


def gap(table: Reliability, norm: str = "l1") -> Tensor:
    """`calibration_error` of a reliability diagram."""
    gaps = (table.accuracy - table.confidence).abs()
    gaps = torch.where(table.counts > 0, gaps, 0.0)  # an empty bin weighs nothing
    if norm == "max":
        return gaps.amax()
    if norm == "l2":
        return ((gaps.square() * table.counts).sum() / table.counts.sum()).sqrt()
    return (gaps * table.counts).sum() / table.counts.sum()


def classwise_ece(
    logits: Tensor,
    target: Tensor,
    bins: int = BINS,
    *,
    binning: str = "width",
    per_class: bool = False,
) -> Tensor:
    """Expected calibration error of every class's probability, averaged over the classes.

    For class k all N probabilities p_k are binned, and |share of the bin's examples that are of
    class k − mean p_k| is averaged with weights n_b/N. With equal widths this is the class-wise ECE
    of Kull et al. 2019 and the static calibration error of Nixon et al. 2019; with equal masses
    Nixon's adaptive calibration error (ACE, without a threshold). A class that does not occur in
    ``target`` counts like any other: its probabilities ought to be 0.

    Args:
        logits: ``(N, C)``.
        target: ``(N,)`` class numbers.
        bins: How many.
        binning: ``"width"`` or ``"mass"``, for each class by itself.
        per_class: Return ``(C,)``, the error of each class, instead of their mean.

    Raises:
        InputError: For logits that are not finite.

    Example:
        >>> logits = torch.tensor([[4.0, 1.0], [1.0, 4.0]]).log()
        >>> classwise_ece(logits, torch.tensor([0, 1])).round(decimals=6)
        tensor(0.2000, dtype=torch.float64)
    """
    check_bins(bins, binning)
    p, truth = _class_columns(logits, target)
    place = _bins(p, bins, binning)[1]
    counts, means = _bin_means(p, place, bins)
    gaps = torch.where(counts > 0, (_bin_means(truth, place, bins)[1] - means).abs(), 0.0)
    errors = (gaps * counts).sum(dim=1) / p.shape[1]
    return errors if per_class else errors.mean()


def brier_decomposition(
    logits: Tensor, target: Tensor, bins: int = BINS, *, binning: str = "width"
) -> BrierDecomposition:
    """The Brier score as reliability − resolution + uncertainty, and what binning leaves over.

    For each class, with N probabilities p of it in bins b (n_b examples, mean p̄_b, share ō_b of the
    class) and its share ō of all examples:

        reliability        Σ n_b/N (p̄_b − ō_b)²        smaller is better
        resolution         Σ n_b/N (ō_b − ō)²          larger is better
        uncertainty        ō (1 − ō)                   the data's own
        within_variance    Σ_i (p_i − p̄_b)²/N          } both 0 where all the probabilities
        within_covariance  2 Σ_i (o_i − ō_b)(p_i − p̄_b)/N } of a bin are equal

    summed over the classes. Murphy's (1973) three terms are exact only for forecasts that take few
    values; with the two terms of Stephenson et al. (2008) the sum is `brier`, whatever the bins.

    Args:
        logits: ``(N, C)``.
        target: ``(N,)`` class numbers; a class that does not occur has uncertainty 0.
        bins: How many, for each class.
        binning: ``"width"`` or ``"mass"``.

    Raises:
        InputError: For logits that are not finite.

    Example:
        >>> parts = brier_decomposition(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        >>> parts.brier.item(), parts.reliability.item(), parts.uncertainty.item()
        (0.5, 0.125, 0.375)
    """
    check_bins(bins, binning)
    p, truth = _class_columns(logits, target)
    rows = p.shape[1]
    place = _bins(p, bins, binning)[1]
    counts, forecast = _bin_means(p, place, bins)
    observed = _bin_means(truth, place, bins)[1]
    share = truth.mean(dim=1, keepdim=True)
    off_forecast = p - forecast.gather(1, place)
    off_observed = truth - observed.gather(1, place)

    def over_bins(squares: Tensor) -> Tensor:
        return (torch.where(counts > 0, squares, 0.0) * counts).sum() / rows

    return BrierDecomposition(
        brier=(p - truth).square().sum() / rows,
        reliability=over_bins((forecast - observed).square()),
        resolution=over_bins((observed - share).square()),
        uncertainty=(share * (1 - share)).sum(),
        within_variance=off_forecast.square().sum() / rows,
        within_covariance=2 * (off_observed * off_forecast).sum() / rows,
    )


def check_bins(bins: int, binning: str = "width") -> None:
    """Raise for a number of bins or a binning that there is not."""
    whole(bins, "bins")
    choice(binning, "binning", BINNINGS)


def _class_columns(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and truth, ``(C, N)`` each: one binary problem a class."""
    logits, target = finite(logits, target)
    truth = torch.nn.functional.one_hot(target, logits.shape[1])
    return logits.softmax(dim=1).T.contiguous(), truth.T.to(logits.dtype)


def _bins(values: Tensor, bins: int, binning: str) -> tuple[Tensor, Tensor]:
    """Edges ``(K, bins + 1)`` and each value's bin ``(K, N)``, for values ``(K, N)`` in [0, 1]."""
    if binning == "mass":
        edges = equal_masses(values, bins)
    else:
        edges = torch.linspace(0, 1, bins + 1, dtype=values.dtype, device=values.device)
        edges = edges.expand(len(values), -1)
    return edges, torch.searchsorted(edges[:, 1:-1].contiguous(), values)


def _bin_means(values: Tensor, place: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Counts and means ``(K, bins)`` of values ``(K, N)``; an empty bin's mean is NaN."""
    rows = len(values)
    flat = (place + bins * torch.arange(rows, device=place.device)[:, None]).flatten()
    counts = torch.bincount(flat, minlength=rows * bins)
    sums = values.new_zeros(rows * bins).index_add(0, flat, values.flatten())
    return counts.view(rows, bins), (sums / counts).view(rows, bins)

"""Ranks of methods over data sets, and which differences of ranks are more than chance.

Scores are an array (data sets, methods), larger is better, one number a cell. On each data set the
methods are ranked, the best with 1; equal scores share the mean of their ranks (mid-ranks).

**Ties.** Two neighbours in the sorted scores of a data set tie if they differ by no more than a
millionth of the larger (`TIE`): above what float32 rounding makes of equal accuracies, below what
one example of a test set can make. Wins, ranks and profiles all take their ties from `levels`.

**Tests**, with n data sets, k methods, ranks r, rank sums R:

- Friedman: χ² = (k − 1) Σ(R − n(k + 1)/2)² / (Σr² − nk(k + 1)²/4), which corrects for ties, on
  k − 1 degrees of freedom; Iman and Davenport's F = (n − 1)χ² / (n(k − 1) − χ²) on k − 1 and
  (n − 1)(k − 1), which keeps its level better and is the one that decides here.
- Conover's comparison of all pairs: t = (R_i − R_j) / √(2(nΣr² − ΣR²) / ((n − 1)(k − 1))) on
  (n − 1)(k − 1) degrees of freedom, allowed only where F is significant (Conover, Practical
  Nonparametric Statistics, 3rd ed. 1999, pp. 369–371). Ranked data, two-way analysis of variance:
  F is its F, and t compares two of its means.
- Nemenyi: two methods differ if their mean ranks differ by at least CD = q √(k(k + 1)/(6n)), where
  q is the studentized range over √2 (Demšar, JMLR 7, 2006). It knows nothing of ties, and is then
  cautious.

Other programs' Conover test is not to be copied blindly: R's PMCMR took n and k for each other,
and R's PMCMRplus and Python's scikit-posthocs (its issue 63) sum the rank sums where their squares
belong. R's agricolae and rstatix agree with the book and with this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from losslab.errors import InputError

Array = NDArray[np.float64]

TIE = 1e-6
"""Largest relative difference of two scores that tie."""


def levels(scores: ArrayLike) -> NDArray[np.int64]:
    """Steps of each data set's scores: 0 for the worst, the same number for scores that tie.

    Example:
        >>> levels([[0.7, 0.9, 0.9 + 1e-9, 0.8]]).tolist()
        [[0, 2, 2, 1]]
    """
    table = read_table(scores)
    order = np.argsort(table, axis=1, kind="stable")
    steps = np.take_along_axis(table, order, axis=1)
    size = np.maximum(np.abs(steps[:, 1:]), np.abs(steps[:, :-1]))
    rises = np.diff(steps, axis=1) > TIE * size
    climbed = np.concatenate([np.zeros((len(table), 1), bool), rises], axis=1).cumsum(axis=1)
    found = np.empty_like(climbed)
    np.put_along_axis(found, order, climbed, axis=1)
    return found


def wins(scores: ArrayLike) -> NDArray[np.int64]:
    """On how many data sets each method is the best; where several tie for it, all of them win."""
    steps = levels(scores)
    return np.sum(steps == steps.max(axis=1, keepdims=True), axis=0)


def ranks(scores: ArrayLike) -> Array:
    """Mid-ranks on each data set: the best has 1, and methods that tie share their mean rank."""
    return np.asarray(stats.rankdata(-levels(scores), axis=1), dtype=np.float64)


def places(scores: ArrayLike) -> Array:
    """Places on each data set as in sports: methods that tie all take the best of their ranks.

    No test uses them. With many ties their mean lies far below that of mid-ranks: the mean ranks
    printed by Battash et al. (table 4) sum to under 17 for six methods, where mid-ranks sum to 21.
    """
    return np.asarray(stats.rankdata(-levels(scores), method="min", axis=1), dtype=np.float64)


@dataclass(frozen=True)
class Friedman:
    """Do the methods differ at all? Friedman's χ² and Iman and Davenport's F, both with ties.

    ``ties`` is what the correction divided the plain χ² by: 1 without ties, 0 if all scores tie.
    Where all data sets rank the methods alike, F is infinite and ``f_p_value`` is the chance that
    random ranks do.
    """

    chi_square: float
    df: int
    p_value: float
    f: float
    f_df: tuple[int, int]
    f_p_value: float
    ties: float


def friedman(scores: ArrayLike) -> Friedman:
    """Friedman's test over the data sets, in both its forms.

    Example:
        >>> found = friedman([[0.7, 0.8, 0.9], [0.6, 0.7, 0.9], [0.7, 0.6, 0.8], [0.5, 0.6, 0.7]])
        >>> found.chi_square, found.f, round(found.f_p_value, 4)
        (6.5, 13.0, 0.0066)
    """
    r = _ranks_for_a_test(scores)
    n, k = r.shape
    between, within = _sums_of_squares(r)
    total = between + within
    df, f_df = k - 1, (k - 1, (n - 1) * (k - 1))
    plain = n * k * (k * k - 1) / 12  # what the squares sum to without ties
    if total == 0:
        return Friedman(0.0, df, 1.0, 0.0, f_df, 1.0, 0.0)
    chi_square = n * (k - 1) * between / total
    f = (n - 1) * between / within if within > 0 else np.inf
    f_p = float(special.fdtrc(*f_df, f)) if within > 0 else _chance_of_agreement(r)
    p = float(special.chdtrc(df, chi_square))
    return Friedman(float(chi_square), df, p, float(f), f_df, f_p, float(total / plain))


@dataclass(frozen=True)
class Conover:
    """All pairs of methods: t (above 0 where the row's rank is the worse one), p, and p after BH.

    The p-values mean what they say only if `friedman` found a difference.
    """

    t: Array
    p: Array
    adjusted: Array
    df: int


def conover(scores: ArrayLike) -> Conover:
    """Conover's comparison of all pairs of methods, after Friedman's test."""
    r = _ranks_for_a_test(scores)
    n, k = r.shape
    df = (n - 1) * (k - 1)
    sums = r.sum(axis=0)
    gaps = sums[:, None] - sums
    error = np.sqrt(2 * n * _sums_of_squares(r)[1] / df)
    alike = np.where(gaps == 0, 0.0, np.copysign(np.inf, gaps))  # if all data sets rank them so
    t = gaps / error if error > 0 else alike
    p = 2 * special.stdtr(df, -np.abs(t))
    upper = np.triu_indices(k, 1)
    adjusted = np.ones((k, k))
    adjusted[upper] = benjamini_hochberg(p[upper])
    return Conover(t, p, np.minimum(adjusted, adjusted.T), df)


def benjamini_hochberg(p_values: ArrayLike) -> Array:
    """Benjamini and Hochberg's step-up correction: adjusted p-values, in the order given.

    The i-th smallest of m is multiplied by m/i, then lowered to its successor's. Rejecting where
    the result is below α keeps the expected share of false rejections at α (JRSS B 57, 1995,
    289–300).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise InputError(
            f"expected a list of p-values from 0 to 1, got {p_values!r}; "
            "leave out tests that could not be made."
        )
    order = np.argsort(-p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(p[order] * p.size / np.arange(p.size, 0, -1))
    return np.minimum(adjusted, 1.0)


def critical_difference(methods: int, datasets: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of mean ranks.

    Example:
        >>> round(critical_difference(methods=4, datasets=14), 2)
        1.25
    """
    if methods < 2 or datasets < 1 or not 0 < alpha < 1:
        raise InputError(
            "expected two methods or more, a data set or more and an alpha between 0 and 1, "
            f"got {methods}, {datasets} and {alpha}; pass the shape of the scores."
        )
    q = float(stats.studentized_range.isf(alpha, methods, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * datasets)))


def groups(mean_ranks: ArrayLike, different: ArrayLike) -> list[list[int]]:
    """Largest runs of methods, in order of rank, of which no two are different.

    Args:
        mean_ranks: one for each method.
        different: (methods, methods), whether a pair is significantly different.

    Returns:
        Positions of the methods of each run of two or more, best first; runs may overlap.

    Example:
        >>> rank, far = np.array([1.2, 3.0, 2.0]), 1.1
        >>> groups(rank, np.abs(rank[:, None] - rank) >= far)
        [[0, 2], [2, 1]]
    """
    differ = np.asarray(different, dtype=bool)
    order = np.argsort(np.asarray(mean_ranks, dtype=np.float64), kind="stable")
    runs: list[list[int]] = []
    reached = 0
    for start in range(order.size):
        end = start + 1
        while end < order.size and not differ[order[end], order[start:end]].any():
            end += 1
        if end > max(reached, start + 1):
            runs.append(order[start:end].tolist())
            reached = end
    return runs


def read_table(scores: ArrayLike) -> Array:
    """The scores as an array (data sets, methods), checked."""
    table = read_numbers(scores)
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2:
        raise InputError(
            "expected scores of shape (data sets, methods) with two methods or more, "
            f"got the shape {table.shape}; average over seeds first."
        )
    return table


def read_numbers(values: ArrayLike, axes: Sequence[str] = ("data set", "method")) -> Array:
    """The values as finite floats; ``axes`` names the axes in the message."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected an array of scores, got something else ({error}); "
            "pass a number for every data set and method."
        ) from error
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        where = ", ".join(f"{name} {i}" for name, i in zip(axes, bad[0], strict=False))
        raise InputError(
            f"expected finite scores, got {len(bad)} of {array.size} that are NaN or infinite, the "
            f"first at {where} (counted from 0); decide what diverged runs count for, or leave out "
            "their data sets."
        )
    return array


def _ranks_for_a_test(scores: ArrayLike) -> Array:
    r = ranks(scores)
    if len(r) < 2:
        raise InputError("expected two data sets or more for a test of ranks, got one; add others.")
    return r


def _sums_of_squares(r: Array) -> tuple[float, float]:
    """Of the ranks: between methods, and what is left within data sets. Exact: ranks are halves."""
    n, k = r.shape
    sums = r.sum(axis=0)
    between = float(np.sum((2 * sums - n * (k + 1)) ** 2)) / 4
    whole = float(np.sum((2 * r - (k + 1)) ** 2)) / 4
    return between / n, (n * whole - between) / n


def _chance_of_agreement(r: Array) -> float:
    """Chance that random orders of the data sets' ranks all agree, where they do."""
    counts = np.unique(r[0], return_counts=True)[1]
    orders = special.gammaln(r.shape[1] + 1) - special.gammaln(counts + 1).sum()
    return float(np.exp(-(len(r) - 1) * orders))

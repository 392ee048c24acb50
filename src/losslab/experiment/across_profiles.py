"""Performance profiles (Dolan and Moré): how often a method is how close to the best.

Two readings of one idea:

- **accuracies** (Battash et al., figure 2): the ratio is score / best score, at most 1, and the
  profile at τ is the share of data sets where the ratio is at least τ.
- **costs** (Dolan and Moré, Math. Programming 91, 2002, 201–213): the ratio is cost / lowest cost,
  at least 1, and the profile at τ is the share of data sets where the ratio is at most τ.

In both, the profile at τ = 1 is the share of wins, and a higher curve is better. A profile is a
step function with its steps at the ratios, so the sorted ratios say all of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from losslab.errors import InputError
from losslab.experiment.across_ranks import Array, levels, read_table


def accuracy_ratios(scores: ArrayLike) -> Array:
    """Score / best score of each data set, for scores of 0 or more.

    Exactly 1 for every method that ties for the best, also where the best score is 0.

    Example:
        >>> accuracy_ratios([[0.6, 0.8], [0.9, 0.9]]).round(3).tolist()
        [[0.75, 1.0], [1.0, 1.0]]
    """
    table = read_table(scores)
    _refuse_negative(table, "scores", "accuracies have such a profile; turn a loss into a cost")
    best = table.max(axis=1, keepdims=True)
    ratios = np.divide(table, best, out=np.ones_like(table), where=best > 0)
    return np.where(_tied_for_best(table), 1.0, ratios)


def cost_ratios(costs: ArrayLike) -> Array:
    """Cost / lowest cost of each data set, for costs of 0 or more, smaller is better.

    Where the lowest cost is 0, it is infinite for all methods but those that reach 0.

    Example:
        >>> cost_ratios([[2.0, 1.0], [0.0, 3.0]]).tolist()
        [[2.0, 1.0], [1.0, inf]]
    """
    table = read_table(costs)
    _refuse_negative(table, "costs", "a ratio of costs needs a zero that means no cost")
    least = table.min(axis=1, keepdims=True)
    ratios = np.divide(table, least, out=np.full_like(table, np.inf), where=least > 0)
    return np.where(_tied_for_best(-table), 1.0, ratios)


def share_at_least(ratios: ArrayLike, thresholds: ArrayLike) -> Array:
    """The profile of accuracies: share of one method's ratios that are at least each threshold."""
    ordered = np.sort(np.asarray(ratios, dtype=np.float64))
    below = np.searchsorted(ordered, np.asarray(thresholds, dtype=np.float64), side="left")
    return np.asarray(1 - below / ordered.size, dtype=np.float64)


def share_at_most(ratios: ArrayLike, thresholds: ArrayLike) -> Array:
    """The profile of costs: share of one method's ratios that are at most each threshold."""
    ordered = np.sort(np.asarray(ratios, dtype=np.float64))
    within = np.searchsorted(ordered, np.asarray(thresholds, dtype=np.float64), side="right")
    return np.asarray(within / ordered.size, dtype=np.float64)


def _tied_for_best(table: Array) -> np.ndarray:
    steps = levels(table)
    return steps == steps.max(axis=1, keepdims=True)


def _refuse_negative(table: Array, what: str, advice: str) -> None:
    if table.min() < 0:
        raise InputError(f"expected {what} of 0 or more, got {table.min():g}; {advice}.")

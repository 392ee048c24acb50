"""Many methods on many data sets: one call for all statistics of a study. Arrays in, numbers out.

    across_ranks.py      wins, ranks, Friedman, Conover with Benjamini–Hochberg, Nemenyi, groups
    across_means.py      mean improvement: sign-flip test, verdict
    across_intervals.py  its intervals over data sets and seeds, and those of single data sets
    across_profiles.py   Dolan and Moré's performance profiles

Ranks and means answer different questions, and `summarize_across` gives both: a method can win
often by little and lose seldom by much. The verdict is about means, in the metric's own unit; the
critical-difference diagram is about ranks, which do not see by how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from losslab.errors import InputError, nearest
from losslab.experiment import across_ranks
from losslab.experiment.across_intervals import RESAMPLES, seed_intervals
from losslab.experiment.across_means import mean_improvements
from losslab.experiment.across_profiles import accuracy_ratios, cost_ratios
from losslab.experiment.across_ranks import Array, levels
from losslab.experiment.statistics import FEWEST_SEEDS


def summarize_across(
    scores: ArrayLike,
    methods: Sequence[str],
    baseline: str,
    margin: float,
    seed: int = 0,
    *,
    datasets: Sequence[str] | None = None,
    alpha: float = 0.05,
    resolution: ArrayLike = 0.0,
    resamples: int = RESAMPLES,
    unit: str = "",
    scale: float = 1.0,
) -> dict[str, Any]:
    """All statistics of a study over data sets, ready for JSON (what does not exist is None).

    Args:
        scores: larger is better, NaN refused: (data sets, methods), or (data sets, seeds, methods)
            where the methods' runs of one seed are paired.
        methods, datasets: the names along those axes; data sets are numbered from 1 without names.
        baseline: the method that the others are compared with.
        margin: the largest mean difference that would not be worth having.
        seed: of bootstrap and sign flips; the same seed gives the same numbers.
        alpha: chance of a false claim, and one minus the intervals' coverage.
        resolution: smallest step of the metric, one number or one for each data set; the least
            spread assumed in the intervals of single data sets.
        resamples: bootstrap samples and sign flips.
        unit, scale: how sentences show numbers (``scale=100, unit="points"`` for accuracy).

    Returns:
        ``table`` by method: mean, wins, mean_rank (ties share the mean rank, as the tests want),
            mean_place (ties share the best place, as in Battash et al., table 4), improvement and
            the data sets better, tied and worse than with the baseline; ``per_seed``: such tables
            for each seed by itself (None without seeds);
        ``friedman``; ``conover`` with its ``groups`` of methods not significantly different and
            ``allowed``, whether Friedman's test lets it speak (if not, all are one group);
        ``nemenyi`` with critical_difference and ``groups``;
        ``profile``: kind (accuracy, cost, or the whole is None for scores of both signs) and the
            sorted ratios of each method;
        ``mean_improvements`` by method, with intervals, p-values, verdict and sentence;
        ``per_dataset``: by data set and method the paired difference with its interval over seeds;
            ``per_dataset_counts``: how many of these intervals lie above and below zero, and how
            many would on each side by chance alone (None under three seeds);
        ``notes``: what the reader must know of these numbers.

    Raises:
        InputError: for scores that are not finite or not of that shape, or a setting outside its
            domain.

    Example:
        >>> rows = [[0.70, 0.72], [0.80, 0.83], [0.90, 0.91], [0.60, 0.64], [0.7, 0.7], [0.5, 0.6]]
        >>> found = summarize_across(rows, ["ce", "el"], "ce", margin=0.005)
        >>> found["table"]["el"]["wins"], found["table"]["el"]["mean_rank"]
        (6, 1.0833333333333333)
    """
    cube = _read(scores, methods, baseline)
    names = _dataset_names(datasets, len(cube))
    means = cube.mean(axis=1)
    seeds = cube.shape[1] if np.ndim(scores) == 3 else None
    at = list(methods).index(baseline)
    others = [i for i in range(len(methods)) if i != at]
    gains = {methods[i]: cube[:, :, i] - cube[:, :, at] for i in others}
    improvements = mean_improvements(
        {m: d if seeds else d[:, 0] for m, d in gains.items()},
        margin=margin,
        alpha=alpha,
        seed=seed,
        resamples=resamples,
        unit=unit,
        scale=scale,
    )
    summary = {
        "methods": list(methods),
        "datasets": names,
        "baseline": baseline,
        "seeds": seeds,
        "margin": margin,
        "alpha": alpha,
        "seed": seed,
        "table": _table(means, methods, at),
        "per_seed": [_table(cube[:, s], methods, at) for s in range(seeds)] if seeds else None,
        **_rank_tests(means, methods, alpha),
        "profile": _profile(means, methods),
        "mean_improvements": {m: vars(found) for m, found in improvements.items()},
        **_per_dataset(gains, names, alpha, resolution),
        "notes": _notes(seeds, len(names), alpha),
    }
    return _json_ready(summary)


def _read(scores: ArrayLike, methods: Sequence[str], baseline: str) -> Array:
    """The scores as (data sets, seeds, methods), checked against the names."""
    axes = ("data set", "seed", "method") if np.ndim(scores) == 3 else ("data set", "method")
    cube = across_ranks.read_numbers(scores, axes)
    if cube.ndim == 2:
        cube = cube[:, None]
    if cube.ndim != 3 or cube.shape[0] < 2 or cube.shape[1] < 1 or cube.shape[2] < 2:
        raise InputError(
            "expected scores of shape (data sets, methods) or (data sets, seeds, methods) with two "
            f"or more data sets and methods, got the shape {np.shape(scores)}."
        )
    if len(methods) != cube.shape[2] or len(set(methods)) != len(methods):
        raise InputError(
            f"expected {cube.shape[2]} different names of methods, one for each column of the "
            f"scores, got {list(methods)}."
        )
    if baseline not in methods:
        raise InputError(
            f"expected the baseline among the methods {', '.join(methods)}, got {baseline!r}."
            f"{nearest(baseline, methods)}"
        )
    return cube


def _dataset_names(datasets: Sequence[str] | None, count: int) -> list[str]:
    names = [str(i + 1) for i in range(count)] if datasets is None else list(datasets)
    if len(names) != count or len(set(names)) != count:
        raise InputError(
            f"expected {count} different names of data sets, one for each row of the scores, "
            f"got {len(names)} names, {len(set(names))} of them different."
        )
    return names


def _table(means: Array, methods: Sequence[str], at: int) -> dict[str, dict[str, Any]]:
    """The plain numbers of each method; ``at`` is the baseline's column."""
    mean_ranks = across_ranks.ranks(means).mean(axis=0)
    mean_places = across_ranks.places(means).mean(axis=0)
    rows = {}
    for i, method in enumerate(methods):
        versus = levels(means[:, [at, i]])
        rise = versus[:, 1] - versus[:, 0]
        rows[method] = {
            "mean": means[:, i].mean(),
            "wins": across_ranks.wins(means)[i],
            "mean_rank": mean_ranks[i],
            "mean_place": mean_places[i],
            "improvement": (means[:, i] - means[:, at]).mean(),
            "better": np.sum(rise > 0),
            "tied": np.sum(rise == 0),
            "worse": np.sum(rise < 0),
        }
    return rows


def _rank_tests(means: Array, methods: Sequence[str], alpha: float) -> dict[str, Any]:
    friedman = across_ranks.friedman(means)
    conover = across_ranks.conover(means)
    mean_ranks = across_ranks.ranks(means).mean(axis=0)
    least = across_ranks.critical_difference(len(methods), len(means), alpha)
    allowed = friedman.f_p_value < alpha
    gaps = np.abs(mean_ranks[:, None] - mean_ranks)

    def named(different: np.ndarray) -> list[list[str]]:
        return [[methods[i] for i in run] for run in across_ranks.groups(mean_ranks, different)]

    return {
        "friedman": vars(friedman),
        "conover": {
            **vars(conover),
            "allowed": allowed,
            "groups": named((conover.adjusted < alpha) & allowed),
        },
        "nemenyi": {"critical_difference": least, "groups": named(gaps >= least)},
    }


def _profile(means: Array, methods: Sequence[str]) -> dict[str, Any] | None:
    if means.min() >= 0:
        kind, ratios = "accuracy", accuracy_ratios(means)
    elif means.max() <= 0:
        kind, ratios = "cost", cost_ratios(-means)
    else:
        return None
    return {"kind": kind, "ratios": dict(zip(methods, np.sort(ratios, axis=0).T, strict=True))}


def _per_dataset(
    gains: dict[str, Array], names: Sequence[str], alpha: float, resolution: ArrayLike
) -> dict[str, Any]:
    found = {method: seed_intervals(d, alpha, resolution) for method, d in gains.items()}
    enough = next(iter(gains.values())).shape[1] >= FEWEST_SEEDS
    counts = {
        method: {
            "above": np.sum(low > 0),
            "below": np.sum(high < 0),
            "by_chance": alpha / 2 * len(names),
        }
        for method, (_, low, high) in found.items()
    }
    rows = {
        name: {
            method: {"difference": mean[i], "low": low[i], "high": high[i]}
            for method, (mean, low, high) in found.items()
        }
        for i, name in enumerate(names)
    }
    return {"per_dataset": rows, "per_dataset_counts": counts if enough else None}


def _notes(seeds: int | None, datasets: int, alpha: float) -> list[str]:
    notes = []
    if seeds is None:
        notes.append("No seeds were given: nothing is known of a single data set's spread.")
    elif seeds < FEWEST_SEEDS:
        counted = "1 seed allows" if seeds == 1 else f"{seeds} seeds allow"
        notes.append(
            f"{counted} no interval for a single data set ({FEWEST_SEEDS} are needed): "
            "its difference is a number without a spread."
        )
    else:
        notes.append(
            "The intervals of single data sets are not corrected for their number: without any "
            f"difference about {alpha / 2 * datasets:.1g} of {datasets} lie wholly above zero, and "
            "as many below."
        )
    if datasets < 20:
        notes.append(
            f"With {datasets} data sets the bootstrap intervals are too narrow "
            "(at 10 they hold the mean in about 90 % of cases, not 95 %)."
        )
    return notes


def _json_ready(value: Any) -> Any:
    """Plain lists, dicts and numbers; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {name: _json_ready(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_json_ready(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

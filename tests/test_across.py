"""Statistics over data sets: against published examples, R's numbers, scipy and simulation."""

from __future__ import annotations

import doctest
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from losslab.errors import InputError
from losslab.experiment import (
    across,
    across_intervals,
    across_means,
    across_profiles,
    across_ranks,
)
from losslab.experiment.across import summarize_across
from losslab.experiment.across_intervals import (
    bca_interval,
    both_levels_interval,
    same_datasets_interval,
    seed_intervals,
)
from losslab.experiment.across_means import mean_improvements, sign_flip_p
from losslab.experiment.across_profiles import (
    accuracy_ratios,
    cost_ratios,
    share_at_least,
    share_at_most,
)
from losslab.experiment.across_ranks import (
    benjamini_hochberg,
    conover,
    critical_difference,
    friedman,
    groups,
    levels,
    places,
    ranks,
    wins,
)
from losslab.experiment.statistics import holm

# Demšar (JMLR 7, 2006), table 6: AUC of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 UCI data sets.
# "voting" prints 0.975 twice but ranks them 2 and 3: they differ before rounding, as 0.97501 here.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.97501, 0.975], [0.957, 0.978, 0.946, 0.970],
    ]
)  # fmt: skip

# Conover (Practical Nonparametric Statistics, 3rd ed. 1999, p. 371): 12 home owners rank 4 grasses.
GRASS = np.array(
    [
        [4, 4, 3, 3, 4, 2, 1, 2, 3.5, 4, 4, 3.5],
        [3, 2, 1.5, 1, 2, 2, 3, 4, 1, 1, 2, 1],
        [2, 3, 1.5, 2, 1, 2, 2, 1, 2, 3, 3, 2],
        [1, 1, 4, 4, 3, 4, 4, 3, 3.5, 2, 1, 3.5],
    ]
).T

# The example of R's rstatix::friedman_conover_test and friedman_nemenyi_test (version 1.1.0).
RSTATIX = np.array([[4, 6, 3, 5, 4, 5], [7, 8, 6, 7, 9, 6], [6, 9, 7, 8, 8, 9]]).T

# Likert ratings of rcompanion.org/handbook/F_10.html: 8 raters, 5 instructors, many ties.
LIKERT = np.array(
    [
        [4, 5, 4, 6, 6, 6, 10, 6],
        [8, 6, 8, 8, 8, 7, 10, 9],
        [7, 5, 7, 8, 8, 9, 10, 9],
        [6, 4, 5, 5, 6, 6, 5, 5],
        [8, 7, 8, 8, 9, 9, 8, 10],
    ]
).T


def upper_count(trials: int, rate: float) -> float:
    """More hits than this come once in 2000 times if the rate is kept."""
    return stats.binom.ppf(0.9995, trials, rate)


def tied_table(seed: int, n: int = 9, k: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, (n, k)).astype(float)


# Ties, wins and ranks ---------------------------------------------------------------------------


def test_equal_accuracies_tie_whatever_their_rounding_and_one_example_does_not():
    """By hand. Breaks if ranks compare floats exactly, or the tolerance hides one example."""
    seeds = (0.1 + 0.2) / 2  # is not 0.15
    row = [0.15, seeds, float(np.float32(0.15)), 0.15 + 1e-5]
    assert seeds != 0.15
    assert levels([row]).tolist() == [[0, 0, 0, 1]]
    assert levels([[0.0, -0.0, 1e-9]]).tolist() == [[0, 0, 1]]  # relative, also near zero
    assert levels([[-2.0, -2.0000001, -2.1]]).tolist() == [[1, 1, 0]]
    assert wins([row, [0.5, 0.5 + 1e-9, 0.4, 0.3]]).tolist() == [1, 1, 0, 1]


def test_ranks_and_places_by_hand():
    """By hand: 1 is the best; ties share the mean rank, or all take the best place."""
    scores = [[0.7, 0.9, 0.9, 0.8], [0.5, 0.5, 0.5, 0.1]]
    assert ranks(scores).tolist() == [[4, 1.5, 1.5, 3], [2, 2, 2, 4]]
    assert places(scores).tolist() == [[4, 1, 1, 3], [1, 1, 1, 4]]
    assert wins(scores).tolist() == [1, 2, 2, 0]


def test_mean_ranks_of_demsar():
    """Oracle: the last line of table 6 (3.143, 2.000, 2.893, 1.964). Breaks without mid-ranks."""
    assert ranks(DEMSAR).mean(axis=0) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)


# Friedman ---------------------------------------------------------------------------------------


def test_friedman_of_demsar():
    """Oracle: p. 13, χ² = 9.28, without correction for ties, which divides by 1 − 78/840 here.

    The sum of t³ − t is 6 for each of three pairs that tie and 60 where all four do.
    """
    found = friedman(DEMSAR)
    assert found.ties == pytest.approx(1 - 78 / 840, rel=1e-12)
    assert found.chi_square * found.ties == pytest.approx(9.28, abs=0.005)
    assert (found.df, found.f_df) == (3, (3, 39))


def test_friedman_of_conovers_grasses():
    """Oracle: R, agricolae::friedman(grass), as printed in its documentation, with ties."""
    found = friedman(GRASS)
    assert found.chi_square == pytest.approx(8.097345, abs=5e-7)
    assert found.p_value == pytest.approx(0.04404214, abs=5e-9)
    assert found.f == pytest.approx(3.192198, abs=5e-7)
    assert found.f_p_value == pytest.approx(0.03621547, abs=5e-9)
    assert found.f_df == (3, 33)


def test_friedman_of_the_likert_ratings():
    """Oracle: R, stats::friedman.test as printed in the handbook: 23.139, p = 0.0001188."""
    found = friedman(LIKERT)
    assert found.chi_square == pytest.approx(23.139, abs=5e-4)
    assert found.p_value == pytest.approx(0.0001188, abs=5e-8)


@pytest.mark.parametrize("seed", range(5))
def test_friedman_is_scipys(seed):
    """Oracle: scipy.stats.friedmanchisquare on integer scores with many ties."""
    table = tied_table(seed)
    expected = stats.friedmanchisquare(*table.T)
    assert friedman(table).chi_square == pytest.approx(expected.statistic, rel=1e-12)
    assert friedman(table).p_value == pytest.approx(expected.pvalue, rel=1e-9)


def two_way_anova(r: np.ndarray) -> tuple[float, np.ndarray]:
    """F of the methods and t of all pairs from least squares on dummy variables."""
    n, k = r.shape
    blocks, methods = np.repeat(np.arange(n), k), np.tile(np.arange(k), n)
    only_blocks = np.eye(n)[blocks]
    both = np.c_[only_blocks, np.eye(k)[methods][:, 1:]]
    y = r.ravel()
    rest = [y - x @ np.linalg.lstsq(x, y, rcond=None)[0] for x in (only_blocks, both)]
    without, full = (float(e @ e) for e in rest)
    df = (n - 1) * (k - 1)
    means = r.mean(axis=0)
    t = (means[:, None] - means) / math.sqrt(2 * full / df / n)
    return (without - full) / (k - 1) / (full / df), t


@pytest.mark.parametrize("seed", range(5))
def test_f_and_conover_are_the_two_way_analysis_of_variance_of_the_ranks(seed):
    """Oracle: least squares on dummies. Breaks if n and k change places or ties are forgotten."""
    table = tied_table(seed)
    f, t = two_way_anova(stats.rankdata(-table, axis=1))
    assert friedman(table).f == pytest.approx(f, rel=1e-9)
    assert conover(table).t == pytest.approx(t, rel=1e-9, abs=1e-9)
    assert friedman(table).f_p_value == pytest.approx(stats.f.sf(f, 4, 32), rel=1e-9)


@pytest.mark.parametrize("row", [[1.0, 2.0, 3.0], [1.0, 2.0, 2.0]])
def test_perfect_agreement_has_the_chance_of_random_orders(row):
    """Oracle: all orders of three rows counted. Breaks if p becomes 0 or NaN there."""
    orders = [np.array(o) for o in itertools.permutations(row)]
    agree = [len({tuple(r) for r in o}) == 1 for o in itertools.product(orders, repeat=3)]
    found = friedman([row] * 3)
    assert math.isinf(found.f)
    assert found.f_p_value == pytest.approx(np.mean(agree), rel=1e-12)
    assert conover([row] * 3).p[0, 2] == 0


def test_scores_that_all_tie_show_nothing():
    """The limit: no spread, so χ² = F = 0 and every p is 1, without a division by zero."""
    found, pairs = friedman(np.ones((4, 3))), conover(np.ones((4, 3)))
    assert (found.chi_square, found.f, found.p_value, found.f_p_value) == (0, 0, 1, 1)
    assert found.ties == 0
    assert (pairs.p == 1).all() and (pairs.adjusted == 1).all() and (pairs.t == 0).all()


def test_friedmans_f_keeps_its_level_under_ties():
    """Simulation: 2000 tables of equal methods with ties; 5 % ± 4 standard errors reject."""
    rng = np.random.default_rng(11)
    p = [friedman(rng.integers(0, 8, (12, 5))).f_p_value for _ in range(2000)]
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


# Pairs ------------------------------------------------------------------------------------------


def test_conover_of_conovers_grasses():
    """Oracle: R, agricolae's tutorial (p of all pairs) and documentation (t = 2.034515 at LSD).

    Larger rank sums are better there. Breaks with the formula of PMCMR (n and k exchanged, p =
    0.0001 for the first pair) and with those of PMCMRplus and scikit-posthocs (sums not squared).
    """
    found = conover(GRASS)
    assert found.df == 33
    pairs = [found.p[i, j] for i, j in itertools.combinations(range(4), 2)]
    assert pairs == pytest.approx([0.015, 0.023, 0.483, 0.860, 0.072, 0.102], abs=5e-4)
    # the difference of rank sums that is just significant: t / LSD is one over the standard error
    assert abs(found.t[0, 1]) / 14.5 == pytest.approx(2.034515 / 11.48168, rel=1e-6)
    assert found.t[0, 1] < 0  # the first has the higher scores, so the lower (better) ranks


def test_conover_of_rstatix():
    """Oracle: R, rstatix: t 4.47 and 5.59, p 0.00119 and 0.000231 at 10 degrees of freedom."""
    found = conover(RSTATIX)
    assert found.df == 10
    assert found.t[0, 1:] == pytest.approx([4.47, 5.59], abs=0.005)
    assert found.p[0, 1:] == pytest.approx([0.00119, 0.000231], rel=0.005)


def test_conovers_adjusted_p_values_are_over_the_pairs():
    """Oracle: scipy.stats.false_discovery_control over the 10 pairs. Breaks over all 25 cells."""
    found = conover(LIKERT)
    upper = np.triu_indices(5, 1)
    expected = stats.false_discovery_control(found.p[upper], method="bh")
    assert found.adjusted[upper] == pytest.approx(expected, rel=1e-12)
    assert (found.adjusted == found.adjusted.T).all()
    assert (np.diag(found.adjusted) == 1).all() and (np.diag(found.p) == 1).all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_benjamini_hochberg_is_scipys(p):
    """Oracle: scipy.stats.false_discovery_control, ties and any order included."""
    expected = stats.false_discovery_control(p, method="bh")
    assert benjamini_hochberg(p) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_nemenyis_critical_values_are_demsars():
    """Oracle: Demšar's table 5a (its entries are cut, not rounded) and his two examples, p. 14."""
    five = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    ten = [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]
    for alpha, table in ((0.05, five), (0.10, ten)):
        for k, q in enumerate(table, start=2):
            error = math.sqrt(k * (k + 1) / (6 * 14))
            assert critical_difference(k, 14, alpha) / error == pytest.approx(q, abs=1e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


def test_nemenyis_difference_has_rs_p_value():
    """Oracle: R, rstatix: 4/3 and 5/3 ranks apart in 6 blocks of 3 are p = 0.0545 and 0.0109."""
    assert critical_difference(3, 6, alpha=0.0545) == pytest.approx(4 / 3, abs=5e-4)
    assert critical_difference(3, 6, alpha=0.0109) == pytest.approx(5 / 3, abs=2e-3)


def test_groups_of_demsar_and_of_agricolae():
    """Oracle: Demšar p. 14 at α = 0.10 (C4.5 worse than +m and +m+cf, +cf undecided); R's letters.

    agricolae prints a, b, b, ab for the grasses 1, 2, 3, 4: bars 1–4 and 4–3–2.
    """
    mean = ranks(DEMSAR).mean(axis=0)
    far = np.abs(mean[:, None] - mean) >= critical_difference(4, 14, alpha=0.10)
    assert groups(mean, far) == [[3, 1, 2], [2, 0]]
    assert groups(ranks(GRASS).mean(axis=0), conover(GRASS).p < 0.05) == [[0, 3], [3, 2, 1]]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_groups_are_all_largest_runs_without_a_different_pair(k, seed):
    """Oracle: every run of the order tried. Breaks if a run is nested, missing or holds a pair."""
    rng = np.random.default_rng(seed)
    mean = rng.permutation(k).astype(float)
    differ = rng.random((k, k)) < 0.35
    differ = differ | differ.T
    order = np.argsort(mean)
    runs = [order[i:j].tolist() for i in range(k) for j in range(i + 2, k + 1)]
    calm = [r for r in runs if not any(differ[a, b] for a, b in itertools.combinations(r, 2))]
    largest = [r for r in calm if not any(set(r) < set(other) for other in calm)]
    assert groups(mean, differ) == largest


# Profiles ---------------------------------------------------------------------------------------


def test_profiles_by_hand():
    """By hand, both senses, with ties, a best score of 0 and a lowest cost of 0."""
    accuracy = accuracy_ratios([[0.4, 0.8, 0.8 + 1e-9], [0.0, 0.0, 0.0], [0.9, 0.45, 0.0]])
    assert accuracy == pytest.approx(np.array([[0.5, 1, 1], [1, 1, 1], [1, 0.5, 0]]), abs=1e-8)
    assert (accuracy[0, 1:] == 1).all()
    assert share_at_least(accuracy[:, 1], [0.0, 0.5, 0.51, 1.0]) == pytest.approx(
        [1, 1, 2 / 3, 2 / 3]
    )
    cost = cost_ratios([[2.0, 1.0, 3.0], [0.0, 0.0, 1.0], [4.0, 2.0, 2.0]])
    assert cost.tolist() == [[2, 1, 3], [1, 1, math.inf], [2, 1, 1]]
    assert share_at_most(cost[:, 2], [1.0, 2.9, 3.0, 1e9]) == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    )


@pytest.mark.parametrize("seed", range(3))
def test_profiles_at_one_are_the_shares_of_wins(seed):
    """Law: ρ(1) = wins / n in both senses. Breaks if ties are compared exactly in one of them."""
    table = tied_table(seed) / 7 * (1 + 1e-9 * np.random.default_rng(seed).random((9, 5)))
    for method in range(5):
        at_one = share_at_least(accuracy_ratios(table)[:, method], 1.0)
        assert at_one == pytest.approx(wins(table)[method] / 9)
        at_one = share_at_most(cost_ratios(table)[:, method], 1.0)
        assert at_one == pytest.approx(wins(-table)[method] / 9)


# Intervals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_bca_interval_is_scipys(alpha):
    """Oracle: scipy.stats.bootstrap with the same draws, on skewed data."""
    d = np.random.default_rng(3).exponential(size=25) - 0.7
    expected = stats.bootstrap(
        (d,), np.mean, n_resamples=3000, confidence_level=1 - alpha, method="BCa",
        rng=np.random.default_rng(8),
    ).confidence_interval  # fmt: skip
    found = bca_interval(d, alpha, seed=8, resamples=3000)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9)
    shifted = stats.bootstrap((d,), np.mean, n_resamples=3000, method="percentile",
                              rng=np.random.default_rng(8)).confidence_interval  # fmt: skip
    assert found != pytest.approx((shifted.low, shifted.high), rel=1e-3)


def test_intervals_do_not_depend_on_how_much_is_drawn_at_once(monkeypatch):
    """Law: cutting the draws into parts changes nothing. Breaks if a part is lost."""
    d = np.random.default_rng(3).normal(size=(25, 2))
    whole = bca_interval(d[:, 0], 0.05, 1, 1000), sign_flip_p(d[:, 0], 1, 1000)
    spread = np.subtract(*both_levels_interval(d, 0.05, 1, 1000))
    monkeypatch.setattr(across_intervals, "_AT_ONCE", 25 * 7)
    parts = bca_interval(d[:, 0], 0.05, 1, 1000), sign_flip_p(d[:, 0], 1, 1000)
    assert parts == whole
    assert sum(across_intervals.parts(1000, 25)) == 1000
    assert np.subtract(*both_levels_interval(d, 0.05, 1, 1000)) == pytest.approx(spread, rel=0.15)


def test_both_levels_have_the_variance_of_drawing_sets_and_seeds():
    """Oracle: the bootstrap's variance in closed form, (between + within / seeds) / n.

    Within is 4 times as large as between here: breaks if seeds are not drawn again, or one draw of
    seeds serves all data sets.
    """
    rng = np.random.default_rng(5)
    n, seeds = 150, 4
    d = rng.normal(0, 0.5, (n, 1)) + rng.normal(0, 2, (n, seeds))
    between, within = d.mean(axis=1).var(), d.var(axis=1).mean()
    half_width = 1.959964 * math.sqrt((between + within / seeds) / n)
    low, high = both_levels_interval(d, 0.05, seed=0, resamples=20_000)
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.03)
    assert (high + low) / 2 == pytest.approx(d.mean(), abs=0.03 * half_width)
    over_sets = np.subtract(*bca_interval(d.mean(axis=1), 0.05, 0)[::-1])
    assert over_sets == pytest.approx(2 * 1.959964 * math.sqrt(between / n), rel=0.03)


def test_same_datasets_interval_is_students_and_welchs():
    """Oracle: scipy's one-sample t for one data set; for two, Welch's t of x against −y.

    Breaks if spread between data sets enters, or the degrees of freedom are pooled.
    """
    rng = np.random.default_rng(6)
    x, y = rng.normal(1, 1, 5), rng.normal(7, 3, 5)
    one = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert same_datasets_interval([x], 0.1) == pytest.approx((one.low, one.high), rel=1e-9)
    both = stats.ttest_ind(x, -y, equal_var=False).confidence_interval(0.9)
    expected = (both.low / 2, both.high / 2)
    assert same_datasets_interval([x, y], 0.1) == pytest.approx(expected, rel=1e-9)


def test_same_datasets_interval_covers_with_two_seeds():
    """Simulation: 2000 studies of 30 sets and 2 seeds; at least 95 % less four standard errors."""
    rng = np.random.default_rng(7)
    hit = 0
    for _ in range(2000):
        truth = rng.normal(0, 3, 30)
        low, high = same_datasets_interval(truth[:, None] + rng.normal(size=(30, 2)), 0.05)
        hit += low <= truth.mean() <= high
    assert 0.93 < hit / 2000 < 0.985


def test_seed_intervals_are_students_one_by_one():
    """Oracle: scipy's one-sample t on each row. Breaks with ddof, df or a pooled spread."""
    d = np.random.default_rng(9).normal(0.2, [[1], [2], [0.1]], (3, 6))
    mean, low, high = seed_intervals(d, alpha=0.1)
    for i, row in enumerate(d):
        expected = stats.ttest_1samp(row, 0).confidence_interval(0.9)
        assert (low[i], high[i]) == pytest.approx((expected.low, expected.high), rel=1e-9)
        assert mean[i] == pytest.approx(row.mean(), rel=1e-12)


def test_seed_intervals_know_what_they_do_not_know():
    """By hand: two seeds give none; equal differences are unknown spread, or the metric's step."""
    mean, low, high = seed_intervals([[0.1, 0.3], [0.0, 0.0]])
    assert mean == pytest.approx([0.2, 0.0])
    assert np.isnan(low).all() and np.isnan(high).all()
    same = [[0.1, 0.1, 0.1], [0.0, 0.0, 0.0]]
    _, low, high = seed_intervals(same)
    assert (low[0], high[0]) == (-math.inf, math.inf) and (low[1], high[1]) == (0, 0)
    _, low, high = seed_intervals(same, resolution=[0.01, 0.02])
    step = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert high - low == pytest.approx([2 * 0.01 * step, 2 * 0.02 * step], rel=1e-9)


# The test of the mean and its verdict -----------------------------------------------------------


@pytest.mark.parametrize("n", [6, 10])
def test_sign_flip_is_scipys_permutation_test(n):
    """Oracle: scipy.stats.permutation_test, exact, two-sided and one-sided."""
    d = np.random.default_rng(n).normal(0.4, 1, n)
    for one_sided, alternative in ((False, "two-sided"), (True, "greater")):
        expected = stats.permutation_test(
            (d,), lambda x, axis: x.mean(axis=axis), permutation_type="samples",
            vectorized=True, n_resamples=np.inf, alternative=alternative,
        ).pvalue  # fmt: skip
        assert sign_flip_p(d, one_sided=one_sided) == pytest.approx(expected, rel=1e-12)


def test_sampled_flips_come_close_to_all_flips_and_are_never_zero():
    """Oracle: all 2¹⁴ flips. Breaks if the sample is biased, or p can be 0."""
    d = np.random.default_rng(14).normal(0.35, 1, 14)
    sums = np.array([np.dot(s, d) for s in itertools.product((1, -1), repeat=14)])
    exact = float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-12))
    sampled = sign_flip_p(d, seed=1, flips=20_000)
    assert 0.02 < exact < 0.4
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    assert sign_flip_p(np.ones(100), flips=999) == pytest.approx(1 / 1000, rel=1e-12)


def test_equal_sums_count_as_equal():
    """Law: tenths of whole numbers have the p of the whole numbers, whose sums are exact.

    By hand: of the 8 flips of 1, 2, 3 two reach ±6. Breaks if rounding makes equal sums differ.
    """
    assert sign_flip_p([0.1, 0.2, 0.3]) == sign_flip_p([1, 2, 3]) == 0.25
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    rng = np.random.default_rng(2)
    for _ in range(50):
        whole = rng.integers(-4, 5, 9)
        for one_sided in (False, True):
            exact = sign_flip_p(whole, one_sided=one_sided)
            assert sign_flip_p(whole / 10, one_sided=one_sided) == exact


@pytest.mark.parametrize(
    ("d", "margin", "sentence"),
    [
        (
            [0.01, 0.02, 0.012, 0.015, 0.011, 0.018],
            0.005,
            "better: +1.43 points (95 % interval +1.17 to +1.75) over 6 data sets, "
            "corrected p = 0.031",
        ),
        (
            [-0.01, -0.02, -0.012, -0.015, -0.011, -0.018],
            0.005,
            "worse: -1.43 points (95 % interval -1.75 to -1.17) over 6 data sets, "
            "corrected p = 0.031",
        ),
        (
            [0.001, 0.002, 0.0012, 0.0015, 0.0011, 0.0018],  # significant too: the margin decides
            0.005,
            "no worthwhile difference: +0.14 points (95 % interval +0.12 to +0.18) over 6 data "
            "sets, inside ±0.50 points",
        ),
        (
            [0.03, -0.02, 0.01, 0.015, -0.03, 0.02],
            0.005,
            "cannot tell: +0.42 points (95 % interval -1.67 to +1.92) over 6 data sets",
        ),
        (
            [0.01, 0.02, 0.012, 0.015, 0.011],
            0.005,
            "refused: 5 data sets, and a verdict needs at least 6",
        ),
    ],
)
def test_verdicts_in_words(d, margin, sentence):
    """By hand: six equal signs have p = 2/64 = 0.031; five can never reach 5 %.

    The intervals are those of scipy.stats.bootstrap (BCa, 10,000 resamples, default_rng(0)).
    """
    found = mean_improvements({"el": d}, margin=margin, scale=100, unit="points")["el"]
    assert found.sentence == sentence
    assert found.sentence.startswith(found.verdict)
    assert math.isnan(found.both_low) and math.isnan(found.same_low)


def test_p_values_are_corrected_after_holm_over_the_candidates_that_are_tested():
    """Oracle: holm() over scipy-checked raw p; equivalence is the larger of two shifted tests."""
    rng = np.random.default_rng(4)
    d = {name: rng.normal(shift, 1, 10) for name, shift in (("a", 1.0), ("b", 0.3), ("c", 0.0))}
    found = mean_improvements({**d, "few": [1.0, 2.0]}, margin=0.8)
    assert list(found) == ["a", "b", "c", "few"]
    raw = [sign_flip_p(d[name]) for name in "abc"]
    outside = [
        max(sign_flip_p(d[x] + 0.8, one_sided=True), sign_flip_p(0.8 - d[x], one_sided=True))
        for x in "abc"
    ]
    assert [found[x].p_value for x in "abc"] == pytest.approx(raw, rel=1e-12)
    assert [found[x].p_adjusted for x in "abc"] == pytest.approx(holm(raw), rel=1e-12)
    assert [found[x].p_equivalence for x in "abc"] == pytest.approx(holm(outside), rel=1e-12)
    assert found["few"].verdict == "refused" and math.isnan(found["few"].p_adjusted)


def test_false_claims_stay_under_alpha_for_equal_methods():
    """Simulation: 300 studies of 5 equal candidates, 24 sets, 2 seeds, heavy tails between sets.

    Breaks without Holm (about 15 % of studies), and if seeds count as data sets.
    """
    rng = np.random.default_rng(12)
    claimed = 0
    for _ in range(300):
        scores = rng.standard_t(3, (24, 1, 6)) + rng.normal(0, 0.3, (24, 2, 6))
        d = {str(i): scores[..., i] - scores[..., 0] for i in range(1, 6)}
        found = mean_improvements(d, margin=1e-9, resamples=400).values()
        claimed += any(m.verdict in ("better", "worse") for m in found)
    assert claimed <= upper_count(300, 0.05)


def test_false_equivalence_stays_under_alpha_at_the_margin():
    """Simulation: the true mean lies on the margin; at most 5 % say that it lies inside.

    Breaks if the two-sided test or a single one-sided test decides.
    """
    rng = np.random.default_rng(13)
    said = 0
    for _ in range(500):
        d = 0.3 + rng.normal(size=40)
        found = mean_improvements({"a": d}, margin=0.3, resamples=400)["a"]
        said += found.verdict == "no worthwhile difference"
    assert 0 < said <= upper_count(500, 0.05)


# The whole --------------------------------------------------------------------------------------


METHODS = ["ce", "f0", "mix", "el"]


def study(seeds: int = 3, n: int = 24) -> np.ndarray:
    """Accuracies on test sets of 50 to 400 examples: mix is best, el collapses now and then."""
    rng = np.random.default_rng(21)
    base = rng.beta(8, 3, (n, 1, 1)) + rng.normal(0, 0.01, (n, seeds, 1))
    scores = base + np.array([0, 0.001, 0.01, -0.002]) + rng.normal(0, 0.004, (n, seeds, 4))
    scores[::6, :, 3] -= 0.3
    size = rng.choice([50, 100, 400], (n, 1, 1))
    return np.round(np.clip(scores, 0, 1) * size) / size


def summarize(scores: np.ndarray, **more) -> dict:
    return summarize_across(scores, METHODS, "ce", 0.005, **{"resamples": 500, **more})


def test_summary_is_json_and_the_same_every_time():
    """Law: the same call gives the same text; another seed moves the bootstrap, and only that."""
    text = json.dumps(summarize(study()), allow_nan=False)
    assert json.dumps(summarize(study()), allow_nan=False) == text
    one, other = json.loads(text), summarize(study(), seed=1)
    assert one["mean_improvements"]["mix"]["low"] != other["mean_improvements"]["mix"]["low"]
    for part in ("table", "friedman", "conover", "nemenyi", "profile", "per_dataset"):
        assert one[part] == other[part], part


def test_summary_agrees_with_its_parts():
    """Oracle: numpy and the functions checked above. Breaks if seeds are not averaged first."""
    scores = study()
    found, means = summarize(scores), scores.mean(axis=1)
    for i, method in enumerate(METHODS):
        row = found["table"][method]
        assert row["mean"] == pytest.approx(means[:, i].mean(), rel=1e-12)
        assert row["wins"] == wins(means)[i]
        assert row["mean_rank"] == pytest.approx(ranks(means)[:, i].mean(), rel=1e-12)
        assert row["mean_place"] == pytest.approx(places(means)[:, i].mean(), rel=1e-12)
        gain = means[:, i] - means[:, 0]
        assert row["improvement"] == pytest.approx(gain.mean(), abs=1e-12)
        counts = [np.sum(gain > 1e-7), np.sum(abs(gain) <= 1e-7), np.sum(gain < -1e-7)]
        assert [row["better"], row["tied"], row["worse"]] == counts
    assert found["friedman"]["f"] == pytest.approx(friedman(means).f, rel=1e-12)
    assert found["conover"]["adjusted"] == conover(means).adjusted.tolist()
    assert found["mean_improvements"]["mix"]["verdict"] == "better"
    assert list(found["mean_improvements"]) == METHODS[1:]
    ratios = found["profile"]["ratios"]["el"]
    assert found["profile"]["kind"] == "accuracy"
    assert ratios == pytest.approx(np.sort(accuracy_ratios(means)[:, 3]), rel=1e-12)
    assert found["per_seed"][2] == summarize(scores[:, 2])["table"]


def test_summary_says_what_the_seeds_allow():
    """By hand: three seeds give intervals of single sets, two give none, and both are said."""
    three, two, none = summarize(study(3)), summarize(study(2)), summarize(study(3)[:, 0])
    sets = three["per_dataset"]
    assert list(sets) == [str(i + 1) for i in range(24)]
    d = study(3)[4, :, 2] - study(3)[4, :, 0]
    expected = stats.ttest_1samp(d, 0).confidence_interval()
    assert sets["5"]["mix"]["low"] == pytest.approx(expected.low, rel=1e-9)
    above = [row["mix"]["low"] is not None and row["mix"]["low"] > 0 for row in sets.values()]
    counts = three["per_dataset_counts"]["mix"]
    assert counts["above"] == sum(above) > 0
    assert counts["by_chance"] == pytest.approx(0.025 * 24)
    assert two["per_dataset_counts"] is None
    assert all(row["mix"]["low"] is None for row in two["per_dataset"].values())
    assert "2 seeds allow no interval" in two["notes"][0]
    assert two["mean_improvements"]["mix"]["same_low"] is not None
    assert none["seeds"] is None and none["per_seed"] is None
    assert none["mean_improvements"]["mix"]["both_low"] is None


def test_conover_is_silent_where_friedman_finds_nothing():
    """By hand: a table with F's p = 0.059 and a pair at 0.035 after BH must join all methods."""
    table = np.array(
        [
            [5, 0, 2, 4, 3, 1],
            [5, 0, 1, 2, 3, 4],
            [5, 3, 1, 0, 2, 4],
            [5, 1, 3, 2, 4, 0],
            [2, 0, 3, 4, 1, 5],
        ]
    )
    assert friedman(table).f_p_value > 0.05 and conover(table).adjusted.min() < 0.05
    found = summarize_across(table, list("abcdef"), "a", 0.1)
    assert found["conover"]["allowed"] is False
    assert [sorted(group) for group in found["conover"]["groups"]] == [list("abcdef")]


def test_summary_groups_by_corrected_p_and_by_the_critical_difference():
    """Oracle: Demšar p. 14 for Nemenyi at 0.10; the grasses, where BH lifts 0.015 to 0.068.

    The smallest p is 0.0149 and the next 0.0226, so the least adjusted p is 0.0226 · 6/2. Breaks if
    p is not corrected (two groups then), or the critical difference is of another shape.
    """
    names = ["C4.5", "m", "cf", "m+cf"]
    found = summarize_across(DEMSAR, names, "C4.5", 0.01, alpha=0.10, resamples=100)
    assert found["nemenyi"]["groups"] == [["m+cf", "m", "cf"], ["cf", "C4.5"]]
    found = summarize_across(GRASS, list("1234"), "1", 0.01, resamples=100)
    assert found["conover"]["allowed"] is True
    assert found["conover"]["adjusted"][0][1] == pytest.approx(3 * 0.02260, abs=1e-4)
    assert found["conover"]["groups"] == [["1", "4", "3", "2"]]


def test_summary_of_extremes_is_still_json():
    """Law: perfect agreement, all equal, two methods, negative scores: no NaN, no warning."""
    alike = summarize_across([[1.0, 2.0, 3.0]] * 7, list("abc"), "a", 0.1)
    assert alike["friedman"]["f"] is None and alike["conover"]["groups"] == []
    equal = summarize_across(np.ones((7, 3)), list("abc"), "a", 0.1)
    assert equal["conover"]["groups"] == [["a", "b", "c"]]
    assert equal["mean_improvements"]["b"]["verdict"] == "no worthwhile difference"
    assert equal["table"]["c"]["wins"] == 7
    losses = summarize_across(-np.arange(1.0, 15).reshape(7, 2), ["a", "b"], "a", 0.1)
    assert losses["profile"]["kind"] == "cost"
    assert losses["profile"]["ratios"]["a"] == [1.0] * 7
    mixed = summarize_across([[1.0, -1.0]] * 7, ["a", "b"], "a", 0.1)
    assert mixed["profile"] is None
    for found in (alike, equal, losses, mixed):
        json.dumps(found, allow_nan=False)


def test_order_of_methods_and_monotone_changes_leave_the_ranks_alone():
    """Law: exchanging columns exchanges results, and ranks see only the order of scores."""
    scores = study().mean(axis=1)
    back = [3, 1, 0, 2]
    turned = summarize_across(scores[:, back], [METHODS[i] for i in back], "ce", 0.005)
    straight = summarize_across(scores, METHODS, "ce", 0.005)
    assert turned["table"] == {m: straight["table"][m] for m in turned["table"]}
    assert turned["conover"]["groups"] == straight["conover"]["groups"]
    bent = summarize_across(np.exp(3 * scores), METHODS, "ce", 0.005)
    assert bent["friedman"] == straight["friedman"]
    assert bent["conover"] == straight["conover"]


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [[1.0, math.nan], [1.0, 2.0]]}, "data set 0, method 1"),
        ({"scores": [[[1.0, 2.0]], [[math.inf, 2.0]]]}, "data set 1, seed 0, method 0"),
        ({"scores": [1.0, 2.0]}, "got the shape (2,)"),
        ({"scores": [[1.0, 2.0]]}, "two or more data sets"),
        ({"scores": [["x", 1.0]]}, "an array of scores"),
        ({"methods": ["ce"]}, "2 different names of methods"),
        ({"methods": ["ce", "ce"]}, "2 different names of methods"),
        ({"baseline": "c"}, "Did you mean 'ce'?"),
        ({"margin": 0.0}, "margin above 0"),
        ({"alpha": 0.7}, "alpha above 0"),
        ({"resamples": 5}, "resamples of 100 or more"),
        ({"datasets": ["one"]}, "3 different names of data sets"),
        ({"datasets": ["one", "one", "two"]}, "2 of them different"),
    ],
)
def test_bad_input_is_named(change, message):
    """Each mistake raises InputError and says where it is. Breaks if NaN becomes a rank."""
    scores = [[0.1, 0.2], [0.3, 0.1], [0.5, 0.6]]
    given = {"scores": scores, "methods": ["ce", "el"], "baseline": "ce", "margin": 0.1, **change}
    with pytest.raises(InputError) as raised:
        summarize_across(**given)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: friedman([[1.0, 2.0]]), "two data sets or more"),
        (lambda: ranks([1.0, 2.0]), "got the shape (2,)"),
        (lambda: benjamini_hochberg([0.5, 1.5]), "p-values from 0 to 1"),
        (lambda: critical_difference(1, 5), "two methods or more"),
        (lambda: accuracy_ratios([[0.5, -0.1]]), "got -0.1"),
        (lambda: cost_ratios([[0.5, -0.1]]), "got -0.1"),
        (lambda: mean_improvements({}, margin=0.1), "at least one candidate"),
        (lambda: mean_improvements({"a": np.zeros((2, 2, 2))}, margin=0.1), "(2, 2, 2)"),
    ],
)
def test_bad_input_of_the_parts_is_named(call, message):
    """Each part checks what it alone needs."""
    with pytest.raises(InputError) as raised:
        call()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "module", [across, across_ranks, across_means, across_intervals, across_profiles]
)
def test_examples_in_docstrings(module):
    """The examples run as printed; ``across_intervals`` has none of its own."""
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0 or module is across_intervals

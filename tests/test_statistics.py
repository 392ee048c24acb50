"""Verdicts over seeds: against scipy's own tests, by exact enumeration and by simulation."""

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
from losslab.experiment import statistics
from losslab.experiment.statistics import MOST_SEEDS, PairedComparison, compare_paired, holm

STEP = 1 / 360  # accuracy on 360 test examples
DECIDED = ("better", "worse")


def compare_one(d, *, margin=1e-9, **kwargs) -> PairedComparison:
    return compare_paired({"candidate": d}, margin=margin, **kwargs)["candidate"]


def standardised(n: int, mean: float) -> np.ndarray:
    """n numbers of exactly this mean and of standard deviation 1."""
    d = np.random.default_rng(n).normal(size=n)
    return mean + (d - d.mean()) / d.std(ddof=1)


def upper_count(trials: int, rate: float) -> float:
    """More hits than this come once in 2000 times if the rate is kept."""
    return stats.binom.ppf(0.9995, trials, rate)


# Estimates and p-values -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 10, 200])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_mean_interval_and_p_value_are_those_of_scipy(n, alpha):
    """Oracle: scipy.stats.ttest_rel on the two columns. Breaks with ddof, df or tail mistakes."""
    rng = np.random.default_rng(n)
    baseline, candidate = rng.normal(0.9, 0.02, n), rng.normal(0.905, 0.02, n)
    expected = stats.ttest_rel(candidate, baseline)
    interval = expected.confidence_interval(1 - alpha)
    ours = compare_one(candidate - baseline, alpha=alpha)
    assert ours.n == n
    assert ours.mean == pytest.approx(np.mean(candidate - baseline), rel=1e-12)
    assert ours.sd == pytest.approx(np.std(candidate - baseline, ddof=1), rel=1e-12)
    assert ours.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("shift", [-0.4, 0.0, 0.3, 2.0])
def test_equivalence_p_is_the_larger_one_sided_p(shift):
    """Oracle: two one-sided scipy t tests against −margin and +margin."""
    d, margin = standardised(8, shift), 0.9
    above = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(d, margin, alternative="less").pvalue
    assert compare_one(d, margin=margin).p_equivalence == pytest.approx(max(above, below), rel=1e-9)


def test_holm_worked_by_hand():
    """Sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1, never below the predecessor: 0.04 becomes 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-12)
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p):
    """Oracle: the closure principle: the worst Bonferroni p of any group that contains the test."""
    groups = [
        g for size in range(1, len(p) + 1) for g in itertools.combinations(range(len(p)), size)
    ]
    for i, adjusted in enumerate(holm(p)):
        worst = max(min(1.0, len(g) * min(p[j] for j in g)) for g in groups if i in g)
        assert adjusted == pytest.approx(worst, rel=1e-12)


def test_correction_counts_the_tested_candidates_only():
    """Two candidates with three seeds double the smaller p; the refused one does not count."""
    d = {"a": standardised(5, 1.5), "b": standardised(5, 0.1), "short": [1.0, 1.2]}
    result = compare_paired(d, margin=1e-9)
    assert list(result) == ["a", "b", "short"]
    assert result["a"].p_adjusted == pytest.approx(2 * result["a"].p_value, rel=1e-12)
    assert result["b"].p_adjusted == pytest.approx(result["b"].p_value, rel=1e-12)
    assert result["a"].p_equivalence == pytest.approx(1.0)  # cut at 1
    assert math.isnan(result["short"].p_adjusted)
    without = compare_paired({name: d[name] for name in "ab"}, margin=1e-9)
    alone = compare_one(d["a"])
    assert (result["a"].low, result["a"].high) == (alone.low, alone.high)  # not corrected
    assert result["b"] == without["b"]  # the level of ``detectable`` and ``needed`` too


# Probability of improvement ---------------------------------------------------------------------


@pytest.mark.parametrize("wins", range(8))
def test_improvement_without_ties_is_clopper_pearson(wins):
    """Oracle: scipy.stats.binomtest's exact interval."""
    d = np.r_[np.linspace(1, 2, wins), np.linspace(-1, -2, 7 - wins)]
    expected = stats.binomtest(wins, 7).proportion_ci(0.95, method="exact")
    ours = compare_one(d)
    assert ours.improvement_probability == pytest.approx(wins / 7)
    assert ours.improvement_low == pytest.approx(expected.low, abs=1e-10)
    assert ours.improvement_high == pytest.approx(expected.high, abs=1e-10)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_each_end_of_the_improvement_interval_keeps_its_level_under_ties(n, alpha):
    """Oracle: exact probabilities of all (wins, ties, losses), just below each possible lower end.

    Breaks if a tie counts as a win in the interval: then it misses up to 1.9 times too often.
    """
    counts = [(w, t, n - w - t) for w in range(n + 1) for t in range(n + 1 - w)]
    low, high = np.empty(len(counts)), np.empty(len(counts))
    for i, (w, t, lost) in enumerate(counts):
        c = compare_one([1.0] * w + [0.0] * t + [-1.0] * lost, resolution=1.0, alpha=alpha)
        assert c.improvement_probability == pytest.approx((w + t / 2) / n)
        low[i], high[i] = c.improvement_low, c.improvement_high
    for truth in np.unique(low[low > 0]) - 1e-9:
        for tie in 2 * min(truth, 1 - truth) * np.linspace(0, 1, 21):
            win = truth - tie / 2
            chance = stats.multinomial.pmf(counts, n, [win, tie, max(0.0, 1 - win - tie)])
            assert chance[low > truth].sum() <= alpha / 2 + 1e-7
            mirrored = stats.multinomial.pmf(counts, n, [max(0.0, 1 - win - tie), tie, win])
            assert mirrored[high < 1 - truth].sum() <= alpha / 2 + 1e-7


# Error rates: the same loss under two names -----------------------------------------------------


def metric_of_one_loss(kind: str, rng: np.random.Generator, shape) -> np.ndarray:
    """The metric of runs of one loss: (simulation, loss, seed)."""
    match kind:
        case "gaussian":
            return rng.normal(0.9, 0.01, shape)
        case "heavy-tailed":
            return rng.standard_t(3, shape)
        case "skewed":
            return rng.lognormal(0, 1, shape)
        case "accuracy":
            return rng.binomial(360, 0.97, shape) / 360
        case "accuracy, high agreement":  # half an example a run changes sides: mostly ties
            return 1 - rng.binomial(360, 0.5 / 360, shape) / 360
    raise AssertionError(kind)


@pytest.mark.parametrize("candidates", [1, 4])
@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize(
    "kind", ["gaussian", "heavy-tailed", "skewed", "accuracy", "accuracy, high agreement"]
)
def test_same_loss_under_two_names_is_told_apart_in_at_most_five_percent(kind, n, candidates):
    """1,000 comparisons, any "better" or "worse" among the candidates counts; the nominal rate.

    The margin is next to nothing, so that no verdict hides behind the equivalence test. Breaks
    without Holm (16 % with four candidates) or with a normal instead of a t quantile (n = 3: 18 %).
    """
    rng = np.random.default_rng(20)
    runs = metric_of_one_loss(kind, rng, (1000, 1 + candidates, n))
    resolution = STEP if kind.startswith("accuracy") else 0.0
    hits = 0
    for baseline, *others in runs:
        d = {str(i): other - baseline for i, other in enumerate(others)}
        result = compare_paired(d, margin=1e-9, resolution=resolution)
        hits += any(c.verdict in DECIDED for c in result.values())
    assert hits <= upper_count(1000, 0.05)
    if kind == "gaussian":  # where the test is exact it must not be timid either
        assert hits >= stats.binom.ppf(0.0005, 1000, 0.05 if candidates == 1 else 0.03)


@pytest.mark.parametrize("n", range(3, 13))
def test_differences_of_one_step_keep_the_level_exactly(n):
    """Oracle: enumeration of all counts of −1, 0, +1 step, for every symmetric probability.

    A plain t test tells 25 % apart with three seeds and 12.5 % with four (all equal: sd 0, p = 0).
    """
    counts = [(w, t, n - w - t) for w in range(n + 1) for t in range(n + 1 - w)]
    verdicts = [
        compare_one(STEP * np.repeat([1.0, 0.0, -1.0], c), resolution=STEP).verdict for c in counts
    ]
    decided = np.isin(verdicts, DECIDED)
    for q in np.linspace(0, 0.5, 101):
        chance = stats.multinomial.pmf(counts, n, [q, 1 - 2 * q, q])
        assert chance[decided].sum() <= 0.05


@pytest.mark.parametrize(("n", "candidates"), [(3, 1), (5, 4), (10, 4)])
def test_a_difference_at_the_margin_is_called_nothing_in_at_most_five_percent(n, candidates):
    """1,000 simulations with every true mean exactly at the margin; any false claim counts.

    Breaks if the test of equivalence is two-sided at 2·alpha, uncorrected, or normal.
    """
    rng = np.random.default_rng(21)
    hits = 0
    for _ in range(1000):
        d = {str(i): rng.normal(3.0, 1.0, n) for i in range(candidates)}
        verdicts = [c.verdict for c in compare_paired(d, margin=3.0).values()]
        hits += "no worthwhile difference" in verdicts
    assert hits <= upper_count(1000, 0.05)
    assert hits >= stats.binom.ppf(0.0005, 1000, 0.04)


# Power ------------------------------------------------------------------------------------------


def share_found(rng, mean, n, level, trials=20_000) -> float:
    d = rng.normal(mean, 1.0, (trials, n))
    return float(np.mean(stats.ttest_1samp(d, 0, axis=1).pvalue < level))


def share_told(rng, mean, n, level, margin, trials=20_000) -> float:
    """How often scipy's tests find a difference, or show equivalence: the larger of the two."""
    d = rng.normal(mean, 1.0, (trials, n))
    found = stats.ttest_1samp(d, 0, axis=1).pvalue < level
    above = stats.ttest_1samp(d, -margin, axis=1, alternative="greater").pvalue < level
    below = stats.ttest_1samp(d, margin, axis=1, alternative="less").pvalue < level
    return float(max(np.mean(found), np.mean(above & below)))


def noise(share: float, trials: int = 20_000) -> float:
    return 3.5 * math.sqrt(share * (1 - share) / trials)


@pytest.mark.parametrize("power", [0.5, 0.8])
@pytest.mark.parametrize("candidates", [1, 4])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_detectable_is_found_with_the_stated_power(n, candidates, power):
    """Monte Carlo: scipy's t test at alpha/candidates, true mean at ``detectable``, sd 1.

    Breaks with a normal approximation, alpha not divided, or one tail only.
    """
    d = {str(i): standardised(n, 0.1) for i in range(candidates)}
    detectable = compare_paired(d, margin=1e-9, power=power)["0"].detectable
    found = share_found(np.random.default_rng(22), detectable, n, 0.05 / candidates)
    assert found == pytest.approx(power, abs=noise(power))


@pytest.mark.parametrize(
    ("mean", "margin", "candidates"),
    [(0.45, 0.1, 1), (0.45, 0.1, 3), (0.05, 0.5, 1), (0.05, 0.5, 3), (0.4, 0.5, 1), (0.0, 0.6, 1)],
)
def test_needed_seeds_give_the_stated_power(mean, margin, candidates):
    """Monte Carlo with scipy's tests: 80 % verdicts at ``needed``, clearly fewer at three quarters.

    The cases are decided by a difference (1, 2, 5) and by equivalence (3, 4, 6). Equivalence takes
    whole seeds, so at small numbers the power may exceed 80 % by the last seed's share.
    """
    d = {str(i): standardised(6, mean) for i in range(candidates)}
    result = compare_paired(d, margin=margin)["0"]
    assert result.verdict == "cannot tell"
    assert result.needed is not None and result.needed > 6
    rng, level = np.random.default_rng(23), 0.05 / candidates
    told = share_told(rng, mean, result.needed, level, margin)
    assert 0.8 - noise(0.8) <= told <= 0.86
    assert share_told(rng, mean, result.needed * 3 // 4, level, margin) < 0.75


@pytest.mark.parametrize(("mean", "margin"), [(0.0, 0.6), (0.05, 0.5), (0.45, 0.1)])
def test_one_seed_fewer_than_needed_has_too_little_power(mean, margin):
    """Monte Carlo with 400,000 draws of mean and sd: under 80 % one seed earlier."""
    n = compare_one(standardised(6, mean), margin=margin).needed
    assert n is not None
    rng, trials = np.random.default_rng(24), 400_000
    for seeds, enough in ((n - 1, False), (n, True)):
        m = rng.normal(mean, 1 / math.sqrt(seeds), trials)
        error = np.sqrt(rng.chisquare(seeds - 1, trials) / (seeds - 1) / seeds)
        found = np.abs(m) > stats.t.ppf(0.975, seeds - 1) * error
        inside = np.abs(m) + stats.t.ppf(0.95, seeds - 1) * error < margin
        told = float(max(np.mean(found), np.mean(inside)))
        assert (told >= 0.8 - noise(0.8, trials)) is enough


def test_needed_above_the_cap_is_none_and_said_so():
    """A mean of 0.05 sd takes about 3,100 seeds, equivalence inside 1e-9 never comes."""
    result = compare_one(standardised(10, 0.05))
    assert result.needed is None
    assert f"more than {MOST_SEEDS} seeds would be needed" in result.sentence


@pytest.mark.parametrize("n", [3, 6, 30])
def test_needed_exceeds_the_seeds_at_hand(n):
    """Even a low power asks for at least one more seed than those that could not tell."""
    result = compare_one(standardised(n, 1.9 / math.sqrt(n)), power=0.06)
    assert result.verdict == "cannot tell"
    assert result.needed == n + 1


# Verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "margin", "verdict", "sentence"),
    [
        (
            [0.004, 0.005, 0.0046, 0.0036],
            0.001,
            "better",
            "better: +0.43 points (95 % interval +0.33 to +0.53), corrected p < 0.001",
        ),
        (
            [-0.004, -0.006, -0.0046, -0.0034],
            0.001,
            "worse",
            "worse: -0.45 points (95 % interval -0.63 to -0.27), corrected p = 0.004",
        ),
        (
            [0.004, 0.005, 0.0046, 0.0036],  # significant too: the margin decides
            0.01,
            "no worthwhile difference",
            "no worthwhile difference: +0.4 points (95 % interval +0.3 to +0.5), "
            "inside ±1.0 points",
        ),
        (
            [0.01, -0.01, 0.02, -0.0156],
            0.001,
            "cannot tell",
            "cannot tell with 4 seeds: +0.11 points (95 % interval -2.55 to +2.77);"
            " more than 1000 seeds would be needed",
        ),
        (
            [0.01, 0.012],
            0.001,
            "refused",
            "refused: 2 seeds, and a verdict needs at least 3",
        ),
    ],
)
def test_each_verdict_and_its_sentence(d, margin, verdict, sentence):
    """Sentences written by hand; numbers from scipy's interval, two digits of the margin."""
    result = compare_one(d, margin=margin, unit="points", scale=100)
    assert result.verdict == verdict
    assert result.sentence == sentence


def test_without_scale_and_unit_numbers_are_the_metrics_own():
    """The docstring's example runs as printed."""
    outcome = doctest.testmod(statistics)
    assert outcome.attempted == 2
    assert outcome.failed == 0


@pytest.mark.parametrize("d", [[], [0.3], [0.3, 0.1]])
def test_under_three_seeds_nothing_is_tested(d):
    """All tests are NaN, JSON null; what can be counted stays."""
    result = compare_one(d, margin=0.5)
    assert result.verdict == "refused"
    assert result.n == len(d)
    stored = result.as_dict()
    empty = {name for name, value in stored.items() if value is None}
    assert empty >= {"low", "high", "p_value", "p_adjusted", "p_equivalence", "improvement_low"}
    assert (stored["mean"] is None) == (not d)
    assert (stored["sd"] is None) == (len(d) < 2)


# Degenerate spread ------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [3, 4, 5])
def test_ties_on_a_coarse_metric_do_not_prove_equality(seeds):
    """Oracle: simulation. A loss that gains one test example of 68 with chance 0.35 gains 0.51
    points, outside the margin of 0.5: calling it equal must stay rare. Without the floor for ties,
    "no worthwhile difference" comes out in 27, 18 and 11 % of comparisons."""
    step, rng = 1 / 68, np.random.default_rng(0)
    gains = step * (rng.random((1000, seeds)) < 0.35)
    verdicts = [compare_one(d, margin=0.005, resolution=step).verdict for d in gains]
    assert verdicts.count("no worthwhile difference") <= 50


def test_ties_take_one_step_for_their_spread():
    """By hand: mean 0, standard error STEP/√10, 9 degrees of freedom."""
    result = compare_one(np.zeros(10), resolution=STEP)
    half = stats.t.ppf(0.975, 9) * STEP / np.sqrt(10)
    assert (result.low, result.high) == pytest.approx((-half, half), rel=1e-9)
    assert result.p_value == 1


@pytest.mark.parametrize("n", [3, 10])
def test_identical_runs_show_no_worthwhile_difference(n):
    """All differences of a continuous metric zero: [0, 0], p = 1, however small the margin."""
    result = compare_one(np.zeros(n), resolution=0.0)
    assert (result.low, result.high, result.p_value, result.p_equivalence) == (0, 0, 1, 0)
    assert result.improvement_probability == 0.5
    assert result.verdict == "no worthwhile difference"
    assert result.sentence == f"no worthwhile difference: the same result in all {n} seeds"


def test_equal_differences_take_one_step_for_their_spread():
    """By hand: four gains of one step, t = 1/(1/√4) = 2 with 3 degrees of freedom; sd stays 0."""
    result = compare_one([STEP] * 4, resolution=STEP)
    assert result.sd == 0.0
    assert result.p_value == pytest.approx(2 * stats.t.sf(2, 3), rel=1e-9)
    assert result.low == pytest.approx(STEP * (1 - stats.t.ppf(0.975, 3) / 2), rel=1e-9)
    assert result.verdict == "cannot tell"
    assert compare_one([9 * STEP] * 4, resolution=STEP).verdict == "better"


def test_a_spread_above_one_step_is_left_alone():
    """Oracle: scipy's t test of the differences themselves."""
    d = STEP * np.array([3, -1, 4, 1, 5])
    expected = stats.ttest_1samp(d, 0).pvalue
    assert compare_one(d, resolution=STEP).p_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [[0.1] * 5, [0.9 - 0.8, 0.8 - 0.7, 0.3 - 0.2]])
@pytest.mark.parametrize("margin", [1e-9, 10.0])
def test_equal_differences_without_resolution_claim_nothing(d, margin):
    """A naive t test finds p = 0 here (the second case equals up to float rounding)."""
    result = compare_one(d, margin=margin)
    assert result.verdict == "cannot tell"
    assert result.p_value == 1.0
    assert (result.low, result.high) == (-math.inf, math.inf)
    stored = result.as_dict()
    assert stored["low"] is None and stored["detectable"] is None and stored["needed"] is None
    assert "spread is unknown" in result.sentence


def test_every_comparison_can_be_stored_as_json():
    """Strict JSON (no NaN), and what comes back is what was stored."""
    d = {"a": [0.1, 0.2, 0.4], "same": [0.1] * 3, "zero": [0.0] * 3, "short": [0.1], "none": []}
    for result in compare_paired(d, margin=0.01).values():
        stored = result.as_dict()
        assert json.loads(json.dumps(stored, allow_nan=False)) == stored
        assert set(stored) == set(PairedComparison.__dataclass_fields__)


# Invariances ------------------------------------------------------------------------------------

STEPS = st.lists(st.integers(-12, 12), min_size=3, max_size=8)
FLIPPED = {"better": "worse", "worse": "better"}


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from([0.0, STEP]), st.sampled_from([0.1 * STEP, 8 * STEP]))
def test_turning_the_signs_swaps_better_and_worse(steps, resolution, margin):
    """Oracle: symmetry. Breaks if any one-sided part looks at one side only."""
    d = STEP * np.array(steps)
    one = compare_one(d, margin=margin, resolution=resolution)
    other = compare_one(-d, margin=margin, resolution=resolution)
    assert other.verdict == FLIPPED.get(one.verdict, one.verdict)
    assert (other.mean, other.low, other.high) == (-one.mean, -one.high, -one.low)
    assert (other.p_value, other.needed) == (one.p_value, one.needed)
    assert other.improvement_low == pytest.approx(1 - one.improvement_high, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from([2.0**-20, 0.25, 64.0]), st.sampled_from([0.0, 1.0]))
def test_units_do_not_matter(steps, factor, resolution):
    """Scaling by a power of two is exact: the same verdict, scaled numbers, bit by bit."""
    one = compare_one(steps, margin=3.0, resolution=resolution)
    d = factor * np.array(steps)
    other = compare_one(d, margin=factor * 3.0, resolution=factor * resolution)
    assert (other.verdict, other.p_value, other.p_equivalence, other.needed) == (
        one.verdict,
        one.p_value,
        one.p_equivalence,
        one.needed,
    )
    scaled = [factor * x for x in (one.mean, one.sd, one.low, one.high, one.detectable)]
    ours = [other.mean, other.sd, other.low, other.high, other.detectable]
    np.testing.assert_array_equal(ours, scaled)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=8), st.randoms())
def test_the_order_of_the_seeds_does_not_matter(d, random):
    """Equal to the last bit, since sums are rounded once. Breaks with an ordinary sum."""
    shuffled = random.sample(d, len(d))
    assert repr(compare_one(shuffled, margin=0.1)) == repr(compare_one(d, margin=0.1))


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "kwargs", "message"),
    [
        ({}, {}, "at least one candidate, got none"),
        ({"a": [1, math.nan, 2]}, {}, r"'a', got 1 of 3 .* first at position 1"),
        ({"a": [1, 2, math.inf]}, {}, r"'a', got 1 of 3 .* first at position 2"),
        ({"a": [1, None, 2]}, {}, r"'a', got 1 of 3"),
        ({"a": [[1, 2, 3]]}, {}, r"'a', one number a seed, got the shape \(1, 3\)"),
        ({"a": 1.0}, {}, r"got the shape \(\)"),
        ({"a": ["x", "y", "z"]}, {}, "'a', one number a seed, got something else"),
        ({"a": [[1], [2, 3]]}, {}, "'a', one number a seed, got something else"),
        ({"a": [1, 2, 3]}, {"margin": 0}, "margin above 0, got 0"),
        ({"a": [1, 2, 3]}, {"margin": math.nan}, "margin above 0, got nan"),
        ({"a": [1, 2, 3]}, {"alpha": 0.5}, "alpha above 0 and under 0.5, got 0.5"),
        ({"a": [1, 2, 3]}, {"power": 0.05}, r"power above alpha \(0.05\) and under 1, got 0.05"),
        ({"a": [1, 2, 3]}, {"power": 1}, "got 1; pass 0.8"),
        ({"a": [1, 2, 3]}, {"resolution": -0.1}, "resolution of 0 or more, got -0.1"),
        ({"a": [1, 2, 3]}, {"scale": 0}, "scale above 0, got 0"),
    ],
)
def test_bad_input_is_refused_with_a_message(d, kwargs, message):
    """Expected, got, what to do: each message names its argument."""
    with pytest.raises(InputError, match=message):
        compare_paired(d, **{"margin": 0.1} | kwargs)


@pytest.mark.parametrize("p", [[0.1, math.nan], [-0.1], [1.1], [[0.1]]])
def test_holm_refuses_what_is_no_p_value(p):
    """NaN would sort last and pass silently."""
    with pytest.raises(InputError, match="p-values from 0 to 1"):
        holm(p)

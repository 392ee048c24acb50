"""Paired comparison over seeds: arrays in, verdicts out.

Each number is candidate − baseline for one seed (same initial weights, same batches), oriented so
that larger is better. The question is about the mean over *all* seeds; the test set stays fixed.

**Verdict**, the first line that applies:

1. ``refused``: fewer than three seeds.
2. ``no worthwhile difference``: two one-sided t tests (TOST) place the mean inside ±margin. It
   comes first because a difference can be real and still too small to matter.
3. ``better`` / ``worse``: the two-sided paired t test says that the mean is not zero.
4. ``cannot tell``: neither; ``needed`` says how many seeds probably could.

**Correction.** Holm's, over all candidates with three seeds or more, once for the differences and
once for the equivalences. So among all candidates of a comparison the chance of any false "better"
or "worse" is at most alpha, and so is the chance of any false "no worthwhile difference". The
intervals ``low … high`` are ordinary 1 − alpha intervals of one candidate, not corrected.

**Spread.** The t test takes ``max(sd, resolution)`` for the standard deviation, where
``resolution`` is the smallest step of the metric (1/number of test examples for accuracy). Without
that floor, three seeds that all gain one example have sd 0 and p = 0. The reason for one step: a
difference of one step means that at least one test example changed sides, without an effect it
could as well have changed the other way, and that single toss has a standard deviation of one step.
With this floor the error rate stays under alpha for *any* symmetric differences of −1, 0 or +1
step. ``sd`` itself is reported as observed.

- All differences zero: the floor holds too, since seeds that happen to tie on a coarse metric do
  not prove equality: p = 1, and an interval of one step's spread around 0. Only of a continuous
  metric (no resolution) are equal results the same runs: interval [0, 0], no worthwhile difference.
- All the same, not zero, and no resolution given: the spread is unknown, because a continuous
  metric never repeats itself (the seed does not reach the runs, or the resolution was not stated).
  Nothing can be claimed: infinite interval, p = 1, ``cannot tell``.

**What holds, and what does not.** For one loss under two names the differences are symmetric about
zero, and the t test keeps its level for them (Gaussian, heavy-tailed, discrete, differences of
skewed metrics: all checked by simulation). It is approximate where the differences themselves are
skewed about a mean of zero (exponential ones: 10 to 12 % false claims at 3 to 10 seeds) or fall in
far-apart clusters because some runs collapse (four candidates, three seeds, every second run
collapsed: 11 %); so few seeds allow no exact test of a mean there.

**Power.** ``detectable`` and ``needed`` use the noncentral t at alpha divided by the number of
candidates, Holm's strictest step: what they promise holds whatever the other candidates do. Both
take the observed spread (``needed`` also the observed mean) for the truth, so from a few seeds they
are rough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from losslab.errors import InputError

FEWEST_SEEDS = 3
MOST_SEEDS = 1000
"""``needed`` stops looking here and is then None."""

Verdict = Literal["better", "worse", "no worthwhile difference", "cannot tell", "refused"]


@dataclass(frozen=True)
class PairedComparison:
    """One candidate against the baseline, in the metric's own unit.

    ``n, mean, sd``: number of seeds, mean and standard deviation (n − 1) of the differences.
    ``low, high``: Student-t interval of the mean at 1 − alpha, not corrected.
    ``p_value, p_adjusted``: two-sided paired t test, as it is and after Holm.
    ``p_equivalence``: the mean lies outside ±margin (the larger p of TOST), after Holm.
    ``improvement_probability``: share of seeds that gain, plus half of the ties. Its interval
    ``improvement_low … improvement_high`` is Clopper and Pearson's at 1 − alpha, a tie counted as
    half a win there too: ties only make it more cautious (each end misses in at most alpha/2).
    ``detectable``: the smallest true gain that n seeds find with the stated power.
    ``needed``: seeds that give the stated power of a verdict if the truth is what was observed: a
    difference, or one inside the margin, whichever takes fewer. Only where the verdict is
    ``cannot tell``; None otherwise, above ``MOST_SEEDS``, and where the spread is unknown.
    Numbers that do not exist are NaN (all tests, if refused) or infinite (unknown spread).
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    p_equivalence: float
    improvement_probability: float
    improvement_low: float
    improvement_high: float
    detectable: float
    needed: int | None
    verdict: Verdict
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: every number that is not finite becomes None."""
        return {name: _json_ready(value) for name, value in asdict(self).items()}


def compare_paired(
    differences: Mapping[str, ArrayLike],
    *,
    margin: float,
    alpha: float = 0.05,
    power: float = 0.8,
    resolution: float = 0.0,
    unit: str = "",
    scale: float = 1.0,
) -> dict[str, PairedComparison]:
    """Weigh each candidate's paired differences and say what they allow to be said.

    Args:
        differences: for each candidate, candidate − baseline, one number a seed, larger is better.
            Candidates may have different numbers of seeds.
        margin: the largest difference that would not be worth having, above 0.
        alpha: chance of a false claim, per kind of claim and over all candidates together.
        power: chance of a verdict that ``detectable`` and ``needed`` ask for.
        resolution: the smallest step of the metric: 1/number of test examples for accuracy, 0 for
            a continuous metric.
        unit, scale: how ``sentence`` shows numbers: multiplied by ``scale`` and followed by
            ``unit``, such as ``scale=100, unit="points"`` for accuracy. Nothing else is scaled.

    Returns:
        A comparison for each candidate, in the order given.

    Raises:
        InputError: for no candidates, a difference that is not finite, an array that is not
            one-dimensional, or a setting outside its domain.

    Example:
        >>> result = compare_paired({"focal": [0.02, 0.03, 0.025, 0.017]}, margin=0.005)
        >>> result["focal"].sentence
        'better: +0.0230 (95 % interval +0.0139 to +0.0321), corrected p = 0.004'
    """
    _check_settings(margin, alpha, power, resolution, scale)
    if not differences:
        raise InputError(
            "expected the differences of at least one candidate, got none; "
            "compare the baseline with at least one other loss."
        )
    samples = {label: _sample(label, d, resolution) for label, d in differences.items()}
    tested = {label: s for label, s in samples.items() if s.n >= FEWEST_SEEDS}
    settings = _Settings(margin, alpha, power, max(1, len(tested)), unit, scale)
    different = _corrected({label: _difference_p(s) for label, s in tested.items()})
    equivalent = _corrected({label: _equivalence_p(s, margin) for label, s in tested.items()})
    return {
        label: _conclude(s, different[label], equivalent[label], settings)
        if label in tested
        else _refuse(s)
        for label, s in samples.items()
    }


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down correction: adjusted p-values, in the order given.

    The i-th smallest of k is multiplied by k − i + 1, then raised to its predecessor's and cut
    at 1. Rejecting where the result is below alpha keeps the chance of any false rejection at
    alpha, however the tests depend on each other (Holm, 1979, Scand. J. Statist. 6, 65–70).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise InputError(
            f"expected a list of p-values from 0 to 1, got {p_values!r}; "
            "leave out tests that could not be made."
        )
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _corrected(p_values: dict[str, float]) -> dict[str, float]:
    return dict(zip(p_values, holm(list(p_values.values())).tolist(), strict=True))


def _json_ready(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class _Settings:
    margin: float
    alpha: float
    power: float
    candidates: int
    unit: str
    scale: float


@dataclass(frozen=True)
class _Sample:
    """The differences of one candidate, and the spread that the tests take."""

    n: int
    mean: float
    sd: float
    spread: float  # sd with its floor; infinite where unknown
    wins: float  # ties count half
    identical: bool  # every difference of a continuous metric is zero

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return 0.0 if self.identical else self.spread / math.sqrt(self.n)


def _sample(label: str, values: ArrayLike, resolution: float) -> _Sample:
    d = _read(label, values)
    n = d.size
    # fsum rounds once, so that the order of the seeds cannot change a verdict
    mean = math.fsum(d) / n if n else math.nan
    sd = math.sqrt(math.fsum((d - mean) ** 2) / (n - 1)) if n > 1 else math.nan
    spread = max(sd, resolution)
    identical = n > 0 and not d.any() and resolution == 0
    if not identical and spread <= 1e-9 * abs(mean):  # the same number every time, up to rounding
        spread = math.inf
    wins = float(np.sum(d > 0) + 0.5 * np.sum(d == 0))
    return _Sample(n, mean, sd, spread, wins, identical)


def _read(label: str, values: ArrayLike) -> NDArray[np.float64]:
    expected = f"expected a one-dimensional array for {label!r}, one number a seed"
    try:
        d = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{expected}, got something else ({error}); pass numbers.") from error
    if d.ndim != 1:
        raise InputError(f"{expected}, got the shape {d.shape}; pass one list for each candidate.")
    bad = np.flatnonzero(~np.isfinite(d))
    if bad.size:
        raise InputError(
            f"expected finite differences for {label!r}, got {bad.size} of {d.size} that are NaN "
            f"or infinite, the first at position {bad[0]}; decide what diverged runs count for, "
            "or leave out their seeds."
        )
    return d


def _check_settings(
    margin: float, alpha: float, power: float, resolution: float, scale: float
) -> None:
    for name, value, holds, domain, advice in (
        ("margin", margin, 0 < margin < math.inf, "above 0", "the most that is not worth having"),
        ("alpha", alpha, 0 < alpha < 0.5, "above 0 and under 0.5", "0.05, say"),
        ("power", power, alpha < power < 1, f"above alpha ({alpha}) and under 1", "0.8, say"),
        ("resolution", resolution, 0 <= resolution < math.inf, "of 0 or more", "the metric's step"),
        ("scale", scale, 0 < scale < math.inf, "above 0", "100 for percentage points, say"),
    ):
        if not holds:
            raise InputError(f"expected a finite {name} {domain}, got {value!r}; pass {advice}.")


def _difference_p(s: _Sample) -> float:
    """Two-sided t test of mean = 0."""
    if s.identical:
        return 1.0
    return float(2 * special.stdtr(s.n - 1, -abs(s.mean) / s.error))


def _equivalence_p(s: _Sample, margin: float) -> float:
    """The larger p of the two one-sided t tests of mean <= −margin and mean >= margin."""
    if s.identical:
        return 0.0
    if math.isinf(s.error):
        return 1.0
    return float(special.stdtr(s.n - 1, (abs(s.mean) - margin) / s.error))


def _refuse(s: _Sample) -> PairedComparison:
    seeds = f"{s.n} seed" if s.n == 1 else f"{s.n} seeds"
    sentence = f"refused: {seeds}, and a verdict needs at least {FEWEST_SEEDS}"
    return PairedComparison(s.n, s.mean, s.sd, *(math.nan,) * 9, None, "refused", sentence)


def _conclude(
    s: _Sample, p_adjusted: float, p_equivalence: float, settings: _Settings
) -> PairedComparison:
    """Everything about one candidate, once the p-values are corrected."""
    half_width = _critical(s.n, settings.alpha / 2) * s.error
    share, share_low, share_high = _improvement(s, settings.alpha)
    verdict = _verdict(s, p_adjusted, p_equivalence, settings.alpha)
    comparison = PairedComparison(
        n=s.n,
        mean=s.mean,
        sd=s.sd,
        low=s.mean - half_width,
        high=s.mean + half_width,
        p_value=_difference_p(s),
        p_adjusted=p_adjusted,
        p_equivalence=p_equivalence,
        improvement_probability=share,
        improvement_low=share_low,
        improvement_high=share_high,
        detectable=_detectable(s, settings),
        needed=_needed(s, settings) if verdict == "cannot tell" else None,
        verdict=verdict,
        sentence="",
    )
    return replace(comparison, sentence=_sentence(comparison, settings))


def _verdict(s: _Sample, p_adjusted: float, p_equivalence: float, alpha: float) -> Verdict:
    if p_equivalence < alpha:
        return "no worthwhile difference"
    if p_adjusted < alpha:
        return "better" if s.mean > 0 else "worse"
    return "cannot tell"


def _improvement(s: _Sample, alpha: float) -> tuple[float, float, float]:
    """Share of wins with Clopper and Pearson's interval."""
    wins, losses = s.wins, s.n - s.wins
    low = special.betaincinv(wins, losses + 1, alpha / 2) if wins > 0 else 0.0
    high = special.betaincinv(wins + 1, losses, 1 - alpha / 2) if losses > 0 else 1.0
    return wins / s.n, float(low), float(high)


def _critical(n: int, tail: float) -> float:
    """The t that n seeds without any difference exceed with probability ``tail``."""
    return float(-special.stdtrit(n - 1, tail))


def _chance(n: int, tail: float, noncentrality: float) -> float:
    """Chance that t exceeds its critical value when the true mean is so many standard errors."""
    return float(stats.nct.sf(_critical(n, tail), n - 1, noncentrality))


@cache
def _noncentrality(n: int, tail: float, power: float) -> float:
    """The true mean, in standard errors, that n seeds find with the stated power."""
    above = 2 * _critical(n, tail) + 2
    while _chance(n, tail, above) < power:
        above *= 2
    return float(optimize.brentq(lambda nc: _chance(n, tail, nc) - power, 0.0, above, xtol=1e-9))


def _detectable(s: _Sample, settings: _Settings) -> float:
    if s.spread == 0:
        return math.nan
    tail = settings.alpha / settings.candidates / 2
    return _noncentrality(s.n, tail, settings.power) * s.spread / math.sqrt(s.n)


def _needed(s: _Sample, settings: _Settings) -> int | None:
    if math.isinf(s.spread):
        return None
    level, power = settings.alpha / settings.candidates, settings.power
    effect, bound = abs(s.mean) / s.spread, settings.margin / s.spread

    def shows_difference(n: int) -> bool:
        return effect * math.sqrt(n) >= _noncentrality(n, level / 2, power)

    def shows_equivalence(n: int) -> bool:
        # P(both tests reject) = P(one) + P(other) - P(either), and the last is at most 1
        near, far = (bound - effect) * math.sqrt(n), (bound + effect) * math.sqrt(n)
        return _chance(n, level, near) + _chance(n, level, far) - 1 >= power

    ways = [shows_difference, shows_equivalence] if effect < bound else [shows_difference]
    found = [n for n in map(_first, ways) if n is not None]
    return max(min(found), s.n + 1) if found else None


def _first(enough: Callable[[int], bool]) -> int | None:
    """The smallest number of seeds that is enough, if up to ``MOST_SEEDS`` are."""
    if not enough(MOST_SEEDS):
        return None
    few, many = FEWEST_SEEDS - 1, MOST_SEEDS
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def _sentence(c: PairedComparison, settings: _Settings) -> str:
    mean = _number(c.mean, settings, "+", settings.unit)
    if c.low == c.high:
        return f"{c.verdict}: the same result in all {c.n} seeds"
    if math.isinf(c.low):
        return f"{c.verdict}: all {c.n} seeds differ by exactly {mean}, so the spread is unknown"
    low, high = (_number(end, settings, "+") for end in (c.low, c.high))
    shown = f"{mean} ({100 * (1 - settings.alpha):.4g} % interval {low} to {high})"
    if c.verdict == "no worthwhile difference":
        return (
            f"{c.verdict}: {shown}, inside ±{_number(settings.margin, settings, '', settings.unit)}"
        )
    if c.verdict == "cannot tell":
        about = f"more than {MOST_SEEDS}" if c.needed is None else f"about {c.needed}"
        return f"{c.verdict} with {c.n} seeds: {shown}; {about} seeds would be needed"
    p = f"p = {c.p_adjusted:.3f}" if c.p_adjusted >= 0.001 else "p < 0.001"
    return f"{c.verdict}: {shown}, corrected {p}"


def _number(value: float, settings: _Settings, sign: str, unit: str = "") -> str:
    """``value`` with the decimals that show two digits of the margin."""
    decimals = max(0, 1 - math.floor(math.log10(settings.margin * settings.scale)))
    return f"{value * settings.scale:{sign}z.{decimals}f} {unit}".rstrip()

"""Signs that a model is not robust, but its gradients are masked.

An attack that follows a gradient finds nothing where there is none, and its accuracy then says
nothing about the model. The signs, each kind a sentence for the reader:

- an attack on the log-odds finds clearly more than the same attack on cross-entropy;
- the attack's gradient is exactly zero at some inputs;
- accuracy stays where ε allows an input to become any other;
- a weaker attack finds clearly more than a stronger one: random search, a single step;
- accuracy rises with ε.

*Clearly more*: at least `CLEAR` of the examples, and an exact one-sided McNemar test on the same
examples, at level `LEVEL` divided by the number of comparisons of its kind (Bonferroni). One
example fooled by one attack alone is a coin; a sound, stronger attack would win at least half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

CLEAR = 0.02
LEVEL = 0.01
LEFT = 0.05
"""The share of examples that an honest optimiser may miss: at a huge ε, where a perfect attack
leaves none right, and before a search without gradients. (PGD of one start misses some 3 % that a
search finds on an adversarially trained network.)"""

_SUSPECTED = "gradient masking suspected:"


@dataclass(frozen=True)
class Run:
    """One attack at one ε on all examples.

    Args:
        attack: Its label.
        norm: Its norm.
        objective: What it increases; None for the library's attacks.
        epsilon: Radius.
        steps: How many; 0 for the library's attacks.
        broken: (examples,) bool: whether the model is wrong, be it without the attack.
        zero_first, zero_always: Share of the attacked examples whose gradient was exactly zero at
            the first step, and at every step.
    """

    attack: str
    norm: str
    objective: str | None
    epsilon: float
    steps: int
    broken: Tensor
    zero_first: float = 0.0
    zero_always: float = 0.0

    @property
    def accuracy(self) -> float:
        return share(~self.broken)

    @property
    def name(self) -> str:
        return self.attack if self.objective is None else f"{self.attack} on {self.objective}"


@dataclass(frozen=True)
class Clear:
    """That ``more`` fools clearly more examples than ``fewer``."""

    more: Run
    fewer: Run
    alone: int
    other_alone: int
    p_value: float

    def __str__(self) -> str:
        return (
            f"({self.alone} examples fooled by it alone, {self.other_alone} by the other alone, "
            f"p = {self.p_value:.1g})"
        )


def share(chosen: Tensor) -> float:
    """Of all examples, those that are True."""
    return float(chosen.double().mean())


def mcnemar(one: int, other: int) -> float:
    """P(at least ``one`` heads in one + other throws of a fair coin): exact, one-sided.

    Example:
        >>> mcnemar(5, 0), mcnemar(0, 0)
        (0.03125, 1.0)
    """
    throws = one + other
    return sum(math.comb(throws, heads) for heads in range(one, throws + 1)) / 2**throws


def flags(
    runs: Sequence[Run],
    huge: Sequence[Run],
    zero_gradient: Mapping[str, float],
    spot_checks: Iterable[Mapping[str, float | str]],
) -> tuple[str, ...]:
    """The signs that are there, one sentence a kind, each with the worst case of its kind.

    Args:
        runs: All attacks at all ε.
        huge: Iterated attacks from the inputs themselves, at an ε that allows anything.
        zero_gradient: By objective, the share of examples at which its gradient is exactly zero.
        spot_checks: ``norm, epsilon, share`` of all examples that only a random search fooled.
    """
    return (
        *_on_the_log_odds(runs),
        *_no_gradient(zero_gradient),
        *_left_at_huge(huge),
        *_weaker_is_stronger(runs),
        *_spotted(spot_checks),
        *_rising(runs),
    )


def _on_the_log_odds(runs: Sequence[Run]) -> list[str]:
    usual = {(r.attack, r.epsilon): r for r in runs if r.objective == "cross_entropy"}
    pairs = [
        (run, usual[run.attack, run.epsilon])
        for run in runs
        if run.objective == "log_odds" and (run.attack, run.epsilon) in usual
    ]
    return _sentence(
        pairs,
        lambda clear: (
            f"{clear.more.attack} at ε = {clear.more.epsilon:g} leaves "
            f"{_percent(clear.fewer.accuracy)} right on cross_entropy, but "
            f"{_percent(clear.more.accuracy)} on log_odds {clear}"
        ),
    )


def _weaker_is_stronger(runs: Sequence[Run]) -> list[str]:
    searches = [run for run in runs if run.attack.startswith("square")]
    single = [run for run in runs if run.steps == 1]
    iterated = [run for run in runs if run.steps > 1]
    pairs = [
        (weak, strong)
        for weak in (*searches, *single)
        for strong in iterated
        if (weak.norm, weak.epsilon) == (strong.norm, strong.epsilon)
        and weak.objective in (None, strong.objective)
    ]
    return _sentence(
        pairs,
        lambda clear: (
            f"at ε = {clear.more.epsilon:g} {clear.more.name}, "
            f"{'a search without gradients' if clear.more.objective is None else 'a single step'}, "
            f"leaves {_percent(clear.more.accuracy)} right, but {clear.fewer.name} "
            f"{_percent(clear.fewer.accuracy)} {clear}"
        ),
    )


def _rising(runs: Sequence[Run]) -> list[str]:
    curves: dict[str, list[Run]] = {}
    for run in runs:
        if run.steps > 1:
            curves.setdefault(run.name, []).append(run)
    pairs = [
        pair
        for curve in curves.values()
        for pair in combinations(sorted(curve, key=lambda run: run.epsilon), 2)
    ]
    return _sentence(
        pairs,
        lambda clear: (
            f"{clear.more.name} leaves {_percent(clear.more.accuracy)} right at "
            f"ε = {clear.more.epsilon:g}, but {_percent(clear.fewer.accuracy)} at "
            f"ε = {clear.fewer.epsilon:g} {clear}"
        ),
    )


def _sentence(pairs: Sequence[tuple[Run, Run]], say: Callable[[Clear], str]) -> list[str]:
    """What is worst of a kind, in how many comparisons it is so, and in which."""
    found = [clear for pair in pairs if (clear := clearly(*pair, LEVEL / len(pairs)))]
    if not found:
        return []
    worst = max(found, key=lambda clear: clear.alone - clear.other_alone)
    again = ""
    if len(pairs) > 1:
        where = f": {_which(found)}" if len(found) > 1 else ""
        again = f"; so in {len(found)} of {len(pairs)} comparisons{where}"
    return [f"{_SUSPECTED} {say(worst)}{again}"]


def _which(found: Sequence[Clear]) -> str:
    """The attacks that should have been the stronger, each with its radii."""
    radii: dict[str, list[float]] = {}
    for clear in found:
        radii.setdefault(clear.fewer.name, []).append(clear.fewer.epsilon)
    return ", ".join(f"{name} (ε {_span(of)})" for name, of in sorted(radii.items()))


def _span(radii: Sequence[float]) -> str:
    low, high = min(radii), max(radii)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def clearly(more: Run, fewer: Run, level: float) -> Clear | None:
    """Whether ``more`` fools clearly more of the same examples."""
    alone = int((more.broken & ~fewer.broken).sum())
    other = int((fewer.broken & ~more.broken).sum())
    p_value = mcnemar(alone, other)
    if alone - other < CLEAR * len(more.broken) or p_value >= level:
        return None
    return Clear(more, fewer, alone, other, p_value)


def _no_gradient(shares: Mapping[str, float]) -> list[str]:
    found = [(name, _percent(share)) for name, share in shares.items() if share >= CLEAR]
    told = " and that ".join(f"of {name} at {percent}" for name, percent in found)
    return _told(
        [name for name, _ in found],
        f"the gradient {told.replace(' at ', ' is exactly zero at ', 1)} of the examples that the "
        "model gets right, so that nothing attacks them",
    )


def _left_at_huge(huge: Sequence[Run]) -> list[str]:
    found = [
        f"{run.name} leaves {_percent(run.accuracy)} right at ε = {run.epsilon:g}"
        for run in huge
        if run.accuracy > LEFT
    ]
    return _told(
        found,
        f"{', '.join(found)}, where an input may become any other and a sound attack leaves none",
    )


def _spotted(spot_checks: Iterable[Mapping[str, float | str]]) -> list[str]:
    found = [
        f"{_percent(float(check['share']))} of the examples at ε = {check['epsilon']:g} in "
        f"{check['norm']}"
        for check in spot_checks
        if float(check["share"]) > LEFT
    ]
    return _told(
        found,
        f"a search without gradients fools {' and '.join(found)}, which no attack by the gradient "
        "did",
    )


def _told(found: Sequence[str], sentence: str) -> list[str]:
    return [f"{_SUSPECTED} {sentence}"] if found else []


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""Every loss that depends on the probability of the true class alone, as its paper prints it.

Each formula sees a `Chance`: p, 1 − p, log p, log(1 − p) and the log-odds. Called with log-odds
(a number or an array), `focal(a, gamma=2)`, those five are exact on both sides, so the printed
formula loses nothing near p = 0 or 1. `focal.at_probability(p, gamma=2)` starts from a plain p, for
values worked out by hand. Complex arguments work too, for complex-step derivatives.

ZH is Zhao et al., "Well-classified Examples are Underestimated"; BA is Battash et al., "Mixing
between the Cross Entropy and the Expectation Loss Terms". All logarithms are natural.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arithmetic import Number, exp, expm1, log, log1p, real, sigmoid, softplus


@dataclass(frozen=True)
class Chance:
    """The chance given to the true class, in the five forms the formulas use."""

    log_odds: Number
    p: Number
    miss: Number  # 1 − p
    log_p: Number
    log_miss: Number

    @classmethod
    def from_log_odds(cls, a: Number) -> "Chance":
        """p = σ(a), 1 − p = σ(−a), log p = −softplus(−a), log(1 − p) = −softplus(a)."""
        return cls(a, sigmoid(a), sigmoid(-a), -softplus(-a), -softplus(a))

    @classmethod
    def from_probability(cls, p: Number) -> "Chance":
        """Straight from p, with the rounding that brings."""
        return cls(log(p) - log(1 - p), p, 1 - p, log(p), log(1 - p))


class PrintedLoss:
    """A loss of the true-class probability: `loss(log_odds, **parameters)`, elementwise."""

    def __init__(self, formula: Callable[..., Number]) -> None:
        self.formula = formula
        self.__name__ = formula.__name__
        self.__doc__ = formula.__doc__

    def __call__(self, log_odds: ArrayLike, **parameters: Any) -> Any:
        """The loss at these log-odds; the same shape comes back."""
        return self._each(Chance.from_log_odds, log_odds, parameters)

    def at_probability(self, p: ArrayLike, **parameters: Any) -> Any:
        """The loss at these probabilities of the true class; the same shape comes back."""
        return self._each(Chance.from_probability, p, parameters)

    def _each(
        self, chance: Callable[[Number], Chance], x: ArrayLike, parameters: dict[str, Any]
    ) -> Any:
        points = np.asarray(x)
        kind: type = complex if np.iscomplexobj(points) else float
        values: NDArray[Any] = np.empty(points.shape, dtype=kind)
        for index in np.ndindex(points.shape):
            values[index] = self.formula(chance(kind(points[index])), **parameters)
        return values[()]


@PrintedLoss
def cross_entropy(c: Chance) -> Number:
    """−log p (ZH 1, BA 1)."""
    return -c.log_p


@PrintedLoss
def expectation(c: Chance) -> Number:
    """1 − p (BA 9)."""
    return c.miss


@PrintedLoss
def mixed(c: Chance, alpha: float = 1.0, beta: float = 1.0, focus: float | None = None) -> Number:
    """α (−log p) + β (1 − p); `focus` sets α and β so that |∂L/∂z_y| peaks there (BA 12–14)."""
    if focus is not None:
        alpha, beta = (0.0, 1.0) if focus == 0.5 else (1.0, 1 / (1 - 2 * focus))
    if alpha == 0:  # not 0 × inf at p = 0
        return beta * c.miss
    return alpha * -c.log_p + beta * c.miss


# Bonuses: what encouraging losses add to cross-entropy. All are 0 at best, and fall with p.


@PrintedLoss
def log_bonus(c: Chance, eps: float = 1e-5) -> Number:
    """log(max(1 − p, eps)), the mirror flip of cross-entropy (ZH 6; official code's clamp)."""
    return log(eps) if real(c.miss) < eps else c.log_miss


@PrintedLoss
def conservative_bonus(c: Chance, log_end: float = 0.75, eps: float = 1e-5) -> Number:
    """log(1 − p) for p ≤ LE, then its tangent there: −(p − LE)/(1 − LE) + log(1 − LE) (ZH 7)."""
    if log_end == 1 or not real(c.p) > log_end:
        return log_bonus.formula(c, eps)
    return -(c.p - log_end) / (1 - log_end) + log(1 - log_end)


@PrintedLoss
def aggressive_bonus(c: Chance, bonus_start: float = 0.5, eps: float = 1e-5) -> Number:
    """log(1 − p) − log(1 − s) where p ≥ s, 0 before (ZH table 3, official code)."""
    if real(c.p) < bonus_start:
        return 0.0
    return log_bonus.formula(c, eps) - log(max(1 - bonus_start, eps))


@PrintedLoss
def start_then_end_bonus(
    c: Chance, bonus_start: float = 0.5, log_end: float = 0.75, eps: float = 1e-5
) -> Number:
    """B(p) − B(s) where p ≥ s, 0 before, with B the conservative bonus: continuous everywhere."""
    if real(c.p) < bonus_start:
        return 0.0
    start = Chance.from_probability(bonus_start)
    return conservative_bonus.formula(c, log_end, eps) - conservative_bonus.formula(
        start, log_end, eps
    )


@PrintedLoss
def start_then_end_bonus_as_published(
    c: Chance, bonus_start: float = 0.5, log_end: float = 0.75, eps: float = 1e-5
) -> Number:
    """What the official code computes for both options: past LE the tangent is not shifted.

    So the loss falls by −log(1 − s) at once at p = LE. Kept as evidence, not as a model.
    """
    if log_end != 1 and real(c.p) > log_end:
        return conservative_bonus.formula(c, log_end, eps)
    return aggressive_bonus.formula(c, bonus_start, eps)


@PrintedLoss
def power_bonus(c: Chance, gamma: float = 2.0, bonus_start: float = 0.0) -> Number:
    """−p^γ; with a start s > 0, s^γ − p^γ where p ≥ s and 0 before (official code)."""
    if real(c.p) < bonus_start:
        return 0.0
    return (bonus_start**gamma if bonus_start else 0.0) - c.p**gamma


@PrintedLoss
def cosine_bonus(c: Chance) -> Number:
    """cos(πp) − 1 (official code), as −2 sin²(πp/2), which is the same without cancellation."""
    half = np.sin(math.pi * c.p / 2)
    return -2 * half * half


@PrintedLoss
def encouraging_normal(c: Chance, eps: float = 1e-5, rho: float = 1.0) -> Number:
    """−log p + ρ log(max(1 − p, eps)); with eps = 0 and ρ = 1 it is −log-odds (ZH 6)."""
    return -c.log_p + rho * log_bonus.formula(c, eps)


@PrintedLoss
def encouraging_conservative(
    c: Chance, log_end: float = 0.75, eps: float = 1e-5, rho: float = 1.0
) -> Number:
    """−log p + ρ · conservative bonus (ZH 7)."""
    return -c.log_p + rho * conservative_bonus.formula(c, log_end, eps)


@PrintedLoss
def encouraging_aggressive(
    c: Chance, bonus_start: float = 0.5, eps: float = 1e-5, rho: float = 1.0
) -> Number:
    """−log p + ρ · aggressive bonus."""
    return -c.log_p + rho * aggressive_bonus.formula(c, bonus_start, eps)


@PrintedLoss
def encouraging_start_then_end(
    c: Chance,
    bonus_start: float = 0.5,
    log_end: float = 0.75,
    eps: float = 1e-5,
    rho: float = 1.0,
) -> Number:
    """−log p + ρ · (aggressive start and conservative end together, continuous)."""
    return -c.log_p + rho * start_then_end_bonus.formula(c, bonus_start, log_end, eps)


@PrintedLoss
def focal(c: Chance, gamma: float = 2.0) -> Number:
    """−(1 − p)^γ log p (ZH 11, BA 2)."""
    return -(c.miss**gamma) * c.log_p


@PrintedLoss
def halted_focal(c: Chance, gamma: float = 2.0, threshold: float = 0.5) -> Number:
    """Focal for p ≤ φ, then −log p + (1 − (1 − φ)^γ) log φ (ZH 12 with the sign put right)."""
    if not real(c.p) > threshold:
        return focal.formula(c, gamma)
    return -c.log_p + (1 - (1 - threshold) ** gamma) * log(threshold)


@PrintedLoss
def generalized_cross_entropy(c: Chance, q: float = 0.7) -> Number:
    """(1 − p^q)/q (Zhang & Sabuncu 2018); cross-entropy at q = 0."""
    return -c.log_p if q == 0 else -expm1(q * c.log_p) / q


@PrintedLoss
def truncated_generalized_cross_entropy(c: Chance, q: float = 0.7, k: float = 0.5) -> Number:
    """Generalised cross-entropy, constant at its value in k wherever p ≤ k (same paper, eq. 9)."""
    inside = Chance.from_probability(k) if real(c.p) <= k else c
    return generalized_cross_entropy.formula(inside, q)


@PrintedLoss
def tamed_cross_entropy(c: Chance, alpha: float = 0.5) -> Number:
    """((1 − log p)^(1−α) − 1)/(1 − α), and log(1 − log p) at α = 1 (Martinez & Stiefelhagen)."""
    growth = log1p(-c.log_p)
    return growth if alpha == 1 else expm1((1 - alpha) * growth) / (1 - alpha)


@PrintedLoss
def squared_error(c: Chance, mirror: bool = False) -> Number:
    """(1 − p)² of one output; with the mirror bonus (1 − p)² − p² (NOTE, ZH 5.5)."""
    return c.miss**2 - c.p**2 if mirror else c.miss**2


@PrintedLoss
def absolute_error(c: Chance) -> Number:
    """|1 − p| of one output."""
    return c.miss


@PrintedLoss
def exponential(c: Chance) -> Number:
    """exp(−a) = (1 − p)/p."""
    return exp(-c.log_odds)


@PrintedLoss
def hinge(c: Chance) -> Number:
    """max(0, 1 − a)."""
    return 0.0 if real(c.log_odds) >= 1 else 1 - c.log_odds


@PrintedLoss
def squared_hinge(c: Chance) -> Number:
    """max(0, 1 − a)²."""
    return hinge.formula(c) ** 2

"""The gradient volume V = ∫₀¹ |∂L/∂z_y| dp, by quadrature and in closed form.

Since p = σ(a) and ∂a/∂z_y = 1, |∂L/∂z_y| = |dψ/da| = |dL/dp| p (1 − p).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from scipy import integrate, special

from .derivatives import complex_step
from .losses import PrintedLoss


def slope_at_probability(loss: PrintedLoss, p: float, **parameters: Any) -> float:
    """|∂L/∂z_y| where the true class has probability p: |dL/dp| p (1 − p)."""
    slope = complex_step(lambda at: loss.at_probability(at, **parameters), p)
    return abs(slope) * p * (1 - p)


def gradient_volume(
    loss: PrintedLoss, breakpoints: Sequence[float] = (), **parameters: Any
) -> float:
    """V by adaptive quadrature, piece by piece between the loss's breakpoints (in p)."""
    edges = [0.0, *sorted(breakpoints), 1.0]
    total = 0.0
    for low, high in itertools.pairwise(edges):
        value, error = integrate.quad(
            lambda p: slope_at_probability(loss, p, **parameters),
            low,
            high,
            epsabs=1e-11,
            epsrel=1e-11,
            limit=200,
        )
        if error > 1e-8:
            raise ArithmeticError(f"the integral over [{low}, {high}] is only good to {error:.1e}")
        total += value
    return total


def mixed_volume(alpha: float = 1.0, beta: float = 1.0) -> float:
    """α/2 + β/6: cross-entropy 1/2, expectation 1/6 (BA 20, 21)."""
    return alpha / 2 + beta / 6


def normal_volume(eps: float = 1e-5, rho: float = 1.0) -> float:
    """1/2 + ρ (1 − eps)²/2: the bonus has slope p until the clamp; 1 at eps = 0."""
    return 0.5 + rho * (1 - eps) ** 2 / 2


def conservative_volume(log_end: float = 0.75, rho: float = 1.0) -> float:
    """1/2 + ρ [LE²/2 + (1 − LE)(1 + 2 LE)/6]: slope p, then p (1 − p)/(1 − LE)."""
    return 0.5 + rho * (log_end**2 / 2 + (1 - log_end) * (1 + 2 * log_end) / 6)


def aggressive_volume(bonus_start: float = 0.5, eps: float = 1e-5, rho: float = 1.0) -> float:
    """1/2 + ρ [(1 − eps)² − s²]/2; 1 − s²/2 at eps = 0."""
    return 0.5 + rho * ((1 - eps) ** 2 - bonus_start**2) / 2


def start_then_end_volume(bonus_start: float, log_end: float, rho: float = 1.0) -> float:
    """1/2 + ρ [(LE² − s²)/2 + (1 − LE)(1 + 2 LE)/6] for s ≤ LE."""
    bonus = (log_end**2 - bonus_start**2) / 2 + (1 - log_end) * (1 + 2 * log_end) / 6
    return 0.5 + rho * bonus


def power_bonus_volume(gamma: float = 2.0, bonus_start: float = 0.0) -> float:
    """γ ∫_s¹ p^γ (1 − p) dp; γ/((γ+1)(γ+2)) for s = 0. Alone, without cross-entropy's 1/2."""
    s = bonus_start
    return gamma * ((1 - s ** (gamma + 1)) / (gamma + 1) - (1 - s ** (gamma + 2)) / (gamma + 2))


def cosine_bonus_volume() -> float:
    """π ∫ sin(πp) p (1 − p) dp = 4/π². Alone, without cross-entropy's 1/2."""
    return 4 / math.pi**2


def focal_volume(gamma: float = 2.0) -> float:
    """1/(γ+2) + γ B(2, γ+1) [digamma(γ+3) − digamma(2)]; 1/2 at γ = 0, 31/72 at γ = 2."""
    spread = special.digamma(gamma + 3) - special.digamma(2)
    return 1 / (gamma + 2) + gamma * float(special.beta(2, gamma + 1) * spread)


def generalized_cross_entropy_volume(q: float = 0.7, k: float = 0.0) -> float:
    """∫_k¹ p^q (1 − p) dp: 1/((q+1)(q+2)) untruncated."""
    return (1 - k ** (q + 1)) / (q + 1) - (1 - k ** (q + 2)) / (q + 2)


def tamed_volume(alpha: int) -> float:
    """e E_α(1) − e² E_α(2), with E_α the exponential integral, for whole α ≥ 0; 1/2 at α = 0."""
    return float(math.e * special.expn(alpha, 1.0) - math.e**2 * special.expn(alpha, 2.0))


def squared_error_volume(mirror: bool = False) -> float:
    """2 ∫ p (1 − p)² dp = 1/6; with the mirror 2 ∫ p (1 − p) dp = 1/3."""
    return 1 / 3 if mirror else 1 / 6


def hinge_volume() -> float:
    """σ(1): the slope is 1 up to a = 1."""
    return 1 / (1 + math.exp(-1))


def squared_hinge_volume() -> float:
    """2 log(1 + e), by parts."""
    return 2 * math.log1p(math.e)


def exponential_volume() -> float:
    """∫ (1 − p)/p dp diverges."""
    return math.inf

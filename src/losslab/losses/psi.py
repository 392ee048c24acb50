"""Every ψ: a loss as a function of the true class's log-odds a, one elementwise line or two.

In terms of a, with p = σ(a) the probability of the true class:
1 − p = σ(−a), −log p = softplus(−a), −log(1 − p) = softplus(a). All values are in nats.

Rules for a ψ: elementwise; no NaN in value or slope for any a, ±∞ included; built from operations
that can be differentiated twice. Parameters named in a catalogue row's ``dynamic`` may also arrive
as 0-dimensional tensors (schedules change them without recompiling). The docstrings below are the
documentation of the functions and modules made from each ψ.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Number = float | Tensor


def cross_entropy(a: Tensor) -> Tensor:
    """Cross-entropy, the negative log-likelihood of the true class.

    Math: ψ(a) = softplus(−a) = −log p.
    Slope: ψ'(a) = −(1 − p): −1 for hopeless examples, fading to 0 for well-classified ones. Unlike
        PyTorch's, it does not become exactly 0 in float32 from a ≈ 17 on.
    """
    return F.softplus(-a, threshold=_LINEAR)


def expectation(a: Tensor) -> Tensor:
    """Expectation loss: the probability of a wrong draw, the expected 0-1 loss.

    Math: ψ(a) = σ(−a) = 1 − p.
    Slope: ψ'(a) = −p(1 − p): largest at p = ½; hopeless and settled examples are both left alone.
    """
    # 1 − σ(a) for a < 0: the slope there is p(1 − p) with p small, which σ(−a) ≈ 1 has rounded away
    return torch.where(a < 0, 1 - torch.sigmoid(a), torch.sigmoid(-a))


def mixed(a: Tensor, alpha: Number = 1.0, beta: Number = 1.0) -> Tensor:
    """Cross-entropy and expectation loss mixed; ``focus`` F puts the gradient's peak at p = F.

    Math: ψ(a) = α·(−log p) + β·(1 − p); focus F < ½ means α = 1, β = 1/(1 − 2F), and F = ½ means
        α = 0, β = 1.
    Slope: ψ'(a) = −(1 − p)(α + β p): largest at p = (1 − α/β)/2.
    """
    return times(alpha, cross_entropy(a)) + beta * expectation(a)


def encouraging(
    a: Tensor,
    rho: Number = 1.0,
    log_end: float = 0.75,
    bonus_start: float | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Encouraging loss: cross-entropy plus a bonus for well-classified examples.

    Math: ψ(a) = −log p + ρ·bonus(p). The bonus is log(1 − p) up to p = ``log_end`` and its tangent
        there beyond (conservative; ``log_end=1`` is the normal bonus, log(max(1 − p, ``eps``)).
        With ``bonus_start`` = s the bonus is paid only from p ≥ s, less its value at s
        (aggressive).
    Slope: with ρ = 1 exactly −1 up to p = log_end, then −(1 − p)(1 + p/(1 − LE)), which fades to 0.
        ``log_end=1, eps=0`` keeps −1 for ever: ψ(a) = −a.
    """
    end = log_curve_end(log_end, eps)
    if bonus_start is None:
        if end == math.inf:
            return _two_logarithms(a, rho)
        late = cross_entropy(a) + rho * _bonus_tail(a, log_end, eps)
        return torch.where(a <= end, _two_logarithms(a, rho), late)
    bonus = torch.where(a <= end, -F.softplus(a, threshold=_LINEAR), _bonus_tail(a, log_end, eps))
    paid = torch.where(a >= logit(bonus_start), bonus - _bonus_at(bonus_start, log_end, eps), 0)
    return cross_entropy(a) + times(rho, paid)


def _two_logarithms(a: Tensor, rho: Number) -> Tensor:
    """−log p + ρ·log(1 − p), exactly −a at ρ = 1 and never ∞ − ∞."""
    if isinstance(rho, (float, int)) and rho == 1:
        return -a
    below = (1 - rho) * F.softplus(a, threshold=_LINEAR) - a
    return torch.where(a < 0, below, (1 - rho) * cross_entropy(a) - times(rho, a))


def log_curve_end(log_end: float, eps: float) -> float:
    """The log-odds where the bonus leaves its log curve: at p = LE, or at the clamp 1 − p = eps."""
    if log_end < 1:
        return logit(log_end)
    return -logit(eps)


def _bonus_tail(a: Tensor, log_end: float, eps: float) -> Tensor:
    """Beyond the log curve: the tangent at p = LE, or the constant log eps of the clamp."""
    if log_end < 1:
        wrong = torch.sigmoid(-a) if log_end >= 0.5 else expectation(a)  # looked at from p = LE on
        return wrong / (1 - log_end) - 1 + math.log1p(-log_end)
    return torch.full_like(a, math.log(eps) if eps > 0 else 0.0)


def _bonus_at(p: float, log_end: float, eps: float) -> float:
    """The bonus (ρ = 1, no start) at one probability."""
    if log_end == 1:
        return math.log(max(1 - p, eps))
    beyond = max(p - log_end, 0.0) / (1 - log_end)
    return math.log1p(-min(p, log_end)) - beyond


def encouraging_power(
    a: Tensor, rho: Number = 1.0, gamma: float = 1.0, bonus_start: float | None = None
) -> Tensor:
    """Encouraging loss with a power bonus.

    Math: ψ(a) = −log p − ρ·p^γ; with ``bonus_start`` = s the bonus is s^γ − p^γ where p ≥ s and 0
        below.
    Slope: ψ'(a) = −(1 − p)(1 + ρ γ p^γ).
    """
    power = torch.exp(gamma * F.logsigmoid(a))
    if bonus_start is not None:
        power = torch.where(a >= logit(bonus_start), power - bonus_start**gamma, 0)
    return cross_entropy(a) - rho * power


def encouraging_cosine(a: Tensor, rho: Number = 1.0) -> Tensor:
    """Encouraging loss with a cosine bonus.

    Math: ψ(a) = −log p + ρ·(cos(πp) − 1).
    Slope: ψ'(a) = −(1 − p)(1 + ρ π p sin(πp)).
    """
    # sin²(πp/2), from the smaller of p and 1 − p so that neither end is rounded away
    tail = torch.sigmoid(torch.where(a < 0, a, -a))
    half = torch.where(a < 0, torch.sin(math.pi / 2 * tail), torch.cos(math.pi / 2 * tail))
    return cross_entropy(a) - rho * 2 * half.square()


def focal(a: Tensor, gamma: Number = 2.0) -> Tensor:
    """Focal loss: cross-entropy turned down for well-classified examples.

    Math: ψ(a) = (1 − p)^γ · (−log p). The published α is a class weight: pass ``weight``.
    Slope: ψ'(a) = −(1 − p)^γ ((1 − p) − γ p log p).
    """
    # Below −100 the factor is 1, above 750 cross-entropy is 0 even in float64: freezing the factor
    # there keeps 0·∞ out of the slope at a = −∞ and of the value at a = +∞.
    down = torch.exp(gamma * F.logsigmoid(-a.clamp(-100, 750)))
    return down * cross_entropy(a)


def halted_focal(a: Tensor, gamma: float = 2.0, threshold: float = 0.5) -> Tensor:
    """Focal loss up to p = φ (``threshold``), the slope of cross-entropy beyond.

    Math: ψ(a) = (1 − p)^γ·(−log p) for p ≤ φ, and −log p + (1 − (1 − φ)^γ)·log φ for p > φ.
    Slope: focal's up to φ, cross-entropy's −(1 − p) beyond; it jumps at φ.
    """
    if threshold == 0:
        return cross_entropy(a)
    shift = (1 - (1 - threshold) ** gamma) * math.log(threshold)
    return torch.where(a <= logit(threshold), focal(a, gamma), cross_entropy(a) + shift)


def generalized_cross_entropy(
    a: Tensor, q: Number = 0.7, truncation: float | None = None
) -> Tensor:
    """Generalised cross-entropy, between cross-entropy (q → 0) and expectation (q = 1).

    Math: ψ(a) = (1 − p^q)/q; with ``truncation`` = k the loss is the constant (1 − k^q)/q for
        p ≤ k, so that hopeless (mislabelled) examples are dropped.
    Slope: ψ'(a) = −p^q (1 − p).
    """
    if truncation is not None:
        least = logit(truncation)
        a = a.masked_fill(a < least, least)
    q = max(q, _TINY) if isinstance(q, (float, int)) else q.clamp(min=_TINY)
    return -_expm1(q * F.logsigmoid(a)) / q


def tamed_cross_entropy(a: Tensor, alpha: float = 0.5) -> Tensor:
    """Tamed cross-entropy: cross-entropy for easy examples, slower growth for hard ones.

    Math: ψ(a) = ((1 − log p)^(1−α) − 1)/(1 − α), and log(1 − log p) at α = 1.
    Slope: ψ'(a) = −(1 − p)(1 − log p)^(−α).
    """
    loss = cross_entropy(a)
    if alpha == 1:
        return torch.log1p(loss)
    # a power of 1 + CE, less 1; for small CE by expm1, which does not cancel
    small = torch.expm1((1 - alpha) * torch.log1p(loss.masked_fill(loss > 1, 1)))
    grown = torch.where(loss > 1, (1 + loss).pow(1 - alpha) - 1, small)
    return grown / (1 - alpha)


def squared_error(a: Tensor, mirror: bool = False) -> Tensor:
    """Squared error of the true class's probability; with the mirror bonus, less that of 1 − p.

    Math: ψ(a) = (1 − p)²; with ``mirror`` (1 − p)² − p² = 1 − 2p.
    Slope: ψ'(a) = −2p(1 − p)²; with ``mirror`` −2p(1 − p).
    """
    wrong = expectation(a)
    return wrong - expectation(-a) if mirror else wrong.square()


def absolute_error(a: Tensor) -> Tensor:
    """Absolute error |1 − p| of one output.

    Math: ψ(a) = σ(−a) = 1 − p.
    Slope: ψ'(a) = −p(1 − p).
    """
    return expectation(a)


def exponential(a: Tensor, cap: float = 30.0) -> Tensor:
    """Exponential loss of boosting, continued by its tangent below a = −``cap``.

    Math: ψ(a) = exp(−a) = (1 − p)/p for a ≥ −cap, and e^cap·(1 − cap − a) below.
    Slope: ψ'(a) = −exp(−a), −e^cap below −cap.
    """
    inside = a.masked_fill(a < -cap, -cap)
    return torch.exp(-inside) + math.exp(cap) * (inside - a).where(a < -cap, 0)


def hinge(a: Tensor, margin: float = 1.0) -> Tensor:
    """Hinge loss on the log-odds.

    Math: ψ(a) = max(0, ``margin`` − a).
    Slope: −1 below the margin, 0 above.
    """
    return torch.relu(margin - a)


def squared_hinge(a: Tensor, margin: float = 1.0) -> Tensor:
    """Squared hinge loss on the log-odds.

    Math: ψ(a) = max(0, ``margin`` − a)², continued by its tangent where margin − a passes 1e18.
    Slope: −2·max(0, margin − a), at least −2e18, so that it stays finite in float32.
    """
    short = torch.relu(margin - a)
    near = short.clamp(max=1e18)
    return near * (2 * short - near)


def times(factor: Number, x: Tensor) -> Tensor:
    """factor·x, and 0 where the factor is 0 even if x is infinite."""
    if isinstance(factor, (float, int)):
        return factor * x if factor else 0 * x.masked_fill(x.isinf(), 0)
    return factor * torch.where((factor == 0) & x.isinf(), 0, x)


def _expm1(x: Tensor) -> Tensor:
    """exp(x) − 1 for x ≤ 0; unlike torch's, its slope exp(x) keeps its digits as x → −∞."""
    return torch.where(x > -1, torch.expm1(x), torch.exp(x) - 1)


# Below this q, generalised cross-entropy is cross-entropy to the last digit; in float32 a smaller q
# would underflow.
_TINY = 1e-20
# softplus switches to the identity above 20 by default, where float64 still sees the difference;
# above 40 it does not
_LINEAR = 40.0


def logit(p: float) -> float:
    """log(p/(1 − p)), ±inf at the ends."""
    if p <= 0:
        return -math.inf
    return math.inf if p >= 1 else math.log(p) - math.log1p(-p)

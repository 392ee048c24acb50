"""A loss's card, in numbers: what it looks like and which properties it has.

Everything is measured on the loss itself, so the card of a user's own ψ or of a sum is as good as
a built-in's. Losses that are not ψ(a) are looked at on rows whose wrong classes are even: two
classes, logits (a, 0), or as many as a margin's or prior's class counts name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losslab.losses import modules

_NEAR, _FAR = 1e6, 1e12  # log-odds between which a limit shows


@dataclass(frozen=True)
class Card:
    """What is known of one loss. ``None``: does not apply, because the loss is not ψ(a)."""

    spec: str
    formula: str
    note: str
    source: str
    identities: tuple[str, ...]
    parameters: tuple[tuple[str, str, str], ...]  # name=default, domain, meaning
    is_psi: bool
    lower_bound: float
    upper_bound: float
    slope_hopeless: float  # ψ' as a → −∞
    slope_settled: float  # ψ' as a → +∞
    convex: bool
    calibrated: bool
    peak: float  # the p at which |∂L/∂z_y| is largest
    peak_slope: float
    volume: float | None  # V = ∫ |∂L/∂z_y| dp
    volume_ratio: float | None  # V / V of cross-entropy

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.lower_bound) and math.isfinite(self.upper_bound)


def odds_function(loss: nn.Module) -> tuple[Callable[[Tensor], Tensor], bool]:
    """The loss as a function of log-odds, and whether it is one (else: on even rows)."""
    psi = getattr(loss, "psi", None)
    if psi is not None:
        return psi, True
    if isinstance(loss, modules.ComplementObjectiveLoss):
        return odds_function(loss.loss)
    return lambda a: _even_rows(loss, a), False


def curves(loss: nn.Module, p: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and |∂L/∂z_y| at true-class probabilities ``p`` in (0, 1), float64.

    Example:
        >>> import torch, losslab
        >>> from losslab.losses.explain import curves
        >>> curves(losslab.ExpectationLoss(), torch.tensor([0.5]))
        (tensor([0.5000], dtype=torch.float64), tensor([0.2500], dtype=torch.float64))
    """
    value, slope = value_and_slope(odds_function(loss)[0], torch.logit(p.double()))
    return value, slope.abs()


def gradient_volume(loss: nn.Module) -> float | None:
    """V = ∫₀¹ |∂L/∂z_y| dp, the gradient's size over all p; None where the loss is not ψ(a).

    ½ for cross-entropy and 1/6 for the expectation loss. Training cross-entropy at the learning
    rate × V/½ is the control of Battash et al. for "a larger step is better".
    """
    psi, is_psi = odds_function(loss)
    if not is_psi:
        return None
    # dp = σ(a)σ(−a) da; the midpoint rule on a grid this fine is good to about 1e-5 even where
    # the slope jumps, and the weight is below 1e-17 beyond ±40
    step = 1e-4
    a = torch.arange(-40 + step / 2, 40, step, dtype=torch.float64)
    weight = torch.sigmoid(a) * torch.sigmoid(-a)
    integrand = value_and_slope(psi, a)[1].abs() * weight
    if integrand[0] > 1e-9 * integrand.max():  # the hopeless end alone is infinite
        return math.inf
    return float(integrand.sum() * step)


def card(loss: nn.Module) -> Card:
    """Measure and describe a loss; what `losslab explain SPEC` prints."""
    psi, is_psi = odds_function(loss)
    grid = torch.arange(-60, 60, 1e-3, dtype=torch.float64)
    value, slope = value_and_slope(psi, grid)
    peak = int(slope.abs().argmax())
    size = float(slope.abs()[peak])
    low, high = _limits(psi, float(value.abs().max()))
    slopes = value_and_slope(psi, torch.tensor([-_FAR, -_NEAR, _NEAR, _FAR]).double())[1].tolist()
    volume = gradient_volume(loss)
    described = _described(loss)
    return Card(
        spec=getattr(loss, "spec", "custom"),
        is_psi=is_psi,
        lower_bound=min(float(value.min()), low, high) + 0.0,  # not −0
        upper_bound=max(float(value.max()), low, high) + 0.0,
        slope_hopeless=_slope_limit(slopes[1], slopes[0]),
        slope_settled=_slope_limit(slopes[2], slopes[3]),
        convex=bool((slope.diff() >= -1e-9 * size).all()),
        calibrated=_is_calibrated(psi),
        peak=_peak(grid, slope.abs(), peak),
        peak_slope=size,
        volume=volume,
        volume_ratio=None if volume is None else 2 * volume,
        **described,
    )


def value_and_slope(psi: Callable[[Tensor], Tensor], a: Tensor) -> tuple[Tensor, Tensor]:
    a = a.clone().requires_grad_()
    value = psi(a)
    if not value.requires_grad:  # a constant
        return value.detach().expand_as(a), torch.zeros_like(a)
    (slope,) = torch.autograd.grad(value.sum(), a)
    return value.detach(), slope


def _even_rows(loss: nn.Module, a: Tensor) -> Tensor:
    """Row losses at log-odds a of class 0, the other classes sharing the rest evenly."""
    counts = (getattr(part, "counts", None) for part in loss.modules())
    others = next((len(n) - 1 for n in counts if n is not None), 1)
    logits = torch.cat([a.unsqueeze(1), torch.full((len(a), others), -math.log(others)).to(a)], 1)
    return _rows(loss, logits, torch.zeros(len(a), dtype=torch.long))


def _rows(loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    if isinstance(loss, modules.SumLoss):
        terms = zip(loss.coefficients, loss.losses, strict=True)
        return torch.stack([c * _rows(term, logits, target) for c, term in terms]).sum(0)
    if isinstance(loss, modules.ClassificationLoss):
        return loss.rows.hard(logits, target)
    inner = getattr(loss, "loss", None)
    change = getattr(loss, "change", None)
    if inner is not None and change is not None:
        return _rows(inner, change(logits, target), target)
    raise TypeError(f"cannot look at single rows of {type(loss).__name__}")


def _limits(psi: Callable[[Tensor], Tensor], size: float) -> tuple[float, float]:
    """ψ(−∞) and ψ(∞); where those are NaN, told from two far points."""
    at = torch.tensor([-math.inf, -_FAR, -_NEAR, _NEAR, _FAR, math.inf], dtype=torch.float64)
    with torch.no_grad():
        low, low_far, low_near, high_near, high_far, high = psi(at).tolist()
    return (
        _value_limit(low_near, low_far, size) if math.isnan(low) else low,
        _value_limit(high_near, high_far, size) if math.isnan(high) else high,
    )


def _value_limit(near: float, far: float, size: float) -> float:
    """A value that still moves between the far points has no finite limit."""
    return far if abs(far - near) <= 1e-6 * size else math.copysign(math.inf, far)


def _slope_limit(near: float, far: float) -> float:
    """A slope that grows or shrinks like a power of a goes to infinity or to 0."""
    if abs(far) > 10 * abs(near):
        return math.copysign(math.inf, far)
    return 0.0 if abs(far) <= abs(near) / 10 else far


def _peak(grid: Tensor, size: Tensor, at: int) -> float:
    """The p of the largest slope; a plateau that reaches an end counts as that end."""
    top = (size >= float(size[at]) * (1 - 1e-9)).nonzero().flatten()
    if int(top[0]) == 0:
        return 0.0
    return 1.0 if int(top[-1]) == len(grid) - 1 else float(torch.sigmoid(grid[at]))


def _is_calibrated(psi: Callable[[Tensor], Tensor]) -> bool:
    """Binary classification calibration (Bartlett et al. 2006), on a grid.

    For every class probability η ≠ ½, the smallest conditional risk η ψ(a) + (1 − η) ψ(−a) over
    predictions a of the wrong sign must lie above the smallest over all a.
    """
    a = torch.cat([torch.arange(-3000, 3001) / 100, torch.tensor([-1e4, 1e4])]).double()  # 0 is in
    with torch.no_grad():
        right, wrong = psi(a), psi(-a)
    around_zero = right[a.abs() < 5]
    size = float(around_zero.max() - around_zero.min())
    eta = torch.linspace(0.5, 1, 26, dtype=torch.float64)[1:].unsqueeze(1)
    risk = eta * right + (1 - eta) * wrong
    best = risk.amin(1)
    best_wrong = risk.masked_fill(a > 0, math.inf).amin(1)
    return bool((best_wrong > best + 1e-9 * size).all())


def _described(loss: nn.Module) -> dict:
    row = getattr(loss, "row", None)
    if row is not None:
        return {
            "formula": row.formula,
            "note": row.note,
            "source": row.source,
            "identities": tuple(str(i) for i in row.identities),
            "parameters": tuple((p.shown, p.domain, p.meaning) for p in row.parameters),
        }
    return {
        "formula": getattr(loss, "spec", "custom"),
        "note": "",
        "source": "",
        "identities": (),
        "parameters": (),
    }

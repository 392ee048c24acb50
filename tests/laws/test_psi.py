"""Every ψ on its own: value and slope against the printed formulas, limits, second derivatives."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import losslab
from laws.settings import SETTINGS, Setting, identify
from losslab.logodds import native
from losslab.losses.program import native_odds

INF = math.inf
every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=identify)
DTYPES = {"float64": torch.float64, "float32": torch.float32}
GRID = np.concatenate([np.linspace(-60, 60, 481), [-1e4, -200.0, 200.0, 1e4]])


def ways(*names: str) -> pytest.MarkDecorator:
    """Each way to compute ψ and ψ' in the dtypes that it takes; native ones only where built."""
    in_cpp = {"native", "derived"}
    cases = [
        (how, dtype)
        for how in names
        for dtype in DTYPES
        if how not in in_cpp or (dtype == "float32" and not native.unavailable())
    ]
    return pytest.mark.parametrize(
        ("how", "dtype"), [(how, DTYPES[d]) for how, d in cases], ids=["-".join(c) for c in cases]
    )


def value_and_slope(
    setting: Setting, a: torch.Tensor, how: str = "autograd"
) -> tuple[torch.Tensor, torch.Tensor]:
    """ψ(a) and ψ'(a): by autograd, as ``slopes.py`` writes it, as the native kernel runs both, or
    as it runs a user's ψ, whose ψ' it derives."""
    a = a.clone().requires_grad_()
    if how in ("native", "derived"):
        odds = native_odds(setting.key if how == "native" else None, setting.psi)
        ones = torch.ones_like(a)
        return odds.value(a.detach(), "none"), odds.upstream(a.detach(), ones, "none")
    value = setting.psi(a)
    if how == "written":
        return value.detach(), setting.written_slope(a.detach())
    (slope,) = torch.autograd.grad(value.sum(), a)
    return value.detach(), slope


def allowed(dtype: torch.dtype, truth: float, scale: float) -> float:
    """1e-12 of the value in float64. In float32 a few roundings, and |log| times as many for what
    is computed as an exponential; ``scale`` is what cancels on the way to the value."""
    if dtype == torch.float64:
        return 1e-12 * max(abs(truth), scale) + 1e-300
    size = abs(math.log(abs(truth))) if truth and math.isfinite(truth) else 0.0
    eps = torch.finfo(dtype).eps
    return 4 * eps * max(abs(truth) * (2 + size), scale) + 1e-36


def off(setting: Setting, got: float, truth: float, dtype: torch.dtype, scale: float) -> bool:
    if math.isnan(truth) or abs(truth) > torch.finfo(dtype).max:
        return got != math.copysign(INF, truth)
    return not abs(got - truth) <= allowed(dtype, truth, scale)


@ways("autograd", "native")
@every_setting
def test_value(setting, how, dtype):
    """Oracle: the printed formula at the exact a. Break: log(1 − exp(log p)), an ulp lost at 1e4,
    a relative error in the tails (except where the printed terms themselves cancel)."""
    a = torch.tensor(GRID).to(dtype)
    values, _ = value_and_slope(setting, a, how)
    scale = 1.0 if setting.cancels else 0.0
    wrong = [
        (x, got, truth)
        for x, got in zip(a.tolist(), values.tolist(), strict=True)
        if off(setting, got, truth := float(setting.oracle(x)), dtype, scale)
    ]
    assert wrong == []


@ways("autograd", "written", "native", "derived")
@every_setting
def test_slope(setting, how, dtype):
    """Oracle: complex-step derivative of the printed formula, relative to the slope itself on both
    sides. Break: a slope that rounds to 0 for hopeless or settled examples; a kink at a = 0; a term
    missing from ``slopes.py``; an instruction that loses digits in the tails."""
    a = torch.tensor([x for x in GRID if all(abs(x - k) > 1e-6 for k in setting.kinks)]).to(dtype)
    _, slopes = value_and_slope(setting, a, how)
    wrong = [
        (x, got, truth)
        for x, got in zip(a.tolist(), slopes.tolist(), strict=True)
        if off(setting, got, truth := setting.slope(x), dtype, 0.0) and abs(truth) > 1e-290
    ]
    assert wrong == []


@ways("autograd", "written", "native", "derived")
@every_setting
def test_limits(setting, how, dtype):
    """Oracle: the printed formula at ±∞ and at the largest finite numbers. Break: 0·∞ or ∞ − ∞."""
    far = [-INF, -torch.finfo(dtype).max, torch.finfo(dtype).max, INF]
    values, slopes = value_and_slope(setting, torch.tensor(far, dtype=dtype), how)
    assert not values.isnan().any()
    assert slopes.isfinite().all()
    for x, got in zip(far, values.tolist(), strict=True):
        truth = float(setting.oracle(x))
        assert not off(setting, got, truth, dtype, 1.0 if setting.cancels else 0.0), (x, got, truth)


@every_setting
def test_derivatives_of_both_orders(setting):
    """Oracle: finite differences in float64 (the grid stays off the kinks). Break: a branch whose
    derivative is dropped, or a slope that cannot be differentiated again."""
    a = [x for x in np.linspace(-7.3, 7.1, 13) if all(abs(x - k) > 0.1 for k in setting.kinks)]
    if setting.parameters.get("gamma") == 100.0:
        a = [x for x in a if x > -2]  # the slope turns too fast for finite differences
    leaf = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    assert gradcheck(setting.psi, leaf)
    assert gradgradcheck(setting.psi, leaf, fast_mode=True)


@every_setting
def test_continuous_at_the_kinks(setting):
    """Oracle: no jump where the formula changes. Break: a shift with the wrong sign, such as the
    one printed for halted focal loss."""
    for kink in setting.kinks:
        a = torch.tensor([kink - 1e-9, kink, kink + 1e-9], dtype=torch.float64)
        below, at, above = setting.psi(a).tolist()
        size = 1e-7 * max(1.0, abs(at))
        assert abs(at - below) < size
        assert abs(above - at) < size


@every_setting
def test_elementwise(setting):
    """Oracle: the same numbers one at a time, in any shape, and NaN stays where it is."""
    a = torch.linspace(-5, 5, 12, dtype=torch.float64)
    together = setting.psi(a.view(3, 4))
    alone = torch.stack([setting.psi(x) for x in a]).view(3, 4)
    assert torch.equal(together, alone)
    a[3] = math.nan
    assert setting.psi(a).isnan().tolist() == [i == 3 for i in range(12)]


def test_squared_hinge_grows_by_its_tangent_far_out():
    """Oracle: by hand: slope −2·min(margin − a, 1e18), which never becomes infinite in float32."""
    a = torch.tensor([-1e17, -1e19, -1e30, -3e38], requires_grad=True)
    losslab.SquaredHingeLoss().psi(a).sum().backward()
    assert a.grad.tolist() == pytest.approx([-2e17, -2e18, -2e18, -2e18])

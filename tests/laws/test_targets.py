"""Whole losses: every kind of target, weight, reduction and shape against ``tests/oracles``."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import losslab
from laws import reference
from laws.settings import ON_SOFTMAX, SPECS, identify

every_setting = pytest.mark.parametrize("setting", ON_SOFTMAX, ids=identify)
every_spec = pytest.mark.parametrize("spec", SPECS)
WEIGHT = torch.tensor([0.7, 0.0, 1.9, 0.4], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64) * scale


def soft_target(*shape: int, seed: int = 0) -> torch.Tensor:
    """Probabilities over dimension 1 (or 0), a third of them exactly 0."""
    dim = 0 if len(shape) == 1 else 1
    t = torch.rand(*shape, generator=generator(seed), dtype=torch.float64)
    t = torch.where(torch.rand(*shape, generator=generator(seed + 1)) < 0.3, 0, t)
    return t / t.sum(dim, keepdim=True).clamp(min=1e-9)


def classes(*shape: int, count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(count, shape, generator=generator(seed))


# name -> (logits, target, options)
CASES = {
    "mean": (normal(6, 4), classes(6), {}),
    "far": (normal(6, 4, scale=25.0), classes(6), {"reduction": "none"}),
    "weighted mean": (normal(6, 4), classes(6), {"weight": WEIGHT}),
    "weighted sum, ignoring": (
        normal(6, 4),
        classes(6, seed=1),
        {"weight": WEIGHT, "ignore_index": 2, "reduction": "sum"},
    ),
    "ignoring outside the classes": (normal(3, 4), torch.tensor([-100, 3, -100]), {}),
    "one row": (normal(4), torch.tensor(2), {"weight": WEIGHT}),
    "image": (
        normal(2, 4, 2, 3),
        classes(2, 2, 3, seed=3),
        {"weight": WEIGHT, "ignore_index": 0, "label_smoothing": 0.2},
    ),
    "smoothed": (normal(5, 4), classes(5), {"label_smoothing": 0.3, "reduction": "none"}),
    "smoothed to even": (normal(5, 4), classes(5), {"label_smoothing": 1.0, "weight": WEIGHT}),
    "smoothed far": (normal(5, 4, scale=25.0), classes(5), {"label_smoothing": 0.1}),
    "soft": (normal(6, 4), soft_target(6, 4), {"weight": WEIGHT}),
    "soft smoothed": (
        normal(6, 4, scale=6.0),
        soft_target(6, 4),
        {"reduction": "none", "label_smoothing": 0.4},
    ),
    "soft row": (normal(4), soft_target(4), {"reduction": "sum"}),
    "soft sequence": (normal(2, 4, 3), soft_target(2, 4, 3), {"weight": WEIGHT}),
}


@every_setting
def test_value_and_gradient(setting):
    """Oracle: the printed ψ inside a plain loop over rows, its gradient by Σ t_k ψ'_k (e_k − q⁽ᵏ⁾),
    under random upstream gradients. Break: any weight, divisor, row or class mixed up."""
    for case, (logits, target, options) in CASES.items():
        truth = torch.as_tensor(reference.value(setting, logits, target, **options))
        upstream = torch.randn(truth.shape, generator=generator(7), dtype=torch.float64)
        leaf = logits.clone().requires_grad_()
        value = losslab.loss(setting.spec, **options)(leaf, target)
        value.backward(upstream)
        slope = reference.gradient(setting, logits, target, upstream, **options)
        size = 1 + slope.abs().max().item()
        for got, expected, rtol, atol in (
            (value.detach(), truth, 1e-11, 1e-12),
            (leaf.grad, slope, 1e-10, 1e-13 * size),
        ):
            torch.testing.assert_close(
                got, expected, rtol=rtol, atol=atol, msg=lambda text, case=case: f"{case}: {text}"
            )


@pytest.mark.parametrize(
    "setting",
    [s for s in ON_SOFTMAX if s.parameters.get("gamma") != 100.0],  # turns too fast to difference
    ids=identify,
)
def test_expected_loss_is_differentiable_twice(setting):
    """Oracle: finite differences of smoothed and soft losses. Break: a detached piece of a row."""
    smoothed = losslab.loss(setting.spec, label_smoothing=0.2, weight=WEIGHT, reduction="none")
    for seed in range(9):  # logits whose log-odds of every class stay off the kinks
        logits = normal(2, 4, seed=seed, scale=1.0)
        a = losslab.all_log_odds(logits)
        if all((a - kink).abs().min() > 0.01 for kink in setting.kinks):
            break
    else:
        raise AssertionError("no logits away from the kinks")
    logits.requires_grad_()
    target = torch.tensor([3, 0])
    assert gradcheck(lambda z: smoothed(z, target), logits)
    assert gradgradcheck(lambda z: smoothed(z, target), logits, fast_mode=True)
    goal = soft_target(2, 4)
    assert gradcheck(lambda z: smoothed(z, goal), logits)


@every_spec
def test_hard_loss_is_differentiable_twice(spec):
    """Oracle: finite differences, away from kinks. Covers sums, wrappers and row-wise losses."""
    loss = losslab.loss(spec, weight=WEIGHT, ignore_index=1, reduction="none")
    logits = torch.tensor([[0.13, -0.8, 0.41, 0.07], [1.7, 0.2, -0.5, 0.9], [0.3, 0.1, 0.2, -0.3]])
    logits = logits.double().requires_grad_()
    target = torch.tensor([0, 2, 1])
    assert gradcheck(lambda z: loss(z, target), logits)
    assert gradgradcheck(lambda z: loss(z, target), logits, fast_mode=True)


@every_spec
def test_reductions_are_consistent(spec):
    """Oracle: sum = Σ none, and the weighted mean = sum/Σ used weights. Break: a mean over rows."""
    logits, target = normal(7, 4), classes(7)
    target[2] = -100
    none, total, mean = (
        losslab.loss(spec, weight=WEIGHT, reduction=r)(logits, target)
        for r in ("none", "sum", "mean")
    )
    used = WEIGHT[target[target >= 0]].sum()
    torch.testing.assert_close(total, none.sum())
    torch.testing.assert_close(mean, none.sum() / used)


@every_spec
def test_shapes_are_consistent(spec):
    """Oracle: (C,) and (N, C, d1, d2) are rows of (N, C). Break: classes taken from another
    dimension."""
    loss = losslab.loss(spec, reduction="none", weight=WEIGHT)
    logits, target = normal(2, 4, 3, 2), classes(2, 3, 2)
    rows = loss(logits.movedim(1, -1).reshape(-1, 4), target.reshape(-1))
    assert torch.equal(loss(logits, target), rows.view(2, 3, 2))
    alone = loss(logits[1, :, 2, 0], target[1, 2, 0])
    assert alone.shape == ()
    torch.testing.assert_close(alone, rows.view(2, 3, 2)[1, 2, 0], rtol=1e-14, atol=1e-15)
    mixed_up = logits.transpose(2, 3)  # not contiguous
    assert torch.equal(loss(mixed_up, target.transpose(1, 2)), rows.view(2, 3, 2).transpose(1, 2))


@every_spec
def test_narrow_types_match_float64(spec):
    """Oracle: float64 on the same narrow logits; half types are computed in float32 and rounded
    once. Break: an intermediate result in half precision."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits, goal = normal(6, 4).to(dtype), soft_target(6, 4).to(dtype)
        eps = torch.finfo(dtype).eps
        near = {"rtol": 2 * eps + 1e-5, "atol": 2e-5}
        for t in [classes(6)] if "complement" in spec else [classes(6), goal]:
            loss = losslab.loss(spec, reduction="none", weight=WEIGHT.float())
            narrow, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
            got, truth = loss(narrow, t), loss(wide, t.double() if t.is_floating_point() else t)
            got.sum().backward()
            truth.sum().backward()
            assert got.dtype == narrow.grad.dtype == dtype
            torch.testing.assert_close(got.double(), truth, **near)
            torch.testing.assert_close(narrow.grad.double(), wide.grad, **near)


def test_empty_batch():
    """Oracle: F.cross_entropy: nothing to sum is 0, and its mean NaN, or 0 on request."""
    logits, target = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.long)
    for spec in SPECS:
        assert losslab.loss(spec, reduction="none")(logits, target).shape == (0,)
        assert losslab.loss(spec, reduction="sum")(logits, target).item() == 0
        assert math.isnan(losslab.loss(spec)(logits, target).item())
        loss = losslab.loss(spec, zero_if_empty=True)(logits, target)
        loss.backward()
        assert loss.item() == 0

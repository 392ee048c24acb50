"""The sigmoid side: binary, multi-label and one-vs-rest, for every ψ of the catalogue."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import losslab
from laws.settings import SETTINGS, Setting, identify
from oracles import reduction

every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=identify)


def case(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits, and targets that are 0, 1 or in between."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=g, dtype=torch.float64) * 3
    target = torch.rand(*shape, generator=g, dtype=torch.float64)
    return logits, torch.where(target < 0.35, 0, torch.where(target > 0.65, 1, target))


def function(setting: Setting):
    return getattr(losslab, setting.row.binary_function_name)


def oracle_gradient(setting, logits, target, weight, pos_weight):
    """w (t·pos·ψ'(z) − (1 − t) ψ'(−z)) element by element."""
    weight, pos_weight = (x.expand(logits.shape).numpy() for x in (weight, pos_weight))
    slopes = np.empty(logits.shape)
    for i in np.ndindex(slopes.shape):
        z, t = logits[i].item(), target[i].item()
        up, down = t * pos_weight[i] * setting.slope(z), (1 - t) * setting.slope(-z)
        slopes[i] = weight[i] * (up - down)
    return torch.tensor(slopes)


@every_setting
def test_value_and_gradient(setting):
    """Oracle: a loop over outputs with the printed ψ, PyTorch's meaning of weight and pos_weight,
    random upstream gradients. Break: pos_weight on the negatives, a sign, a weight moved."""
    logits, target = case(5, 3)
    weight = torch.tensor([[0.5], [2.0], [0.0], [1.0], [0.3]], dtype=torch.float64)
    pos_weight = torch.tensor([1.5, 0.0, 3.0], dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    options = {"weight": weight, "pos_weight": pos_weight}
    value = function(setting)(leaf, target, reduction="none", **options, **setting.parameters)
    upstream = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
    value.backward(upstream)
    numbers = {k: v.numpy() for k, v in options.items()}
    truth = reduction.binary_loss(
        lambda a: float(setting.oracle(a)), logits, target, reduction="none", **numbers
    )
    torch.testing.assert_close(value.detach(), torch.tensor(truth), rtol=1e-12, atol=1e-13)
    slope = upstream * oracle_gradient(setting, logits, target, **options)
    torch.testing.assert_close(leaf.grad, slope, rtol=1e-11, atol=1e-13)
    for how in ("mean", "sum"):
        whole = function(setting)(logits, target, reduction=how, **options, **setting.parameters)
        torch.testing.assert_close(whole, getattr(value.detach(), how)())


@every_setting
def test_module_is_the_function(setting):
    """Oracle: the function. Break: an option that the module drops."""
    logits, target = case(4, 3, seed=1)
    options = {"weight": torch.rand(3), "pos_weight": torch.rand(3), "reduction": "sum"}
    module = getattr(losslab, setting.row.binary_module_name)(**options, **setting.parameters)
    expected = function(setting)(logits, target, **options, **setting.parameters)
    assert torch.equal(module(logits, target), expected)
    assert losslab.loss(module.spec).spec == module.spec


@every_setting
def test_any_shape(setting):
    """Oracle: the same numbers in one row; a single output is a 0-dimensional tensor."""
    logits, target = case(2, 3, 4)
    keywords = {"reduction": "none", **setting.parameters}
    flat = function(setting)(logits.flatten(), target.flatten(), **keywords)
    assert torch.equal(function(setting)(logits, target, **keywords), flat.view(2, 3, 4))
    single = function(setting)(logits[1, 2, 3], target[1, 2, 3], **keywords)
    assert single.shape == ()
    torch.testing.assert_close(single, flat[-1], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@every_setting
def test_never_nan(setting, dtype):
    """Oracle: not NaN from any finite logits. Break: 0·∞ where a loss overflows against a target,
    weight or pos_weight of 0."""
    top = torch.finfo(dtype).max
    z = torch.tensor([top, -top, top / 3, -1e4, -90.0, 0.0, 1e3], dtype=dtype)
    logits = z.repeat(4, 1).requires_grad_()
    target = torch.tensor([0.0, 1.0, 0.5, 1e-7], dtype=dtype).unsqueeze(1).expand(4, 7)
    zeros = torch.tensor([0.0, 0, 1, 1, 0, 1, 0])
    for options in ({}, {"weight": zeros}, {"pos_weight": zeros}):
        logits.grad = None
        value = function(setting)(logits, target, reduction="none", **options, **setting.parameters)
        value.sum().backward()
        soft = setting.parameters.get("eps") == 0  # −a on one side, +a on the other
        assert not value[:2].isnan().any()
        assert soft or not value.isnan().any()
        assert not logits.grad.isnan().any()


@every_setting
def test_half_types(setting):
    """Oracle: float64 on the same half inputs, rounded once. Break: ψ evaluated in half."""
    logits, target = case(6, 3)
    for dtype in (torch.float16, torch.bfloat16):
        z, t = logits.to(dtype), target.to(dtype)
        got = function(setting)(z, t, reduction="none", **setting.parameters)
        truth = function(setting)(z.double(), t.double(), reduction="none", **setting.parameters)
        assert got.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got.double(), truth, rtol=eps + 1e-5, atol=1e-5)


def test_infinite_logits_against_certain_targets():
    """Oracle: ψ(+∞) by hand. A certain, right output costs ψ(∞), though ψ(−∞) is infinite."""
    logits, target = torch.tensor([math.inf, -math.inf]), torch.tensor([1.0, 0.0])
    for name in ("cross_entropy", "focal", "hinge", "exponential"):
        loss = getattr(losslab, f"binary_{name}_with_logits")
        assert loss(logits, target, reduction="none").tolist() == [0, 0]
        assert loss(-logits, target, reduction="none").tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("how", ["sum", "mean"])
@every_setting
def test_one_vs_rest(setting, how):
    """Oracle: a sigmoid a class, ψ(z_y) + Σ_{j≠y} ψ(−z_j) in a plain loop, hard and expected."""
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 4, generator=g, dtype=torch.float64) * 4
    target = torch.randint(4, (5,), generator=g)
    loss = losslab.loss(f"one_vs_rest({setting.spec}, class_reduction={how})", reduction="none")
    per_class = [
        reduction.one_vs_rest_losses(
            lambda a: float(setting.oracle(a)), logits, torch.full((5,), k)
        )
        for k in range(4)
    ]
    per_class = torch.tensor(np.stack(per_class, 1)) / (4 if how == "mean" else 1)
    hard = per_class.gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(loss(logits, target), hard, rtol=1e-12, atol=1e-13)
    soft = torch.softmax(torch.randn(5, 4, generator=g).double(), 1)
    expected = (soft * per_class).sum(1)
    torch.testing.assert_close(loss(logits, soft), expected, rtol=1e-12, atol=1e-12)


def test_one_vs_rest_keeps_its_digits_beside_a_large_loss():
    """Oracle: losses of 1e-6 next to one of 1e6, by hand. Break: taking a class's loss from a total
    that it dominates leaves rounding errors of the large one."""
    logits = torch.tensor([[1e6, -14.0, -14.0]])
    soft = torch.tensor([[1.0, 0.0, 0.0]])
    loss = losslab.loss("one_vs_rest(cross_entropy)")(logits, soft).item()
    assert loss == pytest.approx(2 * math.log1p(math.exp(-14)), rel=1e-5)


def test_one_vs_rest_gradient():
    """Oracle: finite differences, hard, smoothed and soft."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    loss = losslab.loss("one_vs_rest(encouraging(log_end=0.6))", label_smoothing=0.1)
    assert gradcheck(lambda z: loss(z, torch.tensor([1, 3, -100])), logits)
    soft = torch.softmax(torch.randn(3, 4, generator=g).double(), 1)
    assert gradcheck(lambda z: loss(z, soft), logits)


def test_mirror_on_sigmoid_outputs():
    """Oracle: losses.md: MSE + mirror, a sigmoid a class, is 2·Σ|y − σ(z)| − K."""
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    one_hot = torch.nn.functional.one_hot(target, 5).double()
    loss = losslab.loss("one_vs_rest(mean_squared_error(mirror=true))", reduction="none")
    expected = 2 * (one_hot - torch.sigmoid(logits)).abs().sum(1) - 5
    torch.testing.assert_close(loss(logits, target), expected)


def test_users_psi_on_sigmoid():
    """Oracle: the built-in of the same formula, in every option."""
    logits, target = case(4, 3)
    options = {"weight": torch.rand(4, 1), "pos_weight": torch.rand(3), "reduction": "none"}
    ours = losslab.binary_expectation_with_logits(logits, target, **options)
    module = losslab.BinaryOddsLoss(lambda a: torch.sigmoid(-a), **options)
    torch.testing.assert_close(module(logits, target), ours)
    written = losslab.binary_odds_loss(logits, target, lambda a: torch.sigmoid(-a), **options)
    torch.testing.assert_close(written, ours)


def test_errors():
    """Each mistake is refused in words that name what came."""
    z = torch.zeros(2, 3)
    for call, message in [
        (lambda: losslab.binary_cross_entropy_with_logits(z, torch.zeros(2)), r"\(2, 3\) and \(2,"),
        (lambda: losslab.binary_cross_entropy_with_logits(z.long(), z), "floating point"),
        (lambda: losslab.binary_focal_with_logits(z, z, gamma=-1), r"gamma must be in \[0, ∞\)"),
        (lambda: losslab.binary_focal_with_logits(z, z, gama=1), "Did you mean 'gamma'"),
        (lambda: losslab.BinaryFocalWithLogitsLoss(reduction="max"), "got 'max'"),
        (lambda: losslab.OneVsRestLoss(losslab.ComplementEntropyLoss()), "got complement_entropy"),
        (lambda: losslab.OneVsRestLoss(losslab.FocalLoss(), class_reduction="x"), "got 'x'"),
    ]:
        with pytest.raises(losslab.InputError, match=message):
            call()

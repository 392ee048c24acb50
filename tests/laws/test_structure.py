"""What must hold for any loss of logits: symmetries, kinds of target, weights, ignored rows."""

import pytest
import torch

import losslab
from laws.settings import ON_SOFTMAX, ROWWISE_SPECS, SPECS, identify
from laws.test_targets import WEIGHT, classes, normal, soft_target

every_spec = pytest.mark.parametrize("spec", SPECS)
every_setting = pytest.mark.parametrize("setting", ON_SOFTMAX, ids=identify)
SOFTMAX = tuple(spec for spec in SPECS if "one_vs_rest" not in spec)
TAKES_SOFT = tuple(spec for spec in SPECS if spec != "complement_entropy")


def gradient(loss, logits, target, upstream=None):
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, target)
    value.backward(torch.ones_like(value) if upstream is None else upstream)
    return value.detach(), leaf.grad


@pytest.mark.parametrize("spec", SOFTMAX)
def test_gradient_sums_to_zero(spec):
    """Oracle: only differences of logits matter to a softmax, so Σ_j ∂L/∂z_j = 0."""
    logits = normal(6, 4, scale=4.0)
    target, goal = classes(6), soft_target(6, 4)
    for t in [target, goal] if spec in TAKES_SOFT else [target]:
        _, slope = gradient(losslab.loss(spec, reduction="none"), logits, t, normal(6))
        assert (slope.sum(1).abs() <= 1e-14 * (1 + slope.abs().amax(1))).all()


@pytest.mark.parametrize("spec", SOFTMAX)
def test_shift_invariance(spec):
    """Oracle: the same constant added to a row's logits changes nothing (exact: powers of two)."""
    logits = normal(6, 4).mul(64).round().div(64)
    loss = losslab.loss(spec, reduction="none", label_smoothing=0.0)
    value, slope = gradient(loss, logits, classes(6))
    shifted, shifted_slope = gradient(loss, logits + 1024, classes(6))
    torch.testing.assert_close(shifted, value, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(shifted_slope, slope, rtol=1e-13, atol=1e-14)


@every_spec
def test_renaming_classes(spec):
    """Oracle: classes, targets and weights renamed alike leave every loss as it was."""
    logits, target = normal(6, 4), classes(6)
    order = torch.tensor([2, 0, 3, 1])  # new class k is old class order[k]
    renamed = torch.argsort(order)[target]
    smoothing = 0.2 if spec in TAKES_SOFT and "complement" not in spec else 0.0
    options = {"reduction": "none", "label_smoothing": smoothing}
    value, slope = gradient(losslab.loss(spec, weight=WEIGHT, **options), logits, target)
    other, other_slope = gradient(
        losslab.loss(spec, weight=WEIGHT[order], **options), logits[:, order], renamed
    )
    torch.testing.assert_close(other, value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(other_slope, slope[:, order], rtol=1e-12, atol=1e-14)


@every_spec
def test_ignored_rows(spec):
    """Oracle: the batch without them. Their gradient is exactly 0, whatever their logits."""
    logits, target = normal(6, 4), classes(6, seed=3)
    smoothing = 0.2 if spec in TAKES_SOFT and "complement" not in spec else 0.0
    logits[1] = torch.tensor([3e38, -3e38, 0.0, 1.0])
    target[1] = target[4] = 7
    kept = torch.tensor([0, 2, 3, 5])
    for reduction in ("sum", "mean"):
        loss = losslab.loss(
            spec, weight=WEIGHT, reduction=reduction, label_smoothing=smoothing, ignore_index=7
        )
        value, slope = gradient(loss, logits, target)
        alone, alone_slope = gradient(loss, logits[kept], target[kept])
        torch.testing.assert_close(value, alone, rtol=1e-14, atol=0)
        torch.testing.assert_close(slope[kept], alone_slope, rtol=1e-14, atol=1e-17)
        assert (slope[[1, 4]] == 0).all()


@every_spec
def test_weights_multiply(spec):
    """Oracle: w_y · L of each row, and doubling all weights leaves the mean alone."""
    logits, target = normal(7, 4), classes(7)
    plain = losslab.loss(spec, reduction="none")(logits, target)
    weighted = losslab.loss(spec, reduction="none", weight=WEIGHT)(logits, target)
    torch.testing.assert_close(weighted, plain * WEIGHT[target], rtol=1e-14, atol=1e-16)
    once, twice = (losslab.loss(spec, weight=w)(logits, target) for w in (WEIGHT, 2 * WEIGHT))
    torch.testing.assert_close(once, twice, rtol=1e-14, atol=1e-16)


@every_spec
def test_scaling(spec):
    """Oracle: (c·L) = c·L, value and gradient. Break: a coefficient applied to a parameter."""
    if "complement_objective" in spec:
        return  # refused, see test_modules
    logits, target = normal(6, 4), classes(6)
    value, slope = gradient(losslab.loss(spec), logits, target)
    scaled, scaled_slope = gradient(-2.5 * losslab.loss(spec), logits, target)
    torch.testing.assert_close(scaled, -2.5 * value, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(scaled_slope, -2.5 * slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("spec", TAKES_SOFT)
def test_one_hot_is_a_class_index(spec):
    """Oracle: the hard loss. Break: the soft path computing another function."""
    logits, target = normal(8, 4, scale=8.0), classes(8)
    one_hot = torch.nn.functional.one_hot(target, 4).double()
    loss = losslab.loss(spec, reduction="none", weight=WEIGHT)
    (hard, hard_slope), (soft, soft_slope) = (gradient(loss, logits, t) for t in (target, one_hot))
    torch.testing.assert_close(soft, hard, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(soft_slope, hard_slope, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("spec", TAKES_SOFT)
def test_soft_targets_and_smoothing_are_expectations(spec):
    """Oracle: Σ_k t_k L_k from the hard losses of every class; smoothing is t = (1−ε)e_y + ε/C."""
    logits, target, goal = normal(6, 4, scale=5.0), classes(6), soft_target(6, 4)
    loss = losslab.loss(spec, reduction="none")
    per_class = torch.stack([loss(logits, torch.full((6,), k)) for k in range(4)], 1)
    expected = (goal * per_class).sum(1)
    torch.testing.assert_close(loss(logits, goal), expected, rtol=1e-11, atol=1e-13)
    if "complement" in spec:
        return  # the alternating second step is not defined for smoothed targets
    even = 0.7 * torch.nn.functional.one_hot(target, 4).double() + 0.3 / 4
    smoothed = losslab.loss(spec, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(smoothed(logits, target), loss(logits, even), rtol=1e-11, atol=1e-13)


@every_setting
def test_two_classes_are_one_sigmoid(setting):
    """Oracle: the binary loss of z_1 − z_0. Softmax forms that sum over both classes are twice it
    (see test_rowwise)."""
    logits, target = normal(9, 2, scale=4.0), classes(9, count=2)
    binary = getattr(losslab, setting.row.binary_function_name)
    difference = logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(
        losslab.loss(setting.spec, reduction="none")(logits, target),
        binary(difference, target.double(), reduction="none", **setting.parameters),
        rtol=1e-13,
        atol=1e-15,
    )


@pytest.mark.parametrize("spec", ROWWISE_SPECS[:3])
def test_two_classes_are_two_sigmoids(spec):
    """Oracle: squared and absolute error sum over both classes of the softmax, hence twice the
    binary loss of the difference."""
    logits, target = normal(9, 2), classes(9, count=2)
    loss = losslab.loss(spec, reduction="none")
    binary = getattr(losslab, loss.row.binary_function_name)
    difference = logits[:, 1] - logits[:, 0]
    sigmoid = binary(difference, target.double(), reduction="none", **loss.parameters_given)
    torch.testing.assert_close(loss(logits, target), 2 * sigmoid, rtol=1e-13, atol=1e-15)

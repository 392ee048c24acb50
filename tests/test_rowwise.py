"""The losses that need more than the log-odds: Brier, complement entropy, MPCE, class centres."""

import math

import numpy as np
import pytest
import torch

import losslab
from oracles import derivatives, rowwise

ROWS = {
    "mean_squared_error": lambda row, k: rowwise.brier(row, k),
    "mean_squared_error(mirror=true)": lambda row, k: rowwise.brier(row, k, mirror=True),
    "mean_absolute_error": lambda row, k: 2 * _miss(row, k),
    "complement_entropy": lambda row, k: rowwise.complement_entropy_row(row, k) / (len(row) - 1),
    "maximum_probability_cross_entropy": rowwise.maximum_probability_cross_entropy,
}
every_row_loss = pytest.mark.parametrize("spec", ROWS)


def _miss(row, k):
    """1 − p_k by the softmax as printed."""
    p = np.exp(np.asarray(row) - np.max(row))
    return 1 - p[k] / p.sum()


def case(n, c, scale=2.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=g, dtype=torch.float64) * scale
    return logits, torch.randint(c, (n,), generator=g)


@pytest.mark.parametrize("scale", [0.1, 2.0, 15.0])
@every_row_loss
def test_value(spec, scale):
    """Oracle: the printed sum over classes, one row at a time."""
    logits, target = case(8, 5, scale)
    got = losslab.loss(spec, reduction="none")(logits, target)
    truth = [ROWS[spec](row, k) for row, k in zip(logits.numpy(), target.tolist(), strict=True)]
    truth = torch.tensor(truth, dtype=torch.float64)
    torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-13)


@every_row_loss
def test_gradient(spec):
    """Oracle: extrapolated differences of the oracle's value, under random upstream gradients."""
    logits, target = case(4, 4, seed=5)
    leaf = logits.clone().requires_grad_()
    upstream = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64)
    losslab.loss(spec, reduction="none")(leaf, target).backward(upstream)
    for n, row in enumerate(logits.numpy()):
        k = int(target[n])
        slope = derivatives.gradient(lambda z, k=k: ROWS[spec](z, k), row, reach=0.02)
        expected = upstream[n] * torch.tensor(slope)
        torch.testing.assert_close(leaf.grad[n], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("spec", [s for s in ROWS if s != "complement_entropy"])
def test_soft_targets_are_expected_losses(spec):
    """Oracle: Σ_k w_k t_k L_k of the oracle's rows; for Brier it exceeds Σ(t − p)² by 1 − Σt²."""
    logits, _ = case(5, 4, 4.0)
    g = torch.Generator().manual_seed(9)
    t = torch.softmax(torch.randn(5, 4, generator=g, dtype=torch.float64), 1)
    w = torch.tensor([0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
    rows = np.array([[ROWS[spec](row, k) for k in range(4)] for row in logits.numpy()])
    expected = (w * t * torch.tensor(rows)).sum(1)
    got = losslab.loss(spec, reduction="none", weight=w)(logits, t)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    if spec == "mean_squared_error":
        squares = (t - torch.softmax(logits, 1)).square().sum(1)
        plain = losslab.loss(spec, reduction="none")(logits, t)
        torch.testing.assert_close(plain, squares + 1 - t.square().sum(1))


def test_brier_keeps_small_values():
    """Oracle: by hand at gap 30: (1 − p)² + p_0² ≈ 2·e^−60. Break: 1 − 2p_y + Σp², which is 0."""
    loss = losslab.mean_squared_error(torch.tensor([[0.0, 30.0]]), torch.tensor([1])).item()
    assert loss == pytest.approx(2 * math.exp(-60), rel=1e-5)
    soft = losslab.mean_squared_error(torch.tensor([[0.0, 30.0]]), torch.tensor([[0.0, 1.0]]))
    assert soft.item() == pytest.approx(2 * math.exp(-60), rel=1e-5)


def test_mirror_is_the_expectation_loss_rescaled():
    """Oracle: losses.md: MSE + mirror bonus summed over K classes = 4(1 − p) − K."""
    for classes in (2, 3, 7):
        logits, target = case(6, classes)
        mirrored = losslab.mean_squared_error(logits, target, mirror=True, reduction="none")
        expected = 4 * losslab.expectation_loss(logits, target, reduction="none") - classes
        torch.testing.assert_close(mirrored, expected)


def test_mpce_near_ties():
    """Oracle: p_max (1 − e^−gap)·(−log p), by hand at a gap of 1e-6 in float32. Break: the
    difference of two rounded probabilities."""
    gap = float(torch.tensor(1e-6))
    loss = losslab.maximum_probability_cross_entropy(
        torch.tensor([[0.0, gap]]), torch.tensor([0])
    ).item()
    assert loss == pytest.approx(0.5 * gap * math.log(2), rel=1e-4)


def test_mpce_is_silent_where_the_true_class_leads():
    """Oracle: equation 7: the factor max_j p_j − p_y is 0."""
    logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    loss = losslab.maximum_probability_cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_complement_entropy_leaves_the_true_class_alone():
    """Oracle: ∂/∂z_y = 0 exactly, and the minimum −log(C − 1)/(C − 1) at even wrong classes."""
    logits = torch.tensor([[0.3, 1.0, -2.0, 0.5], [5.0, 1.0, 1.0, 1.0]], requires_grad=True)
    value = losslab.complement_entropy(logits, torch.tensor([0, 0]), reduction="none")
    value.sum().backward()
    assert (logits.grad[:, 0] == 0).all()
    assert value[1].item() == pytest.approx(-math.log(3) / 3)
    assert (logits.grad[1].abs() < 1e-7).all()
    with pytest.raises(losslab.InputError, match="needs class-index targets"):
        losslab.complement_entropy(logits, torch.tensor([0, 0]), label_smoothing=0.1)
    with pytest.raises(losslab.InputError, match="needs class-index targets"):
        losslab.complement_entropy(logits, torch.full((2, 4), 0.25))


def test_complement_objective_steps():
    """Oracle: oracles.rowwise, normalised by batch and C − 1; the first step is the wrapped loss.
    Break: one step only, options not handed on, or smoothing applied to the complement."""
    logits, target = case(6, 4)
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    loss = losslab.loss("complement_objective(cross_entropy)")
    first, second = loss.steps
    plain = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(first(logits, target), plain)
    torch.testing.assert_close(loss(logits, target), plain)
    truth = rowwise.complement_objective(logits, target)
    assert second(logits, target).item() == pytest.approx(truth, rel=1e-12)
    target[0] = -100
    both = losslab.loss("complement_objective(focal + expectation)", weight=weight,
                        label_smoothing=0.1)  # fmt: skip
    first, second = both.steps
    smoothed = losslab.loss("focal + expectation", weight=weight, label_smoothing=0.1)
    torch.testing.assert_close(first(logits, target), smoothed(logits, target))
    torch.testing.assert_close(
        second(logits, target), losslab.complement_entropy(logits, target, weight=weight)
    )


def test_alternating_steps_train():
    """Oracle: what complement training is for: after both steps the wrong classes are evener than
    after cross-entropy alone. Break: a second step that does nothing, or points uphill."""

    def spread(spec):
        torch.manual_seed(0)
        logits = torch.nn.Parameter(torch.randn(16, 5))
        target = torch.arange(16) % 5
        optimizer = torch.optim.SGD([logits], lr=3.0)
        loss = losslab.loss(spec)
        for _ in range(30):
            for step in loss.steps:
                optimizer.zero_grad()
                step(logits, target).backward()
                optimizer.step()
        return losslab.complement_entropy(logits, target).item()

    assert spread("complement_objective(cross_entropy)") < spread("cross_entropy") - 0.01


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (2, 5), (4, 3), (10, 9), (10, 64)])
def test_centres(classes, dim):
    """Oracle: oracles.rowwise, and the defining property: norm s, cosines −1/(C − 1)."""
    centers = losslab.mahalanobis_centers(classes, dim, scale=3.0).double()
    truth = torch.tensor(rowwise.class_centres(classes, dim, 3.0))
    torch.testing.assert_close(centers, truth, rtol=1e-6, atol=1e-6)
    expected = torch.full((classes, classes), -9 / (classes - 1), dtype=torch.float64)
    expected.fill_diagonal_(9.0)
    torch.testing.assert_close(centers @ centers.T, expected, rtol=1e-5, atol=1e-5)


def test_centre_loss():
    """Oracle: ½‖f − μ_y‖² row by row; prediction is the nearest centre."""
    g = torch.Generator().manual_seed(0)
    features, target = torch.randn(6, 8, generator=g), torch.randint(4, (6,), generator=g)
    for reduction in ("none", "sum", "mean"):
        loss = losslab.MaxMahalanobisCenterLoss(4, 8, scale=2.0, reduction=reduction)
        rows = torch.tensor(
            [
                rowwise.max_mahalanobis_centre(f, int(y), loss.centers.numpy())
                for f, y in zip(features.numpy(), target, strict=True)
            ],
            dtype=torch.float32,
        )
        expected = rows if reduction == "none" else getattr(rows, reduction)()
        torch.testing.assert_close(loss(features, target), expected)
        function = losslab.max_mahalanobis_center_loss
        assert torch.equal(
            function(features, target, loss.centers, reduction=reduction), loss(features, target)
        )
    torch.testing.assert_close(loss.logits(loss.centers).argmax(1), torch.arange(4))
    distances = (features[:, None] - loss.centers).square().sum(2) / 2
    torch.testing.assert_close(loss.logits(features), -distances, rtol=1e-4, atol=1e-4)


def test_centre_errors():
    """Impossible centres and classes are refused, not wrapped around."""
    for classes, dim in ((1, 3), (5, 3)):
        with pytest.raises(losslab.InputError, match="num_classes"):
            losslab.mahalanobis_centers(classes, dim)
    with pytest.raises(IndexError):
        losslab.MaxMahalanobisCenterLoss(4, 8)(torch.zeros(1, 8), torch.tensor([-1]))
    with pytest.raises(losslab.InputError, match="reduction"):
        losslab.MaxMahalanobisCenterLoss(4, 8, reduction="avg")

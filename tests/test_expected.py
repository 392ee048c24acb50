"""Label smoothing and soft targets as one autograd node, against float64 and the oracles."""

import pytest
import torch
import torch.nn.functional as F

import losslab
from losslab.logodds import native, plain
from losslab.losses import expected, psi
from losslab.losses.reduction import OddsRows, _composed

needs_native = pytest.mark.skipif(native.unavailable() is not None, reason="no native kernel")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# by a native program, by the same with a branch, and by pieces of rows (no instruction for erf)
PSIS = {
    "cross_entropy": psi.cross_entropy,
    "encouraging": lambda a: psi.encouraging(a, rho=0.7),
    "erf": lambda a: torch.erf(-a / 4) + torch.relu(1 - a),
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def truth(logits, target, psi, options, upstream):
    """Value and gradient in float64 by plain operations, the classes one after another."""
    leaf = logits.detach().double().requires_grad_()
    classes, eps = logits.shape[1], options.get("label_smoothing", 0.0)
    index = [torch.full((len(logits),), k) for k in range(classes)]
    every = torch.stack([psi(plain.log_odds(leaf, k)) for k in index], 1)
    weight = options.get("weight")
    weight = torch.ones(classes).double() if weight is None else weight.double()
    if target.is_floating_point():
        goal, kept, count = target.double(), torch.ones(len(logits)).double(), len(target)
    else:
        kept = (target != options["ignore_index"]).double()
        goal = F.one_hot(target.where(kept > 0, 0), classes).double()
        count = (weight[target.where(kept > 0, 0)] * kept).sum()
    goal = (goal * (1 - eps) + eps / classes) * weight
    losses = (goal * every).sum(1) * kept
    if options["reduction"] != "none":
        losses = losses.sum() / (count if options["reduction"] == "mean" else 1)
    losses.backward(upstream.double())
    return losses.detach(), leaf.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 7, 16, 33, 255, 256, 257, 600])
def test_values_and_gradients(level, dtype, classes):
    """Oracle: plain operations in float64. Break: a wrong seam between chunks or between rows that
    share one, a share of the true class in its neighbour, a weight or an ignored row forgotten."""
    g = generator(classes)
    logits = (torch.randn(29, classes, generator=g) * 4).to(dtype)
    hard = torch.randint(classes, (29,), generator=g)
    soft = torch.rand(29, classes, generator=g) * (torch.rand(29, classes, generator=g) < 0.6)
    weight = torch.rand(classes, generator=g) + 0.2
    cases = [
        (hard, {"label_smoothing": 0.1, "reduction": "mean", "ignore_index": -100}),
        (hard, {"label_smoothing": 0.3, "reduction": "none", "ignore_index": int(hard[3])}),
        (
            hard.where(torch.arange(29) % 3 > 0, -7),
            {"label_smoothing": 0.2, "reduction": "mean", "ignore_index": -7, "weight": weight},
        ),
        (soft, {"reduction": "mean"}),
        (soft, {"label_smoothing": 0.2, "reduction": "none", "weight": weight}),
    ]
    for name, function in PSIS.items():
        for target, options in cases:
            upstream = torch.randn(29 if options["reduction"] == "none" else (), generator=g)
            upstream = upstream.to(dtype)
            value, gradient = truth(logits, target, function, options, upstream)
            leaf = logits.clone().requires_grad_()
            loss = losslab.odds_loss(leaf, target, function, **options)
            assert type(loss.grad_fn).__name__ == "_ExpectedLossBackward", name
            loss.backward(upstream)
            narrow, least = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
            torch.testing.assert_close(loss.double(), value, rtol=3e-6 + narrow, atol=1e-6)
            size = gradient.abs().amax(1, keepdim=True)
            allowed = (3e-6 + narrow) * gradient.abs() + 2e-6 * size + least * narrow
            assert ((leaf.grad.double() - gradient).abs() <= allowed).all(), name


@needs_native
def test_layouts():
    """Oracle: the same numbers in an ordinary matrix. Break: a stride taken for granted."""
    g = generator(1)
    logits, target = torch.randn(6, 9, 5, generator=g), torch.randint(9, (6, 5), generator=g)
    soft = torch.rand(6, 9, 5, generator=g)
    flat = logits.movedim(1, -1).reshape(-1, 9)
    for kind, matrix in (
        (target, target.reshape(-1)),
        (soft, soft.movedim(1, -1).reshape(-1, 9)),
    ):
        for reduction in ("none", "mean"):
            options = {"label_smoothing": 0.1, "reduction": reduction}
            leaves = logits.clone().requires_grad_(), flat.clone().requires_grad_()
            losses = [
                losslab.focal_loss(z, t, **options)
                for z, t in zip(leaves, (kind, matrix), strict=True)
            ]
            assert losses[0].shape == (target.shape if reduction == "none" else ())
            assert torch.equal(losses[0].reshape(-1), losses[1].reshape(-1))
            upstream = torch.randn(losses[0].shape, generator=g)
            losses[0].backward(upstream)
            losses[1].backward(upstream.reshape(losses[1].shape))
            assert torch.equal(leaves[0].grad.movedim(1, -1).reshape(-1, 9), leaves[1].grad)
    wide = torch.randn(7, 40, generator=g)
    for view in (wide[:, 3:20], wide[:, ::3], wide.t()[:7, :7], wide[:1].expand(7, -1)):
        y = torch.randint(view.shape[1], (len(view),), generator=g)
        mine = losslab.cross_entropy(view, y, label_smoothing=0.1)
        torch.testing.assert_close(mine, F.cross_entropy(view, y, label_smoothing=0.1))
        share = torch.rand(7, 80, generator=g)[:, : 2 * view.shape[1] : 2]
        assert share.shape == view.shape
        torch.testing.assert_close(losslab.cross_entropy(view, share), F.cross_entropy(view, share))


@needs_native
def test_a_class_without_a_share_counts_as_nothing():
    """Oracle: the row without that class. Break: 0·∞ for a class masked by −inf logits."""
    logits = torch.tensor([[0.3, -torch.inf, 1.2, -0.4], [0.1, 0.2, -torch.inf, -torch.inf]])
    share = torch.tensor([[0.5, 0.0, 0.25, 0.25], [0.9, 0.1, 0.0, 0.0]])
    for kept, row in (([0, 2, 3], 0), ([0, 1], 1)):
        leaf, small = logits.clone().requires_grad_(), logits[row : row + 1, kept].clone()
        small.requires_grad_()
        mine = losslab.encouraging_loss(leaf, share, reduction="none")[row]
        other = losslab.encouraging_loss(small, share[row : row + 1, kept], reduction="sum")
        torch.testing.assert_close(mine, other)
        mine.backward()
        other.backward()
        torch.testing.assert_close(leaf.grad[row, kept], small.grad[0])
        assert leaf.grad.sum().abs() < 1e-6 and not leaf.grad.isnan().any()


@needs_native
def test_means_over_nothing():
    """Oracle: F.cross_entropy. Break: a division by zero in Python, a NaN in the gradient."""
    logits = torch.randn(3, 4, generator=generator(2), requires_grad=True)
    nobody = torch.full((3,), -100)
    for loss in (F.cross_entropy, losslab.cross_entropy):
        assert loss(logits, nobody, label_smoothing=0.1).isnan()
    value = losslab.cross_entropy(logits, nobody, label_smoothing=0.1, zero_if_empty=True)
    value.backward()
    assert value == 0 and torch.equal(logits.grad, torch.zeros(3, 4))


@needs_native
def test_more_than_one_derivative():
    """Oracle: the plain formula in float64. Break: a batch of gradients, or a gradient that will be
    differentiated, handed to the kernel."""
    g = generator(3)
    logits, target = torch.randn(5, 6, generator=g), torch.randint(6, (5,), generator=g)
    soft, v = torch.rand(5, 6, generator=g), torch.randn(5, 6, generator=g)
    for name, function in PSIS.items():
        for kind, options in ((target, {"label_smoothing": 0.2}), (soft, {}), (target, {})):
            found = []
            for z, t in ((logits, kind), (logits.double(), soft.double())):
                t = kind if kind is target else t

                def losses(x, t=t, options=options, function=function):
                    return losslab.odds_loss(x, t, function, reduction="none", **options)

                leaf = z.clone().requires_grad_()
                (grad,) = torch.autograd.grad(losses(leaf).sum(), leaf, create_graph=True)
                (product,) = torch.autograd.grad((grad * v).sum(), leaf)
                jacobian = torch.autograd.functional.jacobian(losses, z, vectorize=True)
                tangent = torch.func.jvp(losses, (z,), (v.to(z.dtype),))[1]
                found.append((product, jacobian, tangent))
            for mine, true in zip(*found, strict=True):
                message = f"{name} {options}"
                torch.testing.assert_close(
                    mine.double(), true, rtol=2e-5, atol=2e-6, msg=lambda m, t=message: f"{t}: {m}"
                )


@needs_native
def test_the_composed_way_agrees():
    """Oracle: the differentiable composition, which other devices take. Break: one of the two."""
    g = generator(4)
    logits = torch.randn(40, 11, generator=g)
    target = torch.randint(11, (40,), generator=g)
    weight = torch.rand(11, generator=g)
    rows = OddsRows(psi.focal)
    fast = losslab.focal_loss(logits, target, weight=weight, label_smoothing=0.1)
    slow = _composed(logits, target, rows, weight, -100, "mean", 0.1, False)
    torch.testing.assert_close(fast, slow)
    assert expected.native_odds(None, psi.focal) is not None

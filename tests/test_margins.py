"""Changes to the logits (margins, priors), class weights, and their way into any loss."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import losslab
from laws.settings import SPECS
from losslab.experiment.shares import shares
from losslab.reading import Reading
from oracles import margins

COUNTS = [100, 30, 7, 1]


def case(n=6, c=4, dim=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=g, dtype=torch.float64)
    return features, torch.randint(c, (n,), generator=g)


def large_margin(margin, annealing=0.0, dim=5, classes=4):
    torch.manual_seed(1)
    return losslab.LargeMarginLinear(dim, classes, margin=margin, annealing=annealing).double()


@pytest.mark.parametrize("annealing", [0.0, 3.5])
@pytest.mark.parametrize("margin", [1, 2, 3, 4])
def test_large_margin(margin, annealing):
    """Oracle: φ(θ) = (−1)^k cos(mθ) − 2k through the angle itself, over many angles. Break: a
    multiple-angle polynomial or a piece k off by one."""
    layer = large_margin(margin, annealing)
    features, target = case(n=60)
    weight = layer.weight.detach()
    truth = margins.large_margin_logits(features, weight.numpy(), target, margin, annealing)
    torch.testing.assert_close(layer(features, target), torch.tensor(truth))
    assert torch.equal(layer(features), features @ weight.T)


@pytest.mark.parametrize("margin", [2, 3, 4])
def test_large_margin_angle_over_the_half_circle(margin):
    """Oracle: the angle function at 721 angles, the borders of its pieces included: continuous
    and falling. Break: a jump where k changes."""
    theta = np.linspace(0, math.pi, 721)
    features = torch.tensor(np.stack([np.cos(theta), np.sin(theta)], 1))
    layer = large_margin(margin, dim=2, classes=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        own = layer(features, torch.zeros(721, dtype=torch.long))[:, 0].numpy()
    truth = [margins.large_margin_angle(t, margin) for t in theta]
    np.testing.assert_allclose(own, truth, atol=1e-12)
    assert (np.diff(own) < 1e-12).all()


def test_large_margin_gradient():
    """Oracle: finite differences in features and class vectors."""
    for margin in (2, 3, 4):
        layer = large_margin(margin, 0.5)
        features, target = case(n=4)
        features.requires_grad_()

        def loss(x, w, layer=layer, target=target):
            return torch.func.functional_call(layer, {"weight": w}, (x, target))

        assert gradcheck(loss, (features, layer.weight))


def test_large_margin_makes_the_task_harder():
    """Oracle: Liu et al.: the true class's logit never gains, and loses the more the larger m."""
    features, target = case(n=40)
    own = [
        large_margin(m)(features, target).gather(1, target[:, None]).squeeze(1)
        for m in (1, 2, 3, 4)
    ]
    for easier, harder in itertools.pairwise(own):
        assert (harder <= easier + 1e-12).all()


def test_large_margin_ignores_rows_and_survives_zero_features():
    """Oracle: rows with ignore_index keep plain logits; a zero feature has finite gradients."""
    layer = large_margin(3)
    features, target = case()
    features[2] = 0
    target[1] = -100
    features.requires_grad_()
    logits = layer(features, target)
    assert torch.equal(logits[1], (features @ layer.weight.T)[1])
    loss = losslab.encouraging_loss(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()
    assert (features.grad[1] == 0).all()


def test_large_margin_errors():
    """Margins outside 1 to 4 and soft targets are refused."""
    for margin in (0, 5, 2.5, True, "2"):
        with pytest.raises(losslab.InputError, match="must be 1, 2, 3 or 4"):
            losslab.LargeMarginLinear(3, 4, margin=margin)
    with pytest.raises(losslab.InputError, match="annealing must be at least 0"):
        losslab.LargeMarginLinear(3, 4, annealing=-1.0)
    with pytest.raises(losslab.InputError, match="class-index targets"):
        losslab.LargeMarginLinear(3, 4)(torch.zeros(2, 3), torch.zeros(2, 4))
    assert large_margin(2.0).margin == 2


def test_additive_margin():
    """Oracle: s(cos θ_j − m·[j = y]) from features and class vectors."""
    features, target = case()
    torch.manual_seed(0)
    layer = losslab.CosineLinear(5, 4).double()
    truth = margins.additive_margin_logits(features, layer.weight.detach(), target, 0.2, 7.0)
    got = losslab.AdditiveMargin(0.2, 7.0)(layer(features), target)
    torch.testing.assert_close(got, torch.tensor(truth))


def test_ldam():
    """Oracle: Δ_j ∝ n_j^(−1/4) with the rarest class's margin the largest, 0.5."""
    logits, target = torch.rand(6, 4, dtype=torch.float64), case()[1]
    truth = margins.ldam_logits(logits, target, COUNTS, max_margin=0.4, scale=12.0)
    got = losslab.LDAMMargin(COUNTS, max_margin=0.4, scale=12.0).double()(logits, target)
    torch.testing.assert_close(got, torch.tensor(truth), rtol=1e-6, atol=1e-6)


def test_logit_adjustment():
    """Oracle: z + τ log π. On balanced counts it changes no loss."""
    logits, target = torch.rand(6, 4, dtype=torch.float64), case()[1]
    truth = margins.adjusted_logits(logits, COUNTS, tau=1.5)
    got = losslab.LogitAdjustment(COUNTS, tau=1.5)(logits, target)
    torch.testing.assert_close(got, torch.tensor(truth), rtol=1e-6, atol=1e-6)
    even = losslab.loss("logit_adjustment(focal, counts=[5, 5, 5, 5])")
    torch.testing.assert_close(even(logits, target), losslab.focal_loss(logits, target))


CHANGES = {
    "additive_margin": ("margin=0.2, scale=3", losslab.AdditiveMargin(0.2, 3.0)),
    "ldam": ("counts=[100, 30, 7, 1], scale=2", losslab.LDAMMargin(COUNTS, scale=2.0)),
    "logit_adjustment": ("counts=[100, 30, 7, 1], tau=0.5", losslab.LogitAdjustment(COUNTS, 0.5)),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("spec", SPECS[::2])
def test_any_loss_on_changed_logits(spec, name):
    """Oracle: the loss itself on logits changed by hand, with weights and ignored rows, for a batch
    and for images. Break: an ignored target that moves a margin, classes along another axis."""
    arguments, change = CHANGES[name]
    weight = torch.tensor([1.0, 0.5, 2.0, 3.0])
    loss = losslab.loss(f"{name}({spec}, {arguments})", weight=weight)
    plain = losslab.loss(spec, weight=weight)
    g = torch.Generator().manual_seed(4)
    logits, target = torch.randn(5, 4, generator=g), torch.tensor([0, 3, -100, 2, 1])
    expected = plain(change(logits, target), target)
    torch.testing.assert_close(loss(logits, target), expected)
    rows = logits.view(5, 4, 1).expand(5, 4, 2)
    torch.testing.assert_close(loss(rows, target.view(5, 1).expand(5, 2)), expected)
    assert losslab.loss(loss.spec).spec == loss.spec
    by_hand = losslab.AdjustedLoss(change, plain)
    assert torch.equal(by_hand(logits, target), loss(logits, target))


def test_one_row_without_batch():
    """Oracle: the same row in a batch of one."""
    logits, target = torch.tensor([0.3, -1.0, 0.2, 0.9]), torch.tensor(3)
    for _, change in CHANGES.values():
        assert torch.equal(change(logits, target), change(logits[None], target[None])[0])


def test_margins_keep_the_dtype():
    """Oracle: logits in, logits of the same type out, so that autocast and half training work."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for _, change in CHANGES.values():
            assert change(torch.zeros(2, 4, dtype=dtype), torch.tensor([0, 1])).dtype == dtype


def test_alternating_steps_pass_through():
    """Oracle: both steps of the complement objective on changed logits. Break: only the first."""
    loss = losslab.loss("logit_adjustment(complement_objective(focal), counts=[100, 30, 7, 1])")
    change = losslab.LogitAdjustment(COUNTS)
    logits, target = torch.randn(6, 4), case()[1]
    first, second = loss.steps
    changed = change(logits, target)
    torch.testing.assert_close(first(logits, target), losslab.focal_loss(changed, target))
    torch.testing.assert_close(second(logits, target), losslab.complement_entropy(changed, target))


def test_alternating_steps_add_up_in_pieces():
    """Oracle: the whole batch. Break: class weights that nobody finds in a step, so that its pieces
    count by their rows."""
    loss = losslab.loss(
        "logit_adjustment(complement_objective(focal), counts=[100, 30, 7, 1])",
        weight=torch.tensor([0.1, 0.5, 2.0, 5.0]),
    )
    logits, target = torch.randn(12, 4), case(12)[1]
    for step in loss.steps:
        pieces = shares(target, step, Reading(), ranks=2, rank=0, pieces=2)
        pieces += shares(target, step, Reading(), ranks=2, rank=1, pieces=2)
        added = sum(part * step(logits[rows], target[rows]) for rows, part in pieces)
        torch.testing.assert_close(added, step(logits, target))


def test_saved_and_copied():
    """Oracle: the original's values after pickling, copying and state_dict."""
    logits, target = torch.randn(6, 4), case()[1]
    for name, (arguments, _) in CHANGES.items():
        loss = losslab.loss(f"{name}(encouraging, {arguments})")
        expected = loss(logits, target)
        other = losslab.loss(f"{name}(encouraging, {arguments})")
        other.load_state_dict(loss.state_dict())
        for twin in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), other):
            assert torch.equal(twin(logits, target), expected)
            assert twin.spec == loss.spec
        assert name in repr(loss) or "AdjustedLoss" in repr(loss)


def test_large_counts_keep_their_digits():
    """Oracle: ImageNet's 1,281,167 images. Break: a canonical spec rounded to six digits, under
    which different data share one run."""
    loss = losslab.loss("ldam(cross_entropy, counts=[1281167, 300.5])")
    assert "counts=[1281167, 300.5]" in loss.spec
    assert losslab.loss(loss.spec).change.counts == [1281167, 300.5]


@pytest.mark.parametrize("counts", [[90, 10], COUNTS, [1, 1, 1], [10**7, 1]])
def test_class_weights(counts):
    """Oracle: inverse frequency and effective number, summing to the number of classes."""
    got = losslab.class_weights(counts)
    truth = margins.inverse_frequency_weights(counts)
    np.testing.assert_allclose(got.numpy(), truth, rtol=1e-6)
    for beta in (0.0, 0.9, 0.9999, 1 - 1e-12):
        got = losslab.class_weights(counts, "effective_number", beta=beta)
        truth = margins.effective_number_weights(counts, beta)
        np.testing.assert_allclose(got.numpy(), truth, rtol=1e-5)
        assert got.sum().item() == pytest.approx(len(counts))


def test_errors():
    """Each mistake says what came."""
    z, soft = torch.zeros(2, 4), torch.full((2, 4), 0.25)
    for call, message in [
        (lambda: losslab.class_weights([3, 0]), "class 1 has 0"),
        (lambda: losslab.class_weights([3, math.nan]), "class 1 has nan"),
        (lambda: losslab.class_weights([5]), "there are 1 counts"),
        (lambda: losslab.class_weights([1, 2], "inverse"), "got 'inverse'"),
        (lambda: losslab.class_weights([1, 2], "effective_number", beta=1.0), "beta must be"),
        (lambda: losslab.class_weights("many"), "counts must be a list"),
        (lambda: losslab.AdditiveMargin(margin=-0.1), "margin must be at least 0; got -0.1"),
        (lambda: losslab.AdditiveMargin(scale=0), "scale must be positive; got 0"),
        (lambda: losslab.LDAMMargin([1, -2]), "class 1 has -2"),
        (lambda: losslab.LDAMMargin([1, 2], max_margin=math.inf), "max_margin"),
        (lambda: losslab.LogitAdjustment([1, 2], tau=-1), "tau must be at least 0"),
        (lambda: losslab.AdditiveMargin()(z, soft), "class-index targets"),
        (lambda: losslab.LDAMMargin(COUNTS)(z, soft), "class-index targets"),
    ]:
        with pytest.raises(losslab.InputError, match=message):
            call()


def test_counts_of_other_classes():
    """A prior of three classes on logits of four is refused in words."""
    z = torch.zeros(2, 4)
    for change in (losslab.LDAMMargin([1, 2, 3]), losslab.LogitAdjustment([1, 2, 3])):
        with pytest.raises(losslab.InputError, match=r"counts of 3 classes.*4 classes"):
            change(z, torch.tensor([0, 1]))

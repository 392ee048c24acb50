"""No NaN from finite logits, ever: every loss, target, reduction and dtype, at any magnitude."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import losslab
from laws.settings import SPECS

every_spec = pytest.mark.parametrize("spec", SPECS)


def unbounded(spec: str) -> bool:
    """−a far out, or a difference: +∞ and −∞ may then meet in one mean, whose value is NaN."""
    return "eps=0" in spec or " - " in spec


def extreme_logits(classes: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of the largest, smallest and ordinary finite numbers in many combinations."""
    top = torch.finfo(dtype).max
    values = [top, -top, top / 4, -1e4, 0.0, 1.0, -200.0, 17.0, torch.finfo(dtype).tiny]
    g = torch.Generator().manual_seed(classes)
    picked = torch.randint(len(values), (12, classes), generator=g)
    rows = torch.tensor(values, dtype=torch.float64)[picked]  # half of them at random
    rows[0] = top
    rows[1] = -top
    rows[2] = 0.0
    rows[3], rows[3, 0] = -top, top
    rows[4], rows[4, 0] = top, -top
    rows[5, -1] = top
    return rows.to(dtype)


def targets(classes: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    index = torch.arange(12) % classes
    index[:6] = 0
    soft = torch.zeros(12, classes, dtype=dtype)
    soft[torch.arange(12), index] = 1
    soft[::3] = 1 / classes
    soft[1::3, 0] = 0
    ignoring = index.clone()
    ignoring[::5] = -100
    return {"index": index, "ignoring": ignoring, "soft": soft}


# kind of target, label smoothing, whether every other class weighs 0
OPTIONS = [
    ("index", 0.0, False),
    ("index", 1.0, False),
    ("index", 0.1, True),
    ("ignoring", 0.1, False),
    ("ignoring", 0.0, True),
    ("soft", 0.0, False),
    ("soft", 0.1, True),
]


@every_spec
def test_never_nan(spec):
    """Oracle: not NaN, in value and in gradient. Break: 0·∞ where a loss overflows and its weight
    or target is 0, ∞ − ∞ between formulas, a slope that is infinite at a = −∞."""
    for dtype, classes in [
        *((torch.float32, c) for c in (1, 2, 3, 1000)),
        (torch.float16, 3),
        (torch.bfloat16, 3),
    ]:
        logits, goals = extreme_logits(classes, dtype), targets(classes, dtype)
        weight = torch.ones(classes)
        weight[1::2] = 0
        for kind, smoothing, weighted in OPTIONS[:: 1 if classes == 3 else 3]:
            if "complement" in spec and (kind == "soft" or smoothing):
                continue
            options = {"label_smoothing": smoothing, "weight": weight if weighted else None}
            what = (dtype, classes, kind, options)
            leaf = logits.clone().requires_grad_()
            rows = losslab.loss(spec, reduction="none", **options)(leaf, goals[kind])
            rows.sum().backward()
            assert unbounded(spec) or not rows.isnan().any(), what
            assert not leaf.grad.isnan().any(), what
            with torch.no_grad():
                mean = losslab.loss(spec, **options)(logits, goals[kind])
            assert unbounded(spec) or not mean.isnan(), what


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(
    spec=st.sampled_from([s for s in SPECS if not unbounded(s)]),
    rows=st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 100),
)
@settings(max_examples=150, deadline=None)
def test_never_nan_on_any_finite_logits(spec, rows, smoothing, seed):
    """Oracle: not NaN; hypothesis looks for logits that the list above lacks."""
    if "complement" in spec:
        smoothing = 0.0
    logits = torch.tensor(rows, requires_grad=True)
    target = torch.randint(3, (len(rows),), generator=torch.Generator().manual_seed(seed))
    weight = torch.tensor([1.0, 0.0, 2.0])
    loss = losslab.loss(spec, reduction="sum", label_smoothing=smoothing, weight=weight)
    value = loss(logits, target)
    value.backward()
    assert not value.isnan()
    assert not logits.grad.isnan().any()


@pytest.mark.parametrize("spec", ["exponential", "squared_hinge", "mean_squared_error"])
def test_half_gradients_meet_in_float32(spec):
    """Oracle: not NaN. Break: the hard and the smoothed part each overflow to ±∞ in half precision
    and are then added."""
    top = torch.finfo(torch.float16).max
    logits = torch.tensor([[-top, 0.0, 17.0], [17.0, -top, 0.0], [0.0, 17.0, -200.0]]).half()
    for target in (0, 1, 2):
        leaf = logits.clone().requires_grad_()
        loss = losslab.loss(spec, label_smoothing=0.1, reduction="sum")
        loss(leaf, torch.full((3,), target)).backward()
        assert not leaf.grad.isnan().any()


@pytest.mark.parametrize(
    "psi", [lambda a: torch.relu(-a).square(), lambda a: torch.nn.functional.softplus(-a).square()]
)
def test_users_psi_with_an_infinite_slope(psi):
    """Oracle: rows and classes that nothing looks at contribute exactly 0, though ψ'(−∞) = −∞.
    Break: 0·∞ from an ignored row, or from a masked class whose target is 0."""
    leaf = torch.tensor([[1.0, 0.2, 0.4], [-3e38, 3e38, 0.0]], requires_grad=True)
    losslab.odds_loss(leaf, torch.tensor([0, -100]), psi).backward()
    assert leaf.grad[0].isfinite().all()
    assert (leaf.grad[1] == 0).all()
    soft = torch.tensor([[0.3, 0.7, 0.0]])
    for loss in (losslab.OddsLoss(psi), losslab.OneVsRestLoss(losslab.OddsLoss(psi))):
        masked = torch.tensor([[1.0, 0.2, -math.inf]], requires_grad=True)
        value = loss(masked, soft)
        value.backward()
        torch.testing.assert_close(value, loss(masked[:, :2], soft[:, :2]))
        assert masked.grad.isfinite().all()
    certain = torch.tensor([math.inf, -math.inf], requires_grad=True)
    value = losslab.binary_odds_loss(certain, torch.tensor([1.0, 0.0]), psi)
    value.backward()
    assert value == 0
    assert (certain.grad == 0).all()


@every_spec
def test_masked_classes(spec):
    """Oracle: the problem without the masked class (logit −∞). Break: −∞ − (−∞), or a loss of
    the masked class multiplied by its zero target."""
    logits = torch.tensor([[1.0, 0.2, -math.inf], [0.3, 0.9, -math.inf]], dtype=torch.float64)
    target = torch.tensor([0, 0])
    if "one_vs_rest" in spec or spec == "complement_entropy" or "mirror" in spec:
        return  # count their classes, masked or not
    loss = losslab.loss(spec, reduction="none")
    masked, alone = logits.clone().requires_grad_(), logits[:, :2].clone().requires_grad_()
    value, truth = loss(masked, target), loss(alone, target)
    value.sum().backward()
    truth.sum().backward()
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(masked.grad[:, :2], alone.grad, rtol=1e-13, atol=1e-15)
    assert (masked.grad[:, 2] == 0).all()


@every_spec
def test_one_class_only(spec):
    """Oracle: nothing to tell apart: the loss is ψ(+∞) with gradient exactly 0. A sigmoid a class
    still has something to learn."""
    logits = torch.tensor([[1.5], [-80.0]], requires_grad=True)
    value = losslab.loss(spec, reduction="none")(logits, torch.tensor([0, 0]))
    value.sum().backward()
    assert value[0] == value[1] or "one_vs_rest" in spec
    assert (logits.grad == 0).all() or "one_vs_rest" in spec
    if spec in ("cross_entropy", "expectation", "focal", "mean_squared_error", "hinge"):
        assert (value == 0).all()


@every_spec
def test_nan_is_not_hidden(spec):
    """Oracle: a NaN logit makes its row's loss NaN and no other's. Break: a mask that hides it."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [math.nan, 1.0, 2.0], [0.0, 1.0, 2.0]])
    value = losslab.loss(spec, reduction="none")(logits, torch.tensor([0, 1, 2]))
    assert value.isnan().tolist() == [False, True, False]

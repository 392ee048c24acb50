"""Agreement with PyTorch on PyTorch's own test inputs, and on random ones on top."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.common_methods_invocations import op_db

import losslab

OPS = {op.name: op for op in op_db}


def both(ours, theirs, sample):
    """Values and gradients of two functions on one sample, under the same random upstream one."""
    results = []
    for f in (ours, theirs):
        leaf = sample.input.detach().clone().requires_grad_()
        value = f(leaf, *sample.args, **sample.kwargs)
        upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        value.backward(upstream.to(value.dtype))
        results.append((value.detach(), leaf.grad))
    return results


def samples(name, dtype):
    torch.manual_seed(0)
    return list(OPS[name].sample_inputs("cpu", dtype, requires_grad=False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cross_entropy_on_pytorchs_samples(dtype):
    """Oracle: F.cross_entropy. Break: any of its semantics for weight, ignore_index, smoothing,
    reduction, probability targets or shapes."""
    cases = samples("nn.functional.cross_entropy", dtype)
    assert len(cases) > 20
    for sample in cases:
        (value, gradient), (value_t, gradient_t) = both(
            losslab.cross_entropy, F.cross_entropy, sample
        )
        assert value.dtype == value_t.dtype
        assert value.shape == value_t.shape
        # half types: ours rounds once at the end, PyTorch at every step
        loose = {"rtol": 4e-2, "atol": 4e-2} if dtype.itemsize == 2 else {}
        torch.testing.assert_close(value, value_t, equal_nan=True, **loose)
        torch.testing.assert_close(gradient, gradient_t, equal_nan=True, **loose)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_no_less_exact_than_pytorch(dtype):
    """Oracle: F.cross_entropy in float64 on the same half inputs; ours must be as near to it as
    PyTorch's own half result, plus one rounding of the result."""
    for sample in samples("nn.functional.cross_entropy", dtype):
        wide = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
                for k, v in sample.kwargs.items()}  # fmt: skip
        args = [a.double() if a.is_floating_point() else a for a in sample.args]
        truth = F.cross_entropy(sample.input.double(), *args, **wide)
        ours = losslab.cross_entropy(sample.input, *sample.args, **sample.kwargs).double()
        theirs = F.cross_entropy(sample.input, *sample.args, **sample.kwargs).double()
        if truth.isfinite().all():
            slack = torch.finfo(dtype).eps * (truth.abs() + 1e-3)
            assert ((ours - truth).abs() <= (theirs - truth).abs() + slack).all()


def test_binary_on_pytorchs_samples():
    """Oracle: F.binary_cross_entropy_with_logits. Break: pos_weight or weight misplaced."""
    cases = samples("nn.functional.binary_cross_entropy_with_logits", torch.float64)
    assert len(cases) > 5
    for sample in cases:
        (value, gradient), (value_t, gradient_t) = both(
            losslab.binary_cross_entropy_with_logits,
            F.binary_cross_entropy_with_logits,
            sample,
        )
        torch.testing.assert_close(value, value_t)
        torch.testing.assert_close(gradient, gradient_t)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_cross_entropy_on_random_cases(data):
    """Oracle: F.cross_entropy, over shapes × targets × weights × options."""
    seed = data.draw(st.integers(0, 10_000))
    g = torch.Generator().manual_seed(seed)
    classes = data.draw(st.integers(1, 7))
    extra = data.draw(st.sampled_from([(), (3,), (2, 2)]))
    batch = data.draw(st.sampled_from([(), (1,), (5,)])) if not extra else (2,)
    scale = data.draw(st.sampled_from([0.1, 3.0, 50.0]))
    logits = torch.randn(*batch, classes, *extra, generator=g, dtype=torch.float64) * scale
    weight = torch.rand(classes, generator=g, dtype=torch.float64) + 0.1
    options = {
        "reduction": data.draw(st.sampled_from(["none", "mean", "sum"])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.1, 1.0])),
        "weight": data.draw(st.sampled_from([None, weight])),
    }
    if data.draw(st.booleans()):
        target = torch.rand(logits.shape, generator=g).double()
        target = target / target.sum(0 if logits.dim() == 1 else 1, keepdim=True)
    else:
        target = torch.randint(classes, (*batch, *extra), generator=g)
        if data.draw(st.booleans()):
            ignore = data.draw(st.sampled_from([-100, 0, classes - 1]))
            options["ignore_index"] = ignore
            target = target.masked_fill(torch.rand(target.shape, generator=g) < 0.3, ignore)
    from torch.testing._internal.opinfo.core import SampleInput

    sample = SampleInput(logits, args=(target,), kwargs=options)
    (value, gradient), (value_t, gradient_t) = both(losslab.cross_entropy, F.cross_entropy, sample)
    torch.testing.assert_close(value, value_t, equal_nan=True)
    torch.testing.assert_close(gradient, gradient_t, equal_nan=True, atol=1e-9, rtol=1e-7)


def test_modules_agree_with_pytorchs_modules():
    """Oracle: nn.CrossEntropyLoss and nn.BCEWithLogitsLoss, state_dict keys included."""
    weight = torch.tensor([1.0, 2.0, 0.5])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 2, 1, -100])
    ours = losslab.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    theirs = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    many = (logits > 0).float()
    ours = losslab.BinaryCrossEntropyWithLogitsLoss(pos_weight=weight)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=weight)
    torch.testing.assert_close(ours(logits, many), theirs(logits, many))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_like_cross_entropy(dtype):
    """Oracle: F.cross_entropy under autocast: float32 out of half logits."""
    layer = torch.nn.Linear(6, 4)
    x, target = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    with torch.autocast("cpu", dtype=dtype):
        logits = layer(x)
        assert logits.dtype == dtype
        ours, theirs = losslab.cross_entropy(logits, target), F.cross_entropy(logits, target)
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    assert layer.weight.grad.dtype == torch.float32


def test_all_rows_ignored():
    """Oracle: F.cross_entropy's NaN; with zero_if_empty the limit a training loop wants, 0."""
    logits = torch.randn(3, 4, requires_grad=True)
    target = torch.full((3,), -100)
    assert F.cross_entropy(logits, target).isnan()
    assert losslab.cross_entropy(logits, target).isnan()
    loss = losslab.encouraging_loss(logits, target, zero_if_empty=True)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
    assert losslab.cross_entropy(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).isnan()


def test_where_pytorch_makes_nan_and_we_do_not():
    """A masked class (logit −inf) with target probability 0 contributes nothing here; PyTorch's
    0·(−inf) makes it NaN. Oracle: the two-class problem without the masked class."""
    logits = torch.tensor([[1.0, 0.0, -float("inf")]], requires_grad=True)
    target = torch.tensor([[0.25, 0.75, 0.0]])
    assert F.cross_entropy(logits, target).isnan()
    loss = losslab.cross_entropy(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, :2], target[:, :2]))
    loss.backward()
    assert logits.grad.isfinite().all()


def test_errors_like_pytorchs():
    """What PyTorch refuses is refused, in words."""
    with pytest.raises(IndexError):
        losslab.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 3]), label_smoothing=0.1)
    for keywords, message in [
        ({"reduction": "avg"}, "'none', 'mean' or 'sum'; got 'avg'"),
        ({"label_smoothing": 1.5}, r"in \[0, 1\]; got 1.5"),
        ({"weight": torch.ones(2)}, r"shape \(3,\); got \(2,\)"),
        ({"wieght": None}, "no parameter 'wieght'"),
    ]:
        with pytest.raises(losslab.InputError, match=message):
            losslab.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), **keywords)
    with pytest.raises(losslab.InputError, match="ignore_index works with class-index"):
        losslab.cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), ignore_index=1)

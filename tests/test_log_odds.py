"""target_log_odds and all_log_odds against float64 by the book, and under PyTorch's transforms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import losslab
from losslab.logodds import (
    all_log_odds,
    eager,
    kernel,
    plain,
    select,
    target_log_odds,
    target_log_odds_reference,
)

INF, NAN = float("inf"), float("nan")
IMPLEMENTATIONS = {
    "plain": plain.log_odds,
    "eager": lambda logits, target: kernel.log_odds(eager, logits, target),
    "chosen": select.log_odds,  # native where it is built, for the dtypes it takes
}


@pytest.fixture(params=IMPLEMENTATIONS)
def log_odds(request):
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(params=[16, 1 << 18], ids=["many pieces", "one piece"])
def piece(request, monkeypatch):
    """Small pieces make every test cross piece boundaries; a lost row would show."""
    monkeypatch.setattr(eager, "_CPU_PIECE", request.param)


def random_case(n, c, *, scale=1.0, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, c, generator=g, dtype=torch.float64) * scale).to(dtype)
    return logits, torch.randint(c, (n,), generator=g)


def reference_gradient(logits, target, upstream):
    """g·(e_y − q) with q by explicit float64 softmax over the other classes."""
    z = logits.detach().double()
    others = z.scatter(1, target[:, None], -INF)
    q = torch.exp(others - torch.logsumexp(others, 1, keepdim=True))
    return upstream.double()[:, None] * (torch.zeros_like(z).scatter(1, target[:, None], 1) - q)


@given(
    n=st.integers(1, 9),
    c=st.integers(2, 40),
    scale=st.sampled_from([0.1, 1.0, 30.0, 200.0, 1e4]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_value_is_exact_to_rounding(n, c, scale, seed):
    """Oracle: the float64 loop on the float32 logits. Break: log p − log(1 − p) instead."""
    logits, target = random_case(n, c, scale=scale, dtype=torch.float32, seed=seed)
    truth = target_log_odds_reference(logits, target)
    size = logits.abs().max().double() + truth.abs() + 1
    for f in IMPLEMENTATIONS.values():
        error = (f(logits, target).double() - truth).abs()
        assert (error <= 4 * torch.finfo(torch.float32).eps * size).all()


def test_gap_of_200_keeps_its_slope(log_odds):
    """Oracle: by hand, a = ±200 and ∂a/∂z = (1, −1). Break: any p rounded to 1 or 0."""
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    a = log_odds(logits, torch.tensor([0, 0]))
    a.sum().backward()
    assert a.tolist() == [200.0, -200.0]
    assert logits.grad.tolist() == [[1.0, -1.0], [1.0, -1.0]]


def test_magnitude_of_1e4_loses_nothing(log_odds):
    """Oracle: shift invariance. Break: m + log s stored as one number loses log s at 1e4."""
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]]) + 1e4
    expected = -torch.tensor(3.0).log()
    assert log_odds(logits, torch.tensor([1])).item() == pytest.approx(expected.item(), abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "c"), [(7, 5), (33, 3), (3, 301)])
def test_gradient(log_odds, piece, dtype, n, c):
    """Oracle: g·(e_y − q) in float64. Break: a wrong row of g, a skipped piece, a wrong q."""
    logits, target = random_case(n, c, scale=3.0, dtype=dtype)
    upstream = torch.randn(n, generator=torch.Generator().manual_seed(1))
    upstream = upstream.to(torch.float64 if dtype == torch.float64 else torch.float32)
    leaf = logits.clone().requires_grad_()
    log_odds(leaf, target).backward(upstream)
    truth = reference_gradient(logits, target, upstream)
    assert leaf.grad.dtype == dtype
    tolerance = torch.finfo(dtype).eps * (truth.abs() + 2e-2)
    assert ((leaf.grad.double() - truth).abs() <= 4 * tolerance).all()


def test_first_and_second_derivatives(log_odds, piece):
    """Oracle: finite differences in float64, forward and reverse mode."""
    logits, target = random_case(5, 4)
    logits.requires_grad_()
    assert gradcheck(lambda z: log_odds(z, target), logits, check_forward_ad=True)
    assert gradgradcheck(lambda z: log_odds(z, target), logits)


def test_hessian_is_minus_covariance():
    """Oracle: losses.md, ∂²a/∂z² = −(diag q − q qᵀ). Break: a first-order-only backward."""
    logits, target = random_case(1, 5, scale=2.0)
    hessian = torch.func.hessian(lambda z: target_log_odds(z, target[0]))(logits[0])
    others = logits[0].clone()
    others[target] = -INF
    q = others.softmax(0)
    torch.testing.assert_close(hessian, -(q.diag() - q.outer(q)))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([5.0], INF),
        ([1.0, -INF, -INF], INF),
        ([INF, 1.0, 2.0], INF),
        ([-INF, 1.0, 2.0], -INF),
        ([1.0, INF, 0.0], -INF),
        ([INF, INF, 0.0], NAN),
        ([NAN, 0.0, 1.0], NAN),
        ([0.0, NAN, 1.0], NAN),
        ([-INF, -INF, -INF], NAN),
    ],
)
def test_corner_values(log_odds, row, expected):
    """Oracle: the limits in losses.md. Break: −inf − −inf or inf − inf left to make NaN."""
    value = log_odds(torch.tensor([row]), torch.tensor([0])).item()
    assert value == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("row", [[5.0], [1.0, -INF, -INF]])
def test_no_competitor_no_gradient(log_odds, row):
    """Oracle: a = +inf whatever z_y is, so its slope is 0 even under an infinite upstream one."""
    for upstream in (1.0, INF):
        logits = torch.tensor([row], requires_grad=True)
        log_odds(logits, torch.tensor([0])).backward(torch.tensor([upstream]))
        assert logits.grad.tolist() == [[0.0] * len(row)]


def test_target_minus_infinity_keeps_pytorchs_gradient(log_odds):
    """Oracle: F.cross_entropy at z_y = −inf, loss inf and gradient q − e_y."""
    rows = [torch.tensor([[-INF, 1.0, 2.0]], requires_grad=True) for _ in range(2)]
    ours = torch.nn.functional.softplus(-log_odds(rows[0], torch.tensor([0]))).sum()
    theirs = torch.nn.functional.cross_entropy(rows[1], torch.tensor([0]))
    ours.backward()
    theirs.backward()
    assert ours.item() == theirs.item() == INF
    torch.testing.assert_close(rows[0].grad, rows[1].grad)


@pytest.mark.parametrize("shape", [(4,), (6, 4), (2, 4, 3), (2, 4, 3, 2), (0, 4), (2, 4, 0)])
def test_shapes(shape, piece):
    """Oracle: each position alone, as a (1, C) problem. Break: classes not at dimension 1."""
    logits = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dim = 0 if len(shape) == 1 else 1
    target_shape = shape[:dim] + shape[dim + 1 :]
    target = torch.randint(4, target_shape, generator=torch.Generator().manual_seed(1))
    a = target_log_odds(logits, target)
    assert a.shape == target_shape
    rows = logits.movedim(dim, -1).reshape(-1, 4)
    truth = target_log_odds_reference(rows, target.reshape(-1)).reshape(target_shape)
    torch.testing.assert_close(a, truth)


def test_non_contiguous_and_sliced():
    """Oracle: the contiguous copy. Break: strides read as if rows were dense."""
    base = torch.randn(12, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for view in (base.t()[::2, 1::2], base[:, 3:9], base[::3].flip(0)):
        target = torch.arange(view.shape[0]) % view.shape[1]
        leaf, copy = view.clone().requires_grad_(), view.contiguous().clone().requires_grad_()
        strided = leaf.as_strided(leaf.shape, leaf.stride())
        torch.testing.assert_close(
            target_log_odds(view, target), target_log_odds(view.contiguous(), target)
        )
        (target_log_odds(strided, target) ** 2).sum().backward()
        (target_log_odds(copy, target) ** 2).sum().backward()
        torch.testing.assert_close(leaf.grad, copy.grad)


def test_torch_func():
    """Oracle: a loop over the batch. Break: a vmap rule that mixes rows or drops a dimension."""
    logits, target = random_case(6, 4)
    per_row = torch.func.vmap(torch.func.grad(lambda z, y: target_log_odds(z, y).sin()))
    loop = torch.stack([torch.func.grad(lambda z, y=y: target_log_odds(z, y).sin())(z)
                        for z, y in zip(logits, target, strict=True)])  # fmt: skip
    torch.testing.assert_close(per_row(logits, target), loop)
    stacked = torch.stack([logits, 2 * logits, -logits], 1)  # mapped over dimension 1
    mapped = torch.func.vmap(target_log_odds, in_dims=(1, None))(stacked, target)
    each = torch.stack([target_log_odds(k * logits, target) for k in (1, 2, -1)])
    torch.testing.assert_close(mapped, each)
    tangent = torch.randn_like(logits)
    _, forward = torch.func.jvp(lambda z: target_log_odds(z, target), (logits,), (tangent,))
    unit = reference_gradient(logits, target, torch.ones(6))
    torch.testing.assert_close(forward, (unit * tangent).sum(1))


def test_vmap_over_targets_only():
    """Oracle: a loop. Break: an unmapped logits tensor expanded along the wrong dimension."""
    logits, _ = random_case(3, 4)
    targets = torch.tensor([[0, 1, 2], [3, 3, 0]])
    mapped = torch.func.vmap(target_log_odds, in_dims=(None, 0))(logits, targets)
    torch.testing.assert_close(mapped, torch.stack([target_log_odds(logits, t) for t in targets]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compile_fullgraph(dtype):
    """Oracle: eager. fullgraph=True fails on any graph break; gradients must agree too."""
    torch.compiler.reset()
    compiled = torch.compile(target_log_odds, fullgraph=True)
    logits, target = random_case(16, 7, scale=5.0, dtype=dtype)
    upstream = torch.randn(16, generator=torch.Generator().manual_seed(2))
    results = []
    for f in (compiled, target_log_odds):
        leaf = logits.clone().requires_grad_()
        a = f(leaf, target)
        a.backward(upstream)
        results.append((a.detach(), leaf.grad))
    torch.testing.assert_close(*[r[0] for r in results])
    torch.testing.assert_close(*[r[1] for r in results])


def operations(value):
    """The names of what autograd will go through on the way back from a value."""
    names, seen, todo = set(), set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(node.name())
            todo += [parent for parent, _ in node.next_functions]
    return names


@pytest.mark.parametrize(
    "of_logits",
    [
        lambda z, y: plain.log_odds(z, y),
        lambda z, y: plain.all_log_odds(z),
        lambda z, y: plain.gradient(z, y, torch.ones(len(y))),
        lambda z, y: losslab.losses.psi.exponential(z, cap=1),
        lambda z, y: losslab.losses.psi.tamed_cross_entropy(z),
        lambda z, y: losslab.losses.psi.generalized_cross_entropy(z, truncation=0.5),
    ],
    ids=["log_odds", "all_log_odds", "gradient", "exponential", "tamed", "truncated"],
)
def test_no_slope_is_clamps_own(of_logits):
    """The top competitor lies at its bound in every row, and there the slope of torch.clamp is 1 up
    to PyTorch 2.13 and 0 from 2.14: second derivatives and soft targets came out wrong, in silence.
    Oracle: autograd's own graph, under any PyTorch. Break: a clamp on the way of a gradient."""
    logits, target = random_case(6, 4)
    names = operations(of_logits(logits.requires_grad_(), target))
    assert len(names) > 3 and not any("Clamp" in name for name in names)


def test_half_types_return_float32():
    """Oracle: the float64 loop on the half values; rounding of a to half would show at 1e-3."""
    for dtype in (torch.float16, torch.bfloat16):
        logits, target = random_case(8, 50, scale=4.0, dtype=dtype)
        a = target_log_odds(logits, target)
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), target_log_odds_reference(logits, target),
                                   rtol=1e-6, atol=1e-5)  # fmt: skip


def test_float16_extremes_stay_finite():
    """Oracle: by hand, gaps of ±131008 fit float32. Break: the shift done in float16."""
    logits = torch.tensor([[65504.0, -65504.0]], dtype=torch.float16)
    assert target_log_odds(logits, torch.tensor([0])).item() == 131008.0
    assert target_log_odds(logits, torch.tensor([1])).item() == -131008.0


def test_meta_device_gives_shapes():
    """Any device: nothing may read values. Break: a bounds check that copies to the host."""
    a = target_log_odds(torch.empty(5, 3, device="meta"), torch.empty(5, dtype=torch.long,
                        device="meta"))  # fmt: skip
    assert a.shape == (5,)
    assert a.device.type == "meta"


@pytest.mark.parametrize("bad", [-1, 3, -100])
def test_target_out_of_range(bad):
    """Oracle: F.cross_entropy raises IndexError too. Break: reading out of bounds."""
    with pytest.raises(IndexError, match=rf"Target {bad} is out of bounds.*\[0, 2\]"):
        target_log_odds(torch.zeros(2, 3), torch.tensor([0, bad]))


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1]), "floating point"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "integer class indices"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), r"got logits \(2, 3\) and target \(3,\)"),
        (torch.zeros(2, 0), torch.tensor([0, 1]), "at least one class"),
        (torch.zeros(()), torch.tensor(0), "got logits"),
    ],
)
def test_bad_input(logits, target, message):
    """Each mistake says what was expected and what came."""
    with pytest.raises(losslab.InputError, match=message):
        target_log_odds(logits, target)


def test_all_log_odds_equals_one_class_at_a_time():
    """Oracle: target_log_odds for every class. Break: the top class by log p − log(1 − p)."""
    logits, _ = random_case(20, 6, scale=60.0, dtype=torch.float32)
    every = all_log_odds(logits)
    for k in range(6):
        truth = target_log_odds_reference(logits, torch.full((20,), k))
        size = logits.abs().max().double() + truth.abs()
        assert ((every[:, k].double() - truth).abs() <= 4e-7 * size).all()


def test_all_log_odds_derivatives():
    """Oracle: finite differences, with a clear top class and with ties at the top."""
    for logits in (
        random_case(4, 5, scale=4.0)[0],
        torch.tensor([[2.0, 2.0 + 1e-3, 0.0]], dtype=torch.float64),
    ):
        assert gradcheck(all_log_odds, logits.clone().requires_grad_())
        assert gradgradcheck(all_log_odds, logits.clone().requires_grad_())


def test_all_log_odds_gradient_is_finite_when_settled():
    """Oracle: g_j − Σ_k≠j g_k p_j/(1 − p_k) in float64. Break: 0/0 where p rounds to 1."""
    logits = torch.tensor([[90.0, 0.0, -3.0]], requires_grad=True)
    upstream = torch.tensor([[0.7, -0.2, 0.4]])
    all_log_odds(logits).backward(upstream)
    exact = logits.detach().double().requires_grad_()
    rows = [exact[0, k] - torch.logsumexp(exact[0, [j for j in range(3) if j != k]], 0)
            for k in range(3)]  # fmt: skip
    (torch.stack(rows) * upstream[0].double()).sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-6, atol=1e-7)


def test_peak_memory_is_one_gradient():
    """Oracle: the allocator's own counts. Above the logits, forward + backward may hold the
    gradient and one piece; an (N, C) temporary would double it."""
    from torch.profiler import ProfilerActivity, profile

    n, c = 2048, 1000
    logits, target = random_case(n, c, dtype=torch.float32)
    logits.requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        target_log_odds(logits, target).sum().backward()
    live = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert 1.0 <= peak / (n * c * 4) < 1.3

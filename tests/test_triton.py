"""The Triton kernels against float64, in Triton's interpreter on the CPU or compiled on a GPU.

Tests that use ``device`` run compiled where there is a GPU. Elsewhere they skip, and
``test_in_the_interpreter`` runs this very file again in a process of its own with
``TRITON_INTERPRET=1``: that variable must be set before triton is first imported, and torch.compile
may import triton in this process.

"Error ≤ eager's": a kernel may not be further from the truth than the PyTorch kernel in the same
dtype, beyond a little rounding.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import losslab
from losslab.errors import InputError
from losslab.logodds import eager, kernel
from losslab.logodds import triton as dense
from losslab.logodds import triton_linear as linear
from oracles import logodds as oracle

INF, NAN = float("inf"), float("nan")
INTERPRETED = dense.interpreted()
HAS_TRITON = importlib.util.find_spec("triton") is not None
EPS = torch.finfo(torch.float32).eps
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# one program a row; several rows a program; a row over several programs
TILES = [dense.Tile(1, 64), dense.Tile(4, 32), dense.Tile(4, 16, 3)]

pytestmark = [pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")]
if INTERPRETED:  # numpy's remarks on inf − inf and log 0, which are meant
    pytestmark.append(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
once = pytest.mark.skipif(INTERPRETED, reason="needs no device, so it runs outside")


@pytest.fixture
def device():
    if INTERPRETED:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.skip("needs a GPU; without one test_in_the_interpreter runs it on the CPU")


@pytest.fixture
def gpu():
    if INTERPRETED or not torch.cuda.is_available():
        pytest.skip("needs a GPU: too large for Triton's interpreter")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def interpreter_like_a_gpu(monkeypatch):
    """numpy has no bfloat16: the interpreter cuts its digits off and multiplies its bit patterns.

    Here it rounds to nearest even and multiplies the numbers. And maxima and minima drop NaN, which
    numpy's keep.
    """
    if not INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_rounded(self, src, target):
        if target.scalar != tl.bfloat16 or src.dtype.scalar != tl.float32:
            return cast(self, src, target)
        rounded = torch.from_numpy(src.data.copy()).to(torch.bfloat16).view(torch.int16)
        return TensorHandle(rounded.numpy().view("uint16"), tl.bfloat16)

    def dot_of_numbers(self, a, b, *rest):
        wide = [cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return dot(self, *wide, *rest)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_rounded)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_of_numbers)
    for name, drop in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
        operation = lambda self, a, b, drop=drop: self.binary_op(a, b, drop)  # noqa: E731
        monkeypatch.setattr(InterpreterBuilder, name, operation)


def random(*shape, seed=0, scale=1.0, dtype=torch.float32, device=None):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(dtype).to(device)


def random_target(classes, *shape, seed=1, device=None):
    return torch.randint(
        classes, shape, generator=torch.Generator().manual_seed(seed), device="cpu"
    ).to(device)


def as_rows(x):
    """(N, C, …) as (rows, C) float64 on the CPU."""
    return x.detach().cpu().double().movedim(1, -1).reshape(-1, x.shape[1])


def truth_of(logits, target, upstream):
    """(a, g·(e_y − q)) in float64 by the oracle, as rows."""
    rows, y, g = as_rows(logits).numpy(), target.cpu().flatten(), upstream.cpu().double().flatten()
    a = torch.from_numpy(oracle.target_log_odds(rows, y.numpy()))
    unit = [
        torch.from_numpy(oracle.log_odds_gradient(row, int(k)))
        for row, k in zip(rows, y, strict=True)
    ]
    return a, g[:, None] * torch.stack(unit)


def assert_as_good_as(found, eager_found, truth, dtype):
    """|error| ≤ eager's |error| + half a unit of the dtype + float32 rounding of the numbers."""
    found, eager_found = found.cpu().double(), eager_found.cpu().double()
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    size = truth.abs().nan_to_num(0, 0, 0)
    little = torch.finfo(dtype).eps / 2 * size + 8 * eps * (1 + size)
    error, eager_error = (found - truth).abs(), (eager_found - truth).abs()
    assert (error <= eager_error + little).all(), (error - eager_error - little).max()


def check_dense(logits, target, tile=None):
    """Value and gradient of one case against the oracle and eager."""
    upstream = random(*target.shape, seed=7, device=logits.device)
    a, shift, total = dense.statistics(logits, target, tile=tile)
    d = dense.gradient(logits, target, shift, total, upstream.to(a.dtype), tile=tile)
    theirs, m, s = eager.statistics(logits, target)
    d_theirs = eager.gradient(logits, target, m, s, upstream.to(a.dtype))
    truth, d_truth = truth_of(logits, target, upstream)
    assert a.dtype == theirs.dtype and d.dtype == logits.dtype and d.shape == logits.shape
    assert_as_good_as(a.flatten(), theirs.flatten(), truth, a.dtype)
    assert_as_good_as(as_rows(d), as_rows(d_theirs), d_truth, logits.dtype)


@pytest.mark.parametrize(
    ("dtype", "tile"),
    [(torch.float32, tile) for tile in TILES] + [(dtype, TILES[2]) for dtype in DTYPES[1:]],
    ids=str,
)
def test_dense(device, dtype, tile):
    """Oracle: longdouble row by row, error ≤ eager's. Break: a lost block, part or row."""
    logits = random(7, 83, scale=3, dtype=dtype, device=device)
    check_dense(logits, random_target(83, 7, device=device), tile)


@pytest.mark.parametrize("shape", [(5, 1), (1, 2), (9, 4), (3, 1000), (2, 6, 5), (2, 3, 4, 3)])
def test_dense_with_its_own_choice_of_tile(device, shape):
    """Oracle as above. Break: a heuristic that leaves rows, classes or positions out."""
    logits = random(*shape, scale=5, device=device)
    if shape[1] == 1:
        a, shift, total = dense.statistics(logits, torch.zeros(5, dtype=torch.long, device=device))
        assert (a == INF).all() and (total == 0).all() and (shift.isfinite()).all()
        return
    check_dense(logits, random_target(shape[1], shape[0], *shape[2:], device=device))


@pytest.mark.parametrize("gap", [200.0, 1e4])
def test_dense_large_numbers(device, gap):
    """Oracle: the loop. Break: m + log s kept as one number, or exp(z) without a shift."""
    logits = random(6, 40, device=device) + gap
    logits[0, 3] += gap
    logits[1, 5] -= 2 * gap
    check_dense(logits, torch.tensor([3, 5, 0, 1, 2, 39], device=device), dense.Tile(2, 16))


def spread(target):
    """The same numbers with others in between in memory."""
    return torch.stack([target, -1 - target], -1)[..., 0]


VIEWS = {
    "columns of a wider matrix": lambda x: x[:, 5:45],
    "every other row": lambda x: x[::2, :40],
    "every other class": lambda x: x[:, ::2],
    "transposed": lambda x: x.t(),
    "one row for all": lambda x: x[:1].expand(9, 90),
    "positions": lambda x: x.view(3, 10, 30)[:, :, 3:20],
    "classes last": lambda x: x.view(3, 30, 10).transpose(1, 2),
    "image": lambda x: x.view(5, 2, 3, 30).permute(0, 3, 1, 2),
    "window of an image": lambda x: x.view(2, 9, 5, 10)[:, :, 1:4, 2:7],
}


@pytest.mark.parametrize("view", VIEWS)
def test_views(device, view):
    """Oracle: the loop on the same numbers. Break: a stride of the wrong dimension."""
    logits = VIEWS[view](random(10, 90, scale=2, device=device))
    target = random_target(logits.shape[1], logits.shape[0], *logits.shape[2:], device=device)
    check_dense(logits, spread(target), dense.Tile(8, 32, 2))


def test_expanded_upstream_gradient(device):
    """Oracle: eager. Break: the one number under ``a.sum()`` read as if there were one a row."""
    target = random_target(6, 5, device=device)
    leaves = [random(5, 6, device=device).requires_grad_() for _ in range(2)]
    for backend, leaf in zip((dense, eager), leaves, strict=True):
        kernel.log_odds(backend, leaf, target).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("view", VIEWS)
def test_gradient_may_overwrite_the_logits(device, view):
    """Oracle: the gradient in fresh memory. Break: a neighbour written, or read after writing."""
    base = random(10, 90, device=device)
    if view == "one row for all":
        pytest.skip("its rows share memory, so they cannot be overwritten one by one")
    logits = VIEWS[view](base)
    target = random_target(logits.shape[1], logits.shape[0], *logits.shape[2:], device=device)
    upstream = random(*target.shape, seed=3, device=device)
    _, shift, total = dense.statistics(logits, target)
    fresh = dense.gradient(logits, target, shift, total, upstream)
    expected = base.clone()
    VIEWS[view](expected).copy_(fresh)
    returned = dense.gradient(
        logits, target, shift, total, upstream, logits, tile=dense.Tile(8, 32)
    )
    assert returned.data_ptr() == logits.data_ptr()
    assert torch.equal(base, expected)


ROWS = [
    [1.0, -INF, -INF],
    [INF, 1.0, 2.0],
    [-INF, 1.0, 2.0],
    [1.0, INF, 0.0],
    [INF, INF, 0.0],
    [NAN, 0.0, 1.0],
    [0.0, NAN, 1.0],
    [-INF, -INF, -INF],
    [3e38, -3e38, -3e38],
    [-3e38, 3e38, 3e38],
]


@pytest.mark.parametrize("tile", [dense.Tile(4, 4), dense.Tile(2, 2, 2)], ids=str)
def test_corner_cases(device, tile):
    """Oracle: the limits in float64, and eager's gradient. Break: inf − inf, or a dropped NaN."""
    logits = torch.tensor(ROWS, device=device)
    target = torch.zeros(len(ROWS), dtype=torch.long, device=device)
    a, shift, total = dense.statistics(logits, target, tile=tile)
    truth = torch.from_numpy(oracle.target_log_odds(logits.cpu().numpy(), target.cpu().numpy()))
    torch.testing.assert_close(a.cpu(), truth.float(), equal_nan=True, rtol=0, atol=1e-6)
    upstream = random(len(ROWS), seed=5, device=device)
    d = dense.gradient(logits, target, shift, total, upstream, tile=tile)
    theirs = eager.gradient(logits, target, *eager.statistics(logits, target)[1:], upstream)
    torch.testing.assert_close(d, theirs, equal_nan=True, rtol=1e-6, atol=1e-7)
    assert (d[0] == 0).all()


@pytest.mark.parametrize("bad", [-1, -100, 5, 10**12])
@pytest.mark.parametrize("tile", [dense.Tile(2, 4), dense.Tile(2, 4, 2)], ids=str)
def test_target_out_of_range_reads_nothing_and_gives_nan(device, bad, tile):
    """Oracle: by hand. Break: the target's logit loaded unmasked (10^12 would crash)."""
    logits = random(3, 5, device=device)
    target = torch.tensor([0, bad, 2], device=device)
    a, shift, total = dense.statistics(logits, target, tile=tile)
    d = dense.gradient(logits, target, shift, total, torch.ones_like(a), tile=tile)
    assert a.isnan().tolist() == [False, True, False]
    assert d.isnan().any(1).tolist() == d.isnan().all(1).tolist() == [False, True, False]


def test_row_without_upstream_gradient_stays_zero(device):
    """Oracle: by hand; an ignored row may hold anything. Break: 0 · NaN."""
    logits = torch.tensor([[NAN, 1.0, 2.0], [0.0, INF, NAN], [0.0, 1.0, 2.0]], device=device)
    target = torch.tensor([0, -100, 1], device=device)
    _, shift, total = dense.statistics(logits, target)
    upstream = torch.tensor([0.0, 0.0, 1.0], device=device)
    d = dense.gradient(logits, target, shift, total, upstream)
    assert (d[:2] == 0).all() and d[2, 1] == 1


def test_no_competitor_no_gradient(device):
    """Oracle: a = +inf whatever z_y is, even under an infinite upstream gradient."""
    for row in ([5.0], [1.0, -INF, -INF]):
        logits = torch.tensor([row], device=device)
        target = torch.tensor([0], device=device)
        a, shift, total = dense.statistics(logits, target)
        d = dense.gradient(logits, target, shift, total, torch.full_like(a, INF))
        assert a.item() == INF and d.tolist() == [[0.0] * len(row)]


@pytest.mark.parametrize("shape", [(0, 4), (2, 4, 0)])
def test_empty(device, shape):
    """Oracle: nothing in, nothing out. Break: a launch over no programs."""
    logits = torch.empty(shape, device=device)
    target = torch.empty(shape[0], *shape[2:], dtype=torch.long, device=device)
    a, shift, total = dense.statistics(logits, target)
    assert a.shape == target.shape
    assert dense.gradient(logits, target, shift, total, a).shape == shape
    assert [x.shape for x in dense.all_statistics(logits)] == [logits.shape, *[target.shape] * 3]


def test_offsets_beyond_31_bits(device, monkeypatch):
    """Oracle: the same rows side by side. Break: row · stride in 32 bits wraps around.

    The second row lies 2^31 elements on, in memory that is reserved and, between, never touched.
    """
    if INTERPRETED:  # it would copy the whole range back onto itself
        from triton.runtime.interpreter import GridExecutor

        monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)
    store = torch.empty(2**31 + 64, dtype=torch.float16, device=device)
    far = store.as_strided((2, 40), (2**31, 1))
    near = random(2, 40, dtype=torch.float16, device=device)
    far.copy_(near)
    target = torch.tensor([3, 30], device=device)
    upstream = torch.ones(2, device=device)
    found, expected = (dense.statistics(x, target, tile=TILES[1]) for x in (far, near))
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    d = dense.gradient(near, target, *found[1:], upstream, tile=TILES[1])
    dense.gradient(far, target, *found[1:], upstream, far, tile=TILES[1])
    assert torch.equal(far, d)


def test_first_and_second_derivatives_and_forward_mode(device):
    """Oracle: finite differences in float64. Break: a gradient that does not match its value."""
    logits = random(2, 3, dtype=torch.float64, device=device).requires_grad_()
    target = random_target(3, 2, device=device)
    assert gradcheck(lambda z: kernel.log_odds(dense, z, target), logits, check_forward_ad=True)
    assert gradgradcheck(lambda z: kernel.log_odds(dense, z, target), logits)


def check_all(logits, tile=None):
    """All-class log-odds and their gradient against the oracle."""
    a, index, shift, total = dense.all_statistics(logits, tile=tile)
    upstream = random(*logits.shape, seed=9, device=logits.device)
    d = dense.all_gradient(logits, index, shift, total, upstream.to(a.dtype), tile=tile)
    z = as_rows(logits)
    truth = torch.from_numpy(oracle.all_log_odds(z.numpy()))
    weights = as_rows(upstream)
    d_truth = torch.stack(
        [
            torch.from_numpy(oracle.soft_target_gradient(row, w, [1.0] * len(w)))
            for row, w in zip(z.numpy(), weights.numpy(), strict=True)
        ]
    )
    each = [eager.statistics(logits, torch.full_like(index, k)) for k in range(logits.shape[1])]
    theirs = torch.stack([x[0] for x in each], 1)
    d_theirs = sum(
        eager.gradient(logits, torch.full_like(index, k), *each[k][1:], upstream[:, k].to(a.dtype))
        .double()
        .cpu()
        for k in range(logits.shape[1])
    )
    assert torch.equal(index, logits.argmax(1))
    assert a.dtype == theirs.dtype and d.dtype == logits.dtype
    assert_as_good_as(as_rows(a), as_rows(theirs), truth, a.dtype)
    # a sum over classes: the little is taken from the sum of magnitudes
    size = weights.abs().sum(1, keepdim=True)
    little = torch.finfo(d.dtype).eps / 2 * d_truth.abs() + 4 * torch.finfo(a.dtype).eps * size
    error = (as_rows(d) - d_truth).abs()
    assert (error <= (as_rows(d_theirs) - d_truth).abs() + little).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 37), (2, 7, 3)], ids=str)
def test_all_classes(device, dtype, shape):
    """Oracle: the loop, every class in turn as the target. Break: a wrong top, sum or block."""
    check_all(random(*shape, scale=3, dtype=dtype, device=device), dense.Tile(2, 16))


def test_all_classes_of_confident_rows(device):
    """Oracle: the loop. Break: log p − log(1 − p) at the top class, which is 0 − log 0 here."""
    logits = random(4, 9, device=device)
    logits[0, 2] += 200
    logits[1, 3] = logits[1].max() + 40
    logits[2, 8] = logits[2, 1] = 50.0  # two tops share it
    logits[3] += 1e4
    check_all(logits, dense.Tile(2, 4))


def test_all_classes_corner_cases(device):
    """Oracle: the limits in float64. Break: the top's own −inf, +inf or NaN in the sums."""
    logits = torch.tensor(ROWS, device=device)
    a, *_ = dense.all_statistics(logits, tile=dense.Tile(2, 2))
    truth = torch.from_numpy(oracle.all_log_odds(logits.cpu().numpy())).float()
    torch.testing.assert_close(a.cpu(), truth, equal_nan=True, rtol=1e-6, atol=1e-6)


LINEAR_TILE = linear.LinearTile(16, 32, 16, 4, 1)


def linear_case(device, dtype, n=37, d=24, v=90, bias=True):
    hidden = random(n, d, dtype=dtype, device=device)
    weight = random(v, d, seed=1, scale=0.5, dtype=dtype, device=device)
    b = random(v, seed=2, dtype=dtype, device=device) if bias else None
    return hidden, weight, b, random_target(v, n, device=device)


def unfused(hidden, weight, bias, target, scale, softcap, grad, grad_lse, dtype):
    """(a, lse, margin, gradients) through the logits, in one dtype throughout."""
    leaves = [None if x is None else x.to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    z = F.linear(*leaves) * scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    wide = z if dtype == torch.float64 else z.float()
    others = wide.scatter(1, target[:, None], -INF)
    z_y = wide.gather(1, target[:, None]).squeeze(1)
    a = kernel.log_odds(eager, z, target)
    lse = wide.logsumexp(1)
    total = (a * grad.to(a.dtype)).sum() + (lse * grad_lse.to(a.dtype)).sum()
    grads = torch.autograd.grad(total, [x for x in leaves if x is not None])
    return a.detach(), lse.detach(), (z_y - others.amax(1)).detach(), grads


def check_linear(device, case, scale=1.0, softcap=None, tile=LINEAR_TILE, **sizes):
    """Everything of one case against the unfused computation in float64 and in its own dtype."""
    hidden, weight, bias, target = case
    rows = hidden.shape[0]
    grad, grad_lse = (random(rows, seed=s, device=device) for s in (4, 5))
    found = linear.linear_statistics(
        hidden, weight, target, bias, scale, softcap, tile=tile, parts=sizes.get("parts")
    )
    gradients = linear.linear_gradient(
        hidden, weight, target, found.log_odds, found.shift, found.total, grad, grad_lse,
        bias, scale, softcap, width=sizes.get("width"), tile=tile,
    )  # fmt: skip
    args = (hidden, weight, bias, target, scale, softcap, grad, grad_lse)
    truth, theirs = unfused(*args, torch.float64), unfused(*args, hidden.dtype)
    numbers = (found.log_odds, found.lse, found.margin)
    # a product of D terms in float32 errs by some √D units of their size
    product = 4 * EPS * (hidden.double().norm(dim=1) * weight.double().norm(dim=1).max()) * scale
    for mine, its, exact in zip(numbers, theirs[:3], truth[:3], strict=True):
        error, eager_error = (mine - exact).abs(), (its - exact).abs()
        assert (error <= eager_error + product + 4 * EPS * (1 + exact.abs())).all()
    gradients = [x for x in gradients if x is not None]
    for mine, its, exact in zip(gradients, theirs[3], truth[3], strict=True):
        assert mine.dtype == hidden.dtype and mine.shape == exact.shape
        error, eager_error = (mine - exact).norm(), (its - exact).norm()
        assert error <= eager_error + 4 * EPS * exact.norm(), (error, eager_error)


@pytest.mark.parametrize(
    ("dtype", "bias", "scale", "softcap"),
    [
        (torch.float32, False, 1.0, None),
        (torch.float32, True, 0.7, None),
        (torch.float32, True, 1.5, 4.0),
        (torch.bfloat16, True, 0.7, None),
        (torch.bfloat16, True, 1.5, 4.0),
        (torch.float16, False, 1.0, None),
        (torch.float16, True, 1.5, 4.0),
    ],
)
def test_linear(device, dtype, bias, scale, softcap):
    """Oracle: logits in float64; error ≤ that of logits in the same dtype.

    Break: bias added once a part, scale or softcap missing in a slope, a lost row, class or block.
    """
    case = linear_case(device, dtype, bias=bias)
    check_linear(device, case, scale, softcap, parts=2, width=64)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_loss_by_request(device, dtype, reduction, monkeypatch):
    """Oracle: the loss of the logits in float64. Break: a request for Triton that is answered by
    chunks, an ignored row that gets a gradient, scale, softcap or z-loss left out."""
    hidden, weight, bias, target = linear_case(device, dtype, n=20, d=16, v=40)
    target[::6] = -100
    asked = []
    real = linear.linear_statistics
    monkeypatch.setattr(
        linear, "linear_statistics", lambda *a, **k: asked.append(1) or real(*a, **k)
    )
    losslab.set_backend("triton")
    upstream = random(20 if reduction == "none" else 1, seed=6, device=device).double()
    options = {"softcap": 6.0, "logit_scale": 0.7, "z_loss": 0.01, "reduction": reduction}
    found = []
    try:
        for wide in (False, True):
            leaves = [
                (x.double() if wide else x.clone()).requires_grad_() for x in (hidden, weight, bias)
            ]
            if wide:
                losslab.set_backend("eager")
            loss, rows = losslab.linear_loss(
                leaves[0], leaves[1], target, "focal", linear_bias=leaves[2], return_rows=True,
                **options,
            )  # fmt: skip
            total = (loss.double().reshape(-1) * upstream).sum()
            found.append((loss.double(), rows, torch.autograd.grad(total, leaves)))
    finally:
        losslab.set_backend("auto")
    assert asked
    (loss, rows, grads), (true_loss, true_rows, true_grads) = found
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(loss, true_loss, rtol=1e-4, atol=1e-4)
    assert torch.equal(rows.used, true_rows.used) and torch.equal(rows.correct, true_rows.correct)
    for mine, exact in zip(grads, true_grads, strict=True):
        assert (mine - exact).norm() <= (1e-4 + 2 * eps) * exact.norm()
        assert exact.norm() > 0.01
    assert not grads[0][::6].any()


@pytest.mark.parametrize("n, d, v", [(1, 16, 33), (16, 5, 32), (17, 16, 1), (5, 40, 97)])
def test_linear_sizes(device, n, d, v):
    """Oracle as above. Break: a size that a block does not divide, or a vocabulary of one."""
    case = linear_case(device, torch.float32, n, d, v)
    if v > 1:
        check_linear(device, case)
        return
    hidden, weight, bias, target = case
    found = linear.linear_statistics(hidden, weight, target, bias, tile=LINEAR_TILE)
    torch.testing.assert_close(found.lse, found.target_logit)
    assert (found.log_odds == INF).all() and (found.margin == INF).all()
    ones = torch.ones_like(found.lse)
    _, d_weight, d_bias = linear.linear_gradient(
        hidden, weight, target, found.log_odds, found.shift, found.total, ones, ones, bias,
        tile=LINEAR_TILE,
    )  # fmt: skip
    torch.testing.assert_close(d_bias, torch.tensor([17.0], device=device))  # of the lse alone
    torch.testing.assert_close(d_weight, hidden.sum(0, keepdim=True))


def test_linear_takes_views(device):
    """Oracle as above. Break: an operand read as if it were contiguous."""
    hidden = random(24, 40, device=device).t()[5:30]
    weight = random(80, 50, seed=1, device=device)[::2, 3:27]
    bias = random(80, seed=2, device=device)[::2]
    check_linear(device, (hidden, weight, bias, spread(random_target(40, 25, device=device))))


def test_linear_with_its_own_choice_of_tile(device):
    """Oracle as above. Break: the default block sizes, parts or width."""
    check_linear(device, linear_case(device, torch.float32, n=70, d=32, v=130), tile=None)
    check_linear(device, linear_case(device, torch.float16, n=5, d=64, v=300), tile=None)


def test_linear_keeps_rounding_out_of_the_logits(device):
    """Oracle: float64 on the bfloat16 operands; logits around 30, where bfloat16 has steps of ⅛.

    Break: logits rounded to bfloat16 on their way, as an unfused last layer rounds them.
    """
    hidden, weight, _, target = linear_case(device, torch.bfloat16, d=48)
    hidden = hidden * 8
    found = linear.linear_statistics(hidden, weight, target, tile=LINEAR_TILE)
    z = hidden.double() @ weight.double().t()
    truth, *_ = eager.statistics(z, target)
    assert (found.log_odds - truth).abs().max() < 1e-4
    rounded, *_ = eager.statistics(hidden @ weight.t(), target)
    assert (rounded - truth).abs().max() > 0.05


def test_linear_rows_without_gradient_add_nothing(device):
    """Oracle: the other rows alone. Break: an ignored row's NaN, or its bad target, in dW."""
    hidden, weight, bias, target = linear_case(device, torch.float32, n=20)
    used = torch.arange(20, device=device) % 3 != 0
    grad = random(20, seed=4, device=device) * used
    alone, both = [], []
    hidden[0, 0] = NAN
    target[3] = -100
    for rows, into in ((used, alone), (torch.ones_like(used), both)):
        h, y, g = hidden[rows], target[rows], grad[rows]
        s = linear.linear_statistics(h, weight, y, bias, tile=LINEAR_TILE)
        into += linear.linear_gradient(
            h, weight, y, s.log_odds, s.shift, s.total, g, g, bias, tile=LINEAR_TILE
        )
    assert (both[0][~used] == 0).all()
    # 0 · NaN: a NaN hidden state reaches dW through the library's product, as in PyTorch
    assert both[1][:, 0].isnan().all() and not both[1][:, 1:].isnan().any()
    torch.testing.assert_close(both[0][used], alone[0])
    torch.testing.assert_close(both[1][:, 1:], alone[1][:, 1:])
    torch.testing.assert_close(both[2], alone[2])


def test_linear_target_out_of_range_gives_nan(device):
    """Oracle: by hand. Break: a target past the vocabulary that matches padding."""
    hidden, weight, bias, target = linear_case(device, torch.float32, n=4, v=33)
    target[1], target[2] = 33, -1
    s = linear.linear_statistics(hidden, weight, target, bias, tile=LINEAR_TILE)
    assert all(x.isnan().tolist() == [False, True, True, False] for x in (s.log_odds, s.total))


def test_linear_computes_what_is_asked_for(device):
    """Oracle: all three at once. Break: a gradient that depends on another being wanted."""
    hidden, weight, bias, target = linear_case(device, torch.float32, n=6)
    s = linear.linear_statistics(hidden, weight, target, bias, tile=LINEAR_TILE)
    args = (hidden, weight, target, s.log_odds, s.shift, s.total, torch.ones_like(s.lse))
    full = linear.linear_gradient(*args, bias=bias, tile=LINEAR_TILE)
    for i in range(3):
        needs = tuple(j == i for j in range(3))
        found = linear.linear_gradient(*args, bias=bias, needs=needs, tile=LINEAR_TILE)
        assert [x is not None for x in found] == list(needs)
        assert torch.equal(found[i], full[i])


def test_linear_refuses_what_does_not_fit(device):
    """Oracle: InputError that names the shapes. Break: a read past the end of an operand."""
    hidden, weight, bias, target = linear_case(device, torch.float32)
    for bad in (
        (hidden[:, 1:], weight, target, bias),
        (hidden, weight, target[1:], bias),
        (hidden, weight, target.int(), bias),
        (hidden, weight, target, bias[1:]),
        (hidden, weight[:0], target, None),
    ):
        with pytest.raises(InputError, match="needs hidden"):
            linear.linear_statistics(*bad)
    assert linear.unavailable(hidden, weight) is None
    assert "float64" in linear.unavailable(hidden.double(), weight.double())
    assert "share" in linear.unavailable(hidden, weight.half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n, c", [(4096, 1000), (3, 131072), (257, 50257), (100_000, 10)])
def test_dense_compiled(gpu, dtype, n, c):
    """Oracle: eager on the GPU in float64. Break: anything only the compiled kernel does wrong."""
    logits = random(n, c, scale=3, dtype=dtype).to(gpu)
    target, upstream = random_target(c, n, device=gpu), random(n, seed=3, device=gpu)
    exact = eager.statistics(logits.double(), target)
    d_exact = eager.gradient(logits.double(), target, *exact[1:], upstream.double())
    theirs = eager.statistics(logits, target)
    d_theirs = eager.gradient(logits, target, *theirs[1:], upstream)
    mine = dense.statistics(logits, target)
    d = dense.gradient(logits, target, *mine[1:], upstream)
    assert_as_good_as(mine[0], theirs[0], exact[0].cpu(), torch.float32)
    assert_as_good_as(d, d_theirs, d_exact.cpu(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_linear_compiled(gpu, dtype, softcap):
    """Oracle: float64 logits on the GPU. Break: the pipelined product or its default tile."""
    case = linear_case(gpu, dtype, n=300, d=256, v=5000)
    check_linear(gpu, case, 0.5, softcap, tile=None, width=2048)


def test_tiles_fit_the_logits():
    """Oracle: by hand. Break: half a device idle under few long rows, or threads without work."""

    def choose(n, c, strides=None, processors=132):
        return dense.choose_tile(dense.Shape(1, c, n, strides or (0, 1, c)), processors)

    assert choose(8192, 131072) == dense.Tile(1, 8192)
    assert choose(4096, 1000) == dense.Tile(2, 1024)
    assert choose(1 << 20, 10) == dense.Tile(128, 16)
    assert choose(4, 131072) == dense.Tile(1, 8192, 16)  # as many parts as it has tiles
    assert choose(300, 131072) == dense.Tile(1, 8192)  # the device is full without
    image = dense.choose_tile(dense.Shape(8, 21, 512 * 512, (21 << 18, 1 << 18, 1)), 132)
    assert image == dense.Tile(128, 32)
    assert all(choose(n, c).rows * choose(n, c).columns <= 8192 for n in (1, 99) for c in (1, 9999))


@once
def test_says_why_it_cannot_be_used(monkeypatch):
    """Oracle: by hand. Break: a reason that is missing, or a refusal without one."""
    monkeypatch.setattr(dense, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA or ROCm device" in dense.unavailable()
    assert "'cpu'" in dense.unavailable(torch.zeros(2, 3))
    assert "int64" in dense.unavailable(torch.zeros(2, 3, dtype=torch.long))
    plain, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    assert "dense" in dense.refuses(plain.to_sparse(), target)
    assert "dense" in dense.refuses(torch._neg_view(plain), target)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dense, "kernels", lambda: 1 / 0)
    dense.import_error.cache_clear()
    assert "ZeroDivisionError" in dense.unavailable()
    dense.import_error.cache_clear()


def run_python(*args, **environment):
    """A fresh interpreter with this one's environment and the given variables."""
    folder = os.path.dirname(os.path.abspath(__file__))
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *args], cwd=os.path.dirname(folder), env=env, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip


@once
def test_importing_losslab_does_not_import_triton():
    """Oracle: sys.modules. Break: an import of triton at the top of a file that losslab loads."""
    code = (
        "import sys, losslab; from losslab.logodds import triton, triton_linear as t; "
        "triton.unavailable(); print('triton' in sys.modules)"
    )
    done = run_python("-c", code, TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="")
    assert done.stdout.strip() == "False", done.stdout + done.stderr


@pytest.fixture
def gpu_benchmark():
    """benchmarks/gpu.py as a module."""
    path = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@once
def test_benchmark_needs_a_gpu(gpu_benchmark, monkeypatch, capsys):
    """Oracle: one line and status 2. Break: a traceback, or numbers from a machine without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_benchmark.main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit, match="2"):
        gpu_benchmark.main(["--dense", "4096"])
    assert "ROWSxCLASSES" in capsys.readouterr().err


@once
def test_benchmark_reports_what_was_measured(gpu_benchmark, monkeypatch, capsys, tmp_path):
    """Oracle: medians and ratios by hand. Break: a ratio upside down, an error or rival lost."""

    def measured(size, dtype, losses, rounds):
        assert (size, dtype, rounds) == ("100x1000", torch.bfloat16, 5)
        assert "losslab triton: focal" in losses
        ce = {"milliseconds": [4.0, 2.0, 4.0, 5.0, 4.0], "bytes": 3e6, "loss": 7.0}
        ours = {"milliseconds": [1.0, 2.0, 1.0, 1.0, 0.5], "bytes": 1e6, "loss": 7.0}
        return {"F.cross_entropy": ce, "ours": ours, "broken": {"error": "OutOfMemoryError: 2 GB"}}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Fake H100")
    monkeypatch.setattr(gpu_benchmark, "copy_bandwidth", lambda: 1.2e9)  # floor: 600 kB in 0.5 ms
    monkeypatch.setattr(gpu_benchmark, "run_dense", measured)
    monkeypatch.setattr(gpu_benchmark, "RIVALS", {"liger": "no_such_module", "cce": "nor_this"})
    path = tmp_path / "gpu.json"
    arguments = ["--dense", "100x1000", "--linear", "--rounds", "5", "--json", str(path)]
    assert gpu_benchmark.main([*arguments, "--losses", "focal"]) == 0
    out, err = capsys.readouterr()
    assert "left out: no_such_module" in err
    assert "OutOfMemoryError: 2 GB" in out and "Fake H100" in out
    written = json.loads(path.read_text())
    ours = written["results"][0]["rows"][1]
    assert (ours["median"], ours["ratio"], ours["floor"]) == (1.0, 0.25, 2.0)
    assert (ours["low"], ours["high"], ours["megabytes"]) == (0.75, 1.5, 1.0)
    assert re.search(r"ours +1\.000 +0\.750-1\.500 +0\.25 +2\.00 +1 +7\.0000", out)
    assert written["environment"]["torch"] == torch.__version__


def test_benchmark_computes_the_losses_it_names(device, gpu_benchmark):
    """Oracle: F.cross_entropy. Break: a candidate that is fast because it does something else."""
    hidden, weight, _, target = linear_case(device, torch.float32, n=9)
    rivals = {"liger": None, "cce": None}
    logits = F.linear(hidden, weight)
    for losses, operands in (
        (gpu_benchmark.dense_losses(["cross_entropy"], rivals), (logits,)),
        (gpu_benchmark.linear_losses(["cross_entropy"], rivals), (hidden, weight)),
    ):
        results = {}
        for name, loss in losses.items():
            if "compile" not in name:
                leaves = [x.clone().requires_grad_() for x in operands]
                value = gpu_benchmark.step(loss, (*leaves, target))
                results[name] = [value, *(x.grad for x in leaves)]
        expected = results.pop("F.cross_entropy")
        assert results
        for found in results.values():
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Launches only compile, for an H100, which takes no GPU: {kernel: its PTX}."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class NoDevice(DriverBase):
        def __init__(self):
            pass

        is_active = classmethod(lambda cls: True)
        map_python_to_cpp_type = get_benchmarker = lambda self, *_: None
        get_active_torch_device = lambda self: torch.device("cpu")  # noqa: E731
        get_current_target = lambda self: GPUTarget("cuda", 90, 32)  # noqa: E731
        get_current_device = lambda self: "none"  # noqa: E731
        get_current_stream = lambda self, device: 0  # noqa: E731

    found = {}
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args, warmup, **options):
        found[self.fn.__name__] = run(self, *args, warmup=True, **options).asm["ptx"]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
    monkeypatch.setattr(dense, "cores", lambda device: 132)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDevice())
    return found


@once
def test_dense_compiles_for_an_h100(compiled):
    """Oracle: the instructions. Break: what only the compiler refuses, or loads of single numbers.

    1000 classes are no multiple of 16: without ALIGN each would be read on its own.
    """
    logits = torch.empty(300, 1000, dtype=torch.bfloat16)
    target = torch.zeros(300, dtype=torch.long)
    dense.gradient(logits, target, *dense.statistics(logits, target)[1:], torch.ones(300))
    every, *kept = dense.all_statistics(logits)
    dense.all_gradient(logits, *kept, every)
    assert len(compiled) == 4
    assert all("ld.global.v4" in ptx for ptx in compiled.values())
    assert all(
        "st.global.v4" in ptx for name, ptx in compiled.items() if name != "statistics_kernel"
    )
    dense.statistics(torch.empty(4, 1 << 17), target[:4])
    assert "combine_kernel" in compiled


@once
def test_linear_compiles_for_an_h100(compiled):
    """Oracle: the instructions. Break: what only the compiler refuses, or a product off wgmma."""
    hidden = torch.empty(128, 64, dtype=torch.bfloat16)
    weight, bias = torch.empty(512, 64, dtype=torch.bfloat16), torch.empty(512)
    target = torch.zeros(128, dtype=torch.long)
    options = {"bias": bias, "scale": 0.5, "softcap": 30.0}
    options["tile"] = linear.LinearTile(64, 64, 32, 4, 3)
    found = linear.linear_statistics(hidden, weight, target, **options)
    linear.linear_gradient(hidden, weight, target, *found[:3], found.lse, **options)
    assert len(compiled) == 3
    for name in ("linear_statistics_kernel", "linear_gradient_kernel"):
        assert "wgmma.mma_async" in compiled[name] and "cp.async" in compiled[name]
    assert "st.global.v4" in compiled["linear_gradient_kernel"]


@once
def test_in_the_interpreter():
    """Oracle: this file's own, with TRITON_INTERPRET=1. Break: any test above that needs a device.

    The count guards against a run in which everything skips.
    """
    args = ("-m", "pytest", "-o", "addopts=-q", "-p", "no:cacheprovider", __file__)
    done = run_python(*args, TRITON_INTERPRET="1")
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert passed and int(passed[1]) >= 70, done.stdout[-2000:]

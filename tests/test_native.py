"""The C++ kernel: every instruction set, dtype and memory layout against float64."""

import multiprocessing
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import losslab
from losslab.logodds import all_log_odds, eager, kernel, native, plain
from oracles import logodds as oracle

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def case(n, c, dtype, *, scale=3.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, c, generator=g) * scale).to(dtype)
    return logits, torch.randint(c, (n,), generator=g), torch.randn(n, generator=g)


def value_and_gradient(log_odds, logits, target, upstream):
    leaf = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    a = log_odds(leaf, target)
    a.backward(upstream.to(a.dtype))
    return a.detach(), leaf.grad


def by_native(logits, target):
    assert native.refuses(logits, target) is None
    return kernel.log_odds(native, logits, target)


def by_eager(logits, target):
    return kernel.log_odds(eager, logits, target)


def assert_as_good_as_eager(logits, target, upstream):
    """Errors against float64 no larger than the eager kernel's, plus two roundings."""
    truth = value_and_gradient(plain.log_odds, logits.double(), target, upstream.double())
    ours = value_and_gradient(by_native, logits, target, upstream)
    theirs = value_and_gradient(by_eager, logits, target, upstream)
    eps = torch.finfo(torch.float32).eps
    for mine, eagers, true in zip(ours, theirs, truth, strict=True):
        size = max(1.0, logits.abs().max().item()) if mine.shape == target.shape else 1.0
        rounding = torch.finfo(mine.dtype).eps / 2 * true.abs() + 2 * eps * size
        assert ((mine.double() - true).abs() <= (eagers.double() - true).abs() + rounding).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 3, 8, 16, 17, 24, 25, 31, 100, 1000, 2047, 2049, 5000])
def test_values_and_gradients(level, dtype, classes):
    """Oracle: plain operations in float64. Break: a lost tail, a block boundary, a target that
    is not left out, a rounding mode."""
    for scale in (0.1, 3.0, 50.0):
        assert_as_good_as_eager(*case(19, classes, dtype, scale=scale, seed=classes))


@pytest.mark.parametrize("classes", [3, 40])
def test_rows_one_by_one(level, classes):
    """Oracle: the independent float64 formula of tests/oracles, one row at a time."""
    logits, target, _ = case(40, classes, torch.float32)
    a = by_native(logits, target)
    for row, y, value in zip(logits.tolist(), target.tolist(), a.tolist(), strict=True):
        assert value == pytest.approx(oracle.row_log_odds(row, y), rel=1e-6, abs=1e-6)


LAYOUTS = {
    "slice of columns": lambda x: x(6, 40)[:, 3:37],
    "every other row": lambda x: x(12, 40)[::2],
    "transposed": lambda x: x(40, 6).t(),
    "transposed slice": lambda x: x(40, 9)[:, 2:8].t(),
    "one row": lambda x: x(1, 40),
    "one class": lambda x: x(6, 1),
    "positions": lambda x: x(3, 40, 21),
    "image": lambda x: x(2, 5, 4, 9),
    "channels last": lambda x: x(2, 5, 4, 9).to(memory_format=torch.channels_last),
    "tokens transposed": lambda x: x(3, 21, 40).transpose(1, 2),
    "few classes, tokens": lambda x: x(3, 21, 5).transpose(1, 2),
    "slice of positions": lambda x: x(3, 40, 21)[:, :, 4:9],
    "shifted tokens": lambda x: x(3, 22, 40)[:, :-1].transpose(1, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(level, layout, dtype):
    """Oracle: the same numbers laid out contiguously, in float64. Break: a stride taken for
    another, a gradient written where it does not belong."""
    g = torch.Generator().manual_seed(1)
    logits = LAYOUTS[layout](lambda *shape: torch.randn(*shape, generator=g).to(dtype))
    places = (logits.shape[0], *logits.shape[2:])
    target = torch.randint(logits.shape[1], places, generator=g)
    upstream = torch.randn(places, generator=g)
    assert native.refuses(logits, target) is None
    leaf = logits.detach().requires_grad_()
    a = by_native(leaf, target)
    a.backward(upstream)
    expected = value_and_gradient(
        plain.log_odds, logits.double().contiguous(), target, upstream.double()
    )
    torch.testing.assert_close(a.detach().double(), expected[0], rtol=1e-6, atol=1e-6)
    size = torch.finfo(dtype).eps
    torch.testing.assert_close(leaf.grad.double(), expected[1], rtol=size, atol=1e-6)


def test_layouts_it_does_not_walk():
    """Oracle: eager's numbers, through the public function. Break: reading with wrong strides."""
    base = torch.randn(6, 8, 10)
    strided = base[0].as_strided((4, 3), (2, 5))
    for logits in (base[:, ::2, ::2], base[:, :, ::3], strided):
        target = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.int64)
        assert native.refuses(logits, target)
        torch.testing.assert_close(
            losslab.target_log_odds(logits, target), by_eager(logits, target)
        )


@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_in_place(level, dtype, classes):
    """Oracle: the gradient into fresh memory, which must be the same bits."""
    logits, target, upstream = case(33, classes, dtype)
    _, shift, total = native.statistics(logits, target)
    fresh = native.gradient(logits, target, shift, total, upstream)
    native.gradient(logits, target, shift, total, upstream, out=logits)
    assert torch.equal(logits, fresh)


@pytest.mark.parametrize("classes", [2, 30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_is_read_right(level, dtype, classes):
    """Oracle: PyTorch's conversion of all 65,536 bit patterns. With one finite competitor at 0 the
    log-odds are the target's logit. Break: denormals, infinities, NaN or signs misread."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    logits = torch.full((65536, classes), -INF, dtype=dtype)
    logits[:, 0], logits[:, 1] = patterns, 0
    a, _, _ = native.statistics(logits, torch.zeros(65536, dtype=torch.int64))
    torch.testing.assert_close(a, patterns.float(), rtol=0, atol=0, equal_nan=True)
    if classes > 2:
        logits[:, 1], logits[:, 0] = patterns, 0
        a, _, _ = native.statistics(logits, torch.zeros(65536, dtype=torch.int64))
        usual = patterns.isfinite()
        torch.testing.assert_close(a[usual], -patterns.float()[usual], rtol=0, atol=0)


@pytest.mark.parametrize("classes", [2, 30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_written_to_nearest(level, dtype, classes):
    """Oracle: PyTorch's conversion. One competitor has q = 1, so the gradient is (g, −g) rounded.
    Break: truncation, ties away from even, denormals, overflow to NaN."""
    g = torch.Generator().manual_seed(0)
    upstream = torch.randn(20_000, generator=g) * 10.0 ** torch.randint(
        -9, 6, (20_000,), generator=g
    )
    ties = torch.arange(1, 400).to(dtype).float() + torch.finfo(dtype).eps / 2
    ends = torch.tensor([65504.0, 65519.9, 65520.0, 7e4, 1e-8, 1e-30])
    upstream = torch.cat([upstream, ties, ends])
    logits = torch.full((len(upstream), classes), -INF, dtype=dtype)
    logits[:, :2] = 0
    out = native.gradient(
        logits,
        torch.zeros(len(upstream), dtype=torch.int64),
        torch.zeros(len(upstream)),
        torch.ones(len(upstream)),
        upstream,
    )
    assert torch.equal(out[:, 0], upstream.to(dtype))  # 1e-30 becomes 0 in float16
    assert torch.equal(out[:, 1], (-upstream).to(dtype))


@pytest.mark.parametrize("width", [3, 30], ids=["few classes", "many"])
@pytest.mark.parametrize(
    ("row", "expected", "gradient"),
    [
        ([5.0, -INF, -INF], INF, [0.0, 0.0, 0.0]),
        ([INF, 1.0, 2.0], INF, None),
        ([-INF, 1.0, 2.0], -INF, [1.0, -0.2689414, -0.7310586]),
        ([1.0, INF, 0.0], -INF, [1.0, -1.0, 0.0]),
        ([3e38, -3e38, -INF], INF, [1.0, -1.0, 0.0]),
        ([NAN, 0.0, 1.0], NAN, None),
        ([0.0, NAN, 1.0], NAN, None),
        ([0.0, 1.0, NAN], NAN, None),
    ],
)
def test_corner_cases(level, row, expected, gradient, width):
    """Oracle: losses.md by hand. Break: −inf − −inf, 0·∞, a NaN that max or min swallows."""
    logits = torch.tensor([[*row, *[-INF] * (width - 3)]], requires_grad=True)
    a = by_native(logits, torch.tensor([0]))
    torch.testing.assert_close(a.item(), expected, equal_nan=True)
    if gradient is not None:
        a.backward(torch.ones(1))
        assert logits.grad[0, :3].tolist() == pytest.approx(gradient, abs=1e-6)


def test_nan_anywhere_shows(level):
    """Oracle: NaN. Break: a vector lane or a tail where a NaN is lost."""
    for classes in (5, 16, 50, 2100):
        for place in {0, 1, classes // 2, classes - 2, classes - 1}:
            logits = torch.zeros(2, classes)
            logits[1, place] = NAN
            a, _, _ = native.statistics(logits, torch.tensor([0, 0]))
            assert a[0].isfinite() and a[1].isnan()
            every = native.all_statistics(logits)[0]
            assert every[0].isfinite().all() and every[1].isnan().all()


def test_ignored_rows_cost_and_leave_nothing():
    """Oracle: zeros. Break: 0·NaN from a row whose upstream gradient is 0."""
    logits = torch.randn(4, 50)
    _, shift, total = native.statistics(logits, torch.tensor([1, 2, 3, 4]))
    g = torch.tensor([0.0, 1.0, 0.0, -0.0])
    out = native.gradient(logits, torch.tensor([1, 2, 3, 4]), shift, total, g)
    assert torch.equal(out[[0, 2, 3]], torch.zeros(3, 50)) and out[1].abs().sum() > 0.1


@pytest.mark.parametrize("target", [[0, 3], [-1, 0], [0, 2**40], [-(2**62), 1]])
def test_targets_out_of_range(target):
    """Oracle: an IndexError before anything is read. Break: reading beyond the row."""
    logits, bad = torch.randn(2, 3), torch.tensor(target)
    with pytest.raises(IndexError):
        native.statistics(logits, bad)
    with pytest.raises(IndexError):
        native.gradient(logits, bad, torch.zeros(2), torch.ones(2), torch.ones(2))
    for call in (losslab.target_log_odds, losslab.encouraging_loss):
        with pytest.raises(IndexError, match="out of bounds"):
            call(logits, bad)


def test_what_it_refuses():
    """Oracle: the reasons, in words. Break: an address of something that is no plain CPU memory."""
    y = torch.tensor([0])
    assert "float64" in native.refuses(torch.zeros(1, 2, dtype=torch.float64), y)
    assert "meta" in native.refuses(torch.zeros(1, 2, device="meta"), y)

    class Mine(torch.Tensor):
        pass

    assert "subclasses" in native.refuses(torch.zeros(1, 2).as_subclass(Mine), y)


# Every class's log-odds


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 7, 16, 33, 1000])
def test_all_classes(level, dtype, classes):
    """Oracle: each class in turn as the target, plain operations in float64. Break: cancellation at
    the top class, a missing term of the gradient."""
    for scale in (0.5, 4.0, 60.0):
        logits, _, _ = case(11, classes, dtype, scale=scale, seed=classes)
        upstream = torch.randn(11, classes, generator=torch.Generator().manual_seed(3))
        leaf = logits.double().requires_grad_()
        every = [plain.log_odds(leaf, torch.full((11,), k)) for k in range(classes)]
        truth = torch.stack(every, 1)
        truth.backward(upstream.double())
        a, saved = native.all_statistics(logits)
        grad = native.all_gradient(logits, saved, upstream)
        eps = torch.finfo(torch.float32).eps
        size = logits.abs().max().double() + truth.detach().abs() + 1
        assert ((a.double() - truth).abs() <= 4 * eps * size).all()
        allowed = torch.finfo(dtype).eps / 2 * leaf.grad.abs()
        allowed += 2e-6 * upstream.abs().sum(1, keepdim=True)
        assert ((grad.double() - leaf.grad).abs() <= allowed).all()


def test_all_classes_with_infinities(level):
    """Oracle: the limits. Break: a gradient that is NaN where the top class has no competitor."""
    logits = torch.tensor([[2.0, -INF, -INF], [INF, 0.0, 1.0], [0.0, -INF, 0.0]])
    a, saved = native.all_statistics(logits)
    assert a.tolist() == [[INF, -INF, -INF], [INF, -INF, -INF], [0.0, -INF, 0.0]]
    grad = native.all_gradient(logits, saved, torch.tensor([[3.0, 0.0, 0.0]] * 3))
    assert grad[0].tolist() == [0, 0, 0] and grad[2].tolist() == pytest.approx([3, 0, -3])


# With PyTorch around it


def test_operators_pass_pytorchs_checks():
    """Oracle: torch.library.opcheck: schema, fake tensors, autograd registration, AOT dispatch."""
    from losslab.logodds import operator

    for dtype in DTYPES:
        logits, target, upstream = case(5, 30, dtype)
        arguments = (logits.requires_grad_(), target)
        torch.library.opcheck(operator._statistics, arguments)
        _, shift, total = native.statistics(logits.detach(), target)
        torch.library.opcheck(operator._gradient, (logits.detach(), target, shift, total, upstream))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_calls_the_kernel(monkeypatch, dynamic):
    """Oracle: eager value and gradient, and a count of the kernel's calls. Break: a graph break
    (fullgraph), a silent fallback to plain operations."""
    calls = []
    statistics = native.statistics
    monkeypatch.setattr(native, "statistics", lambda *a: calls.append(1) or statistics(*a))
    loss = losslab.EncouragingLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (6, 9):
        logits, target, _ = case(n, 30, torch.float32, seed=n)
        target[1] = -100
        expected = value_and_gradient(loss, logits, target, torch.tensor(0.7))
        before = len(calls)
        got = value_and_gradient(compiled, logits, target, torch.tensor(0.7))
        assert len(calls) > before
        for mine, true in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, true)
    torch._dynamo.reset()


def test_second_derivatives_and_transforms():
    """Oracle: plain operations in float64. Break: a kernel's result that autograd takes for a
    constant."""
    logits, target, _ = case(4, 30, torch.float32)
    v = torch.randn(4, 30, generator=torch.Generator().manual_seed(5))
    loss = losslab.FocalLoss()
    found = []
    for z in (logits, logits.double()):
        leaf = z.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf, target), leaf, create_graph=True)
        (product,) = torch.autograd.grad((grad * v).sum(), leaf)
        _, forward = torch.func.jvp(lambda x: loss(x, target), (z,), (v.to(z.dtype),))
        each = torch.func.vmap(torch.func.grad(loss))(z.unsqueeze(1), target.unsqueeze(1))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(z, v.to(z.dtype))
            tangent = torch.autograd.forward_ad.unpack_dual(loss(dual, target)).tangent
        found.append((product, forward, each, tangent))
    for mine, true in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-7)


def test_autocast():
    """Oracle: F.linear's bfloat16 logits under autocast, the loss in float32."""
    x, w = torch.randn(8, 5), torch.randn(30, 5, requires_grad=True)
    target = torch.randint(30, (8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.nn.functional.linear(x, w)
        loss = losslab.EncouragingLoss()(logits, target)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert w.grad.dtype == torch.float32 and w.grad.abs().sum() > 0


def test_many_python_threads():
    """Oracle: the same call alone. Break: state shared between calls."""
    cases = [case(300, 500, torch.float32, seed=s) for s in range(6)]
    alone = [value_and_gradient(by_native, *c) for c in cases]
    found = [None] * len(cases)

    def work(i):
        for _ in range(5):
            found[i] = value_and_gradient(by_native, *cases[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (a, grad), (value, truth) in zip(found, alone, strict=True):
        assert torch.equal(a, value) and torch.equal(grad, truth)


def test_thread_count_does_not_change_a_bit():
    """Oracle: one thread. Break: sums that depend on who computes a row."""
    given = torch.get_num_threads()
    logits, target, upstream = case(700, 600, torch.float32)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(value_and_gradient(by_native, logits, target, upstream))
    finally:
        torch.set_num_threads(given)
    for a, grad in found[1:]:
        assert torch.equal(a, found[0][0]) and torch.equal(grad, found[0][1])


class Losses(Dataset):
    """Items that compute a loss, in whatever process they are asked for."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        logits, target, _ = case(200, 400, torch.float32, seed=i)
        return losslab.encouraging_loss(logits, target)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(method):
    """Oracle: this process. Break: a thread pool that does not survive a fork hangs (timeout)."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    here = torch.stack([Losses()[i] for i in range(6)])  # parallel before the fork, too
    loader = DataLoader(
        Losses(), batch_size=3, num_workers=2, multiprocessing_context=method, timeout=60
    )
    assert torch.equal(torch.cat(list(loader)), here)


def test_a_large_vocabulary():
    """Oracle: plain operations in float64 on some rows. Break: 32-bit offsets or counts."""
    logits, target, upstream = case(96, 128_000, torch.bfloat16)
    a, grad = value_and_gradient(by_native, logits, target, upstream)
    rows = [0, 50, 95]
    truth = value_and_gradient(
        plain.log_odds, logits[rows].double(), target[rows], upstream[rows].double()
    )
    torch.testing.assert_close(a[rows].double(), truth[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad[rows].double(), truth[1], rtol=4e-3, atol=1e-9)


def test_empty_batches():
    """Oracle: shapes, and PyTorch's mean of nothing."""
    a, grad = value_and_gradient(
        by_native, torch.empty(0, 5), torch.empty(0, dtype=torch.int64), torch.empty(0)
    )
    assert a.shape == (0,) and grad.shape == (0, 5)
    assert losslab.encouraging_loss(torch.empty(0, 5), torch.empty(0, dtype=torch.int64)).isnan()
    assert all_log_odds(torch.empty(0, 5)).shape == (0, 5)

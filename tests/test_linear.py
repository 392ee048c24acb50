"""linear_loss and LinearLoss against the loss of all logits, in float64 and by the book."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import losslab
from laws import reference
from laws.settings import ON_SOFTMAX, SPECS
from losslab import metrics
from losslab.bench.memory import peak_bytes
from losslab.linear import LinearLoss, LinearRows, linear_loss
from losslab.linear import layer as layer_module
from losslab.logodds import select

INF, NAN = float("inf"), float("nan")
ONE_PASS = [
    next(s for s in ON_SOFTMAX if s.spec == spec)
    for spec in ("cross_entropy", "encouraging", "focal", "mixed(focus=0.3)")
]
# A loss of each way through: log-odds with and without ψ' written out, and those that need more.
WAYS = {
    "psi": "encouraging(log_end=0.5)",
    "sum of psi": "cross_entropy + 0.5*expectation",
    "own psi": lambda a: F.softplus(-a) + torch.tanh(-a),
    "row-wise": "mean_squared_error",
    "sum": "cross_entropy + 0.5*mean_squared_error",
    "changed logits": "logit_adjustment(focal, counts=[3, 1, 4, 1, 5, 9, 2])",
    "one-vs-rest": "one_vs_rest(cross_entropy)",
}
every_way = pytest.mark.parametrize("loss", WAYS.values(), ids=WAYS)
N, D, V = 11, 5, 7


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def case(n=N, d=D, v=V, *, bias=True, dtype=torch.float64, seed=0):
    """Leaves (hidden, weight, bias or None) and class indices."""
    shapes = [(n, d), (v, d), (v,)] if bias else [(n, d), (v, d)]
    leaves = [normal(*s, seed=seed + i, dtype=dtype) for i, s in enumerate(shapes)]
    target = torch.randint(v, (n,), generator=generator(seed))
    return [x.requires_grad_() for x in leaves] + [None] * (not bias), target


def on_logits(leaves, target, loss, *, softcap=None, logit_scale=1.0, z_loss=0.0, **options):
    """The same by all logits: F.linear, then the loss, in the leaves' dtype."""
    hidden, weight, bias = leaves
    z = F.linear(hidden, weight, bias) * logit_scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    z = z.reshape(-1, z.shape[-1])
    t = target.reshape(-1, z.shape[-1]) if target.is_floating_point() else target.reshape(-1)
    module = (
        losslab.loss(loss, **options)
        if isinstance(loss, str)
        else losslab.OddsLoss(loss, **options)
    )
    result = module(z, t)
    if z_loss:
        used = torch.ones(len(z)) if t.is_floating_point() else t != module_ignores(options)
        squares = torch.logsumexp(z, 1).square() * used
        kind = options.get("reduction", "mean")
        result = result + z_loss * {
            "none": squares, "sum": squares.sum(), "mean": squares.sum() / used.sum()
        }[kind]  # fmt: skip
    return result.reshape(hidden.shape[:-1]) if result.dim() else result


def module_ignores(options):
    return options.get("ignore_index", -100)


def gradients(result, leaves, upstream=None, **options):
    leaves = [x for x in leaves if x is not None and x.requires_grad]
    upstream = torch.ones_like(result) if upstream is None else upstream
    return torch.autograd.grad(result, leaves, upstream.to(result.dtype), **options)


def assert_same(ours, truth, leaves, tolerance=1e-11):
    """Value and gradients, with a random upstream gradient that is not the same for all rows."""
    torch.testing.assert_close(ours, truth.to(ours.dtype), rtol=tolerance, atol=tolerance)
    upstream = normal(*truth.shape, seed=99, dtype=truth.dtype)
    want = gradients(truth, leaves, upstream, retain_graph=True)
    for mine, true in zip(gradients(ours, leaves, upstream), want, strict=True):
        torch.testing.assert_close(mine, true, rtol=tolerance, atol=tolerance)


# --- by the book ----------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ONE_PASS, ids=lambda s: s.spec)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_by_the_book(setting, reduction, smoothing):
    """Oracle: printed formulas in float64 for ∂L/∂z, and the chain rule with numpy for h, W, b.

    Break: a bias left out or added twice, a mean divided by rows instead of used weights, one
    upstream gradient for all rows, ignored rows counted.
    """
    leaves, target = case()
    target[3] = target[7] = 2
    options = {
        "weight": torch.rand(V, generator=generator(5), dtype=torch.float64) + 0.1,
        "ignore_index": 2,
        "reduction": reduction,
        "label_smoothing": smoothing,
    }
    hidden, weight, bias = leaves
    logits = F.linear(hidden, weight, bias).detach()
    result = linear_loss(
        hidden, weight, target, setting.spec, linear_bias=bias, chunk_rows=4, **options
    )
    truth = reference.value(setting, logits, target, **options)
    torch.testing.assert_close(result, torch.tensor(truth), rtol=1e-10, atol=1e-10)
    upstream = normal(*result.shape, seed=9)
    dz = reference.gradient(setting, logits, target, upstream, **options).numpy()
    h, w = hidden.detach().numpy(), weight.detach().numpy()
    for mine, true in zip(
        gradients(result, leaves, upstream), (dz @ w, dz.T @ h, dz.sum(0)), strict=True
    ):
        np.testing.assert_allclose(mine.numpy(), true, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS)
def test_every_loss_of_the_library(spec):
    """Oracle: the loss on all logits. Break: a loss sent the wrong way through, or a lost term."""
    if "complement_objective" in spec:
        pytest.skip("alternates two steps: see test_what_does_not_fit_is_refused")
    leaves, target = case()
    for reduction in ("mean", "none"):
        options = {"softcap": 4.0, "logit_scale": 1.5, "z_loss": 0.01, "reduction": reduction}
        ours = linear_loss(
            *leaves[:2], target, spec, linear_bias=leaves[2], chunk_rows=3, **options
        )
        assert_same(ours, on_logits(leaves, target, spec, **options), leaves)


@every_way
@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "sum"},
        {"reduction": "none", "ignore_index": 1},
        {"softcap": 2.0, "ignore_index": 0},
        {"softcap": 2.0, "logit_scale": 0.3, "z_loss": 0.1, "reduction": "none"},
        {"logit_scale": 3.0, "z_loss": 0.1, "ignore_index": 3},
        {"z_loss": 0.1, "reduction": "sum", "label_smoothing": 0.1},
        {"weight": True, "z_loss": 0.1, "reduction": "none", "ignore_index": 2},
        {"weight": True, "softcap": 1.0, "label_smoothing": 0.2, "ignore_index": 4},
    ],
    ids=str,
)
def test_options_together(loss, options):
    """Oracle: the loss on all logits. Break: softcap's slope forgotten, z-loss averaged over all
    rows, a scale applied before the bias, an option that only one way through knows."""
    if "weight" in options:
        options = options | {"weight": torch.rand(V, generator=generator(1), dtype=torch.float64)}
    for bias in (False, True):
        leaves, target = case(bias=bias, seed=3)
        ours = linear_loss(
            *leaves[:2], target, loss, linear_bias=leaves[2], chunk_rows=4, **options
        )
        assert_same(ours, on_logits(leaves, target, loss, **options), leaves)


@every_way
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunks_change_nothing(loss, reduction):
    """Oracle: all rows in one chunk. Break: a row lost or counted twice at a chunk's border."""
    leaves, target = case()
    target[4] = -100
    whole = on_logits(leaves, target, loss, reduction=reduction)
    for rows in (1, 2, 3, N, 10 * N):
        ours = linear_loss(
            *leaves[:2], target, loss, linear_bias=leaves[2], reduction=reduction, chunk_rows=rows
        )
        assert_same(ours, whole, leaves)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_probability_targets(reduction):
    """Oracle: the loss on all logits. Break: chunks of logits beside the wrong targets."""
    leaves, _ = case()
    target = torch.softmax(normal(N, V, seed=8), 1)
    weight = torch.rand(V, generator=generator(1), dtype=torch.float64)
    options = {"reduction": reduction, "weight": weight, "label_smoothing": 0.1, "z_loss": 0.1}
    for loss in ("focal", "mean_squared_error"):
        ours = linear_loss(
            *leaves[:2], target, loss, linear_bias=leaves[2], chunk_rows=4, **options
        )
        assert_same(ours, on_logits(leaves, target, loss, **options), leaves)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_beside_pytorch(reduction):
    """Oracle: F.cross_entropy, and F.linear_cross_entropy where torch has it, by its own names."""
    leaves, target = case()
    target[2] = 5
    options = {"weight": torch.rand(V, dtype=torch.float64), "ignore_index": 5}
    options |= {"reduction": reduction, "label_smoothing": 0.1}
    rivals = [F.cross_entropy(F.linear(*leaves), target, **options)]
    if hasattr(F, "linear_cross_entropy"):
        rivals += [F.linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], **options)]
    for rival in rivals:
        ours = linear_loss(*leaves[:2], target, linear_bias=leaves[2], **options)
        assert_same(ours, rival, leaves)


# --- rounding -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "mean_squared_error"])
@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 3.0, "logit_scale": 2.0, "z_loss": 1e-2}], ids=str
)
def test_rounding_is_that_of_the_logits(dtype, loss, backend, options):
    """Oracle: float64. The root-mean-square error of value and gradients may be a quarter above
    that of the same loss on all logits in the same dtype (sums over chunks round more often).

    Break: gradients summed over chunks in a half type (1.4 to 3 times the error here), a loss or
    log-odds in a half type.
    """
    leaves, target = case(600, 32, 200, dtype=dtype)
    with torch.no_grad():
        leaves[1].mul_(0.4)
        best = F.linear(*(x.double() for x in leaves)).argmax(1)
        target[:300] = best[:300]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    truth = on_logits(wide, target, loss, **options)
    exact = [truth.detach(), *gradients(truth, wide)]

    def errors(result):
        found = [result.detach(), *gradients(result, leaves)]
        return [
            float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)
        ]

    select.set_backend(backend)
    try:
        for reduction in ("mean", "none"):
            ours = linear_loss(
                *leaves[:2], target, loss, linear_bias=leaves[2], chunk_rows=20,
                reduction=reduction, **options,
            )  # fmt: skip
            assert ours.dtype == torch.float32
            limits = errors(on_logits(leaves, target, loss, **options))
            for error, limit in zip(errors(ours.mean()), limits, strict=True):
                assert error <= 1.25 * limit + 4 * torch.finfo(torch.float32).eps
    finally:
        select.set_backend("auto")


@pytest.mark.parametrize("loss", ["cross_entropy", "mean_squared_error"])
def test_a_gradient_scaler_comes_before_the_rounding(loss):
    """Oracle: float64. In float16 the gradient of each logit, 1e-3/4000, is below its range unless
    the upstream 65536 is there first. Break: gradients computed on the way forward in a half type.
    """
    leaves, target = case(4000, 8, 40, dtype=torch.float16)
    with torch.no_grad():
        leaves[1].mul_(0.01)
        leaves[2].mul_(0.01)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    truth = gradients(on_logits(wide, target, loss), wide, torch.tensor(65536.0))
    result = linear_loss(*leaves[:2], target, loss, linear_bias=leaves[2])
    for mine, true in zip(gradients(result, leaves, torch.tensor(65536.0)), truth, strict=True):
        assert (mine.double() - true).norm() < 3e-3 * true.norm()


@pytest.mark.parametrize("loss", ["focal", "mean_squared_error"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(loss, reduction):
    """Oracle: the logits by F.linear under the same autocast. Break: the product in float32, a
    loss or gradient in bfloat16, a product cast again where backward runs under autocast too."""
    leaves, target = case(200, 16, 50, dtype=torch.float32)
    results = []
    with torch.autocast("cpu", torch.bfloat16):
        for compute in (
            lambda: linear_loss(
                *leaves[:2], target, loss, linear_bias=leaves[2], reduction=reduction
            ),
            lambda: losslab.loss(loss, reduction=reduction)(F.linear(*leaves), target),
        ):
            result = compute()
            assert result.dtype == torch.float32
            found = gradients(result, leaves, normal(*result.shape, seed=4))
            assert all(g.dtype == torch.float32 for g in found)
            results.append([result.detach(), *found])
    wide = [x.detach().double() for x in leaves]
    exact = on_logits(wide, target, loss, reduction=reduction)
    assert 1e-5 < (results[0][0] - exact).norm() / exact.norm() < 1e-2  # it was in bfloat16
    for mine, true in zip(*results, strict=True):
        assert (mine - true).norm() <= 0.01 * true.norm()


def test_autocast_leaves_float64_alone():
    """Oracle: F.linear, which autocast does not touch in float64. Break: a cast to bfloat16."""
    leaves, target = case()
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_loss(*leaves[:2], target, linear_bias=leaves[2])
        assert_same(ours, on_logits(leaves, target, "cross_entropy"), leaves)


class Mixing(nn.Module):
    """A change to the logits that autocast would round."""

    def forward(self, logits, target):
        return logits @ torch.eye(logits.shape[1], dtype=logits.dtype).mul(1.001)


def test_backward_under_autocast():
    """Oracle: the backward pass outside of autocast. Break: logits made again in another dtype."""
    leaves, target = case(200, 16, 50, dtype=torch.float32)
    loss = losslab.AdjustedLoss(Mixing(), losslab.FocalLoss(reduction="none"))
    for criterion in (loss, "focal"):
        result = linear_loss(*leaves[:2], target, criterion, linear_bias=leaves[2]).sum()
        true = gradients(result, leaves, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            for mine, want in zip(gradients(result, leaves), true, strict=True):
                torch.testing.assert_close(mine, want, rtol=1e-6, atol=1e-6)


# --- gradients asked for in every way ---------------------------------------------------------


@every_way
def test_backward_twice(loss):
    """Oracle: 2.5 and −4 times the gradient of the loss on all logits. Break: saved gradients
    scaled in place while the graph is kept, or handed out and then changed."""
    leaves, target = case()
    true = gradients(on_logits(leaves, target, loss), leaves)
    result = linear_loss(*leaves[:2], target, loss, linear_bias=leaves[2])
    first = torch.autograd.grad(result, leaves, torch.tensor(2.5), retain_graph=True)
    kept = [x.clone() for x in first]
    unit = torch.autograd.grad(result, leaves, retain_graph=True)
    last = torch.autograd.grad(result, leaves, torch.tensor(-4.0))
    for a, b, c, d, t in zip(first, kept, unit, last, true, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, 2.5 * t)
        torch.testing.assert_close(c, t)
        torch.testing.assert_close(d, -4 * t)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(result, leaves)


def test_used_twice_in_one_graph():
    """Oracle: the product rule on the loss of all logits. Break: an upstream gradient of only one
    of the two uses."""
    leaves, target = case()
    ours = linear_loss(*leaves[:2], target, linear_bias=leaves[2])
    true = on_logits(leaves, target, "cross_entropy")
    assert_same(ours * ours + 3 * ours, true * true + 3 * true, leaves)


def test_gradients_accumulate():
    """Oracle: F.linear and F.cross_entropy over two batches. Break: .grad aliased to saved memory,
    which the second batch's scaling would change."""
    leaves, target = case()
    copies = [x.detach().clone().requires_grad_() for x in leaves]
    for factor in (1.0, 0.5):
        (factor * linear_loss(*leaves[:2], target, linear_bias=leaves[2])).backward()
        (factor * F.cross_entropy(F.linear(*copies), target)).backward()
    for x, y in zip(leaves, copies, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@every_way
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_what_needs_a_gradient(loss, reduction, monkeypatch):
    """Oracle: the full gradients. The matrix products are counted: frozen parts cost none, a mean
    in float64 takes 3, without gradients there is 1. Break: a product for nobody."""
    leaves, target = case(bias=False)
    full = gradients(linear_loss(*leaves[:2], target, loss, reduction=reduction), leaves)
    shape = [] if reduction == "mean" else [N]
    upstream = normal(*shape, seed=4) if shape else torch.tensor(1.0)
    full = gradients(linear_loss(*leaves[:2], target, loss, reduction=reduction), leaves, upstream)
    count = count_products(monkeypatch)
    again = 1 if reduction == "none" else 0
    for needs, products in (((1, 1), 3), ((1, 0), 2), ((0, 1), 2)):
        parts = [x.detach().requires_grad_(bool(n)) for x, n in zip(leaves[:2], needs, strict=True)]
        count.clear()
        result = linear_loss(*parts, target, loss, reduction=reduction, chunk_rows=N)
        found = iter(gradients(result, parts, upstream))
        assert sum(count) == (products + again) * N * D * V
        for need, true in zip(needs, full, strict=True):
            if need:
                torch.testing.assert_close(next(found), true)
    for context in (torch.no_grad, torch.inference_mode):
        count.clear()
        with context():
            assert not linear_loss(*leaves[:2], target, loss, reduction=reduction).requires_grad
        assert sum(count) == N * D * V


def count_products(monkeypatch):
    """Multiplications of every matrix product from here on."""
    count = []

    def counting(f, a, b):
        def product(*args, **keywords):
            count.append(args[a].shape[0] * args[a].shape[1] * args[b].shape[1])
            return f(*args, **keywords)

        return product

    monkeypatch.setattr(torch, "mm", counting(torch.mm, 0, 1))
    monkeypatch.setattr(torch, "addmm", counting(torch.addmm, 1, 2))
    monkeypatch.setattr(torch.Tensor, "addmm_", counting(torch.Tensor.addmm_, 1, 2))
    monkeypatch.setattr(F, "linear", None)
    return count


@pytest.mark.parametrize("loss", ["focal", lambda a: torch.tanh(-a), "mean_squared_error"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(loss, reduction):
    """Oracle: numerical first and second derivatives in float64. Break: a second derivative that
    is silently wrong or missing."""
    leaves, target = case(4, 3, 5)
    target[1] = -100

    def f(hidden, weight, bias):
        return linear_loss(
            hidden, weight, target, loss, linear_bias=bias, reduction=reduction, softcap=5.0,
            logit_scale=1.2, z_loss=0.1, chunk_rows=2,
        )  # fmt: skip

    gradcheck(f, leaves)
    gradgradcheck(f, leaves)


@every_way
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transforms(loss, reduction):
    """Oracle: the same transform of the loss on all logits. Break: a transform that sees gradients
    computed outside of it."""
    leaves, target = case()
    target[1] = -100
    hidden, weight, bias = (x.detach() for x in leaves)

    def ours(h):
        options = {"linear_bias": bias, "reduction": reduction, "z_loss": 0.1}
        return linear_loss(h, weight, target, loss, **options).sum()

    def true(h):
        leaves = (h, weight, bias)
        return on_logits(leaves, target, loss, reduction=reduction, z_loss=0.1).sum()

    results, func = [], torch.func
    tangent, stack = normal(N, D, seed=7), normal(3, N, D, seed=8)
    for f in (ours, true):
        with forward_ad.dual_level():
            dual = f(forward_ad.make_dual(hidden, tangent))
            forward = forward_ad.unpack_dual(dual).tangent
        both = func.jvp(f, (hidden,), (tangent,))[1], forward
        results.append(
            [func.grad(f)(hidden), func.vmap(f)(stack), func.vmap(func.grad(f))(stack), *both]
        )
    for mine, want in zip(*results, strict=True):
        torch.testing.assert_close(mine, want)


@every_way
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_batch_of_gradients(loss, reduction):
    """Oracle: a loop over the upstream gradients. Break: is_grads_batched reaching a kernel, which
    needs memory, or scaling in place."""
    leaves, target = case()
    leaves[2] = None

    def f(hidden):
        return linear_loss(hidden, leaves[1], target, loss, reduction=reduction)

    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(f, leaves[0], vectorize=True), jacobian(f, leaves[0]))


@pytest.mark.parametrize(
    "loss, reduction",
    [("focal", "mean"), (losslab.loss("encouraging(log_end=0.5) - mixed"), "none")],
    ids=["spec", "module"],
)
def test_compiled(loss, reduction):
    """Oracle: eager. fullgraph=True raises at any break of the graph, and no operation may make
    logits. Break: an operator that forgets a gradient, an option or the ignored rows."""
    leaves, target = case()
    target[1] = target[5] = 4
    if isinstance(loss, str):
        options = {"ignore_index": 4, "reduction": reduction, "weight": normal(V).abs()}
    else:
        loss, options = losslab.loss(loss.spec, ignore_index=4, reduction=reduction), {}
    made = []

    def f(hidden, weight, bias):
        return linear_loss(
            hidden, weight, target, loss, linear_bias=bias, softcap=3.0, z_loss=0.1,
            return_rows=True, **options,
        )  # fmt: skip

    def backend(graph, inputs):
        found = [node.meta.get("example_value") for node in graph.graph.nodes]
        made.extend(x for x in found if isinstance(x, torch.Tensor) and x.dim() > 1)
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, inputs)

    (ours, rows), (true, expected) = (
        torch.compile(f, fullgraph=True, backend=backend)(*leaves),
        f(*leaves),
    )
    assert_same(ours, true, leaves)
    for mine, want in zip(rows, expected, strict=True):
        torch.testing.assert_close(mine, want, equal_nan=True)
    assert made and all(x.shape[:1] != (N,) or x.shape[-1] != V for x in made)
    torch.compiler.reset()


def test_compiled_row_wise():
    """Oracle: eager. Break: a loss that is no ψ given to the operators of those that are."""
    leaves, target = case()
    head = losslab.loss("mean_squared_error")

    def f(hidden):
        return linear_loss(hidden, leaves[1], target, head, linear_bias=leaves[2])

    ours = torch.compile(f, fullgraph=True, backend="aot_eager")(leaves[0])
    assert_same(ours, f(leaves[0]), leaves[:1])
    torch.compiler.reset()


@pytest.mark.parametrize("learnt", ["slope", "weight"])
def test_parameters_of_a_psi_learn(learnt):
    """Oracle: the loss on all logits. Break: a ψ's own parameter without gradient, or class
    weights whose part in the mean's divisor is forgotten."""
    leaves, target = case()
    slope = torch.tensor(0.7, dtype=torch.float64, requires_grad=learnt == "slope")
    weight = torch.rand(V, generator=generator(2), dtype=torch.float64)
    weight.requires_grad_(learnt == "weight")

    def psi(a):
        return F.softplus(-slope * a)

    ours = linear_loss(*leaves[:2], target, psi, linear_bias=leaves[2], weight=weight)
    assert_same(ours, on_logits(leaves, target, psi, weight=weight), [*leaves, slope, weight])
    with pytest.raises(losslab.InputError, match="need a gradient"):
        linear_loss(*leaves[:2], target, psi, weight=weight, label_smoothing=0.1)


@every_way
@pytest.mark.parametrize("what", ["layer", "target", "class weights"])
def test_what_changes_in_between_is_noticed(loss, what):
    """Oracle: autograd's own error for F.linear and F.cross_entropy. Break: a backward pass that
    makes the logits again from tensors that are no longer those of the forward pass."""
    leaves, target = case()
    weight = torch.ones(V, dtype=torch.float64)
    result = linear_loss(*leaves[:2], target, loss, reduction="none", weight=weight).sum()
    with torch.no_grad():
        {"layer": leaves[1], "target": target, "class weights": weight}[what].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss, reduction, factor",
    [
        ("cross_entropy", "mean", 1.0),
        ("cross_entropy", "mean", 0.3),
        ("cross_entropy", "none", 0.3),
        ("mean_squared_error", "mean", 0.3),
    ],
)
def test_peak_memory(loss, reduction, factor, monkeypatch):
    """Oracle: PyTorch's allocator. Above the gradients that stay, a fifth of the logits at most.
    Break: all logits, a second copy of a gradient for an upstream factor, a gradient per chunk."""
    monkeypatch.setattr(layer_module, "_CPU_CHUNK", (0, 1 << 27))  # even for small logits
    leaves, target = case(1024, 256, 4000, bias=False, dtype=torch.float32)
    hidden, weight, _ = leaves

    def step():
        result = linear_loss(hidden, weight, target, loss, reduction=reduction).mean()
        (factor * result).backward()

    extra = peak_bytes(step, torch.device("cpu")) - hidden.nbytes - weight.nbytes
    assert extra <= 0.2 * 1024 * 4000 * 4


def test_peak_memory_in_half():
    """The same in bfloat16, where nothing of the weight's size may be held in float32."""
    leaves, target = case(1024, 128, 8000, bias=False, dtype=torch.bfloat16)
    hidden, weight, _ = leaves

    def step():
        linear_loss(hidden, weight, target, chunk_rows=128).backward()

    extra = peak_bytes(step, torch.device("cpu")) - hidden.nbytes - weight.nbytes
    assert extra <= 0.2 * 1024 * 8000 * 2


def test_chunk_sizes():
    """By hand: a sixth of 1024 rows in 16s, all rows of small logits, at least one of huge ones."""
    row = torch.empty(32000, 0)
    assert layer_module.chunk_rows(1024, row, 6) == 176
    assert layer_module.chunk_rows(100, torch.empty(10, 0), 6) == 100
    assert layer_module.chunk_rows(100_000, row, 6) * row.shape[0] * 4 <= 1.2 * (1 << 27)
    assert layer_module.chunk_rows(3, torch.empty(1 << 26, 0), 6) == 1
    assert layer_module.chunk_rows(0, row, 6) == 1


# --- rows -------------------------------------------------------------------------------------


def rows_by_metrics(leaves, target, ignore_index=-100):
    """LinearRows from losslab.metrics and torch.logsumexp, in float64."""
    logits = F.linear(*leaves).detach().double()
    used = target != ignore_index
    z, t = logits[used], target[used]
    numbers = [metrics.margin(z, t), metrics.log_odds(z, t), z.logsumexp(-1)]
    spread = [torch.full(target.shape, NAN, dtype=torch.float64) for _ in numbers]
    for place, values in zip(spread, numbers, strict=True):
        place[used] = values
    correct = torch.zeros_like(used)
    correct[used] = metrics.correct(z, t)
    return LinearRows(used, correct, *spread)


@every_way
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("recorded", [True, False])
def test_rows(loss, reduction, recorded):
    """Oracle: losslab.metrics on all logits. Break: rows of another chunk, rows measured after
    their logits were overwritten, ignored rows not marked, a gradient left on them."""
    leaves, target = case(16)
    target = target.reshape(4, 4)
    target[0, 1] = target[3, 3] = -100
    best = F.linear(*leaves).argmax(1).reshape(4, 4)
    target[1] = best[1]
    hidden = leaves[0].reshape(4, 4, D)
    with torch.set_grad_enabled(recorded):
        result, rows = linear_loss(
            hidden, leaves[1], target, loss, linear_bias=leaves[2], reduction=reduction,
            chunk_rows=3, return_rows=True,
        )  # fmt: skip
        alone = linear_loss(
            hidden, leaves[1], target, loss, linear_bias=leaves[2], reduction=reduction
        )
    torch.testing.assert_close(result, alone)
    expected = rows_by_metrics([hidden, *leaves[1:]], target)
    for mine, true in zip(rows, expected, strict=True):
        assert mine.shape == (4, 4) and not mine.requires_grad
        torch.testing.assert_close(mine, true, equal_nan=True)
    if recorded:
        before = [x.clone() for x in rows]
        result.sum().backward()
        for mine, was in zip(rows, before, strict=True):
            torch.testing.assert_close(mine, was, rtol=0, atol=0, equal_nan=True)


def test_rows_at_the_edges():
    """By hand: of equal logits the first is predicted; no competitor; infinite and NaN logits.

    Break: a tie counted as right whatever the class, or max clamped to the finite range shown."""
    weight = torch.eye(3, dtype=torch.float64)
    logits = torch.tensor(
        [[1, 1, 0], [1, 1, 0], [0, -INF, -INF], [-INF, 0, 0], [INF, 0, 0], [INF, 0, 0], [NAN, 0, 0]]
    ).double()
    target = torch.tensor([0, 1, 0, 0, 0, 1, 1])
    # the identity as a weight would make NaN of 0·inf, so the logits come from the bias
    found = []
    for z, t in zip(logits, target, strict=True):
        hidden = torch.zeros(1, 3, dtype=torch.float64)
        args = (hidden, weight, t[None], "cross_entropy")
        found.append(linear_loss(*args, linear_bias=z, return_rows=True)[1])
        plain = torch.func.vmap(
            lambda h, t=t, z=z: linear_loss(h, weight, t[None], linear_bias=z, return_rows=True)[1]
        )(hidden[None])
        for a, b in zip(found[-1], plain, strict=True):
            torch.testing.assert_close(a, b[0], equal_nan=True)
    rows = LinearRows(*(torch.cat(x) for x in zip(*found, strict=True)))
    assert rows.correct.tolist() == [True, False, True, False, True, False, False]
    assert rows.margin[:6].tolist() == [0, 0, INF, -INF, INF, -INF] and rows.margin[6].isnan()
    assert rows.log_odds[2:6].tolist() == [INF, -INF, INF, -INF]
    assert rows.logsumexp[2].item() == 0 and rows.logsumexp[4:6].tolist() == [INF, INF]


def test_rows_of_probability_targets():
    """Oracle: the rows of the most probable class."""
    leaves, target = case()
    soft = F.one_hot(target, V).double() * 0.6 + 0.4 / V
    _, rows = linear_loss(*leaves[:2], soft, linear_bias=leaves[2], return_rows=True)
    for mine, true in zip(rows, rows_by_metrics(leaves, target), strict=True):
        torch.testing.assert_close(mine, true)


# --- edges ------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_are_not_computed(loss, reduction):
    """Oracle: the rows that count, alone. NaN in an ignored row would spoil every sum it entered.
    Break: rows masked after the product instead of left out of it."""
    leaves, target = case()
    target[2] = target[9] = -100
    with torch.no_grad():
        leaves[0][target == -100] = NAN
    keep = target != -100
    ours = linear_loss(*leaves[:2], target, loss, linear_bias=leaves[2], reduction=reduction)
    kept = [leaves[0].detach()[keep].requires_grad_(), *leaves[1:]]
    true = on_logits(kept, target[keep], loss, reduction=reduction)
    upstream = normal(*ours.shape, seed=3)
    mine = gradients(ours, leaves, upstream)
    want = gradients(true, kept, upstream if reduction == "mean" else upstream[keep])
    torch.testing.assert_close(ours if reduction == "mean" else ours[keep], true)
    torch.testing.assert_close(mine[0][keep], want[0])
    assert (mine[0][~keep] == 0).all() and (reduction == "mean" or (ours[~keep] == 0).all())
    for a, b in zip(mine[1:], want[1:], strict=True):
        torch.testing.assert_close(a, b)


@every_way
@pytest.mark.parametrize("rows", ["none", "all ignored"])
def test_no_rows(loss, rows):
    """Oracle: PyTorch's NaN (0 when asked for) with zero gradients. Break: an empty sum taken for
    a mean, uninitialised gradients."""
    leaves, target = case(0 if rows == "none" else 4)
    target = target if rows == "none" else torch.full_like(target, -100)
    for options, expected in (
        ({}, NAN), ({"zero_if_empty": True}, 0.0), ({"reduction": "sum"}, 0.0),
        ({"z_loss": 0.1}, NAN), ({"label_smoothing": 0.1, "zero_if_empty": True}, 0.0),
        ({"weight": torch.ones(V), "zero_if_empty": True}, 0.0),
    ):  # fmt: skip
        result, seen = linear_loss(
            *leaves[:2], target, loss, linear_bias=leaves[2], return_rows=True, **options
        )
        torch.testing.assert_close(result.detach(), torch.tensor(expected).double(), equal_nan=True)
        assert all(not g.any() for g in gradients(result, leaves))
        assert seen.used.shape == target.shape and not seen.used.any()
    result = linear_loss(*leaves[:2], target, loss, linear_bias=leaves[2], reduction="none")
    assert result.tolist() == [0.0] * len(target)
    assert all(not g.any() for g in gradients(result, leaves))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_class_and_one_row(reduction):
    """By hand: with one class a = +inf, cross-entropy 0 and gradient 0; one row is its own mean."""
    leaves, target = case(3, 4, 1)
    result, rows = linear_loss(
        *leaves[:2], target, linear_bias=leaves[2], reduction=reduction, return_rows=True
    )
    assert not result.any() and rows.correct.all() and (rows.margin == INF).all()
    assert all((g == 0).all() for g in gradients(result, leaves))
    options = {"reduction": reduction, "z_loss": 1.0}
    z_loss = linear_loss(*leaves[:2], target, linear_bias=leaves[2], **options)
    assert_same(z_loss, on_logits(leaves, target, "cross_entropy", **options), leaves)
    linear = "encouraging(log_end=1, eps=0)"  # ψ(a) = −a, whose slope never fades
    ours = linear_loss(*leaves[:2], target, linear, linear_bias=leaves[2], **options)
    lse = F.linear(*leaves)[:, 0].square()
    true = lse.mean() if reduction == "mean" else lse
    for mine, want in zip(gradients(ours, leaves), gradients(true, leaves), strict=True):
        torch.testing.assert_close(mine, want)
    leaves, target = case(1)
    vector = leaves[0].detach()[0].requires_grad_()  # (D,) with a target of shape ()
    ours = linear_loss(vector, leaves[1], target[0], linear_bias=leaves[2], reduction=reduction)
    assert ours.shape == ()
    true = on_logits(leaves, target, "cross_entropy")
    torch.testing.assert_close(ours, true)
    torch.testing.assert_close(gradients(ours, [vector])[0], gradients(true, leaves)[0][0])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_competitors(reduction):
    """Oracle: the loss on all logits, most of them −inf: rows without a competitor have gradient 0.
    Break: 0·∞ in a block of classes that does not hold the row's target."""
    leaves, target = case()
    with torch.no_grad():
        leaves[2].fill_(-INF)[3:5] = 0
        leaves[1][3:5] = 0
        leaves[0][:4] = 0
    target[:] = 3
    for only in (False, True):
        if only:
            with torch.no_grad():
                leaves[2][4] = -INF
        options = {"reduction": reduction, "chunk_rows": 3, "linear_bias": leaves[2]}
        ours = linear_loss(*leaves[:2], target, "focal", **options)
        true = on_logits(leaves, target, "focal", reduction=reduction)
        assert_same(ours, true, leaves)
        assert only == (not ours.any())


@every_way
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_strides_and_dimensions(loss, reduction):
    """Oracle: contiguous copies. Break: memory read as if rows followed each other."""
    wide = normal(4, 6, 2 * D, seed=1)
    hidden = wide[1:, ::2, ::2].requires_grad_()  # (3, 3, D), nothing contiguous
    weight = normal(D, 2 * V, seed=2).t()[::2].requires_grad_()
    bias = normal(1, seed=3).expand(V).requires_grad_()
    target = torch.randint(V, (3, 6), generator=generator())[:, ::2].int()
    target[1, 1] = -100
    ours = linear_loss(
        hidden, weight, target, loss, linear_bias=bias, reduction=reduction, chunk_rows=2
    )
    assert ours.shape == (() if reduction == "mean" else (3, 3))
    copies = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias)]
    true = on_logits(copies, target.long(), loss, reduction=reduction)
    torch.testing.assert_close(ours, true)
    upstream = normal(*ours.shape, seed=5)
    pairs = zip(
        gradients(ours, [hidden, weight, bias], upstream),
        gradients(true, copies, upstream),
        strict=True,
    )
    for mine, want in pairs:
        torch.testing.assert_close(mine, want)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_threads_share_nothing(reduction):
    """Oracle: the same calls one after the other. Break: a buffer kept between calls."""
    from concurrent.futures import ThreadPoolExecutor

    def work(seed):
        leaves, target = case(64, 8, 50, seed=seed)
        result = linear_loss(
            *leaves[:2], target, linear_bias=leaves[2], reduction=reduction, chunk_rows=5
        )
        return [result.sum().detach(), *gradients(result, leaves)]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(8)))
    for seed, found in enumerate(together):
        for mine, true in zip(found, work(seed), strict=True):
            torch.testing.assert_close(mine, true)


def refusals():
    h, w, t = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.long)
    module = losslab.loss("focal")
    mixed = losslab.CrossEntropyLoss(reduction="none") + losslab.MeanSquaredErrorLoss()
    return {
        "features": (lambda: linear_loss(h, torch.zeros(5, 3), t), "same D"),
        "swapped": (lambda: linear_loss(w, h.T, t), "same D"),
        "target shape": (lambda: linear_loss(h, w, t[:2]), r"shape \(3,\)"),
        "probabilities": (lambda: linear_loss(h, w, torch.zeros(3, 4)), r"shape \(3, 5\)"),
        "boolean target": (lambda: linear_loss(h, w, t.bool()), "integer class indices"),
        "bias shape": (lambda: linear_loss(h, w, t, linear_bias=torch.zeros(4)), "linear_bias"),
        "class weights": (lambda: linear_loss(h, w, t, weight=w), "linear_weight"),
        "not a tensor": (lambda: linear_loss(h, w, t, weight=[1.0] * 5), "must be a tensor"),
        "dtypes": (lambda: linear_loss(h.double(), w, t), "one dtype"),
        "whole numbers": (lambda: linear_loss(h.long(), w.long(), t), "floating point"),
        "device": (lambda: linear_loss(h, w, t.to("meta")), "one device"),
        "no classes": (lambda: linear_loss(h, w[:0], t), "at least one class"),
        "both": (lambda: linear_loss(h, w, t, module, label_smoothing=0.1), "its own options"),
        "a torch loss": (lambda: linear_loss(h, w, t, nn.CrossEntropyLoss()), "losslab loss"),
        "no loss": (lambda: linear_loss(h, w, t, 3), "must be a spec"),
        "inside": (
            lambda: linear_loss(
                h, w, t, losslab.AdjustedLoss(losslab.AdditiveMargin(), nn.CrossEntropyLoss())
            ),
            "which is none",
        ),
        "two steps": (
            lambda: linear_loss(h, w, t, "complement_objective(cross_entropy)"),
            "for step in",
        ),
        "schedule": (lambda: linear_loss(h, w, t, "mixed(focus=phases(0, 0.5))"), "schedule"),
        "reduction": (lambda: linear_loss(h, w, t, reduction="avg"), "reduction"),
        "smoothing": (lambda: linear_loss(h, w, t, label_smoothing=2), "label_smoothing"),
        "reductions": (lambda: linear_loss(h, w, t, mixed), "none of them"),
        "psi shape": (lambda: linear_loss(h, w, t, lambda a: a.sum()), "psi must return"),
        "psi type": (lambda: linear_loss(h, w, t, lambda a: 1.0), "psi must return"),
        "softcap": (lambda: linear_loss(h, w, t, softcap=0.0), "softcap must be a positive"),
        "scale": (lambda: linear_loss(h, w, t, logit_scale=torch.ones(())), "learnt scale"),
        "z_loss": (lambda: linear_loss(h, w, t, z_loss=-1.0), "z_loss must be zero or"),
        "chunk_rows": (lambda: linear_loss(h, w, t, chunk_rows=0), "positive whole number"),
        "unknown": (lambda: linear_loss(h, w, t, "encoraging"), "encouraging"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_does_not_fit_is_refused(name):
    """By the message: each says what is wrong. Break: a silent fallback or broadcast."""
    call, message = refusals()[name]
    with pytest.raises(losslab.InputError, match=message):
        call()


@pytest.mark.parametrize("loss", ["focal", "mean_squared_error"])
def test_targets_out_of_range(loss):
    """Oracle: F.cross_entropy's IndexError. Break: memory read out of bounds, or a negative class
    taken for an ignored one, compiled too."""
    leaves, target = case()
    for bad in (-1, V, -(1 << 62) - 1):
        target[3] = bad
        for reduction in ("mean", "none"):
            with pytest.raises(IndexError, match="out of bounds"):
                linear_loss(*leaves[:2], target, loss, reduction=reduction)
    if loss == "focal":
        compiled = torch.compile(linear_loss, fullgraph=True, backend="aot_eager")
        with pytest.raises(IndexError, match="out of bounds"):
            compiled(*leaves[:2], target, loss)
        torch.compiler.reset()


def test_an_asked_for_backend_is_used(monkeypatch):
    """By the error: the native kernel has no float64. Break: a silent fallback."""
    leaves, target = case()
    monkeypatch.setattr(select, "_requested", "native")
    with pytest.raises(losslab.InputError, match="cannot be used"):
        linear_loss(*leaves[:2], target)


# --- the module, and language models ----------------------------------------------------------


def test_module_is_a_linear_layer_with_a_loss():
    """Oracle: nn.Linear and the loss. Break: other names in the state, logits without the cap."""
    layer = nn.Linear(D, V)
    head = LinearLoss(D, V, "focal", label_smoothing=0.1, softcap=3.0, logit_scale=2.0)
    head.load_state_dict(layer.state_dict())
    assert list(head.state_dict()) == ["weight", "bias"]
    hidden, target = normal(2, 3, D, dtype=torch.float32), torch.randint(V, (2, 3))
    logits = 3 * torch.tanh(2 * layer(hidden) / 3)
    torch.testing.assert_close(head.logits(hidden), logits)
    true = losslab.loss("focal", label_smoothing=0.1)(logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(head(hidden, target), true)
    result, rows = head(hidden, target, return_rows=True)
    assert result.requires_grad and rows.used.shape == (2, 3)
    assert LinearLoss(D, V, bias=False).bias is None
    assert "focal" in repr(head) and head.spec == "focal"
    assert LinearLoss(D, V, dtype=torch.bfloat16).weight.dtype == torch.bfloat16


def test_module_starts_as_a_linear_layer():
    """Oracle: nn.Linear's initialisation from the same seed."""
    torch.manual_seed(0)
    layer = nn.Linear(D, V)
    torch.manual_seed(0)
    head = LinearLoss(D, V)
    assert torch.equal(head.weight, layer.weight) and torch.equal(head.bias, layer.bias)


def test_module_takes_losses_with_their_options_and_schedules():
    """Oracle: the loss on all logits at the schedule's value. Break: a schedule stuck at 0."""
    weight = torch.rand(V, generator=generator(3))
    head = LinearLoss(D, V, losslab.loss("mixed(focus=phases(0, 0.5))", weight=weight))
    hidden, target = normal(6, D, dtype=torch.float32), torch.randint(V, (6,))
    for progress, focus in ((0.0, 0.0), (1.0, 0.5)):
        head.set_progress(progress)
        true = losslab.loss(f"mixed(focus={focus})", weight=weight)(head.logits(hidden), target)
        torch.testing.assert_close(head(hidden, target), true)
    for build, message in (
        (lambda: LinearLoss(D, V, losslab.loss("focal"), reduction="sum"), "its own options"),
        (lambda: LinearLoss(D, V, "complement_objective(focal)"), "for step in"),
        (lambda: LinearLoss(D, V, chunk_rows=-1), "chunk_rows"),
    ):
        with pytest.raises(losslab.InputError, match=message):
            build()


def test_the_steps_of_an_alternating_loss():
    """Oracle: each step on all logits, as the refusal recommends."""
    leaves, target = case()
    for step in losslab.loss("complement_objective(focal)").steps:
        ours = linear_loss(*leaves[:2], target, step, linear_bias=leaves[2])
        assert_same(ours, step(F.linear(*leaves), target), leaves)


class TinyLM(nn.Module):
    """Tokens to tokens, the last layer tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.mix = nn.GRU(16, 16, batch_first=True)
        self.head = LinearLoss(16, 50, "encouraging", bias=False, softcap=8.0, z_loss=1e-3)
        self.head.weight = self.embedding.weight

    def hidden(self, tokens):
        return self.mix(self.embedding(tokens))[0]


@pytest.mark.parametrize("num_items", [None, 40])
def test_tied_language_model(num_items):
    """Oracle: the same model with all logits, shifted as Hugging Face does. Both uses of the tied
    weight add up. Break: a gradient stolen by one of them, a label shifted the wrong way."""
    torch.manual_seed(0)
    model = TinyLM().double()
    tokens = torch.randint(50, (4, 12))
    labels = tokens.clone()
    labels[0, :5] = labels[3, 8:] = -100
    hidden = model.hidden(tokens)
    target = F.pad(labels[:, 1:], (0, 1), value=-100)
    if num_items is None:
        ours = model.head(hidden, target)
    else:
        ours = linear_loss(
            hidden, model.embedding.weight, target, "encouraging", reduction="sum", softcap=8.0,
            z_loss=1e-3,
        ) / num_items  # fmt: skip
    z = model.head.logits(model.hidden(tokens))[:, :-1].reshape(-1, 50)
    goal = labels[:, 1:].reshape(-1)
    used = goal != -100
    losses = losslab.encouraging_loss(z[used], goal[used], reduction="none")
    losses = losses + 1e-3 * z[used].logsumexp(1).square()
    true = losses.mean() if num_items is None else losses.sum() / num_items
    parameters = list(model.parameters())
    assert len(parameters) == 5  # tied: the weight is there once
    assert_same(ours, true, parameters)


@pytest.mark.parametrize("num_items", [None, 40])
@pytest.mark.parametrize("tied", [True, False])
def test_hugging_face_causal_lm(num_items, tied):
    """Oracle: the model's own loss. Break: examples/hf_causal_lm.py drifting from what
    transformers computes: the shift, ignored labels, num_items_in_batch, tied weights."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    path = Path(__file__).parent.parent / "examples" / "hf_causal_lm.py"
    spec = importlib.util.spec_from_file_location("hf_causal_lm", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double()
    tokens = torch.randint(99, (3, 9))
    labels = tokens.clone()
    labels[0, :4] = labels[2, 6:] = -100
    items = None if num_items is None else torch.tensor(num_items)
    true = model(tokens, labels=labels, num_items_in_batch=items)
    ours = example.causal_lm_loss(model, tokens, labels, num_items_in_batch=items)
    parameters = list(model.parameters())
    # transformers makes its logits float32 before the loss
    assert_same(ours, true.loss.double(), parameters, tolerance=1e-5)
    _, rows = example.causal_lm_loss(model, tokens, labels, return_rows=True)
    right = (true.logits[:, :-1].argmax(-1) == tokens[:, 1:]) & (labels[:, 1:] != -100)
    assert torch.equal(rows.correct[:, :-1], right) and not rows.used[:, -1].any()
    example.use_linear_loss(model.train(), "cross_entropy")
    outputs = model(tokens, labels=labels, num_items_in_batch=items)
    torch.testing.assert_close(outputs.loss, ours)
    assert outputs.logits is None and model.eval()(tokens).logits is not None

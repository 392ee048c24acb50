"""Modules in use: saved, moved, compiled, transformed, summed; and all of it for a user's own ψ."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch._dynamo

import losslab
from laws.settings import ON_SOFTMAX, SPECS
from losslab.logodds import kernel
from losslab.losses.catalog import ROWS

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 3, -100, 1])
WEIGHT = torch.tensor([1.0, 0.5, 0.0, 2.0])
SCHEDULED = (
    "mixed(focus=phases(0, 0.1, 0.5))",
    "encouraging(rho=ramp(0, 1)) + 0.5*focal(gamma=phases(0, 2))",
    "one_vs_rest(generalized_cross_entropy(q=ramp(0.1, 1)))",
    "logit_adjustment(encouraging_cosine(rho=switch(0, 1)), counts=[4, 3, 2, 1])",
)
every_spec = pytest.mark.parametrize("spec", [*SPECS, *SCHEDULED])
# the last setting of each row of the catalogue, plus sums, wrappers and margins
SINGLE = [losslab.loss(spec) for spec in SPECS]
KINDS = (
    *{loss.row.name: loss.spec for loss in SINGLE if hasattr(loss, "row")}.values(),
    *SCHEDULED,
    "cross_entropy + 0.5*expectation",
    "complement_objective(mean_absolute_error + mean_squared_error)",
    "one_vs_rest(mean_squared_error(mirror=true))",
    "ldam(encouraging, counts=[4, 3, 2, 1])",
    "additive_margin(hinge)",
)


def value_and_gradient(loss, logits=LOGITS, target=TARGET):
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target)
    value.sum().backward()
    return value.detach(), leaf.grad


def ignoring(index):
    """TARGET with its row to skip marked by another index."""
    return TARGET.masked_fill(TARGET == -100, index)


def assert_same(ours, theirs, **tolerance):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, **tolerance)


# Saved, copied, moved


@every_spec
def test_saved_and_copied(spec):
    """Oracle: the original, bit for bit, after pickle, deepcopy, torch.save and state_dict."""
    loss = losslab.loss(spec, weight=WEIGHT, reduction="none")
    loss.set_progress(0.5)
    buffer = io.BytesIO()
    torch.save(loss, buffer)
    buffer.seek(0)
    other = losslab.loss(spec, weight=torch.ones(4), reduction="none")
    other.load_state_dict(loss.state_dict())
    expected = value_and_gradient(loss)
    for twin in (
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
        torch.load(buffer, weights_only=False),
        other,
    ):
        assert twin.spec == loss.spec
        assert repr(twin) == repr(loss)
        assert_same(value_and_gradient(twin), expected, rtol=0, atol=0)


@every_spec
def test_moved_between_types(spec):
    """Oracle: the module built in that type. Break: a parameter's value rounded on the way."""
    moved = losslab.loss(spec, weight=WEIGHT).half().double()
    built = losslab.loss(spec, weight=WEIGHT.double())
    for loss in (moved, built):
        loss.set_progress(0.4)
    near = {"rtol": 1e-12, "atol": 1e-14}
    if "counts=" in spec:  # a prior's logarithms live in a buffer, which half types round
        near = {"rtol": 1e-3, "atol": 1e-3}
    assert_same(value_and_gradient(moved, LOGITS.double()),
                value_and_gradient(built, LOGITS.double()), **near)  # fmt: skip


def test_repr_names_the_loss():
    """Oracle: the canonical spec inside the class's name."""
    assert repr(losslab.FocalLoss(gamma=1)) == "FocalLoss(focal(gamma=1))"
    assert "one_vs_rest(focal)" in repr(losslab.loss("one_vs_rest(focal)"))
    assert "cross_entropy + 0.5*expectation" in repr(losslab.loss("ce + 0.5*dft"))
    assert repr(losslab.BinaryHingeWithLogitsLoss()) == "BinaryHingeWithLogitsLoss(hinge)"


def test_no_parameters_to_train():
    """A criterion adds nothing to model.parameters(), scheduled or not."""
    for spec in KINDS:
        assert list(losslab.loss(spec, weight=WEIGHT).parameters()) == []


def test_inside_a_model():
    """Oracle: nn.Module's own rules: a loss kept in a model moves and saves with it."""
    model = torch.nn.Linear(3, 4)
    model.criterion = losslab.loss("mixed(focus=phases(0, 0.5))", weight=WEIGHT)
    assert {"criterion.alpha", "criterion.beta", "criterion.weight"} <= set(model.state_dict())
    model.to(torch.bfloat16).train().eval()
    assert model.criterion.beta.dtype == torch.float64


# Compiled


@pytest.mark.parametrize("spec", KINDS)
def test_compiles_in_one_graph(spec):
    """Oracle: eager, value and gradient. Break: a graph break (fullgraph), or a recompilation when
    a schedule moves on."""
    torch._dynamo.reset()
    loss = losslab.loss(spec, weight=WEIGHT)
    backend = "aot_eager" if spec in SCHEDULED else "eager"  # a schedule's buffer is an input
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    near = {"rtol": 1e-5, "atol": 1e-6}
    assert_same(value_and_gradient(compiled), value_and_gradient(loss), **near)
    if spec not in SCHEDULED:
        return
    with torch._dynamo.config.patch(error_on_recompile=True):
        for progress in (0.3, 0.5, 0.99):
            loss.set_progress(progress)
            assert_same(value_and_gradient(compiled), value_and_gradient(loss), **near)


def test_deferred_weights_recompile_nothing():
    """Oracle: eager; and that the guard against recompilation does bite: a changed option does."""
    torch._dynamo.reset()
    loss = losslab.FocalLoss(weight=losslab.deferred_weights(WEIGHT, start=0.5))
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    value_and_gradient(compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        loss.set_progress(0.7)
        assert_same(value_and_gradient(compiled), value_and_gradient(loss))
        loss.label_smoothing = 0.1
        with pytest.raises(torch._dynamo.exc.RecompileError):
            value_and_gradient(compiled)


@pytest.mark.parametrize("name", ["encouraging", "mean_squared_error"])
def test_compiles_with_soft_targets_and_smoothing(name):
    """Oracle: eager. Break: a data-dependent branch in the expected loss."""
    torch._dynamo.reset()
    loss = losslab.loss(name, label_smoothing=0.1)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    soft = torch.softmax(LOGITS.flip(1), 1)
    for target in (TARGET, soft):
        assert_same(value_and_gradient(compiled, target=target),
                    value_and_gradient(loss, target=target))  # fmt: skip


def test_compiled_function_and_users_psi():
    """Oracle: eager."""
    torch._dynamo.reset()
    for loss in (
        lambda z, t: losslab.encouraging_loss(z, t, log_end=0.5),
        losslab.OddsLoss(lambda a: torch.relu(1 - a)),
    ):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        assert_same(value_and_gradient(compiled), value_and_gradient(loss))


@pytest.mark.parametrize("row", [r for r in ROWS if r.psi][::3], ids=lambda row: row.name)
def test_compiled_binary_modules(row):
    """Oracle: eager."""
    torch._dynamo.reset()
    loss = getattr(losslab, row.binary_module_name)(pos_weight=WEIGHT)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    many = (LOGITS > 0).float()
    assert_same(value_and_gradient(compiled, target=many), value_and_gradient(loss, target=many))


def test_default_compiler_with_a_schedule():
    """Oracle: eager. Break: a float64 buffer beside float32 logits that the code generator widens,
    or a value of the schedule baked into the code."""
    torch._dynamo.reset()
    loss = losslab.loss("mixed(focus=phases(0, 0.5))")
    compiled = torch.compile(loss, fullgraph=True)
    assert_same(value_and_gradient(compiled), value_and_gradient(loss))
    loss.set_progress(0.5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same(value_and_gradient(compiled), value_and_gradient(loss))


# Autocast, torch.func


@pytest.mark.parametrize("spec", KINDS)
def test_autocast(spec):
    """Oracle: the float32 loss of the same half logits, as cross_entropy gives under autocast."""
    layer = torch.nn.Linear(5, 4)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
        assert logits.dtype == torch.bfloat16
        loss = losslab.loss(spec)(logits, TARGET)
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32
    if "additive" not in spec and "ldam" not in spec and "logit_adj" not in spec:
        wide = losslab.loss(spec)(logits.detach().float(), TARGET)
        torch.testing.assert_close(loss.detach(), wide)


@pytest.mark.parametrize("spec", KINDS)
def test_functional_transforms(spec):
    """Oracle: autograd row by row: per-example gradients by vmap(grad), and a Hessian-vector
    product by jvp of grad."""
    loss = losslab.loss(spec)
    logits, target = LOGITS.double()[:4], TARGET[:4]
    per_row = torch.func.vmap(torch.func.grad(loss))(logits, target)
    total = torch.func.grad(lambda z: losslab.loss(spec, reduction="sum")(z, target))(logits)
    torch.testing.assert_close(per_row, total)
    direction = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4)
    _, product = torch.func.jvp(lambda z: torch.func.grad(loss)(z, target), (logits,), (direction,))
    leaf = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf, target), leaf, create_graph=True)
    if slope.requires_grad:
        (expected,) = torch.autograd.grad((slope * direction).sum(), leaf)
        torch.testing.assert_close(product, expected)
    else:
        assert (product == 0).all()


def test_vmap_over_weights_and_soft_targets():
    """Oracle: a loop."""
    logits = LOGITS.double()
    weights = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft = torch.softmax(logits.flip(0), 1)
    for target in (TARGET, soft):

        def f(w, target=target):
            return losslab.encouraging_loss(logits, target, weight=w)

        torch.testing.assert_close(
            torch.func.vmap(f)(weights), torch.stack([f(w) for w in weights])
        )


# Sums


OPTIONS = [
    {},
    {"weight": WEIGHT, "reduction": "none"},
    {"weight": WEIGHT, "label_smoothing": 0.2, "ignore_index": 1, "reduction": "sum"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "terms",
    [
        ("cross_entropy", "expectation"),
        ("encouraging(log_end=0.5)", "mean_absolute_error", "hinge"),
        ("mean_absolute_error", "mean_squared_error"),
        ("focal", "maximum_probability_cross_entropy"),
        ("one_vs_rest(focal)", "cross_entropy"),
        ("logit_adjustment(focal, counts=[1, 2, 3, 4])", "cross_entropy"),
    ],
    ids=" + ".join,
)
def test_sums_are_sums(terms, options):
    """Oracle: the terms computed separately, hard and soft. Break: options of the first term used
    for all, or a coefficient dropped in the shared pass."""
    parts = [losslab.loss(term, **options) for term in terms]
    total = losslab.loss(" + 2*".join(terms), **options)
    targets = [ignoring(options.get("ignore_index", -100))]
    if "ignore_index" not in options and "logit" not in str(terms):
        targets.append(torch.softmax(LOGITS.flip(1), 1))
    for target in targets:
        expected = [value_and_gradient(part, target=target) for part in parts]
        value = expected[0][0] + sum(2 * v for v, _ in expected[1:])
        slope = expected[0][1] + sum(2 * g for _, g in expected[1:])
        assert_same(value_and_gradient(total, target=target), (value, slope))


def test_sums_of_different_options():
    """Oracle: separate losses: a sum of terms with different options shares nothing."""
    target = ignoring(0)
    for one, two in [
        (losslab.FocalLoss(weight=WEIGHT), losslab.HingeLoss()),
        (losslab.FocalLoss(weight=WEIGHT), losslab.HingeLoss(weight=WEIGHT + 1)),
        (losslab.FocalLoss(reduction="sum"), losslab.HingeLoss()),
        (losslab.FocalLoss(ignore_index=0), losslab.HingeLoss()),
        (losslab.FocalLoss(label_smoothing=0.1), losslab.HingeLoss()),
    ]:
        got = (one - 0.5 * two)(LOGITS, target)
        torch.testing.assert_close(got, one(LOGITS, target) - 0.5 * two(LOGITS, target))


def test_sums_of_binary_losses():
    """Oracle: separate losses."""
    one, two = losslab.BinaryFocalWithLogitsLoss(), losslab.BinaryHingeWithLogitsLoss()
    target = (LOGITS > 0).float()
    expected = one(LOGITS, target) + 2 * two(LOGITS, target)
    torch.testing.assert_close((one + 2 * two)(LOGITS, target), expected)


@pytest.mark.parametrize(
    ("spec", "passes"),
    [
        ("cross_entropy + 0.5*expectation - hinge", 1),
        ("2*(focal + mean_absolute_error)", 1),
        ("cross_entropy + one_vs_rest(focal)", 1),
        ("cross_entropy + mean_squared_error", 2),
    ],
)
def test_terms_share_one_pass(monkeypatch, spec, passes):
    """Oracle: the number of times the log-odds are computed: the whole cost of a loss."""
    calls = []
    original = kernel.log_odds

    def counting(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(kernel, "log_odds", counting)
    losslab.loss(spec, weight=WEIGHT)(LOGITS, TARGET)
    assert len(calls) == passes


def test_sum_arithmetic():
    """Oracle: algebra, on specs; what cannot be added is refused."""
    a, b = losslab.CrossEntropyLoss(), losslab.ExpectationLoss()
    assert (2 * (a + b * 0.5) - b).spec == "2*cross_entropy + expectation - expectation"
    assert (-1 * a).spec == "-cross_entropy"
    for wrong in (lambda: a + 1, lambda: a * "2", lambda: a * True, lambda: a - "x", lambda: a * a):
        with pytest.raises(TypeError):
            wrong()
    for wrong in (lambda: float("nan") * a, lambda: a * float("inf")):
        with pytest.raises(losslab.InputError, match="finite number"):
            wrong()
    cot = losslab.ComplementObjectiveLoss(a)
    for wrong in (lambda: cot + a, lambda: 0.5 * cot):
        with pytest.raises(losslab.InputError, match="alternates two steps"):
            wrong()


def test_wrappers_refuse_terms_with_different_options():
    """A wrapper takes over its loss's options, so a sum's terms must agree on them."""
    mixed = losslab.FocalLoss(reduction="sum") + losslab.HingeLoss()
    for wrapper in (losslab.OneVsRestLoss, losslab.ComplementObjectiveLoss):
        with pytest.raises(losslab.InputError, match="must share weight"):
            wrapper(mixed)


# A user's own ψ


@pytest.mark.parametrize("setting", ON_SOFTMAX[::3], ids=lambda s: s.spec)
def test_users_psi_gets_everything(setting):
    """Oracle: the built-in loss of the same ψ, in every option, target, shape and sum. Break:
    anything the catalogue's modules get that OddsLoss does not."""
    psi = setting.psi
    g = torch.Generator().manual_seed(2)
    image, places = torch.randn(2, 4, 3, generator=g), torch.randint(4, (2, 3), generator=g)
    soft = torch.softmax(LOGITS.flip(1), 1)
    for options in OPTIONS:
        index = ignoring(options.get("ignore_index", -100))
        for logits, target in [
            (LOGITS, index), (LOGITS, soft), (image, places), (LOGITS[0], index[0])
        ]:  # fmt: skip
            if target is soft and "ignore_index" in options:
                continue
            built_in = losslab.loss(setting.spec, **options)
            mine = losslab.OddsLoss(psi, **options)
            expected = value_and_gradient(built_in, logits, target)
            rounding = {"rtol": 2e-6, "atol": 1e-7, "equal_nan": True}  # their ψ' is written out
            assert_same(value_and_gradient(mine, logits, target), expected, **rounding)
            function = losslab.odds_loss(logits, target, psi, **options)
            torch.testing.assert_close(function, expected[0], **rounding)
            both = value_and_gradient(mine + built_in, logits, target)
            assert_same(both, [2 * x for x in expected], equal_nan=True)


def test_users_psi_in_wrappers():
    """Oracle: the built-in in one-vs-rest, margins and alternating steps."""
    mine, built_in = losslab.OddsLoss(lambda a: torch.sigmoid(-a)), losslab.ExpectationLoss()
    for wrap in (
        losslab.OneVsRestLoss,
        losslab.ComplementObjectiveLoss,
        lambda loss: losslab.AdjustedLoss(losslab.LogitAdjustment([4, 3, 2, 1]), loss),
    ):
        assert_same(value_and_gradient(wrap(mine)), value_and_gradient(wrap(built_in)))
    assert mine.spec == "custom"
    assert (mine + built_in).spec == "custom + expectation"
    mine.set_progress(0.5)  # nothing to move, nothing to break


def test_options_of_modules_can_be_read_and_changed():
    """Oracle: nn.CrossEntropyLoss, whose attributes are its options."""
    loss = losslab.EncouragingLoss(weight=WEIGHT, ignore_index=1, label_smoothing=0.1)
    for name in inspect.signature(torch.nn.CrossEntropyLoss).parameters:
        if name not in ("size_average", "reduce"):
            assert hasattr(loss, name)
    loss.reduction = "sum"
    loss.label_smoothing = 0.0
    loss.weight = None
    target = ignoring(1)
    expected = losslab.encouraging_loss(LOGITS, target, ignore_index=1, reduction="sum")
    assert torch.equal(loss(LOGITS, target), expected)


@pytest.mark.parametrize(
    ("psi", "came"),
    [
        (lambda a: a.sum(), r"one of shape \(\)"),
        (lambda a: a[:2], r"one of shape \(2,\)"),
        (lambda a: 1.0, "got 1.0"),
    ],
)
def test_a_psi_that_is_not_elementwise_is_refused(psi, came):
    """Oracle: the contract. Unchecked, a sum or a slice gave plausible, wrong losses."""
    with pytest.raises(losslab.InputError, match=rf"shape, \(6,\); .*{came}"):
        losslab.OddsLoss(psi)(torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]))


@pytest.mark.parametrize("inner", ["cross_entropy", "encouraging", "cross_entropy + 0.5*focal"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_smoothed_is_the_option_label_smoothing(inner, reduction):
    """Oracle: the option, in value and gradient under a random upstream; for cross-entropy also
    F.cross_entropy. Broken by a copy that keeps the old smoothing, or one that all terms share."""
    torch.manual_seed(3)
    z, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(4, (7,))
    smoothed = losslab.loss(f"smoothed({inner}, amount=0.2)", reduction=reduction)
    option = losslab.loss(inner, reduction=reduction, label_smoothing=0.2)
    found, upstream = [], torch.randn(() if reduction == "mean" else (7,), dtype=torch.float64)
    for loss in (smoothed, option):
        leaf = z.clone().requires_grad_()
        value = loss(leaf, y)
        found.append((value, *torch.autograd.grad(value, leaf, upstream)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    if inner == "cross_entropy":
        truth = torch.nn.functional.cross_entropy(z, y, reduction=reduction, label_smoothing=0.2)
        torch.testing.assert_close(found[0][0], truth)


def test_smoothed_keeps_a_copy_and_moves_schedules():
    """Broken by smoothing the loss that was handed in, or by a schedule that stays at its start."""
    inner = losslab.loss("mixed(focus=ramp(0, 0.5))")
    smoothed = losslab.SmoothedLoss(inner, amount=0.1)
    assert inner.label_smoothing == 0
    z, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    smoothed.set_progress(1.0)
    truth = losslab.loss("mixed(focus=0.5)", label_smoothing=0.1)(z, y)
    torch.testing.assert_close(smoothed(z, y), truth)
    with_option = losslab.SmoothedLoss(losslab.CrossEntropyLoss(label_smoothing=0.3), amount=0.1)
    truth = torch.nn.functional.cross_entropy(z, y, label_smoothing=0.1)
    torch.testing.assert_close(with_option(z, y), truth)

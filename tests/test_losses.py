"""The catalogue: identities between losses, domains of parameters, functions beside modules."""

import inspect
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import losslab
from laws.settings import NOT_PSI_ON_SOFTMAX, SETTINGS, SPECS
from losslab.losses import reduction
from losslab.losses.catalog import CATALOG, ROWS

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def case(classes: int = 5, n: int = 9, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(classes)
    logits = torch.randn(n, classes, generator=g, dtype=torch.float64) * scale
    return logits, torch.randint(classes, (n,), generator=g)


def value_and_gradient(spec, logits, target, **options):
    leaf = logits.clone().requires_grad_()
    value = losslab.loss(spec, reduction="none", **options)(leaf, target)
    value.sum().backward()
    return value.detach(), leaf.grad


def test_every_row_is_under_the_laws():
    """The list of settings covers the catalogue: a new row needs settings and an oracle."""
    named = {setting.name for setting in SETTINGS} | NOT_PSI_ON_SOFTMAX
    assert named == set(CATALOG)
    for row in ROWS:
        varied = {name for s in SETTINGS if s.name == row.name for name in s.parameters}
        assert varied == {p.name for p in row.parameters}, row.name


@pytest.mark.parametrize(
    "identity", [i for row in ROWS for i in row.identities], ids=lambda identity: str(identity)
)
def test_catalogue_identities(identity):
    """Oracle: the other side of the identity, value and gradient, for 2, 3 and 6 classes."""
    for classes in (2, 3, 6):
        logits, target = case(classes)
        left, left_slope = value_and_gradient(identity.spec, logits, target)
        right, right_slope = value_and_gradient(identity.equals, logits, target)
        constant = identity.offset + identity.offset_per_class * classes
        torch.testing.assert_close(left, identity.scale * right + constant, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(left_slope, identity.scale * right_slope, rtol=1e-11, atol=1e-14)


# What losses.md and the papers state: left = scale·right + offset, value and gradient.
IDENTITIES = [
    ("encouraging(log_end=1, eps=0, rho=0)", 1, "cross_entropy", 0),
    ("encouraging(log_end=0)", 1, "mixed(focus=0)", -1),
    ("encouraging(log_end=0)", 1, "cross_entropy + expectation", -1),
    ("encouraging(bonus_start=0.3, rho=0)", 1, "cross_entropy", 0),
    ("mixed(alpha=3, beta=0)", 3, "cross_entropy", 0),
    ("mixed(alpha=0, beta=2)", 2, "expectation", 0),
    ("mixed(focus=0.25)", 1, "mixed(beta=2)", 0),
    ("mixed(focus=0.3)", 1, "cross_entropy + 2.5*expectation", 0),
    ("focal(gamma=0)", 1, "cross_entropy", 0),
    ("halted_focal(threshold=1, gamma=3)", 1, "focal(gamma=3)", 0),
    ("halted_focal(threshold=0, gamma=3)", 1, "cross_entropy", 0),
    ("halted_focal(gamma=0, threshold=0.3)", 1, "cross_entropy", 0),
    ("generalized_cross_entropy(q=1)", 1, "expectation", 0),
    ("generalized_cross_entropy(q=1e-15)", 1, "cross_entropy", 0),
    ("generalized_cross_entropy(q=5e-324)", 1, "cross_entropy", 0),
    ("tamed_cross_entropy(alpha=0)", 1, "cross_entropy", 0),
    ("mean_absolute_error", 2, "expectation", 0),
    ("encouraging_power(gamma=1, rho=2)", 1, "mixed(beta=2)", -2),
    ("squared_hinge(margin=0) + 0*focal", 1, "squared_hinge(margin=0)", 0),
    ("focal - focal", 0, "focal", 0),
]


@pytest.mark.parametrize(("left", "scale", "right", "offset"), IDENTITIES)
def test_identities_of_the_papers(left, scale, right, offset):
    """Oracle: the other side. Break: a bonus's sign or constant, focus → β, a limit in q."""
    logits, target = case()
    for smoothing in (0.0, 0.2):
        value, slope = value_and_gradient(left, logits, target, label_smoothing=smoothing)
        other, other_slope = value_and_gradient(right, logits, target, label_smoothing=smoothing)
        torch.testing.assert_close(value, scale * other + offset, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slope, scale * other_slope, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_bonus_is_exactly_minus_the_log_odds(dtype):
    """Oracle: ZH 8 and 9: −a, bit for bit, with slope −1 everywhere. Break: CE + log(1 − p) in two
    terms, whose slopes only nearly add up to −1."""
    a = torch.cat([torch.linspace(-90, 90, 5001), torch.tensor([1e4, -1e4, 1e30])]).to(dtype)
    a.requires_grad_()
    value = losslab.EncouragingLoss(log_end=1, eps=0).psi(a)
    value.sum().backward()
    assert torch.equal(value, -a)
    assert (a.grad == -1).all()
    logits, target = case(4)
    energy = -logits.gather(1, target[:, None]).squeeze(1)
    others = logits.scatter(1, target[:, None], -math.inf).logsumexp(1)
    loss = losslab.encouraging_loss(logits, target, log_end=1, eps=0, reduction="none")
    torch.testing.assert_close(loss, energy + others)


def test_conservative_slope_is_minus_one_up_to_log_end():
    """Oracle: ZH 7: −1 in the log part (exactly), −(1 − p)(1 + p/(1 − LE)) beyond."""
    a = torch.linspace(-30, 1.098, 400, requires_grad=True)  # logit(0.75) = 1.0986
    losslab.EncouragingLoss().psi(a).sum().backward()
    assert (a.grad == -1).all()


def test_gce_approaches_cross_entropy():
    """Oracle: (1 − p^q)/q = −log p − q (log p)²/2 + O(q²): the error falls like q."""
    a = torch.linspace(-10, 10, 101, dtype=torch.float64)
    plain = losslab.CrossEntropyLoss().psi(a)
    for q in (1e-2, 1e-3, 1e-4):
        gap = plain - losslab.GeneralizedCrossEntropyLoss(q=q).psi(a)
        torch.testing.assert_close(gap, q * plain.square() / 2, rtol=4 * q * 10, atol=1e-12)


def test_gradient_of_the_expectation_loss_is_dfts():
    """Oracle: dynamic fine-tuning minimises −sg(p)·log p; the gradient is that of 1 − p."""
    logits, target = case()
    leaf = logits.clone().requires_grad_()
    log_p = torch.log_softmax(leaf, 1).gather(1, target[:, None]).squeeze(1)
    (-log_p.detach().exp() * log_p).sum().backward()
    _, slope = value_and_gradient("dft", logits, target)
    torch.testing.assert_close(slope, leaf.grad)


def test_binary_mean_squared_error_mirror():
    """Oracle: by hand: (1 − p)² − p² = 1 − 2p on one sigmoid output."""
    z = torch.linspace(-5, 5, 11, dtype=torch.float64)
    loss = losslab.binary_mean_squared_error_with_logits(
        z, torch.ones(11), mirror=True, reduction="none"
    )
    torch.testing.assert_close(loss, 1 - 2 * torch.sigmoid(z))


def test_focus_is_where_the_gradient_peaks():
    """Oracle: BA 12–14: |∂L/∂z_y| as a function of p is largest at p = F."""
    p = torch.linspace(0.001, 0.999, 1997, dtype=torch.float64)
    for focus in (0.0, 0.1, 0.3, 0.45, 0.5):
        a = torch.logit(p).requires_grad_()
        losslab.MixedLoss(focus=focus).psi(a).sum().backward()
        assert p[a.grad.abs().argmax()].item() == pytest.approx(max(focus, 0.001), abs=1e-3)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.spec)
def test_dynamic_parameters_may_be_tensors(setting):
    """Oracle: the same ψ with plain numbers, at all magnitudes: what schedules rely on."""
    a = torch.tensor([-math.inf, -1e4, -90.0, -3.0, 0.0, 0.4, 12.0, 90.0, 1e4, math.inf])
    row = setting.row
    values = row.resolve(row.check(setting.parameters))
    as_tensors = {
        k: torch.tensor(v, dtype=torch.float64) if k in row.dynamic else v
        for k, v in values.items()
    }
    for dtype in (torch.float32, torch.float64):
        plain = row.psi(a.to(dtype), **values)
        scheduled = row.psi(a.to(dtype), **as_tensors)
        assert scheduled.dtype == dtype
        near = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(scheduled, plain, rtol=near, atol=near)


# Domains: each closed end is accepted, each open end and everything beyond is refused.


def modules_of(row):
    yield getattr(losslab, row.module_name)
    if row.psi:
        yield getattr(losslab, row.binary_module_name)


@every_row
def test_domains(row):
    """Oracle: the parameter's declared interval. Break: an end wrongly open or closed."""
    for parameter in row.parameters:
        if isinstance(parameter.default, bool):
            continue
        low = (parameter.low, parameter.open_low, -math.inf)
        high = (parameter.high, parameter.open_high, math.inf)
        ends = [end for end in (low, high) if math.isfinite(end[0])]
        for make in modules_of(row):
            for end, is_open, beyond in ends:
                outside = math.nextafter(end, beyond)
                for value in [outside, end] if is_open else [outside]:
                    with pytest.raises(losslab.InputError, match=re.escape(parameter.domain)):
                        make(**{parameter.name: value})
                if not is_open:
                    make(**{parameter.name: end})


@every_row
def test_parameters_of_the_wrong_kind(row):
    """Oracle: a clear refusal that names the loss, the parameter and what came."""
    for parameter in row.parameters:
        for value in (math.nan, math.inf, "1", [1.0], torch.ones(2), object()):
            for make in modules_of(row):
                with pytest.raises(losslab.InputError) as caught:
                    make(**{parameter.name: value})
                message = str(caught.value)
                assert message.startswith(f"{row.name}: {parameter.name} must be in")
                assert repr(value) in message


def test_numpys_numbers_are_numbers():
    """Oracle: the same loss from Python's own numbers: parameters often come out of an arange."""
    for value in (np.float32(2), np.int64(2), np.float64(2), 2, Fraction(2)):
        assert losslab.FocalLoss(gamma=value).spec == "focal"
        assert losslab.phases(value)(0.5) == 2.0
    with pytest.raises(losslab.InputError):
        losslab.FocalLoss(gamma=np.bool_(True))


@every_row
def test_extremes_of_the_domain_are_finite_on_ordinary_logits(row):
    """Oracle: finite value and gradient at the ends of every parameter's domain, and far out where
    there is no end."""
    logits, target = case(4)
    for parameter in row.parameters:
        if isinstance(parameter.default, bool):
            continue
        low = max(parameter.low, -1e6) if not parameter.open_low else 1e-300
        high = min(parameter.high, 1e6) if not parameter.open_high else 1 - 1e-16
        for value in (low, high):
            for dtype in (torch.float32, torch.float64):
                leaf = logits.to(dtype).clone().requires_grad_()
                loss = getattr(losslab, row.module_name)(**{parameter.name: value})
                result = loss(leaf, target)
                result.backward()
                assert result.isfinite(), (parameter.name, value)
                assert leaf.grad.isfinite().all(), (parameter.name, value)


# Functions beside modules.


@pytest.mark.parametrize("spec", [s for s in SPECS if hasattr(losslab.loss(s), "row")])
def test_function_is_the_module(spec):
    """Oracle: the module, bit for bit, with every option."""
    logits, target = case(4)
    target[3] = -7
    module = losslab.loss(spec)
    function = getattr(losslab, module.row.function_name)
    smoothing = 0.0 if spec == "complement_entropy" else 0.1
    options = {"weight": torch.rand(4), "ignore_index": -7, "reduction": "sum",
               "label_smoothing": smoothing, "zero_if_empty": True}  # fmt: skip
    expected = losslab.loss(spec, **options)(logits, target)
    assert torch.equal(function(logits, target, **module.parameters_given, **options), expected)


def both_forms(row):
    for binary in (False, True) if row.psi else (False,):
        function = row.binary_function_name if binary else row.function_name
        module = row.binary_module_name if binary else row.module_name
        yield binary, getattr(losslab, function), getattr(losslab, module)


@every_row
def test_signatures(row):
    """Oracle: F.cross_entropy's and binary_cross_entropy_with_logits' own argument names; the
    loss's parameters stand between, everything after the weight by keyword."""
    for binary, function, module in both_forms(row):
        options = list(reduction.BINARY_OPTIONS if binary else reduction.OPTIONS)
        options.remove("weight")
        expected = [p.name for p in row.parameters] + options
        names = list(inspect.signature(function).parameters)
        assert names == ["input", "target", "weight", *expected]
        assert list(inspect.signature(module).parameters) == ["weight", *expected]
        for made in (function, module):
            for name, parameter in inspect.signature(made).parameters.items():
                if name in expected:
                    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        theirs = "binary_cross_entropy_with_logits" if binary else "cross_entropy"
        theirs = set(inspect.signature(getattr(torch.nn.functional, theirs)).parameters)
        assert theirs - {"size_average", "reduce"} <= set(names)


@every_row
def test_weight_may_be_positional(row):
    """Oracle: the same by name; `nn.CrossEntropyLoss(weights)` changes by its name alone."""
    weight = torch.tensor([0.5, 2.0, 1.0])
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    for binary, function, module in both_forms(row):
        labels = torch.rand(4, 3) if binary else target
        by_name = function(logits, labels, weight=weight)
        assert torch.equal(function(logits, labels, weight), by_name)
        assert torch.equal(module(weight)(logits, labels), by_name)


@every_row
def test_docstrings(row):
    """Every public function and module tells its formula, slope, arguments with domains, shapes,
    errors, an example and its source."""
    for binary, function, module in both_forms(row):
        for made in (function, module):
            text = inspect.getdoc(made)
            for section in ("Math: ", "Slope: ", "Args:\n", "Shape: ", "Raises: ", "Example:\n",
                            "Source: "):  # fmt: skip
                assert section in text, (made.__name__, section)
            first, second, *_ = text.splitlines()
            assert first.endswith(".")
            assert second == ""
            for parameter in row.parameters:
                assert f"    {parameter.name}: {parameter.meaning}; in {parameter.domain}." in text
            assert all(str(identity) in text for identity in row.identities) or binary
            assert row.source in text


def test_function_errors():
    """What cannot be a loss of these tensors is refused in words."""
    z, t = torch.zeros(2, 3), torch.tensor([0, 1])
    for call, message in [
        (lambda: losslab.focal_loss(z, t, gama=1), "focal has no parameter 'gama'"),
        (lambda: losslab.focal_loss(z, t, gamma=-1), "got -1"),
        (lambda: losslab.focal_loss(z, t, weight=torch.ones(2)), r"shape \(3,\); got \(2,\)"),
        (lambda: losslab.focal_loss(z.long(), t), "got int64 of shape"),
        (lambda: losslab.focal_loss(torch.tensor(1.0), torch.tensor(0)), "got float32 of shape"),
        (lambda: losslab.focal_loss(z, torch.zeros(3, dtype=torch.long)), r"target \(3,\)"),
        (lambda: losslab.focal_loss(z, torch.zeros(2)), r"input's shape \(2, 3\); got float32"),
        (lambda: losslab.focal_loss(z, z, ignore_index=0), "class-index targets only"),
        (lambda: losslab.focal_loss(z, t, reduction="avg"), "got 'avg'"),
        (lambda: losslab.focal_loss(z, t, label_smoothing=None), "got None"),
    ]:
        with pytest.raises(losslab.InputError, match=message):
            call()
    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        losslab.focal_loss(z, torch.tensor([0, 3]))
    with pytest.raises(IndexError, match="Target -1 is out of bounds"):
        losslab.mean_squared_error(z, torch.tensor([0, -1]))

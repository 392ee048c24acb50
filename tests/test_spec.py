"""Spec strings: what they name, their canonical form, and every way to get one wrong."""

import contextlib
import random
import re
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import losslab
from laws.settings import SETTINGS, SPECS
from losslab.losses.catalog import ALIASES, CATALOG, Parameter

LOGITS = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 3, 0])

ISSUE = {
    "cross_entropy": losslab.CrossEntropyLoss(),
    "expectation": losslab.ExpectationLoss(),
    "encouraging(log_end=0.5)": losslab.EncouragingLoss(log_end=0.5),
    "encouraging(log_end=1, eps=0)": losslab.EncouragingLoss(log_end=1, eps=0),
    "encouraging(bonus_start=0.5)": losslab.EncouragingLoss(bonus_start=0.5),
    "mixed(focus=0.3)": losslab.MixedLoss(focus=0.3),
    "mixed(alpha=1, beta=2)": losslab.MixedLoss(alpha=1, beta=2),
    "focal(gamma=2)": losslab.FocalLoss(gamma=2),
    "halted_focal(gamma=2, threshold=0.5)": losslab.HaltedFocalLoss(gamma=2, threshold=0.5),
    "generalized_cross_entropy(q=0.7)": losslab.GeneralizedCrossEntropyLoss(q=0.7),
    "tamed_cross_entropy(alpha=0.5)": losslab.TamedCrossEntropyLoss(alpha=0.5),
    "mean_squared_error(mirror=true)": losslab.MeanSquaredErrorLoss(mirror=True),
    "cross_entropy + 0.5*expectation": losslab.CrossEntropyLoss() + 0.5 * losslab.ExpectationLoss(),
}


@pytest.mark.parametrize("spec", ISSUE)
def test_specs_name_modules(spec):
    """Oracle: the module written in Python, value and canonical spec."""
    loss = losslab.loss(spec)
    assert loss(LOGITS, TARGET) == ISSUE[spec](LOGITS, TARGET)
    assert loss.spec == ISSUE[spec].spec


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("  focal( gamma = 2 ) ", "focal"),
        ("FOCAL", "focal"),
        ("focal_loss(gamma=0.5)", "focal(gamma=0.5)"),
        ("encouraging(bonus_start=.5,log_end=none)", "encouraging(bonus_start=0.5)"),
        ("mean_squared_error(mirror=False)", "mean_squared_error"),
        ("mean_squared_error(mirror=TRUE)", "mean_squared_error(mirror=true)"),
        ("encouraging(eps=1e-05)", "encouraging"),
        ("hinge(margin=-2)", "hinge(margin=-2)"),
        ("2*(focal + hinge)*3", "6*focal + 6*hinge"),
        ("-focal + hinge - 0.1*(hinge - focal)", "-focal + hinge - 0.1*hinge + 0.1*focal"),
        ("focal*2", "2*focal"),
        ("focal(gamma=0.1234567890123)", "focal(gamma=0.1234567890123)"),
        ("0.123456789*focal", "0.123456789*focal"),
        ("mixed(focus=phases(0, 0.1234567))", "mixed(focus=phases(0, 0.1234567))"),
        ("encouraging(rho=deferred(1, start=0.3))", "encouraging(rho=switch(0, 1, at=0.3))"),
        ("encouraging(rho=ramp(0, end=2))", "encouraging(rho=ramp(0, 2, begin=0, finish=1))"),
        ("one_vs_rest(mse)", "one_vs_rest(mean_squared_error)"),
        ("smoothed(ce)", "smoothed(cross_entropy, amount=0.1)"),
        ("ldam(focal, counts=(3, 2))", "ldam(focal, counts=[3, 2], max_margin=0.5, scale=30)"),
    ],
)
def test_canonical_spec(spec, canonical):
    """Oracle: written by hand: defaults left out, numbers shortest but exact."""
    assert losslab.loss(spec).spec == canonical
    assert losslab.loss(canonical).spec == canonical


@pytest.mark.parametrize(
    ("alias", "spec"),
    [
        ("DFT", "expectation"),
        ("ce", "cross_entropy"),
        ("nll", "cross_entropy"),
        ("logistic", "cross_entropy"),
        ("poly1(epsilon=2)", "mixed(beta=2)"),
        ("gce(q=0.5)", "generalized_cross_entropy(q=0.5)"),
        ("tce(alpha=2)", "tamed_cross_entropy(alpha=2)"),
        ("mse", "mean_squared_error"),
        ("Brier", "mean_squared_error"),
        ("mae", "mean_absolute_error"),
        ("mpce", "maximum_probability_cross_entropy"),
    ],
)
def test_aliases(alias, spec):
    """Oracle: what the alias stands for in the literature (Poly-1 is CE + ε(1 − p))."""
    ours, theirs = losslab.loss(alias), losslab.loss(spec)
    assert ours.spec == theirs.spec
    assert ours(LOGITS, TARGET) == theirs(LOGITS, TARGET)


def test_names_and_aliases_are_all_different():
    """A name that means two losses would make a spec mean either."""
    names = [*CATALOG, *ALIASES, "one_vs_rest", "complement_objective", "phases", "switch", "ramp"]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)


# Round trip: loss(loss(s).spec).spec == loss(s).spec, and the same function.


def values_of(parameter: Parameter) -> st.SearchStrategy:
    """Values in the parameter's domain, far ends included."""
    if isinstance(parameter.default, bool):
        return st.booleans()
    numbers = st.floats(
        max(parameter.low, -1e6),
        min(parameter.high, 1e6),
        exclude_min=parameter.open_low,
        exclude_max=parameter.open_high,
        allow_subnormal=False,
    )
    return st.none() | numbers if parameter.default is None else numbers


@st.composite
def single(draw) -> str:
    row = CATALOG[draw(st.sampled_from(sorted(CATALOG)))]
    given_ = {}
    for parameter in row.parameters:
        if draw(st.booleans()):
            given_[parameter.name] = draw(values_of(parameter))
    if given_.get("focus") is not None:
        given_ = {"focus": given_["focus"]}
    arguments = ", ".join(f"{k}={str(v).lower()}" for k, v in given_.items())
    return f"{row.name}({arguments})"


@st.composite
def combined(draw) -> str:
    terms = draw(st.lists(st.tuples(st.floats(-1e3, 1e3), single()), min_size=1, max_size=3))
    text = " + ".join(f"({c!r})*{term}" for c, term in terms)
    if draw(st.booleans()):
        counts = draw(st.lists(st.floats(1, 1e9), min_size=4, max_size=4))
        text = f"logit_adjustment({text}, counts={counts})"
    return text


@given(single() | combined())
@settings(max_examples=150, deadline=None)
def test_canonical_spec_round_trips(spec):
    """Oracle: the canonical spec is a fixed point and names the same function, to the last bit."""
    loss = losslab.loss(spec)
    again = losslab.loss(loss.spec)
    assert again.spec == loss.spec
    for ours, theirs in zip(again.steps, loss.steps, strict=True):
        assert torch.equal(ours(LOGITS, TARGET), theirs(LOGITS, TARGET)) or (
            ours(LOGITS, TARGET).isnan() and theirs(LOGITS, TARGET).isnan()
        )


@pytest.mark.parametrize("spec", [*SPECS, *(f"one_vs_rest({s.spec})" for s in SETTINGS)])
def test_every_setting_round_trips(spec):
    """Oracle: the canonical spec is a fixed point."""
    canonical = losslab.loss(spec).spec
    assert losslab.loss(canonical).spec == canonical


def test_options_go_to_every_term():
    """Oracle: F.cross_entropy with the same options. Break: an option only the first term sees."""
    options = {"weight": torch.rand(4).double(), "ignore_index": 2, "label_smoothing": 0.1,
               "reduction": "sum"}  # fmt: skip
    plain = torch.nn.functional.cross_entropy(LOGITS, TARGET, **options)
    for spec in (
        "ce",
        "0.5*ce + 0.5*nll",
        "3*ce - ce - ce",
        "logit_adjustment(ce, counts=[1,1,1,1])",
    ):
        torch.testing.assert_close(losslab.loss(spec, **options)(LOGITS, TARGET), plain)


ERRORS = {
    # unknown names, with the nearest
    "crossentropy": "Unknown loss 'crossentropy'. Did you mean 'cross_entropy'",
    "focl(gamma=2)": "Did you mean 'focal'",
    "one_vs_rst(focal)": "Did you mean 'one_vs_rest'",
    "complement_entrop": "Did you mean 'complement_entropy'",
    "qqqq": "Unknown loss 'qqqq'. `losslab losses` lists",
    "el": "encouraging loss in Zhao et al. and the expectation loss in Battash",
    "EL(log_end=1)": "write 'encouraging' or 'expectation'",
    "focal(gama=2)": "focal has no parameter 'gama'. Did you mean 'gamma'",
    "cross_entropy(gamma=2)": "Its parameters: none",
    "focal(reduction=sum)": "no parameter 'reduction'",
    "one_vs_rest(focal, class_reducton=mean)": "Did you mean 'class_reduction'",
    # domains
    "focal(gamma=-1)": r"focal: gamma must be in [0, ∞); got -1.0",
    "focal(gamma=1e999)": "got inf",
    "focal(gamma=nan)": "got 'nan'",
    "focal(gamma=true)": "got True",
    "focal(gamma='2')": "got '2'",
    "focal(gamma=none)": "got None",
    "focal(gamma=[1, 2])": "got [1.0, 2.0]",
    "generalized_cross_entropy(q=0)": "q must be in (0, 1]",
    "generalized_cross_entropy(truncation=1)": "truncation must be in (0, 1), or none",
    "mixed(focus=0.51)": "focus must be in [0, 0.5], or none; got 0.51",
    "mixed(focus=0.2, beta=1)": "give focus, or alpha and beta, not both",
    "mean_squared_error(mirror=1)": "mirror must be in {true, false}",
    "poly1(epsilon=1, beta=2)": "epsilon and beta are the same",
    # schedules
    "phases(0, 1)": "is a schedule, not a loss",
    "mixed(focus=phase(0, 1))": "Unknown schedule 'phase' in",
    "mixed(focus=phases())": "phases needs at least one value",
    "mixed(focus=phases(a))": "got 'a'",
    "mixed(focus=phases(phases(0)))": "got phases(0)",
    "mixed(focus=phases(0, 0.7))": "focus must be in",
    "mixed(focus=switch(0))": "expected switch(",
    "mixed(focus=switch(0, 0.5, when=1))": "expected switch(",
    "halted_focal(gamma=phases(1, 2))": "gamma cannot follow a schedule",
    "ldam(focal, counts=phases(1, 2))": "counts must be a list of numbers",
    "additive_margin(focal, margin=phases(0, 1))": "margin must be at least 0",
    # wrappers
    "ldam(focal)": "also needs counts=",
    "ldam": "wraps one loss",
    "ldam(focal, hinge, counts=[1, 2])": "wraps one loss",
    "ldam(focal, counts=[1, none])": "counts must be a list of numbers",
    "one_vs_rest(mpce)": "one_vs_rest takes a loss that is a function of one output's log-odds",
    "one_vs_rest(one_vs_rest(ce))": "got one_vs_rest(cross_entropy)",
    "one_vs_rest(ce, class_reduction=max)": "class_reduction must be 'sum' or 'mean'",
    "complement_objective(ce) + focal": "alternates two steps",
    "2*complement_objective(ce)": "alternates two steps",
    "smoothed(complement_objective(ce))": "Put smoothed inside the other wrapper",
    "smoothed(one_vs_rest(ce), amount=2)": "label_smoothing must be a number in [0, 1]; got 2.0",
    "smoothed(smoothed(ce))": "Put smoothed inside the other wrapper",
    "complement_objective(complement_objective(ce))": "expected a classification loss",
    # not the grammar
    "": "Cannot read the loss spec ''",
    "focal(2)": "must be named: write focal(gamma=…)",
    "cross_entropy(2)": "cross_entropy takes none",
    "focal(gamma=1, gamma=2)": "a second gamma=",
    "focal(**{'gamma': 2})": "Cannot read **",
    "1": "Cannot read '1'",
    "focal*hinge": "Cannot read 'focal * hinge'",
    "focal/2": "Cannot read 'focal / 2'",
    "1e999*focal": "finite number",
    "focal, hinge": "Cannot read",
    "focal(gamma=": "Cannot read the loss spec",
    "focal\x00": "Cannot read the loss spec",
    "__import__('os').system('x')": "Cannot read",
    "focal(gamma=__import__('os'))": "Unknown schedule '__import__'",
    "(lambda: 0)()": "Cannot read",
    "[f for f in ()]": "Cannot read",
    "focal.__class__": "Cannot read",
    "f'{1}'": "Cannot read",
}


@pytest.mark.parametrize("spec", ERRORS)
def test_errors(spec):
    """Every mistake raises InputError with what was expected, what came, and what to do."""
    with pytest.raises(losslab.InputError, match=re.escape(ERRORS[spec])) as caught:
        losslab.loss(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "(" * 300 + "focal" + ")" * 300,
        "(" * 100_000,
        "-" * 100_000 + "focal",
        "-" * 900 + "focal",
        "one_vs_rest(" * 95 + "focal" + ")" * 95,
        "focal" + " + focal" * 5000,
        "2*(" * 150 + "focal" + ")" * 150,
        "9" * 400 + "*focal",
        "9" * 10_000 + "*focal",
        "focal(gamma=" + "9" * 400 + ")",
        "x" * 1_000_000,
        "ldam(focal, counts=" + "[" * 150 + "]" * 150 + ")",
    ],
    ids=lambda s: f"{s[:12]}…{len(s)}",
)
def test_monstrous_specs_are_refused_quickly(spec):
    """Oracle: InputError, a short message, within seconds. Break: RecursionError, a hang, or a
    message as long as the text."""
    started = time.monotonic()
    try:
        losslab.loss(spec)
    except losslab.InputError as error:
        assert len(str(error)) < 600
    assert time.monotonic() - started < 5


@given(st.text(max_size=40) | st.text("abcdefocalhinge()[]{}=,.*+-'\"0123 :\n\\", max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_loss_or_an_input_error(text):
    """Oracle: no other exception, whatever the text."""
    with contextlib.suppress(losslab.InputError):
        losslab.loss(text)


@given(st.randoms(use_true_random=False), st.sampled_from(sorted(ISSUE)))
@settings(max_examples=200, deadline=None)
def test_damaged_specs_are_a_loss_or_an_input_error(rng: random.Random, spec):
    """Oracle: no other exception after characters of a good spec are dropped, doubled, swapped."""
    letters = list(spec)
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(letters)) if letters else 0
        letters[i : i + 1] = rng.choice([[], letters[i : i + 1] * 2, [rng.choice("()=,*+-.ex1 ")]])
    with contextlib.suppress(losslab.InputError):
        losslab.loss("".join(letters))


def test_options_are_checked():
    """Unknown options, wrong types and values are refused in words."""
    for call, message in [
        (lambda: losslab.loss("focal", wieght=None), "loss has no option 'wieght'. Did you mean"),
        (lambda: losslab.loss("focal", gamma=2), "belong inside the spec"),
        (lambda: losslab.loss("focal", reduction="average"), "got 'average'"),
        (lambda: losslab.loss("focal", label_smoothing=1.1), "got 1.1"),
        (lambda: losslab.loss("focal", label_smoothing="0.1"), "got '0.1'"),
        (lambda: losslab.loss("focal", weight=[1, 2]), "weight must be a tensor"),
        (lambda: losslab.loss(None), "a spec is a string"),
        (lambda: losslab.loss(losslab.FocalLoss()), "a spec is a string"),
        (lambda: losslab.OddsLoss("focal"), "For a spec string use losslab.loss"),
    ]:
        with pytest.raises(losslab.InputError, match=re.escape(message)):
            call()

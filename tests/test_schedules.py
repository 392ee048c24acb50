"""Schedules: values at their boundaries, their way into losses, and through state_dict."""

import copy
import math
import warnings

import pytest
import torch

import losslab
from losslab.schedules import deferred, deferred_weights, phases, ramp, switch

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 0, 1, 2])


def test_the_mixing_papers_schedules():
    """Oracle: Battash et al.: F = 0–0.5 in six equal parts; F = 0, 0.5 with the switch at 95 %."""
    gradual = phases(0, 0.1, 0.2, 0.3, 0.4, 0.5)
    epochs = [gradual(e / 60) for e in range(60)]
    assert epochs == [v for v in (0, 0.1, 0.2, 0.3, 0.4, 0.5) for _ in range(10)]
    assert gradual(1.0) == 0.5
    late = switch(0, 0.5)
    assert [late(e / 200) for e in range(200)] == [0.0] * 190 + [0.5] * 10
    assert late(1.0) == 0.5


def test_phases_start_on_time():
    """Oracle: step k·m of n·m begins part k. Break: (k/n)·n rounding to just under k."""
    for n in range(1, 120):
        parts = phases(*range(n))
        for steps in (n, 3 * n, 1000 * n):
            assert [parts(k * (steps // n) / steps) for k in range(n)] == list(range(n))


def test_deferral_and_ramp():
    """Oracle: by hand at the boundaries: the new value holds from the boundary on."""
    late = deferred(0.7, start=0.25)
    assert [late(t) for t in (0.0, 0.2499, 0.25, 1.0)] == [0.0, 0.0, 0.7, 0.7]
    assert deferred(1, 0)(0.0) == 1.0
    warm = ramp(0.2, 1.0, begin=0.25, finish=0.75)
    assert [warm(t) for t in (0, 0.25, 0.5, 0.75, 1)] == [0.2, 0.2, pytest.approx(0.6), 1.0, 1.0]
    assert ramp(1, 0)(0.25) == 0.75


def test_ramp_never_leaves_its_ends():
    """Oracle: between start and end. Break: a rounding error past ½ makes focus's β negative."""
    for start, end in ((0.1, 0.5), (0.3, 0.5), (0.7, 0.1), (1e-9, 1.0), (0.1, 0.3)):
        values = [ramp(start, end)(i / 999) for i in range(1000)]
        assert values[0] == start
        assert values[-1] == end
        assert all(min(start, end) <= v <= max(start, end) for v in values)
        assert values == sorted(values, reverse=start > end)


@pytest.mark.parametrize(
    ("spec", "at"),
    [
        ("mixed(focus=phases(0, 0.25, 0.5))", {0.0: "mixed(focus=0)", 0.4: "mixed(focus=0.25)",
                                               1.0: "mixed(focus=0.5)"}),
        ("mixed(alpha=1, beta=ramp(0, 2))", {0.0: "mixed(beta=0)", 0.5: "mixed(beta=1)"}),
        ("encouraging(rho=deferred(1, start=0.5))", {0.4: "cross_entropy", 0.5: "encouraging"}),
        ("encouraging(rho=ramp(0, 1), log_end=1, eps=0)",
         {0.0: "cross_entropy", 1.0: "encouraging(log_end=1, eps=0)"}),
        ("encouraging(rho=phases(2, 0), bonus_start=0.4)",
         {0.1: "encouraging(rho=2, bonus_start=0.4)", 0.9: "cross_entropy"}),
        ("encouraging_power(rho=phases(0, 3), gamma=2)",
         {0.1: "cross_entropy", 0.6: "encouraging_power(rho=3, gamma=2)"}),
        ("encouraging_cosine(rho=switch(0, 1))",
         {0.1: "cross_entropy", 0.96: "encouraging_cosine"}),
        ("focal(gamma=ramp(0, 4))", {0.0: "cross_entropy", 0.5: "focal(gamma=2)"}),
        ("generalized_cross_entropy(q=phases(0.3, 1), truncation=0.2)",
         {0.0: "generalized_cross_entropy(q=0.3, truncation=0.2)", 0.7:
          "generalized_cross_entropy(q=1, truncation=0.2)"}),
        ("expectation + 2*mixed(focus=switch(0, 0.5))", {0.96: "3*expectation"}),
        ("one_vs_rest(focal(gamma=phases(0, 1)))",
         {0.0: "one_vs_rest(cross_entropy)", 0.5: "one_vs_rest(focal(gamma=1))"}),
        ("complement_objective(focal(gamma=phases(0, 1)))", {0.5: "focal(gamma=1)"}),
        ("logit_adjustment(focal(gamma=phases(0, 1)), counts=[1, 2, 3])",
         {0.5: "logit_adjustment(focal(gamma=1), counts=[1, 2, 3])"}),
    ],
)  # fmt: skip
def test_scheduled_losses_follow(spec, at):
    """Oracle: the loss with the constant value, value and gradient, hard and smoothed; float64
    values throughout. Break: a schedule that a wrapper does not hand on, a float32 copy of it."""
    for smoothing in (0.0, 0.2) if "complement" not in spec else (0.0,):
        loss = losslab.loss(spec, label_smoothing=smoothing)
        assert losslab.loss(loss.spec).spec == loss.spec
        for progress, constant in at.items():
            loss.set_progress(progress)
            ours, theirs = (LOGITS.double().requires_grad_() for _ in range(2))
            loss(ours, TARGET).backward()
            losslab.loss(constant, label_smoothing=smoothing)(theirs, TARGET).backward()
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-13, atol=1e-16)


def test_scheduled_values_at_infinity():
    """Oracle: limits by hand, with values that arrive as tensors: 0·CE(−∞) is 0, not NaN."""
    a = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    for spec, limits in [
        ("mixed(focus=phases(0.5))", [1.0, 0.0]),
        ("encouraging(rho=phases(0), log_end=1, eps=0)", [math.inf, 0.0]),
        ("encouraging(rho=phases(1), log_end=1, eps=0)", [math.inf, -math.inf]),
        ("encouraging(rho=phases(3))", [math.inf, 3 * (-1 + math.log(0.25))]),
        ("focal(gamma=phases(0))", [math.inf, 0.0]),
        ("generalized_cross_entropy(q=phases(0.5))", [2.0, 0.0]),
    ]:
        assert losslab.loss(spec).psi(a).tolist() == pytest.approx(limits)


def test_state_dict_restores_the_middle_of_training():
    """Oracle: the uninterrupted module. Break: a value that lives outside the buffers."""
    spec = "mixed(focus=ramp(0, 0.4)) + encouraging(rho=deferred(1, 0.3))"
    weights = torch.tensor([1.0, 2.0, 3.0])
    make = lambda: losslab.loss(spec, weight=deferred_weights(weights, 0.5))  # noqa: E731
    running = make()
    running.set_progress(0.7)
    restored = make()
    restored.load_state_dict(running.state_dict())
    assert restored(LOGITS, TARGET) == running(LOGITS, TARGET)
    assert restored(LOGITS, TARGET) != make()(LOGITS, TARGET)
    for loss in (running, restored, copied := copy.deepcopy(running)):
        loss.set_progress(0.8)
    assert restored(LOGITS, TARGET) == running(LOGITS, TARGET) == copied(LOGITS, TARGET)


def test_deferred_weights():
    """Oracle: F.cross_entropy with and without the weights; wrappers take the schedule over."""
    weights = losslab.class_weights([90, 9, 1], "effective_number", beta=0.9)
    plain = torch.nn.functional.cross_entropy(LOGITS, TARGET)
    weighted = torch.nn.functional.cross_entropy(LOGITS, TARGET, weight=weights)
    later = deferred_weights(weights, start=0.9)
    loss = losslab.CrossEntropyLoss(weight=later)
    for progress, expected in ((0.0, plain), (0.89, plain), (0.9, weighted), (0.1, plain)):
        loss.set_progress(progress)
        torch.testing.assert_close(loss(LOGITS, TARGET), expected)
    assert (later.weights == weights).all()  # not written to
    for spec in (
        "one_vs_rest(cross_entropy)",
        "complement_objective(cross_entropy)",
        "focal + hinge",
    ):
        scheduled = losslab.loss(spec, weight=later).double()  # separates shared buffers
        constant = losslab.loss(spec, weight=weights.double())
        scheduled.set_progress(0.95)
        for ours, theirs in zip(scheduled.steps, constant.steps, strict=True):
            torch.testing.assert_close(ours(LOGITS, TARGET), theirs(LOGITS, TARGET))
    double = losslab.CrossEntropyLoss(weight=later).double()
    double.set_progress(0.95)
    assert double.weight.dtype == torch.float64


def test_the_users_weight_tensor_is_left_alone():
    """Oracle: the tensor's own values after a whole training with deferred weights."""
    mine = torch.tensor([1.0, 2.0, 3.0])
    loss = losslab.FocalLoss(weight=deferred_weights(mine, 0.5))
    for progress in (0.0, 0.6, 0.2, 1.0):
        loss.set_progress(progress)
    assert mine.tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_moving_to_half_keeps_scheduled_values(dtype):
    """Oracle: 0.3 in float64. Break: nn.Module.to rounding the buffer to the half type."""
    loss = losslab.loss("mixed(alpha=phases(0.3), beta=2) + focal(gamma=phases(0.7))").to(dtype)
    assert loss.losses[0].alpha.item() == 0.3
    assert loss.losses[1].gamma.item() == 0.7
    assert loss.half().float().losses[0].alpha.item() == 0.3


def test_functions_take_values_not_schedules():
    """A function has no progress: refused, with what to use instead."""
    for function, keywords in [
        (losslab.mixed_loss, {"focus": phases(0, 0.5)}),
        (losslab.encouraging_loss, {"rho": ramp(0, 1)}),
    ]:
        with pytest.raises(losslab.InputError, match="a schedule needs the module"):
            function(LOGITS, TARGET, **keywords)
    with pytest.raises(losslab.InputError, match="module BinaryFocalWithLogitsLoss"):
        losslab.binary_focal_with_logits(LOGITS, LOGITS, gamma=phases(0, 1))


def test_binary_modules_follow_schedules():
    """Oracle: the constant setting."""
    loss = losslab.BinaryFocalWithLogitsLoss(gamma=phases(0, 3))
    target = (LOGITS > 0).float()
    loss.set_progress(0.9)
    expected = losslab.binary_focal_with_logits(LOGITS, target, gamma=3.0)
    torch.testing.assert_close(loss(LOGITS, target), expected)


def test_annealing_of_the_large_margin():
    """Oracle: the layer with the constant λ."""
    layer = losslab.LargeMarginLinear(3, 4, annealing=ramp(5, 0))
    assert layer.annealing.item() == 5
    layer.set_progress(0.5)
    assert layer.annealing.item() == 2.5


def test_errors():
    """Each mistake names the schedule, what came, and what it takes."""
    for call, message in [
        (lambda: phases(), "at least one value"),
        (lambda: phases("a"), "phases: values must be finite numbers; got 'a'"),
        (lambda: phases(math.nan), "got nan"),
        (lambda: switch(0, 1, at=1.5), r"at must lie in \[0, 1\]; got 1.5"),
        (lambda: switch(0, None), "got None"),
        (lambda: deferred(1, -0.1), "start must lie"),
        (lambda: ramp(0, 1, 0.5, 0.5), "begin must lie before finish"),
        (lambda: deferred_weights([1.0, 2.0], 2), "start must lie"),
        (lambda: phases(0, 1)(1.01), "fraction of training done"),
        (lambda: phases(0, 1)(-0.1), "Pass step / total_steps"),
        (lambda: losslab.FocalLoss(gamma=phases(0, 1)).set_progress(3), "got 3"),
        (lambda: losslab.MixedLoss(focus=phases(0, 0.6)), r"focus must be in \[0, 0.5\]"),
        (lambda: losslab.FocalLoss(gamma=phases(2, -1)), r"gamma must be in \[0, ∞\)"),
        (lambda: losslab.EncouragingLoss(log_end=phases(0, 1)), "cannot follow a schedule.*rho"),
        (lambda: losslab.HaltedFocalLoss(gamma=phases(0, 1)), "can: none"),
        (lambda: losslab.MixedLoss(focus=phases(0.1), beta=1.0), "not both"),
    ]:
        with pytest.raises(losslab.InputError, match=message):
            call()


SCHEDULED = {
    "row": "mixed(focus=phases(0, 0.5))",
    "sum": "cross_entropy + 0.5*mixed(focus=phases(0, 0.5))",
    "weights": "reweighted(cross_entropy, counts=[3, 1], start=0.5)",
    "wrapped": "one_vs_rest(encouraging(rho=ramp(0, 1)))",
}


@pytest.mark.parametrize("spec", SCHEDULED.values(), ids=SCHEDULED)
def test_a_schedule_that_nobody_moves_is_told_of_once(spec):
    """Oracle: the warnings of 2,100 uses. Break: silence, or a warning each time."""
    loss = losslab.loss(spec)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2100):
            loss(torch.zeros(1, 2), torch.tensor([0]))
    told = [str(w.message) for w in caught]
    assert len(told) == 1 and "set_progress was never called" in told[0], told


@pytest.mark.parametrize("spec", ["mixed(focus=0.5)", *SCHEDULED.values()])
def test_no_warning_of_what_moves_or_has_no_schedule(spec):
    """Oracle: warnings are errors here."""
    loss = losslab.loss(spec)
    loss.set_progress(0.0)
    for _ in range(1100):
        loss(torch.zeros(1, 2), torch.tensor([0]))

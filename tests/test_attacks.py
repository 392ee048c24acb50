"""Attacks on a model's inputs, against closed forms, torchattacks, and exact arithmetic."""

from __future__ import annotations

import math
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from losslab.analysis import black_box
from losslab.analysis.attacks import OBJECTIVES, Attack, Attacked
from losslab.analysis.ball import Ball
from losslab.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def images(rows: int = 12, seed: int = 0, shape: tuple[int, ...] = (1, 6, 6)):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, *shape, generator=generator), torch.arange(rows) % 4


def network(seed: int = 0, inputs: int = 36, scale: float = 1.0) -> nn.Module:
    torch.manual_seed(seed)
    body = [nn.Flatten(), nn.Linear(inputs, 24), nn.Tanh(), nn.Linear(24, 4)]
    return nn.Sequential(*body, Times(scale)).eval()


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return logits * self.factor


# ---- a model whose optimal attack is known ---------------------------------------------------


def line(features: int = 5) -> nn.Module:
    """Two classes, z_0 = w·x + 2 and z_1 = 0: class 0 is attacked best along −w."""
    torch.manual_seed(0)
    layer = nn.Linear(features, 2).double()
    with torch.no_grad():
        layer.weight[1].zero_()
        layer.bias.copy_(torch.tensor([2.0, 0.0]))
    return layer


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 40])
def test_a_linear_model_is_attacked_as_well_as_it_can_be(objective, norm, steps):
    """Oracle: x − ε sign(w) and x − ε w/|w|. Break: a wrong sign, step, norm or projection."""
    model, epsilon = line(), 0.2
    inputs = torch.randn(6, 5, dtype=torch.float64)
    weight = model.weight[0].detach()
    best = weight.sign() if norm == "linf" else weight / weight.norm()
    once = {"random_start": False} if steps == 1 else {"step_size": epsilon}
    for keep in ("best", "last"):
        attack = Attack(
            epsilon, norm=norm, objective=objective, steps=steps, box=None, keep=keep, **once
        )
        found = attack(model, inputs, torch.zeros(6, dtype=torch.int64))
        odds = inputs @ weight + 2
        optimal = odds - epsilon * (weight @ best)
        reached = found.inputs @ weight + 2
        assert torch.equal(found.fooled, reached < 0)
        attacked = (odds > 0) & ~(
            (keep == "best") & found.fooled
        )  # those stop where they are fooled
        assert attacked.sum() >= 3
        torch.testing.assert_close(reached[attacked], optimal[attacked], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            found.inputs[attacked], (inputs - epsilon * best)[attacked], rtol=0, atol=1e-6
        )


def test_an_example_is_fooled_if_and_only_if_the_ball_reaches_across():
    """Oracle: the distance to the line. Break: an attack that stops early, or too late."""
    model = line()
    weight = model.weight[0].detach()
    inputs = torch.randn(200, 5, dtype=torch.float64) * 4
    target = torch.zeros(200, dtype=torch.int64)
    for norm, dual in (("linf", weight.abs().sum()), ("l2", weight.norm())):
        distance = (inputs @ weight + 2) / dual
        found = Attack(0.5, norm=norm, box=None, step_size=0.5)(model, inputs, target)
        sure = (distance - 0.5).abs() > 1e-6
        assert torch.equal(found.fooled[sure], (distance < 0.5)[sure])
        assert 20 < found.fooled.sum() < 180


# ---- never outside ---------------------------------------------------------------------------

floats = st.floats(-4, 4, width=32)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=4),
    epsilon=st.floats(1e-9, 8),
    norm=st.sampled_from(["linf", "l2"]),
    box=st.sampled_from([None, (-4.0, 4.0), (-4.1, 4.3), (-1e3 / 3, 1e3 / 7)]),
    factor=st.floats(1e-3, 1e3),
    keep=st.sampled_from(["best", "last"]),
    seed=st.integers(0, 9),
)
def test_nothing_leaves_the_ball_or_the_box(rows, epsilon, norm, box, factor, keep, seed):
    """Oracle: differences of float32 numbers in float64, where they are exact, against ε itself.

    Break: clamping in float32, whose bounds x ± ε are rounded outwards half of the time.
    """
    inputs = torch.tensor(rows)
    model = network(seed, inputs=3, scale=factor)
    attack = Attack(epsilon, norm=norm, steps=5, box=box, keep=keep)
    target = torch.zeros(len(rows), dtype=torch.int64)
    found = attack(model, inputs, target, torch.Generator().manual_seed(seed))
    assert found.inputs.dtype == torch.float32
    change = found.inputs.double() - inputs.double()
    radius = epsilon if box is None else epsilon * (box[1] - box[0])
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (size <= radius).all()
    if box is not None:
        assert found.inputs.double().min() >= box[0] and found.inputs.double().max() <= box[1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_leaves_a_ball_of_many_dimensions(norm, dtype):
    """Oracle: the norm measured in float64. Break: a sum of squares that rounds to beyond ε."""
    inputs = torch.randn(500, 784, dtype=dtype)
    inputs[:250] = 0  # here nothing is rounded towards the input
    ball = Ball(norm, 0.3, inputs, None)
    change = ball.place(5 * torch.randn(500, 784, dtype=torch.float64)).double() - inputs.double()
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (size <= 0.3).all() and (size > 0.2999).all()


def test_an_input_that_a_rounding_put_outside_is_attacked_and_comes_no_further_out():
    """Oracle: the input itself. Break: a refusal of every normalised image, or a wider box."""
    high = (16 - 4.9) / 6.0
    inputs = torch.tensor([[high, 0.0, -0.5]]).nextafter(torch.tensor(9.0))
    assert inputs[0, 0].double() > high
    found = Attack(0.9, box=(-4.9 / 6, high), keep="last")(
        network(inputs=3), inputs, torch.tensor([0])
    )
    assert found.inputs[0, 0] <= inputs[0, 0]
    assert (found.inputs[0, 1:].double() <= high).all() and (found.inputs != inputs).any()


def test_uint8_images_are_attacked_in_the_units_of_their_box():
    """Oracle: the same images in [0, 1], the model's first layer dividing. Break: ε of 0.1 grey."""
    grey = torch.randint(256, (8, 1, 6, 6), dtype=torch.uint8)
    target = torch.arange(8) % 4
    model = network()
    attack = Attack(0.1, random_start=False, keep="last")
    found = attack(nn.Sequential(Times(1 / 255), model), grey, target)
    small = attack(model, grey / 255, target)
    assert found.inputs.dtype == torch.float32 and found.inputs.max() > 1
    torch.testing.assert_close(found.inputs / 255, small.inputs, rtol=0, atol=1e-5)
    assert (found.inputs - grey).abs().max() == pytest.approx(25.5)


# ---- beside torchattacks ---------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["fgsm", "linf", "l2"])
def test_the_last_iterate_is_that_of_torchattacks(norm):
    """Oracle: torchattacks' FGSM, PGD and PGDL2 from the input, on cross-entropy."""
    torchattacks = pytest.importorskip("torchattacks")
    model, (inputs, target) = network(), images()
    usual = {"objective": "cross_entropy", "random_start": False, "keep": "last"}
    if norm == "fgsm":
        theirs = torchattacks.FGSM(model, eps=0.1)
        ours = Attack(0.1, steps=1, **usual)
    elif norm == "linf":
        theirs = torchattacks.PGD(model, eps=0.1, alpha=0.03, steps=7, random_start=False)
        ours = Attack(0.1, step_size=0.03, steps=7, **usual)
    else:
        theirs = torchattacks.PGDL2(model, eps=0.5, alpha=0.2, steps=7, random_start=False)
        ours = Attack(0.5, norm="l2", step_size=0.2, steps=7, floor=1e-10, **usual)
    found = ours(model, inputs, target)
    assert (found.inputs - inputs).abs().max() > 0.05
    torch.testing.assert_close(found.inputs, theirs(inputs, target), rtol=0, atol=2e-6)


def test_both_objectives_are_one_attack_while_margins_are_small():
    """Oracle: the gradient of softplus(−a) is that of −a times a number. Break: another −a."""
    model, (inputs, target) = network(), images()
    for norm, epsilon in (("linf", 0.05), ("l2", 0.4)):
        usual, odds = (
            Attack(epsilon, norm=norm, objective=name, keep="last")(model, inputs, target)
            for name in OBJECTIVES
        )
        torch.testing.assert_close(usual.inputs, odds.inputs, rtol=0, atol=1e-5)


# ---- what is kept ----------------------------------------------------------------------------


def test_the_best_is_never_worse_than_the_input_or_the_last():
    """Oracle: the model asked again. Break: a best that is not kept, or lost at a restart."""
    model, (inputs, target) = network(), images(60)
    attack = {"epsilon": 0.1, "steps": 6, "step_size": 0.08}  # steps too long to improve always
    last = Attack(**attack, keep="last")(model, inputs, target)
    best = Attack(**attack)(model, inputs, target)
    again = Attack(**attack, restarts=4)(model, inputs, target)

    def odds(x):
        return -OBJECTIVES["log_odds"](model(x), target).detach()

    assert torch.equal(best.fooled, model(best.inputs).argmax(1) != target)
    assert (best.fooled | ~last.fooled).all() and (again.fooled | ~best.fooled).all()
    same = ~again.fooled
    assert (odds(best.inputs) <= odds(inputs))[~best.fooled].all()
    assert (odds(best.inputs) <= odds(last.inputs) + 1e-6)[~best.fooled].all()
    assert (odds(again.inputs) <= odds(best.inputs) + 1e-6)[same].all()
    assert (odds(again.inputs) < odds(best.inputs) - 1e-6)[same].any()
    wrong = model(inputs).argmax(1) != target
    assert wrong.any() and torch.equal(best.inputs[wrong], inputs[wrong])


def test_a_wrong_prediction_is_kept_though_the_log_odds_were_lower_elsewhere():
    """Oracle: by hand. At x = 0 the logits 1, 0.9, 0.9 are right, with a = 0.1 − log 2 < 0; at 0.6
    those of 1, 1.05, −9 are wrong, with a = −0.05. Break: the lowest log-odds alone."""

    class Steps(nn.Module):
        def forward(self, x):
            far, one = x[:, 0] > 0.5, torch.ones(len(x))
            logits = [one, torch.where(far, 1.05, 0.9), torch.where(far, -9.0, 0.9), x[:, 0] - 50]
            return torch.stack(logits, 1)

    attack = Attack(1.0, objective=lambda z, _: z[:, 3], steps=1, step_size=0.6, random_start=False)
    found = attack(Steps(), torch.zeros(1, 1), torch.tensor([0]))
    assert found.fooled.all() and found.inputs.item() == pytest.approx(0.6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("steps", "length"), [(1, 1.0), (2, 1.0), (5, 0.5), (50, 0.05)])
def test_the_first_step_is_of_the_default_length(norm, steps, length):
    """Oracle: 2.5 ε / steps, ε at most, along the sign or the direction of a linear model's
    gradient, from a start inside. Break: a step that is cut by the ball, or another."""
    model, seen = line(), []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(x.detach().clone())
            return model(x)

    inputs, target = torch.randn(6, 5, dtype=torch.float64), torch.zeros(6).long()
    Attack(0.2, norm=norm, steps=steps, box=None, keep="last")(Watched(), inputs, target)
    weight = model.weight[0].detach()
    best = weight.sign() if norm == "linf" else weight / weight.norm()
    change = seen[0] - inputs - 0.2 * length * best
    expected = Ball(norm, 0.2, inputs, None).place(change)
    torch.testing.assert_close(seen[1], expected, rtol=0, atol=1e-12)


def test_an_attack_repeats_and_its_seed_matters():
    """Oracle: the same call. Break: a start drawn from torch's global generator."""
    model, (inputs, target) = network(), images()
    attack = Attack(0.1, steps=2, keep="last")

    def made(seed):
        state = torch.get_rng_state()
        found = attack(model, inputs, target, torch.Generator().manual_seed(seed)).inputs
        assert torch.equal(torch.get_rng_state(), state)
        return found

    assert torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))


def test_random_starts_fill_the_ball():
    """Oracle: for a uniform point in n dimensions E[r^n] = 1/2, and every direction is alike."""
    inputs = torch.zeros(4000, 3)
    generator = torch.Generator().manual_seed(0)
    for norm in ("linf", "l2"):
        found = Ball(norm, 0.5, inputs, None).random(generator)
        size = found.abs().amax(1) if norm == "linf" else found.norm(dim=1)
        assert ((size / 0.5) ** 3).mean() == pytest.approx(0.5, abs=0.02)
        assert found.mean(0).abs().max() < 0.02


def test_the_model_is_left_as_it_was():
    """Oracle: copies from before. Break: a mode, a gradient, a statistic that changed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[1].eval()
    inputs, target = images()
    nn.functional.cross_entropy(model(inputs), target).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    copy = inputs.clone()
    for keep in ("best", "last"):
        Attack(0.1, keep=keep)(model, inputs, target)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(
        torch.equal(*pair) for pair in zip(grads, (p.grad for p in model.parameters()), strict=True)
    )
    assert all(p.requires_grad for p in model.parameters())
    assert [m.training for m in model] == [True, False, True, True] and model.training
    assert torch.equal(inputs, copy) and not inputs.requires_grad


# ---- no gradient -----------------------------------------------------------------------------


def test_the_share_without_gradient_is_counted():
    """Oracle: a model that is flat where the first pixel is large. Break: a share of pixels."""

    class HalfFlat(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            z = torch.where(x[:, :1] > 0.5, x.detach(), x)
            return torch.stack([5 + z.sum(1), 0 * z[:, 0]], 1)

    inputs = torch.rand(40, 4)
    flat = inputs[:, 0] > 0.5
    found = Attack(0.01, random_start=False, steps=3)(HalfFlat(), inputs, torch.zeros(40).long())
    assert torch.equal(found.zero_first, flat) and torch.equal(found.zero_always, flat)
    assert torch.equal(found.inputs[flat], inputs[flat])
    assert (found.inputs[~flat] != inputs[~flat]).any(1).all()


def test_the_first_step_is_that_of_the_first_start():
    """Oracle: an attack of one start, from the same one. Break: a later start's, counted."""

    class LeftFlat(nn.Module):
        def forward(self, x):
            seen = torch.where(x < 0, x, x.detach()).sum(1)
            return torch.stack([9 - seen, 0 * seen], 1)

    given = LeftFlat(), torch.zeros(60, 1), torch.zeros(60).long()
    one, three = (Attack(0.5, box=None, steps=2, restarts=restarts)(*given) for restarts in (1, 3))
    assert 15 < one.zero_first.sum() < 45 and not three.fooled.any()
    assert torch.equal(one.zero_first, three.zero_first)
    assert (one.zero_always & ~three.zero_always).any()


def test_an_example_that_has_once_had_a_gradient_was_attacked():
    """Oracle: a model that is flat above 0, entered from below at the first step. Break: the last
    step's gradient taken for all."""

    class Plateau(nn.Module):
        def forward(self, x):
            seen = torch.where(x < 0, x, x.detach()).sum(1)
            return torch.stack([9 - seen, 0 * seen], 1)

    inputs = torch.tensor([[-0.01, -0.01], [0.5, 0.5]])
    attack = Attack(0.5, box=None, steps=4, random_start=False)
    found = attack(Plateau(), inputs, torch.zeros(2).long())
    assert found.zero_first.tolist() == found.zero_always.tolist() == [False, True]


@pytest.mark.parametrize(
    "cut", [lambda x: x.detach(), lambda x: x.round()], ids=["detached", "rounded"]
)
def test_a_model_that_cuts_the_graph_has_no_gradient(cut):
    """Oracle: there is none. Break: an error from autograd, or a count of 0."""

    class Cut(nn.Module):
        def forward(self, x):
            return torch.stack([cut(x).sum(1) + 3, 0 * x.detach()[:, 0]], 1)

    found = Attack(0.1)(Cut(), torch.rand(5, 3), torch.zeros(5).long())
    assert found.zero_first.all() and found.zero_always.all()


def test_large_margins_take_cross_entropys_gradient_but_not_the_log_odds():
    """Oracle: in float32 e^{-a} is 0 beyond a ≈ 104; a itself is not lost."""
    model, (inputs, _) = network(scale=5000.0), images()
    target = model(inputs).argmax(1)
    usual, odds = (
        Attack(0.05, objective=name, random_start=False)(model, inputs, target)
        for name in OBJECTIVES
    )
    assert usual.zero_first.float().mean() > 0.8 and not odds.zero_first.any()
    assert odds.fooled.sum() > usual.fooled.sum()


def test_the_floor_stops_an_attack_on_a_small_gradient():
    """Oracle: at a ≈ 50 the gradient through the other class's logit is about e^{-50}, far below
    torchattacks' 1e-10, and the one through the true class's is 0."""
    model, inputs = line().float(), torch.randn(4, 5)
    with torch.no_grad():
        model.bias[0] = 50.0
        model.weight[1] = torch.tensor([1.0, 0, -1, 0, 2])
    attack = {"norm": "l2", "objective": "cross_entropy", "box": None, "random_start": False}
    target = torch.zeros(4).long()
    moved = Attack(0.5, **attack, keep="last")(model, inputs, target).inputs - inputs
    stuck = Attack(0.5, **attack, keep="last", floor=1e-10)(model, inputs, target)
    assert (moved.norm(dim=1) > 0.49).all() and (stuck.inputs - inputs).norm(dim=1).max() < 1e-6
    assert not stuck.zero_first.any()
    torch.testing.assert_close(
        moved / moved.norm(dim=1, keepdim=True),
        model.weight[1:].detach().expand(4, 5) / math.sqrt(6),
        rtol=0,
        atol=1e-5,
    )


# ---- objectives of one's own, and bad input --------------------------------------------------


def test_an_objective_of_ones_own():
    """Oracle: a target class's logit, which must grow. Break: an objective that is ignored."""
    model, (inputs, target) = network(), images()

    def third(logits, target):
        return logits[:, 2]

    attack = Attack(0.2, objective=third, keep="last")
    found = attack(model, inputs, target)
    assert (model(found.inputs)[:, 2] > model(inputs)[:, 2]).all()
    assert "third" in attack.settings()["objective"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon to be a finite number above 0, but got 0.0"),
        ({"epsilon": math.nan}, "epsilon to be a finite number"),
        ({"norm": "l1"}, "norm to be one of linf, l2, but got 'l1'"),
        ({"objective": "logodds"}, "Did you mean 'log_odds'"),
        ({"steps": 0}, "steps to be a whole number of at least 1"),
        ({"step_size": -1}, "step_size to be a finite number above 0"),
        ({"restarts": 3, "keep": "last"}, "keep='best' with restarts=3"),
        ({"box": (1, 0)}, "the lower first"),
        ({"box": "pixels"}, "box to be one of image, none"),
        ({"box": 3}, "box to be"),
        ({"keep": "first"}, "keep to be one of best, last"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Attack(**({"epsilon": 0.1} | options))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.full((2, 3), 1.5), r"inside the box \[0, 1\], but 2 of 2 .* lie in \[1.5, 1.5\]"),
        (torch.tensor([[0.1, math.nan, 0]]), "finite inputs, but 1 of"),
        (torch.zeros(2, 3, dtype=torch.int64), "float32, float64 or uint8"),
        (torch.zeros(2, 3, dtype=torch.float16), "float32, float64 or uint8"),
        (torch.zeros(3), "shape .examples"),
    ],
)
def test_inputs_that_cannot_be_attacked_are_refused(inputs, message):
    with pytest.raises(InputError, match=message):
        Attack(0.1)(network(inputs=3), inputs, torch.zeros(len(inputs)).long())


ATTACKS = [
    Attack(0.1, objective=objective, keep=keep, random_start=start, steps=2)
    for objective in OBJECTIVES
    for keep in ("best", "last")
    for start in (True, False)
]


def everything(inputs):
    """Every way to attack: ``(model, inputs, target) -> found``."""
    yield from ATTACKS
    yield lambda *given: ATTACKS[0].last(*given, torch.Generator())
    if black_box.why_not(inputs, "linf") is None:
        yield lambda *given: black_box.square(*given, 0.1, queries=5)
        yield lambda *given: black_box.auto_attack(*given, 0.1)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0, 1, 2]), r"class number of each input, shape \(2,\), but got \(3,\)"),
        (torch.tensor([[0], [1]]), r"shape \(2,\), but got \(2, 1\) torch\.int64"),
        (torch.tensor([0.0, 1.0]), r"class number of each input.* torch\.float32"),
        (torch.tensor([True, False]), r"class number of each input.* torch\.bool"),
        (torch.tensor([0, 4]), r"every target in \[0, 3\], but they lie in \[0, 4\]"),
        (torch.tensor([-1, 0]), r"every target in \[0, 3\], but they lie in \[-1, 0\]"),
    ],
)
def test_targets_that_are_no_classes_are_refused(target, message):
    """Oracle: the message. Break: the first targets taken for those of other inputs, a target that
    no prediction can equal counted as fooled, PyTorch's own IndexError."""
    inputs = torch.rand(2, 1, 6, 6)
    for attack in everything(inputs):
        with pytest.raises(InputError, match=message):
            attack(network(), inputs, target)


def test_a_model_of_one_class_is_refused():
    """Oracle: the message. Break: a model that cannot be wrong, reported to be robust."""
    inputs, target = torch.rand(3, 1, 6, 6), torch.zeros(3).long()
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    for attack in everything(inputs):
        with pytest.raises(InputError, match="at least 2 classes, but its logits have 1"):
            attack(model, inputs, target)


def test_a_batch_of_nothing_comes_back():
    """Oracle: the rule: no input, none fooled. Break: a minimum over nothing."""
    inputs, target = torch.rand(0, 1, 6, 6), torch.zeros(0).long()
    for attack in everything(inputs):
        found = attack(network(), inputs, target)
        changed = found if isinstance(found, torch.Tensor) else found.inputs
        assert changed.shape == inputs.shape
        assert isinstance(found, torch.Tensor) or found.fooled.shape == (0,)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode):
    """Oracle: the same call outside. Break: no gradient recorded, which looks like masking."""
    model, (inputs, target) = network(), images()
    outside = [attack(model, inputs, target) for attack in everything(inputs)]
    with mode():
        for before, attack in zip(outside, everything(inputs), strict=True):
            made_here = inputs.clone(), target.clone()  # inference tensors, in inference mode
            found = attack(model, *made_here)
            pairs = zip(before, found, strict=True) if isinstance(found, tuple) else ()
            if isinstance(found, torch.Tensor):
                pairs = [(before, found)]
            elif isinstance(found, Attacked):
                pairs = zip(vars(before).values(), vars(found).values(), strict=True)
            for one, two in pairs:
                same = torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
                assert same
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("size", [1e-200, 1e-300])
def test_a_gradient_whose_square_is_too_small_for_float64_still_points(size):
    """Oracle: the direction of a linear model's gradient does not hang on its size. Break: a norm
    whose squares underflow to 0, and an attack that stands still without a flag."""
    model = line()
    scaled = nn.Sequential(model, Times(size))
    inputs, target = torch.randn(6, 5, dtype=torch.float64), torch.zeros(6).long()
    attack = Attack(0.3, norm="l2", box=None, keep="last", random_start=False)
    found = attack(scaled, inputs, target)
    assert ((found.inputs - inputs).norm(dim=1) > 0.299).all() and not found.zero_first.any()
    torch.testing.assert_close(
        found.inputs, attack(model, inputs, target).inputs, rtol=0, atol=1e-12
    )


def test_the_librarys_attacks_refuse_logits_that_are_not_finite():
    """Oracle: the message. Break: a NaN, which ``argmax`` takes for the largest, counted as
    fooled, or as robust."""
    pytest.importorskip("pyautoattack")
    inputs, target = images()

    class Breaks(nn.Module):
        def forward(self, x):
            z = network()(x)
            return torch.where(x.flatten(1)[:, :1] > 0.5, math.nan, z)

    for attack in (black_box.square, black_box.auto_attack):
        with pytest.raises(InputError, match=r"Expected finite logits, but those of \d of 12"):
            attack(Breaks(), inputs, target, 0.1)


def test_logits_that_are_not_finite_are_refused_where_the_attack_finds_them():
    """Break: a NaN that counts as robust, since no comparison with it is true."""

    class Explodes(nn.Module):
        def forward(self, x):
            return torch.stack([(0.5 - x.sum(1)).sqrt() + 9, 0 * x[:, 0]], 1)

    with pytest.raises(InputError, match="finite logits"):
        Attack(0.3, random_start=False)(Explodes(), torch.full((2, 2), 0.2), torch.zeros(2).long())
    with pytest.raises(InputError, match="one number an example"):
        objective = nn.functional.cross_entropy
        Attack(0.3, objective=objective)(network(inputs=2), torch.rand(2, 2), torch.zeros(2).long())


# ---- the library's attacks -------------------------------------------------------------------


def rough() -> nn.Module:
    """Right about everything near 0.5, with no gradient anywhere, and wrong further out."""

    class Rough(nn.Module):
        def forward(self, x):
            grey = ((x.flatten(1) * 50).round() / 50).mean(1)
            return torch.stack([0.55 - grey, grey - 0.55], 1)

    return Rough()


@pytest.mark.parametrize("kind", ["square", "auto_attack"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_librarys_attacks_stay_inside_and_fool_what_gradients_cannot(kind, norm, capfd):
    """Oracle: exact differences; the model asked again. Break: their units, their rounding,
    gradients left in the parameters, a seed taken from the clock, words on the terminal."""
    pytest.importorskip("pyautoattack")
    inputs = 255 * (0.5 + 0.02 * images(6, seed=1)[0])  # of other images a search may miss one
    target = torch.tensor([0, 0, 0, 0, 0, 1])  # the last is wrong as it is
    model = nn.Sequential(Times(1 / 255), rough())
    epsilon = 0.2 if norm == "linf" else 1.5
    tracer, state, chance = sys.gettrace(), torch.get_rng_state(), random.getstate()
    attack = getattr(black_box, kind)
    found, again = (
        attack(model, inputs, target, epsilon, norm=norm, box=(0, 255), seed=3) for _ in range(2)
    )
    change = found.inputs.double() - inputs.double()
    size = change.flatten(1).abs().amax(1) if norm == "linf" else change.flatten(1).norm(dim=1)
    assert (size <= 255 * epsilon).all() and found.inputs.min() >= 0 and found.inputs.max() <= 255
    assert torch.equal(found.fooled, model(found.inputs).argmax(1) != target)
    assert found.fooled.all() and torch.equal(found.inputs[5], inputs[5])
    assert torch.equal(found.inputs, again.inputs)
    assert sys.gettrace() is tracer and random.getstate() == chance
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert (
        not Attack(epsilon, norm=norm, box=(0, 255), random_start=False)(model, inputs, target)
        .fooled[:5]
        .any()
    )


@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_auto_attack_takes_any_number_of_classes(classes, capfd):
    """Oracle: at ε = 1 every example is fooled, and parameters gather no gradient."""
    pytest.importorskip("pyautoattack")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, classes))
    inputs = images(6)[0]
    target = model(inputs).argmax(1)
    found = black_box.auto_attack(model, inputs, target, 1.0)
    assert found.fooled.all()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training and capfd.readouterr() == ("", "")


def test_square_takes_rows_without_a_box():
    """Oracle: a line's distance. Break: numbers cut to [0, 1], or rows taken for images."""
    pytest.importorskip("pyautoattack")
    model = line()
    weight = model.weight[0].detach()
    inputs = torch.randn(60, 5, dtype=torch.float64) * 3
    found = black_box.square(model, inputs, torch.zeros(60).long(), 0.5, box=None, queries=300)
    distance = (inputs @ weight + 2) / weight.abs().sum()
    sure = (distance - 0.5).abs() > 1e-4
    assert torch.equal(found.fooled[sure], (distance < 0.5)[sure]) and found.fooled.any()


@pytest.mark.parametrize(
    ("shape", "place"),
    [((5,), 0), ((5,), 4), ((1,), 0), ((2,), 1), ((1, 6, 6), 5), ((1, 6, 6), 35), ((6, 6), 30)],
)
def test_squares_come_everywhere(shape, place):
    """Oracle: a model that one feature decides, and a search that fools it sooner or later. Break:
    the library's squares, which leave out the last row and column, and half of the examples."""
    pytest.importorskip("pyautoattack")
    inputs, target = torch.zeros(40, *shape), torch.zeros(40).long()

    class Looks(nn.Module):
        def forward(self, x):
            seen = x.flatten(1)[:, place] + 0.2
            return torch.stack([seen, 0 * seen], 1)

    assert black_box.square(Looks(), inputs, target, 0.5, box=None, queries=500).fooled.all()


def test_what_the_library_cannot_do_is_said(monkeypatch):
    inputs, target = torch.rand(2, 5), torch.zeros(2).long()
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(InputError, match=r"needs pyautoattack: pip install 'losslab\[attacks\]'"):
        black_box.square(network(inputs=5), inputs, target, 0.1)
    monkeypatch.undo()
    pytest.importorskip("pyautoattack")
    with pytest.raises(InputError, match="at least 5×5 pixels"):
        black_box.square(network(inputs=5), inputs, target, 0.1, norm="l2")

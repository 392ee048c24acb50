"""Curvature and gradient noise, against explicit Hessians and gradients of a tiny model."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import ArpackNoConvergence
from torch import nn
from torch.func import functional_call

import losslab
from losslab.analysis.curvature import _noise_product, _trace, curvature
from losslab.analysis.surface import Surface
from losslab.errors import InputError
from losslab.losses.explain import gradient_volume

pytestmark = pytest.mark.usefixtures("one_thread")

FEATURES, CLASSES, EXAMPLES, BATCH = 3, 3, 14, 4
SPECS = ["cross_entropy", "mixed(focus=0)", "encouraging(log_end=0.75)", "focal", "expectation"]


def data(rows: int = EXAMPLES, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(CLASSES, (rows,), generator=generator)


def net(width: int = 4) -> nn.Sequential:
    """Smooth, with batch statistics that matter and dropout that must not."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.5),
        nn.Linear(width, CLASSES),
    ).double()  # fmt: skip
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model.train()


class Brute:
    """Everything written out: H by `torch.func.hessian`, Σ from one backward pass an example."""

    def __init__(self, model: nn.Module, criterion: nn.Module, inputs, target) -> None:
        model = copy.deepcopy(model).eval()
        self.names = [n for n, p in model.named_parameters() if p.requires_grad]
        shapes = [model.get_parameter(n).shape for n in self.names]
        sizes = [math.prod(s) for s in shapes]

        def loss(vector, x, y):
            parts = vector.split(sizes)
            values = {n: v.view(s) for n, v, s in zip(self.names, parts, shapes, strict=True)}
            return criterion(functional_call(model, values, (x,)), y)

        self.at = torch.cat([model.get_parameter(n).detach().flatten() for n in self.names])
        self.loss = lambda vector: float(loss(vector, inputs, target))
        self.hessian = torch.func.hessian(loss)(self.at, inputs, target).numpy()
        rows = []
        for i in range(len(target)):
            leaf = self.at.clone().requires_grad_()
            (g,) = torch.autograd.grad(loss(leaf, inputs[i : i + 1], target[i : i + 1]), leaf)
            rows.append(g)
        self.gradients = torch.stack(rows).numpy()
        self.gradient = self.gradients.mean(0)
        self.covariance = np.cov(self.gradients.T, bias=True)
        self.eigenvalues = np.linalg.eigvalsh(self.hessian)

    def product(self) -> float:
        return float(np.trace(self.hessian @ self.covariance))


@pytest.mark.parametrize("spec", SPECS)
def test_exact_values(spec):
    """Oracle: `Brute`. Break: a Hessian of training-mode batch normalisation, a covariance of
    second moments about 0, a factor m, another order of the parameters."""
    model, (x, y) = net(), data()
    loss = losslab.loss(spec)
    brute = Brute(model, loss, x, y)
    found = curvature(model, loss, (x, y), batch_size=BATCH, probes=100)
    size = len(brute.at)
    expected = {
        "loss": brute.loss(brute.at),
        "gradient_norm": np.linalg.norm(brute.gradient),
        "hessian.trace": np.trace(brute.hessian),
        "hessian.top": brute.eigenvalues[-1],
        "hessian.bottom": brute.eigenvalues[0],
        "noise.trace": np.trace(brute.covariance) / BATCH,
        "escaping.trace": brute.product() / BATCH,
        "escaping.matched": brute.product() / BATCH / (2 * gradient_volume(loss)) ** 3,
    }
    if np.trace(brute.hessian) > 0:
        isotropic = np.trace(brute.hessian) * np.trace(brute.covariance) / size
        expected["escaping.alignment"] = brute.product() / isotropic
    assert found.values == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert found.details["exact"] and found.details["weights"] == size
    assert set(found.details["standard_errors"].values()) == {0.0}


def test_cross_entropy_of_pytorch_is_ours():
    """Oracle: losslab's own, its volume ½ included."""
    model, these = net(), data()
    ours, theirs = losslab.loss("cross_entropy"), nn.CrossEntropyLoss()
    found = [curvature(model, loss, these).values for loss in (ours, theirs)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert "escaping.matched" not in curvature(model, smooth, these).values


def test_tr_h_sigma_is_what_the_noise_of_a_step_costs():
    """Oracle: the losses alone. After one step on a single example drawn at random, the mean loss
    is above that after a step on all by (η²/2)·Tr(HΣ), up to η³."""
    model, (x, y) = net(), data()
    loss = losslab.loss("mixed(focus=0)")
    brute, eta = Brute(model, loss, x, y), 1e-3

    def after(gradient) -> float:
        return brute.loss(brute.at - eta * torch.from_numpy(gradient))

    cost = np.mean([after(g) for g in brute.gradients]) - after(brute.gradient)
    found = curvature(model, loss, (x, y), batch_size=1).values["escaping.trace"]
    assert found == pytest.approx(2 / eta**2 * cost, rel=5e-3)


def test_estimates_agree_with_the_exact_and_say_how_far_off_they_are():
    """Oracle: `Brute`. Break: a biased draw, an error of the wrong size, ends of the spectrum of
    the largest magnitude instead of the largest and smallest value."""
    model, (x, y) = net(), data(16)
    loss = losslab.loss("encouraging")
    brute = Brute(model, loss, x, y)
    probes, repeats = 12, 30
    h, exact = brute.hessian, {"hessian.trace": np.trace(brute.hessian), "escaping.trace": 0.0}
    exact["escaping.trace"] = brute.product() / BATCH
    # the variance of vᵀHv over random signs v
    variance = {"hessian.trace": 2 * (np.sum(h**2) - np.sum(np.diag(h) ** 2)) / probes}
    deviations = brute.gradients - brute.gradient
    sizes = (deviations**2).sum(1)
    slopes = np.einsum("ip,pq,iq->i", deviations, h, deviations) / sizes
    chance = sizes / sizes.sum()
    spread = chance @ slopes**2 - (chance @ slopes) ** 2
    variance["escaping.trace"] = spread / probes * (sizes.mean() / BATCH) ** 2
    surface = Surface(model, loss, x, y)
    gradient = surface.loss_and_gradient()[1]
    lengths = surface.deviations(gradient)
    draws = {
        "hessian.trace": [_trace(surface, None, probes, seed) for seed in range(repeats)],
        "escaping.trace": [
            _noise_product(surface, None, gradient, lengths, probes, seed)
            for seed in range(repeats)
        ],
    }
    for name, truth in exact.items():
        m = BATCH if name == "escaping.trace" else 1
        values = np.array([draw.value / m for draw in draws[name]])
        errors = np.array([draw.error / m for draw in draws[name]])
        assert abs(values.mean() - truth) < 4 * (variance[name] / repeats) ** 0.5
        assert (errors**2).mean() == pytest.approx(variance[name], rel=0.5)
        # where 99.9 % of the variances of 30 draws lie
        assert 0.45 < np.var(values) / variance[name] < 2.1
    for seed in range(3):
        run = curvature(model, loss, (x, y), batch_size=BATCH, probes=probes, seed=seed)
        assert not run.details["exact"]
        for name, estimates in draws.items():
            m = BATCH if name == "escaping.trace" else 1
            assert run.values[name] == pytest.approx(estimates[seed].value / m, rel=1e-9)
            error = run.details["standard_errors"][name]
            assert error == pytest.approx(estimates[seed].error / m, rel=1e-9)
        spread_of_spectrum = brute.eigenvalues[-1] - brute.eigenvalues[0]
        assert run.values["hessian.top"] == pytest.approx(brute.eigenvalues[-1], rel=1e-3)
        error = run.values["hessian.bottom"] - brute.eigenvalues[0]
        assert abs(error) < 2e-3 * spread_of_spectrum
        assert run.values["noise.trace"] == pytest.approx(np.trace(brute.covariance) / BATCH)
    assert curvature(model, loss, (x, y), batch_size=BATCH, probes=probes, seed=2) == run


class Bowls(nn.Module):
    """One weight a bowl: the loss `Mean` is ½ Σ k w_k² for every example, and H is diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7, dtype=torch.float64))
        self.register_buffer("steepness", torch.arange(1.0, 8, dtype=torch.float64))

    def forward(self, inputs):
        return (0.5 * self.steepness * self.weight**2).sum().expand(len(inputs), CLASSES)


class Mean(nn.Module):
    def forward(self, logits, target):
        return logits.mean()


def test_random_signs_know_the_trace_of_a_diagonal_hessian():
    """Oracle: vᵀHv = Σ k for every v of signs, 1 + … + 7 = 28. Break: Gaussian v, whose estimate is
    off by chance; a sign that is 0."""
    found = curvature(Bowls(), Mean(), data(), probes=3)
    assert not found.details["exact"]
    assert found.values["hessian.trace"] == pytest.approx(28, rel=1e-12)
    assert found.details["standard_errors"]["hessian.trace"] == pytest.approx(0, abs=1e-12)
    assert found.values["hessian.top"] == pytest.approx(7, rel=1e-3)
    assert found.values["hessian.bottom"] == pytest.approx(1, abs=7e-3)


@pytest.mark.parametrize("loud", [0, 7])
def test_noise_that_a_few_examples_carry_is_found(loud):
    """Oracle: `Brute`. One example's inputs are 30 times the others', so its gradient is, and the
    Hessian along it is another. Break: examples drawn evenly, which mostly miss it."""
    model, (x, y) = nn.Linear(FEATURES, CLASSES).double(), data(16)
    x[loud] *= 30
    loss = losslab.loss("expectation")
    brute = Brute(model, loss, x, y)
    surface = Surface(model, loss, x, y)
    gradient = surface.loss_and_gradient()[1]
    sizes = surface.deviations(gradient)
    draws = [_noise_product(surface, None, gradient, sizes, 8, seed) for seed in range(40)]
    mean = np.mean([draw.value for draw in draws])
    error = math.sqrt(np.mean([draw.error**2 for draw in draws]) / len(draws))
    assert abs(mean - brute.product()) < 4 * error
    assert error < 0.1 * abs(brute.product())


def test_what_does_not_converge_is_left_out(monkeypatch):
    """Break: an eigenvalue that Lanczos has not found, reported as found; a division by it."""
    monkeypatch.setattr("losslab.analysis.curvature._RESTARTS", 1)
    monkeypatch.setattr("losslab.analysis.curvature._TOLERANCE", 1e-15)
    model, loss, these = net(30), losslab.loss("focal"), data(40)
    found = curvature(model, loss, these, probes=2)
    assert "hessian.bottom" not in found.values
    assert any(flag.startswith("The smallest eigenvalue") for flag in found.flags)

    def fails(*_, **__):
        raise ArpackNoConvergence("no", np.zeros(0), np.zeros((0, 0)))

    monkeypatch.setattr("scipy.sparse.linalg.eigsh", fails)
    found = curvature(model, loss, these, probes=2)
    assert not {"hessian.top", "hessian.bottom"} & set(found.values)
    assert "largest eigenvalue" in found.flags[0] and "smallest" in found.flags[1]


def test_few_examples_are_all_asked():
    """Oracle: `Brute`: with as many probes as examples and fewer than weights, Tr(HΣ) is exact."""
    model, (x, y) = net(), data(10)
    loss = losslab.loss("focal")
    found = curvature(model, loss, (x, y), batch_size=BATCH, probes=10)
    assert not found.details["exact"]
    assert found.details["standard_errors"]["escaping.trace"] == 0
    exact = Brute(model, loss, x, y).product() / BATCH
    assert found.values["escaping.trace"] == pytest.approx(exact, rel=1e-9)


def test_figures_without_a_scale():
    """Oracle: arithmetic. A loss times 3 has Tr(HΣ) times 27 and the same alignment and matched
    figure; m divides Tr Σ and Tr(HΣ)."""
    model, these = net(), data()
    loss = losslab.loss("mixed(focus=0)")
    one = curvature(model, loss, these, batch_size=10).values
    three = curvature(model, 3 * loss, these, batch_size=10).values
    assert three["escaping.trace"] == pytest.approx(27 * one["escaping.trace"], rel=1e-9)
    for name in ("escaping.alignment", "escaping.matched"):
        assert three[name] == pytest.approx(one[name], rel=1e-6)
    single = curvature(model, loss, these, batch_size=1).values
    for name in ("noise.trace", "escaping.trace"):
        assert single[name] == pytest.approx(10 * one[name], rel=1e-12)
    assert single["escaping.alignment"] == pytest.approx(one["escaping.alignment"], rel=1e-12)


def test_the_model_and_the_generators_are_left_as_they_were():
    """Oracle: copies. Break: a model left in float64 or evaluation mode, gradients left behind."""
    model, (x, y) = net().float(), data()
    state, loss = copy.deepcopy(model.state_dict()), losslab.loss("cross_entropy")
    random = torch.get_rng_state()
    curvature(model, loss, (x.float(), y), probes=5, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_some_of_many_examples():
    """Oracle: the same examples drawn here. Break: the first ones taken instead."""
    model, (x, y) = net(), data(50)
    y = y.sort().values  # the first examples are of one class
    loss = losslab.loss("cross_entropy")
    found = curvature(model, loss, (x, y), examples=20, seed=4, probes=100)
    assert found.details["examples"] == 20
    surface_of_all = curvature(model, loss, (x, y), examples=None)
    assert surface_of_all.details["examples"] == 50
    rows = torch.randperm(50, generator=torch.Generator().manual_seed(4))[:20]
    brute = Brute(model, loss, x[rows], y[rows])
    assert found.values["loss"] == pytest.approx(brute.loss(brute.at), rel=1e-12)
    assert found.values["hessian.trace"] == pytest.approx(np.trace(brute.hessian), rel=1e-9)


def test_frozen_parameters_are_no_weights():
    """Oracle: `Brute` over the others."""
    model, (x, y) = net(), data()
    model[0].requires_grad_(False)
    loss = losslab.loss("cross_entropy")
    found = curvature(model, loss, (x, y), probes=100)
    brute = Brute(model, loss, x, y)
    assert found.details["weights"] == len(brute.at) == 23
    assert found.values["hessian.trace"] == pytest.approx(np.trace(brute.hessian), rel=1e-9)


class Branching(nn.Module):
    """Looks at its numbers, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(FEATURES, CLASSES).double() for _ in range(2))

    def forward(self, inputs):
        which = [int(bool(row.sum() > 0)) for row in inputs]
        return torch.stack([self.layers[k](row) for k, row in zip(which, inputs, strict=True)])


def test_a_model_that_vmap_does_not_take():
    """Oracle: each example's gradient by a backward pass of its own."""
    torch.manual_seed(0)
    model, (x, y) = Branching(), data()
    loss = losslab.loss("focal")
    surface = Surface(model, loss, x, y)
    found = torch.cat(list(surface.example_gradients()))
    for i in range(EXAMPLES):
        model.zero_grad()
        loss(model(x[i : i + 1]), y[i : i + 1]).backward()
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        torch.testing.assert_close(found[i], torch.cat([g.flatten() for g in own]))
    _, gradient = surface.loss_and_gradient()
    assert surface.deviations(gradient).shape == (EXAMPLES,)


class Attentive(nn.Module):
    """Attention by PyTorch's fused operation, whose fast ways have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs):
        seen, _ = self.attention(inputs, inputs, inputs, need_weights=False)
        return self.head(seen.mean(1))


def test_attention():
    """Oracle: differences of gradients."""
    torch.manual_seed(0)
    model, y = Attentive().double(), torch.arange(8) % CLASSES
    x = torch.randn(8, 5, 4, dtype=torch.float64)
    loss = losslab.loss("cross_entropy")
    surface = Surface(model, loss, x, y)
    direction = torch.randn(surface.size, dtype=torch.float64)
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        vector = nn.utils.parameters_to_vector(moved.parameters()) + sign * 1e-5 * direction
        nn.utils.vector_to_parameters(vector, moved.parameters())
        moved.zero_grad()
        loss(moved(x), y).backward()
        ends.append(nn.utils.parameters_to_vector([p.grad for p in moved.parameters()]))
    torch.testing.assert_close(
        surface.product(direction), (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-8
    )
    assert curvature(model, loss, (x, y), probes=10).values["noise.trace"] > 0


def test_products_of_several_pieces_add_up(monkeypatch):
    """Oracle: `Brute`, with pieces of 5 examples and gradients of 2 at once."""
    from losslab.analysis import surface as module

    monkeypatch.setattr(module, "_AT_ONCE", 5)
    monkeypatch.setattr(module, "_HELD", 80)
    model, (x, y) = net(), data()
    loss = losslab.loss("focal")
    brute = Brute(model, loss, x, y)
    surface = Surface(model, loss, x, y)
    np.testing.assert_allclose(surface.hessian().numpy(), brute.hessian, rtol=1e-8, atol=1e-12)
    found = torch.cat(list(surface.example_gradients())).numpy()
    np.testing.assert_allclose(found, brute.gradients, rtol=1e-8, atol=1e-12)


class Flat(nn.Module):
    """A loss that depends on nothing."""

    def forward(self, logits, target):
        return 0.0 * logits.sum() + 1.0


@pytest.mark.parametrize("probes", [5, 100])
def test_a_flat_loss(probes):
    """Oracle: zero everywhere. Break: a division by nothing, a NaN, a crash of ARPACK."""
    found = curvature(net(), Flat(), data(), probes=probes)
    assert found.values["loss"] == pytest.approx(1)
    zero = {k: v for k, v in found.values.items() if k != "loss"}
    assert set(zero.values()) == {0.0} and "escaping.alignment" not in zero
    assert {"hessian.top", "hessian.bottom", "escaping.trace"} <= set(zero)


def test_a_saddle_is_flagged():
    """Oracle: the spectrum: weights at which cross-entropy has no minimum, and at which it has."""
    model, these = nn.Linear(FEATURES, CLASSES).double(), data(40)
    loss = losslab.loss("cross_entropy")
    assert curvature(model, loss, these).flags == ()  # convex
    saddle = curvature(net(), losslab.loss("expectation"), these)
    assert saddle.values["hessian.bottom"] < -0.1 * saddle.values["hessian.top"]
    assert "no minimum" in saddle.flags[0]


def test_uncertain_estimates_are_flagged():
    """Oracle: the standard error itself."""
    found = curvature(net(), losslab.loss("expectation"), data(60), probes=2)
    name = "hessian.trace"
    assert found.details["standard_errors"][name] > 0.25 * abs(found.values[name])
    assert any(flag.startswith(f"{name} is uncertain") for flag in found.flags)


def test_float32():
    """Oracle: float64. Break: a tolerance of one type applied to the other."""
    model, (x, y) = net().float(), data(60)
    loss = losslab.loss("cross_entropy")
    wide = curvature(model, loss, (x, y), probes=20, dtype=torch.float64)
    narrow = curvature(model, loss, (x.float(), y), probes=20)
    half = curvature(copy.deepcopy(model).bfloat16(), loss, (x, y), probes=20)
    assert half.values["hessian.trace"] == pytest.approx(wide.values["hessian.trace"], rel=0.05)
    assert narrow.values != wide.values
    assert narrow.values == pytest.approx(wide.values, rel=1e-3)


class Caster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs):
        return self.layer(inputs.float())


class Rooted(nn.Module):
    """|w|^{3/2} is 0 at w = 0, and so is its slope, but its second derivative is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(FEATURES, CLASSES, dtype=torch.float64))

    def forward(self, inputs):
        return inputs @ (self.weight.abs() ** 1.5)


class Coupled(nn.Module):
    """Each example's logits depend on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES).double()

    def forward(self, inputs):
        logits = self.layer(inputs)
        return logits - logits.mean(0)


def test_soft_targets_are_taken():
    """Oracle: cross-entropy of one-hot targets is that of class numbers. Break: targets that are
    refused because they are no class numbers."""
    model, (x, y) = net(), data()
    soft = nn.functional.one_hot(y, CLASSES).double()
    found, truth = (curvature(model, nn.CrossEntropyLoss(), (x, t), probes=100) for t in (soft, y))
    assert found.values == pytest.approx(truth.values, rel=1e-9)


def test_mistakes_are_told():
    """Oracle: the messages. Break: numbers of a loss that is not a mean of its examples' losses."""
    (x, y), ce = data(), nn.CrossEntropyLoss()
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]))
    ignoring = nn.CrossEntropyLoss(ignore_index=1)
    slightly = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1, 1 + 1e-8], dtype=torch.float64))
    mean_of_many = "loss of many examples to be the mean of the losses of each alone"
    frozen = nn.Linear(FEATURES, CLASSES).requires_grad_(False)
    for told, model, loss, these in [
        (mean_of_many, net(), nn.CrossEntropyLoss(reduction="sum"), (x, y)),
        (mean_of_many, net(), weighted, (x, y)),
        (mean_of_many, net(), losslab.loss("focal", weight=weighted.weight), (x, y)),
        (mean_of_many, net(), ignoring, (x, y)),
        (mean_of_many, net(), slightly, (x, y)),
        (mean_of_many, Coupled(), ce, (x, y)),
        (
            "to be one number, but its shape is",
            net(),
            nn.CrossEntropyLoss(reduction="none"),
            (x, y),
        ),
        (
            "alternates",
            net(),
            losslab.ComplementObjectiveLoss(losslab.loss("cross_entropy")),
            (x, y),
        ),
        ("has none; set requires_grad", frozen, ce, (x, y)),
        ("has diverged", net(), ce, (x * math.nan, y)),
        ("finite loss", net(), ce, (x * math.inf, y)),
        ("at least one example", net(), ce, (x[:0], y[:0])),
        ("got 14 inputs and 13 targets", net(), ce, (x, y[:-1])),
        ("got 13 inputs and 14 targets", net(), ce, (x[:-1], y)),
        (r"target in \[0, 2\], but they lie in", net(), ce, (x, y + 1)),
        ("leave out rows to be ignored", net(), ce, (x, torch.where(y > 0, y, -100))),
        ("finite second derivatives", Rooted(), ce, (x, y)),
    ]:
        with pytest.raises(InputError, match=told):
            curvature(model, loss, these)
    for options in ({"probes": 1}, {"batch_size": 0}, {"examples": 0}, {"examples": 2.5}):
        with pytest.raises(InputError, match=f"Expected {next(iter(options))} to be a whole"):
            curvature(net(), ce, (x, y), **options)
    with pytest.raises(InputError, match=r"computes in torch\.float64.*leave dtype out"):
        curvature(Caster(), ce, (x, y), dtype=torch.float64)
    curvature(Caster(), ce, (x, y))

"""Runs trained as one are the runs trained alone; the oracle throughout is `train`."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import TensorDataset

import losslab
from losslab.experiment import Task, train
from losslab.experiment.batched import Member, Unstackable, pays, train_together, why_not
from losslab.experiment.train import Stopped

FEATURES, CLASSES = 6, 4
LOSSES = [
    "cross_entropy",
    "mixed(focus=0)",
    "mixed(focus=phases(0, 0.5))",
    "encouraging(rho=ramp(0, 1))",
    "focal",
]


pytestmark = pytest.mark.usefixtures("one_thread")


def examples(n, seed):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, FEATURES, generator=g)
    truth = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(n, CLASSES, generator=g)
    return TensorDataset(inputs, (inputs @ truth + 2 * noise).argmax(1))


def mlp():
    return nn.Sequential(nn.Linear(FEATURES, 7), nn.ReLU(), nn.Linear(7, CLASSES))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def task(**changes):
    fields = {
        "name": "toy",
        "train": examples(45, 1),  # five batches of eight and one of five
        "validation": examples(30, 2),
        "test": examples(37, 3),
        "num_classes": CLASSES,
        "model": mlp,
        "optimizer": sgd,
        "epochs": 4,
        "batch_size": 8,
    }
    return Task(**fields | changes)


def assert_same(task, members, *, rtol=2e-4, atol=1e-5, alone=None):
    """Every run of the stack beside the same run alone, to rounding."""
    assert why_not(task, members) is None
    together = train_together(task, members)
    assert len(together) == len(members)
    for member, mine in zip(members, together, strict=True):
        fresh = alone(member) if alone else losslab.loss(member.criterion.spec)
        own = train(task, fresh, member.seed, lr_scale=member.lr_scale)
        assert (mine.status, mine.reason) == (own.status, own.reason)
        assert mine.curves["epoch"] == own.curves["epoch"]
        assert mine.curves["lr"] == pytest.approx(own.curves["lr"], rel=1e-12)
        for key in ("train_loss",):
            assert mine.curves[key] == pytest.approx(own.curves[key], rel=rtol, abs=atol)
        for split in ("validation", "test"):
            for metric in ("accuracy", "nll"):
                got, expected = mine.curves[split][metric], own.curves[split][metric]
                assert got == pytest.approx(expected, rel=rtol, abs=atol), (split, metric)
        state = own.model.state_dict() if own.status == "finished" else {}
        for name, value in mine.model.state_dict().items() if state else ():
            torch.testing.assert_close(value, state[name], rtol=10 * rtol, atol=10 * atol)
        for selection, result in own.results.items():
            if result is None:
                assert mine.results[selection] is None
                continue
            assert mine.results[selection]["epoch"] == result["epoch"]
            got, expected = mine.results[selection]["test"], result["test"]
            assert got == pytest.approx(expected, rel=20 * rtol, abs=20 * atol)
    return together


def test_losses_seeds_and_rates():
    """Break: batches or weights of another seed, a neighbour's loss, a schedule or a rate
    of another run."""
    members = [
        Member(losslab.loss(spec), seed, scale)
        for seed in (0, 3)
        for spec in LOSSES
        for scale in (1.0, 0.1)
    ]
    results = assert_same(task(), members)
    finals = {tuple(run.curves["train_loss"]) for run in results}
    assert len(finals) == len(members)  # no two runs are one


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.1),
    "dampening": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-3, weight_decay=0.3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    """Oracle: torch.optim's own. Break: a term of the update, a bias correction, the first step."""
    members = [Member(losslab.loss("cross_entropy"), s, r) for s in (0, 1) for r in (1.0, 0.3)]
    assert_same(task(optimizer=OPTIMIZERS[name]), members)


def test_rates_that_move():
    """Break: a schedule stepped at another time, a scale's progress, an epoch's first rate."""
    members = [
        Member(losslab.loss("expectation"), 0, lambda progress: 1 + progress),
        Member(losslab.loss("expectation"), 0, 0.5),
        Member(losslab.loss("cross_entropy"), 1, lambda progress: 0.1 if progress < 0.5 else 2.0),
    ]
    scheduler = lambda optimizer, steps: CosineAnnealingLR(optimizer, steps)  # noqa: E731
    assert_same(task(lr_scheduler=scheduler), members)


@pytest.mark.parametrize("examples_", [5, 8, 9, 16, 17])
def test_numbers_of_examples(examples_):
    """Break: a data set of one batch, a last batch of one that does not join the one before it."""
    members = [Member(losslab.loss(spec), seed) for spec in LOSSES[:2] for seed in (0, 1)]
    few = examples(examples_, 11)
    few.tensors[1][:CLASSES] = torch.arange(CLASSES)
    assert_same(task(train=few), members)


class Residual(nn.Module):
    """Frozen and tied parameters, a buffer, batch norm, a convolution."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm1d(3)
        self.first = nn.Linear(3 * FEATURES, FEATURES)
        self.again = nn.Linear(FEATURES, FEATURES)
        self.again.weight = nn.Parameter(torch.eye(FEATURES), requires_grad=False)
        self.last = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("shift", torch.randn(FEATURES))

    def forward(self, x):
        y = torch.relu(self.norm(self.convolution(x.unsqueeze(1))))
        y = torch.tanh(self.first(y.flatten(1))) + self.shift
        return self.last(self.again(y) + y)


def test_models_with_state():
    """Break: running statistics shared by the runs or measured in training mode, a frozen parameter
    that learns, a buffer of another seed."""
    members = [Member(losslab.loss(spec), seed) for spec in LOSSES[:2] for seed in (0, 1)]
    results = assert_same(task(model=Residual), members, rtol=1e-3, atol=1e-4)
    norms = [run.model.norm for run in results]
    assert all(int(norm.num_batches_tracked) == 4 * 6 for norm in norms)
    assert not torch.equal(norms[0].running_mean, norms[2].running_mean)


def test_any_loss():
    """Break: class weights, smoothing, sums, one-vs-rest or a foreign loss taken for the plain
    one; an ignored class trained on."""
    weight = torch.tensor([1.0, 0.2, 3.0, 0.5])
    make = {
        "smoothed": lambda: losslab.loss("focal", label_smoothing=0.1),
        "weighted": lambda: losslab.loss("cross_entropy", weight=weight),
        "ignored": lambda: losslab.loss("cross_entropy", ignore_index=2, zero_if_empty=True),
        "sum": lambda: losslab.loss("cross_entropy + 0.5*expectation"),
        "sigmoids": lambda: losslab.loss("one_vs_rest(focal)"),
        "torch's": lambda: nn.CrossEntropyLoss(label_smoothing=0.2),
        "own psi": lambda: losslab.OddsLoss(lambda a: torch.relu(1 - a)),
    }
    names = [name for name in make for _ in range(2)]
    members = [Member(make[name](), seed) for seed, name in enumerate(names)]
    fresh = {id(m): make[name] for m, name in zip(members, names, strict=True)}
    assert_same(task(), members, alone=lambda member: fresh[id(member)]())


def test_double_precision():
    """Break: numbers rounded to float32 on the way."""

    def wide(dataset):
        return TensorDataset(dataset.tensors[0].double(), dataset.tensors[1])

    splits = {name: wide(getattr(task(), name)) for name in ("train", "validation", "test")}
    members = [Member(losslab.loss(spec), seed) for spec in LOSSES for seed in (0, 1)]
    assert_same(task(model=lambda: mlp().double(), **splits), members, rtol=1e-10, atol=1e-12)


def test_runs_that_stop_leave_the_others_as_they_were():
    """Break: a run that goes on, or another's state after the stack has shrunk."""
    members = [
        Member(losslab.loss(s), seed, r) for s in LOSSES[:3] for seed in (0, 1) for r in (1, 3)
    ]
    results = assert_same(task(epochs=12, patience=2), members)
    lengths = {len(run.curves["epoch"]) for run in results}
    assert len(lengths) > 1 and min(lengths) < 12


def test_runs_that_diverge_leave_the_others_as_they_were():
    """Break: NaN that reaches a neighbour, a divergence told at another step or not at all."""
    members = [
        Member(losslab.loss("mean_squared_error"), 0),
        Member(losslab.loss("exponential(cap=80)"), 0, 1e30),
        Member(losslab.loss("cross_entropy"), 1, 1e38),
        Member(losslab.loss("cross_entropy"), 1),
    ]
    results = assert_same(task(), members)
    assert [run.status for run in results] == ["finished", "diverged", "diverged", "finished"]


def test_repeats_bit_for_bit_in_any_company():
    """Oracle: the same numbers to the last bit. Break: order or memory of the stack that shows."""

    def members(specs):
        return [Member(losslab.loss(spec), seed) for spec in specs for seed in (0, 1)]

    first = train_together(task(), members(LOSSES))
    again = train_together(task(), members(LOSSES))
    fewer = train_together(task(), members(LOSSES[2:]))
    for one, other in [*zip(first, again, strict=True), *zip(first[4:], fewer, strict=True)]:
        assert one.curves == other.curves and one.results == other.results


class Counting(nn.Module):
    """A model with a memory that is no buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(FEATURES, CLASSES), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


def test_what_cannot_be_stacked_says_why():
    """Break: dropout trained with other draws, an optimiser taken for SGD, a loop left out."""
    plain = [Member(losslab.loss("cross_entropy"), 0)]
    dropout = lambda: nn.Sequential(mlp(), nn.Dropout(0.5))  # noqa: E731
    twice = losslab.ComplementObjectiveLoss(losslab.loss("cross_entropy"))
    cases = [
        (task(model=dropout), plain, "random numbers"),
        (task(model=Counting), plain, "not the step alone"),
        (task(augment=lambda x, g: x), plain, "augments"),
        (task(optimizer=lambda p: torch.optim.RMSprop(p)), plain, "RMSprop"),
        (task(optimizer=lambda p: torch.optim.Adam(p, amsgrad=True)), plain, "amsgrad"),
        (
            task(optimizer=lambda p: torch.optim.SGD([{"params": [x]} for x in p], lr=0.1)),
            plain,
            "groups",
        ),
        (task(), [Member(twice, 0)], "alternates"),
        (task(), [Member(nn.Sequential(nn.Linear(1, 1)), 0)], "parameters of its own"),
    ]
    for one, members, words in cases:
        reason = why_not(one, members)
        assert reason is not None and words in reason, (words, reason)
        with pytest.raises(Unstackable, match=words):
            train_together(one, members)


def test_the_callers_random_numbers_are_left_alone():
    """Break: a generator that goes on from where the runs left it."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_together(task(epochs=1), [Member(losslab.loss("cross_entropy"), 0)])
    assert torch.equal(torch.rand(3), expected)


def test_stops_when_told_and_tells_every_epoch():
    """Break: an epoch of a run that is not told, or told as another's."""
    told = []
    members = [Member(losslab.loss(spec), 0) for spec in LOSSES[:2]]
    results = train_together(
        task(), members, progress_callback=lambda number, epoch: told.append((number, epoch))
    )
    for number, run in enumerate(results):
        accuracies = [epoch.test_accuracy for n, epoch in told if n == number]
        assert accuracies == run.curves["test"]["accuracy"]
    with pytest.raises(Stopped):
        train_together(task(), members, stop=lambda: True)


def test_where_it_pays():
    """Break: a stack of a large model, or of a single run."""
    assert pays(task(), 8) and not pays(task(), 2)
    wide = lambda: nn.Sequential(nn.Linear(FEATURES, 4096), nn.Linear(4096, 4096))  # noqa: E731
    assert not pays(task(model=lambda: nn.Sequential(wide(), nn.Linear(4096, CLASSES))), 8)
    assert math.isfinite(train(task(epochs=1), nn.CrossEntropyLoss(), 0).seconds)

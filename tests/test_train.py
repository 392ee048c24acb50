"""The training loop: against a plain loop written here, and what pairing and repeating promise."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from losslab import metrics
from losslab.errors import InputError
from losslab.experiment.records import canonical_json
from losslab.experiment.task import Task
from losslab.experiment.train import Stopped, train

FEATURES, CLASSES = 5, 3


pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(rows: int, seed: int, noise: float = 1.0) -> TensorDataset:
    """Every class around a centre of its own."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(CLASSES, FEATURES) * 2
    target = torch.arange(rows) % CLASSES
    return TensorDataset(
        centres[target] + noise * torch.randn(rows, FEATURES, generator=generator), target
    )


def make_task(**changes) -> Task:
    settings = {
        "name": "blobs",
        "train": blobs(40, 1),
        "validation": blobs(24, 2),
        "test": blobs(30, 3),
        "num_classes": CLASSES,
        "model": lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=1e-3),
        "epochs": 3,
        "batch_size": 16,
        "lr_scheduler": lambda o, steps: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps),
    }
    return Task(**(settings | changes))


class Spy(nn.Module):
    """A model that notes its initial weights, the batches it sees and its dropout masks."""

    made: list[Spy]

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, CLASSES)
        self.initial = {k: v.clone() for k, v in self.state_dict().items()}
        self.batches: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []
        Spy.made.append(self)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches.append(inputs.clone())
            mask = nn.functional.dropout(torch.ones_like(inputs))
            self.masks.append(mask)
            inputs = inputs * mask
        return self.body(inputs)


class Noisy(nn.Module):
    """A loss that draws random numbers of its own, one more every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        torch.rand(self.calls), random.random(), np.random.rand()
        return 3 * nn.functional.cross_entropy(logits + 0.1 * torch.randn_like(logits), target)


def spied(task_changes: dict, *runs: tuple[nn.Module, int]) -> list[Spy]:
    Spy.made = []
    for criterion, seed in runs:
        train(make_task(model=Spy, **task_changes), criterion, seed)
    return Spy.made


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def shake(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return inputs + torch.randn(inputs.shape, generator=generator)


class Jittered(Dataset):
    """A dataset with random transforms, drawn from every global generator there is."""

    def __init__(self, base: TensorDataset) -> None:
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int):
        inputs, target = self.base[index]
        jitter = torch.rand(()) + random.random() + np.random.rand()
        return inputs + float(jitter), int(target)


# ---- the numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.25, "callable"])
def test_weights_are_those_of_a_plain_loop(scale):
    """Oracle: SGD with momentum, weight decay and cosine schedule, written out here.

    It gets the initial weights and the batches from the spy; a wrong order of steps, a scale that
    leaks into the schedule, or a schedule stepped by epoch fails it.
    """

    def scale_at(progress):
        return 0.5 + progress if scale == "callable" else scale

    Spy.made = []
    task = make_task(model=Spy)
    result = train(
        task, nn.CrossEntropyLoss(), 7, lr_scale=scale_at if scale == "callable" else scale
    )
    spy = Spy.made[-1]
    inputs, targets = task.train.tensors
    rows = {tuple(row.tolist()): int(t) for row, t in zip(inputs, targets, strict=True)}
    weight, bias = spy.initial["body.weight"].clone(), spy.initial["body.bias"].clone()
    momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
    assert len(spy.batches) == 9
    for step, (batch, mask) in enumerate(zip(spy.batches, spy.masks, strict=True)):
        target = torch.tensor([rows[tuple(row.tolist())] for row in batch])
        weight.requires_grad_(), bias.requires_grad_()
        loss = nn.functional.cross_entropy((batch * mask) @ weight.T + bias, target)
        gradients = torch.autograd.grad(loss, [weight, bias])
        rate = 0.2 * (1 + math.cos(math.pi * step / 9)) / 2 * scale_at(step / 9)
        updated = []
        for parameter, gradient, momentum in zip((weight, bias), gradients, momenta, strict=True):
            momentum.mul_(0.9).add_(gradient + 1e-3 * parameter.detach())
            updated.append(parameter.detach() - rate * momentum)
        weight, bias = updated
    torch.testing.assert_close(result.model.body.weight.detach(), weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(result.model.body.bias.detach(), bias, rtol=1e-5, atol=1e-7)
    rates = [0.2 * (1 + math.cos(math.pi * e / 3)) / 2 * scale_at(e / 3) for e in range(3)]
    assert result.curves["lr"] == pytest.approx(rates, rel=1e-9)


def test_results_are_those_of_the_returned_model():
    """Oracle: the returned model applied here to the splits; numpy's histogram for the margins."""
    task = make_task()
    result = train(task, nn.CrossEntropyLoss(), 0)
    model = result.model.eval()
    last = result.results["last"]
    assert last["epoch"] == 3 and result.status == "finished" and result.reason is None
    for split in ("validation", "test"):
        inputs, target = getattr(task, split).tensors
        assert last[split] == metrics.evaluate(model(inputs).detach(), target)
        assert result.curves[split]["accuracy"][-1] == last[split]["accuracy"]
        assert result.curves[split]["nll"][-1] == last[split]["nll"]
    assert result.curves["epoch"] == [1, 2, 3]
    assert result.accuracy == last["test"]["accuracy"]

    inputs, target = task.test.tensors
    logits = model(inputs).detach()
    margins = metrics.margin(logits, target)
    assert torch.equal(result.examples["margin"], margins.float())
    assert torch.equal(result.examples["log_odds"], metrics.log_odds(logits, target).float())
    assert torch.equal(result.examples["correct"], logits.argmax(1) == target)
    counts, edges = np.histogram(margins.numpy(), bins=50)
    assert result.margin_histogram["edges"] == pytest.approx(edges.tolist(), rel=1e-12)
    assert sum(result.margin_histogram["counts"]) == 30
    moved = np.abs(np.cumsum(result.margin_histogram["counts"]) - np.cumsum(counts)).max()
    assert moved <= 1  # (lower, upper] here, [lower, upper) in numpy
    table = metrics.reliability(logits, target)
    assert result.reliability["counts"] == table.counts.tolist()
    assert result.reliability["edges"] == table.edges.tolist()


def test_training_loss_of_an_epoch_is_the_mean_over_its_examples():
    """Oracle: at a learning rate of 0, the mean loss of all rows, in batches of 16, 16 and 8."""
    task = make_task(optimizer=lambda p: torch.optim.SGD(p, lr=0.0), epochs=1)
    result = train(task, nn.CrossEntropyLoss(), 0)
    inputs, target = task.train.tensors
    expected = nn.functional.cross_entropy(result.model(inputs), target).item()
    assert result.curves["train_loss"] == pytest.approx([expected], rel=1e-6)


def test_alternating_steps_have_their_own_forward_and_optimiser():
    """Oracle: the published loop of complement objective training, two optimisers, written here.

    One forward pass for both steps, or one shared momentum, fails it.
    """

    class Alternating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = (nn.CrossEntropyLoss(), lambda z, y: 0.1 * z.logsumexp(1).mean())

        def forward(self, logits, target):
            raise AssertionError("its steps are what is taken")

    task = make_task(lr_scheduler=None)
    Spy.made = []
    result = train(make_task(model=Spy, lr_scheduler=None), Alternating(), 0)
    spy = Spy.made[0]
    model = nn.Linear(FEATURES, CLASSES)
    model.load_state_dict({k.removeprefix("body."): v for k, v in spy.initial.items()})
    optimizers = [task.optimizer(model.parameters()) for _ in range(2)]
    inputs, targets = task.train.tensors
    rows = {tuple(row.tolist()): int(t) for row, t in zip(inputs, targets, strict=True)}
    assert len(spy.batches) == 18  # two forward passes a batch
    for number, (batch, mask) in enumerate(zip(spy.batches, spy.masks, strict=True)):
        target = torch.tensor([rows[tuple(row.tolist())] for row in batch])
        logits = model(batch * mask)
        loss = Alternating().steps[number % 2](logits, target)
        optimizers[number % 2].zero_grad()
        loss.backward()
        optimizers[number % 2].step()
    assert torch.equal(result.model.body.weight, model.weight)
    assert torch.equal(result.model.body.bias, model.bias)


# ---- repeating and pairing -------------------------------------------------------------------


@pytest.mark.parametrize("data", [blobs(40, 1), Jittered(blobs(40, 1))], ids=["tensors", "loader"])
def test_a_run_repeats_bit_for_bit_and_leaves_the_callers_generators_alone(data):
    """Oracle: the run repeated in another random state; the caller's next random numbers."""
    task = make_task(
        train=data,
        augment=shake,
        model=lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(), nn.Linear(8, CLASSES)),
    )
    first = train(task, Noisy(), 3)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand())
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    second = train(task, Noisy(), 3)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected
    assert canonical_json(first.recorded()) == canonical_json(second.recorded())
    assert all(torch.equal(first.examples[k], second.examples[k]) for k in first.examples)
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert train(task, Noisy(), 4).curves != first.curves


@pytest.mark.parametrize("data", [blobs(40, 1), Jittered(blobs(40, 1))], ids=["tensors", "loader"])
def test_one_seed_gives_every_loss_the_same_weights_batches_augmentation_and_dropout(data):
    """Oracle: what the model saw, compared between a plain loss and one that draws numbers itself.

    Sharing one generator between any two of them fails it. The other seed must differ in all.
    """
    plain, noisy, other = spied(
        {"train": data, "augment": shake},
        (nn.CrossEntropyLoss(), 0),
        (Noisy(), 0),
        (nn.CrossEntropyLoss(), 1),
    )
    assert equal([*plain.initial.values()], [*noisy.initial.values()])
    assert equal(plain.batches, noisy.batches)
    assert equal(plain.masks, noisy.masks)
    assert not torch.equal(plain.body.weight, noisy.body.weight)  # the losses do differ
    assert not equal([*plain.initial.values()], [*other.initial.values()])
    assert not equal(plain.batches, other.batches)
    assert not equal(plain.masks, other.masks)


def test_augmentation_does_not_move_the_order_nor_the_weights():
    """Oracle: the same seed without augmentation. One generator for two purposes fails it."""
    (bare,) = spied({}, (nn.CrossEntropyLoss(), 0))
    augmented = spied(
        {"augment": lambda x, g: x + 0 * torch.rand(1, generator=g)}, (nn.CrossEntropyLoss(), 0)
    )[0]
    assert equal(bare.batches, augmented.batches)
    assert equal(bare.masks, augmented.masks)


def test_the_fast_path_and_the_loader_see_the_same_batches():
    """Oracle: each other: a dataset of tensors, a part of a larger one, and a plain dataset."""

    class Plain(Dataset):
        def __init__(self, base):
            self.base = base

        def __len__(self):
            return len(self.base)

        def __getitem__(self, index):
            return self.base[index]

    base = blobs(40, 1)
    bigger = TensorDataset(*(torch.cat([t[:7], t]) for t in base.tensors))
    ways = [base, Subset(bigger, range(7, 47)), Plain(base)]
    fast, part, loaded = (
        spied({"train": data, "validation": Plain(blobs(24, 2))}, (nn.CrossEntropyLoss(), 0))[0]
        for data in ways
    )
    assert equal(fast.batches, part.batches)
    assert equal(fast.batches, loaded.batches)
    assert torch.equal(fast.body.weight, loaded.body.weight)


@given(rows=st.integers(3, 30), size=st.integers(1, 31))
@settings(max_examples=30, deadline=None)
def test_every_example_comes_once_an_epoch_and_never_alone(rows, size):
    """Oracle: counting. A dropped tail, or a last batch of one (fatal to batch norm), fails it."""
    (spy,) = spied(
        {"train": blobs(rows, 1), "batch_size": size, "epochs": 2}, (nn.CrossEntropyLoss(), 0)
    )
    sizes = [len(batch) for batch in spy.batches]
    assert sum(sizes) == 2 * rows
    assert size == 1 or min(sizes) > 1
    assert max(sizes) <= size + 1
    half = len(sizes) // 2
    for part in (spy.batches[:half], spy.batches[half:]):
        seen = Counter(tuple(row) for batch in part for row in batch.tolist())
        assert set(seen.values()) == {1} and len(seen) == rows


# ---- progress, selection, trouble ------------------------------------------------------------


def test_numbers_too_small_to_compute_with_are_zero_while_it_trains():
    """Oracle: 1e-40 times 1, before, while and after. Break: a network that trains ever slower as
    unused weights decay, a mode left behind in the caller's thread."""

    class Small(nn.Linear):
        seen: list[float] = []  # noqa: RUF012

        def forward(self, x):
            self.seen.append((torch.tensor(1e-40) * 1.0).item())
            return super().forward(x)

    for before in (False, True):
        torch.set_flush_denormal(before)
        try:
            train(make_task(model=lambda: Small(FEATURES, CLASSES)), nn.CrossEntropyLoss(), seed=0)
            assert ((torch.tensor(1e-40) * 1.0).item() == 0) == before
        finally:
            torch.set_flush_denormal(False)
    assert Small.seen and not any(Small.seen)


def test_progress_is_the_fraction_of_training_done_before_each_batch():
    """Oracle: k/9 for k = 0 … 8. Progress by epoch, or counted after the step, fails it."""

    class Scheduled(nn.CrossEntropyLoss):
        seen: list[float]

        def set_progress(self, fraction):
            self.seen.append(fraction)

    criterion = Scheduled()
    criterion.seen = []
    epochs, scales = [], []
    train(
        make_task(),
        criterion,
        0,
        lr_scale=lambda progress: scales.append(progress) or 1.0,
        progress_callback=epochs.append,
    )
    assert criterion.seen == [k / 9 for k in range(9)]
    assert set(scales) == set(criterion.seen)
    assert [e.epoch for e in epochs] == [1, 2, 3] and {e.epochs for e in epochs} == {3}


class Scripted(nn.Module):
    """Answers validation and test as a script says, one line an epoch: (right, confidence)."""

    script: dict[int, list[tuple[int, float]]]

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(CLASSES))
        self.epoch = -1

    def train(self, mode: bool = True):
        self.epoch += bool(mode)
        return super().train(mode)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            return inputs[:, :CLASSES] * 0 + self.unused
        right, confidence = self.script[len(inputs)][self.epoch]
        logits = torch.zeros(len(inputs), CLASSES)
        target = torch.arange(len(inputs)) % CLASSES
        answer = torch.where(torch.arange(len(inputs)) < right, target, (target + 1) % CLASSES)
        return logits.scatter(1, answer[:, None], confidence)


def test_selection_takes_the_best_accuracy_then_the_lower_nll_then_the_earlier_epoch():
    """Oracle: a script of five epochs whose order is plain to see."""
    Scripted.script = {
        24: [(9, 1.0), (20, 1.0), (20, 2.0), (20, 2.0), (19, 9.0)],  # epoch 3: as right, surer
        30: [(25, 1.0), (1, 1.0), (2, 1.0), (25, 1.0), (3, 1.0)],  # epoch 1 first, 4 equal
    }
    result = train(make_task(model=Scripted, epochs=5), nn.CrossEntropyLoss(), 0)
    assert {name: kept["epoch"] for name, kept in result.results.items()} == {
        "last": 5,
        "validation_selected": 3,
        "best_on_test": 1,
    }
    assert result.results["validation_selected"]["test"]["accuracy"] == 2 / 30
    assert result.results["best_on_test"]["validation"]["accuracy"] == 9 / 24
    assert result.results["last"]["test"]["accuracy"] == 3 / 30
    assert result.curves["validation"]["accuracy"] == [9 / 24, 20 / 24, 20 / 24, 20 / 24, 19 / 24]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_loss_that_is_not_finite_ends_the_run(value):
    """Oracle: the loss breaks at the fifth of three batches an epoch: epoch 2, step 2."""

    class Breaking(nn.Module):
        calls = 0

        def forward(self, logits, target):
            self.calls += 1
            return nn.functional.cross_entropy(logits, target) * (value if self.calls == 5 else 1)

    criterion = Breaking()
    result = train(make_task(), criterion, 0)
    assert criterion.calls == 5
    assert result.status == "diverged"
    assert result.reason == f"the training loss became {value} in epoch 2, step 2 of 3"
    assert result.curves["epoch"] == [1] and len(result.curves["test"]["nll"]) == 1
    assert set(result.results) == {"last", "validation_selected", "best_on_test"}
    assert not any(result.results.values())
    assert result.examples is result.reliability is result.margin_histogram is None
    assert result.accuracy is None


def test_logits_that_are_not_finite_end_the_run():
    """Oracle: a model whose test logits break after the second epoch; two rows of thirty."""

    class Breaking(Scripted):
        def forward(self, inputs):
            logits = super().forward(inputs)
            if len(inputs) == 30 and self.epoch == 1:
                logits[3, 1], logits[4] = math.inf, math.nan
            return logits

    Scripted.script = {24: [(9, 1.0)] * 3, 30: [(9, 1.0)] * 3}
    result = train(make_task(model=Breaking), nn.CrossEntropyLoss(), 0)
    assert result.status == "diverged"
    assert result.reason == "the logits of 2 of 30 test examples were not finite after epoch 2"
    assert result.curves["epoch"] == [1]


def test_a_rate_far_too_high_diverges_and_says_so():
    """Oracle: gradient descent at a rate of 1e30 overflows float32 within a few steps."""
    task = make_task(optimizer=lambda p: torch.optim.SGD(p, lr=1e30), lr_scheduler=None)
    result = train(task, nn.CrossEntropyLoss(), 0)
    assert result.status == "diverged" and "epoch 1" in result.reason


def test_stop_is_asked_before_each_batch():
    """Oracle: a stop at the fourth question leaves three batches seen."""
    Spy.made = []
    answers = iter([False, False, False, True])
    with pytest.raises(Stopped):
        train(make_task(model=Spy), nn.CrossEntropyLoss(), 0, stop=lambda: next(answers))
    assert len(Spy.made[0].batches) == 3


def test_the_loss_goes_where_the_model_goes():
    """Oracle: the device handed to the loss's own ``to``; its buffers would else stay behind."""

    class Weighted(nn.CrossEntropyLoss):
        moved: list[torch.device]

        def to(self, device):
            self.moved.append(device)
            return super().to(device)

    criterion = Weighted(weight=torch.ones(CLASSES))
    criterion.moved = []
    train(make_task(epochs=1), criterion, 0, device="cpu")
    assert criterion.moved == [torch.device("cpu")]


def test_a_loss_for_each_example_is_refused():
    """Oracle: the message."""
    with pytest.raises(
        InputError, match=r"one number, but its shape is \(16,\); use reduction='mean'"
    ):
        train(make_task(), nn.CrossEntropyLoss(reduction="none"), 0)


def test_a_model_with_the_wrong_width_is_refused():
    """Oracle: the message; a model wider than the task trains without complaint otherwise."""
    with pytest.raises(InputError, match=r"logits of shape \(24, 3\).*but got \(24, 4\)"):
        train(make_task(model=lambda: nn.Linear(FEATURES, 4)), nn.CrossEntropyLoss(), 0)


def test_evaluation_is_without_dropout_and_gradient_and_in_batches():
    """Oracle: a model that notes how it is called; 30 rows of 2¹⁸ numbers come in batches of 16."""
    calls = []

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(FEATURES, CLASSES)

        def forward(self, inputs):
            if not self.training:
                calls.append(
                    (len(inputs), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
                )
            return self.body(inputs[:, :FEATURES])

    def wide(rows, seed):
        inputs, target = blobs(rows, seed).tensors
        padding = torch.zeros(rows, 2**15 - FEATURES, dtype=inputs.dtype)
        return TensorDataset(torch.cat([inputs, padding], 1), target)

    train(
        make_task(
            model=Wide, train=wide(20, 1), validation=wide(24, 2), test=wide(40, 3), epochs=1
        ),
        nn.CrossEntropyLoss(),
        0,
    )
    assert calls == [(16, False, True), (8, False, True)] + [(16, False, True)] * 2 + [
        (8, False, True)
    ]

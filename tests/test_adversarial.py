"""Training on attacked inputs: paired, repeatable, recorded, and worth it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import losslab
from losslab.analysis.attacks import Attack
from losslab.analysis.robustness import robustness
from losslab.errors import InputError
from losslab.experiment import Comparison
from losslab.experiment.adversarial import adversarially_trained, trained_against
from losslab.experiment.batched import Member, why_not
from losslab.experiment.batches import derive_seed
from losslab.experiment.checkpoint import Checkpoint
from losslab.experiment.launch import Training
from losslab.experiment.plan import make_plan
from losslab.experiment.task import Task
from losslab.experiment.train import Stopped, train

pytestmark = pytest.mark.usefixtures("one_thread")


def part(start: int, stop: int) -> TensorDataset:
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.tensor(data.images[start:stop] / 16, dtype=torch.float32)
    return TensorDataset(pixels[:, None], torch.tensor(data.target[start:stop]))


def network(norm: bool = False) -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(64, 64), *([nn.BatchNorm1d(64)] if norm else [])]
    return nn.Sequential(*layers, nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))


def digits(**changes) -> Task:
    settings = {
        "name": "digits",
        "train": part(0, 1200),
        "validation": part(1200, 1400),
        "test": part(1400, 1797),
        "num_classes": 10,
        "model": network,
        "optimizer": lambda p: torch.optim.Adam(p, lr=0.005),
        "epochs": 12,
        "batch_size": 60,
    }
    return Task(**(settings | changes))


def small(**changes) -> Task:
    changes = {"train": part(0, 150), "epochs": 2, "batch_size": 50} | changes
    return adversarially_trained(digits(**changes), 0.1, steps=3)


def weights(result) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.values(), other.values(), strict=True))


@pytest.mark.parametrize("method", ["pgd", "fgsm"])
def test_it_withstands_what_ordinary_training_does_not(method):
    """Oracle: ordinary training, beside it. Break: inputs that are not changed, or downhill."""
    loss = losslab.loss("cross_entropy")
    robust = {}
    for name, task in {
        "plain": digits(),
        "attacked": adversarially_trained(digits(), 0.15, method=method),
    }.items():
        result = train(task, loss, 0)
        options = {"attacks": ["pgd_linf"], "epsilons": [0.15], "examples": 200, "steps": 20}
        robust[name] = robustness(result.model, task.test, **options)
        assert robust[name].flags == ()
        assert robust[name].values["accuracy.clean"] > 0.85
    assert robust["attacked"].values["worst.linf.0.15"] > 0.45
    assert robust["plain"].values["worst.linf.0.15"] < 0.25


def test_the_model_sees_the_attacked_batch_and_the_attack_sees_the_model_as_it_stands():
    """Oracle: the loop written out, with torchattacks' PGD written out.

    Break: an attack on another model, in training mode, from other starts, twice, or on labels of
    another batch.
    """
    epsilon, steps, seed = 0.1, 3, 4
    task = small(model=partial(network, True), epochs=1, optimizer=partial(torch.optim.SGD, lr=0.1))
    got = weights(train(task, nn.CrossEntropyLoss(), seed))
    found = weights(train(replace(task, attack=None), nn.CrossEntropyLoss(), seed))
    assert not same(got, found)

    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "model"))
        model = task.model()
        optimizer = task.optimizer(model.parameters())
        inputs, target = task.train.tensors
        order = torch.Generator().manual_seed(derive_seed(seed, "order"))
        for step, rows in enumerate(torch.randperm(150, generator=order).split(50)):
            x, y = inputs[rows], target[rows]
            starts = torch.Generator().manual_seed(derive_seed(seed, "attack") + step)
            start = torch.rand(x.shape, generator=starts, dtype=torch.float64) * 2 - 1
            at = (x + epsilon * start).clamp(0, 1).float()
            model.eval()
            for _ in range(steps):
                at.requires_grad_()
                (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(at), y), at)
                at = at.detach() + 2.5 * epsilon / steps * grad.sign()
                at = (x + (at - x).clamp(-epsilon, epsilon)).clamp(0, 1)
            model.train()
            torch.manual_seed(derive_seed(seed, "dropout") + step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(at), y).backward()
            optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=2e-5)


def test_a_run_repeats_bit_for_bit_and_the_starts_are_the_seeds():
    """Oracle: the same call; a seed changed. Break: a start from torch's global generator."""
    loss = nn.CrossEntropyLoss()
    first = weights(train(small(), loss, 0))
    torch.rand(7)
    assert same(first, weights(train(small(), loss, 0)))
    unlike = replace(small(), attack=replace(small().attack, random_start=False))
    assert not same(first, weights(train(unlike, loss, 0)))
    assert not same(first, weights(train(small(), loss, 1)))


def test_losses_of_one_seed_are_attacked_from_the_same_starts():
    """Oracle: a loss that is cross-entropy in all but name. Break: starts that hang on the loss."""

    class Drawing(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            torch.rand(3)  # a loss that draws numbers of its own shifts nothing
            return super().forward(logits, target)

    one, other = (weights(train(small(), loss(), 0)) for loss in (nn.CrossEntropyLoss, Drawing))
    assert same(one, other)


def test_stopped_after_any_step_it_goes_on_to_the_same_bits(tmp_path):
    """Oracle: the run in one go. Break: starts that begin anew where a run goes on."""
    task, loss = small(model=partial(network, True)), losslab.loss("encouraging")
    whole = weights(train(task, loss, 3))
    for stopped in range(1, 6):
        path = tmp_path / f"{stopped}.ckpt"
        questions = iter([False] * stopped + [True])
        with pytest.raises(Stopped):
            train(
                *(task, loss, 3),
                checkpoint=Checkpoint(path, every=0),
                stop=lambda questions=questions: next(questions),
            )
        torch.manual_seed(stopped)
        going_on = train(task, loss, 3, checkpoint=Checkpoint(path, every=math.inf))
        assert same(weights(going_on), whole), stopped
    other = replace(task, attack=replace(task.attack, epsilon=0.2))
    with pytest.raises(InputError, match="its attack is"):
        train(other, loss, 3, checkpoint=Checkpoint(path))


def test_pieces_and_clipping_train_on_the_same_inputs():
    """Oracle: the batch as a whole. Break: an attack made anew for every piece."""
    task = small(epochs=1, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    loss = nn.CrossEntropyLoss()
    whole, pieces = (weights(train(task, loss, 0, training=Training(accumulate=k))) for k in (1, 2))
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-4, atol=1e-6)


def test_a_run_that_diverges_says_so():
    """Oracle: the status. Break: an attack that refuses the logits of a model gone to NaN."""
    task = small(optimizer=lambda p: torch.optim.SGD(p, lr=1e30), epochs=2)
    result = train(task, nn.CrossEntropyLoss(), 0)
    assert result.status == "diverged" and "loss became" in result.reason


def test_the_attack_is_part_of_a_runs_identity(tmp_path):
    """Oracle: run ids. Break: runs with and without the attack taken for each other."""

    def plan(task):
        losses = [("ce", "cross_entropy"), ("el", "encouraging")]
        return make_plan(Comparison(task, losses, tmp_path, seeds=[0]))

    task = small()
    plain, attacked = plan(replace(task, attack=None)), plan(task)
    other = plan(adversarially_trained(task, 0.1, steps=3, objective="log_odds"))
    assert "attack" not in plain.configuration["settings"]
    assert attacked.configuration["settings"]["attack"] == {
        "epsilon": 0.1,
        "norm": "linf",
        "objective": "cross_entropy",
        "steps": 3,
        "step_size": None,
        "random_start": True,
        "restarts": 1,
        "keep": "last",
        "floor": 0.0,
        "box": "image",
    }
    assert len({*plain.runs, *attacked.runs, *other.runs}) == 6


def test_a_stack_of_runs_says_that_it_cannot():
    members = [Member(nn.CrossEntropyLoss(), seed) for seed in range(2)]
    plain = small(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), model=lambda: nn.Linear(64, 10))
    flat = TensorDataset(*(part(0, 150).tensors[0].flatten(1), part(0, 150).tensors[1]))
    plain = replace(plain, train=flat, validation=flat, test=flat)
    assert "attacks its batches" in (why_not(plain, members) or "")
    assert why_not(replace(plain, attack=None), members) is None


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (0.3, "attack must be a losslab.analysis.attacks.Attack; got float"),
        (Attack(0.3), "keep='last' to train on; got 'best'"),
        (Attack(0.3, keep="last", box=(0.0, 0.5)), r"train split, which attack.*box \[0, 0.5\]"),
    ],
)
def test_attacks_that_cannot_be_trained_on_are_refused(attack, message):
    with pytest.raises(InputError, match=message):
        digits(attack=attack)
    with pytest.raises(InputError, match="method to be one of fgsm, pgd"):
        adversarially_trained(digits(), 0.3, method="apgd")


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("pgd(0.3)", {}),
        ("pgd(3, norm=l2)", {"epsilon": 3, "norm": "l2"}),
        ("fgsm(0.2)", {"epsilon": 0.2, "method": "fgsm"}),
        ("pgd(epsilon=0.1, steps=3, objective=log_odds)",
         {"epsilon": 0.1, "steps": 3, "objective": "log_odds"}),
    ],
)  # fmt: skip
def test_one_line_says_it_too(text, changed):
    """Oracle: the function with the same arguments."""
    task = digits()
    assert trained_against(task, text).attack == adversarially_trained(task, **changed).attack


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg(0.3)", "Did you mean 'pgd'"),
        ("pgd(0.3, step=3)", "Did you mean 'steps'"),
        ("pgd(0.3, method=fgsm)", "leave method out"),
        ("pgd(-1)", "epsilon"),
    ],
)
def test_one_line_that_says_nothing(text, message):
    with pytest.raises(InputError, match=message):
        trained_against(digits(), text)

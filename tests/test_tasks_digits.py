"""The description every task gets, and the digits task."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from losslab.errors import InputError
from losslab.experiment.task import Task
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.assemble import with_description


def dataset(targets=(0, 1, 2), inputs=None) -> TensorDataset:
    targets = torch.as_tensor(targets)
    return TensorDataset(torch.zeros(len(targets), 4) if inputs is None else inputs, targets)


def make(**changes) -> Task:
    fields = {
        "name": "toy",
        "train": dataset(),
        "validation": dataset(),
        "test": dataset(),
        "num_classes": 3,
        "model": lambda: nn.Linear(4, 3),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "epochs": 1,
        "batch_size": 2,
    }
    return Task(**{**fields, **changes})


class Pairs(Dataset):
    """A map-style dataset that is not tensors and counts how often it is asked."""

    def __init__(self, pairs):
        self.pairs, self.asked = pairs, 0

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        self.asked += 1
        return self.pairs[index]


# ---------------------------------------------------------------- description


def test_description_says_what_decides_the_numbers():
    """Oracle: facts of the toy task counted by hand."""
    task = with_description(
        make(description={"source": "mine", "sha256": "stale"}), {"notes": ["n"]}
    )
    about = task.description
    assert about["source"] == "mine" and about["notes"] == ["n"]
    assert about["sizes"] == {"train": 3, "validation": 3, "test": 3}
    assert about["class_counts"]["test"] == [1, 1, 1]
    assert about["model"]["name"] == "Linear" and about["model"]["parameters"] == 15
    assert about["optimizer"]["name"] == "SGD" and about["optimizer"]["lr"] == 0.1
    assert len(about["sha256"]) == 64
    json.dumps(about, allow_nan=False)


def test_fingerprint_notices_every_change():
    """Oracle: inequality after one changed value, dtype, shape, order, or a moved boundary."""
    one, two = torch.zeros(3, 4), torch.ones(3, 4)
    variants = [
        dataset(inputs=one),
        dataset(inputs=two),
        dataset(inputs=one.double()),
        dataset(inputs=one.reshape(3, 2, 2)),
        dataset([0, 2, 1], one),
    ]
    flat = {"model": lambda: nn.Sequential(nn.Flatten(), Cast(), nn.Linear(4, 3))}
    prints = [with_description(make(train=v, **flat), {}).description["sha256"] for v in variants]
    prints.append(with_description(make(test=variants[1], **flat), {}).description["sha256"])
    assert len(set(prints)) == len(prints)
    again = with_description(make(train=dataset(inputs=one.clone()), **flat), {})
    assert again.description["sha256"] == prints[0]


class Cast(nn.Module):
    def forward(self, inputs):
        return inputs.float()


def test_description_leaves_the_random_state_alone():
    """Oracle: the next random number. Breaks if the model is made outside a fork of the state."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with_description(make(), {})
    assert torch.equal(torch.rand(1), expected)


def test_description_has_no_memory_addresses():
    """Oracle: a module whose repr shows a function. An address would change the run's identity."""

    class Applied(nn.Linear):
        def extra_repr(self):
            return f"function={test_description_has_no_memory_addresses}"

    about = with_description(make(model=lambda: Applied(4, 3)), {}).description
    assert "function=<function" in about["model"]["layers"] and " at 0x" not in json.dumps(about)


def test_model_of_wrong_width_is_refused():
    """Oracle: five logits for three classes; a function that returns no model."""
    with pytest.raises(InputError, match=r"here \(2, 3\); got \(2, 5\)"):
        with_description(make(model=lambda: nn.Linear(4, 5)), {})
    with pytest.raises(InputError, match=r"must return a torch\.nn\.Module; got str"):
        with_description(make(model=lambda: "mlp"), {})


def test_datasets_that_are_not_tensors_have_no_fingerprint():
    """Oracle: None, which says so, and the sizes all the same."""
    pairs = Pairs([(torch.zeros(4), k) for k in range(3)])
    about = with_description(make(train=pairs), {}).description
    assert about["sha256"] is None and about["class_counts"]["train"] is None
    assert about["sizes"]["train"] == 3


# ---------------------------------------------------------------- digits


def test_digits_split_and_standardisation():
    """Oracle: scikit-learn's data: 1,797 rows, each in one split; training pixels mean 0, sd 1."""
    from sklearn.datasets import load_digits

    task = build_task("digits")
    splits = [getattr(task, s).tensors for s in ("train", "validation", "test")]
    assert [len(t) for _, t in splits] == [1079, 359, 359]
    inputs = splits[0][0].double()
    assert abs(inputs.mean()) < 1e-6 and inputs.std() == pytest.approx(1, abs=1e-6)
    scale = float(inputs.max() - inputs.min()) / 16
    offset = float(inputs.min())
    restored = torch.cat([(x.double() - offset) / scale for x, _ in splits]).round()
    data = load_digits()
    got = sorted(
        map(
            tuple,
            torch.cat([restored, torch.cat([t for _, t in splits])[:, None]], 1).int().tolist(),
        )
    )
    assert got == sorted(map(tuple, np.column_stack([data.data, data.target]).astype(int).tolist()))


def test_digits_is_fixed_by_the_split_seed():
    """Oracle: fingerprints. Breaks if the split or its scaling used the global random state."""
    torch.manual_seed(1)
    one = build_task("digits", TaskOptions(split_seed=4)).description["sha256"]
    torch.manual_seed(2)
    np.random.seed(3)
    assert build_task("digits", TaskOptions(split_seed=4)).description["sha256"] == one
    assert build_task("digits", TaskOptions(split_seed=5)).description["sha256"] != one


def test_digits_options():
    """Oracle: each option seen in the task, shares counted class by class."""
    from sklearn.datasets import load_digits

    options = TaskOptions(
        epochs=3, batch_size=16, lr=0.05, model="linear", train_size=100, validation_fraction=0.3
    )
    task = build_task("digits", options)
    assert (task.epochs, task.batch_size, len(task.train)) == (3, 16, 100)
    assert len(task.validation) == sum(round(0.3 * n) for n in np.bincount(load_digits().target))
    assert len(task.test) == 359
    assert task.description["model"]["parameters"] == 650
    assert task.description["optimizer"]["lr"] == 0.05
    assert torch.bincount(task.train.tensors[1]).min() >= 9


def test_builtin_tasks_can_be_pickled():
    """Oracle: a round trip, which runs in other processes need. Breaks on a lambda in a builder."""
    task = pickle.loads(pickle.dumps(build_task("digits")))
    assert task.model()(task.train.tensors[0][:2]).shape == (2, 10)


def test_digits_cross_entropy_baseline_is_good():
    """Oracle: 97 % on the test split after one run of the recipe with plain cross_entropy.

    Breaks if the recipe, the scaling or the split is damaged.
    """
    task = build_task("digits")
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    inputs, targets = task.train.tensors
    steps = task.epochs * -(-len(targets) // task.batch_size)
    scheduler = task.lr_scheduler(optimizer, steps)
    for _ in range(task.epochs):
        for batch in torch.randperm(len(targets)).split(task.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            scheduler.step()
    inputs, targets = task.test.tensors
    accuracy = float((model(inputs).argmax(dim=1) == targets).double().mean())
    assert accuracy >= 0.97


def test_importing_the_tasks_is_light():
    """Oracle: the modules of a fresh Python. Breaks if a library is imported at the top."""
    code = (
        "import sys, torch; before = set(sys.modules);"
        "import losslab.experiment.tasks.build, losslab.experiment.task;"
        "import losslab.experiment.tasks.digits, losslab.experiment.tasks.tables.table;"
        "import losslab.experiment.tasks.images.images, losslab.experiment.tasks.images.mnist;"
        "import losslab.experiment.tasks.python_file;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new & {'pandas', 'sklearn', 'PIL', 'pyarrow', 'scipy', 'matplotlib'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr

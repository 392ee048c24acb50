"""A task of your own: data, model and optimiser in one function.

Copy this file, put in your data and model, and compare losses on it:

    losslab compare --task examples/my_task.py --loss cross_entropy --loss encouraging --seeds 10

The function may also take the options of the command line (``--lr``, ``--data-dir``, …): write
``def task(options):`` and use ``options.lr``, ``options.data_dir``, …; None is what was not given.
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from losslab.experiment.task import Task


def task() -> Task:
    """Three interleaved spiral arms in the plane, 5 % of them labelled wrongly."""
    inputs, targets = spirals(per_arm=500)
    return Task(
        name="spirals",
        train=TensorDataset(inputs[:900], targets[:900]),
        validation=TensorDataset(inputs[900:1200], targets[900:1200]),
        test=TensorDataset(inputs[1200:], targets[1200:]),
        num_classes=3,
        model=make_model,  # called once a run, after the run's seed is set
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        epochs=20,
        batch_size=32,
        class_names=("first arm", "second arm", "third arm"),
        description={"source": "made-up spirals"},
    )


def spirals(per_arm: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and their arms, in an order and with noise fixed by a seed of the data's own."""
    generator = torch.Generator().manual_seed(0)
    count = 3 * per_arm
    targets = torch.arange(count) % 3
    radius = torch.rand(count, generator=generator).sqrt()
    angle = 4 * radius + 2 * torch.pi / 3 * targets
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    points += 0.03 * torch.randn(count, 2, generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.05
    noisy = torch.where(wrong, (targets + 1) % 3, targets)
    order = torch.randperm(count, generator=generator)
    return points[order], noisy[order]


def make_model() -> nn.Module:
    """Two hidden layers of 32 units."""
    return nn.Sequential(
        nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    )

"""Adversarial training: every batch is replaced by inputs attacked against the model as it stands.

The inputs are attacked in evaluation mode, as torchattacks does it and so the first paper did: an
attack's passes then leave the statistics of batch normalisation alone, and dropout does not blur
its gradient. What a batch becomes hangs on the seed and the step alone, not on the loss that is
trained with, whose model decides the rest: runs of one seed stay paired, and one that goes on from
a checkpoint ends with the same bits. Attacks are computed in full precision.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from losslab.analysis.attacks import Attack, Objective
from losslab.analysis.ball import Box, one_of
from losslab.analysis.request import read_request, refuse_unknown_options
from losslab.errors import InputError
from losslab.experiment.task import Task

METHODS = ("fgsm", "pgd")


def adversarially_trained(
    task: Task,
    epsilon: float = 0.3,
    *,
    method: str = "pgd",
    norm: str = "linf",
    objective: str | Objective = "cross_entropy",
    steps: int = 7,
    box: Box = "image",
) -> Task:
    """The task, learned from attacked inputs; its validation and test splits stay as they are.

    The defaults are close to the first paper's, by way of torchattacks' demonstration on MNIST: 7
    steps to ε = 0.3 on cross-entropy. (There each is 0.1 long, and the first begins at the input.)

    Args:
        task: What is learned.
        epsilon, norm, objective, steps, box: As `losslab.analysis.attacks.Attack` has them. Where
            margins are large, cross-entropy's gradient is lost to rounding and the batch stays as
            it is; ``objective="log_odds"`` keeps attacking.
        method: ``"pgd"``, or ``"fgsm"`` for one step from the input.

    Example:
        >>> adversarially_trained(task, 0.3).attack.steps  # doctest: +SKIP
        7
    """
    one_of("method", method, METHODS)
    once = method == "fgsm"
    attack = Attack(
        epsilon,
        norm=norm,
        objective=objective,
        steps=1 if once else steps,
        random_start=not once,
        box=box,
        keep="last",
    )
    return replace(task, attack=attack)


def trained_against(task: Task, text: str) -> Task:
    """`adversarially_trained` by one line: ``pgd(0.3)``, ``fgsm(0.3)``, ``pgd(3, norm=l2)``.

    Raises:
        InputError: If there is no such attack, or it has no such option.
    """
    asked = read_request(text, dict.fromkeys(METHODS, ("epsilon",)))
    refuse_unknown_options(asked, adversarially_trained, given=1)
    if "method" in asked.options:
        raise InputError(f"Expected {text!r} to name its method by its name; leave method out.")
    return adversarially_trained(task, method=asked.name, **asked.options)


def attacked(attack: Attack, model: nn.Module, inputs: Tensor, target: Tensor, seed: int) -> Tensor:
    """A training batch's inputs, changed; ``seed`` decides the random starts."""
    return attack.last(model, inputs, target, torch.Generator().manual_seed(seed))

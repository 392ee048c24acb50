"""Optimisers for a stack of runs: PyTorch's formulas, with a learning rate for each run.

``torch.optim`` has one rate for a tensor. SGD, Adam and AdamW are elementwise, so that (R, P)
parameters with rates (R, 1) take a handful of operations a step; ``tests/test_batched.py`` holds
each against its original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from losslab.experiment.task import Task

_UNKNOWN = ("amsgrad", "maximize", "differentiable", "capturable")


class StackOptimizer:
    """Updates ``values`` (R, P) as the task's own optimiser would update each row."""

    def __init__(self, task: Task, values: Tensor) -> None:
        optimizer = _sample(task)
        self.settings: dict[str, Any] = optimizer.param_groups[0]
        self.is_sgd, self.decoupled = isinstance(optimizer, SGD), isinstance(optimizer, AdamW)
        kept = 0 if self.is_sgd and not self.settings["momentum"] else 1 if self.is_sgd else 2
        self.state = [torch.zeros_like(values) for _ in range(kept)]
        self.steps = 0

    def keep(self, rows: Tensor) -> None:
        self.state = [x[rows] for x in self.state]

    def step(self, values: Tensor, grad: Tensor, rates: Tensor) -> None:
        """Move ``values`` by their gradient, at ``rates`` (R, 1); the gradient is used up."""
        self.steps += 1
        decay = self.settings["weight_decay"]
        if decay and self.decoupled:
            values.mul_(1 - rates * decay)
        elif decay:
            grad.add_(values, alpha=decay)
        if self.is_sgd:
            values.addcmul_(self._momentum(grad), rates, value=-1)
            return
        first, second = self.state
        beta1, beta2 = self.settings["betas"]
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (1 - beta2**self.steps) ** 0.5
        size = second.sqrt().div_(root).add_(self.settings["eps"])
        values.addcdiv_(first * rates, size, value=-1 / (1 - beta1**self.steps))

    def _momentum(self, grad: Tensor) -> Tensor:
        momentum = self.settings["momentum"]
        if not momentum:
            return grad
        (kept,) = self.state
        if self.steps == 1:
            kept.copy_(grad)
        else:
            kept.mul_(momentum).add_(grad, alpha=1 - self.settings["dampening"])
        return grad.add_(kept, alpha=momentum) if self.settings["nesterov"] else kept


def refuses(task: Task, module: nn.Module) -> str | None:
    """Why the task's optimiser has no form for a stack, or None."""
    optimizer = task.optimizer([p for p in module.parameters() if p.requires_grad])
    name = type(optimizer).__name__
    if type(optimizer) not in (SGD, Adam, AdamW):
        return f"the optimiser {name} has no form for many runs (SGD, Adam and AdamW have)"
    if len(optimizer.param_groups) > 1:
        return "the optimiser has several groups of parameters"
    for key in _UNKNOWN:
        if optimizer.param_groups[0].get(key):
            return f"the optimiser {name} with {key}=True has no form for many runs"
    return None


def rates_of(task: Task, total: int) -> list[float]:
    """The learning rate of each of ``total`` steps, as optimiser and schedule give it."""
    optimizer = _sample(task)
    if task.lr_scheduler is None:
        return [float(optimizer.param_groups[0]["lr"])] * total
    scheduler = task.lr_scheduler(optimizer, total)
    rates = []
    for _ in range(total):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def _sample(task: Task) -> Optimizer:
    return task.optimizer([nn.Parameter(torch.zeros(1))])

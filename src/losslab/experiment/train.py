"""The one training loop: a task, a loss and a seed in; what the run came to out.

Seeds are **paired**. Everything random in a run hangs on its seed and on nothing else, so two runs
with the same seed and different losses start from the same weights and see the same batches with
the same augmentation, and their difference is the loss's doing:

- initial weights: the global generators, set before ``task.model()``;
- order of the batches: a generator of its own;
- augmentation: a generator of its own, handed to ``task.augment``;
- random transforms inside a dataset, and dropout: the global generators, set anew before each batch
  is fetched and again before it is used, so that a loss that draws numbers itself shifts nothing.

On a CPU, with the same number of threads, a run repeats bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from losslab import metrics
from losslab.errors import InputError
from losslab.experiment.batches import Batches, Split, derive_seed, own_randomness
from losslab.experiment.task import Task
from losslab.experiment.watch import Diverged, Epoch, TrainingResult, Watch, check_outputs


class Stopped(Exception):
    """The run was told to stop (``stop()`` said so); it has no result."""


def train(
    task: Task,
    criterion: nn.Module,
    seed: int,
    *,
    lr_scale: float | Callable[[float], float] = 1.0,
    device: str | torch.device = "cpu",
    progress_callback: Callable[[Epoch], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train ``task`` with ``criterion`` from ``seed``, measuring after every epoch.

    The caller's random generators (torch's, numpy's, Python's) are left as they were.

    Args:
        task: What is learned.
        criterion: ``criterion(logits, target)`` -> a loss of no dimensions. If it has
            ``set_progress``, that is called before each batch with the fraction of training done.
            If it has ``steps``, each of them makes an optimisation step of its own on every batch,
            in turn, with an optimiser (hence momentum) of its own, as the published code of
            complement objective training does.
        seed: Decides everything random.
        lr_scale: Multiplies the learning rate of every step on top of the schedule: a number, or a
            function of the fraction of training done.
        device: Where the model and the data go.
        progress_callback: Called with an `Epoch` after each sound one.
        stop: Asked before each batch; when it says yes, `Stopped` is raised.

    Raises:
        InputError: If the model or the loss does not return what it should.
        Stopped: If ``stop()`` said so.

    Example:
        >>> result = train(task, torch.nn.CrossEntropyLoss(), seed=0)  # doctest: +SKIP
        >>> result.results["last"]["test"]["accuracy"]  # doctest: +SKIP
        0.9694
    """
    begun = time.perf_counter()
    device = torch.device(device)
    scale_at = lr_scale if callable(lr_scale) else lambda _: lr_scale
    set_progress = getattr(criterion, "set_progress", None) or (lambda _: None)
    with own_randomness(device) as reseed:
        reseed(derive_seed(seed, "model"), everything=True)
        model = task.model().to(device)
        criterion.to(device)
        objectives = tuple(getattr(criterion, "steps", None) or (criterion,))
        optimizers = [task.optimizer(model.parameters()) for _ in objectives]
        batches = Batches(task, seed, device, reseed)
        total = task.epochs * len(batches)
        schedulers = [task.lr_scheduler(o, total) for o in optimizers] if task.lr_scheduler else []
        splits = [Split(name, task, device) for name in ("validation", "test")]
        watch = Watch(task.epochs, tuple(split.name for split in splits), task.patience)
        dropout_seed = derive_seed(seed, "dropout")
        step = 0
        try:
            for epoch in range(1, task.epochs + 1):
                model.train()
                loss_sum = 0.0
                lr = float(optimizers[0].param_groups[0]["lr"]) * scale_at(step / total)
                for number, (inputs, target) in enumerate(batches, start=1):
                    if stop is not None and stop():
                        raise Stopped
                    progress = step / total
                    set_progress(progress)
                    reseed(dropout_seed + step)
                    losses = [
                        _update(model, inputs, target, objective, optimizer, scale_at(progress))
                        for objective, optimizer in zip(objectives, optimizers, strict=True)
                    ]
                    for scheduler in schedulers:
                        scheduler.step()
                    step += 1
                    for loss in losses:
                        if not math.isfinite(loss):
                            raise Diverged(
                                f"the training loss became {loss} in epoch {epoch}, "
                                f"step {number} of {len(batches)}"
                            )
                    loss_sum += losses[0] * len(target)
                reseed(derive_seed(seed, "evaluation"), everything=True)
                outputs = {split.name: split.predict(model) for split in splits}
                check_outputs(outputs, epoch)
                scores = {name: _scores(*output) for name, output in outputs.items()}
                measured = watch.note(epoch, lr, loss_sum / batches.examples, outputs, scores)
                if progress_callback is not None:
                    progress_callback(measured)
                if watch.is_over:
                    break
        except Diverged as broken:
            return watch.diverged(model, str(broken), time.perf_counter() - begun)
        return watch.finished(model, time.perf_counter() - begun)


def _update(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    objective: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    scale: float,
) -> float:
    """Forward, backward and an optimiser step at ``scale`` times its learning rate; the loss."""
    loss = objective(model(inputs), target)
    if loss.ndim:
        raise InputError(
            "Expected the loss of a batch to be one number, but its shape is "
            f"{tuple(loss.shape)}; use reduction='mean'."
        )
    optimizer.zero_grad()
    loss.backward()
    if scale == 1.0:
        optimizer.step()
    else:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the schedule goes on from the rate that it set
    return loss.item()


def _scores(logits: Tensor, target: Tensor) -> tuple[float, float]:
    return metrics.accuracy(logits, target).item(), metrics.nll(logits, target).item()

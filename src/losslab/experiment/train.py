"""The one training loop: a task, a loss and a seed in; what the run came to out.

Seeds are **paired**. Everything random in a run hangs on its seed and on nothing else, so two runs
with the same seed and different losses start from the same weights and see the same batches with
the same augmentation, and their difference is the loss's doing:

- initial weights: the global generators, set before ``task.model()``;
- order of the batches: a generator of its own;
- augmentation: a generator of its own, handed to ``task.augment``;
- random starts of ``task.attack``: a generator of their own at every step;
- random transforms inside a dataset, and dropout: the global generators, set anew before each batch
  is fetched and again before it is used, so that a loss that draws numbers itself shifts nothing.

On a CPU, with the same number of threads, a run repeats bit for bit, also where it was interrupted
and goes on from a `Checkpoint`. How its steps are carried out (mixed precision, gradients in
pieces, clipping, several processes) is a `Training`; the loop is the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from losslab import metrics
from losslab.analysis.classifier import evaluating
from losslab.errors import InputError
from losslab.experiment.adversarial import attacked
from losslab.experiment.averaging import WeightAverage
from losslab.experiment.batches import Batches, Reseed, Split, derive_seed, own_randomness
from losslab.experiment.checkpoint import Checkpoint, Position, Progress
from losslab.experiment.denormals import denormals_flushed
from losslab.experiment.launch import Machine, Training, machine_for
from losslab.experiment.task import Task
from losslab.experiment.watch import (
    Diverged,
    Epoch,
    TrainingResult,
    Watch,
    check_outputs,
    followed_splits,
)
from losslab.inputs import length
from losslab.reading import Objective, Reading

PLAIN = Training()


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
    training: Training = PLAIN,
    checkpoint: Checkpoint | None = None,
    follow: Sequence[str] = (),
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
        device: Where the model and the data go; of processes that ``torchrun`` started, each takes
            a GPU of its own for ``"cuda"``. All return the same result.
        progress_callback: Called with an `Epoch` after each sound one (by the first process alone).
        stop: Asked before each batch; when it says yes, `Stopped` is raised.
        training: Precision, accumulation, clipping.
        checkpoint: Where the run is kept as it goes, and goes on from if it is there.
        follow: Splits of whose every example log-odds and correctness are kept after each epoch, in
            the data's own order, in the result's ``trace``. It changes nothing else.

    Raises:
        InputError: If the model or the loss does not return what it should, the device cannot do
            what ``training`` asks for, or the checkpoint is not of this run.
        Stopped: If ``stop()`` said so.

    Example:
        >>> result = train(task, torch.nn.CrossEntropyLoss(), seed=0)  # doctest: +SKIP
        >>> result.results["last"]["test"]["accuracy"]  # doctest: +SKIP
        0.9694
    """
    begun = time.perf_counter()
    machine = machine_for(training, device)
    device = machine.device
    scale_at = lr_scale if callable(lr_scale) else lambda _: lr_scale
    set_progress = getattr(criterion, "set_progress", None) or (lambda _: None)
    with own_randomness(device) as reseed, denormals_flushed():
        reseed(derive_seed(seed, "model"), everything=True)
        model = task.model().to(device)
        criterion.to(device)
        objectives = tuple(getattr(criterion, "steps", None) or (criterion,))
        optimizers = [task.optimizer(model.parameters()) for _ in objectives]
        forward = machine.setup(model, optimizers)
        batches = Batches(task, seed, device, reseed, training.loaders)
        total = task.epochs * len(batches)
        schedulers = [task.lr_scheduler(o, total) for o in optimizers] if task.lr_scheduler else []
        split = partial(Split, task=task, device=device, loaders=training.loaders)
        splits = [split(name) for name in ("validation", "test")]
        names = tuple(split.name for split in splits)
        watch = Watch(task.epochs, names, task.patience, task.metrics)
        followed = followed_splits(follow)
        unmeasured = [split("train")] if "train" in followed else []
        # Ranks have other examples of a batch, so they drop out other units.
        dropout = "dropout" if machine.first else f"dropout on rank {machine.rank}"
        dropout_seed = derive_seed(seed, dropout)
        attack_seed = derive_seed(seed, "attack")
        evaluation_seed = derive_seed(seed, "evaluation")
        average = WeightAverage(model, task.epochs, task.average) if task.average > 1 else None
        at = Position()
        run = _described(task, criterion, seed, batches, training)
        run |= {"follow": followed} if followed else {}
        parts = (model, criterion, optimizers, schedulers, batches, watch, machine, average)
        progress_so_far = Progress(at, *parts)
        if checkpoint is not None:
            checkpoint.resume(run, progress_so_far)
            begun -= at.seconds
        try:
            for epoch in range(at.epoch, task.epochs + 1):
                model.train()
                if not batches.done:
                    at.epoch, at.loss_sum = epoch, 0.0
                    rate = float(optimizers[0].param_groups[0]["lr"])
                    at.lr = rate * scale_at(at.step / total)
                for inputs, target in batches:
                    if stop is not None and machine.from_first(stop):
                        raise Stopped
                    progress = at.step / total
                    set_progress(progress)
                    if task.attack is not None:
                        reseed(attack_seed + at.step)
                        inputs = attacked(task.attack, model, inputs, target, attack_seed + at.step)
                    reseed(dropout_seed + at.step)
                    losses = [
                        _update(
                            *(machine, model, forward, task.reading, inputs, target),
                            *(objective, optimizer, scale_at(progress)),
                        )
                        for objective, optimizer in zip(objectives, optimizers, strict=True)
                    ]
                    for scheduler in schedulers:
                        scheduler.step()
                    at.step += 1
                    for loss in losses:
                        if not math.isfinite(loss):
                            raise Diverged(
                                f"the training loss became {loss} in epoch {epoch}, "
                                f"step {batches.done} of {len(batches)}"
                            )
                    at.loss_sum += losses[0] * length(target)
                    if checkpoint is not None and checkpoint.due() and machine.first:
                        at.seconds = time.perf_counter() - begun
                        checkpoint.save(run, progress_so_far)
                if average is not None:
                    average.after(epoch, model)
                reseed(evaluation_seed, everything=True)
                traced = machine.outputs(model, unmeasured) if unmeasured else {}
                reseed(evaluation_seed, everything=True)
                outputs = machine.outputs(model, splits)
                check_outputs(outputs, epoch)
                scores = {name: _scores(output) for name, output in outputs.items()}
                mean_loss = at.loss_sum / batches.examples
                measured = watch.note(epoch, at.lr, mean_loss, outputs, scores)
                traced = traced | outputs
                watch.follow({name: traced[name] for name in followed})
                if progress_callback is not None and machine.first:
                    progress_callback(measured)
                if watch.is_over:
                    break
        except Diverged as broken:
            return watch.diverged(model, str(broken), time.perf_counter() - begun)
        further = _scores_of_model(task, model, machine, reseed, evaluation_seed)
        return watch.finished(model, time.perf_counter() - begun, further)


def _update(
    machine: Machine,
    model: nn.Module,
    forward: Callable[[Any], Any],
    reading: Reading,
    inputs: Any,
    target: Any,
    objective: Objective,
    optimizer: Optimizer,
    scale: float,
) -> float:
    """Forward, backward and an optimiser step at ``scale`` times its learning rate; the loss."""
    losses = []
    optimizer.zero_grad()
    for rows, goal, weight in machine.parts(inputs, target, objective, reading):
        output = forward(rows)
        # a part that counts nothing may have no finite loss, as a mean of nothing
        loss = (
            reading.loss(objective, output, goal)
            if weight
            else 0.0 * reading.logits(output, goal).sum()
        )
        if loss.ndim:
            raise InputError(
                "Expected the loss of a batch to be one number, but its shape is "
                f"{tuple(loss.shape)}; use reduction='mean'."
            )
        if weight not in (0.0, 1.0):
            loss = weight * loss
        machine.backward(loss)
        losses.append(loss.detach())
    if scale == 1.0:
        machine.step(model, optimizer)
    else:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        machine.step(model, optimizer)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the schedule goes on from the rate that it set
    return machine.total(losses)


def _scores_of_model(
    task: Task, model: nn.Module, machine: Machine, reseed: Reseed, seed: int
) -> dict[str, dict[str, float]]:
    """What the task asks of the finished model itself, by split; the first process alone asks."""
    asked = task.model_scores
    if asked is None:
        return {}

    def ask() -> dict[str, dict[str, float]]:
        reseed(seed, everything=True)
        with evaluating(model), torch.no_grad():
            return {split: dict(asked(model, split)) for split in ("validation", "test")}

    return machine.from_first(ask)


def _described(
    task: Task, criterion: nn.Module, seed: int, batches: Batches, training: Training
) -> dict[str, Any]:
    """What a checkpoint must be of to be gone on from."""
    return {
        "task": task.name,
        "loss": str(getattr(criterion, "spec", type(criterion).__name__)),
        "seed": seed,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "examples": batches.examples,
        "training": training.settings(),
        **({} if task.attack is None else {"attack": task.attack.settings()}),
    }


def _scores(kept: metrics.Examples) -> tuple[float, float]:
    return kept["correct"].double().mean().item(), kept["nll"].mean().item()

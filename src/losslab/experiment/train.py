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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from losslab import metrics
from losslab.errors import InputError
from losslab.experiment.batches import Batches, Reseed, Split, derive_seed, own_randomness
from losslab.experiment.records import SELECTIONS
from losslab.experiment.task import Task

HISTOGRAM_BINS = 50


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. ``lr`` is the rate of its first step, ``lr_scale`` included."""

    epoch: int
    epochs: int
    lr: float
    train_loss: float
    validation_accuracy: float
    validation_nll: float
    test_accuracy: float
    test_nll: float


@dataclass
class TrainingResult:
    """What a run leaves behind, in the record's own shape where the record has one.

    ``examples`` are per test example: ``log_odds``, ``margin`` and ``correct`` at the last epoch.
    Of a diverged run there remain the ``reason``, the ``model`` and the ``curves`` up to its last
    sound epoch; its three ``results`` are None, and so is everything else.
    """

    status: str
    reason: str | None
    curves: dict[str, Any]
    results: dict[str, dict[str, Any] | None]
    margin_histogram: dict[str, list[float]] | None
    reliability: dict[str, list[float]] | None
    examples: dict[str, Tensor] | None
    model: nn.Module
    seconds: float

    @property
    def accuracy(self) -> float | None:
        """Test accuracy of the last epoch; None if the run diverged."""
        last = self.results["last"]
        return last["test"]["accuracy"] if last else None

    def recorded(self) -> dict[str, Any]:
        """The part of it that goes into the run's record."""
        names = ("status", "reason", "curves", "results", "margin_histogram", "reliability")
        return {name: getattr(self, name) for name in names}


class Stopped(Exception):
    """The run was told to stop (``stop()`` said so); it has no result."""


class Diverged(ArithmeticError):
    """Numbers stopped being finite; the message says which, and where."""


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
        watch = _Watch(task, seed, device, reseed)
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
                measured = watch.measure(model, epoch, lr, loss_sum / batches.examples)
                if progress_callback is not None:
                    progress_callback(measured)
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


class _Watch:
    """Measures after every epoch, and remembers the epochs that the result reports."""

    def __init__(self, task: Task, seed: int, device: torch.device, reseed: Reseed) -> None:
        self.splits = [Split(name, task, device) for name in ("validation", "test")]
        self.epochs = task.epochs
        self.reseed, self.seed = reseed, derive_seed(seed, "evaluation")
        self.kept: dict[str, tuple[int, dict[str, tuple[Tensor, Tensor]]]] = {}
        self.best: dict[str, tuple[float, float]] = {}
        self.curves: dict[str, Any] = {"epoch": [], "lr": [], "train_loss": []}
        self.curves |= {split.name: {"accuracy": [], "nll": []} for split in self.splits}

    def measure(self, model: nn.Module, epoch: int, lr: float, train_loss: float) -> Epoch:
        self.reseed(self.seed, everything=True)
        outputs = {split.name: split.predict(model) for split in self.splits}
        for name, (logits, _) in outputs.items():
            broken = int((~logits.isfinite()).any(dim=1).sum())
            if broken:
                raise Diverged(
                    f"the logits of {broken} of {len(logits)} {name} examples were not finite "
                    f"after epoch {epoch}"
                )
        scores = {
            name: (metrics.accuracy(*output).item(), metrics.nll(*output).item())
            for name, output in outputs.items()
        }
        self._remember(epoch, outputs, scores)
        for key, value in (("epoch", epoch), ("lr", lr), ("train_loss", train_loss)):
            self.curves[key].append(value)
        for name, (accuracy, nll) in scores.items():
            self.curves[name]["accuracy"].append(accuracy)
            self.curves[name]["nll"].append(nll)
        return Epoch(epoch, self.epochs, lr, train_loss, *scores["validation"], *scores["test"])

    def _remember(
        self,
        epoch: int,
        outputs: dict[str, tuple[Tensor, Tensor]],
        scores: dict[str, tuple[float, float]],
    ) -> None:
        self.kept["last"] = (epoch, outputs)
        for selection, name in (("validation_selected", "validation"), ("best_on_test", "test")):
            accuracy, nll = scores[name]
            rank = (accuracy, -nll)  # ties: the lower NLL, then the earlier epoch
            if selection not in self.best or rank > self.best[selection]:
                self.best[selection] = rank
                self.kept[selection] = (epoch, outputs)

    def finished(self, model: nn.Module, seconds: float) -> TrainingResult:
        results: dict[str, dict[str, Any] | None] = {}
        for selection in SELECTIONS:
            epoch, outputs = self.kept[selection]
            scores = {name: metrics.evaluate(*output) for name, output in outputs.items()}
            results[selection] = {"epoch": epoch, **scores}
        logits, target = (tensor.cpu() for tensor in self.kept["last"][1]["test"])
        margins = metrics.margin(logits, target)
        table = metrics.reliability(logits, target)
        return TrainingResult(
            status="finished",
            reason=None,
            curves=self.curves,
            results=results,
            margin_histogram=_histogram(margins),
            reliability={name: values.tolist() for name, values in table._asdict().items()},
            examples={
                "log_odds": metrics.log_odds(logits, target).float(),
                "margin": margins.float(),
                "correct": metrics.correct(logits, target),
            },
            model=model,
            seconds=seconds,
        )

    def diverged(self, model: nn.Module, reason: str, seconds: float) -> TrainingResult:
        nothing: dict[str, Any] = dict.fromkeys(SELECTIONS)
        return TrainingResult(
            "diverged", reason, self.curves, nothing, None, None, None, model, seconds
        )


def _histogram(values: Tensor) -> dict[str, list[float]]:
    """Counts of ``values`` in equal-width bins over their range."""
    low, high = values.aminmax()
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low.item(), high.item(), HISTOGRAM_BINS + 1, dtype=values.dtype)
    counts = torch.bincount(torch.bucketize(values, edges[1:-1]), minlength=HISTOGRAM_BINS)
    return {"edges": edges.tolist(), "counts": counts.tolist()}

"""What is remembered of a run from epoch to epoch, and what it came to in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from losslab import metrics
from losslab.errors import InputError
from losslab.experiment.records import SELECTIONS
from losslab.experiment.task import SPLITS
from losslab.metrics.catalog import Metric

HISTOGRAM_BINS = 50
Output = metrics.Examples | tuple[Tensor, Tensor]  # what is kept of each row, or logits and labels
Outputs = Mapping[str, Output]  # by split
Scores = dict[str, tuple[float, float]]  # a split's accuracy and NLL
Trace = dict[str, dict[str, Tensor]]  # a split's log-odds and correctness (epochs, examples)


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
    ``trace`` has, for each split that was followed, ``log_odds`` (float32) and ``correct`` of every
    example after every epoch, ``(epochs, examples)``; None if none was. Of a diverged run there
    remain the ``reason``, the ``model``, and the ``curves`` and ``trace`` up to its last sound
    epoch; its three ``results`` are None, and so is everything else.
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
    trace: Trace | None = None

    @property
    def accuracy(self) -> float | None:
        """Test accuracy of the last epoch; None if the run diverged."""
        last = self.results["last"]
        return last["test"]["accuracy"] if last else None

    def recorded(self) -> dict[str, Any]:
        """The part of it that goes into the run's record."""
        names = ("status", "reason", "curves", "results", "margin_histogram", "reliability")
        return {name: getattr(self, name) for name in names}


class Diverged(ArithmeticError):
    """Numbers stopped being finite; the message says which, and where."""


class Watch:
    """Notes down what is measured after every epoch, and keeps what the result will report."""

    state = ("kept", "best", "curves", "followed")  # what a checkpoint must hold of it

    def __init__(
        self,
        epochs: int,
        splits: tuple[str, ...],
        patience: int | None = None,
        more: Sequence[Metric] = (),
    ) -> None:
        self.epochs, self.patience, self.more = epochs, patience, more
        self.kept: dict[str, tuple[int, Outputs]] = {}
        self.best: dict[str, tuple[float, float]] = {}
        self.curves: dict[str, Any] = {"epoch": [], "lr": [], "train_loss": []}
        self.curves |= {name: {"accuracy": [], "nll": []} for name in splits}
        self.followed: dict[str, dict[str, list[Tensor]]] = {}

    def note(
        self, epoch: int, lr: float, train_loss: float, outputs: Outputs, scores: Scores
    ) -> Epoch:
        self.kept["last"] = (epoch, outputs)
        for selection, name in (("validation_selected", "validation"), ("best_on_test", "test")):
            accuracy, nll = scores[name]
            rank = (accuracy, -nll)  # ties: the lower NLL, then the earlier epoch
            if selection not in self.best or rank > self.best[selection]:
                self.best[selection] = rank
                self.kept[selection] = (epoch, {n: _own(output) for n, output in outputs.items()})
        for key, value in (("epoch", epoch), ("lr", lr), ("train_loss", train_loss)):
            self.curves[key].append(value)
        for name, (accuracy, nll) in scores.items():
            self.curves[name]["accuracy"].append(accuracy)
            self.curves[name]["nll"].append(nll)
        return Epoch(epoch, self.epochs, lr, train_loss, *scores["validation"], *scores["test"])

    def follow(self, outputs: Outputs) -> None:
        """Keep what becomes of every single example of these splits."""
        for name, output in outputs.items():
            kept = self.followed.setdefault(name, {"log_odds": [], "correct": []})
            if isinstance(output, tuple):
                logits, target = (tensor.cpu() for tensor in output)
                kept["log_odds"].append(metrics.log_odds(logits, target).float())
                kept["correct"].append(metrics.correct(logits, target))
            else:
                kept["log_odds"].append(output["log_odds"].float())
                kept["correct"].append(output["correct"])

    @property
    def trace(self) -> Trace | None:
        """What `follow` has kept, an epoch a row."""
        return {
            name: {kind: torch.stack(rows) for kind, rows in kept.items()}
            for name, kept in self.followed.items()
        } or None

    @property
    def is_over(self) -> bool:
        """Whether the validation examples have not been better for ``patience`` epochs."""
        epochs = self.curves["epoch"]
        if self.patience is None or not epochs:
            return False
        best: int = self.kept["validation_selected"][0]
        return bool(epochs[-1] - best >= self.patience)

    def finished(
        self,
        model: nn.Module,
        seconds: float,
        scores_of_model: Mapping[str, Mapping[str, float]] | None = None,
    ) -> TrainingResult:
        """The result; ``scores_of_model`` are further scores of the last epoch, by split."""
        results: dict[str, dict[str, Any] | None] = {}
        for selection in SELECTIONS:
            epoch, outputs = self.kept[selection]
            scores = {name: self._scores(output) for name, output in outputs.items()}
            results[selection] = {"epoch": epoch, **scores}
        for split, more in (scores_of_model or {}).items():
            results["last"][split] |= more  # type: ignore[index]
        test = _examples(self.kept["last"][1]["test"])
        table = metrics.diagram(test["confidence"], test["correct"])
        return TrainingResult(
            status="finished",
            reason=None,
            curves=self.curves,
            results=results,
            margin_histogram=_histogram(test["margin"]),
            reliability={name: values.tolist() for name, values in table._asdict().items()},
            examples={
                "log_odds": test["log_odds"].float(),
                "margin": test["margin"].float(),
                "correct": test["correct"],
            },
            model=model,
            seconds=seconds,
            trace=self.trace,
        )

    def _scores(self, output: Output) -> dict[str, float]:
        kept = _examples(output)
        more = {row.name: row.measured(kept) for row in self.more if row.measure is not None}
        return {**metrics.evaluate_examples(kept), **more}

    def diverged(self, model: nn.Module, reason: str, seconds: float) -> TrainingResult:
        nothing: dict[str, Any] = dict.fromkeys(SELECTIONS)
        return TrainingResult(
            "diverged", reason, self.curves, nothing, None, None, None, model, seconds, self.trace
        )


def followed_splits(names: Sequence[str]) -> list[str]:
    """The splits to follow, each once; a mistake in their names is refused."""
    if isinstance(names, str) or not set(names) <= set(SPLITS):
        raise InputError(
            f"Expected follow to be some of {SPLITS}, such as ('train', 'test'), but got {names!r}."
        )
    return [name for name in SPLITS if name in names]


def check_outputs(outputs: Outputs, epoch: int) -> None:
    """Raise `Diverged` where logits are not finite."""
    for name, output in outputs.items():
        rows = {"finite": output[0].isfinite().all(dim=1)} if isinstance(output, tuple) else output
        finite = rows["finite"]
        broken = int((~finite).sum())
        if broken:
            raise Diverged(
                f"the logits of {broken} of {len(finite)} {name} examples were not finite "
                f"after epoch {epoch}"
            )


def _own(output: Output) -> Output:
    """Logits in memory of their own: a view would keep alive what it is a view of."""
    if not isinstance(output, tuple):
        return output
    logits, target = output
    return logits if logits._base is None else logits.clone(), target


def _examples(output: Output) -> metrics.Examples:
    """What is kept of each row, of logits as well; on the CPU."""
    if not isinstance(output, tuple):
        return output
    return metrics.examples(*(tensor.cpu() for tensor in output))


def _histogram(values: Tensor) -> dict[str, list[float]]:
    """Counts of ``values`` in equal-width bins over their range."""
    low, high = values.aminmax()
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low.item(), high.item(), HISTOGRAM_BINS + 1, dtype=values.dtype)
    counts = torch.bincount(torch.bucketize(values, edges[1:-1]), minlength=HISTOGRAM_BINS)
    return {"edges": edges.tolist(), "counts": counts.tolist()}

"""What becomes of examples in the course of training: arrays in, numbers out.

A *trace* has, for each split, the log-odds ``(E, N)`` of the true class and the correctness
``(E, N)`` of N examples after each of E epochs, as ``train(..., follow=("train", "test"))`` leaves
it in ``TrainingResult.trace``. With a the log-odds, p = σ(a).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from losslab import metrics
from losslab.analysis.classifier import Data, predict, scale_flags
from losslab.analysis.finding import Finding
from losslab.errors import InputError

COHORTS = ("right", "wrong_above", "wrong_below")
SHOWN = dict(zip(COHORTS, ("kept right", "rescued (p not low)", "rescued (p low)"), strict=True))
"""What the reports call a cohort's share."""
_FEW = 10  # examples of a cohort below which its share says little
_PAPER = 70 / 90  # of the training, when Battash et al. form their cohorts


@dataclass(frozen=True)
class Cohort:
    """Examples that were alike at one epoch, and how many of them are right in the end.

    ``low`` and ``high`` are Wilson's 95 % interval of ``share``, for examples drawn at random; all
    three are None of no examples.
    """

    examples: int
    right: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Events:
    """What was learned and forgotten between consecutive measurements, each ``(E − 1,)``.

    ``forgettings`` ``(N,)`` is how often each example was forgotten, ``ever_right`` ``(N,)``
    whether it was right at any measurement.
    """

    learned: NDArray[np.int64]
    forgotten: NDArray[np.int64]
    forgettings: NDArray[np.int64]
    ever_right: NDArray[np.bool_]


def dynamics(
    trace: Mapping[str, Mapping[str, ArrayLike]],
    *,
    epoch: int | None = None,
    threshold: float = 0.2,
) -> Finding:
    """Cohorts, learned and forgotten examples, and the gap between training and test data.

    Args:
        trace: By split, ``log_odds`` and ``correct``, each ``(E, N)``.
        epoch: After which epoch (from 1) the cohorts are formed; 7/9 of all, as in the paper (70 of
            90), if left out.
        threshold: The p that parts the wrong ones.

    Returns:
        For each split ``SPLIT.accuracy``; the shares right in the end of those that were right
        (``SPLIT.right``), wrong with p ≥ threshold (``SPLIT.wrong_above``) or wrong with
        p < threshold (``SPLIT.wrong_below``); ``SPLIT.learned`` and ``SPLIT.forgotten``, events
        an example; ``SPLIT.never_right``, a share. With train and test, ``gap.accuracy`` and
        ``gap.nll``, larger where the model fits its training data better than others. The share of
        an empty cohort is absent.

    Raises:
        InputError: If an array has another shape or NaN, or there is no such epoch.

    Example:
        >>> trace = {"test": {"log_odds": [[1, -1, -3], [2, 1, -4]],
        ...                   "correct": [[True, False, False], [True, True, False]]}}
        >>> found = dynamics(trace, epoch=1)
        >>> found.values["test.wrong_above"], found.values["test.wrong_below"]
        (1.0, 0.0)

    Source: Battash et al., "A Motivating Example" (cohorts); Toneva et al. 2019 (forgetting);
    Zhao et al. 2022, appendix C.2 (gap in accuracy, called excess risk there).
    """
    if not trace:
        raise InputError("Expected the trace of at least one split, but got none.")
    values: dict[str, float] = {}
    splits: dict[str, Any] = {}
    small: dict[int, list[str]] = {}
    for name, arrays in trace.items():
        log_odds, correct = _checked(name, arrays)
        at = _epoch(epoch, len(correct))
        found = cohorts(log_odds, correct, epoch=at, threshold=threshold) if at else {}
        happened = events(correct)
        values |= {f"{name}.{k}": v for k, v in _values(correct, found, happened)}
        splits[name] = _details(log_odds, correct, at, threshold, found, happened)
        small.setdefault(at, []).extend(_few(name, found))
    if {"train", "test"} <= trace.keys():
        values |= _gap(*(splits[name] for name in ("train", "test")))
    flags = tuple(_few_told(at, told) for at, told in small.items() if told)
    return Finding(values, {"threshold": threshold, "splits": splits}, flags)


def generalisation(
    model: nn.Module, train: Data, test: Data, *, device: str | torch.device = "cpu"
) -> Finding:
    """Accuracy and NLL on a model's training and test data, and the gap between the two.

    ``gap.accuracy`` is training accuracy minus test accuracy, ``gap.nll`` test NLL minus training
    NLL, so that the larger number is the larger gap.

    Args:
        model: Any classifier; moved to ``device``.
        train: What it has learned from, without augmentation.
        test: What it has not.
        device: Where the model computes.

    Raises:
        InputError: If there are no examples, or the logits are not what they should be.

    Example:
        >>> x, y = torch.randn(6, 2), torch.arange(6) % 3
        >>> generalisation(nn.Linear(2, 3), (x, y), (x, y)).values["gap.accuracy"]
        0.0
    """
    values: dict[str, float] = {}
    flags: tuple[str, ...] = ()
    sides = {}
    for name, data in (("train", train), ("test", test)):
        output = predict(model, data, device=device)
        flags = scale_flags(output[0])
        sides[name] = {
            "accuracy": [metrics.accuracy(*output).item()],
            "nll": [metrics.nll(*output).item()],
        }
        values |= {f"{name}.{metric}": of[0] for metric, of in sides[name].items()}
    return Finding(values | _gap(sides["train"], sides["test"]), flags=flags)


def cohorts(
    log_odds: ArrayLike, correct: ArrayLike, *, epoch: int, threshold: float = 0.2
) -> dict[str, Cohort]:
    """The examples right, wrong with p ≥ threshold and wrong with p < threshold after ``epoch``.

    Args:
        log_odds: ``(E, N)``.
        correct: ``(E, N)``.
        epoch: From 1, before the last.
        threshold: In (0, 1).

    Raises:
        InputError: If there is no such epoch before the last, or no such threshold.
    """
    odds, hits = _checked("the trace", {"log_odds": log_odds, "correct": correct})
    states = _states(odds, hits, _epoch(epoch, len(hits)), threshold)
    return {name: _cohort(hits[-1][states == k]) for k, name in enumerate(COHORTS)}


def transitions(
    log_odds: ArrayLike, correct: ArrayLike, *, epoch: int, threshold: float = 0.2
) -> list[list[int]]:
    """How many examples went from each cohort after ``epoch`` (rows) to each in the end (columns).

    In the order of `COHORTS`.
    """
    odds, hits = _checked("the trace", {"log_odds": log_odds, "correct": correct})
    before = _states(odds, hits, _epoch(epoch, len(hits)), threshold)
    after = _states(odds, hits, len(hits), threshold)
    table = np.zeros((len(COHORTS), len(COHORTS)), dtype=np.int64)
    np.add.at(table, (before, after), 1)
    return [[int(count) for count in row] for row in table]


def events(correct: ArrayLike) -> Events:
    """Learned: wrong, then right at the next measurement. Forgotten: right, then wrong.

    Example:
        >>> events([[False, True], [True, False], [True, True]]).forgotten
        array([1, 0])
    """
    hits = np.asarray(correct, dtype=bool)
    learned, forgotten = ~hits[:-1] & hits[1:], hits[:-1] & ~hits[1:]
    return Events(
        learned=learned.sum(axis=1),
        forgotten=forgotten.sum(axis=1),
        forgettings=forgotten.sum(axis=0),
        ever_right=np.asarray(hits.any(axis=0)),
    )


def _values(
    correct: NDArray[np.bool_], found: Mapping[str, Cohort], happened: Events
) -> Iterator[tuple[str, float]]:
    examples = correct.shape[1]
    yield "accuracy", float(correct[-1].mean())
    for name, cohort in found.items():
        if cohort.share is not None:
            yield name, cohort.share
    if len(correct) > 1:
        yield "learned", float(happened.learned.sum() / examples)
        yield "forgotten", float(happened.forgotten.sum() / examples)
    yield "never_right", float(1 - happened.ever_right.mean())


def _details(
    log_odds: NDArray[np.float64],
    correct: NDArray[np.bool_],
    epoch: int,
    threshold: float,
    found: Mapping[str, Cohort],
    happened: Events,
) -> dict[str, Any]:
    forgettings = np.bincount(happened.forgettings)
    never = int(np.count_nonzero(~happened.ever_right))
    unforgettable = int(np.count_nonzero(happened.ever_right & (happened.forgettings == 0)))
    table = transitions(log_odds, correct, epoch=epoch, threshold=threshold) if epoch else []
    nll = np.logaddexp(0, -log_odds).mean(axis=1)
    return {
        "examples": correct.shape[1],
        "epochs": len(correct),
        "epoch": epoch or None,
        "accuracy": correct.mean(axis=1).tolist(),
        "nll": [float(x) if math.isfinite(x) else None for x in nll],
        "learned": happened.learned.tolist(),
        "forgotten": happened.forgotten.tolist(),
        "never_right": never,
        "unforgettable": unforgettable,
        "examples_by_forgettings": forgettings.tolist(),
        "cohorts": {name: vars(cohort) for name, cohort in found.items()},
        "transitions": table,
    }


def _gap(train: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, float]:
    gap = {"gap.accuracy": train["accuracy"][-1] - test["accuracy"][-1]}
    if train["nll"][-1] is not None and test["nll"][-1] is not None:
        gap["gap.nll"] = test["nll"][-1] - train["nll"][-1]
    return gap


def _few(split: str, found: Mapping[str, Cohort]) -> Iterator[str]:
    for name, cohort in found.items():
        if 0 < cohort.examples < _FEW:
            yield f"{split} · {SHOWN[name]} {cohort.examples}"


def _few_told(epoch: int, told: list[str]) -> str:
    """One sentence for all small cohorts: how many examples each has."""
    return (
        f"Cohorts of under {_FEW} examples after epoch {epoch}, whose shares say little: "
        f"{', '.join(told)}."
    )


def _states(
    log_odds: NDArray[np.float64], correct: NDArray[np.bool_], epoch: int, threshold: float
) -> NDArray[np.int64]:
    """The place in `COHORTS` of every example after ``epoch``."""
    if not 0 < threshold < 1:
        raise InputError(f"Expected threshold to lie between 0 and 1, but got {threshold!r}.")
    below = log_odds[epoch - 1] < math.log(threshold) - math.log1p(-threshold)
    return np.where(correct[epoch - 1], 0, np.where(below, 2, 1))


def _cohort(right: NDArray[np.bool_]) -> Cohort:
    from scipy.stats import binomtest

    examples, hits = len(right), int(right.sum())
    if not examples:
        return Cohort(0, 0, None, None, None)
    interval = binomtest(hits, examples).proportion_ci(0.95, method="wilson")
    return Cohort(examples, hits, hits / examples, float(interval.low), float(interval.high))


def _epoch(epoch: int | None, epochs: int) -> int:
    """The epoch of the cohorts; 0 where a single epoch leaves no choice."""
    if epoch is None:
        return min(max(1, round(_PAPER * epochs)), epochs - 1)
    if not isinstance(epoch, int) or not 1 <= epoch < epochs:
        raise InputError(
            f"Expected epoch to lie before the last of the trace's {epochs}, from 1, but got "
            f"{epoch!r}."
        )
    return epoch


def _checked(
    name: str, arrays: Mapping[str, ArrayLike]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    missing = {"log_odds", "correct"} - set(arrays)
    if missing:
        raise InputError(
            f"Expected log_odds and correct of {name}, but {' and '.join(sorted(missing))} is "
            "missing."
        )
    log_odds = np.asarray(arrays["log_odds"], dtype=np.float64)
    correct = np.asarray(arrays["correct"])
    if log_odds.ndim != 2 or log_odds.shape != correct.shape or not log_odds.size:
        raise InputError(
            f"Expected log_odds and correct of {name} to have one shape (epochs, examples), but "
            f"got {log_odds.shape} and {correct.shape}."
        )
    if correct.dtype != np.bool_:
        raise InputError(
            f"Expected correct of {name} to be true or false, but got {correct.dtype}."
        )
    broken = int(np.isnan(log_odds).any(axis=0).sum())
    if broken:
        raise InputError(
            f"Expected log-odds that are numbers, but those of {broken} of {log_odds.shape[1]} "
            f"examples of {name} are NaN at some epoch."
        )
    return log_odds, correct

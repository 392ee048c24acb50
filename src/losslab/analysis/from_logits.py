"""The analyses that need nothing but the logits of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from losslab import metrics
from losslab.analysis.classifier import predict, tensors
from losslab.analysis.finding import Finding
from losslab.analysis.subject import Subject
from losslab.errors import InputError

NOISE = "noise"
_UNDER = ("cross_entropy", "encouraging", "encouraging(log_end=1)", "expectation", "focal")


def margins(subject: Subject, split: str = "test") -> Finding:
    """How far examples are from the decision, in logits and in log-odds."""
    logits, target = subject.outputs(split)
    found = metrics.margins(logits, target)
    by_example = {
        "logits": metrics.margin(logits, target),
        "log_odds": metrics.log_odds(logits, target),
    }
    values: dict[str, float] = {}
    details = {}
    for name, spread in found._asdict().items():
        values |= {
            f"{name}.mean": spread.mean,
            f"{name}.median": spread.quantiles[spread.levels.index(0.5)],
            f"{name}.negative": spread.share_negative,
        }
        details[name] = {**spread._asdict(), "histogram": _histogram(by_example[name])}
    return Finding(values, {"split": split, **details})


def energies(subject: Subject, split: str = "test") -> Finding:
    """How low the energy is on the data, and how high beside it."""
    logits, target = subject.outputs(split)
    found = metrics.conditional_energies(logits, target)
    table = metrics.class_energies(logits, target)
    values = {
        "true": found.true.mean,
        "lowest_other": found.lowest_other.mean,
        "gap": found.lowest_other.mean - found.true.mean,
    }
    details = {
        "split": split,
        "true": found.true._asdict(),
        "lowest_other": found.lowest_other._asdict(),
        "counts": table.counts.tolist(),
        "table": [_nothing_for_nan(row) for row in table.table.tolist()],
    }
    return Finding(values, details)


def gradients(
    subject: Subject,
    split: str = "train",
    under: str | Sequence[str] = _UNDER,
    edges: Sequence[float] = metrics.BANDS,
) -> Finding:
    """Which examples carry the gradient, under the model's own loss and under others."""
    a = metrics.log_odds(*subject.outputs(split))
    values: dict[str, float] = {}
    by_loss, flags = {}, []
    try:
        own = metrics.gradient_shares(a, subject.criterion, edges=edges)
        values = {
            "mean": own.mean.item(),
            "right": _share_right(a, subject.criterion),
        }
        by_loss["own"] = _shares(own)
    except InputError as error:
        flags.append(f"its own loss is left out: {error}")
    for spec in [under] if isinstance(under, str) else under:
        by_loss[spec] = _shares(metrics.gradient_shares(a, spec, edges=edges))
    counts = next(iter(by_loss.values()))["counts"] if by_loss else []
    details = {"split": split, "edges": list(edges), "counts": counts, "by_loss": by_loss}
    return Finding(values, details, tuple(flags))


def calibration(subject: Subject, bins: int = metrics.BINS) -> Finding:
    """Whether probabilities mean what they say, before and after a temperature is fitted.

    The temperature is fitted on the validation examples, everything else is measured on the test
    examples.
    """
    logits, target = subject.outputs("test")
    values = _calibration(logits, target, bins)
    parts = metrics.brier_decomposition(logits, target, bins)._asdict()
    values |= {f"brier.{name}": part.item() for name, part in parts.items() if name != "brier"}
    details: dict[str, Any] = {"bins": bins, "reliability": _diagram(logits, target, bins)}
    flags: tuple[str, ...] = ()
    try:
        temperature = metrics.fit_temperature(*subject.outputs("validation"))
    except InputError as error:
        flags = (f"no temperature was fitted: {error}",)
    else:
        scaled = logits.double() / temperature
        values["temperature"] = temperature
        values |= {f"scaled.{k}": v for k, v in _calibration(scaled, target, bins).items()}
        details["reliability_scaled"] = _diagram(scaled, target, bins)
    return Finding(values, details, flags)


def ood(subject: Subject, out: str | Sequence[str] = NOISE, examples: int | None = None) -> Finding:
    """Whether the logits tell the test examples from others: another task's, or uniform noise."""
    inside, _ = subject.outputs("test")
    inside = inside[:examples]
    names = [out] if isinstance(out, str) else list(out)
    values: dict[str, float] = {}
    details = {}
    for name in names:
        others, _ = predict(subject.model, _others(subject, name, examples), device=subject.device)
        prefix = f"{name}." if len(names) > 1 else ""
        values |= {f"{prefix}{k}": v for k, v in metrics.ood.detect(inside, others).items()}
        details[name] = {
            "examples": [len(inside), len(others)],
            "histograms": {
                score: {
                    "edges": both[0].edges.tolist(),
                    "in": both[0].counts.tolist(),
                    "out": both[1].counts.tolist(),
                }
                for score, both in metrics.ood.histograms(inside, others).items()
            },
        }
    return Finding(values, {"out": details})


def _calibration(logits: Tensor, target: Tensor, bins: int) -> dict[str, float]:
    def error(**how: str) -> float:
        return metrics.calibration_error(logits, target, bins, **how).item()

    return {
        "ece": error(),
        "adaptive_ece": error(binning="mass"),
        "rms_ce": error(norm="l2"),
        "max_ce": error(norm="max"),
        "classwise_ece": metrics.classwise_ece(logits, target, bins).item(),
        "brier": metrics.brier(logits, target).item(),
        "nll": metrics.nll(logits, target).item(),
    }


def _diagram(logits: Tensor, target: Tensor, bins: int) -> dict[str, list[Any]]:
    table = metrics.reliability(logits, target, bins)._asdict()
    return {name: _nothing_for_nan(values.tolist()) for name, values in table.items()}


def _nothing_for_nan(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _histogram(values: Tensor, bins: int = 60) -> dict[str, list[float]]:
    return {name: part.tolist() for name, part in metrics.histogram(values, bins)._asdict().items()}


def _shares(found: metrics.GradientShares) -> dict[str, Any]:
    return {
        "counts": found.counts.tolist(),
        "shares": found.shares.tolist(),
        "mean": found.mean.item(),
    }


def _share_right(a: Tensor, criterion: Any) -> float:
    """The share of the gradient that examples with p above one half carry."""
    return metrics.gradient_shares(a, criterion, edges=(0, 0.5, 1)).shares[1].item()


def _others(subject: Subject, name: str, examples: int | None) -> tuple[Tensor, Tensor]:
    inputs, target = tensors(subject.test, examples)
    if name == NOISE:
        generator = torch.Generator().manual_seed(subject.seed)
        low, high = inputs.min().item(), inputs.max().item()
        noise = torch.rand(inputs.shape, generator=generator) * (high - low) + low
        return noise.round().to(inputs.dtype) if not inputs.is_floating_point() else noise, target
    if subject.data_by_name is None:
        raise InputError(
            f"Expected {NOISE!r}, or to be told where other data come from, but got {name!r}; give "
            "the subject data_by_name."
        )
    others, labels = tensors(subject.data_by_name(name), examples)
    refuse_other_form(name, others, inputs)
    return others, labels


def refuse_other_form(name: str, others: Tensor, inputs: Tensor) -> None:
    """Raise `InputError` unless other data have the shape and dtype of the model's own."""
    if others.shape[1:] != inputs.shape[1:] or others.dtype != inputs.dtype:
        raise InputError(
            f"Expected the examples of {name} to be as the model's own, {_form(inputs)}, but they "
            f"are {_form(others)}."
        )


def _form(inputs: Tensor) -> str:
    return f"{tuple(inputs.shape[1:])} {str(inputs.dtype).removeprefix('torch.')}"

"""What is kept of each example, so that metrics of many need not keep all their logits.

A model's logits for a million tokens and 50,000 classes do not fit into memory; what the metrics
ask of each token does. Every number here is of one row alone, so batches can be measured one after
the other and joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.metrics import calibration, scores
from losslab.metrics.checks import checked

Examples = Mapping[str, Tensor]
"""One number an example by name, each ``(N,)``."""

KEPT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "target": lambda logits, target: target,
    "predicted": scores.predicted,
    "correct": scores.correct,
    "nll": scores.example_nll,
    "brier": scores.example_brier,
    "confidence": calibration.confidence,
    "margin": scores.margin,
    "energy": scores.energy,
    "log_odds": scores.log_odds,
    "finite": lambda logits, target: logits.isfinite().all(dim=1),
}


def examples(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What the metrics ask of each example.

    Args:
        logits: ``(N, C)``.
        target: ``(N,)`` class numbers.

    Returns:
        Tensors ``(N,)``: ``target`` and ``predicted`` (the class, −1 of a row with a NaN),
        ``correct``, ``nll``, ``brier``, ``confidence`` (of the predicted class), ``margin``,
        ``energy``, ``log_odds``, and ``finite`` (whether all logits of the row are).

    Example:
        >>> kept = examples(torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 0]))
        >>> kept["correct"], kept["margin"].tolist()
        (tensor([ True, False]), [2.0, -2.0])
    """
    logits, target = checked(logits, target)
    return {name: number(logits, target) for name, number in KEPT.items()}


def joined(parts: Sequence[Examples]) -> dict[str, Tensor]:
    """Several batches' examples as one's, in their order."""
    if not parts:
        raise InputError("Expected at least one batch of examples, but got none.")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def evaluate_examples(kept: Examples) -> dict[str, float]:
    """`losslab.metrics.evaluate` from what `examples` kept."""
    table = calibration.diagram(kept["confidence"], kept["correct"])
    values = {
        "accuracy": scores.share_right(kept["correct"]),
        "balanced_accuracy": scores.mean_recall(kept["correct"], kept["target"]),
        "nll": kept["nll"].mean(),
        "brier": kept["brier"].mean(),
        "ece": calibration.gap(table),
        "margin": kept["margin"].mean(),
        "energy": kept["energy"].mean(),
    }
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

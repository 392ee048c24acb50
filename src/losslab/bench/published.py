"""The encouraging loss as its paper's code computes it: by probabilities of every class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CLAMP = 1e-5


def encouraging(
    logits: Tensor, target: Tensor, *, log_end: float = 0.75, label_smoothing: float = 0.0
) -> Tensor:
    """Mean encouraging loss, in as many operations on all classes as the published code takes.

    Math: −log p + log(1 − p), with 1 − p not below 1e-5, and the bonus log(1 − p) continued as a
        straight line beyond p = ``log_end``.

    It is here to be measured: 1 − p cancels and the clamp ends the gradient near p = 1, which
    ``losslab.encouraging_loss`` avoids.

    Source: Zhao et al. 2022, EncouragingLoss.py and label_smoothed_el_timm.py of
        github.com/lancopku/well-classified-examples-are-underestimated, operation for operation.
    """
    log_p = F.log_softmax(logits, dim=-1)
    p = torch.exp(log_p)
    curve = torch.log(torch.clamp(torch.ones_like(p) - p, min=_CLAMP))
    height = torch.log(torch.ones_like(p) - log_end)
    line = 1 / (log_end - torch.ones_like(p)) * (p - log_end) + height
    bonus = torch.where(p > log_end, line, curve)
    if not label_smoothing:
        return F.nll_loss(log_p - bonus, target)
    hard = (bonus - log_p).gather(-1, target.unsqueeze(1)).squeeze(1)
    even = (bonus - log_p).mean(-1)
    return ((1 - label_smoothing) * hard + label_smoothing * even).mean()

"""Three examples on which the page shows what pulls at each logit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losslab.logodds import target_log_odds


@dataclass(frozen=True)
class Example:
    """Logits of five classes, of which the first is the true one."""

    title: str
    logits: tuple[float, ...]


EXAMPLES = (
    Example("hopeless", (-2.0, 3.0, 1.0, 0.0, -1.0)),
    Example("undecided", (1.5, 1.5, 0.0, -0.5, -1.0)),
    Example("well classified", (6.0, 1.0, 0.0, -0.5, -1.0)),
)
_TRUE = torch.zeros(1, dtype=torch.long)


def gradients(loss: nn.Module, example: Example) -> Tensor:
    """∂L/∂z of every logit, by autograd."""
    logits = torch.tensor([example.logits], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(logits, _TRUE), logits)
    return gradient[0]


def log_odds_and_direction(example: Example) -> tuple[float, list[float]]:
    """a and ∂a/∂z: a loss ψ(a) pulls at the logits with ψ'(a) times that."""
    logits = torch.tensor([example.logits], dtype=torch.float64, requires_grad=True)
    a = target_log_odds(logits, _TRUE)
    (direction,) = torch.autograd.grad(a.sum(), logits)
    return a.item(), direction[0].tolist()

"""ψ' of the ψ in ``psi.py``, written out: what autograd would find, in a few operations.

A function here has the name and the arguments of its ψ. It is only a short cut: a ψ without one is
differentiated by autograd, and ``tests/laws`` holds each against that. p = σ(a), 1 − p = σ(−a).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from losslab.losses import psi
from losslab.losses.psi import Number, log_curve_end, logit


def cross_entropy(a: Tensor) -> Tensor:
    return torch.sigmoid(-a).neg_()


def expectation(a: Tensor) -> Tensor:
    return (torch.sigmoid(-a) * torch.sigmoid(a)).neg_()


def mixed(a: Tensor, alpha: Number = 1.0, beta: Number = 1.0) -> Tensor:
    return torch.sigmoid(-a) * (-beta * torch.sigmoid(a) - alpha)


def encouraging(
    a: Tensor,
    rho: Number = 1.0,
    log_end: float = 0.75,
    bonus_start: float | None = None,
    eps: float = 1e-5,
) -> Tensor:
    end = log_curve_end(log_end, eps)
    wrong = torch.sigmoid(-a)
    if bonus_start is None and isinstance(rho, (float, int)) and rho == 1:
        late = wrong * (-1 - torch.sigmoid(a) / (1 - log_end)) if log_end < 1 else -wrong
        return late.masked_fill_(a <= end, -1)
    bonus = torch.sigmoid(a)
    late = bonus * wrong / (1 - log_end) if log_end < 1 else torch.zeros_like(a)
    bonus = torch.where(a <= end, bonus, late)
    if bonus_start is not None:
        bonus = torch.where(a >= logit(bonus_start), bonus, 0)
    return -wrong - rho * bonus


def encouraging_power(
    a: Tensor, rho: Number = 1.0, gamma: float = 1.0, bonus_start: float | None = None
) -> Tensor:
    power = gamma * torch.exp(gamma * F.logsigmoid(a))
    if bonus_start is not None:
        power = torch.where(a >= logit(bonus_start), power, 0)
    return torch.sigmoid(-a) * (-1 - rho * power)


def encouraging_cosine(a: Tensor, rho: Number = 1.0) -> Tensor:
    p, wrong = torch.sigmoid(a), torch.sigmoid(-a)
    return wrong * (-1 - rho * math.pi * p * torch.sin(math.pi * torch.minimum(p, wrong)))


def focal(a: Tensor, gamma: Number = 2.0) -> Tensor:
    down = torch.exp(gamma * F.logsigmoid(-a.clamp(-100, 750)))
    entropy = torch.sigmoid(a) * psi.cross_entropy(a.clamp(min=-1000))  # −p log p, 0 at −∞
    return -down * (torch.sigmoid(-a) + gamma * entropy)


def halted_focal(a: Tensor, gamma: float = 2.0, threshold: float = 0.5) -> Tensor:
    if threshold == 0:
        return cross_entropy(a)
    return torch.where(a <= logit(threshold), focal(a, gamma), cross_entropy(a))


def generalized_cross_entropy(
    a: Tensor, q: Number = 0.7, truncation: float | None = None
) -> Tensor:
    slope = -torch.exp(q * F.logsigmoid(a).clamp(min=-1e30)) * torch.sigmoid(-a)
    return slope if truncation is None else torch.where(a < logit(truncation), 0, slope)


def tamed_cross_entropy(a: Tensor, alpha: float = 0.5) -> Tensor:
    return -torch.sigmoid(-a) * (1 + psi.cross_entropy(a)).pow(-alpha)


def squared_error(a: Tensor, mirror: bool = False) -> Tensor:
    slope = 2 * expectation(a)
    return slope if mirror else slope * torch.sigmoid(-a)


def absolute_error(a: Tensor) -> Tensor:
    return expectation(a)


def exponential(a: Tensor, cap: float = 30.0) -> Tensor:
    return torch.exp(-a.clamp(min=-cap)).neg_()


def hinge(a: Tensor, margin: float = 1.0) -> Tensor:
    return torch.full_like(a, -1).masked_fill_(a >= margin, 0)


def squared_hinge(a: Tensor, margin: float = 1.0) -> Tensor:
    return -2 * torch.relu(margin - a).clamp(max=1e18)

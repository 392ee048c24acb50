"""The one place that chooses how log-odds are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from losslab.logodds import eager, kernel, plain


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Log-odds of validated ``logits`` (N, C, …) and ``target`` (N, …) by the best way there is."""
    if being_transformed():  # compilers and torch.func want plain operations
        return plain.log_odds(logits, target)
    return kernel.log_odds(eager, logits, target)


def being_transformed() -> bool:
    """Whether torch.compile traces or torch.func transforms the caller."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def target_span(target: Tensor) -> tuple[int, int] | None:
    """(min, max) of the targets where a look is free: plain CPU tensors outside transforms."""
    if target.device.type != "cpu" or type(target) is not Tensor or target.numel() == 0:
        return None
    if being_transformed():
        return None
    low, high = torch.aminmax(target)
    return int(low), int(high)

"""Whole losses in float64, by the oracles alone: values by ``oracles.reduction``, gradients by
the formula Σ_k t_k ψ'(a_k)(e_k − q⁽ᵏ⁾) with ψ' taken by complex step."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from laws.settings import Setting
from oracles import logodds, reduction


def value(setting: Setting, logits: Tensor, target: Tensor, **options: Any) -> Any:
    """The loss; options as in ``F.cross_entropy``."""
    if options.get("weight") is not None:
        options = options | {"weight": options["weight"].numpy()}
    return reduction.classification_loss(
        lambda a: float(setting.oracle(a)), logits.numpy(), target.numpy(), **options
    )


def gradient(
    setting: Setting, logits: Tensor, target: Tensor, upstream: Tensor, **options: Any
) -> Tensor:
    """∂(upstream · loss)/∂logits, for logits (C,), (N, C) or (N, C, d1, …)."""
    z, t, g, shape = _rows(logits, target, upstream)
    classes = z.shape[1]
    weight = options.get("weight")
    w = np.ones(classes) if weight is None else weight.numpy()
    smoothing = options.get("label_smoothing", 0.0)
    soft = target.is_floating_point()
    result = np.zeros_like(z)
    used = 0.0
    for n in range(len(z)):
        if soft:
            goal, used = t[n], used + 1
        elif t[n] == options.get("ignore_index", -100):
            continue
        else:
            goal, used = np.eye(classes)[int(t[n])], used + w[int(t[n])]
        goal = ((1 - smoothing) * goal + smoothing / classes) * w
        slopes = [setting.slope(logodds.row_log_odds(z[n], k)) for k in range(classes)]
        result[n] = g[n] * logodds.soft_target_gradient(z[n], goal, slopes)
    if options.get("reduction", "mean") == "mean":
        result /= used
    result_ = torch.tensor(result)
    if logits.dim() < 2:
        return result_[0]
    return result_.unflatten(0, shape).movedim(-1, 1)


def _rows(logits: Tensor, target: Tensor, upstream: Tensor) -> tuple[Any, Any, Any, Any]:
    """Logits (rows, C), targets (rows,) or (rows, C), upstream (rows,), and the rows' shape."""
    soft = target.is_floating_point()
    if logits.dim() == 1:
        logits, target, upstream = logits[None], target[None], upstream[None]
    z = logits.movedim(1, -1)
    shape = z.shape[:-1]
    t = (target.movedim(1, -1) if soft else target).reshape(-1, *([z.shape[-1]] if soft else []))
    g = upstream.expand(shape) if upstream.dim() < len(shape) else upstream
    return z.reshape(-1, z.shape[-1]).numpy(), t.numpy(), g.reshape(-1).numpy(), shape

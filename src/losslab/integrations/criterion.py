"""A loss as people write it, as a module that leaves the mean to the trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from losslab.errors import InputError
from losslab.losses.modules import OddsLoss
from losslab.losses.spec import loss as loss_of

Loss = str | nn.Module | Callable[[Tensor], Tensor]


def summed(loss: Loss, **options: Any) -> nn.Module:
    """The module whose value is the sum over rows.

    Args:
        loss: A spec, a ψ of one's own (log-odds -> loss), or a module made with
            ``reduction="sum"``.
        options: Of a loss made here: ``weight``, ``ignore_index``, ``label_smoothing``.

    Raises:
        InputError: If a module takes means, has several steps, or comes with options.
    """
    if isinstance(loss, str):
        module = loss_of(loss, reduction="sum", **options)
    elif isinstance(loss, nn.Module):
        module = loss
        if options:
            raise InputError(
                f"Expected {', '.join(options)} in the loss module itself, but got them beside "
                f"{type(loss).__name__}."
            )
        found = {str(part.reduction) for part in loss.modules() if hasattr(part, "reduction")}
        if found - {"sum"}:
            raise InputError(
                f"Expected a loss module made with reduction='sum', but got {sorted(found)}: the "
                "trainer divides, by what it alone knows. Or give the loss's spec."
            )
    else:
        module = OddsLoss(loss, reduction="sum", **options)
    if len(getattr(module, "steps", (module,))) > 1:
        raise InputError(
            "a loss that alternates steps, such as complement_objective, cannot be used here: "
            "the trainer makes one step a batch."
        )
    return module

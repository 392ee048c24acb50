"""Schedules of losses in Lightning: the module stays as it is, a callback advances them.

    Trainer(callbacks=[LossSchedule()])

finds every loss of losslab among the module's parts (``self.criterion = losslab.loss(…)``) and
tells it before each batch how much of the training is done. The fraction is that of the trainer's
own steps, so a training that goes on from a checkpoint goes on with the schedule too. Losses
without a schedule need no callback.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from losslab.errors import InputError

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning.callbacks import Callback  # type: ignore[assignment]
    except ModuleNotFoundError as error:
        raise InputError(
            "losslab.integrations.lightning needs Lightning: pip install lightning"
        ) from error


class LossSchedule(Callback):
    """Advances the schedules of all losslab losses in a Lightning module.

    The fraction of training done is the trainer's ``global_step`` over its
    ``estimated_stepping_batches``, both in optimiser steps: under gradient accumulation the batches
    of one step share a value. With several optimisers ``global_step`` counts each one's steps, and
    so does the estimate.

    Raises:
        InputError: At the start, where the module has no loss with ``set_progress``, or the
            training has no end that a fraction could be taken of (``max_steps=-1`` with
            ``max_epochs=-1``).

    Example:
        >>> Trainer(max_epochs=10, callbacks=[LossSchedule()])  # doctest: +SKIP
    """

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        self.losses = [part for part in pl_module.modules() if _advances(part)]
        if not self.losses:
            raise InputError(
                f"Expected a loss of losslab among the parts of {type(pl_module).__name__}, such "
                "as self.criterion = losslab.loss(…), but found none; without one leave "
                "LossSchedule out."
            )
        self.total = trainer.estimated_stepping_batches
        if not math.isfinite(self.total):
            raise InputError(
                "Expected a training that ends, since schedules are fractions of it, but got no "
                "max_epochs and no max_steps."
            )

    def on_train_batch_start(
        self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int
    ) -> None:
        for loss in self.losses:
            advance: Any = loss.set_progress
            advance(min(1.0, trainer.global_step / max(1, self.total)))


def _advances(part: nn.Module) -> bool:
    return type(part).__module__.startswith("losslab.") and hasattr(part, "set_progress")

"""Any loss in Hugging Face's `Trainer`, divided as it divides.

    loss = TrainerLoss("mixed(focus=0.3)")                     # a classifier
    loss = TrainerLoss("expectation", causal=True)             # a language model: DFT
    Trainer(model, arguments, train_dataset=…, compute_loss_func=loss, callbacks=loss.callbacks)

Under gradient accumulation the Trainer counts the labels of all pieces of a batch and passes their
number on; the loss is the sum over a piece's rows, divided by that number, so that the pieces add
up to the gradient of the whole batch. The model's own loss is not computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.integrations.criterion import Loss, summed


class TrainerLoss:
    """A loss as the Trainer's ``compute_loss_func``.

    Args:
        loss: A spec (``"encouraging"``), a ψ of your own, or a loss module with
            ``reduction="sum"``.
        causal: Whether the model predicts the next token: logits ``(rows, length, vocabulary)``
            are laid beside the labels one place on, as causal language models of `transformers`
            do it themselves. A model that says it is one (its outputs' class is a
            ``…CausalLM…``) is refused until this is set: ``causal=False`` is for a collator that
            has shifted the labels already.
        options: Of a loss made from a spec or a ψ: ``weight``, ``label_smoothing``.
            ``ignore_index`` is -100, which the Trainer counts by.

    Where the Trainer passes no number, the loss is the mean over the rows that are not ignored.
    With class weights, too, the sum is divided by the number of labels, not by the sum of their
    weights as PyTorch's mean is, since the Trainer counts labels; weights whose mean over the
    training rows is 1 make the two alike.

    Example:
        >>> loss = TrainerLoss("encouraging")
        >>> logits, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, -100])
        >>> loss({"logits": logits}, labels, num_items_in_batch=6)     # half of a batch
        tensor(0.3466)
    """

    def __init__(self, loss: Loss, *, causal: bool | None = None, **options: Any) -> None:
        self.criterion, self.causal = summed(loss, **options), causal

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of a piece of a batch.

        Args:
            outputs: What the model returned: a mapping or object with ``logits``, or a tuple that
                begins with them.
            labels: ``(rows,)``, or of tokens ``(rows, length)``; -100 is ignored.
            num_items_in_batch: Labels of the whole batch.
        """
        logits = _logits(outputs)
        if labels is None:
            raise InputError(
                "Expected labels in the batch, but got none; the data set must have a column "
                "labels (or label, which the Trainer's collator renames)."
            )
        if self.causal is None and "CausalLM" in type(outputs).__name__:
            raise InputError(
                f"Expected causal=True beside the loss, since the model returns "
                f"{type(outputs).__name__}: its logits predict the next token, and the labels are "
                "to be laid one place on. Labels that are shifted already want causal=False."
            )
        if self.causal:
            labels = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
        if logits.shape[:-1] != labels.shape:
            raise InputError(
                f"Expected logits of shape (…, classes) for labels of shape {tuple(labels.shape)}, "
                f"but got {tuple(logits.shape)}; a language model wants causal=True, and a "
                "regression no loss of classes."
            )
        rows, target = logits.flatten(0, -2).float(), labels.flatten().to(logits.device)
        self.criterion.to(logits.device)
        value: Tensor = self.criterion(rows, target)
        if num_items_in_batch is None:
            num_items_in_batch = (target != -100).sum().clamp_min(1)
        elif torch.is_tensor(num_items_in_batch):
            num_items_in_batch = num_items_in_batch.to(value.device)
        return value / num_items_in_batch

    @property
    def callbacks(self) -> list[Any]:
        """What advances the loss's schedules; an empty list would do for a loss without any."""
        from transformers import TrainerCallback

        criterion = self.criterion

        class Schedules(TrainerCallback):
            """Tells the loss, before each step, how much of the training is done."""

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                advance = getattr(criterion, "set_progress", None)
                if advance is not None:
                    advance(min(1.0, state.global_step / max(1, state.max_steps)))

        return [Schedules()]


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, dict) and "logits" in outputs:
        found = outputs["logits"]
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, (tuple, list)) and outputs:
        found = outputs[0]
    else:
        found = outputs
    if not torch.is_tensor(found):
        raise InputError(
            f"Expected the model to return logits, but got {type(outputs).__name__}"
            + (f" with {', '.join(map(str, outputs))}." if isinstance(outputs, dict) else ".")
        )
    return found

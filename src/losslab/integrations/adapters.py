"""Any loss under the signatures that fairseq and torchtune call.

criterion = FairseqCriterion("smoothed(encouraging, amount=0.1)", padding_idx=1)
loss, sample_size, log = criterion(model, sample)

loss = TorchtuneLoss("expectation")                # DFT
value = loss(logits, labels)                       # logits may come in chunks

A schedule in the loss is yours to move: ``criterion.set_progress(step / total_steps)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.integrations.criterion import Loss, summed


class FairseqCriterion(nn.Module):
    """A loss as fairseq's trainer calls it: ``(loss, sample_size, logging_output)``.

    The loss is a sum over the tokens that are no padding; the trainer divides gradients by
    ``sample_size``, summed over the pieces and workers of a batch.

    Args:
        loss: A spec, a ψ of your own, or a loss module with ``reduction="sum"`` and
            ``ignore_index=padding_idx``.
        padding_idx: The dictionary's number of the padding token.
        sentence_avg: Divide by sentences in place of tokens, as fairseq's ``--sentence-avg``.

    The model is called with ``sample["net_input"]``; its targets are ``model.get_targets(sample,
    output)`` where it has that, else ``sample["target"]``. fairseq itself is not imported, and need
    not be there; register it under a name with a subclass of ``FairseqCriterion`` of fairseq that
    calls this one.
    """

    def __init__(self, loss: Loss, padding_idx: int, *, sentence_avg: bool = False) -> None:
        super().__init__()
        self.criterion = _ignoring(loss, padding_idx)
        self.padding_idx, self.sentence_avg = padding_idx, sentence_avg

    def forward(
        self, model: nn.Module, sample: Mapping[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Sum of the losses, the number to divide by, and what is logged."""
        output = model(**sample["net_input"])
        of_model: Any = getattr(model, "get_targets", None)
        target = sample["target"] if of_model is None else of_model(sample, output)
        logits = output[0] if isinstance(output, (tuple, list)) else output
        if not reduce:
            raise InputError("Expected reduce=True: a loss a token is not what trainers ask for.")
        loss = self.criterion(logits.flatten(0, -2), target.flatten())
        tokens = int((target != self.padding_idx).sum())
        sentences = len(target)
        size = sentences if self.sentence_avg else tokens
        logged = {
            "loss": loss.detach(),
            "ntokens": tokens,
            "nsentences": sentences,
            "sample_size": size,
        }
        return loss, size, logged

    @staticmethod
    def aggregate(logs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Loss a unit of ``sample_size``, in bits as fairseq prints it, over several logs; NaN
        where they counted nothing."""
        logs = list(logs)
        size = sum(log["sample_size"] for log in logs)
        total = float(sum(log["loss"] for log in logs))
        return {"loss": total / size / math.log(2) if size else math.nan, "sample_size": size}

    def set_progress(self, progress: float) -> None:
        """Move the loss's schedules, if it has any, to the fraction of training done."""
        _advance(self.criterion, progress)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Whether workers may add their logs up before they are aggregated."""
        return True


class TorchtuneLoss(nn.Module):
    """A loss of tokens as torchtune's recipes call it: ``loss(logits, labels)``, a mean.

    Labels are shifted already, as the recipes do. Logits come whole, ``(rows, length, vocabulary)``
    or flattened to ``(tokens, vocabulary)``, with labels of that shape but for the vocabulary; or
    as a list of chunks along ``length``, which are done one after another, so that only one is in
    float32 at a time.

    In a recipe's configuration::

        loss:
          _component_: losslab.integrations.adapters.TorchtuneLoss
          loss: expectation

    Args:
        loss: A spec, a ψ of your own, or a loss module with ``reduction="sum"``.
        num_output_chunks: How many chunks the model is to make, for a recipe of your own that
            calls ``model.set_num_output_chunks(loss.num_output_chunks)``. torchtune's recipes (as
            of 0.6.1) do that for their own class alone, by its name, and pass whole logits here.
        ignore_index: Labels that are no tokens.

    Raises:
        InputError: If logits and labels do not fit each other, or a module ignores another label.
    """

    def __init__(
        self, loss: Loss = "expectation", num_output_chunks: int = 8, ignore_index: int = -100
    ) -> None:
        super().__init__()
        self.criterion = _ignoring(loss, ignore_index)
        self.num_output_chunks, self.ignore_index = num_output_chunks, ignore_index

    def forward(self, logits: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        """The mean over the labels that are not ignored; 0 where all are."""
        if isinstance(logits, Tensor):
            chunks, parts, shape = [logits], [labels], tuple(logits.shape[:-1])
        else:
            lengths = [chunk.shape[1] for chunk in logits]
            chunks, shape = logits, (logits[0].shape[0], sum(lengths))
            parts = list(labels.split(lengths, dim=1)) if labels.shape == shape else []
        if labels.shape != shape:
            raise InputError(
                f"Expected labels of shape {shape} for these logits, but got {tuple(labels.shape)}."
            )
        values = [
            self.criterion(chunk.flatten(0, -2).float(), part.flatten())
            for chunk, part in zip(chunks, parts, strict=True)
        ]
        count = (labels != self.ignore_index).sum().clamp_min(1)
        return torch.stack(values).sum() / count

    def set_progress(self, progress: float) -> None:
        """Move the loss's schedules, if it has any, to the fraction of training done."""
        _advance(self.criterion, progress)


def _ignoring(loss: Loss, index: int) -> nn.Module:
    """The summed loss that leaves this label out; a module of its own must do so by itself."""
    if not isinstance(loss, nn.Module):
        return summed(loss, ignore_index=index)
    found = {getattr(part, "ignore_index", index) for part in loss.modules()}
    if found - {index}:
        raise InputError(
            f"Expected a loss module made with ignore_index={index}, but got {found - {index}}: "
            "labels left out would be counted in the loss. Or give the loss's spec."
        )
    return summed(loss)


def _advance(criterion: nn.Module, progress: float) -> None:
    advance = getattr(criterion, "set_progress", None)
    if advance is not None:
        advance(progress)

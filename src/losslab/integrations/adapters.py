"""Any loss under the signatures that fairseq and torchtune call.

criterion = FairseqCriterion("smoothed(encouraging, amount=0.1)", padding_idx=1)
loss, sample_size, log = criterion(model, sample)

loss = TorchtuneLoss("expectation")                # DFT
value = loss(logits, labels)                       # logits may come in chunks
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
        options = {} if isinstance(loss, nn.Module) else {"ignore_index": padding_idx}
        self.criterion = summed(loss, **options)
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
        """Loss a unit of ``sample_size``, in bits as fairseq prints it, over several logs."""
        logs = list(logs)
        size = sum(log["sample_size"] for log in logs)
        total = float(sum(log["loss"] for log in logs))
        return {"loss": total / size / math.log(2), "sample_size": size}

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Whether workers may add their logs up before they are aggregated."""
        return True


class TorchtuneLoss(nn.Module):
    """A loss of tokens as torchtune's recipes call it: ``loss(logits, labels)``, a mean.

    Labels are shifted already, as the recipes do; logits ``(rows, length, vocabulary)`` may come as
    a list of chunks along ``length``, which are done one after another, so that only one is in
    float32 at a time (``num_output_chunks``, ``set_num_output_chunks`` of the model).

    Args:
        loss: A spec, a ψ of your own, or a loss module with ``reduction="sum"``.
        num_output_chunks: How many chunks the model is to make.
        ignore_index: Labels that are no tokens.
    """

    def __init__(
        self, loss: Loss = "expectation", num_output_chunks: int = 8, ignore_index: int = -100
    ) -> None:
        super().__init__()
        options = {} if isinstance(loss, nn.Module) else {"ignore_index": ignore_index}
        self.criterion = summed(loss, **options)
        self.num_output_chunks, self.ignore_index = num_output_chunks, ignore_index

    def forward(self, logits: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        """The mean over the labels that are not ignored; 0 where all are."""
        chunks = logits if isinstance(logits, list) else [logits]
        parts = labels.split([chunk.shape[1] for chunk in chunks], dim=1)
        values = [
            self.criterion(chunk.flatten(0, -2).float(), part.flatten())
            for chunk, part in zip(chunks, parts, strict=True)
        ]
        count = (labels != self.ignore_index).sum().clamp_min(1)
        return torch.stack(values).sum() / count

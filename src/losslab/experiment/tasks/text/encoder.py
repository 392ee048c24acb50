"""Pretrained encoders of Hugging Face's `transformers`, as classifiers of sentences and pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losslab.experiment.tasks.text.hugging_face import (
    Pretrained,
    loading,
    silently,
    tokenizer_of,
    transformers_library,
)
from losslab.experiment.tasks.text.sequences import lengths_of, trimmed

_AT_ONCE = 1024  # texts that are tokenised together
_PIECE = 500  # examples that are answered together: as many as analyses ask of at once


class Encoder(nn.Module):
    """A classifier of `transformers` that takes one int64 tensor ``(examples, channels, length)``.

    The channels are the tokeniser's arrays of those ``names``. What is padding in all examples is
    cut off; of many examples, in pieces of 500, so examples in the order of their lengths are
    answered faster.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)
        self.mask = self.names.index("attention_mask")

    def forward(self, inputs: Tensor) -> Tensor:
        # consecutive pieces, so that what passes a layer keeps the order of the examples
        answers = [self._answer(part) for part in inputs.split(_PIECE)]
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _answer(self, inputs: Tensor) -> Tensor:
        inputs = trimmed(inputs, lengths_of(inputs[:, self.mask] != 0))
        channels = dict(zip(self.names, inputs.unbind(1), strict=True))
        logits: Tensor = self.network(**channels).logits
        return logits


def tokens(
    model: Pretrained, texts: Sequence[tuple[str, ...]], length: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Texts or pairs of them as the model's own tokeniser has them, cut and padded to ``length``.

    Returns:
        int64 ``(texts, channels, length)``, and the channels' names.
    """
    tokenizer = tokenizer_of(model)
    pieces: list[Tensor] = []
    names: tuple[str, ...] = ()
    for start in range(0, len(texts), _AT_ONCE):
        columns = [list(column) for column in zip(*texts[start : start + _AT_ONCE], strict=True)]
        with silently():
            arrays = tokenizer(
                *columns,
                truncation=True,
                max_length=length,
                padding="max_length",
                return_attention_mask=True,
                return_tensors="pt",
            )
        names = tuple(sorted(arrays))
        pieces.append(torch.stack([arrays[name] for name in names], dim=1))
    return torch.cat(pieces), names


def fresh_encoder(model: Pretrained, classes: int, names: Sequence[str]) -> Encoder:
    """The pretrained model with a head of its own for so many classes.

    What the checkpoint does not hold, the head as a rule, is drawn from torch's generator.
    """
    return Encoder(_load(model, classes)[0], names)


def describe_weights(model: Pretrained, classes: int) -> dict[str, Any]:
    """A sha256 of the weights that were read, and the names of those drawn at random."""
    with torch.random.fork_rng(devices=[]):
        network, fresh = _load(model, classes)
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name not in fresh:
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {"weights_sha256": digest.hexdigest(), "from_the_seed": fresh}


def _load(model: Pretrained, classes: int) -> tuple[nn.Module, list[str]]:
    """The network in float32, and the names of the weights that the checkpoint does not hold."""
    transformers = transformers_library()
    tokenizer = tokenizer_of(model)
    with loading(model), silently():
        network, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            model.place,
            num_labels=classes,
            ignore_mismatched_sizes=True,
            local_files_only=model.local,
            output_loading_info=True,
        )
    if network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id
    others = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    return network.float(), sorted({*report["missing_keys"], *others})

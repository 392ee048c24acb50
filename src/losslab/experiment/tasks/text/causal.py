"""Language models that continue a text: pretrained ones, and a small GPT-2 that knows nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.experiment.tasks.text.hugging_face import (
    Pretrained,
    loading,
    pretrained,
    silently,
    tokenizer_of,
    transformers_library,
)
from losslab.experiment.tasks.text.subwords import END, PAD, START, fit_subwords

TINY = "tiny-gpt2"
TINY_VOCABULARY, TINY_LENGTH = 4000, 256
_TINY = {"n_embd": 128, "n_layer": 2, "n_head": 4}


class CausalModel(nn.Module):
    """A language model of `transformers` as ``(tokens, mask)`` -> logits of each next token."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        tokens, mask = inputs
        logits: Tensor = self.network(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        return logits


@dataclass(frozen=True)
class Language:
    """A model with its tokens.

    Args:
        name: For the description.
        model: Makes a fresh one.
        encode: Texts to token numbers; of prompts with the tokens that the tokeniser puts before.
        end: The token that ends a text.
        size: How many logits a token has.
        longest: Most tokens of a text that the model can take.
        facts: What else decides the numbers.
    """

    name: str
    model: Callable[[], nn.Module]
    encode: Callable[[Sequence[str], bool], list[list[int]]]
    end: int
    size: int
    longest: int
    facts: dict[str, Any]


def language(name: str | None, training: Sequence[str]) -> Language:
    """The model of a name or folder; the small GPT-2's tokens are fitted on ``training``."""
    return _tiny(training) if name in (None, TINY) else _pretrained(pretrained(name))


def _tiny(training: Sequence[str]) -> Language:
    subwords = fit_subwords(training, TINY_VOCABULARY)

    def encode(texts: Sequence[str], prompts: bool) -> list[list[int]]:
        pieces = subwords.encode(texts)
        return [[START, *row] for row in pieces] if prompts else pieces

    return Language(
        name=TINY,
        model=partial(tiny_gpt2, subwords.size),
        encode=encode,
        end=END,
        size=subwords.size,
        longest=TINY_LENGTH,
        facts={"tokens": f"sentencepiece BPE of the training texts (sha256 {subwords.sha256})"},
    )


def tiny_gpt2(vocabulary: int) -> CausalModel:
    """GPT-2 of 2 layers of 128 numbers a token, drawn from torch's generator."""
    transformers = transformers_library()
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=TINY_LENGTH,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        **_TINY,
    )
    with silently():
        return CausalModel(transformers.GPT2LMHeadModel(config))


def _pretrained(model: Pretrained) -> Language:
    tokenizer = tokenizer_of(model)
    with torch.random.fork_rng(devices=[]):
        network, missing = _load(model)
    if missing:
        raise InputError(
            f"model {model.name!r} has no weights for {', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}: it is no language model that continues texts. "
            "Expected one such as gpt2."
        )
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError(
            f"model {model.name!r}: expected a tokeniser with a token that ends a text "
            "(eos_token); it has none. Set it in its folder."
        )
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end

    def encode(texts: Sequence[str], prompts: bool) -> list[list[int]]:
        with silently():
            rows = tokenizer(list(texts), add_special_tokens=prompts)["input_ids"]
        # without a token before it, the first one of a text could not be predicted
        return [row or [start] for row in rows] if prompts else rows

    return Language(
        name=model.name,
        model=partial(_fresh, model),
        encode=encode,
        end=end,
        size=network.get_output_embeddings().weight.shape[0],
        longest=int(getattr(network.config, "max_position_embeddings", None) or 2**31),
        facts={"weights_sha256": _sha256(network), "tokens": "the model's own tokeniser"},
    )


def _fresh(model: Pretrained) -> CausalModel:
    return CausalModel(_load(model)[0])


def _load(model: Pretrained) -> tuple[Any, list[str]]:
    """The network in float32, and the names of weights that the checkpoint lacks."""
    transformers = transformers_library()
    with loading(model), silently():
        network, report = transformers.AutoModelForCausalLM.from_pretrained(
            model.place, local_files_only=model.local, output_loading_info=True
        )
    return network.float(), sorted(report["missing_keys"])


def _sha256(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

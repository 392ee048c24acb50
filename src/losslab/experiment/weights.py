"""Files of weights: read without running code, and put into the model that they are of."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from losslab.errors import InputError

SAVE = "save the weights alone, by torch.save(model.state_dict(), FILE)."
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and DataParallel; torch.compile
_GLOBAL = re.compile(r"Unsupported global: GLOBAL (\S+)")


def read_weights(path: Path, remedy: str) -> Any:
    """What a file of weights holds; tensors only, so that it cannot run code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch.save did not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"Expected a file of weights at {path}, but there is none.") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} cannot be read as weights: {_why(error)}; {remedy}") from None


def _why(error: Exception) -> str:
    """In words of our own: torch.load's advise to let a file run its code."""
    text = str(error)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if found := _GLOBAL.search(text):
        what = "a whole model" if found[1].startswith("torch.nn.") else f"an object ({found[1]})"
        return f"it holds {what}, not tensors by name alone, and to load it would run its code"
    if "TorchScript" in text:
        return "it is a TorchScript archive, not tensors by name"
    if "safetensors is not installed" in text:
        return "it is a safetensors file, which needs pip install safetensors"
    return "it is damaged, or not written by torch.save"


def weights_into(model: nn.Module, path: Path) -> nn.Module:
    """``model`` with the weights of a file: a state dict, or one under ``model``/``state_dict``.

    Names may begin with what DistributedDataParallel (``module.``) or torch.compile
    (``_orig_mod.``) puts before them.

    Raises:
        InputError: If the file cannot be read, or holds another model's weights.
    """
    kept = read_weights(path, SAVE)
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(kept, Mapping) and isinstance(kept.get(key), Mapping):
            kept = kept[key]
    if not isinstance(kept, Mapping) or not all(map(torch.is_tensor, kept.values())):
        raise InputError(
            f"Expected {path} to hold weights by name, but it holds a {type(kept).__name__}; {SAVE}"
        )
    fill(model, _unwrapped(kept, model), path)
    return model


def _unwrapped(state: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The weights by the model's own names, where a wrapper has put its own before all of them."""
    own = model.state_dict()
    while state and state.keys() != own.keys():
        prefix = next((p for p in _WRAPPERS if all(k.startswith(p) for k in state)), None)
        if prefix is None or all(name.startswith(prefix) for name in own):
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def fill(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Give ``model`` the weights of a file.

    Raises:
        InputError: If they are those of another model.
    """
    own = model.state_dict()
    lacking, strange = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if lacking or strange:
        raise InputError(
            f"{path} holds the weights of another model: "
            + "; ".join(
                f"{what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
                for what, names in (("it lacks", lacking), ("the model has no", strange))
                if names
            )
            + ". Name the model that it was trained with."
        )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise InputError(
                f"{path} holds the weights of another model: {name} is "
                f"{tuple(state[name].shape)} there, {tuple(value.shape)} in the model. Name the "
                "model that it was trained with."
            )
    model.load_state_dict(state)

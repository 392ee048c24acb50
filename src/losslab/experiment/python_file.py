"""A user's own Python file: run as a module, and its mistakes told in one line.

Tasks (`losslab.experiment.tasks.python_file`) and losses (`losslab.experiment.own_loss`) come so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from losslab.errors import InputError, nearest

MODULES: set[str] = set()  # the names of those loaded, which nothing can import


def load(path: Path) -> ModuleType:
    """Run the file as a module of its own name; importing it twice runs it twice."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # stays: model() and datasets may import neighbours later
        sys.path.insert(0, folder)
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"losslab_file_{path.stem}_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up here
    MODULES.add(spec.name)
    spec.loader.exec_module(module)
    return module


def function_of(path: Path, name: str, wanted: str) -> Callable:
    """What the file calls ``name``: ``wanted`` says in a message what that should be."""
    if not path.is_file():
        raise InputError(f"{path}: no such file. Expected a Python file where {name} is {wanted}.")
    module = guarded(path, lambda: load(path))
    own = [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) or inspect.isclass(value)
        if value.__module__ == module.__name__
    ]
    function = getattr(module, name, None)
    if function is None:
        listing = f" It defines {', '.join(own)}." if own else " It defines no function."
        raise InputError(
            f"{path}: expected {name} to be {wanted}; there is none."
            f"{nearest(name, own)}{listing} Name another one as {path.name}:FUNCTION."
        )
    if not callable(function):
        raise InputError(f"{path}: expected {name} to be {wanted}; it is {kind(function)}.")
    return function


def required(parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    """Those that a call must give."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind not in kinds]


def guarded(path: Path, step: Callable[[], Any]) -> Any:
    """``step()``, with any error of the user's code turned into one line that says where it is."""
    try:
        return step()
    except SyntaxError as error:
        neighbour = Path(error.filename or path).resolve() != path.resolve()
        where = f"{path}: {Path(error.filename or path).name}" if neighbour else str(path)
        raise InputError(f"{where}, line {error.lineno}: {error.msg}.") from error
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        message = " ".join(str(error).split())
        if isinstance(error, InputError):
            message = message.removeprefix(f"{path}: ")
        else:
            message = f"{type(error).__name__}: {message}".rstrip(": ")
        if notes := " ".join(" ".join(getattr(error, "__notes__", ())).split()):
            message = f"{message.rstrip('.')}. {notes}"
        raise InputError(f"{where}: {message}") from error


def kind(value: Any) -> str:
    """What a value is, in a word."""
    return "None" if value is None else f"{type(value).__name__}"

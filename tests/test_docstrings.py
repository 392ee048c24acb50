"""The examples in the docstrings print what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import losslab
from losslab.errors import InputError

SOURCE = Path(losslab.__file__).parent


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


WITH_EXAMPLES = sorted(
    module_name(file) for file in SOURCE.rglob("*.py") if ">>> " in file.read_text()
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name, tmp_path, monkeypatch):
    """Oracle: the output printed in the docstring."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    try:
        module = importlib.import_module(name)
    except (InputError, ModuleNotFoundError) as missing:
        pytest.skip(str(missing))
    assert doctest.testmod(module).failed == 0


def test_there_are_examples():
    """Guards the test above: the list is made from files."""
    assert {"losslab.losses.api", "losslab.metrics", "losslab.parallel"} <= set(WITH_EXAMPLES)

"""What the metrics' pages and docstrings show is so, and their imports stay light."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import losslab.metrics
from losslab import metrics
from losslab.metrics import accumulating, ood

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
FILES = [f"losslab.metrics.{m.name}" for m in pkgutil.iter_modules(losslab.metrics.__path__)]
LIGHT = [name for name in ["losslab.metrics", *FILES] if not name.endswith(".accumulating")]


def test_the_table_names_what_there_is():
    """Oracle: the modules. A function or class that the page forgets, or that is gone, fails."""
    rows = re.findall(r"^\| (`.*?`) \| (`.*?`) \|", PAGE.read_text(), re.M)
    functions = {name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)}
    classes = {name for _, cell in rows for name in re.findall(r"`(\w+)", cell)}
    assert classes == set(accumulating.__all__)
    public = {name for name in metrics.__all__ if name.islower()}
    by_batch = {"diagram", "evaluate_examples", "examples", "joined"}  # a section of their own
    assert all(f"`metrics.{name}" in PAGE.read_text() for name in by_batch)
    told = {"correct", "distribution", "evaluate", "histogram", "ood"}
    assert functions == public - told - by_batch
    measured = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE.read_text().split("## Out of")[1], re.M
    )
    assert re.findall(r"\w+", " ".join(measured)) == [*ood.SCORES, *ood.MEASURES]


@pytest.mark.parametrize("name", FILES)
def test_examples_in_docstrings(name):
    """Oracle: the output printed in the docstring."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", LIGHT)
def test_the_functions_need_torch_alone(name):
    """Oracle: the import statements themselves, lazy ones included."""
    file = importlib.import_module(name).__file__
    allowed = {"torch", "losslab", "__future__"} | set(sys.stdlib_module_names)
    later = ("losslab.analysis", "losslab.experiment", "losslab.report", "losslab.cli")
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for imported in names:
            assert imported.split(".")[0] in allowed, imported
            assert not imported.startswith((*later, "losslab.metrics.accumulating")), imported


@pytest.mark.parametrize("name", [n for n in metrics.__all__ if n != "ood"])
def test_public_names_say_what_they_are(name):
    """Every public function and result has a docstring of its own."""
    thing = getattr(metrics, name)
    assert not callable(thing) or (thing.__doc__ or "").strip()

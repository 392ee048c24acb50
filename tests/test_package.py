"""The package as a whole: what importing it costs, what it exports, and that its examples run."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

import losslab
import losslab.losses
from losslab.losses import stubs

ROOT = Path(__file__).parent.parent
HEAVY = {"scipy", "pandas", "matplotlib", "rich", "typer", "sklearn", "jinja2", "PIL", "pyarrow"}
CORE = [
    "losslab",
    "losslab.errors",
    "losslab.schedules",
    "losslab.logodds",
    *(f"losslab.losses.{m.name}" for m in pkgutil.iter_modules(losslab.losses.__path__)),
]
PUBLIC = [name for name in losslab.__all__ if name not in ("CATALOG", "InputError")]


def modules_after(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after one statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_pulls_in_nothing_but_torch():
    """Oracle: sys.modules of a fresh interpreter, against `import torch` alone. Break: an import of
    numpy, scipy or the laboratory at the top of a core file."""
    alone, ours = modules_after("import torch"), modules_after("import losslab")
    standard_library = set(sys.stdlib_module_names)
    assert ours - alone - standard_library == {"losslab"}
    assert not ours & HEAVY - alone


def test_core_files_import_torch_and_the_standard_library_only():
    """Oracle: the import statements themselves, lazy ones included."""
    allowed = {"torch", "losslab", "__future__"} | set(sys.stdlib_module_names)
    for name in CORE:
        file = importlib.import_module(name).__file__
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively"
                names = [node.module]
            for imported in names:
                assert imported.split(".")[0] in allowed, (name, imported)
                later = ("losslab.metrics", "losslab.experiment", "losslab.report", "losslab.cli")
                assert not imported.startswith(later), (name, imported)


def test_exports():
    """Every name in __all__ exists, once, and the public functions and classes are all in it."""
    assert len(losslab.__all__) == len(set(losslab.__all__))
    for name in losslab.__all__:
        assert getattr(losslab, name) is not None
    for row in losslab.CATALOG.values():
        assert {row.function_name, row.module_name} <= set(losslab.__all__)
    public = {
        name
        for name, value in vars(losslab).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    }
    assert public <= set(losslab.__all__)


@pytest.mark.parametrize("name", CORE)
def test_examples(name):
    """Oracle: the output printed in the docstring."""
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = doctest.testmod(module)
    assert result.failed == 0


def test_there_are_examples_to_run():
    """Guards the test above: doctest must find those of the functions made at import."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    api = importlib.import_module("losslab.losses.api")
    found = {test.name.rpartition(".")[2] for test in finder.find(api) if test.examples}
    assert set(api.__all__) <= found


@pytest.mark.parametrize("name", PUBLIC)
def test_public_docstrings(name):
    """Every public name says in one line what it is, what it takes, and shows an example; what
    computes something gives its formula."""
    thing = getattr(losslab, name)
    text = inspect.getdoc(thing) or ""
    assert text
    assert "Args:" in text or not inspect.signature(thing).parameters
    assert "Example:" in text or ">>>" in text
    says_no_formula = {"SumLoss", "AdjustedLoss", "loss", "phases", "switch", "deferred", "ramp",
                       "deferred_weights", "all_log_odds", "backend_report", "set_backend",
                           "LinearLoss"}  # fmt: skip
    assert "Math:" in text or name in says_no_formula


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_typed(name):
    """Every function and constructor written by hand annotates its arguments."""
    thing = getattr(losslab, name)
    if name in losslab.losses.api.__all__:
        return  # typed in the stub
    made_here = inspect.isclass(thing) and "__init__" in vars(thing)
    function = thing.__init__ if made_here else thing
    for parameter in list(inspect.signature(function).parameters.values()):
        if parameter.name != "self":
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)


def test_stub_is_current():
    """Oracle: the generator. Break: a catalogue row changed without
    `python -m losslab.losses.stubs`."""
    assert stubs.STUB.read_text(encoding="utf-8") == stubs.text()


def test_stub_names_what_is_made():
    """Oracle: the module itself: same names, same arguments."""
    tree = ast.parse(stubs.STUB.read_text(encoding="utf-8"))
    declared = {node.name: node for node in tree.body if hasattr(node, "name")}
    made = importlib.import_module("losslab.losses.api")
    assert set(declared) == set(made.__all__)
    for name, node in declared.items():
        if isinstance(node, ast.ClassDef):
            (node,) = node.body
        arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg != "self"]
        assert arguments == list(inspect.signature(getattr(made, name)).parameters)


def test_version():
    """Oracle: the installed package's metadata."""
    from importlib.metadata import version

    assert losslab.__version__ == version("losslab")


def test_one_version_everywhere():
    """Oracle: each file that names the version. Break: a release that forgets one of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert losslab.__version__ == project["version"]
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == project["version"]
    assert re.search(r"^## ([\d.]+)", changes, re.M)[1] == project["version"]  # the newest first
    assert re.search(r"^license: (.*)$", citation, re.M)[1] == project["license"]


def test_every_dependency_has_its_licence_told():
    """Oracle: pyproject.toml. Break: a dependency that comes, goes or changes its extra while
    docs/licences.md stays; run .ci/licences then."""
    wanted = runpy.run_path(str(ROOT / ".ci" / "licences"))["wanted"]()
    table = (ROOT / "docs" / "licences.md").read_text().partition("## Copyleft")[0]
    rows = re.findall(r"^\| ([\w.-]+) \| [^|]+ \| [^|]+ \| (.+) \|$", table, re.M)
    told = {name: set(re.findall(r"`(\w+)`", extras)) or {""} for name, extras in rows}
    del told["package"]  # the table's head
    assert told == wanted

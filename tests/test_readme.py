"""The README and the docs say what is so.

The ``python`` blocks of a page are run in order, in one namespace and in an empty folder, and
``pycon`` blocks must print what they show. What only sets the stage stands in a comment,
``<!-- python … -->``, which no reader sees.
"""

import doctest
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import losslab
from losslab.experiment.comparison_recipe import read_comparison
from losslab.experiment.recipe import read_recipe
from losslab.experiment.tasks import TaskOptions

PROJECT = Path(__file__).parent.parent
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((PROJECT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(PROJECT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)
_RUN = re.compile(r"^(?:```(python|pycon)|<!-- (python))\n(.*?)^(?:```|-->)$", re.S | re.M)


def fenced(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of one language; "" for those that name none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)
    return [block for name, block in blocks if name == language]


OWN_TEST = {"robustness.md", "store.md"}  # they need a folder of runs, or take long as they are


@pytest.mark.filterwarnings("ignore:.*`tensorboardX` has been removed:UserWarning")  # Lightning
@each_page
def test_code_blocks_run(page, tmp_path, monkeypatch):
    """Oracle: the output that the page shows. A renamed function or argument in its code fails."""
    if page.name in OWN_TEST:
        return
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "page"}
    for language, hidden, block in _RUN.findall(page.read_text()):
        if (language or hidden) == "python":
            exec(compile(block, page.name, "exec"), names)
        else:
            run_console(block, names, page.name)


def run_console(block: str, names: dict, page: str) -> None:
    """A block of ``>>>`` lines; what it defines is there for the blocks below it."""
    told = []
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(block, names, page, page, 0)
    doctest.DocTestRunner(optionflags=options).run(test, out=told.append, clear_globs=False)
    assert not told, "".join(told)
    names.update(test.globs)


@each_page
def test_recipes_on_a_page_can_be_read(page, tmp_path):
    """Oracle: the readers themselves. Break: a key that a page shows and no recipe has. What is
    only a part of a recipe must be TOML whose keys a recipe has."""
    for number, block in enumerate(fenced(page, "toml")):
        keys = tomllib.loads(block)
        if "name" in keys:
            path = tmp_path / f"{number}.toml"
            path.write_text(block)
            (read_comparison if "task" in keys else read_recipe)(str(path), data_dir=tmp_path)
        else:
            known = {field.name for field in fields(TaskOptions)} | {"data"}
            assert keys.keys() <= known, page.name


def test_specs_in_the_table_are_specs():
    """Every spec of the README's table, without the shortened ones, makes a loss."""
    table = (PROJECT / "README.md").read_text().split("| spec |")[1].split("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    specs = [s for cell in first_cells for s in re.findall(r"`([^`]+)`", cell) if "…" not in s]
    assert len(specs) > 12
    for spec in specs:
        losslab.loss(spec)


@each_page
def test_links_lead_somewhere(page):
    """A moved file, or a heading that was renamed, breaks its links here."""
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@each_page
def test_commands_are_commands(page):
    """Every `losslab …` line of code parses: no option that is not there."""
    import typer

    from losslab.cli.app import app

    root = typer.main.get_command(app)
    code = fenced(page, "") + re.findall(r"(?:^    .*\n)+", page.read_text(), re.M)
    for block in code:
        for line in block.replace("\\\n", " ").splitlines():
            words = (
                shlex.split(line.partition(" #")[0]) if line.strip().startswith("losslab") else []
            )
            if len(words) > 1:
                verb = root.get_command(None, words[1])
                assert verb is not None, line
                verb.make_context(words[1], words[2:])

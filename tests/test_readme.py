"""The README and the docs say what is so."""

import re
import shlex
from pathlib import Path

import pytest

import losslab

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def fenced(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of one language; "" for those that name none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)
    return [block for name, block in blocks if name == language]


OWN_TEST = {"parallel.md", "robustness.md", "store.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page):
    """A renamed function or argument in a page's code fails."""
    if page.name not in OWN_TEST:
        for block in fenced(page, "python"):
            exec(compile(block, page.name, "exec"), {})


def test_specs_in_the_table_are_specs():
    """Every spec of the README's table, without the shortened ones, makes a loss."""
    table = (PROJECT / "README.md").read_text().split("| spec |")[1].split("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    specs = [s for cell in first_cells for s in re.findall(r"`([^`]+)`", cell) if "…" not in s]
    assert len(specs) > 12
    for spec in specs:
        losslab.loss(spec)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    """A moved file breaks its links here."""
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
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

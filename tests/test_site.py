"""The documentation site builds without a warning and holds what it should."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from losslab.losses.catalog import ROWS

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. Oracle of the build: Sphinx, for which every warning is an error."""
    for module in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(module, reason="needs pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, str(DOCS / "site" / "build.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PROJECT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


@each_row
def test_every_loss_has_its_words(row):
    """A loss that is new in the catalogue wants a page: when to use it, and what is known of it."""
    text = (DOCS / "losses" / f"{row.name}.md").read_text()
    title, *sections = re.split(r"^## ", text, flags=re.M)
    assert re.match(r"# .+\n\n\S", title), "a title and a sentence"
    names = [section.splitlines()[0] for section in sections]
    assert names == ["When to use it", "Evidence"]
    use, evidence = sections
    assert len(use.split()) > 25, "when to use it, and when not"
    assert evidence.count("\n| ") >= 2, "a table with at least one line"


def test_the_evidence_is_ours():
    """Oracle: README and docs/reproductions.md. An interval that stands in neither was changed
    there, or was never measured."""
    measured = (PROJECT / "README.md").read_text() + (DOCS / "reproductions.md").read_text()
    for page in (DOCS / "losses").glob("*.md"):
        for interval in re.findall(r"\[[−+][\d.]+, [−+][\d.]+\]", page.read_text()):
            assert interval in measured, (page.name, interval)


def test_no_words_without_a_loss():
    """A loss that was renamed leaves no page behind."""
    assert {page.stem for page in (DOCS / "losses").glob("*.md")} == {row.name for row in ROWS}


@each_row
def test_every_loss_has_its_page(site, row):
    """Oracle: the catalogue's row, and the words of docs/losses."""
    page = (site / "losses" / f"{row.name}.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert row.formula in text
    assert row.source in re.sub(r"\s+", " ", text)
    for identity in row.identities:
        assert str(identity) in text
    for width in ("wide", "narrow"):
        (curves,) = re.findall(rf'<figure class="curves {width}".*?</figure>', page, re.S)
        assert curves.count("<path") > 10 and row.name in curves
    for name in (row.function_name, row.module_name):
        assert f'id="losslab.{name}"' in page
    assert f'href="../losslab-atlas.html#{row.name}"' in page
    assert "When to use it" in text and "Evidence" in text


def test_the_contents_name_every_page(site):
    """No page is out of reach, and the reference has every public name."""
    import losslab

    index = (site / "index.html").read_text()
    for page in DOCS.glob("*.md"):
        assert f'href="{page.stem}.html"' in index or page.stem == "index", page
    defined = {
        name
        for page in [*site.glob("reference/*.html"), *site.glob("losses/*.html")]
        for name in re.findall(r'id="(losslab\.[\w.]+)"', page.read_text())
    }
    assert {f"losslab.{name}" for name in losslab.__all__} <= defined


def test_the_atlas_lies_beside_the_pages(site):
    """Oracle: the atlas's own data. Break: a site whose links to it lead nowhere."""
    assert 'href="losslab-atlas.html#"' in (site / "atlas.html").read_text()
    text = (site / "losslab-atlas.html").read_text()
    assert all(f'"name":"{row.name}"' in text for row in ROWS)


def test_a_page_that_the_index_forgets(monkeypatch):
    """It is in the contents all the same, under More, so that a new page breaks no build."""
    monkeypatch.syspath_prepend(str(DOCS / "site"))
    import stage

    index = "# losslab\n\n## Start\n\n- [Start](start.md): now\n- [Questions](faq.md)\n"
    contents = stage.contents(index, ["start", "faq", "new-page", "index"], ["reference/losslab"])
    first, more, reference = re.findall(r":caption: (.*?)\n\n(.*?)\n```", contents, re.S)
    assert first == ("Start", "start\nfaq") and more == ("More", "new-page")
    assert reference[1].startswith("reference/losslab")


def test_nothing_is_fetched(site):
    """The site works without a network: no script, style or picture comes from elsewhere."""
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text()
        )
        assert not fetched, page


def test_what_sets_the_stage_is_not_shown(site):
    """The comments that the tests run first do not reach the reader."""
    assert "<!-- python" in (DOCS / "integrations.md").read_text()
    assert "TrainingArguments" not in (site / "integrations.html").read_text()

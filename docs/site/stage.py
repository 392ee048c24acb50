"""Copies the pages to where Sphinx reads them, with what GitHub does not need.

Added are the table of contents, which is read from the links of index.md, and pages for files
outside of docs/ that are linked to. SVG pictures are put into the page, where they take the
page's colours.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pictures import inlined

ATLAS = "losslab-atlas.html"  # the page of losslab atlas, in the site's folder
PROJECT = Path(__file__).parent.parent.parent
DOCS = PROJECT / "docs"
_OUTSIDE = re.compile(r"\]\(((?:\.\./)+)([\w./-]+)(#[\w-]+)?\)")
_ITEM = re.compile(r"^- \[[^\]]+\]\((\w[\w-]*)\.md\)", re.M)
_SVG = re.compile(r"^!\[([^\]]*)\]\((figures/[\w-]+\.svg)\)$", re.M)
_FROM_ROOT = re.compile(r"\]\((?!\w+://|#)(docs/)?")
_COMMENT = re.compile(r"^<!--.*?-->\n", re.S | re.M)
_ROOT_PAGES = {"README.md": "readme", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changes"}


def stage(source: Path, *, losses: Sequence[str], reference: Sequence[str]) -> None:
    """Write every page below ``source``, where the loss pages and the reference are already."""
    others = shutil.ignore_patterns("*.md", "site", "losses")  # pictures, and what pages link to
    shutil.copytree(DOCS, source, ignore=others, dirs_exist_ok=True)
    linked: set[str] = set()
    for page in sorted(DOCS.glob("*.md")):
        text = _for_site(page.read_text(), linked, depth=0)
        if page.stem == "index":
            text += contents(page.read_text(), [p.stem for p in DOCS.glob("*.md")], reference)
        if page.stem == "atlas":
            text = text.replace("\n", f"\n{atlas_link('', 'Open the atlas')}\n", 1)
        if page.stem == "losses":
            text += (source / "losses.part").read_text() + _toctree("", losses)
        (source / page.name).write_text(text)
    for name, stem in _ROOT_PAGES.items():
        text = (PROJECT / name).read_text()
        text = _FROM_ROOT.sub(lambda m: "](" if m[1] else "](../", text)
        (source / f"{stem}.md").write_text(_for_site(text, linked, depth=0))
    for page in sorted((source / "losses").glob("*.md")):
        page.write_text(_for_site(page.read_text(), linked, depth=1))
    for path in sorted(linked):
        _write_file_page(source, path, linked)


def atlas_link(root: str, words: str, shown: str = "") -> str:
    """A paragraph that opens the atlas with a loss; HTML, since Sphinx does not know that page."""
    return f'\n<p><a href="{root}{ATLAS}#{shown}">{words}</a></p>\n'


def contents(index: str, pages: Sequence[str], reference: Sequence[str]) -> str:
    """Hidden tables of contents: the sections of index.md, then pages that it does not name."""
    parts, named = [], {"index"}
    for section in index.split("\n## ")[1:]:
        names = _ITEM.findall(section)
        named.update(names)
        if names:
            parts.append(_toctree(section.splitlines()[0], names))
    others = sorted(set(pages) - named)
    if others:
        parts.append(_toctree("More", others))
    parts.append(_toctree("Reference", [*reference, "README <readme>", "contributing", "changes"]))
    return "\n" + "\n".join(parts)


def _toctree(caption: str, names: Sequence[str]) -> str:
    options = f":caption: {caption}\n" if caption else ""
    return (
        "\n```{toctree}\n:hidden:\n:maxdepth: 1\n" + options + "\n" + "\n".join(names) + "\n```\n"
    )


def _for_site(text: str, linked: set[str], *, depth: int) -> str:
    def place(match: re.Match[str]) -> str:
        ups, path, anchor = match[1], match[2].rstrip("/"), match[3] or ""
        if ups.count("..") != depth + 1:
            return match[0]
        if path in _ROOT_PAGES:
            return f"]({'../' * depth}{_ROOT_PAGES[path]}.md{anchor})"
        linked.add(path)
        return f"]({'../' * depth}{file_page(path)}.md)"

    text = _OUTSIDE.sub(place, _COMMENT.sub("", text))
    return _SVG.sub(lambda m: inlined((DOCS / m[2]).read_text(), m[1]), text)


def file_page(path: str) -> str:
    """Where the page of a file or folder of the project is, without suffix."""
    return f"files/{path.replace('/', '-').replace('.', '-')}"


def _write_file_page(source: Path, path: str, linked: set[str]) -> None:
    file = PROJECT / path
    if file.is_dir():
        names = [f"{path}/{f.name}" for f in sorted(file.glob("*.py"))]
        body = "\n".join(f"- [{n}]({PurePosixPath(file_page(n)).name}.md)" for n in names)
        for name in names:
            if name not in linked:
                _write_file_page(source, name, linked)
    else:
        body = f"````{file.suffix.removeprefix('.')}\n{file.read_text()}````"
        body = body.replace("````py\n", "````python\n")
    page = source / f"{file_page(path)}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"---\norphan: true\n---\n\n# {path}\n\n{body}\n")

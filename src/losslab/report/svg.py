"""A matplotlib figure as an SVG fragment that can stand inside an HTML page, or as files.

Several fragments share one page, so every id gets a prefix of its figure's own; namespaces,
metadata (with its date and its web addresses) and page-wide style rules are dropped. The same
figure gives the same bytes.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from losslab.report.style import Style, look

_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline_svg(figure: Figure, *, name: str, title: str) -> str:
    """The figure as ``<svg …>…</svg>``: ids start with ``name``; ``title`` is read aloud."""
    root = ElementTree.fromstring(_rendered(figure))
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        _clean(element, name)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _rendered(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    quiet = logging.getLogger("matplotlib.font_manager")
    level = quiet.level
    with look(), warnings.catch_warnings():
        # A label in a script that the measuring font lacks: the browser has its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        quiet.setLevel(logging.ERROR)
        try:
            FigureCanvasSVG(figure).print_svg(buffer)
        finally:
            quiet.setLevel(level)
    return buffer.getvalue()


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]


def _clean(element: ElementTree.Element, name: str) -> None:
    element.tag = _local(element.tag)
    for part in ("text", "tail"):
        if not (getattr(element, part) or "").strip():
            setattr(element, part, None)
    attributes = {_local(key): value for key, value in element.attrib.items()}
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if attributes.get("href", "").startswith("#"):
        attributes["href"] = f"#{name}-{attributes['href'][1:]}"
    element.attrib.clear()
    for key, value in attributes.items():
        element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))


_SHAPES = {
    "o": '<circle cx="16" cy="6" r="3.4" {paint}/>',
    "s": '<rect x="13" y="3" width="6" height="6" {paint}/>',
    "D": '<path d="M16 1.8 20.2 6 16 10.2 11.8 6Z" {paint}/>',
    "d": '<path d="M16 1.4 18.8 6 16 10.6 13.2 6Z" {paint}/>',
    "^": '<path d="M16 2 20 9.2H12Z" {paint}/>',
    "v": '<path d="M16 10 20 2.8H12Z" {paint}/>',
    "<": '<path d="M12 6 19.2 2V10Z" {paint}/>',
    ">": '<path d="M20 6 12.8 2V10Z" {paint}/>',
    "P": '<path d="M14.7 2h2.6v2.7H20v2.6h-2.7V10h-2.6V7.3H12V4.7h2.7Z" {paint}/>',
    "X": '<path d="M13.6 1.8 16 4.2 18.4 1.8 20.2 3.6 17.8 6 20.2 8.4 18.4 10.2 16 7.8 13.6 10.2 '
    '11.8 8.4 14.2 6 11.8 3.6Z" {paint}/>',
    "p": '<path d="M16 1.8 20 4.7 18.5 9.4H13.5L12 4.7Z" {paint}/>',
    "*": '<path d="M16 1 17.4 4.6 21 4.7 18.2 7 19.2 10.6 16 8.5 12.8 10.6 13.8 7 11 4.7 '
    '14.6 4.6Z" {paint}/>',
}


def swatch(style: Style) -> str:
    """A small picture of a loss's line and marker, to stand beside its name in a table."""
    dash = " ".join(f"{1.6 * length:g}" for length in style.dash[1])
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    paint = f'fill="{style.face}" stroke="{style.color}"'
    return (
        '<svg class="swatch" viewBox="0 0 32 12" aria-hidden="true">'
        f'<path d="M1 6H31" fill="none" stroke="{style.color}" stroke-width="1.8"{pattern}/>'
        f"{_SHAPES[style.marker].format(paint=paint)}</svg>"
    )


def save_figure(figure: Figure, stem: Path) -> Sequence[Path]:
    """``stem``.png and ``stem``.svg; letters are outlines there, so that it needs no fonts."""
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with look(), mpl.rc_context({"svg.fonttype": "path"}):
        figure.savefig(png, dpi=160)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg

"""Our docstrings as reStructuredText: labelled paragraphs, identities, and bars as bars."""

from __future__ import annotations

import re

from losslab.losses import api

_LABELS = "Math|Slope|Shape|Source|Raises|Note|Domain|Needs"
_LABELLED = re.compile(rf"^({_LABELS}): (\S.*)$")
_SECTION = re.compile(r"^([A-Z]\w+( \w+)?:)?$")
_LITERAL = re.compile(r"(``.+?``|`.+?`)")


def process(app, what, name, obj, options, lines):
    """Sphinx's event ``autodoc-process-docstring``: changes ``lines`` in place."""
    if name.rpartition(".")[2] in api.__all__ and not isinstance(obj, type):
        lines[:] = _short(lines, _module_of(name.rpartition(".")[2]))
    lines[:] = [_escaped(line) for line in _code(_paragraphs(lines))]


def signature(app, what, name, obj, options, signature, returns):
    """Sphinx's event ``autodoc-process-signature``: the default of a factory, as Python."""
    return (signature or "").replace("<factory>", "...") or None, returns


def _paragraphs(lines):
    """``Math: …`` with the lines that belong to it becomes one paragraph, ``**Math** …``."""
    kept = []
    inside = None  # what the lines at hand belong to
    for line in lines:
        labelled = _LABELLED.match(line)
        if labelled:
            inside = "label"
            kept += ["", f"**{labelled[1]}:** {labelled[2]}"]
        elif line.strip() == "Identities:":
            inside = "identities"
            kept += ["", "**Identities:**", ""]
        elif not line.strip():
            inside = None
            kept.append(line)
        elif inside == "identities":
            kept.append(f"* ``{line.strip()}``")
        else:
            kept.append(line.strip() if inside == "label" else line)
    return kept


def _code(lines):
    """An indented block after a paragraph is code, as in Markdown; under a section it is not."""
    kept, above = [], ""
    for line in lines:
        starts = line.startswith("    ") and not (kept and kept[-1].strip())
        if starts and not above.startswith(" ") and not _SECTION.match(above):
            kept += ["::", ""]
        kept.append(line)
        above = line if line.strip() else above
    return kept


def _escaped(line):
    """``|∂L/∂z_y|`` is a size, not the name of a substitution; ``−`` may stand before a literal."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = _LITERAL.split(line)
    kept = ""
    for i, part in enumerate(parts):
        glued = i % 2 and kept and kept[-1] in "−·×≥≤="
        kept += "\\ " + part if glued else part if i % 2 else part.replace("|", r"\|")
    return kept


def _module_of(name):
    """The module class beside a function of the catalogue."""
    for row in api.ROWS:
        if name == row.function_name:
            return row.module_name
        if name == row.binary_function_name:
            return row.binary_module_name
    raise KeyError(name)


def _short(lines, module):
    """A function of the catalogue takes what its module takes: said once, there."""
    text = "\n".join(lines)
    summary = text.split("\n\n")[0]
    example = text[text.index("Example:") :].split("\n\nSource:")[0]
    words = f"The function of :class:`losslab.{module}`, which tells its arguments."
    return [*summary.splitlines(), "", words, "", *example.splitlines()]

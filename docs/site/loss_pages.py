"""A page for each loss: its card, curves and docstring around the words of docs/losses/NAME.md."""

from __future__ import annotations

from pathlib import Path

from pictures import loss_curves
from stage import atlas_link

import losslab
from losslab.cli.explain import facts
from losslab.losses.catalog import ROWS, Row
from losslab.losses.explain import card

# Beside cross-entropy and the loss as it is: settings worth a curve.
SHOWN = {
    "mixed": ["mixed(focus=0)", "mixed(focus=0.3)", "mixed(focus=0.4)"],
    "encouraging": [
        "encouraging(log_end=0.5)",
        "encouraging",
        "encouraging(log_end=1)",
        "encouraging(bonus_start=0.5)",
    ],
    "encouraging_power": ["encouraging_power", "encouraging_power(gamma=4)"],
    "focal": ["focal(gamma=1)", "focal", "focal(gamma=5)"],
    "halted_focal": ["focal", "halted_focal"],
    "generalized_cross_entropy": [
        "generalized_cross_entropy(q=0.3)",
        "generalized_cross_entropy",
        "generalized_cross_entropy(truncation=0.3)",
    ],
    "tamed_cross_entropy": ["tamed_cross_entropy", "tamed_cross_entropy(alpha=1)"],
    "mean_squared_error": ["mean_squared_error", "mean_squared_error(mirror=true)"],
}
START = {"exponential": 0.1}  # the smallest p drawn, where a smaller one would flatten the rest

WORDS = Path(__file__).parent.parent / "losses"


def write_losses(source: Path) -> list[str]:
    """All pages, and the part of losses.md that names them, below ``source``; their names."""
    folder = source / "losses"
    folder.mkdir(parents=True)
    for row in ROWS:
        (folder / f"{row.name}.md").write_text(page(row))
    (source / "losses.part").write_text(overview())
    return [f"losses/{row.name}" for row in ROWS]


def page(row: Row) -> str:
    """Title and summary, formula, curves, card; use and evidence; reference and source."""
    head, rest = words(row)
    module = losslab.loss(row.name)
    specs = dict.fromkeys(["cross_entropy", *SHOWN.get(row.name, [row.name])])
    shown = {spec: losslab.loss(spec) for spec in specs}
    title = f"Loss and slope of {row.name} against p"
    curve = loss_curves(shown, row.name, title, start=START.get(row.name, 0.001))
    note = f"\n{row.note}\n" if row.note else ""
    sliders = atlas_link("../", "Move its sliders in the atlas", row.name)
    return (
        f"{head}\n{_formula(row)}\n{curve}\n{sliders}\n{_card(row, module)}\n{note}\n{rest}\n"
        f"{_identities(row)}## Source\n\n{row.source}.\n\n{_reference(row)}"
    )


def words(row: Row) -> tuple[str, str]:
    """Title with summary, and the sections, of docs/losses/NAME.md."""
    head, mark, rest = (WORDS / f"{row.name}.md").read_text().partition("## ")
    return head, mark + rest


def overview() -> str:
    """The table of all losses."""
    lines = [
        "",
        "## All of them",
        "",
        "| loss | formula | slope at p → 0, p → 1 |",
        "|---|---|---|",
    ]
    for row in ROWS:
        found = dict(facts(card(losslab.loss(row.name))))
        slope = found["slope ψ'(a)"].split("  (")[0]
        ends = slope.replace(" for hopeless examples (p → 0)", "").replace(
            " for settled ones (p → 1)", ""
        )
        formula = row.formula.replace("|", "\\|")
        lines.append(f"| [`{row.name}`](losses/{row.name}.md) | {formula} | {ends} |")
    return "\n".join(lines) + "\n"


def _formula(row: Row) -> str:
    aliases = (
        f"\n\nAlso: {', '.join(f'`{alias}`' for alias in row.aliases)}." if row.aliases else ""
    )
    parameters = ", ".join(p.shown for p in row.parameters)
    spec = f"{row.name}({parameters})" if parameters else row.name
    formula = f"```{{code-block}} none\n:class: formula\n\n{row.formula}\n```\n"
    return f"{formula}\nSpec: `{spec}`{aliases}\n"


def _card(row: Row, module: object) -> str:
    """The numbers of `losslab explain`, as a table."""
    skipped = {"formula", "identity", "note", "source"}
    rows = [(name, value) for name, value in facts(card(module)) if name not in skipped]
    cells = (f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)
    return "\n".join([f"| `losslab explain {row.name}` | |", "|---|---|", *cells]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def _identities(row: Row) -> str:
    if not row.identities:
        return ""
    return "## Identities\n\n" + "".join(f"- `{i}`\n" for i in row.identities) + "\n"


def _reference(row: Row) -> str:
    names = [("autofunction", row.function_name), ("autoclass", row.module_name)]
    if row.psi:
        names += [
            ("autofunction", row.binary_function_name),
            ("autoclass", row.binary_module_name),
        ]
    body = "\n".join(f".. {kind}:: losslab.{name}\n" for kind, name in names)
    return f"## Reference\n\n```{{eval-rst}}\n{body}```\n"

"""What a comparison leaves for people: a table in the terminal and one HTML file.

`write_report` draws the page from a run folder, `print_table` prints a summary; `print_findings`,
`print_one_model` and `write_findings` show what analyses found. The figures are in
`losslab.report.figures` and `losslab.report.analyses.figures`. Names are loaded when first used,
since matplotlib takes its time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from losslab.report.analyses.one_model import write_findings
    from losslab.report.analyses.terminal import print_findings, print_one_model
    from losslab.report.html import write_report
    from losslab.report.terminal import print_table

__all__ = ["print_findings", "print_one_model", "print_table", "write_findings", "write_report"]

_HOMES = {
    "print_findings": "analyses.terminal",
    "print_one_model": "analyses.terminal",
    "print_table": "terminal",
    "write_findings": "analyses.one_model",
    "write_report": "html",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"losslab.report.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a comparison leaves for people: a table in the terminal and one HTML file.

`write_report` draws the page from a run folder, `print_table` prints a summary; the figures are in
`losslab.report.figures`. Names are loaded when first used, since matplotlib takes its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from losslab.report.html import write_report
    from losslab.report.terminal import print_table

__all__ = ["print_table", "write_report"]


def __getattr__(name: str) -> Any:
    if name == "write_report":
        from losslab.report.html import write_report

        return write_report
    if name == "print_table":
        from losslab.report.terminal import print_table

        return print_table
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

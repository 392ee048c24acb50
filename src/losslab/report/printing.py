"""Text for a terminal: labels are never markup, signs always encodable."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from losslab.report.verdicts import Verdict

_ASCII = str.maketrans(
    {
        "\u00a0": " ",
        "–": "-",
        "−": "-",
        "±": "+-",
        "≈": "~",
        "…": "...",
        "×": "x",
        "’": "'",
        "·": ".",
        "½": "1/2",
        "→": "->",
        "≥": ">=",
        "ε": "eps",
        "Σ": "Sigma",
        "∂": "d",
        "∇": "grad ",
        "‖": "|",
        "∞": "inf",
        "ψ": "psi",
        "▲": "+",
        "▼": "-",
        "∅": "x",
    }
)


class Printer:
    """What a console can show: ``unicode``, and with ``ruled`` the rules of tables."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.unicode = console.encoding.lower().replace("-", "").startswith("utf")
        self.ruled = console.is_terminal and self.unicode

    def text(self, content: str, style: str = "") -> Text:
        """The content as it is, or spelled in ASCII."""
        if not self.unicode:
            content = content.translate(_ASCII).encode("ascii", "replace").decode("ascii")
        return Text(content, style=style)

    def symbol(self, shown: Verdict) -> str:
        """A verdict's sign."""
        return shown.symbol if self.unicode else shown.ascii

"""One look per loss over all figures: colour, line style and marker, safe for colour-blind eyes.

Colours are Okabe and Ito's; line style and marker change with them, so that no figure needs colour
to be read. The baseline is always the dark solid line with round dots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl

Dash = tuple[int, tuple[float, ...]]

INK = "#1f2328"
FAINT = "#d8dce1"
GREY = "#b4bbc3"
AXIS = "#8a929c"
BASELINE_COLOR = "#333a42"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C6D1F")
DASHES: tuple[Dash, ...] = (
    (0, ()),
    (0, (5, 1.6)),
    (0, (1.4, 1.4)),
    (0, (6, 1.6, 1.4, 1.6)),
    (0, (3, 1.2, 1.4, 1.2, 1.4, 1.2)),
)
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "*", "d", "p")

LOOK: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "losslab",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": AXIS,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.8,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "path.simplify": True,
}


@contextmanager
def look() -> Iterator[None]:
    """The report's matplotlib settings, while drawing and while saving; restores the user's."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(LOOK)
        yield


@dataclass(frozen=True)
class Style:
    """How one loss is drawn everywhere."""

    color: str
    dash: Dash
    marker: str
    filled: bool = True

    @property
    def face(self) -> str:
        """Fill of the marker: its colour, or white for a control."""
        return self.color if self.filled else "white"

    def line(self) -> dict[str, Any]:
        """Keyword arguments of a line in this style."""
        return {"color": self.color, "linestyle": self.dash}


Looks = Mapping[str, Style]
"""A style for each label."""

BASELINE_STYLE = Style(BASELINE_COLOR, (0, ()), "o")


def styles(labels: Sequence[str], controls: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A style for each label, the first being the baseline.

    ``controls`` maps a control to the loss it controls: it takes that loss's colour and marker,
    hollow and dotted.
    """
    chosen: dict[str, Style] = {}
    plain = [label for label in labels if label not in (controls or {})]
    for i, label in enumerate(plain):
        chosen[label] = BASELINE_STYLE if i == 0 else _numbered(i - 1)
    for control, label in (controls or {}).items():
        parent = chosen.get(label, BASELINE_STYLE)
        chosen[control] = replace(parent, dash=DASHES[2], filled=False)
    return chosen


def _numbered(i: int) -> Style:
    # Steps through colours and dashes together, so that the eighth loss, which meets the first
    # colour again, meets it with another dash and another marker.
    dash = DASHES[(i + i // len(COLORS)) % len(DASHES)]
    return Style(COLORS[i % len(COLORS)], dash, MARKERS[i % len(MARKERS)])


def shortened(label: str, limit: int = 34) -> str:
    """A label cut in its middle to at most ``limit`` characters (ends tell losses apart)."""
    if len(label) <= limit:
        return label
    head = limit // 2
    return f"{label[:head]}…{label[len(label) - (limit - 1 - head) :]}"


def wrapped(label: str, limit: int) -> str:
    """A label on one line, or on two where it is longer than ``limit``; shortened beyond that."""
    if len(label) <= limit:
        return label
    for joints in (" ", ",(_+*/"):
        at = 1 + max(label.rfind(joint, 0, limit) for joint in joints)
        if at > limit // 3:
            break
    else:
        at = limit
    return f"{label[:at].rstrip()}\n{shortened(label[at:].lstrip(), limit)}"

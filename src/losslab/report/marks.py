"""What several figures draw alike: a loss's line, filled and outlined histograms, axis labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter
from numpy.typing import ArrayLike, NDArray

from losslab.report.style import Style

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def marked_line(
    axes: Axes, label: str, x: ArrayLike, y: ArrayLike, style: Style, **more: Any
) -> None:
    """A loss's line with its markers; ``more`` as for ``axes.plot`` goes before the style."""
    look: dict[str, Any] = {
        "linewidth": 1.6,
        "marker": style.marker,
        "markersize": 4.5,
        "markerfacecolor": style.face,
        "label": label,
        **style.line(),
    }
    axes.plot(x, y, **{**look, **more})


def filled(axes: Axes, label: str, density: ArrayLike, edges: ArrayLike, color: str) -> None:
    """A histogram as an area."""
    axes.stairs(density, edges, label=label, fill=True, alpha=0.5, color=color)


def outlined(axes: Axes, label: str, density: ArrayLike, edges: ArrayLike, color: str) -> None:
    """A histogram as a line, to lie over an area."""
    axes.stairs(density, edges, label=label, color=color, linewidth=1.1)


def without_scale(axes: Axes) -> None:
    """No scale on the left: of a density the shape says it all."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def spread(row: int, count: int) -> NDArray[np.float64]:
    """Heights for dots under a row: by the golden ratio, so that equal numbers stay several."""
    return np.asarray(row + 0.13 + 0.2 * np.mod(np.arange(count) * 0.618034, 1.0))


class PowersOfTen(Formatter):
    """Labels of a logarithmic scale, all in one manner: ``0.01, 1`` or ``10⁻⁸, 10⁰``.

    Example:
        >>> PowersOfTen().format_ticks([0.01, 1, 100]), PowersOfTen().format_ticks([1e-8, 1])
        (['0.01', '1', '100'], ['10⁻⁸', '10⁰'])
    """

    def __call__(self, value: float, position: int | None = None) -> str:
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        if all(1e-3 <= value < 1e5 for value in values):
            return [f"{value:g}" for value in values]
        powers = [round(float(np.log10(value))) for value in values]
        return [f"10{str(power).translate(_SUPERSCRIPT)}" for power in powers]

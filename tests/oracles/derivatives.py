"""Numerical derivatives that need no knowledge of the function's form.

`complex_step` is exact to rounding but needs a function that accepts complex numbers, as the
losses of this package do. `derivative` needs only real values (so it serves any function under
test) and is good to about 1e-10 of the function's scale where the function is smooth within `reach`
of the point; keep kinks farther away than that.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def complex_step(f: Callable[[complex], Any], x: float) -> float:
    """f'(x) = Im f(x + ih)/h with h = 1e-30: nothing is subtracted, so nothing cancels."""
    step = 1e-30
    return float(complex(f(complex(x, step))).imag / step)


def derivative(f: Callable[[float], Any], x: float, reach: float = 0.1) -> float:
    """f'(x) by central differences at shrinking steps, extrapolated to step 0 (Richardson).

    Row i of the table uses the step reach/1.4^i; column j has lost the error terms up to h^(2j).
    The entry that differs least from its two parents is returned (Ridders' rule).
    """
    shrink = 1.4
    table: list[list[float]] = []
    best, best_error = float("nan"), float("inf")
    for i in range(12):
        h = reach / shrink**i
        row = [(float(f(x + h)) - float(f(x - h))) / ((x + h) - (x - h))]
        for j in range(1, i + 1):
            factor = shrink ** (2 * j)
            row.append((factor * row[j - 1] - table[i - 1][j - 1]) / (factor - 1))
            error = max(abs(row[j] - row[j - 1]), abs(row[j] - table[i - 1][j - 1]))
            if error < best_error:
                best, best_error = row[j], error
        table.append(row)
    return best


def second_derivative(f: Callable[[complex], Any], x: float, reach: float = 0.1) -> float:
    """f''(x): `derivative` of the complex-step first derivative."""
    return derivative(lambda at: complex_step(f, at), x, reach)


def gradient(f: Callable[[Array], Any], x: ArrayLike, reach: float = 0.1) -> Array:
    """∂f/∂x_i for a scalar function of an array, one coordinate at a time; the shape of x."""
    point = np.asarray(x, dtype=float)
    slopes = np.empty(point.shape)
    for index in np.ndindex(point.shape):

        def along(value: float, index: tuple[int, ...] = index) -> Any:
            moved = point.copy()
            moved[index] = value
            return f(moved)

        slopes[index] = derivative(along, float(point[index]), reach)
    return slopes


def jacobian(f: Callable[[Array], ArrayLike], x: ArrayLike, reach: float = 0.1) -> Array:
    """∂f_i/∂x_j for a vector function of a vector; of a gradient, this is the Hessian."""
    rows = []
    for i in range(len(np.asarray(f(np.asarray(x, dtype=float))))):

        def component(v: Array, i: int = i) -> Any:
            return np.asarray(f(v))[i]

        rows.append(gradient(component, x, reach))
    return np.array(rows)

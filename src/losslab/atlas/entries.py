"""What the page knows of a loss: its controls, and for each of their positions what ψ does.

Most losses are ψ(a). For every position of the controls the Python function is read once
(``losslab.losses.trace``) and the page runs the same steps; parameters that schedules may drive are
left open as inputs, so their controls cost nothing. Positions whose steps differ in constants alone
share one form. Losses that are no ψ, and what cannot be read, are tabulated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import losslab
from losslab.atlas import controls as c
from losslab.atlas.examples import EXAMPLES, gradients
from losslab.losses import explain
from losslab.losses.catalog import CATALOG, Identity, Row
from losslab.losses.trace import Steps, steps_of
from losslab.schedules import Schedule

Json = dict[str, Any]

# Where tables are made, and where the page draws: all p in thousandths, and log-odds.
P = torch.arange(1, 1000, dtype=torch.float64) / 1000
A = torch.arange(-240, 241, dtype=torch.float64) / 20


@dataclass
class Forms:
    """Steps with holes for the constants that differ between positions."""

    known: dict[Any, int] = field(default_factory=dict)

    def cell(self, steps: Steps) -> tuple[float, ...]:
        """The number of the form of these steps, then their constants in order."""
        constants = [_finite(x) for _, used in steps for x in used if isinstance(x, float)]
        form = tuple((name, *(_slot(x) for x in used)) for name, used in steps)
        return self.known.setdefault(form, len(self.known)), *constants

    def written(self) -> list[list[list[Any]]]:
        return [[list(step) for step in form] for form in self.known]


def _slot(operand: int | float) -> int | None:
    """A value's number, or None for a constant."""
    return operand if isinstance(operand, int) else None


def _finite(x: float) -> float:
    """JSON has no infinity; log-odds are compared with it (log_end=1), and this is as far."""
    return max(-sys.float_info.max, min(x, sys.float_info.max))


def catalogue(forms: Forms, also: dict[str, dict[str, list[c.Stop]]]) -> list[Json]:
    """One entry for each loss of the catalogue (two, where its parameters can be given two ways).

    Args:
        forms: collects the forms of all entries.
        also: values that must be among the stops, by loss and parameter.
    """
    return [
        _entry(row, way, forms, also.get(row.name, {}))
        for row in CATALOG.values()
        for way in c.ways_of(row)
    ]


def given(spec: str, forms: Forms) -> Json:
    """An entry without controls for any other spec: sums, wrapped losses."""
    loss = losslab.loss(spec)
    name = str(loss.spec)
    return {
        **{"name": name, "title": name, "spec": name, "controls": [], "identities": []},
        **{"formula": "", "about": "", "note": "", "source": ""},
        **_positions([loss], [_steps_of(loss)], forms),
    }


def _entry(row: Row, way: tuple[str, ...], forms: Forms, also: dict[str, list[c.Stop]]) -> Json:
    shown = c.controls_of(row, way, also)
    inputs = _open_inputs(row, shown)
    gridded = [control for control in shown if control.parameter.name not in inputs]
    settings = list(_settings(gridded))
    if row.rows is None:
        steps, losses = [_steps(row, values, inputs) for values in settings], []
    else:  # a loss of several classes, which may be a ψ(a) all the same
        losses = [getattr(losslab, row.module_name)(**values) for values in settings]
        steps = [_steps_of(loss) for loss in losses]
    return {
        "name": row.name,
        "title": row.name if len(c.ways_of(row)) == 1 else f"{row.name} ({', '.join(way)})",
        "module": row.module_name,
        "controls": [_control(control, inputs) for control in shown],
        "formula": row.formula,
        "about": row.documentation.split("\n")[0].replace("``", ""),
        "note": row.note,
        "source": row.source,
        "identities": [_identity(identity) for identity in row.identities],
        **_positions(losses, steps, forms),
    }


def _open_inputs(row: Row, shown: list[c.Control]) -> list[str]:
    """Parameters that reach ψ as they are and that its steps can leave open."""
    names = [k.parameter.name for k in shown if k.parameter.name in row.dynamic]
    values = {k.parameter.name: k.start for k in shown}
    arguments = row.resolve({p.name: values.get(p.name) for p in row.parameters})
    names = [name for name in names if arguments.get(name) == values[name]]
    return names if names and _steps(row, values, names) is not None else []


def _settings(gridded: list[c.Control]) -> Iterator[dict[str, c.Stop]]:
    """Every position of these controls; the last moves fastest."""
    names = [control.parameter.name for control in gridded]
    for stops in product(*(control.stops for control in gridded)):
        yield dict(zip(names, stops, strict=True))


def _arguments(row: Row, values: dict[str, Any]) -> dict[str, Any]:
    return row.resolve({p.name: values.get(p.name, p.default) for p in row.parameters})


def _steps(row: Row, values: dict[str, Any], inputs: list[str]) -> Steps | None:
    arguments = _arguments(row, {k: v for k, v in values.items() if k not in inputs})
    psi = row.psi
    assert psi is not None

    def opened(a: Tensor, *more: Tensor) -> Tensor:
        return psi(a, **{**arguments, **dict(zip(inputs, more, strict=True))})

    return steps_of(opened, 1 + len(inputs))


def _steps_of(loss: nn.Module) -> Steps | None:
    psi, is_psi = explain.odds_function(loss)
    return steps_of(psi) if is_psi else None


def _positions(losses: list[nn.Module], steps: list[Steps | None], forms: Forms) -> Json:
    """Cells without repetition, and which one each position has; tables where steps are missing."""
    if all(found is not None for found in steps):
        cells: dict[Any, int] = {}
        grid = [cells.setdefault(forms.cell(found), len(cells)) for found in steps if found]
        return {"isPsi": True, "cells": [list(cell) for cell in cells], "grid": grid}
    is_psi = all(explain.odds_function(loss)[1] for loss in losses)
    return {"isPsi": is_psi, "tables": [_table(loss) for loss in losses]}


def _table(loss: nn.Module) -> Json:
    psi, _ = explain.odds_function(loss)
    at = {"p": torch.logit(P), "a": A}
    found = {name: explain.value_and_slope(psi, a) for name, a in at.items()}
    return {name: [_rounded(value), _rounded(slope)] for name, (value, slope) in found.items()} | {
        "gradients": [_rounded(gradients(loss, example)) for example in EXAMPLES]
    }


def _rounded(x: Tensor) -> list[float]:
    return [float(f"{v:.9g}") for v in x.tolist()]


def _control(control: c.Control, inputs: list[str]) -> Json:
    parameter = control.parameter
    return {
        "name": parameter.name,
        "meaning": parameter.meaning,
        "domain": parameter.domain,
        "stops": list(control.stops),
        "start": control.start,
        "default": parameter.default,
        "input": inputs.index(parameter.name) if parameter.name in inputs else None,
    }


def _identity(identity: Identity) -> Json:
    """The identity's text, and its two sides as losses and settings."""
    return {
        "text": str(identity),
        "left": settings_of(losslab.loss(identity.spec)),
        "right": settings_of(losslab.loss(identity.equals)),
    }


def settings_of(loss: nn.Module) -> Json | None:
    """Name and parameters of a loss of the catalogue; None for sums, wrappers and schedules."""
    row, parameters = getattr(loss, "row", None), getattr(loss, "parameters_given", {})
    if row is None or any(isinstance(value, Schedule) for value in parameters.values()):
        return None
    return {"name": row.name, "values": {n: v for n, v in parameters.items() if v is not None}}

"""``losslab explain``: a loss's card and its curves."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn

    from losslab.losses.explain import Card

_SUFFIXES = (".png", ".svg", ".pdf")
_SCHEDULES = ("phases(", "switch(", "deferred(", "ramp(")


def explain(
    specs: Annotated[
        list[str],
        typer.Argument(
            metavar="[LABEL:]LOSS...", help="Losses: see losslab losses; or your own, FILE.py:NAME"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to draw: .png, .svg or .pdf; default losslab-SPEC.png"),
    ] = None,
    figure: Annotated[bool, typer.Option(help="Draw the curves.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of cards.")] = False,
) -> None:
    """Print a loss's card and draw loss and |∂L/∂z_y| against p, the probability of the true class.

    Several losses are drawn into one figure.

    Examples:

        losslab explain 'encouraging(log_end=0.5)'
        losslab explain cross_entropy 'encouraging(log_end=0.5)' 'encouraging(log_end=1, eps=0)'
        losslab explain 'mixed(focus=0.3)' --no-figure
        losslab explain cross_entropy my_loss.py:late
    """
    from losslab.cli.losses import label_and_loss
    from losslab.errors import InputError

    if out is not None and out.suffix not in _SUFFIXES:
        raise InputError(f"--out must end in {', '.join(_SUFFIXES)}; got {out}.")
    named = [label_and_loss(text) for text in specs]
    modules = [loss_of(spec) for _, spec in named]
    cards = [card_of(spec, module) for (_, spec), module in zip(named, modules, strict=True)]
    names = [label or card.spec for (label, _), card in zip(named, cards, strict=True)]
    if len(set(names)) < len(names):
        raise InputError(f"Two of {', '.join(names)} have one name; give one a label, LABEL:LOSS.")
    if not as_json and any(schedule in spec for spec in specs for schedule in _SCHEDULES):
        typer.echo("A schedule is shown as it starts, at progress 0.\n")
    if as_json:
        printed = [{"label": n, **_jsonable(c)} for n, c in zip(names, cards, strict=True)]
        typer.echo(json.dumps(printed, ensure_ascii=False, indent=1))
    else:
        typer.echo("\n\n".join(text(c, n) for n, c in zip(names, cards, strict=True)))
    if figure:
        path = out or Path(f"losslab-{_slug('-'.join(names))}.png")
        draw(dict(zip(names, modules, strict=True)), path)
        typer.echo(f"\nCurves: {path}", err=as_json)


def loss_of(spec: str) -> nn.Module:
    """The loss that a spec names, or a user's ``FILE.py:NAME``."""
    import losslab
    from losslab.experiment.own_loss import is_own_loss, own_loss

    return own_loss(spec)() if is_own_loss(spec) else losslab.loss(spec)


def card_of(spec: str, loss: nn.Module) -> Card:
    """The card of what `loss_of` gives; a loss of the user's own is called as its place is."""
    from losslab.errors import InputError
    from losslab.experiment.own_loss import is_own_loss
    from losslab.losses.explain import card

    if not is_own_loss(spec):
        return card(loss)
    try:
        return replace(card(loss), spec=spec)
    except TypeError:  # no single rows to look at
        raise InputError(
            f"{spec}: expected a ψ(a) or a losslab module to explain, got what answers one number "
            "for a whole batch; losslab compare takes it as it is."
        ) from None


def text(card: Card, name: str) -> str:
    """The card as lines of text, under its loss's name and, where that is another, its spec."""
    heading = name if name == card.spec else f"{name}: {card.spec}"
    return "\n".join([heading, *(f"  {name:<16} {value}" for name, value in facts(card))])


def facts(card: Card) -> list[tuple[str, str]]:
    """The card as names and values, in words."""
    unit = "" if card.is_psi else "  (on two classes: not a function of p alone)"
    rows = [
        ("formula", card.formula),
        ("slope ψ'(a)", f"{_n(card.slope_hopeless)} for hopeless examples (p → 0), "
         f"{_n(card.slope_settled)} for settled ones (p → 1){unit}"),
        ("values", f"{_n(card.lower_bound)} to {_n(card.upper_bound)}"
         f" ({'bounded' if card.bounded else 'unbounded'})"),
        ("convex in a", _yes(card.convex)),
        ("calibrated", f"{_yes(card.calibrated)} (binary classification calibration)"),
        ("|∂L/∂z_y| peaks", f"at p = {card.peak:.3g}, where it is {_n(card.peak_slope)}"),
        ("gradient volume", _volume(card)),
    ]  # fmt: skip
    rows += [("parameter", f"{n} in {domain}: {meaning}") for n, domain, meaning in card.parameters]
    rows += [("identity", identity) for identity in card.identities]
    rows += [
        (name, value) for name, value in (("note", card.note), ("source", card.source)) if value
    ]
    return rows


def draw(losses: dict, path: Path) -> None:
    """Loss and |∂L/∂z_y| against p for each module, into one file."""
    import torch

    from losslab.losses.explain import curves
    from losslab.report.figures import loss_shapes

    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    shapes = {spec: (p, *curves(module, p)) for spec, module in losses.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    loss_shapes(shapes).savefig(path, dpi=150)


def _volume(card: Card) -> str:
    if card.volume is None:
        return "not defined (not a function of p alone)"
    return f"V = {_n(card.volume)}, {_n(card.volume_ratio or 0)} × that of cross-entropy"


def _n(x: float) -> str:
    """A number, short; no −0."""
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    return f"{x + 0.0:.4g}" if abs(x) > 1e-12 else "0"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _jsonable(card: Card) -> dict:
    values = {**asdict(card), "bounded": card.bounded}
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:80]

"""The templates of the pages, and what they all need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from losslab.report.style import Style
from losslab.report.svg import swatch


def fill(template: str, **given: Any) -> str:
    """A template of this folder, filled; what is given is escaped where it is not markup."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": breakable, "unbroken": unbroken}
    return environment.get_template(template).render(given)


def _source(name: str) -> str:
    return resources.files("losslab.report").joinpath(name).read_text(encoding="utf-8")


def breakable(label: str) -> Markup:
    """A label that may break over lines after an underscore or other joint, escaped."""
    joints = re.split(r"(?<=[_(,+*/])", label)
    return Markup("<wbr>").join(part for part in joints if part)


def unbroken(heading: str) -> str:
    """A heading that does not break before its unit, or inside ``ε 0.3`` and ``p > ½``."""
    return re.sub(r"(?<=[ε<>]) |(?<=,) (?=\S+$)| (?=[<>])", "\u00a0", heading)


def swatches(looks: Mapping[str, Style]) -> dict[str, Markup]:
    """The small picture of each label's line."""
    return {label: Markup(swatch(style)) for label, style in looks.items()}

"""The atlas as one HTML file that opens anywhere and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

import losslab
from losslab.atlas import controls as c
from losslab.atlas.distributions import of_comparison
from losslab.atlas.entries import A, Forms, P, catalogue, given, settings_of
from losslab.atlas.examples import EXAMPLES, log_odds_and_direction
from losslab.metrics.odds import BANDS

SHOWN = ("cross_entropy", "encouraging", "mixed(focus=0.3)", "focal")
_SCRIPTS = ("steps", "expression", "npz", "losses", "chart", "page")


def write_atlas(path: Path, specs: Sequence[str] = SHOWN, folders: Sequence[Path] = ()) -> Path:
    """Write the page.

    Args:
        path: the file to write.
        specs: losses that it shows when it opens; sums and wrapped losses are added to its list.
        folders: comparisons whose runs' log-odds it offers.

    Raises:
        InputError: a spec that names no loss, a folder without finished runs.

    Example:
        >>> from losslab.atlas import write_atlas
        >>> write_atlas(Path("atlas.html"), ["cross_entropy", "focal(gamma=3)"])  # doctest: +SKIP
        PosixPath('atlas.html')
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(atlas_data(specs, folders)), encoding="utf-8")
    return path


def atlas_data(specs: Sequence[str] = SHOWN, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Everything the page shows, as JSON."""
    forms = Forms()
    losses = [losslab.loss(spec) for spec in specs]
    shown = [settings_of(loss) or {"name": str(loss.spec), "values": {}} for loss in losses]
    others = dict.fromkeys(e["name"] for e in shown if e["name"] not in losslab.CATALOG)
    entries = catalogue(forms, _extra_stops(shown)) + [given(spec, forms) for spec in others]
    return {
        "version": losslab.__version__,
        "p": P.tolist(),
        "a": A.tolist(),
        "bands": list(BANDS),
        "losses": entries,
        "forms": forms.written(),
        "examples": [_example(example) for example in EXAMPLES],
        "runs": [run for folder in folders for run in of_comparison(folder)],
        "shown": shown,
    }


def _extra_stops(shown: list[dict[str, Any]]) -> dict[str, dict[str, list[c.Stop]]]:
    """Values that a spec asks for and that no slider would stop at."""
    extra: dict[str, dict[str, list[c.Stop]]] = {}
    for entry in shown:
        for name, value in entry["values"].items():
            extra.setdefault(entry["name"], {}).setdefault(name, []).append(value)
    return extra


def _example(example: Any) -> dict[str, Any]:
    a, direction = log_odds_and_direction(example)
    return {
        "title": example.title,
        "logits": list(example.logits),
        "a": a,
        "p": torch.sigmoid(torch.tensor(a)).item(),
        "direction": direction,
    }


def page(data: dict[str, Any]) -> str:
    """The page with its data, style and scripts in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    scripts = "\n".join(_part(f"{name}.js") for name in _SCRIPTS)
    return (
        _part("atlas.html")
        .replace("/* style */", _part("atlas.css"))
        .replace("{{ version }}", losslab.__version__)
        .replace("/* scripts */", scripts)
        .replace("{{ data }}", text.replace("<", "\\u003c"))
    )


def _part(name: str) -> str:
    return resources.files("losslab.atlas").joinpath(name).read_text(encoding="utf-8")

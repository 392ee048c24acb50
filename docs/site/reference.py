"""The reference: every public name, grouped, from its docstring; and the command line's help."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import losslab
from losslab.losses import api

GROUPS: dict[str, list[str]] = {
    "Any loss": [
        "loss", "OddsLoss", "odds_loss", "BinaryOddsLoss", "binary_odds_loss", "SumLoss",
        "OneVsRestLoss", "SmoothedLoss", "ComplementObjectiveLoss", "CATALOG",
    ],
    "Margins, priors and class weights": [
        "AdjustedLoss", "AdditiveMargin", "LDAMMargin", "LogitAdjustment", "ReweightedLoss",
        "CosineLinear", "LargeMarginLinear", "class_weights", "deferred_weights",
    ],
    "Schedules": ["phases", "switch", "deferred", "ramp", "schedules.Schedule"],
    "The last layer and its loss": ["linear_loss", "LinearLoss", "LinearRows"],
    "Features and fixed centres": [
        "MaxMahalanobisCenterLoss", "max_mahalanobis_center_loss", "mahalanobis_centers",
    ],
    "Log-odds": ["target_log_odds", "all_log_odds", "backend_report", "set_backend"],
    "Errors": ["InputError"],
}  # fmt: skip

PAGES: dict[str, tuple[str, dict[str, list[str] | None]]] = {
    # file: (title, {module: names, or None for its __all__})
    "explain": ("Cards and curves", {
        "losslab.losses.explain": ["card", "Card", "curves", "gradient_volume"],
    }),
    "parallel": ("Split vocabularies", {"losslab.parallel": None}),
    "metrics": ("Metrics", {
        "losslab.metrics": None,
        "losslab.metrics.ood": [
            "detect", "scores", "min_energy", "max_probability", "free_energy", "auroc",
            "fpr_at_tpr", "aupr_in", "aupr_out",
        ],
        "losslab.metrics.accumulating": None,
    }),
    "integrations": ("Integrations", {
        "losslab.integrations.transformers": ["TrainerLoss"],
        "losslab.integrations.lightning": ["LossSchedule"],
        "losslab.integrations.sklearn": ["LossClassifier"],
        "losslab.integrations.boosting": ["BoostingObjective"],
        "losslab.integrations.adapters": ["FairseqCriterion", "TorchtuneLoss"],
    }),
    "experiment": ("Comparisons in Python", {
        "losslab.experiment": None,
        "losslab.experiment.launch": ["Training"],
        "losslab.experiment.checkpoint": ["Checkpoint"],
        "losslab.experiment.statistics": ["compare_paired", "PairedComparison"],
        "losslab.experiment.tasks.build": ["build_task", "task_names", "model_names"],
        "losslab.experiment.tasks.options": ["TaskOptions"],
        "losslab.reading": ["Reading", "TokenReading"],
    }),
    "studies": ("Studies in Python", {
        "losslab.experiment.recipe": ["read_recipe", "Study"],
        "losslab.experiment.study": ["run_study", "Progress"],
        "losslab.experiment.store": ["Store"],
    }),
    "analysis": ("Analyses", {
        "losslab.analysis.analyse": ["request", "analyse"],
        "losslab.analysis.subject": ["Subject"],
        "losslab.analysis.request": ["Request"],
        "losslab.analysis.finding": ["Finding"],
        "losslab.analysis.robustness": ["robustness"],
        "losslab.analysis.attacks": ["Attack", "Attacked"],
        "losslab.analysis.representation": ["retrain_output_layer", "linear_probe"],
        "losslab.analysis.dynamics": ["dynamics", "generalisation"],
        "losslab.analysis.curvature": ["curvature"],
    }),
}  # fmt: skip

DATA = {
    "CATALOG": "Name to ``Row`` of every loss; ``losslab losses`` prints it.",
    "BINS": "Bins of a calibration error, 15 unless told.",
    "BANDS": "Probabilities that part the examples in `gradient_shares`.",
    "METRICS": "The metrics that every run records, by name.",
    "MORE": "Metrics that a task may record beside them.",
}


def write_reference(source: Path) -> list[str]:
    """The pages below ``source``; returns their names in order."""
    folder = source / "reference"
    folder.mkdir(parents=True)
    (folder / "losslab.rst").write_text(losslab_page())
    for file, (title, modules) in PAGES.items():
        text = _heading(title, "=")
        for name, names in modules.items():
            text += _heading(name, "-") + module_section(importlib.import_module(name), names)
        (folder / f"{file}.rst").write_text(text)
    (folder / "command_line.rst").write_text(command_line())
    return [f"reference/{name}" for name in ("losslab", *PAGES, "command_line")]


def losslab_page() -> str:
    """The names of ``losslab`` itself; those of the catalogue's losses are on their own pages."""
    known = {name for names in GROUPS.values() for name in names}
    missing = set(losslab.__all__) - known - set(api.__all__)
    if missing:
        raise SystemExit(f"docs/site/reference.py: no group for {', '.join(sorted(missing))}")
    text = _heading("losslab", "=")
    text += "Each loss's functions and modules are on its :doc:`page <../losses>`.\n\n"
    for group, names in GROUPS.items():
        text += _heading(group, "-")
        text += "".join(_entry("losslab", name, attrgetter(name)(losslab)) for name in names)
    return text


def module_section(module: ModuleType, names: Sequence[str] | None) -> str:
    """A module's own words, then its names."""
    text = f".. automodule:: {module.__name__}\n   :no-members:\n\n"
    for name in module.__all__ if names is None else names:
        thing = getattr(module, name)
        if not inspect.ismodule(thing):
            text += _entry(module.__name__, name, thing)
    return text


_NOT_OURS = "set_fit_request, set_score_request"  # scikit-learn's, on LossClassifier


def _entry(module: str, name: str, thing: object) -> str:
    if inspect.isclass(thing):
        members = (
            "" if issubclass(thing, tuple) else f"   :members:\n   :exclude-members: {_NOT_OURS}\n"
        )
        return f".. autoclass:: {module}.{name}\n{members}\n"
    if callable(thing):
        return f".. autofunction:: {module}.{name}\n\n"
    return f".. py:data:: {module}.{name}\n\n   {DATA[name]}\n\n"


def command_line() -> str:
    """``--help`` of every verb."""
    import typer
    from typer.testing import CliRunner

    from losslab.cli.app import app

    runner, root = CliRunner(), typer.main.get_command(app)
    text = _heading("Command line", "=")
    for verb in sorted(root.commands):  # type: ignore[attr-defined]
        environment = {"TERMINAL_WIDTH": "80", "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
        asked = runner.invoke(app, [verb, "--help"], env=environment, prog_name="losslab")
        shown = asked.output
        text += _heading(f"losslab {verb}", "-") + ".. code-block:: text\n\n"
        text += "\n".join(f"   {line}".rstrip() for line in shown.splitlines()) + "\n\n"
    return text


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n\n"

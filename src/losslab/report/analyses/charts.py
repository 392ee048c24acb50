"""Which function draws the figures of which analysis."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from losslab.report.analyses import charts_from_logits, charts_from_model
from losslab.report.analyses.view import View
from losslab.report.charts import Chart

CHARTS: dict[str, Callable[[View], Iterable[Chart]]] = {
    "margins": charts_from_logits.margins,
    "energies": charts_from_logits.energies,
    "gradients": charts_from_logits.gradients,
    "calibration": charts_from_logits.calibration,
    "generalisation": charts_from_model.generalisation,
    "ood": charts_from_logits.ood,
    "robustness": charts_from_model.robustness,
    "representation": charts_from_model.representation,
    "curvature": charts_from_model.curvature,
    "dynamics": charts_from_model.dynamics,
}

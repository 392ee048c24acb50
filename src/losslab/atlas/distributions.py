"""The log-odds that real runs ended with, for the page to show what each loss would look at."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from losslab.errors import InputError

MOST = 10_000  # log-odds kept of one loss; more are thinned to so many quantiles


def of_comparison(folder: Path) -> list[dict[str, Any]]:
    """Test log-odds of a comparison's finished runs, one distribution a loss, all seeds together.

    Raises:
        InputError: no comparison in the folder, no finished run, a damaged file.
    """
    from losslab.experiment.summary import load_planned

    finished = [run for run in load_planned(folder)[1] if run["status"] == "finished"]
    if not finished:
        raise InputError(f"{folder} has no finished run yet; repeat its command first.")
    labels = dict.fromkeys(r["loss"]["label"] for r in finished)
    return [_pooled(folder, label, finished) for label in labels]


def _pooled(folder: Path, label: str, finished: list[dict[str, Any]]) -> dict[str, Any]:
    import numpy

    from losslab.experiment import records

    runs = [r["run_id"] for r in finished if r["loss"]["label"] == label]
    values = numpy.concatenate([records.load_examples(folder, run)["log_odds"] for run in runs])
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    kept = thinned(values)
    return {
        "title": f"{folder.name}: {label}, {seeds}",
        "count": len(values),
        "values": base64.b64encode(kept.astype("<f4").tobytes()).decode(),
    }


def thinned(values: Any) -> Any:
    """The finite values in order; of too many, quantiles in equal distances."""
    import numpy

    ordered = numpy.sort(values[numpy.isfinite(values)])
    if len(ordered) <= MOST:
        return ordered
    return ordered[((numpy.arange(MOST) + 0.5) * len(ordered) / MOST).astype(int)]

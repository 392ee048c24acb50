"""What a study's runs say: for every model the statistics over data sets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from losslab.errors import InputError
from losslab.experiment import records
from losslab.experiment.across import summarize_across
from losslab.experiment.store import Store
from losslab.experiment.summary import PERCENT, SMALLER_IS_BETTER

FEWEST_DATASETS = 2
Groups = Mapping[tuple[str, str, int], Sequence[Mapping[str, Any]]]
"""The runs of each data set, loss and seed, in the order of the recipe's rates."""


def summarize_study(folder: str | Path) -> dict[str, Any]:
    """Everything that a study's report shows, from its folder, finished or not; ready for JSON.

    For every data set, loss and seed the learning rate is chosen on validation, as the recipe
    says. A diverged run counts for what always answering the commonest class scores. A data set
    some of whose runs are missing is left out, and named.

    Raises:
        InputError: If the folder is no study's, or has too few finished data sets.
    """
    plan, runs = planned_runs(folder)
    recipe = plan["recipe"]
    metric = recipe["statistics"]["metric"]
    models = {}
    for model in recipe["models"]:
        groups = by_rate(plan, runs, model)
        scores, used, lacking = scores_of(plan, groups, model)
        models[model] = {
            "missing": lacking,
            "diverged": _diverged(run for group in groups.values() for run in group),
            "rates": _rates_chosen(plan, groups),
            "across": None
            if len(used) < FEWEST_DATASETS
            else summarize_across(
                scores,
                list(recipe["losses"]),
                recipe["statistics"]["baseline"],
                recipe["statistics"]["margin"],
                datasets=used,
                unit="points" if metric in PERCENT else "",
                scale=100.0 if metric in PERCENT else 1.0,
            ),
        }
    total = sum(len(cell["runs"]) for cell in plan["cells"])
    return {
        "schema": records.SCHEMA,
        "name": plan["name"],
        "title": plan["title"],
        "recipe": recipe,
        "metric": metric,
        "runs": {
            "finished": len(runs),
            "planned": total,
            "seconds": sum(r["seconds"] for r in runs),
        },
        "models": models,
    }


def planned_runs(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`study.json` and the finished runs that belong to it."""
    path = Path(folder) / "study.json"
    if not path.exists():
        raise InputError(
            f"{folder} is not the folder of a study: expected a study.json in it. Folders are "
            "written by losslab study, by default below losslab-studies/."
        )
    plan = records.read_json(path, "repeat the study's command: finished runs are kept.")
    wanted = {run_id for cell in plan["cells"] for run_id in cell["runs"]}
    return plan, [run for run in Store(folder).runs() if run["run_id"] in wanted]


def scores_of(
    plan: Mapping[str, Any], groups: Groups, model: str
) -> tuple[list[Any], list[str], list[str]]:
    """Test scores (data sets, seeds, losses), larger is better; the data sets, those left out."""
    recipe = plan["recipe"]
    table, used, lacking = [], [], []
    for name in _datasets(plan, model):
        rows = [
            [groups.get((name, label, seed), []) for label in recipe["losses"]]
            for seed in recipe["seeds"]
        ]
        if all(len(group) == len(recipe["training"]["rates"]) for row in rows for group in row):
            table.append([[_score(chosen_run(g, recipe), recipe) for g in row] for row in rows])
            used.append(name)
        else:
            lacking.append(name)
    return table, used, lacking


def chosen_run(runs: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of one loss's runs at several rates the one that validation prefers.

    Ties: the lower validation NLL, then the first.
    """
    epoch, by = recipe["selection"]["epoch"], recipe["selection"]["rate"]

    def rank(run: Mapping[str, Any]) -> tuple[float, float]:
        if run["status"] == "diverged":
            return -math.inf, -math.inf
        value = run[f"{epoch}.validation.{by}"]
        return (-value if by in SMALLER_IS_BETTER else value), -run[f"{epoch}.validation.nll"]

    return max(runs, key=rank)


def _score(run: Mapping[str, Any], recipe: Mapping[str, Any]) -> float:
    metric = recipe["statistics"]["metric"]
    if run["status"] == "diverged":
        if metric != "accuracy":
            raise InputError(
                f"a diverged run ({run['dataset']}, {run['loss']}) has no {metric}; take accuracy, "
                "in which it counts for always answering the commonest class."
            )
        return float(run["chance"])
    value = float(run[f"{recipe['selection']['epoch']}.test.{metric}"])
    return -value if metric in SMALLER_IS_BETTER else value


def by_rate(plan: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], model: str) -> Groups:
    """One model's runs by data set, loss and seed."""
    rates = plan["recipe"]["training"]["rates"]
    label_of = {spec: label for label, spec in plan["recipe"]["losses"].items()}
    found: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: rates.index(run["lr"])):
        if run["model"] == model:
            key = run["dataset"], label_of[run["spec"]], run["seed"]
            found.setdefault(key, []).append(run)
    return found


def _datasets(plan: Mapping[str, Any], model: str) -> list[str]:
    return [cell["dataset"] for cell in plan["cells"] if cell["model"] == model]


def _diverged(runs: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many runs of each loss diverged, of those that did."""
    counts: dict[str, int] = {}
    for run in runs:
        if run["status"] == "diverged":
            counts[run["loss"]] = counts.get(run["loss"], 0) + 1
    return counts


def _rates_chosen(plan: Mapping[str, Any], groups: Groups) -> dict[str, dict[str, int]]:
    """How often validation chose each learning rate, by loss."""
    recipe = plan["recipe"]
    rates = recipe["training"]["rates"]
    counts = {label: {f"{rate:g}": 0 for rate in rates} for label in recipe["losses"]}
    for (_, label, _), group in groups.items():
        counts[label][f"{chosen_run(group, recipe)['lr']:g}"] += 1
    return counts

"""Losses at learning rates of their own: `Comparison.rates` and a recipe's [rates]."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from losslab.errors import InputError
from losslab.experiment.comparison_recipe import read_comparison
from losslab.experiment.plan import make_plan
from losslab.experiment.recipe import recipe_names
from losslab.experiment.runner import run
from losslab.experiment.tasks import TaskOptions

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = """\
name = "mine"
title = "Rates"
differs = ["small"]
seeds = [0]

[task]
name = "digits"
epochs = 2

[losses]
"CE" = "cross_entropy"
"CE 2x" = "cross_entropy"
"EL" = "encouraging"

[rates]
"CE 2x" = 2
"EL" = 0.5
"""


@pytest.fixture
def read(tmp_path):
    def read(toml=RECIPE, **options):
        (tmp_path / "mine.toml").write_text(toml, encoding="utf-8")
        return read_comparison(tmp_path / "mine.toml", **options)

    return read


def test_one_loss_at_two_rates_is_two_arms(read, tmp_path):
    """Oracle: the recipe's own numbers, in the plan and in the names of the runs."""
    plan = make_plan(read().comparison(tmp_path / "run"))
    arms = {arm["label"]: arm for arm in plan.configuration["losses"]}
    assert [arms[label]["lr_scale"] for label in ("CE", "CE 2x", "EL")] == [1.0, 2.0, 0.5]
    assert arms["CE"]["spec"] == arms["CE 2x"]["spec"] == "cross_entropy"
    assert len(plan.runs) == 3
    plain = replace(read(), rates={}, losses={"CE": "cross_entropy", "EL": "encouraging"})
    others = make_plan(plain.comparison(tmp_path / "run"))
    assert len(set(plan.runs) & set(others.runs)) == 1  # plain CE is the same run


def test_the_rate_is_the_rate(read, tmp_path):
    """Oracle: the same recipe with the task's rate doubled: its plain CE is our CE at twice the
    rate, to the last bit of the curve. Breaks if the factor is told and not heeded.
    """
    run(read().comparison(tmp_path / "ours"))
    rate = make_plan(read().comparison(tmp_path / "x")).configuration["task"]["optimizer"]["lr"]
    doubled = replace(read(), options=TaskOptions(epochs=2, lr=2 * rate), rates={})
    run(replace(doubled, losses={"CE": "cross_entropy", "EL": "focal"}).comparison(tmp_path / "d"))
    curves = {}
    for folder in ("ours", "d"):
        for path in (tmp_path / folder / "runs").glob("*.json"):
            record = json.loads(path.read_text())
            curves[folder, record["loss"]["label"]] = record["curves"]
    assert curves["ours", "CE 2x"]["lr"] == pytest.approx(curves["d", "CE"]["lr"])
    assert curves["ours", "CE 2x"]["test"] == curves["d", "CE"]["test"]
    assert curves["ours", "CE 2x"]["test"] != curves["ours", "CE"]["test"]


def test_controls_are_matched_to_the_loss_at_its_rate(read, tmp_path):
    """Oracle: the control of a loss at half its rate is at half the rate of the loss's control."""
    recipe = replace(read(), losses={"CE": "cross_entropy", "EL": "encouraging"})
    scales = []
    for rates in ({}, {"EL": 0.5}):
        comparison = replace(replace(recipe, rates=rates).comparison(tmp_path / "run"))
        plan = make_plan(replace(comparison, matched_gradient=True))
        (control,) = (arm for arm in plan.configuration["losses"] if arm["role"] == "control")
        scales.append(control["lr_scale"])
    assert scales[1] == pytest.approx(scales[0] / 2, rel=1e-5) and scales[0] > 1


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"CE 2x" = 2', "", r"line 12: 'CE 2x' and 'CE' are the same loss"),
        ('"CE 2x" = 2', '"CE 2x" = 1', r"line 12: 'CE 2x' and 'CE' are the same loss"),
        ('"CE 2x" = 2', '"CE 2x" = 0', r"line 16: expected .CE 2x. to be a number above 0"),
        ('"EL" = 0.5', '"ELL" = 0.5', r"line 17: \[rates\] has no key 'ELL'. Did you mean 'EL'"),
    ],
)
def test_mistakes_are_told_with_their_line(read, old, new, message):
    """Oracle: the line counted by hand."""
    with pytest.raises(InputError, match=message):
        read(RECIPE.replace(old, new))


def test_rates_of_a_comparison_are_checked(read, tmp_path):
    """Oracle: by hand: a label that is none, a rate that is no factor."""
    for rates, message in (({"x": 2.0}, "labels of rates"), ({"EL": -1.0}, "the rate of 'EL'")):
        with pytest.raises(InputError, match=message):
            replace(read(), rates=rates).comparison(tmp_path / "run")


IMAGES = "cifar10-small zh-t1-mnist zh-t1-cifar10 zh-t2 note ba-t1 ba-t1-cinic10 ba-t2 ba-t5 ba-t6 \
    zh-t1-imagenet zh-t3 zh-t9 long-tail"


@pytest.mark.parametrize("name", IMAGES.split())
def test_image_recipes_at_all_their_sizes(name):
    """Every size can be read; its model, where it names one, is one that its task offers, or the
    tasks' of large images; what was published agrees with the seeds' tables in the sign of a claim
    unless the claim says that it was not so.
    """
    from losslab.experiment.recipe import recipe_file
    from losslab.experiment.tasks.build import model_names

    assert name in recipe_names("comparison")
    for size in recipe_file(name).values["sizes"]:
        recipe = read_comparison(name, size=size)
        models = model_names()[recipe.task]
        assert recipe.options.model is None or recipe.options.model in models, size
        assert recipe.claims and recipe.seeds
        for claim in recipe.claims:
            values = [claim.published.get(label) for label in (claim.against, claim.loss)]
            if None not in values and "not so in the note" not in claim.text:
                rises = all(a <= b for a, b in pairwise(values))
                assert rises == (claim.expected == "larger"), (size, claim.text)

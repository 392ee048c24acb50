"""Comparisons as recipes, and what becomes of a paper's claims."""

import numpy as np
import pytest
from scipy import stats

import losslab
from losslab.errors import InputError
from losslab.experiment import findings
from losslab.experiment.claims import judge_claims
from losslab.experiment.comparison_recipe import read_comparison
from losslab.experiment.recipe import read_recipe, recipe_names, recipe_toml
from losslab.experiment.runner import run
from losslab.experiment.summary import load_planned, summarize_folder

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = """\
name = "mine"
title = "A small one"
seeds = [0, 1, 2, 3]
analyses = ["margins", "curvature(examples=50)"]

[task]
name = "digits"
epochs = 3

[losses]
"CE" = "cross_entropy"
"EL" = "encouraging(log_end=1)"

[[claims]]
text = "EL has larger margins"
loss = "EL"
value = "margins/logits.median"
expected = "larger"
published = { "CE" = 15, "EL" = 50 }

[[claims]]
text = "EL has smaller margins"
loss = "EL"
value = "margins/logits.median"
expected = "smaller"

[[claims]]
text = "A logit margin is smaller than the log-odds"
loss = "CE"
against = "CE"
value = "margins/logits.mean"
against_value = "margins/log_odds.mean"
expected = "smaller"

[[claims]]
text = "Accuracy"
loss = "EL"
value = "accuracy"
expected = "larger"

[sizes.full]
task = { epochs = 50, model = "linear" }
seeds = [7]

[sizes.small]
task.epochs = 4
"""


@pytest.fixture
def read(tmp_path):
    def read(toml=RECIPE, **options):
        (tmp_path / "mine.toml").write_text(toml, encoding="utf-8")
        return read_comparison(tmp_path / "mine.toml", **options)

    return read


def test_sizes_change_what_they_name(read):
    """Oracle: written by hand. Break: a size that replaces a whole table, or is not found."""
    small, full = read(), read(size="full")
    assert (small.size, small.options.epochs, small.seeds) == ("small", 4, (0, 1, 2, 3))
    assert (full.options.epochs, full.options.model, full.seeds) == (50, "linear", (7,))
    assert small.task == full.task == "digits"
    changed = read(changes={"task.epochs": 9, "losses.EL": "focal"})
    assert changed.options.epochs == 9 and changed.losses["EL"] == "focal"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "digits"', 'nmae = "digits"', r"line 7: \[task\] has no key 'nmae'"),
        ("epochs = 3", "lr = -1", r"mine\.toml, line 6: lr must be"),
        ('"margins"', '"margin"', "line 4: Unknown analysis 'margin'"),
        ('value = "accuracy"', 'value = "acuracy"', "line 38: expected value to be a metric"),
        ("margins/logits.mean", "ood/logits.mean", "line 31: 'ood/logits.mean' asks for the"),
        ('loss = "CE"', 'loss = "CEE"', "line 29: expected loss to be one of"),
        ('expected = "larger"', 'expected = "bigger"', "line 18: expected expected to be one of"),
        ('"encouraging(log_end=1)"', '"encouragin"', "line 12: Unknown loss 'encouragin'"),
        ("task.epochs = 4", "task.epochs = 0", "epochs must be a whole number"),
        ('title = "A small one"', "", "the recipe lacks 'title'"),
    ],
)
def test_errors_name_the_line(read, old, new, message):
    """Oracle: the line counted by hand. Break: a mistake that is passed over, or without a line."""
    with pytest.raises(InputError, match=message):
        read(RECIPE.replace(old, new, 1))


def test_sizes_that_there_are_not(read):
    with pytest.raises(InputError, match=r"has no size 'ful'\. Did you mean 'full'"):
        read(size="ful")
    with pytest.raises(InputError, match="has no sizes"):
        read(RECIPE.partition("[sizes.full]")[0], size="full")


def test_studies_and_comparisons_are_told_apart(read):
    with pytest.raises(InputError, match="is a comparison on one task"):
        read_recipe("zh-t4")
    with pytest.raises(InputError, match="is a study; run it with losslab study"):
        read_comparison("ba-t4")


def test_packaged_recipes_are_sound():
    """Every size of every recipe can be read, its losses made, its claims' values asked for."""
    names = recipe_names("comparison")
    assert len(names) >= 11 and not set(names) & set(recipe_names("study"))
    for name in names:
        for size in ("small", "full"):
            recipe = read_comparison(name, size=size)
            assert recipe.name == name and recipe.claims and recipe.differs
            for spec in recipe.losses.values():
                assert losslab.loss(spec).spec == spec
            assert f'"{recipe.source}"' in recipe_toml(name)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    (folder / "mine.toml").write_text(RECIPE, encoding="utf-8")
    recipe = read_comparison(folder / "mine.toml")
    run(recipe.comparison(folder / "run"))
    return folder / "run"


def test_claims_are_judged_by_paired_differences(done):
    """Oracle: scipy's paired t test with Holm's correction by hand. Break: a difference that is
    turned the wrong way, runs paired across seeds, values of the wrong loss or analysis."""
    comparison, planned = load_planned(done)
    claims = judge_claims(done, comparison, planned)
    assert summarize_folder(done)["claims"] == claims
    values = {}
    for record in planned:
        found = findings.load_findings(done, record["run_id"])["margins"]["values"]
        key = record["loss"]["label"], record["seed"]
        values[key] = {**found, "accuracy": record["results"]["last"]["test"]["accuracy"]}

    def of(label, value):
        return np.array([values[label, seed][value] for seed in range(4)])

    pairs = [
        (of("EL", "logits.median"), of("CE", "logits.median")),
        (of("EL", "logits.median"), of("CE", "logits.median")),
        (of("CE", "logits.mean"), of("CE", "log_odds.mean")),
        (of("EL", "accuracy"), of("CE", "accuracy")),
    ]
    p = np.array([stats.ttest_rel(*pair).pvalue for pair in pairs])
    order = np.argsort(p, kind="stable")
    holm = np.empty(4)
    holm[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(4, 0, -1)))
    for claim, (one, other), corrected in zip(claims, pairs, holm, strict=True):
        assert claim["mean"] == pytest.approx((one - other).mean())
        assert claim["means"] == pytest.approx([one.mean(), other.mean()])
        assert claim["p_adjusted"] == pytest.approx(corrected)
        assert claim["low"] <= claim["mean"] <= claim["high"]
    marks = [claim["mark"] for claim in claims]
    assert marks[:2] in (["reproduced", "contradicted"], ["contradicted", "reproduced"])
    assert (claims[0]["mean"] > 0) == (marks[0] == "reproduced")
    assert claims[0]["published"] == {"CE": 15, "EL": 50}


def test_claims_without_runs_are_not_shown(done):
    """Break: a claim without a single pair that reads like a result."""
    comparison, planned = load_planned(done)
    none = judge_claims(done, comparison, [r for r in planned if r["loss"]["label"] == "CE"])
    assert [claim["mark"] for claim in none[:2]] == ["not measured: under three seeds"] * 2
    assert none[0]["n"] == 0 and none[0]["means"] == [None, None] and none[0]["mean"] is None


def test_a_value_that_no_run_has_is_named(done):
    """Break: a typing error that reads like a result."""
    comparison, planned = load_planned(done)
    recipe = comparison["recipe"]
    wrong = {**recipe["claims"][0], "value": "margins/logits.medain"}
    found = judge_claims(done, {**comparison, "recipe": {**recipe, "claims": [wrong]}}, planned)
    assert found[0]["mark"].startswith(
        "not measured: no run has the value 'logits.medain'. Did you"
    )


def test_changes_are_kept(read, tmp_path):
    """Break: a report that says the recipe's settings where others were used."""
    changed = read(changes={"task.epochs": 1, "losses.EL": "focal"}).comparison(tmp_path)
    assert changed.recipe["changes"] == ["losses.EL", "task.epochs"]
    assert read().comparison(tmp_path).recipe["changes"] == []

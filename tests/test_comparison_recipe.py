"""Comparisons as recipes, and what becomes of a paper's claims."""

import re

import numpy as np
import pytest
from scipy import stats

from losslab.errors import InputError
from losslab.experiment import findings
from losslab.experiment.claims import judge_claims
from losslab.experiment.comparison_recipe import read_comparison
from losslab.experiment.launch import Training
from losslab.experiment.plan import canonical_spec
from losslab.experiment.recipe import kind_of, read_recipe, recipe_names, recipe_toml
from losslab.experiment.recipe_text import parse
from losslab.experiment.runner import run
from losslab.experiment.summary import load_planned, summarize_folder
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.report.claims import claim_rows

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
        ("margins/logits.mean", "ood/logits.mean", "line 31: 'ood/logits.mean' asks for the"),
        ('loss = "CE"', 'loss = "CEE"', "line 29: expected loss to be one of"),
        ('expected = "larger"', 'expected = "bigger"', "line 18: expected expected to be one of"),
        ('"encouraging(log_end=1)"', '"encouragin"', "line 12: Unknown loss 'encouragin'"),
        ("task.epochs = 4", "task.epochs = 0", "epochs must be a whole number"),
        ('title = "A small one"', "", "the recipe lacks 'title'"),
        ("[task]", "[tsk]", r"line 6: a recipe has no section \[tsk\]\. Did you mean \[task\]\?"),
        ("[losses]", "[loses]", r"a recipe has no section \[loses\]\. Did you mean \[losses\]\?"),
        ('"margins"', '"margins(split=nosuch)"', "line 4: margins: Expected split to be one of"),
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
                assert canonical_spec(spec) == spec
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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "digits"', 'name = "digts"', r"line 7: task 'digts': .* Did you mean 'digits'"),
        ('model = "linear"', 'model = "liner"', r"line 7: task 'digits' has no model 'liner'"),
    ],
)
def test_a_task_that_cannot_be_made_is_told_with_its_line(read, tmp_path, old, new, message):
    """Oracle: the line counted by hand. Break: a message that does not say where to look."""
    recipe = read(RECIPE.replace(old, new, 1), size="full")
    with pytest.raises(InputError, match=rf"mine\.toml, {message}"):
        recipe.comparison(tmp_path / "run")
    recipe = read(changes={"task.name": "digts"})
    with pytest.raises(InputError, match=r"mine\.toml with --set task\.name: task 'digts'"):
        recipe.comparison(tmp_path / "run")


@pytest.mark.parametrize(
    ("toml", "kind"),
    [
        (RECIPE, "comparison"),
        (RECIPE.replace("[task]", "[tsk]"), "comparison"),
        (recipe_toml("digits-study"), "study"),
        (recipe_toml("digits-study").replace("[data]", "[dat]"), "study"),
        ('name = "x"\n[tsk]\nname = "digits"\n', "comparison"),
        ('name = "x"\n', "study"),
    ],
)
def test_kinds_are_told_by_all_keys(toml, kind):
    """Oracle: by hand. Break: a section written wrongly that makes a study of a comparison, whose
    mistakes are then told of the wrong keys."""
    assert kind_of(parse("x.toml", toml)) == kind


def test_ratios_are_judged_by_logarithms(done):
    """Oracle: scipy's paired t test of the logarithms. Break: differences of the values, an
    interval that is not turned back into factors, a turned ratio where "smaller" is claimed."""
    comparison, planned = load_planned(done)
    recipe = comparison["recipe"]
    margin = {**recipe["claims"][0], "value": "margins/logits.median"}
    margin |= {"against_value": "margins/logits.median", "ratio": True}
    smaller = {**margin, "expected": "smaller"}
    found = judge_claims(
        done, {**comparison, "recipe": {**recipe, "claims": [margin, smaller]}}, planned
    )
    values = {
        (r["loss"]["label"], r["seed"]): findings.load_findings(done, r["run_id"])["margins"][
            "values"
        ]["logits.median"]
        for r in planned
    }
    logs = np.log([[values[label, seed] for seed in range(4)] for label in ("EL", "CE")])
    ratio = np.exp((logs[0] - logs[1]).mean())
    test = stats.ttest_rel(*logs)
    ends = np.exp(test.confidence_interval(0.95))
    for claim in found:
        assert claim["mean"] == pytest.approx(ratio)
        assert [claim["low"], claim["high"]] == pytest.approx(list(ends))
        assert claim["p_adjusted"] == pytest.approx(min(1, 2 * test.pvalue))
    assert [claim["mark"] for claim in found] == ["reproduced", "contradicted"]
    row = claim_rows({"claims": found})[0]
    shown = [float(x) for x in re.findall(r"×([\d.]+)", f"{row.difference} {row.interval}")]
    assert shown == pytest.approx([ratio, *ends], rel=1e-2)


def test_ratios_of_values_that_are_not_positive_are_not_measured(done):
    """Break: a logarithm of a negative number that ends the comparison."""
    comparison, planned = load_planned(done)
    recipe = comparison["recipe"]
    energy = {**recipe["claims"][0], "value": "energy", "against_value": "energy", "ratio": True}
    found = judge_claims(done, {**comparison, "recipe": {**recipe, "claims": [energy]}}, planned)
    assert found[0]["mark"] == "not measured: under three seeds" and found[0]["n"] == 0


def test_an_analysis_that_is_asked_for_once_needs_no_options_in_claims(read):
    """Break: long names that must be changed with every size."""
    short = RECIPE.replace('"margins", ', '"margins(split=train)", ')
    assert read(short).claims[0].value == "margins(split=train)/logits.median"


def test_recipes_draw_splits_for_every_seed(read, tmp_path):
    """Oracle: tasks built with the seeds' splits. Break: one split for all seeds."""
    recipe = read(changes={"task.resample": True, "task.split_seed": 7})
    comparison = recipe.comparison(tmp_path)
    shas = {seed: comparison.task_of(seed).description["sha256"] for seed in recipe.seeds}
    assert len(set(shas.values())) == 4
    expected = build_task("digits", TaskOptions(epochs=3, split_seed=9)).description["sha256"]
    assert shas[2] == expected
    assert comparison.source["resample"] and read().comparison(tmp_path).task_of is None


def test_metrics_that_the_task_does_not_record_are_named(read, tmp_path):
    """Break: an unknown metric that ends the comparison after its runs, or without a line."""
    misspelt = RECIPE.replace('value = "accuracy"', 'value = "acuracy"', 1)
    with pytest.raises(InputError, match=r"line 38: expected value to be a metric .*'accuracy'\?"):
        read(misspelt).comparison(tmp_path)
    by_energy = RECIPE.replace("[losses]", '[decision]\nmetric = "energy"\n\n[losses]')
    with pytest.raises(InputError, match=r"line 11: expected metric to be a metric \(accuracy"):
        read(by_energy).comparison(tmp_path)


def test_two_values_of_the_same_models_are_told_apart():
    """By hand: the names where they differ, else the options that do."""
    base = {"loss": "CE", "against": "CE", "mark": "reproduced", "means": [2.0, 1.0], "mean": 1.0,
            "low": 0.5, "high": 1.5, "p_adjusted": 0.01, "n": 3, "unit": "", "published": {},
            "text": "A"}  # fmt: skip
    options = 'curvature(loss="mixed(focus=0)", probes=20)/hessian.trace'
    other = "curvature(loss=cross_entropy, probes=20)/hessian.trace"
    row = claim_rows({"claims": [{**base, "value": options, "against_value": other}]})[0]
    assert row.here == "loss=cross_entropy 1.000, loss=mixed(focus=0) 2.000"
    names = {"value": "margins/logits.mean", "against_value": "margins/logits.median"}
    assert claim_rows({"claims": [{**base, **names}]})[0].here.startswith("logits.median 1")


def test_training_is_read_and_told(read, tmp_path):
    """Oracle: the runs' own settings. Break: a section that changes nothing, or whose mistakes come
    without their line."""
    text = RECIPE.replace(
        "[losses]", '[training]\nprecision = "bf16-mixed"\nclip = 2.0\n\n[losses]'
    )
    found = read(text).comparison(tmp_path / "made")
    assert found.training == Training("bf16-mixed", 1, 2.0)
    changed = read(text, changes={"training.precision": "32-true"})
    assert changed.training == Training(clip=2.0) and read(RECIPE).training == Training()
    for wrong, message in (
        ('precision = "bf16"', r"line 11: Expected precision to be one of.*Did you mean"),
        ("clip = -1.0", r"line 11: Expected clip to be"),
        ('clip = "a"', r"line 11: "),
        ("accumulate = 0", r"line 11: Expected accumulate"),
        ("precison = 1", r"line 11: .*Did you mean 'precision'"),
    ):
        with pytest.raises(InputError, match=message):
            read(RECIPE.replace("[losses]", f"[training]\n{wrong}\n\n[losses]"))

"""Recipes: what a study reads from TOML, what it refuses and on which line, and what it offers."""

from __future__ import annotations

import doctest
import json
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import resources

import numpy as np
import pandas as pd
import pytest
import torch

import losslab
from losslab.errors import InputError
from losslab.experiment import recipe, recipe_lines, recipe_text, records
from losslab.experiment.recipe import Study, _study, read_recipe, recipe_names, recipe_toml
from losslab.experiment.recipe_lines import key_lines, key_path
from losslab.experiment.recipe_text import parse, read_changes

RECIPE = """\
name = "small"
title = "A small study"
differs = ["nothing"]
seeds = [
  0,
  3,  # the third
]

[data]
kind = "sklearn"
sets = ["iris", "wine"]
validation_fraction = 0.25

[models]
linear = { hidden = [] }
deep = { hidden = ["inputs", 7] }

[training]
epochs = 3
batch_size = 16
optimizer = "sgd"
momentum = 0.5
weight_decay = 1e-4
rates = [0.1, 1, 0.01]
schedule = "cosine"

[losses]
CE = "cross_entropy"
"F=0, 0.5" = "mixed(focus=switch(0, 0.5))"

[selection]
epoch = "last"
rate = "nll"

[statistics]
metric = "brier"
baseline = "CE"
margin = 0.01

[published]
where = "table 9"
data_sets = 2

[published.models.deep]
CE = { wins = 1, mean_rank = 1.5 }
"""


@pytest.fixture
def read(tmp_path):
    """A recipe's text, written to a file and read from it."""

    def write_and_read(text: str, **options) -> Study:
        (tmp_path / "small.toml").write_text(text, encoding="utf-8")
        return read_recipe(tmp_path / "small.toml", **options)

    return write_and_read


# ---------------------------------------------------------------- lines

TANGLED = '''\
# [not.a.table] in a comment
a.b."c.d" = 1   # key = "in a comment"
text = """
fake = 1
[fake]
quote \\""" still inside ""\\" """
'single = #' = 'literal \\'
raw = \'\'\'
other = 2\'\'\'\'
list = [ # comment, with ] and ,
  1,
  "two, [x]", { k = 1, "l.m" = [
    5 ] },
]

[ a.x ]  # spaced
when = 2024-01-01T00:00:00Z
empty = ""
none = []
nothing = {}
[[points]]
x = 1
[[points]]
x = 2
[points.deep]
y = 3
ends = """two quotes, then three: """""
z = 4
'''


def all_paths(value: object, path: tuple = ()) -> Iterator[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from all_paths(inner, (*path, key))


def test_lines_of_a_tangled_file():
    """Oracle: lines counted by hand. Break: a scanner misled by comments, strings of all four
    kinds, escapes, nested lists, inline tables, dotted or quoted keys, or lists of tables."""
    lines = key_lines(TANGLED)
    expected = {
        ("a", "b", "c.d"): 2,
        ("text",): 3,
        ("single = #",): 7,
        ("raw",): 8,
        ("list",): 10,
        ("list", 0): 11,
        ("list", 1): 12,
        ("list", 2, "k"): 12,
        ("list", 2, "l.m"): 12,
        ("list", 2, "l.m", 0): 13,
        ("a", "x"): 16,
        ("a", "x", "when"): 17,
        ("a", "x", "nothing"): 20,
        ("points",): 21,
        ("points", 0, "x"): 22,
        ("points", 1, "x"): 24,
        ("points", 1, "deep", "y"): 26,
        ("points", 1, "deep", "z"): 28,
    }
    assert {path: lines.get(path) for path in expected} == expected


@pytest.mark.parametrize(
    "toml", [TANGLED, RECIPE, *(recipe_toml(name) for name in recipe_names())], ids=len
)
def test_every_key_has_a_line(toml):
    """Oracle: the keys that ``tomllib`` finds. Break: a key missed or made up by the scanner."""
    assert set(key_lines(toml)) == set(all_paths(tomllib.loads(toml)))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("training.epochs", ("training", "epochs")),
        (' losses . "F=0, 0.5" ', ("losses", "F=0, 0.5")),
        ("a.'b.c'.d", ("a", "b.c", "d")),
        ("", None),
        ("a b", None),
        ("a..b", None),
        ("losses.F=0", None),
    ],
)
def test_key_paths(text, path):
    """Oracle: TOML's rule for dotted and quoted keys."""
    assert key_path(text) == path


# ---------------------------------------------------------------- what is read


def test_everything_is_read(read):
    """Oracle: the text of the recipe above, value by value. Break: a key read as another, dropped,
    or replaced by a default."""
    study = read(RECIPE)
    assert (study.name, study.title, study.source) == ("small", "A small study", "")
    assert study.differs == ("nothing",) and study.seeds == (0, 3)
    assert study.data.kind == "sklearn" and study.data.sets == ("iris", "wine")
    assert (study.data.validation_fraction, study.data.split_seed) == (0.25, 0)
    assert {name: model.hidden for name, model in study.models.items()} == {
        "linear": (),
        "deep": ("inputs", 7),
    }
    training = study.training
    assert (training.epochs, training.batch_size, training.optimizer) == (3, 16, "sgd")
    assert (training.momentum, training.weight_decay) == (0.5, 1e-4)
    assert study.rates == (0.1, 1.0, 0.01) and training.schedule == "cosine"
    assert all(type(rate) is float for rate in study.rates)
    assert list(study.losses.items()) == [
        ("CE", "cross_entropy"),
        ("F=0, 0.5", "mixed(focus=switch(0, 0.5, at=0.95))"),
    ]
    assert (study.selection.epoch, study.selection.rate) == ("last", "nll")
    statistics = study.statistics
    assert (statistics.metric, statistics.baseline, statistics.margin) == ("brier", "CE", 0.01)
    assert study.published is not None
    assert (study.published.where, study.published.data_sets) == ("table 9", 2)
    assert study.published.models == {"deep": {"CE": {"wins": 1, "mean_rank": 1.5}}}


def test_defaults(read):
    """Oracle: docs/recipes.md. What may be left out, and what it then is."""
    text = RECIPE.partition("[selection]")[0]
    for line in ("momentum", "weight_decay", "schedule", "validation_fraction", "sets", "differs"):
        text = "".join(row for row in text.splitlines(True) if not row.startswith(line))
    study = read(text)
    assert study.data.sets is None and study.data.exclude == () and study.differs == ()
    assert study.data.validation_fraction == 0.15
    training = study.training
    assert (training.momentum, training.weight_decay, training.schedule) == (0, 0, "constant")
    assert (study.selection.epoch, study.selection.rate) == ("validation_selected", "accuracy")
    assert (study.statistics.metric, study.statistics.baseline) == ("accuracy", "CE")
    assert study.statistics.margin == 0.005 and study.published is None
    assert study.datasets() == ["breast_cancer", "digits", "iris", "wine"]


def test_settings_are_a_recipe(read):
    """Oracle: a recipe made of the settings is the same study. Break: a setting left out of
    study.json, or a default that is not written down."""
    for study in (read(RECIPE), read_recipe("ba-t4"), read_recipe("digits-study")):
        plain = json.loads(json.dumps(study.settings))
        again = parse("again", "").changed(plain)
        other = _study(again, None)
        names = [name for name in vars(study) if name not in ("text", "data_dir")]
        assert {name: getattr(other, name) for name in names} == {
            name: getattr(study, name) for name in names
        }
        assert other.settings == plain


# ---------------------------------------------------------------- what is refused

BROKEN = {
    "no TOML": ("epochs = 3", "epochs = ", "epochs =", ["not TOML", "column"]),
    "an unclosed list": ("rates = [0.1, 1, 0.01]", "rates = [0.1, 1", "schedule", ["not TOML"]),
    "a key twice": ("epochs = 3", "epochs = 3\nepochs = 4", "epochs = 4", ["not TOML"]),
    "unknown key": ("epochs = 3", "epoch = 3", "epoch = 3", ["'epoch'", "Did you mean 'epochs'?"]),
    "unknown table": ("[losses]", "[looses]", "[looses]", ["Did you mean [losses]?"]),
    "missing key": ("epochs = 3\n", "", "[training]", ["lacks 'epochs'", "whole number"]),
    "empty text": ('title = "A small study"', 'title = " "', "title", ["not empty"]),
    "text for a number": ("epochs = 3", 'epochs = "3"', "epochs", ["whole number", "'3'"]),
    "true for a number": ("epochs = 3", "epochs = true", "epochs", ["whole number", "True"]),
    "a fraction of epochs": ("epochs = 3", "epochs = 3.5", "epochs", ["whole number", "3.5"]),
    "no epochs": ("epochs = 3", "epochs = 0", "epochs", ["at least 1", "got 0"]),
    "momentum of 1": ("momentum = 0.5", "momentum = 1.0", "momentum", ["below 1"]),
    "decay below 0": ("decay = 1e-4", "decay = -1e-4", "weight_decay", ["at least 0"]),
    "infinite decay": ("decay = 1e-4", "decay = inf", "weight_decay", ["finite"]),
    "momentum of adam": ('"sgd"', '"adam"', "momentum", ["belongs to sgd"]),
    "unknown optimiser": ('"sgd"', '"sdg"', "optimizer", ["Did you mean 'sgd'?", "'adamw'"]),
    "unknown schedule": ('"cosine"', '"linear"', "schedule", ["'constant', 'cosine'"]),
    "rate of 0": ("rates = [0.1, 1,", "rates = [0.1,\n0,", "0, 0.01]", ["above 0", "rates[1]"]),
    "a huge rate": ("rates = [0.1, 1,", f"rates = [0.1, 1{'0' * 400},", "rates", ["finite"]),
    "a rate twice": ("rates = [0.1, 1, 0.01]", "rates = [0.1, 0.1]", "rates", ["twice"]),
    "no rates": ("rates = [0.1, 1, 0.01]", "rates = []", "rates", ["empty"]),
    "a seed below 0": ("  3,  # the", "  -3,  # the", "-3", ["at least 0", "seeds[1]"]),
    "a seed twice": ("  3,  # the", "  0,  # the", "0,  # the", ["twice"]),
    "no seeds": ("  0,\n  3,  # the third\n", "", "seeds", ["empty"]),
    "a bad name": ('name = "small"', 'name = "a/b"', "name", ["letters", "'a/b'"]),
    "unknown kind": ('kind = "sklearn"', 'kind = "uci"', "kind", ["Did you mean 'uci121'?"]),
    "unknown set": ('"iris", "wine"', '"iris",\n"wne"', '"wne"', ["Did you mean 'wine'?"]),
    "no sets": ('["iris", "wine"]', "[]", "sets", ["empty"]),
    "a set twice": ('"iris", "wine"', '"iris", "iris"', "sets", ["twice"]),
    "sets in a text": ('["iris", "wine"]', '"iris"', "sets", ['"all" or a list of names']),
    "half held out": ("fraction = 0.25", "fraction = 0.6", "validation_fr", ["at most 0.5"]),
    "tables of sklearn": ("[models]", "[data.tables]\n[models]", "[data.tables]", ["belong to"]),
    "a width of 0": ('["inputs", 7]', '["inputs", 0]', "deep", ["hidden[1]", "at least 1"]),
    "a width in words": ('["inputs", 7]', '["input", 7]', "deep", ["hidden[0]", "'inputs'"]),
    "a model's key": ("hidden = []", "widths = []", "linear", ["no key 'widths'"]),
    "no model": ('linear = { hidden = [] }\ndeep = { hidden = ["inputs", 7] }', "", "[models]",
                 ["empty"]),
    "unknown loss": ('"cross_entropy"', '"cros_entropy"', 'CE = "', ["cross_entropy"]),
    "a loss's parameter": ("switch(0, 0.5)", "switch(0, 0.7)", '"F=0, 0.5"', ["focus"]),
    "the same loss": ('"cross_entropy"', '"mixed(focus=switch(0, 0.5, at=0.95))"', '"F=0, 0.5"',
                      ["same loss", "'CE'"]),
    "one loss": ('"F=0, 0.5" = "mixed(focus=switch(0, 0.5))"', "", "[losses]", ["two losses"]),
    "an empty label": ("CE = ", '"" = ', '"" =', ["must not be empty"]),
    "selection on test": ('"last"', '"best_on_test"', "epoch = \"best", ["on the test set"]),
    "unknown baseline": ('baseline = "CE"', 'baseline = "CF"', "baseline", ["Did you mean 'CE'?"]),
    "unknown metric": ('"brier"', '"brie"', "metric", ["Did you mean 'brier'?"]),
    "no margin": ("margin = 0.01", "margin = 0", "margin", ["above 0", "brier"]),
    "published, no model": ("[published.models.deep]", "[published.models.depp]",
                            "[published.models.depp]", ["Did you mean 'deep'?"]),
    "published, no loss": ("CE = { wins", "EC = { wins", "EC = {", ["no 'EC' in [losses]"]),
    "published, no figure": ("mean_rank", "rank", "CE = { wins", ["Did you mean 'mean_rank'?"]),
    "a value for a table": ("[statistics]", "[stat]", "[stat]", ["Did you mean [statistics]?"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_mistakes_are_told_with_their_line(case, read):
    """Oracle: the line on which the mistake was put. Break: a value that slips through, a wrong or
    missing line, a message that does not say what was expected."""
    old, new, where, words = BROKEN[case]
    text = RECIPE.replace(old, new, 1)
    assert text != RECIPE
    rows = text.splitlines()
    marked = [number for number, row in enumerate(rows, 1) if row.startswith(where)]
    marked = marked or [number for number, row in enumerate(rows, 1) if where in row]
    with pytest.raises(InputError) as caught:
        read(text)
    message = str(caught.value)
    assert re.search(rf"small\.toml, line {marked[-1]}(:|, column \d+:) ", message), message
    for word in words:
        assert word in message


def test_missing_top_level_key(read):
    """Oracle: the recipe's first line, for what stands nowhere."""
    with pytest.raises(InputError, match=r"small\.toml, line 1: the recipe lacks 'title'"):
        read(RECIPE.replace('title = "A small study"\n', ""))
    with pytest.raises(InputError, match=r"line 1: the recipe lacks 'losses': .*\[losses\]"):
        read(RECIPE.replace("[losses]", "[training.losses]"))


def test_windows_newlines(read):
    """Oracle: the line number, which carriage returns must not move."""
    text = RECIPE.replace("epochs = 3", "epochs = 0").replace("\n", "\r\n")
    line = text.split("\r\n").index("epochs = 0") + 1
    with pytest.raises(InputError, match=f"line {line}:"):
        read(text)


def test_files_that_are_no_recipes(tmp_path):
    """Oracle: the message names the file or the known recipes."""
    with pytest.raises(InputError, match=r"nowhere\.toml cannot be read.*recipes copy"):
        read_recipe(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes('title = "é"'.encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_recipe(tmp_path / "latin.toml")
    with pytest.raises(InputError, match=r"no recipe 'digit-study'\. Did you mean 'digits-study'"):
        read_recipe("digit-study")


# ---------------------------------------------------------------- changes


def test_changes(read):
    """Oracle: the values set, and all others as they were; the first study stays as it is."""
    study = read(RECIPE)
    changes = ["training.epochs = 5", "seeds=[7]", "training.schedule=constant"]
    changes += ['losses."EL x"=expectation', "models.deep.hidden=[2]", 'losses."F=0, 0.5"=']
    changes += ["differs="]
    new = study.changed(read_changes(changes))
    assert (new.training.epochs, new.seeds, new.training.schedule) == (5, (7,), "constant")
    assert list(new.losses.items()) == [("CE", "cross_entropy"), ("EL x", "expectation")]
    assert new.models["deep"].hidden == (2,) and new.differs == ()
    assert new.training.rates == study.rates and new.statistics == study.statistics
    assert (study.training.epochs, study.seeds, len(study.losses)) == (3, (0, 3), 2)
    twice = new.changed({"training.epochs": 6})
    assert (twice.training.epochs, twice.seeds) == (6, (7,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.epochs=0", ["--set training.epochs", "at least 1"]),
        ("training.epohcs=5", ["--set training.epohcs", "Did you mean 'epochs'?"]),
        ("trainin.epochs=5", ["--set trainin", "Did you mean [training]?"]),
        ("seeds=[0, -1]", ["--set seeds", "seeds[1]"]),
        ("training.epochs", ["KEY=VALUE"]),
        ("=5", ["KEY=VALUE"]),
        ("losses.F+0=focal", ["quote"]),
        ("seeds.first=5", ["--set seeds.first", "is a value"]),
        ("data.sets=[iris, wine]", ["quotes"]),
        ("training.momentumm=", ["no training.momentumm", "Did you mean 'momentum'?"]),
        ("losses.CE=", ["two losses"]),
        ('models.deep="x"', ["--set models.deep", "a table"]),
    ],
)
def test_changes_that_are_refused(read, change, words):
    """Oracle: the message names the option and not a line of the file where the value came from
    the command line."""
    with pytest.raises(InputError) as caught:
        read(RECIPE).changed(read_changes([change]))
    for word in words:
        assert word in str(caught.value)


def test_what_is_taken_out_is_not_missed_by_the_published_figures():
    """Oracle: the figures of the losses and models that are left."""
    study = read_recipe("ba-t4").changed(read_changes(["losses.EL=", "models.linear="]))
    assert study.published is not None
    assert set(study.published.models) == {"hidden"}
    assert "EL" not in study.published.models["hidden"] and "EL" not in study.losses


# ---------------------------------------------------------------- tasks


def test_task(read):
    """Oracle: scikit-learn's iris (150 × 4, three classes of 50) and the settings of the recipe."""
    from sklearn.datasets import load_iris

    task = read(RECIPE).task("iris", "deep")
    sizes = [len(part) for part in (task.train, task.validation, task.test)]
    assert sizes == [3 * 28, 3 * 12, 3 * 10]  # 12 = round(0.25 · 50), banker's; 10 = a fifth
    assert (task.num_classes, task.class_names) == (3, ("setosa", "versicolor", "virginica"))
    assert (task.epochs, task.batch_size) == (3, 16)
    inputs, targets = task.train.tensors
    torch.testing.assert_close(inputs.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(4))
    together = torch.cat([part.tensors[0] for part in (task.train, task.validation, task.test)])
    raw = torch.tensor(load_iris().data)
    found = ((together - together.mean(0)) / together.std(0)).numpy()  # whatever it was scaled by
    wanted = ((raw - raw.mean(0)) / raw.std(0)).numpy()
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(wanted, axis=0), atol=1e-5)
    assert torch.bincount(targets).tolist() == [28, 28, 28]
    widths = [tuple(p.shape) for p in task.model().parameters()]
    assert widths == [(4, 4), (4,), (7, 4), (7,), (3, 7), (3,)]
    optimizer = task.optimizer(task.model().parameters())
    assert type(optimizer) is torch.optim.SGD
    settings = optimizer.param_groups[0]
    assert (settings["lr"], settings["momentum"], settings["weight_decay"]) == (0.1, 0.5, 1e-4)
    assert task.description["model"]["name"] == "deep"


def test_cosine_schedule(read):
    """Oracle: half a cosine by hand: the rate, half of it in the middle, 0 at the end."""
    task = read(RECIPE).task("iris", "linear")
    optimizer = task.optimizer(task.model().parameters())
    scheduler = task.lr_scheduler(optimizer, 8)
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0.1 and rates[4] == pytest.approx(0.05) and rates[8] == pytest.approx(0)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_other_optimizers(read, name, kind):
    """Oracle: PyTorch's class, at the recipe's rate and decay; a constant rate has no scheduler."""
    text = RECIPE.replace('"sgd"', f'"{name}"').replace("momentum = 0.5\n", "")
    task = read(text).changed({"training.schedule": "constant"}).task("iris", "linear")
    optimizer = task.optimizer(task.model().parameters())
    assert type(optimizer) is kind and task.lr_scheduler is None
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_tables(read, tmp_path):
    """Oracle: the file that was written: its classes and rows. Break: a file looked for in the
    wrong place, a target not heeded."""
    rows = pd.DataFrame(
        {"x": np.arange(40) % 7 * 1.5, "kind": ["a", "b"] * 20, "other": ["u", "v", "w", "u"] * 10}
    )
    text = RECIPE.replace('kind = "sklearn"', 'kind = "tables"').replace(
        'sets = ["iris", "wine"]',
        'tables = { one = { file = "one.csv", target = "kind" },'
        ' two = { file = "sub/two.csv", target = "other" } }',
    )
    (tmp_path / "data" / "sub").mkdir(parents=True)
    rows.to_csv(tmp_path / "one.csv", index=False)
    rows.to_csv(tmp_path / "data" / "sub" / "two.csv", index=False)
    study = read(text, data_dir=tmp_path / "data")
    assert study.datasets() == ["one", "two"]
    one, two = (study.task(name, "linear") for name in study.datasets())
    assert one.class_names == ("a", "b") and two.class_names == ("u", "v", "w")
    assert len(one.train) + len(one.validation) + len(one.test) == 40
    assert (one.epochs, one.batch_size) == (3, 16)
    with pytest.raises(InputError, match=r"no file 'sub/two.csv'.*--data-dir"):
        read(text).task("two", "linear")
    with pytest.raises(InputError, match=r"line \d+: .*file"):
        read(text.replace('file = "one.csv", ', ""))


def test_unknown_names(read):
    """Oracle: the nearest known name."""
    study = read(RECIPE)
    with pytest.raises(InputError, match="Did you mean 'iris'"):
        study.task("irs", "deep")
    with pytest.raises(InputError, match="Did you mean 'deep'"):
        study.task("iris", "dep")
    with pytest.raises(InputError, match="no data set 'digits'"):
        study.task("digits", "deep")  # scikit-learn has it, the study does not


def test_excluded_sets(read):
    """Oracle: the list less what is excluded; nothing left is a mistake."""
    assert read(RECIPE).changed({"data.exclude": ["iris"]}).datasets() == ["wine"]
    nothing = read(RECIPE).changed({"data.exclude": ["iris", "wine"]})
    with pytest.raises(InputError, match="every data set is excluded"):
        nothing.datasets()


# ---------------------------------------------------------------- identity

DECISIVE = {
    "training.epochs": 4,
    "training.batch_size": 8,
    "training.momentum": 0.9,
    "training.weight_decay": 0.0,
    "training.schedule": "constant",
    "data.split_seed": 1,
    "data.validation_fraction": 0.2,
    "models.deep.hidden": [7],
}
INDIFFERENT = {
    "name": "other",
    "title": "Other",
    "seeds": [9],
    "training.rates": [0.5],
    "losses.EL": "expectation",
    "data.sets": ["iris"],
    "selection.epoch": "validation_selected",
    "statistics.margin": 0.5,
    "models.third": {"hidden": [3]},
}


def test_identity(read, tmp_path):
    """Oracle: what can change a run's numbers changes the identity, nothing else does. Break: runs
    of other settings taken for finished, or finished runs made again."""
    study = read(RECIPE)
    mine = records.run_id(study.identity("iris", "deep"))
    others = [study.changed({k: v}).identity("iris", "deep") for k, v in DECISIVE.items()]
    others += [study.identity("wine", "deep"), study.identity("iris", "linear")]
    assert len({mine, *map(records.run_id, others)}) == 1 + len(others)
    for key, value in INDIFFERENT.items():
        assert records.run_id(study.changed({key: value}).identity("iris", "deep")) == mine, key
    assert records.run_id(pickle.loads(pickle.dumps(study)).identity("iris", "deep")) == mine
    code = (
        "import sys; from losslab.experiment import records; "
        "from losslab.experiment.recipe import read_recipe; "
        "print(records.run_id(read_recipe(sys.argv[1]).identity('iris', 'deep')))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "small.toml")]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == mine
    )


# ---------------------------------------------------------------- the recipes that come with it


def test_packaged_recipes_are_sound():
    """Every recipe is called as its file is, and every loss of it can be made."""
    for name in recipe_names("study"):
        study = read_recipe(name)
        assert study.name == name
        for spec in study.losses.values():
            assert losslab.loss(spec).spec == spec


def test_recipes_are_package_data():
    """Oracle: the package's own resources, which is where an installed copy has them."""
    folder = resources.files("losslab") / "recipes"
    assert {file.name for file in folder.iterdir() if file.name.endswith(".toml")} == {
        f"{name}.toml" for name in recipe_names()
    }


PAPER = """\
CE	33	0	2.59	26	0	2.70
F=0	32	0.09	2.39	30	0.12	2.62
F=0,0.5	31	0.20	2.30	37	0.27	2.40
F=0-0.5	48	0.30	2.12	42	0.30	2.37
EL	33	-2.71	3.25	33	-4.73	3.52
Focal	26	-0.56	3.13	25	-0.89	3.03
"""  # table 4, rows as printed: wins, improvement, mean rank; linear, then one hidden layer


def test_ba_t4_is_the_paper():
    """Oracle: table 4 as printed, and the text of the section: six losses, three rates, batches of
    8, 50 epochs, two seeds; focus 0 and ½ with the last 5 % apart, and six equal parts."""
    study = read_recipe("ba-t4")
    assert study.published is not None and study.published.data_sets == 121
    for row in PAPER.splitlines():
        label, *figures = row.split("\t")
        for model, at in (("linear", 0), ("hidden", 3)):
            found = study.published.models[model][label]
            printed = [float(figure) for figure in figures[at : at + 3]]
            assert [found[key] for key in ("wins", "improvement", "mean_rank")] == printed
    assert list(study.losses) == [row.split("\t")[0] for row in PAPER.splitlines()]
    assert (study.training.epochs, study.training.batch_size) == (50, 8)
    assert study.rates == (0.01, 0.005, 0.001) and len(study.seeds) == 2
    assert [model.widths(9) for model in study.models.values()] == [(), (9,)]
    assert study.data.kind == "uci121" and study.data.sets is None
    assert study.statistics.baseline == "CE" and study.selection.epoch == "validation_selected"


@pytest.mark.parametrize(
    ("label", "progress", "focus"),
    [("F=0", 0.99, 0.0), ("F=0,0.5", 0.94, 0.0), ("F=0,0.5", 0.96, 0.5), ("F=0-0.5", 0.1, 0.0),
     ("F=0-0.5", 0.4, 0.2), ("F=0-0.5", 0.9, 0.5)],
)  # fmt: skip
def test_ba_t4_schedules(label, progress, focus):
    """Oracle: the paper's formula: CE + (1−p)/(1−2F), and 1−p alone at F = ½, at one logit pair."""
    module = losslab.loss(read_recipe("ba-t4").losses[label])
    module.set_progress(progress)
    logits = torch.tensor([[0.3, -0.9]], dtype=torch.float64)
    p = torch.softmax(logits, 1)[0, 0]
    expected = 1 - p if focus == 0.5 else -p.log() + (1 - p) / (1 - 2 * focus)
    # the schedule's value is kept in float32
    torch.testing.assert_close(module(logits, torch.tensor([0])), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("module", [recipe, recipe_lines, recipe_text])
def test_examples(module):
    """Oracle: the output printed in the docstrings."""
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


# ---------------------------------------------------------------- command line


def test_recipes_are_listed_shown_and_copied(command, tmp_path):
    """Oracle: the packaged text. Break: a recipe not listed, or a copy that is not the recipe."""
    status, out, _ = command("recipes")
    assert status == 0 and {line.split()[0] for line in out.splitlines()} == set(recipe_names())
    assert command("recipes", "show", "ba-t4")[:2] == (0, recipe_toml("ba-t4"))
    status, out, _ = command("recipes", "copy", "digits-study")
    assert status == 0 and "losslab study digits-study.toml" in out
    assert command("recipes", "copy", "ba-t4", "mine.toml")[0] == 0
    assert (tmp_path / "mine.toml").read_text(encoding="utf-8") == recipe_toml("ba-t4")
    assert read_recipe(tmp_path / "digits-study.toml").losses == read_recipe("digits-study").losses


def test_a_copy_replaces_nothing(command, tmp_path):
    """Oracle: the file's old content."""
    (tmp_path / "mine.toml").write_text("precious")
    status, _, err = command("recipes", "copy", "ba-t4", "mine.toml")
    assert status == 2 and "exists already" in err
    assert (tmp_path / "mine.toml").read_text() == "precious"
    status, _, err = command("recipes", "copy", "ba-t4", "mine")
    assert status == 2 and "mine.toml" in err
    status, _, err = command("recipes", "show", "ba-t44")
    assert status == 2 and "Did you mean 'ba-t4'?" in err

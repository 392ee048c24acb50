"""Tables: kinds of columns, what is learned from training rows only, targets, every refusal."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.split import stratified_split
from losslab.experiment.tasks.tables import table_file

DATA = Path(os.environ.get("LOSSLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
ROWS = 100


def frame(rows: int = ROWS) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "size": generator.normal(5, 2, rows),
            "colour": generator.choice(["red", "green", "blue"], rows),
            "kind": np.resize(["a", "b"], rows),
        }
    )


def save(path: Path, table: pd.DataFrame) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


def build(path: Path, target: str | None = "kind", **options):
    return build_task(str(path), TaskOptions(target=target, **options))


def built(tmp_path: Path, table: pd.DataFrame, target: str = "kind", **options):
    return build(save(tmp_path / "table.csv", table), target, **options)


def refused(path: Path, *texts: str, target: str | None = "kind", **options) -> None:
    with pytest.raises(InputError) as caught:
        build(path, target, **options)
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def split_rows(targets: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    train, test, validation = stratified_split(targets, (0.2, 0.2), seed)
    return {"train": train, "validation": validation, "test": test}


# ---------------------------------------------------------------- columns


def test_numbers_and_categories_against_numpy(tmp_path):
    """Oracle: standardisation and one-hot codes computed by numpy from the rows of each split."""
    table = frame()
    task = built(tmp_path, table)
    rows = split_rows((table["kind"] == "b").to_numpy().astype(int))
    size = table["size"].to_numpy()
    mean, std = size[rows["train"]].mean(), size[rows["train"]].std()
    for split, index in rows.items():
        inputs, targets = getattr(task, split).tensors
        expected = np.column_stack(
            [(size[index] - mean) / std]
            + [(table["colour"].iloc[index] == c).to_numpy() for c in ("blue", "green", "red")]
        )
        np.testing.assert_allclose(inputs.numpy(), expected, rtol=1e-6, atol=1e-6)
        assert targets.tolist() == (table["kind"].iloc[index] == "b").astype(int).tolist()
    assert task.class_names == ("a", "b") and task.name == "table"


def test_missing_numbers_get_the_training_median_and_an_indicator(tmp_path):
    """Oracle: numpy's median of the known training values; an indicator where it was missing."""
    table = frame()
    table.loc[::7, "size"] = np.nan
    table = table.drop(columns="colour")
    task = built(tmp_path, table)
    index = split_rows(np.resize([0, 1], ROWS))["train"]
    size = table["size"].to_numpy()[index]
    gap = np.isnan(size)
    filled = np.where(gap, np.nanmedian(size), size)
    columns = np.column_stack([filled, gap])
    expected = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    np.testing.assert_allclose(task.train.tensors[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_missing_category_is_a_category_and_rare_ones_are_one(tmp_path):
    """Oracle: which training rows share a code: green, gaps, and the rare ones together."""
    table = frame(200)[["kind"]]
    table["colour"] = np.resize(["green"] * 12 + [None] * 6 + ["teal", "plum"], 200)
    table.loc[:1, "colour"] = ["once", "twice"]
    task = built(tmp_path, table)
    index = split_rows(np.resize([0, 1], 200))["train"]
    known = table["colour"].iloc[index]
    common = [c for c, n in known.value_counts().items() if n >= 5]
    groups = known.fillna("gap").where(known.isna() | known.isin(common), "rare")
    codes = task.train.tensors[0].argmax(dim=1).numpy()
    assert task.train.tensors[0].sum(dim=1).tolist() == [1.0] * len(index)
    pairs = set(zip(groups, codes.tolist(), strict=True))
    assert len(pairs) == groups.nunique() == len({code for _, code in pairs})
    assert "gap" in set(groups) and "rare" in set(groups)


def test_category_unseen_in_training_joins_the_rare_or_none(tmp_path):
    """Oracle: a row of zeros for it where training had no rare category. Must not raise."""
    table = frame()
    row = split_rows(np.resize([0, 1], ROWS))["test"][3]
    table.loc[row, "colour"] = "ultraviolet"
    task = built(tmp_path, table)
    assert task.test.tensors[0][3, 1:].tolist() == [0.0, 0.0, 0.0]


def test_nothing_is_learned_from_validation_and_test_rows(tmp_path):
    """Oracle: training tensors before and after every other row is made absurd.

    Breaks if any median, mean, deviation, category, rare group or dropped column is learned from
    more than the training rows.
    """
    table = frame()
    table["gaps"] = np.where(np.arange(ROWS) % 5 == 0, np.nan, np.arange(ROWS) % 3)
    table["word"] = np.resize(["x", "y", "z", "y"], ROWS)
    rows = split_rows(np.resize([0, 1], ROWS))
    table["fixed"] = 1.0
    before = built(tmp_path, table)
    others = np.concatenate([rows["validation"], rows["test"]])
    table.loc[others, "size"] = 1e6
    table.loc[others, "gaps"] = np.nan
    table.loc[others, "colour"] = [f"new {k}" for k in range(len(others))]
    table.loc[others, "word"] = None
    table.loc[others, "fixed"] = 2.0
    after = built(tmp_path, table)
    assert torch.equal(before.train.tensors[0], after.train.tensors[0])
    assert len(after.train) == len(rows["train"]) == 60
    assert before.description["notes"] == after.description["notes"]
    assert not torch.equal(before.test.tensors[0], after.test.tensors[0])


def test_missing_only_outside_training_is_filled(tmp_path):
    """Oracle: the training median standardises to (median - mean) / sd; no indicator is made."""
    table = frame().drop(columns="colour")
    rows = split_rows(np.resize([0, 1], ROWS))
    table.loc[rows["test"][0], "size"] = np.nan
    task = built(tmp_path, table)
    size = table["size"].to_numpy()[rows["train"]]
    assert task.test.tensors[0].shape[1] == 1
    expected = (np.median(size) - size.mean()) / size.std()
    assert float(task.test.tensors[0][0, 0]) == pytest.approx(expected, rel=1e-5)


def test_useless_columns_are_dropped_with_a_note(tmp_path):
    """Oracle: each column useless in one way; the task equals the one without them."""
    table = frame()
    expected = built(tmp_path, table).train.tensors[0]
    table.insert(0, "row", range(ROWS))
    table["id"] = [f"person {k}" for k in range(ROWS)]
    table["same"] = "yes"
    table["empty"] = np.nan
    table["text"] = [f"words {k // 2}" for k in range(ROWS)]
    task = built(tmp_path, table)
    assert torch.equal(task.train.tensors[0], expected)
    notes = " | ".join(task.description["notes"])
    for said in (
        "column 'row' dropped: it numbers the rows",
        "column 'id' dropped: an identifier, different in every training row",
        "column 'same' dropped: the same value in every training row ('yes')",
        "column 'empty' dropped: no value in any training row",
        "column 'text' dropped: an identifier or free text",
    ):
        assert said in notes


def test_numbers_with_a_decimal_comma(tmp_path):
    """Oracle: the same table with points. Break: measurements dropped as free text, or a thousand
    taken for one; a column that has no comma, or text in it, must stay as it is."""
    generator = np.random.default_rng(0)
    values = generator.normal(1200, 900, size=60).round(2)
    table = pd.DataFrame(
        {"x": values, "y": generator.normal(size=60), "kind": ["a", "b", "c"] * 20}
    )
    german = table.copy()
    german["x"] = [f"{v:,.2f}".translate(str.maketrans(",.", ".,")) for v in values]
    table.to_csv(tmp_path / "points.csv", index=False)
    german.to_csv(tmp_path / "commas.csv", index=False, sep=";", decimal=",")
    one, other = (build(tmp_path / f"{name}.csv", "kind") for name in ("points", "commas"))
    torch.testing.assert_close(one.train.tensors[0], other.train.tensors[0])
    kept = pd.DataFrame({"code": ["1.234", "2.345", "3.456"], "word": ["1,5", "2,5", "x"]})
    read = kept.apply(table_file._with_decimal_comma)
    pd.testing.assert_frame_equal(read, kept)


def test_numbers_different_in_every_row_stay(tmp_path):
    """Oracle: a column of distinct whole numbers that do not count the rows keeps its place."""
    table = frame().drop(columns="colour")
    table["distance"] = np.random.default_rng(1).permutation(ROWS) * 3
    assert built(tmp_path, table).train.tensors[0].shape[1] == 2


def test_a_note_on_text_that_is_mostly_numbers(tmp_path):
    """Oracle: a mark for missing values that pandas does not know."""
    table = frame()
    table["length"] = [str(k % 9) if k % 4 else "unknown" for k in range(ROWS)]
    notes = " ".join(built(tmp_path, table).description["notes"])
    assert "column 'length' is taken as categories because of values such as 'unknown'" in notes


def test_true_false_dates_and_parquet_types(tmp_path):
    """Oracle: each type's numbers standardised by numpy. Parquet keeps types that CSV cannot."""
    days = pd.date_range("2020-01-01", periods=ROWS, freq="36h")
    table = pd.DataFrame(
        {
            "kind": pd.Categorical(np.resize(["a", "b"], ROWS)),
            "flag": np.resize([True, False, False], ROWS),
            "when": days.tz_localize("Europe/Paris"),
            "whole": pd.array(np.resize([1, 5, 6, None], ROWS), dtype="Int64"),
            "span": pd.to_timedelta(np.resize([1, 5, 9], ROWS), unit="h"),
        }
    )
    task = build(save(tmp_path / "typed.parquet", table))
    index = split_rows(np.resize([0, 1], ROWS))["train"]
    whole = table["whole"].to_numpy(dtype=float, na_value=np.nan)[index]
    gap = np.isnan(whole)
    hours = days.tz_localize("Europe/Paris").tz_convert(None).to_numpy().astype("int64") / 3.6e12
    expected = np.column_stack(
        [
            table["flag"].to_numpy(dtype=float)[index],
            hours[index],
            np.where(gap, np.nanmedian(whole), whole),
            table["span"].dt.total_seconds().to_numpy()[index],
            gap,
        ]
    )
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    np.testing.assert_allclose(task.train.tensors[0].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet", "t.csv.gz", "T.CSV"])
def test_every_kind_of_file_gives_the_same_task(tmp_path, name):
    """Oracle: the fingerprint of the CSV file's task."""
    table = frame()
    table["size"] = table["size"].round(3)
    expected = built(tmp_path, table).description["sha256"]
    assert build(save(tmp_path / name, table)).description["sha256"] == expected


def test_semicolons_question_marks_and_blanks(tmp_path):
    """Oracle: the plain file's fingerprint for the same table in another dress."""
    table = frame()
    table["size"] = table["size"].round(3)
    table.loc[::7, "size"] = np.nan
    expected = built(tmp_path, table).description["sha256"]
    text = table.to_csv(index=False, na_rep="?", sep=";").replace(";", "; ")
    (tmp_path / "dressed.csv").write_text(text)
    assert build(tmp_path / "dressed.csv").description["sha256"] == expected
    (tmp_path / "marked.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert build(tmp_path / "marked.csv").description["sha256"] == expected


# ---------------------------------------------------------------- targets and options


@pytest.mark.parametrize(
    "values, names",
    [
        (["no", "yes"], ("no", "yes")),
        ([True, False], ("False", "True")),
        ([3, 10, 7], ("3", "7", "10")),
        ([1.0, 2.0], ("1", "2")),
        ([0.5, 1.5, 2.5], ("0.5", "1.5", "2.5")),
        (["9", "10", "b"], ("10", "9", "b")),
    ],
)
def test_targets_become_classes(tmp_path, values, names):
    """Oracle: sorted distinct values; the class of each row by name."""
    table = frame()
    table["kind"] = np.resize(np.array(values, dtype=object), ROWS)
    task = built(tmp_path, table)
    assert task.class_names == names
    counts = np.sum(list(task.description["class_counts"].values()), axis=0)
    shown = table["kind"].map(lambda v: "12"[int(v) - 1] if names == ("1", "2") else str(v))
    assert counts.tolist() == [int((shown == name).sum()) for name in names]


def test_rows_without_target_are_dropped_with_a_note(tmp_path):
    """Oracle: whole numbers stay whole though gaps make pandas read floats; 10 rows fewer."""
    table = frame()
    table["kind"] = np.resize([0.0, 1.0], ROWS)
    table.loc[:9, "kind"] = np.nan
    task = built(tmp_path, table)
    assert task.class_names == ("0", "1") and sum(task.description["sizes"].values()) == 90
    assert "10 rows dropped: no value in target column 'kind'" in task.description["notes"]


def test_split_seed_and_train_size(tmp_path):
    """Oracle: fingerprints and sizes; the smaller training split is standardised by itself."""
    path = save(tmp_path / "table.csv", frame())
    one, again, other = (build(path, split_seed=s).description["sha256"] for s in (0, 0, 1))
    assert one == again != other
    small = build(path, train_size=20, model="linear", validation_fraction=0.1)
    assert small.description["sizes"] == {"train": 20, "validation": 10, "test": 20}
    assert float(small.train.tensors[0][:, 0].double().mean()) == pytest.approx(0, abs=1e-6)
    assert small.description["model"]["parameters"] == 10


def test_description_is_complete(tmp_path):
    """Oracle: the list of facts that the design asks for."""
    about = built(tmp_path, frame()).description
    assert about["source"] == "table table.csv, target 'kind'"
    assert about["split"] == {"rule": "stratified", "seed": 0}
    assert about["class_counts"] == {"train": [30, 30], "validation": [10, 10], "test": [10, 10]}
    assert len(about["preprocessing"]) == 3 and about["optimizer"]["name"] == "SGD"
    assert about["model"]["name"] == "mlp" and about["model"]["parameters"] == 4 * 128 + 128 + 258
    json.dumps(about, allow_nan=False)


# ---------------------------------------------------------------- what is refused


def test_target_not_named_or_not_there(tmp_path):
    """Oracle: the columns are listed and the nearest name offered."""
    path = save(tmp_path / "table.csv", frame())
    refused(path, "which column is to be predicted?", "size, colour, kind", target=None)
    refused(path, "no column 'color'. Did you mean 'colour'?", "size, colour", target="color")


def test_wrong_options(tmp_path):
    """Oracle: options that no table has."""
    path = save(tmp_path / "table.csv", frame())
    refused(path, "has no model 'cnn'", model="cnn")
    refused(path, "takes no image_size", image_size=32)


def test_files_that_are_no_tables(tmp_path):
    """Oracle: one kind of damage each, the file named."""
    refused(tmp_path / "none.csv", "none.csv: no such file")
    (tmp_path / "empty.csv").write_text("")
    refused(tmp_path / "empty.csv", "the file is empty")
    (tmp_path / "header.csv").write_text("size,kind\n")
    refused(tmp_path / "header.csv", "no rows below the header")
    (tmp_path / "latin.csv").write_bytes("grösse,kind\n1,a\n".encode("latin-1"))
    refused(tmp_path / "latin.csv", "cannot be read as a table", "UnicodeDecodeError")
    (tmp_path / "more.csv").write_text("size,kind\n1,a\n2,b,c\n")
    refused(tmp_path / "more.csv", "cannot be read as a table", "as many values in each row")
    (tmp_path / "all.csv").write_text("size,kind\n1,a,x\n2,b,c\n")
    refused(tmp_path / "all.csv", "cannot be read as a table", "as many values in each row")
    (tmp_path / "bad.parquet").write_text("no parquet")
    refused(tmp_path / "bad.parquet", "cannot be read as a table")
    content = gzip.compress(frame().to_csv(index=False).encode())
    (tmp_path / "cut.csv.gz").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "cut.csv.gz", "cannot be read as a table", "EOFError")
    (tmp_path / "not.csv.gz").write_text("size,kind\n")
    refused(tmp_path / "not.csv.gz", "cannot be read as a table", "BadGzipFile")


def test_column_named_twice(tmp_path):
    """Oracle: pandas would rename the second one silently."""
    (tmp_path / "twice.csv").write_text("size,size,kind\n1,2,a\n")
    refused(tmp_path / "twice.csv", "found more than once: 'size'", "add a header line")


def test_target_missing_everywhere(tmp_path):
    """Oracle: a column of gaps."""
    table = frame().assign(kind=np.nan)
    refused(save(tmp_path / "t.csv", table), "column 'kind' is missing in every row")


def test_continuous_target(tmp_path):
    """Oracle: a hundred different fractions, and a hundred different whole numbers."""
    refused(
        save(tmp_path / "t.csv", frame()), "'size' has 100 distinct", "regression", target="size"
    )
    table = frame().assign(price=np.arange(ROWS) * 3)
    refused(save(tmp_path / "t.csv", table), "100 distinct values in 100 rows", target="price")


def test_other_targets_that_cannot_be_learned(tmp_path):
    """Oracle: one class, a class of two rows, infinite values, dates."""
    refused(save(tmp_path / "t.csv", frame().assign(kind="a")), "only the value 'a'")
    table = frame()
    table.loc[:1, "kind"] = "rare"
    refused(save(tmp_path / "t.csv", table), "needs at least 3 rows", "too few: 'rare' (2). Drop")
    table = frame().assign(kind=np.resize([1.5, np.inf, 2.5], ROWS))
    refused(save(tmp_path / "t.csv", table), "target column 'kind' holds infinite values")
    table = frame().assign(kind=np.resize(pd.date_range("2020", periods=2), ROWS))
    refused(save(tmp_path / "t.parquet", table), "'kind' holds dates; expected classes")


def test_infinite_numbers_are_counted_and_placed(tmp_path):
    """Oracle: two infinities put in known rows (counted from 1) of one column."""
    table = frame()
    table.loc[[4, 40], "size"] = [np.inf, -np.inf]
    refused(save(tmp_path / "t.csv", table), "infinite values in column 'size' (2, first in row 5)")


def test_values_that_are_lists(tmp_path):
    """Oracle: a Parquet column of lists."""
    table = frame()
    table["list"] = [[k, k] for k in range(ROWS)]
    refused(save(tmp_path / "t.parquet", table), "column 'list' holds ndarray values")


def test_no_column_is_left(tmp_path):
    """Oracle: nothing but the target, and nothing but an identifier."""
    refused(save(tmp_path / "t.csv", frame()[["kind"]]), "no column is left", "only column")
    table = frame()[["kind"]].assign(id=[f"p{k}" for k in range(ROWS)])
    refused(save(tmp_path / "t.csv", table), "no column is left", "column 'id' dropped")


# ---------------------------------------------------------------- real


def uci(name: str, folder: Path) -> Path:
    """One set of the UCI archive as a CSV file."""
    archive = DATA / "uci121" / "uci121_data.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no real data: {archive} (set LOSSLAB_DATA)")
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(f"/{name}_R.dat"):
                content = tar.extractfile(member).read()
                break
    path = folder / f"{name}.csv"
    pd.read_csv(io.BytesIO(content), sep=r"\s+").to_csv(path)
    return path


def test_a_real_uci_set(tmp_path):
    """Oracle: led-display's published size (1,000 rows, 7 features, 10 classes).

    Breaks if the written-out row number is taken for a feature.
    """
    task = build(uci("led-display", tmp_path), target="clase")
    assert sum(task.description["sizes"].values()) == 1000 and task.num_classes == 10
    assert task.train.tensors[0].shape[1] == 7
    assert task.description["notes"] == ["column 'Unnamed: 0' dropped: it numbers the rows"]

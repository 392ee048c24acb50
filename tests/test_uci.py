"""The archive of UCI sets: a small one made here in the same format, and the real one if there."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from losslab.errors import InputError
from losslab.experiment.recipe import read_recipe, recipe_toml
from losslab.experiment.uci import load_uci, open_archive

DATA = Path(os.environ.get("LOSSLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))


def standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0, ddof=1)


def write_set(
    folder: Path, name: str, features: list[np.ndarray], targets: list[np.ndarray], folds: list
) -> Path:
    """A set in the archive's format: one data file, or a training and a test file."""
    home = folder / name
    home.mkdir(parents=True)
    files = (
        [f"{name}_R.dat"] if len(features) == 1 else [f"{name}_train_R.dat", f"{name}_test_R.dat"]
    )
    classes = 1 + max(int(part.max()) for part in targets)
    facts = {"n_entradas": features[0].shape[1], "n_clases": classes, "n_arquivos": len(files)}
    for number, (file, x, y) in enumerate(zip(files, features, targets, strict=True), 1):
        facts |= {f"fich{number}": file, f"n_patrons{number}": len(y)}
        head = "".join(f"\tf{column + 1}" for column in range(x.shape[1])) + "\tclase"
        rows = [
            "\t".join([str(row + 1), *(f"{value:.6g}" for value in x[row]), str(y[row])])
            for row in range(len(y))
        ]
        (home / file).write_text("\n".join([head, *rows]) + "\n")
    (home / f"{name}.txt").write_text("".join(f"{key}= {value}\n" for key, value in facts.items()))
    lines = [" ".join(map(str, line)) + " \n" for line in folds]
    (home / "conxuntos_kfold.dat").write_text("".join(lines))
    (home / "conxuntos.dat").write_text("0 1\n2 3\n")
    return home


PLAIN = standardized(np.random.default_rng(0).normal(size=(40, 3)))
PLAIN_TARGETS = np.array([0] * 20 + [1] * 17 + [2] * 3)
FIRST = [list(range(39, 0, -4)) + list(range(2, 40, 4)) + list(range(1, 40, 4)), range(0, 40, 4)]
OTHERS = [[[0, 1, 2], [3, 4]], [[1, 2], [0]], [[5], [6]]]


@pytest.fixture
def sets(tmp_path) -> Path:
    """A folder of three sets: one with folds, one whose test file is raw, one without its data."""
    rng = np.random.default_rng(1)
    folds = [*FIRST, *(line for pair in OTHERS for line in pair)]
    write_set(tmp_path / "data", "plain", [PLAIN], [PLAIN_TARGETS], folds)
    (tmp_path / "data" / "plain" / "other_colours_R.dat").write_text("f1 estado\n1 v/at\n")
    train, test = standardized(rng.normal(size=(30, 2))), rng.normal(50, 7, size=(12, 2))
    targets = [np.arange(30) % 2, np.arange(12) % 2]
    write_set(tmp_path / "data", "apart", [train, test], targets, folds[:2])
    lost = write_set(tmp_path / "data", "miniboone", [PLAIN], [PLAIN_TARGETS], folds)
    (lost / "miniboone_R.dat").unlink()
    return tmp_path / "data"


def pack(folder: Path, to: Path, mode: str = "w:xz") -> Path:
    with tarfile.open(to, mode) as archive:
        archive.add(folder, "data")
    return to


def rows_of(splits, *which: int) -> np.ndarray:
    """The examples of some splits, target last, in a sorted order: a multiset to compare."""
    both = [torch.cat([splits[k][0], splits[k][1][:, None].float()], 1).numpy() for k in which]
    rows = np.concatenate(both)
    return rows[np.lexsort(rows.T)]


# ---------------------------------------------------------------- what is read


def test_a_set_with_folds(sets):
    """Oracle: the arrays that were written. The test part is the first fold's second line, in its
    order; train and validation together are its first line. Break: another fold, indices from 1, a
    row number or class taken for a feature."""
    data = load_uci(sets, "plain")
    train, validation, test = data.splits
    assert [len(part[1]) for part in data.splits] == [26, 4, 10]  # 4 = round(0.15 · 30), banker's
    expected = np.loadtxt(sets / "plain" / "plain_R.dat", skiprows=1)[:, 1:].astype(np.float32)
    np.testing.assert_array_equal(test[0].numpy(), expected[FIRST[1], :-1])
    assert test[1].tolist() == PLAIN_TARGETS[list(FIRST[1])].tolist()
    pool = expected[FIRST[0]]
    np.testing.assert_array_equal(rows_of(data.splits, 0, 1), pool[np.lexsort(pool.T)])
    assert train[0].dtype == torch.float32 and validation[1].dtype == torch.int64
    assert data.class_names == ("0", "1", "2") and data.inputs == 3
    assert data.facts["split"]["rule"] == "first fold of conxuntos_kfold.dat"
    assert data.facts["notes"] == []


def test_a_set_with_a_test_file(sets):
    """Oracle: numpy's mean and deviation. The raw test file is standardised by its own rows, the
    training file stays as it is to the bit, and the description says which was changed."""
    data = load_uci(sets, "apart", 0.2)
    assert [len(part[1]) for part in data.splits] == [24, 6, 12]
    raw = np.loadtxt(sets / "apart" / "apart_test_R.dat", skiprows=1)[:, 1:-1]
    np.testing.assert_allclose(data.splits[2][0].numpy(), standardized(raw), atol=1e-6)
    kept = np.loadtxt(sets / "apart" / "apart_train_R.dat", skiprows=1)[:, 1:].astype(np.float32)
    np.testing.assert_array_equal(rows_of(data.splits, 0, 1), kept[np.lexsort(kept.T)])
    (note,) = data.facts["notes"]
    assert note.startswith("apart_test_R.dat was not standardised")
    assert data.facts["split"]["rule"] == "test file apart_test_R.dat"


def test_a_constant_column_of_a_raw_file(tmp_path):
    """Oracle: a column that does not vary says nothing: 0, not NaN."""
    x = np.column_stack([np.arange(20) * 10.0, np.full(20, 7.0)])
    write_set(tmp_path, "flat", [x], [np.arange(20) % 2], [range(15), range(15, 20)])
    inputs = torch.cat([part[0] for part in load_uci(tmp_path, "flat").splits])
    assert inputs[:, 1].tolist() == [0.0] * 20
    assert inputs.isfinite().all() and inputs[:, 0].std() == pytest.approx(1)


@pytest.mark.parametrize("mode", ["w:xz", "w:gz", "w"])
def test_packed_or_unpacked(sets, tmp_path, mode):
    """Oracle: the unpacked folder. Break: a file of a set lost or mixed up in the tar file."""
    archive = pack(sets, tmp_path / "any-name.tar", mode)
    assert open_archive(archive).names == open_archive(sets).names
    for name in ("plain", "apart"):
        one, two = load_uci(archive, name), load_uci(sets, name)
        assert one.facts == two.facts
        for packed, unpacked in zip(one.splits, two.splits, strict=True):
            assert torch.equal(packed[0], unpacked[0]) and torch.equal(packed[1], unpacked[1])


def test_where_the_archive_is_looked_for(sets, tmp_path, monkeypatch):
    """Oracle: one of the places that the message names."""
    names = ("apart", "miniboone", "plain")
    assert open_archive(sets).names == open_archive(sets.parent).names == names
    home = tmp_path / "home" / "uci121"
    home.mkdir(parents=True)
    pack(sets, home / "uci121_data.tar.xz")
    for place in (home, home.parent, home / "uci121_data.tar.xz", str(home)):
        assert open_archive(place).names == names
    shutil.copytree(sets, home / "data")  # beside the packed one: quicker, so it is preferred
    assert open_archive(home.parent).place == home / "data"
    monkeypatch.setenv("LOSSLAB_DATA", str(home))
    assert open_archive().names == names
    monkeypatch.delenv("LOSSLAB_DATA")
    with pytest.raises(InputError, match=r"--data-dir.*LOSSLAB_DATA"):
        open_archive()
    with pytest.raises(InputError, match="no UCI sets in"):
        open_archive(tmp_path / "home" / "nowhere")


def test_a_changed_archive_is_read_again(sets, tmp_path):
    """Oracle: the second content under the same name. Break: an archive kept by its name alone."""
    archive = pack(sets, tmp_path / "a.tar.xz")
    before = open_archive(archive).names
    shutil.rmtree(sets / "apart")
    pack(sets, archive)
    assert before == ("apart", "miniboone", "plain")
    assert open_archive(archive).names == ("miniboone", "plain")


# ---------------------------------------------------------------- validation


def test_validation_is_drawn_by_the_split_seed(sets):
    """Oracle: same seed, same rows; other seeds, other rows; the test part never moves."""
    parts = [load_uci(sets, "plain", 0.3, seed).splits for seed in (0, 0, 1, 2)]
    validation = [rows_of(part, 1).tobytes() for part in parts]
    assert validation[0] == validation[1] and len(set(validation)) == 3
    assert all(torch.equal(part[2][0], parts[0][2][0]) for part in parts)


@pytest.mark.parametrize("fraction", [0.001, 0.15, 0.5])
def test_no_class_is_lost_from_training(sets, fraction):
    """Oracle: counts. Of three rows of a class at least one stays, and one row at least is held
    out; no row is in two parts."""
    for seed in range(5):
        data = load_uci(sets, "plain", fraction, seed)
        counts = torch.bincount(data.splits[0][1], minlength=3)
        assert counts.min() >= 1
        assert len(data.splits[1][1]) == max(1, round(fraction * 30))
        assert len({tuple(row) for row in rows_of(data.splits, 0, 1, 2).tolist()}) == 40


def test_classes_in_proportion(sets):
    """Oracle: half of each class's training rows, up to one. Break: a draw that ignores classes."""
    counts = np.bincount(PLAIN_TARGETS[FIRST[0]])
    for seed in range(10):
        data = load_uci(sets, "plain", 0.5, seed)
        found = torch.bincount(data.splits[1][1], minlength=3).numpy()
        assert (abs(found - counts / 2) <= 1).all()


# ---------------------------------------------------------------- what is refused


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def row(sets: Path, number: int) -> str:
    return (sets / "plain" / "plain_R.dat").read_text().splitlines()[number]


DAMAGE = {
    "no fold file": (lambda s: (s / "conxuntos_kfold.dat").unlink(), "kfold.dat is missing"),
    "no data file": (lambda s: (s / "plain_R.dat").unlink(), "plain_R.dat is missing"),
    "an empty data file": (lambda s: (s / "plain_R.dat").write_text(""), "no rows below"),
    "a header alone": (lambda s: (s / "plain_R.dat").write_text("f1 clase\n"), "no rows below"),
    "a row too few": (lambda s: edit(s / "plain.txt", "n_patrons1= 40", "n_patrons1= 41"),
                      r"41 rows of 5 numbers.*got 40 of 5"),
    "a column too few": (lambda s: edit(s / "plain.txt", "n_entradas= 3", "n_entradas= 4"),
                         r"40 rows of 6 numbers .*4 features.*got 40 of 5"),
    "text": (lambda s: edit(s / "plain_R.dat", row(s.parent, 3), "3 x 1 1 0"), "row 2, column 2"),
    "not a number": (lambda s: edit(s / "plain_R.dat", row(s.parent, 3), "3 nan 1 1 0"), "row 3"),
    "a short row": (lambda s: edit(s / "plain_R.dat", row(s.parent, 3), "3 1 1 0"), "columns"),
    "class too large": (lambda s: edit(s / "plain.txt", "n_clases= 3", "n_clases= 2"),
                        r"0\.\.1; got 2"),
    "half a class": (lambda s: edit(s / "plain_R.dat", row(s.parent, 3), "3 1 1 1 0.5"),
                     r"got 0\.5 in row 3"),
    "no number of classes": (lambda s: edit(s / "plain.txt", "n_clases", "classes"), "n_clases"),
    "a fact in words": (lambda s: edit(s / "plain.txt", "= 40", "= many"), "many"),
    "fold out of range": (lambda s: edit(s / "conxuntos_kfold.dat", "0 4 8", "0 40 8"),
                          r"0\.\.39; got 0\.\.40"),
    "fold below 0": (lambda s: edit(s / "conxuntos_kfold.dat", "0 4 8", "-1 4 8"), r"got -1"),
    "row in both parts": (lambda s: edit(s / "conxuntos_kfold.dat", "0 4 8", "1 4 8"), "disjoint"),
    "one line": (lambda s: (s / "conxuntos_kfold.dat").write_text("1 2 3\n"), "line of test"),
    "no test rows": (lambda s: (s / "conxuntos_kfold.dat").write_text("1 2\n\n"), "disjoint"),
    "words for folds": (lambda s: (s / "conxuntos_kfold.dat").write_text("1 b\n2\n"), "'b'"),
    "too few rows": (lambda s: (s / "conxuntos_kfold.dat").write_text("0 39\n3\n"), "too few"),
    "one class": (lambda s: (s / "conxuntos_kfold.dat").write_text("0 1 2\n3\n"), "too few"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE, ids=str)
def test_damage_is_told_with_the_name_of_the_set(sets, case):
    """Oracle: the damage done. Break: a damaged set that is read, or a message without its name."""
    damage, words = DAMAGE[case]
    damage(sets / "plain")
    with pytest.raises(InputError, match=words) as caught:
        load_uci(sets, "plain")
    assert "'plain'" in str(caught.value)


def test_constant_features(tmp_path):
    """Oracle: a file of one row repeated has nothing to learn from."""
    targets = np.arange(20) % 2
    write_set(tmp_path, "still", [np.ones((20, 2))], [targets], [range(15), range(15, 20)])
    with pytest.raises(InputError, match=r"'still': still_R.dat: every feature is constant"):
        load_uci(tmp_path, "still")


def test_missing_data_of_miniboone(sets, tmp_path):
    """Oracle: the message names the set, the file, and what to do; packed as unpacked."""
    for place in (sets, pack(sets, tmp_path / "a.tar.xz")):
        with pytest.raises(InputError, match=r"'miniboone': miniboone_R\.dat is missing.*exclude"):
            load_uci(place, "miniboone")


def test_unknown_set(sets):
    """Oracle: the nearest name."""
    with pytest.raises(InputError, match=r"no UCI set 'plane'\. Did you mean 'plain'"):
        load_uci(sets, "plane")


def test_damaged_archives(sets, tmp_path):
    """Oracle: an error about the file, whatever is wrong with it, and no traceback of tarfile's."""
    whole = pack(sets, tmp_path / "whole.tar.xz").read_bytes()
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("data/readme.txt"), io.BytesIO())
    for content, words in (
        (whole[: len(whole) // 2], "cannot be read as a tar archive"),
        (b"not an archive", "cannot be read as a tar archive"),
        (b"", "cannot be read as a tar archive"),
        (other.getvalue(), "holds no UCI sets"),
    ):
        (tmp_path / "bad.tar.xz").write_bytes(content)
        with pytest.raises(InputError, match=words):
            open_archive(tmp_path / "bad.tar.xz")


# ---------------------------------------------------------------- in a study


def test_study_of_all_sets(sets, tmp_path):
    """Oracle: the sets that were written, less the excluded one; models as wide as a set's inputs.
    Break: a set lost, another set's data, or an unknown name that is passed over."""
    study = read_recipe("ba-t4", data_dir=sets)
    assert study.datasets() == ["apart", "plain"]
    task = study.task("plain", "hidden")
    assert [tuple(p.shape) for p in task.model().parameters()] == [(3, 3), (3,), (3, 3), (3,)]
    assert len(task.test) == 10 and task.num_classes == 3 and task.batch_size == 8
    assert study.task("apart", "linear").description["notes"]
    with pytest.raises(InputError, match=r"--set data\.sets: .* Did you mean 'plain'"):
        study.changed({"data.sets": ["plane"]}).datasets()
    text = recipe_toml("ba-t4").replace('sets = "all"', 'sets = ["apart",\n"plane"]')
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    line = text.splitlines().index('"plane"]') + 1
    with pytest.raises(InputError, match=rf"mine\.toml, line {line}: no data set 'plane'"):
        read_recipe(tmp_path / "mine.toml", data_dir=sets).datasets()
    everything = study.changed({"data.exclude": []})
    assert "miniboone" in everything.datasets()
    with pytest.raises(InputError, match=r"miniboone_R\.dat is missing"):
        everything.task("miniboone", "linear")


def test_identity_is_of_the_data_not_of_their_place(sets, tmp_path):
    """Oracle: the same sets packed elsewhere; and one number changed. Break: a study that starts
    over on another machine, or goes on with other data."""
    study = read_recipe("ba-t4", data_dir=sets)
    packed = read_recipe("ba-t4", data_dir=pack(sets, tmp_path / "a.tar.xz"))
    before = study.identity("plain", "linear")
    assert packed.identity("plain", "linear") == before
    edit(sets / "plain" / "plain_R.dat", row(sets, 3), "3 0.1 0.2 0.3 0")
    assert study.identity("plain", "linear") != before


# ---------------------------------------------------------------- the real archive

MISMATCHED = {
    "annealing": "test", "hayes-roth": "test", "hill-valley": "test", "horse-colic": "test",
    "image-segmentation": "test", "soybean": "test", "spect": "test", "monks-1": "train",
    "monks-2": "train", "monks-3": "train", "spectf": "train",
}  # fmt: skip


@pytest.fixture(scope="module")
def real() -> Path:
    place = DATA / "uci121"
    if not (place / "uci121_data.tar.xz").is_file():
        pytest.skip(f"no real data: {place} (set LOSSLAB_DATA)")
    return place


def test_all_real_sets(real):
    """Oracle: the sizes in the summary that was made apart from this code, the fold files read
    here, and the rule of 15 %. Break: a set that cannot be read, wrong sizes, NaN, a class lost
    from training, a file left on another scale, or a file changed that should not be."""
    facts = {entry[0]: entry for entry in json.loads((real / "summary.json").read_text())}
    archive = open_archive(real)
    assert len(archive.names) == 121 and set(archive.names) == set(facts)
    changed = {}
    for name in archive.names:
        if name == "miniboone":
            continue
        data = load_uci(real, name)
        inputs, classes, rows, test_rows = (int(value or 0) for value in facts[name][1:5])
        train, validation, test = data.splits
        sizes = [len(part[1]) for part in data.splits]
        folds = archive.read(name, "conxuntos_kfold.dat").splitlines()
        pool = rows if test_rows else len(folds[0].split())
        assert sizes == [pool - sizes[1], max(1, round(0.15 * pool)), test_rows or rows - pool]
        assert len(data.class_names) == classes and data.inputs == inputs
        assert torch.bincount(train[1], minlength=classes).min() >= 1, name
        assert all(part[0].isfinite().all() for part in (train, validation, test))
        for note in data.facts["notes"]:
            changed[name] = note.partition("_R.dat")[0].removeprefix(f"{name}_")
    assert changed == MISMATCHED


@pytest.mark.parametrize(
    "name", ["iris", "trains", "lenses", "primary-tumor", "abalone", "monks-1"]
)
def test_real_splits_are_the_files_rows(real, name):
    """Oracle: the rows of the fold lines (or of the training file), taken from the text here: as a
    multiset train and validation are the first line, test is the second, in order."""
    archive, data = open_archive(real), load_uci(real, name)
    file = f"{name}_train_R.dat" if name == "monks-1" else f"{name}_R.dat"
    table = np.array([line.split() for line in archive.read(name, file).splitlines()[1:]], float)
    if name == "monks-1":
        table[:, 1:-1] = standardized(table[:, 1:-1])
        pool = table[:, 1:]
    else:
        lines = archive.read(name, "conxuntos_kfold.dat").splitlines()
        first, second = ([int(index) for index in line.split()] for line in lines[:2])
        pool, test = table[first, 1:], table[second, 1:].astype(np.float32)
        np.testing.assert_array_equal(data.splits[2][0].numpy(), test[:, :-1])
        assert data.splits[2][1].tolist() == test[:, -1].tolist()
    found = rows_of(data.splits, 0, 1)
    pool = pool.astype(np.float32)
    np.testing.assert_allclose(found, pool[np.lexsort(pool.T)], atol=1e-6)

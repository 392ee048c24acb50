"""The 121 UCI sets of Fernández-Delgado et al. (JMLR 2014), split after Klambauer et al. (2017).

The archive holds a folder a set:

    NAME.txt              inputs, classes, rows, and which data files are the set's own
    *_R.dat               a header; then row number, features, class (from 0)
    conxuntos_kfold.dat   four times a line of training rows and a line of test rows (from 0)

A set with a second data file is tested on that file and trained on the first; any other on the
first of the four folds. The validation part is drawn anew from the training part: the lists that
Klambauer et al. drew are not in the archive.

The archive says that every file's features have mean 0 and deviation 1. In eleven of the nineteen
sets with a test file one of the two files has not (the test file of *annealing* holds raw numbers
up to 4880, its training file does not), so that a model trained on one cannot be tested on the
other. Such a file is standardised here by its own rows, which is what the archive did with the
rest; the description of the task says so. All other numbers are the archive's.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from losslab.errors import InputError, nearest
from losslab.experiment.data_sets import DataSet
from losslab.experiment.tasks.split import keep

if TYPE_CHECKING:
    import numpy as np

ARCHIVES = ("uci121_data.tar.xz", "data.tar.gz")
FOLDS = "conxuntos_kfold.dat"
OFF = 0.01  # a mean this far from 0, or a deviation this far from 1, is not standardised
_DAMAGE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Archive:
    """The sets at a place by name: each a folder, or the contents of its files by file name."""

    place: Path
    sets: Mapping[str, Path | Files]

    @property
    def names(self) -> tuple[str, ...]:
        """The sets in alphabetical order, those whose data file is missing included."""
        return tuple(sorted(self.sets))

    def files(self, name: str) -> Path | Files:
        """Where a set's files are."""
        if name not in self.sets:
            raise InputError(
                f"{self.place} has no UCI set {name!r}.{nearest(name, self.sets)} "
                f"It has {len(self.sets)} sets: {', '.join(self.names[:5])}, …"
            )
        return self.sets[name]

    def changed(self, name: str) -> int:
        """When a set was last written: nanoseconds, for telling whether a copy of it is stale."""
        files = self.files(name)
        paths = files.iterdir() if isinstance(files, Path) else [self.place]
        return max(path.stat().st_mtime_ns for path in paths)

    def read(self, name: str, file: str) -> bytes:
        """A file of a set."""
        files = self.files(name)
        try:
            return (files / file).read_bytes() if isinstance(files, Path) else files[file]
        except (KeyError, FileNotFoundError):
            raise InputError(
                f"UCI set {name!r}: {file} is missing in {self.place}. "
                "Add the file, or exclude the set from the study ([data] exclude)."
            ) from None


def open_archive(place: str | Path | None = None) -> Archive:
    """The archive at a place: the tar file, the unpacked folder, or a folder that has either.

    A tar file is read once a process, in about a second, and held in memory (some 110 MB); of an
    unpacked folder only what is asked for is read.

    Args:
        place: A file or folder; None takes the environment's ``LOSSLAB_DATA``.

    Raises:
        InputError: If there is no archive, or it is damaged.
    """
    given = place if place is not None else os.environ.get("LOSSLAB_DATA") or None
    if given is None:
        raise InputError(
            "the UCI sets are read from a file or folder: say where it is with --data-dir (data_dir"
            f" in Python) or the environment's LOSSLAB_DATA. Expected {_EXPECTED}."
        )
    root = Path(given).expanduser()
    if root.is_file():
        return _tar(root)
    for folder in (root, root / "data", root / "uci121", root / "uci121" / "data"):
        sets = _folders(folder, folder.stat().st_mtime_ns) if folder.is_dir() else {}
        if sets:
            return Archive(folder, sets)
    for folder in (root, root / "uci121"):
        for name in ARCHIVES:
            if (folder / name).is_file():
                return _tar(folder / name)
    raise InputError(f"no UCI sets in {root}: expected {_EXPECTED}.")


_EXPECTED = (
    f"the archive ({' or '.join(ARCHIVES)}) or the folder it unpacks to, with one folder a set "
    "(iris/iris.txt, iris/iris_R.dat, …)"
)


@lru_cache(maxsize=4)
def _folders(root: Path, _changed: int) -> dict[str, Path]:
    return {
        folder.name: folder
        for folder in root.iterdir()
        if (folder / f"{folder.name}.txt").is_file()
    }


def _tar(path: Path) -> Archive:
    status = path.stat()
    return _read_tar(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _read_tar(path: Path, _size: int, _changed: int) -> Archive:
    """Everything in one pass: to reach one file, all that lies before it must be unpacked too."""
    sets: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                where = PurePosixPath(member.name)
                wanted = where.suffix == ".txt" or where.name == FOLDS
                if member.isfile() and (wanted or where.name.endswith("_R.dat")):
                    file = archive.extractfile(member)
                    assert file is not None
                    sets.setdefault(where.parent.name, {})[where.name] = file.read()
    except _DAMAGE as error:
        raise InputError(
            f"{path} cannot be read as a tar archive ({type(error).__name__}: {error}). "
            f"Expected {_EXPECTED}; fetch or copy it again."
        ) from None
    known = {name: files for name, files in sets.items() if f"{name}.txt" in files}
    if not known:
        raise InputError(f"{path} holds no UCI sets: expected {_EXPECTED}.")
    return Archive(path, known)


@dataclass(frozen=True)
class _Header:
    """What NAME.txt says."""

    inputs: int
    classes: int
    files: tuple[str, ...]
    rows: tuple[int, ...]


def load_uci(
    place: str | Path | None, name: str, validation_fraction: float = 0.15, split_seed: int = 0
) -> DataSet:
    """One set, split into train, validation and test.

    Args:
        place: See `open_archive`.
        name: The set's name, which is its folder's.
        validation_fraction: Share of the training part that is held out, rounded, at least one
            example: classes in proportion, but the last example of a class stays in training.
        split_seed: Decides which.

    Raises:
        InputError: With the set's name, if a file is missing or does not hold what it should.
    """
    import numpy as np

    archive = open_archive(place)
    header = _read_header(archive, name)
    tables = [
        _read_table(archive, name, header, file, rows)
        for file, rows in zip(header.files, header.rows, strict=True)
    ]
    notes = []
    for number, (features, targets) in enumerate(tables):
        features, changed = _standardized(features)
        tables[number] = (features, targets)
        if changed:
            notes.append(
                f"{header.files[number]} was not standardised in the archive: each column set to "
                "mean 0 and deviation 1 over the file's own rows"
            )
    features, targets = tables[0]
    if len(tables) == 2:
        pool, rule, test = np.arange(len(targets)), f"test file {header.files[1]}", tables[1]
    else:
        pool, held_out = _first_fold(archive, name, len(targets))
        rule, test = f"first fold of {FOLDS}", (features[held_out], targets[held_out])
    train, validation = _divide(name, targets, pool, validation_fraction, split_seed)
    return DataSet(
        name,
        tuple(
            _tensors(*split)
            for split in (
                (features[train], targets[train]),
                (features[validation], targets[validation]),
                test,
            )
        ),
        tuple(str(label) for label in range(header.classes)),
        {
            "source": f"UCI set {name} as prepared by Fernández-Delgado et al. 2014",
            "split": {"rule": rule, "validation": validation_fraction, "seed": split_seed},
            "preprocessing": ["each column standardised by the rows of its file (in the archive)"],
            "notes": notes,
        },
    )


def _read_header(archive: Archive, name: str) -> _Header:
    text = archive.read(name, f"{name}.txt").decode("latin-1")
    said = {
        key.strip(): value.strip()
        for key, equals, value in (line.partition("=") for line in text.splitlines())
        if equals
    }
    numbers = range(1, 3 if "fich2" in said else 2)
    try:
        return _Header(
            int(said["n_entradas"]),
            int(said["n_clases"]),
            tuple(said[f"fich{number}"] for number in numbers),
            tuple(int(said[f"n_patrons{number}"]) for number in numbers),
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            f"UCI set {name!r}: {name}.txt does not say what it should ({error}); expected lines "
            "such as 'n_entradas= 4', 'n_clases= 3', 'fich1= iris_R.dat', 'n_patrons1= 150'."
        ) from None


def _read_table(
    archive: Archive, name: str, header: _Header, file: str, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(rows, inputs)`` in float64 and class numbers of one data file."""
    import numpy as np

    where = f"UCI set {name!r}: {file}"
    content = archive.read(name, file)
    try:
        if content.count(b"\n") < 2:
            raise ValueError("no rows below the header")
        table = np.loadtxt(io.BytesIO(content), skiprows=1, ndmin=2, comments=None)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{where} cannot be read as a table of numbers: {reason}.") from None
    expected = (rows, header.inputs + 2)
    if table.shape != expected:
        raise InputError(
            f"{where} should have {expected[0]} rows of {expected[1]} numbers (row number, "
            f"{header.inputs} features, class) by {name}.txt; got {table.shape[0]} of "
            f"{table.shape[1]}."
        )
    if not np.isfinite(table).all():
        bad = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise InputError(f"{where} holds a number that is not finite, in row {bad + 1}.")
    features, classes = table[:, 1:-1], table[:, -1]
    wrong = (classes != classes.round()) | (classes < 0) | (classes >= header.classes)
    if wrong.any():
        raise InputError(
            f"{where}: classes must be whole numbers in 0..{header.classes - 1}; got "
            f"{classes[wrong][0]:g} in row {int(np.flatnonzero(wrong)[0]) + 1}."
        )
    if not (np.ptp(features, axis=0) > 0).any():
        raise InputError(f"{where}: every feature is constant; there is nothing to learn from.")
    return features, classes.astype(np.int64)


def _standardized(features: np.ndarray) -> tuple[np.ndarray, bool]:
    """Columns of mean 0 and deviation 1, and whether they were not so already."""
    import numpy as np

    varies = np.ptp(features, axis=0) > 0
    mean, deviation = features.mean(axis=0), features.std(axis=0, ddof=1)
    off = (abs(mean) > OFF) | (abs(deviation - 1) > OFF)
    if not off[varies].any():
        return features, False
    return (features - mean) / np.where(varies, deviation, 1.0), True


def _first_fold(archive: Archive, name: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The first pair of lines: rows for training and rows for testing."""
    import numpy as np

    lines = archive.read(name, FOLDS).decode("latin-1").splitlines()[:2]
    where = f"UCI set {name!r}: {FOLDS}"
    try:
        train, test = (np.array([int(row) for row in line.split()]) for line in lines)
    except ValueError as error:
        raise InputError(
            f"{where} should begin with a line of training rows and a line of test rows ({error})."
        ) from None
    together = np.concatenate([train, test])
    if not len(train) or not len(test) or len(np.unique(together)) != len(together):
        raise InputError(f"{where}: its first two lines must be two disjoint lists of rows.")
    if together.min() < 0 or together.max() >= rows:
        raise InputError(
            f"{where}: rows must lie in 0..{rows - 1}; got {together.min()}..{together.max()}."
        )
    return train, test


def _divide(
    name: str, targets: np.ndarray, pool: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of ``pool`` for training, and those for validation."""
    import numpy as np

    pool = np.sort(pool)
    classes = len(np.unique(targets[pool]))
    held_out = max(1, round(fraction * len(pool)))
    if classes < 2 or len(pool) - held_out < classes:
        raise InputError(
            f"UCI set {name!r}: {len(pool)} training rows of {classes} classes are too few to hold "
            f"out {held_out} for validation and keep one of each of at least two classes."
        )
    kept = keep(targets[pool], len(pool) - held_out, seed)
    return pool[kept], np.delete(pool, kept)


def _tensors(features: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.tensor(features, dtype=torch.float32), torch.from_numpy(targets)

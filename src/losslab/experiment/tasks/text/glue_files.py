"""The sentences of five GLUE tasks from their tab-separated files, in a folder or an archive.

GLUE's own form (gluebenchmark.com) is a folder or ``CoLA.zip`` a task, with ``train.tsv`` and
``dev.tsv``; labels of the test files are not public, so ``dev.tsv`` is the test set here, as in the
papers. A ``train_full.tsv`` goes before a ``train.tsv`` (which is then a part of it), and where
there is no ``dev.tsv``, a ``test.tsv`` with labels is taken for it. All tasks may be in one archive
(``glue.tar.xz``, ``glue.zip``).

Rows come out sorted, so that their order in the files, which differs between copies, decides
nothing.
"""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from losslab.errors import InputError
from losslab.experiment.tasks.official import places

WHERE_TO_GET = "https://gluebenchmark.com/tasks"
FOLDERS = ("glue", "GLUE", "glue_data")
ARCHIVES = ("glue.tar.xz", "glue.tar.gz", "glue.zip", "glue_data.zip")
TRAIN, DEV = ("train_full.tsv", "train.tsv"), ("dev.tsv", "test.tsv")
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Form:
    """A GLUE task: its folder, columns, classes, and how many examples the official files have."""

    folder: str
    texts: tuple[str | int, ...]  # columns, by name or, where the file has no header, by place
    label: str | int
    classes: tuple[str, ...]
    labels: tuple[str, ...]  # as the files write the classes
    sizes: tuple[int, int]


_BINARY = ("0", "1")
_PAIR = ("sentence1", "sentence2")
_WORDS = ("entailment", "not_entailment")
FORMS = {
    "cola": Form("CoLA", (3,), 1, ("unacceptable", "acceptable"), _BINARY, (8551, 1043)),
    "sst2": Form("SST-2", ("sentence",), "label", ("negative", "positive"), _BINARY, (67349, 872)),
    "mrpc": Form(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("not equivalent", "equivalent"),
        _BINARY,
        (3668, 408),
    ),
    "rte": Form("RTE", _PAIR, "label", ("entailment", "not entailment"), _WORDS, (2490, 277)),
    "wnli": Form("WNLI", _PAIR, "label", ("not entailment", "entailment"), _BINARY, (635, 71)),
}

KNOWN_SHA256 = {  # of the sorted rows of training and dev set, in the copies known here
    "cola": (
        "341ba9a48249f13824bca62df0a404bb70406c870930edfda64cfbb05aac43fe",
        "dff869e88eebbaf405bba23f981e558c9ab4633f4c17597f4403b75731e32cd0",
    ),
    "sst2": (
        "ca824966e1ed7c49b849e1fa103221b0ceaf9cefe96ee59ed2d3ebdc6db6dec0",
        "05afe7d8f50f80d4c1d5299936a7b90e67c3c7e73c998de31b70e33350299154",
    ),
    "mrpc": (
        "f0ea6f0c3ac8e040a4bb9a9aa55c9906ee5b49e410bbe0a2af500878fb90683d",
        "c48dca502c97c1b0e99a19005d3c0d91fc94736d90d7e98879953833c0f54d5a",
    ),
    "rte": (
        "1a32c0795bde3d18dfb6b2b65e9f79e402109a15d7962dbf7568bc58d58307b3",
        "e381b1619b2534bed16e3313c1124308fcc7f2ab66b2ac22f4186c0bf03e825d",
    ),
    "wnli": (
        "2ce5e96a8ba28e994de78edf9132595e02516ceb9ae81b6d2a6ecc61bf16c343",
        "e382758bfaabb127d7e17d57ed25a5977b9fae409935ad3ccbc4fc4975a3043b",
    ),
}


@dataclass(frozen=True)
class Sentences:
    """One or two texts an example, and the class numbers."""

    texts: tuple[tuple[str, ...], ...]  # an example each
    labels: tuple[int, ...]
    sha256: str


def read_glue(name: str, data_dir: str | Path | None) -> tuple[Sentences, Sentences]:
    """Training and dev examples of ``cola``, ``sst2``, ``mrpc``, ``rte`` or ``wnli``.

    Raises:
        InputError: If they are not found, or a file is damaged or another one.
    """
    form = FORMS[name]
    wanted = (
        f"glue-{name} is read from {form.folder}/train.tsv and dev.tsv, or from {form.folder}.zip "
        f"or {ARCHIVES[0]} with them ({WHERE_TO_GET})"
    )
    looked = places(wanted, data_dir, FOLDERS)
    for place in looked:
        archives = (place / file for file in (f"{form.folder}.zip", *ARCHIVES))
        for source in (place / form.folder, *archives):
            if source.exists():
                status = source.stat()
                files = _files(source, form.folder, status.st_size, status.st_mtime_ns)
                if files:
                    return _examples(source, form, files)
    raise InputError(f"{wanted}; none found. Looked in {', '.join(map(str, looked))}.")


def _examples(
    source: Path, form: Form, files: tuple[tuple[str, bytes], ...]
) -> tuple[Sentences, Sentences]:
    held = dict(files)
    found = []
    for names in (TRAIN, DEV):
        chosen = next((name for name in names if name in held), None)
        if chosen is None:
            raise InputError(
                f"{source}: expected {' or '.join(names)} for {form.folder}; it holds "
                f"{', '.join(held)}. Copy or download the missing file ({WHERE_TO_GET})."
            )
        found.append(_read(f"{source}, {chosen}", held[chosen], form))
    return found[0], found[1]


def _read(where: str, content: bytes, form: Form) -> Sentences:
    """The rows of a file, sorted by their texts and label."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected UTF-8 text ({error}). The file is damaged: download it again."
        ) from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    header = None if isinstance(form.label, int) else lines.pop(0).split("\t")
    columns = [_place(where, column, header) for column in (form.label, *form.texts)]
    rows = []
    for number, line in enumerate(lines, start=1 if header is None else 2):
        cells = line.split("\t")
        if len(cells) <= max(columns) or cells[columns[0]] not in form.labels:
            raise InputError(
                f"{where}, line {number}: expected a label ({' or '.join(form.labels)}) in column "
                f"{columns[0] + 1} and text in column {max(columns[1:]) + 1}; got {line[:60]!r}. "
                "The file is cut short, damaged or another one: download it again."
            )
        texts = tuple(cells[column].strip() for column in columns[1:])
        rows.append((*texts, cells[columns[0]]))
    if not rows:
        raise InputError(f"{where}: no rows. The file is cut short: download it again.")
    rows.sort()
    digest = hashlib.sha256("\n".join("\t".join(row) for row in rows).encode()).hexdigest()
    labels = tuple(form.labels.index(row[-1]) for row in rows)
    return Sentences(tuple(row[:-1] for row in rows), labels, digest)


def _place(where: str, column: str | int, header: Sequence[str] | None) -> int:
    if isinstance(column, int):
        return column
    assert header is not None
    if column not in header:
        raise InputError(
            f"{where}: expected a column {column!r} in the header line; got "
            f"{', '.join(header)[:80]!r}. Is it another task's file, or one without labels?"
        )
    return header.index(column)


@lru_cache(maxsize=2)
def _files(source: Path, folder: str, _size: int, _changed: int) -> tuple[tuple[str, bytes], ...]:
    """Name and content of a task's files in a folder or an archive; an archive is read once."""
    try:
        return tuple((name, content) for name, content in _contents(source, folder))
    except _DAMAGE as error:
        raise InputError(
            f"{source}: cannot be read; it is damaged or cut short ({type(error).__name__}: "
            f"{error}). Download it again."
        ) from None


def _contents(source: Path, folder: str) -> Iterator[tuple[str, bytes]]:
    wanted = {*TRAIN, *DEV}
    if source.is_dir():
        for name in sorted(wanted):
            if (source / name).is_file():
                yield name, (source / name).read_bytes()
        return
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as packed:
            for member in packed.namelist():
                if _is_of(member, folder, wanted):
                    yield PurePosixPath(member).name, packed.read(member)
        return
    with tarfile.open(source, "r|*") as archive:
        for entry in archive:
            file = archive.extractfile(entry) if _is_of(entry.name, folder, wanted) else None
            if file is not None:
                yield PurePosixPath(entry.name).name, file.read()


def _is_of(member: str, folder: str, wanted: set[str]) -> bool:
    path = PurePosixPath(member)
    return path.name in wanted and path.parent.name == folder and "__MACOSX" not in path.parts

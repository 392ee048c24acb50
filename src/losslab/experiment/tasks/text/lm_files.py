"""Texts for a language model: lines, or prompts with their completions.

A folder holds ``train``, and may hold ``validation`` (or ``val``, ``valid``, ``dev``) and ``test``;
or one file holds all. By their ending:

    .jsonl   an object a line: {"prompt": …, "completion": …}, or {"text": …}
    .csv     the same as columns
    .txt     a text a line; empty lines are passed over

each may be gzipped (``train.jsonl.gz``).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from losslab.errors import InputError

Text = tuple[str, str]  # a prompt, which is not learned, and what is to follow it

_STEMS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_ENDINGS = (".jsonl", ".csv", ".txt")
FORMS = (
    '.jsonl with {"prompt": …, "completion": …} or {"text": …} a line, .csv with such columns, or '
    ".txt with a text a line, each gzipped or not"
)
_DAMAGE = (OSError, EOFError, zlib.error)


def read_texts(place: str | Path | None) -> dict[str, list[Text]]:
    """The texts by split: those of the files of a folder, or under ``train`` those of one file.

    Raises:
        InputError: If there is no such file, it is damaged, or a line does not hold what it should.
    """
    if place is None:
        raise InputError(
            "a language model learns from a file or folder of texts: say with data_dir "
            f"(--data-dir) where. Expected train and, if there are any, validation and test: "
            f"{FORMS}."
        )
    path = Path(place).expanduser()
    if path.is_file():
        return {"train": read_file(path)}
    files = {split: _find(path, stems) for split, stems in _STEMS.items()}
    if files["train"] is None:
        raise InputError(f"{path}: expected a file train: {FORMS}; there is none.")
    return {split: read_file(file) for split, file in files.items() if file is not None}


def read_file(path: Path) -> list[Text]:
    """The texts of one file."""
    content = _content(path)
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    if ending == "jsonl":
        found = _jsonl(path, content)
    elif ending == "csv":
        found = _csv(path, content)
    elif ending == "txt":
        found = [("", line) for line in content.split("\n") if line.strip()]
    else:
        raise InputError(f"{path}: expected {FORMS}; got another kind of file.")
    if not found:
        raise InputError(f"{path}: expected at least one text, but the file has none.")
    return found


def _find(folder: Path, stems: Iterable[str]) -> Path | None:
    names = (f"{stem}{end}{gz}" for stem in stems for end in _ENDINGS for gz in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _content(path: Path) -> str:
    try:
        packed = path.read_bytes()
        plain = gzip.decompress(packed) if path.name.endswith(".gz") else packed
        return plain.decode("utf-8-sig").replace("\r\n", "\n")
    except (*_DAMAGE, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read as UTF-8 text ({type(error).__name__}: {error}). The file is "
            "damaged, cut short or another: copy or download it again."
        ) from None


def _jsonl(path: Path, content: str) -> list[Text]:
    found = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: expected a JSON object ({error}). Correct the line; if it "
                "is the last one, the file is cut short: copy or download it again."
            ) from None
        found.append(_text(f"{path}, line {number}", row))
    return found


def _csv(path: Path, content: str) -> list[Text]:
    rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        return [_text(f"{path}, line {rows.line_num}", row) for row in rows]
    except csv.Error as error:
        raise InputError(
            f"{path}, line {rows.line_num}: not valid CSV ({error}). Correct the line; if it is "
            "the last one, the file is cut short: copy or download it again."
        ) from None


def _text(where: str, row: Any) -> Text:
    named = row if isinstance(row, Mapping) else {}
    keys = ("text",) if "completion" not in named else ("prompt", "completion")
    values = [named.get(key, "" if key == "prompt" else None) for key in keys]
    if not all(isinstance(value, str) for value in values) or not values[-1]:
        raise InputError(
            f'{where}: expected a "completion" (with its "prompt", if there is one) or a "text", '
            f"each a text and not empty; got {row!r:.80}."
        )
    return (values[0] if len(values) == 2 else "", values[-1])

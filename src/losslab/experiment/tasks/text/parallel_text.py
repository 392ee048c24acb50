"""Sentence pairs of Multi30k, IWSLT14 and IWSLT17 from the files that their makers hand out.

Multi30k (github.com/multi30k/dataset, ``data/task1/raw``): a sentence a line, ``train.de.gz``,
``val.de.gz``, ``test_2016_flickr.de.gz`` and the like for each language, gzipped or not.

IWSLT14 (``de-en.tgz``, or the folder ``de-en`` it unpacks to): training lines among tags in
``train.tags.de-en.de``, the talks of dev2010, dev2012, tst2010, tst2011 and tst2012 as XML. Split
and clean-up are those of fairseq's ``prepare-iwslt14.sh``: of the training pairs every 23rd is for
validation, the five sets of talks together are the test, all in lower case.

IWSLT17 (``fr-en.tgz``, or the folder ``fr-en``) has the same form, with more tags. Its talks of
dev2010 are for validation, those of tst2010 to tst2015 together the test, as they are written.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from losslab.errors import InputError
from losslab.experiment.tasks.official import places

SPLITS = ("train", "validation", "test")
MULTI30K = "https://github.com/multi30k/dataset"
IWSLT14 = "https://wit3.fbk.eu/2014-01"
IWSLT17 = "https://wit3.fbk.eu"
_MULTI30K_FOLDERS = ("multi30k", "multi30k/raw", "multi30k/data/task1/raw", "data/task1/raw", "raw")
_STEMS = {"train": ("train",), "validation": ("val",), "test": ("test_2016_flickr", "test2016")}
# Of the decompressed files.
_OFFICIAL_SHA256 = {
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "train.fr": "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "val.fr": "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "test_2016_flickr.fr": "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
}
_TALKS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
_TALKS17 = tuple(f"TED.tst{year}" for year in range(2010, 2016))
_TAGS = "url|talkid|keywords"
_TAGS17 = f"{_TAGS}|speaker|reviewer|translator|/?doc"
_EVERY = 23
_LONGEST, _UNEVEN = (
    175,
    1.5,
)  # words in a training sentence; words of one side for each of the other
_DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError)

Read = Callable[[str], str]


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, one for one."""

    source: tuple[str, ...]
    target: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Corpus:
    """The splits of a set, and what is to be said of them."""

    splits: dict[str, Pairs]
    notes: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Of all sentences in their order."""
        digest = hashlib.sha256()
        for name, pairs in self.splits.items():
            for sentences in (pairs.source, pairs.target):
                digest.update(f"{name} {len(sentences)}\n".encode())
                digest.update("\n".join(sentences).encode())
        return digest.hexdigest()


def read_multi30k(data_dir: str | Path | None, source: str, target: str) -> Corpus:
    """Multi30k's training, validation and 2016 test pairs of two languages (de, en, fr).

    Raises:
        InputError: If a file is missing or damaged, or two do not belong together.
    """
    wanted = f"Multi30k is read from train.{source}.gz and the like (gzipped or not; {MULTI30K})"
    looked = places(wanted, data_dir, _MULTI30K_FOLDERS)
    folder = next((place for place in looked if _file(place, "train", source)), None)
    if folder is None:
        raise InputError(
            f"{wanted}; no training sentences found. Looked in {', '.join(map(str, looked))}."
        )
    splits, notes = {}, []
    for split in SPLITS:
        sides = []
        for language in (source, target):
            path = _file(folder, split, language)
            if path is None:
                raise InputError(
                    f"{folder}: expected {_STEMS[split][0]}.{language}.gz (or without .gz) beside "
                    f"train.{source}; it is missing. Copy or download it."
                )
            content = _content(path)
            official = _OFFICIAL_SHA256[f"{_STEMS[split][0]}.{language}"]
            if hashlib.sha256(content).hexdigest() != official:
                notes.append(f"not the official Multi30k: {path.name} is another file")
            sides.append(_lines(_text(path, content)))
        splits[split] = _paired(f"{folder}, {split}", *sides)
    return Corpus({**splits, "train": _without_empty(splits["train"], notes)}, notes)


def read_iwslt14(data_dir: str | Path | None, source: str = "de", target: str = "en") -> Corpus:
    """IWSLT14's pairs, split and cleaned as fairseq does it.

    Raises:
        InputError: If a file is missing or damaged, or two do not belong together.
    """
    languages = (source, target)
    read = _iwslt("IWSLT14", IWSLT14, "de-en", data_dir)
    rows, notes = _training(read, "de-en", languages, _TAGS)
    held = [row for number, row in enumerate(rows, 1) if number % _EVERY == 0]
    rest = [row for number, row in enumerate(rows, 1) if number % _EVERY]
    talks = _talks(read, "IWSLT14", _TALKS, "de-en", languages)
    parts = {"train": rest, "validation": held, "test": talks}
    for split, of in parts.items():
        if not of:
            raise InputError(f"IWSLT14 de-en: expected {split} pairs, but there are none.")
    return Corpus({split: _lower(of) for split, of in parts.items()}, notes)


def read_iwslt17(data_dir: str | Path | None, source: str = "fr", target: str = "en") -> Corpus:
    """IWSLT17's French and English pairs, in their own sets of talks.

    Raises:
        InputError: If a file is missing or damaged, or two do not belong together.
    """
    languages = (source, target)
    read = _iwslt("IWSLT17", IWSLT17, "fr-en", data_dir)
    rows, notes = _training(read, "fr-en", languages, _TAGS17)
    if not rows:
        raise InputError("IWSLT17 fr-en: expected train pairs, but there are none.")
    parts = {
        "train": rows,
        "validation": _talks(read, "IWSLT17", ("TED.dev2010",), "fr-en", languages),
        "test": _talks(read, "IWSLT17", _TALKS17, "fr-en", languages),
    }
    return Corpus({split: _pairs(of) for split, of in parts.items()}, notes)


Rows = list[tuple[str, str]]


def _iwslt(title: str, address: str, pair: str, data_dir: str | Path | None) -> Read:
    """How the files of that year are read."""
    wanted = f"{title} is read from {pair}.tgz, or the folder {pair} it unpacks to ({address})"
    year = title.lower()
    looked = places(wanted, data_dir, (year, title, f"{year}/orig", "orig"))
    read = next((found for place in looked if (found := _iwslt_files(place, pair))), None)
    if read is None:
        raise InputError(f"{wanted}; not found. Looked in {', '.join(map(str, looked))}.")
    return read


def _training(
    read: Read, pair: str, languages: tuple[str, str], tags: str
) -> tuple[Rows, list[str]]:
    """The training pairs that fit each other, and what is to be noted of the others."""
    source, target = (_spoken(read(f"train.tags.{pair}.{x}"), tags) for x in languages)
    spoken = _paired(f"train.tags.{pair}", source, target)
    rows = [row for row in zip(spoken.source, spoken.target, strict=True) if _fits(*row)]
    if len(rows) == len(spoken):
        return rows, []
    return rows, [
        f"{len(spoken) - len(rows)} of {len(spoken)} training pairs left out: empty, over "
        f"{_LONGEST} words, or one side over {_UNEVEN} times as long as the other"
    ]


def _talks(
    read: Read, title: str, talks: Sequence[str], pair: str, languages: tuple[str, str]
) -> Rows:
    rows: Rows = []
    for talk in talks:
        name = f"{title}.{talk}.{pair}"
        source, target = (_segments(name, read(f"{name}.{x}.xml")) for x in languages)
        pairs = _paired(name, source, target)
        rows += zip(pairs.source, pairs.target, strict=True)
    return rows


def _file(folder: Path, split: str, language: str) -> Path | None:
    names = (f"{stem}.{language}{end}" for stem in _STEMS[split] for end in (".gz", ""))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _content(path: Path) -> bytes:
    try:
        packed = path.read_bytes()
        return gzip.decompress(packed) if path.suffix == ".gz" else packed
    except _DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). The file is damaged or cut "
            "short: copy or download it again."
        ) from None


def _text(where: object, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected UTF-8 text ({error}). It is damaged, or another file: copy or "
            "download it again."
        ) from None


def _lines(text: str) -> list[str]:
    """By line feeds alone: str.splitlines would cut at characters that occur inside sentences."""
    lines = text.split("\n")
    return [line.strip() for line in (lines if lines[-1] else lines[:-1])]


def _paired(where: str, source: Sequence[str], target: Sequence[str]) -> Pairs:
    if len(source) != len(target) or not source:
        raise InputError(
            f"{where}: expected as many sentences in one language as in the other, at least one; "
            f"got {len(source)} and {len(target)}. A file is cut short, or the two do not belong "
            "together: download both again."
        )
    return Pairs(tuple(source), tuple(target))


def _without_empty(pairs: Pairs, notes: list[str]) -> Pairs:
    rows = [row for row in zip(pairs.source, pairs.target, strict=True) if all(row)]
    if len(rows) == len(pairs):
        return pairs
    notes.append(f"{len(pairs) - len(rows)} training pairs left out: a side is empty")
    return _pairs(rows)


def _pairs(rows: Sequence[tuple[str, str]]) -> Pairs:
    return Pairs(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def _lower(rows: Sequence[tuple[str, str]]) -> Pairs:
    return _pairs([(source.lower(), target.lower()) for source, target in rows])


def _iwslt_files(place: Path, pair: str) -> Read | None:
    """How a file of the set is read: out of the folder, or out of the archive."""
    for folder in (place / pair, place):
        if (folder / f"train.tags.{pair}.{pair[:2]}").is_file():
            return partial(_from_folder, folder)
    archive = place / f"{pair}.tgz"
    if archive.is_file():
        return partial(_from_archive, archive)
    return None


def _from_folder(folder: Path, name: str) -> str:
    if not (folder / name).is_file():
        raise InputError(f"{folder}: expected {name}, which is missing. Unpack the archive again.")
    return _text(folder / name, _content(folder / name))


def _from_archive(archive: Path, name: str) -> str:
    files = _unpacked(archive, archive.stat().st_mtime_ns)
    if name not in files:
        raise InputError(f"{archive}: expected it to hold {name}. Download the archive again.")
    return _text(f"{archive}, {name}", files[name])


@lru_cache(maxsize=1)
def _unpacked(archive: Path, _changed: int) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(archive, "r|*") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                if member.isfile() and name.startswith(("train.tags.", "IWSLT1")):
                    file = members.extractfile(member)
                    assert file is not None
                    files[name] = file.read()
    except _DAMAGE as error:
        raise InputError(
            f"{archive}: cannot be read as an archive ({type(error).__name__}: {error}). It is "
            "damaged or cut short: download it again."
        ) from None
    return files


def _spoken(text: str, tags: str) -> list[str]:
    """The sentences of a training file: what stands between tags about the talk goes."""
    lines = [line for line in _lines(text) if not re.match(rf"<({tags})\b", line)]
    return [re.sub(r"</?(title|description)>", "", line).strip() for line in lines]


def _segments(name: str, text: str) -> list[str]:
    found = re.findall(r"<seg id=\"\d+\">(.*?)</seg>", text, flags=re.DOTALL)
    if not found:
        raise InputError(f'{name}: expected <seg id="…"> elements, but there are none.')
    return [" ".join(html.unescape(sentence).replace("’", "'").split()) for sentence in found]


def _fits(source: str, target: str) -> bool:
    a, b = len(source.split()), len(target.split())
    return min(a, b) > 0 and max(a, b) <= min(_LONGEST, _UNEVEN * min(a, b))

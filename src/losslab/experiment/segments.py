"""Segments: files of JSON lines, each with one writer, that a kill leaves readable.

`losslab.experiment.store` says what they are for. Here is how a line gets to the disk, how half a
line is told and taken away, and how lines are found again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from losslab.errors import InputError
from losslab.experiment.records import jsonable

try:
    import fcntl
except ModuleNotFoundError:  # Windows: no locks, so nobody's torn line is taken away
    fcntl = None  # type: ignore[assignment]

_BATCH = 256  # lines parsed at once: their keys share memory, and it is a quarter faster
_BLOCK = 1 << 20
_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows would write two bytes for a line's end
_SECONDS_TO_BE_SURE = 600  # some network file systems lock within one host only
_START = re.compile(rb'\{"run_id": ?"([^"\\]+)"[,}]')

# ------------------------------------------------------------------------------------- writing


class Segment:
    """A file that this process alone appends to, locked while it is open."""

    def __init__(self, path: Path) -> None:
        self.path, self.end = path, 0
        self.descriptor: int | None = None
        _make_folder(path.parent)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _BINARY
        self.descriptor = os.open(path, flags, 0o666)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks, as some network ones are
                fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        _sync_folder(path.parent)

    def append(self, data: bytes) -> bool:
        """Whether ``data`` is on the disk, behind nothing but this segment's own lines.

        False says that somebody else moved, deleted or cut the file: what is written to it now,
        nobody would find.
        """
        if self.descriptor is None or not self._is_ours(self.descriptor):
            return False
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
            os.fsync(self.descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.end)
            raise
        self.end += len(data)
        return self._is_ours(self.descriptor)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    __del__ = close

    def _is_ours(self, descriptor: int) -> bool:
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(descriptor)
        return os.path.samestat(named, mine) and mine.st_size == self.end


def line_of(entry: Mapping[str, Any]) -> bytes:
    """One line, run_id first; no NaN, no line break inside."""
    run_id = entry.get("run_id")
    if not isinstance(run_id, str) or not run_id:
        raise InputError(f"Expected a run_id, a string that is not empty, but got {run_id!r}.")
    ordered = jsonable({"run_id": run_id, **entry})
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace") + b"\n"


def flat_line(run: Mapping[str, Any]) -> bytes:
    plain = jsonable(run)
    for key, value in plain.items():
        if isinstance(value, dict | list):
            raise InputError(
                f"Expected a run to be flat, but its {key!r} is a {type(value).__name__}; numbers "
                "and strings go into the run, all that is longer into details."
            )
    return line_of(plain)


def host() -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname())[:40] or "host"


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """A new name must reach the disk too."""
    if os.name == "posix":
        with suppress(PermissionError):  # a folder that may be entered, but not read
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def mend(path: Path) -> bool:
    """End a dead writer's segment with a whole line; whether that changed it.

    A writer that lives holds the lock. Where locks may not reach another host's writer, the file
    must have rested for ten minutes as well.
    """
    if fcntl is None:
        return False
    try:
        rested = time.time() - path.stat().st_mtime
        if path.name.rsplit("-", 2)[0] != host() and rested < _SECONDS_TO_BE_SURE:
            return False
        with open(path, "rb") as file:
            if not _torn(file):
                return False
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _end_whole(file)
    except OSError:  # locked, gone since, not ours to write, or no locks there
        return False


def _end_whole(file: BinaryIO) -> bool:
    torn = _torn(file)
    if not torn:
        return False
    if _is_object(torn):  # whole but for its end
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    else:
        file.truncate(file.seek(0, os.SEEK_END) - len(torn))
    file.flush()
    os.fsync(file.fileno())
    return True


def _torn(file: BinaryIO) -> bytes:
    """What follows the last line break."""
    start, tail = file.seek(0, os.SEEK_END), b""
    while start and b"\n" not in tail:
        step = min(start, _BLOCK if tail else 1)  # mostly the very last byte answers it
        start = file.seek(start - step)
        tail = file.read(step) + tail
    return tail[tail.rfind(b"\n") + 1 :]


# ------------------------------------------------------------------------------------- reading


class Index:
    """Where the lines of each run lie in a segment; looks at each byte once, and parses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin(file=0)

    def _begin(self, file: int) -> None:
        self.places: dict[str, list[tuple[int, int]]] = {}
        self.end, self.file = 0, file

    def refresh(self) -> None:
        """Look at what was added."""
        with _opened(self.path) as file:
            now = os.fstat(file.fileno())
            if now.st_ino != self.file or now.st_size < self.end:  # another file, by an editor
                self._begin(now.st_ino)
            file.seek(self.end)
            for line in file:
                if not line.endswith(b"\n") and not _is_object(line):
                    break  # torn, or still being written
                if line.strip():
                    start = _START.match(line)
                    known = start[1].decode(errors="replace") if start else None
                    run_id = known or _object(self.path, self.end, line)["run_id"]
                    self.places.setdefault(run_id, []).append((self.end, len(line)))
                self.end += len(line)

    def lines(self, run_id: str) -> list[dict[str, Any]]:
        """Everything the segment says of a run."""
        found = []
        with _opened(self.path) as file:
            if os.fstat(file.fileno()).st_ino != self.file:
                self.refresh()
            for start, length in self.places.get(run_id, []):
                file.seek(start)
                found.append(_object(self.path, start, file.read(length)))
        return found


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"Expected to read {path}, but {error.strerror}.") from None


def read(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def whole(data: bytes) -> bytes:
    """``data`` without a torn last line."""
    end = data.rfind(b"\n") + 1
    return data + b"\n" if _is_object(data[end:]) else data[:end]


def parsed(path: Path) -> Iterator[dict[str, Any]]:
    lines = whole(read(path)).split(b"\n")
    for first in range(0, len(lines), _BATCH):
        batch = [line for line in lines[first : first + _BATCH] if line]
        try:
            together = json.loads(b"[" + b",".join(batch) + b"]")
        except ValueError:
            together = []
        if len(together) == len(batch) and all(map(_has_run_id, together)):
            yield from together
        else:  # line by line, to name the one that is damaged
            start = sum(len(line) + 1 for line in lines[:first])
            for line in lines[first : first + _BATCH]:
                if line.strip():
                    yield _object(path, start, line)
                start += len(line) + 1


def _object(path: Path, start: int, line: bytes) -> dict[str, Any]:
    """The object of a line that begins at byte ``start``."""
    try:
        value = json.loads(line)
        problem = None if _has_run_id(value) else "no object with a run_id"
    except ValueError as error:  # not JSON, or not even text
        problem = str(error)
    if problem:
        number = read(path).count(b"\n", 0, start) + 1
        raise InputError(
            f"{path}, line {number} is damaged ({problem}). Delete this line (sed -i {number}d "
            f"{shlex.quote(str(path))}) and repeat the command: a run lost with it is made again."
        )
    found: dict[str, Any] = value
    return found


def _is_object(text: bytes) -> bool:
    """Whether ``text`` is a whole JSON object: no beginning of one is."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _has_run_id(value: Any) -> bool:
    return type(value) is dict and type(value.get("run_id")) is str

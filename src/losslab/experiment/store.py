"""The runs of a study on disk: lines of JSON that many writers add to, and a kill leaves readable.

    FOLDER/runs/HOST-PID-RANDOM.jsonl      one line a finished run, flat
    FOLDER/details/HOST-PID-RANDOM.jsonl   what is longer (curves), by run_id, written first

- Every writer has a file (a *segment*) of its own in both, which it holds a lock on while open.
- A run is finished when its line is whole; `Store.append` returns when that is on the disk.
- A kill can leave half a line at the end of a segment. Readers pass over it; the next writer takes
  it away where the lock says that its writer is gone, so any JSON reader can open the file.
- A line that is damaged elsewhere is no work of a kill: it raises, and is named.
- A run_id that was finished twice counts once: the earlier ``finished``, then the smaller text.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from losslab.errors import InputError
from losslab.experiment import records
from losslab.experiment.records import SELECTIONS, canonical_json, jsonable
from losslab.metrics import METRICS

if TYPE_CHECKING:
    import pandas

try:
    import fcntl
except ModuleNotFoundError:  # Windows: no locks, so nobody's torn line is taken away
    fcntl = None  # type: ignore[assignment]

TEXT = ("run_id", "study", "dataset", "model", "loss", "spec", "status", "reason", "finished")
COLUMNS = ("run_id", "study", "dataset", "model", "loss", "spec", "lr", "seed", "status", "reason",
           "seconds", "finished", "epochs")  # fmt: skip
"""What every run's line has, before ``SELECTION.epoch`` and ``SELECTION.SPLIT.METRIC``."""

_BATCH = 256  # lines parsed at once: their keys share memory, and it is a quarter faster
_BLOCK = 1 << 20
_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows would write two bytes for a line's end
_SECONDS_TO_BE_SURE = 600  # some network file systems lock within one host only
_START = re.compile(rb'\{"run_id": ?"([^"\\]+)"[,}]')


class Store:
    """The finished runs of a study; any number of processes may read and append at once.

    Args:
        folder: The study's folder; made by the first `append`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
        ...     store.append([{"run_id": "a1", "dataset": "iris", "lr": 0.1}])
        ...     store.finished(), store.runs()[0]["dataset"]
        ({'a1'}, 'iris')
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(
                f"Expected {self.folder} to be the folder of a study, but it is a file; choose "
                "another one."
            )
        self._indexes: dict[str, dict[Path, _Index]] = {"runs": {}, "details": {}}
        self._forget_writing()
        _stores.add(self)

    def append(
        self, runs: Sequence[Mapping[str, Any]], details: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Add finished runs, and what is longer of them; all is on the disk when this returns.

        After a failure or a kill any number of the runs may be there, each whole and with its
        details, or not at all.

        Raises:
            InputError: If a run has no run_id or is not flat, or the disk refuses.
        """
        lines = {
            "details": b"".join(map(_line, details)),
            "runs": b"".join(map(_flat_line, runs)),
        }
        with self._lock:
            try:
                for _ in range(3):  # more than once only where others moved or cut our files
                    if all(self._written(kind, data) for kind, data in lines.items()):
                        return
                    self._close()
            except OSError as error:
                self._close()
                raise InputError(
                    f"Expected to write in the folder {self.folder}, but "
                    f"{error.strerror or error}; the runs finished before are kept. Make room "
                    "there, or choose another folder."
                ) from error
            except BaseException:
                self._close()
                raise
        raise InputError(
            f"Expected the files in {self.folder} to be left alone while they are written, but "
            "another program keeps on changing them; stop it and repeat the command."
        )

    def runs(self) -> list[dict[str, Any]]:
        """The finished runs by time, each run_id once.

        Raises:
            InputError: If a line is damaged; file and line are named.
        """
        kept: dict[str, dict[str, Any]] = {}
        for path in self._segments("runs"):
            for run in _parsed(path):
                known = kept.get(run["run_id"])
                if known is None or _rank(run) < _rank(known):
                    kept[run["run_id"]] = run
        return sorted(kept.values(), key=_by_time)

    def frame(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """The same as a table, with steady types; of a few columns it is several times quicker."""
        data = b"".join(_whole(_read(path)) for path in self._segments("runs"))
        table = _arrow_table(data, columns) if data else None
        return run_table(self.runs(), columns) if table is None else table

    def finished(self) -> set[str]:
        """The run_id of every finished run; reads again only what was added since the last call."""
        return {run for index in self._up_to_date("runs") for run in index.places}

    def run(self, run_id: str) -> dict[str, Any] | None:
        """One finished run."""
        return found[0] if (found := self._counted(run_id)) else None

    def detail(self, run_id: str) -> dict[str, Any] | None:
        """What is longer of one finished run, or None; quick, whatever the size of the store."""
        counted = self._counted(run_id)
        if counted is None:
            return None
        writer = counted[1]
        indexes = sorted(self._having("details", run_id), key=lambda one: one.path.name != writer)
        return next((found for index in indexes for found in index.lines(run_id)), None)

    def repair(self) -> list[Path]:
        """Take away what killed writers left half-written; the files changed.

        `append` does this by itself when it starts a segment.
        """
        return [
            path for kind in ("details", "runs") for path in self._segments(kind) if _mend(path)
        ]

    def close(self) -> None:
        """End this writer's segments; a later `append` begins new ones."""
        with self._lock:
            self._close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)  # a copy in another process is a writer of its own

    def _forget_writing(self) -> None:
        self._lock = threading.Lock()
        self._name = ""
        self._open: dict[str, _Segment] = {}

    def _close(self) -> None:
        for segment in self._open.values():
            segment.close()
        self._open = {}

    def _written(self, kind: str, data: bytes) -> bool:
        if not data:
            return True
        if not self._open:
            self.repair()
            self._name = f"{_host()}-{os.getpid()}-{os.urandom(4).hex()}.jsonl"
        if kind not in self._open:
            self._open[kind] = _Segment(self.folder / kind / self._name)
        return self._open[kind].append(data)

    def _segments(self, kind: str) -> list[Path]:
        return sorted((self.folder / kind).glob("*.jsonl"))

    def _up_to_date(self, kind: str) -> list[_Index]:
        known = self._indexes[kind]
        indexes = [known.setdefault(path, _Index(path)) for path in self._segments(kind)]
        for index in indexes:
            index.refresh()
        return indexes

    def _having(self, kind: str, run_id: str) -> list[_Index]:
        """The segments that say something of a run; only for an unknown one the disk is asked."""
        known = [index for index in self._indexes[kind].values() if run_id in index.places]
        return known or [index for index in self._up_to_date(kind) if run_id in index.places]

    def _counted(self, run_id: str) -> tuple[dict[str, Any], str] | None:
        """The one line of a run that counts, and the name of its file."""
        found = [
            (line, index.path.name)
            for index in self._having("runs", run_id)
            for line in index.lines(run_id)
        ]
        return min(found, key=lambda pair: _rank(pair[0])) if found else None


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _let_go_after_fork() -> None:
    """A forked process writes segments of its own, and must not keep its parent's locks."""
    for store in list(_stores):
        store._close()
        store._forget_writing()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


# ------------------------------------------------------------------------------------- writing


class _Segment:
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


def _line(entry: Mapping[str, Any]) -> bytes:
    """One line, run_id first; no NaN, no line break inside."""
    run_id = entry.get("run_id")
    if not isinstance(run_id, str) or not run_id:
        raise InputError(f"Expected a run_id, a string that is not empty, but got {run_id!r}.")
    ordered = jsonable({"run_id": run_id, **entry})
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace") + b"\n"


def _flat_line(run: Mapping[str, Any]) -> bytes:
    plain = jsonable(run)
    for key, value in plain.items():
        if isinstance(value, dict | list):
            raise InputError(
                f"Expected a run to be flat, but its {key!r} is a {type(value).__name__}; numbers "
                "and strings go into the run, all that is longer into details."
            )
    return _line(plain)


def _host() -> str:
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


def _mend(path: Path) -> bool:
    """End a dead writer's segment with a whole line; whether that changed it.

    A writer that lives holds the lock. Where locks may not reach another host's writer, the file
    must have rested for ten minutes as well.
    """
    if fcntl is None:
        return False
    try:
        rested = time.time() - path.stat().st_mtime
        if path.name.rsplit("-", 2)[0] != _host() and rested < _SECONDS_TO_BE_SURE:
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


class _Index:
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


def _read(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _whole(data: bytes) -> bytes:
    """``data`` without a torn last line."""
    end = data.rfind(b"\n") + 1
    return data + b"\n" if _is_object(data[end:]) else data[:end]


def _parsed(path: Path) -> Iterator[dict[str, Any]]:
    lines = _whole(_read(path)).split(b"\n")
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
        number = _read(path).count(b"\n", 0, start) + 1
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


def _by_time(run: Mapping[str, Any]) -> tuple[str, str]:
    return str(run.get("finished") or ""), run["run_id"]


def _rank(run: Mapping[str, Any]) -> tuple[str, str]:
    """Which of two lines of the same run counts: the smaller, wherever it lies."""
    return str(run.get("finished") or ""), canonical_json(run)


# ------------------------------------------------------------------------------------- as tables


def run_table(
    runs: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> pandas.DataFrame:
    """Runs as a table: the columns asked for, or `COLUMNS` and then all else that they have."""
    import pandas

    return _steady(pandas.DataFrame.from_records(list(runs)), columns)


def _arrow_table(data: bytes, columns: Sequence[str] | None) -> pandas.DataFrame | None:
    """Lines read by Arrow, or None where that would not give what `Store.runs` gives: damaged
    lines, repeated runs, a column of several types."""
    import pyarrow
    from pyarrow import json as arrow_json

    kinds = {"string": pyarrow.string(), "Int64": pyarrow.int64(), "float64": pyarrow.float64()}
    names = TEXT if columns is None else dict.fromkeys(["run_id", "finished", *columns])
    options = arrow_json.ParseOptions(
        explicit_schema=pyarrow.schema([(name, kinds[_kind(name) or "float64"]) for name in names]),
        unexpected_field_behavior="infer" if columns is None else "ignore",
    )
    try:
        read = arrow_json.read_json(pyarrow.BufferReader(data), parse_options=options)
    except pyarrow.ArrowInvalid:
        return None
    ids, types = read.column("run_id"), pyarrow.types
    if not data.count(b"\n") == len(ids) == len(ids.unique()) or ids.null_count:
        return None
    if any(types.is_nested(kind) or types.is_timestamp(kind) for kind in read.schema.types):
        return None
    by_time = read.select(["finished", "run_id"]).to_pandas().fillna({"finished": ""})
    order = by_time.sort_values(["finished", "run_id"]).index
    return _steady(read.to_pandas().loc[order].reset_index(drop=True), columns)


def _steady(table: pandas.DataFrame, columns: Sequence[str] | None) -> pandas.DataFrame:
    """Each column of one type, whatever the runs at hand have in it, nothing at all included."""
    import pandas

    names = columns or [*COLUMNS, *(name for name in table.columns if name not in COLUMNS)]
    table = table.reindex(columns=names)
    return pandas.DataFrame({n: table[n].astype(_kind(n) or table[n].dtype) for n in names})


def _kind(column: str) -> str | None:
    """The type of a column; None for one that a study added and that tells itself."""
    if column in TEXT:
        return "string"
    if column in ("seed", "epochs") or column.endswith(".epoch"):
        return "Int64"
    return "float64" if column in ("lr", "seconds") or "." in column else None


# ------------------------------------------------------------------------------------- either kind


_LONGER = ("run_id", "curves", "margin_histogram", "reliability", "environment")


class ComparisonRuns:
    """The runs of a comparison's folder, as `Store` would give them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def _records(self) -> dict[str, dict[str, Any]]:
        return {record["run_id"]: record for record in records.load_all(self.folder)}

    def runs(self) -> list[dict[str, Any]]:
        """The finished runs by time."""
        return sorted(map(flatten_record, self._records.values()), key=_by_time)

    def frame(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """The same as a table."""
        return run_table(self.runs(), columns)

    def finished(self) -> set[str]:
        """The run_id of every finished run."""
        return set(self._records)

    def run(self, run_id: str) -> dict[str, Any] | None:
        """One finished run."""
        return flatten_record(self._records[run_id]) if run_id in self._records else None

    def detail(self, run_id: str) -> dict[str, Any] | None:
        """What is longer of one finished run."""
        record = self._records.get(run_id)
        return record and {key: record[key] for key in _LONGER if key in record}


def flatten_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a comparison's run as the flat line that a study would have for it."""
    task, loss, timing = record["task"], record["loss"], record.get("timing") or {}
    rate, scale = (task.get("optimizer") or {}).get("lr"), loss["lr_scale"]
    flat = {
        "run_id": record["run_id"],
        "study": None,
        "dataset": task["name"],
        "model": (task.get("model") or {}).get("name"),
        "loss": loss["label"],
        "spec": loss["spec"],
        "lr": None if rate is None or isinstance(scale, list) else rate * scale,
        "seed": record["seed"],
        "status": record["status"],
        "reason": record.get("reason"),
        "seconds": timing.get("seconds"),
        "finished": timing.get("finished"),
        "epochs": record["settings"]["epochs"],
    }
    for selection in SELECTIONS:
        result = record["results"][selection] or {}
        flat[f"{selection}.epoch"] = result.get("epoch")
        for split in ("validation", "test"):
            scores = result.get(split) or {}
            flat |= {f"{selection}.{split}.{metric}": scores.get(metric) for metric in METRICS}
    return flat


def open_runs(folder: str | Path) -> Store | ComparisonRuns:
    """The runs of a folder, of a study or of a comparison.

    Raises:
        InputError: If it is neither.
    """
    runs = Path(folder) / "runs"
    study, comparison = any(runs.glob("*.jsonl")), any(runs.glob("*.json"))
    if study and comparison:
        raise InputError(
            f"Expected {runs} to hold the runs of a study (.jsonl) or of a comparison (.json), but "
            "it holds both; move the files of one of them to another folder."
        )
    if not runs.is_dir():
        raise InputError(
            f"Expected {folder} to be the folder of a study or a comparison, but it has no runs in "
            "it; pass the folder that `losslab study` or `losslab compare` wrote."
        )
    return ComparisonRuns(folder) if comparison else Store(folder)


def curves_of(detail: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """A run's curves by name, one number an epoch: ``epoch``, ``lr``, ``test.accuracy``, …"""
    found: dict[str, list[Any]] = {}
    for name, values in ((detail or {}).get("curves") or {}).items():
        if isinstance(values, Mapping):
            found |= {f"{name}.{inner}": list(of) for inner, of in values.items()}
        else:
            found[name] = list(values)
    return found

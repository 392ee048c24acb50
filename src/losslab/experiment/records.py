"""The run folder: what a comparison leaves behind, written so that a kill loses nothing finished.

    FOLDER/comparison.json      the configuration and the list of runs, before the first run
    FOLDER/runs/RUN_ID.npz      per test example, at the last epoch: log_odds, margin, correct
    FOLDER/runs/RUN_ID.json     the record of a finished run; its presence says that the run is done
    FOLDER/summary.json         the verdicts, after the last run
    FOLDER/.lock                held while a process works in the folder

A file is written under a temporary name, flushed to the disk and then renamed, so a reader finds a
whole file or none. JSON has no NaN: a number that is not finite is stored as null.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy

from losslab.errors import InputError

try:
    import fcntl
except ModuleNotFoundError:  # Windows: no lock there; two processes in one folder are on their own
    fcntl = None  # type: ignore[assignment]

SCHEMA = 1
STATUSES = ("finished", "diverged")
SELECTIONS = ("last", "validation_selected", "best_on_test")
"""The epochs of a run that are reported; the last of them is chosen on the test set."""
_NEEDED = frozenset({"run_id", "status", "loss", "seed", "task", "settings", "curves", "results"})


def run_id(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name whatever decides a run's numbers.

    Example:
        >>> run_id({"seed": 0, "spec": "focal"}) == run_id({"spec": "focal", "seed": 0})
        True
    """
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(jsonable(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def jsonable(value: Any) -> Any:
    """``value`` in JSON's own types: tuples as lists, numpy as Python, NaN and inf as None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, numpy.generic | numpy.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_record(
    folder: Path, record: Mapping[str, Any], examples: Mapping[str, Any] | None
) -> None:
    """Store a finished run: first its per-example arrays, then the record that vouches for them."""
    stem = folder / "runs" / record["run_id"]
    if examples is not None:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {key: numpy.asarray(value) for key, value in examples.items()}
        numpy.savez(buffer, **arrays)
        write_atomically(stem.with_suffix(".npz"), buffer.getvalue())
    write_json(stem.with_suffix(".json"), record)


def load_all(folder: str | Path) -> list[dict[str, Any]]:
    """Every record in the folder, by seed and label; half-written leftovers are passed over.

    Raises:
        InputError: If the folder holds no comparison, or records are damaged (all are named).
    """
    runs = Path(folder) / "runs"
    if not runs.is_dir():
        raise InputError(
            f"Expected {folder} to be the folder of a comparison, but it has no runs in it; pass "
            "the folder that `losslab compare` wrote."
        )
    records, damage = [], []
    for path in sorted(runs.glob("*.json")):
        try:
            records.append(load_record(path))
        except InputError as error:
            damage.append(str(error))
    if damage:
        raise InputError("\n".join(damage))
    return sorted(records, key=lambda record: (record["seed"], record["loss"]["label"]))


def load_record(path: Path) -> dict[str, Any]:
    """One record, if it is whole and of this schema."""
    remedy = "delete this file and repeat the command: only this run is made again."
    record = read_json(path, remedy)
    problem = None
    if record.get("schema") != SCHEMA:
        problem = f"schema {record.get('schema')!r} instead of {SCHEMA}"
    elif missing := _NEEDED - record.keys():
        problem = f"no {', '.join(sorted(missing))}"
    elif record["run_id"] != path.stem:
        problem = f"the run_id {record['run_id']!r}, which is not its name"
    elif record["status"] not in STATUSES:
        problem = f"the status {record['status']!r} instead of one of {', '.join(STATUSES)}"
    if problem:
        raise InputError(
            f"Expected {path} to be the record of a run, but it has {problem}; {remedy}"
        )
    return record


def find_record(folder: Path, run: str) -> dict[str, Any] | None:
    """The record of a run, or None while it is not finished."""
    path = folder / "runs" / f"{run}.json"
    return load_record(path) if path.exists() else None


def load_examples(folder: str | Path, run: str) -> dict[str, numpy.ndarray]:
    """Per test example of a finished run: ``log_odds``, ``margin``, ``correct``."""
    path = Path(folder) / "runs" / f"{run}.npz"
    try:
        with numpy.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"Expected {path} to hold the examples of run {run}, but it cannot be read ({error}); "
            f"delete {path.with_suffix('.json').name} beside it and repeat the command: only this "
            "run is made again."
        ) from None


def load_comparison(folder: str | Path) -> dict[str, Any] | None:
    """The folder's configuration, or None when no comparison was begun in it."""
    path = Path(folder) / "comparison.json"
    if not path.exists():
        return None
    return read_json(path, "delete this file and repeat the command: finished runs are kept.")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file, or an `InputError` that names the file and says what to do."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"Expected to read {path}, but {error.strerror}.") from None
    except ValueError as error:  # not JSON, or not even text
        raise InputError(f"{path} is damaged ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged (not a JSON object); {remedy}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Store ``value`` whole or not at all."""
    text = json.dumps(jsonable(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode() + b"\n")


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``: whatever happens, all of it is there or still the old content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # the new name itself must reach the disk
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Keep other processes from working in ``folder``; a kill of this one frees it too.

    Raises:
        InputError: If another process works there, or the folder cannot be written to.
    """
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115 (closed below; closing lets go)
    except OSError as error:
        raise InputError(
            f"Expected to write in the folder {folder}, but {error.strerror}; choose another one."
        ) from None
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise InputError(
                    f"Another process (number {lock.read().strip() or 'unknown'}) is at work in "
                    f"{folder}; wait until it is done, stop it, or choose another folder."
                ) from None
            except OSError:
                pass  # a file system without locks, as some network ones are
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        for leftover in (folder / "runs").glob("*.tmp"):
            leftover.unlink()
        yield

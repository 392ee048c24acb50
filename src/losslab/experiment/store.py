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

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from losslab.errors import InputError
from losslab.experiment.records import canonical_json
from losslab.experiment.run_table import arrow_table, run_table
from losslab.experiment.segments import (
    Index,
    Segment,
    flat_line,
    host,
    line_of,
    mend,
    parsed,
    read,
    whole,
)

if TYPE_CHECKING:
    import pandas


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
        self._indexes: dict[str, dict[Path, Index]] = {"runs": {}, "details": {}}
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
            "details": b"".join(map(line_of, details)),
            "runs": b"".join(map(flat_line, runs)),
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
            for run in parsed(path):
                known = kept.get(run["run_id"])
                if known is None or rank(run) < rank(known):
                    kept[run["run_id"]] = run
        return sorted(kept.values(), key=by_time)

    def frame(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """The same as a table, with steady types; of a few columns it is several times quicker."""
        data = b"".join(whole(read(path)) for path in self._segments("runs"))
        table = arrow_table(data, columns) if data else None
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
        return [path for kind in ("details", "runs") for path in self._segments(kind) if mend(path)]

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
        self._open: dict[str, Segment] = {}

    def _close(self) -> None:
        for segment in self._open.values():
            segment.close()
        self._open = {}

    def _written(self, kind: str, data: bytes) -> bool:
        if not data:
            return True
        if not self._open:
            self.repair()
            self._name = f"{host()}-{os.getpid()}-{os.urandom(4).hex()}.jsonl"
        if kind not in self._open:
            self._open[kind] = Segment(self.folder / kind / self._name)
        return self._open[kind].append(data)

    def _segments(self, kind: str) -> list[Path]:
        return sorted((self.folder / kind).glob("*.jsonl"))

    def _up_to_date(self, kind: str) -> list[Index]:
        known = self._indexes[kind]
        indexes = [known.setdefault(path, Index(path)) for path in self._segments(kind)]
        for index in indexes:
            index.refresh()
        return indexes

    def _having(self, kind: str, run_id: str) -> list[Index]:
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
        return min(found, key=lambda pair: rank(pair[0])) if found else None


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _let_go_after_fork() -> None:
    """A forked process writes segments of its own, and must not keep its parent's locks."""
    for store in list(_stores):
        store._close()
        store._forget_writing()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


def by_time(run: Mapping[str, Any]) -> tuple[str, str]:
    return str(run.get("finished") or ""), run["run_id"]


def rank(run: Mapping[str, Any]) -> tuple[str, str]:
    """Which of two lines of the same run counts: the smaller, wherever it lies."""
    return str(run.get("finished") or ""), canonical_json(run)

"""Where the jobs of a study run: in this process, in several, or on a Ray cluster.

    with executor_named("processes", workers=2) as executor:
        for result in executor.run(work, jobs):      # in the order in which they are done
            ...

``work(job)`` must be importable from a module, and its job and result picklable. Results come back
to the caller, who alone writes them down, so nothing is stored twice whatever dies. The jobs of a
worker that dies (killed, out of memory) are given out again; when workers have died `TRIES` times
in a row without a job getting done, that is an error. What ``work`` itself raises is raised here,
by `Processes` as a `RuntimeError` where it cannot be sent.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import Any, Protocol, Self, TypeVar

from losslab.errors import InputError, nearest

EXECUTORS = ("here", "processes", "ray")
TRIES = 3
_SECONDS_BETWEEN_LOOKS = 0.3

J = TypeVar("J")
R = TypeVar("R")


class Executor(Protocol):
    """Runs jobs, and lets go of its workers at the end of a ``with`` block."""

    workers: int

    def run(self, work: Callable[[J], R], jobs: Sequence[J]) -> Iterator[R]: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def executor_named(
    name: str, *, workers: int | None = None, address: str | None = None
) -> Executor:
    """The executor called ``here``, ``processes`` or ``ray``.

    Args:
        workers: Jobs at once; None is one a core. A Ray cluster at ``address`` decides itself.
        address: Of a running Ray cluster (``auto``, or ``ray://host:10001``); None starts a Ray on
            this machine that ends with the executor.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1; got {workers}.")
    if address is not None and name != "ray":
        raise InputError(f"an address is for the executor 'ray'; got it with {name!r}.")
    count = workers or cores()
    if name == "here":
        return Here()
    if name == "processes":
        return Processes(count)
    if name == "ray":
        return Ray(count, address)
    raise InputError(f"unknown executor {name!r}.{nearest(name, EXECUTORS)} "
                     f"Known: {', '.join(EXECUTORS)}.")  # fmt: skip


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Here:
    """One job after another in this process."""

    workers = 1

    def run(self, work: Callable[[J], R], jobs: Sequence[J]) -> Iterator[R]:
        for job in jobs:
            yield work(job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Processes:
    """Several processes on this machine, which end with the one that started them.

    Args:
        told: Called here with what jobs tell by `tell_parent` while they work.
    """

    def __init__(self, workers: int, told: Callable[[Any], None] | None = None) -> None:
        self.workers = workers
        self._told = told or (lambda said: None)
        self._pool: ProcessPoolExecutor | None = None
        self._said: Any = None

    def run(self, work: Callable[[J], R], jobs: Sequence[J]) -> Iterator[R]:
        left = dict(enumerate(jobs))
        died = 0
        while left:
            before = len(left)
            try:
                yield from self._until_one_dies(work, left)
            except BrokenProcessPool:
                self._stop()
                died = died + 1 if len(left) == before else 1
                if died >= TRIES:
                    raise InputError(
                        f"worker processes died {TRIES} times in a row without finishing a job "
                        "(killed, or out of memory?). Use fewer workers, or the executor 'here' to "
                        "see what happens; everything finished is kept."
                    ) from None

    def _until_one_dies(self, work: Callable[[J], R], left: dict[int, J]) -> Iterator[R]:
        if self._pool is None:
            context = get_context("spawn")
            self._said = context.SimpleQueue()
            self._pool = ProcessPoolExecutor(self.workers, context, _begin_worker, (self._said,))
        numbers: dict[Future[R], int] = {}
        for number, job in left.items():
            numbers[self._pool.submit(_sendable, work, job)] = number
        waiting = set(numbers)
        while waiting:
            done, waiting = wait(waiting, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            while not self._said.empty():
                self._told(self._said.get())
            for future in done:
                result = future.result()
                del left[numbers[future]]
                yield result

    def _stop(self) -> None:
        """End all workers now, whatever they are at."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()


_parent: Any = None  # of a worker: where what it tells goes


def tell_parent(said: Any) -> None:
    """From within a job: have `Processes` call its ``told`` with this, before the job's result."""
    if _parent is not None:
        _parent.put(said)


def _begin_worker(said: Any) -> None:
    """Leave Ctrl-C to the parent, and do not outlive it, even where it is killed."""
    import signal

    global _parent
    _parent = said
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _sendable(work: Callable[[J], R], job: J) -> R:
    """``work(job)``; an error that could not be rebuilt in the parent, which takes that for a dead
    worker, is told as a `RuntimeError`."""
    try:
        return work(job)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
            known = type(error).__module__ != "__mp_main__"  # the parent's script has another name
        except Exception:
            known = False
        if known:
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


class Ray:
    """Ray's tasks, on this machine or a cluster; Ray itself repeats those of a worker that dies."""

    def __init__(self, workers: int, address: str | None = None) -> None:
        self.workers, self.address = workers, address
        self._ray: Any = None

    def run(self, work: Callable[[J], R], jobs: Sequence[J]) -> Iterator[R]:
        ray = self._ray
        task = ray.remote(num_cpus=1, max_retries=TRIES)(work)
        waiting = [task.remote(job) for job in jobs]
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            try:
                yield ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise InputError(
                    f"Ray gave a job up after {TRIES} tries: {str(error).splitlines()[0]} "
                    "Everything finished is kept."
                ) from None

    def __enter__(self) -> Self:
        try:
            import ray
        except ModuleNotFoundError:
            raise InputError(
                "the executor 'ray' needs Ray: pip install 'losslab[ray]'. Without it: "
                "--executor processes."
            ) from None
        self._ray = ray
        local: dict[str, Any] = {"num_cpus": self.workers, "include_dashboard": False}
        try:
            ray.init(
                address=self.address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if self.address else local),
            )
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"no Ray answers at {self.address!r}: {str(error).splitlines()[0]} "
                "Start one with `ray start --head`, or leave the address out."
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

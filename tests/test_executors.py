"""Jobs here, in processes and on Ray: the same results, whatever dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from losslab.errors import InputError
from losslab.experiment import executors
from losslab.experiment.executors import executor_named

HAS_RAY = True
try:
    import ray  # noqa: F401
except ImportError:
    HAS_RAY = False


def square(x):
    return x * x


def die_once(job):
    """Kill the process that does it, the first time."""
    folder, number = job
    mark = Path(folder) / f"died-{number}"
    if number % 3 == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(job):
    raise InputError(f"job {job} cannot be done: its data are missing.")


class Stubborn(Exception):
    """Cannot be made again from what it says, as pickle does it."""

    def __init__(self, job, *, code):
        super().__init__(f"job {job} failed with {code}")


def fail(job):
    raise Stubborn(job, code=7)


@pytest.mark.parametrize("name", ["here", "processes"])
def test_every_job_is_done_once(name):
    """Oracle: the squares. Break: a job lost or done twice."""
    with executor_named(name, workers=2) as executor:
        assert sorted(executor.run(square, range(7))) == [x * x for x in range(7)]
        assert list(executor.run(square, [])) == []
        assert sorted(executor.run(square, [3])) == [9]  # and once more


def test_the_jobs_of_dead_workers_are_given_out_again(tmp_path):
    """Break: a killed worker that takes its job or its neighbour's along."""
    jobs = [(str(tmp_path), number) for number in range(6)]
    with executor_named("processes", workers=2) as executor:
        assert sorted(executor.run(die_once, jobs)) == list(range(6))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_job_that_kills_every_worker_is_given_up():
    """Break: new workers without end."""
    with (
        executor_named("processes", workers=1) as executor,
        pytest.raises(InputError, match="died 3 times in a row"),
    ):
        list(executor.run(die, [1]))


@pytest.mark.parametrize("name", ["here", "processes"])
def test_what_a_job_raises_is_raised_here(name):
    """Break: the user's mistake hidden behind a pool's own error."""
    with (
        executor_named(name, workers=1) as executor,
        pytest.raises(InputError, match="its data are missing"),
    ):
        list(executor.run(refuse, [1]))


def test_an_error_that_cannot_be_sent_is_told_all_the_same():
    """Break: an error that the parent cannot rebuild, which broke the pool: the job was made three
    times, and memory was blamed."""
    with (
        executor_named("processes", workers=1) as executor,
        pytest.raises(RuntimeError, match="Stubborn: job 1 failed with 7"),
    ):
        list(executor.run(fail, [1]))


SLEEPER = """
import sys, time, os
from losslab.experiment.executors import executor_named

def sleep(job):
    open(job, "w").write(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    with executor_named("processes", workers=1) as executor:
        list(executor.run(sleep, [sys.argv[1]]))
"""


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    """Oracle: the operating system's list of processes. Break: orphans that go on computing."""
    script, mark = tmp_path / "sleeper.py", tmp_path / "worker"
    script.write_text(SLEEPER)
    parent = subprocess.Popen([sys.executable, str(script), str(mark)])
    wait_until(lambda: mark.exists() and mark.read_text() != "")
    worker = int(mark.read_text())
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(worker))


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds=40.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cluster", {}, "unknown executor"),
        ("process", {}, "Did you mean 'processes'"),
        ("here", {"workers": 0}, "at least 1"),
        ("processes", {"address": "auto"}, "for the executor 'ray'"),
    ],
)
def test_bad_requests(name, options, message):
    """Break: a traceback, or a silent choice of another executor."""
    with pytest.raises(InputError, match=message):
        executor_named(name, **options)


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    """Break: a bare ModuleNotFoundError."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"losslab\[ray\]"),
        executor_named("ray", workers=1) as executor,
    ):
        list(executor.run(square, [1]))


@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")
@pytest.mark.filterwarnings("ignore")
def test_ray(tmp_path, monkeypatch):
    """Oracle: the numbers 0 to 5. Break: the job of a killed Ray worker lost."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where workers find this file
    jobs = [(str(tmp_path), number) for number in range(6)]
    with executor_named("ray", workers=2) as executor:
        assert sorted(executor.run(die_once, jobs)) == list(range(6))
        with pytest.raises(InputError, match="its data are missing"):
            list(executor.run(refuse, [1]))
    assert executors.TRIES == 3

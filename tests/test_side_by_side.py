"""Runs made side by side, in processes of their own: the same records, whatever happens."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from losslab.analysis.analyse import request
from losslab.cli.progress import ComparisonProgress
from losslab.errors import InputError
from losslab.experiment import records, runner, side_by_side
from losslab.experiment.events import Analysed, EpochDone, RunFinished, RunStarted, Started
from losslab.experiment.launch import Training
from losslab.experiment.maker import Clock, Maker, forget_checkpoint
from losslab.experiment.plan import make_plan
from losslab.experiment.runner import run
from losslab.logodds import select
from test_executors import is_alive, wait_until
from test_runner import blobs, comparison, make_task, outcomes

pytestmark = pytest.mark.usefixtures("one_thread")
LOSSES = [("ce", "cross_entropy"), ("el", "encouraging")]


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch):
    """As where the model is large."""
    monkeypatch.setattr(runner, "pays", lambda task, runs: False)


def few(folder, **changes):
    return comparison(folder, losses=LOSSES, seeds=[0, 1], **changes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same comparison in one process, analysed."""
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "pays", lambda task, runs: False)
        summary = run(few(folder, analyses=[request("margins")]))
    return folder, summary


def test_the_records_are_those_of_one_process(tmp_path, alone):
    """Oracle: one process, bit for bit. Break: a worker with its own split, seed or loss; a run
    made twice or not at all; an analysis that is left out."""
    told = []
    summary = run(few(tmp_path, analyses=[request("margins")]), told.append, workers=2)
    assert outcomes(tmp_path) == outcomes(alone[0])
    assert summary == alone[1] == json.loads((tmp_path / "summary.json").read_bytes())
    assert told[0] == Started(tmp_path, 4, 0, {}, 1, None, 2)
    finished = [(e.number, e.label, e.seed) for e in told if isinstance(e, RunFinished)]
    assert sorted(finished) == [(1, "ce", 0), (2, "el", 0), (3, "ce", 1), (4, "el", 1)]
    assert sum(isinstance(e, EpochDone) for e in told) == 4 * 3
    assert sum(isinstance(e, RunStarted) for e in told) == 4
    assert sorted((e.label, e.seed) for e in told if isinstance(e, Analysed)) == sorted(
        (label, seed) for _, label, seed in finished
    )
    left = [e.seconds_left for e in told if isinstance(e, EpochDone | RunFinished)]
    assert left[0] > 0 == left[-1]


def test_it_goes_on_and_catches_up_on_analyses(tmp_path, alone):
    """Oracle: the same in one go. Break: finished runs made again, or never analysed."""
    run(few(tmp_path, keep_models=True), workers=2)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "runs").iterdir()}
    told = []
    more = replace(few(tmp_path, analyses=[request("margins")]), seeds=[0, 1, 2])
    run(more, told.append, workers=3)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "runs").iterdir()}
    assert before.items() <= after.items() and len(after) == 6 * 2
    assert told[0].done == 4 and sum(isinstance(e, RunFinished) for e in told) == 2
    assert sum(isinstance(e, Analysed) for e in told) == 6
    assert outcomes(alone[0]).items() <= outcomes(tmp_path).items()


class Lambda(nn.Module):
    """Holds what only some picklers can take."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 3), lambda x: 2 * x

    def forward(self, x):
        return self.scale(self.linear(x))


def test_tasks_with_functions_of_functions(tmp_path):
    """Break: a pickler that wants every function by name."""
    factor = 0.1
    task = make_task(model=lambda: Lambda(), optimizer=lambda p: torch.optim.SGD(p, lr=factor))
    run(few(tmp_path / "a", task=task), workers=2)
    run(few(tmp_path / "b", task=task))
    assert outcomes(tmp_path / "a") == outcomes(tmp_path / "b")


def test_what_cannot_be_handed_over_is_told(tmp_path):
    """Break: a traceback of the pickler."""
    data = blobs(48, 1)
    data.lock = threading.Lock()
    with pytest.raises(InputError, match=r"cannot be handed to other processes: .*one worker"):
        run(few(tmp_path, task=make_task(train=data)), workers=2)


class Dies(nn.Linear):
    """Kills the process that makes it, the first time."""

    def __init__(self, mark):
        super().__init__(4, 3)
        if os.environ.get("MAIN") != str(os.getpid()) and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_the_runs_of_a_killed_worker_are_made_again(tmp_path, monkeypatch):
    """Oracle: the models without the killing. Break: a run lost, or a comparison that hangs."""
    monkeypatch.setenv("MAIN", str(os.getpid()))
    mark = str(tmp_path / "mark")
    run(few(tmp_path / "a", task=make_task(model=lambda: Dies(mark))), workers=2)
    assert Path(mark).exists() and len(records.load_all(tmp_path / "a")) == 4


def test_runs_beside_each_other_do_not_take_the_checkpoints_folder_away(tmp_path):
    """Oracle: the file system. Break: the folder deleted by the run that leaves it empty, just
    when another has made it and is about to write there, which ended the comparison."""
    place = tmp_path / "checkpoints"
    records.write_atomically(place / "one.ckpt", b"")
    forget_checkpoint(tmp_path, "one")
    assert list(place.iterdir()) == []
    run(few(tmp_path, training=Training(checkpoint_every=0.0)), workers=2)
    assert not place.exists()


def test_what_is_set_here_holds_in_the_workers(tmp_path, monkeypatch):
    """Oracle: one process. Break: workers that compute by another kernel, or in float32."""
    monkeypatch.setattr(select, "_requested", "eager")

    def doubles(rows, seed):
        x, y = blobs(rows, seed).tensors
        return TensorDataset(x.double(), y)

    parts = {"train": doubles(48, 1), "validation": doubles(30, 2), "test": doubles(30, 3)}
    task = make_task(**parts, model=lambda: nn.Linear(4, 3))
    torch.set_default_dtype(torch.float64)
    try:
        for workers in (1, 2):
            run(few(tmp_path / str(workers), task=task), workers=workers)
    finally:
        torch.set_default_dtype(torch.float32)
    assert outcomes(tmp_path / "1") == outcomes(tmp_path / "2")
    found = records.load_all(tmp_path / "2")
    assert {record["environment"]["backend"] for record in found} == {"eager"}


class Raises(nn.Linear):
    def forward(self, x):
        if self.training:
            raise RuntimeError("the user's own mistake")
        return super().forward(x)


def test_errors_of_the_model_come_back(tmp_path):
    """Break: a pool's own error, or none."""
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        run(few(tmp_path, task=make_task(model=lambda: Raises(4, 3))), workers=2)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_bad_numbers(tmp_path, workers):
    with pytest.raises(InputError, match="workers to be a whole number of at least 1"):
        run(few(tmp_path), workers=workers)


TASK = """
import multiprocessing, os
from pathlib import Path
import torch
from neighbour import ROWS
from torch.utils.data import TensorDataset
from losslab.experiment.task import Task

class Net(torch.nn.Linear):
    pass

def data(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2000, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())

def task():
    return Task(name="own", train=data(ROWS, 0), validation=data(40, 1), test=data(40, 2),
                num_classes=2, model=lambda: torch.nn.Sequential(Net(2000, 1500), Net(1500, 2)),
                optimizer=begin, epochs=EPOCHS, batch_size=4)

def begin(parameters):
    if multiprocessing.parent_process() is not None:
        Path(__file__).with_name(f"{os.getpid()}.begun").touch()
    return torch.optim.SGD(parameters, lr=0.01)
"""


def command(folder, *more):
    own = folder / "own.py"
    losses = ["--loss", "cross_entropy", "--loss", "encouraging", "--seeds", "2"]
    out = ["--out", str(folder / "out"), "--workers", "2", "--threads", "2"]
    return [sys.executable, "-m", "losslab", "compare", "--task", str(own), *losses, *out, *more]


def write_task(folder, epochs):
    (folder / "own.py").write_text(TASK.replace("EPOCHS", str(epochs)))
    (folder / "neighbour.py").write_text("ROWS = 200\n")


def test_the_command_with_a_users_own_file(tmp_path):
    """Break: a module of the user's that a worker cannot import."""
    write_task(tmp_path, 2)
    done = subprocess.run(command(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 runs, 2 at a time" in done.stderr and "run 4 of 4" in done.stderr
    assert len(records.load_all(tmp_path / "out")) == 4


def test_an_interrupt_keeps_what_is_finished_and_ends_the_workers(tmp_path):
    """Oracle: the system's processes. Break: orphans, or a traceback."""
    write_task(tmp_path, 400)
    child = subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: sum(mark.suffix == ".begun" for mark in tmp_path.iterdir()) == 2)
    workers = children(child.pid)
    assert len(workers) >= 2
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130, said
    assert re.search(r"Stopped (before any of the \d+ runs|with \d+ of \d+ runs)", said)
    assert "The same command" in said
    assert "Traceback" not in said
    wait_until(lambda: not any(is_alive(pid) for pid in workers))


def children(pid):
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return set()
    return {int(one) for one in found.split()}


def test_the_bar_counts_the_epochs_of_all(tmp_path):
    """Break: a bar that jumps between the runs."""
    with ComparisonProgress(silent=True) as watch:
        run(few(tmp_path), watch, workers=2)
        runs, epochs = watch.bars.tasks
        assert (runs.completed, runs.total) == (4, 4)
        assert (epochs.completed, epochs.total) == (12, 12)


class Pieces(torch.utils.data.Dataset):
    """Examples that are views of one large tensor, as graphs' are."""

    def __init__(self):
        whole = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        self.examples = list(whole.unbind())

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index], index % 3


def test_views_are_handed_over_once(tmp_path):
    """Oracle: the size of the data. Break: every view written with the whole of its tensor, which
    made gigabytes of a thousand graphs."""
    planned = few(tmp_path, task=make_task(train=Pieces()))
    maker = Maker(planned, make_plan(planned), tmp_path, print, Clock(1, 1))
    side_by_side._pack(maker, tmp_path / "packed")
    assert (tmp_path / "packed").stat().st_size < 500 * 4 * 4 + 500 * 400
    _, plan, _ = side_by_side._unpacked(tmp_path / "packed")
    for (mine, _), (theirs, _) in zip(plan.task.train, planned.task.train, strict=True):
        assert torch.equal(mine, theirs)

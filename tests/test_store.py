"""The store of runs: what `append` returned for is there, once, after a kill at any instant.

The oracle of most tests is `whole_lines`: the files read by hand, line by line.
"""

import doctest
import errno
import fcntl
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import threading
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from losslab.errors import InputError
from losslab.experiment import Comparison, Task, records
from losslab.experiment import run as make_runs
from losslab.experiment import store as store_module
from losslab.experiment.any_runs import curves_of, flatten_record, open_runs
from losslab.experiment.run_table import COLUMNS, run_table
from losslab.experiment.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def run(run_id, finished="2026-11-22T03:00:00.000+00:00", **more):
    """A run whose numbers follow from its run_id."""
    number = sum(map(ord, run_id))
    return {
        "run_id": run_id,
        "study": "small",
        "dataset": f"set{number % 3}",
        "model": "linear",
        "loss": "el",
        "spec": "encouraging(log_end=0.75)",
        "lr": 0.01,
        "seed": number % 2,
        "status": "finished",
        "reason": None,
        "seconds": number / 7,
        "finished": finished,
        "epochs": 50,
        "last.epoch": 50,
        "last.test.accuracy": 1 / (1 + number),
        **more,
    }


def detail(run_id, epochs=20):
    curves = {"epoch": list(range(1, epochs + 1)), "test": {"accuracy": [0.25] * epochs}}
    return {"run_id": run_id, "curves": curves}


def fill(folder, *ids, **more):
    with Store(folder) as store:
        store.append([run(i, **more) for i in ids], [detail(i) for i in ids])
        return store


def segments(folder, kind="runs"):
    return sorted((Path(folder) / kind).glob("*.jsonl"))


def whole_lines(folder, kind="runs"):
    """Every whole line of every file, and how many files end in half a one."""
    found, torn = [], 0
    for path in segments(folder, kind):
        *lines, rest = path.read_bytes().split(b"\n")
        found += [json.loads(line) for line in lines]
        torn += bool(rest)
    return found, torn


def readable_by_pandas(folder):
    for kind in ("runs", "details"):
        for path in segments(folder, kind):
            lines = path.read_bytes().count(b"\n")
            assert len(pd.read_json(path, lines=True)) == lines


# --------------------------------------------------------------------------------------- contract


def test_what_is_appended_is_read_back(tmp_path):
    """Oracle: the runs handed in. NaN and inf are null; numpy, tuples and symbols survive. Fails if
    a number is rounded, a key is lost or a symbol is garbled."""
    first = run("a1", finished="2026-11-22T02:00:00+00:00", lr=0.1 + 0.2, seed=np.int64(7))
    second = run("b2", reason="loss was ∞\u2028 at “step” 3", status="diverged", seconds=math.nan)
    with Store(tmp_path / "new" / "study") as store:
        store.append([second, first], [{"run_id": "b2", "values": (1.5, math.inf, np.float32(2))}])
        assert store.runs() == [{**first, "seed": 7}, {**second, "seconds": None}]  # by time
        assert store.finished() == {"a1", "b2"}
        assert store.run("a1")["lr"] == 0.1 + 0.2
        assert store.run("c3") is None
        assert store.detail("b2") == {"run_id": "b2", "values": [1.5, None, 2.0]}
        assert store.detail("a1") is None
    (path,) = segments(tmp_path / "new" / "study")
    assert path.read_text().startswith('{"run_id":"b2","study":"small"')


def test_an_empty_store(tmp_path):
    """Reading makes nothing on the disk, and neither does an append of nothing."""
    with Store(tmp_path / "none") as store:
        store.append([])
        assert (store.runs(), store.finished(), store.detail("a"), store.repair()) == (
            [],
            set(),
            None,
            [],
        )
        assert list(store.frame().columns) == list(COLUMNS)
    assert not (tmp_path / "none").exists()


def test_each_writer_has_a_file_of_its_own(tmp_path):
    """Two open writers, and a copy sent to another process: three files, whose names begin with
    this host and process, the details in files of the same names."""
    with Store(tmp_path) as one, Store(tmp_path) as two, pickle.loads(pickle.dumps(one)) as copy:
        for number in range(6):
            (one, two, copy)[number % 3].append([run(f"r{number}")], [detail(f"r{number}")])
        assert one.finished() == two.finished() == {f"r{n}" for n in range(6)}
    paths = segments(tmp_path)
    assert len(paths) == 3
    assert [p.name for p in paths] == [p.name for p in segments(tmp_path, "details")]
    assert all(f"-{os.getpid()}-" in path.name for path in paths)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"dataset": "iris"}, "run_id"),
        ({"run_id": ""}, "run_id"),
        ({"run_id": 3}, "run_id"),
        ({"run_id": "a", "curves": [1, 2]}, "'curves' is a list"),
        ({"run_id": "a", "results": {"last": 1}}, "'results' is a dict"),
        ({"run_id": "a", "losses": np.ones(2)}, "'losses' is a list"),
    ],
)
def test_bad_runs_are_refused_whole(tmp_path, bad, says):
    """Nothing of the call is written, the good run before the bad one neither."""
    with Store(tmp_path) as store, pytest.raises(InputError, match=says):
        store.append([run("good"), bad], [detail("good")])
    assert not segments(tmp_path) + segments(tmp_path, "details")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Store(tmp_path / "file")
    with Store(tmp_path / "file" / "below") as store, pytest.raises(InputError, match="another fo"):
        store.append([run("a")])


# -------------------------------------------------------------------------------------- durability


def test_details_and_runs_reach_the_disk_in_this_order(tmp_path, monkeypatch):
    """Oracle: the system calls. When the runs' line is written, the details are synced; when append
    returns, so are the runs and every new name. Fails if a sync is left out or comes too late."""
    calls, real_write, real_sync = [], os.write, os.fsync

    def name(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path.parent)

    def write(descriptor, data):
        calls.append(("write", name(descriptor).parent.name))
        return real_write(descriptor, data)

    def sync(descriptor):
        at = name(descriptor)
        calls.append(("sync", at.parent.name if at.suffix else f"{at.name}/"))
        return real_sync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc to name open files by")
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", sync)
    with Store(tmp_path / "study") as store:
        store.append([run("a"), run("b")], [detail("a"), detail("b")])
        new = [("sync", f"{tmp_path.name}/"), ("sync", "study/")]  # the folders, made on the way
        details = [("sync", "details/"), ("write", "details"), ("sync", "details")]
        runs = [("sync", "study/"), ("sync", "runs/"), ("write", "runs"), ("sync", "runs")]
        assert calls == new + details + runs
        calls.clear()
        store.append([run("c")], [detail("c")])
        assert calls == details[1:] + runs[2:]  # no new names: no folders


@pytest.mark.parametrize("kind", ["runs", "details"])
def test_a_last_line_cut_anywhere(tmp_path, kind, monkeypatch):
    """The file cut after every byte of its last line. Oracle: json by hand: the last line counts if
    it is a whole object and not otherwise; the next writer leaves whole lines only and loses none.
    Fails if half a line is counted, a whole one dropped, or a torn one left."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # for speed; no power fails here
    with Store(tmp_path / "full") as store:
        runs = [{"run_id": i, "loss": "ψ{}", "lr": -1.5e-05, "reason": '"}\\'} for i in "ab"]
        store.append(runs, [{"run_id": i, "curves": {"lr": [0.1, None]}} for i in "ab"])
    source = segments(tmp_path / "full", kind)[0].read_bytes()
    first = source.index(b"\n") + 1
    for cut in range(first, len(source)):
        folder = tmp_path / str(cut)
        shutil.copytree(tmp_path / "full", folder)
        path = segments(folder, kind)[0]
        path.write_bytes(source[:cut])
        whole = cut == len(source) - 1  # all but the line's end
        expected = ["a", "b"] if whole or kind == "details" else ["a"]
        store = Store(folder)
        assert [r["run_id"] for r in store.runs()] == expected
        assert store.finished() == set(expected)
        assert list(store.frame()["run_id"]) == expected
        assert (store.detail("b") is None) == (not whole)
        assert path.read_bytes() == source[:cut]  # readers change nothing
        with store:
            store.append([run("c")])
        assert path.read_bytes() == (source if whole else source[:first])
        assert whole_lines(folder, kind)[1] == 0
        assert store.finished() == {*expected, "c"}
    readable_by_pandas(folder)


def test_a_living_writers_last_line_is_left_alone(tmp_path):
    """Oracle: the lock, taken by hand. Fails if a line that is being written is cut off."""
    path = segments(fill(tmp_path, "a").folder)[0]
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b'{"run_id":"half')
        file.flush()
        fill(tmp_path, "b")
        assert path.read_bytes().endswith(b"half")
        assert Store(tmp_path).finished() == {"a", "b"}
        assert Store(tmp_path).repair() == []
    assert Store(tmp_path).repair() == [path]
    assert path.read_bytes().endswith(b"}\n")
    with Store(tmp_path) as store:
        store.append([run("c")], [detail("c")])
        for kind in ("runs", "details"):
            newest = max(segments(tmp_path, kind), key=os.path.getmtime)
            with open(newest, "ab") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a writer holds both


def test_another_hosts_file_must_have_rested(tmp_path):
    """Some network file systems lock within a host only: there the lock says nothing about another
    host's writer, so its file is mended after ten minutes without a change."""
    path = segments(fill(tmp_path, "a").folder)[0]
    path = path.rename(path.with_name("elsewhere-1-0000.jsonl"))
    with open(path, "ab") as file:
        file.write(b'{"run_id":"half')
    assert Store(tmp_path).repair() == []
    os.utime(path, (time.time() - 599,) * 2)
    assert Store(tmp_path).repair() == []
    os.utime(path, (time.time() - 601,) * 2)
    assert Store(tmp_path).repair() == [path]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_failed_append_leaves_no_half_line(tmp_path, monkeypatch, failure, after):
    """A full disk, or Ctrl-C, after some pieces of 64 bytes. Oracle: the files by hand. Fails if
    what follows is written behind half a line."""
    real = os.write

    def write(descriptor, data):
        nonlocal after
        after -= 1
        if after < 0:
            raise failure
        return real(descriptor, bytes(data[:64]))

    with Store(tmp_path) as store:
        store.append([run("a")], [detail("a")])
        monkeypatch.setattr(os, "write", write)
        kind = InputError if isinstance(failure, OSError) else KeyboardInterrupt
        with pytest.raises(kind, match="No space left" if kind is InputError else None):
            store.append([run("b")], [detail("b")])
        monkeypatch.undo()
        assert whole_lines(tmp_path)[1] == whole_lines(tmp_path, "details")[1] == 0
        assert store.finished() == {"a"}
        store.append([run("b")], [detail("b")])
        assert store.finished() == {"a", "b"}
        assert store.detail("b") == detail("b")
    readable_by_pandas(tmp_path)


@pytest.mark.parametrize("what", ["deleted", "moved", "cut", "added to", "edited"])
def test_files_changed_under_a_writer(tmp_path, what):
    """What is appended after somebody changed the writer's file is found by a reader. Fails if it
    goes into a file without a name, or behind a foreign half line."""
    with Store(tmp_path) as store:
        store.append([run("a")], [detail("a")])
        (path,) = segments(tmp_path)
        if what == "deleted":
            shutil.rmtree(tmp_path / "runs")
        elif what == "moved":
            path.rename(path.with_name("moved.jsonl"))
        elif what == "cut":
            os.truncate(path, 10)
        elif what == "added to":
            path.write_bytes(path.read_bytes() + b'{"run_id":"x"')
        else:  # as sed -i and most editors do it
            path.with_name("copy").write_bytes(path.read_bytes())
            os.replace(path.with_name("copy"), path)
        store.append([run("b")], [detail("b")])
    lost = what in ("deleted", "cut")
    assert Store(tmp_path).finished() == ({"b"} if lost else {"a", "b"})
    assert [r["run_id"] for r in Store(tmp_path).runs()] == (["b"] if lost else ["a", "b"])
    assert Store(tmp_path).detail("b") == detail("b")


def test_threads_share_a_store(tmp_path):
    """Four threads, one store: every line whole and there once."""
    with Store(tmp_path) as store:
        work = [
            threading.Thread(
                target=lambda t=t: [store.append([run(f"{t}-{n}")]) for n in range(10)]
            )
            for t in range(4)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
    lines, torn = whole_lines(tmp_path)
    assert torn == 0
    assert sorted(line["run_id"] for line in lines) == sorted(
        f"{t}-{n}" for t in range(4) for n in range(10)
    )


# ------------------------------------------------------------------------------------ kill -9

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def forked(work):
    """A process that runs ``work(say)``; (its number, the pipe's end that hears what it says)."""
    ear, mouth = os.pipe()
    process = os.fork()
    if process:
        os.close(mouth)
        return process, ear
    try:
        os.close(ear)
        write = os.write
        work(lambda text: write(mouth, f"{text}\n".encode()))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def heard(process, ear, begun=b""):
    """What a process said to its end, and how it ended."""
    with open(ear, "rb") as file:
        said = (begun + file.read()).decode().splitlines()
    return said, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def write_in_small_pieces():
    """As a slow disk may: so that a kill often falls between two pieces of a line."""
    real = os.write

    def write(descriptor, data):
        time.sleep(1e-4)
        return real(descriptor, bytes(data[:199]))

    os.write = write


def appender(folder, ids, *, seed, batches=(1, 4), epochs=300, slowly=True):
    """Appends batches of runs until it is killed, and says each one that append returned for."""

    def work(say):
        if slowly:
            write_in_small_pieces()
        rng = random.Random(seed)
        with Store(folder) as store:
            done = store.finished()
            todo = [i for i in ids if i not in done]
            while todo:
                batch, todo = todo[: (n := rng.randint(*batches))], todo[n:]
                store.append([run(i) for i in batch], [detail(i, epochs) for i in batch])
                say("\n".join(batch))

    return work


def check(folder, acknowledged, planned):
    """All that append returned for is there, once, with its details; nothing that was not made."""
    store = Store(folder)
    runs = {r["run_id"]: r for r in store.runs()}
    assert len(store.runs()) == len(runs)
    assert acknowledged <= runs.keys() <= set(planned)
    assert store.finished() == runs.keys()
    for run_id in runs:
        assert runs[run_id] == run(run_id)
        found = store.detail(run_id)
        assert found == detail(run_id, len(found["curves"]["epoch"]))


KINDS_OF_WORK = (
    {"slowly": False},
    {},  # most kills fall into the details
    {"batches": (20, 20), "epochs": 1},  # most kills fall into the runs
)


@needs_fork
def test_kill_at_random_instants(tmp_path):
    """45 times: a process appends, is killed with -9 at a random instant, and the next goes on in
    the same folder. Oracle: what the processes said before they died, and the files read by hand.
    Fails if a run is lost, doubled, or counted without its details."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng, planned = random.Random(seed), [f"r{n:05}" for n in range(20_000)]
    acknowledged, torn = set(), {"runs": 0, "details": 0}
    for number in range(45):
        process, ear = forked(
            appender(tmp_path, planned, seed=rng.random(), **KINDS_OF_WORK[number % 3])
        )
        begun = os.read(ear, 2**16) if number % 3 else b""  # a kill at the very start is one too
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process, signal.SIGKILL)
        said, status = heard(process, ear, begun)
        assert status == -signal.SIGKILL
        acknowledged |= set(said)
        assert acknowledged <= Store(tmp_path).finished()
        for kind in torn:
            torn[kind] += whole_lines(tmp_path, kind)[1] > 0
        if number % 22 == 0:
            check(tmp_path, acknowledged, planned)
    assert min(torn.values()) > 0, "no kill fell into a line: the test shows nothing"
    fill(tmp_path, "zz")
    lines, left = whole_lines(tmp_path)
    ids = [line["run_id"] for line in lines]
    assert left == whole_lines(tmp_path, "details")[1] == 0
    assert len(ids) == len(set(ids))  # one writer after another never repeats a run
    readable_by_pandas(tmp_path)


@needs_fork
def test_several_writers_of_which_some_are_killed(tmp_path):
    """Four processes at once, whose lists of runs overlap; two are killed. Nothing that append
    returned for is lost, a run that two of them finished counts once, and the others are not
    disturbed by the mending."""
    planned = [f"r{n:05}" for n in range(20_000)]
    acknowledged, rng = set(), random.Random(1)
    for number in range(4):
        at = number * 60
        lists = [planned[at:], planned[at:], planned[at : at + 40], planned[at + 20 : at + 60]]
        processes = [
            forked(appender(tmp_path, ids, seed=i, epochs=30)) for i, ids in enumerate(lists)
        ]
        time.sleep(rng.uniform(0, 0.2))
        for process, _ in processes[:2]:
            os.kill(process, signal.SIGKILL)
        for i, process in enumerate(processes):
            said, status = heard(*process)
            assert status == (-signal.SIGKILL if i < 2 else 0)
            acknowledged |= set(said)
            if i >= 2:
                assert set(lists[i]) <= Store(tmp_path).finished()
        check(tmp_path, acknowledged, planned)
    lines, _ = whole_lines(tmp_path)
    assert len(lines) > len({line["run_id"] for line in lines})  # some were made twice
    fill(tmp_path, "zz")
    assert whole_lines(tmp_path)[1] == whole_lines(tmp_path, "details")[1] == 0


@needs_fork
def test_a_forked_process_writes_its_own_file_and_keeps_no_lock(tmp_path):
    """A store that is open when its process forks. Oracle: the file's lock, tried from here. Fails
    if parent and child write one file, or if a child that lives on keeps a dead parent's lock."""

    def parent(say):
        with Store(tmp_path) as store:
            store.append([run("parent")])
            child, ear = forked(lambda _: store.append([run("child")]))
            assert heard(child, ear)[1] == 0
            sleeper, _ = forked(lambda _: time.sleep(60))
            say(sleeper)
            os.kill(os.getpid(), signal.SIGKILL)

    said, status = heard_first(*forked(parent))
    try:
        assert status == -signal.SIGKILL
        assert len(segments(tmp_path)) == 2
        assert Store(tmp_path).finished() == {"parent", "child"}
        for path in segments(tmp_path):
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if somebody holds it
    finally:
        os.kill(int(said), signal.SIGKILL)


def heard_first(process, ear):
    """The first line that a process said, and how it ended; its children may live on."""
    with open(ear) as file:
        said = file.readline()
    return said, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# --------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("at", [0, 1, 255, 256, 299])
@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: b"\0" * len(line),
        lambda line: line.replace(b'"run_id"', b'"ran_id"'),
        lambda line: b"[1, 2]",
        lambda line: line.replace(b",", b"\n", 1),
        lambda line: line + line.replace(b':"r', b':"s', 1),
        lambda line: b"\xff" + line,
    ],
    ids=["half", "zeros", "no run_id", "a list", "broken in two", "two in one", "no text"],
)
def test_a_damaged_line_is_named(tmp_path, at, damage):
    """Oracle: the line's number, counted here; and that the advice (sed) brings the rest back."""
    fill(tmp_path, *(f"r{n:03}" for n in range(300)))
    (path,) = segments(tmp_path)
    lines = path.read_bytes().splitlines()
    lines[at] = damage(lines[at])
    path.write_bytes(b"\n".join(lines) + b"\n")
    for read in (Store(tmp_path).runs, Store(tmp_path).frame):
        with pytest.raises(InputError, match="damaged") as raised:
            read()
        assert f"{path}, line {at + 1} " in str(raised.value)
    while True:
        try:
            left = Store(tmp_path).runs()
            break
        except InputError as error:
            command = str(error).partition("Delete this line (")[2].partition(") and")[0]
            subprocess.run(command, shell=True, check=True)
    assert [r["run_id"] for r in left] == [f"r{n:03}" for n in range(300) if n != at]


def test_damaged_details_are_named(tmp_path):
    """The line of the run asked for, and a line whose beginning cannot be told."""
    fill(tmp_path, "a", "b", "c")
    (path,) = segments(tmp_path, "details")
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], lines[1][:30], lines[2], b""]))
    assert Store(tmp_path).detail("a") == detail("a")
    with pytest.raises(InputError, match=r"details/.*, line 2 is damaged"):
        Store(tmp_path).detail("b")
    path.write_bytes(b"\n".join([lines[0], b"???", lines[2], b""]))
    with pytest.raises(InputError, match=r"details/.*, line 2 is damaged"):
        Store(tmp_path).detail("a")


def test_a_run_finished_twice_counts_once(tmp_path):
    """The earlier one counts, with its own details, whatever the files are called and in whichever
    order they lie. Oracle: the rule, by hand."""
    for name, order in (("x", (1, 2, 3)), ("y", (3, 1, 2))):
        folder = tmp_path / name
        for minute in order:
            with Store(folder) as store:
                at = f"2026-11-22T03:0{minute}:00.000+00:00"
                store.append([run("a", at, seconds=minute)], [{"run_id": "a", "minute": minute}])
        for number, path in enumerate(segments(folder)):
            new = f"{9 - number}-{path.name}"
            path.with_name(new).write_bytes(path.read_bytes())
            path.unlink()
            os.rename(folder / "details" / path.name, folder / "details" / new)
        store = Store(folder)
        assert [r["seconds"] for r in store.runs()] == [1]
        assert list(store.frame()["seconds"]) == [1]
        assert store.run("a")["seconds"] == 1
        assert store.detail("a")["minute"] == 1
        assert store.finished() == {"a"}
    with Store(tmp_path / "z") as one, Store(tmp_path / "z") as two:  # at the same instant
        two.append([run("a", seconds=2)])
        one.append([run("a", seconds=1), run("a", seconds=3)])
        assert [r["seconds"] for r in one.runs()] == [1]


def test_details_of_a_run_that_was_not_finished(tmp_path):
    """Written before a kill, without a run's line: no run, no detail; made again, the new one."""
    with Store(tmp_path) as store:
        store.append([], [{"run_id": "a", "value": "old"}])
        assert store.detail("a") is None
    with Store(tmp_path) as store:
        store.append([run("a")], [{"run_id": "a", "value": "new"}])
    assert Store(tmp_path).detail("a")["value"] == "new"


def test_details_are_parsed_only_when_asked_for(tmp_path, monkeypatch):
    """Oracle: calls of json.loads. 500 details cost two calls each, the run's line and the detail;
    a first look costs no more. Fails if a look parses the whole store."""
    ids = [f"r{n:03}" for n in range(500)]
    fill(tmp_path, *ids)
    calls, real = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: calls.append(1) or real(text))
    store = Store(tmp_path)
    assert store.detail("r250") == detail("r250")
    assert len(calls) == 2
    assert all(store.detail(i) == detail(i) for i in ids)
    assert len(calls) == 2 + 2 * 500
    assert len(store.finished()) == 500
    assert len(calls) == 2 + 2 * 500


def test_a_reader_sees_what_others_add_and_edit(tmp_path):
    """One reader all along: runs of new writers, half a line that is completed, a line deleted."""
    reader = Store(tmp_path)
    assert reader.finished() == set()
    fill(tmp_path, "a", "b")
    assert (reader.finished(), reader.detail("b")) == ({"a", "b"}, detail("b"))
    (path,), (details,) = segments(tmp_path), segments(tmp_path, "details")
    line = json.dumps(run("c"))
    with open(path, "a") as file:
        file.write(line[:50])
        file.flush()
        assert reader.finished() == {"a", "b"}
        file.write(line[50:])  # whole, but without its end
        file.flush()
        assert reader.finished() == {"a", "b", "c"}
        file.write("\n" + json.dumps(run("d")) + "\n")
    assert (reader.finished(), reader.run("d")) == ({"a", "b", "c", "d"}, run("d"))
    subprocess.run(["sed", "-i", "1d", path, details], check=True)
    assert reader.detail("b") == detail("b")
    assert reader.finished() == {"b", "c", "d"}
    assert reader.detail("a") is None


def test_two_stores_are_merged_by_copying_files(tmp_path):
    fill(tmp_path / "one", "a", "b")
    fill(tmp_path / "two", "b", "c", finished="2026-11-22T02:00:00+00:00")
    shutil.copytree(tmp_path / "two", tmp_path / "one", dirs_exist_ok=True)
    merged = Store(tmp_path / "one")
    assert merged.finished() == {"a", "b", "c"}
    assert [r["run_id"] for r in merged.runs()] == ["b", "c", "a"]
    assert merged.detail("c") == detail("c")


# ---------------------------------------------------------------------------------------- tables


def test_the_quick_table_is_the_plain_one(tmp_path):
    """Oracle: `runs()` made into a table by pandas. Columns that some runs lack, null, whole
    numbers among fractions, dates and symbols must come out alike."""
    fill(tmp_path, "a", "b")
    fill(tmp_path, "c", finished="2026-11-22T01:00:00+00:00", reason="∞", status="diverged", lr=1)
    fill(tmp_path, "d", **{"last.test.accuracy": None, "last.epoch": None, "fold": 3})
    fill(tmp_path, "e", finished=None, **{"last.test.nll": 0, "note": "2026-11-22"})
    store = Store(tmp_path)
    table, plain = store.frame(), run_table(store.runs())
    pd.testing.assert_frame_equal(table, plain)
    assert list(table["run_id"]) == ["e", "c", "a", "b", "d"]
    some = ["lr", "last.epoch", "loss", "last.test.nll", "seed", "absent.test.nll", "reason"]
    pd.testing.assert_frame_equal(store.frame(some), plain.reindex(columns=some))
    assert list(store.frame(some).columns) == some
    assert list(table.columns[:13]) == list(COLUMNS)
    assert (table["seed"].dtype, table["lr"].dtype) == ("Int64", "float64")
    without = [{k: v for k, v in r.items() if k != "note"} for r in store.runs()]
    for path in segments(tmp_path):
        path.unlink()
    with Store(tmp_path) as store:
        store.append(without)
    pd.testing.assert_frame_equal(store.frame(), run_table(without))


def test_the_quick_table_is_taken(tmp_path, monkeypatch):
    """An ordinary store is read by Arrow: `runs()` is not called. Fails if that is lost."""
    fill(tmp_path, "a", "b")
    monkeypatch.setattr(Store, "runs", lambda self: pytest.fail("read line by line"))
    assert len(Store(tmp_path).frame()) == 2


PAGE = (Path(__file__).parent.parent / "docs" / "store.md").read_text()


@pytest.fixture
def twice(tmp_path):
    """Three runs of two writers, one of them finished twice."""
    name = "validation_selected.test.accuracy"
    fill(tmp_path, "a", "b", **{name: 0.5})
    fill(tmp_path, "b", "c", finished="2026-11-22T04:00:00.000+00:00", **{name: 1.0})
    return tmp_path


def test_pandas_reads_the_files_as_the_page_says(twice):
    """The page's own code. Oracle: the means of `runs()`, by hand: b counts as it was first."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(code.replace("FOLDER", str(twice)), names)
    assert len(names["runs"]) == 3
    assert names["means"].to_dict() == {
        (r["dataset"], "el"): r["validation_selected.test.accuracy"] for r in Store(twice).runs()
    }
    assert sorted(names["means"]) == [0.5, 0.5, 1.0]


def test_duckdb_reads_the_files_as_the_page_says(twice):
    """The page's own queries; the curves are those of `detail`. Skipped without DuckDB."""
    duckdb = pytest.importorskip("duckdb")
    (code,) = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
    first, second, _ = code.replace("FOLDER", str(twice)).split(";")
    assert duckdb.sql(first).fetchall() == sorted(
        (r["dataset"], "el", r["validation_selected.test.accuracy"], 1) for r in Store(twice).runs()
    )
    assert duckdb.sql(second).fetchall() == [(epoch, 0.25) for epoch in range(1, 21)]


# ------------------------------------------------------------------------------------- comparisons


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A comparison's folder: three losses, two seeds, two epochs of a made task."""
    rng = torch.Generator().manual_seed(0)
    targets = torch.arange(30) % 3
    data = TensorDataset(torch.randn(30, 2, generator=rng) + targets[:, None], targets)
    task = Task("blobs", data, data, data, 3, partial(nn.Linear, 2, 3), partial(SGD, lr=0.25), 2, 8)
    folder = tmp_path_factory.mktemp("comparison")
    losses = [("ce", "cross_entropy"), ("el", "encouraging(log_end=0.5)"), ("mine", "expectation")]
    make_runs(Comparison(task, losses, folder, seeds=[0, 1]))
    return folder


def test_runs_of_a_comparison_have_the_same_columns(comparison):
    """Oracle: the records, read by hand."""
    source = open_runs(comparison)
    runs = {r["run_id"]: r for r in source.runs()}
    stored = [json.loads(path.read_text()) for path in (comparison / "runs").glob("*.json")]
    assert len(runs) == len(stored) == 6
    assert source.finished() == runs.keys()
    for record in stored:
        flat = runs[record["run_id"]]
        assert source.run(record["run_id"]) == flat
        assert list(flat)[:13] == list(COLUMNS)
        assert (flat["dataset"], flat["model"]) == ("blobs", "Linear")
        assert flat["loss"] == record["loss"]["label"]
        assert flat["lr"] == 0.25
        assert flat["finished"] == record["timing"]["finished"]
        assert (flat["epochs"], flat["status"], flat["study"]) == (2, "finished", None)
        for selection, result in record["results"].items():
            assert flat[f"{selection}.epoch"] == result["epoch"]
            for split in ("validation", "test"):
                for metric, value in result[split].items():
                    assert flat[f"{selection}.{split}.{metric}"] == value
        assert source.detail(record["run_id"])["curves"] == record["curves"]
        assert len(flat) == 13 + 3 * (1 + 2 * 7)
    assert source.run("none") is None
    assert source.detail("none") is None
    assert len(source.frame()) == 6


def test_a_diverged_record_and_a_scheduled_rate(comparison):
    """Null for what a diverged run has not, in the same columns; a control's rate is the task's
    times its scale, and none where that changes."""
    path = next((comparison / "runs").glob("*.json"))
    record = json.loads(path.read_text())
    record["loss"]["lr_scale"] = 1.5
    usual = flatten_record(record)
    assert usual["lr"] == 0.375
    record |= {"status": "diverged", "reason": "NaN", "results": dict.fromkeys(records.SELECTIONS)}
    record["loss"]["lr_scale"] = [1.0, 2.0]
    flat = flatten_record(record)
    assert list(flat) == list(usual)
    assert (flat["lr"], flat["reason"], flat["last.test.accuracy"]) == (None, "NaN", None)
    del record["task"]["optimizer"], record["task"]["model"], record["timing"]
    bare = flatten_record(record)  # a task of one's own may describe nothing
    assert [bare[key] for key in ("lr", "model", "seconds", "finished")] == [None] * 4


def test_which_folders_have_runs(comparison, tmp_path):
    with pytest.raises(InputError, match="losslab study"):
        open_runs(tmp_path)
    assert isinstance(open_runs(fill(tmp_path, "a").folder), Store)
    shutil.copy(next((comparison / "runs").glob("*.json")), tmp_path / "runs")
    with pytest.raises(InputError, match="holds both"):
        open_runs(tmp_path)


def test_curves_are_flat():
    curves = {"epoch": [1, 2], "train_loss": [1.0, None], "test": {"accuracy": [0.5, 0.6]}}
    flat = {"epoch": [1, 2], "train_loss": [1.0, None], "test.accuracy": [0.5, 0.6]}
    assert curves_of({"run_id": "a", "curves": curves}) == flat
    assert curves_of(None) == curves_of({"run_id": "a"}) == {}


def test_store_example():
    """Oracle: the output printed in the docstring."""
    assert doctest.testmod(store_module) == (0, 2)

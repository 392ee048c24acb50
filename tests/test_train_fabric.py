"""Mixed precision, pieces, clipping, several processes; checkpoints, and what goes on from them.

``fabric_worker.py`` trains on two ranks (gloo, on the CPU) and lets a comparison be killed; the
tests here look at what it left. The oracle of parts is the whole batch in one process, in float64.
"""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fabric_worker as w
import losslab
from losslab.errors import InputError
from losslab.experiment import checkpoint as checkpoints
from losslab.experiment import launch, records, runner
from losslab.experiment.checkpoint import Checkpoint
from losslab.experiment.launch import Training, machine_for
from losslab.experiment.plan import make_plan
from losslab.experiment.records import canonical_json
from losslab.experiment.shares import divided, shares
from losslab.experiment.train import Stopped, train
from losslab.reading import Reading

HERE = Path(__file__).parent
TIMEOUT = 180


pytestmark = pytest.mark.usefixtures("one_thread")


def close(got, truth, case: str, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    """Equal to rounding: weights, curves, results and examples."""
    assert (got["status"], got["reason"]) == (truth["status"], truth["reason"]), case
    assert got["weights"].keys() == truth["weights"].keys()
    for name, value in truth["weights"].items():
        torch.testing.assert_close(
            got["weights"][name], value, rtol=rtol, atol=atol, msg=lambda m: f"{case}: {m}"
        )
    assert flat(got["curves"]) == pytest.approx(flat(truth["curves"]), rel=rtol, abs=atol), case
    assert flat(got["results"]) == pytest.approx(flat(truth["results"]), rel=1e-6), case
    for name, value in truth["examples"].items():
        torch.testing.assert_close(got["examples"][name], value, rtol=1e-5, atol=1e-6)


def flat(tree, path: str = "") -> dict[str, float]:
    if isinstance(tree, dict):
        return {
            k: v for name, part in tree.items() for k, v in flat(part, f"{path}/{name}").items()
        }
    if isinstance(tree, list):
        return {f"{path}/{number}": value for number, value in enumerate(tree)}
    return {path: tree}


def identical(one, other) -> bool:
    """Equal to the last bit."""
    return all(
        one[part].keys() == other[part].keys()
        and all(torch.equal(one[part][k], other[part][k]) for k in one[part])
        for part in ("weights", "examples")
    ) and canonical_json([one["curves"], one["results"]]) == canonical_json(
        [other["curves"], other["results"]]
    )


@cache
def alone(case: str, training: Training = Training()):  # noqa: B008 (frozen)
    """The case in one process."""
    make, changes = w.CASES[case]
    task = w.make_task(**changes)
    return w.outcome(train(task, make(), 0, lr_scale=w.scaled_rate, training=training))


# ---- a batch in parts ------------------------------------------------------------------------


@given(rows=st.integers(1, 40), ranks=st.integers(1, 6), pieces=st.integers(1, 6))
def test_parts_hold_every_row_once_and_none_alone(rows, ranks, pieces):
    """Oracle: counting. A lost row, a row twice, or a part of one row (fatal to batch norm)."""
    target = torch.zeros(rows, dtype=torch.int64)
    seen, total = [], 0.0
    for rank in range(ranks):
        for part, weight in shares(target, nn.CrossEntropyLoss(), Reading(), ranks, rank, pieces):
            found = list(range(rows))[part]
            assert len(found) > 1 or rows == 1
            total += weight
            seen += found if weight else []
            assert weight in (0, pytest.approx(len(found) / rows))
    assert sorted(seen) == list(range(rows)) and total == pytest.approx(1)
    sizes = [part.stop - part.start for part in divided(rows, pieces)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("case", w.CASES)
@pytest.mark.parametrize("pieces", [2, 5])
def test_pieces_have_the_gradient_of_the_whole_batch(case, pieces):
    """Oracle: the ordinary loop. Break: pieces that count alike, whatever their rows or weights."""
    close(alone(case, Training(accumulate=pieces)), alone(case), case)


def test_terms_with_different_weights_cannot_be_divided():
    """Oracle: the message; no single number divides the sum of their means."""
    loss = w.weighted("focal") + losslab.loss("cross_entropy")
    with pytest.raises(InputError, match="share weight, ignore_index and reduction"):
        train(w.make_task(), loss, 0, training=Training(accumulate=2))


def test_a_piece_of_ignored_rows_alone_counts_nothing():
    """Oracle: the whole batch. Break: the mean over no rows, which is NaN, times 0."""
    data = w.TensorDataset(w.blobs(8, 1).tensors[0], torch.tensor([0, 1, 1, 1, 1, 1, 2, 1]))
    task = w.make_task(train=data, batch_size=8, augment=None)
    loss = nn.CrossEntropyLoss(ignore_index=1)
    whole, pieces = (
        w.outcome(train(task, loss, 0, training=Training(accumulate=k))) for k in (1, 4)
    )
    close(pieces, whole, "ignored")
    assert whole["status"] == "finished"


# ---- clipping and precision ------------------------------------------------------------------


def one_step(training: Training):
    """The initial weights, the gradient there, and the weights after one step at rate 1."""
    task = w.make_task(
        epochs=1,
        batch_size=40,
        augment=None,
        lr_scheduler=None,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    )
    models = []
    task = replace(task, model=lambda: models.append(w.network()) or models[-1])
    stopped = iter([True])
    with pytest.raises(Stopped):
        train(task, nn.CrossEntropyLoss(), 0, stop=lambda: next(stopped))
    first = models[0]
    inputs, target = task.train.tensors
    gradient = torch.autograd.grad(
        nn.functional.cross_entropy(first(inputs), target), list(first.parameters())
    )
    after = train(task, nn.CrossEntropyLoss(), 0, training=training).model
    return list(first.parameters()), gradient, list(after.parameters())


@pytest.mark.parametrize("clip", [0.01, 1e6])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_gradient_is_scaled_to_the_norm_where_it_is_longer(clip, pieces):
    """Oracle: the gradient at the initial weights, times min(1, clip/norm), by hand.

    Break: each piece, or each parameter, clipped by itself.
    """
    before, gradient, after = one_step(Training(clip=clip, accumulate=pieces))
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient))
    assert 0.01 < norm < 1e6
    factor = min(1.0, clip / norm)
    for start, slope, end in zip(before, gradient, after, strict=True):
        torch.testing.assert_close(end, start - factor * slope, rtol=1e-5, atol=1e-9)


class Wide(nn.Module):
    """Its layer norm computes in float32 on inputs that half precision would round."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body = nn.LayerNorm(w.FEATURES), nn.Linear(w.FEATURES, w.CLASSES)
        self.seen: list[torch.dtype] = []
        self.batches: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches.append(inputs)
        logits = self.body(self.norm(inputs + 1000))
        self.seen.append(logits.dtype)
        return logits


class Noting(nn.CrossEntropyLoss):
    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.seen = (logits.dtype, torch.is_autocast_enabled("cpu"))
        return super().forward(logits, target) * getattr(self, "factor", 1.0)


@pytest.mark.parametrize("name", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_mixed_precision_is_autocast_around_the_model(name, clip):
    """Oracle: the loop of PyTorch's page on mixed precision, written here; the same bits.

    The loss is so large that the scaled gradients overflow at first. Break: inputs rounded to half,
    a loss computed in half, clipping before the gradients are unscaled, a rate that waits for the
    skipped steps.
    """
    half = torch.bfloat16 if name == "bf16-mixed" else torch.float16
    data = w.TensorDataset(
        *(t.float() if t.is_floating_point() else t for t in w.blobs(40, 1).tensors)
    )
    changes = {"train": data, "validation": data, "test": data, "model": Wide, "augment": None}
    criterion = Noting()
    criterion.factor = 100.0
    task = w.make_task(**changes)
    result = train(task, criterion, 0, training=Training(name, clip=clip))
    assert set(result.model.seen) == {half} and criterion.seen == (torch.float32, False)

    kept = []
    answers = iter([True])
    with pytest.raises(Stopped):  # the same initial weights
        train(
            replace(task, model=lambda: kept.append(Wide()) or kept[-1]),
            criterion,
            0,
            stop=lambda: next(answers),
        )
    model = kept[0]
    optimizer = task.optimizer(model.parameters())
    scheduler = task.lr_scheduler(optimizer, 9)
    scaler = torch.amp.GradScaler("cpu", enabled=name == "16-mixed")
    rows = {tuple(x.tolist()): int(y) for x, y in zip(*data.tensors, strict=True)}
    skipped = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in result.model.batches:
            target = torch.tensor([rows[tuple(x.tolist())] for x in batch])
            with torch.autocast("cpu", dtype=half):
                logits = model(batch)
            loss = 100 * nn.functional.cross_entropy(logits.float(), target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
            scheduler.step()
    assert (skipped > 0) == (name == "16-mixed") and skipped < 9
    for got, expected in zip(result.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"precision": "bf16"}, r"one of 32-true, bf16-mixed, 16-mixed, but got 'bf16'"),
        ({"accumulate": 0}, "accumulate to be a whole number of at least 1.*but got 0"),
        ({"accumulate": 1.5}, "accumulate .*but got 1.5"),
        ({"clip": 0.0}, "clip to be a finite number above 0.*but got 0.0"),
        ({"clip": math.nan}, "clip .*but got nan"),
        ({"checkpoint_every": -1}, "checkpoint_every to be seconds.*but got -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, told):
    """Oracle: the messages."""
    with pytest.raises(InputError, match=told):
        Training(**wrong)


def test_what_a_device_cannot_do_is_refused(monkeypatch):
    """Oracle: the messages, with a GPU that has no bfloat16 played here."""
    with pytest.raises(InputError, match="cpu or cuda for the precision bf16-mixed, but got mps"):
        machine_for(Training("bf16-mixed"), "mps")
    with pytest.raises(InputError, match="for accumulation and clipping, but got xpu"):
        machine_for(Training(clip=1.0), "xpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: warnings.catch_warnings())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "old")
    with pytest.raises(InputError, match=r"cuda:0 \(old\) does not; use the precision 16-mixed"):
        machine_for(Training("bf16-mixed"), "cuda:0")


def test_each_of_several_processes_has_a_device_of_its_own(monkeypatch):
    """Oracle: torchrun's variables, set here. Break: two ranks on one GPU."""
    assert launch.own_device("cuda:3") == torch.device("cuda:3") and launch.processes() == 1
    values = {"TORCHELASTIC_RUN_ID": "x", "RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1}
    for name, value in (values | {"LOCAL_WORLD_SIZE": 4}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert launch.own_device("cuda") == torch.device("cuda:1")
    assert launch.own_device("cpu") == torch.device("cpu")
    for device, told in [
        ("cuda:1", "each of which takes its own, but got 'cuda:1'; write cuda"),
        ("mps", "cpu or cuda for 8 processes, but got 'mps'"),
    ]:
        with pytest.raises(InputError, match=told):
            launch.own_device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"4 processes on this machine, but it has 2;.*-node 2"):
        launch.own_device("cuda")
    monkeypatch.setattr(launch, "_PATIENCE", 0.0)
    with pytest.raises(InputError, match="mine alone"), launch.one_voice():
        raise InputError("mine alone")


# ---- in the settings and the runs of a comparison --------------------------------------------


def test_options_enter_the_settings_and_names_of_runs_where_they_are_not_as_usual(
    tmp_path, monkeypatch
):
    """Oracle: the settings written out; other runs by another name, the usual ones by the old."""

    def planned(**options):
        plan = make_plan(w.comparison(tmp_path, training=Training(**options)))
        return plan.configuration["settings"], set(plan.runs)

    usual, runs = planned(checkpoint_every=3.0)
    assert usual == {"epochs": 3, "batch_size": 16, "device": "cpu", "loss_options": {}}
    named = [runs]
    for options in ({"precision": "16-mixed"}, {"accumulate": 2}, {"clip": 1.0}):
        settings, other = planned(**options)
        assert settings == usual | options
        assert all(not other & before for before in named)
        named.append(other)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert planned()[0] == usual | {"processes": 2}


def test_a_stack_is_for_runs_without_options(tmp_path):
    """Oracle: the events, and the records of the ordinary loop with the option."""
    events: list = []
    settings = {"training": Training(accumulate=2)}
    task = w.make_task(augment=None)
    runner.run(replace(w.comparison(tmp_path, **settings), task=task), events.append)
    assert events[0].together == 1
    assert events[0].apart == "accumulate: only the ordinary loop has that"
    events.clear()
    runner.run(replace(w.comparison(tmp_path / "usual"), task=task), events.append)
    assert events[0].together > 1
    whole = {r["run_id"]: r for r in records.load_all(tmp_path / "usual")}
    assert not whole.keys() & {r["run_id"] for r in records.load_all(tmp_path)}


# ---- going on from the middle ----------------------------------------------------------------


class Drawing(nn.Module):
    """A loss that draws from every global generator there is."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        noise = torch.randn_like(logits) * (1 + random.random() + np.random.randn())
        return nn.functional.cross_entropy(logits + 0.1 * noise, target)


class Loud(nn.CrossEntropyLoss):
    """A loss whose gradients overflow float16 at first, which moves the scaler."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 30 * super().forward(logits, target)


class Lively(nn.Module):
    """Batch statistics, dropout, and weights that the optimiser keeps moments of."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(w.FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, w.CLASSES)
        self.body = nn.Sequential(*layers).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs)


def single(rows: int, seed: int) -> w.TensorDataset:
    inputs, target = w.blobs(rows, seed).tensors
    return w.TensorDataset(inputs.float(), target)  # autocast leaves float64 as it is


SINGLE = {"train": single(40, 1), "validation": single(24, 2), "test": single(30, 3)}
SINGLE |= {"model": lambda: Lively().float()}
RESUMED = {
    "tensors": (Drawing, {}, {}),
    "loaded": (Drawing, {"train": w.Plain(w.blobs(40, 1), 0.5)}, {}),
    "scheduled": (lambda: losslab.loss("mixed(focus=ramp(0, 0.5))"), {}, {}),
    "alternating": (lambda: losslab.loss("complement_objective(cross_entropy)"), {}, {}),
    "one cycle": (
        nn.CrossEntropyLoss,
        {
            "optimizer": lambda p: torch.optim.Adam(p, lr=0.01),
            "lr_scheduler": lambda o, n: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=n),
        },
        {},
    ),
    "scaled": (Loud, SINGLE, {"precision": "16-mixed", "clip": 1.0, "accumulate": 2}),
    "impatient": (nn.CrossEntropyLoss, {"patience": 1, "epochs": 4}, {}),
}


@pytest.mark.parametrize("case", RESUMED)
def test_stopped_after_any_step_it_goes_on_to_the_same_bits(case, tmp_path):
    """Oracle: the run in one go. Break: any state that the checkpoint leaves out.

    Every step of the run is one to stop after: within an epoch, at its end, at the end of the run.
    """
    make, changes, options = RESUMED[case]
    task = w.make_task(**({"model": Lively} | changes))
    training = Training(**options, checkpoint_every=0)
    whole = w.outcome(train(task, make(), 3, training=training))
    steps = 3 * len(whole["curves"]["epoch"])
    path = tmp_path / "run.ckpt"
    for stopped in range(1, steps):
        torch.manual_seed(stopped), random.seed(stopped), np.random.seed(stopped)
        questions = iter([False] * stopped + [True])
        with pytest.raises(Stopped):
            train(
                *(task, make(), 3),
                training=training,
                checkpoint=Checkpoint(path, every=0),
                stop=lambda questions=questions: next(questions),
            )
        assert torch.load(path, weights_only=True)["position"]["step"] == stopped
        assert not path.with_name("run.ckpt.tmp").exists()
        epochs = []
        going_on = train(
            *(task, make(), 3),
            training=training,
            checkpoint=Checkpoint(path, every=math.inf),
            progress_callback=epochs.append,
        )
        assert identical(w.outcome(going_on), whole), stopped
        first = (stopped - 1) // 3 + 1  # an epoch that was all but measured is measured now
        assert [e.epoch for e in epochs] == list(range(first, len(whole["curves"]["epoch"]) + 1))
        path.unlink()


def test_a_resumed_run_has_taken_the_time_of_both(tmp_path, monkeypatch):
    """Oracle: a clock that moves a second a look; the run in one go, and a stop after four."""
    path = tmp_path / "run.ckpt"
    questions = iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        train(
            *(w.make_task(), nn.CrossEntropyLoss(), 0),
            checkpoint=Checkpoint(path, 0),
            stop=lambda: next(questions),
        )
    state = torch.load(path, weights_only=True)
    assert state["position"]["seconds"] > 0
    state["position"]["seconds"] = 5000.0
    torch.save(state, path)
    result = train(w.make_task(), nn.CrossEntropyLoss(), 0, checkpoint=Checkpoint(path))
    assert 5000 < result.seconds < 5000 + TIMEOUT


def test_checkpoints_come_when_it_is_time(tmp_path, monkeypatch):
    """Oracle: a clock played here, ten seconds a look: at every 25 seconds, one in three steps."""
    now = iter(range(0, 10**6, 10))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(now))
    saved = []
    monkeypatch.setattr(checkpoints, "write_atomically", lambda path, data: saved.append(path))
    path = tmp_path / "run.ckpt"
    train(w.make_task(), nn.CrossEntropyLoss(), 0, checkpoint=Checkpoint(path, 25))
    assert saved == [path] * 3  # 9 steps, looks at 20 and 30; the write itself looks too


def interrupted(path: Path, **changes) -> None:
    questions = iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        train(
            *(w.make_task(**changes), nn.CrossEntropyLoss(), 0),
            checkpoint=Checkpoint(path, 0),
            stop=lambda: next(questions),
        )


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    """Oracle: the messages, which name the file and what differs."""
    path = tmp_path / "run.ckpt"
    interrupted(path)
    loss, kept = nn.CrossEntropyLoss(), Checkpoint(path)
    for told, run in {
        "its seed is 0, not 1": (w.make_task(), loss, 1),
        "its epochs is 3, not 4": (w.make_task(epochs=4), loss, 0),
        "its loss is 'CrossEntropyLoss', not 'focal": (w.make_task(), losslab.loss("focal"), 0),
        "fit the task's model and optimiser": (w.make_task(model=Lively), loss, 0),
    }.items():
        with pytest.raises(InputError, match=told):
            train(*run, checkpoint=kept)
    with pytest.raises(InputError, match=r"its training is \{\}, not \{'clip': 1.0\}"):
        train(w.make_task(), loss, 0, training=Training(clip=1.0), checkpoint=kept)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"run.ckpt.* cannot be read .*delete it"):
            train(w.make_task(), loss, 0, checkpoint=kept)
    torch.save({"schema": 99, "run": {}}, path)
    with pytest.raises(InputError, match="of schema 1, but it has 99"):
        train(w.make_task(), loss, 0, checkpoint=kept)
    path.with_name("run.ckpt.tmp").touch()
    kept.remove(), kept.remove()
    assert not list(tmp_path.iterdir())


def test_reading_a_checkpoint_runs_no_code(tmp_path):
    """Oracle: a pickle that would leave a file behind."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "proof"), "w"))

    path = tmp_path / "run.ckpt"
    torch.save({"schema": 1, "run": Evil()}, path)
    with pytest.raises(InputError, match="cannot be read"):
        train(w.make_task(), nn.CrossEntropyLoss(), 0, checkpoint=Checkpoint(path))
    assert not (tmp_path / "proof").exists()


class Rate:
    """What a scheduler calls, with a state that is no plain data."""

    def __init__(self) -> None:
        self.owner = Rate

    def __call__(self, step: int) -> float:
        return 0.9**step


def test_a_state_that_cannot_be_kept_is_told_and_the_run_goes_on(tmp_path):
    """Oracle: the run without checkpoints; a warning, once."""
    task = w.make_task(lr_scheduler=lambda o, n: torch.optim.lr_scheduler.LambdaLR(o, Rate()))
    whole = w.outcome(train(task, nn.CrossEntropyLoss(), 0))
    kept = Checkpoint(tmp_path / "run.ckpt", 0)
    with pytest.warns(UserWarning, match="no checkpoints of this run") as told:
        found = train(task, nn.CrossEntropyLoss(), 0, checkpoint=kept)
    assert len(told) == 1 and identical(w.outcome(found), whole)
    assert not list(tmp_path.iterdir())


# ---- processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the worker left everything."""
    if not hasattr(os, "fork"):
        pytest.skip("the processes are forked, which this system cannot do")
    folder = tmp_path_factory.mktemp("fabric")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, str(HERE / "fabric_worker.py"), str(folder)],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, text = worker.communicate(timeout=TIMEOUT)
        assert worker.returncode == 0, text
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.communicate()
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    logs = [(folder / f"{rank}.log").read_text() for rank in range(2)]
    assert all((folder / f"{rank}.pt").exists() for rank in range(2)), "\n".join(logs)
    assert (folder / "codes").read_text().split()[:2] == ["0", "0"]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", w.CASES)
def test_two_processes_make_the_run_of_one(case, ranks):
    """Oracle: the ordinary loop in one process, in float64; and rank 1 has rank 0's bits.

    Break: ranks that count alike where their shards differ, losses that are of a shard, rows that
    are augmented apart, an evaluation that misses what another rank did.
    """
    close(ranks[0]["trainings"][case], alone(case), case)
    assert identical(ranks[0]["trainings"][case], ranks[1]["trainings"][case])


def test_pieces_and_clipping_on_two_processes_too(ranks):
    """Oracle: one process with clipping. Break: clipping before the ranks have exchanged."""
    whole = train(w.make_task(), w.weighted("focal"), 0, training=Training(clip=0.1))
    close(ranks[0]["trainings"]["clipped pieces"], w.outcome(whole), "clipped pieces")


def test_mixed_precision_on_two_processes(ranks):
    """Oracle: one process, up to the rounding of bfloat16; float64 differs by far more than 0."""
    whole = train(w.make_task(), nn.CrossEntropyLoss(), 0, training=Training("bf16-mixed"))
    found = ranks[0]["trainings"]["half"]
    assert found["curves"]["train_loss"] == pytest.approx(whole.curves["train_loss"], rel=0.02)
    exact = train(w.make_task(), nn.CrossEntropyLoss(), 0)
    assert found["curves"]["train_loss"] != exact.curves["train_loss"]
    assert identical(found, ranks[1]["trainings"]["half"])


def test_a_loss_that_breaks_on_one_process_ends_the_run_on_all(ranks):
    """Oracle: the loss breaks on rank 1 in the fourth step, the first of epoch 2 of three steps."""
    for rank in ranks:
        found = rank["trainings"]["diverged"]
        assert found["status"] == "diverged"
        assert found["reason"] == "the training loss became inf in epoch 2, step 1 of 3"
    assert [rank["trainings"]["told"] for rank in ranks] == [1, 0]


def test_dropout_differs_between_processes_and_statistics_do_not(ranks):
    """Oracle: the masks and buffers of both. Break: one seed for all; buffers left apart."""
    first, second = (rank["trainings"]["random"] for rank in ranks)
    assert len(first["masks"]) == 9
    assert not any(map(torch.equal, first["masks"], second["masks"]))
    assert identical(first, second)
    assert "body.1.running_var" in first["weights"]


def test_two_processes_go_on_from_a_checkpoint(ranks):
    """Oracle: the same run in one go, on two processes; the first alone is asked to stop."""
    assert [rank["resumed"]["asked"] for rank in ranks] == [6, 0]
    for rank in ranks:
        assert identical(rank["resumed"]["resumed"], rank["trainings"]["random"])


def test_a_parameter_without_gradient_is_named(ranks):
    """Oracle: the message, on both; DDP's own is of reductions that have not finished."""
    for rank in ranks:
        assert "InputError: " in rank["trainings"]["unused"]
        assert "it does not on spare.weight, spare.bias" in rank["trainings"]["unused"]


def test_a_comparison_on_two_processes_is_that_of_one(ranks, folder, tmp_path):
    """Oracle: the comparison in one process. Rank 1 dies where it writes; it hears no events."""
    runner.run(w.comparison(tmp_path))
    ours = {(r["loss"]["label"], r["seed"]): r for r in records.load_all(tmp_path)}
    theirs = {(r["loss"]["label"], r["seed"]): r for r in records.load_all(folder / "compared")}
    assert ours.keys() == theirs.keys() and len(ours) == 4
    for key, record in theirs.items():
        assert record["settings"]["processes"] == 2
        assert record["run_id"] != ours[key]["run_id"]
        curves, expected = flat(record["curves"]), flat(ours[key]["curves"])
        assert curves == pytest.approx(expected, rel=1e-9), key
    summaries = [rank["comparisons"]["summary"] for rank in ranks]
    assert canonical_json(summaries[0]) == canonical_json(summaries[1])
    assert canonical_json(summaries[0]) == canonical_json(
        records.read_json(folder / "compared" / "summary.json", "")
    )
    assert ranks[0]["comparisons"]["events"] > 4 and ranks[1]["comparisons"]["events"] == 0


def test_mistakes_are_those_of_all_processes(ranks):
    """Oracle: the messages, on both. Break: a rank that waits for one that is gone."""
    for rank in ranks:
        assert "all 2 processes to see the same data" in rank["comparisons"]["other plans"]
        damaged = rank["comparisons"]["damaged"]
        assert damaged.startswith("InputError") and "comparison.json is damaged" in damaged


def test_fabric_is_imported_only_where_it_is_asked_for(folder, ranks):
    """Oracle: the modules after an ordinary run; the import would take seconds of every start."""
    assert (folder / "imported.txt").read_text() == "False"


def test_without_fabric_the_message_says_how_to_get_it(monkeypatch):
    """Oracle: the message, with its import made to fail here."""
    monkeypatch.delitem(sys.modules, "losslab.experiment.fabric")
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(InputError, match=r"need Lightning Fabric: pip install 'losslab\[lab\]'"):
        machine_for(Training(clip=1.0), "cpu")


def test_the_first_process_alone_prints(ranks, folder):
    """Oracle: what the command wrote on both ranks, and its folder."""
    first, second = (rank["command"] for rank in ranks)
    assert first["code"] == second["code"] == 0
    assert "cross_entropy" in first["out"] and "4 runs" in first["err"]
    assert "several processes share each batch" in first["err"]
    assert second["out"] == "" and second["err"] == ""
    assert len(records.load_all(folder / "command")) == 4
    stored = records.load_comparison(folder / "command")
    assert stored["command"].startswith("torchrun --nproc-per-node 2 -m losslab compare --task")


def test_killed_in_the_middle_of_runs_it_goes_on_to_the_same_records(folder, tmp_path):
    """Oracle: the comparison in one go. It dies at its 9th, 24th and 61st flush, in three runs.

    Each of its steps is noted when it is safe. Break: a run that begins anew, which takes steps
    again; a checkpoint that outlives its run.
    """
    codes = (folder / "codes").read_text().split()[2:]
    assert codes == ["-9", "-9", "-9", "0"], (folder / "killed.log").read_text()
    for number in (9, 24, 61):
        left = (folder / f"after{number}.txt").read_text().split()
        assert [name for name in left if name.endswith(".ckpt")], number
    assert not (folder / "killed" / "checkpoints").exists()
    steps: dict[tuple[str, str], list[int]] = {}
    for line in (folder / "steps.txt").read_text().splitlines():
        loss, seed, step = line.split()
        steps.setdefault((loss, seed), []).append(int(step))
    assert len(steps) == 4
    for taken in steps.values():  # one may be safe and, as the kill came, not noted
        assert taken == sorted({*taken}) and taken[-1] == 9 and len(taken) >= 8
    runner.run(w.comparison(tmp_path, training=Training(accumulate=2)))

    def numbers(place: Path):
        names = ("run_id", "curves", "results", "margin_histogram", "reliability")
        return canonical_json([{n: r[n] for n in names} for r in records.load_all(place)])

    assert numbers(folder / "killed") == numbers(tmp_path)

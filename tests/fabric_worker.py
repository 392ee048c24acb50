"""What the processes of ``tests/test_train_fabric.py`` run: python fabric_worker.py FOLDER.

Two ranks, as ``torchrun`` would start them; each leaves what it got in FOLDER/RANK.pt. The test
process makes the same tasks from the same seeds. No case asserts anything here.
"""

import importlib
import io
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import losslab
from losslab.experiment import Comparison, records, run
from losslab.experiment.checkpoint import Checkpoint
from losslab.experiment.launch import Training
from losslab.experiment.task import Task
from losslab.experiment.train import Stopped, train

FEATURES, CLASSES = 5, 3
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def blobs(rows: int, seed: int) -> TensorDataset:
    """Every class around a centre of its own, in float64, where rounding is far below a mistake."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(rows) % CLASSES
    noise = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    return TensorDataset(
        2 * torch.eye(CLASSES, FEATURES, dtype=torch.float64)[target] + noise, target
    )


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def shake(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.3 * torch.randn(inputs.shape, generator=generator)


def make_task(**changes: Any) -> Task:
    settings = {
        "name": "blobs",
        "train": blobs(40, 1),
        "validation": blobs(24, 2),
        "test": blobs(30, 3),
        "num_classes": CLASSES,
        "model": network,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=1e-3),
        "epochs": 3,
        "batch_size": 16,
        "lr_scheduler": lambda o, steps: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps),
        "augment": shake,
    }
    return Task(**(settings | changes))


class Plain(Dataset):
    """Examples that must be loaded one by one, with a random transform."""

    def __init__(self, base: TensorDataset, jitter: float = 0.0) -> None:
        self.base, self.jitter = base, jitter

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        inputs, target = self.base[index]
        return inputs + self.jitter * torch.rand(()).double(), int(target)


def weighted(spec: str) -> nn.Module:
    return losslab.loss(spec, weight=WEIGHT.clone())


# Without cross-example state, any number of parts on any number of ranks must give these results.
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "cross-entropy": (nn.CrossEntropyLoss, {}),
    "scheduled": (lambda: losslab.loss("mixed(focus=ramp(0, 0.5))"), {}),
    "weighted": (lambda: weighted("focal"), {}),
    "ignoring": (lambda: nn.CrossEntropyLoss(ignore_index=1), {}),
    "summed": (lambda: nn.CrossEntropyLoss(reduction="sum"), {"batch_size": 4}),
    "sum of losses": (lambda: weighted("cross_entropy") + 0.5 * weighted("expectation"), {}),
    "smoothed": (lambda: losslab.loss("encouraging", weight=WEIGHT, label_smoothing=0.1), {}),
    "alternating": (lambda: losslab.loss("complement_objective(cross_entropy)"), {}),
    "odd batches": (nn.CrossEntropyLoss, {"train": blobs(39, 1)}),  # the last of 7
    "a small last batch": (nn.CrossEntropyLoss, {"train": blobs(35, 1)}),  # of 3: one rank is idle
    "loaded": (nn.CrossEntropyLoss, {"train": Plain(blobs(40, 1), 0.5)}),
    "loaded splits": (nn.CrossEntropyLoss, {"test": Plain(blobs(50, 3))}),  # of 4 batches
}


def outcome(result: Any) -> dict[str, Any]:
    """Everything that a result says, in what torch.save takes."""
    return {
        "status": result.status,
        "reason": result.reason,
        "curves": result.curves,
        "results": result.results,
        "examples": result.examples,
        "weights": {name: value.clone() for name, value in result.model.state_dict().items()},
    }


def scaled_rate(progress: float) -> float:
    return 0.5 + progress


class Breaking(nn.Module):
    """A loss that is infinite where the last row of the fourth batch is; it is on rank 1."""

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.row, self.calls = row, 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        broken = self.calls == 4 and os.environ["RANK"] == "1"
        return nn.functional.cross_entropy(logits, target) * (torch.inf if broken else 1.0)


class Random(nn.Module):
    """Dropout and batch normalisation, whose numbers are each rank's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
        self.body.double()
        self.masks: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            mask = nn.functional.dropout(torch.ones(5, FEATURES, dtype=inputs.dtype))
            self.masks.append(mask)
            inputs = inputs * mask[0]
        return self.body(inputs)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = network(), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)


def comparison(folder: Path, seeds: tuple[int, ...] = (0, 1), **changes: Any) -> Comparison:
    losses = [("ce", "cross_entropy"), ("el", "encouraging")]
    return Comparison(make_task(), losses, folder, seeds, **changes)


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def trainings(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (make, changes) in CASES.items():
        found[name] = outcome(train(make_task(**changes), make(), 0, lr_scale=scaled_rate))
    clipped = Training(accumulate=3, clip=0.1)
    found["clipped pieces"] = outcome(train(make_task(), weighted("focal"), 0, training=clipped))
    told: list[Any] = []
    found["diverged"] = outcome(
        train(make_task(), Breaking(torch.zeros(1)), 0, progress_callback=told.append)
    )
    found["told"] = len(told)
    result = train(make_task(model=Random), nn.CrossEntropyLoss(), 0)
    found["random"] = outcome(result) | {"masks": result.model.masks}
    half = Training("bf16-mixed")
    found["half"] = outcome(train(make_task(), nn.CrossEntropyLoss(), 0, training=half))
    found["unused"] = said(lambda: train(make_task(model=Unused), nn.CrossEntropyLoss(), 0))
    return found


def resumed(rank: int, folder: Path) -> dict[str, Any]:
    """Stopped by the first process before the sixth step, then gone on from the checkpoint."""
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 6

    task, loss = make_task(model=Random), nn.CrossEntropyLoss()
    kept = folder / "run.ckpt"
    found: dict[str, Any] = {}
    try:
        train(task, loss, 0, stop=stop, checkpoint=Checkpoint(kept, every=0))
    except Stopped:
        found["asked"] = len(asked)
    found["resumed"] = outcome(train(task, loss, 0, checkpoint=Checkpoint(kept)))
    return found


def comparisons(rank: int, folder: Path) -> dict[str, Any]:
    events: list[Any] = []
    if rank == 1:
        records.write_atomically = lambda *_: os._exit(3)  # it must not write
    found: dict[str, Any] = {"summary": run(comparison(folder / "compared"), events.append)}
    found["events"] = len(events)
    own = (5 + rank,)
    found["other plans"] = said(lambda: run(comparison(folder / "differing", own)))
    (folder / "other" / "runs").mkdir(parents=True, exist_ok=True)
    (folder / "other" / "comparison.json").write_text("no JSON")
    found["damaged"] = said(lambda: run(comparison(folder / "other")))
    return found


def command(rank: int, folder: Path) -> dict[str, Any]:
    """The command line: what each rank prints, and how it ends."""
    from losslab.cli import main

    spoken, errors = io.StringIO(), io.StringIO()
    here = "--task digits --train-size 100 --loss cross_entropy --loss focal --seeds 2 --epochs 1"
    sys.argv = ["losslab", "compare", *here.split(), "--out", str(folder / "command")]
    code: Any = 0
    with redirect_stdout(spoken), redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return {"code": code, "out": spoken.getvalue(), "err": errors.getvalue()}


def one_rank(rank: int, port: int, folder: Path) -> None:
    """What torchrun sets for a process, then every case."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    names |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["TORCHELASTIC_RUN_ID"] = "a test"
    found: dict[str, Any] = {}
    for case in (trainings, resumed, command, comparisons):
        found[case.__name__] = case(rank, folder)
    torch.save(found, folder / f"{rank}.pt")


def killed(number: int, folder: Path) -> None:
    """A comparison that keeps each step, and is killed in the middle of one of its runs."""
    sync, count = os.fsync, 0

    def deadly(file: int) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), 9)
        sync(file)

    def noted(self: Checkpoint, run: dict[str, Any], progress: Any) -> None:
        save(self, run, progress)
        with open(folder.parent / "steps.txt", "a") as log:
            print(run["loss"], run["seed"], progress.position.step, file=log)

    save, Checkpoint.save = Checkpoint.save, noted
    os.fsync = deadly
    run(comparison(folder, training=Training(accumulate=2, checkpoint_every=0)))


def start(what: Callable[[], None], log: Path) -> int:
    """A process of its own, made of this one, which has imported everything."""
    pid = os.fork()
    if pid:
        return pid
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    code = 1
    try:
        what()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(folder: Path) -> None:
    import sklearn.datasets  # noqa: F401

    torch.set_num_threads(1)
    train(make_task(), losslab.loss("focal"), 0, checkpoint=Checkpoint(folder / "unused.ckpt"))
    (folder / "imported.txt").write_text(str("lightning_fabric" in sys.modules))
    importlib.import_module("losslab.experiment.fabric")  # once for all
    port = free_port()
    ranks = [start(lambda r=r: one_rank(r, port, folder), folder / f"{r}.log") for r in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    kept = folder / "killed"
    for number in (9, 24, 61, 10**9):  # the last one gets to the end
        pid = start(lambda n=number: killed(n, kept), folder / "killed.log")
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        left = sorted(path.name for path in kept.glob("checkpoints/*"))
        (folder / f"after{number}.txt").write_text("\n".join(left))
    (folder / "codes").write_text(" ".join(map(str, codes)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Many runs as one against one at a time: steps of a model per second, side by side.

    python benchmarks/engine.py            # batch 8, 20 features, 5 classes, 36 runs, one thread

Both train the same 36 runs (6 losses, 3 learning rates, 2 seeds) of the same models; every round
times a pass of the stack and a pass of one run alone, in changing order, and gives the ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from functools import partial

import torch
from torch import nn
from torch.utils.data import TensorDataset

import losslab
from losslab.experiment import Task, train
from losslab.experiment.batched import Member, train_together

LOSSES = (
    "cross_entropy", "mixed(focus=0)", "mixed(focus=switch(0, 0.5, at=0.95))",
    "mixed(focus=phases(0, 0.1, 0.2, 0.3, 0.4, 0.5))", "expectation", "focal",
)  # fmt: skip


def make_task(hidden: bool, steps: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    splits = []
    for rows in (8 * steps, 8, 8):
        inputs = torch.randn(rows, 20, generator=generator)
        splits.append(TensorDataset(inputs, torch.arange(rows) % 5))
    linear = partial(nn.Linear, 20, 5)
    mlp = lambda: nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))  # noqa: E731
    return Task(
        name="benchmark", train=splits[0], validation=splits[1], test=splits[2], num_classes=5,
        model=mlp if hidden else linear, epochs=1, batch_size=8,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    )  # fmt: skip


def members() -> list[Member]:
    return [
        Member(losslab.loss(spec), seed, scale)
        for spec in LOSSES
        for scale in (1.0, 0.5, 0.1)
        for seed in (0, 1)
    ]


def seconds(work: object) -> float:
    begun = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000, help="steps of a pass")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, hidden in (("linear", False), ("one hidden layer", True)):
        task = make_task(hidden, options.steps)
        together = lambda t=task: train_together(t, members())  # noqa: E731
        alone = lambda t=task: train(t, losslab.loss("cross_entropy"), 0)  # noqa: E731
        rounds = []
        for number in range(options.rounds + 1):
            order = (together, alone) if number % 2 else (alone, together)
            spent = {work: seconds(work) for work in order}
            rounds.append((spent[together], spent[alone]))
        rounds = rounds[1:]  # the first warms up
        runs = len(members())
        ratios = sorted(runs * alone_ / together_ for together_, alone_ in rounds)
        results[name] = {
            "ratio": statistics.median(ratios),
            "least": ratios[0],
            "most": ratios[-1],
            "stack_step_us": statistics.median(t for t, _ in rounds) / options.steps * 1e6,
            "alone_step_us": statistics.median(a for _, a in rounds) / options.steps * 1e6,
        }
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if options.json:
        print(json.dumps({"runs": 36, "versions": versions, "results": results}, indent=1))
        return
    print(f"36 runs, batch 8, 20 features, 5 classes, one thread, torch {torch.__version__}")
    for name, found in results.items():
        print(
            f"{name}: {found['ratio']:.0f} times the model steps per second "
            f"({found['least']:.0f} to {found['most']:.0f}); a step of all 36 runs takes "
            f"{found['stack_step_us']:.0f} us, of one run alone {found['alone_step_us']:.0f} us"
        )


if __name__ == "__main__":
    main()

"""Forward + backward of the losses beside PyTorch's cross-entropy: time and peak memory.

    python benchmarks/losses.py                      # the table in docs/performance.md
    python benchmarks/losses.py --sizes 4096x1000 --losses "focal" --repeats 50 --json out.json

All candidates run interleaved in one process, round after round in changing order, and each round
gives one ratio to eager ``F.cross_entropy`` of the same round: other processes on the machine slow
both alike. The table shows the median ratio with the middle half of the rounds. Peak memory is the
allocator's own, above the logits, in units of the logits' size.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import losslab

BASELINE = "F.cross_entropy"
DEFAULT_LOSSES = [
    "cross_entropy",
    "encouraging",
    "mixed(focus=0.3)",
    "focal",
    "generalized_cross_entropy",
]
DEFAULT_SIZES = ["256x10", "128x1000", "4096x1000", "1024x32000"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def published_encouraging(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Encouraging loss as papers' code computes it: by probabilities of every class."""
    p = F.softmax(logits, 1)
    log_p = torch.log(p.clamp(min=1e-5))
    log_wrong = torch.log((1 - p).clamp(min=1e-5))
    one_hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    return (one_hot * (log_wrong - log_p)).sum(1).mean()


def candidates(specs: list[str]) -> dict[str, Loss]:
    return {
        BASELINE: F.cross_entropy,
        **{f"losslab {spec}": losslab.loss(spec) for spec in specs},
        "losslab OddsLoss(your own ψ)": losslab.OddsLoss(lambda a: torch.relu(1 - a)),
        "encouraging by probabilities": published_encouraging,
    }


def make_case(size: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    n, c = (int(x) for x in size.split("x"))
    logits = torch.randn(n, c).to(dtype).requires_grad_()
    return logits, torch.randint(c, (n,))


def step(loss: Loss, logits: torch.Tensor, target: torch.Tensor) -> None:
    logits.grad = None
    loss(logits, target).backward()


def measure_time(losses: dict[str, Loss], size: str, dtype: torch.dtype, repeats: int) -> dict:
    """Seconds of each loss in each round, one number a loss a round."""
    logits, target = make_case(size, dtype)
    inner = max(1, 200_000 // logits.numel())
    rounds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(repeats + 2):
        names = list(losses)
        random.shuffle(names)
        for name in names:
            start = time.perf_counter()
            for _ in range(inner):
                step(losses[name], logits, target)
            rounds[name].append((time.perf_counter() - start) / inner)
    return {name: seconds[2:] for name, seconds in rounds.items()}  # two rounds of warm-up


def measure_memory(loss: Loss, size: str, dtype: torch.dtype) -> float:
    """Peak bytes allocated by forward + backward, in units of the logits."""
    logits, target = make_case(size, dtype)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step(loss, logits, target)
    live = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak / (logits.numel() * logits.element_size())


def ratios(seconds: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """(median, lower quartile, upper quartile) of the per-round ratio to the baseline."""
    result = {}
    for name, values in seconds.items():
        ratio = [v / b for v, b in zip(values, seconds[BASELINE], strict=True)]
        low, median, high = statistics.quantiles(ratio, n=4)
        result[name] = (median, low, high)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", nargs="+", default=DEFAULT_LOSSES)
    parser.add_argument("--sizes", nargs="+", default=DEFAULT_SIZES, help="rows x classes")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="also write everything measured to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    losses = candidates(args.losses)
    environment = {
        "torch": torch.__version__,
        "losslab": losslab.__version__,
        "machine": f"{platform.machine()}, {args.threads} threads",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": args.dtype,
        "repeats": args.repeats,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(", ".join(f"{k} {v}" for k, v in environment.items()))
    report = []
    for size in args.sizes:
        seconds = measure_time(losses, size, dtype, args.repeats)
        print(f"\n({size.replace('x', ', ')})  {'time ratio':>30} {'quartiles':>13} {'memory':>7}")
        for name, (median, low, high) in ratios(seconds).items():
            memory = measure_memory(losses[name], size, dtype)
            spread = f"{low:.2f}-{high:.2f}"
            print(f"  {name:<38}{median:>6.2f} {spread:>13} {memory:>7.2f}", flush=True)
            report.append({"size": size, "loss": name, "ratio": median, "low": low, "high": high,
                           "memory": memory, "seconds": seconds[name]})  # fmt: skip
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"environment": environment, "results": report}, file, indent=1)


if __name__ == "__main__":
    main()

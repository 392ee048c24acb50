"""Forward + backward of the losses on a CUDA device, beside PyTorch's, Liger's and Apple's kernels.

    python benchmarks/gpu.py                                   # everything, a few minutes
    python benchmarks/gpu.py --dense 4096x1000 --linear        # one dense size, nothing linear
    python benchmarks/gpu.py --dense --linear 8192x4096x131072 --rounds 20 --json gpu.json

All candidates of a size run interleaved, round after round in changing order, timed by CUDA events
with the L2 cache flushed before each. The table shows the median with the middle half of the
rounds, the ratio to eager ``F.cross_entropy``, and for dense logits the ratio to the floor: the
time that a plain copy takes for as many bytes as reading the logits twice and writing their
gradient once. Peak memory is PyTorch's allocator's, above the inputs; gradients are part of it.
Each candidate's loss is shown, so that a fast wrong answer does not pass.

Rivals that are not installed are named and left out: pip install liger-kernel, and
pip install "cut-cross-entropy @ git+https://github.com/apple/ml-cross-entropy.git".
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import losslab
from losslab.logodds import eager, kernel, triton_linear
from losslab.logodds import triton as triton_dense

BASELINE = "F.cross_entropy"
LOSSES = ["cross_entropy", "encouraging", "mixed(focus=0.3)", "focal"]
DENSE = ["4096x1000", "1024x32000", "8192x131072"]
LINEAR = ["8192x4096x131072"]
RIVALS = {"liger": "liger_kernel.transformers", "cce": "cut_cross_entropy"}

Loss = Callable[..., Tensor]
Step = Callable[[], Tensor]  # forward and backward of one candidate; returns its loss


def dense_losses(specs: list[str], rivals: dict[str, Any]) -> dict[str, Loss]:
    """Losses of (logits, target)."""
    losses: dict[str, Loss] = {
        BASELINE: F.cross_entropy,
        "torch.compile(F.cross_entropy)": partial(run_compiled, F.cross_entropy),
    }
    if rivals["liger"] is not None:
        losses["Liger cross-entropy"] = rivals["liger"].LigerCrossEntropyLoss()
    for spec in specs:
        psi = losslab.loss(spec).psi
        losses[f"losslab eager: {spec}"] = partial(dense_odds, psi, eager)
        losses[f"losslab triton: {spec}"] = partial(dense_odds, psi, triton_dense)
    return losses


def dense_odds(psi: Loss, backend: kernel.Kernel, logits: Tensor, target: Tensor) -> Tensor:
    return psi(kernel.log_odds(backend, logits, target)).mean()


def linear_losses(specs: list[str], rivals: dict[str, Any]) -> dict[str, Loss]:
    """Losses of (hidden, weight, target)."""
    losses: dict[str, Loss] = {
        BASELINE: unfused,
        "torch.compile(F.linear + F.cross_entropy)": partial(run_compiled, unfused),
    }
    if hasattr(F, "linear_cross_entropy"):  # torch 2.13
        options = torch.nn.LinearCrossEntropyOptions()
        losses["F.linear_cross_entropy, chunked"] = partial(F.linear_cross_entropy, options=options)
    if rivals["liger"] is not None:
        liger = rivals["liger"].LigerFusedLinearCrossEntropyLoss
        losses["Liger fused linear"] = partial(weight_first, liger())
        losses["Liger fused linear, float32 sums"] = partial(
            weight_first, liger(accum_dtype=torch.float32)
        )
    if rivals["cce"] is not None:
        for impl in ("cce", "cce_kahan_full_c"):
            rival = partial(rivals["cce"].linear_cross_entropy, impl=impl)
            losses[f"cut cross-entropy, {impl}"] = rival
    for spec in specs:
        losses[f"losslab triton: {spec}"] = partial(linear_odds, losslab.loss(spec).psi)
    return losses


@cache
def compiled(loss: Loss) -> Loss:
    return torch.compile(loss)


def run_compiled(loss: Loss, *operands: Tensor) -> Tensor:
    return compiled(loss)(*operands)


def unfused(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), target)


def weight_first(loss: Loss, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return loss(weight, hidden, target)


def linear_odds(psi: Loss, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return psi(LinearOdds.apply(hidden, weight, target)).mean()


class LinearOdds(torch.autograd.Function):
    """Log-odds of hidden @ weight.T by the Triton kernels alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        found = triton_linear.linear_statistics(hidden, weight, target)
        ctx.save_for_backward(hidden, weight, target, *found[:3])
        return found.log_odds

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        d_hidden, d_weight, _ = triton_linear.linear_gradient(*ctx.saved_tensors, grad)
        return d_hidden, d_weight, None


def run_dense(size: str, dtype: torch.dtype, losses: dict[str, Loss], rounds: int) -> dict:
    n, c = numbers(size, 2)
    logits = (torch.randn(n, c, device="cuda", dtype=dtype) * 2).requires_grad_()
    kept = logits.detach().clone()  # Liger writes the gradient over the logits
    target = torch.randint(c, (n,), device="cuda")

    def restore() -> None:
        logits.grad = None
        with torch.no_grad():
            logits.copy_(kept)

    steps = {name: partial(step, loss, (logits, target)) for name, loss in losses.items()}
    return measure(steps, restore, rounds)


def run_linear(size: str, dtype: torch.dtype, losses: dict[str, Loss], rounds: int) -> dict:
    n, d, v = numbers(size, 3)
    hidden = torch.randn(n, d, device="cuda", dtype=dtype).requires_grad_()
    weight = (torch.randn(v, d, device="cuda", dtype=dtype) / d**0.5).requires_grad_()
    target = torch.randint(v, (n,), device="cuda")

    def restore() -> None:
        hidden.grad = weight.grad = None

    steps = {name: partial(step, loss, (hidden, weight, target)) for name, loss in losses.items()}
    return measure(steps, restore, rounds)


def step(loss: Loss, operands: tuple[Tensor, ...]) -> Tensor:
    value = loss(*operands)
    value.backward()
    return value.detach()


def measure(steps: Mapping[str, Step], restore: Callable[[], None], rounds: int) -> dict[str, dict]:
    """{name: {"milliseconds": […], "bytes": peak above the inputs, "loss": …} or {"error": …}}."""
    results: dict[str, dict] = {}
    for name, run in steps.items():  # compiles, tunes, and shows what does not work
        try:
            restore()
            run()
            restore()
            results[name] = {"milliseconds": [], **peak(run)}
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            results[name] = {"error": f"{type(error).__name__}: {reason[:200]}"}
    restore()
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    names = [name for name, found in results.items() if "error" not in found]
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            restore()
            flush.zero_()
            results[name]["milliseconds"].append(timed(steps[name]))
    return results


def peak(run: Step) -> dict[str, float]:
    """Peak bytes above what is allocated before, and the loss."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = run()
    torch.cuda.synchronize()
    return {"bytes": torch.cuda.max_memory_allocated() - before, "loss": loss.item()}


def timed(run: Callable[[], object]) -> float:
    """Milliseconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def copy_bandwidth(rounds: int = 20) -> float:
    """Bytes read and written a second by a large copy on the device."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    milliseconds = [timed(partial(target.copy_, source)) for _ in range(rounds + 3)][3:]
    return 2 * source.numel() / (statistics.median(milliseconds) / 1000)


def floor_ms(size: str, dtype: torch.dtype, bandwidth: float) -> float:
    """Logits read by both passes and their gradient written, at the bandwidth of a copy."""
    n, c = numbers(size, 2)
    return 1000 * 3 * n * c * dtype.itemsize / bandwidth


def summary(results: dict[str, dict], floor: float | None) -> list[dict]:
    """One row a candidate: median and quartiles in ms, ratios to baseline and floor, peak, loss."""
    base = results.get(BASELINE, {}).get("milliseconds")
    reference = statistics.median(base) if base else None
    rows = []
    for name, found in results.items():
        if "error" in found:
            rows.append({"name": name, "error": found["error"]})
            continue
        low, median, high = statistics.quantiles(found["milliseconds"], n=4)
        rows.append(
            {
                "name": name,
                "median": median,
                "low": low,
                "high": high,
                "ratio": median / reference if reference else None,
                "floor": median / floor if floor else None,
                "megabytes": found["bytes"] / 1e6,
                "loss": found["loss"],
            }
        )
    return rows


def table(title: str, rows: list[dict]) -> str:
    head = f"{'ms':>9} {'quartiles':>17} {'/ CE':>6} {'/ floor':>8} {'peak MB':>9} {'loss':>9}"
    lines = [title, f"  {'':<44}{head}"]
    for row in rows:
        if "error" in row:
            lines.append(f"  {row['name']:<44}{row['error']}")
            continue
        spread = f"{row['low']:.3f}-{row['high']:.3f}"
        lines.append(
            f"  {row['name']:<44}{row['median']:>9.3f} {spread:>17} {shown(row['ratio'], 6)} "
            f"{shown(row['floor'], 8)} {row['megabytes']:>9.0f} {row['loss']:>9.4f}"
        )
    return "\n".join(lines)


def shown(ratio: float | None, width: int) -> str:
    return f"{'':>{width}}" if ratio is None else f"{ratio:>{width}.2f}"


def rival_modules() -> dict[str, Any]:
    """The rivals' modules, None where one does not import (said on standard error)."""
    found: dict[str, Any] = {}
    for name, module in RIVALS.items():
        try:
            found[name] = importlib.import_module(module)
        except Exception as error:
            print(f"left out: {module} ({type(error).__name__}: {error})", file=sys.stderr)
            found[name] = None
    return found


def environment(device: str, bandwidth: float, dtype: str) -> dict[str, Any]:
    return {
        "device": device,
        "copy_gb_s": round(bandwidth / 1e9),
        "dtype": dtype,
        "losslab": losslab.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **{name: version(name) for name in ("triton", "liger-kernel", "cut-cross-entropy")},
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(sys.argv),
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(size: str, count: int) -> list[int]:
    parts = size.split("x")
    if len(parts) != count or not all(part.isdigit() and int(part) > 0 for part in parts):
        form = "ROWSxCLASSES" if count == 2 else "TOKENSxHIDDENxCLASSES"
        raise argparse.ArgumentTypeError(f"a size is {form} in whole numbers; got {size!r}")
    return [int(part) for part in parts]


def size_of(count: int) -> Callable[[str], str]:
    """An argument type that checks a size and keeps it as text."""
    return lambda text: "x".join(str(number) for number in numbers(text, count))


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dense", nargs="*", type=size_of(2), default=DENSE, metavar="NxC")
    parser.add_argument("--linear", nargs="*", type=size_of(3), default=LINEAR, metavar="NxDxV")
    parser.add_argument("--losses", nargs="+", default=LOSSES, help="losses by spec")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--rounds", type=int, default=30, help="timed runs of each candidate")
    parser.add_argument("--json", help="also write everything measured to this file")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds must be 2 or more, to have quartiles")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA device, and PyTorch sees none here.", file=sys.stderr)
        return 2
    dtype, rivals = getattr(torch, args.dtype), rival_modules()
    bandwidth = copy_bandwidth()
    about = environment(torch.cuda.get_device_name(), bandwidth, args.dtype)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    jobs = [("dense", size, run_dense, dense_losses) for size in args.dense]
    jobs += [("linear", size, run_linear, linear_losses) for size in args.linear]
    report: list[dict[str, Any]] = []
    for kind, size, run, losses in jobs:
        results = run(size, dtype, losses(args.losses, rivals), args.rounds)
        floor = floor_ms(size, dtype, bandwidth) if kind == "dense" else None
        rows = summary(results, floor)
        title = f"\n{kind} ({size.replace('x', ', ')})"
        print(table(title + (f", floor {floor:.3f} ms" if floor else ""), rows), flush=True)
        report.append({"kind": kind, "size": size, "floor": floor, "rows": rows, "raw": results})
        torch.cuda.empty_cache()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"environment": about, "results": report}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

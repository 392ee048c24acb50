"""The kernel in Triton, for CUDA and ROCm devices: one pass forward, one pass backward.

Forward, a program walks one row (or several short ones) in blocks of classes and carries the
running maximum and sum over j ≠ y; few long rows are split over several programs, whose parts a
second, tiny launch combines. Backward, each tile is read once and its gradient written once.
Nothing here imports triton until a kernel is launched: ``unavailable`` says why it cannot be used.

Logits of any strides are read in place as (batch, class, position). Only (N, C, d1, d2, …) whose
position dimensions do not fold into one (a window cut out of an image, say) is copied first.

A target outside [0, C) never reads out of bounds: its log-odds and gradient are NaN. A row whose
upstream gradient is 0 gets the gradient 0 without being read, even where its logits hold NaN.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from losslab.logodds.plain import compute_dtype

name = "triton"

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_BLOCK = 8192  # classes in one tile of a long row: 16 numbers for each of 512 threads
_PROGRAMS_PER_CORE = 4  # wanted for each multiprocessor before rows stay whole


class Tile(NamedTuple):
    """What one program holds at once: ``rows`` × ``columns``, and over how many it shares a row."""

    rows: int
    columns: int
    parts: int = 1

    @property
    def warps(self) -> int:
        """16 elements a thread, within what every supported device can launch."""
        return min(16, max(4, self.rows * self.columns // 512))


def unavailable(logits: Tensor | None = None) -> str | None:
    """Why this kernel cannot be used (for these logits), or None where it can."""
    simulated = interpreted()
    if logits is not None and logits.dtype not in DTYPES:
        return f"it does not know {logits.dtype}"
    if logits is not None and logits.device.type != "cuda" and not simulated:
        return f"it runs on CUDA and ROCm devices, and these logits are on {logits.device.type!r}"
    if not simulated and not torch.cuda.is_available():
        return "no CUDA or ROCm device is present"
    reason = import_error()
    if reason is None and logits is not None and logits.device.type == "cuda":
        reason = _device_problem(logits.device.index, logits.dtype)
    return reason


def refuses(logits: Tensor, target: Tensor) -> str | None:
    """Why these tensors are not for this kernel, or None."""
    if type(logits) not in (Tensor, torch.nn.Parameter) or type(target) is not Tensor:
        return "it takes plain tensors, not subclasses"
    if logits.layout is not torch.strided or logits.is_neg():
        return "it takes dense tensors"
    return unavailable(logits)


def statistics(
    logits: Tensor, target: Tensor, *, tile: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(a, m, s) of each row."""
    z = _positions_folded(logits)
    shape = Shape.of(z)
    tile = tile or choose_tile(shape, cores(logits.device))
    wide = compute_dtype(logits.dtype)
    log_odds, shift, total = (
        torch.empty(target.shape, dtype=wide, device=logits.device) for _ in range(3)
    )
    if target.numel() == 0:
        return log_odds, shift, total
    target = target.contiguous()
    grid, blocks = shape.grid(tile, tile.parts)
    tiles = -(-shape.classes // (tile.parts * tile.columns))
    align = shape.aligned()
    split = tile.parts > 1
    if split:
        partial = torch.empty((2, tile.parts, target.numel()), dtype=wide, device=logits.device)
    tops, sums = partial if split else (shift, total)
    launch(
        kernels().statistics_kernel, grid, z, target, log_odds, tops, sums, shape.classes // align,
        shape.positions, blocks, tiles, target.numel(), *shape.steps(align),
        SPLIT=split, ROWS=tile.rows, COLS=tile.columns, ALIGN=align, WIDE=wide,
        num_warps=tile.warps,
    )  # fmt: skip
    if split:
        combine(tops, sums, target, log_odds, shift, total, shape.classes)
    return log_odds, shift, total


def gradient(
    logits: Tensor,
    target: Tensor,
    shift: Tensor,
    total: Tensor,
    grad: Tensor,
    out: Tensor | None = None,
    *,
    tile: Tile | None = None,
) -> Tensor:
    """g·(e_y − q) in the logits' dtype; ``out`` may be the logits themselves."""
    result = torch.empty_like(logits) if out is None else out
    if target.numel() == 0:
        return result
    z, written = _positions_folded(logits), _positions_folded(result)
    shape, out_shape = Shape.of(z), Shape.of(written)
    align = shape.aligned(out_shape)
    tile = tile or choose_tile(shape, cores(logits.device))
    grid, blocks = shape.grid(tile, -(-shape.classes // tile.columns))
    launch(
        kernels().gradient_kernel, grid, z, target.contiguous(), shift.contiguous(),
        total.contiguous(), grad.contiguous(), written,
        shape.classes // align, shape.positions, blocks,
        *shape.steps(align), *out_shape.steps(align),
        ROWS=tile.rows, COLS=tile.columns, ALIGN=align, WIDE=shift.dtype, num_warps=tile.warps,
    )  # fmt: skip
    return _returned(result, written)


def all_statistics(
    logits: Tensor, *, tile: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log-odds of every class, index of the top class, m and s of the top's competitors).

    m and s are what ``statistics(logits, index)`` gives: the top class's own log-odds come from
    them, so that they do not cancel; every other class has p ≤ ½, where nothing does.
    """
    wide = compute_dtype(logits.dtype)
    z = _positions_folded(logits)
    result = torch.empty_like(logits, dtype=wide)
    written = _positions_folded(result)
    rows = (logits.shape[0], *logits.shape[2:])
    index = torch.empty(rows, dtype=torch.int64, device=logits.device)
    shift, total = (torch.empty(rows, dtype=wide, device=logits.device) for _ in range(2))
    if index.numel() == 0:
        return result, index, shift, total
    shape, out_shape = Shape.of(z), Shape.of(written)
    align = shape.aligned(out_shape)
    tile = tile or choose_tile(shape, cores(logits.device))
    grid, blocks = shape.grid(tile, 1)
    launch(
        kernels().all_statistics_kernel, grid, z, written, index, shift, total,
        shape.classes // align, shape.positions, blocks,
        *shape.steps(align), *out_shape.steps(align),
        ROWS=tile.rows, COLS=tile.columns, ALIGN=align, WIDE=wide, num_warps=tile.warps,
    )  # fmt: skip
    return _returned(result, written), index, shift, total


def all_gradient(
    logits: Tensor,
    index: Tensor,
    shift: Tensor,
    total: Tensor,
    grad: Tensor,
    *,
    tile: Tile | None = None,
) -> Tensor:
    """Σ_k G_k ∂a_k/∂z in the logits' dtype, ``grad`` holding G (N, C, …)."""
    result = torch.empty_like(logits)
    if index.numel() == 0:
        return result
    z, upstream, written = (_positions_folded(x) for x in (logits, grad, result))
    shape, grad_shape, out_shape = (Shape.of(x) for x in (z, upstream, written))
    align = shape.aligned(grad_shape, out_shape)
    tile = tile or choose_tile(shape, cores(logits.device))
    grid, blocks = shape.grid(tile, 1)
    launch(
        kernels().all_gradient_kernel, grid, z, index, shift, total, upstream, written,
        shape.classes // align, shape.positions, blocks, *shape.steps(align),
        *grad_shape.steps(align), *out_shape.steps(align),
        ROWS=tile.rows, COLS=tile.columns, ALIGN=align, WIDE=shift.dtype, num_warps=tile.warps,
    )  # fmt: skip
    return _returned(result, written)


def combine(
    tops: Tensor,
    sums: Tensor,
    target: Tensor,
    log_odds: Tensor,
    shift: Tensor,
    total: Tensor,
    classes: int,
) -> None:
    """a, m, s of every row from its parts' (parts, rows); ``log_odds`` comes in holding z_y."""
    parts, rows = tops.shape
    step = 64
    launch(
        kernels().combine_kernel, (-(-rows // step),), tops, sums, target, log_odds, shift, total,
        classes, rows, parts,
        ROWS=step, PARTS=min(32, power_of_two(parts)), WIDE=tops.dtype, num_warps=4,
    )  # fmt: skip


class Shape(NamedTuple):
    """Logits as (batch, class, position): their sizes, and the strides of the three in that order.

    A matrix (N, C) is one batch of N positions.
    """

    batch: int
    classes: int
    positions: int
    strides: tuple[int, int, int]

    def aligned(self, *others: Shape) -> int:
        """The largest power of two up to 16 in the classes and in all batch and row strides."""
        numbers = [self.classes, 16]
        for shape in (self, *others):
            numbers += [shape.strides[0], shape.strides[2]]
        return math.gcd(*numbers)

    def steps(self, align: int) -> tuple[int, int, int]:
        """The strides as the kernels take them."""
        b, c, p = self.strides
        return b // align, c, p // align

    @classmethod
    def of(cls, folded: Tensor) -> Shape:
        """Of (N, C) or (N, C, P)."""
        if folded.dim() == 2:
            n, c = folded.shape
            return cls(1, c, n, (0, folded.stride(1), folded.stride(0)))
        n, c, p = folded.shape
        return cls(n, c, p, (folded.stride(0), folded.stride(1), folded.stride(2)))

    def grid(self, tile: Tile, parts: int) -> tuple[tuple[int, int], int]:
        """((programs, parts), blocks of positions in one batch entry)."""
        blocks = -(-self.positions // tile.rows)
        return (self.batch * blocks, parts), blocks


def choose_tile(shape: Shape, processors: int) -> Tile:
    """A plain heuristic, reasoned from the memory system and not tuned on a device.

    Long rows: 8192 classes at a time, 16 for each thread, enough bytes in flight with four such
    programs on a multiprocessor. Short rows: several to a program. Positions side by side in memory
    (class stride ≠ 1): up to 128 of them in a tile, so that threads read neighbours. Fewer rows
    than the device has room for: each is shared by as many programs as there is room for.
    """
    _, class_stride, position_stride = shape.strides
    columns = min(power_of_two(shape.classes), _BLOCK)
    rows = max(1, 2048 // columns)
    if class_stride != 1 and position_stride == 1:
        rows = min(power_of_two(shape.positions), 128)
        columns = min(power_of_two(shape.classes), 4096 // rows)
    rows = min(rows, power_of_two(shape.positions))
    programs = max(1, shape.batch * -(-shape.positions // rows))
    room = processors * _PROGRAMS_PER_CORE // programs
    return Tile(rows, columns, max(1, min(room, shape.classes // columns)))


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *args: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument, which need not be the current one."""
    if "WIDE" in constants:
        constants["WIDE"] = _language_type(constants["WIDE"])
    cuda = first.device.type == "cuda"
    with torch.cuda.device(first.device) if cuda else contextlib.nullcontext():
        kernel[grid](first, *args, **constants)


@functools.cache
def kernels() -> ModuleType:
    """The module of kernels; the first call imports triton."""
    from losslab.logodds import triton_kernels

    return triton_kernels


@functools.cache
def import_error() -> str | None:
    """Why triton cannot be imported, or None."""
    try:
        kernels()
    except Exception as error:
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    return None


def interpreted() -> bool:
    """Whether Triton's interpreter is on, which runs kernels on CPU tensors (slowly)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")


@functools.cache
def cores(device: torch.device) -> int:
    """Multiprocessors of a device."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


@functools.cache
def _device_problem(index: int, dtype: torch.dtype) -> str | None:
    """Why a device cannot run it, found once: an old device, or a trial launch that failed."""
    device = torch.device("cuda", index)
    if torch.version.hip is None:
        needed = (8, 0) if dtype == torch.bfloat16 else (7, 0)
        found = torch.cuda.get_device_capability(device)
        if found < needed:
            return (
                f"{dtype} needs CUDA compute capability {needed[0]}.{needed[1]}, and device "
                f"{index} has {found[0]}.{found[1]}"
            )
    try:
        logits = torch.zeros((1, 3), dtype=dtype, device=device)
        a, _, _ = statistics(logits, torch.zeros(1, dtype=torch.int64, device=device))
        value = a.item()
    except Exception as error:
        return f"a trial launch on device {index} failed ({type(error).__name__}: {error})"
    if abs(value + 0.6931472) > 1e-6:  # −log 2: two equal competitors
        return f"a trial launch on device {index} gave {value} instead of −log 2"
    return None


def _language_type(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]


def _positions_folded(x: Tensor) -> Tensor:
    """(N, C) as it is, anything longer as (N, C, P): a view wherever the strides allow it."""
    return x.flatten(2) if x.dim() > 3 else x


def _returned(result: Tensor, written: Tensor) -> Tensor:
    """``result``, filled in from ``written`` where folding its positions made a copy."""
    if written.data_ptr() != result.data_ptr():
        result.copy_(written.view(result.shape))
    return result

"""Log-odds of softcap(scale·(hidden @ weight.T + bias)) on a GPU, without the (N, V) logits.

Forward: one tiled product whose epilogue folds each tile of logits, still in float32 registers,
into the row's running maximum and sum; the vocabulary is split over programs, each writing its part
(4 MB in all at 8192 tokens and 131072 classes), and a tiny launch combines them.

Backward, a block of classes at a time: the same tiled product again, whose epilogue turns the
logits into their gradient, a block G (N, width) in the hidden states' dtype; then two ordinary
matrix products, dW[block] = Gᵀ·hidden and dH += G·W[block] (in float32).

Why this way (reasoned for an H100, not measured; ``benchmarks/gpu.py`` measures it). At 8192
tokens, D = 4096, V = 131072 in bfloat16 one product is 8.8 TFLOP, 12 to 15 ms, and one trip of all
the logits through memory 0.65 ms. So what counts is the number of products and how well each runs:

- Four products, two of them the vendor's library at its full rate. Fully fused cut cross-entropy
  also has four, but adds both gradients to memory under locks, in the half type unless asked
  otherwise, which costs time and digits; what it saves is G. Its filter skips small gradients and
  with them up to two products; nothing is dropped here.
- Blocks of classes and not of rows (Liger's choice, three products): each dW is written once, so
  no (V, D) sum is read and written again for every block, which at 32 blocks of 256 rows moves some
  fifty times the bytes of the logits. The sum carried along is dH, whose size is N/V of it. And
  every ψ and every upstream gradient is served, since nothing is computed before the gradient of a
  is known.
- Logits recomputed in the tile rather than by the library into memory: about as fast (1.3 ms less
  traffic against a product some 10 % slower), and the backward pass then sees the float32 logits of
  the forward pass, where a bfloat16 copy would make q wrong by up to 2^-9·|z|.

Verified in Triton's interpreter and by compiling for sm_80, sm_90, sm_100 and gfx942; on sm_90 the
half-type tile of 128 × 256 × 64 uses wgmma and asynchronous copies and spills nothing without
softcap. Tensor-memory descriptors and warp specialisation are left for someone who can measure.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.logodds import triton as dense

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK = 1 << 26  # elements of G held at once: 128 MB in a half type
_WAVES = 32  # programs wanted for each multiprocessor, so that the last wave costs little


class LinearStatistics(NamedTuple):
    """What one pass over the vocabulary yields for each row, in float32.

    ``log_odds`` a, ``shift`` m and ``total`` s as in the dense kernel; ``lse`` the log-sum-exp of
    all logits; ``margin`` z_y − max_{j≠y} z_j, positive where the row is classified correctly.
    """

    log_odds: Tensor
    shift: Tensor
    total: Tensor
    target_logit: Tensor
    lse: Tensor
    margin: Tensor


class LinearTile(NamedTuple):
    """A tile of ``rows`` × ``columns`` logits, ``depth`` of the hidden size at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def unavailable(hidden: Tensor, weight: Tensor) -> str | None:
    """Why these operands cannot be served, or None where they can."""
    if hidden.dtype not in DTYPES:
        return f"linear + loss does not know {hidden.dtype}"
    if weight.dtype != hidden.dtype or weight.device != hidden.device:
        return (
            "hidden and weight must share dtype and device; these are "
            f"{hidden.dtype} on {hidden.device} and {weight.dtype} on {weight.device}"
        )
    return dense.unavailable(hidden)


@torch.no_grad()
def linear_statistics(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    *,
    tile: LinearTile | None = None,
    parts: int | None = None,
) -> LinearStatistics:
    """Statistics of the rows of z = softcap·tanh(scale·(hidden @ weight.T + bias) / softcap).

    Args:
        hidden: (N, D); weight: (V, D); target: (N,) int64; bias: (V,). Any strides.
        scale: multiplies the logits, bias included; softcap: bounds them, after the scale.
        tile, parts: block sizes and over how many programs the vocabulary is split, for tests.
    """
    _check(hidden, weight, target, bias)
    tile = tile or choose_tile(hidden)
    rows, classes = hidden.shape[0], weight.shape[0]
    row_blocks, class_blocks = -(-rows // tile.rows), -(-classes // tile.columns)
    wanted = parts or _WAVES * dense.cores(hidden.device) // max(1, row_blocks)
    tiles = -(-class_blocks // max(1, min(wanted, class_blocks)))
    parts = -(-class_blocks // tiles)
    tops, sums = hidden.new_empty((2, parts, rows), dtype=torch.float32)
    z_y = hidden.new_full((rows,), torch.nan, dtype=torch.float32)
    target = target.contiguous()
    shift, total = torch.empty_like(z_y), torch.empty_like(z_y)
    log_odds = z_y
    if rows > 0:
        dense.launch(
            _kernels().linear_statistics_kernel, (row_blocks * parts,),
            hidden, weight, bias, target, tops, sums, z_y,
            rows, classes, hidden.shape[1], parts, tiles,
            *_operands(hidden, weight, bias, scale, softcap),
            **_constants(hidden, tile, bias, softcap),
        )  # fmt: skip
        log_odds = z_y.clone()
        dense.combine(tops, sums, target, log_odds, shift, total, classes)
    lse = torch.logaddexp(z_y, shift + total.log())
    return LinearStatistics(log_odds, shift, total, z_y, lse, z_y - tops.amax(0))


@torch.no_grad()
def linear_gradient(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    log_odds: Tensor,
    shift: Tensor,
    total: Tensor,
    grad: Tensor,
    grad_lse: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    *,
    needs: tuple[bool, bool, bool] = (True, True, True),
    width: int | None = None,
    tile: LinearTile | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and bias from those of a, and of the log-sum-exp if it has one.

    Args:
        log_odds, shift, total: of ``linear_statistics`` for the same operands.
        grad, grad_lse: (N,) upstream gradients; rows where both are 0 contribute exactly nothing.
        needs: which of the three to compute; the others are None.
        width: classes in one block of G; memory grows with it, time hardly shrinks beyond a few
            thousand. Default: 128 MB of half-type numbers, at least 1024 classes.
        tile: block sizes, for tests.
    """
    _check(hidden, weight, target, bias)
    tile = tile or choose_tile(hidden)
    rows, classes = hidden.shape[0], weight.shape[0]
    for_hidden, for_weight, for_bias = needs[0], needs[1], needs[2] and bias is not None
    d_hidden = torch.zeros_like(hidden, dtype=torch.float32) if for_hidden else None
    d_weight = torch.empty_like(weight) if for_weight else None
    d_bias = torch.empty_like(bias) if bias is not None and for_bias else None
    of_target, of_others = coefficients(log_odds, total, grad, grad_lse)
    blocks = _blocks(rows, classes, width or max(1024, _BLOCK // max(1, rows)), tile.columns)
    store = hidden.new_empty(rows * min(blocks[0][1], -(-classes // tile.columns)) * tile.columns)
    for first, tiles in blocks:
        block = store[: rows * tiles * tile.columns].view(rows, tiles * tile.columns)
        if rows > 0:
            dense.launch(
                _kernels().linear_gradient_kernel, (-(-rows // tile.rows) * tiles,),
                hidden, weight, bias, target.contiguous(), shift, of_target, of_others, block,
                rows, classes, hidden.shape[1], first, tiles,
                *_operands(hidden, weight, bias, scale, softcap),
                **_constants(hidden, tile, bias, softcap),
            )  # fmt: skip
        part = slice(first, min(first + tiles * tile.columns, classes))
        block = block[:, : part.stop - first]
        if d_hidden is not None:
            _add_product(d_hidden, block, weight[part])
        if d_weight is not None:
            torch.mm(block.t(), hidden, out=d_weight[part])
        if d_bias is not None:
            d_bias[part] = block.sum(0, dtype=torch.float32)
    return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias


def coefficients(
    log_odds: Tensor, total: Tensor, grad: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(u, v) with ∂L/∂z = u·e_y + v·exp(z − m) away from the target.

    From ∂a/∂z = e_y − q and ∂lse/∂z = p_y·e_y + (1 − p_y)·q, where q = exp(z − m)/s.
    """
    alone = total == 0  # no competitor: a is +inf and stays there
    u = grad.float().masked_fill(alone, 0)
    v = -u
    if grad_lse is not None:
        u = u + grad_lse * torch.sigmoid(log_odds)
        v = v + grad_lse * torch.sigmoid(-log_odds)
    # a row without upstream gradient stays 0 even where its statistics are NaN
    used = v != 0 if grad_lse is None else (grad != 0) | (grad_lse != 0)
    u = torch.where(used, u, 0.0)
    v = torch.where(used, v / total.masked_fill(alone, 1), 0.0)
    return u.contiguous(), v.contiguous()


def choose_tile(hidden: Tensor) -> LinearTile:
    """128 × 256 for the half types where shared memory holds three stages of it, else less.

    float32 is multiplied as float32 unless PyTorch is told that TensorFloat-32 will do.
    """
    if hidden.dtype == torch.float32:
        if _precision() == "ieee":
            return LinearTile(64, 64, 32, 4, 3)
        return LinearTile(128, 128, 32, 8, 3)
    if _shared_memory(hidden.device) >= 150_000:
        return LinearTile(128, 256, 64, 8, 3)
    return LinearTile(128, 128, 32, 8, 3)


def _check(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> None:
    """Refuse what would make a program read past the end of a tensor."""
    fits = (
        hidden.dim() == 2
        and weight.dim() == 2
        and weight.shape[0] > 0
        and weight.shape[1] == hidden.shape[1] > 0
        and target.shape == hidden.shape[:1]
        and target.dtype == torch.int64
        and (bias is None or bias.shape == weight.shape[:1])
    )
    if not fits:
        raise InputError(
            "linear + loss needs hidden (N, D), weight (V, D), int64 targets (N,) and bias (V,) or "
            f"None; got {tuple(hidden.shape)}, {tuple(weight.shape)}, {target.dtype} of shape "
            f"{tuple(target.shape)} and {None if bias is None else tuple(bias.shape)}."
        )
    if len({x.device for x in (hidden, weight, target, *([] if bias is None else [bias]))}) > 1:
        raise InputError("linear + loss needs all its tensors on one device; move them to one.")


def _blocks(rows: int, classes: int, width: int, columns: int) -> list[tuple[int, int]]:
    """(first class, tiles) of each block of about ``width`` classes."""
    tiles = max(1, width // columns)
    last = -(-classes // columns)
    return [(t * columns, min(tiles, last - t)) for t in range(0, last, tiles)]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; a half-type product is added in float32, unrounded where PyTorch can."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, out=total)
    elif a.is_cuda and torch.version.hip is None and hasattr(torch.ops.aten.addmm, "dtype_out"):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:  # each block's product is rounded once
        total += torch.mm(a, b)


def _operands(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[int | float, ...]:
    """Strides and numbers both kernels take, in their order."""
    step = 1 if bias is None else bias.stride(0)
    return (*hidden.stride(), *weight.stride(), step, float(scale), float(softcap or 1.0))


def _constants(
    hidden: Tensor, tile: LinearTile, bias: Tensor | None, softcap: float | None
) -> dict[str, Any]:
    return {
        "BIAS": bias is not None,
        "SOFTCAP": softcap is not None,
        "EVEN": hidden.shape[1] % tile.depth == 0,
        "PRECISION": _precision() if hidden.dtype == torch.float32 else "ieee",
        "ROWS": tile.rows,
        "COLS": tile.columns,
        "DEPTH": tile.depth,
        "GROUP": 16,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _precision() -> str:
    """How float32 operands are multiplied: as PyTorch was told for its own products."""
    matmul = torch.backends.cuda.matmul
    told = getattr(matmul, "fp32_precision", None) or ("tf32" if matmul.allow_tf32 else "ieee")
    return "tf32" if told == "tf32" else "ieee"


def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory one program may use."""
    if device.type != "cuda":
        return 0
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)


@functools.cache
def _kernels() -> ModuleType:
    """The module of kernels; the first call imports triton."""
    from losslab.logodds import triton_linear_kernels

    return triton_linear_kernels

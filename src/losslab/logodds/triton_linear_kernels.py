"""The GPU programs of linear + loss, tiled products whose epilogue never lets the logits go.

Importing this file imports triton; ``triton_linear.py`` launches them. Logits stay in float32
registers; offsets are 64-bit.
"""

import triton
import triton.language as tl

from losslab.logodds.triton_kernels import exp_below, fold

# No program of its own for one row, one part, or sizes that happen to be multiples of 16.
_SIZES = ("N", "C", "parts", "tiles", "first")


@triton.jit
def tanh(x):
    """tanh to float32 rounding: a series where 1 − exp(−2|x|) would cancel."""
    t = tl.abs(x)
    e = tl.exp(-2.0 * t)
    large = (1.0 - e) / (1.0 + e)
    s = x * x
    series = -17.0 / 315.0 + s * (62.0 / 2835.0)
    small = t * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * series)))
    value = tl.where(t < 0.25, small, large)
    return tl.where(x < 0, -value, value)


@triton.jit
def logits_tile(
    hidden,
    weight,
    bias,
    rows,
    c,
    N,
    C,
    D,
    hidden_stride_n,
    hidden_stride_d,
    weight_stride_c,
    weight_stride_d,
    bias_stride,
    scale,
    softcap,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """z = softcap(scale·(hidden · weight + bias)) in float32 and the slope dz/d(hidden · weight).

    Rows and classes past the end are computed from the first one: the caller masks them, and the
    loads need no mask unless DEPTH does not divide D.
    """
    d = tl.arange(0, DEPTH)
    n_safe = tl.where(rows < N, rows, 0)
    c_safe = tl.where(c < C, c, 0)
    h_at = hidden + (n_safe * hidden_stride_n)[:, None] + (d * hidden_stride_d)[None, :]
    w_at = weight + (c_safe * weight_stride_c)[None, :] + (d * weight_stride_d)[:, None]
    z = tl.zeros([ROWS, COLS], tl.float32)
    for d0 in range(0, D, DEPTH):
        if EVEN:
            h = tl.load(h_at)
            w = tl.load(w_at)
        else:
            h = tl.load(h_at, mask=(d0 + d < D)[None, :], other=0.0)
            w = tl.load(w_at, mask=(d0 + d < D)[:, None], other=0.0)
        z = tl.dot(h, w, z, input_precision=PRECISION)
        h_at += DEPTH * hidden_stride_d
        w_at += DEPTH * weight_stride_d
    if BIAS:
        z += tl.load(bias + c_safe * bias_stride).to(tl.float32)[None, :]
    z *= scale
    if SOFTCAP:
        t = tanh(z / softcap)
        return softcap * t, scale * (1.0 - t * t)
    else:
        return z, scale


@triton.jit
def target_column(y, c0, COLS: tl.constexpr):
    """Where a tile that begins at class c0 holds the row's target (compared in 32 bits)."""
    at = tl.where((y >= c0) & (y < c0 + COLS), y - c0, -1).to(tl.int32)
    return tl.arange(0, COLS)[None, :] == at[:, None]


@triton.jit
def grouped(pid, row_blocks, others, GROUP: tl.constexpr):
    """(row block, other) of a program: GROUP row blocks share their weights in the L2 cache."""
    first = pid // (GROUP * others) * GROUP
    size = tl.minimum(row_blocks - first, GROUP)
    within = pid % (GROUP * others)
    return first + within % size, within // size


@triton.jit(do_not_specialize=_SIZES)
def linear_statistics_kernel(
    hidden,
    weight,
    bias,
    target,
    tops,
    sums,
    target_logit,
    N,
    C,
    D,
    parts,
    tiles,
    hidden_stride_n,
    hidden_stride_d,
    weight_stride_c,
    weight_stride_d,
    bias_stride,
    scale,
    softcap,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """(top, s) over j ≠ y of one part of the vocabulary; z_y from the part that holds the target.

    No two programs write one address, so nothing is locked, added twice or rounded on the way.
    """
    row_block, part = grouped(tl.program_id(0), tl.cdiv(N, ROWS), parts, GROUP)
    rows = row_block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    y = tl.load(target + rows, mask=rows < N, other=-1)
    start = part.to(tl.int64) * tiles * COLS
    stop = tl.minimum(start + tiles * COLS, C)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    z_y = tl.zeros([ROWS], tl.float32)
    for c0 in range(start, stop, COLS):
        c = c0 + tl.arange(0, COLS).to(tl.int64)
        z, _ = logits_tile(
            hidden, weight, bias, rows, c, N, C, D, hidden_stride_n, hidden_stride_d,
            weight_stride_c, weight_stride_d, bias_stride, scale, softcap,
            BIAS, SOFTCAP, EVEN, PRECISION, ROWS, COLS, DEPTH,
        )  # fmt: skip
        is_target = target_column(y, c0, COLS)
        z_y += tl.sum(tl.where(is_target, z, 0.0), 1)
        z = tl.where(is_target | (c >= C)[None, :], float("-inf"), z)
        top, total = fold(top, total, z)
    inside = rows < N
    tl.store(tops + part.to(tl.int64) * N + rows, top, mask=inside)
    tl.store(sums + part.to(tl.int64) * N + rows, total, mask=inside)
    tl.store(target_logit + rows, z_y, mask=inside & (y >= start) & (y < stop))


@triton.jit(do_not_specialize=_SIZES)
def linear_gradient_kernel(
    hidden,
    weight,
    bias,
    target,
    shifts,
    of_target,
    of_others,
    out,
    N,
    C,
    D,
    first,
    tiles,
    hidden_stride_n,
    hidden_stride_d,
    weight_stride_c,
    weight_stride_d,
    bias_stride,
    scale,
    softcap,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """(u·e_y + v·exp(z − m))·dz/d(hidden · weight) of ``tiles`` tiles of classes from ``first`` on.

    ``out`` is (N, tiles·COLS), contiguous; what lies past the last class is to be left out.
    """
    row_block, block = grouped(tl.program_id(0), tl.cdiv(N, ROWS), tiles, GROUP)
    rows = row_block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c0 = first + block.to(tl.int64) * COLS
    c = c0 + tl.arange(0, COLS)
    z, slope = logits_tile(
        hidden, weight, bias, rows, c, N, C, D, hidden_stride_n, hidden_stride_d,
        weight_stride_c, weight_stride_d, bias_stride, scale, softcap,
        BIAS, SOFTCAP, EVEN, PRECISION, ROWS, COLS, DEPTH,
    )  # fmt: skip
    inside = rows < N
    y = tl.load(target + rows, mask=inside, other=-1)
    shift = tl.load(shifts + rows, mask=inside, other=0.0)
    u = tl.load(of_target + rows, mask=inside, other=0.0)
    v = tl.load(of_others + rows, mask=inside, other=0.0)
    q = tl.where((v == 0)[:, None], 0.0, exp_below(z - shift[:, None]) * v[:, None])
    d = tl.where(target_column(y, c0, COLS), u[:, None], q) * slope
    at = (rows * tiles * COLS + block.to(tl.int64) * COLS)[:, None] + tl.arange(0, COLS)[None, :]
    tl.store(out + at, d.to(out.dtype.element_ty), mask=inside[:, None])

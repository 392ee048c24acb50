"""The GPU programs themselves. Importing this file imports triton; ``triton.py`` launches them.

Every program works on logits seen as (batch, class, position) by three strides, on a tile of
``ROWS`` positions × ``COLS`` classes; offsets are 64-bit, since row · stride passes 2^31 in use.
A load is masked by ranges alone, never by the target's column, so that it stays vectorised.

Batch and position strides and the number of classes come divided by ``ALIGN``, a power of two that
divides them all, so that the compiler knows how wide its loads may be (it finds multiples of 16 by
itself; 1000 classes would be read one by one).

``WIDE`` is the type computed in: float32 for the half types and float32, float64 for float64.
Maxima drop NaN on the device, so NaN travels through the sums, which never lose one.
"""

import triton
import triton.language as tl

# No program of its own for one row, one part, or sizes that happen to be multiples of 16.
_SIZES = ("C", "position_blocks", "tiles", "all_rows", "parts")
_MAX32 = tl.constexpr(3.4028234663852886e38)
_MAX64 = tl.constexpr(1.7976931348623157e308)


@triton.jit
def finite(x):
    """Infinities replaced by the largest finite numbers; NaN stays NaN."""
    if x.dtype == tl.float64:
        x = tl.where(x > _MAX64, _MAX64, x)
        x = tl.where(x < -_MAX64, -_MAX64, x)
    else:
        x = tl.where(x > _MAX32, _MAX32, x)
        x = tl.where(x < -_MAX32, -_MAX32, x)
    return x


@triton.jit
def exp_below(x):
    """exp(min(x, 0)), and NaN where x is."""
    return tl.exp(tl.where(x > 0, 0.0, x))


@triton.jit
def fold(top, total, z):
    """Running maximum and sum of exp(z − maximum), after one more tile (ROWS, COLS)."""
    new = tl.maximum(top, tl.max(z, 1))
    shift = finite(new)
    total = total * exp_below(finite(top) - shift)
    return new, total + tl.sum(exp_below(z - shift[:, None]), 1)


@triton.jit
def fold_one(top, total, z):
    """The same after one more number a row."""
    new = tl.maximum(top, z)
    shift = finite(new)
    return new, total * exp_below(finite(top) - shift) + exp_below(z - shift)


@triton.jit
def tile_rows(P, position_blocks, ROWS: tl.constexpr):
    """(row numbers, which exist, batch entry, positions) of this program."""
    pid = tl.program_id(0).to(tl.int64)
    b = pid // position_blocks
    p = (pid % position_blocks) * ROWS + tl.arange(0, ROWS)
    return b * P + p, p < P, b, p


@triton.jit
def begin(b, p, stride_b, stride_p, ALIGN: tl.constexpr):
    """Where the rows begin."""
    return (b * stride_b + p * stride_p) * ALIGN


@triton.jit
def load_tile(base, inside, c0, C, stride_c, COLS: tl.constexpr, WIDE: tl.constexpr):
    """Class numbers, which elements exist, and the tile itself, −inf where none do."""
    c = c0 + tl.arange(0, COLS).to(tl.int64)
    mask = inside[:, None] & (c < C)[None, :]
    z = tl.load(base[:, None] + (c * stride_c)[None, :], mask=mask, other=float("-inf"))
    return c, mask, z.to(WIDE)


@triton.jit
def finish(z_y, top, total, valid, rows, inside, log_odds, shifts, totals):
    """Store a, m and s; a target out of range made z_y NaN and makes s NaN too."""
    total = tl.where(valid, total, float("nan"))
    tl.store(log_odds + rows, (z_y - top) - tl.log(total), mask=inside)
    tl.store(shifts + rows, finite(top), mask=inside)
    tl.store(totals + rows, total, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def statistics_kernel(
    logits,
    target,
    log_odds,
    shifts,
    totals,
    C,
    P,
    position_blocks,
    tiles,
    all_rows,
    stride_b,
    stride_c,
    stride_p,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One pass over ``tiles`` tiles of each row: a, m, s, or with SPLIT this part's (top, s)."""
    C = C * ALIGN
    rows, inside, b, p = tile_rows(P, position_blocks, ROWS)
    offset = begin(b, p, stride_b, stride_p, ALIGN)
    y = tl.load(target + rows, mask=inside, other=-1)
    part = tl.program_id(1).to(tl.int64)
    top = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    start = part * tiles * COLS
    for c0 in range(start, tl.minimum(start + tiles * COLS, C), COLS):
        c, _, z = load_tile(logits + offset, inside, c0, C, stride_c, COLS, WIDE)
        z = tl.where(c[None, :] == y[:, None], float("-inf"), z)
        top, total = fold(top, total, z)
    valid = (y >= 0) & (y < C)
    z_y = tl.load(logits + offset + y * stride_c, mask=inside & valid, other=float("nan")).to(WIDE)
    if SPLIT:
        tl.store(shifts + part * all_rows + rows, top, mask=inside)
        tl.store(totals + part * all_rows + rows, total, mask=inside)
        tl.store(log_odds + rows, z_y, mask=inside & (part == 0))
    else:
        finish(z_y, top, total, valid, rows, inside, log_odds, shifts, totals)


@triton.jit(do_not_specialize=_SIZES)
def combine_kernel(
    tops,
    sums,
    target,
    log_odds,
    shifts,
    totals,
    C,
    all_rows,
    parts,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """a, m, s from the parts' (top, s); ``log_odds`` comes in holding z_y."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < all_rows
    top = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS).to(tl.int64)
        mask = inside[:, None] & (part < parts)[None, :]
        at = (part * all_rows)[None, :] + rows[:, None]
        part_top = tl.load(tops + at, mask=mask, other=float("-inf"))
        part_sum = tl.load(sums + at, mask=mask, other=0.0)
        new = tl.maximum(top, tl.max(part_top, 1))
        shift = finite(new)
        total = total * exp_below(finite(top) - shift)
        total += tl.sum(part_sum * exp_below(finite(part_top) - shift[:, None]), 1)
        top = new
    y = tl.load(target + rows, mask=inside, other=-1)
    z_y = tl.load(log_odds + rows, mask=inside, other=0.0)
    finish(z_y, top, total, (y >= 0) & (y < C), rows, inside, log_odds, shifts, totals)


@triton.jit(do_not_specialize=_SIZES)
def gradient_kernel(
    logits,
    target,
    shifts,
    totals,
    grad,
    out,
    C,
    P,
    position_blocks,
    stride_b,
    stride_c,
    stride_p,
    out_stride_b,
    out_stride_c,
    out_stride_p,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """g·(e_y − q) of one tile; each element is read before it is written, so out may be logits."""
    C = C * ALIGN
    rows, inside, b, p = tile_rows(P, position_blocks, ROWS)
    offset = begin(b, p, stride_b, stride_p, ALIGN)
    out_offset = begin(b, p, out_stride_b, out_stride_p, ALIGN)
    y = tl.load(target + rows, mask=inside, other=-1)
    shift = tl.load(shifts + rows, mask=inside, other=0.0)
    total = tl.load(totals + rows, mask=inside, other=1.0)
    g = tl.load(grad + rows, mask=inside, other=0.0).to(WIDE)
    g = tl.where(total == 0, 0.0, g)  # no competitor: a is +inf and stays there
    scale = tl.where(g == 0, 0.0, -g / total)
    # a row without upstream gradient (an ignored one, say) is not read at all
    c0 = tl.program_id(1).to(tl.int64) * COLS
    c, mask, z = load_tile(logits + offset, inside & (g != 0), c0, C, stride_c, COLS, WIDE)
    d = exp_below(z - shift[:, None]) * scale[:, None]
    d = tl.where(c[None, :] == y[:, None], g[:, None], d)
    mask = inside[:, None] & (c < C)[None, :]
    at = out + out_offset[:, None] + (c * out_stride_c)[None, :]
    tl.store(at, d.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def all_statistics_kernel(
    logits,
    log_odds,
    index,
    shifts,
    totals,
    C,
    P,
    position_blocks,
    stride_b,
    stride_c,
    stride_p,
    out_stride_b,
    out_stride_c,
    out_stride_p,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Every class's log-odds; the top class, and m and s of its competitors, kept apart."""
    C = C * ALIGN
    rows, inside, b, p = tile_rows(P, position_blocks, ROWS)
    offset = begin(b, p, stride_b, stride_p, ALIGN)
    out_offset = begin(b, p, out_stride_b, out_stride_p, ALIGN)
    top = tl.full([ROWS], float("-inf"), WIDE)
    best = tl.zeros([ROWS], tl.int64)
    rest = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    for c0 in range(0, C, COLS):
        c, mask, z = load_tile(logits + offset, inside, c0, C, stride_c, COLS, WIDE)
        tile_top = tl.max(z, 1)
        tile_best = tl.min(tl.where(z == tile_top[:, None], c[None, :], C), 1)
        others = tl.where(c[None, :] == tile_best[:, None], float("-inf"), z)
        rest, total = fold(rest, total, others)
        better = tile_top > top
        rest, total = fold_one(rest, total, tl.where(better, top, tile_top))
        best = tl.where(better, tile_best, best)
        top = tl.where(better, tile_top, top)
    tl.store(index + rows, best, mask=inside)
    tl.store(shifts + rows, finite(rest), mask=inside)
    tl.store(totals + rows, total, mask=inside)
    of_top = (top - rest) - tl.log(total)
    whole = 1.0 + total * exp_below(finite(rest) - finite(top))
    for c0 in range(0, C, COLS):
        c, mask, z = load_tile(logits + offset, inside, c0, C, stride_c, COLS, WIDE)
        left = whole[:, None] - exp_below(z - finite(top)[:, None])  # Σ_{j≠k}, at least half of it
        a = (z - top[:, None]) - tl.log(left)
        a = tl.where(c[None, :] == best[:, None], of_top[:, None], a)
        tl.store(log_odds + out_offset[:, None] + (c * out_stride_c)[None, :], a, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def all_gradient_kernel(
    logits,
    index,
    shifts,
    totals,
    grad,
    out,
    C,
    P,
    position_blocks,
    stride_b,
    stride_c,
    stride_p,
    grad_stride_b,
    grad_stride_c,
    grad_stride_p,
    out_stride_b,
    out_stride_c,
    out_stride_p,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Σ_k G_k ∂a_k/∂z: for j ≠ top G_j/(1−p_j) − p_j·T − q_j·G_top, for the top G_top − p_top·T."""
    C = C * ALIGN
    rows, inside, b, p = tile_rows(P, position_blocks, ROWS)
    offset = begin(b, p, stride_b, stride_p, ALIGN)
    grad_offset = begin(b, p, grad_stride_b, grad_stride_p, ALIGN)
    out_offset = begin(b, p, out_stride_b, out_stride_p, ALIGN)
    best = tl.load(index + rows, mask=inside, other=0)
    rest = tl.load(shifts + rows, mask=inside, other=0.0)
    total = tl.load(totals + rows, mask=inside, other=1.0)
    top = tl.load(logits + offset + best * stride_c, mask=inside, other=0.0).to(WIDE)
    g_top = tl.load(grad + grad_offset + best * grad_stride_c, mask=inside, other=0.0).to(WIDE)
    alone = total == 0
    g_top = tl.where(alone, 0.0, g_top)
    per_rest = tl.where(g_top == 0, 0.0, g_top / tl.where(alone, 1.0, total))
    whole = 1.0 + total * exp_below(rest - finite(top))
    sums = tl.zeros([ROWS], WIDE)  # T = Σ_{k≠top} G_k/(1 − p_k)
    for c0 in range(0, C, COLS):
        c, mask, z = load_tile(logits + offset, inside, c0, C, stride_c, COLS, WIDE)
        at = grad + grad_offset[:, None] + (c * grad_stride_c)[None, :]
        g = tl.load(at, mask=mask, other=0.0).to(WIDE)
        share = g / (1.0 - exp_below(z - finite(top)[:, None]) / whole[:, None])
        sums += tl.sum(tl.where(c[None, :] == best[:, None], 0.0, share), 1)
    for c0 in range(0, C, COLS):
        c, mask, z = load_tile(logits + offset, inside, c0, C, stride_c, COLS, WIDE)
        at = grad + grad_offset[:, None] + (c * grad_stride_c)[None, :]
        g = tl.load(at, mask=mask, other=0.0).to(WIDE)
        prob = exp_below(z - finite(top)[:, None]) / whole[:, None]
        d = g / (1.0 - prob) - prob * sums[:, None]
        d -= exp_below(z - rest[:, None]) * per_rest[:, None]
        of_top = g_top - sums / whole
        d = tl.where(c[None, :] == best[:, None], of_top[:, None], d)
        at = out + out_offset[:, None] + (c * out_stride_c)[None, :]
        tl.store(at, d.to(out.dtype.element_ty), mask=mask)

"""The products of a linear layer, for some rows or some classes at a time."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from losslab.logodds.plain import compute_dtype

# Bytes of logits held at a time, unless a share of them all lies between.
_CPU_CHUNK = (1 << 22, 1 << 27)
_DEVICE_CHUNK = (1 << 26, 1 << 29)
_PIECE = 1 << 18  # elements that stay in a core's cache while several operations go over them


@dataclass
class Layer:
    """h Wᵀ + b of the rows ``keep`` of hidden (N, D); None is all of them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    keep: Tensor | None

    @property
    def count(self) -> int:
        return len(self.hidden if self.keep is None else self.keep)

    def inputs(self, at: slice = slice(None)) -> Tensor:
        if self.keep is None:
            return self.hidden[at]
        return self.hidden.index_select(0, self.keep[at])

    def product(self, inputs: Tensor, classes: slice, factor: float, out: Tensor) -> Tensor:
        """factor·(h Wᵀ + b) of some classes, written into ``out``."""
        weight = self.weight[classes].t()
        if self.bias is not None:
            bias = self.bias[classes]
            return torch.addmm(bias, inputs, weight, beta=factor, alpha=factor, out=out)
        if factor == 1:
            return torch.mm(inputs, weight, out=out)
        return torch.addmm(out, inputs, weight, beta=0, alpha=factor, out=out)

    def sweep(self, chunk: int, factor: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, their inputs, factor·(h Wᵀ + b)); the products share one buffer."""
        buffer = self.weight.new_empty((min(chunk, self.count), len(self.weight)))
        for start in range(0, self.count, chunk):
            at = slice(start, min(start + chunk, self.count))
            inputs = self.inputs(at)
            yield at, inputs, self.product(inputs, slice(None), factor, buffer[: len(inputs)])


class Gradients:
    """Sums of the layer's gradients, some rows or some classes at a time; None for what needs none.

    By rows it is the weight's gradient that is summed over the pieces, by classes the input's. For
    half types that sum is in float32; where the device cannot add a product to it unrounded, each
    piece is rounded once.
    """

    def __init__(self, layer: Layer, needs: tuple[bool, bool, bool], *, by_rows: bool) -> None:
        self.layer = layer
        wide = compute_dtype(layer.weight.dtype)
        by_class = wide if by_rows else layer.weight.dtype
        self.hidden = self.weight = self.bias = None
        if needs[0]:
            shape = (layer.count, layer.hidden.shape[1])
            self.hidden = layer.hidden.new_empty(shape, dtype=None if by_rows else wide)
        if needs[1]:
            weight = layer.weight.new_empty(layer.weight.shape, dtype=by_class)
            self.weight = _on_large_pages(weight)
        if needs[2] and layer.bias is not None:
            self.bias = layer.bias.new_zeros(layer.bias.shape, dtype=wide)
        self.started = False

    def add_rows(self, at: slice, inputs: Tensor, gradient: Tensor) -> None:
        """Of the logits (n, V) of some rows."""
        if self.hidden is not None:
            torch.mm(gradient, self.layer.weight, out=self.hidden[at])
        if self.weight is not None:
            _accumulate(self.weight, gradient.t(), inputs, self.started)
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=self.bias.dtype)
        self.started = True

    def add_classes(self, at: slice, inputs: Tensor, gradient: Tensor) -> None:
        """Of the logits (N, v) of some classes."""
        if self.hidden is not None:
            _accumulate(self.hidden, gradient, self.layer.weight[at], self.started)
        if self.weight is not None:
            torch.mm(gradient.t(), inputs, out=self.weight[at])
        if self.bias is not None:
            self.bias[at] = gradient.sum(0, dtype=self.bias.dtype)
        self.started = True

    def results(self) -> tuple[Tensor | None, ...]:
        """In the dtypes of the layer, the input's for all its rows."""
        layer, hidden, weight, bias = self.layer, self.hidden, self.weight, self.bias
        if not self.started:
            for x in (hidden, weight):
                if x is not None:
                    x.zero_()
        if hidden is not None:
            hidden = hidden.to(layer.hidden.dtype)
            if layer.keep is not None:
                every = hidden.new_zeros(layer.hidden.shape)
                hidden = every.index_copy_(0, layer.keep, hidden)
        weight = None if weight is None else weight.to(layer.weight.dtype)
        return hidden, weight, None if bias is None else bias.to(layer.weight.dtype)


def _accumulate(total: Tensor, a: Tensor, b: Tensor, started: bool) -> None:
    """total + a @ b, or a @ b where nothing is in ``total`` yet."""
    if total.dtype == a.dtype:
        if started:
            total.addmm_(a, b)
        else:
            torch.mm(a, b, out=total)
    elif a.is_cuda and torch.version.hip is None and hasattr(torch.ops.aten.addmm, "dtype_out"):
        torch.addmm(total, a, b, beta=int(started), out_dtype=total.dtype, out=total)
    else:
        for rows in pieces(len(a), b.shape[1], 1 << 22):
            part = torch.mm(a[rows], b)
            if started:
                total[rows] += part
            else:
                total[rows] = part


def _find_madvise() -> Any:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    return function


_madvise, _LARGE_PAGE, _WANTED = _find_madvise(), 1 << 21, 14  # MADV_HUGEPAGE


def _on_large_pages(x: Tensor) -> Tensor:
    """``x``, new and about to be filled, which takes half the time on large pages of a CPU."""
    if _madvise is not None and x.device.type == "cpu" and x.nbytes >= 1 << 23:
        start = -(-x.data_ptr() // _LARGE_PAGE) * _LARGE_PAGE
        length = (x.data_ptr() + x.nbytes - start) // _LARGE_PAGE * _LARGE_PAGE
        _madvise(start, length, _WANTED)  # a refusal costs time only
    return x


def pieces(count: int, width: int, size: int = _PIECE) -> list[slice]:
    """Runs of rows of ``width``, each about ``size`` elements."""
    step = max(1, size // max(1, width))
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]


def chunk_rows(rows: int, weight: Tensor, parts: int) -> int:
    """How many rows' logits to hold at a time: those of one part, within bounds."""
    low, high = _CPU_CHUNK if weight.device.type == "cpu" else _DEVICE_CHUNK
    row = weight.shape[0] * weight.element_size()
    chunk = min(max(-(-rows // parts), low // row), high // row)
    chunk = -(-chunk // 16) * 16 if chunk > 64 else chunk  # products are fastest in multiples of 16
    return max(1, min(chunk, rows))

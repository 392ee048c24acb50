"""The one place that chooses how log-odds are computed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from losslab.logodds import eager

Backend = Callable[[Tensor, Tensor], Tensor]


def choose() -> Backend:
    """``chunked``, except under transforms: compilers and torch.func want plain operations."""
    return eager.composite if eager.being_transformed() else eager.chunked

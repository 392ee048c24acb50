"""Functions that torch.compile must not look into.

An exchange between ranks inside an autograd function is compiled without complaint, and in the
backward pass then lost (seen with torch 2.13). So the compiler stops before these functions and
goes on after them: a graph break, and with ``fullgraph=True`` an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, run as it is by whoever compiles its caller."""
    # torch's own decorator would import the compiler, for seconds, also where nobody compiles
    hidden = torch._disable_dynamo(function)

    @wraps(function)
    def run(*args: P.args, **keywords: P.kwargs) -> R:
        if "torch._dynamo" in sys.modules:
            return hidden(*args, **keywords)
        return function(*args, **keywords)

    return run

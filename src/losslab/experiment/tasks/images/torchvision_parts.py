"""torchvision, also where its compiled operators do not fit the PyTorch that is installed.

Its wheel is built for CUDA. Beside a PyTorch for the CPU its library does not load, and then
importing it fails for want of two operators that nothing here calls. Their schemas are enough.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from losslab.experiment.tasks.needed import needed

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def torchvision() -> Any:
    """The module, with its detection models.

    Raises:
        InputError: If it is not there or does not import.
    """
    with needed("torchvision", "torchvision"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an image library that does not load
        supply_operators()
        import torchvision
        import torchvision.models.detection
    return torchvision


def supply_operators() -> None:
    """Let torchvision be imported beside a PyTorch that it was not built for, where it is there."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.origin or hasattr(torch.ops.torchvision, "nms"):
        return
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(library)
            return
        except OSError:  # made for another PyTorch
            continue
    schemas = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        schemas.define(schema)
    _kept.append(schemas)


_kept: list[torch.library.Library] = []  # what is defined goes when its library does

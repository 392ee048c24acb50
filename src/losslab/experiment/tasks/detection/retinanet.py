"""RetinaNet: a feature pyramid, and at every anchor a score of each class and a box.

Two of them, with the same answers ``(scores (N, A, K), offsets (N, A, 4))``: a small one that is
all here and trains on a CPU, and torchvision's with a ResNet-50, for COCO.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from losslab.errors import InputError
from losslab.experiment.tasks.detection.boxes import OCTAVES, RATIOS
from losslab.experiment.tasks.images.torchvision_parts import torchvision

PER_CELL = OCTAVES * len(RATIOS)
PRIOR = 0.01  # an untrained model's probability of each class at each anchor
SMALL_STRIDES, SMALL_SCALE = (8, 16, 32), 1.5
STRIDES, SCALE = (8, 16, 32, 64, 128), 4.0
RESNET50 = "resnet50-0676ba61.pth"  # ImageNet's weights: the name ends in the sha256's beginning
RESNET50_URL = f"https://download.pytorch.org/models/{RESNET50}"


class SmallRetinaNet(nn.Module):
    """A RetinaNet of 0.56 million weights with anchors of 12 to 76 pixels.

    A backbone of plain convolutions with batch norm, levels of 1/8, 1/16 and 1/32 of the image, and
    heads of two convolutions. The last biases say `PRIOR` at first, as in Lin et al. (2017).
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 16, 2), _convolution(16, 32), _stage(32, 48))
        self.stages = nn.ModuleList([_stage(48, width), _stage(width, width), _stage(width, width)])
        self.across = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in self.stages])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in self.stages])
        self.scores = _head(width, num_classes)
        self.offsets = _head(width, 4)
        nn.init.constant_(_last(self.scores).bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, found = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        levels = self._pyramid(found)
        return _by_anchor(self.scores, levels), _by_anchor(self.offsets, levels)

    def _pyramid(self, found: list[Tensor]) -> list[Tensor]:
        """From the coarsest level down, each with what the one above it saw."""
        levels: list[Tensor] = []
        for features, across in zip(found[::-1], list(self.across)[::-1], strict=True):
            level = across(features)
            if levels:
                level = level + interpolate(levels[-1], size=level.shape[-2:])
            levels.append(level)
        return [smooth(level) for smooth, level in zip(self.smooth, levels[::-1], strict=True)]


def _convolution(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


def _stage(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(_convolution(channels, width, 2), _convolution(width, width))


def _head(width: int, answers: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(8, width), nn.ReLU()]
    head = nn.Sequential(*layers, nn.Conv2d(width, PER_CELL * answers, 3, padding=1))
    nn.init.normal_(_last(head).weight, std=0.01)
    nn.init.zeros_(_last(head).bias)  # type: ignore[arg-type]
    return head


def _last(head: nn.Sequential) -> nn.Conv2d:
    last = head[-1]
    assert isinstance(last, nn.Conv2d)
    return last


def _by_anchor(head: nn.Module, levels: list[Tensor]) -> Tensor:
    """A head's answers in the order of `anchors`: ``(N, A, answers)``."""
    parts = []
    for level in levels:
        found = head(level)  # (N, PER_CELL · answers, rows, columns)
        answers = found.shape[1] // PER_CELL
        parts.append(found.permute(0, 2, 3, 1).reshape(len(level), -1, answers))
    return torch.cat(parts, dim=1)


class ResNet50RetinaNet(nn.Module):
    """torchvision's RetinaNet with a ResNet-50, from ImageNet's weights.

    As in Detectron2's *R-50-FPN*: batch norms stay as ImageNet left them, the stem and the first
    group are not trained. As torchvision has it, level 6 is made of level 5, not of the backbone.

    Args:
        num_classes: Classes.
        weights: torchvision's file of ResNet-50's weights.
    """

    def __init__(self, num_classes: int, weights: Path) -> None:
        super().__init__()
        parts = torchvision()
        self.backbone = parts.models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet50",
            weights=None,
            norm_layer=parts.ops.FrozenBatchNorm2d,
            trainable_layers=3,
            returned_layers=[2, 3, 4],
            extra_blocks=parts.ops.feature_pyramid_network.LastLevelP6P7(256, 256),
        )
        self.backbone.body.load_state_dict(_resnet50(weights))
        self.head = parts.models.detection.retinanet.RetinaNetHead(256, PER_CELL, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.head(list(self.backbone(images).values()))
        return answers["cls_logits"], answers["bbox_regression"]


def _resnet50(path: Path) -> dict[str, Any]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file cut short raises anything
        raise InputError(
            f"{path}: cannot be read as weights ({type(error).__name__}); it is damaged or no such "
            f"file. Download it again: {RESNET50_URL}."
        ) from None
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}


def resnet50_weights(folders: list[Path]) -> Path:
    """The file of ImageNet's weights in one of the folders, whole.

    Raises:
        InputError: If there is none, or its bytes are not those that its name promises.
    """
    for folder in folders:
        path = folder / RESNET50
        if not path.is_file():
            continue
        promised = path.stem.rpartition("-")[2]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(promised):
            raise InputError(
                f"{path}: expected a file whose sha256 begins with {promised}; it is another, or "
                f"half downloaded. Download it again: {RESNET50_URL}."
            )
        return path
    raise InputError(
        f"the model resnet50 starts from ImageNet's weights, {RESNET50}; looked in "
        f"{', '.join(map(str, folders))}. Download it there: {RESNET50_URL}."
    )

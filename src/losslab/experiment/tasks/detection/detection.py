"""Detection: RetinaNet on a made set of shapes, and on COCO, with any loss of log-odds per class.

The small model is hardly tuned: for the focal loss, on the 100 validation pictures of ``shapes``,
one seed, 6 epochs at rate 0.05 reach an AP of 0.43, where a first draft of the model at 0.02 had
stopped at 0.23 after 12. On COCO it is there to try the loading, and was not trained on all of it.

``resnet50`` on COCO is not tuned here. It is Detectron2's *RetinaNet-R-50-FPN-1x*, which Zhao
et al. (2022) take, with what they say of it: 90,000 steps of 8 images, SGD with plain momentum 0.9,
rate 0.01, a tenth of it from steps 60,000 and 80,000 on, warm-up of 1000 steps, weight decay 1e-4.
Other than there, images are brought to squares of one size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from losslab.errors import InputError
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import with_description
from losslab.experiment.tasks.detection.average_precision import (
    METRICS,
    AveragePrecision,
    check_installed,
)
from losslab.experiment.tasks.detection.boxes import Objects, anchor_targets, anchors
from losslab.experiment.tasks.detection.coco import FOLDERS, Annotated, Images, Pictures, read_coco
from losslab.experiment.tasks.detection.detection_reading import AnchorReading
from losslab.experiment.tasks.detection.retinanet import (
    SCALE,
    SMALL_SCALE,
    SMALL_STRIDES,
    STRIDES,
    ResNet50RetinaNet,
    SmallRetinaNet,
    resnet50_weights,
)
from losslab.experiment.tasks.detection.shapes import NAMES, make_shapes
from losslab.experiment.tasks.models import standardized
from losslab.experiment.tasks.official import places
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.recipe import Recipe

SHAPES_SIZE, COCO_SIZE = 64, 640
SHAPES = {"train": 600, "validation": 100, "test": 200}
VALIDATION_FRACTION = 1 / 24  # about 5,000 of COCO's training images, as many as its own
OFFICIAL_SIZES = (118_287, 5_000)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
_SMALL = Recipe(epochs=6, batch_size=16, lr=0.05, weight_decay=1e-4)
RECIPES = {
    "shapes": {"small": _SMALL},
    "coco": {
        "small": _SMALL,
        "resnet50": Recipe(
            epochs=6,
            batch_size=8,
            lr=0.01,
            weight_decay=1e-4,
            nesterov=False,
            milestones=(60 / 90, 80 / 90),
            warm_up=1 / 90,
        ),
    },
}


@dataclass(frozen=True)
class _Net:
    """A model, and the grid of anchors that it answers."""

    name: str
    make: Callable[[int], nn.Module]
    strides: tuple[int, ...]
    scale: float

    def anchors(self, task: str, size: int) -> Tensor:
        if size % self.strides[-1]:
            raise InputError(
                f"task {task!r}: the model {self.name} needs an image_size that is a multiple of "
                f"{self.strides[-1]}; got {size}."
            )
        return anchors(size, self.strides, self.scale)


def build_shapes(options: TaskOptions) -> Task:
    """Discs, squares and triangles on noise; ``split_seed`` makes other pictures."""
    name = "shapes"
    refuse_unused(
        name,
        options,
        {
            "target": "its boxes are known",
            "imbalance": "an image holds objects of several classes",
            "class_counts": "an image holds objects of several classes",
            "data_dir": "its pictures are made",
            "validation_fraction": "each split is made for itself",
        },
    )
    model = choose_model(name, options, tuple(RECIPES[name]))
    check_installed()
    net = _net(model, options)
    size = options.image_size or SHAPES_SIZE
    grid = net.anchors(name, size)
    counts = SHAPES | ({"train": options.train_size} if options.train_size else {})
    made = {
        split: make_shapes(count, size, seed=3 * options.split_seed + number)
        for number, (split, count) in enumerate(counts.items())
    }
    splits = {
        split: TensorDataset(images, torch.stack([_target(found, grid) for found in objects]))
        for split, (images, objects) in made.items()
    }
    facts = {
        "source": "pictures of discs, squares and triangles on noise, made from a seed",
        "split": {"rule": "a seed for each split", "seed": options.split_seed},
        "preprocessing": [f"{size}×{size} pixels, kept as uint8"],
    }
    recipe = RECIPES[name][model].changed_by(options)
    return _task(name, splits, made, NAMES, net, grid, size, recipe, facts)


def build_coco(options: TaskOptions) -> Task:
    """COCO: its own validation images are the test split; validation is held out of training."""
    name = "coco"
    crowded = "an image holds objects of several classes"
    refuse_unused(
        name,
        options,
        {"target": "its boxes are known", "imbalance": crowded, "class_counts": crowded},
    )
    model = choose_model(name, options, tuple(RECIPES[name]))
    check_installed()
    net = _net(model, options)
    size = options.image_size or COCO_SIZE
    grid = net.anchors(name, size)
    official, test = read_coco(options.data_dir)
    train, validation = _divided(official, options)
    parts = {
        "train": Pictures(official.files, train, size, grid, mirrored=True),
        "validation": Pictures(official.files, validation, size, grid),
        "test": Pictures(test.files, test.pictures, size, grid),
    }
    measured = {
        split: (Images(parts[split]), [parts[split].objects(k) for k in range(len(parts[split]))])
        for split in ("validation", "test")
    }
    sizes = tuple(len(part.pictures) for part in (official, test))
    facts = {
        "source": "COCO's images and instances",
        "split": {
            "rule": "official validation images to test on; validation drawn from the training "
            "images; training images without an object left out",
            "seed": options.split_seed,
        },
        "preprocessing": [
            f"longer side {size} pixels (bilinear), the rest of the square black",
            "training images mirrored with probability 1/2",
            "crowds are no objects to learn, and neither right nor wrong to find",
        ],
        "notes": []
        if sizes == OFFICIAL_SIZES
        else [f"not the official coco: {sizes[0]} training and {sizes[1]} test images"],
        "sha256": hashlib.sha256(f"{official.sha256} {test.sha256}".encode()).hexdigest(),
    }
    recipe = RECIPES[name][model].changed_by(options)
    return _task(name, parts, measured, official.class_names, net, grid, size, recipe, facts)


def _task(
    name: str,
    splits: dict[str, Any],
    measured: Mapping[str, tuple[Any, Sequence[Objects]]],
    class_names: Sequence[str],
    net: _Net,
    grid: Tensor,
    size: int,
    recipe: Recipe,
    facts: dict[str, Any],
) -> Task:
    task = Task(
        name=name,
        **splits,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        model=partial(_made, net, len(class_names)),
        reading=AnchorReading(),
        metrics=METRICS,
        model_scores=AveragePrecision(measured, grid, size, len(class_names), recipe.batch_size),
        **recipe.task_fields(),
    )
    scaling = "first layer: ImageNet's mean and deviation of each channel"
    preprocessing = [*facts["preprocessing"], scaling]
    anchoring = {"strides": list(net.strides), "scale": net.scale, "count": len(grid)}
    more = {"preprocessing": preprocessing, "anchors": anchoring, "model": {"name": net.name}}
    return with_description(task, {**facts, **more})


def _net(model: str, options: TaskOptions) -> _Net:
    if model == "small":
        return _Net(model, SmallRetinaNet, SMALL_STRIDES, SMALL_SCALE)
    folders = places("the weights of resnet50", options.data_dir, FOLDERS)
    weights = resnet50_weights(folders)
    return _Net(model, partial(ResNet50RetinaNet, weights=weights), STRIDES, SCALE)


def _made(net: _Net, num_classes: int) -> nn.Module:
    mean, std = ([255 * number for number in numbers] for numbers in (_MEAN, _STD))
    return standardized(mean, std, net.make(num_classes))


def _target(objects: Objects, grid: Tensor) -> Tensor:
    return anchor_targets(objects.boxes, objects.labels, grid)


def _divided(official: Annotated, options: TaskOptions) -> tuple[list[Any], list[Any]]:
    """Training images with something to learn, and validation images."""
    count = len(official.pictures)
    generator = torch.Generator().manual_seed(options.split_seed)
    order = torch.randperm(count, generator=generator).tolist()
    held_out = max(1, round((options.validation_fraction or VALIDATION_FRACTION) * count))
    validation = [official.pictures[k] for k in sorted(order[:held_out])]
    useful = [k for k in order[held_out:] if not official.pictures[k].objects.crowd.all()]
    size = options.train_size or len(useful)
    if not 1 <= size <= len(useful):
        raise InputError(
            f"train_size must be in 1..{len(useful)}, the training images with an object; "
            f"got {size}."
        )
    return [official.pictures[k] for k in sorted(useful[:size])], validation

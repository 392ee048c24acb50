"""ImageNet (ILSVRC 2012) and Tiny ImageNet, their images read from their files as they are needed.

ImageNet is trained as PyTorch's example does it, and both papers with it: 90 epochs of batches of
256, SGD with momentum 0.9, weight decay 1e-4, rate 0.1, a tenth of it from epochs 30 and 60 on;
random parts resized to 224 pixels and mirrored; measured on the middle 224 of 256 pixels. Tiny
ImageNet has the settings of Battash et al.'s table 5, who take them from Chen et al. (2019): 200
epochs, a tenth of the rate from epochs 100 and 150 on; random parts resized to 64 pixels; measured
on whole images. Batches of 128 and stems of 3×3 are a choice made here.

The official validation images, whose labels are public, are the test split, as in the papers;
validation images are held out of the training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from torch import nn

from losslab.errors import InputError
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import with_description
from losslab.experiment.tasks.images.images import ENDINGS
from losslab.experiment.tasks.images.large_images import (
    ImageFiles,
    MiddleView,
    RandomView,
    Source,
    fingerprint,
)
from losslab.experiment.tasks.images.residual import broad_resnet
from losslab.experiment.tasks.images.slim import efficientnet_b0, shufflenet_v2
from losslab.experiment.tasks.images.timm_model import PREFIX, timm_model
from losslab.experiment.tasks.models import standardized
from losslab.experiment.tasks.official import places
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.recipe import Recipe
from losslab.experiment.tasks.split import keep, stratified_split
from losslab.metrics import Metric

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # everybody's, of ImageNet
FOLDERS = {
    "imagenet": ("imagenet", "ImageNet", "ILSVRC2012"),
    "tiny-imagenet": ("tiny-imagenet-200", "tiny-imagenet"),
}
ZIP = "tiny-imagenet-200.zip"
OFFICIAL = {"imagenet": (1_281_167, 50_000), "tiny-imagenet": (100_000, 10_000)}
VALIDATION_FRACTION = {"imagenet": 1 / 100, "tiny-imagenet": 1 / 20}
SIZES = {"imagenet": 224, "tiny-imagenet": 64}
RECIPES = {
    "imagenet": Recipe(
        epochs=90,
        batch_size=256,
        lr=0.1,
        weight_decay=1e-4,
        nesterov=False,
        milestones=(30 / 90, 60 / 90),
    ),
    "tiny-imagenet": Recipe(
        epochs=200,
        batch_size=128,
        lr=0.1,
        weight_decay=1e-4,
        nesterov=False,
        milestones=(1 / 2, 3 / 4),
    ),
}
_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnext50": (3, 4, 6, 3),
    "resnext101": (3, 4, 23, 3),
}
_GROUPS = {"resnext50": (32, 4), "resnext101": (32, 8)}
MODELS = (*_BLOCKS, "shufflenet-v2", "efficientnet-b0")

Files = list[tuple[str, int]]
Found = tuple[list[str], tuple[Files, np.ndarray], tuple[Files, np.ndarray]]


def build_imagenet(name: str, options: TaskOptions) -> Task:
    """``imagenet`` or ``tiny-imagenet``."""
    refuse_unused(name, options, {"target": "the folders are the classes"})
    model = choose_model(name, options, MODELS, timm=True)
    source, under = _find(name, options.data_dir)
    large = name == "imagenet"
    read = _read_imagenet if large else _read_tiny
    size = options.image_size or SIZES[name]
    return photo_task(
        name,
        source,
        read(source, under),
        options,
        model=model,
        recipe=RECIPES[name],
        views=(RandomView(size), MiddleView(size, round(size * 256 / 224) if large else size)),
        fraction=VALIDATION_FRACTION[name],
        official=OFFICIAL[name],
    )


def photo_task(
    name: str,
    source: Source,
    found: Found,
    options: TaskOptions,
    *,
    model: str,
    recipe: Recipe,
    views: tuple[RandomView, MiddleView],
    fraction: float,
    official: tuple[int, int],
    each_class: str = "",
    metrics: tuple[Metric, ...] = (),
) -> Task:
    """A task of photos that stay in their files, with the official validation images as test.

    Args:
        found: Classes, and files with class numbers of the training and of the test images.
        views: How images are seen in training and in measuring.
        fraction: Of the training images, held out for validation unless the options say otherwise.
        official: Numbers of training and test images of the official set.
        each_class: What the split's rule says beside of classes.
    """
    classes, (files, targets), (test_files, test_targets) = found
    fraction = options.validation_fraction or fraction
    rest, held_out = stratified_split(targets, (fraction,), options.split_seed)
    rest = rest[keep(targets[rest], options.train_size, options.split_seed)]
    random, middle = views

    def part(rows: np.ndarray, view: RandomView | MiddleView) -> ImageFiles:
        return ImageFiles(source, [files[row] for row in rows], targets[rows].tolist(), view)

    train, validation = part(rest, random), part(held_out, middle)
    test = ImageFiles(source, test_files, test_targets.tolist(), middle)
    counts = (len(files), len(test_files))
    task = Task(
        name=name,
        train=train,
        validation=validation,
        test=test,
        num_classes=len(classes),
        model=partial(make_model, model, len(classes), random.size),
        class_names=tuple(classes),
        metrics=metrics,
        **recipe.changed_by(options).task_fields(),
    )
    facts = {
        "source": f"{name} files",
        "split": {
            "rule": "official validation images as test; validation stratified from the training "
            f"images{each_class}",
            "seed": options.split_seed,
        },
        "preprocessing": [
            f"training: {random}",
            f"measuring: {middle}",
            "first layer: standardised by ImageNet's usual means and deviations",
        ],
        "notes": []
        if counts == official
        else [f"not the official {name}: {counts[0]} training and {counts[1]} test images"],
        "model": {"name": model},
        "sha256": fingerprint(train, validation, test),
    }
    return with_description(task, facts)


def make_model(name: str, num_classes: int, size: int) -> nn.Module:
    """A fresh model of one of the `MODELS`, or of timm; with small stems for images up to 64."""
    return standardized(MEAN, STD, _body(name, num_classes, size))


def _body(name: str, num_classes: int, size: int) -> nn.Module:
    if name.startswith(PREFIX):
        return timm_model(name, num_classes, size)
    large = size > 64
    if name == "shufflenet-v2":
        return shufflenet_v2(num_classes, large=large)
    if name == "efficientnet-b0":
        return efficientnet_b0(num_classes, large=large)
    cardinality, width = _GROUPS.get(name, (1, 64))
    return broad_resnet(
        _BLOCKS[name],
        num_classes,
        bottleneck=name not in ("resnet18", "resnet34"),
        large=large,
        cardinality=cardinality,
        width=width,
    )


def _find(name: str, data_dir: str | Path | None) -> tuple[Source, str]:
    """The folder or zip file, and the folder in it that all paths begin with, or nothing."""
    if name == "imagenet":
        wanted = "imagenet is read from a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG"
    else:
        wanted = (
            f"tiny-imagenet is read from {ZIP} (http://cs231n.stanford.edu/{ZIP}), unpacked or not"
        )
    looked = places(wanted, data_dir, FOLDERS[name])
    for place in looked:
        if (place / "train").is_dir() and (place / "val").is_dir():
            return Source(place), ""
    if name == "tiny-imagenet":
        for place in looked:
            if (place / ZIP).is_file():
                return Source(place / ZIP), "tiny-imagenet-200/"
    raise InputError(f"{wanted}; not found. Looked in {', '.join(map(str, looked))}.")


def _read_imagenet(source: Source, under: str) -> Found:
    """Classes, and files with class numbers of the training and the official validation images."""
    classes = sorted(path.name for path in (source.place / "train").iterdir() if path.is_dir())
    numbers = {name: number for number, name in enumerate(classes)}
    if any(path.suffix.lower() in ENDINGS for path in (source.place / "val").iterdir()):
        raise InputError(
            f"{source.place / 'val'}: expected a folder for each class; its images lie side by "
            "side, as in the official archive. Sort them into folders: PyTorch's ImageNet example "
            "(examples/imagenet) has the script, extract_ILSVRC.sh."
        )
    train = _labelled(source, source.files("train"), numbers)
    test = _labelled(source, source.files("val"), numbers)
    return classes, _complete(source, "train", train, classes), test


def _read_tiny(source: Source, under: str) -> Found:
    """The like of Tiny ImageNet, whose validation images have their classes in a list."""
    classes = source.read(f"{under}wnids.txt").decode().split()
    numbers = {name: number for number, name in enumerate(classes)}
    train = _labelled(source, source.files(f"{under}train"), numbers, depth=3)
    where = f"{under}val/val_annotations.txt"
    rows = [line.split("\t") for line in source.read(where).decode().splitlines() if line]
    labels = {row[0]: row[1] for row in rows if len(row) > 1}
    files = [file for file in source.files(f"{under}val/images") if _is_image(file[0])]
    for name, _ in files:
        label = labels.get(PurePosixPath(name).name)
        if label not in numbers:
            raise InputError(
                f"{source.place}: expected one of the classes of wnids.txt for {name} in {where}; "
                f"got {label!r}. Copy or download the whole of {ZIP}."
            )
    targets = [numbers[labels[PurePosixPath(name).name]] for name, _ in files]
    if len(files) < len(labels):
        raise InputError(
            f"{source.place}: {where} lists {len(labels)} images, but {under}val/images holds "
            f"{len(files)}. Copy or download the whole of {ZIP}."
        )
    test = files, np.array(targets, dtype=np.int64)
    return classes, _complete(source, "train", train, classes), test


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _labelled(
    source: Source, files: Files, numbers: dict[str, int], depth: int = 2
) -> tuple[Files, np.ndarray]:
    """The images among the files, with the number of the folder ``depth`` parts from the end."""
    images = [file for file in files if _is_image(file[0])]
    names = [PurePosixPath(name).parts[-depth] for name, _ in images]
    unknown = sorted(set(names) - set(numbers))
    if unknown:
        raise InputError(
            f"{source.place}: the class {unknown[0]!r} is not among the {len(numbers)} training "
            "classes. Name the folders alike, or remove it."
        )
    return images, np.array([numbers[name] for name in names], dtype=np.int64)


def _complete(
    source: Source, split: str, labelled: tuple[Files, np.ndarray], classes: Sequence[str]
) -> tuple[Files, np.ndarray]:
    """The same, unless a class has fewer than two images."""
    counts = np.bincount(labelled[1], minlength=len(classes))
    lacking = [name for name, count in zip(classes, counts, strict=True) if count < 2]
    if lacking or len(classes) < 2:
        raise InputError(
            f"{source.place}: expected at least two classes with two images each in {split}; got "
            f"{len(classes)} classes, of which {', '.join(lacking[:5]) or 'none'} lack images. "
            "Copy or download the whole set."
        )
    return labelled

"""iNaturalist 2018: 8,142 species with a natural long tail, read from their files as needed.

    inaturalist2018/train2018.json               which image is of which species
    inaturalist2018/val2018.json
    inaturalist2018/train_val2018/*/*/*.jpg      or wherever the lists say, below the same folder

The lists are those of the competition (images, annotations, categories). Trained as Kang et al.
(2020) do, and Zhao et al. (2022) with them: a ResNet-50, 200 epochs of batches of 512, SGD with
momentum 0.9, weight decay 1e-4, rate 0.2 and half a cosine; the warm-up is ours. Images are seen as
ImageNet's are. The competition's validation images, whose species are known, are the test split,
as in the papers; validation images are held out of the training images.

Beside the usual metrics the accuracies over the species with many, a medium number of and few
training images in the list are recorded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from losslab.errors import InputError
from losslab.experiment.task import Task
from losslab.experiment.tasks.images import imagenet
from losslab.experiment.tasks.images.large_images import (
    MiddleView,
    RandomView,
    Source,
)
from losslab.experiment.tasks.official import places
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.recipe import Recipe
from losslab.metrics.shots import shot_metrics

NAME = "inaturalist2018"
FOLDERS = (NAME, "iNaturalist2018", "inat2018")
LISTS = ("train2018.json", "val2018.json")
URL = "https://github.com/visipedia/inat_comp/tree/master/2018"
OFFICIAL = (437_513, 24_426)
SIZE = 224
VALIDATION_FRACTION = 1 / 100
MODELS = ("resnet50", *(name for name in imagenet.MODELS if name != "resnet50"))
RECIPE = Recipe(epochs=200, batch_size=512, lr=0.2, weight_decay=1e-4, nesterov=False)


def build_inaturalist(options: TaskOptions) -> Task:
    """iNaturalist 2018, or another set in its form."""
    refuse_unused(NAME, options, {"target": "the lists say what an image is"})
    tail = "its classes are a long tail already"
    refuse_unused(NAME, options, {"imbalance": tail, "class_counts": tail})
    model = choose_model(NAME, options, MODELS, timm=True)
    source = _find(options.data_dir)
    found = _read(source)
    classes, (_, targets), _ = found
    size = options.image_size or SIZE
    return imagenet.photo_task(
        NAME,
        source,
        found,
        options,
        model=model,
        recipe=RECIPE,
        views=(RandomView(size), MiddleView(size, round(size * 256 / 224))),
        fraction=VALIDATION_FRACTION,
        official=OFFICIAL,
        each_class=", at least one of each class",
        metrics=shot_metrics(np.bincount(targets, minlength=len(classes)).tolist()),
    )


def _find(data_dir: str | Path | None) -> Source:
    wanted = f"{NAME} is read from {' and '.join(LISTS)} and the images that they name ({URL})"
    looked = places(wanted, data_dir, FOLDERS)
    for place in looked:
        if all((place / name).is_file() for name in LISTS):
            return Source(place)
    raise InputError(f"{wanted}; not found. Looked in {', '.join(map(str, looked))}.")


def _read(
    source: Source,
) -> imagenet.Found:
    """Classes, and files with class numbers of the training and of the test images."""
    lists = [_list(source, name) for name in LISTS]
    categories = [{int(row["id"]): str(row["name"]) for row in found[2]} for found in lists]
    if categories[0] != categories[1]:
        raise InputError(
            f"{source.place}: expected the categories of {LISTS[0]} in {LISTS[1]}; they differ. "
            "They are not lists of one set."
        )
    numbers = {theirs: ours for ours, theirs in enumerate(sorted(categories[0]))}
    train, test = (
        _labelled(source, name, *found[:2], numbers)
        for name, found in zip(LISTS, lists, strict=True)
    )
    counts = np.bincount(train[1], minlength=len(numbers))
    if len(numbers) < 2 or counts.min() < 2:
        raise InputError(
            f"{source.place / LISTS[0]}: expected at least two categories with two images each; "
            f"got {len(numbers)}, of which {int((counts < 2).sum())} have fewer. "
            f"Download it again: {URL}."
        )
    return [categories[0][theirs] for theirs in numbers], train, test


def _list(source: Source, name: str) -> tuple[list[Any], list[Any], list[Any]]:
    """The images, annotations and categories of a list."""
    try:
        content = json.loads(source.read(name))
        return content["images"], content["annotations"], content["categories"]
    except (ValueError, KeyError, TypeError) as error:
        raise _other_form(source, name, error) from None


def _other_form(source: Source, name: str, error: Exception) -> InputError:
    return InputError(
        f"{source.place / name}: expected the competition's list (images, annotations with "
        f"category_id, categories); it is damaged, half downloaded or in another form "
        f"({type(error).__name__}: {error}). Download it again: {URL}."
    )


def _labelled(
    source: Source, name: str, images: list[Any], annotations: list[Any], numbers: dict[int, int]
) -> tuple[imagenet.Files, np.ndarray]:
    """The images of a list, in the order of their names, and their class numbers."""
    try:
        category = {row["image_id"]: numbers[row["category_id"]] for row in annotations}
        labelled = sorted((str(row["file_name"]), category[row["id"]]) for row in images)
    except (KeyError, TypeError) as error:
        raise _other_form(source, name, error) from None
    files, lacking = [], []
    for file, _ in labelled:
        path = source.place / file
        size = path.stat().st_size if path.is_file() else 0
        files.append((file, size))
        lacking += [file] if size == 0 else []
    if lacking:
        raise InputError(
            f"{source.place}: expected all {len(files)} images of {name}; {len(lacking)} are "
            f"missing or empty, such as {lacking[0]}. Unpack or download them again: {URL}."
        )
    return files, np.array([label for _, label in labelled], dtype=np.int64)

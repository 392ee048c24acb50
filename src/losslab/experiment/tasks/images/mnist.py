"""MNIST and Fashion-MNIST from their idx files, with a small CNN or the one of the first paper.

How the recipes were chosen: for plain cross_entropy, on the 5,000 validation images of
``split_seed=0``, one seed, last epoch; the test images had no say. The CNN hardly cares: rates
0.05 to 0.4 reach 99.4 % on MNIST, and 0.05 to 0.2 reach 92.0 % to 92.3 % on Fashion-MNIST; 0.1
lies in the middle. Five epochs keep a run to a minute or two on two cores; ask for more
``epochs`` to push accuracy. Ten epochs of the others: the MLP at 0.02 to 0.2 (best 0.1: 98.5 %,
90.1 %) and the linear model at 0.005 to 0.05 (0.02: 92.4 %, 85.9 %, within 0.2 of the best on
both).

``liu2016`` is not tuned here: model and recipe are those of table 1 of Zhao et al. (2022), read
from their code: SGD with plain momentum 0.9 and no weight decay, rate 0.1, a tenth of it from epoch
51 of 100 and again from epoch 65, batches of 256, no augmentation. It is made for a GPU.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import assemble
from losslab.experiment.tasks.images.idx import read_idx
from losslab.experiment.tasks.models import channel_statistics, cnn, liu2016, mlp, standardized
from losslab.experiment.tasks.official import check_labels, places
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.recipe import Recipe
from losslab.experiment.tasks.split import keep, stratified_split

VALIDATION_FRACTION = 1 / 12  # 5,000 of the 60,000 official training examples
SIDE = 28
FOLDERS = {
    "mnist": ("mnist", "MNIST/raw", "MNIST"),
    "fashion-mnist": ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
}
WHERE_TO_GET = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist",
}
CLASS_NAMES = {
    "mnist": tuple(str(c) for c in range(10)),
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
# Examples of each class in the official training set: tells the two apart whatever their folder.
TRAIN_COUNTS = {
    "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "fashion-mnist": [6000] * 10,
}
RECIPES = {
    "cnn": Recipe(epochs=5, batch_size=128, lr=0.1, weight_decay=5e-4),
    "mlp": Recipe(epochs=10, batch_size=128, lr=0.1, weight_decay=1e-4),
    "linear": Recipe(epochs=10, batch_size=128, lr=0.02, weight_decay=1e-4),
    "liu2016": Recipe(
        epochs=100, batch_size=256, lr=0.1, nesterov=False, milestones=(50 / 100, 64 / 100)
    ),
}


def build_mnist(name: str, options: TaskOptions) -> Task:
    """``mnist`` or ``fashion-mnist``: official test set, validation out of the training set."""
    refuse_unused(
        name,
        options,
        {"target": "its labels are known", "image_size": "its images are 28×28"},
    )
    model = choose_model(name, options, tuple(RECIPES))
    folder = _find(name, options.data_dir)
    images, labels = _read_pair(folder, "train")
    test = _read_pair(folder, "t10k")
    notes = _check_identity(name, folder, labels, test[1])
    fraction = options.validation_fraction or VALIDATION_FRACTION
    rest, validation = stratified_split(labels.numpy(), (fraction,), options.split_seed)
    train = rest[keep(labels.numpy()[rest], options.train_size, options.split_seed)]
    (mean,), (std,) = channel_statistics(images[train])
    return assemble(
        name=name,
        splits=[
            (images[train], labels[train]),
            (images[validation], labels[validation]),
            test,
        ],
        class_names=CLASS_NAMES[name],
        model_name=model,
        model=partial(make_model, model, mean, std),
        recipe=RECIPES[model].changed_by(options),
        facts={
            "source": f"{name} idx files",
            "split": {
                "rule": "official test set; validation stratified from the training set",
                "seed": options.split_seed,
            },
            "preprocessing": [
                "kept as uint8",
                f"first layer: (pixel - {mean:.3f}) / {std:.3f}, mean and deviation of the "
                "training pixels",
            ],
            "notes": notes,
        },
    )


def make_model(name: str, mean: float, std: float) -> nn.Module:
    """A fresh model of one of the `RECIPES` for 28×28 grey images."""
    return standardized([mean], [std], _body(name))


def _body(name: str) -> nn.Module:
    if name == "cnn":
        return cnn(1, SIDE, 10, widths=(16, 32, 64))
    if name == "liu2016":
        return liu2016(10)
    return mlp(SIDE * SIDE, 10, hidden=(256,) if name == "mlp" else ())


def _find(name: str, data_dir: str | Path | None) -> Path:
    """The folder with the training images: a sub-folder of the set's own name before any other."""
    wanted = (
        f"{name} is read from its four idx files (train-images-idx3-ubyte.gz and the like, "
        f"gzipped or not; {WHERE_TO_GET[name]})"
    )
    looked = places(wanted, data_dir, FOLDERS[name])
    for place in looked:
        if _file(place, "train", "images") is not None:
            return place
    raise InputError(
        f"{wanted}; no training images found. Looked in {', '.join(map(str, looked))}."
    )


def _file(folder: Path, part: str, kind: str) -> Path | None:
    stem = f"{part}-{kind}"
    ending = f"idx{3 if kind == 'images' else 1}-ubyte"
    for file in (f"{stem}-{ending}.gz", f"{stem}-{ending}", f"{stem}.{ending}"):
        if (folder / file).is_file():
            return folder / file
    return None


def _read_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    found = {kind: _file(folder, part, kind) for kind in ("images", "labels")}
    for kind, path in found.items():
        if path is None:
            digit = 3 if kind == "images" else 1
            raise InputError(
                f"{folder}: expected {part}-{kind}-idx{digit}-ubyte.gz (or without .gz) beside the "
                "other idx files; it is missing. Copy or download it."
            )
    assert found["images"] is not None and found["labels"] is not None
    images = read_idx(found["images"], dimensions=3)
    labels = read_idx(found["labels"], dimensions=1)
    if images.shape[1:] != (SIDE, SIDE):
        raise InputError(
            f"{found['images']}: expected images of {SIDE}×{SIDE} pixels; "
            f"got {images.shape[1]}×{images.shape[2]}. Is it another set's file?"
        )
    if len(images) != len(labels):
        raise InputError(
            f"{found['labels']}: expected one label an image; got {len(labels)} labels for "
            f"{len(images)} images. The two files do not belong together: download both again."
        )
    return images[:, None], labels.long()


def _check_identity(name: str, folder: Path, labels: Tensor, test_labels: Tensor) -> list[str]:
    """Refuse the other set's files; note it if these are not the official ones."""
    for part, values in (("train", labels), ("t10k", test_labels)):
        check_labels(f"{folder}, {part} labels", values, len(CLASS_NAMES[name]))
    counts = torch.bincount(labels, minlength=10).tolist()
    for other, official in TRAIN_COUNTS.items():
        if other != name and counts == official:
            raise InputError(
                f"{folder}: expected {name}; these are the files of {other}. "
                f"Use the task {other!r}, or another data_dir."
            )
    if counts != TRAIN_COUNTS[name] or len(test_labels) != 10_000:
        return [
            f"not the official {name}: {len(labels)} training and {len(test_labels)} test examples"
        ]
    return []

"""A folder of images, one sub-folder a class.

How the recipes were chosen: for plain cross_entropy, on the validation split of 3,000 CIFAR images
written out as PNG, 20 epochs, the test split having no say. CNN (one seed), rates 0.005 to 0.1 with
decay 5e-4: 70.3 % at 0.01, its neighbours within a point. MLP (two seeds), 0.005 to 0.05: 51.4 % at
0.02. Linear (two seeds), 0.001 to 0.02: 43.2 % at 0.001. A folder of another kind may want other
settings: pass ``lr`` and ``epochs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import assemble, counted
from losslab.experiment.tasks.images.augment import flip_and_shift
from losslab.experiment.tasks.models import cnn, mlp, standardized
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.recipe import Recipe
from losslab.experiment.tasks.split import (
    TEST_FRACTION,
    VALIDATION_FRACTION,
    keep,
    stratified_split,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIZE = 32
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
RECIPES = {
    "cnn": Recipe(epochs=20, batch_size=64, lr=0.01, weight_decay=5e-4),
    "mlp": Recipe(epochs=20, batch_size=64, lr=0.02, weight_decay=5e-4),
    "linear": Recipe(epochs=20, batch_size=64, lr=0.001, weight_decay=5e-4),
}


@dataclass(frozen=True)
class _Files:
    """Image files with their class numbers, and how many other files were passed over."""

    paths: list[Path]
    targets: np.ndarray
    passed_over: int


def build_images(folder: Path, options: TaskOptions) -> Task:
    """A task from ``CLASS/*`` (split by the seed) or from ``train/CLASS/*`` and ``test/CLASS/*``.

    Beside ``train`` and ``test`` there may be ``val`` or ``validation``; without it, validation
    examples are held out of ``train``. Images are turned to RGB and resized to a square, and kept
    as uint8. Training images are flipped and shifted at random.
    """
    refuse_unused(str(folder), options, {"target": "the sub-folders are the classes"})
    model = choose_model(str(folder), options, tuple(RECIPES))
    size = options.image_size or SIZE
    given = _given_splits(folder)
    class_names = _class_names(given.get("train", folder))
    if given:
        groups, rule = _from_given(given, class_names, options)
    else:
        groups, rule = _from_one(folder, class_names, options)
    splits = [
        (_load(group.paths, size), torch.as_tensor(group.targets, dtype=torch.int64))
        for group in groups
    ]
    mean, std = _mean_and_std(splits[0][0])
    return assemble(
        name=folder.resolve().name,
        splits=splits,
        class_names=class_names,
        model_name=model,
        model=partial(make_model, model, size, len(class_names), mean, std),
        augment=flip_and_shift,
        recipe=RECIPES[model].changed_by(options),
        facts=_facts(folder, groups, rule, size, options) | {"mean": mean, "std": std},
    )


def make_model(
    name: str, size: int, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> torch.nn.Module:
    """A fresh ``cnn``, ``mlp`` or ``linear`` for square RGB images."""
    if name == "cnn":
        return standardized(mean, std, cnn(3, size, num_classes, widths=(32, 64, 128)))
    hidden = (256,) if name == "mlp" else ()
    return standardized(mean, std, mlp(3 * size * size, num_classes, hidden))


def _facts(
    folder: Path, groups: Sequence[_Files], rule: str, size: int, options: TaskOptions
) -> dict[str, Any]:
    passed_over = max(group.passed_over for group in groups)
    notes = []
    if passed_over:
        notes.append(f"{counted(passed_over, 'file')} passed over: not an image by its ending")
    return {
        "source": f"image folder {folder.resolve().name}",
        "split": {"rule": rule, "seed": options.split_seed},
        "preprocessing": [
            f"RGB, resized to {size}×{size} (bilinear), kept as uint8",
            "first layer: standardised by the training images' mean and deviation of each channel",
        ],
        "notes": notes,
    }


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _given_splits(folder: Path) -> dict[str, Path]:
    """The sub-folders train, validation and test if the folder is laid out so, else nothing."""
    names = {
        "train": "train",
        "training": "train",
        "val": "validation",
        "valid": "validation",
        "validation": "validation",
        "test": "test",
    }
    found = {names[p.name.lower()]: p for p in _folders(folder) if p.name.lower() in names}
    if "train" not in found:
        return {}
    if "test" not in found:
        raise InputError(
            f"{folder}: has a train folder but no test folder. Add test/CLASS/*, or put all images "
            "into CLASS/* and let the split seed divide them."
        )
    return found


def _class_names(folder: Path) -> list[str]:
    names = [p.name for p in _folders(folder)]
    if len(names) < 2:
        raise InputError(
            f"{folder}: expected at least two sub-folders, one a class, with images in them; "
            f"got {len(names)}{f' ({names[0]})' if names else ''}."
        )
    return names


def _from_one(
    folder: Path, class_names: Sequence[str], options: TaskOptions
) -> tuple[list[_Files], str]:
    files = _list(folder, class_names)
    _need(folder, files, class_names, 3)
    fractions = (TEST_FRACTION, options.validation_fraction or VALIDATION_FRACTION)
    train, test, validation = stratified_split(files.targets, fractions, options.split_seed)
    train = train[keep(files.targets[train], options.train_size, options.split_seed)]
    return [_pick(files, part) for part in (train, validation, test)], "stratified"


def _from_given(
    given: dict[str, Path], class_names: Sequence[str], options: TaskOptions
) -> tuple[list[_Files], str]:
    train = _list(given["train"], class_names)
    test = _list(given["test"], class_names)
    rule = "the folder's own train, validation and test"
    if "validation" in given:
        if options.validation_fraction is not None:
            raise InputError(
                f"{given['validation']} is the validation split, so validation_fraction has no "
                "use; leave one of them out."
            )
        _need(given["train"], train, class_names, 1)
        validation = _list(given["validation"], class_names)
    else:
        _need(given["train"], train, class_names, 2)
        fraction = options.validation_fraction or VALIDATION_FRACTION
        rest, held_out = stratified_split(train.targets, (fraction,), options.split_seed)
        train, validation = _pick(train, rest), _pick(train, held_out)
        rule = "the folder's own train and test; validation stratified from train"
    train = _pick(train, keep(train.targets, options.train_size, options.split_seed))
    return [train, validation, test], rule


def _pick(files: _Files, index: np.ndarray) -> _Files:
    return _Files([files.paths[i] for i in index], files.targets[index], files.passed_over)


def _list(folder: Path, class_names: Sequence[str]) -> _Files:
    import numpy as np

    unknown = [p.name for p in _folders(folder) if p.name not in class_names]
    if unknown:
        raise InputError(
            f"{folder}: class {unknown[0]!r} is not among the training classes "
            f"({', '.join(class_names)}). Name the folders alike, or remove it."
        )
    paths: list[Path] = []
    targets: list[int] = []
    passed_over = 0
    for number, name in enumerate(class_names):
        files = sorted(p for p in (folder / name).rglob("*") if p.is_file())
        images = [p for p in files if p.suffix.lower() in ENDINGS and not p.name.startswith(".")]
        passed_over += len(files) - len(images)
        paths += images
        targets += [number] * len(images)
    return _Files(paths, np.array(targets, dtype=np.int64), passed_over)


def _need(folder: Path, files: _Files, class_names: Sequence[str], least: int) -> None:
    import numpy as np

    counts = np.bincount(files.targets, minlength=len(class_names))
    for name, count in zip(class_names, counts, strict=True):
        if count < least:
            raise InputError(
                f"{folder / name}: expected at least {counted(least, 'image')} "
                f"({'one a split' if least > 1 else 'to learn the class from'}); got {count}. "
                f"Known endings: {', '.join(sorted(ENDINGS))}."
            )


def _load(paths: Sequence[Path], size: int) -> Tensor:
    """The images as uint8 ``(images, 3, size, size)``."""
    images = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)
    for number, path in enumerate(paths):
        images[number] = _load_one(path, size)
    return images


def _load_one(path: Path, size: int) -> Tensor:
    import warnings

    import numpy as np
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image)
                square = to_rgb(upright).resize((size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow raises many kinds: OSError, SyntaxError, ValueError, …
        raise InputError(
            f"{path}: cannot be read as an image ({error}). It is damaged or no image: "
            "replace or remove it."
        ) from None
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any Pillow image; 16-bit grey keeps its upper 8 bits, which convert() would clip."""
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("its pixels are outside the 16-bit range")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, image by image to spare memory."""
    total = torch.zeros(3, dtype=torch.float64)
    squares = torch.zeros(3, dtype=torch.float64)
    for image in images:
        pixels = image.to(torch.float64)
        total += pixels.sum(dim=(1, 2))
        squares += (pixels**2).sum(dim=(1, 2))
    count = images.shape[0] * images.shape[2] * images.shape[3]
    mean = total / count
    std = (squares / count - mean**2).clamp(min=1.0).sqrt()
    return mean.tolist(), std.tolist()

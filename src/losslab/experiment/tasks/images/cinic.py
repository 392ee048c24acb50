"""CINIC-10 (Darlow et al. 2018): CIFAR-10's classes, with images of ImageNet beside CIFAR's.

Its 270,000 images come as PNG files in ``train``, ``valid`` and ``test``, 9,000 a class in each.
They are read from that folder or from the tar.gz, unpacked or not, and kept in memory (0.83 GB).

The settings are those of Battash et al.: 90 epochs, a tenth of the rate from epochs 30 and 60 on,
SGD with momentum 0.9, weight decay 1e-4, rate 0.1; batches, which they do not tell, of CIFAR's
size. They train on ``train`` and ``valid`` together, as with ``validation_fraction`` one does here
but for the share held out; without it the set's own validation split is used. Networks of more
than a million parameters get random rotations as well (``augment = ["crop-flip", "rotation"]``;
theirs have an angle that is not told, here ±15°). None of this was tuned here.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import assemble
from losslab.experiment.tasks.images.augment import chosen, crop_and_flip
from losslab.experiment.tasks.images.cifar import CLASS_NAMES, RECIPES, maker, recipe_of, three
from losslab.experiment.tasks.images.images import to_rgb
from losslab.experiment.tasks.models import channel_statistics
from losslab.experiment.tasks.official import places, whole
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.split import keep, stratified_split

SIDE = 32
SPLITS = ("train", "valid", "test")
NAMES = CLASS_NAMES["cifar10"]
FOLDERS = ("CINIC-10", "cinic10", "cinic-10")
ARCHIVES = ("CINIC-10.tar.gz", "cinic-10.tar.gz", "CINIC-10.tar", "cinic-10.tar")
WHERE_TO_GET = "https://datashare.ed.ac.uk/handle/10283/3192"
OFFICIAL_COUNT = 9000  # images of a class in each split
EPOCHS, STEPS = 90, (30, 60)

Images = dict[str, tuple[Tensor, Tensor]]


def build_cinic(options: TaskOptions) -> Task:
    """The task ``cinic10``: official splits, or ``train`` and ``valid`` together."""
    refuse_unused(
        "cinic10",
        options,
        {"target": "its labels are known", "image_size": "its images are 32×32"},
    )
    model = choose_model("cinic10", options, tuple(RECIPES), timm=True)
    place = _find(options.data_dir)
    read = _read(place)
    (train, labels), validation, rule = _divided(read, options)
    kept = keep(labels.numpy(), options.train_size, options.split_seed)
    train, labels = train[kept], labels[kept]
    means, deviations = channel_statistics(train)
    recipe = recipe_of(model)
    if recipe.milestones is not None:
        recipe = replace(recipe, milestones=tuple(step / EPOCHS for step in STEPS))
    return assemble(
        name="cinic10",
        splits=[(train, labels), validation, read["test"]],
        class_names=NAMES,
        model_name=model,
        model=maker(model, len(NAMES), means, deviations, options),
        recipe=recipe.changed_by(options),
        augment=chosen(options.augment, crop_and_flip),
        facts={
            "source": "CINIC-10 PNG files",
            "split": {"rule": rule, "seed": options.split_seed},
            "preprocessing": [
                "RGB, kept as uint8, in the order of the files' names within a class",
                f"first layer: (pixel - {three(means)}) / {three(deviations)}, mean and "
                "deviation of the training pixels of each channel",
            ],
            "notes": _notes(read),
        },
    )


def _divided(
    read: Images, options: TaskOptions
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], str]:
    """Training and validation examples, and by what rule."""
    if options.validation_fraction is None:
        return read["train"], read["valid"], "the set's own train, valid and test"
    images, labels = (torch.cat(parts) for parts in zip(read["train"], read["valid"], strict=True))
    fractions = (options.validation_fraction,)
    rest, held_out = stratified_split(labels.numpy(), fractions, options.split_seed)
    rule = "the set's own test; validation stratified from train and valid together"
    return (images[rest], labels[rest]), (images[held_out], labels[held_out]), rule


def _notes(read: Images) -> list[str]:
    counts = {
        split: torch.bincount(labels).unique().tolist() for split, (_, labels) in read.items()
    }
    if all(count == [OFFICIAL_COUNT] for count in counts.values()):
        return []
    sizes = ", ".join(f"{len(read[split][1])} {split}" for split in SPLITS)
    return [f"not the official cinic10: {sizes} images"]


def _find(data_dir: str | Path | None) -> Path:
    """The folder with train, valid and test, or the archive."""
    wanted = (
        f"cinic10 is read from {ARCHIVES[0]}, or from the folder with train, valid and test that "
        f"it unpacks to ({WHERE_TO_GET})"
    )
    looked = places(wanted, data_dir, FOLDERS)
    for place in looked:
        if all((place / split / NAMES[0]).is_dir() for split in SPLITS):
            return place
    for place in looked:
        for archive in ARCHIVES:
            if (place / archive).is_file():
                return place / archive
    raise InputError(f"{wanted}; not found. Looked in {', '.join(map(str, looked))}.")


@dataclass
class _Gathered:
    """Images of one split as they come."""

    pixels: bytearray = field(default_factory=bytearray)
    keys: list[tuple[int, str]] = field(default_factory=list)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """In the order of class and name, whatever the order in which they were read."""
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        images = torch.frombuffer(self.pixels, dtype=torch.uint8).reshape(-1, 3, SIDE, SIDE)
        return images[order], torch.tensor([self.keys[k][0] for k in order])


def _read(place: Path) -> Images:
    gathered = {split: _Gathered() for split in SPLITS}
    for path, content in _files(place):
        split, name = path.parts[-3:-1]
        if split in gathered and name in NAMES:
            gathered[split].pixels += decode(f"{place}: {path}", content)
            gathered[split].keys.append((NAMES.index(name), path.name))
    for split, found in gathered.items():
        present = {number for number, _ in found.keys}
        lacking = [name for number, name in enumerate(NAMES) if number not in present]
        if lacking:
            raise InputError(
                f"{place}: expected PNG images of ten classes in {split}; none of "
                f"{', '.join(lacking)}. Copy or download the whole of {ARCHIVES[0]} "
                f"({WHERE_TO_GET})."
            )
    return {split: found.tensors() for split, found in gathered.items()}


def _files(place: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Path and bytes of every PNG file in a folder or a tar archive."""
    with whole(place):
        if place.is_dir():
            for file in sorted(place.glob("*/*/*.png")):
                if not file.name.startswith("."):
                    yield PurePosixPath(*file.parts[-3:]), file.read_bytes()
            return
        with tarfile.open(place, "r|*") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                usable = path.suffix == ".png" and not path.name.startswith(".")
                stream = archive.extractfile(member) if usable and len(path.parts) > 2 else None
                if stream is not None:
                    yield path, stream.read()


def decode(where: str, content: bytes) -> bytes:
    """The 3 × 32 × 32 bytes of an image file."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(to_rgb(image))
    except Exception as error:  # Pillow raises many kinds: OSError, SyntaxError, ValueError, …
        raise InputError(
            f"{where}: cannot be read as an image ({error}). The file is damaged: copy or download "
            "it again."
        ) from None
    if pixels.shape != (SIDE, SIDE, 3):
        raise InputError(
            f"{where}: expected an image of 32×32 pixels; got {pixels.shape[1]}×{pixels.shape[0]}. "
            "Is it another set's file?"
        )
    return pixels.transpose(2, 0, 1).tobytes()

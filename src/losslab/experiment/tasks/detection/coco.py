"""COCO's images and boxes, or any other set in its form, from the folder or the zip files.

    coco/annotations/instances_train2017.json    or annotations_trainval2017.zip beside it
    coco/annotations/instances_val2017.json
    coco/train2017/*.jpg                         or images/train2017, or train2017.zip
    coco/val2017/*.jpg

The names after ``instances_`` may be others that begin with ``train`` and ``val``. Zip files are
read where they lie. Images are decoded when they are needed, brought to one size with their sides
in proportion, and filled up with black at the right or below; boxes follow them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from losslab.errors import InputError
from losslab.experiment.tasks.detection.boxes import Objects, anchor_targets
from losslab.experiment.tasks.images.large_images import Source
from losslab.experiment.tasks.official import places

FOLDERS = ("coco", "COCO", "coco2017")
URL = "https://cocodataset.org/#download"
_WANTED = (
    "coco is read from annotations/instances_train2017.json, annotations/instances_val2017.json, "
    f"train2017 and val2017, unpacked or as the zip files of {URL}"
)


@dataclass(frozen=True)
class Picture:
    """One image of an annotation file: its name, width, height, and objects in its own pixels."""

    name: str
    width: int
    height: int
    objects: Objects


@dataclass(frozen=True)
class Annotated:
    """The images of one annotation file, in order of their numbers, and where their files are."""

    where: str
    pictures: tuple[Picture, ...]
    class_names: tuple[str, ...]
    files: Files
    sha256: str


class Files:
    """Files by name, in a folder or in a zip file."""

    def __init__(self, place: Path) -> None:
        self.place, self.source = place, Source(place)
        if place.is_dir():
            names = [file.name for file in place.iterdir() if file.is_file()]
        else:
            names = self.source.members()
        self.names = {PurePosixPath(name).name: name for name in names}

    def read(self, name: str) -> bytes:
        """The bytes of a file, checked against the sum that a zip file has of them."""
        return self.source.read(self.names[name])


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged or half downloaded ({why}). Download it again: {URL}.")


def read_coco(data_dir: str | Path | None) -> tuple[Annotated, Annotated]:
    """The training and the validation images of a folder in COCO's form.

    Raises:
        InputError: If something is missing, damaged, or the two do not have the same classes.
    """
    looked = places(_WANTED, data_dir, FOLDERS)
    for root in looked:
        train, held_out = (_instances(root, kind) for kind in ("train", "val"))
        if train is not None and held_out is not None:
            parts = _annotated(root, *train), _annotated(root, *held_out)
            if parts[0].class_names != parts[1].class_names:
                raise InputError(
                    f"{parts[1].where}: expected the classes of {parts[0].where}; they differ. "
                    "They are not files of one set."
                )
            return parts
    raise InputError(f"{_WANTED}; not found in {', '.join(map(str, looked))}.")


def _instances(root: Path, kind: str) -> tuple[Files, str] | None:
    """The annotation file of ``train`` or ``val``; of several years the last."""
    holders = [root / "annotations", root, *sorted(root.glob("annotations*.zip"), reverse=True)]
    for holder in holders:
        if not holder.exists():
            continue
        files = Files(holder)
        names = [name for name in files.names if name.startswith(f"instances_{kind}")]
        if names := sorted(name for name in names if name.endswith(".json")):
            return files, names[-1]
    return None


def _annotated(root: Path, files: Files, name: str) -> Annotated:
    where = str(files.place / name)
    raw = files.read(name)
    try:
        content = json.loads(raw)
        names, numbers = _classes(content["categories"])
        objects = _objects(content["annotations"], numbers)
        pictures = [
            (
                int(image["id"]),
                Picture(
                    str(image["file_name"]),
                    int(image["width"]),
                    int(image["height"]),
                    objects.get(image["id"]) or _gathered([]),
                ),
            )
            for image in content["images"]
        ]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{where}: expected COCO's annotations (images, annotations with bbox, categories); "
            f"it is damaged, half downloaded or in another form ({type(error).__name__}: {error})."
        ) from None
    images = _images(root, name.removeprefix("instances_").removesuffix(".json"))
    ordered = tuple(picture for _, picture in sorted(pictures, key=lambda pair: pair[0]))
    missing = [picture.name for picture in ordered if picture.name not in images.names]
    if missing:
        raise InputError(
            f"{images.place}: expected all {len(ordered)} images of {where}; {len(missing)} are "
            f"missing, such as {missing[0]}. Unpack or download it again: {URL}."
        )
    return Annotated(where, ordered, names, images, hashlib.sha256(raw).hexdigest())


def _images(root: Path, name: str) -> Files:
    looked = [root / name, root / "images" / name, root / f"{name}.zip"]
    for place in looked:
        if place.exists():
            return Files(place)
    raise InputError(
        f"the images of instances_{name}.json were not found; looked in "
        f"{', '.join(map(str, looked))}. Download them: {URL}."
    )


def _classes(categories: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], dict[int, int]]:
    """The names in the order of COCO's numbers, which have gaps, and ours by theirs."""
    by_number = sorted((int(row["id"]), str(row["name"])) for row in categories)
    names = tuple(name for _, name in by_number)
    return names, {theirs: ours for ours, (theirs, _) in enumerate(by_number)}


def _objects(
    annotations: Sequence[Mapping[str, Any]], numbers: Mapping[int, int]
) -> dict[Any, Objects]:
    rows: dict[Any, list[tuple[list[float], int, bool]]] = {}
    for row in annotations:
        x, y, width, height = (float(number) for number in row["bbox"])
        if width > 0 and height > 0:  # a few of COCO's have no area
            box = [x, y, x + width, y + height]
            crowd = bool(row.get("iscrowd", 0))
            rows.setdefault(row["image_id"], []).append((box, numbers[row["category_id"]], crowd))
    return {image: _gathered(of_image) for image, of_image in rows.items()}


def _gathered(rows: Sequence[tuple[list[float], int, bool]]) -> Objects:
    return Objects(
        torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        torch.tensor([crowd for _, _, crowd in rows], dtype=torch.bool),
    )


class Pictures(Dataset[Any]):
    """Images at one size as ``(image uint8 (3, size, size), target (A, 5))``.

    Args:
        files: Where the images are.
        pictures: What they are.
        size: Side of the square that an image is brought to.
        anchors: ``(A, 4)``.
        mirrored: Mirror an image, with its boxes, every other time, by torch's global generator.
    """

    def __init__(
        self,
        files: Files,
        pictures: Sequence[Picture],
        size: int,
        anchors: Tensor,
        mirrored: bool = False,
    ) -> None:
        self.files, self.pictures, self.size = files, pictures, size
        self.anchors, self.mirrored = anchors, mirrored

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        mirrored = self.mirrored and float(torch.rand(())) < 0.5
        image = self.image(number)
        return image.flip(-1) if mirrored else image, self.target_of(number, mirrored)

    def target_of(self, number: int, mirrored: bool = False) -> Tensor:
        """``(A, 5)``, without a look at the image."""
        objects = self.objects(number)
        boxes = objects.boxes
        if mirrored:
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
            boxes = boxes + torch.tensor([self.size, 0, self.size, 0])
        one = ~objects.crowd  # a box round a crowd is no example of its class
        return anchor_targets(boxes[one], objects.labels[one], self.anchors)

    def objects(self, number: int) -> Objects:
        """What is in an image, crowds as well, in the pixels of the square."""
        picture = self.pictures[number]
        found = picture.objects
        return Objects(found.boxes * self._scale(picture), found.labels, found.crowd)

    def image(self, number: int) -> Tensor:
        import numpy as np
        from PIL import Image

        picture = self.pictures[number]
        place = self.files.place / picture.name
        try:
            with Image.open(io.BytesIO(self.files.read(picture.name))) as image:
                colours = image.convert("RGB")
        except InputError:
            raise
        except Exception as error:  # Pillow raises many kinds
            raise _damaged(place, str(error)) from None
        if colours.size != (picture.width, picture.height):
            raise InputError(
                f"{place}: expected {picture.width}×{picture.height} pixels, as its annotations "
                f"say; got {colours.width}×{colours.height}. They do not belong together."
            )
        scale = self._scale(picture)
        width, height = (max(1, round(side * scale)) for side in colours.size)
        small = colours.resize((width, height), Image.Resampling.BILINEAR)
        square = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
        square[:, :height, :width] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
        return square

    def _scale(self, picture: Picture) -> float:
        return self.size / max(picture.width, picture.height)


class Images:
    """The images of `Pictures` alone, by number."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __getitem__(self, number: int) -> Tensor:
        return self.pictures.image(number)

"""Photos of any size, decoded when they are needed: for sets that do not fit into memory.

The two views are those of PyTorch's ImageNet example, and draw and compute as torchvision's
RandomResizedCrop, RandomHorizontalFlip, Resize and CenterCrop do on Pillow's images, so that its
numbers are had without it. Random numbers are torch's global ones, which training sets anew before
each batch, so that all losses see the same crops.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from losslab.errors import InputError
from losslab.experiment.tasks.images.images import to_rgb

if TYPE_CHECKING:
    from PIL import Image

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
View = Callable[["Image.Image"], "Image.Image"]


class Source:
    """A folder or a zip file, whose files are read by their path in it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._zip: zipfile.ZipFile | None = None
        self._opened_by = 0

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            InputError: If it is missing, or its checksum in the zip file is wrong.
        """
        try:
            return self._archive().read(name) if self.is_zip else (self.place / name).read_bytes()
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(
                f"{self.place}: {name} cannot be read ({error}). Copy or download it again."
            ) from None

    @property
    def is_zip(self) -> bool:
        return self.place.suffix == ".zip"

    def members(self) -> list[str]:
        """The paths of all files of a zip file."""
        return [member.filename for member in self._archive().infolist() if not member.is_dir()]

    def files(self, under: str) -> list[tuple[str, int]]:
        """Name and size of every file below a folder, in the order of the names."""
        if self.is_zip:
            members = self._archive().infolist()
            return sorted(
                (member.filename, member.file_size)
                for member in members
                if member.filename.startswith(f"{under}/") and not member.is_dir()
            )
        found = (path for path in (self.place / under).rglob("*") if path.is_file())
        return sorted(
            (path.relative_to(self.place).as_posix(), path.stat().st_size) for path in found
        )

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._opened_by != os.getpid():  # a forked one would share a place
            try:
                self._zip, self._opened_by = zipfile.ZipFile(self.place), os.getpid()
            except (OSError, zipfile.BadZipFile) as error:
                raise InputError(
                    f"{self.place}: expected a complete zip file; it is damaged or cut short "
                    f"({error}). Download it again."
                ) from None
        return self._zip

    def __getstate__(self) -> dict[str, object]:
        return {"place": self.place, "_zip": None, "_opened_by": 0}  # an open file does not travel


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images uint8 ``(3, size, size)`` with their class numbers; ``targets`` has all of those."""

    def __init__(
        self, source: Source, files: Sequence[tuple[str, int]], targets: Sequence[int], view: View
    ) -> None:
        self.source, self.files, self.targets, self.view = source, files, list(targets), view

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        import numpy as np
        from PIL import Image

        name, _ = self.files[index]
        content = self.source.read(name)
        try:
            with Image.open(io.BytesIO(content)) as image:
                seen = self.view(to_rgb(image))
        except Exception as error:  # Pillow raises many kinds: OSError, SyntaxError, ValueError, …
            raise InputError(
                f"{self.source.place}: {name} cannot be read as an image ({error}). It is damaged: "
                "copy or download it again."
            ) from None
        return torch.from_numpy(np.array(seen)).permute(2, 0, 1), self.targets[index]


def fingerprint(*splits: ImageFiles) -> str:
    """sha256 over name, size and class of every file; their contents are not read for it."""
    digest = hashlib.sha256()
    for number, split in enumerate(splits):
        for (name, size), target in zip(split.files, split.targets, strict=True):
            digest.update(f"{number} {name} {size} {target}\n".encode())
    return digest.hexdigest()


class RandomView:
    """A random part of the image, 8 to 100 % of its area, resized to a square; mirrored or not."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        left, top, width, height = crop_box(*image.size)
        part = image.crop((left, top, left + width, top + height))
        part = part.resize((self.size, self.size), Image.Resampling.BILINEAR)
        mirrored = torch.rand(1).item() < 0.5
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part

    def __str__(self) -> str:
        return f"random resized crop to {self.size}×{self.size}, mirrored with probability 1/2"


def crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random part, as torchvision's RandomResizedCrop draws it."""
    least, greatest = torch.log(torch.tensor(RATIO)).tolist()
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(*SCALE).item()
        ratio = torch.exp(torch.empty(1).uniform_(least, greatest)).item()
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(torch.randint(0, height - tall + 1, (1,)))
            return int(torch.randint(0, width - wide + 1, (1,))), top, wide, tall
    wide, tall = width, height
    if width / height < RATIO[0]:
        tall = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    return (width - wide) // 2, (height - tall) // 2, wide, tall


class MiddleView:
    """The image with its shorter side resized, and a square out of its middle."""

    def __init__(self, size: int, shorter: int) -> None:
        self.size, self.shorter = size, shorter

    def __call__(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        width, height = image.size
        if width <= height:
            new = (self.shorter, int(self.shorter * height / width))
        else:
            new = (int(self.shorter * width / height), self.shorter)
        image = image.resize(new, Image.Resampling.BILINEAR) if new != image.size else image
        left, top = (round((side - self.size) / 2) for side in new)
        return image.crop((left, top, left + self.size, top + self.size))

    def __str__(self) -> str:
        cut = f", {self.size}×{self.size} out of the middle" if self.size < self.shorter else ""
        return f"shorter side resized to {self.shorter}{cut}"

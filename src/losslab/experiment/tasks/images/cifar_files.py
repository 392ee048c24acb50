"""Finds and reads CIFAR-10 and CIFAR-100 in every form they are passed around in.

The official python version (pickled batches) and binary version, each as a folder or as the tar.gz
it is downloaded as, which is read without unpacking; and sprites (see `cifar_sprites`). Whatever
the form, the examples come out in one order, that of the sha256 of label and pixels: the same
images make the same task, split and fingerprint, and any first thousand of them is a mixture of all
classes.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.experiment.tasks.images.cifar_pickle import read_batch
from losslab.experiment.tasks.images.cifar_sprites import SIDE, is_sprites, read_sprites
from losslab.experiment.tasks.official import check_labels, places, whole

PIXELS = 3 * SIDE * SIDE
WHERE_TO_GET = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Official:
    """One official version of a set: what its files are called and hold.

    Args:
        folder: Name of the folder when unpacked.
        archive: Name of the tar.gz.
        train: Its files of training examples.
        test: Its files of test examples.
        label_key: Of a pickled batch, where the labels are; None for the binary version.
        label_bytes: Bytes before the pixels of a binary record; the last one counts.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_key: str | None = None
    label_bytes: int = 0

    @property
    def files(self) -> tuple[str, ...]:
        return self.train + self.test


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEN_BINARY = tuple(f"{name}.bin" for name in _FIVE)
OFFICIAL = {
    "cifar10": (
        Official("cifar-10-batches-py", "cifar-10-python.tar.gz", _FIVE, ("test_batch",), "labels"),
        Official(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            _TEN_BINARY,
            ("test_batch.bin",),
            label_bytes=1,
        ),
    ),
    "cifar100": (
        Official(
            "cifar-100-python", "cifar-100-python.tar.gz", ("train",), ("test",), "fine_labels"
        ),
        Official(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            ("train.bin",),
            ("test.bin",),
            label_bytes=2,
        ),
    ),
}
FOLDERS = {"cifar10": ("cifar10", "cifar-10"), "cifar100": ("cifar100", "cifar-100")}


@dataclass(frozen=True)
class Examples:
    """Images uint8 ``(n, 3, 32, 32)``, labels, and a sha256 that knows nothing of their order."""

    images: Tensor
    labels: Tensor
    sha256: str


def read_cifar(
    name: str, data_dir: str | Path | None, class_names: tuple[str, ...]
) -> tuple[Examples, Examples]:
    """Training and test examples of ``cifar10`` or ``cifar100``, in the order of their hashes.

    Raises:
        InputError: If they are not found, or a file is missing, damaged or another set's.
    """
    place, version = _find(name, data_dir)
    read = _read_official(place, version) if version else read_sprites(place, class_names)
    for split, (_, labels) in read.items():
        check_labels(f"{place}, {split} labels", labels, len(class_names))
    return _in_order(*read["train"]), _in_order(*read["test"])


def _find(name: str, data_dir: str | Path | None) -> tuple[Path, Official | None]:
    """The folder or archive to read, and which official version it is; None for sprites."""
    versions = OFFICIAL[name]
    wanted = (
        f"{name} is read from {', '.join(v.archive for v in versions)}, unpacked or not "
        f"({WHERE_TO_GET}), or from sprites with a meta.json"
    )
    looked = places(wanted, data_dir, FOLDERS[name])
    for place in looked:
        if is_sprites(place):
            return place, None
        for version in versions:
            for folder in (place / version.folder, place):
                if any((folder / file).is_file() for file in version.files):
                    return folder, version
        for version in versions:
            if (place / version.archive).is_file():
                return place / version.archive, version
    raise InputError(f"{wanted}; none found. Looked in {', '.join(map(str, looked))}.")


def _read_official(place: Path, version: Official) -> dict[str, tuple[Tensor, Tensor]]:
    read: dict[str, tuple[Tensor, Tensor]] = {}
    for file, content in _contents(place, version.files):
        read[file] = _decode(f"{place / file}", content, version)
    missing = [file for file in version.files if file not in read]
    if missing:
        raise InputError(
            f"{place}: expected {', '.join(version.files)}; {', '.join(missing)} missing. "
            f"Copy or download the whole of {version.archive} ({WHERE_TO_GET})."
        )
    return {
        split: (torch.cat([read[f][0] for f in files]), torch.cat([read[f][1] for f in files]))
        for split, files in (("train", version.train), ("test", version.test))
    }


def _contents(place: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the wanted files in a folder or a tar archive."""
    with whole(place):
        if place.is_dir():
            for file in wanted:
                if (place / file).is_file():
                    yield file, (place / file).read_bytes()
            return
        with gzip.open(place) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
            for member in archive:
                file = PurePosixPath(member.name).name
                stream = archive.extractfile(member) if file in wanted else None
                if stream is not None:
                    yield file, stream.read()
            while packed.read(2**20):  # to the very end, where gzip's checksum is
                pass


def _decode(where: str, content: bytes, version: Official) -> tuple[Tensor, Tensor]:
    """Images and labels of one official file."""
    if version.label_key is not None:
        pixels, labels = read_batch(where, content, version.label_key)
        if pixels.shape != (len(labels), PIXELS):
            raise InputError(
                f"{where}: expected {PIXELS} values an image and one label an image; got "
                f"{pixels.shape[0]} × {pixels.shape[1]} values and {len(labels)} labels. "
                "The file is damaged: download it again."
            )
        targets = torch.tensor(labels, dtype=torch.int64)
    else:
        record = version.label_bytes + PIXELS
        if not content or len(content) % record:
            raise InputError(
                f"{where}: expected records of {record} bytes; got {len(content)} bytes, which is "
                f"{len(content) // record} records and {len(content) % record} bytes. "
                "The file is cut short or another one: download it again."
            )
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
        pixels = records[:, version.label_bytes :]
        targets = torch.from_numpy(records[:, version.label_bytes - 1].astype(np.int64))
    return torch.from_numpy(pixels.reshape(-1, 3, SIDE, SIDE).copy()), targets


def _in_order(images: Tensor, labels: Tensor) -> Examples:
    """The examples sorted by the sha256 of the record, label and pixels, and a hash of them all."""
    rows = images.reshape(len(images), -1).numpy()
    digests = [
        hashlib.sha256(bytes([label]) + row.tobytes()).digest()
        for label, row in zip(labels.tolist(), rows, strict=True)
    ]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    whole = hashlib.sha256(b"".join(digests[k] for k in order)).hexdigest()
    return Examples(images[order], labels[order], whole)

"""CIFAR as sprites: lossless images of many 32×32 tiles, with the labels beside them.

A folder holds ``meta.json`` (``sprites``: the files in order, named ``train_*`` and ``test_*``;
``train_sha256_uint8_NHWC`` and ``test_sha256_uint8_NHWC``: of all pixels, image by image, row by
row, RGB), ``classes.json`` (names in the order of the labels), ``train_labels.npy`` and
``test_labels.npy``. Tiles lie row by row; what is left over at the end of the last sprite is void.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from losslab.errors import InputError

SIDE = 32
SPLITS = ("train", "test")
AGAIN = "The file is damaged or cut short: copy it again."


def is_sprites(folder: Path) -> bool:
    """Whether the folder holds sprites."""
    return (folder / "meta.json").is_file()


def read_sprites(folder: Path, class_names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Images uint8 ``(n, 3, 32, 32)`` and labels of ``train`` and ``test``.

    Raises:
        InputError: If a file is missing or damaged, or the classes are other ones.
    """
    meta = _json(folder / "meta.json")
    names = _json(folder / "classes.json")
    if names != list(class_names):
        raise InputError(
            f"{folder / 'classes.json'}: expected the classes {', '.join(class_names[:3])}, … "
            f"({len(class_names)}); got {names!r:.80}. Is it another set's folder?"
        )
    files = meta.get("sprites") if isinstance(meta, dict) else None
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise InputError(f"{folder / 'meta.json'}: expected 'sprites', the list of image files.")
    return {split: _read_split(folder, split, meta) for split in SPLITS}


def _read_split(folder: Path, split: str, meta: dict[str, Any]) -> tuple[Tensor, Tensor]:
    labels = _labels(folder / f"{split}_labels.npy")
    paths = [folder / Path(file).name for file in meta["sprites"] if file.startswith(split)]
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        tiles = np.concatenate([np.empty((0, SIDE, SIDE, 3), np.uint8), *pool.map(_tiles, paths)])
    if len(tiles) < len(labels):
        raise InputError(
            f"{folder}: expected {len(labels)} {split} images, one a label in {split}_labels.npy; "
            f"the {len(paths)} {split} sprites of meta.json hold {len(tiles)}. Copy the folder "
            "again."
        )
    tiles = tiles[: len(labels)]
    expected = meta.get(f"{split}_sha256_uint8_NHWC")
    got = hashlib.sha256(tiles.data).hexdigest()
    if got != expected:
        raise InputError(
            f"{folder}: the pixels of the {split} sprites do not have the sha256 of meta.json "
            f"(expected {expected}, got {got}). A sprite is damaged or changed: copy the folder "
            "again."
        )
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(labels.astype(np.int64))


def _tiles(path: Path) -> np.ndarray:
    """The tiles of one sprite, uint8 ``(n, 32, 32, 3)``."""
    from PIL import Image

    if not path.is_file():
        raise InputError(f"{path}: this sprite of meta.json is missing. Copy it, too.")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds: OSError, SyntaxError, ValueError, …
        raise InputError(f"{path}: cannot be read as an image ({error}). {AGAIN}") from None
    height, width, _ = pixels.shape
    if height % SIDE or width % SIDE:
        raise InputError(
            f"{path}: expected whole tiles of {SIDE}×{SIDE} pixels; got an image of "
            f"{width}×{height}. It is another image: copy the sprite again."
        )
    grid = pixels.reshape(height // SIDE, SIDE, width // SIDE, SIDE, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3)


def _labels(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            labels = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: cannot be read as an array of labels ({error}). {AGAIN}"
        ) from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: expected one whole number an image; got {labels.dtype} of shape "
            f"{labels.shape}."
        )
    return labels


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}). {AGAIN}") from None

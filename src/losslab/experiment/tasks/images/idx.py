"""The idx format of MNIST and its kin, plain or gzipped.

A file is two zero bytes, a type code (8 = unsigned byte), the number of dimensions, one big-endian
32-bit size a dimension, and then the values, last dimension fastest
(http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from losslab.errors import InputError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor in an idx file.

    Raises:
        InputError: If the file is damaged, cut short, too long, or something else than unsigned
            bytes in ``dimensions`` dimensions.
    """
    content = _bytes(path)
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if content[:4] != magic:
        raise InputError(
            f"{path}: expected an idx file of unsigned bytes in {dimensions} dimensions, which "
            f"starts with {magic.hex(' ')}; got {content[:4].hex(' ') or 'an empty file'}. "
            "It is another file, or a web page saved under this name: download it again."
        )
    if len(content) < header:
        raise InputError(f"{path}: cut short inside its header. Download it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected, got = math.prod(shape), len(content) - header
    if expected != got:
        raise InputError(
            f"{path}: its header promises {expected} values {_by(shape)}, but it holds {got}. "
            f"The file is {'cut short' if got < expected else 'damaged'}: download it again."
        )
    if not expected:
        raise InputError(f"{path}: holds no values {_by(shape)}. Download it again.")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).reshape(shape)


def _bytes(path: Path) -> bytearray:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}: expected a complete gzip file; it is damaged or cut short ({error}). "
            "Download it again."
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    return bytearray(content)


def _by(shape: tuple[int, ...]) -> str:
    return f"({' × '.join(str(size) for size in shape)})"

"""What the files of MNIST, CIFAR and their kin are looked for by, and held to, alike."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from losslab.errors import InputError


def places(wanted: str, data_dir: str | Path | None, folders: Sequence[str]) -> list[Path]:
    """Where to look: the set's own sub-folders of ``data_dir``, and then that folder itself.

    Args:
        wanted: What is looked for and where to get it, for messages.
        data_dir: As the user gave it.
        folders: What the set's own folder may be called.

    Raises:
        InputError: If there is no such folder.
    """
    if data_dir is None:
        raise InputError(f"{wanted}; say with data_dir (--data-dir) in which folder they are.")
    root = Path(data_dir)
    if not root.is_dir():
        raise InputError(f"{wanted}; the data_dir {root} is not a folder.")
    return [*(root / folder for folder in folders), root]


@contextmanager
def whole(place: Path) -> Iterator[None]:
    """Read a folder or a tar archive inside; what is damaged or cut short is an `InputError`."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(
            f"{place}: expected a complete tar archive; it is damaged or cut short ({error}). "
            "Download it again."
        ) from None
    except OSError as error:  # also a bad gzip file
        raise InputError(
            f"{error.filename or place}: cannot be read ({error.strerror or error}). "
            "Download it again."
        ) from None


def check_labels(where: str, labels: Tensor, classes: int) -> None:
    """Raise `InputError` for a label that is none of the classes."""
    beyond = ((labels < 0) | (labels >= classes)).nonzero()[:, 0]
    if len(beyond):
        first = int(beyond[0])
        raise InputError(
            f"{where}: expected 0..{classes - 1}; got {int(labels[first])} at example {first}. "
            "Is it another set's file, or a damaged one?"
        )

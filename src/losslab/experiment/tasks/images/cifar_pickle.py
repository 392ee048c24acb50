"""Reads the pickled batches of CIFAR without being able to run anything.

A pickle is a program: it may name any function of any module and call it. This reader knows no
module. What it builds are numbers, text, lists, dictionaries, and stand-ins for the arrays of numpy
that only remember what they were given; a file that names anything else is refused before that is
looked up.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from losslab.errors import InputError

_BYTE_CODES = ("u1", "|u1", "uint8", "B")


class _Refused(Exception):
    """The file names what no batch of images needs."""


class _Inert:
    """A stand-in; a pickle can make it and hand it a state, and that is all."""

    __slots__ = ("given", "state")
    given: tuple[Any, ...]
    state: Any

    def __new__(cls, *given: Any) -> _Inert:
        made = super().__new__(cls)
        made.given, made.state = given, ()
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type(_Inert):
    """``numpy.dtype(code, …)``."""

    __slots__ = ()


class _Array(_Inert):
    """``numpy.ndarray``: made empty, then given (version, shape, dtype, Fortran order, bytes)."""

    __slots__ = ()


class _Buffered(_Inert):
    """``numpy.core.numeric._frombuffer(bytes, dtype, shape, order)``, of pickle protocol 5."""

    __slots__ = ()


class _Bytes(_Inert):
    """``_codecs.encode(text, "latin1")``: bytes, as Python 3 writes them in pickle protocol 2."""

    __slots__ = ()


_STAND_INS: dict[tuple[str, str], type[_Inert]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _Bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _Buffered


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _Refused(f"{module}.{name}")
        return _STAND_INS[module, name]


def read_batch(where: str, content: bytes, label_key: str) -> tuple[np.ndarray, list[int]]:
    """The ``data`` (uint8, two dimensions) and the labels of one pickled batch.

    Args:
        where: The file, for messages.
        content: Its bytes.
        label_key: ``"labels"``, or ``"fine_labels"`` in CIFAR-100.

    Raises:
        InputError: If it is no pickle, names anything but numpy's arrays, or holds something else.
    """
    try:
        return _fields(where, _Reader(io.BytesIO(content), encoding="bytes").load(), label_key)
    except InputError:
        raise
    except _Refused as refused:
        raise InputError(
            f"{where}: the pickle asks for {refused}, which a batch of images has no use for; "
            "nothing of it was run. Download the official file."
        ) from None
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise InputError(
            f"{where}: expected a pickled batch of images; it is damaged, cut short or another "
            f"file ({type(error).__name__}: {error}). Download it again."
        ) from None


def _fields(where: str, batch: Any, label_key: str) -> tuple[np.ndarray, list[int]]:
    if not isinstance(batch, dict):
        raise InputError(f"{where}: expected a pickled dictionary; got {type(batch).__name__}.")
    fields = {_text(key): value for key, value in batch.items()}
    missing = [key for key in ("data", label_key) if key not in fields]
    if missing:
        raise InputError(
            f"{where}: expected a batch with 'data' and {label_key!r}; it has "
            f"{', '.join(sorted(map(repr, fields)))}. Is it another set's file?"
        )
    labels = fields[label_key]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise InputError(f"{where}: expected {label_key!r} to be a list of whole numbers.")
    return _bytes_of(where, fields["data"]), labels


def _bytes_of(where: str, array: Any) -> np.ndarray:
    """The array that a stand-in remembers, if it is one of bytes in two dimensions."""
    shape, kind, fortran, raw = _parts(array)
    if isinstance(raw, _Bytes):
        raw = raw.given[0].encode("latin1")
    code = _text(kind.given[0]) if isinstance(kind, _Type) and kind.given else None
    usable = isinstance(raw, bytes | bytearray) and code in _BYTE_CODES and not fortran
    if not usable or not isinstance(shape, tuple) or len(shape) != 2:
        raise InputError(
            f"{where}: expected 'data' to be a numpy array of unsigned bytes in two dimensions."
        )
    if len(raw) != shape[0] * shape[1]:
        raise InputError(
            f"{where}: 'data' promises {shape[0]} × {shape[1]} values, but holds {len(raw)}. "
            "The file is damaged: download it again."
        )
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def _parts(array: Any) -> tuple[Any, Any, Any, Any]:
    """Shape, type, Fortran order and bytes, as the stand-in was given them; None where not."""
    if isinstance(array, _Array) and isinstance(array.state, tuple) and len(array.state) >= 4:
        return array.state[-4], array.state[-3], array.state[-2], array.state[-1]
    if isinstance(array, _Buffered) and len(array.given) == 4:
        raw, kind, shape, order = array.given
        return shape, kind, order != "C", raw
    return None, None, None, None


def _text(value: Any) -> Any:
    """Python 2's text arrives as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else value

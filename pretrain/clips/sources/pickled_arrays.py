"""Arrays of numbers out of a pickle, without running anything that it names.

Some data sets hold a dict of arrays in an ``npy`` file, which numpy reads by unpickling. Here the pickle is read by
:mod:`pretrain.clips.sources.pickles`' reader with one more thing that it may name: numpy's array, for which a class of this file stands,
and of which only shape, type and bytes are taken.
"""

import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from pretrain.clips.sources.pickles import ForbiddenError, PlainUnpickler

_NUMBERS = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])
_ORDERS = {"<": "<", ">": ">", "|": "|", "=": "="}


def load_array_dict(path: Path) -> dict[str, Any]:
    """The dict in an ``npy`` file of one object: its arrays as numpy's, beside plain values. Arrays of text or objects are lists.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such npy, damaged, or a pickle that names anything else; says what.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            value = _load(file)
    except ForbiddenError as error:
        raise ValueError(f"{path}: this pickle names {error}, which may run any code; it is not read") from None
    # What a damaged pickle raises is not bounded by its documentation, which lists these.
    except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError, MemoryError, OverflowError,
            TypeError, ValueError, struct.error) as error:  # fmt: skip
        raise ValueError(f"{path}: not a whole npy of a dict ({type(error).__name__}: {error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, expected a dict")
    return value


def _load(file: BinaryIO) -> Any:
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
    shape, _, dtype = read_header(file)
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"an array {shape} of {dtype}, expected one object")
    stored = _settled(_ArrayUnpickler(file).load())
    return stored[0] if isinstance(stored, list) and len(stored) == 1 else stored


class _Dtype:
    """Stands for numpy's dtype: remembers its name and byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in _NUMBERS and name[:1] not in ("O", "U", "S"):
            raise ForbiddenError(f"the numpy type {name!r:.40}")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _ORDERS[state[1]]


class _Array:
    """Stands for numpy's array: remembers what its pickle says of it."""

    value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise TypeError("an array without a type")
        if isinstance(data, list):
            self.value = data
        elif dtype.name in _NUMBERS:
            if not isinstance(data, bytes):
                raise TypeError(f"the data of an array is a {type(data).__name__}")
            flat = np.frombuffer(data, np.dtype(dtype.order + dtype.name))
            self.value = flat.reshape(shape, order="F" if is_fortran else "C").copy()
        else:
            self.value = []


def _reconstruct(*_: Any) -> _Array:
    return _Array()


class _ArrayType:
    """Stands for numpy's array type where it is only named."""


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(data, np.dtype(dtype.order + dtype.name))[0].item()


_MORE: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _ArrayType,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}


class _ArrayUnpickler(PlainUnpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        allowed = _MORE.get((module_name, global_name))
        return super().find_class(module_name, global_name) if allowed is None else allowed


def _settled(value: Any) -> Any:
    """Stand-ins replaced by what they hold, through lists, tuples and dicts."""
    if isinstance(value, _Array):
        return _settled(value.value) if isinstance(value.value, list) else value.value
    if isinstance(value, dict):
        return {key: _settled(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_settled(one) for one in value)
    return value

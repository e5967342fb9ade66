"""Reading a pickle of plain values without running anything that it names.

A pickle is a program: it may name any function of any package and call it. This reader looks up no name at all, but four that
numpy's floats and old bytes need, and these lead to functions of this file. Everything else is refused by name.
"""

import pickle
import struct
from pathlib import Path
from typing import Any

_BYTE_ORDERS = {"<": "<", ">": ">", "=": "=", "|": "="}
_FORMATS = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
            "u8": "Q", "b1": "?"}  # fmt: skip


def load_plain(path: Path) -> Any:
    """Lists, tuples, dicts, sets, text, bytes, numbers, None and numpy's numbers (as Python's own) from a pickle.

    Text that is not UTF-8 keeps its bytes as lone surrogates, where the pickle's protocol allows that.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty or damaged file, or one that names anything else; says what.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotations={path}: no such file; give the annotation file of the data set")
    if path.stat().st_size == 0:
        raise ValueError(f"annotations={path}: the file is empty (0 bytes); download it again")
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file, encoding="utf-8", errors="surrogateescape").load()
    except ForbiddenError as error:
        raise ValueError(
            f"annotations={path}: this pickle names {error}, which may run any code; expected only lists, tuples, texts and "
            'numbers. Convert it where you trust it, to a line of JSON an entry: [video_uid, start_s, end_s, "narration"], '
            "and give annotations=FILE.jsonl"
        ) from None
    # What a damaged pickle raises is not bounded by its documentation, which lists these.
    except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, KeyError, MemoryError, OverflowError,
            TypeError, ValueError, struct.error) as error:  # fmt: skip
        raise ValueError(
            f"annotations={path}: not a whole pickle ({type(error).__name__}: {error}); download it again"
        ) from None


class ForbiddenError(Exception):
    """A name that a pickle must not use."""


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise ForbiddenError(f"{module_name}.{global_name}") from None

    def persistent_load(self, pid: Any, /) -> Any:
        raise ForbiddenError(f"the outside object {pid!r:.40}")


class _Dtype:
    """Stands for numpy's dtype of a number: remembers its name and byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in _FORMATS:
            raise ForbiddenError(f"the numpy type {name!r:.40}")
        self.name = name
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _BYTE_ORDERS[state[1]]


def _number(dtype: _Dtype, data: bytes) -> float | int | bool:
    """Stands for numpy's function that makes a scalar from its bytes."""
    return struct.unpack(dtype.order + _FORMATS[dtype.name], data)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Stands for the function by which protocols 0 to 2 write bytes."""
    if encoding != "latin1":
        raise ForbiddenError(f"the encoding {encoding!r:.40}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("_codecs", "encode"): _encode,
}

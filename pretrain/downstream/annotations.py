"""Reading the annotation files of benchmarks: one clear error for a broken file, and nothing in them is ever executed."""

import csv
import io
import json
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64


def find_file(directory: Path, names: Sequence[str], what: str) -> Path:
    """The first of `names` in the directory or below it.

    Raises:
        FileNotFoundError: none is there; the message lists them.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"data={directory}: no such directory; it should hold {names[0]}, {what}")
    for name in names:
        found = [directory / name] if (directory / name).is_file() else sorted(directory.rglob(name))
        if found:
            return found[0]
    raise FileNotFoundError(f"data={directory}: {' or '.join(names)} is not there ({what})")


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte-order mark.

    Raises:
        ValueError: empty, or not UTF-8 (naming the place).
    """
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path} is empty ({len(data)} bytes): download or copy it again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; convert the file"
        ) from None


def read_json(path: Path, kind: type) -> Any:
    """A JSON document of the given top level (dict or list).

    Raises:
        ValueError: not JSON, another top level, or a key that is there twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{path}: key {twice!r} is there twice in one object; which one is right?")
        return document

    text = read_text(path)
    try:
        document = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}); download or copy it again") from None
    if not isinstance(document, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__} on top, found {type(document).__name__}")
    return document


def read_csv(path: Path, columns: Sequence[str], *, key: str | None = None) -> list[dict[str, str]]:
    """The rows of a comma-separated file with a header.

    Args:
        columns: must be there; more may be.
        key: a column whose values must differ.

    Raises:
        ValueError: a missing column, a row of another length, a key that is there twice; names the line.
    """
    reader = csv.DictReader(io.StringIO(read_text(path)))
    if absent := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise ValueError(f"{path}: column {', '.join(absent)} missing; the header is {reader.fieldnames}")
    rows: list[dict[str, str]] = []
    lines: dict[str, int] = {}
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} columns")
        if key is not None:
            if row[key] in lines:
                raise ValueError(
                    f"{path}: {key} {row[key]!r} is there twice, lines {lines[row[key]]} and {reader.line_num}"
                )
            lines[row[key]] = reader.line_num
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has a header but no rows")
    return rows


@contextmanager
def reading(path: Path, where: str) -> Iterator[None]:
    """Says which entry of which file lacks a field or has a bad one."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: {where}: field {error.args[0]!r} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {where}: {error}") from None


def seconds(text: str) -> float:
    """ "HH:MM:SS.xx" to seconds."""
    hours, minutes, rest = text.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def number(value: Any) -> float:
    """A finite float, also from a string."""
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"{value!r} is not a finite number")
    return result


# ------------------------------------------------------------------------------------------------------------- matrices

# All that a pickled array of floats refers to, under the module names of numpy 1 and 2.
_ARRAY_PARTS: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy.core.numeric", "_frombuffer"): np.core.numeric._frombuffer,
    ("numpy._core.numeric", "_frombuffer"): np.core.numeric._frombuffer,
}


def _latin_bytes(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` does in pickles of protocol 2: bytes written as latin-1 text. Any other use is refused."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes as {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Admits a numpy array of numbers and nothing else: no other name of any module is ever looked up."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) == ("_codecs", "encode"):
            return _latin_bytes
        try:
            return _ARRAY_PARTS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside the file")


def read_matrix(path: Path) -> Float64[np.ndarray, "n m"]:
    """A float matrix from .npy, .npz (its only array) or a .pkl that holds a numpy array and nothing else.

    Raises:
        ValueError: anything else: another object in the pickle, other dimensions, numbers that are not finite.
    """
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{path} is empty (0 bytes): download or copy it again")
    try:
        if path.suffix == ".pkl":
            matrix = _ArrayUnpickler(io.BytesIO(data)).load()
        else:
            loaded = np.load(io.BytesIO(data), allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                if len(loaded.files) != 1:
                    raise ValueError(f"it holds the arrays {', '.join(loaded.files)}, expected one")
                loaded = loaded[loaded.files[0]]
            matrix = loaded
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: {error}; only a numpy array of floats is read from a pickle. Convert it where you trust it: "
            "numpy.savez(file, relevancy=array)"
        ) from None
    except (
        ValueError,
        EOFError,
        IndexError,
        TypeError,
        AttributeError,
        KeyError,
        zipfile.BadZipFile,
        OSError,
    ) as error:
        raise ValueError(f"{path} is not a whole array file ({error})") from None
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind != "f" or matrix.ndim != 2:
        kind = f"{matrix.dtype}{list(matrix.shape)}" if isinstance(matrix, np.ndarray) else type(matrix).__name__
        raise ValueError(f"{path}: expected a matrix of floats, found {kind}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{path}: holds numbers that are not finite")
    return matrix.astype(np.float64)

"""Numbers in the text files of recordings: one matrix a file, or a table with a tick a line."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from pretrain.clips.sources.recording import FILE_DAMAGED, FILE_MISSING
from pretrain.clips.sources.resample import RecordingError

# A table in which more of the lines are damaged is damaged itself.
_MAX_DAMAGED_SHARE = 0.01


def read_text(path: Path) -> str:
    """A text file of a recording.

    Raises:
        RecordingError: missing, or not text.
    """
    try:
        return path.read_text("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise RecordingError(FILE_MISSING, f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise RecordingError(FILE_DAMAGED, f"{path}: {error}") from None


def read_numbers(path: Path, count: int, *, at_least: bool = False) -> Float64[np.ndarray, " count"]:
    """All numbers of a text file, parted by white space or commas; NaN may be among them.

    Raises:
        RecordingError: missing, not numbers, or another count.
    """
    cells = read_text(path).replace(",", " ").split()
    try:
        numbers = np.asarray([float(cell) for cell in cells])
    except ValueError as error:
        raise RecordingError(FILE_DAMAGED, f"{path}: {error}") from None
    if len(numbers) < count or (len(numbers) > count and not at_least):
        raise RecordingError(FILE_DAMAGED, f"{path}: {len(numbers)} numbers, expected {count}")
    return numbers


def read_ticked_table(
    path: Path, columns: int, *, optional: int = 0
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, "n columns"], int]:
    """A table parted by tabs whose second column is a whole number too large for a float.

    A damaged line (too short, not numbers, a tick that is not after the one before) is left out, as if its sample had not been
    taken; how long a gap may be is decided where clips are cut.

    Args:
        columns: those after the second that every line must have.
        optional: those after these that it may have; NaN where it has not. What follows is not read.

    Returns:
        The second column, strictly increasing; the columns after it; how many lines were damaged.

    Raises:
        RecordingError: missing, empty, or more than a hundredth of the lines (and more than one) damaged.
    """
    ticks: list[int] = []
    rows: list[list[float]] = []
    damaged = 0
    for line in read_text(path).splitlines():
        cells = line.split("\t")
        if not line.strip():
            continue
        try:
            tick, row = int(cells[1]), [float(cell) for cell in cells[2 : 2 + columns + optional]]
            if len(row) < columns or (ticks and tick <= ticks[-1]):
                raise ValueError
        except (ValueError, IndexError):
            damaged += 1
            continue
        ticks.append(tick)
        rows.append(row + [float("nan")] * (columns + optional - len(row)))
    if not ticks or damaged > max(1, _MAX_DAMAGED_SHARE * (damaged + len(ticks))):
        raise RecordingError(FILE_DAMAGED, f"{path}: {damaged} of {damaged + len(ticks)} lines damaged")
    return np.asarray(ticks, np.int64), np.asarray(rows, np.float64), damaged


def load_array(path: Path, *, name: str = "") -> Float64[np.ndarray, "..."]:
    """The array of an ``npy``, or that of ``name`` in an ``npz``. Nothing is unpickled.

    Raises:
        RecordingError: missing, damaged, not numbers, or no array of that name.
    """
    if not path.is_file():
        raise RecordingError(FILE_MISSING, f"{path}: no such file")
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if name:
            with loaded as arrays:
                loaded = arrays[name]
        return np.asarray(loaded, np.float64)
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise RecordingError(FILE_DAMAGED, f"{path}: {type(error).__name__}: {error}") from None

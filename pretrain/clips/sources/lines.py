"""Annotation files as text: opened as UTF-8, a damaged line is one line lost and not the file."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.clips.sources.request import LINE_DAMAGED, LineError, check_text


def check_text_file(path: Path, setting: str = "annotations") -> None:
    """Looks at the start of an annotation file, which the user gave as ``setting``.

    Raises:
        FileNotFoundError: it is missing, or is a directory.
        ValueError: 0 bytes, or not UTF-8 text at all (UTF-16, an archive, a pickle).
    """
    if not path.is_file():
        state = "is a directory" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{setting}={path}: {state}; give the file of the data set")
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if not start.strip():
        raise ValueError(f"{setting}={path}: the file is empty ({path.stat().st_size} bytes); download it again")
    # A multi-byte character may be cut at the end of what was read.
    n_bad = sum("\ud800" <= character <= "\udfff" for character in start.decode("utf-8", "surrogateescape"))
    if b"\0" in start or n_bad > 0.2 * len(start):
        raise ValueError(
            f"{setting}={path}: not UTF-8 text (it starts with {start[:8]!r}); expected the data set's own file, "
            "unpacked, in UTF-8"
        )


def read_text(path: Path) -> str:
    """A whole text file; bytes that are no UTF-8 become lone surrogates."""
    check_text_file(path)
    return path.read_bytes().decode("utf-8-sig", "surrogateescape")


def read_rows(
    path: Path, columns: Sequence[str], delimiter: str, setting: str = "annotations"
) -> Iterator[tuple[int, dict[str, str] | LineError]]:
    """The lines of a table below its header, each with its number in the file (the first line is 1).

    Args:
        columns: those that the header must have, in any order; others may stand beside them.

    Raises:
        ValueError: no text, or another header.
    """
    check_text_file(path, setting)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        header = next(csv.reader([file.readline()], delimiter=delimiter))
        header = [name.strip() for name in header]
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(
                f"{setting}={path}: its header has no {', '.join(missing)}; it has {', '.join(header)[:200]!r}, "
                f"expected {', '.join(columns)} parted by {'tabs' if delimiter == chr(9) else repr(delimiter)}"
            )
        for number, line in enumerate(file, start=2):
            if line.strip():
                yield number, _parse_line(line, header, delimiter)


def _parse_line(line: str, header: list[str], delimiter: str) -> dict[str, str] | LineError:
    # Line by line: a quote that is never closed costs its own line and does not swallow those after it.
    try:
        check_text(line)
        cells = next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter))
    except LineError as error:
        return error
    except (csv.Error, StopIteration) as error:
        return LineError(LINE_DAMAGED, str(error))
    if len(cells) != len(header):
        return LineError(LINE_DAMAGED, f"{len(cells)} cells, the header has {len(header)}")
    return dict(zip(header, cells, strict=True))

"""Which recordings belong to the part of a data set that was asked, and how they are found on disk."""

from collections.abc import Sequence
from pathlib import Path

# What split= may be; "all" is all recordings that lie there.
SPLITS = ("train", "val", "test", "all")


def checked_split(split: str, source: str, has: Sequence[str]) -> str:
    """The split that was asked of a data set that ``has`` some.

    Raises:
        ValueError: not a split, or none of this data set.
    """
    offered = [name for name in SPLITS if name in has or name == "all"]
    if split not in offered:
        raise ValueError(f"split={split}: {source} has {', '.join(offered)}")
    return split


def checked_root(root: Path, source: str, has: str) -> None:
    """Raises FileNotFoundError in one line if ``root`` is no directory; ``has`` says what should be in it."""
    if not root.is_dir():
        raise FileNotFoundError(f"root={root}: no such directory; give that of {source}, which has {has}")


def nothing_found(root: Path, source: str, has: str) -> ValueError:
    """The error for a directory in which no recording lies."""
    return ValueError(f"root={root}: no recording of {source} in it; expected {has}")


def numbered_files(directory: Path, suffixes: Sequence[str]) -> dict[int, Path]:
    """Files named by a number, by number in order; an empty dict if there is no such directory."""
    if not directory.is_dir():
        return {}
    files = {
        int(path.stem): path
        for path in directory.iterdir()
        if path.suffix.lower() in suffixes and path.stem.isascii() and path.stem.isdigit()
    }
    return dict(sorted(files.items()))

"""Where the videos of Ego4D lie: whole, or cut into chunks as LaViLa (300 s) and AVION (15 s) do."""

import itertools
from pathlib import Path

from pretrain.clips.sources.request import VideoPart, chunked_parts


class ChunkedVideos:
    """Finds the files of a recording: ``<uid>.mp4/<chunk start>.mp4``, or the whole ``<uid>.mp4``.

    Args:
        root: directory of the videos.
        chunk_s: length of the chunks; 0 = look at the names of the first recording that has two chunks or more.

    Raises:
        ValueError: when a recording is asked that has chunks and their length cannot be told.
    """

    def __init__(self, root: Path, chunk_s: float) -> None:
        self._root = root
        self._chunk_s = chunk_s
        self._is_chunked: dict[str, bool] = {}

    def parts(self, uid: str, start_s: float, end_s: float) -> tuple[VideoPart, ...]:
        """The files that hold a clip. Whether they exist is seen when they are read."""
        if uid not in self._is_chunked:
            self._is_chunked[uid] = (self._root / f"{uid}.mp4").is_dir()
        if not self._is_chunked[uid]:
            return (VideoPart(path=f"{uid}.mp4"),)
        if not self._chunk_s:
            self._chunk_s = self._find_chunk_s()
        return chunked_parts(uid, start_s, end_s, self._chunk_s)

    def _find_chunk_s(self) -> float:
        for directory in sorted(self._root.glob("*.mp4/")):
            starts = sorted(int(path.stem) for path in directory.glob("*.mp4") if path.stem.isdigit())
            if len(starts) > 1:
                # A chunk may be missing, so the smallest gap of all.
                return float(min(after - before for before, after in itertools.pairwise(starts)))
        raise ValueError(
            f"videos={self._root}: the videos are cut into chunks, but no recording has two, so their length cannot be "
            "told; give chunk_s=300 (LaViLa) or chunk_s=15 (AVION)"
        )

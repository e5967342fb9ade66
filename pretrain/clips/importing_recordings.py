"""Data sets of recordings (video with camera, gaze or depth) as clips: the part of ``egoarm clips import`` that cuts them.

First a table: each recording is opened once, which says how many clips it gives, so that a clip has an index. Then each clip is made
from its index alone, in any process: the recording is opened again where the last one that this process opened was another.
"""

import hashlib
import json
import multiprocessing
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pretrain.clips.schema import Clip
from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import CutOptions, Recording, count_clips, cut_clip, too_short
from pretrain.clips.sources.request import ID_DUPLICATE, make_key
from pretrain.clips.sources.table import RECORDINGS
from pretrain.workers import start_worker

# Fewer are counted sooner than processes start.
_MANY_RECORDINGS = 64


@dataclass(frozen=True)
class RecordingRow:
    """One recording in the table.

    Attributes:
        name: see ``Recording.name``; empty if what is listed is none.
        clips: how many it gives; one that cannot be used takes one place too, for its reason.
        skipped: why it gives none.
    """

    name: str
    clips: int
    skipped: Skipped | None = None


@dataclass(frozen=True)
class CutRecording:
    """Makes the clip of an index. A pure function of it, for :func:`pretrain.clips.build.build_store`.

    Attributes:
        source: a key of ``RECORDINGS``.
        root: directory of the data set.
        options: settings of the source.
        cut: how clips are cut.
        rows: the table.
    """

    source: str
    root: Path
    options: SourceOptions
    cut: CutOptions
    rows: tuple[RecordingRow, ...]

    @classmethod
    def of(cls, source: str, root: Path, options: SourceOptions, cut: CutOptions, workers: int) -> "CutRecording":
        """Makes the table.

        Args:
            workers: processes that open recordings; 0 = one a core. Does not change the table.

        Raises:
            FileNotFoundError, ValueError: ``root`` is not this data set, or has not that split; in one line.
        """
        # The same whatever a caller's subclass adds.
        options = SourceOptions(**{one.name: getattr(options, one.name) for one in fields(SourceOptions)})
        listed = _without_doubles(RECORDINGS[source].list_names(root, options))
        return cls(source, root, options, cut, tuple(_count(listed, source, root, options, cut.clip_s, workers)))

    def __len__(self) -> int:
        return sum(row.clips for row in self.rows)

    def __call__(self, index: int) -> Clip | Skipped:
        ends = list(accumulate(row.clips for row in self.rows))
        place = bisect_right(ends, index)
        row = self.rows[place]
        if row.skipped is not None:
            return row.skipped
        recording = _open(self.source, self.root, row.name, self.options)
        if isinstance(recording, Skipped):
            return recording
        return cut_clip(recording, index - (ends[place] - row.clips), self.cut)

    def settings(self) -> dict[str, Any]:
        """What decides the content of the clips, for the manifest: the table by its hash, for it gives each clip its index."""
        table = json.dumps([asdict(row) for row in self.rows], sort_keys=True).encode()
        source = {name: getattr(self.options, name) for name in ("split", "rectify_fov_deg")}
        return {"recordings_sha256": hashlib.sha256(table).hexdigest(), **source, **asdict(self.cut)}


def _without_doubles(listed: Iterable[str | Skipped]) -> Iterator[str | Skipped]:
    """The second of two names that would give the same keys gives its reason instead."""
    seen: set[str] = set()
    for name in listed:
        if isinstance(name, str):
            if make_key(name) in seen:
                detail = "a recording of that name was there before"
                name = Skipped(key=make_key(name), source=name, reason=ID_DUPLICATE, detail=detail)
            else:
                seen.add(make_key(name))
        yield name


def _count(
    listed: Iterable[str | Skipped], source: str, root: Path, options: SourceOptions, clip_s: float, workers: int
) -> list[RecordingRow]:
    tasks = [(one, source, root, options, clip_s) for one in listed]
    workers = min(workers or len(os.sched_getaffinity(0)), len(tasks) // _MANY_RECORDINGS + 1)
    with _mapped(workers) as mapped:
        rows = mapped(_row, tasks)
        return list(tqdm(rows, desc="recordings", total=len(tasks), unit="recording", disable=None, leave=False))


@contextmanager
def _mapped(workers: int) -> Iterator[Any]:
    """``map`` in this process, or over some."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as executor:
        yield lambda function, tasks: executor.map(function, tasks, chunksize=8)


def _row(task: tuple[str | Skipped, str, Path, SourceOptions, float]) -> RecordingRow:
    name, source, root, options, clip_s = task
    if isinstance(name, Skipped):
        return RecordingRow("", 1, name)
    recording = RECORDINGS[source].open(root, name, options)
    if isinstance(recording, Skipped):
        return RecordingRow(name, 1, recording)
    clips = count_clips(recording, clip_s)
    return RecordingRow(name, clips) if clips else RecordingRow(name, 1, too_short(recording, clip_s))


# The clips of a shard follow each other.
@lru_cache(maxsize=1)
def _open(source: str, root: Path, name: str, options: SourceOptions) -> Recording | Skipped:
    return RECORDINGS[source].open(root, name, options)

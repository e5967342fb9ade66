"""Pieces of video that benchmarks ask about, read from a clip store or from video files.

Axes: T frames of a segment, H W pixels.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from pretrain.clips.dataset import choose_crop, crop_video, cut, resize_maps
from pretrain.clips.store import ClipStore, open_store
from pretrain.clips.video import probe_video, read_frames

# Joins the keys of clips that are shown one after the other as one video; no key holds it.
JOIN = "+"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")


@dataclass(frozen=True, order=True)
class Segment:
    """A piece of a video, in seconds from its start; `end_s` infinite = to the end of the video."""

    video: str
    start_s: float = 0.0
    end_s: float = math.inf

    def __str__(self) -> str:
        return f"{self.video} {self.start_s:.6f} {self.end_s:.6f}"


def frame_times(start_s: float, end_s: float, frames: int) -> Float64[np.ndarray, " T"]:
    """The middles of `frames` equal parts of a piece of video, which is also what validation of training looks at."""
    return start_s + (np.arange(frames) + 0.5) / frames * (end_s - start_s)


class VideoSource(Protocol):
    """Where segments come from.

    Attributes:
        sha256: names the data.
    """

    sha256: str

    def has(self, video: str) -> bool: ...

    def duration_s(self, video: str) -> float: ...

    def resolve(self, segment: Segment) -> Segment:
        """The same pixels under a name that equal pieces share, with a finite end."""
        ...

    def read(self, segment: Segment, frames: int, size: int, crop: float = 0.5) -> UInt8[np.ndarray, "T H W 3"]:
        """Frames at `frame_times`, the largest square, resized; `crop` 0 takes its left or top end, 1 the other one.

        Raises:
            ValueError: a missing or undecodable video.
        """
        ...


class StoreVideos:
    """The clips of a store as videos named by their keys; "a+b" is clip b after clip a."""

    def __init__(self, store: ClipStore | str | os.PathLike[str]) -> None:
        self.store = store if isinstance(store, ClipStore) else open_store(store)
        self.sha256 = self.store.manifest_sha256
        self._index = {key: index for index, key in enumerate(self.store.keys)}
        self._times: dict[str, Float64[np.ndarray, " T"]] = {}

    def index(self, key: str) -> int:
        return self._index[key]

    def has(self, video: str) -> bool:
        return all(key in self._index for key in video.split(JOIN))

    def duration_s(self, video: str) -> float:
        return sum(self._clip_duration(key) for key in video.split(JOIN))

    def resolve(self, segment: Segment) -> Segment:
        start_s, end_s = segment.start_s, min(segment.end_s, self.duration_s(segment.video))
        offset = 0.0
        for key in segment.video.split(JOIN):
            duration = self._clip_duration(key)
            if start_s >= offset - 1e-9 and end_s <= offset + duration + 1e-9:
                return Segment(key, round(max(start_s - offset, 0.0), 6), round(min(end_s - offset, duration), 6))
            offset += duration
        return Segment(segment.video, round(start_s, 6), round(end_s, 6))

    def read(self, segment: Segment, frames: int, size: int, crop: float = 0.5) -> UInt8[np.ndarray, "T H W 3"]:
        pictures = []
        for key, indices in self._frames(segment, frames):
            rgb = self.store.read(self._index[key], ("rgb",), frames=indices).rgb
            assert rgb is not None
            pictures.append(square(rgb, size, crop))
        return np.concatenate(pictures)

    def read_depth(
        self, segment: Segment, frames: int, size: int
    ) -> tuple[Float32[np.ndarray, "T h w"], Bool[np.ndarray, "T h w"]]:
        """Metric depth of the same frames and the same square by nearest pixel, and where it is known."""
        maps = []
        for key, indices in self._frames(segment, frames):
            depth = self.store.read(self._index[key], ("depth",), frames=indices).depth
            assert depth is not None
            depth = cut(depth, choose_crop(*depth.shape[1:3], None))
            maps.append(resize_maps(np.where(np.isfinite(depth), depth, 0).astype(np.float32), size))
        depth = np.concatenate(maps)
        return depth, depth > 0

    def _clip_times(self, key: str) -> Float64[np.ndarray, " T"]:
        if key not in self._times:
            times = self.store.read(self._index[key], ("rgb_times_s",)).rgb_times_s
            if times is None:
                raise ValueError(f"clip {key!r} of {self.store.path} has no rgb_times_s")
            self._times[key] = times
        return self._times[key]

    def _clip_duration(self, key: str) -> float:
        # As Clip.duration_s: the last frame counts as long as the mean gap.
        times = self._clip_times(key)
        gap = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        return float(times[-1] + gap)

    def _frames(self, segment: Segment, frames: int) -> list[tuple[str, list[int]]]:
        """(clip, its frames) in the order of time."""
        segment = self.resolve(segment)
        wanted: list[tuple[str, list[int]]] = []
        ends, keys = [], segment.video.split(JOIN)
        for key in keys:
            ends.append((ends[-1] if ends else 0.0) + self._clip_duration(key))
        for time_s in frame_times(segment.start_s, segment.end_s, frames):
            place = min(int(np.searchsorted(ends, time_s, side="right")), len(keys) - 1)
            within = time_s - (ends[place - 1] if place else 0.0)
            times = self._clip_times(keys[place])
            shown = int(np.clip(np.searchsorted(times, within + 1e-9, side="right") - 1, 0, len(times) - 1))
            if not wanted or wanted[-1][0] != keys[place]:
                wanted.append((keys[place], []))
            wanted[-1][1].append(shown)
        return wanted


class FileVideos:
    """Video files below a directory, by the stem of their names; a directory NAME.mp4 of files START.mp4 (seconds) is one
    video in chunks, as LaViLa and AVION store Ego4D.

    Raises:
        ValueError: no such directory, no video in it, or two files of the same stem.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"videos={root}: no such directory; give the one that holds the video files")
        self._files: dict[str, Path] = {}
        self._chunks: dict[str, list[tuple[float, Path]]] = {}
        names: list[tuple[str, int]] = []
        for directory, folders, files in os.walk(self.root, followlinks=True):
            folders.sort()
            for name in sorted(files):
                path = Path(directory) / name
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    self._add(path)
                    names.append((str(path.relative_to(self.root)), path.stat().st_size))
        if not names:
            raise ValueError(f"videos={root}: no video files ({', '.join(VIDEO_SUFFIXES)}) there")
        self.sha256 = hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()
        self._duration = lru_cache(maxsize=None)(self._measure)

    def _add(self, path: Path) -> None:
        parent = path.parent
        if parent.suffix.lower() in VIDEO_SUFFIXES and path.stem.replace(".", "", 1).isdigit():
            self._chunks.setdefault(parent.stem, []).append((float(path.stem), path))
            self._chunks[parent.stem].sort()
        elif path.stem in self._files:
            raise ValueError(f"two videos are called {path.stem}: {self._files[path.stem]} and {path}; keep one")
        else:
            self._files[path.stem] = path

    def has(self, video: str) -> bool:
        return video in self._files or video in self._chunks

    def duration_s(self, video: str) -> float:
        return self._duration(video)

    def _measure(self, video: str) -> float:
        if video in self._files:
            return probe_video(self._files[video]).duration_s
        start_s, path = self._chunks[video][-1]
        return start_s + probe_video(path).duration_s

    def resolve(self, segment: Segment) -> Segment:
        if math.isfinite(segment.end_s):
            return segment
        return Segment(segment.video, segment.start_s, round(self.duration_s(segment.video), 6))

    def read(self, segment: Segment, frames: int, size: int, crop: float = 0.5) -> UInt8[np.ndarray, "T H W 3"]:
        segment = self.resolve(segment)
        if not segment.end_s > segment.start_s >= 0:
            raise ValueError(
                f"{segment.video}: a segment from {segment.start_s} to {segment.end_s} s is not a piece of video"
            )
        # Annotated ends often lie a little past the last frame.
        end_s = min(segment.end_s, self.duration_s(segment.video))
        times = frame_times(segment.start_s, end_s, frames)
        return square(self._read(segment.video, times.tolist(), size), size, crop)

    def _read(self, video: str, times: Sequence[float], size: int) -> UInt8[np.ndarray, "T H W 3"]:
        if video in self._files:
            return read_frames(self._files[video], times, size=size)
        starts = [start for start, _ in self._chunks[video]]
        places = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)
        parts = []
        for place in dict.fromkeys(places.tolist()):
            start, path = self._chunks[video][place]
            inside = [time_s - start for time_s, at in zip(times, places, strict=True) if at == place]
            parts.append(read_frames(path, inside, size=size))
        return np.concatenate(parts)


def square(frames: UInt8[np.ndarray, "T H0 W0 3"], size: int, crop: float) -> UInt8[np.ndarray, "T H W 3"]:
    """The largest square at `crop` of the longer side, resized as in training."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    if crop == 0.5:
        box = choose_crop(height, width, None)
    else:
        box = (round(crop * (height - side)), round(crop * (width - side)), side, side)
    return crop_video(frames, box, size)


class StoreSpans(StoreVideos):
    """A store of clips cut from longer videos, as `egoarm clips import` makes it: a piece of a video is looked for in the
    clips of that video, by their meta's "video_uid" or "video_id" and "start_s".

    Raises:
        ValueError: no clip says which video it is of.
    """

    def __init__(self, store: ClipStore | str | os.PathLike[str]) -> None:
        super().__init__(store)
        self._spans: dict[str, list[tuple[float, str]]] = {}
        for key, index in self._index.items():
            meta = self.store.read(index, ("meta",)).meta
            video = meta.get("video_uid", meta.get("video_id"))
            if isinstance(video, str) and isinstance(meta.get("start_s"), int | float):
                self._spans.setdefault(video, []).append((float(meta["start_s"]), key))
        if not self._spans:
            raise ValueError(
                f"videos={self.store.path}: no clip of this store says which video it is cut from; give a store of "
                "egoarm clips import, or the video files themselves"
            )

    def has(self, video: str) -> bool:
        return video in self._spans

    def resolve(self, segment: Segment) -> Segment:
        """The part of a clip that shows most of it.

        Raises:
            ValueError: no clip shows half of it, or its end is not known.
        """
        if segment.video in self._index:
            return super().resolve(segment)
        if not math.isfinite(segment.end_s):
            raise ValueError(f"{segment.video}: a whole video is asked for; give the video files, not clips of them")
        best = Segment(segment.video, 0.0, 0.0)
        for start_s, key in self._spans.get(segment.video, ()):
            begin = max(segment.start_s - start_s, 0.0)
            end = min(segment.end_s - start_s, self._clip_duration(key))
            if end - begin > best.end_s - best.start_s:
                best = Segment(key, round(begin, 6), round(end, 6))
        if best.end_s - best.start_s < 0.5 * (segment.end_s - segment.start_s):
            raise ValueError(f"no clip of {self.store.path} shows it from {segment.start_s:g} to {segment.end_s:g} s")
        return best


def open_videos(path: str | os.PathLike[str]) -> VideoSource:
    """A clip store if `path` holds a manifest, else a directory of video files."""
    return StoreSpans(path) if is_store(path) else FileVideos(path)


def is_store(path: str | os.PathLike[str]) -> bool:
    return (Path(path) / "manifest.json").is_file()

"""``egoarm clips import``: a public data set of egocentric video as a clip store.

Of narrated video (``SOURCES``, given by ``annotations=`` and ``videos=``) one clip is ``frames`` pictures at the midpoints of as many equal
parts of its span, as STAR-HOI and LaViLa take them, and its narration. Recordings with camera, gaze or depth (``RECORDINGS``, given by
``root=``) are cut into clips of ``clip_s``, as EgoM2P does: see :mod:`pretrain.clips.sources.recording`.

What a source does not give is skipped and counted with its reason: see ``skipped.jsonl`` in the store, and "dropped" in its manifest for
clips that lack a modality.
"""

import importlib.metadata
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from rich.console import Console
from tqdm import tqdm

from pretrain.clips.build import GenerateClip, build_store
from pretrain.clips.importing_recordings import CutRecording
from pretrain.clips.info import dropped_table, skipped_table
from pretrain.clips.schema import Clip
from pretrain.clips.shards import sha256_file
from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import CutOptions
from pretrain.clips.sources.request import ID_DUPLICATE, ClipRequest, VideoPart, parts_at
from pretrain.clips.sources.table import RECORDINGS, SOURCES
from pretrain.clips.video import TIME_OUTSIDE, VIDEO_UNDECODABLE, VideoError, probe_video, read_frames

# The packages whose version decides the pixels or the bytes.
_PACKAGES = ("av", "numpy", "opencv-python")
_RECORDING_PACKAGES = (*_PACKAGES, "scipy")
# What is meant where nothing is given: for narrated video, for recordings.
_DEFAULTS = {"frames": (8, 16), "image_size": (288, 256), "max_gap_s": (1.0, 0.2)}


@dataclass(frozen=True, kw_only=True)
class ImportConfig(SourceOptions):
    """Settings of ``egoarm clips import``: those of the sources, and what goes where.

    Attributes:
        source: name of the data set, a key of ``SOURCES`` or ``RECORDINGS``.
        annotations: narrated video: its annotation file.
        videos: narrated video: directory of its videos.
        root: recordings: directory of the data set.
        out: directory of the store.
        frames: pictures a clip; None = 8, of recordings 16.
        image_size: their short side in px, of recordings both sides; smaller videos are enlarged; None = 288, of recordings 256.
        square: narrated video: keep the largest central square only; recordings are always square.
        max_gap_s: longest time between two frames of a video; a clip that needs a frame from a longer gap is skipped; None = 1, of
            recordings 0.2.
        clip_s: recordings: length of a clip in seconds.
        pose_hz: recordings: samples of camera and gaze a second.
        max_pose_gap_s: recordings: poses further apart are not bridged, the clip then has no camera.
        max_gaze_gap_s: recordings: a gaze sample further from its time is a gap.
        limit: only the first so many entries of the annotations, or clips; 0 = all. A larger limit later continues the store.
        workers: processes; 0 = one a core. Does not change the clips.
        clips_per_shard: entries of the annotations, or clips, in a tar; one tar is one unit of work.
        max_skipped_share: stop when more than this share of the entries is skipped, looked at from the 100th on.
        retry_skipped: try the skipped clips of a store again, e.g. when more videos are there.
    """

    source: str
    out: str
    annotations: str = ""
    videos: str = ""
    root: str = ""
    frames: int | None = None
    image_size: int | None = None
    square: bool = False
    max_gap_s: float | None = None
    clip_s: float = 2.0
    pose_hz: float = 30.0
    max_pose_gap_s: float = 0.15
    max_gaze_gap_s: float = 0.05
    limit: int = 0
    workers: int = 0
    clips_per_shard: int = 64
    max_skipped_share: float = 0.5
    retry_skipped: bool = False

    def __post_init__(self) -> None:
        if self.source not in (*SOURCES, *RECORDINGS):
            raise ValueError(f"source={self.source}: expected one of {', '.join((*SOURCES, *RECORDINGS))}")
        wanted, others = (
            (("root",), ("annotations", "videos")) if self.is_recordings else (("annotations", "videos"), ("root",))
        )
        for name in (*wanted, "out"):
            if not getattr(self, name):
                raise ValueError(f"{name}= is empty; egoarm clips import --help says what it is")
        for name in others:
            if getattr(self, name):
                needs = " and ".join(f"{one}=" for one in wanted)
                raise ValueError(
                    f"{name}={getattr(self, name)}: source={self.source} is read from {needs} alone; leave it out"
                )
        for name, (narrated, recorded) in _DEFAULTS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, recorded if self.is_recordings else narrated)
        for name, least in (("frames", 1), ("image_size", 16), ("limit", 0), ("workers", 0), ("clips_per_shard", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected {least} or more")
        for name in ("max_gap_s", "alpha_s", "clip_s", "pose_hz", "max_pose_gap_s", "max_gaze_gap_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        if not self.chunk_s >= 0:
            raise ValueError(f"chunk_s={self.chunk_s}: expected seconds, or 0 to look at the files")
        if not 0 <= self.max_skipped_share <= 1:
            raise ValueError(f"max_skipped_share={self.max_skipped_share}: expected a share from 0 to 1")

    @property
    def cut_options(self) -> CutOptions:
        """How recordings are cut."""
        assert self.frames and self.image_size and self.max_gap_s
        return CutOptions(
            clip_s=self.clip_s,
            frames=self.frames,
            image_size=self.image_size,
            pose_hz=self.pose_hz,
            max_frame_gap_s=self.max_gap_s,
            max_pose_gap_s=self.max_pose_gap_s,
            max_gaze_gap_s=self.max_gaze_gap_s,
        )

    @property
    def is_recordings(self) -> bool:
        """Whether the source has recordings and no narrations."""
        return self.source in RECORDINGS


def run_import(config: ImportConfig) -> None:
    """Makes, continues or checks the store; says how much was made, how fast, and what was skipped.

    Raises:
        FileNotFoundError: no annotations, or no directory of videos or recordings.
        ValueError: annotations or a directory of another form, or see :func:`pretrain.clips.build.build_store`.
        RuntimeError: a worker process died.
    """
    if config.is_recordings:
        cut = CutRecording.of(config.source, Path(config.root), config, config.cut_options, config.workers)
        entries = min(len(cut), config.limit or len(cut))
        _build(config, cut, cut.settings(), entries, _RECORDING_PACKAGES)
        return
    annotations, videos = Path(config.annotations), Path(config.videos)
    if not videos.is_dir():
        raise FileNotFoundError(
            f"videos={videos}: no such directory; give the one that holds the videos of {config.source}"
        )
    assert config.frames and config.image_size and config.max_gap_s
    requests = _listed(SOURCES[config.source](annotations, videos, config), config.limit)
    with tempfile.TemporaryDirectory(prefix="egoarm-requests-") as place:
        table = RequestTable.write(Path(place), requests)
        if not len(table):
            raise ValueError(
                f"annotations={annotations}: no entry in it; expected the annotation file of {config.source}"
            )
        cut = CutClip(table, videos, config.frames, config.image_size, config.square, config.max_gap_s)
        _build(config, cut, _settings(config), len(table), _PACKAGES)


def _build(
    config: ImportConfig, generate: GenerateClip, settings: dict[str, Any], entries: int, packages: Sequence[str]
) -> None:
    directory = Path(config.out)
    start_s = time.monotonic()
    result = build_store(
        directory,
        generate,
        kind=config.source,
        seed=0,
        settings=settings,
        versions={name: importlib.metadata.version(name) for name in packages},
        n_clips=entries,
        clips_per_shard=config.clips_per_shard,
        workers=config.workers,
        max_skipped_share=config.max_skipped_share,
        retry_skipped=config.retry_skipped,
    )
    elapsed_s = time.monotonic() - start_s
    made = result.clips - result.kept_clips
    kept = f", kept {result.kept_clips}" if result.kept_clips else ""
    speed = (
        f"imported {made} clips in {elapsed_s:.1f} s ({made / elapsed_s:.1f} clips/s)"
        if made
        else "nothing new to import"
    )
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{speed}{kept}: {result.clips} clips of {entries} entries in {result.shards} shards, {result.bytes / 1e6:.1f} MB, in {directory}",
        markup=False,
    )
    if result.skipped:
        console.print(skipped_table(result.skipped, directory))
    if result.dropped:
        console.print(dropped_table(result.dropped))
    console.print(f"look at them: egoarm clips info {directory}", markup=False)


def _settings(config: ImportConfig) -> dict[str, Any]:
    """What decides the content of the clips, for the manifest. Paths do not."""
    return {
        "annotations_sha256": sha256_file(Path(config.annotations)),
        **{name: getattr(config, name) for name in ("frames", "image_size", "square", "max_gap_s", "alpha_s")},
    }


def _listed(requests: Iterable[ClipRequest | Skipped], limit: int) -> Iterator[ClipRequest | Skipped]:
    """The first entries; the second of two with one key gives its reason instead."""
    seen: set[str] = set()
    for index, request in enumerate(tqdm(requests, desc="annotations", unit="entry", disable=None, leave=False)):
        if limit and index == limit:
            return
        if isinstance(request, ClipRequest):
            if request.key in seen:
                source = request.parts[0].path
                yield Skipped(key=request.key, source=source, reason=ID_DUPLICATE, detail="it was there before")
                continue
            seen.add(request.key)
        yield request


@dataclass(frozen=True)
class RequestTable:
    """The entries of a data set in a file, so that millions of them cost a worker process no memory.

    Attributes:
        path: one JSON object a line.
    """

    path: Path

    @classmethod
    def write(cls, directory: Path, requests: Iterable[ClipRequest | Skipped]) -> "RequestTable":
        """Writes ``requests.jsonl`` and, beside it, where each line starts."""
        table = cls(directory / "requests.jsonl")
        starts = [0]
        with table.path.open("wb") as file:
            for request in requests:
                line = json.dumps({type(request).__name__: asdict(request)}).encode() + b"\n"
                starts.append(starts[-1] + file.write(line))
        np.save(table._starts_path, np.asarray(starts, np.int64))
        return table

    def __len__(self) -> int:
        return len(self._starts()) - 1

    def __getitem__(self, index: int) -> ClipRequest | Skipped:
        start, end = self._starts()[index : index + 2].tolist()
        with self.path.open("rb") as file:
            file.seek(start)
            ((kind, fields),) = json.loads(file.read(end - start)).items()
        if kind == Skipped.__name__:
            return Skipped(**fields)
        parts = tuple(VideoPart(**part) for part in fields.pop("parts"))
        return ClipRequest(parts=parts, **fields)

    @property
    def _starts_path(self) -> Path:
        return self.path.with_suffix(".npy")

    def _starts(self) -> np.ndarray:
        return np.load(self._starts_path, mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class CutClip:
    """Makes the clip of an entry. A pure function of the index, for :func:`pretrain.clips.build.build_store`."""

    table: RequestTable
    videos: Path
    frames: int
    image_size: int
    square: bool
    max_gap_s: float

    def __call__(self, index: int) -> Clip | Skipped:
        request = self.table[index]
        if isinstance(request, Skipped):
            return request
        try:
            rgb, times_s = self._cut(request)
        except VideoError as error:
            return self._skipped(request, error.reason, error.detail)
        # FFmpeg meets every kind of damage, and its errors have no common type; a clip is never worth the other 40,000.
        except Exception as error:
            return self._skipped(request, VIDEO_UNDECODABLE, f"{type(error).__name__}: {error}")
        return Clip(
            key=request.key,
            rgb=_central_square(rgb) if self.square else rgb,
            rgb_times_s=times_s,
            narration=request.narration,
            meta={**request.meta, "start_s": request.start_s},
        )

    def _skipped(self, request: ClipRequest, reason: str, detail: str) -> Skipped:
        return Skipped(
            key=request.key,
            source=", ".join(part.path for part in request.parts),
            reason=reason,
            detail=detail.replace(f"{self.videos}/", "")[:300].encode("utf-8", "backslashreplace").decode(),
        )

    def _cut(self, request: ClipRequest) -> tuple[UInt8[np.ndarray, "T H W 3"], Float64[np.ndarray, " T"]]:
        """The pictures and their times from the clip's start."""
        try:
            return self._read(request, request.end_s)
        except VideoError as error:
            if error.reason != TIME_OUTSIDE or request.anchor_s is None:
                raise
            end_s = probe_video(self.videos / request.parts[0].path).duration_s
            if not request.anchor_s < end_s < request.end_s:
                raise
            return self._read(request, end_s)

    def _read(
        self, request: ClipRequest, end_s: float
    ) -> tuple[UInt8[np.ndarray, "T H W 3"], Float64[np.ndarray, " T"]]:
        times_s = midpoints_s(end_s - request.start_s, self.frames)
        wanted_s = times_s + request.start_s
        place = np.asarray([parts_at(request.parts, time_s) for time_s in wanted_s])
        pictures = [
            read_frames(
                self.videos / request.parts[index].path,
                (wanted_s[place == index] - request.parts[index].start_s).tolist(),
                size=self.image_size,
                max_gap_s=self.max_gap_s,
            )
            for index in np.unique(place).tolist()
        ]
        return np.concatenate(pictures), times_s


def midpoints_s(duration_s: float, frames: int) -> Float64[np.ndarray, " T"]:
    """Midpoints of ``frames`` equal parts of a span, from its start."""
    return (np.arange(frames) + 0.5) * (duration_s / frames)


def _central_square(rgb: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T S S 3"]:
    height, width = rgb.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(rgb[:, top : top + side, left : left + side])

"""What every multimodal data set yields: recordings of video, camera, gaze and depth on one clock, and how clips are cut from them.

A reader of a data set is two functions, held by a :class:`SequenceSource`: one lists names of recordings (cheap: it only looks at
directories and lists), one opens a recording by its name (parses its poses and gaze; pictures and depth are read when a clip is
cut). So an import knows what there is before it reads any of it, and a worker process opens the recording that it needs.

Conventions of a recording. Readers bring everything into these, and no axis fix is left for later:

- Times are seconds of the recording's own clock, the same for all modalities.
- ``world_from_camera`` has OpenCV axes (x right, y down, z forward) of the **upright** picture, in metres.
- Pixels are those of the full **upright** picture. Their origin is the outer corner of the top left pixel, whose centre is
  (0.5, 0.5): the convention of :mod:`pretrain.clips.schema`. OpenCV puts (0, 0) at that centre; :func:`corner_intrinsics` and
  ``+ 0.5`` for points bring its numbers here.
- Frames and depth alone are as the files store them: :func:`cut_clip` turns them by ``rotate_quarter_turns``. A reader whose
  files describe the camera of the stored picture uses :func:`turned_camera`, :func:`turned_intrinsics` and
  :func:`turned_points` for the rest.

Axis letters: n poses, m gaze samples, T frames, H W pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pretrain.clips.schema import Clip
from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.images import read_image
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.request import make_key
from pretrain.clips.sources.resample import RecordingError, Square, centre_square, resample_gaze, resample_poses
from pretrain.clips.video import (
    FRAMES_MISSING,
    TIME_OUTSIDE,
    VIDEO_UNDECODABLE,
    VideoError,
    read_timed_frames,
)

# Why a recording gives no clip; the same words are counted in a store's manifest.
RECORDING_TOO_SHORT = "recording shorter than a clip"
RECORDING_EMPTY = "recording without any modality beside the frames"
FILE_MISSING = "file of the recording missing"
FILE_DAMAGED = "file of the recording damaged"
DEPTH_UNREADABLE = "depth unreadable"
NOT_GIVEN = "not in the files"

# As in pretrain.clips.video: timestamps are rounded.
_GRACE_S = 0.0005


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The frames of a video file.

    Attributes:
        path: the file, read by :func:`pretrain.clips.video.read_timed_frames`.
        start_s: time of its first frame on the recording's clock.
    """

    path: Path
    start_s: float = 0.0

    def read(
        self, times_s: Float64[np.ndarray, " T"], max_gap_s: float
    ) -> tuple[UInt8[np.ndarray, "T H W 3"], Float64[np.ndarray, " T"]]:
        """The frames shown at some times of the recording, as stored, and the times at which they were taken.

        Raises:
            VideoError: with the reason.
        """
        # The start may be a difference of large clock readings.
        wanted_s = (
            np.maximum(times_s - self.start_s, 0.0) if times_s[0] > self.start_s - _GRACE_S else times_s - self.start_s
        )
        frames, stamps_s = read_timed_frames(self.path, wanted_s.tolist(), max_gap_s=max_gap_s)
        return frames, stamps_s + self.start_s


@dataclass(frozen=True, kw_only=True)
class ImageFrames:
    """Numbered image files, read by OpenCV.

    Attributes:
        paths: the files in order.
        times_s: when each was taken, increasing, on the recording's clock.
    """

    paths: tuple[Path, ...]
    times_s: Float64[np.ndarray, " n"]

    def __post_init__(self) -> None:
        assert len(self.paths) == len(self.times_s) > 0, f"{len(self.paths)} images, {len(self.times_s)} times"

    def read(
        self, times_s: Float64[np.ndarray, " T"], max_gap_s: float
    ) -> tuple[UInt8[np.ndarray, "T H W 3"], Float64[np.ndarray, " T"]]:
        """As :meth:`VideoFrames.read`: an image is shown until the next one."""
        chosen = np.searchsorted(self.times_s, times_s + _GRACE_S, side="right") - 1
        stamps_s = self.times_s[np.maximum(chosen, 0)]
        if chosen[0] < 0:
            raise VideoError(self.paths[0], TIME_OUTSIDE, f"{times_s[0]:.3f} s is before the first image")
        late = times_s - stamps_s > max_gap_s
        if late.any():
            time_s, before_s = times_s[late][0], stamps_s[late][0]
            reason = TIME_OUTSIDE if before_s == self.times_s[-1] else FRAMES_MISSING
            raise VideoError(
                self.paths[0].parent, reason, f"{time_s:.3f} s is wanted, the image before it is of {before_s:.3f} s"
            )
        images = [read_image(self.paths[index]) for index in chosen]
        if len({image.shape for image in images}) > 1:
            raise VideoError(self.paths[chosen[0]], VIDEO_UNDECODABLE, "the images of one clip differ in size")
        return np.stack(images), stamps_s


class FrameSource(Protocol):
    """What a recording asks of its frames: ``VideoFrames``, ``ImageFrames``, or one that changes what another reads. Picklable."""

    def read(
        self, times_s: Float64[np.ndarray, " T"], max_gap_s: float
    ) -> tuple[UInt8[np.ndarray, "T H W 3"], Float64[np.ndarray, " T"]]:
        """The frames shown at some sorted times of the recording, as stored, and the times at which they were taken.

        Raises:
            VideoError: with the reason, which is counted.
        """
        ...


# Metric depth in metres nearest to a time of the recording, 0 = unknown, as stored (not turned), registered to the frames; it may
# have another resolution. Must be picklable. May raise RecordingError or OSError: then the clip has no depth.
DepthAt = Callable[[float], Float32[np.ndarray, "H W"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """One recording of a multimodal data set, before it is cut into clips. See the head of this file for the conventions.

    Attributes:
        name: unique in the data set; becomes part of clip keys.
        frames: video file or image files.
        start_s, end_s: what can be cut, on the recording's clock.
        poses_s, world_from_camera: times, strictly increasing, and camera poses; NaN = not tracked. None = no poses.
        gaze_s, gaze_px: times, strictly increasing, and points of gaze; NaN = gap. None = no gaze.
        depth: see ``DepthAt``.
        intrinsics: pinhole matrix of the full upright picture; readers of fisheye data rectify, or give None.
        rotate_quarter_turns: how many times the stored frames and depth must be turned counter-clockwise to be upright.
        crop_px: side of the central square that clips show; 0 = the short side.
        dropped: modality -> why this recording lacks what its data set has otherwise; counted with the clips.
        meta: what else is known; plain JSON.

    Raises:
        RecordingError: arrays that do not fit each other, times that do not increase.
    """

    name: str
    frames: FrameSource
    start_s: float
    end_s: float
    poses_s: Float64[np.ndarray, " n"] | None = None
    world_from_camera: Float64[np.ndarray, "n 4 4"] | None = None
    gaze_s: Float64[np.ndarray, " m"] | None = None
    gaze_px: Float32[np.ndarray, "m 2"] | None = None
    depth: DepthAt | None = None
    intrinsics: Float64[np.ndarray, "3 3"] | None = None
    rotate_quarter_turns: int = 0
    crop_px: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_series("poses", self.poses_s, self.world_from_camera, (4, 4))
        _check_series("gaze", self.gaze_s, self.gaze_px, (2,))
        if not (np.isfinite(self.start_s) and np.isfinite(self.end_s)):
            raise RecordingError(FILE_DAMAGED, f"it lasts from {self.start_s} to {self.end_s} s")


@dataclass(frozen=True)
class SequenceSource:
    """A data set of recordings; called, it yields them all.

    Attributes:
        list_names: (root, options) -> the names of its recordings in a fixed order, or why something listed is none. Cheap.
            Raises FileNotFoundError or ValueError, in one line, if ``root`` is not this data set.
        open_recording: (root, name, options) -> the recording. Raises RecordingError if its files are not as they should be.
    """

    list_names: Callable[[Path, SourceOptions], Iterator[str | Skipped]]
    open_recording: Callable[[Path, str, SourceOptions], Recording]

    def __call__(self, root: Path, options: SourceOptions) -> Iterator[Recording | Skipped]:
        for name in self.list_names(root, options):
            yield name if isinstance(name, Skipped) else self.open(root, name, options)

    def open(self, root: Path, name: str, options: SourceOptions) -> Recording | Skipped:
        """One recording, or why there is none."""
        try:
            return self.open_recording(root, name, options)
        except RecordingError as error:
            return skipped_recording(root, name, error)
        except VideoError as error:
            return skipped_recording(root, name, RecordingError(error.reason, str(error)))


@dataclass(frozen=True, kw_only=True)
class CutOptions:
    """How clips are cut: by default EgoM2P's 2 s of 16 frames at 8 Hz, 256 px square, camera and gaze at 30 Hz.

    Attributes:
        clip_s: length of a clip; the next one starts where it ends.
        frames: pictures a clip, at equal distances from its start.
        image_size: side of the square picture in px.
        pose_hz: rate of camera and gaze.
        max_frame_gap_s: a clip that would show a frame for longer is skipped.
        max_pose_gap_s: poses further apart are not bridged; the clip then has no camera.
        max_gaze_gap_s: a gaze sample further from its time than this is a gap, NaN.
    """

    clip_s: float = 2.0
    frames: int = 16
    image_size: int = 256
    pose_hz: float = 30.0
    max_frame_gap_s: float = 0.2
    max_pose_gap_s: float = 0.15
    max_gaze_gap_s: float = 0.05

    def __post_init__(self) -> None:
        for name in ("clip_s", "pose_hz", "max_frame_gap_s", "max_pose_gap_s", "max_gaze_gap_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")
        for name, least in (("frames", 1), ("image_size", 16)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected {least} or more")

    @property
    def samples(self) -> int:
        """Camera and gaze samples of a clip."""
        return round(self.clip_s * self.pose_hz)


def count_clips(recording: Recording, clip_s: float) -> int:
    """How many whole clips follow each other in a recording."""
    return max(0, int((recording.end_s - recording.start_s + _GRACE_S) / clip_s))


def cut_clips(recording: Recording, **options: Any) -> Iterator[Clip | Skipped]:
    """All clips of a recording in order; ``options`` are the fields of :class:`CutOptions`."""
    cut = CutOptions(**options)
    number = count_clips(recording, cut.clip_s)
    if not number:
        yield too_short(recording, cut.clip_s)
    for index in range(number):
        yield cut_clip(recording, index, cut)


def too_short(recording: Recording, clip_s: float) -> Skipped:
    detail = f"{recording.end_s - recording.start_s:.3f} s, a clip lasts {clip_s:g} s"
    return Skipped(key=make_key(recording.name), source=recording.name, reason=RECORDING_TOO_SHORT, detail=detail)


def clip_key(name: str, index: int) -> str:
    return make_key(name, f"{index:05d}")


def cut_clip(recording: Recording, index: int, options: CutOptions) -> Clip | Skipped:
    """The clip that starts ``index * clip_s`` after the recording's start; deterministic.

    A clip's time 0 is when its first frame was taken, and ``rgb_times_s`` are the times at which the frames shown were taken, not
    those at which they were due: else a turn of the head between the two would part picture and pose.

    Returns:
        A clip; a modality that the recording has and this clip lacks is named with its reason in ``meta["dropped"]``. Skipped if the
        frames cannot be read.
    """
    due_s = recording.start_s + index * options.clip_s + np.arange(options.frames) * (options.clip_s / options.frames)
    key = clip_key(recording.name, index)
    try:
        frames, stamps_s = recording.frames.read(due_s, options.max_frame_gap_s)
        if (np.diff(stamps_s) <= 0).any():
            raise VideoError("", FRAMES_MISSING, f"fewer than {options.frames} frames in {options.clip_s:g} s")
    except VideoError as error:
        return _skipped(recording, key, error.reason, error.detail)
    # FFmpeg meets every kind of damage, and its errors have no common type.
    except Exception as error:
        return _skipped(recording, key, VIDEO_UNDECODABLE, f"{type(error).__name__}: {error}")
    zero_s = float(stamps_s[0])
    samples_s = zero_s + np.arange(options.samples) / options.pose_hz
    frames = np.rot90(frames, recording.rotate_quarter_turns, axes=(1, 2))
    square = centre_square(frames.shape[1], frames.shape[2], recording.crop_px)
    size = options.image_size
    dropped = dict(recording.dropped)

    modalities: dict[str, np.ndarray] = {}
    if recording.intrinsics is not None:
        modalities["intrinsics"] = square.map_intrinsics(recording.intrinsics, size)
    if recording.world_from_camera is not None:
        assert recording.poses_s is not None
        try:
            modalities["world_from_camera"] = resample_poses(
                recording.poses_s, recording.world_from_camera, samples_s, options.max_pose_gap_s
            )
        except RecordingError as error:
            dropped["camera"] = error.reason
    if recording.gaze_px is not None:
        assert recording.gaze_s is not None
        try:
            gaze = resample_gaze(recording.gaze_s, recording.gaze_px, samples_s, options.max_gaze_gap_s)
            modalities["gaze"] = square.map_points(gaze, size)
        except RecordingError as error:
            dropped["gaze"] = error.reason
    if recording.depth is not None:
        try:
            modalities["depth"] = _read_depth(recording, stamps_s, square, size)
        except (RecordingError, OSError) as error:
            dropped["depth"] = error.reason if isinstance(error, RecordingError) else DEPTH_UNREADABLE
    meta = {**recording.meta, "recording": recording.name, "start_s": round(zero_s - recording.start_s, 6)}
    return Clip(
        key=key,
        rgb=np.stack([square.cut_and_resize(frame, size) for frame in frames]),
        rgb_times_s=stamps_s - zero_s,
        camera_hz=options.pose_hz,
        gaze_hz=options.pose_hz,
        meta={**meta, "dropped": dropped} if dropped else meta,
        **modalities,
    )


def skipped_recording(root: Path, name: str, error: RecordingError) -> Skipped:
    """A recording that cannot be opened, as the store lists it."""
    detail = error.detail.replace(f"{root}/", "")[:300].encode("utf-8", "backslashreplace").decode()
    return Skipped(key=make_key(name), source=name, reason=error.reason, detail=detail)


def corner_intrinsics(matrix: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3 3"]:
    """An OpenCV pinhole matrix, which counts pixels from the centre of the first, for pixels counted from its corner."""
    matrix = np.asarray(matrix, np.float64)
    focal = matrix[[0, 1], [0, 1]] if matrix.shape == (3, 3) else np.zeros(2)
    if not (np.isfinite(matrix).all() and (focal > 0).all() and np.array_equal(matrix[2], (0, 0, 1))):
        raise RecordingError(FILE_DAMAGED, f"not a pinhole matrix: {matrix.tolist()}")
    return matrix + np.asarray([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def turned_camera(quarter_turns: int) -> Float64[np.ndarray, "4 4"]:
    """``stored_from_upright``: ``world_from_camera @ turned_camera(k)`` is the camera of the picture after k counter-clockwise
    quarter turns. For k = 3 it is EgoM2P's "cw90"."""
    matrix = np.eye(4)
    quarter = np.asarray([[0.0, -1.0], [1.0, 0.0]])
    matrix[:2, :2] = np.linalg.matrix_power(quarter, quarter_turns % 4)
    return matrix


def turned_intrinsics(
    matrix: Float64[np.ndarray, "3 3"], quarter_turns: int, width: int, height: int
) -> Float64[np.ndarray, "3 3"]:
    """The pinhole matrix (corner convention, no skew) after turning a picture of ``width`` x ``height`` as stored."""
    focal = np.asarray([matrix[0, 0], matrix[1, 1]])
    if quarter_turns % 2:
        focal = focal[::-1]
    centre = turned_points(np.asarray([[matrix[0, 2], matrix[1, 2]]]), quarter_turns, width, height)[0]
    return np.asarray([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]], np.float64)


def turned_points(points: np.ndarray, quarter_turns: int, width: int, height: int) -> np.ndarray:
    """Points (x, y), corner convention, [m, 2], of the stored picture in the turned one."""
    for _ in range(quarter_turns % 4):
        points = np.stack([points[:, 1], width - points[:, 0]], axis=1)
        width, height = height, width
    return points


def _check_series(name: str, times_s: np.ndarray | None, values: np.ndarray | None, shape: tuple[int, ...]) -> None:
    if times_s is None and values is None:
        return
    if times_s is None or values is None or values.shape != (len(times_s), *shape) or not len(times_s):
        sizes = [None if array is None else array.shape for array in (times_s, values)]
        raise RecordingError(FILE_DAMAGED, f"{name}: times {sizes[0]} and values {sizes[1]}")
    if not (np.isfinite(times_s).all() and (np.diff(times_s) > 0).all()):
        raise RecordingError(FILE_DAMAGED, f"{name}: the times do not increase")


def _skipped(recording: Recording, key: str, reason: str, detail: str) -> Skipped:
    return Skipped(
        key=key, source=recording.name, reason=reason, detail=detail[:300].encode("utf-8", "backslashreplace").decode()
    )


def _read_depth(
    recording: Recording, times_s: Float64[np.ndarray, " T"], square: Square, size: int
) -> Float32[np.ndarray, "T S S"]:
    """Depth of the square at the times of the frames."""
    assert recording.depth is not None
    maps = [np.rot90(recording.depth(time_s), recording.rotate_quarter_turns) for time_s in times_s.tolist()]
    depth = np.stack([square.sample_map(one, size) for one in maps]).astype(np.float32)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
    if not depth.any():
        raise RecordingError(DEPTH_UNREADABLE, "no pixel of the clip has a depth")
    return depth

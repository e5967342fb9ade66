"""From a headset's pictures, trajectory and gaze to an upright :class:`~pretrain.clips.sources.recording.Recording`.

The pictures of HOT3D and ADT come in VRS files, which this project does not read. Two layouts are read in their place:

- ``<name>.mp4`` from ``vrs_to_mp4`` of projectaria_tools (``vrs_to_mp4 --vrs recording.vrs --output_video recording.mp4``): upright, and its
  ``description`` tag lists the device time of each frame in nanoseconds, "[1, 2, ...]", as that tool documents. Aria only.
- ``<stream>.mp4`` with ``<stream>_timestamps.csv`` (one column ``timestamp_ns``, a line a frame): the pictures of one VRS stream (214-1 is
  Aria's RGB, 1201-1 Quest's left camera) as they are stored, so *not* upright, for those who want no second compression. This
  layout is ours.

Depth is ``depth_images/<timestamp_ns>.png``, uint16 millimetres along the optical axis, as stored.

Axis letters: n, m samples, T frames, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from pretrain.clips.sources.aria import (
    TURNS_TO_UPRIGHT,
    AriaCamera,
    EyeGaze,
    Trajectory,
    gaze_in_rgb,
    increasing_ns,
    read_csv,
)
from pretrain.clips.sources.fisheye624 import Rectification, rectify
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import (
    DEPTH_UNREADABLE,
    FILE_DAMAGED,
    FILE_MISSING,
    RECORDING_EMPTY,
    DepthAt,
    FrameSource,
    Recording,
    turned_points,
)
from pretrain.clips.sources.resample import RecordingError
from pretrain.clips.video import FRAMES_MISSING, TIME_OUTSIDE, VideoError, probe_video, read_timed_frames

# Timestamps are rounded, as in pretrain.clips.video.
_GRACE_S = 0.0005
# A depth image stands for the frame that was taken with it, not for its neighbour 33 ms away.
_DEPTH_NEAR_S = 0.012


@dataclass(frozen=True, kw_only=True)
class ListedFrames:
    """The frames of a video of constant rate, each with a time that is listed elsewhere.

    Attributes:
        path: the file.
        numbers: which frames of it are known by time.
        times_s: of those frames on the recording's clock, increasing.
        fps: of the file.
    """

    path: Path
    numbers: Int64[np.ndarray, " n"]
    times_s: Float64[np.ndarray, " n"]
    fps: float

    def read(
        self, times_s: Float64[np.ndarray, " T"], max_gap_s: float
    ) -> tuple[UInt8[np.ndarray, "T H W 3"], Float64[np.ndarray, " T"]]:
        """The frames shown at some times, and when they were taken; see ``VideoFrames.read``."""
        chosen = np.searchsorted(self.times_s, times_s + _GRACE_S, side="right") - 1
        if chosen[0] < 0:
            raise VideoError(self.path, TIME_OUTSIDE, f"{times_s[0]:.3f} s is before its first frame")
        stamps_s = self.times_s[chosen]
        late = times_s - stamps_s > max_gap_s
        if late.any():
            at_end = stamps_s[late][0] == self.times_s[-1]
            reason = TIME_OUTSIDE if at_end else FRAMES_MISSING
            raise VideoError(
                self.path, reason, f"{times_s[late][0]:.3f} s wanted, the frame before is of {stamps_s[late][0]:.3f} s"
            )
        # The middle of the time for which a frame is shown.
        middles_s = (self.numbers[chosen] + 0.5) / self.fps
        frames, _ = read_timed_frames(self.path, middles_s.tolist(), max_gap_s=max_gap_s)
        return frames, stamps_s


@dataclass(frozen=True, kw_only=True, eq=False)
class RectifiedFrames:
    """Frames of a fisheye camera as a pinhole camera would show them, upright."""

    frames: FrameSource | ListedFrames
    rectification: Rectification

    def read(
        self, times_s: Float64[np.ndarray, " T"], max_gap_s: float
    ) -> tuple[UInt8[np.ndarray, "T S S 3"], Float64[np.ndarray, " T"]]:
        frames, stamps_s = self.frames.read(times_s, max_gap_s)
        return np.stack([self.rectification.image(frame) for frame in frames]), stamps_s


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthImages:
    """Depth from PNG files of uint16 millimetres.

    Attributes:
        paths, times_s: the files and when each was taken, increasing, on the recording's clock.
        turns: counter-clockwise quarter turns from the files to the frames as stored.
        rectification: that of the frames, if they are rectified.
        size: width and height of the frames as stored.
    """

    paths: tuple[Path, ...]
    times_s: Float64[np.ndarray, " n"]
    turns: int
    size: tuple[int, int]
    rectification: Rectification | None = None

    def __call__(self, time_s: float) -> Float32[np.ndarray, "H W"]:
        index = int(np.argmin(np.abs(self.times_s - time_s)))
        if abs(self.times_s[index] - time_s) > _DEPTH_NEAR_S:
            raise RecordingError(DEPTH_UNREADABLE, f"none within {_DEPTH_NEAR_S:g} s of {time_s:.3f} s")
        depth = cv2.imread(str(self.paths[index]), cv2.IMREAD_UNCHANGED)
        if depth is None or depth.dtype != np.uint16 or depth.ndim != 2:
            raise RecordingError(DEPTH_UNREADABLE, f"{self.paths[index].name}: expected a PNG of uint16 millimetres")
        depth = np.ascontiguousarray(np.rot90(depth, self.turns))
        if self.rectification is not None:
            # The maps are for the frames' own resolution.
            depth = cv2.resize(depth, self.size, interpolation=cv2.INTER_NEAREST)
            depth = self.rectification.image(depth, nearest=True)
        return depth.astype(np.float32) / np.float32(1000)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The pictures of a recording.

    Attributes:
        frames: on a clock whose 0 is ``zero_ns`` of the headset's.
        end_s: when the last frame ends.
        width, height: as stored.
        turned: counter-clockwise quarter turns from the sensor's picture to the stored one: 0, or TURNS_TO_UPRIGHT.
    """

    frames: FrameSource | ListedFrames
    zero_ns: int
    end_s: float
    width: int
    height: int
    turned: int

    @property
    def sensor_size(self) -> tuple[int, int]:
        """Width and height of the picture as the sensor gives it."""
        return (self.height, self.width) if self.turned % 2 else (self.width, self.height)

    @property
    def upright_size(self) -> tuple[int, int]:
        width, height = self.sensor_size
        return height, width

    def seconds(self, times_ns: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        return (times_ns - self.zero_ns) / 1e9


@dataclass(frozen=True, kw_only=True, eq=False)
class Sensors:
    """What a headset knows of a recording beside the pictures; what is None is missing, and ``dropped`` says why.

    Attributes:
        camera: for pictures of ``Pictures.sensor_size``.
        gaze: points of gaze, or
        gaze_px: pixels of the upright picture, with ``gaze_s`` their times on the recording's clock.
        depth_directory: with the PNG files.
    """

    camera: AriaCamera | None = None
    trajectory: Trajectory | None = None
    gaze: EyeGaze | None = None
    gaze_s: Float64[np.ndarray, " m"] | None = None
    gaze_px: Float64[np.ndarray, "m 2"] | None = None
    depth_directory: Path | None = None
    dropped: dict[str, str] = field(default_factory=dict)


def upright_recording(
    name: str, pictures: Pictures, sensors: Sensors, options: SourceOptions, meta: dict[str, Any]
) -> Recording:
    """Everything in the frame of the upright picture; with ``options.rectify_fov_deg``, of a pinhole's.

    Raises:
        RecordingError: no modality beside the frames, or a rectification is asked without a calibration.
    """
    camera = sensors.camera
    rectification = None
    if options.rectify_fov_deg:
        if camera is None:
            raise RecordingError(FILE_MISSING, "rectify_fov_deg is set, and there is no calibration to rectify with")
        half_tangent = np.tan(np.radians(options.rectify_fov_deg) / 2)
        size = int(min(2 * half_tangent * camera.model.focal[0], max(pictures.sensor_size)))
        rectification = rectify(
            camera.model, fov_deg=options.rectify_fov_deg, size=size, turns=TURNS_TO_UPRIGHT, stored_turns=pictures.turned
        )  # fmt: skip
    modalities: dict[str, Any] = {}
    if camera is not None and sensors.trajectory is not None:
        modalities["poses_s"] = pictures.seconds(sensors.trajectory.times_ns)
        modalities["world_from_camera"] = camera.world_from_upright(sensors.trajectory.world_from_device)
    if sensors.gaze_px is not None:
        modalities["gaze_s"], modalities["gaze_px"] = sensors.gaze_s, sensors.gaze_px
    elif camera is not None and sensors.gaze is not None:
        modalities["gaze_s"] = pictures.seconds(sensors.gaze.times_ns)
        modalities["gaze_px"] = camera.upright_px(gaze_in_rgb(sensors.gaze.points_cpf))
    if "gaze_px" in modalities:
        gaze_px = np.asarray(modalities["gaze_px"], np.float64)
        if rectification is not None:
            sensor_px = turned_points(gaze_px, -TURNS_TO_UPRIGHT, *pictures.upright_size)
            gaze_px = rectification.pixels(sensor_px)
        modalities["gaze_px"] = gaze_px.astype(np.float32)
    if sensors.depth_directory is not None:
        depth = _depth_images(sensors.depth_directory, pictures, rectification)
        modalities["depth"] = depth
    if not modalities:
        raise RecordingError(RECORDING_EMPTY, "; ".join(f"{key}: {why}" for key, why in sensors.dropped.items()))
    frames = pictures.frames
    if rectification is not None:
        frames = RectifiedFrames(frames=frames, rectification=rectification)
        modalities["intrinsics"] = rectification.intrinsics
        meta = {**meta, "rectify_fov_deg": options.rectify_fov_deg}
    return Recording(
        name=name,
        frames=frames,
        start_s=0.0,
        end_s=pictures.end_s,
        rotate_quarter_turns=0 if rectification is not None else (TURNS_TO_UPRIGHT - pictures.turned) % 4,
        dropped=sensors.dropped,
        meta=meta,
        **modalities,
    )


def exported_pictures(directory: Path, names: Sequence[str], stream: str) -> Pictures:
    """The pictures that were taken out of a VRS file, in one of the layouts at the head of this file.

    Args:
        names: of ``vrs_to_mp4``'s video, without ".mp4", the first that is there counts; none for Quest.
        stream: of the other layout, "214-1"; "" for none.

    Raises:
        RecordingError: neither is there, or the times do not fit the frames.
        VideoError: the video cannot be read.
    """
    for name in names:
        path = directory / f"{name}.mp4"
        if path.is_file():
            return _listed_video(path, _tagged_ns(path), TURNS_TO_UPRIGHT)
    choices = [f"{name}.mp4 (by vrs_to_mp4 of projectaria_tools)" for name in names]
    if stream:
        path = directory / f"{stream}.mp4"
        if path.is_file():
            times = directory / f"{stream}_timestamps.csv"
            return _listed_video(path, increasing_ns(times, read_csv(times, ("timestamp_ns",))["timestamp_ns"], 1), 0)
        choices.append(f"{stream}.mp4 with {stream}_timestamps.csv")
    raise RecordingError(
        FILE_MISSING, f"{directory}: VRS files are not read; expected {' or '.join(choices)} beside them"
    )


def listed_frames(
    path: Path, numbers: Int64[np.ndarray, " n"], times_ns: Int64[np.ndarray, " n"], turned: int
) -> Pictures:
    """Pictures of a video of which some frames have known times; of frames with one time the first is kept."""
    info = probe_video(path)
    times_ns, first = np.unique(times_ns, return_index=True)
    numbers = numbers[first]
    if info.is_variable_rate:
        raise RecordingError(FILE_DAMAGED, f"{path}: its frame rate varies, so that its frames cannot be numbered")
    if info.frames is not None:
        known = numbers < info.frames
        times_ns, numbers = times_ns[known], numbers[known]
    if not len(numbers):
        raise RecordingError(FILE_DAMAGED, f"{path}: no frame of it has a time")
    times_s = (times_ns - times_ns[0]) / 1e9
    return Pictures(
        frames=ListedFrames(path=path, numbers=numbers, times_s=times_s, fps=info.fps),
        zero_ns=int(times_ns[0]),
        end_s=float(times_s[-1] + 1 / info.fps),
        width=info.width,
        height=info.height,
        turned=turned,
    )


def _listed_video(path: Path, times_ns: Int64[np.ndarray, " n"], turned: int) -> Pictures:
    frames = probe_video(path).frames
    if frames is not None and frames != len(times_ns):
        raise RecordingError(FILE_DAMAGED, f"{path}: {frames} frames, and {len(times_ns)} times for them")
    return listed_frames(path, np.arange(len(times_ns)), times_ns, turned)


def _tagged_ns(path: Path) -> Int64[np.ndarray, " n"]:
    """The device times that vrs_to_mp4 writes into a video."""
    try:
        with av.open(str(path)) as container:
            text = container.metadata.get("description", "")
        times_ns = np.asarray([int(part) for part in text.strip(" []").split(",")], np.int64)
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise RecordingError(
            FILE_DAMAGED, f"{path}: no list of device times in its 'description' tag ({error}); make it with vrs_to_mp4"
        ) from None
    if (np.diff(times_ns) < 0).any():
        raise RecordingError(FILE_DAMAGED, f"{path}: the device times in its 'description' tag go back")
    return times_ns


def _depth_images(directory: Path, pictures: Pictures, rectification: Rectification | None) -> DepthAt:
    files = sorted((int(path.stem), path) for path in directory.glob("*.png") if path.stem.isdigit())
    if not files:
        raise RecordingError(FILE_MISSING, f"{directory}: no <timestamp_ns>.png in it")
    return DepthImages(
        paths=tuple(path for _, path in files),
        times_s=pictures.seconds(np.asarray([time_ns for time_ns, _ in files], np.int64)),
        turns=pictures.turned,
        size=(pictures.width, pictures.height),
        rectification=rectification,
    )

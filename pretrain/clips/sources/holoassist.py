"""HoloAssist: video, head pose and gaze of a HoloLens 2, as the data set's archives unpack.

Layout (README of the data set; its own reader, taeinkwon/PyHoloAssist; EgoM2P's curation)::

    <root>/data_split/{train,val,test}-v1_2.txt     a name a line
    <root>/<name>/Export_py/Video_pitchshift.mp4    896 x 504; or Video_compress.mp4
    <root>/<name>/Export_py/Video/VideoMp4Timing.txt  line 1: tick of the first frame, line 2: of the last
    <root>/<name>/Export_py/Video/Pose_sync.txt     tabs: seconds, tick, 16 numbers: world from camera, row by row
    <root>/<name>/Export_py/Video/Intrinsics.txt    tabs: 9 numbers of the matrix, ..., width, height ("Instrinsincs.txt" in the README)
    <root>/<name>/Export_py/Eyes/Eyes_sync.txt      tabs: seconds, tick, origin (3), direction (3) in the world, validity

A tick is 100 ns. The camera's frame is that of Microsoft's psi, x ahead, y left, z up; ``world_from_camera @ CAMERA_FROM_OPENCV`` has
OpenCV's axes. Gaze is the ray's point 0.5 m from its origin, projected without distortion, as EgoM2P and the data set's reader do.

Assumed: the last column of Eyes_sync is 1 where the eyes were tracked (others who read the data set say so; EgoM2P does not look at it);
a file without that column counts as tracked throughout. EgoM2P takes the n-th line of the synchronised files for the n-th thirtieth of a
second; here each sample counts at its tick. Clips show the central 480 x 480 of 896 x 504 (EgoM2P, video_cli.py).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.numbers import read_numbers, read_text, read_ticked_table
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import (
    FILE_DAMAGED,
    FILE_MISSING,
    Recording,
    SequenceSource,
    VideoFrames,
    corner_intrinsics,
)
from pretrain.clips.sources.request import LineError, checked_id, make_key, skipped_line
from pretrain.clips.sources.resample import RecordingError
from pretrain.clips.sources.splits import SPLITS, checked_root, checked_split, nothing_found
from pretrain.clips.video import probe_video

CAMERA_FROM_OPENCV = np.asarray([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float64)

_HAS = "<name>/Export_py/ for each recording"
_TICKS_PER_S = 1e7
_GAZE_DISTANCE_M = 0.5
# Part of the picture's height that EgoM2P keeps: 480 of 504.
_CROP_SHARE = 480 / 504
# A gaze sample further from a pose cannot be projected.
_POSE_NEAR_S = 0.05


def list_names(root: Path, options: SourceOptions) -> Iterator[str | Skipped]:
    """Names of the split's list in its order, or for "all" the directories in alphabetical order."""
    checked_root(root, "HoloAssist", _HAS)
    split = checked_split(options.split, "holoassist", SPLITS)
    if split == "all":
        names = sorted(path.parent.name for path in root.glob("*/Export_py"))
    else:
        path = root / "data_split" / f"{split}-v1_2.txt"
        try:
            names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        except RecordingError as error:
            raise ValueError(
                f"split={split}: {error.detail}; put the data set's lists there, or give split=all"
            ) from None
    if not names:
        raise nothing_found(root, "HoloAssist", _HAS)
    for name in names:
        try:
            yield checked_id(name, "name")
        except LineError as error:
            yield skipped_line(error, source=name, key=make_key(name))


def open_recording(root: Path, name: str, options: SourceOptions) -> Recording:
    """One session. Without poses or gaze it is still one, and says why."""
    export = root / name / "Export_py"
    if not export.is_dir():
        raise RecordingError(FILE_MISSING, f"{export}: no such directory")
    videos = [export / file for file in ("Video_pitchshift.mp4", "Video_compress.mp4")]
    video = next((path for path in videos if path.is_file()), videos[0])
    info = probe_video(video)
    start_tick = _first_tick(export / "Video" / "VideoMp4Timing.txt")
    matrix = _intrinsics(export / "Video", info.width, info.height)
    pose_ticks, numbers, damaged = read_ticked_table(export / "Video" / "Pose_sync.txt", 16)
    poses_s = (pose_ticks - start_tick) / _TICKS_PER_S
    world_from_camera = numbers.reshape(-1, 4, 4) @ CAMERA_FROM_OPENCV
    dropped: dict[str, str] = {}
    gaze_s = gaze_px = None
    try:
        eye_ticks, eyes, damaged_eyes = read_ticked_table(export / "Eyes" / "Eyes_sync.txt", 6, optional=1)
        damaged += damaged_eyes
        gaze_s = (eye_ticks - start_tick) / _TICKS_PER_S
        eyes[eyes[:, 6] == 0] = np.nan
        gaze_px = project_gaze(gaze_s, eyes[:, :6], poses_s, world_from_camera, matrix)
    except RecordingError as error:
        dropped["gaze"] = error.reason
    meta = {"damaged_lines": damaged} if damaged else {}
    return Recording(
        name=name,
        frames=VideoFrames(path=video),
        start_s=max(0.0, float(poses_s[0])),
        end_s=min(info.duration_s, float(poses_s[-1])),
        poses_s=poses_s,
        world_from_camera=world_from_camera,
        gaze_s=gaze_s,
        gaze_px=gaze_px,
        intrinsics=matrix,
        crop_px=round(_CROP_SHARE * min(info.width, info.height)),
        dropped=dropped,
        meta=meta,
    )


SOURCE = SequenceSource(list_names, open_recording)


def project_gaze(
    gaze_s: Float64[np.ndarray, " m"],
    rays: Float64[np.ndarray, "m 6"],
    poses_s: Float64[np.ndarray, " n"],
    world_from_camera: Float64[np.ndarray, "n 4 4"],
    intrinsics: Float64[np.ndarray, "3 3"],
) -> Float32[np.ndarray, "m 2"]:
    """Pixels of the points ``_GAZE_DISTANCE_M`` along rays (origin, direction) in the world, in the camera of the nearest pose.

    NaN where there is no pose near, the ray is no ray, or the point lies behind the camera.
    """
    after = np.clip(np.searchsorted(poses_s, gaze_s), 0, len(poses_s) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(gaze_s - poses_s[before]) <= np.abs(poses_s[after] - gaze_s), before, after)
    length = np.linalg.norm(rays[:, 3:], axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        points = rays[:, :3] + _GAZE_DISTANCE_M * rays[:, 3:] / length
        poses = world_from_camera[nearest]
        in_camera = np.einsum("mji,mj->mi", poses[:, :3, :3], points - poses[:, :3, 3])
        homogeneous = in_camera @ intrinsics.T
        pixels = homogeneous[:, :2] / homogeneous[:, 2:]
        usable = (
            (in_camera[:, 2] > 0) & (np.abs(poses_s[nearest] - gaze_s) <= _POSE_NEAR_S) & np.isfinite(pixels).all(1)
        )
    return np.where(usable[:, None], pixels, np.nan).astype(np.float32)


def _first_tick(path: Path) -> int:
    lines = read_text(path).split()
    try:
        return int(lines[0])
    except (ValueError, IndexError):
        raise RecordingError(FILE_DAMAGED, f"{path}: its first line is no tick") from None


def _intrinsics(directory: Path, width: int, height: int) -> Float64[np.ndarray, "3 3"]:
    names = [directory / file for file in ("Intrinsics.txt", "Instrinsincs.txt")]
    path = next((path for path in names if path.is_file()), names[0])
    numbers = read_numbers(path, 11, at_least=True)
    if not (numbers[-2:] > 0).all():
        raise RecordingError(FILE_DAMAGED, f"{path}: the size of the picture is {numbers[-2:].tolist()}")
    # The compressed videos might be smaller.
    scale = np.diag([width / numbers[-2], height / numbers[-1], 1.0])
    return scale @ corner_intrinsics(numbers[:9].reshape(3, 3))

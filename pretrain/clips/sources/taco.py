"""TACO: egocentric RGB-D video and the camera's pose, as the data set's archives unpack.

Layout (README of leolyliu/TACO-Instructions; its dataset_utils/project_pose_to_egocentric_view.py)::

    <root>/Egocentric_RGB_Videos/<triplet>/<sequence>/color.mp4
    <root>/Egocentric_Depth_Videos/<triplet>/<sequence>/egocentric_depth.avi     FFV1, 16-bit grey, 1920 x 1080
    <root>/Egocentric_Camera_Parameters/<triplet>/<sequence>/egocentric_intrinsic.txt          3 x 3
    <root>/Egocentric_Camera_Parameters/<triplet>/<sequence>/egocentric_frame_extrinsic.npy    [N, 4, 4], camera from world

Translations are metres, the camera's axes OpenCV's; pose i is that of frame i, and as in the data set's own code a sequence whose frames and
poses differ in number has no known pose. The depth's unit is a quarter of a millimetre: the README long said millimetres, and its authors
corrected that to a scale of 4000 in December 2025 (issue 15 of the repository). Depth frames of 1920 x 1080 cover the whole RGB picture,
whatever its size (published videos of 512 x 376 exist, with an intrinsic matrix for that size).

Depth belongs to the RGB frame of the same number: the depth videos state another rate (15 Hz) than the colour videos. Where the numbers
of frames differ, they are taken to cover the same time.

EgoM2P's validation sequences are ``linspace(0, 2489, 500)`` of 2490; of which order is not stated. Assumed: that of the names; of n sequences
``linspace(0, n - 1, round(500 n / 2490))``. There is no test split.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.depth_files import DepthVideo
from pretrain.clips.sources.numbers import load_array, read_numbers
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import (
    FILE_DAMAGED,
    FILE_MISSING,
    Recording,
    SequenceSource,
    VideoFrames,
    corner_intrinsics,
)
from pretrain.clips.sources.resample import RecordingError, inverse_poses
from pretrain.clips.sources.splits import checked_root, checked_split, nothing_found
from pretrain.clips.video import VideoError, probe_video

COUNTS_DIFFER = "frames and poses differ in number"

_VIDEOS, _DEPTHS, _CAMERAS = "Egocentric_RGB_Videos", "Egocentric_Depth_Videos", "Egocentric_Camera_Parameters"
_HAS = f"{_VIDEOS}/<triplet>/<sequence>/color.mp4, {_DEPTHS}/ and {_CAMERAS}/"
_UNITS_PER_M = 4000.0
_VAL_SHARE = 500 / 2490


def list_names(root: Path, options: SourceOptions) -> Iterator[str | Skipped]:
    """``<triplet>/<sequence>`` in the order of their names."""
    checked_root(root, "TACO", _HAS)
    split = checked_split(options.split, "taco", ("train", "val"))
    names = sorted("/".join(path.parts[-3:-1]) for path in root.glob(f"{_VIDEOS}/*/*/color.mp4"))
    if not names:
        raise nothing_found(root, "TACO", _HAS)
    held_out = validation_indices(len(names))
    for index, name in enumerate(names):
        if split in ("all", "val" if index in held_out else "train"):
            yield name


def validation_indices(sequences: int) -> set[int]:
    """See the head of this file."""
    return set(np.linspace(0, sequences - 1, round(_VAL_SHARE * sequences)).astype(int).tolist())


def open_recording(root: Path, name: str, options: SourceOptions) -> Recording:
    """One sequence."""
    video = root / _VIDEOS / name / "color.mp4"
    info = probe_video(video)
    frames = info.frames or round(info.duration_s * info.fps)
    cameras = root / _CAMERAS / name
    dropped: dict[str, str] = {}
    poses_s = world_from_camera = intrinsics = depth = None
    try:
        intrinsics = corner_intrinsics(read_numbers(cameras / "egocentric_intrinsic.txt", 9).reshape(3, 3))
        if not (0 < intrinsics[0, 2] < info.width and 0 < intrinsics[1, 2] < info.height):
            detail = (
                f"{cameras}: principal point {intrinsics[:2, 2].tolist()} of a picture of {info.width} x {info.height}"
            )
            raise RecordingError(FILE_DAMAGED, detail)
    except RecordingError as error:
        intrinsics, dropped["intrinsics"] = None, error.reason
    try:
        camera_from_world = load_array(cameras / "egocentric_frame_extrinsic.npy")
        if camera_from_world.shape != (frames, 4, 4):
            raise RecordingError(
                COUNTS_DIFFER, f"{cameras}: poses {camera_from_world.shape}, the video has {frames} frames"
            )
        poses_s = np.arange(frames) / info.fps
        world_from_camera = inverse_poses(camera_from_world)
    except RecordingError as error:
        dropped["camera"] = error.reason
    depth_path = root / _DEPTHS / name / "egocentric_depth.avi"
    try:
        depth_info = probe_video(depth_path)
        depth_frames = depth_info.frames or round(depth_info.duration_s * depth_info.fps)
        depth = DepthVideo(
            path=depth_path,
            hz=info.fps * depth_frames / frames,
            stated_hz=depth_info.fps,
            units_per_m=_UNITS_PER_M,
        )
    except VideoError as error:
        dropped["depth"] = error.reason if depth_path.is_file() else FILE_MISSING
    return Recording(
        name=name,
        frames=VideoFrames(path=video),
        start_s=0.0,
        end_s=info.duration_s,
        poses_s=poses_s,
        world_from_camera=world_from_camera,
        depth=depth,
        intrinsics=intrinsics,
        dropped=dropped,
        meta={"triplet": name.partition("/")[0]},
    )


SOURCE = SequenceSource(list_names, open_recording)

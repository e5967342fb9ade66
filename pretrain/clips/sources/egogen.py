"""EgoGen: synthetic RGB, depth and camera trajectories, in the form of EgoM2P's archives egom2p_*_ori.tar.

What is stated (EgoM2P's README_DATA.md, load_cam.py and the script it names, gen_egobody_depth.py of ligengen/EgoGen): camera trajectories
``cam/*.npz`` with ``arr_0`` [120, 4, 4], world from camera in OpenGL's axes (x right, y up, z backwards), in chunks of 4 s at 30 Hz; depth by
pyrender, so in metres along the optical axis, 0 where nothing is. ``world_from_camera @ CAMERA_FROM_OPENCV`` has OpenCV's axes.

What is not stated, and assumed here: that the three lie side by side under one stem, as EgoM2P's other intermediate files do::

    <root>/cam/<name>.npz       arr_0 [n, 4, 4]
    <root>/rgb/<name>.mp4       n frames at 30 Hz; or images rgb/<name>/<number>.png (or .jpg), in the order of their numbers
    <root>/depth/<name>.npz     arr_0 [n, H, W] metres

Intrinsics are known for pictures of 320 x 288 alone, the size that the script renders (focal length 200, principal point in the middle); others
have none. There are no splits: split=train is all of it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.depth_files import DepthArray
from pretrain.clips.sources.images import image_size
from pretrain.clips.sources.numbers import load_array
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import (
    FILE_DAMAGED,
    FILE_MISSING,
    NOT_GIVEN,
    FrameSource,
    ImageFrames,
    Recording,
    SequenceSource,
    VideoFrames,
)
from pretrain.clips.sources.resample import RecordingError
from pretrain.clips.sources.splits import checked_root, checked_split, nothing_found, numbered_files
from pretrain.clips.video import probe_video

CAMERA_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])

_HAS = "cam/<name>.npz, rgb/<name>.mp4 and depth/<name>.npz"
_RATE_HZ = 30.0
_ARRAY = "arr_0"
_KNOWN_SIZE = (320, 288)
# OpenGL's pixels are counted from the corner, as ours.
_KNOWN_INTRINSICS = np.asarray([[200.0, 0, 160], [0, 200, 144], [0, 0, 1]])


def list_names(root: Path, options: SourceOptions) -> Iterator[str | Skipped]:
    """Stems of the trajectories in alphabetical order."""
    checked_root(root, "EgoGen", _HAS)
    checked_split(options.split, "egogen", ("train",))
    names = sorted(path.stem for path in root.glob("cam/*.npz"))
    if not names:
        raise nothing_found(root, "EgoGen", _HAS)
    yield from names


def open_recording(root: Path, name: str, options: SourceOptions) -> Recording:
    """One chunk."""
    path = root / "cam" / f"{name}.npz"
    poses = load_array(path, name=_ARRAY)
    if poses.shape[1:] != (4, 4) or not len(poses):
        raise RecordingError(FILE_DAMAGED, f"{path}: {_ARRAY} is {poses.shape}, expected [n, 4, 4]")
    frames, duration_s, size = _frames(root / "rgb", name)
    depth_path = root / "depth" / f"{name}.npz"
    dropped = {} if depth_path.is_file() else {"depth": FILE_MISSING}
    if size != _KNOWN_SIZE:
        dropped["intrinsics"] = NOT_GIVEN
    return Recording(
        name=name,
        frames=frames,
        start_s=0.0,
        end_s=min(duration_s, len(poses) / _RATE_HZ),
        poses_s=np.arange(len(poses)) / _RATE_HZ,
        world_from_camera=poses @ CAMERA_FROM_OPENCV,
        depth=DepthArray(path=depth_path, name=_ARRAY, hz=_RATE_HZ) if depth_path.is_file() else None,
        intrinsics=_KNOWN_INTRINSICS if size == _KNOWN_SIZE else None,
        dropped=dropped,
    )


SOURCE = SequenceSource(list_names, open_recording)


def _frames(directory: Path, name: str) -> tuple[FrameSource, float, tuple[int, int]]:
    """The frames, how long they last, and their width and height."""
    images = numbered_files(directory / name, (".png", ".jpg"))
    if not images:
        info = probe_video(directory / f"{name}.mp4")
        return VideoFrames(path=directory / f"{name}.mp4"), info.duration_s, (info.width, info.height)
    paths = tuple(images.values())
    return (
        ImageFrames(paths=paths, times_s=np.arange(len(paths)) / _RATE_HZ),
        len(paths) / _RATE_HZ,
        image_size(paths[0]),
    )

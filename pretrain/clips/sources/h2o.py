"""H2O: RGB-D video and poses of a head-mounted Azure Kinect, as the data set's archives unpack.

Layout (README of taeinkwon/h2odataset; archives "subject<k>_ego" hold the head-mounted camera, cam4, alone)::

    <root>/subject<k>[_ego]/{h1,h2,k1,k2,o1,o2}/<n>/cam4/
        rgb/%06d.png        1280 x 720; else rgb256/%06d.jpg, 455 x 256
        depth/%06d.png      uint16, the pixels of rgb
        cam_pose/%06d.txt   16 numbers: world from camera
        cam_intrinsics.txt  fx fy cx cy width height

The camera's axes are OpenCV's: no fix. Splits are those of the README, which EgoM2P takes too: train are subjects 1 and 2, and 3 in h1, h2
and k1; val is subject 3 in k2, o1 and o2; test is subject 4.

From memory: the rate is 30 Hz. The data set's own viewer divides depth by 1000, so it is in millimetres.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.depth_files import DepthImages
from pretrain.clips.sources.images import image_size
from pretrain.clips.sources.numbers import read_numbers
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import (
    FILE_DAMAGED,
    FILE_MISSING,
    ImageFrames,
    Recording,
    SequenceSource,
    corner_intrinsics,
)
from pretrain.clips.sources.request import ID_DUPLICATE, make_key
from pretrain.clips.sources.resample import RecordingError
from pretrain.clips.sources.splits import SPLITS, checked_root, checked_split, nothing_found, numbered_files

_HAS = "subject<k>_ego/<place>/<n>/cam4/"
_RATE_HZ = 30.0
_UNITS_PER_M = 1000.0
_SUBJECT = re.compile(r"subject(\d+)(_ego)?(_v\d+_\d+)?")
_VAL = {("3", place) for place in ("k2", "o1", "o2")}


def list_names(root: Path, options: SourceOptions) -> Iterator[str | Skipped]:
    """``<subject directory>/<place>/<n>`` in the order of their names."""
    checked_root(root, "H2O", _HAS)
    split = checked_split(options.split, "h2o", SPLITS)
    found: list[tuple[str, str, int, str]] = []
    for path in root.glob("subject*/*/*/cam4"):
        subject, place, number = path.parts[-4:-1]
        match = _SUBJECT.fullmatch(subject)
        if match and number.isdigit():
            found.append((match[1], place, int(number), subject))
    if not found:
        raise nothing_found(root, "H2O", _HAS)
    seen: set[tuple[str, str, int]] = set()
    for person, place, number, subject in sorted(found):
        if split not in ("all", split_of(person, place)):
            continue
        name = f"{subject}/{place}/{number}"
        if (person, place, number) in seen:
            detail = "the same recording lies in another directory of its subject"
            yield Skipped(key=make_key(name), source=name, reason=ID_DUPLICATE, detail=detail)
            continue
        seen.add((person, place, number))
        yield name


def split_of(person: str, place: str) -> str:
    """The split of a subject's recordings in a place."""
    if (person, place) in _VAL:
        return "val"
    return "train" if person in ("1", "2", "3") else "test" if person == "4" else ""


def open_recording(root: Path, name: str, options: SourceOptions) -> Recording:
    """One recording of cam4. Frames without a pose file count as not tracked."""
    camera = root / name / "cam4"
    images = numbered_files(camera / "rgb", (".png", ".jpg")) or numbered_files(camera / "rgb256", (".jpg", ".png"))
    if not images:
        raise RecordingError(FILE_MISSING, f"{camera}: no images in rgb or rgb256")
    fx, fy, cx, cy, width, height = read_numbers(camera / "cam_intrinsics.txt", 6).tolist()
    matrix = corner_intrinsics(np.asarray([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
    stored_width, stored_height = image_size(next(iter(images.values())))
    if not (width > 0 and height > 0):
        raise RecordingError(FILE_DAMAGED, f"{camera / 'cam_intrinsics.txt'}: a picture of {width:g} x {height:g}")
    scale = np.diag([stored_width / width, stored_height / height, 1.0])

    dropped: dict[str, str] = {}
    poses = None
    numbers = np.asarray(list(images))
    poses_of = numbered_files(camera / "cam_pose", (".txt",))
    if not poses_of:
        dropped["camera"] = FILE_MISSING
    else:
        poses = np.full((len(numbers), 16), np.nan)
        for row, number in enumerate(numbers.tolist()):
            if number in poses_of:
                poses[row] = _read_pose(poses_of[number])
        poses = poses.reshape(-1, 4, 4)
    depths = numbered_files(camera / "depth", (".png",))
    if not depths:
        dropped["depth"] = FILE_MISSING
    times_s = numbers / _RATE_HZ
    return Recording(
        name=name,
        frames=ImageFrames(paths=tuple(images.values()), times_s=times_s),
        start_s=float(times_s[0]),
        end_s=float(times_s[-1]) + 1 / _RATE_HZ,
        poses_s=None if poses is None else times_s,
        world_from_camera=poses,
        depth=DepthImages(
            paths=tuple(depths.values()),
            times_s=np.asarray(list(depths)) / _RATE_HZ,
            units_per_m=_UNITS_PER_M,
            # Of the frame itself and not of its neighbour.
            max_gap_s=0.5 / _RATE_HZ,
        )
        if depths
        else None,
        intrinsics=scale @ matrix,
        dropped=dropped,
    )


SOURCE = SequenceSource(list_names, open_recording)


def _read_pose(path: Path) -> np.ndarray:
    """A damaged file is a frame without a pose."""
    try:
        return read_numbers(path, 16)
    except RecordingError:
        return np.full(16, np.nan)

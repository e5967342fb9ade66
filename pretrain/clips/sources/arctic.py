"""ARCTIC: egocentric pictures and the camera's motion capture, as the data set's archives unpack.

Layout (docs/data/data_doc.md of zc-alexfan/arctic; its src/arctic/preprocess_dataset.py and src/datasets/arctic_dataset.py)::

    <root>/images/<subject>/<sequence>/0/%05d.jpg     view 0 is the head-mounted camera, 2800 x 2000
    <root>/raw_seqs/<subject>/<sequence>.egocam.dist.npy   a dict of arrays:
        R_k_cam_np [F, 3, 3], T_k_cam_np [F, 3, 1]    camera from world, metres, OpenCV's axes
        intrinsics [3, 3], dist8 [8]                  pinhole matrix, and OpenCV's rational distortion k1 k2 p1 p2 k3 k4 k5 k6
    <root>/meta/misc.json                             for each subject "ioi_offset": number of the image of pose 0

``<root>`` is ``arctic_data/data`` of the archives; the directory above these is found too. The dict is read without unpickling
(:mod:`pretrain.clips.sources.pickled_arrays`). There is neither depth nor gaze. val is subject s05, as with EgoM2P; the truth of the data
set's test subject, s03, is not public, so there is no test split.

Our choice: the pictures are undistorted onto the stated pinhole matrix, so that points project where they are seen. Where the rational
model, fitted within the picture, would fold back on itself, the undistorted picture is black. Whether EgoM2P undistorts is not known.

From memory: the rate is 30 Hz.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources.images import image_size
from pretrain.clips.sources.numbers import read_text
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.pickled_arrays import load_array_dict
from pretrain.clips.sources.recording import (
    FILE_DAMAGED,
    FILE_MISSING,
    FrameSource,
    ImageFrames,
    Recording,
    SequenceSource,
    corner_intrinsics,
)
from pretrain.clips.sources.resample import RecordingError, inverse_poses
from pretrain.clips.sources.splits import checked_root, checked_split, nothing_found, numbered_files

_HAS = "raw_seqs/<subject>/<sequence>.egocam.dist.npy, images/ and meta/misc.json"
_RATE_HZ = 30.0
_VAL_SUBJECT = "s05"
_SUFFIX = ".egocam.dist.npy"
_NESTED = ("", "data", "arctic_data/data", "data/arctic_data/data")


def list_names(root: Path, options: SourceOptions) -> Iterator[str | Skipped]:
    """``<subject>/<sequence>`` in the order of their names."""
    checked_root(root, "ARCTIC", _HAS)
    split = checked_split(options.split, "arctic", ("train", "val"))
    poses = sorted(_data(root).glob(f"raw_seqs/*/*{_SUFFIX}"))
    if not poses:
        raise nothing_found(root, "ARCTIC", _HAS)
    for path in poses:
        subject = path.parent.name
        if split in ("all", "val" if subject == _VAL_SUBJECT else "train"):
            yield f"{subject}/{path.name.removesuffix(_SUFFIX)}"


def open_recording(root: Path, name: str, options: SourceOptions) -> Recording:
    """One sequence of the head-mounted camera."""
    data = _data(root)
    subject, sequence = name.split("/")
    images = numbered_files(data / "images" / subject / sequence / "0", (".jpg", ".png"))
    if not images:
        raise RecordingError(FILE_MISSING, f"{data / 'images' / subject / sequence / '0'}: no images")
    path = data / "raw_seqs" / subject / f"{sequence}{_SUFFIX}"
    try:
        stored = load_array_dict(path)
    except ValueError as error:
        raise RecordingError(FILE_DAMAGED, str(error)) from None
    frames = len(_array(path, stored, "T_k_cam_np"))
    camera_from_world = np.tile(np.eye(4), (frames, 1, 1))
    camera_from_world[:, :3, :3] = _array(path, stored, "R_k_cam_np", (frames, 3, 3))
    camera_from_world[:, :3, 3] = _array(path, stored, "T_k_cam_np").reshape(frames, -1)[:, :3]
    matrix = _array(path, stored, "intrinsics", (3, 3))
    distortion = _array(path, stored, "dist8").reshape(-1)
    if distortion.shape != (8,) or not np.isfinite(distortion).all():
        raise RecordingError(FILE_DAMAGED, f"{path}: dist8 is {distortion.tolist()}")
    offset = _first_image(data / "meta" / "misc.json", subject)
    width, height = image_size(next(iter(images.values())))
    times_s = (np.asarray(list(images)) - offset) / _RATE_HZ
    poses_s = np.arange(frames) / _RATE_HZ
    intrinsics = corner_intrinsics(matrix)
    return Recording(
        name=name,
        frames=UndistortedFrames(
            frames=ImageFrames(paths=tuple(images.values()), times_s=times_s),
            matrix=tuple(matrix.reshape(-1).tolist()),
            distortion=tuple(distortion.tolist()),
        ),
        start_s=max(float(times_s[0]), 0.0),
        end_s=min(float(times_s[-1]), float(poses_s[-1])) + 1 / _RATE_HZ,
        poses_s=poses_s,
        world_from_camera=inverse_poses(camera_from_world),
        intrinsics=intrinsics,
        meta={"stored_size": [width, height]},
    )


SOURCE = SequenceSource(list_names, open_recording)


@dataclass(frozen=True, kw_only=True)
class UndistortedFrames:
    """Frames as a camera without a lens' distortion would show them, with the same pinhole matrix.

    Attributes:
        frames: the distorted ones.
        matrix: 9 numbers of the pinhole matrix, row by row, as OpenCV counts pixels.
        distortion: 8 coefficients in OpenCV's order.
    """

    frames: FrameSource
    matrix: tuple[float, ...]
    distortion: tuple[float, ...]

    def read(
        self, times_s: Float64[np.ndarray, " T"], max_gap_s: float
    ) -> tuple[UInt8[np.ndarray, "T H W 3"], Float64[np.ndarray, " T"]]:
        frames, stamps_s = self.frames.read(times_s, max_gap_s)
        maps = undistortion_maps(self.matrix, self.distortion, frames.shape[2], frames.shape[1])
        return np.stack([cv2.remap(frame, *maps, cv2.INTER_LINEAR) for frame in frames]), stamps_s


@lru_cache(maxsize=4)
def undistortion_maps(
    matrix: tuple[float, ...], distortion: tuple[float, ...], width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the undistorted picture is in the stored one, for ``cv2.remap``; outside where the model folds back."""
    camera = np.asarray(matrix).reshape(3, 3)
    map_x, map_y = cv2.initUndistortRectifyMap(
        camera, np.asarray(distortion), np.eye(3), camera, (width, height), cv2.CV_32FC1
    )
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    radius = np.hypot((columns - camera[0, 2]) / camera[0, 0], (rows - camera[1, 2]) / camera[1, 1])
    folded = radius >= largest_radius(distortion, float(radius.max()))
    map_x[folded] = map_y[folded] = -2
    return map_x, map_y


def largest_radius(distortion: tuple[float, ...], up_to: float) -> float:
    """The undistorted radius at which the distorted one stops to grow: beyond it two rays would share a pixel."""
    k1, k2, _, _, k3, k4, k5, k6 = distortion
    radius = np.linspace(0, up_to, 2001)
    square = radius**2
    distorted = (
        radius * (1 + square * (k1 + square * (k2 + square * k3))) / (1 + square * (k4 + square * (k5 + square * k6)))
    )
    shrinks = np.flatnonzero(~(np.diff(distorted) > 0))
    return float(radius[shrinks[0]]) if len(shrinks) else np.inf


def _data(root: Path) -> Path:
    """Where raw_seqs lies: the archives nest it."""
    return next((root / place for place in _NESTED if (root / place / "raw_seqs").is_dir()), root)


def _array(path: Path, stored: dict[str, Any], name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    value = stored.get(name)
    if not isinstance(value, np.ndarray) or not value.size or (shape is not None and value.shape != shape):
        given = value.shape if isinstance(value, np.ndarray) else type(value).__name__
        raise RecordingError(
            FILE_DAMAGED, f"{path}: {name} is {given}, expected an array{f' {shape}' if shape else ''}"
        )
    return value.astype(np.float64)


def _first_image(path: Path, subject: str) -> int:
    try:
        return int(json.loads(read_text(path))[subject]["ioi_offset"])
    except (ValueError, KeyError, TypeError) as error:
        detail = f"{path}: no ioi_offset of {subject} ({type(error).__name__}: {error})"
        raise error if isinstance(error, RecordingError) else RecordingError(FILE_DAMAGED, detail) from None

"""Poses and gaze of a recording at a clip's own times, and its central square.

Axis letters: n, m samples of the recording, C samples of the clip.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from scipy.spatial.transform import Rotation, Slerp

# Why a clip lacks a modality; the same words are counted in a store's manifest.
POSE_NOT_FINITE = "pose not finite"
POSE_NOT_RIGID = "pose not a rigid motion"
POSE_GAP = "poses missing in the span"
GAZE_MISSING = "no gaze in the span"

# How far text rounding may take R @ R.T from the identity; what lies within is brought back to the nearest rotation.
_RIGID_TOLERANCE = 1e-3
# A sample due before the first pose or after the last takes that pose if it is no further.
_EDGE_S = 1 / 60


class RecordingError(ValueError):
    """A recording, or a modality of one clip, that cannot be used.

    Attributes:
        reason: a few words, the same for all with this fault; they are counted.
        detail: what was found, in a line.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def resample_poses(
    times_s: Float64[np.ndarray, " n"],
    poses: Float64[np.ndarray, "n 4 4"],
    at_s: Float64[np.ndarray, " C"],
    max_gap_s: float,
) -> Float64[np.ndarray, "C 4 4"]:
    """Rigid motions at sorted times: rotations by spherical, positions by linear interpolation between neighbours.

    Raises:
        RecordingError: a pose that is used is not finite or not a rigid motion, or two that are used lie further apart than
            ``max_gap_s``.
    """
    at_s = _pulled_in(at_s, float(times_s[0]), float(times_s[-1]))
    first = int(np.searchsorted(times_s, at_s[0] + 1e-9, side="right")) - 1
    last = int(np.searchsorted(times_s, at_s[-1] - 1e-9, side="left"))
    if first < 0 or last >= len(times_s):
        detail = f"{at_s[0]:.3f} to {at_s[-1]:.3f} s wanted, there are {times_s[0]:.3f} to {times_s[-1]:.3f} s"
        raise RecordingError(POSE_GAP, detail)
    # One clip may be one sample, and then both ends are the same pose.
    used_s, used = times_s[first : last + 1], poses[first : last + 1]
    if not np.isfinite(used).all():
        raise RecordingError(POSE_NOT_FINITE, f"{int((~np.isfinite(used)).any((1, 2)).sum())} poses")
    if not is_rigid(used).all():
        raise RecordingError(POSE_NOT_RIGID, f"{int((~is_rigid(used)).sum())} poses")
    if len(used) > 1 and np.diff(used_s).max() > max_gap_s:
        raise RecordingError(POSE_GAP, f"{np.diff(used_s).max():.3f} s without a pose")
    resampled = np.tile(np.eye(4), (len(at_s), 1, 1))
    rotations = Rotation.from_matrix(used[:, :3, :3])
    at_s = np.clip(at_s, used_s[0], used_s[-1])
    # Slerp needs two.
    between = rotations[np.zeros(len(at_s), np.int64)] if len(used) == 1 else Slerp(used_s, rotations)(at_s)
    resampled[:, :3, :3] = between.as_matrix()
    for axis in range(3):
        resampled[:, axis, 3] = np.interp(at_s, used_s, used[:, axis, 3])
    return resampled


def is_rigid(poses: Float64[np.ndarray, "n 4 4"]) -> Bool[np.ndarray, " n"]:
    """Which of some finite matrices are rotations with a translation, but for rounding."""
    rotation = poses[:, :3, :3]
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    last_row = np.abs(poses[:, 3] - (0, 0, 0, 1)).max(1)
    return (error <= _RIGID_TOLERANCE) & (last_row <= 1e-6) & (np.linalg.det(rotation) > 0)


def inverse_poses(poses: Float64[np.ndarray, "n 4 4"]) -> Float64[np.ndarray, "n 4 4"]:
    """``world_from_camera`` of ``camera_from_world`` and the reverse; NaN where there is no inverse."""
    inverted = np.full_like(poses, np.nan)
    usable = np.isfinite(poses).all((1, 2))
    usable[usable] = np.abs(np.linalg.det(poses[usable])) > 1e-9
    inverted[usable] = np.linalg.inv(poses[usable])
    return inverted


def resample_gaze(
    times_s: Float64[np.ndarray, " m"],
    points: Float32[np.ndarray, "m 2"],
    at_s: Float64[np.ndarray, " C"],
    max_gap_s: float,
) -> Float32[np.ndarray, "C 2"]:
    """The nearest sample to each time: the eye jumps, and a mean of two fixations is none. NaN where none is near, or it is a gap.

    Raises:
        RecordingError: no sample at all is left.
    """
    after = np.clip(np.searchsorted(times_s, at_s), 1, max(1, len(times_s) - 1))
    after = np.minimum(after, len(times_s) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(at_s - times_s[before]) <= np.abs(times_s[after] - at_s), before, after)
    gaze = points[nearest].astype(np.float32)
    known = (np.abs(times_s[nearest] - at_s) <= max_gap_s) & np.isfinite(gaze).all(1)
    if not known.any():
        raise RecordingError(GAZE_MISSING)
    return np.where(known[:, None], gaze, np.float32(np.nan))


@dataclass(frozen=True)
class Square:
    """A square of a picture of ``width`` x ``height``, in whole pixels."""

    left: int
    top: int
    side: int
    width: int
    height: int

    def cut_and_resize(self, frame: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
        part = np.ascontiguousarray(frame[self.top : self.top + self.side, self.left : self.left + self.side])
        how = cv2.INTER_AREA if self.side >= size else cv2.INTER_CUBIC
        return part if self.side == size else cv2.resize(part, (size, size), interpolation=how)

    def map_points(self, points: Float32[np.ndarray, "m 2"], size: int) -> Float32[np.ndarray, "m 2"]:
        """Points of the picture in pixels of the square at its new size; they may lie outside."""
        return ((points - np.asarray([self.left, self.top])) * (size / self.side)).astype(np.float32)

    def map_intrinsics(self, matrix: Float64[np.ndarray, "3 3"], size: int) -> Float64[np.ndarray, "3 3"]:
        moved = matrix - np.asarray([[0, 0, self.left], [0, 0, self.top], [0, 0, 0]])
        return np.diag([size / self.side, size / self.side, 1.0]) @ moved

    def sample_map(self, map_: Float32[np.ndarray, "h w"], size: int) -> Float32[np.ndarray, "S S"]:
        """The square of a map that covers the picture at any resolution, by the nearest of its pixels: a mean across an edge would
        be a depth where nothing is."""
        steps = (np.arange(size) + 0.5) * (self.side / size)
        rows = ((self.top + steps) * (map_.shape[0] / self.height)).astype(np.int64)
        columns = ((self.left + steps) * (map_.shape[1] / self.width)).astype(np.int64)
        return map_[np.ix_(rows, columns)]


def centre_square(height: int, width: int, side: int = 0) -> Square:
    """The square in the middle, of ``side`` px or (0, or too large) as large as the picture allows."""
    side = min(side or height, height, width)
    return Square(left=(width - side) // 2, top=(height - side) // 2, side=side, width=width, height=height)


def _pulled_in(at_s: np.ndarray, first_s: float, last_s: float) -> np.ndarray:
    """Times just outside a span on its edge; others as they are."""
    inside = np.clip(at_s, first_s, last_s)
    return np.where(np.abs(inside - at_s) <= _EDGE_S, inside, at_s)

"""Monocular visual odometry with OpenCV: what a classical method makes of a clip's images, as a baseline of camera tracking.

Corners (Shi and Tomasi 1994) are followed by pyramidal Lucas-Kanade, forward and back, from the last keyframe on. A rotation
alone is fitted to them first; only where it leaves a parallax that can be measured does an essential matrix (Nister's five
points in RANSAC, refined on all inliers) give a translation, and the frame becomes the next keyframe. Two
views say nothing of the length of a translation: it is chained so that points seen from three keyframes keep their depth
("median": by the median ratio), or taken as 1 ("unit"). Positions between keyframes are interpolated; the whole is in
arbitrary units, which `with_path_length` makes metres of with a length of path that `fit_path_length` learns from other clips.

Nothing here fails: where too few corners are followed the camera is taken to stand still, which is counted.

Axes: T video frames, H W pixels, n corners.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from scipy.optimize import least_squares

from pretrain.downstream.trajectory import interpolate_poses, inverse, path_length, relative_to_first, still_camera

SCALES = ("median", "unit")
# Followed forward and back, a corner must come home as near as this, px.
_ROUND_TRIP_PX = 1.0
_LEAST_SHARED = 8
_ROUNDS = 3
# Steps of the refinement.
_REFINEMENTS = 15
# Depth of a point beyond so many lengths of the translation is no more than noise.
_FARTHEST = 1e3


@dataclass(frozen=True, kw_only=True)
class VisualOdometryConfig:
    """Settings.

    Attributes:
        features: most corners of a keyframe; quality: of the weakest, as a share of the best one's.
        spacing: least distance of two corners, as a share of the image's shorter side.
        window: side of the window that is followed, as a share of the shorter side; levels: of the pyramid above the image.
        ransac_px: distance from its epipolar line beyond which a corner is an outlier.
        parallax_px: median distance that a rotation must leave before a translation is looked for.
        least_tracks: with fewer corners the camera is taken to stand still.
        scale: how translations are chained, one of SCALES.
    """

    features: int = 400
    quality: float = 0.01
    spacing: float = 0.02
    window: float = 0.1
    levels: int = 3
    ransac_px: float = 0.5
    parallax_px: float = 0.5
    least_tracks: int = 16
    scale: str = "median"

    def __post_init__(self) -> None:
        for name in ("features", "quality", "spacing", "window", "ransac_px", "parallax_px"):
            if not getattr(self, name) > 0:
                raise ValueError(f"visual odometry: {name}={getattr(self, name)}: expected a number above 0")
        if self.levels < 0 or self.least_tracks < 5:
            raise ValueError(
                f"visual odometry: levels={self.levels}, least_tracks={self.least_tracks}: expected 0 or more, and 5 or more"
            )
        if self.scale not in SCALES:
            raise ValueError(f"visual odometry: scale={self.scale!r}: expected one of {', '.join(SCALES)}")


@dataclass(frozen=True, kw_only=True)
class Odometry:
    """What became of one clip.

    Attributes:
        world_from_camera: a pose a frame, the first the identity; positions in arbitrary units.
        lost: frames before which too few corners were followed, so that the camera was taken to stand still.
        unresolved: frames with parallax for which no essential matrix had enough inliers: they got a rotation only.
        translations: keyframes that a translation was found for; 0 = the clip shows a rotation only.
        seconds: the work took.
    """

    world_from_camera: Float64[np.ndarray, "T 4 4"]
    lost: int
    unresolved: int
    translations: int
    seconds: float

    @property
    def moved(self) -> bool:
        return self.translations > 0


def estimate_trajectory(
    rgb: UInt8[np.ndarray, "T H W 3"],
    intrinsics: Float64[np.ndarray, "3 3"],
    config: VisualOdometryConfig | None = None,
) -> Odometry:
    """Poses of the frames, from their pixels and the pinhole matrix alone.

    Args:
        intrinsics: as a clip's: the centre of the top left pixel is (0.5, 0.5).

    Raises:
        ValueError: not uint8 RGB of at least two frames, or no pinhole matrix.
    """
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8 or len(rgb) < 2:
        raise ValueError(f"visual odometry: expected uint8[T, H, W, 3] with T of 2 or more, got {rgb.dtype}{rgb.shape}")
    intrinsics = np.asarray(intrinsics, np.float64)
    if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all() or not (np.diag(intrinsics) > 0).all():
        raise ValueError(
            f"visual odometry: expected a pinhole matrix [3, 3] in pixels, got {np.asarray(intrinsics).tolist()}"
        )
    began = time.perf_counter()
    tracker = _Tracker(config or VisualOdometryConfig(), intrinsics, len(rgb))
    for frame, image in enumerate(rgb):
        tracker.take(frame, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    poses = tracker.finish()
    return Odometry(
        world_from_camera=poses,
        lost=tracker.lost,
        unresolved=tracker.unresolved,
        translations=tracker.translations,
        seconds=time.perf_counter() - began,
    )


def at_rate(
    odometry: Odometry, frame_times_s: Float64[np.ndarray, " T"], samples: int, rate_hz: float
) -> Float64[np.ndarray, "P 4 4"]:
    """The poses at 0, 1 / rate_hz, ... seconds after the first frame."""
    return interpolate_poses(odometry.world_from_camera, frame_times_s - frame_times_s[0], np.arange(samples) / rate_hz)


def with_path_length(poses: Float64[np.ndarray, "n 4 4"], metres: float) -> Float64[np.ndarray, "n 4 4"]:
    """The trajectory scaled so that its path is so long; one that never moves stays as it is."""
    length = path_length(poses)
    scaled = poses.copy()
    if length > 0:
        scaled[:, :3, 3] = poses[0, :3, 3] + (poses[:, :3, 3] - poses[0, :3, 3]) * (metres / length)
    return scaled


def fit_path_length(
    estimated: Sequence[Float64[np.ndarray, "n 4 4"]], true: Sequence[Float64[np.ndarray, "n 4 4"]]
) -> float:
    """The metres that, as the path's length of all of these estimates, bring their positions nearest to the true ones in least
    squares, both relative to their first pose. Shorter than the true paths as far as the directions are wrong; never below 0.

    Raises:
        ValueError: no trajectories, or not as many true ones.
    """
    if not estimated or len(estimated) != len(true):
        raise ValueError(
            f"path length: {len(estimated)} estimated and {len(true)} true trajectories; expected as many of both"
        )
    product = square = 0.0
    for one, other in zip(estimated, true, strict=True):
        unit = relative_to_first(with_path_length(one, 1.0))[:, :3, 3]
        product += float((unit * relative_to_first(np.asarray(other, np.float64))[:, :3, 3]).sum())
        square += float((unit**2).sum())
    return max(0.0, product / square) if square > 0 else 0.0


# --------------------------------------------------------------------------------------------------------------- tracking


@dataclass
class _Corners:
    """Corners of the last keyframe that are still followed: their number in it, where they were, where they are (OpenCV's
    pixels, whose centres are whole numbers), and their depth in the keyframe, NaN = not known."""

    number: Int64[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    then: Float32[np.ndarray, "n 2"] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    now: Float32[np.ndarray, "n 2"] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    depth: Float64[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0))

    def keep(self, kept: Bool[np.ndarray, " n"]) -> "_Corners":
        return _Corners(self.number[kept], self.then[kept], self.now[kept], self.depth[kept])


class _Tracker:
    def __init__(self, config: VisualOdometryConfig, intrinsics: np.ndarray, frames: int) -> None:
        self.lost = self.unresolved = self.translations = 0
        self._config = config
        self._intrinsics = intrinsics.copy()
        self._intrinsics[:2, 2] -= 0.5  # the centre of OpenCV's top left pixel is (0, 0)
        self._focal = float(intrinsics[0, 0])
        self._poses = still_camera(frames)
        # Frames whose position was measured; those between are interpolated.
        self._placed = [0]
        self._key = 0
        self._last_scale = 1.0
        self._corners = _Corners()
        # Frames since the keyframe, each with its corners.
        self._between: list[tuple[int, _Corners]] = []
        self._gray = np.zeros((0, 0), np.uint8)

    def take(self, frame: int, gray: np.ndarray) -> None:
        if frame == 0:
            self._start(0, gray, _Corners())
            return
        self._follow(gray)
        self._gray = gray
        if len(self._corners.now) < self._config.least_tracks:
            self.lost += 1
            self._poses[frame] = self._poses[frame - 1]
            self._placed.append(frame)
            self._start(frame, gray, _Corners())
            return
        rotation, parallax_px = self._fit_rotation()
        step = np.eye(4)
        step[:3, :3] = rotation
        if parallax_px >= self._config.parallax_px:
            found = self._fit_motion()
            if found is None:
                self.unresolved += 1
            else:
                self._close(frame, gray, *found)
                return
        self._poses[frame] = self._poses[self._key] @ inverse(step[None])[0]
        self._between.append((frame, self._corners))

    def _close(
        self, frame: int, gray: np.ndarray, step: np.ndarray, seen: np.ndarray, then: np.ndarray, now: np.ndarray
    ) -> None:
        """Makes this frame a keyframe, whose motion `step` since the last one and depths of corners are known."""
        self.translations += 1
        last = self._poses[self._key]
        self._poses[frame] = last @ inverse(step[None])[0]
        corners = self._corners.keep(seen)
        # The frames between saw the same points; before their depth was known a step aside passed for a turn.
        points = self._rays(corners.then)
        points *= (then / points[:, 2])[:, None]
        for between, others in self._between:
            share = (between - self._key) / (frame - self._key)
            guess = interpolate_poses(np.stack([np.eye(4), step]), np.array([0.0, 1.0]), np.array([share]))[0]
            _, ours, theirs = np.intersect1d(corners.number, others.number, return_indices=True)
            pose = self._place(points[ours], others.now[theirs], guess)
            self._poses[between] = last @ inverse(pose[None])[0]
            self._placed.append(between)
        self._placed.append(frame)
        self._start(frame, gray, _Corners(corners.number, corners.now, corners.now, now))

    def finish(self) -> Float64[np.ndarray, "T 4 4"]:
        frames = np.arange(len(self._poses))
        for axis in range(3):
            self._poses[:, axis, 3] = np.interp(frames, self._placed, self._poses[self._placed, axis, 3])
        return self._poses

    def _start(self, frame: int, gray: np.ndarray, kept: _Corners) -> None:
        """Makes a keyframe: the corners that go on and new ones between them."""
        self._key, self._gray, self._between = frame, gray, []
        spacing = self._config.spacing * min(gray.shape)
        mask = np.full(gray.shape, 255, np.uint8)
        for x, y in kept.now:
            cv2.circle(mask, (round(float(x)), round(float(y))), max(1, round(spacing)), 0, -1)
        room = self._config.features - len(kept.now)
        new = None
        if room > 0:
            new = cv2.goodFeaturesToTrack(gray, room, self._config.quality, max(1.0, spacing), mask=mask, blockSize=3)
        if new is not None:
            # To a fraction of a pixel, without which small motions drown.
            new = cv2.cornerSubPix(
                gray, new, (2, 2), (-1, -1), (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01)
            )
            place = np.concatenate([kept.now, new.reshape(-1, 2)]).astype(np.float32)
            depth = np.concatenate([kept.depth, np.full(len(new), np.nan)])
            kept = _Corners(kept.number, place, place, depth)
        self._corners = _Corners(np.arange(len(kept.now)), kept.then, kept.now, kept.depth)

    def _follow(self, gray: np.ndarray) -> None:
        if len(self._corners.now) == 0:
            return
        side = max(5, round(self._config.window * min(gray.shape)) | 1)
        how = {
            "winSize": (side, side),
            "maxLevel": self._config.levels,
            "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.003),
        }
        now = self._corners.now.reshape(-1, 1, 2)
        ahead, found, _ = cv2.calcOpticalFlowPyrLK(self._gray, gray, now, None, **how)
        back, returned, _ = cv2.calcOpticalFlowPyrLK(gray, self._gray, ahead, None, **how)
        ahead = ahead.reshape(-1, 2)
        good = (found.ravel() == 1) & (returned.ravel() == 1)
        good &= np.linalg.norm(back.reshape(-1, 2) - self._corners.now, axis=1) < _ROUND_TRIP_PX
        good &= ((ahead >= 0) & (ahead <= (gray.shape[1] - 1, gray.shape[0] - 1))).all(axis=1)
        corners = self._corners
        self._corners = _Corners(corners.number, corners.then, ahead, corners.depth).keep(good)

    def _fit_rotation(self) -> tuple[Float64[np.ndarray, "3 3"], float]:
        """(the rotation now_from_then that turns the corners' rays best, px that it leaves in the median). Least squares (Arun
        et al. 1987), each time on the corners that the last one did not miss by far: hands move by themselves."""
        then, now = self._rays(self._corners.then), self._rays(self._corners.now)
        kept = np.ones(len(then), bool)
        rotation, left = np.eye(3), np.zeros(len(then))
        for _ in range(_ROUNDS):
            u, _, v = np.linalg.svd(now[kept].T @ then[kept])
            rotation = (u * (1, 1, np.linalg.det(u @ v))) @ v
            left = np.linalg.norm(now - then @ rotation.T, axis=1)
            kept = left <= 2.5 * np.median(left) + 1e-12
        return rotation, float(np.median(left)) * self._focal

    def _place(
        self, points: Float64[np.ndarray, "n 3"], pixels: Float32[np.ndarray, "n 2"], guess: Float64[np.ndarray, "4 4"]
    ) -> Float64[np.ndarray, "4 4"]:
        """The pose camera_from_keyframe that sees points of the keyframe at these pixels, from a guess on."""
        if len(points) < self._config.least_tracks:
            return guess
        start = cv2.Rodrigues(guess[:3, :3])[0], guess[:3, 3:].copy()
        turn, move = cv2.solvePnPRefineLM(points, pixels.astype(np.float64), self._intrinsics, None, *start)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], move.ravel()
        return pose if np.isfinite(pose).all() else guess

    def _fit_motion(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """(now_from_then [4, 4], which corners it explains, their depth then and now), or None."""
        then, now = self._corners.then.astype(np.float64), self._corners.now.astype(np.float64)
        essential, inliers = cv2.findEssentialMat(
            then, now, self._intrinsics, method=cv2.RANSAC, prob=0.999, threshold=self._config.ransac_px
        )
        if essential is None or essential.shape != (3, 3):
            return None
        # The sign of the translation is the one with most points before both cameras.
        count, rotation, direction, seen, _ = cv2.recoverPose(
            essential, then, now, self._intrinsics, distanceThresh=_FARTHEST, mask=inliers
        )
        if count < self._config.least_tracks:
            return None
        seen = seen.ravel() > 0
        rays = self._rays(self._corners.then[seen]), self._rays(self._corners.now[seen])
        rotation, direction = refine_motion(*rays, rotation, direction.ravel(), self._config.ransac_px / self._focal)
        depth_then, depth_now = triangulate(*rays, rotation, direction)
        before = (depth_then > 0) & (depth_then < _FARTHEST) & (depth_now > 0)
        if before.sum() < self._config.least_tracks:
            return None
        seen[seen] = before
        scale = self._chain(depth_then[before], self._corners.depth[seen])
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = rotation, scale * direction
        return step, seen, scale * depth_then[before], scale * depth_now[before]

    def _chain(self, depth: Float64[np.ndarray, " n"], known: Float64[np.ndarray, " n"]) -> float:
        """Length of the translation, so that points keep the depth they had."""
        if self._config.scale == "unit":
            return 1.0
        shared = np.isfinite(known) & np.isfinite(depth) & (depth > 0) & (known > 0)
        if shared.sum() >= _LEAST_SHARED:
            self._last_scale = float(np.median(known[shared] / depth[shared]))
        return self._last_scale

    def _rays(self, pixels: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 3"]:
        rays = np.c_[pixels.astype(np.float64), np.ones(len(pixels))] @ np.linalg.inv(self._intrinsics).T
        return rays / np.linalg.norm(rays, axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------- two views


def refine_motion(
    then: Float64[np.ndarray, "n 3"],
    now: Float64[np.ndarray, "n 3"],
    rotation: Float64[np.ndarray, "3 3"],
    direction: Float64[np.ndarray, " 3"],
    tolerance: float,
) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, " 3"]]:
    """The motion now_from_then, with a translation of length 1, of least Sampson error (Hartley and Zisserman 2004, equation
    11.9) under a robust loss that begins at `tolerance`. RANSAC's own answer rests on five points, in which a small turn and a
    small step aside look alike.

    Args:
        then, now: the same points as rays of any length before the camera (z above 0).
        tolerance: in the units of x / z.
    """
    then, now = then / then[:, 2:], now / now[:, 2:]
    # Two directions across the translation's: a point on the sphere has no third.
    across = np.linalg.svd(direction[None])[2][1:]

    def motion(change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = direction + change[3:] @ across
        return cv2.Rodrigues(change[:3])[0] @ rotation, moved / np.linalg.norm(moved)

    def errors(change: np.ndarray) -> np.ndarray:
        turned, moved = motion(change)
        x, y, z = moved
        essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ turned
        there, here = then @ essential.T, now @ essential
        slopes = there[:, 0] ** 2 + there[:, 1] ** 2 + here[:, 0] ** 2 + here[:, 1] ** 2
        return (now * there).sum(axis=1) / np.sqrt(slopes + 1e-18)

    found = least_squares(errors, np.zeros(5), loss="soft_l1", f_scale=tolerance, max_nfev=_REFINEMENTS)
    return motion(found.x)


def triangulate(
    then: Float64[np.ndarray, "n 3"],
    now: Float64[np.ndarray, "n 3"],
    rotation: Float64[np.ndarray, "3 3"],
    direction: Float64[np.ndarray, " 3"],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """(z then, z now) of the points where rays come nearest to each other: a R u + t = b v in least squares."""
    turned = then @ rotation.T
    uu, vv, uv = (turned**2).sum(axis=1), (now**2).sum(axis=1), (turned * now).sum(axis=1)
    ut, vt = turned @ direction, now @ direction
    across = np.maximum(uu * vv - uv**2, 1e-18)
    along_then, along_now = (uv * vt - vv * ut) / across, (uu * vt - uv * ut) / across
    return along_then * then[:, 2], along_now * now[:, 2]

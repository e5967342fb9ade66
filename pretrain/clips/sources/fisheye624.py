"""The fisheye camera of Project Aria and of HOT3D's Quest 3, FISHEYE624, and its rectification to a pinhole.

The model is Meta's ``FisheyeRadTanThinPrism`` with 6 radial, 2 tangential and 4 thin-prism terms (projectaria_tools,
core/calibration/camera_projections; "Camera Intrinsic Models for Project Aria"). For a point (x, y, z) of the camera frame, z > 0::

    theta = atan(|(x, y)| / z)
    (a, b) = (x, y) / |(x, y)| * theta * (1 + k0 theta^2 + k1 theta^4 + ... + k5 theta^12)
    d = a^2 + b^2
    u = f (a + p0 (2 a^2 + d) + 2 p1 a b + s0 d + s1 d^2) + cu
    v = f (b + p1 (2 b^2 + d) + 2 p0 a b + s2 d + s3 d^2) + cv

Aria's parameters count pixels from the centre of the top left one; this package counts from its corner (see
:mod:`pretrain.clips.schema`), so half a pixel is added once, in :meth:`Fisheye624.from_params`.

Axis letters: H and W pixels, S side of a rectified picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Float32, Float64
from scipy.optimize import brentq

from pretrain.clips.sources.recording import turned_camera, turned_points

_RADIAL, _TANGENTIAL, _THIN_PRISM = 6, 2, 4
_DISTORTION = _RADIAL + _TANGENTIAL + _THIN_PRISM
# The model knows only what is in front of the camera; at a right angle the point's direction has no z left.
_WIDEST_RAD = math.pi / 2 - 1e-6
_NEWTON_STEPS = 20
_THETA_STEPS = 60
# Of u / f, about a millionth of a pixel.
_CONVERGED = 1e-9


@dataclass(frozen=True, kw_only=True)
class Fisheye624:
    """A FISHEYE624 camera, for pictures as the sensor stores them.

    Attributes:
        focal: focal lengths along x and y, in pixels; Aria's cameras have one for both.
        centre: principal point in pixels, from the corner of the picture.
        radial: k0 to k5.
        tangential: p0, p1.
        thin_prism: s0 to s3.
        width, height: of the picture, in pixels.
    """

    focal: tuple[float, float]
    centre: tuple[float, float]
    radial: tuple[float, ...]
    tangential: tuple[float, ...]
    thin_prism: tuple[float, ...]
    width: int
    height: int

    def __post_init__(self) -> None:
        for name, length in (("radial", _RADIAL), ("tangential", _TANGENTIAL), ("thin_prism", _THIN_PRISM)):
            assert len(getattr(self, name)) == length, f"{name}: {length} numbers"

    @classmethod
    def from_params(cls, params: Sequence[float], *, width: int, height: int, where: str) -> "Fisheye624":
        """From the numbers of a calibration file.

        Args:
            params: 15 numbers f, cu, cv, k0..k5, p0, p1, s0..s3 (Aria), or 16 with fu, fv in front (HOT3D's Quest 3).
            where: file and place, for the message.

        Raises:
            ValueError: another count, a number that is not finite, a focal length or size that is not positive.
        """
        numbers = [float(value) for value in params]
        if len(numbers) == 3 + _DISTORTION:
            numbers = [numbers[0], *numbers]
        if len(numbers) != 4 + _DISTORTION or not all(math.isfinite(value) for value in numbers):
            raise ValueError(
                f"{where}: {len(params)} projection parameters, expected the 15 finite numbers of FISHEYE624 "
                "(f, cu, cv, 6 radial, 2 tangential, 4 thin prism), or 16 with two focal lengths"
            )
        if not (numbers[0] > 0 and numbers[1] > 0 and width > 0 and height > 0):
            raise ValueError(f"{where}: focal lengths {numbers[:2]} and size {width}x{height}, expected all above 0")
        radial_end = 4 + _RADIAL
        tangential_end = radial_end + _TANGENTIAL
        return cls(
            focal=(numbers[0], numbers[1]),
            centre=(numbers[2] + 0.5, numbers[3] + 0.5),
            radial=tuple(numbers[4:radial_end]),
            tangential=tuple(numbers[radial_end:tangential_end]),
            thin_prism=tuple(numbers[tangential_end:]),
            width=width,
            height=height,
        )

    @cached_property
    def max_angle_rad(self) -> float:
        """Up to this angle from the optical axis the radial polynomial rises, so that a pixel has one direction only."""
        # By looking: the roots of a polynomial whose last terms are nearly 0, as calibrations have, are not to be had from its matrix.
        theta = np.linspace(0, _WIDEST_RAD, 4096)
        falling = np.flatnonzero(self._slope(theta) <= 0)
        if not len(falling):
            return _WIDEST_RAD
        first = int(falling[0])
        return float(brentq(lambda one: float(self._slope(np.asarray(one))), theta[first - 1], theta[first]))

    def project(self, points: Float64[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 2"]:
        """Points of the camera frame (x along the picture's rows, y along its columns, z forward) to pixels.

        NaN for what is behind the camera or beyond :attr:`max_angle_rad`. A pixel may lie outside of the picture.
        """
        points = np.asarray(points, np.float64)
        across = np.hypot(points[..., 0], points[..., 1])
        theta = np.arctan2(across, points[..., 2])
        # On the axis itself the ratio is 1 / z, and 0 / 1 is as good.
        unit = points[..., :2] / np.where(across > 0, across, 1.0)[..., None]
        uv = self._distort(unit * self._radius(theta)[..., None])
        seen = (points[..., 2] > 0) & (theta <= self.max_angle_rad)
        return np.where(seen[..., None], uv * self.focal + self.centre, np.nan)

    def unproject(self, pixels: Float64[np.ndarray, "*n 2"]) -> Float64[np.ndarray, "*n 3"]:
        """Pixels to unit directions of the camera frame, by Newton's method; NaN where the model has no direction."""
        uv = (np.asarray(pixels, np.float64) - self.centre) / self.focal
        ab = uv.copy()
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            for _ in range(_NEWTON_STEPS):
                error = self._distort(ab) - uv
                if (np.abs(error) < _CONVERGED * 1e-3).all():
                    break
                ab = ab - _solve_2x2(self._distortion_slope(ab), error)
            found = np.abs(self._distort(ab) - uv).max(axis=-1) < _CONVERGED
            radius = np.linalg.norm(ab, axis=-1)
            theta = self._theta(np.where(found, radius, 0.0))
            found &= np.abs(self._radius(theta) - radius) < _CONVERGED
        sine = np.where(radius > 0, np.sin(theta) / np.where(radius > 0, radius, 1.0), 1.0)
        rays = np.concatenate([ab * sine[..., None], np.cos(theta)[..., None]], axis=-1)
        return np.where(found[..., None], rays, np.nan)

    def resized(self, width: int, height: int) -> "Fisheye624":
        """The same camera for its pictures scaled to another size."""
        scale = (width / self.width, height / self.height)
        return replace(
            self,
            focal=(self.focal[0] * scale[0], self.focal[1] * scale[1]),
            centre=(self.centre[0] * scale[0], self.centre[1] * scale[1]),
            width=width,
            height=height,
        )

    def cropped(self, margin: int) -> "Fisheye624":
        """The same camera for its pictures without ``margin`` pixels on each side."""
        return replace(
            self,
            centre=(self.centre[0] - margin, self.centre[1] - margin),
            width=self.width - 2 * margin,
            height=self.height - 2 * margin,
        )

    def _radius(self, theta: np.ndarray) -> np.ndarray:
        square = theta * theta
        factor = np.zeros_like(theta)
        for k in reversed(self.radial):
            factor = (factor + k) * square
        return theta * (1.0 + factor)

    def _slope(self, theta: np.ndarray) -> np.ndarray:
        """Derivative of :meth:`_radius`."""
        square = theta * theta
        slope = np.zeros_like(theta)
        for index in reversed(range(_RADIAL)):
            slope = (slope + (2 * index + 3) * self.radial[index]) * square
        return 1.0 + slope

    def _theta(self, radius: np.ndarray) -> np.ndarray:
        """The angle of a radius: Newton's method, held between bounds that close in as in bisection."""
        low = np.zeros_like(radius)
        high = np.full_like(radius, self.max_angle_rad)
        theta = np.clip(radius, low, high)
        for _ in range(_THETA_STEPS):
            excess = self._radius(theta) - radius
            low, high = np.where(excess < 0, theta, low), np.where(excess > 0, theta, high)
            with np.errstate(divide="ignore"):
                step = theta - excess / self._slope(theta)
            if (np.abs(excess) < _CONVERGED * 1e-3).all():
                break
            inside = np.isfinite(step) & (step >= low) & (step <= high)
            theta = np.where(inside, step, (low + high) / 2)
        return theta

    def _distort(self, ab: np.ndarray) -> np.ndarray:
        tangential, prism = np.asarray(self.tangential), np.asarray(self.thin_prism)
        square = np.sum(ab * ab, axis=-1, keepdims=True)
        along = 2 * np.sum(ab * tangential, axis=-1, keepdims=True)
        return ab + along * ab + square * tangential + square * prism[0::2] + square**2 * prism[1::2]

    def _distortion_slope(self, ab: np.ndarray) -> np.ndarray:
        """Derivative of :meth:`_distort`, rows u v, columns a b."""
        tangential, prism = np.asarray(self.tangential), np.asarray(self.thin_prism)
        square = np.sum(ab * ab, axis=-1)[..., None, None]
        along = 2 * np.sum(ab * tangential, axis=-1)[..., None, None]
        rows, columns = ab[..., :, None], ab[..., None, :]
        # of `along * ab`, then of all that depends on the square alone.
        slope = (1 + along) * np.eye(2) + rows * (2 * tangential)
        return slope + 2 * columns * ((tangential + prism[0::2])[:, None] + 2 * square * prism[1::2][:, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Rectification:
    """How a fisheye picture becomes that of a pinhole camera at the same place.

    Attributes:
        map_x, map_y: for each pixel of the pinhole's picture the place in the stored one, as ``cv2.remap`` counts.
        intrinsics: of the pinhole; pixels count from the corner of the picture.
        camera: the fisheye, for the picture as the sensor stores it.
        turns: counter-clockwise quarter turns from the sensor's picture to the pinhole's.
    """

    map_x: Float32[np.ndarray, "S S"]
    map_y: Float32[np.ndarray, "S S"]
    intrinsics: Float64[np.ndarray, "3 3"]
    camera: Fisheye624
    turns: int

    def image(self, image: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """The pinhole's picture; 0 where the fisheye saw nothing. ``nearest`` for ids and depth, which must not mix.

        Depth along the optical axis needs no other change: the pinhole has the same centre and axis.
        """
        how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        return cv2.remap(image, self.map_x, self.map_y, how, borderMode=cv2.BORDER_CONSTANT, borderValue=0)

    def pixels(self, sensor_px: Float64[np.ndarray, "*n 2"]) -> Float64[np.ndarray, "*n 2"]:
        """Pixels of the sensor's picture to pixels of the pinhole's; NaN stays NaN."""
        rays = self.camera.unproject(sensor_px) @ turned_camera(self.turns)[:3, :3]
        return (rays @ self.intrinsics.T)[..., :2] / rays[..., 2:]


def rectify(camera: Fisheye624, *, fov_deg: float, size: int, turns: int = 0, stored_turns: int = 0) -> Rectification:
    """A square pinhole picture, ``size`` pixels wide, that sees ``fov_deg`` from side to side.

    Args:
        turns: counter-clockwise quarter turns from the sensor's picture to the pinhole's.
        stored_turns: the same from the sensor's picture to the files', which may be upright already.

    Raises:
        ValueError: see :func:`check_fov`.
    """
    check_fov(fov_deg)
    assert fov_deg and size >= 1, "no rectification"
    focal = size / 2 / math.tan(math.radians(fov_deg) / 2)
    middles = (np.arange(size) + 0.5 - size / 2) / focal
    rays = np.stack([*np.meshgrid(middles, middles), np.ones((size, size))], axis=-1)
    sensor_px = camera.project(rays @ turned_camera(turns)[:3, :3].T).reshape(-1, 2)
    stored_px = turned_points(sensor_px, stored_turns, camera.width, camera.height)
    # cv2 counts from the centre of the first pixel; what is not seen goes far outside.
    maps = np.nan_to_num(stored_px - 0.5, nan=-1e4).astype(np.float32).reshape(size, size, 2)
    return Rectification(
        map_x=np.ascontiguousarray(maps[..., 0]),
        map_y=np.ascontiguousarray(maps[..., 1]),
        intrinsics=np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]]),
        camera=camera,
        turns=turns,
    )


def check_fov(rectify_fov_deg: float) -> None:
    """Raises ValueError for a field of view that no picture of a pinhole has; 0 stands for no rectification."""
    if rectify_fov_deg and not 1 <= rectify_fov_deg <= 150:
        raise ValueError(
            f"rectify_fov_deg={rectify_fov_deg:g}: expected 1 to 150 degrees (110 shows all of an Aria's picture, 90 is usual), or 0 for the "
            "fisheye pictures as recorded"
        )


def _solve_2x2(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    determinant = matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
    first = (matrix[..., 1, 1] * vector[..., 0] - matrix[..., 0, 1] * vector[..., 1]) / determinant
    second = (matrix[..., 0, 0] * vector[..., 1] - matrix[..., 1, 0] * vector[..., 0]) / determinant
    return np.stack([first, second], axis=-1)

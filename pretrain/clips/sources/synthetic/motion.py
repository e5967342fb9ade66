"""Rigid poses and the motions of hands, things and joints as functions of time.

A pose is float64[4,4], world_from_body. Nothing is integrated: every motion can be asked for at any time, so frames,
camera samples and checks may use rates of their own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

CURVE_SHARE = 0.75  # of a move's progress, before its straight last stretch
PoseAt = Callable[[float], np.ndarray]


def min_jerk(s: float) -> float:
    """10 s^3 - 15 s^4 + 6 s^5 on [0, 1], clamped outside: the minimum-jerk profile of Flash and Hogan (1985)."""
    s = min(max(s, 0.0), 1.0)
    # Rounding may end a hair above 1.
    return min(s * s * s * (10.0 + s * (6.0 * s - 15.0)), 1.0)


def pose(rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation, position
    return result


def inverse(transform: np.ndarray) -> np.ndarray:
    return pose(transform[:3, :3].T, -transform[:3, :3].T @ transform[:3, 3])


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """float64[3,3] by Rodrigues' formula."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def turned(transform: np.ndarray, axis: np.ndarray, anchor: np.ndarray, angle: float) -> np.ndarray:
    """`transform` turned in the world about the line through `anchor` along `axis`."""
    rotation = rotation_about(axis, angle)
    return pose(rotation, anchor - rotation @ anchor) @ transform


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """axis * angle of a rotation by less than pi."""
    angle = float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0)))
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    norm = np.linalg.norm(axis)
    return axis / norm * angle if norm > 1e-9 else np.zeros(3)


def interpolated_rotation(start: np.ndarray, end: np.ndarray, s: float) -> np.ndarray:
    vector = rotation_vector(start.T @ end)
    angle = float(np.linalg.norm(vector))
    return start if angle < 1e-9 else start @ rotation_about(vector, s * angle)


@dataclass
class Timeline:
    """Functions of time, each valid from its start until the next one's; the first one holds before its start too."""

    starts: list[float] = field(default_factory=list)
    parts: list[Callable] = field(default_factory=list)

    def add(self, start: float, part: Callable) -> None:
        assert not self.starts or start >= self.starts[-1], "parts of a timeline are added in order"
        self.starts.append(start)
        self.parts.append(part)

    def __call__(self, time: float):
        return self.parts[max(bisect_right(self.starts, time) - 1, 0)](time)


class HandMotion:
    """A palm's pose and finger angles over time, written as a chain of moves."""

    def __init__(self, palm: np.ndarray, fingers: np.ndarray) -> None:
        self._palm, self._fingers = Timeline(), Timeline()
        self._palm.add(0.0, lambda time: palm)
        self._fingers.add(0.0, lambda time: fingers)
        self.end = 0.0

    def palm(self, time: float) -> np.ndarray:
        return self._palm(time)

    def fingers(self, time: float) -> np.ndarray:
        return self._fingers(time)

    def move(
        self,
        start: float,
        end: float,
        palm: np.ndarray,
        *,
        leave: np.ndarray | None = None,
        arrive: np.ndarray | None = None,
    ) -> None:
        """Moves the palm along a smooth curve with a minimum-jerk profile.

        Args:
            leave: the way out of the start, a vector in metres from the start to the curve's first control point.
            arrive: the last, straight stretch of the way, a vector in metres; the hand has turned before it begins.
                None = a curve all the way.
        """
        origin = self.palm(start)
        p0, goal = origin[:3, 3], palm[:3, 3]
        p3 = goal if arrive is None else goal - arrive
        p1 = p0 + (leave if leave is not None else (p3 - p0) / 3)
        # With this control point the curve runs into the straight stretch without a jump in velocity.
        p2 = p3 - (p3 - p0) / 3 if arrive is None else p3 - arrive * CURVE_SHARE / (3 * (1 - CURVE_SHARE))
        share = 1.0 if arrive is None else CURVE_SHARE

        def part(time: float) -> np.ndarray:
            s = min_jerk((time - start) / (end - start))
            u = min(s / share, 1.0)
            r = 1 - u
            position = r**3 * p0 + 3 * r * r * u * p1 + 3 * r * u * u * p2 + u**3 * p3
            if s > share:
                position = p3 + (goal - p3) * (s - share) / (1 - share)
            return pose(interpolated_rotation(origin[:3, :3], palm[:3, :3], min_jerk(u)), position)

        self._palm.add(start, part)
        self.end = max(self.end, end)

    def shape(self, start: float, end: float, fingers: np.ndarray) -> None:
        """Moves the finger angles to `fingers` with a minimum-jerk profile."""
        origin = self.fingers(start)
        self._fingers.add(start, lambda time: origin + (fingers - origin) * min_jerk((time - start) / (end - start)))
        self.end = max(self.end, end)

    def conduct(self, start: float, end: float, palm: PoseAt) -> None:
        """Puts the palm where `palm(time)` says from `start` to `end`, then at rest."""
        self._palm.add(start, lambda time: palm(min(time, end)))
        self.end = max(self.end, end)

    def follow(self, start: float, end: float, carrier: PoseAt) -> None:
        """Keeps the palm fixed in the frame of `carrier` from `start` to `end`, then at rest in the world."""
        local = inverse(carrier(start)) @ self.palm(start)
        self._palm.add(start, lambda time: carrier(min(time, end)) @ local)
        self.end = max(self.end, end)


def ramp(start: float, end: float, low: float, high: float) -> Callable[[float], float]:
    """A minimum-jerk passage from `low` to `high`."""
    return lambda time: low + (high - low) * min_jerk((time - start) / (end - start))

"""The wearer's head and eyes: camera trajectory, shoulders and gaze.

The head sways smoothly, leans towards what is done, and turns most of the way to where the eyes look, a little later than
they do. The eyes fixate, jump, and follow what they look at when it moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pretrain.clips.sources.synthetic.hands import SIDES
from pretrain.clips.sources.synthetic.motion import pose
from pretrain.clips.sources.synthetic.plan import Plan, PointAt

STEP_S = 1 / 60
HEAD_LAG_S = 0.22  # time constant of each of the two low-pass stages from eyes to head
HEAD_SHARE = 0.55  # how much of a gaze shift the head takes over
SACCADE_S = 0.045
GAZE_NOISE_DEGREES = 0.35
WATCHING_M = (0.6, 1.8)  # of somebody who watches, from the middle of the work area, level
WATCHING_HEIGHT_M = (0.3, 1.3)  # of the eyes, above the table


@dataclass(frozen=True, kw_only=True)
class HeadRig:
    """Head motion, sampled every STEP_S from time 0, to be read at any time in the clip.

    Attributes:
        eye: float64[N,3] world positions of the camera.
        look: float64[N,3] unit vectors of the camera's optical axis.
        roll: float64[N] rotation about it, radians.
        lean: float64[N,3] displacement of the trunk.
        shoulder: the shoulders' rest positions by side.
    """

    eye: np.ndarray
    look: np.ndarray
    roll: np.ndarray
    lean: np.ndarray
    shoulder: dict[str, np.ndarray]

    def _at(self, values: np.ndarray, time: float) -> np.ndarray:
        place = min(max(time / STEP_S, 0.0), len(values) - 1.001)
        index = int(place)
        return values[index] + (place - index) * (values[index + 1] - values[index])

    def world_from_camera(self, time: float) -> np.ndarray:
        """float64[4,4], OpenCV convention: x right, y down, z forward."""
        z = self._at(self.look, time)
        z = z / np.linalg.norm(z)
        x = np.cross(z, [0.0, 0.0, 1.0])
        x /= np.linalg.norm(x)
        y = np.cross(z, x)
        roll = float(self._at(self.roll, time))
        x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
        return pose(np.column_stack([x, y, z]), self._at(self.eye, time))

    def shoulders(self, time: float) -> dict[str, np.ndarray]:
        return {side: self.shoulder[side] + self._at(self.lean, time) for side in SIDES}


def _wander(rng: np.random.Generator, times: np.ndarray, *, amplitude: float) -> np.ndarray:
    """A smooth random signal: four sines of 0.15 to 1.4 Hz, weaker as they get quicker."""
    frequency = rng.uniform(0.15, 1.4, 4)
    phase = rng.uniform(0, 2 * np.pi, 4)
    weight = rng.normal(size=4) / (1 + 2 * frequency)
    return amplitude * (weight[:, None] * np.sin(2 * np.pi * frequency[:, None] * times + phase[:, None])).sum(axis=0)


def _followed(wanted: np.ndarray) -> np.ndarray:
    """float[K,3]: where a head looks that follows the points, one each STEP_S, with two lags of HEAD_LAG_S one after the other."""
    smooth = np.empty_like(wanted)
    first = second = wanted[0]
    for index, point in enumerate(wanted):
        first = first + (point - first) * STEP_S / HEAD_LAG_S
        second = second + (first - second) * STEP_S / HEAD_LAG_S
        smooth[index] = second
    return smooth


def draw_rig(rng: np.random.Generator, plan: Plan, duration: float) -> HeadRig:
    """Draws the wearer and moves the head through a plan."""
    warm_up = 1.5
    times = np.arange(-warm_up, duration + 3 * STEP_S, STEP_S)
    points = np.array([looked_at(plan, max(time, 0.0)) for time in times])
    workspace = np.array([0.0, 0.24, 0.02]) + rng.normal(size=3) * [0.02, 0.03, 0.01]
    wanted = HEAD_SHARE * points + (1 - HEAD_SHARE) * workspace
    smooth = _followed(wanted)
    height = rng.uniform(0.40, 0.52)
    rest = np.array([rng.uniform(-0.03, 0.03), rng.uniform(-0.27, -0.17), height])
    lean = 0.10 * (smooth - workspace) * [1.0, 1.0, 0.2]
    lean += np.stack([_wander(rng, times, amplitude=size) for size in (0.010, 0.008, 0.004)], axis=1)
    eye = rest + lean + np.stack([_wander(rng, times, amplitude=0.003) for _ in range(3)], axis=1)
    look = smooth - eye
    look /= np.linalg.norm(look, axis=1, keepdims=True)
    look += np.stack([_wander(rng, times, amplitude=0.012) for _ in range(3)], axis=1)
    roll = _wander(rng, times, amplitude=0.02) + rng.normal() * 0.02
    keep = slice(round(warm_up / STEP_S), None)
    shoulder = {side: rest + np.array([(0.18 if side == "right" else -0.18), -0.03, -0.27]) for side in SIDES}
    return HeadRig(eye=eye[keep], look=look[keep], roll=roll[keep], lean=lean[keep], shoulder=shoulder)


def draw_watching_rig(rng: np.random.Generator, plan: Plan, duration: float) -> HeadRig:
    """Draws somebody who stands anywhere around the work area and watches; the head moves as that of `draw_rig`."""
    warm_up = 1.5
    times = np.arange(-warm_up, duration + 3 * STEP_S, STEP_S)
    points = np.array([looked_at(plan, max(time, 0.0)) for time in times])
    middle = 0.5 * points.mean(axis=0) + 0.5 * np.array([0.0, 0.05, 0.12]) + rng.normal(size=3) * [0.07, 0.07, 0.05]
    share = float(rng.uniform(0.1, HEAD_SHARE))
    wanted = share * points + (1 - share) * middle
    smooth = _followed(wanted)
    angle = rng.uniform(0, 2 * np.pi)
    distance = np.exp(rng.uniform(*np.log(WATCHING_M)))
    rest = middle + distance * np.array([np.cos(angle), np.sin(angle), 0.0])
    rest[2] = rng.uniform(*WATCHING_HEIGHT_M)
    still = float(rng.choice([0.15, 1.0, 1.0]))  # some stand as still as a tripod
    eye = rest + still * np.stack([_wander(rng, times, amplitude=size) for size in (0.012, 0.012, 0.005)], axis=1)
    look = smooth - eye
    look /= np.linalg.norm(look, axis=1, keepdims=True)
    look += still * np.stack([_wander(rng, times, amplitude=0.012) for _ in range(3)], axis=1)
    roll = still * (_wander(rng, times, amplitude=0.02) + rng.normal() * 0.03)
    keep = slice(round(warm_up / STEP_S), None)
    nobody = {side: rest for side in SIDES}
    return HeadRig(eye=eye[keep], look=look[keep], roll=roll[keep], lean=(eye - rest)[keep], shoulder=nobody)


def looked_at(plan: Plan, time: float) -> np.ndarray:
    """The world point that the eyes are aimed at, without noise."""
    current: PointAt = plan.looks[0][1]
    for start, point in plan.looks:
        if start <= time:
            current = point
    return current(time)


def intrinsics(fov_degrees: float, image_size: int) -> np.ndarray:
    """float64[3,3] of a square image, in pixels; the image's corner is (0, 0)."""
    focal = image_size / 2 / np.tan(np.deg2rad(fov_degrees) / 2)
    return np.array([[focal, 0, image_size / 2], [0, focal, image_size / 2], [0, 0, 1.0]])


def project(point: np.ndarray, world_from_camera: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """float64[3]: (x, y) in pixels and the depth in metres of a world point."""
    local = world_from_camera[:3, :3].T @ (point - world_from_camera[:3, 3])
    pixel = matrix @ local
    return np.array([pixel[0] / pixel[2], pixel[1] / pixel[2], local[2]])


def inside(pixel: np.ndarray, size: int) -> bool:
    """Whether what `project` gave is well within a picture of `size` pixels."""
    return bool(pixel[2] > 0.1 and 0.03 * size < pixel[0] < 0.97 * size and 0.03 * size < pixel[1] < 0.97 * size)


def gaze_track(
    rng: np.random.Generator, plan: Plan, rig: HeadRig, matrix: np.ndarray, times: np.ndarray, image_size: int
) -> np.ndarray:
    """float32[G,2]: the point of gaze in pixels, NaN in blinks and where it leaves the image.

    Each fixation misses its point by a little, long ones are broken by small jumps, and noise of an eye tracker is added.
    """
    starts = [start for start, _ in plan.looks]
    # Long fixations are split: people re-fixate every few hundred milliseconds.
    jumps = sorted(starts + [float(t) for t in np.cumsum(rng.uniform(0.25, 0.6, 40)) if t < times[-1]])
    misses = rng.normal(size=(len(jumps) + 1, 3)) * 0.006
    gaze = np.full((len(times), 2), np.nan)

    def aimed(time: float, number: int) -> np.ndarray:
        return looked_at(plan, time) + misses[number]

    for index, time in enumerate(times):
        number = int(np.searchsorted(jumps, time, side="right"))
        point = aimed(time, number)
        if number > 0 and (since := time - jumps[number - 1]) < SACCADE_S:
            before = looked_at(plan, jumps[number - 1] - 1e-6) + misses[number - 1]
            point = before + (point - before) * since / SACCADE_S
        pixel = project(point, rig.world_from_camera(time), matrix)
        gaze[index] = pixel[:2] if pixel[2] > 0.05 else np.nan
    gaze += rng.normal(size=gaze.shape) * np.deg2rad(GAZE_NOISE_DEGREES) * matrix[0, 0]
    for _ in range(rng.poisson(0.35 * times[-1] / 2.0)):
        start, length = rng.uniform(0, times[-1]), rng.uniform(0.08, 0.22)
        gaze[(times >= start) & (times < start + length)] = np.nan
    outside = ~((gaze >= 0) & (gaze <= image_size)).all(axis=1)
    gaze[outside] = np.nan
    return gaze.astype(np.float32)

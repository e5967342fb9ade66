"""Things that are only seen, placed where a camera sees them and where they hide next to nothing of the task.

A grid of rays through the camera's image says what each pixel shows. Level, still surfaces of some size (tables, counters, floors) can carry a
distractor; whatever else is seen (the robot, things that move, small things, a goal's marker) may be part of the task and must stay in sight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from envs.shifts_scenery import Part
from envs.shifts_view import VISIBLE_GROUPS, FixedCamera, View, look

_GRID = 40  # rays a side of the image
_RADIUS = (0.055, 0.09)  # of a distractor, as a share of its distance from the camera
_MARGIN = 0.012  # between what a distractor covers and a task object, radians
_HIDDEN = 0.1  # the share of what is seen of a task object that all distractors together may hide
_CANDIDATES = 120  # places that are tried for one
_GAP = 0.25  # between two distractors, as a share of their radii
_SHRINK = (1.0, 0.75, 0.55, 0.4)  # where there is no room, smaller ones are tried
_ENOUGH = 20  # points of ground that are worth choosing among
_REACH = 0.75  # how far from what the camera looks at, as a share of its distance from the camera

_BOX, _BALL, _CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER
_CAPSULE, _EGG = mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_ELLIPSOID


@dataclass(frozen=True)
class _Solid:
    """A part of a thing of radius 1 that stands on z = 0; `along` is the direction of its z axis, `colour` which of the thing's two it has."""

    shape: mujoco.mjtGeom
    size: tuple[float, float, float]
    centre: tuple[float, float, float]
    colour: int = 0
    along: tuple[float, float, float] = (0.0, 0.0, 1.0)


# Each fits a ball of radius 1 about (0, 0, 0.8), nearly.
THINGS: dict[str, tuple[_Solid, ...]] = {
    "ball": (_Solid(_BALL, (0.75, 0, 0), (0, 0, 0.75)),),
    "egg": (_Solid(_EGG, (0.8, 0.5, 0.5), (0, 0, 0.5)),),
    "block": (_Solid(_BOX, (0.55, 0.55, 0.55), (0, 0, 0.55)), _Solid(_BOX, (0.56, 0.2, 0.56), (0, 0, 0.55), 1)),
    "can": (
        _Solid(_CYLINDER, (0.5, 0.75, 0), (0, 0, 0.75)),
        _Solid(_CYLINDER, (0.51, 0.4, 0), (0, 0, 0.75), 1),
    ),
    "bottle": (
        _Solid(_CYLINDER, (0.4, 0.6, 0), (0, 0, 0.6)),
        _Solid(_EGG, (0.4, 0.4, 0.3), (0, 0, 1.2)),
        _Solid(_CYLINDER, (0.15, 0.3, 0), (0, 0, 1.5), 1),
    ),
    "mug": (
        _Solid(_CYLINDER, (0.5, 0.55, 0), (0, 0, 0.55)),
        _Solid(_CYLINDER, (0.42, 0.01, 0), (0, 0, 1.1), 1),
        _Solid(_CAPSULE, (0.08, 0.2, 0), (0.75, 0, 0.55)),
        _Solid(_CAPSULE, (0.08, 0.12, 0), (0.62, 0, 0.78), 0, (1, 0, 0)),
        _Solid(_CAPSULE, (0.08, 0.12, 0), (0.62, 0, 0.32), 0, (1, 0, 0)),
    ),
    "book": (
        _Solid(_BOX, (0.8, 0.58, 0.13), (0, 0, 0.13)),
        _Solid(_BOX, (0.78, 0.6, 0.09), (0.04, 0, 0.13), 1),
    ),
    "dumb-bell": (
        _Solid(_CAPSULE, (0.12, 0.5, 0), (0, 0, 0.35), 1, (1, 0, 0)),
        _Solid(_BALL, (0.35, 0, 0), (-0.55, 0, 0.35)),
        _Solid(_BALL, (0.35, 0, 0), (0.55, 0, 0.35)),
    ),
    "toadstool": (
        _Solid(_CYLINDER, (0.22, 0.4, 0), (0, 0, 0.4), 1),
        _Solid(_EGG, (0.7, 0.7, 0.4), (0, 0, 0.95)),
    ),
}
_CENTRE_Z = 0.8


@dataclass(frozen=True, kw_only=True)
class _Sight:
    """What a camera sees that may be part of the task: points on it, whose body (or marker) each is on, and which distractors hide already.

    Attributes:
        position: the camera's, [3].
        points: [points, 3].
        owner: [points], numbers from 0.
        hidden: bool [points].
    """

    position: np.ndarray
    points: np.ndarray
    owner: np.ndarray
    hidden: np.ndarray

    def hidden_by(self, centre: np.ndarray, radius: float) -> np.ndarray:
        """Which points are in the shadow that a ball casts from the camera, or close beside it; bool [points]."""
        distance = np.linalg.norm(centre - self.position)
        lines = self.points - self.position
        cosine = lines @ (centre - self.position) / (np.linalg.norm(lines, axis=1) * distance)
        return np.arccos(np.clip(cosine, -1, 1)) < np.arcsin(min(1.0, radius / distance)) + _MARGIN

    def allows(self, centre: np.ndarray, radius: float) -> bool:
        """Whether a ball touches nothing of the task and leaves nearly all of each of its parts in sight."""
        near = radius + _MARGIN * np.linalg.norm(centre - self.position)
        if (np.linalg.norm(self.points - centre, axis=1) < near).any():
            return False
        hidden = self.hidden | self.hidden_by(centre, radius)
        counts = np.bincount(self.owner)
        return bool((np.bincount(self.owner[hidden], minlength=len(counts)) <= _HIDDEN * counts).all())


def place_distractors(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    cameras: Sequence[FixedCamera],
    count: int,
    random: np.random.Generator,
) -> tuple[tuple[Part, ...], ...]:
    """Place up to `count` distractors where `cameras` see them, each in turn, so that they hide at most a tenth of any task object from each camera.

    A greater count adds to what a smaller one places. There are fewer than `count` only where none would fit, at two fifths of its size.

    Args:
        data: after `mj_kinematics` and `mj_camlight`.

    Raises:
        ValueError: no camera.
    """
    if not cameras:
        raise ValueError(
            "distractors are placed for a camera that is fixed to the world, and none of the chosen cameras is: "
            "choose another shift, or a camera that does not move with the robot"
        )
    views = [_look(model, data, camera) for camera in cameras]
    sights = [_sight(model, data, camera, view) for camera, view in zip(cameras, views, strict=True)]
    grounds = [_grounds(model, camera, view) for camera, view in zip(cameras, views, strict=True)]
    # What they are must not depend on where there is room.
    looks, places = random.spawn(2)
    placed: list[tuple[np.ndarray, float]] = []
    distractors = []
    for number in range(count):
        size = looks.uniform(*_RADIUS)
        thing = list(THINGS.values())[looks.integers(len(THINGS))]
        colours = looks.uniform(size=(2, 3))
        heading = looks.uniform(0, 2 * np.pi)
        spot = _find_spot(
            model, data, sights, places.permutation(grounds[number % len(grounds)])[:_CANDIDATES], size, placed
        )
        if spot is None:
            continue
        ground, radius = spot
        centre = ground + np.array([0, 0, _CENTRE_Z * radius])
        placed.append((centre, radius))
        for sight in sights:
            sight.hidden[:] |= sight.hidden_by(centre, radius)
        distractors.append(tuple(_part(solid, ground, radius, heading, colours) for solid in thing))
    return tuple(distractors)


def _look(model: mujoco.MjModel, data: mujoco.MjData, camera: FixedCamera) -> View:
    rotation = data.cam_xmat[camera.id].reshape(3, 3)
    return look(model, data, data.cam_xpos[camera.id], rotation, model.cam_fovy[camera.id], _GRID)


def _sight(model: mujoco.MjModel, data: mujoco.MjData, camera: FixedCamera, view: View) -> _Sight:
    # The robot counts: its hand is where the work is.
    task = (view.geoms >= 0) & ~view.shows(camera.ground)
    markers = np.flatnonzero((model.site_rgba[:, 3] > 0) & VISIBLE_GROUPS[model.site_group].astype(bool))
    around = np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    marked = data.site_xpos[markers, None] + model.site_size[markers, :1, None] * around
    points = np.concatenate([view.hits[task], marked.reshape(-1, 3)])
    owner = np.concatenate([model.geom_bodyid[view.geoms[task]], np.repeat(model.nbody + markers, len(around))])
    return _Sight(position=view.position, points=points, owner=owner.astype(int), hidden=np.zeros(len(points), bool))


def _grounds(model: mujoco.MjModel, camera: FixedCamera, view: View) -> np.ndarray:
    """The points that the camera sees of what may carry a distractor, near the work; of the floor only where there is nothing else. [points, 3]."""
    floor = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    near = _REACH * np.linalg.norm(camera.pivot - view.position)
    for geoms in (camera.ground & ~floor, camera.ground):
        points = view.hits[view.shows(geoms)]
        points = points[np.linalg.norm(points - camera.pivot, axis=1) < near]
        if len(points) >= _ENOUGH:
            break
    return points


def _find_spot(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    sights: Sequence[_Sight],
    grounds: np.ndarray,
    size: float,
    placed: Sequence[tuple[np.ndarray, float]],
) -> tuple[np.ndarray, float] | None:
    """The first point of `grounds` with room for a thing of `size` times its distance, and the radius that fits there."""
    for shrink in _SHRINK:
        for ground in grounds:
            radius = shrink * size * float(np.linalg.norm(ground - sights[0].position))
            centre = ground + np.array([0, 0, _CENTRE_Z * radius])
            if any(np.linalg.norm(centre - other) < (1 + _GAP) * (radius + far) for other, far in placed):
                continue
            if all(sight.allows(centre, radius) for sight in sights) and _carried(model, data, ground, radius):
                return ground, radius
    return None


def _carried(model: mujoco.MjModel, data: mujoco.MjData, ground: np.ndarray, radius: float) -> bool:
    """Whether there is ground under the four edges of a thing, and nothing on it."""
    geom = np.array([-1], np.int32)
    down = np.array([0.0, 0.0, -1.0])
    for x, y in ((0.6, 0.0), (-0.6, 0.0), (0.0, 0.6), (0.0, -0.6)):
        start = ground + radius * np.array([x, y, 2.0])
        fall = mujoco.mj_ray(model, data, start, down, VISIBLE_GROUPS, 1, -1, geom)
        if abs(fall - 2 * radius) > 0.1 * radius:
            return False
    return True


def _part(solid: _Solid, ground: np.ndarray, radius: float, heading: float, colours: np.ndarray) -> Part:
    turn = np.array([[np.cos(heading), -np.sin(heading), 0], [np.sin(heading), np.cos(heading), 0], [0, 0, 1]])
    quat, upright = np.empty(4), np.empty(9)
    mujoco.mju_quatZ2Vec(quat, np.array(solid.along, np.float64))
    mujoco.mju_quat2Mat(upright, quat)
    return Part(
        shape=solid.shape,
        size=(radius * solid.size[0], radius * solid.size[1], radius * solid.size[2]),
        position=ground + turn @ (radius * np.array(solid.centre)),
        rotation=turn @ upright.reshape(3, 3),
        rgb=(colours[solid.colour, 0], colours[solid.colour, 1], colours[solid.colour, 2]),
    )

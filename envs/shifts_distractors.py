"""Things that are only seen, placed where a camera sees them and where they hide no task object.

A grid of rays through the camera's image says what each pixel shows. Level, still surfaces of some size (tables, counters, floors) can carry a
distractor; whatever else is seen (the robot, things that move, small things, a goal's marker) may be part of the task and must not be hidden.
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
_GAP = 0.25  # between two distractors, as a share of their radii
_SHRINK = (1.0, 0.75, 0.55, 0.4)  # where there is no room, smaller ones are tried
_LEVEL_Z = 0.97
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
    """What matters of a camera's view: where it stands, [3], and the points that show what may be part of the task, [points, 3]."""

    position: np.ndarray
    task: np.ndarray


def place_distractors(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    cameras: Sequence[FixedCamera],
    count: int,
    random: np.random.Generator,
) -> tuple[tuple[Part, ...], ...]:
    """Place up to `count` distractors in the view of the first camera, so that they hide nothing of the task from any of `cameras`.

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
    first = views[0]
    grounds = first.hits[first.shows(cameras[0].ground) & _level(first.hits, first.geoms)]
    # Where the work is: on the table and not on the floor behind it.
    reach = _REACH * np.linalg.norm(cameras[0].pivot - first.position)
    grounds = grounds[np.linalg.norm(grounds - cameras[0].pivot, axis=1) < reach]
    # What they are must not depend on where there is room.
    looks, places = random.spawn(2)
    placed: list[tuple[np.ndarray, float]] = []
    distractors = []
    for _ in range(count):
        size = looks.uniform(*_RADIUS)
        thing = list(THINGS.values())[looks.integers(len(THINGS))]
        colours = looks.uniform(size=(2, 3))
        heading = looks.uniform(0, 2 * np.pi)
        spot = _find_spot(model, data, sights, places.permutation(grounds), size, placed)
        if spot is None:
            continue
        ground, radius = spot
        placed.append((ground + np.array([0, 0, _CENTRE_Z * radius]), radius))
        distractors.append(tuple(_part(solid, ground, radius, heading, colours) for solid in thing))
    return tuple(distractors)


def _look(model: mujoco.MjModel, data: mujoco.MjData, camera: FixedCamera) -> View:
    rotation = data.cam_xmat[camera.id].reshape(3, 3)
    return look(model, data, data.cam_xpos[camera.id], rotation, model.cam_fovy[camera.id], _GRID)


def _sight(model: mujoco.MjModel, data: mujoco.MjData, camera: FixedCamera, view: View) -> _Sight:
    # The robot counts: its hand is where the work is.
    seen = view.hits[(view.geoms >= 0) & ~view.shows(camera.ground)]
    marked = (model.site_rgba[:, 3] > 0) & (model.site_group <= 2)
    return _Sight(position=view.position, task=np.concatenate([seen, data.site_xpos[marked]]))


def _level(hits: np.ndarray, geoms: np.ndarray) -> np.ndarray:
    """Where the four neighbours of a pixel show the same geom and lie in a level plane with it."""
    level = np.zeros(geoms.shape, bool)
    middle = geoms[1:-1, 1:-1]
    same = np.ones(middle.shape, bool)
    for neighbour in (geoms[:-2, 1:-1], geoms[2:, 1:-1], geoms[1:-1, :-2], geoms[1:-1, 2:]):
        same &= neighbour == middle
    normal = np.cross(hits[1:-1, 2:] - hits[1:-1, :-2], hits[:-2, 1:-1] - hits[2:, 1:-1])
    with np.errstate(invalid="ignore"):
        level[1:-1, 1:-1] = same & (normal[..., 2] > _LEVEL_Z * np.linalg.norm(normal, axis=-1))
    return level


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
            if all(_hides_nothing(sight, centre, radius) for sight in sights) and _carried(model, data, ground, radius):
                return ground, radius
    return None


def _hides_nothing(sight: _Sight, centre: np.ndarray, radius: float) -> bool:
    """Whether a ball keeps clear of what may be part of the task, in space and in the image."""
    if not len(sight.task):
        return True
    away = np.linalg.norm(sight.task - centre, axis=1)
    distance = np.linalg.norm(centre - sight.position)
    if (away < radius + _MARGIN * distance).any():
        return False
    lines = sight.task - sight.position
    cosine = lines @ (centre - sight.position) / (np.linalg.norm(lines, axis=1) * distance)
    covered = np.arcsin(min(1.0, radius / distance)) + _MARGIN
    return not (np.arccos(np.clip(cosine, -1, 1)) < covered).any()


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

"""Moving a camera about the place that it looks at, so that the task stays in view."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.shifts_view import VISIBLE_GROUPS, FixedCamera, first_hits, look

# An orbit keeps the camera's elevation above the horizon within these, or where it was if that is outside.
_ELEVATION_DEG = (15.0, 75.0)
_TRIES = 24
_GRID = 20  # rays a side of the image
# Rays that must meet a task object before its staying in view is watched; one to the middle of a geom or to a marker counts for as many.
_SEEN = 3
# Of the rays that met a task object before, so many must meet it from a new place for that to be good enough.
_STILL_SEEN = 0.6


def orbited(
    position: np.ndarray, rotation: np.ndarray, pivot: np.ndarray, *, angle: float, bearing: float, back: float
) -> tuple[np.ndarray, np.ndarray]:
    """A camera's pose after it has gone `angle` radians about `pivot` and `back` metres away from it.

    Args:
        position: of the camera in the world, [3].
        rotation: its axes as columns (image right, image up, backwards), [3, 3].
        pivot: the point that it goes round, [3].
        angle: great-circle angle, seen from the pivot, between where it was and where it goes.
        bearing: the direction in which it sets out: 0 is to the right of one who faces the pivot, pi / 2 is up.
        back: metres.

    Returns:
        Position and rotation. A camera that was level stays level, and the pivot stays where it was in the image but for `back`.
    """
    distance = np.linalg.norm(position - pivot)
    outward = (position - pivot) / distance
    # Seen from straight above, the world's up says nothing: the image's up stands in.
    up = np.array([0.0, 0.0, 1.0]) if abs(outward[2]) < np.cos(np.radians(10)) else rotation[:, 1]
    before = _level_frame(outward, up)
    heading = np.cos(bearing) * before[:, 0] + np.sin(bearing) * before[:, 1]
    turned = np.cos(angle) * outward + np.sin(angle) * heading
    turn = _level_frame(turned, up) @ before.T
    return pivot + turn @ (position - pivot) * (1 + back / distance), turn @ rotation


def _level_frame(outward: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Columns right, up, outward: orthonormal, right-handed, the first at right angles to `up`."""
    right = np.cross(up, outward)
    right /= np.linalg.norm(right)
    return np.column_stack([right, np.cross(outward, right), outward])


def orbit_camera(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera: FixedCamera,
    random: np.random.Generator,
    *,
    angle: float,
    back: float,
) -> None:
    """Move `camera` by exactly `angle` radians and `back` metres in a direction that `random` draws.

    Of 24 directions the first is taken from which each task object and the robot's tips are still seen, by most of what was seen of them; where there
    is none such, the one that is best for the object that fares worst and for all of them together.

    Args:
        data: the episode's first state, after `mj_kinematics` and `mj_camlight`.
    """
    bearings = random.uniform(
        0, 2 * np.pi, size=_TRIES
    )  # all at once: what follows in the stream does not depend on the choice
    pose = camera.world_pose(data)
    seen = _seen_of_task(model, data, camera, pose)
    low, high = np.radians(_ELEVATION_DEG)
    now = _elevation(pose[0], camera.pivot)
    best, best_score = pose, -np.inf
    for bearing in bearings:
        moved = orbited(*pose, camera.pivot, angle=angle, bearing=bearing, back=back)
        elevation = _elevation(moved[0], camera.pivot)
        beyond = max(min(low, now) - elevation, elevation - max(high, now), 0.0)
        # Out of bounds in every direction is near enough impossible; the least of it would be taken.
        least, mean = (-beyond, -beyond) if beyond else _still_seen(seen, _seen_of_task(model, data, camera, moved))
        if least + mean > best_score:
            best, best_score = moved, least + mean
        if least >= _STILL_SEEN:
            break
    camera.move(model, data, *best)


def _elevation(position: np.ndarray, pivot: np.ndarray) -> float:
    outward = position - pivot
    return float(np.arcsin(outward[2] / np.linalg.norm(outward)))


def _seen_of_task(
    model: mujoco.MjModel, data: mujoco.MjData, camera: FixedCamera, pose: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """How much of each body's task geoms, of the robot's tips, and of each visible site the camera sees, in rays; [nbody + 1 + nsite]."""
    position, rotation = pose
    watched = camera.task | camera.tips
    owner = np.where(camera.tips, model.nbody, model.geom_bodyid)
    view = look(model, data, position, rotation, model.cam_fovy[camera.id], _GRID)
    seen = np.bincount(owner[view.geoms[view.shows(watched)]], minlength=model.nbody + 1 + model.nsite)

    # A ball of a few pixels may lie between the grid's rays.
    geoms = np.flatnonzero(watched & VISIBLE_GROUPS[model.geom_group].astype(bool))
    sites = np.flatnonzero((model.site_rgba[:, 3] > 0) & VISIBLE_GROUPS[model.site_group].astype(bool))
    lines = np.concatenate([data.geom_xpos[geoms], data.site_xpos[sites]]) - position
    lengths = np.linalg.norm(lines, axis=1)
    in_image = _in_image(lines @ rotation, model.cam_fovy[camera.id])
    met, distances = first_hits(model, data, position, lines / lengths[:, None])
    of_geoms, of_sites = slice(len(geoms)), slice(len(geoms), None)
    reached = (met[of_geoms] >= 0) & (owner[met[of_geoms]] == owner[geoms])
    np.add.at(seen, owner[geoms[reached & in_image[of_geoms]]], _SEEN)
    free = (met[of_sites] < 0) | (distances[of_sites] > lengths[of_sites])
    seen[model.nbody + 1 + sites[free & in_image[of_sites]]] = _SEEN
    return seen


def _in_image(points: np.ndarray, fovy_deg: float) -> np.ndarray:
    """Which points in the camera's frame, [points, 3], fall within a square image."""
    reach = -points[:, 2] * np.tan(np.radians(fovy_deg) / 2)
    return (reach > 0) & (np.abs(points[:, :2]).max(axis=1) < reach)


def _still_seen(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The smallest and the mean share of a body or site that is seen as before, at most 1, among those that were seen; 1 without any."""
    watched = before >= _SEEN
    if not watched.any():
        return 1.0, 1.0
    shares = np.minimum(after[watched] / before[watched], 1.0)
    return float(shares.min()), float(shares.mean())

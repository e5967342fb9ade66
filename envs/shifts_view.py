"""What a camera sees, found by rays on the CPU: which pixels show the robot, the surroundings, or what may be part of the task.

A camera "fixed to the world" is one on a body that no joint moves; cameras on a hand are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Bool, Float64, Int32

# Geom groups that the renderer draws.
VISIBLE_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)
# A still geom is large, and part of the surroundings, when its bounding sphere's radius is at least this share of the camera's distance from the work.
_LARGE = 0.25
# Rays a side over the middle half of the image, whose nearer hits say how far away the work is: a table, rather than the wall behind it.
_PROBES = 7
_NEAR = 0.2
_AIMED = (mujoco.mjtCamLight.mjCAMLIGHT_TARGETBODY, mujoco.mjtCamLight.mjCAMLIGHT_TARGETBODYCOM)
_PASSES = 50  # geoms that one ray may go through


@dataclass(frozen=True, kw_only=True)
class FixedCamera:
    """A camera that is fixed to the world.

    Attributes:
        id: its number in the model.
        base_position, base_rotation: world pose of the body that carries it, [3] and [3, 3].
        pivot: the point in the world that it looks at, [3], metres.
        task: for each geom whether it may be part of the task, for this camera: not the robot, and movable or small.
        ground: for each geom whether it belongs to the surroundings: not the robot, still and large.
        tips: for each geom whether it is on the robot's outermost links, such as fingertips.
    """

    id: int
    base_position: np.ndarray
    base_rotation: np.ndarray
    pivot: np.ndarray
    task: Bool[np.ndarray, " ngeom"]
    ground: Bool[np.ndarray, " ngeom"]
    tips: Bool[np.ndarray, " ngeom"]

    def world_pose(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and rotation [3, 3] (columns: image right, image up, backwards) as of the last `mj_camlight`."""
        return data.cam_xpos[self.id].copy(), data.cam_xmat[self.id].reshape(3, 3).copy()

    def move(self, model: mujoco.MjModel, data: mujoco.MjData, position: np.ndarray, rotation: np.ndarray) -> None:
        """Write a world pose to the model, for cameras of any tracking mode; one that aims at a body turns by itself."""
        before, _ = self.world_pose(data)
        model.cam_pos[self.id] = self.base_rotation.T @ (position - self.base_position)
        mujoco.mju_mat2Quat(model.cam_quat[self.id], (self.base_rotation.T @ rotation).ravel())
        model.cam_pos0[self.id] += position - before
        model.cam_poscom0[self.id] += position - before
        model.cam_mat0[self.id] = rotation.ravel()


@dataclass(frozen=True, kw_only=True)
class View:
    """A grid of pixels of a square image, row 0 at the top: where each one's ray ends, and on which geom.

    Attributes:
        position: the camera's, [3].
        hits: NaN where there is nothing.
        geoms: -1 where there is nothing.
    """

    position: np.ndarray
    hits: Float64[np.ndarray, "side side 3"]
    geoms: Int32[np.ndarray, "side side"]

    def shows(self, chosen: Bool[np.ndarray, " ngeom"]) -> Bool[np.ndarray, "side side"]:
        """Which pixels show one of the chosen geoms."""
        return (self.geoms >= 0) & chosen[self.geoms]


def look(
    model: mujoco.MjModel, data: mujoco.MjData, position: np.ndarray, rotation: np.ndarray, fovy_deg: float, side: int
) -> View:
    """What a camera of that pose sees of the visible geoms; `data` after `mj_kinematics`."""
    rays = image_rays(fovy_deg, side).reshape(-1, 3) @ rotation.T
    geoms, distances = first_hits(model, data, position, rays)
    hits = np.where((geoms >= 0)[:, None], position + distances[:, None] * rays, np.nan)
    return View(position=position.copy(), hits=hits.reshape(side, side, 3), geoms=geoms.reshape(side, side))


def first_hits(
    model: mujoco.MjModel, data: mujoco.MjData, position: np.ndarray, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The visible geom that each unit vector [rays, 3] from `position` meets first, -1 for none, and how far away."""
    geoms, distances = np.full(len(rays), -1, np.int32), np.empty(len(rays))
    mujoco.mj_multiRay(
        model, data, position, rays.ravel(), VISIBLE_GROUPS, 1, -1, geoms, distances, len(rays), mujoco.mjMAXVAL
    )
    return geoms, distances


def image_rays(fovy_deg: float, side: int, *, share: float = 1.0) -> Float64[np.ndarray, "side side 3"]:
    """Unit vectors in the camera's frame (x right, y up, looking along -z) through a grid of pixels of a square image, from its top left.

    `share` is the part of the image's width and height that the grid spans.
    """
    reach = share * np.tan(np.radians(fovy_deg) / 2) * (1 - 1 / side)
    x, y = np.meshgrid(np.linspace(-reach, reach, side), np.linspace(reach, -reach, side))
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def fixed_cameras(model: mujoco.MjModel) -> list[FixedCamera]:
    """The cameras that are fixed to the world, with what they look at when the model stands in its default pose."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    mujoco.mj_camlight(model, data)
    still = model.body_weldid[model.geom_bodyid] == 0
    plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    robot = _robot_geoms(model)
    outermost = ~np.isin(model.geom_bodyid, model.body_parentid)
    cameras = []
    for camera in range(model.ncam):
        body = model.cam_bodyid[camera]
        if model.body_weldid[body] == 0:
            pivot = _looked_at(model, data, camera)
            large = plane | (model.geom_rbound >= _LARGE * np.linalg.norm(pivot - data.cam_xpos[camera]))
            cameras.append(
                FixedCamera(
                    id=camera,
                    base_position=data.xpos[body].copy(),
                    base_rotation=data.xmat[body].reshape(3, 3).copy(),
                    pivot=pivot,
                    task=~robot & ~(still & large),
                    ground=~robot & still & large,
                    tips=robot & ~still & outermost,
                )
            )
    return cameras


def _robot_geoms(model: mujoco.MjModel) -> np.ndarray:
    """Geoms of the kinematic trees that have an actuated joint somewhere, bool [ngeom]."""
    joints = model.actuator_trnid[model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT, 0]
    tendons = model.actuator_trnid[model.actuator_trntype == mujoco.mjtTrn.mjTRN_TENDON, 0]
    wraps = [
        model.wrap_objid[wrap]
        for tendon in tendons
        for wrap in range(model.tendon_adr[tendon], model.tendon_adr[tendon] + model.tendon_num[tendon])
        if model.wrap_type[wrap] == mujoco.mjtWrap.mjWRAP_JOINT
    ]
    bodies = model.jnt_bodyid[np.array([*joints, *wraps], int)]
    return np.isin(model.body_rootid[model.geom_bodyid], model.body_rootid[bodies])


def _looked_at(model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> np.ndarray:
    """What a camera aims at: its target, or the point on the optical axis as far away as the nearer surroundings in the middle of the image."""
    if model.cam_mode[camera] in _AIMED:
        return data.xpos[model.cam_targetbodyid[camera]].copy()
    position, rotation = data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3)
    depths = []
    for ray in image_rays(model.cam_fovy[camera], _PROBES, share=0.5).reshape(-1, 3):
        distance = _first_large_hit(model, data, position, rotation @ ray)
        if np.isfinite(distance):
            depths.append(-distance * ray[2])
    # Where all is empty, as far as the model's middle.
    depth = np.quantile(depths, _NEAR) if depths else max(np.dot(model.stat.center - position, -rotation[:, 2]), 0.1)
    return position - depth * rotation[:, 2]


def _first_large_hit(model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, direction: np.ndarray) -> float:
    """Distance along a unit vector to the first visible geom that is still and large; inf where there is none.

    Small things do not count: suites move furniture between episodes, and the point must be the same in all of them.
    """
    travelled = 0.0
    geom = np.array([-1], np.int32)
    for _ in range(_PASSES):
        step = mujoco.mj_ray(model, data, start + travelled * direction, direction, VISIBLE_GROUPS, 1, -1, geom)
        if step < 0:
            return np.inf
        travelled += step
        still = model.body_weldid[model.geom_bodyid[geom[0]]] == 0
        plane = model.geom_type[geom[0]] == mujoco.mjtGeom.mjGEOM_PLANE
        if still and (plane or model.geom_rbound[geom[0]] >= _LARGE * travelled):
            return travelled
        travelled += 1e-4
    return np.inf

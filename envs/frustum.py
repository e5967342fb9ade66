"""Which geoms lie outside a camera's view: MuJoCo draws them all, and software GL pays for each of their vertices."""

from __future__ import annotations

import mujoco
import numpy as np
from jaxtyping import Bool

# Types whose bounding sphere is about the geom's own position. Planes have none, and height fields are drawn around it.
_BOUNDED = (
    mujoco.mjtGeom.mjGEOM_SPHERE,
    mujoco.mjtGeom.mjGEOM_CAPSULE,
    mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    mujoco.mjtGeom.mjGEOM_CYLINDER,
    mujoco.mjtGeom.mjGEOM_BOX,
    mujoco.mjtGeom.mjGEOM_MESH,
)


def geoms_outside(
    model: mujoco.MjModel, data: mujoco.MjData, camera: mujoco.MjvGLCamera, aspect: float
) -> Bool[np.ndarray, " ngeom"]:
    """Geoms whose bounding sphere is wholly on the outer side of one of the view's planes: the four sides and the near one.

    Args:
        camera: a perspective camera of a scene, the mean of its two eyes.
        aspect: the image's width over its height.
    """
    forward, up = np.array(camera.forward, np.float64), np.array(camera.up, np.float64)
    right = np.cross(forward, up)
    near = camera.frustum_near
    half_width = camera.frustum_width or 0.5 * aspect * (camera.frustum_top - camera.frustum_bottom)
    left_edge, right_edge = camera.frustum_center - half_width, camera.frustum_center + half_width
    inward = np.stack(
        [
            right - left_edge / near * forward,
            right_edge / near * forward - right,
            up - camera.frustum_bottom / near * forward,
            camera.frustum_top / near * forward - up,
            forward,
        ]
    )
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    distances = (data.geom_xpos - np.array(camera.pos, np.float64)) @ inward.T
    distances[:, 4] -= near
    bounded = np.isin(model.geom_type, [kind.value for kind in _BOUNDED]) & (model.geom_rbound > 0)
    return bounded & (distances < -model.geom_rbound[:, None]).any(axis=1)


def leave_out(scene: mujoco.MjvScene, outside: Bool[np.ndarray, " ngeom"]) -> None:
    """Take these geoms of the model out of a scene that is about to be drawn; the next update puts them in again."""
    if not outside.any():
        return
    geom, none = mujoco.mjtObj.mjOBJ_GEOM.value, mujoco.mjtGeom.mjGEOM_NONE.value
    for drawn in scene.geoms[: scene.ngeom]:
        if drawn.objtype == geom and outside[drawn.objid]:
            drawn.type = none

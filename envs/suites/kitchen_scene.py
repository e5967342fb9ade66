"""Franka Kitchen's model with R3M's views and an arm that is cheap to draw; its physics is the package's own.

Where the half second of a default frame goes: about a hundred boxes and the floor have reflecting materials, and MuJoCo draws the whole scene once more
for each; four lights cast shadows of 4096 pixels. `envs.rendering`'s fast quality leaves both out. Of what is left, the arm's visual meshes (134,000
triangles, a third of a millimetre each at 128 pixels) and the finely cut cylinders were the larger part; both are coarser here.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import mujoco
import numpy as np

# The nine arm meshes that are drawn and never touched: contacts and inertia come from others.
_DRAWN_ARM = (*(f"link{index}_viz" for index in range(8)), "hand_viz")
_CELL_M = 0.006  # arm vertices within one such cell are drawn as one; a pixel is 10 mm wide at 128 pixels
_BINARY_STL = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])

# The cameras of R3M's evaluation: its fork of mj_envs has them beside left_cap and right_cap, which look at the counter top and the oven's front and see
# none of the five tasks. Each follows a body, so that the view moves with the kitchen.
_TARGET_CAMERAS = {
    "left_cap2": ((-1.4, -1.0, 1.8), "knob 1"),
    "right_cap2": ((1.3, -0.7, 3.4), "microwave"),
}


def _load() -> tuple[mujoco.MjSpec, Path]:
    """The package's model, not yet compiled, and its folder of assets."""
    try:
        import gymnasium_robotics
    except ImportError as error:
        raise RuntimeError(f"kitchen needs the simulators: {error}. Remedy: pip install 'egoarm[robots]'") from error
    assets = Path(gymnasium_robotics.__file__).parent / "envs/assets/kitchen_franka"
    return mujoco.MjSpec.from_file(str(assets / "kitchen_assets/kitchen_env_model.xml")), assets


@functools.cache
def _compiled() -> mujoco.MjModel:
    spec, assets = _load()
    for name in _DRAWN_ARM:
        _coarsen(spec.mesh(name), assets / "franka_assets/meshes")
    spec.visual.quality.numslices = 16
    spec.visual.quality.numstacks = 8
    for name, (pos, target) in _TARGET_CAMERAS.items():
        camera = spec.worldbody.add_camera()
        camera.name, camera.pos, camera.targetbody = name, pos, target
        camera.mode = mujoco.mjtCamLight.mjCAMLIGHT_TARGETBODY
    default = spec.worldbody.add_camera()
    default.name = "default"
    model = spec.compile()
    _place_default_camera(model)
    return model


def make_model() -> mujoco.MjModel:
    """A new copy of the model; it is compiled once a process.

    Raises:
        RuntimeError: gymnasium-robotics is not installed.
    """
    return copy.copy(_compiled())


@functools.cache
def arm_model() -> mujoco.MjModel:
    """The robot alone, for inverse kinematics: its nine joints stand first in the kitchen's model too. Shared: not to be written to."""
    spec, _ = _load()
    for body in ("desk", "kettle"):
        spec.detach_body(spec.body(body))
    for leftover in (*spec.equalities, *spec.keys):
        leftover.delete()
    return spec.compile()


def _coarsen(mesh: mujoco.MjsMesh, folder: Path) -> None:
    """Replace the mesh's file by its triangles with all corners in one cell of a grid joined (Rossignac and Borrel 1993)."""
    triangles = np.fromfile(folder / mesh.file, _BINARY_STL, offset=84)
    corners = triangles["corners"].reshape(-1, 3).astype(np.float64)
    _, cell = np.unique(np.floor(corners / _CELL_M).astype(np.int64), axis=0, return_inverse=True)
    cell = cell.ravel()
    count = np.bincount(cell)
    vertices = np.stack([np.bincount(cell, weights=corners[:, axis]) / count for axis in range(3)], axis=1)
    faces = cell.reshape(-1, 3)
    kept = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = np.unique(faces[kept], axis=0)
    used, faces = np.unique(faces, return_inverse=True)
    mesh.file = ""
    mesh.uservert = vertices[used].ravel()
    mesh.userface = faces.ravel().astype(np.int32)


def _place_default_camera(model: mujoco.MjModel) -> None:
    """R3M's view "default" is mujoco_py's free camera: at the median of the geoms' places, from one extent away, 45 degrees down, along +y."""
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    forward, up = np.array([0.0, 1.0, -1.0]) / np.sqrt(2), np.array([0.0, 1.0, 1.0]) / np.sqrt(2)
    camera = model.camera("default")
    camera.pos[:] = np.median(data.geom_xpos, axis=0) - model.stat.extent * forward
    rotation = np.stack([[1.0, 0.0, 0.0], up, -forward], axis=1)
    mujoco.mju_mat2Quat(camera.quat, rotation.ravel())
    # What MuJoCo keeps of the pose for cameras that track a body.
    model.cam_pos0[camera.id], model.cam_mat0[camera.id] = camera.pos, rotation.ravel()

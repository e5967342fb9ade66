"""Upright cameras: the one rule that every suite's adapter applies to its model."""

from __future__ import annotations

import mujoco
import numpy as np

# Turns a camera by half a turn about its own optical axis.
_HALF_TURN = np.array([0.0, 0.0, 0.0, 1.0])


def turn_cameras_upright(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Give each fixed camera whose image has the world's up pointing down a half turn about its optical axis."""
    mujoco.mj_forward(model, data)
    for camera in range(model.ncam):
        image_up_z = data.cam_xmat[camera].reshape(3, 3)[2, 1]
        if model.cam_mode[camera] == mujoco.mjtCamLight.mjCAMLIGHT_FIXED and image_up_z < 0:
            turned = np.empty(4)
            mujoco.mju_mulQuat(turned, model.cam_quat[camera], _HALF_TURN)
            model.cam_quat[camera] = turned

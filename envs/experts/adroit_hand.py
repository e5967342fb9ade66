"""What Adroit's scripted experts share: inverse kinematics of the arm, and servos that hold against gravity."""

from __future__ import annotations

from typing import Any

import mink
import mujoco
import numpy as np

# Added to the servos of the arm's slides, which sag and swing; the hinges' own (200 Nm/rad against 20 Nms/rad) are stiff enough.
_SLIDE_N_PER_M, _SLIDE_NS_PER_M = 400.0, 50.0


def ease(share: float) -> float:
    """0 to 1 with no speed and no acceleration at either end (minimum jerk)."""
    share = float(np.clip(share, 0, 1))
    return share**3 * (10 - 15 * share + 6 * share**2)


class Hand:
    """The hand of one simulation. The arm's joints come first, slides before hinges and wrist, then the fingers'.

    Args:
        simulation: an `AdroitSimulation`.
        arm_joints: how many joints bring the palm to a place.
        slides: how many of them are slides.
    """

    def __init__(self, simulation: Any, *, arm_joints: int, slides: int) -> None:
        model = simulation.model
        self.arm_joints = arm_joints
        self.joints = model.nu
        self._slides = slides
        self._model = model
        self._data = simulation.data
        self._still = mujoco.MjData(model)
        self._stiffness = -model.actuator_biasprm[:, 1]
        self._gain = model.actuator_gainprm[:, 0]
        self._middle = model.actuator_ctrlrange.mean(axis=1)
        self._half = np.ptp(model.actuator_ctrlrange, axis=1) / 2
        self._configuration = mink.Configuration(model)
        self._palm = mink.FrameTask("S_grasp", "site", position_cost=1.0, orientation_cost=0.03)
        # The slides move freely, the rotations when they must; fingers and objects are no part of the problem.
        cost = np.full(model.nv, 10.0)
        cost[:slides], cost[slides:arm_joints] = 1e-3, 5e-3
        self._posture = mink.PostureTask(model, cost=cost)
        # Just within the limits: at them mink warns of each rounding error.
        self._low, self._high = model.jnt_range[:, 0] + 1e-4, model.jnt_range[:, 1] - 1e-4
        self._limited = model.jnt_limited.astype(bool)
        self._limits = [mink.ConfigurationLimit(model)]

    def fingers(self, angles: dict[str, float]) -> np.ndarray:
        """Targets of the joints after the arm's, rad; 0 for those that are not named."""
        target = np.zeros(self.joints)
        for name, angle in angles.items():
            target[self._model.joint(name).id] = angle
        return target[self.arm_joints :]

    def within_limits(self, arm: np.ndarray) -> np.ndarray:
        """`arm` clipped to the arm joints' ranges."""
        return np.clip(arm, self._low[: self.arm_joints], self._high[: self.arm_joints])

    def solve(
        self, place: np.ndarray, rotation: np.ndarray, start: np.ndarray | None = None, iterations: int = 25
    ) -> np.ndarray:
        """Arm joints that bring the palm's grasp point to `place` (world, m), turned about as `rotation` [3, 3].

        `start` holds the arm's joints to begin from and stay near; None takes the present ones.
        """
        arm = slice(0, self.arm_joints)
        q = self._data.qpos.copy()
        if start is not None:
            q[arm] = start
        q = np.where(self._limited, np.clip(q, self._low, self._high), q)
        self._configuration.update(q)
        self._posture.set_target(q.copy())
        self._palm.set_target(mink.SE3.from_rotation_and_translation(mink.SO3.from_matrix(rotation), place))
        for _ in range(iterations):
            velocity = mink.solve_ik(
                self._configuration, [self._palm, self._posture], 1.0, "quadprog", damping=1e-4, limits=self._limits
            )
            q[arm] = self.within_limits(q[arm] + velocity[arm])
            self._configuration.update(q)
        return q[arm].copy()

    def action(self, arm: np.ndarray, fingers: np.ndarray) -> np.ndarray:
        """The action whose servos pull the joints to these targets, with what gravity asks for added; float32 in [-1, 1]."""
        target, slides = np.concatenate([arm, fingers]), self._slides
        self._still.qpos[:] = self._data.qpos
        mujoco.mj_kinematics(self._model, self._still)
        mujoco.mj_comPos(self._model, self._still)
        gravity = np.zeros(self._model.nv)
        mujoco.mj_rne(self._model, self._still, 0, gravity)
        # The servo's force is gain * control - stiffness * q; at rest at the target it should equal gravity's.
        force = gravity[: self.joints] + self._stiffness * target
        miss = (target - self._data.qpos[: self.joints])[:slides]
        force[:slides] += (_SLIDE_N_PER_M - self._stiffness[:slides]) * miss
        force[:slides] -= _SLIDE_NS_PER_M * self._data.qvel[:slides]
        return np.clip((force / self._gain - self._middle) / self._half, -1, 1).astype(np.float32)

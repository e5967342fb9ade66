"""Adroit's expert for relocate: waypoints, inverse kinematics of the arm and a power grasp.

The arm's joints are position servos that sag and swing: each action adds what gravity asks for, and on the slides a stiffer, damped pull to the
planned place. The hand comes down over the ball with the thumb behind it, closes, and carries the ball in a straight move of the joints.
Pen, door and hammer have no expert; see their rows.
"""

from __future__ import annotations

from typing import Any

import mink
import mujoco
import numpy as np

from envs.env import ManipulationEnv

_ARM = 8  # three slides, three rotations, two of the wrist
_HAND = 30

# Added to the servos of the three slides; the hinges' own (200 Nm/rad against 20 Nms/rad) are stiff enough.
_SLIDE_N_PER_M, _SLIDE_NS_PER_M = 400.0, 50.0

# Steps of the script: over the ball, down, closed; then the carry, planned anew as the ball settles in the grasp.
_OVER, _DOWN, _CLOSED = 45, 72, 100
_PLANS = {100: 50, 155: 15, 170: 15}  # step -> steps for the move
_OVER_M = 0.08
# The palm's grasp point relative to the ball's centre (world, m): the ball lies under the roots of the fingers.
_GRASP_M = np.array([0.0, -0.027, 0.004])

# Finger joints in rad. The thumb waits behind the ball; the little finger's root folds in, so that the ball cannot leave on that side.
# The angles are what a short random search over held carries found from a guess.
_OPEN = {"THJ4": 0.57, "THJ3": 1.46, "THJ1": 0.45, "THJ0": 0.0, "FFJ3": 0.09, "LFJ3": 0.09}
_CLOSE = {"THJ4": 0.95, "THJ3": 1.36, "THJ1": 0.19, "THJ0": -0.7, "FFJ3": 0.09, "LFJ3": 0.09, "LFJ4": 0.5} | {
    f"{finger}J{joint}": angle
    for finger in ("FF", "MF", "RF", "LF")
    for joint, angle in ((2, 1.08), (1, 1.53), (0, 1.3))
}


def _ease(share: float) -> float:
    """0 to 1 with no speed and no acceleration at either end (minimum jerk)."""
    share = float(np.clip(share, 0, 1))
    return share**3 * (10 - 15 * share + 6 * share**2)


class RelocateExpert:
    """Brings the ball to the target; it keeps its plan from step to step."""

    def __init__(self, env: ManipulationEnv) -> None:
        self._simulation: Any = env.simulation
        model = self._simulation.model
        self._model = model
        self._data = self._simulation.data
        self._still = mujoco.MjData(model)
        self._stiffness = -model.actuator_biasprm[:, 1]
        self._gain = model.actuator_gainprm[:, 0]
        self._middle = model.actuator_ctrlrange.mean(axis=1)
        self._half = np.ptp(model.actuator_ctrlrange, axis=1) / 2
        self._open, self._close = self._fingers(_OPEN), self._fingers(_CLOSE)

        self._configuration = mink.Configuration(model)
        self._palm = mink.FrameTask("S_grasp", "site", position_cost=1.0, orientation_cost=0.02)
        # The slides move freely, the rotations when they must; fingers and ball are no part of the problem.
        cost = np.full(model.nv, 10.0)
        cost[:3], cost[3:_ARM] = 1e-3, 5e-3
        self._posture = mink.PostureTask(model, cost=cost)
        # Just within the limits: at them mink warns of each rounding error.
        self._low, self._high = model.jnt_range[:_HAND, 0] + 1e-4, model.jnt_range[:_HAND, 1] - 1e-4
        self._limits = [mink.ConfigurationLimit(model)]

    def reset(self) -> None:
        """Plan the approach from where the ball is."""
        data = self._data
        self._step = 0
        self._level = data.site("S_grasp").xmat.reshape(3, 3).copy()
        self._from = data.qpos[:_ARM].copy()
        grasp = data.body("Object").xpos + _GRASP_M
        self._above = self._solve(grasp + np.array([0, 0, _OVER_M]))
        self._at = self._solve(grasp)

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action, float32 [30]."""
        step = self._step
        self._step += 1
        closing = _ease((step - _DOWN) / 20)
        fingers = self._open + closing * (self._close - self._open)
        if step < _OVER:
            arm = self._from + _ease(step / 40) * (self._above - self._from)
        elif step < _DOWN:
            arm = self._above + _ease((step - _OVER) / 22) * (self._at - self._above)
        elif step < _CLOSED:
            arm = self._at
        else:
            if step in _PLANS:
                data = self._data
                held = data.body("Object").xpos - data.site("S_grasp").xpos
                self._from = self._at if step == _CLOSED else self._arm
                self._begun, self._steps = step, _PLANS[step]
                self._to = self._solve(data.site("target").xpos - held)
            arm = self._from + _ease((step - self._begun) / self._steps) * (self._to - self._from)
        self._arm = arm
        return self._servo(np.concatenate([arm, fingers]))

    def _fingers(self, angles: dict[str, float]) -> np.ndarray:
        """Targets of the joints after the arm's, rad [22]; 0 for those that are not named."""
        target = np.zeros(_HAND)
        for name, angle in angles.items():
            target[self._model.joint(name).id] = angle
        return target[_ARM:]

    def _solve(self, place: np.ndarray, iterations: int = 25) -> np.ndarray:
        """Arm joints [8] that bring the palm's grasp point to `place` (world, m) from where it is, about as level as at the start."""
        start = self._data.qpos.copy()
        start[:_HAND] = np.clip(start[:_HAND], self._low, self._high)
        self._configuration.update(start)
        self._posture.set_target(start)
        rotation = mink.SO3.from_matrix(self._level)
        self._palm.set_target(mink.SE3.from_rotation_and_translation(rotation, place))
        q = start
        for _ in range(iterations):
            velocity = mink.solve_ik(
                self._configuration, [self._palm, self._posture], 1.0, "quadprog", damping=1e-4, limits=self._limits
            )
            q[:_ARM] = np.clip(q[:_ARM] + velocity[:_ARM], self._low[:_ARM], self._high[:_ARM])
            self._configuration.update(q)
        return q[:_ARM].copy()

    def _servo(self, target: np.ndarray) -> np.ndarray:
        """The action whose servos pull the hand's joints to `target` [30], with what gravity asks for added."""
        q, v = self._data.qpos[:_HAND], self._data.qvel[:_HAND]
        self._still.qpos[:] = self._data.qpos
        mujoco.mj_kinematics(self._model, self._still)
        mujoco.mj_comPos(self._model, self._still)
        gravity = np.zeros(self._model.nv)
        mujoco.mj_rne(self._model, self._still, 0, gravity)
        # The servo's force is gain * ctrl - stiffness * q; at rest at the target it should equal gravity's.
        force = gravity[:_HAND] + self._stiffness * target
        force[:3] += (
            _SLIDE_N_PER_M * (target - q)[:3] - _SLIDE_NS_PER_M * v[:3] - self._stiffness[:3] * (target - q)[:3]
        )
        control = force / self._gain
        return np.clip((control - self._middle) / self._half, -1, 1).astype(np.float32)


def make_expert(env: ManipulationEnv) -> RelocateExpert:
    """The expert of the environment's task."""
    assert env.simulation.name == "relocate", "only relocate's rows name this module"
    return RelocateExpert(env)

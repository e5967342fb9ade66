"""Adroit's experts for relocate and door: waypoints of the palm, inverse kinematics of the arm, and one closing of the hand.

Both are scripts in time with a little feedback; their numbers are what short random searches (a minute or two of one core) found from a guess, with
success held longer as the objective. Pen and hammer have no expert; see their rows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from envs.env import ManipulationEnv
from envs.experts.adroit_hand import Hand, ease


def _curl(*angles: float) -> dict[str, float]:
    """Flexion of the four fingers, knuckle first, rad."""
    return {
        f"{finger}J{joint}": angle
        for finger in ("FF", "MF", "RF", "LF")
        for joint, angle in zip((2, 1, 0), angles, strict=True)
    }


class RelocateExpert:
    """Down over the ball with the thumb behind it, close, and carry it to the target; it keeps its plan from step to step."""

    # Steps: over the ball, down, closed; then the carry, planned anew as the ball settles in the grasp.
    OVER, DOWN, CLOSED = 45, 72, 100
    PLANS: ClassVar = {100: 50, 155: 15, 170: 15}  # step -> steps for the move
    OVER_M = np.array([0.0, 0.0, 0.08])
    # The palm's grasp point relative to the ball's centre (world): the ball lies under the roots of the fingers.
    GRASP_M = np.array([0.0, -0.027, 0.004])
    SPREAD: ClassVar = {"FFJ3": 0.09, "LFJ3": 0.09}
    OPEN: ClassVar = SPREAD | {"THJ4": 0.57, "THJ3": 1.46, "THJ1": 0.45}
    # The little finger's root folds in, so that the ball cannot leave on that side.
    CLOSE: ClassVar = (
        SPREAD | _curl(1.08, 1.53, 1.3) | {"THJ4": 0.95, "THJ3": 1.36, "THJ1": 0.19, "THJ0": -0.7, "LFJ4": 0.5}
    )

    def __init__(self, env: ManipulationEnv) -> None:
        simulation: Any = env.simulation
        self._data = simulation.data
        self._hand = Hand(simulation, arm_joints=8, slides=3)
        self._open, self._close = self._hand.fingers(self.OPEN), self._hand.fingers(self.CLOSE)

    def reset(self) -> None:
        """Plan the approach from where the ball is."""
        data = self._data
        self._step = 0
        self._level = data.site("S_grasp").xmat.reshape(3, 3).copy()
        self._from = data.qpos[: self._hand.arm_joints].copy()
        grasp = data.body("Object").xpos + self.GRASP_M
        self._above = self._hand.solve(grasp + self.OVER_M, self._level)
        self._at = self._hand.solve(grasp, self._level)

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action, float32 [30]."""
        step = self._step
        self._step += 1
        if step < self.OVER:
            arm = self._from + ease(step / 40) * (self._above - self._from)
        elif step < self.DOWN:
            arm = self._above + ease((step - self.OVER) / 22) * (self._at - self._above)
        elif step < self.CLOSED:
            arm = self._at
        else:
            if step in self.PLANS:
                held = self._data.body("Object").xpos - self._data.site("S_grasp").xpos
                self._from = self._at if step == self.CLOSED else self._arm
                self._begun, self._steps = step, self.PLANS[step]
                self._to = self._hand.solve(self._data.site("target").xpos - held, self._level)
            arm = self._from + ease((step - self._begun) / self._steps) * (self._to - self._from)
        self._arm = arm
        closing = ease((step - self.DOWN) / 20)
        return self._hand.action(arm, self._open + closing * (self._close - self._open))


class DoorExpert:
    """Fingers over and behind the handle, press it down until the latch gives, pull, and push the open door on from the inside."""

    OVER, DOWN = 37, 48  # steps until the palm is over the handle and on it
    PRESS_STEPS, PULL_STEPS, PUSH_STEPS = 49, 35, 20
    PULL_AFTER_STEPS = 150  # at the latest
    LATCH_RAD, HINGE_RAD = 0.95, 0.89  # where pressing turns to pulling, and pulling to pushing
    # The palm's grasp point relative to the handle (world): over it, on it, and where the press aims, far below and to the left.
    OVER_M, ON_M, PRESS_M = np.array([[0.042, -0.059, 0.05], [0.042, -0.059, -0.028], [-0.146, -0.059, -0.396]])
    PRESS_ROLL_RAD = -0.195
    # Change of the arm's joints in the pull, and their place in the push: slide, pitch, yaw, roll, wrist (two).
    PULL = np.array([-0.6, 0.274, -0.708, 0.0, 0.0, 0.0])
    PUSH = np.array([0.0, 0.171, -0.74, 0.0, -0.094, 0.0])
    OPEN: ClassVar = {"THJ4": 0.3, "THJ3": 0.2}
    CLOSE: ClassVar = _curl(1.6, 0.68, 0.79) | {"THJ4": 0.3, "THJ3": 1.456}

    def __init__(self, env: ManipulationEnv) -> None:
        simulation: Any = env.simulation
        self._data = simulation.data
        self._hand = Hand(simulation, arm_joints=6, slides=1)
        self._open, self._close = self._hand.fingers(self.OPEN), self._hand.fingers(self.CLOSE)

    def reset(self) -> None:
        """Plan the way to the handle and the press."""
        data, solve = self._data, self._hand.solve
        self._step = 0
        self._phase = "press"
        level = data.site("S_grasp").xmat.reshape(3, 3).copy()
        handle = data.site("S_handle").xpos.copy()
        cosine, sine = np.cos(self.PRESS_ROLL_RAD), np.sin(self.PRESS_ROLL_RAD)
        roll = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
        self._from = data.qpos[: self._hand.arm_joints].copy()
        self._over = solve(handle + self.OVER_M, level)
        self._on = solve(handle + self.ON_M, level, self._over)
        self._pressed = solve(handle + self.PRESS_M, roll @ level, self._over)

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action, float32 [28]."""
        step = self._step
        self._step += 1
        if step < self.OVER:
            arm = self._from + ease(step / (self.OVER - 6)) * (self._over - self._from)
        elif step < self.DOWN:
            arm = self._over + ease((step - self.OVER) / 12) * (self._on - self._over)
        else:
            arm = self._turn_pull_push(step)
        self._arm = arm
        closing = ease((step - self.OVER - 5) / 12)
        return self._hand.action(arm, self._open + closing * (self._close - self._open))

    def _turn_pull_push(self, step: int) -> np.ndarray:
        latch, hinge = self._data.joint("latch").qpos[0], self._data.joint("door_hinge").qpos[0]
        if self._phase == "press":
            arm = self._on + ease((step - self.DOWN) / self.PRESS_STEPS) * (self._pressed - self._on)
            if latch < self.LATCH_RAD and step < self.PULL_AFTER_STEPS:
                return arm
            self._begin("pull", step, arm, arm + self.PULL)
        elif self._phase == "pull" and hinge > self.HINGE_RAD:
            self._begin("push", step, self._arm, self.PUSH)
        steps = self.PULL_STEPS if self._phase == "pull" else self.PUSH_STEPS
        return self._from + ease((step - self._begun) / steps) * (self._to - self._from)

    def _begin(self, phase: str, step: int, start: np.ndarray, end: np.ndarray) -> None:
        self._phase, self._begun, self._from, self._to = phase, step, start.copy(), self._hand.within_limits(end)


EXPERTS = {"relocate": RelocateExpert, "door": DoorExpert}


def make_expert(env: ManipulationEnv) -> RelocateExpert | DoorExpert:
    """The expert of the environment's task."""
    return EXPERTS[env.simulation.name](env)

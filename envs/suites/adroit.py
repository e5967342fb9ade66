"""Adroit's four hand tasks as Gymnasium-Robotics models them (v1), with the instantaneous and the held success rule.

The package's models and placements are used as they are, with two repairs: its dense rewards of door, relocate and hammer add the palm's distance
to the object where they mean to subtract it, and its observation is read after the last substep, not one substep (2 ms) before.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

import mujoco
import numpy as np

from envs.spec import FieldSpec
from envs.suites.adroit_tasks import HELD_STEPS
from envs.suites.adroit_tasks import TASKS as TASKS
from envs.suites.upright import turn_cameras_upright
from envs.task import Task

# Each hand's joints: arm (slides in m, hinges in rad), wrist, fingers. The arm differs by task.
_HAND_JOINTS = {"pen": 24, "relocate": 30, "door": 28, "hammer": 26}
_FULL_STATE = {
    "pen": (45, "hand joints; pen position, velocity and direction; target's direction; position and direction errors"),
    "relocate": (39, "hand joints; palm minus ball, palm minus target, ball minus target"),
    "door": (
        39,
        "hand joints without the first; latch, hinge; palm, handle, their difference; 1 where the door is open, else -1",
    ),
    "hammer": (
        46,
        "hand joints and nail; velocity of the hammer, clipped to 1; palm, hammer position, hammer Euler angles, nail, force on the nail clipped to 1",
    ),
}
_PALM_DISTANCE_TO = {"relocate": "Object", "door": "S_handle", "hammer": "Object"}


class AdroitSimulation:
    """One Adroit task at 100 control steps a second; the action sets the joints' position targets over their whole range.

    Args:
        name: "pen", "relocate", "door" or "hammer".
        held: success asks for more than `HELD_STEPS` steps in success over the episode.
        goal_marker: draw the site "target".

    Raises:
        RuntimeError: the package is not installed.
    """

    def __init__(self, name: str, *, held: bool, goal_marker: bool) -> None:
        self.name = name
        self._held_steps = HELD_STEPS[name] if held else 0
        self._env = _make_hand(name)
        self.model: mujoco.MjModel = self._env.model
        self.data: mujoco.MjData = self._env.data
        self.control_hz = float(round(1 / self._env.dt, 6))
        joints = _HAND_JOINTS[name]
        assert self.model.nu == joints, "every joint of the hand has its actuator, in the joints' order"
        self.action_field = FieldSpec(
            shape=(joints,),
            dtype="float32",
            unit="half the actuator's range",
            convention="position targets of arm, wrist and fingers; 0 is the middle of the range",
            low=-1.0,
            high=1.0,
        )
        self.state_fields = {
            "hand_qpos": FieldSpec(
                shape=(joints,),
                dtype="float32",
                unit="rad, m",
                convention="joints of arm, wrist and fingers in the model's order; m for the arm's slides",
            )
        }
        size, meaning = _FULL_STATE[name]
        self.full_state_field = FieldSpec(shape=(size,), dtype="float32", unit="m, rad, m/s, rad/s", convention=meaning)
        if not goal_marker:
            for site in range(self.model.nsite):
                if self.model.site(site).name == "target":
                    self.model.site_rgba[site, 3] = 0
        turn_cameras_upright(self.model, self.data)
        self._steps_in_success = 0

    def reset(self, seed: int) -> None:
        self._env.reset(seed=seed)
        mujoco.mj_forward(self.model, self.data)
        self._steps_in_success = 0

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        _, reward, _, _, info = self._env.step(action)
        mujoco.mj_forward(self.model, self.data)
        self._steps_in_success += bool(info["success"])
        if self.name in _PALM_DISTANCE_TO:
            reward -= 0.2 * self._palm_distance()
        return float(reward), self._steps_in_success > self._held_steps

    def state_observation(self) -> dict[str, np.ndarray]:
        return {"hand_qpos": self.data.qpos[: self.model.nu]}

    def full_state(self) -> np.ndarray:
        return np.asarray(self._env._get_obs(), np.float64)

    def physics_state(self) -> np.ndarray:
        """Time, joints and velocities, where the bodies and sites that resets move stand; float64."""
        model, data = self.model, self.data
        placed = {
            "pen": lambda: model.body("target").quat,
            "relocate": lambda: np.concatenate([model.body("Object").pos, model.site("target").pos]),
            "door": lambda: model.body("frame").pos,
            "hammer": lambda: model.body("nail_board").pos,
        }[self.name]()
        return np.concatenate([[data.time], data.qpos, data.qvel, placed])

    def close(self) -> None:
        self._env.close()

    def _palm_distance(self) -> float:
        palm = self.data.site("S_grasp").xpos
        name = _PALM_DISTANCE_TO[self.name]
        place = self.data.site(name).xpos if name.startswith("S_") else self.data.body(name).xpos
        return float(np.linalg.norm(palm - place))


def _make_hand(name: str) -> Any:
    try:
        # At import the package prints a notice about the rewards that are repaired above.
        with contextlib.redirect_stderr(io.StringIO()):
            module = importlib.import_module(f"gymnasium_robotics.envs.adroit_hand.adroit_{name}")
    except ImportError as error:
        raise RuntimeError(
            f"adroit/{name} needs the simulators: {error}. Remedy: pip install 'egoarm[robots]'"
        ) from error
    return getattr(module, f"AdroitHand{name.capitalize()}Env")()


def make_simulation(row: Task) -> AdroitSimulation:
    """The simulation of a row of TASKS."""
    return AdroitSimulation(
        row.name.removesuffix("-held"), held=row.name.endswith("-held"), goal_marker=row.goal_marker
    )

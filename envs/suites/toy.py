"""A task that renders in about a millisecond, for quick tests: a pole on a gantry must reach a ball on a table."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.spec import FieldSpec
from envs.task import Task

TASKS: dict[str, Task] = {
    "toy/reach": Task(
        suite="toy",
        name="reach",
        cameras=("front",),
        horizon_steps=60,
        success_rule="tip within 3 cm of the ball in the table's plane",
        expert="toy",
        notes="pole and ball start anywhere in a square of 0.5 m",
    ),
}

# The camera looks down at the table from the front; +x is right and +y is away from it.
_REACH = """
<mujoco model="toy-reach">
  <option timestep="0.01" integrator="implicitfast" gravity="0 0 0"/>
  <visual><headlight ambient="0.4 0.4 0.4" diffuse="0.4 0.4 0.4"/></visual>
  <default><geom contype="0" conaffinity="0"/></default>
  <asset>
    <material name="table" rgba="0.75 0.7 0.6 1"/>
    <material name="pole" rgba="0.2 0.3 0.7 1"/>
    <material name="ball" rgba="0.85 0.15 0.15 1"/>
  </asset>
  <worldbody>
    <light directional="true" pos="0 0 2" dir="0.3 0.3 -1" diffuse="0.5 0.5 0.5"/>
    <camera name="front" pos="0 -0.62 0.72" xyaxes="1 0 0 0 0.758 0.652" fovy="45"/>
    <geom name="table" type="box" size="0.4 0.4 0.02" pos="0 0 -0.02" material="table"/>
    <body name="ball" pos="0 0 0.03"><geom name="ball" type="sphere" size="0.03" material="ball"/></body>
    <body name="pole" pos="0 0 0.1">
      <joint name="x" type="slide" axis="1 0 0" range="-0.3 0.3" limited="true"/>
      <joint name="y" type="slide" axis="0 1 0" range="-0.3 0.3" limited="true"/>
      <geom name="pole" type="capsule" fromto="0 0 -0.07 0 0 0.12" size="0.015" mass="0.5" material="pole"/>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="x" kv="20"/>
    <velocity joint="y" kv="20"/>
  </actuator>
</mujoco>
"""

_CONTROL_STEPS = 5  # of 10 ms each: 20 Hz
_SPEED_M_PER_S = 0.4
_SUCCESS_M = 0.03
_PLACE_M = 0.25  # half the side of the square in which pole and ball start

ACTION = FieldSpec(
    shape=(2,),
    dtype="float32",
    unit="0.4 m/s",
    convention="velocity of the pole along world x, y",
    low=-1.0,
    high=1.0,
)
PROPRIOCEPTION = {
    "tip_pos": FieldSpec(shape=(2,), dtype="float32", unit="m", convention="pole's tip, world x, y"),
    "tip_vel": FieldSpec(shape=(2,), dtype="float32", unit="m/s", convention="pole's tip, world x, y"),
}
FULL_STATE = FieldSpec(
    shape=(6,),
    dtype="float32",
    unit="m, m/s, m",
    convention="tip position x, y; tip velocity x, y; ball x, y; world",
)


class ToyReach:
    """The pole's tip must come within 3 cm of the ball, measured in the table's plane; pole and ball start at random places."""

    def __init__(self) -> None:
        self.control_hz = 20.0
        self.action_field = ACTION
        self.state_fields = PROPRIOCEPTION
        self.full_state_field = FULL_STATE
        self.model = mujoco.MjModel.from_xml_string(_REACH)
        self.data = mujoco.MjData(self.model)
        self._ball = self.model.body("ball").id

    def reset(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        mujoco.mj_resetData(self.model, self.data)
        tip, ball = random.uniform(-_PLACE_M, _PLACE_M, size=(2, 2))
        while np.linalg.norm(tip - ball) < 4 * _SUCCESS_M:
            tip, ball = random.uniform(-_PLACE_M, _PLACE_M, size=(2, 2))
        self.data.qpos[:] = tip
        self.model.body_pos[self._ball, :2] = ball
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        self.data.ctrl[:] = action * _SPEED_M_PER_S
        mujoco.mj_step(self.model, self.data, nstep=_CONTROL_STEPS)
        mujoco.mj_forward(self.model, self.data)
        distance = float(np.linalg.norm(self.data.qpos - self.data.xpos[self._ball, :2]))
        return -distance, distance < _SUCCESS_M

    def state_observation(self) -> dict[str, np.ndarray]:
        return {"tip_pos": self.data.qpos, "tip_vel": self.data.qvel}

    def full_state(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel, self.data.xpos[self._ball, :2]])

    def physics_state(self) -> np.ndarray:
        return self.full_state()

    def close(self) -> None:
        """Nothing to free."""


def make_simulation(row: Task) -> ToyReach:
    """The simulation of a row of TASKS."""
    assert row.name == "reach"
    return ToyReach()

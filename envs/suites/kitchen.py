"""The five Franka Kitchen tasks of R3M's evaluation on gymnasium-robotics' model, driven directly.

From R3M's fork of mj_envs (kitchen_*-v3 with its "random desk"): the start state and its noise, the kitchen's placement, 40 physics steps of 2 ms a
control step, 50 steps, goals and thresholds, cameras, nine joint positions as proprioception. What differs, and why:

- The package's model of the kitchen instead of mj_envs', which needs mujoco-py; the robot, its actuators and the joints' ranges are the same.
- A full action asks for 2 rad/s as in FrankaKitchen-v1, not for 2 pi: the actuators' force limits give a joint at most 0.87 rad/s (1.2 in the wrist), which
  2 rad/s already asks for in full, so the larger range only makes an action coarser.
- The kettle moves with the kitchen. In mj_envs it stays behind, half inside the stove or above it.
- A placement is drawn again while the robot touches anything; mj_envs draws again while there are more than four contacts of any kind.
- No noise on the observation: a policy's input and its demos stay exact.
- Success ends the episode at once; mj_envs counts an episode that is solved for more than five of its 50 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from envs.spec import FieldSpec
from envs.suites import kitchen_scene
from envs.task import Task


@dataclass(frozen=True, kw_only=True)
class Element:
    """What a task moves.

    Attributes:
        joint: a joint of the kitchen.
        goal: its goal, rad or m.
        site: where it is to be touched.
        within_reach: (joint value, point in the moving body's frame, m) of places that the arm must be able to reach.
    """

    joint: str
    goal: float
    site: str
    within_reach: tuple[tuple[float, tuple[float, float, float]], ...] = ()


ELEMENTS: dict[str, Element] = {
    "knob1_on": Element(joint="knob_Joint_1", goal=-1.57, site="knob1_site"),
    "light_on": Element(joint="light_switch", goal=-0.7, site="light_site"),
    "sdoor_open": Element(joint="slide_cabinet", goal=0.44, site="slide_site"),
    "ldoor_open": Element(
        joint="left_hinge_cabinet",
        goal=-1.25,
        site="hinge_site1",
        # The handle below its middle while shut, the door's free edge from inside when the goal's threshold is met.
        within_reach=((0.0, (0.302, -0.128, -0.075)), (-1.0145, (0.355, 0.031, -0.16))),
    ),
    "micro_open": Element(joint="microwave", goal=-1.25, site="microhandle_site"),
}
ELEMENT_JOINTS = (
    "knob_Joint_1",
    "knob_Joint_2",
    "knob_Joint_3",
    "knob_Joint_4",
    "light_switch",
    "slide_cabinet",
    "left_hinge_cabinet",
    "right_hinge_cabinet",
    "microwave",
)

PHYSICS_STEPS = 40  # of 2 ms
CONTROL_S = 0.08
SPEED_PER_S = 2.0  # rad/s or m/s that a full action asks for
ROBOT_DOFS = 9
_SOLVED = 0.15  # of a joint's range
_JOINT_NOISE = 0.025  # of a joint's range, either way
_KITCHEN_M = 0.1  # each coordinate of the kitchen's place, either way
_REACH_M = 0.95  # from the shoulder to a point that the fingers can work on; stretched out, their ends are at 0.99
_KETTLE_M = 0.45  # 0.15 of the 3 m that mj_envs' kettle may slide along each axis
HOME = (0.10102, -1.76350, 1.88975, -2.47662, 0.32519, 0.82909, 1.62464, 0.03998, 0.03998)
_KETTLE_AT = (-0.269, 0.35, 1.6193, 1.0, 0.0, 0.0, 0.0)

ACTION = FieldSpec(
    shape=(ROBOT_DOFS,),
    dtype="float32",
    unit="2 rad/s (arm), 2 m/s (fingers)",
    convention="velocity of the seven arm joints and two fingers; sets the position servos 80 ms ahead of where the joints are",
    low=-1.0,
    high=1.0,
)
PROPRIOCEPTION = {
    "joint_pos": FieldSpec(
        shape=(ROBOT_DOFS,), dtype="float32", unit="rad, m", convention="seven arm joints, two fingers' openings"
    ),
}
FULL_STATE = FieldSpec(
    shape=(33,),
    dtype="float32",
    unit="rad, m, rad/s, m/s",
    convention="robot's 9 joint positions, their velocities, positions of the 9 elements in ELEMENT_JOINTS' order, end effector x, y, z in the world, "
    "from it to where the task's element is to be touched x, y, z",
)


def _task(name: str, success_rule: str, horizon_steps: int = 50, notes: str = "R3M's horizon") -> Task:
    element = ELEMENTS[name]
    return Task(
        suite="kitchen",
        name=name,
        cameras=("left_cap2", "right_cap2"),
        horizon_steps=horizon_steps,
        success_rule=f"{success_rule}, each other element within 0.15 of its range of where it began and the kettle within 45 cm "
        f"(mj_envs' rule at {element.joint} = {element.goal})",
        expert="kitchen",
        notes=f"the kitchen moves (x, y, z by up to 10 cm), the robot's joints by up to 2.5 % of their range; {notes}",
    )


TASKS: dict[str, Task] = {
    "kitchen/knob1_on": _task("knob1_on", "lower right knob within 0.236 rad of a quarter turn"),
    "kitchen/light_on": _task("light_on", "light switch within 0.105 rad of 0.7 rad"),
    "kitchen/sdoor_open": _task("sdoor_open", "sliding door within 6.6 cm of 44 cm open"),
    "kitchen/ldoor_open": _task(
        "ldoor_open",
        "left hinged door within 0.236 rad of 1.25 rad open",
        horizon_steps=100,
        notes="placements beyond the arm's reach are drawn again (about two of three). Twice R3M's horizon: the handle leaves the arm's reach, so that the "
        "expert pulls it, lets go, walks round the door's edge and pushes from inside; at the servos' full speed it needs 49 to 80 steps",
    ),
    "kitchen/micro_open": _task("micro_open", "microwave's door within 0.314 rad of 1.25 rad open"),
}


class KitchenSimulation:
    """One task of the kitchen.

    Args:
        name: a key of `ELEMENTS`.

    Raises:
        RuntimeError: gymnasium-robotics is not installed.
    """

    def __init__(self, name: str) -> None:
        self.element = ELEMENTS[name]
        self.action_field = ACTION
        self.state_fields = PROPRIOCEPTION
        self.full_state_field = FULL_STATE
        self.control_hz = 1 / CONTROL_S
        self.model = kitchen_scene.make_model()
        self.data = mujoco.MjData(self.model)
        self._kitchen = self.model.body("desk").id
        self._kitchen_home = self.model.body_pos[self._kitchen].copy()
        self._robot_range = self.model.jnt_range[:ROBOT_DOFS]
        joints = [self.model.joint(name).id for name in ELEMENT_JOINTS]
        self._elements = self.model.jnt_qposadr[joints]
        self._tolerance = _SOLVED * np.ptp(self.model.jnt_range[joints], axis=1)
        self._goals = np.zeros(len(joints))
        self._task_element = ELEMENT_JOINTS.index(self.element.joint)
        self._goals[self._task_element] = self.element.goal
        kettle = self.model.joint("kettle").qposadr[0]
        self._kettle = slice(kettle, kettle + 7)
        self._kettle_start = np.zeros(3)
        self._robot_body = np.isin(self.model.body_rootid, self.model.body("panda0_link0").rootid)
        self._shoulder = self.model.body("panda0_link2").id
        self._end_effector = self.model.site("end_effector").id
        self._touch = self.model.site(self.element.site).id

    def reset(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        while True:
            self._place(random)
            if not self._robot_touches() and self._is_within_reach():
                return

    def _place(self, random: np.random.Generator) -> None:
        data = self.data
        mujoco.mj_resetData(self.model, data)
        low, high = self._robot_range.T
        noise = _JOINT_NOISE * (high - low) * random.uniform(-1, 1, size=ROBOT_DOFS)
        data.qpos[:ROBOT_DOFS] = np.clip(HOME + noise, low, high)
        shift = random.uniform(-_KITCHEN_M, _KITCHEN_M, size=3)
        self.model.body_pos[self._kitchen] = self._kitchen_home + shift
        data.qpos[self._kettle] = _KETTLE_AT
        self._kettle_start = _KETTLE_AT[:3] + shift
        data.qpos[self._kettle][:3] = self._kettle_start
        mujoco.mj_forward(self.model, data)

    def _robot_touches(self) -> bool:
        bodies = self.model.geom_bodyid[self.data.contact.geom]
        return bool(self._robot_body[bodies].any())

    def _is_within_reach(self) -> bool:
        joint = self.model.joint(self.element.joint)
        body = joint.bodyid[0]
        anchor, axis = self.data.xanchor[joint.id], self.data.xaxis[joint.id]
        from_anchor = self.data.xmat[body].reshape(3, 3)
        for value, point in self.element.within_reach:
            place, turn = np.empty(3), np.empty(4)
            mujoco.mju_axisAngle2Quat(turn, axis, value)
            mujoco.mju_rotVecQuat(place, from_anchor @ point, turn)
            if np.linalg.norm(anchor + place - self.data.xpos[self._shoulder]) > _REACH_M:
                return False
        return True

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        data = self.data
        target = data.qpos[:ROBOT_DOFS] + SPEED_PER_S * CONTROL_S * action
        data.ctrl[:] = np.clip(target, *self._robot_range.T)
        mujoco.mj_step(self.model, data, nstep=PHYSICS_STEPS)
        mujoco.mj_forward(self.model, data)
        return self._judge()

    def _judge(self) -> tuple[float, bool]:
        """The reward of mj_envs for the task's element, and success."""
        error = np.abs(self.data.qpos[self._elements] - self._goals)
        kettle_moved = np.abs(self.data.qpos[self._kettle][:3] - self._kettle_start)
        success = bool((error < self._tolerance).all() and (kettle_moved < _KETTLE_M).all())
        left, span = error[self._task_element], self._tolerance[self._task_element] / _SOLVED
        bonus = float(left < 0.75 * span) + float(left < 0.25 * span)
        return float(-left + 0.5 * bonus - 0.5 * np.linalg.norm(self._reach())), success

    def _reach(self) -> np.ndarray:
        """From the end effector to the place to touch, m, world [3]."""
        return self.data.site_xpos[self._touch] - self.data.site_xpos[self._end_effector]

    def state_observation(self) -> dict[str, np.ndarray]:
        return {"joint_pos": self.data.qpos[:ROBOT_DOFS]}

    def full_state(self) -> np.ndarray:
        data = self.data
        robot = [data.qpos[:ROBOT_DOFS], data.qvel[:ROBOT_DOFS]]
        return np.concatenate([*robot, data.qpos[self._elements], data.site_xpos[self._end_effector], self._reach()])

    def physics_state(self) -> np.ndarray:
        """Time, joints and velocities, the kitchen's place."""
        data = self.data
        return np.concatenate([[data.time], data.qpos, data.qvel, self.model.body_pos[self._kitchen]])

    def close(self) -> None:
        """Nothing to free."""


def make_simulation(row: Task) -> KitchenSimulation:
    """The simulation of a row of TASKS."""
    return KitchenSimulation(row.name)

"""robosuite's tasks with one or two Panda arms under operational-space control at 20 Hz, stepped directly.

The package's `step` samples every sensor at each of 25 physics steps and its offscreen renderer is not ours; here its models, controllers, placements,
rewards and success rules are used, sensors are read once a control step, and images come from the raw model and data. Resets are soft: the model is
compiled once, so that a reset takes milliseconds and one renderer serves all environments of a task.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from envs.spec import FieldSpec
from envs.suites.robosuite_control import OperationalSpaceLaw
from envs.suites.robosuite_tasks import TASKS as TASKS
from envs.task import Task

CONTROL_HZ = 20
# Where robosuite draws its collision shapes; MuJoCo draws groups 0 to 2 unless told otherwise.
_COLLISION_GROUP, _HIDDEN_GROUP = 0, 3
_MODEL_SEED = 0  # sizes that robosuite draws when it builds a model (Lift's cube)

_ARM_ACTION_UNIT = "0.05 m, 0.05 m, 0.05 m, 0.5 rad, 0.5 rad, 0.5 rad, 1"
_ARM_ACTION = "shift of the hand's goal from where it is, world x, y, z; its turn as rotation vector, world x, y, z; fingers, < 0 open and > 0 close"
EEF_POS = FieldSpec(shape=(3,), dtype="float32", unit="m", convention="point between the finger tips, world x, y, z")
EEF_QUAT = FieldSpec(shape=(4,), dtype="float32", unit="1", convention="hand in the world, quaternion x, y, z, w")
GRIPPER_QPOS = FieldSpec(
    shape=(2,), dtype="float32", unit="m", convention="the two fingers' joints: 0.04 and -0.04 open, 0 and 0 closed"
)


@dataclass(frozen=True, kw_only=True)
class _Build:
    """How a row's environment is made.

    Attributes:
        env: robosuite's environment class.
        arms: how many Pandas.
        options: what that class is given besides what all are.
        placements: sampler -> (x range, y range) in metres, where they differ from robosuite's; "" is the only sampler.
    """

    env: str
    arms: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    placements: dict[str, tuple[tuple[float, float], tuple[float, float]]] = field(default_factory=dict)


_BUILDS: dict[str, _Build] = {
    "lift": _Build(env="Lift", placements={"": ((-0.08, 0.08), (-0.08, 0.08))}),
    "stack": _Build(env="Stack"),
    "door": _Build(env="Door", placements={"": ((0.05, 0.10), (-0.03, 0.03))}),
    "nut-assembly-square": _Build(
        env="NutAssemblySquare", placements={"SquareNutSampler": ((-0.15, -0.08), (0.11, 0.225))}
    ),
    "pick-place-can": _Build(env="PickPlaceCan"),
    # Side by side, both arms' base frames are the world's; facing each other, actions would mean different directions.
    "two-arm-lift": _Build(env="TwoArmLift", arms=2, options={"env_configuration": "parallel"}),
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Where one arm is found in model and data."""

    law: OperationalSpaceLaw
    gripper: Any
    eef_site: int
    hand_body: int
    finger_qpos: np.ndarray


class RobosuiteSimulation:
    """One robosuite task.

    Args:
        name: a key of `_BUILDS`.

    Raises:
        RuntimeError: the package is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.env: Any = _make_env(name)
        self.model: mujoco.MjModel = self.env.sim.model._model
        self.data: mujoco.MjData = self.env.sim.data._data
        self.control_hz = float(CONTROL_HZ)
        self._substeps = round(1 / CONTROL_HZ / self.model.opt.timestep)
        self.arms = [self._find_arm(robot) for robot in self.env.robots]
        self.action_field = FieldSpec(
            shape=(7 * len(self.arms),),
            dtype="float32",
            unit=_ARM_ACTION_UNIT,
            convention=_ARM_ACTION if len(self.arms) == 1 else f"for each arm in turn: {_ARM_ACTION}",
            low=-1.0,
            high=1.0,
        )
        fields = {"eef_pos": EEF_POS, "eef_quat_xyzw": EEF_QUAT, "gripper_qpos": GRIPPER_QPOS}
        self._prefixes = [f"robot{i}_" for i in range(len(self.arms))] if len(self.arms) > 1 else [""]
        self.state_fields = {prefix + name: field for prefix in self._prefixes for name, field in fields.items()}
        self._park_unused_objects()
        self._hide_collision_shapes_and_sites()
        self._furniture = np.flatnonzero(self.model.body_parentid == 0)[1:]
        self.reset(0)
        names = [name for name in self._object_state() if name != "object-state"]
        self.full_state_field = FieldSpec(
            shape=self.full_state().shape,
            dtype="float32",
            unit="m, rad, 1",
            convention=f"robosuite's {', '.join(names)} (world; quaternions x, y, z, w); then proprioception",
        )

    def reset(self, seed: int) -> None:
        # One generator, shared by the robot's noise and all samplers; new objects would not reach the samplers.
        self.env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.env.reset()
        self._place_parked_objects()
        # The reset solved contacts of half-placed scenes; what the solver starts from must not depend on them.
        self.data.qacc_warmstart[:] = 0
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        env, model, data = self.env, self.model, self.data
        command = np.asarray(action, np.float64)
        env.timestep += 1
        mujoco.mj_step1(model, data)
        env._pre_action(command, policy_step=True)
        mujoco.mj_step2(model, data)
        for arm in self.arms:
            arm.law.begin_control_step()
        for _ in range(self._substeps - 1):
            mujoco.mj_step1(model, data)
            for arm in self.arms:
                arm.law.apply()
            mujoco.mj_step2(model, data)
        mujoco.mj_forward(model, data)
        reward, _, _ = env._post_action(command)
        return float(reward), bool(env._check_success())

    def state_observation(self) -> dict[str, np.ndarray]:
        data = self.data
        state = {}
        for prefix, arm in zip(self._prefixes, self.arms, strict=True):
            state[f"{prefix}eef_pos"] = data.site_xpos[arm.eef_site]
            state[f"{prefix}eef_quat_xyzw"] = data.xquat[arm.hand_body][[1, 2, 3, 0]]
            state[f"{prefix}gripper_qpos"] = data.qpos[arm.finger_qpos]
        return state

    def full_state(self) -> np.ndarray:
        parts = [self._object_state()["object-state"], *self.state_observation().values()]
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    def physics_state(self) -> np.ndarray:
        """Time, joints and velocities (robosuite's flattened state); the fingers' commanded place; where the furniture stands; float64."""
        model, data = self.model, self.data
        parts = [
            [data.time],
            data.qpos,
            data.qvel,
            # Of one element until the first action, of one a finger after it.
            *(np.broadcast_to(arm.gripper.current_action, len(arm.gripper.actuators)) for arm in self.arms),
            model.body_pos[self._furniture].ravel(),
            model.body_quat[self._furniture].ravel(),
        ]
        return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])

    def close(self) -> None:
        self.env.close()

    def _find_arm(self, robot: Any) -> Arm:
        return Arm(
            law=OperationalSpaceLaw(self.model, self.data, robot),
            gripper=robot.gripper["right"],
            eef_site=robot.eef_site_id["right"],
            hand_body=self.model.body(robot.robot_model.eef_name["right"]).id,
            finger_qpos=np.array(robot._ref_gripper_joint_pos_indexes["right"]),
        )

    def _object_state(self) -> dict[str, np.ndarray]:
        """robosuite's object observables, by name, and their concatenation "object-state"."""
        said = self.env._get_observations(force_update=True)
        names = [name for name, sensor in self.env._observables.items() if sensor.modality == "object" and name in said]
        return {name: said[name] for name in (*names, "object-state")}

    def _park_unused_objects(self) -> None:
        """Take the objects that a single-object task does not use out of sight and out of the physics.

        robosuite drops them all into one spot far away, where they collide for seconds.
        """
        used = getattr(self.env, "obj_to_use", None)
        candidates = getattr(self.env, "nuts", None) or getattr(self.env, "objects", [])
        self.parked = [obj for obj in candidates if used is not None and obj.name != used]
        for obj in self.parked:
            body = self.model.body(obj.root_body).id
            for geom in np.flatnonzero(self.model.body_rootid[self.model.geom_bodyid] == body):
                self.model.geom_contype[geom] = self.model.geom_conaffinity[geom] = 0
                self.model.geom_group[geom] = _HIDDEN_GROUP
            dof = self.model.body_dofadr[body]
            self.model.dof_damping[dof : dof + 6] = 1e6  # stays where it is, without gravity having to go

    def _place_parked_objects(self) -> None:
        for index, obj in enumerate(self.parked):
            self.env.sim.data.set_joint_qpos(obj.joints[0], np.array([10, 10 + index, 1, 1, 0, 0, 0]))

    def _hide_collision_shapes_and_sites(self) -> None:
        self.model.geom_group[self.model.geom_group == _COLLISION_GROUP] = _HIDDEN_GROUP
        self.model.site_rgba[:, 3] = 0


def _make_env(name: str) -> Any:
    # The package warns at import and at each environment of macros and robots that are not used here.
    logging.getLogger("robosuite_logs").addFilter(_only_errors)
    try:
        import robosuite
        from robosuite.controllers import load_composite_controller_config
    except ImportError as error:
        raise RuntimeError(
            f"robosuite/{name} needs the simulators: {error}. Remedy: pip install 'egoarm[robots]'"
        ) from error
    build = _BUILDS[name]
    env = robosuite.make(
        build.env,
        robots=["Panda"] * build.arms,
        controller_configs=load_composite_controller_config(robot="Panda"),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=True,
        reward_shaping=True,
        control_freq=CONTROL_HZ,
        ignore_done=True,
        hard_reset=False,
        seed=_MODEL_SEED,
        **build.options,
    )
    for name, (x_range, y_range) in build.placements.items():
        sampler = env.placement_initializer.samplers[name] if name else env.placement_initializer
        sampler.x_range, sampler.y_range = x_range, y_range
    return env


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def make_simulation(row: Task) -> RobosuiteSimulation:
    """The simulation of a row of TASKS."""
    return RobosuiteSimulation(row.name)

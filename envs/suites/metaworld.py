"""Meta-World's Sawyer tasks (v3), driven directly: placements drawn from the episode's seed, upright cameras, no goal markers that give the answer away.

The package's own wrappers choose from fixed lists of placements and hide the goal from the state; driving the environment classes gives a fresh
placement for each seed and the goal in the 39-d state that the scripted policies need.
"""

from __future__ import annotations

import warnings
from typing import Any

import mujoco
import numpy as np

from envs.spec import FieldSpec
from envs.suites.metaworld_tasks import TASKS as TASKS
from envs.suites.metaworld_tasks import WIDE
from envs.suites.upright import turn_cameras_upright
from envs.task import Task

ACTION = FieldSpec(
    shape=(4,),
    dtype="float32",
    unit="0.01 m, 0.01 m, 0.01 m, 1",
    convention="shift of the hand's target along world x, y, z; gripper effort, -1 opens and 1 closes",
    low=-1.0,
    high=1.0,
)
PROPRIOCEPTION = {
    "hand_pos": FieldSpec(shape=(3,), dtype="float32", unit="m", convention="hand, world x, y, z"),
    "gripper_opening": FieldSpec(
        shape=(1,), dtype="float32", unit="0.1 m", convention="distance of the fingers, clipped", low=0.0, high=1.0
    ),
}
FULL_STATE = FieldSpec(
    shape=(39,),
    dtype="float32",
    unit="m, 0.1 m, 1",
    convention="hand, gripper opening, two objects' positions and xyzw or wxyz quaternions as the task has them, 0 where it has none; the same one step earlier; goal",
)


_GOAL_SITES = ("goal", "mug_goal")  # a model has one of them


class MetaWorldSimulation:
    """One Meta-World task.

    The action moves the hand's target by up to 1 cm a step along world x, y, z and sets the gripper's effort; the simulation runs at 80 control
    steps a second.

    Args:
        name: the package's name without its version, e.g. "drawer-open".
        goal_marker: draw the site that marks the goal; every other site is hidden in any case.
        placements: low and high corner of what the reset draws; None takes the package's.

    Raises:
        RuntimeError: the package is not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        goal_marker: bool,
        placements: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        self.name = name
        self.action_field = ACTION
        self.state_fields = PROPRIOCEPTION
        self.full_state_field = FULL_STATE
        self._env = _make_sawyer(name)
        if placements is not None:
            space = self._env._random_reset_space
            low, high = (np.asarray(corner, space.dtype) for corner in placements)
            self._env._random_reset_space = type(space)(low, high, dtype=space.dtype.type)
        self.model: mujoco.MjModel = self._env.model
        self.data: mujoco.MjData = self._env.data
        self.control_hz = float(round(1 / self._env.dt, 6))
        _hide_sites(self.model, shown=_GOAL_SITES if goal_marker else ())
        turn_cameras_upright(self.model, self.data)
        # Resets move furniture by writing to the model; each starts from here, so that no episode depends on the one before.
        self._body_pos = self.model.body_pos.copy()
        self._site_pos = self.model.site_pos.copy()
        self._furniture = np.flatnonzero(self.model.body_parentid == 0)[1:]
        self._full_state = np.zeros(39)

    def reset(self, seed: int) -> None:
        env = self._env
        self.model.body_pos[:] = self._body_pos
        self.model.site_pos[:] = self._site_pos
        mujoco.mj_resetData(self.model, self.data)
        env.seed(seed)
        env.reset()
        # Some tasks place furniture last and leave the derived poses of the place before: recompute them, and the state from them.
        mujoco.mj_forward(self.model, self.data)
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self._full_state = env._get_obs()

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        self._full_state, reward, _, _, info = self._env.step(action)
        return float(reward), bool(info["success"])

    def state_observation(self) -> dict[str, np.ndarray]:
        return {"hand_pos": self._full_state[:3], "gripper_opening": self._full_state[3:4]}

    def full_state(self) -> np.ndarray:
        return self._full_state.copy()

    def physics_state(self) -> np.ndarray:
        """Time, joints and velocities, the mocap body, where the furniture stands (z included), the goal; float64."""
        data = self.data
        parts = [
            [data.time],
            data.qpos,
            data.qvel,
            data.mocap_pos.ravel(),
            data.mocap_quat.ravel(),
            self.model.body_pos[self._furniture].ravel(),
            self._env._target_pos,
        ]
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    def close(self) -> None:
        self._env.close()


def _make_sawyer(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            # Harmless: gymnasium's remarks on the precision of the package's spaces.
            warnings.simplefilter("ignore")
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS

            env = ALL_V3_ENVIRONMENTS[f"{name}-v3"]()
    except ImportError as error:
        raise RuntimeError(
            f"metaworld/{name} needs the simulators: {error}. Remedy: pip install 'egoarm[robots]'"
        ) from error
    # The goal stays in the state; the space that clips it was cached before this was known.
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._set_task_called = True
    return env


def _hide_sites(model: mujoco.MjModel, *, shown: tuple[str, ...]) -> None:
    for site in range(model.nsite):
        if model.site(site).name not in shown:
            model.site_matid[site] = -1
            model.site_rgba[site, 3] = 0


def make_simulation(row: Task) -> MetaWorldSimulation:
    """The simulation of a row of TASKS."""
    name = row.name.removesuffix("-wide")
    return MetaWorldSimulation(name, goal_marker=row.goal_marker, placements=WIDE[name] if name != row.name else None)

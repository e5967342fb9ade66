"""robosuite's tasks by waypoints: each step, the state alone tells where the hand must go and whether the fingers close.

No expert keeps anything between steps: a lost grasp is tried again, and a policy that imitates one needs no memory.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from envs.env import ManipulationEnv
from envs.experts.robosuite_plans import PLANS, Scene
from envs.suites.robosuite import RobosuiteSimulation

_GAIN = 2.0  # share of the remaining error that one step's goal covers, in units of a step's full range
_METRES, _RADIANS = 0.05, 0.5  # a full action, as the suite's action field says


class RobosuiteExpert:
    """Drives the hand towards the plan's pose, at full speed until near."""

    def __init__(self, env: ManipulationEnv) -> None:
        simulation = env.simulation
        assert isinstance(simulation, RobosuiteSimulation)
        self._scenes = [Scene(simulation, arm) for arm in range(len(simulation.arms))]
        self._plan = PLANS[simulation.name]

    def reset(self) -> None:
        """Nothing is kept between steps."""

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action, float32 [7] an arm."""
        return np.concatenate([self._command(scene) for scene in self._scenes]).astype(np.float32)

    def _command(self, scene: Scene) -> np.ndarray:
        goal = self._plan(scene)
        turn = Rotation.from_matrix(goal.mat @ scene.hand_mat.T).as_rotvec()
        shift = _limited(_GAIN * (goal.pos - scene.hand_pos) / _METRES, goal.speed)
        return np.concatenate([shift, _limited(_GAIN * turn / _RADIANS, goal.speed), [1.0 if goal.close else -1.0]])


def _limited(command: np.ndarray, largest: float) -> np.ndarray:
    """Scaled down as a whole, so that the hand goes straight."""
    return command * min(1.0, largest / max(np.abs(command).max(), 1e-9))


def make_expert(env: ManipulationEnv) -> RobosuiteExpert:
    """The expert of the environment's task."""
    return RobosuiteExpert(env)

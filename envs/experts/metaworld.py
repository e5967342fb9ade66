"""Meta-World's scripted policies as experts, and scripts of our own where those fail."""

from __future__ import annotations

import warnings

import numpy as np

from envs.env import ManipulationEnv
from envs.experts.metaworld_scripts import SCRIPTS, command


class MetaWorldExpert:
    """The installed package's Sawyer policy of the task, on the float64 39-d state; actions clipped to [-1, 1]."""

    def __init__(self, env: ManipulationEnv) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        name = env.simulation.name
        self._simulation = env.simulation
        self._make_policy = ENV_POLICY_MAP[f"{name}-v3"]
        self._policy = self._make_policy()

    def reset(self) -> None:
        """Begin an episode; a policy may keep where it is in its script."""
        self._policy = self._make_policy()

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action, float32 [4]."""
        state = self._simulation.full_state()
        with warnings.catch_warnings():
            # The policies say on each step that their gains ask for more than the range; clipping is what they were written for.
            warnings.filterwarnings("ignore", message="Constant\\(s\\) may be too high")
            action = self._policy.get_action(state)
        return np.clip(action, -1, 1).astype(np.float32)


class ScriptedExpert:
    """A script of `envs.experts.metaworld_scripts`; it keeps nothing between steps."""

    def __init__(self, env: ManipulationEnv) -> None:
        self._simulation = env.simulation
        self._script = SCRIPTS[env.simulation.name]

    def reset(self) -> None:
        """Nothing is kept."""

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action, float32 [4]."""
        state = self._simulation.full_state()
        target, effort = self._script(state)
        return command(state, target, effort)


def make_expert(env: ManipulationEnv) -> MetaWorldExpert | ScriptedExpert:
    """The expert of the environment's task."""
    return (ScriptedExpert if env.simulation.name in SCRIPTS else MetaWorldExpert)(env)

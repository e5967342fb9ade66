"""The toy suite's expert: straight to the ball, slowing down near it."""

from __future__ import annotations

import numpy as np

from envs.env import ManipulationEnv

_GAIN = 10.0  # full speed until 10 cm from the ball


class ToyReachExpert:
    """Proportional control of the tip's position from the privileged state."""

    def __init__(self, env: ManipulationEnv) -> None:
        self._simulation = env.simulation

    def reset(self) -> None:
        """Nothing is kept between steps."""

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action, float32 [2]."""
        state = self._simulation.full_state()
        return np.clip(_GAIN * (state[4:6] - state[:2]), -1, 1).astype(np.float32)


def make_expert(env: ManipulationEnv) -> ToyReachExpert:
    """The expert of the environment's task."""
    return ToyReachExpert(env)

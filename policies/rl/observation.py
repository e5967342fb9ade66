"""What a learner sees of an environment: the chosen state, and images with their history, as the policy contract has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from envs.env import ManipulationEnv
from policies.chunking import history_offsets
from policies.policy import PolicySpec

# What `obs=` means: (images, privileged state). Proprioception is in all of them.
OBSERVATIONS: dict[str, tuple[bool, bool]] = {
    "pixels": (True, False),
    "state": (False, False),
    "privileged": (False, True),
}


def image_keys(spec: PolicySpec) -> tuple[str, ...]:
    """The observation keys of the policy's cameras, in order."""
    return tuple(f"images/{camera}" for camera in spec.cameras)


def observation_space(spec: PolicySpec) -> gymnasium.spaces.Dict:
    """The space of one observation: `images/<camera>` uint8 [To, H, W, 3] and `state/<name>` float32 [d]."""
    fields = spec.env_spec.observation
    spaces: dict[str, gymnasium.spaces.Space] = {
        key: gymnasium.spaces.Box(0, 255, (spec.frames, *fields[key].shape), np.uint8) for key in image_keys(spec)
    }
    spaces |= {key: gymnasium.spaces.Box(-np.inf, np.inf, fields[key].shape, np.float32) for key in spec.state_keys}
    return gymnasium.spaces.Dict(spaces)


class FrameHistory:
    """The last To images of each of `n_envs` environments, `stride_steps` apart, the oldest repeated at an episode's start.

    It sees what the policy is asked at: every `execute_steps`-th control step.
    """

    def __init__(self, spec: PolicySpec, n_envs: int) -> None:
        self.spec = spec
        offsets = history_offsets(spec.frames, spec.stride_steps // spec.execute_steps if spec.frames > 1 else 1)
        self._length = int(offsets[0]) + 1
        self._picked = self._length - 1 - offsets
        fields = spec.env_spec.observation
        self._frames = {key: np.zeros((n_envs, self._length, *fields[key].shape), np.uint8) for key in image_keys(spec)}

    def see(self, observation: Mapping[str, np.ndarray], rows: Sequence[int], *, first: bool) -> dict[str, np.ndarray]:
        """Take in the newest observation of the environments `rows` (`first` of an episode or not) and give what the policy sees.

        Args:
            observation: `images/<camera>` uint8 [B, H, W, 3] and `state/<name>` float32 [B, d], B = len(rows).

        Returns:
            `images/<camera>` uint8 [B, To, H, W, 3], oldest first, and `state/<name>` float32 [B, d]; new arrays.
        """
        index = np.asarray(rows, dtype=int)
        seen: dict[str, np.ndarray] = {}
        for key, frames in self._frames.items():
            if first:
                frames[index] = observation[key][:, None]
            else:
                frames[index, :-1] = frames[index, 1:]
                frames[index, -1] = observation[key]
            seen[key] = frames[index][:, self._picked]
        for key in self.spec.state_keys:
            seen[key] = np.array(observation[key], dtype=np.float32)
        return seen


class PolicyObservation(gymnasium.Wrapper):
    """A single environment as its policy sees it, for any library that takes Gymnasium environments; a step is the policy's, `execute_steps` long."""

    def __init__(self, env: ManipulationEnv, spec: PolicySpec) -> None:
        super().__init__(env)
        self._repeat = spec.execute_steps
        self._history = FrameHistory(spec, 1)
        self.observation_space = observation_space(spec)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._see(observation, first=True), info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        total, held = float(reward), 1
        while held < self._repeat and not (terminated or truncated):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total, held = total + float(reward), held + 1
        return self._see(observation, first=False), total, terminated, truncated, info

    def _see(self, observation: Mapping[str, np.ndarray], *, first: bool) -> dict[str, np.ndarray]:
        seen = self._history.see({key: value[None] for key, value in observation.items()}, [0], first=first)
        return {key: value[0] for key, value in seen.items()}

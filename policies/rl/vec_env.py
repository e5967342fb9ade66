"""stable-baselines3's VecEnv over parallel manipulation environments, with its reset semantics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from envs.vector import VectorEnv
from policies.demos.collect import DEMO_SEEDS
from policies.policy import PolicySpec
from policies.rl.observation import FrameHistory, image_keys, observation_space

# Images with history, a batch at a time, to float32 [B, F]; see `policies.rl.networks.FrozenEyes`.
Encode = Callable[[Mapping[str, np.ndarray]], np.ndarray]

FEATURES = "features"


class ManipulationVecEnv(VecEnv):
    """`VectorEnv` as stable-baselines3 expects it.

    - A step is the policy's: its action is done `execute_steps` times, or to the episode's end, and the rewards are added up. Images are drawn where
      an action is chosen and at the horizon; an episode that succeeds in between ends with a black one, from which nothing is bootstrapped.
    - An environment whose episode ends is reset at once: the observation returned is the next episode's first one, and the ended episode's last
      one is `info["terminal_observation"]`.
    - `info["TimeLimit.truncated"]` is true where the episode ended by its horizon, so that a learner bootstraps there.
    - `info["is_success"]` and `info["episode"]` (return "r" in the environment's own reward, length "l") come with an episode's last step.
    - Episodes take their seeds in order from the range that demonstrations use, which no evaluation touches.
    - Episodes end at the first success, as the environment's do. With `absorbing_discount`, success goes on paying a positive reward of its first
      step for ever: the last reward r becomes r / (1 - discount) where r > 0 (and what else of the step is left pays r too). Without that, a positive reward a step pays for hovering just short
      of success; a negative one makes haste by itself.

    Args:
        env: made with the spec's cameras (none where it has none); closed with this.
        spec: what the policy sees.
        encode: with it, images become `features` float32 [F] here, once a frame, so that neither replay buffer nor updates meet an image.
        feature_dim: F.
        absorbing_discount: in [0, 1), or None for the bare reward.
        next_seed: the first episode's seed.
    """

    def __init__(
        self,
        env: VectorEnv,
        spec: PolicySpec,
        *,
        encode: Encode | None = None,
        feature_dim: int = 0,
        absorbing_discount: float | None = None,
        next_seed: int = DEMO_SEEDS.start,
    ) -> None:
        self.env, self.spec = env, spec
        self.next_seed = next_seed
        self.render_mode = None
        self._encode = encode
        self._absorbing_discount = absorbing_discount
        self._history = FrameHistory(spec, env.n_envs)
        self._returns = np.zeros(env.n_envs)
        self._lengths = np.zeros(env.n_envs, int)
        self._actions = np.zeros(0, np.float32)
        space = observation_space(spec)
        if encode is not None:
            states = {key: space[key] for key in spec.state_keys}
            space = gymnasium.spaces.Dict(
                {FEATURES: gymnasium.spaces.Box(-np.inf, np.inf, (feature_dim,), np.float32), **states}
            )
        action = gymnasium.spaces.Box(-1.0, 1.0, spec.env_spec.action.shape, np.float32)
        super().__init__(env.n_envs, space, action)

    def reset(self) -> dict[str, np.ndarray]:
        """Start an episode in every environment."""
        self._returns[:], self._lengths[:] = 0.0, 0
        observation, self.reset_infos = self.env.reset(self._draw_seeds(self.num_envs))
        return self._encoded(self._history.see(observation, range(self.num_envs), first=True))

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = np.asarray(actions, dtype=np.float32)

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations [n_envs, ...], rewards float32 [n_envs], dones bool [n_envs], infos."""
        raw, rewards, terminated, truncated, infos = self._repeated()
        seen = self._history.see(raw, range(self.num_envs), first=False)
        done = terminated | truncated
        ended = np.flatnonzero(done).tolist()
        fresh: dict[str, np.ndarray] = {}
        if ended:
            first, reset_infos = self.env.reset(self._draw_seeds(len(ended)), indices=ended)
            fresh = self._history.see(first, ended, first=True)
            for row, index in enumerate(ended):
                self.reset_infos[index] = reset_infos[row]
        # One call encodes the ended episodes' last images together with the next ones' first.
        both = self._encoded({key: np.concatenate([seen[key], fresh[key]]) if ended else seen[key] for key in seen})
        observation = {key: values[: self.num_envs].copy() for key, values in both.items()}
        for row, index in enumerate(ended):
            infos[index] |= {
                "terminal_observation": {key: values[index].copy() for key, values in observation.items()},
                "TimeLimit.truncated": bool(truncated[index] and not terminated[index]),
                "is_success": bool(infos[index]["success"]),
                "episode": {"r": float(self._returns[index]), "l": int(self._lengths[index])},
            }
            for key, values in observation.items():
                values[index] = both[key][self.num_envs + row]
        self._returns[ended], self._lengths[ended] = 0.0, 0
        return observation, rewards.astype(np.float32), done, infos

    def _repeated(
        self,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Do each environment's action as often as a step has it: `VectorEnv.step`'s answers, with the rewards as the learner gets them."""
        n, repeat = self.num_envs, self.spec.execute_steps
        raw: dict[str, np.ndarray] = {}
        rewards, terminated, truncated = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
        infos: list[dict[str, Any]] = [{} for _ in range(n)]
        active = np.arange(n)
        for left in reversed(range(repeat)):
            drawn = (left == 0) | (self._lengths[active] + 1 == self.spec.env_spec.horizon_steps)
            seen, reward, success, cut, new_infos = self.env.step(self._actions[active], active.tolist(), images=drawn)
            for key, values in seen.items():
                raw.setdefault(key, np.zeros((n, *values.shape[1:]), values.dtype))[active] = values
            for row, index in enumerate(active):
                infos[index] = new_infos[row]
            self._returns[active] += reward
            self._lengths[active] += 1
            terminated[active], truncated[active] = success, cut
            if self._absorbing_discount is not None:
                worth = 1 + left + repeat * self._absorbing_discount / (1.0 - self._absorbing_discount)
                reward = np.where(success & (reward > 0), worth * reward, reward)
            rewards[active] += reward
            active = active[~(success | cut)]
            if not len(active):
                break
        return raw, rewards, terminated, truncated, infos

    def close(self) -> None:
        """End the workers."""
        self.env.close()

    def _draw_seeds(self, count: int) -> list[int]:
        first = self.next_seed
        self.next_seed += count
        return [DEMO_SEEDS.start + (seed - DEMO_SEEDS.start) % len(DEMO_SEEDS) for seed in range(first, first + count)]

    def _encoded(self, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._encode is None:
            return seen
        features = self._encode({key: seen[key] for key in image_keys(self.spec)})
        return {FEATURES: features, **{key: seen[key] for key in self.spec.state_keys}}

    # The rest of stable-baselines3's interface reaches into single environments, which live in other processes here.

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The attribute of this object for each environment, since they are all alike."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Not possible here."""
        raise NotImplementedError(f"{attr_name} cannot be set: the environments live in other processes")

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Not possible here."""
        raise NotImplementedError(f"{method_name} cannot be called: the environments live in other processes")

    def env_is_wrapped(self, wrapper_class: Any, indices: int | Iterable[int] | None = None) -> list[bool]:
        """No wrapper is used; what Monitor adds to `info` is in `info` already."""
        return [False for _ in self._get_indices(indices)]


def selected(infos: Sequence[Mapping[str, Any]]) -> list[tuple[bool, float, int]]:
    """(success, return, length) of the episodes that ended in a step's `infos`."""
    return [
        (info["is_success"], info["episode"]["r"], info["episode"]["l"])
        for info in infos
        if "terminal_observation" in info
    ]


def used_seeds(next_seed: int) -> range:
    """Seeds of all episodes begun before `next_seed`; past the end of the range they begin again."""
    return range(DEMO_SEEDS.start, min(next_seed, DEMO_SEEDS.stop))

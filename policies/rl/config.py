"""The settings of `egoarm rl` and of each algorithm."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from envs.tasks import find_level, find_task
from policies.rl.networks import NetworkConfig
from policies.rl.observation import OBSERVATIONS
from policies.rl.policy import ALGORITHMS

# The split "selection" of eval_robot/protocol.py, which this room cannot import; a test holds them equal.
SELECTION_SEEDS = range(100_000, 200_000)


@dataclass(frozen=True, kw_only=True)
class SACConfig:
    """SAC's settings; `updates_per_step` gradient steps a step, `shift_pixels` of random shift of images under trained eyes.

    The learning rate is constant up to the share `decay_from` of the steps and falls linearly to zero from there: the policy is the last one, and at
    a constant rate the critics now and then lose what they have learned within a few hundred updates.
    """

    steps: int = 12_000
    n_envs: int = 8
    discount: float = 0.9
    learning_rate: float = 1e-3
    decay_from: float = 0.5
    batch_size: int = 64
    buffer_steps: int = 100_000
    random_steps: int = 500
    updates_per_step: float = 0.25
    target_rate: float = 0.01
    initial_temperature: float = 0.005
    shift_pixels: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "n_envs", "batch_size", "buffer_steps", "random_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"sac.{name}={getattr(self, name)}: expected at least 1")
        for name in ("learning_rate", "target_rate", "initial_temperature", "updates_per_step"):
            if getattr(self, name) <= 0:
                raise ValueError(f"sac.{name}={getattr(self, name)}: expected a positive number")
        if round(self.updates_per_step * self.n_envs) < 1:
            raise ValueError(
                f"sac.updates_per_step={self.updates_per_step} with sac.n_envs={self.n_envs}: expected a product of at least 1"
            )
        if not 0 <= self.discount < 1 or not 0 < self.target_rate <= 1:
            raise ValueError(
                f"sac.discount={self.discount}, sac.target_rate={self.target_rate}: expected [0, 1) and (0, 1]"
            )
        if not 0 <= self.decay_from <= 1:
            raise ValueError(f"sac.decay_from={self.decay_from}: expected 0 to 1; 1 keeps the learning rate")
        if self.shift_pixels < 0:
            raise ValueError(f"sac.shift_pixels={self.shift_pixels}: expected at least 0")


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """PPO's settings; `rollout_steps` an environment between updates."""

    steps: int = 100_000
    n_envs: int = 8
    discount: float = 0.97
    learning_rate: float = 3e-4
    batch_size: int = 128
    rollout_steps: int = 256
    epochs: int = 10
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "n_envs", "rollout_steps", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"ppo.{name}={getattr(self, name)}: expected at least 1")
        if self.batch_size < 2 or (self.rollout_steps * self.n_envs) % self.batch_size:
            raise ValueError(
                f"ppo.batch_size={self.batch_size}: expected a divisor, at least 2, of "
                f"ppo.rollout_steps x ppo.n_envs = {self.rollout_steps * self.n_envs}"
            )
        if self.learning_rate <= 0 or self.clip_range <= 0 or self.entropy_weight < 0:
            raise ValueError(
                f"ppo.learning_rate={self.learning_rate}, ppo.clip_range={self.clip_range}, ppo.entropy_weight={self.entropy_weight}: "
                "expected positive numbers, the last at least 0"
            )
        if not 0 <= self.discount < 1 or not 0 <= self.gae_lambda <= 1:
            raise ValueError(
                f"ppo.discount={self.discount}, ppo.gae_lambda={self.gae_lambda}: expected [0, 1) and [0, 1]"
            )


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    algo: str
    task: str
    obs: str
    encoder: str
    encoder_seed: int
    encoder_frozen: bool
    level: str
    cameras: tuple[str, ...] | None
    image_size: int
    frames: int
    stride_steps: int
    action_repeat: int
    out: str
    label: str | None
    network: NetworkConfig
    sac: SACConfig
    ppo: PPOConfig
    success: str
    eval_every: int
    eval_episodes: int
    checkpoint_every: int
    log_every: int
    seed: int
    workers: int
    threads: int
    device: str

    def __post_init__(self) -> None:
        for name, known in (("algo", ALGORITHMS), ("obs", OBSERVATIONS), ("success", ("absorbing", "terminal"))):
            if getattr(self, name) not in known:
                close = difflib.get_close_matches(getattr(self, name), known, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise ValueError(f"{name}={getattr(self, name)}: {hint}expected one of {', '.join(known)}")
        find_task(self.task)
        if self.cameras == ():
            raise ValueError(
                "cameras=[]: name at least one camera, or null for the task's; obs=state is without images"
            )
        find_level(self.level)
        for name in (
            "image_size",
            "frames",
            "stride_steps",
            "action_repeat",
            "eval_every",
            "eval_episodes",
            "checkpoint_every",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.frames > 1 and self.stride_steps % self.action_repeat:
            raise ValueError(
                f"stride_steps={self.stride_steps} with action_repeat={self.action_repeat}: images are drawn where an action is chosen; "
                "expected a multiple of action_repeat, or frames=1"
            )
        if self.workers < 0 or self.threads < 0 or self.seed < 0:
            raise ValueError(
                f"workers={self.workers}, threads={self.threads}, seed={self.seed}: expected at least 0 each"
            )
        if self.eval_episodes > len(SELECTION_SEEDS):
            raise ValueError(f"eval_episodes={self.eval_episodes}: there are {len(SELECTION_SEEDS)} selection seeds")

    @property
    def algorithm(self) -> SACConfig | PPOConfig:
        """The settings of `algo`."""
        return self.sac if self.algo == "sac" else self.ppo

    @property
    def sees_images(self) -> bool:
        return OBSERVATIONS[self.obs][0]

    @property
    def content(self) -> dict[str, Any]:
        """What the policy depends on, besides the encoder's weights."""
        free = ("out", "workers", "threads", "device", "checkpoint_every", "log_every", "label")
        unused = "ppo" if self.algo == "sac" else "sac"
        return {key: value for key, value in asdict(self).items() if key not in (*free, unused)}

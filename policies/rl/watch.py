"""What happens beside a run of reinforcement learning: the log, evaluations on selection seeds, checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from tqdm import tqdm

from envs.vector import VectorEnv
from policies.chunking import ActionChunker
from policies.policy import Policy
from policies.rl.checkpoint import RLCheckpoints, RLProgress
from policies.rl.config import SELECTION_SEEDS, RLConfig
from policies.rl.learner import Learner, copy_to_policy
from policies.rl.policy import RLPolicy
from policies.rl.sac import SharedEyesSAC
from policies.rl.vec_env import ManipulationVecEnv, selected
from pretrain.checkpoints import Metrics


class Watch(BaseCallback):
    """Counts episodes, writes metrics, evaluates on selection seeds and saves checkpoints, between a rollout's end and the next one's start."""

    def __init__(
        self,
        config: RLConfig,
        policy: RLPolicy,
        bare: ManipulationVecEnv,
        env: VecNormalize,
        evaluation: VectorEnv,
        checkpoints: RLCheckpoints,
        progress: RLProgress,
        directory: Path,
    ) -> None:
        super().__init__()
        self.config, self.policy, self.bare, self.env = config, policy, bare, env
        self.evaluation, self.checkpoints, self.start = evaluation, checkpoints, progress
        self.metrics = Metrics(directory, first_step=progress.step)
        self.began, self.cpu_began = time.monotonic(), _cpu_seconds()
        self.episodes = progress.episodes
        self.since: list[tuple[bool, float, int]] = []
        # Steps at which each was last done; a resumed run keeps the rhythm of an unbroken one.
        self.done = dict.fromkeys(("log", "eval", "checkpoint"), progress.step)
        self.bar = tqdm(
            total=config.algorithm.steps, initial=progress.step, desc=f"rl {config.algo} {config.task}", unit="step",
            disable=None,
        )  # fmt: skip

    def progress(self) -> RLProgress:
        return RLProgress(
            step=int(self.model.num_timesteps) if hasattr(self, "model") else self.start.step,
            updates=int(self.model._n_updates) if hasattr(self, "model") else self.start.updates,
            next_seed=self.bare.next_seed,
            episodes=self.episodes,
            wall_time_s=self.start.wall_time_s + time.monotonic() - self.began,
            cpu_time_s=self.start.cpu_time_s + _cpu_seconds() - self.cpu_began,
        )

    def _on_step(self) -> bool:
        ended = selected(self.locals["infos"])
        self.since += ended
        self.episodes += len(ended)
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_start(self) -> None:
        """Here the updates of the rollout before are done, and all its transitions are stored."""
        step = self.num_timesteps
        evaluates = self._is_due("eval", self.config.eval_every, step)
        if self._is_due("log", self.config.log_every, step) or evaluates:
            self._write(evaluates)
        if self._is_due("checkpoint", self.config.checkpoint_every, step):
            self.checkpoints.save(self._learner(), self.env, self.policy, self.progress())

    def finish(self) -> None:
        """The last row, with an evaluation."""
        self._write(evaluates=True)

    def close(self) -> None:
        self.bar.close()
        self.metrics.close()

    def _is_due(self, what: str, every: int, step: int) -> bool:
        if step // every <= self.done[what] // every:
            return False
        self.done[what] = step
        return True

    def _write(self, evaluates: bool) -> None:
        spent = self.progress()
        row: dict[str, float] = {
            "episodes": self.episodes,
            "wall_time_s": round(spent.wall_time_s, 1),
            "cpu_time_s": round(spent.cpu_time_s, 1),
        }
        if self.since:
            success, returns, lengths = zip(*self.since, strict=True)
            row |= {
                "train_success": float(np.mean(success)),
                "train_episodes": len(self.since),
                "train_return": float(np.mean(returns)),
                "train_length": float(np.mean(lengths)),
            }
            self.since = []
        row |= _losses(self._learner())
        if evaluates:
            copy_to_policy(self._learner(), self.env, self.policy)
            seeds = SELECTION_SEEDS[: self.config.eval_episodes]
            row |= {"eval_success": success_rate(self.policy, self.evaluation, seeds), "eval_episodes": len(seeds)}
            self.bar.set_postfix({"selection": f"{100 * row['eval_success']:.0f} %"}, refresh=False)
        self.metrics.write(int(self.model.num_timesteps), row)

    def _learner(self) -> Learner:
        return self.model  # type: ignore[return-value]


def _cpu_seconds() -> float:
    """Processor time of this process and its simulators, all cores together: a budget that a busy machine does not change."""
    process = psutil.Process()
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # a simulator that has just ended
            times = one.cpu_times()
            total += times.user + times.system
    return total


def _losses(learner: Learner) -> dict[str, float]:
    if isinstance(learner, SharedEyesSAC):
        if learner._n_updates == 0:
            return {}
        return {
            "critic_loss": learner.critic_losses,
            "actor_loss": learner.actor_losses,
            "temperature": learner.temperature,
        }
    logged = learner.logger.name_to_value
    return {
        name.removeprefix("train/"): float(logged[name])
        for name in ("train/value_loss", "train/policy_gradient_loss", "train/approx_kl")
        if name in logged
    }


def success_rate(policy: Policy, env: VectorEnv, seeds: Sequence[int]) -> float:
    """Share of the episodes `seeds` that the policy solves, `env.n_envs` of them at a time."""
    policy.eval()
    successes = 0
    for start in range(0, len(seeds), env.n_envs):
        wave = list(seeds[start : start + env.n_envs])
        active = np.arange(len(wave))
        chunker = ActionChunker(policy, len(wave))
        observation, _ = env.reset(wave, indices=active.tolist())
        fresh = np.ones(len(wave), bool)
        while len(active):
            actions = chunker.act(observation, fresh, active)
            drawn = chunker.needs_images(active)
            observation, _, terminated, truncated, infos = env.step(actions, indices=active.tolist(), images=drawn)
            successes += sum(info["success"] for info in infos)
            running = ~(terminated | truncated)
            observation = {key: values[running] for key, values in observation.items()}
            active, fresh = active[running], np.zeros(int(running.sum()), bool)
    return successes / len(seeds)

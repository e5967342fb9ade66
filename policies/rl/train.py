"""`egoarm rl`: a policy by reinforcement learning with stable-baselines3, from pixels, proprioception or the simulator's state."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize
from tqdm import tqdm

from envs.spec import EnvSpec
from envs.tasks import find_level, find_task, make_env
from envs.vector import VectorEnv
from policies.chunking import ActionChunker
from policies.policy import Policy, PolicySpec
from policies.rl.checkpoint import RLCheckpoints, RLProgress
from policies.rl.learner import Learner, PPOConfig, SACConfig, copy_to_policy, make_learner, normalized, seed_generators
from policies.rl.networks import CNN, FrozenEyes, NetworkConfig
from policies.rl.observation import OBSERVATIONS, observation_space
from policies.rl.policy import ALGORITHMS, RLPolicy
from policies.rl.sac import SharedEyesSAC
from policies.rl.vec_env import ManipulationVecEnv, selected
from pretrain.artifact import load_artifact, save_artifact
from pretrain.checkpoints import Metrics, open_run, run_lock
from pretrain.encoder import VideoEncoder, load_encoder
from pretrain.provenance import make_provenance

# The split "selection" of eval_robot/protocol.py, which this room cannot import; a test holds them equal.
SELECTION_SEEDS = range(100_000, 200_000)
METRICS = "metrics.jsonl"


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
            "eval_every",
            "eval_episodes",
            "checkpoint_every",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
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


def run(config: RLConfig) -> Path:
    """Train one policy; a finished one of the same configuration is kept, an interrupted one goes on."""
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    encoder = None
    if config.sees_images and config.encoder != CNN:
        encoder = load_encoder(config.encoder, seed=config.encoder_seed)
    frozen = encoder is not None and config.encoder_frozen
    spec = _make_spec(config)
    seed_generators(config.seed, 0)
    policy = RLPolicy(spec, config.network, config.algo, encoder, frozen=frozen)
    stored = _stored_config(config, encoder, frozen)
    out = Path(config.out)
    if _is_done(out, stored):
        print(f"rl: {out} is there already")
        return out
    directory = training_directory(out)
    with run_lock(directory):
        open_run(directory, json.loads(json.dumps(stored)))
        progress = _learn(config, policy, directory)
        _save(out, config, policy, stored, encoder, progress, directory)
        for name in ("checkpoints", "replay"):  # the artifact holds the last policy
            shutil.rmtree(directory / name, ignore_errors=True)
    return out


def training_directory(out: str | Path) -> Path:
    """The directory of a run, beside its policy's."""
    return Path(out).with_name(Path(out).name + ".training")


def _make_spec(config: RLConfig) -> PolicySpec:
    """The policy's spec; its environment contract has the task's cameras even where the policy has no eyes, as evaluation expects."""
    _, privileged = OBSERVATIONS[config.obs]
    env = make_env(
        config.task, level=config.level, cameras=config.cameras, image_size=config.image_size, privileged=privileged
    )
    env_spec: EnvSpec = env.env_spec
    env.close()
    return PolicySpec(
        policy="rl",
        env_spec=env_spec,
        cameras=env_spec.cameras if config.sees_images else (),
        state_keys=tuple(key for key in env_spec.observation if key.startswith("state/")),
        frames=config.frames if config.sees_images else 1,
        stride_steps=config.stride_steps if config.sees_images else 1,
        chunk_steps=1,
    )


def _stored_config(config: RLConfig, encoder: VideoEncoder | None, frozen: bool) -> dict[str, Any]:
    """The artifact's config: all that rebuilds the network, and how it learned."""
    name = CNN if encoder is None else encoder.spec.name
    label = config.label or f"{config.algo} {name if config.sees_images else config.obs}"
    described: dict[str, Any] = {"label": label, "sha256": None, "architecture": None, "frozen": frozen}
    if encoder is not None:
        described |= {
            "sha256": encoder.spec.weights_sha256,
            "architecture": encoder.architecture,
            "config": encoder.config,
            "spec": encoder.spec.to_json(),
        }
    return {"rl": config.content, "encoder": described}


def _is_done(out: Path, stored: Mapping[str, Any]) -> bool:
    if not out.exists():
        return False
    have, wanted = load_artifact(out).config, json.loads(json.dumps(stored))
    differing = [key for key in wanted if have.get(key) != wanted[key]]
    if differing:
        raise FileExistsError(f"{out} holds a policy of another {', '.join(differing)}; name another out= or delete it")
    return True


def _learn(config: RLConfig, policy: RLPolicy, directory: Path) -> RLProgress:
    """Train up to the budget, from the checkpoint in `directory` if there is one; leaves the last weights in `policy`."""
    algorithm, spec = config.algorithm, policy.spec
    _check_memory(config, policy)
    workers = config.workers or os.cpu_count() or 1
    options: dict[str, Any] = {
        "level": config.level,
        "cameras": spec.cameras,
        "image_size": config.image_size,
        "privileged": "state/full" in spec.env_spec.observation,
    }
    n_evaluated = min(config.eval_episodes, 25)
    with (
        VectorEnv(
            config.task, n_envs=algorithm.n_envs, n_workers=min(workers, algorithm.n_envs), **options
        ) as training,
        VectorEnv(config.task, n_envs=n_evaluated, n_workers=min(workers, n_evaluated), **options) as evaluation,
    ):
        device = torch.device(config.device) if config.device != "auto" else _best_device()
        bare = ManipulationVecEnv(
            training,
            spec,
            encode=None if policy.eyes is None else FrozenEyes(policy.eyes, device),
            feature_dim=0 if policy.eyes is None else policy.eyes.feature_dim,
            absorbing_discount=algorithm.discount if config.success == "absorbing" else None,
        )
        env = normalized(bare, policy, algorithm.discount)
        learner = make_learner(algorithm, env, policy, seed=config.seed, device=str(device))
        learner.set_logger(Logger(folder=None, output_formats=[]))
        checkpoints = RLCheckpoints(directory)
        progress = checkpoints.restore(learner, env, policy)
        if progress.step:
            print(f"rl {config.task}: going on from step {progress.step} of {algorithm.steps}")
            bare.next_seed = progress.next_seed
        seed_generators(config.seed, progress.step)
        learner.action_space.seed(config.seed + progress.step)
        watch = _Watch(config, policy, bare, env, evaluation, checkpoints, progress, directory)
        try:
            if progress.step < algorithm.steps:
                learner.learn(algorithm.steps - progress.step, callback=watch, reset_num_timesteps=False)
                watch.finish()
        finally:
            watch.close()
        copy_to_policy(learner, env, policy)
        policy.cpu().eval()
        return watch.progress()


class _Watch(BaseCallback):
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
            observation, _, terminated, truncated, infos = env.step(actions, indices=active.tolist())
            successes += sum(info["success"] for info in infos)
            running = ~(terminated | truncated)
            observation = {key: values[running] for key, values in observation.items()}
            active, fresh = active[running], np.zeros(int(running.sum()), bool)
    return successes / len(seeds)


def _check_memory(config: RLConfig, policy: RLPolicy) -> None:
    """Refuse a replay buffer that does not fit, before it is filled."""
    if config.algo != "sac":
        return
    space = observation_space(policy.spec)
    size = sum(space[key].dtype.itemsize * int(np.prod(space[key].shape or (1,))) for key in policy.spec.state_keys)
    if policy.eyes is not None:
        size += 4 * policy.eyes.feature_dim
    else:
        size += sum(int(np.prod(space[key].shape or (1,))) for key in space.spaces if key.startswith("images/"))
    steps = min(config.sac.buffer_steps, config.sac.steps)
    needed, free = 2 * size * steps, psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise ValueError(
            f"the replay buffer of {steps} steps takes {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; lower sac.buffer_steps, "
            "image_size or frames, or use network.readout=pooled"
        )


def _best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _save(
    out: Path,
    config: RLConfig,
    policy: RLPolicy,
    stored: dict[str, Any],
    encoder: VideoEncoder | None,
    progress: RLProgress,
    directory: Path,
) -> None:
    # Evaluation refuses seeds that were trained on; it reads them, and the level, where demonstrations have theirs.
    seeds = {"path": str(directory), "sha256": None, "level": config.level, "seeds": list(range(progress.next_seed))}
    record = directory / "train_state"
    record.mkdir(exist_ok=True)
    shutil.copyfile(directory / METRICS, record / METRICS)
    sha256 = save_artifact(
        out,
        kind="policy",
        name="rl",
        tensors=policy.state_dict(),
        config={**stored, "demos": seeds},
        spec=policy.spec.to_json(),
        provenance=make_provenance(
            seed=config.seed,
            parents={} if encoder is None else {"encoder": encoder.spec.weights_sha256},
            data={},
            step=progress.step,
            wall_time_s=progress.wall_time_s,
        ),
        train_state=record,
    )
    shutil.rmtree(record)
    print(
        f"rl: {stored['encoder']['label']} on {config.task}, {progress.step} steps in {progress.episodes} episodes, "
        f"{progress.wall_time_s:.0f} s ({progress.cpu_time_s:.0f} s of one core), sha256 {sha256[:12]} -> {out}"
    )

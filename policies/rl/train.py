"""`egoarm rl`: a policy by reinforcement learning with stable-baselines3, from pixels, proprioception or the simulator's state."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from stable_baselines3.common.logger import Logger

from envs.spec import EnvSpec
from envs.tasks import make_env
from envs.vector import VectorEnv
from policies.policy import PolicySpec
from policies.rl.checkpoint import RLCheckpoints, RLProgress
from policies.rl.config import RLConfig
from policies.rl.learner import copy_to_policy, make_learner, normalized, seed_generators
from policies.rl.networks import CNN, FrozenEyes
from policies.rl.observation import OBSERVATIONS, observation_space
from policies.rl.policy import RLPolicy
from policies.rl.vec_env import ManipulationVecEnv, used_seeds
from policies.rl.watch import Watch
from pretrain.artifact import load_artifact, save_artifact
from pretrain.checkpoints import open_run, run_lock
from pretrain.encoder import VideoEncoder, load_encoder
from pretrain.provenance import make_provenance

METRICS = "metrics.jsonl"


def run(config: RLConfig) -> Path:
    """Train one policy; a finished one of the same configuration is kept, an interrupted one goes on."""
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    encoder = None
    if config.sees_images and config.encoder != CNN:
        encoder = load_encoder(config.encoder, seed=config.encoder_seed).shortened(config.frames)
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
        chunk_steps=config.action_repeat,
        execute_steps=config.action_repeat,
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
        watch = Watch(config, policy, bare, env, evaluation, checkpoints, progress, directory)
        try:
            if progress.step < algorithm.steps:
                learner.learn(algorithm.steps - progress.step, callback=watch, reset_num_timesteps=False)
                watch.finish()
        finally:
            watch.close()
        copy_to_policy(learner, env, policy)
        policy.cpu().eval()
        return watch.progress()


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
    seeds = {
        "path": str(directory),
        "sha256": None,
        "level": config.level,
        "seeds": list(used_seeds(progress.next_seed)),
    }
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

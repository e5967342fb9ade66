"""A run of reinforcement learning that is killed goes on with its networks, optimizers, statistics and replay buffer."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecNormalize

from egoarm import COMMANDS, compose
from envs.vector import VectorEnv
from policies.policy import load_policy
from policies.rl.checkpoint import RLCheckpoints, RLProgress, _arrays, _unique
from policies.rl.config import RLConfig
from policies.rl.learner import Learner, make_learner, normalized, optimizers
from policies.rl.policy import RLPolicy
from policies.rl.train import _make_spec
from policies.rl.vec_env import ManipulationVecEnv
from pretrain.checkpoints import optimizer_tensors, read_metrics

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "task=toy/reach", "image_size=16", "threads=1", "workers=1", "eval_episodes=1", "network.hidden=[8]", "network.cnn_channels=2",
    "sac.n_envs=2", "sac.updates_per_step=1", "sac.random_steps=20", "sac.batch_size=8", "ppo.n_envs=2", "ppo.rollout_steps=16", "ppo.batch_size=16",
    "ppo.epochs=2", "log_every=40", "checkpoint_every=40",
]  # fmt: skip
BASE: RLConfig = compose(COMMANDS["rl"], [*WORDS, "out=unused"])


def started(config: RLConfig, inner: VectorEnv) -> tuple[RLPolicy, VecNormalize, Learner]:
    torch.manual_seed(0)
    policy = RLPolicy(_make_spec(config), config.network, config.algo, None, frozen=False)
    env = normalized(ManipulationVecEnv(inner, policy.spec), policy, 0.9)
    return policy, env, make_learner(config.algorithm, env, policy, seed=0, device="cpu")


def everything(learner: Learner) -> dict[str, torch.Tensor]:
    """Weights and the optimizers' moments."""
    state = dict(_unique(learner.policy))
    for name, (module, optimizer) in optimizers(learner).items():
        state |= {f"{name}/{key}": value for key, value in optimizer_tensors(module, optimizer).items()}
    if getattr(learner, "log_ent_coef", None) is not None:
        state["temperature"] = learner.log_ent_coef
        moments = learner.ent_coef_optimizer.state[learner.log_ent_coef]
        state |= {f"temperature/{key}": value for key, value in moments.items()}
    return state


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_a_checkpoint_holds_everything(algo: str, tmp_path: Path) -> None:
    """Restored into a fresh learner, every tensor is equal, also through a replay buffer that has gone round."""
    config = replace(BASE, algo=algo, sac=replace(BASE.sac, buffer_steps=60, steps=120))
    checkpoints = RLCheckpoints(tmp_path)
    with VectorEnv("toy/reach", n_envs=2, n_workers=1, image_size=16) as inner:
        policy, env, learner = started(config, inner)
        for upto in (40, 80, 120):
            learner.learn(upto - learner.num_timesteps, reset_num_timesteps=False)
            progress = RLProgress(step=learner.num_timesteps, updates=learner._n_updates, next_seed=9, episodes=3)
            checkpoints.save(learner, env, policy, progress)
        expected = {name: value.clone() for name, value in everything(learner).items()}
        other_policy, other_env, other = started(config, inner)
        assert any(not torch.equal(value, expected[name]) for name, value in _unique(other.policy).items())
        assert RLCheckpoints(tmp_path).restore(other, other_env, other_policy) == progress
        restored = everything(other)
        assert restored.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(restored[name], value, rtol=0, atol=0)
        assert (other.num_timesteps, other._n_updates) == (learner.num_timesteps, learner._n_updates)
        np.testing.assert_array_equal(other_env.ret_rms.var, env.ret_rms.var)
        for key, statistics in env.obs_rms.items():
            np.testing.assert_array_equal(other_env.obs_rms[key].mean, statistics.mean)
        if algo == "sac":
            assert (other.replay_buffer.pos, other.replay_buffer.full) == (learner.replay_buffer.pos, True)
            for name, array in _arrays(learner.replay_buffer).items():
                np.testing.assert_array_equal(_arrays(other.replay_buffer)[name], array)
            parts = [path.name for path in sorted((tmp_path / "replay").iterdir())]
            assert parts == ["rows-000000020-000000040", "rows-000000040-000000060"], (
                "rows that left the buffer are gone"
            )
        assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_rows_ahead_of_the_checkpoint_are_dropped_and_missing_ones_are_an_error(tmp_path: Path) -> None:
    config = replace(BASE, sac=replace(BASE.sac, steps=120))
    checkpoints = RLCheckpoints(tmp_path)
    with VectorEnv("toy/reach", n_envs=2, n_workers=1, image_size=16) as inner:
        policy, env, learner = started(config, inner)
        learner.learn(40)
        checkpoints.save(learner, env, policy, RLProgress(step=40, updates=learner._n_updates))
        learner.learn(20, reset_num_timesteps=False)
        checkpoints._save_rows(learner, 60)  # the kill came before the checkpoint that goes with them
        policy, env, other = started(config, inner)
        checkpoints.restore(other, env, policy)
        assert other.replay_buffer.pos == 20
        assert [path.name for path in (tmp_path / "replay").iterdir()] == ["rows-000000000-000000020"]
        (tmp_path / "replay" / "rows-000000000-000000020").rename(tmp_path / "gone")
        policy, env, other = started(config, inner)
        with pytest.raises(ValueError, match="rows 0 to 19 of the replay buffer are missing"):
            checkpoints.restore(other, env, policy)


def test_killed_and_started_again(tmp_path: Path) -> None:
    """kill -9 after the first checkpoint; the same command ends with the whole budget and one row a step of the log."""
    out = tmp_path / "policy"
    command = [sys.executable, "-m", "egoarm", "rl", *WORDS, "sac.steps=600", "eval_every=400", f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "policy.training"
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(read_metrics(log / "metrics.jsonl")) < 4 or not list((log / "checkpoints").glob("step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout
    policy, artifact = load_policy(out)
    assert artifact.provenance["step"] == 600 and policy.spec.policy == "rl"
    steps = [row["step"] for row in read_metrics(out / "train_state" / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == 600
    assert not (log / "checkpoints").exists() and not (log / "replay").exists()

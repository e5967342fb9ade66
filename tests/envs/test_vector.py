"""The vector env against single ones, and what happens when a worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from envs.tasks import make_env
from envs.vector import VectorEnv


def test_equals_single_envs_with_partial_stepping():
    options = {"level": "varied-2", "image_size": 24, "privileged": True}
    random = np.random.default_rng(0)
    seeds = [11, 12, 13]
    with VectorEnv("toy/reach", n_envs=3, n_workers=2, **options) as vector:
        singles = [make_env("toy/reach", **options) for _ in seeds]
        assert vector.env_spec == singles[0].env_spec
        observations, infos = vector.reset(seeds)
        for index, single in enumerate(singles):
            observation, info = single.reset(seed=seeds[index])
            np.testing.assert_equal({key: value[index] for key, value in observations.items()}, observation)
            assert infos[index] == info
        for indices in ([0, 1, 2], [2, 0], [1], [0, 1, 2], [1, 2]):
            actions = random.uniform(-1, 1, size=(len(indices), 2)).astype(np.float32)
            got = vector.step(actions, indices)
            for row, index in enumerate(indices):
                expected = singles[index].step(actions[row])
                np.testing.assert_equal({key: value[row] for key, value in got[0].items()}, expected[0])
                assert [column[row] for column in got[1:]] == list(expected[1:])
        # Reset one in the middle of the others' episodes.
        observations, _ = vector.reset([5], [1])
        np.testing.assert_equal({key: value[0] for key, value in observations.items()}, singles[1].reset(seed=5)[0])
        kept = observations["images/front"].copy()
        vector.step(np.ones((3, 2), np.float32))
        np.testing.assert_array_equal(observations["images/front"], kept), "new arrays each time"
    for single in singles:
        single.close()


def test_metaworld_equals_a_single_env():
    options = {"level": "varied-3", "image_size": 32}
    actions = np.random.default_rng(1).uniform(-1, 1, size=(4, 2, 4)).astype(np.float32)
    with VectorEnv("metaworld/drawer-open", n_envs=2, n_workers=1, **options) as vector:
        vector.reset([3, 4])
        steps = [vector.step(action) for action in actions]
    with_own_renderer = make_env("metaworld/drawer-open", **options)
    for index, seed in enumerate((3, 4)):
        with_own_renderer.reset(seed=seed)
        for action, (observations, rewards, *_) in zip(actions, steps, strict=True):
            observation, reward, *_ = with_own_renderer.step(action[index])
            np.testing.assert_equal({key: value[index] for key, value in observations.items()}, observation)
            assert rewards[index] == reward
    with_own_renderer.close()


def test_a_killed_worker_is_named():
    vector = VectorEnv("toy/reach", n_envs=2, n_workers=2, cameras=())
    vector.reset([41, 42])
    victim, other = (worker.process for worker in vector._workers[::-1])
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker 1 of toy/reach.*env 1 seed 42.*\n.*SIGKILL"):
        for _ in range(3):
            vector.step(np.zeros((2, 2), np.float32))
    other.join(5)
    assert other.exitcode == 0, "the other worker was told to end"
    with pytest.raises(RuntimeError, match="closed"):
        vector.reset([1, 2])
    vector.close()


def test_a_workers_error_arrives_with_its_traceback():
    vector = VectorEnv("toy/reach", n_envs=1, n_workers=1, cameras=())
    vector._running[:] = True  # past the check here, to an error over there
    with pytest.raises(RuntimeError, match=r"(?s)worker 0 of toy/reach.*Traceback.*ResetNeeded"):
        vector.step(np.zeros((1, 2), np.float32))


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        """
import os, signal
from envs.vector import VectorEnv
if __name__ == "__main__":
    vector = VectorEnv("toy/reach", n_envs=2, n_workers=2, cameras=())
    vector.reset([1, 2])
    print(*[worker.process.pid for worker in vector._workers], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    run = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, timeout=120)
    for pid in map(int, run.stdout.split()):
        deadline = time.monotonic() + 20
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"worker {pid} outlived its parent"
            time.sleep(0.1)


def test_mistakes_are_named_before_any_work():
    with pytest.raises(ValueError, match="n_envs 0"):
        VectorEnv("toy/reach", n_envs=0, n_workers=1)
    with pytest.raises(ValueError, match="unknown task"):
        VectorEnv("toy/rech", n_envs=1, n_workers=1)
    with VectorEnv("toy/reach", n_envs=2, n_workers=5, cameras=()) as vector:
        assert len(vector._workers) == 2
        with pytest.raises(ValueError, match=r"no episode is under way in environments \[0, 1\]"):
            vector.step(np.zeros((2, 2)))
        with pytest.raises(ValueError, match="1 seeds for 2"):
            vector.reset([1])
        with pytest.raises(ValueError, match="different numbers from 0 to 1"):
            vector.reset([1, 2], [0, 2])
        with pytest.raises(ValueError, match="non-negative"):
            vector.reset([-1, 2])
        vector.reset([1, 2])
        with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(2, 2\)"):
            vector.step(np.zeros((2, 3)))
        with pytest.raises(ValueError, match=r"\[1\] are not finite"):
            vector.step(np.array([[0, 0], [0, np.inf]]))
    vector.close()


def test_an_ended_episode_must_be_reset():
    with VectorEnv("toy/reach", n_envs=2, n_workers=1, cameras=()) as vector:
        horizon = vector.env_spec.horizon_steps
        vector.reset([1, 2])
        vector.step(np.zeros((1, 2)), [1])
        for _ in range(horizon - 1):
            _, _, terminated, truncated, infos = vector.step(np.zeros((2, 2)))
        assert truncated.tolist() == [False, True] and not terminated.any()
        assert [info["success"] for info in infos] == [False, False]
        with pytest.raises(ValueError, match=r"environments \[1\]"):
            vector.step(np.zeros((2, 2)))
        vector.step(np.zeros((1, 2)), [0])
        vector.reset([3], [1])
        vector.step(np.zeros((1, 2)), [1])

"""The vector env against single ones, and what happens when a worker dies."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from envs.tasks import SUITES, TASKS, make_env
from envs.vector import MAX_FAILURES, VectorEnv


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


def test_images_are_drawn_only_where_asked_for():
    options = {"level": "varied-2", "image_size": 24}
    actions = np.random.default_rng(2).uniform(-1, 1, size=(4, 3, 2)).astype(np.float32)
    masks = [True, False, [True, False, True], [False, False, True]]
    with (
        VectorEnv("toy/reach", n_envs=3, n_workers=2, **options) as every,
        VectorEnv("toy/reach", n_envs=3, n_workers=2, **options) as some,
    ):
        every.reset([1, 2, 3])
        observation, _ = some.reset([1, 2, 3], images=[False, True, False])
        assert [image.any() for image in observation["images/front"]] == [False, True, False]
        for action, mask in zip(actions, masks, strict=True):
            expected, got = every.step(action), some.step(action, images=mask)
            drawn = np.broadcast_to(mask, 3)
            assert not got[0]["images/front"][~drawn].any()
            np.testing.assert_array_equal(got[0]["images/front"][drawn], expected[0]["images/front"][drawn])
            for observation in (expected[0], got[0]):
                del observation["images/front"]
            np.testing.assert_equal(got, expected)
        with pytest.raises(ValueError, match=r"images of shape \(2,\) for 3 environments"):
            some.step(actions[0], images=[True, False])


def test_a_killed_workers_episodes_go_on_as_if_nothing_had_happened():
    options = {"level": "varied-2", "image_size": 24, "privileged": True}
    actions = np.random.default_rng(0).uniform(-1, 1, size=(9, 3, 2)).astype(np.float32)

    def said_by(vector: VectorEnv, kill_at: dict[int, int]) -> list:
        said: list = [vector.reset([41, 42, 43])]
        for step, action in enumerate(actions):
            if step in kill_at:
                victim = vector._workers[kill_at[step]].process
                os.kill(victim.pid, signal.SIGKILL)
                victim.join(5 if step % 2 else 0)  # the death is seen before the next command, or over it
            indices = [0, 2] if step == 4 else [0, 1, 2]
            said.append(vector.step(action[indices], indices, images=step % 3 != 1))
        return said

    with VectorEnv("toy/reach", n_envs=3, n_workers=2, **options) as vector:
        undisturbed = said_by(vector, {})
        untouched = vector._workers[1].process.pid
        disturbed = said_by(vector, {2: 0, 5: 0})
        assert vector.reruns.tolist() == [2, 0, 2] and vector._workers[1].process.pid == untouched
        again = said_by(vector, {})
        assert vector.reruns.tolist() == [0, 0, 0], "counted by the episode"
    np.testing.assert_equal(disturbed, undisturbed)
    np.testing.assert_equal(again, undisturbed)


def test_a_worker_that_is_killed_again_and_again_is_given_up():
    vector = VectorEnv("toy/reach", n_envs=2, n_workers=2, cameras=())
    vector.reset([41, 42])
    other = vector._workers[0].process
    with pytest.raises(
        RuntimeError, match=rf"worker 1 of toy/reach failed {MAX_FAILURES} times.*env 1 seed 42.*\n.*SIGKILL"
    ):
        for _ in range(MAX_FAILURES):
            os.kill(vector._workers[1].process.pid, signal.SIGKILL)
            vector.step(np.zeros((2, 2), np.float32))
    other.join(5)
    assert other.exitcode == 0, "the other worker was told to end"
    with pytest.raises(RuntimeError, match="closed"):
        vector.reset([1, 2])
    vector.close()


# A task whose simulator fails on some seeds; a worker gets to know it by unpickling the task's name.
FRAGILE = """
import os, signal
from dataclasses import replace
from pathlib import Path
import envs.tasks
from envs.suites import toy

class Name(str): pass

class Fragile(toy.ToyReach):
    def reset(self, seed):
        self.seed = seed
        super().reset(seed)

    def step(self, action):
        if self.seed == 13:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.seed == 14:
            raise RuntimeError("the solver diverged")
        once = Path(os.environ["FRAGILE"])
        if self.seed == 15 and not once.exists():
            once.touch()
            raise RuntimeError("a passing trouble")
        return super().step(action)

def make_simulation(row):
    return Fragile()

import sys
envs.tasks.SUITES["fragile"] = sys.modules[__name__]
envs.tasks.TASKS["fragile/reach"] = replace(toy.TASKS["toy/reach"], suite="fragile")
"""


@pytest.fixture
def fragile(tmp_path, monkeypatch):
    """The name of a task that ends its worker by SIGSEGV on seed 13, raises on seed 14 and raises once on seed 15."""
    (tmp_path / "fragile_suite.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FRAGILE", str(tmp_path / "once"))
    name = importlib.import_module("fragile_suite").Name("fragile/reach")
    yield name
    del SUITES["fragile"], TASKS["fragile/reach"], sys.modules["fragile_suite"]


def test_a_seed_that_crashes_its_simulator_is_named(fragile):
    for seed, reason in ((13, "SIGSEGV"), (14, r"Traceback.*the solver diverged")):
        vector = VectorEnv(fragile, n_envs=3, n_workers=1, cameras=())
        vector.reset([1, seed, 2])
        with pytest.raises(RuntimeError, match=rf"(?s)failed 3 times \(episodes: env 1 seed {seed}\).*{reason}"):
            vector.step(np.zeros((3, 2), np.float32))


def test_a_simulator_that_fails_once_is_run_again(fragile):
    with VectorEnv(fragile, n_envs=2, n_workers=1, cameras=()) as vector:
        vector.reset([1, 15])
        observation = vector.step(np.ones((2, 2), np.float32))[0]
        assert vector.reruns.tolist() == [1, 1], "both were in the worker"
    single = make_env("toy/reach", cameras=())
    single.reset(seed=15)
    expected = single.step(np.ones(2, np.float32))[0]
    np.testing.assert_equal({key: value[1] for key, value in observation.items()}, expected)


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

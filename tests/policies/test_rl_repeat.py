"""Actions that are held: the learner's steps, its rewards and its frames beside a plain loop, and the policy that is left acts the same way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.tasks import make_env
from envs.vector import VectorEnv
from policies.chunking import ActionChunker
from policies.rl.observation import PolicyObservation
from policies.rl.policy import RLPolicy
from policies.rl.train import _make_spec
from policies.rl.vec_env import ManipulationVecEnv
from tests.policies.test_rl import BASE

REPEAT = 7  # does not divide the toy task's horizon
CONFIG = replace(BASE, action_repeat=REPEAT, frames=2, stride_steps=2 * REPEAT)


def vector_env(n_envs: int) -> VectorEnv:
    return VectorEnv("toy/reach", n_envs=n_envs, n_workers=1, image_size=CONFIG.image_size)


def test_an_action_is_held_and_images_are_drawn_where_one_is_chosen() -> None:
    spec = _make_spec(CONFIG)
    single = make_env("toy/reach", image_size=CONFIG.image_size)
    wrapped = PolicyObservation(make_env("toy/reach", image_size=CONFIG.image_size), spec)
    ends = set()
    with vector_env(1) as inner:
        env = ManipulationVecEnv(inner, spec)
        observation, seed = env.reset(), 0
        frames = [single.reset(seed=0)[0]]
        seen, _ = wrapped.reset(seed=0)
        for _ in range(60):
            for key, values in observation.items():
                np.testing.assert_array_equal(values[0], seen[key])
            np.testing.assert_array_equal(observation["images/front"][0, -1], frames[-1]["images/front"])
            np.testing.assert_array_equal(
                observation["images/front"][0, 0], frames[max(0, len(frames) - 3)]["images/front"]
            )
            goal = single.state()[4:6] - single.state()[:2]
            action = np.clip(4 * goal, -1, 1).astype(np.float32) if seed % 2 else np.float32([1, 1])
            observation, rewards, dones, infos = env.step(action[None])
            frame, total, terminated, truncated, _ = single.step(action)
            held = 1
            while held < REPEAT and not (terminated or truncated):
                frame, reward, terminated, truncated, _ = single.step(action)
                total, held = total + reward, held + 1
            seen, summed, *_ = wrapped.step(action)
            frames.append(frame)
            assert rewards[0] == pytest.approx(total, rel=1e-5) and summed == pytest.approx(total)
            assert dones[0] == (terminated or truncated)
            if dones[0]:
                ends.add((terminated, held == REPEAT))
                last = infos[0]["terminal_observation"]
                np.testing.assert_array_equal(last["state/tip_pos"], frame["state/tip_pos"])
                if truncated or held == REPEAT:
                    np.testing.assert_array_equal(last["images/front"][-1], frame["images/front"])
                seed += 1
                frames = [single.reset(seed=seed)[0]]
                seen, _ = wrapped.reset(seed=seed)
    single.close()
    wrapped.close()
    assert {(True, False), (False, False)} <= ends, "a success and a horizon in the midst of a held action"


def test_success_pays_the_rest_of_its_step_too() -> None:
    spec = _make_spec(CONFIG)
    paid = {}
    for discount in (None, 0.5):
        with vector_env(1) as inner:
            bare = inner.step

            def step(*args, bare=bare, **options):
                observation, rewards, *rest = bare(*args, **options)
                return observation, np.ones_like(rewards), *rest

            inner.step = step  # type: ignore[method-assign]
            env = ManipulationVecEnv(inner, spec, absorbing_discount=discount)
            env.reset()
            simulation = make_env("toy/reach", cameras=())
            simulation.reset(seed=0)
            goal = simulation.state()[4:6] - simulation.state()[:2]
            action = (goal / np.abs(goal).max()).astype(np.float32)[None]
            _, rewards, dones, infos = env.step(action)
            while not dones[0]:
                _, rewards, dones, infos = env.step(action)
            assert infos[0]["is_success"]
            paid[discount] = (rewards[0], infos[0]["episode"])
    held = paid[None][0]
    assert 1 <= held <= REPEAT and paid[None][1] == paid[0.5][1]
    # One a control step for ever: this step's seven, then half of the next seven, a quarter...
    assert paid[0.5][0] == pytest.approx(REPEAT * 2)


def test_the_policy_holds_its_action() -> None:
    policy = RLPolicy(_make_spec(CONFIG), CONFIG.network, "sac", None, frozen=False).eval()
    chunker = ActionChunker(policy, 1)
    env = make_env("toy/reach", image_size=CONFIG.image_size)
    observation, _ = env.reset(seed=0)
    actions = []
    for step in range(2 * REPEAT):
        action = chunker.act({key: value[None] for key, value in observation.items()}, np.array([step == 0]))
        actions.append(action[0])
        observation, *_ = env.step(action[0])
    env.close()
    first, second = np.array(actions[:REPEAT]), np.array(actions[REPEAT:])
    assert (first == first[0]).all() and (second == second[0]).all() and (first[0] != second[0]).any()
    one = policy.predict_chunk(
        {key: torch.from_numpy(np.repeat(value[None, None], 2, axis=1)) for key, value in observation.items()}
    )
    assert one.shape == (1, REPEAT, 2)


def test_frames_must_lie_where_images_are_drawn() -> None:
    with pytest.raises(
        ValueError, match=r"stride_steps=3 with action_repeat=7.*a multiple of action_repeat, or frames=1"
    ):
        replace(CONFIG, stride_steps=3)
    replace(CONFIG, stride_steps=3, frames=1)

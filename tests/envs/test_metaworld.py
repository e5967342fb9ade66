"""Meta-World's own rules: the whole table, placements, and experts on the seeds that defeat the package's policies."""

from __future__ import annotations

import numpy as np
import pytest

from envs.experts import make_expert
from envs.experts.metaworld_scripts import SCRIPTS, command
from envs.suites import metaworld
from envs.suites.metaworld_tasks import WIDE
from envs.tasks import TASKS, make_env

# Part of the contract that demonstrations and policies carry: changing one makes files of others unusable.
HORIZONS = {
    "assembly": 130,
    "bin-picking": 360,
    "button-press-topdown": 100,
    "drawer-open": 125,
    "hammer": 105,
    "reach": 115,
    "push": 100,
    "door-open": 160,
    "drawer-close": 105,
}


def expert_succeeds(task: str, seed: int) -> bool:
    env = make_env(task, cameras=())
    expert = make_expert(task, env)
    observation, _ = env.reset(seed=seed)
    expert.reset()
    ended = False
    while not ended:
        observation, _, terminated, truncated, info = env.step(expert.act(observation))
        ended = terminated or truncated
    env.close()
    return info["success"]


def test_the_table_has_every_task_of_the_package():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    names = {row.name for row in metaworld.TASKS.values()}
    assert names == {name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS} | {f"{name}-wide" for name in WIDE}
    assert len(ALL_V3_ENVIRONMENTS) == 50


def test_horizons_that_files_depend_on_stay():
    assert {name: TASKS[f"metaworld/{name}"].horizon_steps for name in HORIZONS} == HORIZONS


@pytest.mark.parametrize("name", WIDE)
def test_wide_rows_spread_their_placements(name):
    def spread(task: str) -> np.ndarray:
        env = make_env(task, cameras=())
        places = []
        for seed in range(12):
            env.reset(seed=seed)
            data = env.simulation.data
            places.append(np.concatenate([data.xpos[1:].ravel()]))
        env.close()
        return np.ptp(np.array(places), axis=0).reshape(-1, 3)

    plain, wide = spread(f"metaworld/{name}"), spread(f"metaworld/{name}-wide")
    moved = (wide[:, :2] > plain[:, :2] + 0.03).sum(axis=0)
    assert (moved > 0).all(), "some body moves further in x and some in y"


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("box-close", 7),
        ("box-close", 40),
        ("disassemble", 17),
        ("door-open", 11),
        ("peg-insert-side", 43),
        ("push-back", 36),
        ("shelf-place", 24),
        ("soccer", 13),
        ("stick-pull", 0),
        ("sweep-into", 29),
    ],
)
def test_seeds_that_defeat_the_packages_policies(name, seed):
    assert expert_succeeds(f"metaworld/{name}", seed)


@pytest.mark.parametrize("seed", range(4))
def test_bin_picking_loses_no_grasp(seed):
    env = make_env("metaworld/bin-picking", cameras=())
    expert = make_expert("metaworld/bin-picking", env)
    observation, _ = env.reset(seed=seed)
    efforts = []
    terminated = False
    while not terminated:
        action = expert.act(observation)
        efforts.append(action[3] > 0)
        observation, _, terminated, truncated, _ = env.step(action)
        assert not truncated
    env.close()
    assert np.diff(np.array(efforts).astype(int)).tolist().count(-1) == 0, "once closed, the gripper stays closed"
    assert len(efforts) < 130


def test_bin_picking_depends_on_the_present_frame_only():
    random = np.random.default_rng(0)
    for _ in range(20):
        state = random.uniform(-0.3, 0.9, size=39)
        other = np.concatenate([state[:7], random.uniform(-1, 1, size=32)])
        np.testing.assert_array_equal(
            command(state, *SCRIPTS["bin-picking"](state)), command(other, *SCRIPTS["bin-picking"](other))
        )


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_keep_nothing_between_steps(name):
    random = np.random.default_rng(0)
    for _ in range(20):
        state = random.uniform(-0.3, 0.9, size=39)
        before = state.copy()
        first = command(state, *SCRIPTS[name](state))
        np.testing.assert_array_equal(first, command(state, *SCRIPTS[name](state)))
        np.testing.assert_array_equal(state, before)
        assert first.dtype == np.float32 and first.shape == (4,) and np.abs(first).max() <= 1

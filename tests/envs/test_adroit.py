"""Adroit's own rules: the two success rules, the package's observations, the repaired rewards, resets, the experts."""

from __future__ import annotations

import subprocess
import sys

import mujoco
import numpy as np
import pytest

from envs.experts import make_expert
from envs.suites import adroit
from envs.suites.adroit_tasks import HELD_STEPS
from envs.tasks import TASKS, make_env, make_simulation

HAND = {"pen": 24, "relocate": 30, "door": 28, "hammer": 26}
FULL = {"pen": 45, "relocate": 39, "door": 39, "hammer": 46}


def still(simulation) -> np.ndarray:
    return np.zeros(simulation.action_field.shape, np.float32)


def open_door(simulation) -> None:
    simulation.data.joint("door_hinge").qpos[0] = 1.5
    mujoco.mj_forward(simulation.model, simulation.data)


@pytest.mark.parametrize("name", HAND)
def test_observations_are_the_packages(name):
    env = make_env(f"adroit/{name}", cameras=(), privileged=True)
    observation, _ = env.reset(seed=1)
    for _ in range(3):
        observation, *_ = env.step(env.action_space.sample())
    assert observation["state/hand_qpos"].shape == (HAND[name],) and observation["state/full"].shape == (FULL[name],)
    package = env.simulation._env._get_obs()
    np.testing.assert_allclose(observation["state/full"], package, rtol=1e-6, atol=1e-6)
    if name in ("pen", "relocate"):
        np.testing.assert_array_equal(
            observation["state/hand_qpos"], observation["state/full"][: HAND[name]], "as CortexBench slices it"
        )
    env.close()


def test_held_success_counts_steps_over_the_episode():
    simulation = make_simulation("adroit/door-held")
    simulation.reset(0)
    successes = []
    for step in range(40):
        if step == 10:  # out of success and back: the steps need not be in a row
            simulation.data.joint("door_hinge").qpos[0] = 0.3
            mujoco.mj_forward(simulation.model, simulation.data)
        else:
            open_door(simulation)
        successes.append(simulation.step(still(simulation))[1])
    assert successes.index(True) == HELD_STEPS["door"] + 1 and all(successes[HELD_STEPS["door"] + 1 :])
    simulation.reset(1)
    assert not simulation.step(still(simulation))[1], "the count starts anew"
    simulation.close()


def test_instantaneous_success_is_the_first_step_in_it():
    env = make_env("adroit/door", cameras=())
    env.reset(seed=0)
    assert not env.step(np.zeros(28))[2]
    open_door(env.simulation)
    *_, terminated, truncated, info = env.step(np.zeros(28))
    assert terminated and info["success"] and not truncated
    env.close()


def test_a_held_episode_goes_on_after_the_first_step_in_success():
    env = make_env("adroit/door-held", cameras=())
    env.reset(seed=0)
    for _ in range(HELD_STEPS["door"]):
        open_door(env.simulation)
        *_, terminated, truncated, info = env.step(np.zeros(28))
        assert not terminated and not truncated and not info["success"]
    open_door(env.simulation)
    assert env.step(np.zeros(28))[2]
    env.close()


@pytest.mark.parametrize("name", ["relocate", "door", "hammer"])
def test_rewards_fall_with_the_palms_distance(name):
    simulation = make_simulation(f"adroit/{name}")
    simulation.reset(0)
    reward, _ = simulation.step(still(simulation))
    shaped = {
        "relocate": lambda d: 0.0,
        "door": lambda d: -0.1 * (d.qpos[-2] - 1.57) ** 2 - 1e-5 * (d.qvel**2).sum(),
        "hammer": lambda d: (
            -np.linalg.norm(d.site("tool").xpos - d.site("S_target").xpos)
            - 10 * np.linalg.norm(d.site("S_target").xpos - d.site("nail_goal").xpos)
            - 1e-2 * np.linalg.norm(d.qvel)
        ),
    }[name](simulation.data)
    # The package reads places one substep earlier.
    assert reward == pytest.approx(shaped - 0.1 * simulation._palm_distance(), abs=3e-3)
    simulation.close()


@pytest.mark.parametrize("name", HAND)
def test_resets_do_not_depend_on_what_came_before(name):
    fresh, used = make_simulation(f"adroit/{name}"), make_simulation(f"adroit/{name}")
    random = np.random.default_rng(0)
    for seed in (5, 6):
        used.reset(seed)
        for _ in range(10):
            used.step(random.uniform(-1, 1, size=HAND[name]).astype(np.float32))
    fresh.reset(3)
    used.reset(3)
    for _ in range(5):
        np.testing.assert_array_equal(fresh.physics_state(), used.physics_state())
        fresh.step(still(fresh))
        used.step(still(used))
    np.testing.assert_array_equal(fresh.full_state(), used.full_state())
    fresh.close()
    used.close()


def test_cameras_and_horizons():
    for task, row in adroit.TASKS.items():
        simulation = make_simulation(task)
        cameras = [simulation.model.camera(i).name for i in range(simulation.model.ncam)]
        assert "vil_camera" in cameras and row.cameras == ("vil_camera",)
        assert ("view_1" in cameras) == (simulation.name == "pen")
        assert row.horizon_steps == (100 if task == "adroit/pen-held" else 200)
        assert simulation.control_hz == 100
        shown = simulation.model.site_rgba[
            [simulation.model.site(i).name == "target" for i in range(simulation.model.nsite)], 3
        ]
        assert (shown > 0).all() and len(shown) == (simulation.name == "relocate")
        simulation.close()


def test_rows_without_an_expert_say_so():
    for task, row in adroit.TASKS.items():
        env = make_env(task, cameras=())
        if row.expert:
            assert "the expert needs" in row.notes
        else:
            assert "no expert" in row.notes
            with pytest.raises(ValueError, match="no expert"):
                make_expert(task, env)
        env.close()
    assert {task for task, row in TASKS.items() if row.suite == "adroit" and row.expert} == {
        "adroit/relocate",
        "adroit/relocate-held",
        "adroit/door",
        "adroit/door-held",
    }


@pytest.mark.parametrize(
    ("name", "seed"), [("relocate", 0), ("relocate", 5), ("relocate", 13), ("door", 31), ("door", 43)]
)
def test_experts_hold_success(name, seed):
    env = make_env(f"adroit/{name}-held", cameras=())
    expert = make_expert(f"adroit/{name}-held", env)
    observation, _ = env.reset(seed=seed)
    expert.reset()
    ended = False
    while not ended:
        observation, _, terminated, truncated, info = env.step(expert.act(observation))
        ended = terminated or truncated
    assert info["success"]
    data = env.simulation.data
    assert data.body("Object").xpos[2] > 0.1 if name == "relocate" else data.joint("door_hinge").qpos[0] > 1.35
    env.close()


def test_nothing_is_printed():
    script = """
from envs.experts import make_expert
from envs.tasks import make_env
env = make_env("adroit/relocate", cameras=())
expert = make_expert("adroit/relocate", env)
observation, _ = env.reset(seed=0)
expert.reset()
for _ in range(120):
    observation, *_ = env.step(expert.act(observation))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

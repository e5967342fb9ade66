"""robosuite's tasks: what the contract's tests, which run over the table, do not ask."""

from __future__ import annotations

import subprocess
import sys

import mujoco
import numpy as np
import pytest

from envs.experts import make_expert
from envs.rendering import Renderer
from envs.suites import robosuite
from envs.tasks import TASKS, make_env

ROWS = [name for name, row in TASKS.items() if row.suite == "robosuite"]
SIZE = 128


@pytest.fixture(scope="module", params=ROWS)
def env(request):
    """Without images, with the privileged state."""
    env = make_env(request.param, cameras=(), privileged=True)
    yield env
    env.close()


def actions_for(env, steps: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, size=(steps // 4 + 1, *env.action_space.shape)).repeat(4, axis=0)[:steps]


def test_physics_follow_from_the_seed_alone(env):
    """Also after other episodes, and bit for bit as in a simulation that has just been made."""
    fresh = robosuite.make_simulation(TASKS[env.env_spec.task])
    actions = actions_for(env, 12, seed=3)
    for _ in range(2):
        for seed in (4, 11):
            env.reset(seed=seed)
            for action in actions[:5]:
                env.step(action)
        env.reset(seed=7)
        fresh.reset(7)
        np.testing.assert_array_equal(env.state(), fresh.physics_state())
        for action in actions:
            observation, reward, *_ = env.step(action)
            assert fresh.step(action.astype(np.float32))[0] == reward
            np.testing.assert_array_equal(env.state(), fresh.physics_state())
            np.testing.assert_array_equal(observation["state/full"], fresh.full_state().astype(np.float32))
    fresh.close()


def test_a_reset_keeps_the_model(env):
    simulation = env.simulation
    before = simulation.env.sim.model._model, simulation.env.sim.data._data
    env.reset(seed=1)
    assert (
        (simulation.env.sim.model._model, simulation.env.sim.data._data)
        == before
        == (simulation.model, simulation.data)
    )


def test_torques_are_those_of_the_packages_controllers(env):
    simulation = env.simulation
    model, data = simulation.model, simulation.data
    actions = actions_for(env, 12, seed=5)
    env.reset(seed=2)
    ours = []
    for action in actions:
        env.step(action)
        ours.append(data.qpos.copy())
    env.reset(seed=2)
    for action, expected in zip(actions, ours, strict=True):
        for substep in range(25):
            mujoco.mj_step1(model, data)
            simulation.env._pre_action(action.astype(np.float32).astype(np.float64), policy_step=substep == 0)
            mujoco.mj_step2(model, data)
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(data.qpos, expected, atol=1e-7)


def test_the_state_begins_with_robosuites_own(env):
    env.reset(seed=3)
    env.step(actions_for(env, 1, seed=0)[0])
    flat = env.simulation.env.sim.get_state().flatten()
    np.testing.assert_array_equal(env.state()[: len(flat)], flat)


def test_the_full_state_moves_and_holds_proprioception(env):
    expert = make_expert(env.env_spec.task, env)
    seen = []
    for seed in (50_100, 50_101):
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            seen.append(observation["state/full"])
            proprioception = [observation[key] for key in env.env_spec.observation if key not in ("state/full",)]
            tail = np.concatenate(proprioception)
            np.testing.assert_array_equal(seen[-1][-len(tail) :], tail)
            action = expert.act(observation)
            np.testing.assert_array_equal(action, expert.act(observation), err_msg="the state alone decides")
            observation, reward, terminated, truncated, _ = env.step(action)
            assert 0 <= reward <= 1
            ended = terminated or truncated
        assert terminated, f"seed {seed}: the expert failed"
    still = np.flatnonzero(np.ptp(np.stack(seen), axis=0) < 1e-6)
    # A door stands at one height.
    assert list(still) == ([2] if env.simulation.name == "door" else []), env.env_spec.observation["state/full"]


def test_unused_objects_lie_still_out_of_sight(env):
    simulation = env.simulation
    env.reset(seed=0)
    bodies = [simulation.model.body(thing.root_body).id for thing in simulation.parked]
    assert len(bodies) == {"nut-assembly-square": 1, "pick-place-can": 3}.get(simulation.name, 0)
    before = simulation.data.xpos[bodies].copy()
    for action in actions_for(env, 10, seed=1):
        env.step(action)
    np.testing.assert_allclose(simulation.data.xpos[bodies], before, atol=1e-3)
    touching = simulation.model.geom_bodyid[simulation.data.contact.geom]
    assert not np.isin(simulation.model.body_rootid[touching], bodies).any()


def test_images_are_upright(env):
    """Each pixel of a small thing, cast back into the world by camera pose and depth with row 0 at the top, lands on that thing."""
    model, data = env.simulation.model, env.simulation.data
    env.reset(seed=6)
    with Renderer(model, height=SIZE, width=SIZE) as renderer:
        for camera in TASKS[env.env_spec.task].cameras:
            images = renderer.render(model, data, camera, ["segmentation", "depth"])
            geoms, depth = images["segmentation"], images["depth"]
            small = (geoms >= 0) & (model.geom_rbound[geoms] > 0) & (model.geom_rbound[geoms] < 0.12)
            assert small.sum() > 40, camera
            centres, radii = data.geom_xpos[geoms[small]], model.geom_rbound[geoms[small]]
            places = cast_back(model, data, camera, depth)
            assert (np.linalg.norm(places[small] - centres, axis=1) < radii + 0.01).all(), camera
            upside_down = places[::-1][small]
            assert (np.linalg.norm(upside_down - centres, axis=1) > radii + 0.01).any(), "this test tells up from down"
            if camera == "agentview":
                assert data.camera(camera).xmat.reshape(3, 3)[2, 1] > 0.5, "the world's up is the image's"
            else:
                fingers = [model.body(f"gripper{camera[5]}_right_{side}finger").id for side in ("left", "right")]
                rows, _ = np.nonzero(np.isin(model.geom_bodyid[geoms], fingers) & (geoms >= 0))
                assert rows.mean() > 0.6 * SIZE, "the fingers come into the wrist's image from below"


def cast_back(model: mujoco.MjModel, data: mujoco.MjData, camera: str, depth: np.ndarray) -> np.ndarray:
    """The world points [SIZE, SIZE, 3] that an upright image's pixels show."""
    right, up, back = data.camera(camera).xmat.reshape(3, 3).T
    tangent = np.tan(np.radians(model.cam_fovy[model.camera(camera).id]) / 2)
    row, column = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE * 2 - 1
    rays = tangent * (column[..., None] * right - row[..., None] * up) - back
    return data.camera(camera).xpos + depth[..., None] * rays


def test_only_what_a_camera_would_see_is_drawn(env):
    model = env.simulation.model
    assert not (model.site_rgba[:, 3] > 0).any()
    assert not (model.geom_group == 0).any(), "collision shapes"


def test_placements_vary_as_the_row_says():
    env = make_env("robosuite/lift", cameras=())
    cubes = []
    for seed in range(40):
        env.reset(seed=seed)
        cubes.append(env.simulation.data.body("cube_main").xpos[:2].copy())
    env.close()
    assert (np.ptp(cubes, axis=0) > 0.12).all() and (np.abs(cubes) <= 0.08).all()


def test_nothing_is_printed():
    run = subprocess.run(
        [sys.executable, "-c", "from envs.tasks import make_env; make_env('robosuite/lift', cameras=()).reset(seed=0)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (run.stdout, run.stderr) == ("", "")


@pytest.mark.slow
def test_the_expert_succeeds_on_95_percent_of_fresh_seeds(env):
    expert = make_expert(env.env_spec.task, env)
    failed = []
    for seed in range(60_000, 60_020):
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            observation, _, terminated, truncated, _ = env.step(expert.act(observation))
            ended = terminated or truncated
        if not terminated:
            failed.append(seed)
    assert len(failed) <= 1, failed

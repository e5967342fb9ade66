"""What every task of the table must do."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.env import ManipulationEnv
from envs.experts import make_expert
from envs.spec import EnvSpec
from envs.suites.metaworld import MetaWorldSimulation
from envs.tasks import SUITES, TASKS, make_env

SIZE = 32
# With images each suite is represented by a task or two; the others are drawn in the slow tests. Without images every row runs.
PICTURED = {next(task for task in TASKS if TASKS[task].suite == suite) for suite in SUITES} | {"metaworld/reach"}


def pictured_first() -> list:
    return [task if task in PICTURED else pytest.param(task, marks=pytest.mark.slow) for task in TASKS]


@pytest.fixture(scope="module", params=pictured_first())
def env(request):
    """With images, at the strongest appearance level."""
    env = make_env(request.param, level="varied-3", image_size=SIZE)
    yield env
    env.close()


@pytest.fixture(scope="module", params=TASKS)
def blind_env(request):
    """Clean, without images."""
    env = make_env(request.param, cameras=())
    yield env
    env.close()


def random_actions(env: ManipulationEnv, steps: int, seed: int = 0) -> np.ndarray:
    """Held for five steps each, so that they lead somewhere."""
    random = np.random.default_rng(seed)
    held = random.uniform(-1, 1, size=(steps // 5 + 1, *env.env_spec.action.shape))
    return held.repeat(5, axis=0)[:steps].astype(np.float32)


def rollout(env: ManipulationEnv, seed: int, actions: np.ndarray) -> list:
    """Everything the environment says, in order, until the actions or the episode end."""
    observation, info = env.reset(seed=seed)
    said: list = [observation, info, env.state()]
    for action in actions:
        *step, terminated, truncated, info = env.step(action)
        said += [*step, terminated, truncated, info, env.state()]
        if terminated or truncated:
            break
    return said


def skip_without_expert(env: ManipulationEnv) -> None:
    if not TASKS[env.env_spec.task].expert:
        with pytest.raises(ValueError, match="no expert"):
            make_expert(env.env_spec.task, env)
        pytest.skip("the row says that there is none")


def assert_same(first: list, second: list) -> None:
    np.testing.assert_equal(first, second)


def test_spaces_match(env):
    spec = env.env_spec
    assert isinstance(env, gymnasium.Env)
    assert env.observation_space.keys() == spec.observation.keys()
    observations = [env.reset(seed=1)[0]]
    for action in random_actions(env, 8):
        assert env.action_space.contains(action)
        observations.append(env.step(action)[0])
    for observation in observations:
        assert list(observation) == list(spec.observation)
        assert env.observation_space.contains(observation)
        for key, field in spec.observation.items():
            assert (observation[key].dtype, observation[key].shape) == (np.dtype(field.dtype), field.shape), key


@pytest.mark.filterwarnings("ignore:.*WARN")
def test_gymnasium_accepts_it(env):
    check_env(env, skip_render_check=True, skip_close_check=True)


def test_same_seed_gives_the_same_rollout(env):
    actions = random_actions(env, 8)
    first = rollout(env, 7, actions)
    other = rollout(env, 8, actions)
    assert_same(first, rollout(env, 7, actions))
    assert other[1]["initial_state_hash"] != first[1]["initial_state_hash"]
    assert first[1]["seed"] == 7


def test_appearance_leaves_physics_alone(env):
    actions = random_actions(env, 15)
    varied = rollout(env, 5, actions)
    clean = make_env(env.env_spec.task, image_size=SIZE, renderer=env.renderer)
    plain = rollout(clean, 5, actions)
    clean.close()
    images = {key for key in env.env_spec.observation if key.startswith("images/")}
    for one, two in zip(varied, plain, strict=True):
        if isinstance(one, dict) and images <= one.keys():
            for key in images:
                assert np.abs(one[key].astype(int) - two[key]).mean() > 5, "varied-3 changes what is seen"
            one, two = ({key: said[key] for key in said if key not in images} for said in (one, two))
        np.testing.assert_equal(one, two)


def test_observations_never_share_memory(env):
    observations = [env.reset(seed=2)[0]]
    copies = [{key: value.copy() for key, value in observations[0].items()}]
    for action in random_actions(env, 3):
        observations.append(env.step(action)[0])
        copies.append({key: value.copy() for key, value in observations[-1].items()})
    arrays = [array for observation in observations for array in observation.values()]
    for index, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[index + 1 :])
    assert_same(observations, copies)


def test_every_task_renders_from_its_default_camera(env):
    observation, _ = env.reset(seed=3)
    assert env.env_spec.cameras == TASKS[env.env_spec.task].cameras
    for camera in env.env_spec.cameras:
        image = observation[f"images/{camera}"]
        assert image.std() > 5 and len(np.unique(image.reshape(-1, 3), axis=0)) > 30
    np.testing.assert_array_equal(env.render(), observation[f"images/{env.env_spec.cameras[0]}"])


def test_no_sensor_is_dead(blind_env):
    seen: dict[str, list[np.ndarray]] = {}
    for seed in range(2):
        observation, _ = blind_env.reset(seed=seed)
        for action in random_actions(blind_env, 40, seed):
            for key, value in observation.items():
                seen.setdefault(key, []).append(value)
            observation, _, terminated, truncated, _ = blind_env.step(action)
            if terminated or truncated:
                break
    for key, values in seen.items():
        assert (np.ptp(np.stack(values), axis=0) > 1e-4).all(), f"{key} has an element that never changes"


def test_the_expert_succeeds_and_success_ends_the_episode(blind_env):
    skip_without_expert(blind_env)
    expert = make_expert(blind_env.env_spec.task, blind_env)
    for seed in (1, 2):
        observation, info = blind_env.reset(seed=seed)
        expert.reset()
        assert info["success"] is False
        terminated = False
        while not terminated:
            action = expert.act(observation)
            assert action.dtype == np.float32 and np.abs(action).max() <= 1
            observation, reward, terminated, truncated, info = blind_env.step(action)
            assert type(info["success"]) is bool and type(terminated) is bool and type(truncated) is bool
            assert type(reward) is float
            assert terminated == info["success"]
            assert not truncated, f"seed {seed}: the expert failed"
        with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
            blind_env.step(action)


@pytest.mark.slow
def test_the_expert_succeeds_on_many_seeds(blind_env):
    skip_without_expert(blind_env)
    expert = make_expert(blind_env.env_spec.task, blind_env)
    successes = 0
    for seed in range(100, 120):
        observation, _ = blind_env.reset(seed=seed)
        expert.reset()
        ended = False
        while not ended:
            observation, _, terminated, truncated, info = blind_env.step(expert.act(observation))
            ended = terminated or truncated
        successes += info["success"]
    assert successes >= 17


def test_the_horizon_truncates(blind_env):
    blind_env.reset(seed=4)
    still = np.zeros(blind_env.env_spec.action.shape, np.float32)
    for step in range(1, blind_env.env_spec.horizon_steps + 1):
        _, _, terminated, truncated, info = blind_env.step(still)
        assert not terminated and not info["success"], "nothing is achieved by standing still"
        assert truncated == (step == blind_env.env_spec.horizon_steps)
    with pytest.raises(gymnasium.error.ResetNeeded):
        blind_env.step(still)


def test_spec_round_trip_keeps_the_hash(env):
    spec = env.env_spec
    again = EnvSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and again.schema_hash() == spec.schema_hash() and spec.difference(again) == []


def test_placements_differ_from_seed_to_seed(blind_env):
    hashes = {blind_env.reset(seed=seed)[1]["initial_state_hash"] for seed in range(6)}
    assert len(hashes) == 6


def test_bad_actions_are_refused(blind_env):
    blind_env.reset(seed=0)
    shape = blind_env.env_spec.action.shape
    with pytest.raises(ValueError, match=rf"shape \({shape[0] + 1},\), expected"):
        blind_env.step(np.zeros(shape[0] + 1))
    with pytest.raises(ValueError, match="not finite"):
        blind_env.step(np.full(shape, np.nan))
    with pytest.raises(ValueError, match="seed"):
        blind_env.reset(seed=-1)


def test_actions_are_clipped(blind_env):
    shape = blind_env.env_spec.action.shape
    assert_same(
        rollout(blind_env, 3, np.full((4, *shape), 5.0)),
        rollout(blind_env, 3, np.ones((4, *shape))),
    )


def test_unseeded_resets_follow_from_the_last_seed(blind_env):
    blind_env.reset(seed=9)
    seeds = [blind_env.reset()[1]["seed"] for _ in range(3)]
    blind_env.reset(seed=9)
    assert [blind_env.reset()[1]["seed"] for _ in range(3)] == seeds and len(set(seeds)) == 3


def test_goal_markers_are_shown_only_where_the_row_says(blind_env):
    simulation = blind_env.simulation
    if isinstance(simulation, MetaWorldSimulation):
        model = simulation.model
        shown = [model.site(site).name for site in range(model.nsite) if model.site_rgba[site, 3] > 0]
        assert [name in ("goal", "mug_goal") for name in shown] == [True] * TASKS[blind_env.env_spec.task].goal_marker


def test_cameras_are_upright(blind_env):
    """What is higher in the world is higher in the image of each camera that stands still."""
    blind_env.reset(seed=0)
    model, data = blind_env.simulation.model, blind_env.simulation.data
    for name in TASKS[blind_env.env_spec.task].cameras:
        camera = model.camera(name).id
        if model.cam_bodyid[camera] != 0:
            continue
        axes, position = data.cam_xmat[camera].reshape(3, 3), data.cam_xpos[camera]
        ahead = position - 0.8 * axes[:, 2]
        heights = []
        for point in (ahead, ahead + np.array([0, 0, 0.1])):
            _, up, back = axes.T @ (point - position)
            assert -back > 0
            heights.append(up / -back)
        assert heights[1] > heights[0] + 0.02, name


def test_close_twice():
    for cameras in (None, ()):
        env = make_env("toy/reach", cameras=cameras)
        env.reset(seed=0)
        env.close()
        env.close()
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(np.zeros(2))

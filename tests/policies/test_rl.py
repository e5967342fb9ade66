"""Reinforcement learning's environments, statistics and artifacts; short runs of each algorithm through `egoarm eval`."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import VecNormalize

from egoarm import COMMANDS, compose, main
from envs.tasks import make_env
from envs.vector import VectorEnv
from eval_robot.protocol import SEED_RANGES
from eval_robot.records import load_report
from policies.policy import PolicySpec, load_policy
from policies.rl.config import SELECTION_SEEDS, RLConfig
from policies.rl.learner import make_learner, normalized, read_statistics, write_statistics
from policies.rl.networks import CNN, FrozenEyes, NetworkConfig
from policies.rl.observation import OBSERVATIONS, PolicyObservation
from policies.rl.policy import RLPolicy
from policies.rl.sac import shift_images
from policies.rl.train import _make_spec, _stored_config, run
from policies.rl.vec_env import FEATURES, ManipulationVecEnv
from pretrain.checkpoints import read_metrics
from pretrain.encoder import load_encoder

BASE: RLConfig = compose(
    COMMANDS["rl"],
    ["task=toy/reach", "out=unused", "image_size=32", "threads=1", "workers=1", "eval_episodes=2", "network.hidden=[16]",
     "network.cnn_channels=4", "sac.n_envs=2", "sac.updates_per_step=1", "sac.random_steps=40", "sac.batch_size=8", "sac.steps=160", "log_every=40",
     "eval_every=120", "checkpoint_every=60", "ppo.n_envs=2", "ppo.rollout_steps=32", "ppo.batch_size=32", "ppo.epochs=2",
     "ppo.steps=192"],
)  # fmt: skip


def small(folder: Path, **changes: Any) -> RLConfig:
    return replace(BASE, out=str(folder / "policy"), **changes)


def spec_of(**changes: Any) -> PolicySpec:
    return _make_spec(replace(BASE, **changes))


def make_policy(config: RLConfig) -> RLPolicy:
    encoder = None if config.encoder == CNN or not config.sees_images else load_encoder(config.encoder, seed=0)
    torch.manual_seed(0)
    frozen = encoder is not None and config.encoder_frozen
    return RLPolicy(_make_spec(config), config.network, config.algo, encoder, frozen=frozen)


def vector_env(config: RLConfig, n_envs: int = 2) -> VectorEnv:
    return VectorEnv(
        config.task,
        n_envs=n_envs,
        n_workers=1,
        cameras=None if config.sees_images else (),
        image_size=config.image_size,
        privileged=OBSERVATIONS[config.obs][1],
    )


@pytest.mark.filterwarnings("ignore:.*not an image.*")
@pytest.mark.parametrize("obs", list(OBSERVATIONS))
def test_stable_baselines3_accepts_the_wrapped_environment(obs: str) -> None:
    spec = spec_of(obs=obs)
    env = make_env("toy/reach", image_size=32, privileged=OBSERVATIONS[obs][1])
    wrapped = PolicyObservation(env, spec)
    check_env(wrapped, warn=False)
    observation, _ = wrapped.reset(seed=3)
    assert set(observation) == set(wrapped.observation_space.spaces)
    wrapped.close()


def test_parallel_environments_show_what_single_ones_do() -> None:
    """Observations with their history, the bare reward, the end of each episode and the next one's start, beside a plain loop."""
    config = replace(BASE, frames=3, stride_steps=2)
    spec = _make_spec(config)
    singles = [PolicyObservation(make_env("toy/reach", image_size=32), spec) for _ in range(2)]
    random = np.random.default_rng(0)
    with vector_env(config) as inner:
        env = ManipulationVecEnv(inner, spec)
        observation = env.reset()
        expected = [single.reset(seed=seed)[0] for seed, single in enumerate(singles)]
        seeds, returns, lengths, ends = [0, 1], [0.0, 0.0], [0, 0], []
        for _ in range(130):
            for index in range(2):
                for key, values in observation.items():
                    np.testing.assert_array_equal(values[index], expected[index][key])
            goal = np.stack([single.unwrapped.state()[4:6] - single.unwrapped.state()[:2] for single in singles])
            # The first environment heads for the ball, the second strays.
            actions = np.where([[True], [False]], np.clip(10 * goal, -1, 1), random.uniform(-1, 1, (2, 2)))
            observation, rewards, dones, infos = env.step(actions.astype(np.float32))
            for index, single in enumerate(singles):
                expected[index], reward, terminated, truncated, _ = single.step(actions[index])
                returns[index] += reward
                lengths[index] += 1
                assert rewards[index] == pytest.approx(reward, rel=1e-6)
                assert dones[index] == (terminated or truncated)
                assert ("terminal_observation" in infos[index]) == dones[index]
                if not dones[index]:
                    continue
                ends.append((terminated, truncated))
                assert infos[index]["TimeLimit.truncated"] == (truncated and not terminated)
                assert infos[index]["is_success"] == terminated
                assert infos[index]["episode"] == {"r": pytest.approx(returns[index]), "l": lengths[index]}
                for key, values in infos[index]["terminal_observation"].items():
                    np.testing.assert_array_equal(values, expected[index][key])
                seeds[index] = max(seeds) + 1
                expected[index], _ = single.reset(seed=seeds[index])
                returns[index], lengths[index] = 0.0, 0
    assert (True, False) in ends and (False, True) in ends, "both kinds of end must have been seen"
    assert env.next_seed == max(seeds) + 1


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_positive_reward_of_success_counts_for_ever(offset: float) -> None:
    """Toy rewards are negative distances; one more makes them positive, as Meta-World's are."""
    config = replace(BASE, obs="privileged")
    with vector_env(config) as inner:
        bare = inner.step
        last: dict[str, np.ndarray] = {}

        def step(*args: Any, **options: Any) -> tuple[Any, ...]:
            observation, rewards, *rest = bare(*args, **options)
            last["rewards"] = rewards + offset
            return observation, last["rewards"].copy(), *rest

        inner.step = step  # type: ignore[method-assign]
        env = ManipulationVecEnv(inner, _make_spec(config), absorbing_discount=0.9)
        observation, seen = env.reset(), 0
        for _ in range(60):
            full = observation["state/full"]
            observation, rewards, dones, infos = env.step(np.clip(10 * (full[:, 4:6] - full[:, :2]), -1, 1))
            solved = np.array([bool(done and info["is_success"]) for done, info in zip(dones, infos, strict=True)])
            expected = np.where(solved & (last["rewards"] > 0), last["rewards"] / 0.1, last["rewards"])
            np.testing.assert_allclose(rewards, expected, rtol=1e-6)
            seen += int(solved.sum())
        assert seen


@pytest.mark.parametrize(("encoder", "readout"), [("pixels-16x16", "grid"), ("random:egodtm-tiny", "attention")])
def test_frozen_features_are_made_once_and_are_the_encoders(encoder: str, readout: str) -> None:
    network = replace(BASE.network, readout=readout)
    config = replace(BASE, encoder=encoder, frames=2, network=network)
    policy = make_policy(config)
    assert policy.eyes is not None
    with vector_env(config) as first, vector_env(config) as second:
        plain = ManipulationVecEnv(first, policy.spec)
        encoded = ManipulationVecEnv(
            second,
            policy.spec,
            encode=FrozenEyes(policy.eyes, torch.device("cpu")),
            feature_dim=policy.eyes.feature_dim,
        )
        images, features = plain.reset(), encoded.reset()
        for _ in range(3):
            assert not any(key.startswith("images/") for key in features)
            expected = policy.eyes({key: torch.from_numpy(value) for key, value in images.items() if "images" in key})
            np.testing.assert_allclose(features[FEATURES], expected.detach().numpy(), atol=1e-5)
            assert encoded.observation_space[FEATURES].shape == features[FEATURES].shape[1:]
            images, features = plain.step(np.ones((2, 2)))[0], encoded.step(np.ones((2, 2)))[0]


def test_vec_normalize_statistics_survive_the_policy() -> None:
    config = replace(BASE, obs="privileged")
    policy, other = make_policy(config), make_policy(config)
    with vector_env(config) as inner, vector_env(config) as fresh:
        env = normalized(ManipulationVecEnv(inner, policy.spec), policy, 0.9)
        env.reset()
        for _ in range(20):
            env.step(np.random.default_rng(0).uniform(-1, 1, (2, 2)))
        read_statistics(env, policy)
        other.load_state_dict(policy.state_dict())
        copy = normalized(ManipulationVecEnv(fresh, policy.spec), policy, 0.9)
        write_statistics(other, copy)
        assert isinstance(env.obs_rms, dict) and isinstance(copy.obs_rms, dict)
        for key, statistics in {**env.obs_rms, "returns": env.ret_rms}.items():
            again = copy.ret_rms if key == "returns" else copy.obs_rms[key]
            np.testing.assert_array_equal(statistics.mean, again.mean)
            np.testing.assert_array_equal(statistics.var, again.var)
            assert statistics.count == again.count and float(again.count) > 20
        raw = env.get_original_obs()
        assert isinstance(raw, dict)
        ours = policy._statistics("state/full").normalize(torch.from_numpy(raw["state/full"]))
        theirs = env.normalize_obs(raw)
        assert isinstance(theirs, dict)
        np.testing.assert_allclose(ours.numpy(), theirs["state/full"], rtol=1e-6)


@pytest.mark.parametrize(
    ("algo", "encoder"), [("sac", CNN), ("ppo", CNN), ("ppo", "pixels-16x16"), ("sac", "random:egodtm-tiny")]
)
def test_the_policy_acts_as_the_learner(algo: str, encoder: str) -> None:
    """stable-baselines3's deterministic action on normalized observations is our policy's on raw ones."""
    from policies.rl.learner import copy_to_policy

    config = replace(BASE, algo=algo, encoder=encoder, encoder_frozen=encoder != "random:egodtm-tiny")
    policy = make_policy(config)
    with vector_env(config) as inner:
        encode = None if policy.eyes is None else FrozenEyes(policy.eyes, torch.device("cpu"))
        dim = 0 if policy.eyes is None else policy.eyes.feature_dim
        bare = ManipulationVecEnv(inner, policy.spec, encode=encode, feature_dim=dim)
        env: VecNormalize = normalized(bare, policy, 0.9)
        learner = make_learner(config.algorithm, env, policy, seed=0, device="cpu")
        learner.learn(44)
        copy_to_policy(learner, env, policy)
        env.training = False
        # Same seeds: the raw observation beside the normalized one.
        env.venv.next_seed = 7
        seen = env.reset()
        raw, _ = inner.reset([7, 8])
        theirs, _ = learner.predict(seen, deterministic=True)
        batch = {
            key: torch.from_numpy(value)[:, None].expand(-1, policy.spec.frames, *[-1] * (value.ndim - 1))
            for key, value in raw.items()
        }
        ours = policy.eval().predict_chunk(batch)
    assert ours.shape == (2, 1, 2)
    np.testing.assert_allclose(ours[:, 0].numpy(), theirs, atol=2e-5)


def test_the_critics_train_the_eyes_and_the_actor_does_not() -> None:
    config = replace(BASE)
    policy = make_policy(config)
    with vector_env(config) as inner:
        env = normalized(ManipulationVecEnv(inner, policy.spec), policy, 0.9)
        learner = make_learner(replace(config.sac, decay_from=1.0), env, policy, seed=0, device="cpu")
        learner.learn(60)
        eyes = {id(parameter) for parameter in learner.critic.features_extractor.parameters()}
        of_actor = {id(parameter) for group in learner.actor.optimizer.param_groups for parameter in group["params"]}
        of_critic = {id(parameter) for group in learner.critic.optimizer.param_groups for parameter in group["params"]}
        assert eyes <= of_critic and not eyes & of_actor
        assert learner.actor.features_extractor is learner.critic_target.features_extractor
        before = [parameter.clone() for parameter in learner.critic.features_extractor.parameters()]
        learner.train(2, 8)
        after = list(learner.critic.features_extractor.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_learning_rate_falls_to_zero_at_the_end() -> None:
    policy = make_policy(BASE)
    with vector_env(BASE) as inner:
        env = normalized(ManipulationVecEnv(inner, policy.spec), policy, 0.9)
        learner = make_learner(
            replace(BASE.sac, learning_rate=0.01, decay_from=0.25), env, policy, seed=0, device="cpu"
        )
        rates = [learner.lr_schedule(left) for left in (1.0, 0.75, 0.5, 0.0)]
        assert rates == pytest.approx([0.01, 0.01, 0.01 * 2 / 3, 0.0])
        learner.learn(60)
        for optimizer in (learner.actor.optimizer, learner.critic.optimizer, learner.ent_coef_optimizer):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-3)


def test_shifts_move_whole_histories_and_repeat_the_border() -> None:
    torch.manual_seed(0)
    images = torch.arange(6 * 6, dtype=torch.uint8).view(1, 1, 6, 6, 1).expand(40, 2, 6, 6, 3)
    shifted = shift_images(images, 2)
    assert shifted.shape == images.shape and shifted.dtype == torch.uint8
    padded = torch.nn.functional.pad(images[0].permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="replicate")
    crops = {
        (dy, dx): padded[:, :, dy : dy + 6, dx : dx + 6].permute(0, 2, 3, 1).to(torch.uint8)
        for dy in range(5)
        for dx in range(5)
    }
    drawn = [next(place for place, crop in crops.items() if torch.equal(crop, sample)) for sample in shifted]
    assert len(set(drawn)) > 10
    assert torch.equal(shift_images(images, 0), images)


RUNS = {
    "sac-cnn": {"algo": "sac"},
    "sac-frozen": {
        "algo": "sac",
        "encoder": "pixels-16x16",
        "network": NetworkConfig(readout="spatial-softmax", hidden=(16,)),
    },
    "ppo-privileged": {"algo": "ppo", "obs": "privileged"},
}


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_ends_in_an_artifact_that_eval_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = small(tmp_path, **RUNS[name])
    path = run(config)
    assert {"model.safetensors", "spec.json"} <= {file.name for file in path.iterdir()}
    policy, artifact = load_policy(path)
    assert artifact.config["rl"]["algo"] == config.algo and not list(path.rglob("*.zip"))
    rows = read_metrics(path / "train_state" / "metrics.jsonl")
    assert rows[-1]["step"] == artifact.provenance["step"] >= config.algorithm.steps
    assert {"eval_success", "train_success", "cpu_time_s"} <= {key for row in rows for key in row}
    assert artifact.config["demos"]["seeds"] == list(range(len(artifact.config["demos"]["seeds"])))

    report = tmp_path / "report.jsonl"
    words = ["episodes=3", "envs=3", "workers=1", "threads=1", "videos=0", f"out={report}"]
    assert main(["eval", f"policy={path}", *words]) == 0, capsys.readouterr().err
    assert len(load_report(report).episodes) == 3
    assert main(["report", str(report), f"out={tmp_path / 'report.html'}"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "environment steps" in page and "selection seeds" in page, "the training curve is in the report"
    run(config)
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="another rl"):
        run(replace(config, seed=1))

    if name != "ppo-privileged":
        assert_acts_equally_in_a_new_process(path, policy, tmp_path)


def assert_acts_equally_in_a_new_process(path: Path, policy: Any, folder: Path) -> None:
    env = make_env("toy/reach", image_size=32)
    observation = {
        key: torch.from_numpy(value)[None, None].expand(1, policy.spec.frames, *value.shape).contiguous()
        for key, value in env.reset(seed=200_000)[0].items()
    }
    env.close()
    torch.save(observation, folder / "observation.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1); sys.modules['stable_baselines3'] = None\n"
        "from policies.policy import load_policy\n"
        "policy, _ = load_policy(sys.argv[1]); obs = torch.load(sys.argv[2], weights_only=True)\n"
        "print(*policy.predict_chunk(obs).flatten().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(folder / "observation.pt")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = policy.predict_chunk(observation).flatten().numpy()
    np.testing.assert_array_equal(np.array(done.stdout.split(), dtype=np.float32), expected)


def test_selection_seeds_are_the_protocols() -> None:
    assert SEED_RANGES["selection"] == SELECTION_SEEDS
    config = replace(BASE)
    assert _stored_config(config, None, False)["encoder"]["label"] == "sac cnn"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["algo=sacc"], "did you mean sac? expected one of sac, ppo"),
        (["obs=pixel"], "did you mean pixels"),
        (["task=toy/rech"], "toy/reach"),
        (["encoder=egodtm-tini"], "did you mean egodtm-tiny"),
        (["image_size=8"], "at least 16 pixels"),
        (["sac.discount=1.5"], "sac.discount=1.5"),
        (["ppo.batch_size=7", "algo=ppo"], "expected a divisor"),
        (["sac.buffer_steps=100000000", "sac.steps=100000000", "image_size=512"], "lower sac.buffer_steps"),
        (["network.readout=gird"], "did you mean 'grid'"),
        (["network.readout=flare"], "read-outs over time"),
    ],
)
def test_mistakes_are_one_line(words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["rl", "task=toy/reach", f"out={tmp_path / 'p'}", "threads=1", *words]) == 2
    assert expected in capsys.readouterr().err

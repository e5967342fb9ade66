"""Rollouts: an episode depends on the policy and its seed alone, whatever runs beside it and whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from egoarm import main
from envs.tasks import make_env
from envs.vector import VectorEnv
from eval_robot.records import EpisodeRecord, load_report
from eval_robot.rollout import rollout
from policies.act import ACTConfig
from policies.backbone import BackboneConfig
from policies.bc import BCConfig
from policies.diffusion import DiffusionConfig
from policies.diffusion_unet import UNetDenoiserConfig
from policies.policy import Policy, load_policy
from policies.train import TrainConfig, run

SEEDS = [200_000, 200_001, 200_002, 200_003, 200_004, 200_005, 200_006]
CONFIG = TrainConfig(
    policy="bc", encoder="none", encoder_seed=0, demos="", out="", label=None, bc=BCConfig(hidden=32, layers=2),
    act=ACTConfig(width=16, heads=2, feedforward=32, style_layers=1, encoder_layers=1, style_dim=4),
    diffusion=DiffusionConfig(unet=UNetDenoiserConfig(channels=(16,)), sample_steps=2),
    epochs=3, batch_size=32, seed=0, cache="", threads=1,
)  # fmt: skip
GRID = BackboneConfig(readout="grid")
POLICIES = {
    "bc": {"epochs": 150},
    "bc that sees": {"encoder": "pixels-16x16", "backbone": GRID, "epochs": 30},
    "flare": {"encoder": "timm/test_vit", "backbone": BackboneConfig(readout="flare"), "stride_steps": 2, "steps": 5},
    "diffusion": {"policy": "diffusion", "chunk_steps": 4, "execute_steps": 3, "steps": 20},
    "act": {"policy": "act", "chunk_steps": 4, "steps": 5},
}


@pytest.fixture(scope="module")
def policies(toy_demos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    out = tmp_path_factory.mktemp("policies")
    made = {}
    for name, changes in POLICIES.items():
        config = replace(CONFIG, demos=str(toy_demos), out=str(out / name), cache=str(out / "cache"), **changes)
        made[name] = load_policy(run(config))[0]
    return made


def vector(policy: Policy, n_envs: int, n_workers: int) -> VectorEnv:
    cameras = {} if policy.spec.cameras else {"cameras": ()}
    options = policy.spec.env_options | cameras
    return VectorEnv("toy/reach", n_envs=n_envs, n_workers=n_workers, level="varied-1", **options)


@pytest.mark.parametrize("name", ["bc that sees", "diffusion", "act"])
def test_an_episode_depends_on_its_seed_alone(policies: dict[str, Policy], name: str) -> None:
    policy = policies[name]
    with vector(policy, 1, 1) as env:
        alone = rollout(policy, env, SEEDS[:4])
    with vector(policy, 3, 2) as env:
        together = rollout(policy, env, SEEDS)
        assert rollout(policy, env, SEEDS[::-1]) == together[::-1]
    assert together[:4] == alone, "to the last bit of the return"
    assert len({record.episode_return for record in together}) == len(SEEDS)


@pytest.mark.parametrize(("name", "offsets"), [("bc that sees", [0]), ("flare", [4, 2, 0])])
def test_an_episode_is_that_of_a_plain_loop(policies: dict[str, Policy], name: str, offsets: list[int]) -> None:
    policy = policies[name]
    with vector(policy, 3, 1) as env:
        records = rollout(policy, env, SEEDS[:3])
    env = make_env("toy/reach", level="varied-1", **policy.spec.env_options)
    for record in records:
        observation, info = env.reset(seed=record.seed)
        images, total, steps, ended = [], 0.0, 0, False
        while not ended:
            images.append(observation["images/front"])
            history = np.stack([images[max(steps - ago, 0)] for ago in offsets])[None]
            batch = {"images/front": torch.from_numpy(history)}
            batch |= {key: torch.from_numpy(observation[key])[None, None] for key in policy.spec.state_keys}
            action = policy.predict_chunk(batch)[0, 0].numpy()
            observation, reward, terminated, truncated, _ = env.step(action)
            total, steps, ended = total + reward, steps + 1, terminated or truncated
        assert (record.length_steps, record.success, record.end) == (
            steps,
            terminated,
            "success" if terminated else "horizon",
        )
        assert record.success_step == (steps if terminated else None)
        assert record.initial_state_hash == info["initial_state_hash"]
        assert record.episode_return == pytest.approx(total, abs=1e-4)
    env.close()


def test_a_killed_worker_leaves_no_trace_but_the_count(policies: dict[str, Policy]) -> None:
    policy = policies["bc that sees"]
    with vector(policy, 3, 2) as env:
        undisturbed = rollout(policy, env, SEEDS)
        killed: list[int] = []

        def kill(record: EpisodeRecord, film: np.ndarray | None) -> None:
            if not killed:
                killed.append(env._workers[1].process.pid)
                os.kill(killed[0], signal.SIGKILL)

        disturbed = rollout(policy, env, SEEDS, finished=kill)
    assert sum(record.reruns for record in disturbed) == 1, "of the one episode that was in worker 1"
    assert [replace(record, reruns=0) for record in disturbed] == undisturbed


def test_only_what_the_policy_looks_at_is_drawn(policies: dict[str, Policy], toy_demos: Path, tmp_path: Path) -> None:
    config = replace(
        CONFIG, demos=str(toy_demos), out=str(tmp_path / "policy"), cache=str(tmp_path / "cache"), encoder="timm/test_vit",
        backbone=BackboneConfig(readout="flare", history=2), chunk_steps=8, execute_steps=5, steps=5,
    )  # fmt: skip
    policy, _ = load_policy(run(config))

    def drawn_by(env: VectorEnv, **options: object) -> tuple[list[EpisodeRecord], int, int]:
        step, drawn = env.step, []
        env.step = lambda *args, images=True, **rest: (
            drawn.append(np.array(images)),
            step(*args, images=images, **rest),
        )[1]  # type: ignore[method-assign]
        records = rollout(policy, env, SEEDS, **options)
        env.step = step  # type: ignore[method-assign]
        return records, int(np.concatenate(drawn).sum()), sum(record.length_steps for record in records)

    films: dict[int, np.ndarray] = {}

    def keep(record: EpisodeRecord, film: np.ndarray | None) -> None:
        if film is not None:
            films[record.seed] = film

    with vector(policy, 3, 1) as env:
        records, drawn, steps = drawn_by(env)
        assert drawn <= 0.4 * steps, "two frames of five"
        filmed, more, _ = drawn_by(env, filmed=SEEDS[:1], finished=keep)
    assert filmed == records and drawn < more < steps
    film, length = films[SEEDS[0]], records[0].length_steps
    assert film.shape == (length + 1, 64, 64, 3) and film.std(axis=(1, 2, 3)).min() > 5, "no frame is missing"


def test_a_latent_is_encoded_once(policies: dict[str, Policy]) -> None:
    policy = policies["flare"]
    backbone, encoded = policy.backbone, []
    original = backbone.encode_clips
    backbone.encode_clips = lambda clips: (encoded.append(len(clips)), original(clips))[1]
    given: list[torch.Tensor] = []
    predict = policy.predict_chunk
    policy.predict_chunk = lambda observation, generator=None: (
        given.append(observation["features/front"]),
        predict(observation, generator),
    )[1]  # type: ignore[method-assign]
    try:
        with vector(policy, 1, 1) as env:
            (record,) = rollout(policy, env, SEEDS[:1])
    finally:
        del backbone.encode_clips, policy.predict_chunk
    assert len(encoded) == record.length_steps and set(encoded) == {8}, "one block a step"
    rows = torch.stack([features[0] for features in given])
    assert not torch.equal(rows[8, 0], rows[8, 2]), "the arm moves"
    assert torch.equal(rows[4:, 0], rows[:-4, 2]) and torch.equal(rows[2:, 1], rows[:-2, 2]), "the newest of then"
    assert torch.equal(rows[0, 0], rows[0, 2]), "the oldest repeated"


def test_an_evaluation_survives_kill_9(policies: dict[str, Policy], tmp_path: Path) -> None:
    del policies  # made, so that the artifact is there
    policy = max(tmp_path.parent.glob("policies*/bc"), key=os.path.getmtime)
    words = ["eval", f"policy={policy}", "episodes=150", "envs=8", "workers=1", "threads=1"]
    out, partial = tmp_path / "killed.jsonl", tmp_path / "killed.jsonl.partial"
    script = f"import sys; from egoarm import main; sys.exit(main({[*words, f'out={out}']!r}))"
    process = subprocess.Popen([sys.executable, "-c", f"if __name__ == '__main__':\n    {script}"])
    deadline = time.monotonic() + 120
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists() and not out.exists()
    kept = partial.read_text().count("\n") - 1
    assert 0 < kept < 150
    assert main([*words, f"out={out}"]) == 0 and not partial.exists()
    assert main([*words, f"out={tmp_path / 'whole.jsonl'}", "envs=13"]) == 0
    resumed, whole = load_report(out), load_report(tmp_path / "whole.jsonl")
    assert [asdict(episode) for episode in resumed.episodes] == [asdict(episode) for episode in whole.episodes]
    assert [episode.seed for episode in resumed.episodes] == list(range(200_000, 200_150)), "in the order of seeds"

"""Training options: averaged weights, ensembled chunks, trained encoders, chosen states, stopping and going on."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.tasks import make_env
from policies.act import ACTConfig
from policies.backbone import BackboneConfig
from policies.bc import BCConfig, BCPolicy
from policies.chunking import ActionChunker
from policies.demos.collect import DemosConfig
from policies.demos.collect import run as collect
from policies.ema import WeightAverage
from policies.ensembling import TemporalEnsemble
from policies.policy import POLICIES, Policy, load_policy
from policies.train import TrainConfig, make_trainer, metrics_path, run
from pretrain.artifact import load_artifact, sha256_file
from pretrain.checkpoints import read_metrics
from pretrain.encoder import load_encoder

CONFIG = TrainConfig(
    policy="bc", encoder="none", encoder_seed=0, demos="", out="", label=None, bc=BCConfig(hidden=16, layers=1), steps=4, batch_size=16, seed=0,
    cache="", threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def privileged_demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demos") / "toy.hdf5"
    return collect(
        DemosConfig(
            task="toy/reach", level="clean", episodes=3, out=str(out), image_size=40, first_seed=0, workers=1, privileged=True
        )
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- averages


class Line(Policy):
    """One weight and a batch norm, for what is averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.fixed = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.norm = torch.nn.BatchNorm1d(2, affine=False)

    def compute_loss(self, batch):
        raise AssertionError("not trained")

    def predict_chunk(self, observation, generator=None):
        raise AssertionError("not run")


def test_weight_average_is_the_plain_recurrence() -> None:
    policy = Line()
    average = WeightAverage(policy, 0.9)
    expected = torch.zeros(2)
    generator = torch.Generator().manual_seed(0)
    for n in range(1, 60):
        live = torch.randn(2, generator=generator)
        with torch.no_grad():
            policy.weight.copy_(live)
            policy.norm.running_mean.fill_(float(n))
        average.update()
        decay = min(0.9, 1 - (1 + n) ** -0.75)
        expected = decay * expected + (1 - decay) * live
    stored = {key: value.clone() for key, value in average.state_dict().items()}
    average.give()
    assert torch.allclose(policy.weight, expected, atol=1e-6)
    assert 0 < policy.norm.running_mean[0] < 59 and torch.equal(policy.fixed, torch.ones(2))
    again = WeightAverage(Line(), 0.9)
    again.load_state_dict(stored)
    again.give()
    assert torch.equal(again.policy.weight, policy.weight) and int(again.updates) == 59


# --------------------------------------------------------------------------------------------------------- ensembling


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.floats(0, 2), st.integers(0, 1000))
def test_temporal_ensemble_is_the_plain_weighted_sum(length: int, decay: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    ensemble = TemporalEnsemble(3, length, 2, decay)
    chunks: list[list[np.ndarray]] = [[], [], []]  # of the present episode
    for _ in range(12):
        rows = np.flatnonzero(random.random(3) < 0.7)
        if not len(rows):
            continue
        fresh = rows[random.random(len(rows)) < 0.2]
        ensemble.reset(fresh)
        for env in fresh:
            chunks[env] = []
        predicted = random.standard_normal((len(rows), length, 2)).astype(np.float32)
        actions = ensemble.act(predicted, rows)
        for row, env in enumerate(rows):
            chunks[env].append(predicted[row])
            t = len(chunks[env]) - 1
            about_now = [chunks[env][s][t - s] for s in range(max(0, t - length + 1), t + 1)]  # oldest first
            weights = np.exp(-decay * np.arange(len(about_now)))
            expected = sum(w * a for w, a in zip(weights, about_now, strict=True)) / weights.sum()
            np.testing.assert_allclose(actions[row], expected, atol=1e-5)


def test_the_chunker_runs_chunks_as_the_spec_says(privileged_demos: Path, tmp_path: Path) -> None:
    act = ACTConfig(width=16, heads=2, feedforward=32, style_layers=1, encoder_layers=1, style_dim=4)
    config = replace(CONFIG, policy="act", act=act, demos=str(privileged_demos), chunk_steps=4)
    policy, _ = load_policy(run(replace(config, out=str(tmp_path / "ensembled"))))
    assert (policy.spec.execute_steps, policy.spec.ensemble_decay) == (1, 0.01)
    keys = policy.spec.state_keys
    random = np.random.default_rng(0)
    states = [
        {key: random.standard_normal((1, *policy.spec.env_spec.observation[key].shape)).astype(np.float32) for key in keys}
        for _ in range(6)
    ]  # fmt: skip
    chunker = ActionChunker(policy, 1)
    chunks = [
        policy.predict_chunk({key: torch.from_numpy(value)[:, None] for key, value in state.items()})
        for state in states
    ]
    for t, state in enumerate(states):
        action = chunker.act(state, np.array([t == 0]))
        about_now = [chunks[s][0, t - s].numpy() for s in range(max(0, t - 3), t + 1)]
        weights = np.exp(-0.01 * np.arange(len(about_now)))
        np.testing.assert_allclose(action[0], np.average(about_now, axis=0, weights=weights), atol=1e-5)
    queued, _ = load_policy(run(replace(config, out=str(tmp_path / "queued"), execute_steps=3)))
    assert (queued.spec.execute_steps, queued.spec.ensemble_decay) == (3, None)
    chunker = ActionChunker(queued, 1)
    actions = [chunker.act(state, np.array([t == 0]))[0] for t, state in enumerate(states)]
    first = queued.predict_chunk({key: torch.from_numpy(value)[:, None] for key, value in states[0].items()})
    np.testing.assert_allclose(actions[:3], first[0, :3].numpy(), atol=1e-6)


# ------------------------------------------------------------------------------------------- encoders that are trained


@pytest.mark.parametrize("adaptation", ["lora", "full"])
@pytest.mark.parametrize("readout", ["flare", "grid"])
def test_a_trained_encoder_is_saved_whole_and_acts_without_peft(
    privileged_demos: Path, tmp_path: Path, adaptation: str, readout: str
) -> None:
    backbone = BackboneConfig(readout=readout, adaptation=adaptation)
    path = run(
        replace(
            CONFIG, demos=str(privileged_demos), out=str(tmp_path / "policy"), cache=str(tmp_path / "cache"), encoder="timm/test_vit",
            backbone=backbone, steps=2, batch_size=4, ema_decay=0.5,
        )
    )  # fmt: skip
    before, after = load_encoder("timm/test_vit").state_dict(), load_policy(path)[0].backbone.encoder.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("attn.qkv.weight" in name for name in changed)
    if adaptation == "lora":
        assert not any("norm" in name or name.endswith("bias") for name in changed)
    else:
        assert any("norm" in name for name in changed)


def test_conv_small_trains_end_to_end(privileged_demos: Path, tmp_path: Path) -> None:
    backbone = BackboneConfig(readout="grid", adaptation="full")
    config = replace(CONFIG, demos=str(privileged_demos), out=str(tmp_path / "policy"), cache=str(tmp_path / "cache"))
    path = run(replace(config, encoder="conv-small", backbone=backbone, steps=2, batch_size=4, ema_decay=0.0))
    before, after = load_encoder("conv-small").state_dict(), load_policy(path)[0].backbone.encoder.state_dict()
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])], "every tensor is trained"


def test_what_cannot_be_trained_is_refused(privileged_demos: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, demos=str(privileged_demos), out=str(tmp_path / "policy"), cache=str(tmp_path / "cache"))
    for adaptation in ("lora", "full"):
        with pytest.raises(ValueError, match="no weights to train"):
            run(replace(config, encoder="pixels-16x16", backbone=BackboneConfig(adaptation=adaptation)))
    with pytest.raises(ValueError, match="nothing to adapt"):
        replace(config, backbone=BackboneConfig(adaptation="full"))


# -------------------------------------------------------------------------------------------------------- observations


@pytest.mark.parametrize("policy", [name for name, entry in POLICIES.items() if entry.recipe])
def test_policies_from_the_privileged_state(privileged_demos: Path, tmp_path: Path, policy: str) -> None:
    config = replace(CONFIG, policy=policy, demos=str(privileged_demos), state_keys=("state/full",), chunk_steps=4)
    loaded, _ = load_policy(run(replace(config, out=str(tmp_path / "policy"))))
    assert loaded.spec.state_keys == ("state/full",)
    env = make_env("toy/reach", **loaded.spec.env_options)
    loaded.spec.check_env(env.env_spec, "policy")
    observation, _ = env.reset(seed=0)
    chunker = ActionChunker(loaded, 1)
    action = chunker.act({key: value[None] for key, value in observation.items()}, np.array([True]))
    env.step(action[0])
    env.close()


def test_the_privileged_state_is_read_only_when_asked_for(privileged_demos: Path, tmp_path: Path) -> None:
    loaded, _ = load_policy(run(replace(CONFIG, demos=str(privileged_demos), out=str(tmp_path / "policy"))))
    assert "state/full" not in loaded.spec.state_keys and "state/full" not in loaded.spec.env_spec.observation
    env = make_env("toy/reach", **loaded.spec.env_options)
    loaded.spec.check_env(env.env_spec, "policy")
    env.close()
    with pytest.raises(ValueError, match=r"has no state/wings; there is: .*state/full"):
        run(replace(CONFIG, demos=str(privileged_demos), out="x", state_keys=("state/wings",)))


def test_the_privileged_state_must_have_been_recorded(toy_demos: Path) -> None:
    with pytest.raises(ValueError, match="privileged=true"):
        run(replace(CONFIG, demos=str(toy_demos), out="x", state_keys=("state/full",)))


# --------------------------------------------------------------------------------------------------- the training loop


def test_stopped_and_started_again_ends_with_the_same_weights(
    privileged_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        CONFIG, demos=str(privileged_demos), steps=20, ema_decay=0.9, lr_schedule="cosine", warmup_steps=3, batch_size=8
    )
    whole = run(replace(config, out=str(tmp_path / "whole")))
    update = WeightAverage.update

    def stopped_at_eleven(self: WeightAverage) -> None:
        update(self)
        if int(self.updates) == 11:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(WeightAverage, "update", stopped_at_eleven)
    with pytest.raises(KeyboardInterrupt):
        run(replace(config, out=str(tmp_path / "stopped")))
    assert not (tmp_path / "stopped").exists()
    monkeypatch.undo()
    resumed = run(replace(config, out=str(tmp_path / "stopped")))
    assert sha256_file(whole / "model.safetensors") == sha256_file(resumed / "model.safetensors")
    live = run(replace(config, out=str(tmp_path / "live"), ema_decay=0.0))
    assert sha256_file(whole / "model.safetensors") != sha256_file(live / "model.safetensors")


def test_learning_rates_and_precision_reach_the_trainer(privileged_demos: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, demos=str(privileged_demos), lr=0.1, steps=30, precision="bf16-mixed")
    assert make_trainer(config, 100).learning_rate_at(29) == 0.1
    cosine = make_trainer(replace(config, lr_schedule="cosine", warmup_steps=10), 100)
    assert cosine.learning_rate_at(0) == pytest.approx(0.01) and cosine.learning_rate_at(29) < 0.01
    path = run(replace(config, out=str(tmp_path / "policy")))
    assert all(np.isfinite(row["loss"]) for row in read_metrics(metrics_path(path)))


def test_what_is_not_said_is_the_policys_own_and_written_down(privileged_demos: Path, tmp_path: Path) -> None:
    path = run(replace(CONFIG, demos=str(privileged_demos), out=str(tmp_path / "policy")))
    stored = load_artifact(path).config["train"]
    recipe = POLICIES["bc"].recipe
    assert stored["lr"] == recipe.lr and stored["chunk_steps"] == recipe.chunk_steps and stored["batch_size"] == 16


def test_policies_from_before_read_outs_are_refused(privileged_demos: Path, tmp_path: Path) -> None:
    import yaml

    path = run(replace(CONFIG, demos=str(privileged_demos), out=str(tmp_path / "policy")))
    config = yaml.safe_load((path / "config.yaml").read_text())
    del config["backbone"]
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"older version.*train it again"):
        load_policy(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr_schedule": "linear"}, "constant, cosine"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"steps": 0}, "steps=0"),
        ({"policy": "difusion"}, "did you mean 'diffusion'"),
    ],
)
def test_bad_requests_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, demos="x", out="y", **changes)


def test_more_actions_than_a_chunk_holds(privileged_demos: Path) -> None:
    with pytest.raises(ValueError, match="execute_steps=3"):
        run(replace(CONFIG, demos=str(privileged_demos), out="x", execute_steps=3))


def test_state_keys_are_stored_in_order(privileged_demos: Path, tmp_path: Path) -> None:
    path = run(replace(CONFIG, demos=str(privileged_demos), out=str(tmp_path / "policy"), state_keys=("state/full",)))
    assert json.loads((path / "spec.json").read_text())["spec"]["state_keys"] == ["state/full"]
    assert isinstance(load_policy(path)[0], BCPolicy)

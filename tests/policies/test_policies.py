"""Policies: every row of the table trains, saves and loads; the chunker against a plain loop; the cache against direct computing."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from envs.spec import EnvSpec, FieldSpec
from policies.backbone import POOLINGS, fill_frames
from policies.bc import BCConfig
from policies.chunking import ActionChunker, history_offsets
from policies.demos.hdf5 import DemoFile
from policies.features import demo_features
from policies.normalizer import Normalizer
from policies.policy import POLICIES, Policy, PolicySpec, load_policy
from policies.train import TrainConfig, run
from pretrain.artifact import sha256_file

CONFIG = TrainConfig(
    policy="bc", encoder="none", encoder_seed=0, demos="", out="", label=None, frames=None, stride_steps=None, chunk_steps=1,
    bc=BCConfig(hidden=32, layers=2), epochs=3, batch_size=32, lr=1e-3, seed=0, cache="", threads=1,
)  # fmt: skip


def trained(toy_demos: Path, folder: Path, **changes: object) -> Path:
    return run(
        replace(CONFIG, demos=str(toy_demos), out=str(folder / "policy"), cache=str(folder / "cache"), **changes)
    )


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("encoder", ["none", "pixels-16x16", "egodtm-tiny"])
def test_saved_and_loaded_in_a_new_process_acts_equally(
    toy_demos: Path, tmp_path: Path, policy: str, encoder: str
) -> None:
    path = trained(toy_demos, tmp_path, policy=policy, encoder=encoder)
    loaded, _ = load_policy(path)
    observation = example_observation(loaded, toy_demos)
    actions = loaded.predict_chunk(observation)
    assert actions.shape == (2, 1, loaded.spec.action_dim) and actions.abs().max() <= 1
    torch.save({key: value for key, value in observation.items()}, tmp_path / "observation.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1); from policies.policy import load_policy\n"
        "policy, _ = load_policy(sys.argv[1]); obs = torch.load(sys.argv[2], weights_only=True)\n"
        "print(policy.predict_chunk(obs).flatten().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "observation.pt")],
        capture_output=True,
        text=True,
        check=True,
    )
    np.testing.assert_array_equal(np.array(eval_list(done.stdout), dtype=np.float32), actions.flatten().numpy())


def eval_list(text: str) -> list[float]:
    return [float(number) for number in text.strip().strip("[]").split(",")]


def example_observation(policy: Policy, demos: Path) -> dict[str, torch.Tensor]:
    with DemoFile(demos) as file:
        batch = {key: torch.from_numpy(file.array(0, f"obs/{key}")[:2])[:, None] for key in policy.spec.state_keys}
        for camera in policy.spec.cameras:
            batch[f"images/{camera}"] = torch.from_numpy(
                file.array(0, f"obs/images/{camera}")[: 2 * policy.spec.frames]
            ).unflatten(0, (2, policy.spec.frames))
    return batch


def test_training_is_repeatable_and_a_finished_policy_is_kept(
    toy_demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first = trained(toy_demos, tmp_path / "a")
    second = trained(toy_demos, tmp_path / "b")
    assert sha256_file(first / "model.safetensors") == sha256_file(second / "model.safetensors")
    trained(toy_demos, tmp_path / "a")
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="another train"):
        trained(toy_demos, tmp_path / "a", seed=1)


def test_loss_falls(toy_demos: Path, tmp_path: Path) -> None:
    from eval_robot.plots import read_metrics
    from policies.train import metrics_path

    losses = [
        value for _, value in read_metrics(metrics_path(trained(toy_demos, tmp_path, epochs=60, lr=1e-2)))["loss"]
    ]
    assert losses[-1] < 0.3 * losses[0]


def test_missing_and_surplus_tensors_are_named(toy_demos: Path, tmp_path: Path) -> None:
    import json

    path = trained(toy_demos, tmp_path)
    weights = path / "model.safetensors"
    tensors = load_file(weights)
    removed = next(name for name in tensors if name.startswith("head"))
    tensors["head.extra"] = tensors.pop(removed)
    save_file(tensors, weights)
    with pytest.raises(ValueError, match="sha256"):
        load_policy(path)
    provenance = json.loads((path / "provenance.json").read_text())
    provenance["model_sha256"] = sha256_file(weights)
    (path / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ValueError, match=rf"missing tensors: {removed}; surplus tensors: head\.extra"):
        load_policy(path)


def test_another_environment_contract_is_refused_with_the_difference(toy_demos: Path, tmp_path: Path) -> None:
    policy, _ = load_policy(trained(toy_demos, tmp_path))
    other = replace(policy.spec.env_spec, horizon_steps=7)
    with pytest.raises(ValueError, match=r"horizon_steps: 60 != 7"):
        policy.spec.check_env(other, "p")
    policy.spec.check_env(replace(other, horizon_steps=60), "p")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_cached_features_are_those_of_the_policy(toy_demos: Path, tmp_path: Path, pooling: str) -> None:
    """What training read for step t is what acting computes at step t, history and all."""
    policy, _ = load_policy(
        trained(toy_demos, tmp_path, encoder="egodtm-tiny", stride_steps=2, bc=BCConfig(pooling=pooling))
    )
    with DemoFile(toy_demos) as demos:
        cached = demo_features(policy.backbone, demos, tmp_path / "cache", "test")
        assert cached.shape == (sum(demos.lengths), policy.backbone.feature_dim)
        seen: list[torch.Tensor] = []
        original = policy.backbone.features
        policy.backbone.features = lambda images: (seen.append(original(images)), seen[-1])[1]  # type: ignore[method-assign]
        chunker = ActionChunker(policy, 1)
        recorded = demos.observation(0, list(demos.env_spec.observation))
        for step in range(demos.lengths[0]):
            chunker.act({key: values[step : step + 1] for key, values in recorded.items()}, np.array([step == 0]))
        np.testing.assert_allclose(
            torch.cat(seen).numpy(), cached[: demos.lengths[0]], atol=2e-5 if pooling == "pooled" else 5e-3
        )


def test_an_interrupted_cache_goes_on(toy_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from policies import features

    policy, _ = load_policy(trained(toy_demos, tmp_path, encoder="pixels-16x16"))
    with DemoFile(toy_demos) as demos:
        whole = demo_features(policy.backbone, demos, tmp_path / "cache", "test")
        real, calls = features._window_features, []

        def killed_in_the_third(*arguments: object) -> np.ndarray:
            calls.append(arguments)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(features, "_window_features", killed_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            demo_features(policy.backbone, demos, tmp_path / "second", "test")
        resumed = demo_features(policy.backbone, demos, tmp_path / "second", "test")
        np.testing.assert_array_equal(resumed, whole)
        assert len(calls) - 3 < sum(-(-n // features.BATCH) for n in demos.lengths)


class EchoPolicy(Policy):
    """Answers with what it sees: the newest state and the sum of the history's first pixels, Ta times with the position added."""

    def __init__(self, frames: int, stride: int, chunk: int) -> None:
        super().__init__()
        image = FieldSpec(shape=(1, 1, 3), dtype="uint8", unit="1", convention="test")
        state = FieldSpec(shape=(1,), dtype="float32", unit="1", convention="test")
        action = FieldSpec(shape=(2,), dtype="float32", unit="1", convention="test", low=-1.0, high=1.0)
        env = EnvSpec(
            task="t", control_hz=10.0, horizon_steps=9, observation={"images/c": image, "state/s": state}, action=action
        )
        self.spec = PolicySpec(
            policy="bc",
            env_spec=env,
            cameras=("c",),
            state_keys=("state/s",),
            frames=frames,
            stride_steps=stride,
            chunk_steps=chunk,
        )

    def compute_loss(self, batch):
        raise AssertionError("not trained")

    def predict_chunk(self, observation, generator=None):
        weights = 10.0 ** torch.arange(self.spec.frames)
        history = (observation["images/c"][:, :, 0, 0, 0].float() * weights).sum(dim=1)
        answer = torch.stack([observation["state/s"][:, -1, 0], history], dim=-1)
        return answer[:, None] + torch.tensor([0.01, 0.0]) * torch.arange(self.spec.chunk_steps)[None, :, None]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.data())
def test_chunker_against_a_plain_loop(frames: int, stride: int, chunk: int, data: st.DataObject) -> None:
    execute = data.draw(st.integers(1, chunk))
    policy = EchoPolicy(frames, stride, chunk)
    chunker = ActionChunker(policy, 3, execute_steps=execute)
    episodes: list[list[int]] = [[], [], []]  # pixels seen in the current episode
    began: list[tuple[float, float, int]] = [(0.0, 0.0, 0)] * 3
    for step in range(14):
        active = np.array(sorted(data.draw(st.sets(st.integers(0, 2), min_size=1))))
        reset = np.array([not episodes[i] or data.draw(st.booleans()) for i in active])
        pixels = np.array([data.draw(st.integers(0, 9)) for _ in active])
        observation = {
            "images/c": np.repeat(pixels.astype(np.uint8), 3).reshape(-1, 1, 1, 3),
            "state/s": np.full((len(active), 1), step, np.float32),
        }
        actions = chunker.act(observation, reset, active)
        for row, env in enumerate(active):
            if reset[row]:
                episodes[env] = []
            episodes[env].append(int(pixels[row]))
            t = len(episodes[env]) - 1
            if t % execute == 0:
                history = [episodes[env][max(t - int(offset), 0)] for offset in history_offsets(frames, stride)]
                began[env] = (float(step), sum(pixel * 10.0**k for k, pixel in enumerate(history)), t)
            state, total, start = began[env]
            np.testing.assert_allclose(actions[row], [state + 0.01 * (t - start), total], rtol=1e-5)


def test_short_histories_repeat_the_oldest() -> None:
    images = torch.arange(2, dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 3)
    assert fill_frames(images, 4)[0, :, 0, 0, 0].tolist() == [0, 0, 0, 1]
    assert fill_frames(images, 1)[0, :, 0, 0, 0].tolist() == [1]


@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 1000))
def test_normalizer_inverts(rows: int, dim: int, seed: int) -> None:
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    x[:, 0] = 7.0
    normalizer = Normalizer(dim)
    normalizer.fit(x)
    y = normalizer.normalize(x)
    assert torch.allclose(normalizer.unnormalize(y), x, atol=1e-4)
    assert torch.equal(y[:, 0], torch.zeros(rows))
    assert torch.allclose(y[:, 1:].mean(0), torch.zeros(dim - 1), atol=1e-3)


def test_normalizer_names_bad_channels() -> None:
    with pytest.raises(ValueError, match=r"channels \[1\]"):
        Normalizer(2).fit(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="did you mean 'bc'"):
        replace(CONFIG, policy="bcc", demos="x", out="y")
    with pytest.raises(ValueError, match="egodtm-tiny"):
        run(replace(CONFIG, encoder="egodtm-tinny", demos="x", out="y"))

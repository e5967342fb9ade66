"""Policies: every row of the table trains, saves and loads; the chunker against a plain loop; the cache against direct computing."""

import itertools
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
from policies.act import ACTConfig
from policies.backbone import BackboneConfig, fill_frames
from policies.bc import BCConfig
from policies.chunking import ActionChunker, history_offsets
from policies.demos.hdf5 import DemoFile
from policies.diffusion import DiffusionConfig
from policies.diffusion_transformer import TransformerDenoiserConfig
from policies.diffusion_unet import UNetDenoiserConfig
from policies.features import demo_features, history_rows, kept_lengths, kept_rows
from policies.normalizer import Normalizer, RangeNormalizer
from policies.policy import POLICIES, Policy, PolicySpec, load_policy
from policies.readouts import READOUTS
from policies.train import TrainConfig, run
from pretrain.artifact import load_artifact, sha256_file
from pretrain.egodtm.encoder import EgoDTMEncoder
from pretrain.egodtm.video_vit import VideoViTConfig
from pretrain.encoder import save_encoder

CONFIG = TrainConfig(
    policy="bc", encoder="none", encoder_seed=0, demos="", out="", label=None, bc=BCConfig(hidden=32, layers=2),
    act=ACTConfig(width=16, heads=2, feedforward=32, style_layers=1, encoder_layers=1, style_dim=4),
    diffusion=DiffusionConfig(unet=UNetDenoiserConfig(channels=(16,)), transformer=TransformerDenoiserConfig(width=16, heads=2, layers=1)),
    epochs=3, batch_size=32, seed=0, cache="", threads=1,
)  # fmt: skip
LEARNED = [name for name, entry in POLICIES.items() if entry.recipe]


@pytest.fixture(scope="session")
def two_frames(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder of two frames that takes no fewer."""
    folder = tmp_path_factory.mktemp("two-frames")
    save_encoder(folder, EgoDTMEncoder(VideoViTConfig.of_size("nano", frames=2), name="two-frames"))
    return str(folder)


def trained(toy_demos: Path, folder: Path, **changes: object) -> Path:
    return run(
        replace(CONFIG, demos=str(toy_demos), out=str(folder / "policy"), cache=str(folder / "cache"), **changes)
    )


def test_saved_and_loaded_in_a_new_process_acts_equally(toy_demos: Path, tmp_path: Path) -> None:
    """Every policy with every kind of encoder, all in one new process."""
    rows = [*itertools.product(LEARNED, [("none", {})])]
    rows += itertools.product(
        LEARNED, [("pixels-16x16", {"readout": "grid"}), ("random:egodtm-tiny", {"readout": "flare"})]
    )
    rows += [("diffusion", ("none", {"denoiser": "transformer"}))]
    expected = []
    for number, (policy, (encoder, choice)) in enumerate(rows):
        backbone = BackboneConfig(**({} if "denoiser" in choice else choice))
        diffusion = replace(CONFIG.diffusion, denoiser=choice.get("denoiser", "unet"))
        path = run(
            replace(
                CONFIG, demos=str(toy_demos), out=str(tmp_path / str(number)), cache=str(tmp_path / "cache"), policy=policy, encoder=encoder,
                backbone=backbone, diffusion=diffusion, steps=2,
            )
        )  # fmt: skip
        loaded, _ = load_policy(path)
        observation = example_observation(loaded, toy_demos)
        actions = loaded.predict_chunk(observation, torch.Generator().manual_seed(0))
        assert actions.shape == (2, loaded.spec.chunk_steps, loaded.spec.action_dim) and actions.abs().max() <= 1
        torch.save({key: value for key, value in observation.items()}, path / "observation.pt")
        expected.append(actions.flatten().numpy())
    code = (
        "import sys, torch; torch.set_num_threads(1); from policies.policy import load_policy\n"
        "for path in sys.argv[1:]:\n"
        "    policy, _ = load_policy(path); obs = torch.load(path + '/observation.pt', weights_only=True)\n"
        "    print(policy.predict_chunk(obs, torch.Generator().manual_seed(0)).flatten().tolist())"
    )
    paths = [str(tmp_path / str(number)) for number in range(len(rows))]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    for row, line, actions in zip(rows, done.stdout.splitlines(), expected, strict=True):
        np.testing.assert_array_equal(np.array(eval_list(line), dtype=np.float32), actions, err_msg=str(row))


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


@pytest.mark.parametrize("readout", list(READOUTS))
def test_cached_features_are_those_of_the_policy(
    toy_demos: Path, tmp_path: Path, readout: str, two_frames: str
) -> None:
    """What training read for step t is what acting computes at step t, history and all."""
    backbone = BackboneConfig(readout=readout)
    policy, _ = load_policy(
        trained(toy_demos, tmp_path, encoder=two_frames, stride_steps=2, frames=2, backbone=backbone, steps=1)
    )
    with DemoFile(toy_demos) as demos:
        cached = demo_features(policy.backbone, demos, tmp_path / "cache", "test")["front"]
        assert cached.shape == (sum(demos.lengths), *policy.backbone.feature_shape)
        assert cached.dtype == (np.float32 if READOUTS[readout].needs == "pooled" else np.float16)
        seen: list[torch.Tensor] = []
        predict = policy.predict_chunk

        def watched(observation, generator=None):
            given = observation if "features/front" in observation else policy.backbone.encode(observation)
            seen.append(given["features/front"])
            return predict(observation, generator)

        policy.predict_chunk = watched  # type: ignore[method-assign]
        chunker = ActionChunker(policy, 1)
        recorded = demos.observation(1, list(demos.env_spec.observation))
        steps = 6
        for step in range(steps):
            chunker.act({key: values[step : step + 1] for key, values in recorded.items()}, np.array([step == 0]))
        rows = history_rows(demos.lengths, policy.backbone.config.latents, 2)[demos.lengths[0] :][:steps]
        tolerance = 2e-5 if READOUTS[readout].needs == "pooled" else 5e-3
        np.testing.assert_allclose(torch.cat(seen).numpy(), cached[rows], atol=tolerance)


def test_a_policy_of_one_image_takes_as_short_a_clip_as_there_is(
    toy_demos: Path, tmp_path: Path, two_frames: str
) -> None:
    for encoder, kept in (("random:egom2p-tiny", 1), ("random:egodtm-tiny", 1), (two_frames, 2)):
        policy, artifact = load_policy(
            trained(toy_demos, tmp_path / Path(encoder).name, encoder=encoder, frames=1, steps=1)
        )
        assert policy.spec.frames == 1 and policy.backbone.encoder.spec.frames == kept
        assert artifact.config["encoder"]["spec"]["frames"] == kept


def test_read_outs_with_the_same_need_share_the_cache(toy_demos: Path, tmp_path: Path) -> None:
    for readout in ("pooled", "flare", "grid", "attention"):
        out = str(tmp_path / readout)
        run(
            replace(
                CONFIG, demos=str(toy_demos), out=out, cache=str(tmp_path / "cache"), encoder="pixels-16x16", steps=1,
                backbone=BackboneConfig(readout=readout),
            )
        )  # fmt: skip
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(folders) == 2 and not any(path.name.endswith(".partial") for path in folders)


@pytest.mark.parametrize("half", [True, False])
def test_an_interrupted_cache_goes_on(
    toy_demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    from policies import features

    backbone = BackboneConfig(readout="grid")
    policy, _ = load_policy(trained(toy_demos, tmp_path, encoder="pixels-16x16", backbone=backbone, steps=1))
    with DemoFile(toy_demos) as demos:
        whole = demo_features(policy.backbone, demos, tmp_path / "cache", "test", half_tokens=half)["front"]
        assert whole.dtype == (np.float16 if half else np.float32)
        real, calls = policy.backbone.encode_clips, []

        def killed_in_the_third(*arguments: object) -> torch.Tensor:
            calls.append(arguments)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(*arguments)

        policy.backbone.encode_clips = killed_in_the_third
        with pytest.raises(KeyboardInterrupt):
            demo_features(policy.backbone, demos, tmp_path / "second", "test", half_tokens=half)
        resumed = demo_features(policy.backbone, demos, tmp_path / "second", "test", half_tokens=half)["front"]
        np.testing.assert_array_equal(resumed, whole)
        assert len(calls) - 3 < sum(-(-n // features.BATCH) for n in demos.lengths)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 3))
def test_history_rows_stay_within_their_demonstration(lengths: list[int], count: int, stride: int) -> None:
    rows = history_rows(lengths, count, stride)
    start = 0
    for length in lengths:
        for t in range(length):
            expected = [start + max(t - k * stride, 0) for k in range(count - 1, -1, -1)]
            assert rows[start + t].tolist() == expected
        start += length


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


@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 1000))
def test_range_normalizer_fills_the_interval_and_inverts(rows: int, dim: int, seed: int) -> None:
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    x[:, 0] = 7.0
    normalizer = RangeNormalizer(dim)
    normalizer.fit(x)
    y = normalizer.normalize(x)
    assert torch.allclose(normalizer.unnormalize(y), x, atol=1e-4)
    assert torch.equal(y[:, 0], torch.zeros(rows))
    assert torch.allclose(y[:, 1:].amin(0), -torch.ones(dim - 1), atol=1e-5)
    assert torch.allclose(y[:, 1:].amax(0), torch.ones(dim - 1), atol=1e-5)


@pytest.mark.parametrize("kind", [Normalizer, RangeNormalizer])
def test_normalizer_names_bad_channels(kind: type) -> None:
    with pytest.raises(ValueError, match=r"channels \[1\]"):
        kind(2).fit(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="did you mean 'bc'"):
        replace(CONFIG, policy="bcc", demos="x", out="y")
    with pytest.raises(ValueError, match="egodtm-tiny"):
        run(replace(CONFIG, encoder="egodtm-tinny", demos="x", out="y"))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 4))
def test_kept_rows_are_every_so_many_th_step(lengths: list[int], every: int) -> None:
    steps = [(demo, step) for demo, length in enumerate(lengths) for step in range(length)]
    rows = kept_rows(lengths, every)
    assert [steps[row] for row in rows] == [(demo, step) for demo, step in steps if step % every == 0]
    assert len(rows) == sum(kept_lengths(lengths, every))


@pytest.mark.parametrize("adaptation", ["frozen", "full"])
def test_every_third_step_gives_the_rows_of_those_steps(toy_demos: Path, tmp_path: Path, adaptation: str) -> None:
    from policies.rows import load_rows

    backbone = BackboneConfig(readout="grid", adaptation=adaptation)
    encoder = "conv-small" if adaptation == "full" else "pixels-16x16"
    policy, _ = load_policy(trained(toy_demos, tmp_path, encoder=encoder, backbone=backbone, steps=1, rows_every=3))
    policy.backbone.config = replace(policy.backbone.config, adaptation=adaptation)
    with DemoFile(toy_demos) as demos:
        every = load_rows(policy, demos, tmp_path / "cache", "test")
        third = load_rows(policy, demos, tmp_path / "cache", "test", every=3)
        kept = kept_rows(demos.lengths, 3)
    assert len(third.state) == len(kept)
    one, other = every.load([(int(row), 0) for row in kept]), third.load([(row, 0) for row in range(len(kept))])
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=0)


def test_a_readout_over_time_needs_every_step(toy_demos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows_every=2 with backbone.readout=flare"):
        trained(toy_demos, tmp_path, encoder="pixels-16x16", backbone=BackboneConfig(readout="flare"), rows_every=2)


def test_held_out_demonstrations_are_not_learned_from(toy_demos: Path, tmp_path: Path) -> None:
    import json

    few = trained(toy_demos, tmp_path / "few", demonstrations=3, steps=5)
    held = trained(toy_demos, tmp_path / "held", held_out=1, steps=5)
    first, second = load_artifact(few), load_artifact(held)
    assert first.config["demos"]["seeds"] == second.config["demos"]["seeds"]
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    losses = json.loads((Path(held).with_name(Path(held).name + ".training") / "held_out.json").read_text())
    assert losses["learned_from"] > 0 and losses["held_out"] > 0
    with pytest.raises(ValueError, match=r"demonstrations=4, held_out=1: .* holds 4"):
        trained(toy_demos, tmp_path / "many", demonstrations=4, held_out=1)

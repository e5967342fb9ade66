"""`egoarm pretrain egom2p` and `egoarm predict` end to end on a small made-up store, with the tokenizers untrained."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from egoarm import main
from pretrain.artifact import load_artifact, sha256_file
from pretrain.batches import BatchPlan
from pretrain.checkpoints import read_metrics
from pretrain.clips.build import build_store
from pretrain.clips.schema import Clip
from pretrain.clips.store import open_store
from pretrain.downstream.comparison import load_results
from pretrain.egom2p.bundle import load_egom2p
from pretrain.egom2p.data import LoadTokens, target_counts, unpack
from pretrain.egom2p.generate import Target
from pretrain.egom2p.masking import MaskingConfig
from pretrain.egom2p.model import EgoM2PConfig, TokenSet
from pretrain.egom2p.predict import Predictor
from pretrain.egom2p.tokenizers.fsq_video import FsqVideoConfig, FsqVideoTokenizer
from pretrain.egom2p.tokenizers.store import TokenStoreConfig
from pretrain.egom2p.tokenizers.store import run as run_store
from pretrain.egom2p.tokenizers.tokenizer import save_tokenizer
from pretrain.egom2p.tokenizers.vq_sequence import VqSequenceConfig, VqSequenceTokenizer
from pretrain.egom2p.tokens import open_tokens
from pretrain.egom2p.train import EgoM2PTrainConfig, run
from pretrain.encoder import load_encoder
from pretrain.loop import TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
SIZE, CLIPS, STEPS = 16, 20, 30


def made_clip(index: int) -> Clip:
    """A square on a slope; clip 2 has no gaze, clip 3 no depth."""
    random = np.random.default_rng(index)
    rgb = np.full((16, SIZE, SIZE, 3), 60, np.uint8)
    left = (np.arange(16) // 2 + index) % (SIZE - 5)
    for frame in range(16):
        rgb[frame, 5:10, left[frame] : left[frame] + 5] = 200
    depth = np.broadcast_to(np.linspace(2, 1, SIZE, dtype=np.float32)[:, None], (16, SIZE, SIZE)).copy()
    poses = np.tile(np.eye(4), (60, 1, 1))
    poses[:, :3, 3] = np.cumsum(random.normal(0, 0.01, (60, 3)), axis=0)
    gaze = np.stack([np.repeat(left, 4)[:60] + 2.5, np.full(60, 7.5)], axis=1).astype(np.float32)
    return Clip(
        key=f"made-{index:02d}",
        rgb=rgb,
        rgb_times_s=np.arange(16) / 8,
        depth=None if index == 3 else depth,
        world_from_camera=poses,
        gaze=None if index == 2 else gaze,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips/, tokenizers/{video,gaze,camera}, tokens/."""
    place = tmp_path_factory.mktemp("egom2p")
    build_store(
        place / "clips",
        made_clip,
        kind="test",
        seed=0,
        settings={},
        versions={},
        n_clips=CLIPS,
        clips_per_shard=8,
        workers=1,
    )
    torch.manual_seed(0)
    video = FsqVideoTokenizer(FsqVideoConfig.of_size("nano", frames=16, image_size=SIZE), name="video")
    save_tokenizer(place / "tokenizers/video", video)
    for name in ("gaze", "camera"):
        tokenizer = VqSequenceTokenizer(VqSequenceConfig.for_modality(name, "nano"), name=name, modalities=(name,))
        save_tokenizer(place / "tokenizers" / name, tokenizer)
    run_store(
        TokenStoreConfig(
            data=str(place / "clips"),
            out=str(place / "tokens"),
            tokenizers=tuple(str(place / "tokenizers" / name) for name in ("video", "gaze", "camera")),
            clips_per_shard=8,
            threads=1,
        )
    )
    return place


def config_for(place: Path, out: Path, **changes: object) -> EgoM2PTrainConfig:
    trainer = {"steps": STEPS, "batch_size": 4, "warmup_steps": 3, "threads": 1, "checkpoint_every": 4, "log_every": 1}
    values: dict[str, object] = {
        "tokens": (str(place / "tokens"),),
        "tokenizers": tuple(str(place / "tokenizers" / name) for name in ("camera", "video", "gaze")),
        "out": str(out),
        "size": "nano",
        "masking": MaskingConfig(input_tokens=24, target_tokens=24),
        "trainer": TrainerConfig(accelerator="cpu", learning_rate=3e-3, beta2=0.95, **trainer),  # pyright: ignore
    }
    return EgoM2PTrainConfig(**{**values, **changes})  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def finished(place: Path) -> EgoM2PTrainConfig:
    config = config_for(place, place / "run")
    run(config)
    return config


def test_the_run_ends_with_a_model_its_tokenizers_and_an_encoder(
    finished: EgoM2PTrainConfig, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = load_egom2p(finished.out)
    assert set(bundle.tokenizers) == {"rgb", "depth", "gaze", "camera"} == set(bundle.model.config.names)
    assert load_egom2p(Path(finished.out) / "model").sha256 == bundle.sha256
    assert bundle.provenance["step"] == STEPS
    assert bundle.provenance["data"]["tokens 0"] == open_tokens(place / "tokens").manifest_sha256
    report = json.loads((Path(finished.out) / "validation.json").read_text())
    assert all(figures["tokens"] > 0 and figures["loss"] > 0 for figures in report.values())
    assert all(np.isfinite(figures["gain"]) for figures in report.values() if figures["tokens"] > 30)
    assert load_artifact(Path(finished.out) / "model").config["training"]["token_start"] == "codebook"
    run(finished)
    assert "already finished" in capsys.readouterr().out


def test_a_run_starts_from_its_codebooks_and_goes_on_from_its_checkpoint(
    finished: EgoM2PTrainConfig, place: Path, tmp_path: Path
) -> None:
    """The untrained twin of a run is what a run of no steps saves; a run that goes on does not start again."""
    start = load_egom2p(finished.out, untrained=True).model
    config = config_for(place, tmp_path / "zero", trainer=dataclasses.replace(finished.trainer, steps=0))
    run(config)
    assert torch.equal(load_egom2p(config.out).model.encoder_tokens, start.encoder_tokens)
    run(dataclasses.replace(config, out=str(tmp_path / "normal"), token_start="normal"))
    plain = load_egom2p(tmp_path / "normal").model
    assert not torch.equal(plain.encoder_tokens, start.encoder_tokens)
    assert torch.equal(plain.decoder_tokens, start.decoder_tokens)
    trained = load_egom2p(finished.out).model.state_dict()
    shutil.copytree(finished.out, tmp_path / "again")
    for name in ("model", "encoder"):
        shutil.rmtree(tmp_path / "again" / name)
    run(dataclasses.replace(finished, out=str(tmp_path / "again")))
    again = load_egom2p(tmp_path / "again").model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in trained.items())


def test_a_model_goes_on_from_anothers_weights(finished: EgoM2PTrainConfig, place: Path, tmp_path: Path) -> None:
    """Learning nothing more, it is the model that it started from, and says so; no tokens, other sizes and missing files are refused."""
    weights = Path(finished.out) / "model" / "model.safetensors"
    still = TrainerConfig(steps=0, batch_size=4, threads=1)
    config = config_for(place, tmp_path / "on", init=str(weights), trainer=still)
    run(config)
    made = load_artifact(tmp_path / "on" / "model")
    before = load_artifact(Path(finished.out) / "model")
    assert made.provenance["parents"]["init"] == sha256_file(weights)
    assert all(torch.equal(made.tensors[name], tensor) for name, tensor in before.tensors.items())
    with pytest.raises(FileNotFoundError, match="init=nowhere: no such file"):
        config_for(place, tmp_path / "x", init="nowhere")
    wrong = next((place / "tokenizers").rglob("model.safetensors"))
    with pytest.raises(ValueError, match=r"init=.*missing tensors"):
        run(config_for(place, tmp_path / "y", init=str(wrong), trainer=still))


def test_training_lowers_the_loss_of_every_modality(finished: EgoM2PTrainConfig) -> None:
    rows = read_metrics(Path(finished.out) / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for name in ("rgb", "depth", "gaze", "camera"):
        series = [row[name] for row in rows if name in row]
        assert np.mean(series[-6:]) < np.mean(series[:6]), name


def test_egom2p_killed_at_any_moment_ends_with_the_same_weights(
    finished: EgoM2PTrainConfig, place: Path, tmp_path: Path
) -> None:
    config = config_for(place, tmp_path / "killed")
    words = [
        f"tokens=[{place / 'tokens'}]",
        f"tokenizers=[{','.join(config.tokenizers)}]",
        f"out={config.out}",
        "size=nano",
        "masking.input_tokens=24",
        "masking.target_tokens=24",
        *(f"trainer.{key}={value}" for key, value in vars(config.trainer).items()),
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "egoarm.py"), "pretrain", "egom2p", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics, deadline = Path(config.out) / "metrics.jsonl", time.monotonic() + 200
    while len(read_metrics(metrics)) < 10:
        assert process.poll() is None and time.monotonic() < deadline, "it should be killed while it trains"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(config)
    for name in ("model", "encoder"):
        files = [Path(out) / name / "model.safetensors" for out in (config.out, finished.out)]
        assert sha256_file(files[0]) == sha256_file(files[1])


def test_shards_in_the_authors_layout_train_by_the_same_command(
    finished: EgoM2PTrainConfig, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, and beside a store of ours; gray rgb is given and never asked for."""
    for name, folder in (("rgb", "rgb/gray"), ("camera", "cam/gray")):
        shutil.copytree(place / "tokens" / name, tmp_path / "theirs" / folder)
    words = [
        f"authors={tmp_path / 'theirs'}",
        "data_sets=[{name: gray, modalities: [rgb, camera], only_input: [rgb]}]",
        f"tokenizers=[{','.join(finished.tokenizers)}]",
        "size=nano",
        "masking.input_tokens=24",
        "masking.target_tokens=24",
        "val_fraction=0.2",
        "trainer.steps=2",
        "trainer.batch_size=4",
    ]
    assert main(["pretrain", "egom2p", *words, f"out={tmp_path / 'alone'}"]) == 0
    assert set(json.loads((tmp_path / "alone/validation.json").read_text())) == {"camera"}
    assert main(["pretrain", "egom2p", *words, f"tokens=[{place / 'tokens'}]", f"out={tmp_path / 'both'}"]) == 0
    bundle = load_egom2p(tmp_path / "both")
    assert bundle.provenance["data"].keys() == {"tokens 0", "tokens 1"}
    assert set(bundle.model.config.names) == {"rgb", "depth", "gaze", "camera"}
    capsys.readouterr()
    assert main(["pretrain", "egom2p", *words[:1], *words[2:], f"out={tmp_path / 'no'}"]) == 2
    assert "both or neither" in capsys.readouterr().err


def test_the_encoder_reads_what_the_model_reads(finished: EgoM2PTrainConfig) -> None:
    """Its tokens are the model's encoder features of the clip's first steps of rgb tokens."""
    encoder = load_encoder(Path(finished.out) / "encoder")
    assert encoder.spec.frames == 5 and encoder.spec.grid == (2, 2, 2) and encoder.spec.fps == 8.0
    bundle = load_egom2p(finished.out)
    clip = open_store(Path(finished.tokens[0]).parent / "clips").read(5)
    assert clip.rgb is not None
    predictor = Predictor(bundle)
    tokens = predictor.encode([clip], ["rgb"])["rgb"][:, : encoder.spec.tokens]
    part = TokenSet.of(bundle.model.config, "rgb", tokens, torch.arange(encoder.spec.tokens)[None])
    with torch.inference_mode():
        seen = encoder(encoder.preprocess(torch.from_numpy(clip.rgb[None, :5])))
        expected = bundle.model.features(part)
    torch.testing.assert_close(seen.tokens, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.pooled, expected.mean(1), atol=1e-5, rtol=1e-5)


def test_an_encoder_of_fewer_frames_reads_the_first_tokens(finished: EgoM2PTrainConfig) -> None:
    encoder = load_encoder(Path(finished.out) / "encoder")
    before = torch.get_rng_state()
    short = encoder.shortened(1)
    assert torch.equal(before, torch.get_rng_state())
    assert (short.spec.frames, short.spec.grid, short.spec.fps) == (1, (1, 2, 2), 0.0) and not short.training
    assert short.spec.weights_sha256 == encoder.spec.weights_sha256
    assert short.spec.fingerprint() != encoder.spec.fingerprint()
    assert encoder.shortened(2) is encoder.shortened(5) is encoder
    clip = made_clip(5).rgb
    bundle = load_egom2p(finished.out)
    tokens = Predictor(bundle).encode([made_clip(5)], ["rgb"])["rgb"][:, :4]
    with torch.inference_mode():
        seen = short(short.preprocess(torch.from_numpy(clip[None, :1])))
        expected = bundle.model.features(TokenSet.of(bundle.model.config, "rgb", tokens, torch.arange(4)[None]))
    torch.testing.assert_close(seen.tokens, expected, atol=1e-5, rtol=1e-5)


def test_prediction_has_physical_units(finished: EgoM2PTrainConfig, place: Path) -> None:
    store = open_store(place / "clips")
    clips = [store.read(index) for index in (4, 5)]
    predictor = Predictor(load_egom2p(finished.out))
    targets = [Target(modality=name, steps=2) for name in ("depth", "gaze", "camera")]
    results = predictor.predict(clips, given=["rgb"], targets=targets, seed=3)
    for result in results:
        assert result["depth"].shape == (16, SIZE, SIZE) and 0 <= result["depth"].min() <= result["depth"].max() <= 1
        assert result["gaze"].shape == (60, 2) and np.isfinite(result["gaze"]).all()
        assert result["camera"].shape == (60, 4, 4)
        np.testing.assert_allclose(result["camera"][0], np.eye(4), atol=1e-5)
    again = predictor.predict(clips[1:], given=["rgb"], targets=targets, seed=4)
    np.testing.assert_allclose(again[0]["camera"], results[1]["camera"], atol=1e-4)


def test_the_mean_is_one_and_the_same(finished: EgoM2PTrainConfig, place: Path) -> None:
    """No seed, no neighbours in the batch, no other target has a part in it; its poses are rigid."""
    store = open_store(place / "clips")
    clips = [store.read(index) for index in (4, 5)]
    predictor = Predictor(load_egom2p(finished.out))
    targets = [Target(modality=name, steps=2) for name in ("depth", "gaze", "camera")]
    both = predictor.predict(clips, given=["rgb"], targets=targets, seed=3, estimate="mean")
    assert both[0]["depth"].shape == (16, SIZE, SIZE) and both[0]["gaze"].shape == (60, 2)
    rotation = both[0]["camera"][:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (60, 1, 1)), atol=1e-5)
    alone = predictor.predict(clips[1:], given=["rgb"], targets=targets[1:], seed=4, estimate="mean")
    for name in ("gaze", "camera"):
        np.testing.assert_allclose(alone[0][name], both[1][name], atol=1e-4)
    fast = predictor.predict(clips, given=["rgb"], targets=targets, mode="fast", estimate="mean")
    np.testing.assert_allclose(fast[0]["camera"], both[0]["camera"], atol=0.02)
    for wrong in ({"estimate": "median"}, {"mode": "slow"}):
        with pytest.raises(ValueError, match="expected one of"):
            predictor.predict(clips, given=["rgb"], targets=targets, **wrong)


def test_a_glance_reads_two_images(finished: EgoM2PTrainConfig, place: Path) -> None:
    """Every other token of the first and the last frame, the first frame's as the whole clip has them; nothing between counts."""
    store = open_store(place / "clips")
    clips = [store.read(index) for index in (4, 5)]
    predictor = Predictor(load_egom2p(finished.out))
    steps, rows, columns = predictor.tokenizers["rgb"].spec.grid.shape
    glance = predictor.glance(clips, ["rgb", "gaze"])
    sequence = predictor.tokenizers["gaze"].spec.grid.tokens
    assert glance.count == sequence + 2 * -(-rows * columns // 2) and len(glance) == 2
    video = glance.position[0, sequence:].reshape(2, -1)
    assert torch.equal(video[1] - video[0], torch.full_like(video[0], (steps - 1) * rows * columns))
    assert ((video[0] // columns + video[0] % columns) % 2 == 0).all()
    whole = predictor.encode(clips, ["rgb"])["rgb"]
    first = glance.ids[:, sequence : sequence + video.shape[1]]
    # Tokenized in bfloat16 on some machines.
    assert (first == whole[:, video[0]]).float().mean() >= 0.75
    targets = [Target(modality=name) for name in ("depth", "camera")]
    middle = [clip.replace(rgb=np.concatenate([clip.rgb[:1], 255 - clip.rgb[1:-1], clip.rgb[-1:]])) for clip in clips]
    for estimate in ("sample", "mean"):
        seen, again = (
            predictor.predict(c, given=["rgb"], targets=targets, mode="glance", estimate=estimate)
            for c in (clips, middle)
        )
        assert seen[0]["depth"].shape == (16, SIZE, SIZE) and seen[0]["camera"].shape == (60, 4, 4)
        np.testing.assert_array_equal(seen[0]["camera"], again[0]["camera"])
    predictor.tokenizers["rgb"] = predictor.tokenizers["gaze"]  # any that cannot tokenize an image alone
    with pytest.raises(ValueError, match="takes whole clips only; use mode=fast"):
        predictor.predict(clips, given=["rgb"], targets=targets, mode="glance")


def test_truth_has_gaps_where_the_clip_has(finished: EgoM2PTrainConfig) -> None:
    clip = made_clip(4)
    assert clip.gaze is not None
    clip.gaze[7:9] = np.nan
    predictor = Predictor(load_egom2p(finished.out))
    np.testing.assert_allclose(predictor.truth(clip, "gaze"), clip.gaze, atol=1e-4)
    assert predictor.truth(clip.replace(gaze=None), "gaze") is None


def test_predict_command_writes_arrays_a_picture_and_a_video(
    finished: EgoM2PTrainConfig, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={finished.out}", f"clip={place / 'clips'}:6", "given=[depth]", "want=[rgb,gaze,camera]"]
    assert main(["predict", *words, f"out={tmp_path / 'out'}", "steps=2"]) == 0
    made = tmp_path / "out/made-06"
    with np.load(made / "prediction.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"rgb", "gaze", "camera"} and arrays["rgb"].dtype == np.uint8
    assert (made / "picture.png").stat().st_size > 5000 and (made / "video.mp4").stat().st_size > 1000
    record = json.loads((tmp_path / "out/prediction.json").read_text())
    assert record["clips"] == ["made-06"] and record["settings"]["want"] == ["rgb", "gaze", "camera"]
    assert str(made) in capsys.readouterr().out
    assert main(["predict", *words, f"out={tmp_path / 'mean'}", "estimate=mean"]) == 0
    with np.load(tmp_path / "mean/made-06/prediction.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"rgb", "gaze", "camera"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["given=[sound]"], "unknown modality 'sound'"),
        (["given=[rgb]", "want=[rgb]"], "given already"),
        (["given=[hands]", "want=[rgb]"], "not a modality of this model"),
        (["given=[rgb]", "want=[hands]"], "not a modality of this model"),
        (["clip={place}/clips:99"], "clips 0 to 19"),
        (["clip={place}/clips:2", "given=[gaze]", "want=[rgb]"], "no gaze"),
        (["steps=99", "want=[camera]"], "steps"),
        (["estimate=median"], "expected one of sample, mean"),
        (["estimate=mean", "top_p=0.5"], "top_p: estimate=mean draws nothing"),
        (["checkpoint={place}/clips"], "no EgoM2P model"),
    ],
)
def test_predict_refuses_what_makes_no_sense(
    finished: EgoM2PTrainConfig,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    plain = [f"checkpoint={finished.out}", f"clip={place / 'clips'}:4", f"out={tmp_path}"]
    given = {word.partition("=")[0] for word in words}
    words = [w for w in plain if w.partition("=")[0] not in given] + [w.format(place=place) for w in words]
    assert main(["predict", *words]) == 2
    assert said in capsys.readouterr().err


def test_another_tokenizer_beside_the_model_is_refused(finished: EgoM2PTrainConfig, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished.out, tmp_path / "run")
    torch.manual_seed(9)
    other = VqSequenceTokenizer(VqSequenceConfig.for_modality("gaze", "nano"), name="gaze", modalities=("gaze",))
    save_tokenizer(tmp_path / "run/tokenizers/gaze", other)
    with pytest.raises(ValueError, match="not one that"):
        load_egom2p(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/tokenizers/gaze")
    with pytest.raises(ValueError, match="no tokenizer for gaze"):
        load_egom2p(tmp_path / "run")


def test_other_tokenizers_than_made_the_store_are_refused(place: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    other = VqSequenceTokenizer(VqSequenceConfig.for_modality("gaze", "nano"), name="gaze", modalities=("gaze",))
    save_tokenizer(tmp_path / "gaze", other)
    wrong = (*(str(place / "tokenizers" / name) for name in ("camera", "video")), str(tmp_path / "gaze"))
    with pytest.raises(ValueError, match="gaze"):
        run(config_for(place, tmp_path / "out", tokenizers=wrong))
    with pytest.raises(ValueError, match="hands"):
        run(config_for(place, tmp_path / "out", modalities=("rgb", "hands")))


# -------------------------------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def load(place: Path) -> LoadTokens:
    store = open_tokens(place / "tokens")
    config = EgoM2PConfig.of_size("nano", store.grids)
    return LoadTokens([store, store], config, MaskingConfig(input_tokens=30, target_tokens=20))


def test_batches_hold_the_tokens_of_their_clips(load: LoadTokens, place: Path) -> None:
    store = open_tokens(place / "tokens")
    assert len(load) == 2 * CLIPS
    ids = [(3, 11), (CLIPS + 2, 12), (7, 13)]
    batch = load(ids)
    assert unpack(batch, "target").count <= 20
    for row, (index, _) in enumerate(ids):
        clip = store.read(index % CLIPS)
        seen: set[tuple[str, int]] = set()
        for prefix in ("input", "target"):
            valid = batch[f"{prefix}_valid"][row]
            slots = (batch[f"{prefix}_{field}"][row][valid].tolist() for field in ("ids", "modality", "position"))
            for token, kind, position in zip(*slots, strict=True):
                name = load.config.names[kind]
                assert clip[name][position] == token
                assert (name, position) not in seen, "given and asked for, or twice"
                seen.add((name, position))
        assert len(seen) == min(50, sum(map(len, clip.values())))
    counts = target_counts(batch, load.config)
    assert sum(counts.values()) == 60


def test_a_batch_is_a_function_of_its_ids(load: LoadTokens) -> None:
    plan = BatchPlan(indices=tuple(range(CLIPS)), batch_size=4, seed=5)
    one, two = load(plan.at(3)), load(plan.at(3))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["input_ids"], load(plan.at(4))["input_ids"])


def test_clips_that_lack_a_modality_are_named_in_no_batch(place: Path) -> None:
    store = open_tokens(place / "tokens")
    assert "gaze" not in store.read(2) and "depth" not in store.read(3)
    artifact = load_artifact(place / "tokenizers/gaze")
    assert store.tokenizers["gaze"] == artifact.sha256


def test_a_run_is_a_subject_of_the_probe(finished: EgoM2PTrainConfig, place: Path) -> None:
    from pretrain.downstream.subjects import load_subject

    trained, untrained = load_subject(finished.out), load_subject(f"random:{finished.out}")
    assert trained.predictor is not None and untrained.predictor is not None
    assert trained.sha256 != untrained.sha256 and trained.fingerprint != untrained.fingerprint
    assert trained.encoder.spec.frames == 5 and not trained.has_text
    assert trained.training is not None
    assert trained.training.clips_sha256 == open_store(place / "clips").manifest_sha256
    assert (
        untrained.predictor.tokenizers["rgb"].spec.weights_sha256
        == trained.predictor.tokenizers["rgb"].spec.weights_sha256
    )


def test_probe_measures_the_four_tasks(
    finished: EgoM2PTrainConfig, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On other clips than were trained on: a table a task, with the model, its untrained twin and the baselines."""
    build_store(
        tmp_path / "other",
        _other_clip,
        kind="test",
        seed=1,
        settings={},
        versions={},
        n_clips=15,
        clips_per_shard=8,
        workers=1,
    )
    words = [f"encoder=[{finished.out},random:{finished.out}]", f"data={tmp_path / 'other'}", f"out={tmp_path / 'out'}"]
    assert main(["probe", *words, "benchmark=four-tasks", "names=[EgoM2P,untrained]", "threads=1", "mode=fast"]) == 0
    printed = capsys.readouterr().out
    for task in ("gaze", "camera", "depth", "rgb"):
        assert f"four-tasks {task}" in printed
    results = load_results(tmp_path / "out/probe.json")
    mine = {result.benchmark: result for result in results if result.encoder == "EgoM2P"}
    assert {metric.name for metric in mine["four-tasks gaze"].metrics} >= {"MSE", "seconds a clip"}
    columns = {result.encoder for result in results if result.benchmark == "four-tasks camera"}
    sampled = {f"{name}{way}" for name in ("EgoM2P", "untrained") for way in (", sampled", ", another clip given")}
    assert {"EgoM2P", "untrained", "visual odometry", "still camera"} | sampled <= columns
    assert all(result.protocol["items"] == 12 for result in results)
    assert main(["probe", f"encoder={finished.out}", f"data={place / 'clips'}", "benchmark=four-tasks"]) == 2
    assert main(["probe", "encoder=random:egodtm-tiny", f"data={tmp_path / 'other'}", "benchmark=four-tasks"]) == 2
    assert "needs EgoM2P" in capsys.readouterr().err


def test_another_clip_stands_in(finished: EgoM2PTrainConfig) -> None:
    """A blind prediction is the sighted one of the clip before; alone there is none."""
    from pretrain.downstream.four_tasks_probe import BLIND, EgoM2PPredictor
    from pretrain.downstream.subjects import load_subject

    subject = load_subject(finished.out)
    clips = [_other_clip(index) for index in range(3)]
    blind = EgoM2PPredictor(subject, mode="exact", way=BLIND).predict(clips)
    sighted = EgoM2PPredictor(subject, mode="exact").predict(clips)
    assert blind.gaze is not None and sighted.gaze is not None
    for place in range(3):
        np.testing.assert_allclose(blind.gaze[place], sighted.gaze[place - 1], atol=1e-3)
    alone = EgoM2PPredictor(subject, mode="exact", way=BLIND).predict(clips[:1])
    assert alone.gaze is None and alone.depth is None


def _other_clip(index: int) -> Clip:
    clip = made_clip(index + 100)
    return clip.replace(intrinsics=np.array([[14.0, 0, 8], [0, 14.0, 8], [0, 0, 1]]), depth=made_clip(0).depth)

"""`egoarm tokenize train` and `egoarm tokenize store` on a small made-up store: exact resumption, counts, refusals."""

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

from egoarm import COMMANDS, compose, main
from pretrain.artifact import load_artifact, sha256_file
from pretrain.checkpoints import read_metrics
from pretrain.clips.build import build_store
from pretrain.clips.schema import Clip
from pretrain.clips.store import open_store
from pretrain.egom2p.modalities import MODALITIES
from pretrain.egom2p.tokenizers import store as tokenize_store
from pretrain.egom2p.tokenizers.store import TokenStoreConfig
from pretrain.egom2p.tokenizers.tokenizer import load_tokenizer, save_tokenizer
from pretrain.egom2p.tokenizers.train import LoadArrays, TokenizerTrainConfig, run
from pretrain.egom2p.tokenizers.validation import MEASURES, clip_mean, split_mask
from pretrain.egom2p.tokens import open_tokens, require_tokenizers
from pretrain.egom2p.windows import cut_window, random_square, random_start_s, read_modalities, window_count
from pretrain.loop import TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
SIZE = 24
CLIPS = 14
STEPS = 24


def made_clip(index: int) -> Clip:
    """A square that moves over a slope, a head that turns, gaze on the square, one hand beside it. Clip 3 has no gaze, clip 4
    a gaze that is NaN all through, clip 5 no depth, clip 6 is 4.5 s long, clip 7 is too short for all but words."""
    random = np.random.default_rng(index)
    seconds = {6: 4.5, 7: 1.0}.get(index, 2.0)
    frames, samples = round(8 * seconds), round(30 * seconds)
    rgb = np.full((frames, SIZE, SIZE, 3), 90, np.uint8)
    depth = np.broadcast_to(np.linspace(2, 1, SIZE, dtype=np.float32)[:, None], (frames, SIZE, SIZE)).copy()
    left = (np.arange(frames) * 2 + index) % (SIZE - 6)
    for frame in range(frames):
        rgb[frame, 8:14, left[frame] : left[frame] + 6] = random.integers(150, 255, 3)
        depth[frame, 8:14, left[frame] : left[frame] + 6] = 0.6
    angle = np.cumsum(random.normal(0, 0.01, samples))
    poses = np.tile(np.eye(4), (samples, 1, 1))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angle)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(angle), -np.sin(angle)
    poses[:, :3, 3] = np.cumsum(random.normal(0, 0.005, (samples, 3)), axis=0)
    gaze = np.stack([np.linspace(4, 20, samples), np.full(samples, 11.0)], axis=1).astype(np.float32)
    if index == 4:
        gaze[:] = np.nan
    hands = (random.normal(0, 0.05, (1, 2, 21, 3)) + np.linspace(0, 0.2, samples)[:, None, None, None]).astype(
        np.float32
    )
    hands[:, index % 2] = np.nan
    return Clip(
        key=f"made-{index:02d}",
        rgb=rgb,
        rgb_times_s=np.arange(frames) / 8,
        depth=None if index == 5 else depth,
        world_from_camera=poses,
        gaze=None if index == 3 else gaze,
        hands=hands,
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clips") / "store"
    build_store(
        directory, made_clip, kind="made", seed=0, settings={}, versions={}, n_clips=CLIPS, clips_per_shard=5, workers=1,
    )  # fmt: skip
    return directory


def config_for(clips: Path, out: Path, *modality: str, trainer: dict | None = None, **changes) -> TokenizerTrainConfig:
    given = {"steps": STEPS, "batch_size": 4, "warmup_steps": 3, "threads": 1, "checkpoint_every": 100, "log_every": 1}
    return TokenizerTrainConfig(
        modality=modality,
        data=str(clips),
        out=str(out),
        size="nano",
        val_fraction=0.3,
        trainer=TrainerConfig(
            accelerator="cpu", precision="32-true", **({"learning_rate": 1e-3} | given | (trainer or {}))
        ),
        **changes,
    )


def words_for(config: TokenizerTrainConfig) -> list[str]:
    """The same on the command line."""
    trainer = [f"trainer.{key}={value}" for key, value in vars(config.trainer).items()]
    own = {name: getattr(config, name) for name in ("data", "out", "size", "val_fraction")}
    modality = f"modality=[{','.join(config.modality)}]"
    return ["tokenize", "train", modality, *(f"{key}={value}" for key, value in own.items()), *trainer]


@pytest.fixture(scope="module")
def trained(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nothing interrupted: modality -> directory of the run."""
    base = tmp_path_factory.mktemp("runs")
    runs = {"video": ("rgb", "depth"), "gaze": ("gaze",), "camera": ("camera",), "hands": ("hands",)}
    for name, modalities in runs.items():
        network = {"image_size": 16} if name == "video" else {}
        run(config_for(clips, base / name, *modalities, **network))
    return {name: base / name for name in runs}


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name", ["video", "gaze", "camera", "hands"])
def test_training_lowers_the_loss_and_measures_reconstruction(trained: dict[str, Path], name: str) -> None:
    rows = read_metrics(trained[name] / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    field = "l1" if name == "video" else "reconstruction"
    first, last = (float(np.mean([row[field] for row in part])) for part in (rows[:8], rows[-8:]))
    assert last < first
    tokenizer = load_tokenizer(trained[name] / "tokenizer")
    assert tokenizer.spec.modalities == (("rgb", "depth") if name == "video" else (name,))
    report = json.loads((trained[name] / "validation.json").read_text())
    assert report.keys() == set(tokenizer.spec.modalities)
    units = {"rgb": "psnr_db", "depth": "psnr_db", "gaze": "error_px", "camera": "rotation_deg", "hands": "joint_m"}
    for modality, scores in report.items():
        assert scores["clips"] + sum(scores["skipped"].values()) == 4 and scores["clips"] >= 2
        assert scores["mse"] > 0 and scores["mse_clip_mean"] > 0 and np.isfinite(scores["physical"][units[modality]])
        assert scores["physical"].keys() == scores["physical_clip_mean"].keys()
        assert (
            1 <= scores["codes_used"] <= scores["vocabulary"]
            and 1 <= scores["perplexity"] <= scores["codes_used"] + 1e-3
        )
    artifact = load_artifact(trained[name] / "tokenizer")
    assert artifact.provenance["step"] == STEPS and artifact.provenance["data"]["clips"]


def test_standardisation_comes_from_the_training_clips(trained: dict[str, Path]) -> None:
    state = load_tokenizer(trained["camera"] / "tokenizer").state_dict()
    assert state["mean"][0] > 0.9 and state["std"].min() > 0  # R[0, 0] of a head that turns little


@pytest.mark.parametrize(("name", "modality"), [("video", ("rgb", "depth")), ("camera", ("camera",))])
def test_a_tokenizer_run_killed_at_any_moment_ends_with_the_same_weights(
    clips: Path, trained: dict[str, Path], tmp_path: Path, name: str, modality: tuple[str, ...], monkeypatch
) -> None:
    from pretrain.checkpoints import Checkpoints

    network = {"image_size": 16} if name == "video" else {}
    config = config_for(clips, tmp_path / name, *modality, trainer={"checkpoint_every": 5}, **network)
    save, saved = Checkpoints.save, []

    def die_after_the_second(self, *arguments):
        saved.append(save(self, *arguments))
        if len(saved) == 2:
            raise SystemExit

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Checkpoints, "save", die_after_the_second)
        run(config)
    assert not (tmp_path / name / "tokenizer").exists()
    run(config)
    for path in ("tokenizer/model.safetensors", "validation.json"):
        assert sha256_file(tmp_path / name / path) == sha256_file(trained[name] / path)
    strip = lambda rows: [{k: v for k, v in row.items() if k != "clips_per_s"} for row in rows]  # noqa: E731
    assert strip(read_metrics(tmp_path / name / "metrics.jsonl")) == strip(
        read_metrics(trained[name] / "metrics.jsonl")
    )


def test_a_finished_tokenizer_says_so_and_another_is_refused(
    clips: Path, trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(clips, trained["gaze"], "gaze")
    assert main(words_for(config)) == 0
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"another configuration \(seed: 0 there, 1 now\)"):
        run(config_for(clips, trained["gaze"], "gaze", seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": ("gaze", "camera")}, "only rgb and depth share a tokenizer"),
        ({"modality": ("rgb", "rgb")}, "each once"),
        ({"modality": ()}, "expected names in brackets"),
        ({"modality": ("smell",)}, "unknown modality 'smell'"),
        ({"modality": ("gaze",), "image_size": 64}, "has no images"),
        ({"size": "huge"}, "size: expected one of nano, tiny"),
        ({"network": {"codebok_size": 9}}, "did you mean 'codebook_size'"),
        ({"network": {"samples_per_token": 7}}, "not a multiple of samples_per_token"),
        ({"least_crop": 0.0}, "least_crop: expected a number above 0"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerTrainConfig(**({"modality": ("gaze",), "data": "d", "out": "o"} | changes))


def test_the_yaml_has_the_defaults_of_the_dataclass() -> None:
    config = compose(COMMANDS["tokenize train"], ["modality=[gaze]", "data=x", "out=y", "+network.codebook_size=64"])
    assert config == TokenizerTrainConfig(modality=("gaze",), data="x", out="y", network={"codebook_size": 64})
    config = compose(COMMANDS["tokenize store"], ["tokenizers=[a,b]", "data=x", "out=y"])
    assert config == TokenStoreConfig(tokenizers=("a", "b"), data="x", out="y")


def test_clips_without_the_modality_give_their_place(clips: Path, tmp_path: Path) -> None:
    load = LoadArrays(clips, modalities=("gaze",), size=0, pool=range(CLIPS), least_crop=1)
    arrays = [load.sample(3, seed) for seed in range(5)]
    assert all(array.shape == (60, 3) for array in arrays)
    np.testing.assert_array_equal(load.sample(3, 2), arrays[2])
    bare = [made_clip(index).replace(gaze=None) for index in range(4)]
    build_store(
        tmp_path / "bare", bare.__getitem__, kind="made", seed=0, settings={}, versions={}, n_clips=4, clips_per_shard=4,
        workers=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"none of 200 clips drawn has gaze .*no gaze \(200\)"):
        LoadArrays(tmp_path / "bare", modalities=("gaze",), size=0, pool=range(4), least_crop=1).sample(0, 0)


# ------------------------------------------------------------------------------------------------------------- windows


def test_windows_of_a_long_clip(clips: Path) -> None:
    store = open_store(clips)
    clip = read_modalities(store, 6, tuple(MODALITIES))
    assert window_count(clip) == 2 and window_count(made_clip(0)) == 1
    second = cut_window(clip, 2.0)
    whole = made_clip(6)
    np.testing.assert_array_equal(
        MODALITIES["depth"].to_array(second, SIZE), MODALITIES["depth"].to_array(whole.replace(
            rgb=whole.rgb[16:], rgb_times_s=whole.rgb_times_s[16:], depth=clip.depth[16:]), SIZE)
    )  # fmt: skip
    np.testing.assert_array_equal(second.gaze, clip.gaze[60:])
    np.testing.assert_array_equal(second.world_from_camera, clip.world_from_camera[60:])
    random = np.random.default_rng(0)
    for name in MODALITIES:
        one = read_modalities(store, 6, (name,))
        starts = {round(random_start_s(one, name, random), 4) for _ in range(60)}
        assert len(starts) > 10 and min(starts) >= 0 and max(starts) <= 2.52
        for start in starts:
            MODALITIES[name].to_array(cut_window(one, start), SIZE)
        short = read_modalities(store, 0, (name,))
        assert random_start_s(short, name, random) == 0


def test_reading_decodes_what_a_modality_needs(clips: Path) -> None:
    store = open_store(clips)
    gaze = read_modalities(store, 0, ("gaze",))
    assert gaze.rgb.shape == (1, SIZE, SIZE, 3) and gaze.depth is None and gaze.world_from_camera is None
    both = read_modalities(store, 0, ("gaze", "camera", "rgb"))
    assert len(both.rgb) == 16 and both.depth is None and both.world_from_camera is not None
    assert read_modalities(store, 3, ("gaze",)).gaze is None  # clip 3 has none
    everything = read_modalities(store, 5, tuple(MODALITIES))
    assert everything.depth is None and everything.hands is not None and len(everything.rgb) == 16


def test_random_squares_stay_inside() -> None:
    sides = set()
    for seed in range(40):
        clip = random_square(made_clip(0), np.random.default_rng(seed), 0.5)
        assert clip.rgb.shape[1] == clip.rgb.shape[2] and clip.depth.shape == clip.rgb.shape[:3]
        sides.add(clip.rgb.shape[1])
    assert min(sides) >= SIZE // 2 and max(sides) <= SIZE and len(sides) > 5


@pytest.mark.parametrize("name", list(MODALITIES))
def test_measures_are_zero_for_the_truth_and_see_an_error(name: str) -> None:
    clip = made_clip(0)
    truth, weight = split_mask(name, MODALITIES[name].to_array(clip, SIZE))
    context = {"image": (SIZE, SIZE)}
    perfect = MEASURES[name](truth, truth, weight, context)
    mean = MEASURES[name](clip_mean(name, truth, weight), truth, weight, context)
    assert perfect.keys() == mean.keys()
    for measure, value in perfect.items():
        assert (value == 100 and mean[measure] < 50) if measure == "psnr_db" else (value < 1e-6 < mean[measure])
    if name == "camera":
        turned = truth.copy()
        turned[:, :3], turned[:, 3:6] = truth[:, 3:6], -truth[:, :3]  # a quarter turn about the camera's axis
        turned[:, 6] += 0.25
        assert MEASURES[name](turned, truth, weight, context) == pytest.approx(
            {"position_m": 0.25, "rotation_deg": 90}, rel=1e-4
        )
    if name == "hands":  # the left one is not known
        assert not weight[:, :63].any() and weight[:, 63:].all()


# --------------------------------------------------------------------------------------------------------------- store


def store_config(clips: Path, trained: dict[str, Path], out: Path, **changes) -> TokenStoreConfig:
    tokenizers = tuple(str(path / "tokenizer") for path in trained.values())
    given = {"clips_per_shard": 4, "batch_size": 3, "accelerator": "cpu", "threads": 1, "tokenizers": tokenizers}
    return TokenStoreConfig(data=str(clips), out=str(out), **(given | changes))


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.suffix in (".tar", ".json")
    }


@pytest.fixture(scope="module")
def tokens(clips: Path, trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token store that nothing interrupted, made by the command."""
    out = tmp_path_factory.mktemp("tokens") / "whole"
    names = ",".join(str(path / "tokenizer") for path in trained.values())
    words = [f"data={clips}", f"tokenizers=[{names}]", f"out={out}", "clips_per_shard=4", "batch_size=3"]
    assert main(["tokenize", "store", *words, "accelerator=cpu", "threads=1"]) == 0
    return out


def test_the_store_holds_what_the_tokenizers_say(clips: Path, trained: dict[str, Path], tokens: Path) -> None:
    store = open_tokens(tokens)
    tokenizers = [load_tokenizer(path / "tokenizer") for path in trained.values()]
    require_tokenizers(store, tokenizers)
    source = open_store(clips)
    keys = [key for key in source.keys if key not in ("made-06", "made-07")]
    assert [store.key(index) for index in range(len(store))] == [*keys[:6], "made-06-0", "made-06-1", *keys[6:]]
    assert store.manifest["clips_sha256"] == source.manifest_sha256
    missing = {"gaze": {"no gaze": 1, "gaze NaN or outside the image all through": 1}, "depth": {"no depth": 1}}
    assert store.manifest["missing"] == missing
    (skipped,) = store.manifest["skipped"]
    assert store.manifest["skipped"][skipped] == 1 and "shorter than 2 s of video" in skipped
    assert store.has(3) == ("rgb", "depth", "camera", "hands") and store.has(5) == ("rgb", "gaze", "camera", "hands")
    for tokenizer in tokenizers:
        for name in tokenizer.spec.modalities:
            array = MODALITIES[name].to_array(made_clip(1).replace(
                rgb=source.read(1).rgb, depth=source.read(1).depth), tokenizer.spec.input_shape[-1])  # fmt: skip
            expected = tokenizer.encode(torch.from_numpy(array[None]))[0]
            np.testing.assert_array_equal(store.read(1)[name], expected.numpy())
    camera = tokenizers[list(trained).index("camera")]
    later = MODALITIES["camera"].to_array(cut_window(made_clip(6), 2.0), 0)
    assert store.key(7) == "made-06-1"
    np.testing.assert_array_equal(store.read(7)["camera"], camera.encode(torch.from_numpy(later[None]))[0].numpy())


def test_a_complete_store_is_left_alone(
    clips: Path, trained: dict[str, Path], tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(tokens)
    tokenize_store.run(store_config(clips, trained, tokens))
    said = capsys.readouterr().out
    assert "already complete: 14 clips of two seconds in 4 shards" in said and str(tokens) in said
    assert "gaze: 12 clips of 30 ids of 16; missing in 1: " in said
    assert "missing in 1: no gaze" in said and "skipped 1: " in said
    assert files_of(tokens) == before
    with pytest.raises(ValueError, match=r"made in another way \(windows was 'all', now 'first'\)"):
        tokenize_store.run(store_config(clips, trained, tokens, windows="first"))
    with pytest.raises(ValueError, match=r"modalities were .*, now rgb, depth, camera"):
        video, camera = (str(trained[name] / "tokenizer") for name in ("video", "camera"))
        tokenize_store.run(store_config(clips, trained, tokens, tokenizers=(video, camera)))


def test_a_store_killed_anywhere_ends_with_the_same_bytes(
    clips: Path, trained: dict[str, Path], tokens: Path, tmp_path: Path, monkeypatch
) -> None:
    """Dies at each write in turn; what the last life finds is all that the earlier ones left."""
    whole = files_of(tokens)
    out = tmp_path / "killed"
    for name in ("write_tar", "write_json"):
        original = getattr(tokenize_store, name)
        calls = 0

        def die(*arguments, original=original):
            nonlocal calls
            calls += 1
            if calls == 2:
                (arguments[0].parent / ".egoarm-tmp-1-torn").write_bytes(b"torn")
                raise SystemExit
            return original(*arguments)

        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(tokenize_store, name, die)
            tokenize_store.run(store_config(clips, trained, out))
        assert not (out / "manifest.json").exists()
    tokenize_store.run(store_config(clips, trained, out))
    assert files_of(out) == whole
    assert not list(out.rglob(".egoarm-tmp-*"))
    # A shard that is damaged later is made again, and no other.
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    (out / "camera/shard-000001.tar").write_bytes(b"torn")
    tokenize_store.run(store_config(clips, trained, out))
    assert files_of(out) == whole
    assert {path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp} == {"shard-000001.tar"}


@pytest.mark.slow
def test_egom2p_store_killed_by_the_system_ends_with_the_same_bytes(
    clips: Path, trained: dict[str, Path], tokens: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    names = ",".join(str(path / "tokenizer") for path in trained.values())
    words = [f"data={clips}", f"tokenizers=[{names}]", f"out={out}", "clips_per_shard=4", "batch_size=3"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "egoarm.py"), "tokenize", "store", *words, "accelerator=cpu", "threads=1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not list(out.glob("shard-*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    tokenize_store.run(store_config(clips, trained, out))
    assert files_of(out) == files_of(tokens)


def test_wrong_tokenizers_and_places_are_named(clips: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    camera = str(trained["camera"] / "tokenizer")
    with pytest.raises(ValueError, match="are for camera; give one of them"):
        tokenize_store.run(store_config(clips, trained, tmp_path / "a", tokenizers=(camera, camera)))
    with pytest.raises(FileNotFoundError, match="no artifact at"):
        tokenize_store.run(store_config(clips, trained, tmp_path / "a", tokenizers=("/none",)))
    with pytest.raises(ValueError, match=r"tokenizers= is missing"):
        store_config(clips, trained, tmp_path / "a", tokenizers=())
    short = TokenizerTrainConfig(modality=("rgb",), data="d", out="o", size="nano", network={"frames": 5}).build()
    save_tokenizer(tmp_path / "short", short)
    with pytest.raises(ValueError, match=r"takes rgb as \[3, 5, 16, 16\], a two-second clip gives \[3, 16, 16, 16\]"):
        tokenize_store.run(store_config(clips, trained, tmp_path / "a", tokenizers=(str(tmp_path / "short"),)))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds something else \(thesis\.tex\)"):
        tokenize_store.run(store_config(clips, trained, tmp_path / "thesis"))
    assert not (tmp_path / "a").exists()


def test_other_tokenizers_are_refused_and_nothing_is_no_store(
    clips: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    camera = str(trained["camera"] / "tokenizer")
    tokenize_store.run(store_config(clips, trained, tmp_path / "a", tokenizers=(camera,)))
    other = TokenizerTrainConfig(modality=("camera",), data="d", out="o", size="nano", seed=5).build()
    save_tokenizer(tmp_path / "other", other)
    with pytest.raises(ValueError, match=r"the tokenizer of camera was \w+\.\.\., now \w+"):
        tokenize_store.run(store_config(clips, trained, tmp_path / "a", tokenizers=(str(tmp_path / "other"),)))
    with pytest.raises(ValueError, match=r"the camera tokens were made by the tokenizer with sha256"):
        require_tokenizers(open_tokens(tmp_path / "a"), [load_tokenizer(tmp_path / "other")])
    build_store(
        tmp_path / "short", _short, kind="made", seed=0, settings={}, versions={}, n_clips=2, clips_per_shard=2,
        workers=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"no clip gives any of camera: shorter than 2 s of camera poses \(2\)"):
        tokenize_store.run(store_config(tmp_path / "short", trained, tmp_path / "b", tokenizers=(camera,)))
    shutil.rmtree(tmp_path / "b")


def _short(index: int) -> Clip:
    return made_clip(7).replace(key=f"short-{index}")

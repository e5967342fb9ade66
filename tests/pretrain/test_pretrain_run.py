"""`egoarm pretrain` end to end on a small store: artifacts, exact resumption, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml

from pretrain.artifact import load_artifact, sha256_file
from pretrain.checkpoints import Metrics, read_metrics, run_lock
from pretrain.egodtm.train import PretrainConfig, run
from pretrain.encoder import load_encoder
from pretrain.loop import TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


def config_for(store: Path, out: Path, *, trainer: dict | None = None, **changes) -> PretrainConfig:
    settings = {"steps": STEPS, "batch_size": 4, "warmup_steps": 5, "threads": 1, "checkpoint_every": 7, "log_every": 1}
    return PretrainConfig(
        data=str(store),
        out=str(out),
        size="nano",
        frames=2,
        trainer=TrainerConfig(accelerator="cpu", **(settings | (trainer or {}))),
        **changes,
    )


def words_for(config: PretrainConfig) -> list[str]:
    """The same on the command line."""
    trainer = [f"trainer.{key}={value}" for key, value in vars(config.trainer).items()]
    return [f"data={config.data}", f"out={config.out}", "size=nano", "frames=2", *trainer]


@pytest.fixture(scope="session")
def finished(square_store: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A run that nothing interrupted."""
    config = config_for(square_store, tmp_path_factory.mktemp("runs") / "whole")
    run(config)
    return config


def weights_sha256(out: str | Path) -> tuple[str, str]:
    return sha256_file(Path(out) / "encoder/model.safetensors"), sha256_file(Path(out) / "model/model.safetensors")


def test_the_encoder_is_an_artifact_with_its_history(finished: PretrainConfig) -> None:
    out = Path(finished.out)
    encoder = load_encoder(out / "encoder")
    assert encoder.spec.name == "egodtm-nano"
    assert encoder.spec.grid == (2, 2, 2) and encoder.spec.fps == pytest.approx(1.0)  # 2 frames, 1 s apart
    artifact = load_artifact(out / "encoder")
    assert artifact.provenance["step"] == STEPS
    assert len(artifact.provenance["data"]["clips"]) == 64
    assert artifact.config["training"]["trainer"]["batch_size"] == 4
    # The towers are one and the same in the whole model, and training moved them.
    whole = load_artifact(out / "model")
    assert whole.kind == "egodtm"
    untrained = load_encoder(f"random:{out / 'encoder'}", seed=finished.seed).state_dict()
    for name, tensor in artifact.tensors.items():
        assert (tensor == whole.tensors[f"video.{name}"]).all()
    assert any((tensor != untrained[name]).any() for name, tensor in artifact.tensors.items())
    assert artifact.tensors["vit.temporal_position"].abs().max() > 0


def test_the_log_has_every_step_and_the_loss_falls(finished: PretrainConfig) -> None:
    rows = read_metrics(Path(finished.out) / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert {"loss", "contrastive", "accuracy", "depth", "learning_rate", "gradient_norm"} <= rows[0].keys()
    first, last = (sum(row["depth"] for row in part) / 10 for part in (rows[:10], rows[-10:]))
    assert last < first
    assert list((Path(finished.out) / "tensorboard").iterdir())
    scores = json.loads((Path(finished.out) / "validation.json").read_text())
    assert scores["clips"] == 3 and 0 < scores["retrieval_chance"] <= 1 and scores["depth_mse_mean"] > 0


def test_depth_is_learned_through_noise_by_the_linear_head(square_store: Path, tmp_path: Path) -> None:
    recipe = {
        "depth_head": "linear",
        "token_noise": 2.0,
        "depth_scaling": "spread",
        "depth_edges": 0.5,
        "depth_weight": 10.0,
    }
    clips = {"crop_area": 0.7, "colour_jitter": 0.25, "still_probability": 0.5}
    trainer = {"steps": 200, "learning_rate": 0.003}
    run(
        config_for(
            square_store,
            tmp_path / "run",
            trainer=trainer,
            contrastive_weight=0.1,
            layers=2,
            stem="conv",
            **recipe,
            **clips,
        )
    )
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    # A constant map is a mean deviation away on average, a sixth of the range; a head that flees the noise is half of the range away.
    assert sum(row["depth"] for row in rows[-20:]) / 20 < 1 / 6
    scores = json.loads((tmp_path / "run/validation.json").read_text())
    assert scores["depth_mse"] < 0.25


def test_a_finished_run_says_so(finished: PretrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights_sha256(finished.out)
    began = time.monotonic()
    run(finished)
    assert time.monotonic() - began < 2
    assert "already finished" in capsys.readouterr().out
    assert weights_sha256(finished.out) == before


def test_egodtm_killed_at_any_moment_ends_with_the_same_weights(finished: PretrainConfig, tmp_path: Path) -> None:
    config = config_for(Path(finished.data), tmp_path / "killed")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "egoarm.py"), "pretrain", *words_for(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    metrics = Path(config.out) / "metrics.jsonl"
    while len(read_metrics(metrics)) < 17:
        assert process.poll() is None and time.monotonic() < deadline, "it should be killed while it trains"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/encoder").exists()
    left = sorted(path.name for path in (tmp_path / "killed/checkpoints").glob("step-*"))
    assert left and left[-1] < f"step-{STEPS:08d}"
    run(config)
    assert weights_sha256(config.out) == weights_sha256(finished.out)
    assert [row["step"] for row in read_metrics(metrics)] == list(range(1, STEPS + 1))


def test_a_polite_stop_keeps_the_step_it_reached(
    finished: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(Path(finished.data), tmp_path / "stopped", trainer={"checkpoint_every": 1000})
    write = Metrics.write

    def interrupting(metrics: Metrics, step: int, scalars: Mapping[str, float]) -> None:
        write(metrics, step, scalars)
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Metrics, "write", interrupting)
        run(config)
    (checkpoint,) = (tmp_path / "stopped/checkpoints").glob("step-*")
    assert 5 <= json.loads((checkpoint / "state.json").read_text())["step"] < STEPS
    run(config)
    assert weights_sha256(config.out) == weights_sha256(finished.out)


def test_a_damaged_checkpoint_is_passed_over(
    finished: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    out = tmp_path / "damaged"
    shutil.copytree(finished.out, out)
    shutil.rmtree(out / "encoder")
    newest = max((out / "checkpoints").glob("step-*"))
    with open(newest / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    run(config_for(Path(finished.data), out))
    said = capsys.readouterr().out
    assert f"checkpoint {newest} is damaged (model.safetensors differs from its sha256)" in said
    assert "going on from step 56 of 60" in said
    assert weights_sha256(out) == weights_sha256(finished.out)


def test_a_damaged_encoder_is_made_again(finished: PretrainConfig, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "damaged"
    shutil.copytree(finished.out, out)
    (out / "encoder/model.safetensors").write_bytes(b"torn")
    run(config_for(Path(finished.data), out))
    assert weights_sha256(out) == weights_sha256(finished.out)


def test_another_configuration_is_refused_until_told(finished: PretrainConfig, tmp_path: Path) -> None:
    out, store = tmp_path / "run", Path(finished.data)
    run(config_for(store, out, trainer={"steps": 2}))
    with pytest.raises(ValueError, match=r"seed: 0 there, 5 now; trainer\.steps: 2 there, 3 now.*overwrite=true"):
        run(config_for(store, out, trainer={"steps": 3}, seed=5))
    # What does not touch the weights may change.
    run(config_for(store, out, trainer={"steps": 2, "log_every": 50, "prefetch": 1}))
    run(config_for(store, out, trainer={"steps": 3}, seed=5, overwrite=True))
    assert load_artifact(out / "encoder").provenance["step"] == 3
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == [1, 2, 3]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty \(thesis\.tex\) and is not a training run"):
        run(config_for(store, foreign, trainer={"steps": 2}, overwrite=True))
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


def test_a_run_from_before_a_setting_existed_goes_on(finished: PretrainConfig, tmp_path: Path) -> None:
    """Its directory does not name the later settings; at their defaults they are what it did."""
    config = config_for(Path(finished.data), tmp_path / "older", trainer={"steps": 2})
    run(config)
    written = yaml.safe_load((tmp_path / "older/config.yaml").read_text())
    assert not {"contrastive", "depth_memory", "stem", "snapshots"} & written.keys()
    assert "micro_batch" not in written["trainer"] and written["trainer"]["batch_size"] == 4
    run(config)
    with pytest.raises(ValueError, match=r"trainer\.micro_batch: 'absent' there, 2 now"):
        run(config_for(Path(finished.data), tmp_path / "older", trainer={"steps": 2, "micro_batch": 2}))
    with pytest.raises(ValueError, match=r"contrastive: 'absent' there, 'siglip' now"):
        run(config_for(Path(finished.data), tmp_path / "older", trainer={"steps": 2}, contrastive="siglip"))


def test_a_run_of_micro_batches(finished: PretrainConfig, tmp_path: Path) -> None:
    """trainer.micro_batch changes what is in memory, not what is learnt, with either contrastive loss."""
    for name, changes in {"a": {}, "b": {"contrastive": "siglip", "depth_error": "silog"}}.items():
        metrics = []
        for micro_batch in (0, 3):
            out = tmp_path / f"{name}{micro_batch}"
            run(config_for(Path(finished.data), out, trainer={"steps": 4, "micro_batch": micro_batch}, **changes))
            metrics.append(read_metrics(out / "metrics.jsonl"))
        for plain, cached in zip(*metrics, strict=True):
            for field in ("loss", "contrastive", "depth", "accuracy", "gradient_norm"):
                assert cached[field] == pytest.approx(plain[field], rel=1e-3), field


def test_a_run_from_clip_weights(finished: PretrainConfig, tmp_path: Path) -> None:
    """The towers start from the file, the run is known by its content, and the artifact names it."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from safetensors.torch import save_file

    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        vision = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=16, image_size=32)
        clip = CLIP(embed_dim=256, vision_cfg=vision, text_cfg=CLIPTextCfg(width=32, heads=2, layers=2))
        files.append(tmp_path / f"clip{seed}.safetensors")
        save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, files[-1])
    store, out = Path(finished.data), tmp_path / "run"
    run(config_for(store, out, trainer={"steps": 0}, init=str(files[1])))
    tensors = load_artifact(out / "encoder").tensors
    assert torch.equal(torch.as_tensor(tensors["vit.class_token"]), clip.visual.class_embedding.detach())
    assert load_artifact(out / "encoder").provenance["parents"] == {"init": sha256_file(files[1])}
    files[1].rename(tmp_path / "moved.safetensors")
    run(config_for(store, out, trainer={"steps": 0}, init=str(tmp_path / "moved.safetensors")))
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        run(config_for(store, out, trainer={"steps": 0}, init=str(files[0])))
    with pytest.raises(FileNotFoundError, match=r"init=.*no such file"):
        run(config_for(store, tmp_path / "other", trainer={"steps": 0}, init=str(files[1])))


def test_two_processes_do_not_share_a_run(finished: PretrainConfig, tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"), pytest.raises(ValueError, match="being trained by another process"):
        run(config_for(Path(finished.data), tmp_path / "run"))


def test_zero_steps_save_the_network_as_it_starts(finished: PretrainConfig, tmp_path: Path) -> None:
    run(config_for(Path(finished.data), tmp_path / "zero", trainer={"steps": 0}))
    saved = load_encoder(tmp_path / "zero/encoder")
    control = load_encoder(f"random:{Path(finished.out) / 'encoder'}", seed=0)
    assert saved.spec.weights_sha256 == control.spec.weights_sha256


def test_twins(finished: PretrainConfig, tmp_path: Path) -> None:
    without_depth = config_for(Path(finished.data), tmp_path / "a", trainer={"steps": 2}, depth_weight=0.0)
    run(without_depth)
    assert not any("decoder" in name for name in load_artifact(tmp_path / "a/model").tensors)
    assert "depth" not in read_metrics(tmp_path / "a/metrics.jsonl")[0]
    assert json.loads((tmp_path / "a/validation.json").read_text())["depth_mse"] is None
    run(config_for(Path(finished.data), tmp_path / "b", trainer={"steps": 2}, caption_probability=0.0))
    assert weights_sha256(tmp_path / "b") != weights_sha256(tmp_path / "a")


@pytest.mark.slow
def test_two_processes_train_as_one(finished: PretrainConfig, tmp_path: Path) -> None:
    """The gathered contrastive loss and the averaged gradients make the weights of one process with the whole batch."""
    alone = config_for(Path(finished.data), tmp_path / "one", trainer={"steps": 8})
    run(alone)
    together = config_for(Path(finished.data), tmp_path / "two", trainer={"steps": 8, "devices": 2, "strategy": "ddp"})
    subprocess.run(
        [sys.executable, str(ROOT / "egoarm.py"), "pretrain", *words_for(together)], check=True, capture_output=True
    )
    one, two = (load_artifact(tmp_path / name / "model").tensors for name in ("one", "two"))
    start = load_encoder(f"random:{tmp_path / 'one/encoder'}").state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-2, msg=name)
    moved = max(float((one[f"video.{name}"] - tensor).abs().max()) for name, tensor in start.items())
    assert moved > 2e-3


def test_wrong_settings_are_named(square_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data= is missing"):
        PretrainConfig(data="???", out="x")
    with pytest.raises(ValueError, match="size: expected one of nano, tiny"):
        PretrainConfig(data="x", out="x", size="giant")
    with pytest.raises(ValueError, match="image_size: 100 is not a multiple of the patch"):
        PretrainConfig(data="x", out="x", image_size=100)
    with pytest.raises(ValueError, match="caption_probability: expected a number from 0 to 1, got 2"):
        PretrainConfig(data="x", out="x", caption_probability=2)
    with pytest.raises(ValueError, match="depth_error: silog takes logarithms"):
        PretrainConfig(data="x", out="x", depth_head="linear", depth_error="silog")
    with pytest.raises(ValueError, match="colour_jitter: expected at least 0, got -1"):
        PretrainConfig(data="x", out="x", colour_jitter=-1)
    with pytest.raises(FileNotFoundError):
        run(config_for(tmp_path / "nowhere", tmp_path / "out"))
    with pytest.raises(ValueError, match="batch_size=64 is more than the 29 clips"):
        run(config_for(square_store, tmp_path / "out2", trainer={"batch_size": 64}))


def test_yaml_is_the_dataclass_with_its_defaults() -> None:
    written = yaml.safe_load((ROOT / "configs/pretrain.yaml").read_text())
    trainer = TrainerConfig(**written.pop("trainer"))
    assert trainer == TrainerConfig()
    written["snapshots"] = tuple(written["snapshots"])
    assert PretrainConfig(**(written | {"data": "d", "out": "o"}), trainer=trainer) == PretrainConfig(
        data="d", out="o", trainer=TrainerConfig()
    )

"""The encoder contract, over every row of ENCODERS."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.artifact import MODEL_FILE, load_artifact, save_artifact, save_tensors, sha256_file, tensors_sha256
from pretrain.encoder import EncoderSpec, VideoEncoder, load_encoder, save_encoder
from pretrain.encoder_table import ENCODERS, shipped_directory

ROOT = Path(__file__).resolve().parents[2]
VIDEO_ENCODERS = [name for name, entry in ENCODERS.items() if entry.is_video]
SHIPPED = [name for name, entry in ENCODERS.items() if entry.is_shipped]


@functools.cache
def encoder_of(name: str) -> VideoEncoder:
    return load_encoder(name, seed=0)


@functools.cache
def frames_for(name: str, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, encoder_of(name).spec.frames, 90, 120, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@functools.cache
def output_of(name: str):
    encoder = encoder_of(name)
    with torch.inference_mode():
        return encoder(encoder.preprocess(frames_for(name)))


@pytest.mark.parametrize("name", ENCODERS)
def test_output_matches_the_spec(name: str) -> None:
    spec, output = encoder_of(name).spec, output_of(name)
    assert spec.name == name
    assert output.tokens.shape == (2, spec.tokens, spec.embed_dim)
    assert output.pooled.shape == (2, spec.embed_dim)
    assert output.grid == spec.grid
    assert output.tokens.isfinite().all() and output.pooled.isfinite().all()
    assert output.tokens.std() > 0.01, "features that do not vary say nothing"
    place = shipped_directory(name)  # whose file is in half precision
    expected = sha256_file(place / MODEL_FILE) if place else tensors_sha256(encoder_of(name).state_dict())
    assert spec.weights_sha256 == expected


@pytest.mark.parametrize("name", ENCODERS)
def test_preprocess_scales_black_and_white(name: str) -> None:
    encoder = encoder_of(name)
    spec = encoder.spec
    white = torch.full((1, spec.frames, 50, 70, 3), 255, dtype=torch.uint8)
    for video, level in ((white, 1.0), (torch.zeros_like(white), 0.0)):
        x = encoder.preprocess(video)
        assert x.shape == (1, spec.frames, 3, spec.image_size, spec.image_size)
        assert x.dtype == torch.float32
        expected = (level - torch.tensor(spec.mean)) / torch.tensor(spec.std)
        torch.testing.assert_close(x.mean(dim=(0, 1, 3, 4)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_frozen_survives_train(name: str) -> None:
    encoder = load_encoder(name) if "base" not in name else encoder_of(name)
    assert encoder.frozen() is encoder
    parent = nn.Sequential(encoder, nn.BatchNorm1d(3))
    parent.train()
    assert parent[1].training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ENCODERS)
def test_a_clip_does_not_depend_on_its_batch(name: str) -> None:
    encoder, together = encoder_of(name), output_of(name)
    with torch.inference_mode():
        alone = encoder(encoder.preprocess(frames_for(name)[1:]))
    torch.testing.assert_close(alone.tokens[0], together.tokens[1], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(alone.pooled[0], together.pooled[1], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "name", [name for name in ENCODERS if name not in SHIPPED and "base" not in name and "pixels" not in name]
)
def test_the_seed_decides_the_weights(name: str) -> None:
    first = encoder_of(name).spec.weights_sha256
    assert load_encoder(name, seed=0).spec.weights_sha256 == first
    assert load_encoder(name, seed=1).spec.weights_sha256 != first


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_encoders_are_trained_and_small(name: str) -> None:
    place = shipped_directory(name)
    assert place is not None and sum(path.stat().st_size for path in place.iterdir()) < 12_000_000
    card, provenance = (place / "MODEL_CARD.md").read_text(), load_artifact(place).provenance
    for words in (
        "**Data**",
        "**Training**",
        "**Limits**",
        "## Measured",
        f"encoder={name}",
        provenance["git_sha"][:12],
    ):
        assert words in card
    trained, twin = encoder_of(name), load_encoder(f"random:{name}", seed=0)
    assert provenance["step"] > 0 and load_encoder(name, seed=1).spec == trained.spec, "no seed draws trained weights"
    assert twin.spec.name == f"random:{name}" and twin.spec.grid == trained.spec.grid
    assert not any(
        torch.equal(one, two) for one, two in zip(trained.parameters(), twin.parameters(), strict=True) if one.ndim > 1
    )


def test_order_of_frames_reaches_the_features() -> None:
    encoder = load_encoder("random:egodtm-small")
    x = encoder.preprocess(frames_for("random:egodtm-small"))
    with torch.inference_mode():
        # Temporal positions start at zero, and then a clip is a bag of frames ...
        torch.testing.assert_close(encoder(x).pooled, encoder(x.flip(1)).pooled, atol=1e-4, rtol=1e-3)
        torch.nn.init.normal_(encoder.get_parameter("vit.temporal_position"), std=0.5)
        # ... and no longer once they are learned.
        assert (encoder(x).pooled - encoder(x.flip(1)).pooled).abs().max() > 1e-2


def test_round_trip_in_a_new_process(tmp_path: Path) -> None:
    """Saved, loaded elsewhere: the same spec and the same features to the bit."""
    names = [name for name in ENCODERS if name not in ("random:egodtm-base", "random:egodtm-small")]
    for index, name in enumerate(names):
        encoder = encoder_of(name)
        sha256 = save_encoder(tmp_path / str(index), encoder)
        assert sha256 == tensors_sha256(encoder.state_dict())
        x = encoder.preprocess(frames_for(name))
        with torch.inference_mode():
            output = encoder(x)
        save_tensors(tmp_path / f"{index}.safetensors", {"x": frames_for(name), "t": output.tokens, "p": output.pooled})
    script = """
import sys, torch
from pathlib import Path
from pretrain.artifact import load_tensors
from pretrain.encoder import load_encoder
torch.set_num_threads(1)
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    expected = load_tensors(path)
    encoder = load_encoder(path.with_suffix(""))
    with torch.inference_mode():
        output = encoder(encoder.preprocess(expected["x"]))
    assert torch.equal(output.tokens, expected["t"]) and torch.equal(output.pooled, expected["p"]), encoder.spec.name
    print(encoder.spec.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(names)


def test_random_twin_has_the_network_but_not_the_weights(tmp_path: Path) -> None:
    from pretrain.egodtm.encoder import random_encoder

    trained = random_encoder("tiny", seed=5, frames=2, image_size=48)
    save_encoder(tmp_path / "encoder", trained, name="mine")
    twin = load_encoder(f"random:{tmp_path / 'encoder'}", seed=7)
    changed = {"name", "weights_sha256"}
    for field in dataclasses.fields(EncoderSpec):
        same = getattr(twin.spec, field.name) == getattr(trained.spec, field.name)
        assert same != (field.name in changed), field.name
    # The control starts from what training at that seed starts from.
    assert load_encoder(f"random:{tmp_path / 'encoder'}", seed=5).spec.weights_sha256 == trained.spec.weights_sha256


def test_timm_weights_from_a_file(tmp_path: Path) -> None:
    from pretrain.zoo.vision_ops import timm

    torch.manual_seed(3)
    published = timm.create_model("resnet18", pretrained=False)  # with its classifier, as a published file has
    save_tensors(tmp_path / "model.safetensors", published.state_dict())
    encoder = load_encoder(f"timm/resnet18@{tmp_path / 'model.safetensors'}")
    assert torch.equal(encoder.state_dict()["model.conv1.weight"], published.state_dict()["conv1.weight"])
    with pytest.raises(FileNotFoundError, match=r"huggingface\.co/timm/resnet18.*random weights"):
        load_encoder(f"timm/resnet18@{tmp_path / 'nothing.safetensors'}")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("egodtm-tny", ValueError, "did you mean egodtm-tiny"),
        ("nonsense", ValueError, "Known: egodtm-tiny"),
        ("egodtm-small", ValueError, "no trained weights of it are shipped. random:egodtm-small is the network"),
        ("timm/resnet81", ValueError, "unknown timm model 'resnet81': did you mean timm/resnet"),
        ("runs/nowhere/encoder", FileNotFoundError, "no encoder at runs/nowhere/encoder"),
        ("tests", ValueError, "tests is not an artifact: model.safetensors"),
    ],
)
def test_unknown_encoders(name: str, error: type, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(error, match=words):
        load_encoder(name)


def test_artifact_with_missing_and_surplus_tensors(tmp_path: Path) -> None:
    path = tmp_path / "encoder"
    save_encoder(path, encoder_of("timm/resnet18"))
    whole = load_artifact(path)
    tensors = dict(whole.tensors)
    del tensors["model.bn1.weight"]
    tensors["model.extra"] = torch.zeros(2)
    tensors["model.bn1.bias"] = torch.zeros(3)
    save_artifact(path, kind="encoder", name="x", tensors=tensors, config=whole.config, spec=whole.spec, provenance={})
    with pytest.raises(ValueError) as caught:
        load_encoder(path)
    message = str(caught.value)
    for words in (
        "missing tensors: model.bn1.weight",
        "surplus tensors: model.extra",
        "model.bn1.bias is (3,), expected (64,)",
        str(path),
    ):
        assert words in message


def test_wrong_input_is_refused() -> None:
    encoder = encoder_of("egodtm-tiny")
    with pytest.raises(ValueError, match="takes 1 frame a clip, got 3; repeat the oldest"):
        encoder.preprocess(torch.zeros(1, 3, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected uint8 \[B, T, H, W, 3\] RGB, got float32"):
        encoder.preprocess(torch.zeros(1, 1, 8, 8, 3))
    with pytest.raises(ValueError, match=r"expected \[B, 1, 3, 112, 112\], got \[1, 1, 3, 96, 96\]"):
        encoder(torch.zeros(1, 1, 3, 96, 96))
    with pytest.raises(ValueError, match="unknown rule 'squash'"):
        dataclasses.replace(encoder.spec, resize="squash")


def test_spec_round_trip_and_fingerprint() -> None:
    spec = encoder_of("egodtm-tiny").spec
    assert EncoderSpec.from_json(spec.to_json()) == spec
    assert dataclasses.replace(spec, name="other").fingerprint() == spec.fingerprint()
    assert dataclasses.replace(spec, resize="center-crop").fingerprint() != spec.fingerprint()
    with pytest.raises(ValueError, match="missing or unknown fields: colour"):
        EncoderSpec.from_json(spec.to_json() | {"colour": 1})

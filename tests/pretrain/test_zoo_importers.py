"""Importers of released encoders: files in each released format, against the network that they were written from.

The real files are not here. A file of the same names, shapes and packing is, and the reference network is not timm's: torchvision's
ResNet as R3M has it, transformers' ViT as Theia has it, and a plain forward pass of MAE's ViT for the others.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pretrain.zoo.vision_ops  # noqa: F401  (torchvision's import needs it first)
from pretrain.artifact import save_tensors
from pretrain.encoder import VideoEncoder, load_encoder, save_encoder
from pretrain.encoder_table import FAMILIES
from pretrain.zoo import released
from pretrain.zoo.released import HALF, IMAGENET_MEAN, IMAGENET_STD, RELEASES, build_released_encoder
from pretrain.zoo.timm_image import TimmEncoder
from pretrain.zoo.vision_ops import timm

# Two blocks of the same architecture in place of 12 or 24, where the real one would take seconds.
SMALL = {"model": "vit_tiny_patch16_224", "settings": {"depth": 2}}


def images(size: tuple[int, int] = (240, 320)) -> Tensor:
    """Smooth uint8 frames [2, 1, H, W, 3]: noise would tell resizing filters apart that agree on pictures."""
    noise = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(noise, size=size, mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().to(torch.uint8).permute(0, 2, 3, 1)[:, None]


def random_state(model: str, **settings: Any) -> dict[str, Tensor]:
    """A state dict with every tensor random, biases and norms too, so that one that is lost or swapped shows."""
    generator = torch.Generator().manual_seed(1)
    state = timm.create_model(model, pretrained=False, num_classes=0, **settings).state_dict()
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.05
        + (1.0 if "norm" in name and "weight" in name else 0.0)
        for name, tensor in state.items()
    }


def plain_vit(state: Mapping[str, Tensor], image: Tensor, *, heads: int, epsilon: float = 1e-6) -> Tensor:
    """All tokens after the last norm: MAE's ViT (arXiv 2111.06377) written out."""
    width = state["cls_token"].shape[-1]
    x = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    x = (
        torch.cat([state["cls_token"].expand(len(x), 1, width), x.flatten(2).transpose(1, 2)], dim=1)
        + state["pos_embed"]
    )

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], epsilon)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for i in range(sum(name.endswith("norm1.weight") for name in state)):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(dim=-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


def features_of(encoder: VideoEncoder) -> tuple[Tensor, Tensor, Tensor]:
    """(prepared images [2, 3, H, W], tokens, pooled)."""
    x = encoder.preprocess(images())
    with torch.inference_mode():
        output = encoder(x)
    return x[:, 0], output.tokens, output.pooled


def assert_class_token_is_pooled(encoder: VideoEncoder, state: Mapping[str, Tensor], heads: int) -> None:
    x, tokens, pooled = features_of(encoder)
    expected = plain_vit(state, x, heads=heads)
    torch.testing.assert_close(tokens, expected[:, 1:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, expected[:, 0], atol=2e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------- the released formats


@pytest.mark.parametrize("depth", [18, 50])
def test_r3m(depth: int, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    source = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    source.fc = torch.nn.Identity()
    source.train()(torch.rand(4, 3, 64, 64))  # so that the running statistics are not those of the start
    source.eval()
    state = {f"module.convnet.{name}": tensor for name, tensor in source.state_dict().items()}
    state["module.lang_enc.model.embeddings.word_embeddings.weight"] = torch.zeros(5, 3)
    state["module.lang_rew.pred.0.weight"] = torch.zeros(2, 2)
    torch.save({"r3m": state, "global_step": 1_000_000}, tmp_path / "model.pt")

    encoder = load_encoder(f"r3m/resnet{depth}@{tmp_path / 'model.pt'}")
    x, tokens, pooled = features_of(encoder)
    with torch.inference_mode():
        expected = source(x)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.mean(dim=1), expected, atol=1e-5, rtol=1e-4)
    assert encoder.spec.grid == (1, 7, 7) and encoder.spec.embed_dim == {18: 512, 50: 2048}[depth]


def test_mvp_small_has_twelve_heads(tmp_path: Path) -> None:
    state = random_state("vit_small_patch16_224")
    torch.save({"model": state | {"mask_token": torch.zeros(1, 1, 9)}}, tmp_path / "mae_pretrain_hoi_vit_small.pth")
    encoder = load_encoder(f"mvp/vits@{tmp_path / 'mae_pretrain_hoi_vit_small.pth'}")
    assert_class_token_is_pooled(encoder, state, heads=12)
    assert encoder.spec.embed_dim == 384


def test_vc1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RELEASES, "vc1/vitb", dataclasses.replace(RELEASES["vc1/vitb"], **SMALL))
    state = random_state(SMALL["model"], **SMALL["settings"])
    decoder = {"mask_token": torch.zeros(1, 1, 9), "decoder_embed.weight": torch.zeros(9, 9)}
    decoder |= {"decoder_pos_embed": torch.zeros(1, 9, 9), "decoder_blocks.0.norm1.bias": torch.zeros(9)}
    torch.save({"model": state | decoder, "epoch": 182}, tmp_path / "vc1_vitb.pth")
    encoder = load_encoder(f"vc1/vitb@{tmp_path / 'vc1_vitb.pth'}")
    assert_class_token_is_pooled(encoder, state, heads=3)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_spa(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RELEASES, "spa/base", dataclasses.replace(RELEASES["spa/base"], **SMALL))
    state = random_state(SMALL["model"], **SMALL["settings"])
    whole = {f"model.img_backbone.{name}": tensor for name, tensor in state.items()}
    for name in ("decoder_embed.weight", "mask_token", "readout_project.0.bias", "upsample.0.conv.weight"):
        whole[f"model.img_backbone.{name}"] = torch.zeros(3)
    whole["model.dense_head.renderer.field.weight"] = torch.zeros(3)
    path = tmp_path / f"spa-b.{suffix}"
    if suffix == "safetensors":
        save_tensors(path, whole)
    else:
        torch.save({"state_dict": whole, "epoch": 1}, path)
    assert_class_token_is_pooled(load_encoder(f"spa/base@{path}"), state, heads=3)


def theia_file(path: Path) -> dict[str, Tensor]:
    """A file as theia-tiny's, and its backbone's tensors under the names transformers' ViT had when it was saved."""
    generator = torch.Generator().manual_seed(1)
    width = 192

    def made(*shape: int, around: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.05 + around

    def linear(name: str, out: int, into: int) -> dict[str, Tensor]:
        return {f"{name}.weight": made(out, into), f"{name}.bias": made(out)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": made(width, around=1.0), f"{name}.bias": made(width)}

    state = {"embeddings.cls_token": made(1, 1, width), "embeddings.position_embeddings": made(1, 197, width)}
    state["embeddings.patch_embeddings.projection.weight"] = made(width, 3, 16, 16)
    state["embeddings.patch_embeddings.projection.bias"] = made(width)
    for i in range(12):
        block = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            state |= linear(f"{block}.attention.attention.{part}", width, width)
        state |= linear(f"{block}.attention.output.dense", width, width)
        state |= linear(f"{block}.intermediate.dense", 4 * width, width)
        state |= linear(f"{block}.output.dense", width, 4 * width)
        state |= norm(f"{block}.layernorm_before") | norm(f"{block}.layernorm_after")
    state |= norm("layernorm")
    whole = {f"backbone.model.{name}": tensor for name, tensor in state.items()}
    whole["translator.translator_heads.facebook_dinov2-large.0.weight"] = torch.zeros(3)
    save_tensors(path, whole)
    return state


def test_theia_is_transformers_vit(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    state = theia_file(tmp_path / "model.safetensors")
    # transformers reads its own former names.
    (tmp_path / "deit").mkdir()
    save_tensors(tmp_path / "deit" / "model.safetensors", state)
    config = transformers.ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    (tmp_path / "deit" / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["ViTModel"]}))
    source, report = transformers.ViTModel.from_pretrained(
        tmp_path / "deit", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    encoder = load_encoder(f"theia/tiny@{tmp_path / 'model.safetensors'}")
    x, tokens, pooled = features_of(encoder)
    with torch.inference_mode():
        expected = source.eval()(x).last_hidden_state
    torch.testing.assert_close(tokens, expected[:, 1:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, expected[:, 1:].mean(dim=1), atol=2e-5, rtol=1e-4)


def test_theia_names_what_is_missing(tmp_path: Path) -> None:
    state = {f"backbone.model.{name}": tensor for name, tensor in theia_file(tmp_path / "model.safetensors").items()}
    del state["backbone.model.encoder.layer.4.attention.attention.key.bias"]
    save_tensors(tmp_path / "model.safetensors", state)
    with pytest.raises(ValueError, match=r"theia/tiny.*missing tensors: blocks\.4\.attn\.qkv\.bias"):
        load_encoder(f"theia/tiny@{tmp_path / 'model.safetensors'}")


# ------------------------------------------------------------------------------------------------------- over the table


@pytest.mark.parametrize("row", RELEASES)
def test_every_row_builds_its_network(row: str) -> None:
    """The real sizes, without memory for their weights."""
    release = RELEASES[row]
    with torch.device("meta"):
        encoder = TimmEncoder(release.model, name=row, image_size=release.image_size, settings=release.settings)
    millions = {
        "resnet18": 11, "resnet34": 21, "resnet50": 24, "vits": 22, "vitb": 86, "vitl": 303, "tiny": 6, "small": 22,
        "base": 86, "large": 303,
    }  # fmt: skip
    count = sum(parameter.numel() for parameter in encoder.model.parameters()) / 1e6
    assert round(count) == millions[row.partition("/")[2]]
    assert encoder.spec.image_size == (256 if row == "mvp/vitl" else 224)
    assert encoder.spec.grid == (
        (1, 7, 7) if "resnet" in row else (1, encoder.spec.image_size // 16, encoder.spec.image_size // 16)
    )
    assert row.partition("/")[0] in FAMILIES


@pytest.mark.parametrize("row", RELEASES)
def test_a_file_that_is_not_given_or_not_there_is_described(row: str, tmp_path: Path) -> None:
    release = RELEASES[row]
    for name, error in ((row, ValueError), (f"{row}@{tmp_path / 'nothing.pth'}", FileNotFoundError)):
        with pytest.raises(error) as caught:
            load_encoder(name)
        for words in (release.file, release.published, f"{row}@<path of the file>"):
            assert words in str(caught.value)


def test_preparation_is_that_of_the_release(tmp_path: Path) -> None:
    """Against torchvision's transforms on the same frames, as each release composes them."""
    from torchvision.transforms.v2.functional import InterpolationMode as Mode
    from torchvision.transforms.v2.functional import center_crop, normalize, resize

    pictures = images()[:, 0].permute(0, 3, 1, 2)
    expected = {
        "r3m/resnet18": (center_crop(resize(pictures, [256], Mode.BILINEAR), [224, 224]), IMAGENET_MEAN, IMAGENET_STD),
        "vc1/vitb": (center_crop(resize(pictures, [256], Mode.BICUBIC), [224, 224]), IMAGENET_MEAN, IMAGENET_STD),
        "mvp/vitb": (center_crop(resize(pictures, [224], Mode.BILINEAR), [224, 224]), IMAGENET_MEAN, IMAGENET_STD),
        "mvp/vitl": (center_crop(resize(pictures, [256], Mode.BILINEAR), [256, 256]), IMAGENET_MEAN, IMAGENET_STD),
        "theia/tiny": (resize(pictures, [224, 224], Mode.BILINEAR), HALF, HALF),
        "spa/base": (center_crop(resize(pictures, [224], Mode.BICUBIC), [224, 224]), IMAGENET_MEAN, IMAGENET_STD),
    }
    assert {row.partition("/")[0] for row in expected} == {row.partition("/")[0] for row in RELEASES}
    for row, (prepared, mean, std) in expected.items():
        release = RELEASES[row]
        with torch.device("meta"):
            encoder = TimmEncoder(release.model, name=row, image_size=release.image_size, settings=release.settings)
        encoder.spec = dataclasses.replace(encoder.spec, resize=release.resize, mean=release.mean, std=release.std)
        ours = encoder.preprocess(images())[:, 0]
        # torchvision rounds to integers after resizing.
        torch.testing.assert_close(ours, normalize(prepared.float() / 255, list(mean), list(std)), atol=0.02, rtol=0)


# ---------------------------------------------------------------------------------------------------- files and controls


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint with a training configuration beside its tensors is refused with the way to convert it, which works."""
    from omegaconf import OmegaConf

    monkeypatch.setitem(RELEASES, "vc1/vitb", dataclasses.replace(RELEASES["vc1/vitb"], **SMALL))
    state = random_state(SMALL["model"], **SMALL["settings"])
    path = tmp_path / "vc1_vitb.pth"
    torch.save({"model": state, "args": OmegaConf.create({"epochs": 182})}, path)
    with pytest.raises(ValueError, match=r"vc1_vitb\.pth holds objects that are no tensors.*save_file"):
        load_encoder(f"vc1/vitb@{path}")
    trusted = torch.load(path, weights_only=False)["model"]
    save_tensors(tmp_path / "vc1_vitb.safetensors", trusted)
    assert_class_token_is_pooled(load_encoder(f"vc1/vitb@{tmp_path / 'vc1_vitb.safetensors'}"), state, heads=3)


def test_what_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RELEASES, "vc1/vitb", dataclasses.replace(RELEASES["vc1/vitb"], **SMALL))
    state = random_state(SMALL["model"], **SMALL["settings"])
    state["blocks.7.norm1.weight"] = state.pop("blocks.1.norm1.weight")
    state["norm.bias"] = torch.zeros(4)
    torch.save({"model": state}, tmp_path / "vc1_vitb.pth")
    with pytest.raises(ValueError) as caught:
        load_encoder(f"vc1/vitb@{tmp_path / 'vc1_vitb.pth'}")
    for words in (
        "missing tensors: blocks.1.norm1.weight",
        "surplus tensors: blocks.7.norm1.weight",
        "norm.bias is (4,), expected (192,)",
        str(tmp_path / "vc1_vitb.pth"),
    ):
        assert words in str(caught.value)
    torch.save({"model": [1, 2]}, tmp_path / "vc1_vitb.pth")
    with pytest.raises(ValueError, match="entry 'model' is a list, expected tensors by name"):
        load_encoder(f"vc1/vitb@{tmp_path / 'vc1_vitb.pth'}")
    torch.save({"weights": state, "epoch": 3}, tmp_path / "vc1_vitb.pth")
    with pytest.raises(ValueError, match="'weights' is a dict, expected a tensor"):
        load_encoder(f"vc1/vitb@{tmp_path / 'vc1_vitb.pth'}")
    with pytest.raises(ValueError, match="unknown released encoder 'vc1/vits': did you mean vc1/vit"):
        load_encoder("vc1/vits@x.pth")


def test_an_artifact_rebuilds_what_timm_would_not(tmp_path: Path) -> None:
    """Twelve heads, and the preparation, are in the artifact: it no longer needs the table or the file."""
    save_tensors(tmp_path / "vits.safetensors", random_state("vit_small_patch16_224"))
    encoder = load_encoder(f"mvp/vits@{tmp_path / 'vits.safetensors'}")
    save_encoder(tmp_path / "artifact", encoder)
    again = load_encoder(tmp_path / "artifact")
    assert again.spec == encoder.spec
    for one, other in zip(features_of(encoder), features_of(again), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("row", ["r3m/resnet18", "theia/tiny"])
def test_the_random_twin_needs_no_file(row: str) -> None:
    twin = load_encoder(f"random:{row}", seed=1)
    assert twin.spec.name == f"random:{row}" and twin.spec.resize == RELEASES[row].resize
    assert twin.spec.weights_sha256 == load_encoder(f"random:{row}@nowhere.pt", seed=1).spec.weights_sha256
    assert twin.spec.weights_sha256 != build_released_encoder(row, seed=2, is_untrained=True).spec.weights_sha256


def test_the_table_is_what_the_page_lists() -> None:
    page = (Path(released.__file__).parents[2] / "docs" / "encoders.md").read_text()
    listed = set(re.findall(r"`((?:r3m|vc1|mvp|theia|spa)/\w+)`", page))
    assert listed == set(RELEASES)


# ------------------------------------------------------------------------------------------------- other weights by timm

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    ("model", "size", "grid", "mean"),
    [
        ("vit_small_patch14_dinov2.lvd142m", 518, 37, IMAGENET_MEAN),
        ("vit_small_patch16_dinov3.lvd1689m", 256, 16, IMAGENET_MEAN),
        ("vit_base_patch16_clip_224.openai", 224, 14, CLIP_MEAN),
        ("vit_base_patch16_siglip_224.webli", 224, 14, HALF),
        ("vit_base_patch16_224.mae", 224, 14, IMAGENET_MEAN),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", 224, 14, HALF),
        ("resnet50.a1_in1k", 224, 7, IMAGENET_MEAN),
    ],
)
def test_timm_families_have_the_statistics_of_their_weights(model: str, size: int, grid: int, mean: tuple) -> None:
    """One model a family; the tag after the dot decides the statistics, so it is part of the name."""
    with torch.device("meta"):
        encoder = TimmEncoder(model, name=model)
    assert encoder.spec.image_size == size and encoder.spec.grid == (1, grid, grid)
    assert encoder.spec.mean == pytest.approx(mean)

"""CLIP weights of others in our towers: the same features as the module they come from."""

import argparse
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretrain.egodtm.depth_decoder import DepthDecoderConfig
from pretrain.egodtm.initialise import initialise
from pretrain.egodtm.model import DECODER_SIZES, EgoDTM, EgoDTMConfig
from pretrain.egodtm.text import TextConfig, tokenize
from pretrain.egodtm.video_vit import VideoViTConfig
from pretrain.zoo.clip_weights import fit_to, rename, resize_spatial, resize_temporal, weights_file
from pretrain.zoo.vision_ops import timm
from pretrain.zoo.weight_files import read_checkpoint

WIDTH, JOINT = 32, 16


def nano(frames: int = 1, image_size: int = 48, joint_dim: int = JOINT, **video) -> EgoDTM:
    torch.manual_seed(3)
    return EgoDTM(
        EgoDTMConfig(
            video=VideoViTConfig.of_size("nano", frames=frames, image_size=image_size, **video),
            text=TextConfig.of_size("nano"),
            decoder=DepthDecoderConfig(**DECODER_SIZES["nano"]),
            joint_dim=joint_dim,
        )
    ).eval()


def load(model: EgoDTM, state, where: str = "test"):
    config = model.config.video
    fitted = fit_to(
        rename(state, where=where),
        model.state_dict(),
        grid_side=config.grid_side,
        frames=config.frames,
        where=where,
    )
    model.load_state_dict(fitted.tensors, strict=False)
    return fitted


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter away from ones, zeros and symmetry, so that a swap shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="module")
def open_clip_model() -> torch.nn.Module:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=WIDTH, head_width=16, patch_size=16, image_size=48)
    text = CLIPTextCfg(width=WIDTH, heads=2, layers=2)
    return randomised(CLIP(embed_dim=JOINT, vision_cfg=vision, text_cfg=text))


def avion_state(clip: torch.nn.Module, frames: int = 4) -> dict:
    """open_clip's tensors under AVION's names, in a checkpoint of two processes' training."""
    state = {}
    for name, value in clip.state_dict().items():
        if name == "visual.proj":
            name = "visual.image_projection"
        elif name == "visual.conv1.weight":
            value = value.flatten(1)
        elif not name.startswith(("visual.", "logit_scale")):
            name = f"textual.{name}"
        state[f"module.{name}"] = value
    state["module.visual.temporal_embedding"] = torch.randn(frames, WIDTH, generator=torch.Generator().manual_seed(1))
    return {"epoch": 3, "state_dict": state, "args": argparse.Namespace(lr=3e-5)}


def test_open_clip_gives_its_own_features(open_clip_model) -> None:
    model = nano()
    fitted = load(model, open_clip_model.state_dict())
    assert fitted.left_out == ("logit_scale",)
    assert {name.partition(".")[0] for name in fitted.fresh} == {
        "video", "log_scale", "patch_projection", "pyramid", "decoder"
    }  # fmt: skip
    assert [name for name in fitted.fresh if name.startswith("video.")] == ["video.vit.temporal_position"]
    image = torch.randn(2, 3, 48, 48)
    ids = tokenize(["a red can", "somebody opens a drawer and looks into it"])
    with torch.inference_mode():
        pooled, tokens = model.video.vit(image[:, None])
        torch.testing.assert_close(
            model.video_projection(pooled), open_clip_model.encode_image(image), atol=1e-4, rtol=1e-3
        )
        torch.testing.assert_close(model.text(ids), open_clip_model.encode_text(ids), atol=1e-4, rtol=1e-3)
    assert tokens.abs().max() > 0.1


def test_timm_gives_its_own_features() -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_base_patch16_clip_224", embed_dim=WIDTH, depth=2, num_heads=2, num_classes=8, img_size=48
    )
    randomised(vit)
    model = nano()
    before = model.state_dict()["text.position"].clone()
    fitted = load(model, vit.state_dict())
    assert fitted.left_out == ("head.bias", "head.weight")
    assert torch.equal(model.state_dict()["text.position"], before) and "text.position" in fitted.fresh
    image = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        pooled, tokens = model.video.vit(image[:, None])
        expected = vit.forward_features(image)
    # What is left is the epsilon of the norms: 1e-5 in timm's CLIP, 1e-6 here as published.
    torch.testing.assert_close(pooled, expected[:, 0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(tokens, expected[:, 1:], atol=1e-3, rtol=1e-3)


def test_avion_checkpoints_are_whole_video_towers(open_clip_model, tmp_path: Path) -> None:
    torch.save(avion_state(open_clip_model), tmp_path / "avion.pt")
    state = read_checkpoint(tmp_path / "avion.pt")
    video = nano(frames=4)
    fitted = load(video, state)
    assert not [name for name in fitted.fresh if name.startswith(("video.", "text.", "video_projection"))]
    still = nano(frames=1)
    load(still, open_clip_model.state_dict())
    for name, tensor in still.state_dict().items():
        if name.startswith(("video.vit.blocks", "text.", "video_projection")):
            assert torch.equal(video.state_dict()[name], tensor), name
    torch.testing.assert_close(
        video.video.vit.temporal_position.detach(), state["state_dict"]["module.visual.temporal_embedding"]
    )


def test_flash_attention_names_are_the_same_tensors(open_clip_model) -> None:
    state = open_clip_model.state_dict()
    parts = {"attn.in_proj_": "attn.Wqkv.", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    renamed = {}
    for name, value in state.items():
        for theirs, flash in parts.items():
            name = name.replace(theirs, flash) if name.startswith("visual.") else name
        renamed[name] = value
    plain, flash = rename(state, where="a").tensors, rename(renamed, where="b").tensors
    assert plain.keys() == flash.keys()
    assert all(torch.equal(plain[name], flash[name]) for name in plain)


def test_positions_go_to_another_grid_and_number_of_frames(open_clip_model) -> None:
    model = nano(frames=8, image_size=80)
    load(model, avion_state(open_clip_model, frames=4))
    assert model.video.vit.spatial_position.shape == (26, WIDTH)
    torch.testing.assert_close(
        model.video.vit.spatial_position[0], open_clip_model.state_dict()["visual.positional_embedding"][0]
    )
    # A slope over the grid, and over time, stays a slope.
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    table = torch.cat([torch.full((1, 2), 9.0), torch.stack([rows, columns], -1).reshape(16, 2)])
    larger = resize_spatial(table, 8, where="x")
    assert torch.equal(larger[0], table[0])
    grid = larger[1:].reshape(8, 8, 2)
    assert (grid[1:, :, 0] > grid[:-1, :, 0]).all() and (grid[:, 1:, 1] > grid[:, :-1, 1]).all()
    assert torch.equal(resize_spatial(table, 4, where="x"), table)
    times = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    torch.testing.assert_close(resize_temporal(times, 2), torch.tensor([[0.5], [2.5]]))
    assert resize_temporal(times, 16).diff(dim=0).min() >= 0
    assert resize_temporal(times[:1], 3).shape == (3, 1)


def test_projections_of_another_width_are_left_out_and_said(open_clip_model) -> None:
    fitted = load(nano(joint_dim=8), open_clip_model.state_dict())
    assert fitted.left_out == (
        "logit_scale",
        "text.projection.weight ((16, 32), here (8, 32))",
        "video_projection.weight ((16, 32), here (8, 32))",
    )
    assert "video_projection.weight" in fitted.fresh


def test_base_names_and_shapes() -> None:
    """OpenAI's ViT-B/16 by shape alone, in the published model."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    with torch.device("meta"):
        clip = CLIP(embed_dim=512, vision_cfg=CLIPVisionCfg(), text_cfg=CLIPTextCfg(), quick_gelu=True)
        model = EgoDTM(
            EgoDTMConfig(
                video=VideoViTConfig.of_size("base"),
                text=TextConfig.of_size("base"),
                decoder=DepthDecoderConfig(**DECODER_SIZES["base"]),
            )
        )
    state = clip.state_dict() | {"input_resolution": torch.tensor(224), "vocab_size": torch.tensor(49408)}
    fitted = fit_to(rename(state, where="x"), model.state_dict(), grid_side=14, frames=4, where="x")
    assert sum(t.numel() for n, t in fitted.tensors.items() if n.startswith("video.")) == 85_802_496 - 4 * 768
    assert set(fitted.left_out) >= {"input_resolution", "logit_scale", "vocab_size"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("visual.conv1.weight"), "x is not a CLIP checkpoint.*visual.conv1.weight"),
        (lambda s: s.update({"visual.blocks.0.timeattn.qkv.weight": s["logit_scale"]}), "no place for.*timeattn"),
        (lambda s: s.pop("visual.ln_post.bias"), "does not fit.*missing: video.vit.ln_post.bias"),
        (lambda s: s.pop("ln_final.bias"), "does not fit.*missing: text.ln_final.bias"),
        (
            lambda s: s.update({"visual.transformer.resblocks.7.ln_1.bias": torch.zeros(32)}),
            "no such tensors in the model: video.vit.blocks.7.norm1.bias",
        ),
        (lambda s: s.update({"visual.ln_pre.bias": torch.zeros(64)}), r"ln_pre.bias is \(64,\), expected \(32,\)"),
        (lambda s: s.update({"visual.positional_embedding": torch.zeros(9, 32)}), "9 spatial positions are not"),
        (lambda s: s.update({"image_projection": torch.zeros(32, 16)}), "two tensors for video_projection"),
    ],
)
def test_surprises_are_named(open_clip_model, change, words: str) -> None:
    state = dict(open_clip_model.state_dict())
    change(state)
    with pytest.raises(ValueError, match=words):
        load(nano(), state, where="x")


def test_a_conv_stem_has_no_place_for_patches(open_clip_model) -> None:
    with pytest.raises(ValueError, match=r"no such tensors.*patch_embed.weight.*stem=patch"):
        load(nano(stem="conv"), open_clip_model.state_dict())


def test_an_egodtm_goes_on_from_another(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    first = nano()
    save_file({name: value + 0.01 for name, value in first.state_dict().items()}, file)
    second = nano()
    assert initialise(second, str(file)) == [f"init={file}: goes on from an EgoDTM, {len(first.state_dict())} tensors"]
    assert all(torch.equal(value, first.state_dict()[name] + 0.01) for name, value in second.state_dict().items())
    twin = EgoDTM(dataclasses.replace(first.config, decoder=None))
    assert initialise(twin, str(file))[1] == "  left out: the depth head"
    assert torch.equal(twin.video_projection.weight, first.video_projection.weight + 0.01)
    with pytest.raises(
        ValueError, match=r"projection.weight is \[\d+, \d+\] there and .* here: an EgoDTM goes on only"
    ):
        initialise(nano(joint_dim=2 * JOINT), str(file))
    with pytest.raises(ValueError, match=r"expected an EgoDTM of the same size and settings|goes on only with"):
        initialise(nano(stem="conv"), str(file))


def test_files(open_clip_model, tmp_path: Path) -> None:
    tensors = {name: value.contiguous() for name, value in open_clip_model.state_dict().items()}
    save_file(tensors, tmp_path / "clip.safetensors")
    model = nano(frames=2)
    said = "\n".join(initialise(model, str(tmp_path / "clip.safetensors")))
    assert "left out: logit_scale" in said and "video.vit.temporal_position" in said and "QuickGELU" in said
    assert torch.equal(model.text.position, tensors["positional_embedding"])
    with pytest.raises(FileNotFoundError, match=r"init=nowhere\.pt: no such file"):
        weights_file("nowhere.pt")
    with pytest.raises(
        FileNotFoundError, match=r"of https://huggingface.co/timm/vit_base_patch16_clip_224.*local cache"
    ):
        weights_file("timm:vit_base_patch16_clip_224.openai")
    with pytest.raises(ValueError, match="timm has no such model"):
        weights_file("timm:vit_gigantic")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"torn\.pt is not a whole torch checkpoint|torn\.pt holds objects"):
        read_checkpoint(tmp_path / "torn.pt")
    torch.save({"state_dict": tensors, "extra": Path("x")}, tmp_path / "objects.pt")
    with pytest.raises(ValueError, match="holds objects that are no tensors"):
        read_checkpoint(tmp_path / "objects.pt")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="expected a file ending in"):
        read_checkpoint(tmp_path / "notes.txt")

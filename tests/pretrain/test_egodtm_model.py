"""EgoDTM's parts: published sizes, shapes, gradients, and the invariants of each."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.egodtm.depth_decoder import (
    DepthDecoder,
    DepthDecoderConfig,
    LinearDepth,
    bin_edges_and_centres,
    compose_depth,
    paint,
)
from pretrain.egodtm.depth_losses import DEPTH_ERRORS
from pretrain.egodtm.encoder import random_encoder
from pretrain.egodtm.lean_depth import paint_lean
from pretrain.egodtm.losses import CONTRASTIVE
from pretrain.egodtm.model import DECODER_SIZES, DEPTH_MEMORY, EgoDTM, EgoDTMConfig, LossConfig, egodtm_loss
from pretrain.egodtm.pyramid import SCALES, SimpleFeaturePyramid
from pretrain.egodtm.text import TEXT_SIZES, TextConfig, TextTower, tokenize
from pretrain.egodtm.video_vit import VIDEO_SIZES, VideoViT, VideoViTConfig, sincos_positions_2d

TEXTS = ["#C C picks up the red can", "#C C opens the drawer", "#C C pours water from the blue jug into the bowl"]


def nano(frames: int = 3, depth_memory: str = "lean", **changes) -> EgoDTM:
    torch.manual_seed(0)
    config = {
        "video": VideoViTConfig.of_size("nano", frames=frames),
        "text": TextConfig.of_size("nano"),
        "decoder": DepthDecoderConfig(**DECODER_SIZES["nano"]),
        "joint_dim": 16,
    }
    return EgoDTM(EgoDTMConfig(**(config | changes)), depth_memory=depth_memory)


def batch_for(model: EgoDTM, batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames, side = model.config.video.frames, model.config.depth_size
    depth = torch.rand(batch, frames, side, side, generator=generator)
    return {
        "video": torch.randint(0, 256, (batch, frames, 40, 50, 3), dtype=torch.uint8, generator=generator),
        "text_ids": tokenize(TEXTS[:batch]),
        "depth": depth,
        "depth_valid": depth > 0.2,
    }


def loss_of(model: EgoDTM, batch: dict[str, torch.Tensor], **changes):
    return egodtm_loss(
        model(batch["video"], batch["text_ids"]),
        log_scale=model.log_scale,
        bias=model.logit_bias,
        text_ids=batch["text_ids"],
        depth=batch["depth"],
        depth_valid=batch["depth_valid"],
        config=LossConfig(**changes),
    )


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_base_has_the_published_number_of_parameters() -> None:
    """The count in the authors' training log, part by part: two towers, decoder of 5 layers at scale 2."""
    with torch.device("meta"):
        model = EgoDTM(
            EgoDTMConfig(
                video=VideoViTConfig.of_size("base"),
                text=TextConfig.of_size("base"),
                decoder=DepthDecoderConfig(**DECODER_SIZES["base"]),
            )
        )
    assert parameters(model.video) == 85_802_496
    assert parameters(model.text) == 63_297_024
    assert model.decoder is not None and parameters(model.decoder) == 8_096_001
    assert parameters(model) == 159_065_986
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 159_065_985
    assert model.config.depth_size == 28


@pytest.mark.parametrize("size", VIDEO_SIZES)
def test_every_size_has_all_its_parts(size: str) -> None:
    assert size in TEXT_SIZES and size in DECODER_SIZES
    with torch.device("meta"):
        EgoDTM(
            EgoDTMConfig(
                video=VideoViTConfig.of_size(size),
                text=TextConfig.of_size(size),
                decoder=DepthDecoderConfig(**DECODER_SIZES[size]),
            )
        )


def without_gradient(model: EgoDTM) -> list[str]:
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().max() > 0)
    ]


@pytest.mark.parametrize("error", DEPTH_ERRORS)
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_every_parameter_gets_a_gradient(error: str, deep_supervision: bool) -> None:
    model = nano()
    loss, scalars = loss_of(model, batch_for(model), depth_error=error, deep_supervision=deep_supervision)
    loss.backward()
    assert set(scalars) == {"loss", "contrastive", "accuracy", "depth"}
    assert without_gradient(model) == []


@pytest.mark.parametrize("depth_memory", DEPTH_MEMORY)
@pytest.mark.parametrize("contrastive", CONTRASTIVE)
@pytest.mark.parametrize("scale", SCALES)
def test_every_parameter_gets_a_gradient_at_every_scale(scale: int, contrastive: str, depth_memory: str) -> None:
    decoder = DepthDecoderConfig(**DECODER_SIZES["nano"] | {"scale": scale})
    model = nano(frames=2, decoder=decoder, contrastive=contrastive, depth_memory=depth_memory)
    loss_of(model, batch_for(model), contrastive=contrastive)[0].backward()
    assert without_gradient(model) == []
    assert model.log_scale.requires_grad == (contrastive == "siglip")


def test_every_parameter_gets_a_gradient_through_the_linear_head() -> None:
    model = nano(depth_head="linear", token_noise=1.5)
    loss_of(model, batch_for(model), depth_edges=0.5)[0].backward()
    assert without_gradient(model) == []
    # Noise on the tokens is for training alone, and each call draws its own.
    tokens = torch.randn(2, model.video.spec.tokens, model.config.video.width)
    first, second = model.predict_depth(tokens), model.predict_depth(tokens)
    model.eval()
    assert not torch.equal(first, second) and torch.equal(model.predict_depth(tokens), model.predict_depth(tokens))


def test_linear_depth_paints_each_token_on_its_own_pixels() -> None:
    head = LinearDepth(4, 2)
    tokens = torch.randn(3, 2, 3, 5, 4)
    depth = head(tokens)
    assert depth.shape == (3, 2, 6, 10)
    own = (0.5 + head.UNIT * head.project(tokens[1, 0, 2, 3])).unflatten(-1, (2, 2))
    torch.testing.assert_close(depth[1, 0, 4:6, 6:8], own)


@pytest.mark.slow
@pytest.mark.parametrize("size", VIDEO_SIZES)
def test_every_parameter_gets_a_gradient_at_every_size(size: str) -> None:
    torch.manual_seed(0)
    config = EgoDTMConfig(
        video=VideoViTConfig.of_size(size, frames=2, image_size=32),
        text=TextConfig.of_size(size),
        decoder=DepthDecoderConfig(**DECODER_SIZES[size]),
    )
    model = EgoDTM(config)
    loss_of(model, batch_for(model, batch=2))[0].backward()
    assert without_gradient(model) == []


def test_twins_start_from_the_same_towers() -> None:
    whole, without_depth = nano(), nano(decoder=None)
    for name, tensor in without_depth.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
    assert without_depth(**{k: v for k, v in batch_for(whole).items() if k in ("video", "text_ids")}).depth is None
    torch.manual_seed(4)
    trained = EgoDTM(EgoDTMConfig(text=TextConfig.of_size("nano")))
    for name, tensor in random_encoder("tiny", seed=4).state_dict().items():
        assert torch.equal(tensor, trained.encoder().state_dict()[name]), name


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 16])
@pytest.mark.parametrize(("image_size", "scale"), [(16, 8), (32, 1), (48, 2), (80, 4)])
def test_any_number_of_frames_and_size(frames: int, image_size: int, scale: int) -> None:
    model = nano(
        video=VideoViTConfig.of_size("nano", frames=frames, image_size=image_size),
        decoder=DepthDecoderConfig(**DECODER_SIZES["nano"] | {"scale": scale}),
    )
    batch = batch_for(model, batch=2)
    output = model(batch["video"], batch["text_ids"])
    side = image_size // 16 * scale
    assert model.config.depth_size == side
    assert output.depth.shape == (3, 2, frames, side, side)  # the start and two layers
    torch.testing.assert_close(output.video.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(output.text.norm(dim=-1), torch.ones(2))
    only_last = model(batch["video"], batch["text_ids"], all_stages=False).depth
    torch.testing.assert_close(only_last[0], output.depth[-1])
    assert (output.depth > 0).all() and (output.depth < 1).all()
    assert model(batch["video"], batch["text_ids"], with_depth=False).depth is None


@pytest.mark.parametrize(("size", "pixels"), [("base", {1: 14, 2: 28, 4: 56, 8: 112}), ("tiny", {4: 28, 8: 56})])
def test_depth_sizes_of_the_paper(size: str, pixels: dict[int, int]) -> None:
    for scale, side in pixels.items():
        decoder = DepthDecoderConfig(**DECODER_SIZES[size] | {"scale": scale})
        assert EgoDTMConfig(video=VideoViTConfig.of_size(size), decoder=decoder).depth_size == side


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("clips", [1, 3])
def test_lean_depth_is_plain_depth(scale: int, clips: int) -> None:
    """The same maps, loss and gradients, frame by frame and with the mask features' convolution folded away."""
    decoder = DepthDecoderConfig(**DECODER_SIZES["nano"] | {"scale": scale})
    found = []
    for depth_memory in DEPTH_MEMORY:
        model = nano(frames=3, decoder=decoder, depth_memory=depth_memory)
        with torch.no_grad():
            model.pyramid.mask_features.bias.normal_(generator=torch.Generator().manual_seed(1))
        batch = batch_for(model, batch=clips)
        loss, _ = loss_of(model, batch)
        loss.backward()
        depth = model(batch["video"], batch["text_ids"]).depth
        found.append((depth.detach(), loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (lean, lean_loss, lean_gradients), (plain, plain_loss, plain_gradients) = found
    torch.testing.assert_close(lean, plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lean_loss, plain_loss, atol=1e-6, rtol=1e-6)
    for name, gradient in plain_gradients.items():
        if gradient is not None:
            torch.testing.assert_close(lean_gradients[name], gradient, atol=2e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("chunks", [1, 2, 5, 6, 50])
def test_lean_depth_in_any_number_of_parts(chunks: int) -> None:
    model = nano(frames=3)
    maps = torch.randn(6, 32, 2, 2)
    readings = model.decoder.read(torch.randn(2, 12, 32))
    expected = paint(readings, model.pyramid.mask_features(model.pyramid.fine(maps)).unflatten(0, (2, 3)))
    torch.testing.assert_close(paint_lean(model.pyramid, maps, readings, chunks=chunks), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth_memory", DEPTH_MEMORY)
@pytest.mark.parametrize("contrastive", CONTRASTIVE)
def test_bf16_autocast_trains(contrastive: str, depth_memory: str) -> None:
    model = nano(contrastive=contrastive, depth_memory=depth_memory)
    batch = batch_for(model)
    exact = float(loss_of(model, batch, contrastive=contrastive)[0].detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = loss_of(model, batch, contrastive=contrastive)
    loss.backward()
    assert loss.dtype == torch.float32 and float(loss.detach()) == pytest.approx(exact, rel=0.05)
    assert without_gradient(model) == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_positions_are_tiled_over_frames_and_the_class_token_gets_only_the_first() -> None:
    vit = VideoViT(VideoViTConfig.of_size("nano", frames=2))
    assert not vit.temporal_position.any()
    assert not vit.spatial_position[0].any()
    positions = sincos_positions_2d(3, 8)
    assert positions.shape == (9, 8)
    # Rows and columns are coded apart: same row, same first half; same column, same second half.
    table = positions.reshape(3, 3, 8)
    torch.testing.assert_close(table[1, 0, :4], table[1, 2, :4])
    torch.testing.assert_close(table[0, 1, 4:], table[2, 1, 4:])
    assert len(np.unique(positions.numpy().round(5), axis=0)) == 9


def test_an_encoder_that_is_trained_further_may_see_fewer_frames() -> None:
    """Of a clip of one frame it makes what the tower makes of a clip's last frame alone; a frozen one keeps its clip."""
    encoder = random_encoder("nano", seed=0, frames=3)
    with torch.no_grad():
        encoder.vit.temporal_position.normal_()
    assert encoder.shortened(1) is encoder and encoder.shortened(3, trained=True) is encoder
    short = encoder.shortened(1, trained=True)
    assert (short.spec.frames, short.spec.grid, short.config["frames"]) == (1, (1, 2, 2), 1) and not short.training
    assert short.spec.weights_sha256 == encoder.spec.weights_sha256
    assert short.spec.fingerprint() != encoder.spec.fingerprint()
    clip = torch.rand(2, 1, 3, 32, 32)
    alone = VideoViT(VideoViTConfig(**short.config)).eval()
    alone.load_state_dict(encoder.vit.state_dict() | {"temporal_position": encoder.vit.temporal_position[-1:].detach()})
    with torch.no_grad():
        torch.testing.assert_close(short(clip).tokens, alone(clip)[1])


def test_patches_are_cut_as_a_convolution_would() -> None:
    vit = VideoViT(VideoViTConfig.of_size("nano", frames=2, image_size=48))
    video = torch.randn(1, 2, 3, 48, 48)
    kernel = vit.patch_embed.weight.reshape(32, 3, 16, 16)
    expected = torch.nn.functional.conv2d(video[0], kernel, stride=16).flatten(2).transpose(1, 2)
    torch.testing.assert_close(vit.patch_embed(vit.patchify(video))[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_pyramid_scales(scale: int) -> None:
    coarse, fine = SimpleFeaturePyramid(16, scale)(torch.randn(2, 16, 3, 4))
    assert coarse.shape == (2, 16, 3, 4)
    assert fine.shape == (2, 16, 3 * scale, 4 * scale)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12), st.integers(0, 2**31))
def test_bins_and_depth_stay_in_range(raw: list[float], seed: int) -> None:
    edges, centres = bin_edges_and_centres(torch.tensor([raw]))
    assert edges.shape == (1, len(raw) + 1)
    assert edges[0, 0] == 0 and abs(float(edges[0, -1]) - 1) < 1e-5
    assert (edges.diff() > 0).all(), "edges rise"
    assert (centres > 0).all() and (centres < 1).all()
    logits = 30 * torch.randn(1, 2, len(raw), 7, generator=torch.Generator().manual_seed(seed))
    depth = compose_depth(logits, centres)
    assert depth.shape == (1, 2, 7)
    assert (depth > 0).all() and (depth < 1).all()
    # One and the same depth for all queries comes out as it is: the weights sum to 1.
    same = torch.full_like(centres, 0.37)
    torch.testing.assert_close(compose_depth(logits, same), torch.full_like(depth, 0.37))
    assert (depth >= centres.min() - 1e-5).all() and (depth <= centres.max() + 1e-5).all()


def test_decoder_does_not_mix_clips() -> None:
    decoder = DepthDecoder(DepthDecoderConfig(**DECODER_SIZES["nano"]))
    memory, features = torch.randn(2, 12, 32), torch.randn(2, 3, 32, 4, 4)
    together = decoder(memory, features)
    torch.testing.assert_close(decoder(memory[1:], features[1:])[:, 0], together[:, 1], atol=1e-5, rtol=1e-4)


def test_tokens_are_clips() -> None:
    ids = tokenize(["a photo of a cat", "A Photo of a CAT", "word " * 200])
    assert ids.shape == (3, 77)
    # Start, "a photo of a cat" in CLIP's vocabulary, end.
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert torch.equal(ids[0], ids[1])
    assert ids[2, -1] == 49407, "a text too long keeps its end"


def test_text_behind_the_end_does_not_matter() -> None:
    torch.manual_seed(0)
    tower = TextTower(TextConfig.of_size("nano"), joint_dim=8)
    ids = tokenize(TEXTS)
    with torch.inference_mode():
        alone = torch.cat([tower(row[None]) for row in ids])
        torch.testing.assert_close(tower(ids), alone, atol=1e-5, rtol=1e-4)
        changed = ids.clone()
        changed[0, int(ids[0].argmax()) + 1] = 320
        torch.testing.assert_close(tower(changed), alone, atol=1e-5, rtol=1e-4)
        # The released model's variant sees its pads.
        both_ways = TextTower(TextConfig.of_size("nano", causal=False), joint_dim=8)
        assert (both_ways(changed)[0] - both_ways(ids)[0]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VideoViTConfig(image_size=100), "image_size: 100 is not a multiple of the patch of 16 px.*96, 112"),
        (lambda: VideoViTConfig(heads=5), "width: 192 is not a multiple of heads 5"),
        (lambda: VideoViTConfig.of_size("huge"), "unknown size 'huge'; known: nano, tiny"),
        (lambda: DepthDecoderConfig(scale=3), "scale: expected 1, 2, 4 or 8, got 3"),
        (
            lambda: LossConfig(depth_error="huber"),
            "depth_error: expected one of l1, mse, silog, ssi, ssi_trimmed, got 'huber'",
        ),
        (lambda: LossConfig(contrastive="triplet"), "contrastive: expected one of infonce, siglip, got 'triplet'"),
        (lambda: EgoDTMConfig(contrastive="triplet"), "contrastive: expected one of infonce, siglip, got 'triplet'"),
        (lambda: nano(depth_memory="none"), "depth_memory: expected one of lean, plain, got 'none'"),
        (lambda: TextConfig(width=100, heads=3), "width: 100 is not a multiple of heads 3"),
    ],
)
def test_wrong_sizes_are_named(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()

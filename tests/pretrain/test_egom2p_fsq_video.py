"""The discrete video tokenizer: exact patches, causality, the quantizer's formula, published sizes, and that it learns."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from vector_quantize_pytorch import FSQ

from pretrain.egom2p.modalities import MODALITIES
from pretrain.egom2p.tokenizers.causal_video import (
    CausalConv,
    Downsample,
    Upsample,
    haar_split,
    patch_image,
    patch_video,
    still_channels,
    unpatch_video,
)
from pretrain.egom2p.tokenizers.fsq_video import FSQ_VIDEO_SIZES, FsqVideoConfig, FsqVideoTokenizer, edge_l1


def nano(**changes) -> FsqVideoTokenizer:
    torch.manual_seed(0)
    return FsqVideoTokenizer(FsqVideoConfig.of_size("nano", **changes), name="nano")


def clips_for(tokenizer: FsqVideoTokenizer, batch: int = 2) -> torch.Tensor:
    """Bright squares that move over a slope."""
    _, frames, side, _ = tokenizer.spec.input_shape
    x = torch.linspace(-0.5, 0.5, side).expand(batch, 3, frames, side, side).clone()
    for clip, frame in itertools.product(range(batch), range(frames)):
        left = (clip + frame) % (side // 2)
        x[clip, clip % 3, frame, side // 4 : side // 2, left : left + side // 2] = 0.9
    return x


# ------------------------------------------------------------------------------------------------------------ patches


@settings(max_examples=25, deadline=None)
@given(
    patch=st.sampled_from([1, 2, 4]),
    steps=st.integers(0, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpatching_undoes_patching_exactly(patch: int, steps: int, rows: int, columns: int, seed: int) -> None:
    shape = (2, 3, 1 + steps * patch, rows * patch, columns * patch)
    # Whole numbers in float64: sums and halves of them are exact.
    video = torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, shape).astype(np.float64))
    patches = patch_video(video, patch)
    assert patches.shape == (2, 3 * patch**3, 1 + steps, rows, columns)
    assert torch.equal(unpatch_video(patches, patch), video)


def test_haar_bands_are_signed_means_in_the_releases_order() -> None:
    """Band (i, j, k) over time, rows, columns: mean of the cube with signs -1 at odd places of the axes that are 1."""
    cube = torch.rand(1, 2, 2, 2, 2, dtype=torch.float64)
    bands = haar_split(cube)[0, :, 0, 0, 0].reshape(8, 2)
    for index, (i, j, k) in enumerate(itertools.product((0, 1), repeat=3)):
        expected = torch.zeros(2, dtype=torch.float64)
        for t, h, w in itertools.product((0, 1), repeat=3):
            expected += (-1) ** (i * t + j * h + k * w) * cube[0, :, t, h, w] / 8
        torch.testing.assert_close(bands[index], expected)


def test_the_first_patch_holds_the_first_frame_alone() -> None:
    video = torch.rand(1, 3, 5, 4, 4)
    other = video.clone()
    other[:, :, 1:] = torch.rand(1, 3, 4, 4, 4)
    a, b = patch_video(video, 4), patch_video(other, 4)
    assert torch.equal(a[:, :, 0], b[:, :, 0]) and not torch.equal(a[:, :, 1], b[:, :, 1])


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_a_frame_alone_has_only_means_over_time(patch: int) -> None:
    frame = torch.rand(2, 3, 1, 8, 12, dtype=torch.float64)
    patches, still = patch_video(frame, patch), still_channels(3, patch)
    assert len(still) == 3 * patch**2
    torch.testing.assert_close(patch_image(frame, patch), patches[:, still])
    moving = [channel for channel in range(patches.shape[1]) if channel not in still]
    assert not patches[:, moving].any()


# ------------------------------------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize(("space", "time", "stride"), [(1, 1, 1), (3, 1, 1), (3, 1, 2), (1, 3, 1), (1, 3, 2)])
def test_convolutions_equal_padded_3d_ones(space: int, time: int, stride: int) -> None:
    torch.manual_seed(0)
    conv = CausalConv(4, 6, space=space, time=time, stride=stride)
    x = torch.randn(2, 6, 4, 8, 8)
    video = x.transpose(1, 2)
    if time == 3:
        video = torch.cat([video[:, :, :1]] * (3 - stride) + [video], dim=2)
        padding = (0, 0, 0, 0)
    else:
        padding = (0, 1, 0, 1) if stride == 2 else (space // 2,) * 4
    strides = (stride, 1, 1) if time == 3 else (1, stride, stride)
    expected = F.conv3d(F.pad(video, padding), conv.conv3d.weight, conv.conv3d.bias, stride=strides)
    torch.testing.assert_close(conv(x), expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_down_and_up_keep_the_count_of_frames(frames: int) -> None:
    x = torch.randn(1, frames, 4, 8, 8)
    down = Downsample(4, space=True, time=True)(x)
    assert down.shape == (1, (frames + 1) // 2, 4, 4, 4)
    assert Upsample(4, space=True, time=True)(down).shape == x.shape


# ------------------------------------------------------------------------------------------------------------ quantizer


def plain_fsq(z: torch.Tensor, levels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and indices by the release's formula, number for number."""
    codes, index, basis = torch.zeros_like(z), torch.zeros(z.shape[:-1], dtype=torch.int64), 1
    for axis, level in enumerate(levels):
        half = (level - 1) * (1 + 1e-3) / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        bounded = torch.tanh(z[..., axis] + math.atanh(offset / half)) * half - offset
        rounded = torch.round(bounded)
        codes[..., axis] = rounded / (level // 2)
        index += (rounded + level // 2).long() * basis
        basis *= level
    return codes, index


@settings(max_examples=30, deadline=None)
@given(levels=st.lists(st.integers(3, 9), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_the_packages_quantizer_is_the_releases(levels: list[int], seed: int) -> None:
    fsq = FSQ(levels, return_indices=False)
    z = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (50, len(levels))).astype(np.float32))
    codes = fsq.quantize(z)
    expected, index = plain_fsq(z, levels)
    torch.testing.assert_close(codes, expected, atol=0, rtol=1e-6)
    assert torch.equal(fsq.codes_to_indices(codes).long(), index)


@settings(max_examples=30, deadline=None)
@given(levels=st.lists(st.integers(3, 9), min_size=1, max_size=4))
def test_every_id_comes_back_from_its_code(levels: list[int]) -> None:
    fsq = FSQ(levels, return_indices=False)
    ids = torch.arange(math.prod(levels))
    codes = fsq._indices_to_codes(ids)
    assert torch.equal(fsq.codes_to_indices(codes).long(), ids)
    assert codes.abs().max() <= 1


def test_the_published_basis() -> None:
    assert FSQ([8, 8, 8, 5, 5, 5], return_indices=False)._basis.tolist() == [1, 8, 64, 512, 2560, 12800]


# --------------------------------------------------------------------------------------------------------- geometry


def test_published_sizes() -> None:
    with torch.device("meta"):
        tokenizer = FsqVideoTokenizer(FsqVideoConfig(), name="published")
    assert tokenizer.spec.grid == MODALITIES["rgb"].published == MODALITIES["depth"].published
    assert tokenizer.spec.input_shape == MODALITIES["rgb"].input_shape(256) == (3, 16, 256, 256)

    def mega_bytes(*parts: torch.nn.Module) -> float:
        return sum(parameter.numel() for part in parts for parameter in part.parameters()) * 2 / 1e6

    # The release's bfloat16 files are 86.6 and 125 MB, 0.8 of which is the quantizer's table and the rest the program.
    assert 85 < mega_bytes(tokenizer.encoder, tokenizer.quant_conv) < 86
    assert 123 < mega_bytes(tokenizer.decoder, tokenizer.post_quant_conv) < 125


@pytest.mark.parametrize("size", FSQ_VIDEO_SIZES)
def test_every_size_builds(size: str) -> None:
    with torch.device("meta"):
        tokenizer = FsqVideoTokenizer(FsqVideoConfig.of_size(size), name=size)
    assert tokenizer.spec.grid.vocabulary == math.prod(tokenizer.shape.levels)


@pytest.mark.parametrize(
    ("changes", "grid"),
    [
        ({}, (2, 2, 2)),
        ({"frames": 1}, (1, 2, 2)),
        ({"frames": 6}, (3, 2, 2)),
        ({"frames": 16, "image_size": 24}, (5, 3, 3)),
        ({"spatial_compression": 4, "channel_multipliers": (1,)}, (2, 4, 4)),
        ({"patch_size": 1, "spatial_compression": 2, "temporal_compression": 1}, (5, 8, 8)),
        ({"patch_size": 2, "temporal_compression": 4, "channel_multipliers": (1, 1, 1)}, (2, 2, 2)),
        ({"frames": 9, "temporal_compression": 8, "channel_multipliers": (1, 1, 1)}, (2, 2, 2)),
        ({"attention_resolutions": (2, 4), "resolution": 16}, (2, 2, 2)),
    ],
)
def test_shapes_over_geometries(changes: dict, grid: tuple[int, ...]) -> None:
    tokenizer = nano(**{"channels": 4} | changes)
    x = clips_for(tokenizer, 1)
    ids = tokenizer.encode(x)
    assert tokenizer.spec.grid.shape == grid
    assert ids.shape == (1, math.prod(grid)) and ids.dtype == torch.int64
    back = tokenizer.decode(ids)
    assert back.shape == x.shape and back.dtype == torch.float32 and back.abs().max() <= 1


# ------------------------------------------------------------------------------------------------------------ causality


@pytest.mark.parametrize("changes", [{}, {"frames": 17, "temporal_compression": 8, "channel_multipliers": (1, 1, 1)}])
def test_a_later_frame_leaves_earlier_tokens_alone(changes: dict) -> None:
    tokenizer = nano(**{"frames": 9, "attention_resolutions": (256,)} | changes)
    stride = tokenizer.shape.temporal_compression
    assert len(tokenizer.encoder.down[0].attn) == 1
    x = clips_for(tokenizer)
    whole = tokenizer.latents(x)
    for changed in (1, stride, stride + 1):
        other = x.clone()
        other[:, :, changed:] = -other[:, :, changed:]
        # Step k > 0 is frames stride * (k - 1) + 1 to stride * k.
        step = -(-changed // stride)
        latents = tokenizer.latents(other)
        torch.testing.assert_close(latents[:, :step], whole[:, :step], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(latents[:, step], whole[:, step], atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_resolutions": (256,)},
        {"patch_size": 2, "spatial_compression": 4, "temporal_compression": 4, "channel_multipliers": (1, 1, 1)},
        {"frames": 17, "temporal_compression": 8, "channel_multipliers": (1, 1, 1)},
    ],
)
def test_an_image_costs_less_and_is_the_first_step_of_its_clip(changes: dict) -> None:
    tokenizer = nano(**changes).double()
    x = clips_for(tokenizer, 3).double()
    alone = tokenizer.quant_conv(tokenizer.encoder(x[:, :, :1])).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(alone, tokenizer.latents(x)[:, :1])
    cells = math.prod(tokenizer.spec.grid.shape[1:])
    assert torch.equal(tokenizer.history_to_ids(x[:, :, :1]), tokenizer.encode(x)[:, :cells])
    counts = []
    for video in (x[:, :, :1], x[:, :, : 1 + tokenizer.shape.temporal_compression]):
        with FlopCounterMode(display=False) as counter:
            tokenizer.encoder(video)
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.45 * counts[1]


def test_the_filling_frames_repeat_the_last() -> None:
    tokenizer, filled = nano(frames=4), nano(frames=5)
    x = clips_for(tokenizer)
    assert torch.equal(tokenizer.encode(x), filled.encode(torch.cat([x, x[:, :, -1:]], dim=2)))


# ------------------------------------------------------------------------------------------------------------- training


def test_gradients_reach_every_parameter() -> None:
    tokenizer = nano(attention_resolutions=(128,))
    tokenizer.loss(clips_for(tokenizer))[0].backward()
    without = [name for name, parameter in tokenizer.named_parameters() if not parameter.grad.abs().sum() > 0]
    # Adding the same to all keys changes no attention.
    assert [name for name in without if not name.endswith("k.conv3d.bias")] == []


def test_a_few_steps_lower_the_loss_of_a_batch() -> None:
    tokenizer = nano()
    x = clips_for(tokenizer)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    losses, scalars = [], {}
    for _ in range(40):
        loss, scalars = tokenizer.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert not any(scalar.requires_grad for scalar in scalars.values())
    assert 1 <= scalars["perplexity"] <= scalars["codes_used"] + 1e-3


def test_codes_spread_from_the_start() -> None:
    tokenizer = nano(frames=16, image_size=64)
    assert len(tokenizer.encode(clips_for(tokenizer)).unique()) > 10


def test_the_loss_is_of_the_decoded_pixels() -> None:
    tokenizer = nano(edge_weight=0.0)
    x = clips_for(tokenizer)
    loss, scalars = tokenizer.loss(x)
    decoded = tokenizer.decode(tokenizer.encode(x))
    torch.testing.assert_close(loss, (decoded - x).abs().mean(), atol=1e-5, rtol=1e-5)  # nothing is clamped here
    mse = (decoded - x).square().mean()
    torch.testing.assert_close(scalars["psnr_db"], 10 * torch.log10(4 / mse), atol=1e-3, rtol=1e-3)


def test_edge_term_sees_structure_not_brightness() -> None:
    assert edge_l1(torch.full((1, 3, 2, 4, 4), 0.3)) == 0
    ramp = torch.arange(4.0).expand(1, 3, 2, 4, 4)
    torch.testing.assert_close(edge_l1(ramp), torch.tensor(1 / 3))  # 1 along columns, 0 along rows and time
    assert edge_l1(torch.zeros(1, 3, 1, 1, 1)) == 0


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 100}, "nearest that are: 96, 104"),
        ({"patch_size": 3}, "fsq_video.patch_size: expected a power of two, got 3"),
        ({"temporal_compression": 2}, "expected at least patch_size 4, got 2"),
        ({"levels": (8, 2)}, "fsq_video.levels"),
        ({"levels": ()}, "fsq_video.levels"),
        ({"channel_multipliers": ()}, "fsq_video.channel_multipliers"),
        ({"channel_multipliers": (1,)}, "need 1 and 0: add a multiplier"),
        ({"temporal_compression": 8, "channel_multipliers": (1, 2)}, "need 1 and 1: add a multiplier"),
        ({"frames": 0}, "fsq_video.frames"),
        ({"edge_weight": -1.0}, "fsq_video.edge_weight"),
    ],
)
def test_bad_configurations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        FsqVideoConfig(**changes)


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="known: nano, tiny"):
        FsqVideoConfig.of_size("huge")

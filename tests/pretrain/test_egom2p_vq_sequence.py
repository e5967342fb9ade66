"""The tokenizer of sequences: masks, statistics, codes that live and die, published sizes, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.egom2p.modalities import MODALITIES
from pretrain.egom2p.tokenizers.vq_sequence import (
    PUBLISHED_CAMERA_MEAN,
    PUBLISHED_CAMERA_STD,
    SMALLEST_STD,
    VqSequenceConfig,
    VqSequenceTokenizer,
    sincos_positions_1d,
)

SEQUENCES = ("gaze", "camera", "hands")


def nano(modality: str = "camera", **changes) -> VqSequenceTokenizer:
    torch.manual_seed(0)
    config = VqSequenceConfig.for_modality(modality, "nano", **({"codebook_size": 16} | changes))
    return VqSequenceTokenizer(config, name="nano", modalities=(modality,))


def clips_for(tokenizer: VqSequenceTokenizer, batch: int = 8, seed: int = 0) -> torch.Tensor:
    """Walks, a quarter of them masked where there are masks."""
    generator = torch.Generator().manual_seed(seed)
    shape, samples = tokenizer.shape, tokenizer.shape.samples
    x = torch.randn(batch, samples, shape.channels, generator=generator).cumsum(1) * 0.1
    mask = (torch.rand(batch, samples, shape.mask_channels, generator=generator) > 0.25).float()
    return torch.cat([x, mask], dim=-1)


# ----------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("modality", ["gaze", "camera"])
def test_published_sizes(modality: str) -> None:
    with torch.device("meta"):
        config = VqSequenceConfig.for_modality(modality)
        tokenizer = VqSequenceTokenizer(config, name="published", modalities=(modality,))
    assert tokenizer.spec.grid == MODALITIES[modality].published
    assert tokenizer.spec.input_shape == MODALITIES[modality].input_shape(256)
    assert tokenizer.quantizer.codebook.shape == (256, 32)
    blocks = [len(part.blocks) for part in (tokenizer.encoder, tokenizer.decoder)]
    assert blocks == [12, 12] and tokenizer.encoder.blocks[0].attn.qkv.weight.shape == (3 * 768, 768)
    assert len(PUBLISHED_CAMERA_MEAN) == len(PUBLISHED_CAMERA_STD) == MODALITIES["camera"].channels


@pytest.mark.parametrize("modality", SEQUENCES)
def test_shapes(modality: str) -> None:
    tokenizer = nano(modality)
    x = clips_for(tokenizer, 3)
    assert x.shape[1:] == MODALITIES[modality].input_shape(64)
    ids = tokenizer.encode(x)
    assert ids.shape == (3, 30) and ids.dtype == torch.int64 and ids.min() >= 0 and ids.max() < 16
    assert tokenizer.decode(ids).shape == (3, 60, MODALITIES[modality].decoded_channels)


def test_positions_are_sines_then_cosines() -> None:
    table = sincos_positions_1d(30, 8)
    for position, channel in ((0, 0), (7, 1), (29, 3)):
        angle = position / 10000 ** (2 * channel / 8)
        torch.testing.assert_close(table[position, channel], torch.tensor(math.sin(angle)))
        torch.testing.assert_close(table[position, 4 + channel], torch.tensor(math.cos(angle)))


# -------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("modality", ["gaze", "hands"])
@pytest.mark.parametrize("garbage", [5.0, float("nan"), float("inf")])
def test_what_is_masked_changes_nothing(modality: str, garbage: float) -> None:
    tokenizer = nano(modality).eval()
    tokenizer.set_statistics(torch.full((tokenizer.shape.channels,), 0.3), torch.full((tokenizer.shape.channels,), 2.0))
    x = clips_for(tokenizer)
    channels, masks = tokenizer.shape.channels, tokenizer.shape.mask_channels
    hidden = (x[..., channels:] == 0).repeat_interleave(channels // masks, dim=-1)
    other = x.clone()
    other[..., :channels][hidden] = garbage
    assert hidden.any()
    (loss, scalars), (other_loss, other_scalars) = tokenizer.loss(x), tokenizer.loss(other)
    assert torch.equal(loss, other_loss) and torch.equal(scalars["reconstruction"], other_scalars["reconstruction"])
    assert torch.equal(tokenizer.encode(x), tokenizer.encode(other))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_gaze_loss_is_the_published_formula(seed: int) -> None:
    """sum(mask * squared error of x and y) / sum(mask), and the mean square of latent less code."""
    tokenizer = nano("gaze").eval()
    x = clips_for(tokenizer, seed=seed)
    mask = x[..., 2]
    error = tokenizer.decode(tokenizer.encode(x)) - x[..., :2]
    reconstruction = (mask[..., None] * error.square()).sum() / mask.sum()
    latents = tokenizer.latents(x[..., :2] * mask[..., None])
    codes = F.normalize(tokenizer.quantizer.codebook, dim=-1)
    nearest = codes[(F.normalize(latents, dim=-1) @ codes.T).argmax(-1)]
    expected = reconstruction + (nearest - latents).square().mean()
    torch.testing.assert_close(tokenizer.loss(x)[0], expected, atol=1e-5, rtol=1e-5)


def test_camera_loss_is_a_plain_mean_of_standardised_values() -> None:
    tokenizer = nano("camera", commitment_weight=0.0).eval()
    tokenizer.set_statistics(PUBLISHED_CAMERA_MEAN, PUBLISHED_CAMERA_STD)
    x = clips_for(tokenizer)
    error = (tokenizer.decode(tokenizer.encode(x)) - x) / tokenizer.std
    torch.testing.assert_close(tokenizer.loss(x)[0], error.square().mean(), atol=1e-5, rtol=1e-4)


def test_each_hand_has_its_mask() -> None:
    tokenizer = nano("hands").eval()
    x = clips_for(tokenizer)
    x[..., -2:] = torch.tensor([1.0, 0.0])
    other = x.clone()
    other[..., 63:126] = 7.0
    assert torch.equal(tokenizer.loss(x)[0], tokenizer.loss(other)[0])
    other[..., 0] = 7.0
    assert not torch.equal(tokenizer.loss(x)[0], tokenizer.loss(other)[0])


def test_a_batch_without_anything_valid_has_a_finite_loss() -> None:
    tokenizer = nano("gaze")
    loss, scalars = tokenizer.loss(torch.zeros(2, 60, 3))
    loss.backward()
    assert loss.isfinite() and scalars["reconstruction"] == 0


# ---------------------------------------------------------------------------------------------------- standardisation


def test_statistics_are_those_of_the_valid_values() -> None:
    tokenizer = nano("hands")
    batches = [clips_for(tokenizer, 8, seed=seed) for seed in range(3)]
    tokenizer.fit_statistics(batches)
    values = torch.cat(batches)
    for channel, mask in ((0, 126), (62, 126), (63, 127), (125, 127)):
        valid = values[..., channel][values[..., mask] > 0.5]
        torch.testing.assert_close(tokenizer.mean[channel], valid.mean())
        torch.testing.assert_close(tokenizer.std[channel], valid.std(correction=0))


def test_a_still_channel_is_not_blown_up() -> None:
    tokenizer = nano("camera")
    x = clips_for(tokenizer)
    x[..., 4] = 1.0
    tokenizer.fit_statistics([x])
    assert tokenizer.mean[4] == 1 and tokenizer.std[4] == pytest.approx(SMALLEST_STD)
    assert tokenizer.loss(x)[0].isfinite()


def test_statistics_are_undone_by_decoding() -> None:
    tokenizer = nano("camera")
    ids = torch.randint(0, 16, (2, 30))
    plain = tokenizer.decode(ids)
    tokenizer.set_statistics(PUBLISHED_CAMERA_MEAN, PUBLISHED_CAMERA_STD)
    expected = plain * torch.tensor(PUBLISHED_CAMERA_STD) + torch.tensor(PUBLISHED_CAMERA_MEAN)
    torch.testing.assert_close(tokenizer.decode(ids), expected)
    assert {"mean", "std"} <= tokenizer.state_dict().keys()


def test_statistics_of_nothing_and_of_wrong_numbers_are_refused() -> None:
    tokenizer = nano("gaze")
    with pytest.raises(ValueError, match=r"channels \[0, 1\] have no valid value"):
        tokenizer.fit_statistics([torch.zeros(2, 60, 3)])
    with pytest.raises(ValueError, match="expected 2 finite numbers"):
        tokenizer.set_statistics([0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="std: expected positive"):
        tokenizer.set_statistics([0.0, 0.0], [1.0, 0.0])


# ------------------------------------------------------------------------------------------------------------- codebook


def test_codes_start_as_latents_of_the_first_batch() -> None:
    tokenizer = nano("camera", decay=0.999999)
    x = clips_for(tokenizer)
    latents = F.normalize(tokenizer.latents(tokenizer._standardised(x)[0]).detach().flatten(0, 1), dim=-1)
    tokenizer.loss(x)
    nearest = (tokenizer.quantizer.codebook @ latents.T).max(dim=1).values
    assert (nearest > 0.999).all()


@pytest.mark.parametrize("batch", [2, 64])
def test_dead_codes_are_replaced_and_used_ones_are_not(batch: int) -> None:
    tokenizer = nano("camera")
    x = clips_for(tokenizer, batch)
    tokenizer.loss(x)
    codebook = tokenizer.quantizer._codebook
    # Two dead codes, in a direction no latent has; the others much used.
    latents = tokenizer.latents(tokenizer._standardised(x)[0]).detach().flatten(0, 1)
    away = -F.normalize(latents.mean(0), dim=0)
    codebook.cluster_size.fill_(1000.0)
    codebook.cluster_size[0, :2] = 1e-6
    codebook.embed_avg.copy_(codebook.embed * codebook.cluster_size[..., None])
    codebook.embed[0, :2] = away
    codebook.embed_avg[0, :2] = away * 1e-6
    before = codebook.embed.clone()
    tokenizer.loss(x)
    similar = F.cosine_similarity(codebook.embed[0], before[0], dim=-1)
    assert (similar[:2] < 0.9).all() and (similar[2:] > 0.9).all()
    directions = F.normalize(latents, dim=-1)
    assert ((codebook.embed[0, :2] @ directions.T).max(dim=1).values > 0.99).all()


def test_small_batches_do_not_reset_the_whole_codebook_each_step() -> None:
    tokenizer = nano("camera", codebook_size=64)
    x = clips_for(tokenizer, 2)  # less than one use a code and step, below the published threshold of 2
    for _ in range(5):
        tokenizer.loss(x)
    used = tokenizer.encode(x).unique()
    before = tokenizer.quantizer.codebook.clone()
    tokenizer.loss(x)
    similar = F.cosine_similarity(tokenizer.quantizer.codebook, before, dim=-1)
    assert (similar[used] > 0.999).all()


def test_evaluation_and_encoding_leave_the_codebook_alone() -> None:
    tokenizer = nano("gaze")
    x = clips_for(tokenizer)
    tokenizer.loss(x)
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    trained_ids = tokenizer.encode(x)
    tokenizer.eval()
    tokenizer.loss(x)
    assert torch.equal(tokenizer.encode(x), trained_ids)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tokenizer.state_dict().items())


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("modality", SEQUENCES)
def test_gradients_reach_every_parameter(modality: str) -> None:
    tokenizer = nano(modality)
    tokenizer.loss(clips_for(tokenizer))[0].backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("modality", SEQUENCES)
def test_a_few_steps_lower_the_loss_of_a_batch(modality: str) -> None:
    tokenizer = nano(modality, codebook_size=32)
    x = clips_for(tokenizer)
    tokenizer.fit_statistics([x])
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    errors, scalars = [], {}
    for _ in range(60):
        loss, scalars = tokenizer.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(scalars["reconstruction"]))
    assert errors[-1] < 0.8 * errors[0]
    assert not any(scalar.requires_grad for scalar in scalars.values())


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 61}, "61 is not a multiple of samples_per_token 2"),
        ({"width": 10, "heads": 3}, "10 is not a multiple of heads 3"),
        ({"width": 9, "heads": 3}, "9 is odd"),
        ({"channels": 9, "mask_channels": 2}, "9 channels do not divide among 2 masks"),
        ({"decay": 1.0}, "vq_sequence.decay"),
        ({"codebook_size": 1}, "vq_sequence.codebook_size"),
        ({"layers": 0}, "vq_sequence.layers"),
        ({"commitment_weight": -1.0}, "vq_sequence.commitment_weight"),
    ],
)
def test_bad_configurations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VqSequenceConfig(**changes)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="'rgb' is no sequence; sequences: gaze, camera, hands"):
        VqSequenceConfig.for_modality("rgb")
    with pytest.raises(ValueError, match="known: nano, tiny, published"):
        VqSequenceConfig.for_modality("gaze", "huge")

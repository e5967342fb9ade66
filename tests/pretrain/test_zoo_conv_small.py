"""conv-small: the sizes it refuses, and that all of it is trained."""

import pytest
import torch

from pretrain.encoder import load_encoder
from pretrain.zoo.conv_small import ConvSmallConfig


def test_every_parameter_gets_a_gradient() -> None:
    encoder = load_encoder("conv-small")
    video = torch.randint(0, 256, (2, 1, 60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    output = encoder(encoder.preprocess(video))
    assert 100_000 <= sum(parameter.numel() for parameter in encoder.parameters()) <= 300_000
    torch.testing.assert_close(output.pooled, output.tokens.mean(dim=1))
    output.tokens[..., 0].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image_size": 100}, "conv.image_size: 100 is not a positive multiple of 16"),
        ({"channels": (16, 20)}, r"conv.channels: expected positive multiples of groups 8, got \[16, 20\]"),
        ({"channels": ()}, "conv.channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ConvSmallConfig(**values)

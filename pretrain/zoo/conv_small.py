"""A small convolutional network: what a policy trains end to end on its own demonstrations (`backbone.adaptation=full`).

The row beside which a pretrained encoder is read: with enough demonstrations of one task, a network of this size that learns
from their images alone is hard to beat. Frozen, it is a random feature map.
"""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.encoder import EncoderOutput, EncoderSpec, VideoEncoder

NAME = "conv-small"


@dataclass(frozen=True, kw_only=True)
class ConvSmallConfig:
    """Attributes:
    image_size: H = W, pixels; a multiple of 2 ** len(channels).
    channels: of the layers, each of which halves the picture; the last is D. Grid and D are those of egodtm-tiny, so that a
        policy's head is the same; the first layers, where most of the time goes, are narrow.
    groups: of every GroupNorm.
    """

    image_size: int = 112
    channels: tuple[int, ...] = (16, 32, 64, 192)
    groups: int = 8

    def __post_init__(self) -> None:
        if not self.channels or self.groups < 1 or any(width < 1 or width % self.groups for width in self.channels):
            raise ValueError(
                f"conv.channels: expected positive multiples of groups {self.groups}, got {list(self.channels)}"
            )
        if self.image_size < 1 or self.image_size % 2 ** len(self.channels):
            raise ValueError(
                f"conv.image_size: {self.image_size} is not a positive multiple of {2 ** len(self.channels)}, "
                f"which {len(self.channels)} layers of stride 2 need"
            )

    @property
    def grid_side(self) -> int:
        """h = w of the last feature map."""
        return self.image_size // 2 ** len(self.channels)


class ConvSmallEncoder(VideoEncoder):
    """tokens: the positions of the last feature map, frame grid (1, h, w). pooled: their mean.

    GroupNorm rather than BatchNorm: features do not depend on the batch, and nothing is frozen when a policy trains it.
    """

    architecture = "conv"

    def __init__(self, config: ConvSmallConfig, *, name: str = NAME) -> None:
        side = config.grid_side
        spec = EncoderSpec(
            name=name,
            frames=1,
            fps=0.0,
            image_size=config.image_size,
            grid=(1, side, side),
            embed_dim=config.channels[-1],
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resize="stretch",
            weights_sha256="",
        )
        super().__init__(spec, asdict(config))
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((3, *config.channels)):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(config.groups, after),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: EncoderSpec) -> Self:
        """The same network from an artifact's config and spec, with fresh weights from torch's generator."""
        encoder = cls(ConvSmallConfig(**{**config, "channels": tuple(config["channels"])}), name=spec.name)
        encoder.spec = spec
        return encoder

    def features(self, x: Float[Tensor, "B 1 3 H W"]) -> EncoderOutput:
        image = x[:, 0].contiguous(memory_format=torch.channels_last)  # 15 % faster than channels first on a CPU
        tokens = self.layers(image).flatten(2).transpose(1, 2)
        return EncoderOutput(tokens=tokens, pooled=tokens.mean(dim=1), grid=self.spec.grid)


def random_encoder(*, seed: int) -> ConvSmallEncoder:
    """conv-small with weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ConvSmallEncoder(ConvSmallConfig())
    return encoder.renamed(NAME).eval()

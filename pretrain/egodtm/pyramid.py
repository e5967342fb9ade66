"""ViTDet's simple feature pyramid: a plain ViT's last map brought to the scales a dense head wants.

Axes: n images, C channels, h w the map's rows and columns.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

NORM_EPSILON = 1e-6


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of an [n, C, h, w] map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPSILON)

    def forward(self, x: Float[Tensor, "n C h w"]) -> Float[Tensor, "n C h w"]:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _upsample_none(_: int) -> tuple[list[nn.Module], int]:
    return [], 1


def _upsample_2(channels: int) -> tuple[list[nn.Module], int]:
    return [nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)], 2


def _upsample_4(channels: int) -> tuple[list[nn.Module], int]:
    layers = [
        nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
        ChannelLayerNorm(channels // 2),
        nn.GELU(),
        nn.ConvTranspose2d(channels // 2, channels // 4, 2, stride=2),
    ]
    return layers, 4


def _upsample_8(channels: int) -> tuple[list[nn.Module], int]:
    """Ours: the published list names a single stride-4 layer for this scale, which would give 4."""
    layers = [
        nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
        ChannelLayerNorm(channels // 2),
        nn.GELU(),
        nn.ConvTranspose2d(channels // 2, channels // 4, 4, stride=4),
    ]
    return layers, 4


# scale -> layers that bring [n, C, h, w] to [n, C / divisor, scale * h, scale * w], and that divisor
SCALES: dict[int, Callable[[int], tuple[list[nn.Module], int]]] = {
    1: _upsample_none,
    2: _upsample_2,
    4: _upsample_4,
    8: _upsample_8,
}


class PyramidLevel(nn.Module):
    """One scale, C channels in and out: upsampling, then a 1x1 and a 3x3 convolution without bias, each with LayerNorm."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"pyramid scale: expected one of {', '.join(map(str, SCALES))}, got {scale}")
        layers, divisor = SCALES[scale](channels)
        self.upsample = nn.Sequential(*layers)
        self.lateral = nn.Conv2d(channels // divisor, channels, 1, bias=False)
        self.lateral_norm = ChannelLayerNorm(channels)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.smooth_norm = ChannelLayerNorm(channels)

    def forward(self, x: Float[Tensor, "n C h w"]) -> Float[Tensor, "n C sh sw"]:
        x = self.lateral_norm(self.lateral(self.upsample(x)))
        return self.smooth_norm(self.smooth(x))


class SimpleFeaturePyramid(nn.Module):
    """The two levels EgoDTM uses: the map's own scale, whose tokens the decoder's queries read, and a fine one, on which
    the depth is predicted (28 x 28 at scale 2 of a 14 x 14 grid in the logged run, 56 x 56 at scale 4 in the release)."""

    def __init__(self, channels: int, fine_scale: int) -> None:
        super().__init__()
        self.coarse = PyramidLevel(channels, 1)
        self.fine = PyramidLevel(channels, fine_scale)
        self.mask_features = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "n C h w"]) -> tuple[Float[Tensor, "n C h w"], Float[Tensor, "n C sh sw"]]:
        # Channels-last memory: the norms read channels, and the convolutions of a CPU run faster on it.
        x = x.contiguous(memory_format=torch.channels_last)
        return self.coarse(x), self.mask_features(self.fine(x))

"""The convolutional denoiser of diffusion policy: a 1D U-Net over the steps of a chunk, conditioned by FiLM (arXiv 2303.04137, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policies.backbone import Condition
from policies.heads import sinusoids


@dataclass(frozen=True, kw_only=True)
class UNetDenoiserConfig:
    """Sizes. The paper's channels are 256, 512, 1024, on a GPU.

    Attributes:
        channels: at each resolution in time, each half of the one before.
        kernel: of the convolutions, odd.
        groups: of the group normalization.
        level_width: of the embedding of the noise level.
        condition_width: of the embedding of the condition. Without one, FiLM's nonlinearity would see standardized state as it is, and bend
            what lies below the mean into almost nothing.
    """

    channels: tuple[int, ...] = (64, 128)
    kernel: int = 5
    groups: int = 8
    level_width: int = 64
    condition_width: int = 128

    def __post_init__(self) -> None:
        if not self.channels or any(count < 1 or count % self.groups for count in self.channels):
            raise ValueError(
                f"diffusion.unet.channels={list(self.channels)}: expected at least one number, each a multiple of groups={self.groups}"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"diffusion.unet.kernel={self.kernel}: expected a positive odd number")
        if self.level_width < 2 or self.condition_width < 1:
            raise ValueError(
                f"diffusion.unet.level_width={self.level_width}, condition_width={self.condition_width}: expected at least 2 and 1"
            )


class UNetDenoiser(nn.Module):
    """(noisy chunk, noise level, condition) -> predicted noise."""

    def __init__(self, action_dim: int, condition_dim: int, config: UNetDenoiserConfig) -> None:
        super().__init__()
        self.config = config
        width = config.level_width
        self.level = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        wide = config.condition_width
        self.condition = nn.Sequential(nn.Linear(condition_dim, wide), nn.Mish(), nn.Linear(wide, wide))
        context = width + wide
        self.down, self.shrink, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        before = action_dim
        for depth, count in enumerate(config.channels):
            self.down.append(_Stage(before, count, context, config))
            if depth < len(config.channels) - 1:
                self.shrink.append(nn.Conv1d(count, count, 3, stride=2, padding=1))
            before = count
        self.middle = _Stage(before, before, context, config)
        for count, following in zip(config.channels[:0:-1], config.channels[-2::-1], strict=True):
            self.grow.append(nn.ConvTranspose1d(count, count, 4, stride=2, padding=1))
            self.up.append(_Stage(count + following, following, context, config))
        first = config.channels[0]
        self.final = nn.Sequential(_convolution(first, first, config), nn.Conv1d(first, action_dim, 1))

    def forward(
        self, noisy: Float[Tensor, "B Ta A"], levels: Int[Tensor, " B"], condition: Condition
    ) -> Float[Tensor, "B Ta A"]:
        embedded = self.level(sinusoids(levels, self.config.level_width))
        context = torch.cat([embedded, self.condition(condition.vector)], dim=-1)
        x = noisy.transpose(1, 2)
        kept = []
        for depth, stage in enumerate(self.down):
            x = stage(x, context)
            if depth < len(self.shrink):
                kept.append(x)
                x = self.shrink[depth](x)
        x = self.middle(x, context)
        for grow, stage in zip(self.grow, self.up, strict=True):
            skip = kept.pop()
            # An odd number of steps was rounded up on the way down.
            x = stage(torch.cat([grow(x)[..., : skip.shape[-1]], skip], dim=1), context)
        return self.final(x).transpose(1, 2)


class _Stage(nn.Module):
    """Two convolutions; between them the context scales and shifts each channel (FiLM, arXiv 1709.07871). Residual."""

    def __init__(self, channels_in: int, channels_out: int, context: int, config: UNetDenoiserConfig) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels_out, config)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(context, 2 * channels_out))
        self.second = _convolution(channels_out, channels_out, config)
        self.skip = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Float[Tensor, "B Cin t"], context: Float[Tensor, "B N"]) -> Float[Tensor, "B Cout t"]:
        scale, shift = self.film(context)[..., None].chunk(2, dim=1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)


def _convolution(channels_in: int, channels_out: int, config: UNetDenoiserConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(channels_in, channels_out, config.kernel, padding=config.kernel // 2),
        nn.GroupNorm(config.groups, channels_out),
        nn.Mish(),
    )

"""The layers of the causal video autoencoder: Haar patches, factorised causal convolutions, attention, encoder, decoder.

Structure of NVIDIA's Cosmos tokenizer (arXiv 2501.03575, sec. 4.1; networks of `NVIDIA/Cosmos-Tokenizer`), written anew.
Names of modules that hold weights are the release's, so that its tensors can be put in (see cosmos_weights.py).

Axes: B batch, T frames, C channels, H W pixels; t h w the same on a coarser grid. Inside the networks a video is
[B, T, C, H, W]: then a convolution over space is a plain 2D one over B * T images, and one over time is a 2D one over
[T, H * W] planes, which on a CPU take three quarters of the time of the 3D convolutions they equal.

Causal: nothing at frame i depends on a later frame. Where time must be padded, the first frame is repeated before it.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NORM_EPSILON = 1e-6


class VideoShape(Protocol):
    """What the networks need of FsqVideoConfig."""

    @property
    def patch_size(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def channel_multipliers(self) -> tuple[int, ...]: ...
    @property
    def res_blocks(self) -> int: ...
    @property
    def attention_resolutions(self) -> tuple[int, ...]: ...
    @property
    def resolution(self) -> int: ...
    @property
    def z_channels(self) -> int: ...
    @property
    def spatial_halvings(self) -> int: ...
    @property
    def temporal_halvings(self) -> int: ...


# -------------------------------------------------------------------------------------------------------- Haar patches


_TIME_ROWS_COLUMNS = (3, 4, 5)
_ROWS_COLUMNS = (4, 5)


def haar_split(
    x: Float[Tensor, "B C T H W"], axes: tuple[int, ...] = _TIME_ROWS_COLUMNS
) -> Float[Tensor, "B C2 t h w"]:
    """One level of the 3D Haar transform, each axis halved to means (a + b) / 2 and differences (a - b) / 2.

    The band is the slower part of the channel: mean or difference over time (slowest), rows, columns. The release's
    wavelets of length sqrt 2, rescaled by 1 / (2 sqrt 2), are this.

    Args:
        axes: that are halved, counted behind a band's own axis; C2 is C * 2 ** their number.
    """
    x = x[:, None]
    for axis in axes:
        a, b = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        x = torch.stack([(a + b) / 2, (a - b) / 2], dim=2).flatten(1, 2)
    return x.flatten(1, 2)


def haar_join(x: Float[Tensor, "B 8C t h w"]) -> Float[Tensor, "B C T H W"]:
    """The inverse of `haar_split`."""
    x = x.unflatten(1, (8, -1))
    for axis in (5, 4, 3):
        mean, difference = x.unflatten(1, (-1, 2)).unbind(2)
        x = torch.stack([mean + difference, mean - difference], dim=axis + 1).flatten(axis, axis + 1)
    return x[:, 0]


def patch_video(x: Float[Tensor, "B C T H W"], patch: int) -> Float[Tensor, "B Cp t h w"]:
    """Cubes of patch^3 pixels to channels, C p^3 of them, over T = 1 + k * patch frames.

    The first frame stands `patch` times, so that the first patch holds it alone.
    """
    x = torch.cat([x[:, :, :1].expand(-1, -1, patch - 1, -1, -1), x], dim=2)
    for _ in range(patch.bit_length() - 1):
        x = haar_split(x)
    return x


def patch_image(x: Float[Tensor, "B C 1 H W"], patch: int) -> Float[Tensor, "B Cq 1 h w"]:
    """What `patch_video` makes of one frame alone, without the channels that are 0 because nothing moves in it: C patch^2
    in place of C patch^3, those that `still_channels` names."""
    for _ in range(patch.bit_length() - 1):
        x = haar_split(x, _ROWS_COLUMNS)
    return x


def still_channels(channels: int, patch: int) -> list[int]:
    """The channels of `patch_video` that are means over time at every level."""
    kept, width = list(range(channels)), channels
    for _ in range(patch.bit_length() - 1):
        kept, width = [band * width + channel for band in range(4) for channel in kept], 8 * width
    return kept


def unpatch_video(x: Float[Tensor, "B Cp t h w"], patch: int) -> Float[Tensor, "B C T H W"]:
    """The inverse of `patch_video`; of the first patch's frames only the last is kept."""
    for _ in range(patch.bit_length() - 1):
        x = haar_join(x)
    return x[:, :, patch - 1 :]


# ------------------------------------------------------------------------------------------------------------- layers


def _first_repeated(x: Float[Tensor, "B T C H W"], times: int) -> Float[Tensor, "B T2 C H W"]:
    return torch.cat([x[:, :1].expand(-1, times, -1, -1, -1), x], dim=1) if times else x


class CausalConv(nn.Module):
    """A convolution over space (kernel 1, k, k) or over time (k, 1, 1), never both; weights as of a 3D convolution.

    Over space zeros surround the image, (k - 1) / 2 wide; with `stride` 2 there is one row and column of them at the
    bottom and right only. Over time the first frame is repeated before it, k - stride times; so of one frame alone all
    taps see the same, and their sum is enough.
    """

    def __init__(self, c_in: int, c_out: int, *, space: int = 1, time: int = 1, stride: int = 1) -> None:
        super().__init__()
        assert space == 1 or time == 1
        self.stride = stride
        self.conv3d = nn.Conv3d(c_in, c_out, (time, space, space))

    def forward(self, x: Float[Tensor, "B T C H W"], channels: list[int] | None = None) -> Float[Tensor, "B t C2 h w"]:
        """`channels`: which of c_in x holds; the others are 0."""
        weight, bias = self.conv3d.weight, self.conv3d.bias
        if channels is not None:
            weight = weight[:, channels]
        if weight.shape[2] > 1 and x.shape[1] == self.stride == 1:
            weight = weight.sum(2, keepdim=True)
        time, space = weight.shape[2], weight.shape[3]
        batch = x.shape[0]
        if time == 1:
            frames = x.flatten(0, 1)
            if self.stride == 2:
                frames = F.pad(frames, (0, 1, 0, 1))
            padding = (space - 1) // 2 if self.stride == 1 else 0
            frames = F.conv2d(frames, weight[:, :, 0], bias, stride=self.stride, padding=padding)
            return frames.unflatten(0, (batch, -1))
        sides = x.shape[3:]
        planes = _first_repeated(x, time - self.stride).transpose(1, 2).flatten(3)
        planes = F.conv2d(planes, weight[..., 0], bias, stride=(self.stride, 1))
        return planes.unflatten(3, sides).transpose(1, 2)


def factorised(c_in: int, c_out: int) -> nn.Sequential:
    """3 x 3 over space, then 3 over time."""
    return nn.Sequential(CausalConv(c_in, c_out, space=3), CausalConv(c_out, c_out, time=3))


class CausalNorm(nn.Module):
    """Group norm with one group, of every frame for itself: over several frames it would not be causal."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, eps=NORM_EPSILON)

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C H W"]:
        return self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = CausalNorm(c_in)
        self.conv1 = factorised(c_in, c_out)
        self.norm2 = CausalNorm(c_out)
        self.conv2 = factorised(c_out, c_out)
        self.nin_shortcut = CausalConv(c_in, c_out) if c_in != c_out else nn.Identity()

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C2 H W"]:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.nin_shortcut(x) + hidden


class Attention(nn.Module):
    """One head, residual: over the places of each frame, or (`over_time`) over each place's frames up to this one."""

    def __init__(self, channels: int, *, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        self.norm = CausalNorm(channels)
        self.q = CausalConv(channels, channels)
        self.k = CausalConv(channels, channels)
        self.v = CausalConv(channels, channels)
        self.proj_out = CausalConv(channels, channels)

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C H W"]:
        batch, frames, channels, height, width = x.shape
        normed = self.norm(x)
        order = (0, 3, 4, 1, 2) if self.over_time else (0, 1, 3, 4, 2)
        grid = [(batch, frames, channels, height, width)[axis] for axis in order]
        flat = (-1, 1, frames if self.over_time else height * width, channels)
        q, k, v = (layer(normed).permute(order).reshape(flat) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.over_time).reshape(grid)
        back = [order.index(axis) for axis in range(5)]
        return x + self.proj_out(mixed.permute(back))


def attention_pair(channels: int) -> nn.Sequential:
    return nn.Sequential(Attention(channels, over_time=False), Attention(channels, over_time=True))


class Downsample(nn.Module):
    """Halves space, then time, each by a strided convolution beside a mean; then mixes channels."""

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv(channels, channels, space=3, stride=2) if space else None
        self.conv2 = CausalConv(channels, channels, time=3, stride=2) if time else None
        self.conv3 = CausalConv(channels, channels)

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B t C h w"]:
        if self.conv1 is not None:
            x = self.conv1(x) + F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        if self.conv2 is not None:
            x = _first_repeated(x, 1)
            x = self.conv2(x) + x.unflatten(1, (-1, 2)).mean(2)
        return self.conv3(x)


class Upsample(nn.Module):
    """Doubles time, then space, by repetition beside a convolution; then mixes channels."""

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = CausalConv(channels, channels, time=3) if time else None
        self.conv2 = CausalConv(channels, channels, space=3) if space else None
        self.conv3 = CausalConv(channels, channels)

    def forward(self, x: Float[Tensor, "B t C h w"]) -> Float[Tensor, "B T C H W"]:
        if self.conv1 is not None:
            # The first latent frame stands for one frame, all others for two. One alone stays one.
            x = x.repeat_interleave(2, dim=1)[:, 1:]
            x = x + self.conv1(x)
        if self.conv2 is not None:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = x + self.conv2(x)
        return self.conv3(x)


def resampling(kind: type[Downsample] | type[Upsample], channels: int, *, space: bool, time: bool) -> nn.Module:
    return kind(channels, space=space, time=time) if space or time else nn.Identity()


def halvings(config: VideoShape) -> list[tuple[bool, bool]]:
    """(space, time) of what happens between the encoder's levels, from the finest on."""
    count = len(config.channel_multipliers) - 1
    return [(level < config.spatial_halvings, level < config.temporal_halvings) for level in range(count)]


def doublings(config: VideoShape) -> list[tuple[bool, bool]]:
    """(space, time) of what happens between the decoder's levels, from the coarsest on: the release's rule, in which time
    is never doubled first."""
    space, time = config.spatial_halvings, config.temporal_halvings
    steps = []
    for step in range(len(config.channel_multipliers) - 1):
        with_time = 0 < step <= time
        steps.append((with_time or (step < space and space > time), with_time))
    return steps


# ----------------------------------------------------------------------------------------------------------- networks


class Level(nn.Module):
    """The residual blocks of one resolution; attention after each where the resolution asks for it."""

    def __init__(self, c_in: int, c_out: int, *, blocks: int, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(c_in if index == 0 else c_out, c_out) for index in range(blocks))
        self.attn = nn.ModuleList(attention_pair(c_out) for _ in range(blocks if attention else 0))

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C2 H W"]:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


class EncoderLevel(Level):
    def __init__(self, c_in: int, c_out: int, *, blocks: int, attention: bool, halve: tuple[bool, bool]) -> None:
        super().__init__(c_in, c_out, blocks=blocks, attention=attention)
        self.downsample = resampling(Downsample, c_out, space=halve[0], time=halve[1])

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B t C2 h w"]:
        return self.downsample(super().forward(x))


class DecoderLevel(Level):
    def __init__(self, c_in: int, c_out: int, *, blocks: int, attention: bool, double: tuple[bool, bool]) -> None:
        super().__init__(c_in, c_out, blocks=blocks, attention=attention)
        self.upsample = resampling(Upsample, c_out, space=double[0], time=double[1])

    def forward(self, x: Float[Tensor, "B t C h w"]) -> Float[Tensor, "B T C2 H W"]:
        return self.upsample(super().forward(x))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = attention_pair(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C H W"]:
        return self.block_2(self.attn_1(self.block_1(x)))


def _widths(config: VideoShape) -> list[int]:
    return [config.channels * factor for factor in config.channel_multipliers]


def _attention(config: VideoShape, level: int) -> bool:
    # The release counts a halving at every level, also where none happens.
    return config.resolution // config.patch_size // 2**level in config.attention_resolutions


class CausalEncoder(nn.Module):
    """Video in [-1, 1] to latents of z_channels."""

    def __init__(self, config: VideoShape) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.still = still_channels(3, config.patch_size)
        widths, steps = _widths(config), [*halvings(config), (False, False)]
        self.conv_in = factorised(3 * config.patch_size**3, config.channels)
        self.down = nn.ModuleList(
            EncoderLevel(
                c_in, c_out, halve=halve, blocks=config.res_blocks, attention=_attention(config, level)
            )
            for level, (c_in, c_out, halve) in enumerate(zip([config.channels, *widths[:-1]], widths, steps, strict=True))
        )  # fmt: skip
        self.mid = Middle(widths[-1])
        self.norm_out = CausalNorm(widths[-1])
        self.conv_out = factorised(widths[-1], config.z_channels)

    def forward(self, video: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B t C h w"]:
        if video.shape[2] == 1:
            space, time = self.conv_in
            x = time(space(patch_image(video, self.patch_size).transpose(1, 2), self.still))
        else:
            x = self.conv_in(patch_video(video, self.patch_size).transpose(1, 2))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class CausalDecoder(nn.Module):
    """Latents of z_channels to video, near [-1, 1]."""

    def __init__(self, config: VideoShape) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        widths = _widths(config)
        # `up` is stored from the finest level to the coarsest and run the other way.
        steps = [(False, False), *reversed(doublings(config))]
        self.conv_in = factorised(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            DecoderLevel(
                c_in, c_out, double=double, blocks=config.res_blocks + 1, attention=_attention(config, level)
            )
            for level, (c_in, c_out, double) in enumerate(zip([*widths[1:], widths[-1]], widths, steps, strict=True))
        )  # fmt: skip
        self.norm_out = CausalNorm(widths[0])
        self.conv_out = factorised(widths[0], 3 * config.patch_size**3)

    def forward(self, latents: Float[Tensor, "B t C h w"]) -> Float[Tensor, "B 3 T H W"]:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return unpatch_video(x.transpose(1, 2), self.patch_size)


def initialise(network: nn.Module) -> None:
    """Weights to start training from: variance is kept over space, time starts as a copy of the current frame.

    Residual branches start at a tenth, so that depth does not blow up the sum at the start.
    """
    for module in network.modules():
        if not isinstance(module, CausalConv):
            continue
        weight = module.conv3d.weight
        nn.init.zeros_(module.conv3d.bias)
        if weight.shape[2] > 1:
            nn.init.normal_(weight, std=0.02 / math.sqrt(weight.shape[1]))
            with torch.no_grad():
                weight[:, :, -1, 0, 0] += torch.eye(len(weight), device=weight.device)
        else:
            nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
    for module in network.modules():
        last = module.conv2[0] if isinstance(module, ResBlock) else getattr(module, "proj_out", None)
        if last is not None:
            with torch.no_grad():
                last.conv3d.weight.mul_(0.1)

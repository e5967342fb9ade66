"""The discrete video tokenizer: a causal autoencoder whose latents are rounded to a fixed grid (FSQ).

EgoM2P tokenizes rgb and depth with NVIDIA's Cosmos-0.1-Tokenizer-DV4x8x8 (arXiv 2501.03575). This is that network with
every size a setting: the published one takes the release's weights (cosmos_weights.py), a small one is trained from scratch.

Axes: B batch, T frames, S side of the square image, (t, h, w) grid of tokens, N = t * h * w, K numbers of a code.

Frames are filled up at the end by repeating the last one until they are 1 + a multiple of the temporal compression
(16 become 17 and 5 steps of tokens), and cut again after decoding. The first step of tokens is the first frame alone.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from vector_quantize_pytorch import FSQ

from pretrain.egom2p.modalities import TokenGrid
from pretrain.egom2p.tokenizers.causal_video import (
    CausalConv,
    CausalDecoder,
    CausalEncoder,
    doublings,
    halvings,
    initialise,
)
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer, TokenizerSpec, code_usage


@dataclass(frozen=True, kw_only=True)
class FsqVideoConfig:
    """Shape of the video tokenizer; a row of FSQ_VIDEO_SIZES by `of_size`. The defaults are the published tokenizer.

    Attributes:
        frames, image_size: T and S of a clip.
        patch_size: side of the cubes the Haar patcher makes channels of; a power of two.
        spatial_compression, temporal_compression: pixels and frames a token stands for; powers of two, from patch_size on.
        channels, channel_multipliers: width of each level; between two levels space and time are halved while they must.
        res_blocks: residual blocks of a level.
        attention_resolutions, resolution: a level has attention where `resolution`, halved from level to level, is in the
            list. `resolution` is nominal, as in the release: it need not be image_size.
        z_channels: of the latents beside the quantizer.
        levels: of FSQ, one a number of the code; their product is the vocabulary.
        edge_weight: of the loss's second term.
    """

    frames: int = 16
    image_size: int = 256
    patch_size: int = 4
    spatial_compression: int = 8
    temporal_compression: int = 4
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (2, 4, 4)
    res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32,)
    resolution: int = 1024
    z_channels: int = 16
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    edge_weight: float = 0.5

    def __post_init__(self) -> None:
        for field in ("channel_multipliers", "attention_resolutions", "levels"):
            object.__setattr__(self, field, tuple(getattr(self, field)))  # YAML has only lists
        for field in ("frames", "image_size", "channels", "res_blocks", "resolution", "z_channels"):
            if getattr(self, field) < 1:
                raise ValueError(f"fsq_video.{field}: expected at least 1, got {getattr(self, field)}")
        for field in ("patch_size", "spatial_compression", "temporal_compression"):
            value = getattr(self, field)
            if value < 1 or value.bit_count() != 1:
                raise ValueError(f"fsq_video.{field}: expected a power of two, got {value}")
            if value < self.patch_size:
                raise ValueError(f"fsq_video.{field}: expected at least patch_size {self.patch_size}, got {value}")
        if self.image_size % self.spatial_compression:
            lower = self.image_size - self.image_size % self.spatial_compression
            raise ValueError(
                f"fsq_video.image_size: {self.image_size} is not a multiple of spatial_compression "
                f"{self.spatial_compression}; nearest that are: {lower}, {lower + self.spatial_compression}"
            )
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(
                f"fsq_video.channel_multipliers: expected positive numbers, got {self.channel_multipliers}"
            )
        if not self.levels or min(self.levels) < 3:
            raise ValueError(f"fsq_video.levels: expected numbers of at least 3, got {self.levels}")
        if self.edge_weight < 0:
            raise ValueError(f"fsq_video.edge_weight: expected at least 0, got {self.edge_weight}")
        self._check_levels_suffice()

    def _check_levels_suffice(self) -> None:
        wanted = (self.spatial_halvings, self.temporal_halvings)
        for side, steps in (("encoder", halvings(self)), ("decoder", doublings(self))):
            got = (sum(space for space, _ in steps), sum(time for _, time in steps))
            if got != wanted:
                raise ValueError(
                    f"fsq_video.channel_multipliers: {len(self.channel_multipliers)} levels allow the {side} {got[0]} "
                    f"changes of space and {got[1]} of time; compressions of {self.spatial_compression} and "
                    f"{self.temporal_compression} with patches of {self.patch_size} need {wanted[0]} and {wanted[1]}: "
                    "add a multiplier, or choose other compressions"
                )

    @classmethod
    def of_size(cls, size: str, **overrides: Any) -> Self:
        """The named row of FSQ_VIDEO_SIZES with fields replaced."""
        if size not in FSQ_VIDEO_SIZES:
            raise ValueError(f"unknown size {size!r} of video tokenizer; known: {', '.join(FSQ_VIDEO_SIZES)}")
        return cls(**(FSQ_VIDEO_SIZES[size] | overrides))

    @property
    def spatial_halvings(self) -> int:
        """How often the network halves space, beyond the patcher."""
        return (self.spatial_compression // self.patch_size).bit_length() - 1

    @property
    def temporal_halvings(self) -> int:
        return (self.temporal_compression // self.patch_size).bit_length() - 1

    @property
    def padded_frames(self) -> int:
        """The smallest 1 + k * temporal_compression that holds all frames."""
        return 1 + math.ceil((self.frames - 1) / self.temporal_compression) * self.temporal_compression

    @property
    def grid(self) -> TokenGrid:
        side = self.image_size // self.spatial_compression
        steps = 1 + (self.padded_frames - 1) // self.temporal_compression
        return TokenGrid(shape=(steps, side, side), vocabulary=math.prod(self.levels))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """[3, T, S, S]."""
        return (3, self.frames, self.image_size, self.image_size)


# Nano is for tests; tiny and small are made for training from scratch, with vocabularies that few clips can fill.
FSQ_VIDEO_SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "frames": 5, "image_size": 16, "channels": 8, "channel_multipliers": (1, 2), "res_blocks": 1,
        "attention_resolutions": (), "z_channels": 8, "levels": (5, 5, 5),
    },
    "tiny": {
        "image_size": 64, "channels": 48, "channel_multipliers": (1, 2), "res_blocks": 1, "attention_resolutions": (),
        "levels": (8, 5, 5, 5),
    },
    "small": {
        "image_size": 128, "channels": 64, "channel_multipliers": (1, 2, 4), "attention_resolutions": (),
        "levels": (8, 8, 8, 6, 5),
    },
    "cosmos-dv4x8x8": {},
}  # fmt: skip


class FsqVideoTokenizer(Tokenizer):
    """Video in [-1, 1] to ids and back. `encoder`, `quant_conv`, `quantizer`, `post_quant_conv`, `decoder` as in Cosmos."""

    architecture = "fsq-video"
    clips_at_once = 8

    def __init__(self, config: FsqVideoConfig, *, name: str, modalities: tuple[str, ...] = ("rgb", "depth")) -> None:
        spec = TokenizerSpec(name=name, modalities=modalities, grid=config.grid, input_shape=config.input_shape)
        super().__init__(spec, dataclasses.asdict(config))
        self.shape = config
        code = len(config.levels)
        self.encoder = CausalEncoder(config)
        self.decoder = CausalDecoder(config)
        self.quant_conv = CausalConv(config.z_channels, code)
        self.post_quant_conv = CausalConv(code, config.z_channels)
        # Without return_indices the package keeps no table of all codes, which would be as large as the vocabulary.
        self.quantizer = FSQ(list(config.levels), return_indices=False)
        self.reset_parameters()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: TokenizerSpec) -> Self:
        """The same network from an artifact's config and spec, with fresh weights from torch's generator."""
        tokenizer = cls(FsqVideoConfig(**config), name=spec.name, modalities=spec.modalities)
        tokenizer.spec = spec
        return tokenizer

    def reset_parameters(self) -> None:
        """Weights to train from: latents of variance about 1, so that codes spread at once, and a near-gray video."""
        initialise(self)
        with torch.no_grad():
            # A pixel is the sum of patch_size^3 coefficients.
            self.decoder.conv_out[0].conv3d.weight.mul_(0.1 / self.shape.patch_size**1.5)

    # ---------------------------------------------------------------------------------------------------- the contract

    def latents(self, x: Float[Tensor, "B 3 T S S"]) -> Float[Tensor, "B t h w K"]:
        """What the quantizer is given, one number a level."""
        missing = self.shape.padded_frames - x.shape[2]
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2).to(self.quant_conv.conv3d.weight.dtype)
        return self.quant_conv(self.encoder(x)).permute(0, 1, 3, 4, 2)

    def codes(self, latents: Float[Tensor, "B t h w K"]) -> Float[Tensor, "B t h w K"]:
        """Latents rounded to the grid in [-1, 1], gradients straight through the rounding (FSQ, arXiv 2309.15505)."""
        return self.quantizer.quantize(latents)

    def video(self, codes: Float[Tensor, "B t h w K"]) -> Float[Tensor, "B 3 T S S"]:
        """Codes to frames, without clamping, the filling frames cut off."""
        codes = codes.to(self.post_quant_conv.conv3d.weight.dtype)
        return self.decoder(self.post_quant_conv(codes.permute(0, 1, 4, 2, 3)))[:, :, : self.shape.frames]

    def clips_to_ids(self, x: Float[Tensor, "B 3 T S S"]) -> Int64[Tensor, "B N"]:
        return self.quantizer.codes_to_indices(self.codes(self.latents(x))).flatten(1).long()

    @torch.no_grad()
    def history_to_ids(self, x: Float[Tensor, "B 3 F S S"]) -> Int64[Tensor, "B n"]:
        """Ids of the first F = 1 + k * temporal_compression frames of a clip, the first 1 + k steps of tokens: the network is
        causal, so they are what `encode` gives for any clip that begins with these frames, at a part of its cost."""
        steps, left = divmod(x.shape[2] - 1, self.shape.temporal_compression)
        assert not left and steps < self.spec.grid.shape[0], "frames that make no whole steps of tokens"
        latents = self.quant_conv(self.encoder(x.to(self.quant_conv.conv3d.weight.dtype))).permute(0, 1, 3, 4, 2)
        return self.quantizer.codes_to_indices(self.codes(latents)).flatten(1).long()

    def codebook(self) -> Float[Tensor, "V K"]:
        """The grid's points in [-1, 1]^K: levels are ordered, so that a point between two of them means something."""
        ids = torch.arange(self.spec.grid.vocabulary, device=self.quant_conv.conv3d.weight.device)
        return self.quantizer._indices_to_codes(ids)

    def codes_to_clips(self, codes: Float[Tensor, "B N K"]) -> Float[Tensor, "B 3 T S S"]:
        return self.video(codes.unflatten(1, self.spec.grid.shape)).clamp(-1, 1)

    def ids_to_clips(self, ids: Int64[Tensor, "B N"]) -> Float[Tensor, "B 3 T S S"]:
        return self.codes_to_clips(self.quantizer._indices_to_codes(ids))

    def loss(self, x: Float[Tensor, "B 3 T S S"]) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 of the pixels + edge_weight * L1 of their differences along time, rows and columns.

        The second term is ours: L1 alone settles for blur. (Cosmos adds perceptual, Gram and optical-flow losses instead,
        which need other networks' weights.) FSQ has no loss of its own. Scalars: `l1`, `edge`, `psnr_db`, and the
        batch's use of the vocabulary.
        """
        self.check_input(x)
        codes = self.codes(self.latents(x))
        error = self.video(codes).float() - x
        l1 = error.abs().mean()
        edge = edge_l1(error)
        with torch.no_grad():
            ids = self.quantizer.codes_to_indices(codes).flatten(1).long()
            # Of values clamped as `decode` gives them; 2 is the range of pixels.
            clamped = (error + x).clamp(-1, 1) - x
            psnr = 10 * torch.log10(4 / clamped.square().mean().clamp(min=1e-10))
        scalars = {"l1": l1.detach(), "edge": edge.detach(), "psnr_db": psnr}
        return l1 + self.shape.edge_weight * edge, scalars | code_usage(ids, self.spec.grid.vocabulary)


def edge_l1(error: Float[Tensor, "B C T H W"]) -> Float[Tensor, ""]:
    """Mean |difference of neighbours| of an error, over the axes that have neighbours: time, rows, columns.

    Being linear, it is the L1 distance of the gradients of two videos, given their difference."""
    terms = [error.diff(dim=axis).abs().mean() for axis in (2, 3, 4) if error.shape[axis] > 1]
    return torch.stack(terms).mean() if terms else error.new_zeros(())

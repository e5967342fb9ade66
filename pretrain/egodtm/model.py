"""EgoDTM: two towers trained with texts, and a depth decoder on the video tower's patch tokens.

Published structure (arXiv 2503.15470): the class token, projected and L2-normalised, meets the text's embedding in an
InfoNCE loss at a frozen temperature of 0.07; the patch tokens of all frames feed a feature pyramid and a query decoder
that predict inverse depth. The decoder teaches and is then dropped: an encoder artifact holds the video tower alone.

Axes: B batch, T frames, N = T * h * w patch tokens, D tower width, C decoder width, E joint dimension, S stages.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from pretrain.egodtm.depth_decoder import DepthDecoder, DepthDecoderConfig
from pretrain.egodtm.encoder import DEFAULT_FPS, EgoDTMEncoder
from pretrain.egodtm.losses import DEPTH_ERRORS, info_nce, masked_depth_loss
from pretrain.egodtm.pyramid import SimpleFeaturePyramid
from pretrain.egodtm.text import TextConfig, TextTower
from pretrain.egodtm.video_vit import VideoViTConfig


@dataclass(frozen=True, kw_only=True)
class EgoDTMConfig:
    """The whole model. `decoder` None leaves the depth objective out (the no-depth twin)."""

    video: VideoViTConfig = dataclasses.field(default_factory=VideoViTConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    decoder: DepthDecoderConfig | None = dataclasses.field(default_factory=DepthDecoderConfig)
    joint_dim: int = 256
    temperature: float = 0.07
    fps: float = DEFAULT_FPS

    def __post_init__(self) -> None:
        if self.joint_dim < 1:
            raise ValueError(f"joint_dim: expected at least 1, got {self.joint_dim}")
        if self.temperature <= 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")

    @property
    def depth_size(self) -> int:
        """Side of the predicted depth map in pixels; 0 without a decoder."""
        return 0 if self.decoder is None else self.video.grid_side * self.decoder.scale

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        decoder = document["decoder"]
        return cls(
            **{
                **document,
                "video": VideoViTConfig(**document["video"]),
                "text": TextConfig(**document["text"]),
                "decoder": None if decoder is None else DepthDecoderConfig(**decoder),
            }
        )


# Base is the published decoder of the logged run: 256 channels, 5 layers, 28 px depth from a 14 x 14 grid.
DECODER_SIZES: dict[str, dict[str, Any]] = {
    "nano": {"width": 32, "layers": 2, "heads": 2, "feedforward": 64, "scale": 4},
    "tiny": {"width": 96, "layers": 2, "heads": 4, "feedforward": 384, "scale": 4},
    "small": {"width": 192, "layers": 3, "heads": 6, "feedforward": 768, "scale": 2},
    "base": {"width": 256, "layers": 5, "heads": 8, "feedforward": 2048, "scale": 2},
}


@dataclass
class EgoDTMOutput:
    """video, text: L2-normalised joint embeddings. depth: inverse depth in (0, 1) of each stage, None without decoder."""

    video: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]
    depth: Float[Tensor, "S B T h w"] | None


class EgoDTM(nn.Module):
    """The model in training. Its parts are drawn in a fixed order, the video tower first, so that at one seed every
    variant, the untrained control included, starts from the same tower."""

    def __init__(self, config: EgoDTMConfig, *, name: str = "egodtm") -> None:
        super().__init__()
        self.config = config
        width = config.video.width
        self.video = EgoDTMEncoder(config.video, name=name, fps=config.fps)
        self.text = TextTower(config.text, config.joint_dim)
        self.video_projection = nn.Linear(width, config.joint_dim, bias=False)
        nn.init.trunc_normal_(self.video_projection.weight, std=config.joint_dim**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)), requires_grad=False)
        if config.decoder is None:
            self.patch_projection = self.pyramid = self.decoder = None
        else:
            channels = config.decoder.width
            self.patch_projection = nn.Linear(width, channels)
            self.pyramid = SimpleFeaturePyramid(channels, config.decoder.scale)
            self.decoder = DepthDecoder(config.decoder)

    def forward(
        self, video: UInt8[Tensor, "B T H0 W0 3"], text_ids: Int[Tensor, "B L"], *, all_stages: bool = True
    ) -> EgoDTMOutput:
        """Raw frames and tokens to embeddings and depth."""
        features = self.video(self.video.preprocess(video))
        depth = self._depth(features.tokens, all_stages) if self.decoder is not None else None
        return EgoDTMOutput(
            video=F.normalize(self.video_projection(features.pooled), dim=-1),
            text=F.normalize(self.text(text_ids), dim=-1),
            depth=depth,
        )

    def _depth(self, tokens: Float[Tensor, "B N D"], all_stages: bool) -> Float[Tensor, "S B T h w"]:
        assert self.patch_projection is not None and self.pyramid is not None and self.decoder is not None
        frames, rows, columns = self.video.spec.grid
        maps = self.patch_projection(tokens).unflatten(1, (frames, rows, columns))
        maps = maps.flatten(0, 1).permute(0, 3, 1, 2)  # [B * T, C, h, w]
        coarse, fine = self.pyramid(maps)
        memory = coarse.unflatten(0, (-1, frames)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # [B, N, C]
        return self.decoder(memory, fine.unflatten(0, (-1, frames)), all_stages=all_stages)

    def encoder(self) -> EgoDTMEncoder:
        """The part that is kept."""
        return self.video


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and forms of the objectives; the published weights are 1 and 1.

    Attributes:
        depth_weight: 0 trains the no-depth twin.
        depth_error: "l1" or "mse" on inverse depth in [0, 1].
        deep_supervision: also the decoder's earlier stages predict depth.
        mask_duplicates: clips with equal texts are no negatives of each other.
    """

    depth_weight: float = 1.0
    depth_error: str = "l1"
    deep_supervision: bool = True
    mask_duplicates: bool = True

    def __post_init__(self) -> None:
        if self.depth_error not in DEPTH_ERRORS:
            raise ValueError(f"loss.depth_error: expected one of {', '.join(DEPTH_ERRORS)}, got {self.depth_error!r}")
        if self.depth_weight < 0:
            raise ValueError(f"loss.depth_weight: expected at least 0, got {self.depth_weight}")


def egodtm_loss(
    output: EgoDTMOutput,
    *,
    log_scale: Float[Tensor, ""],
    text_ids: Int[Tensor, "B L"],
    depth: Float[Tensor, "B T h w"] | None,
    depth_valid: Bool[Tensor, "B T h w"] | None,
    config: LossConfig,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """L = InfoNCE + depth_weight * depth error, and the scalars to log (without gradient)."""
    contrastive, accuracy = info_nce(
        output.video, output.text, log_scale.exp(), text_ids if config.mask_duplicates else None
    )
    scalars = {"contrastive": contrastive.detach(), "accuracy": accuracy}
    total = contrastive
    if output.depth is not None:
        assert depth is not None and depth_valid is not None
        loss, last = masked_depth_loss(
            output.depth, depth, depth_valid, error=config.depth_error, deep_supervision=config.deep_supervision
        )
        total = total + config.depth_weight * loss
        scalars["depth"] = last
    return total, {"loss": total.detach(), **scalars}

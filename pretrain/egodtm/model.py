"""EgoDTM: two towers trained with texts, and a depth decoder on the video tower's patch tokens.

Published structure (arXiv 2503.15470): the class token, projected and L2-normalised, meets the text's embedding in an
InfoNCE loss at a frozen temperature of 0.07; the patch tokens of all frames feed a feature pyramid and a query decoder
that predict inverse depth. The decoder teaches and is then dropped: an encoder artifact holds the video tower alone.

Axes: B batch, T frames, N = T * h * w patch tokens, D tower width, C decoder width, E joint dimension, S stages.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from pretrain.egodtm.depth_decoder import DEPTH_HEADS, DepthDecoder, DepthDecoderConfig, LinearDepth, paint
from pretrain.egodtm.depth_losses import DEPTH_ERRORS, masked_depth_loss
from pretrain.egodtm.encoder import DEFAULT_FPS, EgoDTMEncoder
from pretrain.egodtm.lean_depth import paint_lean
from pretrain.egodtm.losses import CONTRASTIVE, contrastive_loss, in_full_precision
from pretrain.egodtm.pyramid import SimpleFeaturePyramid
from pretrain.egodtm.text import TextConfig, TextTower
from pretrain.egodtm.video_vit import VideoViTConfig

# How the depth head uses memory, at the same loss and gradients to rounding: "plain" keeps every map for the backward
# pass as the authors do, "lean" makes them again, a few frames at a time.
DEPTH_MEMORY = ("lean", "plain")

# SigLIP's start (arXiv 2303.15343, section 3.2): with it the many negatives do not flood the first steps.
SIGLIP_BIAS = -10.0


@dataclass(frozen=True, kw_only=True)
class EgoDTMConfig:
    """The whole model. `decoder` None leaves the depth objective out (the no-depth twin).

    contrastive: a row of CONTRASTIVE. "infonce" has the published frozen temperature; "siglip" learns its scale, from
    1 / temperature, and a bias.
    depth_head: of DEPTH_HEADS. "linear" needs the decoder's scale alone.
    token_noise: standard deviation of Gaussian noise on the normalised tokens that the depth head reads while training: what it
    needs must then stand out in them, for whoever reads them with few examples.
    """

    video: VideoViTConfig = dataclasses.field(default_factory=VideoViTConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    decoder: DepthDecoderConfig | None = dataclasses.field(default_factory=DepthDecoderConfig)
    joint_dim: int = 256
    temperature: float = 0.07
    contrastive: str = "infonce"
    fps: float = DEFAULT_FPS
    depth_head: str = DEPTH_HEADS[0]
    token_noise: float = 0.0

    def __post_init__(self) -> None:
        _require_known("contrastive", self.contrastive, CONTRASTIVE)
        _require_known("depth_head", self.depth_head, DEPTH_HEADS)
        if self.token_noise < 0:
            raise ValueError(f"token_noise: expected at least 0, got {self.token_noise}")
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


def _require_known(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{field}: expected one of {', '.join(known)}, got {value!r}")


# Base is the published decoder of the logged run: 256 channels, 5 layers, 28 px depth from a 14 x 14 grid.
DECODER_SIZES: dict[str, dict[str, Any]] = {
    "nano": {"width": 32, "layers": 2, "heads": 2, "feedforward": 64, "scale": 4},
    "tiny": {"width": 96, "layers": 2, "heads": 4, "feedforward": 384, "scale": 4},
    "small": {"width": 192, "layers": 3, "heads": 6, "feedforward": 768, "scale": 2},
    "base": {"width": 256, "layers": 5, "heads": 8, "feedforward": 2048, "scale": 2},
}


@dataclass
class EgoDTMOutput:
    """video, text: L2-normalised joint embeddings. depth: inverse depth of each stage, in (0, 1) but for the linear head, None
    without decoder."""

    video: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]
    depth: Float[Tensor, "S B T h w"] | None


class EgoDTM(nn.Module):
    """The model in training. Its parts are drawn in a fixed order, the video tower first, so that at one seed every
    variant, the untrained control included, starts from the same tower."""

    def __init__(self, config: EgoDTMConfig, *, name: str = "egodtm", depth_memory: str = DEPTH_MEMORY[0]) -> None:
        super().__init__()
        _require_known("depth_memory", depth_memory, DEPTH_MEMORY)
        self.config = config
        self.depth_memory = depth_memory
        width = config.video.width
        self.video = EgoDTMEncoder(config.video, name=name, fps=config.fps)
        self.text = TextTower(config.text, config.joint_dim)
        self.video_projection = nn.Linear(width, config.joint_dim, bias=False)
        nn.init.trunc_normal_(self.video_projection.weight, std=config.joint_dim**-0.5)
        learned = config.contrastive == "siglip"
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)), requires_grad=learned)
        self.logit_bias = nn.Parameter(torch.tensor(SIGLIP_BIAS)) if learned else None
        if config.decoder is None:
            self.patch_projection = self.pyramid = self.decoder = None
        elif config.depth_head == "linear":
            self.patch_projection = self.pyramid = None
            self.decoder = LinearDepth(width, config.decoder.scale)
        else:
            channels = config.decoder.width
            self.patch_projection = nn.Linear(width, channels)
            self.pyramid = SimpleFeaturePyramid(channels, config.decoder.scale)
            self.decoder = DepthDecoder(config.decoder)

    def forward(
        self,
        video: UInt8[Tensor, "B T H0 W0 3"],
        text_ids: Int[Tensor, "B L"],
        *,
        all_stages: bool = True,
        with_depth: bool = True,
    ) -> EgoDTMOutput:
        """Raw frames and tokens to embeddings and depth; `with_depth` off leaves the depth head out."""
        features = self.video(self.video.preprocess(video))
        # The towers come before the depth head, so that what they draw does not depend on it.
        embeddings = self.video_projection(features.pooled), self.text(text_ids)
        video_embedding, text_embedding = (F.normalize(in_full_precision(x), dim=-1) for x in embeddings)
        depth = self.predict_depth(features.tokens, all_stages) if with_depth and self.decoder is not None else None
        return EgoDTMOutput(video=video_embedding, text=text_embedding, depth=depth)

    def predict_depth(self, tokens: Float[Tensor, "B N D"], all_stages: bool = True) -> Float[Tensor, "S B T h w"]:
        """Patch tokens of the video tower to inverse depth."""
        frames, rows, columns = self.video.spec.grid
        if self.config.token_noise and self.training:
            tokens = tokens + self.config.token_noise * torch.randn_like(tokens)
        if isinstance(self.decoder, LinearDepth):
            return self.decoder(tokens.unflatten(1, (frames, rows, columns)))[None]
        assert self.patch_projection is not None and self.pyramid is not None and self.decoder is not None
        maps = self.patch_projection(tokens).unflatten(1, (frames, rows, columns))
        maps = maps.flatten(0, 1).permute(0, 3, 1, 2)  # [B * T, C, h, w]
        memory = self.pyramid.coarse(maps).unflatten(0, (-1, frames)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # [B, N, C]
        readings = self.decoder.read(memory, all_stages=all_stages)
        if self.depth_memory == "lean":
            return paint_lean(self.pyramid, maps, readings)
        fine = self.pyramid.mask_features(self.pyramid.fine(maps))
        return paint(readings, fine.unflatten(0, (-1, frames)))

    def encoder(self) -> EgoDTMEncoder:
        """The part that is kept."""
        return self.video


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and forms of the objectives; the published weights are 1 and 1.

    Attributes:
        contrastive: a row of CONTRASTIVE, the model's own.
        contrastive_weight: 0 leaves the texts out: only depth teaches.
        depth_weight: 0 trains the no-depth twin.
        depth_error: a row of DEPTH_LOSSES, on inverse depth in [0, 1].
        depth_edges: weight, beside depth_error, of the error of the depth's differences between near pixels (edge_error).
        deep_supervision: also the decoder's earlier stages predict depth.
        mask_duplicates: clips with equal texts are no negatives of each other.
    """

    contrastive: str = "infonce"
    contrastive_weight: float = 1.0
    depth_weight: float = 1.0
    depth_error: str = "l1"
    depth_edges: float = 0.0
    deep_supervision: bool = True
    mask_duplicates: bool = True

    def __post_init__(self) -> None:
        _require_known("loss.contrastive", self.contrastive, CONTRASTIVE)
        _require_known("loss.depth_error", self.depth_error, DEPTH_ERRORS)
        for name in ("contrastive_weight", "depth_weight", "depth_edges"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name}: expected at least 0, got {getattr(self, name)}")
        if not self.contrastive_weight and not self.depth_weight:
            raise ValueError("loss.contrastive_weight and loss.depth_weight are both 0: nothing would be trained")


def egodtm_loss(
    output: EgoDTMOutput,
    *,
    log_scale: Float[Tensor, ""],
    text_ids: Int[Tensor, "B L"],
    depth: Float[Tensor, "B T h w"] | None,
    depth_valid: Bool[Tensor, "B T h w"] | None,
    config: LossConfig,
    bias: Float[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """L = contrastive_weight * contrastive + depth_weight * depth error, and the scalars to log (without gradient).

    log_scale, bias: the model's log_scale and logit_bias.
    """
    assert (bias is not None) == (config.contrastive == "siglip")
    contrastive, accuracy = contrastive_loss(
        config.contrastive,
        output.video,
        output.text,
        log_scale.exp(),
        bias,
        text_ids if config.mask_duplicates else None,
    )
    scalars = {"contrastive": contrastive.detach(), "accuracy": accuracy}
    total = config.contrastive_weight * contrastive
    if output.depth is not None:
        assert depth is not None and depth_valid is not None
        loss, last = masked_depth_loss(
            output.depth,
            depth,
            depth_valid,
            error=config.depth_error,
            deep_supervision=config.deep_supervision,
            edges=config.depth_edges,
        )
        total = total + config.depth_weight * loss
        scalars["depth"] = last
    return total, {"loss": total.detach(), **scalars}

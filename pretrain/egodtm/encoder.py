"""EgoDTM's video tower as a VideoEncoder: what is left of the model after pretraining."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pretrain.egodtm.video_vit import VideoViT, VideoViTConfig
from pretrain.encoder import EncoderOutput, EncoderSpec, VideoEncoder
from pretrain.encoder_table import RANDOM_PREFIX

# CLIP's statistics, so that CLIP weights can be put in later. The release this follows (AVION) has two channels' means
# permuted; with weights trained from scratch nothing speaks for repeating that.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Frame rate of the frames of one clip, 1/s: 4 frames of a half-second.
DEFAULT_FPS = 8.0

TEMPORAL = "vit.temporal_position"  # the one weight whose shape depends on the number of frames


class EgoDTMEncoder(VideoEncoder):
    """tokens: the patch tokens of all frames after the final LayerNorm. pooled: the class token, which is what the
    contrastive objective trains (before its projection, as the published model's backbone hook gives it)."""

    architecture = "egodtm"

    def __init__(self, config: VideoViTConfig, *, name: str, fps: float = DEFAULT_FPS) -> None:
        side = config.grid_side
        spec = EncoderSpec(
            name=name,
            frames=config.frames,
            fps=fps,
            image_size=config.image_size,
            grid=(config.frames, side, side),
            embed_dim=config.width,
            mean=CLIP_MEAN,
            std=CLIP_STD,
            resize="stretch",
            weights_sha256="",
        )
        super().__init__(spec, dataclasses.asdict(config))
        self.vit = VideoViT(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: EncoderSpec) -> Self:
        """The same network from an artifact's config and spec, with fresh weights from torch's generator."""
        encoder = cls(VideoViTConfig(**config), name=spec.name, fps=spec.fps)
        encoder.spec = spec
        return encoder

    def shortened(self, frames: int, *, trained: bool = False) -> Self:
        """With `trained` over `frames` frames, whose temporal positions are the last of the clip's; what is not trained further keeps
        the clip that it was pretrained on."""
        if not trained or frames >= self.spec.frames:
            return self
        config = VideoViTConfig(**{**self.config, "frames": frames})
        with torch.random.fork_rng(devices=[]):  # the weights drawn are not kept
            encoder = type(self)(config, name=self.spec.name, fps=self.spec.fps)
        weights = self.state_dict()
        encoder.load_state_dict(weights | {TEMPORAL: weights[TEMPORAL][-frames:]})
        encoder.spec = dataclasses.replace(encoder.spec, weights_sha256=self.spec.weights_sha256)
        return encoder.to(weights[TEMPORAL].device).train(self.training)

    def features(self, x: Float[Tensor, "B T 3 H W"]) -> EncoderOutput:
        pooled, tokens = self.vit(x)
        return EncoderOutput(tokens=tokens, pooled=pooled, grid=self.spec.grid)


def random_encoder(size: str, *, seed: int, frames: int = 4, image_size: int | None = None) -> EgoDTMEncoder:
    """The video tower with the weights that training starts from at this seed."""
    overrides = {"frames": frames} | ({} if image_size is None else {"image_size": image_size})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = EgoDTMEncoder(VideoViTConfig.of_size(size, **overrides), name=f"egodtm-{size}")
    return encoder.renamed(f"{RANDOM_PREFIX}egodtm-{size}").eval()

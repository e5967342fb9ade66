"""EgoM2P as a VideoEncoder for policies: a short RGB history becomes tokens, the transformer's encoder reads them.

The video tokenizer is causal: its first step of tokens is the first frame alone, each further step the next few frames.
So a history of 1 + k * 4 frames gives exactly the first 1 + k steps of tokens that a whole clip beginning with it would
have, and nothing needs to be filled up: the cheapest faithful path, T = 1 for an image, T = 5 for half a second.

Gradients reach the transformer, not the tokenizer, whose ids are whole numbers.

Axes: B batch, T frames, N = t * h * w tokens, D width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.egom2p.modalities import VIDEO_HZ
from pretrain.egom2p.model import (
    EMBEDDING_STD,
    TOKEN_STD,
    EgoM2P,
    EgoM2PConfig,
    EncoderBlock,
    Norm,
    sincos_positions,
    soften_branches,
)
from pretrain.egom2p.tokenizers.fsq_video import FsqVideoConfig, FsqVideoTokenizer
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer
from pretrain.encoder import EncoderOutput, EncoderSpec, VideoEncoder
from pretrain.encoder_table import RANDOM_PREFIX

RGB = "rgb"
# Half a second before now, in two steps of tokens.
HISTORY_FRAMES = 5
# Pixels to [-1, 1], what the tokenizer takes.
_MEAN = _STD = (0.5, 0.5, 0.5)


class EgoM2PEncoder(VideoEncoder):
    """tokens: the transformer encoder's output at the history's rgb tokens. pooled: their mean (the model has no class
    token)."""

    architecture = "egom2p"
    positions: Tensor

    def __init__(self, model: EgoM2PConfig, video: FsqVideoConfig, *, name: str, frames: int = HISTORY_FRAMES) -> None:
        steps, left = divmod(frames - 1, video.temporal_compression)
        if left or frames > video.padded_frames:
            fitting = [1 + k * video.temporal_compression for k in range(video.grid.shape[0])]
            raise ValueError(f"egom2p encoder: frames={frames}; the tokenizer takes {', '.join(map(str, fitting))}")
        if model.grids.get(RGB) != video.grid:
            raise ValueError(
                f"egom2p encoder: the model's rgb tokens {model.grids.get(RGB)} are not the tokenizer's {video.grid}"
            )
        grid = (1 + steps, *video.grid.shape[1:])
        spec = EncoderSpec(
            name=name,
            frames=frames,
            fps=VIDEO_HZ if frames > 1 else 0.0,
            image_size=video.image_size,
            grid=grid,
            embed_dim=model.width,
            mean=_MEAN,
            std=_STD,
            resize="stretch",
            weights_sha256="",
        )
        tokenizer = FsqVideoTokenizer(video, name=name, modalities=(RGB,))
        super().__init__(spec, {"model": model.to_json(), "video": tokenizer.config, "frames": frames})
        del tokenizer.decoder, tokenizer.post_quant_conv
        self.tokenizer = tokenizer.requires_grad_(False)
        self.token_table = nn.Parameter(torch.empty(video.grid.vocabulary, model.width))
        self.modality = nn.Parameter(torch.empty(model.width))
        self.blocks = nn.ModuleList(EncoderBlock(model) for _ in range(model.encoder_layers))
        self.norm = Norm(model.width)
        positions = sincos_positions(video.grid, model.width)[: spec.tokens]
        self.register_buffer("positions", positions, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the model draws them; the tokenizer has drawn its own."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        soften_branches(self.blocks)
        nn.init.normal_(self.token_table, std=TOKEN_STD)
        nn.init.normal_(self.modality, std=EMBEDDING_STD)

    @classmethod
    def of(cls, model: EgoM2P, tokenizer: Tokenizer, *, name: str, frames: int = HISTORY_FRAMES) -> Self:
        """The encoder of a trained model and its video tokenizer, with copies of their weights.

        Raises:
            ValueError: the tokenizer is not ours (a wrapped TorchScript file has no parts to take).
        """
        if not isinstance(tokenizer, FsqVideoTokenizer):
            raise ValueError(
                f"egom2p encoder: the rgb tokenizer {tokenizer.spec.name!r} is a {tokenizer.architecture}; import its weights as "
                "fsq-video to use the model as an encoder"
            )
        encoder = cls(model.config, tokenizer.shape, name=name, frames=frames)
        kept = encoder.tokenizer.state_dict()
        encoder.tokenizer.load_state_dict({k: v for k, v in tokenizer.state_dict().items() if k in kept})
        index = model.config.names.index(RGB)
        with torch.no_grad():
            encoder.token_table.copy_(model.token_rows(RGB))
            encoder.modality.copy_(model.modality_embedding[index])
        encoder.blocks.load_state_dict(model.encoder.state_dict())
        encoder.norm.load_state_dict(model.encoder_norm.state_dict())
        return encoder.eval()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: EncoderSpec) -> Self:
        """The same network from an artifact's config and spec, with fresh weights from torch's generator."""
        video = FsqVideoConfig(**config["video"])
        encoder = cls(EgoM2PConfig.from_json(config["model"]), video, name=spec.name, frames=config["frames"])
        encoder.spec = spec
        return encoder

    def shortened(self, frames: int, *, trained: bool = False) -> Self:
        """Over the fewest whole steps of tokens that hold `frames` images, which are the first of a longer clip's."""
        del trained  # the tokenizer is causal: an image is a clip to it
        video = self.tokenizer.shape
        fitting = 1 + -(-(frames - 1) // video.temporal_compression) * video.temporal_compression
        if fitting >= self.spec.frames:
            return self
        with torch.random.fork_rng(devices=[]):  # the weights drawn are not kept
            model = EgoM2PConfig.from_json(self.config["model"])
            encoder = type(self)(model, video, name=self.spec.name, frames=fitting)
        encoder.load_state_dict(self.state_dict())
        encoder.spec = dataclasses.replace(encoder.spec, weights_sha256=self.spec.weights_sha256)
        return encoder.to(self.token_table.device).train(self.training)

    def features(self, x: Float[Tensor, "B T 3 H W"]) -> EncoderOutput:
        ids = self.tokenizer.history_to_ids(x.transpose(1, 2))
        tokens = F.embedding(ids, self.token_table) + self.positions + self.modality
        for block in self.blocks:
            tokens = block(tokens, None)
        tokens = self.norm(tokens)
        return EncoderOutput(tokens=tokens, pooled=tokens.mean(dim=1), grid=self.spec.grid)


def random_encoder(size: str, *, seed: int, video: str = "tiny", frames: int = HISTORY_FRAMES) -> EgoM2PEncoder:
    """A model of some size over a tokenizer of some size, with the weights that training starts from at this seed."""
    shape = FsqVideoConfig.of_size(video)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EgoM2PConfig.of_size(size, {RGB: shape.grid})
        encoder = EgoM2PEncoder(model, shape, name=f"egom2p-{size}", frames=frames)
    return encoder.renamed(f"{RANDOM_PREFIX}egom2p-{size}").eval()

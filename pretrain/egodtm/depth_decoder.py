"""EgoDTM's depth decoder: a few queries read all frames' tokens, each names a depth and paints where it applies.

Of Mask2Former it has the queries and the mask embedding (arXiv 2112.01527), of AdaBins the adaptive bins
(arXiv 2011.14141). The number of frames is free: nothing here knows T.

Axes: B batch, T frames, Q queries, C channels, N = T * h * w memory tokens, H W the depth map, S stages.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.egodtm.data import SPREADS

# Keeps every bin at least this wide before normalisation, so that no bin collapses.
MINIMUM_BIN = 0.1


@dataclass(frozen=True, kw_only=True)
class DepthDecoderConfig:
    """Size of the depth head. `scale`: side of the depth map over side of the patch grid (1, 2, 4 or 8)."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    feedforward: int = 384
    queries: int = 8
    scale: int = 4

    def __post_init__(self) -> None:
        for field in ("width", "layers", "heads", "feedforward", "queries"):
            if getattr(self, field) < 1:
                raise ValueError(f"decoder.{field}: expected at least 1, got {getattr(self, field)}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"decoder.width: {self.width} must be a multiple of 4 and of heads {self.heads}")
        if self.scale not in (1, 2, 4, 8):
            raise ValueError(f"decoder.scale: expected 1, 2, 4 or 8, got {self.scale}")


# What predicts depth from the tokens: "queries" is the published decoder; "linear" is one linear layer, after which geometry can be read
# linearly from the tokens, as a policy's read-out does.
DEPTH_HEADS = ("queries", "linear")


class LinearDepth(nn.Module):
    """Each patch token to the inverse depth of its own scale x scale pixels, through one linear layer.

    Without a sigmoid, which a head under noise drives into saturation: there the noise is gone, and with it all that is to be learned.
    The layer's unit is the mean deviation of depth scaled by its spread, so that its weights need not shrink first.
    """

    # One of the layer's output in inverse depth: one mean deviation of depth_scaling=spread, about a mean of 1/2.
    UNIT = 1 / (2 * SPREADS)

    def __init__(self, width: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.project = nn.Linear(width, scale * scale)

    def forward(self, tokens: Float[Tensor, "B T h w D"]) -> Float[Tensor, "B T H W"]:
        """Inverse depth about 1/2, near = large, not bounded; H = scale * h."""
        pixels = (0.5 + self.UNIT * self.project(tokens)).unflatten(-1, (self.scale, self.scale))
        return pixels.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


class Readings(NamedTuple):
    """What the queries say after each stage: a mask embedding each (where), a bin centre each (how near)."""

    embeddings: Float[Tensor, "S B Q C"]
    centres: Float[Tensor, "S B Q"]


class DecoderLayer(nn.Module):
    """Post-norm, in this order: cross-attention to the memory, self-attention among queries, feed-forward (ReLU)."""

    def __init__(self, config: DepthDecoderConfig) -> None:
        super().__init__()
        width = config.width
        self.cross_attention = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.self_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, config.feedforward), nn.ReLU(), nn.Linear(config.feedforward, width)
        )
        self.feedforward_norm = nn.LayerNorm(width)

    def forward(
        self, queries: Float[Tensor, "B Q C"], position: Float[Tensor, "Q C"], memory: Float[Tensor, "B N C"]
    ) -> Float[Tensor, "B Q C"]:
        # The keys carry no positions of their own: the tokens come from a ViT that put its positions in.
        read, _ = self.cross_attention(queries + position, memory, memory, need_weights=False)
        queries = self.cross_norm(queries + read)
        placed = queries + position
        read, _ = self.self_attention(placed, placed, queries, need_weights=False)
        queries = self.self_norm(queries + read)
        return self.feedforward_norm(queries + self.feedforward(queries))


class DepthDecoder(nn.Module):
    """Predicts inverse depth in (0, 1) from the queries as they start and after every layer: S = layers + 1 stages."""

    def __init__(self, config: DepthDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.query_content = nn.Parameter(torch.empty(config.queries, width))
        self.query_position = nn.Parameter(torch.empty(config.queries, width))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.head_norm = nn.LayerNorm(width)
        self.bin_head = nn.Linear(width, 1)
        self.mask_embed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.query_content)
        nn.init.normal_(self.query_position)
        for layer in self.layers:
            for parameter in layer.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        memory: Float[Tensor, "B N C"],
        mask_features: Float[Tensor, "B T C H W"],
        *,
        all_stages: bool = True,
    ) -> Float[Tensor, "S B T H W"]:
        """Inverse depth, near = large. With `all_stages` off only the last stage is made (S = 1)."""
        return paint(self.read(memory, all_stages=all_stages), mask_features)

    def read(self, memory: Float[Tensor, "B N C"], *, all_stages: bool = True) -> Readings:
        """The queries' readings at each stage, or at the last alone; painting them on mask features gives depth."""
        queries = self.query_content.expand(len(memory), -1, -1)
        read = [queries]
        for layer in self.layers:
            queries = layer(queries, self.query_position, memory)
            read.append(queries)
        stages = self.head_norm(torch.stack(read if all_stages else read[-1:]))
        raw = self.bin_head(stages).squeeze(-1)
        return Readings(self.mask_embed(stages), bin_edges_and_centres(raw)[1])


def paint(readings: Readings, mask_features: Float[Tensor, "B T C H W"]) -> Float[Tensor, "S B T H W"]:
    """Inverse depth of every stage on mask features that are held whole, as the authors do."""
    pixels = mask_features.flatten(3)  # [B, T, C, HW]
    stages = [
        compose_depth(embeddings.unsqueeze(1) @ pixels, centres)
        for embeddings, centres in zip(readings.embeddings, readings.centres, strict=True)
    ]
    return torch.stack(stages).unflatten(-1, mask_features.shape[-2:])


def bin_edges_and_centres(
    raw: Float[Tensor, "*B Q"],
) -> tuple[Float[Tensor, "*B Q1"], Float[Tensor, "*B Q"]]:
    """Adaptive bins of [0, 1] (AdaBins, equations 1 and 2, with a range of one): widths relu(raw) + 0.1 normalised to
    sum to 1, edges [*B, Q + 1] their running sum from 0, centres the middles of the bins."""
    widths = torch.relu(raw) + MINIMUM_BIN
    widths = widths / widths.sum(dim=-1, keepdim=True)
    edges = torch.cat([torch.zeros_like(widths[..., :1]), widths.cumsum(dim=-1)], dim=-1)
    return edges, (edges[..., :-1] + edges[..., 1:]) / 2


def compose_depth(logits: Float[Tensor, "B T Q P"], centres: Float[Tensor, "B Q"]) -> Float[Tensor, "B T P"]:
    """Each pixel's depth is the mean of the bin centres under its softmax over queries, so it lies in (0, 1)."""
    return (logits.softmax(dim=2) * centres[:, None, :, None]).sum(dim=2)

"""The transformer denoiser of diffusion policy: noisy actions attend causally to each other and to the observation (arXiv 2303.04137, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policies.backbone import Backbone, Condition
from policies.heads import ConditionTokens, sinusoids


@dataclass(frozen=True, kw_only=True)
class TransformerDenoiserConfig:
    """Sizes. The paper's: width 256 to 768, 4 heads, 8 layers, dropout 0.3 in attention, on a GPU."""

    width: int = 128
    heads: int = 4
    layers: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width < 2 or self.heads < 1 or self.layers < 1 or self.width % self.heads:
            raise ValueError(
                f"diffusion.transformer: width={self.width}, heads={self.heads}, layers={self.layers}: expected positive numbers and a "
                "width that divides by heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"diffusion.transformer.dropout={self.dropout}: expected 0 to below 1")


class TransformerDenoiser(nn.Module):
    """(noisy chunk, noise level, condition) -> predicted noise."""

    causal: Tensor

    def __init__(
        self, action_dim: int, chunk_steps: int, backbone: Backbone, config: TransformerDenoiserConfig
    ) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.action = nn.Linear(action_dim, width)
        self.positions = nn.Parameter(0.02 * torch.randn(chunk_steps, width))
        self.condition_tokens = ConditionTokens(backbone, width)
        self.memory = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        layer = nn.TransformerDecoderLayer(
            width, config.heads, 4 * width, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, config.layers, norm=nn.LayerNorm(width))
        self.head = nn.Linear(width, action_dim)
        mask = torch.full((chunk_steps, chunk_steps), float("-inf")).triu(1)
        self.register_buffer("causal", mask, persistent=False)

    def forward(
        self, noisy: Float[Tensor, "B Ta A"], levels: Int[Tensor, " B"], condition: Condition
    ) -> Float[Tensor, "B Ta A"]:
        level = sinusoids(levels, self.config.width)[:, None]
        memory = self.memory(torch.cat([level, self.condition_tokens(condition)], dim=1))
        tokens = self.action(noisy) + self.positions
        return self.head(self.decoder(tokens, memory, tgt_mask=self.causal, tgt_is_causal=True))

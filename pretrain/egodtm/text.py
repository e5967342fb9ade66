"""EgoDTM's text tower: CLIP's byte-pair tokens through a transformer, read at the end-of-text token.

Axes: B batch, L context length, D width, E joint dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pretrain.egodtm.video_vit import choose_attention
from pretrain.zoo.vision_ops import clip_tokenizer, timm_vit

CLIP_VOCABULARY = 49408


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Size of the text tower. `causal`: each token sees the ones before it, as in CLIP; the released EgoDTM attends in
    both directions, pads included, through what reads like a mistake in its builder."""

    context_length: int = 77
    width: int = 192
    layers: int = 4
    heads: int = 3
    causal: bool = True

    def __post_init__(self) -> None:
        for field in ("context_length", "width", "layers", "heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"text.{field}: expected at least 1, got {getattr(self, field)}")
        if self.width % self.heads:
            raise ValueError(f"text.width: {self.width} is not a multiple of heads {self.heads}")

    @classmethod
    def of_size(cls, size: str, **overrides: Any) -> Self:
        """The named row of TEXT_SIZES with fields replaced."""
        if size not in TEXT_SIZES:
            raise ValueError(f"unknown size {size!r}; known: {', '.join(TEXT_SIZES)}")
        return cls(**(TEXT_SIZES[size] | overrides))


# Base is CLIP's; tiny is kept small beside the tiny video tower, which is the part that is kept.
TEXT_SIZES: dict[str, dict[str, Any]] = {
    "nano": {"width": 32, "layers": 2, "heads": 2},
    "tiny": {"width": 192, "layers": 4, "heads": 3},
    "small": {"width": 384, "layers": 8, "heads": 6},
    "base": {"width": 512, "layers": 12, "heads": 8},
}


@cache
def _tokenizer(context_length: int) -> Any:
    return clip_tokenizer(context_length)


def tokenize(texts: Sequence[str], context_length: int = 77) -> Int[Tensor, "B L"]:
    """CLIP's lower-cased byte-pair tokens, int64, padded with 0; a text too long is cut, its end-of-text token kept."""
    return _tokenizer(context_length)(list(texts))


class TextTower(nn.Module):
    """Tokens to joint embeddings [B, E], not normalised."""

    def __init__(self, config: TextConfig, joint_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token_embedding = nn.Embedding(CLIP_VOCABULARY, width)
        self.position = nn.Parameter(torch.empty(config.context_length, width))
        norm = partial(nn.LayerNorm, eps=1e-5)
        self.blocks = nn.ModuleList(
            timm_vit.Block(dim=width, num_heads=config.heads, qkv_bias=True, norm_layer=norm)
            for _ in range(config.layers)
        )
        self.ln_final = norm(width)
        self.projection = nn.Linear(width, joint_dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """CLIP's initialisation: small normal embeddings, residual branches shrunk with depth."""
        width, layers = self.config.width, self.config.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for block in self.blocks:
            nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attn.proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.fc2.weight, std=residual_std)
            for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                nn.init.zeros_(linear.bias)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        # The end-of-text token has the largest id of the vocabulary.
        end = tokens.argmax(dim=1)
        if self.config.causal:
            # Nothing behind the end-of-text token can reach it, so the batch is cut after the last one: most texts are
            # a dozen tokens of 77.
            tokens = tokens[:, : int(end.max()) + 1]
        x = self.token_embedding(tokens) + self.position[: tokens.shape[1]]
        choose_attention(self.blocks, x)
        for block in self.blocks:
            x = block(x, is_causal=self.config.causal)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), end])
        return self.projection(x)

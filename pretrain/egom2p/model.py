"""EgoM2P: a transformer that reads some tokens of a clip's modalities and says others.

Structure of the published model (arXiv 2506.07886, which follows 4M, arXiv 2312.06647): an encoder over the visible tokens; a decoder whose queries are a
learned mask token at the places asked for, which attend each other within one modality and to the encoder's tokens;
pre-norm blocks with SwiGLU and no biases; sine-cosine positions, 1D of sequences and 3D of video; one embedding a modality,
shared by both sides; output heads tied to the decoder's token tables.

Tokens travel flat, whatever their modality, and without the places that are neither given nor asked for, so there is no
work on padding but what a batch of unequal clips needs. A mask is made only then, or where queries of two modalities meet.

Axes: B batch, N input tokens, Q queries, D width, H heads, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from pretrain.egom2p.modalities import MODALITIES, PUBLISHED, TokenGrid, require_modalities

NORM_EPSILON = 1e-6
POSITION_TEMPERATURE = 10000.0
EMBEDDING_STD = 0.02
# Of the encoder's token table: that of the sine-cosine positions added to it (0.5 to 0.7), or the token is not heard beside them.
TOKEN_STD = 0.5


@dataclass(frozen=True, kw_only=True)
class EgoM2PConfig:
    """Size of the model and geometry of its tokens.

    Attributes:
        grids: modality -> its tokens' grid; the order numbers the modalities.
        width: D, a multiple of `heads`, and of 6 where there is video (3D positions).
        mlp_ratio: hidden width of SwiGLU is int(2/3 * mlp_ratio * D), so that it has the parameters of a plain MLP.
    """

    grids: dict[str, TokenGrid]
    width: int = 768
    heads: int = 12
    encoder_layers: int = 12
    decoder_layers: int = 12
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("egom2p.grids: expected at least one modality")
        require_modalities(self.grids, "egom2p.grids")
        for field in ("width", "heads", "encoder_layers", "decoder_layers"):
            if getattr(self, field) < 1:
                raise ValueError(f"egom2p.{field}: expected at least 1, got {getattr(self, field)}")
        if self.width % self.heads:
            raise ValueError(f"egom2p.width: {self.width} is not a multiple of heads {self.heads}")
        if self.width % 6:
            raise ValueError(f"egom2p.width: {self.width} is not a multiple of 6, which 3D sine-cosine positions need")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.grids)

    @property
    def hidden(self) -> int:
        return int(2 / 3 * self.mlp_ratio * self.width)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        grids = {
            name: TokenGrid(shape=tuple(grid["shape"]), vocabulary=grid["vocabulary"])
            for name, grid in document["grids"].items()
        }
        return cls(**{**document, "grids": grids})

    @classmethod
    def of_size(cls, size: str, grids: Mapping[str, TokenGrid], **overrides: Any) -> Self:
        """A row of SIZES with fields replaced."""
        if size not in SIZES:
            raise ValueError(f"egom2p size: expected one of {', '.join(SIZES)}, got {size!r}")
        return cls(grids=dict(grids), **{**SIZES[size], **overrides})


# Base and large are the published ones; large has a width that 3D positions divide. Nano is for tests.
SIZES: dict[str, dict[str, Any]] = {
    "nano": {"width": 24, "heads": 2, "encoder_layers": 2, "decoder_layers": 2},
    "tiny": {"width": 192, "heads": 3, "encoder_layers": 6, "decoder_layers": 6},
    "small": {"width": 510, "heads": 6, "encoder_layers": 8, "decoder_layers": 8},
    "base": {"width": 768, "heads": 12, "encoder_layers": 12, "decoder_layers": 12},
    "large": {"width": 1020, "heads": 15, "encoder_layers": 24, "decoder_layers": 24},
}


def published_grids() -> dict[str, TokenGrid]:
    """The four modalities of the paper with their tokens."""
    grids = {name: MODALITIES[name].published for name in PUBLISHED}
    assert None not in grids.values()
    return grids  # pyright: ignore[reportReturnType]


# ------------------------------------------------------------------------------------------------------- token sets


@dataclass
class TokenSet:
    """Tokens of any modalities, flat.

    ids: what they are; position: where in their modality's flattened grid; modality: index into `EgoM2PConfig.names`.
    valid: False is padding; None means that there is none.
    """

    ids: Int64[Tensor, "B N"]
    modality: Int64[Tensor, "B N"]
    position: Int64[Tensor, "B N"]
    valid: Bool[Tensor, "B N"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def count(self) -> int:
        """N, padding included."""
        return self.ids.shape[1]

    def to(self, device: torch.device | str) -> "TokenSet":
        valid = None if self.valid is None else self.valid.to(device)
        return TokenSet(self.ids.to(device), self.modality.to(device), self.position.to(device), valid)

    @classmethod
    def whole(cls, config: EgoM2PConfig, tokens: Mapping[str, Int64[Tensor, "B n"]]) -> "TokenSet":
        """Every token of some modalities, one after another; of none: N = 0 needs a batch, see `empty`.

        Raises:
            ValueError: an unknown modality, another number of tokens than its grid has, ids outside the vocabulary.
        """
        parts = []
        for name, ids in tokens.items():
            check_tokens(config, name, ids)
            parts.append(cls.of(config, name, ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids)))
        return concatenate(parts)

    @classmethod
    def of(
        cls, config: EgoM2PConfig, name: str, ids: Int64[Tensor, "B n"], position: Int64[Tensor, "B n"]
    ) -> "TokenSet":
        """Tokens of one modality at given places."""
        return cls(ids, torch.full_like(ids, config.names.index(name)), position)

    @classmethod
    def empty(cls, batch: int, device: torch.device | str = "cpu") -> "TokenSet":
        none = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        return cls(none, none, none)


def concatenate(parts: Sequence[TokenSet]) -> TokenSet:
    """Token sets of one batch side by side."""
    if not parts:
        raise ValueError("no tokens: name at least one modality")
    valid = None
    if any(part.valid is not None for part in parts):
        valid = torch.cat([torch.ones_like(p.ids, dtype=torch.bool) if p.valid is None else p.valid for p in parts], 1)
    ids, modality, position = (
        torch.cat([getattr(part, field) for part in parts], 1) for field in ("ids", "modality", "position")
    )
    return TokenSet(ids, modality, position, valid)


def check_tokens(config: EgoM2PConfig, name: str, ids: Tensor) -> None:
    """Raises ValueError for tokens that are not those of a whole clip in this modality."""
    if name not in config.grids:
        raise ValueError(f"modality {name!r}: this model has {', '.join(config.names)}")
    grid = config.grids[name]
    if ids.ndim != 2 or ids.shape[1] != grid.tokens:
        raise ValueError(f"tokens of {name}: expected [B, {grid.tokens}] (grid {grid.shape}), got {list(ids.shape)}")
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= grid.vocabulary):
        raise ValueError(
            f"tokens of {name}: ids from {int(ids.min())} to {int(ids.max())}, expected 0 to {grid.vocabulary - 1}: "
            "another tokenizer made them"
        )


@dataclass
class Context:
    """What the encoder read, ready for the decoder."""

    features: Float[Tensor, "B N D"]
    valid: Bool[Tensor, "B N"] | None


# ------------------------------------------------------------------------------------------------------- positions


def sincos_positions(grid: TokenGrid, width: int) -> Float[Tensor, "N D"]:
    """Fixed sine-cosine positions of a grid, flattened row by row, of frequencies falling geometrically from 1 to 1/10000
    (Vaswani et al. 2017, section 3.5). A sequence has all sines, then all cosines; video has D / 3 channels an axis in the
    order (t, h, w), sines and cosines in turn, as published."""
    share = width // len(grid.shape)
    assert share % 2 == 0 and share * len(grid.shape) == width
    frequency = POSITION_TEMPERATURE ** -(torch.arange(share // 2, dtype=torch.float64) / (share // 2))
    places = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid.shape), indexing="ij")
    parts = []
    for place in places:
        angle = place.reshape(-1, 1) * frequency
        waves = torch.stack([angle.sin(), angle.cos()], dim=-1 if len(places) > 1 else 1)
        parts.append(waves.flatten(1))
    return torch.cat(parts, dim=1).float()


# ------------------------------------------------------------------------------------------------------------ blocks


class Norm(nn.LayerNorm):
    """LayerNorm without a bias."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPSILON, bias=False)


class SwiGLU(nn.Module):
    """fc2(silu(fc1 x) * fc3 x), Shazeer 2020 (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc3 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class Attention(nn.Module):
    """Multi-head attention by PyTorch's fused kernel. `memory` None is self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "B Q D"], memory: Float[Tensor, "B N D"] | None, mask: Bool[Tensor, "B 1 #Q N"] | None
    ) -> Float[Tensor, "B Q D"]:
        source = x if memory is None else memory
        q = self._heads(self.q(x))
        k, v = (self._heads(part) for part in self.kv(source).chunk(2, dim=-1))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(read.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderBlock(nn.Module):
    def __init__(self, config: EgoM2PConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config.width)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = Norm(config.width)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x: Float[Tensor, "B N D"], mask: Tensor | None) -> Float[Tensor, "B N D"]:
        x = x + self.attn(self.norm1(x), None, mask)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention, MLP; the memory has a norm of its own."""

    def __init__(self, config: EgoM2PConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config.width)
        self.self_attn = Attention(config.width, config.heads)
        self.query_norm = Norm(config.width)
        self.context_norm = Norm(config.width)
        self.cross_attn = Attention(config.width, config.heads)
        self.norm2 = Norm(config.width)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(
        self, x: Float[Tensor, "B Q D"], context: Float[Tensor, "B N D"], own: Tensor | None, cross: Tensor | None
    ) -> Float[Tensor, "B Q D"]:
        x = x + self.self_attn(self.norm1(x), None, own)
        # An empty condition has nothing to say; a softmax over nothing would be NaN.
        if context.shape[1]:
            x = x + self.cross_attn(self.query_norm(x), self.context_norm(context), cross)
        return x + self.mlp(self.norm2(x))


@torch.no_grad()
def soften_branches(blocks: nn.ModuleList) -> None:
    """Divides the matrices that end the branches of a tower by the root of the branches' number (GPT-2, Radford et al. 2019, section
    2.3), so that at the start what was embedded is not drowned by what all tokens have in common, which the branches add up."""
    ends = [m.fc2 if isinstance(m, SwiGLU) else m.proj for m in blocks.modules() if isinstance(m, SwiGLU | Attention)]
    for end in ends:
        end.weight.mul_(len(ends) ** -0.5)


# ------------------------------------------------------------------------------------------------------------- model


class EgoM2P(nn.Module):
    """The model. Token tables and positions of all modalities lie one after another in one matrix each, so that a flat set of
    mixed tokens is one lookup."""

    def __init__(self, config: EgoM2PConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        grids = list(config.grids.values())
        total = sum(grid.vocabulary for grid in grids)
        self.encoder_tokens = nn.Parameter(torch.empty(total, width))
        self.decoder_tokens = nn.Parameter(torch.empty(total, width))
        self.modality_embedding = nn.Parameter(torch.empty(len(grids), width))
        self.mask_token = nn.Parameter(torch.empty(width))
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_layers))
        self.encoder_norm = Norm(width)
        self.context_projection = nn.Linear(width, width)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.decoder_norm = Norm(width)
        self.register_buffer("positions", torch.cat([sincos_positions(g, width) for g in grids]), persistent=False)
        self.register_buffer("_token_offset", _offsets([g.vocabulary for g in grids]), persistent=False)
        self.register_buffer("_position_offset", _offsets([g.tokens for g in grids]), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, queries, keys and values each for itself, those that end a branch smaller
        (`soften_branches`); embeddings normal with std 0.02, but the encoder's token table with TOKEN_STD (training starts it
        from codebooks, pretrain/egom2p/token_start.py)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, Attention):
                for part in module.kv.weight.chunk(2):
                    nn.init.xavier_uniform_(part)
        soften_branches(self.encoder)
        soften_branches(self.decoder)
        nn.init.normal_(self.encoder_tokens, std=TOKEN_STD)
        for table in (self.decoder_tokens, self.modality_embedding, self.mask_token):
            nn.init.normal_(table, std=EMBEDDING_STD)

    def token_rows(self, modality: str) -> Float[Tensor, "V D"]:
        """The rows of the encoder's table that are this modality's tokens, a view."""
        index = self.config.names.index(modality)
        start = int(self._token_offset[index])
        return self.encoder_tokens[start : start + self.config.grids[modality].vocabulary]

    def _places(self, tokens: TokenSet) -> Float[Tensor, "B N D"]:
        """Position and modality: where a token is, whatever it is."""
        position = self.positions[self._position_offset[tokens.modality] + tokens.position]
        return position + self.modality_embedding[tokens.modality]

    def embed(self, tokens: TokenSet) -> Float[Tensor, "B N D"]:
        """The encoder's input."""
        return F.embedding(self._token_offset[tokens.modality] + tokens.ids, self.encoder_tokens) + self._places(tokens)

    def features(self, tokens: TokenSet) -> Float[Tensor, "B N D"]:
        """The encoder's output after its norm; padding gives rubbish."""
        x = self.embed(tokens)
        mask = None if tokens.valid is None else tokens.valid[:, None, None, :]
        for block in self.encoder:
            x = block(x, mask)
        return self.encoder_norm(x)

    def encode(self, tokens: TokenSet) -> Context:
        """Reads tokens for the decoder: projected, with their places added once more (as 4M does)."""
        if not tokens.count:
            return Context(torch.zeros(len(tokens), 0, self.config.width, device=self.mask_token.device), None)
        projected = self.context_projection(self.features(tokens))
        return Context(projected + self._places(tokens), tokens.valid)

    def decode(self, queries: TokenSet, context: Context) -> Float[Tensor, "B Q D"]:
        """What the decoder makes of the places asked for; `queries.ids` is not read."""
        x = self.mask_token + self._places(queries)
        own = within_modality(queries)
        cross = None if context.valid is None else context.valid[:, None, None, :]
        for block in self.decoder:
            x = block(x, context.features, own, cross)
        return self.decoder_norm(x)

    def head(self, modality: str) -> Float[Tensor, "V D"]:
        """The rows of the decoder's table that are this modality's tokens: the output layer."""
        index = self.config.names.index(modality)
        start = int(self._token_offset[index])
        return self.decoder_tokens[start : start + self.config.grids[modality].vocabulary]

    def logits(self, hidden: Float[Tensor, "*n D"], modality: str) -> Float[Tensor, "*n V"]:
        return F.linear(hidden, self.head(modality))

    def forward(self, inputs: TokenSet, targets: TokenSet) -> dict[str, tuple[Tensor, Tensor]]:
        """Cross-entropy of the tokens asked for: modality -> (mean over its tokens in this batch, number of right ones).

        A modality that no clip of the batch is asked for is left out.
        """
        hidden = self.decode(targets, self.encode(inputs))
        out: dict[str, tuple[Tensor, Tensor]] = {}
        for index, name in enumerate(self.config.names):
            chosen = targets.modality == index
            if targets.valid is not None:
                chosen &= targets.valid
            if not chosen.any():
                continue
            logits = self.logits(hidden[chosen], name).float()
            ids = targets.ids[chosen]
            out[name] = F.cross_entropy(logits, ids), (logits.detach().argmax(-1) == ids).sum()
        return out


def within_modality(queries: TokenSet) -> Bool[Tensor, "B 1 Q Q"] | None:
    """Which queries attend each other: those of one modality. None where all do, which keeps the fastest kernels.

    Padding attends padding, so that no row is empty.
    """
    kind = queries.modality
    if queries.valid is None:
        if not queries.count or bool((kind == kind[:1, :1]).all()):
            return None
    else:
        kind = torch.where(queries.valid, kind, -1)
    return kind[:, None, :, None] == kind[:, None, None, :]


def egom2p_loss(
    losses: Mapping[str, tuple[Tensor, Tensor]], counts: Mapping[str, int], modalities: int
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Sum of the modalities' mean cross-entropies over their number (the published "mod" loss: a modality with no token in
    the batch counts as 0), and scalars to log.

    Args:
        losses: of EgoM2P.forward. counts: modality -> tokens asked for. modalities: that the model has.
    """
    assert losses
    total = torch.stack([loss for loss, _ in losses.values()]).sum() / modalities
    scalars: dict[str, Tensor] = {"loss": total.detach()}
    for name, (loss, right) in losses.items():
        scalars[name] = loss.detach()
        scalars[f"{name}_accuracy"] = right / max(1, counts[name])
    return total, scalars


def parameter_count(config: EgoM2PConfig) -> int:
    """Trained numbers of a model of this size, without making it."""
    d, h = config.width, config.hidden
    tables = 2 * d * sum(grid.vocabulary for grid in config.grids.values())
    attention, mlp = 4 * d * d, 3 * d * h
    encoder = config.encoder_layers * (attention + mlp + 2 * d)
    decoder = config.decoder_layers * (2 * attention + mlp + 4 * d)
    return tables + len(config.grids) * d + d + encoder + decoder + 2 * d + d * d + d


def _offsets(sizes: Sequence[int]) -> Int64[Tensor, " M"]:
    return torch.tensor([0, *sizes[:-1]]).cumsum(0)

"""Read-outs: how what an encoder makes of one camera becomes K vectors of width C that a policy can use.

A policy with a vector head flattens them side by side; a policy with a transformer takes them as K tokens. The read-out is a factor of its own
in a comparison of encoders: every encoder gets the same one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.encoder import EncoderSpec


@dataclass(frozen=True, kw_only=True)
class ReadoutConfig:
    """The sizes of read-outs; each reads its own.

    Attributes:
        channels: of the grid, that each token is mapped to.
        keypoints: of the spatial softmax.
        latent: width of the linear read-out, and noise: standard deviation of Gaussian noise on the standardized tokens that it reads
            while training.
        queries, width, heads: of the attention pooling.
        history: latents in time that FLARE reads.
    """

    channels: int = 16
    keypoints: int = 32
    latent: int = 8
    noise: float = 0.0
    queries: int = 4
    width: int = 64
    heads: int = 4
    history: int = 3

    def __post_init__(self) -> None:
        for name in ("channels", "keypoints", "latent", "queries", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"backbone.{name}={getattr(self, name)}: expected at least 1")
        if self.noise < 0:
            raise ValueError(f"backbone.noise={self.noise}: expected 0 or more")
        if self.width % self.heads:
            raise ValueError(f"backbone.width={self.width} does not divide by backbone.heads={self.heads}")
        if self.history < 2:
            raise ValueError(f"backbone.history={self.history}: differences in time need at least 2 latents")


class Readout(nn.Module):
    """Maps [B, L, D] latents (needs "pooled") or [B, L, P, D] tokens of the newest frame (needs "tokens") to [B, K, C]."""

    places: int  # K
    width: int  # C


class Pooled(Readout):
    """The encoder's own pooled feature, as R3M and CortexBench use it."""

    def __init__(self, encoder: EncoderSpec, config: ReadoutConfig) -> None:
        super().__init__()
        self.places, self.width = 1, encoder.embed_dim

    def forward(self, latents: Float[Tensor, "B L D"]) -> Float[Tensor, "B K C"]:
        return latents[:, -1:]


class Flare(Readout):
    """Latents over time with their differences, as CortexBench fuses frames after FLARE (arXiv 2101.01857, section 4): the differences of
    neighbours, then the newest latent. With the differences it spans what all the latents would."""

    def __init__(self, encoder: EncoderSpec, config: ReadoutConfig) -> None:
        super().__init__()
        self.places, self.width = config.history, encoder.embed_dim

    def forward(self, latents: Float[Tensor, "B L D"]) -> Float[Tensor, "B K C"]:
        return torch.cat([latents[:, 1:] - latents[:, :-1], latents[:, -1:]], dim=1)


class Grid(Readout):
    """Keeps where things are: each token of the newest frame mapped to a few channels by one learned linear layer."""

    def __init__(self, encoder: EncoderSpec, config: ReadoutConfig) -> None:
        super().__init__()
        self.places, self.width = encoder.grid[1] * encoder.grid[2], config.channels
        self.project = nn.Linear(encoder.embed_dim, config.channels)

    def forward(self, tokens: Float[Tensor, "B L P D"]) -> Float[Tensor, "B K C"]:
        return self.project(tokens[:, -1])


class LinearBottleneck(Readout):
    """All tokens of the newest frame mapped to a few numbers by one learned linear layer, as a linear probe would read positions from them.

    With `noise`, training adds independent Gaussian noise to every token, which is Tikhonov's regularization (Bishop 1995, "Training with
    noise"): what few demonstrations happen to look like is not learned by heart. The noise is drawn where it arrives, W n ~ N(0, W W^T).
    """

    def __init__(self, encoder: EncoderSpec, config: ReadoutConfig) -> None:
        super().__init__()
        self.places, self.width, self.noise = 1, config.latent, config.noise
        self.project = nn.Linear(encoder.grid[1] * encoder.grid[2] * encoder.embed_dim, config.latent)

    def forward(self, tokens: Float[Tensor, "B L P D"]) -> Float[Tensor, "B K C"]:
        read = self.project(tokens[:, -1].flatten(1))
        if self.training and self.noise:
            weight = self.project.weight.float()
            covariance = weight @ weight.T + 1e-6 * torch.eye(self.width, device=weight.device)
            drawn = torch.randn(len(read), self.width, device=weight.device) @ torch.linalg.cholesky(covariance).T
            read = read + self.noise * drawn.to(read.dtype)
        return read[:, None]


class SpatialSoftmax(Readout):
    """Expected image coordinates, each in [-1, 1], of learned keypoints: a softmax over places of a linear map of the tokens
    (Finn et al. 2016, arXiv 1509.06113, section IV; robomimic's core of the same name)."""

    coordinates: Tensor

    def __init__(self, encoder: EncoderSpec, config: ReadoutConfig) -> None:
        super().__init__()
        rows, columns = encoder.grid[1:]
        if rows * columns == 1:
            raise ValueError(
                f"backbone.readout=spatial-softmax: the encoder {encoder.name} has a single token and no places; use readout=pooled"
            )
        self.places, self.width = config.keypoints, 2
        self.project = nn.Linear(encoder.embed_dim, config.keypoints)
        y, x = torch.meshgrid(_places(rows), _places(columns), indexing="ij")
        self.register_buffer("coordinates", torch.stack([x.flatten(), y.flatten()], dim=-1), persistent=False)

    def forward(self, tokens: Float[Tensor, "B L P D"]) -> Float[Tensor, "B K C"]:
        attention = self.project(tokens[:, -1]).softmax(dim=1)  # [B, P, K]
        return torch.einsum("bpk,pc->bkc", attention, self.coordinates.to(attention.dtype))


class AttentionPooling(Readout):
    """Learned queries attend over the tokens (the pooling by multi-head attention of Set Transformer, which Voltron and MPI use)."""

    def __init__(self, encoder: EncoderSpec, config: ReadoutConfig) -> None:
        super().__init__()
        self.places, self.width = config.queries, config.width
        self.queries = nn.Parameter(torch.randn(config.queries, config.width) * config.width**-0.5)
        self.norm = nn.LayerNorm(encoder.embed_dim)
        self.attention = nn.MultiheadAttention(
            config.width, config.heads, kdim=encoder.embed_dim, vdim=encoder.embed_dim, batch_first=True
        )

    def forward(self, tokens: Float[Tensor, "B L P D"]) -> Float[Tensor, "B K C"]:
        keys = self.norm(tokens[:, -1])
        return self.attention(self.queries.expand(len(keys), -1, -1), keys, keys, need_weights=False)[0]


@dataclass(frozen=True, kw_only=True)
class ReadoutEntry:
    """A row of READOUTS: `needs` says what of the encoder's output it reads, "pooled" or "tokens" (of the newest frame)."""

    build: Callable[[EncoderSpec, ReadoutConfig], Readout]
    needs: str
    over_time: bool
    help: str


READOUTS: dict[str, ReadoutEntry] = {
    "pooled": ReadoutEntry(build=Pooled, needs="pooled", over_time=False, help="the encoder's own vector (R3M, CortexBench)"),
    "flare": ReadoutEntry(build=Flare, needs="pooled", over_time=True, help="pooled vectors of the last frames and their differences"),
    "grid": ReadoutEntry(build=Grid, needs="tokens", over_time=False, help="every token through a small linear layer, side by side"),
    "linear": ReadoutEntry(build=LinearBottleneck, needs="tokens", over_time=False, help="all tokens through one linear layer to a few numbers, with noise while training"),
    "spatial-softmax": ReadoutEntry(build=SpatialSoftmax, needs="tokens", over_time=False, help="expected coordinates of learned keypoints"),
    "attention": ReadoutEntry(build=AttentionPooling, needs="tokens", over_time=False, help="learned queries attend over the tokens"),
}  # fmt: skip


def readout_entry(name: str) -> ReadoutEntry:
    if name not in READOUTS:
        close = difflib.get_close_matches(name, READOUTS, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"backbone.readout={name}: {hint}expected one of {', '.join(READOUTS)}")
    return READOUTS[name]


def _places(count: int) -> Tensor:
    """Centres of `count` places in [-1, 1], the outer ones at the ends; a single one in the middle."""
    return torch.linspace(-1.0, 1.0, count) if count > 1 else torch.zeros(1)

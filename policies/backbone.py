"""Cameras x encoder x read-out + proprioception: the one module through which every policy sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from policies.adaptation import ADAPTATIONS, adapt
from policies.normalizer import Normalizer
from policies.policy import PolicySpec
from policies.readouts import ReadoutConfig, readout_entry
from pretrain.encoder import VideoEncoder


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(ReadoutConfig):
    """How a policy sees.

    Attributes:
        readout: a row of READOUTS; its sizes are ReadoutConfig's fields.
        adaptation: of the encoder, a name of ADAPTATIONS. Frozen features are computed once and cached; the others train on images.
        lora_rank: of the adapters.
    """

    readout: str = "pooled"
    adaptation: str = "frozen"
    lora_rank: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        readout_entry(self.readout)
        if self.adaptation not in ADAPTATIONS:
            raise ValueError(f"backbone.adaptation={self.adaptation}: expected one of {', '.join(ADAPTATIONS)}")
        if self.lora_rank < 1:
            raise ValueError(f"backbone.lora_rank={self.lora_rank}: expected at least 1")

    @property
    def latents(self) -> int:
        """L, how many of the encoder's outputs over time one prediction reads."""
        return self.history if readout_entry(self.readout).over_time else 1


@dataclass
class Condition:
    """What a policy acts on. `views` is None for a policy that sees no images."""

    state: Float[Tensor, "B S"]
    views: Float[Tensor, "B V K C"] | None

    @property
    def vector(self) -> Float[Tensor, "B N"]:
        """[read-out of camera 1, ..., camera V, state]."""
        return self.state if self.views is None else torch.cat([self.views.flatten(1), self.state], dim=-1)


class Backbone(nn.Module):
    """One encoder, shared by the cameras; a read-out of its standardized features for each camera; standardized proprioception.

    A batch or an observation gives, by key:
        "images/<camera>" uint8[B, To, H, W, 3], newest last; or, in their place, what `encode` made of them:
        "features/<camera>" float[B, L, D] or [B, L, P, D], as the read-out needs;
        "state" float32[B, S], raw; or "state/<name>" float32[B, To, d], whose newest are put side by side in the spec's order.
    """

    def __init__(self, spec: PolicySpec, config: BackboneConfig, encoder: VideoEncoder | None) -> None:
        super().__init__()
        if (encoder is None) != (not spec.cameras):
            raise ValueError(
                f"cameras={list(spec.cameras)} with encoder={encoder and encoder.spec.name}: a policy has both or neither"
            )
        if not spec.state_keys:
            raise ValueError("state_keys=[]: a policy reads at least one state/<name> of its demonstrations")
        if encoder is not None and spec.frames < config.latents:
            raise ValueError(
                f"frames={spec.frames}: readout={config.readout} reads {config.latents} latents, each of at least one frame"
            )
        self.spec, self.config = spec, config
        self.needs = readout_entry(config.readout).needs
        self.state_normalizer = Normalizer(spec.state_dim)
        self.encoder = None
        self.readouts = nn.ModuleList()
        self.places, self.width = 0, 0  # K vectors of width C that one camera gives
        if encoder is not None:
            self.encoder_spec = encoder.spec
            # Encoders differ in the scale of their features by orders of magnitude, which no comparison of them should hang on.
            self.feature_normalizer = Normalizer(encoder.spec.embed_dim)
            self.encoder = adapt(encoder, config.adaptation, config.lora_rank)
            entry = readout_entry(config.readout)
            sizes = ReadoutConfig(**{key: value for key, value in asdict(config).items() if key in _READOUT_FIELDS})
            readouts = [entry.build(encoder.spec, sizes) for _ in spec.cameras]
            self.readouts = nn.ModuleList(readouts)
            self.places, self.width = readouts[0].places, readouts[0].width

    @property
    def trains_encoder(self) -> bool:
        return bool(self.spec.cameras) and self.config.adaptation != "frozen"

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """What one latent of one camera is: (D,) or (P, D)."""
        _, rows, columns = self.encoder_spec.grid
        width = self.encoder_spec.embed_dim
        return (width,) if self.needs == "pooled" else (rows * columns, width)

    @property
    def condition_dim(self) -> int:
        """Width of Condition.vector."""
        return len(self.spec.cameras) * self.places * self.width + self.spec.state_dim

    def encode(
        self, images: Mapping[str, UInt8[Tensor, "B To H W 3"]]
    ) -> dict[str, Float[Tensor, "B L D"] | Float[Tensor, "B L P D"]]:
        """The encoder's output for each camera, as "features/<camera>". A frozen encoder's is what the feature cache stores."""
        latents = self.config.latents
        features = {}
        for camera in self.spec.cameras:
            frames = fill_frames(images[f"images/{camera}"], self.spec.frames)
            clips = frames.unfold(1, self.spec.frames - latents + 1, 1).movedim(-1, 2).flatten(0, 1)
            features[f"features/{camera}"] = self.encode_clips(clips).unflatten(0, (-1, latents))
        return features

    def encode_clips(self, clips: UInt8[Tensor, "n t H W 3"]) -> Float[Tensor, "n D"] | Float[Tensor, "n P D"]:
        """One latent, as the read-out needs it, of each clip; a clip shorter than the encoder's is filled with its oldest frame."""
        assert self.encoder is not None
        with torch.set_grad_enabled(self.trains_encoder and torch.is_grad_enabled()):
            output = self.encoder(self.encoder.preprocess(fill_frames(clips, self.encoder_spec.frames)))
        if self.needs == "pooled":
            return output.pooled
        return output.tokens[:, -(output.grid[1] * output.grid[2]) :]

    @torch.no_grad()
    def fit_features(self, batch: Mapping[str, Tensor]) -> None:
        """Takes the mean and standard deviation of each channel of the encoder's features over these rows, places and cameras."""
        if not self.spec.cameras:
            return
        if f"features/{self.spec.cameras[0]}" not in batch:
            batch = self.encode(batch)
        rows = torch.cat([batch[f"features/{camera}"].float().flatten(0, -2) for camera in self.spec.cameras])
        # A channel that varies a hundred times less than the others carries rounding of half precision rather than a signal.
        self.feature_normalizer.fit(rows, minimum_std=max(1e-6, 0.01 * float(rows.std(dim=0, correction=0).mean())))

    def forward(self, batch: Mapping[str, Tensor]) -> Condition:
        state = batch["state"] if "state" in batch else self._newest_state(batch)
        normalized = self.state_normalizer.normalize(state)
        if not self.spec.cameras:
            return Condition(state=normalized, views=None)
        if f"features/{self.spec.cameras[0]}" not in batch:
            batch = self.encode(batch)
        views = [
            readout(self.feature_normalizer.normalize(batch[f"features/{camera}"].to(state.dtype)))
            for camera, readout in zip(self.spec.cameras, self.readouts, strict=True)
        ]
        return Condition(state=normalized, views=torch.stack(views, dim=1))

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    @contextmanager
    def without_encoder(self) -> Iterator[None]:
        """Within it the encoder is put aside: a head that trains on cached features moves, checkpoints and averages nothing else."""
        encoder, self.encoder = self.encoder, None
        try:
            yield
        finally:
            self.encoder = encoder

    def _newest_state(self, observation: Mapping[str, Tensor]) -> Float[Tensor, "B S"]:
        return torch.cat([observation[key][:, -1] for key in self.spec.state_keys], dim=-1)


_READOUT_FIELDS = tuple(ReadoutConfig.__dataclass_fields__)


def fill_frames(images: UInt8[Tensor, "B To H W 3"], frames: int) -> UInt8[Tensor, "B T H W 3"]:
    """The newest `frames` images; a shorter history is filled by repeating the oldest."""
    have = images.shape[1]
    if have >= frames:
        return images[:, have - frames :]
    return torch.cat([images[:, :1].expand(-1, frames - have, -1, -1, -1), images], dim=1)

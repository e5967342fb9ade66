"""Cameras x encoder + proprioception -> one condition vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from policies.normalizer import Normalizer
from policies.policy import Observation, PolicySpec
from pretrain.encoder import VideoEncoder

# How an encoder's output becomes a vector. "pooled" is the encoder's own pooled feature, as in R3M and CortexBench; "grid" keeps where things are:
# the newest frame's tokens, each mapped to a few channels by one learned linear layer, side by side.
POOLINGS = ("pooled", "grid")
GRID_CHANNELS = 16


class Backbone(nn.Module):
    """A frozen encoder per policy, shared by its cameras, beside normalized proprioception.

    The condition vector is [readout of camera 1, ..., camera V, state]. Without an encoder it is the state.
    """

    def __init__(self, spec: PolicySpec, encoder: VideoEncoder | None, pooling: str) -> None:
        super().__init__()
        if (encoder is None) != (not spec.cameras):
            raise ValueError(f"cameras={list(spec.cameras)} with encoder={encoder}: a policy has both or neither")
        self.spec, self.pooling = spec, pooling
        self.encoder = encoder.frozen() if encoder is not None else None
        self.state_normalizer = Normalizer(spec.state_dim)
        uses_grid = encoder is not None and pooling == "grid"
        self.readout = nn.Linear(encoder.spec.embed_dim, GRID_CHANNELS) if encoder is not None and uses_grid else None

    @property
    def feature_dim(self) -> int:
        """F, what `features` gives for all cameras together."""
        if self.encoder is None:
            return 0
        spec = self.encoder.spec
        places = spec.grid[1] * spec.grid[2] if self.pooling == "grid" else 1
        return places * spec.embed_dim * len(self.spec.cameras)

    @property
    def condition_dim(self) -> int:
        width = self.feature_dim
        if self.readout is not None:
            width = width // self.readout.in_features * GRID_CHANNELS
        return width + self.spec.state_dim

    @torch.no_grad()
    def features(self, images: Mapping[str, UInt8[Tensor, "B To H W 3"]]) -> Float[Tensor, "B F"]:
        """What the frozen encoder makes of each camera, side by side. This is what the feature cache stores."""
        assert self.encoder is not None
        per_camera = []
        for camera in self.spec.cameras:
            frames = fill_frames(images[f"images/{camera}"], self.encoder.spec.frames)
            output = self.encoder(self.encoder.preprocess(frames))
            newest = output.grid[1] * output.grid[2]
            per_camera.append(output.pooled if self.pooling == "pooled" else output.tokens[:, -newest:].flatten(1))
        return torch.cat(per_camera, dim=-1)

    def state(self, observation: Observation) -> Float[Tensor, "B S"]:
        """The newest proprioception, raw, in the spec's order."""
        return torch.cat([observation[key][:, -1] for key in self.spec.state_keys], dim=-1)

    def condition(self, features: Float[Tensor, "B F"] | None, state: Float[Tensor, "B S"]) -> Float[Tensor, "B C"]:
        normalized = self.state_normalizer.normalize(state)
        if features is None:
            return normalized
        features = features.to(state.dtype)
        if self.readout is not None:
            features = self.readout(features.unflatten(-1, (-1, self.readout.in_features))).flatten(1)
        return torch.cat([features, normalized], dim=-1)


def fill_frames(images: UInt8[Tensor, "B To H W 3"], frames: int) -> UInt8[Tensor, "B T H W 3"]:
    """The newest `frames` images; a shorter history is filled by repeating the oldest."""
    have = images.shape[1]
    if have >= frames:
        return images[:, have - frames :]
    return torch.cat([images[:, :1].expand(-1, frames - have, -1, -1, -1), images], dim=1)

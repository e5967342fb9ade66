"""Cameras x encoder + proprioception -> one condition vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from policies.normalizer import Normalizer
from policies.policy import Observation, PolicySpec
from pretrain.encoder import VideoEncoder


class Backbone(nn.Module):
    """A frozen encoder per policy, shared by its cameras, beside normalized proprioception.

    The condition vector is [pooled features of camera 1, ..., camera V, state], F = V * D + S. Without an encoder it is the state.
    """

    def __init__(self, spec: PolicySpec, encoder: VideoEncoder | None) -> None:
        super().__init__()
        if (encoder is None) != (not spec.cameras):
            raise ValueError(f"cameras={list(spec.cameras)} with encoder={encoder}: a policy has both or neither")
        self.spec = spec
        self.encoder = encoder.frozen() if encoder is not None else None
        self.state_normalizer = Normalizer(spec.state_dim)

    @property
    def feature_dim(self) -> int:
        return 0 if self.encoder is None else self.encoder.spec.embed_dim * len(self.spec.cameras)

    @property
    def condition_dim(self) -> int:
        return self.feature_dim + self.spec.state_dim

    @torch.no_grad()
    def features(self, images: Mapping[str, UInt8[Tensor, "B To H W 3"]]) -> Float[Tensor, "B F"]:
        """Pooled features of the frozen encoder for each camera, side by side. This is what the feature cache stores."""
        assert self.encoder is not None
        per_camera = []
        for camera in self.spec.cameras:
            frames = fill_frames(images[f"images/{camera}"], self.encoder.spec.frames)
            per_camera.append(self.encoder(self.encoder.preprocess(frames)).pooled)
        return torch.cat(per_camera, dim=-1)

    def state(self, observation: Observation) -> Float[Tensor, "B S"]:
        """The newest proprioception, raw, in the spec's order."""
        return torch.cat([observation[key][:, -1] for key in self.spec.state_keys], dim=-1)

    def condition(self, features: Float[Tensor, "B F"] | None, state: Float[Tensor, "B S"]) -> Float[Tensor, "B C"]:
        normalized = self.state_normalizer.normalize(state)
        return normalized if features is None else torch.cat([features, normalized], dim=-1)


def fill_frames(images: UInt8[Tensor, "B To H W 3"], frames: int) -> UInt8[Tensor, "B T H W 3"]:
    """The newest `frames` images; a shorter history is filled by repeating the oldest."""
    have = images.shape[1]
    if have >= frames:
        return images[:, have - frames :]
    return torch.cat([images[:, :1].expand(-1, frames - have, -1, -1, -1), images], dim=1)

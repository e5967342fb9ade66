"""Behaviour cloning with the head of R3M and CortexBench: BatchNorm and an MLP on [features, proprioception]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.backbone import POOLINGS, Backbone
from policies.policy import Observation, Policy, PolicySpec
from pretrain.artifact import Artifact
from pretrain.encoder import ARCHITECTURES, EncoderSpec, VideoEncoder


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    """The head: `pooling` a row of POOLINGS, `hidden` units a layer, `layers` hidden layers."""

    pooling: str = "pooled"
    hidden: int = 256
    layers: int = 3

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"bc.pooling={self.pooling}: expected one of {', '.join(POOLINGS)}")
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(f"bc.hidden={self.hidden}, bc.layers={self.layers}: expected at least 1 each")


class BCPolicy(Policy):
    """Predicts Ta actions from the condition vector; the loss is the mean squared error over valid steps."""

    def __init__(self, spec: PolicySpec, config: BCConfig, encoder: VideoEncoder | None) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(spec, encoder, config.pooling)
        width = self.backbone.condition_dim
        layers: list[nn.Module] = [nn.BatchNorm1d(width)]
        for _ in range(config.layers):
            layers += [nn.Linear(width, config.hidden), nn.ReLU()]
            width = config.hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, spec.chunk_steps * spec.action_dim))

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error.

        Args:
            batch: "state" float32[B, S]; "features" float32[B, F] where the policy sees images; "action" float32[B, Ta, A];
                "action_is_pad" bool[B, Ta], True past the end of the demonstration.
        """
        predicted = self._forward(batch.get("features"), batch["state"])
        valid = (~batch["action_is_pad"]).float()[..., None]
        error = (predicted - batch["action"]).square() * valid
        loss = error.sum() / (valid.sum() * self.spec.action_dim)
        return loss, {"loss": loss.detach()}

    @torch.no_grad()
    def predict_chunk(
        self, observation: Observation, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B Ta A"]:
        features = self.backbone.features(observation) if self.spec.cameras else None
        return self._forward(features, self.backbone.state(observation)).clamp(-1.0, 1.0)

    def _forward(self, features: Float[Tensor, "B F"] | None, state: Float[Tensor, "B S"]) -> Float[Tensor, "B Ta A"]:
        flat = self.head(self.backbone.condition(features, state))
        return flat.unflatten(-1, (self.spec.chunk_steps, self.spec.action_dim))


def restore(spec: PolicySpec, config: Mapping[str, Any], artifact: Artifact) -> BCPolicy:
    """The untrained network that an artifact's tensors fit, its encoder included."""
    encoder = None
    if spec.cameras:
        stored = config["encoder"]
        encoder = ARCHITECTURES[stored["architecture"]](stored["config"], EncoderSpec.from_json(stored["spec"]))
    return BCPolicy(spec, BCConfig(**config["bc"]), encoder)

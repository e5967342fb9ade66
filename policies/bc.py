"""Behaviour cloning with the head of R3M and CortexBench: BatchNorm and an MLP on [features, proprioception]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.backbone import Backbone
from policies.policy import Observation, Policy, PolicySpec, Randomness


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    """The head: `hidden` units a layer, `layers` hidden layers."""

    hidden: int = 256
    layers: int = 3

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(f"bc.hidden={self.hidden}, bc.layers={self.layers}: expected at least 1 each")


class BCPolicy(Policy):
    """Predicts Ta actions from the condition vector; the loss is the mean squared error over valid steps."""

    def __init__(self, spec: PolicySpec, config: BCConfig, backbone: Backbone) -> None:
        super().__init__()
        self.spec, self.backbone = spec, backbone
        width = backbone.condition_dim
        layers: list[nn.Module] = [nn.BatchNorm1d(width)]
        for _ in range(config.layers):
            layers += [nn.Linear(width, config.hidden), nn.ReLU()]
            width = config.hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, spec.chunk_steps * spec.action_dim))

    def fit_normalizers(
        self, state: Float[Tensor, "N S"], action: Float[Tensor, "N Ta A"], action_is_pad: Bool[Tensor, "N Ta"]
    ) -> None:
        self.backbone.state_normalizer.fit(state)

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error.

        Args:
            batch: what the backbone reads; "action" float32[B, Ta, A]; "action_is_pad" bool[B, Ta], True past the end of the demonstration.
        """
        valid = (~batch["action_is_pad"]).float()[..., None]
        error = (self._predict(batch) - batch["action"]).square() * valid
        loss = error.sum() / (valid.sum() * self.spec.action_dim)
        return loss, {"loss": loss.detach()}

    @torch.no_grad()
    def predict_chunk(self, observation: Observation, generator: Randomness = None) -> Float[Tensor, "B Ta A"]:
        return self._predict(observation).clamp(-1.0, 1.0)

    def _predict(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "B Ta A"]:
        flat = self.head(self.backbone(batch).vector)
        return flat.unflatten(-1, (self.spec.chunk_steps, self.spec.action_dim))

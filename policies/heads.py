"""Parts that the transformer policies share: a condition as tokens, positions in a sequence."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.backbone import Backbone, Condition


class ConditionTokens(nn.Module):
    """A condition as a sequence: one token for the state, one for each place of each camera's read-out, each with a learned position."""

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        views = len(backbone.spec.cameras) * backbone.places
        self.count = 1 + views
        self.state = nn.Linear(backbone.spec.state_dim, width)
        self.view = nn.Linear(backbone.width, width) if views else None
        self.positions = nn.Parameter(0.02 * torch.randn(self.count, width))

    def forward(self, condition: Condition) -> Float[Tensor, "B N W"]:
        tokens = self.state(condition.state)[:, None]
        if self.view is not None:
            assert condition.views is not None
            tokens = torch.cat([tokens, self.view(condition.views.flatten(1, 2))], dim=1)
        return tokens + self.positions


def sinusoids(positions: Float[Tensor, " N"], width: int) -> Float[Tensor, "N W"]:
    """[sin, cos] of positions at geometric wave lengths from 2 pi to 20,000 pi (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=positions.device) / max(1, half - 1))
    angles = positions[:, None].float() * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return nn.functional.pad(waves, (0, width - 2 * half))

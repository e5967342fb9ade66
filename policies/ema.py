"""An average of the weights over training, which acts more steadily than the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from policies.policy import Policy


class WeightAverage(nn.Module):
    """Wraps a policy in training and keeps the exponential moving average of its weights, and of its batch statistics, in its own state.

    The decay grows with the number n of updates as 1 - (1 + n)^(-3/4), up to `decay`, so that the start is forgotten: the schedule of diffusion
    policy (arXiv 2303.04137). The averages are saved with the weights, so a resumed run goes on with them.
    """

    updates: Tensor

    def __init__(self, policy: Policy, decay: float) -> None:
        super().__init__()
        self.policy = policy
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        for name, tensor in self._live().items():
            self.register_buffer(name.replace(".", "/"), tensor.detach().clone())

    def forward(self, batch: Mapping[str, Tensor]) -> Any:
        return self.policy(batch)

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present weights in; called after each optimizer step."""
        live = self._live()
        self.updates += 1
        decay = min(self.decay, 1 - (1 + int(self.updates)) ** -0.75)
        torch._foreach_lerp_([self._average(name) for name in live], list(live.values()), 1 - decay)

    @torch.no_grad()
    def give(self) -> None:
        """Gives the policy the averages."""
        for name, tensor in self._live().items():
            tensor.copy_(self._average(name))

    def _average(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "/"))

    def _live(self) -> dict[str, Tensor]:
        trained = {name: tensor for name, tensor in self.policy.named_parameters() if tensor.requires_grad}
        statistics = {
            name: tensor
            for name, tensor in self.policy.named_buffers()
            if name.rpartition(".")[2] in ("running_mean", "running_var") and not name.startswith("backbone.encoder.")
        }
        return trained | statistics

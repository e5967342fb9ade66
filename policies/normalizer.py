"""Standardization whose numbers ride in the policy's state_dict."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Normalizer(nn.Module):
    """y = (x - mean) / std per channel; channels that never vary in the data pass centred and unscaled."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "N D"], minimum_std: float = 1e-4) -> None:
        """Take mean and standard deviation from `x`. Raises ValueError on NaN or infinite values, naming the channels."""
        bad = (~torch.isfinite(x)).any(dim=0).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"cannot normalize: channels {bad} of the demonstrations hold NaN or infinite values")
        self.mean.copy_(x.mean(dim=0))
        std = x.std(dim=0, correction=0)
        self.std.copy_(torch.where(std < minimum_std, torch.ones_like(std), std))

    def normalize(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return (x - self.mean) / self.std

    def unnormalize(self, y: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return y * self.std + self.mean

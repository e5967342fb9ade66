"""Standardization and scaling whose numbers ride in the policy's state_dict."""

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
        _require_finite(x)
        self.mean.copy_(x.mean(dim=0))
        std = x.std(dim=0, correction=0)
        self.std.copy_(torch.where(std < minimum_std, torch.ones_like(std), std))

    def normalize(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return (x - self.mean) / self.std

    def unnormalize(self, y: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return y * self.std + self.mean


class RangeNormalizer(nn.Module):
    """y = 2 (x - low) / (high - low) - 1 per channel, so that the data fill [-1, 1]; channels that never vary become 0.

    What a diffusion policy predicts must be bounded: its sampler clips to [-1, 1] (arXiv 2303.04137, appendix A.1).
    """

    low: Tensor
    high: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("low", -torch.ones(dim))
        self.register_buffer("high", torch.ones(dim))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "N D"], minimum_range: float = 1e-4) -> None:
        """Take the range from `x`. Raises ValueError on NaN or infinite values, naming the channels."""
        _require_finite(x)
        low, high = x.amin(dim=0), x.amax(dim=0)
        middle, is_flat = (low + high) / 2, high - low < minimum_range
        self.low.copy_(torch.where(is_flat, middle - 1, low))
        self.high.copy_(torch.where(is_flat, middle + 1, high))

    def normalize(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return 2 * (x - self.low) / (self.high - self.low) - 1

    def unnormalize(self, y: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return (y + 1) / 2 * (self.high - self.low) + self.low


def _require_finite(x: Float[Tensor, "N D"]) -> None:
    bad = (~torch.isfinite(x)).any(dim=0).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"cannot normalize: channels {bad} of the demonstrations hold NaN or infinite values")

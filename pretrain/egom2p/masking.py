"""Which tokens of a clip the encoder sees and which the decoder must say: masking as in 4M and EgoM2P.

Published (arXiv 2506.07886 after 4M, arXiv 2312.06647): a clip's input and target budgets, 2048 tokens each, are shared out over
its modalities by a symmetric Dirichlet distribution whose alpha is drawn from a few values, small ones giving a clip almost
wholly to one modality, large ones spreading it evenly; the same alpha serves both. Within a modality a random subset is
visible and another, disjoint, is asked for. Everything is a function of a seed.

Axes: N input tokens, Q target tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

Positions = dict[str, Int64[np.ndarray, " n"]]


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Budgets and their distribution.

    Attributes:
        input_tokens, target_tokens: tokens of a clip that are given, and that are asked for, at most.
        alphas: of the Dirichlet distributions, one of which is drawn for each clip, all equally often.
        only_input: modalities that are never asked for.
    """

    input_tokens: int = 2048
    target_tokens: int = 2048
    alphas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    only_input: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("input_tokens", "target_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"masking.{name}: expected at least 1, got {getattr(self, name)}")
        if not self.alphas or min(self.alphas) <= 0:
            raise ValueError(f"masking.alphas: expected positive numbers, got {list(self.alphas)}")


def draw_masks(
    sizes: Mapping[str, int], config: MaskingConfig, random: np.random.Generator
) -> tuple[Positions, Positions]:
    """Positions of the visible tokens and of those asked for, by modality, each sorted.

    The two are disjoint within a modality; together they hold at most the budgets, and less only where the clip has no more
    tokens to give. A modality without tokens of one sort is left out of it.

    Args:
        sizes: modality -> tokens that this clip has of it; missing modalities are not there.

    Raises:
        ValueError: no modality, or one without tokens.
    """
    if not sizes or min(sizes.values()) < 1:
        raise ValueError(f"masking: expected at least one modality with tokens, got {dict(sizes)}")
    names = list(sizes)
    alpha = float(random.choice(config.alphas))
    most = np.array([sizes[name] for name in names])
    visible = share_out(config.input_tokens, most, alpha, random)
    asked_most = np.where([name in config.only_input for name in names], 0, most - visible)
    asked = share_out(config.target_tokens, asked_most, alpha, random)
    inputs: Positions = {}
    targets: Positions = {}
    for name, size, n_in, n_out in zip(names, most, visible, asked, strict=True):
        order = random.permutation(int(size))
        if n_in:
            inputs[name] = np.sort(order[:n_in])
        if n_out:
            targets[name] = np.sort(order[n_in : n_in + n_out])
    return inputs, targets


def share_out(
    budget: int, most: Int64[np.ndarray, " M"], alpha: float, random: np.random.Generator
) -> Int64[np.ndarray, " M"]:
    """Splits `budget` into M whole numbers by a Dirichlet draw, none above `most`.

    What rounding leaves over goes one by one to the largest share of fresh draws, as published; then each is cut at `most`.
    Published code drops what is cut off (a clip whose share fell on 30 tokens of gaze trains on 30 tokens). Here it is handed to
    those that have room, in proportion to a fresh draw: the budget is spent as far as the clip has tokens, which costs no
    more compute where batches are padded anyway.
    """
    shares = np.zeros(len(most), np.int64)
    room = most.astype(np.int64).copy()
    left = int(min(budget, room.sum()))
    while left:
        open_ = np.flatnonzero(room)
        weights = _dirichlet(alpha, len(open_), random)
        given = np.minimum(np.floor(weights * left).astype(np.int64), room[open_])
        if not given.any():
            given[_dirichlet(alpha, len(open_), random).argmax()] = 1
        shares[open_] += given
        room[open_] -= given
        left -= int(given.sum())
    return shares


def _dirichlet(alpha: float, count: int, random: np.random.Generator) -> np.ndarray:
    """Weights that sum to 1. At alpha = 0.01 the gamma draws behind them can all be 0: then one of them gets everything."""
    weights = random.dirichlet(np.full(count, alpha))
    if not np.isfinite(weights).all():
        weights = np.zeros(count)
        weights[random.integers(count)] = 1
    return weights


def whole(sizes: Mapping[str, int], names: Sequence[str]) -> Positions:
    """All positions of some modalities."""
    return {name: np.arange(sizes[name]) for name in names if name in sizes}

"""Draws tokens from logits: top-k, top-p, temperature, as the published model does, without sorting 64,000 logits a token.

What a draw is (the order of the steps is 4M's, arXiv 2312.06647, whose fork the published model is):

1. Tokens are put in order: larger logits first, of equal ones the lower id.
2. top-k keeps those whose logit is at least the k-th (so ties with it stay).
3. top-p keeps, of the rest, each token before which the softmax at temperature 1 has summed to at most p.
4. The kept tokens weigh exp(logit / temperature); one uniform number u in [0, 1) a token picks the first one at which the
   weights, summed in that order, exceed u times their total.

The sums are in float64. Only the head of the order is ever needed: `draw_tokens` takes the 64 largest logits, bounds what all
others could add, and is done with every token that the bounds decide; the few that they leave open are done again with a
longer head and at last with a full sort. So the result is that of the full sort, to the bit on a CPU.

Axes: n tokens to draw, V vocabulary, K length of the head, B clips.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

HEADS = (64, 1024, 8192)

# Numbers of a head that are worked on at a time.
PART = 2**21

# Rounding of the softmax's float32 sum, with much to spare: tokens this near the edge of top-p are decided by a full sort.
MASS_MARGIN = 1e-5
# Relative, of a float64 total that is known only between bounds.
TOTAL_MARGIN = 1e-12
# Adding this share of a float64 sum leaves it as it is.
NEGLIGIBLE = 2.0**-55

# Below it the most likely token is taken.
GREEDY = 1e-10


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which tokens may be drawn. top_p 0 or at least 1, and top_k 0, are off."""

    temperature: float
    top_p: float = 0.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature: expected a number of at least 0, got {self.temperature}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p: expected 0 (off) to 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 (off) or more, got {self.top_k}")


class ClipRandom:
    """Random numbers of each clip of a batch, from a seed a clip, so that a clip's do not depend on who is beside it. They are
    made on the CPU, so that they do not depend on the device."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def order(self, tokens: int) -> Int64[Tensor, "B tokens"]:
        """A random order of a clip's places."""
        return torch.stack([torch.randperm(tokens, generator=generator) for generator in self._generators])

    def uniforms(self, count: int) -> Float64[Tensor, "B count"]:
        """Numbers in [0, 1), one a token to draw."""
        return torch.stack([torch.rand(count, dtype=torch.float64, generator=g) for g in self._generators])


def draw_tokens(
    logits: Float[Tensor, "n V"],
    uniforms: Float64[Tensor, " n"],
    rule: Filter,
    *,
    with_doubt: bool = False,
) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"]]:
    """One token a row, and the odds against it where `with_doubt` asks for them (else zeros).

    The odds are the weight of all other kept tokens over that of the drawn one: they fall as its probability rises, and
    tell tokens apart whose probabilities all round to 1, as at the published temperature of 0.01. At temperature 0 the
    most likely token is drawn and its doubt is its negative lead over the second, the limit of the same order.

    Raises:
        ValueError: the logits are not finite.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    largest = logits.amax(1, keepdim=True)
    if not bool(largest.isfinite().all()):
        raise ValueError("logits are not finite: the checkpoint's weights have diverged, or the precision is too low")
    if rule.temperature < GREEDY:
        return _take_most_likely(logits, with_doubt)
    count, vocabulary = logits.shape
    uniforms = uniforms.to(logits.device)
    mass = (logits - largest).exp_().sum(1).double()
    tokens = torch.zeros(count, dtype=torch.int64, device=logits.device)
    doubt = torch.zeros(count, dtype=torch.float64, device=logits.device)
    rows = torch.arange(count, device=logits.device)
    for size in (*(head for head in HEADS if rule.top_k < head < vocabulary), vocabulary):
        undecided = []
        for part in rows.split(max(1, PART // size)):
            values, ids = _head(logits if len(part) == count else logits[part], size)
            drawn, odds, is_decided = _draw_from_head(
                values.double(), mass[part], uniforms[part], rule, vocabulary=vocabulary, with_doubt=with_doubt
            )
            tokens[part] = ids.gather(1, drawn[:, None]).squeeze(1)
            doubt[part] = odds
            undecided.append(part[~is_decided])
        rows = torch.cat(undecided)
        if not len(rows):
            break
    return tokens, doubt


def least_doubtful(doubt: Float64[Tensor, "B R"], count: int) -> Int64[Tensor, "B count"]:
    """Columns of the `count` most certain tokens of each clip; of equal ones the first."""
    return doubt.argsort(dim=1, stable=True)[:, :count]


def _take_most_likely(
    logits: Float[Tensor, "n V"], with_doubt: bool
) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"]]:
    tokens = logits.argmax(1)
    if not with_doubt:
        return tokens, torch.zeros_like(tokens, dtype=torch.float64)
    first, second = logits.topk(2, dim=1).values.double().unbind(1)
    return tokens, second - first


def _head(logits: Float[Tensor, "n V"], size: int) -> tuple[Float[Tensor, "n K"], Int64[Tensor, "n K"]]:
    """The largest logits of each row in order, with their ids. Which of several equal to the last are in is not defined."""
    if size == logits.shape[1]:
        return logits.sort(dim=1, descending=True, stable=True)
    ids = logits.topk(size, dim=1, sorted=False).indices.sort(dim=1).values
    values, place = logits.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, place)


def _draw_from_head(
    values: Float64[Tensor, "n K"],
    mass: Float64[Tensor, " n"],
    uniforms: Float64[Tensor, " n"],
    rule: Filter,
    *,
    vocabulary: int,
    with_doubt: bool,
) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"], Bool[Tensor, " n"]]:
    """(column drawn, odds against it, whether both are those of the full order) from the K largest logits.

    `mass` is the sum of exp(logit - largest) over the vocabulary, good to MASS_MARGIN.
    """
    size = values.shape[1]
    fewest, most = _kept(values, mass, rule, is_whole=size == vocabulary)
    weights = ((values - values[:, :1]) / rule.temperature).exp()
    cumulative = weights.cumsum(1)
    # Where tokens beyond the head may be kept, each weighs at most what the head's last one does.
    last = torch.where(most == size, weights[:, -1], 0.0) if size < vocabulary else torch.zeros_like(mass)
    lower, upper = (cumulative.gather(1, kept[:, None] - 1).squeeze(1) for kept in (fewest, most))
    is_known = (fewest == most) & (last <= NEGLIGIBLE * lower)
    low = torch.where(is_known, lower, lower * (1 - TOTAL_MARGIN))
    high = torch.where(is_known, lower, (upper + last * (vocabulary - size)) * (1 + TOTAL_MARGIN))
    drawn, drawn_at_most = ((cumulative <= (uniforms * total)[:, None]).sum(1) for total in (low, high))
    is_decided = is_known | ((drawn == drawn_at_most) & (drawn < fewest))
    # u times the total can round up to the total.
    drawn = torch.minimum(drawn, fewest - 1)
    odds = torch.zeros_like(mass)
    if with_doubt:
        column = torch.arange(size, device=values.device)
        is_other = (column != drawn[:, None]) & (column < fewest[:, None])
        others = torch.where(is_other, weights, 0.0).cumsum(1)[:, -1]
        odds = others / weights.gather(1, drawn[:, None]).squeeze(1)
        is_decided = is_known & (last <= NEGLIGIBLE * others)
    if size < vocabulary:
        # Tokens equal to the head's last one may be missing from it.
        is_decided &= values.gather(1, drawn[:, None]).squeeze(1) > values[:, -1]
    return drawn, odds, is_decided


def _kept(
    values: Float64[Tensor, "n K"], mass: Float64[Tensor, " n"], rule: Filter, *, is_whole: bool
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Bounds of how many of the head's tokens top-k and top-p keep; where the upper one is K, more may be kept beyond it."""
    count, size = values.shape
    within = torch.full((count,), size, device=values.device)
    probability = (values - values[:, :1]).exp()
    has_top_k = 0 < rule.top_k < size
    if has_top_k:
        within = (values >= values[:, rule.top_k - 1 : rule.top_k]).sum(1)
        probability *= torch.arange(size, device=values.device) < within[:, None]
    if is_whole or has_top_k:
        mass = probability.sum(1)
    if not 0 < rule.top_p < 1:
        return within, within
    before = (probability / mass[:, None]).cumsum(1).roll(1, dims=1)
    before[:, 0] = 0.0
    margin = 0.0 if is_whole else MASS_MARGIN
    fewest, most = (
        torch.minimum((before <= rule.top_p + sign * margin).sum(1).clamp(min=1), within) for sign in (-1, 1)
    )
    if has_top_k and not is_whole:
        # Others beyond the head may tie with the k-th, and then the mass is not known.
        fewest, most = torch.where(within < size, fewest, 1), torch.where(within < size, most, size)
    return fewest, most

"""EgoM2P's generation as its authors schedule it, restated plainly: what the benchmark measures against and the tests compare to.

Nothing is saved: every slot of every modality is carried with a mask, attention has all its scores in memory and masks them,
guidance is two passes one after another, logits of all places of a step are in memory at once, and top-p sorts the
vocabulary and sorts back. Weights come from the model under test, its methods do not. Random numbers are the same ones
(`ClipRandom`), used the same way: one uniform number a token, inverted through the weights of the kept tokens from the
likeliest down. One clip at a time, as the authors' scripts.

`encode_padding` keeps empty slots in the encoder's input, masked. The authors' generation drops them (their training does
not), so the default does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.egom2p.generate import Target
from pretrain.egom2p.model import EgoM2P
from pretrain.egom2p.sampling import ClipRandom


@dataclass
class Slots:
    """All places of a modality of one clip, [1, N]: what is in them, which the encoder reads, which are still to be written."""

    ids: Tensor
    is_input: Tensor
    is_target: Tensor


class Plain(NamedTuple):
    """modality -> its tokens, and how far each draw was from another token (see `Draw`), [1, N]."""

    tokens: dict[str, Tensor]
    slack: dict[str, Tensor]


@torch.no_grad()
def plain_generate(
    model: EgoM2P,
    given: Mapping[str, Tensor],
    targets: Sequence[Target],
    *,
    seed: int = 0,
    encode_padding: bool = False,
) -> Plain:
    """As `pretrain.egom2p.generate.generate` in exact mode, of one clip."""
    random = ClipRandom([seed])
    slots = {
        name: Slots(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool))
        for name, ids in given.items()
    }
    for target in targets:
        ids = torch.zeros(1, model.config.grids[target.modality].tokens, dtype=torch.int64)
        slots[target.modality] = Slots(
            ids, torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool)
        )
    condition = list(given)
    slack = {}
    for target in targets:
        slack[target.modality] = _write(model, slots, condition, target, random, encode_padding)
        condition.append(target.modality)
    return Plain({name: slots[name].ids for name in slack}, slack)


def _write(
    model: EgoM2P,
    slots: dict[str, Slots],
    condition: list[str],
    target: Target,
    random: ClipRandom,
    encode_padding: bool,
) -> Tensor:
    own = slots[target.modality]
    tokens = own.ids.shape[1]
    counts = _counts(target, tokens)
    order = random.order(tokens)[0] if target.scheme == "roar" else None
    written = 0
    all_slack = torch.zeros(1, tokens, dtype=torch.float64)
    for step, count in enumerate(counts):
        if not count:
            continue
        places = torch.nonzero(own.is_target[0])[:, 0] if order is None else order[written : written + count]
        logits = _pass(model, slots, target.modality, places, encode_padding)
        if target.guidance != 1:
            emptied = {
                name: Slots(part.ids.clone(), part.is_input & (name not in condition), part.is_target.clone())
                for name, part in slots.items()
            }
            free = _pass(model, emptied, target.modality, places, encode_padding)
            logits = free + (logits - free) * target.guidance
        temperature = _temperature(target, counts, step)
        uniforms = random.uniforms(len(places))[0]
        ids, odds, slack = plain_draw(logits, uniforms, temperature, target.top_k, target.top_p)
        if order is None:
            kept = odds.sort(stable=True).indices[:count]
            places, ids, slack = places[kept], ids[kept], slack[kept]
        own.ids[0, places] = ids
        own.is_input[0, places] = True
        own.is_target[0, places] = False
        all_slack[0, places] = slack
        written += count
    return all_slack


# ---------------------------------------------------------------------------------------------------------- schedules


def _counts(target: Target, tokens: int) -> list[int]:
    if target.schedule == "linear":
        return sorted(np.diff(np.linspace(0, tokens, target.steps + 1, dtype=int)).tolist(), reverse=True)
    share = [0.5 * (1 + math.cos(math.pi * step / target.steps)) for step in range(target.steps)]
    counts = [round(tokens * (share[step] - share[step + 1])) for step in range(target.steps - 1)]
    return [*counts, tokens - sum(counts)]


def _temperature(target: Target, counts: list[int], step: int) -> float:
    """Only what the comparisons use."""
    if target.temperature_schedule == "constant":
        return target.temperature
    assert target.temperature_schedule == "linear"
    return max(target.temperature * (1 - sum(counts[:step]) / sum(counts)), 1e-9)


# ------------------------------------------------------------------------------------------------------------ network


def _pass(model: EgoM2P, slots: dict[str, Slots], target: str, places: Tensor, encode_padding: bool) -> Tensor:
    """Logits [n, V] of the places: encoder, decoder, head."""
    names = list(slots)
    ids = torch.cat([slots[name].ids for name in names], 1)
    where = torch.cat([_places(model, name) for name in names])[None]
    tables = torch.cat([_table(model, name).index_select(0, slots[name].ids[0]) for name in names])[None]
    is_input = torch.cat([slots[name].is_input for name in names], 1)
    # Read slots first, in their order, then as many as the clip needs.
    first = (~is_input).float() + torch.arange(ids.shape[1]) * 1e-6
    kept = first.argsort(dim=1, stable=True)
    if not encode_padding:
        kept = kept[:, : int(is_input.sum())]
    gathered = kept[..., None].expand(-1, -1, tables.shape[2])
    where, tables, is_padding = where.gather(1, gathered), tables.gather(1, gathered), ~is_input.gather(1, kept)
    where = where.masked_fill(is_padding[..., None], 0.0)
    tables = tables.masked_fill(is_padding[..., None], 0.0)
    context = _encode(model, tables + where, is_padding) + where
    queries = model.mask_token + _places(model, target)[places][None]
    hidden = _decode(model, queries, context, is_padding)
    return (hidden @ model.head(target).T)[0]


def _places(model: EgoM2P, name: str) -> Tensor:
    config = model.config
    index = config.names.index(name)
    start = sum(grid.tokens for grid in list(config.grids.values())[:index])
    return model.positions[start : start + config.grids[name].tokens] + model.modality_embedding[index]


def _table(model: EgoM2P, name: str) -> Tensor:
    config = model.config
    index = config.names.index(name)
    start = sum(grid.vocabulary for grid in list(config.grids.values())[:index])
    return model.encoder_tokens[start : start + config.grids[name].vocabulary]


def _encode(model: EgoM2P, x: Tensor, is_padding: Tensor) -> Tensor:
    for block in model.encoder:
        y = _norm(x, block.norm1)
        x = x + _attention(block.attn, y, y, is_padding)
        x = x + _swiglu(block.mlp, _norm(x, block.norm2))
    x = _norm(x, model.encoder_norm)
    return x @ model.context_projection.weight.T + model.context_projection.bias


def _decode(model: EgoM2P, x: Tensor, context: Tensor, is_padding: Tensor) -> Tensor:
    for block in model.decoder:
        y = _norm(x, block.norm1)
        x = x + _attention(block.self_attn, y, y, None)
        x = x + _attention(block.cross_attn, _norm(x, block.query_norm), _norm(context, block.context_norm), is_padding)
        x = x + _swiglu(block.mlp, _norm(x, block.norm2))
    return _norm(x, model.decoder_norm)


def _norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, None, norm.eps)


def _swiglu(mlp: torch.nn.Module, x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, mlp.fc1.weight)) * F.linear(x, mlp.fc3.weight), mlp.fc2.weight)


def _attention(attention: torch.nn.Module, x: Tensor, memory: Tensor, is_padding: Tensor | None) -> Tensor:
    """Softmax of all the scores. Over nothing, or padding alone, it reads zeros."""
    heads, width = int(attention.heads), x.shape[-1]  # pyright: ignore[reportArgumentType]

    def split(y: Tensor) -> Tensor:
        return y.reshape(1, y.shape[1], heads, width // heads).transpose(1, 2)

    q = split(F.linear(x, attention.q.weight))
    k, v = (split(F.linear(memory, part)) for part in attention.kv.weight.chunk(2))
    scores = (q @ k.transpose(-2, -1)) * (width // heads) ** -0.5
    if is_padding is not None:
        scores = scores.masked_fill(is_padding[:, None, None, :], -torch.finfo(scores.dtype).max)
    scores = scores.softmax(dim=-1)
    read = (scores @ v).transpose(1, 2).reshape(1, -1, width)
    if is_padding is not None and bool(is_padding.all()):
        read = torch.zeros_like(read)
    return F.linear(read, attention.proj.weight)


# ----------------------------------------------------------------------------------------------------------- sampling


class Draw(NamedTuple):
    """Of each row [n]: the token drawn; the odds against it; `slack`: how near the uniform number came to drawing another
    one, as a share of the total weight."""

    ids: Tensor
    odds: Tensor
    slack: Tensor


def plain_draw(logits: Tensor, uniforms: Tensor, temperature: float, top_k: int, top_p: float) -> Draw:
    """Of logits [n, V], by a full sort; equal logits: the lower id comes first.

    top-k, top-p with its sort back, and the softmax of what is left are the authors'. They then call multinomial; here the
    uniform number is inverted through the weights in sorted order, in float64.
    """
    if temperature < 1e-10:
        ordered, order = logits.sort(dim=1, descending=True, stable=True)
        lead = (ordered[:, 0] - ordered[:, 1]).double()
        return Draw(order[:, 0], -lead, lead)
    if top_k:
        least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    is_dropped = ordered.isinf()
    if 0 < top_p < 1:
        sums = ordered.softmax(dim=1).cumsum(1)
        is_dropped |= torch.cat([torch.zeros_like(is_dropped[:, :1]), (sums > top_p)[:, :-1]], 1)
        logits = logits.masked_fill(is_dropped.gather(1, order.argsort(dim=1)), -math.inf)
        ordered = ordered.masked_fill(is_dropped, -math.inf)
    probabilities = (logits / temperature).softmax(dim=1)
    assert bool(probabilities.isfinite().all())
    parts = []
    # A few rows at a time, so that float64, which the authors do not use, does not count in the peak of memory.
    for row, rank, uniform in zip(ordered.split(16), order.split(16), uniforms.split(16), strict=True):
        weights = ((row.double() - row[:, :1].double()) / temperature).exp()
        sums = weights.cumsum(1)
        goal = uniform[:, None] * sums[:, -1:]
        last = row.isfinite().sum(1) - 1
        drawn = torch.minimum((sums <= goal).sum(1), last)[:, None]
        weight, upper = weights.gather(1, drawn), sums.gather(1, drawn)
        others = weights.scatter(1, drawn, 0.0).cumsum(1)[:, -1]
        slack = torch.minimum(upper - goal, goal - (upper - weight)) / sums[:, -1:]
        # The first token has no other below it, the last none above it.
        slack = torch.where(drawn == 0, (upper - goal) / sums[:, -1:], slack)
        parts.append(Draw(rank.gather(1, drawn)[:, 0], others / weight[:, 0], slack[:, 0]))
    return Draw(*(torch.cat(column) for column in zip(*parts, strict=True)))

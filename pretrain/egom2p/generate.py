"""Generation: any modalities of a clip, given as tokens, to any others, several clips at once.

Schemes of the published model (a fork of 4M, arXiv 2312.06647), restated:

- roar: each step takes a random part of the places still empty, asks the decoder for those alone, and draws them all.
- maskgit: each step asks for all places still empty, draws them, and keeps those of which the draw was most certain.

What a step wrote joins the encoder's input of the next; a finished modality joins the condition of the modalities after it.
Guidance (classifier-free, arXiv 2207.12598): logits = free + guidance (conditional - free), where the free pass reads what has
been written of the target but nothing of the condition.

The encoder's input grows with every step and each of its tokens attends all others, so the exact mode reads all of it again
each step; it saves what has no effect: places that are neither given nor asked for, the scores of attention (never in memory
as a whole), logits of more places than are drawn (and all at once), the sorting of the vocabulary.

Drawing is one use of the model's distribution; `expected_codes` is the other: not one of the clips that it thinks possible, but
their mean.

Axes: B clips, N tokens of a modality, n places of a step, V vocabulary, D width, K numbers of a code.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pretrain.egom2p.model import EgoM2P, EgoM2PConfig, TokenSet, check_tokens, concatenate
from pretrain.egom2p.sampling import ClipRandom, Filter, draw_tokens, least_doubtful
from pretrain.egom2p.schedules import step_counts, step_temperatures
from pretrain.precision import multiplies_bf16

SCHEMES = ("roar", "maskgit")
MODES = ("exact", "fast")
PRECISIONS = ("float32", "bfloat16", "auto")

# Logits in memory at a time, times two with guidance.
LOGITS_AT_A_TIME = 2**24
# Places that the fast mode asks for at a time: the published training asked for 2048.
FAST_QUERIES = 2048
# Up to so many tokens, reading the weights takes longer than the arithmetic, and guidance's two passes are one batch.
SMALL_PASS = 128


@dataclass(frozen=True, kw_only=True)
class Target:
    """How one modality is written.

    Attributes:
        scheme: "roar" or "maskgit".
        steps: at most the number of tokens. schedule: "linear" or "cosine", tokens a step.
        temperature, temperature_schedule: "constant", "linear" or "onex:MIN:POWER", see schedules.step_temperatures.
        top_p, top_k: 0 turns them off.
        guidance: scale of classifier-free guidance; 1 is without, and saves its pass.
    """

    modality: str
    scheme: str = "roar"
    steps: int = 3
    schedule: str = "linear"
    temperature: float = 0.01
    temperature_schedule: str = "constant"
    top_p: float = 0.8
    top_k: int = 0
    guidance: float = 2.0

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"target {self.modality}: scheme: expected one of {', '.join(SCHEMES)}, got {self.scheme!r}"
            )
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"target {self.modality}: guidance: expected at least 0 (1: none), got {self.guidance}")
        try:
            Filter(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)
            step_temperatures(self.temperature, self.temperature_schedule, (1,))
        except ValueError as error:
            raise ValueError(f"target {self.modality}: {error}") from None

    def plan(self, tokens: int) -> list[tuple[int, Filter]]:
        """(tokens to write, how they are drawn) of each step that writes any.

        Raises:
            ValueError: the steps do not suit the number of tokens.
        """
        try:
            counts = step_counts(self.schedule, tokens, self.steps)
        except ValueError as error:
            raise ValueError(f"target {self.modality}: {error}") from None
        temperatures = step_temperatures(self.temperature, self.temperature_schedule, counts)
        return [
            (count, Filter(temperature=temperature, top_p=self.top_p, top_k=self.top_k))
            for count, temperature in zip(counts, temperatures, strict=True)
            if count
        ]


# The authors' settings, by what is asked for (evaluation scripts of their repository); hands, which they do not have, as
# the same group's successor generates them (arXiv 2607.17790).
PUBLISHED_TARGETS: dict[str, Target] = {
    "camera": Target(modality="camera", steps=3),
    "gaze": Target(modality="gaze", steps=5),
    "depth": Target(modality="depth", steps=3),
    "rgb": Target(modality="rgb", steps=6),
    "hands": Target(modality="hands", scheme="maskgit", steps=2, schedule="cosine", guidance=3.0),
}


@torch.no_grad()
def generate(
    model: EgoM2P,
    given: Mapping[str, Int64[Tensor, "B n"]] | TokenSet,
    targets: Sequence[Target],
    *,
    seed: int | Sequence[int] = 0,
    mode: str = "exact",
    precision: str = "float32",
) -> dict[str, Int64[Tensor, "B m"]]:
    """Tokens of the targets, one after another, on the model's device.

    Args:
        given: modality -> all its tokens, of at least one modality; or any tokens as a set. A clip's result does not depend on
            the others of the batch (but for rounding).
        seed: one a clip, or one number to which a clip's place in the batch is added.
        mode: "exact" is the schedule of each target. "fast" is an approximation: the condition is read once, every target
            is written in one step from it, without guidance, and no target sees another. Places are asked for in random
            parts of at most FAST_QUERIES, which do not see each other. So it is the first step of the exact schedule for
            every token, and what it loses is that tokens agree with those already written.
        precision: "bfloat16" runs encoder and decoder in it; logits and draws stay in float32. "auto" is that in the fast
            mode on a device that multiplies bfloat16, float32 otherwise.

    Raises:
        ValueError: an unknown modality; a target that is given, or twice; another number of tokens than a modality has;
            ids outside its vocabulary; clips that differ in number; steps that do not suit a target.
    """
    config = model.config
    batch = _check(config, given, targets, mode=mode, precision=precision)
    seeds = [seed + clip for clip in range(batch)] if isinstance(seed, int) else list(seed)
    if len(seeds) != batch:
        raise ValueError(f"seed: expected one number, or one for each of {batch} clips, got {len(seeds)}")
    random = ClipRandom(seeds)
    device = model.mask_token.device
    condition = _condition(config, given, device)
    if precision == "auto":
        precision = "bfloat16" if mode == "fast" and multiplies_bf16(device) else "float32"
    writer = _Writer(model, precision)
    if mode == "fast":
        return writer.write_at_once(condition, targets, random)
    written: dict[str, Tensor] = {}
    for target in targets:
        write = writer.write_roar if target.scheme == "roar" else writer.write_maskgit
        done = write(condition, target, random)
        written[target.modality] = _by_position(done)
        condition = concatenate([condition, done])
    return written


@torch.no_grad()
def expected_codes(
    model: EgoM2P,
    given: Mapping[str, Int64[Tensor, "B n"]] | TokenSet,
    codebooks: Mapping[str, Float[Tensor, "V K"]],
    *,
    precision: str = "float32",
) -> dict[str, Float[Tensor, "B N K"]]:
    """The mean of each token's code, sum over ids of p(id | given) codebook[id], from one pass of the network and no draw.

    A drawn clip is one that the model thinks possible; its expected squared error is twice the variance of what is possible, that of
    the mean once (bias aside). So what is scored by distance (gaze, trajectories, depth, PSNR) is to be estimated by this, what
    should look like a clip is to be drawn. `Tokenizer.decode_codes` makes a clip of the codes; its decoder is not linear, so that is
    the mean clip only nearly. Without guidance, which would sharpen the distribution. Places are asked for in parts of at
    most FAST_QUERIES, evenly spread, which do not see each other.

    Args:
        given: as of `generate`.
        codebooks: modality that is wanted -> `Tokenizer.codebook`.
        precision: as of `generate`; "auto" is bfloat16 on a device that multiplies it. Probabilities and means are float32.

    Raises:
        ValueError: as `generate`; or a codebook of another vocabulary.
    """
    config = model.config
    targets = [Target(modality=name, steps=1) for name in codebooks]
    _check(config, given, targets, mode="fast", precision=precision)
    for name, codebook in codebooks.items():
        if len(codebook) != config.grids[name].vocabulary:
            raise ValueError(
                f"codebook of {name}: {len(codebook)} codes for {config.grids[name].vocabulary} ids: of another tokenizer"
            )
    device = model.mask_token.device
    condition = _condition(config, given, device)
    if precision == "auto":
        precision = "bfloat16" if multiplies_bf16(device) else "float32"
    return _Writer(model, precision).expect_at_once(condition, codebooks)


def _condition(config: EgoM2PConfig, given: Mapping[str, Tensor] | TokenSet, device: torch.device) -> TokenSet:
    if isinstance(given, TokenSet):
        return given.to(device)
    return TokenSet.whole(config, {name: ids.to(device) for name, ids in given.items()})


def _check(
    config: EgoM2PConfig,
    given: Mapping[str, Tensor] | TokenSet,
    targets: Sequence[Target],
    *,
    mode: str,
    precision: str,
) -> int:
    """The number of clips, of arguments that make sense."""
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    is_set = isinstance(given, TokenSet)
    if not (given.count if is_set else given) or not targets:
        raise ValueError(f"expected at least one modality given and one wanted, of {', '.join(config.names)}")
    if is_set:
        known = {config.names[index] for index in given.modality.unique().tolist()}
        batches = {"tokens": len(given)}
    else:
        known = set(given)
        for name, ids in given.items():
            check_tokens(config, name, ids)
        batches = {name: len(ids) for name, ids in given.items()}
    if len(set(batches.values())) > 1:
        raise ValueError(f"given: expected the same number of clips in each modality, got {batches}")
    wanted = [target.modality for target in targets]
    for name, target in zip(wanted, targets, strict=True):
        if name not in config.grids:
            raise ValueError(f"target {name!r}: this model has {', '.join(config.names)}")
        if name in known:
            raise ValueError(f"target {name}: it is also given; leave it out of one of them")
        if wanted.count(name) > 1:
            raise ValueError(f"target {name}: it is wanted {wanted.count(name)} times")
        target.plan(config.grids[name].tokens)
    return next(iter(batches.values()))


class _Writer:
    """Writes modalities with one model: passes of the network, then draws."""

    def __init__(self, model: EgoM2P, precision: str) -> None:
        self.model = model
        self.config = model.config
        self.device = model.mask_token.device
        self._low_precision = torch.bfloat16 if precision == "bfloat16" else None

    def write_roar(self, condition: TokenSet, target: Target, random: ClipRandom) -> TokenSet:
        """All of the target's tokens, in the order in which they were written."""
        name, grid = target.modality, self.config.grids[target.modality]
        order = random.order(grid.tokens).to(self.device)
        done = TokenSet.empty(len(condition), self.device)
        for count, rule in target.plan(grid.tokens):
            places = order[:, done.count : done.count + count]
            hidden = self._read(condition, done, self._ask(name, places), guidance=target.guidance)
            ids, _ = self._draw(hidden, target, random.uniforms(count), rule)
            done = concatenate([done, TokenSet.of(self.config, name, ids, places)])
        return done

    def write_maskgit(self, condition: TokenSet, target: Target, random: ClipRandom) -> TokenSet:
        """All of the target's tokens, in the order in which they were written."""
        name, grid = target.modality, self.config.grids[target.modality]
        left = torch.arange(grid.tokens, device=self.device).expand(len(condition), -1)
        done = TokenSet.empty(len(condition), self.device)
        for count, rule in target.plan(grid.tokens):
            hidden = self._read(condition, done, self._ask(name, left), guidance=target.guidance)
            ids, doubt = self._draw(
                hidden, target, random.uniforms(left.shape[1]), rule, with_doubt=count < left.shape[1]
            )
            kept = least_doubtful(doubt, count)
            done = concatenate([done, TokenSet.of(self.config, name, ids.gather(1, kept), left.gather(1, kept))])
            is_left = torch.ones_like(left, dtype=torch.bool).scatter(1, kept, False)
            left = left[is_left].view(len(left), -1)
        return done

    def write_at_once(
        self, condition: TokenSet, targets: Sequence[Target], random: ClipRandom
    ) -> dict[str, Int64[Tensor, "B m"]]:
        """The fast mode."""
        with self._precision():
            context = self.model.encode(condition)
        written = {}
        for target in targets:
            name, grid = target.modality, self.config.grids[target.modality]
            _, rule = target.plan(grid.tokens)[0]
            order = random.order(grid.tokens).to(self.device)
            parts = []
            for places in order.tensor_split(-(-grid.tokens // FAST_QUERIES), dim=1):
                with self._precision():
                    hidden = self.model.decode(self._ask(name, places), context)
                ids, _ = self._draw((hidden,), target, random.uniforms(places.shape[1]), rule)
                parts.append(TokenSet.of(self.config, name, ids, places))
            written[name] = _by_position(concatenate(parts))
        return written

    def expect_at_once(
        self, condition: TokenSet, codebooks: Mapping[str, Float[Tensor, "V K"]]
    ) -> dict[str, Float[Tensor, "B N K"]]:
        with self._precision():
            context = self.model.encode(condition)
        means = {}
        for name, codebook in codebooks.items():
            grid, codebook = self.config.grids[name], codebook.to(self.device)
            mean = torch.empty(len(condition), grid.tokens, codebook.shape[1], device=self.device)
            parts = -(-grid.tokens // FAST_QUERIES)
            for start in range(parts):
                places = torch.arange(start, grid.tokens, parts, device=self.device)
                with self._precision():
                    hidden = self.model.decode(self._ask(name, places.expand(len(condition), -1)), context)
                rows = (hidden.float() if hidden.dtype == torch.bfloat16 else hidden).flatten(0, 1)
                codes = [
                    self.model.logits(rows[part], name).float().softmax(-1) @ codebook
                    for part in _slices(len(rows), max(1, LOGITS_AT_A_TIME // grid.vocabulary))
                ]
                mean[:, places] = torch.cat(codes).unflatten(0, hidden.shape[:2])
            means[name] = mean
        return means

    def _ask(self, name: str, places: Int64[Tensor, "B n"]) -> TokenSet:
        return TokenSet.of(self.config, name, torch.zeros_like(places), places)

    def _read(
        self, condition: TokenSet, done: TokenSet, queries: TokenSet, *, guidance: float
    ) -> tuple[Float[Tensor, "B n D"], ...]:
        """What the decoder says of the places: with the condition, and with guidance also without it."""
        everything = concatenate([condition, done])
        with self._precision():
            if guidance == 1:
                return (self.model.decode(queries, self.model.encode(everything)),)
            # As one batch, the free pass would carry the condition's places as padding.
            if done.count and everything.count + queries.count <= SMALL_PASS:
                both = _stack(everything, _without(everything, condition.count))
                hidden = self.model.decode(_stack(queries, queries), self.model.encode(both))
                conditional, free = hidden.chunk(2)
                return conditional, free
            conditional = self.model.decode(queries, self.model.encode(everything))
            return conditional, self.model.decode(queries, self.model.encode(done))

    def _draw(
        self,
        hidden: tuple[Float[Tensor, "B n D"], ...],
        target: Target,
        uniforms: Tensor,
        rule: Filter,
        *,
        with_doubt: bool = False,
    ) -> tuple[Int64[Tensor, "B n"], Float[Tensor, "B n"]]:
        """A token a place and how doubtful it is, a slice of the places at a time."""
        shape = uniforms.shape
        rows = [part.float().flatten(0, 1) if part.dtype == torch.bfloat16 else part.flatten(0, 1) for part in hidden]
        flat = uniforms.to(self.device).flatten()
        ids, doubt = [], []
        for part in _slices(len(flat), max(1, LOGITS_AT_A_TIME // self.config.grids[target.modality].vocabulary)):
            logits = self.model.logits(rows[0][part], target.modality)
            if len(rows) == 2:
                free = self.model.logits(rows[1][part], target.modality)
                logits.sub_(free).mul_(target.guidance).add_(free)
                del free
            drawn, odds = draw_tokens(logits, flat[part], rule, with_doubt=with_doubt)
            ids.append(drawn)
            doubt.append(odds)
        return torch.cat(ids).view(shape), torch.cat(doubt).view(shape)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self._low_precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._low_precision)


def _stack(first: TokenSet, second: TokenSet) -> TokenSet:
    """Two sets of the same length as one batch."""
    ids, modality, position = (
        torch.cat([getattr(first, name), getattr(second, name)]) for name in ("ids", "modality", "position")
    )
    valid = None
    if first.valid is not None or second.valid is not None:
        everywhere = torch.ones_like(first.ids, dtype=torch.bool)
        valid = torch.cat([everywhere if part.valid is None else part.valid for part in (first, second)])
    return TokenSet(ids, modality, position, valid)


def _without(tokens: TokenSet, count: int) -> TokenSet:
    """The first `count` tokens turned into padding."""
    valid = torch.arange(tokens.count, device=tokens.ids.device) >= count
    return dataclasses.replace(tokens, valid=valid.expand_as(tokens.ids))


def _by_position(done: TokenSet) -> Int64[Tensor, "B N"]:
    return torch.empty_like(done.ids).scatter(1, done.position, done.ids)


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, start + size)

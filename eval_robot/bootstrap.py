"""Hierarchical bootstrap of success rates over tasks, training seeds and episodes.

A row of a table is, for each task, an array bool[S, E]: S policies trained from different seeds, each evaluated on the same E
episodes. Training seeds and episodes are crossed, so both are resampled, each as a whole: a drawn episode is drawn for every
training seed and, in a comparison, for both rows (Owen 2007, "The pigeonhole bootstrap"). Tasks are strata, kept as they are,
unless `over_tasks` says that they too are a sample of those that matter.

Resampling two crossed factors counts the noise of a single episode up to three times (Owen 2007, theorem 1), which makes plain
intervals of a mean up to 1.7 times too wide. Means are therefore calibrated: the draws are scaled about the estimate to the
unbiased variance of the crossed design (two-way analysis of variance: Searle, Casella and McCulloch 1992, chapter 4), with
Satterthwaite's degrees of freedom (1946) for how well so many training seeds and episodes show it.
One training seed says nothing of the spread between seeds: intervals of S = 1 hold for these very policies only.

Where nearly all outcomes are alike, resampling sees too little: of no failures it says that there are none. With fewer than ten of the
rarer kind, an interval is therefore at least as wide as Wilson's of these episodes; and a difference that fewer episodes make than a
sign test needs is not told from none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm, t, trim_mean
from statsmodels.stats.proportion import proportion_confint

# Outcomes of the rarer kind below which a table is too one-sided for resampling alone.
_FEW = 10


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its interval, 95 % unless asked otherwise; `resamples` and `seed` made the interval and make it again."""

    value: float
    low: float
    high: float
    resamples: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """An estimate of a difference. `p_value`, two-sided, is the least level at which the percentile interval leaves 0 out, and at least 1 less
    the confidence where the interval, which few outcomes widen, holds 0."""

    p_value: float


# The successes of one task's policies: [S, E], S training seeds by E episodes. Sizes may differ from task to task.
Outcomes = Bool[np.ndarray, "_ _"]


def paired_bootstrap(
    first: Sequence[Outcomes],
    second: Sequence[Outcomes],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    over_tasks: bool = False,
    seeds_paired: bool = False,
    calibrated: bool = True,
) -> Difference:
    """Success rate of `first` less that of `second`: the mean over tasks of the difference of means, in [-1, 1].

    Args:
        first, second: bool[S, E] a task, in the same order of tasks; column e is the same episode in both.
        seeds_paired: row s of both is one draw (say, the same demonstrations), so both rows resample the same training seeds;
            otherwise each row resamples its own.
        calibrated: scale the draws to the unbiased variance, as above; otherwise the plain percentile interval.

    Raises:
        ValueError: naming the task whose arrays do not fit each other.
    """
    _check_pairs(first, second, seeds_paired)
    pairs = [*zip(first, second, strict=True)]
    draw = _Resampler(pairs, resamples, seed, over_tasks, seeds_paired)
    differences = np.mean([a.mean(axis=1) - b.mean(axis=1) for a, b in draw.rates()], axis=0)
    value = float(np.mean([np.mean(a) - np.mean(b) for a, b in pairs]))
    if calibrated:
        terms = [(a.astype(float) - b,) if seeds_paired else (a.astype(float), -b.astype(float)) for a, b in pairs]
        differences = np.clip(_calibrated(value, differences, terms, over_tasks, confidence), -1, 1)
    beyond = 1 + min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    telling = sum(np.count_nonzero(a.sum(axis=0) * len(b) != b.sum(axis=0) * len(a)) for a, b in pairs)
    # The least p value that a sign test of the episodes that differ can have.
    p_value = min(1.0, max(2 * beyond / (resamples + 1), 2.0 ** (1 - telling)))
    found = _estimate(value, differences, confidence, draw)
    low, high = found.low, found.high
    if calibrated and telling < _FEW:
        wins, losses = (
            [(a.astype(float).mean(axis=0) * (1 - b.mean(axis=0))) for a, b in side]
            for side in (pairs, [(b, a) for a, b in pairs])
        )
        more, less = _score_widths(wins, confidence), _score_widths(losses, confidence)
        low, high = min(low, value - np.hypot(more[0], less[1])), max(high, value + np.hypot(more[1], less[0]))
    # The two tell one story: the one that is less sure of it.
    if calibrated and p_value >= 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    if low <= 0 <= high:
        p_value = max(p_value, 1 - confidence)
    return Difference(**{**vars(found), "low": float(max(low, -1)), "high": float(min(high, 1))}, p_value=p_value)


def pooled_bootstrap(
    rates: Sequence[Outcomes],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    over_tasks: bool = False,
    calibrated: bool = True,
) -> Estimate:
    """One row's success rate, in [0, 1]: the mean over tasks of the mean over training seeds and episodes."""
    _check_row(rates)
    draw = _Resampler([(row,) for row in rates], resamples, seed, over_tasks)
    means = np.mean([row.mean(axis=1) for (row,) in draw.rates()], axis=0)
    value = float(np.mean([np.mean(row) for row in rates]))
    if calibrated:
        terms = [(row.astype(float),) for row in rates]
        means = np.clip(_calibrated(value, means, terms, over_tasks, confidence), 0, 1)
    found = _estimate(value, means, confidence, draw)
    successes = sum(int(row.sum()) for row in rates)
    if calibrated and min(successes, sum(row.size for row in rates) - successes) < _FEW:
        below, above = _score_widths([row.mean(axis=0) for row in rates], confidence)
        low, high = min(found.low, value - below), max(found.high, value + above)
        found = replace(found, low=float(max(low, 0)), high=float(min(high, 1)))
    return found


def iqm_bootstrap(
    rates: Sequence[Outcomes],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    over_tasks: bool = False,
) -> Estimate:
    """Interquartile mean, in [0, 1], of the success rates of all (task, training seed): the middle half of them.

    Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice". Unlike there, episodes are resampled too: policies share
    them, and intervals of training seeds alone are too narrow. The plain percentile interval, on the wide side.
    """
    _check_row(rates)
    if over_tasks and len({len(row) for row in rates}) > 1:
        raise ValueError("over_tasks needs the same number of training seeds in every task; leave some out or it off")
    draw = _Resampler([(row,) for row in rates], resamples, seed, over_tasks)
    runs = np.concatenate([row for (row,) in draw.rates()], axis=1)
    value = trim_mean(np.concatenate([row.mean(axis=1) for row in rates]), 0.25)
    return _estimate(value, trim_mean(runs, 0.25, axis=1), confidence, draw)


def probability_of_improvement(
    first: Sequence[Outcomes],
    second: Sequence[Outcomes],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    over_tasks: bool = False,
) -> Estimate:
    """How likely a policy of `first` has a higher success rate than one of `second`, ties half: the mean over tasks (Agarwal et al. 2021).

    A policy is one training seed; 0.5 says that neither row is better. Arguments and errors are those of `paired_bootstrap`; the plain
    percentile interval, as of `iqm_bootstrap`.
    """
    _check_pairs(first, second, seeds_paired=False)
    pairs = [*zip(first, second, strict=True)]
    draw = _Resampler(pairs, resamples, seed, over_tasks)
    chances = np.mean([_improvement(a, b) for a, b in draw.rates()], axis=0)
    value = np.mean([_improvement(a.mean(axis=1)[None], b.mean(axis=1)[None]) for a, b in pairs])
    return _estimate(value, chances, confidence, draw)


def _improvement(first: Float[np.ndarray, "R S"], second: Float[np.ndarray, "R S2"]) -> Float[np.ndarray, " R"]:
    # Rates are multiples of 1/E: what differs by less than this is a tie.
    difference = first[:, :, None] - second[:, None, :]
    return ((difference > 1e-9) + 0.5 * (np.abs(difference) <= 1e-9)).mean(axis=(1, 2))


@dataclass(frozen=True)
class _Resampler:
    """Draws, task slot by task slot, the success rates of resampled training seeds on resampled episodes."""

    tasks: Sequence[tuple[Outcomes, ...]]
    resamples: int
    seed: int
    over_tasks: bool
    seeds_paired: bool = False

    def rates(self) -> list[list[Float[np.ndarray, "R _"]]]:
        """For each slot of a task, float[resamples, S] a row: the rate of each resampled training seed."""
        rng = np.random.default_rng(self.seed)
        count = len(self.tasks)
        if not self.over_tasks:
            return [self._inner(task, self.resamples, rng) for task in self.tasks]
        drawn = rng.integers(count, size=(count, self.resamples))
        return [self._slot(drawn[slot], rng) for slot in range(count)]

    def _slot(self, drawn: Int[np.ndarray, " R"], rng: np.random.Generator) -> list[np.ndarray]:
        """The rates of the tasks drawn for one slot: a task drawn twice gets training seeds and episodes of its own each time."""
        # Sizes differ from task to task, means do not: a slot is then one column, the mean over its training seeds.
        sizes = {tuple(len(row) for row in task) for task in self.tasks}
        inner = {index: self._inner(self.tasks[index], int((drawn == index).sum()), rng) for index in np.unique(drawn)}
        slot = []
        for row in range(len(self.tasks[0])):
            width = len(self.tasks[0][row]) if len(sizes) == 1 else 1
            rates = np.empty((len(drawn), width))
            for index, rows in inner.items():
                rates[drawn == index] = rows[row] if len(sizes) == 1 else rows[row].mean(axis=1, keepdims=True)
            slot.append(rates)
        return slot

    def _inner(self, task: tuple[Outcomes, ...], resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
        episodes = task[0].shape[1]
        drawn = rng.integers(episodes, size=(resamples, episodes)) + episodes * np.arange(resamples)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=resamples * episodes).reshape(resamples, episodes)
        seeds = rng.integers(len(task[0]), size=(resamples, len(task[0])))
        rates = []
        for position, row in enumerate(task):
            if position and not self.seeds_paired:
                seeds = rng.integers(len(row), size=(resamples, len(row)))
            means = counts.astype(float) @ row.T / episodes
            rates.append(np.take_along_axis(means, seeds, axis=1))
        return rates


def _score_widths(columns: Sequence[Float[np.ndarray, " E"]], confidence: float) -> tuple[float, float]:
    """How far below and above the mean over tasks Wilson's intervals of each task's episodes reach, added in squares (Newcombe 1998)."""
    below, above = [], []
    for column in columns:
        rate, episodes = float(column.mean()), len(column)
        low, high = proportion_confint(rate * episodes, episodes, alpha=1 - confidence, method="wilson")
        below.append(rate - low)
        above.append(high - rate)
    return float(np.linalg.norm(below)) / len(columns), float(np.linalg.norm(above)) / len(columns)


def _calibrated(
    value: float,
    draws: Float[np.ndarray, " R"],
    terms: Sequence[tuple[Float[np.ndarray, "_ _"], ...]],
    over_tasks: bool,
    confidence: float,
) -> Float[np.ndarray, " R"]:
    """`draws` about `value`, with the unbiased variance of the sum of each task's `terms` (each [S, E], seeds of its own).

    A variance from few training seeds is itself uncertain: the draws are stretched as Student's t is against the normal.
    """
    parts = _variance_parts(terms, over_tasks)
    spread, variance = draws.std(), sum(part for part, _ in parts)
    if spread == 0 or not parts:
        return draws
    uncertainty = sum(part**2 / freedom for part, freedom in parts)
    tail = (1 - confidence) / 2
    stretch = t.ppf(tail, variance**2 / uncertainty) / norm.ppf(tail) if uncertainty > 0 else 1.0
    return value + (draws - draws.mean()) * stretch * np.sqrt(variance) / spread


def _variance_parts(terms: Sequence[tuple[Float[np.ndarray, "_ _"], ...]], over_tasks: bool) -> list[tuple[float, int]]:
    """Mean squares that sum to the variance of the mean over tasks of the summed `terms`, each with its degrees of freedom.

    A task's variance is var_e(column means) / E, which holds the episodes' part and each single episode's noise, plus, a term, the
    training seeds' part (MS_seeds - MS_residual) / (S E). Empty with one episode, which says nothing of others.
    """
    count = len(terms)
    if over_tasks and count > 1:
        means = [float(sum(term.mean() for term in task)) for task in terms]
        return [(float(np.var(means, ddof=1)) / count, count - 1)]
    if min(task[0].shape[1] for task in terms) < 2:
        return []
    episodes = [_episode_part(task) for task in terms]
    seeds = [part for task in terms for term in task for part in _seed_parts(term)]
    # A variance below zero is one too small to be seen.
    parts = [*episodes, *seeds] if sum(part for part, _ in seeds) > 0 else episodes
    return [(part / count**2, freedom) for part, freedom in parts]


def _episode_part(task: tuple[Float[np.ndarray, "_ _"], ...]) -> tuple[float, int]:
    columns = np.sum([term.mean(axis=0) for term in task], axis=0)
    return float(np.var(columns, ddof=1)) / len(columns), len(columns) - 1


def _seed_parts(term: Float[np.ndarray, "S E"]) -> list[tuple[float, int]]:
    """What the choice of training seeds adds to the variance of the mean of `term`: a mean square, less that of the residual."""
    seeds, episodes = term.shape
    if seeds < 2:
        return []
    by_seed, by_episode = term.mean(axis=1, keepdims=True), term.mean(axis=0, keepdims=True)
    freedom = (seeds - 1) * (episodes - 1)
    residual = np.sum((term - by_seed - by_episode + term.mean()) ** 2) / freedom
    return [(float(np.var(by_seed, ddof=1)) / seeds, seeds - 1), (-float(residual) / term.size, freedom)]


def _estimate(value: float, draws: Float[np.ndarray, " R"], confidence: float, draw: _Resampler) -> Estimate:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Estimate(value=float(value), low=float(low), high=float(high), resamples=draw.resamples, seed=draw.seed)


def _check_row(rates: Sequence[Outcomes]) -> None:
    if not len(rates):
        raise ValueError("no tasks given: expected an array bool[training seeds, episodes] a task")
    for index, row in enumerate(rates):
        if row.ndim != 2 or row.size == 0 or row.dtype != bool:
            raise ValueError(
                f"task {index}: expected bool[training seeds, episodes] with at least one of each, given {row.dtype}{list(row.shape)}"
            )


def _check_pairs(first: Sequence[Outcomes], second: Sequence[Outcomes], seeds_paired: bool) -> None:
    _check_row(first)
    _check_row(second)
    if len(first) != len(second):
        raise ValueError(f"paired rows of {len(first)} and {len(second)} tasks: expected the same tasks in both")
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.shape[1] != b.shape[1]:
            raise ValueError(
                f"task {index}: rows of {a.shape[1]} and {b.shape[1]} episodes; expected the same episodes in both, in one order"
            )
        if seeds_paired and len(a) != len(b):
            raise ValueError(f"task {index}: seeds_paired with {len(a)} and {len(b)} training seeds; expected as many")

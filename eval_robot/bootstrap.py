"""Hierarchical bootstrap of success rates over tasks, training seeds and episodes.

A row of a table is, for each task, an array bool[S, E]: S policies trained from different seeds, each evaluated on the same E
episodes. Training seeds and episodes are crossed, so both are resampled, each as a whole: a drawn episode is drawn for every
training seed and, in a comparison, for both rows (Owen 2007, "The pigeonhole bootstrap"). Tasks are strata, kept as they are,
unless `over_tasks` says that they too are a sample of those that matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import trim_mean


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its interval, 95 % unless asked otherwise; `resamples` and `seed` made the interval and make it again."""

    value: float
    low: float
    high: float
    resamples: int = 0
    seed: int = 0


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
) -> Estimate:
    """Success rate of `first` less that of `second`: the mean over tasks of the difference of means, in [-1, 1].

    Args:
        first, second: bool[S, E] a task, in the same order of tasks; column e is the same episode in both.
        seeds_paired: row s of both is one draw (say, the same demonstrations), so both rows resample the same training seeds;
            otherwise each row resamples its own.

    Raises:
        ValueError: naming the task whose arrays do not fit each other.
    """
    _check_pairs(first, second, seeds_paired)
    draw = _Resampler([*zip(first, second, strict=True)], resamples, seed, over_tasks, seeds_paired)
    differences = np.mean([a.mean(axis=1) - b.mean(axis=1) for a, b in draw.rates()], axis=0)
    value = np.mean([np.mean(a) - np.mean(b) for a, b in zip(first, second, strict=True)])
    return _estimate(value, differences, confidence, draw)


def pooled_bootstrap(
    rates: Sequence[Outcomes],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    over_tasks: bool = False,
) -> Estimate:
    """One row's success rate, in [0, 1]: the mean over tasks of the mean over training seeds and episodes."""
    _check_row(rates)
    draw = _Resampler([(row,) for row in rates], resamples, seed, over_tasks)
    means = np.mean([row.mean(axis=1) for (row,) in draw.rates()], axis=0)
    return _estimate(np.mean([np.mean(row) for row in rates]), means, confidence, draw)


def iqm_bootstrap(
    rates: Sequence[Outcomes],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    over_tasks: bool = False,
) -> Estimate:
    """Interquartile mean, in [0, 1], of the success rates of all (task, training seed): the middle half of them (Agarwal et al. 2021)."""
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

    A policy is one training seed; 0.5 says that neither row is better. Arguments and errors are those of `paired_bootstrap`.
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

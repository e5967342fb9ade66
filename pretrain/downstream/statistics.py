"""Intervals and paired tests of benchmark figures, over items that may come in clusters and in strata.

A figure is the mean of its items, or with strata the mean of the strata's means (mean-class accuracy, the average of two
directions of retrieval). Whole clusters are resampled, so that many queries about one video do not count as many videos.

Axes: n items, G groups (clusters), K strata, R random draws.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from statsmodels.stats.proportion import proportion_confint

from pretrain.downstream.results import Metric

DRAWS = 2000
LEVEL = 0.95
# Up to here all sign patterns are listed, which makes the permutation test exact.
EXACT_GROUPS = 12
_SEED = 20251
# Draws are made in parts of about this many numbers, which bounds the memory.
_CHUNK = 4_000_000


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """a minus b on the same items: the difference of the figures, its 95 % interval (paired bootstrap) and the two-sided p
    of the sign-flip permutation test. `items`: how many both have a value for."""

    value: float
    low: float
    high: float
    p: float
    items: int


def make_metric(
    name: str,
    items: np.ndarray,
    *,
    higher_is_better: bool = True,
    unit: str = "",
    chance: float | None = None,
    groups: np.ndarray | None = None,
    strata: np.ndarray | None = None,
) -> Metric:
    """A figure with its interval. Items are in plain units; with unit "%" they (and `chance`) are shares, times 100 here.

    The interval is the percentile bootstrap's over groups; for independent right-or-wrong items Wilson's, which stays
    honest where all are right.

    Raises:
        ValueError: no item has a value.
    """
    values = np.asarray(items, np.float64)
    if not np.isfinite(values).any():
        raise ValueError(f"metric {name!r}: none of its {len(values)} items has a value")
    scale = 100.0 if unit == "%" else 1.0
    finite = values[np.isfinite(values)]
    independent = groups is None or len(np.unique(groups)) == len(values)
    if independent and strata is None and np.isin(finite, (0.0, 1.0)).all():
        low, high = proportion_confint(finite.sum(), len(finite), alpha=1 - LEVEL, method="wilson")
    else:
        low, high = _interval(bootstrap(values, groups=groups, strata=strata))
    return Metric(
        name=name,
        value=scale * figure(values, strata=strata),
        low=scale * float(low),
        high=scale * float(high),
        higher_is_better=higher_is_better,
        unit=unit,
        chance=None if chance is None else scale * chance,
        items=scale * values,
        groups=groups,
        strata=strata,
    )


def figure(items: Float64[np.ndarray, " n"], *, strata: np.ndarray | None = None) -> float:
    """The mean of the finite items, or of the strata's means."""
    sums, counts = _sums(items, None, strata)
    return float(_pool(sums.sum(axis=0), counts.sum(axis=0)))


def bootstrap(
    items: Float64[np.ndarray, " n"],
    *,
    groups: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = _SEED,
) -> Float64[np.ndarray, " R"]:
    """The figure on `draws` resamples of the groups, with replacement. Items that are NaN count for nothing.

    A stratum that a resample has lost is left out of its mean, as in a mean over the classes that are present.
    """
    sums, counts = _sums(items, groups, strata)
    count = len(sums)
    random = np.random.default_rng(seed)
    figures = []
    step = max(1, _CHUNK // count)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        taken = random.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        weights = np.bincount(taken.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        figures.append(_pool(weights @ sums, weights @ counts))
    return np.concatenate(figures)


def paired_difference(a: Metric, b: Metric) -> PairedDifference | None:
    """a minus b, item by item; None where one of them kept no items.

    Raises:
        ValueError: they are not the same items: other numbers of them, other groups or other strata.
    """
    if a.items is None or b.items is None:
        return None
    for field in ("items", "groups", "strata"):
        one, other = getattr(a, field), getattr(b, field)
        alike = (one is None) == (other is None) and (one is None or len(one) == len(other))
        if alike and one is not None and field != "items":
            alike = np.array_equal(one, other)
        if not alike:
            raise ValueError(
                f"metric {a.name!r}: the two encoders have different {field}; measure both on the same data"
            )
    difference = np.asarray(a.items, np.float64) - np.asarray(b.items, np.float64)
    if not np.isfinite(difference).any():
        return None
    low, high = _interval(bootstrap(difference, groups=a.groups, strata=a.strata))
    return PairedDifference(
        value=figure(difference, strata=a.strata),
        low=low,
        high=high,
        p=sign_flip_p(difference, groups=a.groups, strata=a.strata),
        items=int(np.isfinite(difference).sum()),
    )


def sign_flip_p(
    difference: Float64[np.ndarray, " n"],
    *,
    groups: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    draws: int = 9999,
    seed: int = _SEED,
) -> float:
    """Two-sided p of "the sign of a group's difference is a coin's": all patterns up to EXACT_GROUPS groups, else random
    ones, counting the observed one (p is never 0)."""
    sums, counts = _sums(difference, groups, strata)
    total = counts.sum(axis=0)
    present = total > 0
    effect = (sums[:, present] / total[present]).mean(axis=1)  # what a group adds to the figure
    effect = effect[effect != 0]
    observed = abs(effect.sum())
    tolerance = 1e-12 * max(1.0, np.abs(effect).sum())
    if len(effect) <= EXACT_GROUPS:
        patterns = 1 - 2.0 * ((np.arange(2 ** len(effect))[:, None] >> np.arange(len(effect))) & 1)
        return float((np.abs(patterns @ effect) >= observed - tolerance).mean())
    random = np.random.default_rng(seed)
    extreme = 0
    step = max(1, _CHUNK // len(effect))
    for start in range(0, draws, step):
        signs = 1 - 2.0 * random.integers(0, 2, (min(step, draws - start), len(effect)))
        extreme += int((np.abs(signs @ effect) >= observed - tolerance).sum())
    return (1 + extreme) / (1 + draws)


def _interval(draws: Float[np.ndarray, " R"]) -> tuple[float, float]:
    low, high = np.nanquantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _codes(labels: np.ndarray | None, count: int, default: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    if labels is None:
        return default
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} items")
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def _sums(
    items: Float64[np.ndarray, " n"], groups: np.ndarray | None, strata: np.ndarray | None
) -> tuple[Float64[np.ndarray, "G K"], Float64[np.ndarray, "G K"]]:
    """Sum and number of the finite items of each group in each stratum."""
    values = np.asarray(items, np.float64)
    group = _codes(groups, len(values), np.arange(len(values)))
    stratum = _codes(strata, len(values), np.zeros(len(values), np.int64))
    shape = (int(group.max()) + 1, int(stratum.max()) + 1)
    finite = np.isfinite(values)
    cell = group[finite] * shape[1] + stratum[finite]
    size = shape[0] * shape[1]
    sums = np.bincount(cell, weights=values[finite], minlength=size).reshape(shape)
    counts = np.bincount(cell, minlength=size).reshape(shape).astype(np.float64)
    used = counts.sum(axis=1) > 0
    return sums[used], counts[used]


def _pool(sums: Float64[np.ndarray, "*R K"], counts: Float64[np.ndarray, "*R K"]) -> np.ndarray:
    """Mean over the strata that are present of sum / count."""
    present = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=present)
    return means.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)

"""Intervals and paired tests against independent formulas; coverage by counting every outcome."""

from collections.abc import Callable
from math import comb, sqrt
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from eval_robot.stats import clopper_pearson_interval, holm, mcnemar_exact, wilson_interval


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_score_interval(counts: tuple[int, int]) -> None:
    successes, episodes = counts
    low, high = wilson_interval(successes, episodes)
    z, p = 1.959963984540054, successes / episodes
    centre = (p + z * z / (2 * episodes)) / (1 + z * z / episodes)
    half = z / (1 + z * z / episodes) * sqrt(p * (1 - p) / episodes + z * z / (4 * episodes * episodes))
    assert low == pytest.approx(max(0.0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1.0, centre + half), abs=1e-9)
    assert 0.0 <= low <= p <= high <= 1.0


def test_wilson_half_width_at_one_half() -> None:
    low, high = wilson_interval(25, 50)
    assert 100 * (high - low) / 2 == pytest.approx(13.4, abs=0.1)


@pytest.mark.parametrize("interval", [wilson_interval, clopper_pearson_interval])
@pytest.mark.parametrize(("successes", "episodes"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(interval: Callable, successes: int, episodes: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes <= episodes"):
        interval(successes, episodes)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_ends_leave_a_tail_of_2_5_percent(counts: tuple[int, int]) -> None:
    successes, episodes = counts
    low, high = clopper_pearson_interval(successes, episodes)

    def tail(ks: range, rate: float) -> float:
        return sum(comb(episodes, k) * rate**k * (1 - rate) ** (episodes - k) for k in ks)

    if successes > 0:
        assert tail(range(successes, episodes + 1), low) == pytest.approx(0.025, rel=1e-6)
    if successes < episodes:
        assert tail(range(successes + 1), high) == pytest.approx(0.025, rel=1e-6)
    assert 0.0 <= low <= successes / episodes <= high <= 1.0
    assert (low == 0.0) == (successes == 0) and (high == 1.0) == (successes == episodes)


def coverage(interval: Callable, episodes: int) -> tuple[float, float, float]:
    """Mean and least probability that the interval holds the true rate, over rates from 0.05 to 0.95, and the rate of the least.

    The least is sought at both sides of every end of an interval, where coverage jumps, so it is the least of all.
    """
    ends = np.array([interval(k, episodes) for k in range(episodes + 1)])

    def covered(rates: np.ndarray) -> np.ndarray:
        inside = (ends[:, 0] <= rates[:, None]) & (rates[:, None] <= ends[:, 1])
        return (inside * binom.pmf(np.arange(episodes + 1), episodes, rates[:, None])).sum(axis=1)

    even = covered(np.linspace(0.05, 0.95, 1801))
    jumps = np.concatenate([ends.ravel() - 1e-9, ends.ravel() + 1e-9])
    jumps = jumps[(jumps >= 0.05) & (jumps <= 0.95)]
    at_jumps = covered(jumps)
    return float(even.mean()), float(at_jumps.min()), float(jumps[at_jumps.argmin()])


@pytest.mark.parametrize(
    ("episodes", "mean", "least", "least_at"),
    [
        (10, 0.9555, 0.8932, 0.057),
        (25, 0.9530, 0.9224, 0.300),
        (50, 0.9515, 0.9308, 0.191),
        (250, 0.9503, 0.9355, 0.062),
    ],
)
def test_wilson_coverage(episodes: int, mean: float, least: float, least_at: float) -> None:
    average, worst, rate = coverage(wilson_interval, episodes)
    print(f"Wilson, {episodes} episodes: {100 * average:.2f} % on average, {100 * worst:.2f} % at {rate:.3f}")
    assert 0.935 <= average <= 0.965
    assert average == pytest.approx(mean, abs=2e-4) and worst == pytest.approx(least, abs=2e-4)
    assert min(rate, 1 - rate) == pytest.approx(least_at, abs=2e-3)


@pytest.mark.parametrize(
    ("episodes", "mean", "least"),
    [(10, 0.9828, 0.9610), (25, 0.9734, 0.9505), (50, 0.9672, 0.9508), (250, 0.9584, 0.9502)],
)
def test_clopper_pearson_coverage(episodes: int, mean: float, least: float) -> None:
    average, worst, rate = coverage(clopper_pearson_interval, episodes)
    print(f"Clopper-Pearson, {episodes} episodes: {100 * average:.2f} % on average, {100 * worst:.2f} % at {rate:.3f}")
    assert worst >= 0.95, "at every rate"
    assert average == pytest.approx(mean, abs=2e-4) and worst == pytest.approx(least, abs=2e-4)


@given(st.lists(st.floats(0, 0.1) | st.floats(0, 1), min_size=2, max_size=20))
def test_holm_is_the_step_down_rule(p_values: list[float]) -> None:
    with patch("gc.collect"):  # statsmodels calls it each time, which takes longer than all the rest
        adjusted = holm(p_values)
    # The rule itself: walk up the sorted p-values, reject while p_(i) <= alpha / (m - i), stop at the first that is not.
    for alpha in (0.01, 0.05, 0.2):
        rejected: set[int] = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[index] * (len(p_values) - rank) > alpha:
                break
            rejected.add(index)
        assert {index for index, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(raw <= new <= 1 for raw, new in zip(p_values, adjusted, strict=True))


@pytest.mark.parametrize("p_values", [[], [0.5, 1.5], [-0.1]])
def test_holm_refuses_what_is_no_probability(p_values: list[float]) -> None:
    with pytest.raises(ValueError, match="p_values="):
        holm(p_values)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_two_sided_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    result = mcnemar_exact([a for a, _ in pairs], [b for _, b in pairs])
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    n, k = wins + losses, min(wins, losses)
    expected = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0
    assert result.p_value == pytest.approx(expected)
    assert (result.wins, result.losses, result.episodes) == (wins, losses, len(pairs))
    mirrored = mcnemar_exact([b for _, b in pairs], [a for a, _ in pairs])
    assert mirrored.p_value == pytest.approx(result.p_value) and mirrored.difference == pytest.approx(
        -result.difference
    )


def test_mcnemar_refuses_unpaired_lists() -> None:
    with pytest.raises(ValueError, match="expected equal numbers"):
        mcnemar_exact([True], [True, False])

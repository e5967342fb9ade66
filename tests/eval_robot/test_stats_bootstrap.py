"""The hierarchical bootstrap against enumeration, analysis of variance and scipy; its coverage by simulation."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, mannwhitneyu, t
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.proportion import proportion_confint

from eval_robot.power import Model
from eval_robot.stats import (
    Estimate,
    iqm_bootstrap,
    paired_bootstrap,
    pooled_bootstrap,
    probability_of_improvement,
)


def draw(seed: int, tasks: int = 10, seeds: int = 5, episodes: int = 50, rate: float = 0.5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((seeds, episodes)) < rate for _ in range(tasks)]


def quantile_range(values: np.ndarray, q: float) -> tuple[float, float]:
    """Where the empirical q-quantile of many draws from `values`, each as likely, may lie."""
    ordered = np.sort(values)
    at = lambda p: float(ordered[int(np.clip(np.ceil(p * len(ordered)) - 1, 0, len(ordered) - 1))])  # noqa: E731
    return at(q - 0.01), at(q + 0.01)


@pytest.mark.parametrize("seeds_paired", [False, True])
def test_plain_intervals_are_those_of_every_resample(seeds_paired: bool) -> None:
    first = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
    second = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 1]], bool)
    draws = [*product(range(3), repeat=3)]
    differences = np.array(
        [
            first[np.ix_(rows, columns)].mean() - second[np.ix_(others, columns)].mean()
            for rows in draws
            for columns in draws
            for others in ([rows] if seeds_paired else draws)
        ]
    )
    for confidence in (0.5, 0.8, 0.95):
        estimate = paired_bootstrap(
            [first], [second], confidence=confidence, seeds_paired=seeds_paired, calibrated=False, resamples=40_000
        )
        tail = (1 - confidence) / 2
        for end, q in ((estimate.low, tail), (estimate.high, 1 - tail)):
            least, most = quantile_range(differences, q)
            assert least - 1e-9 <= end <= most + 1e-9
    assert estimate.value == pytest.approx(first.mean() - second.mean())


@pytest.mark.parametrize("over_tasks", [False, True])
def test_plain_intervals_are_those_of_a_plain_loop(over_tasks: bool) -> None:
    sizes = [(2, 7), (3, 12), (5, 4), (3, 9)]
    rng = np.random.default_rng(1)
    first = [rng.random(size) < rate for size, rate in zip(sizes, (0.9, 0.5, 0.7, 0.4), strict=True)]
    second = [rng.random((size[0] + 1, size[1])) < 0.4 for size in sizes]

    def resample() -> float:
        total = []
        for slot in range(4):
            task = rng.integers(4) if over_tasks else slot
            a, b = first[task], second[task]
            columns = rng.choice(a.shape[1], a.shape[1])
            a_rows, b_rows = rng.choice(len(a), len(a)), rng.choice(len(b), len(b))
            total.append(a[a_rows][:, columns].mean() - b[b_rows][:, columns].mean())
        return float(np.mean(total))

    expected = np.percentile([resample() for _ in range(4000)], [2.5, 97.5])
    estimate = paired_bootstrap(first, second, over_tasks=over_tasks, calibrated=False)
    assert [estimate.low, estimate.high] == pytest.approx(expected, abs=0.015)


def anova_half_width(term: np.ndarray) -> float:
    """95 % half-width for the mean of [S, E] with crossed random seeds and episodes, from statsmodels' mean squares.

    The variance is (MS_S + MS_E - MS_residual) / (S E), its degrees of freedom are Satterthwaite's.
    """
    s, e = np.indices(term.shape)
    frame = pd.DataFrame({"y": term.ravel().astype(float), "s": s.ravel(), "e": e.ravel()})
    table = anova_lm(ols("y ~ C(s) + C(e)", frame).fit())
    parts = np.array([1, 1, -1]) * table["mean_sq"].to_numpy() / term.size
    freedom = parts.sum() ** 2 / (parts**2 / table["df"].to_numpy()).sum()
    return float(t.ppf(0.975, freedom) * parts.sum() ** 0.5)


def test_calibrated_intervals_are_as_wide_as_the_analysis_of_variance_says() -> None:
    model = Model(tasks=1, seeds=6, base=0.5, gain=0.1, seed_sd=0.15, correlation=0.4)
    first, second = model.draw(40, np.random.default_rng(3))
    pooled = pooled_bootstrap(first, resamples=40_000)
    assert (pooled.high - pooled.low) / 2 == pytest.approx(anova_half_width(first[0]), rel=0.03)
    paired = paired_bootstrap(first, second, seeds_paired=True, resamples=40_000)
    expected = anova_half_width(first[0].astype(float) - second[0])
    assert (paired.high - paired.low) / 2 == pytest.approx(expected, rel=0.03)


def test_with_one_training_seed_it_is_the_bootstrap_of_episodes() -> None:
    first, second = draw(0, tasks=1, seeds=1, rate=0.7), draw(1, tasks=1, seeds=1)
    differences = first[0][0].astype(float) - second[0][0]
    result = bootstrap((differences,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0))
    ours = paired_bootstrap(first, second, resamples=20_000)
    interval = result.confidence_interval
    assert [ours.low, ours.high] == pytest.approx([interval.low, interval.high], abs=0.021), "one step is 0.02"


def test_tasks_that_differ_make_it_wider_when_they_too_are_drawn() -> None:
    rng = np.random.default_rng(0)
    rates = [0.1, 0.2, 0.5, 0.6, 0.9, 0.95]
    row = [rng.random((5, 50)) < rate for rate in rates]
    fixed, drawn = pooled_bootstrap(row), pooled_bootstrap(row, over_tasks=True)
    assert fixed.value == drawn.value == pytest.approx(np.mean([task.mean() for task in row]))
    means = [task.mean() for task in row]
    expected = t.ppf(0.975, len(means) - 1) * (np.var(means, ddof=1) / len(means)) ** 0.5
    assert (drawn.high - drawn.low) / 2 == pytest.approx(expected, rel=0.05)
    assert (drawn.high - drawn.low) > 4 * (fixed.high - fixed.low)


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    row = draw(2, tasks=4, seeds=4)
    middle = np.sort(np.concatenate([task.mean(axis=1) for task in row]))[4:12]
    estimate = iqm_bootstrap(row)
    assert estimate.value == pytest.approx(middle.mean()) and estimate.low <= estimate.value <= estimate.high
    ruined = [*row[:3], np.zeros_like(row[3])]
    assert abs(iqm_bootstrap(ruined).value - estimate.value) < 0.5 * abs(
        pooled_bootstrap(ruined).value - pooled_bootstrap(row).value
    ), "one task in four that fails moves it less than the mean"


def test_probability_of_improvement_is_mann_whitneys() -> None:
    first, second = draw(4, seeds=5, episodes=12, rate=0.6), draw(5, seeds=7, episodes=12)
    expected = np.mean(
        [
            mannwhitneyu(a.mean(axis=1), b.mean(axis=1)).statistic / (len(a) * len(b))
            for a, b in zip(first, second, strict=True)
        ]
    )
    estimate = probability_of_improvement(first, second)
    mirrored = probability_of_improvement(second, first)
    assert estimate.value == pytest.approx(expected) and mirrored.value == pytest.approx(1 - expected)
    assert 0 <= estimate.low <= estimate.high <= 1
    same = probability_of_improvement(first, first)
    assert same.value == 0.5 and same.low < 0.5 < same.high


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.booleans())
@example(204, 2, 2, 5, False)  # few outcomes, whose interval is wider than the draws' own
def test_what_holds_of_every_table(seed: int, tasks: int, seeds: int, episodes: int, over_tasks: bool) -> None:
    first, second = draw(seed, tasks, seeds, episodes, 0.6), draw(seed + 1, tasks, seeds, episodes)
    options = {"resamples": 200, "over_tasks": over_tasks}
    forth, back = paired_bootstrap(first, second, **options), paired_bootstrap(second, first, **options)
    assert forth.value == pytest.approx(-back.value)
    assert -1 <= forth.low <= forth.high <= 1
    rate = pooled_bootstrap(first, **options)
    assert 0 <= rate.low <= rate.value + 1e-12 and rate.value <= rate.high + 1e-12 and rate.high <= 1
    assert forth.value == pytest.approx(rate.value - pooled_bootstrap(second, **options).value)
    nothing = paired_bootstrap([task[:1] for task in first], [task[:1] for task in first], resamples=200)
    assert nothing.value == 0 and nothing.low <= 0 <= nothing.high and nothing.p_value == 1, "a row beside itself"
    # The p-value and the interval tell one story.
    if forth.p_value < 0.04:
        assert forth.low > 0 or forth.high < 0
    if forth.p_value > 0.08:
        assert forth.low <= 0 <= forth.high


def test_the_same_seed_gives_the_same_interval() -> None:
    first, second = draw(0, rate=0.6), draw(1)
    for function in (paired_bootstrap, probability_of_improvement):
        once, again, other = (function(first, second, seed=seed, resamples=500) for seed in (3, 3, 4))
        assert once == again and (once.low, once.high) != (other.low, other.high)
        assert (once.seed, once.resamples) == (3, 500)
    assert pooled_bootstrap(first) == pooled_bootstrap(first) and isinstance(iqm_bootstrap(first), Estimate)


def test_ten_thousand_resamples_take_less_than_three_seconds() -> None:
    first, second = draw(0, rate=0.6), draw(1)
    began = time.process_time()
    paired_bootstrap(first, second)
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], [], "no tasks"),
        (draw(0, 2), draw(0, 3), "2 and 3 tasks"),
        (draw(0, 1, 2, 10), draw(0, 1, 2, 11), "task 0: rows of 10 and 11 episodes"),
        ([np.ones((2, 3))], [np.ones((2, 3))], r"task 0: expected bool\[training seeds, episodes\].*float64"),
        ([np.ones(3, bool)], [np.ones(3, bool)], r"given bool\[3\]"),
        ([np.ones((0, 3), bool)], [np.ones((0, 3), bool)], "at least one of each"),
    ],
)
def test_tables_that_do_not_fit_are_named(first: list, second: list, message: str) -> None:
    for function in (paired_bootstrap, probability_of_improvement):
        with pytest.raises(ValueError, match=message):
            function(first, second)


def test_sizes_that_do_not_fit_the_options_are_named() -> None:
    with pytest.raises(ValueError, match="seeds_paired with 2 and 3"):
        paired_bootstrap(draw(0, 1, 2), draw(0, 1, 3), seeds_paired=True)
    with pytest.raises(ValueError, match="same number of training seeds"):
        iqm_bootstrap([*draw(0, 1, 2), *draw(0, 1, 3)], over_tasks=True)


def simulated_coverage(model: Model, episodes: int, tables: int, calibrated: bool = True) -> tuple[float, float]:
    """How often the 95 % intervals hold the true difference and the true rate of the second row."""
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(tables):
        first, second = model.draw(episodes, rng)
        paired = paired_bootstrap(first, second, resamples=400, seed=1, calibrated=calibrated)
        pooled = pooled_bootstrap(second, resamples=400, seed=1, calibrated=calibrated)
        held += [paired.low <= model.gain <= paired.high, pooled.low <= model.base <= pooled.high]
    difference, rate = held / tables
    print(f"{model}, {episodes} episodes: difference {100 * difference:.1f} %, rate {100 * rate:.1f} %")
    return float(difference), float(rate)


def test_coverage() -> None:
    """Ten tasks, three training seeds, 25 episodes, 300 tables: within three standard errors (3.8 points) of 95 %."""
    model = Model(tasks=10, seeds=3, base=0.5, gain=0.1, seed_sd=0.05, correlation=0.3)
    for covered in simulated_coverage(model, 25, 300):
        assert 0.912 <= covered <= 0.988
    plain, _ = simulated_coverage(model, 25, 100, calibrated=False)
    assert plain >= 0.97, "without calibration the interval is too wide"


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        Model(tasks=10, seeds=5, base=0.5, gain=0.1, seed_sd=0.05, correlation=0.3),
        Model(tasks=10, seeds=5, base=0.85, gain=0.1, seed_sd=0.05, correlation=0.5),
        Model(tasks=10, seeds=3, base=0.5, gain=0.1, seed_sd=0.1, correlation=0.0),
        Model(tasks=1, seeds=3, base=0.5, gain=0.1, seed_sd=0.05, correlation=0.3),
    ],
)
def test_coverage_of_several_studies(model: Model) -> None:
    for covered in simulated_coverage(model, 50, 2000):
        assert 0.935 <= covered <= 0.97


def test_one_sided_tables_are_not_certain() -> None:
    none, one = np.zeros((2, 6), bool), np.zeros((2, 6), bool)
    one[0, 3] = True
    never = pooled_bootstrap([none])
    # Wilson's interval of 0 of 6: the seeds share the episodes.
    assert never.low == pytest.approx(0) and never.high == pytest.approx(proportion_confint(0, 6, method="wilson")[1])
    assert pooled_bootstrap([~none]).low == pytest.approx(1 - never.high)
    difference = paired_bootstrap([one], [none])
    assert difference.low < 0 < difference.value < difference.high and difference.p_value == 1
    alike = paired_bootstrap([none], [none])
    assert alike.value == 0 and alike.low < -0.2 and alike.high > 0.2 and alike.p_value == 1


def test_a_difference_needs_as_many_episodes_as_a_sign_test() -> None:
    better, worse = np.ones((1, 20), bool), np.ones((1, 20), bool)
    worse[0, :5] = False
    assert paired_bootstrap([better], [worse]).p_value == pytest.approx(2**-4)
    worse[0, :6] = False
    found = paired_bootstrap([better], [worse])
    assert found.p_value == pytest.approx(2**-5) and found.low > 0

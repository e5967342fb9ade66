"""Intervals and paired tests against plain loops, scipy and exact enumeration."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from pretrain.downstream.results import Metric
from pretrain.downstream.statistics import bootstrap, figure, make_metric, paired_difference, sign_flip_p


def test_the_figure_is_the_mean_or_the_mean_of_the_strata() -> None:
    items = np.array([1.0, 0.0, 1.0, np.nan, 4.0])
    assert figure(items) == pytest.approx(1.5)
    assert figure(items, strata=np.array(["a", "a", "b", "b", "b"])) == pytest.approx((0.5 + 2.5) / 2)


def test_strata_give_balanced_accuracy() -> None:
    random = np.random.default_rng(0)
    truth, guess = random.integers(0, 5, 200), random.integers(0, 5, 200)
    assert figure((truth == guess).astype(float), strata=truth) == pytest.approx(balanced_accuracy_score(truth, guess))


def test_the_bootstrap_is_that_of_scipy() -> None:
    items = np.random.default_rng(1).exponential(size=80)
    ours = np.quantile(bootstrap(items, draws=8000), (0.025, 0.975))
    theirs = stats.bootstrap((items,), np.mean, n_resamples=8000, method="percentile", rng=2).confidence_interval
    assert ours == pytest.approx(theirs, abs=0.02)


def test_clusters_widen_the_interval_as_a_plain_loop_says() -> None:
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(20), 6)
    items = random.normal(size=20)[groups] + 0.1 * random.normal(size=120)
    clustered = bootstrap(items, groups=groups, draws=4000)
    of = [items[groups == group] for group in range(20)]
    loop = [np.concatenate([of[g] for g in random.integers(0, 20, 20)]).mean() for _ in range(4000)]
    assert clustered.std() == pytest.approx(np.std(loop), rel=0.06)
    assert clustered.std() > 2 * bootstrap(items, draws=4000).std()


def test_large_tables_are_resampled_in_parts_alike() -> None:
    items = np.random.default_rng(3).random(3000)
    draws = bootstrap(items, draws=1500)  # 4.5 million numbers: two parts
    assert len(draws) == 1500 and len(np.unique(draws)) == 1500
    assert draws.std() == pytest.approx(items.std() / np.sqrt(3000), rel=0.08)


def test_right_or_wrong_items_have_wilsons_interval() -> None:
    metric = make_metric("accuracy", np.ones(20), unit="%", chance=0.2)
    assert (metric.value, metric.high, metric.chance) == (100.0, pytest.approx(100.0), 20.0)
    alone = make_metric("accuracy", np.ones(20), unit="%", groups=np.arange(20))
    assert (alone.low, alone.high) == (metric.low, metric.high)
    assert metric.low == pytest.approx(100 * stats.binomtest(20, 20).proportion_ci(method="wilson").low)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=1, max_size=9))
def test_few_groups_are_flipped_exactly(values: list[float]) -> None:
    difference = np.array(values)
    patterns = [np.dot(signs, difference) for signs in itertools.product((1, -1), repeat=len(values))]
    expected = np.mean(np.abs(patterns) >= abs(difference.sum()) - 1e-9)
    assert sign_flip_p(difference) == pytest.approx(expected)


def test_many_groups_are_flipped_at_random_as_scipy_does() -> None:
    difference = np.random.default_rng(4).normal(0.25, 1, 60)
    theirs = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=9999, rng=5).pvalue
    assert sign_flip_p(difference) == pytest.approx(theirs, abs=0.015)
    assert sign_flip_p(np.ones(40)) == pytest.approx(1e-4)


def test_a_cluster_is_one_sign() -> None:
    # A hundred items that are five videos: no p below 2 / 2^5.
    assert sign_flip_p(np.ones(100), groups=np.repeat(np.arange(5), 20)) == pytest.approx(2 / 32)


def test_false_alarms_are_as_frequent_as_promised() -> None:
    random = np.random.default_rng(6)
    low = [sign_flip_p(random.normal(size=15), draws=400) < 0.05 for _ in range(400)]
    assert 0.025 < np.mean(low) < 0.08


def test_paired_differences_meet_item_by_item() -> None:
    random = np.random.default_rng(7)
    hard = random.random(200)
    a, b = make_metric("x", hard + 0.05), make_metric("x", hard)
    difference = paired_difference(a, b)
    assert difference is not None and difference.items == 200
    # Unpaired the intervals overlap widely; paired the difference is exact.
    assert a.low < b.high
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.05, 0.05, 0.05))
    assert difference.p < 0.001


def test_other_items_are_refused() -> None:
    a = make_metric("x", np.arange(4.0), groups=np.array(list("aabb")))
    with pytest.raises(ValueError, match="different items"):
        paired_difference(a, make_metric("x", np.arange(5.0), groups=np.array(list("aabbb"))))
    with pytest.raises(ValueError, match="different groups"):
        paired_difference(a, make_metric("x", np.arange(4.0), groups=np.array(list("abab"))))
    bare = Metric(name="x", value=1, low=0, high=2, higher_is_better=True)
    assert paired_difference(a, bare) is None


def test_nothing_to_average_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of its 3 items has a value"):
        make_metric("x", np.full(3, np.nan))

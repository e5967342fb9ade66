"""The sequential test: its martingale, its errors counted over every path, its stopping."""

from __future__ import annotations

from itertools import product
from math import comb, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from eval_robot.sequential import SequentialTest, confidence_sequence, log_martingale, paired_trials

RATES = st.floats(0.02, 0.98)
COUNTS = st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, RATES)
def test_the_martingale_is_the_uniform_mixture(counts: tuple[int, int], rate: float) -> None:
    k, n = counts
    mixture, _ = quad(lambda q: q**k * (1 - q) ** (n - k), 0, 1, points=[k / n] if n else None, epsabs=0)
    closed = -log((n + 1) * comb(n, k)) - k * log(rate) - (n - k) * log(1 - rate)
    assert log_martingale(k, n, rate) == pytest.approx(closed, abs=1e-8)
    assert log_martingale(k, n, rate) == pytest.approx(log(mixture) - k * log(rate) - (n - k) * log(1 - rate), abs=1e-6)


@given(COUNTS, RATES)
def test_it_is_a_martingale_at_the_true_rate(counts: tuple[int, int], rate: float) -> None:
    k, n = counts
    after = rate * np.exp(log_martingale(k + 1, n + 1, rate)) + (1 - rate) * np.exp(log_martingale(k, n + 1, rate))
    assert after == pytest.approx(np.exp(log_martingale(k, n, rate)), rel=1e-9)


@given(COUNTS, st.floats(0.01, 0.3))
def test_the_confidence_sequence_is_where_the_martingale_is_small(counts: tuple[int, int], alpha: float) -> None:
    k, n = counts
    low, high = confidence_sequence(k, n, alpha)
    assert 0 <= low <= (k / n if n else 0.5) <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert log_martingale(k, n, end) == pytest.approx(-log(alpha), abs=1e-6)
    for rate in np.linspace(0.01, 0.99, 33):
        if min(abs(rate - low), abs(rate - high)) > 1e-6:
            assert (low < rate < high) == (log_martingale(k, n, rate) < -log(alpha))


def outcome_probabilities(test: SequentialTest, rate: float) -> tuple[dict[str, float], float]:
    """The probability of each verdict and the expected number of episodes, exactly: all paths, merged where they meet."""
    probabilities, expected = {"above": 0.0, "below": 0.0, "undecided": 0.0}, 0.0
    alive = {0: 1.0}
    for n in range(1, test.episodes + 1):
        after: dict[int, float] = {}
        for k, mass in alive.items():
            after[k] = after.get(k, 0.0) + mass * (1 - rate)
            after[k + 1] = after.get(k + 1, 0.0) + mass * rate
        alive, left = {}, test.episodes - n
        for k, mass in after.items():
            if log_martingale(k, n, test.threshold) >= -log(test.alpha):
                verdict = "above" if k > test.threshold * n else "below"
            elif all(log_martingale(k + more, n + left, test.threshold) < -log(test.alpha) for more in (0, left)):
                verdict = "undecided"
            else:
                alive[k] = mass
                continue
            probabilities[verdict] += mass
            expected += mass * n
    assert not alive and sum(probabilities.values()) == pytest.approx(1)
    return probabilities, expected


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_wrong_answers_are_rare_over_all_paths(threshold: float, alpha: float) -> None:
    test = SequentialTest(threshold=threshold, alpha=alpha, episodes=150)
    at, _ = outcome_probabilities(test, threshold)
    assert at["above"] + at["below"] <= alpha, "at the threshold itself, neither answer"
    for off in (0.02, 0.05, 0.09):
        assert outcome_probabilities(test, threshold - off)[0]["above"] <= alpha / 2
        assert outcome_probabilities(test, threshold + off)[0]["below"] <= alpha / 2


def test_what_it_costs_and_what_it_saves() -> None:
    """Against 50 % with at most 200 episodes, exactly: the chance of the right answer and the episodes it takes on average."""
    test = SequentialTest(threshold=0.5, alpha=0.05, episodes=200)
    at, _ = outcome_probabilities(test, 0.5)
    figures = {rate: outcome_probabilities(test, rate) for rate in (0.6, 0.7, 0.8, 0.9)}
    for rate, (verdicts, expected) in figures.items():
        print(f"rate {rate}: above with {100 * verdicts['above']:.1f} %, after {expected:.0f} episodes on average")
    print(f"at the threshold: decided with {100 * (at['above'] + at['below']):.2f} %")
    assert at["above"] + at["below"] == pytest.approx(0.0309, abs=5e-4)
    assert [round(verdicts["above"], 3) for verdicts, _ in figures.values()] == [0.476, 0.997, 1.0, 1.0]
    assert [round(expected) for _, expected in figures.values()] == [143, 54, 23, 13]


def test_looking_after_every_episode_is_allowed_by_simulation() -> None:
    """Paired policies of equal worth, a look after each of 200 seeds: how often one is called better."""
    rng = np.random.default_rng(0)
    test = SequentialTest(threshold=0.5, alpha=0.05, episodes=200)
    fixed_wrong = wrong = 0
    for _ in range(400):
        first, second = rng.random((2, 200)) < rng.uniform(0.3, 0.9, size=200)
        trials = paired_trials(first.tolist(), second.tolist())
        decision = test.decide(trials)
        assert decision is not None
        wrong += decision.verdict != "undecided"
        counted = np.array([trial for trial in trials if trial is not None])
        z = np.abs(np.cumsum(2 * counted - 1)) / np.sqrt(np.arange(1, len(counted) + 1))
        fixed_wrong += bool((z[9:] > 1.96).any())
    print(f"wrong {wrong / 4:.1f} %; a test of fixed size looked at as often: {fixed_wrong / 4:.1f} %")
    assert wrong <= 20, "at most 5 %"
    assert fixed_wrong > 80, "a test of fixed size, looked at as often, would be wrong far more often"


def test_the_confidence_sequence_holds_the_rate_at_all_times() -> None:
    """Exactly, over 120 episodes: the probability that it ever leaves the true rate out."""
    for rate in (0.05, 0.3, 0.5, 0.85):
        alive, missed = {0: 1.0}, 0.0
        for n in range(1, 121):
            after: dict[int, float] = {}
            for k, mass in alive.items():
                after[k] = after.get(k, 0.0) + mass * (1 - rate)
                after[k + 1] = after.get(k + 1, 0.0) + mass * rate
            alive = {}
            for k, mass in after.items():
                low, high = confidence_sequence(k, n, 0.05) if mass > 1e-12 else (0.0, 1.0)
                if low <= rate <= high:
                    alive[k] = mass
                else:
                    missed += mass
        assert 0 < missed <= 0.05


@given(st.lists(st.sampled_from([True, False, None]), min_size=30, max_size=30), st.integers(0, 30), RATES)
def test_looking_late_decides_the_same(outcomes: list[bool | None], looked: int, threshold: float) -> None:
    test = SequentialTest(threshold=threshold, alpha=0.1, episodes=30)
    final = test.decide(outcomes)
    assert final is not None and final.episodes <= 30
    early = test.decide(outcomes[:looked])
    assert early == (final if final.episodes <= looked else None)
    assert final.trials == sum(outcome is not None for outcome in outcomes[: final.episodes])
    assert (final.verdict == "above") == (final.low > threshold) and (final.verdict == "below") == (
        final.high < threshold
    )


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_it_gives_up_where_nothing_left_could_decide(threshold: float) -> None:
    test = SequentialTest(threshold=threshold, alpha=0.2, episodes=10)
    for outcomes in product([True, False, None], repeat=6):
        decision = test.decide(outcomes)
        futures = [test.decide([*outcomes, *rest]) for rest in ([True] * 4, [False] * 4)]
        could = any(future is not None and future.verdict != "undecided" for future in futures)
        if decision is None:
            assert could
        elif decision.verdict == "undecided":
            assert not any(
                log_martingale(decision.successes + k, decision.trials + n, threshold) >= log(5)
                for n in range(11 - decision.episodes)
                for k in range(n + 1)
            )


def test_paired_trials_are_the_seeds_that_one_row_solved() -> None:
    assert paired_trials([True, True, False, False], [True, False, True, False]) == [None, True, False, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"threshold": 0.0}, "threshold=0.0"), ({"threshold": 1.0}, "threshold=1.0"), ({"alpha": 0.0}, "alpha=0.0"),
     ({"episodes": 0}, "episodes=0"), ({"episodes": 5}, "not even 5 equal outcomes")],
)  # fmt: skip
def test_what_cannot_be_tested_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequentialTest(**{"threshold": 0.5, "alpha": 0.05, "episodes": 100} | changes)
    with pytest.raises(ValueError, match="expected 0 <= successes <= trials"):
        confidence_sequence(3, 2, 0.05)

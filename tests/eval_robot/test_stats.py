"""Intervals and paired tests against independent formulas."""

from math import comb, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_robot.stats import mcnemar_exact, wilson_interval


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


@pytest.mark.parametrize(("successes", "episodes"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, episodes: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes <= episodes"):
        wilson_interval(successes, episodes)


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

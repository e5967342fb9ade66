"""How many tokens a step writes and at what temperature."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.egom2p.schedules import SCHEDULES, step_counts, step_temperatures


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 6000), st.integers(1, 40))
def test_counts_sum_to_the_tokens(schedule: str, tokens: int, steps: int) -> None:
    if steps > tokens:
        with pytest.raises(ValueError, match="steps: expected 1 to"):
            step_counts(schedule, tokens, steps)
        return
    try:
        counts = step_counts(schedule, tokens, steps)
    except ValueError as error:
        assert schedule == "cosine" and "schedule=linear" in str(error) and tokens < steps**3
        return
    assert len(counts) == steps and sum(counts) == tokens and min(counts) >= 0
    if schedule == "linear":
        assert list(counts) == sorted(counts, reverse=True) and max(counts) - min(counts) <= 1


def test_published_counts() -> None:
    assert step_counts("linear", 5120, 3) == (1707, 1707, 1706)
    assert step_counts("linear", 30, 5) == (6, 6, 6, 6, 6)
    assert step_counts("cosine", 210, 2) == (105, 105)
    # 0.5 (1 + cos(pi i / 4)) = 1, 0.854, 0.5, 0.146
    assert step_counts("cosine", 1000, 4) == (146, 354, 354, 146)


def test_temperatures() -> None:
    assert step_temperatures(0.01, "constant", (10, 10, 10)) == (0.01, 0.01, 0.01)
    assert step_temperatures(2.0, "linear", (5, 3, 2)) == pytest.approx((2.0, 1.0, 0.4))
    falling = step_temperatures(3.0, "onex:0.5:0.5", (4, 3, 2, 1))
    assert list(falling) == sorted(falling, reverse=True)
    assert falling[0] == pytest.approx(0.5 + 2.5 * 0.6) and falling[-1] == pytest.approx(0.5)
    assert step_temperatures(3.0, "onex:0.5:0.5", (1,)) == (0.5,)


@pytest.mark.parametrize(
    "spec", ["cosine", "onex", "onex:1", "onex:a:1", "onex:0.1:0.5:2", "onex:-1:1", "onex:0.1:nan"]
)
def test_unreadable_temperatures(spec: str) -> None:
    with pytest.raises(ValueError, match="temperature_schedule: expected constant, linear or onex:MIN:POWER"):
        step_temperatures(1.0, spec, (1,))


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="schedule: expected one of cosine, linear, got 'square'"):
        step_counts("square", 10, 2)

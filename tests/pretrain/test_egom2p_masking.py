"""Masking: budgets, disjointness, what small modalities and small clips do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.egom2p.masking import MaskingConfig, draw_masks, share_out

SIZES = st.dictionaries(
    st.sampled_from(["rgb", "depth", "gaze", "camera", "hands"]), st.integers(1, 400), min_size=1, max_size=5
)
BUDGETS = st.integers(1, 600)
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=200, deadline=None)
@given(SIZES, BUDGETS, BUDGETS, SEEDS)
def test_budgets_are_spent_and_never_exceeded(sizes: dict[str, int], n_in: int, n_out: int, seed: int) -> None:
    config = MaskingConfig(input_tokens=n_in, target_tokens=n_out)
    inputs, targets = draw_masks(sizes, config, np.random.default_rng(seed))
    seen, asked = (sum(map(len, part.values())) for part in (inputs, targets))
    total = sum(sizes.values())
    assert seen == min(n_in, total)
    assert asked == min(n_out, total - seen)


@settings(max_examples=200, deadline=None)
@given(SIZES, BUDGETS, BUDGETS, SEEDS)
def test_inputs_and_targets_are_disjoint_places_of_the_grid(
    sizes: dict[str, int], n_in: int, n_out: int, seed: int
) -> None:
    config = MaskingConfig(input_tokens=n_in, target_tokens=n_out)
    inputs, targets = draw_masks(sizes, config, np.random.default_rng(seed))
    for name, size in sizes.items():
        both = [*inputs.get(name, ()), *targets.get(name, ())]
        assert len(set(both)) == len(both)
        assert all(0 <= place < size for place in both)


@settings(max_examples=50, deadline=None)
@given(SIZES, SEEDS)
def test_the_same_seed_draws_the_same(sizes: dict[str, int], seed: int) -> None:
    config = MaskingConfig(input_tokens=100, target_tokens=100)
    one, two = (draw_masks(sizes, config, np.random.default_rng(seed)) for _ in range(2))
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_what_is_only_input_is_never_asked_for() -> None:
    config = MaskingConfig(input_tokens=20, target_tokens=20, only_input=("rgb",))
    for seed in range(50):
        _, targets = draw_masks({"rgb": 100, "depth": 100}, config, np.random.default_rng(seed))
        assert "rgb" not in targets and len(targets["depth"]) == 20


def test_small_alpha_concentrates_and_large_alpha_spreads() -> None:
    most = np.full(4, 1000)
    random = np.random.default_rng(0)
    top = {
        a: np.mean([share_out(400, most, a, random).max() / 400 for _ in range(300)]) for a in (0.01, 0.1, 1.0, 10.0)
    }
    assert top[0.01] > 0.95 > top[0.1] > top[1.0] > top[10.0]
    assert top[10.0] < 0.45


def test_modalities_are_equally_likely_to_be_favoured() -> None:
    random = np.random.default_rng(1)
    shares = np.mean([share_out(400, np.full(4, 1000), 0.1, random) for _ in range(2000)], axis=0)
    np.testing.assert_allclose(shares, 100, atol=10)


def test_the_published_budgets() -> None:
    """2048 of 10,300 tokens; a share that falls on 30 tokens of gaze is handed on, so the budget is spent."""
    sizes = {"rgb": 5120, "depth": 5120, "gaze": 30, "camera": 30}
    for seed in range(30):
        inputs, targets = draw_masks(sizes, MaskingConfig(), np.random.default_rng(seed))
        assert sum(map(len, inputs.values())) == 2048
        assert sum(map(len, targets.values())) == 2048


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="input_tokens"):
        MaskingConfig(input_tokens=0)
    with pytest.raises(ValueError, match="alphas"):
        MaskingConfig(alphas=(0.0,))
    with pytest.raises(ValueError, match="at least one modality"):
        draw_masks({}, MaskingConfig(), np.random.default_rng(0))

"""Aligned errors of relative depth, and the best plane."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.downstream.depth_errors import align, aligned_errors, best_plane, depth_errors


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 50), st.floats(-20, 20))
def test_a_scale_and_a_shift_of_the_inverse_are_forgiven_and_nothing_else(
    seed: int, scale: float, shift: float
) -> None:
    random = np.random.default_rng(seed)
    metres = random.uniform(0.3, 4, 200)
    guess = 1 / metres + 0.2 * random.normal(size=200)
    assert aligned_errors(scale / metres + shift, metres) == pytest.approx((0, 0, 1), abs=1e-4)
    assert aligned_errors(scale * guess + shift, metres) == pytest.approx(aligned_errors(guess, metres), rel=1e-6)
    # Of depth itself they are not.
    assert aligned_errors(-metres, metres)[0] > 0.01


def test_a_constant_is_the_mean_inverse_depth() -> None:
    metres = np.array([0.5, 1.0, 2.0])
    constant = np.full(3, 1 / np.mean(1 / metres))
    assert aligned_errors(np.full(3, 7.0), metres) == pytest.approx(depth_errors(constant, metres))


def test_the_best_plane_is_least_squares_and_exact_for_a_plane() -> None:
    random = np.random.default_rng(1)
    y, x = np.mgrid[0:12, 0:20]
    plane = 1 / (0.4 + 0.02 * x + 0.03 * y)
    metres = np.stack([plane] * 3)
    known = random.random(metres.shape) < 0.6
    spoilt = np.where(known, metres, 0.0)
    np.testing.assert_allclose(best_plane(spoilt, known), 1 / metres, rtol=1e-9)
    rough = metres * random.uniform(0.5, 2, metres.shape)
    terms = np.stack([np.ones(12 * 20), x.ravel(), y.ravel()], axis=1)
    rows = np.concatenate([terms] * 3)[known.ravel()]
    weights = np.linalg.lstsq(rows, 1 / rough[known], rcond=None)[0]
    found = best_plane(rough, known)
    np.testing.assert_allclose(found[0].ravel(), terms @ weights, rtol=1e-8)
    # It is its own alignment.
    np.testing.assert_allclose(align(found[known], 1 / rough[known]), found[known], rtol=1e-8)
    assert not best_plane(rough, np.zeros_like(known)).any()


@pytest.mark.parametrize(
    ("predicted", "metres", "message"),
    [
        (np.ones(3), np.ones(4), "as many predicted as true pixels"),
        (np.ones(0), np.ones(0), "as many predicted as true pixels"),
        (np.array([1, np.nan]), np.ones(2), "1 of 2 pixels are not finite"),
        (np.ones(2), np.array([1.0, 0.0]), "above 0 m"),
    ],
)
def test_bad_input_is_named(predicted: np.ndarray, metres: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aligned_errors(predicted, metres)

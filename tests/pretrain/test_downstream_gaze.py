"""Errors of gaze against scikit-learn and geometry, and its baselines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from sklearn.metrics import mean_squared_error

from pretrain.downstream import gaze

WINDOW = (20, 60, 100)
INTRINSICS = np.array([[90.0, 0, 110], [0, 80.0, 70], [0, 0, 1]])


def some_gaze(seed: int, samples: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (samples, 2))


def test_mse_is_scikit_learns_over_what_is_known_and_near_the_image() -> None:
    predicted, true = some_gaze(0), some_gaze(1)
    assert gaze.gaze_mse(predicted, true) == pytest.approx(mean_squared_error(true, predicted))
    true[3], true[10, 0], true[20, 1], true[30] = np.nan, 1.21, -0.21, (1.2, -0.2)
    kept = np.delete(np.arange(60), [3, 10, 20])
    assert gaze.valid_samples(true).sum() == 57
    assert gaze.gaze_mse(predicted, true) == pytest.approx(mean_squared_error(true[kept], predicted[kept]))
    assert np.isnan(gaze.gaze_mse(predicted, np.full((60, 2), np.nan)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-5, 5))
def test_the_angle_is_that_of_a_turned_ray(seed: int, degrees: float) -> None:
    """Each true ray turned about an axis across it."""
    random = np.random.default_rng(seed)
    true = gaze.pixels(some_gaze(seed, 10), WINDOW)
    rays = np.c_[true, np.ones(10)] @ np.linalg.inv(INTRINSICS).T
    axes = np.cross(rays, random.normal(size=(10, 3)))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    turned = Rotation.from_rotvec(np.radians(degrees) * axes).apply(rays) @ INTRINSICS.T
    predicted = turned[:, :2] / turned[:, 2:]
    assert gaze.gaze_angle_degrees(predicted, true, INTRINSICS, WINDOW) == pytest.approx(abs(degrees), abs=1e-9)


def test_the_angle_counts_the_samples_that_the_mse_counts() -> None:
    true = np.array([[110.0, 70.0], [np.nan, np.nan], [1000.0, 70.0]])
    predicted = np.array([[110.0, 150.0], [0.0, 0.0], [0.0, 0.0]])  # 80 px up at a focal length of 80
    assert gaze.gaze_angle_degrees(predicted, true, INTRINSICS, WINDOW) == pytest.approx(45)
    assert np.isnan(gaze.gaze_angle_degrees(predicted[1:], true[1:], INTRINSICS, WINDOW))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_window_coordinates_and_back(seed: int) -> None:
    place = some_gaze(seed)
    place[0] = np.nan
    np.testing.assert_allclose(gaze.normalised(gaze.pixels(place, WINDOW), WINDOW), place, atol=1e-12)
    np.testing.assert_allclose(gaze.normalised(np.array([[60.0, 20.0], [160.0, 120.0]]), WINDOW), [[0, 0], [1, 1]])


def test_baselines() -> None:
    clips = [some_gaze(seed) for seed in range(3)]
    clips[0][:5], clips[1][:] = np.nan, np.nan
    clips[2] = clips[2][:10]
    mean = (clips[0][5:].mean(axis=0) + clips[2].mean(axis=0)) / 2
    np.testing.assert_allclose(gaze.mean_gaze(clips), mean)
    with pytest.raises(ValueError, match="none of 1 clips"):
        gaze.mean_gaze(clips[1:2])
    held = gaze.first_fixation(clips[0])
    np.testing.assert_array_equal(held, np.tile(clips[0][5], (60, 1)))
    np.testing.assert_array_equal(gaze.first_fixation(clips[1]), gaze.image_centre(60))
    # The best constant in this measure is the mean of the clip itself.
    own = np.tile(clips[2].mean(axis=0), (10, 1))
    assert gaze.gaze_mse(own, clips[2]) <= gaze.gaze_mse(gaze.image_centre(10), clips[2])


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (np.zeros((5, 2)), np.zeros((6, 2)), "5 predicted samples for 6 true ones"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "5 of 5 samples are not finite"),
        (np.zeros((5, 3)), np.zeros((5, 2)), r"predicted gaze: expected \[P, 2\]"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "P of 1 or more"),
    ],
)
def test_bad_input_is_named(predicted: np.ndarray, true: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaze.gaze_mse(predicted, true)
    with pytest.raises(ValueError, match=message):
        gaze.gaze_angle_degrees(predicted, true, INTRINSICS, WINDOW)


def test_bad_geometry_is_named() -> None:
    with pytest.raises(ValueError, match="pinhole matrix"):
        gaze.gaze_angle_degrees(some_gaze(0), some_gaze(1), np.eye(4), WINDOW)
    with pytest.raises(ValueError, match="side 0 px"):
        gaze.normalised(some_gaze(0), (0, 0, 0))

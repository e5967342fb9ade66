"""Visual odometry on a rendered room whose camera is known, and on images that tell nothing."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pretrain.downstream.trajectory import (
    FIRST_FRAME,
    SIM3,
    inverse,
    path_length,
    rotation_angle_degrees,
    still_camera,
    trajectory_errors,
)
from pretrain.downstream.visual_odometry import (
    VisualOdometryConfig,
    at_rate,
    estimate_trajectory,
    fit_path_length,
    with_path_length,
)

SIZE, FRAMES = 128, 16
INTRINSICS = np.array([[100.0, 0, SIZE / 2], [0, 100.0, SIZE / 2], [0, 0, 1]])
TIMES = np.arange(FRAMES) / 8


def render(world_from_camera: np.ndarray, seed: int = 0) -> np.ndarray:
    """A wall at 2 m with a board before its right half at 1 m, both with random patterns; pixel centres at +0.5."""
    random = np.random.default_rng(seed)
    patterns = [cv2.GaussianBlur(random.integers(0, 256, (600, 600), np.uint8), (0, 0), 2.0) for _ in range(2)]
    patterns = [cv2.normalize(pattern, None, 0, 255, cv2.NORM_MINMAX) for pattern in patterns]
    x, y = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(INTRINSICS).T
    images = []
    for pose in world_from_camera:
        directions = rays @ pose[:3, :3].T
        layers = []
        for depth, pattern, per_metre in ((2.0, patterns[0], 110.0), (1.0, patterns[1], 220.0)):
            hit = pose[:3, 3] + directions * ((depth - pose[2, 3]) / directions[..., 2])[..., None]
            place = (hit[..., :2] * per_metre + 300).astype(np.float32)
            layers.append((hit, cv2.remap(pattern, place[..., 0], place[..., 1], cv2.INTER_LINEAR)))
        board = layers[1][0][..., 0] > 0.05
        images.append(np.where(board, layers[1][1], layers[0][1]))
    return np.repeat(np.stack(images)[..., None], 3, axis=-1).astype(np.uint8)


def sway(metres: float, degrees: float) -> np.ndarray:
    """Sidewards and up along an arc while the head turns."""
    poses, phase = still_camera(FRAMES), np.linspace(0, 1, FRAMES)
    poses[:, 0, 3] = metres * np.sin(np.pi / 2 * phase)
    poses[:, 1, 3] = -metres * (1 - np.cos(np.pi / 2 * phase))
    turn = np.radians(degrees) * np.c_[0.3 * phase, phase, 0.2 * phase]
    poses[:, :3, :3] = Rotation.from_rotvec(turn).as_matrix()
    return poses


def test_a_moving_camera_is_found_up_to_scale() -> None:
    true = sway(0.3, 15)
    found = estimate_trajectory(render(true), INTRINSICS)
    np.testing.assert_array_equal(found.world_from_camera[0], np.eye(4))
    assert found.moved and found.lost == 0 and found.seconds > 0
    similar = trajectory_errors(found.world_from_camera, true, SIM3)
    still = trajectory_errors(still_camera(FRAMES), true, SIM3)
    assert similar.ate_m < 0.1 * still.ate_m
    assert similar.rre_degrees < 0.5 * still.rre_degrees
    again = estimate_trajectory(render(true), INTRINSICS)
    np.testing.assert_array_equal(again.world_from_camera, found.world_from_camera)


def test_the_median_keeps_the_scale_of_uneven_steps_and_unit_does_not() -> None:
    true = sway(0.3, 4)
    true[:, :3, 3] *= np.linspace(0, 1, FRAMES)[:, None]  # ever faster
    rgb = render(true)
    # Each frame a keyframe, so that the steps are uneven.
    errors = {
        scale: trajectory_errors(
            estimate_trajectory(rgb, INTRINSICS, VisualOdometryConfig(scale=scale, parallax_px=0.3)).world_from_camera,
            true,
            SIM3,
        ).ate_m
        for scale in ("median", "unit")
    }
    assert errors["median"] < 0.5 * errors["unit"]


def test_a_turning_camera_does_not_move() -> None:
    true = sway(0.0, 10)
    found = estimate_trajectory(render(true), INTRINSICS)
    assert not found.moved and path_length(found.world_from_camera) == 0
    error = inverse(found.world_from_camera) @ true
    assert rotation_angle_degrees(error[:, :3, :3]).max() < 0.1


def test_what_tells_nothing_is_a_still_camera_and_counted() -> None:
    gray = np.full((4, 64, 64, 3), 128, np.uint8)
    found = estimate_trajectory(gray, INTRINSICS)
    np.testing.assert_array_equal(found.world_from_camera, still_camera(4))
    assert found.lost == 3 and not found.moved
    # A cut: the second half shows another place.
    true = sway(0.2, 5)
    rgb = np.concatenate([render(true)[:8], np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)])
    found = estimate_trajectory(rgb, INTRINSICS)
    assert found.lost > 3
    assert np.isfinite(found.world_from_camera).all()


def test_poses_at_the_rate_of_the_truth_and_a_length_for_the_path() -> None:
    true = sway(0.3, 8)
    found = estimate_trajectory(render(true), INTRINSICS)
    dense = at_rate(found, TIMES + 5.0, 60, 30.0)
    assert dense.shape == (60, 4, 4)
    # Every fourth sample of 30 Hz is at half of the times of 8 Hz: 0, 0.25 s, ...
    np.testing.assert_allclose(dense[:60:15], found.world_from_camera[:16:4], atol=1e-12)
    metric = with_path_length(found.world_from_camera, 0.25)
    assert path_length(metric) == pytest.approx(0.25)
    np.testing.assert_array_equal(with_path_length(still_camera(5), 1.0), still_camera(5))
    length = fit_path_length([found.world_from_camera, metric], [true, true])
    assert length == pytest.approx(path_length(true), rel=0.1)
    scaled = trajectory_errors(with_path_length(metric, length), true, FIRST_FRAME)
    assert scaled.ate_m < 0.2 * trajectory_errors(still_camera(FRAMES), true, FIRST_FRAME).ate_m
    assert fit_path_length([found.world_from_camera], [still_camera(FRAMES)]) == 0
    assert fit_path_length([still_camera(4)], [still_camera(4)]) == 0
    with pytest.raises(ValueError, match="expected as many of both"):
        fit_path_length([], [])


@pytest.mark.parametrize(
    ("rgb", "intrinsics", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), INTRINSICS, "T of 2 or more"),
        (np.zeros((2, 8, 8, 3), np.float32), INTRINSICS, "expected uint8"),
        (np.zeros((2, 8, 8), np.uint8), INTRINSICS, "expected uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.eye(4), "pinhole matrix"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.nan * INTRINSICS, "pinhole matrix"),
    ],
)
def test_bad_input_is_named(rgb: np.ndarray, intrinsics: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_trajectory(rgb, intrinsics)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"features": 0}, "features=0"), ({"scale": "best"}, "median, unit"), ({"least_tracks": 4}, "least_tracks=4")],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisualOdometryConfig(**settings)

"""Errors of camera trajectories against evo, and what each alignment must forgive and must not."""

import numpy as np
import pytest
from evo.core import metrics
from evo.core.trajectory import PosePath3D
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pretrain.downstream.trajectory import (
    ALIGNMENTS,
    FIRST_FRAME,
    SE3,
    SIM3,
    TrajectoryErrors,
    interpolate_poses,
    inverse,
    mean_motion,
    path_length,
    relative_to_first,
    rotation_angle_degrees,
    still_camera,
    trajectory_errors,
    umeyama,
)

SEEDS = st.integers(0, 2**32 - 1)


def random_trajectory(seed: int, poses: int = 20, *, turn: float = 0.1, move: float = 0.05) -> np.ndarray:
    random = np.random.default_rng(seed)
    trajectory = still_camera(poses)
    trajectory[:, :3, :3] = Rotation.from_rotvec(np.cumsum(turn * random.normal(size=(poses, 3)), axis=0)).as_matrix()
    trajectory[:, :3, 3] = np.cumsum(move * random.normal(size=(poses, 3)), axis=0)
    return trajectory


def random_motion(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.random(random_state=int(random.integers(2**31))).as_matrix()
    motion[:3, 3] = random.normal(size=3)
    return motion


def near(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An estimate in a frame of its own, and the truth."""
    true = random_trajectory(seed)
    noise = random_trajectory(seed + 1, turn=0.02, move=0.01)
    return random_motion(seed + 2) @ true @ noise, true


def figures(errors: TrajectoryErrors) -> tuple[float, float, float]:
    return errors.ate_m, errors.rte_m, errors.rre_degrees


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_errors_are_those_of_evo(seed: int, alignment: str) -> None:
    estimated, true = near(seed) if seed % 2 else (random_trajectory(seed), random_trajectory(seed + 100))
    reference, path = PosePath3D(poses_se3=list(true)), PosePath3D(poses_se3=list(estimated))
    if alignment == FIRST_FRAME:
        path.align_origin(reference)
    else:
        path.align(reference, correct_scale=alignment == SIM3)
    absolute = metrics.APE(metrics.PoseRelation.translation_part)
    moved = metrics.RPE(metrics.PoseRelation.translation_part, delta=1, delta_unit=metrics.Unit.frames)
    turned = metrics.RPE(metrics.PoseRelation.rotation_angle_deg, delta=1, delta_unit=metrics.Unit.frames)
    expected = []
    for metric in (absolute, moved, turned):
        metric.process_data((reference, path))
        expected.append(metric.get_statistic(metrics.StatisticsType.rmse))
    errors = trajectory_errors(estimated, true, alignment)
    assert figures(errors) == pytest.approx(expected, rel=1e-7)
    assert errors.alignment == alignment


def test_longer_steps_are_those_of_evo() -> None:
    estimated, true = near(3)
    moved = metrics.RPE(metrics.PoseRelation.translation_part, delta=5, delta_unit=metrics.Unit.frames, all_pairs=True)
    moved.process_data((PosePath3D(poses_se3=list(true)), PosePath3D(poses_se3=list(estimated))))
    expected = moved.get_statistic(metrics.StatisticsType.rmse)
    assert trajectory_errors(estimated, true, FIRST_FRAME, step=5).rte_m == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.1, 10))
def test_each_alignment_forgives_its_group_and_equal_trajectories_have_no_error(seed: int, scale: float) -> None:
    estimated, true = near(seed)
    motion = random_motion(seed + 3)
    scaled = estimated.copy()
    scaled[:, :3, 3] *= scale
    for alignment in ALIGNMENTS:
        assert figures(trajectory_errors(true, true, alignment)) == pytest.approx((0, 0, 0), abs=1e-7)
        errors = trajectory_errors(estimated, true, alignment)
        # A motion of either world changes nothing.
        assert figures(trajectory_errors(motion @ estimated, true, alignment)) == pytest.approx(figures(errors))
        assert figures(trajectory_errors(estimated, motion @ true, alignment)) == pytest.approx(figures(errors))
        # A scale does, unless the alignment is Sim(3), whose own scale takes it away.
        again = trajectory_errors(scaled, true, alignment)
        if alignment == SIM3:
            assert figures(again) == pytest.approx(figures(errors), rel=1e-6)
            assert again.scale == pytest.approx(errors.scale / scale)
        else:
            assert errors.scale == 1


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_more_freedom_is_never_worse_and_leaves_relative_motion_alone(seed: int) -> None:
    estimated, true = random_trajectory(seed), random_trajectory(seed + 1)
    first, rigid, similar = (trajectory_errors(estimated, true, alignment) for alignment in ALIGNMENTS)
    assert similar.ate_m <= rigid.ate_m + 1e-12 and rigid.ate_m <= first.ate_m + 1e-12
    assert first.rte_m == pytest.approx(rigid.rte_m)
    assert first.rre_degrees == pytest.approx(rigid.rre_degrees) == pytest.approx(similar.rre_degrees)
    # Why Sim(3) alone says little: any estimate is at least as good as no motion.
    still = trajectory_errors(still_camera(len(true)), true, SIM3)
    assert similar.ate_m <= still.ate_m + 1e-12


def test_the_least_squares_of_umeyama_by_search() -> None:
    random = np.random.default_rng(0)
    source, target = random.normal(size=(12, 3)), random.normal(size=(12, 3))
    rotation, translation, scale = umeyama(source, target, with_scale=True)

    def loss(turn: np.ndarray, c: float, t: np.ndarray) -> float:
        return float(((target - (c * source @ turn.T + t)) ** 2).sum())

    least = loss(rotation, scale, translation)
    assert np.linalg.det(rotation) == pytest.approx(1)
    for _ in range(200):
        turn = Rotation.from_rotvec(0.05 * random.normal(size=3)).as_matrix() @ rotation
        assert loss(turn, scale * (1 + 0.05 * random.normal()), translation + 0.05 * random.normal(size=3)) >= least
    mirrored, _, _ = umeyama(source, source * (-1, 1, 1), with_scale=False)
    assert np.linalg.det(mirrored) == pytest.approx(1)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_camera_that_stands_still_or_moves_on_a_line_has_figures(alignment: str) -> None:
    true = random_trajectory(5)
    still = trajectory_errors(random_motion(1) @ still_camera(len(true)), true, alignment)
    step = np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1)
    assert still.rte_m == pytest.approx(np.sqrt(np.mean(step**2)))
    spread = true[:, :3, 3] - (true[0, :3, 3] if alignment == FIRST_FRAME else true[:, :3, 3].mean(axis=0))
    assert still.ate_m == pytest.approx(np.sqrt((spread**2).sum(axis=1).mean()))
    line = still_camera(10)
    line[:, 0, 3] = np.arange(10)
    assert trajectory_errors(random_motion(2) @ line, line, alignment).ate_m == pytest.approx(0, abs=1e-6)
    assert np.isfinite(figures(trajectory_errors(true, still_camera(len(true)), alignment))).all()


def test_by_hand() -> None:
    true, estimated = still_camera(3), still_camera(3)
    true[:, 0, 3] = (0, 1, 2)
    estimated[:, 0, 3] = (0, 1, 5)
    estimated[2, :3, :3] = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    errors = trajectory_errors(estimated, true, FIRST_FRAME)
    assert figures(errors) == pytest.approx((3 / np.sqrt(3), 3 / np.sqrt(2), 30 / np.sqrt(2)))
    assert trajectory_errors(estimated, true, SE3).ate_m == pytest.approx(np.sqrt(2))


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.floats(0, 179.9999))
def test_angles_are_exact_down_to_small_ones(seed: int, degrees: float) -> None:
    axis = np.random.default_rng(seed).normal(size=3)
    rotation = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    assert rotation_angle_degrees(rotation[None])[0] == pytest.approx(degrees, rel=1e-6, abs=1e-12)


def test_mean_motion_is_the_mean_about_the_first_frame() -> None:
    trajectory = random_trajectory(0)
    moved = np.stack([random_motion(seed) @ trajectory for seed in range(3)])
    np.testing.assert_allclose(mean_motion(moved), relative_to_first(trajectory), atol=1e-12)
    left, right = still_camera(2), still_camera(2)
    left[1, :3, :3] = Rotation.from_euler("y", 20, degrees=True).as_matrix()
    right[1, :3, :3] = Rotation.from_euler("y", 60, degrees=True).as_matrix()
    left[1, 2, 3] = 1.0
    mean = mean_motion(np.stack([left, right]))
    np.testing.assert_allclose(
        Rotation.from_matrix(mean[1, :3, :3]).as_euler("yxz", degrees=True), (40, 0, 0), atol=1e-9
    )
    assert mean[1, 2, 3] == 0.5 and path_length(mean) == 0.5
    np.testing.assert_allclose(inverse(mean) @ mean, still_camera(2), atol=1e-12)
    with pytest.raises(ValueError, match="no trajectory"):
        mean_motion(np.zeros((0, 3, 4, 4)))


def test_interpolation_is_exact_for_a_steady_motion_and_goes_on_for_one_step() -> None:
    step = np.eye(4)
    step[:3, :3], step[:3, 3] = Rotation.from_euler("y", 3, degrees=True).as_matrix(), 0
    fine = np.stack([np.linalg.matrix_power(step, number) for number in range(61)])
    fine[:, 0, 3] = np.arange(61) * 0.01
    times = np.arange(61) / 30
    coarse = interpolate_poses(fine[:57:4], times[:57:4], times[:61])
    np.testing.assert_allclose(coarse[:, :3, :3], fine[:, :3, :3], atol=1e-12)
    np.testing.assert_allclose(coarse[:57, :3, 3], fine[:57, :3, 3], atol=1e-12)
    with pytest.raises(ValueError, match="cannot say where the camera was"):
        interpolate_poses(fine[:50], times[:50], times)
    with pytest.raises(ValueError, match="increasing times"):
        interpolate_poses(fine, times[::-1], times)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, t: (e[:-1], t), "19 estimated poses for 20 true ones"),
        (lambda e, t: (e[:1], t[:1]), r"expected \[n, 4, 4\] with n of 2 or more"),
        (lambda e, t: (e[:, :3], t), r"expected \[n, 4, 4\]"),
        (lambda e, t: (e * np.nan, t), "estimated trajectory: pose 0"),
        (lambda e, t: (e, t * 1.1), "true trajectory: pose 0"),
        (lambda e, t: (e * (1, 1, -1, 1), t), "is no rigid motion"),
    ],
)
def test_bad_input_is_named(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trajectory_errors(*change(random_trajectory(0), random_trajectory(1)), FIRST_FRAME)


def test_bad_settings_are_named() -> None:
    true = random_trajectory(1)
    with pytest.raises(ValueError, match="expected one of first-frame"):
        trajectory_errors(true, true, "umeyama")
    with pytest.raises(ValueError, match="step=20 of 20 poses"):
        trajectory_errors(true, true, SE3, step=20)

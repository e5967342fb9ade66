"""Arithmetic of recordings: poses and gaze at other times, the square of a picture, pictures that are turned upright."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pretrain.clips.sources.recording import (
    CutOptions,
    ImageFrames,
    Recording,
    corner_intrinsics,
    count_clips,
    cut_clips,
    turned_camera,
    turned_intrinsics,
    turned_points,
)
from pretrain.clips.sources.resample import (
    GAZE_MISSING,
    POSE_GAP,
    POSE_NOT_FINITE,
    POSE_NOT_RIGID,
    RecordingError,
    centre_square,
    inverse_poses,
    is_rigid,
    resample_gaze,
    resample_poses,
)
from pretrain.clips.video import FRAMES_MISSING, TIME_OUTSIDE, VIDEO_MISSING, VideoError

sizes = st.integers(2, 40)


def turning(times_s: np.ndarray, axis: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """A camera that turns about an axis (radians a second its length) and moves, both evenly."""
    poses = np.tile(np.eye(4), (len(times_s), 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(times_s[:, None] * axis).as_matrix()
    poses[:, :3, 3] = times_s[:, None] * speed
    return poses


@given(st.integers(0, 2**32 - 1), st.integers(4, 60), st.floats(5, 90))
@settings(max_examples=60, deadline=None)
def test_an_even_motion_is_resampled_exactly(seed, samples, hz):
    random = np.random.default_rng(seed)
    times_s = np.cumsum(random.uniform(0.01, 0.06, samples))
    axis, speed = random.normal(size=3), random.normal(size=3)
    at_s = np.arange(times_s[0], times_s[-1], 1 / hz)
    found = resample_poses(times_s, turning(times_s, axis, speed), at_s, 0.1)
    assert np.allclose(found, turning(at_s, axis, speed), atol=1e-9) and is_rigid(found).all()
    assert np.allclose(resample_poses(times_s, found_at := turning(times_s, axis, speed), times_s, 0.1), found_at)


def test_only_poses_that_are_used_are_looked_at():
    times_s = np.arange(90) / 30
    poses = turning(times_s, np.asarray([0.1, 0.2, 0.3]), np.ones(3))
    poses[:10] = np.nan
    poses[75:] *= 2
    at_s = 0.5 + np.arange(60) / 30
    assert np.isfinite(resample_poses(times_s, poses, at_s, 0.1)).all()
    for at, reason in (
        (at_s - 0.4, POSE_NOT_FINITE),
        (at_s + 0.2, POSE_NOT_RIGID),
        (at_s + 1, POSE_GAP),
        (at_s - 1, POSE_GAP),
    ):
        with pytest.raises(RecordingError) as caught:
            resample_poses(times_s, poses, at, 0.1)
        assert caught.value.reason == reason
    kept = np.r_[0:30, 34:90]
    with pytest.raises(RecordingError, match=POSE_GAP):
        resample_poses(times_s[kept], poses[kept], at_s, 0.15)
    assert len(resample_poses(times_s[kept], poses[kept], at_s, 0.18)) == 60
    # A little before the first and after the last counts as these.
    ends = resample_poses(times_s[20:40], poses[20:40], np.asarray([19.6, 39.4]) / 30, 0.1)
    assert np.allclose(ends, poses[[20, 39]])
    # A clip of one sample at a pose needs no other.
    assert np.allclose(resample_poses(times_s[20:21], poses[20:21], times_s[20:21], 0.1), poses[20:21])


@pytest.mark.parametrize(
    "wrong", [np.diag([1.0, 1, -1, 1]), np.diag([1.01, 1, 1, 1]), np.diag([1.0, 1, 1, 2]), np.zeros((4, 4))]
)
def test_what_is_no_rigid_motion(wrong):
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[1] = wrong
    assert is_rigid(poses).tolist() == [True, False, True]


def test_rounded_rotations_come_out_orthonormal():
    times_s = np.arange(4) / 30
    poses = np.round(turning(times_s, np.asarray([1.0, 2.0, 3.0]), np.zeros(3)), 4)
    rotation = resample_poses(times_s, poses, times_s, 0.1)[:, :3, :3]
    assert np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12


def test_inverse_poses():
    poses = turning(np.arange(3.0), np.asarray([0.3, 0.2, 0.1]), np.ones(3))
    poses[1] = np.nan
    inverse = inverse_poses(poses)
    assert np.allclose(inverse[2] @ poses[2], np.eye(4)) and np.isnan(inverse[1]).all()
    assert np.isnan(inverse_poses(np.zeros((1, 4, 4)))).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0.001, 0.2))
@settings(max_examples=60, deadline=None)
def test_gaze_is_that_of_the_nearest_sample(seed, samples, max_gap_s):
    random = np.random.default_rng(seed)
    times_s = np.cumsum(random.uniform(0.01, 0.2, samples))
    points = random.uniform(0, 100, (samples, 2)).astype(np.float32)
    points[random.uniform(size=samples) < 0.3] = np.nan
    at_s = random.uniform(-0.1, times_s[-1] + 0.1, 20)
    distances = np.abs(at_s[:, None] - times_s)
    expected = points[distances.argmin(1)]
    expected[distances.min(1) > max_gap_s] = np.nan
    if np.isnan(expected).all():
        with pytest.raises(RecordingError, match=GAZE_MISSING):
            resample_gaze(times_s, points, at_s, max_gap_s)
    else:
        assert np.array_equal(resample_gaze(times_s, points, at_s, max_gap_s), expected, equal_nan=True)


def test_half_a_gaze_point_is_a_gap():
    gaze = resample_gaze(np.arange(2.0), np.asarray([[1, np.nan], [2, 3]], np.float32), np.arange(2.0), 0.1)
    assert np.isnan(gaze[0]).all() and gaze[1].tolist() == [2, 3]


@given(sizes, sizes, st.integers(0, 50), st.integers(1, 30))
@settings(max_examples=80, deadline=None)
def test_a_point_keeps_its_place_in_the_square(height, width, side, size):
    square = centre_square(height, width, side)
    assert square.side <= min(height, width) and 0 <= square.left <= width - square.side
    matrix = np.asarray([[50.0, 0, 0.4 * width], [0, 60, 0.6 * height], [0, 0, 1]])
    point = np.asarray([0.2, -0.1, 2.0])
    seen = (matrix @ point)[:2] / point[2]
    moved = square.map_intrinsics(matrix, size) @ point
    assert np.allclose(moved[:2] / point[2], square.map_points(seen[None].astype(np.float32), size)[0], atol=1e-4)
    # A map whose pixels say where they are, at twice the resolution.
    rows, columns = np.mgrid[0 : 2 * height, 0 : 2 * width] / 2 + 0.25
    for map_, left in ((rows, square.top), (columns, square.left)):
        found = square.sample_map(map_.astype(np.float32), size)
        wanted = left + (np.arange(size) + 0.5) * square.side / size
        assert np.abs((found[:, 0] if map_ is rows else found[0]) - wanted).max() <= 0.25 + 1e-4


@given(st.integers(0, 7), st.integers(30, 60), st.integers(30, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_turned_camera_sees_what_the_turned_picture_shows(turns, width, height, seed):
    random = np.random.default_rng(seed)
    matrix = np.asarray([[40.0, 0, 0.45 * width], [0, 44, 0.55 * height], [0, 0, 1]])
    points = random.uniform((-0.2, -0.2, 1), (0.2, 0.2, 2), (5, 3))
    pixels = (points @ matrix.T)[:, :2] / points[:, 2:]
    upright = points @ turned_camera(turns)[:3, :3]  # the inverse of a rotation, on rows
    turned = upright @ turned_intrinsics(matrix, turns, width, height).T
    assert np.allclose(turned[:, :2] / turned[:, 2:], turned_points(pixels, turns, width, height))
    image = np.zeros((height, width), bool)
    column, row = pixels[0].astype(int)
    image[row, column] = True
    ((row, column),) = np.argwhere(np.rot90(image, turns))
    assert np.abs(turned_points(pixels, turns, width, height)[0] - (column + 0.5, row + 0.5)).max() <= 0.5


def test_a_turned_picture_is_cut_upright(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = (0, 0, 255)  # OpenCV's red on the right as stored: on top after a counter-clockwise turn
    paths = []
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
        paths.append(tmp_path / f"{index}.png")
    depth = np.where(np.arange(60) < 30, 1.0, 2.0)[None].repeat(40, 0).astype(np.float32)
    recording = Recording(
        name="turned",
        frames=ImageFrames(paths=tuple(paths), times_s=np.arange(4) / 4),
        start_s=0.0,
        end_s=1.0,
        gaze_s=np.arange(4) / 4,
        gaze_px=np.full((4, 2), 20, np.float32),
        depth=lambda time_s: depth,
        rotate_quarter_turns=1,
    )
    (clip,) = cut_clips(recording, clip_s=1.0, frames=4, image_size=40, max_frame_gap_s=0.3, max_gaze_gap_s=1.0)
    assert (clip.rgb[:, :15] == (255, 0, 0)).all() and (clip.rgb[:, 25:] == 0).all()
    assert (clip.depth[:, :15] == 2).all() and (clip.depth[:, 25:] == 1).all()
    # 40 x 60 upright, the square starts 10 down.
    assert clip.gaze[0].tolist() == [20, 10] and clip.gaze.shape == (30, 2)
    assert clip.intrinsics is None and "dropped" not in clip.meta


def test_images_by_time(tmp_path):
    paths = tuple(tmp_path / f"{index}.png" for index in range(3))
    frames = ImageFrames(paths=paths, times_s=np.asarray([1.0, 1.1, 1.5]))
    for times_s, reason in (
        ([0.9], TIME_OUTSIDE),
        ([1.0, 1.4], FRAMES_MISSING),
        ([1.9], TIME_OUTSIDE),
        ([1.05], VIDEO_MISSING),
    ):
        with pytest.raises(VideoError) as caught:
            frames.read(np.asarray(times_s), 0.2)
        assert caught.value.reason == reason


def test_recordings_that_do_not_fit_are_refused(tmp_path):
    frames = ImageFrames(paths=(tmp_path / "a.png",), times_s=np.zeros(1))
    poses = np.tile(np.eye(4), (2, 1, 1))
    for given_, message in (
        ({"poses_s": np.zeros(2), "world_from_camera": poses}, "poses: the times do not increase"),
        ({"poses_s": np.asarray([0, np.nan]), "world_from_camera": poses}, "poses: the times do not increase"),
        ({"poses_s": np.arange(3.0), "world_from_camera": poses}, r"poses: times \(3,\) and values \(2, 4, 4\)"),
        ({"gaze_s": np.arange(3.0)}, r"gaze: times \(3,\) and values None"),
        ({"end_s": np.inf}, "it lasts from 0.0 to inf s"),
    ):
        with pytest.raises(RecordingError, match=message):
            Recording(**{"name": "a", "frames": frames, "start_s": 0.0, "end_s": 1.0, **given_})
    for matrix in (np.diag([1.0, 0, 1]), np.full((3, 3), np.nan), np.eye(4), np.eye(3) + np.eye(3)[::-1]):
        with pytest.raises(RecordingError, match="not a pinhole matrix"):
            corner_intrinsics(matrix)
    whole = Recording(name="a", frames=frames, start_s=10.0, end_s=15.9999)
    assert [count_clips(whole, clip_s) for clip_s in (2.0, 6.0, 7.0)] == [3, 1, 0]
    (only,) = cut_clips(whole, clip_s=7.0)
    assert only.reason == "recording shorter than a clip"
    for change, message in (
        ({"frames": 0}, "frames=0"),
        ({"clip_s": float("nan")}, "clip_s=nan"),
        ({"pose_hz": 0.0}, "pose_hz=0"),
    ):
        with pytest.raises(ValueError, match=message):
            CutOptions(**change)

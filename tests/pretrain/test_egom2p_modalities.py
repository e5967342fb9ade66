"""The table of modalities: camera code, and clips to arrays and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pretrain.clips.schema import Clip
from pretrain.egom2p.camera import check_poses, poses_from_9d, poses_to_9d, relative_to_first
from pretrain.egom2p.modalities import MODALITIES, PUBLISHED, VIDEO, ModalityMissing, TokenGrid, require_modalities

SEEDS = st.integers(0, 2**32 - 1)


def random_poses(seed: int, count: int = 60) -> np.ndarray:
    random = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, random_state=random).as_matrix()
    poses[:, :3, 3] = random.normal(size=(count, 3))
    return poses


def make_clip(seed: int = 0, height: int = 48, width: int = 64, **changes: object) -> Clip:
    random = np.random.default_rng(seed)
    values: dict[str, object] = {
        "key": "clip",
        "rgb": random.integers(0, 256, (16, height, width, 3), dtype=np.uint8),
        "rgb_times_s": np.arange(16) / 8.0,
        "depth": random.uniform(0.3, 3, (16, height, width)).astype(np.float32),
        "world_from_camera": random_poses(seed),
        "gaze": random.uniform((0, 0), (width, height), (60, 2)).astype(np.float32),
        "hands": random.normal(size=(60, 2, 21, 3)).astype(np.float32),
    }
    return Clip(**{**values, **changes})  # pyright: ignore[reportArgumentType]


# ------------------------------------------------------------------------------------------------------------ camera


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_camera_code_round_trip(seed: int) -> None:
    poses = torch.from_numpy(random_poses(seed))
    torch.testing.assert_close(poses_from_9d(poses_to_9d(poses)), poses, atol=1e-9, rtol=0)


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_any_nine_numbers_are_a_rigid_motion(seed: int) -> None:
    code = torch.from_numpy(np.random.default_rng(seed).normal(size=(40, 9)))
    check_poses(poses_from_9d(code))


@pytest.mark.parametrize("code", [[0.0] * 9, [1, 0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, -2, 1, 1, 1]])
def test_degenerate_rotations_become_some_rotation(code: list[float]) -> None:
    poses = poses_from_9d(torch.tensor([code], dtype=torch.float64))
    check_poses(poses)
    assert poses[0, :3, 3].tolist() == code[6:]


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_relative_poses_do_not_see_the_world(seed: int) -> None:
    """Moving the whole world changes nothing; the first pose becomes the identity; doing it twice is doing it once."""
    poses = torch.from_numpy(random_poses(seed))
    moved = torch.from_numpy(random_poses(seed + 1, 1)) @ poses
    relative = relative_to_first(poses)
    torch.testing.assert_close(relative, torch.linalg.inv(poses[:1]) @ poses, atol=1e-9, rtol=0)
    torch.testing.assert_close(relative_to_first(moved), relative, atol=1e-9, rtol=0)
    torch.testing.assert_close(relative_to_first(relative), relative, atol=1e-9, rtol=0)
    torch.testing.assert_close(relative[0], torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)


def test_what_is_no_rigid_motion_is_refused() -> None:
    poses = torch.from_numpy(random_poses(0))
    for break_it in (lambda p: p[3, :3, :3].mul_(1.1), lambda p: p[3, 0].neg_(), lambda p: p[3].fill_(float("nan"))):
        broken = poses.clone()
        break_it(broken)
        with pytest.raises(ValueError, match="number 3"):
            relative_to_first(broken)
    with pytest.raises(ValueError, match="4, 4"):
        check_poses(poses[:, :3])


# ------------------------------------------------------------------------------------------------------------- table


@pytest.mark.parametrize("name", MODALITIES)
def test_arrays_have_the_shape_and_range_of_their_row(name: str) -> None:
    row = MODALITIES[name]
    array = row.to_array(make_clip(), 32)
    assert array.dtype == np.float32 and array.shape == row.input_shape(32)
    assert np.isfinite(array).all()
    if row.kind == VIDEO or name == "gaze":
        assert array.min() >= -1.5 and array.max() <= 1.5


@pytest.mark.parametrize("name", MODALITIES)
def test_a_perfect_tokenizer_gives_the_clip_back(name: str) -> None:
    """to_physical of to_array is what the clip says, in its units."""
    row, clip = MODALITIES[name], make_clip(height=64)
    array = row.to_array(clip, 64)
    kept = array[: row.decoded_channels] if row.kind == VIDEO else array[:, : row.decoded_channels]
    physical = row.to_physical(kept, {"image": (64, 64)})
    assert clip.world_from_camera is not None and clip.hands is not None
    first = clip.world_from_camera[0]
    expected = {
        "rgb": lambda: clip.rgb,
        "depth": lambda: _inverse(clip.depth),
        "gaze": lambda: clip.gaze,
        "camera": lambda: np.linalg.inv(first) @ clip.world_from_camera,
        "hands": lambda: (clip.hands - first[:3, 3]) @ first[:3, :3],
    }[name]()
    np.testing.assert_allclose(physical, expected, atol=1e-3)


def _inverse(depth: np.ndarray | None) -> np.ndarray:
    assert depth is not None
    inverse = 1 / depth.astype(np.float64)
    return (inverse - inverse.min()) / (inverse.max() - inverse.min())


def test_gaze_is_of_the_central_square() -> None:
    """48 x 64 pixels: the square begins 8 px from the left."""
    gaze = np.tile(np.float32([[8, 0]]), (60, 1))
    gaze[1], gaze[2], gaze[3], gaze[4] = (56, 48), (32, 24), (np.nan, np.nan), (-20, 10)
    array = MODALITIES["gaze"].to_array(make_clip(gaze=gaze), 32)
    np.testing.assert_allclose(array[:3], [[-1, -1, 1], [1, 1, 1], [0, 0, 1]], atol=1e-6)
    assert array[3].tolist() == [0, 0, 0] and array[4].tolist() == [0, 0, 0], "a gap, and a place far outside"
    back = MODALITIES["gaze"].to_physical(array[:, :2], {"image": (48, 64)})
    np.testing.assert_allclose(back[:3], gaze[:3], atol=1e-4)


def test_a_hand_that_is_not_there_is_masked() -> None:
    clip = make_clip()
    assert clip.hands is not None
    clip.hands[10:20, 0] = np.nan
    array = MODALITIES["hands"].to_array(clip, 32)
    assert (array[10:20, -2] == 0).all() and (array[:10, -2] == 1).all() and (array[:, -1] == 1).all()
    assert (array[10:20, :63] == 0).all()


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("rgb", {"rgb": None}, "no rgb"),
        ("rgb", {"rgb_times_s": np.arange(16) / 16.0}, "shorter than 2 s"),
        ("depth", {"depth": None}, "no depth"),
        ("depth", {"depth": np.zeros((16, 48, 64), np.float32)}, "nowhere known"),
        ("gaze", {"gaze": None}, "no gaze"),
        ("gaze", {"gaze": np.full((60, 2), np.nan, np.float32)}, "all through"),
        ("gaze", {"gaze": np.ones((30, 2), np.float32)}, "shorter"),
        ("camera", {"world_from_camera": None}, "no camera"),
        ("camera", {"world_from_camera": np.ones((60, 4, 4))}, "no rigid motions"),
        ("hands", {"hands": None}, "no hands"),
        ("hands", {"hands": np.full((60, 2, 21, 3), np.nan, np.float32)}, "known nowhere"),
        ("hands", {"world_from_camera": None}, "without camera"),
    ],
)
def test_what_a_clip_cannot_say_has_a_reason(name: str, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModalityMissing, match=said):
        MODALITIES[name].to_array(make_clip(**changes), 32)


def test_published_geometry() -> None:
    assert sum(MODALITIES[name].published.tokens for name in PUBLISHED) == 10_300  # pyright: ignore
    with pytest.raises(ValueError, match="vocabulary"):
        TokenGrid(shape=(3,), vocabulary=1)
    with pytest.raises(ValueError, match="sound"):
        require_modalities(("rgb", "sound"), "given")

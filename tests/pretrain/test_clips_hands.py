"""The joints of the hands: what the synthetic source says of them agrees with its pictures, and stores keep them exactly."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32

from pretrain.clips.build import build_store
from pretrain.clips.codec import MOTION_MEMBER, decode_clip, encode_clip
from pretrain.clips.contact_sheet import draw_contact_sheet
from pretrain.clips.info import InfoConfig, run_info
from pretrain.clips.schema import HAND_BONES, HAND_JOINTS, LEFT_HAND_ID, Clip, check_content
from pretrain.clips.store import open_store

SIZE = 128
SIDES = ("left", "right")
TIPS = [HAND_JOINTS.index(name) for name in HAND_JOINTS if name.endswith(" tip")]


# ------------------------------------------------------------------------------------------------- the list of joints


def test_the_joints_form_a_hand():
    assert len(HAND_JOINTS) == len(set(HAND_JOINTS)) == 21 and HAND_JOINTS[0] == "wrist"
    assert [HAND_JOINTS[index].split()[0] for index in TIPS] == ["thumb", "index", "middle", "ring", "little"]
    assert [end for _, end in HAND_BONES] == list(range(1, 21)), "each joint but the wrist ends one bone"
    for start, end in HAND_BONES:
        finger = HAND_JOINTS[end].split()[0]
        assert HAND_JOINTS[start] == "wrist" or HAND_JOINTS[start].startswith(finger)
    assert sum(start == 0 for start, _ in HAND_BONES) == 5


# ------------------------------------------------------------------------------------------------- the schema


def made_clip(hands: np.ndarray | None, **changes) -> Clip:
    """Two black frames, 1 s apart, seen from the world's origin along +z."""
    values = {
        "key": "made",
        "rgb": np.zeros((2, 64, 64, 3), np.uint8),
        "rgb_times_s": np.array([0.0, 1.0]),
        "intrinsics": np.array([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]]),
        "world_from_camera": np.tile(np.eye(4), (31, 1, 1)),
        "hands": hands,
    }
    return Clip(**{**values, **changes})


def made_hands(samples: int = 31, joints: int = 21) -> Float32[np.ndarray, "K 2 J 3"]:
    """The left hand half a metre before the camera, left of the middle; the right one never known."""
    hands = np.random.default_rng(0).uniform(-0.05, 0.05, (samples, 2, joints, 3)).astype(np.float32)
    hands[:, 0] += (-0.12, 0, 0.5)
    hands[:, 1] = np.nan
    return hands


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hands": np.zeros((5, 21, 3), np.float32)}, r"hands is float32\[5, 21, 3\], expected float32\[K, 2, J, 3\]"),
        ({"hands": np.zeros((5, 2, 21, 3))}, r"hands is float64\[5, 2, 21, 3\]"),
        ({"hands": np.zeros((5, 2, 0, 3), np.float32)}, "axis J is empty"),
        ({"hands_hz": 0.0}, "hands_hz is 0.0, expected a rate"),
    ],
)
def test_a_wrong_array_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        made_clip(made_hands()).replace(**changes)


@pytest.mark.parametrize(("sample", "side", "value"), [(3, 0, np.nan), (0, 0, np.inf), (30, 1, 0.1)])
def test_a_hand_is_known_whole_or_not_at_all(sample, side, value):
    hands = made_hands()
    check_content(made_clip(hands))
    hands[sample, side, 4, 2] = value
    with pytest.raises(ValueError, match=f"the {SIDES[side]} hand of hands sample {sample} is known in part"):
        check_content(made_clip(hands))


# ------------------------------------------------------------------------------------------------- the store


@settings(max_examples=20, deadline=None)
@given(
    samples=st.integers(1, 9),
    joints=st.sampled_from([1, 20, 21]),
    hz=st.sampled_from([30.0, 60.0, 12.5]),
    seed=st.integers(0, 99),
)
def test_hands_come_back_exactly(samples, joints, hz, seed):
    random = np.random.default_rng(seed)
    hands = random.normal(size=(samples, 2, joints, 3)).astype(np.float32)
    hands[random.random((samples, 2)) < 0.4] = np.nan
    members = encode_clip(made_clip(hands, hands_hz=hz))
    for fields in (None, ("hands",), ("rgb_times_s", "hands")):
        clip = decode_clip("made", members.__getitem__, tuple(members), fields)
        assert clip.hands is not None and clip.hands.dtype == np.float32 and clip.hands_hz == hz
        np.testing.assert_array_equal(clip.hands, hands)
    assert decode_clip("made", members.__getitem__, tuple(members), ("rgb_times_s",)).hands is None


def test_a_clip_without_hands_is_stored_as_before_there_were_hands():
    members = encode_clip(made_clip(None, hands_hz=60.0))
    names = {"camera_hz", "captions", "facts", "gaze_hz", "labels", "meta", "narration", "rgb_frame_bytes"}
    assert set(json.loads(members["json"])) == names
    with np.load(io.BytesIO(members[MOTION_MEMBER])) as arrays:
        assert arrays.files == ["rgb_times_s", "intrinsics", "world_from_camera"]
    clip = decode_clip("made", members.__getitem__, tuple(members))
    assert clip.hands is None and clip.hands_hz == 30.0 and clip.world_from_camera is not None
    with pytest.raises(ValueError, match=r"has no hands; of what was read it has .*intrinsics.*world_from_camera"):
        decode_clip("made", members.__getitem__, tuple(members), ("rgb", "hands"))


@pytest.fixture
def store_path(tmp_path) -> Path:
    hands = made_hands()
    hands[:5, 0] = np.nan
    build_store(
        tmp_path / "store", lambda index: made_clip(hands, key=f"made-{index}"), kind="made", seed=0, settings={},
        versions={}, n_clips=2, clips_per_shard=2, workers=1,
    )  # fmt: skip
    return tmp_path / "store"


def test_the_manifest_and_info_tell_of_hands(store_path, capsys):
    row = open_store(store_path).manifest["modalities"]["hands"]
    assert row["shape"] == [31, 2, 21, 3] and row["hz"] == 30.0 and row["member"] == MOTION_MEMBER
    run_info(InfoConfig(path=str(store_path), clips=1, frames=2))
    said = capsys.readouterr().out
    assert "31 x 2 x 21 x 3" in said and "m in the world" in said
    assert "joints known of the left hand in 83.9%, of the right in 0.0% of their samples" in said


@pytest.mark.parametrize("joints", [20, 21])
def test_the_contact_sheet_draws_the_projected_joints(tmp_path, joints):
    hands = made_hands(joints=joints)
    hands[0] = np.nan  # not known in the first of the two frames
    sheet = tmp_path / "sheet.png"
    draw_contact_sheet([made_clip(hands)], sheet, frames=2)
    image = cv2.imread(str(sheet))[..., ::-1].astype(int)
    orange = np.abs(image - (230, 120, 0)).sum(-1) < 60
    black = image.sum(-1) < 12
    columns = np.nonzero(black.mean(axis=0) > 0.15)[0]
    assert orange.sum() > 30
    # In the second frame, left of its middle.
    middle = (columns.min() + columns.max()) / 2
    assert middle < np.nonzero(orange)[1].min() and np.nonzero(orange)[1].max() < (middle + columns.max()) / 2
    draw_contact_sheet([made_clip(hands, world_from_camera=None)], sheet, frames=2)
    assert not (np.abs(cv2.imread(str(sheet))[..., ::-1].astype(int) - (230, 120, 0)).sum(-1) < 60).any()


# ------------------------------------------------------------------------------------------------- the synthetic truth


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    pytest.importorskip("mujoco")
    from pretrain.clips.sources.synthetic import SyntheticConfig, generate_clip

    return {
        action: generate_clip(0, 1, SyntheticConfig(actions=(action,), image_size=SIZE))
        for action in ("pick up", "hand over", "push", "turn")
    }


def shared_frames(clip: Clip) -> list[tuple[int, int]]:
    """(frame, sample) pairs at which a frame's time is also one of the camera's and the hands' tracks."""
    places = clip.rgb_times_s * clip.hands_hz
    assert clip.hands_hz == clip.camera_hz
    return [(frame, round(place)) for frame, place in enumerate(places) if abs(place - round(place)) < 1e-9]


def test_hands_share_the_clock_of_the_camera(clips):
    for clip in clips.values():
        check_content(clip)
        assert clip.hands.shape == (60, 2, 21, 3) and clip.hands_hz == 30.0
        assert len(clip.hands) == len(clip.world_from_camera) == len(clip.gaze)
        assert np.isfinite(clip.hands).all(), "the simulator knows both hands always"


def projected(clips: dict[str, Clip], late: int = 0) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Of the joints of the left and the right hand that nothing hides: how many are in their hand's mask, of how many.

    Third, how deep below their hand's visible surface all joints are that are in its mask. ``late`` takes the joints that
    many samples too early.
    """
    hits, tried, depths_below = np.zeros(2, int), np.zeros(2, int), []
    for clip in clips.values():
        for frame, sample in shared_frames(clip):
            pose = clip.world_from_camera[sample]
            local = (clip.hands[max(sample - late, 0)] - pose[:3, 3]) @ pose[:3, :3]
            pixels = (local @ clip.intrinsics.T)[..., :2] / local[..., 2:]
            inside = ((pixels >= 0) & (pixels < SIZE)).all(axis=-1) & (local[..., 2] > 0)
            for side, joint in np.argwhere(inside):
                x, y = pixels[side, joint].astype(int)
                own = clip.segmentation[frame, y, x] == LEFT_HAND_ID + side
                below = float(local[side, joint, 2] - clip.depth[frame, y, x])
                if own:
                    depths_below.append(below)
                # A joint lies under up to 3 cm of its own flesh; what is farther in front hides it.
                if below < 0.03:
                    tried[side] += 1
                    hits[side] += own
    return hits, tried, depths_below


def test_joints_project_into_the_mask_of_their_hand(clips):
    hits, tried, depths_below = projected(clips)
    assert (tried > 60).all()
    assert (hits / tried > 0.97).all(), f"{hits} of {tried}"
    assert min(depths_below) > 0.001, "no joint is outside the flesh"
    late_hits, late_tried, _ = projected(clips, late=5)
    assert late_hits.sum() / late_tried.sum() < 0.85, "joints of a sixth of a second before are elsewhere"


def test_bones_keep_their_plausible_lengths(clips):
    starts, ends = np.array(HAND_BONES).T
    for clip in clips.values():
        hands = clip.hands.astype(np.float64)
        lengths = np.linalg.norm(hands[:, :, ends] - hands[:, :, starts], axis=-1)
        assert np.ptp(lengths, axis=0).max() < 1e-5, "bones are rigid"
        np.testing.assert_allclose(lengths[0, 0], lengths[0, 1], atol=1e-5)
        for bone, length in zip(HAND_BONES, lengths[0, 0], strict=True):
            name = HAND_JOINTS[bone[1]]
            if bone[0]:
                assert 0.02 < length < 0.06, f"{name}: {length}"
            elif name == "thumb cmc":
                assert 0.03 < length < 0.06
            else:
                assert 0.07 < length < 0.12, f"{name}: {length}"
        reach = np.linalg.norm(hands[:, :, TIPS] - hands[:, :, :1], axis=-1)
        assert reach.min() > 0.04 and reach.max() < 0.21
        stretched = sum(
            lengths[0, 0, HAND_JOINTS.index(f"middle {joint}") - 1] for joint in ("mcp", "pip", "dip", "tip")
        )
        assert 0.17 < stretched < 0.21, "the hand's length: wrist to the tip of the middle finger"


def test_the_sides_and_the_order_of_the_fingers(clips):
    for clip in clips.values():
        knuckles = clip.hands[
            :, :, [HAND_JOINTS.index(f"{name} mcp") for name in ("index", "middle", "ring", "little")]
        ]
        assert np.linalg.norm(np.diff(knuckles, axis=2), axis=-1).max() < 0.035, "neighbours"
        assert np.linalg.norm(knuckles[:, :, 0] - knuckles[:, :, 3], axis=-1).min() > 0.055
        wrist, thumb = clip.hands[:, :, 0], clip.hands[:, :, HAND_JOINTS.index("thumb cmc")]
        # From the index to the little finger, the right-handed normal leaves the right hand through its palm, where the
        # thumb's root bulges, and the left hand through its back.
        normal = np.cross(knuckles[:, :, 0] - wrist, knuckles[:, :, 3] - wrist)
        bulge = np.einsum("ksc,ksc->ks", normal, thumb - wrist)
        assert (bulge[:, 0] < 0).all() and (bulge[:, 1] > 0).all()


def test_touching_hands_have_joints_at_the_touched_thing(clips):
    """The touched thing's pixels, lifted to the world, are within a fingertip's thickness or two of a joint."""
    gaps: list[float] = []
    for clip in clips.values():
        for frame, sample in shared_frames(clip):
            for side in np.flatnonzero(clip.contact[frame]):
                rows, columns = np.nonzero(clip.segmentation[frame] == clip.contact[frame, side])
                if len(rows) < 20:
                    continue
                pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
                local = np.linalg.inv(clip.intrinsics) @ pixels * clip.depth[frame][rows, columns]
                pose = clip.world_from_camera[sample]
                points = (pose[:3, :3] @ local).T + pose[:3, 3]
                fingers = clip.hands[sample, side, 1:]
                gaps.append(np.linalg.norm(points[:, None] - fingers, axis=-1).min())
    assert len(gaps) >= 6
    assert np.median(gaps) < 0.02 and max(gaps) < 0.04


def test_joints_are_where_the_solid_fingers_are():
    """On the axes of the collision capsules, which the joints are not made from; and mirrored on the left."""
    pytest.importorskip("mujoco")
    from pretrain.clips.sources.synthetic.catalogue import make_object
    from pretrain.clips.sources.synthetic.hands import FINGER_JOINTS, palm_rotation
    from pretrain.clips.sources.synthetic.motion import pose
    from pretrain.clips.sources.synthetic.scene import build_world

    random = np.random.default_rng(0)
    world = build_world(random, kind="table", things=[make_object("box", random)], fov_degrees=70)
    fingers = random.uniform(0.1, 0.6, len(FINGER_JOINTS))
    world.set_hand("right", pose(palm_rotation([-0.3, 1, 0.2], [-0.4, 0.1, -1]), np.array([0.2, 0.1, 0.3])), fingers)
    world.set_hand("left", pose(palm_rotation([0.3, 1, 0.2], [0.4, 0.1, -1]), np.array([-0.2, 0.1, 0.3])), fingers)
    world.update()
    left, right = world.hand_joints()
    np.testing.assert_allclose(left, right * [-1, 1, 1], atol=1e-9)
    for side, joints in zip(SIDES, (left, right), strict=True):
        for number, finger in enumerate(("TH", "FF", "MF", "RF", "LF")):
            bones = [(1 + 4 * number + link, 2 + 4 * number + link) for link in range(3)]
            for (start, end), geom in zip(bones, world.finger_geoms[side][finger], strict=True):
                centre = world.data.geom_xpos[geom]
                around = np.linalg.norm(joints[start] - centre) + np.linalg.norm(joints[end] - centre)
                assert around - np.linalg.norm(joints[end] - joints[start]) < 1e-6, f"{side} {HAND_JOINTS[end]}"

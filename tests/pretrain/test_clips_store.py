"""Clip stores: what is written comes back, and what is damaged is named."""

import io
import json
import os
import pickle
import shutil
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pretrain.clips.build import build_store
from pretrain.clips.codec import FIELD_MEMBERS, MAX_DEPTH_M, depth_from_mm, depth_to_mm
from pretrain.clips.schema import ARRAY_FIELDS, Clip, check_content
from pretrain.clips.shards import ShardWriter
from pretrain.clips.store import open_store, scan_tar, stream

SIZE = 48
EXACT = [name for name in ARRAY_FIELDS if name not in ("rgb", "depth")]
TEXTS = ("labels", "narration", "captions", "facts", "meta", "camera_hz", "gaze_hz", "hands_hz")


def made_clip(index: int, frames: int = 6) -> Clip:
    """A clip with every modality, smooth enough for JPEG; a pure function of its index."""
    random = np.random.default_rng(index)
    y, x = np.mgrid[:SIZE, :SIZE]
    angle = random.uniform(0, 6)
    wave = [
        np.sin(x / 9 + angle + time / 3) * np.cos(y / 11 + channel) for time in range(frames) for channel in range(3)
    ]
    rgb = np.stack(wave).reshape(frames, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    depth = random.uniform(0.1, 4, (frames, SIZE, SIZE)).astype(np.float32)
    depth[:, :3] = 0
    gaze = random.uniform(0, SIZE, (8, 2)).astype(np.float32)
    gaze[2] = np.nan
    pose = np.tile(np.eye(4), (8, 1, 1))
    pose[:, :3, 3] = random.normal(size=(8, 3))
    hands = random.normal(size=(9, 2, 21, 3)).astype(np.float32)
    hands[4:, 0] = np.nan
    return Clip(
        key=f"made-{index:06d}",
        rgb=(127 + 120 * rgb).astype(np.uint8),
        rgb_times_s=np.arange(frames) / 8,
        depth=depth,
        segmentation=random.integers(0, 4, (frames, SIZE, SIZE)).astype(np.uint8),
        labels={1: "left hand", 2: "right hand", 3: "red can"},
        contact=random.choice([0, 3], (frames, 2)).astype(np.uint8),
        intrinsics=np.array([[50.0, 0, 24], [0, 50, 24], [0, 0, 1]]),
        world_from_camera=pose,
        gaze=gaze,
        hands=hands,
        hands_hz=60.0,
        narration="#C C picks up the red can — “naïve”",
        captions=("the right hand picks up the can",) * (index % 3),
        facts=({"time_s": 0.25, "moves": ["up", 0.1]},),
        meta={"action": "pick up", "seed": index},
    )


def make_store(directory: Path, n: int = 7, clips_per_shard: int = 3, **changes) -> Path:
    arguments = {"kind": "made", "seed": 0, "settings": {"size": SIZE}, "versions": {"numpy": "1"}, "workers": 1}
    build_store(directory, made_clip, n_clips=n, clips_per_shard=clips_per_shard, **{**arguments, **changes})
    return directory


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("clips") / "store")


@pytest.fixture
def store_path(shared_store, tmp_path) -> Path:
    return Path(shutil.copytree(shared_store, tmp_path / "store"))


def assert_same_clip(got: Clip, expected: Clip) -> None:
    for name in EXACT:
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
        assert getattr(got, name).dtype == getattr(expected, name).dtype
    for name in ("key", *TEXTS):
        assert getattr(got, name) == getattr(expected, name), name
    assert np.abs(got.depth - expected.depth).max() <= 0.0005 + 1e-6
    np.testing.assert_array_equal(got.depth == 0, expected.depth == 0)
    error = np.mean((got.rgb.astype(float) - expected.rgb) ** 2)
    assert 10 * np.log10(255**2 / error) > 40


def test_every_field_comes_back(shared_store):
    store = open_store(shared_store)
    assert len(store) == 7
    assert store.keys == [f"made-{index:06d}" for index in range(7)]
    for index in range(7):
        assert_same_clip(store.read(index), made_clip(index))
    store.verify()


@pytest.mark.parametrize("field", FIELD_MEMBERS)
def test_only_the_asked_field_is_decoded(shared_store, field):
    clip = open_store(shared_store).read(4, (field,))
    for name in FIELD_MEMBERS:
        value = getattr(clip, name)
        assert (value is not None and len(value) > 0) == (name == field), name


def test_asked_frames_are_those_of_the_whole_clip(shared_store):
    store = open_store(shared_store)
    whole, some = store.read(2), store.read(2, frames=(5, 1, 1))
    for name in ("rgb", "rgb_times_s", "depth", "segmentation", "contact"):
        if name == "rgb_times_s":
            assert some.rgb_times_s.tolist() == whole.rgb_times_s[[5, 1, 1]].tolist()
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[[5, 1, 1]])
    np.testing.assert_array_equal(some.gaze, whole.gaze)
    with pytest.raises(ValueError, match=r"frames \[6\] asked, it has frames 0 to 5"):
        store.read(2, ("rgb",), frames=(0, 6))


def test_wrong_requests_are_named(shared_store, tmp_path):
    store = open_store(shared_store)
    with pytest.raises(ValueError, match="unknown clip field 'segmentaton': did you mean 'segmentation'"):
        store.read(0, ("segmentaton",))
    with pytest.raises(IndexError, match="clips 0 to 6"):
        store.read(7)
    with pytest.raises(FileNotFoundError, match="no such clip store"):
        open_store(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        open_store(tmp_path)


def test_a_clip_with_few_modalities(tmp_path):
    bare = Clip(key="bare", rgb=made_clip(0).rgb, narration="#C C waits")
    build_store(
        tmp_path / "store", lambda index: bare, kind="made", seed=0, settings={}, versions={},
        n_clips=1, clips_per_shard=4, workers=1,
    )  # fmt: skip
    store = open_store(tmp_path / "store")
    clip = store.read(0)
    assert clip.rgb is not None and clip.depth is None and clip.gaze is None and clip.narration == "#C C waits"
    with pytest.raises(ValueError, match="clip 'bare' has no depth"):
        store.read(0, ("rgb", "depth"))


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=50))
def test_depth_error_bound(depths):
    depth = np.array(depths, np.float32).reshape(-1, 1, 1)
    back = depth_from_mm(depth_to_mm(depth))
    held = depth <= MAX_DEPTH_M
    assert (np.abs(back - depth)[held] <= 0.0005 + 5e-6).all()
    assert (back[depth > MAX_DEPTH_M + 0.001] == 0).all()


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.lists(st.integers(0, 2000), min_size=1, max_size=4), min_size=1, max_size=6))
def test_tar_index_agrees_with_sequential_reading(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("tar") / "shard.tar"
    random = np.random.default_rng(len(sizes))
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(sizes):
            for member, size in enumerate(members):
                header = tarfile.TarInfo(f"k{number}.m{member}.npz")
                header.size = size
                tar.addfile(header, io.BytesIO(random.bytes(size)))
    data = path.read_bytes()
    got = [
        (f"{clip.key}.{name}", data[offset : offset + size])
        for clip in scan_tar(path)
        for name, (offset, size) in clip.members.items()
    ]
    with tarfile.open(path) as tar:
        assert got == [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), shard=st.integers(0, 2))
def test_a_truncated_shard_is_named(shared_store, tmp_path_factory, share, shard):
    path = Path(shutil.copytree(shared_store, tmp_path_factory.mktemp("cut") / "store"))
    cut = path / f"shard-{shard:06d}.tar"
    os.truncate(cut, int(share * cut.stat().st_size))
    with pytest.raises(ValueError, match=rf"{cut.name}: truncated: .* bytes, the manifest says .*delete that shard"):
        open_store(path)


def test_a_missing_shard_is_named(store_path):
    (store_path / "shard-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"shard-000001\.tar: this shard of the manifest is missing; delete .* run"):
        open_store(store_path)


@pytest.mark.parametrize("member", ["json", "rgb.mjpg", "depth.zlib", "segmentation.npz", "motion.npz"])
def test_a_damaged_member_is_named(store_path, member):
    store = open_store(store_path)
    offset, size = scan_tar(store_path / "shard-000001.tar")[1].members[member]
    with (store_path / "shard-000001.tar").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)
    with pytest.raises(ValueError, match=r"shard-000001\.tar damaged: the sha256"):
        store.verify()
    with pytest.raises(ValueError, match=rf"shard-000001\.tar: member made-000004\.{member} is damaged"):
        store.read(4)
    assert store.read(3).key == "made-000003"
    with pytest.raises(ValueError, match=rf"member made-000004\.{member} is damaged"):
        list(stream(str(store_path)))


def test_a_damaged_header_is_named(store_path):
    with (store_path / "shard-000000.tar").open("r+b") as file:
        file.write(b"\x07" * 600)
    with pytest.raises(ValueError, match=r"shard-000000\.tar: not a readable tar"):
        open_store(store_path).read(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not the manifest of a clip store"),
        ({"format": "other"}, "not the manifest of a clip store"),
        ({"format_version": 2}, "format_version is 2, this EgoArm reads 1"),
        ({"shards": [{"name": "shard-000000.tar"}]}, "damaged"),
        ({"shards": None}, "damaged"),
        ({"totals": {"clips": 99}}, "the shards hold 7 clips, totals says 99"),
    ],
)
def test_a_wrong_manifest_is_named(store_path, change, message):
    path = store_path / "manifest.json"
    text = change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        open_store(store_path)
    assert str(path) in str(error.value)


def test_reading_in_worker_processes(shared_store):
    store = open_store(shared_store)
    store.read(0)  # opened here before it is sent
    assert_same_clip(pickle.loads(pickle.dumps(store)).read(6), made_clip(6))  # noqa: S301 our own bytes
    loader = DataLoader(_Keys(store), batch_size=None, num_workers=2)
    assert list(loader) == store.keys
    store.read(0)


class _Keys:
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, index):
        clip = self.store.read(index, ("rgb", "depth"))
        assert clip.rgb is not None
        return clip.key


def test_stream_gives_the_same_clips(shared_store):
    clips = list(stream(shared_store, fields=("rgb", "gaze", "text")))
    store = open_store(shared_store)
    for index, clip in enumerate(clips):
        expected = store.read(index)
        assert clip.key == expected.key and clip.facts == expected.facts and clip.depth is None
        np.testing.assert_array_equal(clip.rgb, expected.rgb)
        np.testing.assert_array_equal(clip.gaze, expected.gaze)
    assert len(clips) == 7
    pattern = str(shared_store / "shard-{000000..000002}.tar")
    mixed = [clip.key for clip in stream(pattern, fields=("text",), shuffle_shards=1, shuffle_clips=5)]
    assert sorted(mixed) == store.keys and mixed != store.keys
    assert mixed == [clip.key for clip in stream(pattern, fields=("text",), shuffle_shards=1, shuffle_clips=5)]


def test_stream_splits_the_shards_over_nodes(shared_store, monkeypatch):
    keys: list[str] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        keys += [clip.key for clip in stream(shared_store, fields=("text",))]
    assert sorted(keys) == open_store(shared_store).keys


def test_shard_writer_refuses_a_key_twice_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="'made-000001' occurs twice"), ShardWriter(tmp_path / "s.tar") as writer:
        writer.write(made_clip(1))
        writer.write(made_clip(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "a.b"}, "clip key 'a.b'"),
        ({"rgb": np.zeros((6, 4, 4, 3), np.float32)}, r"rgb is float32\[6, 4, 4, 3\], expected uint8\[T, H, W, 3\]"),
        ({"rgb": [1]}, "rgb is a list, expected a numpy array"),
        ({"depth": np.zeros((5, SIZE, SIZE), np.float32)}, r"depth is float32\[5, 48, 48\], but rgb has T = 6"),
        ({"intrinsics": np.eye(4)}, r"intrinsics is float64\[4, 4\]"),
        ({"gaze": np.zeros((0, 2), np.float32)}, "axis G is empty"),
        ({"gaze_hz": 0}, "gaze_hz is 0"),
        ({"labels": {0: "floor"}}, "labels has 0"),
        ({"captions": ["a"]}, "captions must be a tuple of str"),
    ],
)
def test_a_wrong_clip_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        made_clip(0).replace(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb_times_s": np.zeros(6)}, "must be finite and strictly increasing"),
        ({"depth": np.full((6, SIZE, SIZE), -1, np.float32)}, "depth must be finite and >= 0"),
        ({"labels": {1: "left hand", 2: "right hand"}}, r"segmentation holds ids \[3\] that labels does not name"),
        ({"world_from_camera": np.full((8, 4, 4), np.nan)}, "rigid motions"),
        ({"world_from_camera": np.tile(np.diag([1.0, 1, -1, 1]), (8, 1, 1))}, "rigid motions"),
        ({"gaze": np.array([[1, np.nan]], np.float32)}, "NaN twice"),
        ({"meta": {"seed": np.int64(1)}}, "meta must be plain JSON"),
        ({"intrinsics": np.zeros((3, 3))}, "focal lengths above 0"),
    ],
)
def test_wrong_content_is_not_stored(tmp_path, changes, message):
    clip = made_clip(0).replace(**changes)
    with pytest.raises(ValueError, match=message):
        check_content(clip)
    with pytest.raises(ValueError, match=message):
        build_store(
            tmp_path / "store", partial(_constant, clip=clip), kind="made", seed=0, settings={}, versions={},
            n_clips=1, clips_per_shard=1, workers=1,
        )  # fmt: skip
    assert list((tmp_path / "store").iterdir()) == []


def _constant(index: int, clip: Clip) -> Clip:
    return clip

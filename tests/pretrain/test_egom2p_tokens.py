"""The token store: what is written comes back, quickly, and each kind of damage is one clear line."""

import dataclasses
import json
import os
import pickle
import shutil
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.egom2p.modalities import TokenGrid
from pretrain.egom2p.token_shards import dump_member, parse_member, write_tar
from pretrain.egom2p.tokens import AuthorsDataSet, TokenStore, open_authors_tokens, open_tokens, require_tokenizers

GRIDS = {
    "rgb": TokenGrid(shape=(5, 2, 2), vocabulary=64000),
    "gaze": TokenGrid(shape=(30,), vocabulary=256),
    "camera": TokenGrid(shape=(30,), vocabulary=100_000),
}
SHARDS = (("a", "b", "c"), ("d", "e"))
# Clips that lack a modality, and why.
MISSING = {"gaze": {"b": "no gaze", "e": "gaze NaN or outside the image all through"}}


def ids_of(stem: str, name: str) -> np.ndarray:
    grid = GRIDS[name]
    random = np.random.default_rng([*stem.encode(), *name.encode()])
    return random.integers(grid.vocabulary, size=grid.shape, dtype=np.int32)


def write_store(root: Path, *, change=None, declared=MISSING) -> Path:
    """`change`: (modality, shard number, list of (stem, ids)) -> what is written in its place."""
    shards = []
    for number, stems in enumerate(SHARDS):
        tars = {}
        for name in GRIDS:
            (root / name).mkdir(parents=True, exist_ok=True)
            clips = [(stem, ids_of(stem, name)) for stem in stems if stem not in MISSING.get(name, {})]
            clips = change(name, number, clips) if change else clips
            tars[name] = dataclasses.asdict(write_tar(root / name / f"shard-{number:06d}.tar", clips))
        missing: dict = {}
        for name, reasons in declared.items():
            for stem, reason in reasons.items():
                if stem in stems:
                    missing.setdefault(name, {}).setdefault(reason, []).append(stem)
        shards.append(
            {"index": number, "name": f"shard-{number:06d}.tar", "stems": stems, "tars": tars, "missing": missing}
        )
    modalities = {
        name: {"grid": grid.shape, "vocabulary": grid.vocabulary, "tokenizer_sha256": f"{name:x<64}"}
        for name, grid in GRIDS.items()
    }
    manifest = {"format": "egoarm-tokens", "format_version": 1, "modalities": modalities, "shards": shards}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_store(tmp_path / "tokens")


def assert_is_whole(store: TokenStore) -> None:
    stems = [stem for shard in SHARDS for stem in shard]
    assert len(store) == len(stems) and [store.key(index) for index in range(len(store))] == stems
    for index, stem in enumerate(stems):
        expected = [name for name in store.grids if stem not in MISSING.get(name, {})]
        clip = store.read(index)
        assert list(clip) == expected == list(store.has(index))
        for name, ids in clip.items():
            assert ids.dtype == np.int64 and ids.flags.writeable
            np.testing.assert_array_equal(ids, ids_of(stem, name).reshape(-1))


def test_what_is_written_comes_back(root: Path) -> None:
    store = open_tokens(root)
    assert store.grids == GRIDS and store.tokenizers["rgb"] == f"{'rgb':x<64}" and not store.only_input
    assert len(store.manifest_sha256) == 64
    assert_is_whole(store)
    assert_is_whole(open_tokens(root))  # now from the packed ids
    assert [store.clips_with(name) for name in store.grids] == [5, 3, 5]
    assert list(store.read(1, ("camera", "gaze"))) == ["camera"]
    with pytest.raises(IndexError, match="clips 0 to 4"):
        store.read(5)
    with pytest.raises(ValueError, match="no tokens of 'depth'; it has rgb, gaze, camera"):
        store.read(0, ("depth",))


def test_a_pickled_store_is_small_and_reads_the_same(root: Path) -> None:
    data = pickle.dumps(open_tokens(root))
    assert len(data) < 5000
    assert_is_whole(pickle.loads(data))  # noqa: S301 our own bytes


def test_reading_is_fast(tmp_path: Path) -> None:
    grids = {
        "rgb": TokenGrid(shape=(5, 32, 32), vocabulary=64000),
        "depth": TokenGrid(shape=(5, 32, 32), vocabulary=64000),
    }
    random = np.random.default_rng(0)
    for name, grid in grids.items():
        (tmp_path / name / "set").mkdir(parents=True)
        clips = [(f"c{index}", random.integers(64000, size=grid.shape)) for index in range(20)]
        write_tar(tmp_path / name / "set/shard-000000.tar", clips)
    (store,) = open_authors_tokens(tmp_path, [AuthorsDataSet(name="set", modalities=("rgb", "depth"))], grids)
    took_s = []
    for index in range(20):
        began = time.perf_counter()
        store.read(index)
        took_s.append(time.perf_counter() - began)
    assert np.median(took_s) < 0.0005


def test_a_store_that_cannot_be_written_is_packed_elsewhere(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_is_whole(open_tokens(root))
    assert not (root / ".packed").exists() and list((tmp_path / "cache/egoarm/tokens").glob("*/tokens-*/index.json"))


def test_a_damaged_cache_is_made_again(root: Path) -> None:
    open_tokens(root)
    (packed,) = (root / ".packed").iterdir()
    os.truncate(packed / "rgb.ids", 17)
    assert_is_whole(open_tokens(root))
    with (root / "manifest.json").open("a") as manifest:
        manifest.write("\n")  # now it has another name
    assert_is_whole(open_tokens(root))
    assert [path.name for path in (root / ".packed").iterdir()] != [packed.name]
    assert len(list((root / ".packed").iterdir())) == 1


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, number, clips: clips[::-1] if name == "rgb" else clips, "in another order"),
        (
            lambda name, number, clips: [("zz" if stem == "d" else stem, ids) for stem, ids in clips],
            "stems disagree with those of the manifest: 'd' is not here",
        ),
        (lambda name, number, clips: [*clips, ("x", ids_of("x", name))], "'x' is only here"),
        (
            lambda name, number, clips: clips[1:] if (name, number) == ("camera", 1) else clips,
            r"camera/shard-000001\.tar: camera of 'd' is missing \(1 in all\), and the manifest does not declare it",
        ),
        (
            lambda name, number, clips: [(stem, ids + 64000 * (name == "rgb")) for stem, ids in clips],
            r"rgb/shard-000000\.tar: member a\.npz holds id \d+, outside the vocabulary 0 to 63999",
        ),
        (
            lambda name, number, clips: [(stem, ids - 1 * (ids == ids.min()) * (1 + ids)) for stem, ids in clips],
            "holds id -1, outside the vocabulary",
        ),
        (
            lambda name, number, clips: [(stem, ids[:2]) for stem, ids in clips],
            r"member a\.npz is int32\[2, 2, 2\], expected whole numbers \[5, 2, 2\]",
        ),
    ],
)
def test_wrong_shards_are_named(tmp_path: Path, change, message: str) -> None:
    write_store(tmp_path, change=change)
    with pytest.raises(ValueError, match=message) as error:
        open_tokens(tmp_path)
    assert "delete that shard and run egoarm tokenize store again" in str(error.value)
    assert "\n" not in str(error.value) and not list((tmp_path / ".packed").iterdir())


def test_a_declared_gap_that_is_not_one_is_named(tmp_path: Path) -> None:
    write_store(tmp_path, declared={**MISSING, "rgb": {"a": "no rgb"}})
    with pytest.raises(ValueError, match="'a' is only here"):
        open_tokens(tmp_path)


@pytest.fixture(scope="module")
def packed_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_store(tmp_path_factory.mktemp("packed"))
    open_tokens(root)
    return root


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), name=st.sampled_from(list(GRIDS)))
def test_a_truncated_shard_is_named_even_when_packed(packed_root: Path, share: float, name: str) -> None:
    tar = packed_root / name / "shard-000001.tar"
    whole = tar.read_bytes()
    try:
        tar.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(
            ValueError, match=rf"{name}/shard-000001\.tar: truncated: .* the manifest says .*delete that"
        ):
            open_tokens(packed_root)
        tar.unlink()
        with pytest.raises(ValueError, match=r"shard-000001\.tar: this shard of the manifest is missing"):
            open_tokens(packed_root)
    finally:
        tar.write_bytes(whole)


def test_a_changed_byte_is_named(root: Path) -> None:
    tar = root / "camera/shard-000000.tar"
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as opened:
        member = opened.getmembers()[0]
    data[member.offset_data + 5] ^= 255  # in a field of the zip that nothing reads
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"camera/shard-000000\.tar: (damaged: its sha256|member)"):
        open_tokens(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "not JSON"),
        ({"format": "other"}, "not the manifest of a token store"),
        ({"format_version": 9}, "format_version is 9, this EgoArm reads 1"),
        ({"shards": [{}]}, "damaged"),
        ({"modalities": {"smell": {"grid": [3], "vocabulary": 9, "tokenizer_sha256": ""}}}, "unknown modality 'smell'"),
    ],
)
def test_a_wrong_manifest_is_named(root: Path, change, message: str) -> None:
    path = root / "manifest.json"
    text = change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        open_tokens(root)


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such token store; make one with: egoarm tokenize store"):
        open_tokens(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json; run"):
        open_tokens(tmp_path)
    (tmp_path / "rgb").mkdir()
    (tmp_path / "rgb/shard-000000.tar").touch()
    with pytest.raises(FileNotFoundError, match="was not finished"):
        open_tokens(tmp_path)


def test_tokenizers_must_be_those_of_the_shards(root: Path) -> None:
    store = open_tokens(root)

    def tokenizer(name: str, **changes):
        spec = {"name": "mine", "grid": GRIDS[name], "weights_sha256": f"{name:x<64}", "modalities": (name, "hands")}
        return SimpleNamespace(spec=SimpleNamespace(**(spec | changes)))

    require_tokenizers(store, [tokenizer("rgb"), tokenizer("camera", modalities=("camera", "depth"))])
    with pytest.raises(ValueError, match=r"rgb tokens were made by the tokenizer with sha256 rgbxx.*'mine' has ffff"):
        require_tokenizers(store, [tokenizer("rgb", weights_sha256="f" * 64)])
    with pytest.raises(ValueError, match=r"grid of \(30,\) ids of 256, tokenizer 'mine' gives \(30,\) of 512"):
        require_tokenizers(store, [tokenizer("gaze", grid=TokenGrid(shape=(30,), vocabulary=512))])
    with pytest.raises(ValueError, match="two of them are for hands"):
        require_tokenizers(store, [tokenizer("rgb"), tokenizer("gaze")])


@given(shape=st.sampled_from([(5, 2, 2), (30,)]), leading=st.integers(0, 2), flat=st.booleans())
def test_members_in_other_shapes_that_mean_the_same(shape: tuple[int, ...], leading: int, flat: bool) -> None:
    grid = TokenGrid(shape=shape, vocabulary=500)
    ids = np.arange(grid.tokens)
    given_shape = (1,) * leading + ((grid.tokens,) if flat else shape)
    np.testing.assert_array_equal(parse_member(dump_member(ids.reshape(given_shape)), grid), ids)


# ---------------------------------------------------------------------------------------------------- authors' layout


def write_authors(root: Path, *, camera_folder: str = "cam/one/token") -> Path:
    for number, stems in enumerate(SHARDS):
        for name, folder in (("rgb", "rgb/one"), ("camera", camera_folder)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            clips = [(stem, ids_of(stem, name)) for stem in stems]
            write_tar(root / folder / f"shard-{number:06d}.tar", clips)
    (root / "rgb/quest").mkdir(parents=True)
    write_tar(root / "rgb/quest/shard-000000.tar", [("q", ids_of("q", "rgb"))])
    return root


def test_the_authors_layout_is_read(tmp_path: Path) -> None:
    write_authors(tmp_path)
    sets = [
        AuthorsDataSet(name="one", modalities=("rgb", "camera")),
        AuthorsDataSet(name="quest", modalities=("rgb",), only_input=("rgb",)),
    ]
    one, quest = open_authors_tokens(tmp_path, sets, GRIDS)
    assert_is_whole_without_gaps(one)
    assert (len(one), len(quest)) == (5, 1) and quest.only_input == ("rgb",) and quest.has(0) == ("rgb",)
    assert one.tokenizers == {} and one.manifest_sha256 != quest.manifest_sha256
    again, _ = open_authors_tokens(tmp_path, sets, GRIDS)
    assert again.manifest_sha256 == one.manifest_sha256
    copy = Path(shutil.copytree(tmp_path, tmp_path.parent / "copy", ignore=shutil.ignore_patterns(".packed")))
    assert open_authors_tokens(copy, sets, GRIDS)[0].manifest_sha256 == one.manifest_sha256


def assert_is_whole_without_gaps(store: TokenStore) -> None:
    for index in range(len(store)):
        for name, ids in store.read(index).items():
            np.testing.assert_array_equal(ids, ids_of(store.key(index), name).reshape(-1))


def test_wrong_authors_shards_are_named(tmp_path: Path) -> None:
    data_set = AuthorsDataSet(name="one", modalities=("rgb", "camera"))
    root = write_authors(tmp_path, camera_folder="camera/one")
    with pytest.raises(ValueError, match="no grid given for 'camera'"):
        open_authors_tokens(root, [data_set], {"rgb": GRIDS["rgb"]})
    with pytest.raises(FileNotFoundError, match=r"depth/one: no shard-\*\.tar there"):
        open_authors_tokens(root, [AuthorsDataSet(name="one", modalities=("depth",))], {"depth": GRIDS["rgb"]})
    tar = root / "camera/one/shard-000001.tar"
    write_tar(tar, [("d", ids_of("d", "camera"))])
    with pytest.raises(
        ValueError, match=r"camera/one/shard-000001\.tar: its stems disagree .*rgb/one/shard-000001\.tar: 'e'"
    ):
        open_authors_tokens(root, [data_set], GRIDS)
    os.truncate(tar, 700)
    with pytest.raises(
        ValueError, match=r"camera/one/shard-000001\.tar: truncated or damaged .*leave that modality out"
    ):
        open_authors_tokens(root, [data_set], GRIDS)
    tar.unlink()
    with pytest.raises(ValueError, match=r"camera/one: 1 shards, .*rgb/one has 2"):
        open_authors_tokens(root, [data_set], GRIDS)
    with pytest.raises(ValueError, match="only_input has 'camera'"):
        AuthorsDataSet(name="one", modalities=("rgb",), only_input=("camera",))

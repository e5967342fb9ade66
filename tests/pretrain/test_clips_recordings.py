"""Recorded data sets to clips: a made-up scene exported in each format and read back must show each point where the clip's camera says."""

import io
import json
import pickle
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pretrain.clips.codec import encode_clip
from pretrain.clips.dataset import ClipDataset
from pretrain.clips.importing import ImportConfig, run_import
from pretrain.clips.importing_recordings import CutRecording
from pretrain.clips.info import InfoConfig, run_info
from pretrain.clips.schema import Clip
from pretrain.clips.skipping import Skipped
from pretrain.clips.sources import arctic, egogen, holoassist, taco
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.pickled_arrays import load_array_dict
from pretrain.clips.sources.recording import CutOptions, cut_clips
from pretrain.clips.sources.table import RECORDINGS
from pretrain.clips.store import open_store

# The tests are no package: their directory is put on the path for the helpers that lie beside them.
sys.path.insert(0, str(Path(__file__).parent))
from recorded_scene import (
    ARCTIC_OFFSET,
    COLOURS,
    EXPORTERS,
    FRAMES,
    HZ,
    MORE,
    POINTS,
    export_h2o,
    export_holoassist,
    export_taco,
    looked_at,
    save,
    world_from_camera,
    write_gray16,
)

SIZE = 160


def run(root: Path, source: str, **changes) -> "list[Clip]":
    config = {"frames": 8, "image_size": SIZE, "workers": 1, "out": str(root.parent / "store"), **changes}
    run_import(ImportConfig(source=source, root=str(root), **config))
    store = open_store(config["out"])
    return [store.read(index) for index in range(len(store))]


def skipped(root: Path) -> dict[str, str]:
    """source -> reason."""
    rows = [json.loads(line) for line in (root.parent / "store" / "skipped.jsonl").read_text().splitlines()]
    return {row["source"]: row["reason"] for row in rows}


def cut(root: Path, source: str, **options) -> "list[Clip | Skipped]":
    clips = []
    for recording in RECORDINGS[source](root, SourceOptions(**options)):
        clips += [recording] if isinstance(recording, Skipped) else cut_clips(recording, frames=8, image_size=SIZE)
    return clips


def blob(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray | None:
    """Middle of what has a colour, in pixels counted from the corner; None if it is not wholly in the picture."""
    far = np.abs(picture.astype(int) - colour).max(2)
    weights = np.clip(110 - far, 0, 60).astype(float)
    rows, columns = np.nonzero(weights)
    if len(rows) < 12 or min(rows.min(), columns.min()) == 0 or max(rows.max(), columns.max()) == SIZE - 1:
        return None
    return np.average(np.stack([columns, rows], 1) + 0.5, axis=0, weights=weights[rows, columns])


def check_geometry(clip: Clip, start_s: float, more: set[str]) -> None:
    """Points, gaze, depth and motion of a clip against the truth; ``start_s``: when the scene's clock shows at its start."""
    assert clip.rgb is not None and clip.world_from_camera is not None and clip.intrinsics is not None
    true = np.linalg.inv(world_from_camera(start_s)) @ world_from_camera(start_s + np.arange(60) / HZ)
    stored = np.linalg.inv(clip.world_from_camera[0]) @ clip.world_from_camera
    assert stored.shape == (60, 4, 4) and np.allclose(stored, true, atol=1e-5)
    errors = []
    for index, time_s in enumerate(clip.rgb_times_s):
        # Frames are 30 a second, and so are the poses.
        pose = np.linalg.inv(clip.world_from_camera[round(time_s * HZ)])
        for number, name in enumerate(POINTS):
            found = blob(clip.rgb[index], COLOURS[name])
            if found is None:
                continue
            in_camera = pose[:3, :3] @ POINTS[name] + pose[:3, 3]
            assert in_camera[2] > 0
            errors.append((clip.intrinsics @ in_camera)[:2] / in_camera[2] - found)
            if "depth" in more:
                column, row = found.astype(int)
                assert clip.depth[index, row, column] == pytest.approx(in_camera[2], abs=0.002)
            if "gaze" in more and looked_at(start_s + time_s)[0] == number:
                assert np.abs(clip.gaze[round(time_s * HZ)] - found).max() < 1.5
    assert len(errors) > 2 * len(clip.rgb)
    assert np.abs(errors).max() < 1.5
    # Half a pixel of a wrong convention would show in the mean.
    assert np.abs(np.mean(errors, axis=0)).max() < 0.25


@pytest.fixture(scope="module", params=EXPORTERS)
def exported(request, tmp_path_factory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp(request.param) / "root"
    EXPORTERS[request.param](root)
    return request.param, root


def test_a_recording_becomes_clips_whose_points_lie_where_the_camera_says(exported, capsys):
    source, root = exported
    (clip,) = run(root, source, frames=16)
    check_geometry(clip, 0.0, MORE[source])
    assert clip.rgb.shape == (16, SIZE, SIZE, 3) and clip.camera_hz == clip.gaze_hz == 30
    # 8 Hz out of 30: each frame at the time at which it was taken.
    assert np.allclose(clip.rgb_times_s, np.floor(np.arange(16) * 3.75 + 1e-6) / 30, atol=1e-6)
    assert {name for name in ("depth", "gaze") if getattr(clip, name) is not None} == MORE[source]
    assert "dropped" not in clip.meta and "skipped" not in open_store(root.parent / "store").manifest
    said = capsys.readouterr().out
    assert "imported 1 clips" in said and "of 1 entries" in said
    run(root, source, frames=16)
    assert "nothing new to import" in capsys.readouterr().out


def shift(x: float, y: float) -> np.ndarray:
    """What moves a principal point."""
    return np.asarray([[0, 0, x], [0, 0, y], [0, 0, 0]])


# The fix of each data set undone: the camera's axes, or which way its matrices go.
WRONG = {
    "holoassist": [(holoassist, "CAMERA_FROM_OPENCV", np.eye(4)), (holoassist, "CAMERA_FROM_OPENCV", np.linalg.inv(holoassist.CAMERA_FROM_OPENCV))],
    "arctic": [(arctic, "inverse_poses", lambda poses: poses), (arctic, "undistortion_maps", None)],
    "taco": [(taco, "inverse_poses", lambda poses: poses), (taco, "_UNITS_PER_M", 1000.0)],
    "egogen": [(egogen, "CAMERA_FROM_OPENCV", np.eye(4)), (egogen, "CAMERA_FROM_OPENCV", np.diag([-1.0, -1, 1, 1]))],
}  # fmt: skip


def test_the_check_fails_when_the_fix_is_undone(exported, monkeypatch):
    source, root = exported
    for module, name, value in WRONG.get(source, ()):
        with monkeypatch.context() as patch:
            if value is None:

                def value(matrix, distortion, width, height):
                    return np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))

            patch.setattr(module, name, value)
            (clip,) = cut(root, source)
            with pytest.raises(AssertionError):
                check_geometry(clip, 0.0, MORE[source])
    (clip,) = cut(root, source)
    check_geometry(clip, 0.0, MORE[source])
    # H2O has no fix to undo: another's is wrong for it; so are the inverse and a forgotten crop for all.
    for poses in (clip.world_from_camera @ holoassist.CAMERA_FROM_OPENCV, np.linalg.inv(clip.world_from_camera)):
        with pytest.raises(AssertionError):
            check_geometry(clip.replace(world_from_camera=poses), 0.0, MORE[source])
    with pytest.raises(AssertionError):
        check_geometry(clip.replace(intrinsics=clip.intrinsics + shift(8, 0)), 0.0, MORE[source])
    with pytest.raises(AssertionError):
        check_geometry(clip.replace(intrinsics=clip.intrinsics + shift(0.5, 0.5)), 0.0, set())


def test_clips_follow_each_other_and_a_store_grows(tmp_path):
    root = tmp_path / "root"
    export_holoassist(root, "R1", frames=130)
    export_holoassist(root, "R2")
    first, second, other = run(root, "holoassist", clips_per_shard=2)
    assert [clip.key for clip in (first, second, other)] == ["R1-00000", "R1-00001", "R2-00000"]
    check_geometry(first, 0.0, {"gaze"})
    check_geometry(second, 2.0, {"gaze"})
    assert second.meta == {"recording": "R1", "start_s": 2.0}
    for limit in (1, 0):
        run(root, "holoassist", clips_per_shard=2, limit=limit, out=str(tmp_path / "grown"))
    for path in (tmp_path / "store").iterdir():
        assert path.read_bytes() == (tmp_path / "grown" / path.name).read_bytes()
    export_holoassist(root, "R3")
    with pytest.raises(ValueError, match=r"holds clips made in another way: config\.recordings_sha256"):
        run(root, "holoassist", clips_per_shard=2)


def test_a_clip_is_a_function_of_its_index_in_any_process(exported):
    source, root = exported
    made = CutRecording.of(source, root, SourceOptions(), CutOptions(frames=4, image_size=32), workers=1)
    elsewhere = pickle.loads(pickle.dumps(made))  # noqa: S301
    assert len(elsewhere) == 1 and elsewhere.settings() == made.settings()
    for name, value in encode_clip(made(0)).items():
        assert encode_clip(elsewhere(0))[name] == value


# --- splits ---


def test_splits(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "holo" / name / "Export_py").mkdir(parents=True)
    save(tmp_path / "holo" / "data_split" / "val-v1_2.txt", "c\n\na\n../../etc\n")
    for subject, place in (("1", "h1"), ("3", "k1"), ("3", "k2"), ("4", "o1"), ("6", "h1")):
        (tmp_path / "h2o" / f"subject{subject}_ego" / place / "0" / "cam4").mkdir(parents=True)
    (tmp_path / "h2o" / "subject1" / "h1" / "0" / "cam4").mkdir(parents=True)
    for subject in ("s01", "s05"):
        save(tmp_path / "arctic" / "data" / "raw_seqs" / subject / "box_use_01.egocam.dist.npy", b"")
    for number in range(10):
        save(tmp_path / "taco" / "Egocentric_RGB_Videos" / "(cut, knife, box)" / f"2023_{number}" / "color.mp4", b"")

    def names(source: str, split: str) -> list[str]:
        listed = RECORDINGS[source].list_names(
            tmp_path / source[:4].replace("arct", "arctic"), SourceOptions(split=split)
        )
        return [one.reason if isinstance(one, Skipped) else one for one in listed]

    assert names("holoassist", "val") == ["c", "a", "invalid id"]
    assert names("holoassist", "all") == ["a", "b", "c"]
    assert names("h2o", "train") == ["subject1/h1/0", "duplicate id", "subject3_ego/k1/0"]
    assert names("h2o", "val") == ["subject3_ego/k2/0"] and names("h2o", "test") == ["subject4_ego/o1/0"]
    assert names("arctic", "val") == ["s05/box_use_01"] and names("arctic", "train") == ["s01/box_use_01"]
    held_out = names("taco", "val")
    assert [name[-1] for name in held_out] == ["0", "9"] and len(names("taco", "train")) == 8
    assert taco.validation_indices(2490) == set(np.linspace(0, 2489, 500).astype(int).tolist())
    for source, split in (("arctic", "test"), ("taco", "test"), ("h2o", "dev")):
        with pytest.raises(ValueError, match=rf"split={split}: {source} has train, val,"):
            names(source, split)
    with pytest.raises(ValueError, match=r"split=test: .*test-v1_2\.txt: no such file; put the data set's lists there"):
        names("holoassist", "test")


# --- bad input: counted with a reason, or one clear error ---


def export_copies(root: Path, first: str, *others: str) -> None:
    """One recording of HoloAssist under several names."""
    export_holoassist(root, first)
    for name in others:
        shutil.copytree(root / first, root / name)
    save(root / "data_split" / "train-v1_2.txt", "".join(f"{name}\n" for name in (first, *others)))


def edit_lines(path: Path, change) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def with_cell(lines: list[str], rows: range, column: int, value: str) -> list[str]:
    cells = [line.split("\t") for line in lines]
    for row in rows:
        cells[row][column] = value
    return ["\t".join(row) for row in cells]


def test_what_clips_of_holoassist_may_lack(tmp_path, capsys):
    root = tmp_path / "root"
    export_copies(root, "nan", "bent", "gap", "blind", "closed", "cut", "late")
    poses, eyes = "Export_py/Video/Pose_sync.txt", "Export_py/Eyes/Eyes_sync.txt"
    edit_lines(root / "nan" / poses, lambda lines: with_cell(lines, range(30, 31), 5, "nan"))
    edit_lines(root / "bent" / poses, lambda lines: with_cell(lines, range(30, 31), 2, "0.7"))
    edit_lines(root / "gap" / poses, lambda lines: lines[:20] + lines[30:])
    edit_lines(root / "blind" / eyes, lambda lines: with_cell(lines, range(len(lines)), 4, "nan"))
    edit_lines(root / "closed" / eyes, lambda lines: with_cell(lines, range(30), 8, "0"))
    # One line without its end costs its own sample, which its neighbours bridge.
    edit_lines(root / "cut" / poses, lambda lines: [*lines[:9], lines[9][:60], *lines[10:]])
    (root / "late" / eyes).unlink()
    clips = {clip.meta["recording"]: clip for clip in run(root, "holoassist")}
    assert {name: clip.meta.get("dropped") for name, clip in clips.items()} == {
        "nan": {"camera": "pose not finite"},
        "bent": {"camera": "pose not a rigid motion"},
        "gap": {"camera": "poses missing in the span"},
        "blind": {"gaze": "no gaze in the span"},
        "closed": None,
        "cut": None,
        "late": {"gaze": "file of the recording missing"},
    }
    assert clips["nan"].world_from_camera is None and clips["nan"].gaze is not None
    assert np.isnan(clips["closed"].gaze[:30]).all() and np.isfinite(clips["closed"].gaze[31:]).all()
    assert clips["cut"].meta["damaged_lines"] == 1
    check_geometry(clips["late"], 0.0, set())
    manifest = open_store(tmp_path / "store").manifest
    assert manifest["dropped"]["gaze: no gaze in the span"] == 1 and sum(manifest["dropped"].values()) == 5
    # The manifest describes a clip that has all.
    assert {"world_from_camera", "gaze"} <= set(manifest["modalities"])
    assert "pose not finite" in capsys.readouterr().out
    run_info(InfoConfig(path=str(tmp_path / "store"), clips=0))
    assert "pose not a rigid motion" in capsys.readouterr().out


def test_recordings_that_cannot_be_used(tmp_path):
    root = tmp_path / "root"
    export_copies(root, "good", "many", "unclear", "silent", "untimed", "broken")
    export_holoassist(root, "short", frames=40)
    export = "Export_py"
    edit_lines(
        root / "many" / export / "Video" / "Pose_sync.txt", lambda lines: [line[:80] for line in lines[:9]] + lines[9:]
    )
    save(root / "unclear" / export / "Video" / "Intrinsics.txt", "1\t2\tthree")
    (root / "silent" / export / "Video_pitchshift.mp4").unlink()
    save(root / "untimed" / export / "Video" / "VideoMp4Timing.txt", "")
    video = root / "broken" / export / "Video_pitchshift.mp4"
    video.write_bytes(video.read_bytes()[:-2000])
    (root / "data_split" / "train-v1_2.txt").open("a").write("absent\n")
    (clip,) = run(root, "holoassist", max_skipped_share=1.0)
    assert clip.key == "good-00000"
    damaged = "file of the recording damaged"
    assert skipped(root) == {
        "short": "recording shorter than a clip", "many": damaged, "unclear": damaged, "silent": "video missing",
        "untimed": damaged, "broken": "video undecodable", "absent": "file of the recording missing",
    }  # fmt: skip
    assert str(tmp_path) not in (tmp_path / "store" / "skipped.jsonl").read_text()


def test_damaged_files_of_the_others(tmp_path):
    root = tmp_path / "root"
    export_h2o(root, first=5)
    place = root / "subject1_ego/h1/0/cam4"
    (place / "cam_pose" / "000020.txt").write_text("1 2 3")
    (place / "depth" / "000005.png").write_bytes(b"no image")
    (clip,) = cut(root, "h2o")
    assert clip.meta["dropped"] == {"camera": "pose not finite", "depth": "depth unreadable"}
    (place / "rgb" / "000009.png").write_bytes((place / "rgb" / "000009.png").read_bytes()[:50])
    (clip,) = cut(root, "h2o")
    assert clip.rgb is not None  # a frame that no clip shows
    (place / "rgb" / "000012.png").write_bytes(b"no image")
    (one,) = cut(root, "h2o")
    assert isinstance(one, Skipped) and one.reason == "video undecodable"
    for number in range(9, 25):
        (place / "rgb" / f"{number:06d}.png").unlink()
    (one,) = cut(root, "h2o")
    assert isinstance(one, Skipped) and one.reason == "frames missing in the span"

    root = tmp_path / "taco"
    export_taco(root)
    name = "(stir, spoon, bowl)/20231105_019"
    np.save(root / "Egocentric_Camera_Parameters" / name / "egocentric_frame_extrinsic.npy", np.zeros((9, 4, 4)))
    (root / "Egocentric_Camera_Parameters" / name / "egocentric_intrinsic.txt").write_text("900 0 960 0 900 540 0 0 1")
    (root / "Egocentric_Depth_Videos" / name / "egocentric_depth.avi").write_bytes(b"no video")
    (clip,) = cut(root, "taco")
    assert clip.meta["dropped"] == {
        "camera": "frames and poses differ in number", "intrinsics": "file of the recording damaged", "depth": "video undecodable",
    }  # fmt: skip


def test_depth_video_at_half_the_rate(tmp_path):
    export_taco(tmp_path)
    name = "(stir, spoon, bowl)/20231105_019"
    maps = [np.full((27, 48), 100 * (index + 1), np.uint16) for index in range(FRAMES // 2)]
    write_gray16(tmp_path / "Egocentric_Depth_Videos" / name / "egocentric_depth.avi", maps, rate=15)
    (clip,) = cut(tmp_path, "taco")
    assert np.allclose(clip.depth[:, 0, 0] * 4000 / 100 - 1, np.floor(clip.rgb_times_s * 15 + 0.01))


def test_a_store_whose_clips_differ_feeds_training(tmp_path):
    root = tmp_path / "root"
    for number in range(2):
        export_h2o(root, f"subject1_ego/h1/{number}")
    for path in (root / "subject1_ego/h1/0/cam4/depth").iterdir():
        path.unlink()
    without, with_depth = run(root, "h2o")
    assert without.depth is None and without.meta["dropped"] == {"depth": "file of the recording missing"}
    assert with_depth.depth is not None
    samples = ClipDataset(str(tmp_path / "store"), frames=2, image_size=32, train=False)
    assert not samples[0]["depth_valid"].any() and samples[1]["depth_valid"].all()
    assert samples[0]["depth"].shape == samples[1]["depth"].shape


@pytest.mark.parametrize("source", RECORDINGS)
def test_a_wrong_root_is_one_clear_error(tmp_path, source):
    with pytest.raises(FileNotFoundError, match=r"root=.*none"):
        run(tmp_path / "none", source, split="all")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=r"(root|split)=") as caught:
        run(tmp_path / "empty", source, split="all")
    assert "\n" not in str(caught.value) and not (tmp_path / "store").exists()


def test_settings_of_the_wrong_kind(tmp_path):
    place = str(tmp_path)
    for given, message in (
        ({"source": "h2o", "annotations": "a"}, r"root= is empty"),
        ({"source": "h2o", "root": place, "videos": "v"}, r"videos=v: source=h2o is read from root= alone; leave it out"),
        ({"source": "ego4d", "root": place, "annotations": "a", "videos": "v"}, r"root=.*: source=ego4d is read from annotations= and videos= alone"),
        ({"source": "ego4d", "videos": "v"}, r"annotations= is empty"),
        ({"source": "h2o", "root": place, "clip_s": 0.0}, r"clip_s=0.0: expected more than 0"),
        ({"source": "h2o", "root": place, "frames": 0}, r"frames=0"),
        ({"source": "nuscenes", "root": place}, r"source=nuscenes: expected one of ego4d, .*holoassist, h2o"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ImportConfig(out=place, **given)
    config = ImportConfig(source="h2o", root=place, out=place)
    assert (config.frames, config.image_size, config.max_gap_s) == (16, 256, 0.2)
    config = ImportConfig(source="ego4d", annotations="a", videos="v", out=place)
    assert (config.frames, config.image_size, config.max_gap_s) == (8, 288, 1.0)


# --- the pickled dict of ARCTIC ---


class Harmful:
    def __reduce__(self):
        return (eval, ("1 + 1",))


def dumped(value: object, protocol: int = 3) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(()), allow_pickle=False)
    np.lib.format.write_array_header_1_0(header := io.BytesIO(), {"descr": "|O", "fortran_order": False, "shape": ()})
    return header.getvalue() + pickle.dumps(value, protocol)


def test_arrays_come_out_of_a_pickle_without_unpickling(tmp_path):
    stored = {
        "doubles": np.arange(12.0).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big": np.arange(4, dtype=">i4"),
        "scalar": np.float64(2.5),
        "labels": np.asarray(["a", "b"]),
        "objects": np.asarray([{"x": np.ones(2)}, None], object),
        "plain": [1, "two", (3.0, None)],
    }
    np.save(tmp_path / "a.npy", stored, allow_pickle=True)  # type: ignore[arg-type]
    loaded = load_array_dict(tmp_path / "a.npy")
    for name in ("doubles", "fortran", "big"):
        assert np.array_equal(loaded[name], stored[name]) and loaded[name].shape == stored[name].shape
    assert loaded["scalar"] == 2.5 and loaded["plain"] == stored["plain"] and loaded["labels"] == []
    assert np.array_equal(loaded["objects"][0]["x"], np.ones(2))


@pytest.mark.parametrize(
    "value", [{"a": Harmful()}, np.asarray({"a": Harmful()}), {"a": Path("b")}, {"a": np.random.default_rng(0)}]
)
def test_a_pickle_that_names_anything_else_is_refused(tmp_path, value):
    save(tmp_path / "a.npy", dumped(value))
    with pytest.raises(ValueError, match=r"this pickle names \S+, which may run any code"):
        load_array_dict(tmp_path / "a.npy")


def test_other_npy_files_are_one_error(tmp_path):
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    save(tmp_path / "list.npy", dumped([1]))
    save(tmp_path / "cut.npy", dumped({"a": np.zeros(9)})[:-40])
    save(tmp_path / "text.npy", b"hello")
    save(tmp_path / "empty.npy", b"")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=rf"{path}: (not a whole npy of a dict|holds a int)"):
            load_array_dict(path)


# --- undistortion ---


def test_undistortion_ends_where_the_model_folds():
    # A distortion that brings rays together beyond a radius of sqrt(1 / 0.9).
    distortion = (-0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert arctic.largest_radius(distortion, 2.0) == pytest.approx(np.sqrt(1 / 0.9), abs=2e-3)
    assert arctic.largest_radius((0.1,) + (0.0,) * 7, 2.0) == np.inf
    matrix = (50.0, 0.0, 99.5, 0.0, 50.0, 99.5, 0.0, 0.0, 1.0)
    map_x, map_y = arctic.undistortion_maps(matrix, distortion, 200, 200)
    assert (map_x[0, 0], map_y[0, 0]) == (-2, -2) and map_x[100, 100] == pytest.approx(100, abs=0.01)
    black = cv2.remap(np.full((200, 200), 255, np.uint8), map_x, map_y, cv2.INTER_LINEAR)
    assert black[0, 0] == 0 and black[100, 100] == 255
    assert ARCTIC_OFFSET > 0

"""``egoarm annotate`` end to end on made-up clips: what it writes, reasons, resuming, launchers, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pretrain.annotate import stages
from pretrain.annotate.config import PRESETS, STAGES, AnnotateConfig
from pretrain.annotate.depth import DEPTH_TEACHERS, PSEUDO_NEAR_M
from pretrain.annotate.detect import DETECTORS
from pretrain.annotate.pipeline import run
from pretrain.annotate.records import Detections, Track
from pretrain.annotate.stages import backend_table, read_record, stage_hash, work_path, write_record
from pretrain.annotate.track import TRACKERS, TruthTracker
from pretrain.clips.build import build_store
from pretrain.clips.dataset import ClipDataset
from pretrain.clips.schema import Clip
from pretrain.clips.store import open_store
from tests.pretrain.test_annotate_track import make_scene

# What is wrong with each clip of the store; its index modulo their number.
DEFECTS = ("", "no contact", "no hand", "no depth", "constant depth", "no narration")


def make_clip(index: int, *, defects: tuple[str, ...] = DEFECTS) -> Clip:
    defect = defects[index % len(defects)]
    scene = make_scene(frames=5, size=48 + 16)
    assert scene.contact is not None and scene.segmentation is not None and scene.depth is not None
    changes: dict[str, object] = {"key": f"clip-{index:03d}", "captions": ("an old caption",), "meta": {"index": index}}
    if defect == "no contact":
        changes["contact"] = np.zeros_like(scene.contact)
    if defect == "no hand":
        changes["segmentation"] = np.where(scene.segmentation == 2, 0, scene.segmentation).astype(np.uint8)
    if defect == "no depth":
        changes["depth"] = None
    if defect == "constant depth":
        changes["depth"] = np.ones_like(scene.depth)
    if defect == "no narration":
        changes["narration"] = "  "
    return scene.replace(**changes)


def write_store(directory: Path, clips: int, **more: object) -> Path:
    build_store(
        directory, partial(make_clip, **more), kind="scenes", seed=0, settings={}, versions={}, n_clips=clips,
        clips_per_shard=4, workers=1,
    )  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("scenes") / "store", len(DEFECTS))


def configure(source: Path, target: Path, **more: object) -> AnnotateConfig:
    return AnnotateConfig(**{"store": str(source), "out": str(target), "backends": "truth", "workers": 1, **more})  # type: ignore[arg-type]


def outcomes(out: Path) -> dict[str, dict[str, int]]:
    return json.loads((out / "manifest.json").read_text())["config"]["outcomes"]


# ------------------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("backends", ["truth", "classical"])
def test_every_clip_is_annotated_or_has_a_reason(
    scenes: Path, tmp_path: Path, backends: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(configure(scenes, tmp_path / "out", backends=backends))
    source, store = open_store(scenes), open_store(tmp_path / "out")
    assert store.keys == source.keys
    reasons = []
    for index in range(len(store)):
        before, clip = source.read(index), store.read(index)
        found = clip.meta["annotation"]
        assert set(found["stages"]) == set(STAGES) and found["backends"] == PRESETS[backends]
        reasons.append({stage: reason for stage, reason in found["stages"].items() if reason != "done"})
        assert clip.narration == before.narration and clip.meta["index"] == index
        assert clip.rgb is not None and before.rgb is not None and clip.rgb.shape == before.rgb.shape
        if not reasons[-1]:
            assert clip.captions and clip.captions != before.captions and clip.facts
            assert clip.contact is not None and clip.segmentation is not None and clip.depth is not None
            assert clip.labels[3] == "red can" and clip.contact[:, 1].tolist() == [0, 0, 3, 3, 3]
            assert found["detections"]["2"][0]["side"] == "right"
        else:
            assert clip.captions == before.captions and clip.facts == before.facts
    assert reasons == [
        {},
        {"detect": "no contact", "track": "detect failed", "generate": "detect failed"},
        {"detect": "no hand", "track": "detect failed", "generate": "detect failed"},
        {"depth": "the clip has no depth", "generate": "depth failed"},
        {"depth": "the depth of a frame is constant", "generate": "depth failed"},
        {"generate": "the narration is empty"},
    ]
    assert outcomes(tmp_path / "out")["generate"] == {
        "depth failed": 2,
        "detect failed": 2,
        "done": 1,
        "the narration is empty": 1,
    }
    # Clips without depth can be trained on with the others: their depth is nowhere known.
    dataset = ClipDataset(store, frames=2, image_size=32, train=False)
    assert [bool(dataset[index]["depth_valid"].any()) for index in range(6)] == [True, True, True, False, False, True]
    printed = capsys.readouterr().out
    assert "no contact (1)" in printed and "egoarm clips info" in printed


def test_relative_depth_is_marked(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Relative:
        name, metric = "relative", False

        def estimate(self, clip: Clip) -> np.ndarray:
            assert clip.rgb is not None
            return clip.rgb[..., 0].astype(np.float32)

    monkeypatch.setitem(DEPTH_TEACHERS, "relative", lambda config: Relative())
    run(configure(scenes, tmp_path / "out", depth="relative", align_depth=False, clips=1))
    clip = open_store(tmp_path / "out").read(0)
    assert clip.meta["annotation"]["depth_is_relative"] is True
    assert clip.depth is not None and clip.depth.min() == pytest.approx(PSEUDO_NEAR_M, abs=1e-3)
    assert clip.captions != ("an old caption",)


def test_boxes_outside_are_counted(scenes: Path, tmp_path: Path) -> None:
    directory = tmp_path / "rows"
    directory.mkdir()
    array = np.zeros((5, 4, 10))
    array[:, 1] = (40, 20, 90, 40, 0.9, 3, 0, 0, 0, 1)  # reaches over the right border
    array[:, 2] = (20, 20, 38, 36, 0.9, 0, 0, 0, 0, 0)
    array[4, 3] = (30, 30, 20, 20, 0.9, 0, 0, 0, 0, 0)  # inverted
    np.save(directory / "clip-000.npy", array)
    run(configure(scenes, tmp_path / "out", detect="100doh", track="classical", detections=str(directory), clips=2))
    store = open_store(tmp_path / "out")
    assert store.read(0).meta["annotation"]["boxes"] == {"clipped": 5, "dropped: empty or inverted": 1}
    assert store.read(1).meta["annotation"]["stages"]["detect"] == "no file of detections"


def test_a_crash_costs_one_clip(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fragile(TruthTracker):
        def track(self, clip: Clip, detections: Detections) -> tuple[Track, ...]:
            if clip.key == "clip-000":
                raise ZeroDivisionError("of all things")
            return super().track(clip, detections)

    monkeypatch.setitem(TRACKERS, "fragile", lambda config: Fragile())
    run(configure(scenes, tmp_path / "out", track="fragile"))
    found = open_store(tmp_path / "out").read(0)
    assert found.meta["annotation"]["stages"]["track"] == "crashed: ZeroDivisionError: of all things"
    assert found.captions == ("an old caption",) and found.segmentation is None
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert open_store(tmp_path / "out").read(5).meta["annotation"]["stages"]["track"] == "done"


# --------------------------------------------------------------------------------------------------------------- resuming


def test_finished_clips_are_not_done_again(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []
    really = stages.StageRunner.__call__

    def spy(self: stages.StageRunner, index: int) -> str | None:
        done.append((self.stage, index))
        return really(self, index)

    monkeypatch.setattr(stages.StageRunner, "__call__", spy)
    config = configure(scenes, tmp_path / "out")
    run(config)
    whole = (tmp_path / "out" / "manifest.json").read_bytes()
    assert len(done) == 4 * 6

    done.clear()
    run(config)
    assert done == []

    # As after a kill: no manifest yet, two clips of two stages missing.
    (tmp_path / "out" / "manifest.json").unlink()
    work_path(config, "detect", "clip-001").unlink()
    work_path(config, "generate", "clip-000").unlink()
    run(config)
    assert done == [("detect", 1), ("generate", 0)]
    assert (tmp_path / "out" / "manifest.json").read_bytes() == whole

    done.clear()
    run(configure(scenes, tmp_path / "out", retry_failed=True))
    assert ("depth", 3) in done and ("depth", 0) not in done


def test_another_setting_takes_nothing_of_the_first(scenes: Path, tmp_path: Path) -> None:
    first = configure(scenes, tmp_path / "out")
    run(first)
    other = configure(scenes, tmp_path / "out", track="classical")
    assert [stage_hash(stage, first, "m") == stage_hash(stage, other, "m") for stage in STAGES] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(ValueError, match=r"made in another way.*another out="):
        run(other)


def test_records_of_another_run_are_not_read(tmp_path: Path) -> None:
    for name in ("one.json", "one.npz"):
        arrays = {"depth_mm": np.arange(6, dtype=np.uint16)} if name.endswith("npz") else {}
        write_record(tmp_path / name, "hash", {"metric": True, **arrays})
        record = read_record(tmp_path / name, "hash")
        assert record is not None and record.result is not None and record.result["metric"] is True
        assert all(np.array_equal(record.result[key], value) for key, value in arrays.items())
        assert read_record(tmp_path / name, "another") is None
    assert read_record(tmp_path / "absent.json", "hash") is None


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", 24, defects=("",))
    words = [f"store={store}", f"out={tmp_path / 'out'}", "backends=classical", "workers=2"]
    command = [sys.executable, "-m", "egoarm", "annotate", *words]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tracks = tmp_path / "out" / "work" / "track"
    deadline = time.monotonic() + 240
    while len(list(tracks.glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in tracks.glob("*.json")}
    assert 3 <= len(before) < 24
    subprocess.run(command, check=True, capture_output=True)
    assert len(open_store(tmp_path / "out")) == 24
    assert all((tracks / name).stat().st_mtime_ns == when for name, when in before.items())


# ------------------------------------------------------------------------------------------------- launchers and bad input


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_launchers_give_the_same_store(scenes: Path, tmp_path: Path, launcher: str) -> None:
    if launcher == "ray":
        pytest.importorskip("ray")
    run(configure(scenes, tmp_path / "one"))
    run(configure(scenes, tmp_path / "other", launcher=launcher, workers=2 if launcher == "local" else 1))
    assert open_store(tmp_path / "other").manifest_sha256 == open_store(tmp_path / "one").manifest_sha256


@pytest.mark.parametrize("stage", STAGES)
def test_an_unknown_backend_is_one_error(scenes: Path, tmp_path: Path, stage: str) -> None:
    names = ", ".join(backend_table(stage))
    with pytest.raises(ValueError, match=f"{stage}=.*nonsense.*{names}"):
        run(configure(scenes, tmp_path / "out", **{stage: "nonsense"}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (stage, name)
        for stage, table in (("depth", DEPTH_TEACHERS), ("detect", DETECTORS), ("track", TRACKERS))
        for name in table
        if name not in ("truth", "classical")
    ],
)
def test_missing_files_are_one_error_before_any_work(scenes: Path, tmp_path: Path, stage: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"(weights|detections)="):
        run(configure(scenes, tmp_path / "out", **{stage: name}))
    assert not (tmp_path / "out").exists()


def test_presets_name_known_backends() -> None:
    for preset in PRESETS.values():
        for stage, name in preset.items():
            assert name in backend_table(stage)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backends": "magic"}, "backends='magic'.*truth, classical, transformers"),
        ({"launcher": "slurm"}, "launcher="),
        ({"device": "tpu"}, "device="),
        ({"workers": -1}, "workers=-1"),
        ({"clips_per_shard": 0}, "clips_per_shard=0"),
        ({"detect_nms": 1.5}, "detect_nms=1.5"),
        ({"out": ""}, "out="),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(Path("in"), Path("out"), **settings)


def test_wrong_places(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such clip store"):
        run(configure(tmp_path / "absent", tmp_path / "out"))
    with pytest.raises(ValueError, match="is the store itself"):
        run(configure(scenes, scenes))
    with pytest.raises(ValueError, match="clips=99"):
        run(configure(scenes, tmp_path / "out", clips=99))

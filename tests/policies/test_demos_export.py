"""The export to LeRobot's format: field by field, and by LeRobot's own reader where it is installed."""

import importlib.util
import itertools
import json
from pathlib import Path

import av
import numpy as np
import pytest

from policies.demos.collect import DemosConfig
from policies.demos.collect import run as collect
from policies.demos.hdf5 import DemoFile
from policies.demos.lerobot import ExportConfig, run
from policies.demos.statistics import FeatureStatistics, ImageStatistics

parquet = pytest.importorskip("pyarrow.parquet")


def config(demos: Path | tuple[Path, ...], out: Path) -> ExportConfig:
    files = tuple(map(str, demos)) if isinstance(demos, tuple) else str(demos)
    return ExportConfig(demos=files, out=str(out), format="lerobot", instruction=None, crf=18)


@pytest.fixture(scope="module")
def exported(toy_demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config(toy_demos, tmp_path_factory.mktemp("export") / "toy"))


def frames_of(video: Path) -> tuple[np.ndarray, list[float], list[bool]]:
    with av.open(str(video)) as container:
        frames = list(container.decode(video=0))
    times = [float(frame.pts * frame.time_base) for frame in frames]
    return np.stack([f.to_ndarray(format="rgb24") for f in frames]), times, [bool(f.key_frame) for f in frames]


def test_info_says_what_is_there(exported: Path, toy_demos: Path) -> None:
    info = json.loads((exported / "meta/info.json").read_text())
    with DemoFile(toy_demos) as demos:
        assert info["total_episodes"] == len(demos) == 4 and info["total_frames"] == sum(demos.lengths)
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and info["splits"] == {"train": "0:4"}
    assert info["features"]["observation.images.front"]["shape"] == [64, 64, 3]
    assert info["features"]["observation.state"]["names"] == ["tip_pos.0", "tip_pos.1", "tip_vel.0", "tip_vel.1"]
    origin = json.loads((exported / "meta/egoarm.json").read_text())["files"][0]
    assert origin["spec"]["task"] == "toy/reach" and origin["seeds"] == [0, 1, 2, 3]


def test_rows_and_frames_are_those_of_the_demonstrations(exported: Path, toy_demos: Path) -> None:
    table = parquet.read_table(exported / "data/chunk-000/file-000.parquet").to_pydict()
    episodes = parquet.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    video, times, keys = frames_of(exported / "videos/observation.images.front/chunk-000/file-000.mp4")
    assert table["index"] == list(range(len(video))) and times == pytest.approx([i / 20 for i in range(len(video))])
    assert all(a or b for a, b in itertools.pairwise(keys)), "two frames in a row without a key frame"
    with DemoFile(toy_demos) as demos:
        for demo, row in enumerate(episodes):
            rows = slice(row["dataset_from_index"], row["dataset_to_index"])
            length = demos.lengths[demo]
            assert row["length"] == length == rows.stop - rows.start and row["tasks"] == ["reach"]
            assert table["episode_index"][rows] == [demo] * length and table["frame_index"][rows] == list(range(length))
            np.testing.assert_array_equal(np.float32(table["action"][rows]), demos.array(demo, "actions"))
            state = np.concatenate([demos.array(demo, f"obs/state/{name}") for name in ("tip_pos", "tip_vel")], axis=1)
            np.testing.assert_array_equal(np.float32(table["observation.state"][rows]), state)
            assert table["next.done"][rows] == [False] * (length - 1) + [True]
            first = round(row["videos/observation.images.front/from_timestamp"] * 20)
            shown = video[first : first + length].astype(float)
            assert np.abs(shown - demos.array(demo, "obs/images/front")).mean() < 4


def test_statistics_are_those_of_numpy(exported: Path, toy_demos: Path) -> None:
    stats = json.loads((exported / "meta/stats.json").read_text())
    with DemoFile(toy_demos) as demos:
        actions = np.concatenate([demos.array(demo, "actions") for demo in range(4)]).astype(float)
        images = np.concatenate([demos.array(demo, "obs/images/front") for demo in range(4)]) / 255
    for name, expected in {
        "mean": actions.mean(0),
        "std": actions.std(0),
        "min": actions.min(0),
        "q90": np.quantile(actions, 0.9, axis=0),
    }.items():
        np.testing.assert_allclose(stats["action"][name], expected, rtol=1e-6, err_msg=name)
    image = stats["observation.images.front"]
    for name, expected in {
        "mean": images.mean((0, 1, 2)),
        "std": images.std((0, 1, 2)),
        "max": images.max((0, 1, 2)),
        "q50": np.quantile(images, 0.5, axis=(0, 1, 2)),
    }.items():
        np.testing.assert_allclose(np.ravel(image[name]), expected, atol=1 / 255, err_msg=name)
    assert image["count"] == [len(images)] and np.shape(image["mean"]) == (3, 1, 1)


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    random = np.random.default_rng(0)
    whole, parts = ImageStatistics(), ImageStatistics()
    images = random.integers(0, 256, (6, 5, 5, 3), np.uint8)
    whole.add(images)
    for image in images:
        parts.add(image[None])
    assert whole.result() == parts.result()
    vector = FeatureStatistics()
    vector.add(np.ones((1, 2)))
    assert vector.result()["std"] == [0, 0] and vector.result()["count"] == [1]


def test_several_files_of_privileged_states(tmp_path: Path, toy_demos: Path) -> None:
    files = []
    for first in (0, 50):
        out = tmp_path / f"{first}.hdf5"
        common = {"task": "toy/reach", "level": "clean", "episodes": 1, "image_size": 64, "workers": 1}
        collect(DemosConfig(out=str(out), first_seed=first, cameras=(), privileged=True, **common))
        files.append(out)
    out = run(config(tuple(files), tmp_path / "both"))
    info = json.loads((out / "meta/info.json").read_text())
    assert info["total_episodes"] == 2 and info["video_path"] is None and not (out / "videos").exists()
    assert info["features"]["observation.environment_state"]["shape"] == [6]
    with pytest.raises(ValueError, match=r"do not fit into one data set: .*images/front"):
        run(config((files[0], toy_demos), tmp_path / "mixed"))
    assert not (tmp_path / "mixed").exists()


def test_bad_requests(exported: Path, toy_demos: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="is there already"):
        run(config(toy_demos, exported))
    with pytest.raises(ValueError, match="format=rlds: expected lerobot"):
        ExportConfig(demos="x", out="y", format="rlds", instruction=None, crf=18)
    with pytest.raises(FileNotFoundError):
        run(config(tmp_path / "none.hdf5", tmp_path / "out"))


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is None, reason="lerobot is not installed")
def test_lerobot_reads_it(exported: Path, toy_demos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pretrain.zoo.vision_ops  # noqa: F401  (torchvision's door)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = importlib.import_module("lerobot.datasets.lerobot_dataset")
    dataset = module.LeRobotDataset("local/toy", root=exported, delta_timestamps={"action": [0, 0.05, 0.1]})
    with DemoFile(toy_demos) as demos:
        assert dataset.num_episodes == 4 and len(dataset) == sum(demos.lengths)
        start = demos.lengths[0]
        item, last = dataset[start], dataset[start - 1]
        np.testing.assert_array_equal(item["action"].numpy(), demos.array(1, "actions")[:3])
        assert last["action_is_pad"].tolist() == [False, True, True] and item["task"] == "reach"
        image = item["observation.images.front"].numpy().transpose(1, 2, 0) * 255
        assert np.abs(image - demos.array(1, "obs/images/front")[0]).mean() < 4

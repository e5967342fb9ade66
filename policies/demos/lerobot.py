"""Export of demonstrations to LeRobot's dataset format v3.0: parquet tables, one mp4 for many episodes, statistics.

meta/info.json                        sizes, fps, path patterns and the features
meta/tasks.parquet                    index: the instruction; column task_index
meta/episodes/chunk-000/file-000.parquet   a row an episode: where its rows and frames lie, and its statistics
meta/stats.json                       statistics of the whole
meta/egoarm.json                      the environment's spec and the files that went in; LeRobot does not read it
data/chunk-000/file-000.parquet       a row a step
videos/<feature>/chunk-000/file-000.mp4    all episodes of a camera, one after the other

Features: observation.images.<camera>, observation.state (all proprioception, joined), observation.environment_state (where the privileged state was
recorded), action, next.reward, next.done. Source of the format: LeRobot 0.4's documentation and its reader, `LeRobotDataset`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from envs.spec import EnvSpec
from policies.demos.hdf5 import DemoFile
from policies.demos.statistics import FeatureStatistics, ImageStatistics
from pretrain.artifact import atomic_directory

CODEBASE_VERSION = "v3.0"
CHUNK_FILES = 1000  # files in a chunk's folder
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STATE, ENVIRONMENT_STATE, IMAGES = "observation.state", "observation.environment_state", "observation.images."
_INDEX_FEATURES = ("frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    demos: str | tuple[str, ...]
    out: str
    format: str
    instruction: str | None
    crf: int

    def __post_init__(self) -> None:
        if self.format != "lerobot":
            raise ValueError(
                f"format={self.format}: expected lerobot (a demonstration file is robomimic's layout already)"
            )
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf={self.crf}: expected 0 (largest) to 51 (coarsest)")
        if not self.files:
            raise ValueError("demos=[]: name at least one demonstration file")
        if self.instruction is not None and len(self.files) > 1:
            raise ValueError("instruction= is for one file; with several, each file's task gives its own")

    @property
    def files(self) -> tuple[str, ...]:
        return (self.demos,) if isinstance(self.demos, str) else self.demos


def run(config: ExportConfig) -> Path:
    """Write the data set; the folder appears whole or not at all.

    Raises:
        ValueError: no pyarrow, files whose features differ, odd image sizes.
        FileExistsError: `out` is there already.
    """
    _require_pyarrow()
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"{out} is there already; name another out= or delete it")
    opened: list[DemoFile] = []
    try:
        for file in config.files:
            opened.append(DemoFile(file, any_version=True))  # an export keeps what was recorded; nothing is simulated
        features, fps = features_of(opened[0].env_spec), opened[0].env_spec.control_hz
        for demos in opened[1:]:
            _check_same(opened[0], demos)
        with atomic_directory(out) as temporary:
            writer = _Writer(temporary, features, fps, config.crf)
            count = sum(map(len, opened))
            with tqdm(total=count, desc="export", unit="demo", disable=None) as progress:
                for demos in opened:
                    task = config.instruction or demos.env_spec.task.partition("/")[2].replace("-", " ")
                    for demo in range(len(demos)):
                        writer.add(demos, demo, task)
                        progress.update()
            writer.finish(_origin(opened))
        print(f"export: {count} demonstrations, {writer.steps} steps, LeRobot {CODEBASE_VERSION} -> {out}")
    finally:
        for demos in opened:
            demos.close()
    return out


def features_of(spec: EnvSpec) -> dict[str, dict[str, Any]]:
    """LeRobot's features of an environment: name -> dtype, shape and names of the axes or elements."""
    features: dict[str, dict[str, Any]] = {}
    for camera in spec.cameras:
        height, width, channels = spec.observation[f"images/{camera}"].shape
        if height % 2 or width % 2:
            raise ValueError(f"images of {camera} are {width}x{height}: video in yuv420p needs even sizes")
        features[f"{IMAGES}{camera}"] = {
            "dtype": "video",
            "shape": [height, width, channels],
            "names": ["height", "width", "channels"],
        }
    for feature, keys in (
        (STATE, state_keys(spec)),
        (ENVIRONMENT_STATE, [key for key in spec.observation if key == "state/full"]),
    ):
        if keys:
            names = [
                f"{key.removeprefix('state/')}.{i}" for key in keys for i in range(int(spec.observation[key].shape[0]))
            ]
            features[feature] = _vector(names)
    features["action"] = _vector([f"action.{i}" for i in range(spec.action.shape[0])])
    features["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
    features["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    return features | {name: {"dtype": "int64", "shape": [1], "names": None} for name in _INDEX_FEATURES}


def state_keys(spec: EnvSpec) -> list[str]:
    """The keys that observation.state joins, in order."""
    return [key for key in spec.observation if key.startswith("state/") and key != "state/full"]


class _Writer:
    """Adds one episode after the other to the open files of a data set."""

    def __init__(self, root: Path, features: dict[str, dict[str, Any]], fps: float, crf: int) -> None:
        self._root = root
        self._features = features
        self._fps = int(fps) if float(fps).is_integer() else fps
        self._videos = {
            key: _VideoFiles(root, key, fps, feature["shape"], crf)
            for key, feature in features.items()
            if feature["dtype"] == "video"
        }
        self._table = _TableFiles(root, features)
        self._episodes: list[dict[str, Any]] = []
        self._tasks: list[str] = []
        self._totals = {
            key: ImageStatistics() if feature["dtype"] == "video" else FeatureStatistics()
            for key, feature in features.items()
        }
        self.steps = 0

    def add(self, demos: DemoFile, demo: int, task: str) -> None:
        if task not in self._tasks:
            self._tasks.append(task)
        spec, length, episode = demos.env_spec, demos.lengths[demo], len(self._episodes)
        columns = {
            "action": demos.array(demo, "actions"),
            "next.reward": demos.array(demo, "rewards").astype(np.float32)[:, None],
            "next.done": demos.array(demo, "dones").astype(bool)[:, None],
            "timestamp": (np.arange(length) / float(self._fps)).astype(np.float32)[:, None],
            "frame_index": np.arange(length)[:, None],
            "episode_index": np.full((length, 1), episode),
            "index": np.arange(self.steps, self.steps + length)[:, None],
            "task_index": np.full((length, 1), self._tasks.index(task)),
        }
        if STATE in self._features:
            columns[STATE] = np.concatenate([demos.array(demo, f"obs/{key}") for key in state_keys(spec)], axis=1)
        if ENVIRONMENT_STATE in self._features:
            columns[ENVIRONMENT_STATE] = demos.array(demo, "obs/state/full")
        row: dict[str, Any] = {"episode_index": episode, "tasks": [task], "length": length}
        row |= self._table.add({key: columns[key] for key in self._features if key in columns})
        row |= {"dataset_from_index": self.steps, "dataset_to_index": self.steps + length}
        statistics: dict[str, dict[str, list[Any]]] = {}
        for key, video in self._videos.items():
            frames = demos.array(demo, f"obs/images/{key.removeprefix(IMAGES)}")
            row |= video.add(frames)
            statistics[key] = self._measured(key, frames)
        for key, values in columns.items():
            statistics[key] = self._measured(key, values)
        for key, own in statistics.items():
            row |= {f"stats/{key}/{name}": value for name, value in own.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._episodes.append(row)
        self.steps += length

    def _measured(self, key: str, values: np.ndarray) -> dict[str, list[Any]]:
        own = type(self._totals[key])()
        own.add(values)
        self._totals[key].add(values)
        return own.result()

    def finish(self, origin: Mapping[str, Any]) -> None:
        import pandas
        import pyarrow
        import pyarrow.parquet

        self._table.close()
        for key, video in self._videos.items():
            video.close()
            height, width, _ = self._features[key]["shape"]
            self._features[key]["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": False,
            }
        path = self._root / EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self._episodes), path)
        tasks = pandas.DataFrame({"task_index": range(len(self._tasks))}, index=self._tasks)
        tasks.to_parquet(self._root / "meta/tasks.parquet")
        count = len(self._episodes)
        info = {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": None,
            "total_episodes": count,
            "total_frames": self.steps,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{count}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "features": self._features,
        }
        _write_json(self._root / "meta/info.json", info)
        _write_json(self._root / "meta/stats.json", {key: total.result() for key, total in self._totals.items()})
        _write_json(self._root / "meta/egoarm.json", origin)


class _TableFiles:
    """Rows of the steps: a parquet file until it holds DATA_FILE_MB, then the next; an episode is never split."""

    def __init__(self, root: Path, features: Mapping[str, Mapping[str, Any]]) -> None:
        import pyarrow

        scalar = {"float32": pyarrow.float32(), "int64": pyarrow.int64(), "bool": pyarrow.bool_()}
        fields = []
        for key, feature in features.items():
            if feature["dtype"] != "video":
                size, kind = feature["shape"][0], scalar[feature["dtype"]]
                # LeRobot reads a feature of one element as a scalar, and others as lists of a fixed length.
                fields.append(pyarrow.field(key, kind if size == 1 else pyarrow.list_(kind, size)))
        self._schema = pyarrow.schema(fields)
        self._root = root
        self._file = -1
        self._writer: Any = None
        self._bytes = 0

    def add(self, columns: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Write one episode's rows; where they are, as the episode's row names it."""
        import pyarrow
        import pyarrow.parquet

        size = sum(values.nbytes for values in columns.values())
        if self._writer is None or self._bytes + size > DATA_FILE_MB << 20:
            self.close()
            self._file += 1
            path = self._root / DATA_PATH.format(**_place(self._file))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)
            self._bytes = 0
        arrays = []
        for field in self._schema:
            values = np.ascontiguousarray(columns[field.name])
            if pyarrow.types.is_fixed_size_list(field.type):
                flat = pyarrow.array(values.reshape(-1), field.type.value_type)
                arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, field.type.list_size))
            else:
                arrays.append(pyarrow.array(values.reshape(-1), field.type))
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))
        self._bytes += size
        return {f"data/{name}": value for name, value in _place(self._file).items()}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _VideoFiles:
    """One camera's frames: an mp4 until it holds VIDEO_FILE_MB, then the next; an episode is never split."""

    def __init__(self, root: Path, key: str, fps: float, shape: Sequence[int], crf: int) -> None:
        self._root, self._key, self._shape, self._crf = root, key, shape, crf
        self._rate = Fraction(fps).limit_denominator(1000)
        self._file = -1
        self._container: Any = None
        self._frames = 0

    def add(self, frames: np.ndarray) -> dict[str, Any]:
        """Append one episode; where it is in which file, as the episode's row names it."""
        if self._container is None or self._path().stat().st_size > VIDEO_FILE_MB << 20:
            self.close()
            self._open()
        start = self._frames
        for frame in frames:
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = self._frames, 1 / self._rate
            self._container.mux(self._stream.encode(image))
            self._frames += 1
        place = {f"videos/{self._key}/{name}": value for name, value in _place(self._file).items()}
        return place | {
            f"videos/{self._key}/from_timestamp": float(start / self._rate),
            f"videos/{self._key}/to_timestamp": float(self._frames / self._rate),
        }

    def _path(self) -> Path:
        return self._root / VIDEO_PATH.format(video_key=self._key, **_place(self._file))

    def _open(self) -> None:
        self._file += 1
        self._frames = 0
        self._path().parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._path()), "w")
        # A key frame every second frame and none that refers forward: a reader that seeks decodes two frames at most.
        options = {"crf": str(self._crf), "preset": "veryfast", "g": "2", "bf": "0"}
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=options)
        self._stream.height, self._stream.width = self._shape[0], self._shape[1]
        self._stream.pix_fmt, self._stream.time_base = "yuv420p", 1 / self._rate

    def close(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None


def _place(file: int) -> dict[str, int]:
    return {"chunk_index": file // CHUNK_FILES, "file_index": file % CHUNK_FILES}


def _vector(names: list[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": names}


def _check_same(first: DemoFile, other: DemoFile) -> None:
    a, b = first.env_spec, other.env_spec
    if features_of(a) != features_of(b) or a.control_hz != b.control_hz:
        raise ValueError(
            f"{other.path} and {first.path} do not fit into one data set: {'; '.join(line for line in a.difference(b) if not line.startswith(('task:', 'horizon_steps:')))}"
        )


def _origin(opened: Iterable[DemoFile]) -> dict[str, Any]:
    return {
        "files": [
            {"path": str(demos.path), "sha256": demos.sha256, "demonstrations": len(demos), **demos.meta}
            for demos in opened
        ]
    }


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=4))


def _require_pyarrow() -> None:
    try:
        import pandas  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the export writes parquet files: {error}. Remedy: pip install 'egoarm[lerobot]'") from error

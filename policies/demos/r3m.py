"""The demonstrations of R3M's evaluation as a source: pickled lists of paths, one file for each task and camera.

<root>/<camera>/<environment>.pickle holds a list of dicts with actions [N, A], observations [N, D], rewards [N], images uint8 [N, H, W, 3] and
env_infos, a dict of arrays. The first elements of an observation are the proprioception that R3M's policies see: 4 on Meta-World, 9 on Kitchen, the
hand's joints on Adroit. Source: the README and the loading code of R3M's branch `eval`.

A pickle can run any code when it is opened. The unpickler here admits numpy arrays and plain containers and refuses everything else before it is made.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.spec import EnvSpec
from policies.demos.raw import RawEpisode, common_image_size

# Our task -> R3M's environment and the elements of proprioception at the start of its observations.
ENVIRONMENTS: dict[str, tuple[str, int]] = {
    "metaworld/assembly": ("assembly-v2-goal-observable", 4),
    "metaworld/bin-picking": ("bin-picking-v2-goal-observable", 4),
    "metaworld/button-press-topdown": ("button-press-topdown-v2-goal-observable", 4),
    "metaworld/drawer-open": ("drawer-open-v2-goal-observable", 4),
    "metaworld/hammer": ("hammer-v2-goal-observable", 4),
    "kitchen/knob1_on": ("kitchen_knob1_on-v3", 9),
    "kitchen/light_on": ("kitchen_light_on-v3", 9),
    "kitchen/sdoor_open": ("kitchen_sdoor_open-v3", 9),
    "kitchen/ldoor_open": ("kitchen_ldoor_open-v3", 9),
    "kitchen/micro_open": ("kitchen_micro_open-v3", 9),
    "adroit/pen": ("pen-v0", 24),
    "adroit/relocate": ("relocate-v0", 30),
}
# What a pickled numpy array names, in numpy 1 and 2; the containers of Python need no name.
ADMITTED: frozenset[tuple[str, str]] = frozenset(
    [
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *(
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
        ),
        ("_codecs", "encode"),  # how protocol 2 writes an array's bytes
        ("collections", "OrderedDict"),
    ]
)


class ArrayUnpickler(pickle.Unpickler):
    """Opens pickles of numpy arrays in plain containers; ValueError for one that names anything else."""

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) not in ADMITTED:
            raise ValueError(
                f"it names {module}.{name}, which is no numpy array or plain container; a pickle could run any code, so it is not opened"
            )
        return super().find_class(module, name)


def load_paths(file: Path) -> list[dict[str, Any]]:
    """The list of paths of one file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or holding anything but a list of dicts of arrays.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        with open(file, "rb") as stream:
            # Python 2 wrote arrays' bytes as text of this encoding.
            paths = ArrayUnpickler(stream, encoding="latin1").load()
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except Exception as error:  # an unpickler meets damage in many ways
        raise ValueError(f"{file} is not a whole pickle ({type(error).__name__}: {error})") from error
    if not isinstance(paths, list) or not paths or not all(isinstance(path, dict) for path in paths):
        raise ValueError(f"{file}: expected a list of paths (dicts), found {type(paths).__name__}")
    return paths


class R3MSource:
    """The files of a task's cameras, opened; see `importing.Source`."""

    def __init__(self, task: str, file: Path, spec: EnvSpec, fields: Mapping[str, str], filter_key: str | None) -> None:
        if filter_key is not None:
            raise ValueError("filter_key= is robomimic's; R3M's files have none")
        if task not in ENVIRONMENTS:
            raise ValueError(f"task={task} is not in R3M's evaluation; its tasks are: {', '.join(ENVIRONMENTS)}")
        environment, size = ENVIRONMENTS[task]
        self.version = environment.removesuffix("-goal-observable").rpartition("-")[2]
        self.installed = "today's"
        self._slices = _slices(task, spec, size)
        self._size = size
        self._paths: dict[str, list[dict[str, Any]]] = {}
        files = []
        for camera in spec.cameras:
            name = fields.get(f"images/{camera}", camera)
            path = file / name / f"{environment}.pickle" if file.is_dir() else file
            if not file.is_dir() and len(spec.cameras) > 1:
                raise ValueError(
                    f"{file} holds one camera's images and {task} has {', '.join(spec.cameras)}: name one with cameras=[...], or give file= "
                    "the folder that holds <camera>/<environment>.pickle"
                )
            files.append(path)
            self._paths[camera] = load_paths(path)
        if not files:
            raise ValueError("cameras=[]: R3M's files are one a camera; name one")
        self.files = tuple(files)
        self._check_cameras_agree()
        shapes = {
            camera: _array(paths[0], "images", self._where(camera, 0)).shape[1:]
            for camera, paths in self._paths.items()
        }
        self.image_size = common_image_size(shapes, str(file))

    def __len__(self) -> int:
        return len(next(iter(self._paths.values())))

    def episodes(self) -> Iterator[RawEpisode]:
        first = next(iter(self._paths))
        for index in range(len(self)):
            path, where = self._paths[first][index], self._where(first, index)
            observations = _array(path, "observations", where)
            if observations.ndim != 2 or observations.shape[1] < self._size:
                raise ValueError(
                    f"{where}: observations of shape {list(observations.shape)}, expected [N, at least {self._size}]"
                )
            observation = {key: observations[:, part] for key, part in self._slices.items()}
            for camera, paths in self._paths.items():
                observation[f"images/{camera}"] = _array(paths[index], "images", self._where(camera, index))
            yield RawEpisode(
                name=f"path {index}",
                observation=observation,
                actions=_array(path, "actions", where),
                rewards=_array(path, "rewards", where) if "rewards" in path else None,
                success=_success(path),
            )

    def close(self) -> None:
        self._paths = {}

    def _where(self, camera: str, index: int) -> str:
        return f"{self.files[list(self._paths).index(camera)]}: path {index}"

    def _check_cameras_agree(self) -> None:
        """The files of two cameras must show the same episodes."""
        first, *others = self._paths
        for camera in others:
            same = len(self._paths[camera]) == len(self) and all(
                np.array_equal(
                    _array(a, "actions", self._where(first, i)), _array(b, "actions", self._where(camera, i))
                )
                for i, (a, b) in enumerate(zip(self._paths[first], self._paths[camera], strict=True))
            )
            if not same:
                raise ValueError(
                    f"the files of {first} and {camera} do not hold the same episodes: their actions differ"
                )


def open_source(task: str, file: Path, spec: EnvSpec, fields: Mapping[str, str], filter_key: str | None) -> R3MSource:
    """Open the files for `importing`."""
    return R3MSource(task, file, spec, fields, filter_key)


def _slices(task: str, spec: EnvSpec, size: int) -> dict[str, slice]:
    """Which elements of an observation our state fields are: in order, from the start."""
    slices, start = {}, 0
    for key, field in spec.observation.items():
        if key.startswith("state/"):
            slices[key] = slice(start, start + field.shape[0])
            start += field.shape[0]
    assert start == size, f"{task}: proprioception of {start} elements here, {size} in R3M's evaluation"
    return slices


def _array(path: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    if name not in path:
        raise ValueError(f"{where} has no '{name}'; there is: {', '.join(map(str, path))}")
    values = np.asarray(path[name])
    if values.dtype == object or values.dtype.kind not in "fiub" or values.ndim < 1:
        raise ValueError(f"{where}: '{name}' is no array of numbers but {values.dtype}{list(values.shape)}")
    return values


def _success(path: Mapping[str, Any]) -> bool | None:
    """Whether the episode ever succeeded, where env_infos says so ("success" on Meta-World, "solved" on Kitchen and Adroit)."""
    infos = path.get("env_infos")
    if isinstance(infos, dict):
        for name in ("success", "solved", "goal_achieved"):
            if name in infos:
                return bool(np.asarray(infos[name]).any())
    return None

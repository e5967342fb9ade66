"""robomimic's and MimicGen's HDF5 files as a source of demonstrations.

The layout: data/ with attributes total and env_args (JSON: env_name, env_type, env_version, env_kwargs); data/demo_<i>/{actions, states, rewards, dones},
data/demo_<i>/obs/<key>; mask/<filter key> lists demonstrations. MimicGen's files are the same with env_name <Task>_D<n>. Images are upright there.
Source: robomimic 0.3's documentation of its datasets, its reader and its environment wrapper of robosuite.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.spec import EnvSpec
from policies.demos.hdf5 import SIMULATORS, demo_names, stored_name, subgroup
from policies.demos.raw import RawEpisode, common_image_size

# Our task -> the names of the same environment in robomimic's and MimicGen's files. MimicGen's D1 and D2 widen the placements.
ENV_NAMES: dict[str, tuple[str, ...]] = {
    "robosuite/lift": ("Lift",),
    "robosuite/stack": ("Stack", "Stack_D0", "Stack_D1"),
    "robosuite/door": ("Door",),
    "robosuite/nut-assembly-square": ("NutAssemblySquare", "Square_D0", "Square_D1", "Square_D2"),
    "robosuite/pick-place-can": ("PickPlaceCan",),
    "robosuite/two-arm-lift": ("TwoArmLift",),
}
_CONTROL_HZ = 20
_OUTPUT_MAX = [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]  # metres and radians that an action of 1 means


def robosuite_name(key: str) -> str:
    """robosuite's name of an observation: "state/eef_quat_xyzw" -> "robot0_eef_quat", "images/agentview" -> "agentview_image"."""
    if key.startswith("images/"):
        return stored_name(key)
    name = key.removeprefix("state/").removesuffix("_xyzw")
    return name if name.startswith("robot") else f"robot0_{name}"


class RobomimicSource:
    """One file, opened; see `importing.Source`."""

    def __init__(self, task: str, file: Path, spec: EnvSpec, fields: Mapping[str, str], filter_key: str | None) -> None:
        self.files = (file,)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        try:
            self._file = h5py.File(file, "r")
        except OSError as error:
            raise ValueError(f"{file} is not a whole HDF5 file ({error}); download it again") from error
        try:
            env_args = _env_args(self._file, file)
            suite = task.partition("/")[0]
            _check_env(task, env_args, file)
            self.version = str(env_args.get("env_version", "unknown"))
            self.installed = metadata.version(SIMULATORS[suite][-1])
            name_of = robosuite_name if suite == "robosuite" else stored_name
            self._names = {key: fields.get(key, name_of(key)) for key in spec.observation}
            self._demos = self._list_demos(filter_key)
            shapes = {demo: self._image_shapes(demo) for demo in self._demos}
            first = shapes[self._demos[0]]
            self.image_size = common_image_size(first, f"{file}: {self._demos[0]}")
            for demo, own in shapes.items():
                if own != first:
                    raise ValueError(
                        f"{file}: the images of {demo} have shapes {_listed(own)}, those of {self._demos[0]} {_listed(first)}; "
                        "all demonstrations of a file must have one image size"
                    )
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._demos)

    def episodes(self) -> Iterator[RawEpisode]:
        for demo in self._demos:
            group = subgroup(self._file, f"data/{demo}", self.files[0])

            def optional(name: str, group: Any = group) -> np.ndarray | None:
                return np.asarray(group[name][()]) if name in group else None

            yield RawEpisode(
                name=demo,
                observation={key: np.asarray(group[f"obs/{name}"][()]) for key, name in self._names.items()},
                actions=np.asarray(group["actions"][()]),
                rewards=optional("rewards"),
                dones=optional("dones"),
                states=optional("states"),
            )

    def close(self) -> None:
        self._file.close()

    def _list_demos(self, filter_key: str | None) -> list[str]:
        file = self.files[0]
        names = demo_names(subgroup(self._file, "data", file), file)
        if filter_key is not None:
            masks = subgroup(self._file, "mask", file) if "mask" in self._file else {}
            if filter_key not in masks:
                raise ValueError(f"{file} has no filter key {filter_key!r}; there is: {', '.join(masks) or 'none'}")
            chosen = {name.decode() for name in np.asarray(masks[filter_key][()])}
            names = [name for name in names if name in chosen]
        if not names:
            raise ValueError(f"{file} holds no demonstration" + (f" under {filter_key!r}" if filter_key else ""))
        return names

    def _image_shapes(self, demo: str) -> dict[str, tuple[int, ...]]:
        """Shape of each image of a demonstration, by its name in the file; ValueError if a key is missing."""
        file = self.files[0]
        group = subgroup(self._file, f"data/{demo}", file)
        if "actions" not in group:
            raise ValueError(f"{file}: {demo} has no 'actions'; there is: {', '.join(group)}")
        if "obs" not in group:
            raise ValueError(
                f"{file}: {demo} has no observations; robomimic's dataset_states_to_obs.py adds them to a file of states"
            )
        observed = subgroup(group, "obs", file)
        missing = {key: name for key, name in self._names.items() if name not in observed}
        if missing:
            listed = ", ".join(f"'{name}' (our {key})" for key, name in missing.items())
            raise ValueError(
                f"{file}: {demo}/obs has no {listed}; there is: {', '.join(observed)}. Choose with cameras=[...], or name "
                "the key here with fields.<ours>=<theirs>"
            )
        return {name: tuple(observed[name].shape[1:]) for key, name in self._names.items() if key.startswith("images/")}


def open_source(
    task: str, file: Path, spec: EnvSpec, fields: Mapping[str, str], filter_key: str | None
) -> RobomimicSource:
    """Open a file for `importing`."""
    return RobomimicSource(task, file, spec, fields, filter_key)


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _env_args(file: h5py.File, path: Path) -> dict[str, Any]:
    data = subgroup(file, "data", path)
    if "egoarm" in data.attrs:
        raise ValueError(f"{path} was written by EgoArm; it needs no import")
    try:
        return dict(json.loads(data.attrs["env_args"]))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: data.attrs['env_args'] is missing or no JSON ({error}); robomimic's layout has it"
        ) from error


def _check_env(task: str, env_args: Mapping[str, Any], path: Path) -> None:
    name = str(env_args.get("env_name"))
    names = ENV_NAMES.get(task, (task, task.partition("/")[2]))
    if name not in names:
        raise ValueError(
            f"{path} holds demonstrations of {name}, task={task} is that of {' or '.join(names)}; the tasks that can be imported: {', '.join(ENV_NAMES)}"
        )
    if task not in ENV_NAMES:
        return
    kwargs = env_args.get("env_kwargs", {})
    robots = kwargs.get("robots", ["Panda"])
    robots = [robots] if isinstance(robots, str) else list(robots)
    if set(robots) != {"Panda"}:
        raise ValueError(f"{path} was recorded with {', '.join(robots)}; the tasks here have Pandas")
    if "TwoArm" in name and kwargs.get("env_configuration") != "parallel":
        raise ValueError(
            f"{path} has env_configuration {kwargs.get('env_configuration')!r}; the two arms stand parallel here, and their actions would mean other directions"
        )
    if kwargs.get("control_freq", _CONTROL_HZ) != _CONTROL_HZ:
        raise ValueError(f"{path} was recorded at {kwargs['control_freq']} Hz; the tasks here run at {_CONTROL_HZ} Hz")
    for controller in _controllers(kwargs.get("controller_configs", {})):
        _check_controller(controller, path)


def _controllers(config: Any) -> list[Mapping[str, Any]]:
    """The arms' controllers, in robosuite 1.4's form (one, or a list) and in 1.5's (body_parts)."""
    if isinstance(config, list):
        return [part for item in config for part in _controllers(item)]
    if not config:
        return []
    if "body_parts" in config:
        arms = config["body_parts"].get("arms", config["body_parts"])
        return [part for name, part in arms.items() if name in ("right", "left") and part]
    return [config]


def _check_controller(controller: Mapping[str, Any], path: Path) -> None:
    kind = controller.get("type")
    absolute = controller.get("control_delta") is False or controller.get("input_type") == "absolute"
    if kind != "OSC_POSE" or absolute or list(controller.get("output_max", _OUTPUT_MAX)) != _OUTPUT_MAX:
        raise ValueError(
            f"{path} was recorded with the controller {kind}{' (absolute)' if absolute else ''}, output_max {controller.get('output_max')}; "
            f"actions here are OSC_POSE deltas with output_max {_OUTPUT_MAX}"
        )

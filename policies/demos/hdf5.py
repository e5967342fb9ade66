"""Demonstrations in robomimic's HDF5 layout, with the environment's spec and the seeds.

data                attrs: total, env_args (JSON), egoarm (JSON: spec, schema_hash, level, seeds, failures, versions)
data/demo_<i>       attrs: num_samples, model_file, seed (where there is one)
    states float64[N, D]   actions float32[N, A]   rewards float32[N]   dones int64[N]
    obs/<camera>_image uint8[N, H, W, 3]           obs/<name> float32[N, d]

Names under obs/ are flat, because robomimic's reader takes no nested ones: `images/front` is stored as `front_image` and `state/tip_pos` as
`tip_pos`. `DemoFile` speaks the environment's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.spec import EnvSpec, FieldSpec
from pretrain.artifact import sha256_file

MAX_ENLARGING = 4  # times, from a recorded image to what an encoder takes
GYM_ENV_TYPE = 2  # robomimic's EnvType for Gym-like environments
# Suite -> packages whose versions decide its physics and pixels; MuJoCo promises no equal numbers across its versions.
SIMULATORS: dict[str, tuple[str, ...]] = {
    "toy": ("mujoco",),
    "metaworld": ("mujoco", "metaworld"),
    "robosuite": ("mujoco", "robosuite"),
    "kitchen": ("mujoco", "gymnasium-robotics"),
    "adroit": ("mujoco", "gymnasium-robotics"),
}


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One demonstration; arrays share the leading axis N, the number of steps. `observation[t]` is what `actions[t]` answers.

    `seed` is the episode's seed in our environment, None for an episode of other origin. `rewards`, `dones` and `states` as in the module's text.
    """

    seed: int | None
    observation: Mapping[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    states: np.ndarray


def stored_name(key: str) -> str:
    """The flat name under obs/ of an observation key: "images/front" -> "front_image", "state/tip_pos" -> "tip_pos"."""
    kind, _, name = key.partition("/")
    assert kind in ("images", "state") and name and "/" not in name, key
    return f"{name}_image" if kind == "images" else name


def write_episode(group: h5py.Group, episode: Episode) -> None:
    """Write one demonstration into an empty group."""
    group.attrs["num_samples"] = len(episode.actions)
    group.attrs["model_file"] = ""
    if episode.seed is not None:
        group.attrs["seed"] = episode.seed
    for name in ("states", "actions", "rewards", "dones"):
        group.create_dataset(name, data=getattr(episode, name))
    for key, values in episode.observation.items():
        if key.startswith("images/"):
            # One frame a chunk: a random frame costs one frame's decompression. Deflate's level 1 takes 0.4 of the raw size; level 4 gains 5 % of
            # that for 1.6 times the time. Every HDF5 build reads it.
            group.create_dataset(
                f"obs/{stored_name(key)}",
                data=values,
                chunks=(1, *values.shape[1:]),
                compression="gzip",
                compression_opts=1,
            )
        else:
            group.create_dataset(f"obs/{stored_name(key)}", data=values)


def write_header(
    file: h5py.File,
    *,
    spec: EnvSpec,
    level: str,
    total: int,
    image_size: int,
    seeds: Sequence[int],
    extra: Mapping[str, Any],
) -> None:
    """Write the attributes of `data`: robomimic's, and ours with the spec, the level, the seeds, installed versions and `extra`."""
    data = file.require_group("data")
    data.attrs["total"] = total
    env_args = {
        "env_name": spec.task,
        "env_type": GYM_ENV_TYPE,
        "env_kwargs": {
            "level": level,
            "cameras": list(spec.cameras),
            "image_size": image_size,
            "privileged": "state/full" in spec.observation,
        },
    }
    data.attrs["env_args"] = json.dumps(env_args, sort_keys=True)
    ours = {
        "spec": spec.to_json(),
        "schema_hash": spec.schema_hash(),
        "level": level,
        "seeds": list(seeds),
        "versions": installed_versions(),
    }
    data.attrs["egoarm"] = json.dumps({**ours, **extra})  # in the spec's own order, which is that of cameras and state


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that what an environment does depends on."""
    versions = {}
    for name in sorted({"numpy", "gymnasium", *(name for names in SIMULATORS.values() for name in names)}):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


class DemoFile:
    """Read access to a demonstration file. What its spec promises is checked at once: keys, shapes, types, actions.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not HDF5, is cut short, lacks what this layout needs, holds actions that are not finite or out of range, or was made with
            another version of a simulator that is installed here; the text names the demonstration and the field.
    """

    def __init__(self, path: str | Path, *, any_version: bool = False) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no demonstration file at {self.path}; `egoarm demos task=... out={self.path}` makes one"
            )
        self._file = self._open()
        try:
            self._read_header()
            for name, length in zip(self.names, self.lengths, strict=True):
                check_demo(self._file["data"][name], length, self.env_spec, f"{self.path}: {name}")
            if not any_version:
                self._check_versions()
        except BaseException:
            self._file.close()
            raise
        self.sha256 = sha256_file(self.path)

    def _open(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise ValueError(
                f"{self.path} is not a whole HDF5 file ({error}); delete it and collect the demonstrations again"
            ) from error

    def _read_header(self) -> None:
        try:
            data = self._file["data"]
            self.meta: dict[str, Any] = json.loads(data.attrs["egoarm"])
            self.env_spec = EnvSpec.from_json(self.meta["spec"])
            self.env_kwargs: dict[str, Any] = json.loads(data.attrs["env_args"])["env_kwargs"]
            self.names = demo_names(data, self.path)
            self.lengths = [int(data[name].attrs["num_samples"]) for name in self.names]
            hashed = self.meta["schema_hash"]
        except KeyError as error:
            raise ValueError(
                f"{self.path} lacks {error}: expected robomimic's layout with the attribute data.attrs['egoarm'], as `egoarm demos` writes it; "
                "`egoarm demos import` converts files of other origin"
            ) from error
        if not self.names:
            raise ValueError(f"{self.path} holds no demonstration")
        if self.env_spec.schema_hash() != hashed:
            raise ValueError(
                f"{self.path}: its spec does not hash to the stored schema_hash; the file was edited, collect it again"
            )

    def _check_versions(self) -> None:
        have, now = self.meta.get("versions", {}), installed_versions()
        differing = [
            f"{name} {have[name]} (installed: {now[name]})"
            for name in SIMULATORS.get(self.env_spec.task.partition("/")[0], ("mujoco",))
            if name in have and name in now and have[name] != now[name]
        ]
        if differing:
            raise ValueError(
                f"{self.path} was made with {', '.join(differing)}: physics and pixels may differ from those of the environment here. "
                "Install the version it was made with, or collect it again"
            )

    def check_env(self) -> None:
        """Raise ValueError, with the differences, if the task's environment here is no longer the one of the file."""
        from envs.tasks import make_env

        kwargs = dict(self.env_kwargs)
        kwargs["cameras"] = tuple(kwargs.get("cameras", self.env_spec.cameras))
        env = make_env(self.env_spec.task, **kwargs)
        difference = self.env_spec.difference(env.env_spec)
        env.close()
        if difference:
            raise ValueError(
                f"{self.path} is of another version of {self.env_spec.task} (file != environment here): {'; '.join(difference)}. Collect it again"
            )

    def check_image_size(self, encoder: str, size: int) -> None:
        """Compare the images with the `size` in pixels that an encoder takes: smaller ones are enlarged, which is said.

        Raises:
            ValueError: they are so small that a patch of 16 pixels would show less than 4 of the camera's.
        """
        recorded = min(
            (self.env_spec.observation[f"images/{name}"].shape[0] for name in self.env_spec.cameras), default=size
        )
        if recorded * MAX_ENLARGING < size:
            raise ValueError(
                f"{self.path}: its images have {recorded} pixels, the encoder {encoder} takes {size}: more than {MAX_ENLARGING} times as many. "
                f"Collect the demonstrations again with image_size={size}"
            )
        if recorded < size:
            print(
                f"demos: images of {recorded} pixels are enlarged to the {size} of {encoder}; image_size={size} records them in full"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def seeds(self) -> list[int]:
        return list(self.meta["seeds"])

    @property
    def level(self) -> str:
        return self.meta["level"]

    def array(self, demo: int, name: str) -> np.ndarray:
        """A whole dataset of one demonstration, for example "actions" or "obs/state/hand_pos"."""
        return np.asarray(self._dataset(demo, name)[()])

    def frames(self, demo: int, camera: str, steps: Sequence[int]) -> np.ndarray:
        """Images of a camera at some steps, in the order given: uint8[len(steps), H, W, 3]; reads nothing else."""
        dataset = self._dataset(demo, f"obs/images/{camera}")
        return np.stack([dataset[step] for step in steps])

    def observation(self, demo: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self.array(demo, f"obs/{key}") for key in keys}

    def _dataset(self, demo: int, name: str) -> h5py.Dataset:
        group = subgroup(self._file, f"data/{self.names[demo]}", self.path)
        key = name.removeprefix("obs/")
        stored = f"obs/{stored_name(key)}" if name != key and "/" in key else name
        dataset = group.get(stored)
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{self.path}: {self.names[demo]} has no '{stored}'; there is: {', '.join(leaves(group))}")
        return dataset

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> DemoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def subgroup(parent: h5py.Group, name: str, path: Path) -> h5py.Group:
    """A group that must be there."""
    found = parent.get(name)
    if not isinstance(found, h5py.Group):
        raise ValueError(
            f"{path} has no group '{name}', as robomimic's layout has; there is: {', '.join(leaves(parent)[:20]) or 'nothing'}"
        )
    return found


def demo_names(data: h5py.Group, path: Path) -> list[str]:
    """Names of the demonstrations in a file's group `data`, by number."""
    odd = [name for name in data if not name.removeprefix("demo_").isdigit()]
    if odd:
        raise ValueError(f"{path}: data/{odd[0]} is not named demo_<number>, as robomimic's layout has it")
    return sorted(data, key=lambda name: int(name.removeprefix("demo_")))


def check_demo(group: h5py.Group, length: int, spec: EnvSpec, where: str) -> None:
    """Raise ValueError if a demonstration does not hold what `spec` says, for each of its `length` steps."""
    if length < 1:
        raise ValueError(f"{where} has num_samples {length}, expected at least one step")
    for key, field in {"actions": spec.action, **{f"obs/{k}": f for k, f in spec.observation.items()}}.items():
        stored = key if key == "actions" else f"obs/{stored_name(key.removeprefix('obs/'))}"
        if stored not in group:
            raise ValueError(f"{where} has no '{stored}', which its spec names; there is: {', '.join(leaves(group))}")
        _check_array(group[stored], length, field, f"{where}: {stored}")
    for name in ("states", "rewards", "dones"):
        if name not in group or len(group[name]) != length:
            found = f"{len(group[name])} rows" if name in group else "none"
            raise ValueError(f"{where}: expected '{name}' with num_samples {length} rows, found {found}")
    check_actions(np.asarray(group["actions"][()]), spec.action, where)


def _check_array(dataset: h5py.Dataset, length: int, field: FieldSpec, where: str) -> None:
    expected = (length, *field.shape)
    if dataset.shape != expected or dataset.dtype != field.dtype:
        raise ValueError(
            f"{where} is {dataset.dtype}{list(dataset.shape)}, expected {field.dtype}{list(expected)}: "
            "the number of steps, then what the file's spec says of the field"
        )


def check_actions(actions: np.ndarray, field: FieldSpec, where: str) -> None:
    """Raise ValueError naming the first step whose action is not finite or leaves the field's range."""
    bad = np.flatnonzero(~np.isfinite(actions).all(axis=1))
    if len(bad):
        raise ValueError(f"{where}: the action of step {bad[0]} is not finite: {actions[bad[0]].tolist()}")
    assert field.low is not None and field.high is not None
    bad = np.flatnonzero(((actions < field.low) | (actions > field.high)).any(axis=1))
    if len(bad):
        raise ValueError(
            f"{where}: the action of step {bad[0]} is out of the range {field.low:g} to {field.high:g}: {actions[bad[0]].tolist()} "
            f"({len(bad)} of {len(actions)} steps)"
        )


def leaves(group: h5py.Group) -> list[str]:
    """Names of all datasets below a group."""
    names: list[str] = []
    group.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names

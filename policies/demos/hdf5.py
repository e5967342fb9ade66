"""Demonstrations in robomimic's HDF5 layout, with the environment's spec and the seeds.

data                attrs: total, env_args (JSON), egoarm (JSON: spec, schema_hash, level, seeds, failures, versions)
data/demo_<i>       attrs: num_samples, model_file, seed
    states float64[N, D]   actions float32[N, A]   rewards float32[N]   dones int64[N]
    obs/images/<camera> uint8[N, H, W, 3]          obs/state/<name> float32[N, d]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.spec import EnvSpec
from pretrain.artifact import sha256_file

GYM_ENV_TYPE = 2  # robomimic's EnvType for Gym-like environments


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One demonstration; arrays share the leading axis N, the number of steps. `observation[t]` is what `actions[t]` answers."""

    seed: int
    observation: Mapping[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    states: np.ndarray


def write_episode(group: h5py.Group, episode: Episode) -> None:
    group.attrs["num_samples"] = len(episode.actions)
    group.attrs["model_file"] = ""
    group.attrs["seed"] = episode.seed
    for name in ("states", "actions", "rewards", "dones"):
        group.create_dataset(name, data=getattr(episode, name))
    for key, values in episode.observation.items():
        if key.startswith("images/"):
            # One frame a chunk keeps random access to single frames cheap.
            group.create_dataset(
                f"obs/{key}",
                data=values,
                chunks=(1, *values.shape[1:]),
                compression="gzip",
                compression_opts=1,
                shuffle=True,
            )
        else:
            group.create_dataset(f"obs/{key}", data=values)


def write_header(file: h5py.File, *, total: int, env_args: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    data = file.require_group("data")
    data.attrs["total"] = total
    data.attrs["env_args"] = json.dumps(env_args, sort_keys=True)
    data.attrs["egoarm"] = json.dumps(extra, sort_keys=True)


class DemoFile:
    """Read access to a demonstration file; opens it lazily, once a process.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not HDF5, is cut short, or lacks what this layout needs, naming it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no demonstration file at {self.path}; `egoarm demos task=... out={self.path}` makes one"
            )
        self._file = self._open()
        try:
            data = self._file["data"]
            self.meta: dict[str, Any] = json.loads(data.attrs["egoarm"])
            self.env_spec = EnvSpec.from_json(self.meta["spec"])
            self.names = sorted(data, key=lambda name: int(name.removeprefix("demo_")))
            self.lengths = [int(data[name].attrs["num_samples"]) for name in self.names]
        except KeyError as error:
            raise ValueError(
                f"{self.path} lacks {error}: expected robomimic's layout with the attribute data.attrs['egoarm'], as `egoarm demos` writes it"
            ) from error
        if self.env_spec.schema_hash() != self.meta["schema_hash"]:
            raise ValueError(
                f"{self.path}: its spec does not hash to the stored schema_hash; the file was edited, collect it again"
            )
        self.sha256 = sha256_file(self.path)

    def _open(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise ValueError(
                f"{self.path} is not a whole HDF5 file ({error}); delete it and collect the demonstrations again"
            ) from error

    def __len__(self) -> int:
        return len(self.names)

    @property
    def seeds(self) -> list[int]:
        return list(self.meta["seeds"])

    @property
    def level(self) -> str:
        return self.meta["level"]

    def array(self, demo: int, name: str) -> np.ndarray:
        """A whole dataset of one demonstration, for example "actions" or "obs/state/hand_position"."""
        group = self._file["data"][self.names[demo]]
        assert isinstance(group, h5py.Group)
        if name not in group:
            raise ValueError(f"{self.path}: {self.names[demo]} has no '{name}'; there is: {', '.join(_leaves(group))}")
        return np.asarray(group[name][()])

    def observation(self, demo: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {key: self.array(demo, f"obs/{key}") for key in keys}

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> DemoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _leaves(group: h5py.Group) -> list[str]:
    names: list[str] = []
    group.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names

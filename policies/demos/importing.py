"""`egoarm demos import`: demonstrations of other origin -> a demonstration file of one of our tasks.

What is wrong with a whole file (a key that is missing, images of another size, another robot or version) is one error. What is wrong with a single
demonstration (values that are not finite, actions out of range, a failure) leaves that one out; each is counted and named in the file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
from tqdm import tqdm

from envs.spec import EnvSpec
from envs.tasks import find_task, make_env
from policies.demos import r3m, robomimic
from policies.demos.hdf5 import DemoFile, Episode, write_episode, write_header
from policies.demos.raw import RawEpisode
from pretrain.artifact import sha256_file

# Beyond the range by no more than what rounding to float32 does: brought back to the bound.
_ROUNDING = 1e-6


class Source(Protocol):
    """A file of other origin, opened and checked as a whole.

    Attributes:
        version: of the environment it was made in, e.g. "1.4.1"; "unknown" where the file does not say.
        installed: version of the same environment here.
        image_size: side of its square images in pixels; 0 without cameras.
        files: what was read.
    """

    version: str
    installed: str
    image_size: int
    files: tuple[Path, ...]

    def __len__(self) -> int: ...

    def episodes(self) -> Iterator[RawEpisode]:
        """All episodes, with our observation keys."""
        ...

    def close(self) -> None: ...


SOURCES: dict[str, Callable[[str, Path, EnvSpec, Mapping[str, str], str | None], Source]] = {
    "robomimic": robomimic.open_source,
    "r3m": r3m.open_source,
}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    source: str
    file: str
    task: str
    out: str
    cameras: tuple[str, ...] | None
    fields: dict[str, str] | None
    filter_key: str | None
    env_version: str | None
    clip_actions: bool
    episodes: int | None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source={self.source}: expected one of {', '.join(SOURCES)}")
        find_task(self.task)
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"episodes={self.episodes}: expected at least 1, or null for all")


def run(config: ImportConfig) -> Path:
    """Convert; the file appears whole or not at all.

    Raises:
        ValueError: what is wrong with the whole file, or that no demonstration is left.
        FileExistsError: `out` is there already.
    """
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"{out} is there already; name another out= or delete it")
    wanted = _spec(config, image_size=128)
    fields = config.fields or {}
    unknown = [key for key in fields if key not in wanted.observation]
    if unknown:
        raise ValueError(
            f"fields: {config.task} has no {', '.join(unknown)}; there is: {', '.join(wanted.observation)}"
        )
    source = SOURCES[config.source](config.task, Path(config.file), wanted, fields, config.filter_key)
    try:
        _check_version(config, source)
        spec = _spec(config, image_size=source.image_size or 128)
        kept, skipped = _convert(config, source, spec, out)
    finally:
        source.close()
    with DemoFile(out) as demos:
        print(
            f"import: {kept} demonstrations of {config.task}, {sum(demos.lengths)} steps, {len(skipped)} left out -> {out}"
        )
    for reason, count in Counter(_without_numbers(reason) for reason in skipped.values()).items():
        print(f"  left out {count}: {reason}")
    return out


def _spec(config: ImportConfig, image_size: int) -> EnvSpec:
    env = make_env(config.task, cameras=config.cameras, image_size=image_size)
    env.close()
    return env.env_spec


def _check_version(config: ImportConfig, source: Source) -> None:
    if source.version == source.installed:
        return
    if config.env_version is None:
        raise ValueError(
            f"{config.file} was made with version {source.version} of its environment, {source.installed} is installed here: physics, "
            f"observations and images may differ. Say env_version={source.version} to import it all the same"
        )
    if config.env_version != source.version:
        raise ValueError(f"env_version={config.env_version}: {config.file} was made with {source.version}")


def _convert(config: ImportConfig, source: Source, spec: EnvSpec, out: Path) -> tuple[int, dict[str, str]]:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    kept, total = 0, 0
    skipped: dict[str, str] = {}
    absent: set[str] = set()
    try:
        with h5py.File(temporary, "w") as file:
            progress = tqdm(
                source.episodes(), total=len(source), desc=f"import {config.task}", unit="demo", disable=None
            )
            for raw in progress:
                if kept == config.episodes:
                    break
                _check_shapes(raw, spec, config.file)
                reason, actions = _usable_actions(raw, spec, clip=config.clip_actions)
                if reason:
                    skipped[raw.name] = reason
                    continue
                absent |= {name for name in ("rewards", "dones", "states") if getattr(raw, name) is None}
                write_episode(file.require_group("data").create_group(f"demo_{kept}"), _episode(raw, spec, actions))
                kept += 1
                total += len(actions)
            if not kept:
                reason, count = (
                    Counter(map(_without_numbers, skipped.values())).most_common(1)[0] if skipped else ("", 0)
                )
                raise ValueError(
                    f"{config.file}: none of {len(skipped)} demonstrations can be used"
                    + (f"; {count} times: {reason}. First: {next(iter(skipped.values()))}" if skipped else "")
                )
            write_header(
                file,
                spec=spec,
                level="clean",
                total=total,
                image_size=source.image_size or 128,
                seeds=(),
                extra={
                    "failures": skipped,
                    "source": {
                        "kind": config.source,
                        "files": {str(path): sha256_file(path) for path in source.files},
                        "env_version": source.version,
                        "fields": config.fields or {},
                        # robomimic's layout has these; where the source has none they hold zeros, and states no columns.
                        "absent": sorted(absent),
                    },
                },
            )
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return kept, skipped


def _check_shapes(raw: RawEpisode, spec: EnvSpec, file: str) -> None:
    """Raise ValueError where the arrays are not what the task's environment gives."""
    where = f"{file}: {raw.name}"
    length = len(raw.actions)
    if length < 1 or raw.actions.shape != (length, *spec.action.shape):
        raise ValueError(
            f"{where}: actions of shape {list(raw.actions.shape)}, expected [N, {spec.action.shape[0]}] ({spec.action.convention})"
        )
    for key, field in spec.observation.items():
        values = raw.observation[key]
        if values.shape != (length, *field.shape):
            raise ValueError(f"{where}: {key} has shape {list(values.shape)}, expected {[length, *field.shape]}")
        if key.startswith("images/") and values.dtype != np.uint8:
            raise ValueError(f"{where}: {key} has type {values.dtype}, expected uint8")
    for name in ("rewards", "dones", "states"):
        values = getattr(raw, name)
        if values is not None and len(values) != length:
            raise ValueError(f"{where}: {name} has {len(values)} rows, expected {length}, as actions has")


def _usable_actions(raw: RawEpisode, spec: EnvSpec, *, clip: bool) -> tuple[str, np.ndarray]:
    """Why a demonstration cannot be used (empty if it can), and its actions in range."""
    low, high = spec.action.low, spec.action.high
    assert low is not None and high is not None
    actions = np.asarray(raw.actions, np.float32)
    if raw.success is False:
        return "it did not succeed", actions
    bad = np.flatnonzero(~np.isfinite(actions).all(axis=1))
    if len(bad):
        return f"its actions are not finite (first at step {bad[0]})", actions
    for key in spec.observation:
        if key.startswith("state/") and not np.isfinite(raw.observation[key]).all():
            return f"{key} is not finite", actions
    excess = np.maximum(low - actions, actions - high).max(axis=1)
    bad = np.flatnonzero(excess > _ROUNDING)
    if len(bad) and not clip:
        return (
            f"its actions leave {low:g} to {high:g} (first at step {bad[0]}: {actions[bad[0]].tolist()}); clip_actions=true clips them, as the environment would",
            actions,
        )
    return "", np.clip(actions, low, high)


def _episode(raw: RawEpisode, spec: EnvSpec, actions: np.ndarray) -> Episode:
    length = len(actions)
    last = np.arange(length) == length - 1
    return Episode(
        seed=None,
        observation={
            key: np.asarray(raw.observation[key], np.dtype(field.dtype)) for key, field in spec.observation.items()
        },
        actions=actions,
        rewards=np.zeros(length, np.float32) if raw.rewards is None else np.asarray(raw.rewards, np.float32),
        dones=last.astype(np.int64) if raw.dones is None else np.asarray(raw.dones, np.int64),
        states=np.zeros((length, 0)) if raw.states is None else np.asarray(raw.states, np.float64),
    )


def _without_numbers(reason: str) -> str:
    """The reason without what differs from one demonstration to the next, for counting."""
    head, opening, tail = reason.partition(" (first")
    return head + tail.partition(")")[2] if opening else head

"""`egoarm demos`: scripted experts -> demonstrations. Failed attempts are counted and not kept."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
from tqdm import tqdm

from envs.tasks import find_level, find_task, make_env
from policies.demos.attempts import held_attempt, workers
from policies.demos.hdf5 import DemoFile, write_episode, write_header
from pretrain.artifact import atomic_write_text

DEMO_SEEDS = range(0, 100_000)  # evaluation draws from other ranges, see eval_robot/protocol.py
AUDIT_SEEDS = range(300_000, 400_000)  # experts are audited here
MAX_ATTEMPTS_PER_DEMO = 4
IMAGE_SIZES = range(16, 1025)  # what software GL draws in reasonable time, and a file holds


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    task: str
    level: str
    episodes: int
    out: str
    image_size: int
    first_seed: int
    workers: int
    cameras: tuple[str, ...] | None = None
    privileged: bool = False
    redraw_every: int = 0

    def __post_init__(self) -> None:
        find_task(self.task)
        find_level(self.level)
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(
                f"image_size={self.image_size}: expected {IMAGE_SIZES.start} to {IMAGE_SIZES.stop - 1} pixels"
            )
        if self.redraw_every < 0:
            raise ValueError(
                f"redraw_every={self.redraw_every}: expected 0 (one appearance a demonstration) or a number of control steps"
            )
        last = self.first_seed + MAX_ATTEMPTS_PER_DEMO * self.episodes
        if self.episodes < 1 or self.first_seed not in DEMO_SEEDS or last > DEMO_SEEDS.stop:
            raise ValueError(
                f"episodes={self.episodes} from first_seed={self.first_seed}: expected at least 1 episode and seeds within "
                f"{DEMO_SEEDS.start} to {DEMO_SEEDS.stop - 1}"
            )

    @property
    def env_options(self) -> dict[str, Any]:
        """What `make_env` takes besides the task."""
        return {
            "level": self.level,
            "cameras": self.cameras,
            "image_size": self.image_size,
            "privileged": self.privileged,
            "redraw_every": self.redraw_every,
        }

    @property
    def content(self) -> dict[str, Any]:
        """What the file's content depends on."""
        return {
            key: value
            for key, value in asdict(self).items()
            # Files from before there was such a setting have none.
            if key not in ("out", "workers") and (key != "redraw_every" or value)
        }


def run(config: DemosConfig) -> Path:
    """Collect until `episodes` seeds in order have succeeded; the file appears whole or not at all. Resumes after a kill."""
    out = Path(config.out)
    make_env(config.task, **config.env_options).close()  # a camera that is not there is said before any process starts
    if out.exists():
        with DemoFile(out) as demos:
            if demos.meta.get("config") == json.loads(json.dumps(config.content)):
                demos.check_env()
                print(f"demos: {out} is there already ({len(demos)} demonstrations, {sum(demos.lengths)} steps)")
                return out
        raise FileExistsError(f"{out} holds demonstrations of another configuration; name another out= or delete it")
    parts = _open_parts(out, config)
    kept, failed = _collect(config, parts)
    _merge(config, out, parts, kept, failed)
    shutil.rmtree(parts)
    with DemoFile(out) as demos:
        print(
            f"demos: {len(demos)} demonstrations of {config.task} at {config.level}, {sum(demos.lengths)} steps, "
            f"{len(failed)} failed attempts left out -> {out}"
        )
    return out


def _open_parts(out: Path, config: DemosConfig) -> Path:
    parts = out.with_name(out.name + ".parts")
    stamp = parts / "config.json"
    text = json.dumps(config.content, sort_keys=True)
    if stamp.exists() and stamp.read_text() != text:
        shutil.rmtree(parts)  # begun for another configuration and never finished
    parts.mkdir(parents=True, exist_ok=True)
    atomic_write_text(stamp, text)
    return parts


def _collect(config: DemosConfig, parts: Path) -> tuple[list[int], dict[int, str]]:
    """Attempt seeds in order, a wave of workers at a time, until enough have succeeded: kept seeds, and failed seeds with their reasons."""
    kept: list[int] = []
    failed: dict[int, str] = {}
    seed = config.first_seed
    progress = tqdm(total=config.episodes, desc=f"demos {config.task}", unit="demo", disable=None)
    with workers(config.workers or os.cpu_count() or 1) as run_all:
        while len(kept) < config.episodes:
            if len(failed) > (MAX_ATTEMPTS_PER_DEMO - 1) * config.episodes:
                reason, count = Counter(failed.values()).most_common(1)[0]
                raise RuntimeError(
                    f"the expert of {config.task} failed on {len(failed)} of {len(failed) + len(kept)} seeds ({count} times: {reason}); "
                    "no demonstrations made"
                )
            wave = range(seed, seed + config.episodes - len(kept))
            seed = wave.stop
            outcomes = run_all(_attempt, *zip(*[(config, str(parts), s) for s in wave], strict=True))
            for tried, reason in zip(wave, outcomes, strict=True):
                if reason:
                    failed[tried] = reason
                else:
                    kept.append(tried)
                progress.update(int(not reason))
    progress.close()
    return kept, failed


def _attempt(config: DemosConfig, parts: str, seed: int) -> str:
    """Attempt one seed; its episode goes to a part file if it succeeds. Returns why it failed, empty for a success."""
    part, failure = Path(parts) / f"seed-{seed:06d}.hdf5", Path(parts) / f"seed-{seed:06d}.failed"
    if part.exists():
        return ""
    if failure.exists():
        return failure.read_text()
    result = held_attempt(config.task, config.env_options, seed)
    if not result.success or result.episode is None:
        atomic_write_text(failure, result.reason)
        return result.reason
    temporary = part.with_suffix(f".tmp-{os.getpid()}")
    with h5py.File(temporary, "w") as file:
        write_episode(file.create_group("demo"), result.episode)
    os.replace(temporary, part)
    return ""


def _merge(config: DemosConfig, out: Path, parts: Path, kept: list[int], failed: dict[int, str]) -> None:
    env = make_env(config.task, **config.env_options)
    env.close()
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        total = 0
        with h5py.File(temporary, "w") as file:
            for index, seed in enumerate(kept):
                with h5py.File(parts / f"seed-{seed:06d}.hdf5", "r") as part:
                    part.copy("demo", file.require_group("data"), name=f"demo_{index}")
                    total += int(part["demo"].attrs["num_samples"])
            write_header(
                file,
                spec=env.env_spec,
                level=config.level,
                total=total,
                image_size=config.image_size,
                seeds=kept,
                extra={"config": config.content, "failures": {str(seed): reason for seed, reason in failed.items()}},
            )
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)

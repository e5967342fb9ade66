"""`egoarm demos`: scripted experts -> demonstrations. Failed attempts are counted and not kept."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from envs.tasks import find_level, find_task, make_env
from policies.demos.hdf5 import DemoFile, Episode, write_episode, write_header
from pretrain.artifact import atomic_write_text
from pretrain.workers import start_worker

DEMO_SEEDS = range(0, 100_000)  # evaluation draws from other ranges, see eval_robot/protocol.py
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

    def __post_init__(self) -> None:
        find_task(self.task)
        find_level(self.level)
        if self.image_size not in IMAGE_SIZES:
            raise ValueError(
                f"image_size={self.image_size}: expected {IMAGE_SIZES.start} to {IMAGE_SIZES.stop - 1} pixels"
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
        }

    @property
    def content(self) -> dict[str, Any]:
        """What the file's content depends on."""
        return {key: value for key, value in asdict(self).items() if key not in ("out", "workers")}


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


def _collect(config: DemosConfig, parts: Path) -> tuple[list[int], list[int]]:
    """Attempt seeds in order, a wave of workers at a time, until enough have succeeded; (kept, failed) seeds."""
    workers = config.workers or os.cpu_count() or 1
    kept: list[int] = []
    failed: list[int] = []
    seed = config.first_seed
    progress = tqdm(total=config.episodes, desc=f"demos {config.task}", unit="demo", disable=None)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker) as pool:
        while len(kept) < config.episodes:
            if len(failed) > (MAX_ATTEMPTS_PER_DEMO - 1) * config.episodes:
                raise RuntimeError(
                    f"the expert of {config.task} failed on {len(failed)} of {len(failed) + len(kept)} seeds; no demonstrations made"
                )
            wave = range(seed, seed + config.episodes - len(kept))
            seed = wave.stop
            for attempt, success in zip(
                wave, pool.map(_attempt, *zip(*[(config, str(parts), s) for s in wave], strict=True)), strict=True
            ):
                (kept if success else failed).append(attempt)
                progress.update(int(success))
    progress.close()
    return kept, failed


_ENV: dict[str, Any] = {}  # the worker process's env, made once


def _attempt(config: DemosConfig, parts: str, seed: int) -> bool:
    """Roll the expert out on one seed; its episode goes to a part file if it succeeds. Returns the success."""
    part, failure = Path(parts) / f"seed-{seed:06d}.hdf5", Path(parts) / f"seed-{seed:06d}.failed"
    if part.exists() or failure.exists():
        return part.exists()
    if config.task not in _ENV:
        _ENV[config.task] = make_env(config.task, **config.env_options)
    episode = rollout_expert(_ENV[config.task], config.task, seed)
    if episode is None:
        atomic_write_text(failure, "")
        return False
    temporary = part.with_suffix(f".tmp-{os.getpid()}")
    with h5py.File(temporary, "w") as file:
        write_episode(file.create_group("demo"), episode)
    os.replace(temporary, part)
    return True


def rollout_expert(env: Any, task: str, seed: int) -> Episode | None:
    """One episode of the task's expert, or None if it does not succeed within the horizon."""
    from envs.experts import make_expert

    observation, info = env.reset(seed=seed)
    expert = make_expert(task, env)
    expert.reset()
    steps: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, float, bool]] = []
    terminated = truncated = False
    while not (terminated or truncated):
        state = env.state()
        action = np.clip(np.asarray(expert.act(env), dtype=np.float32), -1.0, 1.0)
        following, reward, terminated, truncated, info = env.step(action)
        steps.append((observation, action, state, float(reward), bool(terminated or truncated)))
        observation = following
    if not info["success"]:
        return None
    return Episode(
        seed=seed,
        observation={key: np.stack([step[0][key] for step in steps]) for key in steps[0][0]},
        actions=np.stack([step[1] for step in steps]),
        states=np.stack([step[2] for step in steps]),
        rewards=np.array([step[3] for step in steps], dtype=np.float32),
        dones=np.array([step[4] for step in steps], dtype=np.int64),
    )


def _merge(config: DemosConfig, out: Path, parts: Path, kept: list[int], failed: list[int]) -> None:
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
                extra={"config": config.content, "failures": failed},
            )
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)

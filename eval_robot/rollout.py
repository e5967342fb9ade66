"""`egoarm eval`: batched rollouts of one policy over parallel environments -> a report, one record an episode."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.tasks import find_level, find_task, make_env
from envs.vector import VectorEnv
from eval_robot.protocol import check_disjoint, protocol
from eval_robot.records import FORMAT, EpisodeRecord, EvalReport, load_report
from eval_robot.stats import wilson_interval
from policies.chunking import ActionChunker
from policies.policy import Policy, load_policy
from pretrain.artifact import Artifact, atomic_write_text
from pretrain.clips.mp4 import write_mp4

VIDEO_FPS = 20.0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    policy: str
    task: str | None
    level: str | None
    episodes: int
    split: str
    out: str | None
    label: str | None
    videos: int
    envs: int
    workers: int
    threads: int

    def __post_init__(self) -> None:
        if self.task is not None:
            find_task(self.task)
        if self.level is not None:
            find_level(self.level)
        protocol(self.split).seeds(self.episodes)
        if self.envs < 1 or self.videos < 0 or self.workers < 0 or self.threads < 0:
            raise ValueError(
                f"envs={self.envs}, videos={self.videos}, workers={self.workers}, threads={self.threads}: expected envs >= 1, the others >= 0"
            )


def run(config: EvalConfig) -> Path:
    """Evaluate; the report appears whole. After a kill, finished waves of episodes are kept and the rest is run."""
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    policy, artifact = load_policy(config.policy)
    header = make_header(config, policy, artifact)
    _check_env(policy, header, config.policy)
    out = Path(config.out) if config.out else default_out(header)
    report = EvalReport(header=header, episodes=tuple(_episodes(config, policy, header, out)))
    report.save(out)
    _partial(out).unlink(missing_ok=True)
    low, high = wilson_interval(report.successes, len(report.episodes))
    print(
        f"eval: {header['label']} on {header['task']} at {header['level']}: {report.successes}/{len(report.episodes)} "
        f"({100 * report.successes / len(report.episodes):.0f} %, Wilson 95 % {100 * low:.0f} to {100 * high:.0f}) -> {out}"
    )
    return out


def evaluated(config: EvalConfig) -> bool:
    """Whether the report that `run(config)` would write is there already, made by the same policy under the same settings."""
    out = Path(config.out or "")
    if not out.is_file():
        return False
    policy, artifact = load_policy(config.policy)
    return _stamp(load_report(out).header) == _stamp(make_header(config, policy, artifact))


def _stamp(header: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation's outcome depends on, as JSON types."""
    return json.loads(
        json.dumps({key: value for key, value in header.items() if key not in ("policy_provenance", "policy_path")})
    )


def make_header(config: EvalConfig, policy: Policy, artifact: Artifact) -> dict[str, Any]:
    """The report's first line: everything that must agree before two reports may be compared, and the chain of hashes."""
    rules = protocol(config.split)
    training = artifact.config
    seeds = rules.seeds(config.episodes)
    check_disjoint(training["demos"]["seeds"], seeds, training["demos"]["path"])
    return {
        "kind": "egoarm-report",
        "format": FORMAT,
        "protocol": rules.id,
        "label": config.label or training["encoder"]["label"],
        "task": config.task or policy.spec.env_spec.task,
        "level": config.level or training["demos"]["level"],
        "episodes": config.episodes,
        "env_hash": policy.spec.env_spec.schema_hash(),
        "policy_path": str(artifact.path),
        "policy_sha256": artifact.sha256,
        "encoder_sha256": training["encoder"]["sha256"],
        "demos_sha256": training["demos"]["sha256"],
        "policy_provenance": artifact.provenance,
        "envs": config.envs,
        "versions": {name: metadata.version(name) for name in ("torch", "mujoco", "numpy", "egoarm")},
    }


def default_out(header: Mapping[str, Any]) -> Path:
    return (
        Path("runs/eval")
        / header["task"]
        / f"{header['label'].replace('/', '_').replace(' ', '-')}-{header['policy_sha256'][:8]}.jsonl"
    )


def _check_env(policy: Policy, header: Mapping[str, Any], where: str) -> None:
    env = make_env(header["task"], level=header["level"], **policy.spec.env_options)
    try:
        policy.spec.check_env(env.env_spec, where)
    finally:
        env.close()


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _episodes(config: EvalConfig, policy: Policy, header: Mapping[str, Any], out: Path) -> list[EpisodeRecord]:
    """All episodes in the order of their seeds, wave by wave; each finished wave is written to the partial file."""
    seeds = protocol(config.split).seeds(config.episodes)
    stamp = _stamp(header)
    records = _resume(_partial(out), stamp)
    workers = config.workers or os.cpu_count() or 1
    title = f"eval {header['label']} {header['task']}"
    progress = tqdm(total=len(seeds), initial=len(records), desc=title, unit="episode", disable=None)
    # A policy without eyes needs no rendering, but for the episodes that are kept as videos.
    groups: list[tuple[list[int], bool]] = [(seeds, True)]
    if not policy.spec.cameras:
        groups = [(seeds[: config.videos], True), (seeds[config.videos :], False)]
    for group, render in groups:
        waves = [group[start : start + config.envs] for start in range(0, len(group), config.envs)]
        waves = [wave for wave in waves if len(records) <= seeds.index(wave[0])]
        if not waves:
            continue
        size = max(map(len, waves))
        with VectorEnv(
            header["task"], n_envs=size, n_workers=min(workers, size), level=header["level"],
            **(policy.spec.env_options | ({} if render else {"cameras": ()})),
        ) as env:  # fmt: skip
            for wave in waves:
                filmed = [seed for seed in wave if seed in seeds[: config.videos]]
                wave_records, frames = rollout(policy, env, wave, filmed, progress)
                for seed, film in frames.items():
                    write_mp4(video_path(out, seed), film, VIDEO_FPS)
                records += wave_records
                lines = [json.dumps(stamp), *(json.dumps(asdict(record)) for record in records)]
                atomic_write_text(_partial(out), "\n".join(lines) + "\n")
    progress.close()
    return records


def _resume(partial: Path, stamp: Mapping[str, Any]) -> list[EpisodeRecord]:
    if not partial.is_file():
        return []
    first, *rest = partial.read_text().splitlines()
    if json.loads(first) != stamp:
        return []  # begun with another policy or other settings
    return [EpisodeRecord(**json.loads(line)) for line in rest]


def video_path(out: Path, seed: int) -> Path:
    return out.with_suffix("") / f"seed-{seed}.mp4"


def rollout(
    policy: Policy, env: VectorEnv, seeds: Sequence[int], filmed: Sequence[int] = (), progress: tqdm | None = None
) -> tuple[list[EpisodeRecord], dict[int, np.ndarray]]:
    """One episode a seed, all in lockstep, one policy call a step for those still running.

    Returns:
        Records in the order of `seeds`, and the films of the seeds in `filmed`: uint8[frames, H, W, 3] at VIDEO_FPS.
    """
    active = np.arange(len(seeds))
    chunker = ActionChunker(policy, len(seeds))
    observation, infos = env.reset(list(seeds), indices=active.tolist())
    hashes = [info["initial_state_hash"] for info in infos]
    returns = np.zeros(len(seeds))
    records: dict[int, EpisodeRecord] = {}
    films: dict[int, list[np.ndarray]] = {seed: [] for seed in filmed}
    every = max(1, round(env.env_spec.control_hz / VIDEO_FPS))
    fresh = np.ones(len(seeds), dtype=bool)
    step = 0
    while len(active):
        if step % every == 0:
            _film(films, observation, [seeds[i] for i in active])
        actions = chunker.act(observation, fresh, active)
        observation, reward, terminated, truncated, infos = env.step(actions, indices=active.tolist())
        step += 1
        returns[active] += reward
        ended = np.asarray(terminated) | np.asarray(truncated)
        for row in np.flatnonzero(ended):
            index, success = int(active[row]), bool(infos[row]["success"])
            if seeds[index] in films:
                _film(films, {key: values[row : row + 1] for key, values in observation.items()}, [seeds[index]])
            records[index] = EpisodeRecord(
                seed=int(seeds[index]), initial_state_hash=hashes[index], success=success, success_step=step if success else None,
                episode_return=float(returns[index]), length_steps=step,
                end="success" if success else ("horizon" if truncated[row] else "failure"),
            )  # fmt: skip
            if progress is not None:
                progress.update(1)
        keep = ~ended
        observation = {key: values[keep] for key, values in observation.items()}
        active, fresh = active[keep], np.zeros(int(keep.sum()), dtype=bool)
    return [records[index] for index in range(len(seeds))], {
        seed: np.stack(film) for seed, film in films.items() if film
    }


def _film(films: dict[int, list[np.ndarray]], observation: Mapping[str, np.ndarray], seeds: Sequence[int]) -> None:
    key = next((key for key in observation if key.startswith("images/")), None)
    if key is None:
        return
    for row, seed in enumerate(seeds):
        if seed in films:
            films[seed].append(observation[key][row].copy())

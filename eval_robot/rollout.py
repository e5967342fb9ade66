"""`egoarm eval`: batched rollouts of one policy over parallel environments -> a report, one record an episode."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs.spec import EnvSpec
from envs.tasks import find_level, find_task, make_env
from envs.vector import VectorEnv
from eval_robot.protocol import check_disjoint, protocol
from eval_robot.records import FORMAT, EpisodeRecord, EvalReport, load_report
from eval_robot.sequential import Decision, SequentialTest
from eval_robot.stats import wilson_interval
from eval_robot.stopping import RULES, Stopping, make_stopping, stopped_header
from policies.chunking import ActionChunker
from policies.policy import Policy, load_policy
from policies.train import PRIVILEGED_KEY
from pretrain.artifact import Artifact, atomic_write_text
from pretrain.clips.mp4 import write_mp4

VIDEO_FPS = 20.0
# Rows of one call of the policy, always: rounding, and with it an episode, is the same whichever episodes are beside it.
BLOCK_ROWS = 8
# How old what is on disk of a running evaluation may be.
_SAVE_SECONDS = 1.0


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
    protocol: str = "egoarm-1"
    stop: str = "fixed"
    stop_against: float | str = 0.5
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.task is not None:
            find_task(self.task)
        if self.level is not None:
            find_level(self.level)
        protocol(self.split, self.protocol).seeds(self.episodes)
        if self.stop not in RULES:
            raise ValueError(f"stop={self.stop}: expected one of {', '.join(RULES)}")
        if self.stop == "sequential":
            threshold = self.stop_against if isinstance(self.stop_against, float) else 0.5
            SequentialTest(threshold=threshold, alpha=self.alpha, episodes=self.episodes)
        if self.envs < 1 or self.videos < 0 or self.workers < 0 or self.threads < 0:
            raise ValueError(
                f"envs={self.envs}, videos={self.videos}, workers={self.workers}, threads={self.threads}: expected envs >= 1, the others >= 0"
            )


def run(config: EvalConfig) -> Path:
    """Evaluate; the report appears whole. After a kill, finished episodes are kept and the rest is run."""
    if config.threads:
        torch.set_num_threads(config.threads)
    policy, artifact = load_policy(config.policy)
    header = make_header(config, policy, artifact)
    _check_env(policy, header, config.policy)
    out = Path(config.out) if config.out else default_out(header)
    stopping = _stopping(config, header)
    episodes, decision = _episodes(config, policy, header, out, stopping)
    if decision is not None:
        header = stopped_header(header, decision)
    report = EvalReport(header=header, episodes=tuple(episodes))
    report.save(out)
    _partial(out).unlink(missing_ok=True)
    reruns = sum(episode.reruns for episode in report.episodes)
    if reruns:
        print(
            f"eval: simulators' processes died; {reruns} times an episode was run again from its seed (`reruns` in the report)"
        )
    low, high = wilson_interval(report.successes, len(report.episodes))
    print(
        f"eval: {header['label']} on {header['task']} at {header['level']}: {report.successes}/{len(report.episodes)} "
        f"({100 * report.successes / len(report.episodes):.0f} %, Wilson 95 % {100 * low:.0f} to {100 * high:.0f}) -> {out}"
    )
    if stopping is not None and decision is not None:
        print(f"eval: {stopping.sentence(decision)}")
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
    outcome = ("decision", "episodes") if "stop" in header else ()
    left_out = ("policy_provenance", "policy_path", *outcome)
    return json.loads(json.dumps({key: value for key, value in header.items() if key not in left_out}))


def make_header(config: EvalConfig, policy: Policy, artifact: Artifact) -> dict[str, Any]:
    """The report's first line: everything that must agree before two reports may be compared, and the chain of hashes."""
    rules = protocol(config.split, config.protocol)
    training = artifact.config
    seeds = rules.seeds(config.episodes)
    check_disjoint(training["demos"]["seeds"], seeds, training["demos"]["path"])
    header = {
        "kind": "egoarm-report",
        "format": FORMAT,
        "protocol": rules.id,
        "label": config.label or training["encoder"]["label"],
        "task": config.task or policy.spec.env_spec.task,
        "level": config.level or training["demos"]["level"],
        "episodes": config.episodes,
        "env_hash": _comparable(policy.spec.env_spec).schema_hash(),
        "policy_path": str(artifact.path),
        "policy_sha256": artifact.sha256,
        "encoder_sha256": training["encoder"]["sha256"],
        "demos_sha256": training["demos"]["sha256"],
        "policy_provenance": artifact.provenance,
        "training": {
            "seed": artifact.provenance["seed"],
            "demonstrations": len(training["demos"]["seeds"]),
            "readout": training.get("backbone", {}).get("readout"),
        },
        "envs": config.envs,
        "versions": {name: metadata.version(name) for name in ("torch", "mujoco", "numpy", "egoarm")},
    }
    stopping = _stopping(config, header)
    if stopping is None:
        return header
    rules = protocol(config.split, config.protocol, stopping.text)
    return header | {"protocol": rules.id, "stop": stopping.header()}


def _stopping(config: EvalConfig, header: Mapping[str, Any]) -> Stopping | None:
    """The sequential test of `config`, or None where as many episodes are run as were asked for."""
    if config.stop == "fixed":
        return None
    rules = protocol(config.split, config.protocol)
    fixed = {**header, "protocol": rules.id}
    return make_stopping(config.stop_against, config.alpha, rules.seeds(config.episodes), fixed)


def _comparable(env_spec: EnvSpec) -> EnvSpec:
    """The contract without the privileged state: a policy that reads it meets the same episodes as one that does not."""
    kept = {key: field for key, field in env_spec.observation.items() if key != PRIVILEGED_KEY}
    return replace(env_spec, observation=kept)


def default_out(header: Mapping[str, Any]) -> Path:
    label = header["label"].replace("/", "_").replace(" ", "-")
    # A report under a shift stands beside the one without, e.g. random-0a1b2c3d+camera-2.jsonl.
    _, plus, shifts = header["level"].partition("+")
    return Path("runs/eval") / header["task"] / f"{label}-{header['policy_sha256'][:8]}{plus}{shifts}.jsonl"


def _check_env(policy: Policy, header: Mapping[str, Any], where: str) -> None:
    options = dict(policy.spec.env_options)
    if header["task"] != policy.spec.env_spec.task:
        options.pop("cameras", None)  # another task may lack the policy's cameras: the difference shall say it
    env = make_env(header["task"], level=header["level"], **options)
    try:
        policy.spec.check_env(env.env_spec, where)
    finally:
        env.close()


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _episodes(
    config: EvalConfig, policy: Policy, header: Mapping[str, Any], out: Path, stopping: Stopping | None
) -> tuple[list[EpisodeRecord], Decision | None]:
    """The episodes in the order of their seeds, all or up to the decision; finished ones are kept in the partial file as they come."""
    seeds = protocol(config.split, config.protocol).seeds(config.episodes)
    stamp = _stamp(header)
    records = {record.seed: record for record in _resume(_partial(out), stamp)}
    missing = [seed for seed in seeds if seed not in records]
    filmed = seeds[: config.videos]
    title = f"eval {header['label']} {header['task']}"
    progress = tqdm(total=len(seeds), initial=len(records), desc=title, unit="episode", disable=None)
    saved_s = time.monotonic()

    def save() -> None:
        lines = [json.dumps(stamp), *(json.dumps(asdict(record)) for record in records.values())]
        atomic_write_text(_partial(out), "\n".join(lines) + "\n")

    def keep(record: EpisodeRecord, film: np.ndarray | None) -> None:
        nonlocal saved_s
        if film is not None:
            write_mp4(video_path(out, record.seed), film, VIDEO_FPS)
        records[record.seed] = record
        progress.update(1)
        if time.monotonic() - saved_s > _SAVE_SECONDS:
            save()
            saved_s = time.monotonic()

    def decision() -> Decision | None:
        return None if stopping is None else stopping.decide(records)

    if missing and decision() is None:
        n_envs = min(config.envs, len(missing))
        # A policy without eyes needs no renderer, but for the episodes that are kept as videos.
        blind = {} if policy.spec.cameras or set(filmed) & set(missing) else {"cameras": ()}
        try:
            with VectorEnv(
                header["task"], n_envs=n_envs, n_workers=min(config.workers or os.cpu_count() or 1, n_envs),
                level=header["level"], **(policy.spec.env_options | blind),
            ) as env:  # fmt: skip
                rollout(policy, env, missing, filmed=filmed, finished=keep, enough=lambda: decision() is not None)
        finally:
            save()
    progress.close()
    decided = decision()
    # Episodes that ended beside the deciding one are no part of the evidence: the report is the same however many ran at a time.
    return [records[seed] for seed in seeds[: decided.episodes if decided else None]], decided


def _resume(partial: Path, stamp: Mapping[str, Any]) -> list[EpisodeRecord]:
    if not partial.is_file():
        return []
    first, *rest = partial.read_text().splitlines()
    if json.loads(first) != stamp:
        return []  # begun with another policy or other settings
    return [EpisodeRecord(**json.loads(line)) for line in rest]


def video_path(out: Path, seed: int) -> Path:
    return out.with_suffix("") / f"seed-{seed}.mp4"


@dataclass
class _Running:
    """An episode under way."""

    seed: int
    initial_state_hash: str
    film: list[np.ndarray] | None
    steps: int = 0
    total_reward: float = 0.0


def rollout(
    policy: Policy,
    env: VectorEnv,
    seeds: Sequence[int],
    *,
    filmed: Sequence[int] = (),
    finished: Callable[[EpisodeRecord, np.ndarray | None], None] | None = None,
    enough: Callable[[], bool] | None = None,
) -> list[EpisodeRecord]:
    """One episode a seed, `env.n_envs` at a time, one policy call a step for all of them.

    An environment whose episode has ended starts the next seed. A seed's episode depends on the policy and the seed alone: not on the number of
    environments or workers, nor on which episodes run beside it.

    Args:
        filmed: seeds whose images are kept.
        finished: is given each record as its episode ends and, for a filmed seed, its film: uint8[frames, H, W, 3] at VIDEO_FPS.
        enough: asked whenever episodes have ended; True leaves those that run and those that wait.

    Returns:
        Records of the episodes that ended, in the order of `seeds`.
    """
    chunker = ActionChunker(policy, env.n_envs, block_rows=BLOCK_ROWS)
    every = max(1, round(env.env_spec.control_hz / VIDEO_FPS))
    waiting, films = deque(seeds), set(filmed) if env.env_spec.cameras else set()
    running: dict[int, _Running] = {}
    newest = {key: np.zeros((env.n_envs, *field.shape), field.dtype) for key, field in env.env_spec.observation.items()}
    records: dict[int, EpisodeRecord] = {}
    tick = 0
    while waiting or running:
        fresh: list[int] = []
        # Only where running chunks end too, so that the policy is asked for all environments at once, not for a few at each step.
        if waiting and (tick % chunker.execute_steps == 0 or not running):
            tick = 0 if not running else tick
            fresh = [index for index in range(env.n_envs) if index not in running][: len(waiting)]
        if fresh:
            started = [waiting.popleft() for _ in fresh]
            looked_at = [bool(policy.spec.cameras) or seed in films for seed in started]
            observation, infos = env.reset(started, indices=fresh, images=looked_at)
            _put(newest, observation, fresh)
            for index, seed, info in zip(fresh, started, infos, strict=True):
                running[index] = _Running(seed, info["initial_state_hash"], [] if seed in films else None)
        active = np.array(sorted(running))
        episodes = [running[index] for index in active]
        for index, episode in zip(active, episodes, strict=True):
            if episode.steps % every == 0:
                _film(episode, newest, index)
        actions = chunker.act(
            {key: values[active] for key, values in newest.items()},
            np.isin(active, fresh),
            active,
            [episode.seed for episode in episodes],
        )
        drawn = chunker.needs_images(active) | [episode.film is not None for episode in episodes]
        observation, rewards, terminated, truncated, infos = env.step(actions, active.tolist(), images=drawn)
        _put(newest, observation, active)
        tick += 1
        for row, (index, episode) in enumerate(zip(active.tolist(), episodes, strict=True)):
            episode.steps += 1
            episode.total_reward += float(rewards[row])
            if not (terminated[row] or truncated[row]):
                continue
            _film(episode, newest, index)
            success = bool(infos[row]["success"])
            record = records[episode.seed] = EpisodeRecord(
                seed=int(episode.seed), initial_state_hash=episode.initial_state_hash, success=success,
                success_step=episode.steps if success else None, episode_return=episode.total_reward, length_steps=episode.steps,
                end="success" if success else ("horizon" if truncated[row] else "failure"), reruns=int(env.reruns[index]),
            )  # fmt: skip
            del running[index]
            if finished is not None:
                finished(record, np.stack(episode.film) if episode.film else None)
        if enough is not None and (terminated | truncated).any() and enough():
            break
    return [records[seed] for seed in seeds if seed in records]


def _put(
    newest: dict[str, np.ndarray], observation: Mapping[str, np.ndarray], indices: Sequence[int] | np.ndarray
) -> None:
    for key, values in observation.items():
        newest[key][indices] = values


def _film(episode: _Running, newest: Mapping[str, np.ndarray], index: int) -> None:
    if episode.film is not None:
        key = next(key for key in newest if key.startswith("images/"))
        episode.film.append(newest[key][index].copy())

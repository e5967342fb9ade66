"""`egoarm demos audit`: how often each task's expert succeeds, over fresh seeds."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table
from statsmodels.stats.proportion import proportion_confint
from tqdm import tqdm

import envs
from envs.tasks import SUITES, TASKS, find_task
from policies.demos.attempts import held_attempt, workers
from policies.demos.collect import AUDIT_SEEDS
from policies.demos.hdf5 import installed_versions
from pretrain.artifact import atomic_write_text

# The rate that each task's expert must reach for `check=true`; a suite without one is reported and not checked.
ASKED_RATES: dict[str, float] = {"toy": 0.95, "metaworld": 0.95, "robosuite": 0.95, "kitchen": 0.90}


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    suite: str | None
    task: str | tuple[str, ...] | None
    seeds: int
    first_seed: int
    out: str | None
    check: bool
    workers: int

    def __post_init__(self) -> None:
        if self.suite is not None and self.suite not in SUITES:
            raise ValueError(f"suite={self.suite}: expected one of {', '.join(SUITES)}")
        if self.suite is None and self.task is None:
            raise ValueError(f"suite= (one of {', '.join(SUITES)}) or task= must be given")
        for task in self.tasks:
            if self.suite not in (None, find_task(task).suite):
                raise ValueError(f"task={task} is not of suite={self.suite}; leave suite= out")
        if self.seeds < 1 or self.first_seed not in AUDIT_SEEDS or self.first_seed + self.seeds > AUDIT_SEEDS.stop:
            raise ValueError(
                f"seeds={self.seeds} from first_seed={self.first_seed}: expected at least one seed, within {AUDIT_SEEDS.start} to "
                f"{AUDIT_SEEDS.stop - 1}, which no demonstration and no evaluation uses"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks to audit, in the table's order."""
        if self.task is None:
            return tuple(name for name, row in TASKS.items() if row.suite == self.suite)
        return (self.task,) if isinstance(self.task, str) else self.task

    @property
    def path(self) -> Path:
        """Where the result goes."""
        name = self.suite if self.task is None else "-".join(self.tasks).replace("/", "-")
        return Path(self.out or f"runs/demos/audit-{name}.json")


def run(config: AuditConfig) -> int:
    """Audit; returns 1 if `check` is asked for and a task is below its suite's rate. Goes on after a kill; a change of code begins anew."""
    header = {
        "tasks": list(config.tasks),
        "first_seed": config.first_seed,
        "seeds": config.seeds,
        "versions": installed_versions(),
        "code": _code_sha256(),
    }
    out = config.path
    records = _finished(out, header)
    if records is None:
        records = _audit(config, header)
        document = {**header, "summary": [summarize(task, records) for task in config.tasks], "episodes": records}
        atomic_write_text(out, json.dumps(document, indent=1))
        _log_path(out).unlink()
    rows = [summarize(task, records) for task in config.tasks]
    _print(rows, config)
    print(f"audit: {out}")
    return _verdict(rows) if config.check else 0


def _audit(config: AuditConfig, header: dict[str, Any]) -> list[dict[str, Any]]:
    """All records, ordered by task and seed; each is appended to a log as it comes, which a later run begins from."""
    log = _log_path(config.path)
    done = _read_log(log, header)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    units = [(task, seed) for task in config.tasks for seed in seeds if (task, seed) not in done]
    log.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(log, "".join(json.dumps(line) + "\n" for line in (header, *done.values())))
    if units:
        count = min(config.workers or os.cpu_count() or 1, len(units))
        progress = tqdm(total=len(units), desc="audit", unit="episode", disable=None)
        with workers(count) as run_all, open(log, "a") as file:
            for record in run_all(audit_episode, *zip(*units, strict=True)):
                done[record["task"], record["seed"]] = record
                file.write(json.dumps(record) + "\n")
                file.flush()
                progress.update()
        progress.close()
    return [done[task, seed] for task in config.tasks for seed in seeds]


def audit_episode(task: str, seed: int) -> dict[str, Any]:
    """One attempt without cameras, as a record."""
    try:
        result = held_attempt(task, {"cameras": ()}, seed)
    except Exception as error:  # the simulation or the expert cannot be made: said for this task, the others go on
        return _record(
            task, seed, success=False, steps=0, seconds=0.0, start="", error=f"{type(error).__name__}: {error}"
        )
    steps = 0 if result.episode is None else len(result.episode.actions)
    return _record(
        task,
        seed,
        success=result.success,
        steps=steps,
        seconds=result.seconds,
        start=result.initial_state_hash,
        error=result.error,
    )


def _record(
    task: str, seed: int, *, success: bool, steps: int, seconds: float, start: str, error: str
) -> dict[str, Any]:
    return {
        "task": task,
        "seed": seed,
        "success": success,
        "steps": steps,
        "seconds": round(seconds, 4),
        "initial_state_hash": start,
        "error": error,
    }


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One task's result. Lengths are of successful episodes, in steps; None if there is none. `interval`: Wilson, 95 %."""

    task: str
    successes: int
    episodes: int
    interval: tuple[float, float]
    steps_median: float | None
    steps_max: int | None
    horizon_steps: int
    seconds: float
    starts: int
    asked: float | None
    failed_seeds: tuple[int, ...]
    error: str

    @property
    def passed(self) -> bool:
        return self.asked is None or self.successes >= self.asked * self.episodes


def summarize(task: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The task's row as a JSON-able dict, see `AuditRow`."""
    own = [record for record in records if record["task"] == task]
    solved = [record["steps"] for record in own if record["success"]]
    low, high = proportion_confint(len(solved), len(own), alpha=0.05, method="wilson")
    errors = Counter(record["error"] for record in own if record["error"])
    row = AuditRow(
        task=task,
        successes=len(solved),
        episodes=len(own),
        interval=(max(0.0, float(low)), min(1.0, float(high))),
        steps_median=median(solved) if solved else None,
        steps_max=max(solved, default=None),
        horizon_steps=find_task(task).horizon_steps,
        seconds=mean(record["seconds"] for record in own),
        starts=len({record["initial_state_hash"] for record in own}),
        asked=ASKED_RATES.get(find_task(task).suite),
        failed_seeds=tuple(record["seed"] for record in own if not record["success"]),
        error=errors.most_common(1)[0][0] if errors else "",
    )
    return {**json.loads(json.dumps(asdict(row))), "passed": row.passed}


def _print(rows: Sequence[dict[str, Any]], config: AuditConfig) -> None:
    table = Table(
        title=f"Experts over seeds {config.first_seed} to {config.first_seed + config.seeds - 1}, no cameras",
        title_justify="left",
    )
    table.add_column("task", no_wrap=True)
    for heading in ("successes", "Wilson 95 %", "asked", "steps median", "max", "horizon", "s/episode", "failed seeds"):
        table.add_column(heading, justify="right")
    for row in rows:
        low, high = row["interval"]
        failed = row["failed_seeds"]
        table.add_row(
            row["task"],
            f"{row['successes']}/{row['episodes']}",
            f"{100 * low:.0f} to {100 * high:.0f} %",
            "-" if row["asked"] is None else f"{100 * row['asked']:.0f} %{'' if row['passed'] else ' (below)'}",
            "-" if row["steps_median"] is None else f"{row['steps_median']:g}",
            "-" if row["steps_max"] is None else str(row["steps_max"]),
            str(row["horizon_steps"]),
            f"{row['seconds']:.2f}",
            ", ".join(map(str, failed[:3])) + (f" and {len(failed) - 3} more" if len(failed) > 3 else ""),
        )
    Console(width=None if Console().is_terminal else 140).print(table)
    for row in rows:
        if row["error"]:
            print(f"{row['task']}: {row['error']}")
    solved, count = sum(row["successes"] for row in rows), sum(row["episodes"] for row in rows)
    print(f"all {len(rows)} tasks: {solved} of {count} episodes ({100 * solved / count:.1f} %)")


def _verdict(rows: Sequence[dict[str, Any]]) -> int:
    below = [row["task"] for row in rows if not row["passed"]]
    unchecked = [row["task"] for row in rows if row["asked"] is None]
    if unchecked:
        print(f"audit: no rate is asked of {', '.join(unchecked)}")
    print(f"audit: below the asked rate: {', '.join(below)}" if below else "audit: every asked rate is reached")
    return int(bool(below))


def _finished(out: Path, header: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Records of an earlier, finished audit of the same tasks, seeds, packages and code."""
    if not out.exists():
        return None
    try:
        document = json.loads(out.read_text())
        same = {key: document[key] for key in header} == json.loads(json.dumps(header))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out} is not an audit's result ({error}); name another out= or delete it") from error
    return document["episodes"] if same else None


def _log_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _read_log(log: Path, header: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    if not log.exists():
        return {}
    lines = log.read_text().split("\n")[:-1]  # a line that a kill cut short has no end and is left out
    if not lines or json.loads(lines[0]) != json.loads(json.dumps(header)):
        return {}
    return {(record["task"], record["seed"]): record for record in map(json.loads, lines[1:])}


def _code_sha256() -> str:
    """Of all source of the room `envs`: an expert's result holds for one version of it."""
    root = Path(envs.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()

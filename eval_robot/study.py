"""`egoarm study`: encoders x tasks x training seeds as independent units of work, each kept when it is done.

<out>/demos/<task>.hdf5                                      one file a task, for all rows
<out>/features/                                              computed once an encoder and task
<out>/policies/<task>/<row>/<readout>-<demonstrations>-<seed>
<out>/reports/<level>/<readout>-<demonstrations>/<task>/<row>-<seed>.jsonl

A unit is one policy and its evaluation at one or more levels. Units go in the order of their training seeds, so that a study that is stopped
holds all rows of all tasks for the seeds that are done.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from envs.tasks import find_level, find_task
from eval_robot.rollout import EvalConfig, evaluated
from eval_robot.rollout import run as evaluate
from policies.demos.collect import DemosConfig
from policies.demos.collect import run as collect
from policies.demos.hdf5 import DemoFile
from policies.readouts import READOUTS
from policies.train import TrainConfig
from policies.train import run as train
from pretrain.artifact import atomic_write_text
from pretrain.launch import LAUNCHERS, launcher


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """What a row's policies are trained with; all else is the same for every row.

    Attributes:
        encoder: as `egoarm train` takes it; {name} is a directory of StudyConfig.encoders, in which {task} stands for the task's name.
        state_keys: None: proprioception.
        steps, batch_size, lr, precision: of training; None: the study's. Networks that are trained end to end cost far more a step and bear
            a smaller learning rate.
        noise: of the linear read-out; None: the study's. A row beside one of the same encoder shows what the head costs it.
    """

    encoder: str
    adaptation: str = "frozen"
    state_keys: tuple[str, ...] | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    precision: str | None = None
    noise: float | None = None


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The grid.

    Attributes:
        only: rows that are run and shown; None: all.
        reference: the row that all others are paired with.
        pairs: pairs of rows compared besides.
        cameras: of each task's own, the first so many.
        look_every_s: simulated time that a policy acts on one look: it predicts and runs as many actions as fit, at least one. None: what
            `train` says, which is the same number of control steps for suites that are controlled at 12 and at 80 Hz.
        rows_a_look: of the steps that such a look lasts, about so many are learned from.
        level: appearance of the demonstrations and of the main evaluation; `shifts` are evaluated on top of it.
        counts: numbers of demonstrations besides all of them.
        readouts: the first is used throughout, the others at the level with all demonstrations.
        varied_seeds: shifts, counts and further readouts are run for the first so many of `seeds`; None: for all.
        varied_rows: the rows of `only` they are run for; None: all.
    """

    out: str
    publish: str | None
    split: str
    tasks: tuple[str, ...]
    rows: Mapping[str, StudyRow]
    only: tuple[str, ...] | None
    encoders: Mapping[str, str]
    reference: str
    pairs: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    level: str
    cameras: int
    look_every_s: float | None
    rows_a_look: int
    shifts: tuple[str, ...]
    counts: tuple[int, ...]
    readouts: tuple[str, ...]
    varied_seeds: int | None
    varied_rows: tuple[str, ...] | None
    retries: int
    launcher: str
    workers: int
    ray_address: str
    demos: DemosConfig
    train: TrainConfig
    eval: EvalConfig

    def __post_init__(self) -> None:
        for name in ("tasks", "rows", "seeds", "readouts"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: expected at least one, each once")
        for task in self.tasks:
            find_task(task)
        for level in self.levels:
            find_level(level)
        named = {
            "only": self.only or (),
            "varied_rows": self.varied_rows or (),
            "reference": (self.reference,),
            "pairs": [r for pair in self.pairs for r in pair],
        }
        for name, rows in named.items():
            if unknown := [row for row in rows if row not in self.rows]:
                raise ValueError(f"{name}= names {', '.join(unknown)}; rows= holds: {', '.join(self.rows)}")
        if self.reference not in self.chosen:
            raise ValueError(
                f"only={list(self.chosen)} lacks the reference {self.reference!r}; name another reference="
            )
        if any(len(pair) != 2 for pair in self.pairs):
            raise ValueError(f"pairs={self.pairs}: expected [[row, row], ...]")
        if unknown := [name for name in self.readouts if name not in READOUTS]:
            raise ValueError(f"readouts={unknown}: expected some of {', '.join(READOUTS)}")
        if self.varied_seeds is not None and self.varied_seeds < 1:
            raise ValueError(f"varied_seeds={self.varied_seeds}: expected at least 1, or null for all of seeds")
        if too_many := [count for count in self.counts if not 1 <= count < self.demos.episodes]:
            raise ValueError(f"counts={too_many}: expected 1 to {self.demos.episodes - 1}, fewer than demos.episodes")
        if self.eval.stop != "fixed":
            raise ValueError(
                f"eval.stop={self.eval.stop}: rows of a study meet the same episodes, all of them; expected fixed"
            )
        if self.launcher not in LAUNCHERS:
            raise ValueError(f"launcher={self.launcher}: expected one of {', '.join(LAUNCHERS)}")
        if self.rows_a_look < 1:
            raise ValueError(f"rows_a_look={self.rows_a_look}: expected at least 1")
        if self.retries < 0 or self.workers < 0 or self.cameras < 1:
            raise ValueError(
                f"retries={self.retries}, workers={self.workers}, cameras={self.cameras}: expected 0 or more, cameras 1 or more"
            )
        if self.look_every_s is not None and (self.look_every_s <= 0 or self.train.chunk_steps is not None):
            raise ValueError(
                f"look_every_s={self.look_every_s}, train.chunk_steps={self.train.chunk_steps}: expected one of them, in seconds above 0 or in steps"
            )
        for label, row in self.rows.items():
            try:
                row.encoder.format(**self.encoders)
            except KeyError as error:
                raise ValueError(f"rows.{label}.encoder={row.encoder}: encoders= has no {error}") from None

    @property
    def chosen(self) -> dict[str, StudyRow]:
        """The rows that are run and shown, in the table's order."""
        return {label: row for label, row in self.rows.items() if self.only is None or label in self.only}

    @property
    def levels(self) -> tuple[str, ...]:
        return (self.level, *(f"{self.level}+{shift}" for shift in self.shifts))


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One policy and the levels it is evaluated at."""

    task: str
    row: str
    readout: str
    demonstrations: int
    seed: int
    levels: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.task}, {self.row}, {self.readout}, {self.demonstrations} demonstrations, seed {self.seed}"


@dataclass(frozen=True)
class StudyPaths:
    """Where a study keeps things."""

    out: Path

    def demos(self, task: str) -> Path:
        return self.out / "demos" / f"{_slug(task)}.hdf5"

    def policy(self, unit: Unit) -> Path:
        folder = self.out / "policies" / _slug(unit.task) / _slug(unit.row)
        return folder / f"{unit.readout}-{unit.demonstrations}-{unit.seed}"

    def report(self, unit: Unit, level: str) -> Path:
        folder = self.out / "reports" / level / f"{unit.readout}-{unit.demonstrations}" / _slug(unit.task)
        return folder / f"{_slug(unit.row)}-{unit.seed}.jsonl"


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split()).lower()


def units(config: StudyConfig) -> list[Unit]:
    """All units: by training seed, the main cells first, then other numbers of demonstrations and other read-outs."""
    main, every = config.readouts[0], config.demos.episodes
    varied_rows = set(config.chosen if config.varied_rows is None else config.varied_rows)
    varied_seeds = config.seeds[: config.varied_seeds]
    shapes = [
        (main, every),
        *((main, count) for count in sorted(config.counts, reverse=True)),
        *((readout, every) for readout in config.readouts[1:]),
    ]
    found = []
    for seed in config.seeds:
        for readout, count in shapes:
            is_main = (readout, count) == (main, every)
            for task in config.tasks:
                for label, row in config.chosen.items():
                    is_varied = seed in varied_seeds and label in varied_rows
                    if not is_main and not is_varied:
                        continue
                    if readout != main and row.encoder == "none":
                        continue  # without images there is nothing to read out
                    levels = config.levels if is_main and is_varied else (config.level,)
                    found.append(
                        Unit(task=task, row=label, readout=readout, demonstrations=count, seed=seed, levels=levels)
                    )
    return found


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one try of a unit: an empty error if it is done."""

    seconds: float
    error: str = ""
    trace: str = field(default="", repr=False)


def run(config: StudyConfig) -> int:
    """Run what is not there yet; 0, or 1 if units failed. What is done is published whatever failed."""
    from eval_robot.study_pages import publish

    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for task in config.tasks:
        collect(demos_config(config, task))
    todo = [unit for unit in units(config) if not _is_done(config, unit)]
    everything = len(units(config))
    print(f"study: {everything} policies, {everything - len(todo)} are done")
    failed = _run_all(config, todo)
    for unit, outcome in failed:
        print(f"study: FAILED {unit.name}: {outcome.error}")
    if failed:
        atomic_write_text(out / "failures.json", json.dumps([{**asdict(u), **asdict(o)} for u, o in failed], indent=2))
        print(
            f"study: {len(failed)} of {everything} failed (traces in {out / 'failures.json'}); run again to try them again"
        )
    else:
        (out / "failures.json").unlink(missing_ok=True)
    publish(config)
    return 1 if failed else 0


def _run_all(config: StudyConfig, todo: Sequence[Unit]) -> list[tuple[Unit, Outcome]]:
    """Every unit at most 1 + retries times; those that failed in the end."""
    waiting, failed = list(range(len(todo))), {}
    with launcher(config) as run_units, tqdm(total=len(todo), desc="study", unit="policy", disable=None) as progress:
        for attempt in range(1 + config.retries):
            failed = {}
            for index, outcome in run_units(partial(_work, config, tuple(todo)), waiting):
                if outcome.error:
                    failed[index] = outcome
                    left = "to be tried again" if attempt < config.retries else "given up"
                    progress.write(f"study: {todo[index].name}: {outcome.error} ({left})")
                else:
                    progress.update(1)
            waiting = sorted(failed)
            if not waiting:
                break
    return [(todo[index], failed[index]) for index in waiting]


def _work(config: StudyConfig, todo: Sequence[Unit], index: int) -> Outcome:
    """One unit, in a worker; a failure is an outcome and not the end of the study."""
    start = time.monotonic()
    try:
        run_unit(config, todo[index])
    except (Exception, SystemExit) as error:
        return Outcome(
            seconds=time.monotonic() - start,
            error=f"{type(error).__name__}: {error}",
            trace=traceback.format_exc(),
        )
    return Outcome(seconds=time.monotonic() - start)


def run_unit(config: StudyConfig, unit: Unit) -> None:
    """Train the policy and evaluate it; what is there is kept."""
    train(_train_config(config, unit))
    for level in unit.levels:
        cell = _eval_config(config, unit, level)
        if not evaluated(cell):
            evaluate(cell)


def demos_config(config: StudyConfig, task: str) -> DemosConfig:
    """How a task's demonstrations, the same for all rows, are collected."""
    return replace(
        config.demos,
        task=task,
        level=config.level,
        cameras=find_task(task).cameras[: config.cameras],
        workers=config.workers,
        out=str(StudyPaths(Path(config.out)).demos(task)),
    )


def _train_config(config: StudyConfig, unit: Unit) -> TrainConfig:
    paths, row = StudyPaths(Path(config.out)), config.rows[unit.row]
    every = unit.demonstrations == config.demos.episodes
    chunk_steps, execute_steps, rows_every = (
        config.train.chunk_steps,
        config.train.execute_steps,
        config.train.rows_every,
    )
    if config.look_every_s is not None:
        with DemoFile(paths.demos(unit.task)) as demos:
            chunk_steps = execute_steps = max(1, round(config.look_every_s * demos.env_spec.control_hz))
        rows_every = max(1, chunk_steps // config.rows_a_look)
    backbone = replace(config.train.backbone, readout=unit.readout, adaptation=row.adaptation)
    if row.noise is not None:
        backbone = replace(backbone, noise=row.noise)
    return replace(
        config.train,
        demos=str(paths.demos(unit.task)),
        demonstrations=None if every else unit.demonstrations,
        encoder=row.encoder.format(**{k: v.replace("{task}", _slug(unit.task)) for k, v in config.encoders.items()}),
        state_keys=row.state_keys,
        backbone=backbone,
        chunk_steps=chunk_steps,
        rows_every=rows_every,
        execute_steps=execute_steps,
        steps=row.steps or config.train.steps,
        batch_size=row.batch_size or config.train.batch_size,
        lr=row.lr or config.train.lr,
        precision=row.precision or config.train.precision,
        label=unit.row,
        seed=unit.seed,
        # A random encoder's weights are drawn anew with each training seed.
        encoder_seed=unit.seed,
        cache=str(paths.out / "features"),
        out=str(paths.policy(unit)),
    )


def _eval_config(config: StudyConfig, unit: Unit, level: str) -> EvalConfig:
    paths = StudyPaths(Path(config.out))
    # Only the first training seed is filmed, and only at the level itself.
    filmed = config.eval.videos if unit.seed == config.seeds[0] and level == config.level else 0
    return replace(
        config.eval,
        policy=str(paths.policy(unit)),
        task=unit.task,
        level=level,
        split=config.split,
        label=unit.row,
        videos=filmed,
        out=str(paths.report(unit, level)),
    )


def _is_done(config: StudyConfig, unit: Unit) -> bool:
    """Whether all of its reports are there. That they are of these settings is checked by `publish`, and by `egoarm train` of what is run."""
    paths = StudyPaths(Path(config.out))
    return all(paths.report(unit, level).is_file() for level in unit.levels)

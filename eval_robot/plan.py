"""`egoarm study plan`: how many episodes, and hours, a study needs to see a wanted gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from eval_robot.power import Model
from eval_robot.records import load_report


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Rates, gain and seed_sd are success rates in [0, 1]; `seconds_per_episode` is of one policy on one task, wall clock."""

    gain: float
    tasks: int
    training_seeds: tuple[int, ...]
    rows: int
    base: float
    seed_sd: float
    correlation: float
    power: float
    alpha: float
    seconds_per_episode: float
    reports: tuple[str, ...]
    studies: int
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        if not self.training_seeds or self.rows < 2 or self.gain == 0:
            raise ValueError(
                f"training_seeds={list(self.training_seeds)}, rows={self.rows}, gain={self.gain}: expected a number of training seeds or "
                "several, at least two rows, and a gain that is not 0"
            )
        for name in ("power", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a probability between 0 and 1, both excluded")
        if self.seconds_per_episode <= 0 or self.studies < 0 or self.resamples < 1:
            raise ValueError(
                f"seconds_per_episode={self.seconds_per_episode}, studies={self.studies}, resamples={self.resamples}: expected more than 0 "
                "(studies=0: no check by simulation)"
            )
        for count in self.training_seeds:
            self.model(count)

    def model(self, training_seeds: int) -> Model:
        return Model(
            tasks=self.tasks, seeds=training_seeds, base=self.base, gain=self.gain, seed_sd=self.seed_sd, correlation=self.correlation
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `training_seeds` policies a row and task need: `episodes` each, `hours` for all rows; None where no number is enough.

    `simulated_power` is that of the paired bootstrap on studies of this size drawn from the model.
    """

    training_seeds: int
    episodes: int | None
    hours: float | None
    simulated_power: float | None


def run(config: PlanConfig) -> None:
    seconds, source = seconds_per_episode(config)
    plans = [plan(config, count, seconds) for count in config.training_seeds]
    _print(config, plans)
    print(f"plan: {seconds:g} s an episode ({source}); training is not counted. {sentence(config, plans)}")


def plan(config: PlanConfig, training_seeds: int, seconds: float) -> Plan:
    """The least number of episodes by the formula, checked by simulation."""
    model = config.model(training_seeds)
    episodes = model.episodes_for(config.power, config.alpha)
    if episodes is None:
        return Plan(training_seeds=training_seeds, episodes=None, hours=None, simulated_power=None)
    simulated = None
    # One training seed does not show how much seeds differ: the bootstrap's intervals are too narrow, and its power means nothing.
    if config.studies and (training_seeds > 1 or config.seed_sd == 0):
        simulated = model.simulated_power(
            episodes, alpha=config.alpha, studies=config.studies, resamples=config.resamples, seed=config.seed
        )
    hours = config.rows * config.tasks * training_seeds * episodes * seconds / 3600
    return Plan(training_seeds=training_seeds, episodes=episodes, hours=hours, simulated_power=simulated)


def seconds_per_episode(config: PlanConfig) -> tuple[float, str]:
    """Wall clock of an episode, from the headers of `reports` where they say it, and where it comes from."""
    headers = [load_report(path).header for path in config.reports]
    measured = [float(header["seconds_per_episode"]) for header in headers if "seconds_per_episode" in header]
    if measured:
        return float(np.mean(measured)), f"the mean of {len(measured)} reports"
    why = "seconds_per_episode=, an assumption" + ("; the reports do not say" if headers else "")
    return config.seconds_per_episode, why


def _print(config: PlanConfig, plans: Sequence[Plan]) -> None:
    title = (
        f"To see a gain of {100 * config.gain:+g} points on {100 * config.base:g} % over {config.tasks} tasks, with {100 * config.power:g} % power "
        f"at alpha {config.alpha:g}"
    )
    table = Table(title=title)
    for heading in ("training seeds", "episodes a policy", "episodes a row and task", f"hours, {config.rows} rows"):
        table.add_column(heading, justify="right")
    table.add_column(f"power in {config.studies} simulated studies", justify="right")
    for row in plans:
        if row.episodes is None:
            table.add_row(str(row.training_seeds), "no number", "", "", "")
            continue
        simulated = "" if row.simulated_power is None else f"{100 * row.simulated_power:.0f} %"
        if row.training_seeds == 1 and config.seed_sd > 0:
            simulated = "the test cannot see how seeds differ"
        table.add_row(
            str(row.training_seeds), str(row.episodes), str(row.episodes * row.training_seeds), f"{row.hours:.1f}", simulated
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 120).print(table)
    discordant = config.model(config.training_seeds[0]).discordant
    print(
        f"Training seeds differ by {100 * config.seed_sd:g} points (standard deviation); of the episodes that two policies share, "
        f"{100 * discordant:.0f} % are solved by one of them alone (correlation {config.correlation:g})."
    )


def sentence(config: PlanConfig, plans: Sequence[Plan]) -> str:
    """The cheapest plan, in words: of those that reach the power by simulation too, if any does.

    One training seed is a plan only where seeds do not differ.
    """
    honest = [row for row in plans if row.training_seeds > 1 or config.seed_sd == 0]
    enough = [row for row in honest if row.hours is not None]
    if not enough:
        return (
            f"A gain of {100 * config.gain:g} points cannot be seen with {', '.join(str(row.training_seeds) for row in plans)} training seeds: "
            "they differ too much; add training seeds or tasks."
        )
    reached = [row for row in enough if row.simulated_power is None or row.simulated_power >= config.power]
    best = min(reached or enough, key=lambda row: (row.hours, row.training_seeds))  # training costs too
    return (
        f"A gain of {100 * config.gain:g} points takes {best.episodes} episodes of each of {best.training_seeds} policies a row and task, "
        f"{best.hours:.1f} hours for {config.rows} rows here."
    )

"""`egoarm eval best-of`: the maximum over checkpoints of one training run, as r3m and cortexbench report it, and its bias.

The best of several noisy rates is too high on the very seeds it was chosen on, even if all checkpoints are alike. How much too
high shows when the chosen checkpoint is evaluated again, on seeds that had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from statsmodels.stats.proportion import confint_proportions_2indep

from eval_robot.protocol import PROTOCOLS, protocol
from eval_robot.records import EvalReport, load_report
from eval_robot.stats import wilson_interval

# What all checkpoints of one training run, evaluated alike, have in common.
SHARED = ("protocol", "task", "level", "env_hash", "label", "demos_sha256", "episodes")


@dataclass(frozen=True, kw_only=True)
class BestOfConfig:
    reports: tuple[str, ...]
    protocol: str
    held_out: str | None
    out: str | None

    def __post_init__(self) -> None:
        habits = [name for name, checkpoint in PROTOCOLS.items() if checkpoint == "best-of-evaluated"]
        if self.protocol not in habits:
            raise ValueError(
                f"protocol={self.protocol}: expected one that takes the best checkpoint: {', '.join(habits)}"
            )
        if len(self.reports) < 2:
            raise ValueError(f"{len(self.reports)} report given: expected those of several checkpoints of one run")


@dataclass(frozen=True, kw_only=True)
class Bias:
    """The chosen checkpoint's rate where it was chosen less its rate on other seeds, with Newcombe's 95 % interval (1998, method 10)."""

    chosen: float
    held_out: float
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.chosen - self.held_out


def run(config: BestOfConfig) -> None:
    best = best_of([load_report(path) for path in config.reports], config.protocol)
    low, high = wilson_interval(best.successes, len(best.episodes))
    count = len(best.episodes)
    print(
        f"best-of: {best.label} on {best.task}: {best.successes}/{count} ({100 * best.successes / count:.0f} %), chosen on these very "
        f"episodes; their Wilson interval, {100 * low:.0f} to {100 * high:.0f} %, does not know of the choice (protocol {best.header['protocol']})"
    )
    if config.out:
        best.save(config.out)
        print(f"best-of: report -> {Path(config.out)}")
    if config.held_out:
        bias = bias_of(best, load_report(config.held_out))
        print(
            f"best-of: on seeds that had no part in the choice {100 * bias.held_out:.0f} %: the maximum over "
            f"{len(best.header['candidates'])} checkpoints is too high by {100 * bias.value:+.0f} points (95 % {100 * bias.low:+.0f} to "
            f"{100 * bias.high:+.0f})"
        )
    else:
        print(
            "best-of: evaluate that policy again with split=test, or more seeds, and name the report as held_out= to see the bias"
        )


def best_of(candidates: Sequence[EvalReport], name: str) -> EvalReport:
    """The report of the checkpoint with most successes, the first of equals, under a protocol id and label that say so.

    Raises:
        ValueError: if the reports are not those of several checkpoints of one run on the same episodes.
    """
    for key in SHARED:
        if len(values := {str(report.header[key]) for report in candidates}) > 1:
            raise ValueError(f"checkpoints of one run have one {key}, these have {' and '.join(sorted(values))}")
    if len({report.header["policy_sha256"] for report in candidates}) < len(candidates):
        raise ValueError("two reports are of the same checkpoint; name each once")
    starts = {tuple((episode.seed, episode.initial_state_hash) for episode in report.episodes) for report in candidates}
    if len(starts) > 1:
        raise ValueError(
            "the checkpoints did not meet the same episodes; evaluate all with the same split=, episodes= and versions"
        )
    best = max(candidates, key=lambda report: report.successes)
    split = best.header["protocol"].split("/")[1]
    shown = [{"policy_sha256": r.header["policy_sha256"], "successes": r.successes} for r in candidates]
    header = {
        **best.header,
        "protocol": protocol(split, name).id,
        "label": f"{best.label}, best of {len(candidates)} checkpoints",
        "candidates": shown,
    }
    return EvalReport(header=header, episodes=best.episodes)


def bias_of(best: EvalReport, held_out: EvalReport) -> Bias:
    """How much the chosen checkpoint's rate exceeds its rate on seeds that had no part in the choice.

    Raises:
        ValueError: if the second report is of another policy, or shares seeds with the first.
    """
    for key in ("policy_sha256", "task", "level", "env_hash"):
        if best.header[key] != held_out.header[key]:
            raise ValueError(
                f"held_out is of {key} {held_out.header[key]}, the best checkpoint's is {best.header[key]}; evaluate that policy there"
            )
    if shared := {episode.seed for episode in best.episodes} & {episode.seed for episode in held_out.episodes}:
        raise ValueError(
            f"held_out shares {len(shared)} seeds with the choice (first: {min(shared)}); evaluate on the other split="
        )
    n, m = len(best.episodes), len(held_out.episodes)
    low, high = confint_proportions_2indep(best.successes, n, held_out.successes, m, method="newcomb", compare="diff")
    return Bias(chosen=best.successes / n, held_out=held_out.successes / m, low=float(low), high=float(high))

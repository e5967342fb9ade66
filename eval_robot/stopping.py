"""When an evaluation has seen enough: `stop=sequential` of `egoarm eval`.

Episodes run side by side and successful ones end early, so those that have ended are not a fair sample. The test therefore sees
episodes in the order of their seeds, and none before all earlier ones have ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval_robot.records import EpisodeRecord, EvalReport, load_report
from eval_robot.sequential import Decision, SequentialTest, paired_trials

RULES = ("fixed", "sequential")


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """A sequential test over `seeds`, of the success rate or, with `against`, of the pairs with the same seeds of that report."""

    test: SequentialTest
    seeds: tuple[int, ...]
    against: EvalReport | None = None

    @property
    def text(self) -> str:
        """How a protocol's id names the rule."""
        what = f"against-{self.against.header['policy_sha256'][:12]}" if self.against else f"at-{self.test.threshold:g}"
        return f"sequential-{what}-alpha-{self.test.alpha:g}"

    def header(self) -> dict[str, Any]:
        """What a report's header says of the rule, decision aside."""
        shown = {"rule": "sequential", "alpha": self.test.alpha, "at_most": self.test.episodes}
        if self.against is None:
            return shown | {"threshold": self.test.threshold}
        outcomes = "".join(str(int(episode.success)) for episode in self.against.episodes[: len(self.seeds)])
        label, sha = self.against.label, self.against.header["policy_sha256"]
        return shown | {"against": {"label": label, "policy_sha256": sha, "outcomes": outcomes}}

    def sentence(self, decision: Decision) -> str:
        """The decision in words."""
        looked = f"{decision.episodes} of at most {self.test.episodes} episodes, alpha {self.test.alpha:g}"
        if self.against is None:
            what = f"whether the success rate is above {100 * self.test.threshold:g} %"
            answers = {"above": "it is", "below": "it is below"}
        else:
            what = f"whether it beats {self.against.label} ({decision.successes} of {decision.trials} seeds that only one of them solved)"
            answers = {"above": "it does", "below": "it is beaten"}
        return f"{what}: {answers.get(decision.verdict, 'cannot be decided')}, after {looked}"

    def decide(self, records: Mapping[int, EpisodeRecord]) -> Decision | None:
        """The decision by the episodes that have ended with all before them, or None: go on.

        Raises:
            ValueError: if an episode began otherwise than the one it is paired with.
        """
        prefix: list[EpisodeRecord] = []
        for seed in self.seeds:
            if seed not in records:
                break
            prefix.append(records[seed])
        own = [record.success for record in prefix]
        if self.against is None:
            return self.test.decide(own)
        others = self.against.episodes[: len(prefix)]
        for record, other in zip(prefix, others, strict=True):
            if record.initial_state_hash != other.initial_state_hash:
                raise ValueError(
                    f"seed {record.seed} starts in another state than in the report of {self.against.label} (stop_against); evaluate both "
                    "with the same versions"
                )
        return self.test.decide(paired_trials(own, [other.success for other in others]))


def make_stopping(against: float | str, alpha: float, seeds: Sequence[int], header: Mapping[str, Any]) -> Stopping:
    """The rule of `stop_against`: a threshold, or the path of a report to pair with.

    Raises:
        ValueError: if that report is of other rules, another task, or fewer episodes than may be needed.
    """
    if isinstance(against, float):
        return Stopping(test=SequentialTest(threshold=against, alpha=alpha, episodes=len(seeds)), seeds=tuple(seeds))
    report = load_report(against)
    for key in ("protocol", "task", "level", "env_hash"):
        if report.header[key] != header[key]:
            raise ValueError(
                f"stop_against={against}: its {key} is {report.header[key]}, here it is {header[key]}; pair with a report of the same"
            )
    if [episode.seed for episode in report.episodes[: len(seeds)]] != list(seeds):
        raise ValueError(
            f"stop_against={against} holds {len(report.episodes)} episodes, {len(seeds)} may be needed; set episodes={len(report.episodes)} or "
            "evaluate that policy on more"
        )
    test = SequentialTest(threshold=0.5, alpha=alpha, episodes=len(seeds))
    return Stopping(test=test, seeds=tuple(seeds), against=report)


def stopped_header(header: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
    """A report's header once the test has ended."""
    return {**header, "episodes": decision.episodes, "decision": asdict(decision)}

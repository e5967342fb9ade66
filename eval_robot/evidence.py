"""The reports of a study, checked and laid out as arrays, and the tables that follow from them.

<directory>/study.json                 the design: rows, tasks, levels, pairs, in the order of the tables
<directory>/reports/<condition>.jsonl.gz   all reports of one condition, one after the other

Nothing in a table comes from elsewhere, so the tables can be made again, byte for byte, from these files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import dacite
import numpy as np
from jaxtyping import Bool

from eval_robot.bootstrap import Estimate, iqm_bootstrap, paired_bootstrap, pooled_bootstrap, probability_of_improvement
from eval_robot.records import EvalReport, load_reports
from eval_robot.stats import holm

DESIGN_NAME = "study.json"
REPORTS_FOLDER = "reports"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What all rows of one table were evaluated under."""

    level: str
    readout: str
    demonstrations: int

    @property
    def name(self) -> str:
        return f"{self.level}_{self.readout}-{self.demonstrations}"


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a study compares, in the order in which it is shown."""

    tasks: tuple[str, ...]
    rows: tuple[str, ...]
    reference: str
    pairs: tuple[tuple[str, ...], ...]
    level: str
    shifts: tuple[str, ...]
    readouts: tuple[str, ...]
    demonstrations: int
    counts: tuple[int, ...]
    command: str

    @property
    def main(self) -> Condition:
        return Condition(level=self.level, readout=self.readouts[0], demonstrations=self.demonstrations)

    @property
    def conditions(self) -> dict[str, list[Condition]]:
        """By what is varied: the main condition first in each."""
        main = self.main
        shifted = [Condition(**{**asdict(main), "level": f"{self.level}+{shift}"}) for shift in self.shifts]
        fewer = [Condition(**{**asdict(main), "demonstrations": count}) for count in sorted(self.counts, reverse=True)]
        heads = [Condition(**{**asdict(main), "readout": readout}) for readout in self.readouts[1:]]
        return {"shifts": [main, *shifted], "demonstrations": [main, *fewer], "readouts": [main, *heads]}

    @property
    def compared(self) -> list[tuple[str, str]]:
        """All pairs of rows that are compared: each with the reference, then those named."""
        named = [(first, second) for first, second in self.pairs]
        return [(row, self.reference) for row in self.rows if row != self.reference] + [
            pair for pair in named if pair[1] != self.reference
        ]


Outcomes = Bool[np.ndarray, "S E"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a study has found: (condition, task, row) -> success of each training seed's policy on each episode.

    A condition holds the training seeds that every row of every task has there.
    """

    design: Design
    protocol: str
    seeds: Mapping[Condition, tuple[int, ...]]
    outcomes: Mapping[tuple[Condition, str, str], Outcomes]
    reports: tuple[EvalReport, ...]

    def rows(self, condition: Condition) -> list[str]:
        return [row for row in self.design.rows if (condition, self.design.tasks[0], row) in self.outcomes]

    def of(self, condition: Condition, row: str) -> list[Outcomes]:
        """One array a task."""
        return [self.outcomes[condition, task, row] for task in self.design.tasks]


def load_evidence(directory: str | Path) -> Evidence:
    """Read a study's directory.

    Raises:
        FileNotFoundError: it holds no design or no reports.
        ValueError: naming what does not fit: protocols, contracts, seeds or initial states.
    """
    directory = Path(directory)
    path = directory / DESIGN_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {DESIGN_NAME} in {directory}; `egoarm study publish={directory}` writes one")
    try:
        values = json.loads(path.read_text())
        design = dacite.from_dict(Design, values, dacite.Config(strict=True, cast=[tuple]))
    except (ValueError, TypeError, dacite.DaciteError) as error:
        raise ValueError(f"{path}: not a study's design ({error}); publish the study again") from error
    return gather(design, load_reports(directory / REPORTS_FOLDER))


def save_evidence(evidence: Evidence, directory: str | Path) -> None:
    """Write the design and, condition by condition, the reports that the tables use."""
    from eval_robot.records import save_reports
    from pretrain.artifact import atomic_write_text

    directory = Path(directory)
    atomic_write_text(directory / DESIGN_NAME, json.dumps(asdict(evidence.design), indent=2) + "\n")
    groups: dict[Condition, list[EvalReport]] = {}
    for report in evidence.reports:
        groups.setdefault(condition_of(report), []).append(report)
    for stale in (directory / REPORTS_FOLDER).glob("*.jsonl.gz"):
        if stale.name.removesuffix(".jsonl.gz") not in {condition.name for condition in groups}:
            stale.unlink()
    for condition, reports in groups.items():
        save_reports(directory / REPORTS_FOLDER / f"{condition.name}.jsonl.gz", reports)


def condition_of(report: EvalReport) -> Condition:
    training = report.header["training"]
    return Condition(
        level=report.header["level"], readout=training["readout"], demonstrations=training["demonstrations"]
    )


def gather(design: Design, reports: Iterable[EvalReport]) -> Evidence:
    """Check the reports against each other and keep, of each condition, the training seeds that are whole."""
    conditions = {condition for group in design.conditions.values() for condition in group}
    found: dict[tuple[Condition, str, str, int], EvalReport] = {}
    for report in reports:
        condition = condition_of(report)
        if report.label not in design.rows or report.task not in design.tasks:
            continue
        if condition not in conditions:
            continue
        key = (condition, report.task, report.label, report.header["training"]["seed"])
        if key in found:
            raise ValueError(f"two reports of {report.label}, {report.task}, training seed {key[3]}, {condition.name}")
        found[key] = report
    if not found:
        raise FileNotFoundError("no report of the study's rows and tasks is there yet; run `egoarm study`")
    _check(found)
    seeds, outcomes, kept = {}, {}, []
    for condition in dict.fromkeys(c for group in design.conditions.values() for c in group):
        rows = [row for row in design.rows if any(key[0] == condition and key[2] == row for key in found)]
        have = [{key[3] for key in found if key[:3] == (condition, task, row)} for task in design.tasks for row in rows]
        whole = sorted(set.intersection(*have)) if have else []
        if not whole:
            continue
        seeds[condition] = tuple(whole)
        for task in design.tasks:
            for row in rows:
                own = [found[condition, task, row, seed] for seed in whole]
                kept += own
                outcomes[condition, task, row] = np.array(
                    [[episode.success for episode in report.episodes] for report in own], bool
                )
    if design.main not in seeds:
        raise FileNotFoundError("no training seed has all rows of all tasks yet; run `egoarm study` on")
    if (design.main, design.tasks[0], design.reference) not in outcomes:
        raise FileNotFoundError(
            f"the reference {design.reference!r} has no report at {design.main.name} yet; run `egoarm study` on, or name another reference="
        )
    protocol = next(iter(found.values())).header["protocol"]
    return Evidence(design=design, protocol=protocol, seeds=seeds, outcomes=outcomes, reports=tuple(kept))


def _check(found: Mapping[tuple[Condition, str, str, int], EvalReport]) -> None:
    protocols = {report.header["protocol"] for report in found.values()}
    if len(protocols) > 1:
        raise ValueError(
            f"these reports are of different protocols and cannot be compared: {', '.join(sorted(protocols))}"
        )
    first: dict[tuple[Condition, str], EvalReport] = {}
    for (condition, task, _, _), report in found.items():
        other = first.setdefault((condition, task), report)
        for what in ("env_hash", "demos_sha256"):
            if report.header[what] != other.header[what]:
                raise ValueError(
                    f"{task}: {report.label} and {other.label} differ in {what}; make both again with one version and one file of demonstrations"
                )
        own = [(episode.seed, episode.initial_state_hash) for episode in report.episodes]
        theirs = [(episode.seed, episode.initial_state_hash) for episode in other.episodes]
        if own != theirs:
            where = next((a[0] for a, b in zip(own, theirs, strict=False) if a != b), "their number")
            raise ValueError(
                f"{task}, {condition.name}: {report.label} and {other.label} did not meet the same episodes (first difference: {where})"
            )


# --------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text, ready for Markdown, LaTeX and HTML alike."""

    title: str
    note: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(evidence: Evidence) -> list[Table]:
    """Every table of the study; the main one first."""
    found = [main_table(evidence), pairs_table(evidence), robust_table(evidence)]
    for varied, title in (
        ("shifts", "Held-out shifts"),
        ("demonstrations", "Number of demonstrations"),
        ("readouts", "Read-outs"),
    ):
        conditions = [c for c in evidence.design.conditions[varied] if c in evidence.seeds]
        if len(conditions) > 1:
            found.append(_varied_table(evidence, varied, title, conditions))
            found.append(_varied_pairs_table(evidence, varied, title, conditions))
    return found


def main_table(evidence: Evidence) -> Table:
    """Success rate a row and task, and over all tasks."""
    design, main = evidence.design, evidence.design.main
    rows = []
    for row in evidence.rows(main):
        own = evidence.of(main, row)
        rows.append((row, *(percent(pooled_bootstrap([task])) for task in own), percent(pooled_bootstrap(own))))
    return Table(
        title="Success rates, %",
        note=f"{_counted(evidence, main)} Appearance {design.level}, {design.demonstrations} demonstrations, read-out {design.readouts[0]}. "
        "95 % intervals by a bootstrap over training seeds and episodes, tasks kept as they are.",
        heads=("policy sees", *(short(task) for task in design.tasks), "all tasks"),
        rows=tuple(rows),
    )


def pairs_table(evidence: Evidence) -> Table:
    """Differences of paired rows a task and over all tasks, p values corrected over the tasks."""
    design, main = evidence.design, evidence.design.main
    present, rows = evidence.rows(main), []
    for first, second in design.compared:
        if first not in present or second not in present:
            continue
        own, theirs = evidence.of(main, first), evidence.of(main, second)
        each = [paired_bootstrap([a], [b]) for a, b in zip(own, theirs, strict=True)]
        corrected = holm([estimate.p_value for estimate in each])
        cells = [points(estimate) + ("*" if p < 0.05 else "") for estimate, p in zip(each, corrected, strict=True)]
        pooled = paired_bootstrap(own, theirs)
        rows.append((f"{first} - {second}", *cells, points(pooled), f"{pooled.p_value:.4f}"))
    return Table(
        title="Paired differences, points",
        note="Same episodes in both rows; 95 % intervals by a bootstrap over training seeds (each row's own) and episodes (of both together). "
        "*: p < 0.05 after Holm's correction over the tasks of the line; p of all tasks is not corrected.",
        heads=("difference", *(short(task) for task in design.tasks), "all tasks", "p"),
        rows=tuple(rows),
    )


def robust_table(evidence: Evidence) -> Table:
    """Interquartile mean and probability of improvement over the reference."""
    main, reference = evidence.design.main, evidence.design.reference
    theirs, rows = evidence.of(main, reference), []
    # A policy is one training seed: of one a row there is no more to say than which had more successes.
    known = len(evidence.seeds[main]) > 1
    for row in evidence.rows(main):
        own = evidence.of(main, row)
        better = percent(probability_of_improvement(own, theirs)) if known and row != reference else ""
        rows.append((row, percent(iqm_bootstrap(own)), better))
    return Table(
        title="Interquartile mean and probability of improvement, %",
        note=f"Of the success rates of all tasks and training seeds; improvement: that a policy of the row beats one of {reference}, ties half"
        + ("." if known else "; not known of one training seed."),
        heads=("policy sees", "interquartile mean", f"better than {reference}"),
        rows=tuple(rows),
    )


def _varied_table(evidence: Evidence, varied: str, title: str, conditions: Sequence[Condition]) -> Table:
    rows = []
    for row in evidence.rows(evidence.design.main):
        cells = []
        for condition in conditions:
            shown = row in evidence.rows(condition)
            cells.append(percent(pooled_bootstrap(evidence.of(condition, row))) if shown else "")
        rows.append((row, *cells))
    heads = _varied_heads(varied, conditions)
    counts = " ".join(f"{head}: {_counted(evidence, c)}" for head, c in zip(heads, conditions, strict=True))
    return Table(
        title=f"{title}: success rate over all tasks, %", note=counts, heads=("policy sees", *heads), rows=tuple(rows)
    )


def _varied_pairs_table(evidence: Evidence, varied: str, title: str, conditions: Sequence[Condition]) -> Table:
    rows = []
    for first, second in evidence.design.compared:
        cells = []
        for condition in conditions:
            shown = {first, second} <= set(evidence.rows(condition))
            cells.append(
                points(paired_bootstrap(evidence.of(condition, first), evidence.of(condition, second))) if shown else ""
            )
        if any(cells):
            rows.append((f"{first} - {second}", *cells))
    return Table(
        title=f"{title}: paired differences over all tasks, points",
        note="As above, each column by itself: not corrected for the number of columns.",
        heads=("difference", *_varied_heads(varied, conditions)),
        rows=tuple(rows),
    )


def _varied_heads(varied: str, conditions: Sequence[Condition]) -> list[str]:
    field = {"shifts": "level", "demonstrations": "demonstrations", "readouts": "readout"}[varied]
    return [str(getattr(condition, field)) for condition in conditions]


def _counted(evidence: Evidence, condition: Condition) -> str:
    seeds = evidence.seeds[condition]
    episodes = {outcomes.shape[1] for key, outcomes in evidence.outcomes.items() if key[0] == condition}
    counted = (
        f"{len(seeds)} training seed{'s' * (len(seeds) > 1)} x {'/'.join(map(str, sorted(episodes)))} episodes a task."
    )
    return (
        counted
        if len(seeds) > 1
        else f"{counted} The intervals are of the episodes and say nothing of other training seeds."
    )


def finding(evidence: Evidence) -> list[str]:
    """Plain sentences: the compared pairs over all tasks."""
    design, main = evidence.design, evidence.design.main
    present, sentences = evidence.rows(main), []
    for first, second in [(a, b) for a, b in design.pairs if a in present and b in present]:
        estimate = paired_bootstrap(evidence.of(main, first), evidence.of(main, second))
        if estimate.low > 0:
            verdict = "better, beyond chance"
        elif estimate.high < 0:
            verdict = "worse, beyond chance"
        else:
            verdict = "not distinguishable from it"
        sentences.append(
            f"{first} against {second}: {points(estimate)} points of success over {len(design.tasks)} task{'s' * (len(design.tasks) > 1)}: {verdict}."
        )
    return sentences


def percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def short(task: str) -> str:
    return task.partition("/")[2]


def to_markdown(found: Sequence[Table]) -> str:
    parts = []
    for table in found:
        lines = [f"## {table.title}", "", "| " + " | ".join(table.heads) + " |", "|---" * len(table.heads) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        parts.append("\n".join([*lines, "", table.note]))
    return "\n\n".join(parts) + "\n"


def to_latex(table: Table) -> str:
    """One table for a paper, with booktabs."""

    def line(cells: Sequence[str]) -> str:
        escaped = (cell.replace("%", r"\%").replace("_", r"\_").replace("*", r"$^*$") for cell in cells)
        return " & ".join(escaped) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
            r"\toprule",
            line(table.heads),
            r"\midrule",
            *(line(row) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )

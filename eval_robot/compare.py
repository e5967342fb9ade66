"""`egoarm compare`: reports -> one table with Wilson intervals and exact McNemar tests on paired seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eval_robot.records import EvalReport, load_report
from eval_robot.stats import PairedTest, mcnemar_exact, wilson_interval
from pretrain.artifact import atomic_write_text


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    reports: tuple[str, ...]
    reference: str | None
    out: str | None

    def __post_init__(self) -> None:
        if not self.reports:
            raise ValueError("no reports given: egoarm compare A.jsonl B.jsonl ...")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One policy on one task, beside the reference on the same seeds (`paired` is None for the reference itself)."""

    label: str
    task: str
    successes: int
    episodes: int
    interval: tuple[float, float]
    paired: PairedTest | None

    @property
    def rate(self) -> float:
        return self.successes / self.episodes


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table: cells by (label, task), with the labels and tasks in the order in which they were given."""

    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    reference: str
    protocol: str
    level: str
    cells: dict[tuple[str, str], Cell]


def run(config: CompareConfig) -> int:
    """Print the table; of a published study's directory all of its tables, and 1 unless they are those that stand there."""
    if any(Path(path).is_dir() for path in config.reports):
        from eval_robot.study_pages import rebuild  # which draws with this module

        directory, *others = config.reports
        if others:
            raise ValueError("a study's directory is compared alone: egoarm compare results/study")
        return int(not rebuild(directory, config.out))
    comparison = compare([load_report(path) for path in config.reports], config.reference)
    print_table(comparison)
    if config.out:
        atomic_write_text(config.out, markdown(comparison))
        print(f"compare: table -> {Path(config.out)}")
    return 0


def compare(reports: Sequence[EvalReport], reference: str | None = None) -> Comparison:
    """Check that the reports may be compared, and compare them.

    Raises:
        ValueError: naming what differs: protocol, appearance level, environment contract, seeds or initial states; or two reports
            of one label and task; or a label that lacks a task.
    """
    labels = tuple(dict.fromkeys(report.label for report in reports))
    tasks = tuple(dict.fromkeys(report.task for report in reports))
    reference = reference if reference is not None else labels[-1]
    if reference not in labels:
        raise ValueError(f"reference={reference}: no report has this label; there is: {', '.join(labels)}")
    for field in ("protocol", "level"):
        _agree(field, {report.header[field] for report in reports})
    table = {(report.label, report.task): report for report in reports}
    if len(table) < len(reports):
        raise ValueError(
            "two reports have the same label and task; give each row a label of its own (egoarm eval label=...)"
        )
    cells = {}
    for task in tasks:
        column = {label: table[label, task] for label in labels if (label, task) in table}
        if missing := [label for label in labels if label not in column]:
            raise ValueError(f"{task} has no report of: {', '.join(missing)}; evaluate them or leave the task out")
        _agree(f"environment contract of {task}", {report.header["env_hash"] for report in column.values()})
        for label, report in column.items():
            cells[label, task] = _cell(report, column[reference])
    first = reports[0].header
    return Comparison(
        labels=labels, tasks=tasks, reference=reference, protocol=first["protocol"], level=first["level"], cells=cells
    )


def _agree(what: str, values: set[str]) -> None:
    if len(values) > 1:
        raise ValueError(
            f"these reports cannot be compared, their {what} differs: {' and '.join(sorted(values))}; evaluate again under one"
        )


def _cell(report: EvalReport, reference: EvalReport) -> Cell:
    paired = None
    if report is not reference:
        own = [(episode.seed, episode.initial_state_hash) for episode in report.episodes]
        others = [(episode.seed, episode.initial_state_hash) for episode in reference.episodes]
        if own != others:
            where = next((a[0] for a, b in zip(own, others, strict=False) if a != b), "their number")
            raise ValueError(
                f"{report.label} and {reference.label} did not meet the same episodes of {report.task} (first difference: seed {where}); "
                "evaluate both with the same episodes= and versions"
            )
        paired = mcnemar_exact(
            [episode.success for episode in report.episodes], [episode.success for episode in reference.episodes]
        )
    count = len(report.episodes)
    return Cell(
        label=report.label, task=report.task, successes=report.successes, episodes=count,
        interval=wilson_interval(report.successes, count), paired=paired,
    )  # fmt: skip


def _texts(cell: Cell) -> tuple[str, str, str]:
    low, high = cell.interval
    p = "" if cell.paired is None else f"{cell.paired.p_value:.3f}"
    return f"{cell.successes}/{cell.episodes}", f"{100 * low:.0f} to {100 * high:.0f} %", p


def print_table(comparison: Comparison) -> None:
    table = Table(title=f"Success rates at {comparison.level} (protocol {comparison.protocol})")
    table.add_column("task", no_wrap=True)
    table.add_column("policy sees", no_wrap=True)
    for heading in ("successes", "Wilson 95 %", f"p against {comparison.reference}"):
        table.add_column(heading, justify="right")
    for task in comparison.tasks:
        for position, label in enumerate(comparison.labels):
            table.add_row(task if position == 0 else "", label, *_texts(comparison.cells[label, task]))
        table.add_section()
    Console(width=None if Console().is_terminal else 110).print(table)
    print("p: exact McNemar test over the episodes that both policies met, two-sided, not corrected for several tasks.")


def markdown(comparison: Comparison) -> str:
    lines = [
        f"| task | policy sees | successes | Wilson 95 % | p against {comparison.reference} |",
        "|---|---|---|---|---|",
    ]
    for task in comparison.tasks:
        for label in comparison.labels:
            lines.append(f"| {task} | {label} | " + " | ".join(_texts(comparison.cells[label, task])) + " |")
    return "\n".join(lines) + "\n"

"""What a study publishes: reports, tables, plots, and one self-contained HTML page."""

from __future__ import annotations

import base64
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.table import Table as RichTable

from eval_robot.evidence import (
    Design,
    Evidence,
    Table,
    condition_of,
    finding,
    gather,
    load_evidence,
    main_table,
    save_evidence,
    tables,
    to_latex,
    to_markdown,
)  # fmt: skip
from eval_robot.plots import study_bars, study_lines, to_png, to_svg, to_svg_file
from eval_robot.records import EvalReport, load_report
from eval_robot.report import TEMPLATES
from eval_robot.rollout import video_path
from pretrain.artifact import atomic_write_text

if TYPE_CHECKING:
    from eval_robot.study import StudyConfig

TABLES_NAME = "tables.md"
_PLOTS = {"shifts": "Held-out shift", "demonstrations": "Demonstrations"}


def publish(config: StudyConfig) -> Path | None:
    """Write what the finished cells give; None, with a line that says so, while no training seed is whole.

    Raises:
        ValueError: reports that do not fit each other.
    """
    out = Path(config.out)
    design = Design(
        tasks=config.tasks, rows=tuple(config.chosen), reference=config.reference,
        pairs=tuple(pair for pair in config.pairs if set(pair) <= set(config.chosen)), level=config.level,
        shifts=config.shifts, readouts=config.readouts, demonstrations=config.demos.episodes, counts=config.counts,
        command=shlex.join(["egoarm", *sys.argv[1:]]),
    )  # fmt: skip
    paths = {path: load_report(path) for path in sorted((out / "reports").rglob("*.jsonl"))}
    try:
        evidence = gather(design, paths.values())
    except FileNotFoundError as error:
        print(f"study: nothing to publish: {error}")
        return None
    directory = Path(config.publish) if config.publish else out / "published"
    save_evidence(evidence, directory)
    write_tables(evidence, directory)
    write_plots(evidence, directory)
    page = out / "report.html"
    films = _films(
        evidence, {report.header["policy_sha256"] + report.header["level"]: path for path, report in paths.items()}
    )
    atomic_write_text(page, render_page(evidence, films))
    print_evidence(evidence)
    print(f"study: tables, plots and reports -> {directory}; page: {page.resolve()}")
    return directory


def write_tables(evidence: Evidence, directory: Path) -> None:
    atomic_write_text(directory / TABLES_NAME, to_markdown(tables(evidence)))
    atomic_write_text(directory / "main.tex", to_latex(main_table(evidence)))


def write_plots(evidence: Evidence, directory: Path) -> None:
    figures = {"success": study_bars(evidence)}
    for varied, title in _PLOTS.items():
        if sum(condition in evidence.seeds for condition in evidence.design.conditions[varied]) > 1:
            figures[varied] = study_lines(evidence, varied, title)
    for name, figure in figures.items():
        to_svg_file(figure, directory / f"{name}.svg")
        to_png(figure, directory / f"{name}.png")


def rebuild(directory: str | Path, out: str | None = None) -> bool:
    """The tables of a published study again, from its reports alone; whether they are, byte for byte, those that stand there."""
    evidence = load_evidence(directory)
    text = to_markdown(tables(evidence))
    print_evidence(evidence)
    published = Path(directory) / TABLES_NAME
    same = published.is_file() and published.read_text() == text
    print(
        f"compare: {published} {'is the same, byte for byte' if same else 'differs' if published.is_file() else 'is not there'}"
    )
    if out:
        atomic_write_text(out, text)
        print(f"compare: tables -> {out}")
    return same


def print_evidence(evidence: Evidence) -> None:
    console = Console(width=None if Console().is_terminal else 150)
    for table in tables(evidence):
        shown = RichTable(title=table.title, caption=table.note)
        for position, head in enumerate(table.heads):
            shown.add_column(head, justify="left" if position == 0 else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for sentence in finding(evidence):
        print(sentence)


def render_page(evidence: Evidence, films: list[dict[str, Any]]) -> str:
    design, found = evidence.design, tables(evidence)
    plots = [to_svg(study_bars(evidence))]
    for varied, title in _PLOTS.items():
        if sum(condition in evidence.seeds for condition in design.conditions[varied]) > 1:
            plots.append(to_svg(study_lines(evidence, varied, title)))
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("study.html").render(
        title="EgoArm study: what each encoder is worth in success rate",
        protocol=evidence.protocol,
        findings=finding(evidence),
        tables=found,
        plots=plots,
        films=films,
        command=design.command,
        provenance=_provenance(evidence),
        versions=", ".join(
            f"{name} {version}" for name, version in sorted(evidence.reports[0].header["versions"].items())
        ),
    )


def _films(evidence: Evidence, paths: dict[str, Path]) -> list[dict[str, Any]]:
    """By task, the filmed episodes of the main condition: one line a seed, one cell a row, those with most failures first."""
    design, found = evidence.design, []
    for task in design.tasks:
        reports = {
            report.label: report
            for report in reversed(evidence.reports)  # the first training seed is the one that is filmed
            if report.task == task and condition_of(report) == design.main
        }
        lines = []
        for index, episode in enumerate(next(iter(reports.values())).episodes):
            cells = [_film(reports[row], index, paths) for row in design.rows if row in reports]
            if any(cell["data"] for cell in cells):
                failures = sum(not cell["success"] for cell in cells)
                lines.append({"seed": episode.seed, "cells": cells, "failures": failures})
        lines.sort(key=lambda line: -line["failures"])
        if lines:
            found.append({"task": task, "lines": lines})
    return found


def _film(report: EvalReport, index: int, paths: dict[str, Path]) -> dict[str, Any]:
    episode = report.episodes[index]
    path = paths.get(report.header["policy_sha256"] + report.header["level"])
    film = None if path is None else video_path(path, episode.seed)
    return {
        "row": report.label,
        "data": base64.b64encode(film.read_bytes()).decode() if film is not None and film.is_file() else "",
        "success": episode.success,
        "caption": f"success at step {episode.success_step}"
        if episode.success
        else f"failed, {episode.length_steps} steps",
    }


def _provenance(evidence: Evidence) -> Table:
    """One line a row and task: what was compared, by its hashes."""
    main = evidence.design.main
    lines: dict[tuple[str, str], tuple[str, ...]] = {}
    commits: dict[tuple[str, str], list[str]] = {}
    for report in evidence.reports:
        header = report.header
        if condition_of(report) == main:
            names = (report.task, report.label)
            hashes = (header["encoder_sha256"] or "none", header["demos_sha256"], header["env_hash"])
            lines.setdefault(names, tuple(text[:12] for text in hashes))
            commits.setdefault(names, []).append((header["policy_provenance"]["git_sha"] or "not from a checkout")[:12])
    return Table(
        title="What was run",
        note="First 12 digits of each hash; the encoder's of the first training seed, the commits of all.",
        heads=("task", "policy sees", "encoder", "demonstrations", "environment", "commits"),
        rows=tuple((*names, *hashes, ", ".join(dict.fromkeys(commits[names]))) for names, hashes in lines.items()),
    )

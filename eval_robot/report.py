"""`egoarm report`: one self-contained HTML page from reports: table, bars, learning curves, rollouts side by side, provenance."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval_robot.compare import Cell, Comparison, compare
from eval_robot.plots import is_success_curve, learning_curves, success_bars, success_curves, to_svg
from eval_robot.records import EvalReport, load_report
from eval_robot.rollout import video_path
from pretrain.artifact import TRAIN_STATE_DIRECTORY, atomic_write_text

TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    reports: tuple[str, ...]
    reference: str | None
    out: str
    title: str
    curves: tuple[str, ...]
    videos: int

    def __post_init__(self) -> None:
        if not self.reports:
            raise ValueError("no reports given: egoarm report A.jsonl B.jsonl ... out=report.html")


def run(config: ReportConfig) -> Path:
    """Write the page."""
    reports = [load_report(path) for path in config.reports]
    comparison = compare(reports, config.reference)
    training = _training_logs(reports)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html").render(
        title=config.title,
        protocol=comparison.protocol,
        level=comparison.level,
        episodes=reports[0].header["episodes"],
        reference=comparison.reference,
        labels=comparison.labels,
        findings=findings(comparison),
        rows=_rows(comparison),
        bars=to_svg(success_bars(comparison)),
        curves=(to_svg(learning_curves(config.curves)) if config.curves else "")
        + (to_svg(success_curves(training)) if training else ""),
        films=_films(config.reports, reports, comparison, config.videos),
        provenance=[_provenance(report) for report in reports],
        versions=", ".join(f"{name} {version}" for name, version in sorted(reports[0].header["versions"].items())),
    )
    atomic_write_text(config.out, page)
    print(f"report: {Path(config.out).resolve()}")
    return Path(config.out)


def _training_logs(reports: Sequence[EvalReport]) -> dict[str, Path]:
    """The training logs that policies of reinforcement learning hold, by row and task; a policy that is gone since has none to show."""
    logs = {
        f"{report.label}, {report.task}": Path(report.header["policy_path"]) / TRAIN_STATE_DIRECTORY / "metrics.jsonl"
        for report in reports
        if "policy_path" in report.header  # reports of earlier versions do not say
    }
    return {name: path for name, path in logs.items() if is_success_curve(path)}


def findings(comparison: Comparison) -> list[str]:
    """One plain sentence a row that is not the reference: the difference over all tasks and on which tasks it is beyond chance."""
    sentences = []
    for label in comparison.labels:
        if label == comparison.reference:
            continue
        cells = [comparison.cells[label, task] for task in comparison.tasks]
        theirs = [comparison.cells[comparison.reference, task] for task in comparison.tasks]
        own, other = sum(cell.successes for cell in cells), sum(cell.successes for cell in theirs)
        count = sum(cell.episodes for cell in cells)
        clear = [cell.task for cell in cells if cell.paired is not None and cell.paired.p_value < 0.05]
        verdict = (
            f"p < 0.05 on {', '.join(clear)}" if clear else "on no task is the difference beyond chance (p < 0.05)"
        )
        sentences.append(
            f"{label}: {own}/{count} successes against {other}/{count} of {comparison.reference}; {verdict}."
        )
    return sentences


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        _row(comparison.cells[label, task], first=position == 0)
        for task in comparison.tasks
        for position, label in enumerate(comparison.labels)
    ]


def _row(cell: Cell, first: bool) -> dict[str, Any]:
    low, high = cell.interval
    return {
        "task": cell.task if first else "",
        "first": first,
        "label": cell.label,
        "successes": cell.successes,
        "episodes": cell.episodes,
        "rate": f"{100 * cell.rate:.0f} %",
        "interval": f"{100 * low:.0f} to {100 * high:.0f} %",
        "difference": "" if cell.paired is None else f"{100 * cell.paired.difference:+.0f} points",
        "p": "" if cell.paired is None else f"{cell.paired.p_value:.3f}",
    }


def _films(
    paths: Sequence[str], reports: Sequence[EvalReport], comparison: Comparison, count: int
) -> dict[str, list[dict[str, Any]]]:
    """By task, the filmed seeds with the most failures first, each with one cell a row of the table."""
    by_cell = {(report.label, report.task): (Path(path), report) for path, report in zip(paths, reports, strict=True)}
    films = {}
    for task in comparison.tasks:
        seeds = []
        for index, episode in enumerate(by_cell[comparison.reference, task][1].episodes):
            cells = [_film_cell(*by_cell[label, task], index) for label in comparison.labels]
            if any(cell["data"] for cell in cells):
                seeds.append(
                    {"seed": episode.seed, "cells": cells, "failures": sum(not cell["success"] for cell in cells)}
                )
        seeds.sort(key=lambda film: -film["failures"])
        if seeds and count:
            films[task] = seeds[:count]
    return films


def _film_cell(path: Path, report: EvalReport, index: int) -> dict[str, Any]:
    episode = report.episodes[index]
    film = video_path(path, episode.seed)
    return {
        "data": base64.b64encode(film.read_bytes()).decode() if film.is_file() else "",
        "success": episode.success,
        "caption": f"success at step {episode.success_step}"
        if episode.success
        else f"failed ({episode.length_steps} steps)",
    }


def _provenance(report: EvalReport) -> dict[str, str]:
    header = report.header
    commit = header["policy_provenance"]["git_sha"]
    return {
        "task": header["task"],
        "label": header["label"],
        "policy": header["policy_sha256"][:12],
        "encoder": (header["encoder_sha256"] or "none")[:12],
        "demos": (header["demos_sha256"] or "none")[:12],
        "env": header["env_hash"][:12],
        "commit": (commit or "not from a checkout")[:12]
        + (" + changes" if header["policy_provenance"]["git_dirty"] else ""),
    }

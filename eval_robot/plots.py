"""Plots of a report, as SVG text."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from eval_robot.bootstrap import Estimate, pooled_bootstrap
from eval_robot.compare import Comparison
from eval_robot.evidence import Evidence, short
from eval_robot.stats import wilson_interval

COLOURS = ("#9aa7b2", "#e0a458", "#0b6e99", "#2d9d5c", "#8661c1", "#c0504d")
# As many as a study has rows: one used twice cannot be told apart in the lines.
STUDY_COLOURS = (
    "#9aa7b2", "#e0a458", "#c9b79c", "#8661c1", "#7fb3c8", "#0b6e99", "#2d9d5c", "#93cfa8", "#e8a39c", "#c0504d", "#7a5230", "#1c2733",
    "#d98cb3", "#a3a11a", "#17a2a2",
)  # fmt: skip
LOSSES = ("loss", "contrastive", "depth")
_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "egoarm"}


def success_bars(comparison: Comparison) -> Figure:
    """Success rate a task and row, with Wilson intervals."""
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(2.6 + 2.3 * len(comparison.tasks), 3.2), layout="constrained")
        width = 0.8 / len(comparison.labels)
        for row, label in enumerate(comparison.labels):
            cells = [comparison.cells[label, task] for task in comparison.tasks]
            places = [column + (row - (len(comparison.labels) - 1) / 2) * width for column in range(len(cells))]
            heights = [100 * cell.rate for cell in cells]
            below = [100 * (cell.rate - cell.interval[0]) for cell in cells]
            above = [100 * (cell.interval[1] - cell.rate) for cell in cells]
            axis.bar(places, heights, 0.92 * width, color=COLOURS[row % len(COLOURS)], label=label)
            axis.errorbar(places, heights, [below, above], fmt="none", ecolor="#1c2733", elinewidth=1.2, capsize=3)
        axis.set_xticks(range(len(comparison.tasks)), [task.split("/")[-1] for task in comparison.tasks])
        axis.set_ylim(0, 100)
        axis.set_ylabel("success rate, % (Wilson 95 %)")
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def study_bars(evidence: Evidence) -> Figure:
    """Success rate a task and row over training seeds, with bootstrap intervals; the last group is of all tasks."""
    main = evidence.design.main
    rows, tasks = evidence.rows(main), evidence.design.tasks
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(2.6 + 1.5 * (len(tasks) + 1), 3.4), layout="constrained")
        width = 0.84 / len(rows)
        for position, row in enumerate(rows):
            own = evidence.of(main, row)
            estimates = [pooled_bootstrap([task]) for task in own] + [pooled_bootstrap(own)]
            places = [column + (position - (len(rows) - 1) / 2) * width for column in range(len(estimates))]
            _bars(axis, places, estimates, width, study_colour(position), row)
        axis.axvline(len(tasks) - 0.5, color="#d9e0e6", linewidth=1)
        axis.set_xticks(range(len(tasks) + 1), [*(short(task) for task in tasks), "all tasks"], rotation=15)
        axis.set_ylim(0, 100)
        axis.set_ylabel("success rate, % (95 %)")
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def study_lines(evidence: Evidence, varied: str, title: str) -> Figure:
    """Success rate over all tasks a row, against what is varied: held-out shifts or the number of demonstrations."""
    conditions = [condition for condition in evidence.design.conditions[varied] if condition in evidence.seeds]
    counted = varied == "demonstrations"
    if counted:
        conditions = conditions[::-1]
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
        rows = evidence.rows(evidence.design.main)
        for position, row in enumerate(rows):
            shown = [index for index, condition in enumerate(conditions) if row in evidence.rows(condition)]
            estimates = [pooled_bootstrap(evidence.of(conditions[index], row)) for index in shown]
            # A little aside, so that intervals can be told apart.
            places = [index + 0.03 * (position - (len(rows) - 1) / 2) for index in shown]
            values = [100 * estimate.value for estimate in estimates]
            errors = [[100 * (e.value - e.low) for e in estimates], [100 * (e.high - e.value) for e in estimates]]
            axis.errorbar(
                places, values, errors, color=study_colour(position), marker="o", markersize=3, capsize=2,
                linewidth=1.3, linestyle="-" if counted else ":", label=row,
            )  # fmt: skip
        names = [str(c.demonstrations) if counted else c.level.partition("+")[2] or "none" for c in conditions]
        axis.set_xticks(range(len(conditions)), names)
        axis.set_xlabel(title)
        axis.set_ylim(-2, 102)
        axis.set_ylabel("success rate, all tasks, % (95 %)")
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def study_colour(position: int) -> str:
    return STUDY_COLOURS[position % len(STUDY_COLOURS)]


def _bars(
    axis: Any, places: Sequence[float], estimates: Sequence[Estimate], width: float, colour: str, label: str
) -> None:
    heights = [100 * estimate.value for estimate in estimates]
    below = [100 * (estimate.value - estimate.low) for estimate in estimates]
    above = [100 * (estimate.high - estimate.value) for estimate in estimates]
    axis.bar(places, heights, 0.92 * width, color=colour, label=label)
    axis.errorbar(places, heights, [below, above], fmt="none", ecolor="#1c2733", elinewidth=0.9, capsize=1.5)


def learning_curves(paths: Sequence[str | Path]) -> Figure:
    """One panel a metrics.jsonl file, named after its run: the loss and its parts against the step."""
    with plt.rc_context(_STYLE):
        columns = min(4, len(paths))
        rows = -(-len(paths) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.1 * columns, 2.4 * rows), squeeze=False, layout="constrained"
        )
        for axis, path in zip(axes.flat, paths, strict=False):
            series = read_metrics(path)
            for name, points in series.items():
                axis.plot([step for step, _ in points], [value for _, value in points], linewidth=1.2, label=name)
            axis.set_title(_run_name(Path(path)), fontsize=8)
            axis.set_xlabel("step")
            axis.set_yscale("log")
            axis.legend(frameon=False, fontsize=7)
        for axis in axes.flat[len(paths) :]:
            axis.set_axis_off()
    return figure


def success_curves(runs: Mapping[str, str | Path]) -> Figure:
    """One panel a run of reinforcement learning, label -> metrics.jsonl: success of the training episodes and on selection seeds."""
    with plt.rc_context(_STYLE):
        columns = min(3, len(runs))
        rows = -(-len(runs) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(4.1 * columns, 2.8 * rows), squeeze=False, layout="constrained"
        )
        for axis, (label, path) in zip(axes.flat, runs.items(), strict=False):
            log = read_rows(path)
            training = [(row["step"], 100 * row["train_success"]) for row in log if "train_success" in row]
            chosen = [row for row in log if "eval_success" in row]
            axis.plot(*zip(*training, strict=True), color=COLOURS[0], linewidth=1.2, label="training episodes")
            if chosen:
                steps = [row["step"] for row in chosen]
                rates = [100 * row["eval_success"] for row in chosen]
                bounds = [
                    wilson_interval(round(row["eval_success"] * row["eval_episodes"]), int(row["eval_episodes"]))
                    for row in chosen
                ]
                below = [rate - 100 * low for rate, (low, _) in zip(rates, bounds, strict=True)]
                above = [100 * high - rate for rate, (_, high) in zip(rates, bounds, strict=True)]
                axis.errorbar(
                    steps, rates, [below, above], color=COLOURS[2], linewidth=1.4, marker="o", markersize=3, capsize=2,
                    label="selection seeds (Wilson 95 %)",
                )  # fmt: skip
            axis.set_title(label, fontsize=8)
            axis.set_xlabel("environment steps")
            axis.set_ylabel("success rate, %")
            axis.set_ylim(-3, 103)
            axis.legend(frameon=False, fontsize=7)
        for axis in axes.flat[len(runs) :]:
            axis.set_axis_off()
    return figure


def is_success_curve(path: str | Path) -> bool:
    """Whether the training log of a policy tells how success grew with the environment's steps."""
    return Path(path).is_file() and any("train_success" in row for row in read_rows(path))


def _run_name(path: Path) -> str:
    run = path.parent
    return f"{run.parent.name} / {run.stem}" if run.suffix == ".training" else run.name


def read_metrics(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Series of a training log: {name: [(step, value), ...]} for the names in LOSSES, where positive."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(path):
        for name, value in row.items():
            if name in LOSSES and isinstance(value, int | float) and value > 0:
                series.setdefault(name, []).append((int(row["step"]), float(value)))
    return series


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a training log. Raises ValueError naming the line that is not JSON."""
    rows = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); train again") from error
    return rows


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element that can stand in a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def to_svg_file(figure: Figure, path: str | Path) -> None:
    """Write it; the same figure gives the same bytes."""
    with plt.rc_context(_STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None})


def to_png(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    plt.close(figure)

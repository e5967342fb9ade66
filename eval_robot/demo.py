"""`egoarm demo`: clips -> EgoDTM -> demonstrations -> policies -> paired evaluation -> table and report.

Every stage is the command of the same name; a stage whose result is there is not run again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from eval_robot.compare import compare, markdown, print_table
from eval_robot.plots import success_bars, to_png
from eval_robot.records import load_report
from eval_robot.report import ReportConfig
from eval_robot.report import run as write_report
from eval_robot.rollout import EvalConfig, evaluated
from eval_robot.rollout import run as evaluate
from policies.demos.collect import DemosConfig
from policies.demos.collect import run as collect
from policies.train import TrainConfig, metrics_path
from policies.train import run as train
from pretrain.artifact import atomic_write_text
from pretrain.clips.info import InfoConfig, run_info
from pretrain.clips.synth import SynthConfig, run_synth
from pretrain.egodtm.train import PretrainConfig
from pretrain.egodtm.train import run as pretrain

# Label -> encoder. The random twin is the same network with fresh weights of its own initialization. The last row has the
# weights that ship with the package, trained for more than a hundred times as many clips as the demo's own.
ROWS = {
    "proprioception": "none",
    "random ViT": "random:{encoder}",
    "EgoDTM": "{encoder}",
    "egodtm-tiny (shipped)": "egodtm-tiny",
}
REFERENCE = "random ViT"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    out: str
    tasks: tuple[str, ...]
    clips: SynthConfig
    pretrain: PretrainConfig
    demos: DemosConfig
    train: TrainConfig
    eval: EvalConfig

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks=[]: name at least one task")


def run(config: DemoConfig) -> Path:
    """Run what is not there yet; ends with the table on the terminal and the report's path."""
    start = time.monotonic()
    out = Path(config.out)
    _stage(1, "synthetic egocentric clips", lambda: _make_clips(config.clips, out / "clips.png"))
    _stage(2, "pretrain EgoDTM on them", lambda: pretrain(config.pretrain))
    encoder = str(Path(config.pretrain.out) / "encoder")
    demos = {task: out / "demos" / f"{task.replace('/', '-')}.hdf5" for task in config.tasks}
    _stage(
        3,
        "expert demonstrations",
        lambda: [collect(replace(config.demos, task=task, out=str(demos[task]))) for task in config.tasks],
    )
    policies = {
        (task, label): out / "policies" / task.replace("/", "-") / re.sub(r"\W+", "-", label).strip("-")
        for task in config.tasks
        for label in ROWS
    }

    def train_all() -> None:
        for (task, label), path in policies.items():
            row = replace(
                config.train, demos=str(demos[task]), encoder=ROWS[label].format(encoder=encoder), label=label
            )
            train(replace(row, out=str(path), cache=str(out / "features")))

    _stage(4, "behaviour cloning on frozen features", train_all)
    reports = {key: out / "eval" / path.parent.name / f"{path.name}.jsonl" for key, path in policies.items()}

    def evaluate_all() -> None:
        for (task, label), path in reports.items():
            cell = replace(config.eval, policy=str(policies[task, label]), task=task, label=label, out=str(path))
            if not evaluated(cell):
                evaluate(cell)

    _stage(5, "paired evaluation on held-out seeds", evaluate_all)
    page = write_report(
        ReportConfig(
            reports=tuple(map(str, reports.values())),
            reference=REFERENCE,
            out=str(out / "report.html"),
            title="EgoArm demo: what is depth-aware egocentric pretraining worth?",
            curves=(
                str(Path(config.pretrain.out) / "metrics.jsonl"),
                *(str(metrics_path(path)) for path in policies.values()),
            ),
            videos=config.eval.videos,
        )
    )
    comparison = compare([load_report(path) for path in reports.values()], REFERENCE)
    atomic_write_text(out / "table.md", markdown(comparison))
    to_png(success_bars(comparison), out / "success.png")
    print_table(comparison)
    print(f"demo: {time.monotonic() - start:.0f} s; report: {page.resolve()}")
    return page


def _make_clips(config: SynthConfig, picture: Path) -> None:
    run_synth(config)
    if not picture.exists():
        run_info(InfoConfig(path=config.out, contact_sheet=str(picture), clips=4, verify=False))


def _stage(number: int, what: str, action: Callable[[], object]) -> None:
    print(f"\n[{number}/5] {what}", flush=True)
    start = time.monotonic()
    action()
    print(f"      {time.monotonic() - start:.0f} s", flush=True)

"""The recipes of docs/robots.md learn from pixels, within 20 minutes of two cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from egoarm import COMMANDS, compose
from policies.rl.train import METRICS, run, training_directory
from pretrain.checkpoints import read_metrics

TOY = ["task=toy/reach"]
REACH = [
    "task=metaworld/reach",
    "cameras=[behindGripper]",
    "frames=1",
    "action_repeat=5",
    "sac.updates_per_step=0.5",
    "sac.steps=8000",
]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [TOY, REACH], ids=["toy", "metaworld"])
def test_sac_learns_to_reach_from_pixels(recipe: list[str], tmp_path: Path) -> None:
    config = compose(COMMANDS["rl"], [*recipe, f"out={tmp_path / 'policy'}", "threads=1"])
    assert config.obs == "pixels"
    last = read_metrics(training_directory(run(config)) / METRICS)[-1]
    assert last["eval_success"] >= 0.8, last
    assert last["cpu_time_s"] <= 2 * 20 * 60

"""The rendering benchmark, on the scene that draws fastest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from envs.timing import time_qualities, time_quality


def test_times_are_positive_and_interleaved():
    durations = time_qualities("toy/reach", frames=3, image_size=16)
    assert list(durations) == ["fast", "full"]
    assert all(len(values) == 3 and min(values) > 0 for values in durations.values())
    assert time_quality("toy/reach", frames=2, image_size=16) > 0
    with pytest.raises(ValueError, match="frames"):
        time_qualities("toy/reach", frames=0)


def test_benchmark_command(tmp_path):
    path = tmp_path / "render.json"
    command = [sys.executable, "-m", "benchmarks.render", "--task", "toy/reach", "--frames", "2", "--image-size", "16"]
    run = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and not run.stderr, run.stderr
    assert run.stdout.splitlines()[-1].startswith("fast is ")
    result = json.loads(path.read_text())
    ms = result["ms_per_frame"]
    assert result["ratio"] == pytest.approx(ms["full"]["median"] / ms["fast"]["median"])

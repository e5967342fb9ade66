"""The memory benchmarks measure what they say, and hold what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peak_memory import MIB, PROMPT_MALLOC

ROOT = Path(__file__).resolve().parents[2]


# A long-lived process has freed memory at hand, which the next work takes without a trace.
_COMES_AND_GOES = f"""
import json, torch
from benchmarks.peak_memory import measure
kept = []
def work():
    torch.ones({64 * MIB // 4})
    kept.append(torch.ones({8 * MIB // 4}))
print(json.dumps(measure(work, torch.device("cpu"))))
"""


def test_a_peak_that_is_over_is_still_seen() -> None:
    words = [sys.executable, "-c", _COMES_AND_GOES]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | PROMPT_MALLOC, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert 60 < found["peak_mib"] < 80 and found["seconds"] > 0


@pytest.mark.slow
def test_112_px_of_depth_in_the_memory_of_56() -> None:
    words = [sys.executable, "-m", "benchmarks.depth_memory", "--check", "--batch", "2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times the peak memory of 56 px plain" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_large_contrastive_batch_in_the_memory_of_its_micro_batch() -> None:
    words = [sys.executable, "-m", "benchmarks.contrastive_memory", "--check", "--batch", "768"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times the peak memory of a plain batch of 256" in done.stdout.splitlines()[-1]

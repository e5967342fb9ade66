"""Peak memory of one piece of work, measured in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
# glibc keeps freed memory for later; with these, large blocks go back at once, so that the resident set is what is in use.
PROMPT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def in_fresh_process(module: str, words: Sequence[str], *, threads: int) -> dict[str, Any]:
    """Runs `python -m module words` and returns the JSON of its last line. Raises RuntimeError with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        env=os.environ | PROMPT_MALLOC | {"OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class PeakMeter:
    """Bytes above those in use when it was made: allocated ones on a GPU, the process's resident set on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            # Forgets the peak so far. Where the kernel does not let us, it is below the peak to come anyway: what ran
            # before was smaller.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
            self.before = _status_bytes("VmRSS")

    def peak(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status_bytes("VmHWM") - self.before


def measure(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Peak in MiB and seconds of one call: on the clock for a GPU, the process's own on a CPU, which other programs of a busy
    machine disturb less."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    meter, began = PeakMeter(device), clock()
    work()
    peak = meter.peak()
    return {"peak_mib": peak / MIB, "seconds": clock() - began}


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux, or a GPU")

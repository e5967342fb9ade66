"""The record of how a thing was made: commit, command line, packages, device, data and parents, by hash."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pretrain.artifact import FORMAT_VERSION

# Packages whose version can change a number in a report.
_RECORDED_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "lightning-fabric",
    "vector-quantize-pytorch",
    "safetensors",
    "numpy",
    "mujoco",
    "gymnasium",
    "gymnasium-robotics",
    "metaworld",
    "robosuite",
    "stable-baselines3",
)


def make_provenance(
    *,
    argv: Sequence[str] | None = None,
    seed: int,
    parents: Mapping[str, str],
    data: Mapping[str, str],
    step: int,
    wall_time_s: float,
) -> dict[str, Any]:
    """The record of how a thing was made.

    Args:
        argv: the command line; None takes this process's.
        parents: role -> sha256 of the artifacts that went in; `data`: role -> sha256 of the data's manifest.
        step: training steps done; `wall_time_s`: seconds of all runs together.
    """
    commit, dirty = _git_state()
    return {
        "format_version": FORMAT_VERSION,
        "git_sha": commit,
        "git_dirty": dirty,
        # The program by its name: where it lies says more of the machine than of the run.
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]] if argv is None else list(argv),
        "seed": seed,
        "python": platform.python_version(),
        "packages": _package_versions(),
        "device": _device(),
        "parents": dict(parents),
        "data": dict(data),
        "step": step,
        "wall_time_s": round(wall_time_s, 3),
    }


def _git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout this file lies in and whether tracked files differ from it. Outside git, as in a container's image, the
    commit that EGOARM_GIT_SHA names, if set, and None."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return os.environ.get("EGOARM_GIT_SHA") or None, None
    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _device() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "torch_threads": torch.get_num_threads(), "gpus": gpus}

"""`egoarm doctor`: what works on this machine, and for each thing that does not, the one command that gets it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

INSTALL_ROBOTS = "make setup   (or: pip install -c requirements.lock -e '.[robots]')"
INSTALL_DEV = "make setup   (or: pip install -c requirements.lock -e '.[robots,dev]')"
TIMED_TASK = "metaworld/drawer-open"


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    frames: int

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames={self.frames}: expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table. `needed`: the demo cannot run without it. `remedy` is empty where nothing is amiss."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = False


def run(config: DoctorConfig) -> int:
    """Print the table; 0 if the demo can run here, else 1."""
    findings = [*_machine(), *_suites(), *_rendering(config.frames), *_assets(), *_optional()]
    _print(findings)
    broken = [finding.name for finding in findings if finding.needed and not finding.ok]
    if broken:
        print(f"doctor: the demo cannot run here; first mend: {', '.join(broken)}")
        return 1
    print("doctor: the demo can run here (egoarm demo)")
    return 0


def _print(findings: list[Finding]) -> None:
    table = Table(show_header=True, title="egoarm doctor")
    for column in ("", "part", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else ("[red]no[/]" if finding.needed else "[yellow]-[/]")
        table.add_row(mark, finding.name, escape(finding.detail), escape(finding.remedy))
    Console(width=None if Console().is_terminal else 130).print(table)


def _machine() -> list[Finding]:
    import torch

    cuda = torch.cuda.is_available()
    device = (
        torch.cuda.get_device_name(0)
        if cuda
        else f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        Finding(
            name="python", ok=True, detail=f"{platform.python_version()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"
        ),
        Finding(name="torch", ok=True, detail=f"{torch.__version__} on {device}", needed=True),
    ]


def _attempt(name: str, action: Callable[[], str], remedy: str, needed: bool) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=action(), needed=needed)
    except Exception as error:  # whatever is wrong with a part, the other parts are still looked at
        text = (str(error) or type(error).__name__).splitlines()[0]
        return Finding(name=name, ok=False, detail=text[:300], remedy=remedy, needed=needed)


def _suites() -> list[Finding]:
    def reset(task: str) -> str:
        from envs.tasks import TASKS, make_env

        env = make_env(task, cameras=())
        env.reset(seed=0)
        env.close()
        suite = task.split("/")[0]
        return f"{sum(name.startswith(suite + '/') for name in TASKS)} tasks; {task} resets"

    return [
        _attempt("suite toy", lambda: reset("toy/reach"), INSTALL_ROBOTS, needed=False),
        _attempt("suite metaworld", lambda: reset(TIMED_TASK), INSTALL_ROBOTS, needed=True),
    ]


def _rendering(frames: int) -> list[Finding]:
    try:
        from envs.rendering import gl_backend, gl_renderer_name
        from envs.timing import time_qualities

        backend = gl_backend()
    except ImportError as error:
        return [Finding(name="rendering", ok=False, detail=str(error), remedy=INSTALL_ROBOTS, needed=True)]
    except RuntimeError as error:
        text = str(error)
        remedy = "sudo apt-get install -y libegl1 libgl1-mesa-dri"
        return [Finding(name="rendering", ok=False, detail=text, remedy=remedy, needed=True)]

    def timings() -> str:
        times = {quality: median(each) for quality, each in time_qualities(TIMED_TASK, frames=frames).items()}
        fast, full = times["fast"], times["full"]
        return f"{TIMED_TASK} at 128x128: fast {fast:.1f} ms a frame, full {full:.1f} ms a frame, {full / fast:.1f} times faster"

    return [
        Finding(name="GL back-end", ok=True, detail=f"{backend}: {gl_renderer_name()}", needed=True),
        _attempt("rendering", timings, "EGOARM_DEBUG=1 egoarm doctor", needed=True),
    ]


def _assets() -> list[Finding]:
    def folder(package: str, inside: str) -> str:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(f"the package {package} is not installed")
        path = Path(found.submodule_search_locations[0]) / inside
        if not path.is_dir():
            raise FileNotFoundError(
                f"{package} {importlib.metadata.version(package.replace('_', '-'))} has no {inside}"
            )
        return f"{package} {importlib.metadata.version(package.replace('_', '-'))}"

    hands = lambda: folder("gymnasium_robotics", "envs/assets/adroit_hand")  # noqa: E731
    objects = lambda: folder("robosuite", "models/assets/objects/meshes")  # noqa: E731
    return [
        _attempt("hand meshes for synthetic clips", hands, INSTALL_ROBOTS, needed=True),
        _attempt("object meshes for synthetic clips", objects, INSTALL_ROBOTS, needed=True),
    ]


def _optional() -> list[Finding]:
    import torch

    def present(*modules: str) -> str:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(f"not installed: {', '.join(missing)}")
        return ", ".join(modules)

    def cuda() -> str:
        if not torch.cuda.is_available():
            raise RuntimeError("no CUDA device; everything runs on the CPU, pretraining is slow")
        return torch.cuda.get_device_name(0)

    return [
        _attempt("GPU (optional)", cuda, "a machine with one; the commands stay the same", needed=False),
        _attempt("stable-baselines3 (optional)", lambda: present("stable_baselines3"), INSTALL_ROBOTS, needed=False),
        _attempt("development tools (optional)", lambda: present("pytest", "hypothesis", "ruff", "basedpyright", "importlinter"), INSTALL_DEV, needed=False),
    ]  # fmt: skip

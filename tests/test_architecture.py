"""Rules of structure, held by tools."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_rooms_import_downwards_only() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    assert tool.exists() or shutil.which("lint-imports"), "import-linter is part of the dev extra: make setup"
    done = subprocess.run([str(tool)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "pretrain",
        "pretrain.encoder",
        "pretrain.egodtm.train",
        "pretrain.clips.store",
        "pretrain.clips.synth",
        "pretrain.clips.importing",
        "pretrain.annotate.pipeline",
        "pretrain.annotate.audit",
        "pretrain.downstream.probe",
        "pretrain.downstream.arms",
        "pretrain.egom2p.train",
        "pretrain.egom2p.predict",
        "pretrain.egom2p.tokenizers.store",
    ],
)
def test_pretrain_imports_without_the_simulators(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('mujoco', 'gymnasium', 'metaworld', 'robosuite', 'gymnasium_robotics'): sys.modules[name] = None\n"
        f"import {module}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_direct_dependency_is_locked() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()  # noqa: E731
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    locked = {normal(name): version for name, version in locked.items()}
    for line in wanted:
        name, _, version = re.match(r"([A-Za-z0-9_.-]+?)(?:\[.*\])?(==|>=|$)(.*)", line).groups()  # type: ignore[union-attr]
        assert normal(name) in locked, f"{name} is not in requirements.lock"
        assert "==" not in line or locked[normal(name)] == version, f"{line} is locked at {locked[normal(name)]}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_config_belongs_to_a_command(path: Path) -> None:
    from egoarm import COMMANDS

    assert path.stem in {command.config for command in COMMANDS.values()}
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_every_file_of_a_package_is_installed() -> None:
    """What is no Python file must be named in pyproject's package-data, or it is missing after `pip install`."""
    import tomllib

    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for package in ("envs", "pretrain", "policies", "eval_robot", "configs"):
        named = {
            path for pattern in setuptools["package-data"].get(package, []) for path in (ROOT / package).glob(pattern)
        }
        files = {ROOT / line for line in tracked.stdout.splitlines() if line.startswith(f"{package}/")}
        missing = {path for path in files if path.suffix != ".py" and path.exists()} - named
        assert not missing, f"tool.setuptools.package-data.{package} does not name {sorted(map(str, missing))}"

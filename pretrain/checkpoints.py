"""A training run on disk: its directory, its lock, and checkpoints from which it goes on exactly.

<out>/config.yaml             what the run is; a command with another configuration is refused
<out>/checkpoints/step-N/     model.safetensors, optimizer.safetensors, state.json; written whole or not at all
<out>/metrics.jsonl           one row of scalars every few steps
<out>/tensorboard/            the same for TensorBoard
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pretrain.artifact import (
    atomic_directory,
    atomic_write_text,
    load_tensors,
    load_tensors_strict,
    save_tensors,
    sha256_file,
)

CHECKPOINT_FORMAT = 1
CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
CHECKPOINTS = "checkpoints"
_STATE_FILE = "state.json"
_WEIGHT_FILES = ("model.safetensors", "optimizer.safetensors")


# ------------------------------------------------------------------------------------------------------ the directory


def open_run(
    directory: Path,
    config: Mapping[str, Any],
    *,
    may_differ: Collection[str] = (),
    overwrite: bool = False,
    belongings: Sequence[str] = (),
) -> None:
    """Makes the run's directory, or checks that the one there belongs to this configuration.

    Args:
        config: nested plain values. It is stored in config.yaml at the first start.
        may_differ: dotted fields that do not change the result, such as "trainer.workers".
        overwrite: start again from nothing: what a run writes (`belongings` and this module's files) is removed.

    Raises:
        ValueError: the directory holds another run (names the fields that differ).
    """
    stored_file = directory / CONFIG_FILE
    if overwrite and stored_file.is_file():
        for name in (*belongings, CHECKPOINTS):
            path = directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        stored_file.unlink()
    if not stored_file.is_file():
        atomic_write_text(stored_file, yaml.safe_dump(_plain(config), sort_keys=False))
        return
    stored = yaml.safe_load(stored_file.read_text())
    now, then = _flat(_plain(config)), _flat(stored if isinstance(stored, dict) else {})
    differing = [
        f"{field}: {then.get(field, 'absent')!r} there, {now.get(field, 'absent')!r} now"
        for field in sorted(now.keys() | then.keys())
        if now.get(field) != then.get(field) and field not in may_differ
    ]
    if differing:
        raise ValueError(
            f"out={directory} holds a run with another configuration ({'; '.join(differing)}): "
            "choose another out=, or start it again with overwrite=true"
        )


def refuse_foreign(directory: Path) -> None:
    """Raises ValueError if `directory` holds something that is not a training run; nothing there is ever touched."""
    found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if found and not {CONFIG_FILE, LOCK_FILE} & set(found):
        raise ValueError(
            f"out={directory} exists, is not empty ({', '.join(found[:3])}) and is not a training run: choose another out="
        )
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"out={directory} is a file: choose another out=")


@contextlib.contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Holds the run's directory against a second process. The kernel lets go of it when the process dies, however."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOCK_FILE, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"out={directory} is being trained by another process: wait for it, or choose another out="
            ) from error
        yield


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


# -------------------------------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: steps done and the seconds spent on them in all its processes' lives."""

    step: int
    wall_time_s: float


class Checkpoints:
    """The checkpoints of one run. They hold the weights and the optimizer's state to the bit.

    There is no generator state to store: data order, augmentation, choice of caption and any dropout are functions of
    (seed, step, place in the batch), and the learning rate of the step.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self.directory = directory / CHECKPOINTS
        self.keep = keep

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, record: Mapping[str, Any]
    ) -> Path:
        """Writes checkpoints/step-N whole, then removes the oldest beyond `keep`. `record` goes into state.json."""
        path = self.directory / f"step-{progress.step:08d}"
        with atomic_directory(path) as directory:
            save_tensors(directory / _WEIGHT_FILES[0], model.state_dict())
            save_tensors(directory / _WEIGHT_FILES[1], optimizer_tensors(model, optimizer))
            state = {
                "format_version": CHECKPOINT_FORMAT,
                "step": progress.step,
                "wall_time_s": progress.wall_time_s,
                "sha256": {name: sha256_file(directory / name) for name in _WEIGHT_FILES},
                **record,
            }
            (directory / _STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
        # The run is locked, so what is still under a temporary name was left by a process that was killed.
        for old in (*self._paths()[: -self.keep], *self.directory.glob(".step-*")):
            shutil.rmtree(old)
        return path

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Loads the newest whole checkpoint, or leaves everything as it is (step 0) if there is none.

        A damaged checkpoint is said aloud and passed over for the one before it.
        """
        for path in reversed(self._paths()):
            problem = _damage(path)
            if problem:
                print(f"checkpoint {path} is damaged ({problem}): going on from the one before it")
                continue
            state = json.loads((path / _STATE_FILE).read_text())
            load_tensors_strict(model, load_tensors(path / _WEIGHT_FILES[0]), str(path))
            load_optimizer_tensors(model, optimizer, load_tensors(path / _WEIGHT_FILES[1]), str(path))
            return Progress(step=state["step"], wall_time_s=state["wall_time_s"])
        return Progress(step=0, wall_time_s=0.0)

    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"))


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty if nothing."""
    try:
        state = json.loads((path / _STATE_FILE).read_text())
        if state["format_version"] != CHECKPOINT_FORMAT:
            return f"format version {state['format_version']}, this version writes {CHECKPOINT_FORMAT}"
        for name in _WEIGHT_FILES:
            if sha256_file(path / name) != state["sha256"][name]:
                return f"{name} differs from its sha256"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by the parameters' names: "<parameter>:<field>"."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}:{field}": value
        for parameter, state in optimizer.state.items()
        for field, value in state.items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str
) -> None:
    """The inverse of `optimizer_tensors`; raises ValueError for a tensor that belongs to no optimized parameter."""
    parameters = dict(model.named_parameters())
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, field = key.rpartition(":")
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in optimized:
            raise ValueError(f"{where}: optimizer state for {name!r}, which this model does not train")
        # The step counter lives on the CPU unless the optimizer is fused on a GPU, where all state is beside the weights.
        on_device = value.ndim > 0 or any(group.get("fused") for group in optimizer.param_groups)
        optimizer.state[parameter][field] = value.to(parameter.device) if on_device else value


# ------------------------------------------------------------------------------------------------------------- metrics


class Metrics:
    """Scalars to metrics.jsonl and TensorBoard. On resumption the rows after the checkpoint are dropped first."""

    def __init__(self, directory: Path, *, first_step: int) -> None:
        # TensorBoard's writer pulls in a second of imports that a finished run, which only says so, should not pay.
        from torch.utils.tensorboard import SummaryWriter

        self.path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= first_step]
        atomic_write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line torn by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

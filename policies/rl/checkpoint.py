"""Where a run of reinforcement learning stands, on disk, so that it goes on after kill -9.

<out>.training/checkpoints/step-N/   model.safetensors (networks, temperature, VecNormalize's statistics), optimizer.safetensors, state.json
<out>.training/replay/rows-A-B.safetensors   rows A to B-1 of SAC's replay buffer; written once each, so that a checkpoint costs what is new

What a resume loses: the episodes that were under way, which begin anew with new seeds, and up to `checkpoint_every` steps.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from policies.rl.learner import Learner, optimizers, read_statistics, write_statistics
from policies.rl.policy import RLPolicy
from policies.rl.sac import SharedEyesSAC
from pretrain.artifact import atomic_directory, load_tensors, save_tensors
from pretrain.checkpoints import load_optimizer_tensors, optimizer_tensors

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_TEMPERATURE = "log_temperature"
_STATISTICS = "vec_normalize."


@dataclass(frozen=True, kw_only=True)
class RLProgress:
    """Environment steps, gradient updates, the next episode's seed, episodes ended, seconds by the clock, and seconds of all processors, in all the run's lives."""

    step: int = 0
    updates: int = 0
    next_seed: int = 0
    episodes: int = 0
    wall_time_s: float = 0.0
    cpu_time_s: float = 0.0


class RLCheckpoints:
    """The newest checkpoint of a run in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "checkpoints"
        self._rows = directory / "replay"

    def save(self, learner: Learner, env: VecNormalize, policy: RLPolicy, progress: RLProgress) -> None:
        """Write the checkpoint whole, then remove the one before and replay rows that have left the buffer."""
        if isinstance(learner, SharedEyesSAC):
            self._save_rows(learner, progress.step)
        read_statistics(env, policy)
        model = {**_unique(learner.policy), **_prefixed(policy.statistics.state_dict(), _STATISTICS)}
        state = {}
        for name, (module, optimizer) in optimizers(learner).items():
            state |= _prefixed(optimizer_tensors(module, optimizer), f"{name}/")
        if isinstance(learner, SharedEyesSAC):
            assert learner.log_ent_coef is not None and learner.ent_coef_optimizer is not None
            model[_TEMPERATURE] = learner.log_ent_coef
            moments = learner.ent_coef_optimizer.state.get(learner.log_ent_coef, {})
            state |= _prefixed(moments, f"{_TEMPERATURE}/")
        with atomic_directory(self.directory / f"step-{progress.step:09d}") as folder:
            save_tensors(folder / _MODEL, model)
            save_tensors(folder / _OPTIMIZER, state)
            (folder / _STATE).write_text(json.dumps(asdict(progress)) + "\n")
        for old in self._paths()[:-1]:
            shutil.rmtree(old)

    def restore(self, learner: Learner, env: VecNormalize, policy: RLPolicy) -> RLProgress:
        """Load the newest checkpoint, or leave everything as it is if there is none.

        Raises:
            ValueError: the checkpoint does not fit the learner, or replay rows are missing.
        """
        paths = self._paths()
        if not paths:
            shutil.rmtree(self._rows, ignore_errors=True)
            return RLProgress()
        progress = RLProgress(**json.loads((paths[-1] / _STATE).read_text()))
        model, state = load_tensors(paths[-1] / _MODEL), load_tensors(paths[-1] / _OPTIMIZER)
        policy.statistics.load_state_dict(_taken(model, _STATISTICS))
        write_statistics(policy, env)
        if isinstance(learner, SharedEyesSAC):
            assert learner.log_ent_coef is not None and learner.ent_coef_optimizer is not None
            learner.log_ent_coef.data.copy_(model.pop(_TEMPERATURE))
            if moments := _taken(state, f"{_TEMPERATURE}/"):
                learner.ent_coef_optimizer.state[learner.log_ent_coef] = dict(moments)
            self._load_rows(learner, progress.step)
        own = _unique(learner.policy)
        if own.keys() != model.keys():
            raise ValueError(
                f"{paths[-1]} does not fit this run: tensors {sorted(own.keys() ^ model.keys())[:4]} are on one side only; "
                "delete the run's directory to start again"
            )
        for name, value in own.items():
            value.data.copy_(model[name])
        for name, (module, optimizer) in optimizers(learner).items():
            load_optimizer_tensors(module, optimizer, _taken(state, f"{name}/"), str(paths[-1]))
        learner.num_timesteps, learner._n_updates = progress.step, progress.updates
        return progress

    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"))

    def _save_rows(self, learner: SharedEyesSAC, step: int) -> None:
        buffer = _buffer(learner)
        # One row of the buffer holds a transition of each environment.
        added = step // buffer.n_envs
        parts = self._parts()
        begin = max(parts[-1][1] if parts else 0, added - buffer.buffer_size)
        if begin < added:
            rows = np.arange(begin, added) % buffer.buffer_size
            path = self._rows / f"rows-{begin:09d}-{added:09d}"
            with atomic_directory(path) as folder:
                arrays = {name: torch.from_numpy(array[rows]) for name, array in _arrays(buffer).items()}
                save_tensors(folder / "rows.safetensors", arrays)
        for first, last, path in parts:
            if last <= added - buffer.buffer_size:
                shutil.rmtree(path)
            assert first <= last

    def _load_rows(self, learner: SharedEyesSAC, step: int) -> None:
        buffer = _buffer(learner)
        added = step // buffer.n_envs
        reached = max(0, added - buffer.buffer_size)
        for first, last, path in self._parts():
            if last > added:
                # Written just before a kill, ahead of the checkpoint it belonged to.
                shutil.rmtree(path)
                continue
            if first > reached:
                break
            tensors = load_tensors(path / "rows.safetensors")
            kept = np.arange(max(first, added - buffer.buffer_size), last)
            for name, array in _arrays(buffer).items():
                array[kept % buffer.buffer_size] = tensors[name].numpy()[kept - first]
            reached = last
        if reached != added:
            raise ValueError(
                f"{self._rows}: rows {reached} to {added - 1} of the replay buffer are missing; delete the run's directory to start again"
            )
        buffer.pos, buffer.full = added % buffer.buffer_size, added >= buffer.buffer_size

    def _parts(self) -> list[tuple[int, int, Path]]:
        found = []
        for path in sorted(self._rows.glob("rows-*")):
            first, last = path.name.removeprefix("rows-").split("-")
            found.append((int(first), int(last), path))
        return found


def _buffer(learner: SharedEyesSAC) -> DictReplayBuffer:
    assert isinstance(learner.replay_buffer, DictReplayBuffer)
    return learner.replay_buffer


def _arrays(buffer: DictReplayBuffer) -> dict[str, np.ndarray]:
    """The buffer's own arrays, [rows, n_envs, ...] each."""
    arrays = {name: getattr(buffer, name) for name in ("actions", "rewards", "dones", "timeouts")}
    for key in buffer.observations:
        arrays[f"observation/{key}"] = buffer.observations[key]
        arrays[f"next_observation/{key}"] = buffer.next_observations[key]
    return arrays


def _unique(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once: actor, critics and targets share their eyes."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove and return the entries under `prefix`, without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}

"""Scripted experts, one module a suite; they act from the simulator's privileged state."""

from __future__ import annotations

import importlib
from typing import Protocol

import numpy as np

from envs.env import ManipulationEnv
from envs.tasks import find_task

# Each module has make_expert(env); a suite's simulator is imported with it and not before.
EXPERTS = {
    "toy": "envs.experts.toy",
    "metaworld": "envs.experts.metaworld",
    "adroit": "envs.experts.adroit",
    "robosuite": "envs.experts.robosuite",
    "kitchen": "envs.experts.kitchen",
}


class Expert(Protocol):
    """A scripted policy for one environment."""

    def reset(self) -> None:
        """Forget the last episode; call it after each `env.reset`."""
        ...

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action for the environment's present state: float32 [A] in [-1, 1]."""
        ...


def make_expert(task: str, env: ManipulationEnv) -> Expert:
    """The expert of `task`'s row, bound to `env`, whose privileged state it reads.

    Raises:
        ValueError: unknown task, an environment of another task, or a task without an expert.
    """
    row = find_task(task)
    if env.env_spec.task != task:
        raise ValueError(f"an expert for {task!r} cannot act in an environment of {env.env_spec.task!r}")
    if not row.expert:
        raise ValueError(f"{task} has no expert; its row in envs.tasks.TASKS says what was tried")
    return importlib.import_module(EXPERTS[row.expert]).make_expert(env)

"""Scripted experts, one module a suite; they act from the simulator's privileged state."""

from __future__ import annotations

import importlib
from typing import Protocol

import numpy as np

from envs.env import ManipulationEnv
from envs.tasks import find_task

# Each module has make_expert(env); a suite's simulator is imported with it and not before.
EXPERTS = {"toy": "envs.experts.toy", "metaworld": "envs.experts.metaworld"}


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
        ValueError: unknown task, or an environment of another task.
    """
    row = find_task(task)
    if env.env_spec.task != task:
        raise ValueError(f"an expert for {task!r} cannot act in an environment of {env.env_spec.task!r}")
    return importlib.import_module(EXPERTS[row.expert]).make_expert(env)

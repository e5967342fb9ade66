"""What a row of the table of tasks says; each suite's rows stand beside its adapter in envs/suites/."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of `envs.tasks.TASKS`.

    Attributes:
        suite: the module of envs/suites/ that simulates it.
        name: the task's name in its suite.
        cameras: default cameras.
        horizon_steps: control steps until truncation.
        success_rule: what `info["success"]` means; the episode ends at the first success.
        expert: the module of envs/experts/ that solves it; empty where there is none.
        goal_marker: whether the simulator's goal marker is drawn: only where nothing else in the image shows the goal.
        notes: what varies from seed to seed, and why the horizon is what it is.
    """

    suite: str
    name: str
    cameras: tuple[str, ...]
    horizon_steps: int
    success_rule: str
    expert: str
    goal_marker: bool = False
    notes: str = ""

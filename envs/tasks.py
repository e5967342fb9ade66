"""The one table of tasks, and `make_env`."""

from __future__ import annotations

import difflib
from types import ModuleType

from envs.env import ManipulationEnv, Simulation
from envs.rendering import Renderer
from envs.shifts import AppearanceLevel, parse_level
from envs.suites import adroit, kitchen, metaworld, robosuite, toy
from envs.task import Task

# Each holds TASKS, its rows, and make_simulation(row); its simulator's package is imported there at first use and not before.
SUITES: dict[str, ModuleType] = {
    "toy": toy,
    "metaworld": metaworld,
    "adroit": adroit,
    "robosuite": robosuite,
    "kitchen": kitchen,
}

TASKS: dict[str, Task] = {name: row for suite in SUITES.values() for name, row in suite.TASKS.items()}


def find_task(task: str) -> Task:
    """The row of `task`.

    Raises:
        ValueError: no such task; the text names the closest ones and all there are.
    """
    if task not in TASKS:
        close = difflib.get_close_matches(task, TASKS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"unknown task {task!r}; {hint}The tasks (envs.tasks.TASKS) are: {', '.join(TASKS)}")
    return TASKS[task]


def find_level(level: str) -> AppearanceLevel:
    """The appearance level of that name, with its shifts, e.g. `varied-1+camera-2`.

    Raises:
        ValueError: no such level or shift.
    """
    return parse_level(level)


def make_simulation(task: str) -> Simulation:
    """The bare simulation of `task`."""
    row = find_task(task)
    return SUITES[row.suite].make_simulation(row)


def make_env(
    task: str,
    *,
    level: str = "clean",
    cameras: tuple[str, ...] | None = None,
    image_size: int = 128,
    quality: str = "fast",
    renderer: Renderer | None = None,
    privileged: bool = False,
    redraw_every: int = 0,
) -> ManipulationEnv:
    """Make the environment of a row of `TASKS`.

    Args:
        task: a key of `TASKS`.
        level: a key of `envs.shifts.LEVELS`, followed by `+` and a key of `envs.shifts.SHIFTS` for each shift on top of it.
        cameras: names of the model's cameras; None takes the row's, () draws nothing and needs no GL.
        image_size: side of the square images in pixels.
        quality: a key of `envs.rendering.QUALITIES`.
        renderer: shares one renderer among environments of one task; it stays the caller's to close. None makes one at the first image.
        privileged: adds `state/full`, the simulator's state, to the observation.
        redraw_every: control steps after which the appearance is drawn anew within an episode; 0: never.

    Raises:
        ValueError: unknown task, level, camera or quality, or a bad size.
    """
    row = find_task(task)
    appearance = find_level(level)
    simulation = make_simulation(task)
    try:
        return ManipulationEnv(
            task=task,
            simulation=simulation,
            horizon_steps=row.horizon_steps,
            level=appearance,
            cameras=row.cameras if cameras is None else cameras,
            image_size=image_size,
            quality=quality,
            renderer=renderer,
            privileged=privileged,
            redraw_every=redraw_every,
        )
    except BaseException:
        simulation.close()
        raise

"""The one table of tasks, and `make_env`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from envs.env import ManipulationEnv, Simulation
from envs.rendering import Renderer
from envs.shifts import LEVELS, AppearanceLevel


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of `TASKS`.

    Attributes:
        suite: the module of envs/suites/ that simulates it.
        name: the task's name in its suite.
        cameras: default cameras.
        horizon_steps: control steps until truncation.
        success_rule: what `info["success"]` means; the episode ends at the first success.
        expert: the module of envs/experts/ that solves it.
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


def _metaworld(name: str, horizon_steps: int, success_rule: str, notes: str, *, goal_marker: bool = False) -> Task:
    return Task(
        suite="metaworld",
        name=name,
        cameras=("corner4",),
        horizon_steps=horizon_steps,
        success_rule=success_rule,
        expert="metaworld",
        goal_marker=goal_marker,
        notes=notes,
    )


# Horizons of Meta-World: about 1.3 times the longest successful episode of the expert on seeds 0 to 199, where it
# succeeds on all but what a row's notes say. The package's own 500 would triple the
# cost of every failed episode.
TASKS: dict[str, Task] = {
    "toy/reach": Task(
        suite="toy",
        name="reach",
        cameras=("front",),
        horizon_steps=60,
        success_rule="tip within 3 cm of the ball in the table's plane",
        expert="toy",
        notes="pole and ball start anywhere in a square of 0.5 m",
    ),
    "metaworld/assembly": _metaworld(
        "assembly",
        130,
        "ring around the peg: its centre within 2 cm of the peg in x, y and not above the peg's top",
        "the peg moves (x, y), the ring does not; the expert needs 83 to 99 steps",
    ),
    "metaworld/bin-picking": _metaworld(
        "bin-picking",
        360,
        "cube within 5 cm of the second bin's centre",
        "the cube moves (x, y); the expert needs 89 to 276 steps, because it tries again after a lost grasp, half of the time under 115",
    ),
    "metaworld/button-press-topdown": _metaworld(
        "button-press-topdown",
        100,
        "button within 2.4 cm of fully pressed",
        "the button moves (x, y); the expert needs 58 to 75 steps",
    ),
    "metaworld/drawer-open": _metaworld(
        "drawer-open",
        125,
        "handle within 3 cm of 20 cm open",
        "the drawer moves (x); the expert needs 86 to 92 steps. The marker would give the drawer's place away",
    ),
    "metaworld/hammer": _metaworld(
        "hammer",
        105,
        "nail driven in by more than 9 cm",
        "the hammer moves (x, y), the block does not; the expert needs 59 to 79 steps",
    ),
    "metaworld/reach": _metaworld(
        "reach",
        115,
        "fingers' centre within 5 cm of the marker",
        "marker (x, y, z) and an unused puck move; the expert needs 32 to 89 steps",
        goal_marker=True,
    ),
    "metaworld/push": _metaworld(
        "push",
        100,
        "puck within 5 cm of the marker",
        "puck and marker move (x, y); the expert needs 46 to 75 steps, on one seed of 200 it needs 211",
        goal_marker=True,
    ),
    "metaworld/door-open": _metaworld(
        "door-open",
        160,
        "handle within 8 cm, in x, of 30 cm to the left of its place",
        "the door moves (x, y); the expert needs 71 to 121 steps and fails on about 4 % of the seeds",
    ),
    "metaworld/drawer-close": _metaworld(
        "drawer-close",
        105,
        "handle within 6.5 cm of closed",
        "the drawer moves (x); the expert needs 78 or 79 steps",
    ),
}


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
    """The appearance level of that name.

    Raises:
        ValueError: no such level.
    """
    if level not in LEVELS:
        close = difflib.get_close_matches(level, LEVELS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"unknown appearance level {level!r}; {hint}The levels are: {', '.join(LEVELS)}")
    return LEVELS[level]


def make_simulation(task: str) -> Simulation:
    """The bare simulation of `task`; its suite is imported here and not before."""
    row = find_task(task)
    if row.suite == "metaworld":
        from envs.suites import metaworld

        return metaworld.make_simulation(row.name, goal_marker=row.goal_marker)
    from envs.suites import toy

    return toy.make_simulation(row.name)


def make_env(
    task: str,
    *,
    level: str = "clean",
    cameras: tuple[str, ...] | None = None,
    image_size: int = 128,
    quality: str = "fast",
    renderer: Renderer | None = None,
    privileged: bool = False,
) -> ManipulationEnv:
    """Make the environment of a row of `TASKS`.

    Args:
        task: a key of `TASKS`.
        level: a key of `envs.shifts.LEVELS`.
        cameras: names of the model's cameras; None takes the row's, () draws nothing and needs no GL.
        image_size: side of the square images in pixels.
        quality: a key of `envs.rendering.QUALITIES`.
        renderer: shares one renderer among environments of one task; it stays the caller's to close. None makes one at the first image.
        privileged: adds `state/full`, the simulator's state, to the observation.

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
        )
    except BaseException:
        simulation.close()
        raise

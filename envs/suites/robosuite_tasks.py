"""The rows of robosuite's tasks."""

from __future__ import annotations

from envs.task import Task

CAMERAS = ("agentview", "robot0_eye_in_hand")


def _robosuite(
    name: str, horizon_steps: int, success_rule: str, notes: str, *, cameras: tuple[str, ...] = CAMERAS
) -> Task:
    return Task(
        suite="robosuite",
        name=name,
        cameras=cameras,
        horizon_steps=horizon_steps,
        success_rule=success_rule,
        expert="robosuite",
        notes=notes,
    )


# Horizons: about 1.3 times the longest successful episode of the expert on seeds 50000 to 50049.
TASKS: dict[str, Task] = {
    "robosuite/lift": _robosuite(
        "lift",
        45,
        "cube's centre more than 4 cm above the table",
        "the cube moves (x, y by 8 cm, where robosuite has 3; any yaw); the expert needs 23 to 34 steps",
    ),
    "robosuite/stack": _robosuite(
        "stack",
        115,
        "red cube lifted, on the green one and let go",
        "both cubes move (x, y by 8 cm; any yaw); the expert needs 45 to 87 steps",
    ),
    "robosuite/door": _robosuite(
        "door",
        100,
        "door open by more than 0.3 rad",
        "the door moves (x 5 to 10 cm, y by 3, where robosuite has 7 to 9 and 1; yaw by 0.25 rad); its latch must be pressed first; the expert needs 54 to 77 steps",
    ),
    "robosuite/nut-assembly-square": _robosuite(
        "nut-assembly-square",
        200,
        "nut's centre within 3 cm of the square peg in x, y and below its top",
        "the nut moves (x 8 to 15 cm before the table's middle, where robosuite has 11 to 11.5; y 11 to 22.5 cm; any yaw); the expert needs 75 to 154 steps",
    ),
    "robosuite/pick-place-can": _robosuite(
        "pick-place-can",
        155,
        "can in its quarter of the second bin and let go",
        "the can moves (anywhere in the first bin, 5 cm from its walls; any yaw); the expert needs 74 to 118 steps",
    ),
    # Of robosuite's further tasks, this one: Wipe counts dirt as wiped only where the tool is pressed into the table by more than its rim's radius,
    # at forces that its own reward punishes.
    "robosuite/two-arm-lift": _robosuite(
        "two-arm-lift",
        95,
        "pot's bottom more than 10 cm above the table",
        "the pot moves (x, y by 3 cm; yaw by 60 degrees); the expert needs 42 to 71 steps",
        cameras=("agentview", "robot0_eye_in_hand", "robot1_eye_in_hand"),
    ),
}

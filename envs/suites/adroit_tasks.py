"""The rows of Adroit's tasks."""

from __future__ import annotations

from envs.task import Task

# Steps in success that mj_envs' evaluate_success asks an episode to exceed, counted over the episode and not necessarily in a row.
HELD_STEPS = {"pen": 20, "relocate": 25, "door": 25, "hammer": 25}

_SUCCESS = {
    "pen": "pen within 7.5 cm of the palm's ball and within 18 degrees (cosine above 0.95) of the target's direction",
    "relocate": "ball within 10 cm of the target",
    "door": "door opened by at least 1.35 rad",
    "hammer": "nail's head within 1 cm of fully driven in",
}
_VARIES = {
    "pen": "the target's direction varies (two angles); the pen starts in the palm",
    "relocate": "ball (x, y) and target (x, y, z) move; the translucent ball that marks the target is drawn, as nothing else shows it",
    "door": "the door moves (x, y, z)",
    "hammer": "the board with the nail moves (z only); hammer and hand start alike",
}
_NO_EXPERT = "there is no expert"
_EXPERT = {
    "pen": f"{_NO_EXPERT}: predictive sampling on the simulator (24 to 64 plans of 0.25 to 0.4 s, 2 to 16 s of one core for 100 steps) reached the "
    "target on 1 of 5 seeds",
    "relocate": "the expert needs 143 to 154 steps, 160 to 180 for the held rule, where it fails on about 6 % of the seeds",
    "door": "the expert needs about 155 steps, 175 to 195 for the held rule, where it fails on about 5 % of the seeds",
    "hammer": f"{_NO_EXPERT}: none was tried",
}
# Steps: 200 as Gymnasium-Robotics registers all four; the held rule was published with 100 for the pen.
_HORIZON = {"pen": 200, "relocate": 200, "door": 200, "hammer": 200}
_HORIZON_HELD = _HORIZON | {"pen": 100}


def _rows(name: str) -> dict[str, Task]:
    common = {
        "suite": "adroit",
        "cameras": ("vil_camera",),
        "expert": "" if _EXPERT[name].startswith(_NO_EXPERT) else "adroit",
        "goal_marker": name == "relocate",
    }
    instantaneous = Task(
        name=name,
        horizon_steps=_HORIZON[name],
        success_rule=f"{_SUCCESS[name]}, once (Gymnasium-Robotics' rule)",
        notes=f"{_VARIES[name]}; {_EXPERT[name]}",
        **common,
    )
    held = Task(
        name=f"{name}-held",
        horizon_steps=_HORIZON_HELD[name],
        success_rule=f"{_SUCCESS[name]}, in more than {HELD_STEPS[name]} steps of the episode, not necessarily in a row (mj_envs' rule, used by "
        "R3M and CortexBench); the episode ends when the count is reached",
        notes=f"{_VARIES[name]}; {_EXPERT[name]}",
        **common,
    )
    return {f"adroit/{row.name}": row for row in (instantaneous, held)}


TASKS: dict[str, Task] = {key: row for name in HELD_STEPS for key, row in _rows(name).items()}

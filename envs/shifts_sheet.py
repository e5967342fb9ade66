"""`python -m envs.shifts_sheet TASK`: one picture of a task under each shift, to look at before robustness is measured.

A row a kind of shift, a column a strength; the first column is the level alone. All show the same episode's first frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from envs.shifts import SHIFTS
from envs.tasks import find_task, make_env

_TITLE_PX = 14


def contact_sheet(
    task: str, *, level: str = "clean", seed: int = 0, camera: str | None = None, size: int = 160, quality: str = "fast"
) -> UInt8[np.ndarray, "H W 3"]:
    """The first frame of the episode `seed` of `task` under each of SHIFTS on top of `level`, with its name above it.

    Args:
        level: what the shifts go on top of.
        camera: one of the model's; None takes the task's first.
        size: side of each frame in pixels.
        quality: a key of `envs.rendering.QUALITIES`.

    Raises:
        ValueError: unknown task, level, camera or quality.
    """
    camera = camera or find_task(task).cameras[0]
    rows: dict[str, list[np.ndarray]] = {}
    first = make_env(task, level=level, cameras=(camera,), image_size=size, quality=quality)
    try:
        plain = _titled(level, first.reset(seed=seed)[0][f"images/{camera}"])
        for name, shift in SHIFTS.items():
            env = make_env(
                task,
                level=f"{level}+{name}",
                cameras=(camera,),
                image_size=size,
                quality=quality,
                renderer=first.renderer,
            )
            image = env.reset(seed=seed)[0][f"images/{camera}"]
            env.close()
            rows.setdefault(shift.kind, [plain]).append(_titled(f"+{name}", image))
    finally:
        first.close()
    return np.concatenate([np.concatenate(row, axis=1) for row in rows.values()])


def _titled(text: str, image: np.ndarray) -> np.ndarray:
    title = np.full((_TITLE_PX, image.shape[1], 3), 255, np.uint8)
    cv2.putText(title, text, (2, _TITLE_PX - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([title, image])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the sheet of the task that is named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m envs.shifts_sheet", description=__doc__)
    parser.add_argument("task", help="a key of envs.tasks.TASKS, e.g. metaworld/drawer-open")
    parser.add_argument("--level", default="clean", help="what the shifts go on top of")
    parser.add_argument("--seed", type=int, default=0, help="the episode")
    parser.add_argument(
        "--camera", default=None, help="one of the model's cameras; the task's first where none is given"
    )
    parser.add_argument("--size", type=int, default=160, help="side of each frame in pixels")
    parser.add_argument("--quality", default="fast", help="fast or full")
    parser.add_argument(
        "--out", type=Path, default=None, help="a .png file; runs/shifts/TASK-LEVEL.png where none is given"
    )
    given = parser.parse_args(argv)
    try:
        sheet = contact_sheet(
            given.task,
            level=given.level,
            seed=given.seed,
            camera=given.camera,
            size=given.size,
            quality=given.quality,
        )
    except ValueError as error:
        parser.error(str(error))
    out = given.out or Path("runs/shifts") / f"{given.task.replace('/', '-')}-{given.level}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), sheet[..., ::-1]):
        parser.error(f"{out} could not be written; its name must end in .png")
    print(f"{len(SHIFTS)} shifts of {given.task} on top of {given.level}, seed {given.seed} -> {out}")


if __name__ == "__main__":
    main()

"""How long a frame takes here, at each rendering quality."""

from __future__ import annotations

import time
from statistics import median

from envs.rendering import QUALITIES
from envs.tasks import make_env


def time_qualities(
    task: str = "metaworld/drawer-open",
    *,
    qualities: tuple[str, ...] = tuple(QUALITIES),
    frames: int = 20,
    image_size: int = 128,
) -> dict[str, list[float]]:
    """Milliseconds of each of `frames` RGB frames of the task's first camera, for each quality.

    The qualities take turns frame by frame, so that whatever else the machine does meets all of them alike; one frame each is drawn before and not
    counted. Physics is not included.

    Raises:
        ValueError: unknown task or quality, or fewer than one frame.
        RuntimeError: no GL back-end.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    envs = {quality: make_env(task, image_size=image_size, quality=quality) for quality in qualities}
    durations: dict[str, list[float]] = {quality: [] for quality in qualities}
    try:
        for env in envs.values():
            env.reset(seed=0)
        for _ in range(frames):
            for quality, env in envs.items():
                start = time.perf_counter()
                env.render()
                durations[quality].append(1000 * (time.perf_counter() - start))
    finally:
        for env in envs.values():
            env.close()
    return durations


def time_quality(
    task: str = "metaworld/drawer-open", *, quality: str = "fast", frames: int = 20, image_size: int = 128
) -> float:
    """Median milliseconds of a frame at `quality`; see `time_qualities`."""
    return median(time_qualities(task, qualities=(quality,), frames=frames, image_size=image_size)[quality])

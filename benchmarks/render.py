"""Milliseconds a frame in fast and full rendering quality, frame by frame in turns: python -m benchmarks.render

python -m benchmarks.render --json render.json
python -m benchmarks.render --check        # exits 1 when fast is less than 5 times faster than full
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from statistics import median, quantiles

from envs.rendering import gl_backend, gl_renderer_name
from envs.tasks import TASKS
from envs.timing import time_qualities

REQUIRED_RATIO = 5.0


def main() -> int:
    """Run the benchmark; the exit status."""
    arguments = _parse()
    durations = time_qualities(arguments.task, frames=arguments.frames, image_size=arguments.image_size)
    result = {
        "task": arguments.task,
        "image_size": arguments.image_size,
        "frames": arguments.frames,
        "backend": gl_backend(),
        "driver": gl_renderer_name(),
        "machine": platform.machine(),
        "ms_per_frame": {quality: _summary(values) for quality, values in durations.items()},
    }
    ratio = result["ratio"] = median(durations["full"]) / median(durations["fast"])
    for quality, summary in result["ms_per_frame"].items():
        print(
            f"{quality}: {summary['median']:.1f} ms a frame (middle half {summary['q1']:.1f} to {summary['q3']:.1f}), {result['driver']}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {arguments.json}")
    print(f"fast is {ratio:.1f} times faster than full on {arguments.task} at {arguments.image_size} px")
    return int(arguments.check and ratio < REQUIRED_RATIO)


def _summary(values: list[float]) -> dict[str, float]:
    q1, middle, q3 = quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": q1, "q3": q3, "min": min(values), "max": max(values)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--task", default="metaworld/drawer-open", choices=sorted(TASKS), metavar="TASK")
    parser.add_argument("--frames", type=int, default=30, help="frames of each quality, at least 2")
    parser.add_argument("--image-size", type=int, default=128, help="side of the image in pixels")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help=f"exit 1 when the ratio is below {REQUIRED_RATIO:g}")
    arguments = parser.parse_args()
    if arguments.frames < 2:
        parser.error(f"--frames {arguments.frames}: give at least 2")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

"""Env steps a second of a policy's rollout, drawing and encoder included, against a plain Gymnasium loop: python -m benchmarks.rollout

python -m benchmarks.rollout --json rollout.json
python -m benchmarks.rollout --check     # exits 1 when Meta-World or Kitchen are less than 8 times faster than the plain loop

Ours is what `egoarm eval` does: environments in worker processes, one policy call a step for all. The plain loop is one environment of the
simulator's own package drawn by its own `render()` at 480x480, and one encoder call a step. Encoder, camera count and torch's threads are the same
in both. The loops run in turns, so that other work on the machine meets all of them; ratios are the median over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.plain_loops import PLAIN_LOOPS, PlainLoop
from envs.rendering import gl_backend, gl_renderer_name
from envs.tasks import SUITES, TASKS, make_env
from envs.vector import VectorEnv
from eval_robot.rollout import BLOCK_ROWS
from policies.backbone import Backbone, BackboneConfig
from policies.bc import BCConfig, BCPolicy
from policies.chunking import ActionChunker
from policies.policy import PolicySpec
from pretrain.egodtm.encoder import random_encoder
from pretrain.encoder import VideoEncoder

REQUIRED_RATIO = 8.0
CHECKED = ("metaworld", "kitchen")
ROWS = {
    "metaworld": "metaworld/drawer-open",
    "kitchen": "kitchen/sdoor_open",
    "robosuite": "robosuite/lift",
    "adroit": "adroit/pen",
}


def main() -> int:
    """Run the benchmark; the exit status."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    missing = [suite for suite in arguments.suites if ROWS[suite] not in TASKS]
    result: dict[str, Any] = {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "driver": gl_renderer_name() if gl_backend() else "",
        "encoder": f"ViT-Tiny/16, {arguments.frames} frame(s) of {arguments.image_size} px, random weights",
        "threads": torch.get_num_threads(),
        "envs": arguments.envs,
        "execute_steps": arguments.execute_steps,
        "missing": missing,
        "suites": {},
    }
    print(f"{result['machine']}, {result['cores']} cores, load {result['load_before']:.1f}; {result['encoder']}")
    for suite in missing:
        print(f"{suite}: not there yet ({ROWS[suite]} is not in envs.tasks.TASKS, suites: {', '.join(SUITES)})")
    for suite in arguments.suites:
        if suite not in missing:
            result["suites"][suite] = measure(suite, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {arguments.json}")
    ratios = {suite: rows["ratio"] for suite, rows in result["suites"].items() if rows["ratio"] is not None}
    print(
        "fast quality against the plain loop: "
        + (", ".join(f"{suite} {ratio:.1f} times" for suite, ratio in ratios.items()) or "nothing to compare")
    )
    short = [suite for suite in CHECKED if ratios.get(suite, 0.0) < REQUIRED_RATIO]
    return int(arguments.check and bool(short))


def measure(suite: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All loops of one suite, in turns."""
    task = ROWS[suite]
    encoder = random_encoder("tiny", seed=0, frames=arguments.frames, image_size=arguments.image_size)
    loops: dict[str, Callable[[int], int]] = {}
    with contextlib.ExitStack() as stack:
        if suite in PLAIN_LOOPS:
            loops["plain"] = stack.enter_context(contextlib.closing(PlainLoop(PLAIN_LOOPS[suite], encoder))).run
        for quality in arguments.qualities:
            for workers in arguments.workers:
                ours = stack.enter_context(contextlib.closing(OurLoop(task, encoder, quality, workers, arguments)))
                loops[f"{quality}, {workers} worker{'s' * (workers > 1)}"] = ours.run
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
        for round_ in range(arguments.rounds + 1):
            for name, run in loops.items():
                ticks = arguments.plain_steps if name == "plain" else arguments.ticks
                wall, cpu = time.perf_counter(), _cpu_seconds()
                steps = run(ticks)
                spent = ((time.perf_counter() - wall) / steps, (_cpu_seconds() - cpu) / steps)
                if round_:  # the first warms up
                    times[name].append(spent)
    rows = {}
    for name, spent in times.items():
        ratios = (
            [plain[0] / own[0] for plain, own in zip(times["plain"], spent, strict=True)] if "plain" in times else []
        )
        rows[name] = {
            "steps_per_s": 1 / median(wall for wall, _ in spent),
            "cpu_ms_per_step": 1000 * median(cpu for _, cpu in spent),
            "ratio": median(ratios) if ratios else None,
        }
        against = f", {rows[name]['ratio']:.1f} times the plain loop" if ratios and name != "plain" else ""
        print(
            f"{task}, {name}: {rows[name]['steps_per_s']:.1f} env steps a second, {rows[name]['cpu_ms_per_step']:.1f} ms of CPU a step{against}",
            flush=True,
        )
    parts = _parts(task, encoder, arguments)
    print(f"{task}, parts in ms: " + ", ".join(f"{name} {value:.1f}" for name, value in parts.items()), flush=True)
    fast = [row["ratio"] for name, row in rows.items() if name.startswith("fast") and row["ratio"] is not None]
    return {"task": task, "loops": rows, "parts_ms": parts, "ratio": max(fast, default=None)}


class OurLoop:
    """`eval_robot.rollout.rollout` without its records: episodes that end are started again."""

    def __init__(
        self, task: str, encoder: VideoEncoder, quality: str, workers: int, arguments: argparse.Namespace
    ) -> None:
        self.env = VectorEnv(
            task, n_envs=arguments.envs, n_workers=workers, level="varied-1", cameras=TASKS[task].cameras[:1],
            image_size=arguments.image_size, quality=quality,
        )  # fmt: skip
        self.chunker = ActionChunker(_policy(self.env, encoder, arguments), arguments.envs, block_rows=BLOCK_ROWS)
        self.seeds = list(range(arguments.envs))
        self.observation = self.env.reset(self.seeds)[0]
        self.fresh = np.ones(arguments.envs, bool)

    def run(self, ticks: int) -> int:
        """Steps all environments `ticks` times; the number of env steps."""
        for _ in range(ticks):
            actions = self.chunker.act(self.observation, self.fresh, seeds=self.seeds)
            self.observation, _, terminated, truncated, _ = self.env.step(actions, images=self.chunker.needs_images())
            self.fresh = terminated | truncated
            if self.fresh.any():
                ended = np.flatnonzero(self.fresh)
                for index in ended:
                    self.seeds[index] += len(self.seeds)
                first, _ = self.env.reset([self.seeds[index] for index in ended], ended.tolist())
                for key, values in first.items():
                    self.observation[key][ended] = values
        return ticks * len(self.seeds)

    def close(self) -> None:
        self.env.close()


def _policy(env: VectorEnv, encoder: VideoEncoder, arguments: argparse.Namespace) -> BCPolicy:
    spec = PolicySpec(
        policy="bc",
        env_spec=env.env_spec,
        cameras=env.env_spec.cameras,
        state_keys=tuple(key for key in env.env_spec.observation if key.startswith("state/")),
        frames=arguments.frames,
        stride_steps=1,
        chunk_steps=arguments.execute_steps,
        execute_steps=arguments.execute_steps,
    )
    policy = BCPolicy(spec, BCConfig(), Backbone(spec, BackboneConfig(), encoder))
    return policy.eval()


def _parts(task: str, encoder: VideoEncoder, arguments: argparse.Namespace) -> dict[str, float]:
    """CPU milliseconds of what a step is made of, in this process, fast quality."""
    env = make_env(task, level="varied-1", cameras=TASKS[task].cameras[:1], image_size=arguments.image_size)
    env.reset(seed=0)
    still = np.zeros(env.env_spec.action.shape, np.float32)
    clip = torch.zeros(8, arguments.frames, arguments.image_size, arguments.image_size, 3, dtype=torch.uint8)
    encoder = encoder.frozen()
    with torch.no_grad():
        parts = {
            "physics": _cpu_ms(lambda: env.step(still, images=False), 15),
            "drawing": _cpu_ms(env.render, 15),
            "encoder, of 8": _cpu_ms(lambda: encoder(encoder.preprocess(clip)), 3) / 8,
            "encoder, of 1": _cpu_ms(lambda: encoder(encoder.preprocess(clip[:1])), 8),
        }
    env.close()
    return parts


def _cpu_ms(call: Callable[[], object], times: int) -> float:
    call()
    begun = time.process_time()
    for _ in range(times):
        call()
    return 1000 * (time.process_time() - begun) / times


def _cpu_seconds() -> float:
    """Of this process and its workers."""
    here = psutil.Process()
    spent = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(times.user + times.system for times in spent)


def _processor() -> str:
    """The processor's name, which a speed means nothing without."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="SUITE")
    parser.add_argument("--qualities", nargs="+", default=["fast", "full"], choices=["fast", "full"], metavar="QUALITY")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="simulator processes, one row each")
    parser.add_argument("--envs", type=int, default=8, help="environments at a time")
    parser.add_argument("--frames", type=int, default=1, help="of a clip that the encoder sees")
    parser.add_argument("--image-size", type=int, default=112, help="pixels, of the images drawn and of the encoder")
    parser.add_argument("--execute-steps", type=int, default=1, help="of each predicted chunk; the plain loop has 1")
    parser.add_argument("--rounds", type=int, default=3, help="in which the loops take turns")
    parser.add_argument("--ticks", type=int, default=6, help="steps of all environments, a round")
    parser.add_argument("--plain-steps", type=int, default=6, help="steps of the plain loop, a round")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch's, in all loops; more wait for each other where others work"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"exit 1 when {' or '.join(CHECKED)} in fast quality is below {REQUIRED_RATIO:g} times the plain loop",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

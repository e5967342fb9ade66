"""20,000 steps of behaviour cloning on cached features against encoding each batch again: python -m benchmarks.bc_training

python -m benchmarks.bc_training --json bc.json
python -m benchmarks.bc_training --check     # exits 1 when cached features are less than 50 times faster

Both train the same policy on the same demonstrations with the trainer's own loop; only what a batch holds differs: cached features, or images
that the frozen encoder sees again. Images come decoded from memory, so reading and decoding demonstrations is not held against them. Encoding is
timed on a few steps and extrapolated; computing the cache once counts as time of the cached side.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from policies.backbone import BackboneConfig
from policies.demos.collect import DemosConfig
from policies.demos.collect import run as collect
from policies.demos.hdf5 import DemoFile
from policies.features import demo_images, history_rows
from policies.policy import Policy
from policies.rows import TrainingRows, load_rows
from policies.train import TrainConfig, build_policy, make_spec, make_trainer
from pretrain.batches import BatchPlan
from pretrain.encoder import load_encoder
from pretrain.loop import fit, make_fabric

BUDGET_STEPS = 20_000  # of R3M's protocol
REQUIRED_SPEED_UP = 50.0


def main() -> int:
    """Run the benchmark; the exit status."""
    arguments = _parse()
    if not arguments.demos.exists():
        arguments.demos.parent.mkdir(parents=True, exist_ok=True)
        collect(
            DemosConfig(
                task="toy/reach", level="varied-1", episodes=30, out=str(arguments.demos), image_size=128, first_seed=0, workers=0
            )
        )  # fmt: skip
    result = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {arguments.json}")
    said = "measured" if result["cached_steps_timed"] == BUDGET_STEPS else f"from {result['cached_steps_timed']} steps"
    print(
        f"{result['processor']}, {result['threads']} thread(s), {result['encoder']}, readout {result['readout']}, batch {result['batch_size']}: "
        f"{BUDGET_STEPS} steps in {result['cached_s']:.0f} s on cached features ({said}; of it {result['cache_s']:.0f} s for the cache), "
        f"{result['encoding_s']:.0f} s encoding each batch (extrapolated from {result['encoding_steps_timed']} steps): "
        f"{result['speed_up']:.0f} times faster"
    )
    return int(arguments.check and result["speed_up"] < REQUIRED_SPEED_UP)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times both sides; seconds of the whole budget."""
    torch.set_num_threads(arguments.threads)
    config = TrainConfig(
        policy="bc", encoder=arguments.encoder, encoder_seed=0, demos=str(arguments.demos), out="unused", label=None, seed=0, cache="unused",
        threads=arguments.threads, backbone=BackboneConfig(readout=arguments.readout), batch_size=arguments.batch_size,
    )  # fmt: skip
    with DemoFile(config.demos) as demos, tempfile.TemporaryDirectory() as scratch:
        encoder = load_encoder(config.encoder)
        policy = build_policy(config, make_spec(config, encoder, demos), encoder)
        began = time.monotonic()
        rows = load_rows(policy, demos, Path(scratch) / "cache", "bench")
        cache_s = time.monotonic() - began
        policy.fit_normalizers(rows.state, rows.action, rows.action_is_pad)
        policy.backbone.fit_features(rows.sample(256))
        images = demo_images(policy.spec.cameras, demos, Path(scratch) / "cache", "bench")
        encoded = replace(
            rows,
            views={f"images/{camera}": values[:] for camera, values in images.items()},
            history=history_rows(demos.lengths, policy.spec.frames, policy.spec.stride_steps),
        )
        cached = _seconds(policy, rows, config, arguments.cached_steps, Path(scratch) / "cached")
        encoding = _seconds(policy, encoded, config, arguments.encoding_steps, Path(scratch) / "encoding")
    cached_s = cache_s + cached * BUDGET_STEPS / arguments.cached_steps
    encoding_s = encoding * BUDGET_STEPS / arguments.encoding_steps
    return {
        "encoder": arguments.encoder,
        "readout": arguments.readout,
        "batch_size": make_trainer(config, len(rows.state)).batch_size,
        "rows": len(rows.state),
        "cameras": len(policy.spec.cameras),
        "threads": arguments.threads,
        "processor": _processor(),
        "budget_steps": BUDGET_STEPS,
        "cached_steps_timed": arguments.cached_steps,
        "encoding_steps_timed": arguments.encoding_steps,
        "cache_s": cache_s,
        "cached_s": cached_s,
        "cached_ms_per_step": 1000 * cached / arguments.cached_steps,
        "encoding_s": encoding_s,
        "encoding_ms_per_step": 1000 * encoding / arguments.encoding_steps,
        "speed_up": encoding_s / cached_s,
    }


def _seconds(policy: Policy, rows: TrainingRows, config: TrainConfig, steps: int, directory: Path) -> float:
    trainer = replace(make_trainer(config, len(rows.state)), steps=steps, threads=config.threads)
    return fit(
        fabric=make_fabric(trainer),
        model=policy,
        compute_loss=lambda wrapped, batch: wrapped(batch),
        load=rows.load,
        plan=BatchPlan(indices=tuple(range(len(rows.state))), batch_size=trainer.batch_size, seed=0),
        trainer=trainer,
        directory=directory,
        title="bench",
    ).wall_time_s


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
    parser.add_argument("--demos", type=Path, default=Path("runs/benchmarks/reach.hdf5"), help="made if need be")
    parser.add_argument("--encoder", default="timm/vit_tiny_patch16_224", help="as egoarm train's")
    parser.add_argument("--readout", default="pooled", help="as backbone.readout")
    parser.add_argument("--batch-size", type=int, default=256, help="rows a step")
    parser.add_argument(
        "--cached-steps", type=int, default=BUDGET_STEPS, help="steps on cached features that are timed"
    )
    parser.add_argument("--encoding-steps", type=int, default=3, help="steps with encoding that are timed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the arithmetic")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help=f"exit 1 below {REQUIRED_SPEED_UP:.0f} times")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

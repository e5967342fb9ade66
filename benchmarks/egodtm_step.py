"""Clips a second of EgoDTM's training step, and how long it waits for data: python -m benchmarks.egodtm_step

python -m benchmarks.egodtm_step --json step.json
python -m benchmarks.egodtm_step --check     # exits 1 when waiting takes more than 10 % of the time

The step is the trainer's: Tiny on 4 frames of 112 px with both objectives, fed by two loader processes. The clips are
synthetic ones, made once in --data.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pretrain.batches import BatchPlan, stream_batches
from pretrain.clips.synth import SynthConfig, run_synth
from pretrain.egodtm.data import LoadBatch
from pretrain.egodtm.model import EgoDTM, egodtm_loss
from pretrain.egodtm.train import PretrainConfig
from pretrain.loop import TrainerConfig, make_fabric, make_optimizer

ALLOWED_WAITING = 0.10
WARM_UP_STEPS = 3
CLIPS = 64


def main() -> int:
    """Run the benchmark; the exit status."""
    arguments = _parse()
    run_synth(SynthConfig(out=str(arguments.data), n=CLIPS))
    result = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {arguments.json}")
    print(
        f"{result['device']}, {result['precision']}, {result['threads']} threads, batch {result['batch_size']}: "
        f"{result['clips_per_s']:.1f} clips a second, {result['waiting_share']:.1%} of the step spent waiting for data "
        f"({result['workers']} loader processes)"
    )
    return int(arguments.check and result["waiting_share"] > ALLOWED_WAITING)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times `steps` steps after a few that fill the loaders' queues."""
    trainer = TrainerConfig(
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        threads=arguments.threads,
        workers=arguments.workers,
    )
    config = PretrainConfig(data=str(arguments.data), out="unused", frames=arguments.frames, trainer=trainer)
    fabric = make_fabric(trainer)
    model = EgoDTM(config.model_config)
    optimizer = make_optimizer(model, trainer)
    wrapped, optimizer = fabric.setup(model.to(fabric.device), optimizer)
    load = LoadBatch(
        config.data,
        frames=config.frames,
        image_size=config.model_config.video.image_size,
        depth_size=config.model_config.depth_size,
        caption_probability=config.caption_probability,
        context_length=config.model_config.text.context_length,
        train=True,
    )
    plan = BatchPlan(indices=tuple(range(CLIPS)), batch_size=trainer.batch_size, seed=0)
    plans = [plan.at(step) for step in range(WARM_UP_STEPS + arguments.steps)]
    batches = stream_batches(load, plans, workers=trainer.workers, prefetch=trainer.prefetch)
    waited, began = 0.0, 0.0
    for step in range(len(plans)):
        if step == WARM_UP_STEPS:
            waited, began = 0.0, time.monotonic()
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        batch = fabric.to_device(batch)
        loss, _ = egodtm_loss(
            wrapped(batch["video"], batch["text_ids"]),
            log_scale=model.log_scale,
            text_ids=batch["text_ids"],
            depth=batch["depth"],
            depth_valid=batch["depth_valid"],
            config=config.loss,
        )
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        fabric.clip_gradients(wrapped, optimizer, max_norm=trainer.gradient_clip)
        optimizer.step()
        float(loss.detach())  # a GPU has not done its work before this
    seconds = time.monotonic() - began
    return {
        "size": config.size,
        "frames": config.frames,
        "image_size": config.model_config.video.image_size,
        "batch_size": trainer.batch_size,
        "steps": arguments.steps,
        "workers": trainer.workers,
        "threads": torch.get_num_threads(),
        "precision": trainer.precision,
        "device": torch.cuda.get_device_name() if fabric.device.type == "cuda" else _processor(),
        "clips_per_s": arguments.steps * trainer.batch_size / seconds,
        "seconds_per_step": seconds / arguments.steps,
        "waiting_share": waited / seconds,
    }


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
    parser.add_argument("--data", type=Path, default=Path("runs/benchmarks/clips"), help="clip store, made if need be")
    parser.add_argument("--steps", type=int, default=12, help="steps that are timed")
    parser.add_argument("--frames", type=int, default=4, help="of a clip")
    parser.add_argument("--batch-size", type=int, default=32, help="clips a step")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the arithmetic; 0: torch's default")
    parser.add_argument("--precision", default="auto", help="as trainer.precision")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help=f"exit 1 when waiting is above {ALLOWED_WAITING:.0%}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Clips a second of EgoM2P's training step, and how long it waits for data: python -m benchmarks.egom2p_step

python -m benchmarks.egom2p_step --json step.json
python -m benchmarks.egom2p_step --check     # exits 1 when waiting takes more than 10 % of the time

The step is the trainer's: Tiny on the tokens of five modalities, read from a token store's tar streams by a thread. The store
is made once beside --data, of synthetic clips and untrained tokenizers: what is timed does not depend on what the tokens say.
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
from pretrain.egom2p.data import LoadTokens, target_counts, unpack
from pretrain.egom2p.masking import MaskingConfig
from pretrain.egom2p.model import EgoM2P, EgoM2PConfig, egom2p_loss
from pretrain.egom2p.tokenizers.store import TokenStoreConfig
from pretrain.egom2p.tokenizers.store import run as store_tokens
from pretrain.egom2p.tokenizers.tokenizer import save_tokenizer
from pretrain.egom2p.tokenizers.train import TokenizerTrainConfig
from pretrain.egom2p.tokens import open_tokens
from pretrain.loop import TrainerConfig, make_fabric, make_optimizer

ALLOWED_WAITING = 0.10
WARM_UP_STEPS = 3
CLIPS = 64
MODALITIES_OF_TOKENIZERS = (("rgb", "depth"), ("gaze",), ("camera",), ("hands",))


def main() -> int:
    """Run the benchmark; the exit status."""
    arguments = _parse()
    result = measure(arguments, _tokens(arguments.data))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {arguments.json}")
    print(
        f"{result['device']}, {result['precision']}, {result['threads']} threads, batch {result['batch_size']}, "
        f"{result['input_tokens']} + {result['target_tokens']} tokens: {result['clips_per_s']:.1f} clips a second, "
        f"{result['waiting_share']:.1%} of the step spent waiting for data ({result['loaders']})"
    )
    return int(arguments.check and result["waiting_share"] > ALLOWED_WAITING)


def _tokens(data: Path) -> Path:
    """The token store beside the clips."""
    clips, out = data / "clips", data / "egom2p-tokens"
    run_synth(SynthConfig(out=str(clips), n=CLIPS))
    paths = []
    for modality in MODALITIES_OF_TOKENIZERS:
        config = TokenizerTrainConfig(modality=modality, data=str(clips), out="unused")
        path = data / f"untrained-{config.name}"
        if not path.exists():
            tokenizer = config.build()
            if not config.is_video:
                tokenizer.fit_statistics([torch.ones(1, *tokenizer.spec.input_shape)])
            save_tokenizer(path, tokenizer)
        paths.append(str(path))
    store_tokens(TokenStoreConfig(data=str(clips), out=str(out), tokenizers=tuple(paths)))
    return out


def measure(arguments: argparse.Namespace, tokens: Path) -> dict[str, Any]:
    """Times `steps` steps after a few that fill the loader's queue."""
    trainer = TrainerConfig(
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        threads=arguments.threads,
        workers=arguments.workers,
    )
    store = open_tokens(tokens)
    config = EgoM2PConfig.of_size("tiny", store.grids)
    masking = MaskingConfig(input_tokens=arguments.input_tokens, target_tokens=arguments.target_tokens)
    fabric = make_fabric(trainer)
    model = EgoM2P(config)
    optimizer = make_optimizer(model, trainer)
    wrapped, optimizer = fabric.setup(model.to(fabric.device), optimizer)
    plan = BatchPlan(indices=tuple(range(CLIPS)), batch_size=trainer.batch_size, seed=0)
    plans = [plan.at(step) for step in range(WARM_UP_STEPS + arguments.steps)]
    load = LoadTokens([store], config, masking)
    batches = stream_batches(load, plans, workers=trainer.workers, prefetch=trainer.prefetch)
    waited, began = 0.0, 0.0
    for step in range(len(plans)):
        if step == WARM_UP_STEPS:
            waited, began = 0.0, time.monotonic()
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        batch = fabric.to_device(batch)
        losses = wrapped(unpack(batch, "input"), unpack(batch, "target"))
        loss, _ = egom2p_loss(losses, target_counts(batch, config), len(config.names))
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        fabric.clip_gradients(wrapped, optimizer, max_norm=trainer.gradient_clip)
        optimizer.step()
        float(loss.detach())  # a GPU has not done its work before this
    seconds = time.monotonic() - began
    return {
        "size": "tiny",
        "modalities": list(config.names),
        "input_tokens": arguments.input_tokens,
        "target_tokens": arguments.target_tokens,
        "batch_size": trainer.batch_size,
        "steps": arguments.steps,
        "loaders": f"{trainer.workers} loader processes" if trainer.workers else "a loader thread",
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
    parser.add_argument("--data", type=Path, default=Path("runs/benchmarks"), help="clips and tokens, made if need be")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--batch-size", type=int, default=32, help="clips a step")
    parser.add_argument("--input-tokens", type=int, default=256, help="a clip, at most")
    parser.add_argument("--target-tokens", type=int, default=256, help="a clip, at most")
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0: a thread")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the arithmetic; 0: torch's default")
    parser.add_argument("--precision", default="auto", help="as trainer.precision")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help=f"exit 1 when waiting is above {ALLOWED_WAITING:.0%}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""How fast is an encoder here, in training and in use? Clips a second and milliseconds a clip, on made-up frames.

    python benchmarks/encoder_speed.py                    both numbers for the sizes a CPU can train
    python benchmarks/encoder_speed.py --threads 1 --batch 16 --out speed.json

One JSON object a row goes to standard output (and the list of them to --out); the last line is the figure that counts:
clips a second trained of EgoDTM-Tiny at 4 x 112 px with as many threads as were asked for.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pretrain.egodtm.depth_decoder import DepthDecoderConfig
from pretrain.egodtm.model import DECODER_SIZES, EgoDTM, EgoDTMConfig, LossConfig, egodtm_loss
from pretrain.egodtm.text import TextConfig, tokenize
from pretrain.egodtm.video_vit import VideoViTConfig
from pretrain.loop import TrainerConfig, make_optimizer

SHAPES = ((4, 112), (2, 112), (4, 96), (1, 112))


@dataclass(frozen=True)
class Seconds:
    """Of one call: on the clock, and of all threads' processor time, which other programs of a busy machine disturb less
    (with one thread and an idle machine the two are equal)."""

    wall: float
    processor: float


def time_call(call: Callable[[], object], repeats: int) -> Seconds:
    """The best of `repeats` calls after one that does not count."""
    call()
    wall, processor = [], []
    for _ in range(repeats):
        began, began_processor = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - began_processor)
    return Seconds(min(wall), min(processor))


def make_model(size: str, frames: int, image_size: int) -> EgoDTM:
    torch.manual_seed(0)
    return EgoDTM(
        EgoDTMConfig(
            video=VideoViTConfig.of_size(size, frames=frames, image_size=image_size),
            text=TextConfig.of_size(size),
            decoder=DepthDecoderConfig(**DECODER_SIZES[size]),
        )
    )


def time_training_step(model: EgoDTM, batch: int, repeats: int) -> Seconds:
    """One whole training step: preprocessing, both objectives, backward, AdamW."""
    config = model.config
    frames, image_size, depth_size = config.video.frames, config.video.image_size, config.depth_size
    optimizer = make_optimizer(model, TrainerConfig())
    video = torch.randint(0, 256, (batch, frames, image_size, image_size, 3), dtype=torch.uint8)
    texts = tokenize([f"#C C picks up the {index} can, left of the bowl" for index in range(batch)])
    depth = torch.rand(batch, frames, depth_size, depth_size)
    valid = torch.ones_like(depth, dtype=torch.bool)

    def step() -> None:
        loss, _ = egodtm_loss(
            model(video, texts),
            log_scale=model.log_scale,
            text_ids=texts,
            depth=depth,
            depth_valid=valid,
            config=LossConfig(),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return time_call(step, repeats)


def time_inference(model: EgoDTM, batch: int, repeats: int) -> Seconds:
    """Preprocessing of 128 px frames and the frozen encoder."""
    encoder = model.encoder().frozen()
    video = torch.randint(0, 256, (batch, encoder.spec.frames, 128, 128, 3), dtype=torch.uint8)
    with torch.inference_mode():
        return time_call(lambda: encoder(encoder.preprocess(video)), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for frames, image_size in SHAPES:
            model = make_model(arguments.size, frames, image_size)
            batch, repeats = arguments.batch, arguments.repeats
            step = time_training_step(model, batch, repeats)
            many, one = time_inference(model, batch, repeats), time_inference(model, 1, 2 * repeats)
            row = {
                "encoder": f"egodtm-{arguments.size}",
                "frames": frames,
                "image_size": image_size,
                "threads": threads,
                "batch": batch,
                "train_clips_per_s": round(batch / step.wall, 2),
                "train_clips_per_processor_s": round(batch / step.processor, 2),
                "inference_ms_per_clip": round(1000 * many.wall / batch, 2),
                "inference_processor_ms_per_clip": round(1000 * many.processor / batch, 2),
                "inference_ms_per_clip_batch_1": round(1000 * one.wall, 2),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")
    first = next(row for row in reversed(rows) if (row["frames"], row["image_size"]) == SHAPES[0])
    print(f"{first['train_clips_per_s']} clips/s trained ({first['encoder']}, 4 x 112 px, {first['threads']} threads)")


if __name__ == "__main__":
    main()

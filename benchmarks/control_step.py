"""What an encoder costs a control step: milliseconds from raw frames to features: python -m benchmarks.control_step

python -m benchmarks.control_step --json control_step.json
python -m benchmarks.control_step --encoders runs/egom2p/encoder egodtm-tiny

Side by side in one run: EgoDTM-Tiny on 2 frames of 112 px, as shipped (four blocks, one image), EgoM2P-Tiny on 1, 5 and 9 frames of 64 px (1, 2 and 3 steps of tokens),
timm's ViT-Tiny on one image of 224 px, 16 x 16 pixels. Frames of 128 px, as the environments render them; one clip (one
environment) and a batch. Best of several calls, processor time of all threads.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pretrain.egodtm.encoder import EgoDTMEncoder
from pretrain.egodtm.video_vit import VideoViTConfig
from pretrain.egom2p.encoder import random_encoder
from pretrain.encoder import VideoEncoder, load_encoder

RENDERED_PX = 128


def main() -> int:
    """Run the benchmark; the exit status."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    encoders = {name: load_encoder(name) for name in arguments.encoders} if arguments.encoders else default_encoders()
    rows = [measure(name, encoder, arguments) for name, encoder in encoders.items()]
    for row in rows:
        print(
            f"{row['encoder']:<28} {row['frames']} x {row['image_size']:>3} px, {row['tokens']:>4} tokens: "
            f"{row['ms_one']:7.2f} ms alone, {row['ms_batched']:7.2f} ms a clip in a batch of {arguments.batch}"
        )
    result = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads, "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    first = rows[0]
    print(
        "ratios to "
        + f"{first['encoder']}: "
        + ", ".join(f"{row['encoder']} {row['ms_one'] / first['ms_one']:.2f}" for row in rows[1:])
    )
    return 0


def default_encoders() -> dict[str, VideoEncoder]:
    return {
        "EgoDTM-Tiny": EgoDTMEncoder(VideoViTConfig.of_size("tiny", frames=2, stem="conv"), name="EgoDTM-Tiny").eval(),
        "EgoDTM-Tiny as shipped": load_encoder("egodtm-tiny"),
        **{f"EgoM2P-Tiny, T = {frames}": random_encoder("tiny", seed=0, frames=frames) for frames in (1, 5, 9)},
        "timm ViT-Tiny": load_encoder("timm/vit_tiny_patch16_224"),
        "16 x 16 pixels": load_encoder("pixels-16x16"),
    }


def measure(name: str, encoder: VideoEncoder, arguments: argparse.Namespace) -> dict[str, Any]:
    spec = encoder.spec
    return {
        "encoder": name,
        "frames": spec.frames,
        "image_size": spec.image_size,
        "tokens": spec.tokens,
        "ms_one": _milliseconds(encoder, 1, arguments.repeats),
        "ms_batched": _milliseconds(encoder, arguments.batch, max(2, arguments.repeats // 4)) / arguments.batch,
    }


@torch.inference_mode()
def _milliseconds(encoder: VideoEncoder, batch: int, repeats: int) -> float:
    shape = (batch, encoder.spec.frames, RENDERED_PX, RENDERED_PX, 3)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(repeats + 1):
        began = time.process_time()
        encoder(encoder.preprocess(video))
        times.append(time.process_time() - began)
    return 1e3 * min(times[1:])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--encoders", nargs="*", default=[], help="names or artifacts, instead of the usual rows")
    parser.add_argument("--batch", type=int, default=25, help="clips in a batch: environments in lockstep")
    parser.add_argument("--repeats", type=int, default=20, help="calls, of which the best counts")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

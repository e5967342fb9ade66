"""Peak memory of the depth head's training step at 28, 56 and 112 px, plain and ours: python -m benchmarks.depth_memory

python -m benchmarks.depth_memory --json depth_memory.json
python -m benchmarks.depth_memory --check     # exits 1 when ours at 112 px takes more than 1.5 times plain 56 px

Head and grid are the published model's (ViT-B/16 at 224 px: 14 x 14 patches, 256 channels, 8 queries, 5 layers, all six
stages supervised, 4 frames); the step is the model's own, from patch tokens to gradients. Plain keeps every map for the
backward pass, as the authors do. Each figure is from a process of its own, above what it held before the step.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.peak_memory import in_fresh_process, measure
from pretrain.egodtm.depth_decoder import DepthDecoderConfig
from pretrain.egodtm.depth_losses import masked_depth_loss
from pretrain.egodtm.model import DECODER_SIZES, EgoDTM, EgoDTMConfig
from pretrain.egodtm.text import TextConfig
from pretrain.egodtm.video_vit import VideoViTConfig

ALLOWED_RATIO = 1.5
SCALES = {28: 2, 56: 4, 112: 8}
MODES = ("plain", "lean")
FRAMES = 4


def main() -> int:
    """Run the benchmark; the exit status."""
    arguments = _parse()
    if arguments.one:
        pixels, mode = arguments.one
        print(json.dumps(_one(int(pixels), mode, arguments.batch, torch.device(arguments.device))))
        return 0
    rows = [_fresh(arguments, pixels, mode) | {"pixels": pixels, "mode": mode} for pixels in SCALES for mode in MODES]
    found = {(row["pixels"], row["mode"]): row for row in rows}
    print(f"depth head of EgoDTM-Base, batch {arguments.batch} x {FRAMES} frames, {arguments.device}")
    print(f"{'depth map':>10} {'plain MiB':>10} {'ours MiB':>10} {'ours/plain':>11} {'time ours/plain':>16}")
    for pixels in SCALES:
        plain, lean = (found[pixels, mode] for mode in MODES)
        print(
            f"{pixels:>7} px {plain['peak_mib']:>10.0f} {lean['peak_mib']:>10.0f} "
            f"{lean['peak_mib'] / plain['peak_mib']:>11.2f} {lean['seconds'] / plain['seconds']:>16.2f}"
        )
    difference = found[112, "lean"]["loss"] / found[112, "plain"]["loss"] - 1
    gradient = found[112, "lean"]["gradient_norm"] / found[112, "plain"]["gradient_norm"] - 1
    print(f"112 px, ours against plain: loss {difference:+.1e}, norm of the gradient {gradient:+.1e} (relative)")
    ratio = found[112, "lean"]["peak_mib"] / found[56, "plain"]["peak_mib"]
    if arguments.json:
        result = {
            "batch": arguments.batch,
            "frames": FRAMES,
            "device": arguments.device,
            "threads": arguments.threads,
            "machine": platform.machine(),
            "torch": torch.__version__,
            "rows": rows,
            "ratio_112_ours_to_56_plain": ratio,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {arguments.json}")
    print(f"112 px ours takes {ratio:.2f} times the peak memory of 56 px plain (at most {ALLOWED_RATIO:g} allowed)")
    equal = max(abs(difference), abs(gradient)) < 1e-4
    return int(arguments.check and not (ratio <= ALLOWED_RATIO and equal))


def _fresh(arguments: argparse.Namespace, pixels: int, mode: str) -> dict[str, Any]:
    words = ["--one", str(pixels), mode, "--batch", str(arguments.batch), "--device", arguments.device]
    return in_fresh_process("benchmarks.depth_memory", words, threads=arguments.threads)


def _one(pixels: int, mode: str, batch: int, device: torch.device) -> dict[str, float]:
    """One step's peak, seconds, loss and norm of the gradient, in this process."""
    torch.manual_seed(0)
    # The towers' transformers play no part here.
    model = EgoDTM(
        EgoDTMConfig(
            video=VideoViTConfig.of_size("base", frames=FRAMES, layers=1),
            text=TextConfig.of_size("nano"),
            decoder=DepthDecoderConfig(**DECODER_SIZES["base"] | {"scale": SCALES[pixels]}),
        ),
        depth_memory=mode,
    ).to(device)
    tokens = torch.randn(batch, FRAMES * model.config.video.grid_side**2, model.config.video.width, device=device)
    tokens.requires_grad_()
    target = torch.rand(batch, FRAMES, pixels, pixels, device=device)
    losses = []

    def step(clips: int) -> None:
        stages = model.predict_depth(tokens[:clips])
        known = target[:clips]
        loss, _ = masked_depth_loss(stages, known, known > 0.1, error="l1", deep_supervision=True)
        loss.backward()
        losses.append(float(loss.detach()))

    step(1)  # libraries load their kernels
    model.zero_grad()
    tokens.grad = None
    result = measure(lambda: step(batch), device)
    assert tokens.grad is not None
    gradients = [tokens.grad, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return result | {"loss": losses[-1], "gradient_norm": float(norm)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4, help="clips of the step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help=f"exit 1 when the ratio is above {ALLOWED_RATIO:g}")
    parser.add_argument("--one", nargs=2, metavar=("PIXELS", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch < 1:
        parser.error(f"--batch {arguments.batch}: give at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

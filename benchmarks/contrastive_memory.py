"""Peak memory of a batch of 4096 by GradCache against a plain batch of its micro-batch: python -m benchmarks.contrastive_memory

python -m benchmarks.contrastive_memory --json contrastive_memory.json
python -m benchmarks.contrastive_memory --check   # exits 1 above 1.3 times, or when gradients differ by more than 1e-5

Everything a training process holds is counted, each in a process of its own: weights, AdamW's state, the raw clips, gradients,
activations. The model is EgoDTM with both objectives on small frames, so that a CPU gets through 4096 clips; the larger the
frames, the less the embeddings of 4096 clips weigh beside a micro-batch's activations.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from benchmarks.peak_memory import MIB, PeakMeter, in_fresh_process, measure
from pretrain.egodtm.depth_decoder import DepthDecoderConfig
from pretrain.egodtm.gradcache import GradCache
from pretrain.egodtm.model import DECODER_SIZES, EgoDTM, EgoDTMConfig, LossConfig, egodtm_loss
from pretrain.egodtm.text import TextConfig, tokenize
from pretrain.egodtm.video_vit import VideoViTConfig
from pretrain.loop import TrainerConfig, make_optimizer

ALLOWED_RATIO = 1.3
ALLOWED_DIFFERENCE = 1e-5
WARM_UP_CLIPS = 8


def main() -> int:
    """Run the benchmark; the exit status."""
    arguments = _parse()
    if arguments.one:
        batch, micro_batch = map(int, arguments.one)
        print(json.dumps(_one(arguments, batch, micro_batch)))
        return 0
    difference = gradient_difference(arguments)
    print(f"gradients of {arguments.check_batch} clips in micro-batches of 7: {difference:.1e} off those of the batch")
    rows = {
        "plain": _fresh(arguments, arguments.micro_batch, 0),
        "gradcache": _fresh(arguments, arguments.batch, arguments.micro_batch),
    }
    for name, row in rows.items():
        print(
            f"{name:>9}: {row['clips']:>5} clips, {row['peak_mib']:.0f} MiB at the peak, {row['resting_mib']:.0f} MiB of "
            f"it before the step; {row['seconds']:.1f} s a step, {row['clips'] / row['seconds']:.0f} clips a second"
        )
    ratio = rows["gradcache"]["peak_mib"] / rows["plain"]["peak_mib"]
    if arguments.json:
        result = {
            "model": {"size": arguments.size, "frames": arguments.frames, "image_size": arguments.image_size},
            "device": arguments.device,
            "threads": arguments.threads,
            "machine": platform.machine(),
            "torch": torch.__version__,
            "micro_batch": arguments.micro_batch,
            "rows": rows,
            "ratio": ratio,
            "gradient_difference": difference,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {arguments.json}")
    print(
        f"a batch of {arguments.batch} by GradCache takes {ratio:.2f} times the peak memory of a plain batch of "
        f"{arguments.micro_batch} (at most {ALLOWED_RATIO:g} allowed), gradients equal to {difference:.1e}"
    )
    return int(arguments.check and not (ratio <= ALLOWED_RATIO and difference <= ALLOWED_DIFFERENCE))


def make_model(arguments: argparse.Namespace) -> EgoDTM:
    torch.manual_seed(0)
    return EgoDTM(
        EgoDTMConfig(
            video=VideoViTConfig.of_size(arguments.size, frames=arguments.frames, image_size=arguments.image_size),
            text=TextConfig.of_size(arguments.size),
            decoder=DepthDecoderConfig(**DECODER_SIZES[arguments.size]),
        )
    ).to(arguments.device)


def make_batch(model: EgoDTM, clips: int) -> dict[str, Tensor]:
    """Raw clips as a loader gives them, in the processor's memory."""
    generator = torch.Generator().manual_seed(0)
    video, side = model.config.video, model.config.depth_size
    frames = (clips, video.frames, video.image_size, video.image_size, 3)
    depth = torch.rand(clips, video.frames, side, side, generator=generator)
    return {
        "video": torch.randint(0, 256, frames, dtype=torch.uint8, generator=generator),
        "text_ids": tokenize([f"#C C picks up the {index} can, left of the bowl" for index in range(clips)]),
        "depth": depth,
        "depth_valid": depth > 0.1,
    }


def step(model: EgoDTM, batch: dict[str, Tensor], micro_batch: int, fabric: Fabric, wrapped: Any) -> None:
    """Leaves the gradients of one training step in the model; micro_batch 0 is the plain step."""
    if micro_batch:
        GradCache(model, LossConfig(), micro_batch=micro_batch)(fabric, wrapped, batch)
        return
    batch = fabric.to_device(batch)
    loss, _ = egodtm_loss(
        wrapped(batch["video"], batch["text_ids"]),
        log_scale=model.log_scale,
        text_ids=batch["text_ids"],
        depth=batch["depth"],
        depth_valid=batch["depth_valid"],
        config=LossConfig(),
    )
    fabric.backward(loss)


def gradient_difference(arguments: argparse.Namespace) -> float:
    """Norm of the difference of the two steps' gradients by the norm of the plain one."""
    torch.set_num_threads(arguments.threads)
    found = []
    for micro_batch in (0, 7):
        model = make_model(arguments)
        fabric = _fabric(arguments)
        step(model, make_batch(model, arguments.check_batch), micro_batch, fabric, fabric.setup_module(model))
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append(torch.cat([gradient.double().flatten() for gradient in gradients]))
    return float((found[1] - found[0]).norm() / found[0].norm())


def _fabric(arguments: argparse.Namespace) -> Fabric:
    return Fabric(accelerator=arguments.device, devices=1, precision="32-true")


def _fresh(arguments: argparse.Namespace, batch: int, micro_batch: int) -> dict[str, Any]:
    words = ["--one", str(batch), str(micro_batch), "--size", arguments.size, "--device", arguments.device]
    words += ["--frames", str(arguments.frames), "--image-size", str(arguments.image_size)]
    found = in_fresh_process("benchmarks.contrastive_memory", words, threads=arguments.threads)
    return found | {"clips": batch}


def _one(arguments: argparse.Namespace, batch: int, micro_batch: int) -> dict[str, float]:
    """Peak of a process that trains, above its libraries; one step, after a small one that makes AdamW's state."""
    whole = PeakMeter(torch.device(arguments.device))
    model = make_model(arguments)
    fabric = _fabric(arguments)
    optimizer = make_optimizer(model, TrainerConfig())
    wrapped = fabric.setup_module(model)
    step(model, make_batch(model, WARM_UP_CLIPS), 0, fabric, wrapped)
    optimizer.step()
    optimizer.zero_grad()
    clips = make_batch(model, batch)

    def work() -> None:
        step(model, clips, micro_batch, fabric, wrapped)
        optimizer.step()

    result = measure(work, torch.device(arguments.device))
    result["resting_mib"] = whole.peak() / MIB - result["peak_mib"]
    result["peak_mib"] = whole.peak() / MIB
    return result


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=256)
    parser.add_argument("--check-batch", type=int, default=24, help="clips on which the gradients are compared")
    parser.add_argument("--size", default="tiny", help="of the model")
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=32, help="px")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help=f"exit 1 when the ratio is above {ALLOWED_RATIO:g}")
    parser.add_argument("--one", nargs=2, metavar=("CLIPS", "MICRO"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Losses of a few training steps on made-up data, against tests/golden/egodtm_tiny.json.

They change when the arithmetic of the model, a loss, the optimizer or the initialisation does. If that was meant:

    python tests/pretrain/test_golden.py        rewrites the file
"""

import json
import sys
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "egodtm_tiny.json"
STEPS = 3


def losses() -> list[dict[str, float]]:
    from pretrain.egodtm.model import EgoDTM, EgoDTMConfig, LossConfig, egodtm_loss
    from pretrain.egodtm.text import TextConfig, tokenize
    from pretrain.egodtm.video_vit import VideoViTConfig
    from pretrain.loop import TrainerConfig, make_optimizer

    torch.manual_seed(0)
    video_config = VideoViTConfig.of_size("tiny", frames=2, image_size=48)
    model = EgoDTM(EgoDTMConfig(video=video_config, text=TextConfig.of_size("tiny")))
    optimizer = make_optimizer(model, TrainerConfig(learning_rate=1e-4))
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (4, 2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    depth = torch.rand(4, 2, 12, 12, generator=generator)
    ids = tokenize([f"#C C {verb} the {noun}" for verb in ("opens", "pushes") for noun in ("drawer", "red can")])
    rows = []
    for _ in range(STEPS):
        loss, scalars = egodtm_loss(
            model(video, ids),
            log_scale=model.log_scale,
            text_ids=ids,
            depth=depth,
            depth_valid=depth > 0.1,
            config=LossConfig(),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows.append({name: round(float(value), 6) for name, value in scalars.items() if name != "accuracy"})
    return rows


def test_egodtm_losses_are_the_golden_ones() -> None:
    expected = json.loads(GOLDEN.read_text())
    found = losses()
    assert len(found) == len(expected) == STEPS
    for now, then in zip(found, expected, strict=True):
        # Another CPU sums in another order; a changed formula moves the losses far more than this.
        assert now == pytest.approx(then, rel=2e-3)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    torch.set_num_threads(1)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(losses(), indent=2) + "\n")
    print(f"wrote {GOLDEN}")

"""A small store of made-up clips: a coloured square slides over a sloping background, with its true depth."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.clips.build import build_store
from pretrain.clips.schema import Clip

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "yellow": (230, 210, 50)}
SIDES = ("left", "right")


def make_square_clip(index: int, *, frames: int = 8, size: int = 48) -> Clip:
    """Colour, direction and nearness follow from the index; the narration says colour and direction."""
    random = np.random.default_rng(index)
    colour = list(COLOURS)[index % len(COLOURS)]
    side = SIDES[(index // len(COLOURS)) % 2]
    near = float(random.uniform(0.4, 0.8))
    rgb = random.integers(90, 130, (frames, size, size, 3)).astype(np.uint8)
    depth = np.broadcast_to(np.linspace(2.0, 1.0, size, dtype=np.float32)[:, None], (frames, size, size)).copy()
    square, top = size // 3, int(random.integers(0, size - size // 3))
    for frame in range(frames):
        left = round(frame / (frames - 1) * (size - square))
        left = left if side == "right" else size - square - left
        rgb[frame, top : top + square, left : left + square] = COLOURS[colour]
        depth[frame, top : top + square, left : left + square] = near
    return Clip(
        key=f"square-{index:04d}",
        rgb=rgb,
        rgb_times_s=np.arange(frames) / 4.0,
        depth=depth,
        narration=f"#C C pushes the {colour} square to the {side}",
        captions=(f"C pushes the {colour} square, {near:.1f} m away, to the {side}", f"a {colour} square moves {side}"),
    )


def write_square_store(directory: Path, clips: int) -> Path:
    build_store(
        directory, make_square_clip, kind="squares", seed=0, settings={}, versions={}, n_clips=clips,
        clips_per_shard=16, workers=1,
    )  # fmt: skip
    return directory


@pytest.fixture(scope="session")
def square_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_square_store(tmp_path_factory.mktemp("squares"), 32)

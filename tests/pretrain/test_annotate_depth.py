"""Depth: checks, how relative depth is stored, alignment of frames, and Depth Anything's classes at a tiny size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.annotate.config import AnnotateConfig
from pretrain.annotate.depth import (
    DEPTH_TEACHERS,
    PSEUDO_FAR_M,
    PSEUDO_NEAR_M,
    DepthAnything,
    align_frames,
    estimate_depth,
    pseudo_depth,
)
from pretrain.annotate.records import StageFailed
from pretrain.annotate.weights import transformers
from pretrain.clips.codec import depth_from_mm, depth_to_mm
from pretrain.clips.dataset import normalise_inverse_depth
from pretrain.clips.schema import Clip


def make_clip(*, frames: int = 4, size: int = 40, depth: np.ndarray | None = None) -> Clip:
    """A still, textured view."""
    texture = np.random.default_rng(0).integers(0, 255, (size, size, 3)).astype(np.uint8)
    rgb = np.broadcast_to(texture, (frames, size, size, 3)).copy()
    return Clip(key="clip", rgb=rgb, rgb_times_s=np.arange(frames) / 8.0, depth=depth)


class Given:
    """A teacher that says what it is told."""

    name = "given"

    def __init__(self, depth: np.ndarray, *, metric: bool) -> None:
        self.depth, self.metric = depth.astype(np.float32), metric

    def estimate(self, clip: Clip) -> np.ndarray:
        return self.depth


def smooth_maps(frames: int = 4, size: int = 40) -> np.ndarray:
    """Inverse depth of a tilted surface with a nearer block, the same in every frame."""
    one = np.add.outer(np.linspace(0, 3, size), np.linspace(0, 1, size))
    one[10:20, 10:20] += 4
    return np.broadcast_to(one, (frames, size, size)).astype(np.float32)


def test_relative_depth_survives_the_store() -> None:
    maps = np.random.default_rng(0).normal(5, 2, (3, 40, 40)).astype(np.float32)
    stored = pseudo_depth(maps)
    assert stored.min() == pytest.approx(PSEUDO_NEAR_M) and stored.max() == pytest.approx(PSEUDO_FAR_M, rel=1e-5)
    # What training reads back, after the millimetres of the store, is the teacher's inverse depth scaled to [0, 1].
    read, valid = normalise_inverse_depth(depth_from_mm(depth_to_mm(stored)))
    wanted = (maps - maps.min()) / (maps.max() - maps.min())
    bound = 0.0005 / PSEUDO_NEAR_M / (1 - PSEUDO_NEAR_M / PSEUDO_FAR_M)
    assert valid.all()
    assert np.abs(read - wanted).max() < 1.1 * bound
    assert bound < 0.5 / 255  # better than the 8 bits of the published pipeline


def test_frames_get_one_scale_and_shift() -> None:
    maps = smooth_maps()
    scales, shifts = np.array([1.0, 2.0, 0.5, 3.0]), np.array([0.0, -1.0, 4.0, 0.3])
    given = (maps * scales[:, None, None] + shifts[:, None, None]).astype(np.float32)
    clip = make_clip()
    assert clip.rgb is not None
    assert np.allclose(align_frames(given, clip.rgb), maps, atol=0.02)
    aligned = estimate_depth(clip, Given(given, metric=False), align=True)
    assert np.abs(aligned[1:] / aligned[:1] - 1).max() < 0.02
    # Without alignment a frame that is wholly nearer could not be told from the others.
    given[2, 10:20, 10:20] += 8
    alone = estimate_depth(clip, Given(given, metric=False), align=False)
    assert np.allclose(alone.min((1, 2)), PSEUDO_NEAR_M) and np.allclose(alone.max((1, 2)), PSEUDO_FAR_M)


def test_metric_depth_is_kept() -> None:
    depth = np.random.default_rng(0).uniform(0.3, 2, (4, 40, 40)).astype(np.float32)
    depth[:, 0] = 0  # not known
    teacher = DEPTH_TEACHERS["truth"](AnnotateConfig(store="in", out="out"))
    assert np.array_equal(estimate_depth(make_clip(depth=depth), teacher, align=True), depth)
    with pytest.raises(StageFailed, match="no depth"):
        estimate_depth(make_clip(), teacher, align=True)


@pytest.mark.parametrize("metric", [True, False])
@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (np.full((40, 40), np.nan), "not finite"),
        (np.full((40, 40), np.inf), "not finite"),
        (np.full((40, 40), 2.0), "constant"),
    ],
)
def test_useless_depth_is_a_reason(frame: np.ndarray, reason: str, metric: bool) -> None:
    maps = smooth_maps() + 1
    maps[2] = frame
    with pytest.raises(StageFailed, match=reason):
        estimate_depth(make_clip(), Given(maps, metric=metric), align=True)


def test_a_frame_without_known_depth_is_a_reason() -> None:
    maps = smooth_maps() + 1
    maps[1] = 0
    with pytest.raises(StageFailed, match="no known depth"):
        estimate_depth(make_clip(), Given(maps, metric=True), align=True)


def save_tiny_depth_anything(directory: Path) -> Path:
    library = transformers()
    torch.manual_seed(0)
    backbone = library.Dinov2Config(
        image_size=42, patch_size=14, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2,
        out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = library.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[4, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    library.DepthAnythingForDepthEstimation(config).save_pretrained(directory)
    library.DPTImageProcessor(
        size={"height": 42, "width": 42}, ensure_multiple_of=14, keep_aspect_ratio=True
    ).save_pretrained(directory)
    return directory


def test_depth_anything_runs(tmp_path: Path) -> None:
    save_tiny_depth_anything(tmp_path)
    teacher = DepthAnything(str(tmp_path), "cpu")
    teacher.load()
    noise = np.random.default_rng(1).integers(0, 255, (5, 40, 60, 3)).astype(np.uint8)
    clip = Clip(key="clip", rgb=noise, rgb_times_s=np.arange(5) / 8.0)
    maps = teacher.estimate(clip)
    assert maps.shape == (5, 40, 60) and maps.dtype == np.float32 and not teacher.metric
    assert np.isfinite(maps).all() and np.ptp(maps) > 0
    # Frames do not see each other: alone or in a batch a frame gives the same map.
    alone = teacher.estimate(clip.replace(rgb=noise[4:], rgb_times_s=np.zeros(1)))[0]
    assert np.abs(alone - maps[4]).max() < 1e-3 * np.ptp(maps[4])


def test_missing_weights_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"depth_weights=.*absent: no such directory.*Depth-Anything-V2-Large-hf"):
        DepthAnything(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"no config\.json"):
        DepthAnything(str(tmp_path))

"""Clips as training samples: reproducible, in step with each other, and normalised as documented."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pretrain.clips.build import build_store
from pretrain.clips.dataset import (
    CROP_RATIO,
    CROP_SCALE,
    ClipDataset,
    choose_crop,
    choose_frames,
    collate_samples,
    normalise_inverse_depth,
)
from pretrain.clips.schema import Clip

SIZE, FRAMES = 64, 16


def coded_clip(index: int, depth: bool = True) -> Clip:
    """Red says the frame, green the row, blue the column; the depth says the row too."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    rgb = np.stack([np.stack([np.full_like(rows, 10 * t), 3 * rows, 3 * columns], -1) for t in range(FRAMES)])
    metres = np.broadcast_to(1 / (0.5 + rows / SIZE), (FRAMES, SIZE, SIZE)).astype(np.float32).copy()
    metres[:, :, :8] = 0
    return Clip(
        key=f"coded-{index}",
        rgb=rgb.astype(np.uint8),
        rgb_times_s=np.arange(FRAMES) / 8,
        depth=metres if depth else None,
        narration=f"#C C does {index}",
        captions=("the left hand is left of the can", "near")[: index % 3],
    )


def make(directory: Path, n: int = 4, **changes) -> Path:
    build_store(
        directory, partial(coded_clip, **changes), kind="coded", seed=0, settings={}, versions={},
        n_clips=n, clips_per_shard=2, workers=1,
    )  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def store_path(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("clips") / "store")


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


@pytest.mark.parametrize("train", [True, False])
def test_shapes_and_dtypes(store_path, train):
    sample = ClipDataset(store_path, frames=4, image_size=48, train=train).sample(1, 5)
    assert sample["video"].shape == (4, 48, 48, 3) and sample["video"].dtype == torch.uint8
    assert sample["depth"].shape == (4, 24, 24) and sample["depth"].dtype == torch.float32
    assert sample["depth_valid"].shape == (4, 24, 24) and sample["depth_valid"].dtype == torch.bool
    assert sample["depth"].min() >= 0 and sample["depth"].max() <= 1
    assert sample["key"] == "coded-1" and sample["narration"] == "#C C does 1"
    assert sample["captions"] == ("the left hand is left of the can",)


def test_a_sample_is_a_function_of_index_and_seed(store_path):
    dataset = ClipDataset(store_path, image_size=48)
    for index, seed in ((0, 0), (3, 12345678901)):
        assert_same(dataset.sample(index, seed), ClipDataset(store_path, image_size=48)[index, seed])
    assert not torch.equal(dataset.sample(0, 0)["video"], dataset.sample(0, 1)["video"])
    still = ClipDataset(store_path, image_size=48, train=False)
    assert_same(still.sample(0, 0), still.sample(0, 1))


def test_samples_do_not_depend_on_the_workers(store_path):
    dataset = ClipDataset(store_path, image_size=32)
    batches = [[(0, 7), (1, 8)], [(2, 9), (3, 10)]]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=2, collate_fn=collate_samples)
    for pairs, batch in zip(batches, loader, strict=True):
        assert batch["video"].shape == (2, 4, 32, 32, 3)
        assert_same(batch, collate_samples([dataset.sample(*pair) for pair in pairs]))


@pytest.mark.parametrize("seed", range(8))
def test_depth_shows_the_same_crop_and_frames_as_the_video(store_path, seed):
    sample = ClipDataset(store_path, image_size=48, depth_size=48).sample(0, seed)
    red = sample["video"][..., 0].float().mean((1, 2)) / 10
    np.testing.assert_allclose(red, sample["frame_indices"], atol=0.3)
    np.testing.assert_allclose(sample["times_s"], sample["frame_indices"] / 8)
    # Inverse depth is 0.5 + row / SIZE, so it goes from 0 to 1 over the rows of the crop; green is 3 * row.
    valid = sample["depth_valid"]
    row = sample["video"][..., 1].float() / 3
    first, last = row.min(), row.max()
    assert (first + sample["depth"] * (last - first) - row)[valid].abs().max() < 1.5
    assert sample["depth"].max() > 0.97 and sample["depth"][valid].min() < 0.03
    column = sample["video"][..., 2].float() / 3
    assert (column[~valid] < 9.5).all() and (column[valid] > 6.5).all()
    assert (sample["depth"][~valid] == 0).all()
    # The left side stays on the left: there is no flip.
    assert (column[:, :, -1] > column[:, :, 0]).all()


def test_a_store_without_depth_gives_a_mask_of_nothing(tmp_path):
    sample = ClipDataset(make(tmp_path / "store", 1, depth=False), image_size=32).sample(0, 0)
    assert not sample["depth_valid"].any() and not sample["depth"].any() and sample["video"].any()


def test_only_the_asked_parts(store_path):
    assert set(ClipDataset(store_path, fields=("text",)).sample(0, 0)) == {
        "key", "frame_indices", "times_s", "narration", "captions",
    }  # fmt: skip
    assert "video" not in ClipDataset(store_path, fields=("depth",), image_size=32).sample(0, 0)
    with pytest.raises(ValueError, match=r"'rgb'.* expected some of video, depth, text"):
        ClipDataset(store_path, fields=("rgb",))
    with pytest.raises(ValueError, match="crop_area of ClipDataset is 0"):
        ClipDataset(store_path, crop_area=0.0)
    with pytest.raises(ValueError, match="frames of ClipDataset is 0"):
        ClipDataset(store_path, frames=0)


@given(n=st.integers(1, 64), frames=st.integers(1, 16), seed=st.none() | st.integers(0, 1000))
def test_frames_are_one_of_each_part(n, frames, seed):
    chosen = choose_frames(n, frames, None if seed is None else np.random.default_rng(seed))
    assert chosen.shape == (frames,) and chosen.dtype == np.int64
    assert (np.diff(chosen) >= 0).all() and chosen[0] >= 0 and chosen[-1] < n
    edges = np.arange(frames + 1) * n / frames
    assert (chosen + 1 > edges[:-1]).all() and (chosen < edges[1:]).all()


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    seed=st.none() | st.integers(0, 1000),
    least=st.sampled_from([CROP_SCALE[0], 0.75, 0.95]),
)
def test_crops_lie_in_the_frame(height, width, seed, least):
    top, left, h, w = choose_crop(height, width, None if seed is None else np.random.default_rng(seed), least)
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0
    if seed is None:
        assert h == w == min(height, width)
    elif min(height, width) >= 50 and max(height, width) <= 1.3 * min(height, width):
        # Ten tries may all be too wide or too high for a large area: then it is the central square.
        assert (h == w == min(height, width)) or least * 0.95 <= h * w / (height * width) <= CROP_SCALE[1] * 1.0001
        assert CROP_RATIO[0] * 0.95 <= w / h <= CROP_RATIO[1] * 1.05


@settings(max_examples=50)
@given(st.lists(st.sampled_from([0.0, np.nan]) | st.floats(0.0625, 60, width=32), min_size=2, max_size=30))
def test_inverse_depth_formula(depths):
    depth = np.array(depths, np.float32).reshape(1, 1, -1)
    got, valid = normalise_inverse_depth(depth)
    known = depth[valid]
    assert valid.sum() == sum(d > 0 for d in depths) and (got[~valid] == 0).all() and got.dtype == np.float32
    if known.size and known.max() > known.min():
        near, far = known.min().astype(float), known.max().astype(float)
        expected = (1 / known.astype(float) - 1 / far) / (1 / near - 1 / far)
        np.testing.assert_allclose(got[valid], expected, atol=2e-2 if far / near < 1.001 else 1e-3)
    elif known.size:
        assert (got[valid] == 1).all()

"""Clips as training samples: a few frames with their inverse depth and the words for them."""

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch.utils.data import Dataset

from pretrain.clips.store import ClipStore, open_store

SAMPLE_FIELDS = ("video", "depth", "text")

# Random crops take this share of the image's area, with this ratio of width to height, as is usual for video.
CROP_SCALE = (0.5, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

# (top, left, height, width) in pixels of the stored frames.
Crop = tuple[int, int, int, int]


class ClipDataset(Dataset[dict[str, Any]]):
    """Map-style dataset over a clip store.

    A sample depends on (index, seed) alone, not on a worker's state, so a run that is resumed draws the same samples:
    use :meth:`sample`, or index with a pair ``dataset[index, seed]`` (a batch sampler that yields such pairs works with a
    DataLoader). ``dataset[index]`` is ``sample(index, 0)``.

    There is no horizontal flip: captions and labels say left and right, and a flip would make the left hand a right one.

    Args:
        store: an open store or its directory.
        frames: T, video frames a sample.
        image_size: H = W of the video in px.
        depth_size: h = w of the depth in px; None = half of ``image_size``.
        train: random frame times and crops; else the middle frames and the largest central square.
        crop_area: least share of the image's area that a random crop takes; the most is all of it.
        still_probability: chance, with ``train``, that all frames are the first one chosen, as a policy repeats what it has.
        fields: what to decode, of "video", "depth" and "text".

    Raises:
        ValueError: a wrong setting, naming it.
    """

    def __init__(
        self,
        store: ClipStore | str | os.PathLike[str],
        *,
        frames: int = 4,
        image_size: int = 112,
        depth_size: int | None = None,
        train: bool = True,
        crop_area: float = CROP_SCALE[0],
        still_probability: float = 0.0,
        fields: Sequence[str] = SAMPLE_FIELDS,
    ) -> None:
        self.store = store if isinstance(store, ClipStore) else open_store(store)
        self.frames = frames
        self.image_size = image_size
        self.depth_size = image_size // 2 if depth_size is None else depth_size
        self.train = train
        self.crop_area = crop_area
        self.still_probability = still_probability if train else 0.0
        self.fields = tuple(fields)
        unknown = sorted(set(fields) - set(SAMPLE_FIELDS))
        if unknown or not fields:
            raise ValueError(f"fields {unknown or '()'} of ClipDataset: expected some of {', '.join(SAMPLE_FIELDS)}")
        if not 0 < crop_area <= CROP_SCALE[1]:
            raise ValueError(f"crop_area of ClipDataset is {crop_area}: expected above 0 and at most {CROP_SCALE[1]}")
        for name in ("frames", "image_size", "depth_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of ClipDataset is {getattr(self, name)}: expected 1 or more")

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        return self.sample(*index) if isinstance(index, tuple) else self.sample(index, 0)

    def sample(self, index: int, seed: int) -> dict[str, Any]:
        """One training sample, the same for the same (index, seed).

        Returns:
            "key" str; "frame_indices" int64[T] and "times_s" float64[T] of the frames in the clip; and by ``fields``
            "video" uint8[T, H, W, 3] RGB;
            "depth" float32[T, h, w] inverse depth in [0, 1], near = 1 (see :func:`normalise_inverse_depth`), and
            "depth_valid" bool[T, h, w], False where the depth is not known (there "depth" is 0; all of it for a clip
            without depth); same frames and same crop as "video";
            "narration" str; "captions" tuple of str.
        """
        random = np.random.default_rng([seed, index])
        texts = ("narration", "captions") if "text" in self.fields else ()
        clip = self.store.read(index, ("rgb_times_s", *texts))
        assert clip.rgb_times_s is not None
        chosen = choose_frames(len(clip.rgb_times_s), self.frames, random if self.train else None)
        # A stream of its own: it does not move the crops.
        if self.still_probability and np.random.default_rng([seed, index, 1]).random() < self.still_probability:
            chosen = np.full_like(chosen, chosen[0])
        wanted = ["rgb"] if "video" in self.fields else []
        if "depth" in self.fields and "depth" in self.store.manifest["modalities"]:
            wanted.append("depth")
        # Clips of recordings may lack depth that others have.
        seen = self.store.read(index, wanted, frames=chosen.tolist(), missing_ok=True)
        sized = seen.depth if seen.rgb is None else seen.rgb
        height, width = (1, 1) if sized is None else sized.shape[1:3]
        crop = choose_crop(height, width, random if self.train else None, self.crop_area)

        sample: dict[str, Any] = {
            "key": clip.key,
            "frame_indices": torch.from_numpy(chosen),
            "times_s": torch.from_numpy(clip.rgb_times_s[chosen]),
        }
        if seen.rgb is not None:
            sample["video"] = torch.from_numpy(crop_video(seen.rgb, crop, self.image_size))
        if "depth" in self.fields:
            depth_inverse, valid = self._depth(seen.depth, crop)
            sample["depth"], sample["depth_valid"] = torch.from_numpy(depth_inverse), torch.from_numpy(valid)
        if "text" in self.fields:
            sample["narration"], sample["captions"] = clip.narration, clip.captions
        return sample

    def _depth(
        self, depth: Float32[np.ndarray, "T H W"] | None, crop: Crop
    ) -> tuple[Float32[np.ndarray, "T h w"], Bool[np.ndarray, "T h w"]]:
        if depth is None:
            shape = (self.frames, self.depth_size, self.depth_size)
            return np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
        depth_inverse, valid = normalise_inverse_depth(cut(depth, crop))
        return resize_maps(depth_inverse, self.depth_size), resize_maps(valid.view(np.uint8), self.depth_size).view(
            np.bool_
        )


def normalise_inverse_depth(
    depth: Float32[np.ndarray, "T H W"],
) -> tuple[Float32[np.ndarray, "T H W"], Bool[np.ndarray, "T H W"]]:
    """Inverse depth scaled to [0, 1], near = 1, as teachers of relative depth give it.

    ``d = (1/z - 1/z_far) / (1/z_near - 1/z_far)`` with z_near and z_far the least and the greatest known depth of all the
    frames given. A sample gives its T frames, cropped: one scale for all of them, so that what comes closer over time gets
    brighter, and only from what the encoder sees, so that the target can be told from its input. Not known (z <= 0 or not
    finite) gives 0 and valid False; where all known depths are equal they give 1.
    """
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        return np.zeros_like(depth), valid
    inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=valid)
    near, far = inverse.max(), inverse.min(where=valid, initial=np.inf)
    if near <= far:
        return valid.astype(np.float32), valid
    scaled = (inverse - far) / (near - far)
    return np.where(valid, np.clip(scaled, 0, 1), 0).astype(np.float32), valid


def choose_frames(n_frames: int, frames: int, random: np.random.Generator | None) -> np.ndarray:
    """One frame of each of ``frames`` equal parts of a clip: at random within its part, or its middle without ``random``.

    Returns int64[frames], never decreasing. With fewer frames in the clip than asked, some come twice.
    """
    offsets = np.full(frames, 0.5) if random is None else random.uniform(0, 1, frames)
    return np.minimum((np.arange(frames) + offsets) * n_frames / frames, n_frames - 1).astype(np.int64)


def choose_crop(height: int, width: int, random: np.random.Generator | None, least_area: float = CROP_SCALE[0]) -> Crop:
    """A random resized crop (area from ``least_area`` to CROP_SCALE's most, shape in CROP_RATIO), or the largest central square
    without ``random``."""
    side = min(height, width)
    if random is not None:
        for _ in range(10):
            area = random.uniform(least_area, CROP_SCALE[1]) * height * width
            ratio = np.exp(random.uniform(*np.log(CROP_RATIO)))
            crop_height, crop_width = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top = random.integers(height - crop_height + 1)
                left = random.integers(width - crop_width + 1)
                return int(top), int(left), crop_height, crop_width
    return (height - side) // 2, (width - side) // 2, side, side


def crop_video(video: UInt8[np.ndarray, "T H0 W0 3"], crop: Crop, size: int) -> UInt8[np.ndarray, "T H W 3"]:
    """Cuts all frames alike and resizes them to ``size``, with antialiasing when that makes them smaller."""
    frames = cut(video, crop)
    how = cv2.INTER_AREA if min(frames.shape[1:3]) >= size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (size, size), interpolation=how) for frame in frames])


def cut(frames: np.ndarray, crop: Crop) -> np.ndarray:
    """The part of [T, H, W, ...] frames in a crop, as a view."""
    top, left, height, width = crop
    return frames[:, top : top + height, left : left + width]


def resize_maps(maps: np.ndarray, size: int) -> np.ndarray:
    """Resizes [T, H, W] maps by the nearest pixel: a mean across an edge would be a depth where nothing is."""
    return np.stack([cv2.resize(map_, (size, size), interpolation=cv2.INTER_NEAREST_EXACT) for map_ in maps])


def collate_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: tensors get a leading axis B, texts and keys become lists."""
    return {
        name: torch.stack([sample[name] for sample in samples])
        if isinstance(value, torch.Tensor)
        else [s[name] for s in samples]
        for name, value in samples[0].items()
    }

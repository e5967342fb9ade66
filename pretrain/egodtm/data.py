"""From clips to EgoDTM's batches: frames, inverse depth, and one text a clip, at random the narration or a richer caption."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from pretrain.batches import SampleId
from pretrain.clips.dataset import CROP_SCALE, ClipDataset
from pretrain.egodtm.text import tokenize

# Clips that validation looks at are the same for every seed, so that runs can be compared on them.
_VALIDATION_SEED = 20250303


# How inverse depth comes into [0, 1]. "range": the nearest and the farthest pixel are 1 and 0, as teachers of relative depth give it.
# "spread": the clip's mean is 1/2 and SPREADS mean deviations from it are 0 and 1, so that a finger close to the camera does not decide
# what all else is worth.
DEPTH_SCALINGS = ("range", "spread")
SPREADS = 3.0


class LoadBatch:
    """Sample ids to a batch; a pure function of them, and picklable for worker processes.

    A batch has "video" uint8[B, T, H, W, 3], "text_ids" int64[B, L], and with depth "depth" float32[B, T, h, w] in [0, 1]
    (inverse depth, scaled as `depth_scaling` says) and "depth_valid" bool[B, T, h, w].

    Args:
        depth_size: side of the depth maps; 0 leaves depth out.
        caption_probability: chance that a clip's narration is replaced by one of its enriched captions. One text a clip
            and step, as the published log's single contrastive loss says; the published probability is not known.
        train: random frame times, crops and captions; else the middle frames, the centre, and the narration.
        depth_scaling: of DEPTH_SCALINGS.
        crop_area, still_probability: see ClipDataset.
        colour_jitter: strength of random light and colour with `train`, one a clip, see `jitter_colour`.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        frames: int,
        image_size: int,
        depth_size: int,
        caption_probability: float,
        context_length: int,
        train: bool,
        depth_scaling: str = DEPTH_SCALINGS[0],
        crop_area: float = CROP_SCALE[0],
        still_probability: float = 0.0,
        colour_jitter: float = 0.0,
    ) -> None:
        self.dataset = ClipDataset(
            data,
            frames=frames,
            image_size=image_size,
            depth_size=depth_size or None,
            train=train,
            crop_area=crop_area,
            still_probability=still_probability,
            fields=("video", "depth", "text") if depth_size else ("video", "text"),
        )
        self.caption_probability = caption_probability if train else 0.0
        self.depth_scaling = depth_scaling
        self.colour_jitter = colour_jitter if train else 0.0
        self.context_length = context_length
        self.with_depth = depth_size > 0

    def __call__(self, ids: Sequence[SampleId]) -> dict[str, Any]:
        samples = [self._sample(index, seed) for index, seed in ids]
        texts = [
            choose_text(sample["narration"], sample["captions"], self.caption_probability, seed)
            for sample, (_, seed) in zip(samples, ids, strict=True)
        ]
        batch = {
            "video": torch.stack([sample["video"] for sample in samples]),
            "text_ids": tokenize(texts, self.context_length),
        }
        if self.with_depth:
            batch["depth"] = torch.stack([sample["depth"] for sample in samples])
            batch["depth_valid"] = torch.stack([sample["depth_valid"] for sample in samples])
        return batch

    def _sample(self, index: int, seed: int) -> dict[str, Any]:
        sample = self.dataset.sample(index, seed)
        if self.with_depth and self.depth_scaling == "spread":
            sample["depth"] = by_spread(sample["depth"], sample["depth_valid"])
        if self.colour_jitter:
            # Apart from the streams that crop the same clip and choose its text.
            random = np.random.default_rng([seed, index, 2])
            sample["video"] = torch.from_numpy(jitter_colour(sample["video"].numpy(), self.colour_jitter, random))
        return sample


def by_spread(depth: Float[torch.Tensor, "T h w"], valid: Bool[torch.Tensor, "T h w"]) -> Float[torch.Tensor, "T h w"]:
    """Values of any scale and offset to [0, 1], see DEPTH_SCALINGS; 1/2 throughout where they do not vary, 0 where they are not valid."""
    count = valid.sum().clamp(min=1)
    centred = torch.where(valid, depth, 0.0)
    centred = torch.where(valid, depth - centred.sum() / count, 0.0)
    spread = centred.abs().sum() / count
    return torch.where(valid, (0.5 + centred / (2 * SPREADS * spread.clamp(min=1e-6))).clamp(0, 1), 0.0)


def jitter_colour(
    video: UInt8[np.ndarray, "T H W 3"], strength: float, random: np.random.Generator
) -> UInt8[np.ndarray, "T H W 3"]:
    """Each channel times exp(N(0, strength)) exp(N(0, strength)), the second factor the same for all, plus N(0, strength / 3) of the range."""
    gain = np.exp(random.normal(0, strength, 3) + random.normal(0, strength))
    offset = 255 * random.normal(0, strength / 3, 3)
    values = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).round().astype(np.uint8)
    return values[video, np.arange(3)]


def choose_text(narration: str, captions: Sequence[str], probability: float, seed: int) -> str:
    """The narration, or with the given probability one of the enriched captions (if the clip has any)."""
    # Apart from the stream that augments the same clip.
    random = np.random.default_rng([seed, 1])
    if captions and random.random() < probability:
        return captions[random.integers(len(captions))]
    return narration


def split_clips(clips: int, val_fraction: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(training clips, validation clips), disjoint and in order; the split depends on nothing but the two numbers."""
    held_out = round(clips * val_fraction)
    order = np.random.default_rng(_VALIDATION_SEED).permutation(clips)
    return tuple(sorted(order[held_out:].tolist())), tuple(sorted(order[:held_out].tolist()))

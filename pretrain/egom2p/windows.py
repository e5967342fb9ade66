"""From a clip store to model-space arrays: two-second windows of clips that may be longer, and only what they need decoded.

A clip of four seconds and more is several windows, side by side, as the authors cut their chunks in halves.

Axes: as in pretrain.egom2p.modalities.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pretrain.clips.schema import Clip
from pretrain.clips.store import ClipStore
from pretrain.egom2p.modalities import (
    CLIP_S,
    MODALITIES,
    SEQUENCE_HZ,
    SEQUENCE_SAMPLES,
    VIDEO,
    VIDEO_FRAMES,
    VIDEO_HZ,
)

_FRAME_FIELDS = ("rgb", "depth", "segmentation", "contact")
# Sequences and their rates.
_SEQUENCES = {"world_from_camera": "camera_hz", "gaze": "gaze_hz", "hands": "hands_hz"}


def read_modalities(store: ClipStore, index: int, modalities: Sequence[str]) -> Clip:
    """The fields of a clip that these modalities need, as far as it has them.

    Raises:
        ValueError: a damaged shard.
    """
    wanted = dict.fromkeys(field for name in modalities for field in MODALITIES[name].fields)
    # Gaze needs the size of the picture alone.
    frames = None if {"rgb_times_s", "depth"} & wanted.keys() else [0]
    try:
        return store.read(index, tuple(wanted), frames=frames if "rgb" in wanted else None)
    except ValueError:
        # It lacks some of them, or it is damaged, which this says again.
        return store.read(index, frames=frames)


def window_count(clip: Clip) -> int:
    """How many whole windows the longest of its modalities fills; at least 1, so that a short clip is looked at too."""
    lengths_s = [len(values) / getattr(clip, rate) for values, rate in _sequences(clip).values()]
    lengths_s.append(clip.duration_s or 0.0)
    return max(1, math.floor(max(lengths_s) / CLIP_S + 1e-6))


def random_start_s(clip: Clip, modality: str, random: np.random.Generator) -> float:
    """When a window of one modality starts that lies in the clip; 0 where there is no choice."""
    if MODALITIES[modality].kind == VIDEO:
        if clip.rgb_times_s is None:
            return 0.0
        times_s = clip.rgb_times_s - clip.rgb_times_s[0]
        fitting = times_s[times_s + (VIDEO_FRAMES - 1) / VIDEO_HZ <= times_s[-1] + 1e-6]
        return float(fitting[random.integers(len(fitting))]) if len(fitting) else 0.0
    present = _sequences(clip)
    starts_s = [
        np.arange(len(values) - round((SEQUENCE_SAMPLES - 1) / SEQUENCE_HZ * getattr(clip, rate))) / getattr(clip, rate)
        for field, (values, rate) in present.items()
        if field in MODALITIES[modality].fields
    ]
    # Of several sequences the one with the fewest places to start leaves room for all.
    fitting = min(starts_s, key=lambda places: places[-1] if len(places) else 0.0, default=np.zeros(0))
    return float(fitting[random.integers(len(fitting))]) if len(fitting) else 0.0


def cut_window(clip: Clip, start_s: float) -> Clip:
    """The clip from a time on. What is past the window's end stays: to_array takes no more than it needs."""
    if start_s <= 0:
        return clip
    changes = {}
    for field, (values, rate) in _sequences(clip).items():
        # Something must stay, so that the modality is found too short and not absent.
        changes[field] = values[min(round(start_s * getattr(clip, rate)), len(values) - 1) :]
    if clip.rgb_times_s is not None:
        times_s = clip.rgb_times_s - clip.rgb_times_s[0]
        first = int(np.abs(times_s - start_s).argmin())
        changes["rgb_times_s"] = clip.rgb_times_s[first:]
        for field in _FRAME_FIELDS:
            if getattr(clip, field) is not None:
                changes[field] = getattr(clip, field)[first:]
    return replace(clip, **changes)


def random_square(clip: Clip, random: np.random.Generator, least_side: float) -> Clip:
    """rgb and depth cut to a random square of at least `least_side` times the largest one's side. No flips: a left hand
    would become a right one."""
    pictures = {field: getattr(clip, field) for field in ("rgb", "depth") if getattr(clip, field) is not None}
    if not pictures:
        return clip
    height, width = next(iter(pictures.values())).shape[1:3]
    largest = min(height, width)
    side = int(random.integers(max(1, math.ceil(largest * least_side)), largest + 1))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    cut = {field: values[:, top : top + side, left : left + side] for field, values in pictures.items()}
    # Of the rest nothing looks at pixels; ids and intrinsics of the whole picture would no longer fit.
    return replace(clip, segmentation=None, intrinsics=None, **cut)


def _sequences(clip: Clip) -> dict[str, tuple[np.ndarray, str]]:
    """Field -> (its samples, name of its rate) of those that the clip has."""
    found = {field: (getattr(clip, field, None), rate) for field, rate in _SEQUENCES.items()}
    return {field: (values, rate) for field, (values, rate) in found.items() if values is not None}

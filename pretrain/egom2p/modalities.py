"""The modalities of EgoM2P: one table, a row each. A fifth modality is one row here and one tokenizer.

A row says how a clip becomes the array its tokenizer takes ("model space": floats near [-1, 1], everything a clip cannot
say masked) and how the tokenizer's output becomes physical units again. Published: rgb, depth, gaze and camera
(arXiv 2506.07886); hands, the 3D joints of both, are ours, for the authors name them as missing.

Axes: T video frames, P samples of a sequence, S side of the square image in pixels, J joints of a hand, C channels.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from pretrain.clips.dataset import normalise_inverse_depth
from pretrain.clips.schema import HAND_JOINTS, Clip
from pretrain.egom2p.camera import CAMERA_CHANNELS, poses_from_9d, poses_to_9d, relative_to_first

# Two seconds: 16 video frames at 8 Hz, 60 samples of a sequence at 30 Hz.
CLIP_S = 2.0
VIDEO_FRAMES, VIDEO_HZ = 16, 8.0
SEQUENCE_SAMPLES, SEQUENCE_HZ = 60, 30.0

# Gaze a little outside the image is still a direction; farther out it is a blink or a failure of the tracker.
GAZE_RANGE = (-0.2, 1.2)

HANDS_CHANNELS = 2 * len(HAND_JOINTS) * 3

VIDEO, SEQUENCE = "video", "sequence"


class ModalityMissing(ValueError):
    """A clip that cannot give a modality; the text says why, in few words that can be counted."""


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """How many tokens a tokenizer makes of one clip, and of how many kinds.

    Attributes:
        shape: (t, h, w) of a video, (n,) of a sequence; tokens are flattened row by row.
        vocabulary: ids are 0 to vocabulary - 1.
    """

    shape: tuple[int, ...]
    vocabulary: int

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ValueError(f"token grid: expected (t, h, w) or (n,) of positive numbers, got {self.shape}")
        if self.vocabulary < 2:
            raise ValueError(f"token grid: expected a vocabulary of at least 2, got {self.vocabulary}")

    @property
    def tokens(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Modality:
    """A row of MODALITIES.

    Attributes:
        kind: VIDEO or SEQUENCE, which says what its positions look like and which tokenizer fits.
        channels: C of the array the tokenizer takes, masks included; decoded_channels: of what it gives back.
        published: its grid of tokens in the published model; None for ours.
        fields: of a Clip that to_array looks at, so that no more is decoded.
        to_array: (clip, S) -> float32 [C, T, S, S] of a video or [P, C] of a sequence. Raises ModalityMissing.
        to_physical: (decoded float32 array of one clip, its context) -> what a user wants, see each function.
    """

    kind: str
    channels: int
    decoded_channels: int
    published: TokenGrid | None
    fields: tuple[str, ...]
    to_array: Callable[[Clip, int], Float32[np.ndarray, "..."]]
    to_physical: Callable[[Float32[np.ndarray, "..."], Mapping[str, Any]], np.ndarray]

    def input_shape(self, size: int) -> tuple[int, ...]:
        """Shape of one clip's array for images of S = `size`."""
        if self.kind == VIDEO:
            return (self.channels, VIDEO_FRAMES, size, size)
        return (SEQUENCE_SAMPLES, self.channels)


# ------------------------------------------------------------------------------------------------------------- video


def square_window(height: int, width: int) -> tuple[int, int, int]:
    """(top, left, side) of the largest central square."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def video_frames(clip: Clip, count: int = VIDEO_FRAMES) -> np.ndarray:
    """Which frames of the clip are the ones at 8 Hz over two seconds, int64[count].

    Raises:
        ModalityMissing: the clip has no times, or is too short.
    """
    if clip.rgb_times_s is None:
        raise ModalityMissing("no frame times")
    times = clip.rgb_times_s - clip.rgb_times_s[0]
    wanted = np.arange(count) / VIDEO_HZ
    nearest = np.abs(times[None, :] - wanted[:, None]).argmin(axis=1)
    # Half a frame's distance is what a clip of this rate can be off by; more means that the clip is too short.
    if np.abs(times[nearest] - wanted).max() > 0.5 / VIDEO_HZ + 1e-6:
        raise ModalityMissing(f"shorter than {CLIP_S:g} s of video")
    return nearest


def _rgb_array(clip: Clip, size: int) -> Float32[np.ndarray, "3 T S S"]:
    if clip.rgb is None:
        raise ModalityMissing("no rgb")
    frames = clip.rgb[video_frames(clip)]
    top, left, side = square_window(*frames.shape[1:3])
    cut = frames[:, top : top + side, left : left + side]
    how = cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR
    if side != size:
        cut = np.stack([cv2.resize(frame, (size, size), interpolation=how) for frame in cut])
    return np.ascontiguousarray(cut.transpose(3, 0, 1, 2)).astype(np.float32) / 127.5 - 1


def _rgb_physical(array: Float32[np.ndarray, "3 T S S"], _: Mapping[str, Any]) -> np.ndarray:
    """uint8[T, S, S, 3]."""
    pixels = np.clip((array + 1) * 127.5, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 3, 0))


def _depth_array(clip: Clip, size: int) -> Float32[np.ndarray, "3 T S S"]:
    """Inverse depth scaled to [0, 1] over the whole clip, as gray video: what teachers of relative depth can give."""
    if clip.depth is None:
        raise ModalityMissing("no depth")
    depth = clip.depth[video_frames(clip)]
    top, left, side = square_window(*depth.shape[1:3])
    inverse, valid = normalise_inverse_depth(depth[:, top : top + side, left : left + side])
    if not valid.any():
        raise ModalityMissing("depth nowhere known")
    if side != size:
        how = cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR
        inverse = np.stack([cv2.resize(frame, (size, size), interpolation=how) for frame in inverse])
    return np.repeat((inverse * 2 - 1)[None], 3, axis=0).astype(np.float32)


def _depth_physical(array: Float32[np.ndarray, "3 T S S"], _: Mapping[str, Any]) -> np.ndarray:
    """float32[T, S, S] inverse depth in [0, 1], near = 1; its scale and shift are the clip's own and not known."""
    return np.clip((array.mean(axis=0) + 1) / 2, 0, 1).astype(np.float32)


# --------------------------------------------------------------------------------------------------------- sequences


def _at_30_hz(values: np.ndarray, rate_hz: float, what: str) -> np.ndarray:
    """The nearest sample to each of the 60 times."""
    wanted_s = np.arange(SEQUENCE_SAMPLES) / SEQUENCE_HZ
    nearest = np.round(wanted_s * rate_hz).astype(np.int64)
    # The last sample may stand for the times just after it, as far as half the gap between two.
    if nearest[-1] > len(values):
        raise ModalityMissing(f"shorter than {CLIP_S:g} s of {what}")
    return values[np.minimum(nearest, len(values) - 1)]


def _gaze_array(clip: Clip, _: int) -> Float32[np.ndarray, "P 3"]:
    """x, y of the central square scaled to [-1, 1], and a mask: 0 for a gap or a place outside GAZE_RANGE."""
    if clip.gaze is None:
        raise ModalityMissing("no gaze")
    if clip.rgb is None:
        raise ModalityMissing("gaze without the image it is in")
    top, left, side = square_window(*clip.rgb.shape[1:3])
    gaze = (_at_30_hz(clip.gaze, clip.gaze_hz, "gaze") - (left, top)) / side
    low, high = GAZE_RANGE
    with np.errstate(invalid="ignore"):
        valid = ((gaze >= low) & (gaze <= high)).all(axis=1)
    if not valid.any():
        raise ModalityMissing("gaze NaN or outside the image all through")
    scaled = np.where(valid[:, None], gaze * 2 - 1, 0)
    return np.concatenate([scaled, valid[:, None]], axis=1).astype(np.float32)


def _gaze_physical(array: Float32[np.ndarray, "P 2"], context: Mapping[str, Any]) -> np.ndarray:
    """float32[P, 2] pixels (x, y) of the clip's full image; `context["image"]` is its (height, width)."""
    top, left, side = square_window(*context["image"])
    return ((array[:, :2] + 1) / 2 * side + (left, top)).astype(np.float32)


def _camera_array(clip: Clip, _: int) -> Float32[np.ndarray, "P 9"]:
    if clip.world_from_camera is None:
        raise ModalityMissing("no camera poses")
    poses = torch.from_numpy(_at_30_hz(clip.world_from_camera, clip.camera_hz, "camera poses"))
    try:
        return poses_to_9d(relative_to_first(poses)).numpy().astype(np.float32)
    except ValueError:
        raise ModalityMissing("camera poses that are no rigid motions") from None


def _camera_physical(array: Float32[np.ndarray, "P 9"], _: Mapping[str, Any]) -> np.ndarray:
    """float32[P, 4, 4] world_from_camera, the world being the camera of the first sample: made so by taking that out."""
    return relative_to_first(poses_from_9d(torch.from_numpy(np.asarray(array, np.float32)))).numpy()


def _hands_array(clip: Clip, _: int) -> Float32[np.ndarray, "P C"]:
    """Joints of the left, then the right hand, in the first camera's frame, metres; then one validity a hand."""
    hands = clip.hands
    if hands is None:
        raise ModalityMissing("no hands")
    if clip.world_from_camera is None:
        raise ModalityMissing("hands without camera poses")
    if hands.shape[2] != len(HAND_JOINTS):
        raise ModalityMissing(f"hands of {hands.shape[2]} joints instead of {len(HAND_JOINTS)}")
    joints = _at_30_hz(hands, clip.hands_hz, "hands").astype(np.float64)
    first = clip.world_from_camera[0]
    local = (joints - first[:3, 3]) @ first[:3, :3]
    valid = np.isfinite(local).all(axis=(2, 3))
    if not valid.any():
        raise ModalityMissing("hands known nowhere")
    local = np.where(valid[:, :, None, None], local, 0)
    return np.concatenate([local.reshape(SEQUENCE_SAMPLES, -1), valid], axis=1).astype(np.float32)


def _hands_physical(array: Float32[np.ndarray, "P C"], _: Mapping[str, Any]) -> np.ndarray:
    """float32[P, 2, J, 3] metres in the first camera's frame, left hand first."""
    return np.asarray(array[:, :HANDS_CHANNELS], np.float32).reshape(-1, 2, len(HAND_JOINTS), 3)


# ------------------------------------------------------------------------------------------------------------- table

_PUBLISHED_VIDEO = TokenGrid(shape=(5, 32, 32), vocabulary=64000)
_PUBLISHED_SEQUENCE = TokenGrid(shape=(30,), vocabulary=256)

MODALITIES: dict[str, Modality] = {
    "rgb": Modality(
        kind=VIDEO, channels=3, decoded_channels=3, published=_PUBLISHED_VIDEO,
        fields=("rgb", "rgb_times_s"), to_array=_rgb_array, to_physical=_rgb_physical,
    ),
    "depth": Modality(
        kind=VIDEO, channels=3, decoded_channels=3, published=_PUBLISHED_VIDEO,
        fields=("depth", "rgb_times_s"), to_array=_depth_array, to_physical=_depth_physical,
    ),
    "gaze": Modality(
        kind=SEQUENCE, channels=3, decoded_channels=2, published=_PUBLISHED_SEQUENCE,
        fields=("gaze", "rgb"), to_array=_gaze_array, to_physical=_gaze_physical,
    ),
    "camera": Modality(
        kind=SEQUENCE, channels=CAMERA_CHANNELS, decoded_channels=CAMERA_CHANNELS, published=_PUBLISHED_SEQUENCE,
        fields=("world_from_camera",), to_array=_camera_array, to_physical=_camera_physical,
    ),
    "hands": Modality(
        kind=SEQUENCE, channels=HANDS_CHANNELS + 2, decoded_channels=HANDS_CHANNELS, published=None,
        fields=("hands", "world_from_camera"), to_array=_hands_array, to_physical=_hands_physical,
    ),
}  # fmt: skip

# What EgoM2P was published with.
PUBLISHED = ("rgb", "depth", "gaze", "camera")


def require_modalities(names: Mapping[str, Any] | tuple[str, ...], field: str) -> None:
    """Raises ValueError for a name that is no row of MODALITIES."""
    if unknown := [name for name in names if name not in MODALITIES]:
        raise ValueError(f"{field}: unknown modality {unknown[0]!r}; expected some of {', '.join(MODALITIES)}")


def batch_arrays(arrays: list[np.ndarray]) -> Tensor:
    """float32 [B, ...] of the arrays of several clips."""
    return torch.from_numpy(np.stack(arrays))

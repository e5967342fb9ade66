"""Depth of a recording at a time, from the files in which data sets keep it."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from pretrain.clips.sources.numbers import load_array
from pretrain.clips.sources.recording import DEPTH_UNREADABLE
from pretrain.clips.sources.resample import RecordingError
from pretrain.clips.video import VideoError, read_gray16

# Timestamps are rounded to milliseconds at worst: to less than so much of a frame.
_ROUNDING = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class DepthImages:
    """One uint16 image a moment.

    Attributes:
        paths, times_s: the files and when each was taken, increasing, on the recording's clock.
        units_per_m: what the files hold for a metre; 0 = unknown depth.
        max_gap_s: depth that was taken further from the time asked is none.
    """

    paths: tuple[Path, ...]
    times_s: Float64[np.ndarray, " n"]
    units_per_m: float
    max_gap_s: float

    def __call__(self, time_s: float) -> Float32[np.ndarray, "H W"]:
        index = int(np.argmin(np.abs(self.times_s - time_s)))
        if abs(self.times_s[index] - time_s) > self.max_gap_s:
            raise RecordingError(DEPTH_UNREADABLE, f"none near {time_s:.3f} s")
        path = self.paths[index]
        depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if depth is None or depth.dtype != np.uint16 or depth.ndim != 2:
            raise RecordingError(DEPTH_UNREADABLE, f"{path.name}: not a whole image of uint16")
        return depth.astype(np.float32) / np.float32(self.units_per_m)


@dataclass(frozen=True, kw_only=True)
class DepthVideo:
    """A lossless video of uint16, whose frames belong to those of another video by their number, whatever rate it states.

    Attributes:
        path: the file.
        hz: frames of it for each second of the recording's clock.
        stated_hz: frames of it for each second of its own clock.
        units_per_m: what it holds for a metre; 0 = unknown depth.
    """

    path: Path
    hz: float
    stated_hz: float
    units_per_m: float

    def __call__(self, time_s: float) -> Float32[np.ndarray, "H W"]:
        # Times are those of frames, but for the rounding of timestamps; and the middle of the time for which it is shown.
        middle_s = (int(time_s * self.hz + _ROUNDING) + 0.5) / self.stated_hz
        try:
            (depth,) = read_gray16(self.path, [middle_s])
        except VideoError as error:
            raise RecordingError(DEPTH_UNREADABLE, error.detail) from None
        return depth.astype(np.float32) / np.float32(self.units_per_m)


@dataclass(frozen=True, kw_only=True)
class DepthArray:
    """An npz with the depth of all frames in metres.

    Attributes:
        path: the file, whose ``name`` is [n, H, W].
        hz: samples a second, the first at 0.
    """

    path: Path
    name: str
    hz: float

    def __call__(self, time_s: float) -> Float32[np.ndarray, "H W"]:
        maps = _load_maps(self.path, self.name)
        index = round(time_s * self.hz)
        if not 0 <= index < len(maps):
            raise RecordingError(DEPTH_UNREADABLE, f"{self.path.name}: none at {time_s:.3f} s, it has {len(maps)}")
        return maps[index]


# The frames of a clip lie in one file.
@lru_cache(maxsize=1)
def _load_maps(path: Path, name: str) -> Float32[np.ndarray, "n H W"]:
    maps = load_array(path, name=name).astype(np.float32)
    if maps.ndim != 3:
        raise RecordingError(DEPTH_UNREADABLE, f"{path.name}: {name} is {maps.shape}, expected [n, H, W]")
    return maps

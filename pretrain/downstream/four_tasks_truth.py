"""What is true of a clip in EgoM2P's four tasks, and the figures of one predicted array.

Truth is read as the model reads its input: the two seconds, the rates and the central square of the image come from the rows
of MODALITIES, so that prediction and truth are of the same times and pixels. Only depth is taken in metres.

Axes: T video frames, P samples of a sequence, S side of the square in pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from pretrain.clips.dataset import cut, normalise_inverse_depth, resize_maps
from pretrain.clips.schema import Clip
from pretrain.downstream.depth_errors import aligned_errors
from pretrain.downstream.gaze import Window, gaze_angle_degrees, gaze_mse, normalised
from pretrain.downstream.generation import psnr, ssim
from pretrain.downstream.perceptual import Lpips
from pretrain.downstream.trajectory import ALIGNMENTS, trajectory_errors
from pretrain.egom2p.modalities import MODALITIES, ModalityMissing, square_window, video_frames

TASKS = ("gaze", "camera", "depth", "rgb")
# What says in a clip's meta which video it was cut from; clips of one are not independent.
_GROUP_KEYS = ("recording", "video_uid", "video_id")
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A clip's truth; None = the clip does not say, for the reason in `missing`.

    Attributes:
        group: the video that it was cut from, or its own key.
        window: the central square in the image.
        frame_times_s: of the T frames.
        intrinsics: of the whole image; square_intrinsics: of `rgb`.
        gaze_px: of the whole image; NaN where it does not count.
        camera: world_from_camera, the world being the first camera.
        metres: depth of the square, S x S; known: where.
        depth_is_relative: `metres` are in no unit.
        rgb: the square, S x S.
    """

    key: str
    group: str
    window: Window
    frame_times_s: Float64[np.ndarray, " T"] | None
    intrinsics: Float64[np.ndarray, "3 3"] | None
    gaze_px: Float32[np.ndarray, "P 2"] | None
    camera: Float32[np.ndarray, "P 4 4"] | None
    metres: Float32[np.ndarray, "T S S"] | None
    known: Bool[np.ndarray, "T S S"] | None
    depth_is_relative: bool
    rgb: UInt8[np.ndarray, "T S S 3"] | None
    missing: Mapping[str, str]

    @property
    def inverse_depth(self) -> Float32[np.ndarray, "T S S"] | None:
        """Scaled to [0, 1] over the clip, as the model is given it."""
        return None if self.metres is None else normalise_inverse_depth(self.metres)[0]

    @property
    def square_intrinsics(self) -> Float64[np.ndarray, "3 3"] | None:
        if self.intrinsics is None or self.rgb is None:
            return None
        top, left, side = self.window
        square = self.intrinsics.copy()
        square[:2, 2] -= (left, top)
        square[:2] *= self.rgb.shape[1] / side
        return square

    def has(self, task: str) -> bool:
        return task not in self.missing


def truth_of(clip: Clip, size: int | None = None) -> Truth:
    """Reads a clip's truth.

    Args:
        size: S; None = the side of the clip's own central square.

    Raises:
        ValueError: a clip without images, which every task starts from or ends in.
    """
    if clip.rgb is None:
        raise ValueError(f"clip {clip.key!r} has no rgb, which the four tasks need")
    window = square_window(*clip.rgb.shape[1:3])
    size = window[2] if size is None else size
    missing: dict[str, str] = {}

    def read(task: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ModalityMissing as error:
            missing[task] = str(error)
            return None

    metres, known = read("depth", lambda: _depth(clip, size)) or (None, None)
    annotation = clip.meta.get("annotation")
    return Truth(
        key=clip.key,
        group=str(next((clip.meta[key] for key in _GROUP_KEYS if key in clip.meta), clip.key)),
        window=window,
        frame_times_s=_frame_times(clip),
        intrinsics=clip.intrinsics,
        gaze_px=read("gaze", lambda: _gaze(clip, size)),
        camera=read("camera", lambda: _physical("camera", clip, size)),
        metres=metres,
        known=known,
        depth_is_relative=isinstance(annotation, dict) and bool(annotation.get("depth_is_relative")),
        rgb=read("rgb", lambda: _physical("rgb", clip, size)),
        missing=missing,
    )


def _physical(name: str, clip: Clip, size: int) -> np.ndarray:
    row = MODALITIES[name]
    assert clip.rgb is not None
    return row.to_physical(row.to_array(clip, size), {"image": clip.rgb.shape[1:3]})


def _gaze(clip: Clip, size: int) -> Float32[np.ndarray, "P 2"]:
    valid = MODALITIES["gaze"].to_array(clip, size)[:, 2] > 0
    return np.where(valid[:, None], _physical("gaze", clip, size), np.nan).astype(np.float32)


def _frame_times(clip: Clip) -> Float64[np.ndarray, " T"] | None:
    try:
        frames = video_frames(clip)
    except ModalityMissing:
        return None
    assert clip.rgb_times_s is not None
    return clip.rgb_times_s[frames]


def _depth(clip: Clip, size: int) -> tuple[np.ndarray, np.ndarray]:
    MODALITIES["depth"].to_array(clip, size)  # says why where there is none
    assert clip.depth is not None and clip.rgb is not None
    top, left, side = square_window(*clip.depth.shape[1:3])
    metres = cut(clip.depth[video_frames(clip)], (top, left, side, side))
    metres = resize_maps(np.where(np.isfinite(metres), metres, 0).astype(np.float32), size)
    return metres, metres > 0


# -------------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A row of FIGURES: what a metric of a task is measured in."""

    unit: str = ""
    higher_is_better: bool = False


FIGURES: dict[str, dict[str, Figure]] = {
    "gaze": {"MSE": Figure(), "angle": Figure(unit="°")},
    "camera": {
        f"{name} {alignment}": Figure(unit=unit)
        for name, unit in (("ATE", "m"), ("RTE", "m"), ("RRE", "°"))
        for alignment in ALIGNMENTS
    },
    "depth": {
        "AbsRel aligned": Figure(),
        "RMSE aligned": Figure(unit="m"),
        "delta1 aligned": Figure(unit="%", higher_is_better=True),
    },
    "rgb": {
        "PSNR": Figure(unit="dB", higher_is_better=True),
        "SSIM": Figure(higher_is_better=True),
        "LPIPS": Figure(),
    },
}


def score(task: str, predicted: np.ndarray, truth: Truth, *, lpips: Lpips | None = None) -> dict[str, float]:
    """The figures of one clip's predicted array, as FIGURES names them; NaN where the clip has no such figure.

    A map or video of another size is resized to the truth's.

    Raises:
        ValueError: an array that is not what the task predicts, naming the clip.
    """
    assert truth.has(task)
    try:
        return _SCORES[task](np.asarray(predicted), truth, lpips)
    except ValueError as error:
        raise ValueError(f"clip {truth.key!r}: {error}") from None


def _score_gaze(predicted: np.ndarray, truth: Truth, _: Lpips | None) -> dict[str, float]:
    assert truth.gaze_px is not None
    angle = NAN
    if truth.intrinsics is not None:
        angle = gaze_angle_degrees(predicted, truth.gaze_px, truth.intrinsics, truth.window)
    return {
        "MSE": gaze_mse(normalised(predicted, truth.window), normalised(truth.gaze_px, truth.window)),
        "angle": angle,
    }


def _score_camera(predicted: np.ndarray, truth: Truth, _: Lpips | None) -> dict[str, float]:
    assert truth.camera is not None
    figures = {}
    for alignment in ALIGNMENTS:
        errors = trajectory_errors(predicted, truth.camera, alignment)
        figures[f"ATE {alignment}"] = errors.ate_m
        figures[f"RTE {alignment}"] = errors.rte_m
        figures[f"RRE {alignment}"] = errors.rre_degrees
    return {name: figures[name] for name in FIGURES["camera"]}


def _score_depth(predicted: np.ndarray, truth: Truth, _: Lpips | None) -> dict[str, float]:
    assert truth.metres is not None and truth.known is not None
    if predicted.ndim != 3 or len(predicted) != len(truth.metres) or predicted.shape[1] != predicted.shape[2]:
        raise ValueError(
            f"predicted depth: expected [{len(truth.metres)}, S, S] of the central square, got {predicted.shape}"
        )
    maps = resize(predicted.astype(np.float64), truth.metres.shape[1])
    absolute, rmse, within = aligned_errors(maps[truth.known], truth.metres[truth.known])
    return {
        "AbsRel aligned": absolute,
        "RMSE aligned": NAN if truth.depth_is_relative else rmse,
        "delta1 aligned": within,
    }


def _score_rgb(predicted: np.ndarray, truth: Truth, lpips: Lpips | None) -> dict[str, float]:
    assert truth.rgb is not None
    if predicted.ndim != 4 or predicted.dtype != np.uint8 or predicted.shape[1] != predicted.shape[2]:
        raise ValueError(
            f"predicted video: expected uint8[T, S, S, 3] of the central square, got {predicted.dtype}{predicted.shape}"
        )
    frames = resize(predicted, truth.rgb.shape[1])
    return {
        "PSNR": psnr(frames, truth.rgb),
        "SSIM": ssim(frames, truth.rgb),
        "LPIPS": NAN if lpips is None else lpips.of_videos(frames, truth.rgb),
    }


_SCORES: dict[str, Callable[[np.ndarray, Truth, Lpips | None], dict[str, float]]] = {
    "gaze": _score_gaze,
    "camera": _score_camera,
    "depth": _score_depth,
    "rgb": _score_rgb,
}


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Square maps or frames of another side, with antialiasing when that makes them smaller."""
    if frames.shape[1] == size:
        return frames
    how = cv2.INTER_AREA if frames.shape[1] > size else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (size, size), interpolation=how) for frame in frames])

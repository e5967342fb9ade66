"""Depth of every frame: the teachers, their checks, and how relative depth is stored.

Axes: T frames, H W pixels.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from jaxtyping import Float32

from pretrain.annotate.config import AnnotateConfig
from pretrain.annotate.records import DepthTeacher, StageFailed
from pretrain.annotate.weights import choose_device, load, load_model, transformers, weights_directory
from pretrain.clips.schema import Clip

# Relative inverse depth is stored as a depth in metres with its nearest pixel here and its farthest there. A store keeps
# whole millimetres, and the error of the inverse, as a share of its range, is then at most 0.0005 / NEAR_M / (1 - NEAR/FAR)
# = 5.3e-4: below the 2e-3 of the 8-bit maps that the published pipeline keeps.
PSEUDO_NEAR_M = 1.0
PSEUDO_FAR_M = 20.0

_BATCH_FRAMES = 4


class TruthDepth:
    """The simulator's depth, as the clip holds it."""

    name = "truth"
    metric = True

    def estimate(self, clip: Clip) -> Float32[np.ndarray, "T H W"]:
        if clip.depth is None:
            raise StageFailed("the clip has no depth")
        return clip.depth


class DepthAnything:
    """Depth Anything (V1 or V2, any size) through transformers: relative inverse depth, frame by frame.

    The image processor beside the weights decides the input size; that of the published V2 weights scales the frame so that
    its short side is 518 px, keeps its shape and rounds to multiples of the patch (14 px). The map is brought back to the
    size of the frame by bicubic interpolation. (The authors of EgoDTM squeeze every frame to 518 x 518; a
    `keep_aspect_ratio: false` in preprocessor_config.json does the same.)
    """

    name = "depth-anything"
    metric = False

    def __init__(self, weights: str | None, device: str = "auto") -> None:
        self._directory = weights_directory(
            weights, key="depth_weights", model="depth-anything/Depth-Anything-V2-Large-hf"
        )
        self._device = device

    def load(self) -> None:
        library = transformers()
        self._processor = load(library.AutoImageProcessor, self._directory, key="depth_weights")
        self._model = load_model(
            library.AutoModelForDepthEstimation, self._directory, key="depth_weights", device=self._device
        )

    @torch.inference_mode()
    def estimate(self, clip: Clip) -> Float32[np.ndarray, "T H W"]:
        assert clip.rgb is not None
        height, width = clip.rgb.shape[1:3]
        maps: list[np.ndarray] = []
        for start in range(0, len(clip.rgb), _BATCH_FRAMES):
            frames = list(clip.rgb[start : start + _BATCH_FRAMES])
            inputs = self._processor(images=frames, return_tensors="pt").to(choose_device(self._device))
            outputs = self._model(pixel_values=inputs["pixel_values"].to(self._model.dtype))
            outputs.predicted_depth = outputs.predicted_depth.float()
            found = self._processor.post_process_depth_estimation(outputs, target_sizes=[(height, width)] * len(frames))
            maps += [one["predicted_depth"].cpu().numpy() for one in found]
        return np.stack(maps).astype(np.float32)


# name -> makes the teacher from the settings.
DEPTH_TEACHERS: dict[str, Callable[[AnnotateConfig], DepthTeacher]] = {
    "truth": lambda config: TruthDepth(),
    "depth-anything": lambda config: DepthAnything(config.depth_weights, config.device),
}


def estimate_depth(clip: Clip, teacher: DepthTeacher, *, align: bool) -> Float32[np.ndarray, "T H W"]:
    """Depth as a clip stores it: metres, or for a relative teacher :func:`pseudo_depth`; 0 = not known.

    Args:
        align: give all frames of a relative teacher one scale and shift (:func:`align_frames`); else each frame is scaled to
            [0, 1] by itself, as the published pipeline does.

    Raises:
        StageFailed: the depth is NaN or infinite, or the same everywhere in a frame, or there is none.
    """
    depth = teacher.estimate(clip)
    for values in depth:
        known = values[values > 0] if teacher.metric else values
        if not np.isfinite(values).all():
            raise StageFailed("the depth is not finite")
        if known.size == 0:
            raise StageFailed("a frame has no known depth")
        if known.min() == known.max():
            raise StageFailed("the depth of a frame is constant")
    if teacher.metric:
        return depth
    assert clip.rgb is not None
    return pseudo_depth(align_frames(depth, clip.rgb) if align else scale_frames(depth))


def pseudo_depth(depth_inverse: Float32[np.ndarray, "T H W"]) -> Float32[np.ndarray, "T H W"]:
    """Relative inverse depth d as a depth z in metres that gives d back, up to scale and shift, as 1 / z.

    1 / z = a d + b with a and b such that the largest d of the clip lies at PSEUDO_NEAR_M and the smallest at PSEUDO_FAR_M.
    So `pretrain.clips.dataset.normalise_inverse_depth` of z is d scaled to [0, 1]. z is no distance: metres, angles and
    sizes computed from it mean nothing; only the order and the ratios of differences of 1 / z do.
    """
    near, far = 1 / PSEUDO_NEAR_M, 1 / PSEUDO_FAR_M
    low, high = float(depth_inverse.min()), float(depth_inverse.max())
    return (1 / (far + (depth_inverse - low) * ((near - far) / (high - low)))).astype(np.float32)


def scale_frames(depth_inverse: Float32[np.ndarray, "T H W"]) -> Float32[np.ndarray, "T H W"]:
    """Each frame by itself to [0, 1]."""
    low = depth_inverse.min((1, 2), keepdims=True)
    return (depth_inverse - low) / (depth_inverse.max((1, 2), keepdims=True) - low)


def align_frames(depth_inverse: Float32[np.ndarray, "T H W"], rgb: np.ndarray) -> Float32[np.ndarray, "T H W"]:
    """Gives all frames the scale and shift of the first, frame after frame.

    A frame is compared with the one before it where dense optical flow says that both see the same point. Scale and shift
    make the medians, and the mean absolute deviations from them, equal: unlike a least-squares fit this does not shrink the
    scale a little with every frame. (Our choice; the published pipeline does nothing here.)
    """
    flow_method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb]
    height, width = depth_inverse.shape[1:]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    aligned = [depth_inverse[0]]
    for frame in range(1, len(depth_inverse)):
        flow = flow_method.calc(greys[frame], greys[frame - 1], np.zeros((height, width, 2), np.float32))
        x, y = columns + flow[..., 0], rows + flow[..., 1]
        both = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        before = cv2.remap(aligned[-1], x, y, cv2.INTER_LINEAR)[both]
        now = depth_inverse[frame][both]
        scale, shift = 1.0, 0.0
        if len(now):
            spreads = [float(np.abs(values - np.median(values)).mean()) for values in (before, now)]
            if min(spreads) > 0:
                scale = spreads[0] / spreads[1]
            shift = float(np.median(before) - scale * np.median(now))
        aligned.append((depth_inverse[frame] * scale + shift).astype(np.float32))
    return np.stack(aligned)

"""A tracker that needs no weights: boxes in one frame become masks in all, by colour, depth and optical flow.

For each pixel it keeps how likely each followed thing (and the background) is there. In the prompt's frame the boxes say
where things may be; in every other frame, the labels of the frame before, moved by dense optical flow. That prior is
combined with how well the pixel's colour and inverse depth fit each thing, and a few rounds of mean-field smoothing let
neighbours that look alike agree. All hands and things compete, so a hand in front of a thing is cut out of its mask.

Axes: T frames, N labels (0 the background, then the followed things), H W pixels, F colour and depth features.
"""

from collections.abc import Sequence
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Float32, Int64

from pretrain.annotate.records import Detections, Track
from pretrain.annotate.track import Prompt, choose_prompts, make_track
from pretrain.clips.schema import Clip

# Bins of L, a and b of a colour histogram.
_BINS = (12, 16, 16)
# What a histogram gives a colour that it never saw, as a share of an even spread.
_UNSEEN = 0.05
_SMOOTHING_RADIUS = 2
_SMOOTHING_ROUNDS = 4
_SMOOTHING_WEIGHT = 3.0
_COLOUR_SIGMA = 9.0  # of 8-bit Lab
_DEPTH_SIGMA = 0.015  # of inverse depth scaled to [0, 1]
_FIRST_ROUNDS = 5
_FLOW_SCALE = 3
# Share of the box that a thing fills, before anything else is known.
_FILL = {"hand": 0.4, "object": 0.65}

# Neighbours that are asked: the 24 around a pixel.
_OFFSETS = tuple(
    (dy, dx)
    for dy in range(-_SMOOTHING_RADIUS, _SMOOTHING_RADIUS + 1)
    for dx in range(-_SMOOTHING_RADIUS, _SMOOTHING_RADIUS + 1)
    if (dy, dx) != (0, 0)
)
# Share of a label's pixels whose inverse depth is not on its plane.
_ANYWHERE = 0.1
_LEAST_PIXELS = 5
_LEAST_SPREAD = 0.012
# px of background around where things may be.
_MARGIN = 12

Maps = Float32[np.ndarray, "N H W"]
Window = tuple[slice, slice]


class ClassicalTracker:
    """See the head of this file. Uses the depth of the clip where there is one."""

    name = "classical"

    def track(self, clip: Clip, detections: Detections) -> tuple[Track, ...]:
        assert clip.rgb is not None
        prompts = choose_prompts(detections)
        video = _Video(clip)
        frames, height, width = clip.rgb.shape[:3]
        taken = np.zeros((frames, height, width), bool)
        tracks: list[Track] = []
        for start in dict.fromkeys(prompt.frame for prompt in sorted(prompts, key=_by_crowd(prompts))):
            group = [prompt for prompt in prompts if prompt.frame == start]
            likely = _follow(video, group, start, taken)
            best = likely.argmax(1)
            for number, prompt in enumerate(group, start=1):
                masks = best == number
                scores = [
                    float(one[number][mask].mean()) if mask.any() else 0.0
                    for one, mask in zip(likely, masks, strict=True)
                ]
                tracks.append(make_track(prompt, list(masks), scores))
            taken |= best > 0
        return tuple(sorted(tracks, key=lambda track: track.id))


def _by_crowd(prompts: Sequence[Prompt]):
    """Orders prompts so that the frame with the most of them comes first."""
    counts = {prompt.frame: sum(other.frame == prompt.frame for other in prompts) for prompt in prompts}
    return lambda prompt: (-counts[prompt.frame], prompt.frame)


class _Video:
    """What is computed of the frames once: colours, inverse depth, flow and likeness of neighbours."""

    def __init__(self, clip: Clip) -> None:
        assert clip.rgb is not None
        self.rgb = clip.rgb
        self.shape = clip.rgb.shape[1:3]
        self.lab = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB) for frame in clip.rgb])
        steps = np.array([256 / count for count in _BINS])
        index = (self.lab / steps).astype(np.int64)
        self.bins: Int64[np.ndarray, "T H W"] = np.ravel_multi_index(tuple(np.moveaxis(index, -1, 0)), _BINS)
        self.inverse = None if clip.depth is None else _scaled_inverse(clip.depth)
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._grey = [
            cv2.resize(
                cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None, fx=_FLOW_SCALE, fy=_FLOW_SCALE,
                interpolation=cv2.INTER_CUBIC,
            )
            for frame in clip.rgb
        ]  # fmt: skip

    def flow(self, frame: int, other: int) -> Float32[np.ndarray, "H W 2"]:
        """Where each pixel of `frame` is in `other`, as an offset in px."""
        flow = self._flow.calc(self._grey[frame], self._grey[other], None)
        height, width = self.shape
        return cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / _FLOW_SCALE

    def part(self, frame: int, window: Window) -> "_Part":
        return _Part(self, frame, window)


class _Part:
    """A window of a frame: where things may be, with a margin of background. Everything per pixel is done in it alone."""

    def __init__(self, video: _Video, frame: int, window: Window) -> None:
        self.window = window
        self.bins = video.bins[frame][window]
        self.inverse = None if video.inverse is None else video.inverse[frame][window]
        self._lab = video.lab[frame][window].astype(np.float32)

    @cached_property
    def alike(self) -> Float32[np.ndarray, "K H W"]:
        """Likeness, 0 to 1, of each pixel and its neighbour at each of the offsets."""
        labs, inverses = _neighbours(self._lab), None if self.inverse is None else _neighbours(self.inverse)
        weights = []
        for number, (dy, dx) in enumerate(_OFFSETS):
            distance = ((self._lab - labs[number]) ** 2).sum(-1) / (2 * _COLOUR_SIGMA**2)
            if self.inverse is not None and inverses is not None:
                distance += (self.inverse - inverses[number]) ** 2 / (2 * _DEPTH_SIGMA**2)
            weights.append(np.exp(-distance - np.float32((dy * dy + dx * dx) / 4)))
        return np.stack(weights)


def _neighbours(image: np.ndarray) -> list[np.ndarray]:
    """image[y + dy, x + dx] for each of the offsets, as views; the border is repeated."""
    radius, (height, width) = _SMOOTHING_RADIUS, image.shape[:2]
    padded = np.pad(image, ((radius, radius), (radius, radius), *[(0, 0)] * (image.ndim - 2)), mode="edge")
    return [padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width] for dy, dx in _OFFSETS]


def _scaled_inverse(depth: np.ndarray) -> Float32[np.ndarray, "T H W"]:
    """Inverse depth, from the 2nd to the 98th hundredth of the clip scaled to [0, 1]; what is not known is 0."""
    known = depth > 0
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0).astype(np.float32)
    low, high = np.percentile(inverse[known], (2, 98)) if known.any() else (0, 1)
    return np.clip((inverse - low) / max(high - low, 1e-6), -0.2, 1.5)


def _follow(video: _Video, group: Sequence[Prompt], start: int, taken: np.ndarray) -> Float32[np.ndarray, "T N H W"]:
    """How likely each label is at each pixel of each frame."""
    frames = len(video.rgb)
    likely = np.zeros((frames, len(group) + 1, *video.shape), np.float32)
    likely[start] = _first(video, group, start, taken[start])
    reference = _histograms(video, start, likely[start])
    for order in (range(start + 1, frames), range(start - 1, -1, -1)):
        for frame in order:
            before = frame - 1 if frame > start else frame + 1
            prior = _moved(likely[before], video.flow(frame, before))
            prior[1:, taken[frame]] = 0
            histograms = np.float32(0.6) * reference + np.float32(0.4) * _histograms(video, before, likely[before])
            likely[frame] = _explain(video, frame, prior, histograms)
    return likely


def _first(video: _Video, group: Sequence[Prompt], frame: int, taken: np.ndarray) -> Maps:
    height, width = video.shape
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    prior = np.zeros((len(group) + 1, height, width), np.float32)
    for number, prompt in enumerate(group, start=1):
        x1, y1, x2, y2 = prompt.box
        inside = (columns > x1) & (columns < x2) & (rows > y1) & (rows < y2)
        fill = _FILL[prompt.detection.kind]
        away = np.hypot((columns - (x1 + x2) / 2) / (x2 - x1), (rows - (y1 + y2) / 2) / (y2 - y1)) * 2
        prior[number] = np.where(
            inside & ~taken, fill * np.exp(-0.5 * away**2 * (prompt.detection.kind == "object")), 0
        )
    prior[0] = np.prod(1 - prior[1:], axis=0)
    prior /= prior.sum(0)
    likely = prior
    for _ in range(_FIRST_ROUNDS):
        likely = _explain(video, frame, prior, _histograms(video, frame, likely))
    return likely


def _moved(likely: Maps, flow: np.ndarray) -> Maps:
    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    moved = np.stack([cv2.remap(one, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for one in likely])
    moved = np.stack([cv2.GaussianBlur(one, (0, 0), 1.2) for one in moved])
    moved[0] += 0.02
    return moved / moved.sum(0)


def _histograms(video: _Video, frame: int, likely: Maps) -> Float32[np.ndarray, "N C"]:
    """Colours of each label, as densities over the bins; the background's from around the things alone."""
    count = int(np.prod(_BINS))
    things = (1 - likely[0]) > 0.3
    near = cv2.dilate(things.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(np.float32) + 0.1
    histograms = []
    for number, one in enumerate(likely):
        weights = one * near if number == 0 else one
        histogram = np.bincount(video.bins[frame].ravel(), weights.ravel(), count).reshape(_BINS)
        for axis in range(3):
            histogram = 0.7 * histogram + 0.15 * (_roll(histogram, axis, 1) + _roll(histogram, axis, -1))
        histograms.append(histogram.ravel() / max(histogram.sum(), 1e-6))
    return (np.stack(histograms) + _UNSEEN / count).astype(np.float32)


def _roll(histogram: np.ndarray, axis: int, step: int) -> np.ndarray:
    moved = np.roll(histogram, step, axis)
    edge = [slice(None)] * 3
    edge[axis] = slice(0, 1) if step == 1 else slice(-1, None)
    moved[tuple(edge)] = 0
    return moved


def _explain(video: _Video, frame: int, prior: Maps, histograms: np.ndarray) -> Maps:
    """Prior, colour and depth together, then smoothed."""
    likely = np.zeros_like(prior)
    likely[0] = 1
    window = _window(prior[0] < 0.99)
    if window is None:
        return likely
    part, inside = video.part(frame, window), prior[(slice(None), *window)]
    score = np.log(inside + 1e-6) + np.log(histograms[:, part.bins])
    if part.inverse is not None:
        score += _depth_score(part.inverse, inside, _softmax(score))
    found = _softmax(score)
    for _ in range(_SMOOTHING_ROUNDS):
        around = _neighbours(np.moveaxis(found, 0, -1))
        message = sum(weight[..., None] * one for weight, one in zip(part.alike, around, strict=True))
        found = _softmax(score + _SMOOTHING_WEIGHT * np.moveaxis(message, -1, 0) / (part.alike.sum(0) + 1))
    found[1:][inside[1:] < 1e-5] = 0
    likely[(slice(None), *window)] = found / np.maximum(found.sum(0), 1e-6)
    return likely


def _window(mask: np.ndarray) -> Window | None:
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(int(rows[0]) - _MARGIN, 0), int(rows[-1]) + _MARGIN + 1),
        slice(max(int(columns[0]) - _MARGIN, 0), int(columns[-1]) + _MARGIN + 1),
    )


def _depth_score(inverse: np.ndarray, prior: Maps, likely: Maps) -> Maps:
    """Log density of inverse depth under each label: near a plane of inverse depth, or anywhere.

    The inverse depth of a flat surface is a plane in any view, whatever the camera and also up to scale and shift.
    """
    height, width = inverse.shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    design = np.stack([columns / width, rows / height, np.ones_like(rows)], -1).reshape(-1, 3)
    scores = np.zeros_like(prior)
    # Of the background only what is around the things: further off there are other surfaces.
    near = cv2.dilate((prior[0] < 0.95).astype(np.uint8), np.ones((15, 15), np.uint8))
    for number, one in enumerate(likely):
        weights = (one * near if number == 0 else one).ravel()
        if weights.sum() >= _LEAST_PIXELS:
            error, spread = _plane_error(design, inverse.ravel(), weights)
            density = (1 - _ANYWHERE) * np.exp(-error / spread) / (2 * spread) + _ANYWHERE
            scores[number] = np.log(density).reshape(height, width)
    return scores


def _plane_error(design: np.ndarray, values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """How far each value is from the plane that most of the weight lies on, and the mean of that by weight (an M-estimate
    with Cauchy's weights)."""
    error, spread, robust = values, 0.1, weights
    for _ in range(5):
        scaled = design * robust[:, None]
        plane = np.linalg.solve(scaled.T @ design + 1e-3 * np.eye(3), scaled.T @ values)
        error = np.abs(values - design @ plane)
        spread = max(float((robust * np.minimum(error, 0.3)).sum() / robust.sum()), _LEAST_SPREAD)
        robust = weights / (1 + (error / (1.5 * spread)) ** 2)
    return error, spread


def _softmax(score: Maps) -> Maps:
    exponent = np.exp(score - score.max(0))
    return (exponent / exponent.sum(0)).astype(np.float32)

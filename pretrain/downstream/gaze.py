"""Errors of predicted gaze, and what gaze is predicted without looking at the images.

Gaze is compared in the square window of the image that the model sees: (0, 0) its upper left corner, (1, 1) its lower right
one. A true sample counts where it is known and inside, or a little outside, the window (GAZE_RANGE, the rule by which
EgoM2P masks gaze in training); a clip's figure is the mean over its samples that count.

Axes: P gaze samples, m clips.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64

from pretrain.egom2p.modalities import GAZE_RANGE

# (top, left, side) in pixels of the image.
Window = tuple[int, int, int]


def normalised(gaze_px: Float[np.ndarray, "P 2"], window: Window) -> Float64[np.ndarray, "P 2"]:
    """Pixels (x, y) of the image to the window's coordinates; NaN stays NaN."""
    top, left, side = window
    if side < 1:
        raise ValueError(f"gaze: a window of side {side} px: expected 1 or more")
    return (_samples("gaze", gaze_px) - (left, top)) / side


def pixels(gaze: Float[np.ndarray, "P 2"], window: Window) -> Float64[np.ndarray, "P 2"]:
    """The way back of :func:`normalised`."""
    top, left, side = window
    return np.asarray(gaze, np.float64) * side + (left, top)


def valid_samples(gaze: Float[np.ndarray, "P 2"]) -> Bool[np.ndarray, " P"]:
    """Which true samples count: known, and within GAZE_RANGE in the window's coordinates."""
    low, high = GAZE_RANGE
    with np.errstate(invalid="ignore"):
        return ((gaze >= low) & (gaze <= high)).all(axis=1)


def gaze_mse(predicted: Float[np.ndarray, "P 2"], true: Float[np.ndarray, "P 2"]) -> float:
    """Mean of (x_p - x)^2 and (y_p - y)^2 over the samples that count, both in the window's coordinates: the mean over both
    axes, half of the mean squared distance. NaN where no true sample counts.

    Raises:
        ValueError: not [P, 2] twice, or a prediction that is not finite.
    """
    predicted, true = _pair(predicted, true)
    valid = valid_samples(true)
    return float(np.mean((predicted[valid] - true[valid]) ** 2)) if valid.any() else float("nan")


def gaze_angle_degrees(
    predicted_px: Float[np.ndarray, "P 2"],
    true_px: Float[np.ndarray, "P 2"],
    intrinsics: Float64[np.ndarray, "3 3"],
    window: Window,
) -> float:
    """Mean angle, degrees, between the viewing rays K^-1 (x, y, 1) through the predicted and the true pixel, over the samples
    that count; NaN where none does.

    Raises:
        ValueError: not [P, 2] twice, a prediction that is not finite, or no pinhole matrix.
    """
    predicted_px, true_px = _pair(predicted_px, true_px)
    if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all() or not (np.diag(intrinsics) > 0).all():
        raise ValueError(f"gaze: expected a pinhole matrix [3, 3] in pixels, got {np.asarray(intrinsics).tolist()}")
    valid = valid_samples(normalised(true_px, window))
    if not valid.any():
        return float("nan")
    backward = np.linalg.inv(intrinsics).T
    one, other = (np.c_[place[valid], np.ones(valid.sum())] @ backward for place in (predicted_px, true_px))
    # arccos of the product would lose the small angles.
    sine = np.linalg.norm(np.cross(one, other), axis=1)
    return float(np.degrees(np.arctan2(sine, (one * other).sum(axis=1))).mean())


# -------------------------------------------------------------------------------------------------- gaze without images


def image_centre(samples: int) -> Float64[np.ndarray, "P 2"]:
    """The middle of the window all the time."""
    return np.full((samples, 2), 0.5)


def mean_gaze(clips: Sequence[Float[np.ndarray, "P 2"]]) -> Float64[np.ndarray, " 2"]:
    """The mean of the samples that count, of all clips, each clip counting alike.

    Raises:
        ValueError: no sample of any clip counts.
    """
    means = [clip[valid].mean(axis=0) for clip in clips if (valid := valid_samples(clip)).any()]
    if not means:
        raise ValueError(f"mean gaze: none of {len(clips)} clips has a gaze sample inside the image")
    return np.mean(means, axis=0, dtype=np.float64)


def first_fixation(true: Float[np.ndarray, "P 2"]) -> Float64[np.ndarray, "P 2"]:
    """The clip's first sample that counts, held: the baseline "previous fixation".

    Predicting gaze from its history would hold the last fixation before the clip, but a clip of two seconds has no before. Its
    first known sample stands for it. That is a true gaze of this very clip, which a model that is given images alone has not:
    the baseline has no error at that sample and little soon after, so it is harder to beat than the real previous fixation.
    The centre where no sample counts (such a clip has no figure anyway).
    """
    true = _samples("gaze", true)
    valid = valid_samples(true)
    return np.repeat(true[valid][:1], len(true), axis=0) if valid.any() else image_centre(len(true))


# --------------------------------------------------------------------------------------------------------------- checks


def _samples(name: str, gaze: Float[np.ndarray, "P 2"]) -> Float64[np.ndarray, "P 2"]:
    gaze = np.asarray(gaze, np.float64)
    if gaze.ndim != 2 or gaze.shape[1] != 2 or len(gaze) == 0:
        raise ValueError(f"{name}: expected [P, 2] with P of 1 or more, got {gaze.shape}")
    return gaze


def _pair(
    predicted: Float[np.ndarray, "P 2"], true: Float[np.ndarray, "P 2"]
) -> tuple[Float64[np.ndarray, "P 2"], Float64[np.ndarray, "P 2"]]:
    predicted, true = _samples("predicted gaze", predicted), _samples("true gaze", true)
    if predicted.shape != true.shape:
        raise ValueError(f"gaze: {len(predicted)} predicted samples for {len(true)} true ones; give the same times")
    if not np.isfinite(predicted).all():
        bad = int((~np.isfinite(predicted)).any(axis=1).sum())
        raise ValueError(f"predicted gaze: {bad} of {len(predicted)} samples are not finite; a prediction has no gaps")
    return predicted, true

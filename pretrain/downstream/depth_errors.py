"""Errors of depth (Eigen et al. 2014), the alignment that takes away a scale and a shift, and depth without images.

A model of relative depth gives inverse depth up to a scale and a shift that nobody knows. It gets the one pair a clip that fits
the true inverse depth best in least squares (Ranftl et al. 2020), which leaves the geometry, and is then compared in metres.

Axes: P pixels whose depth is known, T frames, H W pixels.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64

ERRORS = ("AbsRel", "RMSE", "delta1")
# Aligned inverse depth below this (20 m) is held at it: a prediction may cross zero.
LEAST_INVERSE = 0.05


def depth_errors(predicted: Float[np.ndarray, " P"], target: Float[np.ndarray, " P"]) -> tuple[float, float, float]:
    """AbsRel = mean |p - t| / t, RMSE = sqrt mean (p - t)^2, delta1 = share with max(p / t, t / p) < 1.25, over pixels whose
    target is above 0. A prediction of 0 or less is never within delta1."""
    difference = predicted - target
    # t / p < 1.25 is p > 0.8 t, which needs no division by a prediction near 0.
    within = (predicted < 1.25 * target) & (1.25 * predicted > target)
    return float(np.mean(np.abs(difference) / target)), float(np.sqrt(np.mean(difference**2))), float(within.mean())


def align(predicted: Float[np.ndarray, " P"], target: Float[np.ndarray, " P"]) -> Float64[np.ndarray, " P"]:
    """The prediction with the scale and shift that fit the target best in least squares. A constant prediction gets the mean
    of the target."""
    centred = predicted - predicted.mean()
    spread = float(centred @ centred)
    scale = float(centred @ (target - target.mean())) / spread if spread > 1e-12 * len(predicted) else 0.0
    return scale * centred + target.mean()


def aligned_errors(
    predicted_inverse: Float[np.ndarray, " P"], metres: Float[np.ndarray, " P"]
) -> tuple[float, float, float]:
    """:func:`depth_errors` in metres of a relative inverse depth, after :func:`align` to the true inverse depth.

    Args:
        predicted_inverse: near is large; metres: true depth above 0 of the same pixels, of one clip.

    Raises:
        ValueError: no pixels, not the same ones, a prediction that is not finite, or a depth that is not above 0.
    """
    if predicted_inverse.ndim != 1 or predicted_inverse.shape != metres.shape or len(metres) == 0:
        raise ValueError(
            f"depth: expected as many predicted as true pixels, got {predicted_inverse.shape}, {metres.shape}"
        )
    if not np.isfinite(predicted_inverse).all():
        bad = int((~np.isfinite(predicted_inverse)).sum())
        raise ValueError(f"predicted inverse depth: {bad} of {len(metres)} pixels are not finite")
    metres = metres.astype(np.float64)
    if not (np.isfinite(metres).all() and (metres > 0).all()):
        raise ValueError("true depth: give only the pixels where it is known, above 0 m")
    inverse = align(predicted_inverse.astype(np.float64), 1 / metres)
    return depth_errors(1 / np.maximum(inverse, LEAST_INVERSE), metres)


def best_plane(metres: Float[np.ndarray, "T H W"], known: Bool[np.ndarray, "T H W"]) -> Float64[np.ndarray, "T H W"]:
    """The inverse depth a + b x + c y, one for all frames of a clip, that fits the clip's true one best in least squares. That
    is what a plane in space looks like, whose inverse depth is linear in the image: a wall, or a table seen from above. It
    knows the truth, so it is the best that any plane can do. All zero where nothing is known.
    """
    rows, columns = metres.shape[1:]
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    terms = np.stack([np.ones_like(x), x / columns - 0.5, y / rows - 0.5], axis=-1)
    inverse = np.divide(1.0, metres, out=np.zeros(metres.shape), where=known)
    # Frames share the terms, so their normal equations add up pixel by pixel.
    count = known.sum(axis=0).astype(np.float64)
    normal = np.einsum("hwi,hw,hwj->ij", terms, count, terms)
    weights = np.linalg.lstsq(normal, np.einsum("hwi,hw->i", terms, inverse.sum(axis=0)), rcond=None)[0]
    return np.broadcast_to(terms @ weights, metres.shape).copy()

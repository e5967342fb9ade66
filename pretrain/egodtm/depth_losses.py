"""Errors of predicted inverse depth, masked per pixel, sample and frame.

One rule for all of them: the loss of the table's row, a mean over the valid pixels of one frame, is averaged over the
frames of all processes with their numbers of valid pixels as weights. Frames without a valid pixel count for nothing.
Because that is a sum over frames by one common divisor, it splits over processes and micro-batches without a remainder.

Axes: S stages, B batch, T frames of a clip, h w depth map, n = B * T frames, P = h * w pixels.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pretrain.egodtm.losses import in_full_precision, is_distributed, world_size

# Added to inverse depth before its logarithm: 0 is the farthest point of a map, where the teacher says least.
SILOG_EPSILON = 0.01
# 1 would not see the scale at all, 0 is the plain squared log error; the value of BTS and AdaBins.
SILOG_VARIANCE_FOCUS = 0.85
# Share of a frame's pixels, those with the largest residuals, that the trimmed loss leaves out (MiDaS).
TRIMMED_SHARE = 0.2
# Below this variance or mean deviation (of values in [0, 1]) a map is constant and names no scale.
_FLAT = 1e-8


def _mean(values: Float[Tensor, "*S n P"], valid: Bool[Tensor, "n P"]) -> Float[Tensor, "*S n"]:
    """Over the valid pixels; 0 where there are none. `values` must be finite under the mask too."""
    return (values * valid).sum(dim=-1) / valid.sum(dim=-1).clamp(min=1)


def l1(prediction: Float[Tensor, "S n P"], target: Float[Tensor, "n P"], valid: Bool[Tensor, "n P"]) -> Tensor:
    """mean |p - t|."""
    return _mean((prediction - target).abs(), valid)


def mse(prediction: Float[Tensor, "S n P"], target: Float[Tensor, "n P"], valid: Bool[Tensor, "n P"]) -> Tensor:
    """mean (p - t)^2."""
    return _mean((prediction - target).square(), valid)


def silog(
    prediction: Float[Tensor, "S n P"],
    target: Float[Tensor, "n P"],
    valid: Bool[Tensor, "n P"],
    *,
    variance_focus: float = SILOG_VARIANCE_FOCUS,
    epsilon: float = SILOG_EPSILON,
) -> Tensor:
    """mean(d^2) - variance_focus * mean(d)^2 with d = log(p + epsilon) - log(t + epsilon), both inverse depths.

    Eigen et al. 2014 (arXiv 1406.2283, equation 4); the sign of d, so depth or its inverse, makes no difference but for
    epsilon. Without the square root of later papers, whose gradient has no bound as the error falls to 0.
    """
    d = (prediction + epsilon).log() - (target + epsilon).log()
    return _mean(d.square(), valid) - variance_focus * _mean(d, valid).square()


def ssi(prediction: Float[Tensor, "S n P"], target: Float[Tensor, "n P"], valid: Bool[Tensor, "n P"]) -> Tensor:
    """1/2 mean (a p + b - t)^2 with the frame's least-squares a and b (MiDaS, arXiv 1907.01341, equations 3 and 4).

    Aligned frame by frame, since the teachers normalise each frame alone. Least squares in closed form: a =
    cov(p, t) / var(p), b = mean(t) - a mean(p), so that a constant prediction costs half the target's variance. a may be
    negative, so the loss alone does not tell near from far: `ssi_trimmed` does.
    """
    p, t = _centred(prediction, valid), _centred(target, valid)
    variance = _mean(p.square(), valid)
    flat = variance < _FLAT
    slope = torch.where(flat, 0.0, _mean(p * t, valid) / torch.where(flat, 1.0, variance))
    return 0.5 * _mean((slope[..., None] * p - t).square(), valid)


def ssi_trimmed(prediction: Float[Tensor, "S n P"], target: Float[Tensor, "n P"], valid: Bool[Tensor, "n P"]) -> Tensor:
    """1/2 mean |p' - t'| without the largest fifth of the residuals; p' and t' are each frame's values less their median,
    by their mean absolute deviation from it (MiDaS, equations 5 to 7)."""
    residual = (_normalised(prediction, valid) - _normalised(target, valid)).abs()
    # Invalid pixels sort last, behind the residuals of the valid ones.
    ordered = torch.where(valid, residual, float("inf")).sort(dim=-1).values
    kept = torch.arange(ordered.shape[-1], device=ordered.device) < _kept(valid)[..., None]
    return 0.5 * torch.where(kept, ordered, 0.0).sum(dim=-1) / valid.sum(dim=-1).clamp(min=1)


def _kept(valid: Bool[Tensor, "n P"]) -> Tensor:
    count = valid.sum(dim=-1)
    return count - (count * TRIMMED_SHARE).floor().long()


def _centred(x: Float[Tensor, "*S n P"], valid: Bool[Tensor, "n P"]) -> Float[Tensor, "*S n P"]:
    return torch.where(valid, x - _mean(x, valid)[..., None], 0.0)


def _normalised(x: Float[Tensor, "*S n P"], valid: Bool[Tensor, "n P"]) -> Float[Tensor, "*S n P"]:
    middle = torch.where(valid, x, float("nan")).nanmedian(dim=-1, keepdim=True).values
    shifted = torch.where(valid, x - torch.where(valid.any(dim=-1, keepdim=True), middle, 0.0), 0.0)
    deviation = _mean(shifted.abs(), valid)[..., None]
    flat = deviation < _FLAT
    return torch.where(flat, 0.0, shifted / torch.where(flat, 1.0, deviation))


# (prediction [S, n, P], target [n, P], valid [n, P]; all finite) -> loss of each frame [S, n], 0 where nothing is valid
DEPTH_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "mse": mse,
    "silog": silog,
    "ssi": ssi,
    "ssi_trimmed": ssi_trimmed,
}
DEPTH_ERRORS = tuple(DEPTH_LOSSES)


# Distances in pixels of the differences that `edge_error` compares: what is small is told by them and not by the mean error.
EDGE_DISTANCES = (1, 2, 4)


def edge_error(
    prediction: Float[Tensor, "S n h w"], target: Float[Tensor, "n h w"], valid: Bool[Tensor, "n h w"]
) -> Float[Tensor, "S n"]:
    """sum |d(p - t)| over the differences d of pixels EDGE_DISTANCES apart, along rows and columns, both of them valid.

    Gradient matching as in MiDaS (arXiv 1907.01341, equation 11), with differences at several distances in place of several
    resolutions. A sum over a frame and not a mean, so that parts of a batch add up.
    """
    residual = torch.where(valid, prediction - target, 0.0)
    total = residual.new_zeros(residual.shape[:2])
    for distance in EDGE_DISTANCES:
        for axis in (-2, -1):
            kept = residual.shape[axis] - distance
            if kept < 1:
                continue
            first, second = (residual.narrow(axis, start, kept) for start in (distance, 0))
            both = valid.narrow(axis, distance, kept) & valid.narrow(axis, 0, kept)
            total = total + ((first - second).abs() * both).sum(dim=(-2, -1))
    return total


def usable_pixels(target: Float[Tensor, "B T h w"], valid: Bool[Tensor, "B T h w"]) -> Bool[Tensor, "B T h w"]:
    """Valid pixels that have a depth: a teacher's NaN is no target, whatever the mask says."""
    return valid & target.isfinite()


def depth_divisor(
    target: Float[Tensor, "B T h w"], valid: Bool[Tensor, "B T h w"], device: torch.device | None = None
) -> Float[Tensor, ""]:
    """Valid pixels a process has on average: what the sum over this process's frames is divided by.

    DDP averages gradients over the processes; dividing by the mean count makes that the mean over all pixels.
    `device` is where the processes exchange it, by default where the masks are.
    """
    pixels = usable_pixels(target, valid).sum().float().to(device)
    if is_distributed():
        torch.distributed.all_reduce(pixels)
    return (pixels / world_size()).clamp(min=1)


def masked_depth_loss(
    stages: Float[Tensor, "S B T h w"],
    target: Float[Tensor, "B T h w"],
    valid: Bool[Tensor, "B T h w"],
    *,
    error: str,
    deep_supervision: bool,
    edges: float = 0.0,
    divisor: Float[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """A row of DEPTH_LOSSES over the valid pixels, in fp32; clips without depth are simply not valid.

    The published form of this loss is unknown. L1 is the default because its gradient does not fade beside the
    contrastive one as the error falls.

    Args:
        deep_supervision: the mean over all stages, else the last one alone.
        edges: weight of edge_error, per valid pixel, beside the row's loss.
        divisor: depth_divisor of the whole batch where this is a part of it; the parts' losses then add up.

    Returns:
        the loss, and the last stage's, without `edges` and without gradient. Both 0 if no pixel is valid.
    """
    if error not in DEPTH_LOSSES:
        raise ValueError(f"depth error: expected one of {', '.join(DEPTH_ERRORS)}, got {error!r}")
    with torch.autocast(stages.device.type, enabled=False):
        if divisor is None:
            divisor = depth_divisor(target, valid)
        used = in_full_precision(stages if deep_supervision else stages[-1:])
        valid = usable_pixels(target, valid)
        # Zeros in both places of an invalid pixel: nothing that stands there reaches the loss or a gradient.
        prediction = torch.where(valid, used, 0.0).flatten(1, 2).flatten(2)
        known = torch.where(valid, in_full_precision(target), 0.0).flatten(0, 1).flatten(1)
        mask = valid.flatten(0, 1).flatten(1)
        per_frame = DEPTH_LOSSES[error](prediction, known, mask)
        per_stage = (per_frame * mask.sum(dim=-1)).sum(dim=-1) / divisor
        last = per_stage[-1].detach()
        if edges:
            maps = torch.where(valid, used, 0.0).flatten(1, 2)
            outlines = edge_error(maps, known.unflatten(-1, maps.shape[-2:]), valid.flatten(0, 1))
            per_stage = per_stage + edges * outlines.sum(dim=-1) / divisor
    return per_stage.mean(), last

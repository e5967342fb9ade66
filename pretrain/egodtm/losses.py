"""EgoDTM's two objectives: symmetric InfoNCE between clips and texts, and masked depth regression.

Axes: B batch of this process, G batch over all processes, E joint dimension, S stages, T frames, h w depth map.
"""

from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

DEPTH_ERRORS = ("l1", "mse")


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Gather(torch.autograd.Function):
    """All processes' rows in rank order; the gradient of a row is the sum of what every process has for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(rows, x.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def gather_with_gradient(x: Float[Tensor, "B E"]) -> Float[Tensor, "G E"]:
    """All processes' rows in rank order, with the gradient flowing back to the process a row came from.

    Every process then computes the same global loss; the gather's backward sums the processes' gradients and DDP
    divides by their number, so the result is the gradient of one process with the global batch.
    """
    return _Gather.apply(x) if _is_distributed() else x  # pyright: ignore[reportReturnType]


def _gather_ids(ids: Int[Tensor, "B L"]) -> Int[Tensor, "G L"]:
    if not _is_distributed():
        return ids
    rows = [torch.empty_like(ids) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(rows, ids.contiguous())
    return torch.cat(rows, dim=0)


def info_nce(
    video: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""] | float,
    text_ids: Int[Tensor, "B L"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean of the video-to-text and the text-to-video cross-entropy over the global batch, and the accuracy.

    Args:
        video, text: rows of length 1 (L2-normalised), row i of one belonging to row i of the other.
        scale: inverse temperature.
        text_ids: tokens; when given, two clips with the same text are not each other's negatives. The published loss
            has no such mask, and on millions of free narrations needs none; among a thousand clips of a few actions
            most batches hold duplicates, and pushing them apart teaches noise.

    Returns:
        loss; and the fraction of clips whose own text (or an equal one) is the most similar, without gradient.
    """
    video, text = gather_with_gradient(video), gather_with_gradient(text)
    similarity = scale * video @ text.T
    labels = torch.arange(len(similarity), device=similarity.device)
    if text_ids is not None:
        ids = _gather_ids(text_ids)
        same = (ids[:, None] == ids[None, :]).all(dim=-1)
        same.fill_diagonal_(False)
        similarity = similarity.masked_fill(same, float("-inf"))
    loss = (F.cross_entropy(similarity, labels) + F.cross_entropy(similarity.T, labels)) / 2
    accuracy = (similarity.detach().argmax(dim=1) == labels).float().mean()
    return loss, accuracy


def masked_depth_loss(
    stages: Float[Tensor, "S B T h w"],
    target: Float[Tensor, "B T h w"],
    valid: Bool[Tensor, "B T h w"],
    *,
    error: str,
    deep_supervision: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Error of inverse depth over the valid pixels; clips without depth are simply not valid.

    The published form of this loss is unknown. Ours: "l1" or "mse" on [0, 1], averaged over the stages with deep
    supervision, else of the last one. L1 is the default of training because its gradient does not fade beside the
    contrastive one as the error falls.

    Returns:
        the loss, and the last stage's error without gradient. Both 0 if no pixel is valid.
    """
    if error not in DEPTH_ERRORS:
        raise ValueError(f"depth error: expected one of {', '.join(DEPTH_ERRORS)}, got {error!r}")
    used = stages if deep_supervision else stages[-1:]
    difference = used - target
    per_pixel = difference.abs() if error == "l1" else difference.square()
    weight = valid.to(per_pixel.dtype)
    pixels = weight.sum()
    if _is_distributed():
        # DDP averages over the processes; dividing by the mean count makes that the mean over all processes' pixels.
        torch.distributed.all_reduce(pixels)
        pixels = pixels / torch.distributed.get_world_size()
    per_stage = (per_pixel * weight).sum(dim=(1, 2, 3, 4)) / pixels.clamp(min=1)
    return per_stage.mean(), per_stage[-1].detach()

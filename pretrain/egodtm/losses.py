"""The contrastive objectives between clips and texts, over the batch of all processes.

Each is written for a block of rows of the similarity matrix, so that a batch of thousands, whose embeddings alone are
kept (pretrain/egodtm/gradcache.py), never needs the whole matrix with its gradient at once.

Axes: B batch of this process, G batch over all processes, R rows of a block, E joint dimension, L tokens of a text.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def world_size() -> int:
    return torch.distributed.get_world_size() if is_distributed() else 1


def in_full_precision(x: Tensor) -> Tensor:
    """fp32 of what autocast made bf16 or fp16; fp32 and fp64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _Gather(torch.autograd.Function):
    """All processes' rows in rank order; the gradient of a row is the sum of what every process has for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_rows(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def gather_rows(x: Tensor) -> Tensor:
    """All processes' rows in rank order, without gradient."""
    if not is_distributed():
        return x
    rows = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(rows, x.contiguous())
    return torch.cat(rows)


def gather_with_gradient(x: Float[Tensor, "B E"]) -> Float[Tensor, "G E"]:
    """All processes' rows in rank order, with the gradient flowing back to the process a row came from.

    Every process then computes the same global loss; the gather's backward sums the processes' gradients and DDP
    divides by their number, so the result is the gradient of one process with the global batch.
    """
    return _Gather.apply(x) if is_distributed() else x  # pyright: ignore[reportReturnType]


def text_classes(text_ids: Int[Tensor, "B L"]) -> Int[Tensor, " G"]:
    """A number for each text of all processes' batch; equal texts have equal numbers."""
    return torch.unique(gather_rows(text_ids), dim=0, return_inverse=True)[1]


def info_nce_rows(
    video: Float[Tensor, "G E"],
    text: Float[Tensor, "G E"],
    rows: slice,
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | None,
    classes: Int[Tensor, " G"] | None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The rows' share of the mean of the video-to-text and the text-to-video cross-entropy (CLIP, arXiv 2103.00020).

    `bias` does nothing: a softmax does not see a constant. Returns the share, and the number of the block's clips whose
    own text is the most similar (an equal text never beats it).
    """
    to_text = scale * video[rows] @ text.T
    same = _same_text(classes, rows)
    if same is not None:
        to_text = to_text.masked_fill(same, float("-inf"))
    labels = _labels(rows, to_text)
    if len(to_text) == len(video):
        to_video = to_text.T
    else:
        to_video = scale * text[rows] @ video.T
        if same is not None:
            to_video = to_video.masked_fill(same, float("-inf"))
    total = F.cross_entropy(to_text, labels, reduction="sum") + F.cross_entropy(to_video, labels, reduction="sum")
    return total / (2 * len(video)), (to_text.detach().argmax(dim=1) == labels).sum()


def siglip_rows(
    video: Float[Tensor, "G E"],
    text: Float[Tensor, "G E"],
    rows: slice,
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | None,
    classes: Int[Tensor, " G"] | None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The rows' share of the pairwise sigmoid loss (Zhai et al. 2023, arXiv 2303.15343, equation 1):

        -1/G * sum over i, j of log sigmoid(z_ij (scale * video_i . text_j + bias)),  z_ij = 1 if i = j else -1.

    Pairs of equal texts (i != j) are left out where `classes` are given. Returns as info_nce_rows.
    """
    similarity = scale * video[rows] @ text.T
    logits = similarity if bias is None else similarity + bias
    labels = _labels(rows, logits)
    sign = torch.full_like(logits, -1.0).scatter_(1, labels[:, None], 1.0)
    losses = -F.logsigmoid(sign * logits)
    same = _same_text(classes, rows)
    if same is not None:
        losses = losses.masked_fill(same, 0.0)
        logits = logits.masked_fill(same, float("-inf"))
    return losses.sum() / len(video), (logits.detach().argmax(dim=1) == labels).sum()


ContrastiveRows = Callable[..., tuple[Tensor, Tensor]]

# name -> the loss of a block of rows
CONTRASTIVE: dict[str, ContrastiveRows] = {"infonce": info_nce_rows, "siglip": siglip_rows}


def _labels(rows: slice, like: Tensor) -> Int[Tensor, " R"]:
    return torch.arange(rows.start, rows.stop, device=like.device)


def _same_text(classes: Int[Tensor, " G"] | None, rows: slice) -> Tensor | None:
    """bool[R, G]: equal texts of different clips."""
    if classes is None:
        return None
    same = classes[rows, None] == classes[None, :]
    same[torch.arange(len(same)), torch.arange(rows.start, rows.stop)] = False
    return same


def contrastive_loss(
    kind: str,
    video: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | None = None,
    text_ids: Int[Tensor, "B L"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """A row of CONTRASTIVE over the global batch, in fp32 whatever autocast is on, and the accuracy.

    Args:
        video, text: rows of length 1 (L2-normalised), row i of one belonging to row i of the other.
        scale: inverse temperature; bias: of SigLIP's logits.
        text_ids: tokens; when given, two clips with the same text are not each other's negatives. The published loss
            has no such mask, and on millions of free narrations needs none; among a thousand clips of a few actions
            most batches hold duplicates, and pushing them apart teaches noise.

    Returns:
        loss; and the fraction of clips whose own text (or an equal one) is the most similar, without gradient.
    """
    with torch.autocast(video.device.type, enabled=False):
        video, text = (gather_with_gradient(in_full_precision(x)) for x in (video, text))
        classes = None if text_ids is None else text_classes(text_ids)
        loss, hits = CONTRASTIVE[kind](video, text, slice(0, len(video)), scale, bias, classes)
    return loss, hits / len(video)


def contrastive_gradients(
    kind: str,
    video: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    log_scale: Float[Tensor, ""],
    bias: Float[Tensor, ""] | None,
    text_ids: Int[Tensor, "B L"] | None,
    *,
    block: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], list[Tensor]]:
    """contrastive_loss and its accuracy, with the gradients of the global loss, `block` rows at a time.

    Each process goes through its own rows of the matrix; the gradients are summed over the processes.

    Args:
        video, text: embeddings that carry no graph.

    Returns:
        loss; accuracy; gradients by this process's video [B, E] and text [B, E], by log_scale and by bias (zero for None).
    """
    with torch.autocast(video.device.type, enabled=False), torch.enable_grad():
        count = len(video)
        first = count * (torch.distributed.get_rank() if is_distributed() else 0)
        leaves = [gather_rows(in_full_precision(x.detach())).clone().requires_grad_() for x in (video, text)]
        log_scale = log_scale.detach().clone().requires_grad_()
        shift = (torch.zeros_like(log_scale) if bias is None else bias.detach().clone()).requires_grad_()
        leaves += [log_scale, shift]
        classes = None if text_ids is None else text_classes(text_ids)
        loss = torch.zeros_like(log_scale.detach())
        hits = torch.zeros((), device=video.device)
        for start in range(first, first + count, block):
            rows = slice(start, min(start + block, first + count))
            share, right = CONTRASTIVE[kind](leaves[0], leaves[1], rows, log_scale.exp(), shift, classes)
            share.backward()
            loss, hits = loss + share.detach(), hits + right
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    if is_distributed():
        for tensor in (loss, hits, *gradients):
            torch.distributed.all_reduce(tensor)
    own = slice(first, first + count)
    return loss, hits / (count * world_size()), [gradients[0][own], gradients[1][own], *gradients[2:]]


def info_nce(
    video: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""] | float,
    text_ids: Int[Tensor, "B L"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """contrastive_loss with the published objective."""
    return contrastive_loss("infonce", video, text, scale, None, text_ids)

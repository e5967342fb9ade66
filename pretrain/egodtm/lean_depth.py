"""The fine half of the depth head in little memory: mask features and composition a few frames at a time, made again
for the backward pass instead of being kept.

At 112 x 112 the plain head holds about ten maps of 256 channels a frame until the backward pass, four times those of
56 x 56. Here a chunk of frames goes from the coarse map to its depth under activation checkpointing (Chen et al. 2016,
arXiv 1604.06174), so what lasts is the depth itself. The formula is the plain one with two steps regrouped:

- the 1x1 convolution of the mask features meets the queries first: e . (W f + b) = (W^T e) . f + e . b, which saves a
  map of C channels and most of that convolution's arithmetic;
- all stages are one product with the features, which are read where they lie (channels last).

Axes: B batch, T frames, n = B * T images, C channels, h w grid of patches, H W depth map, S stages, Q queries.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrain.egodtm.depth_decoder import Readings
from pretrain.egodtm.pyramid import SimpleFeaturePyramid

# Parts that a batch is painted in. The peak falls with it until a part is one image.
CHUNKS = 16


def paint_lean(
    pyramid: SimpleFeaturePyramid, maps: Float[Tensor, "n C h w"], readings: Readings, *, chunks: int = CHUNKS
) -> Float[Tensor, "S B T H W"]:
    """Inverse depth of every stage: `paint(readings, pyramid.mask_features(pyramid.fine(maps)))`."""
    embeddings, centres = readings
    clips, frames = embeddings.shape[1], len(maps) // embeddings.shape[1]
    weight, bias = pyramid.mask_features.weight.flatten(1), pyramid.mask_features.bias
    assert bias is not None
    # Per clip, the stages side by side: [B, S * Q, C] and [B, S, Q].
    folded = (embeddings @ weight).transpose(0, 1).flatten(1, 2)
    offset = (embeddings @ bias).transpose(0, 1).flatten(1, 2)
    centres = centres.transpose(0, 1)
    of_clip = torch.arange(clips, device=maps.device).repeat_interleave(frames)
    # Nothing here is drawn, so there is no generator's state to keep.
    run = partial(checkpoint, _paint_chunk, use_reentrant=False, preserve_rng_state=False)
    paint_chunk = run if torch.is_grad_enabled() else _paint_chunk
    depth = [
        paint_chunk(pyramid, part, folded[clip], offset[clip], centres[clip])
        for part, clip in zip(_split(maps, chunks), _split(of_clip, chunks), strict=True)
    ]
    return torch.cat(depth).movedim(1, 0).unflatten(1, (clips, frames))


def _split(x: Tensor, chunks: int) -> tuple[Tensor, ...]:
    return x.split(-(-len(x) // chunks))


def _paint_chunk(
    pyramid: SimpleFeaturePyramid,
    maps: Float[Tensor, "n C h w"],
    embeddings: Float[Tensor, "n SQ C"],
    offset: Float[Tensor, "n SQ"],
    centres: Float[Tensor, "n S Q"],
) -> Float[Tensor, "n S H W"]:
    features = pyramid.fine(maps.contiguous(memory_format=torch.channels_last))
    pixels = features.permute(0, 2, 3, 1).flatten(1, 2)  # [n, HW, C], a view of channels-last memory
    logits = torch.baddbmm(offset.unsqueeze(1), pixels, embeddings.transpose(1, 2))
    weights = logits.unflatten(-1, centres.shape[1:]).softmax(dim=-1)  # [n, HW, S, Q]
    depth = (weights * centres.unsqueeze(1)).sum(dim=-1)
    return depth.transpose(1, 2).unflatten(-1, features.shape[-2:])

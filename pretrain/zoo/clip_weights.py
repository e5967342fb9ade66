"""CLIP checkpoints of others as a start for EgoDTM's two towers: names to names, nothing else.

Two layouts are read: timm's CLIP image towers, and CLIP's own names as OpenAI, open_clip, LaViLa and AVION write them
(AVION's whole video tower, with temporal positions and the patch embedding as a linear layer, is EgoDTM's).
Every name of a file is either placed, or left out and said so, or refused.

OpenAI's weights, and whatever was trained on from them, expect QuickGELU in the feed-forward layers. EgoDTM has exact GELU,
as the published model has with the same weights; the first steps of training absorb the difference.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pretrain.zoo.vision_ops import timm

TIMM_PREFIX = "timm:"

_VISION, _TEXT = "video.vit.", "text."
_SPATIAL, _TEMPORAL = f"{_VISION}spatial_position", f"{_VISION}temporal_position"
_PROJECTIONS = ("video_projection.weight", "text.projection.weight")

# Parts of a transformer block -> ours. Those of FlashAttention's classes, which AVION can be trained with, come last.
_BLOCK_PARTS = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.Wqkv": "attn.qkv",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_CLIP_BLOCK = (
    r"(?:transformer)\.resblocks\.(\d+)\.(ln_1|ln_2|attn\.in_proj_|attn\.out_proj|mlp\.c_fc|mlp\.c_proj"
    r"|attn\.Wqkv|mlp\.fc1|mlp\.fc2)\.?(weight|bias)"
)
_TEXT_PREFIX = r"(?:textual\.|text\.)?"

# pattern of a whole name -> our name (with the groups of the pattern), None: knowingly left out
_TIMM_RULES: dict[str, str | None] = {
    r"cls_token": f"{_VISION}class_token",
    r"pos_embed": _SPATIAL,
    r"patch_embed\.proj\.weight": f"{_VISION}patch_embed.weight",
    r"norm_pre\.(weight|bias)": rf"{_VISION}ln_pre.\1",
    r"norm\.(weight|bias)": rf"{_VISION}ln_post.\1",
    r"(blocks\.\d+\.(?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?:weight|bias))": rf"{_VISION}\1",
    r"head\.(?:weight|bias)": None,
}
_CLIP_RULES: dict[str, str | None] = {
    r"visual\.class_embedding": f"{_VISION}class_token",
    r"visual\.positional_embedding": _SPATIAL,
    r"visual\.temporal_embedding": _TEMPORAL,
    r"visual\.conv1\.weight": f"{_VISION}patch_embed.weight",
    r"visual\.(ln_pre|ln_post)\.(weight|bias)": rf"{_VISION}\1.\2",
    rf"visual\.{_CLIP_BLOCK}": _VISION,
    r"visual\.proj|(?:visual\.)?image_projection": _PROJECTIONS[0],
    rf"{_TEXT_PREFIX}token_embedding\.weight": f"{_TEXT}token_embedding.weight",
    rf"{_TEXT_PREFIX}positional_embedding": f"{_TEXT}position",
    rf"{_TEXT_PREFIX}{_CLIP_BLOCK}": _TEXT,
    rf"{_TEXT_PREFIX}ln_final\.(weight|bias)": rf"{_TEXT}ln_final.\1",
    rf"{_TEXT_PREFIX}text_projection": _PROJECTIONS[1],
    # EgoDTM's temperature is its own; the rest are constants that some exports hold.
    rf"logit_scale|logit_bias|{_TEXT_PREFIX}attn_mask|input_resolution|context_length|vocab_size": None,
}
# name -> (a tensor by which it is known, rules)
LAYOUTS: dict[str, tuple[str, dict[str, str | None]]] = {
    "timm": ("patch_embed.proj.weight", _TIMM_RULES),
    "clip": ("visual.conv1.weight", _CLIP_RULES),
}


@dataclass(frozen=True, kw_only=True)
class ClipWeights:
    """tensors: by EgoDTM's names, in the source's sizes. left_out: the source's names that have no place."""

    layout: str
    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]


def rename(state: Mapping[str, Any], *, where: str) -> ClipWeights:
    """A CLIP state dict, or a checkpoint that holds one as "state_dict", to EgoDTM's names.

    Raises:
        ValueError: neither layout, or names that are in no layout; `where` says where the state came from.
    """
    state = _unwrapped(state)
    layout = next((name for name, (mark, _) in LAYOUTS.items() if mark in state), None)
    if layout is None:
        marks = ", ".join(f"{mark} ({name})" for name, (mark, _) in LAYOUTS.items())
        raise ValueError(
            f"{where} is not a CLIP checkpoint that is known here: expected a tensor named {marks}, found "
            f"{', '.join(sorted(state)[:5]) or 'no tensors'}"
        )
    _, rules = LAYOUTS[layout]
    tensors: dict[str, Tensor] = {}
    left_out, unknown = [], []
    for name, value in state.items():
        place = _place(name, rules)
        if place is None:
            unknown.append(name)
        elif not place:
            left_out.append(name)
        elif place in tensors:
            raise ValueError(f"{where}: two tensors for {place}, the second is {name}")
        else:
            tensors[place] = _reshaped(place, name, value)
    if unknown:
        raise ValueError(
            f"{where}: no place for {', '.join(sorted(unknown)[:8])}{' ...' if len(unknown) > 8 else ''} "
            f"({len(unknown)} tensors of {len(state)}). Only CLIP's plain ViT with pre-norm fits (joint space-time "
            "attention for video); divided space-time attention, layer scale and other heads do not"
        )
    return ClipWeights(layout=layout, tensors=tensors, left_out=tuple(sorted(left_out)))


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    inner = state.get("state_dict", state.get("model", state))
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _place(name: str, rules: Mapping[str, str | None]) -> str | None:
    """Our name; empty if it is to be left out; None if no rule knows it."""
    for pattern, target in rules.items():
        match = re.fullmatch(pattern, name)
        if match and target is None:
            return ""
        if match and target in (_VISION, _TEXT):
            index, part, kind = match.groups()
            return f"{target}blocks.{index}.{_BLOCK_PARTS[part].rstrip('.')}.{kind}"
        if match and target is not None:
            return match.expand(target)
    return None


def _reshaped(place: str, name: str, value: Tensor) -> Tensor:
    if place == f"{_VISION}class_token":
        return value.reshape(-1)
    if place in (_SPATIAL, _TEMPORAL):
        return value.reshape(-1, value.shape[-1])
    if place == f"{_VISION}patch_embed.weight":
        return value.flatten(1)  # a convolution's kernel, channel-major, as our patches are
    # Projections are matrices that are multiplied from the right.
    return value.T.contiguous() if place in _PROJECTIONS and not name.endswith(".weight") else value


def resize_spatial(table: Float[Tensor, "n D"], grid_side: int, *, where: str) -> Float[Tensor, "m D"]:
    """[1 + h * h, D] to [1 + grid_side^2, D]: the class token's row as it is, the grid bicubically (antialiased)."""
    side = round((len(table) - 1) ** 0.5)
    if 1 + side * side != len(table):
        raise ValueError(f"{where}: {len(table)} spatial positions are not a class token's and a square grid's")
    if side == grid_side:
        return table
    grid = table[1:].float().T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(grid_side, grid_side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:1], grid.flatten(2)[0].T.to(table.dtype)])


def resize_temporal(table: Float[Tensor, "n D"], frames: int) -> Float[Tensor, "T D"]:
    """Linearly between the frames, whose times are the middles of equal parts of the clip."""
    if len(table) == frames:
        return table
    resized = F.interpolate(table.float().T[None], size=frames, mode="linear", align_corners=False)
    return resized[0].T.to(table.dtype)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """tensors: fit the model by name and shape. left_out: the source's tensors that were not used, with the reason where it
    is not the layout's. fresh: the model's tensors that keep their random start."""

    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]
    fresh: tuple[str, ...]


def fit_to(weights: ClipWeights, expected: Mapping[str, Tensor], *, grid_side: int, frames: int, where: str) -> Fitted:
    """The tensors for a model with the state dict `expected`: positions resized, projections of another width left out.

    Raises:
        ValueError: a tower's tensor is missing, surplus (a deeper tower) or of another shape. A source without a text tower
            leaves ours as it is; temporal positions that are absent stay zero, so that frames start out alike.
    """
    tensors, left_out = dict(weights.tensors), list(weights.left_out)
    if _SPATIAL in tensors:
        tensors[_SPATIAL] = resize_spatial(tensors[_SPATIAL], grid_side, where=where)
    if _TEMPORAL in tensors:
        tensors[_TEMPORAL] = resize_temporal(tensors[_TEMPORAL], frames)
    for name in _PROJECTIONS:
        if name in tensors and tensors[name].shape != expected[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, here {tuple(expected[name].shape)}"
            left_out.append(f"{name} ({shapes})")
            del tensors[name]
    towers = [_VISION] + ([_TEXT] if any(name.startswith(_TEXT) for name in tensors) else [])
    needed = {name for name in expected if name.startswith(tuple(towers)) and name not in (*_PROJECTIONS, _TEMPORAL)}
    problems = []
    if missing := sorted(needed - tensors.keys()):
        problems.append(f"missing: {', '.join(missing)}")
    if surplus := sorted(tensors.keys() - expected.keys()):
        problems.append(f"no such tensors in the model: {', '.join(surplus)}")
    problems += [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if problems:
        raise ValueError(
            f"{where} does not fit the model: {'; '.join(problems[:6])}. Choose the size= (and stem=patch) of the same "
            "width, depth and patch: CLIP ViT-B/16 is size=base"
        )
    tensors = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    return Fitted(
        tensors=tensors, left_out=tuple(sorted(left_out)), fresh=tuple(sorted(expected.keys() - tensors.keys()))
    )


# ------------------------------------------------------------------------------------------------------------ from files


def weights_file(init: str) -> Path:
    """The file that `init` names: a path, or `timm:<model>`, whose file must be in the local Hugging Face cache.

    Raises:
        FileNotFoundError: it is not there; names the file and where it comes from. Nothing is downloaded.
        ValueError: no such timm model, or one without published weights.
    """
    if not init.startswith(TIMM_PREFIX):
        path = Path(init)
        if not path.is_file():
            raise FileNotFoundError(
                f"init={init}: no such file. It is a CLIP checkpoint of open_clip, LaViLa or AVION, or timm's; "
                "init=null starts from random weights"
            )
        return path
    from huggingface_hub import try_to_load_from_cache

    name = init.removeprefix(TIMM_PREFIX)
    found = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    if found is None or not found.hf_hub_id:
        raise ValueError(
            f"init={init}: timm has no such model with published weights; "
            f"`timm.list_pretrained('*clip*')` lists those of CLIP, e.g. {TIMM_PREFIX}vit_base_patch16_clip_224.openai"
        )
    file = found.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(found.hf_hub_id, file)
    if not isinstance(cached, str):
        raise FileNotFoundError(
            f"init={init}: {file} of https://huggingface.co/{found.hf_hub_id} is not in the local cache and nothing is "
            f"downloaded here. Fetch it where there is a network (`hf download {found.hf_hub_id} {file}`), or give its "
            "path as init="
        )
    return Path(cached)

"""Robot and egocentric encoders that others have released, from their files: names to names onto timm's models, nothing else.

Each row of RELEASES says what the file is, where it is published, and how its authors prepare an image. Every tensor of a file
is placed, or left out by a pattern of the row, or refused by name. docs/encoders.md lists the rows for users.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.artifact import load_tensors_strict
from pretrain.encoder import VideoEncoder
from pretrain.zoo.timm_image import TimmEncoder
from pretrain.zoo.weight_files import read_checkpoint

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Release:
    """One published encoder. It takes one image; pooled is what its authors feed to policies.

    Attributes:
        model: of timm, with the same architecture; settings, norm_epsilon: where it differs from timm's.
        image_size: H = W, pixels; None: timm's own (224).
        resize, mean, std: how the authors prepare an image, fields of EncoderSpec.
        file: its name where it is published; published: where.
        entry: under which the tensors may lie in the file; a file without it holds the tensors themselves, as safetensors do.
        prefix: of the encoder's tensors, a pattern that is taken off.
        left_out: pattern of whole names that are no part of the encoder.
        convert: the encoder's tensors by the file's names (without prefix) to timm's.
    """

    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    norm_epsilon: float | None = None
    image_size: int | None = None
    resize: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    file: str
    published: str
    entry: str
    prefix: str = ""
    left_out: str
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict


# transformers' ViT, as Theia was saved, -> timm's. Query, key and value of a block are put together separately.
_THEIA_TOKENS = {"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed"}
_THEIA_LAYERS = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}
_THEIA_PARTS = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_THEIA_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_THEIA_QKV = re.compile(r"attention\.attention\.(query|key|value)")


def _from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' ViT to timm's. A name without a rule stays as it is, and is refused as surplus."""
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        block = _THEIA_BLOCK.fullmatch(layer)
        if name in _THEIA_TOKENS:
            converted[_THEIA_TOKENS[name]] = tensor
        elif layer in _THEIA_LAYERS:
            converted[f"{_THEIA_LAYERS[layer]}.{kind}"] = tensor
        elif block and (found := _THEIA_QKV.fullmatch(block[2])):
            parts.setdefault(f"blocks.{block[1]}.attn.qkv.{kind}", {})[found[1]] = tensor
        elif block and block[2] in _THEIA_PARTS:
            converted[f"blocks.{block[1]}.{_THEIA_PARTS[block[2]]}.{kind}"] = tensor
        else:
            converted[name] = tensor
    for name, found in parts.items():
        # An incomplete one is left out, so that it is reported as missing.
        if found.keys() == {"query", "key", "value"}:
            converted[name] = torch.cat([found["query"], found["key"], found["value"]])
    return converted


def _r3m(depth: int, published: str) -> Release:
    """arXiv 2203.12601. The file holds the whole model as torch.nn.DataParallel saved it, with its language heads."""
    return Release(
        model=f"resnet{depth}",
        resize="center-crop-0.875",
        file="model.pt",
        published=f"https://drive.google.com/uc?id={published} (r3m_{depth} of https://github.com/facebookresearch/r3m, MIT)",
        entry="r3m",
        prefix=r"(?:module\.)?convnet\.",
        left_out=r"(?:module\.)?lang_(?:enc|rew)\..*",
    )


def _vc1(size: str) -> Release:
    """arXiv 2303.18240: MAE's ViT, whose class token after the last norm is the feature."""
    return Release(
        model=f"vit_{size}_patch16_224",
        resize="center-crop-0.875-bicubic",
        file=f"vc1_vit{size[0]}.pth",
        published=f"https://dl.fbaipublicfiles.com/eai-vc/vc1_vit{size[0]}.pth (CC BY-NC 4.0)",
        entry="model",
        left_out=r"decoder_.*|mask_token|head\..*",
    )


def _mvp(size: str, file: str, published: str, **changes: Any) -> Release:
    """arXiv 2203.06173 and 2210.03109: MAE's ViT, whose class token after the last norm is the feature."""
    return Release(
        model=f"vit_{size}_patch16_224",
        resize="center-crop",
        file=file,
        published=f"https://berkeley.box.com/shared/static/{published}.pth (https://github.com/ir413/mvp)",
        entry="model",
        left_out=r"decoder_.*|mask_token|head\..*",
        **changes,
    )


def _theia(size: str) -> Release:
    """arXiv 2407.20179: DeiT distilled into, of which the patch tokens are used. Prepared as transformers does for DeiT."""
    return Release(
        model=f"deit_{size}_patch16_224",
        # What was distilled are the patch tokens: no target trained the class token.
        settings={"global_pool": "avg", "fc_norm": False},
        norm_epsilon=1e-12,
        resize="stretch",
        mean=HALF,
        std=HALF,
        file="model.safetensors",
        published=f"https://huggingface.co/theaiinstitute/theia-{size}-patch16-224-cdiv, or -cddsv (for non-commercial research)",
        entry="model",
        prefix=r"backbone\.model\.",
        left_out=r"translator\..*|backbone\.model\.pooler\..*",
        convert=_from_transformers,
    )


def _spa(size: str) -> Release:
    """arXiv 2410.08208: ViT trained by neural rendering; its class token is the feature. The file holds the whole model."""
    return Release(
        model=f"vit_{size}_patch16_224",
        resize="center-crop-bicubic",
        file=f"spa-{size[0]}.safetensors or spa-{size[0]}.ckpt",
        published="https://huggingface.co/HaoyiZhu/SPA (MIT)",
        entry="state_dict",
        prefix=r"model\.img_backbone\.",
        left_out=r"(?!model\.img_backbone\.).*|model\.img_backbone\.(?:decoder_|mask_token|readout_|upsample\.|head\.).*",
    )


RELEASES: dict[str, Release] = {
    "r3m/resnet18": _r3m(18, "1A1ic-p4KtYlKXdXHcV2QV0cUzI4kn0u-"),
    "r3m/resnet34": _r3m(34, "15bXD3QRhspIRacOKyWPw5y2HpoWUCEnE"),
    "r3m/resnet50": _r3m(50, "1Xu0ssuG0N1zjZS54wmWzJ7-nb0-7XzbA"),
    "vc1/vitb": _vc1("base"),
    "vc1/vitl": _vc1("large"),
    # Twelve heads where everybody else's ViT-S has six: the shapes are the same, the function is not.
    "mvp/vits": _mvp(
        "small", "mae_pretrain_hoi_vit_small.pth", "m93ynem558jo8vltlads5rcmnahgsyzr", settings={"num_heads": 12}
    ),
    "mvp/vitb": _mvp("base", "mae_pretrain_egosoup_vit_base.pth", "0ckepd2ja3pi570z89ogd899cn387yut"),
    "mvp/vitl": _mvp(
        "large", "mae_pretrain_egosoup_vit_large_256.pth", "6p0pc47mlpp4hhwlin2hf035lxlgddxr", image_size=256
    ),
    "theia/tiny": _theia("tiny"),
    "theia/small": _theia("small"),
    "theia/base": _theia("base"),
    "spa/base": _spa("base"),
    "spa/large": _spa("large"),
}


def build_released_encoder(name: str, *, seed: int, is_untrained: bool = False) -> VideoEncoder:
    """`<family>/<size>@<file>` with the file's weights; untrained, the same network with weights drawn from the seed.

    Raises:
        ValueError: no such row, no file named, or a file whose tensors do not fit; names them.
        FileNotFoundError: the file is not there. Nothing is downloaded.
    """
    row, _, weights = name.partition("@")
    if row not in RELEASES:
        close = difflib.get_close_matches(row, RELEASES, n=3, cutoff=0.3)
        raise ValueError(f"unknown released encoder {row!r}: did you mean {' or '.join(close or RELEASES)}?")
    release = RELEASES[row]
    wanted = (
        f"It is {release.file} of {release.published}; nothing is downloaded here. Name it as {row}@<path of the file>"
    )
    if not weights and not is_untrained:
        raise ValueError(f"encoder {name!r} needs its file of weights. {wanted}; random:{row} needs none")
    if not is_untrained and not Path(weights).is_file():
        raise FileNotFoundError(f"encoder {row}: no file at {weights}. {wanted}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = TimmEncoder(
            release.model,
            name=name,
            image_size=release.image_size,
            settings=release.settings,
            norm_epsilon=release.norm_epsilon,
        )
    encoder.spec = dataclasses.replace(encoder.spec, resize=release.resize, mean=release.mean, std=release.std)
    if not is_untrained:
        load_tensors_strict(encoder.model, read_release(release, Path(weights)), f"{weights} ({row})")
    return encoder.renamed(name).eval()


def read_release(release: Release, path: Path) -> dict[str, Tensor]:
    """The encoder's tensors in a released file, by timm's names.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; or the file holds something else than tensors by name.
    """
    found = read_checkpoint(path)
    inner = found.get(release.entry, found)
    if not isinstance(inner, Mapping):
        raise ValueError(f"{path}: entry {release.entry!r} is a {type(inner).__name__}, expected tensors by name")
    kept: dict[str, Tensor] = {}
    for name, tensor in inner.items():
        if re.fullmatch(release.left_out, name):
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{path}: {name!r} is a {type(tensor).__name__}, expected a tensor: the tensors of {release.file} lie under "
                f"{release.entry!r}, or are all that the file holds"
            )
        kept[re.sub(f"^{release.prefix}", "", name)] = tensor
    return release.convert(kept)

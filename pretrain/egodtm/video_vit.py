"""EgoDTM's video tower: a ViT with joint space-time attention, on timm's blocks.

Structure of the published model (arXiv 2503.15470, whose video tower is AVION's): linear patch embedding without bias;
one spatial position table shared by all frames plus a temporal one that starts at zero; one class token that gets only
the table's first row; LayerNorm before and after the blocks; every token attends to every token of every frame.

Axes: B batch, T frames, D width, h w patches of a frame, N = T * h * w patch tokens.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.zoo.vision_ops import timm_vit

NORM_EPSILON = 1e-6
STEMS = ("patch", "conv")


@dataclass(frozen=True, kw_only=True)
class VideoViTConfig:
    """Size and shape of the video tower; `size` rows of VIDEO_SIZES fill width, layers and heads.

    `stem`: what makes a token of a patch, a row of STEMS. "patch" is the published linear map. "conv" is ours for training
    from scratch on few samples: 3x3 convolutions of stride 2 (Xiao et al. 2021, arXiv 2106.14881).
    """

    frames: int = 4
    image_size: int = 112
    patch_size: int = 16
    width: int = 192
    layers: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    stem: str = "patch"

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise ValueError(f"video.stem: expected one of {', '.join(STEMS)}, got {self.stem!r}")
        if self.stem == "conv" and self.patch_size.bit_count() != 1:
            raise ValueError(f"video.stem=conv: patch_size must be a power of two, got {self.patch_size}")
        for field in ("frames", "image_size", "patch_size", "width", "layers", "heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"video.{field}: expected at least 1, got {getattr(self, field)}")
        if self.image_size % self.patch_size:
            lower = self.image_size - self.image_size % self.patch_size
            raise ValueError(
                f"video.image_size: {self.image_size} is not a multiple of the patch of {self.patch_size} px; "
                f"nearest that are: {lower}, {lower + self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(f"video.width: {self.width} is not a multiple of heads {self.heads}")
        if self.width % 4:
            raise ValueError(f"video.width: {self.width} is not a multiple of 4, which 2D sin-cos positions need")

    @classmethod
    def of_size(cls, size: str, **overrides: Any) -> Self:
        """The named row of VIDEO_SIZES with fields replaced."""
        if size not in VIDEO_SIZES:
            raise ValueError(f"unknown size {size!r}; known: {', '.join(VIDEO_SIZES)}")
        return cls(**(VIDEO_SIZES[size] | overrides))

    @property
    def grid_side(self) -> int:
        """h = w, patches along one side of a frame."""
        return self.image_size // self.patch_size


# ViT's usual widths. Nano is for tests and trials of the machinery; tiny is made for a CPU (4 x 112 px, 197 tokens); base is the published model (4 x 224 px, 785).
VIDEO_SIZES: dict[str, dict[str, Any]] = {
    "nano": {"image_size": 32, "width": 32, "layers": 2, "heads": 2},
    "tiny": {"image_size": 112, "width": 192, "layers": 12, "heads": 3},
    "small": {"image_size": 224, "width": 384, "layers": 12, "heads": 6},
    "base": {"image_size": 224, "width": 768, "layers": 12, "heads": 12},
}


class VideoViT(nn.Module):
    """The tower. `forward` gives the class token and the patch tokens, both after the same final LayerNorm."""

    def __init__(self, config: VideoViTConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.width, config.grid_side
        self.patch_embed = (
            ConvStem(config.patch_size, width)
            if config.stem == "conv"
            else nn.Linear(3 * config.patch_size**2, width, bias=False)
        )
        self.class_token = nn.Parameter(torch.empty(width))
        self.spatial_position = nn.Parameter(torch.empty(1 + side * side, width))
        self.temporal_position = nn.Parameter(torch.empty(config.frames, width))
        norm = partial(nn.LayerNorm, eps=NORM_EPSILON)
        self.ln_pre = norm(width)
        self.blocks = nn.ModuleList(
            timm_vit.Block(
                dim=width, num_heads=config.heads, mlp_ratio=config.mlp_ratio, qkv_bias=True, norm_layer=norm
            )
            for _ in range(config.layers)
        )
        self.ln_post = norm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform linear layers, sin-cos spatial positions (learnable), temporal positions zero.

        The sin-cos start matters at a CPU's sample counts: from timm's default positions, short depth and caption
        training stayed at chance. A random control must start from the same, so it comes from here too.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.zeros_(self.temporal_position)
        with torch.no_grad():
            self.spatial_position[0].zero_()
            self.spatial_position[1:] = sincos_positions_2d(self.config.grid_side, self.config.width)

    def patchify(self, video: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T hw c"]:
        """Non-overlapping patches, row by row; within a patch channel-major (c, row, column), as a convolution's kernel."""
        side, patch = self.config.grid_side, self.config.patch_size
        batch, frames = video.shape[:2]
        cut = video.reshape(batch, frames, 3, side, patch, side, patch)
        return cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, frames, side * side, 3 * patch * patch)

    def forward(self, video: Float[Tensor, "B T 3 H W"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B N D"]]:
        """Normalised frames (T and H = W as configured) to (class token, patch tokens in frame-major order)."""
        patches = self.patch_embed(video if self.config.stem == "conv" else self.patchify(video))
        patches = patches + self.spatial_position[1:] + self.temporal_position[:, None]
        class_token = (self.class_token + self.spatial_position[0]).expand(len(video), 1, -1)
        tokens = self.ln_pre(torch.cat([class_token, patches.flatten(1, 2)], dim=1))
        choose_attention(self.blocks, tokens)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.ln_post(tokens)
        return tokens[:, 0], tokens[:, 1:]


class ConvStem(nn.Module):
    """log2(patch) 3x3 convolutions of stride 2, each with GroupNorm of one group (the batch does not matter) and ReLU, their
    width doubling up to D / 2 or more, then a 1x1 convolution to D. A token sees one patch and a rim of its neighbours."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        steps = patch.bit_length() - 1
        channels = [3, *(max(8, width >> (steps - 1 - i)) for i in range(steps))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(1, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], width, 1, bias=False))

    def forward(self, video: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T hw D"]:
        frames = video.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.layers(frames).flatten(2).transpose(1, 2).unflatten(0, video.shape[:2])


def choose_attention(blocks: Iterable[nn.Module], x: Tensor) -> None:
    """Sets the blocks' attention kernel for this input: fused, but for bf16 training on a CPU, where the backward pass of
    PyTorch's fused kernel is slower than plain matrix products."""
    slow = x.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    for block in blocks:
        block.attn.fused_attn = not slow


def sincos_positions_2d(side: int, width: int, temperature: float = 10000.0) -> Float[Tensor, "hw D"]:
    """Sine-cosine positions of a side x side grid, row by row: the first half of the channels codes the row, the second
    the column, each as sines then cosines of width / 4 frequencies falling geometrically from 1 to 1/temperature
    (Vaswani et al. 2017, section 3.5, per axis)."""
    frequency = temperature ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, width / 2]
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width).float()

"""The tokenizer of sequences (gaze, camera, hands): a transformer VQ-VAE over samples in time.

EgoM2P's own tokenizers of gaze and camera (arXiv 2506.07886; sizes from the authors' configurations): two samples a token,
12 blocks, a residual tanh MLP, a codebook of 256 directions in 32 dimensions, and the mirror of all that as the decoder.

Axes: B batch, P samples in time, C value channels, M mask channels, N = P / samples_per_token tokens, D width,
K dimensions of a code.

An input is [B, P, C + M]. Mask m, 1 where valid, covers the m-th M-th of the value channels: gaze has one mask over x and y,
hands one for each hand's joints, camera none. What is masked is neither seen nor counted, and is not decoded.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.distributed
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from pretrain.egom2p.modalities import MODALITIES, SEQUENCE, SEQUENCE_SAMPLES, TokenGrid
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer, TokenizerSpec, code_usage
from pretrain.zoo.vision_ops import timm_vit

NORM_EPSILON = 1e-6

# Statistics of the published camera tokenizer's training set: channels as in pretrain.egom2p.camera (two columns of the
# rotation, then the translation in metres).
PUBLISHED_CAMERA_MEAN = (
    0.93305040, 0.00441131, -0.00474551, -0.00403111, 0.96702217, 0.01229744, 0.00253670, -0.00253452, 0.03687088,
)  # fmt: skip
PUBLISHED_CAMERA_STD = (
    0.22410283, 0.15409595, 0.23538763, 0.15159239, 0.09890855, 0.17871061, 0.16229750, 0.11305995, 0.22450156,
)  # fmt: skip

# A channel that hardly moves in the training set is not blown up to unit variance.
SMALLEST_STD = 1e-3

# A code is dead when its running count falls below the threshold, 2 in the published training, where a step had 512 clips
# of 30 tokens for 256 codes: 60 uses a code. Smaller batches scale it, or every code would always be dead.
PUBLISHED_USES_PER_CODE = 60.0


@dataclass(frozen=True, kw_only=True)
class VqSequenceConfig:
    """Shape of a sequence tokenizer; `for_modality` fills in what the modality decides. Defaults: the published camera.

    Attributes:
        samples, channels, mask_channels: P, C and M of the input.
        samples_per_token: of the strided convolution; P is a multiple of it.
        width, layers, heads: of the encoder's and of the decoder's transformer.
        codebook_size, codebook_dim: number of codes (the vocabulary) and K.
        decay: of the moving averages that the codes are.
        dead_code_threshold: running uses below which a code is replaced by a latent of the batch, at
            PUBLISHED_USES_PER_CODE; scaled down for smaller batches. 0 replaces none.
        commitment_weight: of the codes' pull on the latents.
        reconstruction_weight: of the mean squared error. 2 for gaze, whose published loss sums x and y.
    """

    samples: int = SEQUENCE_SAMPLES
    channels: int = 9
    mask_channels: int = 0
    samples_per_token: int = 2
    width: int = 768
    layers: int = 12
    heads: int = 12
    codebook_size: int = 256
    codebook_dim: int = 32
    decay: float = 0.99
    dead_code_threshold: float = 2.0
    commitment_weight: float = 1.0
    reconstruction_weight: float = 1.0

    def __post_init__(self) -> None:
        for field in ("samples", "channels", "samples_per_token", "width", "layers", "heads", "codebook_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"vq_sequence.{field}: expected at least 1, got {getattr(self, field)}")
        for field in ("mask_channels", "dead_code_threshold", "commitment_weight", "reconstruction_weight"):
            if getattr(self, field) < 0:
                raise ValueError(f"vq_sequence.{field}: expected at least 0, got {getattr(self, field)}")
        if self.codebook_size < 2:
            raise ValueError(f"vq_sequence.codebook_size: expected at least 2, got {self.codebook_size}")
        if not 0 < self.decay < 1:
            raise ValueError(f"vq_sequence.decay: expected a number between 0 and 1, got {self.decay}")
        if self.samples % self.samples_per_token:
            raise ValueError(
                f"vq_sequence.samples: {self.samples} is not a multiple of samples_per_token {self.samples_per_token}"
            )
        if self.width % self.heads:
            raise ValueError(f"vq_sequence.width: {self.width} is not a multiple of heads {self.heads}")
        if self.width % 2:
            raise ValueError(f"vq_sequence.width: {self.width} is odd; sin-cos positions need an even number")
        if self.mask_channels and self.channels % self.mask_channels:
            raise ValueError(
                f"vq_sequence.mask_channels: {self.channels} channels do not divide among {self.mask_channels} masks"
            )

    @classmethod
    def for_modality(cls, modality: str, size: str = "published", **overrides: Any) -> Self:
        """Channels of a sequence of MODALITIES, sizes of a row of VQ_SEQUENCE_SIZES, and what differs by modality."""
        sequences = [name for name, row in MODALITIES.items() if row.kind == SEQUENCE]
        if modality not in sequences:
            raise ValueError(f"modality {modality!r} is no sequence; sequences: {', '.join(sequences)}")
        if size not in VQ_SEQUENCE_SIZES:
            raise ValueError(f"unknown size {size!r} of sequence tokenizer; known: {', '.join(VQ_SEQUENCE_SIZES)}")
        row = MODALITIES[modality]
        channels = {"channels": row.decoded_channels, "mask_channels": row.channels - row.decoded_channels}
        return cls(**(VQ_SEQUENCE_SIZES[size] | channels | _OF_MODALITY.get(modality, {}) | overrides))

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid(shape=(self.samples // self.samples_per_token,), vocabulary=self.codebook_size)

    @property
    def input_shape(self) -> tuple[int, int]:
        """[P, C + M]."""
        return (self.samples, self.channels + self.mask_channels)


# Nano is for tests, tiny for training on a CPU.
VQ_SEQUENCE_SIZES: dict[str, dict[str, Any]] = {
    "nano": {"width": 16, "layers": 1, "heads": 2, "codebook_size": 16, "codebook_dim": 8},
    "tiny": {"width": 128, "layers": 3, "heads": 4},
    "published": {},
}

# Hands: 126 numbers a sample instead of 2 or 9. A later model of the same group (arXiv 2607.17790) gives them 1024 codes.
_OF_MODALITY: dict[str, dict[str, Any]] = {
    "gaze": {"reconstruction_weight": 2.0},
    "hands": {"codebook_size": 1024},
}


class TimeTransformer(nn.Module):
    """Fixed sin-cos positions, pre-norm blocks, and a residual MLP with tanh: x + MLP(LayerNorm(x))."""

    positions: Tensor

    def __init__(self, tokens: int, config: VqSequenceConfig) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=NORM_EPSILON)
        self.register_buffer("positions", sincos_positions_1d(tokens, config.width), persistent=False)
        self.blocks = nn.Sequential(
            *(
                timm_vit.Block(dim=config.width, num_heads=config.heads, qkv_bias=True, norm_layer=norm)
                for _ in range(config.layers)
            )
        )
        self.norm = norm(config.width)
        self.mlp = timm_vit.Mlp(config.width, hidden_features=4 * config.width, act_layer=nn.Tanh)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        x = self.blocks(x + self.positions)
        return x + self.mlp(self.norm(x))


class VqSequenceTokenizer(Tokenizer):
    """Sequences to ids and back. `mean` and `std` of the channels are its own (buffers): see `fit_statistics`."""

    architecture = "vq-sequence"
    mean: Tensor
    std: Tensor
    clips_at_once = 256

    def __init__(self, config: VqSequenceConfig, *, name: str, modalities: tuple[str, ...]) -> None:
        spec = TokenizerSpec(name=name, modalities=modalities, grid=config.grid, input_shape=config.input_shape)
        super().__init__(spec, dataclasses.asdict(config))
        self.shape = config
        tokens, stride = spec.grid.tokens, config.samples_per_token
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))
        self.cut = nn.Conv1d(config.channels, config.width, stride, stride=stride)
        self.encoder = TimeTransformer(tokens, config)
        self.to_code = nn.Conv1d(config.width, config.codebook_dim, 1)
        # The package would normalise latents before it pulls them to their codes; the published training does not, so
        # commitment and straight-through gradients are ours (`_quantize`), codes and their averages the package's.
        self.quantizer = VectorQuantize(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            use_cosine_sim=True,
            decay=config.decay,
            threshold_ema_dead_code=config.dead_code_threshold,
            commitment_weight=0.0,
            rotation_trick=False,
        )
        self.from_code = nn.Conv1d(config.codebook_dim, config.width, 1)
        self.decoder = TimeTransformer(tokens, config)
        self.to_values = nn.Linear(config.width, config.channels * stride)
        self.reset_parameters()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: TokenizerSpec) -> Self:
        """The same network from an artifact's config and spec, with fresh weights from torch's generator."""
        tokenizer = cls(VqSequenceConfig(**config), name=spec.name, modalities=spec.modalities)
        tokenizer.spec = spec
        return tokenizer

    def reset_parameters(self) -> None:
        """Xavier-uniform weights (query, key and value each for itself), zero biases, short latents, small values."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv1d):
                continue
            parts = module.weight.chunk(3) if name.endswith("qkv") else (module.weight,)
            for part in parts:
                nn.init.xavier_uniform_(part.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        # Latents near the codes' length of 1, and values near the mean, to start from.
        with torch.no_grad():
            self.to_code.weight.mul_(self.shape.codebook_dim**-0.5)
            self.to_values.weight.mul_(0.1)

    # -------------------------------------------------------------------------------------------------- standardisation

    def set_statistics(self, mean: Iterable[float] | Tensor, std: Iterable[float] | Tensor) -> None:
        """Mean and standard deviation of each value channel, e.g. PUBLISHED_CAMERA_MEAN and PUBLISHED_CAMERA_STD."""
        for name, given in (("mean", mean), ("std", std)):
            values = torch.as_tensor(given if isinstance(given, Tensor) else list(given), dtype=torch.float32)
            if values.shape != (self.shape.channels,) or not values.isfinite().all():
                raise ValueError(f"{name}: expected {self.shape.channels} finite numbers, got {values.tolist()}")
            if name == "std" and values.min() <= 0:
                raise ValueError(f"std: expected positive numbers, got {values.tolist()}")
            getattr(self, name).copy_(values)

    def fit_statistics(self, batches: Iterable[Float[Tensor, "B P CM"]]) -> None:
        """Sets mean and std from all valid values of `batches`, in float64. A standard deviation is SMALLEST_STD at least.

        Raises:
            ValueError: a batch of another shape, or no valid value at all in some channel.
        """
        count = torch.zeros(self.shape.channels, dtype=torch.float64)
        first, second = torch.zeros_like(count), torch.zeros_like(count)
        for batch in batches:
            self.check_input(batch)
            values, valid = self._split(batch.detach().cpu())
            values = values.double()
            count += valid.sum((0, 1))
            first += values.sum((0, 1))
            second += values.square().sum((0, 1))
        if (count == 0).any():
            raise ValueError(
                f"tokenizer {self.spec.name!r}: channels {(count == 0).nonzero().flatten().tolist()} have no valid value "
                "to take mean and standard deviation of: give it more clips, or set_statistics"
            )
        mean = first / count
        std = (second / count - mean.square()).clamp(min=SMALLEST_STD**2).sqrt()
        self.set_statistics(mean.float(), std.float())

    def _split(self, x: Float[Tensor, "B P CM"]) -> tuple[Float[Tensor, "B P C"], Bool[Tensor, "B P C"]]:
        """Values, zero where masked, and their validity."""
        values = x[..., : self.shape.channels]
        if not self.shape.mask_channels:
            return values, torch.ones_like(values, dtype=torch.bool)
        covered = self.shape.channels // self.shape.mask_channels
        valid = (x[..., self.shape.channels :] > 0.5).repeat_interleave(covered, dim=-1)
        return torch.where(valid, values, 0.0), valid

    def _standardised(self, x: Float[Tensor, "B P CM"]) -> tuple[Float[Tensor, "B P C"], Bool[Tensor, "B P C"]]:
        """Standardised values, zero (the mean) where masked, and their validity."""
        values, valid = self._split(x)
        return torch.where(valid, (values - self.mean) / self.std, 0.0), valid

    # ---------------------------------------------------------------------------------------------------- the contract

    def latents(self, standardised: Float[Tensor, "B P C"]) -> Float[Tensor, "B N K"]:
        tokens = self.cut(standardised.to(self.cut.weight.dtype).transpose(1, 2)).transpose(1, 2)
        return self.to_code(self.encoder(tokens).transpose(1, 2)).transpose(1, 2)

    def values(self, codes: Float[Tensor, "B N K"]) -> Float[Tensor, "B P C"]:
        """Standardised values of codes."""
        tokens = self.from_code(codes.to(self.cut.weight.dtype).transpose(1, 2)).transpose(1, 2)
        values = self.to_values(self.decoder(tokens))
        return values.unflatten(-1, (self.shape.channels, -1)).transpose(2, 3).flatten(1, 2).float()

    def clips_to_ids(self, x: Float[Tensor, "B P CM"]) -> Int64[Tensor, "B N"]:
        _, ids, _ = self.quantizer(self.latents(self._standardised(x)[0]).float(), freeze_codebook=True)
        return ids

    def codebook(self) -> Float[Tensor, "V K"]:
        """Unit vectors. A mean of several is shorter, the more so the more they differ: what the decoder makes of that is
        near its values' mean, as the mean of what it makes of each would be."""
        return self.quantizer.get_codes_from_indices(torch.arange(self.shape.codebook_size, device=self.mean.device))

    def codes_to_clips(self, codes: Float[Tensor, "B N K"]) -> Float[Tensor, "B P C"]:
        return self.values(codes) * self.std + self.mean

    def ids_to_clips(self, ids: Int64[Tensor, "B N"]) -> Float[Tensor, "B P C"]:
        return self.codes_to_clips(self.quantizer.get_codes_from_indices(ids))

    def loss(self, x: Float[Tensor, "B P CM"]) -> tuple[Tensor, dict[str, Tensor]]:
        """reconstruction_weight * mean squared error of valid standardised values + commitment_weight * commitment.

        In training mode the codes move too, by their averages. Scalars: `reconstruction`, `commitment`, and the batch's use
        of the codebook. Published: gaze sum(mask * error^2) / sum(mask) over samples, camera the plain mean.
        """
        self.check_input(x)
        target, valid = self._standardised(x)
        latents = self.latents(target).float()
        code, ids = self._quantize(latents)
        commitment = F.mse_loss(latents, code)
        error = self.values(latents + (code - latents).detach()) - target
        reconstruction = torch.where(valid, error.square(), 0.0).sum() / valid.sum().clamp(min=1)
        total = self.shape.reconstruction_weight * reconstruction + self.shape.commitment_weight * commitment
        scalars = {"reconstruction": reconstruction.detach(), "commitment": commitment.detach()}
        return total, scalars | code_usage(ids, self.shape.codebook_size)

    def _quantize(self, latents: Float[Tensor, "B N K"]) -> tuple[Float[Tensor, "B N K"], Int64[Tensor, "B N"]]:
        """The code nearest in direction to each latent, without gradient, and its id; in training the codes then move."""
        if self.training and self.shape.dead_code_threshold:
            self._scale_dead_codes(latents.detach())
        code, ids, _ = self.quantizer(latents)
        return code.detach(), ids

    def _scale_dead_codes(self, latents: Float[Tensor, "B N K"]) -> None:
        """Threshold, and the count that a new code starts with, for this batch's size.

        New codes start at the threshold itself, as published, so one that is not used at once is replaced again.
        """
        codebook = self.quantizer._codebook
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        uses_per_code = processes * latents[..., 0].numel() / self.shape.codebook_size
        threshold = self.shape.dead_code_threshold * min(1.0, uses_per_code / PUBLISHED_USES_PER_CODE)
        codebook.reset_cluster_size = threshold
        if (codebook.cluster_size == 1).all():
            # Never trained: all codes become latents of this batch, as happens at the published size in the first step.
            codebook.threshold_ema_dead_code = math.inf
            self.quantizer.expire_codes_(latents)
        codebook.threshold_ema_dead_code = threshold


def sincos_positions_1d(count: int, width: int) -> Float[Tensor, "N D"]:
    """Sines of position * 10000^(-2i / width) in the first half of the channels, cosines in the second."""
    frequency = torch.exp(torch.arange(width // 2) * (-2 * math.log(10000.0) / width))
    angle = torch.arange(count)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)

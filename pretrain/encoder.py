"""The encoder contract: what turns a short RGB clip into features, loaded by name or from an artifact.

Axes:  B batch, T frames, H W pixels, N tokens, D feature width, (t, h, w) token grid with N = t * h * w.

A policy, a probe or a cache sees nothing of an encoder but this file. Weights own their preprocessing: give an encoder
raw uint8 frames of any size and it brings them to its own.
"""

import dataclasses
import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pretrain.artifact import (
    load_artifact,
    load_tensors_strict,
    save_artifact,
    tensors_sha256,
)
from pretrain.encoder_table import ARCHITECTURES, ENCODERS, FAMILIES, RANDOM_PREFIX
from pretrain.provenance import make_provenance

ENCODER_KIND = "encoder"


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What an encoder takes and gives.

    Attributes:
        name: registry key or the name an artifact was saved under.
        frames: T, frames of one clip; an image encoder has 1.
        fps: frame rate the weights were trained at, 1/s; 0 for an image encoder. Feeding another rate is allowed and
            is a shift of the input.
        image_size: H = W of what `forward` takes, pixels.
        grid: (t, h, w) of the tokens, in that order, frame-major then rows then columns.
        embed_dim: D, of the tokens and of the pooled feature.
        mean, std: RGB normalisation on the [0, 1] scale.
        resize: key of RESIZE_RULES.
        weights_sha256: of the weights' safetensors serialization; of no tensors for an encoder without weights.
    """

    name: str
    frames: int
    fps: float
    image_size: int
    grid: tuple[int, int, int]
    embed_dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str
    weights_sha256: str

    def __post_init__(self) -> None:
        for field in ("frames", "image_size", "embed_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"EncoderSpec.{field}: expected at least 1, got {getattr(self, field)}")
        if len(self.grid) != 3 or min(self.grid) < 1:
            raise ValueError(f"EncoderSpec.grid: expected three positive numbers (t, h, w), got {self.grid}")
        if self.resize not in RESIZE_RULES:
            raise ValueError(f"EncoderSpec.resize: unknown rule {self.resize!r}; known: {', '.join(RESIZE_RULES)}")

    @property
    def tokens(self) -> int:
        """N, the number of tokens."""
        t, h, w = self.grid
        return t * h * w

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        fields = {field.name for field in dataclasses.fields(cls)}
        if unfit := fields ^ document.keys():
            raise ValueError(f"encoder spec: missing or unknown fields: {', '.join(sorted(unfit))}")
        values = dict(document)
        for field in ("grid", "mean", "std"):
            values[field] = tuple(values[field])
        return cls(**values)

    def fingerprint(self) -> str:
        """sha256 over everything that decides the features: the key of a feature cache. The name is left out."""
        document = self.to_json() | {"name": ""}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@dataclass
class EncoderOutput:
    """Features of a batch of clips. `grid` is (t, h, w) with tokens[:, (i * h + j) * w + k] at frame i, row j, column k."""

    tokens: Float[Tensor, "B N D"]
    pooled: Float[Tensor, "B D"]
    grid: tuple[int, int, int]


# ------------------------------------------------------------------------------------------------------ preprocessing


def _stretch(frames: Float[Tensor, "n 3 H0 W0"], size: int) -> Float[Tensor, "n 3 H W"]:
    """The whole picture, aspect not kept: nothing at the border is lost, which matters for a robot's workspace."""
    if frames.shape[-2:] == (size, size):
        return frames
    return F.interpolate(frames, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _center_crop(
    frames: Float[Tensor, "n 3 H0 W0"], size: int, *, share: float = 1.0, mode: str = "bilinear"
) -> Float[Tensor, "n 3 H W"]:
    """Short side to `size` / `share`, then the middle square: what image classifiers are evaluated with."""
    height, width = frames.shape[-2:]
    short = round(size / share)
    # The long side is rounded down, as torchvision does, with which the encoders were trained.
    resized = (short * height // min(height, width), short * width // min(height, width))
    if resized != (height, width):
        frames = F.interpolate(frames, size=resized, mode=mode, antialias=True, align_corners=False)
        frames = frames.clamp(0.0, 255.0)  # bicubic overshoots at edges, which images of integers cannot
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return frames[..., top : top + size, left : left + size]


# The share is 224 of 256, with which many image encoders were released.
RESIZE_RULES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "stretch": _stretch,
    "center-crop": _center_crop,
    "center-crop-bicubic": partial(_center_crop, mode="bicubic"),
    "center-crop-0.875": partial(_center_crop, share=0.875),
    "center-crop-0.875-bicubic": partial(_center_crop, share=0.875, mode="bicubic"),
}


def normalise_video(
    video: UInt8[Tensor, "B T H0 W0 3"], *, size: int, mean: tuple[float, ...], std: tuple[float, ...], resize: str
) -> Float[Tensor, "B T 3 H W"]:
    """uint8 RGB frames to the normalised float frames an encoder takes. The one place where this is done."""
    if video.ndim != 5 or video.shape[-1] != 3 or video.dtype != torch.uint8:
        raise ValueError(
            f"encoder input: expected uint8 [B, T, H, W, 3] RGB, got {str(video.dtype).removeprefix('torch.')} "
            f"{list(video.shape)}"
        )
    batch, frames = video.shape[:2]
    flat = video.flatten(0, 1).permute(0, 3, 1, 2).float()
    flat = RESIZE_RULES[resize](flat, size)
    scale = 255.0 * torch.tensor(std, device=flat.device).view(3, 1, 1)
    shift = torch.tensor(mean, device=flat.device).view(3, 1, 1) / torch.tensor(std, device=flat.device).view(3, 1, 1)
    return (flat / scale - shift).unflatten(0, (batch, frames))


# --------------------------------------------------------------------------------------------------------- the encoder


class VideoEncoder(nn.Module, ABC):
    """Base of all encoders. A subclass sets `architecture` (a key of ARCHITECTURES) and gives `features`.

    Attributes:
        spec: what it takes and gives.
        config: plain values from which ARCHITECTURES[architecture] builds the same network again.
    """

    architecture: str = ""

    def __init__(self, spec: EncoderSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.config = dict(config)
        self._frozen = False

    def preprocess(self, video: UInt8[Tensor, "B T H0 W0 3"]) -> Float[Tensor, "B T 3 H W"]:
        """Raw RGB frames of any size, upright, to what `forward` takes, on the frames' device.

        Raises:
            ValueError: another dtype or layout, or another number of frames than spec.frames.
        """
        if video.ndim == 5 and video.shape[1] != self.spec.frames:
            raise ValueError(
                f"encoder {self.spec.name!r} takes {self.spec.frames} frame{'s' * (self.spec.frames > 1)} a clip, got {video.shape[1]}; "
                "repeat the oldest frame to fill a shorter history"
            )
        spec = self.spec
        return normalise_video(video, size=spec.image_size, mean=spec.mean, std=spec.std, resize=spec.resize)

    def forward(self, x: Float[Tensor, "B T 3 H W"]) -> EncoderOutput:
        """Features of preprocessed clips.

        Raises:
            ValueError: the shape is not [B, spec.frames, 3, spec.image_size, spec.image_size].
        """
        expected = (self.spec.frames, 3, self.spec.image_size, self.spec.image_size)
        if x.ndim != 5 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"encoder {self.spec.name!r}: expected [B, {', '.join(map(str, expected))}], got {list(x.shape)}"
            )
        return self.features(x)

    @abstractmethod
    def features(self, x: Float[Tensor, "B T 3 H W"]) -> EncoderOutput:
        """What a subclass makes of preprocessed clips whose shape `forward` has checked."""

    def shortened(self, frames: int, *, trained: bool = False) -> Self:
        """For whoever has only `frames` images: the same weights over as short a clip as holds them, where that spares work; else
        itself, whose clip is filled up by repeating the oldest.

        Args:
            trained: the weights are about to be trained further, so what they make of a clip may change with its length.
        """
        del frames, trained
        return self

    def frozen(self) -> Self:
        """Turns gradients off and evaluation mode on, for good: a later `.train()`, of a parent too, does not undo it."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self._frozen)

    def renamed(self, name: str) -> Self:
        """Sets the name in the spec and brings its weights_sha256 up to date with the weights."""
        sha256 = tensors_sha256(self.state_dict())
        self.spec = dataclasses.replace(self.spec, name=name, weights_sha256=sha256)
        return self


# ------------------------------------------------------------------------------------------------------ load and save


def load_encoder(name_or_path: str | Path, *, seed: int = 0) -> VideoEncoder:
    """An encoder by name or from an artifact.

    Args:
        name_or_path: a key of ENCODERS (where its weights are random, they are drawn from `seed`); "timm/<model>" for any
            image model of timm with random weights, "timm/<model>@<weights.safetensors>" with those of a file; a row of
            RELEASES (pretrain/zoo/released.py) with its file, "vc1/vitb@<vc1_vitb.pth>"; the directory of an encoder artifact;
            or "random:<any of those>", the same network with fresh random weights (no file needed): the fair control of a
            trained encoder.

    Raises:
        ValueError: unknown name (with the nearest known ones), or a directory that is not a whole encoder artifact.
        FileNotFoundError: a path that does not exist, or a weights file that is not there.
    """
    name = str(name_or_path)
    if name in ENCODERS:
        return ENCODERS[name].build(seed)
    if name.startswith(RANDOM_PREFIX):
        return _random_twin(name, seed)
    family, slash, rest = name.partition("/")
    if slash and family in FAMILIES:
        return FAMILIES[family](rest, seed, False)
    path = Path(name)
    if path.exists():
        return load_encoder_artifact(path)
    if len(path.parts) > 1 or path.is_absolute():
        raise FileNotFoundError(
            f"no encoder at {name}: no such directory. Give the directory of an encoder artifact "
            f"(such as <out>/encoder of `egoarm pretrain`) or a name: {_known()}"
        )
    if RANDOM_PREFIX + name in ENCODERS:
        raise ValueError(
            f"encoder {name!r}: no trained weights of it are shipped. {RANDOM_PREFIX}{name} is the network with random "
            "weights; `egoarm pretrain` trains it, and the directory of what it trained is an encoder too"
        )
    close = difflib.get_close_matches(name, ENCODERS, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(f"unknown encoder {name!r}: {hint}Known: {_known()}, or the directory of an artifact")


def _known() -> str:
    return ", ".join(ENCODERS) + ", " + ", ".join(f"{family}/<model>" for family in FAMILIES)


def load_encoder_artifact(path: str | Path) -> VideoEncoder:
    """The encoder saved at `path`, strictly: every tensor must be there, no more, and in shape."""
    artifact = load_artifact(path)
    if artifact.kind != ENCODER_KIND:
        raise ValueError(f"{path} is an artifact of kind {artifact.kind!r}, expected {ENCODER_KIND!r}")
    encoder = _build_from(artifact.config, artifact.spec, str(path))
    load_tensors_strict(encoder, artifact.tensors, str(path))
    encoder.spec = dataclasses.replace(encoder.spec, name=artifact.name, weights_sha256=artifact.sha256)
    return encoder.eval()


def save_encoder(
    path: str | Path,
    encoder: VideoEncoder,
    *,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> str:
    """Saves an encoder as an artifact that `load_encoder` reads; returns the weights' sha256.

    Args:
        name: stored name; None keeps the spec's.
        provenance: of `make_provenance`; None records this process with no data and no parents.
        training: the configuration of the run that made it, kept for the record under config.yaml's `training`.
    """
    tensors = encoder.state_dict()
    name = encoder.spec.name if name is None else name
    spec = dataclasses.replace(encoder.spec, name=name, weights_sha256=tensors_sha256(tensors))
    config = {"architecture": encoder.architecture, "encoder": encoder.config, "training": dict(training or {})}
    if provenance is None:
        provenance = make_provenance(seed=0, parents={}, data={}, step=0, wall_time_s=0.0)
    return save_artifact(
        path,
        kind=ENCODER_KIND,
        name=name,
        tensors=tensors,
        config=config,
        spec=spec.to_json(),
        provenance=provenance,
    )


def _build_from(config: Mapping[str, Any], spec: Mapping[str, Any], where: str) -> VideoEncoder:
    architecture = config.get("architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{where}: unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    try:
        return ARCHITECTURES[architecture](config["encoder"], EncoderSpec.from_json(spec))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: its configuration does not describe an encoder of {architecture!r}: {error}"
        ) from error


def _random_twin(name: str, seed: int) -> VideoEncoder:
    """The network of another encoder with weights drawn afresh by its own initialisation."""
    bare = name.removeprefix(RANDOM_PREFIX)
    family, slash, rest = bare.partition("/")
    if slash and family in FAMILIES:
        return FAMILIES[family](rest, seed, True).renamed(name).eval()
    base = load_encoder(bare, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = ARCHITECTURES[base.architecture](base.config, base.spec)
    return twin.renamed(name).eval()

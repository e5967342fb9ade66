"""The tokenizer contract: what turns one modality of a clip into ids and back, and the table of the tokenizers there are.

Axes:  B batch, N tokens of a clip, V ids, K numbers of a code; what follows B in an input is the modality's own (see
pretrain.egom2p.modalities).

The masked model, the token store and generation see nothing of a tokenizer but this file. Weights own their
preprocessing: standardisation and padding of frames happen inside.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pretrain.artifact import load_artifact, load_tensors_strict, save_artifact, tensors_sha256
from pretrain.egom2p.modalities import TokenGrid, require_modalities
from pretrain.provenance import make_provenance

TOKENIZER_KIND = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """What a tokenizer takes and gives.

    Attributes:
        name: what it was saved under.
        modalities: names of the modalities it was trained for, rows of MODALITIES.
        grid: shape of a clip's tokens and how many ids there are.
        input_shape: of one clip's array as `encode` takes it, without the batch.
        weights_sha256: of the weights' safetensors serialization; empty until saved or `renamed`.
    """

    name: str
    modalities: tuple[str, ...]
    grid: TokenGrid
    input_shape: tuple[int, ...]
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        if not self.modalities:
            raise ValueError("TokenizerSpec.modalities: expected at least one modality, got none")
        require_modalities(self.modalities, "TokenizerSpec.modalities")
        if not self.input_shape or min(self.input_shape) < 1:
            raise ValueError(f"TokenizerSpec.input_shape: expected positive numbers, got {self.input_shape}")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        fields = {field.name for field in dataclasses.fields(cls)}
        if unfit := fields ^ document.keys():
            raise ValueError(f"tokenizer spec: missing or unknown fields: {', '.join(sorted(unfit))}")
        grid = document["grid"]
        return cls(
            name=document["name"],
            modalities=tuple(document["modalities"]),
            grid=TokenGrid(shape=tuple(grid["shape"]), vocabulary=grid["vocabulary"]),
            input_shape=tuple(document["input_shape"]),
            weights_sha256=document["weights_sha256"],
        )


class Tokenizer(nn.Module, ABC):
    """Base of all tokenizers. A subclass sets `architecture` (a key of TOKENIZERS) and the abstract methods.

    Attributes:
        spec: what it takes and gives.
        config: plain values from which TOKENIZERS[architecture] builds the same network again.
        clips_at_once: how many clips `encode` and `decode` put through the network together, unless told otherwise.
    """

    architecture: str = ""
    clips_at_once: int = 16

    def __init__(self, spec: TokenizerSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.config = dict(config)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "B ..."], *, clips_at_once: int | None = None) -> Int64[Tensor, "B N"]:
        """Ids of a batch, flattened row by row over spec.grid.shape. The same in training and evaluation mode.

        Raises:
            ValueError: the shape is not [B, *spec.input_shape].
        """
        self.check_input(x)
        if not len(x):
            return torch.zeros(0, self.spec.grid.tokens, dtype=torch.int64, device=x.device)
        parts = [self.clips_to_ids(part) for part in x.split(clips_at_once or self.clips_at_once)]
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, ids: Int64[Tensor, "B N"], *, clips_at_once: int | None = None) -> Float[Tensor, "B ..."]:
        """What the ids stand for, float32 in the layout of `encode`'s input, less its mask channels.

        Raises:
            ValueError: ids of another shape, that are no integers, or outside the vocabulary.
        """
        self._check_ids(ids)
        # An empty batch goes through as one clip, cut away after, so that its result has the right shape.
        padded = ids if len(ids) else ids.new_zeros(1, ids.shape[1])
        parts = [self.ids_to_clips(part.long()).float() for part in padded.split(clips_at_once or self.clips_at_once)]
        return torch.cat(parts)[: len(ids)]

    @torch.no_grad()
    def decode_codes(
        self, codes: Float[Tensor, "B N K"], *, clips_at_once: int | None = None
    ) -> Float[Tensor, "B ..."]:
        """`decode` of codes in place of ids: rows of `codebook`, or points between them, such as their mean over a
        distribution of ids.

        Raises:
            ValueError: codes of another shape, or a tokenizer whose codes cannot be had.
        """
        expected = (self.spec.grid.tokens, self.codebook().shape[1])
        if codes.ndim != 3 or tuple(codes.shape[1:]) != expected or not codes.is_floating_point():
            raise ValueError(
                f"tokenizer {self.spec.name!r}: expected float codes [B, {expected[0]}, {expected[1]}], got "
                f"{str(codes.dtype).removeprefix('torch.')} {list(codes.shape)}"
            )
        padded = codes if len(codes) else codes.new_zeros(1, *expected)
        parts = [self.codes_to_clips(part).float() for part in padded.split(clips_at_once or self.clips_at_once)]
        return torch.cat(parts)[: len(codes)]

    @abstractmethod
    def codebook(self) -> Float[Tensor, "V K"]:
        """What the decoder is given for each id.

        Raises:
            ValueError: it takes ids and nothing else.
        """

    @abstractmethod
    def codes_to_clips(self, codes: Float[Tensor, "B N K"]) -> Float[Tensor, "B ..."]:
        """`decode_codes` of a batch that is checked and small enough."""

    @abstractmethod
    def clips_to_ids(self, x: Float[Tensor, "B ..."]) -> Int64[Tensor, "B N"]:
        """`encode` of a batch that is checked and small enough."""

    @abstractmethod
    def ids_to_clips(self, ids: Int64[Tensor, "B N"]) -> Float[Tensor, "B ..."]:
        """`decode` of a batch that is checked and small enough."""

    @abstractmethod
    def loss(self, x: Float[Tensor, "B ..."]) -> tuple[Tensor, dict[str, Tensor]]:
        """The training objective and detached scalars to log. Masks ride in x."""

    def check_input(self, x: Tensor) -> None:
        expected = self.spec.input_shape
        if not x.is_floating_point() or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"tokenizer {self.spec.name!r} ({', '.join(self.spec.modalities)}): expected floats "
                f"[B, {', '.join(map(str, expected))}], got {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            )

    def _check_ids(self, ids: Tensor) -> None:
        grid = self.spec.grid
        if ids.ndim != 2 or ids.shape[1] != grid.tokens or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                f"tokenizer {self.spec.name!r}: expected integer ids [B, {grid.tokens}], got "
                f"{str(ids.dtype).removeprefix('torch.')} {list(ids.shape)}"
            )
        if len(ids) and (ids.min() < 0 or ids.max() >= grid.vocabulary):
            raise ValueError(
                f"tokenizer {self.spec.name!r}: ids must lie in 0..{grid.vocabulary - 1}, got "
                f"{int(ids.min())}..{int(ids.max())}: they come from another tokenizer or another modality"
            )

    def renamed(self, name: str) -> Self:
        """Sets the name in the spec and brings its weights_sha256 up to date with the weights."""
        self.spec = dataclasses.replace(self.spec, name=name, weights_sha256=tensors_sha256(self.state_dict()))
        return self


def code_usage(ids: Int64[Tensor, "B N"], vocabulary: int) -> dict[str, Tensor]:
    """How much of the vocabulary a batch uses: `codes_used`, how many ids occur, and `perplexity`, exp of the entropy of
    their frequencies in nats (from 1, a single id, to codes_used, all equally often)."""
    counts = torch.bincount(ids.flatten(), minlength=vocabulary).float()
    frequency = counts / counts.sum()
    entropy = -(frequency * frequency.clamp(min=1e-12).log()).sum()
    return {"codes_used": (counts > 0).sum().float(), "perplexity": entropy.exp()}


# ------------------------------------------------------------------------------------------------------------- table


def _rebuild_fsq_video(config: Mapping[str, Any], spec: TokenizerSpec) -> Tokenizer:
    from pretrain.egom2p.tokenizers.fsq_video import FsqVideoTokenizer

    return FsqVideoTokenizer.from_config(config, spec)


def _rebuild_vq_sequence(config: Mapping[str, Any], spec: TokenizerSpec) -> Tokenizer:
    from pretrain.egom2p.tokenizers.vq_sequence import VqSequenceTokenizer

    return VqSequenceTokenizer.from_config(config, spec)


def _rebuild_cosmos_jit(config: Mapping[str, Any], spec: TokenizerSpec) -> Tokenizer:
    from pretrain.egom2p.tokenizers.cosmos_weights import CosmosJitTokenizer

    return CosmosJitTokenizer.from_config(config, spec)


# How an artifact's network is built again from its config and spec; its weights are loaded after.
TOKENIZERS: dict[str, Callable[[Mapping[str, Any], TokenizerSpec], Tokenizer]] = {
    "fsq-video": _rebuild_fsq_video,
    "vq-sequence": _rebuild_vq_sequence,
    "cosmos-jit": _rebuild_cosmos_jit,
}


def save_tokenizer(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    provenance: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> str:
    """Saves a tokenizer as an artifact that `load_tokenizer` reads; returns the weights' sha256.

    Args:
        provenance: of `make_provenance`; None records this process with no data and no parents.
        training: the configuration of the run that made it, kept for the record under config.yaml's `training`.
    """
    tensors = tokenizer.state_dict()
    spec = dataclasses.replace(tokenizer.spec, weights_sha256=tensors_sha256(tensors))
    config = {"architecture": tokenizer.architecture, "tokenizer": tokenizer.config, "training": dict(training or {})}
    if provenance is None:
        provenance = make_provenance(seed=0, parents={}, data={}, step=0, wall_time_s=0.0)
    return save_artifact(
        path,
        kind=TOKENIZER_KIND,
        name=spec.name,
        tensors=tensors,
        config=config,
        spec=spec.to_json(),
        provenance=provenance,
    )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer saved at `path`, in evaluation mode, strictly: every tensor must be there, no more, and in shape.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is no whole artifact of a tokenizer, or its weights do not fit its configuration.
    """
    artifact = load_artifact(path)
    if artifact.kind != TOKENIZER_KIND:
        raise ValueError(f"{path} is an artifact of kind {artifact.kind!r}, expected {TOKENIZER_KIND!r}")
    tokenizer = _build_from(artifact.config, artifact.spec, str(path))
    load_tensors_strict(tokenizer, artifact.tensors, str(path))
    tokenizer.spec = dataclasses.replace(tokenizer.spec, name=artifact.name, weights_sha256=artifact.sha256)
    return tokenizer.eval()


def _build_from(config: Mapping[str, Any], spec: Mapping[str, Any], where: str) -> Tokenizer:
    architecture = config.get("architecture")
    if architecture not in TOKENIZERS:
        raise ValueError(f"{where}: unknown tokenizer {architecture!r}; known: {', '.join(TOKENIZERS)}")
    try:
        return TOKENIZERS[architecture](config["tokenizer"], TokenizerSpec.from_json(spec))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: its configuration does not describe a tokenizer of {architecture!r}: {error}"
        ) from error

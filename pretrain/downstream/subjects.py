"""What is measured: an encoder, with what else its model can do (texts, depth, any modality), and what it was trained on."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pretrain.artifact import Artifact, load_artifact, load_tensors_strict, tensors_sha256
from pretrain.egodtm.model import EgoDTM, EgoDTMConfig
from pretrain.egodtm.text import tokenize
from pretrain.egodtm.train import ENCODER_DIRECTORY, MODEL_DIRECTORY, MODEL_KIND
from pretrain.egom2p.bundle import MODEL_KIND as EGOM2P_KIND
from pretrain.egom2p.bundle import load_egom2p
from pretrain.egom2p.encoder import EgoM2PEncoder
from pretrain.egom2p.predict import Predictor
from pretrain.encoder import ENCODER_KIND, VideoEncoder, load_encoder
from pretrain.encoder_table import FAMILIES, RANDOM_PREFIX, shipped_directory

NEEDS_TEXT = "needs a text tower"
NEEDS_DECODER = "needs a depth decoder"
NEEDS_PREDICTOR = "needs EgoM2P"
_TEXT_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Training:
    """Which clips a run was trained on: those of the store with this manifest sha, less the share that
    `pretrain.egodtm.data.split_clips` holds out. `data` is where the store was."""

    clips_sha256: str
    val_fraction: float
    data: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One column of the table.

    Attributes:
        name: as given on the command line.
        encoder: frozen, in evaluation mode; `model`'s own video tower where there is a model.
        model: the whole EgoDTM, for texts and depth; None for an encoder alone.
        predictor: EgoM2P, which says any modality of a clip from any other; None for the others.
        training: None for weights that no recorded run has trained; an untrained twin keeps that of its trained one, so that
            both are measured on the same clips.
        fingerprint: of all that decides its features, the key of caches.
        sha256: of the weights.
    """

    name: str
    encoder: VideoEncoder
    model: EgoDTM | None
    training: Training | None
    fingerprint: str
    sha256: str
    predictor: Predictor | None = None

    @property
    def has_text(self) -> bool:
        return self.model is not None

    @property
    def has_depth(self) -> bool:
        return self.model is not None and self.model.decoder is not None

    @property
    def text_scale(self) -> float:
        """Inverse temperature of the softmax over texts."""
        assert self.model is not None
        return float(self.model.log_scale.detach().exp())

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "n E"]:
        """L2-normalised joint embeddings, on the CPU."""
        assert self.model is not None
        length, device = self.model.config.text.context_length, self.model.log_scale.device
        rows = []
        for start in range(0, len(texts), _TEXT_BATCH):
            ids = tokenize(texts[start : start + _TEXT_BATCH], length).to(device)
            rows.append(F.normalize(self.model.text(ids), dim=-1).float().cpu())
        return torch.cat(rows) if rows else torch.zeros(0, self.model.config.joint_dim)

    @torch.inference_mode()
    def join(self, pooled: Float[Tensor, "n D"]) -> Float[Tensor, "n E"]:
        """Pooled video features to L2-normalised joint embeddings, on the CPU."""
        assert self.model is not None
        projected = self.model.video_projection(pooled.to(self.model.log_scale.device))
        return F.normalize(projected, dim=-1).float().cpu()

    @torch.inference_mode()
    def decode_depth(self, tokens: Float[Tensor, "n N D"]) -> Float[Tensor, "n T h w"]:
        """The decoder's inverse depth in (0, 1), near = large, of its last stage, on the CPU."""
        assert self.model is not None and self.has_depth
        device = self.model.log_scale.device
        return self.model.predict_depth(tokens.to(device), all_stages=False)[-1].float().cpu()

    def to(self, device: str) -> "Subject":
        (self.model or self.encoder).to(device)
        return self


def load_model(path: str | Path, *, untrained: bool = False) -> EgoDTM:
    """The whole EgoDTM of a model artifact, frozen, in evaluation mode.

    Args:
        path: the artifact, such as <out>/model of `egoarm pretrain`.
        untrained: in place of its weights those that its training started from (the initialisation at the run's seed),
            text tower and decoder included.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not a whole artifact, or one of another kind.
    """
    return _build_model(load_artifact(path), untrained)


def _build_model(artifact: Artifact, untrained: bool) -> EgoDTM:
    if artifact.kind != MODEL_KIND:
        raise ValueError(f"{artifact.path} is an artifact of kind {artifact.kind!r}, expected {MODEL_KIND!r}")
    try:
        config = EgoDTMConfig.from_json(artifact.config["model"])
        seed = int(artifact.config["training"]["seed"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{artifact.path / 'config.yaml'} does not describe an EgoDTM model: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EgoDTM(config, name=artifact.name)
    if not untrained:
        load_tensors_strict(model, artifact.tensors, str(artifact.path))
    # The artifact's name: it is no part of a fingerprint, the weights are.
    model.encoder().renamed(artifact.name)
    return model.requires_grad_(False).eval()


def load_subject(given: str, *, name: str | None = None) -> Subject:
    """The subject of one word of the command line.

    Args:
        given: a pretraining run's directory, a model or an encoder artifact, a name of the zoo, timm/<model>, or random: and
            any of these.
        name: column header; None = as given.

    Raises:
        FileNotFoundError: no such directory.
        ValueError: unknown name, or a directory that holds no whole artifact.
    """
    untrained = given.startswith(RANDOM_PREFIX)
    bare = given.removeprefix(RANDOM_PREFIX)
    name = given if name is None else name
    path = shipped_directory(bare) or Path(bare)
    if path.is_dir() and not _of_a_family(bare):
        if not (path / "spec.json").is_file():
            path = _artifact_in(path)
        artifact = load_artifact(path)
        if artifact.kind == MODEL_KIND:
            model = _build_model(artifact, untrained)
            return _subject(name, model.encoder(), model, _training_of(artifact))
        if artifact.kind == ENCODER_KIND:
            seed = int((artifact.config.get("training") or {}).get("seed", 0))
            encoder = load_encoder(f"{RANDOM_PREFIX}{path}" if untrained else path, seed=seed)
            return _subject(name, encoder, None, _training_of(artifact))
        if artifact.kind == EGOM2P_KIND:
            return _egom2p_subject(name, path.parent, artifact, untrained)
        raise ValueError(
            f"{path} is an artifact of kind {artifact.kind!r}: expected {ENCODER_KIND!r}, {MODEL_KIND!r} or {EGOM2P_KIND!r}"
        )
    return _subject(name, load_encoder(given), None, None)


def _egom2p_subject(name: str, run: Path, artifact: Artifact, untrained: bool) -> Subject:
    """EgoM2P with its encoder. Untrained: the transformer's weights at the run's seed, over the same tokenizers."""
    bundle = load_egom2p(run, untrained=untrained)
    encoder = EgoM2PEncoder.of(bundle.model, bundle.tokenizers["rgb"], name=artifact.name)
    clips = artifact.provenance["data"].get("clips")
    # All of the store counts as trained on: which of its clips were held out depends on what could be tokenized.
    training = None if clips is None else Training(clips_sha256=str(clips), val_fraction=0.0, data="")
    plain = _subject(name, encoder.renamed(artifact.name), None, training)
    return dataclasses.replace(plain, predictor=Predictor(bundle), sha256=tensors_sha256(bundle.model.state_dict()))


def _of_a_family(name: str) -> bool:
    """Whether it names weights of others, as "timm/resnet18" does, rather than a path."""
    family, slash, _ = name.partition("/")
    return bool(slash) and family in FAMILIES


def _artifact_in(run: Path) -> Path:
    for directory in (MODEL_DIRECTORY, ENCODER_DIRECTORY):
        if (run / directory / "spec.json").is_file():
            return run / directory
    raise ValueError(
        f"{run} holds no {MODEL_DIRECTORY}/ or {ENCODER_DIRECTORY}/ with an artifact: expected the directory of a finished "
        "`egoarm pretrain`, or an artifact itself"
    )


def _training_of(artifact: Artifact) -> Training | None:
    training: dict[str, Any] = artifact.config.get("training") or {}
    clips = (artifact.provenance.get("data") or {}).get("clips")
    if clips is None:
        return None
    return Training(
        clips_sha256=str(clips),
        val_fraction=float(training.get("val_fraction", 0.0)),
        data=str(training.get("data", "")),
    )


def _subject(name: str, encoder: VideoEncoder, model: EgoDTM | None, training: Training | None) -> Subject:
    encoder.frozen()
    sha256 = encoder.spec.weights_sha256 if model is None else tensors_sha256(model.state_dict())
    parts = f"{encoder.spec.fingerprint()} {sha256}"
    return Subject(
        name=name,
        encoder=encoder,
        model=model,
        training=training,
        fingerprint=hashlib.sha256(parts.encode()).hexdigest(),
        sha256=sha256,
    )


def unique_names(given: Sequence[str]) -> list[str]:
    """Short column headers: the last parts of the paths that tell them apart.

    Raises:
        ValueError: the same encoder twice.
    """
    if twice := sorted({word for word in given if given.count(word) > 1}):
        raise ValueError(f"encoder={twice[0]} is given twice: give each encoder once")
    for depth in range(1, 20):
        names = []
        for word in given:
            prefix = RANDOM_PREFIX if word.startswith(RANDOM_PREFIX) else ""
            bare = word.removeprefix(RANDOM_PREFIX)
            parts = Path(bare).parts
            names.append(bare if _of_a_family(bare) else "/".join(parts[-depth:]))
            names[-1] = prefix + names[-1]
        if len(set(names)) == len(names):
            return names
    return list(given)

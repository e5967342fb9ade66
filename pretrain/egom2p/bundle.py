"""A trained EgoM2P on disk: the transformer with the tokenizers whose language it speaks.

<out>/tokenizers/<modalities>/   artifacts of kind "tokenizer"
<out>/encoder/                   the video encoder for policies, where rgb is modelled
<out>/model/                     the transformer, an artifact of kind "egom2p"; written last, so a whole one means that all is there
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.artifact import load_artifact, load_tensors_strict, save_artifact
from pretrain.egom2p.model import EMBEDDING_STD, TOKEN_STD, EgoM2P, EgoM2PConfig
from pretrain.egom2p.token_start import start_tokens
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer, load_tokenizer, save_tokenizer

MODEL_KIND = "egom2p"
MODEL_DIRECTORY = "model"
ENCODER_DIRECTORY = "encoder"
TOKENIZERS_DIRECTORY = "tokenizers"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded model. `tokenizers`: modality -> the tokenizer that speaks it; `provenance`, `sha256`: of the transformer."""

    path: Path
    model: EgoM2P
    tokenizers: Mapping[str, Tokenizer]
    provenance: Mapping[str, Any]
    sha256: str


def save_egom2p(
    out: Path,
    model: EgoM2P,
    tokenizers: Mapping[str, Tokenizer],
    *,
    name: str,
    provenance: Mapping[str, Any],
    training: Mapping[str, Any],
) -> None:
    """Writes the bundle into the directory of a run."""
    # Imported here: the encoder file knows this one's directory names.
    from pretrain.egom2p.encoder import EgoM2PEncoder
    from pretrain.encoder import save_encoder

    for directory, tokenizer in tokenizers.items():
        save_tokenizer(out / TOKENIZERS_DIRECTORY / directory, tokenizer, provenance=provenance)
    if "rgb" in model.config.names:
        rgb = next(t for t in tokenizers.values() if "rgb" in t.spec.modalities)
        encoder = EgoM2PEncoder.of(model, rgb, name=name)
        save_encoder(out / ENCODER_DIRECTORY, encoder, name=name, provenance=provenance, training=training)
    save_artifact(
        out / MODEL_DIRECTORY,
        kind=MODEL_KIND,
        name=name,
        tensors=model.state_dict(),
        config={"model": model.config.to_json(), "training": dict(training)},
        spec={"modalities": list(model.config.names)},
        provenance=provenance,
    )


def load_egom2p(path: str | Path, *, untrained: bool = False) -> Bundle:
    """The model and tokenizers of a run, in evaluation mode.

    Args:
        path: the directory of a run of `egoarm pretrain egom2p`, or its model/.
        untrained: the transformer's weights that training started from, in place of those it ended with.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: another kind of artifact, a tokenizer that is missing or not the one that the model was trained on.
    """
    path = Path(path)
    if path.name == MODEL_DIRECTORY and not (path / MODEL_DIRECTORY).exists():
        path = path.parent
    if not (path / MODEL_DIRECTORY).is_dir():
        raise FileNotFoundError(
            f"no EgoM2P model at {path}: expected the directory of a finished `egoarm pretrain egom2p`, with {MODEL_DIRECTORY}/ "
            f"and {TOKENIZERS_DIRECTORY}/ in it"
        )
    artifact = load_artifact(path / MODEL_DIRECTORY)
    if artifact.kind != MODEL_KIND:
        raise ValueError(f"{path / MODEL_DIRECTORY} is an artifact of kind {artifact.kind!r}, expected {MODEL_KIND!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(artifact.config["training"]["seed"]))
        model = EgoM2P(EgoM2PConfig.from_json(artifact.config["model"]))
    if not untrained:
        load_tensors_strict(model, artifact.tensors, str(path / MODEL_DIRECTORY), assign=True)
    tokenizers: dict[str, Tokenizer] = {}
    trained_on = set(artifact.provenance["parents"].values())
    for directory in sorted((path / TOKENIZERS_DIRECTORY).glob("*/")):
        tokenizer = load_tokenizer(directory)
        if tokenizer.spec.weights_sha256 not in trained_on:
            raise ValueError(
                f"{directory}: this tokenizer (sha256 {tokenizer.spec.weights_sha256[:12]}...) is not one that {path / MODEL_DIRECTORY} was "
                "trained on: its ids would mean nothing to the model; put the original back"
            )
        tokenizers |= dict.fromkeys(tokenizer.spec.modalities, tokenizer)
    if untrained:
        _start_again(model, tokenizers, artifact.config["training"])
    if missing := [name for name in model.config.names if name not in tokenizers]:
        raise ValueError(
            f"{path / TOKENIZERS_DIRECTORY}: no tokenizer for {missing[0]}, which the model was trained on"
        )
    return Bundle(
        path=path, model=model.eval(), tokenizers=tokenizers, provenance=artifact.provenance, sha256=artifact.sha256
    )


def _start_again(model: EgoM2P, tokenizers: Mapping[str, Tokenizer], training: Mapping[str, Any]) -> None:
    """The token table that training started from. Runs from before `token_start` had a smaller one of the same draws."""
    if "token_start" in training:
        start_tokens(model, tokenizers, start=training["token_start"], seed=int(training["seed"]))
    else:
        with torch.no_grad():
            model.encoder_tokens.mul_(EMBEDDING_STD / TOKEN_STD)

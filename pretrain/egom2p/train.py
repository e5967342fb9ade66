"""`egoarm pretrain egom2p`: masked modelling on token stores, ending in a model that predicts any modality from any other.

<out>/model/        the transformer; <out>/model/tokenizers/<name>/ the tokenizers it was trained on, so that the directory alone
                    turns a clip into a prediction
<out>/encoder/      the video encoder for policies, where rgb is among the modalities
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pretrain.artifact import atomic_write_text, load_tensors, load_tensors_strict, sha256_file
from pretrain.batches import BatchPlan
from pretrain.checkpoints import Progress
from pretrain.egodtm.data import split_clips
from pretrain.egom2p.bundle import ENCODER_DIRECTORY, MODEL_DIRECTORY, save_egom2p
from pretrain.egom2p.data import LoadTokens, target_counts, unpack
from pretrain.egom2p.masking import MaskingConfig
from pretrain.egom2p.model import SIZES, EgoM2P, EgoM2PConfig, egom2p_loss
from pretrain.egom2p.token_start import TOKEN_STARTS, start_tokens
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer, load_tokenizer
from pretrain.egom2p.tokens import AuthorsDataSet, TokenStore, open_authors_tokens, open_tokens, require_tokenizers
from pretrain.egom2p.validation import validate
from pretrain.loop import TrainerConfig, fit, held_run, make_fabric
from pretrain.provenance import make_provenance

VALIDATION_FILE = "validation.json"


@dataclass(frozen=True, kw_only=True)
class EgoM2PTrainConfig:
    """Settings of `egoarm pretrain egom2p`.

    Attributes:
        tokens: directories of token stores (egoarm tokenize store); clips of all are equally likely.
        authors: directory of shards in the layout of EgoM2P's authors, <authors>/<modality>/<data set>/shard-*.tar; their
            grids are taken to be the tokenizers'. Empty: none.
        data_sets: of that directory, which to take; their clips count as those of `tokens`.
        tokenizers: directories of the tokenizers that made them, in any order; they are checked against the stores and kept
            beside the model.
        out: directory of the run.
        size: a row of SIZES.
        modalities: of the stores to model; empty = all that they hold.
        masking: budgets of a clip, see MaskingConfig.
        token_start: of the encoder's token table, "codebook" (from the tokenizers' codes, where they tell them) or "normal".
        init: weights of an EgoM2P of the same size and modalities that goes on with these tokens: <run>/model/model.safetensors, or
            that of a checkpoint; empty = none, see token_start.
        seed: of the weights, the order of the clips and the masks.
        overwrite: start again from nothing where `out` holds another run.
        val_fraction: share of the clips held out.
    """

    tokens: tuple[str, ...]
    tokenizers: tuple[str, ...]
    out: str
    authors: str = ""
    data_sets: tuple[AuthorsDataSet, ...] = ()
    size: str = "tiny"
    modalities: tuple[str, ...] = ()
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    token_start: str = "codebook"
    init: str = ""
    seed: int = 0
    overwrite: bool = False
    val_fraction: float = 0.1
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        needed = {"tokenizers": "the tokenizers that made them"} | ({} if self.authors else {"tokens": "token stores"})
        for name, meaning in needed.items():
            if not getattr(self, name):
                raise ValueError(f"{name}= is missing: say the directories of {meaning}, e.g. {name}=[runs/{name}]")
        if bool(self.authors) != bool(self.data_sets):
            raise ValueError(
                f"authors={self.authors!r} with {len(self.data_sets)} data_sets: both or neither, e.g. authors=/data/tokens "
                "data_sets=[{name:holoassist,modalities:[rgb,depth,gaze,camera]}]"
            )
        if self.size not in SIZES:
            raise ValueError(f"size: expected one of {', '.join(SIZES)}, got {self.size!r}")
        if self.token_start not in TOKEN_STARTS:
            raise ValueError(f"token_start: expected one of {', '.join(TOKEN_STARTS)}, got {self.token_start!r}")
        if self.init and not Path(self.init).is_file():
            raise FileNotFoundError(
                f"init={self.init}: no such file; expected an EgoM2P's <run>/model/model.safetensors, or init='' to start afresh"
            )
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction: expected a number from 0 to below 1, got {self.val_fraction}")

    @property
    def name(self) -> str:
        return f"egom2p-{self.size}"


def run(config: EgoM2PTrainConfig) -> None:
    """Trains, or goes on with, the run in config.out, and saves its model and encoder.

    Raises:
        FileNotFoundError: no store or tokenizer at a place that was named.
        ValueError: stores that do not go together, other tokenizers than made them, or config.out holds something else.
        KeyboardInterrupt: stopped; the same command goes on.
    """
    stores, tokenizers = _open_data(config)
    model_config = EgoM2PConfig.of_size(config.size, _common_grids(config, stores))
    out = Path(config.out)
    identity = _identity(config, stores)
    fabric = make_fabric(config.trainer)
    with held_run(
        fabric,
        out,
        identity,
        artifact=MODEL_DIRECTORY,
        trainer=config.trainer,
        title=f"pretrain {config.name}",
        may_differ={"tokens", "tokenizers", "authors"},
        overwrite=config.overwrite,
        belongings=(ENCODER_DIRECTORY, VALIDATION_FILE),
    ) as unfinished:
        if unfinished:
            _train(config, model_config, stores, tokenizers, fabric)


def _identity(config: EgoM2PTrainConfig, stores: Sequence[TokenStore]) -> dict[str, Any]:
    identity = dataclasses.asdict(config)
    for name in ("out", "overwrite", *(() if config.authors else ("authors", "data_sets"))):
        del identity[name]
    for name in ("tokens", "tokenizers", "modalities"):
        identity[name] = list(identity[name])
    del identity["init"]  # a run without it, and runs from before there was one, go on under their own names
    if config.init:
        identity["init"] = sha256_file(Path(config.init))
    identity["masking"] = {k: list(v) if isinstance(v, tuple) else v for k, v in identity["masking"].items()}
    identity["tokens_sha256"] = [store.manifest_sha256 for store in stores]
    return identity


def _common_grids(config: EgoM2PTrainConfig, stores: Sequence[TokenStore]) -> dict[str, Any]:
    """Modality -> grid over all stores; a store may lack a modality, but none may have another grid."""
    grids: dict[str, Any] = {}
    for store in stores:
        for name, grid in store.grids.items():
            if grids.setdefault(name, grid) != grid:
                raise ValueError(
                    f"{store.path}: {name} has the grid {grid.shape} of {grid.vocabulary} ids, but that of "
                    f"{stores[0].path} has {grids[name].shape} of {grids[name].vocabulary}: encode both with one tokenizer"
                )
    wanted = config.modalities or tuple(grids)
    if missing := [name for name in wanted if name not in grids]:
        raise ValueError(f"modalities: {missing[0]!r} is in none of the token stores, which hold {', '.join(grids)}")
    return {name: grids[name] for name in wanted}


def _open_data(config: EgoM2PTrainConfig) -> tuple[list[TokenStore], dict[str, Tokenizer]]:
    """The token stores, and directory name -> tokenizer, checked against every store."""
    loaded = [load_tokenizer(path) for path in config.tokenizers]
    grids = {name: tokenizer.spec.grid for tokenizer in loaded for name in tokenizer.spec.modalities}
    stores = [open_tokens(path) for path in config.tokens]
    if config.authors:
        stores += open_authors_tokens(config.authors, config.data_sets, grids)
    for store in stores:
        require_tokenizers(store, loaded)
    return stores, {"-".join(tokenizer.spec.modalities): tokenizer for tokenizer in loaded}


def _train(
    config: EgoM2PTrainConfig,
    model_config: EgoM2PConfig,
    stores: Sequence[TokenStore],
    tokenizers: Mapping[str, Tokenizer],
    fabric: Fabric,
) -> None:
    out, trainer = Path(config.out), config.trainer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = EgoM2P(model_config)
    by_modality = {name: tokenizer for tokenizer in tokenizers.values() for name in tokenizer.spec.modalities}
    # A checkpoint, where there is one, takes the place of all this.
    start_tokens(model, by_modality, start=config.token_start, seed=config.seed)
    if config.init:
        load_tensors_strict(model, load_tensors(config.init), where=f"init={config.init}")
    load = LoadTokens(stores, model_config, config.masking)
    train_clips, held_out = split_clips(len(load), config.val_fraction)

    def compute_loss(wrapped: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        losses = wrapped(unpack(batch, "input"), unpack(batch, "target"))
        return egom2p_loss(losses, target_counts(batch, model_config), len(model_config.names))

    progress = fit(
        fabric=fabric,
        model=model,
        compute_loss=compute_loss,
        load=load,
        plan=BatchPlan(indices=train_clips, batch_size=trainer.batch_size, seed=config.seed),
        trainer=trainer,
        directory=out,
        title=f"pretrain {config.name}",
    )
    if not fabric.is_global_zero:
        return
    report = validate(model, load, train=train_clips, held_out=held_out, batch_size=trainer.batch_size)
    atomic_write_text(out / VALIDATION_FILE, json.dumps(report, indent=2) + "\n")
    _save(config, model, stores, tokenizers, progress)
    for name, figures in report.items():
        verdict = "below" if figures["loss"] < figures["chance"] else "NOT below"
        print(
            f"{name}: cross-entropy {figures['loss']:.3f} on {figures['tokens']} held-out tokens, {verdict} "
            f"{figures['chance']:.3f} of their frequencies; {figures['accuracy']:.1%} right"
        )
        if "gain" in figures:
            print(f"{name}: {_gain_said(figures)}")
    clips = trainer.steps * trainer.batch_size
    print(
        f"pretrain {config.name}: {trainer.steps} steps, {clips} clips seen, {progress.wall_time_s:.0f} s: "
        f"{out / MODEL_DIRECTORY}"
    )


def _gain_said(figures: Mapping[str, float]) -> str:
    low, high = figures["gain_low"], figures["gain_high"]
    text = f"{figures['gain']:+.4f} nats [{low:+.4f}, {high:+.4f}] a token likelier given its own clip's tokens than another's"
    return text if low > 0 else f"{text}: it is NOT shown that the model uses what it is given"


def _save(
    config: EgoM2PTrainConfig,
    model: EgoM2P,
    stores: Sequence[TokenStore],
    tokenizers: Mapping[str, Tokenizer],
    progress: Progress,
) -> None:
    parents = {f"tokenizer {name}": tokenizer.spec.weights_sha256 for name, tokenizer in tokenizers.items()}
    if config.init:
        parents["init"] = sha256_file(Path(config.init))
    provenance = make_provenance(
        seed=config.seed,
        parents=parents,
        data=_data_of(stores),
        step=progress.step,
        wall_time_s=progress.wall_time_s,
    )
    training = _identity(config, stores)
    save_egom2p(Path(config.out), model, tokenizers, name=config.name, provenance=provenance, training=training)


def _data_of(stores: Sequence[TokenStore]) -> dict[str, str]:
    """What was trained on, by hash; the clips behind a single store too, so that a benchmark keeps off them."""
    data = {f"tokens {number}": store.manifest_sha256 for number, store in enumerate(stores)}
    if len(stores) == 1 and "clips_sha256" in stores[0].manifest:
        data["clips"] = stores[0].manifest["clips_sha256"]
    return data

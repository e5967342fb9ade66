"""`egoarm tokenize train`: a tokenizer of one modality, or one that rgb and depth share, on a store of ego clips.

<out>/tokenizer/         the artifact
<out>/validation.json    its reconstruction of held-out clips beside each clip's mean
"""

import dataclasses
import difflib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from lightning_fabric import Fabric
from torch import Tensor, nn

from pretrain.artifact import atomic_write_text
from pretrain.batches import BatchPlan, SampleId
from pretrain.clips.schema import Clip
from pretrain.clips.store import ClipStore, open_store
from pretrain.egodtm.data import split_clips
from pretrain.egom2p.modalities import MODALITIES, VIDEO, VIDEO_FRAMES, ModalityMissing, require_modalities
from pretrain.egom2p.tokenizers.fsq_video import FSQ_VIDEO_SIZES, FsqVideoConfig, FsqVideoTokenizer
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer, save_tokenizer
from pretrain.egom2p.tokenizers.validation import Reconstruction, reconstruction
from pretrain.egom2p.tokenizers.vq_sequence import VQ_SEQUENCE_SIZES, VqSequenceConfig, VqSequenceTokenizer
from pretrain.egom2p.windows import cut_window, random_square, random_start_s, read_modalities
from pretrain.loop import TrainerConfig, fit, held_run, make_fabric
from pretrain.provenance import make_provenance

TOKENIZER_DIRECTORY = "tokenizer"
VALIDATION_FILE = "validation.json"
# Clips that mean and standard deviation of a sequence's channels are taken of; more change them little.
_STATISTICS_CLIPS = 2048
# Sequences of clips that were read once stay in memory, up to this much a process: a step is faster than reading its clips.
_KEPT_BYTES = 512 << 20
# Clips that are looked at in place of one that lacks the modality, before it is taken for missing altogether.
_TRIES = 200


def _default_trainer() -> TrainerConfig:
    return TrainerConfig(learning_rate=3e-4, beta2=0.99, precision="32-true")


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainConfig:
    """Settings of `egoarm tokenize train`.

    Attributes:
        modality: one sequence (gaze, camera, hands), or rgb, depth or both, which then share the tokenizer.
        data: directory of a clip store; out: directory of the run.
        size: a row of FSQ_VIDEO_SIZES or VQ_SEQUENCE_SIZES.
        image_size: S of a video tokenizer; null = the size's own.
        network: fields of FsqVideoConfig or VqSequenceConfig in place of the size's.
        seed: of the weights, the order of the clips, windows and crops.
        overwrite: start again from nothing where `out` holds another run.
        least_crop: side of a random square crop of video over that of the largest square, at least; 1 = no crops.
        val_fraction: share of the clips held out to measure reconstruction at the end; 0 skips that.
    """

    modality: tuple[str, ...]
    data: str
    out: str
    size: str = "tiny"
    image_size: int | None = None
    network: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    overwrite: bool = False
    least_crop: float = 0.6
    val_fraction: float = 0.1
    trainer: TrainerConfig = field(default_factory=_default_trainer)

    def __post_init__(self) -> None:
        for name, meaning in (("data", "a clip store, e.g. data=runs/clips"), ("out", "e.g. out=runs/tokenizer")):
            if getattr(self, name) in ("", "???"):
                raise ValueError(f"{name}= is missing: say the directory of {meaning}")
        if isinstance(self.modality, str) or not self.modality or len(set(self.modality)) < len(self.modality):
            raise ValueError(
                f"modality={self.modality}: expected names in brackets, each once, e.g. modality=[rgb,depth]"
            )
        require_modalities(self.modality, "modality")
        if len(self.modality) > 1 and any(MODALITIES[name].kind != VIDEO for name in self.modality):
            raise ValueError(
                f"modality=[{','.join(self.modality)}]: only rgb and depth share a tokenizer; train one for each sequence"
            )
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")
        if not 0 < self.least_crop <= 1:
            raise ValueError(f"least_crop: expected a number above 0, at most 1, got {self.least_crop}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction: expected a number from 0 to less than 1, got {self.val_fraction}")
        sizes = FSQ_VIDEO_SIZES if self.is_video else VQ_SEQUENCE_SIZES
        if self.size not in sizes:
            raise ValueError(f"size: expected one of {', '.join(sizes)}, got {self.size!r}")
        if self.image_size is not None and not self.is_video:
            raise ValueError(f"image_size={self.image_size}: {self.name} has no images; leave it out")
        known = [known.name for known in dataclasses.fields(FsqVideoConfig if self.is_video else VqSequenceConfig)]
        if unknown := [name for name in self.network if name not in known]:
            close = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"network.{unknown[0]}: no such field; {hint}There is: {', '.join(known)}")
        _ = self.network_config  # says what is wrong with its fields

    @property
    def is_video(self) -> bool:
        return MODALITIES[self.modality[0]].kind == VIDEO

    @property
    def name(self) -> str:
        return f"{'-'.join(self.modality)}-{self.size}"

    @property
    def network_config(self) -> FsqVideoConfig | VqSequenceConfig:
        if not self.is_video:
            return VqSequenceConfig.for_modality(self.modality[0], self.size, **self.network)
        size = {} if self.image_size is None else {"image_size": self.image_size}
        return FsqVideoConfig.of_size(self.size, **({"frames": VIDEO_FRAMES} | size | self.network))

    def build(self) -> Tokenizer:
        """The untrained tokenizer, its weights drawn from `seed`."""
        config = self.network_config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if isinstance(config, FsqVideoConfig):
                return FsqVideoTokenizer(config, name=self.name, modalities=self.modality)
            return VqSequenceTokenizer(config, name=self.name, modalities=self.modality)


class LoadArrays:
    """Sample ids to {"x": float32 [B, ...]}: a random two-second window of each clip, of video a random square of it.

    A pure function of the ids, and picklable for worker processes. Where a tokenizer is for several modalities, each sample is
    of one of them. A clip that has none of them gives its place to another one of `pool`.
    """

    def __init__(
        self, data: str | Path, *, modalities: Sequence[str], size: int, pool: Sequence[int], least_crop: float
    ) -> None:
        self.store = open_store(data)
        self.modalities, self.size, self.least_crop = tuple(modalities), size, least_crop
        self.pool = np.asarray(pool)
        self._kept: dict[int, Clip] = {}
        self._room = _KEPT_BYTES

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_room": _KEPT_BYTES}

    def __call__(self, ids: Sequence[SampleId]) -> dict[str, Tensor]:
        return {"x": torch.from_numpy(np.stack([self.sample(index, seed) for index, seed in ids]))}

    def sample(self, index: int, seed: int) -> Float32[np.ndarray, "..."]:
        """One clip's array.

        Raises:
            ValueError: no clip of many has any of the modalities, with the commonest reasons.
        """
        random = np.random.default_rng([seed, index])
        reasons: Counter[str] = Counter()
        for _ in range(_TRIES):
            for place in random.permutation(len(self.modalities)):
                try:
                    return self._window(index, self.modalities[place], random)
                except ModalityMissing as error:
                    reasons[f"{self.modalities[place]}: {error}"] += 1
            index = int(self.pool[random.integers(len(self.pool))])
        why = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        raise ValueError(
            f"data={self.store.path}: none of {_TRIES} clips drawn has {' or '.join(self.modalities)} for two seconds ({why}): "
            "take another clip store, or another modality"
        )

    def _window(self, index: int, name: str, random: np.random.Generator) -> Float32[np.ndarray, "..."]:
        clip = self._read(index, name)
        window = cut_window(clip, random_start_s(clip, name, random))
        if MODALITIES[name].kind == VIDEO and self.least_crop < 1:
            window = random_square(window, random, self.least_crop)
        return MODALITIES[name].to_array(window, self.size)

    def _read(self, index: int, name: str) -> Clip:
        if (kept := self._kept.get(index)) is not None:
            return kept
        clip = read_modalities(self.store, index, (name,))
        if MODALITIES[name].kind == VIDEO:
            return clip
        if clip.rgb is not None:
            # Of the picture a sequence needs the size alone.
            clip = clip.replace(rgb=np.broadcast_to(np.uint8(0), clip.rgb.shape))
        sequences = (clip.gaze, clip.world_from_camera, clip.hands)
        self._room -= sum(values.nbytes for values in sequences if values is not None)
        if self._room > 0:
            self._kept[index] = clip
        return clip


class _Objective(nn.Module):
    """The tokenizer's loss as a forward pass, which is what the processes of a run wrap.

    Its name must not say "token": the optimizer would take all weights for tables of tokens and decay none."""

    def __init__(self, network: Tokenizer) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.network.loss(x)


def run(config: TokenizerTrainConfig) -> None:
    """Trains, or goes on with, the run in config.out, and saves its tokenizer as <out>/tokenizer.

    Raises:
        FileNotFoundError: no clip store at config.data.
        ValueError: too few clips, none that has the modality, or config.out holds something else.
        KeyboardInterrupt: stopped; the same command goes on.
    """
    store = open_store(config.data)
    out = Path(config.out)
    fabric = make_fabric(config.trainer)
    with held_run(
        fabric,
        out,
        _identity(config, store),
        artifact=TOKENIZER_DIRECTORY,
        trainer=config.trainer,
        title=f"tokenizer {config.name}",
        may_differ={"data"},
        overwrite=config.overwrite,
        belongings=(VALIDATION_FILE,),
    ) as unfinished:
        if unfinished:
            _train(config, store, fabric)


def _identity(config: TokenizerTrainConfig, store: ClipStore) -> dict[str, Any]:
    """What a run is, for the comparison with the run that its directory holds."""
    identity = dataclasses.asdict(config)
    for name in ("out", "overwrite"):
        del identity[name]
    return identity | {"clips_sha256": store.manifest_sha256}


def _train(config: TokenizerTrainConfig, store: ClipStore, fabric: Fabric) -> None:
    out, trainer = Path(config.out), config.trainer
    train_clips, held_out = split_clips(len(store), config.val_fraction)
    tokenizer = config.build()
    load = LoadArrays(
        config.data,
        modalities=config.modality,
        size=tokenizer.spec.input_shape[-1],
        pool=train_clips,
        least_crop=config.least_crop,
    )
    plan = BatchPlan(indices=train_clips, batch_size=trainer.batch_size, seed=config.seed)
    if isinstance(tokenizer, VqSequenceTokenizer):
        # The same numbers in each of a run's lives; a checkpoint holds them too.
        tokenizer.fit_statistics(_statistics_batches(load, train_clips))

    def compute_loss(wrapped: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, scalars = wrapped(batch["x"])
        return loss, {"loss": loss.detach(), **scalars}

    progress = fit(
        fabric=fabric,
        model=_Objective(tokenizer),
        compute_loss=compute_loss,
        load=load,
        plan=plan,
        trainer=trainer,
        directory=out,
        title=f"tokenizer {config.name}",
    )
    if not fabric.is_global_zero:
        return
    report = reconstruction(tokenizer, store, held_out, batch_size=trainer.batch_size) if held_out else {}
    scores = {name: one.to_json() for name, one in report.items()}
    atomic_write_text(out / VALIDATION_FILE, json.dumps(scores, indent=2) + "\n")
    save_tokenizer(
        out / TOKENIZER_DIRECTORY,
        tokenizer,
        provenance=make_provenance(
            seed=config.seed,
            parents={},
            data={"clips": store.manifest_sha256},
            step=progress.step,
            wall_time_s=progress.wall_time_s,
        ),
        training=dataclasses.asdict(config),
    )
    _tell(config, report, progress.wall_time_s)


def _statistics_batches(load: LoadArrays, clips: Sequence[int]) -> Iterator[Tensor]:
    chosen = clips[:: max(1, len(clips) // _STATISTICS_CLIPS)]
    for start in range(0, len(chosen), 64):
        yield load([(index, 0) for index in chosen[start : start + 64]])["x"]


def _tell(config: TokenizerTrainConfig, report: dict[str, Reconstruction], wall_time_s: float) -> None:
    if not report:
        print("no held-out clips: reconstruction was not measured")
    for name, one in report.items():
        print(one.line(name))
    steps = config.trainer.steps
    print(
        f"tokenizer {config.name}: {steps} steps, {steps * config.trainer.batch_size} windows seen, {wall_time_s:.0f} s: "
        f"{Path(config.out) / TOKENIZER_DIRECTORY}"
    )

"""`egoarm pretrain`: EgoDTM on a store of ego clips, ending in an encoder artifact."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pretrain.artifact import atomic_write_text, save_artifact, sha256_file
from pretrain.batches import BatchPlan
from pretrain.checkpoints import Progress
from pretrain.clips.dataset import CROP_SCALE, ClipDataset
from pretrain.clips.store import ClipStore, open_store
from pretrain.egodtm.data import DEPTH_SCALINGS, LoadBatch, split_clips
from pretrain.egodtm.depth_decoder import DEPTH_HEADS, DepthDecoderConfig
from pretrain.egodtm.depth_losses import DEPTH_ERRORS
from pretrain.egodtm.gradcache import GradCache
from pretrain.egodtm.initialise import initialise
from pretrain.egodtm.model import DECODER_SIZES, DEPTH_MEMORY, EgoDTM, EgoDTMConfig, LossConfig, egodtm_loss
from pretrain.egodtm.text import TextConfig
from pretrain.egodtm.validation import Validation, validate
from pretrain.egodtm.video_vit import VIDEO_SIZES, VideoViTConfig
from pretrain.encoder import save_encoder
from pretrain.loop import TrainerConfig, fit, held_run, make_fabric
from pretrain.provenance import make_provenance
from pretrain.zoo.clip_weights import weights_file

MODELS = ("egodtm",)
ENCODER_DIRECTORY = "encoder"
MODEL_DIRECTORY = "model"
MODEL_KIND = "egodtm"
VALIDATION_FILE = "validation.json"
SNAPSHOTS_DIRECTORY = "snapshots"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of `egoarm pretrain`.

    Attributes:
        model: one of MODELS; size: a row of VIDEO_SIZES.
        data: directory of a clip store; out: directory of the run.
        init: CLIP weights that the towers start from, a file or timm:<model>, see pretrain/zoo/clip_weights.py, or the file
            <run>/model/model.safetensors of an EgoDTM that goes on with these clips; null = random.
        seed: of the weights, the order of the clips, the augmentation and the choice of captions.
        overwrite: start again from nothing where `out` holds another run.
        frames: T; image_size: pixels, layers: of the video tower, null = the size's own; stem: see VideoViTConfig;
            depth_scale: side of the depth map over that of the patch grid, null = the size's own.
        depth_head, token_noise: see EgoDTMConfig.
        depth_memory: see DEPTH_MEMORY.
        joint_dim, contrastive, temperature, causal_text: of the contrastive head, see EgoDTMConfig and TextConfig.
        contrastive_weight: weight of the contrastive loss; 0 leaves the texts out.
        depth_weight: weight of the depth loss; 0 trains the no-depth twin, without the decoder.
        depth_error, depth_edges, deep_supervision, mask_duplicates: see LossConfig.
        depth_scaling, crop_area, still_probability, colour_jitter: of the clips, see LoadBatch.
        caption_probability: chance that an enriched caption replaces the narration; 0 trains the no-enriched twin.
        val_fraction: share of the clips held out to test against chance at the end; 0 skips that.
        snapshots: numbers of clips seen, each rounded to whole steps, at which the encoder and the model are also saved,
            under <out>/snapshots/<clips>, with the validation figures of that moment. The learning rate is wherever its
            schedule is then.
    """

    data: str
    out: str
    model: str = "egodtm"
    size: str = "tiny"
    init: str | None = None
    seed: int = 0
    overwrite: bool = False
    frames: int = 4
    image_size: int | None = None
    layers: int | None = None
    stem: str = "patch"
    depth_scale: int | None = None
    depth_memory: str = DEPTH_MEMORY[0]
    depth_head: str = DEPTH_HEADS[0]
    token_noise: float = 0.0
    joint_dim: int = 256
    contrastive: str = "infonce"
    temperature: float = 0.07
    causal_text: bool = True
    contrastive_weight: float = 1.0
    depth_weight: float = 1.0
    depth_error: str = DEPTH_ERRORS[0]
    depth_edges: float = 0.0
    depth_scaling: str = DEPTH_SCALINGS[0]
    deep_supervision: bool = True
    mask_duplicates: bool = True
    caption_probability: float = 0.5
    crop_area: float = CROP_SCALE[0]
    still_probability: float = 0.0
    colour_jitter: float = 0.0
    val_fraction: float = 0.1
    snapshots: tuple[int, ...] = ()
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        for name, meaning in (("data", "a clip store, e.g. data=runs/clips"), ("out", "e.g. out=runs/pretrain")):
            if getattr(self, name) in ("", "???"):
                raise ValueError(f"{name}= is missing: say the directory of {meaning}")
        if self.model not in MODELS:
            raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {self.model!r}")
        if self.size not in VIDEO_SIZES:
            raise ValueError(f"size: expected one of {', '.join(VIDEO_SIZES)}, got {self.size!r}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")
        if any(clips < 1 for clips in self.snapshots):
            raise ValueError(f"snapshots: expected numbers of clips of at least 1, got {list(self.snapshots)}")
        if self.depth_scaling not in DEPTH_SCALINGS:
            raise ValueError(f"depth_scaling: expected one of {', '.join(DEPTH_SCALINGS)}, got {self.depth_scaling!r}")
        if not 0 < self.crop_area <= 1:
            raise ValueError(f"crop_area: expected above 0 and at most 1, got {self.crop_area}")
        if self.depth_head == "linear" and self.depth_error == "silog":
            raise ValueError(
                "depth_error: silog takes logarithms, and depth_head=linear can be below 0; use l1, mse, ssi or ssi_trimmed"
            )
        if self.colour_jitter < 0:
            raise ValueError(f"colour_jitter: expected at least 0, got {self.colour_jitter}")
        for name in ("caption_probability", "still_probability", "val_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        if self.depth_memory not in DEPTH_MEMORY:
            raise ValueError(f"depth_memory: expected one of {', '.join(DEPTH_MEMORY)}, got {self.depth_memory!r}")
        _ = self.loss, self.model_config  # each part says what is wrong with its fields

    @property
    def snapshot_steps(self) -> dict[int, int]:
        """Step -> the number of clips it was asked as."""
        return {max(1, round(clips / self.trainer.batch_size)): clips for clips in self.snapshots}

    @property
    def name(self) -> str:
        return f"{self.model}-{self.size}"

    @property
    def loss(self) -> LossConfig:
        return LossConfig(
            contrastive=self.contrastive,
            contrastive_weight=self.contrastive_weight,
            depth_weight=self.depth_weight,
            depth_error=self.depth_error,
            depth_edges=self.depth_edges,
            deep_supervision=self.deep_supervision,
            mask_duplicates=self.mask_duplicates,
        )

    @property
    def model_config(self) -> EgoDTMConfig:
        video: dict[str, Any] = {"frames": self.frames, "stem": self.stem}
        if self.image_size is not None:
            video["image_size"] = self.image_size
        if self.layers is not None:
            video["layers"] = self.layers
        decoder = DECODER_SIZES[self.size] | ({} if self.depth_scale is None else {"scale": self.depth_scale})
        return EgoDTMConfig(
            video=VideoViTConfig.of_size(self.size, **video),
            text=TextConfig.of_size(self.size, causal=self.causal_text),
            decoder=DepthDecoderConfig(**decoder) if self.depth_weight else None,
            joint_dim=self.joint_dim,
            temperature=self.temperature,
            contrastive=self.contrastive,
            depth_head=self.depth_head,
            token_noise=self.token_noise,
        )


def run(config: PretrainConfig) -> None:
    """Trains, or goes on with, the run in config.out, and saves its encoder as <out>/encoder.

    Raises:
        FileNotFoundError: no clip store at config.data.
        ValueError: too few clips, no depth to learn from, or config.out holds something else.
        KeyboardInterrupt: stopped; the same command goes on.
    """
    store = open_store(config.data)
    out = Path(config.out)
    identity = _identity(config, store)
    fabric = make_fabric(config.trainer)
    with held_run(
        fabric,
        out,
        identity,
        artifact=ENCODER_DIRECTORY,
        trainer=config.trainer,
        title=f"pretrain {config.name}",
        may_differ={"data"},
        overwrite=config.overwrite,
        belongings=(MODEL_DIRECTORY, SNAPSHOTS_DIRECTORY, VALIDATION_FILE),
    ) as unfinished:
        if unfinished:
            _train(config, store, fabric)


# Settings that came after the first runs. At its default each does what was done before it existed, so it is written
# into a run's identity only where it is set: older runs go on under their own names.
_LATER_FIELDS = (
    "colour_jitter",
    "contrastive",
    "contrastive_weight",
    "crop_area",
    "depth_edges",
    "depth_head",
    "depth_memory",
    "depth_scaling",
    "init",
    "layers",
    "snapshots",
    "stem",
    "still_probability",
    "token_noise",
    "trainer.micro_batch",
)


def _identity(config: PretrainConfig, store: ClipStore) -> dict[str, Any]:
    """What a run is, for the comparison with the run that its directory holds."""
    identity = dataclasses.asdict(config)
    default = dataclasses.asdict(PretrainConfig(data=config.data, out=config.out))
    for name in ("out", "overwrite"):
        del identity[name]
    for name in _LATER_FIELDS:
        *path, field_name = name.split(".")
        at, plain = identity, default
        for part in path:
            at, plain = at[part], plain[part]
        if at[field_name] == plain[field_name]:
            del at[field_name]
    identity["clips_sha256"] = store.manifest_sha256
    if config.init is not None:
        # A file is what is in it, wherever it lies.
        identity["init"] = sha256_file(weights_file(config.init))
    return identity


def _train(config: PretrainConfig, store: ClipStore, fabric: Fabric) -> None:
    out, model_config, trainer = Path(config.out), config.model_config, config.trainer
    train_clips, held_out = split_clips(len(store), config.val_fraction)
    if model_config.decoder is not None and "depth" not in store.manifest["modalities"]:
        raise ValueError(
            f"data={config.data} has no depth to learn from: add it with a depth teacher, or train without, depth_weight=0"
        )
    model_config = dataclasses.replace(model_config, fps=_frame_rate(store, config.frames))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = EgoDTM(model_config, name=config.name, depth_memory=config.depth_memory)
    if config.init is not None:
        lines = initialise(model, config.init)
        if fabric.is_global_zero:
            print("\n".join(lines))

    def loader(train: bool) -> LoadBatch:
        return LoadBatch(
            config.data,
            frames=model_config.video.frames,
            image_size=model_config.video.image_size,
            depth_size=model_config.depth_size,
            caption_probability=config.caption_probability,
            context_length=model_config.text.context_length,
            train=train,
            depth_scaling=config.depth_scaling,
            crop_area=config.crop_area,
            still_probability=config.still_probability,
            colour_jitter=config.colour_jitter,
        )

    loss_config = config.loss

    def compute_loss(wrapped: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return egodtm_loss(
            wrapped(batch["video"], batch["text_ids"], all_stages=loss_config.deep_supervision),
            log_scale=model.log_scale,
            bias=model.logit_bias,
            text_ids=batch["text_ids"],
            depth=batch.get("depth"),
            depth_valid=batch.get("depth_valid"),
            config=loss_config,
        )

    def keep(directory: Path, progress: Progress) -> Validation | None:
        directory.mkdir(parents=True, exist_ok=True)
        report = None
        if len(held_out) >= 2:
            report = validate(
                model, loader(train=False), held_out=held_out, train=train_clips, batch_size=trainer.batch_size
            )
            atomic_write_text(directory / VALIDATION_FILE, json.dumps(dataclasses.asdict(report), indent=2) + "\n")
        _save(directory, config, model, store, progress)
        return report

    progress = fit(
        fabric=fabric,
        model=model,
        compute_loss=compute_loss,
        backward=GradCache(model, loss_config, micro_batch=trainer.micro_batch) if trainer.micro_batch else None,
        load=loader(train=True),
        plan=BatchPlan(indices=train_clips, batch_size=trainer.batch_size, seed=config.seed),
        trainer=trainer,
        directory=out,
        title=f"pretrain {config.name}",
        milestones=config.snapshot_steps,
        on_milestone=lambda progress: keep(
            out / SNAPSHOTS_DIRECTORY / str(config.snapshot_steps[progress.step]), progress
        ),
    )
    if fabric.is_global_zero:
        _tell(config, keep(out, progress), progress.wall_time_s)


def _frame_rate(store: ClipStore, frames: int) -> float:
    """Mean rate of a clip's chosen frames, 1/s: what the encoder's users should feed it. 0 for one frame."""
    if frames == 1:
        return 0.0
    times = ClipDataset(store, frames=frames, train=False, fields=("text",)).sample(0, 0)["times_s"]
    span = float(times[-1] - times[0])
    return round((frames - 1) / span, 6) if span > 0 else 0.0


def _save(directory: Path, config: PretrainConfig, model: EgoDTM, store: ClipStore, progress: Progress) -> None:
    training = dataclasses.asdict(config) | {"snapshots": list(config.snapshots)}
    provenance = make_provenance(
        seed=config.seed,
        parents={} if config.init is None else {"init": sha256_file(weights_file(config.init))},
        data={"clips": store.manifest_sha256},
        step=progress.step,
        wall_time_s=progress.wall_time_s,
    )
    # The whole model is for text retrieval and depth; policies need the encoder alone.
    save_artifact(
        directory / MODEL_DIRECTORY,
        kind=MODEL_KIND,
        name=config.name,
        tensors=model.state_dict(),
        config={"model": model.config.to_json(), "training": training},
        spec=model.encoder().spec.to_json(),
        provenance=provenance,
    )
    save_encoder(
        directory / ENCODER_DIRECTORY, model.encoder(), name=config.name, provenance=provenance, training=training
    )


def _tell(config: PretrainConfig, report: Validation | None, wall_time_s: float) -> None:
    steps, clips = config.trainer.steps, config.trainer.steps * config.trainer.batch_size
    for line in report.lines() if report is not None else ["no held-out clips: nothing was tested against chance"]:
        print(line)
    print(
        f"pretrain {config.name}: {steps} steps, {clips} clips seen, {wall_time_s:.0f} s: "
        f"{Path(config.out) / ENCODER_DIRECTORY}"
    )

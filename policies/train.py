"""`egoarm train`: a policy by imitation. A frozen encoder's features are computed once; training is bounded by the head."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from envs.spec import EnvSpec
from policies.act import ACTConfig, ACTPolicy
from policies.adaptation import merge_adapters
from policies.backbone import Backbone, BackboneConfig
from policies.bc import BCConfig, BCPolicy
from policies.demos.hdf5 import DemoFile
from policies.diffusion import DiffusionConfig, DiffusionPolicy
from policies.ema import WeightAverage
from policies.features import kept_lengths
from policies.policy import POLICIES, Policy, PolicySpec, Recipe, policy_entry
from policies.rows import TrainingRows, load_rows
from pretrain.artifact import atomic_write_text, load_artifact, save_artifact
from pretrain.batches import BatchPlan
from pretrain.checkpoints import Progress, open_run, run_lock
from pretrain.encoder import VideoEncoder, load_encoder
from pretrain.loop import TrainerConfig, fit, make_fabric
from pretrain.provenance import make_provenance

NO_ENCODER = "none"
PRIVILEGED_KEY = "state/full"
HELD_OUT_FILE = "held_out.json"  # beside the metrics: the loss on demonstrations learned from and held out
FEATURE_SAMPLE = 256  # rows from which the scale of the features is taken


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `egoarm train` is asked for. Fields of Recipe that are None take the policy's own.

    Attributes:
        state_keys: the `state/<name>` that the policy reads; None: all of the demonstrations but the privileged state/full.
        frames: images that one latent of the encoder is of, at most as many as it takes; None: as many.
        ensemble_decay: below 0 turns temporal ensembling off.
        demonstrations: how many of the file's are learned from, the first ones; None: all.
        held_out: the file's last so many demonstrations are not learned from; the loss on them is measured at the end.
        rows_every: only every so many-th step of a demonstration is learned from. Neighbours at 80 Hz look alike: the same work reads more
            demonstrations.
        steps: of training, in place of epochs.
        half_tokens: cached tokens are float16.
    """

    policy: str
    encoder: str
    encoder_seed: int
    demos: str
    out: str
    label: str | None
    seed: int
    cache: str
    threads: int
    state_keys: tuple[str, ...] | None = None
    demonstrations: int | None = None
    held_out: int = 0
    rows_every: int = 1
    frames: int | None = None
    stride_steps: int | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    bc: BCConfig = field(default_factory=BCConfig)
    act: ACTConfig = field(default_factory=ACTConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    chunk_steps: int | None = None
    execute_steps: int | None = None
    ensemble_decay: float | None = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    lr_schedule: str | None = None
    warmup_steps: int | None = None
    weight_decay: float | None = None
    gradient_clip: float | None = None
    ema_decay: float | None = None
    precision: str = "auto"
    accelerator: str = "auto"
    half_tokens: bool = True

    def __post_init__(self) -> None:
        if policy_entry(self.policy).recipe is None:
            able = ", ".join(name for name, entry in POLICIES.items() if entry.recipe)
            raise ValueError(f"policy={self.policy} is not trained by imitation; expected one of {able}")
        for name in ("demonstrations", "frames", "stride_steps", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1, or null")
        if self.rows_every < 1 or self.held_out < 0:
            raise ValueError(f"rows_every={self.rows_every}, held_out={self.held_out}: expected at least 1 and 0")
        if self.encoder == NO_ENCODER and self.backbone.adaptation != "frozen":
            raise ValueError(
                f"backbone.adaptation={self.backbone.adaptation} with encoder=none: there is nothing to adapt"
            )
        _ = self.recipe  # checks itself

    @property
    def recipe(self) -> Recipe:
        own = policy_entry(self.policy).recipe
        assert own is not None
        given = {entry.name: getattr(self, entry.name) for entry in fields(Recipe)}
        recipe = replace(own, **{name: value for name, value in given.items() if value is not None})
        if self.execute_steps is None:
            recipe = replace(recipe, execute_steps=min(recipe.execute_steps, recipe.chunk_steps))
        if (recipe.ensemble_decay or 0) < 0 or (self.ensemble_decay is None and recipe.execute_steps > 1):
            recipe = replace(recipe, ensemble_decay=None)
        return recipe

    @property
    def content(self) -> dict[str, Any]:
        """What the policy depends on, besides its network, the data and the encoder's weights."""
        left_out = ("out", "cache", "threads", "demos", "accelerator", "backbone", "bc", "act", "diffusion")
        # As it was before there was a choice.
        left_out += tuple(name for name, plain in (("rows_every", 1), ("held_out", 0)) if getattr(self, name) == plain)
        return {key: value for key, value in asdict(self).items() if key not in left_out} | asdict(self.recipe)


def run(config: TrainConfig) -> Path:
    """Train one policy; a finished one of the same configuration is kept."""
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    encoder = None if config.encoder == NO_ENCODER else load_encoder(config.encoder, seed=config.encoder_seed)
    if encoder is not None and config.frames:
        encoder = encoder.shortened(config.frames, trained=config.backbone.adaptation != "frozen")
    with DemoFile(config.demos) as demos:
        if (config.demonstrations or 1) + config.held_out > len(demos):
            raise ValueError(
                f"demonstrations={config.demonstrations}, held_out={config.held_out}: {config.demos} holds {len(demos)}"
            )
        stored = _stored_config(config, encoder, demos)
        if _is_done(Path(config.out), stored):
            print(f"train: {config.out} is there already")
            return Path(config.out)
        spec = make_spec(config, encoder, demos)
        torch.manual_seed(config.seed)
        policy = build_policy(config, spec, encoder)
        title = f"{stored['encoder']['label']} {demos.env_spec.task}"
        rows = load_rows(policy, demos, config.cache, title, half_tokens=config.half_tokens, every=config.rows_every)
        lengths, learned = (
            kept_lengths(demos.lengths, config.rows_every),
            config.demonstrations or len(demos) - config.held_out,
        )
        unseen = rows.last(sum(lengths[len(demos) - config.held_out :]))
        rows = rows.first(sum(lengths[:learned]))
        policy.fit_normalizers(rows.state, rows.action, rows.action_is_pad)
        policy.backbone.fit_features(rows.sample(FEATURE_SAMPLE))
        directory = metrics_path(config.out).parent
        with run_lock(directory):
            open_run(directory, json.loads(json.dumps(stored)))
            progress = _fit(policy, rows, config, directory, f"train {config.policy} {title}")
        policy = policy.cpu()
        if config.held_out:
            losses = {name: mean_loss(policy, part) for name, part in (("learned_from", rows), ("held_out", unseen))}
            atomic_write_text(directory / HELD_OUT_FILE, json.dumps(losses) + "\n")
            print(
                f"train: loss {losses['held_out']:.4f} on {config.held_out} demonstrations that were held out, "
                f"{losses['learned_from']:.4f} on the {learned} learned from"
            )
        if policy.backbone.encoder is not None and config.backbone.adaptation == "lora":
            merge_adapters(policy.backbone.encoder)
        sha256 = save_artifact(
            config.out,
            kind="policy",
            name=config.policy,
            tensors=policy.state_dict(),
            config=stored,
            spec=spec.to_json(),
            provenance=make_provenance(
                seed=config.seed,
                parents={} if encoder is None else {"encoder": encoder.spec.weights_sha256},
                data={"demos": demos.sha256},
                step=progress.step,
                wall_time_s=progress.wall_time_s,
            ),
        )
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # the artifact holds the last one
    print(
        f"train: {config.policy} with {stored['encoder']['label']}, {progress.step} steps in {progress.wall_time_s:.0f} s, "
        f"sha256 {sha256[:12]} -> {config.out}"
    )
    return Path(config.out)


def mean_loss(policy: Policy, rows: TrainingRows, batch_size: int = 256) -> float:
    """The policy's loss over all rows, as it acts (no dropout, running statistics); one draw a row where it is random."""
    backbone = policy.backbone
    assert isinstance(backbone, Backbone)
    policy.eval()
    total = 0.0
    with torch.inference_mode(), nullcontext() if backbone.trains_encoder else backbone.without_encoder():
        for begin in range(0, len(rows.state), batch_size):
            samples = [(row, 0) for row in range(begin, min(begin + batch_size, len(rows.state)))]
            total += float(policy.compute_loss(rows.load(samples))[0]) * len(samples)
    return total / len(rows.state)


def metrics_path(policy: str | Path) -> Path:
    """The training log beside a policy's directory."""
    return Path(policy).with_name(Path(policy).name + ".training") / "metrics.jsonl"


def build_policy(config: TrainConfig, spec: PolicySpec, encoder: VideoEncoder | None) -> Policy:
    """The untrained policy."""
    backbone = Backbone(spec, config.backbone, encoder)
    if config.policy == "bc":
        return BCPolicy(spec, config.bc, backbone)
    if config.policy == "act":
        return ACTPolicy(spec, config.act, backbone)
    return DiffusionPolicy(spec, config.diffusion, backbone)


def make_spec(config: TrainConfig, encoder: VideoEncoder | None, demos: DemoFile) -> PolicySpec:
    """What the policy consumes and produces, from what is asked for and what the demonstrations hold."""
    env_spec = demos.env_spec
    recorded = tuple(key for key in env_spec.observation if key.startswith("state/"))
    state_keys = config.state_keys
    if state_keys is None:
        state_keys = tuple(key for key in recorded if key != PRIVILEGED_KEY)
    if missing := [key for key in state_keys if key not in recorded]:
        hint = f"; `egoarm demos privileged=true` records {PRIVILEGED_KEY}" if PRIVILEGED_KEY in missing else ""
        raise ValueError(
            f"state_keys: {config.demos} has no {', '.join(missing)}; there is: {', '.join(recorded)}{hint}"
        )
    if PRIVILEGED_KEY not in state_keys:
        # A policy that does not read it must act where it is not to be had.
        kept = {key: field for key, field in env_spec.observation.items() if key != PRIVILEGED_KEY}
        env_spec = EnvSpec(**{**vars(env_spec), "observation": kept})
    frames, stride = 1, 1
    if encoder is not None:
        if not env_spec.cameras:
            raise ValueError(
                f"encoder={config.encoder}: {config.demos} has no images; collect it with cameras, or use encoder=none"
            )
        demos.check_image_size(encoder.spec.name, encoder.spec.image_size)
        frames = config.frames or encoder.spec.frames
        if frames > encoder.spec.frames:
            raise ValueError(f"frames={frames}: the encoder {encoder.spec.name} takes {encoder.spec.frames}")
        frames += config.backbone.latents - 1
        stride = config.stride_steps or (
            max(1, round(env_spec.control_hz / encoder.spec.fps)) if encoder.spec.fps else 1
        )
    recipe = config.recipe
    return PolicySpec(
        policy=config.policy,
        env_spec=env_spec,
        cameras=() if encoder is None else env_spec.cameras,
        state_keys=state_keys,
        frames=frames,
        stride_steps=stride,
        chunk_steps=recipe.chunk_steps,
        execute_steps=recipe.execute_steps,
        ensemble_decay=recipe.ensemble_decay,
    )


def _stored_config(config: TrainConfig, encoder: VideoEncoder | None, demos: DemoFile) -> dict[str, Any]:
    """The artifact's config: all that rebuilds the network, and what it learned from."""
    label = config.label or (NO_ENCODER if encoder is None else encoder.spec.name)
    described: dict[str, Any] = {"label": label, "sha256": None}
    if encoder is not None:
        described |= {
            "sha256": encoder.spec.weights_sha256,
            "architecture": encoder.architecture,
            "config": encoder.config,
            "spec": encoder.spec.to_json(),
        }
    return {
        "train": config.content,
        "backbone": asdict(config.backbone),
        config.policy: asdict(getattr(config, config.policy)),
        "encoder": described,
        "demos": {
            "path": config.demos,
            "sha256": demos.sha256,
            "level": demos.level,
            "seeds": demos.seeds[: config.demonstrations or len(demos) - config.held_out],
        },
    }


def _is_done(out: Path, stored: Mapping[str, Any]) -> bool:
    if not out.exists():
        return False
    have = load_artifact(out).config
    if json.dumps(have, sort_keys=True) == json.dumps(json.loads(json.dumps(stored)), sort_keys=True):
        return True
    differing = [
        key for key in stored if json.dumps(have.get(key), sort_keys=True) != json.dumps(stored[key], sort_keys=True)
    ]
    raise FileExistsError(f"{out} holds a policy of another {', '.join(differing)}; name another out= or delete it")


def make_trainer(config: TrainConfig, count: int) -> TrainerConfig:
    """The trainer of `count` rows: a fixed budget, chosen before anything is seen."""
    recipe = config.recipe
    batch_size = min(recipe.batch_size, count)
    trains_encoder = config.backbone.adaptation != "frozen"
    return TrainerConfig(
        steps=config.steps or recipe.epochs * (count // batch_size),
        batch_size=batch_size,
        learning_rate=recipe.lr,
        final_learning_rate=recipe.lr if recipe.lr_schedule == "constant" else 0.0,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        beta2=0.999,
        gradient_clip=recipe.gradient_clip,
        precision=config.precision,
        accelerator=config.accelerator,
        # A head's matrices are so small that a second thread costs more than it saves.
        threads=config.threads if trains_encoder else 1,
        prefetch=2 if trains_encoder else 0,  # rows of features are gathered faster than a thread is woken
        checkpoint_every=250 if trains_encoder else 2000,
    )


def _fit(policy: Policy, rows: TrainingRows, config: TrainConfig, directory: Path, title: str) -> Progress:
    """Train for a fixed number of steps, with the one training loop."""
    trainer = make_trainer(config, len(rows.state))
    decay = config.recipe.ema_decay
    model = WeightAverage(policy, decay) if decay else policy
    backbone = policy.backbone
    assert isinstance(backbone, Backbone)
    with nullcontext() if backbone.trains_encoder else backbone.without_encoder():
        progress = fit(
            fabric=make_fabric(trainer),
            model=model,
            compute_loss=lambda wrapped, batch: wrapped(batch),
            load=rows.load,
            plan=BatchPlan(indices=tuple(range(len(rows.state))), batch_size=trainer.batch_size, seed=config.seed),
            trainer=trainer,
            directory=directory,
            title=title,
            after_step=model.update if isinstance(model, WeightAverage) else lambda: None,
        )
    if isinstance(model, WeightAverage):
        model.give()
    return progress

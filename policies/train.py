"""`egoarm train`: a policy by imitation. A frozen encoder's features are computed once; training is bounded by the head."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.bc import BCConfig, BCPolicy
from policies.demos.hdf5 import DemoFile
from policies.demos.windows import training_rows
from policies.features import demo_features
from policies.policy import Policy, PolicySpec, policy_entry
from pretrain.artifact import load_artifact, save_artifact
from pretrain.batches import BatchPlan, SampleId
from pretrain.checkpoints import Progress, open_run, run_lock
from pretrain.encoder import VideoEncoder, load_encoder
from pretrain.loop import TrainerConfig, fit, make_fabric
from pretrain.provenance import make_provenance

NO_ENCODER = "none"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    policy: str
    encoder: str
    encoder_seed: int
    demos: str
    out: str
    label: str | None
    frames: int | None
    stride_steps: int | None
    chunk_steps: int
    bc: BCConfig
    epochs: int
    batch_size: int
    lr: float
    seed: int
    cache: str
    threads: int

    def __post_init__(self) -> None:
        policy_entry(self.policy)
        for name in ("chunk_steps", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr}: expected a positive learning rate")
        for name in ("frames", "stride_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1, or null")

    @property
    def content(self) -> dict[str, Any]:
        """What the policy depends on, besides the data and the encoder's weights."""
        return {key: value for key, value in asdict(self).items() if key not in ("out", "cache", "threads", "demos")}


def run(config: TrainConfig) -> Path:
    """Train one policy; a finished one of the same configuration is kept."""
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    encoder = None if config.encoder == NO_ENCODER else load_encoder(config.encoder, seed=config.encoder_seed)
    with DemoFile(config.demos) as demos:
        stored = _stored_config(config, encoder, demos)
        if _is_done(Path(config.out), stored):
            print(f"train: {config.out} is there already")
            return Path(config.out)
        spec = _make_spec(config, encoder, demos)
        torch.manual_seed(config.seed)
        policy = BCPolicy(spec, config.bc, encoder)
        rows = training_rows(demos, spec.state_keys, spec.chunk_steps)
        if encoder is not None:
            features = demo_features(
                policy.backbone, demos, config.cache, f"{stored['encoder']['label']} {demos.env_spec.task}"
            )
            rows["features"] = torch.from_numpy(np.array(features))
        policy.backbone.state_normalizer.fit(rows["state"])
        directory = metrics_path(config.out).parent
        with run_lock(directory):
            open_run(directory, json.loads(json.dumps(stored)))
            progress = _fit(
                policy, rows, config, directory, f"train {stored['encoder']['label']} {demos.env_spec.task}"
            )
        policy = policy.cpu()
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
        f"train: {config.policy} with {stored['encoder']['label']}, {progress.step} steps, sha256 {sha256[:12]} -> {config.out}"
    )
    return Path(config.out)


def metrics_path(policy: str | Path) -> Path:
    """The training log beside a policy's directory."""
    return Path(policy).with_name(Path(policy).name + ".training") / "metrics.jsonl"


def _make_spec(config: TrainConfig, encoder: VideoEncoder | None, demos: DemoFile) -> PolicySpec:
    env_spec = demos.env_spec
    frames, stride = 1, 1
    if encoder is not None:
        frames = config.frames or encoder.spec.frames
        if frames > encoder.spec.frames:
            raise ValueError(f"frames={frames}: the encoder {encoder.spec.name} takes {encoder.spec.frames}")
        stride = config.stride_steps or (
            max(1, round(env_spec.control_hz / encoder.spec.fps)) if encoder.spec.fps else 1
        )
    return PolicySpec(
        policy=config.policy,
        env_spec=env_spec,
        cameras=() if encoder is None else env_spec.cameras,
        state_keys=tuple(key for key in env_spec.observation if key.startswith("state/")),
        frames=frames,
        stride_steps=stride,
        chunk_steps=config.chunk_steps,
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
        "bc": asdict(config.bc),
        "encoder": described,
        "demos": {"path": config.demos, "sha256": demos.sha256, "level": demos.level, "seeds": demos.seeds},
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


def _fit(policy: Policy, rows: Mapping[str, Tensor], config: TrainConfig, directory: Path, title: str) -> Progress:
    """Train the head at a constant learning rate for a fixed number of epochs, with the one training loop."""
    count = len(rows["state"])
    batch_size = min(config.batch_size, count)
    trainer = TrainerConfig(
        steps=config.epochs * (count // batch_size),
        batch_size=batch_size,
        learning_rate=config.lr,
        final_learning_rate=config.lr,
        warmup_steps=0,
        weight_decay=0.0,
        beta2=0.999,
        gradient_clip=0.0,
        threads=1,  # the head's matrices are so small that a second thread costs more than it saves
        checkpoint_every=2000,
    )
    return fit(
        fabric=make_fabric(trainer),
        model=policy,
        compute_loss=lambda model, batch: model(batch),
        load=partial(_rows, rows),
        plan=BatchPlan(indices=tuple(range(count)), batch_size=batch_size, seed=config.seed),
        trainer=trainer,
        directory=directory,
        title=title,
    )


def _rows(rows: Mapping[str, Tensor], samples: Sequence[SampleId]) -> dict[str, Tensor]:
    index = torch.tensor([row for row, _ in samples])
    return {key: values[index] for key, values in rows.items()}

"""The policy contract: a spec that ties it to an environment, a loss on batches, stateless prediction of action chunks.

Axis legend of this room: B batch, To observation steps, Ta action steps of a chunk, A action dim, S state dim, V cameras, H W image,
T frames of the encoder, L latents in time, P tokens of one image, D width of the encoder, K places of a read-out, C their width.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from envs.spec import EnvSpec
from pretrain.artifact import Artifact, load_artifact, load_tensors_strict

Observation = Mapping[str, Tensor]

LR_SCHEDULES = ("constant", "cosine")
# One generator for a whole batch, or one a row.
Randomness = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What a policy consumes and produces.

    Attributes:
        policy: key in POLICIES.
        env_spec: the environment contract it was trained on; evaluation refuses another one.
        cameras: the cameras it looks through (empty: it sees no images).
        state_keys: the `state/...` observations it reads, in order.
        frames: To, image frames of history that one prediction reads, the oldest repeated at an episode's start.
        stride_steps: control steps between two of those frames.
        chunk_steps: Ta, actions predicted at once.
        execute_steps: how many of them are run before the policy is asked again.
        ensemble_decay: m of temporal ensembling (policies/ensembling.py): the policy is asked at every step and the overlapping chunks are
            averaged. None: no ensembling.
    """

    policy: str
    env_spec: EnvSpec
    cameras: tuple[str, ...]
    state_keys: tuple[str, ...]
    frames: int
    stride_steps: int
    chunk_steps: int
    execute_steps: int = 1
    ensemble_decay: float | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride_steps < 1:
            raise ValueError(f"frames={self.frames}, stride_steps={self.stride_steps}: expected at least 1 each")
        if not 1 <= self.execute_steps <= self.chunk_steps:
            raise ValueError(
                f"execute_steps={self.execute_steps}: expected 1 to chunk_steps={self.chunk_steps}, the actions there are"
            )
        if self.ensemble_decay is not None and (self.execute_steps != 1 or self.ensemble_decay < 0):
            raise ValueError(
                f"ensemble_decay={self.ensemble_decay} with execute_steps={self.execute_steps}: temporal ensembling asks the policy at "
                "every step; expected ensemble_decay >= 0 with execute_steps=1, or ensemble_decay=null"
            )

    @property
    def action_dim(self) -> int:
        return self.env_spec.action.shape[0]

    @property
    def state_dim(self) -> int:
        return sum(self.env_spec.observation[key].shape[0] for key in self.state_keys)

    @property
    def env_options(self) -> dict[str, Any]:
        """What `envs.tasks.make_env` and VectorEnv take to make an environment of this contract, besides the task and the level."""
        images = [field.shape[0] for key, field in self.env_spec.observation.items() if key.startswith("images/")]
        options: dict[str, Any] = {
            "cameras": self.env_spec.cameras,
            "privileged": "state/full" in self.env_spec.observation,
        }
        return options | ({"image_size": images[0]} if images else {})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "env_spec": self.env_spec.to_json(), "env_hash": self.env_spec.schema_hash()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PolicySpec:
        fields = {key: value for key, value in values.items() if key != "env_hash"}
        fields["env_spec"] = EnvSpec.from_json(fields["env_spec"])
        fields["cameras"] = tuple(fields["cameras"])
        fields["state_keys"] = tuple(fields["state_keys"])
        return cls(**fields)

    def check_env(self, env_spec: EnvSpec, where: str) -> None:
        """Raise ValueError, with the difference line by line, unless `env_spec` is the one the policy was trained on."""
        if env_spec.schema_hash() != self.env_spec.schema_hash():
            lines = self.env_spec.difference(env_spec)
            raise ValueError(
                f"{where} was trained on another environment contract than '{env_spec.task}' as asked for. "
                f"Difference (policy -> environment): {'; '.join(lines)}. Evaluate with the policy's own task and image size, or train again."
            )


class Policy(nn.Module, ABC):
    """Any policy: behaviour cloning, ACT, diffusion or reinforcement learning. Holds no episode state."""

    spec: PolicySpec

    def fit_normalizers(
        self, state: Float[Tensor, "N S"], action: Float[Tensor, "N Ta A"], action_is_pad: Bool[Tensor, "N Ta"]
    ) -> None:
        """Takes from the demonstrations the statistics by which the network scales what it reads and predicts. A policy that is not trained
        on demonstrations has none."""

    @abstractmethod
    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Training loss of one batch and its parts for the log."""

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """`compute_loss`, under the name through which distributed training calls a model."""
        return self.compute_loss(batch)

    @abstractmethod
    def predict_chunk(self, observation: Observation, generator: Randomness = None) -> Float[Tensor, "B Ta A"]:
        """Actions in [-1, 1] for the next Ta steps.

        Args:
            observation: `images/<camera>` uint8[B, To, H, W, 3] and `state/<name>` float32[B, To, d], newest last.
            generator: source of randomness of stochastic policies; deterministic ones ignore it. Rollouts give a list of B generators, one an
                episode, so that an episode does not depend on which others run beside it; `diffusers.utils.torch_utils.randn_tensor` takes all
                three forms, as do its schedulers.
        """


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a policy is trained and run where the user says nothing else: the published settings, or what stands in their place here.

    Attributes:
        chunk_steps, execute_steps, ensemble_decay: as in PolicySpec.
        lr_schedule: "constant", or "cosine" down to zero; either after `warmup_steps` of linear rise.
        ema_decay: largest decay of the average of the weights that becomes the policy; 0 keeps the last weights.
    """

    chunk_steps: int
    execute_steps: int
    ensemble_decay: float | None
    epochs: int
    batch_size: int
    lr: float
    lr_schedule: str
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    ema_decay: float

    def __post_init__(self) -> None:
        for name in ("chunk_steps", "execute_steps", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("warmup_steps", "weight_decay", "gradient_clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr}: expected a positive learning rate")
        if self.lr_schedule not in LR_SCHEDULES:
            raise ValueError(f"lr_schedule={self.lr_schedule}: expected one of {', '.join(LR_SCHEDULES)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: expected 0 (off) to below 1")


@dataclass(frozen=True, kw_only=True)
class PolicyEntry:
    """A row of POLICIES.

    Attributes:
        build: (spec, config, artifact) -> an untrained policy whose tensors are those of the artifact.
        recipe: how `egoarm train` trains it; None where imitation cannot.
    """

    build: Callable[[PolicySpec, Mapping[str, Any], Artifact], Policy]
    help: str
    recipe: Recipe | None = None


def _build_bc(spec: PolicySpec, config: Mapping[str, Any], artifact: Artifact) -> Policy:
    from policies.bc import BCConfig, BCPolicy

    return BCPolicy(spec, BCConfig(**config["bc"]), restore_backbone(spec, config, artifact))


def _build_act(spec: PolicySpec, config: Mapping[str, Any], artifact: Artifact) -> Policy:
    from policies.act import ACTConfig, ACTPolicy

    return ACTPolicy(spec, ACTConfig(**config["act"]), restore_backbone(spec, config, artifact))


def _build_diffusion(spec: PolicySpec, config: Mapping[str, Any], artifact: Artifact) -> Policy:
    from policies.diffusion import DiffusionConfig, DiffusionPolicy

    return DiffusionPolicy(
        spec, DiffusionConfig.from_json(config["diffusion"]), restore_backbone(spec, config, artifact)
    )


def _build_rl(spec: PolicySpec, config: Mapping[str, Any], artifact: Artifact) -> Policy:
    from policies.rl.policy import restore

    return restore(spec, config, artifact)


def restore_backbone(spec: PolicySpec, config: Mapping[str, Any], artifact: Artifact) -> Any:
    """The untrained backbone that an artifact describes.

    Raises:
        ValueError: the artifact is of a version whose policies had no read-outs.
    """
    from policies.backbone import Backbone, BackboneConfig
    from pretrain.encoder import ARCHITECTURES, EncoderSpec

    if "backbone" not in config:
        raise ValueError(
            f"{artifact.path} is a policy of an older version, from before read-outs (backbone.readout) were chosen apart from the head; "
            "train it again with `egoarm train`"
        )
    encoder = None
    if spec.cameras:
        stored = config["encoder"]
        encoder = ARCHITECTURES[stored["architecture"]](stored["config"], EncoderSpec.from_json(stored["spec"]))
    # An encoder that was trained acts as a frozen one: adapters are folded into its weights before it is saved.
    return Backbone(spec, BackboneConfig(**{**config["backbone"], "adaptation": "frozen"}), encoder)


# The CortexBench recipe; Adam at 1e-3 is R3M's too.
_BC_RECIPE = Recipe(
    chunk_steps=1, execute_steps=1, ensemble_decay=None, epochs=100, batch_size=256, lr=1e-3, lr_schedule="constant",
    warmup_steps=0, weight_decay=0.0, gradient_clip=0.0, ema_decay=0.0,
)  # fmt: skip
# ACT (arXiv 2304.13705) trains 2,000 epochs at 1e-5 with a batch of 8 on 50 Hz demonstrations, chunks of 100. Chunks here span about as
# long at 10 to 20 Hz; the smaller network bears a larger step.
_ACT_RECIPE = Recipe(
    chunk_steps=16, execute_steps=1, ensemble_decay=0.01, epochs=100, batch_size=64, lr=3e-4, lr_schedule="cosine",
    warmup_steps=100, weight_decay=1e-4, gradient_clip=0.0, ema_decay=0.0,
)  # fmt: skip
# Diffusion Policy (arXiv 2303.04137): horizon 16, 8 executed, AdamW 1e-4 with cosine decay and 500 steps of warm-up, EMA.
_DIFFUSION_RECIPE = Recipe(
    chunk_steps=16, execute_steps=8, ensemble_decay=None, epochs=200, batch_size=256, lr=3e-4, lr_schedule="cosine",
    warmup_steps=200, weight_decay=1e-6, gradient_clip=0.0, ema_decay=0.9999,
)  # fmt: skip

POLICIES: dict[str, PolicyEntry] = {
    "bc": PolicyEntry(build=_build_bc, recipe=_BC_RECIPE, help="BatchNorm and an MLP on [features, proprioception], mean squared error (R3M, CortexBench)"),
    "act": PolicyEntry(build=_build_act, recipe=_ACT_RECIPE, help="action chunking with transformers: a CVAE, L1 + KL, temporal ensembling"),
    "diffusion": PolicyEntry(build=_build_diffusion, recipe=_DIFFUSION_RECIPE, help="diffusion policy: a U-Net or transformer denoises action chunks, sampled by DDIM"),
    "rl": PolicyEntry(build=_build_rl, help="the deterministic actor that `egoarm rl` leaves (PPO, SAC)"),
}  # fmt: skip


def policy_entry(name: str) -> PolicyEntry:
    if name not in POLICIES:
        close = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ValueError(f"unknown policy '{name}': {hint}There is: {', '.join(POLICIES)}")
    return POLICIES[name]


def load_policy(path: str | Path) -> tuple[Policy, Artifact]:
    """The policy of an artifact directory, in eval mode, and the artifact itself.

    Raises:
        ValueError: if the directory holds no policy, or its tensors are not exactly those of the policy.
    """
    artifact = load_artifact(path)
    if artifact.kind != "policy":
        raise ValueError(f"{path} holds a {artifact.kind}, not a policy; `egoarm train` makes policies")
    spec = PolicySpec.from_json(artifact.spec)
    policy = policy_entry(spec.policy).build(spec, artifact.config, artifact)
    load_tensors_strict(policy, artifact.tensors, str(path))
    return policy.eval(), artifact

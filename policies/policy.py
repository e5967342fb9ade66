"""The policy contract: a spec that ties it to an environment, a loss on batches, stateless prediction of action chunks.

Axis legend of this room: B batch, To observation steps, Ta action steps of a chunk, A action dim, S state dim, F feature dim,
V cameras, H W image, T frames of the encoder.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs.spec import EnvSpec
from pretrain.artifact import Artifact, load_artifact, load_tensors_strict

Observation = Mapping[str, Tensor]
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
    """

    policy: str
    env_spec: EnvSpec
    cameras: tuple[str, ...]
    state_keys: tuple[str, ...]
    frames: int
    stride_steps: int
    chunk_steps: int

    @property
    def action_dim(self) -> int:
        return self.env_spec.action.shape[0]

    @property
    def state_dim(self) -> int:
        return sum(self.env_spec.observation[key].shape[0] for key in self.state_keys)

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
class PolicyEntry:
    """A row of POLICIES: `build(spec, config, artifact)` makes an untrained policy; `artifact` is given when loading one."""

    build: Callable[[PolicySpec, Mapping[str, Any], Artifact], Policy]
    help: str


def _build_bc(spec: PolicySpec, config: Mapping[str, Any], artifact: Artifact) -> Policy:
    from policies.bc import restore

    return restore(spec, config, artifact)


POLICIES: dict[str, PolicyEntry] = {
    "bc": PolicyEntry(build=_build_bc, help="BatchNorm and an MLP on [features, proprioception], mean squared error (R3M, CortexBench)"),
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

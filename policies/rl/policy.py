"""The policy that reinforcement learning leaves: normalized observations to the deterministic action, without stable-baselines3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.policy import Observation, Policy, PolicySpec, Randomness
from policies.rl.networks import NetworkConfig, make_actor, make_networks
from pretrain.artifact import Artifact
from pretrain.encoder import ARCHITECTURES, EncoderSpec, VideoEncoder

CLIP = 10.0  # VecNormalize's default bound of a normalized observation
EPSILON = 1e-8

# How an algorithm's mean becomes an action in [-1, 1], and its hidden layers' activation.
ALGORITHMS: dict[str, tuple[str, str]] = {"sac": ("tanh", "relu"), "ppo": ("clip", "tanh")}


class RunningStatistics(nn.Module):
    """VecNormalize's statistics of one observation key, or of the returns (shape ()); float64, as it keeps them."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def normalize(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
        """As VecNormalize does at evaluation: standardized, clipped to +-10."""
        return ((x - self.mean) / (self.var + EPSILON).sqrt()).clamp(-CLIP, CLIP).float()


class RLPolicy(Policy):
    """The actor's mean action. Holds the frozen encoder or the trained eyes, VecNormalize's statistics and the actor's layers.

    Attributes:
        statistics: by observation key; of "returns" too, which scaled the rewards in training and do nothing here.
    """

    def __init__(
        self, spec: PolicySpec, config: NetworkConfig, algo: str, encoder: VideoEncoder | None, *, frozen: bool
    ) -> None:
        super().__init__()
        self.spec = spec
        self.squash, activation = ALGORITHMS[algo]
        self.eyes, self.extractor = make_networks(spec, config, encoder, frozen=frozen)
        shapes = {key: spec.env_spec.observation[key].shape for key in spec.state_keys}
        if self.eyes is not None:
            shapes["features"] = (self.eyes.feature_dim,)
        self.normalized_keys = tuple(shapes)
        self.statistics = nn.ModuleDict({key: RunningStatistics(shape) for key, shape in shapes.items()})
        self.statistics["returns"] = RunningStatistics(())
        self.actor = make_actor(self.extractor.condition_dim, config.hidden, spec.action_dim, activation)

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared distance of the deterministic action to given ones; the algorithms' own losses need a critic and live in stable-baselines3.

        Args:
            batch: an observation as `predict_chunk` takes it, and "action" float32 [B, Ta, A].
        """
        loss = (self._actions(batch) - batch["action"]).square().mean()
        return loss, {"loss": loss.detach()}

    @torch.no_grad()
    def predict_chunk(self, observation: Observation, generator: Randomness = None) -> Float[Tensor, "B Ta A"]:
        return self._actions(observation).repeat(1, self.spec.chunk_steps, 1)

    def _actions(self, observation: Observation) -> Float[Tensor, "B 1 A"]:
        images = {key: values for key, values in observation.items() if key.startswith("images/")}
        seen: dict[str, Tensor] = {key: observation[key][:, -1] for key in self.spec.state_keys}
        if self.eyes is not None:
            with torch.no_grad():
                seen["features"] = self.eyes(images).float()
        seen = {key: self._statistics(key).normalize(values) for key, values in seen.items()}
        mean = self.actor(self.extractor({**images, **seen}))
        return (mean.tanh() if self.squash == "tanh" else mean.clamp(-1.0, 1.0))[:, None]

    def _statistics(self, key: str) -> RunningStatistics:
        statistics = self.statistics[key]
        assert isinstance(statistics, RunningStatistics)
        return statistics


def restore(spec: PolicySpec, config: Mapping[str, Any], artifact: Artifact) -> RLPolicy:
    """The untrained network that an artifact's tensors fit, its encoder included."""
    del artifact
    stored, training = config["encoder"], config["rl"]
    encoder = None
    if stored["architecture"] is not None:
        encoder = ARCHITECTURES[stored["architecture"]](stored["config"], EncoderSpec.from_json(stored["spec"]))
    network = {**training["network"], "hidden": tuple(training["network"]["hidden"])}
    return RLPolicy(spec, NetworkConfig(**network), training["algo"], encoder, frozen=stored["frozen"])

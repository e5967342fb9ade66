"""stable-baselines3's PPO and SAC on our networks, and the way from a learner to a policy and back from a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from policies.rl.config import PPOConfig, SACConfig
from policies.rl.networks import ACTIVATIONS, Extractor
from policies.rl.policy import ALGORITHMS, CLIP, EPSILON, RLPolicy, RunningStatistics
from policies.rl.sac import SharedEyesPolicy, SharedEyesSAC

Learner = SharedEyesSAC | PPO


class EncoderExtractor(BaseFeaturesExtractor):
    """stable-baselines3's features extractor around ours: each one made starts from a copy of `prototype`."""

    def __init__(self, observation_space: gymnasium.Space, prototype: Extractor) -> None:
        super().__init__(observation_space, prototype.condition_dim)
        self.network = copy.deepcopy(prototype)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        return self.network(observations)


def normalized(env: Any, policy: RLPolicy, discount: float) -> VecNormalize:
    """`env` under VecNormalize: state and frozen features standardized, rewards scaled, images left alone."""
    return VecNormalize(env, norm_obs_keys=list(policy.normalized_keys), gamma=discount, clip_obs=CLIP, epsilon=EPSILON)


def make_learner(
    config: SACConfig | PPOConfig, env: VecNormalize, policy: RLPolicy, *, seed: int, device: str
) -> Learner:
    """A learner whose networks start from those of `policy` (extractor) or from stable-baselines3's initialisation (heads)."""
    hidden = [layer.out_features for layer in policy.actor if isinstance(layer, nn.Linear)][:-1]
    shared: dict[str, Any] = {
        "features_extractor_class": EncoderExtractor,
        "features_extractor_kwargs": {"prototype": policy.extractor},
        "net_arch": {"pi": hidden, "qf": hidden, "vf": hidden},
    }
    if isinstance(config, SACConfig):
        learner = SharedEyesSAC(
            SharedEyesPolicy,
            env,
            learning_rate=_falling(config.learning_rate, config.decay_from),
            buffer_size=min(config.buffer_steps, config.steps),
            learning_starts=config.random_steps,
            batch_size=config.batch_size,
            tau=config.target_rate,
            gamma=config.discount,
            train_freq=1,
            gradient_steps=round(config.updates_per_step * config.n_envs),
            ent_coef=f"auto_{config.initial_temperature}",
            policy_kwargs=shared,
            seed=seed,
            device=device,
        )
        learner.shift_pixels = config.shift_pixels
        return learner
    return PPO(
        "MultiInputPolicy",
        env,
        learning_rate=config.learning_rate,
        n_steps=config.rollout_steps,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        gamma=config.discount,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.entropy_weight,
        # Orthogonal initialisation would run over the extractor too and wipe out an encoder's weights.
        policy_kwargs={**shared, "activation_fn": ACTIVATIONS[ALGORITHMS["ppo"][1]], "ortho_init": False},
        seed=seed,
        device=device,
    )


def _falling(rate: float, decay_from: float) -> Callable[[float], float]:
    """A schedule of stable-baselines3, whose argument is the share of the steps that is left."""

    def at(left: float) -> float:
        return rate if left >= 1 - decay_from else rate * max(left, 0.0) / (1 - decay_from)

    return at


def actor_layers(learner: Learner) -> nn.Sequential:
    """The learner's layers from the condition vector to the mean action."""
    if isinstance(learner, SharedEyesSAC):
        return nn.Sequential(*learner.actor.latent_pi, learner.actor.mu)
    return nn.Sequential(*learner.policy.mlp_extractor.policy_net, learner.policy.action_net)


def copy_to_policy(learner: Learner, env: VecNormalize, policy: RLPolicy) -> None:
    """Give `policy` the learner's extractor, actor and statistics."""
    extractor = (
        learner.critic.features_extractor if isinstance(learner, SharedEyesSAC) else learner.policy.features_extractor
    )
    assert isinstance(extractor, EncoderExtractor)
    policy.extractor.load_state_dict(extractor.network.state_dict())
    policy.actor.load_state_dict(actor_layers(learner).state_dict())
    read_statistics(env, policy)


def read_statistics(env: VecNormalize, policy: RLPolicy) -> None:
    """VecNormalize's statistics into the policy."""
    for statistics, source in _pairs(env, policy):
        statistics.mean.copy_(torch.as_tensor(source.mean))
        statistics.var.copy_(torch.as_tensor(source.var))
        statistics.count.fill_(float(source.count))


def write_statistics(policy: RLPolicy, env: VecNormalize) -> None:
    """The policy's statistics into VecNormalize: the inverse of `read_statistics`."""
    for statistics, target in _pairs(env, policy):
        target.mean = statistics.mean.numpy().copy()
        target.var = statistics.var.numpy().copy()
        target.count = float(statistics.count)


def _pairs(env: VecNormalize, policy: RLPolicy) -> list[tuple[RunningStatistics, Any]]:
    assert isinstance(env.obs_rms, dict)
    sources = {**env.obs_rms, "returns": env.ret_rms}
    pairs = []
    for key, source in sources.items():
        statistics = policy.statistics[key]
        assert isinstance(statistics, RunningStatistics)
        pairs.append((statistics, source))
    return pairs


def optimizers(learner: Learner) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
    """The learner's optimizers, each with the module whose parameters' names its state is stored under."""
    if isinstance(learner, SharedEyesSAC):
        assert learner.ent_coef_optimizer is not None and learner.log_ent_coef is not None
        return {
            "actor": (learner.actor, learner.actor.optimizer),
            "critic": (learner.critic, learner.critic.optimizer),
        }
    return {"policy": (learner.policy, learner.policy.optimizer)}


def seed_generators(seed: int, step: int) -> None:
    """Start torch's and numpy's generators from (seed, step), so that a resumed run draws nothing twice."""
    drawn = np.random.SeedSequence([seed, step]).generate_state(2, np.uint32)
    torch.manual_seed(int(drawn[0]))
    np.random.seed(int(drawn[1]))

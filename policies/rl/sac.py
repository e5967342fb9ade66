"""stable-baselines3's SAC with eyes that the critics train and the actor shares, and images shifted at random.

The library's own sharing trains the features by the actor's loss, or keeps a network each for actor, critic and target. From pixels the critic's
loss is the one that teaches an image network (Yarats et al. 2021, "Improving sample efficiency in model-free RL from images"), and one network
costs a third. Shifts are DrQ's (Yarats et al. 2021, "Image augmentation is all you need").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from stable_baselines3 import SAC
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from torch import Tensor


class SharedEyesPolicy(SACPolicy):
    """Actor, critics and target critics on one features extractor; the critics' optimizer trains it."""

    def _build(self, lr_schedule: Any) -> None:
        rate = lr_schedule(1)
        self.critic = self.make_critic(features_extractor=None)
        extractor = self.critic.features_extractor
        self.actor = self.make_actor(features_extractor=extractor)
        self.critic_target = self.make_critic(features_extractor=extractor)
        for target, network in zip(self.critic_target.q_networks, self.critic.q_networks, strict=True):
            target.load_state_dict(network.state_dict())
        self.critic_target.set_training_mode(False)
        shared = {id(parameter) for parameter in extractor.parameters()}
        actor_parameters = [parameter for parameter in self.actor.parameters() if id(parameter) not in shared]
        trained = [parameter for parameter in self.critic.parameters() if parameter.requires_grad]
        self.actor.optimizer = self.optimizer_class(actor_parameters, lr=rate, **self.optimizer_kwargs)
        self.critic.optimizer = self.optimizer_class(trained, lr=rate, **self.optimizer_kwargs)


class SharedEyesSAC(SAC):
    """SAC whose update runs the features extractor once a batch with gradients, for the critics, and once without, for the next observations."""

    shift_pixels: int = 0
    critic_losses: float = float("nan")
    actor_losses: float = float("nan")
    temperature: float = float("nan")

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """`gradient_steps` updates of critics, eyes, actor, temperature and targets (Haarnoja et al. 2018, arXiv 1812.05905)."""
        self.policy.set_training_mode(True)
        assert self.ent_coef_optimizer is not None
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer])
        for _ in range(gradient_steps):
            self._update(batch_size)
        self._n_updates += gradient_steps

    def _update(self, batch_size: int) -> None:
        assert self.replay_buffer is not None and self.log_ent_coef is not None and self.ent_coef_optimizer is not None
        batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        extract = self.critic.features_extractor
        condition = extract(self._shifted(batch.observations))
        temperature = self.log_ent_coef.detach().exp()
        with torch.no_grad():
            following = extract(self._shifted(batch.next_observations))
            next_actions, next_log_prob = self._act(following)
            next_values = torch.cat(_values(self.critic_target, following, next_actions), dim=1)
            soft = next_values.min(dim=1, keepdim=True).values - temperature * next_log_prob
            target = batch.rewards + (1 - batch.dones) * self.gamma * soft
        critic_loss = sum(F.mse_loss(value, target) for value in _values(self.critic, condition, batch.actions))
        assert isinstance(critic_loss, Tensor)
        self.critic.optimizer.zero_grad()
        critic_loss.backward()
        self.critic.optimizer.step()

        condition = condition.detach()
        actions, log_prob = self._act(condition)
        # The critics are only asked here: without this their weights would gather gradients for nothing.
        self._critics_learn(False)
        value = torch.cat(_values(self.critic, condition, actions), dim=1).min(dim=1, keepdim=True).values
        self._critics_learn(True)
        actor_loss = (temperature * log_prob - value).mean()
        self.actor.optimizer.zero_grad()
        actor_loss.backward()
        self.actor.optimizer.step()

        assert isinstance(self.target_entropy, float)
        entropy_loss = -(self.log_ent_coef * (log_prob.detach() + self.target_entropy)).mean()
        self.ent_coef_optimizer.zero_grad()
        entropy_loss.backward()
        self.ent_coef_optimizer.step()

        # The eyes have no target twin: they are one module here.
        for target, network in zip(self.critic_target.q_networks, self.critic.q_networks, strict=True):
            polyak_update(network.parameters(), target.parameters(), self.tau)
        self.critic_losses, self.actor_losses = critic_loss.item(), actor_loss.item()
        self.temperature = temperature.item()

    def _critics_learn(self, learn: bool) -> None:
        for network in self.critic.q_networks:
            network.requires_grad_(learn)

    def _act(self, condition: Float[Tensor, "B C"]) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B 1"]]:
        """Sampled actions in [-1, 1] and their log probabilities."""
        latent = self.actor.latent_pi(condition)
        log_std = self.actor.log_std(latent).clamp(LOG_STD_MIN, LOG_STD_MAX)
        actions, log_prob = self.actor.action_dist.log_prob_from_params(self.actor.mu(latent), log_std)
        return actions, log_prob.unsqueeze(1)

    def _shifted(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: shift_images(values, self.shift_pixels) if key.startswith("images/") else values
            for key, values in observation.items()
        }


def _values(critic: Any, condition: Tensor, actions: Tensor) -> list[Float[Tensor, "B 1"]]:
    both = torch.cat([condition, actions], dim=1)
    return [network(both) for network in critic.q_networks]


def shift_images(images: Shaped[Tensor, "B To H W 3"], pixels: int) -> Shaped[Tensor, "B To H W 3"]:
    """Each sample's history moved by up to `pixels` along rows and columns, border pixels repeated."""
    if pixels == 0:
        return images
    batch, _, height, width, _ = images.shape
    shifts = torch.randint(-pixels, pixels + 1, (2, batch, 1), device=images.device)
    rows = (torch.arange(height, device=images.device) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + shifts[1]).clamp(0, width - 1)
    sample = torch.arange(batch, device=images.device)
    # Advanced indices apart: numpy's rule puts their axes [B, H, W] first, To and the channels follow.
    return images[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2, 4)

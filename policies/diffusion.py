"""Diffusion policy (Chi et al. 2023, arXiv 2303.04137): chunks of actions are sampled by denoising, conditioned on the observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.backbone import Backbone
from policies.diffusion_transformer import TransformerDenoiser, TransformerDenoiserConfig
from policies.diffusion_unet import UNetDenoiser, UNetDenoiserConfig
from policies.normalizer import RangeNormalizer
from policies.policy import Observation, Policy, PolicySpec, Randomness

DENOISERS = ("unet", "transformer")
PREDICTIONS = ("epsilon", "sample")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The denoiser and its noise.

    Attributes:
        denoiser: a name of DENOISERS; `unet` and `transformer` hold their sizes.
        prediction: what the denoiser gives, the noise ("epsilon", as published) or the clean chunk ("sample"). At the highest noise the chunk that
            follows from a predicted noise is off by ten times the noise's error, so "sample" acts well after far fewer steps of training.
        noise_steps: of the squared-cosine schedule that training draws from.
        sample_steps: of DDIM (arXiv 2010.02502, eta = 0) when acting.
    """

    denoiser: str = "unet"
    prediction: str = "sample"
    noise_steps: int = 100
    sample_steps: int = 10
    unet: UNetDenoiserConfig = field(default_factory=UNetDenoiserConfig)
    transformer: TransformerDenoiserConfig = field(default_factory=TransformerDenoiserConfig)

    def __post_init__(self) -> None:
        if self.denoiser not in DENOISERS:
            raise ValueError(f"diffusion.denoiser={self.denoiser}: expected one of {', '.join(DENOISERS)}")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"diffusion.prediction={self.prediction}: expected one of {', '.join(PREDICTIONS)}")
        if not 1 <= self.sample_steps <= self.noise_steps:
            raise ValueError(
                f"diffusion.sample_steps={self.sample_steps}: expected 1 to noise_steps={self.noise_steps}"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DiffusionConfig:
        unet = {**values["unet"], "channels": tuple(values["unet"]["channels"])}
        transformer = TransformerDenoiserConfig(**values["transformer"])
        return cls(**{**values, "unet": UNetDenoiserConfig(**unet), "transformer": transformer})


class DiffusionPolicy(Policy):
    """The loss is the mean squared error of the predicted noise, or chunk, over valid steps; actions are scaled to [-1, 1] per channel."""

    def __init__(self, spec: PolicySpec, config: DiffusionConfig, backbone: Backbone) -> None:
        super().__init__()
        # Not at the top: importing diffusers takes seconds, which only this policy should pay.
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self.spec, self.config, self.backbone = spec, config, backbone
        self.action_normalizer = RangeNormalizer(spec.action_dim)
        self.denoiser: nn.Module = (
            UNetDenoiser(spec.action_dim, backbone.condition_dim, config.unet)
            if config.denoiser == "unet"
            else TransformerDenoiser(spec.action_dim, spec.chunk_steps, backbone, config.transformer)
        )
        noise: dict[str, Any] = {
            "num_train_timesteps": config.noise_steps,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": config.prediction,
            "clip_sample": True,
        }
        self._forward_process = DDPMScheduler(**noise)
        # "trailing": the first step is at the highest noise, which is what sampling starts from (arXiv 2305.08891, section 3.3).
        self._sampler = DDIMScheduler(**noise, set_alpha_to_one=True, timestep_spacing="trailing")
        self._sampler.set_timesteps(config.sample_steps)

    def fit_normalizers(
        self, state: Float[Tensor, "N S"], action: Float[Tensor, "N Ta A"], action_is_pad: Bool[Tensor, "N Ta"]
    ) -> None:
        self.backbone.state_normalizer.fit(state)
        self.action_normalizer.fit(action[~action_is_pad])

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Error of the prediction at a noise level drawn for each row.

        Args:
            batch: what the backbone reads; "action" float32[B, Ta, A]; "action_is_pad" bool[B, Ta], True past the end of the demonstration.
        """
        pad = batch["action_is_pad"]
        clean = self.action_normalizer.normalize(_repeat_last(batch["action"], pad))
        noise = torch.randn_like(clean)
        levels = torch.randint(0, self.config.noise_steps, (len(clean),), device=clean.device)
        noisy = self._forward_process.add_noise(clean, noise, levels)  # pyright: ignore[reportArgumentType]
        predicted = self.denoiser(noisy, levels, self.backbone(batch))
        valid = (~pad).float()[..., None]
        target = noise if self.config.prediction == "epsilon" else clean
        loss = ((predicted - target).square() * valid).sum() / (valid.sum() * self.spec.action_dim)
        return loss, {"loss": loss.detach()}

    @torch.no_grad()
    def predict_chunk(self, observation: Observation, generator: Randomness = None) -> Float[Tensor, "B Ta A"]:
        """One sample a row. The initial noise is all the randomness there is: generators in the same state give the same actions."""
        from diffusers.utils.torch_utils import randn_tensor

        condition = self.backbone(observation)
        shape = (len(condition.state), self.spec.chunk_steps, self.spec.action_dim)
        sample = randn_tensor(shape, generator=generator, device=condition.state.device)
        for level in self._sampler.timesteps.tolist():
            levels = torch.full((shape[0],), level, device=sample.device)
            predicted = self.denoiser(sample, levels, condition)
            sample = self._sampler.step(predicted, level, sample, eta=0.0).prev_sample  # pyright: ignore[reportAttributeAccessIssue]
        return self.action_normalizer.unnormalize(sample).clamp(-1.0, 1.0)


def _repeat_last(action: Float[Tensor, "B Ta A"], pad: Bool[Tensor, "B Ta"]) -> Float[Tensor, "B Ta A"]:
    """The last valid action in place of whatever the padding holds: a convolution mixes neighbours, so no mask can keep padding out of it."""
    last = (~pad).sum(dim=1) - 1
    steps = torch.minimum(torch.arange(action.shape[1], device=action.device)[None], last[:, None])
    return action.gather(1, steps[..., None].expand_as(action))

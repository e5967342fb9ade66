"""ACT, action chunking with transformers (Zhao et al. 2023, arXiv 2304.13705): a conditional VAE over chunks of actions.

While training, an encoder that sees the demonstrated chunk gives a style variable z; the decoder predicts the chunk from z and the observation.
Acting takes z = 0, the prior's mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.backbone import Backbone
from policies.heads import ConditionTokens, sinusoids
from policies.normalizer import Normalizer
from policies.policy import Observation, Policy, PolicySpec, Randomness


@dataclass(frozen=True, kw_only=True)
class ACTConfig:
    """The network. The paper's: width 512, feedforward 3200, heads 8, 4 encoder and 7 decoder layers (of which its code used one), on a GPU.

    Attributes:
        style_dim: width of z.
        kl_weight: of the divergence from the prior, beside the L1 error.
    """

    width: int = 128
    heads: int = 4
    feedforward: int = 512
    style_layers: int = 2
    encoder_layers: int = 2
    decoder_layers: int = 1
    dropout: float = 0.1
    style_dim: int = 32
    kl_weight: float = 10.0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "feedforward", "style_layers", "encoder_layers", "decoder_layers", "style_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"act.{name}={getattr(self, name)}: expected at least 1")
        if self.width % self.heads:
            raise ValueError(f"act.width={self.width} does not divide by act.heads={self.heads}")
        if not 0 <= self.dropout < 1 or self.kl_weight < 0:
            raise ValueError(
                f"act.dropout={self.dropout}, act.kl_weight={self.kl_weight}: expected dropout in [0, 1) and kl_weight >= 0"
            )


class ACTPolicy(Policy):
    """The loss is the L1 error of standardized actions over valid steps plus kl_weight times KL(q(z | actions, state) || N(0, 1))."""

    def __init__(self, spec: PolicySpec, config: ACTConfig, backbone: Backbone) -> None:
        super().__init__()
        self.spec, self.config, self.backbone = spec, config, backbone
        self.action_normalizer = Normalizer(spec.action_dim)
        width = config.width
        self.style_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.style_state = nn.Linear(spec.state_dim, width)
        self.style_action = nn.Linear(spec.action_dim, width)
        self.style_encoder = _encoder(config, config.style_layers)
        self.style_head = nn.Linear(width, 2 * config.style_dim)
        self.style_to_token = nn.Linear(config.style_dim, width)
        self.condition_tokens = ConditionTokens(backbone, width)
        self.encoder = _encoder(config, config.encoder_layers)
        layer = nn.TransformerDecoderLayer(width, config.heads, config.feedforward, config.dropout, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, config.decoder_layers)
        self.query_steps = nn.Parameter(torch.randn(spec.chunk_steps, width))
        self.action_head = nn.Linear(width, spec.action_dim)

    def fit_normalizers(
        self, state: Float[Tensor, "N S"], action: Float[Tensor, "N Ta A"], action_is_pad: Bool[Tensor, "N Ta"]
    ) -> None:
        self.backbone.state_normalizer.fit(state)
        self.action_normalizer.fit(action[~action_is_pad])

    def compute_loss(self, batch: Mapping[str, Tensor]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """L1 and KL.

        Args:
            batch: what the backbone reads; "action" float32[B, Ta, A]; "action_is_pad" bool[B, Ta], True past the end of the demonstration.
        """
        condition = self.backbone(batch)
        pad = batch["action_is_pad"]
        # Padding is zeroed as well as masked: 0 times a NaN in it would still be NaN.
        action = self.action_normalizer.normalize(batch["action"]).masked_fill(pad[..., None], 0.0)
        mean, log_variance = self._style(condition.state, action, pad)
        style = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        predicted = self._decode(style, self.condition_tokens(condition))
        valid = (~pad).float()[..., None]
        l1 = ((predicted - action).abs() * valid).sum() / (valid.sum() * self.spec.action_dim)
        kl = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=-1).mean()
        loss = l1 + self.config.kl_weight * kl
        return loss, {"loss": loss.detach(), "l1": l1.detach(), "kl": kl.detach()}

    @torch.no_grad()
    def predict_chunk(self, observation: Observation, generator: Randomness = None) -> Float[Tensor, "B Ta A"]:
        condition = self.backbone(observation)
        style = condition.state.new_zeros(len(condition.state), self.config.style_dim)
        predicted = self._decode(style, self.condition_tokens(condition))
        return self.action_normalizer.unnormalize(predicted).clamp(-1.0, 1.0)

    def _style(
        self, state: Float[Tensor, "B S"], action: Float[Tensor, "B Ta A"], pad: Bool[Tensor, "B Ta"]
    ) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Mean and log variance of q(z | actions, state)."""
        tokens = torch.cat(
            [
                self.style_token.expand(len(state), -1, -1),
                self.style_state(state)[:, None],
                self.style_action(action),
            ],
            dim=1,
        )
        positions = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
        tokens = tokens + sinusoids(positions, self.config.width)
        mask = nn.functional.pad(pad, (2, 0), value=False)
        encoded = self.style_encoder(tokens, src_key_padding_mask=mask)
        mean, log_variance = self.style_head(encoded[:, 0]).chunk(2, dim=-1)
        return mean, log_variance

    def _decode(self, style: Float[Tensor, "B Z"], tokens: Float[Tensor, "B N W"]) -> Float[Tensor, "B Ta A"]:
        memory = self.encoder(torch.cat([self.style_to_token(style)[:, None], tokens], dim=1))
        decoded = self.decoder(self.query_steps.expand(len(style), -1, -1), memory)
        return self.action_head(decoded)


def _encoder(config: ACTConfig, layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(config.width, config.heads, config.feedforward, config.dropout, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

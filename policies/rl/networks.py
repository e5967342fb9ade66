"""From observations to a condition vector, and from there to actions: what a learner trains and its artifact holds.

Nothing here needs stable-baselines3: a trained policy runs without it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from policies.backbone import fill_frames
from policies.policy import PolicySpec
from policies.readouts import ReadoutConfig, readout_entry
from policies.rl.observation import image_keys
from pretrain.encoder import VideoEncoder

CNN = "cnn"
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}

Images = Mapping[str, Shaped[Tensor, "B To H W 3"]]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The networks.

    Attributes:
        cnn_channels: of each convolution of the small trainable CNN.
        readout: a row of READOUTS, at its default sizes: what is made of another encoder's output.
        hidden: units of the actor's and of the critics' hidden layers.
    """

    cnn_channels: int = 32
    readout: str = "pooled"
    hidden: tuple[int, ...] = (128, 128)

    def __post_init__(self) -> None:
        if self.cnn_channels < 1 or not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"network.cnn_channels={self.cnn_channels}, network.hidden={list(self.hidden)}: expected at least 1 each"
            )
        if readout_entry(self.readout).over_time:
            raise ValueError(
                f"network.readout={self.readout}: read-outs over time are for imitation; here frames= gives the encoder its history"
            )


class SpatialSoftmax(nn.Module):
    """Each channel's expected position under a softmax over the image (Finn et al. 2016, "Deep spatial autoencoders for visuomotor learning").

    Positions are in [-1, 1], x to the right and y down. The softmax's temperature is learned; it starts low enough that positions differ from the
    image's centre from the first step on, without which gradients are tiny.
    """

    grid: Tensor

    def __init__(self, height: int, width: int, temperature: float = 0.05) -> None:
        super().__init__()
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([x.flatten(), y.flatten()], dim=-1), persistent=False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 2C"]:
        weights = (x.flatten(2) * (-self.log_temperature).exp()).softmax(dim=-1)
        return (weights @ self.grid).flatten(1)


class SmallCNN(nn.Module):
    """One camera's history, stacked along the channels, to the positions of learned features. Trained from scratch.

    Two convolutions, the first on patches of 4 pixels: deeper ones took several times as many updates to find the toy task's ball.
    """

    def __init__(self, frames: int, image_size: int, channels: int) -> None:
        super().__init__()
        if image_size < 16:
            raise ValueError(f"image_size={image_size}: encoder={CNN} needs at least 16 pixels")
        self.convolutions = nn.Sequential(
            nn.Conv2d(3 * frames, channels, 4, stride=4),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        ).to(memory_format=torch.channels_last)
        side = image_size // 4
        self.positions = SpatialSoftmax(side, side)
        self.feature_dim = 2 * channels

    def forward(self, images: Shaped[Tensor, "B To H W 3"]) -> Float[Tensor, "B F"]:
        stacked = images.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255.0 - 0.5
        return self.positions(self.convolutions(stacked.contiguous(memory_format=torch.channels_last)))


class Eyes(nn.Module):
    """All cameras' images to one feature vector: a small CNN a camera, or an encoder that all of them share.

    Args:
        encoder: None makes the CNNs; an encoder stays as it is here, frozen or not.
    """

    def __init__(self, spec: PolicySpec, config: NetworkConfig, encoder: VideoEncoder | None) -> None:
        super().__init__()
        self.keys = image_keys(spec)
        self.encoder = encoder
        self.cnns = nn.ModuleList()
        if encoder is None:
            for key in self.keys:
                self.cnns.append(SmallCNN(spec.frames, spec.env_spec.observation[key].shape[0], config.cnn_channels))
            self.shape = (int(self.cnns[0].feature_dim),)
        else:
            self.needs = readout_entry(config.readout).needs
            _, rows, columns = encoder.spec.grid
            width = encoder.spec.embed_dim
            self.shape = (width,) if self.needs == "pooled" else (rows * columns, width)

    @property
    def feature_dim(self) -> int:
        """F: V cameras, each (D,) or (P, D) as the read-out needs, flattened."""
        return len(self.keys) * math.prod(self.shape)

    def forward(self, images: Images) -> Float[Tensor, "B F"]:
        """Images are 0 to 255, of any type, since stable-baselines3 hands its extractors floats."""
        if self.encoder is None:
            return torch.cat([cnn(images[key]) for key, cnn in zip(self.keys, self.cnns, strict=True)], dim=-1)
        parts = []
        for key in self.keys:
            frames = fill_frames(images[key].to(torch.uint8), self.encoder.spec.frames)
            output = self.encoder(self.encoder.preprocess(frames))
            newest = output.grid[1] * output.grid[2]
            parts.append(output.pooled if self.needs == "pooled" else output.tokens[:, -newest:].flatten(1))
        return torch.cat(parts, dim=-1)


class FrozenEyes:
    """A frozen encoder as the environment's `encode`: arrays to arrays, no gradients."""

    def __init__(self, eyes: Eyes, device: torch.device) -> None:
        # The policy keeps its own where it is: it is evaluated on the CPU in between.
        self.eyes = (eyes if device.type == "cpu" else copy.deepcopy(eyes).to(device)).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Mapping[str, np.ndarray]) -> np.ndarray:
        tensors = {key: torch.from_numpy(values).to(self.device) for key, values in images.items()}
        return self.eyes(tensors).float().cpu().numpy()


class Extractor(nn.Module):
    """Features (or images, through trained eyes) and normalized state to the condition vector [read-out of each camera, state].

    Args:
        eyes: what makes the features; None for a policy without images.
        holds_eyes: whether the eyes are trained, and so belong in here; otherwise features come from outside.
    """

    def __init__(self, spec: PolicySpec, config: NetworkConfig, eyes: Eyes | None, *, holds_eyes: bool) -> None:
        super().__init__()
        self.state_keys = spec.state_keys
        self.eyes = eyes if holds_eyes else None
        self.readouts = nn.ModuleList()
        self.condition_dim = spec.state_dim
        self._shape: tuple[int, ...] = ()
        if eyes is not None:
            self._shape = (len(eyes.keys), *eyes.shape)
            self.condition_dim += eyes.feature_dim
        if eyes is not None and eyes.encoder is not None:
            readouts = [readout_entry(config.readout).build(eyes.encoder.spec, ReadoutConfig()) for _ in eyes.keys]
            self.readouts = nn.ModuleList(readouts)
            self.condition_dim = spec.state_dim + sum(readout.places * readout.width for readout in readouts)

    def forward(self, observation: Mapping[str, Tensor]) -> Float[Tensor, "B C"]:
        parts = []
        if self._shape:
            features = observation["features"] if self.eyes is None else self.eyes(observation)
            if self.readouts:
                cameras = features.unflatten(-1, self._shape).unbind(1)
                # Read-outs take an axis of latents in time, of which there is one here.
                parts = [
                    readout(camera[:, None]).flatten(1) for readout, camera in zip(self.readouts, cameras, strict=True)
                ]
            else:
                parts = [features]
        return torch.cat([*parts, *(observation[key] for key in self.state_keys)], dim=-1)


def make_actor(width: int, hidden: Sequence[int], action_dim: int, activation: str) -> nn.Sequential:
    """The layers from the condition vector to the mean action, in stable-baselines3's order."""
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(width, units), ACTIVATIONS[activation]()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, action_dim))


def make_networks(
    spec: PolicySpec, config: NetworkConfig, encoder: VideoEncoder | None, *, frozen: bool
) -> tuple[Eyes | None, Extractor]:
    """The frozen eyes, if any, and the extractor, which holds trained ones."""
    if not spec.cameras:
        return None, Extractor(spec, config, None, holds_eyes=False)
    if frozen:
        assert encoder is not None, "a CNN from scratch has nothing to freeze"
        encoder.frozen()
    eyes = Eyes(spec, config, encoder)
    return (eyes if frozen else None), Extractor(spec, config, eyes, holds_eyes=not frozen)

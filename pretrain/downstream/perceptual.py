"""LPIPS (Zhang et al. 2018, arXiv 1801.03924): distance of two images by the features of AlexNet, from a file of weights.

Images in [-1, 1] are standardised by constants; after each of AlexNet's five convolutions (and ReLU) the features are made
unit vectors over the channels, their squared difference is weighted a channel, summed, averaged over the places, and the
five are added (equation 1).

Axes: N images, H W pixels, C channels.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pretrain.downstream.generation import LPIPS_ABSENT

# Of images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# (channels in, out, kernel, stride, padding, pooled before); number of the convolution in torchvision's AlexNet.
_LAYERS = ((3, 64, 11, 4, 2, False), (64, 192, 5, 1, 2, True), (192, 384, 3, 1, 1, True), (384, 256, 3, 1, 1, False), (256, 256, 3, 1, 1, False))  # fmt: skip
_NUMBERS = (0, 3, 6, 8, 10)
# Smaller images leave nothing of the last layers.
LEAST_SIDE = 35


class Lpips(nn.Module):
    """The distance, without weights of its own: see :func:`load_lpips`."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride=stride, padding=padding)
            for before, after, kernel, stride, padding, _ in _LAYERS
        )
        self.weights = nn.ParameterList(torch.zeros(1, layer[1], 1, 1) for layer in _LAYERS)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, one: Float32[Tensor, "N 3 H W"], other: Float32[Tensor, "N 3 H W"]) -> Float32[Tensor, " N"]:
        """Distances of images in [-1, 1]."""
        distance = torch.zeros(len(one), device=one.device)
        one, other = ((images - self.shift) / self.scale for images in (one, other))
        for convolution, weight, layer in zip(self.convolutions, self.weights, _LAYERS, strict=True):
            if layer[-1]:
                one, other = (F.max_pool2d(images, 3, stride=2) for images in (one, other))
            one, other = (F.relu(convolution(images)) for images in (one, other))
            difference = (_unit(one) - _unit(other)).square()
            distance = distance + (difference * weight).sum(dim=1).mean(dim=(1, 2))
        return distance

    @torch.inference_mode()
    def of_videos(self, predicted: UInt8[np.ndarray, "T H W 3"], true: UInt8[np.ndarray, "T H W 3"]) -> float:
        """Mean over the frames of two videos.

        Raises:
            ValueError: other shapes, or frames too small for the network.
        """
        if predicted.shape != true.shape or predicted.dtype != np.uint8 or true.dtype != np.uint8 or true.ndim != 4:
            raise ValueError(f"LPIPS: expected two uint8 videos of one shape, got {predicted.shape} and {true.shape}")
        if min(true.shape[1:3]) < LEAST_SIDE:
            raise ValueError(
                f"LPIPS: frames of {true.shape[1]} x {true.shape[2]} px: AlexNet needs {LEAST_SIDE} or more"
            )
        one, other = (
            torch.from_numpy(np.ascontiguousarray(video.transpose(0, 3, 1, 2))).float() / 127.5 - 1
            for video in (predicted, true)
        )
        return float(self(one, other).mean())


def load_lpips(path: str | Path) -> Lpips:
    """From the state_dict of lpips.LPIPS(net="alex") (version 0.1), as safetensors or as torch.save writes it; of the latter
    only tensors are unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such weights, naming what is missing or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; LPIPS is {LPIPS_ABSENT}")
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path}: cannot be read as weights ({type(error).__name__}: {reason})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a {type(found).__name__}, expected a state_dict of tensors")
    lpips = Lpips()
    taken: dict[str, Tensor] = {}
    for place, number in enumerate(_NUMBERS):
        slice_ = f"net.slice{place + 1}.{number}"
        taken[f"convolutions.{place}.weight"] = _tensor(path, found, f"{slice_}.weight")
        taken[f"convolutions.{place}.bias"] = _tensor(path, found, f"{slice_}.bias")
        taken[f"weights.{place}"] = _tensor(path, found, f"lin{place}.model.1.weight")
    for name, tensor in lpips.state_dict().items():
        if tensor.shape != taken[name].shape:
            raise ValueError(
                f"{path}: {name} is {list(taken[name].shape)}, expected {list(tensor.shape)}: is it of net='alex'?"
            )
    lpips.load_state_dict(taken)
    return lpips.eval().requires_grad_(False)


def _tensor(path: Path, found: dict[str, Any], name: str) -> Tensor:
    if not isinstance(found.get(name), Tensor):
        raise ValueError(f"{path}: no tensor {name}; expected the state_dict of lpips.LPIPS(net='alex')")
    return found[name].float()


def _unit(features: Float32[Tensor, "N C h w"]) -> Float32[Tensor, "N C h w"]:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)

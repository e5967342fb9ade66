"""An episode as a source of other origin gives it, before it is checked against a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class RawEpisode:
    """Arrays share the leading axis, the number of steps; `observation[t]` is what `actions[t]` answers.

    Attributes:
        name: in its source, for messages.
        observation: by our keys; images as they are stored, state of any float type.
        actions, rewards, dones, states: None where the source has none.
        success: None where the source does not say.
    """

    name: str
    observation: Mapping[str, np.ndarray]
    actions: np.ndarray
    rewards: np.ndarray | None = None
    dones: np.ndarray | None = None
    states: np.ndarray | None = None
    success: bool | None = None


def common_image_size(shapes: Mapping[str, tuple[int, ...]], where: str) -> int:
    """The side of the images, given each image's shape (H, W, 3) by name; 0 without images.

    Raises:
        ValueError: not square, not RGB, or cameras of different sizes.
    """
    for name, shape in shapes.items():
        if len(shape) != 3 or shape[2] != 3 or shape[0] != shape[1]:
            raise ValueError(f"{where}: {name} holds images of shape {list(shape)}, expected square RGB, [H, H, 3]")
    sizes = {shape[0] for shape in shapes.values()}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {shape[0]}x{shape[1]}" for name, shape in shapes.items())
        raise ValueError(
            f"{where}: the images differ in size ({listed}); the environments here draw all cameras in one size. Name those of one size with cameras="
        )
    return sizes.pop() if sizes else 0

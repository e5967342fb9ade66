"""Demonstrations as the rows that training draws batches from: one a step, its images or features gathered when it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policies.backbone import Backbone
from policies.demos.hdf5 import DemoFile
from policies.demos.windows import training_rows
from policies.features import demo_features, demo_images, history_rows
from policies.policy import Policy
from pretrain.batches import SampleId


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """All steps of all demonstrations.

    Attributes:
        views: "features/<camera>" or "images/<camera>" -> memory-mapped rows.
        history: int64[N, L or To], the rows of `views` that each step reads, oldest first.
    """

    state: Float[Tensor, "N S"]
    action: Float[Tensor, "N Ta A"]
    action_is_pad: Bool[Tensor, "N Ta"]
    views: Mapping[str, np.ndarray]
    history: np.ndarray

    def first(self, count: int) -> TrainingRows:
        """The first `count` rows alone."""
        cut = {name: getattr(self, name)[:count] for name in ("state", "action", "action_is_pad", "history")}
        return replace(self, **cut)

    def sample(self, count: int) -> dict[str, Tensor]:
        """At most `count` rows, evenly over the demonstrations."""
        rows = np.unique(np.linspace(0, len(self.state) - 1, min(count, len(self.state))).astype(int))
        return self.load([(int(row), 0) for row in rows])

    def load(self, samples: Sequence[SampleId]) -> dict[str, Tensor]:
        """The batch of some sample ids; only what it reads of the views comes into memory."""
        index = np.array([row for row, _ in samples])
        batch = {
            "state": self.state[index],
            "action": self.action[index],
            "action_is_pad": self.action_is_pad[index],
        }
        rows = self.history[index]
        return batch | {key: torch.from_numpy(values[rows]) for key, values in self.views.items()}


def load_rows(
    policy: Policy, demos: DemoFile, cache: str | Path, title: str, *, half_tokens: bool = True
) -> TrainingRows:
    """The rows for a policy: with cached features where its encoder is frozen, with images where it is trained."""
    spec, backbone = policy.spec, policy.backbone
    assert isinstance(backbone, Backbone)
    rows = training_rows(demos, spec.state_keys, spec.chunk_steps)
    views: dict[str, np.ndarray] = {}
    count = 1
    if backbone.trains_encoder:
        images = demo_images(spec.cameras, demos, cache, title)
        views, count = {f"images/{camera}": values for camera, values in images.items()}, spec.frames
    elif spec.cameras:
        features = demo_features(backbone, demos, cache, title, half_tokens=half_tokens)
        views, count = {f"features/{camera}": values for camera, values in features.items()}, backbone.config.latents
    return TrainingRows(
        state=rows["state"],
        action=rows["action"],
        action_is_pad=rows["action_is_pad"],
        views=views,
        history=history_rows(demos.lengths, count, spec.stride_steps),
    )

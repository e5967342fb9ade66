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
from policies.features import demo_features, demo_images, history_rows, kept_lengths, kept_rows
from policies.policy import Policy
from pretrain.batches import SampleId


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """The steps of demonstrations that are learned from.

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
        return self._part(slice(count))

    def last(self, count: int) -> TrainingRows:
        """The last `count` rows alone."""
        return self._part(slice(len(self.state) - count, None))

    def _part(self, part: slice) -> TrainingRows:
        cut = {name: getattr(self, name)[part] for name in ("state", "action", "action_is_pad", "history")}
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
    policy: Policy, demos: DemoFile, cache: str | Path, title: str, *, half_tokens: bool = True, every: int = 1
) -> TrainingRows:
    """The rows for a policy: with cached features where its encoder is frozen, with images where it is trained.

    Args:
        every: only every so many-th step of a demonstration is a row.

    Raises:
        ValueError: a read-out over time, whose latents are those of neighbouring rows, with every > 1.
    """
    spec, backbone = policy.spec, policy.backbone
    assert isinstance(backbone, Backbone)
    kept = kept_rows(demos.lengths, every)
    rows = {key: value[kept] for key, value in training_rows(demos, spec.state_keys, spec.chunk_steps).items()}
    views: dict[str, np.ndarray] = {}
    history = np.arange(len(kept))[:, None]
    if backbone.trains_encoder:
        images = demo_images(spec.cameras, demos, cache, title)
        views = {f"images/{camera}": values for camera, values in images.items()}
        history = history_rows(demos.lengths, spec.frames, spec.stride_steps)[kept]
    elif spec.cameras:
        latents = backbone.config.latents
        if every > 1 and latents > 1:
            raise ValueError(
                f"rows_every={every} with backbone.readout={backbone.config.readout}, which reads {latents} latents over time: expected rows_every=1"
            )
        features = demo_features(backbone, demos, cache, title, half_tokens=half_tokens, every=every)
        views = {f"features/{camera}": values for camera, values in features.items()}
        history = history_rows(kept_lengths(demos.lengths, every), latents, spec.stride_steps)
    return TrainingRows(
        state=rows["state"],
        action=rows["action"],
        action_is_pad=rows["action_is_pad"],
        views=views,
        history=history,
    )

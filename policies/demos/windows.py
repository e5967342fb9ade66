"""Demonstrations as training rows: one row a step, with the Ta actions that follow it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policies.demos.hdf5 import DemoFile


def action_windows(
    actions: Float[np.ndarray, "N A"], chunk_steps: int
) -> tuple[Float[np.ndarray, "N Ta A"], Bool[np.ndarray, "N Ta"]]:
    """For each step the actions of steps t .. t + Ta - 1, the last one repeated past the end, and a mask of the repeated ones."""
    steps = np.arange(len(actions))[:, None] + np.arange(chunk_steps)[None]
    return actions[np.minimum(steps, len(actions) - 1)], steps >= len(actions)


def training_rows(demos: DemoFile, state_keys: Sequence[str], chunk_steps: int) -> dict[str, Tensor]:
    """All steps of all demonstrations: "state" float32[N, S], "action" float32[N, Ta, A], "action_is_pad" bool[N, Ta]."""
    states, actions, pads = [], [], []
    for demo in range(len(demos)):
        observation = demos.observation(demo, state_keys)
        states.append(np.concatenate([observation[key] for key in state_keys], axis=-1))
        window, pad = action_windows(demos.array(demo, "actions"), chunk_steps)
        actions.append(window)
        pads.append(pad)
    return {
        "state": torch.from_numpy(np.concatenate(states).astype(np.float32)),
        "action": torch.from_numpy(np.concatenate(actions).astype(np.float32)),
        "action_is_pad": torch.from_numpy(np.concatenate(pads)),
    }

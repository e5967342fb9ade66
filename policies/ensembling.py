"""Temporal ensembling of ACT: the policy is asked at every step, and what the overlapping chunks say of a step is averaged."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


class TemporalEnsemble:
    """For each of n envs the last Ta chunks, and their weighted mean for the present step.

    The weight of the i-th prediction of a step, the oldest being 0, is exp(-decay * i), normalized (arXiv 2304.13705, section IV.A):
    the smaller the decay, the faster new observations are taken in.
    """

    def __init__(self, n_envs: int, chunk_steps: int, action_dim: int, decay: float) -> None:
        self.decay = decay
        self._chunks = np.zeros((n_envs, chunk_steps, chunk_steps, action_dim), dtype=np.float32)  # by step modulo Ta
        self._steps = np.zeros(n_envs, dtype=np.int64)  # since the episode began

    def reset(self, rows: Int[np.ndarray, " n"]) -> None:
        """New episodes begin in these envs."""
        self._steps[rows] = 0

    def act(self, chunks: Float[np.ndarray, "n Ta A"], rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n A"]:
        """Takes the chunks predicted at this step in and gives this step's actions."""
        length = self._chunks.shape[1]
        steps = self._steps[rows]
        self._chunks[rows, steps % length] = chunks
        age = np.arange(length)  # of a prediction, in steps: its entry for this step is at that place of its chunk
        known = age[None] <= steps[:, None]
        oldest = np.minimum(steps, length - 1)
        weights = np.where(known, np.exp(-self.decay * (oldest[:, None] - age[None])), 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
        predictions = self._chunks[rows[:, None], (steps[:, None] - age[None]) % length, age[None]]
        self._steps[rows] += 1
        return np.einsum("na,nac->nc", weights, predictions).astype(np.float32)

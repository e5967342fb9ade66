"""Episode state outside the policy: the history of observations and the queue of predicted actions, one row an env."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float

from policies.ensembling import TemporalEnsemble
from policies.policy import Policy


def history_offsets(frames: int, stride_steps: int) -> np.ndarray:
    """How many control steps ago each of the `frames` history frames lies, oldest first: int64[frames], last is 0."""
    return np.arange(frames - 1, -1, -1) * stride_steps


class ActionChunker:
    """Feeds a stateless policy step by step over B envs in lockstep.

    Keeps the last (frames - 1) * stride + 1 images of each env and hands the policy To = frames of them, the oldest repeated at
    an episode's start; runs the first `execute_steps` actions of each predicted chunk before predicting again (None: as the policy's
    spec says, with its temporal ensembling).
    """

    def __init__(self, policy: Policy, n_envs: int, *, execute_steps: int | None = None, seed: int = 0) -> None:
        spec = policy.spec
        ensembles = execute_steps is None and spec.ensemble_decay is not None
        execute_steps = spec.execute_steps if execute_steps is None else execute_steps
        if not 1 <= execute_steps <= spec.chunk_steps:
            raise ValueError(f"execute_steps={execute_steps}: the policy predicts chunks of {spec.chunk_steps} steps")
        self.policy, self.execute_steps = policy, execute_steps
        self.generator = torch.Generator().manual_seed(seed)
        self._offsets = history_offsets(spec.frames, spec.stride_steps)
        self._length = int(self._offsets[0]) + 1
        self._images: dict[str, np.ndarray] = {}  # uint8[n_envs, length, H, W, 3], a ring buffer over steps
        self._step = np.zeros(n_envs, dtype=np.int64)  # observations seen in this episode
        self._queue = np.zeros((n_envs, execute_steps, spec.action_dim), dtype=np.float32)
        self._queued = np.zeros(n_envs, dtype=np.int64)
        self._n_envs = n_envs
        self._ensemble = (
            TemporalEnsemble(n_envs, spec.chunk_steps, spec.action_dim, spec.ensemble_decay or 0.0)
            if ensembles
            else None
        )

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, np.ndarray],
        reset_mask: Bool[np.ndarray, " B"],
        indices: np.ndarray | None = None,
    ) -> Float[np.ndarray, "B A"]:
        """The next action of each env.

        Args:
            observation: arrays with a leading axis B, one row an env of `indices` (all envs when None).
            reset_mask: True where the observation is the first of an episode.
            indices: which envs the rows belong to.
        """
        rows = np.arange(self._n_envs) if indices is None else np.asarray(indices)
        fresh = rows[np.asarray(reset_mask, dtype=bool)]
        self._step[fresh] = 0
        self._queued[fresh] = 0
        self._remember(observation, rows)
        empty = self._queued[rows] == 0
        if empty.any():
            chunk = self._predict(observation, rows, np.flatnonzero(empty))
            if self._ensemble is not None:  # asked at every step, so every row is here
                self._ensemble.reset(fresh)
                chunk = self._ensemble.act(chunk, rows)[:, None]
            self._queue[rows[empty]] = chunk[:, : self.execute_steps]
            self._queued[rows[empty]] = self.execute_steps
        action = self._queue[rows, self.execute_steps - self._queued[rows]]
        self._queued[rows] -= 1
        self._step[rows] += 1
        return action

    def _remember(self, observation: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        for camera in self.policy.spec.cameras:
            key = f"images/{camera}"
            if key not in self._images:
                self._images[key] = np.zeros((self._n_envs, self._length, *observation[key].shape[1:]), dtype=np.uint8)
            self._images[key][rows, self._step[rows] % self._length] = observation[key]

    def _predict(self, observation: Mapping[str, np.ndarray], rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
        spec = self.policy.spec
        wanted = rows[asked]
        steps = np.maximum(self._step[wanted][:, None] - self._offsets[None], 0) % self._length
        batch = {key: torch.from_numpy(images[wanted[:, None], steps]) for key, images in self._images.items()}
        for key in spec.state_keys:
            batch[key] = torch.from_numpy(np.ascontiguousarray(observation[key][asked]))[:, None]
        return self.policy.predict_chunk(batch, self.generator).numpy()

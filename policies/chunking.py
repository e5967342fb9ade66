"""Episode state outside the policy: the history of observations and the queue of predicted actions, one row an env."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from policies.backbone import Backbone
from policies.ensembling import TemporalEnsemble
from policies.policy import Policy

# Separates a policy's random numbers in an episode from those that drew the episode.
_POLICY_STREAM = 0xAC7104


def history_offsets(frames: int, stride_steps: int) -> np.ndarray:
    """How many control steps ago each of the `frames` history frames lies, oldest first: int64[frames], last is 0."""
    return np.arange(frames - 1, -1, -1) * stride_steps


class ActionChunker:
    """Feeds a stateless policy step by step over B envs, each at its own place in its own episode.

    Keeps the last (frames - 1) * stride + 1 images of each env and hands the policy To = frames of them, the oldest repeated at
    an episode's start; runs the first `execute_steps` actions of each predicted chunk before predicting again, or, for a policy with
    temporal ensembling, averages the chunks. A read-out over several latents gets each latent from the encoder once, in the order of time.

    An episode's actions do not depend on which others run beside it: its randomness comes from its seed, and with `block_rows` its rounding is
    the same too, because the policy then always sees that many rows, padded with copies of the last. (Matrix products of one or two rows are
    summed in another order than those of many.)

    Args:
        execute_steps: None does as the policy's spec says, with its temporal ensembling.
        seed: of episodes that come without one.
        block_rows: rows of one call of the policy; None: as many as there are.
    """

    def __init__(
        self,
        policy: Policy,
        n_envs: int,
        *,
        execute_steps: int | None = None,
        seed: int = 0,
        block_rows: int | None = None,
    ) -> None:
        spec = policy.spec
        ensembles = execute_steps is None and spec.ensemble_decay is not None
        self.execute_steps = spec.execute_steps if execute_steps is None else execute_steps
        if not 1 <= self.execute_steps <= spec.chunk_steps:
            raise ValueError(f"execute_steps={execute_steps}: the policy predicts chunks of {spec.chunk_steps} steps")
        self.policy = policy
        self._n_envs, self._seed, self._block_rows = n_envs, seed, block_rows
        self._offsets = history_offsets(spec.frames, spec.stride_steps)
        self._length = int(self._offsets[0]) + 1
        self._images: dict[str, np.ndarray] = {}  # uint8[n_envs, length, H, W, 3], a ring buffer over steps
        self._step = np.zeros(n_envs, dtype=np.int64)  # observations seen in this episode
        self._queue = np.zeros((n_envs, self.execute_steps, spec.action_dim), dtype=np.float32)
        self._queued = np.zeros(n_envs, dtype=np.int64)
        self._episodes = np.zeros(n_envs, dtype=np.int64)  # begun
        self._generators = [torch.Generator() for _ in range(n_envs)]
        self._ensemble = None
        if ensembles:
            self._ensemble = TemporalEnsemble(n_envs, spec.chunk_steps, spec.action_dim, spec.ensemble_decay or 0.0)
        self._latents = _Latents(policy, n_envs, self._length)

    @torch.no_grad()
    def act(
        self,
        observation: Mapping[str, np.ndarray],
        reset_mask: Bool[np.ndarray, " B"],
        indices: np.ndarray | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Float[np.ndarray, "B A"]:
        """The next action of each env.

        Args:
            observation: arrays with a leading axis B, one row an env of `indices` (all envs when None). Images that `needs_images` says are
                not needed are not looked at.
            reset_mask: True where the observation is the first of an episode.
            indices: which envs the rows belong to.
            seeds: the episodes' seeds, read where `reset_mask` is True: where a stochastic policy's randomness comes from.
        """
        rows = np.arange(self._n_envs) if indices is None else np.asarray(indices)
        for row in np.flatnonzero(reset_mask):
            self._begin(int(rows[row]), None if seeds is None else seeds[row])
        self._remember(observation, rows)
        empty = self._queued[rows] == 0
        if empty.any():
            asked = np.flatnonzero(empty)
            chunk = self._predict(observation, rows, asked)
            if self._ensemble is not None:
                chunk = self._ensemble.act(chunk, rows[asked])[:, None]
            self._queue[rows[empty]] = chunk[:, : self.execute_steps]
            self._queued[rows[empty]] = self.execute_steps
        action = self._queue[rows, self.execute_steps - self._queued[rows]]
        self._queued[rows] -= 1
        self._step[rows] += 1
        return action

    def needs_images(self, indices: np.ndarray | None = None) -> Bool[np.ndarray, " B"]:
        """Whether the images of the next observation of each env will be read, at that step or later from the history."""
        rows = np.arange(self._n_envs) if indices is None else np.asarray(indices)
        if not self.policy.spec.cameras:
            return np.zeros(len(rows), dtype=bool)
        steps = self._step[rows][:, None]
        asked = (steps + self._offsets[None]) % self.execute_steps == 0
        return (steps[:, 0] == 0) | asked.any(axis=1)

    def _begin(self, row: int, seed: int | None) -> None:
        self._step[row] = 0
        self._queued[row] = 0
        if self._ensemble is not None:
            self._ensemble.reset(np.array([row]))
        self._latents.forget(row)
        key = (_POLICY_STREAM, row, int(self._episodes[row])) if seed is None else (_POLICY_STREAM,)
        source = np.random.SeedSequence(self._seed if seed is None else int(seed), spawn_key=key)
        self._generators[row].manual_seed(int(source.generate_state(1, np.uint64)[0]) >> 1)
        self._episodes[row] += 1

    def _remember(self, observation: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        needed = self.needs_images(rows)
        if not needed.any():
            return
        kept, places = rows[needed], self._step[rows[needed]] % self._length
        for camera in self.policy.spec.cameras:
            key = f"images/{camera}"
            if key not in self._images:
                self._images[key] = np.zeros((self._n_envs, self._length, *observation[key].shape[1:]), dtype=np.uint8)
            self._images[key][kept, places] = observation[key][needed]

    def _history(self, rows: np.ndarray, steps: np.ndarray, offsets: np.ndarray) -> dict[str, torch.Tensor]:
        """The images at `steps` - `offsets`, the first of the episode repeated, by camera: uint8[n, len(offsets), H, W, 3]."""
        places = np.maximum(steps[:, None] - offsets[None], 0) % self._length
        return {key: torch.from_numpy(images[rows[:, None], places]) for key, images in self._images.items()}

    def _predict(self, observation: Mapping[str, np.ndarray], rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
        spec = self.policy.spec
        device = next(self.policy.parameters(), torch.empty(0)).device
        chunks = []
        for block, count in self._blocks(len(asked)):
            wanted = rows[asked[block]]
            if self._latents.reused:
                batch = self._latents.of(wanted, self._step[wanted], self._history, self._blocks, device)
            else:
                batch = self._history(wanted, self._step[wanted], self._offsets)
            for key in spec.state_keys:
                batch[key] = torch.from_numpy(np.ascontiguousarray(observation[key][asked[block]]))[:, None]
            # The padding's rows draw numbers of their own: the generator of the row they copy must not move twice.
            generators = [self._generators[row] for row in wanted[:count]]
            generators += [torch.Generator() for _ in wanted[count:]]
            batch = {key: value.to(device) for key, value in batch.items()}
            chunks.append(self.policy.predict_chunk(batch, generators)[:count].cpu().numpy())
        return np.concatenate(chunks)

    def _blocks(self, count: int) -> Iterator[tuple[Int[np.ndarray, " n"], int]]:
        """Places 0 to count - 1 in blocks of equal length, the last filled up with its last; and how many of each block count."""
        size = self._block_rows or count
        for begin in range(0, count, size):
            end = min(begin + size, count)
            yield np.minimum(np.arange(begin, begin + size), end - 1), end - begin


class _Latents:
    """What the encoder made of each env's last steps, for read-outs over time: a step's latent is encoded once and read again at later steps.

    This pays only where one prediction reads several latents (FLARE). A space-time encoder that gives one latent attends over all its frames
    together: when the window moves by a step, each of its tokens is another, so nothing can be kept.
    """

    def __init__(self, policy: Policy, n_envs: int, length: int) -> None:
        backbone = getattr(policy, "backbone", None)
        self._backbone = backbone if isinstance(backbone, Backbone) and policy.spec.cameras else None
        self.reused = self._backbone is not None and self._backbone.config.latents > 1
        if not self.reused:
            return
        spec, latents = policy.spec, self._backbone.config.latents
        self._offsets = history_offsets(latents, spec.stride_steps)
        self._window = history_offsets(spec.frames - latents + 1, spec.stride_steps)
        self._values: dict[str, torch.Tensor] = {}  # by camera [n_envs, length, ...], a ring buffer over steps
        self._steps = np.full((n_envs, length), -1)  # whose latent each place holds

    def forget(self, row: int) -> None:
        if self.reused:
            self._steps[row] = -1

    def of(
        self,
        rows: np.ndarray,
        steps: np.ndarray,
        history: Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, torch.Tensor]],
        blocks: Callable[[int], Iterator[tuple[np.ndarray, int]]],
        device: torch.device,
    ) -> dict[str, torch.Tensor]:
        """ "features/<camera>" [B, L, ...] at `steps` of the envs `rows`; what is not there yet is encoded."""
        wanted = np.maximum(steps[:, None] - self._offsets[None], 0)
        places = wanted % self._steps.shape[1]
        missing = self._steps[rows[:, None], places] != wanted
        pairs = np.unique(
            np.stack([np.broadcast_to(rows[:, None], wanted.shape)[missing], wanted[missing]], axis=1), axis=0
        )
        for block, _ in blocks(len(pairs)):
            self._encode(pairs[block, 0], pairs[block, 1], history, device)
        return {
            f"features/{camera}": values[torch.from_numpy(rows)[:, None], torch.from_numpy(places)]
            for camera, values in self._values.items()
        }

    def _encode(
        self,
        rows: np.ndarray,
        steps: np.ndarray,
        history: Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, torch.Tensor]],
        device: torch.device,
    ) -> None:
        assert self._backbone is not None
        places = steps % self._steps.shape[1]
        for key, clips in history(rows, steps, self._window).items():
            camera = key.removeprefix("images/")
            latents = self._backbone.encode_clips(clips.to(device))
            if camera not in self._values:
                self._values[camera] = latents.new_zeros(*self._steps.shape, *latents.shape[1:])
            self._values[camera][torch.from_numpy(rows), torch.from_numpy(places)] = latents
        self._steps[rows, places] = steps

"""Many environments of one task in parallel processes.

Workers are spawned, never forked: a GL context does not survive a fork. Each makes its environments when they are first reset, and all of them share
one renderer. Observations travel through shared memory, the rest through pipes.

A worker that dies is replaced. Its episodes are started again from their seeds and led through the actions they have had, so that they go on as if
nothing had happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import multiprocessing.connection
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from envs.rendering import gl_backend
from envs.spec import EnvSpec
from envs.tasks import make_env
from envs.worker import NO_ENV, Job, how_it_ended, work

_CLOSE_SECONDS = 5.0
# Deaths of its worker that an episode may cause, or be part of when none is known to be the cause, before the task is given up.
MAX_FAILURES = 3


@dataclass
class _Worker:
    index: int
    process: Any
    pipe: multiprocessing.connection.Connection
    ready: bool = False  # it has answered at least once


@dataclass
class _Episode:
    """All that it takes to bring an episode back."""

    seed: int
    running: bool = False
    actions: list[np.ndarray] = field(default_factory=list)
    said: list[Any] = field(
        default_factory=list
    )  # the start's hash, then each step's reward: what a repetition must say again
    failures: int = 0
    reruns: int = 0


class _WorkerDied(Exception):
    """A worker has ended, with this to say."""


class VectorEnv:
    """`n_envs` environments of `task`, spread over `n_workers` processes; only those asked for are reset or stepped.

    An episode is the same as in a single environment, physics and pixels. Nothing is reset by itself: after `terminated` or `truncated`, `reset`
    must follow. A worker that the system kills, that crashes or raises is replaced and its episodes are brought back, up to MAX_FAILURES times an
    episode; `reruns` counts. Use as a context manager, or call `close`.

    Args:
        task: a key of `envs.tasks.TASKS`.
        n_envs: how many environments.
        n_workers: how many processes; no more than `n_envs` are started.
        level, cameras, image_size, quality, privileged: as in `envs.tasks.make_env`.

    Raises:
        ValueError: what `make_env` refuses, or a count below one.
        RuntimeError: no GL back-end for an environment with cameras.
    """

    def __init__(
        self,
        task: str,
        *,
        n_envs: int,
        n_workers: int,
        level: str = "clean",
        cameras: tuple[str, ...] | None = None,
        image_size: int = 128,
        quality: str = "fast",
        privileged: bool = False,
    ) -> None:
        self._workers: list[_Worker] = []
        self._closed = False
        if n_envs < 1 or n_workers < 1:
            raise ValueError(f"n_envs {n_envs} and n_workers {n_workers} must be at least 1")
        options = {
            "level": level,
            "cameras": cameras,
            "image_size": image_size,
            "quality": quality,
            "privileged": privileged,
        }
        # Made here, without a GL context, for its spec: the user's mistakes surface before any process starts.
        env = make_env(task, **options)
        self.env_spec: EnvSpec = env.env_spec
        env.close()
        if self.env_spec.cameras:
            gl_backend()

        self.task = task
        self.n_envs = n_envs
        self._episodes: dict[int, _Episode] = {}
        n_workers = min(n_workers, n_envs)
        self._context = context = multiprocessing.get_context("spawn")
        self._job = job = Job(
            task=task,
            options=options,
            n_envs=n_envs,
            spec=self.env_spec,
            buffers={
                key: context.RawArray(ctypes.c_uint8, n_envs * math.prod(spec.shape) * np.dtype(spec.dtype).itemsize)
                for key, spec in self.env_spec.observation.items()
            },
            # The environment that each worker is at, so that a death can be laid at a seed's door.
            busy=context.RawArray(ctypes.c_int64, [NO_ENV] * n_workers),
            # Mesa's software renderer would start a thread for each core in every worker.
            environ={"LP_NUM_THREADS": "0"} if n_workers > 1 else {},
        )
        self._views = job.views()
        try:
            for index in range(n_workers):
                self._workers.append(self._start(index))
        except BaseException:
            self.close()
            raise

    def _start(self, index: int) -> _Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(there, self._job, index), name=f"env-worker-{index}", daemon=True
        )
        self._job.busy[index] = NO_ENV
        process.start()
        there.close()
        return _Worker(index=index, process=process, pipe=here)

    @property
    def reruns(self) -> Int[np.ndarray, " n_envs"]:
        """How often the present episode of each environment had to be brought back."""
        return np.array([self._episodes[i].reruns if i in self._episodes else 0 for i in range(self.n_envs)])

    def reset(
        self, seeds: Sequence[int], indices: Sequence[int] | None = None, *, images: bool | Sequence[bool] = True
    ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Start the episode `seeds[i]` in environment `indices[i]`.

        Args:
            seeds: one non-negative integer an environment.
            indices: which environments, each once; None means all.
            images: whether to draw, for all or for each; as in `step`.

        Returns:
            Observations of these environments with a leading axis of len(seeds), new arrays; and their infos.

        Raises:
            ValueError: lengths that differ, an index out of range or twice, a negative seed.
            RuntimeError: workers failed MAX_FAILURES times at one episode.
        """
        chosen = self._check_indices(indices)
        if len(seeds) != len(chosen):
            raise ValueError(f"{len(seeds)} seeds for {len(chosen)} environments: give one seed for each")
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"seeds must be non-negative integers, got {list(seeds)}")
        drawn = self._check_images(images, len(chosen))
        for index, seed in zip(chosen, seeds, strict=True):
            self._episodes[index] = _Episode(seed=int(seed))
        work = {index: (int(seed), bool(draw)) for index, seed, draw in zip(chosen, seeds, drawn, strict=True)}
        infos = self._ask("reset", work)
        for index, info in zip(chosen, infos, strict=True):
            self._episodes[index].running = True
            self._episodes[index].said.append(info["initial_state_hash"])
        return self._observations(chosen, drawn), infos

    def step(
        self,
        actions: np.ndarray,
        indices: Sequence[int] | None = None,
        *,
        images: bool | Sequence[bool] = True,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step environment `indices[i]` with `actions[i]`.

        Args:
            actions: float32 [B, A], clipped to [-1, 1].
            indices: which environments, each once; None means all.
            images: whether to draw, for all or for each of `indices`. Images that are not drawn cost nothing and are all zero in the observation.

        Returns:
            Observations [B, ...], rewards float64 [B], terminated bool [B], truncated bool [B], infos; new arrays.

        Raises:
            ValueError: a wrong shape, a value that is not finite, a bad index, or an environment whose episode is over.
            RuntimeError: workers failed MAX_FAILURES times at one episode.
        """
        chosen = self._check_indices(indices)
        commands = np.array(actions, dtype=np.float32)  # a copy: an episode's actions are kept
        expected = (len(chosen), *self.env_spec.action.shape)
        if commands.shape != expected:
            raise ValueError(f"{self.task}: actions of shape {commands.shape}, expected {expected}")
        if not np.isfinite(commands).all():
            raise ValueError(
                f"{self.task}: actions of environments {[i for i, a in zip(chosen, commands, strict=True) if not np.isfinite(a).all()]} are not finite"
            )
        over = [index for index in chosen if index not in self._episodes or not self._episodes[index].running]
        if over:
            raise ValueError(f"{self.task}: no episode is under way in environments {over}; reset them first")
        drawn = self._check_images(images, len(chosen))
        work = {index: (action, bool(draw)) for index, action, draw in zip(chosen, commands, drawn, strict=True)}
        results = self._ask("step", work)
        for index, action, (reward, terminated, truncated, _) in zip(chosen, commands, results, strict=True):
            episode = self._episodes[index]
            episode.actions.append(action)
            episode.said.append(reward)
            episode.running = not (terminated or truncated)
        rewards, terminated, truncated, infos = zip(*results, strict=True) if results else ((), (), (), ())
        return (
            self._observations(chosen, drawn),
            np.array(rewards, np.float64),
            np.array(terminated, bool),
            np.array(truncated, bool),
            list(infos),
        )

    def close(self) -> None:
        """End the workers; safe to call twice."""
        self._closed = True
        for worker in self._workers:
            with contextlib.suppress(OSError):  # it may be gone already
                worker.pipe.send(("close", {}))
        for worker in self._workers:
            worker.process.join(_CLOSE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers = []

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _worker_of(self, index: int) -> _Worker:
        # Dealt round-robin, so that the environments still running are spread over the workers when others have ended.
        return self._workers[index % len(self._workers)]

    def _check_indices(self, indices: Sequence[int] | None) -> list[int]:
        if self._closed:
            raise RuntimeError(f"this VectorEnv of {self.task} is closed; make a new one")
        chosen = list(range(self.n_envs)) if indices is None else [int(index) for index in indices]
        if len(set(chosen)) != len(chosen) or any(not 0 <= index < self.n_envs for index in chosen):
            raise ValueError(f"indices {chosen}: expected different numbers from 0 to {self.n_envs - 1}")
        return chosen

    def _check_images(self, images: bool | Sequence[bool], count: int) -> np.ndarray:
        drawn = (
            np.broadcast_to(np.asarray(images, dtype=bool), count)
            if np.ndim(images) == 0
            else np.asarray(images, dtype=bool)
        )
        if drawn.shape != (count,):
            raise ValueError(f"images of shape {drawn.shape} for {count} environments: give one bool, or one for each")
        return drawn

    def _observations(self, chosen: list[int], drawn: np.ndarray) -> dict[str, np.ndarray]:
        observations = {}
        for key, view in self._views.items():
            observations[key] = view[chosen]  # a list as index copies
            if key.startswith("images/"):
                observations[key][~drawn] = 0
        return observations

    def _ask(self, command: str, work: dict[int, Any]) -> list[Any]:
        """Send each worker its share of `work` (environment -> argument), wait for all, and return the answers in `work`'s order."""
        shares: dict[int, dict[int, Any]] = {}
        for index, argument in work.items():
            shares.setdefault(self._worker_of(index).index, {})[index] = argument
        answers: dict[int, Any] = {}
        try:
            # All are at work before the first is waited for.
            for number, share in shares.items():
                self._send(self._workers[number], command, share)
            for number, share in shares.items():
                answers.update(self._answer_of(number, command, share))
        except BaseException:
            # Also on Ctrl-C: answers left in the pipes would be taken for those of the next command.
            self.close()
            raise
        return [answers[index] for index in work]

    def _answer_of(self, number: int, command: str, share: dict[int, Any]) -> dict[int, Any]:
        """A worker's answers to `command`; when it dies over them, those of its successors."""
        while True:
            try:
                return self._receive(self._workers[number])
            except _WorkerDied as death:
                self._blame(self._workers[number], str(death), share)
            self._replace(number, share)
            self._send(self._workers[number], command, share)

    def _replace(self, number: int, share: Mapping[int, Any]) -> None:
        """A new worker in the place of a dead one, with its episodes where they were before the command it died over."""
        own = {index: episode for index, episode in self._episodes.items() if self._worker_of(index).index == number}
        lost = {index: episode for index, episode in own.items() if episode.running}
        for index, episode in own.items():
            episode.reruns += index in lost or index in share
        while True:
            self._workers[number] = self._start(number)
            work = {index: (episode.seed, episode.actions) for index, episode in lost.items()}
            try:
                self._send(self._workers[number], "replay", work)
                said = self._receive(self._workers[number])
                break
            except _WorkerDied as death:
                self._blame(self._workers[number], str(death), share)
        for index, episode in lost.items():
            if said[index] != episode.said:
                raise RuntimeError(
                    f"{self.task}: seed {episode.seed} went another way when it was run again after its worker had died. Its simulation depends "
                    "on more than the seed and the actions, so the episode cannot be brought back; the suite's adapter is at fault"
                )

    @staticmethod
    def _send(worker: _Worker, command: str, share: dict[int, Any]) -> None:
        with contextlib.suppress(OSError):  # it is dead, as receiving will find out
            worker.pipe.send((command, share))

    def _receive(self, worker: _Worker) -> dict[int, Any]:
        """What a worker answers.

        Raises:
            _WorkerDied: with its traceback, or empty when it left none.
        """
        try:
            while True:
                ready = multiprocessing.connection.wait([worker.pipe, worker.process.sentinel])
                if worker.pipe not in ready and not worker.pipe.poll():
                    raise _WorkerDied("")
                status, payload = worker.pipe.recv()
                if status == "error":
                    raise _WorkerDied(payload)
                worker.ready = True
                if status == "done":
                    return payload
        except (EOFError, OSError):
            raise _WorkerDied("") from None

    def _blame(self, worker: _Worker, trace: str, share: Mapping[int, Any]) -> None:
        """Count a worker's death against the episode it was at, or against all of its own when it was at none; give up when it is one too many."""
        worker.process.join(_CLOSE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()
        exit_code = worker.process.exitcode
        trace = trace or f"The process left no traceback: {how_it_ended(exit_code)}"
        at = int(self._job.busy[worker.index])
        if at == NO_ENV:
            own = [i for i, episode in self._episodes.items() if episode.running and self._worker_of(i) is worker]
            blamed = sorted({*own, *share})
        else:
            blamed = [at]
        for index in blamed:
            self._episodes[index].failures += 1
        # A worker that cannot even start, for a reason of its own, will not start the next time either.
        hopeless = not worker.ready and (exit_code is None or exit_code >= 0)
        failures = max((self._episodes[index].failures for index in blamed), default=MAX_FAILURES)
        if hopeless or failures >= MAX_FAILURES:
            self.close()
            times = "at its start" if hopeless else f"{failures} times"
            episodes = ", ".join(f"env {index} seed {self._episodes[index].seed}" for index in blamed)
            raise RuntimeError(
                f"worker {worker.index} of {self.task} failed {times} (episodes: {episodes or 'none'}).\n{trace.rstrip()}"
            )

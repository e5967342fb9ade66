"""Many environments of one task in parallel processes.

Workers are spawned, never forked: a GL context does not survive a fork. Each makes its environments when they are first reset, and all of them share
one renderer. Observations travel through shared memory, the rest through pipes.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from envs.rendering import gl_backend
from envs.spec import EnvSpec
from envs.tasks import make_env

_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a worker must know to make its environments; `options` are `make_env`'s."""

    task: str
    options: dict[str, Any]
    n_envs: int
    spec: EnvSpec
    buffers: dict[str, Any]
    environ: dict[str, str]

    def views(self) -> dict[str, np.ndarray]:
        """The shared observation arrays, [n_envs, ...] each."""
        return {
            key: np.frombuffer(self.buffers[key], dtype=spec.dtype).reshape(self.n_envs, *spec.shape)
            for key, spec in self.spec.observation.items()
        }


@dataclass
class _Worker:
    index: int
    process: Any
    pipe: multiprocessing.connection.Connection
    seeds: dict[int, int] = field(default_factory=dict)


class VectorEnv:
    """`n_envs` environments of `task`, spread over `n_workers` processes; only those asked for are reset or stepped.

    An episode is the same as in a single environment, physics and pixels. Nothing is reset by itself: after `terminated` or `truncated`, `reset`
    must follow. Use as a context manager, or call `close`.

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
        self._running = np.zeros(n_envs, bool)
        n_workers = min(n_workers, n_envs)
        context = multiprocessing.get_context("spawn")
        job = _Job(
            task=task,
            options=options,
            n_envs=n_envs,
            spec=self.env_spec,
            buffers={
                key: context.RawArray(ctypes.c_uint8, n_envs * math.prod(spec.shape) * np.dtype(spec.dtype).itemsize)
                for key, spec in self.env_spec.observation.items()
            },
            # Mesa's software renderer would start a thread for each core in every worker.
            environ={"LP_NUM_THREADS": "0"} if n_workers > 1 else {},
        )
        self._views = job.views()
        try:
            for index in range(n_workers):
                self._workers.append(self._start(context, index, job))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _start(context: Any, index: int, job: _Job) -> _Worker:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, job), name=f"env-worker-{index}", daemon=True)
        process.start()
        there.close()
        return _Worker(index=index, process=process, pipe=here)

    def reset(
        self, seeds: Sequence[int], indices: Sequence[int] | None = None
    ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Start the episode `seeds[i]` in environment `indices[i]`.

        Args:
            seeds: one non-negative integer an environment.
            indices: which environments, each once; None means all.

        Returns:
            Observations of these environments with a leading axis of len(seeds), new arrays; and their infos.

        Raises:
            ValueError: lengths that differ, an index out of range or twice, a negative seed.
            RuntimeError: a worker failed.
        """
        chosen = self._check_indices(indices)
        if len(seeds) != len(chosen):
            raise ValueError(f"{len(seeds)} seeds for {len(chosen)} environments: give one seed for each")
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"seeds must be non-negative integers, got {list(seeds)}")
        for index, seed in zip(chosen, seeds, strict=True):
            self._worker_of(index).seeds[index] = int(seed)
        infos = self._ask("reset", {index: int(seed) for index, seed in zip(chosen, seeds, strict=True)})
        self._running[chosen] = True
        return self._observations(chosen), infos

    def step(
        self, actions: np.ndarray, indices: Sequence[int] | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step environment `indices[i]` with `actions[i]`.

        Args:
            actions: float32 [B, A], clipped to [-1, 1].
            indices: which environments, each once; None means all.

        Returns:
            Observations [B, ...], rewards float64 [B], terminated bool [B], truncated bool [B], infos; new arrays.

        Raises:
            ValueError: a wrong shape, a value that is not finite, a bad index, or an environment whose episode is over.
            RuntimeError: a worker failed.
        """
        chosen = self._check_indices(indices)
        commands = np.asarray(actions, dtype=np.float32)
        expected = (len(chosen), *self.env_spec.action.shape)
        if commands.shape != expected:
            raise ValueError(f"{self.task}: actions of shape {commands.shape}, expected {expected}")
        if not np.isfinite(commands).all():
            raise ValueError(
                f"{self.task}: actions of environments {[i for i, a in zip(chosen, commands, strict=True) if not np.isfinite(a).all()]} are not finite"
            )
        over = [index for index in chosen if not self._running[index]]
        if over:
            raise ValueError(f"{self.task}: no episode is under way in environments {over}; reset them first")
        results = self._ask("step", dict(zip(chosen, commands, strict=True)))
        rewards, terminated, truncated, infos = zip(*results, strict=True) if results else ((), (), (), ())
        ended = np.array(terminated, bool) | np.array(truncated, bool)
        self._running[np.array(chosen, int)[ended]] = False
        return (
            self._observations(chosen),
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

    def _observations(self, chosen: list[int]) -> dict[str, np.ndarray]:
        return {key: view[chosen] for key, view in self._views.items()}  # a list as index copies

    def _ask(self, command: str, work: dict[int, Any]) -> list[Any]:
        """Send each worker its share of `work` (environment -> argument), wait for all, and return the answers in `work`'s order."""
        shares: dict[int, dict[int, Any]] = {}
        for index, argument in work.items():
            shares.setdefault(self._worker_of(index).index, {})[index] = argument
        for number, share in shares.items():
            try:
                self._workers[number].pipe.send((command, share))
            except OSError:
                self._fail(self._workers[number])
        answers: dict[int, Any] = {}
        try:
            for number in shares:
                answers.update(self._receive(self._workers[number]))
        except BaseException:
            # Also on Ctrl-C: answers left in the pipes would be taken for those of the next command.
            self.close()
            raise
        return [answers[index] for index in work]

    def _receive(self, worker: _Worker) -> dict[int, Any]:
        ready = multiprocessing.connection.wait([worker.pipe, worker.process.sentinel])
        try:
            if worker.pipe not in ready and not worker.pipe.poll():
                self._fail(worker)
            status, payload = worker.pipe.recv()
        except (EOFError, OSError):
            self._fail(worker)
            raise AssertionError("unreachable") from None
        if status == "error":
            self._fail(worker, payload)
        return payload

    def _fail(self, worker: _Worker, trace: str | None = None) -> None:
        """Close everything and raise the error that names the worker, its task and its episodes."""
        if trace is None:
            worker.process.join(_CLOSE_SECONDS)
            trace = f"The process left no traceback: {_how_it_ended(worker.process.exitcode)}"
        episodes = ", ".join(f"env {index} seed {seed}" for index, seed in sorted(worker.seeds.items()))
        index = worker.index
        self.close()
        raise RuntimeError(f"worker {index} of {self.task} failed (episodes: {episodes or 'none'}).\n{trace.rstrip()}")


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (the machine may be out of memory: use fewer workers)" if name == "SIGKILL" else ""
        return f"it was ended by {name}{hint}."
    return (
        f"its exit code is {exit_code}; what it printed is above. A script that makes a VectorEnv must do so under "
        "`if __name__ == '__main__':`, because each worker imports the script."
    )


def _work(pipe: multiprocessing.connection.Connection, job: _Job) -> None:
    """A worker's main loop; ends when told to or when the parent is gone."""
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    os.environ.update(job.environ)
    views = job.views()
    envs: dict[int, Any] = {}
    first: Any = None

    def env_of(index: int) -> Any:
        nonlocal first
        if index not in envs:
            shared = first.renderer if first is not None and job.spec.cameras else None
            envs[index] = make_env(job.task, renderer=shared, **job.options)
            first = first or envs[index]
        return envs[index]

    def publish(index: int, observation: dict[str, np.ndarray]) -> None:
        for key, value in observation.items():
            views[key][index] = value

    try:
        while True:
            command, share = pipe.recv()
            if command == "close":
                break
            answers: dict[int, Any] = {}
            for index, argument in share.items():
                if command == "reset":
                    observation, answers[index] = env_of(index).reset(seed=argument)
                else:
                    observation, *answers[index] = env_of(index).step(argument)
                publish(index, observation)
            pipe.send(("done", answers))
    except EOFError:
        pass
    except Exception:
        pipe.send(("error", traceback.format_exc()))
    finally:
        # The first environment owns the renderer that the others share.
        for env in reversed(list(envs.values())):
            env.close()

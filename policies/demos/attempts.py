"""One attempt of a task's expert at one seed, and the worker processes that make many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from envs.env import ManipulationEnv
from envs.experts import Expert, make_expert
from envs.tasks import make_env
from policies.demos.hdf5 import Episode
from pretrain.workers import start_worker


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of one attempt.

    Attributes:
        episode: the steps that were made; None where `error` is given.
        success: solved within the horizon.
        initial_state_hash: of the physical state at the start; empty where the reset itself failed.
        seconds: wall time.
        error: the exception's text if the expert or the simulation raised, else empty.
    """

    episode: Episode | None
    success: bool
    initial_state_hash: str
    seconds: float
    error: str = ""

    @property
    def reason(self) -> str:
        """Why it failed, in words; empty for a success."""
        return self.error or ("" if self.success else "not solved within the horizon")


def attempt(env: ManipulationEnv, expert: Expert, seed: int) -> Attempt:
    """Roll the expert out on one seed. What the expert or the simulation raises is a failure with its text, not the end of a long job."""
    start = time.monotonic()
    state_hash = ""
    try:
        observation, info = env.reset(seed=seed)
        state_hash = info["initial_state_hash"]
        expert.reset()
        steps: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, float, bool]] = []
        terminated = truncated = False
        while not (terminated or truncated):
            state = env.state()
            action = np.clip(np.asarray(expert.act(observation), dtype=np.float32), -1.0, 1.0)
            following, reward, terminated, truncated, info = env.step(action)
            steps.append((observation, action, state, float(reward), bool(terminated or truncated)))
            observation = following
    except Exception as error:
        return Attempt(
            episode=None,
            success=False,
            initial_state_hash=state_hash,
            seconds=time.monotonic() - start,
            error=f"{type(error).__name__}: {error}",
        )
    episode = Episode(
        seed=seed,
        observation={key: np.stack([step[0][key] for step in steps]) for key in steps[0][0]},
        actions=np.stack([step[1] for step in steps]),
        states=np.stack([step[2] for step in steps]),
        rewards=np.array([step[3] for step in steps], dtype=np.float32),
        dones=np.array([step[4] for step in steps], dtype=np.int64),
    )
    return Attempt(
        episode=episode,
        success=bool(info["success"]),
        initial_state_hash=state_hash,
        seconds=time.monotonic() - start,
    )


_HELD: dict[str, Any] = {}  # this process's environment and expert, of one task at a time


def held_attempt(task: str, options: dict[str, Any], seed: int) -> Attempt:
    """`attempt` with the environment that this process holds, made anew when the task or the options change."""
    key = (task, repr(sorted(options.items())))
    if _HELD.get("key") != key:
        _let_go()
        env = make_env(task, **options)
        _HELD.update(key=key, env=env, expert=make_expert(task, env))
    return attempt(_HELD["env"], _HELD["expert"], seed)


def _let_go() -> None:
    if "env" in _HELD:
        _HELD["env"].close()
    _HELD.clear()


@contextmanager
def workers(count: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` over `count` spawned processes, or in this one where one is enough.

    Raises:
        RuntimeError: the system ended one of them; the text has the remedy.
    """
    if count == 1:
        try:
            yield map
        finally:
            _let_go()
        return
    try:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=start_worker) as pool:
            yield pool.map
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was ended from outside (most often: no memory left; try fewer workers=). Nothing that was done is lost: "
            "the same command again goes on"
        ) from error

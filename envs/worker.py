"""What runs in a worker process of `envs.vector.VectorEnv`."""

from __future__ import annotations

import faulthandler
import multiprocessing.connection
import os
import signal
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.env import ManipulationEnv
from envs.spec import EnvSpec
from envs.tasks import make_env

NO_ENV = -1


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker must know to make its environments.

    Attributes:
        options: `make_env`'s.
        buffers: an observation key's shared memory, of all environments.
        busy: for each worker the environment that it is at, or NO_ENV; shared.
        environ: environment variables.
    """

    task: str
    options: dict[str, Any]
    n_envs: int
    spec: EnvSpec
    buffers: dict[str, Any]
    busy: Any
    environ: dict[str, str]

    def views(self) -> dict[str, np.ndarray]:
        """The shared observation arrays, [n_envs, ...] each."""
        return {
            key: np.frombuffer(self.buffers[key], dtype=spec.dtype).reshape(self.n_envs, *spec.shape)
            for key, spec in self.spec.observation.items()
        }


def work(pipe: multiprocessing.connection.Connection, job: Job, number: int) -> None:
    """A worker's main loop; ends when told to or when the parent is gone."""
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    os.environ.update(job.environ)
    views = job.views()
    envs: dict[int, ManipulationEnv] = {}
    first: ManipulationEnv | None = None

    def env_of(index: int) -> ManipulationEnv:
        nonlocal first
        if index not in envs:
            shared = first.renderer if first is not None and job.spec.cameras else None
            envs[index] = make_env(job.task, renderer=shared, **job.options)
            first = first or envs[index]
        return envs[index]

    def publish(index: int, observation: dict[str, np.ndarray]) -> None:
        for key, value in observation.items():
            views[key][index] = value

    def do(command: str, index: int, argument: Any) -> Any:
        env = env_of(index)
        if command == "replay":
            seed, actions = argument
            _, info = env.reset(seed=seed, images=False)
            return [info["initial_state_hash"], *(env.step(action, images=False)[1] for action in actions)]
        value, images = argument
        if command == "reset":
            observation, answer = env.reset(seed=value, images=images)
        else:
            observation, *answer = env.step(value, images=images)
        publish(index, observation)
        return answer

    try:
        pipe.send(("ready", None))
        while True:
            command, share = pipe.recv()
            if command == "close":
                break
            answers = {}
            for index, argument in share.items():
                job.busy[number] = index
                answers[index] = do(command, index, argument)
            job.busy[number] = NO_ENV
            pipe.send(("done", answers))
    except (EOFError, ConnectionError):  # the parent is gone, or has closed the pipe
        pass
    except Exception:
        pipe.send(("error", traceback.format_exc()))
    finally:
        # The first environment owns the renderer that the others share.
        for env in reversed(list(envs.values())):
            env.close()


def how_it_ended(exit_code: int | None) -> str:
    """In words, for a process that left no traceback."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (the machine may be out of memory: use fewer workers)" if name == "SIGKILL" else ""
        return f"it was ended by {name}{hint}."
    return (
        f"its exit code is {exit_code}; what it printed is above. A script that makes a VectorEnv must do so under "
        "`if __name__ == '__main__':`, because each worker imports the script."
    )

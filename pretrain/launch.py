"""Runs independent units of work: in this process, in spawned local processes, or on a Ray cluster."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

from pretrain.workers import start_worker

_Result = TypeVar("_Result")
# Work that waits in a queue beyond one unit a worker, so that none waits for the main process.
_QUEUE_PER_WORKER = 2


class LaunchConfig(Protocol):
    """What the settings of a command with units of work hold.

    Attributes:
        launcher: a key of LAUNCHERS.
        workers: processes; 0 = one a core (with Ray: one a core of the cluster); 1 = none but this one.
        ray_address: of a running cluster; "" = start one on this machine.
    """

    @property
    def launcher(self) -> str: ...
    @property
    def workers(self) -> int: ...
    @property
    def ray_address(self) -> str: ...


class Launcher(Protocol):
    """Yields (unit, work(unit)) as they are done, in any order. `work` is picklable, runs in other processes, and may keep
    a model there between units.

    Raises:
        RuntimeError: a worker process died; and whatever `work` raises.
    """

    def __call__(self, work: Callable[[int], _Result], units: Sequence[int]) -> Iterator[tuple[int, _Result]]: ...


def launcher(config: LaunchConfig) -> AbstractContextManager[Launcher]:
    """Holds the workers that the settings ask for, from one stage to the next.

    Raises:
        ValueError: Ray is not installed, or does not answer.
    """
    return LAUNCHERS[config.launcher](config)


@contextmanager
def _local(config: LaunchConfig) -> Iterator[Launcher]:
    workers = config.workers or len(os.sched_getaffinity(0))
    if workers <= 1:
        yield _run_here
        return
    # Spawned and not forked: a CUDA context or a thread pool of this process would not survive a fork.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, context, start_worker)

    def run(work: Callable[[int], _Result], units: Sequence[int]) -> Iterator[tuple[int, _Result]]:
        waiting = list(reversed(units))
        running: dict[Future[_Result], int] = {}
        while waiting or running:
            while waiting and len(running) < workers * _QUEUE_PER_WORKER:
                unit = waiting.pop()
                running[executor.submit(work, unit)] = unit
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()

    try:
        yield run
        executor.shutdown()
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process died (killed, or out of memory?); what was finished is kept: run the same command again, with "
            "fewer workers if memory is short"
        ) from None
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
            process.join()


def _run_here(work: Callable[[int], _Result], units: Sequence[int]) -> Iterator[tuple[int, _Result]]:
    for unit in units:
        yield unit, work(unit)


@contextmanager
def _ray(config: LaunchConfig) -> Iterator[Launcher]:
    try:
        import ray
    except ImportError:
        raise ValueError("launcher=ray needs Ray, which is not installed: pip install 'egoarm[cluster]'") from None
    started = not ray.is_initialized()
    if started:
        try:
            if config.ray_address:
                ray.init(address=config.ray_address, log_to_driver=False)
            else:
                ray.init(num_cpus=config.workers or None, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"ray_address={config.ray_address!r}: no Ray cluster there: {error}") from error
    workers = config.workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)

    def run(work: Callable[[int], _Result], units: Sequence[int]) -> Iterator[tuple[int, _Result]]:
        # A plain function, since Ray takes no callable objects; one more try, for a node that was lost.
        task: Any = ray.remote(max_retries=1)(_call)
        shared = ray.put(work)
        waiting = list(reversed(units))
        running: dict[Any, int] = {}
        while waiting or running:
            while waiting and len(running) < workers * _QUEUE_PER_WORKER:
                unit = waiting.pop()
                running[task.remote(shared, unit)] = unit
            done, _ = ray.wait(list(running))
            for reference in done:
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    raise RuntimeError(f"Ray lost a worker: {error}; run the same command again") from None
                yield running.pop(reference), result

    try:
        yield run
    finally:
        if started:
            ray.shutdown()


def _call(work: Callable[[int], _Result], unit: int) -> _Result:
    return work(unit)


# name -> holds the workers. The names are those of the setting launcher=.
LAUNCHERS: dict[str, Callable[[LaunchConfig], AbstractContextManager[Launcher]]] = {"local": _local, "ray": _ray}

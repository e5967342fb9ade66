"""Runs independent units of work: in this process, in spawned local processes, or on a Ray cluster."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pretrain.annotate.config import AnnotateConfig
from pretrain.workers import start_worker

_Result = TypeVar("_Result")
# Work that waits in a queue beyond one unit a worker, so that none waits for the main process.
_QUEUE_PER_WORKER = 2


def run_units(
    work: Callable[[int], _Result], units: Sequence[int], config: AnnotateConfig
) -> Iterator[tuple[int, _Result]]:
    """Yields (unit, work(unit)) as they are done, in any order.

    Args:
        work: picklable; runs in other processes. It may keep a model in its process between units.
        units: what to call it with.

    Raises:
        ValueError: Ray is not installed, or does not answer; or what `work` raises.
        RuntimeError: a worker process died.
    """
    return LAUNCHERS[config.launcher](work, units, config)


def _run_local(
    work: Callable[[int], _Result], units: Sequence[int], config: AnnotateConfig
) -> Iterator[tuple[int, _Result]]:
    workers = min(config.workers or len(os.sched_getaffinity(0)), len(units))
    if workers <= 1:
        for unit in units:
            yield unit, work(unit)
        return
    # Spawned and not forked: a CUDA context or a thread pool of this process would not survive a fork.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, context, start_worker)
    try:
        waiting = list(units)
        running = {}
        while waiting or running:
            while waiting and len(running) < workers * _QUEUE_PER_WORKER:
                unit = waiting.pop(0)
                running[executor.submit(work, unit)] = unit
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
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


def _run_ray(
    work: Callable[[int], _Result], units: Sequence[int], config: AnnotateConfig
) -> Iterator[tuple[int, _Result]]:
    try:
        import ray
    except ImportError:
        raise ValueError("launcher=ray needs Ray, which is not installed: pip install 'egoarm[cluster]'") from None
    started = not ray.is_initialized()
    if started:
        # Ray's own handler would swallow Ctrl-C in the middle of a message.
        handler = signal.getsignal(signal.SIGINT)
        try:
            if config.ray_address:
                ray.init(address=config.ray_address, log_to_driver=False)
            else:
                ray.init(num_cpus=config.workers or None, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, RuntimeError) as error:
            raise ValueError(f"ray_address={config.ray_address!r}: no Ray cluster there: {error}") from error
        signal.signal(signal.SIGINT, handler)
    try:
        workers = config.workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        task: Any = ray.remote(max_retries=1)(work)
        waiting = list(units)
        running: dict[Any, int] = {}
        while waiting or running:
            while waiting and len(running) < workers * _QUEUE_PER_WORKER:
                unit = waiting.pop(0)
                running[task.remote(unit)] = unit
            done, _ = ray.wait(list(running))
            for reference in done:
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    raise RuntimeError(f"Ray lost a worker: {error}; run the same command again") from None
                yield running.pop(reference), result
    finally:
        if started:
            ray.shutdown()


# name -> runs the units. The names are those of the setting launcher=.
LAUNCHERS: dict[str, Callable[..., Iterator[Any]]] = {"local": _run_local, "ray": _run_ray}

"""Which clips make up which batch, and loading them ahead of the training step.

Everything is a function of (seed, step, place in the batch), so a run that is stopped anywhere and resumed trains on
exactly the batches it would have seen. No generator is carried from step to step.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

# (index of the clip in the data set, seed of its augmentation and choices)
SampleId = tuple[int, int]
LoadBatch = Callable[[Sequence[SampleId]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Shuffled epochs without replacement; what does not fill a last batch of an epoch sits that epoch out.

    Attributes:
        indices: the clips to train on.
        batch_size: over all processes together.
    """

    indices: tuple[int, ...]
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"trainer.batch_size: expected at least 1, got {self.batch_size}")
        if len(self.indices) < self.batch_size:
            raise ValueError(
                f"trainer.batch_size={self.batch_size} is more than the {len(self.indices)} clips there are to train "
                "on: make more clips, or take a smaller batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.indices) // self.batch_size

    def at(self, step: int, *, rank: int = 0, world_size: int = 1) -> list[SampleId]:
        """The part of step's batch that belongs to process `rank`."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.indices))
        share = self.batch_size // world_size
        first = batch * self.batch_size + rank * share
        return [
            (self.indices[order[place]], self.sample_seed(step, place - batch * self.batch_size))
            for place in range(first, first + share)
        ]

    def sample_seed(self, step: int, place: int) -> int:
        """Injective in (step, place) for a seed, and apart for different seeds."""
        return (self.seed << 64) + step * self.batch_size + place


def stream_batches(
    load: LoadBatch, plans: Sequence[Sequence[SampleId]], *, workers: int, prefetch: int
) -> Iterator[dict[str, Any]]:
    """Yields load(plan) for each plan in order, prepared ahead by a thread (workers = 0) or by worker processes; with prefetch = 0 and no
    workers each is made when it is asked for, which is best where a batch costs less than the threads' turns.

    A thread is enough while a batch is decoded faster than it is trained on, which on a CPU is the rule; decoding lets
    go of the interpreter, so it costs the step little. Worker processes are spawned, since a fork of a process that has
    run threaded kernels can hang.
    """
    if workers:
        loader = DataLoader(
            _Plans(load, plans),
            batch_size=None,
            shuffle=False,
            num_workers=workers,
            prefetch_factor=max(1, prefetch),
            multiprocessing_context="spawn",
        )
        yield from loader
    elif prefetch:
        yield from _threaded(load, plans, prefetch)
    else:
        yield from map(load, plans)


class _Plans(Dataset[dict[str, Any]]):
    def __init__(self, load: LoadBatch, plans: Sequence[Sequence[SampleId]]) -> None:
        self.load = load
        self.plans = plans

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.load(self.plans[index])


def _threaded(load: LoadBatch, plans: Sequence[Sequence[SampleId]], prefetch: int) -> Iterator[dict[str, Any]]:
    ready: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue(maxsize=prefetch)
    stopped = threading.Event()

    def put(item: dict[str, Any] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for plan in plans:
                if stopped.is_set():
                    return
                put(load(plan))
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()

"""The one training loop: any model with a loss, on a CPU, a GPU or many, resumable to the bit.

Killed at any moment and started again by the same command, a run ends with the weights of one that was never stopped:
exactly so on a CPU with a fixed number of threads, and up to a GPU's own non-determinism elsewhere.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from pretrain.artifact import load_artifact
from pretrain.batches import BatchPlan, LoadBatch, stream_batches
from pretrain.checkpoints import Checkpoints, Metrics, Progress, open_run, refuse_foreign, run_lock
from pretrain.precision import multiplies_bf16

ACCELERATORS = ("auto", "cpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp")
PRECISIONS = ("auto", "fast", "32-true", "bf16-mixed", "16-mixed")

# Fields that change speed or what is written down, not the weights: a run may be resumed with others.
FREE_TRAINER_FIELDS = ("checkpoint_every", "keep_checkpoints", "log_every", "prefetch", "workers")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How to train, whatever the model.

    Attributes:
        steps: optimizer steps; 0 saves the network as it is initialised.
        batch_size: clips a step, over all processes together.
        micro_batch: clips a process holds in memory at a time, for the same loss and gradient at the price of a second
            forward pass of the towers; 0 = all of its share at once.
        learning_rate: its peak, after `warmup_steps` of linear rise; then a cosine down to `final_learning_rate`.
        weight_decay: on matrices only, not on biases, norms, positions and embeddings of single tokens.
        gradient_clip: largest norm of the gradient; 0 = no clipping.
        accelerator, devices, num_nodes, strategy, precision: as Lightning Fabric takes them; precision "auto" is bf16
            autocast on a GPU that has it and fp32 elsewhere, "fast" also on a CPU that multiplies bf16 (AMX or AVX-512
            BF16), where a ViT then trains faster (on other CPUs bf16 is many times slower than fp32).
        threads: CPU threads of the arithmetic; 0 leaves torch's default. A fixed number makes a CPU run exact.
        workers: processes that load batches; 0 = a thread. prefetch: batches ready ahead (a worker); 0 without
            workers: none, each is made when it is its turn.
        checkpoint_every, log_every: in steps. keep_checkpoints: the newest that are kept.
    """

    steps: int = 2000
    batch_size: int = 32
    micro_batch: int = 0
    learning_rate: float = 5e-4
    final_learning_rate: float = 1e-6
    warmup_steps: int = 100
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    gradient_clip: float = 1.0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    threads: int = 0
    workers: int = 0
    prefetch: int = 2
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        at_least: dict[str, int] = dict.fromkeys(("steps", "warmup_steps", "threads", "workers", "micro_batch"), 0)
        at_least |= dict.fromkeys(("gradient_clip", "weight_decay"), 0)
        at_least |= dict.fromkeys(("batch_size", "devices", "num_nodes", "keep_checkpoints"), 1)
        at_least["prefetch"] = 0
        at_least |= dict.fromkeys(("checkpoint_every", "log_every"), 1)
        for field, least in at_least.items():
            if getattr(self, field) < least:
                raise ValueError(f"trainer.{field}: expected at least {least}, got {getattr(self, field)}")
        if self.learning_rate <= 0 or not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                "trainer.learning_rate: expected 0 <= final_learning_rate <= learning_rate and learning_rate > 0, got "
                f"{self.final_learning_rate} and {self.learning_rate}"
            )
        for field, known in (("accelerator", ACCELERATORS), ("strategy", STRATEGIES), ("precision", PRECISIONS)):
            if getattr(self, field) not in known:
                raise ValueError(f"trainer.{field}: expected one of {', '.join(known)}, got {getattr(self, field)!r}")
        for field in ("beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"trainer.{field}: expected 0 <= {field} < 1, got {getattr(self, field)}")
        if self.batch_size % (self.devices * self.num_nodes):
            raise ValueError(
                f"trainer.batch_size: {self.batch_size} does not divide by the {self.devices * self.num_nodes} processes"
            )

    def learning_rate_at(self, step: int) -> float:
        """Of the step with this index (0 is the first)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        fraction = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, fraction))) / 2
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * cosine


# (model as set up for training, batch on the device) -> (loss, scalars to log)
ComputeLoss = Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Mapping[str, Tensor]]]
# (the processes, model as set up for training, batch as loaded) -> scalars to log; leaves the step's gradients in the model
BackwardPass = Callable[[Fabric, nn.Module, dict[str, Any]], Mapping[str, Tensor]]


def make_fabric(trainer: TrainerConfig) -> Fabric:
    """The processes and devices of a run, started. Raises ValueError for an accelerator that is not there."""
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    if trainer.accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator=cuda: no CUDA device is visible; use cpu, or auto")
    precision = trainer.precision
    if precision in ("auto", "fast"):
        on_gpu = trainer.accelerator in ("auto", "cuda") and torch.cuda.is_available()
        has_bf16 = multiplies_bf16("cuda") if on_gpu else precision == "fast" and multiplies_bf16("cpu")
        precision = "bf16-mixed" if has_bf16 else "32-true"
    fabric = Fabric(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=trainer.strategy,
        precision=precision,
    )
    fabric.launch()
    return fabric


def make_optimizer(model: nn.Module, trainer: TrainerConfig) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay on matrices. What the model does not train is left out."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_table = any(part in name for part in ("position", "token", "query_"))
            (decayed if parameter.ndim > 1 and not is_table else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": trainer.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=trainer.learning_rate,
        betas=(trainer.beta1, trainer.beta2),
        fused=True,
    )


@contextmanager
def held_run(
    fabric: Fabric,
    directory: Path,
    identity: Mapping[str, Any],
    *,
    artifact: str,
    trainer: TrainerConfig,
    title: str,
    may_differ: Collection[str] = (),
    overwrite: bool = False,
    belongings: Sequence[str] = (),
) -> Iterator[bool]:
    """Holds a run's directory while it trains; gives whether there is anything left to do, the same in every process.

    Args:
        identity: what the run is, nested plain values; FREE_TRAINER_FIELDS of its "trainer" and `may_differ` may change
            from one start to the next.
        artifact: name within the directory of what a run writes last: whole and of the last step, it means that all is done.
        title: of the line that says so, e.g. "pretrain egodtm-tiny".
        overwrite, belongings: as in `open_run`; `artifact` and the logs belong to every run.

    Raises:
        ValueError: the directory holds something else, another run, or is being trained by another process.
    """
    with ExitStack() as held:
        finished = False
        if fabric.is_global_zero:
            refuse_foreign(directory)
            held.enter_context(run_lock(directory))
            open_run(
                directory,
                identity,
                may_differ={*may_differ, *(f"trainer.{name}" for name in FREE_TRAINER_FIELDS)},
                overwrite=overwrite,
                belongings=(artifact, *belongings, "metrics.jsonl", "tensorboard"),
            )
            finished = _is_finished(directory / artifact, trainer.steps)
            if finished:
                print(f"{title}: already finished, {trainer.steps} steps: {directory / artifact}")
        # The other processes wait here until the directory is in order.
        yield not fabric.broadcast(finished, src=0)


def _is_finished(artifact: Path, steps: int) -> bool:
    if not artifact.exists():
        return False
    try:
        return load_artifact(artifact).provenance["step"] == steps
    except ValueError as error:
        print(f"{error}: making it again from the last checkpoint")
        return False


def fit(
    *,
    fabric: Fabric,
    model: nn.Module,
    compute_loss: ComputeLoss,
    backward: BackwardPass | None = None,
    load: LoadBatch,
    plan: BatchPlan,
    trainer: TrainerConfig,
    directory: Path,
    title: str,
    milestones: Collection[int] = (),
    on_milestone: Callable[[Progress], None] = lambda progress: None,
    after_step: Callable[[], None] = lambda: None,
) -> Progress:
    """Trains `model` in place up to trainer.steps, from the newest checkpoint in `directory` if there is one.

    Args:
        compute_loss: called with the model as Fabric set it up and a batch on the device.
        backward: in place of compute_loss and its plain backward pass, where trainer.micro_batch asks for one.
        load: makes the batch of a list of sample ids; a pure function of them.
        milestones: steps after which the first process calls `on_milestone`, before that step's checkpoint is written: a
            run killed in between does it again.
        after_step: called after each optimizer step, before anything is saved. What it changes must be in the model's state, as an
            average of the weights is, so that a resumed run goes on with it.

    Raises:
        KeyboardInterrupt: on Ctrl-C or a polite kill, after a checkpoint was written.
        RuntimeError: the loss is not finite.
    """
    if trainer.micro_batch and backward is None:
        raise ValueError(
            f"trainer.micro_batch={trainer.micro_batch}: {title} trains on whole batches only; set it to 0"
        )
    backward = backward or partial(_plain_backward, compute_loss)
    checkpoints = Checkpoints(directory, keep=trainer.keep_checkpoints)
    model.to(fabric.device)
    optimizer = make_optimizer(model, trainer)
    progress = checkpoints.restore(model, optimizer)
    if progress.step and fabric.is_global_zero:
        print(f"{title}: going on from step {progress.step} of {trainer.steps}")
    if progress.step >= trainer.steps:
        return progress
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    wrapped.train()
    plans = _LazyPlans(plan, range(progress.step, trainer.steps), fabric.global_rank, fabric.world_size)
    metrics = Metrics(directory, first_step=progress.step) if fabric.is_global_zero else None
    began, seconds_before = time.monotonic(), progress.wall_time_s
    bar = tqdm(
        total=trainer.steps,
        initial=progress.step,
        desc=title,
        unit="step",
        disable=None if fabric.is_global_zero else True,
    )
    try:
        with _stop_requests() as stop:
            batches = stream_batches(load, plans, workers=trainer.workers, prefetch=trainer.prefetch)
            for step, batch in zip(range(progress.step, trainer.steps), batches, strict=False):
                # Whatever a model draws (dropout) is a function of the step too, so no generator outlives one.
                _seed_draws(_step_seed(plan.seed, step, fabric.global_rank), fabric.device)
                for group in optimizer.param_groups:
                    group["lr"] = trainer.learning_rate_at(step)
                wrapped_optimizer.zero_grad(set_to_none=True)
                scalars = backward(fabric, wrapped, batch)
                if trainer.gradient_clip:
                    norm = fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=trainer.gradient_clip)
                    scalars = {**scalars, "gradient_norm": norm if isinstance(norm, Tensor) else torch.zeros(())}
                wrapped_optimizer.step()
                after_step()
                done, elapsed = step + 1, time.monotonic() - began
                progress = Progress(step=done, wall_time_s=seconds_before + elapsed)
                last = done == trainer.steps
                # Asked once a step: a stop that is asked for later than here has its checkpoint after the next step.
                stopping = _anyone(fabric, stop.is_set()) and not last
                is_due = done % trainer.checkpoint_every == 0 or last or done in milestones or stopping
                if done % trainer.log_every == 0 or is_due:
                    values = {name: float(value) for name, value in scalars.items()}
                    _require_finite(values, step, directory)
                    if metrics is not None:
                        rate = (done - plans.steps.start) * plan.batch_size / elapsed
                        metrics.write(
                            done,
                            {**values, "learning_rate": trainer.learning_rate_at(step), "clips_per_s": round(rate, 3)},
                        )
                    bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
                bar.update(1)
                if is_due:
                    if done in milestones and fabric.is_global_zero:
                        on_milestone(progress)
                    if fabric.is_global_zero:
                        checkpoints.save(model, optimizer, progress, _record(plan, step))
                    fabric.barrier()
                if stopping:
                    raise KeyboardInterrupt
    finally:
        bar.close()
        if metrics is not None:
            metrics.close()
    return progress


def _plain_backward(
    compute_loss: ComputeLoss, fabric: Fabric, wrapped: nn.Module, batch: dict[str, Any]
) -> Mapping[str, Tensor]:
    loss, scalars = compute_loss(wrapped, fabric.to_device(batch))
    fabric.backward(loss)
    return scalars


class _LazyPlans(Sequence[list[tuple[int, int]]]):
    """The sample ids of a range of steps, made when asked for."""

    def __init__(self, plan: BatchPlan, steps: range, rank: int, world_size: int) -> None:
        self.plan, self.steps, self.rank, self.world_size = plan, steps, rank, world_size

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: Any) -> Any:
        return self.plan.at(self.steps[index], rank=self.rank, world_size=self.world_size)


def _seed_draws(seed: int, device: torch.device) -> None:
    """What torch.manual_seed does, for the generators that are used here: it asks every back-end, which takes as long as a small step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1


def _record(plan: BatchPlan, step: int) -> dict[str, Any]:
    epoch, batch = divmod(step + 1, plan.steps_per_epoch)
    return {"seed": plan.seed, "next_batch": {"epoch": epoch, "batch": batch}}


def _anyone(fabric: Fabric, here: bool) -> bool:
    """Whether any process was asked to stop: all must leave the loop at the same step."""
    if fabric.world_size == 1:
        return here
    asked = fabric.all_reduce(torch.tensor(float(here), device=fabric.device), reduce_op="sum")
    return isinstance(asked, Tensor) and bool(asked > 0)


def _require_finite(values: Mapping[str, float], step: int, directory: Path) -> None:
    if bad := [name for name, value in values.items() if not math.isfinite(value)]:
        raise RuntimeError(
            f"{', '.join(bad)} not finite at step {step}: training has diverged. Lower trainer.learning_rate or raise "
            f"trainer.warmup_steps; the last checkpoint in {directory} is from before"
        )


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Within it, the first Ctrl-C or SIGTERM sets the event, for a stop between two steps; a second Ctrl-C is not waited
    for. Outside the main thread, where signals cannot be caught, the event is simply never set."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The cheap inner loop: what a ridge regression reads of hands and objects from an encoder's frozen tokens, in minutes on a CPU.

Axes:  S scenes, n rows (query frames), T frames, N tokens, D width, C columns of labels.

Every scene is held out once (cross-fitting by scene), so each is a test item and two encoders are compared scene by scene.
Until the probe command has this benchmark, run it as a module:
    python -m pretrain.downstream.spatial ENCODER_OR_RUN... --store DIR [--tasks metaworld/drawer-open ...]
"""

import argparse
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, Shaped
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pretrain.artifact import SPEC_FILE, load_artifact
from pretrain.clips.store import open_store
from pretrain.downstream.results import BenchmarkResult, Metric
from pretrain.downstream.spatial_ridge import cross_fit, fold_of_groups, reduce_channels, standardised_gram
from pretrain.downstream.spatial_scores import (
    SUMMARY,
    SceneErrors,
    compare_spatial,
    contact_metrics,
    scene_errors,
    scene_weights,
    summary_metric,
    target_metrics,
    varying_targets,
)
from pretrain.downstream.spatial_targets import POSITION, SpatialSource, clip_source
from pretrain.encoder import VideoEncoder, load_encoder
from pretrain.encoder_table import RANDOM_PREFIX, shipped_directory

BENCHMARK = "spatial"
PROTOCOL_VERSION = 1
GRID_CHANNELS = 16  # as policies' grid readout has


@dataclass(frozen=True, kw_only=True)
class SpatialData:
    """The sources of one probe; each is fitted and tested by itself."""

    sources: tuple[SpatialSource, ...]

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"sources of the spatial probe: expected at least one, names once each, got {names}")


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an encoder makes of all rows of a source. Tokens are stored as float16."""

    pooled: Float32[np.ndarray, "n D"]
    tokens: Shaped[np.ndarray, "n N D"]
    newest: int  # how many of the last tokens are the newest frame's


Gram = Callable[[Features, Bool[np.ndarray, " n"], int], Float64[np.ndarray, "n n"]]


def _gram_pooled(features: Features, train: np.ndarray, seed: int) -> np.ndarray:
    return standardised_gram(features.pooled, train)


def _gram_grid(features: Features, train: np.ndarray, seed: int) -> np.ndarray:
    newest = features.tokens[:, -features.newest :]
    return standardised_gram(reduce_channels(newest, train, GRID_CHANNELS, seed), train)


def _gram_flat(features: Features, train: np.ndarray, seed: int) -> np.ndarray:
    return standardised_gram(features.tokens.reshape(len(features.tokens), -1), train)


# pooled: the encoder's own pooled feature. grid: the newest frame's tokens, 16 principal channels each, side by side, as a
# policy's grid readout. flat: all tokens of all frames side by side.
POOLINGS: dict[str, Gram] = {"pooled": _gram_pooled, "grid": _gram_grid, "flat": _gram_flat}


def spatial_probe(
    encoder: VideoEncoder,
    *,
    data: SpatialData,
    seed: int = 0,
    folds: int = 4,
    resamples: int = 2000,
    batch: int = 32,
    device: str = "cpu",
) -> BenchmarkResult:
    """Probes one encoder.

    Args:
        seed: of the folds and the resampling.
        folds: each scene is predicted by a ridge fitted on the scenes of the other folds.
        resamples: bootstrap resamples of the scenes.
        batch: clips encoded at once, on `device`.

    Returns:
        Metrics, in this order: the summaries ("spatial error": geometric mean over targets of RMSE / RMSE of the training mean)
        over all sources and of each, by pooling; then R2 and RMSE of each target, AUROC of each contact.

    Raises:
        ValueError: a source has fewer scenes than folds, or an encoder gives features that are not finite.
    """

    def predict(source: SpatialSource, fold: np.ndarray) -> Predictions:
        features = encode(encoder, source, batch=batch, device=device)
        return {
            pooling: cross_fit(
                lambda train, gram=gram: gram(features, train, seed), source.values, source.scene_of, fold
            )
            for pooling, gram in POOLINGS.items()
        }

    name, sha256 = encoder.spec.name, encoder.spec.weights_sha256
    return score(name, sha256, predict, data=data, seed=seed, folds=folds, resamples=resamples)


# By pooling: predictions of rows whose scene was held out, and the mean predictor's.
Predictions = Mapping[str, tuple[Float64[np.ndarray, "n C"], Float64[np.ndarray, "n C"]]]


def score(
    name: str,
    sha256: str,
    predict: Callable[[SpatialSource, Int64[np.ndarray, " n"]], Predictions],
    *,
    data: SpatialData,
    seed: int,
    folds: int,
    resamples: int,
) -> BenchmarkResult:
    """The figures of whatever predicts: `predict` gets a source and the fold that holds each of its rows out."""
    metrics: list[Metric] = []
    errors: dict[str, dict[str, SceneErrors]] = {pooling: {} for pooling in POOLINGS}
    weights: dict[str, np.ndarray] = {}
    for number, source in enumerate(data.sources):
        fold = fold_of_groups(len(source.scenes), folds, seed)[source.scene_of]
        weights[source.name] = scene_weights(len(source.scenes), resamples, seed + number)
        targets = varying_targets(source)
        for pooling, (predicted, mean) in predict(source, fold).items():
            own = scene_errors(source, targets, predicted, mean)
            errors[pooling][source.name] = own
            metrics += target_metrics(source.name, pooling, own, weights[source.name])
            metrics += contact_metrics(source, targets, pooling, predicted - mean, weights[source.name])
    summaries = []
    if len(data.sources) > 1:
        summaries += [summary_metric("all", pooling, errors[pooling], weights) for pooling in POOLINGS]
    for source in (source.name for source in data.sources):
        summaries += [
            summary_metric(source, pooling, {source: errors[pooling][source]}, weights) for pooling in POOLINGS
        ]
    return BenchmarkResult(
        benchmark=BENCHMARK,
        encoder=name,
        encoder_sha256=sha256,
        metrics=(*summaries, *metrics),
        protocol=_protocol(data, seed=seed, folds=folds),
        notes=_notes(data),
    )


@torch.inference_mode()
def encode(encoder: VideoEncoder, source: SpatialSource, *, batch: int = 32, device: str = "cpu") -> Features:
    """Frozen features of all rows of a source, in order."""
    encoder = encoder.to(device).eval()
    spec = encoder.spec
    rows = len(source.scene_of)
    pooled = np.empty((rows, spec.embed_dim), np.float32)
    tokens = np.empty((rows, spec.tokens, spec.embed_dim), np.float16)
    waiting: list[np.ndarray] = []
    done = 0

    def flush() -> None:
        nonlocal done, waiting
        video = torch.from_numpy(np.concatenate(waiting)).to(device)
        output = encoder(encoder.preprocess(video))
        stop = done + len(video)
        pooled[done:stop] = output.pooled.float().cpu().numpy()
        tokens[done:stop] = output.tokens.float().cpu().numpy()
        done, waiting = stop, []

    for scene in tqdm(range(len(source.scenes)), desc=f"{spec.name} on {source.name}", unit="scene", disable=None):
        waiting.append(source.windows(scene, spec.frames, spec.fps))
        if sum(map(len, waiting)) >= batch:
            flush()
    if waiting:
        flush()
    assert done == rows
    if not (np.isfinite(pooled).all() and np.isfinite(tokens).all()):
        raise ValueError(
            f"encoder {spec.name!r}: its features on {source.name} are not finite (or beyond float16's 65,504): "
            "its weights are damaged or its training diverged"
        )
    return Features(pooled=pooled, tokens=tokens, newest=spec.grid[1] * spec.grid[2])


def _protocol(data: SpatialData, *, seed: int, folds: int) -> dict[str, Any]:
    return {
        "version": PROTOCOL_VERSION,
        "seed": seed,
        "folds": folds,
        "poolings": list(POOLINGS),
        "grid_channels": GRID_CHANNELS,
        "position_targets": {
            source.name: [target.name for target in varying_targets(source) if target.kind == POSITION]
            for source in data.sources
        },
        "sources": {
            source.name: dict(source.identity)
            | {
                "rows": len(source.scene_of),
                # Frames are the simulator's or the store's; the labels tell whether they are the same ones.
                "labels_sha256": hashlib.sha256(np.round(source.values, 6).tobytes()).hexdigest(),
            }
            for source in data.sources
        },
    }


def _notes(data: SpatialData) -> tuple[str, ...]:
    notes = [
        "1 = the training scenes' mean, 0 = exact; every scene is predicted by a ridge that has not seen it; 95 % intervals "
        "by a bootstrap over scenes"
    ]
    for source in data.sources:
        kept = {target.name for target in varying_targets(source)}
        if dropped := [target.name for target in source.targets if target.name not in kept]:
            notes.append(f"{source.name}: left out, because it does not vary enough: {', '.join(dropped)}")
    return tuple(notes)


# --------------------------------------------------------------------------------------------------------- as a module


def find_encoder(name: str) -> str:
    """The name for `load_encoder` of an encoder, or of a pretraining run, whose encoder it is."""
    prefix = RANDOM_PREFIX if name.startswith(RANDOM_PREFIX) else ""
    run = Path(name.removeprefix(prefix)) / "encoder"
    return f"{prefix}{run}" if run.is_dir() else name


def training_note(name: str, data: SpatialData) -> str:
    """A warning where an encoder's artifact says that it was trained on the store it is probed on; else empty."""
    path = shipped_directory(name) or Path(name)
    if name.startswith(RANDOM_PREFIX) or not (path / SPEC_FILE).is_file():
        return ""
    trained_on = (load_artifact(path).provenance.get("data") or {}).get("clips")
    if trained_on not in [source.identity.get("manifest_sha256") for source in data.sources] or trained_on is None:
        return ""
    return f"{name} was pretrained on these clips: its figures on them are not of held-out scenes"


def print_results(results: Sequence[BenchmarkResult], console: Console) -> None:
    """Summaries side by side, then each target's R2 (AUROC for contacts) and its error under one pooling a column group."""
    first = results[0]
    table = Table(title="spatial probe: error / error of the mean predictor (1.0), smaller is better")
    for heading in ("figure", *(result.encoder for result in results)):
        table.add_column(heading, overflow="fold")
    for rows in zip(*(_summaries(result) for result in results), strict=True):
        table.add_row(rows[0].name, *(f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in rows))
    console.print(table)
    detail = Table(title="each target: RMSE (R2); contacts: AUROC")
    for heading in ("target", "mean predictor", *(result.encoder for result in results)):
        detail.add_column(heading, overflow="fold")
    by_name = [{metric.name: metric for metric in result.metrics} for result in results]
    for metric in first.metrics:
        if metric.name.endswith("AUROC"):
            cells = [f"{own[metric.name].value:.2f}" for own in by_name]
            detail.add_row(metric.name, f"{metric.chance:.2f}", *cells)
        elif metric.name.endswith("RMSE"):
            r2 = metric.name.removesuffix("RMSE") + "R2"
            cells = [f"{own[metric.name].value:.1f} ({own[r2].value:.2f})" for own in by_name]
            detail.add_row(f"{metric.name}, {metric.unit}", f"{metric.chance:.1f}", *cells)
    console.print(detail)
    for result in results[1:]:
        parts = [
            f"{row.name} {row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in compare_spatial(first, result)
        ]
        console.print(f"error of {first.encoder} / {result.encoder}, paired by scene: " + "; ".join(parts))
    for note in first.notes:
        console.print(note)


def _summaries(result: BenchmarkResult) -> list[Metric]:
    return [metric for metric in result.metrics if SUMMARY in metric.name]


def main(arguments: Sequence[str] | None = None) -> None:
    """Probes the encoders given, and 16x16 pixels, and prints their tables and the paired ratios to the first."""
    parser = argparse.ArgumentParser(prog="python -m pretrain.downstream.spatial", description=__doc__)
    parser.add_argument(
        "encoders", nargs="+", help="names or artifacts of encoders, or directories of pretraining runs"
    )
    parser.add_argument("--store", help="clip store with depth, segmentation and contact")
    parser.add_argument("--clips", type=int, help="clips to take of it; all when left out")
    parser.add_argument("--first", type=int, default=0, help="first clip")
    parser.add_argument("--queries", type=int, default=1, help="frames asked about a clip")
    parser.add_argument("--tasks", nargs="*", default=[], help="tasks of Meta-World, e.g. metaworld/drawer-open")
    parser.add_argument("--level", default="varied-2", help="appearance of the robot frames")
    parser.add_argument("--episodes", type=int, default=80, help="of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the folds, and of random encoders")
    parser.add_argument(
        "--ceiling",
        type=int,
        default=0,
        metavar="STEPS",
        help="also train a small conv net on the labels, for so many steps",
    )
    parser.add_argument("--cache", default="runs/cache/spatial", help="where robot frames are kept")
    options = parser.parse_args(arguments)
    sources = []
    start = time.perf_counter()
    if options.store:
        store = open_store(options.store)
        taken = range(options.first, len(store) if options.clips is None else options.first + options.clips)
        sources.append(clip_source(store, indices=taken, queries=options.queries))
    if options.tasks:
        from pretrain.downstream.robot_frames import RobotFramesConfig, robot_source

        for task in options.tasks:
            config = RobotFramesConfig(task=task, level=options.level, episodes=options.episodes)
            sources.append(robot_source(config, options.cache))
    if not sources:
        raise ValueError("nothing to probe on: give --store DIR, --tasks TASK..., or both")
    data = SpatialData(sources=tuple(sources))
    console = Console(width=140, highlight=False)
    console.print(
        f"data: {sum(len(source.scene_of) for source in sources)} frames, {time.perf_counter() - start:.0f} s"
    )
    results = []
    for name in dict.fromkeys([*map(find_encoder, options.encoders), "pixels-16x16"]):
        encoder = load_encoder(name, seed=options.seed)
        start, busy = time.perf_counter(), time.process_time()
        result = spatial_probe(encoder, data=data, seed=options.seed)
        results.append(dataclasses.replace(result, encoder=name))
        console.print(f"{name}: {time.perf_counter() - start:.0f} s ({time.process_time() - busy:.0f} s of one core)")
        if note := training_note(name, data):
            console.print(f"[bold]WARNING: {note}[/bold]")
    if options.ceiling:
        from pretrain.downstream.spatial_ceiling import conv_ceiling

        start = time.perf_counter()
        results.append(conv_ceiling(data, steps=options.ceiling, seed=options.seed))
        console.print(f"{results[-1].encoder}: {time.perf_counter() - start:.0f} s")
    print_results(results, console)


if __name__ == "__main__":
    main()

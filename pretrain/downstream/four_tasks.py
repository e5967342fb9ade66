"""EgoM2P's four tasks: gaze, camera trajectory and depth from video, and video from depth, beside what needs no model.

A predictor is anything with `predict`; every method is scored on the same clips with the same truth, each task is a benchmark of
its own ("four-tasks gaze", ...) and each method a column, so that `pretrain.downstream.comparison` pairs, prints and keeps them
as it does all others.

Axes: B clips, T video frames, P samples of a sequence, S side of the central square in pixels.
"""

import dataclasses
import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from pretrain.artifact import sha256_file
from pretrain.clips.schema import Clip
from pretrain.clips.store import ClipStore
from pretrain.downstream.comparison import compare, print_table, save_results
from pretrain.downstream.four_tasks_baselines import OdometryBaseline, baselines, fit_baselines
from pretrain.downstream.four_tasks_truth import FIGURES, TASKS, Figure, Truth, resize, score, truth_of
from pretrain.downstream.generation import (
    FVD_ABSENT,
    LEAST_FVD_CLIPS,
    LPIPS_ABSENT,
    VideoFeatures,
    frechet_distance,
    load_feature_network,
)
from pretrain.downstream.perceptual import load_lpips
from pretrain.downstream.results import BenchmarkResult, Metric
from pretrain.downstream.statistics import make_metric
from pretrain.downstream.task import Outcome, counted
from pretrain.downstream.visual_odometry import VisualOdometryConfig

BENCHMARK = "four-tasks"
SECONDS = "seconds a clip"
FVD = "FVD"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a predictor makes of B clips, in physical units. A task that is None was not predicted; a clip that is None in a
    task, not for that clip.

    Attributes:
        gaze: [P, 2] each, pixels (x, y) of the clip's whole image, at 30 Hz.
        camera: [P, 4, 4] each, world_from_camera in metres at 30 Hz; only motion relative to the first sample counts.
        depth: [T, S, S] each, relative inverse depth (near is large) of the central square at 8 Hz.
        rgb: uint8 [T, S, S, 3] each, of the central square at 8 Hz.
        seconds: task -> what predicting it for all of these clips took; a task that is not named is not timed.
    """

    gaze: Sequence[np.ndarray | None] | np.ndarray | None = None
    camera: Sequence[np.ndarray | None] | np.ndarray | None = None
    depth: Sequence[np.ndarray | None] | np.ndarray | None = None
    rgb: Sequence[np.ndarray | None] | np.ndarray | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


class Predictor(Protocol):
    """A model in the four tasks. What it may look at is its own affair: video for the first three tasks, depth for the last.

    Attributes:
        name: header of its column; sha256: of its weights.
    """

    name: str
    sha256: str

    def predict(self, clips: Sequence[Clip]) -> Prediction: ...


@dataclass(frozen=True, kw_only=True)
class FourTasksConfig:
    """Settings.

    Attributes:
        tasks: some of TASKS.
        batch_size: B, clips a call of `predict`.
        image_size: S of the truth that depth and video are scored at; null = the clip's own central square.
        lpips: file of LPIPS' weights, fvd: TorchScript file of FVD's network; null = the figure is stated as absent.
        visual_odometry: of the camera's baseline.
    """

    tasks: tuple[str, ...] = TASKS
    batch_size: int = 8
    image_size: int | None = None
    lpips: str | None = None
    fvd: str | None = None
    visual_odometry: VisualOdometryConfig = field(default_factory=VisualOdometryConfig)

    def __post_init__(self) -> None:
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise ValueError(f"four-tasks: tasks={unknown[0]}: expected some of {', '.join(TASKS)}")
        if not self.tasks:
            raise ValueError(f"four-tasks: tasks= is empty: expected some of {', '.join(TASKS)}")
        if self.batch_size < 1:
            raise ValueError(f"four-tasks: batch_size={self.batch_size}: expected 1 or more")
        if self.image_size is not None and self.image_size < 11:
            raise ValueError(f"four-tasks: image_size={self.image_size}: expected 11 or more")


# -------------------------------------------------------------------------------------------------------------- measure


@dataclass
class _Column:
    """Values of one method in one task, a clip each, in the order of the clips."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: list[float] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    true_features: list[np.ndarray] = field(default_factory=list)
    predicted: int = 0
    absent: str = ""


def measure(
    predictors: Sequence[Predictor],
    store: ClipStore,
    indices: Sequence[int],
    *,
    fit_indices: Sequence[int] = (),
    config: FourTasksConfig | None = None,
) -> list[BenchmarkResult]:
    """The results of the predictors and of all baselines, task after task, predictors first.

    Args:
        indices: clips of the store to score: held out, for all predictors.
        fit_indices: clips that means (of gaze, of motion, of the length of a path) may be taken from: those trained on.

    Raises:
        ValueError: no clip, clips in both lists, two methods of one name, or a prediction that is not what it should be.
        FileNotFoundError: no file of weights where one is named.
    """
    config = config or FourTasksConfig()
    if not len(indices):
        raise ValueError("four-tasks: no clips to score")
    if shared := sorted(set(indices) & set(fit_indices)):
        raise ValueError(f"four-tasks: {len(shared)} clips (first: number {shared[0]}) are both scored and fitted on")
    lpips = None if config.lpips is None else load_lpips(config.lpips)
    network = None if config.fvd is None else load_feature_network(config.fvd)
    fitted = fit_baselines((store.read(int(index)) for index in fit_indices), config.visual_odometry)
    methods = baselines(fitted, config.visual_odometry)
    names = [predictor.name for predictor in predictors]
    taken = [*names, *(name for task in config.tasks for name in methods[task])]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        raise ValueError(f"four-tasks: {twice[0]!r} is the name of two methods: choose another for the predictor")
    columns = {task: {name: _Column() for name in (*names, *methods[task])} for task in config.tasks}
    truths: list[Truth] = []
    skipped: dict[str, Counter[str]] = {task: Counter() for task in config.tasks}
    for start in range(0, len(indices), config.batch_size):
        clips = [store.read(int(index)) for index in indices[start : start + config.batch_size]]
        batch = [truth_of(clip, config.image_size) for clip in clips]
        for predictor in predictors:
            predicted = predictor.predict(clips)
            for task in config.tasks:
                arrays, seconds = _arrays(predictor.name, predicted, task, len(clips))
                for truth, array in zip(batch, arrays, strict=True):
                    _add(columns[task][predictor.name], task, array, truth, seconds / len(clips), lpips, network)
        for task in config.tasks:
            for truth in batch:
                if reason := truth.missing.get(task):
                    skipped[task][f"a clip, {reason}"] += 1
                for name, method in methods[task].items():
                    column = columns[task][name]
                    if isinstance(method, str):
                        column.absent = method
                        array, seconds = None, float("nan")
                    else:
                        began = time.perf_counter()
                        array = method(truth) if truth.has(task) else None
                        # The others do nothing worth timing.
                        timed = isinstance(method, OdometryBaseline)
                        seconds = time.perf_counter() - began if timed else float("nan")
                    _add(column, task, array, truth, seconds, lpips, network)
        # Only what names a clip is needed later.
        truths += [dataclasses.replace(truth, rgb=None, metres=None, known=None) for truth in batch]
    protocol = _protocol(config, store, indices, fit_indices, truths)
    shas = {predictor.name: predictor.sha256 for predictor in predictors}
    results = []
    for task in config.tasks:
        odometry = [method for method in methods[task].values() if isinstance(method, OdometryBaseline)]
        notes = (*counted(skipped[task]), *(note for method in odometry for note in method.notes()), *_NOTES[task])
        chance = next(
            name for name in methods[task] if columns[task][name].predicted or name == list(methods[task])[-1]
        )
        for name, column in columns[task].items():
            metrics, missing = _metrics(task, column, columns[task][chance], truths, config)
            results.append(
                BenchmarkResult(
                    benchmark=f"{BENCHMARK} {task}", encoder=name, encoder_sha256=shas.get(name, ""),
                    metrics=metrics, protocol=protocol, notes=notes, missing=missing,
                )
            )  # fmt: skip
    return results


_NOTES: dict[str, tuple[str, ...]] = {
    "gaze": ("previous fixation: the clip's first known gaze, which is true and which a model of images is not given",),
    "camera": (
        "after Sim(3) any estimate is at least as good as a still camera; RRE is the same after all alignments",
    ),
    "depth": (
        "the constant and the plane are fitted to each clip's truth, every prediction gets its best scale and shift",
    ),
    "rgb": ("the mean colour knows each clip's truth",),
}


def _arrays(name: str, predicted: Prediction, task: str, clips: int) -> tuple[Sequence[np.ndarray | None], float]:
    arrays = getattr(predicted, task)
    if arrays is None:
        return [None] * clips, float("nan")
    if len(arrays) != clips:
        raise ValueError(f"{name}: predicted {task} of {len(arrays)} clips where {clips} were given")
    return arrays, float(predicted.seconds.get(task, float("nan")))


def _add(
    column: _Column,
    task: str,
    array: np.ndarray | None,
    truth: Truth,
    seconds: float,
    lpips: Any,
    network: VideoFeatures | None,
) -> None:
    scored = array is not None and truth.has(task)
    figures = score(task, array, truth, lpips=lpips) if scored and array is not None else {}
    for name in FIGURES[task]:
        column.values[name].append(figures.get(name, float("nan")))
    column.seconds.append(seconds if scored else float("nan"))
    column.predicted += scored
    if task == "rgb" and scored and network is not None:
        assert array is not None and truth.rgb is not None
        column.features.append(network(resize(array, truth.rgb.shape[1])[None])[0])
        column.true_features.append(network(truth.rgb[None])[0])


def _metrics(
    task: str, column: _Column, chance: _Column, truths: Sequence[Truth], config: FourTasksConfig
) -> tuple[tuple[Metric, ...], dict[str, str]]:
    groups = np.array([truth.group for truth in truths])
    metrics: list[Metric] = []
    missing: dict[str, str] = {}
    if not column.predicted:
        return (), {"": column.absent or "not predicted"}
    table = {**FIGURES[task], SECONDS: Figure(unit="s")}
    for name, figure in table.items():
        values = np.array(column.seconds if name == SECONDS else column.values[name])
        if not np.isfinite(values).any():
            missing[name] = _why(name)
            continue
        by_chance = np.array(chance.values.get(name, []))
        metrics.append(
            make_metric(
                name, values, higher_is_better=figure.higher_is_better, unit=figure.unit, groups=groups,
                chance=float(np.nanmean(by_chance)) if np.isfinite(by_chance).any() else None,
            )
        )  # fmt: skip
    if task == "rgb":
        if config.fvd is None:
            missing[FVD] = FVD_ABSENT
        elif len(column.features) < LEAST_FVD_CLIPS:
            missing[FVD] = f"absent: it needs {LEAST_FVD_CLIPS} clips or more"
        else:
            # A distance of distributions has no items, and its bootstrap is biased: no interval is better than a wrong one.
            value = frechet_distance(np.stack(column.features), np.stack(column.true_features))
            nan = float("nan")
            metrics.append(Metric(name=FVD, value=value, low=nan, high=nan, higher_is_better=False))
    return tuple(metrics), missing


def _why(name: str) -> str:
    if name == "LPIPS":
        return LPIPS_ABSENT
    if name == SECONDS:
        return "not timed"
    return {"angle": "no clip has intrinsics", "RMSE aligned": "the clips' depth is in no unit"}.get(
        name, "not defined"
    )


def _protocol(
    config: FourTasksConfig,
    store: ClipStore,
    indices: Sequence[int],
    fit_indices: Sequence[int],
    truths: Sequence[Truth],
) -> dict[str, Any]:
    sizes = sorted({truth.window[2] for truth in truths})
    return {
        "kind": BENCHMARK,
        "data_sha256": store.manifest_sha256,
        "items": len(truths),
        "groups": len({truth.group for truth in truths}),
        "items_sha256": _sha256([truth.key for truth in truths]),
        "fit_items": len(fit_indices),
        "fit_sha256": _sha256([int(index) for index in fit_indices]),
        "image_size": config.image_size or sizes,
        "lpips": None if config.lpips is None else sha256_file(config.lpips),
        "fvd": None if config.fvd is None else sha256_file(config.fvd),
        "visual_odometry": dataclasses.asdict(config.visual_odometry),
    }


def _sha256(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------------- report


def outcome(results: Sequence[BenchmarkResult], method: str) -> Outcome:
    """One method's figures of all tasks as one outcome, named "gaze MSE" and so on: a column of `egoarm probe`."""
    metrics, missing, notes = [], {}, []
    for result in results:
        if result.encoder != method:
            continue
        task = result.benchmark.removeprefix(f"{BENCHMARK} ")
        metrics += [dataclasses.replace(metric, name=f"{task} {metric.name}") for metric in result.metrics]
        names = [*FIGURES[task], SECONDS, *([FVD] if task == "rgb" else [])]
        for name, reason in result.missing.items():
            missing |= {f"{task} {each}": reason for each in ([name] if name else names)}
        notes += [note for note in result.notes if note not in notes]
    return Outcome(metrics=tuple(metrics), missing=missing, notes=tuple(notes))


def report(
    results: Sequence[BenchmarkResult],
    baseline: str,
    *,
    path: str | Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> None:
    """Prints a table a task, in which each method's difference from `baseline` (a predictor, usually) is paired clip by clip,
    and writes all of it as JSON that `comparison.load_results` reads.

    Raises:
        ValueError: no method of that name.
    """
    console = console or Console()
    for benchmark in dict.fromkeys(result.benchmark for result in results):
        own = [result for result in results if result.benchmark == benchmark]
        print_table(*compare(own, baseline), baseline, console)
        for note in dict.fromkeys(note for result in own for note in result.notes):
            console.print(note, markup=False, style="dim")
    if path is not None:
        save_results(Path(path), results, baseline, provenance or {})

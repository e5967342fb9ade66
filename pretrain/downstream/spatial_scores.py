"""From predictions to figures with intervals over scenes, and the paired comparison of two encoders.

Axes:  S scenes, n rows, C columns of labels, B bootstrap resamples, K targets.

The unit of chance is the scene: frames of one clip or episode are not independent, so whole scenes are resampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from pretrain.downstream.results import BenchmarkResult, Metric
from pretrain.downstream.spatial_targets import CONTACT, POSITION, SpatialSource, Target

SUMMARY = "spatial error"
_INTERVAL = (2.5, 97.5)
# A target whose labels vary by less than this (in their own unit, metres mostly) has nothing to be read.
_CONSTANT = 1e-4


def metric_name(source: str, target: str, pooling: str, figure: str) -> str:
    """e.g. "clips: object 3D (grid) R2"; `source` "all" and `target` SUMMARY name the summaries."""
    return f"{source}: {target} ({pooling}) {figure}".rstrip()


@dataclass(frozen=True, kw_only=True)
class SceneErrors:
    """Squared errors of the position targets of one source under one pooling, summed within each scene.

    Attributes:
        targets: K targets that vary.
        error: of the probe; baseline: of the training rows' mean; rows: how many rows were asked.
    """

    targets: tuple[Target, ...]
    error: Float64[np.ndarray, "S K"]
    baseline: Float64[np.ndarray, "S K"]
    rows: Float64[np.ndarray, "S K"]

    @property
    def normalised(self) -> Float64[np.ndarray, " K"]:
        """RMSE over the mean predictor's RMSE, a target: 1 = nothing was read, 0 = everything."""
        return np.sqrt(self.error.sum(axis=0) / self.baseline.sum(axis=0))

    def resampled(self, weights: Float64[np.ndarray, "B S"]) -> Float64[np.ndarray, "B K"]:
        """`normalised` of resampled scenes."""
        return np.sqrt((weights @ self.error) / np.maximum(weights @ self.baseline, 1e-30))


def varying_targets(source: SpatialSource) -> tuple[Target, ...]:
    """Targets that can be asked: positions that vary, contacts of which both kinds are seen in at least 5 scenes."""
    kept = []
    for target in source.targets:
        labels = source.values[:, list(target.columns)]
        labels = labels[np.isfinite(labels).all(axis=1)]
        if target.kind == POSITION and len(labels) and labels.std(axis=0).max() > _CONSTANT:
            kept.append(target)
        if target.kind == CONTACT:
            column = source.values[:, target.columns[0]]
            if all(len(np.unique(source.scene_of[column == value])) >= 5 for value in (0.0, 1.0)):
                kept.append(target)
    return tuple(kept)


def scene_errors(
    source: SpatialSource, targets: Sequence[Target], predicted: Float64[np.ndarray, "n C"], mean: np.ndarray
) -> SceneErrors:
    """Sums squared Euclidean errors over the rows of each scene. `mean`: what the mean predictor says, as `predicted`."""
    positions = tuple(target for target in targets if target.kind == POSITION)
    shape = (len(source.scenes), len(positions))
    error, baseline, rows = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for number, target in enumerate(positions):
        columns = list(target.columns)
        squares = ((predicted - source.values)[:, columns] ** 2).sum(axis=1)
        base = ((mean - source.values)[:, columns] ** 2).sum(axis=1)
        asked = np.isfinite(squares)
        for sums, values in ((error, squares), (baseline, base), (rows, np.ones(len(squares)))):
            np.add.at(sums[:, number], source.scene_of[asked], values[asked])
    return SceneErrors(targets=positions, error=error, baseline=baseline, rows=rows)


def scene_weights(scenes: int, resamples: int, seed: int) -> Float64[np.ndarray, "B S"]:
    """How often each scene is in each bootstrap resample; the same for every encoder, which pairs them."""
    return np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1 / scenes), resamples).astype(np.float64)


# --------------------------------------------------------------------------------------------------------------- figures


def target_metrics(source: str, pooling: str, errors: SceneErrors, weights: np.ndarray) -> list[Metric]:
    """R2 and RMSE of each position target.

    R2 is 1 - error / error of the training mean. Items are one a scene and have the figure as their mean; those of RMSE are its
    linear approximation in the scene, see `summary_metric`.
    """
    metrics = []
    boot = errors.resampled(weights)
    seen = np.maximum(weights @ errors.rows, 1)
    boot_rmse = np.sqrt((weights @ errors.error) / seen)
    scenes = len(errors.error)
    for number, target in enumerate(errors.targets):
        error, baseline = errors.error[:, number], errors.baseline[:, number]
        items = 1 - error * scenes / baseline.sum()
        low, high = np.percentile(1 - boot[:, number] ** 2, _INTERVAL)
        metrics.append(
            Metric(
                name=metric_name(source, target.name, pooling, "R2"),
                value=float(items.mean()),
                low=float(low),
                high=float(high),
                chance=0.0,
                higher_is_better=True,
                items=items,
            )
        )
        rows = errors.rows[:, number]
        rmse = float(np.sqrt(error.sum() / rows.sum()) * target.scale)
        low, high = np.percentile(boot_rmse[:, number], _INTERVAL) * target.scale
        metrics.append(
            Metric(
                name=metric_name(source, target.name, pooling, "RMSE"),
                value=rmse,
                low=float(low),
                high=float(high),
                chance=float(np.sqrt(baseline.sum() / rows.sum()) * target.scale),
                higher_is_better=False,
                unit=target.unit,
                items=rmse * (1 + 0.5 * (error / max(error.mean(), 1e-30) - rows / rows.mean())),
            )
        )
    return metrics


def contact_metrics(
    source: SpatialSource, targets: Sequence[Target], pooling: str, scores: np.ndarray, weights: np.ndarray
) -> list[Metric]:
    """Area under the ROC curve of the probe's score, less its fold's mean label, for each contact target."""
    metrics = []
    for target in targets:
        if target.kind != CONTACT:
            continue
        column = target.columns[0]
        label, score = source.values[:, column], scores[:, column]
        asked = np.isfinite(label) & np.isfinite(score)
        yes, no = asked & (label == 1), asked & (label == 0)
        # 1 where a touching row is ranked above one that does not touch, 1/2 for a tie.
        above = (score[yes][:, None] > score[no]) + 0.5 * (score[yes][:, None] == score[no])
        weight_yes, weight_no = weights[:, source.scene_of[yes]], weights[:, source.scene_of[no]]
        pairs = weight_yes.sum(axis=1) * weight_no.sum(axis=1)
        boot = ((weight_yes @ above) * weight_no).sum(axis=1)[pairs > 0] / pairs[pairs > 0]
        low, high = np.percentile(boot, _INTERVAL)
        area, scenes = float(above.mean()), len(source.scenes)
        # DeLong's components, summed within scenes: their mean is the area, their spread its error.
        items = area + scenes * (
            np.bincount(source.scene_of[yes], above.mean(axis=1) - area, scenes) / yes.sum()
            + np.bincount(source.scene_of[no], above.mean(axis=0) - area, scenes) / no.sum()
        )
        metrics.append(
            Metric(
                name=metric_name(source.name, target.name, pooling, "AUROC"),
                value=area,
                low=float(low),
                high=float(high),
                chance=0.5,
                higher_is_better=True,
                items=items,
            )
        )
    return metrics


def summary_metric(
    name: str, pooling: str, errors: Mapping[str, SceneErrors], weights: Mapping[str, np.ndarray]
) -> Metric:
    """The geometric mean of the normalised errors of a source's targets; over several sources, the geometric mean of theirs.

    Items: one a scene, the figure's linear approximation in that scene (influence function), whose mean is the figure and the
    mean of whose differences between encoders has, to first order, the error of the figures' difference.
    """
    logs = [np.log(part.normalised).mean() for part in errors.values()]
    value = float(np.exp(np.mean(logs)))
    boot = np.mean([np.log(part.resampled(weights[source])).mean(axis=1) for source, part in errors.items()], axis=0)
    low, high = np.percentile(np.exp(boot), _INTERVAL)
    total = sum(len(part.error) for part in errors.values())
    items = []
    for part in errors.values():
        relative = part.error / part.error.mean(axis=0) - part.baseline / part.baseline.mean(axis=0)
        share = total / (len(part.error) * len(errors))
        items.append(value * (1 + 0.5 * share * relative.mean(axis=1)))
    return Metric(
        name=metric_name(name, SUMMARY, pooling, ""),
        value=value,
        low=float(low),
        high=float(high),
        chance=1.0,
        higher_is_better=False,
        items=np.concatenate(items),
    )


# ------------------------------------------------------------------------------------------------------------ comparison


@dataclass(frozen=True, kw_only=True)
class ErrorRatio:
    """Error of one encoder over that of another on the same scenes; below 1 the first is better.

    Attributes:
        name: source and pooling; low, high: 95 % interval by a bootstrap over scenes, the same scenes for both.
    """

    name: str
    ratio: float
    low: float
    high: float


def compare_spatial(
    a: BenchmarkResult, b: BenchmarkResult, *, resamples: int = 2000, seed: int = 0
) -> tuple[ErrorRatio, ...]:
    """The ratio of the spatial errors of `a` and `b`, for each source and over all, and each pooling.

    Labels and mean predictor are shared, so a target's ratio is the root of the ratio of its squared errors, which the items
    of its R2 hold.

    Raises:
        ValueError: results of different protocols, or of another benchmark.
    """
    if a.protocol != b.protocol or a.benchmark != b.benchmark:
        raise ValueError(
            f"{a.encoder} and {b.encoder} were probed under different protocols and cannot be paired: "
            f"{_difference(a, b)}; probe both with the same data and seed"
        )
    items = [{metric.name: metric.items for metric in result.metrics} for result in (a, b)]
    sources: Mapping[str, Sequence[str]] = a.protocol["position_targets"]
    ratios = []
    for pooling in a.protocol["poolings"]:
        logs, boots = [], []
        for number, (source, targets) in enumerate(sources.items()):
            names = [metric_name(source, target, pooling, "R2") for target in targets]
            squares = [np.stack([1 - np.asarray(own[name]) for name in names], axis=1) for own in items]
            weights = scene_weights(len(squares[0]), resamples, seed + number)
            sums = [np.maximum(weights @ own, 1e-30) for own in squares]
            logs.append(float(0.5 * np.log(squares[0].sum(axis=0) / squares[1].sum(axis=0)).mean()))
            boots.append(0.5 * np.log(sums[0] / sums[1]).mean(axis=1))
            ratios.append(_ratio(f"{source} ({pooling})", logs[-1], boots[-1]))
        if len(sources) > 1:
            ratios.append(_ratio(f"all ({pooling})", float(np.mean(logs)), np.mean(boots, axis=0)))
    return tuple(ratios)


def _ratio(name: str, log: float, boot: Float64[np.ndarray, " B"]) -> ErrorRatio:
    low, high = np.exp(np.percentile(boot, _INTERVAL))
    return ErrorRatio(name=name, ratio=float(np.exp(log)), low=float(low), high=float(high))


def _difference(a: BenchmarkResult, b: BenchmarkResult) -> str:
    differing = [
        f"{key} {a.protocol.get(key)!r:.120} and {b.protocol.get(key)!r:.120}"
        for key in sorted(a.protocol.keys() | b.protocol.keys())
        if a.protocol.get(key) != b.protocol.get(key)
    ]
    return "; ".join(differing) or f"benchmarks {a.benchmark!r} and {b.benchmark!r}"

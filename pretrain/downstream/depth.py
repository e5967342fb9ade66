"""Depth from frozen features: a linear head on the tokens and, where the run has one, the model's own decoder.

Three targets, each with AbsRel, RMSE and delta1 (Eigen et al. 2014), a mean over the pixels of a clip and then over clips:

- "inverse": inverse depth scaled to [0, 1] a clip, as in training. AbsRel and delta1 divide by the target, so they are
  taken where it is at least INVERSE_FLOOR.
- "metric": metres, by a linear head that predicts the logarithm of depth.
- "aligned": metres again, after the prediction of "inverse" got the scale and shift, one pair a clip, that fit the true
  inverse depth best in least squares (Ranftl et al. 2020). This leaves the geometry and takes the scale away.

The linear head is a ridge regression from a token to the pixels of its own cell, added to the mean map of the clips it was
fitted on, with that cell's mean token taken off: with infinite regularisation it is the mean map, which is also the chance
level. It is cross-fitted over the clips.

Axes: n clips, T frames, g grid side, k pixels of a cell's side, S = map side, D width, P pixels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64

from pretrain.clips.dataset import normalise_inverse_depth
from pretrain.downstream.depth_errors import ERRORS, aligned_errors, depth_errors
from pretrain.downstream.ek100_cls import FOLDS, folds_of
from pretrain.downstream.features import Extractor
from pretrain.downstream.results import Metric
from pretrain.downstream.segments import Segment, StoreVideos
from pretrain.downstream.statistics import make_metric
from pretrain.downstream.subjects import NEEDS_DECODER
from pretrain.downstream.task import Outcome, Task, counted

MAP_SIZE = 28
INVERSE_FLOOR = 0.1
LAMBDAS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7)


@dataclass(frozen=True, kw_only=True)
class DepthClip:
    segment: Segment
    group: str

    @property
    def segments(self) -> Sequence[Segment]:
        return (self.segment,)


@dataclass(frozen=True)
class Targets:
    """`metres` of all pixels, `inverse` in [0, 1], and where they are known."""

    metres: Float32[np.ndarray, "n T S S"]
    inverse: Float32[np.ndarray, "n T S S"]
    valid: Bool[np.ndarray, "n T S S"]


def evaluate_depth(extractor: Extractor, task: Task) -> Outcome:
    """Errors of the linear head and of the decoder."""
    clips: Sequence[DepthClip] = task.items
    assert isinstance(extractor.source, StoreVideos)
    targets, clips, notes = read_targets(extractor.source, clips, extractor.frames)
    tokens = extractor.tokens([clip.segment for clip in clips])
    folds = folds_of([clip.group for clip in clips], FOLDS)
    inverse, mean_inverse = linear_maps(tokens, extractor.grid, targets.inverse, targets.valid, folds)
    logarithm, mean_logarithm = linear_maps(
        tokens, extractor.grid, np.log(np.where(targets.valid, targets.metres, 1.0)), targets.valid, folds
    )
    metrics = _inverse_metrics("linear inverse", inverse, mean_inverse, targets)
    metrics += _metric_metrics("linear metric", np.exp(logarithm), np.exp(mean_logarithm), targets)
    metrics += _aligned_metrics("linear aligned", inverse, mean_inverse, targets)
    missing = {}
    if extractor.subject.has_depth:
        decoded = _decoded(extractor, tokens)
        metrics += _inverse_metrics("decoder inverse", decoded, mean_inverse, targets)
        metrics += _aligned_metrics("decoder aligned", decoded, mean_inverse, targets)
    else:
        missing = {f"decoder {kind} {error}": NEEDS_DECODER for kind in ("inverse", "aligned") for error in ERRORS}
    extractor.release()
    return Outcome(metrics=tuple(metrics), missing=missing, notes=notes)


def read_targets(
    source: StoreVideos, clips: Sequence[DepthClip], frames: int
) -> tuple[Targets, list[DepthClip], tuple[str, ...]]:
    """Targets of the clips that have a depth to predict; those without, and those of constant depth, are counted."""
    kept: list[DepthClip] = []
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    skipped = Counter[str]()
    for clip in clips:
        try:
            metres, valid = source.read_depth(clip.segment, frames, MAP_SIZE)
        except ValueError as error:
            skipped[f"a clip whose depth cannot be read, e.g. {error}"] += 1
            continue
        inverse, _ = normalise_inverse_depth(metres)
        if not valid.any():
            skipped["a clip without any known depth"] += 1
        elif metres[valid].max() - metres[valid].min() < 1e-6:
            skipped["a clip of constant depth"] += 1
        else:
            columns.append((metres, inverse, valid))
            kept.append(clip)
    if len(kept) < FOLDS:
        raise ValueError(
            f"{source.store.path}: {len(kept)} of {len(clips)} clips have a depth to predict ({'; '.join(counted(skipped))}); "
            f"at least {FOLDS} are needed"
        )
    metres, inverse, valid = (np.stack(column) for column in zip(*columns, strict=True))
    return Targets(metres=metres, inverse=inverse, valid=valid), kept, counted(skipped)


def linear_maps(
    tokens: Float[np.ndarray, "n N D"],
    grid: tuple[int, int, int],
    target: Float[np.ndarray, "n T S S"],
    valid: Bool[np.ndarray, "n T S S"],
    folds: np.ndarray,
) -> tuple[Float64[np.ndarray, "n T S S"], Float64[np.ndarray, "n T S S"]]:
    """Cross-fitted maps of the linear head and of the mean map. The regularisation of each part is the one of LAMBDAS that
    is best for the next part when fitted on the rest, so that no clip chooses its own.

    A token of a grid whose side does not divide the map's predicts a cell a little finer, and the map is resized.
    """
    frames, rows, columns = grid
    cells = -(-target.shape[-1] // max(rows, columns))
    x = torch.from_numpy(np.asarray(tokens)).float().unflatten(1, (frames * rows * columns,))
    y, weight = _cells(target, valid, grid, cells)
    fold = torch.from_numpy(folds)
    result = torch.zeros_like(y)
    means = torch.zeros_like(y)
    for number in range(FOLDS):
        outer = fold != number
        inner = fold == (number + 1) % FOLDS
        head = _Ridge(x[outer & ~inner], y[outer & ~inner], weight[outer & ~inner])
        losses = [_loss(head.predict(x[inner], lam), y[inner], weight[inner]) for lam in LAMBDAS]
        head = _Ridge(x[outer], y[outer], weight[outer])
        result[~outer] = head.predict(x[~outer], LAMBDAS[int(np.argmin(losses))])
        means[~outer] = head.mean_map.expand_as(y[~outer])
    return _maps(result, grid, cells, target.shape[-1]), _maps(means, grid, cells, target.shape[-1])


class _Ridge:
    """y ~ mean map of the cell + (x - mean token of the cell) W, by the eigenvectors of x'x, one solve for all lambdas."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> None:
        self.mean_map = (y * weight).sum(dim=0) / weight.sum(dim=0).clamp(min=1e-6)
        self.mean_token = x.mean(dim=0)
        centred = (x - self.mean_token).flatten(0, 1).double()
        # A cell counts by how much of it is known; its unknown pixels follow the known ones.
        residual = ((y - self.mean_map) * weight).flatten(0, 1).double()
        known = weight.flatten(0, 1).double()
        share = known.mean(dim=1, keepdim=True)
        middle = residual.sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True).clamp(min=1)
        residual = residual + (1 - known) * middle
        features = centred * share.sqrt()
        residual = residual * share.sqrt()
        self._values, self._vectors = torch.linalg.eigh(features.T @ features)
        self._projected = self._vectors.T @ (features.T @ residual)

    def predict(self, x: torch.Tensor, lam: float) -> torch.Tensor:
        weights = self._vectors @ (self._projected / (self._values.clamp(min=0)[:, None] + lam))
        return self.mean_map + ((x - self.mean_token) @ weights.float())


def _loss(predicted: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> float:
    return float(((predicted - y).square() * weight).sum() / weight.sum().clamp(min=1e-6))


def _cells(
    maps: np.ndarray, valid: np.ndarray, grid: tuple[int, int, int], k: int
) -> tuple[Float[torch.Tensor, "n N kk"], Float[torch.Tensor, "n N kk"]]:
    """Maps [n, T, S, S] to the pixels of each token's cell, k x k of them, and their weights 0 or 1."""
    frames, rows, columns = grid

    def split(values: np.ndarray) -> torch.Tensor:
        sized = F.interpolate(
            torch.from_numpy(values.astype(np.float32)), size=(rows * k, columns * k), mode="nearest-exact"
        )
        parts = sized.unflatten(2, (rows, k)).unflatten(4, (columns, k))  # [n, T, rows, k, columns, k]
        return parts.permute(0, 1, 2, 4, 3, 5).reshape(len(values), frames * rows * columns, k * k)

    return split(maps), split(valid.astype(np.float32))


def _maps(cells: torch.Tensor, grid: tuple[int, int, int], k: int, size: int) -> Float64[np.ndarray, "n T S S"]:
    frames, rows, columns = grid
    parts = cells.reshape(len(cells), frames, rows, columns, k, k).permute(0, 1, 2, 4, 3, 5)
    maps = parts.reshape(len(cells), frames, rows * k, columns * k)
    return _resized(maps, size)


def _resized(maps: torch.Tensor, size: int) -> Float64[np.ndarray, "n T S S"]:
    if maps.shape[-2:] != (size, size):
        maps = F.interpolate(maps, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return maps.double().numpy()


def _decoded(extractor: Extractor, tokens: np.ndarray, batch: int = 16) -> Float64[np.ndarray, "n T S S"]:
    # A model of single images has seen each frame alone.
    frames = extractor.frames
    alone = extractor.subject.encoder.spec.frames == 1 and frames > 1
    parts = []
    for start in range(0, len(tokens), batch):
        part = torch.from_numpy(tokens[start : start + batch]).float()
        maps = extractor.subject.decode_depth(part.unflatten(1, (frames, -1)).flatten(0, 1) if alone else part)
        parts.append(maps.flatten(0, 1).unflatten(0, (len(part), frames)))
    return _resized(torch.cat(parts), MAP_SIZE)


# ---------------------------------------------------------------------------------------------------------------- errors


def _over_clips(predicted: np.ndarray, score, targets: Targets) -> np.ndarray:
    return np.array([score(predicted[clip], clip) for clip in range(len(targets.valid))])


def _named(name: str, units: dict[str, str], values: np.ndarray, by_chance: np.ndarray) -> list[Metric]:
    return [
        make_metric(
            f"{name} {error}",
            values[:, column],
            higher_is_better=error == "delta1",
            unit=units[error],
            chance=float(np.nanmean(by_chance[:, column])),
        )
        for column, error in enumerate(ERRORS)
    ]


def _inverse_metrics(name: str, predicted: np.ndarray, mean: np.ndarray, targets: Targets) -> list[Metric]:
    def score(maps: np.ndarray, clip: int) -> tuple[float, float, float]:
        valid, target = targets.valid[clip], targets.inverse[clip]
        near = valid & (target >= INVERSE_FLOOR)
        absolute, _, within = depth_errors(maps[near], target[near].astype(np.float64))
        return absolute, float(np.sqrt(np.mean((maps[valid] - target[valid]) ** 2))), within

    units = {"AbsRel": "", "RMSE": "", "delta1": "%"}
    return _named(name, units, _over_clips(predicted, score, targets), _over_clips(mean, score, targets))


def _metric_metrics(name: str, predicted: np.ndarray, mean: np.ndarray, targets: Targets) -> list[Metric]:
    def score(maps: np.ndarray, clip: int) -> tuple[float, float, float]:
        valid = targets.valid[clip]
        return depth_errors(maps[valid], targets.metres[clip][valid].astype(np.float64))

    units = {"AbsRel": "", "RMSE": "m", "delta1": "%"}
    return _named(name, units, _over_clips(predicted, score, targets), _over_clips(mean, score, targets))


def _aligned_metrics(name: str, predicted: np.ndarray, mean: np.ndarray, targets: Targets) -> list[Metric]:
    def score(maps: np.ndarray, clip: int) -> tuple[float, float, float]:
        valid = targets.valid[clip]
        return aligned_errors(maps[valid], targets.metres[clip][valid])

    units = {"AbsRel": "", "RMSE": "m", "delta1": "%"}
    return _named(name, units, _over_clips(predicted, score, targets), _over_clips(mean, score, targets))


def depth_task(clips: Sequence[DepthClip]) -> Task:
    protocol = {"map_size": MAP_SIZE, "inverse_floor": INVERSE_FLOOR, "folds": FOLDS, "lambdas": list(LAMBDAS)}
    return Task(items=tuple(clips), protocol=protocol)

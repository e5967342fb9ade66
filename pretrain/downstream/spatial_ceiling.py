"""What can be read at all: a small conv net trained end to end on the spatial probe's own labels.

It is no encoder under test, for it has seen the labels. Where it reads no more than a frozen encoder does, the labelled frames or
the question are the limit, not the encoder.
Axes:  n rows, C columns of labels, b rows of a batch.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import nn
from tqdm import tqdm

from pretrain.downstream.results import BenchmarkResult
from pretrain.downstream.spatial import POOLINGS, Predictions, SpatialData, score
from pretrain.downstream.spatial_targets import SpatialSource

SIDE = 64
BATCH = 64
LEARNING_RATE = 2e-3
_CHANNELS = (24, 48, 96, 128)


def conv_ceiling(
    data: SpatialData, *, steps: int = 400, side: int = SIDE, seed: int = 0, folds: int = 4, resamples: int = 2000
) -> BenchmarkResult:
    """Trains one net a source and fold, on the newest frame at `side` px (a multiple of 16), for `steps` steps of BATCH rows.

    The folds are the probe's, so the result is comparable to an encoder's. A net has no poolings: each names the same figures.
    """

    def predict(source: SpatialSource, fold: Int64[np.ndarray, " n"]) -> Predictions:
        images = _images(source, side)
        predicted, mean = np.full_like(source.values, np.nan), np.full_like(source.values, np.nan)
        for number in tqdm(np.unique(fold), desc=f"conv net on {source.name}", unit="fold", disable=None):
            train = fold != number
            labels = source.values[train]
            # A column that no training row knows stays unknown, as it does for the ridge.
            asked = np.isfinite(source.values[~train]) & np.isfinite(labels).any(axis=0)
            centre, spread = _moments(labels)
            net = _fit(images[torch.from_numpy(train)], (labels - centre) / spread, steps, seed)
            with torch.inference_mode():
                outputs = torch.cat([net(part) for part in images[torch.from_numpy(~train)].split(BATCH)]).numpy()
            predicted[~train] = np.where(asked, outputs * spread + centre, np.nan)
            mean[~train] = np.where(asked, centre, np.nan)
        return dict.fromkeys(POOLINGS, (predicted, mean))

    return score(
        f"conv net, {steps} steps on the labels", "", predict, data=data, seed=seed, folds=folds, resamples=resamples
    )


def _images(source: SpatialSource, side: int) -> torch.Tensor:
    """float32[n, 3, side, side] in about [-1, 1]: the query frames."""
    frames = [
        cv2.resize(window[0], (side, side), interpolation=cv2.INTER_AREA)
        for scene in range(len(source.scenes))
        for window in source.windows(scene, 1, 0.0)
    ]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _moments(labels: Float64[np.ndarray, "n C"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column's known labels; 0 and 1 where none is known or they do not vary."""
    known = np.isfinite(labels)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, labels, 0).sum(axis=0) / count
    deviation = np.sqrt((np.where(known, labels - mean, 0) ** 2).sum(axis=0) / count)
    return mean, np.where(deviation > 1e-9, deviation, 1.0)


def _fit(images: torch.Tensor, labels: Float64[np.ndarray, "n C"], steps: int, seed: int) -> nn.Module:
    """Squared error of the known labels; frames shifted by up to 2 px and changed in brightness, which moves labels little."""
    targets = torch.from_numpy(np.nan_to_num(labels)).float()
    known = torch.from_numpy(np.isfinite(labels)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _make_net(labels.shape[1], images.shape[-1])
        optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(images), (min(BATCH, len(images)),))
            shift = torch.randint(-2, 3, (2,)).tolist()
            gain = torch.empty(len(rows), 3, 1, 1).uniform_(0.8, 1.2)
            batch = torch.roll(images[rows], shift, dims=(2, 3)) * gain
            loss = (((net(batch) - targets[rows]) ** 2) * known[rows]).sum() / known[rows].sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def _make_net(columns: int, side: int) -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for channels in _CHANNELS:
        layers += [nn.Conv2d(width, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        width = channels
    places = (side // 2 ** len(_CHANNELS)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(width * places, columns))

"""Statistics of features as LeRobot's data sets carry them: min, max, mean, std, count and five quantiles, exact over all values."""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)


class FeatureStatistics:
    """Statistics of each element of a vector feature; `add` takes [N, d] and `result` gives lists of length d."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        self._parts.append(values)

    def result(self) -> dict[str, list[Any]]:
        values = np.concatenate(self._parts).astype(np.float64)
        named = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        named |= {_name(q): row for q, row in zip(QUANTILES, np.quantile(values, QUANTILES, axis=0), strict=True)}
        return {name: value.tolist() for name, value in named.items()} | {"count": [len(values)]}


class ImageStatistics:
    """Statistics of each channel of uint8 images, scaled to [0, 1]; `add` takes [N, H, W, 3], `result` gives [3][1][1]; `count` is in images.

    Counts how often each of the 256 values occurs, so that nothing but the counts is kept.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._images = 0

    def add(self, values: np.ndarray) -> None:
        for channel in range(3):
            self._counts[channel] += np.bincount(values[..., channel].reshape(-1), minlength=256)
        self._images += len(values)

    def result(self) -> dict[str, list[Any]]:
        scale = np.arange(256) / 255
        total = self._counts.sum(1)
        mean = self._counts @ scale / total
        spread = np.sqrt((self._counts * (scale[None] - mean[:, None]) ** 2).sum(1) / total)
        seen = self._counts > 0
        named = {
            "min": scale[seen.argmax(1)],
            "max": scale[255 - seen[:, ::-1].argmax(1)],
            "mean": mean,
            "std": spread,
        }
        cumulated = self._counts.cumsum(1) / total[:, None]
        named |= {_name(q): scale[(cumulated >= q).argmax(1)] for q in QUANTILES}
        return {name: value.reshape(3, 1, 1).tolist() for name, value in named.items()} | {"count": [self._images]}


def _name(quantile: float) -> str:
    return f"q{round(100 * quantile):02d}"

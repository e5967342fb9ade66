"""What a benchmark of an encoder returns: figures with intervals, and per item what they are made of, for pairing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of one encoder on one benchmark.

    Attributes:
        name: e.g. "mAP V->T" or "AbsRel".
        value: in `unit`; low, high: its 95 % interval.
        chance: what a predictor without images gets; None = not defined.
        higher_is_better: direction.
        items: the value of each test item (clip, query, episode), whose mean (or other `pooling`) is the figure; two
            encoders measured on the same items are compared pairwise on them.
        groups: for each item the cluster it belongs to (video, episode), where items are not independent; else None.
        strata: for each item the part of the figure it belongs to (class, direction), where the figure is the mean of the
            parts' means; else None, and the figure is the mean of the items.
    """

    name: str
    value: float
    low: float
    high: float
    higher_is_better: bool
    unit: str = ""
    chance: float | None = None
    items: np.ndarray | None = field(default=None, repr=False)
    groups: np.ndarray | None = field(default=None, repr=False)
    strata: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """`protocol`: what decides the figures besides the encoder (split, frames, sizes, sha of the data), plain JSON: results
    of different protocols refuse to be compared. `missing`: name of a metric, or "" for all, -> why this encoder has none."""

    benchmark: str
    encoder: str
    encoder_sha256: str
    metrics: tuple[Metric, ...]
    protocol: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

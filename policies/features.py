"""Frozen features of every demonstration frame, computed once per (encoder, demonstrations, history) and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from policies.backbone import Backbone
from policies.chunking import history_offsets
from policies.demos.hdf5 import DemoFile
from pretrain.artifact import atomic_write_text

BATCH = 32


def cache_key(backbone: Backbone, demos: DemoFile) -> str:
    """What the features depend on: the encoder and its preprocessing, the demonstrations, the history, the pooling."""
    assert backbone.encoder is not None
    spec = backbone.spec
    text = [
        backbone.encoder.spec.fingerprint(),
        demos.sha256,
        spec.cameras,
        spec.frames,
        spec.stride_steps,
        backbone.pooling,
    ]
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()[:32]


def demo_features(backbone: Backbone, demos: DemoFile, cache: str | Path, label: str) -> np.ndarray:
    """Features of all steps of all demonstrations in order: float[sum(N), F], memory-mapped read-only.

    A step's features see the same history that the policy will have in the environment: `frames` images `stride_steps` apart, the
    oldest repeated at the start. Pooled features are stored as float32, grids of tokens as float16. Goes on after a kill with the first demonstration that is not done.
    """
    folder = Path(cache) / cache_key(backbone, demos)
    if not (folder / "features.npy").exists():
        _compute(backbone, demos, folder, label)
    return np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)


def _compute(backbone: Backbone, demos: DemoFile, folder: Path, label: str) -> None:
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists() and not (partial / "done.json").exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    shape = (sum(demos.lengths), backbone.feature_dim)
    first = json.loads((partial / "done.json").read_text()) if (partial / "done.json").exists() else 0
    path = partial / "features.npy"
    dtype = np.float16 if backbone.pooling == "grid" else np.float32
    rows = np.lib.format.open_memmap(path, mode="r+" if first else "w+", dtype=dtype, shape=None if first else shape)
    start = sum(demos.lengths[:first])
    progress = tqdm(total=shape[0], initial=start, desc=f"features {label}", unit="frame", disable=None)
    for demo in range(first, len(demos)):
        images = demos.observation(demo, [f"images/{camera}" for camera in backbone.spec.cameras])
        for begin in range(0, demos.lengths[demo], BATCH):
            end = min(begin + BATCH, demos.lengths[demo])
            rows[start + begin : start + end] = _window_features(backbone, images, begin, end)
            progress.update(end - begin)
        rows.flush()
        start += demos.lengths[demo]
        atomic_write_text(partial / "done.json", json.dumps(demo + 1))
    progress.close()
    del rows
    os.replace(partial, folder)


def _window_features(backbone: Backbone, images: dict[str, np.ndarray], begin: int, end: int) -> np.ndarray:
    """Features of steps begin..end-1 of one demonstration: float32[end - begin, F]."""
    offsets = history_offsets(backbone.spec.frames, backbone.spec.stride_steps)
    steps = np.maximum(np.arange(begin, end)[:, None] - offsets[None], 0)
    return backbone.features({key: torch.from_numpy(values[steps]) for key, values in images.items()}).numpy()

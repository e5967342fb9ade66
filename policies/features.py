"""What every demonstration frame gives, computed once and memory-mapped: frozen features, or decoded images for an encoder that is trained.

<cache>/<key>/done.json           how many demonstrations are done, and what the key is of
<cache>/<key>/<camera>.npy        one row a step, of all demonstrations in order

A key is the hash of all that the rows depend on. A folder under its final name is whole; a job that was killed goes on with the first
demonstration that is not done.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tqdm import tqdm

from policies.backbone import Backbone
from policies.chunking import history_offsets
from policies.demos.hdf5 import DemoFile
from pretrain.artifact import atomic_write_text

BATCH = 32  # clips the encoder sees at once

# (demonstration, its row to begin with, the one to end before) -> rows by camera
ComputeRows = Callable[[int, int, int], Mapping[str, np.ndarray]]


def demo_features(
    backbone: Backbone, demos: DemoFile, cache: str | Path, label: str, *, half_tokens: bool = True, every: int = 1
) -> dict[str, np.ndarray]:
    """The frozen encoder's output of all steps, by camera: float[M, D] or [M, P, D], M = sum(N) if every = 1, memory-mapped read-only.

    A row is of the images that the policy will have at that step in the environment, the oldest repeated at the start. It holds one latent; a
    read-out over time takes several rows (`history_rows`), so pooled features serve "pooled" and "flare" alike, and tokens all of theirs.

    Args:
        half_tokens: tokens are kept as float16, at half the size; pooled features are always float32.
        every: steps of a demonstration from one row to the next, beginning with its first.
    """
    assert backbone.encoder is not None
    spec = backbone.spec
    window = spec.frames - backbone.config.latents + 1
    dtype = np.dtype(np.float16 if half_tokens and backbone.needs == "tokens" else np.float32)
    key = {
        "encoder": backbone.encoder.spec.fingerprint(),
        "demos": demos.sha256,
        "cameras": spec.cameras,
        "frames": window,
        "stride_steps": spec.stride_steps,
        "needs": backbone.needs,
        "dtype": dtype.name,
    } | ({} if every == 1 else {"every": every})  # what was made before there was a choice keeps its name
    offsets = history_offsets(window, spec.stride_steps)
    device = next(backbone.encoder.parameters(), torch.empty(0)).device

    def compute(demo: int, begin: int, end: int) -> dict[str, np.ndarray]:
        steps = np.maximum(every * np.arange(begin, end)[:, None] - offsets[None], 0)
        needed, places = np.unique(steps, return_inverse=True)
        rows = {}
        for camera in spec.cameras:
            images = torch.from_numpy(demos.frames(demo, camera, needed.tolist())[places.reshape(steps.shape)])
            rows[camera] = backbone.encode_clips(images.to(device)).cpu().numpy()
        return rows

    shapes = dict.fromkeys(spec.cameras, backbone.feature_shape)
    return _stored(Path(cache), key, shapes, dtype, kept_lengths(demos.lengths, every), compute, f"features {label}")


def demo_images(cameras: Sequence[str], demos: DemoFile, cache: str | Path, label: str) -> dict[str, np.ndarray]:
    """The images of all steps, decoded, by camera: uint8[sum(N), H, W, 3], memory-mapped read-only: an encoder that is trained reads them at
    random, again and again."""

    def compute(demo: int, begin: int, end: int) -> dict[str, np.ndarray]:
        return {camera: demos.frames(demo, camera, range(begin, end)) for camera in cameras}

    key = {"demos": demos.sha256, "cameras": tuple(cameras), "needs": "images"}
    shapes = {camera: demos.env_spec.observation[f"images/{camera}"].shape for camera in cameras}
    return _stored(Path(cache), key, shapes, np.dtype(np.uint8), demos.lengths, compute, f"images {label}")


def kept_lengths(lengths: Sequence[int], every: int) -> list[int]:
    """How many steps of each demonstration are kept, every `every`-th from the first."""
    return [-(-length // every) for length in lengths]


def kept_rows(lengths: Sequence[int], every: int) -> Int[np.ndarray, " M"]:
    """Where those steps are among all steps of all demonstrations."""
    starts = np.cumsum([0, *lengths[:-1]])
    return np.concatenate([start + np.arange(0, length, every) for start, length in zip(starts, lengths, strict=True)])


def history_rows(lengths: Sequence[int], count: int, stride_steps: int) -> Int[np.ndarray, "N L"]:
    """For each step of all demonstrations the rows of its `count` history steps, oldest first, the first of its demonstration repeated."""
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    rows = np.arange(sum(lengths))[:, None] - history_offsets(count, stride_steps)[None]
    return np.maximum(rows, starts[:, None])


def _stored(
    cache: Path,
    key: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    lengths: Sequence[int],
    compute: ComputeRows,
    title: str,
) -> dict[str, np.ndarray]:
    text = json.dumps(key, sort_keys=True)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:32]
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(folder.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process that needs the same rows waits for them
            if not folder.exists():
                _compute(folder, json.loads(text), shapes, dtype, lengths, compute, title)
    return {camera: np.load(_rows_file(folder, camera), mmap_mode="r", allow_pickle=False) for camera in shapes}


def _compute(
    folder: Path,
    key: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    lengths: Sequence[int],
    compute: ComputeRows,
    title: str,
) -> None:
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists() and not (partial / "done.json").exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    done = partial / "done.json"
    first = json.loads(done.read_text())["demonstrations"] if done.exists() else 0
    rows = {
        camera: np.lib.format.open_memmap(
            _rows_file(partial, camera),
            mode="r+" if first else "w+",
            dtype=dtype,
            shape=None if first else (sum(lengths), *shape),
        )
        for camera, shape in shapes.items()
    }
    start = sum(lengths[:first])
    progress = tqdm(total=sum(lengths), initial=start, desc=title, unit="frame", disable=None)
    for demo in range(first, len(lengths)):
        for begin in range(0, lengths[demo], BATCH):
            end = min(begin + BATCH, lengths[demo])
            for camera, values in compute(demo, begin, end).items():
                rows[camera][start + begin : start + end] = values
            progress.update(end - begin)
        for array in rows.values():
            array.flush()
        start += lengths[demo]
        atomic_write_text(done, json.dumps({"demonstrations": demo + 1, "key": key}))
    progress.close()
    del rows
    os.replace(partial, folder)


def _rows_file(folder: Path, camera: str) -> Path:
    return folder / f"{camera.replace('/', '_')}.npy"

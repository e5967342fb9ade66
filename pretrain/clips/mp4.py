"""Frames as mp4 files that browsers play: rollouts, predictions."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8


def write_mp4(path: str | Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    """H.264 in yuv420p; H and W must be even. Written under another name first, so that the file is whole or absent."""
    if (
        frames.ndim != 4
        or frames.shape[-1] != 3
        or frames.dtype != np.uint8
        or frames.shape[1] % 2
        or frames.shape[2] % 2
    ):
        raise ValueError(
            f"video frames {frames.dtype}{list(frames.shape)}: expected uint8[T, H, W, 3] with even H and W"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}.mp4")
    with av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "20", "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(temporary, path)

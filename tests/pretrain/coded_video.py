"""Real videos whose frames carry their number in the picture, so that a test can say which frame it was given."""

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, BITS, CELL = 96, 64, 10, 16


def coded_picture(number: int) -> np.ndarray:
    """Ten bright or dark cells on grey: the bits of the number. uint8[64, 96, 3]."""
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, 5)
        top, left = 8 + row * 24, 8 + column * CELL
        picture[top : top + 24, left : left + CELL] = 255 if number >> bit & 1 else 0
    return picture


def coded_number(picture: np.ndarray) -> int:
    """The number in a picture of any size."""
    scale = min(picture.shape[:2]) / HEIGHT
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, 5)
        centre = picture[int((20 + row * 24) * scale), int((16 + column * CELL) * scale)]
        number |= int(centre.mean() > 128) << bit
    return number


def write_video(
    path: Path,
    times_s: Sequence[float],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    first: int = 0,
    pictures: Sequence[np.ndarray] | None = None,
    key_every: int = 12,
    pixels: str = "yuv420p",
) -> Path:
    """Frame i, at ``times_s[i]``, shows the number ``first + i`` (or the picture i)."""
    time_base = Fraction(1, 15360)
    pictures = [coded_picture(first + index) for index in range(len(times_s))] if pictures is None else pictures
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        # The rate decides how long the last frame lasts.
        rate = Fraction((len(times_s) - 1) / (times_s[-1] - times_s[0])).limit_denominator(1000)
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = key_every
        if rotation:
            stream.set_display_rotation(rotation)
        for time_s, picture in zip(times_s, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time_s / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for index in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, index * 1024, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def index_first(path: Path, out: Path) -> Path:
    """The same MP4 with its index before the frames, as for streaming: cut off, it still opens."""
    with av.open(str(path)) as source, av.open(str(out), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return out


def steady(frames: int, fps: float = 30.0, start_s: float = 0.0) -> list[float]:
    return [start_s + index / fps for index in range(frames)]


def varying(frames: int, seed: int = 0) -> list[float]:
    gaps = np.random.default_rng(seed).uniform(0.01, 0.08, frames - 1).tolist()
    return [0.0, *itertools.accumulate(gaps)]

"""Frames of a video file at given times, exactly, through PyAV.

Time 0 is the first frame of the video stream, whatever time the file gives it: recordings cut without re-encoding start at
the time at which they were cut. The frame *shown* at a time is the last one whose timestamp is not after it. Only timestamps are
used, never frame numbers, so variable frame rates, dropped frames and B-frames need no care from the caller.
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float64, UInt8, UInt16

# Why a video gives no frames; the same words are counted in a store's manifest.
VIDEO_MISSING = "video missing"
VIDEO_UNDECODABLE = "video undecodable"
VIDEO_TRUNCATED = "video truncated"
VIDEO_NOT_VIDEO = "file without video"
VIDEO_UNTIMED = "video without times"
TIME_OUTSIDE = "time outside the video"
FRAMES_MISSING = "frames missing in the span"

# No video is longer: 11 days.
LONGEST_S = 1e6

# Times closer than this are read in one pass: decoding 2 s costs about what a seek to the key frame before costs.
_NEAR_S = 2.0
# Containers round timestamps to their ticks (Matroska: 1 ms), the first frame's too, so that frame 2 of a 30 Hz video may be
# stamped 67 ms, after the 66.7 ms at which it is due. This grace gives the frame that was meant.
_GRACE_S = 0.0005
# Codecs that store frames in another order than they are shown in; AVI has no field for the latter.
_REORDERED_CODECS = ("h264", "hevc")
# How far before the wanted time the key frame is sought, in turn.
_SEEK_STEPS_S = (0.0, 1.0, 4.0, 16.0, 64.0, 256.0, 2 * LONGEST_S)
# Packets that say whether the rate is variable, where the container has no index of all frames.
_PROBED_PACKETS = 300


class VideoError(ValueError):
    """A video that does not give what was asked.

    Attributes:
        reason: one of the constants above, the same for all videos with this fault.
        detail: what was found, without the path.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, detail: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file says of its video.

    Attributes:
        duration_s: from the first frame to the end of the last.
        fps: mean frame rate.
        width: pixels as displayed, after rotation; ``height`` likewise.
        frames: number of frames; None where the container does not say.
        is_variable_rate: the gaps between the frames differ by more than a tenth of their median (in all frames where the
            container has an index, as MP4 has; else in the first 300).
    """

    duration_s: float
    fps: float
    width: int
    height: int
    frames: int | None
    is_variable_rate: bool


def read_frames(
    path: str | os.PathLike[str], times_s: Sequence[float], *, size: int | None = None, max_gap_s: float | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """The frames shown at given times, upright, RGB.

    Args:
        path: the video file.
        times_s: seconds from the first frame, in any order, repeats allowed.
        size: length of the short side in pixels; the other side keeps the picture's aspect. None = as displayed.
        max_gap_s: the longest that a frame may stand for: if the next one (or the end) comes later, frames are missing there.
            None = no limit, the last frame before a gap is shown through it.

    Raises:
        VideoError: (a ValueError) the file is missing, holds no video, ends early or cannot be decoded; a time lies outside
            the video or in a gap. Its ``reason`` says which.
        ValueError: no times, a time that is not finite, a size below 1.
    """
    return read_timed_frames(path, times_s, size=size, max_gap_s=max_gap_s)[0]


def read_timed_frames(
    path: str | os.PathLike[str], times_s: Sequence[float], *, size: int | None = None, max_gap_s: float | None = None
) -> tuple[UInt8[np.ndarray, "T H W 3"], Float64[np.ndarray, " T"]]:
    """As :func:`read_frames`, and the timestamp of each frame (at most a frame's length before the time asked, give or take
    the rounding of timestamps), for those who match frames with samples of other sensors."""
    wanted = [float(time_s) for time_s in times_s]
    if not wanted or not all(math.isfinite(time_s) for time_s in wanted):
        raise ValueError(f"{os.fspath(path)}: times_s is {wanted!r:.80}, expected one or more finite numbers")
    if size is not None and size < 1:
        raise ValueError(f"{os.fspath(path)}: size={size}, expected 1 pixel or more, or None")
    if min(wanted) < 0:
        raise VideoError(path, TIME_OUTSIDE, f"{min(wanted):g} s is before its start")
    if max(wanted) > LONGEST_S:
        raise VideoError(path, TIME_OUTSIDE, f"{max(wanted):g} s is beyond any video")
    images: dict[float, tuple[UInt8[np.ndarray, "H W 3"], float]] = {}
    with _open(path) as (container, stream):
        convert = _Converter(stream, size)
        for group in _near_groups(sorted(set(wanted))):
            for time_s, frame, shown_s in _shown_frames(path, container, stream, group, max_gap_s):
                images[time_s] = convert(frame), shown_s
    pictures, stamps_s = zip(*(images[time_s] for time_s in wanted), strict=True)
    return np.stack(pictures), np.asarray(stamps_s, np.float64)


def read_gray16(path: str | os.PathLike[str], times_s: Sequence[float]) -> UInt16[np.ndarray, "T H W"]:
    """The frames shown at given times of a video of 16-bit grey (depth), exactly and as stored.

    Raises:
        VideoError: as :func:`read_frames`; also if the video holds another kind of pixels.
    """
    images: dict[float, UInt16[np.ndarray, "H W"]] = {}
    with _open(path) as (container, stream):
        for time_s, frame, _ in _shown_frames(path, container, stream, sorted(set(times_s)), None):
            if frame.format.name not in ("gray16le", "gray16be"):
                raise VideoError(path, VIDEO_UNDECODABLE, f"its pixels are {frame.format.name}, expected 16-bit grey")
            images[time_s] = frame.to_ndarray().astype(np.uint16)
    return np.stack([images[time_s] for time_s in times_s])


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Reads the header, the index and the first frame.

    Raises:
        VideoError: the file is missing, holds no video, or cannot be decoded.
    """
    with _open(path) as (container, stream):
        duration_s = _stated_duration_s(container, stream)
        try:
            first = next(container.decode(stream), None)
        except av.error.FFmpegError as error:
            raise _undecodable(path, error) from None
        if first is None or duration_s is None:
            raise VideoError(path, VIDEO_UNDECODABLE, "it states no duration, or its first frame is missing")
        times_s = _some_frame_times_s(container, stream)
        fps = float(stream.average_rate or (len(times_s) - 1) / (times_s[-1] - times_s[0] or 1.0))
        height, width = _Converter(stream, None)(first).shape[:2]
        return VideoInfo(
            duration_s=duration_s,
            fps=fps,
            width=width,
            height=height,
            frames=stream.frames or None,
            is_variable_rate=_is_variable_rate(times_s, _tick_s(stream)),
        )


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, VideoStream]]:
    file = Path(path)
    if not file.is_file():
        raise VideoError(path, VIDEO_MISSING, "there is a directory of that name" if file.is_dir() else "no such file")
    if file.stat().st_size == 0:
        raise VideoError(path, VIDEO_UNDECODABLE, "the file is empty (0 bytes)")
    try:
        container = av.open(os.fspath(file), mode="r")
    except av.error.FFmpegError as error:
        raise _undecodable(path, error) from None
    with container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no stream"
            raise VideoError(path, VIDEO_NOT_VIDEO, f"it holds {kinds}")
        stream = container.streams.video[0]
        if container.format.name == "avi" and stream.codec_context.name in _REORDERED_CODECS:
            raise VideoError(
                path, VIDEO_UNTIMED, "AVI cannot hold the times of such frames; copy it into MP4 from its source"
            )
        # One process a core is the parallelism here.
        stream.codec_context.thread_count = 1
        yield container, stream


def _undecodable(path: str | os.PathLike[str], error: Exception) -> VideoError:
    return VideoError(path, VIDEO_UNDECODABLE, _words(error))


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _fault(
    path: str | os.PathLike[str], container: InputContainer, stream: VideoStream, time_s: float, detail: str
) -> VideoError:
    """Why the decoding for a time failed: the time is outside, the file ends early, or else what ``detail`` says."""
    stated_s = _stated_duration_s(container, stream)
    if stated_s is not None and time_s > stated_s:
        return VideoError(path, TIME_OUTSIDE, f"{time_s:.3f} s is after its end at {stated_s:.3f} s")
    file_bytes = os.path.getsize(path)
    if any(entry.pos + entry.size > file_bytes for entry in stream.index_entries):
        return VideoError(path, VIDEO_TRUNCATED, "frames of its index lie beyond the end of the file")
    return VideoError(path, VIDEO_UNDECODABLE, detail)


def _near_groups(times_s: list[float]) -> list[list[float]]:
    groups = [times_s[:1]]
    for before_s, time_s in itertools.pairwise(times_s):
        if time_s - before_s > _NEAR_S:
            groups.append([])
        groups[-1].append(time_s)
    return groups


def _shown_frames(
    path: str | os.PathLike[str],
    container: InputContainer,
    stream: VideoStream,
    times_s: list[float],
    max_gap_s: float | None,
) -> Iterator[tuple[float, VideoFrame, float]]:
    """The frame shown at each of some sorted times, and its own time, after one seek."""
    stated_s = _stated_duration_s(container, stream)
    waiting = list(reversed(times_s))
    shown: VideoFrame | None = None
    shown_s = 0.0
    try:
        for frame, frame_s in _decode_from(path, container, stream, times_s[0] + _GRACE_S):
            while waiting and frame_s > waiting[-1] + _GRACE_S:
                if shown is None:
                    raise VideoError(path, VIDEO_UNDECODABLE, f"the frames before {frame_s:.3f} s cannot be decoded")
                _check_gap(path, waiting[-1], shown_s, frame_s, max_gap_s)
                yield waiting.pop(), _sound(path, shown), shown_s
            if not waiting:
                return
            shown, shown_s = frame, frame_s
    except av.error.FFmpegError as error:
        raise _fault(path, container, stream, waiting[-1] if waiting else 0.0, _words(error)) from None
    # What is left lies after the last frame that could be decoded.
    end_s = shown_s + _frame_duration_s(stream, shown)
    for time_s in reversed(waiting):
        if shown is None or time_s >= end_s + _GRACE_S:
            if stated_s is not None and time_s < stated_s:
                raise VideoError(
                    path, VIDEO_TRUNCATED, f"its frames end at {end_s:.3f} s, before {time_s:.3f} s; it states {stated_s:.3f} s"
                )  # fmt: skip
            raise VideoError(path, TIME_OUTSIDE, f"{time_s:.3f} s is after its end at {end_s:.3f} s")
        _check_gap(path, time_s, shown_s, end_s, max_gap_s)
        yield time_s, _sound(path, shown), shown_s


def _decode_from(
    path: str | os.PathLike[str], container: InputContainer, stream: VideoStream, time_s: float
) -> Iterator[tuple[VideoFrame, float]]:
    """Decodes from the last key frame that is shown at or before a time; each frame with its time."""
    start_s = _start_s(stream)
    tick_s = _tick_s(stream)
    for step_s in _SEEK_STEPS_S:
        # Some containers seek by decoding time, which is earlier than the time of showing where there are B-frames, and some
        # guess the place: then the key frame that is found may be shown after the time, and the search steps back.
        container.seek(math.floor((time_s - step_s + start_s) / tick_s), stream=stream, backward=True)
        packets = container.demux(stream)
        key = next((packet for packet in packets if packet.is_keyframe and packet.pts is not None), None)
        if key is not None and key.pts is not None and key.pts * tick_s - start_s <= time_s:
            break
        if step_s > time_s:
            raise _fault(path, container, stream, time_s, f"no key frame is found at or before {time_s:.3f} s")
    else:
        raise AssertionError("the last step is longer than any video")
    for packet in itertools.chain([key], packets):
        for frame in packet.decode():
            if frame.pts is None:
                raise VideoError(path, VIDEO_UNDECODABLE, "a frame has no time")
            # Frames before the key frame lean on frames that were not decoded.
            if frame.pts >= key.pts:
                yield frame, frame.pts * tick_s - start_s


def _check_gap(
    path: str | os.PathLike[str], time_s: float, shown_s: float, next_s: float, max_gap_s: float | None
) -> None:
    if max_gap_s is not None and next_s - shown_s > max_gap_s:
        raise VideoError(
            path, FRAMES_MISSING, f"no frame between {shown_s:.3f} s and {next_s:.3f} s, where {time_s:.3f} s is wanted"
        )


def _sound(path: str | os.PathLike[str], frame: VideoFrame) -> VideoFrame:
    if frame.is_corrupt:
        raise VideoError(path, VIDEO_UNDECODABLE, f"the frame at {frame.time} s of the file is damaged")
    return frame


def _tick_s(stream: VideoStream) -> float:
    assert stream.time_base is not None
    return float(stream.time_base)


def _start_s(stream: VideoStream) -> float:
    return (stream.start_time or 0) * _tick_s(stream)


def _frame_duration_s(stream: VideoStream, frame: VideoFrame | None) -> float:
    if frame is not None and frame.duration:
        return frame.duration * _tick_s(stream)
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _stated_duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration is not None:
        return stream.duration * _tick_s(stream)
    if container.duration is None:
        return None
    # Matroska states the time of its end, the others how long they last.
    before_s = _start_s(stream) if "matroska" in container.format.name else 0.0
    return container.duration / av.time_base - before_s


def _some_frame_times_s(container: InputContainer, stream: VideoStream) -> Float64[np.ndarray, " N"]:
    """Sorted times of all frames where the container has an index, else of the first packets."""
    entries = stream.index_entries
    if stream.frames and len(entries) >= stream.frames:
        ticks = [entry.timestamp for entry in entries]
    else:
        container.seek(stream.start_time or 0, stream=stream)
        packets = itertools.islice(container.demux(stream), _PROBED_PACKETS)
        ticks = [packet.pts for packet in packets if packet.pts is not None]
    return np.sort(np.asarray(ticks or [0], np.float64)) * _tick_s(stream)


def _is_variable_rate(times_s: Float64[np.ndarray, " N"], tick_s: float) -> bool:
    gaps_s = np.diff(times_s)
    if len(gaps_s) < 2:
        return False
    # Timestamps are rounded to ticks, so equal gaps may differ by one.
    return bool(gaps_s.max() - gaps_s.min() > max(1.5 * tick_s, 0.1 * np.median(gaps_s)))


class _Converter:
    """Frames of one stream to upright RGB pictures of one size."""

    def __init__(self, stream: VideoStream, size: int | None) -> None:
        self._pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        self._size = size
        self._reformatter = VideoReformatter()
        self._coded_size: tuple[int, int] | None = None

    def __call__(self, frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        if self._coded_size is None:
            self._coded_size = self._target(frame)
        width, height = self._coded_size
        shrinks = width * height < frame.width * frame.height
        picture = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation="AREA" if shrinks else "BICUBIC"
        ).to_ndarray()
        quarter_turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(picture, quarter_turns))

    def _target(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height before the rotation."""
        width, height = frame.width * float(self._pixel_aspect), float(frame.height)
        scale = 1.0 if self._size is None else self._size / min(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

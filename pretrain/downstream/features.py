"""Frozen features of segments, computed once per (encoder, data, frames) and kept on disk; dense features of long videos.

Axes: n segments, T frames, N = T * h * w tokens, D feature width, E joint dimension, L features of a long video.
"""

import hashlib
import io
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from tqdm import tqdm

from pretrain.artifact import atomic_write_bytes
from pretrain.downstream.segments import Segment, VideoSource
from pretrain.downstream.subjects import Subject

_SAVE_EVERY_S = 120.0


class UnreadableSegments(Exception):
    """Some segments gave no frames: segment -> the reason."""

    def __init__(self, reasons: dict[Segment, str]) -> None:
        super().__init__(f"{len(reasons)} segments cannot be read")
        self.reasons = reasons


@dataclass(frozen=True)
class View:
    """A segment under one crop (0 left or top, 0.5 centre, 1 right or bottom)."""

    segment: Segment
    crop: float = 0.5

    def __str__(self) -> str:
        return f"{self.segment} {self.crop:g}"


class Extractor:
    """Features of one subject over one source. An image encoder sees each of `frames` frames alone: its pooled feature is
    their mean, its tokens are side by side.

    Args:
        cache: directory for features; None keeps them in memory only.
        export: directory that gets the dense features of long videos, a file a video; None = not wanted.

    Raises:
        ValueError: a video encoder that takes another number of frames.
    """

    def __init__(
        self,
        subject: Subject,
        source: VideoSource,
        *,
        frames: int,
        batch_size: int = 16,
        device: str = "cpu",
        cache: Path | None = None,
        export: Path | None = None,
    ) -> None:
        spec = subject.encoder.spec
        if spec.frames not in (1, frames):
            raise ValueError(
                f"{subject.name} takes {spec.frames} frame{'s' * (spec.frames > 1)} a clip, this measurement is of {frames}: encoders of one table see "
                "the same frames; measure it in a table of its own"
            )
        self.subject = subject.to(device)
        self.source = source
        self.frames = frames
        self.export = export
        self.grid = (frames, *spec.grid[1:])
        self._batch_size = batch_size
        self.device = device
        key = hashlib.sha256(f"{subject.fingerprint} {source.sha256} {frames}".encode()).hexdigest()[:32]
        self._pooled_file = None if cache is None else cache / f"{key}-pooled.npz"
        self._tokens_file = None if cache is None else cache / f"{key}-tokens.npz"
        self._pooled: dict[str, np.ndarray] = _load_cache(self._pooled_file)
        self._tokens: dict[str, np.ndarray] | None = None

    def pooled(self, views: Sequence[Segment | View]) -> Float32[np.ndarray, "n D"]:
        """Raises UnreadableSegments naming those without frames, after the others are done."""
        keys = self._compute(views, tokens=False)
        return np.stack([self._pooled[key] for key in keys]) if keys else np.zeros((0, self.width), np.float32)

    def tokens(self, views: Sequence[Segment | View]) -> Float[np.ndarray, "n N D"]:
        """float16, which holds layer-normed features to a part in a thousand."""
        keys = self._compute(views, tokens=True)
        assert self._tokens is not None
        return np.stack([self._tokens[key] for key in keys])

    def joint(self, views: Sequence[Segment | View]) -> Float[Tensor, "n E"]:
        """L2-normalised embeddings in the space of the texts."""
        return self.subject.join(torch.from_numpy(self.pooled(views)))

    def release(self) -> None:
        """Forgets the tokens; the disk keeps them."""
        self._tokens = None

    @property
    def width(self) -> int:
        return self.subject.encoder.spec.embed_dim

    def _compute(self, views: Sequence[Segment | View], *, tokens: bool) -> list[str]:
        if tokens and self._tokens is None:
            self._tokens = _load_cache(self._tokens_file)
        wanted: dict[str, View] = {}
        keys, broken = [], {}
        for view in views:
            view = view if isinstance(view, View) else View(view)
            try:
                resolved = View(self.source.resolve(view.segment), view.crop)
            except ValueError as error:
                broken[view.segment] = str(error)
                continue
            keys.append(str(resolved))
            wanted[keys[-1]] = resolved
        store = self._tokens if tokens else self._pooled
        assert store is not None
        missing = [view for key, view in wanted.items() if key not in store]
        if missing:
            broken |= self._extract(missing, tokens)
            if broken:
                # The caller knows its segments by the names it gave.
                resolved_of = {
                    self.source.resolve(v.segment): v.segment for v in map(_as_view, views) if v.segment not in broken
                }
                broken = {resolved_of.get(segment, segment): reason for segment, reason in broken.items()}
        if broken:
            raise UnreadableSegments(broken)
        return keys

    def _extract(self, views: list[View], tokens: bool) -> dict[Segment, str]:
        broken: dict[Segment, str] = {}
        saved = time.monotonic()
        progress = tqdm(total=len(views), desc=f"features {self.subject.name}", unit="clip", disable=None, leave=False)
        for start in range(0, len(views), self._batch_size):
            batch, videos = [], []
            for view in views[start : start + self._batch_size]:
                try:
                    videos.append(
                        self.source.read(view.segment, self.frames, self.subject.encoder.spec.image_size, view.crop)
                    )
                    batch.append(view)
                except ValueError as error:
                    broken[view.segment] = str(error)
            if batch:
                pooled, grid_tokens = self._forward(np.stack(videos))
                for row, view in enumerate(batch):
                    self._pooled[str(view)] = pooled[row]
                    if tokens:
                        assert self._tokens is not None
                        self._tokens[str(view)] = grid_tokens[row].astype(np.float16)
            progress.update(len(views[start : start + self._batch_size]))
            if time.monotonic() - saved > _SAVE_EVERY_S:
                self._save(tokens)
                saved = time.monotonic()
        progress.close()
        self._save(tokens)
        return broken

    @torch.inference_mode()
    def _forward(self, videos: np.ndarray) -> tuple[Float32[np.ndarray, "b D"], Float32[np.ndarray, "b N D"]]:
        encoder = self.subject.encoder
        video = torch.from_numpy(videos).to(self.device)
        alone = encoder.spec.frames == 1 and self.frames > 1
        if alone:
            video = video.flatten(0, 1).unsqueeze(1)
        output = encoder(encoder.preprocess(video))
        pooled, tokens = output.pooled.float(), output.tokens.float()
        if alone:
            pooled = pooled.unflatten(0, (-1, self.frames)).mean(dim=1)
            tokens = tokens.unflatten(0, (-1, self.frames)).flatten(1, 2)
        return pooled.cpu().numpy(), tokens.cpu().numpy()

    def _save(self, tokens: bool) -> None:
        _save_cache(self._pooled_file, self._pooled)
        if tokens and self._tokens is not None:
            _save_cache(self._tokens_file, self._tokens)


def _as_view(view: Segment | View) -> View:
    return view if isinstance(view, View) else View(view)


def _save_cache(path: Path | None, rows: dict[str, np.ndarray]) -> None:
    if path is None or not rows:
        return
    buffer = io.BytesIO()
    np.savez(buffer, keys=np.array(list(rows)), rows=np.stack(list(rows.values())))
    atomic_write_bytes(path, buffer.getvalue())


def _load_cache(path: Path | None) -> dict[str, np.ndarray]:
    """What is there; a damaged file counts as none, it can be computed again."""
    if path is None or not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(zip(file["keys"].tolist(), file["rows"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


# ------------------------------------------------------------------------------------------------------- dense features


@dataclass(frozen=True, kw_only=True)
class DenseGrid:
    """Features of a long video at `rate_hz`, each of a window of `window_s` around the middle of its slot."""

    rate_hz: float
    window_s: float

    def __post_init__(self) -> None:
        for name in ("rate_hz", "window_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")

    def slots(self, start_s: float, end_s: float) -> int:
        """L, at least 1."""
        return max(1, int(np.ceil((end_s - start_s) * self.rate_hz - 1e-6)))

    def segments(self, video: str, start_s: float, end_s: float) -> list[Segment]:
        """The windows, moved inward at both ends so that none leaves the piece."""
        width = min(self.window_s, end_s - start_s)
        segments = []
        for slot in range(self.slots(start_s, end_s)):
            middle = start_s + (slot + 0.5) / self.rate_hz
            begin = min(max(middle - width / 2, start_s), end_s - width)
            segments.append(Segment(video, round(begin, 6), round(begin + width, 6)))
        return segments


def save_dense_features(
    path: Path,
    features: Float[np.ndarray, "L D"],
    *,
    video: str,
    start_s: float,
    grid: DenseGrid,
    joint: Float[np.ndarray, "L E"] | None = None,
) -> None:
    """Writes one video's features as an npz of plain arrays: "features", "times_s" (middles of the slots), "video",
    "rate_hz", "window_s", and "joint" where the encoder has a text space. For heads outside EgoArm."""
    times: Float64[np.ndarray, " L"] = start_s + (np.arange(len(features)) + 0.5) / grid.rate_hz
    extra = {} if joint is None else {"joint": joint}
    buffer = io.BytesIO()
    np.savez(
        buffer, features=features, times_s=times, video=video, rate_hz=grid.rate_hz, window_s=grid.window_s, **extra
    )
    atomic_write_bytes(path, buffer.getvalue())

"""A picture of annotated clips: masks, boxes and contacts over the frames, captions below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pretrain.annotate.records import Detections, Track
from pretrain.clips.schema import Clip
from pretrain.clips.shards import atomic_file

_COLORS = {"left": (230, 120, 0), "right": (0, 110, 220)}
_OBJECT_COLORS = ((0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 60, 40), (86, 220, 233), (150, 90, 220))
_DRAWN_PX = 256


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """One clip of the sheet. `text`: captions, or why there are none; `facts`: whose contacts are written into frames."""

    clip: Clip
    tracks: tuple[Track, ...]
    detections: Detections
    facts: tuple[dict[str, Any], ...]
    text: tuple[str, ...]
    captioned: bool


def draw_overlays(overlays: Sequence[Overlay], path: Path, *, frames: int = 5) -> None:
    """Writes a PNG with a row a clip and `frames` frames across.

    Raises:
        ValueError: no clips.
    """
    if not overlays:
        raise ValueError("a contact sheet needs at least one clip")
    row_in, text_in = 1.9, 1.15
    figure = Figure(figsize=(frames * 1.9 + 0.2, len(overlays) * (row_in + text_in)), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2 * len(overlays), frames, height_ratios=[row_in, text_in] * len(overlays), hspace=0.02, wspace=0.03,
        left=0.01, right=0.99, top=0.995, bottom=0.0,
    )  # fmt: skip
    for row, overlay in enumerate(overlays):
        assert overlay.clip.rgb is not None
        length = len(overlay.clip.rgb)
        for column, frame in enumerate(np.linspace(0, length - 1, frames).round().astype(int).tolist()):
            axis = figure.add_subplot(grid[2 * row, column])
            axis.imshow(_draw(overlay, frame))
            axis.set_axis_off()
            said = _contacts(overlay, frame)
            if said:
                axis.text(0.02, 0.03, textwrap.shorten(said, 44), fontsize=5.5, color="white", transform=axis.transAxes,
                          bbox={"facecolor": "black", "alpha": 0.65, "pad": 1, "linewidth": 0})  # fmt: skip
            axis.text(0.98, 0.97, str(frame), fontsize=6, color="white", ha="right", va="top", transform=axis.transAxes)
        axis = figure.add_subplot(grid[2 * row + 1, :])
        axis.set_axis_off()
        narration = textwrap.shorten(overlay.clip.narration or "(no narration)", 120)
        axis.text(0, 0.98, f"{overlay.clip.key}   {narration}", fontsize=7.5, color="0.35", va="top")
        lines = [textwrap.shorten(text, 165) for text in overlay.text[:4]]
        axis.text(
            0, 0.78, "\n".join(lines), fontsize=7.5, va="top", color="black" if overlay.captioned else "firebrick"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _color(track: Track) -> tuple[int, int, int]:
    return _COLORS[track.side] if track.side in _COLORS else _OBJECT_COLORS[(track.id - 3) % len(_OBJECT_COLORS)]


def _draw(overlay: Overlay, frame: int) -> UInt8[np.ndarray, "H W 3"]:
    assert overlay.clip.rgb is not None
    source = overlay.clip.rgb[frame]
    scale = max(1.0, _DRAWN_PX / source.shape[0])
    image = cv2.resize(source, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    size = (image.shape[1], image.shape[0])
    for track in overlay.tracks:
        mask = track.mask(frame)
        if mask is None:
            continue
        large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        color = np.array(_color(track))
        image[large > 0] = (0.6 * image[large > 0] + 0.4 * color).astype(np.uint8)
        edges, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, edges, -1, _color(track), 1)
    for found in overlay.detections.get(frame, ()):
        color = _COLORS.get(found.side or "", (255, 255, 255))
        x1, y1, x2, y2 = (round(value * scale) for value in found.box_xyxy)
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), color, 1)
    return image


def _contacts(overlay: Overlay, frame: int) -> str:
    touched = [
        f"{fact['hand']} on {fact['object']}"
        for fact in overlay.facts
        if fact["type"] == "contact" and fact["start_frame"] <= frame <= fact["end_frame"]
    ]
    return ", ".join(touched)

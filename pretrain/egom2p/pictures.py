"""What goes into a prediction beside what came out of it: a picture and a video that a person can judge.

Axes: T frames, S side of a panel in pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pretrain.clips.mp4 import write_mp4
from pretrain.clips.schema import Clip
from pretrain.egom2p.modalities import MODALITIES, SEQUENCE_HZ, VIDEO, VIDEO_FRAMES, VIDEO_HZ, square_window

# Truth and prediction, apart for colour-blind eyes too (Okabe and Ito's blue and vermilion).
TRUTH_COLOR, PREDICTED_COLOR = "#0072b2", "#d55e00"
_TRUTH_RGB, _PREDICTED_RGB = (0, 114, 178), (213, 94, 0)
_PANEL_PX = 192
_COLUMNS = (0, 5, 10, 15)

Shown = Mapping[str, np.ndarray | None]


def draw_picture(path: Path, clip: Clip, *, given: Sequence[str], truth: Shown, predicted: Shown) -> None:
    """Writes a PNG: a row a video modality given, its truth and its prediction, four frames across; sequences as curves.

    Args:
        truth: modality -> what the clip says, or None; predicted: modality -> what the model says, both as predictions are.
    """
    rows = _video_rows(clip, given, truth, predicted)
    curves = [name for name in predicted if MODALITIES[name].kind != VIDEO]
    heights = [1.0] * len(rows) + [1.5] * len(curves)
    figure = Figure(figsize=(8.4, 2.1 * sum(heights) + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), len(_COLUMNS), height_ratios=heights)
    for row, (title, frames) in enumerate(rows):
        for column, frame in enumerate(_COLUMNS):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(frames[frame])
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_title(title, loc="left", fontsize=9)
            if row == 0:
                axis.set_xlabel(f"{frame / VIDEO_HZ:.2f} s", fontsize=8)
    for number, name in enumerate(curves):
        _draw_sequence(figure, grid[len(rows) + number, :], name, truth.get(name), predicted[name])
    figure.suptitle(f"{clip.key}: {', '.join(predicted)} from {', '.join(given)}", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, format="png")


def write_video(path: Path, clip: Clip, *, given: Sequence[str], truth: Shown, predicted: Shown) -> None:
    """Writes an mp4 with the same rows side by side, a strip of title above each."""
    panels = []
    for title, frames in _video_rows(clip, given, truth, predicted):
        panel = np.stack(
            [cv2.resize(frame, (_PANEL_PX, _PANEL_PX), interpolation=cv2.INTER_LINEAR) for frame in frames]
        )
        strip = np.full((len(panel), 24, _PANEL_PX, 3), 255, np.uint8)
        for image in strip:
            cv2.putText(image, title, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        panels.append(np.concatenate([strip, panel], axis=1))
    write_mp4(path, np.concatenate(panels, axis=2), VIDEO_HZ)


def _video_rows(
    clip: Clip, given: Sequence[str], truth: Shown, predicted: Shown
) -> list[tuple[str, UInt8[np.ndarray, "T S S 3"]]]:
    """(title, frames) of everything that is a picture: given video, then truth and prediction of what was asked for."""
    rows = []
    for name in given:
        array = truth.get(name)
        if MODALITIES[name].kind == VIDEO and array is not None:
            rows.append((f"{name} (given)", _as_rgb(name, array)))
    for name, array in predicted.items():
        if MODALITIES[name].kind == VIDEO and array is not None:
            told = truth.get(name)
            if told is not None:
                rows.append((f"{name}: truth", _as_rgb(name, told)))
            rows.append((f"{name}: predicted", _as_rgb(name, array)))
    gaze = predicted.get("gaze")
    if gaze is not None:
        rows.append(("gaze: truth blue, predicted red", _gaze_frames(clip, truth.get("gaze"), gaze)))
    if not rows:
        rows.append(("gray: no video here", np.full((VIDEO_FRAMES, _PANEL_PX, _PANEL_PX, 3), 128, np.uint8)))
    return rows


def _as_rgb(name: str, array: np.ndarray) -> UInt8[np.ndarray, "T S S 3"]:
    if name != "depth":
        return array
    gray = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return np.stack([cv2.cvtColor(cv2.applyColorMap(frame, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB) for frame in gray])


def _gaze_frames(
    clip: Clip, truth: Float[np.ndarray, "P 2"] | None, predicted: Float[np.ndarray, "P 2"]
) -> UInt8[np.ndarray, "T S S 3"]:
    """The clip's own frames with both places on them."""
    if clip.rgb is None:
        frames = np.full((VIDEO_FRAMES, _PANEL_PX, _PANEL_PX, 3), 128, np.uint8)
        top, left, side = square_window(_PANEL_PX, _PANEL_PX)
    else:
        top, left, side = square_window(*clip.rgb.shape[1:3])
        frames = clip.rgb[:VIDEO_FRAMES, top : top + side, left : left + side]
    scale = 2 * _PANEL_PX / side
    drawn = []
    for number, frame in enumerate(frames):
        image = cv2.resize(frame, (2 * _PANEL_PX, 2 * _PANEL_PX), interpolation=cv2.INTER_LINEAR)
        sample = min(round(number / VIDEO_HZ * SEQUENCE_HZ), len(predicted) - 1)
        for places, color in ((truth, _TRUTH_RGB), (predicted, _PREDICTED_RGB)):
            if places is None or not np.isfinite(places[sample]).all():
                continue
            x, y = ((places[sample] - (left, top)) * scale).round().astype(int).tolist()
            cv2.circle(image, (x, y), 13, (255, 255, 255), 6, cv2.LINE_AA)
            cv2.circle(image, (x, y), 13, color, 3, cv2.LINE_AA)
        drawn.append(image)
    return np.stack(drawn)


def _draw_sequence(figure: Figure, place: Any, name: str, truth: np.ndarray | None, predicted: Any) -> None:
    """Curves over time: position of the camera or of the wrists, place of the gaze; truth full, prediction dashed."""
    labels, told, said = _curves(name, truth, predicted)
    axes = place.subgridspec(1, len(labels)).subplots()
    times = np.arange(len(said)) / SEQUENCE_HZ
    for number, (axis, label) in enumerate(zip(np.atleast_1d(axes), labels, strict=True)):
        if told is not None:
            axis.plot(times, told[:, number], color=TRUTH_COLOR, label="truth")
        axis.plot(times, said[:, number], color=PREDICTED_COLOR, linestyle="--", label="predicted")
        axis.set_title(f"{name}: {label}", fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.set_xlabel("s", fontsize=8)
        if number == 0:
            axis.legend(frameon=False, fontsize=8)


def _curves(name: str, truth: np.ndarray | None, predicted: np.ndarray) -> tuple[tuple[str, ...], Any, np.ndarray]:
    if name == "camera":
        return (
            ("x, m", "y, m", "z, m", "turned, degrees"),
            None if truth is None else _motion(truth),
            _motion(predicted),
        )
    if name == "gaze":
        return ("x, px", "y, px"), truth, predicted
    wrists = ("left x, m", "left y, m", "left z, m", "right x, m", "right y, m", "right z, m")
    return wrists, *(None if a is None else a[:, :, 0].reshape(len(a), 6) for a in (truth, predicted))  # pyright: ignore


def _motion(poses: Float[np.ndarray, "P 4 4"]) -> Float[np.ndarray, "P 4"]:
    """Position in metres and angle from the first pose in degrees."""
    trace = np.einsum("pii->p", poses[:, :3, :3])
    angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    return np.concatenate([poses[:, :3, 3], angle[:, None]], axis=1)

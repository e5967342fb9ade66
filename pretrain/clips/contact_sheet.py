"""A picture of some clips: RGB with the gaze and the joints of the hands, depth, and masks, over time."""

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from pretrain.clips.schema import HAND_BONES, HAND_JOINTS, LEFT_HAND_ID, RIGHT_HAND_ID, Clip
from pretrain.clips.shards import atomic_file

# Orange and blue for the hands, which colour-blind eyes can tell apart; then the rest of Okabe and Ito's palette and more.
_HAND_COLORS = {LEFT_HAND_ID: (230, 120, 0), RIGHT_HAND_ID: (0, 110, 220)}
_OBJECT_COLORS = (
    (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 60, 40), (86, 220, 233), (150, 90, 220), (160, 220, 60),
    (140, 100, 60),
)  # fmt: skip
_GAZE_TRAIL_S = 0.5
_DRAWN_PX = 240


def draw_contact_sheet(clips: Sequence[Clip], path: Path, *, frames: int = 5, title: str = "") -> None:
    """Writes a PNG with a block for each clip: a row for each modality that it has, and ``frames`` frames across.

    Args:
        clips: whole clips, as :meth:`ClipStore.read` gives them.
        path: where the PNG goes; its directory is made.
        frames: frames of each clip, evenly spread.
        title: a line on top.

    Raises:
        ValueError: no clips.
    """
    if not clips:
        raise ValueError("a contact sheet needs at least one clip")
    columns = 1 if len(clips) == 1 else 2
    rows = -(-len(clips) // columns)
    n_bands = max(len(_bands(clip)) for clip in clips)
    block_height_in, title_height_in = n_bands * 1.45 + 1.35, 0.4
    figure = Figure(figsize=(columns * (frames * 1.45 + 0.9), rows * block_height_in + title_height_in), dpi=100)
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left", y=1 - 0.1 / figure.get_figheight(), va="top")
    # Sub-figures fill their cells and know no margins, so the title has a row of its own.
    heights = [title_height_in, *[block_height_in] * rows]
    blocks = figure.add_gridspec(rows + 1, columns, height_ratios=heights, hspace=0, wspace=0)
    for number, clip in enumerate(clips):
        _draw_block(figure.add_subfigure(blocks[1 + number // columns, number % columns]), clip, frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _bands(clip: Clip) -> list[str]:
    return [name for name in ("rgb", "depth", "segmentation") if getattr(clip, name) is not None]


def _draw_block(block: SubFigure, clip: Clip, frames: int) -> None:
    bands = _bands(clip)
    n_frames = max((len(getattr(clip, band)) for band in bands), default=0)
    chosen = np.unique(np.linspace(0, n_frames - 1, min(frames, n_frames)).round().astype(int)).tolist()
    height_in = block.bbox.height / block.get_figure(root=True).dpi
    axes = block.subplots(
        len(bands),
        frames,
        squeeze=False,
        gridspec_kw={
            "left": 0.09, "right": 0.99, "top": 1 - 0.72 / height_in, "bottom": 0.5 / height_in, "wspace": 0.03, "hspace": 0.03,
        },
    )  # fmt: skip
    action = clip.meta.get("action")
    head = f"{clip.key}   {action}" if action else clip.key
    caption = clip.captions[0] if clip.captions else ""
    wide = 22 * frames
    block.text(0.09, 1 - 0.08 / height_in, head, fontsize=8, color="0.4", va="top")
    block.text(0.09, 1 - 0.23 / height_in, textwrap.shorten(clip.narration, wide), fontsize=10, weight="bold", va="top")
    block.text(0.09, 1 - 0.45 / height_in, textwrap.shorten(caption, round(wide * 1.2)), fontsize=7.5, va="top")
    for row, band in enumerate(bands):
        for column, axis in enumerate(axes[row]):
            axis.set_axis_off()
            if column < len(chosen):
                image = _DRAW[band](clip, chosen[column])
                axis.imshow(image, interpolation="nearest", aspect="equal")
                _annotate(axis, clip, band, chosen[column])
        axes[row][0].text(-0.06, 0.5, _band_title(clip, band), rotation=90, fontsize=8, ha="right", va="center",
                          transform=axes[row][0].transAxes)  # fmt: skip
    if "segmentation" in bands:
        assert clip.segmentation is not None
        seen = [id_ for id_ in np.unique(clip.segmentation).tolist() if id_ in clip.labels]
        patches = [Patch(color=np.array(_color(id_)) / 255, label=clip.labels[id_]) for id_ in seen]
        block.legend(handles=patches, loc="lower left", bbox_to_anchor=(0.08, 0), ncols=5, fontsize=7, frameon=False,
                     handlelength=0.9, handleheight=0.9, columnspacing=1.0, borderpad=0.1)  # fmt: skip


def _band_title(clip: Clip, band: str) -> str:
    if band == "depth":
        near, far = _depth_range(clip)
        return f"depth\n{near:.2f} to {far:.2f} m"
    if band == "segmentation":
        return "masks,\ncontacts"
    return ", ".join(["RGB", *(name for name in ("gaze", "hands") if getattr(clip, name) is not None)])


def _annotate(axis: Any, clip: Clip, band: str, frame: int) -> None:
    text = ""
    if band == "rgb" and clip.rgb_times_s is not None:
        text = f"{clip.rgb_times_s[frame]:.2f} s"
        if clip.gaze is not None and np.isnan(_gaze_trail(clip, frame)[-1]).any():
            text += ", gaze not known"
    elif band == "segmentation" and clip.contact is not None:
        touched = [(hand, int(id_)) for hand, id_ in zip(("left", "right"), clip.contact[frame], strict=True) if id_]
        text = ", ".join(f"{hand} on {clip.labels.get(id_, id_)}" for hand, id_ in touched)
    if text:
        axis.text(0.02, 0.02, textwrap.shorten(text, 36), fontsize=5.5, color="white", transform=axis.transAxes,
                  bbox={"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0})  # fmt: skip


def _draw_rgb(clip: Clip, frame: int) -> UInt8[np.ndarray, "H W 3"]:
    """The frame, enlarged, with the hands' joints, and the gaze of the last half second as a line that ends in a ring."""
    assert clip.rgb is not None
    image, scale = _enlarge(clip.rgb[frame], cv2.INTER_CUBIC)
    if clip.hands is not None and clip.intrinsics is not None and clip.world_from_camera is not None:
        _draw_hands(image, clip, frame, scale)
    if clip.gaze is None or clip.rgb_times_s is None:
        return image
    # The drawing functions count from the centre of a pixel, a gaze point from the pixel's corner.
    trail = _gaze_trail(clip, frame) * scale - 0.5
    for start, end in pairwise(trail):
        if np.isfinite(start).all() and np.isfinite(end).all():
            cv2.line(image, _point(start), _point(end), (255, 255, 0), 1, cv2.LINE_AA, 4)
    if np.isfinite(trail[-1]).all():
        cv2.circle(image, _point(trail[-1]), 8 << 4, (0, 0, 0), 4, cv2.LINE_AA, 4)
        cv2.circle(image, _point(trail[-1]), 8 << 4, (255, 0, 255), 2, cv2.LINE_AA, 4)
    return image


def _draw_hands(image: UInt8[np.ndarray, "H W 3"], clip: Clip, frame: int, scale: float) -> None:
    """Each hand in its colour, through whatever hides it: bones as lines if the joints are ``HAND_JOINTS``, else dots."""
    for joints, id_ in zip(_projected_hands(clip, frame), (LEFT_HAND_ID, RIGHT_HAND_ID), strict=True):
        points = joints * scale - 0.5
        # Far outside there is nothing to see, and the drawing functions' coordinates would overflow.
        drawn = np.isfinite(points).all(axis=-1) & (np.abs(points) < 8 * image.shape[0]).all(axis=-1)
        for start, end in HAND_BONES if len(points) == len(HAND_JOINTS) else ():
            if drawn[start] and drawn[end]:
                cv2.line(image, _point(points[start]), _point(points[end]), _color(id_), 1, cv2.LINE_AA, 4)
        for point in points[drawn]:
            cv2.circle(image, _point(point), 2 << 4, (255, 255, 255), -1, cv2.LINE_AA, 4)
            cv2.circle(image, _point(point), 2 << 4, _color(id_), 1, cv2.LINE_AA, 4)


def _projected_hands(clip: Clip, frame: int) -> Float64[np.ndarray, "2 J 2"]:
    """Pixels of the joints at the time of a frame, between the samples before and after it; NaN behind the camera.

    Pixels are interpolated rather than joints, since a camera pose between two samples would be needed for those.
    """
    assert clip.hands is not None and clip.world_from_camera is not None and clip.intrinsics is not None
    times_s = clip.rgb_times_s
    place = 0.0 if times_s is None else min(float(times_s[frame]) * clip.hands_hz, len(clip.hands) - 1)
    pixels = []
    for sample in (int(place), int(np.ceil(place))):
        camera = min(round(sample / clip.hands_hz * clip.camera_hz), len(clip.world_from_camera) - 1)
        pose = clip.world_from_camera[camera]
        seen = (clip.hands[sample] - pose[:3, 3]) @ pose[:3, :3] @ clip.intrinsics.T
        seen[seen[..., 2] < 0.01] = np.nan
        pixels.append(seen[..., :2] / seen[..., 2:])
    return pixels[0] + (place - int(place)) * (pixels[1] - pixels[0])


def _draw_depth(clip: Clip, frame: int) -> UInt8[np.ndarray, "H W 3"]:
    """Near yellow, far dark blue, one scale a clip, linear in inverse depth; grey where it is not known."""
    assert clip.depth is not None
    depth = clip.depth[frame]
    near, far = _depth_range(clip)
    inverse = 1 / np.clip(np.where(depth > 0, depth, far), near, far)
    scaled = (inverse - 1 / far) / max(1 / near - 1 / far, 1e-9)
    image = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_CIVIDIS)[..., ::-1].copy()
    image[depth <= 0] = 128
    return _enlarge(image, cv2.INTER_NEAREST)[0]


def _draw_segmentation(clip: Clip, frame: int) -> UInt8[np.ndarray, "H W 3"]:
    """The masks with an outline, over a grey and pale version of the frame."""
    assert clip.segmentation is not None
    ids = _enlarge(clip.segmentation[frame], cv2.INTER_NEAREST)[0]
    if clip.rgb is not None:
        grey = cv2.cvtColor(_enlarge(clip.rgb[frame], cv2.INTER_CUBIC)[0], cv2.COLOR_RGB2GRAY)
    else:
        grey = np.full(ids.shape, 128, np.uint8)
    image = np.repeat((grey // 2 + 64)[..., None], 3, axis=-1)
    for id_ in np.unique(ids).tolist():
        if id_ == 0:
            continue
        mask = (ids == id_).astype(np.uint8)
        color = np.array(_color(id_))
        image[mask > 0] = (0.4 * image[mask > 0] + 0.6 * color).astype(np.uint8)
        edges, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, edges, -1, _color(id_), 1)
    return image


_DRAW = {"rgb": _draw_rgb, "depth": _draw_depth, "segmentation": _draw_segmentation}


def _color(id_: int) -> tuple[int, int, int]:
    return _HAND_COLORS.get(id_, _OBJECT_COLORS[(id_ - 3) % len(_OBJECT_COLORS)])


def _depth_range(clip: Clip) -> tuple[float, float]:
    """The 0.5th and 99.5th percentile of the known depths, so that a few stray pixels do not set the colours."""
    assert clip.depth is not None
    known = clip.depth[clip.depth > 0]
    if known.size == 0:
        return 1.0, 1.0
    near, far = np.percentile(known, (0.5, 99.5))
    return float(near), float(far)


def _gaze_trail(clip: Clip, frame: int) -> Float32[np.ndarray, "n 2"]:
    """Gaze samples of the last half second up to the time of a frame."""
    assert clip.gaze is not None and clip.rgb_times_s is not None
    last = min(round(float(clip.rgb_times_s[frame]) * clip.gaze_hz), len(clip.gaze) - 1)
    return clip.gaze[max(0, last - round(_GAZE_TRAIL_S * clip.gaze_hz)) : last + 1]


def _enlarge(image: np.ndarray, interpolation: int) -> tuple[np.ndarray, float]:
    """At least ``_DRAWN_PX`` high, so that thin marks stay thin."""
    scale = max(1.0, _DRAWN_PX / image.shape[0])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation), scale


def _point(xy: np.ndarray) -> tuple[int, int]:
    """OpenCV's fixed point with 4 fractional bits."""
    return round(float(xy[0]) * 16), round(float(xy[1]) * 16)

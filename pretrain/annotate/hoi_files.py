"""Boxes that another program found: rows of the 100DOH hand-object detector, and STAR-HOI's JSON of them.

A detection is a row of 10 numbers: box x1 y1 x2 y2 in pixels of the clip's frames, score, contact state (0 none, 1 self,
2 other person, 3 portable, 4 stationary), offset to the touched thing (magnitude, then a unit vector x, y; of a hand), side
(0 left, 1 right; of a hand).
"""

import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.annotate.detect import middle, set_broken_apart, suppress, touches
from pretrain.annotate.records import CONTACT_STATES, SIDES, Detection, Detections, StageFailed
from pretrain.clips.schema import Clip

ROW_NUMBERS = 10
# The detector gives magnitudes divided by this.
_OFFSET_SCALE = 10_000.0
_ROWS_OF_HANDS = 2  # in STAR-HOI's arrays rows 0 and 1 are hands, 2 and 3 things


class HandObjectRows:
    """Reader of 100DOH rows: a directory with a file for each clip.

    `KEY.npy` is an array [F, 4, 10] as STAR-HOI saves it: rows 0 and 1 hands, 2 and 3 things, a row of zeros for none, for F
    frames in the middles of F equal parts of the clip. `KEY.npz` is what the detector itself gives: arrays `hands` [N, 10]
    and `objects` [M, 10] with `hand_frames` [N] and `object_frames` [M], indices of the clip's frames, and optionally
    `frames`, all that were looked at.

    Args:
        directory: where the files are.
        threshold: least score, 0.3 in the published pipeline, for hands and things.
        nms: greatest IoU of two boxes of a kind, 0.3 there.

    Raises:
        ValueError: no directory was given, or it is not there.
    """

    name = "100doh"

    def __init__(self, directory: str | None, *, threshold: float = 0.3, nms: float = 0.3) -> None:
        if not directory or not Path(directory).is_dir():
            raise ValueError(
                f"detections={directory}: expected a directory with KEY.npy or KEY.npz for each clip, as detect=100doh reads"
            )
        self._directory, self._threshold, self._nms = Path(directory), threshold, nms

    def detect(self, clip: Clip) -> Detections:
        assert clip.rgb is not None
        path = self._directory / f"{clip.key}.npz"
        path = path if path.is_file() else path.with_suffix(".npy")
        try:
            content = np.load(path, allow_pickle=False)
            arrays = content if isinstance(content, np.ndarray) else dict(content)
        except FileNotFoundError:
            raise StageFailed("no file of detections") from None
        except (ValueError, OSError, EOFError, zipfile.BadZipFile):
            raise StageFailed("the file of detections is damaged") from None
        plain = isinstance(arrays, np.ndarray)
        rows = rows_of_parts(arrays, len(clip.rgb)) if plain else _rows_of_frames(arrays)
        return read_rows(rows, threshold=self._threshold, nms=self._nms)


class StarHoiJson:
    """Reader of STAR-HOI's `merged_file_box.json`: narration time -> list [F][4][10], as in `KEY.npy` above.

    A clip's boxes are those under its key, or under the `narration_time` (or `narration_time_s`) of its meta, compared as a
    number.

    Raises:
        ValueError: no file was given, it is not there, empty, or not such a JSON.
    """

    name = "star-hoi"

    def __init__(self, path: str | None, *, threshold: float = 0.3, nms: float = 0.3) -> None:
        if not path or not Path(path).is_file():
            raise ValueError(f"detections={path}: expected STAR-HOI's merged_file_box.json, as detect=star-hoi reads")
        data = Path(path).read_bytes()
        try:
            boxes = json.loads(data)
        except (UnicodeDecodeError, ValueError) as error:
            state = "empty" if not data.strip() else f"not JSON ({error})"
            raise ValueError(f"detections={path}: {state}; make it again, or copy it whole") from None
        if not isinstance(boxes, dict):
            raise ValueError(
                f"detections={path}: expected a JSON object of narration time -> boxes, found a {type(boxes).__name__}"
            )
        self._boxes: dict[str, Any] = boxes
        self._by_time = {time: key for key in boxes if (time := _number(key)) is not None}
        self._threshold, self._nms = threshold, nms

    def detect(self, clip: Clip) -> Detections:
        assert clip.rgb is not None
        key: str | None = clip.key
        if key not in self._boxes:
            time = _number(clip.meta.get("narration_time", clip.meta.get("narration_time_s")))
            key = None if time is None else self._by_time.get(time)
        if key is None:
            raise StageFailed("no boxes for the clip's narration time")
        try:
            array = np.asarray(self._boxes[key], np.float64)
        except (ValueError, TypeError):
            raise StageFailed("the boxes are not an array of numbers") from None
        return read_rows(rows_of_parts(array, len(clip.rgb)), threshold=self._threshold, nms=self._nms)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return round(number, 3) if math.isfinite(number) else None


# frame -> (rows of hands, rows of things)
_Rows = dict[int, tuple[np.ndarray, np.ndarray]]


def rows_of_parts(array: np.ndarray, frames: int) -> _Rows:
    """Rows of an array [F, 4, 10] whose F frames lie in the middles of F equal parts of a clip of `frames` frames.

    Raises:
        StageFailed: another shape.
    """
    if array.ndim != 3 or array.shape[2] != ROW_NUMBERS or array.shape[1] <= _ROWS_OF_HANDS or len(array) == 0:
        raise StageFailed(f"the detections have shape {list(array.shape)}, expected [F, 4, {ROW_NUMBERS}]")
    rows: _Rows = {}
    for part, found in enumerate(array.astype(np.float64)):
        frame = int((part + 0.5) * frames / len(array))
        some = found[:, :5].any(1)  # a row of zeros is no detection
        if frame not in rows:  # a clip with fewer frames than parts keeps the first
            rows[frame] = (found[:_ROWS_OF_HANDS][some[:_ROWS_OF_HANDS]], found[_ROWS_OF_HANDS:][some[_ROWS_OF_HANDS:]])
    return rows


def _rows_of_frames(arrays: dict[str, np.ndarray]) -> _Rows:
    expected = ("hands", "hand_frames", "objects", "object_frames")
    if missing := [name for name in expected if name not in arrays]:
        raise StageFailed(f"the file of detections lacks {', '.join(missing)}")
    for name in ("hands", "objects"):
        shape = arrays[name].shape
        if len(shape) != 2 or shape[1] != ROW_NUMBERS or arrays[f"{name[:-1]}_frames"].shape != shape[:1]:
            raise StageFailed(
                f"{name} of the detections has shape {list(shape)}, expected [N, {ROW_NUMBERS}] and N frames"
            )
    looked = np.concatenate([arrays.get("frames", np.zeros(0)), arrays["hand_frames"], arrays["object_frames"]])
    return {
        int(frame): (
            arrays["hands"][arrays["hand_frames"] == frame].astype(np.float64),
            arrays["objects"][arrays["object_frames"] == frame].astype(np.float64),
        )
        for frame in np.unique(looked)
    }


def read_rows(rows: _Rows, *, threshold: float, nms: float) -> Detections:
    """Rows as detections, with low scores and doubles dropped, one hand a side, and things given to who touches them."""
    detections: Detections = {}
    for frame, (hand_rows, object_rows) in sorted(rows.items()):
        hands = [(_hand(row), row) for row in hand_rows]
        sound, broken = set_broken_apart([*(hand for hand, _ in hands), *(_thing(row) for row in object_rows)])
        kept = suppress(sound, threshold=threshold, nms=nms)
        things = [one for one in kept if one.kind == "object"]
        wearer: dict[str | None, Detection] = {}
        for one in kept:  # the best score first
            if one.kind == "hand":
                wearer.setdefault(one.side, one)
        for hand in wearer.values():
            row = next(row for other, row in hands if other is hand)
            if touches(hand) and things:
                held = touched_thing(hand, row, things)
                if things[held].held_by is None:
                    things[held] = replace(things[held], held_by=hand.side)
        detections[frame] = (*wearer.values(), *things, *broken)
    return detections


def touched_thing(hand: Detection, row: np.ndarray, things: list[Detection]) -> int:
    """Index of the thing whose middle is nearest to where the hand's offset points.

    The offset is a magnitude (in ten-thousands of pixels) along a unit vector from the middle of the hand's box. However
    far the nearest is, it wins: the hand is said to touch something.
    """
    x, y = middle(hand.box_xyxy)
    offset = np.nan_to_num(row[6:9])
    point = (x + offset[0] * _OFFSET_SCALE * offset[1], y + offset[0] * _OFFSET_SCALE * offset[2])
    return min(range(len(things)), key=lambda index: math.dist(point, middle(things[index].box_xyxy)))


def _hand(row: np.ndarray) -> Detection:
    state = int(row[5]) if math.isfinite(row[5]) else 0
    return Detection(
        kind="hand",
        box_xyxy=_box(row),
        score=float(row[4]),
        side=SIDES[int(row[9] >= 0.5)],
        contact=CONTACT_STATES[state] if 0 <= state < len(CONTACT_STATES) else None,
    )


def _thing(row: np.ndarray) -> Detection:
    return Detection(kind="object", box_xyxy=_box(row), score=float(row[4]))


def _box(row: np.ndarray) -> tuple[float, float, float, float]:
    return float(row[0]), float(row[1]), float(row[2]), float(row[3])


FILE_READERS: dict[str, Callable[..., Any]] = {"100doh": HandObjectRows, "star-hoi": StarHoiJson}

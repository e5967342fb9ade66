"""What the spatial probe asks of an encoder: where hands and objects are in a frame, and the frames to ask about.

Axes:  S scenes (clips or episodes), F stored frames of a scene, n rows (query frames), C columns of labels.

A row is one query frame; the encoder sees it as the newest of its T frames, with earlier frames of the same scene before it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from pretrain.clips.schema import LEFT_HAND_ID, RIGHT_HAND_ID, Clip
from pretrain.clips.store import ClipStore

POSITION, CONTACT = "position", "contact"

# A mask below this share of the image is not counted as visible: 16 px of 128 x 128.
VISIBLE_SHARE = 0.001
_NEEDED = ("rgb", "rgb_times_s", "depth", "segmentation", "contact", "intrinsics")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A quantity to read from features.

    Attributes:
        name: as in tables.
        unit: of the error that is printed.
        scale: from the labels' unit to `unit` (1000 for metres in mm).
        columns: its columns of the labels; the error of a vector is its Euclidean length.
        kind: POSITION (any continuous quantity) or CONTACT (0 or 1).
    """

    name: str
    unit: str
    scale: float
    columns: tuple[int, ...]
    kind: str = POSITION


def number_targets(rows: Sequence[tuple[str, str, float, int, str]]) -> tuple[Target, ...]:
    """Targets from (name, unit, scale, number of columns, kind), their columns side by side in that order."""
    targets, first = [], 0
    for name, unit, scale, width, kind in rows:
        targets.append(Target(name=name, unit=unit, scale=scale, columns=tuple(range(first, first + width)), kind=kind))
        first += width
    return tuple(targets)


@dataclass(frozen=True, kw_only=True)
class SpatialSource:
    """Scenes with labelled query frames.

    Attributes:
        name: as in tables.
        fps: frame rate of the stored frames, 1/s.
        scenes: S names.
        load: scene number -> its frames.
        scene_of, frame_of: of each row, the scene and the query frame in it.
        values: labels; NaN = not visible or not known.
        targets: what the columns of `values` mean.
        identity: what decides frames and labels, plain JSON: part of the protocol.
    """

    name: str
    fps: float
    scenes: tuple[str, ...]
    load: Callable[[int], UInt8[np.ndarray, "F H W 3"]] = field(repr=False)
    scene_of: Int64[np.ndarray, " n"] = field(repr=False)
    frame_of: Int64[np.ndarray, " n"] = field(repr=False)
    values: Float64[np.ndarray, "n C"] = field(repr=False)
    targets: tuple[Target, ...]
    identity: Mapping[str, Any]

    def __post_init__(self) -> None:
        rows = len(self.scene_of)
        assert len(self.frame_of) == len(self.values) == rows, "scene_of, frame_of and values belong together"
        assert (np.diff(self.scene_of) >= 0).all(), "the rows of a scene lie together"

    def windows(self, scene: int, frames: int, fps: float) -> UInt8[np.ndarray, "q T H W 3"]:
        """The clips that an encoder of `frames` frames at `fps` sees for the rows of one scene.

        The newest frame is the query frame; earlier ones lie the nearest whole number of stored frames apart, and the oldest
        stored frame is repeated where the scene does not go back far enough, as a policy's history is filled.
        """
        stride = max(1, round(self.fps / fps)) if fps else 1
        back = np.arange(frames - 1, -1, -1) * stride
        return self.load(scene)[np.maximum(self.frame_of[self.scene_of == scene][:, None] - back, 0)]


# ------------------------------------------------------------------------------------------------------ clips of a store

_BODIES = ("left hand", "right hand", "object")
CLIP_TARGETS = number_targets(
    [
        row
        for body in _BODIES
        for row in (
            (f"{body} 2D", "px", 1.0, 2, POSITION),
            (f"{body} depth", "mm", 1000.0, 1, POSITION),
            (f"{body} 3D", "mm", 1000.0, 3, POSITION),
        )
    ]
    + [
        ("hand-object distance", "mm", 1000.0, 1, POSITION),
        ("object extent", "mm", 1000.0, 1, POSITION),
        ("left contact", "", 1.0, 1, CONTACT),
        ("right contact", "", 1.0, 1, CONTACT),
    ]
)


def clip_source(
    store: ClipStore, *, clips: int | None = None, first: int = 0, queries: int = 4, name: str = "clips"
) -> SpatialSource:
    """The query frames and labels of clips `first` to `first + clips - 1` of a store (None = to its end).

    A clip's query frames are the last ones of `queries` equal parts, whatever the encoder's T, so that all encoders answer the
    same questions and short histories are real.

    Raises:
        ValueError: the store lacks a modality that the labels come from, or does not hold that many clips.
    """
    if missing := [modality for modality in _NEEDED if modality not in store.manifest["modalities"]]:
        raise ValueError(
            f"{store.path}: the spatial probe needs {', '.join(missing)}, which this store does not have; "
            "use a store of `egoarm clips synth`"
        )
    count = len(store) - first if clips is None else clips
    if first < 0 or count < 1 or first + count > len(store) or queries < 1:
        raise ValueError(
            f"clips={clips} from first={first} with queries={queries}: {store.path} holds {len(store)} clips, "
            "at least one clip and one query are needed"
        )
    scene_of, frame_of, values, keys = [], [], [], []
    size = rate = None
    for scene, index in enumerate(range(first, first + count)):
        times_s = store.read(index, ("rgb_times_s",)).rgb_times_s
        assert times_s is not None
        frames = (np.arange(1, queries + 1) * len(times_s)) // queries - 1
        if frames[0] < 0:
            raise ValueError(f"{store.path}: clip {index} has {len(times_s)} frames, fewer than queries={queries}")
        clip = store.read(
            index, ("depth", "segmentation", "contact", "intrinsics", "meta", "labels"), frames=frames.tolist()
        )
        target = target_object(clip, store, index)
        values += [_frame_labels(clip, frame, target) for frame in range(queries)]
        scene_of += [scene] * queries
        frame_of += frames.tolist()
        keys.append(clip.key)
        if scene == 0:
            assert clip.segmentation is not None
            size = clip.segmentation.shape[1:]
            rate = (len(times_s) - 1) / (times_s[-1] - times_s[0]) if len(times_s) > 1 else 1.0

    def load(scene: int) -> np.ndarray:
        rgb = store.read(first + scene, ("rgb",)).rgb
        assert rgb is not None
        return rgb

    assert size is not None and rate is not None
    return SpatialSource(
        name=name,
        fps=round(float(rate), 6),
        scenes=tuple(keys),
        load=load,
        scene_of=np.array(scene_of, np.int64),
        frame_of=np.array(frame_of, np.int64),
        values=np.array(values, np.float64),
        targets=CLIP_TARGETS,
        identity={
            "kind": "clips",
            "manifest_sha256": store.manifest_sha256,
            "first": first,
            "clips": count,
            "queries": queries,
            "image_size": [int(side) for side in size],
        },
    )


def target_object(clip: Clip, store: ClipStore, index: int) -> int:
    """The id of the object that the clip is about: `meta["target"]`, else what the hands touch in most frames; 0 = none."""
    if "target" in clip.meta:
        return int(clip.meta["target"])
    contact = store.read(index, ("contact",)).contact
    assert contact is not None
    touched = np.bincount(contact[contact > 0], minlength=1)
    return int(touched.argmax())


def _frame_labels(clip: Clip, frame: int, target: int) -> Float64[np.ndarray, " C"]:
    """One row of CLIP_TARGETS' columns."""
    assert clip.segmentation is not None and clip.depth is not None and clip.contact is not None
    assert clip.intrinsics is not None
    bodies = [
        locate(clip.segmentation[frame], clip.depth[frame], clip.intrinsics, id_)
        for id_ in (LEFT_HAND_ID, RIGHT_HAND_ID, target)
    ]
    places = [body[3:6] for body in bodies]
    gaps = [np.linalg.norm(hand - places[2]) for hand in places[:2]]
    distance = np.nan if np.isnan(gaps).all() else float(np.nanmin(gaps))
    touching = [
        float(id_ > 0) if np.isfinite(hand[0]) else np.nan
        for hand, id_ in zip(bodies[:2], clip.contact[frame], strict=True)
    ]
    return np.concatenate([*(body[:6] for body in bodies), [distance, bodies[2][6]], touching])


def locate(
    segmentation: UInt8[np.ndarray, "H W"], depth: np.ndarray, intrinsics: np.ndarray, id_: int
) -> Float64[np.ndarray, " 7"]:
    """Where the visible part of a thing is: (x px, y px, depth m, X m, Y m, Z m, extent m); NaN where it is not visible.

    (x, y) is the centroid of its mask and depth the median over the mask's known pixels; (X, Y, Z) is that point of that
    depth in the camera frame (x right, y down, z forward); extent is the side of a square of the mask's area at that depth.
    """
    unknown = np.full(7, np.nan)
    if id_ == 0:
        return unknown
    mask = segmentation == id_
    area = int(mask.sum())
    known = depth[mask & (depth > 0)]
    if area < VISIBLE_SHARE * mask.size or len(known) == 0:
        return unknown
    rows, columns = np.nonzero(mask)
    x, y, z = columns.mean() + 0.5, rows.mean() + 0.5, float(np.median(known))
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    return np.array([x, y, z, (x - cx) / fx * z, (y - cy) / fy * z, z, np.sqrt(area / (fx * fy)) * z])

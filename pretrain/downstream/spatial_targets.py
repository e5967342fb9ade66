"""What the spatial probe asks of an encoder: where hands and objects are in a frame, and the frames to ask about.

Axes:  S scenes (clips or episodes), F stored frames of a scene, n rows (query frames), C columns of labels.

A row is one query frame; the encoder sees it as the newest of its T frames, with earlier frames of the same scene before it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from scipy.spatial import cKDTree

from pretrain.clips.schema import LEFT_HAND_ID, RIGHT_HAND_ID, Clip
from pretrain.clips.store import ClipStore

POSITION, CONTACT = "position", "contact"
MOMENTS = 4

# A mask below this share of the image is not counted as visible: 16 px of 128 x 128.
VISIBLE_SHARE = 0.001
# A hand's mask goes on along the forearm to the image's border. Seen from the head, the hand is its far end.
HAND_SHARE = 0.25
_GAP_POINTS = 500
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
    store: ClipStore, *, indices: Sequence[int] | None = None, queries: int = 1, name: str = "clips"
) -> SpatialSource:
    """The query frames and labels of the clips `indices` of a store (None = all).

    A clip is asked about at `queries` of MOMENTS moments, the ends of as many equal parts, drawn from the clip's index: all
    encoders answer the same questions, and short histories are real. One query a clip reads most from a given number of frames:
    in scenes of many looks it is the scenes that a regression runs short of.

    Raises:
        ValueError: the store lacks a modality that the labels come from, or a clip of `indices`.
    """
    if missing := [modality for modality in _NEEDED if modality not in store.manifest["modalities"]]:
        raise ValueError(
            f"{store.path}: the spatial probe needs {', '.join(missing)}, which this store does not have; "
            "use a store of `egoarm clips synth`"
        )
    indices = range(len(store)) if indices is None else list(indices)
    if len(indices) == 0 or min(indices) < 0 or max(indices) >= len(store):
        raise ValueError(f"{store.path} holds clips 0 to {len(store) - 1}; the spatial probe was given {indices}")
    if not 1 <= queries <= MOMENTS:
        raise ValueError(f"queries={queries}: expected 1 to {MOMENTS} a clip")
    scene_of, frame_of, values, keys = [], [], [], []
    size = rate = None
    for scene, index in enumerate(indices):
        times_s = store.read(index, ("rgb_times_s",)).rgb_times_s
        assert times_s is not None
        if len(times_s) < MOMENTS:
            raise ValueError(f"{store.path}: clip {index} has {len(times_s)} frames, expected at least {MOMENTS}")
        moments = np.sort(np.random.default_rng(index).choice(MOMENTS, queries, replace=False))
        frames = ((moments + 1) * len(times_s)) // MOMENTS - 1
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
        rgb = store.read(indices[scene], ("rgb",)).rgb
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
            "clips": len(keys),
            "keys_sha256": hashlib.sha256("\n".join(keys).encode()).hexdigest(),
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
        visible_points(clip.segmentation[frame], clip.depth[frame], clip.intrinsics, id_)
        for id_ in (LEFT_HAND_ID, RIGHT_HAND_ID, target)
    ]
    left, right = (locate(hand, clip.intrinsics, far_share=HAND_SHARE) for hand in bodies[:2])
    thing = locate(bodies[2], clip.intrinsics)
    distance = np.nanmin([np.inf, *(gap(hand, bodies[2]) for hand in bodies[:2])])
    touching = [
        float(id_ > 0) if len(hand) else np.nan for hand, id_ in zip(bodies[:2], clip.contact[frame], strict=True)
    ]
    # Extent: the side of a square of the mask's area at the object's depth.
    extent = np.sqrt(len(bodies[2]) / (clip.intrinsics[0, 0] * clip.intrinsics[1, 1])) * thing[2]
    return np.array([*left, *right, *thing, distance if np.isfinite(distance) else np.nan, extent, *touching])


def visible_points(
    segmentation: UInt8[np.ndarray, "H W"], depth: np.ndarray, intrinsics: np.ndarray, id_: int
) -> Float64[np.ndarray, "p 5"]:
    """The pixels of a thing whose depth is known, as (x px, y px, X m, Y m, Z m), the latter in the camera frame.

    None where `id_` is 0 or less than VISIBLE_SHARE of the image shows the thing.
    """
    rows, columns = np.nonzero((segmentation == id_) & (depth > 0))
    if id_ == 0 or len(rows) < VISIBLE_SHARE * segmentation.size:
        return np.empty((0, 5))
    x, y, z = columns + 0.5, rows + 0.5, depth[rows, columns].astype(np.float64)
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    return np.stack([x, y, (x - cx) / fx * z, (y - cy) / fy * z, z], axis=1)


def locate(
    points: Float64[np.ndarray, "p 5"], intrinsics: np.ndarray, *, far_share: float = 1.0
) -> Float64[np.ndarray, " 6"]:
    """Where a thing is: (x px, y px, depth m, X m, Y m, Z m); NaN where it is not visible.

    (x, y) is the centroid of its points and depth their median; (X, Y, Z) is that point of that depth in the camera frame (x
    right, y down, z forward). With `far_share` below 1 only that share of the points farthest from the camera counts.
    """
    if len(points) == 0:
        return np.full(6, np.nan)
    points = points[np.argsort(points[:, 4])[-max(1, round(far_share * len(points))) :]]
    x, y = points[:, :2].mean(axis=0)
    z = float(np.median(points[:, 4]))
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    return np.array([x, y, z, (x - cx) / fx * z, (y - cy) / fy * z, z])


def gap(first: Float64[np.ndarray, "p 5"], second: Float64[np.ndarray, "q 5"]) -> float:
    """The least distance in metres between visible points of two things; NaN where one is not visible."""
    if len(first) == 0 or len(second) == 0:
        return np.nan
    thinned = [points[:: max(1, len(points) // _GAP_POINTS), 2:] for points in (first, second)]
    return float(cKDTree(thinned[0]).query(thinned[1])[0].min())

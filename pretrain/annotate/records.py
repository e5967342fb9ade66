"""What the stages of Detect-Track-Generate hand to each other: detections, tracks and facts, all plain JSON at heart.

Pixel coordinates are those of `pretrain.clips.schema`: origin at the outer corner of the top left pixel, boxes (x1, y1, x2,
y2) with x1 < x2 and y1 < y2. Frames are indices into a clip's `rgb`. Masks are COCO run-length encodings, as pycocotools
writes them.

Axes: T video frames, H W pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from jaxtyping import Bool, Float32

from pretrain.clips.schema import Clip

KINDS = ("hand", "object")
SIDES = ("left", "right")
# The states of 100DOH's hand-object detector, in the order of its numbers.
CONTACT_STATES = ("none", "self", "other person", "portable", "stationary")


class StageFailed(Exception):
    """A stage could not do its work on this clip; the message is the reason that is recorded. Never stops a run."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One box in one frame.

    Attributes:
        kind: "hand" or "object"; an object is a thing that a hand touches (`held_by`) or that the narration names.
        box_xyxy: as found; the pipeline cuts it at the image's border, or drops it and counts that.
        score: 0 to 1.
        side: of a hand, else None.
        contact: of a hand, one of CONTACT_STATES; None = the detector does not say.
        held_by: of an object, the side of the hand that touches it; None = not known.
        label: name of an object, "" = not known.
    """

    kind: str
    box_xyxy: tuple[float, float, float, float]
    score: float
    side: str | None = None
    contact: str | None = None
    held_by: str | None = None
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(**{**document, "box_xyxy": tuple(document["box_xyxy"])})


# Detections of some frames of a clip: frame -> what was found there (possibly nothing). Frames not looked at are absent.
Detections = dict[int, tuple[Detection, ...]]


@dataclass(frozen=True, kw_only=True)
class Track:
    """One hand or object through a clip.

    Attributes:
        id: as in the clip's segmentation: 1 left hand, 2 right hand, 3 and up objects.
        masks: for each frame a COCO RLE ({"size": [H, W], "counts": str}), or None where it is not seen.
        scores: for each frame how sure the tracker is, 0 to 1.
    """

    id: int
    kind: str
    label: str
    side: str | None
    masks: tuple[dict[str, Any] | None, ...]
    scores: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(**{**document, "masks": tuple(document["masks"]), "scores": tuple(document["scores"])})

    def mask(self, frame: int) -> Bool[np.ndarray, "H W"] | None:
        from pycocotools import mask as coco_mask

        rle = self.masks[frame]
        return None if rle is None else coco_mask.decode({**rle, "counts": rle["counts"].encode()}).astype(bool)


def encode_mask(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any] | None:
    """A mask as a COCO RLE with its counts as a str; None for an empty mask."""
    from pycocotools import mask as coco_mask

    if not mask.any():
        return None
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()}


class DepthTeacher(Protocol):
    """Depth of every frame. `metric` True: metres along the optical axis, 0 = not known. False: relative inverse depth
    (near = large, any positive scale, NaN = not known)."""

    name: str
    metric: bool

    def estimate(self, clip: Clip) -> Float32[np.ndarray, "T H W"]: ...


class Detector(Protocol):
    name: str

    def detect(self, clip: Clip) -> Detections: ...


class Tracker(Protocol):
    name: str

    def track(self, clip: Clip, detections: Detections) -> tuple[Track, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that is known of a clip when captions are written. Facts are JSON objects in the vocabulary of the synthetic
    source's facts.py (types "contact", "motion", "displacement", "relation"), computed from tracks, depth and camera."""

    clip: Clip
    detections: Detections
    tracks: tuple[Track, ...]
    depth_m: Float32[np.ndarray, "T H W"] | None  # None where the teacher's depth is relative and was not aligned
    depth_inverse: Float32[np.ndarray, "T H W"] | None  # relative, near = large, NaN = not known


@dataclass(frozen=True, kw_only=True)
class Captions:
    """captions: accepted sentences, at least one (else the stage raises StageFailed); rejected: how many the checker
    turned down, by reason."""

    captions: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]
    rejected: Mapping[str, int]


class CaptionWriter(Protocol):
    """Writes sentences for a narration and the facts; the caller checks them (see checker.py) and may ask again."""

    name: str

    def write(self, narration: str, facts: Sequence[Mapping[str, Any]], *, seed: int) -> tuple[str, ...]: ...

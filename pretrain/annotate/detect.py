"""Hands and the things they touch, as boxes: the simulator's truth, the rules every detector shares, and the table.

Axes: T frames, H W pixels.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from pretrain.annotate.config import AnnotateConfig
from pretrain.annotate.records import SIDES, Detection, Detections, Detector, StageFailed
from pretrain.clips.schema import FIRST_OBJECT_ID, Clip

# A thing with fewer pixels in a frame is not detected there.
SEEN_PIXELS = 12
# Two boxes whose gap is at most this share of the image's diagonal touch.
TOUCH_GAP_SHARE = 0.01
_ARTICLES = ("the", "a", "an", "his", "her", "their", "some", "both")
# Words that end what an article began.
_NOUN_ENDS = frozenset(
    {"and", "or", "with", "from", "to", "into", "in", "on", "onto", "of", "off", "at", "by", "for", "over", "under"}
    | {"through", "around", "behind", "beside", "near", "using", "then", "while", "away", "up", "down", "out", "open"}
    | {"shut", "aside", "together", "back"}
)

Box = tuple[float, float, float, float]


class TruthDetector:
    """Boxes of the simulator's masks: both hands, what they touch, and what the narration names, in every frame.

    A thing that is touched is "portable": the truth does not say what is fixed.
    """

    name = "truth"

    def detect(self, clip: Clip) -> Detections:
        if clip.segmentation is None or clip.contact is None:
            raise StageFailed("the clip has no segmentation or contact")
        return {frame: tuple(self._frame(clip, frame)) for frame in range(len(clip.segmentation))}

    def _frame(self, clip: Clip, frame: int) -> Iterable[Detection]:
        assert clip.segmentation is not None and clip.contact is not None
        ids = clip.segmentation[frame]
        held_by = {int(thing): side for side, thing in zip(SIDES, clip.contact[frame], strict=True) if thing}
        for number, side in enumerate(SIDES, start=1):
            if (ids == number).sum() >= SEEN_PIXELS:
                contact = "portable" if clip.contact[frame, number - 1] else "none"
                yield Detection(kind="hand", box_xyxy=mask_box(ids == number), score=1.0, side=side, contact=contact)
        for thing in sorted(thing for thing in clip.labels if thing >= FIRST_OBJECT_ID):
            label = clip.labels[thing]
            if (thing in held_by or _names(clip.narration, label)) and (ids == thing).sum() >= SEEN_PIXELS:
                yield Detection(
                    kind="object", box_xyxy=mask_box(ids == thing), score=1.0, held_by=held_by.get(thing), label=label
                )


def _names(narration: str, label: str) -> bool:
    return re.search(rf"\b{re.escape(label)}\b", narration) is not None


def mask_box(mask: np.ndarray) -> Box:
    """The smallest box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


# ------------------------------------------------------------------------------------------------ rules all detectors share


def valid_boxes(detections: Detections, height: int, width: int, frames: int) -> tuple[Detections, dict[str, int]]:
    """Detections with every box inside the image, and how many boxes were changed or dropped, by reason.

    A box that reaches over the border is cut there ("clipped"). One that is not finite, has no area or is inverted, lies
    outside the image altogether, or is in a frame that the clip does not have, is dropped.
    """
    counts: Counter[str] = Counter()
    kept: Detections = {}
    for frame, found in detections.items():
        if not 0 <= frame < frames:
            counts["dropped: no such frame"] += len(found)
            continue
        inside: list[Detection] = []
        for detection in found:
            x1, y1, x2, y2 = detection.box_xyxy
            if not all(map(math.isfinite, (x1, y1, x2, y2, detection.score))):
                counts["dropped: not finite"] += 1
            elif x1 >= x2 or y1 >= y2:
                counts["dropped: empty or inverted"] += 1
            elif x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
                counts["dropped: outside the image"] += 1
            else:
                box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
                counts["clipped"] += box != detection.box_xyxy
                inside.append(replace(detection, box_xyxy=box))
        kept[frame] = tuple(inside)
    return kept, {reason: count for reason, count in sorted(counts.items()) if count}


def set_broken_apart(found: Iterable[Detection]) -> tuple[list[Detection], list[Detection]]:
    """(sound, broken): a broken box is not finite or has no area. The rules below want sound ones; a detector hands the
    broken ones on as they are, so that :func:`valid_boxes` counts them."""
    sound: list[Detection] = []
    broken: list[Detection] = []
    for one in found:
        x1, y1, x2, y2 = one.box_xyxy
        fine = all(map(math.isfinite, (*one.box_xyxy, one.score))) and x1 < x2 and y1 < y2
        (sound if fine else broken).append(one)
    return sound, broken


def suppress(found: Sequence[Detection], *, threshold: float, nms: float) -> tuple[Detection, ...]:
    """Drops boxes with a score below `threshold`, and of two boxes of a kind that overlap by an IoU above `nms` the one
    with the lesser score (greedy non-maximum suppression)."""
    kept: list[Detection] = []
    for kind in ("hand", "object"):
        same = [one for one in found if one.kind == kind and one.score >= threshold]
        boxes = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in (one.box_xyxy for one in same)]
        chosen = cv2.dnn.NMSBoxes(boxes, [one.score for one in same], 0.0, nms) if same else ()
        kept += [same[int(index)] for index in chosen]
    return tuple(kept)


def with_sides(hands: Sequence[Detection], width: int) -> tuple[Detection, ...]:
    """At most two hands, with their sides by position: our rule for detectors that do not tell sides.

    The two hands with the best scores are taken for the wearer's. Of two, the one whose middle is further left is the left
    hand; one alone is the hand of the half of the image in which its middle lies. Crossed arms get the wrong sides.
    """
    best = sorted(hands, key=lambda hand: -hand.score)[:2]
    if len(best) == 2:
        best.sort(key=lambda hand: middle(hand.box_xyxy)[0])
        sides: Sequence[str] = SIDES
    else:
        sides = ["left" if middle(hand.box_xyxy)[0] < width / 2 else "right" for hand in best]
    return tuple(replace(hand, side=side) for hand, side in zip(best, sides, strict=True))


def with_contacts(
    hands: Sequence[Detection], objects: Sequence[Detection], height: int, width: int
) -> tuple[Detection, ...]:
    """Hands and objects with who touches what, by their boxes: our rule for detectors that do not tell contact.

    A hand touches the object whose box overlaps its own most, or if none does the nearest one within TOUCH_GAP_SHARE of the
    image's diagonal; ties go to the better score. It is then "portable", else "none".
    """
    most_px = TOUCH_GAP_SHARE * math.hypot(height, width)
    held_by: dict[int, str | None] = {}
    touching: list[Detection] = []
    for hand in hands:
        best, best_rank = None, (0.0, -most_px - 1e-9, 0.0)
        for index, thing in enumerate(objects):
            rank = (overlap(hand.box_xyxy, thing.box_xyxy), -gap(hand.box_xyxy, thing.box_xyxy), thing.score)
            if rank > best_rank:
                best, best_rank = index, rank
        touching.append(replace(hand, contact="none" if best is None else "portable"))
        if best is not None:
            held_by.setdefault(best, hand.side)
    return (*touching, *(replace(thing, held_by=held_by.get(index)) for index, thing in enumerate(objects)))


def middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def overlap(a: Box, b: Box) -> float:
    """Area in common, px^2."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


def box_iou(a: Box, b: Box) -> float:
    common = overlap(a, b)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def gap(a: Box, b: Box) -> float:
    """Distance between two boxes, px; 0 where they overlap."""
    return math.hypot(max(a[0] - b[2], b[0] - a[2], 0.0), max(a[1] - b[3], b[1] - a[3], 0.0))


def narrated_things(narration: str) -> tuple[str, ...]:
    """The things that a narration names: what follows an article, up to a preposition, a conjunction or the end.

    "#C C pours from the grey mug into the red bowl" gives ("grey mug", "red bowl"). Plain text work: no parser.
    """
    words = re.sub(r"#\w+|[^\w\s'-]", " ; ", narration.lower()).split()
    things: list[str] = []
    phrase: list[str] | None = None
    for word in [*words, ";"]:
        ends = word == ";" or word in _NOUN_ENDS or word in _ARTICLES
        if phrase is not None and not ends:
            phrase.append(word)
        elif phrase is not None:
            if phrase and phrase[-1] not in ("hand", "hands", "finger", "fingers") and phrase != ["other"]:
                things.append(" ".join(phrase))
            phrase = None
        if word in _ARTICLES:
            phrase = []
    return tuple(dict.fromkeys(things))


def touches(hand: Detection) -> bool:
    """Whether a hand is said to touch something."""
    return hand.contact not in (None, "none")


def first_contact(detections: Detections) -> int:
    """The first frame with a hand that touches something and the box of a thing.

    Raises:
        StageFailed: there is no hand, no contact, or no thing in a frame with contact.
    """
    hands = {frame: [one for one in found if one.kind == "hand"] for frame, found in detections.items()}
    if not any(hands.values()):
        raise StageFailed("no hand")
    contact = [frame for frame in sorted(hands) if any(map(touches, hands[frame]))]
    if not contact:
        raise StageFailed("no contact")
    for frame in contact:
        if any(one.kind == "object" and one.held_by is not None for one in detections[frame]):
            return frame
    for frame in contact:
        if any(one.kind == "object" for one in detections[frame]):
            return frame
    raise StageFailed("no box of a touched thing")


def _open_vocabulary(name: str) -> Callable[[AnnotateConfig], Detector]:
    def make(config: AnnotateConfig) -> Detector:
        from pretrain.annotate.detect_transformers import OPEN_VOCABULARY

        return OPEN_VOCABULARY[name](
            config.detect_weights, config.device, threshold=config.detect_threshold, nms=config.detect_nms
        )

    return make


def _file_reader(name: str) -> Callable[[AnnotateConfig], Detector]:
    def make(config: AnnotateConfig) -> Detector:
        from pretrain.annotate.hoi_files import FILE_READERS

        return FILE_READERS[name](config.detections, threshold=config.detect_threshold, nms=config.detect_nms)

    return make


# name -> makes the detector from the settings.
DETECTORS: dict[str, Callable[[AnnotateConfig], Detector]] = {
    "truth": lambda config: TruthDetector(),
    "grounding-dino": _open_vocabulary("grounding-dino"),
    "owlv2": _open_vocabulary("owlv2"),
    "100doh": _file_reader("100doh"),
    "star-hoi": _file_reader("star-hoi"),
}

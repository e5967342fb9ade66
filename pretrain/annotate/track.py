"""Masks of hands and things through a clip: what is followed from where, the simulator's truth, and the table.

Axes: T frames, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from pretrain.annotate.config import AnnotateConfig
from pretrain.annotate.detect import SEEN_PIXELS, Box, box_iou, first_contact, mask_box
from pretrain.annotate.records import SIDES, Detection, Detections, StageFailed, Track, Tracker, encode_mask
from pretrain.clips.schema import FIRST_OBJECT_ID, Clip

# Two tracks of things whose masks agree this well are one thing that was found under two names.
_SAME_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Where a tracker starts: one box in one frame. `id` is that of the track."""

    id: int
    frame: int
    detection: Detection

    @property
    def box(self) -> Box:
        return self.detection.box_xyxy


def choose_prompts(detections: Detections) -> tuple[Prompt, ...]:
    """What to follow, and from where.

    The frame is the first with contact (:func:`pretrain.annotate.detect.first_contact`), as in the published pipeline. What
    has no box there starts elsewhere: a hand in the frame nearest in time where it is seen; a thing under another name in
    the first later frame in which a hand touches it (our choice, so that what is picked up second is not lost).

    Raises:
        StageFailed: no hand, no contact, or no touched thing.
    """
    start = first_contact(detections)
    prompts: list[Prompt] = []
    by_distance = sorted(detections, key=lambda frame: (abs(frame - start), frame))
    for number, side in enumerate(SIDES, start=1):
        for frame in by_distance:
            hands = [one for one in detections[frame] if one.kind == "hand" and one.side == side]
            if hands:
                best = max(hands, key=lambda hand: hand.score)
                prompts.append(Prompt(id=number, frame=frame, detection=best))
                break
    things = [Prompt(id=0, frame=start, detection=one) for one in detections[start] if one.kind == "object"]
    names = {prompt.detection.label for prompt in things}
    for frame in sorted(detections):
        for one in detections[frame]:
            if frame > start and one.kind == "object" and one.held_by and one.label not in names:
                names.add(one.label)
                things.append(Prompt(id=0, frame=frame, detection=one))
    # What a hand touches gets the first ids, then what has the best score.
    things.sort(key=lambda prompt: (prompt.frame, prompt.detection.held_by is None, -prompt.detection.score))
    # A segmentation has 8 bits a pixel.
    for number, prompt in enumerate(things[: 256 - FIRST_OBJECT_ID], start=FIRST_OBJECT_ID):
        prompts.append(replace(prompt, id=number))
    return tuple(prompts)


def make_track(prompt: Prompt, masks: Sequence[np.ndarray], scores: Sequence[float]) -> Track:
    """A track from its masks [H, W] bool in all frames."""
    one = prompt.detection
    return Track(
        id=prompt.id,
        kind=one.kind,
        label=one.label or (f"{one.side} hand" if one.kind == "hand" else "object"),
        side=one.side,
        masks=tuple(map(encode_mask, masks)),
        scores=tuple(round(float(score), 4) for score in scores),
    )


def without_twins(tracks: Sequence[Track]) -> tuple[Track, ...]:
    """Drops a thing's track that agrees with an earlier one (mean IoU of their masks above 0.5), and tracks of nothing.

    Raises:
        StageFailed: no thing is left.
    """
    kept: list[Track] = []
    for track in tracks:
        rivals = [other for other in kept if other.kind == track.kind == "object"]
        if any(track.masks) and not any(_mean_iou(track, other) > _SAME_IOU for other in rivals):
            kept.append(track)
    if not any(track.kind == "object" for track in kept):
        raise StageFailed("every thing was lost by the tracker")
    return tuple(kept)


def _mean_iou(a: Track, b: Track) -> float:
    from pycocotools import mask as coco_mask

    values = [
        float(coco_mask.iou([_coco(one)], [_coco(other)], [0])[0, 0]) if one and other else 0.0
        for one, other in zip(a.masks, b.masks, strict=True)
        if one or other
    ]
    return float(np.mean(values)) if values else 0.0


def _coco(rle: dict) -> dict:
    return {**rle, "counts": rle["counts"].encode()}


class TruthTracker:
    """The simulator's masks: both hands and every thing that is seen, under the ids of the clip's segmentation."""

    name = "truth"

    def track(self, clip: Clip, detections: Detections) -> tuple[Track, ...]:
        if clip.segmentation is None:
            raise StageFailed("the clip has no segmentation")
        first_contact(detections)  # clips without contact are left alone by every tracker
        tracks: list[Track] = []
        for number, label in sorted(clip.labels.items()):
            masks = clip.segmentation == number
            if (masks.sum((1, 2)) >= SEEN_PIXELS).any():
                hand = number < FIRST_OBJECT_ID
                one = Detection(
                    kind="hand" if hand else "object",
                    box_xyxy=mask_box(masks.any(0)),
                    score=1.0,
                    side=SIDES[number - 1] if hand else None,
                    label=label,
                )
                prompt = Prompt(id=number, frame=0, detection=one)
                tracks.append(make_track(prompt, list(masks), masks.any((1, 2)).astype(float).tolist()))
        return tuple(tracks)


def paint(tracks: Sequence[Track], frames: int, height: int, width: int) -> UInt8[np.ndarray, "T H W"]:
    """Tracks as ids a pixel. Where masks overlap the hand wins, for it is what hides the other; then the lower id."""
    segmentation = np.zeros((frames, height, width), np.uint8)
    for track in sorted(tracks, key=lambda track: (track.kind == "hand", -track.id)):
        for frame in range(frames):
            mask = track.mask(frame)
            if mask is not None:
                segmentation[frame][mask] = track.id
    return segmentation


def contacts(detections: Detections, tracks: Sequence[Track], frames: int) -> UInt8[np.ndarray, "T 2"]:
    """Id of the track that each hand touches in each frame, 0 = none, as the detections say it.

    A touched thing's box is given to the track whose mask's box it agrees with best in that frame. A frame that was not
    looked at counts as the nearest one that was.
    """
    looked = np.array(sorted(detections))
    state = np.zeros((frames, 2), np.uint8)
    for frame in range(frames):
        source = int(looked[np.abs(looked - frame).argmin()])
        boxes: dict[int, Box] = {}
        for track in tracks:
            mask = track.mask(source) if track.kind == "object" else None
            if mask is not None:
                boxes[track.id] = mask_box(mask)
        for number, side in enumerate(SIDES):
            held = [one for one in detections[source] if one.kind == "object" and one.held_by == side]
            matches = [(box_iou(one.box_xyxy, box), -id_, id_) for one in held for id_, box in boxes.items()]
            matches = [match for match in matches if match[0] > 0]
            state[frame, number] = max(matches)[2] if matches else 0
    return state


def _sam2(config: AnnotateConfig) -> Tracker:
    from pretrain.annotate.track_sam2 import Sam2Tracker

    return Sam2Tracker(config.track_weights, config.device)


def _classical(config: AnnotateConfig) -> Tracker:
    from pretrain.annotate.track_classical import ClassicalTracker

    return ClassicalTracker()


# name -> makes the tracker from the settings. A tracker may use the depth of the clip that it is given: it is the depth
# stage's.
TRACKERS: dict[str, Callable[[AnnotateConfig], Tracker]] = {
    "truth": lambda config: TruthTracker(),
    "classical": _classical,
    "sam2": _sam2,
}

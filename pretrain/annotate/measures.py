"""How far detections, masks and depth of one clip are from its truth; the audit adds them up.

Each measure is a (sum, count) pair, so that clips are weighted by what was measured in them and resampled whole.

Axes: T video frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32

from pretrain.annotate.records import SIDES, Detection, Detections, Scene, Track, encode_mask
from pretrain.annotate.surfaces import Surfaces
from pretrain.clips.schema import FIRST_OBJECT_ID, Clip

SEEN_PIXELS = 12  # what is smaller in the truth is not asked for
MATCH_IOU = 0.5
Pairs = dict[str, tuple[float, int]]


def truth_scene(clip: Clip) -> Scene:
    """What perfect detection, tracking and depth would find in a clip with truth: all its hands and things."""
    assert clip.segmentation is not None
    tracks = []
    for id_ in sorted(np.unique(clip.segmentation).tolist()):
        if id_ == 0:
            continue
        hand = id_ < FIRST_OBJECT_ID
        tracks.append(
            Track(
                id=id_, kind="hand" if hand else "object", label=clip.labels[id_], side=SIDES[id_ - 1] if hand else None,
                masks=tuple(encode_mask(frame == id_) for frame in clip.segmentation), scores=(1.0,) * len(clip.segmentation),
            )
        )  # fmt: skip
    return Scene(clip=clip, detections={}, tracks=tuple(tracks), depth_m=clip.depth, depth_inverse=None)


def held(truth: Clip, frame: int | None = None) -> list[int]:
    """Ids of what the hands touch, in one frame or in any."""
    assert truth.contact is not None
    touched = truth.contact if frame is None else truth.contact[frame]
    return sorted({int(id_) for id_ in touched.ravel()} - {0})


def match_tracks(truth: Clip, tracks: Sequence[Track]) -> dict[int, int]:
    """track id -> truth id. Hands by their side, things by their name where the truth has it, else by the truth's thing
    that fills the largest share of the union with the track, over all frames."""
    matched: dict[int, int] = {}
    names = {name: id_ for id_, name in truth.labels.items()}
    for track in tracks:
        if track.kind == "hand":
            matched[track.id] = 1 + SIDES.index(track.side) if track.side in SIDES else 0
        elif track.label in names:
            matched[track.id] = names[track.label]
        else:
            overlaps = {
                id_: np.mean(list(_ious(truth, track, id_).values()) or [0.0]) for id_ in truth.labels if id_ > 2
            }
            matched[track.id] = max(overlaps, key=lambda id_: overlaps[id_], default=0)
    return matched


def _ious(truth: Clip, track: Track | None, id_: int) -> dict[int, float]:
    """frame -> IoU, for frames in which the truth or the track has something."""
    assert truth.segmentation is not None
    found: dict[int, float] = {}
    for frame, segmentation in enumerate(truth.segmentation):
        wanted = segmentation == id_
        mask = track.mask(frame) if track is not None else None
        if wanted.sum() < SEEN_PIXELS and mask is None:
            continue
        mask = np.zeros_like(wanted) if mask is None else mask
        found[frame] = float((wanted & mask).sum() / max((wanted | mask).sum(), 1))
    return found


def mask_measures(truth: Clip, tracks: Sequence[Track], detections: Detections) -> Pairs:
    """ "mask IoU" and "track survival" of hands and of what hands touch. What was not tracked counts as 0.

    Survival: of the frames after the first with a contact (where tracking starts) in which the truth sees the thing, the
    share with IoU above 0.5.
    """
    assert truth.segmentation is not None
    matched = match_tracks(truth, tracks)
    start = min((frame for frame, found in detections.items() if any(_touches(one) for one in found)), default=0)
    measures: Pairs = {}
    for kind, ids in (("hand", [1, 2]), ("object", held(truth))):
        means, survived = [], []
        for id_ in ids:
            if (truth.segmentation == id_).sum(axis=(1, 2)).max() < SEEN_PIXELS:
                continue
            track = next((track for track in tracks if matched[track.id] == id_), None)
            ious = _ious(truth, track, id_)
            means.append(float(np.mean(list(ious.values()))))
            survived += [iou > MATCH_IOU for frame, iou in ious.items()
                         if frame > start and (truth.segmentation[frame] == id_).sum() >= SEEN_PIXELS]  # fmt: skip
        measures[f"{kind} mask IoU"] = float(np.sum(means)), len(means)
        measures[f"{kind} track survival"] = float(np.sum(survived)), len(survived)
    return measures


def _touches(detection: Detection) -> bool:
    return detection.kind == "hand" and detection.contact not in (None, "none")


def detection_measures(truth: Clip, detections: Detections) -> Pairs:
    """Precision and recall at IoU 0.5 of hands and of touched things in the frames that were looked at, and the share of
    matched hands with the right side. Matching is greedy by score, one to one."""
    counts = {kind: [0, 0, 0] for kind in ("hand", "object")}
    sides: list[bool] = []
    for frame, found in detections.items():
        wanted = {"hand": _boxes(truth, frame, [1, 2]), "object": _boxes(truth, frame, held(truth, frame))}
        for kind, boxes in wanted.items():
            left = dict(boxes)
            guesses = sorted((one for one in found if one.kind == kind), key=lambda one: -one.score)
            hits = 0
            for guess in guesses:
                overlaps = {id_: box_iou(guess.box_xyxy, box) for id_, box in left.items()}
                best = max(overlaps, key=lambda id_: overlaps[id_], default=None)
                if best is not None and overlaps[best] >= MATCH_IOU:
                    hits += 1
                    del left[best]
                    if kind == "hand":
                        sides.append(guess.side == SIDES[best - 1])
            counts[kind] = [a + b for a, b in zip(counts[kind], (hits, len(guesses), len(boxes)), strict=True)]
    measures: Pairs = {}
    for kind, (hits, guesses, boxes) in counts.items():
        measures[f"{kind} box precision"] = float(hits), guesses
        measures[f"{kind} box recall"] = float(hits), boxes
    measures["hand side right"] = float(np.sum(sides)), len(sides)
    return measures


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared) if shared else 0.0


def _boxes(truth: Clip, frame: int, ids: Iterable[int]) -> dict[int, tuple[float, float, float, float]]:
    assert truth.segmentation is not None
    boxes = {}
    for id_ in ids:
        rows, columns = np.nonzero(truth.segmentation[frame] == id_)
        if len(rows) >= SEEN_PIXELS:
            boxes[id_] = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
    return boxes


def depth_measures(truth: Clip, depth: Float32[np.ndarray, "T H W"], *, relative: bool) -> Pairs:
    """ "AbsRel" (mean |d - d*| / d*; relative depth first gets the scale and shift of inverse depth, one pair a clip, that
    fit the truth best) and "frame-to-frame error".

    The latter: static background points of a frame are carried to the next one by the true camera and depth; the mean of
    |log(d'/d) - log(d*'/d*)| over them, d being the depth at both places, is 0 for depth without flicker.
    """
    assert truth.depth is not None and truth.segmentation is not None
    known = (truth.depth > 0) & (depth > 0)
    if not known.any():
        return {"depth AbsRel": (0.0, 0), "depth frame-to-frame error": (0.0, 0)}
    if relative:
        inverse = 1 / np.where(known, depth, 1)
        matrix = np.stack([inverse[known], np.ones(known.sum())], axis=1)
        (scale, shift), *_ = np.linalg.lstsq(matrix, 1 / truth.depth[known], rcond=None)
        depth = np.where(known, 1 / np.maximum(scale * inverse + shift, 1e-2), 0).astype(np.float32)
    errors = np.abs(depth[known] - truth.depth[known]) / truth.depth[known]
    return {
        "depth AbsRel": (float(errors.mean()), 1),
        "depth frame-to-frame error": _flicker(truth, depth, known),
    }


def _flicker(truth: Clip, depth: np.ndarray, known: Bool[np.ndarray, "T H W"]) -> tuple[float, int]:
    assert truth.depth is not None and truth.segmentation is not None
    surfaces = Surfaces(
        truth_scene(truth.replace(segmentation=np.zeros_like(truth.segmentation))), seen_pixels=SEEN_PIXELS
    )
    poses, matrix = surfaces.poses, truth.intrinsics
    if poses is None or matrix is None or len(depth) < 2:
        return 0.0, 0
    height, width = depth.shape[1:]
    errors = []
    for frame in range(len(depth) - 1):
        rows, columns = np.nonzero(known[frame] & (truth.segmentation[frame] == 0))
        z = truth.depth[frame][rows, columns].astype(np.float64)
        pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(z))])
        points = np.linalg.inv(matrix) @ pixels * z
        move = np.linalg.inv(poses[frame + 1]) @ poses[frame]
        moved = move[:3, :3] @ points + move[:3, 3:]
        place = matrix @ moved
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y = np.floor(place[0] / place[2]), np.floor(place[1] / place[2])
        inside = (moved[2] > 0.05) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x[inside].astype(int), y[inside].astype(int)
        later = truth.depth[frame + 1][y, x]
        # The same point is seen again: not hidden, not on a hand or a thing.
        same = (
            known[frame + 1][y, x]
            & (truth.segmentation[frame + 1][y, x] == 0)
            & (np.abs(later - moved[2][inside]) < 0.02 * moved[2][inside])
        )
        before = depth[frame][rows[inside], columns[inside]]
        ratio = np.log(depth[frame + 1][y, x][same] / before[same])
        errors.append(np.abs(ratio - np.log(later[same] / z[inside][same])))
    joined = np.concatenate(errors)
    return (float(joined.mean()), 1) if len(joined) else (0.0, 0)


def pooled(
    clips: Sequence[Mapping[str, tuple[float, int]]], name: str, *, seed: int = 0
) -> dict[str, float | int] | None:
    """value, low, high (95 %, percentile bootstrap over clips) and n of a measure; None = nothing was measured."""
    pairs = np.array([clip[name] for clip in clips if clip.get(name, (0.0, 0))[1] > 0], float)
    if len(pairs) == 0:
        return None
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(pairs), (2000, len(pairs)))
    sums = pairs[picks].sum(axis=1)
    low, high = np.percentile(sums[:, 0] / sums[:, 1], (2.5, 97.5))
    value = pairs[:, 0].sum() / pairs[:, 1].sum()
    return {
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "n": int(pairs[:, 1].sum()),
        "clips": len(pairs),
    }

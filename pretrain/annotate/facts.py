"""Spatial facts of an annotated clip, from masks, depth and camera alone; captions may say nothing else.

The vocabulary is the synthetic source's: "contact", "motion", "displacement" and "relation", plus the relation "beside".
The clip's own facts, contacts and segmentation are never read. Each kind has a margin wide enough that what is said is
plain to see: a fact that is left out costs little, a wrong one teaches a model something false.

- "contact": hand, object, object_id, start_frame, end_frame (inclusive). The gap between the visible surfaces of a hand
  and a thing is below `touch_m` (without metric depth: the masks touch and lie at the same relative depth), without
  single-frame flicker. Where the detector gave the hand's contact state in a frame, "none" ends a contact; where it found
  the thing in that hand, a gap three times as wide, or none to be seen, will do: hands hide what they hold.
- "motion": hand, object, object_id, direction ("approaches", "retreats from"), start_frame, end_frame, and the gap at both
  in distance_m or, without metric depth, distance_px. Approach ends at the first touch, retreat begins after the last.
- "displacement": object, object_id, direction ("up", "down", "left", "right", "away", "nearer"), amount, unit "m", between
  the first and the last frame in which the whole thing is seen. In the world's frame (see `Surfaces.axes`); without camera
  poses only where the picture shows that the camera stands still, by a wider margin. The near, middle and far parts of the
  surface must all go the same way, so a door that opens, a tilted cup or a half-hidden box says nothing.
- "relation": frame, subject, subject_id, relation, object, object_id, margin ("left of", "right of": pixels between the
  middles; else metres, or with "unit" a share of the range of relative inverse depth). At the first and the last frame in
  which both are seen, if these are in the first and the last third of the clip ("when": "first", "last"). Hands (ids 1 and 2) are only left or right of things.

A thing is called by its track's label. Where the label says nothing, and it is the only thing that a hand touches, it gets
the narration's first noun phrase; else it is "object".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from pretrain.annotate.records import SIDES, Scene
from pretrain.annotate.surfaces import Surfaces, Thing, frames_seen, narration_objects

OPPOSITE = {
    "left of": "right of", "right of": "left of", "nearer than": "farther than", "farther than": "nearer than",
    "beside": "beside",
}  # fmt: skip
_AXES = (("left", "right"), ("nearer", "away"), ("down", "up"))  # along -x and +x of `Surfaces.axes`, and so on


@dataclass(frozen=True, kw_only=True)
class Margins:
    """What counts as plain. Lengths in metres, "share" of the image width or of the range of relative depth.

    Attributes:
        seen_pixels: a thing with fewer pixels is not spoken of.
        whole_pixels: and one with fewer is not measured.
        touch_m, touch_share: largest gap of a contact, in space and in the image.
        same_depth_share: largest difference of relative inverse depth of things that touch.
        motion_m, motion_share: least change of a gap.
        displacement_m, still_displacement_m: least displacement with and without camera poses.
        same_view: how the breadth and the height that are seen of a thing may change while its displacement is measured.
        left_right_share: least distance between the middles of two masks.
        hand_factor: by which that is larger for hands, whose masks are long and often cut.
        nearer_m, nearer_share: least difference of depth.
        above_m: how far the lowest part of a thing may be below the highest part of what it is above.
        beside_m, level_m: largest gap, and largest difference of height and depth, of things that are beside each other.
    """

    seen_pixels: int = 12
    whole_pixels: int = 40
    touch_m: float = 0.03
    touch_share: float = 0.012
    same_depth_share: float = 0.08
    motion_m: float = 0.05
    motion_share: float = 0.06
    displacement_m: float = 0.05
    same_view: tuple[float, float] = (0.6, 1.65)
    still_displacement_m: float = 0.10
    left_right_share: float = 0.15
    hand_factor: float = 1.4
    nearer_m: float = 0.09
    nearer_share: float = 0.10
    above_m: float = 0.0
    beside_m: float = 0.04
    level_m: float = 0.03

    def loosened(self) -> Margins:
        """Margins by which a fact counts as true in an audit: what is half as plain as is asked of a caption still holds."""
        halved = ("motion_m", "motion_share", "displacement_m", "still_displacement_m", "left_right_share", "nearer_m",
                  "nearer_share")  # fmt: skip
        doubled = ("touch_m", "touch_share", "same_depth_share", "beside_m", "level_m")
        changes = {name: getattr(self, name) / 2 for name in halved} | {
            name: getattr(self, name) * 2 for name in doubled
        }
        return replace(self, **changes, whole_pixels=20, above_m=0.01, hand_factor=1.0)


PLAIN = Margins()


def spatial_facts(scene: Scene, margins: Margins = PLAIN) -> tuple[dict[str, Any], ...]:
    """All spatial facts of a scene; plain JSON, see the head of this file. Frames are indices into the clip's `rgb`."""
    surfaces = Surfaces(scene, seen_pixels=margins.seen_pixels)
    touching = {
        (hand.id, thing.id): _touching(surfaces, hand, thing, margins)
        for hand in surfaces.hands
        for thing in surfaces.objects
    }
    for hand in surfaces.hands:
        _one_at_a_time([touching[hand.id, thing.id] for thing in surfaces.objects])
    touched = {thing for (_, thing), (touches, _) in touching.items() if touches.any()}
    names = _names(surfaces, touched)
    facts: list[dict[str, Any]] = []
    for hand in surfaces.hands:
        for thing in surfaces.objects:
            touches, gaps = touching[hand.id, thing.id]
            called = {"hand": hand.side, "object": names[thing.id], "object_id": thing.id}
            facts += [{"type": "contact"} | called | span for span in _spans(touches)]
            facts += [
                {"type": "motion"} | called | motion for motion in _motions(surfaces, hand, touches, gaps, margins)
            ]
    for thing in surfaces.objects:
        if thing.id not in touched:
            continue  # nothing else moves things; what seems to is a mask that another thing cuts
        for direction, amount in _displacements(surfaces, thing, margins):
            facts.append(
                {"type": "displacement", "object": names[thing.id], "object_id": thing.id}
                | {"direction": direction, "amount": round(amount, 4), "unit": "m"}
            )
    facts += _all_relations(surfaces, names, margins)
    return tuple(facts)


def _names(surfaces: Surfaces, touched: set[int]) -> dict[int, str]:
    nouns = narration_objects(surfaces.clip.narration)
    names = {thing.id: thing.name for thing in surfaces.things}
    for thing in surfaces.objects:
        if not thing.named and touched == {thing.id} and nouns and nouns[0] not in names.values():
            names[thing.id] = nouns[0]
    return names


# --- contacts and motions ------------------------------------------------------------------------------------------------


def _touching(surfaces: Surfaces, hand: Thing, thing: Thing, margins: Margins) -> tuple[np.ndarray, np.ndarray]:
    """(bool[T] in touch, float[T] gap in metres or, without metric depth, pixels; NaN = not seen)."""
    frames = range(len(hand.masks))
    width = hand.masks.shape[-1]
    if surfaces.metric:
        gaps = np.array([surfaces.gap_m(hand, thing, frame) for frame in frames])
        near, almost = gaps < margins.touch_m, gaps < 1.5 * margins.touch_m
    else:
        gaps = np.array([surfaces.gap_px(hand, thing, frame) for frame in frames])
        apart = np.array(
            [abs(surfaces.inverse_share(hand, frame) - surfaces.inverse_share(thing, frame)) for frame in frames]
        )
        level = ~(apart > margins.same_depth_share)  # without any depth the masks alone decide
        near = (gaps <= margins.touch_share * width) & level
        almost = (gaps <= 1.5 * margins.touch_share * width) & level
    said = {frame: _said_contact(surfaces, hand, frame) for frame in frames}
    touches = np.zeros(len(frames), bool)
    for frame in frames:
        if np.isnan(gaps[frame]):
            touches[frame] = frame > 0 and touches[frame - 1]  # hidden, most likely by the hand that holds it
        else:
            touches[frame] = near[frame] or (frame > 0 and touches[frame - 1] and almost[frame])
        if said[frame] is False:
            touches[frame] = False
        elif _said_held(surfaces, hand, thing, frame):
            touches[frame] = not gaps[frame] > 3 * (margins.touch_m if surfaces.metric else margins.touch_share * width)
    return _without_flicker(touches, {frame for frame, word in said.items() if word is False}), gaps


def _one_at_a_time(candidates: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Of things that one hand seems to touch at once, the nearest stays: the others lie near the thing it holds."""
    taken = np.zeros_like(candidates[0][0]) if candidates else np.zeros(0, bool)
    touched = [(touches, gaps) for touches, gaps in candidates if touches.any()]
    for touches, _ in sorted(touched, key=lambda pair: float(np.nanmin(pair[1]))):
        for span in _spans(touches):
            part = slice(span["start_frame"], span["end_frame"] + 1)
            if taken[part].any():
                touches[part] = False
            taken[part] = True


def _said_contact(surfaces: Surfaces, hand: Thing, frame: int) -> bool | None:
    """Whether the detector says that a hand touches a thing in a frame; None = it does not say."""
    states = [
        found.contact in ("portable", "stationary")
        for found in surfaces.scene.detections.get(frame, ())
        if found.kind == "hand" and found.side == hand.side and found.contact is not None
    ]
    return any(states) if states else None


def _said_held(surfaces: Surfaces, hand: Thing, thing: Thing, frame: int) -> bool:
    """Whether the detector found this thing in this hand: a box held by that side, about where the thing's mask is."""
    if not thing.seen(frame, surfaces.seen_pixels):
        return False
    rows, columns = np.nonzero(thing.masks[frame])
    x, y = columns.mean() + 0.5, rows.mean() + 0.5
    for found in surfaces.scene.detections.get(frame, ()):
        if found.kind == "object" and found.held_by == hand.side:
            x1, y1, x2, y2 = found.box_xyxy
            if x1 <= x <= x2 and y1 <= y <= y2 and (not found.label or not thing.named or found.label == thing.name):
                return True
    return False


def _without_flicker(touches: np.ndarray, apart: set[int]) -> np.ndarray:
    """Gaps of one frame between touches are filled, unless the detector saw them, and touches of one frame dropped."""
    filled = touches.copy()
    for frame in range(1, len(touches) - 1):
        if touches[frame - 1] and touches[frame + 1] and frame not in apart:
            filled[frame] = True
    steady = np.zeros_like(filled)
    for span in _spans(filled):
        if span["end_frame"] > span["start_frame"]:
            steady[span["start_frame"] : span["end_frame"] + 1] = True
    return steady


def _spans(touches: np.ndarray) -> list[dict[str, int]]:
    edges = np.diff(np.concatenate([[0], touches.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    return [{"start_frame": int(a), "end_frame": int(b)} for a, b in zip(starts, ends, strict=True)]


def _motions(
    surfaces: Surfaces, hand: Thing, touches: np.ndarray, gaps: np.ndarray, margins: Margins
) -> Iterator[dict[str, Any]]:
    frames = np.flatnonzero(touches)
    if len(frames) == 0:
        return
    least = margins.motion_m if surfaces.metric else margins.motion_share * surfaces.things[0].masks.shape[-1]
    unit, digits = ("distance_m", 4) if surfaces.metric else ("distance_px", 1)
    for direction, part in (
        ("approaches", np.arange(frames[0] + 1)),
        ("retreats from", np.arange(frames[-1], len(gaps))),
    ):
        part = part[np.isfinite(gaps[part])]
        if len(part) < 2:
            continue
        if _said_contact(surfaces, hand, int(part[0] if direction == "approaches" else part[-1])):
            continue  # the detector sees it touch something where it should be away: a lost mask, not a motion
        first, last = float(gaps[part[0]]), float(gaps[part[-1]])
        change = last - first
        if abs(change) > least and (change < 0) == (direction == "approaches"):
            yield {
                "direction": direction,
                "start_frame": int(part[0]),
                "end_frame": int(part[-1]),
                unit: [round(first, digits), round(last, digits)],
            }


# --- displacements -------------------------------------------------------------------------------------------------------


def _displacements(surfaces: Surfaces, thing: Thing, margins: Margins) -> Iterator[tuple[str, float]]:
    whole = [frame for frame in range(len(thing.masks)) if _whole(thing, frame, margins)]
    if len(whole) < 2 or not surfaces.metric:
        return
    first, last = whole[0], whole[-1]
    if surfaces.axes is not None:
        clouds, least = _both(*(surfaces.placed(thing, frame) for frame in (first, last))), margins.displacement_m
    elif surfaces.poses is None and surfaces.still:
        clouds, least = _both(*(surfaces.points(thing, frame) for frame in (first, last))), margins.still_displacement_m
        clouds = clouds and (clouds[0][:, [0, 2, 1]] * (1, 1, -1), clouds[1][:, [0, 2, 1]] * (1, 1, -1))
    else:
        return
    if clouds is None or not _same_view(*clouds, margins):
        return
    for axis, (negative, positive) in enumerate(_AXES):
        parts = [np.percentile(cloud[:, axis], (15, 50, 85)) for cloud in clouds]
        moved = parts[1] - parts[0]
        amount = float(np.median(moved))
        # All parts of the surface go the same way, about as far.
        if abs(amount) > least and np.abs(moved - amount).max() < max(0.5 * abs(amount), 0.5 * least):
            yield (positive if amount > 0 else negative), abs(amount)


def _both(one: np.ndarray | None, other: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    return None if one is None or other is None else (one, other)


def _same_view(first: np.ndarray, last: np.ndarray, margins: Margins) -> bool:
    """Whether about the same part of a thing is seen upright twice: what was covered or tilted in between seems to move."""
    low, high = margins.same_view
    # A thing no thicker than what depth can tell counts as so thick.
    spans = [np.maximum(np.ptp(np.percentile(cloud, (10, 90), axis=0), axis=0), 0.02) for cloud in (first, last)]
    ratios = spans[1] / spans[0]
    return all(low < ratio < high for ratio in (*ratios, ratios[0] * ratios[2]))


def _whole(thing: Thing, frame: int, margins: Margins) -> bool:
    """Large enough, and not cut by the edge of the image."""
    mask = thing.masks[frame]
    border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    return bool(thing.pixels[frame] >= margins.whole_pixels and not border)


# --- relations -----------------------------------------------------------------------------------------------------------


def _all_relations(surfaces: Surfaces, names: dict[int, str], margins: Margins) -> Iterator[dict[str, Any]]:
    """Relations of each pair of things at the first and the last frame in which both are seen; things come before hands."""
    for one, other in combinations([*surfaces.objects, *surfaces.hands], 2):
        if names[one.id] == names[other.id]:
            continue  # a sentence could not tell them apart
        seen = frames_seen((one, other), margins.seen_pixels)
        frames = len(one.masks)
        for frame, when in zip(seen[:1] + seen[-1:], ("first", "last"), strict=False):
            if when_of(frame, frames) != when:
                continue  # neither the start nor the end of the clip
            for relation, margin, unit in relations_at(surfaces, one, other, frame, margins):
                yield {
                    "type": "relation",
                    "frame": frame,
                    "subject": names[one.id],
                    "subject_id": one.id,
                    "relation": relation,
                    "object": names[other.id],
                    "object_id": other.id,
                    "margin": round(margin, 4),
                    "when": when,
                } | ({"unit": unit} if unit else {})


def when_of(frame: int, frames: int) -> str:
    """Whether a caption may speak of a frame as of the start ("first", the first third) or the end ("last", the last third)
    of the clip; "" = neither."""
    return "first" if 3 * frame < frames else "last" if 3 * frame >= 2 * frames else ""


def relations_at(
    surfaces: Surfaces, one: Thing, other: Thing, frame: int, margins: Margins
) -> Iterator[tuple[str, float, str]]:
    """(relation, margin, unit: "" = the relation's own) of one thing to another in a frame in which both are seen."""
    columns = [np.nonzero(thing.masks[frame])[1] + 0.5 for thing in (one, other)]
    sideways = float(columns[0].mean() - columns[1].mean())
    left, right = columns if sideways < 0 else columns[::-1]
    # The middles are apart, and so are the bulks: one thing does not lie within the breadth of the other.
    apart = np.percentile(left, 75) < np.percentile(right, 25)
    share = margins.left_right_share * (margins.hand_factor if "hand" in (one.kind, other.kind) else 1)
    if abs(sideways) > share * one.masks.shape[-1] and apart:
        yield ("left of" if sideways < 0 else "right of"), abs(sideways), ""
    if "hand" in (one.kind, other.kind):
        return
    clouds = _both(surfaces.points(one, frame), surfaces.points(other, frame))
    if clouds is None:
        nearer = surfaces.inverse_share(one, frame) - surfaces.inverse_share(other, frame)
        if abs(nearer) > margins.nearer_share:
            yield ("nearer than" if nearer > 0 else "farther than"), abs(float(nearer)), "share"
        return
    depths = [np.percentile(cloud[:, 2], (25, 50, 75)) for cloud in clouds]
    farther = depths[0] - depths[1]
    if (
        abs(farther[1]) > margins.nearer_m
        and np.abs(farther).min() > margins.nearer_m / 2
        and np.ptp(np.sign(farther)) == 0
    ):
        yield ("nearer than" if farther[1] < 0 else "farther than"), abs(float(farther[1])), ""
    yield from _heights(surfaces, one, other, frame, margins, abs(float(farther[1])))


def _heights(
    surfaces: Surfaces, one: Thing, other: Thing, frame: int, margins: Margins, farther_m: float
) -> Iterator[tuple[str, float, str]]:
    """ "above" and "beside", which need the world's vertical."""
    clouds = _both(surfaces.placed(one, frame), surfaces.placed(other, frame))
    if clouds is None:
        return
    low = [float(np.percentile(cloud[:, 2], 5)) for cloud in clouds]
    high = [float(np.percentile(cloud[:, 2], 95)) for cloud in clouds]
    middles = [np.median(cloud[:, :2], axis=0) for cloud in clouds]
    level = float(np.hypot(*(middles[0] - middles[1])))
    breadth = max(float(np.ptp(np.percentile(cloud[:, 0], (5, 95)))) for cloud in clouds)
    if low[0] > high[1] - margins.above_m and level < 0.5 * breadth:
        yield "above", low[0] - high[1], ""
    gap = surfaces.gap_m(one, other, frame)
    if gap < margins.beside_m and abs(low[0] - low[1]) < margins.level_m and farther_m < margins.level_m:
        yield "beside", gap, ""


def hands_that_touch(facts: tuple[dict[str, Any], ...]) -> dict[str, set[str]]:
    """For each side the names of what that hand touches."""
    touched: dict[str, set[str]] = {side: set() for side in SIDES}
    for fact in facts:
        if fact["type"] == "contact":
            touched[fact["hand"]].add(fact["object"])
    return touched

"""The spatial facts of a clip, computed from the simulated truth; captions say nothing else.

Each fact is a JSON object with a "type":
- "contact": hand, object, object_id, start_frame, end_frame (inclusive): that hand touches that thing.
- "motion": hand, object, object_id, direction ("approaches" or "retreats from"), start_frame, end_frame, distance_m
  (from, to): the distance between hand and thing at these frames.
- "displacement": object, object_id, direction ("up", "down", "left", "right", "away", "nearer", "turned", "opened",
  "closed", "tilted"), amount (metres or radians), unit: how the thing's pose or joint changed over the clip.
- "relation": frame, subject, subject_id, relation ("left of", "right of", "nearer than", "farther than", "above"), object,
  object_id, margin (metres; pixels for left and right): in the camera's frame, "above" in the world's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.clips.sources.synthetic.camera import HeadRig, project
from pretrain.clips.sources.synthetic.grasp import TOUCH_M
from pretrain.clips.sources.synthetic.hands import SIDES
from pretrain.clips.sources.synthetic.plan import Plan
from pretrain.clips.sources.synthetic.world import World

SEEN_PIXELS = 12  # a thing with fewer pixels is not spoken of
LEFT_RIGHT_SHARE = 0.10  # of the image width, between the middles of two masks
NEARER_M = 0.06
ABOVE_M = 0.03


def contact_state(world: World, plan: Plan, time: float) -> np.ndarray:
    """uint8[2]: id of what the left and the right hand touch now, the held thing first, else the nearest; 0 = nothing.

    The world must be set to `time`.
    """
    state = np.zeros(2, np.uint8)
    for number, side in enumerate(SIDES):
        held = [thing for gripping, thing in plan.grips_at(time) if gripping == side]
        if held:
            state[number] = 3 + held[-1]
            continue
        closest = TOUCH_M
        for thing, geoms in enumerate(world.thing_geoms):
            distance = world.distance(world.hand_geoms[side], geoms, closest)
            if distance < closest:
                closest, state[number] = distance, 3 + thing
    return state


def spatial_facts(
    action: str,
    world: World,
    plan: Plan,
    rig: HeadRig,
    times: np.ndarray,
    contact: np.ndarray,
    segmentation: np.ndarray,
    depth: np.ndarray,
    matrix: np.ndarray,
) -> tuple[dict[str, Any], ...]:
    """All facts of a clip; frames are indices into `times`."""
    facts = _contacts(world, contact)
    facts += _motions(world, plan, times, contact)
    facts += _displacements(world, plan, times, rig)
    for frame in (0, len(times) - 1):
        facts += _relations(world, plan, rig, times, segmentation, depth, matrix, frame)
    return tuple(facts)


def watching_facts(
    world: World,
    plan: Plan,
    rig: HeadRig,
    times: np.ndarray,
    segmentation: np.ndarray,
    depth: np.ndarray,
    matrix: np.ndarray,
) -> tuple[dict[str, Any], ...]:
    """The facts of a clip without hands: displacements, as the watcher sees left, right and away, and relations."""
    forward = rig.world_from_camera(times[0])[:3, 2] * [1.0, 1.0, 0.0]
    forward /= np.linalg.norm(forward)
    facts = _displacements(world, plan, times, rig, np.array([[forward[1], -forward[0]], forward[:2]]))
    for frame in (0, len(times) - 1):
        facts += _relations(world, plan, rig, times, segmentation, depth, matrix, frame)
    return tuple(facts)


def _named(world: World, thing: int) -> dict[str, Any]:
    return {"object": world.things[thing].label, "object_id": 3 + thing}


def _contacts(world: World, contact: np.ndarray) -> list[dict[str, Any]]:
    facts = []
    for number, side in enumerate(SIDES):
        start = 0
        for frame in range(1, len(contact) + 1):
            if frame < len(contact) and contact[frame, number] == contact[start, number]:
                continue
            if contact[start, number]:
                thing = int(contact[start, number]) - 3
                facts.append(
                    {"type": "contact", "hand": side}
                    | _named(world, thing)
                    | {"start_frame": start, "end_frame": frame - 1}
                )
            start = frame
    return facts


def _motions(world: World, plan: Plan, times: np.ndarray, contact: np.ndarray) -> list[dict[str, Any]]:
    """Approach before the first touch of the target, retreat after the last."""
    facts = []
    target = plan.target
    for number, side in enumerate(SIDES):
        touches = np.flatnonzero(contact[:, number] == 3 + target)
        if len(touches) == 0:
            continue
        gaps = np.array([_hand_gap(world, plan, side, target, time) for time in times])
        for direction, frames in (
            ("approaches", np.arange(0, touches[0] + 1)),
            ("retreats from", np.arange(touches[-1], len(times))),
        ):
            change = gaps[frames[-1]] - gaps[frames[0]]
            if abs(change) > 0.03 and (change < 0) == (direction == "approaches"):
                facts.append(
                    {"type": "motion", "hand": side, "direction": direction}
                    | _named(world, target)
                    | {
                        "start_frame": int(frames[0]),
                        "end_frame": int(frames[-1]),
                        "distance_m": [round(float(gaps[frames[0]]), 4), round(float(gaps[frames[-1]]), 4)],
                    }
                )
    return facts


def _hand_gap(world: World, plan: Plan, side: str, thing: int, time: float) -> float:
    """Distance in metres between the solid shapes of a hand and a thing."""
    plan.apply(world, time)
    world.update()
    return max(world.distance(world.hand_geoms[side], world.thing_geoms[thing], 2.0), 0.0)


def _displacements(
    world: World, plan: Plan, times: np.ndarray, rig: HeadRig, view_from_world: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """`view_from_world` float64[2,2] gives right and away on the table where they are not the world's x and y."""
    facts = []

    def add(thing: int, direction: str, amount: float, unit: str) -> None:
        facts.append(
            {"type": "displacement"}
            | _named(world, thing)
            | {"direction": direction, "amount": round(float(amount), 4), "unit": unit}
        )

    for thing, model in enumerate(world.things):
        first, last = plan.thing_pose(thing, times[0]), plan.thing_pose(thing, times[-1])
        x, y, z = last[:3, 3] - first[:3, 3]
        if view_from_world is not None:
            x, y = view_from_world @ [x, y]
        if abs(z) > 0.02:
            add(thing, "up" if z > 0 else "down", abs(z), "m")
        if abs(x) > 0.03:
            add(thing, "right" if x > 0 else "left", abs(x), "m")
        if abs(y) > 0.03:
            add(thing, "away" if y > 0 else "nearer", abs(y), "m")
        tilt = np.arccos(np.clip(last[2, 2], -1, 1)) - np.arccos(np.clip(first[2, 2], -1, 1))
        if tilt > 0.3:
            add(thing, "tilted", tilt, "rad")
        if model.joint:
            shares = [plan.joints[thing](time) / model.joint.limit for time in times]
            # A button comes up again: what counts is how deep it went.
            before, after = shares[0], max(shares) if model.category == "button" else shares[-1]
            unit = "rad" if model.joint.kind == "hinge" else "m"
            if abs(after - before) > 0.15:
                verb = {"knob": "turned", "button": "pressed"}.get(model.category)
                direction = verb or ("opened" if after > before else "closed")
                add(thing, direction, abs(after - before) * abs(model.joint.limit), unit)
    return facts


def _relations(
    world: World,
    plan: Plan,
    rig: HeadRig,
    times: np.ndarray,
    segmentation: np.ndarray,
    depth: np.ndarray,
    matrix: np.ndarray,
    frame: int,
) -> list[dict[str, Any]]:
    """Relations of the target to each other thing seen in a frame. Margins are wide enough to be plain to see."""
    camera = rig.world_from_camera(times[frame])
    size = segmentation.shape[-1]
    counts = np.bincount(segmentation[frame].ravel(), minlength=3 + len(world.things))
    target = plan.target
    if counts[3 + target] < SEEN_PIXELS:
        return []

    def place(thing: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pose = plan.thing_pose(thing, times[frame])
        middle = (pose @ [0, 0, world.things[thing].height / 2, 1])[:3]
        return middle, project(middle, camera, matrix), pose[:3, 3]

    _, pixel, foot = place(target)
    facts = []
    for thing, model in enumerate(world.things):
        if thing == target or model.category == "stream" or counts[3 + thing] < SEEN_PIXELS:
            continue
        _, other_pixel, other_foot = place(thing)
        masks = [segmentation[frame] == 3 + i for i in (target, thing)]
        columns = [np.nonzero(mask)[1].mean() for mask in masks]
        surfaces = [float(np.median(depth[frame][mask])) for mask in masks]
        found = []
        sideways = pixel[0] - other_pixel[0]
        # Both the middles and the visible parts must agree.
        visibly = columns[0] - columns[1]
        plain = abs(sideways) > LEFT_RIGHT_SHARE * size and abs(visibly) > 0.6 * LEFT_RIGHT_SHARE * size
        if plain and (sideways < 0) == (visibly < 0):
            found.append(("left of" if sideways < 0 else "right of", abs(sideways)))
        nearer = other_pixel[2] - pixel[2]
        if abs(nearer) > NEARER_M and (surfaces[1] - surfaces[0]) * np.sign(nearer) > NEARER_M / 3:
            found.append(("nearer than" if nearer > 0 else "farther than", abs(nearer)))
        apart = np.hypot(*(foot - other_foot)[:2])
        over = foot[2] - (other_foot[2] + model.height)
        if (
            over > -0.01
            and foot[2] - other_foot[2] > ABOVE_M
            and apart < max(model.radius, world.things[target].radius)
        ):
            found.append(("above", foot[2] - other_foot[2]))
        for relation, margin in found:
            facts.append(
                {
                    "type": "relation",
                    "frame": frame,
                    "subject": world.things[target].label,
                    "subject_id": 3 + target,
                    "relation": relation,
                    "object": model.label,
                    "object_id": 3 + thing,
                    "margin": round(float(margin), 4),
                }
            )
    return facts

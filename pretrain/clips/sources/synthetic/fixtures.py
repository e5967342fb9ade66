"""Articulated things and the actions on them: pull open, push shut, open door, open lid, press, turn.

A fixture stands on the table and has one joint whose value runs from 0 (shut, up, not turned) to its limit. The joint moves
by a script, and the hand keeps hold of the handle, or its fingertip stays on the button, all the while.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pretrain.clips.sources.synthetic.grasp import POINT, RELAXED, Infeasible, plan_grasp, sign_of
from pretrain.clips.sources.synthetic.hands import palm_rotation
from pretrain.clips.sources.synthetic.motion import pose, ramp, rotation_about
from pretrain.clips.sources.synthetic.moves import (
    UP,
    Action,
    advance_to_touch,
    lead,
    reach_grasp,
    resting_palms,
)
from pretrain.clips.sources.synthetic.objects import Joint, ObjectModel, Piece, random_colour
from pretrain.clips.sources.synthetic.plan import Cast, Placed, Plan, hand_side, new_plan, upright
from pretrain.clips.sources.synthetic.world import World

STANDOFF_M = 0.050  # of a bar from its panel: room for fingers
BAR_M = 0.0075  # radius of a bar
SLAB_M = 0.008  # half thickness of a panel
Vector = tuple[float, float, float]


def _box(low: Vector, high: Vector, rgb: Vector, **options) -> Piece:
    low_, high_ = np.array(low), np.array(high)
    centre, half = (low_ + high_) / 2, (high_ - low_) / 2
    return Piece(shape="box", size=tuple(half.tolist()), position=tuple(centre.tolist()), rgb=rgb, **options)


def _bar(middle: Vector, half: float, axis: str, toward: Vector, rgb: Vector) -> tuple[Piece, ...]:
    """A bar along `axis` ("x" or "z") and its two posts, which reach from the bar along `toward`."""
    euler = (0.0, np.pi / 2, 0.0) if axis == "x" else (0.0, 0.0, 0.0)
    bar = Piece(
        shape="capsule",
        size=(BAR_M, half),
        position=middle,
        euler=euler,
        rgb=rgb,
        moving=True,
        grip=True,
        shininess=0.8,
    )
    posts = []
    for end in (-1, 1):
        shift = np.array([end * half, 0, 0] if axis == "x" else [0, 0, end * half])
        first = np.array(middle) + shift
        last = first + np.array(toward)
        low, high = np.minimum(first, last) - 0.005, np.maximum(first, last) + 0.005
        posts.append(_box(tuple(low.tolist()), tuple(high.tolist()), rgb, moving=True))
    return (bar, *posts)


def _finish(rng: np.random.Generator) -> tuple[str, Vector, Vector, Vector]:
    """(name of the colour, body, front, metal)."""
    if rng.random() < 0.4:
        tone = rng.uniform(0.5, 1.25)
        body = (0.60 * tone, 0.40 * tone, 0.22 * tone)
        name = "wooden"
    else:
        name, body = random_colour(rng)
    shade = float(rng.uniform(0.75, 1.2))
    red, green, blue = (min(channel * shade + 0.03, 1.0) for channel in body)
    grey = float(rng.uniform(0.15, 0.8))
    return name, body, (red, green, blue), (grey, grey, grey)


def _drawer(rng: np.random.Generator, side: str) -> ObjectModel:
    name, body, front, metal = _finish(rng)
    w, d, h = rng.uniform(0.12, 0.16), rng.uniform(0.11, 0.13), rng.uniform(0.12, 0.17)
    low = h - 0.085
    limit = float(rng.uniform(0.09, 0.13))
    wall = (body[0] * 0.5, body[1] * 0.5, body[2] * 0.5)
    middle = (0.0, -d - 2 * SLAB_M - STANDOFF_M, (low + h) / 2)
    pieces = (
        _box((-w, -d, 0), (w, d, low - 0.004), body),
        _box((-w, -d, h), (w, d, h + 0.012), body),
        _box((-w, -d, low - 0.004), (-w + 0.012, d, h), body),
        _box((w - 0.012, -d, low - 0.004), (w, d, h), body),
        _box((-w, d - 0.01, low - 0.004), (w, d, h), body),
        _box((-w, -d - 2 * SLAB_M, low), (w, -d, h + 0.008), front, moving=True),
        _box((-w + 0.014, -d, low), (w - 0.014, d - 0.02, low + 0.008), wall, moving=True, solid=False),
        _box((-w + 0.014, -d, low), (-w + 0.022, d - 0.02, h - 0.02), wall, moving=True, solid=False),
        _box((w - 0.022, -d, low), (w - 0.014, d - 0.02, h - 0.02), wall, moving=True, solid=False),
        *_bar(middle, 0.082, "x", (0.0, STANDOFF_M, 0.0), metal),
    )
    return ObjectModel(
        category="drawer",
        label=f"{name} drawer",
        pieces=pieces,
        height=h + 0.012,
        radius=float(np.hypot(w, d)),
        half_width=BAR_M,
        handle=middle,
        joint=Joint(kind="slide", axis=(0.0, -1.0, 0.0), anchor=(0.0, 0.0, 0.0), limit=limit),
        extra={"front": d + 2 * SLAB_M},
    )


def _cabinet(rng: np.random.Generator, side: str) -> ObjectModel:
    """A cabinet whose door is hinged on the side of the hand that opens it."""
    name, body, front, metal = _finish(rng)
    s = sign_of(side)
    w, d, h = rng.uniform(0.11, 0.14), rng.uniform(0.09, 0.11), rng.uniform(0.215, 0.26)
    dark = (body[0] * 0.35, body[1] * 0.35, body[2] * 0.35)
    door = tuple(sorted((-s * w, s * w)))
    middle = (-s * (w - 0.035), -d - 2 * SLAB_M - STANDOFF_M, 0.52 * h)
    pieces = (
        _box((-w, -d, 0), (w, d, 0.012), body),
        _box((-w, -d, h - 0.012), (w, d, h), body),
        _box((-w, -d, 0), (-w + 0.012, d, h), body),
        _box((w - 0.012, -d, 0), (w, d, h), body),
        _box((-w, d - 0.012, 0), (w, d, h), dark),
        _box((-w, -d, 0.5 * h), (w, d, 0.5 * h + 0.008), dark),
        _box((door[0], -d - 2 * SLAB_M, 0.002), (door[1], -d, h), front, moving=True),
        *_bar(middle, 0.090, "z", (0.0, STANDOFF_M, 0.0), metal),
    )
    return ObjectModel(
        category="cabinet",
        label=f"{name} cabinet",
        pieces=pieces,
        height=h,
        radius=float(np.hypot(w, d)),
        half_width=BAR_M,
        handle=middle,
        # Opens towards the person: about +z when the hinge is on the right.
        joint=Joint(
            kind="hinge", axis=(0.0, 0.0, s), anchor=(s * w, -d - SLAB_M, 0.0), limit=float(rng.uniform(0.8, 1.1))
        ),
    )


def _chest(rng: np.random.Generator, side: str) -> ObjectModel:
    name, body, front, metal = _finish(rng)
    w, d, h = rng.uniform(0.10, 0.14), rng.uniform(0.07, 0.10), rng.uniform(0.06, 0.09)
    dark = (body[0] * 0.35, body[1] * 0.35, body[2] * 0.35)
    middle = (0.0, -d + 0.02, h + 2 * SLAB_M + STANDOFF_M + 0.006)
    pieces = (
        _box((-w, -d, 0), (w, d, 0.01), dark),
        _box((-w, -d, 0), (-w + 0.01, d, h), body),
        _box((w - 0.01, -d, 0), (w, d, h), body),
        _box((-w, d - 0.01, 0), (w, d, h), body),
        _box((-w, -d, 0), (w, -d + 0.01, h), body),
        _box((-w - 0.003, -d - 0.003, h), (w + 0.003, d + 0.003, h + 2 * SLAB_M), front, moving=True),
        *_bar(middle, 0.075, "x", (0.0, 0.0, -STANDOFF_M - 0.006), metal),
    )
    return ObjectModel(
        category="chest",
        label=f"{name} chest",
        pieces=pieces,
        height=h + 2 * SLAB_M,
        radius=float(np.hypot(w, d)),
        half_width=BAR_M,
        handle=middle,
        # About -x the front edge rises.
        joint=Joint(kind="hinge", axis=(-1.0, 0.0, 0.0), anchor=(0.0, d, h), limit=float(rng.uniform(0.8, 1.15))),
    )


def _button(rng: np.random.Generator, side: str) -> ObjectModel:
    name, rgb = random_colour(rng)
    _, body, _, _ = _finish(rng)
    w, h, r = rng.uniform(0.045, 0.07), rng.uniform(0.035, 0.07), rng.uniform(0.018, 0.026)
    top = h + 0.024
    cap = Piece(
        shape="cylinder",
        size=(r, 0.018),
        position=(0.0, 0.0, top - 0.018),
        rgb=rgb,
        moving=True,
        grip=True,
        shininess=0.6,
    )
    return ObjectModel(
        category="button",
        label=f"{name} button",
        pieces=(_box((-w, -w, 0), (w, w, h), body), cap),
        height=top,
        radius=float(np.hypot(w, w)),
        half_width=float(r),
        handle=(0.0, 0.0, float(top)),
        joint=Joint(
            kind="slide", axis=(0.0, 0.0, -1.0), anchor=(0.0, 0.0, 0.0), limit=float(rng.uniform(0.013, 0.019))
        ),
    )


def _knob(rng: np.random.Generator, side: str) -> ObjectModel:
    name, rgb = random_colour(rng)
    _, body, _, _ = _finish(rng)
    w, h, r = rng.uniform(0.06, 0.09), rng.uniform(0.03, 0.05), rng.uniform(0.024, 0.030)
    top = h + 0.05
    mark = (0.95, 0.95, 0.9) if sum(rgb) < 1.5 else (0.05, 0.05, 0.05)
    cap = Piece(
        shape="cylinder",
        size=(r, 0.024),
        position=(0.0, 0.0, top - 0.024),
        rgb=rgb,
        moving=True,
        grip=True,
    )
    line = _box((-0.004, 0.0, top - 0.04), (0.004, r + 0.003, top + 0.0015), mark, moving=True, solid=False)
    return ObjectModel(
        category="knob",
        label=f"{name} knob",
        pieces=(_box((-w, -w, 0), (w, w, h), body), cap, line),
        height=top,
        radius=float(np.hypot(w, w)),
        half_width=float(r),
        handle=(0.0, 0.0, float(top - 0.024)),
        joint=Joint(kind="hinge", axis=(0.0, 0.0, 1.0), anchor=(0.0, 0.0, 0.0), limit=float(rng.uniform(0.75, 1.05))),
    )


def joint_motion(
    model: ObjectModel, place: np.ndarray, value: Callable[[float], float]
) -> Callable[[float], np.ndarray]:
    """float64[4,4] over time: how the moving part of a fixture at `place` has been displaced in the world."""
    axis = place[:3, :3] @ np.array(model.joint.axis)
    anchor = (place @ np.append(model.joint.anchor, 1.0))[:3]

    def displaced(time: float) -> np.ndarray:
        if model.joint.kind == "slide":
            return pose(np.eye(3), axis * value(time))
        rotation = rotation_about(axis, value(time))
        return pose(rotation, anchor - rotation @ anchor)

    return displaced


# ---------------------------------------------------------------------------------------------- casts


def _cast(make: Callable[[np.random.Generator, str], ObjectModel], low: Vector, high: Vector) -> Callable:
    """A cast of one fixture at (|x|, y, yaw) between `low` and `high`; x and yaw change sign with the hand."""

    def cast(rng: np.random.Generator) -> Cast:
        side = hand_side(rng)
        x, y, yaw = rng.uniform(low, high)
        s = sign_of(side)
        x, yaw = s * x, s * yaw
        free = [(x, y - distance, 0.17) for distance in (0.1, 0.2, 0.3)] + [(x + 0.12 * s, y - 0.2, 0.15)]
        model = make(rng, side)
        return Cast(side=side, placed=[Placed(model=model, pose=upright(x, y, yaw))], keep_free=free)

    return cast


# ---------------------------------------------------------------------------------------------- plans


def _handle(plan: Plan, world: World, displaced: Callable[[float], np.ndarray]) -> Callable[[float], np.ndarray]:
    """The handle's middle over time."""
    local = (plan.thing_pose(0, 0.0) @ np.append(world.things[0].handle, 1.0))[:3]
    return lambda time: (displaced(time) @ np.append(local, 1.0))[:3]


def _obstacles(world: World) -> list[int]:
    return world.support + [g for g in world.thing_geoms[0] if g not in world.grip_geoms[0]]


def _plan_with_grip(style: str, sign: Callable[[np.random.Generator], float]) -> Callable:
    """Takes hold of the handle, moves the joint by its limit times `sign`, and keeps hold."""

    def plan_grip(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
        plan = new_plan(cast, 0, resting_palms(world, rng, cast.side), world)
        model = world.things[0]
        world.set_joint(0, 0.0)
        grasp = plan_grasp(
            world,
            cast.side,
            0,
            plan.thing_pose(0, 0.0),
            rng,
            style=style,
            obstacles=_obstacles(world),
            offset=np.array(model.handle) - [0.0, 0.0, 0.022 if style == "hook in" else 0.0],
        )
        start, end = rng.uniform(0.02, 0.06) * duration, rng.uniform(0.40, 0.46) * duration
        closed, done = end + 0.09 * duration, 0.96 * duration
        value = ramp(closed, done, 0.0, model.joint.limit * sign(rng))
        displaced = joint_motion(model, plan.thing_pose(0, 0.0), value)
        reach_grasp(plan, rng, grasp, start, end, cast.side, straight=0.07 if style == "top" else 0.11)
        hand = plan.hands[cast.side]
        hand.shape(end, closed, grasp.closed)
        hand.follow(closed, duration, displaced)
        plan.joints[0] = value
        plan.arrival = closed
        plan.looks = [(max(end - lead(rng), 0.03), _handle(plan, world, displaced))]
        return plan

    return plan_grip


def plan_push_shut(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
    """Fingertips on the drawer's front push it home."""
    plan = new_plan(cast, 0, resting_palms(world, rng, cast.side), world)
    side, s, model = cast.side, sign_of(cast.side), world.things[0]
    place = plan.thing_pose(0, 0.0)
    opened = model.joint.limit
    world.set_joint(0, opened)
    direction = -(place[:3, :3] @ np.array(model.joint.axis))
    fingers = RELAXED * 0.5
    rotation = palm_rotation(direction - UP * rng.uniform(0.1, 0.35), [-0.2 * s, 0.0, -1.0])
    # Beside the handle, on the hand's own side.
    aim = place @ np.array([s * rng.uniform(0.075, 0.09), -model.extra["front"] - opened - 0.12, model.handle[2], 1.0])
    palm = pose(rotation, aim[:3] - rotation @ np.array([0.0, -0.04, 0.185]))
    touch = advance_to_touch(world, side, palm, fingers, direction, world.moving_geoms[0])
    start, near = rng.uniform(0.03, 0.07) * duration, rng.uniform(0.40, 0.46) * duration
    done = rng.uniform(0.82, 0.92) * duration
    hand = plan.hands[side]
    hand.move(start, near, touch, leave=UP * 0.05, arrive=direction * 0.08)
    hand.shape(start, near - 0.1 * duration, fingers)
    value = ramp(near, done, opened, 0.0)
    displaced = joint_motion(model, place, value)
    hand.follow(near, duration, displaced)
    plan.joints[0] = value
    plan.arrival = near
    handle = _handle(plan, world, displaced)
    plan.looks = [(max(near - lead(rng), 0.03), lambda time: handle(time) + 0.05 * s * place[:3, 0])]
    return plan


def plan_press(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
    """The tip of the index finger goes down on the button, holds it, and comes up again."""
    plan = new_plan(cast, 0, resting_palms(world, rng, cast.side), world)
    side, s, model = cast.side, sign_of(cast.side), world.things[0]
    top = (plan.thing_pose(0, 0.0) @ np.append(model.handle, 1.0))[:3]
    rotation = palm_rotation([-s * rng.uniform(0.1, 0.45), 1.0, -rng.uniform(0.9, 1.4)], [-0.2 * s, 0.0, -1.0])
    world.set_joint(0, 0.0)
    palm = pose(rotation, top + UP * 0.12)
    # Puts the fingertip over the button, whatever the posture.
    world.set_hand(side, palm, POINT)
    world.update()
    tip_geom = world.finger_geoms[side]["FF"][2]
    centre = world.data.geom_xpos[tip_geom]
    end_of_tip = centre + world.data.geom_xmat[tip_geom].reshape(3, 3)[:, 2] * world.model.geom_size[tip_geom][1]
    palm[:3, 3] += top + UP * 0.06 - end_of_tip
    touch = advance_to_touch(world, side, palm, POINT, -UP, world.grip_geoms[0])
    if world.distance(world.hand_geoms[side], _obstacles(world), 0.02) < 0.0:
        raise Infeasible("another finger would land before the tip")
    above = touch.copy()
    above[2, 3] += rng.uniform(0.04, 0.06)

    start, near = rng.uniform(0.02, 0.06) * duration, rng.uniform(0.38, 0.44) * duration
    down, pressed = near + 0.10 * duration, near + 0.22 * duration
    up, left = rng.uniform(0.72, 0.78) * duration, 0.97 * duration
    hand = plan.hands[side]
    hand.move(start, near, above, leave=UP * 0.05, arrive=-UP * 0.02 + 0.05 * rotation[:, 2])
    hand.shape(start, near - 0.05 * duration, POINT)
    hand.move(near, down, touch)
    push, release = ramp(down, pressed, 0.0, model.joint.limit), ramp(up, up + 0.10 * duration, model.joint.limit, 0.0)

    def value(time: float) -> float:
        return push(time) if time < up else release(time)

    displaced = joint_motion(model, plan.thing_pose(0, 0.0), value)
    hand.follow(down, up + 0.10 * duration, displaced)
    hand.move(up + 0.10 * duration, left, above)
    plan.joints[0] = value
    plan.arrival = down
    plan.looks = [(max(down - lead(rng), 0.03), _handle(plan, world, displaced))]
    return plan


def _either(rng: np.random.Generator) -> float:
    return float(rng.choice([-1.0, 1.0]))


FIXTURES: dict[str, Action] = {
    "pull open": Action(
        cast=_cast(_drawer, (0.0, 0.40, -0.15), (0.10, 0.46, 0.25)), plan=_plan_with_grip("hook down", lambda rng: 1.0)
    ),
    "push shut": Action(cast=_cast(_drawer, (-0.02, 0.40, -0.1), (0.08, 0.46, 0.2)), plan=plan_push_shut),
    "open door": Action(
        cast=_cast(_cabinet, (0.10, 0.38, -0.05), (0.20, 0.44, 0.25)), plan=_plan_with_grip("hook in", lambda rng: 1.0)
    ),
    "open lid": Action(
        cast=_cast(_chest, (0.0, 0.26, -0.15), (0.12, 0.34, 0.25)), plan=_plan_with_grip("hook down", lambda rng: 1.0)
    ),
    "press": Action(cast=_cast(_button, (-0.04, 0.16, -0.4), (0.16, 0.30, 0.4)), plan=plan_press),
    "turn": Action(cast=_cast(_knob, (-0.02, 0.16, -0.4), (0.15, 0.28, 0.4)), plan=_plan_with_grip("top", _either)),
}

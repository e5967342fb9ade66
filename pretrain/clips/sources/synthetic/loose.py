"""Actions on loose things: reach, pick up, put down, stack, push, pour, hand over."""

from __future__ import annotations

import numpy as np

from pretrain.clips.sources.synthetic.catalogue import GRASPED, LONG
from pretrain.clips.sources.synthetic.grasp import FLAT, RELAXED, Infeasible, plan_grasp, sign_of
from pretrain.clips.sources.synthetic.hands import PALM_CENTRE, palm_rotation
from pretrain.clips.sources.synthetic.motion import inverse, min_jerk, pose, rotation_about
from pretrain.clips.sources.synthetic.moves import (
    UP,
    Action,
    advance_to_touch,
    begin_held,
    lead,
    middle,
    reach_grasp,
    resting_palms,
    retreat,
    thing_look,
)
from pretrain.clips.sources.synthetic.objects import ObjectModel, Piece
from pretrain.clips.sources.synthetic.plan import (
    Cast,
    Placed,
    Plan,
    draw,
    hand_side,
    new_plan,
    upright,
    workspace_point,
)
from pretrain.clips.sources.synthetic.world import World

STACKED = ("box", "box", "can", "bread")
BASES = ("box", "book", "plate", "plate", "book")
PUSHED = ("box", "book", "cereal box", "bowl", "plate", "milk carton", "mug", "can", "bread")
POURED = ("bottle", "milk carton", "cup", "mug")
LIQUIDS = (("milk", (0.93, 0.93, 0.90)), ("water", (0.60, 0.75, 0.88)), ("orange juice", (0.95, 0.60, 0.10)))
FIRST_TILT = 0.3  # radians, when a source comes beside what it is poured into
OUT_OF_SIGHT = -3.0  # z of a thing that is not there yet


# ---------------------------------------------------------------------------------------------- reach, pick up


def cast_grasped(rng: np.random.Generator) -> Cast:
    side = hand_side(rng)
    model = draw(rng, GRASPED)
    x, y = workspace_point(rng, side)
    s = sign_of(side)
    yaw = float(rng.uniform(-0.35, 0.35))
    if "handle_reach" in model.extra:
        # The handle points away from the palm.
        yaw = float(np.pi / 2 + s * rng.uniform(0.2, 1.0) + (0 if side == "left" else 0.6))
    return Cast(
        side=side,
        placed=[Placed(model=model, pose=upright(x, y, yaw))],
        keep_free=[(x, y, 0.11), (x + 0.06 * s, y - 0.09, 0.10), (x + 0.08 * s, y - 0.18, 0.09), (s * 0.2, 0.0, 0.1)],
    )


def plan_reach(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
    plan = new_plan(cast, 0, resting_palms(world, rng, cast.side), world)
    grasp = plan_grasp(world, cast.side, 0, plan.thing_pose(0, 0.0), rng)
    start, end = rng.uniform(0.08, 0.16) * duration, rng.uniform(0.62, 0.72) * duration
    reach_grasp(plan, rng, grasp, start, end, cast.side)
    plan.hands[cast.side].shape(end, end + 0.12 * duration, grasp.closed)
    plan.arrival = end + 0.1 * duration
    plan.looks = [(max(end - lead(rng), 0.02), thing_look(plan, 0, middle(world, 0)))]
    return plan


def plan_pick_up(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
    plan = new_plan(cast, 0, resting_palms(world, rng, cast.side), world)
    grasp = plan_grasp(world, cast.side, 0, plan.thing_pose(0, 0.0), rng)
    start, end = rng.uniform(0.02, 0.08) * duration, rng.uniform(0.40, 0.47) * duration
    closed = end + 0.10 * duration
    reach_grasp(plan, rng, grasp, start, end, cast.side)
    hand = plan.hands[cast.side]
    hand.shape(end, closed, grasp.closed)
    goal = grasp.palm.copy()
    goal[:3, 3] += [rng.uniform(-0.03, 0.03), rng.uniform(-0.06, 0.01), rng.uniform(0.08, 0.14)]
    goal[:3, :3] = rotation_about(UP, rng.uniform(-0.25, 0.25)) @ goal[:3, :3]
    hand.move(closed, 0.96 * duration, goal, leave=UP * 0.05)
    plan.grip(cast.side, 0, closed, duration)
    plan.arrival = closed
    plan.looks = [(max(end - lead(rng), 0.02), thing_look(plan, 0, middle(world, 0)))]
    return plan


# ---------------------------------------------------------------------------------------------- put down, stack


def cast_put_down(rng: np.random.Generator) -> Cast:
    """The thing stands where it will be put."""
    cast = cast_grasped(rng)
    x, y = cast.placed[0].pose[:2, 3]
    cast.keep_free.append((x + 0.05 * sign_of(cast.side), y - 0.05, 0.12))
    return cast


def cast_stack(rng: np.random.Generator) -> Cast:
    side = hand_side(rng)
    x, y = workspace_point(rng, side, near=0.15)
    model, base = draw(rng, STACKED), draw(rng, BASES)
    if base.base_radius < 0.85 * min(model.radius, model.half_width * 1.2):
        raise Infeasible(f"the {base.label} is too small under the {model.label}")
    yaw = float(rng.uniform(-0.35, 0.35))
    spread = 0.2 * base.base_radius
    upon = upright(x + rng.uniform(-spread, spread), y + rng.uniform(-spread, spread), yaw, base.base_height)
    s = sign_of(side)
    return Cast(
        side=side,
        placed=[Placed(model=model, pose=upon, upon=1), Placed(model=base, pose=upright(x, y, yaw))],
        keep_free=[(x, y, 0.13), (x + 0.07 * s, y - 0.1, 0.13)],
    )


def plan_put_down(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
    """Also the plan of "stack": the cast says on what the thing is put."""
    plan = new_plan(cast, 0, resting_palms(world, rng, cast.side), world)
    plan.other = cast.placed[0].upon
    under = world.support if plan.other is None else world.support + world.thing_geoms[plan.other]
    s = sign_of(cast.side)
    lift = np.array([s * rng.uniform(0.0, 0.08), rng.uniform(-0.10, -0.03), rng.uniform(0.10, 0.15)])
    goal = plan.thing_pose(0, 0.0)
    grasp = begin_held(plan, world, rng, cast.side, 0, None, lift, under)
    start, end = rng.uniform(0.08, 0.15) * duration, rng.uniform(0.56, 0.64) * duration
    hand = plan.hands[cast.side]
    hand.move(start, end, grasp.palm, arrive=-UP * 0.06)
    plan.grip(cast.side, 0, 0.0, end)
    retreat(plan, rng, grasp, end + 0.03 * duration, 0.97 * duration, cast.side)
    plan.arrival = end
    plan.looks = [
        (0.0, thing_look(plan, 0, middle(world, 0))),
        (max(end - lead(rng), 0.05), lambda time: goal[:3, 3]),
        (end + 0.05 * duration, thing_look(plan, 0, middle(world, 0))),
    ]
    return plan


# ---------------------------------------------------------------------------------------------- push


def cast_push(rng: np.random.Generator) -> Cast:
    side = hand_side(rng)
    s = sign_of(side)
    model = draw(rng, PUSHED)
    forward = bool(rng.random() < 0.5)
    angle = rng.uniform(-0.25, 0.25)
    direction = rotation_about(UP, angle) @ ([0.0, 1.0, 0.0] if forward else [-s, 0.0, 0.0])
    x = s * float(rng.uniform(0.0, 0.12) if forward else rng.uniform(0.08, 0.18))
    y = float(rng.uniform(0.19, 0.26))
    path = [(x + direction[0] * d, y + direction[1] * d, 0.04) for d in np.linspace(0, 0.22, 6)]
    free = [(px, py, r + model.radius) for px, py, r in path]
    return Cast(
        side=side,
        placed=[Placed(model=model, pose=upright(x, y, float(angle)))],
        keep_free=[*free, (x - direction[0] * 0.12, y - direction[1] * 0.12, 0.13), (x + 0.1 * s, y - 0.15, 0.1)],
        direction=direction,
    )


def plan_push(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
    plan = new_plan(cast, 0, resting_palms(world, rng, cast.side), world)
    side, direction = cast.side, cast.direction
    s = sign_of(side)
    model, place = world.things[0], plan.thing_pose(0, 0.0)
    if abs(direction[1]) > abs(direction[0]):
        fingers = RELAXED * 0.55
        rotation = palm_rotation(direction - UP * rng.uniform(0.25, 0.5), [-0.15 * s, 0.0, -1.0])
        tip = np.array([0.0, -0.05, 0.185])
        height = min(0.6 * model.height, 0.04)
    else:
        fingers = FLAT
        rotation = palm_rotation([-0.25 * s, 1.0, -0.1], direction)
        tip = np.array([0.0, PALM_CENTRE[1], 0.10])
        height = max(0.052, 0.4 * model.height)
        if model.height < 0.045:
            raise Infeasible("too low to be pushed sideways with the palm")
    aim = place[:3, 3] + UP * height - direction * (model.radius + 0.10)
    palm = pose(rotation, aim - rotation @ tip)
    world.set_hand(side, palm, fingers)
    world.update()
    low = world.distance(world.hand_geoms[side], world.support, 0.02)
    if low < 0.004:
        palm[2, 3] += 0.004 - low
    touch = advance_to_touch(world, side, palm, fingers, direction, world.thing_geoms[0])
    before, after = touch.copy(), touch.copy()
    before[:3, 3] -= direction * 0.035
    length = rng.uniform(0.09, 0.15)
    after[:3, 3] += direction * length

    start, near, end = rng.uniform(0.03, 0.08) * duration, rng.uniform(0.40, 0.46) * duration, 0.93 * duration
    hand = plan.hands[side]
    hand.move(start, near, before, leave=UP * 0.04, arrive=direction * 0.03 - UP * 0.02)
    hand.shape(start, near, fingers)
    hand.move(near, end, after)

    def pushed(time: float) -> np.ndarray:
        moved = place.copy()
        moved[:3, 3] += direction * max(0.0, float((hand.palm(time) - touch)[:3, 3] @ direction))
        return moved

    plan.things[0].add(near, pushed)
    moments = np.linspace(near, end, 200)
    plan.arrival = float(moments[np.argmax([np.linalg.norm(pushed(t)[:3, 3] - place[:3, 3]) > 1e-4 for t in moments])])
    plan.looks = [
        (max(plan.arrival - lead(rng), 0.05), thing_look(plan, 0, middle(world, 0))),
        (plan.arrival + 0.1 * duration, lambda time: place[:3, 3] + direction * (length + 0.3 * model.radius)),
    ]
    return plan


# ---------------------------------------------------------------------------------------------- pour


def cast_pour(rng: np.random.Generator) -> Cast:
    side = hand_side(rng)
    s = sign_of(side)
    x, y = s * float(rng.uniform(-0.06, 0.06)), float(rng.uniform(0.16, 0.26))
    source, bowl = draw(rng, POURED), draw(rng, ("bowl", "bowl", "mug", "cup"))
    liquid, rgb = LIQUIDS[int(rng.integers(len(LIQUIDS)))]
    if source.category == "milk carton":
        liquid, rgb = LIQUIDS[0]
    stands = upright(x + 0.19 * s, y - 0.01, float(rng.uniform(-0.3, 0.3)))
    half = 0.5 * (bowl.height + 0.015)
    stream = Piece(shape="capsule", size=(0.0035, half), position=(0.0, 0.0, -half), rgb=rgb, solid=False)
    falling = ObjectModel(category="stream", label=liquid, pieces=(stream,), height=0.0, radius=0.0, half_width=0.0)
    return Cast(
        side=side,
        placed=[
            Placed(model=source, pose=stands),
            Placed(model=bowl, pose=upright(x, y, float(rng.uniform(-np.pi, np.pi)))),
            Placed(model=falling, pose=upright(0.0, 0.0, 0.0, OUT_OF_SIGHT)),
        ],
        keep_free=[(x, y, 0.14), (x + 0.19 * s, y, 0.16), (x + 0.22 * s, y - 0.12, 0.12)],
    )


def _lip(source: ObjectModel, s: float) -> np.ndarray:
    """Where an upright source spills when tilted inwards, relative to the middle of its underside."""
    return np.array([-s * source.extra.get("lip", 0.9 * source.half_width), 0.0, source.height])


def plan_pour(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
    plan = new_plan(cast, 0, resting_palms(world, rng, cast.side), world)
    plan.other = 1
    side, s = cast.side, sign_of(cast.side)
    source, bowl = world.things[0], world.things[1]
    lift = np.array([0.0, rng.uniform(-0.05, 0.0), rng.uniform(0.11, 0.15)])
    begin_held(plan, world, rng, side, 0, "side", lift, world.support)
    held = plan.thing_pose(0, 0.0)
    tilt = np.deg2rad(rng.uniform(98, 112))
    into = plan.thing_pose(1, 0.0)[:3, 3] + UP * (bowl.height + rng.uniform(0.035, 0.055))
    axis = np.array([0.0, -s, 0.0])

    # At first the source is beside the vessel and above its rim; its lip comes over the middle as it is tilted.
    beside = np.array([s * (bowl.radius + 0.03), 0.0, source.height * np.cos(FIRST_TILT) - 0.02])

    def tilted(share: float) -> np.ndarray:
        rotation = rotation_about(axis, FIRST_TILT + share * (tilt - FIRST_TILT))
        lip = into + (1 - share) ** 2 * beside
        return pose(rotation @ held[:3, :3], lip - rotation @ _lip(source, s))

    start, near, full = 0.04 * duration, rng.uniform(0.34, 0.40) * duration, rng.uniform(0.60, 0.68) * duration
    hand = plan.hands[side]
    local = inverse(held) @ hand.palm(0.0)
    hand.move(start, near, tilted(0.0) @ local)

    def pouring(time: float) -> np.ndarray:
        return tilted(min_jerk((time - near) / (full - near))) @ local

    hand.conduct(near, duration, pouring)
    plan.grip(side, 0, 0.0, duration)
    flows = near + 0.72 * (full - near)

    lip = held[:3, :3].T @ _lip(source, s)

    def stream(time: float) -> np.ndarray:
        top = pouring(time) @ inverse(local) @ np.append(lip, 1.0)
        return upright(float(top[0]), float(top[1]), 0.0, float(top[2]))

    plan.things[2].add(flows, stream)
    plan.arrival = full
    plan.looks = [
        (0.0, thing_look(plan, 0, middle(world, 0))),
        (max(near - lead(rng), 0.05), thing_look(plan, 1, middle(world, 1))),
    ]
    return plan


# ---------------------------------------------------------------------------------------------- hand over


def cast_hand_over(rng: np.random.Generator) -> Cast:
    side = hand_side(rng)
    model = draw(rng, LONG)
    y = float(rng.uniform(0.16, 0.24))
    return Cast(
        side=side,
        placed=[
            Placed(model=model, pose=upright(0.0, y, float(rng.uniform(-0.1, 0.1)), float(rng.uniform(0.08, 0.13))))
        ],
        keep_free=[(x, y - 0.02, 0.12) for x in (-0.2, -0.1, 0.0, 0.1, 0.2)],
    )


def plan_hand_over(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
    """The cast holds the thing where it changes hands."""
    plan = new_plan(cast, 0, resting_palms(world, rng), world)
    giver, taker = cast.side, "left" if cast.side == "right" else "right"
    s = sign_of(giver)
    half = world.things[0].radius
    height = world.things[0].grasp_height
    meeting = plan.thing_pose(0, 0.0)
    lift = np.array([s * rng.uniform(0.10, 0.15), rng.uniform(-0.06, 0.0), rng.uniform(-0.03, 0.03)])
    given = np.array([s * 0.60 * half, 0.0, height])
    grasp = begin_held(plan, world, rng, giver, 0, "top", lift, [], given)
    world.set_hand(giver, grasp.palm, grasp.closed)
    taken = np.array([-s * 0.60 * half, 0.0, height])
    take = plan_grasp(world, taker, 0, meeting, rng, style="top", obstacles=world.hand_geoms[giver], offset=taken)
    start, met = 0.02 * duration, rng.uniform(0.27, 0.32) * duration
    closed, left = met + 0.26 * duration, met + 0.28 * duration
    hand, other = plan.hands[giver], plan.hands[taker]
    hand.move(start, met, grasp.palm)
    reach_grasp(plan, rng, take, 0.12 * duration, met + 0.17 * duration, taker, straight=0.11, rise=0.16)
    other.shape(met + 0.17 * duration, closed, take.closed)
    plan.grip(giver, 0, 0.0, left)
    retreat(plan, rng, grasp, left, min(left + 0.34 * duration, 0.98 * duration), giver)
    goal = take.palm.copy()
    goal[:3, 3] += [-s * rng.uniform(0.03, 0.08), rng.uniform(-0.05, 0.02), rng.uniform(0.0, 0.05)]
    other.move(left + 0.14 * duration, 0.98 * duration, goal)
    plan.grip(taker, 0, left, duration)
    plan.arrival = closed
    plan.looks = [
        (0.0, thing_look(plan, 0, given)),
        (max(closed - lead(rng), 0.05), thing_look(plan, 0, taken)),
    ]
    return plan


LOOSE: dict[str, Action] = {
    "reach": Action(cast=cast_grasped, plan=plan_reach),
    "pick up": Action(cast=cast_grasped, plan=plan_pick_up),
    "put down": Action(cast=cast_put_down, plan=plan_put_down),
    "push": Action(cast=cast_push, plan=plan_push),
    "stack": Action(cast=cast_stack, plan=plan_put_down),
    "pour": Action(cast=cast_pour, plan=plan_pour),
    "hand over": Action(cast=cast_hand_over, plan=plan_hand_over),
}

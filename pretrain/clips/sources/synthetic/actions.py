"""The planners of the actions that hands do to loose things; those on articulated things are in fixtures.py.

An action is a row of ACTION_TABLE: `cast` draws the things that it needs and where they stand, `plan` the motions once the
scene is compiled. Times are for a clip of `duration` seconds; each plan stretches over it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pretrain.clips.sources.synthetic.grasp import (
    RELAXED,
    Grasp,
    Infeasible,
    plan_grasp,
    rest_palm,
    sign_of,
)
from pretrain.clips.sources.synthetic.motion import inverse, pose, rotation_about
from pretrain.clips.sources.synthetic.objects import GRASPED, SIDE_GRASPED
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

UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Action:
    """One row of the table."""

    cast: Callable[[np.random.Generator], Cast]
    plan: Callable[[World, Cast, np.random.Generator, float], Plan]


# ---------------------------------------------------------------------------------------------- shared moves


def resting_palms(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    palms = {}
    for side in ("left", "right"):
        fingers = RELAXED * rng.uniform(0.7, 1.3)
        palms[side] = (rest_palm(side, rng), fingers)
    return palms


def reach_grasp(plan: Plan, rng: np.random.Generator, grasp: Grasp, start: float, end: float, side: str) -> None:
    """Moves the hand from where it is to the grasp, opening on the way."""
    hand = plan.hands[side]
    distance = float(np.linalg.norm(grasp.palm[:3, 3] - hand.palm(start)[:3, 3]))
    hand.move(
        start,
        end,
        grasp.palm,
        leave=UP * rng.uniform(0.02, 0.06) + 0.1 * (grasp.palm[:3, 3] - hand.palm(start)[:3, 3]),
        arrive=grasp.approach * min(0.12, 0.5 * distance),
    )
    hand.shape(start, start + 0.75 * (end - start), grasp.preshape)


def retreat(plan: Plan, rng: np.random.Generator, grasp: Grasp, start: float, end: float, side: str) -> None:
    """Opens the hand and takes it off the grasp, backwards along its approach."""
    hand = plan.hands[side]
    opened = start + 0.3 * (end - start)
    hand.shape(start, opened, grasp.preshape)
    back = hand.palm(start)[:3, 3] - 0.09 * plan_approach(hand.palm(start), grasp)
    goal = pose(hand.palm(start)[:3, :3], back + np.array([0.0, -0.03, 0.02]))
    hand.move(opened, end, goal, leave=-0.05 * plan_approach(hand.palm(start), grasp))
    hand.shape(opened, end, RELAXED * rng.uniform(0.8, 1.2))


def plan_approach(palm: np.ndarray, grasp: Grasp) -> np.ndarray:
    """The grasp's approach, carried along with the palm to where it is now."""
    return palm[:3, :3] @ grasp.palm[:3, :3].T @ grasp.approach


def begin_held(
    plan: Plan, world: World, rng: np.random.Generator, side: str, thing: int, style: str | None, lift: np.ndarray
) -> Grasp:
    """Starts the clip with `thing` in the hand, carried by `lift` (metres) from where the cast put it."""
    at = plan.thing_pose(thing, 0.0)
    grasp = plan_grasp(world, side, thing, at, rng, style=style, support=[])
    palm = grasp.palm.copy()
    palm[:3, 3] += lift
    held = at.copy()
    held[:3, 3] += lift
    plan.hands[side] = type(plan.hands[side])(palm, grasp.closed)
    plan.things[thing].parts[0] = lambda time: held
    return grasp


def palm_for(plan: Plan, side: str, thing: int, time: float, goal: np.ndarray) -> np.ndarray:
    """The palm pose that brings a thing, held as at `time`, to the pose `goal`."""
    return goal @ inverse(plan.thing_pose(thing, time)) @ plan.hands[side].palm(time)


def thing_look(plan: Plan, thing: int, offset: np.ndarray) -> Callable[[float], np.ndarray]:
    """A point of a thing to look at, moving with it."""
    return lambda time: (plan.thing_pose(thing, time) @ np.append(offset, 1.0))[:3]


def middle(world: World, thing: int) -> np.ndarray:
    return np.array([0.0, 0.0, 0.5 * world.things[thing].height])


def lead(rng: np.random.Generator) -> float:
    """How long the eyes are on a target before the hand is, in seconds."""
    return float(rng.uniform(0.35, 0.55))


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
    plan = new_plan(cast, 0, resting_palms(rng), world)
    grasp = plan_grasp(world, cast.side, 0, plan.thing_pose(0, 0.0), rng)
    start, end = rng.uniform(0.08, 0.16) * duration, rng.uniform(0.62, 0.72) * duration
    reach_grasp(plan, rng, grasp, start, end, cast.side)
    plan.hands[cast.side].shape(end, end + 0.12 * duration, grasp.closed)
    plan.arrival = end + 0.1 * duration
    plan.looks = [(max(end - lead(rng), 0.02), thing_look(plan, 0, middle(world, 0)))]
    return plan


def plan_pick_up(world: World, cast: Cast, rng: np.random.Generator, duration: float) -> Plan:
    plan = new_plan(cast, 0, resting_palms(rng), world)
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


ACTION_TABLE: dict[str, Action] = {
    "reach": Action(cast=cast_grasped, plan=plan_reach),
    "pick up": Action(cast=cast_grasped, plan=plan_pick_up),
}
assert SIDE_GRASPED and Infeasible

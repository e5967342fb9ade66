"""Moves that several actions share: reaching into a grasp, letting go, holding from the start, pushing until touch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pretrain.clips.sources.synthetic.grasp import RELAXED, Grasp, Infeasible, plan_grasp, rest_palm
from pretrain.clips.sources.synthetic.hands import SIDES
from pretrain.clips.sources.synthetic.motion import inverse, pose
from pretrain.clips.sources.synthetic.plan import Cast, Plan
from pretrain.clips.sources.synthetic.world import World

UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Action:
    """One row of the table of actions.

    Attributes:
        cast: draws the things that the action needs and where they stand.
        plan: draws the motions, once the scene is compiled and set, for a clip of the given length in seconds.
    """

    cast: Callable[[np.random.Generator], Cast]
    plan: Callable[[World, Cast, np.random.Generator, float], Plan]


def resting_palms(
    world: World, rng: np.random.Generator, acting: str | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A palm pose and finger angles at ease for both hands, just above the table and clear of the things on it.

    Now and then the hand that is not `acting` hangs out of view; never, if None is given.
    """
    palms = {}
    things = [geom for geoms in world.thing_geoms for geom in geoms]
    for side in SIDES:
        palm, fingers = rest_palm(side, rng), RELAXED * rng.uniform(0.7, 1.3)
        clearance = rng.uniform(0.004, 0.03)
        for _ in range(6):
            world.set_hand(side, palm, fingers)
            world.update()
            palm[2, 3] += clearance - world.distance(world.hand_geoms[side], world.support, 0.2)
            if world.distance(world.hand_geoms[side], things, 0.07) < 0.05:
                palm[1, 3] -= 0.03
        if acting is not None and side != acting and rng.random() < 0.2:
            palm[1:3, 3] = -0.45, -0.30
        palms[side] = (palm, fingers)
    return palms


def reach_grasp(
    plan: Plan,
    rng: np.random.Generator,
    grasp: Grasp,
    start: float,
    end: float,
    side: str,
    *,
    straight: float = 0.07,
    rise: float = 0.045,
) -> None:
    """Moves the hand from where it is to the grasp, opening on the way.

    Args:
        straight: length in metres of the last stretch, along the grasp's approach.
        rise: how far up the curve's first control point is, metres.
    """
    hand = plan.hands[side]
    hand.move(
        start,
        end,
        grasp.palm,
        leave=UP * rise * rng.uniform(0.7, 1.3) + 0.1 * (grasp.palm[:3, 3] - hand.palm(start)[:3, 3]),
        arrive=grasp.approach * straight * rng.uniform(0.9, 1.1),
    )
    hand.shape(start, start + 0.6 * (end - start), grasp.preshape)


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
    plan: Plan,
    world: World,
    rng: np.random.Generator,
    side: str,
    thing: int,
    style: str | None,
    lift: np.ndarray,
    obstacles: list[int],
    offset: np.ndarray | None = None,
) -> Grasp:
    """Starts the clip with `thing` in the hand, carried by `lift` (metres) from where the cast put it."""
    at = plan.thing_pose(thing, 0.0)
    grasp = plan_grasp(world, side, thing, at, rng, style=style, obstacles=obstacles, offset=offset)
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


def advance_to_touch(
    world: World, side: str, palm: np.ndarray, fingers: np.ndarray, direction: np.ndarray, target: list[int]
) -> np.ndarray:
    """The palm pose at which the hand, moved along `direction`, first touches `target`.

    Raises:
        Infeasible: it misses.
    """
    palm = palm.copy()
    for _ in range(60):
        world.set_hand(side, palm, fingers)
        world.update()
        distance = world.distance(world.hand_geoms[side], target, 0.5)
        if distance < 0.0006:
            return palm
        palm[:3, 3] += direction * max(distance - 0.0004, 0.0002)
    raise Infeasible("the hand misses what it is to push")

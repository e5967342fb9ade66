"""What a scene holds and how it moves: the tables that the actions fill in and the rest of the source reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pretrain.clips.sources.synthetic.catalogue import make_object
from pretrain.clips.sources.synthetic.grasp import Infeasible, sign_of
from pretrain.clips.sources.synthetic.hands import SIDES
from pretrain.clips.sources.synthetic.motion import HandMotion, Timeline, inverse, pose, rotation_about
from pretrain.clips.sources.synthetic.objects import ObjectModel
from pretrain.clips.sources.synthetic.world import World

PointAt = Callable[[float], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A thing and where it stands at the start; `upon` is the index of the thing under it, None = the table."""

    model: ObjectModel
    pose: np.ndarray
    upon: int | None = None


@dataclass
class Cast:
    """The things that an action needs, in order, and the floor that its hands sweep: discs (x, y, radius) to keep free.

    `direction` is the unit vector of a push.
    """

    side: str
    placed: list[Placed]
    keep_free: list[tuple[float, float, float]] = field(default_factory=list)
    direction: np.ndarray = field(default_factory=lambda: np.zeros(3))


@dataclass
class Plan:
    """All motions of a clip.

    Attributes:
        side: the acting hand; where two act, the one that starts.
        target: index of the thing acted on; `other`: of the second one (a stack's base, a bowl), or None.
        hands, things, joints: motions by side, by index and by index.
        grips: (side, thing, start, end) times in seconds during which a thing is fixed to a palm.
        looks: (start of the fixation, point in the world over time), in order of time.
        arrival: when the acting hand first reaches what it acts on, seconds.
    """

    side: str
    target: int
    hands: dict[str, HandMotion]
    things: list[Timeline]
    other: int | None = None
    joints: dict[int, Callable[[float], float]] = field(default_factory=dict)
    grips: list[tuple[str, int, float, float]] = field(default_factory=list)
    looks: list[tuple[float, PointAt]] = field(default_factory=list)
    arrival: float = 0.0

    def thing_pose(self, index: int, time: float) -> np.ndarray:
        return self.things[index](time)

    def grip(self, side: str, thing: int, start: float, end: float) -> None:
        """Fixes a thing to a palm from `start` to `end`; afterwards it stays where it was left.

        Call it when the palm's motion until `end` is known.
        """
        local = inverse(self.hands[side].palm(start)) @ self.things[thing](start)
        palm = self.hands[side].palm
        self.things[thing].add(start, lambda time: palm(min(time, end)) @ local)
        self.grips.append((side, thing, start, end))

    def grips_at(self, time: float) -> list[tuple[str, int]]:
        """(side, thing) of each grip that holds at a time."""
        return [(side, thing) for side, thing, start, end in self.grips if start <= time <= end]

    def look_around_first(self, rng: np.random.Generator, world: World) -> None:
        """Before the eyes turn to their first target they rest elsewhere: on another thing, or near a hand."""
        if self.looks[0][0] < 0.1:
            return
        others = [i for i, thing in enumerate(world.things) if i != self.target and thing.height > 0]
        if others and rng.random() < 0.7:
            thing = int(rng.choice(others))
            point = self.thing_pose(thing, 0.0)[:3, 3] + [0.0, 0.0, world.things[thing].height / 2]
        else:
            point = self.hands[self.side].palm(0.0)[:3, 3] + rng.normal(size=3) * 0.04 + [0.0, 0.1, 0.0]
        self.looks.insert(0, (0.0, lambda time: point))

    def stir_idle_hands(self, rng: np.random.Generator, duration: float) -> None:
        """A hand that does nothing still moves a little, and never downwards."""
        busy = {self.side} | {grip for grip, _, _, _ in self.grips}
        for side in (side for side in SIDES if side not in busy):
            rest = self.hands[side].palm(0.0)
            rate, phase = rng.uniform(0.3, 0.8), rng.uniform(0, 2 * np.pi)
            way = np.abs(rng.normal(size=3)) * [0.003, 0.003, 0.006]

            def stirred(time: float, rest=rest, rate=rate, phase=phase, way=way) -> np.ndarray:
                moved = rest.copy()
                moved[:3, 3] += way * (0.5 + 0.5 * np.sin(2 * np.pi * rate * time + phase))
                return moved

            self.hands[side].conduct(0.0, duration, stirred)

    def apply(self, world: World, time: float, shoulders: dict[str, np.ndarray] | None = None) -> None:
        """Sets the state at a time; with shoulder positions, the arms too. Call `world.update` after it."""
        for side, hand in self.hands.items():
            world.set_hand(side, hand.palm(time), hand.fingers(time), shoulders[side] if shoulders else None)
        for index, timeline in enumerate(self.things):
            world.set_thing(index, timeline(time))
        for index, joint in self.joints.items():
            world.set_joint(index, joint(time))


def new_plan(cast: Cast, target: int, palms: dict[str, tuple[np.ndarray, np.ndarray]], world: World) -> Plan:
    """A plan in which everything rests. `palms` holds each side's first palm pose and finger angles."""
    things = []
    for placed in cast.placed:
        timeline = Timeline()
        timeline.add(0.0, lambda time, at=placed.pose: at)
        things.append(timeline)
    joints = {i: (lambda time: 0.0) for i, thing in enumerate(world.things) if thing.joint}
    hands = {side: HandMotion(*palms[side]) for side in SIDES}
    return Plan(side=cast.side, target=target, hands=hands, things=things, joints=joints)


def upright(x: float, y: float, yaw: float = 0.0, z: float = 0.0) -> np.ndarray:
    return pose(rotation_about(np.array([0.0, 0.0, 1.0]), yaw), np.array([x, y, z]))


def hand_side(rng: np.random.Generator) -> str:
    return "right" if rng.random() < 0.6 else "left"


def workspace_point(
    rng: np.random.Generator, side: str, *, near: float = 0.12, far: float = 0.28
) -> tuple[float, float]:
    """A place that the hand of `side` reaches with ease."""
    return sign_of(side) * float(rng.uniform(-0.02, 0.18)), float(rng.uniform(near, far))


def draw(rng: np.random.Generator, categories: tuple[str, ...]) -> ObjectModel:
    return make_object(str(rng.choice(categories)), rng)


def with_distractors(cast: Cast, rng: np.random.Generator, count: int, categories: tuple[str, ...]) -> list[Placed]:
    """The cast's things and further ones, clear of each other and of the floor that the hands sweep.

    Raises:
        Infeasible: fewer than three things fit.
    """
    placed = list(cast.placed)
    # Hands at rest take room too.
    free = [*cast.keep_free, *((x, y, 0.1) for x in (-0.19, 0.19) for y in (0.0, 0.1))]
    labels = {item.model.label for item in placed}
    if len(labels) < len(placed):
        raise Infeasible("two things of the cast have one name")
    for _ in range(60):
        if len(placed) >= count:
            break
        model = make_object(str(rng.choice(categories)), rng)
        if model.label in labels:
            continue
        x, y = float(rng.uniform(-0.42, 0.42)), float(rng.uniform(0.08, 0.52))
        radius = model.extra.get("handle_reach", model.radius)
        discs = [(p.pose[0, 3], p.pose[1, 3], p.model.radius + 0.015) for p in placed] + free
        if any(np.hypot(x - dx, y - dy) < radius + dr for dx, dy, dr in discs):
            continue
        # Tall things stand at the back, where they hide nothing.
        if model.height > 0.13 and y < 0.33:
            continue
        placed.append(Placed(model=model, pose=upright(x, y, float(rng.uniform(-np.pi, np.pi)))))
        labels.add(model.label)
    if len(placed) < 3:
        raise Infeasible("no room for three things")
    return placed

"""What a robot arm does: one cast of things and one motion of the tool an action, in the terms of plan.py.

The arm's tool takes the place of a hand: `Plan.hands` has one entry, "robot", whose palm is the tool's pose and whose
fingers are the distance between the fingertips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pretrain.clips.sources.synthetic.arm import ArmModel
from pretrain.clips.sources.synthetic.catalogue import make_object
from pretrain.clips.sources.synthetic.fixtures import joint_motion
from pretrain.clips.sources.synthetic.furniture import LOOSE_THINGS, STANDING
from pretrain.clips.sources.synthetic.grasp import Infeasible
from pretrain.clips.sources.synthetic.motion import HandMotion, Timeline, inverse, pose, ramp, rotation_about
from pretrain.clips.sources.synthetic.objects import ObjectModel
from pretrain.clips.sources.synthetic.plan import Placed, Plan, upright
from pretrain.clips.sources.synthetic.robot_scene import Table

SIDE = "robot"
UP = np.array([0.0, 0.0, 1.0])
GRIPPED = ("can", "box", "bread", "lemon")  # of catalogue.py: what a gripper may hold
STANDING_BY = ("bottle", "bowl", "plate", "mug", "milk carton", "cereal box", "book")


@dataclass
class Stage:
    """What a plan starts from: the arm, the table and the things in their places, the target first.

    `opened` is the joint's value of each jointed thing at the start.
    """

    arm: ArmModel
    table: Table
    placed: list[Placed]
    opened: dict[int, float]


def _loose(rng: np.random.Generator, arm: ArmModel) -> ObjectModel:
    """A thing that the arm's fingers can hold; for a rod, any that is small."""
    widest = arm.opening_m or 0.1
    for _ in range(20):
        if rng.random() < 0.75:
            model = LOOSE_THINGS[str(rng.choice(list(LOOSE_THINGS)))](rng)
        else:
            model = make_object(str(rng.choice(GRIPPED)), rng)
        if 2 * model.half_width < widest - 0.012:
            return model
    raise Infeasible("nothing that fits between the fingers")


def _place(rng: np.random.Generator, *, y: tuple[float, float], x: float = 0.22, yaw: float = np.pi) -> np.ndarray:
    return upright(float(rng.uniform(-x, x)), float(rng.uniform(*y)), float(rng.uniform(-yaw, yaw)))


def tool_pose(position: np.ndarray, approach: np.ndarray, opening_axis: np.ndarray) -> np.ndarray:
    """The tool at a position, pointing along `approach`, its fingers opening as near to `opening_axis` as can be."""
    z = approach / np.linalg.norm(approach)
    x = opening_axis - (opening_axis @ z) * z
    x = x / np.linalg.norm(x)
    return pose(np.column_stack([x, np.cross(z, x), z]), position)


def _down(rng: np.random.Generator, position: np.ndarray, opening_axis: np.ndarray, lean: float = 0.12) -> np.ndarray:
    """The tool pointing down, nearly; of the two ways to turn it, the one that twists the wrist less."""
    if opening_axis[0] < 0:
        opening_axis = -opening_axis
    # It leans across that axis only, so that both fingers stay flat against what they hold.
    approach = -UP + rng.uniform(-1.2, 1.2) * lean * np.cross(UP, opening_axis)
    return tool_pose(position, approach, opening_axis)


def _grip_pose(rng: np.random.Generator, model: ObjectModel, at: np.ndarray) -> np.ndarray:
    """The tool around a thing that stands at `at`, from above."""
    height = max(model.height - float(rng.uniform(0.015, 0.03)), 0.5 * model.height, 0.012)
    point = (at @ [model.extra.get("grip_x", 0.0), 0.0, height, 1.0])[:3]
    return _down(rng, point, at[:3, 1])


def _new_plan(stage: Stage, tool: np.ndarray, opening: float) -> Plan:
    things = []
    for placed in stage.placed:
        timeline = Timeline()
        timeline.add(0.0, lambda time, at=placed.pose: at)
        things.append(timeline)
    joints = {i: (lambda time, value=value: value) for i, value in stage.opened.items()}
    return Plan(side=SIDE, target=0, hands={SIDE: HandMotion(tool, np.array([opening]))}, things=things, joints=joints)


def _rest(rng: np.random.Generator, near: np.ndarray) -> np.ndarray:
    """Somewhere over the work area, where the tool waits; `near` is where it will go."""
    shift = rng.uniform((-0.18, -0.15, 0.1), (0.18, 0.1, 0.28))
    position = np.clip(near[:3, 3] + shift, (-0.35, -0.12, 0.12), (0.35, 0.35, 0.5))
    return _down(
        rng, position, near[:3, 0] if rng.random() < 0.6 else rotation_about(UP, rng.uniform(-1, 1))[:, 0], 0.2
    )


def _shut(model: ObjectModel) -> float:
    """The distance between fingers that hold the thing."""
    return 2 * model.half_width + 0.0004  # a hair of air: shapes that just touch confuse the distance


def _thing_point(plan: Plan, thing: int, height: float) -> Callable[[float], np.ndarray]:
    return lambda time: (plan.thing_pose(thing, time) @ [0.0, 0.0, height, 1.0])[:3]


def _tool_point(plan: Plan) -> Callable[[float], np.ndarray]:
    return lambda time: plan.hands[SIDE].palm(time)[:3, 3]


def _look(rng: np.random.Generator, plan: Plan, target: Callable[[float], np.ndarray]) -> None:
    """The eyes go to the target, before the tool is there or with it; some time later often to the tool."""
    start = max(plan.arrival - float(rng.uniform(0.2, 0.7)), 0.0)
    plan.looks = [(start, target)]
    if start > 0.25 and rng.random() < 0.6:
        plan.looks.insert(0, (0.0, _tool_point(plan)))
    if rng.random() < 0.3:
        plan.looks.append((plan.arrival + float(rng.uniform(0.1, 0.4)), _tool_point(plan)))


# ---------------------------------------------------------------------------------------------- loose things


def plan_pick_up(stage: Stage, rng: np.random.Generator, duration: float) -> Plan:
    model, at = stage.placed[0].model, stage.placed[0].pose
    grip = _grip_pose(rng, model, at)
    plan = _new_plan(stage, _rest(rng, grip), stage.arm.opening_m * float(rng.uniform(0.8, 1.0)))
    start, near = float(rng.uniform(0.0, 0.08)) * duration, float(rng.uniform(0.40, 0.50)) * duration
    closed, end = near + 0.08 * duration, float(rng.uniform(0.90, 0.97)) * duration
    hand = plan.hands[SIDE]
    wide = min(stage.arm.opening_m, _shut(model) + 0.05)
    hand.shape(start, near - 0.1 * duration, np.array([wide]))
    hand.move(start, near, grip, arrive=-UP * float(rng.uniform(0.08, 0.12)))
    hand.shape(near, closed, np.array([_shut(model)]))
    goal = grip.copy()
    goal[:3, 3] += rng.uniform((-0.15, -0.12, 0.08), (0.15, 0.10, 0.22))
    hand.move(closed, end, goal, leave=UP * 0.08)
    plan.grip(SIDE, 0, closed, duration)
    plan.arrival = near
    _look(rng, plan, _thing_point(plan, 0, model.height / 2))
    return plan


def _plan_carry(upon_other: bool) -> Callable:
    """Holds the target, carries it to its place - on the table or on the second thing - and lets go."""

    def plan_carry(stage: Stage, rng: np.random.Generator, duration: float) -> Plan:
        model, at = stage.placed[0].model, stage.placed[0].pose
        if upon_other:
            other = stage.placed[1]
            at = upright(other.pose[0, 3], other.pose[1, 3], float(rng.uniform(-0.3, 0.3)), other.model.base_height)
        grip = _grip_pose(rng, model, at)
        held = grip.copy()
        held[:3, 3] += rng.uniform((-0.2, -0.15, 0.1), (0.2, 0.1, 0.25))
        plan = _new_plan(stage, held, _shut(model))
        begun = held @ inverse(grip) @ at
        plan.things[0].parts[0] = lambda time: begun
        hand = plan.hands[SIDE]
        start, down = float(rng.uniform(0.02, 0.1)) * duration, float(rng.uniform(0.55, 0.65)) * duration
        opened, end = down + 0.1 * duration, 0.97 * duration
        hand.move(start, down, grip, arrive=-UP * 0.07)
        plan.grip(SIDE, 0, 0.0, down)
        hand.shape(down, opened, np.array([min(stage.arm.opening_m, _shut(model) + 0.045)]))
        away = grip.copy()
        away[:3, 3] += rng.uniform((-0.05, -0.1, 0.1), (0.05, 0.0, 0.2))
        hand.move(opened, end, away, leave=UP * 0.06)
        plan.arrival = down
        if upon_other:
            plan.other = 1
        _look(rng, plan, _thing_point(plan, 0, model.height / 2))
        return plan

    return plan_carry


def plan_reach(stage: Stage, rng: np.random.Generator, duration: float) -> Plan:
    model, at = stage.placed[0].model, stage.placed[0].pose
    grip = _grip_pose(rng, model, at)
    grip[2, 3] = max(grip[2, 3], model.height + 0.004) + float(rng.uniform(0.0, 0.03))
    plan = _new_plan(stage, _rest(rng, grip), stage.arm.opening_m * float(rng.uniform(0.3, 1.0)))
    near = float(rng.uniform(0.6, 0.9)) * duration
    plan.hands[SIDE].move(float(rng.uniform(0.0, 0.1)) * duration, near, grip)
    plan.arrival = near
    _look(rng, plan, _thing_point(plan, 0, model.height / 2))
    return plan


def plan_push(stage: Stage, rng: np.random.Generator, duration: float) -> Plan:
    """The closed tool slides the thing over the table."""
    model, at = stage.placed[0].model, stage.placed[0].pose
    angle = float(rng.uniform(-0.4, np.pi + 0.4))  # mostly away from the arm or across
    way = np.array([np.cos(angle), np.sin(angle), 0.0])
    if "grip_x" in model.extra or model.radius > 0.07:
        raise Infeasible("it is too long to be pushed straight")
    low = max(min(0.5 * model.height, 0.05), 0.014)
    touch = _down(rng, at[:3, 3] + low * UP - way * (model.radius + stage.arm.tip_half_m), way, 0.0)
    plan = _new_plan(stage, _rest(rng, touch), 0.0)
    near, end = float(rng.uniform(0.38, 0.48)) * duration, float(rng.uniform(0.8, 0.95)) * duration
    hand = plan.hands[SIDE]
    hand.move(float(rng.uniform(0.0, 0.08)) * duration, near, touch, arrive=-UP * 0.07)
    pushed = touch.copy()
    pushed[:3, 3] += way * float(rng.uniform(0.08, 0.2))
    if not stage.table.holds(*(at[:3, 3] + pushed[:3, 3] - touch[:3, 3])[:2], model.radius):
        raise Infeasible("it would be pushed over the edge")
    hand.move(near, end, pushed)
    plan.grip(SIDE, 0, near, end)
    plan.arrival = near
    _look(rng, plan, _thing_point(plan, 0, model.height / 2))
    return plan


# ---------------------------------------------------------------------------------------------- fixtures


def _handle_pose(rng: np.random.Generator, model: ObjectModel, at: np.ndarray) -> np.ndarray:
    """The tool around a fixture's handle, or at its cap."""
    point = (at @ np.append(model.handle, 1.0))[:3]
    if model.category in ("button", "knob"):
        return _down(rng, point, at[:3, 0], 0.05)
    if model.category == "chest":
        return _down(rng, point, at[:3, 1], 0.05)
    tilt = float(rng.uniform(0.15, 1.0)) if model.category == "drawer" else float(rng.uniform(0.1, 0.6))
    approach = at[:3, 1] * np.cos(tilt) - UP * np.sin(tilt)
    return tool_pose(point, approach, UP if model.category == "drawer" else at[:3, 0])


def _plan_handle(opening: bool, *, hold: bool = True) -> Callable:
    """Takes the handle and moves the joint: from `opened` to its limit, or shut."""

    def plan_handle(stage: Stage, rng: np.random.Generator, duration: float) -> Plan:
        model, at = stage.placed[0].model, stage.placed[0].pose
        first = stage.opened[0]
        last = float(rng.uniform(0.6, 1.0)) * model.joint.limit if opening else 0.0
        near, end = float(rng.uniform(0.36, 0.46)) * duration, float(rng.uniform(0.85, 0.97)) * duration
        closed = near + 0.08 * duration
        value = ramp(closed, end, first, last)
        from_rest = joint_motion(model, at, value)
        grip = from_rest(0.0) @ _handle_pose(rng, model, at)
        wide = min(stage.arm.opening_m, 2 * model.half_width + 0.05)
        plan = _new_plan(stage, _rest(rng, grip), wide)
        hand = plan.hands[SIDE]
        hand.move(float(rng.uniform(0.0, 0.08)) * duration, near, grip, arrive=grip[:3, 2] * 0.08)
        hand.shape(near, closed, np.array([min(_shut(model), stage.arm.opening_m)]))
        hand.follow(closed, duration, from_rest)
        plan.joints[0] = value
        plan.arrival = near
        handle = (inverse(from_rest(0.0)) @ np.append(grip[:3, 3], 1.0))[:3]
        _look(rng, plan, lambda time: (from_rest(time) @ np.append(handle, 1.0))[:3])
        return plan

    return plan_handle


def plan_push_shut(stage: Stage, rng: np.random.Generator, duration: float) -> Plan:
    """The closed fingers, or the rod, push a drawer or a door by its front."""
    model, at = stage.placed[0].model, stage.placed[0].pose
    near, end = float(rng.uniform(0.38, 0.48)) * duration, float(rng.uniform(0.8, 0.95)) * duration
    value = ramp(near, end, stage.opened[0], 0.0)
    from_rest = joint_motion(model, at, value)
    tilt = float(rng.uniform(0.2, 0.9))
    aim = np.array(model.handle) - [0.0, 0.018 + stage.arm.tip_m * np.cos(tilt), 0.0]
    touch = from_rest(0.0) @ tool_pose(
        (at @ np.append(aim, 1.0))[:3], at[:3, 1] * np.cos(tilt) - UP * np.sin(tilt), at[:3, 0]
    )
    plan = _new_plan(stage, _rest(rng, touch), 0.0)
    hand = plan.hands[SIDE]
    hand.move(float(rng.uniform(0.0, 0.08)) * duration, near, touch, arrive=touch[:3, 2] * 0.06)
    hand.follow(near, duration, from_rest)
    plan.joints[0] = value
    plan.arrival = near
    _look(rng, plan, _tool_point(plan))
    return plan


def plan_press(stage: Stage, rng: np.random.Generator, duration: float) -> Plan:
    model, at = stage.placed[0].model, stage.placed[0].pose
    touch = _handle_pose(rng, model, at)
    touch[2, 3] += stage.arm.tip_m + 0.001
    near, deep = float(rng.uniform(0.42, 0.52)) * duration, float(rng.uniform(0.65, 0.75)) * duration
    press, rise = ramp(near, deep, 0.0, model.joint.limit), ramp(deep, 0.9 * duration, 0.0, model.joint.limit)
    lifts = rng.random() < 0.5
    value = (lambda time: press(time) - rise(time)) if lifts else press
    plan = _new_plan(stage, _rest(rng, touch), 0.0)
    hand = plan.hands[SIDE]
    hand.move(float(rng.uniform(0.0, 0.08)) * duration, near, touch, arrive=-UP * 0.07)
    hand.follow(near, duration, joint_motion(model, at, value))
    plan.joints[0] = value
    plan.arrival = near
    _look(rng, plan, _tool_point(plan))
    return plan


# ---------------------------------------------------------------------------------------------- the table of actions


@dataclass(frozen=True, kw_only=True)
class RobotAction:
    """How an action of the arm is cast and planned.

    Attributes:
        target: names of STANDING that it acts on; empty = a loose thing.
        plan: (stage, rng, duration) -> Plan.
        open_first: the fixture starts open.
        rod: an arm without fingers can do it.
        base: stands a second thing under the goal.
    """

    plan: Callable[[Stage, np.random.Generator, float], Plan]
    target: tuple[str, ...] = ()
    open_first: bool = False
    rod: bool = False
    base: bool = False


ROBOT_ACTION_TABLE: dict[str, RobotAction] = {
    "reach": RobotAction(plan=plan_reach, rod=True),
    "pick up": RobotAction(plan=plan_pick_up),
    "put down": RobotAction(plan=_plan_carry(False)),
    "push": RobotAction(plan=plan_push, rod=True),
    "stack": RobotAction(plan=_plan_carry(True), base=True),
    "pull open": RobotAction(plan=_plan_handle(True), target=("drawer",)),
    "push shut": RobotAction(plan=plan_push_shut, target=("drawer",), open_first=True, rod=True),
    "open door": RobotAction(plan=_plan_handle(True), target=("cabinet", "microwave", "cupboard")),
    "open lid": RobotAction(plan=_plan_handle(True), target=("chest",)),
    "press": RobotAction(plan=plan_press, target=("button",), rod=True),
    "turn": RobotAction(plan=_plan_handle(True), target=("knob",)),
}


def draw_stage(action: str, rng: np.random.Generator, arm: ArmModel, table: Table) -> Stage:
    """The action's things, and one to five others around them that leave the target free.

    Raises:
        Infeasible: the target does not fit, or two of the action's things have one name.
    """
    row = ROBOT_ACTION_TABLE[action]
    opened: dict[int, float] = {}
    if row.target:
        model = STANDING[str(rng.choice(row.target))](rng)
        low = model.category in ("button", "knob", "chest")
        range_y = (-0.02, 0.22) if low else (0.22, 0.38) if model.category == "cupboard" else (0.1, 0.32)
        placed = [Placed(model=model, pose=_place(rng, y=range_y, yaw=0.9 if low else 0.5))]
        opened[0] = float(rng.uniform(0.6, 1.0)) * model.joint.limit if row.open_first else 0.0
    else:
        placed = [Placed(model=_loose(rng, arm), pose=_place(rng, y=(-0.06, 0.26), yaw=1.2))]
        if row.base:
            base = _loose(rng, arm)
            if not base.base_height or not placed[0].model.stackable or base.label == placed[0].model.label:
                raise Infeasible("these do not stack")
            placed.append(Placed(model=base, pose=_place(rng, y=(-0.06, 0.26), yaw=1.2)))
    swing = placed[0].model.radius + (0.12 if row.target else 0.03)
    if row.target and placed[0].model.category not in ("button", "knob"):
        # The room that a drawer or a door needs in front.
        front = placed[0].pose @ [0.0, -0.24, 0.0, 1.0]
        free = [(front[0], front[1], 0.16)]
    else:
        free = []
    free.append((0.0, float(arm.shoulder[1]), 0.24))
    labels = {item.model.label for item in placed}
    wanted = len(placed) + int(rng.integers(1, 6))
    backdrop = rng.random() < 0.3
    for trial in range(60):
        if len(placed) >= wanted:
            break
        kind = rng.random()
        if backdrop and trial < 8:
            model = STANDING["cupboard"](rng)
        elif kind < 0.65:
            model = STANDING[str(rng.choice(list(STANDING)))](rng)
        elif kind < 0.87:
            model = LOOSE_THINGS[str(rng.choice(list(LOOSE_THINGS)))](rng)
        else:
            model = make_object(str(rng.choice(STANDING_BY + GRIPPED)), rng)
        if model.label in labels:
            continue
        big = model.radius > 0.12
        spot = _place(rng, y=(0.1, 0.8) if big else (-0.25, 0.6), x=0.75, yaw=0.6 if big else np.pi)
        x, y = spot[:2, 3]
        discs = [(p.pose[0, 3], p.pose[1, 3], p.model.radius + 0.01) for p in placed[1:]] + free
        discs.append((*placed[0].pose[:2, 3], swing))
        if not table.holds(x, y, 0.8 * model.radius):
            continue
        if any(np.hypot(x - dx, y - dy) < model.radius + dr for dx, dy, dr in discs):
            continue
        if model.joint:
            shut = model.category in ("button", "knob") or rng.random() < 0.5
            opened[len(placed)] = 0.0 if shut else float(rng.uniform(0.1, 0.8)) * model.joint.limit
        placed.append(Placed(model=model, pose=spot))
        labels.add(model.label)
        backdrop = backdrop and model.category != "cupboard"
    return Stage(arm=arm, table=table, placed=placed, opened=opened)

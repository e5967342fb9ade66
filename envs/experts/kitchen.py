"""Franka Kitchen's experts: the closed gripper is a stick that pushes the task's element along its path.

At the start of an episode the expert plans with mink's inverse kinematics: joint angles at waypoints that lead to the element's far side, and joint angles
that follow the element as it opens. It plans for several directions of the hand and takes the plan of the fewest steps. Then it servoes through the plan;
while pushing, it aims ahead of where the element is now, so that the servos press.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mink
import numpy as np

from envs.env import ManipulationEnv
from envs.suites import kitchen_scene
from envs.suites.kitchen import CONTROL_S, ROBOT_DOFS, SPEED_PER_S, KitchenSimulation

_X, _Y, _Z = np.eye(3)
_ARM = 7
_END_M = 0.05  # from the model's end effector to the stick's end
_STICK_M = 0.016  # half the stick's width
_OPEN_M = 0.04
_PATH_POINTS = 8
_REST = 0.01  # weight of staying where the last solution was, against 1 of the stick's place
# Where the inverse kinematics starts, relative to the robot's joints, rad: it finds only the nearest of the arm's postures.
_GUESSES = np.zeros((2, ROBOT_DOFS))
_GUESSES[1, 0] = -0.8
# The wrist's servos are seven times weaker than the arm's: pressing is left to the arm.
_FORCE = 5.0  # the most that pushing multiplies what a joint is asked for
_FOLLOWING = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 1.0, 1.0])
_NEAR_STEPS = 0.9  # a waypoint is passed once the arm is so few control steps away from it
_CLOSE_M = 0.03  # a plan that misses a point by more, with the firmness times the angle, is no plan

Place = Callable[[float, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A part of the script.

    Attributes:
        place: the stick's touching point, m, world [3], at a value of the element's joint and for an axis of the stick (from the hand to its end).
        start: the element's value at its beginning.
        until: the element's value at which the next leg begins; None for a waypoint, which is passed at `start`.
        turn: by how much the stick turns to the left, rad for each rad that the element has moved.
        fingers: the axis in which the fingers open, world [3], at a value of the element's joint; None lets the hand roll about the stick.
        opening_m: how far each finger is from shut.
        grasp: the leg ends when the fingers stand still.
        gentle: never press harder where the element does not give way, so that a pulled handle stays between the fingers.
    """

    place: Place
    start: float = 0.0
    until: float | None = None
    turn: float = 0.0
    fingers: Callable[[float], np.ndarray] | None = None
    opening_m: float = 0.0
    grasp: bool = False
    gentle: bool = False

    def along(self, direction: np.ndarray, value: float) -> np.ndarray:
        """The stick's axis at a value of the element's joint, unit [3]."""
        return _turned(direction, self.turn * abs(value)) / np.linalg.norm(direction)


@dataclass(frozen=True, kw_only=True)
class Script:
    """How an element is moved.

    Attributes:
        legs: in order.
        directions: candidates for the axis from the hand along the stick, world; not unit.
        inset_m: from the stick's end to its touching point.
        firmness: weight of the hand's axes against 1 of its place, m a rad.
        lead: how far ahead of the element's value the stick aims, rad or m.
        press_m: how far beyond that, along the element's path.
        force: the least factor on what each joint is asked for while pushing; the limit is still its own.
    """

    legs: tuple[Leg, ...]
    directions: tuple[np.ndarray, ...]
    inset_m: float = 0.02
    firmness: float = 0.1
    lead: float
    press_m: float = 0.0
    force: float = 1.0


def _turned(vector: np.ndarray, angle: float) -> np.ndarray:
    """`vector` turned by `angle` about the world's z axis."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1], vector[2]])


def _fan(yaws: tuple[float, ...], pitches: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    """Directions into the kitchen, turned to the left by the yaws and upwards by the pitches."""
    return tuple(_turned(np.array([0.0, np.cos(pitch), np.sin(pitch)]), yaw) for yaw in yaws for pitch in pitches)


def _beside(place: Place, shift: tuple[float, float, float]) -> Leg:
    """The waypoint `shift`, m, world, from where the push begins."""
    return Leg(place=lambda value, along: place(value, along) + shift)


def _sliding_door(simulation: KitchenSimulation) -> Script:
    handle = simulation.data.site("slide_site").xpos.copy()
    contact = handle + np.array([-(0.022 + _STICK_M), 0.0, -0.08])

    def place(value: float, along: np.ndarray) -> np.ndarray:
        return contact + value * _X

    return Script(
        legs=(_beside(place, (-0.03, -0.05, 0.0)), Leg(place=place), Leg(place=place, until=0.44)),
        directions=_fan((-0.5, -0.25, 0.15), (0.0,)),
        lead=0.12,
    )


def _knob(simulation: KitchenSimulation) -> Script:
    """The open fingers are a fork across the pointer: turned ahead until both nearly touch it, they turn it."""
    axle = simulation.data.body("knob 1").xpos.copy()
    ahead = 0.8  # rad by which the fork is ahead; at 0.87 rad both fingers touch

    def place(value: float, along: np.ndarray) -> np.ndarray:
        return axle - 0.03 * along

    def fingers(value: float) -> np.ndarray:
        return np.array([np.cos(value - ahead), 0.0, np.sin(value - ahead)])

    return Script(
        legs=(
            Leg(place=lambda value, along: axle - 0.075 * along, fingers=fingers, opening_m=_OPEN_M),
            Leg(place=place, fingers=fingers, opening_m=_OPEN_M),
            Leg(place=place, until=-1.57, fingers=fingers, opening_m=_OPEN_M),
        ),
        directions=_fan((-0.3, -0.1), (-0.2,)),
        firmness=0.5,
        inset_m=0.0,
        lead=0.7,
        force=_FORCE,
    )


def _level(value: float) -> np.ndarray:
    """Fingers that open sideways, about an upright handle."""
    return _X


def _take(place: Place, *, back_m: float) -> tuple[Leg, ...]:
    """Waypoints that bring the open fingers about an upright handle and close them."""
    return (
        Leg(place=lambda value, along: place(value, along) - back_m * along, fingers=_level, opening_m=_OPEN_M),
        Leg(place=place, fingers=_level, opening_m=_OPEN_M),
        Leg(place=place, fingers=_level, grasp=True),
    )


def _light(simulation: KitchenSimulation) -> Script:
    """The open fingers take the switch between them and push it to the left."""
    axle = simulation.data.body("lightswitchroot").xpos.copy()

    def place(value: float, along: np.ndarray) -> np.ndarray:
        return axle + _turned(np.array([0.026, -0.062, 0.0]), value)

    return Script(
        legs=(
            Leg(place=lambda value, along: place(value, along) - 0.09 * along, fingers=_level, opening_m=_OPEN_M),
            Leg(place=place, fingers=_level, opening_m=_OPEN_M),
            Leg(place=place, until=-0.7, fingers=_level, opening_m=_OPEN_M),
        ),
        directions=_fan((0.1, 0.3), (0.0,)),
        lead=0.3,
        press_m=0.06,
    )


def _hinged_door(simulation: KitchenSimulation) -> Script:
    """The fingers pull the handle until the door stands off, then push its free edge from inside: opened wide, the handle is out of reach."""
    hinge = simulation.data.body("hingeleftdoor").xpos.copy()

    def handle(value: float, along: np.ndarray) -> np.ndarray:
        return hinge + _turned(np.array([0.302, -0.128, -0.075]), value)

    def before(value: float, along: np.ndarray) -> np.ndarray:
        return hinge + _turned(np.array([0.38, -0.20, -0.1]), value)

    def around(value: float, along: np.ndarray) -> np.ndarray:
        return hinge + _turned(np.array([0.45, 0.01, -0.16]), value)

    def within(value: float, along: np.ndarray) -> np.ndarray:
        return hinge + _turned(np.array([0.355, 0.045, -0.16]), value)

    def inside(value: float, along: np.ndarray) -> np.ndarray:
        return hinge + _turned(np.array([0.355, 0.015 + _STICK_M, -0.16]), value)

    away = handle(0.0, _Y) - simulation.data.body("panda0_link2").xpos
    ajar = -0.45

    return Script(
        legs=(
            *_take(handle, back_m=0.07),
            Leg(place=handle, until=ajar, fingers=_level, gentle=True),
            Leg(place=before, start=ajar, opening_m=_OPEN_M),
            Leg(place=around, start=ajar),
            Leg(place=within, start=ajar),
            Leg(place=inside, start=ajar, until=-1.1, turn=0.6),
        ),
        # Nearly away from the shoulder: only a stretched arm reaches.
        directions=(_turned(away, -0.5), _turned(away * (1, 1, 0), -0.5), _turned(away * (1, 1, 0), -0.25)),
        firmness=0.05,
        lead=0.25,
        press_m=0.02,
    )


def _microwave(simulation: KitchenSimulation) -> Script:
    """The fingers pull the handle."""
    data = simulation.data
    hinge = data.body("microdoorroot").xpos.copy()
    at = data.site("microhandle_site").xpos - hinge + 0.03 * _Z

    def handle(value: float, along: np.ndarray) -> np.ndarray:
        return hinge + _turned(at, value)

    return Script(
        legs=(*_take(handle, back_m=0.07), Leg(place=handle, until=-1.0, turn=0.6, fingers=_level, gentle=True)),
        directions=_fan((0.1, 0.35), (-0.1,)),
        lead=0.4,
        press_m=0.02,
    )


_SCRIPTS = {
    "knob1_on": _knob,
    "light_on": _light,
    "sdoor_open": _sliding_door,
    "ldoor_open": _hinged_door,
    "micro_open": _microwave,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Joint angles of the arm, rad, for each leg: [1, 7] at a waypoint, [_PATH_POINTS, 7] at the element's values while pushing."""

    angles: tuple[np.ndarray, ...]
    miss_m: float
    steps: float


class KitchenExpert:
    """Acts on one simulation, whose state it reads in full."""

    def __init__(self, env: ManipulationEnv) -> None:
        simulation = env.simulation
        assert isinstance(simulation, KitchenSimulation)
        self._simulation = simulation
        self._make_script = _SCRIPTS[env.env_spec.task.removeprefix("kitchen/")]
        self._sign = float(np.sign(simulation.element.goal))
        arm, model = kitchen_scene.arm_model(), simulation.model
        self._configuration = mink.Configuration(arm)
        # Just within the limits: at them mink warns of each rounding error.
        self._low, self._high = arm.jnt_range[:, 0] + 1e-4, arm.jnt_range[:, 1] - 1e-4
        self._hand = mink.FrameTask("end_effector", "site", position_cost=1.0, orientation_cost=0.1)
        self._posture = mink.PostureTask(arm, cost=_REST)
        self._limits = [mink.ConfigurationLimit(arm)]
        self._gain = model.actuator_gainprm[:_ARM, 0]
        damping = model.dof_damping[:_ARM]
        # A servo's way to its target in one control step, as a share, and the furthest that its force limit lets it go.
        self._share = 1 - np.exp(-CONTROL_S * self._gain / damping)
        self._furthest = model.actuator_forcerange[:_ARM, 1] / damping * CONTROL_S

    def reset(self) -> None:
        """Plan the episode from where the kitchen and the arm are."""
        self._script = self._make_script(self._simulation)
        plans = [self._make_plan(direction, guess) for direction in self._script.directions for guess in _GUESSES]
        good = [plan for plan in plans if plan.miss_m < _CLOSE_M]
        self._plan = min(good, key=lambda plan: plan.steps) if good else min(plans, key=lambda plan: plan.miss_m)
        self._leg = 0
        self._force = self._script.force
        self._last_q, self._last_change = self._simulation.data.qpos[:_ARM].copy(), np.zeros(_ARM)

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The action, float32 [9]."""
        q = self._simulation.data.qpos[:_ARM]
        value = float(self._simulation.data.joint(self._simulation.element.joint).qpos[0])
        while self._leg < len(self._script.legs) - 1 and self._is_done(value, q):
            self._leg += 1
        leg, angles = self._script.legs[self._leg], self._plan.angles[self._leg]
        if leg.until is None:
            # Straight in joint space: every joint arrives with the slowest.
            change = angles[0] - q
            return self._action(change / max(1.0, self._steps(change)), leg.opening_m)
        ahead = self._sign * value + self._script.lead
        values = self._sign * self._values(leg)
        target = np.array([np.interp(ahead, values, angles[:, joint]) for joint in range(_ARM)])
        change = target - q
        change /= max(1.0, self._steps(change))
        self._urge(change, q, leg)
        return self._action(np.clip(self._force * change, -self._furthest, self._furthest), leg.opening_m)

    def _urge(self, change: np.ndarray, q: np.ndarray, leg: Leg) -> None:
        """Give the joints that lag behind the slowest more and more of their force while the arm makes less than half of its way."""
        moved, asked = np.linalg.norm(q - self._last_q), np.linalg.norm(self._last_change)
        most = self._script.force if leg.gentle else _FORCE
        more = 0.5 if moved < 0.5 * asked else -0.5
        self._force = float(np.clip(self._force + more, self._script.force, most))
        self._last_q, self._last_change = q.copy(), change

    def _is_done(self, value: float, q: np.ndarray) -> bool:
        leg = self._script.legs[self._leg]
        if leg.grasp:
            speed = np.abs(self._simulation.data.qvel[_ARM:ROBOT_DOFS]).max()
            return self._simulation.data.qpos[_ARM] < 0.9 * _OPEN_M and speed < 0.05
        if leg.until is None:
            return self._steps(self._plan.angles[self._leg][0] - q) < _NEAR_STEPS
        return self._sign * (value - leg.until) > 0

    def _steps(self, change: np.ndarray) -> float:
        """How many control steps the slowest joint needs for `change`, rad [7]."""
        return float((np.abs(change) / self._furthest).max())

    def _values(self, leg: Leg) -> np.ndarray:
        """The element's values at which a leg is planned."""
        if leg.until is None:
            return np.array([leg.start])
        return np.linspace(leg.start, leg.until + self._sign * self._script.lead, _PATH_POINTS)

    def _make_plan(self, direction: np.ndarray, guess: np.ndarray) -> Plan:
        start = np.clip(self._simulation.data.qpos[:ROBOT_DOFS], self._low, self._high)
        q, worst = np.clip(start + guess, self._low, self._high), 0.0
        angles: list[np.ndarray] = []
        for leg in self._script.legs:
            values = self._values(leg)
            solutions = []
            for value in values:
                along = leg.along(direction, value)
                point = leg.place(value, along)
                if leg.until is not None and self._script.press_m:
                    onward = leg.place(value + 0.01 * self._sign, along) - point
                    point = point + self._script.press_m * onward / np.linalg.norm(onward)
                self._aim(point, along, None if leg.fingers is None else leg.fingers(value))
                q, miss = self._solve(q, q, 1) if angles or solutions else self._solve(start, q, 2)
                solutions.append(q[:_ARM])
                worst = max(worst, miss)
            angles.append(np.array(solutions))
        way = np.concatenate([self._simulation.data.qpos[None, :_ARM], *angles])
        return Plan(angles=tuple(angles), miss_m=worst, steps=sum(self._steps(part) for part in np.diff(way, axis=0)))

    def _aim(self, point: np.ndarray, along: np.ndarray, fingers: np.ndarray | None) -> None:
        """Ask the inverse kinematics for the stick's touching point at `point` and the hand's axes; without `fingers` the hand may roll."""
        across = np.cross(along, _Z) if fingers is None else np.cross(fingers, along)
        across /= np.linalg.norm(across)
        axes = np.stack([across, np.cross(along, across), along], axis=1)
        place = point - (_END_M - self._script.inset_m) * along
        self._hand.set_orientation_cost(self._script.firmness * np.array([1.0, 1.0, fingers is not None]))
        self._hand.set_target(mink.SE3.from_rotation_and_translation(mink.SO3.from_matrix(axes), place))

    def _solve(self, start: np.ndarray, guess: np.ndarray, rounds: int) -> tuple[np.ndarray, float]:
        """The robot's joints [9], soonest reached from `start`, and by how much they miss, m.

        Least squares spread a motion over the joints; weighing each joint by the time that it took moves it towards the least time of the slowest.
        """
        self._configuration.update(guess)
        self._posture.set_target(start)
        weight = _FOLLOWING if rounds == 1 else np.ones(ROBOT_DOFS)
        for _ in range(rounds):
            self._posture.set_cost(_REST * weight)
            self._descend()
            steps = np.abs(self._configuration.q - start)[:_ARM] / self._furthest
            weight = weight * np.append(0.3 + steps / max(steps.max(), 1e-6), [1.0, 1.0])
        error = self._hand.compute_error(self._configuration) * self._hand.cost
        return self._configuration.q.copy(), float(np.linalg.norm(error))

    def _descend(self) -> None:
        for _ in range(25):
            velocity = mink.solve_ik(
                self._configuration, [self._hand, self._posture], 1.0, "quadprog", damping=1e-7, limits=self._limits
            )
            velocity *= min(1.0, 0.4 / np.abs(velocity).max())
            self._configuration.update(np.clip(self._configuration.q + velocity, self._low, self._high))
            if np.abs(velocity).max() < 0.03:
                return

    def _action(self, change: np.ndarray, opening_m: float) -> np.ndarray:
        """The action that moves the arm's joints by `change`, rad [7], in one control step, and the fingers to `opening_m`."""
        sag = self._simulation.data.qfrc_bias[:_ARM] / self._gain
        fingers = opening_m - self._simulation.data.qpos[_ARM:ROBOT_DOFS]
        action = np.concatenate([change / self._share + sag, fingers]) / (SPEED_PER_S * CONTROL_S)
        return np.clip(action, -1, 1).astype(np.float32)


def make_expert(env: ManipulationEnv) -> KitchenExpert:
    """The expert of the environment's task."""
    return KitchenExpert(env)

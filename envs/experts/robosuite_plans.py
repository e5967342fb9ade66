"""Where the hand must go next in each robosuite task, from the privileged state alone.

Frames: the hand's x axis joins the fingers, its z axis points out of the palm. Lengths in metres, world frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from envs.suites.robosuite import RobosuiteSimulation

_UP = np.array([0.0, 0.0, 1.0])
_REST = np.array([0.0, 1.0, 0.0])  # the fingers' direction at the start, world


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The hand's next pose. `speed` is the largest element of the action, in (0, 1]."""

    pos: np.ndarray
    mat: np.ndarray
    close: bool
    speed: float = 1.0


class Scene:
    """The state of one simulation as one of its arms sees it."""

    def __init__(self, simulation: RobosuiteSimulation, arm: int) -> None:
        self.arm = arm
        self.env = simulation.env
        self.data = simulation.data
        self._fingers = simulation.arms[arm].finger_qpos
        self._eef_site = simulation.arms[arm].eef_site

    @property
    def hand_pos(self) -> np.ndarray:
        return self.data.site_xpos[self._eef_site].copy()

    @property
    def hand_mat(self) -> np.ndarray:
        return self.data.site_xmat[self._eef_site].reshape(3, 3).copy()

    @property
    def opening(self) -> float:
        """Distance of the fingers."""
        return float(np.abs(self.data.qpos[self._fingers]).sum())

    def pos(self, body: str) -> np.ndarray:
        return self.data.body(body).xpos.copy()

    def mat(self, body: str) -> np.ndarray:
        return self.data.body(body).xmat.reshape(3, 3).copy()

    def grasps(self, thing: object, arm: int | None = None) -> bool:
        """Whether both fingers touch a robosuite object or one of a list of geoms; this arm's, or those of `arm`."""
        gripper = self.env.robots[self.arm if arm is None else arm].gripper["right"]
        return bool(self.env._check_grasp(gripper, thing))


def _downward(fingers: np.ndarray) -> np.ndarray:
    """Palm down, fingers along the horizontal direction `fingers` or against it, whichever is nearer to the start's."""
    return _level(fingers if fingers @ _REST >= 0 else -fingers)


def _funnel(scene: Scene, target: np.ndarray, *, height: float, slope: float = 2.0, mouth: float = 0.006) -> np.ndarray:
    """`target`, approached from above: as high over it as the hand is beside it, at most `height`."""
    beside = np.linalg.norm((scene.hand_pos - target)[:2])
    return target + min(height, slope * max(0.0, beside - mouth)) * _UP


def _grasp(scene: Scene, target: np.ndarray, mat: np.ndarray, *, height: float = 0.1) -> Goal:
    """Come down on `target` with open fingers, close them there."""
    there = np.linalg.norm(scene.hand_pos - target) < 0.012
    return Goal(pos=_funnel(scene, target, height=height), mat=mat, close=bool(there))


def _square_sides(mat: np.ndarray) -> list[np.ndarray]:
    """The two horizontal directions along a cube's sides: its most horizontal axes."""
    flat = np.argsort(np.abs(mat[2]))[:2]
    return [mat[:, axis] for axis in flat]


def lift(scene: Scene) -> Goal:
    cube = scene.pos("cube_main")
    mat = _downward(max(_square_sides(scene.mat("cube_main")), key=lambda side: abs(side @ _REST)))
    if scene.grasps(scene.env.cube):
        return Goal(pos=scene.hand_pos + 0.05 * _UP, mat=mat, close=True)
    return _grasp(scene, cube, mat)


def stack(scene: Scene) -> Goal:
    red, green = scene.pos("cubeA_main"), scene.pos("cubeB_main")
    apart = red - green
    on_top = 0.045  # the cubes' half sides together

    def crowded(side: np.ndarray) -> float:
        # A finger beside the red cube must not come down on the green one.
        near = np.linalg.norm(apart[:2]) < 0.12
        return (abs(side @ apart) / np.linalg.norm(apart) if near else 0.0) - 0.1 * abs(side @ _REST)

    mat = _downward(min(_square_sides(scene.mat("cubeA_main")), key=crowded))
    beside = np.linalg.norm(apart[:2])
    if scene.grasps(scene.env.cubeA):
        if beside < 0.01 and apart[2] < on_top + 0.004:
            return Goal(pos=scene.hand_pos, mat=scene.hand_mat, close=False)
        height = on_top + min(0.05, 2 * max(0.0, beside - 0.006))
        way = green + height * _UP - red
        if apart[2] < height - 0.03 and beside > 0.03:
            way[:2] = 0
        return Goal(pos=scene.hand_pos + way, mat=_level(scene.hand_mat[:, 0]), close=True)
    if beside < 0.02 and apart[2] > on_top - 0.01:
        return Goal(pos=scene.hand_pos + 0.05 * _UP, mat=scene.hand_mat, close=False)
    return _grasp(scene, red, mat)


def _level(fingers: np.ndarray) -> np.ndarray:
    """Palm down, fingers along the horizontal part of `fingers`."""
    x = fingers * np.array([1.0, 1.0, 0.0])
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(-_UP, x), -_UP], axis=1)


def pick_place_can(scene: Scene) -> Goal:
    can = scene.pos("Can_main")
    mat = _downward(_REST)
    # The near part of the can's quarter of the bin: its centre is at the end of the arm's reach.
    centre = scene.env.target_bin_placements[3, :2]
    target = centre - 0.05
    wall_top, half_height = 0.9, 0.041
    inside = bool((np.abs(can[:2] - centre) < 0.09).all() and can[2] < wall_top - 0.01)
    if scene.grasps(scene.env.objects[3]):
        if inside:
            return Goal(pos=scene.hand_pos, mat=mat, close=False)
        over_wall = wall_top + half_height + 0.03
        beside = np.linalg.norm(can[:2] - target)
        way = np.array([*target, over_wall if beside > 0.03 else wall_top - 0.02]) - can
        way[:2] *= _ramp(can[2], over_wall - 0.06, over_wall - 0.02) if beside > 0.03 else 1.0
        return Goal(pos=scene.hand_pos + way, mat=mat, close=True)
    if inside:
        return Goal(pos=scene.hand_pos + 0.05 * _UP, mat=mat, close=False)
    return _grasp(scene, can + 0.015 * _UP, mat, height=0.12)


def nut_assembly_square(scene: Scene) -> Goal:
    nut, nut_mat = scene.pos("SquareNut_main"), scene.mat("SquareNut_main")
    handle = nut + 0.054 * nut_mat[:, 0]
    peg = scene.pos("peg1")
    lift_over = 1.0  # of the nut's centre: clear of the peg's top at 0.95, also where it hangs askew
    if scene.grasps(scene.env.nuts[0]):
        turn = _square_turn(nut_mat, scene.hand_mat)
        mat = turn @ scene.hand_mat
        # Where the hand must be for the turned nut to sit over the peg.
        way = np.array([*peg[:2], lift_over]) + turn @ (scene.hand_pos - nut) - scene.hand_pos
        beside = np.linalg.norm((nut - peg)[:2])
        over = beside < 0.005 and turn[0, 0] > np.cos(0.06)
        if over or (beside < 0.015 and nut[2] < 0.96):
            way[2] = -0.05
        else:
            way[:2] *= _ramp(nut[2], lift_over - 0.05, lift_over - 0.01)
        return Goal(pos=scene.hand_pos + way, mat=_level(mat[:, 0]), close=True)
    # Of the two ways to hold the handle, the one nearer to the hand as it is: seen from the start, they can be equally near, and the hand would waver.
    side = nut_mat[:, 1]
    return _grasp(scene, handle, _level(side if side @ scene.hand_mat[:, 0] >= 0 else -side))


def _square_turn(nut_mat: np.ndarray, hand_mat: np.ndarray) -> np.ndarray:
    """The smallest turn about the vertical that squares the nut to the peg, that the wrist can make, and that leaves the handle within reach."""
    yaw = np.arctan2(nut_mat[1, 0], nut_mat[0, 0])
    hand_yaw = np.arctan2(-hand_mat[0, 0], hand_mat[1, 0])  # 0 at the start
    turns = np.arange(-6, 7) * np.pi / 2 - yaw
    within_wrist = (hand_yaw + turns > -1.6) & (hand_yaw + turns < 2.6)
    handle_far_side = np.cos(yaw + turns) > 0.5
    turns = turns[within_wrist & ~handle_far_side]
    return _about_up(turns[np.argmin(np.abs(turns))])


def _about_up(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


_DOOR_TILT = np.radians(40)  # palm towards the door by this from straight down: upright, the hand would hit the panel
_LEVER_GRIP = np.array(
    [0.115, -0.10, 0.0]
)  # near the lever's end, in the frame of the latch's body; its y axis is the latch's


def door(scene: Scene) -> Goal:
    latch, latch_mat, hinge = scene.pos("Door_latch"), scene.mat("Door_latch"), scene.data.joint("Door_hinge")
    pressed, opened = float(scene.data.joint("Door_latch_joint").qpos[0]), float(hinge.qpos[0])
    s, c = np.sin(_DOOR_TILT), np.cos(_DOOR_TILT)
    grip_mat = np.array([[0, -c, -s], [-1, 0, 0], [0, s, -c]]).T  # columns: fingers, side, palm
    grip_mat[:, 1] = np.cross(grip_mat[:, 2], grip_mat[:, 0])

    def hand_at(press: float, along: float) -> tuple[np.ndarray, np.ndarray]:
        turned = latch_mat @ _about_y(press)
        return latch + turned @ np.array([along, *_LEVER_GRIP[1:]]), turned @ grip_mat

    # On the lever, at whatever place along it the fingers have slid to. They may leave it for a moment while they press: half closed is held.
    here = latch_mat.T @ (scene.hand_pos - latch)
    off = np.abs(here - _LEVER_GRIP)
    if off[0] < 0.07 and off[1] < 0.035 and off[2] < 0.035 and scene.opening < 0.06:
        free = pressed > 1.15 or opened > 0.06
        pos, mat = hand_at(1.25 - pressed if free else 0.3, _LEVER_GRIP[0])
        if free:
            anchor = hinge.xanchor * np.array([1, 1, 0])
            pull = _about_up(0.12)
            pos, mat = anchor + pull @ (pos - anchor), pull @ mat
        return Goal(pos=pos, mat=mat, close=True)
    pos, mat = hand_at(0.0, _LEVER_GRIP[0])
    away = scene.hand_pos - pos
    behind = -mat[:, 2]  # come along the palm's direction
    beside = np.linalg.norm(away - (away @ behind) * behind)
    there = np.linalg.norm(away) < 0.012
    return Goal(pos=pos + min(0.12, 2 * max(0.0, beside - 0.006)) * behind, mat=mat, close=bool(there))


def _about_y(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def two_arm_lift(scene: Scene) -> Goal:
    pot_mat = scene.mat("pot_root")
    handles = (scene.env.pot.handle0_geoms, scene.env.pot.handle1_geoms)
    bar = scene.data.geom(handles[scene.arm][0]).xpos.copy()
    mat = _downward(pot_mat[:, 1])  # one finger inside the handle, one outside
    if all(scene.grasps(handle, arm) for arm, handle in enumerate(handles)):
        return Goal(pos=scene.hand_pos + 0.05 * _UP, mat=mat, close=True, speed=0.6)
    return _grasp(scene, bar, mat)


def _ramp(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, a line between."""
    return float(np.clip((value - low) / (high - low), 0, 1))


PLANS: dict[str, Callable[[Scene], Goal]] = {
    "door": door,
    "lift": lift,
    "stack": stack,
    "nut-assembly-square": nut_assembly_square,
    "pick-place-can": pick_place_can,
    "two-arm-lift": two_arm_lift,
}

"""Scripts of our own for the Meta-World tasks on which the package's policies lose grasps, get stuck or cannot be imitated.

A script maps the 39-d state (`FULL_STATE` in envs/suites/metaworld.py) to where the hand should go and what the gripper should do, and keeps nothing
between steps. Most share a cycle: over the object with the gripper open, down, close without moving, carry once the fingers rest on the object, and
over it again if it is lost. The package's policies close while they come down and lift while they close, give up a grasp when object and hand drift
apart by a few millimetres, and overshoot; that is where theirs go wrong.

Imitation needs more than success. A state policy (the protocol of R3M: 25 demonstrations, batch norm and three layers of 256, 25 episodes of 200 steps,
two training seeds) on bin-picking reached 11 and 8 of 25 from the package's policy, 6 and 18 from a script that damped its motion by the difference of
the state's two frames and lifted when the fingers had stopped, and 24 and 25 from the one below, which depends on the present frame only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

OPEN, CLOSE = -1.0, 1.0

# The hand trails its target by about four steps: at this gain it comes to rest without a swing.
_GAIN_PER_M = 10.0

Script = Callable[[np.ndarray], tuple[np.ndarray, float]]


def command(state: np.ndarray, target: np.ndarray, effort: float) -> np.ndarray:
    """The action towards `target` (world, m) with the gripper at `effort`; float32 [4] in [-1, 1]."""
    return np.clip([*(_GAIN_PER_M * (target - state[:3])), effort], -1, 1).astype(np.float32)


def _up(height_m: float) -> np.ndarray:
    return np.array([0.0, 0.0, height_m])


def _at_rest_on_something(state: np.ndarray) -> bool:
    """The fingers have closed and stopped."""
    opening, before = state[3], state[21]
    return bool(opening < 0.9 and before - opening < 0.01)


def _fetch(
    state: np.ndarray, grasp: np.ndarray, *, hover_m: float, near_m: float = 0.02, low_m: float = 0.012
) -> tuple[np.ndarray, float] | None:
    """Where to go until the object is held, None once it is.

    Args:
        state: the 39-d state.
        grasp: where the hand closes, world, m.
        hover_m: height above `grasp` at which the hand travels.
        near_m: the largest horizontal error at which it may come down; half as much again keeps it down.
        low_m: the largest height error at which it closes.
    """
    hand = state[:3]
    away = float(np.linalg.norm(hand[:2] - grasp[:2]))
    above = float(hand[2] - grasp[2])
    if away > 1.5 * near_m or (away > near_m and above > hover_m / 2):
        return grasp + _up(hover_m), OPEN
    if above > low_m:
        return grasp, OPEN
    if not _at_rest_on_something(state):
        return grasp, CLOSE
    return None


def _held(state: np.ndarray, thing: np.ndarray, *, offset: np.ndarray, xy_m: float, z_m: float) -> bool:
    """The fingers rest on something and `thing` is where a held one would be, `hand - offset`."""
    error = state[:3] - offset - thing
    return _at_rest_on_something(state) and bool(np.linalg.norm(error[:2]) < xy_m and abs(error[2]) < z_m)


def basketball(state: np.ndarray) -> tuple[np.ndarray, float]:
    hand, ball, hoop_x = state[:3], state[4:7], state[36]
    if not _held(state, ball, offset=_up(0.02), xy_m=0.05, z_m=0.03):
        fetch = _fetch(state, ball + _up(0.015), hover_m=0.15)
        if fetch is not None:
            return fetch
    if ball[2] < 0.28:
        return np.array([*hand[:2], 0.4]), CLOSE
    return np.array([hand[0] + hoop_x - ball[0], 0.875, hand[2] + 0.31 - ball[2]]), CLOSE


def bin_picking(state: np.ndarray) -> tuple[np.ndarray, float]:
    hand, opening, cube = state[:3], state[3], state[4:7]
    target_bin = np.array([0.12, 0.7])
    slip = hand - _up(0.04) - cube
    if opening < 0.55 and np.linalg.norm(slip[:2]) < 0.04 and abs(slip[2]) < 0.025:
        if np.linalg.norm(hand[:2] - target_bin) < 0.05:
            return np.array([*target_bin, 0.07]), CLOSE
        sideways = np.clip((hand[2] - 0.08) / 0.06, 0, 1)  # as far as it is up
        return np.array([*(hand[:2] + sideways * (target_bin - hand[:2])), 0.2]), CLOSE
    # Near the wall there is no room for a finger: close off centre and drag the cube inwards.
    grasp = np.array([cube[0], np.clip(cube[1], 0.675, 0.725), max(cube[2] + 0.04, 0.07)])
    away, above = np.linalg.norm(hand[:2] - grasp[:2]), hand[2] - grasp[2]
    height = 0.12 * (1 - np.clip((0.04 - away) / 0.02, 0, 1))  # lower as it comes over the cube
    return grasp + _up(float(height)), CLOSE if away < 0.02 and above < 0.015 else OPEN


def box_close(state: np.ndarray) -> tuple[np.ndarray, float]:
    # Closed fingers are pressed down on the lid's handle until they slip around it; open ones jam on it.
    hand, lid, box = state[:3], state[4:7], state[36:38]
    away, above = np.linalg.norm(hand[:2] - lid[:2]), hand[2] - lid[2]
    lifted = lid[2] > 0.035 and away < 0.04 and above < 0.09
    if not lifted and not (away < 0.03 and above < 0.07):
        settled = abs(state[6] - state[24]) < 5e-4  # the lid starts in the air
        if not settled or away > (0.01 if hand[2] > 0.15 else 0.03):
            return np.array([*lid[:2], 0.2]), 0.5
        return np.array([*lid[:2], lid[2] + 0.02]), CLOSE
    if hand[2] < 0.13:
        return np.array([*hand[:2], 0.17]), CLOSE
    return np.array([*box, 0.15]), CLOSE


def disassemble(state: np.ndarray) -> tuple[np.ndarray, float]:
    hand, wrench = state[:3], state[4:7]
    offset = np.array([-0.02, 0, 0.03])
    if not _held(state, wrench, offset=offset, xy_m=0.035, z_m=0.04):
        fetch = _fetch(state, wrench + offset, hover_m=0.1)
        if fetch is not None:
            return fetch
    return hand + _up(0.1), CLOSE


def peg_insert_side(state: np.ndarray) -> tuple[np.ndarray, float]:
    hand, peg, hole = state[:3], state[4:7], state[36:39]
    if not _held(state, peg, offset=np.array([0, 0, 0.025]), xy_m=0.04, z_m=0.025):
        fetch = _fetch(state, peg + _up(0.02), hover_m=0.15)
        if fetch is not None:
            return fetch
    error = np.array([hole[1], hole[2] + 0.003]) - peg[1:]
    beside = hole[0] + 0.3
    if peg[0] > beside - 0.05 and np.linalg.norm(error) > 0.015:
        return np.array([hand[0] + beside - peg[0], *(hand[1:] + error)]), CLOSE
    return np.array([hand[0] - 0.1, *(hand[1:] + error)]), CLOSE


def push_back(state: np.ndarray) -> tuple[np.ndarray, float]:
    hand, puck, goal = state[:3], state[4:7], state[36:39]
    if not _held(state, puck, offset=_up(0.035), xy_m=0.04, z_m=0.03):
        fetch = _fetch(state, puck + _up(0.035), hover_m=0.1)
        if fetch is not None:
            return fetch
    return np.array([*(hand + goal - puck)[:2], puck[2] + 0.035]), CLOSE


def shelf_place(state: np.ndarray) -> tuple[np.ndarray, float]:
    hand, block, goal = state[:3], state[4:7], state[36:39]
    if not _held(state, block, offset=_up(0.02), xy_m=0.04, z_m=0.03):
        fetch = _fetch(state, block + _up(0.02), hover_m=0.12)
        if fetch is not None:
            return fetch
    if abs(block[0] - goal[0]) > 0.02 or block[2] < goal[2] - 0.03:
        return np.array([hand[0] + goal[0] - block[0], hand[1], goal[2] + 0.04]), CLOSE
    return np.array([hand[0], hand[1] + goal[1] - block[1], goal[2] + 0.03]), CLOSE


def soccer(state: np.ndarray) -> tuple[np.ndarray, float]:
    hand, goal = state[:3], state[36:39]
    ball = state[4:7] + 6 * (state[4:7] - state[22:25])  # where a rolling ball will be
    way = (goal - ball)[:2] / np.linalg.norm((goal - ball)[:2])
    behind = ball[:2] - 0.065 * way
    off = hand[:2] - ball[:2]
    along, aside = off @ way, off - (off @ way) * way
    if hand[2] < 0.065 and -0.12 < along < 0 and np.linalg.norm(aside) < 0.025:
        # Slowly: a ball that is hit jumps.
        return np.array([*(hand[:2] + 0.035 * way - 1.5 * aside), 0.05]), CLOSE
    if np.linalg.norm(hand[:2] - behind) > 0.02:
        return np.array([*behind, 0.14]), CLOSE
    return np.array([*behind, 0.05]), CLOSE


def stick_pull(state: np.ndarray) -> tuple[np.ndarray, float]:
    hand, stick, ring, goal = state[:3], state[4:7], state[11:14], state[36:39]
    offset = np.array([-0.015, 0, 0.03])
    if not _held(state, stick, offset=offset, xy_m=0.04, z_m=0.03):
        fetch = _fetch(state, stick + offset, hover_m=0.1)
        if fetch is not None:
            return fetch
    # Between the bar and the body of the thermos there is a centimetre of play on this side of the ring's centre and two on the other.
    error = ring - stick + np.array([0, -0.005, 0])
    tip_past_ring = stick[0] + 0.05 - ring[0]
    if tip_past_ring < 0.005:
        if tip_past_ring < -0.03 and np.linalg.norm(error[1:]) > 0.006:
            return hand + np.array([min(error[0] - 0.12, 0.0), *error[1:]]), CLOSE
        return hand + np.array([0.05, *error[1:]]), CLOSE
    return hand + np.array([*(2 * (goal - ring)[:2]), error[2]]), CLOSE


def sweep_into(state: np.ndarray) -> tuple[np.ndarray, float]:
    hand, cube, goal = state[:3], state[4:7], state[36:39]
    grasp = cube + np.array([-0.005, 0, 0.01])
    if np.linalg.norm(hand[:2] - grasp[:2]) > 0.04:
        return grasp + _up(0.15), OPEN
    if hand[2] - grasp[2] > 0.035:
        return grasp, OPEN
    return goal.copy(), CLOSE


def door_open(state: np.ndarray) -> tuple[np.ndarray, float]:
    # Down behind the handle, then to the left; coming down too early ends on top of it.
    hand, handle = state[:3], state[4:7]
    behind = handle[:2] + np.array([0.01, 0.02])
    beside = handle[:2] - np.array([0.05, 0])
    if abs(hand[2] - handle[2]) < 0.04 and np.linalg.norm(hand[:2] - beside) < 0.12:
        return np.array([*beside, handle[2]]), CLOSE
    if np.linalg.norm(hand[:2] - behind) < 0.03:
        return np.array([*behind, handle[2]]), CLOSE
    return np.array([*behind, handle[2] + 0.2]), CLOSE


SCRIPTS: dict[str, Script] = {
    "basketball": basketball,
    "bin-picking": bin_picking,
    "box-close": box_close,
    "disassemble": disassemble,
    "door-open": door_open,
    "peg-insert-side": peg_insert_side,
    "push-back": push_back,
    "shelf-place": shelf_place,
    "soccer": soccer,
    "stick-pull": stick_pull,
    "sweep-into": sweep_into,
}

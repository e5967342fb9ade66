"""Grasps: where the palm goes, and how far each finger closes until it touches.

A grasp is planned on the solid shapes, with signed distances. Fingers close joint by joint: all flexions of a finger turn
together; a joint stops when a link beyond it touches, and the joints after that link go on, so that a finger wraps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pretrain.clips.sources.synthetic.hands import FINGER_JOINTS, FINGERS, PALM_CENTRE, curled, palm_rotation
from pretrain.clips.sources.synthetic.motion import pose, rotation_about
from pretrain.clips.sources.synthetic.world import World

TOUCH_M = 0.003  # shapes nearer than this touch
CLOSE_STEP = 0.07  # rad

RELAXED = curled((0.35, 0.4, 0.25), THJ4=0.35, THJ3=0.35, THJ0=-0.2, FFJ3=-0.06, LFJ3=0.08)
OPEN = curled((0.12, 0.18, 0.1), THJ4=0.2, THJ3=0.45, FFJ3=-0.08, LFJ3=0.1)
FLAT = curled((0.05, 0.06, 0.05), THJ4=0.2, THJ3=0.15)
HOOK = curled((0.72, 0.75, 0.2), THJ4=0.1, THJ3=0.2, THJ0=-0.3)
POINT = curled((1.35, 1.45, 0.8), fingers="MF RF LF", FFJ2=0.25, FFJ1=0.12, FFJ0=0.05, THJ4=0.7, THJ3=0.95, THJ0=-0.7)
# Joints that close, from the palm outwards, with the direction of closing and its rate.
_CLOSING = {
    finger: ((f"{finger}J2", 1.0), (f"{finger}J1", 0.85), (f"{finger}J0", 0.55)) for finger in ("FF", "MF", "RF", "LF")
} | {"TH": (("THJ3", 1.0), ("THJ1", -0.4), ("THJ0", -0.8))}


class Infeasible(Exception):
    """This draw of scene and action cannot be done; another draw may."""


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """A palm pose in the world with the fingers before and after closing.

    `approach` is the unit vector along which the palm nears.
    """

    palm: np.ndarray
    preshape: np.ndarray
    closed: np.ndarray
    approach: np.ndarray
    touching: tuple[str, ...]


def sign_of(side: str) -> float:
    """+1 for the right hand, -1 for the left: what a mirrored x coordinate is multiplied by."""
    return 1.0 if side == "right" else -1.0


def close_fingers(
    world: World, side: str, palm: np.ndarray, preshape: np.ndarray, target: list[int], obstacles: list[int]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Closes each finger on the geoms `target`; `obstacles`, such as the table, stop it too.

    Returns:
        (finger angles float64[22], names of the fingers that touch).
    """
    angles = preshape.copy()
    touching = []
    limits = world.limits[side]
    for finger in FINGERS:
        geoms = world.finger_geoms[side][finger]
        chain = [(FINGER_JOINTS.index(joint), rate) for joint, rate in _CLOSING[finger]]
        first_free, touched = 0, False
        for _ in range(48):
            trial = angles.copy()
            for joint, rate in chain[first_free:]:
                trial[joint] = np.clip(trial[joint] + rate * CLOSE_STEP, *limits[joint])
            if np.array_equal(trial, angles):
                break
            world.set_hand(side, palm, trial)
            world.update()
            near = [world.distance([geom], target, 0.05) for geom in geoms]
            # Link k is moved by the joints up to k of the chain, so contact there stops these.
            blocked = [k for k, distance in enumerate(near) if distance < 0.0005]
            touched = touched or bool(blocked)
            if not blocked and obstacles and world.distance(geoms, obstacles, 0.01) < 0.001:
                # Curling further lifts a fingertip off the table: only the innermost free joint stops.
                blocked = [first_free]
            if blocked:
                first_free = max(first_free, blocked[-1] + 1)
                if first_free >= len(chain):
                    break
                continue  # `trial` would press in: keep `angles`
            angles = trial
            touched = touched or min(near) < TOUCH_M
        if touched:
            touching.append(finger)
    world.set_hand(side, palm, angles)
    world.update()
    return angles, tuple(touching)


def plan_grasp(
    world: World,
    side: str,
    thing: int,
    thing_pose: np.ndarray,
    rng: np.random.Generator,
    *,
    style: str | None = None,
    obstacles: list[int] | None = None,
    offset: np.ndarray | None = None,
    tries: int = 8,
) -> Grasp:
    """A grasp of a thing at `thing_pose`: by the thumb and two fingers, or by two fingers that hook a bar.

    Args:
        style: a key of STYLES; None = as the thing's model says.
        obstacles: geoms to keep clear of; None = the table.
        offset: where the grasp's middle is in the thing's frame; None = on its axis at its grasp height.

    Raises:
        Infeasible: none found within `tries` draws.
    """
    model = world.things[thing]
    style = style or model.grasp
    obstacles = world.support if obstacles is None else obstacles
    world.set_thing(thing, thing_pose)
    target = world.grip_geoms[thing] or world.thing_geoms[thing]
    local = np.array([0.0, 0.0, model.grasp_height]) if offset is None else offset
    centre = (thing_pose @ np.append(local, 1.0))[:3]
    above = min(model.height - float(local[2]), 0.06)
    for _ in range(tries):
        palm, preshape, approach = STYLES[style](side, centre, model.half_width, above, rng)
        palm = _cleared(
            world, side, palm, preshape, target, -approach if style == "top" else None, obstacles, style not in HOOKS
        )
        if palm is None:
            continue
        closed, touching = close_fingers(world, side, palm, preshape, target, obstacles)
        if len(touching) < 3 - (style in HOOKS) or ("TH" not in touching and style not in HOOKS):
            continue
        return Grasp(palm=palm, preshape=preshape, closed=closed, approach=approach, touching=touching)
    raise Infeasible(f"no {style} grasp of the {model.label} with the {side} hand")


def _opened(rng: np.random.Generator) -> np.ndarray:
    preshape = OPEN.copy()
    preshape[FINGER_JOINTS.index("THJ4")] = rng.uniform(0.25, 0.5)
    return preshape


def _placed(
    side: str, rotation: np.ndarray, centre: np.ndarray, depth: float, along: float, approach: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The palm pose whose point `depth` off the skin and `along` the fingers meets `centre`, and the unit approach."""
    held = np.array([0.006 * sign_of(side), PALM_CENTRE[1] - depth, along])
    return pose(rotation, centre - rotation @ held), approach / np.linalg.norm(approach)


def _side(side: str, centre: np.ndarray, half_width: float, above: float, rng: np.random.Generator):
    """Fingers away from the person and inwards, the palm looking inwards, the thumb up: as a glass is held."""
    s, azimuth = sign_of(side), np.deg2rad(rng.uniform(-5, 35))
    fingers = np.array([-s * np.sin(azimuth), np.cos(azimuth), rng.uniform(-0.25, 0.05)])
    rotation = palm_rotation(fingers, [-s * np.cos(azimuth), -np.sin(azimuth), 0.0])
    approach = -0.9 * rotation[:, 1] + 0.45 * rotation[:, 2]
    gap, along = rng.uniform(0.008, 0.014), rng.uniform(0.082, 0.095)
    palm, approach = _placed(side, rotation, centre, half_width + gap, along, approach)
    return palm, _opened(rng), approach


def _top(side: str, centre: np.ndarray, half_width: float, above: float, rng: np.random.Generator):
    """The palm down, fingers over the far side, the thumb at the near side."""
    s, azimuth, pitch = sign_of(side), np.deg2rad(rng.uniform(-5, 40)), np.deg2rad(rng.uniform(22, 42))
    flat = np.array([-s * np.sin(azimuth), np.cos(azimuth), 0.0])
    rotation = palm_rotation(np.cos(pitch) * flat - np.array([0.0, 0.0, np.sin(pitch)]), [0.0, 0.0, -1.0])
    depth = max(above, 0.8 * half_width) + rng.uniform(0.008, 0.026)
    approach = np.array([0.0, 0.0, -0.85]) + 0.5 * flat
    palm, approach = _placed(side, rotation, centre, depth, rng.uniform(0.112, 0.135), approach)
    return palm, _opened(rng), approach


def _hook_down(side: str, centre: np.ndarray, half_width: float, above: float, rng: np.random.Generator):
    """Bent fingers behind a bar that lies across, the palm down: as a drawer is pulled."""
    s, azimuth, pitch = sign_of(side), np.deg2rad(rng.uniform(-5, 15)), np.deg2rad(rng.uniform(-5, 20))
    flat = np.array([-s * np.sin(azimuth), np.cos(azimuth), 0.0])
    rotation = palm_rotation(np.cos(pitch) * flat - np.array([0.0, 0.0, np.sin(pitch)]), [0.0, 0.0, -1.0])
    approach = -rotation[:, 1]
    palm, approach = _placed(side, rotation, centre, half_width + 0.020, rng.uniform(0.096, 0.104), approach)
    return palm, HOOK.copy(), approach


def _hook_in(side: str, centre: np.ndarray, half_width: float, above: float, rng: np.random.Generator):
    """Bent fingers behind an upright bar, the palm looking inwards, the thumb up: as a door is pulled."""
    s, azimuth = sign_of(side), np.deg2rad(rng.uniform(0, 20))
    fingers = np.array([-s * np.sin(azimuth), np.cos(azimuth), rng.uniform(-0.1, 0.1)])
    rotation = palm_rotation(fingers, [-s * np.cos(azimuth), -np.sin(azimuth), 0.0])
    approach = -rotation[:, 1]
    palm, approach = _placed(side, rotation, centre, half_width + 0.020, rng.uniform(0.096, 0.104), approach)
    return palm, HOOK.copy(), approach


STYLES = {"side": _side, "top": _top, "hook down": _hook_down, "hook in": _hook_in}
HOOKS = ("hook down", "hook in")


def _cleared(
    world: World,
    side: str,
    palm: np.ndarray,
    preshape: np.ndarray,
    target: list[int],
    retreat: np.ndarray | None,
    support: list[int],
    lift: bool,
) -> np.ndarray | None:
    """The palm moved back until the open hand is clear of the target, and up until it is clear of the support."""
    palm = palm.copy()
    back = retreat if retreat is not None else palm[:3, 1]
    for _ in range(8):
        world.set_hand(side, palm, preshape)
        world.update()
        depth = world.distance(world.hand_geoms[side], target, 0.01)
        low = world.distance(world.hand_geoms[side], support, 0.01)
        if depth >= 0.0005 and low >= 0.002:
            return palm
        if depth < 0.0005:
            palm[:3, 3] += back * (0.003 - depth)
        if low < 0.002:
            if not lift:
                return None
            palm[2, 3] += 0.004 - low
    return None


def rest_palm(side: str, rng: np.random.Generator, *, height: float | None = None) -> np.ndarray:
    """A palm at ease over the near edge of the table."""
    s = sign_of(side)
    position = np.array(
        [s * rng.uniform(0.15, 0.24), rng.uniform(-0.03, 0.05), rng.uniform(0.045, 0.09) if height is None else height]
    )
    rotation = palm_rotation([-s * rng.uniform(0.1, 0.45), 1.0, rng.uniform(-0.15, 0.05)], [-0.35 * s, 0.0, -1.0])
    return pose(rotation_about([0, 0, 1], s * rng.uniform(-0.1, 0.2)) @ rotation, position)

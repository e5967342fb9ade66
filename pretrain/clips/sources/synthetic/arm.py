"""A family of robot arms: seven joints, random proportions, shapes and colours, and a closed-form way to pose them.

Not a model of any real arm. Base, shoulder, upper arm, elbow, forearm, wrist and tool: the elbow lies in a plane through
shoulder and wrist, turned about their line by `swivel`, and the wrist takes the tool's rotation, so that every pose of the
tool within reach has one pose of the arm, which depends smoothly on it.

Tool frame: origin between the fingertips, +z out of the gripper, the fingers open along x.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from pretrain.clips.sources.synthetic.grasp import Infeasible
from pretrain.clips.sources.synthetic.motion import pose
from pretrain.clips.sources.synthetic.objects import ObjectModel, Piece

LINKS = ("base", "turret", "upper", "fore", "wrist", "hand", "finger 0", "finger 1")
ALONG_X = (0.0, np.pi / 2, 0.0)
UP = np.array([0.0, 0.0, 1.0])
FINGERTIP_M = 0.012  # of the fingers beyond the tool's origin
LONGEST_SHARE = 0.985  # of upper arm and forearm stretched out
Rgb = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ArmModel:
    """An arm that stands somewhere. Lengths in metres.

    Attributes:
        shoulder: world position of the shoulder joint.
        yaw: the way the base faces, about +z; 0 = +y.
        upper_m, fore_m: from shoulder to elbow, and on to the wrist.
        tool_m: from the wrist to the tip of the tool.
        swivel: of the elbow out of the vertical plane, radians.
        opening_m: the widest that the fingers open; 0 = the arm has a rod instead of fingers.
        tip_m: how far the tool's end is beyond its origin.
        tip_half_m: half the thickness of the tool's end with closed fingers, along x.
        pieces: the shapes of each of LINKS, in the link's frame.
    """

    shoulder: np.ndarray
    yaw: float
    upper_m: float
    fore_m: float
    tool_m: float
    swivel: float
    opening_m: float
    tip_m: float
    tip_half_m: float
    pieces: dict[str, tuple[Piece, ...]]

    def link_models(self) -> dict[str, ObjectModel]:
        """Each link as a thing that `add_object` takes."""
        return {
            link: ObjectModel(
                category="robot arm",
                label="robot arm",
                pieces=self.pieces[link],
                height=0.0,
                radius=0.0,
                half_width=0.0,
            )
            for link in LINKS
            if self.pieces[link]
        }


def _frame(z: np.ndarray, x: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """The pose at `origin` with this z, and x as near as can be to the one given."""
    x = x - (x @ z) * z
    x = x / np.linalg.norm(x)
    return pose(np.column_stack([x, np.cross(z, x), z]), origin)


def arm_link_poses(arm: ArmModel, tool: np.ndarray, opening: float) -> dict[str, np.ndarray]:
    """world_from_link of each of LINKS for a pose of the tool and the distance between the fingers (metres).

    Raises:
        Infeasible: the tool is out of reach.
    """
    wrist = tool[:3, 3] - arm.tool_m * tool[:3, 2]
    way = wrist - arm.shoulder
    distance = float(np.linalg.norm(way))
    flat = float(np.hypot(way[0], way[1]))
    if not abs(arm.upper_m - arm.fore_m) + 0.06 < distance < LONGEST_SHARE * (arm.upper_m + arm.fore_m) or flat < 0.12:
        raise Infeasible(f"the tool is out of the arm's reach ({distance:.2f} m)")
    along = way / distance
    level = np.array([way[1], -way[0], 0.0]) / flat
    side = np.cos(arm.swivel) * level + np.sin(arm.swivel) * np.cross(along, level)
    bend = np.cross(side, along)
    cosine = (arm.upper_m**2 + distance**2 - arm.fore_m**2) / (2 * arm.upper_m * distance)
    elbow = arm.shoulder + arm.upper_m * (cosine * along + np.sqrt(max(1 - cosine**2, 0.0)) * bend)
    rotation = tool[:3, :3]
    fore = (wrist - elbow) / arm.fore_m
    hinge = np.cross(fore, rotation[:, 2])
    hinge = side if np.linalg.norm(hinge) < 1e-3 else hinge
    facing = np.array([np.cos(arm.yaw), np.sin(arm.yaw), 0.0])
    tip = tool[:3, 3]
    return {
        "base": _frame(UP, facing, arm.shoulder),
        "turret": _frame(UP, level, arm.shoulder),
        "upper": _frame((elbow - arm.shoulder) / arm.upper_m, side, arm.shoulder),
        "fore": _frame(fore, side, elbow),
        "wrist": _frame(rotation[:, 2], hinge, wrist),
        "hand": pose(rotation, wrist),
        "finger 0": pose(rotation, tip + rotation[:, 0] * opening / 2),
        "finger 1": pose(rotation @ np.diag([-1.0, -1.0, 1.0]), tip - rotation[:, 0] * opening / 2),
    }


# ---------------------------------------------------------------------------------------------- drawing one


def vivid(rng: np.random.Generator) -> Rgb:
    """Any hue, often saturated."""
    return colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0.25, 1.0)), float(rng.uniform(0.25, 1.0)))


def grey(rng: np.random.Generator, low: float = 0.04, high: float = 0.95) -> Rgb:
    value = float(rng.uniform(low, high))
    tint = rng.uniform(-0.02, 0.02, 3)
    return tuple(float(v) for v in np.clip(value + tint, 0.02, 1.0))


def _colours(rng: np.random.Generator) -> tuple[Rgb, Rgb, Rgb, Rgb]:
    """(links, joints, hand, fingers): two-tone as arms are sold, or every part of another colour."""
    paint = [(0.75, 0.08, 0.07), (0.90, 0.40, 0.05), (0.90, 0.75, 0.10), (0.1, 0.25, 0.6)]
    scheme = rng.choice(["two-tone", "painted", "any"], p=[0.45, 0.2, 0.35])
    if scheme == "any":
        return vivid(rng), vivid(rng), vivid(rng), vivid(rng)
    dark, light = grey(rng, 0.04, 0.35), grey(rng, 0.6, 0.95)
    if scheme == "painted":
        colour = paint[int(rng.integers(len(paint)))]
        return (colour, dark, light, dark) if rng.random() < 0.6 else (light, colour, dark, dark)
    return (light, dark, light, dark) if rng.random() < 0.6 else (dark, light, dark, grey(rng))


def _limb(rng: np.random.Generator, length: float, radius: float, shift: float, rgb: Rgb, joint: Rgb) -> tuple:
    """The shapes of a link from z = 0 to `length`, moved sideways by `shift`, with a joint's housing at the far end."""
    shape = str(rng.choice(["capsule", "cylinder", "box", "ellipsoid"], p=[0.4, 0.25, 0.2, 0.15]))
    half = length / 2
    thick, thin = radius, radius * float(rng.uniform(0.65, 1.0))
    sizes = {"capsule": (thin, half), "cylinder": (thin, half), "box": (0.85 * thin, 0.85 * thin, half)}
    size = sizes.get(shape, (thick, thick, half + 0.6 * thick))
    limb = [Piece(shape=shape, size=size, position=(shift, 0.0, half), rgb=rgb)]
    if rng.random() < 0.5:  # a thicker stretch, as of a motor
        share = float(rng.uniform(0.25, 0.5))
        limb.append(
            Piece(shape="cylinder", size=(thick * 1.06, share * half), position=(shift, 0.0, share * half), rgb=rgb)
        )
    wide = thick * float(rng.uniform(1.0, 1.25)) + abs(shift) / 2
    limb.append(
        Piece(shape="cylinder", size=(thick * 1.08, wide), position=(shift / 2, 0.0, length), euler=ALONG_X, rgb=joint)
    )
    if rng.random() < 0.5:  # end caps
        limb.append(
            Piece(
                shape="cylinder",
                size=(thick * 0.85, wide + 0.006),
                position=(shift / 2, 0.0, length),
                euler=ALONG_X,
                rgb=rgb,
            )
        )
    return tuple(limb)


def _finger(rng: np.random.Generator, length: float, rgb: Rgb, pad: Rgb) -> tuple[Piece, ...]:
    """One finger on the side +x of the tip: its inner face is the plane x = 0, it ends at z = FINGERTIP_M."""
    thick, wide = float(rng.uniform(0.006, 0.012)), float(rng.uniform(0.008, 0.016))
    top, low = FINGERTIP_M, FINGERTIP_M - length
    kind = str(rng.choice(["plate", "rod", "stepped", "padded"]))
    middle = (top + low) / 2
    if kind == "rod":
        return (Piece(shape="capsule", size=(thick, length / 2 - thick), position=(thick, 0.0, middle), rgb=rgb),)
    plate = Piece(shape="box", size=(thick, wide, length / 2), position=(thick, 0.0, middle), rgb=rgb)
    if kind == "plate":
        return (plate,)
    if kind == "padded":
        return (
            Piece(shape="box", size=(thick, wide, length / 2), position=(thick + 0.004, 0.0, middle), rgb=rgb),
            Piece(shape="box", size=(0.004, wide * 0.9, 0.014), position=(0.004, 0.0, top - 0.016), rgb=pad),
        )
    return (
        Piece(shape="box", size=(thick, wide, length / 4), position=(thick, 0.0, top - length / 4), rgb=rgb),
        Piece(shape="box", size=(thick, wide, length / 4), position=(2.2 * thick, 0.0, low + length / 4), rgb=rgb),
    )


def _repainted(rng: np.random.Generator, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """A link with a colour of its own, and its housings with another one."""
    first, second = vivid(rng), vivid(rng)
    return tuple(replace(piece, rgb=second if piece.euler == ALONG_X else first) for piece in pieces)


def draw_arm(rng: np.random.Generator, *, mount: np.ndarray, floor_z: float, fingers: bool) -> ArmModel:
    """Draws an arm.

    Args:
        mount: where it stands, metres; its column goes on down to `floor_z` where that is below.
        fingers: with a gripper, otherwise sometimes with a rod.
    """
    reach = float(rng.uniform(0.66, 0.84))
    share = float(rng.uniform(0.45, 0.56))
    upper_m, fore_m = share * reach, (1 - share) * reach
    radius = float(rng.uniform(0.034, 0.062))
    links, joints, hand_rgb, finger_rgb = _colours(rng)
    fingers = fingers or rng.random() < 0.6
    offset = float(rng.choice([0.0, 0.0, rng.uniform(0.7, 1.3)])) * radius * float(rng.choice([-1, 1]))
    swivel = float(rng.choice([0.0, rng.uniform(-0.7, 0.7)]))
    height = float(rng.uniform(0.22, 0.40))
    shoulder = mount + np.array([0.0, 0.0, height])

    depth = float(mount[2] - floor_z)
    column = float(rng.uniform(1.05, 1.5)) * radius
    pieces: dict[str, tuple[Piece, ...]] = {}
    low = height - 0.5 * radius
    base = [Piece(shape="cylinder", size=(column, low / 2), position=(0, 0, -height + low / 2), rgb=links)]
    wide = float(rng.uniform(1.2, 1.9)) * column
    foot = (wide, wide, 0.02) if rng.random() < 0.5 else (wide, 0.02)
    base.append(
        Piece(shape="box" if len(foot) == 3 else "cylinder", size=foot, position=(0, 0, 0.02 - height), rgb=joints)
    )
    if depth > 0.02:
        stand = float(rng.uniform(0.07, 0.16))
        size = (stand, stand, depth / 2) if rng.random() < 0.5 else (stand, depth / 2)
        base.append(
            Piece(
                shape="box" if len(size) == 3 else "cylinder",
                size=size,
                position=(0, 0, -height - depth / 2),
                rgb=grey(rng) if rng.random() < 0.7 else vivid(rng),
            )
        )
    pieces["base"] = tuple(base)
    across = radius * 1.2 + abs(offset)
    turret = [Piece(shape="cylinder", size=(radius * 1.15, across), euler=ALONG_X, rgb=joints)]
    if rng.random() < 0.4:
        turret.append(Piece(shape="ellipsoid", size=(radius * 1.5, radius * 1.4, radius * 1.5), rgb=links))
    if rng.random() < 0.15:  # a head with a screen
        turret.append(
            Piece(
                shape="box",
                size=(0.10, 0.012, 0.07),
                position=(0, radius * 1.3, 0.2 + radius),
                rgb=grey(rng, 0.03, 0.3),
            )
        )
        turret.append(Piece(shape="cylinder", size=(0.02, 0.1), position=(0, radius * 1.1, 0.1), rgb=joints))
    pieces["turret"] = tuple(turret)
    pieces["upper"] = _limb(rng, upper_m, radius, offset, links, joints)
    slim = radius * float(rng.uniform(0.75, 0.95))
    fore_rgb = links if rng.random() < 0.75 else hand_rgb
    pieces["fore"] = _limb(rng, fore_m, slim, -0.5 * offset, fore_rgb, joints)
    flange = float(rng.uniform(0.05, 0.09))
    pieces["wrist"] = (
        Piece(shape="capsule", size=(slim * 0.85, flange / 2), position=(0, 0, flange / 2), rgb=fore_rgb),
        Piece(shape="cylinder", size=(slim * 0.8, slim * 1.15), euler=ALONG_X, rgb=joints),
    )
    if fingers:
        opening = float(rng.uniform(0.085, 0.12))
        palm = float(rng.uniform(0.02, 0.045))
        length = float(rng.uniform(0.045, 0.085))
        wide = opening / 2 + float(rng.uniform(0.02, 0.035))
        tool_m = flange + 2 * palm + length - FINGERTIP_M
        body_shape = (wide, float(rng.uniform(0.02, 0.04)), palm)
        hand = [Piece(shape="box", size=body_shape, position=(0, 0, flange + palm), rgb=hand_rgb)]
        if rng.random() < 0.4:
            hand.append(Piece(shape="cylinder", size=(slim * 0.95, 0.012), position=(0, 0, flange), rgb=finger_rgb))
        if rng.random() < 0.25:  # a camera on the wrist
            hand.append(
                Piece(
                    shape="box", size=(0.03, 0.012, 0.015), position=(0, 0.06, flange + 0.01), rgb=grey(rng, 0.03, 0.3)
                )
            )
        finger = _finger(rng, length, finger_rgb, vivid(rng))
        pieces |= {"hand": tuple(hand), "finger 0": finger, "finger 1": finger}
        tip_m = FINGERTIP_M
        tip_half_m = max(piece.position[0] + piece.size[0] for piece in finger)
    else:
        opening, length = 0.0, float(rng.uniform(0.08, 0.14))
        tool_m = flange + length
        rod = float(rng.uniform(0.009, 0.016))
        end = Piece(shape="sphere", size=(rod * 1.4,), position=(0, 0, tool_m - rod * 1.4), rgb=finger_rgb)
        pieces["hand"] = (
            Piece(shape="cylinder", size=(slim * 0.9, 0.015), position=(0, 0, flange + 0.01), rgb=hand_rgb),
            Piece(shape="capsule", size=(rod, length / 2 - rod), position=(0, 0, flange + length / 2), rgb=finger_rgb),
            end,
        )
        pieces |= {"finger 0": (), "finger 1": ()}
        tip_m, tip_half_m = 0.0, rod * 1.4
    if rng.random() < 0.35:
        pieces = {link: _repainted(rng, shapes) for link, shapes in pieces.items()}
    return ArmModel(
        shoulder=shoulder,
        yaw=float(rng.choice([0.0, np.pi / 4])),
        upper_m=upper_m,
        fore_m=fore_m,
        tool_m=tool_m,
        swivel=swivel,
        opening_m=opening,
        tip_m=tip_m,
        tip_half_m=tip_half_m,
        pieces=pieces,
    )

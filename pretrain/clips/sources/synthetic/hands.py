"""Two human-like hands with forearms, built from the Adroit hand that gymnasium-robotics installs.

The installed model is read, never copied: its tree of bodies, joints and collision shapes, and its finger and palm
meshes. The left hand is its mirror image in x = 0: positions (x, y, z) -> (-x, y, z), rotations (w, x, y, z) ->
(w, x, -y, -z), joint axes (x, y, z) -> (x, -y, -z) because an axis is a pseudo-vector, and meshes with turned winding.
The robot's wrist and forearm are replaced by a wrist, arm and sleeve of our own.

Palm frame of the right hand: origin in the wrist, +z towards the fingers, -y out of the palm, +x towards the thumb
(-x for the left hand). Palm, forearm and upper arm are mocap bodies, so a pose is simply set.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.clips.sources.synthetic.meshes import (
    Mesh,
    add_mesh,
    convex_hull,
    installed_package,
    lathe,
    read_stl,
    simplified,
    smoothed,
)

SIDES = ("left", "right")
FINGERS = ("FF", "MF", "RF", "LF", "TH")
# The bodies at whose origins the joints of schema.HAND_JOINTS are; "tip" after a body = its fingertip.
_JOINT_BODIES = (
    "palm",
    "thbase", "thmiddle", "thdistal", "thdistal tip",
    "ffproximal", "ffmiddle", "ffdistal", "ffdistal tip",
    "mfproximal", "mfmiddle", "mfdistal", "mfdistal tip",
    "rfproximal", "rfmiddle", "rfdistal", "rfdistal tip",
    "lfproximal", "lfmiddle", "lfdistal", "lfdistal tip",
)  # fmt: skip
FINGER_JOINTS = tuple(
    f"{finger}J{number}"
    for finger, numbers in zip(FINGERS, ("3210", "3210", "3210", "43210", "43210"), strict=True)
    for number in numbers
)
PALM_CENTRE = np.array([0.005, -0.012, 0.055])  # on the right palm's skin; x changes sign on the left
UPPER_ARM_M, FOREARM_M = 0.31, 0.27


@dataclass(frozen=True, kw_only=True)
class HandBody:
    """One body of the installed hand: its place in its parent, joint, display meshes, collision shapes and fingertip."""

    name: str
    parent: str | None
    position: np.ndarray
    quat_wxyz: np.ndarray
    joint: tuple[str, np.ndarray, np.ndarray] | None  # name, axis, range in radians
    meshes: tuple[tuple[str, np.ndarray], ...]  # (mesh name, position)
    shapes: tuple[tuple[str, int, np.ndarray, np.ndarray], ...]  # (name, geom type, size, position)
    tip: np.ndarray | None  # position, in the flesh under the end of the nail


def _installed_hand() -> Path:
    return installed_package("gymnasium_robotics") / "envs" / "assets" / "adroit_hand"


@functools.cache
def hand_bodies() -> tuple[HandBody, ...]:
    """The bodies of the installed right hand from the palm outwards, parents first."""
    import mujoco

    path = _installed_hand() / "adroit_relocate.xml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; install it with: pip install 'egoarm[robots]'")
    spec = mujoco.MjSpec.from_file(str(path))
    bodies: list[HandBody] = []

    def walk(body, parent: str | None) -> None:
        joints = [joint for joint in body.joints if joint.name in FINGER_JOINTS]
        joint = (joints[0].name, np.array(joints[0].axis), np.array(joints[0].range)) if joints else None
        meshes = tuple((geom.meshname, np.array(geom.pos)) for geom in body.geoms if geom.meshname)
        shapes = tuple(
            (geom.name, int(geom.type), np.array(geom.size), np.array(geom.pos))
            for geom in body.geoms
            if geom.name.startswith("C_")
        )
        tips = [np.array(site.pos) for site in body.sites if re.fullmatch("S_..tip", site.name)]
        bodies.append(
            HandBody(
                name=body.name,
                parent=parent,
                position=np.array(body.pos) if parent else np.zeros(3),
                quat_wxyz=np.array(body.quat) if parent else np.array([1.0, 0, 0, 0]),
                joint=joint,
                meshes=meshes,
                shapes=shapes,
                tip=tips[0] if tips else None,
            )
        )
        for child in body.bodies:
            walk(child, body.name)

    walk(spec.body("palm"), None)
    return tuple(bodies)


def joint_places(side: str) -> tuple[tuple[str, np.ndarray], ...]:
    """Where each joint of ``HAND_JOINTS`` is: the name of a body of ``add_hand``, and a point in its frame, float64[3]."""
    tips = {body.name: body.tip for body in hand_bodies()}
    places = []
    for name in _JOINT_BODIES:
        body, _, tip = name.partition(" ")
        point = tips[body] if tip else np.zeros(3)
        assert point is not None, f"the installed hand has no fingertip on {body}"
        places.append((f"{side}/{body}", _mirror_position(point, side)))
    return tuple(places)


@functools.cache
def _hand_mesh(name: str, side: str) -> Mesh:
    """A display mesh, simplified so that rendering stays quick, and rounded so that it reads as flesh."""
    mesh = read_stl(_installed_hand() / "resources" / "meshes" / f"{name}.stl", scale=0.001)
    if name in ("palm", "lfmetacarpal"):
        # Their insides (motors, hinges) would show through a plain simplification.
        mesh = convex_hull(simplified(mesh, cell_m=0.004))
    else:
        mesh = smoothed(simplified(mesh, cell_m=0.0035), steps=1)
    return mesh if side == "right" else mesh.mirrored_x()


@functools.cache
def _arm_mesh(part: str) -> Mesh:
    """A part of the arm along -z from its far joint, oval as an arm is: "skin" (forearm), a sleeve or "upper arm"."""
    outline = [(0.030, 0.012), (0.0295, -0.02), (0.031, -0.06), (0.037, -0.12), (0.043, -0.19), (0.044, -0.27)]
    if part == "skin":
        profile = [(0.0, 0.02), *outline]
    elif part == "upper arm":
        profile = [(0.0, 0.052), (0.030, 0.044), (0.047, 0.022), (0.052, 0.0), (0.053, -0.1), (0.060, -UPPER_ARM_M)]
    else:
        start = -0.035 if part == "long sleeve" else -0.15
        grown = [(r + 0.007, z) for r, z in outline if z < start]
        first = float(np.interp(-start, [-z for _, z in outline], [r for r, _ in outline]))
        profile = [(first - 0.002, start), (first + 0.009, start - 0.001), (first + 0.009, start - 0.012), *grown]
    return lathe(profile[::-1], sides=16, flatten_y=1.0 if part == "upper arm" else 0.78)


def _mirror_position(position: np.ndarray, side: str) -> np.ndarray:
    return position if side == "right" else position * [-1.0, 1.0, 1.0]


def _mirror_axial(vector: np.ndarray, side: str) -> np.ndarray:
    return vector if side == "right" else vector * [1.0, -1.0, -1.0]


def add_hand(spec, side: str, *, skin_rgba: np.ndarray, sleeve: str, sleeve_rgba: np.ndarray) -> None:
    """Adds palm, fingers and arm as bodies "<side>/palm", ... with joints "<side>/FFJ3", ... to a spec.

    Args:
        sleeve: "long sleeve", "short sleeve" or "none".
    """
    import mujoco

    skin = spec.add_material(name=f"{side}/skin", rgba=skin_rgba, specular=0.15, shininess=0.2).name
    cloth = spec.add_material(name=f"{side}/cloth", rgba=sleeve_rgba, specular=0.0, shininess=0.0).name
    added: dict[str, object] = {}
    mesh_names: set[str] = set()
    for part in hand_bodies():
        name = f"{side}/{part.name}"
        position = _mirror_position(part.position, side)
        quat = np.concatenate([part.quat_wxyz[:1], _mirror_axial(part.quat_wxyz[1:], side)])
        if part.parent is None:
            body = spec.worldbody.add_body(name=name, mocap=True)
        else:
            body = added[part.parent].add_body(name=name, pos=position, quat=quat)
        added[part.name] = body
        # Nothing is integrated: the inertia only has to be valid.
        body.explicitinertial, body.mass, body.inertia, body.ipos = True, 0.01, [1e-5] * 3, [0, 0, 0]
        if part.joint:
            joint, axis, limits = part.joint
            body.add_joint(
                name=f"{side}/{joint}",
                type=mujoco.mjtJoint.mjJNT_HINGE,
                axis=_mirror_axial(axis, side),
                range=limits,
            )
        for mesh, offset in part.meshes:
            if mesh not in mesh_names:
                mesh_names.add(mesh)
                add_mesh(spec, f"{side}/{mesh}", _hand_mesh(mesh, side))
            body.add_geom(
                type=mujoco.mjtGeom.mjGEOM_MESH,
                meshname=f"{side}/{mesh}",
                pos=_mirror_position(offset, side),
                material=skin,
                contype=0,
                conaffinity=0,
                group=1,
            )
        for shape, kind, size, offset in part.shapes:
            body.add_geom(
                name=f"{side}/{shape}",
                type=mujoco.mjtGeom(kind),
                size=size,
                pos=_mirror_position(offset, side),
                contype=0,
                conaffinity=0,
                group=4,
            )
    _add_flesh(added["palm"], side, skin)
    _add_arm(spec, side, skin, cloth, sleeve)


# Soft parts that a robot hand lacks: (size of the half axes, position, rotation about y in radians), in the right palm.
FLESH = (
    ((0.027, 0.0165, 0.026), (0.0, 0.0, 0.004), 0.0),  # wrist
    ((0.017, 0.015, 0.036), (0.030, -0.008, 0.036), 0.35),  # ball of the thumb
    ((0.015, 0.015, 0.036), (-0.027, -0.004, 0.036), -0.10),  # heel under the little finger
    ((0.041, 0.0125, 0.046), (0.001, 0.002, 0.052), 0.0),  # back of the hand
    ((0.040, 0.0100, 0.014), (0.000, 0.000, 0.088), 0.10),  # webs at the knuckles
)


def _add_flesh(palm, side: str, material: str) -> None:
    import mujoco

    for size, position, angle in FLESH:
        angle = angle if side == "right" else -angle
        palm.add_geom(
            type=mujoco.mjtGeom.mjGEOM_ELLIPSOID,
            size=size,
            pos=_mirror_position(np.array(position), side),
            quat=[np.cos(angle / 2), 0.0, np.sin(angle / 2), 0.0],
            material=material,
            contype=0,
            conaffinity=0,
            group=1,
        )


def _add_arm(spec, side: str, skin: str, cloth: str, sleeve: str) -> None:
    import mujoco

    forearm = spec.worldbody.add_body(name=f"{side}/forearm", mocap=True)
    upper = spec.worldbody.add_body(name=f"{side}/upper arm", mocap=True)
    parts = [(forearm, "skin", skin), (upper, "upper arm", skin if sleeve == "none" else cloth)]
    if sleeve != "none":
        parts.append((forearm, sleeve, cloth))
    for body, part, material in parts:
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=add_mesh(spec, f"{side}/arm {part}", _arm_mesh(part)),
            material=material,
            contype=0,
            conaffinity=0,
            group=1,
        )


def arm_poses(palm: np.ndarray, shoulder: np.ndarray, side: str) -> tuple[np.ndarray, np.ndarray]:
    """The poses of the forearm and the upper arm that join the wrist of a palm pose to the shoulder.

    Args:
        palm: float64[4,4] world_from_palm.
        shoulder: float64[3] in the world.

    Returns:
        Forearm, float64[4,4]: origin at the wrist, +z from elbow to wrist, x following the palm's so that the skin does not
        twist. Upper arm, float64[4,4]: origin at the elbow, +z from shoulder to elbow. A reach longer than the arm draws
        the shoulder along.
    """
    wrist = palm[:3, 3]
    reach = wrist - shoulder
    distance = float(np.clip(np.linalg.norm(reach), 0.08, UPPER_ARM_M + FOREARM_M - 1e-3))
    along = reach / max(float(np.linalg.norm(reach)), 1e-9)
    # The elbow hangs down and a little outwards.
    down = np.array([0.8 if side == "right" else -0.8, -0.3, -0.7])
    down -= along * (down @ along)
    down /= np.linalg.norm(down)
    # Law of cosines, from the wrist's end, which is where the arm must meet.
    a = (FOREARM_M**2 - UPPER_ARM_M**2 + distance**2) / (2 * distance)
    elbow = wrist - a * along + np.sqrt(max(FOREARM_M**2 - a * a, 0.0)) * down
    return _bone(elbow, wrist, palm[:3, 0]), _bone(wrist - distance * along, elbow, palm[:3, 0])


def _bone(start: np.ndarray, end: np.ndarray, x_like: np.ndarray) -> np.ndarray:
    """A pose at `end` with +z from `start` to `end` and x as near `x_like` as that allows."""
    axis = (end - start) / np.linalg.norm(end - start)
    x = x_like - axis * (x_like @ axis)
    x /= max(float(np.linalg.norm(x)), 1e-6)
    pose = np.eye(4)
    pose[:3, :3] = np.column_stack([x, np.cross(axis, x), axis])
    pose[:3, 3] = end
    return pose


def palm_rotation(fingers: np.ndarray, facing: np.ndarray) -> np.ndarray:
    """world_from_palm rotation whose fingers (+z) point along `fingers` and whose palm (-y) looks along `facing`.

    `facing` is made perpendicular to `fingers`.
    """
    z = np.asarray(fingers, float) / np.linalg.norm(fingers)
    y = -(np.asarray(facing, float) - z * (np.asarray(facing, float) @ z))
    y /= np.linalg.norm(y)
    return np.column_stack([np.cross(y, z), y, z])


def posture(**angles: float) -> np.ndarray:
    """float64[22] finger joint angles in the order of FINGER_JOINTS; unnamed joints are 0."""
    vector = np.zeros(len(FINGER_JOINTS))
    for name, angle in angles.items():
        vector[FINGER_JOINTS.index(name)] = angle
    return vector


def curled(flex: tuple[float, float, float], *, fingers: str = "FF MF RF LF", **angles: float) -> np.ndarray:
    """A posture with the same three flexions (knuckle, middle, tip) for the named fingers, and further joints by name."""
    flexions = {
        f"{finger}J{number}": angle for finger in fingers.split() for number, angle in zip("210", flex, strict=True)
    }
    return posture(**(flexions | angles))

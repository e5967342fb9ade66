"""What a thing is: its shapes, its joint, how it is held; and how it enters a scene.

A thing is a list of `Piece`s in its own frame: origin in the middle of its underside, z up. A piece may be shown, solid
(a primitive that hands touch; meshes are never solid) or both. The things themselves are in catalogue.py and fixtures.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pretrain.clips.sources.synthetic.meshes import Mesh, add_mesh

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.75, 0.10, 0.09),
    "blue": (0.10, 0.22, 0.70),
    "green": (0.10, 0.50, 0.16),
    "yellow": (0.90, 0.75, 0.12),
    "orange": (0.90, 0.42, 0.07),
    "purple": (0.42, 0.14, 0.55),
    "pink": (0.90, 0.45, 0.60),
    "white": (0.90, 0.90, 0.87),
    "black": (0.09, 0.09, 0.10),
    "grey": (0.47, 0.48, 0.50),
}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One shape. `size` follows MuJoCo's half-size convention: box (x, y, z), cylinder (r, half), sphere (r)."""

    shape: str  # box, cylinder, sphere, ellipsoid, capsule or mesh
    size: tuple[float, ...] = ()
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    euler: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mesh: Mesh | None = None
    rgb: tuple[float, float, float] = (0.5, 0.5, 0.5)
    alpha: float = 1.0
    shininess: float = 0.3
    texture: str | None = None  # name of a texture of the scene
    shown: bool = True
    solid: bool = True
    moving: bool = False  # belongs to the part that the joint moves
    grip: bool = False  # of a solid piece: what a hand takes hold of, or presses


@dataclass(frozen=True, kw_only=True)
class Joint:
    """The joint of an articulated thing, in the thing's frame."""

    kind: str  # "hinge" or "slide"
    axis: tuple[float, float, float]
    anchor: tuple[float, float, float]
    limit: float  # the value (rad or m) of the fully opened, pressed or turned state; 0 is the state at rest


@dataclass(frozen=True, kw_only=True)
class ObjectModel:
    """What a scene and a plan must know of a thing. Lengths in metres."""

    category: str
    label: str
    pieces: tuple[Piece, ...]
    height: float
    radius: float  # of the footprint
    half_width: float  # half of what a hand closes on, across the fingers
    grasp: str = "none"  # "side", "top" or "none"
    grasp_height: float = 0.0  # of the grasp's middle
    stackable: bool = False  # a flat underside, small enough to be stood on others
    base_radius: float = 0.0  # > 0: a flat top of this radius at `base_height`
    base_height: float = 0.0
    opening_radius: float = 0.0  # > 0: a container open at the top
    pours: bool = False
    handle: tuple[float, float, float] = (0.0, 0.0, 0.0)  # middle of what is gripped or pressed, joint at rest
    joint: Joint | None = None
    extra: dict[str, float] = field(default_factory=dict)


def shade_of(rng: np.random.Generator, colour: str) -> tuple[float, float, float]:
    """A random shade of a named colour."""
    rgb = np.clip(np.array(COLOURS[colour]) * rng.uniform(0.85, 1.15) + rng.uniform(-0.02, 0.02, 3), 0.02, 1.0)
    return (float(rgb[0]), float(rgb[1]), float(rgb[2]))


def random_colour(rng: np.random.Generator) -> tuple[str, tuple[float, float, float]]:
    """A name of COLOURS and a shade of it."""
    name = str(rng.choice(list(COLOURS)))
    return name, shade_of(rng, name)


def add_object(spec, name: str, model: ObjectModel) -> None:
    """Adds a thing as the mocap body `name`, its moving part as the body "<name>/part" with the joint "<name>/joint"."""
    import mujoco

    body = spec.worldbody.add_body(name=name, mocap=True)
    part = None
    if model.joint:
        part = body.add_body(name=f"{name}/part")
        part.explicitinertial, part.mass, part.inertia, part.ipos = True, 0.1, [1e-3] * 3, [0, 0, 0]
        kind = mujoco.mjtJoint.mjJNT_HINGE if model.joint.kind == "hinge" else mujoco.mjtJoint.mjJNT_SLIDE
        part.add_joint(name=f"{name}/joint", type=kind, axis=model.joint.axis, pos=model.joint.anchor)
    for number, piece in enumerate(model.pieces):
        geom = (part if piece.moving else body).add_geom(
            name=f"{name}/{'solid' if piece.solid else 'shown'} {number}{' grip' if piece.grip else ''}",
            type=getattr(mujoco.mjtGeom, f"mjGEOM_{piece.shape.upper()}"),
            pos=piece.position,
            quat=_quat_from_euler(piece.euler),
            contype=0,
            conaffinity=0,
            group=1 if piece.shown else 4,
        )
        if piece.mesh is not None:
            geom.meshname = add_mesh(spec, f"{name}/{number}", piece.mesh, smooth=False)
        else:
            geom.size = [*piece.size, *([0.0] * (3 - len(piece.size)))]
        if piece.shown:
            material = spec.add_material(name=f"{name}/{number}", rgba=[*piece.rgb, piece.alpha])
            material.specular, material.shininess = piece.shininess, piece.shininess
            if piece.texture:
                material.textures[1] = piece.texture
            geom.material = material.name


def add_shadow(spec, name: str, model: ObjectModel) -> None:
    """Adds the soft dark spot under a thing, as the mocap body `name`: two translucent layers, darkest in the middle."""
    import mujoco

    body = spec.worldbody.add_body(name=name, mocap=True)
    half = np.array([model.radius, model.radius])
    for piece in model.pieces:
        if piece.shape == "box" and piece.solid and not piece.moving:
            half = np.array(piece.size[:2])
            break
        if piece.shape == "cylinder" and piece.euler[1]:
            half = np.array([piece.size[1], piece.size[0]])
            break
    for layer, (grow, alpha) in enumerate(((0.006, 0.22), (0.020, 0.16))):
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_ELLIPSOID,
            size=[*(half * 1.12 + grow), 0.0003],
            pos=[0.0, 0.0, 0.0008 - 0.0004 * layer],
            rgba=[0.0, 0.0, 0.0, alpha],
            contype=0,
            conaffinity=0,
            group=1,
        )


def _quat_from_euler(euler: tuple[float, float, float]) -> np.ndarray:
    """wxyz of the rotation about x, then y, then z (fixed axes)."""
    from scipy.spatial.transform import Rotation

    return np.roll(Rotation.from_euler("xyz", euler).as_quat(), 1)

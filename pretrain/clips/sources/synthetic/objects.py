"""The movable things of a scene: procedural ones, and the meshes that robosuite installs.

A thing is a list of `Piece`s in its own frame: origin in the middle of its underside, z up. A piece may be shown, solid
(a primitive that hands touch; meshes are never solid) or both. `make_object` draws one thing of a category.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pretrain.clips.sources.synthetic.meshes import Mesh, add_mesh, installed_package, joined, lathe, read_obj, tube

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


def _jittered(rng: np.random.Generator, colour: str) -> tuple[float, float, float]:
    rgb = np.clip(np.array(COLOURS[colour]) * rng.uniform(0.85, 1.15) + rng.uniform(-0.02, 0.02, 3), 0.02, 1.0)
    return (float(rgb[0]), float(rgb[1]), float(rgb[2]))


def random_colour(rng: np.random.Generator) -> tuple[str, tuple[float, float, float]]:
    """A name of COLOURS and a shade of it."""
    name = str(rng.choice(list(COLOURS)))
    return name, _jittered(rng, name)


@functools.cache
def _installed_mesh(name: str) -> Mesh:
    """A robosuite object, stood upright with its underside at z = 0."""
    path = installed_package("robosuite") / "models" / "assets" / "objects" / "meshes" / f"{name}.obj"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; install it with: pip install 'egoarm[robots]'")
    mesh = read_obj(path)
    low, high = mesh.bounds
    return mesh.shifted(-np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]))


def _installed(rng: np.random.Generator, name: str, category: str, *, scale: float, colour: str | None, round_: bool):
    """(pieces, half extents, colour) of a robosuite mesh with a primitive to touch."""
    mesh = _installed_mesh(name).scaled(scale)
    low, high = mesh.bounds
    half = (high - low) / 2
    if colour is None:
        colour, rgb = random_colour(rng)
    else:
        rgb = _jittered(rng, colour)
    centre = (0.0, 0.0, float(half[2]))
    if round_:
        solid = Piece(shape="cylinder", size=(float(half[:2].max()), float(half[2])), position=centre, shown=False)
    else:
        solid = Piece(shape="box", size=tuple(float(value) for value in half), position=centre, shown=False)
    shown = Piece(shape="mesh", mesh=replace(mesh, texcoords=None), rgb=rgb, solid=False, shininess=0.5)
    return (shown, solid), half, colour


def _can(rng: np.random.Generator) -> ObjectModel:
    pieces, half, colour = _installed(rng, "can", "can", scale=rng.uniform(1.25, 1.4), colour=None, round_=True)
    radius, height = float(half[0]), float(2 * half[2])
    return ObjectModel(
        category="can",
        label=f"{colour} can",
        pieces=pieces,
        height=height,
        radius=radius,
        half_width=radius,
        grasp="side",
        grasp_height=0.55 * height,
        stackable=True,
        base_radius=radius * 0.8,
        base_height=height,
    )


def _bottle(rng: np.random.Generator) -> ObjectModel:
    pieces, half, colour = _installed(rng, "bottle", "bottle", scale=rng.uniform(1.05, 1.2), colour=None, round_=True)
    radius, height = float(half[0]), float(2 * half[2])
    body = replace(pieces[1], size=(radius, 0.30 * height), position=(0.0, 0.0, 0.30 * height))
    neck = replace(pieces[1], size=(0.4 * radius, 0.19 * height), position=(0.0, 0.0, 0.80 * height))
    return ObjectModel(
        category="bottle",
        label=f"{colour} bottle",
        pieces=(pieces[0], body, neck),
        height=height,
        radius=radius,
        half_width=radius,
        grasp="side",
        grasp_height=0.36 * height,
        pours=True,
        extra={"lip": 0.35 * radius},
    )


def _milk(rng: np.random.Generator) -> ObjectModel:
    colour = str(rng.choice(["white", "blue", "red", "green"]))
    pieces, half, colour = _installed(
        rng, "milk", "milk carton", scale=rng.uniform(1.15, 1.3), colour=colour, round_=False
    )
    height = float(2 * half[2])
    return ObjectModel(
        category="milk carton",
        label=f"{colour} milk carton",
        pieces=pieces,
        height=height,
        radius=float(np.hypot(half[0], half[1])),
        half_width=float(half[1]),
        grasp="side",
        grasp_height=0.45 * height,
        pours=True,
    )


def _cereal(rng: np.random.Generator) -> ObjectModel:
    colour = str(rng.choice(["yellow", "orange", "red", "blue", "purple"]))
    pieces, half, colour = _installed(
        rng, "cereal", "cereal box", scale=rng.uniform(1.15, 1.35), colour=colour, round_=False
    )
    low, high = pieces[0].mesh.bounds
    band = Piece(
        shape="box",
        size=(float(half[0]) * 0.7, float(half[1]) + 0.0008, float(half[2]) * 0.3),
        position=(0.0, 0.0, float(half[2]) * 1.2),
        rgb=(0.95, 0.93, 0.85),
        solid=False,
    )
    return ObjectModel(
        category="cereal box",
        label=f"{colour} cereal box",
        pieces=(*pieces, band),
        height=float(high[2] - low[2]),
        radius=float(np.hypot(half[0], half[1])),
        half_width=float(half[1]),
        grasp="none",
    )


def _bread(rng: np.random.Generator) -> ObjectModel:
    pieces, half, _ = _installed(rng, "bread", "bread", scale=rng.uniform(0.95, 1.15), colour="orange", round_=False)
    crust = (float(rng.uniform(0.62, 0.75)), float(rng.uniform(0.40, 0.48)), float(rng.uniform(0.18, 0.25)))
    height = float(2 * half[2])
    return ObjectModel(
        category="bread",
        label="bread",
        pieces=(replace(pieces[0], rgb=crust, shininess=0.0), pieces[1]),
        height=height,
        radius=float(np.hypot(half[0], half[1])),
        half_width=float(half[1]),
        grasp="top",
        grasp_height=0.6 * height,
        stackable=True,
    )


def _lemon(rng: np.random.Generator) -> ObjectModel:
    mesh = _installed_mesh("lemon").scaled(rng.uniform(1.15, 1.4) * np.array([1.45, 1.0, 1.0]))
    low, high = mesh.bounds
    half = (high - low) / 2
    green = bool(rng.random() < 0.3)
    return ObjectModel(
        category="lime" if green else "lemon",
        label="lime" if green else "lemon",
        pieces=(
            Piece(
                shape="mesh",
                mesh=replace(mesh, texcoords=None),
                rgb=_jittered(rng, "green" if green else "yellow"),
                solid=False,
            ),
            Piece(
                shape="ellipsoid",
                size=(float(half[0]), float(half[1]), float(half[2])),
                position=(0.0, 0.0, float(half[2])),
                shown=False,
            ),
        ),
        height=float(2 * half[2]),
        radius=float(half[0]),
        half_width=float(half[1]),
        grasp="top",
        grasp_height=float(half[2]),
    )


def _box(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    x, y, z = rng.uniform(0.022, 0.032), rng.uniform(0.022, 0.032), rng.uniform(0.022, 0.036)
    pieces = [Piece(shape="box", size=(x, y, z), position=(0.0, 0.0, z), rgb=rgb)]
    if rng.random() < 0.5:
        other = random_colour(rng)[1]
        pieces.append(
            Piece(shape="box", size=(x + 5e-4, y + 5e-4, z * 0.25), position=(0.0, 0.0, z), rgb=other, solid=False)
        )
    return ObjectModel(
        category="box",
        label=f"{colour} box",
        pieces=tuple(pieces),
        height=2 * z,
        radius=float(np.hypot(x, y)),
        half_width=y,
        grasp="top",
        grasp_height=z,
        stackable=True,
        base_radius=min(x, y),
        base_height=2 * z,
    )


def _book(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    x, y, z = rng.uniform(0.055, 0.075), rng.uniform(0.075, 0.10), rng.uniform(0.010, 0.018)
    return ObjectModel(
        category="book",
        label=f"{colour} book",
        pieces=(
            Piece(shape="box", size=(x, y, z), position=(0.0, 0.0, z), rgb=rgb),
            Piece(
                shape="box",
                size=(x - 0.003, y + 4e-4, z * 0.7),
                position=(0.003, 0.0, z),
                rgb=(0.9, 0.88, 0.8),
                solid=False,
            ),
        ),
        height=2 * z,
        radius=float(np.hypot(x, y)),
        half_width=y,
        base_radius=min(x, y),
        base_height=2 * z,
    )


def _ball(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    radius = float(rng.uniform(0.026, 0.036))
    return ObjectModel(
        category="ball",
        label=f"{colour} ball",
        pieces=(Piece(shape="sphere", size=(radius,), position=(0.0, 0.0, radius), rgb=rgb, shininess=0.6),),
        height=2 * radius,
        radius=radius,
        half_width=radius,
        grasp="top",
        grasp_height=radius,
    )


def _vessel(profile: list[tuple[float, float]], wall: float) -> Mesh:
    """An open vessel: the outside profile upwards, then the inside downwards."""
    inside = [(max(r - wall, 0.0), max(z, wall) if i == 0 else z) for i, (r, z) in enumerate(profile)]
    return lathe([(0.0, 0.0), *profile, *inside[::-1], (0.0, wall)])


def _cup(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    top, height = float(rng.uniform(0.032, 0.038)), float(rng.uniform(0.095, 0.12))
    bottom = top * float(rng.uniform(0.75, 0.95))
    return ObjectModel(
        category="cup",
        label=f"{colour} cup",
        pieces=(
            Piece(
                shape="mesh",
                mesh=_vessel([(bottom, 0.0), (top, height)], 0.003),
                rgb=rgb,
                solid=False,
                shininess=0.6,
            ),
            Piece(shape="cylinder", size=(top, height / 2), position=(0.0, 0.0, height / 2), shown=False),
        ),
        height=height,
        radius=top,
        half_width=top,
        grasp="side",
        grasp_height=0.55 * height,
        opening_radius=top - 0.003,
        pours=True,
    )


def _mug(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    radius, height = float(rng.uniform(0.036, 0.041)), float(rng.uniform(0.09, 0.105))
    angle = np.linspace(-np.pi / 2, np.pi / 2, 11)
    loop = np.stack([radius - 0.003 + 0.026 * np.cos(angle), 0 * angle, height / 2 + 0.30 * height * np.sin(angle)], 1)
    mesh = joined(_vessel([(radius * 0.97, 0.0), (radius, 0.01), (radius, height)], 0.004), tube(loop, 0.0055))
    return ObjectModel(
        category="mug",
        label=f"{colour} mug",
        pieces=(
            Piece(shape="mesh", mesh=mesh, rgb=rgb, solid=False, shininess=0.6),
            Piece(shape="cylinder", size=(radius, height / 2), position=(0.0, 0.0, height / 2), shown=False),
        ),
        height=height,
        radius=radius,
        half_width=radius,
        grasp="side",
        grasp_height=0.55 * height,
        opening_radius=radius - 0.004,
        pours=True,
        extra={"handle_reach": radius + 0.03},
    )


def _bowl(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    radius, height = float(rng.uniform(0.068, 0.085)), float(rng.uniform(0.045, 0.06))
    curve = [(0.45, 0.0), (0.62, 0.10), (0.80, 0.33), (0.93, 0.65), (1.0, 1.0)]
    return ObjectModel(
        category="bowl",
        label=f"{colour} bowl",
        pieces=(
            Piece(
                shape="mesh",
                mesh=_vessel([(radius * r, height * z) for r, z in curve], 0.004),
                rgb=rgb,
                solid=False,
                shininess=0.6,
            ),
            Piece(shape="cylinder", size=(radius, height / 2), position=(0.0, 0.0, height / 2), shown=False),
        ),
        height=height,
        radius=radius,
        half_width=radius,
        opening_radius=radius - 0.006,
    )


def _plate(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    radius, height = float(rng.uniform(0.085, 0.105)), 0.016
    profile = [(0.0, 0.0), (radius * 0.6, 0.0), (radius, height), (radius - 0.003, height), (radius * 0.6, 0.006)]
    return ObjectModel(
        category="plate",
        label=f"{colour} plate",
        pieces=(
            Piece(shape="mesh", mesh=lathe([*profile, (0.0, 0.006)]), rgb=rgb, solid=False, shininess=0.6),
            Piece(shape="cylinder", size=(radius * 0.6, 0.003), position=(0.0, 0.0, 0.003), shown=False),
        ),
        height=height,
        radius=radius,
        half_width=radius,
        base_radius=radius * 0.6,
        base_height=0.006,
    )


def _rolling_pin(rng: np.random.Generator) -> ObjectModel:
    tone = rng.uniform(0.8, 1.2)
    wood, dark = (0.72 * tone, 0.52 * tone, 0.30 * tone), (0.45 * tone, 0.28 * tone, 0.15 * tone)
    radius, half = float(rng.uniform(0.019, 0.024)), float(rng.uniform(0.14, 0.17))
    lying = {"position": (0.0, 0.0, radius), "euler": (0.0, np.pi / 2, 0.0)}
    return ObjectModel(
        category="rolling pin",
        label="rolling pin",
        pieces=(
            Piece(shape="cylinder", size=(radius, half - 0.03), rgb=wood, **lying),
            Piece(shape="capsule", size=(radius * 0.6, half - 0.01), rgb=dark, **lying),
        ),
        height=2 * radius,
        radius=half,
        half_width=radius,
        grasp_height=radius,
    )


def _tube(rng: np.random.Generator) -> ObjectModel:
    """A long cardboard tube, lying."""
    colour, rgb = random_colour(rng)
    radius, half = float(rng.uniform(0.022, 0.027)), float(rng.uniform(0.13, 0.15))
    lying = {"position": (0.0, 0.0, radius), "euler": (0.0, np.pi / 2, 0.0)}
    return ObjectModel(
        category="tube",
        label=f"{colour} tube",
        pieces=(
            Piece(shape="cylinder", size=(radius, half), rgb=rgb, **lying),
            Piece(shape="cylinder", size=(radius + 0.001, 0.02), rgb=random_colour(rng)[1], solid=False, **lying),
        ),
        height=2 * radius,
        radius=half,
        half_width=radius,
        grasp_height=radius,
    )


CATEGORIES: dict[str, Callable[[np.random.Generator], ObjectModel]] = {
    "can": _can,
    "bottle": _bottle,
    "milk carton": _milk,
    "cereal box": _cereal,
    "bread": _bread,
    "lemon": _lemon,
    "box": _box,
    "book": _book,
    "ball": _ball,
    "cup": _cup,
    "mug": _mug,
    "bowl": _bowl,
    "plate": _plate,
    "rolling pin": _rolling_pin,
    "tube": _tube,
}
SIDE_GRASPED = ("can", "bottle", "milk carton", "cup", "mug")
TOP_GRASPED = ("bread", "lemon", "box", "ball")
LONG = ("rolling pin", "tube")
GRASPED = SIDE_GRASPED + TOP_GRASPED


def make_object(category: str, rng: np.random.Generator) -> ObjectModel:
    """Draws a thing of `category`, a key of CATEGORIES."""
    return CATEGORIES[category](rng)


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


def _quat_from_euler(euler: tuple[float, float, float]) -> np.ndarray:
    """wxyz of the rotation about x, then y, then z (fixed axes)."""
    from scipy.spatial.transform import Rotation

    return np.roll(Rotation.from_euler("xyz", euler).as_quat(), 1)

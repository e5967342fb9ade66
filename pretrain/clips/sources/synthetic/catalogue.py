"""The loose things of a scene: procedural ones, and the meshes that robosuite installs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pretrain.clips.sources.synthetic.meshes import Mesh, installed_package, joined, lathe, read_obj, tube
from pretrain.clips.sources.synthetic.objects import ObjectModel, Piece, random_colour, shade_of


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
        rgb = shade_of(rng, colour)
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
                rgb=shade_of(rng, "green" if green else "yellow"),
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

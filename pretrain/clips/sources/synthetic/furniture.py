"""What stands around in front of a robot arm: cubes, nuts, pegs, tools, bins, and pieces of furniture with moving parts.

Like the things of catalogue.py and fixtures.py, with their front towards -y. `half_width` is half of what a gripper closes
on, along y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pretrain.clips.sources.synthetic.arm import grey, vivid
from pretrain.clips.sources.synthetic.fixtures import _bar, _box, _button, _cabinet, _chest, _drawer, _knob
from pretrain.clips.sources.synthetic.objects import Joint, ObjectModel, Piece, random_colour

Make = Callable[[np.random.Generator], ObjectModel]


def scaled(model: ObjectModel, factor: float) -> ObjectModel:
    """A fixture made larger or smaller all over; its handle's bar with it."""

    def grow(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(float(value) * factor for value in values)

    joint = model.joint
    if joint is not None:
        limit = joint.limit * (factor if joint.kind == "slide" else 1.0)
        joint = replace(joint, anchor=grow(joint.anchor), limit=limit)
    return replace(
        model,
        pieces=tuple(replace(piece, size=grow(piece.size), position=grow(piece.position)) for piece in model.pieces),
        height=model.height * factor,
        radius=model.radius * factor,
        half_width=model.half_width * factor,
        handle=grow(model.handle),
        joint=joint,
        extra={name: value * factor for name, value in model.extra.items()},
    )


# ---------------------------------------------------------------------------------------------- loose things


def _cube(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    half = float(rng.uniform(0.018, 0.036))
    tall = half * float(rng.choice([1.0, 1.0, rng.uniform(0.6, 1.6)]))
    return ObjectModel(
        category="cube",
        label=f"{colour} {'cube' if tall == half else 'block'}",
        pieces=(Piece(shape="box", size=(half, half, tall), position=(0, 0, tall), rgb=rgb),),
        height=2 * tall,
        radius=half * 1.42,
        half_width=half,
        grasp="top",
        stackable=True,
        base_radius=half,
        base_height=2 * tall,
    )


def _puck(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    radius, half = float(rng.uniform(0.02, 0.036)), float(rng.uniform(0.012, 0.05))
    return ObjectModel(
        category="cylinder",
        label=f"{colour} cylinder",
        pieces=(Piece(shape="cylinder", size=(radius, half), position=(0, 0, half), rgb=rgb),),
        height=2 * half,
        radius=radius,
        half_width=radius,
        grasp="top",
        stackable=True,
        base_radius=radius,
        base_height=2 * half,
    )


def _sphere(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    radius = float(rng.uniform(0.02, 0.038))
    return ObjectModel(
        category="ball",
        label=f"{colour} ball",
        pieces=(Piece(shape="sphere", size=(radius,), position=(0, 0, radius), rgb=rgb, shininess=0.5),),
        height=2 * radius,
        radius=radius,
        half_width=radius,
        grasp="top",
    )


def _ring(sides: int, inner: float, outer: float, half: float, rgb) -> list[Piece]:
    """A nut: a ring of boxes."""
    middle, thick = (inner + outer) / 2, (outer - inner) / 2
    long = outer * np.tan(np.pi / sides)
    return [
        Piece(
            shape="box",
            size=(thick, float(long), half),
            position=(float(middle * np.cos(angle)), float(middle * np.sin(angle)), half),
            euler=(0.0, 0.0, float(angle)),
            rgb=rgb,
        )
        for angle in 2 * np.pi * np.arange(sides) / sides
    ]


def _nut(rng: np.random.Generator) -> ObjectModel:
    """A ring, square or round, with a stick as its handle; the stick is what is gripped."""
    colour, rgb = random_colour(rng)
    inner = float(rng.uniform(0.022, 0.03))
    outer, half = inner + float(rng.uniform(0.01, 0.018)), float(rng.uniform(0.01, 0.016))
    pieces = _ring(int(rng.choice([4, 8])), inner, outer, half, rgb)
    reach = outer + float(rng.uniform(0.05, 0.08))
    pieces.append(_box((outer - 0.004, -0.012, 0.0), (reach, 0.012, 2 * half), rgb))
    return ObjectModel(
        category="nut",
        label=f"{colour} nut",
        pieces=tuple(pieces),
        height=2 * half,
        radius=reach,
        half_width=0.012,
        grasp="top",
        extra={"grip_x": reach - 0.025},
    )


def _hammer(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    thick = float(rng.uniform(0.010, 0.016))
    half = float(rng.uniform(0.07, 0.11))
    head = float(rng.uniform(0.014, 0.022))
    wide = float(rng.uniform(0.03, 0.05))
    z = head
    # A cylinder takes (radius, half length), and lies along y once it is turned.
    shape, turn = ("cylinder", (np.pi / 2, 0, 0)) if rng.random() < 0.5 else ("box", (0.0, 0.0, 0.0))
    return ObjectModel(
        category="hammer",
        label=f"{colour} hammer",
        pieces=(
            Piece(shape="capsule", size=(thick, half), position=(0, 0, z), euler=(0, np.pi / 2, 0), rgb=rgb),
            Piece(
                shape=shape,
                size=(head, wide, head),
                position=(half, 0, z),
                euler=turn,
                rgb=grey(rng, 0.1, 0.6),
                shininess=0.7,
            ),
        ),
        height=2 * head,
        radius=half + head,
        half_width=thick,
        grasp="top",
        extra={"grip_x": -0.3 * half},
    )


def _kettle(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    radius, half = float(rng.uniform(0.05, 0.075)), float(rng.uniform(0.04, 0.06))
    dark = grey(rng, 0.03, 0.3)
    top = 2 * half
    bow = top + float(rng.uniform(0.06, 0.08))
    return ObjectModel(
        category="kettle",
        label=f"{colour} kettle",
        pieces=(
            Piece(shape="cylinder", size=(radius, half * 0.8), position=(0, 0, half * 0.8), rgb=rgb, shininess=0.8),
            Piece(
                shape="ellipsoid",
                size=(radius, radius, half * 0.8),
                position=(0, 0, 1.6 * half),
                rgb=rgb,
                shininess=0.8,
            ),
            Piece(
                shape="capsule",
                size=(0.011, radius * 0.55),
                position=(radius, 0, 1.4 * half),
                euler=(0, 0.7, 0),
                rgb=rgb,
            ),
            _box((-radius * 0.8, -0.007, top), (-radius * 0.8 + 0.014, 0.007, bow), dark),
            _box((radius * 0.8 - 0.014, -0.007, top), (radius * 0.8, 0.007, bow), dark),
            Piece(
                shape="capsule", size=(0.011, radius * 0.75), position=(0, 0, bow), euler=(0, np.pi / 2, 0), rgb=dark
            ),
        ),
        height=bow + 0.011,
        radius=radius * 1.4,
        half_width=0.011,
        grasp="top",
    )


# ---------------------------------------------------------------------------------------------- things that stay


def _peg(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    wide, half = float(rng.uniform(0.04, 0.09)), float(rng.uniform(0.04, 0.08))
    thick = float(rng.uniform(0.010, 0.02))
    square = rng.random() < 0.5
    size = (thick, thick, half) if square else (thick, half)
    return ObjectModel(
        category="peg",
        label=f"{colour} peg",
        pieces=(
            _box((-wide, -wide, 0), (wide, wide, 0.012), vivid(rng)),
            Piece(shape="box" if square else "cylinder", size=size, position=(0, 0, half), rgb=rgb),
        ),
        height=2 * half,
        radius=wide * 1.42,
        half_width=thick,
    )


def _bin(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    w, d, h = rng.uniform(0.08, 0.16), rng.uniform(0.08, 0.14), rng.uniform(0.04, 0.12)
    t = 0.008
    return ObjectModel(
        category="bin",
        label=f"{colour} bin",
        pieces=(
            _box((-w, -d, 0), (w, d, t), rgb),
            _box((-w, -d, 0), (-w + t, d, h), rgb),
            _box((w - t, -d, 0), (w, d, h), rgb),
            _box((-w, -d, 0), (w, -d + t, h), rgb),
            _box((-w, d - t, 0), (w, d, h), rgb),
        ),
        height=float(h),
        radius=float(np.hypot(w, d)),
        half_width=float(d),
    )


def _shelf(rng: np.random.Generator) -> ObjectModel:
    """An open shelf, or a hood on posts."""
    colour, rgb = random_colour(rng)
    w, d, h = rng.uniform(0.10, 0.24), rng.uniform(0.08, 0.14), rng.uniform(0.15, 0.36)
    boards = int(rng.integers(1, 4))
    pieces = [
        _box((-w, -d, 0), (-w + 0.015, d, h), rgb),
        _box((w - 0.015, -d, 0), (w, d, h), rgb),
        *(_box((-w, -d, h * i / boards - 0.014), (w, d, h * i / boards), rgb) for i in range(1, boards + 1)),
    ]
    if rng.random() < 0.5:
        pieces.append(_box((-w, d - 0.01, 0), (w, d, h), grey(rng)))
    return ObjectModel(
        category="shelf",
        label=f"{colour} shelf",
        pieces=tuple(pieces),
        height=float(h),
        radius=float(np.hypot(w, d)),
        half_width=float(d),
    )


def _stove(rng: np.random.Generator) -> ObjectModel:
    colour, rgb = random_colour(rng)
    w, d, h = rng.uniform(0.16, 0.26), rng.uniform(0.12, 0.2), rng.uniform(0.03, 0.16)
    dark, metal = grey(rng, 0.03, 0.25), grey(rng, 0.3, 0.9)
    pieces = [_box((-w, -d, 0), (w, d, h), rgb)]
    for x in (-0.5, 0.5):
        for y in (-0.45, 0.45):
            pieces.append(
                Piece(
                    shape="cylinder",
                    size=(0.36 * float(min(w, d)), 0.004),
                    position=(x * w, y * d, h + 0.004),
                    rgb=dark,
                )
            )
    panel = float(rng.uniform(0.05, 0.16)) if rng.random() < 0.5 else 0.0
    if panel:
        pieces.append(_box((-w, d - 0.02, h), (w, d, h + panel), metal))
    knob_z = h + panel / 2 if panel else h / 2
    knob_y = d - 0.03 if panel else -d - 0.01
    for x in np.linspace(-0.7, 0.7, int(rng.integers(2, 5))):
        pieces.append(
            Piece(
                shape="cylinder",
                size=(0.014, 0.012),
                position=(float(x * w), float(knob_y), float(knob_z)),
                euler=(np.pi / 2, 0, 0),
                rgb=dark,
            )
        )
    return ObjectModel(
        category="stove",
        label=f"{colour} stove",
        pieces=tuple(pieces),
        height=float(h + panel),
        radius=float(np.hypot(w, d)),
        half_width=float(d),
    )


def _microwave(rng: np.random.Generator) -> ObjectModel:
    """A box with a door hinged on one side, a dark window, a bar as its handle and a panel of buttons."""
    colour, rgb = random_colour(rng)
    s = float(rng.choice([-1.0, 1.0]))
    w, d, h = rng.uniform(0.15, 0.22), rng.uniform(0.10, 0.15), rng.uniform(0.14, 0.22)
    dark, metal = grey(rng, 0.02, 0.2), grey(rng, 0.2, 0.9)
    t, split = 0.012, 0.55 * w
    low, high = sorted((-s * split, s * w))
    grip = -s * (split - 0.02)
    front = -d - 0.018
    pieces = [
        _box((-w, -d, 0), (w, d, t), rgb),
        _box((-w, -d, h - t), (w, d, h), rgb),
        _box((-w, -d, 0), (-w + t, d, h), rgb),
        _box((w - t, -d, 0), (w, d, h), rgb),
        _box((-w, d - t, 0), (w, d, h), dark),
        _box(tuple_of(sorted((-s * w, -s * split))[0], -d, 0), tuple_of(sorted((-s * w, -s * split))[1], d, h), rgb),
        _box((low, front, 0.004), (high, -d, h - 0.002), rgb, moving=True),
        _box((low + 0.04, front - 0.002, 0.035), (high - 0.025, -d, h - 0.035), dark, moving=True, solid=False),
        Piece(
            shape="capsule",
            size=(0.009, 0.32 * h),
            position=(float(grip), float(front - 0.042), float(h / 2)),
            rgb=metal,
            moving=True,
            grip=True,
            shininess=0.8,
        ),
        _box((grip - 0.006, front - 0.042, 0.22 * h), (grip + 0.006, front, 0.22 * h + 0.012), metal, moving=True),
        _box((grip - 0.006, front - 0.042, 0.78 * h - 0.012), (grip + 0.006, front, 0.78 * h), metal, moving=True),
    ]
    x = -s * (w + split) / 2
    for z in np.linspace(0.3, 0.8, 3):
        pieces.append(_box((x - 0.012, -d - 0.004, z * h - 0.01), (x + 0.012, -d, z * h + 0.01), vivid(rng)))
    return ObjectModel(
        category="microwave",
        label=f"{colour} microwave",
        pieces=tuple(pieces),
        height=float(h),
        radius=float(np.hypot(w, d)),
        half_width=0.009,
        handle=(float(grip), float(front - 0.042), float(h / 2)),
        joint=Joint(
            kind="hinge", axis=(0.0, 0.0, s), anchor=(float(s * w), float(-d), 0.0), limit=float(rng.uniform(0.7, 1.2))
        ),
    )


def _cupboard(rng: np.random.Generator) -> ObjectModel:
    """A kitchen's wall: a back panel, cupboards hung on it over a hood with knobs, and room for a stove under it.

    One door moves: on a hinge, or sliding sideways.
    """
    colour, rgb = random_colour(rng)
    doors = int(rng.integers(2, 5))
    each, d = rng.uniform(0.13, 0.20), rng.uniform(0.07, 0.12)
    w = doors * each / 2
    low, tall = rng.uniform(0.34, 0.50), rng.uniform(0.20, 0.30)
    t = 0.014
    metal, panel, inner = grey(rng, 0.1, 0.9), grey(rng), grey(rng, 0.05, 0.4)
    fronts = [rgb if rng.random() < 0.6 else vivid(rng) for _ in range(doors)]
    moving = int(rng.integers(doors))
    slides = rng.random() < 0.5
    s = float(rng.choice([-1.0, 1.0]))
    pieces = [
        _box((-w, d - t, 0), (w, d, low + tall), panel),
        _box((-w, -d, low), (w, d, low + t), rgb),
        _box((-w, -d, low + tall - t), (w, d, low + tall), rgb),
        _box((-w, d - 2 * t, low), (w, d - t, low + tall), inner),
    ]
    pieces += [
        _box((x - t / 2, -d, low), (x + t / 2, d, low + tall), rgb)
        for x in np.linspace(-w + t / 2, w - t / 2, doors + 1)
    ]
    handle = (0.0, 0.0, 0.0)
    half = float(rng.uniform(0.05, 0.08))
    for number in range(doors):
        x0, x1 = -w + number * each, -w + (number + 1) * each
        moves = number == moving
        lifted = 0.004 + (0.014 if moves and slides else 0.0)  # a sliding door passes before the others
        front = -d - lifted
        pieces.append(
            _box(
                (x0 + 0.003, front - t, low + 0.003),
                (x1 - 0.003, front, low + tall - 0.003),
                fronts[number],
                moving=moves,
            )
        )
        side = s if moves else float(rng.choice([-1.0, 1.0]))
        grip = ((x0 + x1) / 2 - side * (each / 2 - 0.03), front - t - 0.045, low + tall * 0.42)
        grip = tuple(float(value) for value in grip)
        pieces += _bar(grip, half, "z", (0.0, 0.045, 0.0), metal) if moves else _still_bar(grip, half, metal)
        if moves:
            handle = grip
            hinge = ((x1 if s > 0 else x0), -d, 0.0)
    hood = float(rng.uniform(0.05, 0.12))
    if rng.random() < 0.7:
        rgb2 = rgb if rng.random() < 0.4 else vivid(rng)
        deep = float(rng.uniform(0.3, 1.0)) * d
        pieces.append(_box((-0.7 * w, -deep, low - hood), (0.7 * w, d - t, low - 0.002), rgb2))
        for x in np.linspace(-0.5 * w, 0.5 * w, int(rng.integers(2, 6))):
            pieces.append(
                Piece(
                    shape="cylinder",
                    size=(0.013, 0.014),
                    position=(float(x), -deep - 0.012, float(low - hood / 2)),
                    euler=(np.pi / 2, 0, 0),
                    rgb=metal,
                )
            )
    if rng.random() < 0.6:
        top = float(rng.uniform(0.02, 0.12))
        pieces.append(_box((-0.8 * w, -d - 0.05, 0), (0.8 * w, d - t, top), vivid(rng)))
    if slides:
        joint = Joint(
            kind="slide", axis=(s, 0.0, 0.0), anchor=(0.0, 0.0, 0.0), limit=float(rng.uniform(0.6, 0.95) * each)
        )
    else:
        joint = Joint(kind="hinge", axis=(0.0, 0.0, s), anchor=tuple_of(*hinge), limit=float(rng.uniform(0.7, 1.2)))
    return ObjectModel(
        category="cupboard",
        label=f"{colour} cupboard",
        pieces=tuple(pieces),
        height=float(low + tall),
        radius=float(np.hypot(w, d)),
        half_width=0.0075,
        handle=handle,
        joint=joint,
    )


def _still_bar(middle: tuple[float, float, float], half: float, rgb) -> tuple[Piece, ...]:
    return tuple(replace(piece, moving=False, grip=False) for piece in _bar(middle, half, "z", (0.0, 0.045, 0.0), rgb))


def tuple_of(x: float, y: float, z: float) -> tuple[float, float, float]:
    return (float(x), float(y), float(z))


def _without_shared_faces(make: Make) -> Make:
    """Still boxes shrink a little, each by another amount: no two of their faces lie in one plane and flicker."""

    def made(rng: np.random.Generator) -> ObjectModel:
        model = make(rng)
        pieces = [
            replace(piece, size=tuple(max(half - 0.0002 * number, 0.4 * half) for half in piece.size))
            if piece.shape == "box" and not piece.moving
            else piece
            for number, piece in enumerate(model.pieces)
        ]
        return replace(model, pieces=tuple(pieces))

    return made


def _from_fixture(make: Callable[[np.random.Generator, str], ObjectModel], low: float, high: float) -> Make:
    def made(rng: np.random.Generator) -> ObjectModel:
        model = make(rng, str(rng.choice(["left", "right"])))
        return scaled(model, float(rng.uniform(low, high)))

    return made


LOOSE_THINGS: dict[str, Make] = {
    "cube": _cube,
    "cylinder": _puck,
    "ball": _sphere,
    "nut": _nut,
    "hammer": _hammer,
    "kettle": _kettle,
}
STANDING: dict[str, Make] = {
    name: _without_shared_faces(make)
    for name, make in {
        "drawer": _from_fixture(_drawer, 0.75, 1.3),
        "cabinet": _from_fixture(_cabinet, 0.8, 1.5),
        "chest": _from_fixture(_chest, 0.8, 1.3),
        "button": _from_fixture(_button, 0.9, 1.9),
        "knob": _from_fixture(_knob, 0.9, 1.6),
        "microwave": _microwave,
        "cupboard": _cupboard,
        "peg": _peg,
        "bin": _bin,
        "shelf": _shelf,
        "stove": _stove,
    }.items()
}

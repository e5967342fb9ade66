"""Rooms: a table or a kitchen counter with random materials, lights and things on it.

World frame: the top of the table is z = 0; +y looks away from the person, who stands behind the edge at y = EDGE_Y; +x is
to the person's right. Metres.
"""

from __future__ import annotations

import numpy as np

from pretrain.clips.sources.synthetic.hands import SIDES, add_hand
from pretrain.clips.sources.synthetic.objects import ObjectModel, add_object, add_shadow
from pretrain.clips.sources.synthetic.world import World

EDGE_Y = -0.08
TEXTURE_SIZE = 96

# From light to dark, and some in between; linear RGB as the renderer takes it.
SKINS = ((0.93, 0.75, 0.64), (0.87, 0.66, 0.52), (0.76, 0.54, 0.40), (0.58, 0.38, 0.26), (0.40, 0.25, 0.17))


def draw_texture(rng: np.random.Generator, kind: str, base: np.ndarray, other: np.ndarray) -> np.ndarray:
    """uint8[N,N,3] of "wood", "stone", "tiles", "cloth" or "plain"."""
    n = TEXTURE_SIZE
    y, x = np.mgrid[0:n, 0:n] / n
    coarse = rng.random((8, 8))
    smooth = np.kron(coarse, np.ones((n // 8, n // 8)))
    for _ in range(3):
        smooth = sum(np.roll(smooth, (dy, dx), (0, 1)) for dy in (-3, 0, 3) for dx in (-3, 0, 3)) / 9
    grain = rng.random((n, n))
    if kind == "wood":
        rings = np.sin(2 * np.pi * (rng.integers(4, 9) * y + 0.9 * smooth + 0.05 * np.sin(6 * np.pi * x)))
        mix = 0.5 + 0.35 * rings + 0.15 * (np.repeat(grain[:, :1], n, 1) - 0.5)
    elif kind == "stone":
        mix = 0.55 * smooth + 0.45 * (grain > rng.uniform(0.6, 0.85))
    elif kind == "tiles":
        count = int(rng.integers(2, 5))
        cell = np.minimum(x * count % 1, y * count % 1)
        mix = (cell < 0.07).astype(float) + 0.10 * smooth
    elif kind == "cloth":
        count = int(rng.integers(4, 10))
        mix = 0.5 * ((x * count % 1) < 0.5) + (0.5 * ((y * count % 1) < 0.5) if rng.random() < 0.5 else 0.0)
    else:
        mix = 0.15 * smooth + 0.05 * grain
    colour = base + np.clip(mix, 0, 1)[..., None] * (other - base)
    return np.clip(colour * 255, 0, 255).astype(np.uint8)


def _material(spec, rng: np.random.Generator, name: str, kinds: tuple[str, ...], *, repeat: float) -> str:
    import mujoco

    kind = str(rng.choice(kinds))
    if kind == "wood":
        base = np.array([0.62, 0.42, 0.24]) * rng.uniform(0.45, 1.3) + rng.uniform(-0.04, 0.04, 3)
        other = base * rng.uniform(0.6, 0.85)
    else:
        base = np.full(3, rng.uniform(0.25, 0.85)) + rng.uniform(-0.12, 0.12, 3)
        other = np.clip(base * rng.uniform(0.5, 1.25) + rng.uniform(-0.08, 0.08, 3), 0, 1)
    pixels = draw_texture(rng, kind, np.clip(base, 0.03, 0.95), other)
    texture = spec.add_texture(
        name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=TEXTURE_SIZE, height=TEXTURE_SIZE, nchannel=3
    )
    texture.data = pixels.tobytes()
    material = spec.add_material(name=name, texrepeat=[repeat, repeat], texuniform=True)
    material.specular, material.shininess = float(rng.uniform(0, 0.3)), float(rng.uniform(0, 0.5))
    textures = list(material.textures)
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    material.textures = textures
    return name


def _room(spec, rng: np.random.Generator, kind: str) -> None:
    import mujoco

    box = mujoco.mjtGeom.mjGEOM_BOX

    def add(name: str, low, high, material: str) -> None:
        low, high = np.array(low), np.array(high)
        spec.worldbody.add_geom(
            name=name,
            type=box,
            pos=(low + high) / 2,
            size=(high - low) / 2,
            material=material,
            contype=0,
            conaffinity=0,
            group=1,
        )

    top = _material(spec, rng, "top", ("wood", "stone", "plain", "cloth", "wood"), repeat=float(rng.uniform(1.5, 4)))
    wall = _material(spec, rng, "wall", ("plain", "tiles", "stone") if kind == "counter" else ("plain",), repeat=3.0)
    floor = _material(spec, rng, "floor", ("wood", "tiles", "stone"), repeat=1.5)
    add("floor", (-5.0, -3.0, -0.92), (5.0, 4.0, -0.9), floor)
    if kind == "counter":
        back = float(rng.uniform(0.62, 0.75))
        add("support", (-2.5, EDGE_Y, -0.04), (2.5, back, 0.0), top)
        add("front", (-2.5, EDGE_Y + 0.03, -0.9), (2.5, back, -0.04), wall)
        add("wall", (-5.0, back, -0.9), (5.0, back + 0.05, 3.0), wall)
        add("ledge", (-2.5, back - 0.02, 0.0), (2.5, back, float(rng.uniform(0.03, 0.1))), top)
    else:
        width, depth = float(rng.uniform(0.5, 0.8)), float(rng.uniform(0.62, 0.85))
        back = float(rng.uniform(1.1, 1.9))
        add("support", (-width, EDGE_Y, -0.035), (width, depth, 0.0), top)
        for x in (-width + 0.06, width - 0.06):
            add(f"leg {x:.3f}", (x - 0.03, depth - 0.1, -0.9), (x + 0.03, depth - 0.04, -0.035), top)
        add("wall", (-5.0, back, -0.9), (5.0, back + 0.05, 3.0), wall)
        if rng.random() < 0.6:
            x, w = float(rng.uniform(-0.8, 0.8)), float(rng.uniform(0.2, 0.5))
            add("cupboard", (x - w, back - 0.35, -0.9), (x + w, back, float(rng.uniform(-0.3, 0.5))), floor)


def _lights(spec, rng: np.random.Generator) -> None:
    warmth = np.array([1.0, rng.uniform(0.9, 1.0), rng.uniform(0.8, 1.0)])
    spec.worldbody.add_light(
        name="lamp",
        pos=[rng.uniform(-0.8, 0.8), rng.uniform(-0.2, 0.8), rng.uniform(1.2, 2.0)],
        dir=[rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.3), -1.0],
        directional=True,
        castshadow=True,
        diffuse=warmth * rng.uniform(0.45, 0.75),
        specular=[0.25] * 3,
        ambient=[0.0] * 3,
    )
    spec.visual.headlight.ambient = [float(rng.uniform(0.22, 0.40))] * 3
    spec.visual.headlight.diffuse = [float(rng.uniform(0.12, 0.3))] * 3
    spec.visual.headlight.specular = [0.05] * 3


def build_world(rng: np.random.Generator, *, kind: str, things: list[ObjectModel], fov_degrees: float) -> World:
    """Compiles a scene with both hands, a head camera and the things (placed later).

    Args:
        kind: "table" or "counter".
        fov_degrees: the camera's vertical field of view.
    """
    import mujoco

    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.visual.map.znear, spec.visual.map.zfar = 0.02, 8.0
    spec.stat.extent, spec.stat.center = 1.0, [0.0, 0.3, 0.0]
    _room(spec, rng, kind)
    _lights(spec, rng)
    skin = np.append(np.clip(np.array(SKINS[rng.integers(len(SKINS))]) * rng.uniform(0.92, 1.06), 0, 1), 1.0)
    sleeve = str(rng.choice(["long sleeve", "short sleeve", "none"], p=[0.5, 0.3, 0.2]))
    cloth = np.append(rng.uniform(0.05, 0.8, 3), 1.0)
    for side in SIDES:
        add_hand(spec, side, skin_rgba=skin, sleeve=sleeve, sleeve_rgba=cloth)
    for number, thing in enumerate(things):
        add_object(spec, f"object {number}", thing)
        add_shadow(spec, f"shadow {number}", thing)
    head = spec.worldbody.add_body(name="head", mocap=True)
    head.add_camera(name="head", fovy=fov_degrees)
    return World(spec, things)

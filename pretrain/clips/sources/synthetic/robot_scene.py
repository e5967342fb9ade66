"""Rooms in which a robot arm works on things, and somebody stands around: materials, backgrounds and lights drawn anew.

World frame: the top of the table is z = 0, the middle of the work area is x = y = 0; the arm stands at -y of it and faces
+y. Metres. No hands are in the scene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pretrain.clips.sources.synthetic.arm import ArmModel, arm_link_poses, grey, vivid
from pretrain.clips.sources.synthetic.objects import ObjectModel, add_object
from pretrain.clips.sources.synthetic.scene import TEXTURE_SIZE, draw_texture
from pretrain.clips.sources.synthetic.world import World

ARM = "robot arm"
FLOOR_Z = -0.85
PATTERNS = ("wood", "stone", "tiles", "cloth", "plain", "chequered", "gradient")


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rectangle of a table's top (low and high corner, metres) and whether it stands on legs."""

    low: tuple[float, float]
    high: tuple[float, float]
    legs: bool

    def holds(self, x: float, y: float, radius: float) -> bool:
        (x0, y0), (x1, y1) = self.low, self.high
        return x0 + radius < x < x1 - radius and y0 + radius < y < y1 - radius


def _pattern(rng: np.random.Generator, kind: str) -> np.ndarray:
    """uint8[N,N,3] to multiply a colour with: white and something darker."""
    if kind in ("chequered", "gradient"):
        y, x = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE] / TEXTURE_SIZE
        count = int(rng.integers(1, 4))
        mix = (np.floor(2 * count * x) + np.floor(2 * count * y)) % 2 if kind == "chequered" else y
        other = rng.uniform(0.15, 0.9, 3)
        return np.clip(255 * (1 + mix[..., None] * (other - 1)), 0, 255).astype(np.uint8)
    return draw_texture(rng, kind, np.ones(3), np.clip(rng.uniform(0.3, 0.9) + rng.uniform(-0.15, 0.15, 3), 0, 1))


class Painter:
    """Adds materials to a scene: some with one of a few textures, in some scenes none.

    `share` is the part of the large surfaces that carries a texture; small ones do less often.
    """

    def __init__(self, spec, rng: np.random.Generator) -> None:
        import mujoco

        self._spec, self._rng = spec, rng
        self.share = float(rng.choice([0.0, 0.35, 0.85], p=[0.3, 0.3, 0.4]))
        self.emission = float(rng.choice([0.0, 0.0, rng.uniform(0.0, 0.4)]))
        self.textures: list[str] = []
        for number, kind in enumerate(rng.choice(PATTERNS, size=4) if self.share else ()):
            texture = spec.add_texture(
                name=f"pattern {number}",
                type=mujoco.mjtTexture.mjTEXTURE_2D,
                width=TEXTURE_SIZE,
                height=TEXTURE_SIZE,
                nchannel=3,
            )
            texture.data = _pattern(rng, str(kind)).tobytes()
            self.textures.append(texture.name)
        self._number = 0

    def material(self, rgb, *, emission: float = 0.0) -> str:
        """The name of a new material for a large surface."""
        import mujoco

        rng = self._rng
        self._number += 1
        material = self._spec.add_material(name=f"surface {self._number}", rgba=[*rgb, 1.0])
        material.specular, material.shininess = float(rng.uniform(0, 0.4)), float(rng.uniform(0, 0.6))
        material.emission = emission
        if self.textures and rng.random() < self.share:
            repeat = float(rng.uniform(0.7, 4.0))
            material.texrepeat, material.texuniform = [repeat, repeat], True
            textures = list(material.textures)
            textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = str(rng.choice(self.textures))
            material.textures = textures
        return material.name

    def decorated(self, model: ObjectModel) -> ObjectModel:
        """The thing with another shine, and with a texture on some of its shapes."""
        rng = self._rng
        shine = float(rng.uniform(0.0, 0.9))
        texture = str(rng.choice(self.textures)) if self.textures and rng.random() < 0.4 * self.share else None
        return replace(
            model,
            pieces=tuple(
                replace(piece, shininess=shine, texture=texture if rng.random() < 0.7 else None)
                for piece in model.pieces
            ),
        )


def _any_colour(rng: np.random.Generator):
    if rng.random() < 0.3:
        return grey(rng)
    if rng.random() < 0.35:
        tone = float(rng.uniform(0.4, 1.3))
        return (0.62 * tone, 0.43 * tone, 0.26 * tone)
    if rng.random() < 0.5:
        return tuple(float(value) for value in rng.uniform(0.6, 1.0, 3))
    return vivid(rng)


def _room(spec, rng: np.random.Generator, painter: Painter, table: Table, view_from: np.ndarray) -> None:
    """A floor, four walls and a ceiling, far off or near, and the table. `view_from` is the watcher's place."""
    import mujoco

    def add(name: str, low, high, material: str) -> None:
        low, high = np.array(low, float), np.array(high, float)
        spec.worldbody.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=(low + high) / 2,
            size=(high - low) / 2,
            material=material,
            contype=0,
            conaffinity=0,
            group=1,
        )

    emission = float(rng.choice([0.0, rng.uniform(0.2, 0.8)]))
    wide = float(rng.uniform(2.1, 4.5))
    sides = {"-x": -wide, "+x": wide, "-y": -wide, "+y": wide}
    # A wall close behind the table, on a side where nobody stands; never behind the arm's back unless it is clear of it.
    if rng.random() < 0.6:
        axis = int(rng.integers(2))
        away = -float(np.sign(view_from[axis])) or 1.0
        edge = (table.high if away > 0 else table.low)[axis]
        near = abs(edge) + float(rng.uniform(0.02, 0.7))
        if axis == 1 and away < 0:
            near = max(near, 1.05)
        sides[f"{'+' if away > 0 else '-'}{'xy'[axis]}"] = away * near
    one = painter.material(_any_colour(rng), emission=emission)
    materials = [one if rng.random() < 0.6 else painter.material(_any_colour(rng), emission=emission) for _ in range(4)]
    x0, x1, y0, y1 = sides["-x"], sides["+x"], sides["-y"], sides["+y"]
    top = float(rng.uniform(1.9, 3.0))
    add("wall -x", (x0 - 0.05, y0, FLOOR_Z), (x0, y1, top), materials[0])
    add("wall +x", (x1, y0, FLOOR_Z), (x1 + 0.05, y1, top), materials[1])
    add("wall -y", (x0, y0 - 0.05, FLOOR_Z), (x1, y0, top), materials[2])
    add("wall +y", (x0, y1, FLOOR_Z), (x1, y1 + 0.05, top), materials[3])
    add("ceiling", (x0, y0, top), (x1, y1, top + 0.05), materials[0])
    add("floor", (x0, y0, FLOOR_Z - 0.05), (x1, y1, FLOOR_Z), painter.material(_any_colour(rng)))
    board = painter.material(_any_colour(rng))
    (tx0, ty0), (tx1, ty1) = table.low, table.high
    thick = float(rng.uniform(0.02, 0.07))
    add("support", (tx0, ty0, -thick), (tx1, ty1, 0.0), board)
    if rng.random() < 0.25:
        rim, height = painter.material(_any_colour(rng)), float(rng.uniform(0.02, 0.09))
        for name, low, high in (
            ("-x", (tx0 - 0.03, ty0), (tx0, ty1)),
            ("+x", (tx1, ty0), (tx1 + 0.03, ty1)),
            ("+y", (tx0 - 0.03, ty1), (tx1 + 0.03, ty1 + 0.03)),
        ):
            add(f"rim {name}", (*low, -thick), (*high, height), rim)
    under = board if rng.random() < 0.4 else painter.material(_any_colour(rng))
    if table.legs:
        for x in (tx0 + 0.06, tx1 - 0.06):
            for y in (ty0 + 0.06, ty1 - 0.06):
                add(f"leg {x:.3f} {y:.3f}", (x - 0.03, y - 0.03, FLOOR_Z), (x + 0.03, y + 0.03, -thick), under)
    else:
        add("block", (tx0 + 0.02, ty0 + 0.02, FLOOR_Z), (tx1 - 0.02, ty1 - 0.02, -thick), under)


def _lights(spec, rng: np.random.Generator) -> None:
    tint = 1 - rng.uniform(0, 0.35) * rng.random(3)
    strength = float(rng.uniform(0.25, 0.8))
    for number in range(int(rng.integers(1, 3))):
        angle, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 1.2)
        spec.worldbody.add_light(
            name=f"lamp {number}",
            pos=[0.0, 0.0, 2.0],
            dir=[lean * np.cos(angle), lean * np.sin(angle), -1.0],
            directional=True,
            castshadow=number == 0,
            diffuse=tint * strength / (1 + number),
            specular=[float(rng.uniform(0, 0.4))] * 3,
            ambient=[0.0] * 3,
        )
    spec.visual.headlight.ambient = [float(rng.uniform(0.18, 0.5))] * 3
    spec.visual.headlight.diffuse = [float(rng.uniform(0.1, 0.5))] * 3
    spec.visual.headlight.specular = [float(rng.uniform(0, 0.3))] * 3


class RobotWorld(World):
    """A compiled scene with an arm instead of hands; `set_hand` poses its tool.

    Attributes:
        arm: the arm.
        walls: ids of the room's walls.
        arm_geoms: ids of its solid shapes from the elbow on; `tool_geoms` of the hand and the fingers alone.
    """

    def __init__(self, spec, things: list[ObjectModel], arm: ArmModel) -> None:
        import mujoco

        self._mujoco = mujoco
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.things, self.arm = things, arm
        model = self.model
        names = [model.geom(i).name for i in range(model.ngeom)]
        self._body_names = [model.body(i).name for i in range(model.nbody)]
        self._body_of_geom = model.geom_bodyid

        def mocap(name: str) -> int:
            return int(model.body_mocapid[self._body_names.index(name)])

        self._camera = mocap("head")
        self._thing = [mocap(f"object {i}") for i in range(len(things))]
        self._links = {link: mocap(f"{ARM}/{link}") for link in arm.link_models()}
        self._joint = {
            i: int(model.joint(f"object {i}/joint").qposadr[0]) for i, thing in enumerate(things) if thing.joint
        }
        self.thing_geoms = [
            [g for g, name in enumerate(names) if name.startswith(f"object {i}/solid")] for i in range(len(things))
        ]
        self.support = [g for g, name in enumerate(names) if name.startswith("support")]
        self.walls = [g for g, name in enumerate(names) if name.startswith("wall")]

        def of_links(*links: str) -> list[int]:
            starts = tuple(f"{ARM}/{link}/" for link in links)
            return [g for g, name in enumerate(names) if name.startswith(starts)]

        self.tool_geoms = of_links("hand", "finger 0", "finger 1")
        self.arm_geoms = of_links("upper", "fore", "wrist") + self.tool_geoms

    def set_hand(self, side: str, palm: np.ndarray, fingers: np.ndarray, shoulder: np.ndarray | None = None) -> None:
        """Poses the arm by its tool's pose and the distance between its fingers, float64[1].

        Raises:
            Infeasible: out of reach.
        """
        poses = arm_link_poses(self.arm, palm, float(fingers[0]))
        for link, index in self._links.items():
            self._set_mocap(index, poses[link])

    def set_thing(self, index: int, pose: np.ndarray) -> None:
        self._set_mocap(self._thing[index], pose)

    def segmentation_ids(self) -> np.ndarray:
        """uint8[ngeom]: 3 + i thing i, 3 + len(things) the arm, 0 anything else."""
        table = super().segmentation_ids()
        for geom, body in enumerate(self._body_of_geom):
            if self._body_names[body].startswith(f"{ARM}/"):
                table[geom] = 3 + len(self.things)
        return table


def build_robot_world(
    rng: np.random.Generator,
    *,
    arm: ArmModel,
    table: Table,
    things: list[ObjectModel],
    view_from: np.ndarray,
    fov_degrees: float,
) -> RobotWorld:
    """Compiles a scene with an arm, a head camera and the things (placed later)."""
    import mujoco

    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.visual.map.znear, spec.visual.map.zfar = 0.02, 12.0
    spec.stat.extent, spec.stat.center = 1.0, [0.0, 0.0, 0.0]
    painter = Painter(spec, rng)
    _room(spec, rng, painter, table, view_from)
    _lights(spec, rng)
    for link, model in arm.link_models().items():
        add_object(spec, f"{ARM}/{link}", painter.decorated(model) if rng.random() < 0.15 else model)
    for number, thing in enumerate(things):
        add_object(spec, f"object {number}", painter.decorated(thing))
    head = spec.worldbody.add_body(name="head", mocap=True)
    head.add_camera(name="head", fovy=fov_degrees)
    return RobotWorld(spec, things, arm)

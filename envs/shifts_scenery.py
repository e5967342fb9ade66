"""What is drawn over and beside a model without being part of it: patterns on its surfaces, and things that are only seen.

Both are put into the scene of one frame, after it has been filled from the model. No model needs a spare texture or body for it, whoever compiled it,
and there is nothing that the physics could feel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import mujoco
import numpy as np
from jaxtyping import Float64, Int64

_SIDE = 128  # pixels of a pattern
_TILE_M = 0.25  # side of a pattern's tile where it is laid out in metres
# The tables of a drawing context, which a scene's geoms index without a check, have 1000 rows. The last is the sky's; those before it are free in
# any model of reasonable size.
_TABLE_ROWS = 999
_RGB = mujoco.mjtTextureRole.mjTEXROLE_RGB.value
_ROLES = mujoco.mjtTextureRole.mjNTEXROLE.value
_CUBE, _FLAT = (
    0,
    1,
)  # how a pattern lies on a geom: on the six sides about it, or seen along its z axis and by its own coordinates if it has such


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Column and row of each pixel's middle, in [0, 1)."""
    middle = (np.arange(_SIDE) + 0.5) / _SIDE
    u, v = np.meshgrid(middle, middle)
    return u, v


def _checker(squares: int) -> np.ndarray:
    u, v = _grid()
    return ((np.floor(u * squares) + np.floor(v * squares)) % 2).astype(np.float64)


def _stripes(across: int, down: int) -> np.ndarray:
    u, v = _grid()
    return ((u * across + v * down) % 1 < 0.5).astype(np.float64)


def _dots(count: int) -> np.ndarray:
    u, v = _grid()
    return (np.hypot(u * count % 1 - 0.5, v * count % 1 - 0.5) > 0.33).astype(np.float64)


def _bricks(rows: int) -> np.ndarray:
    u, v = _grid()
    row = np.floor(v * rows)
    mortar = (v * rows % 1 < 0.15) | ((u * rows / 2 + 0.5 * (row % 2)) % 1 < 0.08)
    return 1.0 - mortar


def _gradient() -> np.ndarray:
    u, v = _grid()
    return np.abs(2 * ((u + v) % 1) - 1)


def _noise(waves: int, seed: int) -> np.ndarray:
    """Smooth noise that repeats without a seam: a sum of waves of up to `waves` periods, stretched to [0, 1]."""
    random = np.random.default_rng(seed)
    u, v = _grid()
    total = np.zeros_like(u)
    for _ in range(24):
        across, down = random.integers(-waves, waves + 1, size=2)
        total += np.cos(2 * np.pi * (across * u + down * v + random.uniform()))
    return (total - total.min()) / np.ptp(total)


# Each is [side, side], 0 dark and 1 light, and goes on without a seam where it is repeated.
PATTERNS: dict[str, Callable[[], np.ndarray]] = {
    "checker": lambda: _checker(4),
    "fine checker": lambda: _checker(8),
    "stripes": lambda: _stripes(4, 0),
    "diagonal stripes": lambda: _stripes(3, 3),
    "dots": lambda: _dots(4),
    "bricks": lambda: _bricks(4),
    "gradient": _gradient,
    "clouds": lambda: _noise(3, 0),
    "grain": lambda: _noise(12, 1),
    "blotches": lambda: (_noise(4, 2) > 0.5).astype(np.float64),
}


@functools.cache
def _images() -> list[np.ndarray]:
    return [draw() for draw in PATTERNS.values()]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A solid of one colour that is drawn and nothing else.

    Attributes:
        shape: a MuJoCo geom type that is a primitive.
        size: as the geom type has it, metres; 3 numbers, the unused ones 0.
        position, rotation: pose in the world, [3] and [3, 3].
        rgb: its colour.
    """

    shape: mujoco.mjtGeom
    size: tuple[float, float, float]
    position: np.ndarray
    rotation: np.ndarray
    rgb: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Patterns on a model's geoms.

    Attributes:
        pattern: for each geom the index of its pattern in PATTERNS.
        contrast: dark parts have 1 - contrast of the brightness of light ones.
        texture_colour: mean colour of each material's texture, 1 where it has none; `mean_texture_colours`.
    """

    pattern: Int64[np.ndarray, " ngeom"]
    contrast: float
    texture_colour: Float64[np.ndarray, "nmat 3"]


@dataclass(frozen=True, kw_only=True)
class Scenery:
    """What an episode's frames show besides the model. Each distractor is the parts that it is made of."""

    surfaces: Surfaces | None = None
    distractors: tuple[tuple[Part, ...], ...] = ()

    def draw_into(self, scene: mujoco.MjvScene, bank: PatternBank) -> None:
        """Add to a scene that `mjv_updateScene` has just filled. In a segmentation, distractors are no geom of the model: -1."""
        if self.surfaces is not None:
            _cover(scene, self.surfaces, bank)
        for distractor in self.distractors:
            for part in distractor:
                _append(scene, part)


def mean_texture_colours(model: mujoco.MjModel) -> np.ndarray:
    """Mean colour of each material's texture, [nmat, 3]; 1 where it has none."""
    colours = np.ones((model.nmat, 3))
    for material, texture in enumerate(model.mat_texid[:, _RGB]):
        if texture >= 0:
            channels = int(model.tex_nchannel[texture])
            pixels = int(model.tex_height[texture]) * int(model.tex_width[texture])
            start = int(model.tex_adr[texture])
            data = model.tex_data[start : start + pixels * channels].reshape(pixels, channels)
            colours[material] = data[:, : min(channels, 3)].mean(axis=0) / 255
    return colours


def _cover(scene: mujoco.MjvScene, surfaces: Surfaces, bank: PatternBank) -> None:
    materials = bank.materials(surfaces.contrast)
    means = bank.means(surfaces.contrast)
    for geom in scene.geoms[: scene.ngeom]:
        if geom.objtype != mujoco.mjtObj.mjOBJ_GEOM:
            continue
        pattern = surfaces.pattern[geom.objid]
        colour = geom.rgba[:3]
        if geom.matid >= 0:
            colour = colour * surfaces.texture_colour[geom.matid]
        # Divided by the pattern's own mean, as far as the brightest channel allows: the surface keeps its hue, and nearly its brightness.
        geom.rgba[:3] = colour / max(means[pattern], colour.max())
        geom.matid = materials[pattern, _FLAT if _lies_flat(geom) else _CUBE]


def _lies_flat(geom: mujoco.MjvGeom) -> bool:
    if geom.texcoord or geom.type in (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD):
        return True
    return geom.type == mujoco.mjtGeom.mjGEOM_BOX and geom.size[2] < 0.25 * min(geom.size[0], geom.size[1])


def _append(scene: mujoco.MjvScene, part: Part) -> None:
    if scene.ngeom >= scene.maxgeom:
        raise RuntimeError(f"the scene is full: {scene.maxgeom} geoms; use a weaker shift of distractors")
    geom = scene.geoms[scene.ngeom]
    mujoco.mjv_initGeom(
        geom,
        part.shape.value,
        np.array(part.size, np.float64),
        np.asarray(part.position, np.float64),
        np.asarray(part.rotation, np.float64).ravel(),
        np.array([*part.rgb, 1.0], np.float32),
    )
    # Not decoration, which casts no shadow; with a number of its own, without which depth would look through it.
    geom.category = mujoco.mjtCatBit.mjCAT_STATIC.value
    geom.objtype, geom.objid = mujoco.mjtObj.mjOBJ_UNKNOWN.value, -1
    geom.segid = scene.ngeom
    scene.ngeom += 1


@dataclass
class _Uploaded:
    context: mujoco.MjrContext
    materials: np.ndarray  # [patterns, 2]
    means: np.ndarray  # [patterns]


@dataclass
class PatternBank:
    """PATTERNS in the memory of a drawing context, uploaded at first need for each contrast.

    The textures belong to small contexts of their own in the same GL context; the main one only refers to them, from the free end of its tables.
    """

    main: mujoco.MjrContext
    _uploaded: dict[float, _Uploaded] = field(default_factory=dict)

    def materials(self, contrast: float) -> np.ndarray:
        """What a scene's geom must take as `matid`, int [patterns, 2], for each pattern as a cube and flat."""
        return self._at(contrast).materials

    def means(self, contrast: float) -> np.ndarray:
        """Mean brightness of each pattern, [patterns]."""
        return self._at(contrast).means

    def free(self) -> None:
        """Free the textures; with the GL context current."""
        for uploaded in self._uploaded.values():
            uploaded.context.free()
        self._uploaded = {}

    def _at(self, contrast: float) -> _Uploaded:
        if contrast not in self._uploaded:
            self._uploaded[contrast] = self._upload(contrast)
        return self._uploaded[contrast]

    def _upload(self, contrast: float) -> _Uploaded:
        images = [1 - contrast * (1 - image) for image in _images()]
        model = _texture_model(images)
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        # Making a context binds its own framebuffer.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self.main)
        main, count = self.main, 2 * len(images)
        last = _TABLE_ROWS - count * len(self._uploaded)
        rows = np.arange(last - count, last)
        assert main.ntexture <= rows[0] and (main.mat_texid[rows[0] * _ROLES : last * _ROLES] <= 0).all(), "free rows"
        main.texture[rows] = context.texture[:count]
        main.textureType[rows] = context.textureType[:count]
        main.mat_texid[rows * _ROLES + _RGB] = rows
        main.mat_texuniform[rows] = np.tile([0, 1], len(images))
        main.mat_texrepeat[rows[0] * 2 : last * 2] = 2 / _TILE_M  # MuJoCo repeats once in two metres at 1
        return _Uploaded(
            context=context, materials=rows.reshape(-1, 2), means=np.array([image.mean() for image in images])
        )


def _texture_model(images: list[np.ndarray]) -> mujoco.MjModel:
    """A model of nothing but textures: each image as a cube's six sides, then flat."""
    spec = mujoco.MjSpec()
    spec.visual.global_.offwidth = spec.visual.global_.offheight = 8
    spec.visual.quality.offsamples = spec.visual.quality.shadowsize = 0
    for index in range(len(images)):
        for shape, kind in (("cube", mujoco.mjtTexture.mjTEXTURE_CUBE), ("flat", mujoco.mjtTexture.mjTEXTURE_2D)):
            spec.add_texture(
                name=f"{shape} {index}",
                type=kind,
                builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
                width=_SIDE,
                height=_SIDE,
            )
    spec.worldbody.add_geom(size=[0.1, 0.1, 0.1])
    model = spec.compile()
    for index, image in enumerate(images):
        pixels = np.repeat(np.rint(255 * image).astype(np.uint8)[..., None], 3, axis=-1)
        for texture, sides in ((2 * index, 6), (2 * index + 1, 1)):
            start, length = int(model.tex_adr[texture]), sides * pixels.size
            assert (model.tex_height[texture], model.tex_width[texture]) == (sides * _SIDE, _SIDE)
            model.tex_data[start : start + length] = np.tile(pixels.ravel(), sides)
    return model

"""Named levels of appearance, redrawn on each reset, and named shifts away from them.

A level (`varied-1`) is a condition to train under: colours, lights and camera poses vary a little from episode to episode. A shift is held out, to
measure what a change that was never trained on does: one kind of change alone, at one of three strengths. `parse_level` reads both from one name:
`varied-1+camera-2` is the level varied-1 with its cameras then moved by 20 degrees.

The level's draws and each kind of shift's come from streams of their own: placements, physics, what the level draws and what another shift draws
are the same with and without a shift, and the strengths of one kind differ in size and not in direction. What changes is read from the model on
each frame, or drawn into the scene after it (`envs.shifts_scenery`); meshes and textures in the GL context stay.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import mujoco
import numpy as np

from envs.shifts_camera import orbit_camera
from envs.shifts_distractors import place_distractors
from envs.shifts_scenery import PATTERNS, Scenery, Surfaces, mean_texture_colours
from envs.shifts_view import fixed_cameras

# Separates the appearance's stream of random numbers from the placement's, which suites seed with the bare episode seed.
_APPEARANCE_STREAM = 0xA99EA7


@dataclass(frozen=True, kw_only=True)
class CameraShift:
    """Each camera that is fixed to the world goes round what it looks at by `orbit_deg`, in a direction drawn for each, and `back_m` away from it.

    Cameras on a hand stay: the hand sees its work from where it always did. Away and never nearer, so that the task stays in view.
    """

    kind: ClassVar[str] = "camera"
    stream: ClassVar[int] = 1
    orbit_deg: float
    back_m: float


@dataclass(frozen=True, kw_only=True)
class LightShift:
    """All lights are `gain` times as bright, or as dark, and of one tint whose weakest channel is 1 - `tint`; each is turned by `turn_deg`.

    A light that stands somewhere goes round the work by that angle.
    """

    kind: ClassVar[str] = "light"
    stream: ClassVar[int] = 2
    gain: float
    tint: float
    turn_deg: float


@dataclass(frozen=True, kw_only=True)
class ColourShift:
    """The share `mix` of a saturated colour is mixed into that of each material and each geom without one; levels mix in muted ones."""

    kind: ClassVar[str] = "colour"
    stream: ClassVar[int] = 3
    mix: float


@dataclass(frozen=True, kw_only=True)
class TextureShift:
    """Each surface shows a pattern in place of its texture, in its own mean colour; dark parts have 1 - `contrast` of the brightness of light ones."""

    kind: ClassVar[str] = "texture"
    stream: ClassVar[int] = 4
    contrast: float


@dataclass(frozen=True, kw_only=True)
class DistractorShift:
    """Up to `count` things that are only seen stand in view, where they hide nearly nothing of the task at the start; fewer only where there is no room."""

    kind: ClassVar[str] = "distractors"
    stream: ClassVar[int] = 5
    count: int


Shift = CameraShift | LightShift | ColourShift | TextureShift | DistractorShift

SHIFTS: dict[str, Shift] = {
    "camera-1": CameraShift(orbit_deg=10, back_m=0.02),
    "camera-2": CameraShift(orbit_deg=20, back_m=0.05),
    "camera-3": CameraShift(orbit_deg=40, back_m=0.1),
    "light-1": LightShift(gain=1.2, tint=0.15, turn_deg=15),
    "light-2": LightShift(gain=1.45, tint=0.3, turn_deg=30),
    "light-3": LightShift(gain=1.8, tint=0.45, turn_deg=60),
    "colour-1": ColourShift(mix=0.3),
    "colour-2": ColourShift(mix=0.6),
    "colour-3": ColourShift(mix=1.0),
    "texture-1": TextureShift(contrast=0.25),
    "texture-2": TextureShift(contrast=0.65),
    "texture-3": TextureShift(contrast=0.95),
    "distractors-1": DistractorShift(count=2),
    "distractors-2": DistractorShift(count=5),
    "distractors-3": DistractorShift(count=10),
}


@dataclass(frozen=True, kw_only=True)
class AppearanceLevel:
    """How far an episode's appearance may be from the model's own.

    Attributes:
        colour: share of a random colour mixed into that of each material and each geom without material, in [0, 1].
        untextured: probability that a textured material's geoms show a plain colour instead.
        light_gain: factor on each light's and the headlight's brightness is drawn from [1 / (1 + gain), 1 + gain], log-uniformly.
        light_tint: the light's colour channels are scaled by factors from [1 - tint, 1].
        light_deg: each directional light is turned by up to this about a random axis.
        camera_m: each coordinate of a camera's position moves by up to this.
        camera_deg: the camera turns by up to this about each of its axes.
        shifts: held-out changes on top of all that, at most one of a kind.
    """

    colour: float = 0.0
    untextured: float = 0.0
    light_gain: float = 0.0
    light_tint: float = 0.0
    light_deg: float = 0.0
    camera_m: float = 0.0
    camera_deg: float = 0.0
    shifts: tuple[Shift, ...] = ()

    def __post_init__(self) -> None:
        kinds = [shift.kind for shift in self.shifts]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"one shift of a kind at most, got {' and '.join(kinds)}")


LEVELS: dict[str, AppearanceLevel] = {
    "clean": AppearanceLevel(),
    "varied-1": AppearanceLevel(
        colour=0.4, light_gain=0.25, light_tint=0.1, light_deg=10, camera_m=0.015, camera_deg=1.0
    ),
    "varied-2": AppearanceLevel(
        colour=1.0, light_gain=0.6, light_tint=0.2, light_deg=25, camera_m=0.03, camera_deg=2.0
    ),
    "varied-3": AppearanceLevel(
        colour=1.0, untextured=0.5, light_gain=1.2, light_tint=0.4, light_deg=50, camera_m=0.06, camera_deg=4.0
    ),
}


def parse_level(name: str) -> AppearanceLevel:
    """The level of a name such as `varied-1` or `varied-1+camera-2+light-1`: a key of LEVELS, then any keys of SHIFTS of different kinds.

    Raises:
        ValueError: an unknown level or shift, a shift without a level, or two shifts of one kind; the text names what there is.
    """
    level, *shifts = name.split("+")
    known = f"The levels are: {', '.join(LEVELS)}; each may be followed by +SHIFT, where the shifts are: {', '.join(SHIFTS)}"
    if level in SHIFTS or (not level and shifts):
        wanted = "+".join(part for part in (level, *shifts) if part)
        raise ValueError(
            f"{name!r} is a shift without the level that it goes on top of: write e.g. varied-1+{wanted}, or clean+{wanted}. {known}"
        )
    if level not in LEVELS:
        raise ValueError(f"unknown appearance level {level!r}; {_hint(level, LEVELS)}{known}")
    for shift in shifts:
        if shift not in SHIFTS:
            raise ValueError(f"unknown shift {shift!r} in the level {name!r}; {_hint(shift, SHIFTS)}{known}")
    chosen = tuple(SHIFTS[shift] for shift in shifts)
    if len({shift.kind for shift in chosen}) < len(chosen):
        raise ValueError(f"the level {name!r} has two shifts of one kind; give one strength of each. {known}")
    return replace(LEVELS[level], shifts=chosen)


def _hint(given: str, known: Sequence[str] | dict) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]}? " if close else ""


_COLOUR_FIELDS = ("mat_rgba", "geom_rgba", "geom_matid")
_LIGHT_FIELDS = ("light_diffuse", "light_ambient", "light_specular", "light_pos", "light_dir")
_CAMERA_FIELDS = ("cam_pos", "cam_quat", "cam_pos0", "cam_poscom0", "cam_mat0")
_HEADLIGHT_FIELDS = ("ambient", "diffuse", "specular")
# MuJoCo's own default: a geom of this colour takes its material's.
_NO_COLOUR = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
_LIGHT_TRIES = 32
_LIGHT_MAX_Z = -0.35  # of a turned light's direction: about 20 degrees above the horizon


class Appearance:
    """Redraws one model's appearance, always starting from what the model looked like when this object was made."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._original = {
            name: getattr(model, name).copy() for name in (*_COLOUR_FIELDS, *_LIGHT_FIELDS, *_CAMERA_FIELDS)
        }
        self._headlight = {name: getattr(model.vis.headlight, name).copy() for name in _HEADLIGHT_FIELDS}
        self._fixed = fixed_cameras(model)

    def restore(self) -> None:
        """Give the model its original appearance back, exactly."""
        for name, value in self._original.items():
            getattr(self._model, name)[:] = value
        for name, value in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = value

    def redraw(self, level: AppearanceLevel, seed: int, data: mujoco.MjData) -> None:
        """Restore the model, then draw the appearance of the episode `seed` at `level`.

        Args:
            data: the episode's first state, after `mj_kinematics`: a camera moves to where the task can still be seen. Its cameras and lights follow.
        """
        self.restore()
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_APPEARANCE_STREAM,)))
        self._draw_colours(level, random)
        self._draw_lights(level, random)
        self._draw_cameras(level, random)
        for shift in level.shifts:
            if isinstance(shift, ColourShift):
                self._shift_colours(shift, _stream(shift, seed))
            elif isinstance(shift, LightShift):
                self._shift_lights(shift, _stream(shift, seed))
            elif isinstance(shift, CameraShift):
                self._shift_cameras(shift, _stream(shift, seed), data)
        mujoco.mj_camlight(self._model, data)

    def scenery(self, level: AppearanceLevel, seed: int, data: mujoco.MjData, cameras: Sequence[str]) -> Scenery | None:
        """What the renderer draws over and beside the model in the episode `seed`; None where the level asks for nothing of the kind.

        Args:
            data: the episode's first state, after `redraw`.
            cameras: names of those that will see it; without any there is nothing to place distractors for.
        """
        scenery = Scenery()
        for shift in level.shifts:
            if isinstance(shift, TextureShift):
                scenery = replace(scenery, surfaces=self._draw_patterns(shift, _stream(shift, seed)))
            elif isinstance(shift, DistractorShift) and cameras:
                ids = [self._model.camera(name).id for name in cameras]
                seen_by = [camera for camera in self._fixed if camera.id in ids]
                distractors = place_distractors(self._model, data, seen_by, shift.count, _stream(shift, seed))
                scenery = replace(scenery, distractors=distractors)
        return scenery if scenery.surfaces or scenery.distractors else None

    def _draw_colours(self, level: AppearanceLevel, random: np.random.Generator) -> None:
        model = self._model
        material_colours = random.uniform(size=(model.nmat, 3))
        geom_colours = random.uniform(size=(model.ngeom, 3))
        plain = random.uniform(size=model.nmat) < level.untextured

        model.mat_rgba[:, :3] += level.colour * (material_colours - model.mat_rgba[:, :3])
        # A geom with a material and no colour of its own follows the material, so that parts of one object stay alike.
        own_colour = (model.geom_matid < 0) | (model.geom_rgba != _NO_COLOUR).any(axis=1)
        model.geom_rgba[own_colour, :3] += level.colour * (geom_colours - model.geom_rgba[:, :3])[own_colour]

        textured = (model.mat_texid >= 0).any(axis=1)
        for geom in np.flatnonzero(model.geom_matid >= 0):
            material = model.geom_matid[geom]
            if plain[material] and textured[material]:
                if not own_colour[geom]:
                    model.geom_rgba[geom] = model.mat_rgba[material]
                model.geom_matid[geom] = -1

    def _draw_lights(self, level: AppearanceLevel, random: np.random.Generator) -> None:
        model = self._model
        lights = model.nlight + 1
        gains = np.exp(random.uniform(-1, 1, size=(lights, 1)) * np.log1p(level.light_gain))
        tints = random.uniform(1 - level.light_tint, 1, size=(lights, 3))
        axes = random.normal(size=(model.nlight, 3))
        angles = np.radians(level.light_deg) * random.uniform(0, 1, size=model.nlight)

        for name in ("light_diffuse", "light_ambient", "light_specular"):
            getattr(model, name)[:] *= (gains * tints)[:-1]
        for name in _HEADLIGHT_FIELDS:
            getattr(model.vis.headlight, name)[:] *= (gains * tints)[-1]
        for light in range(model.nlight):
            turn = np.empty(4)
            mujoco.mju_axisAngle2Quat(turn, axes[light] / np.linalg.norm(axes[light]), angles[light])
            direction = np.empty(3)
            mujoco.mju_rotVecQuat(direction, model.light_dir[light], turn)
            model.light_dir[light] = direction

    def _draw_cameras(self, level: AppearanceLevel, random: np.random.Generator) -> None:
        model = self._model
        shifts = level.camera_m * random.uniform(-1, 1, size=(model.ncam, 3))
        angles = np.radians(level.camera_deg) * random.uniform(-1, 1, size=(model.ncam, 3))
        model.cam_pos[:] += shifts
        model.cam_pos0[:] += shifts  # what cameras that track a body go by
        if not angles.any():
            return
        for camera in range(model.ncam):
            turn = np.array([1.0, 0.0, 0.0, 0.0])
            for axis, angle in zip(np.eye(3), angles[camera], strict=True):
                about_axis = np.empty(4)
                mujoco.mju_axisAngle2Quat(about_axis, axis, angle)
                turn = _product(turn, about_axis)
            model.cam_quat[camera] = _product(model.cam_quat[camera], turn)
            rotation = np.empty(9)
            mujoco.mju_quat2Mat(rotation, turn)
            model.cam_mat0[camera] = (model.cam_mat0[camera].reshape(3, 3) @ rotation.reshape(3, 3)).ravel()

    def _shift_colours(self, shift: ColourShift, random: np.random.Generator) -> None:
        model = self._model
        material_colours, geom_colours = (_saturated(random, count) for count in (model.nmat, model.ngeom))
        model.mat_rgba[:, :3] += shift.mix * (material_colours - model.mat_rgba[:, :3])
        # A geom that follows its material goes on to, even where the level has taken its texture and with it the material away.
        material = self._original["geom_matid"]
        follows = (material >= 0) & (self._original["geom_rgba"] == _NO_COLOUR).all(axis=1)
        geom_colours[follows] = material_colours[material[follows]]
        coloured = ~follows | (model.geom_matid < 0)
        model.geom_rgba[coloured, :3] += shift.mix * (geom_colours - model.geom_rgba[:, :3])[coloured]

    def _shift_lights(self, shift: LightShift, random: np.random.Generator) -> None:
        model = self._model
        gain = shift.gain if random.uniform() < 0.5 else 1 / shift.gain
        tint = random.uniform(size=3)
        tint = 1 - shift.tint * (tint.max() - tint) / np.ptp(tint)
        for name in ("light_diffuse", "light_ambient", "light_specular"):
            getattr(model, name)[:] *= gain * tint
        for name in _HEADLIGHT_FIELDS:
            getattr(model.vis.headlight, name)[:] *= gain * tint

        axes = random.normal(size=(model.nlight, _LIGHT_TRIES, 3))
        axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
        pivot = self._fixed[0].pivot if self._fixed else model.stat.center
        for light in range(model.nlight):
            turns = [_rotation(axis, np.radians(shift.turn_deg)) for axis in axes[light]]
            # A light from above stays one: the first such turn, or the one that comes nearest to it.
            heights = np.array([(turn @ model.light_dir[light])[2] for turn in turns])
            high_enough = np.flatnonzero(heights <= max(_LIGHT_MAX_Z, model.light_dir[light, 2]))
            turn = turns[high_enough[0] if len(high_enough) else int(np.argmin(heights))]
            model.light_dir[light] = turn @ model.light_dir[light]
            if model.light_bodyid[light] == 0:
                model.light_pos[light] = pivot + turn @ (model.light_pos[light] - pivot)

    def _shift_cameras(self, shift: CameraShift, random: np.random.Generator, data: mujoco.MjData) -> None:
        angle = np.radians(shift.orbit_deg)
        mujoco.mj_camlight(self._model, data)  # where the level has put them
        for camera in self._fixed:
            orbit_camera(self._model, data, camera, random, angle=angle, back=shift.back_m)

    def _draw_patterns(self, shift: TextureShift, random: np.random.Generator) -> Surfaces:
        """One pattern a geom; geoms that show one material share one."""
        model = self._model
        pattern = random.integers(len(PATTERNS), size=model.ngeom)
        of_material = random.integers(len(PATTERNS), size=model.nmat)
        material = self._original["geom_matid"]
        pattern[material >= 0] = of_material[material[material >= 0]]
        return Surfaces(pattern=pattern, contrast=shift.contrast, texture_colour=self._texture_colours)

    @functools.cached_property
    def _texture_colours(self) -> np.ndarray:
        return mean_texture_colours(self._model)


def _stream(shift: Shift, seed: int) -> np.random.Generator:
    """The random numbers of a kind of shift in the episode `seed`; the same at each strength."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_APPEARANCE_STREAM, shift.stream)))


def _saturated(random: np.random.Generator, count: int) -> np.ndarray:
    """Pure hues of different brightness, [count, 3] in [0, 1]."""
    hue = random.uniform(0, 6, size=(count, 1))
    brightness = random.uniform(0.4, 1.0, size=(count, 1))
    return brightness * np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    turn, matrix = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(turn, axis, angle)
    mujoco.mju_quat2Mat(matrix, turn)
    return matrix.reshape(3, 3)


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Quaternion product, wxyz."""
    result = np.empty(4)
    mujoco.mju_mulQuat(result, first, second)
    return result

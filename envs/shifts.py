"""Named levels of appearance: colours, textures, lights and camera poses, redrawn on each reset.

The draws come from a stream of their own, so that placements and physics are the same at every level. What a level changes is read from the model
on each frame; meshes and textures in the GL context stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

# Separates the appearance's stream of random numbers from the placement's, which suites seed with the bare episode seed.
_APPEARANCE_STREAM = 0xA99EA7


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
    """

    colour: float = 0.0
    untextured: float = 0.0
    light_gain: float = 0.0
    light_tint: float = 0.0
    light_deg: float = 0.0
    camera_m: float = 0.0
    camera_deg: float = 0.0


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

_COLOUR_FIELDS = ("mat_rgba", "geom_rgba", "geom_matid")
_LIGHT_FIELDS = ("light_diffuse", "light_ambient", "light_specular", "light_dir")
_CAMERA_FIELDS = ("cam_pos", "cam_quat", "cam_pos0", "cam_mat0")
_HEADLIGHT_FIELDS = ("ambient", "diffuse", "specular")
# MuJoCo's own default: a geom of this colour takes its material's.
_NO_COLOUR = np.array([0.5, 0.5, 0.5, 1.0], np.float32)


class Appearance:
    """Redraws one model's appearance, always starting from what the model looked like when this object was made."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._original = {
            name: getattr(model, name).copy() for name in (*_COLOUR_FIELDS, *_LIGHT_FIELDS, *_CAMERA_FIELDS)
        }
        self._headlight = {name: getattr(model.vis.headlight, name).copy() for name in _HEADLIGHT_FIELDS}

    def restore(self) -> None:
        """Give the model its original appearance back, exactly."""
        for name, value in self._original.items():
            getattr(self._model, name)[:] = value
        for name, value in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = value

    def redraw(self, level: AppearanceLevel, seed: int) -> None:
        """Restore the model, then draw the appearance of the episode `seed` at `level`."""
        self.restore()
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_APPEARANCE_STREAM,)))
        self._draw_colours(level, random)
        self._draw_lights(level, random)
        self._draw_cameras(level, random)

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


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Quaternion product, wxyz."""
    result = np.empty(4)
    mujoco.mju_mulQuat(result, first, second)
    return result

"""Offscreen rendering of MuJoCo scenes: back-end choice, RGB, metric depth and segmentation, at two qualities.

Software GL is bound by the scene, not by the pixels: shadows, reflections and multisampling cost about nine tenths of a Meta-World frame. The "fast"
quality leaves these three out and nothing else; "full" draws what the model's author asked for.
"""

from __future__ import annotations

import atexit
import ctypes.util
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from envs.frustum import geoms_outside, leave_out
from envs.shifts_scenery import PatternBank, Scenery

# Names the back-end that a parent process has already tried, so that spawned workers need not try it again.
_TRIED_VARIABLE = "EGOARM_GL_TRIED"
_REMEDY = {
    "egl": "sudo apt-get install -y libegl1 libgl1-mesa-dri",
    "osmesa": "sudo apt-get install -y libosmesa6",
    "glfw": "needs a display; without one use MUJOCO_GL=egl or MUJOCO_GL=osmesa",
}
_LIBRARY = {"egl": "EGL", "osmesa": "OSMesa"}
# Makes a context and its framebuffers: a library may load and still have no driver behind it. Leaves at once on an error, before destructors add theirs.
_TRIAL = """
import os, sys
try:
    import mujoco
    from mujoco.{backend} import GLContext
    gl = GLContext(8, 8)
    gl.make_current()
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    context.free()
    gl.free()
except BaseException as error:
    print(type(error).__name__ + ":", error, file=sys.stderr, flush=True)
    os._exit(1)
print("drawn")
"""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a rendering quality draws. `samples` is the multisampling count; None keeps the model's own."""

    shadows: bool
    reflections: bool
    samples: int | None


QUALITIES: dict[str, Quality] = {
    "fast": Quality(shadows=False, reflections=False, samples=0),
    "full": Quality(shadows=True, reflections=True, samples=None),
}
MODALITIES = ("rgb", "depth", "segmentation")


def gl_backend() -> str:
    """Choose the GL back-end and set MUJOCO_GL and PYOPENGL_PLATFORM to it; idempotent, and cheap after the first call.

    The user's MUJOCO_GL is taken when it is set; otherwise EGL, then OSMesa. Each candidate is tried in a process of its own, because PyOpenGL
    cannot change its platform once it is loaded, and a broken driver may abort.

    Returns:
        "egl", "osmesa" or "glfw".

    Raises:
        RuntimeError: no candidate could draw a frame; the text names the packages to install.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted and wanted == os.environ.get(_TRIED_VARIABLE):
        return wanted
    if wanted and wanted not in _REMEDY:
        raise RuntimeError(
            f"MUJOCO_GL={wanted!r} cannot render offscreen; expected one of {', '.join(_REMEDY)}. Unset it to let EgoArm choose."
        )
    failures = []
    for backend in (wanted,) if wanted else ("egl", "osmesa"):
        reason = _try_backend(backend)
        if reason is None:
            os.environ.update(_environment(backend))
            os.environ[_TRIED_VARIABLE] = backend
            return backend
        failures.append(f"{backend}: {reason.rstrip('.')}. Remedy: {_REMEDY[backend]}")
    raise RuntimeError("no GL back-end can draw a frame here.\n  " + "\n  ".join(failures))


def _environment(backend: str) -> dict[str, str]:
    platform = {} if backend == "glfw" else {"PYOPENGL_PLATFORM": backend}
    return {"MUJOCO_GL": backend, **platform}


def _try_backend(backend: str) -> str | None:
    """Why `backend` cannot draw a frame, or None when it can."""
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL.format(backend=backend)],
            env={**os.environ, **_environment(backend)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return "no frame within 120 s"
    if trial.returncode == 0 and trial.stdout.strip().endswith("drawn"):
        return None
    if backend in _LIBRARY and ctypes.util.find_library(_LIBRARY[backend]) is None:
        return f"the library lib{_LIBRARY[backend]} is not installed"
    lines = [line.strip() for line in trial.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"the trial process ended with code {trial.returncode}"


def _make_gl_context(width: int, height: int) -> Any:
    backend = gl_backend()
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        elif backend == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.glfw import GLContext
        return GLContext(width, height)
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"cannot create a {backend} context: {error}. Remedy: {_REMEDY[backend]}") from error


def gl_renderer_name() -> str:
    """The driver's name for what draws, e.g. "llvmpipe (LLVM 15.0.6, 256 bits)" for Mesa's software renderer."""
    context = _make_gl_context(8, 8)
    try:
        context.make_current()
        from OpenGL import GL

        return GL.glGetString(GL.GL_RENDERER).decode()
    finally:
        context.free()


def geometry_signature(model: mujoco.MjModel) -> tuple[int, ...]:
    """Sizes of everything that a GL context uploads once: models that agree here can share one `Renderer`."""
    return (
        model.nmesh,
        model.nmeshvert,
        model.nmeshface,
        model.ntex,
        model.ntexdata,
        model.nhfield,
        model.nhfielddata,
        model.nskin,
        model.nflex,
    )


class Renderer:
    """One offscreen GL context that draws any number of MjModel/MjData pairs with the same meshes and textures.

    Everything but meshes and textures (poses, material and geom colours, lights, cameras) is read from the model passed to `render`, so that
    environments which differ in appearance can share one renderer.

    Args:
        model: the model whose meshes, textures and height fields are uploaded.
        height: image height in pixels.
        width: image width in pixels.
        quality: a key of `QUALITIES`.

    Raises:
        ValueError: unknown quality, or a size below one.
        RuntimeError: no GL back-end.
    """

    def __init__(self, model: mujoco.MjModel, *, height: int, width: int, quality: str = "fast") -> None:
        if quality not in QUALITIES:
            raise ValueError(f"unknown rendering quality {quality!r}; expected one of {', '.join(QUALITIES)}")
        if height < 1 or width < 1:
            raise ValueError(f"image height and width must be at least 1 pixel, got {height} x {width}")
        self.quality = quality
        self.height = height
        self.width = width
        self._settings = QUALITIES[quality]
        self._signature = geometry_signature(model)
        self._scene = mujoco.MjvScene(model, maxgeom=1000 + 2 * (model.ngeom + model.nsite))
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._context: Any = None
        self._patterns: PatternBank | None = None
        _free_dropped()
        self._gl: Any = _make_gl_context(width, height)
        try:
            self._gl.make_current()
            self._context = self._make_drawing_context(model)
        except BaseException:
            self.close()
            raise
        _open_renderers.add(self)
        # Registered after the first context, hence run before mujoco terminates the display: contexts freed later print errors at exit.
        _close_at_exit()

    def _make_drawing_context(self, model: mujoco.MjModel) -> mujoco.MjrContext:
        quality, size = model.vis.quality, model.vis.global_
        before = (quality.offsamples, quality.shadowsize, size.offwidth, size.offheight)
        if self._settings.samples is not None:
            quality.offsamples = self._settings.samples
        if not self._settings.shadows:
            quality.shadowsize = 0
        size.offwidth, size.offheight = self.width, self.height
        try:
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        finally:
            quality.offsamples, quality.shadowsize, size.offwidth, size.offheight = before
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
        context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR.value
        return context

    def render(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: str | int,
        modalities: Sequence[str] = ("rgb",),
        *,
        scenery: Scenery | None = None,
    ) -> dict[str, np.ndarray]:
        """Draw the state in `data` as `camera` sees it.

        Args:
            model: a model with the meshes and textures of the one given at construction.
            data: its state, after `mj_forward`.
            camera: a camera's name or id; -1 is the free camera.
            modalities: any of "rgb", "depth", "segmentation".
            scenery: what is drawn over and beside the model; see `envs.shifts`.

        Returns:
            New arrays, row 0 at the top: "rgb" uint8[H, W, 3]; "depth" float32[H, W], metres along the optical axis, the far plane's distance
            where there is nothing; "segmentation" int32[H, W], the geom's id, -1 where there is none.

        Raises:
            ValueError: unknown camera or modality, or a model with other meshes or textures.
            RuntimeError: the renderer is closed.
        """
        if self._context is None:
            raise RuntimeError("this Renderer is closed; make a new one")
        if geometry_signature(model) != self._signature:
            raise ValueError(
                "this Renderer was made for a model with other meshes or textures; make one Renderer for each geometry"
            )
        for modality in modalities:
            if modality not in MODALITIES:
                raise ValueError(f"unknown modality {modality!r}; expected one of {', '.join(MODALITIES)}")
        self._point_camera(model, camera)
        _free_dropped()
        self._gl.make_current()
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        if scenery is not None:
            if self._patterns is None:
                self._patterns = PatternBank(self._context)
            scenery.draw_into(self._scene, self._patterns)
        if not (self._settings.shadows or self._settings.reflections):  # by which what is out of sight may be seen
            view = mujoco.mjv_averageCamera(self._scene.camera[0], self._scene.camera[1])
            if not view.orthographic:
                leave_out(self._scene, geoms_outside(model, data, view, self.width / self.height))
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._settings.shadows
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = self._settings.reflections

        images: dict[str, np.ndarray] = {}
        if "rgb" in modalities:
            images["rgb"] = self._draw_rgb()
        if "depth" in modalities or "segmentation" in modalities:
            depth, segmentation = self._draw_geometry()
            if "depth" in modalities:
                images["depth"] = depth
            if "segmentation" in modalities:
                images["segmentation"] = segmentation
        return images

    def _point_camera(self, model: mujoco.MjModel, camera: str | int) -> None:
        camera_id = camera
        if isinstance(camera, str):
            camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA.value, camera)
        if camera_id not in range(-1, model.ncam) or (isinstance(camera, str) and camera_id == -1):
            names = [model.camera(i).name for i in range(model.ncam)]
            raise ValueError(f"the model has no camera {camera!r}; its cameras are {', '.join(names) or '(none)'}")
        if camera_id == -1:
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE.value
            mujoco.mjv_defaultFreeCamera(model, self._camera)
        else:
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
            self._camera.fixedcamid = camera_id

    def _draw_rgb(self) -> np.ndarray:
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        rgb = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_readPixels(rgb, None, self._viewport, self._context)
        return np.ascontiguousarray(rgb[::-1])

    def _draw_geometry(self) -> tuple[np.ndarray, np.ndarray]:
        """Depth and segmentation from one pass in flat id colours, which neither lights nor blends."""
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        colours = np.empty((self.height, self.width, 3), np.uint8)
        z = np.empty((self.height, self.width), np.float32)
        try:
            mujoco.mjr_render(self._viewport, self._scene, self._context)
            mujoco.mjr_readPixels(colours, z, self._viewport, self._context)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False

        # The buffer holds 1 at the near plane and 0 at the far one, and is linear in inverse depth (perspective projection).
        near, far = self._scene.camera[0].frustum_near, self._scene.camera[0].frustum_far
        depth = near * far / (near + z[::-1].astype(np.float64) * (far - near))

        drawn_as = colours[::-1].astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
        geom_of = np.full(self._scene.ngeom + 1, -1, np.int32)
        for drawn in self._scene.geoms[: self._scene.ngeom]:
            if drawn.segid != -1 and drawn.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                geom_of[drawn.segid + 1] = drawn.objid
        return depth.astype(np.float32), geom_of[drawn_as]

    def close(self) -> None:
        """Free the GL context; safe to call twice."""
        if self._gl is not None:
            _free(self._gl, self._context, self._patterns)
        self._context = self._patterns = self._gl = None
        _open_renderers.discard(self)

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # MuJoCo's own destructor would free these textures' numbers in whichever GL context is current: another renderer's, which then draws black.
        # Freed before the next frame, because here another renderer may be in the middle of one.
        if getattr(self, "_gl", None) is not None:
            _dropped.append((self._gl, self._context, self._patterns))


# What renderers that were dropped unclosed have left: GL context, drawing context, patterns.
_dropped: list[tuple[Any, Any, PatternBank | None]] = []


def _free(gl: Any, context: Any, patterns: PatternBank | None) -> None:
    if context is not None:
        gl.make_current()
        if patterns is not None:
            patterns.free()
        context.free()
    gl.free()


def _free_dropped() -> None:
    while _dropped:
        _free(*_dropped.pop())


_open_renderers: weakref.WeakSet[Renderer] = weakref.WeakSet()


def _close_all() -> None:
    for renderer in list(_open_renderers):
        renderer.close()
    _free_dropped()


def _close_at_exit() -> None:
    # Moved to the end of the exit list each time; one entry in all.
    atexit.unregister(_close_all)
    atexit.register(_close_all)

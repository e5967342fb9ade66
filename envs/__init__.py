"""MuJoCo manipulation tasks behind one Gymnasium contract.

`make_env` (envs/tasks.py) makes one of `TASKS`; `VectorEnv` (envs/vector.py) steps many in parallel; `Renderer` (envs/rendering.py) draws any scene.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os


def _import_mujoco() -> None:
    """Import mujoco whatever MUJOCO_GL says.

    mujoco loads the GL library that MUJOCO_GL names while it is imported, and dies of an AttributeError deep inside PyOpenGL where there is none. With
    such a choice set aside during the import, `envs.rendering.gl_backend` can say what is missing, and states without images need no GL at all.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    library = {"egl": "EGL", "osmesa": "OSMesa"}.get(wanted)
    set_aside = wanted not in ("", "glfw") and (library is None or ctypes.util.find_library(library) is None)
    kept = os.environ.pop("MUJOCO_GL") if set_aside else None
    try:
        with contextlib.suppress(ModuleNotFoundError):  # specs can be read without the simulators
            import mujoco  # noqa: F401
    finally:
        if kept is not None:
            os.environ["MUJOCO_GL"] = kept


_import_mujoco()

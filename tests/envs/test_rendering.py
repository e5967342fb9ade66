"""The renderer's images against scenes whose pixels can be worked out by hand."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from envs import rendering
from envs.rendering import QUALITIES, Renderer, gl_backend

# A camera at z = 3 m looking straight down with +y up in the image: a red box at +y (top), a green one at +x (right), floor at z = 0.
SCENE = """
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/><quality offsamples="4"/></visual>
  <worldbody>
    <light pos="1 1 3" dir="-0.3 -0.3 -1" castshadow="true" diffuse="0.5 0.5 0.5"/>
    <camera name="down" pos="0 0 3" fovy="60"/>
    <geom name="floor" type="plane" size="5 5 0.1" rgba="0.2 0.2 0.2 1"/>
    <geom name="red" type="box" pos="0 1 0.25" size="0.3 0.3 0.25" rgba="1 0 0 1"/>
    <geom name="green" type="box" pos="1 0 0.5" size="0.2 0.2 0.5" rgba="0 1 0 1"/>
    <site name="marker" pos="-1 0 0.1" size="0.2" rgba="0 0 1 1"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


@pytest.fixture(scope="module")
def images(scene):
    with Renderer(scene[0], height=96, width=96) as renderer:
        return renderer.render(*scene, "down", ("rgb", "depth", "segmentation"))


def pixel_of(x: float, y: float, z: float, size: int = 96) -> tuple[int, int]:
    focal = size / 2 / np.tan(np.radians(30))
    return int(size / 2 - focal * y / (3 - z)), int(size / 2 + focal * x / (3 - z))


def test_rgb_is_upright(images):
    rgb = images["rgb"]
    assert rgb.shape == (96, 96, 3) and rgb.dtype == np.uint8
    assert rgb[pixel_of(0, 1, 0.5)].argmax() == 0 and rgb[pixel_of(0, 1, 0.5)][0] > 150
    assert rgb[pixel_of(1, 0, 1)].argmax() == 1 and rgb[pixel_of(1, 0, 1)][1] > 150
    below = rgb[pixel_of(0, -1, 0)].astype(int)
    assert np.ptp(below) < 10, "the floor, which is grey"


@pytest.mark.parametrize("quality", QUALITIES)
def test_depth_is_metric(scene, quality):
    with Renderer(scene[0], height=96, width=96, quality=quality) as renderer:
        depth = renderer.render(*scene, "down", ("depth",))["depth"]
    assert depth.dtype == np.float32
    assert depth[pixel_of(0, 1, 0.5)] == pytest.approx(2.5, abs=1e-3)
    assert depth[pixel_of(1, 0, 1)] == pytest.approx(2.0, abs=1e-3)
    # Along the optical axis, not along the ray: the plane has one depth, also in the corners.
    for corner in (depth[0, 0], depth[0, -1], depth[-1, 0], depth[-1, -1]):
        assert corner == pytest.approx(3.0, abs=1e-3)


def test_segmentation_holds_geom_ids(scene, images):
    model = scene[0]
    segmentation = images["segmentation"]
    assert segmentation.dtype == np.int32
    assert segmentation[pixel_of(0, 1, 0.5)] == model.geom("red").id
    assert segmentation[pixel_of(1, 0, 1)] == model.geom("green").id
    assert segmentation[0, 0] == model.geom("floor").id
    assert segmentation[pixel_of(-1, 0, 0.2)] == -1, "a site is no geom"
    assert set(np.unique(segmentation)) == {-1, 0, 1, 2}


def test_depth_and_segmentation_leave_the_next_rgb_as_it_was(scene, images):
    with Renderer(scene[0], height=96, width=96) as renderer:
        renderer.render(*scene, "down", ("depth", "segmentation"))
        np.testing.assert_array_equal(renderer.render(*scene, "down")["rgb"], images["rgb"])


def test_full_quality_adds_shadows_and_smooth_edges(scene, images):
    model = scene[0]
    with Renderer(model, height=96, width=96, quality="full") as renderer:
        full = renderer.render(*scene, "down")["rgb"].astype(int)
    fast = images["rgb"].astype(int)
    floor = images["segmentation"] == model.geom("floor").id
    assert (full[floor].sum(-1) < fast[floor].sum(-1) - 30).sum() > 20, "boxes cast shadows on the floor"
    assert len(np.unique(full.reshape(-1, 3), axis=0)) > len(np.unique(fast.reshape(-1, 3), axis=0))
    assert model.vis.quality.offsamples == 4, "the model is left as it was"


def test_one_renderer_draws_models_that_differ_in_appearance(scene, images):
    other = mujoco.MjModel.from_xml_string(SCENE)
    other.geom("red").rgba[:] = [0, 0, 1, 1]
    other_data = mujoco.MjData(other)
    mujoco.mj_forward(other, other_data)
    with Renderer(scene[0], height=96, width=96) as renderer:
        blue = renderer.render(other, other_data, "down")["rgb"]
        again = renderer.render(*scene, "down")["rgb"]
    assert blue[pixel_of(0, 1, 0.5)].argmax() == 2
    np.testing.assert_array_equal(again, images["rgb"])


def test_a_renderer_dropped_unclosed_leaves_others_alone(scene, images):
    dropped = Renderer(scene[0], height=96, width=96)
    dropped.render(*scene, "down")
    with Renderer(scene[0], height=96, width=96) as other:
        other.render(*scene, "down")
        del dropped
        gc.collect()
        assert len(rendering._dropped) == 1
        np.testing.assert_array_equal(other.render(*scene, "down")["rgb"], images["rgb"])
        assert not rendering._dropped


def test_mistakes_are_named(scene):
    with pytest.raises(ValueError, match=r"quality 'best'.*fast, full"):
        Renderer(scene[0], height=8, width=8, quality="best")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        Renderer(scene[0], height=0, width=8)
    with Renderer(scene[0], height=8, width=8) as renderer:
        with pytest.raises(ValueError, match=r"no camera 'up'.*down"):
            renderer.render(*scene, "up")
        with pytest.raises(ValueError, match=r"no camera 7"):
            renderer.render(*scene, 7)
        with pytest.raises(ValueError, match=r"modality 'flow'"):
            renderer.render(*scene, "down", ("flow",))
        renderer.close()
        with pytest.raises(RuntimeError, match="closed"):
            renderer.render(*scene, "down")


def test_a_model_with_other_meshes_is_refused(scene):
    mesh = SCENE.replace(
        "<worldbody>",
        '<asset><mesh name="m" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset><worldbody><geom type="mesh" mesh="m"/>',
    )
    other = mujoco.MjModel.from_xml_string(mesh)
    with (
        Renderer(scene[0], height=8, width=8) as renderer,
        pytest.raises(ValueError, match="other meshes or textures"),
    ):
        renderer.render(other, mujoco.MjData(other), "down")


def test_backend_is_chosen_once_and_works():
    backend = gl_backend()
    assert backend in ("egl", "osmesa", "glfw")
    assert os.environ["MUJOCO_GL"] == backend == gl_backend()


def test_no_backend_names_the_packages(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv(rendering._TRIED_VARIABLE, raising=False)
    # An interpreter without mujoco stands for a machine without any GL library.
    monkeypatch.setattr(rendering, "_TRIAL", "raise ImportError('Unable to load the library of {backend}')")
    with pytest.raises(RuntimeError) as error:
        gl_backend()
    text = str(error.value)
    assert all(package in text for package in ("libegl1", "libgl1-mesa-dri", "libosmesa6", "apt-get"))


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"MUJOCO_GL": "off"}, "MUJOCO_GL='off' cannot render offscreen; expected one of egl, osmesa, glfw"),
        ({"MUJOCO_GL": "nonsense"}, "MUJOCO_GL='nonsense' cannot render offscreen"),
        ({"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere.json"}, "libegl1 libgl1-mesa-dri"),
    ],
)
def test_a_backend_that_cannot_work_is_explained(environment, text):
    script = "from envs.rendering import gl_backend\ntry: gl_backend()\nexcept RuntimeError as error: print(error)"
    clean = {name: value for name, value in os.environ.items() if name != rendering._TRIED_VARIABLE}
    run = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **environment}, capture_output=True, text=True, timeout=120
    )
    assert text in run.stdout and run.stderr == ""


def test_full_quality_is_mujocos_own_rendering():
    script = """
import mujoco
import numpy as np
from envs.tasks import make_env
env = make_env("metaworld/drawer-open", image_size=32, quality="full")
observation, _ = env.reset(seed=0)
with mujoco.Renderer(env.simulation.model, 32, 32) as renderer:
    renderer.update_scene(env.simulation.data, "corner4")
    print(np.array_equal(renderer.render(), observation["images/corner4"]))
"""
    gl_backend()  # hence MUJOCO_GL is set when the script imports mujoco
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.stdout == "True\n", run.stderr


def test_an_open_renderer_leaves_no_noise_at_exit():
    script = f"""
import mujoco
from envs.rendering import Renderer
model = mujoco.MjModel.from_xml_string('''{SCENE}''')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
first, second = (Renderer(model, height=8, width=8) for _ in range(2))
second.render(model, data, "down")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

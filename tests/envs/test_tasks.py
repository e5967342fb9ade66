"""make_env: the user's mistakes, and what must not happen behind their back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from envs import rendering
from envs.experts import make_expert
from envs.rendering import Renderer
from envs.suites import toy
from envs.tasks import TASKS, make_env


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"task": "metaworld/drawer-opn"}, "unknown task 'metaworld/drawer-opn'; did you mean metaworld/drawer-open"),
        ({"task": "nothing like it"}, "TASKS.*toy/reach"),
        ({"task": "toy/reach", "level": "varied-9"}, "unknown appearance level 'varied-9'.*clean, varied-1"),
        ({"task": "toy/reach", "cameras": ("frnt",)}, "no camera 'frnt'; its cameras are front"),
        ({"task": "toy/reach", "cameras": "front"}, "tuple of names"),
        ({"task": "toy/reach", "cameras": ("front", "front")}, "twice"),
        ({"task": "toy/reach", "quality": "slow"}, "rendering quality 'slow'; expected one of fast, full"),
        ({"task": "toy/reach", "image_size": 0}, "at least 1 pixel, got 0"),
    ],
)
def test_mistakes_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        make_env(**options)


def test_no_cameras_no_gl(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a GL context was made")

    monkeypatch.setattr(rendering, "_make_gl_context", refuse)
    env = make_env("metaworld/drawer-open", cameras=())
    env.reset(seed=0)
    env.step(np.zeros(4))
    with pytest.raises(ValueError, match="no cameras"):
        env.render()
    env.close()


def test_a_shared_renderer_stays_the_callers():
    first = make_env("toy/reach", image_size=24)
    second = make_env("toy/reach", image_size=24, level="varied-2", renderer=first.renderer)
    alone = make_env("toy/reach", image_size=24, level="varied-2")
    shared_image = second.reset(seed=5)[0]["images/front"]
    np.testing.assert_array_equal(shared_image, alone.reset(seed=5)[0]["images/front"])
    second.close()
    assert first.reset(seed=1)[0]["images/front"].any()
    first.close()
    alone.close()
    model = toy.make_simulation(TASKS["toy/reach"]).model
    with (
        Renderer(model, height=24, width=24) as renderer,
        pytest.raises(ValueError, match=r"\(24, 24, 'fast'\).*\(32, 32, 'fast'\)"),
    ):
        make_env("toy/reach", image_size=32, renderer=renderer)


def test_privileged_state_only_where_asked():
    env = make_env("metaworld/reach", cameras=(), privileged=True)
    observation, _ = env.reset(seed=0)
    assert observation["state/full"].shape == (39,)
    np.testing.assert_array_equal(observation["state/full"][:3], observation["state/hand_pos"])
    assert np.abs(observation["state/full"][-3:]).min() > 0, "the goal is part of it"
    assert "state/full" not in make_env("metaworld/reach", cameras=()).env_spec.observation


def test_the_first_frame_shows_where_the_drawer_is():
    # The package places the drawer last; without a forward pass the first frame shows the place of the reset before.
    env = make_env("metaworld/drawer-open", image_size=48)
    first = env.reset(seed=0)[0]["images/corner4"]
    shown = env.simulation.data.body("drawer").xpos[0]
    assert shown == pytest.approx(env.simulation.model.body("drawer").pos[0])
    second = env.reset(seed=1)[0]["images/corner4"]
    assert (first != second).any()
    env.close()


def test_metaworld_cameras_are_upright():
    env = make_env("metaworld/reach", cameras=())
    env.reset(seed=0)
    data, model = env.simulation.data, env.simulation.model
    for name in ("corner", "corner2", "corner3", "corner4"):
        image_up = data.cam(name).xmat.reshape(3, 3)[:, 1]
        assert image_up[2] > 0, name
    assert model.cam("corner4").pos == pytest.approx([0.75, 0.075, 0.7])


def test_an_expert_of_another_task_is_refused():
    env = make_env("toy/reach", cameras=())
    with pytest.raises(ValueError, match="cannot act in an environment of 'toy/reach'"):
        make_expert("metaworld/reach", env)
    with pytest.raises(ValueError, match="unknown task"):
        make_expert("toy/rech", env)


def test_every_row_says_what_success_is():
    for task, row in TASKS.items():
        assert row.success_rule and row.notes and row.cameras, task
        assert task == f"{row.suite}/{row.name}"


def test_nothing_is_printed():
    script = """
from envs.experts import make_expert
from envs.tasks import make_env
env = make_env("metaworld/button-press-topdown", image_size=16)
expert = make_expert("metaworld/button-press-topdown", env)
observation, _ = env.reset(seed=0)
for _ in range(5):
    observation, *_ = env.step(expert.act(observation))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

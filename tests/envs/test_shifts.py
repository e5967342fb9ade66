"""Appearance levels: restored exactly, redrawn from the seed, within what the level says."""

from __future__ import annotations

from itertools import pairwise

import mujoco
import numpy as np
import pytest

from envs.shifts import LEVELS, Appearance
from envs.tasks import make_simulation

CHANGING = ("mat_rgba", "geom_rgba", "geom_matid", "light_diffuse", "light_dir", "cam_pos", "cam_quat", "cam_mat0")


@pytest.fixture(scope="module")
def model():
    return make_simulation("metaworld/drawer-open").model


def everything(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """All arrays of the model and the headlight."""
    names = [name for name in dir(model) if not name.startswith("_")]
    arrays = {name: getattr(model, name) for name in names if isinstance(getattr(model, name), np.ndarray)}
    headlight = {f"headlight {name}": getattr(model.vis.headlight, name) for name in ("ambient", "diffuse", "specular")}
    return {name: array.copy() for name, array in {**arrays, **headlight}.items()}


@pytest.mark.parametrize("level", LEVELS)
def test_restored_exactly(model, level):
    before = everything(model)
    appearance = Appearance(model)
    appearance.redraw(LEVELS[level], 3)
    after = everything(model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert (changed == set()) == (level == "clean")
    assert not changed & {"body_pos", "qpos0", "geom_size", "geom_friction", "actuator_gainprm", "site_rgba"}
    appearance.restore()
    np.testing.assert_equal(everything(model), before)


def test_redraw_depends_on_the_seed_alone(model):
    appearance = Appearance(model)
    appearance.redraw(LEVELS["varied-3"], 1)
    first = everything(model)
    appearance.redraw(LEVELS["varied-1"], 2)
    appearance.redraw(LEVELS["varied-3"], 1)
    np.testing.assert_equal(everything(model), first)
    appearance.redraw(LEVELS["varied-3"], 2)
    for name in CHANGING:
        assert not np.array_equal(getattr(model, name), first[name]), name
    appearance.restore()


@pytest.mark.parametrize("level", LEVELS)
def test_draws_stay_within_the_level(model, level):
    before = everything(model)
    appearance = Appearance(model)
    settings = LEVELS[level]
    for seed in range(20):
        appearance.redraw(settings, seed)
        assert np.abs(model.cam_pos - before["cam_pos"]).max() <= settings.camera_m + 1e-9
        dot = np.abs((model.cam_quat * before["cam_quat"]).sum(1)) / np.linalg.norm(before["cam_quat"], axis=1)
        turned = 2 * np.degrees(np.arccos(np.clip(dot, 0, 1)))
        assert turned.max() <= np.sqrt(3) * settings.camera_deg * 1.05 + 1e-4
        assert np.linalg.norm(model.light_dir, axis=1) == pytest.approx(np.linalg.norm(before["light_dir"], axis=1))
        assert model.mat_rgba.min() >= 0 and model.mat_rgba.max() <= 1
        np.testing.assert_array_equal(model.mat_rgba[:, 3], before["mat_rgba"][:, 3])
        hidden = before["geom_rgba"][:, 3] == 0
        assert (model.geom_rgba[hidden, 3] == 0).all()
    appearance.restore()


def test_levels_grow():
    names = list(LEVELS)
    for weaker, stronger in pairwise(names):
        one, two = vars(LEVELS[weaker]), vars(LEVELS[stronger])
        assert all(two[name] >= one[name] for name in one) and one != two

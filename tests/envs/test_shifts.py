"""Appearance levels and held-out shifts: redrawn from the seed, restored exactly, graded, and nothing that the physics could feel."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import mujoco
import numpy as np
import pytest

from envs.rendering import Renderer
from envs.shifts import LEVELS, SHIFTS, Appearance, CameraShift, DistractorShift, parse_level
from envs.shifts_camera import orbited
from envs.shifts_scenery import PATTERNS
from envs.shifts_sheet import main
from envs.shifts_view import fixed_cameras, image_rays
from envs.tasks import SUITES, find_level, make_env, make_simulation

CHANGING = ("mat_rgba", "geom_rgba", "geom_matid", "light_diffuse", "light_dir", "cam_pos", "cam_quat", "cam_mat0")
HEADLIGHT = ("ambient", "diffuse", "specular")
# What a kind of shift may change in the model; the others are drawn into the scene.
MAY_CHANGE = {
    "camera": {"cam_pos", "cam_quat", "cam_pos0", "cam_poscom0", "cam_mat0"},
    "light": {"light_diffuse", "light_ambient", "light_specular", "light_pos", "light_dir"}
    | {f"headlight {name}" for name in HEADLIGHT},
    "colour": {"mat_rgba", "geom_rgba"},
    "texture": set(),
    "distractors": set(),
}
KINDS = tuple(MAY_CHANGE)
STRENGTHS = (1, 2, 3)
# One task of each suite, and bodies that must stay in the image when the camera moves.
EXAMPLES = {
    "toy": ("toy/reach", ("ball",)),
    "metaworld": ("metaworld/drawer-open", ("drawer_link",)),
    "robosuite": ("robosuite/lift", ("cube_main",)),
    "kitchen": ("kitchen/knob1_on", ("knob 1",)),
    "adroit": ("adroit/relocate", ("Object",)),
}
SIZE = 96


@pytest.fixture(scope="module")
def simulation():
    return make_simulation("metaworld/drawer-open")


@pytest.fixture(scope="module")
def model(simulation):
    return simulation.model


@pytest.fixture(scope="module", params=SUITES)
def example(request):
    """A suite's task, the bodies to watch, and an environment of it whose renderer the others share."""
    task, bodies = EXAMPLES[request.param]
    env = make_env(task, image_size=SIZE)
    yield task, bodies, env
    env.close()


def shifted(example, level: str):
    task, _, env = example
    return make_env(task, level=level, image_size=SIZE, renderer=env.renderer)


def everything(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """All arrays of the model and the headlight."""
    names = [name for name in dir(model) if not name.startswith("_")]
    arrays = {name: getattr(model, name) for name in names if isinstance(getattr(model, name), np.ndarray)}
    headlight = {f"headlight {name}": getattr(model.vis.headlight, name) for name in HEADLIGHT}
    return {name: array.copy() for name, array in {**arrays, **headlight}.items()}


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


def images(env, seed: int) -> np.ndarray:
    observation, _ = env.reset(seed=seed)
    return np.stack([observation[f"images/{camera}"] for camera in env.env_spec.cameras]).astype(int)


@pytest.mark.parametrize("level", [*LEVELS, "varied-3+camera-3+light-3+colour-3+texture-3+distractors-3"])
def test_restored_exactly(simulation, model, level):
    before = everything(model)
    appearance = Appearance(model)
    appearance.redraw(find_level(level), 3, simulation.data)
    after = everything(model)
    assert (changed(before, after) == set()) == (level == "clean")
    assert not changed(before, after) & {"body_pos", "qpos0", "geom_size", "geom_friction", "site_rgba", "tex_data"}
    appearance.restore()
    np.testing.assert_equal(everything(model), before)


def test_redraw_depends_on_the_seed_alone(simulation, model):
    appearance = Appearance(model)
    strong = find_level("varied-3+camera-2")
    appearance.redraw(strong, 1, simulation.data)
    first = everything(model)
    appearance.redraw(find_level("varied-1+light-3"), 2, simulation.data)
    appearance.redraw(strong, 1, simulation.data)
    np.testing.assert_equal(everything(model), first)
    appearance.redraw(strong, 2, simulation.data)
    for name in CHANGING:
        assert not np.array_equal(getattr(model, name), first[name]), name
    appearance.restore()


@pytest.mark.parametrize("level", LEVELS)
def test_draws_stay_within_the_level(simulation, model, level):
    before = everything(model)
    appearance = Appearance(model)
    settings = LEVELS[level]
    for seed in range(20):
        appearance.redraw(settings, seed, simulation.data)
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


def test_levels_draw_what_published_results_saw():
    # Demonstrations and results name levels: a level must never draw anything else again.
    simulation = make_simulation("toy/reach")
    simulation.reset(0)
    Appearance(simulation.model).redraw(LEVELS["varied-3"], 3, simulation.data)
    model = simulation.model
    assert model.mat_rgba[:, 0] == pytest.approx([0.398768, 0.086938, 0.460722], abs=1e-6)
    assert model.light_dir[0] == pytest.approx([0.0304417, -0.2457028, -0.9688671], abs=1e-6)
    assert model.light_diffuse[0] == pytest.approx([0.5681627, 0.4503786, 0.5136937], abs=1e-6)
    assert model.cam_pos[0] == pytest.approx([-0.0049026, -0.6558320, 0.7642139], abs=1e-6)
    assert model.cam_quat[0] == pytest.approx([0.9444190, 0.3279358, 0.0067321, -0.0220359], abs=1e-6)


def test_levels_grow():
    for weaker, stronger in pairwise(LEVELS.values()):
        one, two = (
            {name: value for name, value in vars(level).items() if name != "shifts"} for level in (weaker, stronger)
        )
        assert all(two[name] >= one[name] for name in one) and one != two


def test_shifts_grow_and_every_kind_has_three():
    assert list(SHIFTS) == [f"{kind}-{strength}" for kind in KINDS for strength in STRENGTHS]
    for kind in KINDS:
        rows = [SHIFTS[f"{kind}-{strength}"] for strength in STRENGTHS]
        assert {row.kind for row in rows} == {kind}
        for weaker, stronger in pairwise(rows):
            assert all(vars(stronger)[name] > vars(weaker)[name] for name in vars(weaker))
    assert len({shift.stream for shift in SHIFTS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("varied-9", r"unknown appearance level 'varied-9'; did you mean varied-[123]\? .*clean, varied-1.*camera-1"),
        ("varied-1+camra-2", "unknown shift 'camra-2'.*did you mean camera-2.*camera-1, camera-2, camera-3, light-1"),
        ("camera-2", r"without the level.*varied-1\+camera-2, or clean\+camera-2"),
        ("+camera-2+light-1", r"without the level.*clean\+camera-2\+light-1"),
        ("varied-1+camera-2+camera-3", "two shifts of one kind"),
        ("varied-1+", "unknown shift ''"),
        ("", "unknown appearance level ''"),
    ],
)
def test_mistakes_in_a_name(name, text):
    with pytest.raises(ValueError, match=text):
        parse_level(name)


def test_a_name_is_read():
    level = parse_level("varied-2+camera-1+distractors-3")
    assert level.shifts == (CameraShift(orbit_deg=10, back_m=0.02), DistractorShift(count=10))
    assert level.colour == LEVELS["varied-2"].colour and LEVELS["varied-2"].shifts == ()
    assert find_level("clean") == LEVELS["clean"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_leaves_the_levels_draws_alone(simulation, model, kind):
    appearance = Appearance(model)
    appearance.redraw(LEVELS["varied-2"], 4, simulation.data)
    plain = everything(model)
    appearance.redraw(find_level(f"varied-2+{kind}-2"), 4, simulation.data)
    alone = everything(model)
    assert changed(plain, alone) <= MAY_CHANGE[kind]
    assert bool(changed(plain, alone)) == bool(MAY_CHANGE[kind])
    # Beside another shift it is the same.
    other = "light" if kind == "camera" else "camera"
    appearance.redraw(find_level(f"varied-2+{other}-1+{kind}-2"), 4, simulation.data)
    for name in MAY_CHANGE[kind]:
        np.testing.assert_array_equal(everything(model)[name], alone[name])
    appearance.restore()


def test_physics_cannot_feel_a_shift(example):
    said = []
    actions = np.random.default_rng(0).uniform(-1, 1, size=(6, *example[2].env_spec.action.shape))
    for level in ("varied-1", "varied-1" + "".join(f"+{kind}-3" for kind in KINDS)):
        env = shifted(example, level)
        _, info = env.reset(seed=11)
        states = [info["initial_state_hash"]]
        for action in actions:
            observation, reward, *_ = env.step(action)
            said_now = [observation[key].tobytes() for key in observation if key.startswith("state/")]
            states.append(hashlib.sha256(env.state().tobytes() + b"".join(said_now)).hexdigest() + repr(reward))
        env.close()
        said.append(states)
    assert said[0] == said[1]


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_follow_from_the_seed_and_differ_more_with_strength(example, kind):
    seeds = (0, 1)
    plain = {seed: images(example[2], seed) for seed in seeds}
    differences = []
    for strength in STRENGTHS:
        env = shifted(example, f"clean+{kind}-{strength}")
        seen = {seed: images(env, seed) for seed in seeds}
        np.testing.assert_array_equal(images(env, seeds[0]), seen[seeds[0]])
        assert (seen[0] != seen[1]).any()
        for seed in seeds:
            assert (seen[seed] != plain[seed]).any(), f"seed {seed} shows nothing of {kind}-{strength}"
        differences.append(np.mean([np.abs(seen[seed] - plain[seed]).mean() for seed in seeds]))
        env.close()
    assert differences[0] < differences[1] < differences[2], differences
    # What the shifts have put into the shared renderer shows nowhere else.
    np.testing.assert_array_equal(images(example[2], seeds[0]), plain[seeds[0]])


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_camera_goes_round_the_work_and_keeps_it_in_the_image(example, strength):
    task, bodies, plain = example
    cameras = fixed_cameras(make_simulation(task).model)
    shift = SHIFTS[f"camera-{strength}"]
    env = shifted(example, f"clean+camera-{strength}")
    chosen = [env.simulation.model.camera(name).id for name in env.env_spec.cameras]
    for seed in range(3):
        plain.reset(seed=seed)
        env.reset(seed=seed)
        model, data, still = env.simulation.model, env.simulation.data, plain.simulation.data
        for camera in (camera for camera in cameras if camera.id in chosen):
            before, after = (data_of.cam_xpos[camera.id] - camera.pivot for data_of in (still, data))
            lengths = np.linalg.norm(before), np.linalg.norm(after)
            assert lengths[1] - lengths[0] == pytest.approx(shift.back_m, abs=1e-6)
            assert np.degrees(np.arccos(before @ after / np.prod(lengths))) == pytest.approx(shift.orbit_deg, abs=1e-3)
            frame = data.cam_xmat[camera.id].reshape(3, 3)
            assert frame[2, 1] > 0 and abs(frame[2, 0] - still.cam_xmat[camera.id].reshape(3, 3)[2, 0]) < 0.05, "level"
            reach = np.tan(np.radians(model.cam_fovy[camera.id]) / 2)
            for body in bodies:
                x, y, z = (data.body(body).xpos - data.cam_xpos[camera.id]) @ frame
                assert z < 0 and max(abs(x), abs(y)) < -z * reach, f"{body} has left the image, seed {seed}"
        # A hand's camera sees what it always saw.
        for camera in set(range(model.ncam)) - {camera.id for camera in cameras}:
            np.testing.assert_array_equal(data.cam_xpos[camera], still.cam_xpos[camera])
    env.close()


def test_an_orbit_keeps_its_aim():
    random = np.random.default_rng(0)
    for _ in range(50):
        pivot, position = random.normal(size=(2, 3))
        position[2] = pivot[2] + 0.5 * np.hypot(*(position - pivot)[:2])
        back = position - pivot
        right = np.cross([0, 0, 1], back)
        rotation = np.column_stack([v / np.linalg.norm(v) for v in (right, np.cross(back, right), back)])
        moved, turned = orbited(position, rotation, pivot, angle=0.5, bearing=random.uniform(0, 6), back=0.1)
        np.testing.assert_allclose(turned.T @ turned, np.eye(3), atol=1e-12)
        np.testing.assert_allclose((pivot - moved) / np.linalg.norm(pivot - moved), -turned[:, 2], atol=1e-9)
        assert abs(turned[2, 0]) < 1e-9, "no roll"


def test_rays_run_through_the_middles_of_pixels():
    rays = image_rays(90, 4)
    assert rays.shape == (4, 4, 3)
    np.testing.assert_allclose(rays[0, 0] / -rays[0, 0, 2], [-0.75, 0.75, -1])


def test_distractors_stand_in_view_and_hide_nearly_nothing(example):
    env = shifted(example, "clean+distractors-3")
    for seed in range(2):
        env.reset(seed=seed)
        model, data, scenery = env.simulation.model, env.simulation.data, env.scenery
        assert scenery is not None and len(scenery.distractors) >= 4
        fixed = {camera.id: camera for camera in fixed_cameras(model)}
        visible = 0
        for name in env.env_spec.cameras:
            modalities = ("rgb", "depth", "segmentation")
            without = env.renderer.render(model, data, name, modalities)
            with_them = env.renderer.render(model, data, name, modalities, scenery=scenery)
            covers = with_them["depth"] != without["depth"]
            visible += covers.sum()
            assert (with_them["segmentation"][covers] == -1).all(), "a distractor is no geom of the model"
            assert (with_them["depth"][covers] < without["depth"][covers]).all()
            np.testing.assert_array_equal(with_them["segmentation"][~covers], without["segmentation"][~covers])
            assert (with_them["rgb"] == without["rgb"])[~covers].all()
            camera = fixed.get(model.camera(name).id)
            for body in range(model.nbody) if camera is not None else ():
                geoms = np.flatnonzero(camera.task & (model.geom_bodyid == body))
                seen = np.isin(without["segmentation"], geoms)
                assert (seen & covers).sum() <= max(6, 0.25 * seen.sum()), model.body(body).name
        assert visible > 40
    env.close()


def test_distractors_add_up(example):
    fewer, more = (shifted(example, f"clean+distractors-{strength}") for strength in (2, 3))
    fewer.reset(seed=5)
    more.reset(seed=5)
    few, many = fewer.scenery.distractors, more.scenery.distractors
    assert 0 < len(few) <= len(many)
    assert [repr(thing) for thing in few] == [repr(thing) for thing in many[: len(few)]]
    fewer.close()
    more.close()


def test_distractors_need_a_camera_that_stands_still():
    env = make_env("metaworld/drawer-open", level="clean+distractors-1", cameras=("gripperPOV",), image_size=16)
    with pytest.raises(ValueError, match="fixed to the world"):
        env.reset(seed=0)
    env.close()
    blind = make_env("metaworld/drawer-open", level="clean+distractors-1", cameras=())
    blind.reset(seed=0)
    assert blind.scenery is None


def test_patterns_have_no_seam():
    for name, draw in PATTERNS.items():
        image = draw()
        assert image.min() >= 0 and image.max() <= 1 and np.ptp(image) > 0.9, name
        steps = np.abs(np.diff(image, axis=0)).max(), np.abs(np.diff(image, axis=1)).max()
        assert np.abs(image[0] - image[-1]).max() <= steps[0] + 1e-9 or steps[0] == 0, name
        assert np.abs(image[:, 0] - image[:, -1]).max() <= steps[1] + 1e-9 or steps[1] == 0, name


def test_patterns_cover_what_has_no_texture_and_keep_the_sky():
    scene = mujoco.MjModel.from_xml_string(
        """<mujoco>
          <asset><texture type="skybox" builtin="gradient" rgb1="0.3 0.5 0.7" rgb2="0 0 0.2" width="32" height="192"/></asset>
          <worldbody><light pos="0 0 3"/><camera name="front" pos="0 -3 1" xyaxes="1 0 0 0 0.3 1"/>
          <geom type="sphere" size="0.5" rgba="0.2 0.6 0.3 1"/><geom type="box" size="0.4 0.4 0.3" pos="1 0 0"/>
          <geom type="capsule" size="0.2 0.3" pos="-1 0 0"/></worldbody></mujoco>"""
    )
    data = mujoco.MjData(scene)
    mujoco.mj_forward(scene, data)
    appearance = Appearance(scene)
    with Renderer(scene, height=64, width=64) as renderer:
        plain = renderer.render(scene, data, "front", ("rgb", "segmentation"))
        relief = {}
        for name in ("clean+texture-1", "clean+texture-3"):
            scenery = appearance.scenery(find_level(name), 0, data, ("front",))
            covered = renderer.render(scene, data, "front", scenery=scenery)["rgb"]
            for geom in range(scene.ngeom):
                # Over the plain surface, so that its shading, which varies more than a weak pattern, cancels.
                seen = (plain["segmentation"] == geom) & (plain["rgb"].min(axis=-1) > 10)
                ratio = covered[seen].sum(axis=1) / plain["rgb"][seen].sum(axis=1)
                relief[name, geom] = ratio.std() / ratio.mean()
                assert relief[name, geom] > 0.03, f"geom {geom} shows no pattern of {name}"
            sky = plain["segmentation"] == -1
            np.testing.assert_array_equal(covered[sky], plain["rgb"][sky])
        for geom in range(scene.ngeom):
            assert relief["clean+texture-3", geom] > 2 * relief["clean+texture-1", geom]
        np.testing.assert_array_equal(renderer.render(scene, data, "front")["rgb"], plain["rgb"])


def test_the_sheet_is_written(tmp_path, capsys):
    out = tmp_path / "sheets" / "toy.png"
    main(["toy/reach", "--level", "varied-1", "--size", "32", "--out", str(out)])
    assert out.is_file() and "15 shifts of toy/reach on top of varied-1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["toy/rech"])
    assert "did you mean toy/reach" in capsys.readouterr().err

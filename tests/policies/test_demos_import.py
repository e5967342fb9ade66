"""Demonstrations of other origin: robomimic's layout, R3M's pickles, and all that can be wrong with them."""

import json
import pickle
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np
import pytest

from egoarm import COMMANDS, compose
from envs.tasks import TASKS
from policies.demos.hdf5 import DemoFile
from policies.demos.importing import ImportConfig, run
from policies.demos.r3m import ENVIRONMENTS, load_paths
from policies.demos.robomimic import ENV_NAMES, robosuite_name

CONFIG = ImportConfig(
    source="robomimic",
    file="",
    task="toy/reach",
    out="",
    cameras=None,
    fields=None,
    filter_key=None,
    env_version=None,
    clip_actions=False,
    episodes=None,
)


def write_robomimic(path: Path, source: Path, **env_args: object) -> Path:
    """A file as robomimic's own scripts write one: env_args with a version, obs and next_obs, float64 actions, a mask; from real episodes."""
    with h5py.File(source) as ours, h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, demo in ours["data"].items():
            group = data.create_group(name)
            group.attrs["num_samples"] = demo.attrs["num_samples"]
            group.attrs["model_file"] = "<mujoco/>"
            for key in ("states", "rewards", "dones"):
                group[key] = demo[key][()]
            group["actions"] = demo["actions"][()].astype(np.float64)
            for key, values in demo["obs"].items():
                group.create_dataset(f"obs/{key}", data=values[()], compression="gzip")
                group.create_dataset(f"next_obs/{key}", data=np.roll(values[()], -1, axis=0), compression="gzip")
        data.attrs["total"] = ours["data"].attrs["total"]
        default = {"env_name": "reach", "env_type": 2, "env_version": metadata.version("mujoco"), "env_kwargs": {}}
        data.attrs["env_args"] = json.dumps(default | env_args)
        file.create_dataset("mask/valid", data=np.array(["demo_2", "demo_0"], dtype="S"))
    return path


@pytest.fixture
def robomimic_file(toy_demos: Path, tmp_path: Path) -> Path:
    return write_robomimic(tmp_path / "image.hdf5", toy_demos)


def imported(file: Path, **changes: object) -> Path:
    config = replace(CONFIG, file=str(file), out=str(file.with_name("out.hdf5")), **changes)
    return run(config)


def test_a_robomimic_file_comes_in_whole(robomimic_file: Path, toy_demos: Path) -> None:
    with DemoFile(imported(robomimic_file)) as demos, DemoFile(toy_demos) as original:
        assert demos.env_spec == original.env_spec and demos.lengths == original.lengths and demos.seeds == []
        for demo in range(len(original)):
            for key in ("actions", "states", "rewards", "dones", *(f"obs/{k}" for k in original.env_spec.observation)):
                np.testing.assert_array_equal(demos.array(demo, key), original.array(demo, key), err_msg=key)
        demos.check_env()
        assert demos.meta["source"]["absent"] == []


def test_a_filter_key_and_a_number_choose(robomimic_file: Path, toy_demos: Path) -> None:
    with DemoFile(imported(robomimic_file, filter_key="valid", episodes=1)) as demos, DemoFile(toy_demos) as original:
        assert demos.lengths == [original.lengths[0]]


def change(file: Path, demo: str, key: str, values: np.ndarray | None) -> None:
    with h5py.File(file, "a") as handle:
        del handle[f"data/{demo}/{key}"]
        if values is not None:
            handle[f"data/{demo}/{key}"] = values


def test_single_demonstrations_are_left_out_and_counted(robomimic_file: Path, capsys: pytest.CaptureFixture) -> None:
    with h5py.File(robomimic_file) as file:
        actions = {name: file[f"data/{name}/actions"][()] for name in file["data"]}
    actions["demo_0"][3] = np.nan
    actions["demo_2"][1, 0] = 1.5
    for demo in ("demo_0", "demo_2"):
        change(robomimic_file, demo, "actions", actions[demo])
    with DemoFile(imported(robomimic_file)) as demos:
        assert len(demos) == 2 and set(demos.meta["failures"]) == {"demo_0", "demo_2"}
        assert "not finite (first at step 3)" in demos.meta["failures"]["demo_0"]
        assert "leave -1 to 1 (first at step 1: [1.5" in demos.meta["failures"]["demo_2"]
    assert "2 left out" in capsys.readouterr().out
    robomimic_file.with_name("out.hdf5").unlink()
    with DemoFile(imported(robomimic_file, clip_actions=True)) as demos:
        assert len(demos) == 3 and demos.array(1, "actions")[1, 0] == 1.0


def test_none_left_is_an_error(robomimic_file: Path) -> None:
    for demo in ("demo_0", "demo_1", "demo_2", "demo_3"):
        change(robomimic_file, demo, "actions", np.full((9, 2), np.nan))
    with pytest.raises(ValueError, match=r"has shape \[\d+, 64, 64, 3\], expected \[9, 64"):
        imported(robomimic_file)
    with h5py.File(robomimic_file, "a") as file:
        for demo in file["data"].values():
            length = demo["rewards"].shape[0]
            del demo["actions"]
            demo["actions"] = np.full((length, 2), np.inf)
    with pytest.raises(ValueError, match="none of 4 demonstrations can be used; 4 times: its actions are not finite"):
        imported(robomimic_file)
    assert not robomimic_file.with_name("out.hdf5").exists() and not list(robomimic_file.parent.glob(".*tmp*"))


@pytest.mark.parametrize(
    ("demo", "key", "values", "message"),
    [
        ("demo_1", "obs/tip_pos", None, r"demo_1/obs has no 'tip_pos' \(our state/tip_pos\); there is: front_image, tip_vel"),
        ("demo_1", "obs", None, r"demo_1 has no observations; robomimic's dataset_states_to_obs"),
        ("demo_3", "actions", None, "demo_3 has no 'actions'"),
        ("demo_2", "obs/front_image", np.zeros((9, 84, 84, 3), np.uint8), r"demo_2 have shapes front_image \[84, 84, 3\]"),
        ("demo_0", "obs/front_image", np.zeros((9, 60, 80, 3), np.uint8), r"shape \[60, 80, 3\], expected square RGB"),
        ("demo_0", "actions", np.zeros((9, 7)), r"actions of shape \[9, 7\], expected \[N, 2\]"),
        ("demo_0", "rewards", np.zeros(3), "rewards has 3 rows, expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_error(
    robomimic_file: Path, demo: str, key: str, values: np.ndarray | None, message: str
) -> None:
    change(robomimic_file, demo, key, values)
    with pytest.raises(ValueError, match=message) as error:
        imported(robomimic_file)
    assert str(robomimic_file) in str(error.value)


@pytest.mark.parametrize(
    ("env_args", "changes", "message"),
    [
        ({"env_version": "2.0"}, {}, r"made with version 2\.0 .*Say env_version=2\.0"),
        ({"env_version": "2.0"}, {"env_version": "2.1"}, r"env_version=2\.1: .* made with 2\.0"),
        ({"env_name": "Lift"}, {}, "demonstrations of Lift, task=toy/reach"),
        ({}, {"filter_key": "hard"}, "no filter key 'hard'; there is: valid"),
        ({}, {"cameras": ("side",)}, "no camera 'side'"),
        ({}, {"fields": {"state/arm": "x"}}, "has no state/arm; there is: images/front"),
    ],
)
def test_requests_that_do_not_fit_the_file(
    toy_demos: Path, tmp_path: Path, env_args: dict, changes: dict, message: str
) -> None:
    file = write_robomimic(tmp_path / "image.hdf5", toy_demos, **env_args)
    with pytest.raises(ValueError, match=message):
        imported(file, **changes)


def test_another_version_comes_in_when_it_is_named(toy_demos: Path, tmp_path: Path) -> None:
    file = write_robomimic(tmp_path / "image.hdf5", toy_demos, env_version="2.0")
    with DemoFile(imported(file, env_version="2.0")) as demos:
        assert demos.meta["source"]["env_version"] == "2.0"


def test_files_that_are_no_source(toy_demos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="written by EgoArm"):
        imported(toy_demos)
    (tmp_path / "a.hdf5").write_bytes(b"none")
    with pytest.raises(ValueError, match="not a whole HDF5 file"):
        imported(tmp_path / "a.hdf5")
    with pytest.raises(FileNotFoundError, match=r"b\.hdf5"):
        imported(tmp_path / "b.hdf5")
    with pytest.raises(ValueError, match="source=minari: expected one of robomimic, r3m"):
        replace(CONFIG, source="minari")


def test_a_field_is_renamed_from_the_command_line(robomimic_file: Path) -> None:
    with h5py.File(robomimic_file, "a") as file:
        for demo in file["data"].values():
            demo.move("obs/front_image", "obs/agentview_image")
    words = [f"file={robomimic_file}", "task=toy/reach", f"out={robomimic_file.with_name('out.hdf5')}"]
    config = compose(COMMANDS["demos import"], [*words, "fields={images/front: agentview_image}"])
    with DemoFile(run(config)) as demos:
        assert len(demos) == 4


def test_tables_name_our_tasks() -> None:
    assert set(ENV_NAMES) <= set(TASKS) or not any(name.startswith("robosuite/") for name in TASKS)
    suites = {name.partition("/")[0] for name in TASKS}
    assert {task for task in ENVIRONMENTS if task.partition("/")[0] in suites} <= set(TASKS)
    assert robosuite_name("state/eef_quat_xyzw") == "robot0_eef_quat"
    assert robosuite_name("state/robot1_gripper_qpos") == "robot1_gripper_qpos"
    assert robosuite_name("images/robot0_eye_in_hand") == "robot0_eye_in_hand_image"


# ------------------------------------------------------------------------------------------------------------- robosuite


def write_lift(path: Path, **kwargs: object) -> Path:
    """Two short episodes under robosuite's names, at robomimic's 84 pixels."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for demo in range(2):
            group = file.create_group(f"data/demo_{demo}")
            group.attrs["num_samples"] = 5
            group["actions"] = random.uniform(-1, 1, (5, 7))
            group["states"], group["rewards"], group["dones"] = np.zeros((5, 32)), np.zeros(5), np.zeros(5, int)
            for name in ("agentview", "robot0_eye_in_hand"):
                group[f"obs/{name}_image"] = random.integers(0, 255, (5, 84, 84, 3), np.uint8)
            for name, size in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2), ("joint_pos", 7)):
                group[f"obs/robot0_{name}"] = random.normal(size=(5, size))
        controller = {"type": "OSC_POSE", "control_delta": True, "output_max": [0.05] * 3 + [0.5] * 3}
        env_kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": controller} | kwargs
        env_args = {"env_name": "Lift", "env_type": 1, "env_version": "1.4.1", "env_kwargs": env_kwargs}
        file["data"].attrs["env_args"] = json.dumps(env_args)
        file["data"].attrs["total"] = 10
    return path


@pytest.mark.skipif("robosuite/lift" not in TASKS, reason="the suite is not there")
def test_robosuite_names_become_ours(tmp_path: Path) -> None:
    file = write_lift(tmp_path / "lift.hdf5")
    with (
        DemoFile(imported(file, task="robosuite/lift", env_version="1.4.1")) as demos,
        h5py.File(file) as theirs,
    ):
        assert demos.env_spec.observation["images/agentview"].shape == (84, 84, 3)
        for ours, name in (("state/eef_quat_xyzw", "robot0_eef_quat"), ("images/agentview", "agentview_image")):
            expected = theirs[f"data/demo_1/obs/{name}"][()]
            np.testing.assert_array_equal(
                demos.array(1, f"obs/{ours}"), expected.astype(demos.array(1, f"obs/{ours}").dtype)
            )


@pytest.mark.skipif("robosuite/lift" not in TASKS, reason="the suite is not there")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"robots": "Sawyer"}, "recorded with Sawyer"),
        ({"control_freq": 10}, "at 10 Hz"),
        ({"controller_configs": {"type": "OSC_POSE", "control_delta": False}}, r"OSC_POSE \(absolute\)"),
        ({"controller_configs": {"type": "BASIC", "body_parts": {"right": {"type": "JOINT_VELOCITY"}}}}, "JOINT_VELOCITY"),
    ],
)  # fmt: skip
def test_another_robot_or_controller_is_refused(tmp_path: Path, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imported(write_lift(tmp_path / "lift.hdf5", **kwargs), task="robosuite/lift", env_version="1.4.1")


# ------------------------------------------------------------------------------------------------------------------- R3M


def r3m_paths(count: int = 3, size: int = 32) -> list[dict]:
    """Paths as R3M's files hold them, of Meta-World."""
    random = np.random.default_rng(1)
    return [
        {
            "observations": random.normal(size=(6, 39)),
            "actions": random.uniform(-1, 1, (6, 4)),
            "rewards": random.normal(size=6),
            "images": random.integers(0, 255, (6, size, size, 3), dtype=np.uint8),
            "env_infos": {"success": np.arange(6) > 4},
            "terminated": True,
        }
        for _ in range(count)
    ]


def write_r3m(root: Path, paths: list[dict], camera: str = "corner4", protocol: int = 4) -> Path:
    file = root / camera / "drawer-open-v2-goal-observable.pickle"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(paths, protocol=protocol))
    return root


R3M = {"source": "r3m", "task": "metaworld/drawer-open", "env_version": "v2"}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_r3m_paths_come_in(tmp_path: Path, protocol: int) -> None:
    paths = r3m_paths()
    paths[1]["env_infos"]["success"][:] = False
    root = write_r3m(tmp_path / "paths", paths, protocol=protocol)
    with DemoFile(imported(root, **R3M)) as demos:
        assert len(demos) == 2 and demos.meta["failures"] == {"path 1": "it did not succeed"}
        np.testing.assert_array_equal(demos.array(1, "obs/images/corner4"), paths[2]["images"])
        np.testing.assert_array_equal(
            demos.array(1, "obs/state/hand_pos"), paths[2]["observations"][:, :3].astype(np.float32)
        )
        np.testing.assert_array_equal(demos.array(1, "actions"), paths[2]["actions"].astype(np.float32))
        assert demos.meta["source"]["absent"] == ["dones", "states"]


def test_r3m_views_must_show_the_same_episodes(tmp_path: Path) -> None:
    paths = r3m_paths(2)
    root = write_r3m(write_r3m(tmp_path / "paths", paths), paths, camera="top_cap2")
    both = {"cameras": ("corner4", "corner2"), "fields": {"images/corner2": "top_cap2"}}
    with DemoFile(imported(root, **R3M, **both)) as demos:
        assert demos.env_spec.cameras == ("corner4", "corner2")
    root.with_name("out.hdf5").unlink()
    write_r3m(root, r3m_paths(1), camera="top_cap2")
    with pytest.raises(ValueError, match="corner4 and corner2 do not hold the same episodes"):
        imported(root, **R3M, **both)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"a": 1}, "expected a list of paths"),
        ([{k: v for k, v in r3m_paths(1)[0].items() if k != "images"}], "path 0 has no 'images'"),
        ([r3m_paths(1)[0] | {"actions": np.array([None] * 6)}], "'actions' is no array of numbers"),
        ([r3m_paths(1)[0], r3m_paths(1, size=16)[0]], r"path 1: images/corner4 has shape \[6, 16, 16, 3\]"),
        ([r3m_paths(1)[0] | {"observations": np.zeros((6, 2))}], r"observations of shape \[6, 2\], expected \[N, at least 4\]"),
    ],
)  # fmt: skip
def test_r3m_files_that_do_not_fit(tmp_path: Path, paths: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imported(write_r3m(tmp_path / "paths", paths), **R3M)


def test_r3m_is_another_version_and_not_every_task(tmp_path: Path) -> None:
    root = write_r3m(tmp_path / "paths", r3m_paths(1))
    with pytest.raises(ValueError, match="Say env_version=v2"):
        imported(root, **(R3M | {"env_version": None}))
    with pytest.raises(ValueError, match="not in R3M's evaluation; its tasks are: metaworld/assembly"):
        imported(root, source="r3m")


class Malicious:
    """Runs a function when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_but_arrays_is_unpickled(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "bad.pickle"
    file.write_bytes(pickle.dumps([{"actions": Malicious(tmp_path / "ran")}], protocol=protocol))
    with pytest.raises(ValueError, match=r"bad\.pickle: it names .*a pickle could run any code"):
        load_paths(file)
    for name in (b"cos\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy.core.multiarray\nfromfile\n."):
        file.write_bytes(name)
        with pytest.raises(ValueError, match="it names"):
            load_paths(file)
    file.write_bytes(pickle.dumps(r3m_paths(1))[:-100])
    with pytest.raises(ValueError, match="not a whole pickle"):
        load_paths(file)
    assert not (tmp_path / "ran").exists()
